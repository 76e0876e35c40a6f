"""What stopping early saves and costs: `rank --adaptive` on recorded and on simulated answers.

    python -m benchmarks.adaptive
    python -m benchmarks.adaptive RANKING [SEEDS [held]]

The second replays a finished ranking from its kept evidence, without a model, as `rank --adaptive`
would have run with each of `SEEDS` seeds: NEX is learned anew from what was asked, and in every
resample; with `held` it is that of the weights learned from all responses, at every tolerance. Its
accuracies are those of the ranking's truth.

Recorded: all answers of the candidates of three families (benchmarks/recorded_answers.json: every
response's answer, NEX and tokens, and the candidates' accuracies on other problems). A race asks
their prompts in another order for each of `SEEDS` seeds and sees only what it asked; NEX is that
of the weights learned from all responses. Simulated: the families of benchmarks/estimate.py, all
responses equally long, NEX 1.

Columns: tokens as a share of the full ranking's (mean, highest); accuracy lost against the full
ranking's pick in percentage points (mean, highest; below 0: gained); races whose pick is the same
or within 1 pp of it; candidates left at the end.
"""

# Shape letters: P prompts, C candidates, S samples of a prompt.

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.estimate import KINDS, draw
from surgeon import artifact, evidence_file, metrics, nex
from surgeon.rank import rounds
from surgeon.rank.conclusion import best_first, values
from surgeon.rank.scores import RECOMMENDED, SCORES, Pool, Resamples
from surgeon.ranking import CandidateScores, RankedResponse, Ranking

RECORDED = Path(__file__).parent / "recorded_answers.json"
SEEDS = 20
TOLERANCES = (0.0, 0.01, 0.02, 0.05)
SIMULATED = (
    "4 candidates",
    "10 candidates",
    "20 candidates",
    "100 prompts",
    "nearly equal",
    "most are bad",
)


class Answers(NamedTuple):
    """Everything that the candidates of a family would answer."""

    responses: dict[str, tuple[RankedResponse, ...]]
    accuracy_C: np.ndarray


def response(prompt_id: str, sample: int, answer: str | None, score: float, tokens: int):
    return RankedResponse(
        prompt_id=prompt_id, sample=sample, tokens=tokens, finished=True, answer=answer, nex=score,
        reward=math.nan, bad=math.nan, credible=True, empty=False, cycles=0, gated=0,
        explore_segments=0, kept_mass=1.0, entropy_R=(), measured={},
    )  # fmt: skip


def recorded() -> dict[str, Answers]:
    """By family."""
    found = {}
    for name, family in json.loads(RECORDED.read_text()).items():
        responses = {}
        for c, candidate in enumerate(family["candidates"]):
            rows = [
                (f"{p}", s, None if answer == "-" else answer, score / 1000, tokens)
                for p, row in enumerate(family["responses"])
                for s, (answer, score, tokens) in enumerate(row[c])
            ]
            responses[candidate] = tuple(response(*row) for row in rows)
        found[name] = Answers(responses, np.array(family["accuracy"]))
    return found


def ranked(directory: Path) -> Answers:
    """Of a ranking on disk."""
    accuracy = {c.name: c.accuracy for c in artifact.read(Ranking, directory).candidates}
    responses = {
        name: artifact.read(CandidateScores, directory / "candidates" / name).responses
        for name in accuracy
    }
    return Answers(responses, np.array(list(accuracy.values()), float))


def simulated(name: str, seed: int) -> Answers:
    """A family of benchmarks/estimate.py."""
    kind = next(kind for kind in KINDS if kind.name == name)
    answer_PCS, accuracy_C = draw(np.random.default_rng(seed), kind)
    responses = {
        f"{c}": tuple(
            response(f"{p}", s, f"{answer_PCS[p, c, s]}", 1.0, 1)
            for p in range(answer_PCS.shape[0])
            for s in range(answer_PCS.shape[2])
        )
        for c in range(answer_PCS.shape[1])
    }
    return Answers(responses, accuracy_C)


def pool(responses: dict[str, tuple[RankedResponse, ...]], prompt_ids: Sequence[str]) -> Pool:
    return Pool(list(prompt_ids), responses, nex.DEFAULT)


def race(family: Answers, seed: int, tolerance: float) -> tuple[float, float, int]:
    """(share of the tokens, accuracy lost in pp against the full ranking, candidates left)."""
    scores = {name: SCORES[name] for name in (*RECOMMENDED, "recommended")}
    names = list(family.responses)
    prompt_ids = list(
        dict.fromkeys(r.prompt_id for rows in family.responses.values() for r in rows)
    )
    seen: dict[str, tuple[RankedResponse, ...]] = dict.fromkeys(names, ())

    def ask(answering: Sequence[str], asked: Sequence[str]) -> Pool:
        for name in answering:
            seen[name] = tuple(r for r in family.responses[name] if r.prompt_id in asked)
        return pool(seen, asked)

    rules = rounds.Race(scores, "recommended", tolerance, None, seed)
    done = list(rounds.run(rules, names, rounds.shuffled(prompt_ids, seed), ask))
    left = rounds.left_after(names, done)
    asked = rounds.shuffled(prompt_ids, seed)[: done[-1].prompts]
    # As `rank` concludes: the best of those left by all that was seen.
    value_C = values(scores, pool(seen, asked), seed)[0]["recommended"]
    picked = next(c for c in best_first(value_C) if names[c] in left)
    whole_C = values(scores, pool(family.responses, prompt_ids), seed)[0]["recommended"]
    full = best_first(whole_C)[0]
    whole = sum(r.tokens for rows in family.responses.values() for r in rows)
    lost = 100 * (family.accuracy_C[full] - family.accuracy_C[picked])
    return done[-1].tokens / whole, float(lost), len(left)


def replayed(directory: Path, seed: int, tolerance: float) -> tuple[float, float, int]:
    """As `race`, of a ranking on disk, with NEX learned anew in every round."""
    ranking = artifact.read(Ranking, directory)
    scores = {name: SCORES[name] for name in (*RECOMMENDED, "recommended")}
    names = [c.name for c in ranking.candidates]
    places = {name: directory / "candidates" / name for name in names}
    stored = {n: artifact.read(CandidateScores, place).responses for n, place in places.items()}
    kept = {name: evidence_file.read(place, rows=False) for name, place in places.items()}
    prompt_ids = list(dict.fromkeys(r.prompt_id for rows in stored.values() for r in rows))
    seen: dict[str, tuple[RankedResponse, ...]] = dict.fromkeys(names, ())
    anew: dict[str, dict[str, Resamples]] = {name: {} for name in names}

    def ask(answering: Sequence[str], asked: Sequence[str]) -> Pool:
        place = {prompt_id: n for n, prompt_id in enumerate(asked)}
        count_BP = metrics.resample_counts(len(asked), seed=seed)
        for name in names:
            if name not in answering:
                anew[name] = {}
                continue
            own = [r for r in kept[name].responses if r.prompt_id in place]
            n_neurons = kept[name].n_layers * kept[name].d_ff
            weight_N = nex.weights(*nex.accumulate((r.evidence for r in own), n_neurons))
            score = {
                (r.prompt_id, r.sample): nex.good_mass_fraction(
                    r.neuron_K, r.mass_K, weight_N
                ).score
                for r in own
            }
            seen[name] = tuple(
                replace(r, nex=score[r.prompt_id, r.sample])
                for r in stored[name]
                if r.prompt_id in place
            )
            responses = [nex.Response(r.evidence, r.neuron_K, r.mass_K) for r in own]
            prompt_N = np.array([place[r.prompt_id] for r in own])
            anew[name]["nex"] = Resamples(nex.relearned(responses, prompt_N, count_BP), None)
        return pool(seen, asked)._replace(relearned={n: dict(found) for n, found in anew.items()})

    rules = rounds.Race(scores, "recommended", tolerance, None, seed)
    done = list(rounds.run(rules, names, rounds.shuffled(prompt_ids, seed), ask))
    left = rounds.left_after(names, done)
    picked = done[-1].leader or left[0]
    accuracy = {c.name: c.accuracy or 0.0 for c in ranking.candidates}
    full = ranking.recommendation.name if ranking.recommendation else names[0]
    whole = sum(c.tokens for c in ranking.candidates)
    print(f"seed {seed}: {done[-1].tokens:,} of {whole:,} tokens, {picked}", flush=True)
    return done[-1].tokens / whole, 100 * (accuracy[full] - accuracy[picked]), len(left)


def line(name: str, tolerance: float, races: Sequence[tuple[float, float, int]]) -> None:
    share, lost, left = (np.array(column) for column in zip(*races, strict=True))
    print(
        f"| {name} | {100 * tolerance:g} | {share.mean():.0%} | {share.max():.0%} "
        f"| {lost.mean():.1f} | {lost.max():.1f} | {(lost <= 1 + 1e-9).sum()}/{len(races)} "
        f"| {left.mean():.1f} |",
        flush=True,
    )


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    races = []
    held = sys.argv[3:] == ["held"]
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else SEEDS
    if directory is not None and not held:
        races = [replayed(directory, seed, 0.02) for seed in range(seeds)]
    print(
        "| family | tolerance | tokens | highest | lost (pp) | highest | within 1 pp | left |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    if directory is not None and not held:
        line(directory.name, 0.02, races)
        return
    families = recorded() if directory is None else {directory.name: ranked(directory)}
    for name, family in families.items():
        for tolerance in TOLERANCES:
            line(name, tolerance, [race(family, seed, tolerance) for seed in range(seeds)])
    if directory is not None:
        return
    for name in SIMULATED:
        races = [race(simulated(name, seed), seed, 0.02) for seed in range(SEEDS)]
        line(name, 0.02, races)


if __name__ == "__main__":
    main()
