"""One candidate of a ranking: its responses, what they say about its neurons, and their scores.

A response is on disk as soon as it ended, and so is its reduced recording; a candidate is done when
its `scores.json` is there. Recordings are reduced at once to what scoring needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import artifact, engines
from surgeon.answers import parse_tags, read_answers
from surgeon.families import Subject
from surgeon.live.families import live, tokenizer_of
from surgeon.progress import say
from surgeon.rank.caches import write_cache
from surgeon.rank.plan import RankPlan
from surgeon.rank.recording import RowLength, row_length
from surgeon.rank.reduced import (
    TRACES,
    candidate_dir,
    credited_if_active,
    forget_reduced,
    is_scored,
    keep_evidence,
    learn,
    mean_positive,
    read_closely,
    reduce_responses,
    score,
    votes,
    write_resamples,
    write_weights,
)
from surgeon.rank.shards import gather
from surgeon.ranking import CandidateScores
from surgeon.traces import Trace, in_order, keys_of, sampled, settle, stored_traces

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

ROWS = "rows.json"


def score_candidates(plan: RankPlan, work: Path) -> None:
    """Write `candidates/NAME/` for every candidate whose `scores.json` is missing, or lacks
    responses."""
    missing = [s for s in plan.subjects if not is_scored(plan, candidate_dir(work, s))]
    for subject in plan.subjects:
        if subject not in missing and not plan.settings.adaptive:
            forget_reduced(candidate_dir(work, subject))  # what a kill left of them
    if plan.traces is None:
        engines.fill(
            plan.settings.engine,
            [engines.Destination(s, candidate_dir(work, s) / TRACES) for s in missing],
            plan.prompts, plan.settings.sampling, plan.placement, report=work / engines.FILE,
            own_seeds=plan.own_seeds,
        )  # fmt: skip
    plan = with_rows(plan, work)
    if plan.roster is not None and missing:
        for subject in gather(plan, work, missing):
            score_candidate(plan, work, subject, None, tokenizer_of(subject), "")
        return
    for n, (subject, model, tokenizer) in enumerate(live(missing, *plan.placement)):
        place = len(plan.subjects) - len(missing) + n + 1
        what = f"{place}/{len(plan.subjects)} {subject.name}"
        score_candidate(plan, work, subject, model, tokenizer, what)


def with_rows(plan: RankPlan, work: Path) -> RankPlan:
    """The plan with its tokens per row. Where the first traces are to say, those of the first and
    the last candidate are made and decide, once."""
    if plan.row_tokens:
        return plan
    if not (work / ROWS).is_file():
        ends = {s.name: s for s in (plan.subjects[0], plan.subjects[-1])}
        found = row_length(first_traces(plan, work, list(ends.values())))
        artifact.write(work, found)
        say(found.line)
    return plan._replace(row_tokens=artifact.read(RowLength, work).row_tokens)


def first_traces(plan: RankPlan, work: Path, subjects: Sequence[Subject]) -> dict[str, list[Trace]]:
    """Candidate name -> its traces; those that are lacking are sampled."""
    if plan.traces is not None:
        return {subject.name: plan.traces[subject.name] for subject in subjects}
    sampling = plan.settings.sampling
    files = {subject.name: candidate_dir(work, subject) / TRACES for subject in subjects}
    wanted = set(keys_of(plan.prompts, sampling.samples))

    def stored(name: str) -> list[Trace]:
        return [trace for trace in stored_traces(files[name]) if trace.key in wanted]

    lacking = [subject for subject in subjects if len(stored(subject.name)) < len(wanted)]
    for subject in lacking:
        files[subject.name].parent.mkdir(parents=True, exist_ok=True)
    if plan.roster is not None and lacking:
        from surgeon.workers import Crew
        from surgeon.workers.sharing import answered

        with Crew(plan.roster) as crew:
            answered(
                crew, files, lacking, plan.prompts, sampling, what="sample the first traces",
                own_seeds=plan.own_seeds,
            )  # fmt: skip
    else:
        for subject, model, tokenizer in live(lacking, *plan.placement):
            what = f"sample {subject.name}"
            how = plan.sampling_of(subject)
            sampled(files[subject.name], model, tokenizer, plan.prompts, how, what=what)
    return {subject.name: stored(subject.name) for subject in subjects}


def score_candidate(
    plan: RankPlan,
    work: Path,
    subject: Subject,
    model: "nn.Module | None",
    tokenizer: "PreTrainedTokenizerBase",
    what: str,
) -> None:
    """Write one candidate's `candidates/NAME/`; without a model all its answers and recordings are
    there."""
    directory = candidate_dir(work, subject)
    directory.mkdir(parents=True, exist_ok=True)
    if plan.traces is not None:
        traces = plan.traces[subject.name]
    elif model is None:
        traces = in_order(stored_traces(directory / TRACES), plan.prompts)
    else:
        traces = sampled(
            directory / TRACES, model, tokenizer, plan.prompts, plan.sampling_of(subject),
            what=f"sample {what}",
        )  # fmt: skip
    if plan.traces is None:
        settle(directory / TRACES, traces)
    reduced = list(reduce_responses(plan, directory, model, traces, what))
    n_layers, d_ff = plan.shape(subject)
    learned = learn(n_layers * d_ff, reduced, mean_positive(directory / "responses", len(reduced)))
    write_weights(plan, directory, subject, learned)
    keep_evidence(plan, directory, subject, traces, reduced)
    active = credited_if_active(plan, directory, reduced)
    write_resamples(plan, directory, [t.prompt_id for t in traces], reduced, active)
    think = parse_tags(plan.settings.reading.think_tags)
    answers = votes(traces, read_answers(traces, plan.extract, tokenizer, think))
    if plan.settings.format == "nex-cache":
        write_cache(plan, directory, subject, traces, answers)
    responses = score(plan, learned, traces, answers, reduced, active)
    reading = read_closely(plan, responses, reduced)
    artifact.write(directory, CandidateScores(reading=reading, responses=responses))
    if not plan.settings.adaptive:  # another round may add responses
        forget_reduced(directory)
