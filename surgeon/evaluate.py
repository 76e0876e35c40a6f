"""`surgeon evaluate`: the measured quality of checkpoints on a labelled task.

Every candidate answers each problem `samples` times; the answers are read out of the responses and
checked. Reported per candidate, each with a 95% bootstrap interval over problems:

- `avg` Avg@k, the mean accuracy of one sample (`pass1`, Pass@1, is the same number);
- `maj` Maj@k, the accuracy of the most frequent answer, ties at their expected value;
- `ece` expected calibration error of the majority vote, 15 bins, confidence = its vote share;
- `cons` Cons@1 to Cons@k: what voting over fewer samples would have reached, to be compared at
  equal tokens;
- `tokens` mean tokens per response, `truncated` the share that hit the token limit, `missing` the
  share in which no answer was found.

A truncated response has no answer: it is wrong and votes for nothing, as in `agreement`.

With `consensus`, Neuron-OPSD's s(x) of every response is read (Eq. 4), and reported is whether it
tells the right ones: AUROC, accuracy by coverage, Fig. 2 and 3, and what is left at equal length.

On disk: `evaluate.json`, `traces/NAME.jsonl` (every response) and `answers/NAME.jsonl` (what was
read out of it, and whether it is right), and `consensus/NAME.jsonl` (s(x) of each response).
"""

# Shape letters: P problems, M metrics, S members of a group, K samples, X bins of the calibration
# error, B bootstrap resamples.

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import artifact, console, engines, jsonl, lineage, metrics, named
from surgeon.answers import (
    CheckVerdict,
    Extractor,
    check_many,
    classes_of,
    gold_problem,
    parse_check,
    parse_extractor,
    parse_tags,
    read_answers,
)
from surgeon.checkpoint import placement
from surgeon.consensus import Reliability, reliability, require_budget, sentence, sizes
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.live import support
from surgeon.live.families import live, require_prompts, stop_ids_of, tokenizer_of
from surgeon.settings import record, verb
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.nopsd import NopsdReadings
from surgeon.traces import (
    Prompt,
    Trace,
    digest_of_prompts,
    in_order,
    keys_of,
    outlook,
    read_plain,
    read_prompts,
    sampled,
    settle,
    stored_traces,
)
from surgeon.truth import (
    EVALUATION,
    EvaluatedCandidate,
    EvaluatedGroup,
    EvaluatedTask,
    Evaluation,
    Gain,
    Measures,
)
from surgeon.workers import Crew, Roster, answered, roster

if TYPE_CHECKING:
    import torch
    from rich.table import Table

BINS = 15
"""Equal-width bins of the calibration error (Neuron-OPSD, sec. 5)."""
NAME = re.compile(r"[\w.-]+")
WORTH_SAYING = 0.2
"""Share of truncated or unreadable responses above which a warning is given."""


class EvaluatePlan(NamedTuple):
    """An evaluation whose inputs have been checked; nothing has been computed yet."""

    settings: EvaluateSettings
    subjects: list[Subject]
    foreign: dict[str, list[Trace]]
    """Responses that were made elsewhere, by name, in the problems' order."""
    problems: list[Prompt]
    extract: Extractor
    device: str
    dtype: "torch.dtype | None"
    """None: as on disk."""
    roster: Roster | None
    """The workers; None where this process works alone."""
    inputs: dict[str, str]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Measure checkpoints on a labelled task and write the result to the directory `out`.

    Raises `BadInput` before anything is sampled.
    """
    if settings.dry_run:
        raise BadInput(
            "found dry_run, expected forecast(settings): from Python that says what it will take."
        )
    plan = prepare(settings)
    evaluation = artifact.once(settings.out, Evaluation, partial(measure, plan), run=run_of(plan))
    if settings.consensus and evaluation.consensus_top != settings.consensus_top:
        evaluation = with_consensus(plan, evaluation)
        artifact.write(settings.out, evaluation)
    return evaluation


def run_of(plan: EvaluatePlan) -> lineage.Run:
    """What makes the evaluation this evaluation."""
    return lineage.Run("evaluate", record(plan.settings), plan.inputs, plan.settings.sampling.seed)


def forecast(settings: EvaluateSettings) -> outlook.Outlook:
    """What the evaluation will take: answers, tokens, time and disk by candidate; writes nothing.

    Raises `BadInput` as the evaluation would.
    """
    plan = prepare(settings)
    lineage.check(settings.out, run_of(plan))
    outlook.require_timed(settings.measure_s, local=settings.engine.is_local, given=False)
    free = lineage.free_bytes(settings.out)
    if settings.out.exists():
        artifact.read(Evaluation, settings.out)
        done = "It is finished: nothing would be computed."
        return outlook.Outlook("evaluate", (), (done,), free)
    work = settings.out.with_name(settings.out.name + ".partial") / "traces"
    sampling, paces = settings.sampling, {}
    if settings.measure_s:
        models = live(outlook.timed_ones(plan.subjects), plan.device, plan.dtype)
        for subject, model, tokenizer, load_s in outlook.loaded(models):
            paces[subject.name] = outlook.timed(
                subject, model, tokenizer, plan.problems, sampling,
                load_s=load_s, seconds=settings.measure_s,
            )  # fmt: skip
    there = outlook.on_disk({s.name: [work / f"{s.name}.jsonl"] for s in plan.subjects})
    known = outlook.Known(there, paces, sampling, outlook.ratios(plan.subjects))
    tokens = outlook.mean_prompt_tokens(tokenizer_of(plan.subjects[0]), plan.problems, sampling)
    wanted = keys_of(plan.problems, sampling.samples)
    workers = 1 if plan.roster is None else max(1, len(plan.roster.devices))
    costs = [outlook.lacking(known, s.name, wanted, tokens, workers) for s in plan.subjects]
    about = outlook.about(known, plan.problems, tokens, local=settings.engine.is_local)
    lines = (*(pace.line for pace in paces.values()), *about)
    return outlook.Outlook("evaluate", tuple(costs), lines, free)


def prepare(settings: EvaluateSettings) -> EvaluatePlan:
    """Check every input of an evaluation against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype, several=True)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    parse_check(settings.check)
    every = read_problems(settings)
    problems = every[: settings.limit]
    chosen = subjects(list(settings.checkpoints))
    foreign = read_responses(settings, problems, chosen, every)
    if settings.consensus:
        for subject in chosen:
            support.require("distill", subject.source)
            require_budget(subject.source, consensus_readings(settings), "consensus_top")
    require_names(settings, [*(subject.name for subject in chosen), *foreign])
    if not settings.out.exists():
        require_prompts(chosen, problems, settings.sampling)
    asks = not settings.out.exists()
    engines.require_engine(settings.engine, chosen, problems, asks=asks)
    # Names of candidates hold no spaces, so nothing else here can be taken for one.
    inputs = {subject.name: subject.digest for subject in chosen}
    inputs |= {name: lineage.file_digest((settings.responses or {})[name]) for name in foreign}
    inputs["labelled task"] = digest_of_prompts(problems)
    inputs |= named.digests(answer=settings.answer, check=settings.check)
    return EvaluatePlan(
        settings, chosen, foreign, problems, extract, device, dtype, workers, inputs
    )


def read_responses(
    settings: EvaluateSettings,
    problems: Sequence[Prompt],
    chosen: Sequence[Subject],
    every: Sequence[Prompt],
) -> dict[str, list[Trace]]:
    """The first responses to each problem from files of answers, in the problems' order; raises
    `BadInput` where one is missing, or a name is not its own.

    Answers that are text, to `every` problem of the task, are read with the first candidate's
    tokenizer.
    """
    foreign = {}
    taken = [subject.name for subject in chosen]
    wanted = keys_of(problems, settings.sampling.samples)
    for name, file in (settings.responses or {}).items():
        if name in taken or not NAME.fullmatch(name):
            raise BadInput(
                f"responses are called {name!r}, expected a name of its own of letters, digits, "
                "dots, dashes and underscores."
            )
        if not Path(file).is_file():
            raise BadInput(f"responses {name}: {file} is no file. Give a traces.jsonl.")
        tokenizer = tokenizer_of(chosen[0])
        stop = stop_ids_of(chosen[0], tokenizer)
        found = read_plain(file, every, tokenizer, settings.sampling, stop)
        found.say(f"responses {name}")
        traces = {trace.key: trace for trace in found.traces}
        missing = [key for key in wanted if key not in traces]
        if missing:
            problem, sample = missing[0]
            raise BadInput(
                f"responses {name}: {file} lacks {len(missing)} of {len(wanted)} responses, first "
                f"sample {sample} of problem {problem}. Make them with the same task and at least "
                "as many samples."
            )
        foreign[name] = [traces[key] for key in wanted]
    return foreign


def require_names(settings: EvaluateSettings, names: Sequence[str]) -> None:
    """Raise `BadInput` unless the baseline and all groups consist of what is evaluated."""
    known = ", ".join(names)
    if settings.baseline is not None and settings.baseline not in names:
        raise BadInput(f"baseline {settings.baseline} is not evaluated. Name one of: {known}.")
    for group, members in (settings.groups or {}).items():
        for member in members:
            if member not in names:
                raise BadInput(
                    f"group {group} holds {member}, which is not evaluated. Name some of: {known}."
                )
        if not members:
            raise BadInput(f"group {group} holds no candidate. Name some of: {known}.")


def read_problems(settings: EvaluateSettings) -> list[Prompt]:
    """The prompts of a labelled task; raises `BadInput` naming the line without a usable answer."""

    def complaint(problem: Prompt) -> str | None:
        if problem.answer is None:
            return "no answer, expected the correct one in the field `answer` of every problem"
        return gold_problem(problem.answer, settings.check)

    return read_prompts(settings.task, complaint, settings.columns)


# Responses ---------------------------------------------------------------------------------------


def measure(plan: EvaluatePlan, work: Path) -> Evaluation:
    """Sample, judge and count; `work` keeps what is done, and what is there isn't done again."""
    judged = judge(plan, work, respond(plan, work))
    return conclude(plan, judged)


def respond(plan: EvaluatePlan, work: Path) -> dict[str, list[Trace]]:
    """Every candidate's responses in the problems' order; those that `traces/` lacks are sampled,
    each written as soon as it ends."""
    (work / "traces").mkdir(exist_ok=True)
    files = {subject.name: work / "traces" / f"{subject.name}.jsonl" for subject in plan.subjects}
    engines.fill(
        plan.settings.engine, [engines.Destination(s, files[s.name]) for s in plan.subjects],
        plan.problems, plan.settings.sampling, (plan.device, plan.dtype),
        report=work / engines.FILE, what="evaluate",
    )  # fmt: skip
    responses = {name: in_order(stored_traces(file), plan.problems) for name, file in files.items()}
    sampling = plan.settings.sampling
    wanted = len(plan.problems) * sampling.samples
    missing = [s for s in plan.subjects if len(responses[s.name]) < wanted]
    if plan.roster is not None and missing:
        with Crew(plan.roster) as crew:
            answered(crew, files, missing, plan.problems, sampling, what="evaluate")
        for name in (subject.name for subject in missing):
            responses[name] = in_order(stored_traces(files[name]), plan.problems)
            settle(files[name], responses[name])
        return responses | plan.foreign
    for n, (subject, model, tokenizer) in enumerate(live(missing, plan.device, plan.dtype), 1):
        what, file = f"evaluate {n}/{len(missing)} {subject.name}", files[subject.name]
        responses[subject.name] = sampled(
            file, model, tokenizer, plan.problems, sampling, what=what
        )
        settle(file, responses[subject.name])
    return responses | plan.foreign


# Judgement ---------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """One candidate's responses, in the problems' order, and how each was judged."""

    traces: list[Trace]
    answers: list[str | None]
    verdicts: list[CheckVerdict]


def judge(plan: EvaluatePlan, work: Path, responses: dict[str, list[Trace]]) -> dict[str, Judged]:
    """Read the answer out of every response and check it; writes `answers/`."""
    (work / "answers").mkdir(exist_ok=True)
    tokenizers = {subject.name: subject.source.tokenizer() for subject in plan.subjects}
    first = next(iter(tokenizers.values()))
    gold = {problem.id: str(problem.answer) for problem in plan.problems}
    think = parse_tags(plan.settings.reading.think_tags)
    answers = {
        name: read_answers(traces, plan.extract, tokenizers.get(name, first), think)
        for name, traces in responses.items()
    }
    # All at once: workers start once, and an answer that several candidates give is checked once.
    pairs = [
        (answer, gold[trace.prompt_id])
        for name, traces in responses.items()
        for trace, answer in zip(traces, answers[name], strict=True)
    ]
    verdicts = iter(check_many(pairs, plan.settings.check, timeout_s=plan.settings.timeout_s))
    judged = {}
    for name, traces in responses.items():
        judged[name] = Judged(traces, answers[name], [next(verdicts) for _ in traces])
        jsonl.write(
            work / "answers" / f"{name}.jsonl",
            (
                {"prompt_id": trace.prompt_id, "sample": trace.sample, "answer": answer,
                 "gold": gold[trace.prompt_id], **verdict._asdict()}
                for trace, answer, verdict in zip(*judged[name], strict=True)
            ),
        )  # fmt: skip
    return judged


def consensus_readings(settings: EvaluateSettings) -> NopsdReadings:
    """How contribution sets are formed."""
    return NopsdReadings(top_global=settings.consensus_top)


def with_consensus(plan: EvaluatePlan, evaluation: Evaluation) -> Evaluation:
    """A finished evaluation with s(x) of every response, and what it says of the right ones."""
    out = evaluation.out
    (out / "consensus").mkdir(exist_ok=True)
    found: dict[str, Reliability] = {}
    for n, (subject, model, _) in enumerate(live(plan.subjects, plan.device, plan.dtype), 1):
        what = f"consensus {n}/{len(plan.subjects)} {subject.name}"
        traces = in_order(stored_traces(out / "traces" / f"{subject.name}.jsonl"), plan.problems)
        file = out / "consensus" / f"{subject.name}.jsonl"
        size = sizes(model, traces, consensus_readings(plan.settings), file, what=what)
        answers = out / "answers" / f"{subject.name}.jsonl"
        right = {(r["prompt_id"], r["sample"]): r["correct"] for _, r in jsonl.rows(answers)}
        found[subject.name] = reliability(
            [size[trace.key] for trace in traces],
            [len(trace.token_ids) for trace in traces],
            [float(right[trace.key]) for trace in traces],
            [trace.prompt_id for trace in traces],
            seed=plan.settings.sampling.seed,
        )
    candidates = tuple(replace(c, consensus=found.get(c.name)) for c in evaluation.candidates)
    return replace(evaluation, candidates=candidates, consensus_top=plan.settings.consensus_top)  # pyright: ignore


# Measures ----------------------------------------------------------------------------------------


class Values(NamedTuple):
    """What one candidate did on each problem, and over all of them."""

    metric: dict[str, np.ndarray]
    """Of each metric that is a mean over problems, float64_P."""
    gap_PX: np.ndarray
    """See `metrics.calibration_gaps`."""
    consistency_K: np.ndarray
    """Accuracy of the majority of 1, 2, ..., k samples: self-consistency, Cons@j."""


def conclude(plan: EvaluatePlan, judged: dict[str, Judged]) -> Evaluation:
    """The measures of every candidate and group."""
    settings = plan.settings
    values = {name: by_problem(settings, one) for name, one in judged.items()}
    places = [(s.name, s.spec, s.ratio, s.digest) for s in plan.subjects]
    files = settings.responses or {}
    places += [(name, files[name], None, plan.inputs[name]) for name in plan.foreign]
    candidates = tuple(
        EvaluatedCandidate(
            checkpoint=checkpoint,
            ratio=ratio,
            digest=digest,
            problems=len(plan.problems),
            responses=len(judged[name].traces),
            check_timeouts=sum(verdict.timed_out for verdict in judged[name].verdicts),
            check_deaths=sum(verdict.died for verdict in judged[name].verdicts),
            **vars(measures(settings, values, name, [name])),
        )
        for name, checkpoint, ratio, digest in places
    )
    groups = tuple(
        EvaluatedGroup(members=members, **vars(measures(settings, values, name, members)))
        for name, members in (settings.groups or {}).items()
    )
    return Evaluation(
        task=EvaluatedTask(
            path=settings.task,
            problems=len(plan.problems),
            digest=plan.inputs["labelled task"],
        ),
        settings=lineage.plain(record(settings)),
        warnings=tuple(warnings(settings, candidates)),
        candidates=candidates,
        groups=groups,
    )


def by_problem(settings: EvaluateSettings, judged: Judged) -> Values:
    """One candidate's metrics, problem by problem."""
    k = settings.sampling.samples

    def apart(values: list[Any]) -> list[list[Any]]:
        return [values[start : start + k] for start in range(0, len(values), k)]

    votes = classes_of(apart(judged.answers), settings.check)
    correct = apart([verdict.correct for verdict in judged.verdicts])
    accuracy_P = metrics.accuracy_by_prompt(correct)
    majority_P = metrics.majority_by_prompt(votes, correct)
    metric = {
        "avg": accuracy_P,
        "maj": majority_P,
        "pass1": accuracy_P,
        "tokens": np.mean(apart([len(t.token_ids) for t in judged.traces]), axis=1),
        "truncated": np.mean(apart([t.finish_reason == "length" for t in judged.traces]), axis=1),
        "missing": np.mean(apart([answer is None for answer in judged.answers]), axis=1),
    }
    confidence_P = metrics.agreement_by_prompt(votes)
    return Values(
        metric,
        metrics.calibration_gaps(confidence_P, majority_P, bins=BINS),
        np.array([metrics.consistency_by_prompt(votes, correct, j + 1).mean() for j in range(k)]),
    )


def measures(
    settings: EvaluateSettings, values: dict[str, Values], name: str, members: Sequence[str]
) -> Measures:
    """Each metric's mean over the members, and its interval, over problems and members both."""
    seed, several = settings.sampling.seed, [values[member] for member in members]
    value_PSM = np.stack([np.column_stack(list(one.metric.values())) for one in several], axis=1)
    gap_PSX = np.stack([one.gap_PX for one in several], axis=1)
    mean_BSM = metrics.resampled_means(value_PSM, seed=seed)
    ece_BS = np.abs(metrics.resampled_means(gap_PSX, seed=seed)).sum(axis=2)
    both_BSM = np.concatenate([mean_BSM, ece_BS[:, :, None]], axis=2)
    ends = metrics.percentile_interval(metrics.resampled_members(both_BSM, seed=seed))
    point = dict(zip(several[0].metric, value_PSM.mean(axis=(0, 1)).tolist(), strict=True))
    point["ece"] = float(np.abs(gap_PSX.mean(axis=0)).sum(axis=1).mean())
    baseline = settings.baseline if list(members) != [settings.baseline] else None
    return Measures(
        name=name,
        **point,
        interval={name: tuple(pair) for name, pair in zip(point, ends.tolist(), strict=True)},
        cons=tuple(np.mean([one.consistency_K for one in several], axis=0).tolist()),
        gain=None if baseline is None else gain(several, values[baseline], seed),
    )


def gain(members: Sequence[Values], baseline: Values, seed: int) -> Gain:
    """How much more accurate the members are than the baseline, on the same problems."""
    more_PS = np.stack([m.metric["avg"] - baseline.metric["avg"] for m in members], axis=1)
    mean_B = metrics.resampled_members(metrics.resampled_means(more_PS, seed=seed), seed=seed)
    low, high = metrics.percentile_interval(mean_B)
    return Gain(avg=float(more_PS.mean()), interval=(float(low), float(high)))


def warnings(settings: EvaluateSettings, candidates: Sequence[EvaluatedCandidate]) -> list[str]:
    """Plain sentences about what the accuracies may not show; empty when nothing is amiss."""
    sentences = []
    truncated = float(np.mean([c.truncated for c in candidates]))
    unread = float(np.mean([c.missing - c.truncated for c in candidates]))
    stopped = sum(c.check_timeouts + c.check_deaths for c in candidates)
    if truncated > WORTH_SAYING:
        sentences.append(
            f"{truncated:.0%} of the responses hit the limit of {settings.sampling.max_tokens} "
            "tokens and count as wrong."
        )
    if unread > WORTH_SAYING:
        sentences.append(
            f"No answer was found in {unread:.0%} of the responses, and they count as wrong. Does "
            f"the extractor {settings.answer!r} fit how these models answer?"
        )
    if stopped:
        sentences.append(
            f"{stopped} answers count as wrong because their check took longer than "
            f"{settings.timeout_s:g} s or its process died."
        )
    return sentences


# What is shown -----------------------------------------------------------------------------------


NARROW = ("no answer", "95% interval", "ECE", "truncated")
"""Columns that a narrow terminal does without, in the order in which they go."""


def table(evaluation: Evaluation, width: int = 120) -> "Table":
    """An evaluation for a terminal `width` columns wide, highest accuracy first."""
    from rich.markup import escape

    k, baseline = evaluation.settings["samples"], evaluation.settings["baseline"]
    rows = sorted(evaluation.candidates, key=lambda c: -c.avg)
    groups = sorted(evaluation.groups, key=lambda c: -c.avg)
    columns: dict[str, list[str]] = {"candidate": [], f"Avg@{k}": [], "95% interval": []}
    if baseline:
        columns[f"gain on {baseline}, pp"] = []
    columns |= {name: [] for name in (f"Maj@{k}", "ECE", "tokens", "truncated", "no answer")}
    for c in [*rows, *groups]:
        several = f" ({len(c.members)} seeds)" if isinstance(c, EvaluatedGroup) else ""
        low, high = c.interval["avg"]
        cells = [escape(c.name + several), f"{c.avg:.3f}", f"{low:.3f} … {high:.3f}"]
        if baseline:
            cells.append(gain_text(c.gain))
        cells += [
            f"{c.maj:.3f}", f"{c.ece:.3f}", f"{c.tokens:.0f}", f"{c.truncated:.0%}",
            f"{c.missing:.0%}",
        ]  # fmt: skip
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    for name in NARROW:
        if sum(max(map(len, [n, *cells])) + 2 for n, cells in columns.items()) - 2 > width:
            del columns[name]
    printed = console.table(*columns)
    for column in printed.columns:
        column.style = "dim" if "interval" in str(column.header) else ""
    for n, cells in enumerate(zip(*columns.values(), strict=True), 1):
        printed.add_row(*cells, end_section=n == len(rows))
    return printed


def gain_text(gain: Gain | None) -> str:
    """A paired gain and its interval in percentage points; a dash for the baseline itself."""
    if gain is None:
        return "–"
    low, high = gain.interval
    return f"{100 * gain.avg:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"


def show(evaluation: Evaluation) -> None:
    """Print an evaluation: what was asked, the table, the warnings."""
    settings = evaluation.settings
    console.announce(evaluation.already, "This evaluation")
    console.say(
        f"{evaluation.task.problems} problems, {settings['samples']} samples each, answers read by "
        f"{settings['answer']!r} and checked by {settings['check']!r}; Pass@1 is Avg@k."
    )
    terminal = console.console()
    terminal.print(table(evaluation, terminal.width))
    for candidate in evaluation.candidates:
        if candidate.consensus is not None:
            console.say(f"consensus of {candidate.name}: {sentence(candidate.consensus)}")
    console.warn(evaluation.warnings)
    console.say(f"Written: {evaluation.out}/{EVALUATION}")
