"""Features kept online (Alg. 2): the cost of a token, and what many tokens leave of their digits.

A token must cost the same however long the window is, and the features must stay those of a plain
transform of the window, however many tokens there were.
"""

# Shape letters: B rows of a batch, T tokens, C channels.

import os
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from benchmarks._timing import cpu_seconds
from surgeon.neureasoner.features import FEATURES, OnlineFeatures, spectral_features
from surgeon.settings.neureasoner import WatchSettings

ROWS, CHANNELS = 8, 96
SHORT, LONG = 100, 100_000
STEP = 40
"""Tokens of a step in every row but the first, whose only step never ends."""
TIMED = 200
"""Tokens that are timed together."""
FLAT = 1.1
"""Times the cost at `SHORT` tokens."""
DRIFT = 1e-5


def direct_features(level: str, x_TC: Tensor, probes: Sequence[float]) -> Tensor:
    """Features (C, X) of one window in the form of Alg. 2, by a plain transform at the probes."""
    x_TC = x_TC.abs().double()
    y_TC = x_TC - x_TC.mean(0)
    angle_PT = torch.tensor(probes, dtype=torch.float64)[:, None] * torch.arange(len(x_TC))
    power_PC = (angle_PT.cos() @ y_TC).square() + (angle_PT.sin() @ y_TC).square()
    energy_C = y_TC.square().sum(0)
    return spectral_features(level, power_PC[None], energy_C[None], len(probes) // 2)[0]


def feed(online: OnlineFeatures, x_TC: Tensor, steps: bool = False) -> None:
    """Every row gets the same tokens; with `steps`, the rows after the first end theirs."""
    counted_B, rows = np.ones(ROWS, bool), range(1, ROWS)
    for t, x_C in enumerate(x_TC, 1):
        online.push(x_C.expand(ROWS, -1), counted_B)
        if steps and t % STEP == 0 and t < len(x_TC):
            online.end_step(rows)


def drift(online: OnlineFeatures, x_TC: Tensor) -> float:
    """Print and return the largest difference from a plain transform, of values below about 20."""
    settings, worst = online.settings, 0.0
    for level in FEATURES:
        k = settings.steps(level)
        last = x_TC[: k * STEP] if level == "instance" else x_TC[-k * STEP :]
        found = online.features(level, [0, 1])
        plain = torch.stack([direct_features(level, x, settings.probes) for x in (x_TC, last)])
        off = (found - plain).abs().flatten(1).amax(1)
        print(f"  {level:<9} the whole {off[0]:.1e}, {k} steps of {STEP} {off[1]:.1e}")
        worst = max(worst, float(off.max()))
    return worst


def main() -> None:
    """Print the drift after 100,000 tokens, then the cost of a token there and after 100."""
    x_TC = torch.randn(LONG, CHANNELS, generator=torch.Generator().manual_seed(0)) + 3
    settings = WatchSettings()
    old, young = (OnlineFeatures(ROWS, CHANNELS, settings) for _ in range(2))
    print(f"Online features: {ROWS} rows, {CHANNELS} channels, {len(settings.probes)} probes")
    total = cpu_seconds(lambda: feed(old, x_TC, steps=True), 1)
    print(f"{LONG:,} tokens took {total:.1f} CPU seconds; then, off a plain transform of")
    worst = drift(old, x_TC)
    verdict = "met" if worst <= DRIFT else "missed"
    print(f"  largest   {worst:.1e}; target <= {DRIFT:.0e}: {verdict}")

    names = ("a token", "reading all levels")
    best = {(name, n): float("inf") for name in names for n in (SHORT, LONG)}
    for _ in range(30):
        for b in range(ROWS):
            young.reset(b)
        feed(young, x_TC[:SHORT])
        for n, online in ((SHORT, young), (LONG, old)):
            for name, work in zip(
                names,
                (
                    lambda o=online: feed(o, x_TC[:TIMED]),
                    lambda o=online: [o.features(level, range(ROWS)) for level in FEATURES],
                ),
                strict=True,
            ):
                best[name, n] = min(best[name, n], cpu_seconds(work, 1))
    print(f"CPU milliseconds in windows of {SHORT} and {LONG:,} tokens, shortest of 30 in turns")
    for name, tokens in zip(names, (TIMED, 1), strict=True):
        short, long = (1e3 * best[name, n] / tokens for n in (SHORT, LONG))
        verdict = "met" if long <= FLAT * short else "missed"
        print(
            f"  {name:<19}{short:9.3f} {long:9.3f}  ratio {long / short:.3f}; target <= {FLAT}: "
            f"{verdict}"
        )
    short, long = (
        1e3 * cpu_seconds(lambda n=n: direct_features("intra", x_TC[:n], settings.probes), 3)
        for n in (SHORT, LONG)
    )
    print(f"  {'a plain transform':<19}{short:9.3f} {long:9.3f}  ratio {long / short:.0f}, one row")


if __name__ == "__main__":
    main()
