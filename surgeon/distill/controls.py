"""Other demonstrations than those of the nearest contribution sets: what the neurons' choice is
held against. Arrays in, positions out.

    random      any others (Neuron-OPSD sec. 5.2; `nopsd.random_contexts`)
    length      for each nearest one another of about its length: does a context help by its size?
    answer      others with the same first answer: does the teacher copy the answer?
    embedding   the nearest by the cosine of the questions' mean last-layer states: does it take
                neurons to find them?
"""

# Shapes: N questions of the pool, Q queries, K demonstrations, D model width.

from collections.abc import Sequence

import numpy as np


def of_like_lengths(
    near_QK: Sequence[Sequence[int]],
    length_N: np.ndarray,
    *,
    queries: Sequence[int],
    candidates: np.ndarray,
) -> list[list[int]]:
    """For each query's neighbours, in their order, the candidate of the nearest length that is
    neither the query, nor one of its neighbours, nor taken; of equally near ones the first of the
    pool."""
    found = []
    for query, near_K in zip(queries, near_QK, strict=True):
        free = [int(i) for i in candidates if i != query and i not in set(near_K)]
        shots: list[int] = []
        for neighbour in near_K[: len(free)]:
            shot = min(free, key=lambda i: (abs(int(length_N[i]) - int(length_N[neighbour])), i))
            free.remove(shot)
            shots.append(shot)
        found.append(shots)
    return found


def of_the_same_answer(
    answer_N: Sequence[str | None],
    k: int,
    *,
    queries: Sequence[int],
    candidates: np.ndarray,
    seed: int = 0,
) -> list[list[int]]:
    """Up to `k` random candidates that gave the query's answer; none where it gave none."""
    found = []
    for query in queries:
        order = np.random.default_rng([seed, int(query)]).permutation(candidates)
        same = [int(i) for i in order if i != query and answer_N[i] == answer_N[query]]
        found.append([] if answer_N[query] is None else same[:k])
    return found


def nearest_by_cosine(
    vector_ND: np.ndarray, k: int, *, queries: Sequence[int], candidates: np.ndarray
) -> tuple[list[list[int]], list[list[float]]]:
    """The `k` candidates at the smallest cosine distance from each query, and their distances; of
    equally near ones the first of the pool."""
    unit_ND = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)
    found, distances = [], []
    for query in queries:
        others = candidates[candidates != query]
        distance = 1.0 - unit_ND[others] @ unit_ND[query]
        nearest = np.argsort(distance, kind="stable")[:k]
        found.append(others[nearest].tolist())
        distances.append(distance[nearest].tolist())
    return found, distances
