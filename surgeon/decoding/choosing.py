"""The next token of every row, from the row's own random stream."""

# Shape letters: B rows of the batch, V vocabulary, C candidates.

import hashlib

import numpy as np
import torch
from torch import Tensor

STREAM_BLOCK = 256
"""Random numbers of a stream that are drawn at a time."""


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
    Temperature 0 takes the most likely token. The choice is the inverse of the cumulative
    distribution at `u_B`, most likely token first. Only rows whose nucleus is wider than a short
    list of candidates are sorted further.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / temperature
    V = logits_BV.shape[1]
    norm_B = logits_BV.logsumexp(-1)
    token_B = torch.empty(len(logits_BV), dtype=torch.long, device=logits_BV.device)
    rows: Tensor | None = None
    width = min(V, max(64, top_k + 1) if top_k else 64)
    while True:
        part = logits_BV if rows is None else logits_BV[rows]
        norm, u = (norm_B, u_B) if rows is None else (norm_B[rows], u_B[rows])
        found, exact = _choose_within(part, norm, u, width, top_p, top_k)
        if rows is None:
            token_B = found
            if bool(exact.all()):
                return token_B
            rows = (~exact).nonzero()[:, 0]
        else:
            token_B[rows] = found
            if bool(exact.all()):
                return token_B
            rows = rows[~exact]
        width = min(V, width * 16)


def _choose_within(
    logits_BV: Tensor, norm_B: Tensor, u_B: Tensor, width: int, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """The choice among the `width` largest logits, and whether those were enough to be exact."""
    if width < logits_BV.shape[1]:
        value_BC, token_BC = logits_BV.topk(width)
        if bool((value_BC[:, 1:] == value_BC[:, :-1]).any()):
            token_BC, order = token_BC.sort(-1)
            value_BC, order = value_BC.gather(1, order).sort(stable=True, dim=-1, descending=True)
            token_BC = token_BC.gather(1, order)
        complete = False
    else:
        value_BC, token_BC = logits_BV.sort(stable=True, dim=-1, descending=True)
        complete = True
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
        last_B1 = torch.full_like(token_BC[:, :1], width - 1)
        target_B1 = u_B[:, None] * total_B1
    pick_B1 = torch.minimum((cum_BC <= target_B1).sum(-1, keepdim=True), last_B1)
    token_B = token_BC.gather(1, pick_B1)[:, 0]
    if complete:
        return token_B, torch.ones_like(token_B, dtype=torch.bool)
    # A candidate as small as the smallest one may have equals that were left out.
    decisive_B1 = last_B1 if top_p < 1 else pick_B1
    if top_k:
        decisive_B1 = torch.full_like(last_B1, top_k - 1)
    return token_B, (value_BC.gather(1, decisive_B1) > value_BC[:, -1:])[:, 0]
