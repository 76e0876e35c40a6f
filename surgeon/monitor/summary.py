"""Counting what happened in a monitored run."""

# Shape letters: P prompts.

from collections.abc import Sequence

import numpy as np

from surgeon import metrics
from surgeon.answers import check_many, parse_tags, read_answers
from surgeon.monitor.jobs import MonitorPlan
from surgeon.monitor.journal import Entry
from surgeon.monitor.result import (
    AnswerText,
    DrawnAnswer,
    FiringCounts,
    MonitoredRun,
    PassRate,
    TextPart,
    TokenCounts,
    VanillaRun,
)
from surgeon.traces import Trace, in_order, text_of
from surgeon.truth import DecodingTime

WORTH_SAYING = 0.2
"""Share of truncated responses above which a warning is given."""


def summary(
    plan: MonitorPlan,
    entries: Sequence[Entry],
    drawn: DrawnAnswer | None,
    time: DecodingTime | None = None,
    vanilla: VanillaRun | None = None,
) -> MonitoredRun:
    """The content of monitor.json."""
    sampling = plan.settings.sampling
    traces = in_order([entry.trace for entry in entries], plan.prompts)
    truncated = float(np.mean([trace.finish_reason == "length" for trace in traces]))
    lengths = [len(trace.token_ids) for trace in traces]
    tokens_P = tokens_by_prompt(plan, traces)
    warnings: tuple[str, ...] = ()
    if truncated > WORTH_SAYING:
        warnings = (f"{truncated:.0%} of the responses were cut at {sampling.end}.",)
    if plan.monitor is not None and plan.settings.levels is None and not plan.rates:
        warnings += tuple(
            f"{level} isn't watched: by its calibration {why}; --levels {level} watches it."
            for level, why in plan.monitor.off.items()
        )
    return MonitoredRun(
        checkpoint=plan.checkpoint.spec,
        digest=plan.checkpoint.digest,
        settings=dict(plan.run.arguments),
        prompts=len(plan.prompts),
        responses=len(traces),
        tokens=TokenCounts(
            mean=float(tokens_P.mean()),
            interval=metrics.bootstrap_interval(tokens_P, seed=sampling.seed),
            total=sum(lengths),
            forced=sum(one.tokens for entry in entries for one in entry.firings),
            redrawn=sum(redrawn(entry) for entry in entries),
        ),
        finished=1 - truncated,
        truncated=truncated,
        levels={level: level_counts(plan, level, entries) for level in plan.levels},
        pass1=pass_rate(plan, correct_by_prompt(plan, traces)),
        warnings=warnings,
        time=time,
        vanilla=vanilla,
        drawn=drawn,
    )


def level_counts(plan: MonitorPlan, level: str, entries: Sequence[Entry]) -> FiringCounts:
    """How often a level fired, and how often it could have."""
    assert plan.monitor is not None
    fired = [sum(one.firing.level == level for one in entry.firings) for entry in entries]
    readings = [r for entry in entries for r in entry.readings if r.level == level]
    chances = sum(reading.open for reading in readings)
    rate = sum(fired) / chances if chances else None
    return FiringCounts(
        firings=sum(fired),
        per_response=sum(fired) / len(entries),
        responses=sum(count > 0 for count in fired),
        readings=len(readings),
        rate=plan.rates[level] if plan.rates else rate,
        threshold=plan.monitor.thresholds[level],
    )


def correct_by_prompt(plan: MonitorPlan, traces: Sequence[Trace]) -> tuple[np.ndarray, int] | None:
    """(float_P: share of right answers of each prompt that has one, answers without any); None
    where no prompt has an answer."""
    gold = {p.id: p.answer for p in plan.prompts if p.answer is not None}
    judged = [trace for trace in traces if trace.prompt_id in gold]
    if not judged:
        return None
    settings = plan.settings
    tags = parse_tags(settings.reading.think_tags)
    if plan.monitor is not None:
        tags += (plan.monitor.settings.thinking,)
    answers = read_answers(judged, plan.extract, plan.tokenizer, tags)
    pairs = [(a, str(gold[t.prompt_id])) for a, t in zip(answers, judged, strict=True)]
    verdicts = check_many(pairs, settings.check, timeout_s=settings.timeout_s)
    correct = [verdict.correct for verdict in verdicts]
    correct_P = np.reshape(correct, (-1, settings.sampling.samples)).mean(1)
    return correct_P, sum(answer is None for answer in answers)


def pass_rate(plan: MonitorPlan, found: tuple[np.ndarray, int] | None) -> PassRate | None:
    """Accuracy of one response over the prompts that have an answer; None where none has."""
    if found is None:
        return None
    correct_P, missing = found
    return PassRate(
        value=float(correct_P.mean()),
        interval=metrics.bootstrap_interval(correct_P, seed=plan.settings.sampling.seed),
        problems=len(correct_P),
        missing=missing,
    )


def tokens_by_prompt(plan: MonitorPlan, traces: Sequence[Trace]) -> np.ndarray:
    """float_P: mean tokens of each prompt's answers."""
    lengths = [len(trace.token_ids) for trace in traces]
    return np.reshape(lengths, (-1, plan.settings.sampling.samples)).mean(1)


def compared(
    plan: MonitorPlan, entries: Sequence[Entry], plain: Sequence[Trace], time: DecodingTime | None
) -> VanillaRun:
    """What the monitor changed against the same answers without it."""
    seed = plan.settings.sampling.seed
    pairs = [in_order(some, plan.prompts) for some in ([e.trace for e in entries], plain)]
    right = [correct_by_prompt(plan, traces) for traces in pairs]
    tokens_P, plain_P = (tokens_by_prompt(plan, traces) for traces in pairs)
    more = {entry.trace.key: redrawn(entry) for entry in entries}
    more_P = np.reshape([more[trace.key] for trace in pairs[0]], (len(tokens_P), -1)).mean(1)
    tokens_P = tokens_P + more_P
    change = None
    if right[0] is not None and right[1] is not None:
        change = _paired(right[0][0] - right[1][0], seed)
    return VanillaRun(
        tokens=float(plain_P.mean()),
        truncated=float(np.mean([trace.finish_reason == "length" for trace in plain])),
        pass1=pass_rate(plan, right[1]),
        pass1_change=change,
        tokens_change=_paired(tokens_P - plain_P, seed),
        time=time,
    )


def redrawn(entry: Entry) -> int:
    """Tokens that were decoded beside those of an answer."""
    return sum(one.firing.redrawn or 0 for one in entry.firings)


def _paired(difference_P: np.ndarray, seed: int) -> tuple[float, float, float]:
    low, high = metrics.bootstrap_interval(difference_P, seed=seed)
    return float(difference_P.mean()), low, high


def texts(plan: MonitorPlan, entries: Sequence[Entry]) -> tuple[AnswerText, ...]:
    """The text of each answer in parts: those that were forced name their level."""

    def text_parts(entry: Entry) -> list[TextPart]:
        ids, at, parts = entry.trace.token_ids, 0, []
        for one in entry.firings:
            start = one.firing.position
            parts.append(TextPart(text=text_of(plan.tokenizer, ids[at:start])))
            parts.append(
                TextPart(text=one.text, level=one.firing.level, probability=one.firing.probability)
            )
            at = start + one.tokens
        rest = text_of(plan.tokenizer, ids[at:], entry.trace.finish_reason)
        return [*parts, TextPart(text=rest)]

    return tuple(
        AnswerText(
            sample=entry.trace.sample, of=plan.settings.sampling.samples,
            tokens=len(entry.trace.token_ids), finish_reason=entry.trace.finish_reason,
            parts=tuple(text_parts(entry)),
        )
        for entry in sorted(entries, key=lambda entry: entry.trace.sample)
    )  # fmt: skip
