"""From verdicts to spans: failing ones with their counterparts, and stretches without failure."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from random import Random

from surgeon.builtin.judge import Finding
from surgeon.neureasoner.steps import Span, split_steps
from surgeon.progress import bar
from surgeon.traces import Trace, append, read_traces
from surgeon.trigger.artifacts import TRACES, whole_steps
from surgeon.trigger.asked import Live, Plan
from surgeon.trigger.judging import Docket, Unit
from surgeon.trigger.prompts import question_of
from surgeon.trigger.resampling import Failure, choose_failures, resample

CONTRAST = {"easy": True, "hard": False}
"""Whether a question of that file stands for over-thinking."""

Key = tuple[str, int]


def counterparted(
    plan: Plan, live: Live, docket: Docket, traces: dict[Key, Trace], work: Path
) -> Iterator[Span]:
    """Failing spans of `intra` and `inter`, their counterparts, and the stretches without failure;
    adds the counterparts to `traces`."""
    originals = [t for t in traces.values() if plan.group[t.prompt_id] == "prompts"]
    failing = {
        (trace.prompt_id, trace.sample): [
            (level, finding.first, finding.last)
            for level in plan.levels
            if level != "instance"
            for finding in _failing(docket, (trace.prompt_id, trace.sample, level))
        ]
        for trace in originals
    }
    solved = _paired(plan, live, docket, _failures(plan, live, originals, failing), traces, work)
    number = 0
    for trace in originals:
        n = len(whole_steps(live.ends, trace))
        for level in plan.levels:
            if level == "instance":
                continue
            key = (trace.prompt_id, trace.sample, level)
            failures = _failing(docket, key)
            for finding in failures:
                span = Span(*key, finding.first, finding.last, reason=finding.reason)
                other = solved.get((*key, finding.first, finding.last))
                if other is not None:
                    span = span._replace(pair=number)
                    last = len(whole_steps(live.ends, other)) - 1
                    pair = Span(
                        other.prompt_id, other.sample, level, finding.first, last, False, number
                    )
                    number += 1
                    yield pair
                yield span
            bad = {step for finding in failures for step in range(finding.first, finding.last + 1)}
            yield from (Span(*key, first, last, False) for first, last in stretches(n, bad))


def _failing(docket: Docket, key: tuple[str, int, str]) -> list[Finding]:
    """What a judge said fails; a judge may also say of steps that they don't."""
    return [finding for finding in docket.verdicts[key].findings if finding.failing]


def stretches(n: int, without: set[int]) -> Iterator[tuple[int, int]]:
    """The runs (first, last) of the numbers 0 to n - 1 that aren't in a set."""
    for inside, run in groupby(range(n), key=without.__contains__):
        if not inside:
            numbers = list(run)
            yield numbers[0], numbers[-1]


def _failures(
    plan: Plan,
    live: Live,
    originals: Sequence[Trace],
    failing: dict[Key, list[tuple[str, int, int]]],
) -> list[Failure]:
    """The failing spans that are to get a counterpart, and the sample numbers these will have."""
    found: list[Failure] = []
    numbers: dict[str, int] = {}
    for trace in originals:
        numbers[trace.prompt_id] = max(numbers.get(trace.prompt_id, 0), trace.sample + 1)
    for trace in originals:
        name = f"{plan.sampling.seed} {trace.prompt_id} {trace.sample}"
        steps = split_steps(live.ends, trace.token_ids)
        for level, first, last in choose_failures(
            failing[trace.prompt_id, trace.sample], plan.pairs, name
        ):
            begin = numbers[trace.prompt_id]
            numbers[trace.prompt_id] += plan.resample
            tokens = steps[last].end - steps[first].start
            found.append(
                Failure(
                    trace,
                    level,
                    first,
                    last,
                    steps[first].start,
                    tokens,
                    range(begin, begin + plan.resample),
                )
            )
    return found


def _paired(
    plan: Plan,
    live: Live,
    docket: Docket,
    failures: Sequence[Failure],
    traces: dict[Key, Trace],
    work: Path,
) -> dict[tuple[str, int, str, int, int], Trace]:
    """The counterpart of each failure that got one: drawn and judged in rounds of one try each."""
    file, solved = work / TRACES, {}
    questions = {prompt.id: question_of(prompt.messages) for prompt in plan.prompts}
    stored = {(t.prompt_id, t.sample): t for t in read_traces(file)}
    open_ = list(failures)
    for attempt in range(plan.resample):
        wanted = [(f, f.numbers[attempt]) for f in open_]
        missing = [(f, n) for f, n in wanted if (f.trace.prompt_id, n) not in stored]
        if missing:
            with bar(f"counterparts, try {attempt + 1}", len(missing)) as advance:
                for trace in resample(
                    live.model, live.tokenizer, live.ends, missing, plan.sampling
                ):
                    append(file, trace)
                    stored[trace.prompt_id, trace.sample] = trace
                    advance()
        units = [
            Unit(f.trace.prompt_id, n, f.level, questions[f.trace.prompt_id],
                 live.steps(stored[f.trace.prompt_id, n]))
            for f, n in wanted
        ]  # fmt: skip
        docket.judge_all(units, f"judge counterparts, try {attempt + 1}")
        left = []
        for (failure, _), unit in zip(wanted, units, strict=True):
            fails = any(f.last >= failure.first for f in _failing(docket, unit.key))
            trace = stored[unit.prompt_id, unit.sample]
            if fails or len(unit.steps) <= failure.first:
                left.append(failure)
            else:
                key = (unit.prompt_id, failure.trace.sample, failure.level, failure.first)
                solved[(*key, failure.last)] = trace
                traces[unit.prompt_id, unit.sample] = trace
        open_ = left
    return solved


def instance(
    plan: Plan, live: Live, docket: Docket, traces: dict[Key, Trace], begin: int
) -> Iterator[Span]:
    """The first steps of over-thought easy questions, of hard ones, and of the other easy ones;
    pairs are numbered from `begin`."""
    if "instance" not in plan.levels:
        return
    over: list[Span] = []
    against: list[Span] = []
    rest: list[Span] = []
    by_file = "easy" in plan.group.values()
    for (prompt_id, number), trace in traces.items():
        group = plan.group[prompt_id]
        last = min(plan.instance_steps, len(whole_steps(live.ends, trace))) - 1
        if last < 0:
            continue
        if group in CONTRAST:
            findings = [Finding("instance", 0, last, f"in the file of {group} questions",
                                CONTRAST[group], not CONTRAST[group])]  # fmt: skip
        elif by_file or (prompt_id, number, "instance") not in docket.verdicts:
            continue
        else:
            findings = docket.verdicts[prompt_id, number, "instance"].findings
        for finding in findings:
            span = Span(
                prompt_id, number, "instance", 0, last, finding.failing, reason=finding.reason
            )
            (over if finding.failing else against if finding.contrast else rest).append(span)
    Random(plan.sampling.seed).shuffle(against)
    n = min(len(over), len(against))
    for spans in (over, against):
        for i, span in enumerate(spans):
            yield span._replace(pair=begin + i) if i < n else span
    yield from rest
