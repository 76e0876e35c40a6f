"""`surgeon soup`: a greedy soup by the label-free estimate (Wortsman et al. 2022, Recipe 1).

The checkpoints of a ranking are tried in the order of their estimated accuracy. Each joins where
the uniform average of those that joined and itself is estimated to be at least as accurate as
without it. Held-out accuracy, which the paper takes, needs labels; here the answers of the ranked
checkpoints vote, as in `surgeon.estimate`, and don't change from try to try. An average is judged
by the checkpoints that are not in it where `JURY` or more are left: its parts tend to err as it
does.

It puts other verbs together (merge-sweep makes the averages, rank its input), so it stands above
them. On disk: `checkpoint/`, `soup.json`, and every average's answers in `traces/`.
"""

# Shape letters: P prompts.

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import artifact, estimate, lineage
from surgeon.answers import classes_of, parse_extractor, parse_tags, read_answers
from surgeon.artifact import Already, Out
from surgeon.checkpoint import Checkpoint, link_directory, placement
from surgeon.console import announce, console, say, table
from surgeon.errors import BadInput
from surgeon.families import Subject, as_subject, subjects
from surgeon.live.families import live
from surgeon.merge import sweep
from surgeon.ranking import CandidateScores, RankedCandidate, Ranking
from surgeon.settings import record, verb
from surgeon.settings.sampling import Sampling
from surgeon.settings.soup import SoupSettings
from surgeon.traces import (
    Prompt,
    digest_of_prompts,
    in_order,
    read_prompts,
    sampled,
    stored_traces,
)

if TYPE_CHECKING:
    import torch

JURY = 3
"""Fewest checkpoints outside an average that judge it alone."""
CHECKPOINT = "checkpoint"
Answers = dict[str, list[str | None]]
"""Prompt -> what was answered, None for what can't be read."""


@artifact.part
class SoupStep:
    """One checkpoint that was tried."""

    added: str
    joined: bool
    estimate: float | None
    """Of the average with it, in [0, 1]; None without any vote."""
    before: float | None
    """Of the average without it, by the same jury."""
    error: float | None
    """Standard error of the difference, over prompts."""
    jury: tuple[str, ...]


@artifact.artifact("soup.json")
class Soup:
    """What joined, and why."""

    ingredients: tuple[str, ...]
    """Those that joined, in their order."""
    steps: tuple[SoupStep, ...]
    line: str
    out: Out
    already: Already = False


class SoupPlan(NamedTuple):
    """A soup whose inputs have been checked; nothing has been computed yet."""

    settings: SoupSettings
    subjects: list[Subject]
    """Of all ranked checkpoints, the best first."""
    tried: int
    answers: dict[str, Answers]
    """Of each, as the ranking read them."""
    prompts: list[Prompt]
    sampling: Sampling
    ranking: Ranking
    placement: "tuple[str, torch.dtype | None]"
    run: lineage.Run


@verb(SoupSettings)
def soup(settings: SoupSettings) -> Soup:
    """Write a greedy soup of a ranking's checkpoints to the directory `out`.

    Raises `BadInput` before anything is averaged.
    """
    plan = prepare(settings)
    return artifact.once(settings.out, Soup, lambda work: stir(plan, work), run=plan.run)


def prepare(settings: SoupSettings) -> SoupPlan:
    """Check the ranking and its checkpoints; raises `BadInput`."""
    place = placement(settings.machine.device, settings.machine.dtype)
    directory = Path(settings.ranking)
    ranking = artifact.read(Ranking, directory)
    known = ranking.settings
    candidates = in_order_of_estimate(ranking, directory)
    prompts = read_prompts(str(known.get("mini_set") or ranking.mini_set.path))
    if digest_of_prompts(prompts) != ranking.mini_set.digest:
        raise BadInput(
            f"{ranking.mini_set.path} is no longer what {directory} was ranked on. Rank again."
        )
    by_digest = {s.digest: s for s in subjects([c.checkpoint for c in candidates])}
    chosen = []
    for c in candidates:
        subject = by_digest.get(c.digest)
        if subject is None:
            raise BadInput(f"{c.checkpoint} changed since {directory} ranked it. Rank again.")
        if subject.checkpoint is None:
            raise BadInput(
                f"{c.checkpoint} is virtual, expected checkpoints on disk: an average of merges of "
                "two endpoints is another merge of them."
            )
        chosen.append(subject._replace(name=c.name))
    if not settings.out.exists():
        # Whatever can't be averaged is refused before anything is. Not where a killed soup may have
        # left the average of others.
        planned = settings.out.with_name(settings.out.name + ".partial") / "planned"
        sweep(**merge_of(chosen), out=planned, dry_run=True)
    names = {"samples", "temperature", "top_p", "max_tokens", "thinking", "template"}
    given: dict[str, Any] = {name: known[name] for name in names if known.get(name) is not None}
    given |= {"seed": known.get("seed", 0), "top_k": known.get("sampling_top_k", 0)}
    inputs = {c.name: c.digest for c in candidates} | {"mini set": ranking.mini_set.digest}
    inputs["the ranking"] = lineage.file_digest(directory / "ranking.json")
    return SoupPlan(
        settings, chosen, min(settings.most or len(chosen), len(chosen)),
        {c.name: answers_of(directory, c.name) for c in candidates},
        prompts, Sampling(**given), ranking, place,
        lineage.Run("soup", record(settings), inputs, Sampling(**given).seed),
    )  # fmt: skip


def in_order_of_estimate(ranking: Ranking, directory: Path) -> list[RankedCandidate]:
    """The candidates that can be estimated and voted, the most accurate first."""
    there = [c for c in ranking.candidates if c.scores.get("estimate") is not None]
    if ranking.rounds:
        raise BadInput(
            f"{directory} let candidates stop early, expected answers of all to all prompts: rank "
            "without --adaptive."
        )
    if len(there) < JURY:
        raise BadInput(
            f"{directory} has {len(there)} candidates with an estimated accuracy, expected "
            f"{JURY} or more: fewer can't vote on an average."
        )
    # Equal estimates in the ranking's order.
    return sorted(there, key=lambda c: -(c.scores["estimate"] or 0.0))


def answers_of(directory: Path, name: str) -> Answers:
    """What a ranked candidate answered."""
    found: Answers = {}
    for response in artifact.read(CandidateScores, directory / "candidates" / name).responses:
        found.setdefault(response.prompt_id, []).append(response.answer)
    return found


def stir(plan: SoupPlan, work: Path) -> Soup:
    """Try one checkpoint after another; `work` keeps the answers that were drawn."""
    first, *rest = plan.subjects[: plan.tried]
    joined, current, steps = [first], plan.answers[first.name], list[SoupStep]()
    for subject in rest:
        trial = [*joined, subject]
        answers = answered(plan, trial, work, f"{len(steps) + 1:03d}")
        step = judged(plan, trial, current, answers)
        steps.append(step)
        if step.joined:
            joined, current = trial, answers
    target = work / CHECKPOINT
    shutil.rmtree(target, ignore_errors=True)
    source = first.source.path if len(joined) == 1 else average(joined, work / "merge")
    link_directory(source, target)
    shutil.rmtree(work / "merge", ignore_errors=True)
    names = tuple(subject.name for subject in joined)
    return Soup(ingredients=names, steps=tuple(steps), line=sentence(names, steps), out=work)


def average(ingredients: Sequence[Subject], out: Path) -> Path:
    """The directory of the uniform average, written anew by merge-sweep."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
    sweep(**merge_of(ingredients), out=out)
    return out / f"uniform-{len(ingredients)}"


def merge_of(ingredients: Sequence[Subject]) -> dict[str, object]:
    """merge-sweep's settings for their average."""
    a, b, *more = [str(subject.source.path.resolve()) for subject in ingredients]
    return {"a": a, "b": b, "more": more, "uniform": True}


def answered(plan: SoupPlan, trial: Sequence[Subject], work: Path, name: str) -> Answers:
    """What an average answers to the ranking's prompts; it is made where answers are lacking, and
    goes again."""
    file = work / "traces" / f"{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    traces = stored_traces(file)
    tokenizer = trial[0].source.tokenizer()
    if len(traces) < len(plan.prompts) * plan.sampling.samples:
        made = Checkpoint.open(average(trial, work / "merge"))
        what = f"soup {name}"
        for _, model, own in live([as_subject(made)], *plan.placement):
            traces = sampled(file, model, own, plan.prompts, plan.sampling, what=what)
        shutil.rmtree(work / "merge")
    traces = in_order(traces, plan.prompts)
    settings = plan.ranking.settings
    words, tags = (settings.get(name) or () for name in ("answer_words", "think_tags"))
    extract = parse_extractor(str(settings.get("answer", "auto")), tuple(words))  # pyright: ignore
    read = read_answers(traces, extract, tokenizer, parse_tags(tuple(tags)))  # pyright: ignore
    found: Answers = {}
    for trace, answer in zip(traces, read, strict=True):
        found.setdefault(trace.prompt_id, []).append(answer)
    return found


def judged(plan: SoupPlan, trial: Sequence[Subject], before: Answers, after: Answers) -> SoupStep:
    """Whether the last of the ingredients joins: both averages by the same votes."""
    inside = {subject.name for subject in trial}
    outside = [s.name for s in plan.subjects if s.name not in inside]
    jury = outside if len(outside) >= JURY else [s.name for s in plan.subjects]
    voters = [plan.answers[name] for name in jury]
    estimates = [estimated(plan.prompts, voters, answers) for answers in (before, after)]
    old, new = (float(e.accuracy_C[-1]) for e in estimates)
    gap_P = estimates[1].match_PC[:, -1] - estimates[0].match_PC[:, -1]
    gap_P = gap_P[np.isfinite(gap_P)]
    error = float(gap_P.std(ddof=1) / math.sqrt(len(gap_P))) if len(gap_P) > 1 else math.nan
    return SoupStep(
        added=trial[-1].name,
        joined=new >= old,
        estimate=new if math.isfinite(new) else None,
        before=old if math.isfinite(old) else None,
        error=error if math.isfinite(error) else None,
        jury=tuple(jury),
    )


def estimated(
    prompts: Sequence[Prompt], voters: Sequence[Answers], judged_one: Answers
) -> estimate.Estimate:
    """The estimate of one by the votes of others; it is the last candidate."""
    rows = []
    for prompt in prompts:
        given = [answers.get(prompt.id, []) for answers in (*voters, judged_one)]
        flat = iter(classes_of([[answer for row in given for answer in row]])[0])
        rows.append([[next(flat) for _ in row] for row in given])
    return estimate.estimate(estimate.numbered(rows))


def sentence(names: Sequence[str], steps: Sequence[SoupStep]) -> str:
    """What came of it."""
    if len(names) == 1:
        return f"No average was estimated to be better than {names[0]}: the soup is {names[0]}."
    last = next(step for step in reversed(steps) if step.joined)
    about = "" if last.estimate is None else f", estimated accuracy {last.estimate:.2f}"
    return f"The soup is the average of {', '.join(names)}{about}."


def show(found: Soup) -> None:
    """Print what was tried and what joined."""
    announce(found.already, "This soup")
    say(found.line, style="bold")
    rows = table("tried", "estimate", "without it", "difference", "", left=["tried"])
    for step in found.steps:
        gap = "–"
        if step.estimate is not None and step.before is not None:
            gap = f"{100 * (step.estimate - step.before):+.1f} pp"
            gap += "" if step.error is None else f" ± {196 * step.error:.1f}"
        cells = ["–" if v is None else f"{v:.3f}" for v in (step.estimate, step.before)]
        rows.add_row(step.added, *cells, gap, "joined" if step.joined else "left out")
    console().print(rows)
    say(f"Checkpoint: {found.out}/{CHECKPOINT}")
