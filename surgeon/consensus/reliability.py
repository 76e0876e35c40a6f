"""Whether consensus tells right answers from wrong ones, with labels or against a vote.

Arrays in, numbers out. Rightness is a share in [0, 1]: 1 and 0 where answers are checked, and the
share of a question's other answers that agree where there are only votes. Responses to one question
aren't independent: every interval resamples questions.

Neuron-OPSD -> function:

    sec. 5.1   does s(x) tell right from wrong      auroc, within
    Fig. 2     accuracy in bins of s(x)             bins
    Fig. 3     the same in each domain              trends
"""

# Shapes: N responses, P questions, B bootstrap resamples, G groups of equal values.

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from surgeon import metrics
from surgeon.artifact import part

RESAMPLES = 1000
BINS = 10
BLOCK = 1 << 22
"""Weights of resampled responses in memory at a time."""
Ends = tuple[float, float]


@part
class Bin:
    """Responses of about equal s(x) (Fig. 2)."""

    responses: int
    consensus: float
    """Their mean s(x), in standard deviations of their domain from its mean."""
    gain: float
    """Their accuracy minus their domain's."""


@part
class Trend:
    """The line of accuracy over s(x) in one domain (Fig. 3)."""

    domain: str
    responses: int
    accuracy: float
    slope: float | None
    """Accuracy for one standard deviation more of s(x); below 0 in the paper. None where s(x) or
    accuracy is constant."""
    interval: Ends | None
    r: float | None
    """Pearson's correlation."""


@part
class Reliability:
    """What s(x) says of answers' rightness."""

    against: Literal["labels", "votes"]
    responses: int
    accuracy: float
    """Share of right responses, or mean share of agreeing ones."""
    auroc: float | None
    """P(a right response has the smaller s(x) than a wrong one), equal ones half; .5: it says
    nothing. None where all responses are right, or none is."""
    auroc_interval: Ends | None
    within: float | None
    """The same between responses to one question: does it choose among answers?"""
    length_auroc: float | None
    """The same as `auroc` of the number of tokens: what length alone would tell."""
    partial_r: float | None
    """Rank correlation of s(x) and rightness at equal length; below 0 where few neurons mean
    right."""
    partial_interval: Ends | None
    accuracy_at: tuple[float, ...]
    """Accuracy of the tenth, two tenths, ... of the responses with the smallest s(x): one minus
    the risk at that coverage."""
    bins: tuple[Bin, ...]
    trends: tuple[Trend, ...]

    @property
    def end(self) -> Literal["bottom", "top"] | None:
        """Where the right answers are: at the smallest s(x), at the largest, or the interval of
        `auroc` holds .5."""
        if self.auroc_interval is None:
            return None
        low, high = self.auroc_interval
        return "bottom" if low > 0.5 else "top" if high < 0.5 else None


def reliability(
    consensus_N: Sequence[int] | np.ndarray,
    tokens_N: Sequence[int] | np.ndarray,
    right_N: Sequence[float] | np.ndarray,
    question_N: Sequence[str],
    *,
    against: Literal["labels", "votes"] = "labels",
    domain_N: Sequence[str] | None = None,
    seed: int = 0,
) -> Reliability:
    """What s(x) says of the rightness of at least one response."""
    s_N, tokens_N = np.asarray(consensus_N, float), np.asarray(tokens_N, float)
    right_N = np.asarray(right_N, float)
    domains = np.asarray(["all"] * len(s_N) if domain_N is None else list(domain_N))
    names = [f"{d}\n{q}" for d, q in zip(domains.tolist(), question_N, strict=True)]
    _, question = np.unique(names, return_inverse=True)
    count_BP = metrics.resample_counts(int(question.max()) + 1, seed=seed, n=RESAMPLES)
    auroc_B = resampled_aurocs(s_N, right_N, question, count_BP)
    x_N, y_N, z_N = (metrics.ranks(values) for values in (s_N, right_N, tokens_N))
    value = auroc(s_N, right_N)
    partial = partial_correlations(x_N, y_N, z_N, np.ones((1, len(s_N))))[0]
    partial_B = np.concatenate(
        [partial_correlations(x_N, y_N, z_N, w_BN) for w_BN in _weights(count_BP, question)]
    )
    order = np.argsort(s_N, kind="stable")
    firsts = [max(1, round(share * len(s_N) / 10)) for share in range(1, 11)]
    return Reliability(
        against=against,
        responses=len(s_N),
        accuracy=float(right_N.mean()),
        auroc=_number(value),
        auroc_interval=_interval(value, auroc_B),
        within=_number(within(s_N, right_N, question)),
        length_auroc=_number(auroc(tokens_N, right_N)),
        partial_r=_number(partial),
        partial_interval=_interval(partial, partial_B),
        accuracy_at=tuple(float(right_N[order[:first]].mean()) for first in firsts),
        bins=bins(s_N, right_N, domains),
        trends=trends(s_N, right_N, domains, question, seed),
    )


def auroc(value_N: np.ndarray, right_N: np.ndarray) -> float:
    """P(a right response has the smaller value than a wrong one), equal values half; nan where
    there is no pair. A response that is right to a share counts as both, by its shares."""
    return float(_aurocs(value_N, right_N, np.ones((1, len(value_N))))[0])


def _aurocs(value_N: np.ndarray, right_N: np.ndarray, weight_BN: np.ndarray) -> np.ndarray:
    """float64_B: the same under weights of the responses."""
    order = np.argsort(value_N, kind="stable")
    sorted_N = value_N[order]
    starts_G = np.flatnonzero(np.concatenate([[True], sorted_N[1:] > sorted_N[:-1]]))
    right_BG = np.add.reduceat(weight_BN[:, order] * right_N[order], starts_G, axis=1)
    wrong_BG = np.add.reduceat(weight_BN[:, order] * (1 - right_N[order]), starts_G, axis=1)
    total_B = wrong_BG.sum(1)
    larger_BG = total_B[:, None] - np.cumsum(wrong_BG, axis=1)
    won_B = (right_BG * (larger_BG + 0.5 * wrong_BG)).sum(1)
    pairs_B = right_BG.sum(1) * total_B
    return np.divide(won_B, pairs_B, out=np.full(len(won_B), np.nan), where=pairs_B > 0)


def _weights(count_BP: np.ndarray, question_N: np.ndarray) -> Iterator[np.ndarray]:
    """Weights of the responses in resamples of their questions, some resamples at a time."""
    block = max(1, BLOCK // len(question_N))
    for first in range(0, len(count_BP), block):
        yield count_BP[first : first + block][:, question_N]


def resampled_aurocs(
    value_N: np.ndarray, right_N: np.ndarray, question_N: np.ndarray, count_BP: np.ndarray
) -> np.ndarray:
    """float64_B: `auroc` in resamples of the questions (numbers 0 to P - 1)."""
    weights = _weights(count_BP, question_N)
    return np.concatenate([_aurocs(value_N, right_N, weight_BN) for weight_BN in weights])


def within(value_N: np.ndarray, right_N: np.ndarray, question_N: np.ndarray) -> float:
    """`auroc` over pairs of responses to the same question; nan without any."""
    won = pairs = 0.0
    order = np.argsort(question_N, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(question_N[order])) + 1):
        smaller = value_N[group][:, None] < value_N[group][None]
        equal = value_N[group][:, None] == value_N[group][None]
        both = right_N[group][:, None] * (1 - right_N[group][None])
        np.fill_diagonal(both, 0.0)
        won += float((both * (smaller + 0.5 * equal)).sum())
        pairs += float(both.sum())
    return won / pairs if pairs else np.nan


def partial_correlations(
    x_N: np.ndarray, y_N: np.ndarray, z_N: np.ndarray, weight_BN: np.ndarray
) -> np.ndarray:
    """float64_B: the correlation of x and y given z, under weights; nan where one is constant.

    Where z is constant it is the plain correlation.
    """
    centred = [v - v.mean() for v in (x_N, y_N, z_N)]
    total_B = np.maximum(weight_BN.sum(1), 1e-300)
    mean = [weight_BN @ v / total_B for v in centred]

    def covariance(i: int, j: int) -> np.ndarray:
        return weight_BN @ (centred[i] * centred[j]) / total_B - mean[i] * mean[j]

    spread = [covariance(i, i) for i in range(3)]

    def correlation(i: int, j: int) -> np.ndarray:
        scale = np.sqrt(np.maximum(spread[i] * spread[j], 0))
        return np.divide(covariance(i, j), scale, out=np.zeros_like(scale), where=scale > 1e-12)

    xy, xz, yz = correlation(0, 1), correlation(0, 2), correlation(1, 2)
    left = np.sqrt(np.maximum((1 - xz**2) * (1 - yz**2), 0))
    # Without a spread of its own, or where z explains it whole, nothing is left to correlate.
    there = (spread[0] > 1e-12) & (spread[1] > 1e-12) & (left > 1e-6)
    return np.divide(xy - xz * yz, left, out=np.full_like(xy, np.nan), where=there)


def bins(s_N: np.ndarray, right_N: np.ndarray, domain_N: np.ndarray) -> tuple[Bin, ...]:
    """Fig. 2: ten bins of equal numbers of responses, by s(x) in units of its domain's spread; the
    accuracy in each minus the mean of the domains it draws from."""
    z_N, gain_N = np.zeros(len(s_N)), np.zeros(len(s_N))
    for domain in np.unique(domain_N):
        own = domain_N == domain
        z_N[own] = (s_N[own] - s_N[own].mean()) / (s_N[own].std() or 1.0)
        gain_N[own] = right_N[own] - right_N[own].mean()
    order = np.argsort(z_N, kind="stable")
    return tuple(
        Bin(
            responses=len(group),
            consensus=float(z_N[group].mean()),
            gain=float(gain_N[group].mean()),
        )
        for group in np.array_split(order, min(BINS, len(order)))
    )


def trends(
    s_N: np.ndarray, right_N: np.ndarray, domain_N: np.ndarray, question_N: np.ndarray, seed: int
) -> tuple[Trend, ...]:
    """Fig. 3: the least-squares line of rightness over s(x) in each domain."""
    found = []
    for domain in dict.fromkeys(domain_N.tolist()):
        own = domain_N == domain
        s_M, right_M = s_N[own], right_N[own]
        slope = interval = None
        r = metrics.pearson(s_M, right_M)
        if np.isfinite(r):
            z_M = (s_M - s_M.mean()) / s_M.std()
            _, question = np.unique(question_N[own], return_inverse=True)
            count_BP = metrics.resample_counts(int(question.max()) + 1, seed=seed, n=RESAMPLES)
            slope = r * float(right_M.std())
            slope_B = np.concatenate(
                [_slopes(z_M, right_M, w) for w in _weights(count_BP, question)]
            )
            interval = _interval(slope, slope_B)
        found.append(
            Trend(
                domain=domain, responses=int(own.sum()), accuracy=float(right_M.mean()),
                slope=slope, interval=interval, r=_number(r),
            )
        )  # fmt: skip
    return tuple(found)


def _slopes(x_N: np.ndarray, y_N: np.ndarray, weight_BN: np.ndarray) -> np.ndarray:
    total_B = np.maximum(weight_BN.sum(1), 1e-300)
    x_B, y_B = weight_BN @ x_N / total_B, weight_BN @ y_N / total_B
    spread_B = weight_BN @ x_N**2 / total_B - x_B**2
    both_B = weight_BN @ (x_N * y_N) / total_B - x_B * y_B
    return np.divide(both_B, spread_B, out=np.full_like(both_B, np.nan), where=spread_B > 1e-12)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(value: float, value_B: np.ndarray) -> Ends | None:
    """The middle 95 % of the resamples that have a value; None where the value has none itself."""
    if not np.isfinite(value):
        return None
    low, high = metrics.percentile_interval(value_B)
    return (float(low), float(high)) if np.isfinite(low) else None


def sentence(measured: Reliability) -> str:
    """The signal in one line."""
    if measured.auroc is None or measured.auroc_interval is None:
        yes, no = (
            ("are right", "are wrong") if measured.against == "labels" else ("agree", "differ")
        )
        alike = yes if measured.accuracy > 0.5 else no
        return f"s(x) tells nothing: all of {measured.responses} responses {alike}"
    low, high = measured.auroc_interval
    what = "right answers" if measured.against == "labels" else "answers that agree"
    where = {
        "bottom": f"{what} have the smaller s(x)",
        "top": f"{what} have the larger s(x)",
        None: "not told apart from chance",
    }[measured.end]
    length = "" if measured.length_auroc is None else f", by length {measured.length_auroc:.2f}"
    at_equal = ""
    if measured.partial_r is not None and measured.partial_interval is not None:
        ends = " to ".join(f"{end:+.2f}" for end in measured.partial_interval)
        at_equal = f", at equal length r {measured.partial_r:+.2f} ({ends})"
    return f"AUROC {measured.auroc:.2f} ({low:.2f} to {high:.2f}){length}{at_equal}: {where}"
