"""The chosen units of a transplant against the mean of each control's seeds: `python -m
benchmarks.family.controls runs/transplant/truth`.

Differences are paired by problem; intervals are bootstrapped over problems, not over seeds.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

CONTROLS = ("random", "random-active", "mass-matched")
CHOSEN = "effective"


class Against(NamedTuple):
    """What the chosen units gain over a control, in shares of 1."""

    seeds: int
    accuracy: float
    """Mean of the control's seeds."""
    difference: float
    interval: tuple[float, float]
    """Of 95 %, over problems."""


def against(answers: Path, control: str, resamples: int = 4000) -> Against:
    """The chosen units' accuracy less the mean of a control's seeds on the same problems."""
    files = sorted(answers.glob(f"{control}-[0-9].jsonl"))
    control_P = np.mean([_correct(file) for file in files], axis=0)
    difference_P = _correct(answers / f"{CHOSEN}.jsonl") - control_P
    n = len(difference_P)
    drawn = difference_P[np.random.default_rng(0).integers(0, n, (resamples, n))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = float(difference_P.mean())
    return Against(len(files), float(control_P.mean()), found, (float(low), float(high)))


def _correct(file: Path) -> np.ndarray:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return np.array([row["correct"] for row in rows], dtype=np.float64)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.controls")
    parser.add_argument("truth", type=Path, help="the evaluation: runs/transplant/truth")
    args = parser.parse_args()
    for control in CONTROLS:
        found = against(args.truth / "answers", control)
        low, high = (100 * end for end in found.interval)
        print(
            f"{CHOSEN} over {control}, {found.seeds} seeds (mean accuracy {found.accuracy:.3f}): "
            f"{100 * found.difference:+.1f} pp ({low:+.1f} to {high:+.1f})"
        )


if __name__ == "__main__":
    main()
