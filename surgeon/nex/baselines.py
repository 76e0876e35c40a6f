"""The baselines that NEX is compared with (sec. 4.4, Fig. 1a)."""

# Shapes: T tokens, R rows.

import math
from collections.abc import Sequence

import numpy as np


def hes(entropy_T: np.ndarray) -> float:
    """High-entropy sum: the next-token entropies of a response summed, in nats."""
    return float(entropy_T.sum(dtype=np.float64))


def mean_logprob(logprob_T: np.ndarray) -> float:
    """Mean token log-probability under the generating model, in nats; nan for an empty response."""
    return float(logprob_T.mean(dtype=np.float64)) if len(logprob_T) else math.nan


def row_entropy(entropy_T: np.ndarray, tokens_R: np.ndarray) -> np.ndarray:
    """Mean next-token entropy of each row, float64_R in nats; `tokens_R` sums to the length of
    `entropy_T`, every row has a token."""
    total_T1 = np.concatenate([[0.0], np.cumsum(entropy_T, dtype=np.float64)])
    end_R = np.cumsum(tokens_R)
    return (total_T1[end_R] - total_T1[end_R - tokens_R]) / tokens_R


def entropy_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Number of each response's rows whose entropy is above the 80th percentile of all rows given
    (Fig. 1a; the percentile is the reading of `entropy_top20`); nan for one without rows."""
    lengths = np.array([len(row_R) for row_R in rows], float)
    return entropy_top20(rows) * lengths


def entropy_top20(rows: Sequence[np.ndarray], *, pooled: bool = True) -> np.ndarray:
    """Share of each response's rows whose entropy is above the 80th percentile, one float64 per
    response; `rows` holds the row entropies of every response of every candidate, nan for one
    without rows.

    A reading: the percentile is that of all rows given, not of the response's own as the paper
    words it, because within a response the share is about 0.2 whatever the response is
    (`pooled=False`).
    """
    whole = np.concatenate(rows) if rows else np.zeros(0)
    bar = np.percentile(whole, 80) if len(whole) else math.nan
    return np.array(
        [
            np.mean(row_R > (bar if pooled else np.percentile(row_R, 80)))
            if len(row_R)
            else math.nan
            for row_R in rows
        ]
    )
