"""A few known answers beside the votes: do the votes give them?

Where all candidates err alike, their votes look as votes do where all are right: nothing in them
tells the two apart, and only an answer from elsewhere can.
"""

# Shapes: P prompts, A classes of answers, C candidates.

import math

import numpy as np

from surgeon import estimate
from surgeon.answers import same
from surgeon.errors import BadInput
from surgeon.rank.scores import Pool
from surgeon.ranking import KnownAnswers
from surgeon.settings.rank import RankSettings
from surgeon.traces import Prompt

MARGIN = 0.15
"""By how much the votes may be right less often than they say before it counts: on two recorded
families without common errors it was .08 and .12, as hard prompts are hard for all."""
GAP = 0.05
"""By how much the estimated accuracies may be above those on the known answers."""
LEVEL = 0.05
"""Chance of the warning where the votes are right as often as they say, less the margin."""


def require(settings: RankSettings, prompts: list[Prompt]) -> None:
    """Raise `BadInput` where fewer answers are there than are to be looked at."""
    there = sum(prompt.answer is not None for prompt in prompts)
    if settings.known is not None and there < settings.known:
        raise BadInput(
            f"found {there} prompts with an answer in {settings.mini_set}, expected known = "
            f"{settings.known} or more. Give some prompts their true answer, in the field `answer`."
        )


def drawn(settings: RankSettings, prompts: list[Prompt]) -> dict[str, str]:
    """Prompt -> its true answer, of those that may be looked at."""
    there = [(prompt.id, prompt.answer) for prompt in prompts if prompt.answer is not None]
    order = np.random.default_rng(settings.seed).permutation(len(there)).tolist()
    return dict(there[n] for n in order[: settings.known or 0])


def check(settings: RankSettings, prompts: list[Prompt], pool: Pool) -> KnownAnswers | None:
    """Whether the votes give the known answers as often as they say they do; None where no answer
    is known."""
    place = pool.places()
    known = {place[p]: a for p, a in drawn(settings, prompts).items() if p in place}
    if not known:
        return None
    names, voted = pool.classes(), pool.voted()
    share_PCA = np.nan_to_num(estimate.shares(pool.answers()))
    # Candidates that are alike share one voice here too.
    tally_PA = np.einsum("c,pca->pa", 1 / voted.like_CC.sum(1), share_PCA)
    first_PA = estimate.plurality(tally_PA)
    right = sum(
        float(first_PA[p, a])
        for p, answer in known.items()
        for a, name in enumerate(names[p])
        if same(name, answer)
    )
    said_C = voted.reliability_C
    said = float(np.nanmean(said_C)) if np.isfinite(said_C).any() else math.nan
    if math.isnan(said):
        return None
    from scipy.stats import binom

    p = float(binom.cdf(math.floor(right + 1e-9), len(known), max(0.0, said - MARGIN)))
    gold_PA = np.zeros(first_PA.shape)
    for place_p, answer in known.items():
        gold_PA[place_p, : len(names[place_p])] = [same(name, answer) for name in names[place_p]]
    asked_PC = (pool.answers() != estimate.ABSENT).any(-1)
    right_PC = np.where(asked_PC, np.einsum("pca,pa->pc", share_PCA, gold_PA), math.nan)
    too_high_PC = voted.accuracy_C - right_PC
    gap, p_gap = too_high(np.nanmean(too_high_PC[sorted(known)], axis=1))
    return KnownAnswers(
        asked=len(known), right=right, said=said, p=p, gap=gap, p_gap=p_gap,
        misled=min(p, p_gap) < LEVEL,
    )  # fmt: skip


def too_high(gap_P: np.ndarray) -> tuple[float, float]:
    """(mean, p) of estimated less true accuracies on the known prompts: the t-test of a mean of
    `GAP` against a larger one; p is 1 where they don't vary, or are one."""
    from scipy.stats import t

    n, spread = len(gap_P), float(np.std(gap_P, ddof=1)) if len(gap_P) > 1 else 0.0
    mean = float(gap_P.mean())
    return mean, float(t.sf((mean - GAP) / (spread / math.sqrt(n)), n - 1)) if spread else 1.0


def in_words(found: KnownAnswers) -> str:
    """The warning, in sentences."""
    return (
        f"Common errors: the votes give {found.right:.3g} of {found.asked} known answers, and "
        f"were to give {found.said:.0%} of them by how they agree (p {found.p:.2g}); on these "
        f"prompts the estimated accuracies are {found.gap:+.2f} off on average (p {found.p_gap:.2g}"
        "). The candidates err alike, and the estimated accuracies are too high."
    )
