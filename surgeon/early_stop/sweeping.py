"""Every rule at every threshold: right answers and tokens, and which threshold is chosen."""

# Shape letters: N courses, P questions.

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from surgeon import metrics
from surgeon.artifact import part
from surgeon.early_stop.courses import Course
from surgeon.early_stop.stop_rules import STOPS, StopRule


@part
class StopPoint:
    """What a rule comes to at one threshold."""

    value: Any
    """The threshold; null for a rule without."""
    right: float
    """Share of right answers, mean over questions."""
    tokens: float
    """Of an answer, mean over questions; with those of answers tried on the way."""
    share: float
    """Of the tokens without any rule."""
    stopped: float
    """Share of the answers whose thinking it ended."""
    over: tuple[float, float, float]
    """Right answers less those without any rule, and the ends of a 95 % interval: paired, questions
    resampled."""


class Outcome(NamedTuple):
    """What became of each course, in their order; expected values, where chance decides."""

    right_N: np.ndarray
    tokens_N: np.ndarray
    stopped_N: np.ndarray
    rate: float
    """Stops among the places that the rule looked at."""


def outcome(rule: StopRule, value: Any, courses: Sequence[Course]) -> Outcome:
    """A rule at a threshold, over all courses."""
    found = [_one(rule, rule.of(course, value), course) for course in courses]
    right_N, tokens_N, stopped_N, looked_N = np.array(found, float).T
    return Outcome(right_N, tokens_N, stopped_N, float(stopped_N.sum() / max(looked_N.sum(), 1)))


def _one(
    rule: StopRule, place: int | np.ndarray | None, course: Course
) -> tuple[float, float, float, float]:
    """(Right, tokens, stopped, places looked at) of a course; expected values by chances."""
    chance_S = np.zeros(len(course.step_S))
    if isinstance(place, np.ndarray):
        chance_S = place
    elif place is not None:
        chance_S[place] = 1.0
    left = 1 - chance_S.sum()
    looked_S = (course.step_S >= 0).cumsum()
    # The forced answer at the stop itself is the answer: it is no try.
    tried_S = np.append(0, np.where(course.step_S >= 0, course.probe_S, 0).cumsum())
    if not rule.probes:
        tried_S = np.zeros_like(tried_S)
    tokens_S = course.position_S + course.probe_S + tried_S[:-1]
    return (
        float(chance_S @ course.right_S + left * course.right),
        float(chance_S @ tokens_S + left * (course.tokens + tried_S[-1])),
        float(1 - left),
        float(chance_S @ looked_S + left * looked_S[-1]),
    )


def by_question(courses: Sequence[Course], value_N: np.ndarray) -> np.ndarray:
    """float64_P: the mean over each question's courses, in order of appearance."""
    ids = [course.trace.prompt_id for course in courses]
    place = {prompt_id: n for n, prompt_id in enumerate(dict.fromkeys(ids))}
    index_N = np.array([place[prompt_id] for prompt_id in ids])
    return np.bincount(index_N, value_N) / np.bincount(index_N)


def point(value: Any, found: Outcome, courses: Sequence[Course], *, seed: int) -> StopPoint:
    """What a rule comes to at a threshold."""
    plain = outcome(STOPS["never"], None, courses)
    over_P = by_question(courses, found.right_N - plain.right_N)
    low, high = metrics.bootstrap_interval(over_P, seed=seed)
    tokens = float(by_question(courses, found.tokens_N).mean())
    return StopPoint(
        value=value,
        right=float(by_question(courses, found.right_N).mean()),
        tokens=tokens,
        share=tokens / float(by_question(courses, plain.tokens_N).mean()),
        stopped=float(found.stopped_N.mean()),
        over=(float(over_P.mean()), low, high),
    )


def difference(
    one: Outcome, other: Outcome, courses: Sequence[Course], *, seed: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Right answers and tokens of one less those of another, each with its 95 % interval."""

    def ends(over_N: np.ndarray) -> tuple[float, float, float]:
        over_P = by_question(courses, over_N)
        low, high = metrics.bootstrap_interval(over_P, seed=seed)
        return float(over_P.mean()), low, high

    return ends(one.right_N - other.right_N), ends(one.tokens_N - other.tokens_N)


def swept(courses: Sequence[Course], *, seed: int) -> dict[str, list[StopPoint]]:
    """Rule -> its points, by tokens; thresholds with the same outcome stand there once."""
    curves = {}
    for name, rule in STOPS.items():
        points: dict[tuple[float, float], StopPoint] = {}
        for value in rule.values(courses):
            one = point(value, outcome(rule, value, courses), courses, seed=seed)
            points.setdefault((one.right, one.tokens), one)
        curves[name] = sorted(points.values(), key=lambda p: (p.tokens, -p.right))
    return curves


def chosen(points: Sequence[StopPoint], margin: float) -> StopPoint | None:
    """The point with the fewest tokens among those that lose no more right answers than `margin`;
    None where each of them may lose more."""
    fine = [p for p in points if p.over[1] >= -margin - 1e-12]
    return min(fine, key=lambda p: (p.tokens, -p.right), default=None)


def front(points: Sequence[StopPoint]) -> list[StopPoint]:
    """The points that no other beats in both right answers and tokens, by tokens."""
    kept: list[StopPoint] = []
    for one in sorted(points, key=lambda p: (p.tokens, -p.right)):
        if not kept or one.right > kept[-1].right:
            kept.append(one)
    return kept


def chosen_of_all(
    curves: Mapping[str, Sequence[StopPoint]], margin: float
) -> dict[str, StopPoint | None]:
    """Rule -> its chosen point."""
    return {name: chosen(points, margin) for name, points in curves.items()}
