"""How good the label-free estimate of accuracy is, on recorded and on simulated votes.

    python -m benchmarks.estimate

The recorded votes are those of 19 merges of a built-in family (tests/data/votes.json); families of
fewer candidates are drawn from them.

In the simulation candidates answer prompts of unequal difficulty; a wrong answer is one of nine,
and half of the wrong answers are a candidate's habit on that prompt. Every row of the table is a
kind of family, drawn anew `DRAWS` times: regret of the pick (percentage points between the best
candidate and the one with the highest value), mean absolute error of the value as an accuracy, and
how often the 95 % interval of the vote holds the accuracy.
"""

# Shape letters: P prompts, C candidates, S samples of a prompt.

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import estimate, metrics

RECORDED = Path(__file__).parent.parent / "tests" / "data" / "votes.json"
SIZES, FAMILIES = (2, 3, 4, 6), 40
"""Candidates of the families drawn from the recorded one, and how many of each size."""
DRAWS, RESAMPLES = 100, 300
WRONG = 9
"""Wrong answers of a prompt."""
HABIT = 0.5
"""Chance that a wrong answer is the candidate's usual one on that prompt."""
DIFFICULTY = 1.5
"""Standard deviation of the prompts' difficulty, in log-odds."""
ATTRACTION = 0.8
"""Chance that an error on a trap is the answer which all find tempting."""
TRAPPED = 0.4
"""By what a trap multiplies the chance of a right answer."""


class Kind(NamedTuple):
    """A kind of family."""

    name: str
    candidates: int
    prompts: int = 60
    samples: int = 3
    accuracy: tuple[float, float] = (0.2, 0.8)
    """Lowest and highest accuracy of a candidate."""
    good: int = 0
    """Candidates that are better by half of what the others lack; 0 is no such split."""
    copies: int = 0
    """Candidates that repeat the first one's habits (and errors out of habit are all it makes)."""
    traps: float = 0.0
    """Share of the prompts on which all are tempted by one wrong answer."""


KINDS = (
    *(Kind(f"{size} candidates", size) for size in (2, 3, 4, 6, 10, 20)),
    *(Kind(f"{prompts} prompts", 8, prompts=prompts) for prompts in (10, 25, 100)),
    *(Kind(f"{samples} samples", 8, samples=samples) for samples in (1, 2, 8)),
    Kind("nearly equal", 8, accuracy=(0.55, 0.6)),
    Kind("most are bad", 8, accuracy=(0.1, 0.25), good=2),
    Kind("all are bad", 8, accuracy=(0.02, 0.1)),
    Kind("half are copies", 8, accuracy=(0.3, 0.7), copies=4),
    Kind("most are copies", 8, accuracy=(0.3, 0.7), copies=6),
    Kind("shared errors", 8, traps=0.3),
    Kind("mostly shared errors", 8, traps=0.8),
)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def means(rng: np.random.Generator, kind: Kind) -> np.ndarray:
    """float64_C: the candidates' accuracies where no prompt is a trap, about."""
    mean_C = rng.uniform(*kind.accuracy, kind.candidates)
    mean_C[: kind.good] += (1 - mean_C[: kind.good]) / 2
    mean_C[: kind.copies] = mean_C[0] if kind.copies else mean_C[:0]
    return mean_C


def draw(
    rng: np.random.Generator, kind: Kind, mean_C: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(int64_PCS, float64_C): votes as `surgeon.estimate` takes them, and the accuracy of every
    candidate on all prompts of the kind; `mean_C` is from `means`, by default drawn."""
    shape = (kind.prompts, kind.candidates, kind.samples)
    mean_C = means(rng, kind) if mean_C is None else mean_C
    difficulty_P = rng.normal(0, DIFFICULTY, kind.prompts)
    # So that the mean over prompts is about what was asked for (a logistic-normal mean).
    centre_C = np.log(mean_C / (1 - mean_C)) * math.sqrt(1 + DIFFICULTY**2 / 2.89)

    def chances(difficulty_N: np.ndarray) -> np.ndarray:
        return sigmoid(centre_C[None] - difficulty_N[:, None])

    trap_P = rng.random(kind.prompts) < kind.traps
    right_PC = chances(difficulty_P) * np.where(trap_P, TRAPPED, 1)[:, None]
    usual_PC = rng.integers(1, WRONG + 1, shape[:2])
    usual_PC[:, : kind.copies] = usual_PC[:, :1]
    habit_C = np.full(kind.candidates, HABIT)
    habit_C[: kind.copies] = 1
    wrong_PCS = np.where(
        rng.random(shape) < habit_C[None, :, None],
        usual_PC[..., None],
        rng.integers(1, WRONG + 1, shape),
    )
    tempted_PCS = trap_P[:, None, None] & (rng.random(shape) < ATTRACTION)
    wrong_PCS = np.where(tempted_PCS, 1, wrong_PCS)
    # Copies err on the same prompts too.
    luck_PCS = rng.random(shape)
    luck_PCS[:, : kind.copies] = luck_PCS[:, :1]
    answer_PCS = np.where(luck_PCS < right_PC[..., None], 0, wrong_PCS)
    everywhere_C = chances(np.random.default_rng(0).normal(0, DIFFICULTY, 4000)).mean(0)
    return answer_PCS, everywhere_C * (1 - kind.traps * (1 - TRAPPED))


def own_agreement(answer_PCS: np.ndarray) -> np.ndarray:
    """float64_C: share of a candidate's samples that give its own most frequent answer."""
    return np.nan_to_num(estimate.shares(answer_PCS)).max(-1).mean(0)


def measure(kind: Kind, seed: int) -> list[float]:
    """Regrets of own agreement, Dawid-Skene and the vote; errors of the last two; coverage."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(DRAWS):
        answer_PCS, truth_C = draw(rng, kind)
        votes = estimate.estimate(answer_PCS)
        fitted_C = estimate.dawid_skene(answer_PCS).accuracy_C
        ends_C2 = estimate.interval(
            votes, metrics.resampled_means(votes.match_PC, seed=n, n=RESAMPLES)
        )
        held_C = (ends_C2[:, 0] <= truth_C) & (truth_C <= ends_C2[:, 1])
        values = (own_agreement(answer_PCS), fitted_C, votes.accuracy_C)
        rows.append(
            [
                *(metrics.regret_at_1(value_C, truth_C) for value_C in values),
                *(np.abs(value_C - truth_C).mean() for value_C in values[1:]),
                held_C.mean(),
            ]
        )
    return np.nanmean(rows, axis=0).tolist()


def recorded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbered answers_PCS, NEX_C and accuracy_C of the recorded family."""
    stored = json.loads(RECORDED.read_text())
    words = [line.split(" ") for line in stored["answers"]]
    answer_PCS = estimate.numbered(
        [[[None if a == "-" else a for a in word] for word in line] for line in words]
    )
    return answer_PCS, np.array(stored["nex"]), np.array(stored["accuracy"])


def measure_recorded(size: int) -> list[float]:
    """Mean regrets of NEX, own agreement, Dawid-Skene, the vote, and NEX times the vote."""
    answer_PCS, nex_C, truth_C = recorded()
    rng, rows = np.random.default_rng(size), []
    for _ in range(FAMILIES if size < len(truth_C) else 1):
        drawn = np.sort(rng.choice(len(truth_C), size, replace=False))
        part_PCS, nex_D = answer_PCS[:, drawn], nex_C[drawn]
        vote_D = estimate.estimate(part_PCS).accuracy_C
        fitted_D = estimate.dawid_skene(part_PCS).accuracy_C
        values = (nex_D, own_agreement(part_PCS), fitted_D, vote_D, nex_D * vote_D)
        rows.append([metrics.regret_at_1(value_D, truth_C[drawn]) for value_D in values])
    return np.nanmean(rows, axis=0).tolist()


def main() -> None:
    print(
        "| candidates | NEX | own agreement | Dawid-Skene | estimate | NEX x estimate |\n"
        "|---|---|---|---|---|---|"
    )
    for size in (*SIZES, len(recorded()[2])):
        cells = " | ".join(f"{regret:.1f}" for regret in measure_recorded(size))
        print(f"| {size} | {cells} |", flush=True)
    print(
        "| family | regret (pp): own agreement | Dawid-Skene | vote | error: Dawid-Skene | vote "
        "| interval holds |\n|---|---|---|---|---|---|---|"
    )
    for seed, kind in enumerate(KINDS):
        own, fitted, vote, fitted_error, error, held = measure(kind, seed)
        print(
            f"| {kind.name} | {own:.1f} | {fitted:.1f} | {vote:.1f} | {fitted_error:.3f} "
            f"| {error:.3f} | {held:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
