"""A trace as a course: the places where its thinking can be ended, and what comes of it there."""

# Shape letters: S places of a course.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from surgeon.answers import check_many, classes, majority, parse_tags, read_answers
from surgeon.early_stop.plan import EarlyStopPlan
from surgeon.early_stop.probing import Probe, step_ends
from surgeon.traces import Key, Trace, text_of


@dataclass(frozen=True)
class Course:
    """What is known of one trace; a rule picks one of its places, or none."""

    trace: Trace
    right: float
    """1 where its own answer is right; likewise the others."""
    step_S: np.ndarray
    """Number of the place's last step; -1 before the first."""
    position_S: np.ndarray
    """Tokens before the place."""
    probe_S: np.ndarray
    """Tokens of the forced end and the answer there."""
    right_S: np.ndarray
    vote_S: list[str | None]
    """Class of the answer there."""
    logprob_S: np.ndarray
    slow_S: np.ndarray
    """Whether the step after it begins with a word of slow thinking."""
    enough_S: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Probability that it was enough, by the detector; nan where there is none."""
    easy: float = float("nan")
    """Probability of an easy question, by the detector after the first K steps."""
    read_after: int = 0
    """Number of the K-th step."""

    @property
    def tokens(self) -> int:
        """Of the trace, to its own end."""
        return len(self.trace.token_ids)


def courses_of(
    plan: EarlyStopPlan,
    traces: Sequence[Trace],
    probes: Mapping[Key, Sequence[Probe]],
    gold: Mapping[str, str] | None,
) -> list[Course]:
    """The traces with what comes of ending them; right by `gold`, by prompt id, or by agreement
    with most of the question's other answers."""
    own = _answers(plan, traces)
    tried = [probe for trace in traces for probe in probes[trace.key]]
    found = _answers(plan, [_ended(plan, trace, p) for trace in traces for p in probes[trace.key]])
    answer_of = {(probe.key, probe.step): a for probe, a in zip(tried, found, strict=True)}
    vote_of = _voted(plan, traces, own, probes, answer_of)
    truth_of = {
        trace.key: gold[trace.prompt_id] if gold else _others(trace, traces, vote_of)
        for trace in traces
    }
    pairs = [(answer, truth_of[trace.key]) for trace, answer in zip(traces, own, strict=True)]
    pairs += [(answer_of[probe.key, probe.step], truth_of[probe.key]) for probe in tried]
    known = [(answer, truth) for answer, truth in pairs if truth is not None]
    verdicts = iter(check_many(known, plan.settings.check, timeout_s=plan.settings.timeout_s))
    right = [truth is not None and next(verdicts).correct for _, truth in pairs]
    right_of = dict(zip([t.key for t in traces], right, strict=False))
    right_at = dict(zip([(p.key, p.step) for p in tried], right[len(traces) :], strict=True))
    return [
        _course(
            plan, trace, probes[trace.key], right_of[trace.key],
            [right_at[trace.key, p.step] for p in probes[trace.key]],
            [vote_of[trace.key, p.step] for p in probes[trace.key]],
        )
        for trace in traces
    ]  # fmt: skip


WHOLE = -2
"""In the place of a step: the trace's own answer."""


def _answers(plan: EarlyStopPlan, traces: Sequence[Trace]) -> list[str | None]:
    # The checkpoint's own may stand in its vocabulary only, where no reader looks.
    tags = (*parse_tags(plan.settings.reading.think_tags), plan.watch.thinking)
    return read_answers(traces, plan.extract, plan.tokenizer, tags)


def _ended(plan: EarlyStopPlan, trace: Trace, probe: Probe) -> Trace:
    ids = [*trace.token_ids[: probe.position], *probe.token_ids]
    reason = "stop" if probe.finish_reason == "stop" else "length"
    text = text_of(plan.tokenizer, ids, reason)
    return Trace(*trace.key, trace.prompt_token_ids, ids, text, reason)


def _voted(
    plan: EarlyStopPlan,
    traces: Sequence[Trace],
    own: Sequence[str | None],
    probes: Mapping[Key, Sequence[Probe]],
    answer_of: Mapping[tuple[Key, int], str | None],
) -> dict[tuple[Key, int], str | None]:
    """The class of every answer among all of its question."""
    keys: dict[str, list[tuple[Key, int]]] = {}
    answers: dict[tuple[Key, int], str | None] = dict(answer_of)
    for trace, answer in zip(traces, own, strict=True):
        answers[trace.key, WHOLE] = answer
        places = [(trace.key, probe.step) for probe in probes[trace.key]]
        keys.setdefault(trace.prompt_id, []).extend([(trace.key, WHOLE), *places])
    votes: dict[tuple[Key, int], str | None] = {}
    for some in keys.values():
        named = classes([answers[key] for key in some], plan.settings.check)
        votes.update(zip(some, named, strict=True))
    return votes


def _others(
    trace: Trace, traces: Sequence[Trace], vote_of: Mapping[tuple[Key, int], str | None]
) -> str | None:
    """What most of the question's other answers are."""
    return majority(
        [
            vote_of[other.key, WHOLE]
            for other in traces
            if other.prompt_id == trace.prompt_id and other.sample != trace.sample
        ]
    )


def _course(
    plan: EarlyStopPlan,
    trace: Trace,
    probes: Sequence[Probe],
    right: bool,
    right_S: Sequence[bool],
    vote_S: list[str | None],
) -> Course:
    following = {-1: 0} | {s: step.end for s, step in step_ends(plan, trace)}
    words = tuple(plan.settings.slow_words)
    slow = []
    for probe in probes:
        start = max(following[probe.step], probe.position)
        text = text_of(plan.tokenizer, trace.token_ids[start : start + 6]).lstrip()
        slow.append(text.startswith(words))
    return Course(
        trace, float(right), np.array([p.step for p in probes]),
        np.array([p.position for p in probes]), np.array([len(p.token_ids) for p in probes]),
        np.array(right_S, float), vote_S, np.array([p.logprob for p in probes]), np.array(slow),
        read_after=plan.settings.instance_steps - 1,
    )  # fmt: skip
