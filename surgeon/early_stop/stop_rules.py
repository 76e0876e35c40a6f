"""Rules that end the thinking: each a row, with the values of its threshold that are tried.

A rule sees a course, and names the place where it ends it, or none. Rules that try answers on the
way pay for them in tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from surgeon.early_stop.courses import Course

DIGITS = 6
"""Of probabilities and thresholds: more are not the same while decoding."""
Value = Any
"""A threshold: a number, or a tuple of several."""


class StopRule(NamedTuple):
    """When the thinking is ended."""

    what: str
    """In a few words."""
    values: Callable[[Sequence[Course]], list[Value]]
    """Thresholds to try, by courses of questions on which they are set."""
    of: Callable[[Course, Value], int | np.ndarray | None]
    """The number of the place, or the chance of each place; None: the course runs to its own
    end."""
    probes: bool = False
    """Every place up to the stop costs a forced answer."""
    detects: bool = False
    """By detectors of the checkpoint's own activations: a monitor can carry it."""


def first(course: Course, fires_S: np.ndarray) -> int | None:
    """The first place after a step at which it fires."""
    where = np.flatnonzero(fires_S & (course.step_S >= 0))
    return int(where[0]) if len(where) else None


def spread_levels(values: np.ndarray, n: int) -> list[float]:
    """At most so many thresholds between values, dense towards the highest."""
    known = np.unique(values[~np.isnan(values)])
    shares = np.clip(1.001 - np.geomspace(1e-3, 1, n), 0, 1)
    if not len(known):
        return []
    return sorted({round(float(v), DIGITS) for v in np.quantile(known, shares)})


def whole_numbers(low: float, high: float, n: int) -> list[int]:
    """At most so many whole numbers, each a share above the one before."""
    return sorted({round(v) for v in np.geomspace(max(low, 1), max(high, 1), n)})


def _tokens(courses: Sequence[Course]) -> list[int]:
    lengths = [course.tokens for course in courses]
    return whole_numbers(max(lengths) / 20, max(lengths), 20)


# --- by detectors ---------------------------------------------------------------------------------


def _enough(course: Course, threshold: float) -> int | None:
    return first(course, course.enough_S >= threshold)


def _enough_values(courses: Sequence[Course]) -> list[float]:
    # Of each course the highest: what decides whether it is ended at all; and of all places.
    tops = [np.nanmax(c.enough_S) for c in courses if not np.isnan(c.enough_S).all()]
    every = np.concatenate([course.enough_S for course in courses])
    return sorted({*spread_levels(np.array(tops), 8), *spread_levels(every, 24)})


def _instance(course: Course, value: tuple[str, float]) -> int | None:
    ends, threshold = value
    chance = course.easy if ends == "easy" else float(np.round(1 - course.easy, DIGITS))
    if not chance >= threshold:
        return None
    return first(course, course.step_S == course.read_after)


def _instance_values(courses: Sequence[Course], n: int = 12) -> list[tuple[str, float]]:
    easy = np.array([course.easy for course in courses])
    return [("easy", v) for v in spread_levels(easy, n)] + [
        ("hard", v) for v in spread_levels(np.round(1 - easy, DIGITS), n)
    ]


def _both(course: Course, value: tuple[str, float, float]) -> int | None:
    ends, of_question, of_step = value
    places = [_instance(course, (ends, of_question)), _enough(course, of_step)]
    known = [place for place in places if place is not None]
    return min(known) if known else None


def _both_values(courses: Sequence[Course]) -> list[tuple[str, float, float]]:
    every = np.concatenate([course.enough_S for course in courses])
    return [
        (*of_question, of_step)
        for of_question in _instance_values(courses, 8)
        for of_step in spread_levels(every, 12)
    ]


# --- without --------------------------------------------------------------------------------------


def _random(course: Course, rate: float) -> np.ndarray:
    chance_S = np.where(course.step_S >= 0, rate, 0.0)
    return chance_S * np.append(1.0, (1 - chance_S).cumprod()[:-1])


def _alphaone(course: Course, tokens: int) -> int | None:
    return first(course, (course.position_S >= tokens) & course.slow_S)


def _stable(course: Course, times: int) -> int | None:
    for n in range(times, len(course.vote_S)):
        last = course.vote_S[n - times + 1 : n + 1]
        if last[0] is not None and len(set(last)) == 1:
            return n
    return None


STOPS: dict[str, StopRule] = {
    "never": StopRule("the thinking ends itself", lambda _: [None], lambda course, _: None),
    "enough": StopRule(
        "a detector after every step: this was enough", _enough_values, _enough, detects=True
    ),
    "instance": StopRule(
        "a detector after the first K steps: an easy (or a hard) question (NeuReasoner 3.3)",
        _instance_values, _instance, detects=True,
    ),
    "both": StopRule("whichever of the two fires first", _both_values, _both, detects=True),
    "random": StopRule(
        "by chance after each step; figures are expected values",
        lambda _: [float(v) for v in np.geomspace(2e-3, 1, 16)],
        _random,
    ),
    "steps": StopRule(
        "all after K steps",
        lambda courses: whole_numbers(1, max(c.step_S.max() + 1 for c in courses), 16),
        lambda course, steps: first(course, course.step_S >= steps - 1),
    ),
    "budget": StopRule(
        "at the first step end from N tokens on (budget forcing, s1)", _tokens,
        lambda course, tokens: first(course, course.position_S >= tokens),
    ),
    "nothinking": StopRule(
        "before the first step (NoThinking)", lambda _: [None], lambda course, _: 0
    ),
    "alphaone": StopRule(
        "from N tokens on, before a step of slow thinking (AlphaOne, after its moment)", _tokens,
        _alphaone,
    ),
    "think-or-not": StopRule(
        "the forced answer is as sure as this: mean log-probability (Think or Not)",
        lambda courses: spread_levels(np.concatenate([c.logprob_S for c in courses]), 16),
        lambda course, least: first(course, course.logprob_S >= least), probes=True,
    ),
    "probe": StopRule(
        "the forced answer is the same so many times in a row", lambda _: [2, 3, 4, 6, 8, 12, 16],
        _stable, probes=True,
    ),
}  # fmt: skip
"""Name -> rule; another is a function and a row here."""
