"""Log-probability and entropy of response tokens, without a (tokens, vocabulary) tensor."""

# Shape letters: N tokens, V vocabulary (of a tile), D model width.

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.live.architecture import Head

PART_TOKENS = 512
"""Tokens whose logits are made together: enough for a good matrix product."""
TILE_VALUES = {"cpu": 1 << 18}
"""Logits that exist at a time, by device: on the CPU as many as stay in its cache."""
TILE_VALUES_ELSEWHERE = 1 << 25


def token_statistics(head: Head, hidden_ND: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution (nats), float32 (N,)."""
    logprob_N, entropy_N = [], []
    weight: Any = head.module.weight
    hidden_ND, token_N = hidden_ND.to(weight.device), token_N.to(weight.device)
    n = len(hidden_ND)
    # At least 16, as matrix products of fewer rows have another order of summation.
    spare = max(0, -n % 16)
    hidden_ND = nn.functional.pad(hidden_ND, (0, 0, 0, spare))
    token_N = nn.functional.pad(token_N, (0, spare))
    values = TILE_VALUES.get(hidden_ND.device.type, TILE_VALUES_ELSEWHERE)
    tile = max(256, values // min(PART_TOKENS, len(hidden_ND)))
    for part_ND, part_N in zip(
        hidden_ND.split(PART_TOKENS), token_N.split(PART_TOKENS), strict=True
    ):
        logprob, entropy = _through_tiles(head, part_ND, part_N, tile)
        logprob_N.append(logprob)
        entropy_N.append(entropy)
    return torch.cat(logprob_N)[:n], torch.cat(entropy_N)[:n]


def _through_tiles(
    head: Head, hidden_ND: Tensor, token_N: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """The same for few tokens, with sums that run over tiles of the vocabulary."""
    weight: Any = head.module.weight
    V = int(weight.shape[0])
    chosen_N = torch.empty(len(hidden_ND), device=hidden_ND.device)
    most_N = torch.full_like(chosen_N, -torch.inf)
    # Sums of exp(x - most) and of exp(x - most) * (x - most) over the logits x so far.
    mass_N, moment_N = torch.zeros_like(chosen_N), torch.zeros_like(chosen_N)
    members = _members(token_N, tile, -(-V // tile))
    for number, first in enumerate(range(0, V, tile)):
        logits_NV = head.tile(hidden_ND, slice(first, first + tile))
        if len(members[number]):
            rows = members[number]
            chosen_N[rows] = logits_NV[rows, token_N[rows] - first]
        before_N, most_N = most_N, torch.maximum(most_N, logits_NV.amax(1))
        if first:
            shift_N = before_N - most_N
            scale_N = shift_N.exp()
            moment_N = torch.addcmul(moment_N, shift_N, mass_N).mul_(scale_N)
            mass_N.mul_(scale_N)
        logits_NV.sub_(most_N[:, None])
        weight_NV = logits_NV.exp()
        mass_N += weight_NV.sum(1)
        moment_N += weight_NV.mul_(logits_NV).sum(1)
    log_mass_N = mass_N.log()
    return chosen_N - most_N - log_mass_N, (log_mass_N - moment_N / mass_N).clamp_(min=0)


def _members(token_N: Tensor, tile: int, tiles: int) -> tuple[Tensor, ...]:
    """For each tile of the vocabulary, which tokens lie in it."""
    tile_N = token_N // tile
    counts = torch.bincount(tile_N, minlength=tiles).tolist()
    return tile_N.argsort(stable=True).split(counts)
