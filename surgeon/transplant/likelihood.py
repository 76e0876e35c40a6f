"""How much likelier the donor's answers become in the recipient when a unit moves, to first order.

Let d be the difference of a unit's weights, donor less recipient, and L the mean log-likelihood of
the answers' tokens. The gain is the slope of L along d. No gradient of a weight is made: what flows
back to the outputs of gate, up and down is held against what d would write there, so that one
forward and one backward pass over the answers give the gains of all units.
"""

# Shapes: L layers, F units per layer, T tokens, D model width, V vocabulary.

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.live.architecture import causal_lm, head_of
from surgeon.live.blocks import Ffn, block
from surgeon.live.passes import check_traces, evaluating, length, passes
from surgeon.live.processor import fitting_threads
from surgeon.progress import bar
from surgeon.traces import Trace
from surgeon.transplant.pair import Pair, aligned_donor
from surgeon.transplant.similarity import stored

BATCH_TOKENS, LOGIT_TOKENS = 4096, 256
"""Tokens of a pass, and tokens whose logits are held at once."""


class Moved(NamedTuple):
    """One projection of a layer's FFN in the live model, and what moving its units adds to it."""

    module: nn.Linear
    rows: slice
    """Its output rows where gate and up are fused; else all."""
    weight: Tensor
    """Donor less recipient, as the live weight lies: (F, D), of down (D, F)."""
    bias_F: Tensor | None
    down: bool


def gains(
    pair: Pair, answers: Sequence[Trace], shares: Sequence[float], device: str = "auto"
) -> np.ndarray:
    """(L, F) float64: gain in log-likelihood per token of `answers`, mean of the slopes at these
    shares of the way from the recipient to all its FFN units moved.

    Raises `BadInput` for mixtures of experts and answers that the recipient can't read.
    """
    place, _ = placement(device, "auto")
    if any(slab.expert is not None or site.first for site in pair.recipient_sites
           for slab in site.slabs):  # fmt: skip
        raise BadInput(
            f"found a mixture of experts, {pair.recipient.spec}; attribution knows dense FFNs only."
        )
    model = pair.recipient.model(device=place)
    model.requires_grad_(False)
    check_traces(model, answers)
    layers = [_moved(pair, model, index) for index in range(len(pair.recipient_sites))]
    slope_LF = np.zeros((pair.recipient.n_layers, pair.recipient.d_ff))
    tokens, at = sum(len(trace.token_ids) for trace in answers), 0.0
    with (
        bar("attribution", len(answers) * len(shares)) as advance,
        evaluating(model),
        fitting_threads(model),
    ):
        for share in shares:
            _go(layers, share - at)
            at = share
            with _gathering(model, layers) as sums:
                for done in _backward(model, answers, tokens):
                    advance(done)
            for site, sum_F in zip(pair.recipient_sites, sums, strict=True):
                slope_LF[site.layer, site.span] += sum_F.double().cpu().numpy() / len(shares)
    return slope_LF


def _moved(pair: Pair, model: nn.Module, index: int) -> list[Moved]:
    """The projections of block `index`; raises `BadInput` where it isn't a layer's one FFN."""
    site = pair.recipient_sites[index]
    here: Ffn = block(model, site.layer).ffn
    found = []
    for role in ("gate", "up", "down"):
        module: nn.Linear = getattr(here, role)
        weight = _difference(pair, index, role).to(module.weight.device, module.weight.dtype)
        rows = slice(None)
        if here.fused and role != "down":
            rows = slice(0, site.n_units) if role == "gate" else slice(site.n_units, None)
        bias_F = None
        if any(slab.role == f"{role}_bias" for slab in site.slabs):
            bias_F = _difference(pair, index, f"{role}_bias").to(weight)
        found.append(Moved(module, rows, weight, bias_F, role == "down"))
    if here.down.in_features != site.n_units:
        raise BadInput(
            f"layer {site.layer} has {here.down.in_features} units in the live model and "
            f"{site.n_units} in the files; attribution knows dense FFNs only."
        )
    return found


def _difference(pair: Pair, index: int, role: str) -> Tensor:
    mine = stored(pair.recipient, pair.recipient_sites[index], role).float()
    return aligned_donor(pair, index, role, torch.float32) - mine


@torch.no_grad()
def _go(layers: Sequence[Sequence[Moved]], share: float) -> None:
    """Move all units by that share of the difference, in the live model."""
    if share == 0:
        return
    for part in (part for layer in layers for part in layer):
        part.module.weight[part.rows].add_(part.weight, alpha=share)
        if part.bias_F is not None:
            part.module.bias[part.rows].add_(part.bias_F, alpha=share)


@contextmanager
def _gathering(model: nn.Module, layers: Sequence[Sequence[Moved]]) -> Iterator[list[Tensor]]:
    """Inside the block, backward passes add the units' slopes to these sums, (F,) of each block."""
    sums = [
        torch.zeros(parts[-1].module.in_features, device=parts[-1].weight.device)
        for parts in layers
    ]

    def back(part: Moved, sum_F: Tensor, x_BTD: Tensor, gradient: Tensor) -> None:
        flow = gradient[..., part.rows]
        if part.down:
            # The unit's h times what flows back along its new column.
            slope = x_BTD * linear(flow, part.weight.mT)
        else:
            slope = flow * linear(x_BTD, part.weight, part.bias_F)
        sum_F += slope.float().flatten(0, -2).sum(0)

    def forward(part: Moved, sum_F: Tensor, _: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(partial(back, part, sum_F, args[0].detach()))

    def begin(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return out.detach().requires_grad_()

    with ExitStack() as undo:
        # Weights have no gradient, so the graph begins behind the embeddings.
        embeddings = causal_lm(model).get_input_embeddings()
        undo.callback(embeddings.register_forward_hook(begin).remove)
        for parts, sum_F in zip(layers, sums, strict=True):
            for part in parts:
                hook = partial(forward, part, sum_F)
                undo.callback(part.module.register_forward_hook(hook).remove)
        yield sums


def _backward(model: nn.Module, answers: Sequence[Trace], tokens: int) -> Iterator[int]:
    """Send the gradient of the mean log-likelihood back, a pass at a time; yields the answers of
    each."""
    longest = max(map(length, answers))
    with torch.inference_mode(False), torch.enable_grad():
        steps = passes(
            model, answers, batch_tokens=max(BATCH_TOKENS, longest), chunk_tokens=longest
        )
        for step in steps:
            hidden_BTD = step.run()
            rows = [hidden_TD.detach().requires_grad_() for hidden_TD in hidden_BTD]
            for hidden_TD, part in zip(rows, step.parts, strict=True):
                _likelihood(model, hidden_TD, answers[part.trace], tokens)
            hidden_BTD.backward(torch.stack([cast(Tensor, row.grad) for row in rows]))
            yield len(step.parts)


def _likelihood(model: nn.Module, hidden_TD: Tensor, trace: Trace, tokens: int) -> None:
    """Add the gradient of one answer's log-likelihood to that of its hidden states."""
    head, begin = head_of(model), len(trace.prompt_token_ids) - 1
    target_T = torch.tensor(trace.token_ids, device=hidden_TD.device)
    for first in range(0, len(target_T), LOGIT_TOKENS):
        target = target_T[first : first + LOGIT_TOKENS]
        hidden = hidden_TD[begin + first : begin + first + len(target)]
        gain = -cross_entropy(head.logits(hidden), target, reduction="sum") / tokens
        gain.backward()
