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
)
from surgeon.traces import Trace, in_order, text_of

WORTH_SAYING = 0.2
"""Share of truncated responses above which a warning is given."""


def summary(plan: MonitorPlan, entries: Sequence[Entry], drawn: DrawnAnswer | None) -> MonitoredRun:
    """The content of monitor.json."""
    sampling = plan.settings.sampling
    traces = in_order([entry.trace for entry in entries], plan.prompts)
    truncated = float(np.mean([trace.finish_reason == "length" for trace in traces]))
    lengths = [len(trace.token_ids) for trace in traces]
    tokens_P = np.reshape(lengths, (-1, sampling.samples)).mean(1)
    warnings: tuple[str, ...] = ()
    if truncated > WORTH_SAYING:
        limit = sampling.max_tokens
        warnings = (f"{truncated:.0%} of the responses hit the limit of {limit} tokens.",)
    if plan.settings.levels is None and not plan.rates:
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
        ),
        finished=1 - truncated,
        truncated=truncated,
        levels={level: level_counts(plan, level, entries) for level in plan.levels},
        pass1=pass_at_1(plan, traces),
        warnings=warnings,
        drawn=drawn,
    )


def level_counts(plan: MonitorPlan, level: str, entries: Sequence[Entry]) -> FiringCounts:
    """How often a level fired, and how often it could have."""
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


def pass_at_1(plan: MonitorPlan, traces: Sequence[Trace]) -> PassRate | None:
    """Accuracy of one response over the prompts that have an answer; None where none has."""
    gold = {p.id: p.answer for p in plan.prompts if p.answer is not None}
    judged = [trace for trace in traces if trace.prompt_id in gold]
    if not judged:
        return None
    settings = plan.settings
    answers = read_answers(
        judged, plan.extract, plan.tokenizer, parse_tags(settings.reading.think_tags)
    )
    pairs = [(a, str(gold[t.prompt_id])) for a, t in zip(answers, judged, strict=True)]
    verdicts = check_many(pairs, settings.check, timeout_s=settings.timeout_s)
    correct = [verdict.correct for verdict in verdicts]
    correct_P = np.reshape(correct, (-1, settings.sampling.samples)).mean(1)
    return PassRate(
        value=float(correct_P.mean()),
        interval=metrics.bootstrap_interval(correct_P, seed=settings.sampling.seed),
        problems=len(correct_P),
        missing=sum(answer is None for answer in answers),
    )


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
