"""A probe over whole trajectories, beside the detectors (Probe Trajectories, arXiv:2605.18549).

That paper reads a linear probe along the reasoning and finds that its features have to be pooled by
their maximum: means and last tokens tell next to nothing. Here the probe sees a level's channels,
each by its largest magnitude in the response, and says whether the response fails anywhere.
"""

# Shapes: N traces, C channels, T tokens.

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from surgeon.neureasoner.detectors import Quality, quality
from surgeon.neureasoner.steps import Span
from surgeon.traces import Key


def pooled(x_TC: np.ndarray) -> np.ndarray:
    """float64_C: each channel's largest magnitude over the tokens of a response."""
    return np.abs(np.asarray(x_TC, float)).max(0)


def failing_traces(spans: Sequence[Span], level: str) -> dict[Key, bool]:
    """Of each trace that was looked at for a level: whether it fails anywhere. Counterparts end
    with the step they were made for, so they are left out."""
    found: dict[Key, bool] = {}
    for span in spans:
        if span.level == level and (span.failing or span.pair is None or level == "instance"):
            found[span.key] = found.get(span.key, False) or span.failing
    return found


def probe_quality(
    pooled_NC: np.ndarray,
    failing_N: np.ndarray,
    problem_N: np.ndarray,
    held_out: Collection[int],
    *,
    seed: int = 0,
) -> Quality | None:
    """How well a logistic regression on standardised pooled channels tells failing responses of
    the held-out problems; None where either part lacks failing or other ones.

    It fires from a probability of .5 on, both kinds weighted alike.
    """
    from sklearn.linear_model import LogisticRegression

    test_N = np.isin(problem_N, list(held_out))
    if any(len(set(failing_N[part_N].tolist())) < 2 for part_N in (test_N, ~test_N)):
        return None
    mean_C, spread_C = pooled_NC[~test_N].mean(0), pooled_NC[~test_N].std(0)
    z_NC = (pooled_NC - mean_C) / np.where(spread_C > 0, spread_C, 1.0)
    probe = LogisticRegression(class_weight="balanced", max_iter=1000)
    probe.fit(z_NC[~test_N], failing_N[~test_N])
    probability_N = probe.predict_proba(z_NC[test_N])[:, 1]
    return quality(probability_N, failing_N[test_N], problem_N[test_N], threshold=0.5, seed=seed)


def probed(
    pooled_by_trace: Mapping[Key, np.ndarray],
    spans: Sequence[Span],
    level: str,
    columns: Sequence[int],
    held_out: Collection[str],
    *,
    seed: int = 0,
) -> Quality | None:
    """The probe of one level; `columns` are its channels among the pooled ones, and `held_out` the
    ids of the problems that it isn't trained on."""
    failing = {k: v for k, v in failing_traces(spans, level).items() if k in pooled_by_trace}
    if not failing:
        return None
    ids = sorted({key[0] for key in failing})
    return probe_quality(
        np.array([pooled_by_trace[key][list(columns)] for key in failing]),
        np.array(list(failing.values()), bool),
        np.array([ids.index(key[0]) for key in failing]),
        {ids.index(name) for name in held_out if name in ids},
        seed=seed,
    )
