"""Token sequences, the states that predict their tokens, the loss of those tokens, and how a step's
sequences are shared out."""

# Shapes: B sequences, T tokens, P response positions, C of them in a chunk, D model width,
# V vocabulary.

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from surgeon.errors import BadInput
from surgeon.live.architecture import Head, head_of, text_decoder
from surgeon.training.loop import Loss

PROBED = 64
"""Tokens on which a model's logits are compared with its unembedding's."""
CHUNK = 1024
"""Positions whose logits exist at the same time."""


class Sequences(NamedTuple):
    """Right-padded token ids, and where the states that predict a response token are."""

    ids_BT: Tensor
    at_P: Tensor
    """int64 positions in the flattened (B * T) states, response after response."""
    position_BT: Tensor | None = None
    """Where rows are packed: each token's place in its own sequence, by which attention tells the
    sequences of a row apart."""

    def to(self, device: torch.device) -> "Sequences":
        position_BT = None if self.position_BT is None else self.position_BT.to(device)
        return Sequences(self.ids_BT.to(device), self.at_P.to(device), position_BT)


class Targets(NamedTuple):
    """Tokens to learn, and the sequences that they stand in."""

    sequences: Sequences
    token_P: Tensor


def sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Sequences:
    """Prompts followed by their responses, padded to the longest."""
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    places = [range(len(p), len(row)) for p, row in zip(prompts, rows, strict=True)]
    return _padded(rows, places)


def targets(rows: Sequence[Sequence[int]], learned: Sequence[Sequence[bool]]) -> Targets:
    """Token sequences, and those of their tokens that are learned; never the first of a row, which
    nothing predicts."""
    places = [[t for t, flag in enumerate(flags) if flag and t] for flags in learned]
    tokens = [row[t] for row, at in zip(rows, places, strict=True) for t in at]
    return Targets(_padded(rows, places), torch.tensor(tokens, dtype=torch.long))


def packed(rows: Sequence[Sequence[int]], learned: Sequence[Sequence[bool]]) -> Targets:
    """`targets` of the same sequences, the short ones in rows together: no row is longer than the
    longest sequence.

    Attention stays within a sequence: transformers makes the block-diagonal mask where positions
    begin anew. `can_pack` says for which models.
    """
    bins = bins_of([len(row) for row in rows])
    if len(bins) == len(rows):
        return targets(rows, learned)
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(bins), longest, dtype=torch.long)
    position_BT = torch.zeros(len(bins), longest, dtype=torch.long)
    at, tokens = [], []
    for b, members in enumerate(bins):
        start = 0
        for n in members:
            span = slice(start, start + len(rows[n]))
            ids_BT[b, span] = torch.as_tensor(rows[n], dtype=torch.long)
            position_BT[b, span] = torch.arange(len(rows[n]))
            places = [t for t, flag in enumerate(learned[n]) if flag and t]
            at += [b * longest + start + t - 1 for t in places]
            tokens += [int(rows[n][t]) for t in places]
            start = span.stop
        position_BT[b, start:] = torch.arange(longest - start)  # padding is a sequence of its own
    return Targets(
        Sequences(ids_BT, torch.tensor(at, dtype=torch.long), position_BT),
        torch.tensor(tokens, dtype=torch.long),
    )


def bins_of(lengths: Sequence[int]) -> list[list[int]]:
    """Which sequences share a row: as many tokens as the longest one has, each row filled with the
    longest that still fits."""
    bins: list[list[int]] = []
    free: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        row = _first_fit(free, lengths[n])
        if row is None:
            row = len(bins)
            bins.append([])
            free.append(max(lengths))
        bins[row].append(n)
        free[row] -= lengths[n]
    return bins


@torch.no_grad()
def can_pack(model: nn.Module, ids: Sequence[int]) -> bool:
    """Whether a model keeps the sequences of a row apart: one that has another's state or attends
    to it, or counts positions in its own way, gives them other states than it does alone.

    `ids` is a text to try it on.
    """
    if "position_ids" not in inspect.signature(text_decoder(model).forward).parameters:
        return False
    long = (list(map(int, ids)) * PROBED)[:PROBED]
    rows = [long, long[: PROBED // 2], long[PROBED // 2 :][::-1]]
    flags = [[True] * len(row) for row in rows]
    device = next(model.parameters()).device
    together_PD, alone_PD = (
        response_states(model, made.sequences.to(device)).float()
        for made in (packed(rows, flags), targets(rows, flags))
    )
    return bool((together_PD - alone_PD).norm() < 0.02 * alone_PD.norm())


def _padded(rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> Sequences:
    """Rows padded to the longest, and the states that predict the tokens at these places."""
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row)] = torch.tensor(row)
    # The state at a token predicts the next one: shift by one.
    at = [b * longest + t - 1 for b, places_b in enumerate(places) for t in places_b]
    return Sequences(ids_BT, torch.tensor(at, dtype=torch.long))


def response_states(model: nn.Module, sequences: Sequences) -> Tensor:
    """Final hidden states (P, D) at the positions that predict a response token.

    Padding stands on the right, so causal attention needs no mask; packed rows bring positions.
    """
    positions = {} if sequences.position_BT is None else {"position_ids": sequences.position_BT}
    states_BTD = text_decoder(model)(
        input_ids=sequences.ids_BT, use_cache=False, **positions
    ).last_hidden_state
    return states_BTD.flatten(0, 1)[sequences.at_P]


@torch.no_grad()
def require_plain_logits(model: nn.Module, ids: Sequence[int]) -> None:
    """Raise `BadInput` for a model whose logits aren't its unembedding of `response_states`: a loss
    from those would silently be another one. `ids` is a text to try it on."""
    ids_BT = torch.tensor([ids[:PROBED]], device=next(model.parameters()).device)
    at_P = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    ours_PV = head_of(model).logits(response_states(model, Sequences(ids_BT, at_P)))
    own_PV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
    error = (ours_PV - own_PV).norm() / own_PV.norm()
    if not error < 0.02:
        raise BadInput(
            f"found {type(model).__name__}, whose logits are another function of its last states "
            f"than its unembedding (they differ by {error:.0%}), expected those: surgeon can't "
            "train it."
        )


def unembedding(model: nn.Module) -> Tensor:
    """The unembedding matrix (V, D); of a sharded model, whole only inside a call."""
    module = head_of(model).module
    if not isinstance(module, nn.Linear) or module.bias is not None:
        raise BadInput(
            f"found an unembedding of kind {type(module).__name__}, expected a plain matrix: leave "
            "it out of the targets."
        )
    return module.weight


def chunked_nll(
    hidden_PD: Tensor,
    head: Head,
    token_P: Tensor,
    chunk_tokens: int = CHUNK,
    *,
    weight_P: Tensor | None = None,
) -> Tensor:
    """Sum of -log p(token) in nats, each times its weight (a constant; by default 1); the logits
    are made (and made again) in chunks of tokens."""

    def nll(part_CD: Tensor, token_C: Tensor, weight_C: Tensor | None) -> Tensor:
        logits_CV = head.logits(part_CD)
        if weight_C is None:
            return nn.functional.cross_entropy(logits_CV, token_C, reduction="sum")
        return weight_C @ nn.functional.cross_entropy(logits_CV, token_C, reduction="none")

    total = hidden_PD.new_zeros((), dtype=torch.float32)
    # Of no tokens one empty part: the sum is then a zero that can be differentiated.
    for first in range(0, max(1, len(token_P)), chunk_tokens):
        rows = slice(first, first + chunk_tokens)
        weight_C = None if weight_P is None else weight_P[rows]
        part = recomputed(nll, hidden_PD[rows], token_P[rows], weight_C, use_reentrant=False)
        total = total + part  # pyright: ignore[reportOperatorIssue]
    return total


def token_nll(model: nn.Module, targets: Targets) -> Tensor:
    """-log p (P) of each target in nats."""
    device = next(model.parameters()).device
    head, states_PD = head_of(model), response_states(model, targets.sequences.to(device))
    pairs = zip(states_PD.split(CHUNK), targets.token_P.to(device).split(CHUNK), strict=True)
    return torch.cat(
        [nn.functional.cross_entropy(head.logits(s), t, reduction="none") for s, t in pairs]
    )


def nll_loss(model: nn.Module, targets: Targets, _: None) -> Loss:
    """-log p of the targets, for `fit`."""
    device = next(model.parameters()).device
    states_PD = response_states(model, targets.sequences.to(device))
    total = chunked_nll(states_PD, head_of(model), targets.token_P.to(device))
    return Loss(total, {"nll": total.detach()})


# --- a step's sequences ---------------------------------------------------------------------------


def draw(chosen: Sequence[int], size: int, step: int, seed: int) -> list[int]:
    """What a step takes of the chosen ones: each once per epoch, in an order of the epoch's own."""
    drawn = []
    for at in range(step * size, (step + 1) * size):
        epoch, place = divmod(at, len(chosen))
        order = np.random.default_rng([seed, epoch]).permutation(len(chosen))
        drawn.append(chosen[int(order[place])])
    return drawn


def share_of(size: int, process: int, processes: int) -> list[int]:
    """The places of a batch that a process works on; never none."""
    places = list(range(process, size, processes))
    if not places:
        raise BadInput(
            f"found batch_size = {size} with {processes} processes, expected at least {processes}."
        )
    return places


def grouped(lengths: Sequence[int], tokens: int, *, pack: bool = False) -> list[list[int]]:
    """Sequences of similar length together, each group of at most `tokens` padded tokens (or one
    sequence); with `pack` those are the tokens of the rows that `packed` puts a group into."""
    groups: list[list[int]] = []
    longest = 0
    free: list[int] = []
    for b in sorted(range(len(lengths)), key=lambda b: (-lengths[b], b)):
        if pack and groups and (row := _first_fit(free, lengths[b])) is not None:
            groups[-1].append(b)
            free[row] -= lengths[b]
        elif groups and longest * (len(free) + 1) <= tokens:
            groups[-1].append(b)
            free.append(longest - lengths[b])
        else:
            groups.append([b])
            longest, free = lengths[b], [0]
    return groups


def _first_fit(free: Sequence[int], length: int) -> int | None:
    """The first row with room for so many tokens."""
    return next((row for row, room in enumerate(free) if length <= room), None)
