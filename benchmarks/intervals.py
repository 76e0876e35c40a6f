"""Intervals whose weights are learned anew in every resample: their cost, and what they cover.

    python -m benchmarks.intervals            the cost against a plain loop, on made-up responses
    python -m benchmarks.intervals RANKING    the coverage, on the kept evidence of a ranking

Coverage: the recorded prompts of a candidate are the population, and its NEX on all of them is the
value to be covered. Mini-sets are drawn from them with replacement; the table says how often the
95 % interval of a mini-set covers that value, by several ways, and how often the candidates that
are not told apart from the best, of six drawn at random, hold the best of them.
"""

# Shapes: N responses, P prompts, B resamples, J groups left out, C candidates, W ways.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._timing import cpu_seconds
from surgeon import evidence_file, metrics, nex

RESAMPLES, DRAWS = 300, 80
"""Of a mini-set in the coverage table, and mini-sets drawn."""
SIZES = (40, 100)
FAMILY = 6
"""Candidates among which the best is looked for."""
TARGET = 20
"""Times faster than the loop."""


class Candidate(NamedTuple):
    """A candidate's recorded responses."""

    name: str
    responses: list[nex.Response]
    prompt_N: np.ndarray


def read(ranking: Path) -> list[Candidate]:
    """The candidates of a ranking, from their kept evidence."""
    found = []
    for directory in sorted((ranking / "candidates").iterdir()):
        kept = evidence_file.read(directory, rows=False)
        ids = {
            prompt: n for n, prompt in enumerate(dict.fromkeys(r.prompt_id for r in kept.responses))
        }
        responses = [nex.Response(r.evidence, r.neuron_K, r.mass_K) for r in kept.responses]
        prompt_N = np.array([ids[r.prompt_id] for r in kept.responses])
        found.append(Candidate(directory.name, responses, prompt_N))
    return found


def mini_set(one: Candidate, drawn_P: np.ndarray) -> Candidate:
    """The candidate's responses to drawn prompts; one drawn twice is two prompts."""
    places = [np.flatnonzero(one.prompt_N == prompt) for prompt in drawn_P]
    prompt_N = np.repeat(np.arange(len(drawn_P)), [len(p) for p in places])
    return Candidate(one.name, [one.responses[n] for p in places for n in p], prompt_N)


class Drawn(NamedTuple):
    """What a mini-set says of a candidate's NEX."""

    point: float
    value_B: np.ndarray
    """In resamples of the prompts, weights learned anew."""
    left_J: np.ndarray
    """Without each group of prompts, weights learned anew."""
    crossed_B: np.ndarray
    """In resamples, cross-fitted, moved to lie about the point."""
    held_B: np.ndarray
    """In resamples, weights held as they were learned from the mini-set."""
    rounding: float
    """Share of the weighted mass that counts for weights made of rounding (R18)."""


def drawn(one: Candidate, prompts: int, seed: int) -> Drawn:
    """As `rank` does it."""
    count_BP = metrics.resample_counts(prompts, seed=seed, n=RESAMPLES)
    whole_1P = np.ones((1, prompts))
    count_XP = np.concatenate([whole_1P, count_BP, metrics.left_out_counts(prompts)])
    value_X = nex.relearned(one.responses, one.prompt_N, count_XP)
    half_P = np.arange(prompts) % 2
    np.random.default_rng(seed).shuffle(half_P)
    crossed_X = nex.relearned(
        one.responses, one.prompt_N, np.concatenate([whole_1P, count_BP]), fold_P=half_P
    )
    crossed_B = crossed_X[1:] - crossed_X[0] + value_X[0]
    split = 1 + len(count_BP)
    return Drawn(
        float(value_X[0]), value_X[1:split], value_X[split:], crossed_B, held(one, count_BP),
        rounding(one),
    )  # fmt: skip


def rounding(one: Candidate) -> float:
    """The share of a mini-set's weighted mass that counts for weights made of rounding."""
    n_neurons = 1 + max(int(r.neuron_K.max(initial=0)) for r in one.responses)
    evidences = [r.evidence for r in one.responses]
    weight_N = nex.weights(*nex.accumulate(evidences, n_neurons))
    faint_N = nex.faint_share(evidences, n_neurons)
    shares = [nex.resting_on(r.neuron_K, r.mass_K, weight_N, faint_N) for r in one.responses]
    return float(np.nan_to_num(np.nanmean(shares)))


def held(one: Candidate, count_BP: np.ndarray) -> np.ndarray:
    """float64_B: the resampled scores with the weights held as they were learned."""
    n_neurons = 1 + max(int(r.neuron_K.max(initial=0)) for r in one.responses)
    weight_N = nex.weights(*nex.accumulate([r.evidence for r in one.responses], n_neurons))
    score_N = [nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N).score for r in one.responses]
    prompts = count_BP.shape[1]
    sums_P = np.bincount(one.prompt_N, score_N, prompts)
    n_P = np.bincount(one.prompt_N, minlength=prompts)
    return (count_BP @ sums_P) / (count_BP @ n_P)


WAYS = ("as here", "not widened", "cross-fitted", "resamples' spread alone", "weights held")


def ends(found: Drawn) -> list[tuple[float, float]]:
    """The 95 % interval by each of `WAYS`."""
    point, value_B = np.array([found.point]), found.value_B[:, None]
    corrected_12 = metrics.corrected_interval(point, value_B, found.left_J[:, None])
    return [
        tuple(metrics.widened(corrected_12, np.array([found.rounding]))[0]),
        tuple(corrected_12[0]),
        tuple(metrics.corrected_interval(point, found.crossed_B[:, None])[0]),
        tuple(metrics.corrected_interval(point, value_B)[0]),
        tuple(metrics.percentile_interval(found.held_B)),
    ]


def coverage(found: Sequence[Candidate], size: int) -> None:
    """Print how often the intervals of mini-sets of that size hold the NEX of all prompts, and the
    candidates that aren't told apart from the best the best of a family."""
    prompts = int(found[0].prompt_N.max()) + 1
    truth_C = np.array(
        [nex.relearned(c.responses, c.prompt_N, np.ones((1, prompts)))[0] for c in found]
    )
    # Every candidate answers the same mini-sets, so that they can be compared.
    sets = np.random.default_rng(size).integers(prompts, size=(DRAWS, size))
    rows = []
    for one, truth in zip(found, truth_C, strict=True):
        by_set = [drawn(mini_set(one, set_P), size, n) for n, set_P in enumerate(sets)]
        rows.append(by_set)
        holds_XW = [[low <= truth <= high for low, high in ends(d)] for d in by_set]
        cells = " | ".join(f"{share:.2f}" for share in np.mean(holds_XW, 0))
        print(f"| {one.name} | {size} | {cells} |", flush=True)
    rng, inside, sizes = np.random.default_rng(size), [], []
    for n in range(DRAWS):
        part_C = rng.choice(len(found), min(FAMILY, len(found)), replace=False)
        point_C = np.array([rows[c][n].point for c in part_C])
        value_BC = np.stack([rows[c][n].value_B for c in part_C], 1)
        may_C = metrics.may_be_best(point_C, value_BC)
        inside.append(may_C[truth_C[part_C].argmax()])
        sizes.append(may_C.sum())
    print(
        f"  {size} prompts, {len(part_C)} candidates at random: {np.mean(inside):.2f} of the sets "
        f"not told apart hold the best; they have {np.mean(sizes):.1f} candidates",
        flush=True,
    )


def made_up(prompts: int = 100, neurons: int = 1536, seed: int = 0) -> Candidate:
    """Three responses a prompt that use a third of the neurons and credit a tenth of these."""
    rng, responses = np.random.default_rng(seed), []
    for _ in range(3 * prompts):
        neuron_K = np.sort(rng.choice(neurons, neurons // 3, replace=False))
        credited_K = neuron_K[rng.random(len(neuron_K)) < 0.1]
        value_K, sign_K = rng.gamma(1, 1e-2, len(credited_K)), rng.random(len(credited_K)) < 0.7
        evidence = nex.Evidence(
            credited_K, value_K * sign_K, value_K * ~sign_K, np.zeros(len(credited_K)),
            np.zeros(0), np.zeros(0, bool), 1, 1,
        )  # fmt: skip
        mass_K = rng.gamma(1, 1, len(neuron_K)).astype(np.float32)
        responses.append(nex.Response(evidence, neuron_K, mass_K))
    return Candidate("made up", responses, np.repeat(np.arange(prompts), 3))


def loop(one: Candidate, count_BP: np.ndarray, neurons: int) -> list[float]:
    """The same values, one resample after another."""
    found = []
    for count_P in count_BP.astype(int):
        drawn = [
            r for r, p in zip(one.responses, one.prompt_N, strict=True) for _ in range(count_P[p])
        ]
        weight_N = nex.weights(*nex.accumulate([r.evidence for r in drawn], neurons))
        scores = [nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N).score for r in drawn]
        found.append(float(np.mean(scores)))
    return found


def main() -> None:
    if len(sys.argv) > 1:
        found = read(Path(sys.argv[1]))
        print(f"| candidate | prompts | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
        for size in SIZES:
            coverage(found, size)
        return
    one, few = made_up(), 20
    count_BP = metrics.resample_counts(100, n=2000)
    fast = cpu_seconds(lambda: nex.relearned(one.responses, one.prompt_N, count_BP), 3) / 2000
    slow = cpu_seconds(lambda: loop(one, count_BP[:few], 1536), 2) / few
    verdict = "reached" if slow / fast >= TARGET else "missed"
    print(
        f"weights learned anew, 300 responses, 1,536 neurons: {1e3 * fast:.2f} ms a resample, a "
        f"plain loop {1e3 * slow:.1f} ms: {slow / fast:.0f}x (target {TARGET}: {verdict})"
    )


if __name__ == "__main__":
    main()
