"""NEX a second time, straight from the equations: dictionaries, loops and no arrays.

Nothing is shared with `surgeon.nex` but the mixture of Eq. 21, which both take from scikit-learn.
`rows` is a list of (tokens, {neuron: mass}) pairs; `readings` is any object with the attributes of
`surgeon.nex.Readings`.
"""

import math
import warnings
from statistics import median
from typing import Any

EPS = 1e-6
Row = tuple[int, dict[int, float]]


def rows_of(acts: Any) -> list[Row]:
    """The rows of a recording."""
    rows = []
    for r in range(len(acts.tokens_R)):
        row = {}
        for e in range(int(acts.start_R1[r]), int(acts.start_R1[r + 1])):
            row[int(acts.neuron_E[e])] = float(acts.mass_E[e])
        rows.append((int(acts.tokens_R[r]), row))
    return rows


def slopes(rows: list[Row]) -> list[float]:
    """Eq. 1."""
    seen: set[int] = set()
    out = []
    for tokens, row in rows:
        out.append(len(set(row) - seen) / tokens)
        seen |= set(row)
    return out


def observations(s: list[float], readings: Any) -> tuple[list[float], float]:
    """Eq. 18-20, the line fitted by its normal equations; z and the MAD."""
    y = [math.log(1 + value) for value in s]
    x = [math.log(1 + readings.log_time_from + r) for r in range(len(s))]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    b = sum((u - mean_x) * (v - mean_y) for u, v in zip(x, y, strict=True))
    b /= sum((u - mean_x) ** 2 for u in x)
    residual = [v - (mean_y + b * (u - mean_x)) for u, v in zip(x, y, strict=True)]
    middle = median(residual)
    mad = median(abs(value - middle) for value in residual)
    return [(value - middle) / (mad + EPS) for value in residual], mad


def log_normal(z: float, mean: float, variance: float) -> float:
    """Eq. 21."""
    return -0.5 * (math.log(2 * math.pi * variance) + (z - mean) ** 2 / variance)


def likeliest_path(z: list[float], rho: float) -> list[bool]:
    """Eq. 22: best log-likelihood of every state at every row, then the way back."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(2, covariance_type="diag", random_state=0, max_iter=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture.fit([[value] for value in z])
    fitted: Any = mixture
    means = [float(m[0]) for m in fitted.means_]
    variances = [max(float(v[0]), 1e-6) for v in fitted.covariances_]
    stay = {True: math.log(rho), False: math.log(1 - rho)}
    best = [[math.log(0.5) + log_normal(z[0], means[q], variances[q]) for q in (0, 1)]]
    came_from = []
    for value in z[1:]:
        now, back = [], []
        for q in (0, 1):
            ways = [best[-1][p] + stay[p == q] for p in (0, 1)]
            back.append(ways.index(max(ways)))
            now.append(max(ways) + log_normal(value, means[q], variances[q]))
        best.append(now)
        came_from.append(back)
    state = best[-1].index(max(best[-1]))
    path = [state]
    for back in reversed(came_from):
        state = back[state]
        path.append(state)
    e_state = means.index(max(means))
    return [state == e_state for state in reversed(path)]


def without_short_runs(path: list[bool], readings: Any) -> list[bool]:
    """Sec. A.5, R3. Row by row: `owner[r]` is the decoded run whose state row r ends with."""
    run_of, n_runs = [], 0
    for r in range(len(path)):
        if r > 0 and path[r] != path[r - 1]:
            n_runs += 1
        run_of.append(n_runs)
    members = [[r for r in range(len(path)) if run_of[r] == i] for i in range(n_runs + 1)]
    states = [path[m[0]] for m in members if m]
    out = list(path)
    if len(states) < 2:
        return out
    if readings.short_run_joins == "previous":
        for i, rows in enumerate(members):
            if len(rows) < readings.min_run:
                for r in rows:
                    out[r] = out[members[i - 1][-1]] if i > 0 else states[1]
        return out
    before = None
    for i, rows in enumerate(members):
        if len(rows) >= readings.min_run:
            before = i
            continue
        last = i == len(members) - 1
        if before is None and last:
            continue
        if last or (before is not None and len(members[before]) >= len(members[i + 1])):
            assert before is not None
            members[before] = members[before] + rows
        else:
            members[i + 1] = rows + members[i + 1]
        members[i] = []
    for i, rows in enumerate(members):
        for r in rows:
            out[r] = states[i]
    return out


def explore(s: list[float], readings: Any) -> list[bool]:
    """Sec. 3.1 with R6."""
    if len(s) < readings.min_rows:
        return [False for _ in s]
    z, mad = observations(s, readings)
    if mad == 0 and readings.zero_mad == "residual":
        return without_short_runs([value > 0 for value in z], readings)
    if max(z) - min(z) < EPS:
        return [False for _ in s]
    return without_short_runs(likeliest_path(z, readings.rho), readings)


def credit(rows: list[Row], readings: Any, path: list[bool] | None = None) -> dict[str, Any]:
    """Eq. 2 and 5-10: {"effective": {neuron: m+}, "redundant": {neuron: m-}, ...}; `path` stands
    in for the decoded phases."""
    s = slopes(rows)
    path = explore(s, readings) if path is None else path
    found = []
    r = 0
    while r < len(rows):
        if not path[r]:
            r += 1
            continue
        e_rows, x_rows = [], []
        while r < len(rows) and path[r]:
            e_rows.append(r)
            r += 1
        while r < len(rows) and not path[r]:
            x_rows.append(r)
            r += 1
        if x_rows:
            found.append((e_rows, x_rows))
    judged = []
    for e_rows, x_rows in found:
        alpha: dict[int, float] = {}  # the mass of Eq. 9 and 10; its keys are N_i of Eq. 2
        for row in e_rows:
            earlier = {k for j in range(row) for k in rows[j][1]}
            for k, mass in rows[row][1].items():
                if readings.credit == "active" or k not in earlier:
                    alpha[k] = alpha.get(k, 0.0) + mass
        reused = sum(m for row in x_rows for k, m in rows[row][1].items() if k in alpha)
        share = reused / (sum(m for row in x_rows for m in rows[row][1].values()) + EPS)
        median_e, median_x = median(s[row] for row in e_rows), median(s[row] for row in x_rows)
        cons = min(1.0, max(0.0, 1 - median_x / (median_e + EPS)))
        gate = median_e - median(s) > 0 and len(alpha) > 0
        judged.append((alpha, share, cons, gate))
    enter = [c for c in judged if c[3] or readings.reuse_median_over == "all"]
    effective: dict[int, float] = {}
    redundant: dict[int, float] = {}
    for alpha, share, cons, gate in judged:
        if not gate:
            continue
        progress = share - median(other[1] for other in enter)
        for k, mass in alpha.items():
            if progress > 0 and cons > 0:
                effective[k] = effective.get(k, 0.0) + mass * progress * cons
            else:
                redundant[k] = redundant.get(k, 0.0) + mass * abs(progress)
    return {
        "effective": effective,
        "redundant": redundant,
        "slopes": s,
        "explore": path,
        "cycles": len(found),
        "gated": sum(c[3] for c in judged),
    }


def weight_of(evidences: list[dict[str, Any]]) -> dict[int, float]:
    """Eq. 11 for every neuron with evidence."""
    out = {}
    for k in {k for e in evidences for side in ("effective", "redundant") for k in e[side]}:
        plus = sum(e["effective"].get(k, 0.0) for e in evidences)
        minus = sum(e["redundant"].get(k, 0.0) for e in evidences)
        out[k] = math.tanh(math.log((plus + EPS) / (minus + EPS)))
    return out


def score(rows: list[Row], weight: dict[int, float]) -> tuple[float, float, float]:
    """Eq. 12-16: score, reward, bad; nan auxiliaries for a response without mass."""
    b: dict[int, float] = {}
    for _, row in rows:
        for k, mass in row.items():
            b[k] = b.get(k, 0.0) + mass
    positive = sum(mass * max(weight.get(k, 0.0), 0.0) for k, mass in b.items())
    absolute = sum(mass * abs(weight.get(k, 0.0)) for k, mass in b.items())
    total = sum(b.values())
    fraction = positive / absolute if absolute > 0 else 0.0
    if not total > 0:
        return fraction, math.nan, math.nan
    return fraction, positive / total, (absolute - positive) / total


def model_score(responses: list[list[Row]], readings: Any) -> float:
    """Self-calibrated: weights from the responses, then their mean score (sec. 3.3, R4)."""
    weight = weight_of([credit(rows, readings) for rows in responses])
    counted = [
        score(rows, weight)[0]
        for rows in responses
        if any(row for _, row in rows) or readings.empty_response == "zero"
    ]
    return sum(counted) / len(counted)
