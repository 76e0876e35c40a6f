"""What sampling will cost, before it begins: tokens, time and disk (`--dry-run`).

Nothing is written. Without a timed pass nothing is loaded either, and neither lengths nor speed are
known beyond what answers on disk say. With one, the first, the middle and the last candidate
answer for some seconds, as many prompts at a time as the run will.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.markup import escape

from surgeon import console
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.settings.sampling import Sampling
from surgeon.traces.prompts import Prompt
from surgeon.traces.records import Key, Trace, stored_traces
from surgeon.traces.sampling import Ask, LocalSampler, encode_all
from surgeon.traces.texts import text_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 12
"""Of a trace's line, where none was drawn: the digits of an id, and its text."""
BYTES_PER_ANSWER = 1000
"""What is written of an answer besides, roughly."""


class Bounds(NamedTuple):
    """A number that isn't known yet."""

    low: float
    likely: float | None
    """None where nothing says."""
    high: float

    def __add__(self, other: tuple[Any, ...]) -> "Bounds":
        low, likely, high = other
        both = None if self.likely is None or likely is None else self.likely + likely
        return Bounds(self.low + low, both, self.high + high)

    def times(self, factor: float) -> "Bounds":
        """All three, multiplied."""
        likely = None if self.likely is None else self.likely * factor
        return Bounds(self.low * factor, likely, self.high * factor)


NOTHING = Bounds(0, 0, 0)


class Pace(NamedTuple):
    """What a timed pass of one candidate showed."""

    candidate: str
    load_s: float
    decode_s: float
    tokens: int
    """Drawn in that time, of all answers."""
    ended: tuple[int, ...]
    """Tokens of the answers that ended."""
    cut: tuple[int, ...]
    """Tokens so far of those that didn't."""
    traces: tuple[Trace, ...]
    """Those that ended; where none did, those that didn't."""
    read_s: float = 0.0
    """Seconds of reading some back."""
    read: int = 0
    """Tokens of prompts and answers that were read back."""
    kept_bytes: float = 0.0
    """Bytes kept of them, per token of an answer."""

    @property
    def line(self) -> str:
        """What was measured, in a sentence."""
        text = (
            f"{self.candidate}: loaded in {duration(self.load_s)}; {self.tokens:,} tokens in "
            f"{duration(self.decode_s)} ({self.tokens / max(self.decode_s, 1e-9):,.0f} a second), "
            f"{len(self.ended)} answers ended, {len(self.cut)} didn't"
        )
        if self.read:
            text += f"; read back at {self.read / max(self.read_s, 1e-9):,.0f} tokens a second"
        return text


class TimeIsUpError(Exception):
    """Ends a timed pass; never leaves this module."""


def timed(
    subject: Subject,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    load_s: float,
    seconds: float,
) -> Pace:
    """Let a candidate answer for so many seconds, at the batch of the run; keeps nothing on disk.

    Prompts come in a random order: files are often sorted.
    """
    sampler = LocalSampler(model, tokenizer)
    encoded = encode_all(tokenizer, prompts, sampler.context, sampling.thinking, sampling.template)
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    asks = [
        Ask((prompts[n].id, sample), encoded[n])
        for sample in range(sampling.samples)
        for n in order
    ]
    # What a model is asked once, and the first use of its kernels, are no part of its pace.
    list(sampler.answers([asks[0]._replace(max_tokens=2)], sampling))
    so_far: dict[int, Sequence[int]] = {}
    ended: dict[int, Any] = {}
    begun = time.monotonic()

    def until(index: int, token_ids: Sequence[int]) -> bool:
        so_far[index] = token_ids
        if time.monotonic() - begun > seconds:
            raise TimeIsUpError
        return False

    try:
        for answer in sampler.answers(asks, sampling, until):
            ended[answer.index] = answer
    except TimeIsUpError:
        pass
    spent = time.monotonic() - begun
    cut = {index: ids for index, ids in so_far.items() if index not in ended}
    drawn = {n: (a.token_ids, a.finish_reason) for n, a in ended.items()} or {
        n: (list(ids), "length") for n, ids in cut.items()
    }
    return Pace(
        subject.name,
        load_s,
        spent,
        sum(map(len, cut.values())) + sum(len(a.token_ids) for a in ended.values()),
        tuple(len(a.token_ids) for a in ended.values()),
        tuple(map(len, cut.values())),
        tuple(
            Trace(*asks[n].key, list(asks[n].ids), ids, text_of(tokenizer, ids, reason), reason)
            for n, (ids, reason) in drawn.items()
        ),
    )


def mean_length(ended: Sequence[int], cut: Sequence[int], most: int) -> Bounds:
    """Tokens of an answer, on average: of answers that ended, and of others that were cut while
    they went on.

    The likely value is the mean of the product-limit estimate (Kaplan and Meier 1958); what is left
    of it behind the longest answer goes on ending as it did in the last half of that length, at
    `most` tokens at the latest. The bounds take every cut answer as ended there, or at `most`.
    """
    from scipy.stats import CensoredData, ecdf

    n = len(ended) + len(cut)
    if not n:
        return Bounds(1, None, most)
    total = sum(ended) + sum(cut)
    low, high = total / n, (sum(ended) + len(cut) * most) / n
    if not ended:
        return Bounds(low, None, high)
    survival = ecdf(CensoredData(uncensored=np.array(ended), right=np.array(cut))).sf
    at, left = survival.quantiles, np.clip(survival.probabilities, 0, 1)
    widths = np.diff(np.concatenate([[0.0], at]))
    mean = float((np.concatenate([[1.0], left[:-1]]) * widths).sum())
    last = float(at[-1])
    exposed = sum(max(0.0, x - last / 2) for x in (*ended, *cut))
    rest = exposed / max(1, sum(x > last / 2 for x in ended))
    mean += float(left[-1]) * max(0.0, min(rest, most - last))
    return Bounds(low, float(np.clip(mean, low, high)), high)


class Cost(NamedTuple):
    """What one candidate will take."""

    candidate: str
    there: int
    """Answers that are there already."""
    answers: int
    """Answers that are lacking."""
    tokens: Bounds
    """Of the answers that are lacking."""
    seconds: Bounds | None
    """None where the pace isn't known."""
    disk: Bounds
    """Bytes."""


class Outlook(NamedTuple):
    """What a run will take, by candidate, and what that rests on."""

    verb: str
    costs: tuple[Cost, ...]
    lines: tuple[str, ...]
    """What was measured, and what isn't known."""
    free_bytes: int
    least: float = 1.0
    """The smallest share of it that the run may come to."""

    def total(self) -> Cost:
        """All candidates together."""
        times = [c.seconds for c in self.costs]
        return Cost(
            "all",
            sum(c.there for c in self.costs),
            sum(c.answers for c in self.costs),
            sum((c.tokens for c in self.costs), NOTHING),
            None if None in times else sum((t for t in times if t is not None), NOTHING),
            sum((c.disk for c in self.costs), NOTHING),
        )


class Known(NamedTuple):
    """What is known of a run's answers before it begins."""

    there: Mapping[str, Sequence[Trace]]
    """Candidate -> its answers that are on disk."""
    paces: Mapping[str, Pace]
    """By candidate, where some were timed."""
    sampling: Sampling
    ratio: Mapping[str, float]
    """Candidate -> its share of the second endpoint; empty where not all have one."""

    def length(self, name: str) -> Bounds:
        """Tokens of a candidate's answer: its own where some are known, else between those of the
        others: of a family, of its neighbours in it."""
        if (own := self._own(name)) is not None:
            return own
        others = {*self.paces, *(n for n, traces in self.there.items() if traces)}
        found = {n: own for n in others if (own := self._own(n)) is not None}
        if not found:
            return Bounds(1, None, self.sampling.max_tokens)
        at, weight = self.ratio.get(name, 0.0), dict.fromkeys(found, 1 / len(found))
        below = [n for n in found if n in self.ratio and self.ratio[n] <= at]
        above = [n for n in found if n in self.ratio and self.ratio[n] > at]
        if name in self.ratio and below and above:
            one, two = (
                max(below, key=self.ratio.__getitem__),
                min(above, key=self.ratio.__getitem__),
            )
            share = (at - self.ratio[one]) / (self.ratio[two] - self.ratio[one])
            weight = {one: 1 - share, two: share}
        near = [found[n] for n in weight]
        likely = None
        if None not in [b.likely for b in near]:
            likely = sum(share * (found[n].likely or 0.0) for n, share in weight.items())
        return Bounds(min(b.low for b in near), likely, max(b.high for b in near))

    def _own(self, name: str) -> Bounds | None:
        traces, pace = self.there.get(name, ()), self.paces.get(name)
        ended = [len(trace.token_ids) for trace in traces]
        cut: tuple[int, ...] = ()
        if pace is not None:
            ended, cut = [*ended, *pace.ended], pace.cut
        return mean_length(ended, cut, self.sampling.max_tokens) if ended or cut else None

    def trace_bytes(self) -> float:
        """Bytes of a trace's line, per token."""
        traces = [t for ts in self.there.values() for t in ts[:50]]
        traces += [t for pace in self.paces.values() for t in pace.traces[:50]]
        tokens = sum(len(t.token_ids) for t in traces)
        size = sum(len(json.dumps(asdict(t))) for t in traces)
        return size / tokens if tokens else BYTES_PER_TOKEN

    def pace(self, name: str) -> Pace | None:
        """A candidate's pace, or that of the slowest of the others."""
        slowest = max(
            self.paces.values(), key=lambda p: p.decode_s / max(1, p.tokens), default=None
        )
        return self.paces.get(name, slowest)


def lacking(
    known: Known, name: str, wanted: Sequence[Key], prompt_tokens: float, workers: int = 1
) -> Cost:
    """What one candidate will take: answers, tokens, seconds and the bytes of its traces.

    `prompt_tokens` are those of a prompt, on average: they are read again with the answers where a
    pace says how fast that is.
    """
    asked = set(wanted)
    there = [trace for trace in known.there.get(name, ()) if trace.key in asked]
    n = len(wanted) - len(there)
    length = known.length(name)
    tokens = length.times(n)
    pace, seconds = known.pace(name), None
    if pace is not None and pace.tokens:
        seconds = tokens.times(pace.decode_s / pace.tokens)
        if pace.read:
            drawn = sum(len(trace.token_ids) for trace in there)
            everything = tokens + Bounds(drawn, drawn, drawn)
            everything += Bounds(*[prompt_tokens * len(wanted)] * 3)
            seconds += everything.times(pace.read_s / pace.read)
        seconds += Bounds(*[pace.load_s] * 3)
        seconds = seconds.times(1 / workers)
    disk = tokens.times(known.trace_bytes()) + Bounds(*[float(BYTES_PER_ANSWER * len(wanted))] * 3)
    return Cost(name, len(there), n, tokens, seconds, disk)


def mean_prompt_tokens(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], sampling: Sampling
) -> float:
    """Tokens of a prompt, on average."""
    encoded = encode_all(tokenizer, prompts, 1 << 60, sampling.thinking, sampling.template)
    return sum(map(len, encoded)) / max(1, len(encoded))


def within_context(sampling: Sampling, subjects: Sequence[Subject]) -> Sampling:
    """The same, where no answer is longer than the candidates' contexts let it be."""
    context = max(subject.source.context for subject in subjects)
    return replace(sampling, max_tokens=min(sampling.max_tokens, context))


def on_disk(files: Mapping[str, Sequence[Path]]) -> dict[str, list[Trace]]:
    """Candidate -> the answers in the first of its files that is there."""
    return {
        name: next((stored_traces(file) for file in places if file.is_file()), [])
        for name, places in files.items()
    }


def timed_ones(subjects: Sequence[Subject]) -> list[Subject]:
    """The first, the middle and the last candidate: in a family, its endpoints and a merge."""
    chosen = (subjects[0], subjects[len(subjects) // 2], subjects[-1])
    return list({s.name: s for s in chosen}.values())


def ratios(subjects: Sequence[Subject]) -> dict[str, float]:
    """Candidate -> its share of the second endpoint; empty where not all have one."""
    found = {s.name: s.ratio for s in subjects if s.ratio is not None}
    return found if len(found) == len(subjects) else {}


def loaded(
    live: Iterator[tuple[Subject, Any, Any]],
) -> Iterator[tuple[Subject, Any, Any, float]]:
    """The candidates as they are loaded, with the seconds that each took."""
    while True:
        begun = time.monotonic()
        found = next(live, None)
        if found is None:
            return
        yield *found, time.monotonic() - begun


def require_timed(measure_s: float, *, local: bool, given: bool) -> None:
    """Raise `BadInput` where nothing can be timed."""
    if measure_s and not local:
        raise BadInput(
            "found measure_s and another engine, expected the decoder here: the pace of an engine "
            "is its own. Leave --measure-s away."
        )
    if measure_s and given:
        raise BadInput(
            "found measure_s and answers that were made elsewhere, expected one of them: nothing "
            "is sampled. Leave --measure-s away."
        )


def about(
    known: Known, prompts: Sequence[Prompt], prompt_tokens: float, *, local: bool
) -> list[str]:
    """What the answers are to, and what isn't known of them, in sentences."""
    sampling = known.sampling
    lines = [
        f"{len(prompts):,} prompts of {prompt_tokens:,.0f} tokens on average, {sampling.samples} "
        f"answers each of at most {sampling.max_tokens:,} tokens."
    ]
    if local and not known.paces:
        lengths = any(known.there.values())
        what = "how fast they are written" if lengths else "how long answers are and how fast"
        lines.append(
            f"Not known without a timed pass: {what}. Give --measure-s 30 to load the first, the "
            "middle and the last candidate and let each answer for 30 seconds."
        )
    return lines


# ---------------------------------------------------------------- in words


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `1.5 h`, `2.1 days`."""
    for unit, size, most in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 48)):
        value = seconds / size
        if value < most:
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if n_bytes >= of:
            return f"{n_bytes / of:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def count(value: float) -> str:
    """`950`, `12,300`, `4.1M`."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M" if value < 1e9 else f"{value / 1e9:.3g}G"
    return f"{value:,.0f}"


def short(bounds: Bounds | None, unit: Callable[[float], str]) -> str:
    """The likely value, else the most; `?` where nothing is known."""
    if bounds is None:
        return "?"
    return f"<= {unit(bounds.high)}" if bounds.likely is None else unit(bounds.likely)


def spelled(bounds: Bounds, unit: Callable[[float], str]) -> str:
    """`about 1.2M (0.9M to 1.4M)`, one number where all are alike."""
    low, high = unit(bounds.low), unit(bounds.high)
    if low == high:
        return low
    if bounds.likely is None:
        return f"at most {high}"
    return f"about {unit(bounds.likely)} ({low} to {high})"


def show(outlook: Outlook) -> None:
    """Print what a run will take."""
    for line in outlook.lines:
        console.say(line)
    if not outlook.costs:
        return
    rows = console.table("candidate", "answers", "tokens", "time", "disk")
    for cost in outlook.costs:
        answers = f"{cost.answers:,}" + (f" + {cost.there:,} there" if cost.there else "")
        rows.add_row(
            escape(cost.candidate), answers, short(cost.tokens, count),
            short(cost.seconds, duration), short(cost.disk, size),
        )  # fmt: skip
    console.console().print(rows)
    total = outlook.total()
    time_ = "time unknown" if total.seconds is None else spelled(total.seconds, duration)
    console.say(
        f"All together: {spelled(total.tokens, count)} tokens, {time_}, "
        f"{spelled(total.disk, size)} on disk.",
        style="bold",
    )
    if outlook.least < 1:
        least = f"{count(total.tokens.times(outlook.least).low)} tokens"
        if total.seconds is not None:
            least += f", {duration(total.seconds.times(outlook.least).low)}"
        console.say(
            f"With --adaptive that is the most. The least is {outlook.least:.0%} of it ({least}): "
            "one candidate is left after the first round."
        )
    enough = "" if total.disk.low <= outlook.free_bytes else " That is not enough."
    console.say(f"Free on that disk: {size(outlook.free_bytes)}.{enough}")
    console.say(f"Dry run: nothing was written. Leave --dry-run away to {outlook.verb}.")
