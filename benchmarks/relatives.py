"""The estimate of accuracy beside its published relatives, on recorded and on simulated votes.

    python -m benchmarks.relatives

vote                 surgeon.estimate: the others' vote, own samples left out
one coin             Dawid and Skene 1979 with one accuracy per candidate; own samples vote too
one coin, left out   the same, a candidate judged by the other candidates' samples only
confusion            Dawid and Skene 1979 with a confusion matrix per candidate
MACE                 Hovy et al. 2013: a candidate knows the answer, or gives one of its habits
pairs                accuracies whose products are the agreements of pairs (rank one: Parisi et al.
                     2014, Platanios et al. 2014, if wrong answers never coincide)
on the line          agreement on the line (Baek et al. 2022, ALine-S): it needs labels of other
                     problems, on which these candidates' accuracies are known, and isn't label-free

Each cell: regret of the favourite in percentage points, and mean absolute error of the accuracies.
Simulated families are those of benchmarks/estimate.py; their answers are renamed in every prompt,
as the names of open-ended answers mean nothing. Recorded answers are digits, whose names mean
something to `confusion` and `MACE`. The labelled problems of `on the line` are 100 prompts without
traps, the recorded ones those of the family "built-in".
"""

# Shape letters: P prompts, C candidates, S samples of a prompt, A classes of answers of a prompt.

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.estimate import KINDS, WRONG, Kind, draw, means
from surgeon import estimate, metrics

RECORDED = Path(__file__).parent / "recorded_answers.json"
DRAWS, ROUNDS, STARTS = 40, 50, 5
SMOOTH = 0.1
"""Added to counts: nobody is sure for ever."""

Accuracies = Callable[[np.ndarray], np.ndarray]


def one_hot(answer_PCS: np.ndarray) -> np.ndarray:
    """float64_PCSA, all 0 where an answer can't be read."""
    n_classes = int(answer_PCS.max(initial=0)) + 1
    return (answer_PCS[..., None] == np.arange(n_classes)).astype(float)


def posterior(log_PA: np.ndarray, given_PA: np.ndarray) -> np.ndarray:
    return estimate.chances(log_PA, given_PA)


def judged(answer_PCS: np.ndarray, chance_PA: np.ndarray) -> np.ndarray:
    """float64_C: mean chance of a candidate's answers to be right."""
    right_PCS = np.einsum("pcsa,pa->pcs", one_hot(answer_PCS), chance_PA)
    return right_PCS.mean((0, 2))


def vote(answer_PCS: np.ndarray) -> np.ndarray:
    return estimate.estimate(answer_PCS).accuracy_C


def one_coin(answer_PCS: np.ndarray) -> np.ndarray:
    return estimate.dawid_skene(answer_PCS).accuracy_C


def one_coin_left_out(answer_PCS: np.ndarray) -> np.ndarray:
    share_PCA = np.nan_to_num(estimate.shares(answer_PCS))
    others_CC = 1 - np.eye(share_PCA.shape[1])
    accuracy_C = np.full(share_PCA.shape[1], 0.6)
    for _ in range(ROUNDS):
        chance_PCA = estimate.left_out_chances(answer_PCS, accuracy_C, others_CC)
        accuracy_C = (chance_PCA * share_PCA).sum(-1).mean(0)
    return accuracy_C


def confusion(answer_PCS: np.ndarray) -> np.ndarray:
    hot_PCSA = one_hot(answer_PCS)
    share_PCA = hot_PCSA.mean(2)
    given_PA = share_PCA.sum(1) > 0
    chance_PA = posterior(np.log(share_PCA.mean(1) + 1e-9), given_PA)
    n_classes = chance_PA.shape[1]
    for _ in range(ROUNDS):
        prior_A = (chance_PA.sum(0) + SMOOTH) / (chance_PA.sum() + SMOOTH * n_classes)
        # Rows: the true class; columns: the answer given.
        count_CAB = np.einsum("pa,pcsb->cab", chance_PA, hot_PCSA) + SMOOTH
        count_CAB += SMOOTH * n_classes * np.eye(n_classes)
        log_CAB = np.log(count_CAB / count_CAB.sum(-1, keepdims=True))
        chance_PA = posterior(np.log(prior_A) + np.einsum("cab,pcsb->pa", log_CAB, hot_PCSA),
                              given_PA)  # fmt: skip
    return judged(answer_PCS, chance_PA)


def mace(answer_PCS: np.ndarray, seed: int = 0) -> np.ndarray:
    """The likeliest of several starts, as published."""
    rng, hot_PCSA = np.random.default_rng(seed), one_hot(answer_PCS)
    read_PCS = hot_PCSA.sum(-1)
    given_PA = hot_PCSA.sum((1, 2)) > 0
    n_classes, found = given_PA.shape[1], []
    for start in range(STARTS):
        knows_C = (
            rng.uniform(0.1, 0.9, hot_PCSA.shape[1]) if start else np.full(hot_PCSA.shape[1], 0.5)
        )
        habit_CA = np.full((len(knows_C), n_classes), 1 / n_classes)
        log_PA = np.zeros(given_PA.shape)
        for _ in range(ROUNDS):
            habit_PCS = np.einsum("pcsa,ca->pcs", hot_PCSA, habit_CA)
            by_habit_PCS = (1 - knows_C)[:, None] * habit_PCS
            lift_PCS = np.log1p(knows_C[:, None] / np.maximum(by_habit_PCS, 1e-12)) * read_PCS
            base_P = (np.log(np.maximum(by_habit_PCS, 1e-12)) * read_PCS).sum((1, 2))
            log_PA = base_P[:, None] + np.einsum("pcs,pcsa->pa", lift_PCS, hot_PCSA)
            chance_PA = posterior(log_PA, given_PA)
            is_PCS = np.einsum("pcsa,pa->pcs", hot_PCSA, chance_PA)
            known_PCS = is_PCS * knows_C[:, None] / (knows_C[:, None] + by_habit_PCS)
            n_C = read_PCS.sum((0, 2))
            knows_C = (known_PCS.sum((0, 2)) + SMOOTH) / (n_C + 2 * SMOOTH)
            habit_CA = np.einsum("pcs,pcsa->ca", read_PCS - known_PCS, hot_PCSA) + SMOOTH
            habit_CA /= habit_CA.sum(1, keepdims=True)
        most_P1 = log_PA.max(1, keepdims=True)
        likely = (most_P1[:, 0] + np.log(np.exp(log_PA - most_P1).sum(1))).sum()
        found.append((likely, start, judged(answer_PCS, posterior(log_PA, given_PA))))
    return max(found)[2]


def agreement_CC(answer_PCS: np.ndarray) -> np.ndarray:
    """float64_CC: how often a sample of one gives the answer of a sample of the other."""
    share_PCA = np.nan_to_num(estimate.shares(answer_PCS))
    return np.einsum("pca,pda->cd", share_PCA, share_PCA) / len(share_PCA)


def pairs(answer_PCS: np.ndarray) -> np.ndarray:
    agree_CC = agreement_CC(answer_PCS)
    np.fill_diagonal(agree_CC, 0)
    accuracy_C = np.full(len(agree_CC), np.sqrt(agree_CC.sum() / max(1, agree_CC.size)))
    for _ in range(ROUNDS):
        others_C = (accuracy_C**2).sum() - accuracy_C**2
        accuracy_C = np.clip(0.5 * accuracy_C + 0.5 * (agree_CC @ accuracy_C) / others_C, 0.01, 1)
    return accuracy_C


def on_the_line(
    answer_PCS: np.ndarray, labelled_PCS: np.ndarray, known_C: np.ndarray
) -> np.ndarray:
    """float64_C: accuracies from those on labelled problems, by the line of the agreements."""
    from scipy.stats import norm

    upper = np.triu_indices(answer_PCS.shape[1], 1)
    here, there = (
        norm.ppf(np.clip(agreement_CC(votes)[upper], 0.01, 0.99))
        for votes in (answer_PCS, labelled_PCS)
    )
    if len(here) < 2 or np.ptp(there) == 0:
        return np.full(len(known_C), np.nan)
    slope, bias = np.polyfit(there, here, 1)
    return norm.cdf(slope * norm.ppf(np.clip(known_C, 0.01, 0.99)) + bias)


RELATIVES: dict[str, Accuracies] = {
    "vote": vote, "one coin": one_coin, "one coin, left out": one_coin_left_out,
    "confusion": confusion, "MACE": mace, "pairs": pairs,
}  # fmt: skip


def renamed(answer_PCS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other names for the answers of every prompt."""
    names_PA = np.stack([rng.permutation(WRONG + 1) for _ in answer_PCS])
    return np.take_along_axis(names_PA[:, None], answer_PCS.reshape(len(answer_PCS), 1, -1), 2)[
        :, 0
    ].reshape(answer_PCS.shape)


def errors(found: Sequence[np.ndarray], truth_C: np.ndarray) -> list[tuple[float, float]]:
    return [
        (metrics.regret_at_1(value_C, truth_C), float(np.abs(value_C - truth_C).mean()))
        for value_C in found
    ]


def simulated(kind: Kind, seed: int) -> np.ndarray:
    """float64_X2: regret and error by each relative, mean over draws."""
    rng, rows = np.random.default_rng(seed), []
    easy = Kind("labelled", kind.candidates, prompts=100, samples=kind.samples)
    for _ in range(DRAWS):
        mean_C = means(rng, kind)
        answer_PCS, truth_C = draw(rng, kind, mean_C)
        labelled_PCS, _ = draw(rng, easy, mean_C)
        known_C = (labelled_PCS == 0).mean((0, 2))
        line_C = on_the_line(answer_PCS, labelled_PCS, known_C)
        answer_PCS = renamed(answer_PCS, rng)
        found = [*(relative(answer_PCS) for relative in RELATIVES.values()), line_C]
        rows.append(errors(found, truth_C))
    return np.array(rows).mean(0)


def recorded() -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """Family -> digits (int64_PCS), accuracies, and the candidates' names."""
    found = {}
    for name, family in json.loads(RECORDED.read_text()).items():
        rows = [[[estimate.UNREADABLE if a == "-" else int(a) for a, _, _ in samples]
                 for samples in row] for row in family["responses"]]  # fmt: skip
        found[name] = np.array(rows), np.array(family["accuracy"]), family["candidates"]
    return found


def main() -> None:
    print(f"| family | {' | '.join(RELATIVES)} | on the line |\n|---|{'---|' * 7}", flush=True)

    def line(name: str, cells: Sequence[Sequence[float]]) -> None:
        texts = [f"{regret:.1f}, {error:.3f}".replace("nan, nan", "-") for regret, error in cells]
        print(f"| {name} | {' | '.join(texts)} |", flush=True)

    families = recorded()
    labelled_PCS, known_C, names = families["built-in"]
    for name, (answer_PCS, truth_C, candidates) in families.items():
        same = [names.index(candidate) for candidate in candidates]
        found = [relative(answer_PCS) for relative in RELATIVES.values()]
        line_C = np.full(len(truth_C), np.nan)
        if name != "built-in":
            line_C = on_the_line(answer_PCS, labelled_PCS[:, same], known_C[same])
        line(f"recorded: {name}", errors([*found, line_C], truth_C))
    for seed, kind in enumerate(KINDS):
        line(kind.name, simulated(kind, seed).tolist())


if __name__ == "__main__":
    main()
