"""Intervals whose weights are learned anew in every resample: their cost, and what they cover.

    python -m benchmarks.intervals            the cost against a plain loop, on made-up responses
    python -m benchmarks.intervals RANKING    the coverage, on the kept evidence of a ranking

Coverage: the recorded prompts of a candidate are the population, and its NEX on all of them is the
value to be covered. Mini-sets are drawn from them with replacement; the table says how often the
95 % interval of a mini-set covers that value, and how often the candidates that are not told apart
from the best hold the best of the population.
"""

# Shapes: N responses, P prompts, B resamples, C candidates.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._timing import cpu_seconds
from surgeon import evidence_file, metrics, nex

RESAMPLES, DRAWS = 400, 200
"""Of a mini-set in the coverage table, and mini-sets drawn."""
SIZES = (20, 40, 60, 100)
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


def values(one: Candidate, prompts: int, seed: int, fold_P: np.ndarray | None = None) -> np.ndarray:
    """float64_B1: the score of the responses first, then that of every resample of the prompts."""
    count_BP = metrics.resample_counts(prompts, seed=seed, n=RESAMPLES)
    count_BP = np.concatenate([np.ones((1, prompts)), count_BP])
    return nex.relearned(one.responses, one.prompt_N, count_BP, fold_P=fold_P)


def held(one: Candidate, prompts: int, seed: int) -> np.ndarray:
    """The same with the weights held as they were learned from the mini-set."""
    n_neurons = 1 + max(int(r.neuron_K.max(initial=0)) for r in one.responses)
    weight_N = nex.weights(*nex.accumulate([r.evidence for r in one.responses], n_neurons))
    score_N = [nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N).score for r in one.responses]
    sums_P = np.bincount(one.prompt_N, score_N, prompts)
    n_P = np.bincount(one.prompt_N, minlength=prompts)
    count_BP = metrics.resample_counts(prompts, seed=seed, n=RESAMPLES)
    count_BP = np.concatenate([np.ones((1, prompts)), count_BP])
    return (count_BP @ sums_P) / (count_BP @ n_P)


def coverage(one: Candidate, size: int) -> tuple[float, float]:
    """How often the interval of a mini-set covers the NEX of all prompts: with the weights learned
    anew, and with the weights held."""
    prompts = int(one.prompt_N.max()) + 1
    truth = nex.relearned(one.responses, one.prompt_N, np.ones((1, prompts)))[0]
    rng, anew, fixed = np.random.default_rng(size), 0, 0
    for seed in range(DRAWS):
        drawn = mini_set(one, rng.integers(prompts, size=size))
        value_B = values(drawn, size, seed)
        low, high = metrics.corrected_interval(value_B[:1], value_B[1:, None])[0]
        anew += int(low <= truth <= high)
        low, high = metrics.percentile_interval(held(drawn, size, seed)[1:])
        fixed += int(low <= truth <= high)
    return anew / DRAWS, fixed / DRAWS


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
        print("candidate, prompts: learned anew, held")
        for one in read(Path(sys.argv[1])):
            for size in SIZES:
                anew, fixed = coverage(one, size)
                print(f"  {one.name:<14} {size:4d}: {anew:6.1%} {fixed:6.1%}", flush=True)
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
