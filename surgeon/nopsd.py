"""Neuron-OPSD: Neuron-Aware Data Selection for Annotation-Free LLM Self-Distillation.

A model answers a pool of unlabelled questions. The FFN neurons that push towards the tokens it
generated make up the set N(x) of each question. The size of the set is its consensus (few neurons:
the model is sure), the overlap of two sets says that two questions are reasoned about alike. The
questions with the highest consensus are trained on: the model that sees only the question is drawn
towards a slow copy of itself that also sees its own answers to the nearest other questions. Arrays
in, arrays out: no model, no file, no hidden randomness.

Equation -> function:

    1, 10      reverse KL on the student's own rollouts    reverse_kl
    2          activation of the units                     surgeon.contributions (it runs the model)
    3          contribution to the generated token         contribution
    sec. 3.3   the set N(x): top-K per token, union        contribution_set
    4          consensus s(x) = |N(x)|                     contribution_set
    Alg. 1     the share b of the pool to train on         select
    5          Jaccard distance                            nearest, mean_distance
    6          the K nearest others as demonstrations      nearest; control: random_contexts
    7, 8       student and teacher                         surgeon.distill (two prompts, one model)
    9          moving average of the weights               surgeon.training.Teacher
    Tab. 5     room for sharpening, without labels         room_for_sharpening
    Tab. 6     entropy gap between teacher and student     entropy_gap
    sec. 5.2   reasoning diversity of the pool             mean_distance

Readings: places where the paper is silent or contradicts itself, held by
`surgeon.settings.nopsd.NopsdReadings`.

    R9   Sec. 3.3 keeps the top 5,000 neurons of each token over all layers and takes the union over
         tokens, for s and J alike (`main`). App. A keeps the top 2,000 of each layer in each chunk
         of tokens, a neuron's score being its maximum within and across chunks, then the top 5,000
         over all layers (`appendix`). There s(x) is counted before that last step, after which it
         would be nearly constant; J is taken after it. In both, only neurons that push towards the
         token count (score above 0). Budgets may be shares of all neurons, for small models.
    act  Eq. 2 is written for an FFN without a gate. App. A hooks the activation function, which in
         a gated FFN gives act(gate) alone (`gate`, default); the unit's true output is
         act(gate) * up (`gated`).
    R24  A mixture of experts, which the paper doesn't treat: unit j of expert e is a neuron of its
         own, its score is times its expert's routing weight, its activation is `gated`, and shares
         are of the units that a token passes through.
    R13  A demonstration is the question and the answer text after the thinking (`answer`), or the
         whole response (`response`).
    R14  The loss is the mean over response tokens; Eq. 10 sums them (`sum`, per response).
    R19  The teacher sees a conversation: each demonstration is a turn, question and answer, the
         nearest last, before the question; a system message of the question stands first. The
         paper shows no prompt.
    R20  Tab. 6's "logprob entropy" is the entropy of the whole next-token distribution, of student
         and teacher at the tokens of the student's zero-shot answer, averaged over an answer's
         tokens and then over questions.
    b    The share is taken by rank, ties in the pool's order, so that exactly that many are chosen
         (Algorithm 1's percentile would admit all ties).
    K    Equal distances are ordered by position in the pool.
"""

# Shapes: N sets (questions of the pool), Q queries, K neighbours, E stored entries (set, neuron),
# L layers, F units per layer, T tokens, D model width, V vocabulary.

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon.settings.nopsd import NopsdReadings as Readings
from surgeon.settings.nopsd import Selection

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def budget(amount: float, n: int) -> int:
    """A number of neurons out of `n`: `amount` itself, or that share of `n` when it is below 1."""
    return min(n, int(amount) if amount >= 1 else max(1, round(amount * n)))


# ---------------------------------------------------------------- Eq. 2-4: contribution sets


def contribution(activation_TF: Tensor, down_DF: Tensor, unembedding_TD: Tensor) -> Tensor:
    """Early-unembedding scores (T, F) of a layer's units for the generated tokens, Eq. 3.

    Row t of `activation_TF` is at the position that predicts token t, whose unembedding row is
    row t of `unembedding_TD`.
    """
    return activation_TF * (unembedding_TD.to(down_DF.dtype) @ down_DF)  # Eq. 3


class ContributionSet(NamedTuple):
    """N(x) of one response, and its consensus."""

    neuron_K: np.ndarray
    """Keys layer * F + unit, int32 ascending."""
    consensus: int
    """s(x), Eq. 4: the size of the set; under `appendix` before the top over all layers (R9)."""


def contribution_set(
    scores: Iterable[Tensor], readings: Readings, passed: int | None = None
) -> ContributionSet:
    """N(x) and s(x) of a response from its scores (T, L, F), chunk after chunk of tokens.

    Shares are of the `passed` units that a token passes through; by default it passes all.

    The chunks' size matters under `appendix` only, where a neuron competes within its chunk.
    """
    best_LF: Tensor | None = None
    for score_TLF in scores:
        T, L, F = score_TLF.shape
        if best_LF is None:
            best_LF = score_TLF.new_zeros(L, F)
        if readings.sets == "main":
            flat_TN = score_TLF.reshape(T, L * F)
            top_TK, at_TK = flat_TN.topk(budget(readings.top_global, passed or L * F), sorted=False)
            best_LF.view(-1).index_fill_(0, at_TK[top_TK > 0], 1.0)  # sec. 3.3: union over tokens
        else:
            chunk_LF = score_TLF.amax(0)
            top_LK, at_LK = chunk_LF.topk(budget(readings.top_layer, F), sorted=False)
            kept_LF = torch.zeros_like(chunk_LF).scatter_(1, at_LK, top_LK)
            torch.maximum(best_LF, kept_LF, out=best_LF)  # App. A: maximum over chunks
    if best_LF is None:
        return ContributionSet(np.empty(0, np.int32), 0)
    best_N = best_LF.view(-1)
    neuron_K = best_N.nonzero()[:, 0]
    consensus = len(neuron_K)
    if readings.sets == "appendix":
        most = budget(readings.top_global, passed or len(best_N))
        if consensus > most:
            neuron_K = neuron_K[best_N[neuron_K].topk(most).indices].sort().values
    return ContributionSet(neuron_K.cpu().numpy().astype(np.int32), consensus)


class Sets(NamedTuple):
    """The sets of a pool, one after the other."""

    neuron_E: np.ndarray
    """int32 keys, ascending within a set."""
    start_N1: np.ndarray
    """int64; set i is `neuron_E[start_N1[i]:start_N1[i + 1]]`."""
    n_neurons: int

    @property
    def size_N(self) -> np.ndarray:
        """int64 sizes."""
        return np.diff(self.start_N1)


def gather(sets: Sequence[np.ndarray], n_neurons: int) -> Sets:
    """Sets of neuron keys, each ascending, as one `Sets`."""
    start_N1 = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    neuron_E = np.concatenate([np.empty(0, np.int32), *sets]).astype(np.int32, copy=False)
    return Sets(neuron_E, start_N1, n_neurons)


# ---------------------------------------------------------------- Algorithm 1, stage 2: selection


def select(consensus_N: np.ndarray, selection: Selection, *, seed: int = 0) -> np.ndarray:
    """Positions, ascending, of the questions to train on; always at least one.

    `bottom` and `top` keep `share` of the pool with the smallest and largest s(x); `band` those
    between two shares of the ranking; `random` as many as `bottom`, drawn with `seed`; `all` all.
    `auto` is decided before, by `surgeon.distill`.
    """
    how, band = selection.select, selection.band
    N = len(consensus_N)
    count = max(1, round(selection.share * N))
    order_N = np.argsort(consensus_N, kind="stable")
    if how == "band":
        first = min(round(band[0] * N), N - 1)
        chosen = order_N[first : max(first + 1, round(band[1] * N))]
    elif how == "random":
        chosen = np.random.default_rng(seed).permutation(N)[:count]
    else:
        chosen = {"bottom": order_N[:count], "top": order_N[N - count :], "all": order_N}[how]
    return np.sort(chosen)


# ---------------------------------------------------------------- Eq. 5-6: overlap

COMMON = 0.06
"""A neuron in more than this share of the sets is counted by a dense product, the others by a
sparse one; where the two cost about the same."""
BLOCK = 1024
"""Sets compared with as many others at once."""
COLUMNS = 8192
"""Neurons of a dense product."""


class Neighbours(NamedTuple):
    """The nearest other sets of each query, nearest first."""

    index_QK: np.ndarray
    """int64 positions."""
    distance_QK: np.ndarray
    """float64 Jaccard distances, Eq. 5."""


class _Overlaps:
    """Sizes of intersections, block against block.

    A sparse product of two blocks costs, for each neuron, the product of how many sets of either
    hold it; a dense one costs the same for every neuron. So rare neurons are counted by a sparse
    product and common ones by dense products, `COLUMNS` at a time.
    """

    def __init__(self, sets: Sets, order_N: np.ndarray, edges: Sequence[slice]):
        count = _popularity(sets)
        # Part 0 holds the rare neurons, the next ones the common. A neuron of one set only is in
        # no intersection, thus in no part (-1).
        common = count > COMMON * len(sets.size_N)
        part = np.where(count < 2, -1, np.where(common, 1 + (np.cumsum(common) - 1) // COLUMNS, 0))
        self.n_parts = 2 + (int(common.sum()) - 1) // COLUMNS
        column = np.zeros(len(count), np.int32)
        widths = []
        for number in range(self.n_parts):
            chosen = part == number
            column[chosen] = np.arange(chosen.sum())
            widths.append(int(chosen.sum()))
        self.size_N = sets.size_N[order_N].astype(np.float64)
        self.ones = np.ones(0, np.float32)
        self.parts = {rows.start: self._rows(sets, order_N[rows], part, column, widths)
                      for rows in edges}  # fmt: skip
        self.by_neuron = {start: self._with_ones(parts[0].T.tocsr())
                          for start, parts in self.parts.items()}  # fmt: skip

    def _rows(
        self, sets: Sets, members: np.ndarray, part: np.ndarray, column: np.ndarray, widths: list
    ) -> list["csr_matrix"]:
        """The sets of a block as one sparse matrix per part."""
        from scipy import sparse

        size = sets.size_N[members]
        row_E = np.repeat(np.arange(len(members)), size)
        first = np.cumsum(size) - size
        neuron_E = sets.neuron_E[np.arange(len(row_E)) + (sets.start_N1[members] - first)[row_E]]
        part_E, found = part[neuron_E], []
        for number, width in enumerate(widths):
            keep_E = part_E == number
            indptr = np.cumsum([0, *np.bincount(row_E[keep_E], minlength=len(members))])
            column_E = column[neuron_E[keep_E]]
            matrix = sparse.csr_matrix(
                (np.empty(len(column_E), np.float32), column_E, indptr), (len(members), width)
            )
            found.append(self._with_ones(matrix))
        return found

    def _with_ones(self, matrix: "csr_matrix") -> "csr_matrix":
        """Every entry is 1: all matrices share one array of ones."""
        if matrix.nnz > len(self.ones):
            self.ones = np.ones(matrix.nnz, np.float32)
        matrix.data = self.ones[: matrix.nnz]
        return matrix

    def similarity(self, rows: slice, others: slice) -> np.ndarray:
        """1 - J for each pair of two blocks, float64; two empty sets are equal.

        Not for a set with itself: neurons of one set only are left out.
        """
        rare, *common = self.parts[rows.start]
        product: Any = rare @ self.by_neuron[others.start]
        shared = product.toarray()
        for left, right in zip(common, self.parts[others.start][1:], strict=True):
            a = torch.from_numpy(left.toarray())
            b = a if rows == others else torch.from_numpy(right.toarray())
            shared += (a @ b.T).numpy()
        union = self.size_N[rows, None] + self.size_N[None, others] - shared
        return np.divide(shared, union, out=np.ones_like(union), where=union > 0)


def _popularity(sets: Sets) -> np.ndarray:
    """In how many sets each neuron is."""
    count = np.zeros(sets.n_neurons, np.int64)
    for first in range(0, len(sets.neuron_E), 1 << 24):
        count += np.bincount(sets.neuron_E[first : first + (1 << 24)], minlength=sets.n_neurons)
    return count


def _blocks(first: int, last: int, block: int) -> list[slice]:
    return [slice(i, min(i + block, last)) for i in range(first, last, block)]


def nearest(
    sets: Sets,
    k: int,
    *,
    queries: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    block: int = BLOCK,
) -> Neighbours:
    """The `k` nearest other sets of each query by Jaccard distance, exactly, Eq. 5 and 6.

    `queries` and `candidates` are ascending positions, by default all; fewer than `k` columns come
    back where there are fewer candidates. No N x N matrix is made: memory is that of the sets
    (three times, as 4-byte keys) and of blocks of `block` x `block` numbers. Each pair of blocks is
    compared once, and not at all where the sizes alone say that no neighbour can be in it: 1 - J is
    at most the smaller size over the larger.
    """
    N = len(sets.size_N)
    query = np.zeros(N, bool)
    query[slice(None) if queries is None else queries] = True
    allowed = np.zeros(N, bool)
    allowed[slice(None) if candidates is None else candidates] = True
    # Queries first, so that pairs of two other candidates are never looked at; each part by size.
    order_N = np.lexsort((sets.size_N, ~query))
    order_N = order_N[query[order_N] | allowed[order_N]]
    n_queries = int(query.sum())
    k = min(k, int(allowed.sum()) - 1 if n_queries and allowed[query].any() else int(allowed.sum()))
    best = _Best(n_queries, max(k, 0))
    if k > 0:
        edges = _blocks(0, n_queries, block) + _blocks(n_queries, len(order_N), block)
        overlaps = _Overlaps(sets, order_N, edges)
        for rows, others in _block_pairs(overlaps.size_N, n_queries, edges, best):
            similarity = overlaps.similarity(rows, others)
            if rows == others:
                np.fill_diagonal(similarity, -1.0)
            best.offer(rows, np.where(allowed[order_N[others]], similarity, -1.0), order_N[others])
            if others.stop <= n_queries and others != rows:
                towards = np.where(allowed[order_N[rows]], similarity.T, -1.0)
                best.offer(others, towards, order_N[rows])
    place = np.argsort(order_N[:n_queries])
    return Neighbours(best.index_QK[place], 1.0 - best.similarity_QK[place])


class _Best:
    """The k most similar sets found so far, for each query."""

    def __init__(self, n_queries: int, k: int):
        self.index_QK = np.full((n_queries, k), np.iinfo(np.int64).max)
        self.similarity_QK = np.full((n_queries, k), -1.0)

    def offer(self, rows: slice, similarity_BC: np.ndarray, index_C: np.ndarray) -> None:
        """Let the sets `index_C` compete for the places of the queries `rows`."""
        k = self.index_QK.shape[1]
        worst_B = self.similarity_QK[rows, -1]
        if similarity_BC.shape[1] > k:
            kth_B = np.partition(similarity_BC, -k, axis=1)[:, -k]
            worst_B = np.maximum(worst_B, kth_B)
        row, column = np.nonzero((similarity_BC >= worst_B[:, None]) & (similarity_BC >= 0))
        kept = self.similarity_QK[rows]
        row = np.concatenate([np.repeat(np.arange(len(kept)), k), row])
        value = np.concatenate([kept.ravel(), similarity_BC[row[kept.size :], column]])
        index = np.concatenate([self.index_QK[rows].ravel(), index_C[column]])
        order = np.lexsort((index, -value, row))  # equal distances: the first of the pool
        rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
        order = order[rank < k]
        self.index_QK[rows] = index[order].reshape(-1, k)
        self.similarity_QK[rows] = value[order].reshape(-1, k)


def _block_pairs(
    size_N: np.ndarray, n_queries: int, edges: Sequence[slice], best: _Best
) -> Iterator[tuple[slice, slice]]:
    """Each pair of blocks that may hold neighbours, those of similar sizes first."""

    def bound(a: slice, b: slice) -> float:
        low, high = sorted(((size_N[a][0], size_N[a][-1]), (size_N[b][0], size_N[b][-1])))
        return 1.0 if low[1] >= high[0] else low[1] / high[0]

    pairs = [
        (rows, others)
        for i, rows in enumerate(edges)
        for others in edges[i:]
        if rows.start < n_queries
    ]
    for rows, others in sorted(pairs, key=lambda pair: -bound(*pair)):
        worst = best.similarity_QK[rows, -1].min()
        if others.stop <= n_queries:
            worst = min(worst, best.similarity_QK[others, -1].min())
        if bound(rows, others) >= worst:
            yield rows, others


def mean_distance(sets: Sets, *, most: int = 2000, seed: int = 0, block: int = BLOCK) -> float:
    """Mean pairwise Jaccard distance of a pool (sec. 5.2); of `most` random sets when it has more.

    Needs at least two sets; nan otherwise.
    """
    N = len(sets.size_N)
    chosen = np.arange(N)
    if most < N:
        chosen = np.sort(np.random.default_rng(seed).permutation(N)[:most])
    if len(chosen) < 2:
        return float("nan")
    edges = _blocks(0, len(chosen), block)
    overlaps = _Overlaps(sets, chosen, edges)
    total = 0.0
    for i, rows in enumerate(edges):
        for others in edges[i:]:
            distance = 1.0 - overlaps.similarity(rows, others)
            if rows == others:
                np.fill_diagonal(distance, 0.0)
            total += distance.sum() * (1 if rows == others else 2)
    return float(total) / (len(chosen) * (len(chosen) - 1))


def random_contexts(
    n: int, k: int, *, queries: np.ndarray, candidates: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """`k` random other positions (int64_QK) for each query: the control of sec. 5.2."""
    pool = np.arange(n) if candidates is None else candidates
    k = min(k, len(pool) - int(np.isin(queries, pool).any()))
    index_QK = np.empty((len(queries), k), np.int64)
    for row, query in zip(index_QK, queries, strict=True):
        drawn = np.random.default_rng([seed, int(query)]).permutation(pool)
        row[:] = drawn[drawn != query][:k]
    return index_QK


# ---------------------------------------------------------------- Eq. 10: reverse KL

CHUNK_BYTES = 64 << 20
"""Memory of one (tokens, vocabulary) tensor of float32 in a chunk; about five are alive at once."""


class Divergence(NamedTuple):
    """KL between student and teacher, and what else the two distributions say."""

    total: Tensor
    """Scalar: weighted sum of `kl_T`; gradients flow to the student's hidden states and head."""
    kl_T: Tensor
    """KL of each token in nats; no gradient, like all below."""
    student_entropy_T: Tensor
    teacher_entropy_T: Tensor
    agree_T: Tensor
    """1.0 where both have the same most likely token."""


def divergence(
    student_TD: Tensor,
    teacher_TD: Tensor,
    head_VD: Tensor,
    *,
    direction: Literal["reverse", "forward"] = "reverse",
    teacher_head_VD: Tensor | None = None,
    weight_T: Tensor | None = None,
    softcap: float | None = None,
    factor: float = 1.0,
    chunk_tokens: int = 0,
) -> Divergence:
    """Full-vocabulary KL per token, without (T, V) logits: of the student from the teacher
    (reverse, Eq. 10), or of the teacher from the student (forward).

    p is the student and q the teacher: the sum over the vocabulary of p (log p - log q), or of
    q (log q - log p). Hidden states go through the unembedding `head_VD` in chunks of tokens (0: as
    many as fit in `CHUNK_BYTES`); the gradient of each chunk is taken while its logits are there,
    so nothing is computed twice. `weight_T` (default 1) are constants. `teacher_head_VD` where the
    teacher's unembedding differs; `factor` and `softcap` where the family multiplies and then caps
    its logits. No gradient reaches the teacher. Under autocast the logits come from its dtype; all
    that follows is float32.
    """
    T, V = len(student_TD), len(head_VD)
    chunk = chunk_tokens or max(16, CHUNK_BYTES // (4 * V))
    weight_T = student_TD.new_ones(T, dtype=torch.float32) if weight_T is None else weight_T
    other = head_VD if teacher_head_VD is None else teacher_head_VD
    if factor != 1:
        student_TD, teacher_TD = student_TD * factor, teacher_TD * factor
    kind = student_TD.device.type
    if torch.is_autocast_enabled(kind):
        # Once here, not in every chunk; left on, it would round the sums over the vocabulary too.
        low = torch.get_autocast_dtype(kind)
        student_TD, teacher_TD, head_VD = (x.to(low) for x in (student_TD, teacher_TD, head_VD))
        other = other.to(low)
    with torch.autocast(kind, enabled=False):
        outputs: Any = _KL.apply(
            student_TD, teacher_TD.detach(), head_VD, other.detach(), weight_T, softcap, chunk,
            direction == "forward",
        )  # fmt: skip
    return Divergence(*outputs)


reverse_kl = partial(divergence, direction="reverse")
"""KL(student || teacher), Eq. 10."""
forward_kl = partial(divergence, direction="forward")
"""KL(teacher || student)."""


def _logits(hidden: Tensor, head: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden @ head.T).float()
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_TD: Tensor,
        teacher_TD: Tensor,
        head_VD: Tensor,
        other_VD: Tensor,
        weight_T: Tensor,
        softcap: float | None,
        chunk: int,
        forward: bool,
    ) -> tuple[Tensor, ...]:
        wants_hidden, wants_head = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        grad_TD = torch.zeros_like(student_TD) if wants_hidden else None
        grad_VD = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        told: list[tuple[Tensor, ...]] = []
        for first in range(0, len(student_TD), chunk):
            rows = slice(first, first + chunk)
            student_CV = _logits(student_TD[rows], head_VD, softcap)
            # d(cap tanh(z / cap)) / dz, which is 1 without a cap
            slope_CV = None if softcap is None else 1 - (student_CV / softcap).square()
            log_p_CV = student_CV.log_softmax(-1)
            del student_CV
            log_q_CV = _logits(teacher_TD[rows], other_VD, softcap).log_softmax(-1)
            agree_C = (log_p_CV.argmax(-1) == log_q_CV.argmax(-1)).float()
            p_CV, q_CV = log_p_CV.exp(), log_q_CV.exp()
            entropy_C = -torch.linalg.vecdot(p_CV, log_p_CV)
            other_entropy_C = -torch.linalg.vecdot(q_CV, log_q_CV)
            q_CV = q_CV if forward else log_q_CV  # the other direction needs no copy of it
            gap_CV = log_p_CV.sub_(log_q_CV)
            # Eq. 10: the sum of p (log p - log q); forward, of q (log q - log p).
            kl_C = -torch.linalg.vecdot(q_CV, gap_CV) if forward else (
                torch.linalg.vecdot(p_CV, gap_CV)
            )  # fmt: skip
            told.append((kl_C, entropy_C, other_entropy_C, agree_C))
            if not (wants_hidden or wants_head):
                continue
            # d KL / d logit_v = p_v (log p_v - log q_v - KL); forward, p_v - q_v
            grad_CV = p_CV.sub_(q_CV) if forward else gap_CV.sub_(kl_C[:, None]).mul_(p_CV)
            grad_CV = grad_CV.mul_(weight_T[rows, None])
            del q_CV, log_q_CV
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            grad_CV = grad_CV.to(head_VD.dtype)
            if grad_TD is not None:
                grad_TD[rows] = (grad_CV @ head_VD).to(grad_TD.dtype)
            if grad_VD is not None:
                grad_VD += grad_CV.T @ student_TD[rows].to(grad_CV.dtype)
        if told:
            kl_T, *rest = (torch.cat(column) for column in zip(*told, strict=True))
        else:
            kl_T, *rest = (weight_T.new_zeros(0) for _ in range(4))
        ctx.save_for_backward(grad_TD, None if grad_VD is None else grad_VD.to(head_VD.dtype))
        ctx.mark_non_differentiable(kl_T, *rest)
        return (torch.dot(kl_T, weight_T.to(kl_T.dtype)), kl_T, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_TD, grad_VD = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_TD is None else grad_TD * scale.to(grad_TD.dtype), None,
            None if grad_VD is None else grad_VD * scale.to(grad_VD.dtype),
            None, None, None, None, None,
        )  # fmt: skip


# ---------------------------------------------------------------- sec. 5.5: diagnostics


def room_for_sharpening(agreement_Q: np.ndarray) -> float:
    """1 - the mean share of a question's rollouts that give its most frequent answer, in [0, 1].

    The label-free form of Tab. 5: at 0 the rollouts agree and there is nothing to sharpen.
    """
    return float(1.0 - np.mean(agreement_Q))


def entropy_gap(
    student: Sequence[np.ndarray], teacher: Sequence[np.ndarray]
) -> tuple[float, float, np.ndarray]:
    """Mean token entropy in nats of student and teacher, and float64_Q gaps, Tab. 6.

    One array of token entropies per question and side, over the same response; averaged over the
    response, then over questions. A gap below 0 means that the teacher is sharper.
    """
    student_Q = np.array([np.mean(entropy_T) for entropy_T in student])
    teacher_Q = np.array([np.mean(entropy_T) for entropy_T in teacher])
    return float(student_Q.mean()), float(teacher_Q.mean()), teacher_Q - student_Q
