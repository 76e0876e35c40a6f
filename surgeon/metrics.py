"""Accuracy, calibration and selection quality, and how sure they are: plain numpy, seeded.

Samples are ragged: `correct[p][i]` and `answers[p][i]` belong to sample i of prompt p. An answer of
None (truncated, or nothing to extract) votes for nothing and counts as a sample all the same.

    Avg@k, Pass@1       accuracy_by_prompt               accuracy of one sample
    Maj@k               majority_by_prompt               accuracy of the most frequent answer
    Cons@k              consistency_by_prompt            accuracy of the majority of k samples
    ECE                 calibration_gaps                 15 bins, confidence = largest vote share
    agreement           agreement_by_prompt              label-free
    exploration         parabola                         fit, vertex, test against a line
    selection           pearson spearman regret_at_1 hit_at_3, all in selection_quality
    uncertainty         bootstrap_interval; percentile_interval of resampled_means

A metric of several prompts is the mean over those that have a value: `resampled_means` resamples
it. Two columns of the same resamples may be subtracted: that is the paired bootstrap.

What has no value (no prompts, a nan or infinite input, a correlation with a constant) is nan,
without a warning.
"""

# Shapes: P prompts, C candidates, B bootstrap resamples, J groups of prompts that are left out,
# X anything (candidates, scores).

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Answers = Sequence[Sequence[str | None]]
Correct = Sequence[Sequence[bool]]


# ---------------------------------------------------------------- per prompt


def accuracy_by_prompt(correct: Correct) -> np.ndarray:
    """float64_P: share of each prompt's samples that are right; nan for one without samples."""
    return np.array([sum(map(bool, s)) / len(s) if len(s) else math.nan for s in correct])


def agreement_by_prompt(answers: Answers) -> np.ndarray:
    """float64_P: share of all of a prompt's samples, those without an answer included, that give
    its most frequent answer; 0 when none has an answer, nan for a prompt without samples."""
    return np.array(
        [max(_votes(s).values(), default=0) / len(s) if len(s) else math.nan for s in answers]
    )


def majority_by_prompt(answers: Answers, correct: Correct) -> np.ndarray:
    """float64_P: is the most frequent answer right? Between answers with equally many votes the
    expected value of a fair draw; 0 when no sample has an answer, nan without samples.

    An answer is as right as the samples that gave it are on average (they only differ when the
    check reads more than the answer). Raises ValueError when the two inputs differ in shape.
    """
    return np.array([_majority(a, c) for a, c in zip(answers, correct, strict=True)])


def consistency_by_prompt(answers: Answers, correct: Correct, size: int) -> np.ndarray:
    """float64_P: accuracy of the majority of `size` samples, averaged over the windows of that many
    neighbours (the last joins the first, so that every sample counts equally)."""
    found = []
    for given, right in zip(answers, correct, strict=True):
        n = len(given)
        windows = [[(start + i) % n for i in range(size)] for start in range(n)]
        found.append([_majority([given[i] for i in w], [right[i] for i in w]) for w in windows])
    return np.array([np.mean(row) if row else math.nan for row in found])


def _votes(answers: Sequence[str | None]) -> Counter[str]:
    return Counter(answer for answer in answers if answer is not None)


def _majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    right = Counter(a for a, c in zip(answers, correct, strict=True) if c)
    votes = _votes(answers)
    if not votes:
        return 0.0 if len(answers) else math.nan
    most = max(votes.values())
    return float(np.mean([right[a] / n for a, n in votes.items() if n == most]))


# ---------------------------------------------------------------- calibration


def calibration_gaps(
    confidence_P: np.ndarray, right_P: np.ndarray, *, bins: int = 15
) -> np.ndarray:
    """float64_PX: accuracy - confidence of each prompt in the column of its confidence's bin, 0 in
    the others.

    Bin i of n is (i/n, (i+1)/n], the first one with 0. The expected calibration error (ECE) is
    |mean over prompts| summed over bins, so it can be resampled like a mean. Of majority voting,
    confidence is the largest vote share (`agreement_by_prompt`), accuracy that of the majority
    answer (`majority_by_prompt`). All inputs finite.
    """
    # 7/25 of 25 bins is an edge, but in floating point a little above it.
    bin_P = np.clip(np.ceil(confidence_P * bins - 1e-9).astype(int) - 1, 0, bins - 1)
    gap_PX = np.zeros((len(bin_P), bins))
    gap_PX[np.arange(len(bin_P)), bin_P] = right_P - confidence_P
    return gap_PX


# ---------------------------------------------------------------- selection quality


def cohens_kappa(counts_4: ArrayLike) -> np.ndarray:
    """float64[...] at most 1: agreement of two raters above chance, from counts[..., 4] of E and E,
    E and X, X and E, X and X; nan where there are none, or both always say the same one."""
    ee, ex, xe, xx = np.moveaxis(np.asarray(counts_4, float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = ee + ex + xe + xx
        chance = ((ee + ex) * (ee + xe) + (xe + xx) * (ex + xx)) / n**2
        return np.where(chance < 1, ((ee + xx) / n - chance) / (1 - chance), np.nan)


def _pair(score_C: ArrayLike, truth_C: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    """Both as float64_C, or None when there is nothing to compare; ValueError when the lengths
    differ."""
    score_C, truth_C = np.asarray(score_C, float), np.asarray(truth_C, float)
    if score_C.shape != truth_C.shape:
        raise ValueError(f"{score_C.shape} scores, {truth_C.shape} true accuracies")
    whole = len(score_C) > 0 and np.isfinite([score_C, truth_C]).all()
    return (score_C, truth_C) if whole else None


def pearson(score_C: ArrayLike, truth_C: ArrayLike) -> float:
    """Pearson correlation in [-1, 1]; nan with fewer than 2 candidates or a constant side."""
    pair = _pair(score_C, truth_C)
    if pair is None or np.ptp(pair[0]) == 0 or np.ptp(pair[1]) == 0:
        return math.nan
    # Scaling by the spread first keeps the squares of tiny scores from vanishing.
    x_C, y_C = ((side - side.mean()) / np.ptp(side) for side in pair)
    r = (x_C @ y_C) / math.sqrt((x_C @ x_C) * (y_C @ y_C))
    return float(np.clip(r, -1, 1))


def ranks(values_C: ArrayLike) -> np.ndarray:
    """float64_C, 1 for the smallest; equal values share the mean of their ranks."""
    _, group_C, count_X = np.unique(np.asarray(values_C), return_inverse=True, return_counts=True)
    return (np.cumsum(count_X) - (count_X - 1) / 2)[group_C]


def spearman(score_C: ArrayLike, truth_C: ArrayLike) -> float:
    """Spearman correlation in [-1, 1], with average ranks; nan as for `pearson`."""
    pair = _pair(score_C, truth_C)
    return math.nan if pair is None else pearson(ranks(pair[0]), ranks(pair[1]))


def regret_at_1(score_C: ArrayLike, truth_C: ArrayLike) -> float:
    """Percentage points between the best true accuracy and that of the candidate with the highest
    score; between candidates that share the highest score, the mean. Accuracies in [0, 1]."""
    pair = _pair(score_C, truth_C)
    if pair is None:
        return math.nan
    score_C, truth_C = pair
    return float(100 * (truth_C.max() - truth_C[score_C == score_C.max()].mean()))


def hit_at_3(score_C: ArrayLike, truth_C: ArrayLike) -> float:
    """Is a truly best candidate among the three with the highest scores? 1 or 0; where a tie in
    the scores leaves it open, the chance under a fair draw.

    A reading: the paper reports Hit@3 without defining it. Candidates that share the best true
    accuracy all count as best.
    """
    pair = _pair(score_C, truth_C)
    if pair is None:
        return math.nan
    score_C, truth_C = pair
    best_C = truth_C == truth_C.max()
    third = np.sort(score_C)[-min(3, len(score_C))]
    if best_C[score_C > third].any():
        return 1.0
    places = min(3, len(score_C)) - int(np.count_nonzero(score_C > third))
    tied_C = score_C == third
    tied, good = int(tied_C.sum()), int((tied_C & best_C).sum())
    return 1 - math.comb(tied - good, places) / math.comb(tied, places)


def selection_quality(
    scores: Mapping[str, float], accuracy: Mapping[str, float]
) -> dict[str, float]:
    """How well a score would have chosen among candidates, by name: `pearson`, `spearman`,
    `regret_at_1` (percentage points) and `hit_at_3`, over those that have an accuracy."""
    both = [name for name in scores if name in accuracy]
    score_C, truth_C = [scores[name] for name in both], [accuracy[name] for name in both]
    measures = (pearson, spearman, regret_at_1, hit_at_3)
    return {measure.__name__: measure(score_C, truth_C) for measure in measures}


class Parabola(NamedTuple):
    """`a + b x + c x^2` fitted by least squares to candidates, and whether c is needed."""

    a: float
    b: float
    c: float
    r2: float
    """Share of the variance of y that the parabola explains."""
    r2_line: float
    """The same of the straight line."""
    vertex: float
    """-b / 2c, in units of x; nan where c is 0."""
    p: float
    """Of the F-test of the parabola against the line; 1 where the line leaves nothing."""


def parabola(x_C: ArrayLike, y_C: ArrayLike) -> Parabola | None:
    """The parabola of y over x; None below four points, with less than three different x, or where
    y is constant."""
    from scipy.stats import f

    pair = _pair(x_C, y_C)
    if pair is None or len(pair[0]) < 4 or len(np.unique(pair[0])) < 3 or np.ptp(pair[1]) == 0:
        return None
    x_C, y_C = pair
    middle, spread = float(x_C.mean()), float(np.ptp(x_C))
    u_C = (x_C - middle) / spread  # large x leave c without digits
    curve, line = np.polyfit(u_C, y_C, 2), np.polyfit(u_C, y_C, 1)
    total = float(((y_C - y_C.mean()) ** 2).sum())
    left, left_line = (float(((y_C - np.polyval(k, u_C)) ** 2).sum()) for k in (curve, line))
    if left_line <= 1e-12 * total:
        p = 1.0
    elif left <= 1e-12 * total:
        p = 0.0
    else:
        p = float(f.sf((left_line - left) / (left / (len(x_C) - 3)), 1, len(x_C) - 3))
    c, b, a = (float(k) for k in curve)
    vertex = middle - spread * b / (2 * c) if c else math.nan
    c, b = c / spread**2, b / spread - 2 * c * middle / spread**2
    a = float(np.polyval(curve, -middle / spread))
    return Parabola(a, b, c, 1 - left / total, 1 - left_line / total, vertex, p)


# ---------------------------------------------------------------- uncertainty


class Interval(NamedTuple):
    """Ends of a bootstrap percentile interval; nan, nan when there is nothing to resample."""

    low: float
    high: float


def resample_counts(n_prompts: int, *, seed: int = 0, n: int = 2000) -> np.ndarray:
    """float64_BP: how often each prompt is in each of n resamples with replacement."""
    if n_prompts == 0:
        return np.zeros((n, 0))
    drawn = np.random.default_rng(seed).integers(n_prompts, size=(n, n_prompts))
    drawn += n_prompts * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_prompts).reshape(n, -1).astype(float)


def resampled_means(values_PX: ArrayLike, *, seed: int = 0, n: int = 2000) -> np.ndarray:
    """float64_BX: the mean over prompts in each of n resamples of the prompts with replacement.

    Every column of X sees the same resamples, so columns may be subtracted (paired bootstrap). nan
    marks a prompt that a column has no value for: its mean is over the others.
    """
    values_PX = np.asarray(values_PX, float)
    n_prompts, *rest = values_PX.shape
    if n_prompts == 0:
        return np.full((n, *rest), math.nan)
    values = values_PX.reshape(n_prompts, -1)
    count_BP = resample_counts(n_prompts, seed=seed, n=n)
    present = ~np.isnan(values)
    weight = count_BP @ present
    total = count_BP @ np.where(present, values, 0.0)
    means = np.divide(total, weight, out=np.full_like(total, math.nan), where=weight > 0)
    return means.reshape(n, *rest)


def left_out_counts(n_prompts: int, *, most: int = 200) -> np.ndarray:
    """float64_JP: how often each prompt stands where one group of them is left out, group after
    group (delete-a-group jackknife): a group a prompt, at most `most` groups."""
    groups = min(n_prompts, most)
    return (np.arange(n_prompts) % max(1, groups) != np.arange(groups)[:, None]).astype(float)


def left_out_means(values_PX: ArrayLike, *, most: int = 200) -> np.ndarray:
    """float64_JX: the mean over prompts where each group of `left_out_counts` is left out; nan as
    in `resampled_means`."""
    values_PX = np.asarray(values_PX, float)
    count_JP = left_out_counts(len(values_PX), most=most)
    present_PX = ~np.isnan(values_PX)
    total_JX = np.tensordot(count_JP, np.where(present_PX, values_PX, 0.0), 1)
    weight_JX = np.tensordot(count_JP, present_PX.astype(float), 1)
    return np.divide(
        total_JX, weight_JX, out=np.full(total_JX.shape, math.nan), where=weight_JX > 0
    )


def resampled_members(means_BSX: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """float64_BX: the mean over S members (seeds of one setting), of which each resample draws with
    replacement too. Takes what `resampled_means` makes of values_PSX; one member is left alone."""
    n, members = means_BSX.shape[:2]
    drawn_BS = np.random.default_rng([seed, members]).integers(members, size=(n, members))
    return means_BSX[np.arange(n)[:, None], drawn_BS].mean(axis=1)


def percentile_interval(means_BX: np.ndarray, *, level: float = 0.95) -> np.ndarray:
    """float64_X2: low and high end of the middle `level` of the resamples, those that are nan left
    out."""
    n, *rest = means_BX.shape
    columns = means_BX.reshape(n, -1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = np.quantile(columns, tails, axis=0).T
    # Taken one by one because numpy's nan-aware quantile is slow and warns about all-nan columns.
    for j in np.flatnonzero(np.isnan(columns).any(axis=0)):
        present = columns[~np.isnan(columns[:, j]), j]
        ends[j] = np.quantile(present, tails) if len(present) else math.nan
    return ends.reshape(*rest, 2)


def corrected_interval(
    point_X: np.ndarray, value_BX: np.ndarray, left_JX: np.ndarray | None = None
) -> np.ndarray:
    """float64_X2: ends of the 95 % interval of a share in [0, 1] that is learned from the sample it
    is measured on, from its value, its resamples, and its values with groups left out.

    A smaller sample gives such a score another mean, and a resample is one: it holds 63 % of the
    prompts. So the mean difference to the resamples is taken off the value. For the same reason
    resamples scatter too little: the standard error is the jackknife's, with the quantile of
    Student's t, and the difference that was taken off is added to it in quadrature, as it is
    itself unsure by about as much. Where nothing was left out (`left_JX` is None, or nan) the
    resamples' root mean square stands for both.
    """
    gap_BX = value_BX - point_X
    there_X = np.maximum(np.isfinite(gap_BX).sum(0), 1)
    shift_X = np.nansum(gap_BX, 0) / there_X
    spread_X = 1.96 * np.sqrt(np.nansum(gap_BX**2, 0) / there_X)
    if left_JX is not None and len(left_JX) > 1:
        from scipy.stats import t

        groups = len(left_JX)
        error_X = jackknife_error(left_JX)
        wide_X = float(t.ppf(0.975, groups - 1)) * np.sqrt(error_X**2 + shift_X**2)
        spread_X = np.where(np.isnan(wide_X), spread_X, wide_X)
    centre_X = point_X - shift_X
    return np.clip(np.stack([centre_X - spread_X, centre_X + spread_X], -1), 0, 1)


def widened(ends_X2: np.ndarray, by_X: np.ndarray) -> np.ndarray:
    """float64_X2: the ends of intervals in [0, 1], each moved out by so much."""
    return np.clip(ends_X2 + np.stack([-by_X, by_X], -1), 0, 1)


def jackknife_error(left_JX: np.ndarray) -> np.ndarray:
    """float64_X: the standard error from values with one of J groups left out; nan where one of
    them is."""
    groups = len(left_JX)
    gap_JX = left_JX - left_JX.mean(0)
    return np.sqrt((groups - 1) / max(1, groups) * (gap_JX**2).sum(0))


def may_be_best(point_C: np.ndarray, value_BC: np.ndarray, *, level: float = 0.95) -> np.ndarray:
    """bool_C: a set of candidates that holds the truly best one with at least that probability,
    from their values and the same resamples of all (multiple comparisons with the best, Hsu 1984).

    A candidate is out where another is ahead by more standard errors than the largest of all
    leads over it reaches by chance in that share of the resamples (max-type bootstrap). Without a
    value (nan) a candidate stays in.
    """
    inside_C = np.ones(len(point_C), bool)
    for c in range(len(point_C)):
        lead_C = point_C - point_C[c]
        chance_BC = np.nan_to_num(value_BC - value_BC[:, [c]] - lead_C)
        error_C = np.sqrt((chance_BC**2).mean(0))
        scaled_BC = np.divide(chance_BC, error_C, out=np.zeros_like(chance_BC), where=error_C > 0)
        limit = np.quantile(scaled_BC.max(1), level)
        ahead_C = np.nan_to_num(lead_C) > limit * error_C
        inside_C[c] = not (ahead_C & (np.arange(len(point_C)) != c)).any()
    return inside_C


def bootstrap_interval(
    values_P: ArrayLike, *, seed: int = 0, n: int = 2000, level: float = 0.95
) -> Interval:
    """Interval of the mean of per-prompt values, by resampling prompts (several samples of one
    prompt are no independent evidence). For many candidates and scores at once use
    `percentile_interval(resampled_means(values_PX))`."""
    low, high = percentile_interval(resampled_means(values_P, seed=seed, n=n), level=level)
    return Interval(float(low), float(high))
