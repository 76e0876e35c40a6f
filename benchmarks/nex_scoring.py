"""Stored entries per second of each stage of NEX scoring, on recordings made on the spot."""

# Shapes: E stored entries (row, neuron), R rows, N neurons.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import numpy as np

from benchmarks._timing import cpu_seconds
from surgeon import nex
from surgeon.activations import Activations

TARGET = 30e6
"""Stored entries per second on one core, mixture fits apart."""


def recording(
    *, rows: int = 300, keys: int = 8000, neurons: int = 350_000, seed: int = 0
) -> Activations:
    """A response of 32-token rows with `keys` neurons each: a few neurons fire nearly everywhere,
    and 7 rows in every 20 recruit many that haven't fired yet."""
    rng = np.random.default_rng(seed)
    shuffled_N = rng.permutation(neurons)
    seen, row_keys = keys, [np.sort(shuffled_N[:keys])]
    for row in range(1, rows):
        fresh = int(rng.poisson(1800 if row % 20 < 7 else 350))
        common = np.unique((seen * rng.random(3 * keys) ** 4).astype(np.int64))
        common = rng.choice(common, min(keys - fresh, len(common)), replace=False)
        row_keys.append(np.sort(shuffled_N[np.append(common, np.arange(seen, seen + fresh))]))
        seen += fresh
    neuron_E = np.concatenate(row_keys)
    return Activations(
        neuron_E=neuron_E,
        mass_E=rng.gamma(1.0, size=len(neuron_E)).astype(np.float32),
        start_R1=np.cumsum([0, *map(len, row_keys)]),
        tokens_R=np.full(rows, 32, np.int32),
    )


def main() -> float:
    """Print every stage; returns stored entries per second of all of them but the phases."""
    neurons = 350_000
    acts = recording(neurons=neurons)
    first_K = nex.first_seen(acts)
    slope_R = nex.novelty(acts, first_K)
    explore_R = nex.phases(slope_R)
    evidence = nex.cycle_credit(acts, first_K, slope_R, explore_R)
    weight_N = nex.weights(*nex.accumulate([evidence], neurons))
    neuron_K, mass_K = nex.response_mass(acts)
    stages: dict[str, Callable[[], object]] = {
        "novelty": lambda: nex.novelty(acts, nex.first_seen(acts)),
        "cycle credit": lambda: nex.cycle_credit(acts, first_K, slope_R, explore_R),
        "accumulate, weights": lambda: nex.weights(*nex.accumulate([evidence], neurons)),
        "response mass": lambda: nex.response_mass(acts),
        "Good-Mass Fraction": lambda: nex.good_mass_fraction(neuron_K, mass_K, weight_N),
    }
    entries = len(acts.neuron_E)
    print(
        f"NEX scoring: {len(slope_R)} rows, {entries / 1e6:.1f} M entries, "
        f"{len(neuron_K):,} neurons used, {evidence.cycles} cycles ({evidence.gated} gated)"
    )
    taken = {name: cpu_seconds(work, 7) for name, work in stages.items()}
    for name, time_s in taken.items():
        print(f"  {name:<20} {time_s * 1e3:7.2f} ms  {entries / time_s / 1e6:8.0f} M entries/s")
    total = sum(taken.values())
    verdict = "reached" if entries / total >= TARGET else "missed"
    print(
        f"  {'all':<20} {total * 1e3:7.2f} ms  {entries / total / 1e6:8.0f} M entries/s "
        f"(target {TARGET / 1e6:.0f}: {verdict})"
    )
    phase_s = cpu_seconds(lambda: nex.phases(slope_R), 7)
    print(f"  {'phases (apart)':<20} {phase_s * 1e3:7.2f} ms per response")
    return entries / total


if __name__ == "__main__":
    main()
