"""Each token's largest activations over all layers, exactly, with ties going to the smaller key."""

# Shape letters: N tokens, F units of a site, C chosen experts (or candidates), W values of a token
# that are compared, K kept per token, E entries of all tokens.

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgeon.live.blocks import FfnSite

SAMPLE_ABOVE = 8192
"""Rows longer than this aren't sorted whole: a sample tells their threshold."""
BLOCK_VALUES, BLOCK_VALUES_ELSEWHERE = 1 << 20, 1 << 27
"""Values compared at a time, on the CPU and on other devices: on the CPU they stay in its cache."""


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
    # Layers may be on several devices.
    parts = [entry.h_NF[rows].to(held[0].h_NF.device) for entry in held]
    fresh = 0
    if before is not None:
        # Values carried along were counted when they were new.
        fresh = before.mass_NK.shape[1]
        parts.insert(0, torch.from_numpy(before.mass_NK).to(parts[0]))
    W = sum(part.shape[1] for part in parts)
    N = parts[0].shape[0]
    key_NK, mass_NK = np.zeros((N, k), np.int64), np.zeros((N, k), np.float32)
    total_N = np.zeros(N) if before is None else before.total_N.copy()
    key_W = _keys(held, W, d_ff)
    expert_NC = {
        entry.site.layer: entry.expert_NC[rows].cpu().numpy()
        for entry in held
        if entry.expert_NC is not None
    }
    on_cpu = parts[0].device.type == "cpu"
    size = max(1, (BLOCK_VALUES if on_cpu else BLOCK_VALUES_ELSEWHERE) // W)
    block_NW = torch.empty(min(size, N), W, dtype=parts[0].dtype, device=parts[0].device)
    for first in range(0, N, size):
        last = min(first + size, N)
        part_NW = block_NW[: last - first]
        torch.cat([part[first:last] for part in parts], 1, out=part_NW)
        select = _select_on_cpu if on_cpu else _select
        flat_E, count_N, mass_E, total = select(part_NW, k, fresh)
        row_E = np.repeat(np.arange(last - first), count_N)
        place_E = flat_E - row_E * W
        row_E += first
        key_E = key_W[place_E]
        if before is not None:
            old = place_E < fresh
            key_E[old] = before.key_NK[row_E[old], place_E[old]]
        if expert_NC:
            _place_experts(key_E, row_E, place_E, held, fresh, expert_NC)
        filled_NK = np.arange(k) < count_N[:, None]
        key_NK[first:last][filled_NK], mass_NK[first:last][filled_NK] = key_E, mass_E
        total_N[first:last] += total
    return Top(key_NK, mass_NK, total_N)


def add_positive(held: Sequence[Held], rows: slice, d_ff: int, total_N: np.ndarray) -> None:
    """Add all positive mass of a pass's tokens `rows`, kept or not, to its neurons' totals."""
    for entry in held:
        h_NF = entry.h_NF[rows]
        first = entry.site.layer * d_ff + entry.site.first
        if entry.expert_NC is None:
            total_N[first : first + h_NF.shape[1]] += _positive(h_NF)
            continue
        expert_NC, F = entry.expert_NC[rows], entry.site.n_units
        for expert in expert_NC.unique().tolist():
            chosen_NF = h_NF.unflatten(1, (-1, F))[expert_NC == expert]
            start = first + expert * F
            total_N[start : start + F] += _positive(chosen_NF)


def _positive(h_NF: Tensor) -> np.ndarray:
    """float64_F: the positive values of each column, summed."""
    # In parts, which stay in the CPU's cache.
    size = max(
        1, (BLOCK_VALUES if h_NF.device.type == "cpu" else BLOCK_VALUES_ELSEWHERE) // h_NF.shape[1]
    )
    sums = [part.clamp(min=0).sum(0, dtype=torch.float32) for part in h_NF.split(size)]
    return torch.stack(sums).sum(0).double().cpu().numpy()


def _keys(held: Sequence[Held], W: int, d_ff: int) -> np.ndarray:
    """The neuron keys of a token's values, int64 (W,), as if its experts were the first ones."""
    # One row of keys serves all tokens; `_place_experts` moves the few that are kept.
    keys = [
        np.arange(entry.h_NF.shape[1]) + entry.site.layer * d_ff + entry.site.first
        for entry in held
    ]
    carried = W - sum(map(len, keys))
    return np.concatenate([np.zeros(carried, np.int64), *keys])


def _place_experts(
    key_E: np.ndarray,
    row_E: np.ndarray,
    place_E: np.ndarray,
    held: Sequence[Held],
    start: int,
    expert_NC: dict[int, np.ndarray],
) -> None:
    """Move keys of routed units, in place, from the expert's slot to the expert's number."""
    for entry in held:
        end = start + entry.h_NF.shape[1]
        if entry.expert_NC is not None:
            inside = np.flatnonzero((place_E >= start) & (place_E < end))
            slot = (place_E[inside] - start) // entry.site.n_units
            expert = expert_NC[entry.site.layer][row_E[inside], slot]
            key_E[inside] += (expert - slot) * entry.site.n_units
        start = end


def _select_on_cpu(
    value_NW: Tensor, k: int, fresh: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_select` for the CPU: by the bits of the values."""
    N, W = value_NW.shape
    # The bits of positive floats are in the order of the floats, and integers are sorted and
    # compared fastest. Negative floats have the sign bit set: as integers they clamp to 0.
    bits = value_NW.view(torch.int16 if value_NW.dtype.itemsize == 2 else torch.int32)
    bits_NW = bits.clamp_(min=0).numpy()
    total_N = _row_sums(value_NW[:, fresh:]).double().numpy()
    # Each row's threshold: the k-th largest value, or 1, the bits of the smallest positive number.
    if k >= W:
        least_N = np.ones(N, bits_NW.dtype)
    elif W <= SAMPLE_ABOVE:
        least_N = np.maximum(np.sort(bits_NW, axis=1)[:, W - k], 1)
    else:
        least_N = np.maximum(_sampled_threshold(bits_NW, k), 1)
    flat_E, count_N = _reached(bits_NW, least_N)
    # A sampled threshold may be too high. Only those rows are sorted whole.
    short_N = (count_N < k) & (least_N > 1)
    if short_N.any():
        exact = np.sort(bits_NW[short_N], axis=1)[:, W - k]
        least_N[short_N] = np.maximum(exact, 1)
        flat_E, count_N = _reached(bits_NW, least_N)
    bits_E = bits_NW.reshape(-1)[flat_E]
    if count_N.max(initial=0) > k:
        chosen_E = _first_largest(bits_E, count_N, k)
        flat_E, bits_E, count_N = flat_E[chosen_E], bits_E[chosen_E], np.minimum(count_N, k)
    mass_E = torch.from_numpy(bits_E).view(value_NW.dtype).float().numpy()
    return flat_E, count_N, mass_E, total_N


def _row_sums(value_NW: Tensor) -> Tensor:
    """Sums of rows, float32 (N,); to about 1e-4 for 16-bit values."""
    # 16-bit values are summed in their own precision over short parts, which is much faster than
    # in float32; the parts' sums are added in float32, so the error doesn't grow with the row.
    if value_NW.dtype.itemsize > 2:
        return value_NW.sum(-1)
    whole = value_NW.shape[1] // 128 * 128
    parts_NP = value_NW[:, :whole].unflatten(-1, (-1, 128)).sum(-1)
    return parts_NP.float().sum(-1) + value_NW[:, whole:].float().sum(-1)


def _reached(bits_NW: np.ndarray, least_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat places of the values that reach their row's threshold, and how many in each row."""
    N, W = bits_NW.shape
    # `np.flatnonzero` of the mask would look at every value. Few reach the threshold, so most
    # bytes of eight are 0: those are skipped, and only the others are unpacked.
    packed = np.packbits(bits_NW >= least_N[:, None])
    byte_E = np.flatnonzero(packed != 0)
    bit_E = np.flatnonzero(np.unpackbits(packed[byte_E]).view(bool))
    flat_E = (byte_E[bit_E >> 3] << 3) + (bit_E & 7)
    return flat_E, np.diff(np.searchsorted(flat_E, np.arange(N + 1) * W))


def _sampled_threshold(bits_NW: np.ndarray, k: int) -> np.ndarray:
    """A value per row that, going by a sample, at least `k` entries reach, and not many more."""
    # Every 16th value. Of the sample, k / 16 are expected above the row's k-th value, with a
    # deviation of sqrt(k / 16): four of them more make it rare that too few are above.
    step = 16
    sample_NS = np.sort(bits_NW[:, ::step], axis=1)
    rank = int(k / step + 4 * (k / step) ** 0.5) + 1
    return sample_NS[:, max(0, sample_NS.shape[1] - rank)]


def _first_largest(bits_E: np.ndarray, count_N: np.ndarray, k: int) -> np.ndarray:
    """Which of the candidates (`count_N` per row) are among the `k` largest of their row, the first
    of equal ones first."""
    # Rows have different numbers of candidates: padded with 0, below every candidate's bits.
    widest = int(count_N.max())
    padded_NC = np.zeros((len(count_N), widest), bits_E.dtype)
    padded_NC[np.arange(widest) < count_N[:, None]] = bits_E
    least_N = np.sort(padded_NC, axis=1)[:, widest - k]
    least_E = np.repeat(least_N, count_N)
    keep_E = bits_E >= least_E
    surplus_N = np.count_nonzero(padded_NC >= np.maximum(least_N, 1)[:, None], axis=1) - k
    if (surplus_N > 0).any():
        # The last ties of a row go, as many as there are too many.
        tie_E = np.flatnonzero(bits_E == least_E)
        bounds = np.searchsorted(tie_E, np.cumsum([0, *count_N]))
        keep_N = np.diff(bounds) - np.maximum(surplus_N, 0)
        ties_N = np.diff(bounds)
        rank_E = np.arange(len(tie_E)) - np.repeat(bounds[:-1], ties_N)
        keep_E[tie_E[rank_E >= np.repeat(keep_N, ties_N)]] = False
    return np.flatnonzero(keep_E)


def _select(
    value_NW: Tensor, k: int, fresh: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each row's `k` largest positive values: their flat places, ascending, how many there are in
    each row, and the values; and the positive sum of the columns from `fresh` on. Overwrites the
    values."""
    value_NW.relu_()
    total_N = value_NW[:, fresh:].sum(-1, dtype=torch.float32).cpu().double().numpy()
    keep_NW = value_NW > 0
    if k < value_NW.shape[1]:
        least_N1 = value_NW.topk(k).values[:, -1:]
        above_NW = value_NW > least_N1
        tie_NW = (value_NW == least_N1) & keep_NW
        room_N1 = k - above_NW.sum(-1, keepdim=True)
        keep_NW = above_NW | (tie_NW & (tie_NW.cumsum(-1) <= room_N1))
    flat_E = keep_NW.flatten().nonzero()[:, 0]
    mass_E = value_NW.flatten()[flat_E].float()
    return flat_E.cpu().numpy(), keep_NW.sum(-1).cpu().numpy(), mass_E.cpu().numpy(), total_N
