"""How often each rule picks a right answer: best, random and worst of a prompt's answers.

A rule's pick is the answer with its highest value; answers that share it are each as likely, so
what is counted is the expected value of a fair draw. The worst is the one with the lowest value.
An answer without a value is neither, unless none of the prompt's has one.
"""

# Shapes: P prompts, X columns, B resamples.

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from surgeon import metrics
from surgeon.scoring.reader import Values
from surgeon.scoring.rules import Rule, order, values_of
from surgeon.scoring.voting import places_of


class ByPrompt(NamedTuple):
    """What a rule picks for every prompt, each float64_P; nan where nothing is known."""

    right: np.ndarray
    """Chance that its pick is right."""
    worst: np.ndarray
    """Chance that the answer it likes least is."""
    tokens: np.ndarray
    """Of its pick."""
    right_tokens: np.ndarray
    """Tokens of a right pick, less those of a right answer drawn at random, where the prompt has
    several right answers (NEX sec. 5.4.2)."""
    right_words: np.ndarray
    """Counted words, likewise."""


class Choice(NamedTuple):
    """The answers of a candidate to one prompt, and which of them each rule picks."""

    prompt_id: str
    members: list[int]
    """Places of the answers among all of the candidate's."""
    picks: dict[str, int]
    """Rule -> the place that it picks; equals are drawn by the seed."""


def choices(rules: Mapping[str, Rule], rows: Sequence[Values], seed: int) -> Iterator[Choice]:
    """One candidate's prompts in their order."""
    for prompt_id, members in places_of([r["prompt_id"] for r in rows]).items():
        own = [rows[n] for n in members]
        picks = {
            name: members[order(name, rule, own, seed=seed, worst=False)[0]]
            for name, rule in rules.items()
        }
        yield Choice(prompt_id, members, picks)


def by_prompt(name: str, rule: Rule, rows: Sequence[Values]) -> ByPrompt:
    """What a rule picks among one candidate's answers, prompt by prompt in their order."""
    value_N = values_of(name, rule, rows)
    tokens_N = np.array([row["tokens"] for row in rows], float)
    words_N = np.array([row["words"] for row in rows], float)
    right_N = correct(rows)
    columns = []
    for members in places_of([row["prompt_id"] for row in rows]).values():
        own = np.array(members)
        best, worst = own[extreme(value_N[own])], own[extreme(-value_N[own])]
        good = own[right_N[own] == 1]
        picked = best[right_N[best] == 1]
        gains = [math.nan, math.nan]
        if len(good) > 1 and len(picked):
            gains = [x[picked].mean() - x[good].mean() for x in (tokens_N, words_N)]
        columns.append([right_N[best].mean(), right_N[worst].mean(), tokens_N[best].mean(), *gains])
    return ByPrompt(*np.array(columns, float).T)


def extreme(value_M: np.ndarray) -> np.ndarray:
    """bool_M: the largest values; all where none is a number."""
    known_M = ~np.isnan(value_M)
    if not known_M.any():
        return np.ones(len(value_M), bool)
    return known_M & (value_M == value_M[known_M].max())


def correct(rows: Sequence[Values]) -> np.ndarray:
    """float64_N: 1 for a right answer, 0 for a wrong one, nan where that isn't known."""
    return np.array([row.get("correct", math.nan) for row in rows], float)


def drawn(rows: Sequence[Values]) -> tuple[np.ndarray, np.ndarray]:
    """float64_P each: the chance that an answer drawn at random is right, and that any is."""
    right_N = correct(rows)
    groups = [right_N[members] for members in places_of([r["prompt_id"] for r in rows]).values()]
    return np.array([g.mean() for g in groups]), np.array([g.max() for g in groups])


class Estimated(NamedTuple):
    """A mean over prompts with its 95 % interval; nan without a value."""

    value: float
    low: float
    high: float


def estimated(value_P: np.ndarray, *, seed: int) -> Estimated:
    """The mean over the prompts that have a value; prompts are resampled, all rules' alike."""
    there = ~np.isnan(value_P)
    if not there.any():
        return Estimated(math.nan, math.nan, math.nan)
    ends = metrics.percentile_interval(metrics.resampled_means(value_P, seed=seed))
    return Estimated(float(value_P[there].mean()), *map(float, ends))


def mean_of(values: Sequence[np.ndarray]) -> np.ndarray:
    """float64_P: the mean over candidates that answered the same prompts, where there is one."""
    stacked_CP = np.array(values)
    there_CP = ~np.isnan(stacked_CP)
    n_P = there_CP.sum(0)
    total_P = np.where(there_CP, stacked_CP, 0.0).sum(0)
    return np.divide(total_P, n_P, out=np.full(len(n_P), math.nan), where=n_P > 0)
