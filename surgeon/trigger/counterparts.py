"""Counterparts of failing spans: the same trace up to the failure, then decoded anew (sec. 2.2)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from surgeon.judges.docket import Docket
from surgeon.judges.finding import Finding, JudgeVerdict, Question
from surgeon.neureasoner.steps import Span, StepEnds, split_steps, whole_steps
from surgeon.progress import bar
from surgeon.settings.neureasoner import STEPWISE
from surgeon.settings.sampling import Sampling
from surgeon.settings.trigger_label import LabelSettings
from surgeon.traces import Ask, Key, Sampler, Trace, append, read_traces, text_of
from surgeon.trigger.artifacts import Live

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Verdicts = Docket[Question, JudgeVerdict]
Place = tuple[str, int, str, int, int]
"""Where a span lies: prompt id, sample, level, first and last step."""

MOST_TIMES = 4
SPARE_TOKENS = 256
"""A counterpart is cut at MOST_TIMES x the failing span's tokens + SPARE_TOKENS."""


class Failure(NamedTuple):
    """A failing span that is to get a counterpart."""

    trace: Trace
    level: str
    first: int
    last: int
    start: int
    """Response token at which step `first` begins: what comes before it is kept."""
    tokens: int
    """Of the span."""
    numbers: range
    """Sample numbers of its counterparts, one for each try."""

    @property
    def place(self) -> Place:
        return (*self.trace.key, self.level, self.first, self.last)


def judged(verdicts: Verdicts, trace: Trace, level: str) -> bool:
    """Whether the judge gave a usable reply about a trace."""
    return not verdicts.replies[(*trace.key, level)].unusable


def failures(verdicts: Verdicts, trace: Trace, level: str, inter_steps: int) -> list[Finding]:
    """What a judge said fails in a trace; a judge may also say of steps that they don't.

    Stagnation (`inter`) takes `inter_steps` consecutive steps (App. G).
    """
    found = [f for f in verdicts.replies[(*trace.key, level)].findings if f.failing]
    if level != "inter":
        return found
    return [f for f in found if f.last - f.first + 1 >= inter_steps]


# --- which spans, and what stands against them ----------------------------------------------------


def counterparts(
    settings: LabelSettings,
    live: Live,
    verdicts: Verdicts,
    questions: Mapping[str, str],
    originals: Sequence[Trace],
    file: Path,
) -> dict[Place, Trace]:
    """The counterpart of each failing span that got one: decoded and judged in rounds of one try.

    `questions` are the prompts' texts by id. What is decoded is appended to the trace file, and
    what it holds already isn't decoded again.
    """
    stored = {trace.key: trace for trace in read_traces(file)}
    solved: dict[Place, Trace] = {}
    left = _chosen(settings, live, verdicts, originals)
    for attempt in range(settings.resample):
        tries = [(failure, failure.numbers[attempt]) for failure in left]
        missing = [(f, n) for f, n in tries if (f.trace.prompt_id, n) not in stored]
        if missing:
            with bar(f"counterparts, try {attempt + 1}", len(missing)) as advance:
                for trace in resample(
                    live.sampler, live.tokenizer, live.ends, missing, settings.sampling
                ):
                    append(file, trace)
                    stored[trace.key] = trace
                    advance()
        traces = [stored[failure.trace.prompt_id, number] for failure, number in tries]
        asked = [
            Question(*trace.key, failure.level, questions[trace.prompt_id], live.steps(trace))
            for (failure, _), trace in zip(tries, traces, strict=True)
        ]
        verdicts.ask_all(asked, f"judge counterparts, try {attempt + 1}")
        left = []
        for (failure, _), trace, question in zip(tries, traces, asked, strict=True):
            again = not judged(verdicts, trace, failure.level) or any(
                f.last >= failure.first
                for f in failures(verdicts, trace, failure.level, settings.inter_steps)
            )
            if again or len(question.steps) <= failure.first:
                left.append(failure)
            else:
                solved[failure.place] = trace
    return solved


def _chosen(
    settings: LabelSettings, live: Live, verdicts: Verdicts, originals: Sequence[Trace]
) -> list[Failure]:
    """The failing spans that are to get a counterpart, and the sample numbers these will have."""
    chosen: list[Failure] = []
    numbers: dict[str, int] = {}
    for trace in originals:
        numbers[trace.prompt_id] = max(numbers.get(trace.prompt_id, 0), trace.sample + 1)
    for trace in originals:
        steps = split_steps(live.ends, trace.token_ids)
        failing = [
            (level, finding.first, finding.last)
            for level in STEPWISE
            if level in settings.levels
            for finding in failures(verdicts, trace, level, settings.inter_steps)
        ]
        name = f"{settings.seed} {trace.prompt_id} {trace.sample}"
        for level, first, last in choose_failures(failing, settings.pairs, name):
            begin = numbers[trace.prompt_id]
            numbers[trace.prompt_id] += settings.resample
            start = steps[first].start
            tries = range(begin, begin + settings.resample)
            chosen.append(Failure(trace, level, first, last, start, steps[last].end - start, tries))
    return chosen


def choose_failures(
    spans: Sequence[tuple[str, int, int]], most: int, key: str
) -> list[tuple[str, int, int]]:
    """At most `most` of a trace's failing spans (level, first, last) of each level, at random."""
    chosen = []
    for level in STEPWISE:
        own = [span for span in spans if span[0] == level]
        chosen += sorted(Random(f"{key} {level}").sample(own, min(most, len(own))))
    return chosen


def step_spans(
    settings: LabelSettings,
    live: Live,
    verdicts: Verdicts,
    originals: Sequence[Trace],
    levels: Sequence[str],
    solved: Mapping[Place, Trace],
) -> Iterator[Span]:
    """Failing spans of `intra` and `inter` with their counterparts, pairs numbered from 0, and the
    stretches without failure."""
    number = 0
    for trace in originals:
        n = len(whole_steps(live.ends, trace))
        for level in (level for level in levels if level in STEPWISE):
            if not judged(verdicts, trace, level):
                continue
            bad: set[int] = set()
            for finding in failures(verdicts, trace, level, settings.inter_steps):
                first, last = finding.first, finding.last
                bad |= set(range(first, last + 1))
                span = Span(
                    *trace.key, level, first, last, reason=finding.reason,
                    attempts=finding.attempts,
                )  # fmt: skip
                other = solved.get((*trace.key, level, first, last))
                if other is not None:
                    span = span._replace(pair=number)
                    end = len(whole_steps(live.ends, other)) - 1
                    yield Span(*other.key, level, first, end, False, number)
                    number += 1
                yield span
            for first, last in stretches(n, bad):
                yield Span(*trace.key, level, first, last, False)


def stretches(n: int, without: set[int]) -> Iterator[tuple[int, int]]:
    """The runs (first, last) of the numbers 0 to n - 1 that aren't in a set."""
    for inside, run in groupby(range(n), key=without.__contains__):
        if not inside:
            numbers = list(run)
            yield numbers[0], numbers[-1]


def instance_spans(
    settings: LabelSettings,
    live: Live,
    findings: Mapping[Key, Sequence[Finding]],
    traces: Sequence[Trace],
    begin: int,
) -> Iterator[Span]:
    """The first steps of over-thought easy questions, of hard ones, and of the other easy ones.

    `findings` are those of the level `instance` by trace; pairs are numbered from `begin`.
    """
    over: list[Span] = []
    against: list[Span] = []
    rest: list[Span] = []
    for trace in traces:
        last = min(settings.instance_steps, len(whole_steps(live.ends, trace))) - 1
        for finding in findings.get(trace.key, ()) if last >= 0 else ():
            span = Span(*trace.key, "instance", 0, last, finding.failing, reason=finding.reason)
            (over if finding.failing else against if finding.contrast else rest).append(span)
    Random(settings.seed).shuffle(against)
    n = min(len(over), len(against))
    for spans in (over, against):
        for i, span in enumerate(spans):
            yield span._replace(pair=begin + i) if i < n else span
    yield from rest


# --- decoding -------------------------------------------------------------------------------------


def resample(
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
    ends: StepEnds,
    tries: Sequence[tuple[Failure, int]],
    sampling: Sampling,
) -> Iterator[Trace]:
    """Decode each failure's steps anew as the sample of that number; yields as they end.

    A counterpart ends with as many steps as the failing span has, where the thinking ends, or where
    it grows far longer than the span.
    """
    if not tries:
        return
    asks = [
        Ask(
            (f.trace.prompt_id, number),
            [*f.trace.prompt_token_ids, *f.trace.token_ids[: f.start]],
            max_tokens=MOST_TIMES * f.tokens + SPARE_TOKENS,
        )
        for f, number in tries
    ]
    for answer in sampler.answers(
        asks, sampling, until=lambda i, ids: _complete(ends, tries[i][0], ids)
    ):
        yield _counterpart(tokenizer, *tries[answer.index], answer.token_ids, sampler.stop)


def _complete(ends: StepEnds, failure: Failure, ids: Sequence[int]) -> bool:
    """Whether a counterpart, whose tokens begin with a step's first, is at its end."""
    if ends.ends_thinking(ids):
        return True
    if not ends.after(ids[-2:-1] or ids[-1:], ids[-1:])[0]:
        return False
    steps = split_steps(ends, ids)
    ended = bool(steps) and steps[-1].end == len(ids)
    return ended and len(steps) > failure.last - failure.first


def _counterpart(
    tokenizer: "PreTrainedTokenizerBase",
    failure: Failure,
    number: int,
    ids: list[int],
    stop: frozenset[int],
) -> Trace:
    token_ids = [*failure.trace.token_ids[: failure.start], *ids]
    finish = "stop" if token_ids[-1] in stop else "length"
    return Trace(
        failure.trace.prompt_id, number, list(failure.trace.prompt_token_ids), token_ids,
        text_of(tokenizer, token_ids, finish), finish,
    )  # fmt: skip
