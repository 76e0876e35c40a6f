"""The next token of every row, from the row's own random stream."""

# Shape letters: B rows of the batch, V vocabulary, C candidates.

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon.decoding.cache import round_up
from surgeon.errors import BadInput

STREAM_BLOCK = 256
"""Random numbers of a stream that are drawn at a time."""
GREEDY = 1e-5
"""Temperatures below this take the most likely token: logits divided by them would be infinite."""
VECTORS = 64
"""Rows of a multiple of so many numbers fill the vectors that a CPU computes with."""
SORTED_OUTRIGHT = 2048
"""Vocabularies up to this size are sorted without looking for a short list of candidates first."""
SPARSE = 8
"""Candidates that are at most one in so many of a vocabulary are found without sorting it."""


class NotFinite(BadInput):
    """The model's logits are no numbers: for the answers to `indices`, where those are known."""

    def __init__(
        self, indices: Sequence[int] = (), name: Callable[[int], str] = "request {}".format
    ):
        self.indices = tuple(indices)
        where, more = "", len(self.indices) - 1
        if self.indices:
            where = " for " + name(self.indices[0]) + (f" and {more} more" if more else "")
        super().__init__(
            f"found logits that are not finite{where}: the weights are broken, or too large for "
            "float16 (load the model in bfloat16 or float32)."
        )

    def named(self, name: Callable[[int], str]) -> "NotFinite":
        """The same in words of the one who asked."""
        return NotFinite(self.indices, name)


class DrawSettings(NamedTuple):
    """How a row's next token is drawn, see `choose`."""

    temperature: float
    top_p: float
    top_k: int

    def but(
        self, temperature: float | None, top_p: float | None, top_k: int | None
    ) -> "DrawSettings":
        """These settings, those that are given put in their place."""
        return DrawSettings(
            self.temperature if temperature is None else temperature,
            self.top_p if top_p is None else top_p,
            self.top_k if top_k is None else top_k,
        )

    def check(self) -> None:
        """Raise BadInput for a setting that is out of range."""
        for name, good, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (no limit) or more"),
        ):
            if not good:
                raise BadInput(f"found {name} = {getattr(self, name)}, expected {expected}.")


def stream_key(seed: int, prompt_id: str, sample: int) -> bytes:
    """The key of a response's random stream, from the run's seed and the response's name alone."""
    return hashlib.sha256(repr((seed, prompt_id, sample)).encode()).digest()[:16]


def uniforms(stream: bytes, block: int) -> np.ndarray:
    """Numbers `256 * block` to `256 * (block + 1)` of a stream: float64 in [0, 1).

    Philox counts, so any part of the stream is reached without drawing what comes before it, and
    its raw output is fixed across numpy versions.
    """
    philox = np.random.Philox(
        key=int.from_bytes(stream, "little"), counter=[block * (STREAM_BLOCK // 4), 0, 0, 0]
    )
    return (philox.random_raw(STREAM_BLOCK) >> np.uint64(11)) * 2.0**-53


def choose(
    logits_BV: Tensor, u_B: Tensor, *, temperature: float, top_p: float, top_k: int
) -> Tensor:
    """The next token of each row (B,), from one uniform number per row.

    Temperature first, then the `top_k` most likely tokens (0: all), then the smallest set of most
    likely tokens whose probability reaches `top_p`; among equal logits the smaller id comes first.
    Temperature 0, or as good as 0, takes the most likely token. The choice is the inverse of the
    cumulative distribution at `u_B`, most likely token first. A large vocabulary is sorted only for
    rows whose nucleus is wider than a short list of candidates. Raises NotFinite.
    """
    if temperature < GREEDY:
        largest_B, token_B = logits_BV.max(-1)
        _check(largest_B)
        return token_B
    V = logits_BV.shape[1]
    logits_BV, norm_B = _tempered(logits_BV, temperature)
    _check(norm_B)
    width = V
    if V > SORTED_OUTRIGHT:
        width = min(V, round_up(max(VECTORS, top_k + 1), VECTORS))
    token_B, exact_B = _choose_within(logits_BV, norm_B, u_B, width, top_p, top_k)
    while not bool(exact_B.all()):
        rows = (~exact_B).nonzero()[:, 0]
        width = min(V, width * 16)
        token_B[rows], exact_B[rows] = _choose_within(
            logits_BV[rows], norm_B[rows], u_B[rows], width, top_p, top_k
        )
    return token_B


def _check(value_B: Tensor) -> None:
    if not bool(value_B.isfinite().all()):
        raise NotFinite


def _tempered(logits_BV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The float32 logits at that temperature, and the log of the sum of their exponentials."""
    if logits_BV.device.type != "cpu":
        logits_BV = logits_BV.float() / temperature
        return logits_BV, logits_BV.logsumexp(-1)
    # A row at a time stays in the CPU's cache.
    out_BV = torch.empty(logits_BV.shape)
    norms = []
    for row_V, out_V in zip(logits_BV, out_BV, strict=True):
        torch.div(row_V.float(), temperature, out=out_V)
        norms.append(out_V.logsumexp(-1))
    return out_BV, torch.stack(norms)


def _choose_within(
    logits_BV: Tensor, norm_B: Tensor, u_B: Tensor, width: int, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """The choice among the `width` largest logits, and whether those were enough to be exact."""
    V = logits_BV.shape[1]
    if logits_BV.device.type == "cpu" and SPARSE * width <= V:
        value_BC, token_BC = _listed(logits_BV.numpy(), width)
        pick_B1, exact_B = _picked(value_BC, norm_B, u_B, False, top_p, top_k)
        return token_BC.gather(1, pick_B1)[:, 0], exact_B
    value_BC = _descending(logits_BV, width)
    pick_B1, exact_B = _picked(value_BC, norm_B, u_B, width == V, top_p, top_k)
    value_B1 = value_BC.gather(1, pick_B1)
    rank_B1 = pick_B1 - (value_BC > value_B1).sum(-1, keepdim=True)
    return _nth_equal(logits_BV, value_B1, rank_B1[:, 0]), exact_B


def _picked(
    value_BC: Tensor, norm_B: Tensor, u_B: Tensor, complete: bool, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """The number (B, 1) of the choice among each row's largest logits, the largest first, and
    whether those were enough to be exact."""
    width = value_BC.shape[1]
    mass_BC = (value_BC - norm_B[:, None]).exp().double()
    if top_k:
        mass_BC[:, top_k:] = 0
    cum_BC = mass_BC.cumsum(-1)
    # Without top_k the distribution sums to 1, also where the candidates are only its upper part.
    total_B1 = cum_BC[:, -1:] if top_k or complete else torch.ones_like(cum_BC[:, -1:])
    if top_p < 1:
        last_B1 = (cum_BC < top_p * total_B1).sum(-1, keepdim=True).clamp_(max=width - 1)
        target_B1 = u_B[:, None] * cum_BC.gather(1, last_B1)
    else:
        last_B1 = torch.full((len(u_B), 1), width - 1, device=u_B.device)
        target_B1 = u_B[:, None] * total_B1
    pick_B1 = torch.minimum((cum_BC <= target_B1).sum(-1, keepdim=True), last_B1)
    if complete:
        return pick_B1, torch.ones_like(norm_B, dtype=torch.bool)
    # Where the nucleus, or without one the choice, ends within the candidates.
    decisive_B1 = pick_B1 if top_p == 1 else last_B1
    if top_k:
        decisive_B1 = torch.full_like(last_B1, top_k - 1)
    return pick_B1, (value_BC.gather(1, decisive_B1) > value_BC[:, -1:])[:, 0]


def _listed(logits_BV: np.ndarray, width: int) -> tuple[Tensor, Tensor]:
    """Each row's `width` largest values and their tokens: the largest first, of equal ones the
    smaller id. Where fewer are above -inf, the rest is -inf."""
    B, V = logits_BV.shape
    value_BC = np.full((B, width), -np.inf, dtype=np.float32)
    token_BC = np.zeros((B, width), dtype=np.int64)
    parts = SPARSE * width // 2
    for b, value_V in enumerate(logits_BV):
        # At least `width` values reach the `width`-th of the largest ones of some parts.
        largest = value_V[: V // parts * parts].reshape(-1, parts).max(0)
        least = np.partition(largest, -width)[-width]
        found = np.flatnonzero(value_V >= least if least > -np.inf else value_V > least)
        order = np.argsort(-value_V[found], kind="stable")[:width]
        token_BC[b, : len(order)] = found[order]
        value_BC[b, : len(order)] = value_V[found[order]]
    return torch.from_numpy(value_BC), torch.from_numpy(token_BC)


def _descending(logits_BV: Tensor, width: int) -> Tensor:
    """Each row's `width` largest values, largest first."""
    if logits_BV.device.type == "cpu":
        # Many times faster than torch's sort, which also keeps track of where values came from.
        return torch.from_numpy(np.sort(-logits_BV.numpy(), axis=-1)[:, :width]).neg_()
    if width < logits_BV.shape[1]:
        return logits_BV.topk(width).values
    return logits_BV.sort(-1, descending=True).values


def _nth_equal(logits_BV: Tensor, value_B1: Tensor, rank_B: Tensor) -> Tensor:
    """The id of the token with that logit; of several, by number from 0, the `rank_B`-th."""
    row_E, token_E = (logits_BV == value_B1).nonzero(as_tuple=True)
    first_B = torch.searchsorted(row_E, torch.arange(len(rank_B), device=row_E.device))
    return token_E[first_B + rank_B]
