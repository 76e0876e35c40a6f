"""Accuracy without labels: candidates that answer the same prompts vote on the answers.

A candidate's samples are held against the answer that the *other* candidates' samples give most
often. Its own samples have no vote on themselves, so that a candidate that always repeats one wrong
answer gains nothing. Let m be the share of its samples that match, and q the chance that such a
vote is right. The accuracy lies between m (what the vote misses counts against the candidate) and
m/q (what matches is right, and the vote misses as often where the candidate is right): the estimate
is the geometric mean m/sqrt(q). It is too high where all candidates err alike, which no vote can
show, and unknown where no answer has a large share of the votes, which `signs` shows.

    pooled vote, own samples left out    estimate; a match per prompt and candidate, so that
                                         prompts can be resampled (surgeon.metrics)
    how often that vote is right         reliability; by the one-coin model below
    candidates that err alike            likeness: they share one voice, and none on each other
    Dawid and Skene 1979, one coin       dawid_skene, for comparison: accuracies and answers fitted
                                         in turns by expectation maximisation
    signs of trouble                     signs

An answer is a number that stands for its class of equal answers within a prompt; which answers are
equal is decided elsewhere. A sample without a readable answer votes for nothing and counts as
wrong. Arrays in, arrays out: no model, no file, no randomness.
"""

# Shape letters: P prompts, C candidates, S samples of a prompt, A classes of answers of a prompt.

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from surgeon import metrics

UNREADABLE, ABSENT = -1, -2
"""In place of a class: a sample whose answer can't be read, and no sample at all."""
DEVIATIONS = 2.0
"""Candidates are alike where their errors coincide more than this many standard deviations more
often than those of the pool's middle pair."""
REVOTES = 6
"""Most votes from which candidates are found alike."""
REFITS = 3
"""Rounds in which accuracies and the reliability of the vote are fitted in turns."""
ROUNDS = 60
"""Of expectation maximisation; it stops when no accuracy moves by more than `SETTLED`."""
SETTLED = 1e-6
ACCURACIES = (0.02, 0.98)
"""Ends of a fitted accuracy: one at 0 or 1 would make a voter infallible."""
SPLIT = 0.5
"""A prompt is split where its second answer has at least this share of the first one's votes."""


def numbered(answers: Sequence[Sequence[Sequence[str | None]]]) -> np.ndarray:
    """int64_PCS from the answers of every prompt, candidate and sample: equal texts of one prompt
    get one number, from 0 on, None is `UNREADABLE`, and rows that are too short end in `ABSENT`."""
    samples = max((len(row) for prompt in answers for row in prompt), default=0)
    candidates = max(map(len, answers), default=0)
    answer_PCS = np.full((len(answers), candidates, samples), ABSENT)
    for p, prompt in enumerate(answers):
        numbers: dict[str, int] = {}
        for c, row in enumerate(prompt):
            for s, answer in enumerate(row):
                known = UNREADABLE if answer is None else numbers.setdefault(answer, len(numbers))
                answer_PCS[p, c, s] = known
    return answer_PCS


def shares(answer_PCS: np.ndarray) -> np.ndarray:
    """float64_PCA: share of a candidate's samples of a prompt in each class of answers, the
    unreadable ones counted as samples; nan where it has no sample."""
    n_classes = max(1, int(answer_PCS.max(initial=0)) + 1)
    count_PCA = np.stack([(answer_PCS == a).sum(-1) for a in range(n_classes)], axis=-1)
    n_PC1 = (answer_PCS != ABSENT).sum(-1)[..., None]
    return np.divide(count_PCA, n_PC1, out=np.full(count_PCA.shape, math.nan), where=n_PC1 > 0)


def plurality(tally_XA: np.ndarray) -> np.ndarray:
    """float64_XA: 1 at the class with the most votes; classes that share the first place share
    the 1 (the expected value of a fair draw), and without any vote all are 0."""
    most_X1 = tally_XA.max(-1, keepdims=True, initial=0)
    # Sums of the same votes in another order may differ in their last digit.
    first_XA = (tally_XA > 0) & (tally_XA >= most_X1 * (1 - 1e-9))
    return first_XA / np.maximum(first_XA.sum(-1, keepdims=True), 1)


def likeness(answer_PCS: np.ndarray, copies_CC: np.ndarray | None = None) -> np.ndarray:
    """float64_CC in [0, 1]: 0 for candidates whose errors are independent of each other, 1 for
    copies; every candidate is its own copy.

    An error is an answer that the pool votes down. Two candidates are alike as far as their errors
    on the same prompts coincide more often than those of the pool's middle pair, less `DEVIATIONS`
    standard deviations of that. Where candidates differ only in being right, nobody is alike. Many
    that err alike carry the vote together, which hides their errors: those found alike share one
    voice in a new vote, which may find more, until it finds none. `copies_CC` names pairs that are
    known to be copies, and are taken as such.
    """
    share_PCA = np.nan_to_num(shares(answer_PCS))
    like_CC = np.eye(share_PCA.shape[1])
    if copies_CC is not None:
        like_CC = np.maximum(like_CC, copies_CC.astype(float))
    for _ in range(REVOTES):
        tally_PA = np.einsum("c,pca->pa", 1 / like_CC.sum(1), share_PCA)
        found_CC = np.maximum(like_CC, coincidence(share_PCA, tally_PA))
        if np.array_equal(found_CC, like_CC):
            break
        like_CC = found_CC
    return like_CC


def coincidence(share_PCA: np.ndarray, tally_PA: np.ndarray) -> np.ndarray:
    """float64_CC in [0, 1]: how alike candidates err where these are the votes; see `likeness`."""
    # In a draw nobody errs: neither answer is the pool's alone.
    error_PCA = share_PCA * (plurality(tally_PA) == 0)[:, None]
    wrong_PC = error_PCA.sum(-1)
    pairs_CC = wrong_PC.T @ wrong_PC
    same_CC = np.divide(
        np.einsum("pca,pda->cd", error_PCA, error_PCA), pairs_CC,
        out=np.zeros_like(pairs_CC), where=pairs_CC > 0,
    )  # fmt: skip
    others = (pairs_CC > 0) & ~np.eye(len(pairs_CC), dtype=bool)
    usual = min(float(np.median(same_CC[others])), 1.0) if others.any() else 0.0
    noise_CC = np.sqrt(usual * (1 - usual) / np.maximum(pairs_CC, 1))
    excess_CC = (same_CC - usual - DEVIATIONS * noise_CC) / max(1 - usual, 1e-9)
    # One pair alone is its own middle: nothing says what would be usual.
    return np.clip(excess_CC, 0, 1) if len(pairs_CC) > 2 else np.zeros_like(excess_CC)


def voices(like_CC: np.ndarray) -> float:
    """How many independent candidates these count as, from 1 (copies of one) to all."""
    return float((1 / like_CC.sum(1)).sum())


class Estimate(NamedTuple):
    """What the votes say of every candidate."""

    match_PC: np.ndarray
    """float64_PC: share of a candidate's samples that give the answer of the others' vote; nan
    where it has no sample, or no other candidate has a readable answer."""
    reliability_C: np.ndarray
    """float64_C in (0, 1]: chance that the others' vote is right, mean over prompts; nan without
    any vote."""
    like_CC: np.ndarray
    """As `likeness`."""

    @property
    def match_C(self) -> np.ndarray:
        """float64_C: mean of `match_PC` over the prompts that have one; nan without any."""
        voted_PC = ~np.isnan(self.match_PC)
        total_C, n_C = np.nansum(self.match_PC, 0), voted_PC.sum(0)
        return np.divide(total_C, n_C, out=np.full(len(n_C), math.nan), where=n_C > 0)

    @property
    def scale_C(self) -> np.ndarray:
        """float64_C: what `match_C` is divided by, sqrt(reliability), or more where the accuracy
        would pass 1."""
        return np.maximum(np.sqrt(self.reliability_C), self.match_C)

    @property
    def accuracy_C(self) -> np.ndarray:
        """float64_C in [0, 1], nan without any vote."""
        return self.match_C / self.scale_C


def estimate(answer_PCS: np.ndarray, copies_CC: np.ndarray | None = None) -> Estimate:
    """The accuracy of every candidate from the vote of the others.

    A prompt's vote is the answer with the most votes; a candidate's vote is split among its
    samples. Candidates that are alike (see `likeness`) share one vote, and have none on each other
    as far as they are alike.
    """
    like_CC = likeness(answer_PCS, copies_CC)
    share_PCA = shares(answer_PCS)
    vote_CC = (1 - like_CC) / like_CC.sum(1)[None]
    first_PCA = plurality(np.einsum("cd,pda->pca", vote_CC, np.nan_to_num(share_PCA)))
    voted_PC = first_PCA.any(-1)
    match_PC = np.where(voted_PC, (first_PCA * share_PCA).sum(-1), math.nan)
    found = Estimate(match_PC, np.ones(match_PC.shape[1]), like_CC)
    for _ in range(REFITS):
        fitted_C = np.nan_to_num(found.match_C / found.reliability_C)
        chance_PCA = left_out_chances(answer_PCS, fitted_C, vote_CC)
        right_PC = np.where(voted_PC, (first_PCA * chance_PCA).sum(-1), 0.0)
        n_C = voted_PC.sum(0)
        reliability_C = np.divide(
            right_PC.sum(0), n_C, out=np.full(len(n_C), math.nan), where=n_C > 0
        )
        found = found._replace(reliability_C=reliability_C)
    return found


def interval(found: Estimate, match_BC: np.ndarray) -> np.ndarray:
    """float64_C2: ends of the accuracies' 95 % interval, from resamples of `match_C`. The lower one
    is that of m, the higher one that of m/q (see above), so that it holds what the vote can't
    say."""
    ends_C2 = metrics.percentile_interval(match_BC)
    ends_C2[:, 1] /= found.reliability_C
    return np.minimum(ends_C2, 1)


def log_odds(accuracy_C: np.ndarray, given_PA: np.ndarray) -> np.ndarray:
    """float64_PC: what one sample of a candidate adds to its answer's log-odds. It is right with
    the candidate's accuracy, else it gives one of the prompt's other answers with equal chances."""
    bounded_C = np.clip(accuracy_C, *ACCURACIES)
    wrong_P1 = np.maximum(given_PA.sum(1) - 1, 1)[:, None]
    return np.log(bounded_C / (1 - bounded_C)) + np.log(wrong_P1)


def chances(evidence_XA: np.ndarray, given_XA: np.ndarray) -> np.ndarray:
    """float64_XA: chance of each class that somebody gave; 0 everywhere where nobody gave any."""
    evidence_XA = np.where(given_XA, evidence_XA, -math.inf)
    most_X1 = evidence_XA.max(-1, keepdims=True)
    likely_XA = np.exp(evidence_XA - np.where(np.isfinite(most_X1), most_X1, 0.0))
    return likely_XA / np.maximum(likely_XA.sum(-1, keepdims=True), 1e-300)


def left_out_chances(
    answer_PCS: np.ndarray, accuracy_C: np.ndarray, vote_CC: np.ndarray
) -> np.ndarray:
    """float64_PCA: the chance of each class to be right, by the samples of all candidates but the
    one it is asked for; `vote_CC` weighs what the second candidate says on the first."""
    share_PCA = np.nan_to_num(shares(answer_PCS))
    given_PA = share_PCA.sum(1) > 0
    weight_PC = log_odds(accuracy_C, given_PA) * (answer_PCS != ABSENT).sum(-1)
    evidence_PCA = np.einsum("cd,pda->pca", vote_CC, weight_PC[..., None] * share_PCA)
    return chances(evidence_PCA, np.broadcast_to(given_PA[:, None], evidence_PCA.shape))


class DawidSkene(NamedTuple):
    """What the one-coin model says."""

    right_PC: np.ndarray
    """float64_PC: chance that a sample of a candidate is right; nan without samples."""
    accuracy_C: np.ndarray
    """float64_C; nan for a candidate without samples."""
    chance_PA: np.ndarray
    """float64_PA: the chance of each class to be the right one; 0 where nobody has an answer."""


def dawid_skene(answer_PCS: np.ndarray) -> DawidSkene:
    """Accuracies and answers by the one-coin model of Dawid and Skene.

    See `log_odds` for the model. Own samples vote on themselves.
    """
    share_PCA = np.nan_to_num(shares(answer_PCS))
    n_PC = (answer_PCS != ABSENT).sum(-1)
    given_PA = share_PCA.sum(1) > 0
    accuracy_C, chance_PA = np.full(share_PCA.shape[1], 0.6), np.zeros(given_PA.shape)
    right_PC = np.zeros(n_PC.shape)
    for _ in range(ROUNDS):
        weight_PC = log_odds(accuracy_C, given_PA) * n_PC
        chance_PA = chances(np.einsum("pc,pca->pa", weight_PC, share_PCA), given_PA)
        right_PC = np.einsum("pa,pca->pc", chance_PA, share_PCA)
        before = accuracy_C
        accuracy_C = (right_PC * n_PC).sum(0) / np.maximum(n_PC.sum(0), 1)
        if np.abs(accuracy_C - before).max(initial=0) < SETTLED:
            break
    return DawidSkene(
        np.where(n_PC > 0, right_PC, math.nan),
        np.where(n_PC.sum(0) > 0, accuracy_C, math.nan),
        chance_PA,
    )


class Signs(NamedTuple):
    """What tells whether a vote can be trusted; nan where nothing says it."""

    share: float
    """Mean share of all samples that a prompt's first answer has."""
    split: float
    """Share of the prompts whose second answer has at least `SPLIT` of the first one's votes."""
    camps: float
    """Share of the prompts on which two answers are each given by every sample of two candidates
    or more: stable readings, of which only one can be right. nan with one sample a prompt."""
    agreement: float
    """The highest mean own agreement of a candidate: the share of its samples of a prompt that
    give its own most frequent answer. nan with one sample a prompt."""
    certainty: float
    """Mean chance of the first answer by the one-coin model: how sure the votes are together if
    errors are independent."""
    readable: float
    """Share of the samples whose answer can be read."""
    voices: float
    """How many independent candidates they count as, as a share of them (see `voices`)."""


def signs(answer_PCS: np.ndarray) -> Signs:
    """The signs of trouble in a vote; what they mean is for the caller to say."""
    n_PC = (answer_PCS != ABSENT).sum(-1)
    asked_P = n_PC.any(1)
    if not asked_P.any():
        return Signs(*[math.nan] * len(Signs._fields))
    answer_PCS, n_PC = answer_PCS[asked_P], n_PC[asked_P]
    share_PCA = np.nan_to_num(shares(answer_PCS))
    first_P, second_P = _two_highest((share_PCA * n_PC[..., None]).sum(1) / n_PC.sum(1)[:, None])
    several = n_PC.max() > 1
    steady_PA = ((share_PCA == 1) & (n_PC > 1)[..., None]).sum(1)
    own_C = (share_PCA.max(-1) * (n_PC > 0)).sum(0) / np.maximum((n_PC > 0).sum(0), 1)
    return Signs(
        share=float(first_P.mean()),
        split=float(((first_P > 0) & (second_P >= SPLIT * first_P)).mean()),
        camps=float(((steady_PA >= 2).sum(1) >= 2).mean()) if several else math.nan,
        agreement=float(own_C.max()) if several else math.nan,
        certainty=float(dawid_skene(answer_PCS).chance_PA.max(1).mean()),
        readable=float((answer_PCS >= 0).sum() / n_PC.sum()),
        voices=voices(likeness(answer_PCS)) / answer_PCS.shape[1],
    )


def _two_highest(voted_PA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    padded_PA = np.pad(voted_PA, ((0, 0), (0, 1)))
    ordered_PA = np.sort(padded_PA, axis=1)
    return ordered_PA[:, -1], ordered_PA[:, -2]
