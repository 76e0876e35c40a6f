"""Each token's largest activations over all layers, exactly, with ties going to the smaller key."""

# Shape letters: N tokens, F units of a site, C chosen experts (or candidates), W values of a token
# that are compared, K kept per token, E entries of all tokens.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon.neurons import FfnSite

SAMPLE_ABOVE = 8192
"""Rows of values longer than this find their threshold through a sample first."""


class Held(NamedTuple):
    """h of one site for every token of a pass."""

    site: FfnSite
    h_NF: Tensor
    """(N, units); for experts (N, chosen * units), the chosen ones by ascending number."""
    expert_NC: Tensor | None
    """The chosen experts, ascending."""


class Top(NamedTuple):
    """The largest activations of some tokens: keys ascending, unused places hold 0 and 0.0."""

    key_NK: np.ndarray
    mass_NK: np.ndarray
    total_N: np.ndarray
    """float64, all positive mass, kept or not."""


def largest(held: Sequence[Held], rows: slice, k: int, d_ff: int, before: Top | None = None) -> Top:
    """The `k` largest positive activations of a pass's tokens `rows`, over the sites in `held`.

    `before` holds those of the sites before them, which are compared too. Exact; among equal values
    the smaller key wins, on every device.
    """
    parts = [entry.h_NF[rows] for entry in held]
    if before is not None:
        carried = torch.from_numpy(before.mass_NK).to(parts[0])
        parts.insert(0, carried)
    W = sum(part.shape[1] for part in parts)
    N = parts[0].shape[0]
    key_NK, mass_NK = np.zeros((N, k), np.int64), np.zeros((N, k), np.float32)
    total_N = np.zeros(N) if before is None else before.total_N.copy()
    # Values carried along were counted when they were new.
    fresh = 0 if before is None else before.mass_NK.shape[1]
    on_cpu = parts[0].device.type == "cpu"
    size = max(1, (1 << 19) // W) if on_cpu else max(1, (1 << 27) // W)
    block = np.empty((min(size, N), W), _bits(parts[0].dtype)) if on_cpu else None
    for first in range(0, N, size):
        span = slice(first, min(first + size, N))
        n = span.stop - first
        if block is not None:
            place_E, mass_E, total = _select_on_cpu(parts, span, block[:n], k, fresh)
        else:
            place_E, mass_E, total = _select(
                torch.cat([part[span] for part in parts], 1).relu_(), k, fresh
            )
        row_E = place_E // W
        ends = np.searchsorted(row_E, np.arange(n + 1))
        slot_E = np.arange(len(row_E)) - ends[row_E]
        row_E += first
        key_NK[row_E, slot_E] = _keys(held, rows, before, row_E, place_E % W, d_ff)
        mass_NK[row_E, slot_E] = mass_E
        total_N[span] += total
    return Top(key_NK, mass_NK, total_N)


def _keys(
    held: Sequence[Held],
    rows: slice,
    before: Top | None,
    row_E: np.ndarray,
    place_E: np.ndarray,
    d_ff: int,
) -> np.ndarray:
    """The neuron keys of places within the compared values of tokens."""
    widths = [entry.h_NF.shape[1] for entry in held]
    starts = np.cumsum([0 if before is None else before.mass_NK.shape[1], *widths])
    base = np.array([e.site.layer * d_ff + e.site.first for e in held]) - starts[:-1]
    if all(entry.expert_NC is None for entry in held):
        shift = np.repeat(base, widths)
        key_E = place_E.copy()
        new = slice(None) if before is None else place_E >= starts[0]
        key_E[new] += shift[place_E[new] - starts[0]]
    else:
        key_E = place_E.copy()
        for entry, start, end, shift in zip(held, starts, starts[1:], base, strict=False):
            inside = (place_E >= start) & (place_E < end)
            key_E[inside] += shift
            if entry.expert_NC is not None:
                units = entry.site.n_units
                slot = (place_E[inside] - start) // units
                expert_NC = entry.expert_NC[rows].cpu().numpy()
                key_E[inside] += (expert_NC[row_E[inside], slot] - slot) * units
    if before is not None:
        old = place_E < starts[0]
        key_E[old] = before.key_NK[row_E[old], place_E[old]]
    return key_E


def _bits(dtype: torch.dtype) -> type:
    """The integer whose order is that of the positive numbers of `dtype`."""
    return np.int16 if dtype.itemsize == 2 else np.int32


def _select_on_cpu(
    parts: Sequence[Tensor], span: slice, block_NW: np.ndarray, k: int, fresh: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_select` for tokens of the CPU: in integers, where sorting and comparing are fastest."""
    W, start = block_NW.shape[1], 0
    for part in parts:
        bits = part[span].view(torch.int16 if block_NW.dtype == np.int16 else torch.int32).numpy()
        np.maximum(bits, 0, out=block_NW[:, start : start + bits.shape[1]])
        start += bits.shape[1]
    values_NW = torch.from_numpy(block_NW).view(parts[0].dtype)
    total_N = values_NW[:, fresh:].sum(-1, dtype=torch.float32).double().numpy()
    if k >= W:
        least_N = np.zeros(len(block_NW), block_NW.dtype)
    elif W > SAMPLE_ABOVE:
        least_N = _sampled_threshold(block_NW, k)
    else:
        least_N = np.sort(block_NW, axis=1)[:, W - k]
    place_E = np.flatnonzero(block_NW >= np.maximum(least_N, 1)[:, None])
    bits_E = block_NW.reshape(-1)[place_E]
    if k < W:
        keep_E = _first_largest(bits_E, place_E // W, len(block_NW), k)
        if keep_E is not None:
            place_E, bits_E = place_E[keep_E], bits_E[keep_E]
    mass_E = torch.from_numpy(bits_E).view(parts[0].dtype).float().numpy()
    return place_E, mass_E, total_N


def _sampled_threshold(block_NW: np.ndarray, k: int) -> np.ndarray:
    """A value per row that at least `k` entries reach, and few more: a quantile of a sample, with
    the exact one where the sample was misleading."""
    W = block_NW.shape[1]
    step = 16
    sample_NS = np.sort(block_NW[:, ::step], axis=1)
    rank = int(k / step + 4 * (k / step) ** 0.5) + 1
    least_N = sample_NS[:, max(0, sample_NS.shape[1] - rank)]
    short = np.count_nonzero(block_NW >= least_N[:, None], axis=1) < k
    if short.any():
        least_N[short] = np.sort(block_NW[short], axis=1)[:, W - k]
    return least_N


def _first_largest(bits_E: np.ndarray, row_E: np.ndarray, N: int, k: int) -> np.ndarray | None:
    """Which of the candidates are among the `k` largest of their row, the first of equal ones
    first; None when all are."""
    ends = np.searchsorted(row_E, np.arange(N + 1))
    count_N = np.diff(ends)
    widest = int(count_N.max(initial=0))
    if widest <= k:
        return None
    padded_NC = np.zeros((N, widest), bits_E.dtype)
    padded_NC[row_E, np.arange(len(row_E)) - ends[row_E]] = bits_E
    least_N = np.sort(padded_NC, axis=1)[:, widest - k]
    least_E = least_N[row_E]
    keep_E = bits_E >= least_E
    tie_E = bits_E == least_E
    surplus_N = np.bincount(row_E[keep_E], minlength=N) - k
    if (surplus_N > 0).any():
        # Drop a tie that has fewer ties after it, in its row, than there are too many.
        seen_E1 = np.concatenate([[0], np.cumsum(tie_E)])
        after_E = seen_E1[ends[1:]][row_E] - seen_E1[1:]
        keep_E &= ~(tie_E & (after_E < surplus_N[row_E]))
    return keep_E


def _select(value_NW: Tensor, k: int, fresh: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places (row * W + column, ascending) and values of each row's `k` largest positive values,
    and the sum of its columns from `fresh` on."""
    total_N = value_NW[:, fresh:].sum(-1, dtype=torch.float32).double().cpu().numpy()
    keep_NW = value_NW > 0
    if k < value_NW.shape[1]:
        least_N1 = value_NW.topk(k).values[:, -1:]
        above_NW = value_NW > least_N1
        tie_NW = (value_NW == least_N1) & keep_NW
        room_N1 = k - above_NW.sum(-1, keepdim=True)
        keep_NW = above_NW | (tie_NW & (tie_NW.cumsum(-1) <= room_N1))
    place_E = keep_NW.flatten().nonzero()[:, 0]
    mass_E = value_NW.flatten()[place_E].float()
    return place_E.cpu().numpy(), mass_E.cpu().numpy(), total_N
