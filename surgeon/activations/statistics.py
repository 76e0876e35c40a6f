"""Log-probability and entropy of response tokens, without a (tokens, vocabulary) tensor."""

# Shape letters: N tokens, V vocabulary (of a tile), D model width.

import torch
from torch import Tensor, nn

from surgeon.decoding.architecture import Head

TILE_VALUES = 1 << 20
"""Logits that exist at a time."""


def token_statistics(head: Head, hidden_ND: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of its distribution (nats), float32 (N,).

    The vocabulary is gone through in tiles with running sums, so no (N, V) tensor exists.
    """
    V = head.module.weight.shape[0]  # pyright: ignore
    logprob_N, entropy_N = [], []
    # Few enough tokens for a tile to stay in the cache, enough to make a good matrix product.
    # At least 16, as matrix products of fewer rows have another order of summation.
    n = len(hidden_ND)
    spare = max(0, -n % 16)
    hidden_ND = nn.functional.pad(hidden_ND, (0, 0, 0, spare))
    token_N = nn.functional.pad(token_N, (0, spare))
    for part_ND, part_N in zip(hidden_ND.split(256), token_N.split(256), strict=True):
        N = len(part_ND)
        tile = max(1024, TILE_VALUES // N)
        most_N = torch.full((N,), -torch.inf, device=hidden_ND.device)
        mass_N, moment_N = torch.zeros_like(most_N), torch.zeros_like(most_N)
        chosen_N = torch.zeros_like(most_N)
        for first in range(0, V, tile):
            logits_NV = head.tile(part_ND, slice(first, first + tile))
            inside_N = (part_N >= first) & (part_N < first + logits_NV.shape[1])
            at_N = torch.where(inside_N, part_N - first, 0)
            chosen_N += torch.where(inside_N, logits_NV.gather(1, at_N[:, None])[:, 0], 0)
            before_N, most_N = most_N, torch.maximum(most_N, logits_NV.amax(1))
            if first:
                # Both sums are about the largest logit so far; move them to the new one.
                shift_N = before_N - most_N
                scale_N = shift_N.exp()
                moment_N = scale_N * (moment_N + shift_N * mass_N)
                mass_N = scale_N * mass_N
            logits_NV -= most_N[:, None]
            weight_NV = logits_NV.exp()
            mass_N = mass_N + weight_NV.sum(1)
            moment_N = moment_N + weight_NV.mul_(logits_NV).sum(1)
        log_mass_N = mass_N.log()
        logprob_N.append(chosen_N - most_N - log_mass_N)
        entropy_N.append((log_mass_N - moment_N / mass_N).clamp_(min=0))
    return torch.cat(logprob_N)[:n], torch.cat(entropy_N)[:n]
