"""Three ways to share a token's logit out among the units and heads of one layer.

The logit lens, and DePass (decomposed forward pass: attention weights and norm scales held) by two
rules. Each opens one sequence and returns a function that reads attributions off it, any number of
times: `direct(model, ids)(position_T, token_T)`. phi(c, t) is what component c, at all positions up
to t's, adds to the logit of token t at position t, before a final soft cap if the family has one.
"""

# Shape letters: T targets, C components (units, then heads), K shortlisted ones, M those and the
# rest, N tokens of the sequence, D model width, F units, H heads, G key/value heads, E width of all
# heads, V vocabulary.

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as project

from surgeon.attribution.frozen import Layer, linear, projections, record, tolerance, wide
from surgeon.errors import BadInput
from surgeon.live.architecture import causal_lm, head_of, text_config
from surgeon.live.blocks import Block, Ffn, block, layers_of


class Attribution(NamedTuple):
    """Logits, shared out: `phi_TC.sum(1) + rest_T` is the logit of each target."""

    phi_TC: Tensor
    """float32, or the model's precision where that is higher."""
    rest_T: Tensor
    """What doesn't come from these components: the stream that enters the layer, and biases."""


Read = Callable[[Tensor, Tensor], Attribution]
"""(position_T, token_T) -> Attribution; a position predicts the token after it."""


def middle_layer(model: nn.Module) -> int:
    """L/2, the layer the paper monitors (sec. 2)."""
    return len(layers_of(model)) // 2


class _Unembedding:
    """Rows w_y of the unembedding, and its bias."""

    def __init__(self, model: nn.Module):
        self.head: Any = head_of(model).module
        if not isinstance(self.head, nn.Linear):
            raise BadInput(f"found a {type(self.head).__name__} as unembedding, expected nn.Linear")

    def rows(self, token_T: Tensor) -> Tensor:
        return wide(self.head.weight.detach()[token_T])

    def bias(self, token_T: Tensor) -> Tensor | float:
        return 0.0 if self.head.bias is None else wide(self.head.bias.detach()[token_T])


def _scaled(x: Tensor, scale_ND: Tensor | None) -> Tensor:
    return x if scale_ND is None else x * scale_ND


def _biases(layer: Layer, here: Block) -> Tensor:
    """What the biases of the layer's two projections add to the stream (N, D), or 0."""
    added = torch.zeros_like(wide(layer.x_ND))
    out, down = here.attention.out, here.ffn.down
    if out.bias is not None:
        added += _scaled(wide(out.bias.detach()), layer.scales.get("from_attention"))
    if down.bias is not None:
        added += _scaled(wide(down.bias.detach()), layer.scales.get("from_mlp"))
    return added


@torch.no_grad()
def direct(model: nn.Module, ids: list[int], *, layer: int | None = None) -> Read:
    """The logit lens: each component's own write, through the final norm at its frozen scale.

    What later layers make of a component counts as rest. Only the position itself contributes.
    """
    layer = middle_layer(model) if layer is None else layer
    here, unembedding = block(model, layer), _Unembedding(model)
    n_heads = here.attention.n_heads
    seen: dict[int, Layer] = {}

    def keep(number: int, found: Layer) -> None:
        seen.setdefault(number, found)

    x_ND, scale_ND = record(model, ids, layer, keep, until=layer)
    values = seen[layer]
    down_DF, out_DE = wide(here.ffn.down.weight.detach()), wide(here.attention.out.weight.detach())
    rest_ND = wide(values.x_ND) + _biases(values, here)
    rest_ND += wide(x_ND) - wide(values.y_ND)
    _check_writes(model, values, here)

    @torch.no_grad()
    def read(position_T: Tensor, token_T: Tensor) -> Attribution:
        def at(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[position_T]

        target_TD = unembedding.rows(token_T) * scale_ND[position_T]
        unit_TF = _scaled(target_TD, at(values.scales.get("from_mlp"))) @ down_DF
        unit_TF *= values.h_NF[position_T]
        head_TE = _scaled(target_TD, at(values.scales.get("from_attention"))) @ out_DE
        head_TE *= values.mixed_NE[position_T]
        head_TH = head_TE.unflatten(-1, (n_heads, -1)).sum(-1)
        phi_TC = torch.cat([unit_TF, head_TH], -1)
        rest_T = (target_TD * rest_ND[position_T]).sum(-1)
        logit_T = (target_TD * wide(x_ND)[position_T]).sum(-1)
        _check_sum(model, phi_TC.sum(-1) + rest_T, logit_T, phi_TC)
        return Attribution(phi_TC, rest_T + unembedding.bias(token_T))

    return read


def adjoint(model: nn.Module, ids: list[int], *, layer: int | None = None) -> Read:
    """DePass with the ratio rule, by one backward pass through the frozen network per target.

    The ratio rule makes the network linear in the components, so its gradient gives phi of all of
    them at once; how components are grouped changes nothing. The graph of the layers above is held
    as long as the returned function. Half precision gives phi to about 1e-2. Raises `BadInput`
    where the frozen network isn't linear: an architecture whose form is unknown.
    """
    layer = middle_layer(model) if layer is None else layer
    here, unembedding = block(model, layer), _Unembedding(model)
    out, down, n_heads = here.attention.out, here.ffn.down, here.attention.n_heads
    graph = linear(model, ids, layer)
    h_NF, mixed_NE = graph.h_NF, graph.mixed_NE
    leaves = [graph.x_1ND, graph.out_1ND, graph.down_1ND, *graph.zeros]

    @torch.no_grad()
    def one(position: Tensor, w_D: Tensor) -> tuple[Tensor, Tensor]:
        start_1ND = torch.zeros_like(graph.hidden_1ND)
        start_1ND[0, position] = w_D.to(start_1ND.dtype)
        x_1ND, out_1ND, down_1ND, *biases = torch.autograd.grad(
            graph.hidden_1ND, leaves, start_1ND, retain_graph=True, allow_unused=True
        )
        unit_F = (h_NF * project(down_1ND[0], down.weight.mT)).sum(0, dtype=w_D.dtype)
        head_E = (mixed_NE * project(out_1ND[0], out.weight.mT)).sum(0, dtype=w_D.dtype)
        rest = (x_1ND * graph.x_1ND.detach()).sum(dtype=w_D.dtype)
        for module, gradient in ((out, out_1ND), (down, down_1ND)):
            if module.bias is not None:
                rest = rest + (gradient * module.bias).sum(dtype=w_D.dtype)
        for gradient, bias in zip(biases, graph.biases, strict=True):
            if gradient is not None:
                rest = rest + (gradient * bias).sum(dtype=w_D.dtype)
        return torch.cat([unit_F, head_E.unflatten(-1, (n_heads, -1)).sum(-1)]), rest

    def read(position_T: Tensor, token_T: Tensor) -> Attribution:
        w_TD = unembedding.rows(token_T)
        phis, rests = zip(*map(one, position_T, w_TD), strict=True)
        found = Attribution(torch.stack(phis), torch.stack(rests))
        logit_T = (wide(graph.hidden_1ND.detach())[0, position_T] * w_TD).sum(-1)
        _check_sum(model, found.phi_TC.sum(-1) + found.rest_T, logit_T, found.phi_TC)
        return Attribution(found.phi_TC, found.rest_T + unembedding.bias(token_T))

    return read


def _check_sum(model: nn.Module, sum_T: Tensor, logit_T: Tensor, phi_TC: Tensor) -> None:
    """A layer with a part that isn't frozen shows here: its components don't sum to the logits."""
    dtype = next(model.parameters()).dtype
    if dtype in (torch.float16, torch.bfloat16):
        return  # The rounding of a few huge dimensions of the stream would hide or fake it.
    size_T = phi_TC.abs().sum(-1) + logit_T.abs()
    if not bool(((sum_T - logit_T).abs() <= tolerance(dtype) * size_T).all()):
        raise _unknown_part(model)


def _check_writes(model: nn.Module, values: Layer, here: Block) -> None:
    """A layer that scales what its two blocks write, checked in every precision.

    What it adds to the stream is projected on what the blocks write: rounding averages out over
    tokens and dimensions, and a factor other than 1 stays.
    """
    attended_ND = wide(values.mixed_NE) @ wide(here.attention.out.weight).mT
    written_ND = wide(values.h_NF) @ wide(here.ffn.down.weight).mT
    written_ND = _scaled(written_ND, values.scales.get("from_mlp"))
    written_ND += _scaled(attended_ND, values.scales.get("from_attention")) + _biases(values, here)
    added_ND = wide(values.y_ND) - wide(values.x_ND)
    size = written_ND.square().sum()
    if bool(((added_ND * written_ND).sum() - size).abs() > 0.1 * size):
        raise _unknown_part(model)


def _unknown_part(model: nn.Module) -> BadInput:
    return BadInput(
        f"found the architecture {text_config(model).model_type!r}, whose components don't sum to "
        "its hidden states: a layer does something that attribution doesn't know."
    )


@torch.no_grad()
def softmax(
    model: nn.Module,
    ids: list[int],
    components: Sequence[int],
    *,
    layer: int | None = None,
    temperature: float = 0.1,
    chunk_values: int = 1 << 24,
) -> Read:
    """DePass with its own softmax rule, forwards, for a shortlist; `phi_TC` has its columns only.

    A later unit's activation is shared out by a softmax, over components, of what each adds to its
    gate, divided by `temperature`. Everything that isn't on the shortlist is one component, `rest`.
    The rule depends on this partition: keeping 20 of 192 units apart instead of all changed their
    phi by 40 %, so results are comparable only for the same shortlist. Holds (K + 1) * N * D
    numbers, and at most about `chunk_values` for each step on the way. The model attends eagerly
    meanwhile.
    """
    return _forward(model, ids, components, layer, _softmax(temperature), chunk_values)


Rule = Callable[[Tensor], Tensor]
"""Gates of components (M, n, F) -> each one's share of the activation, 1 in all over M."""


def _softmax(temperature: float) -> Rule:
    if not temperature > 0:
        raise BadInput(f"found temperature {temperature}, expected above 0.")
    return lambda gate_MNF: (gate_MNF / temperature).softmax(0)


@torch.no_grad()
def _forward(
    model: nn.Module,
    ids: list[int],
    components: Sequence[int],
    layer: int | None,
    rule: Rule,
    chunk_values: int,
) -> Read:
    layer = middle_layer(model) if layer is None else layer
    here = block(model, layer)
    _check_components(components, here.ffn.down.in_features + here.attention.n_heads)
    unembedding = _Unembedding(model)
    component_K = torch.tensor(components, device=next(model.parameters()).device)
    stream: dict[str, Tensor] = {}

    def propagate(number: int, found: Layer) -> None:
        if number == layer:
            stream["MND"] = _components(model, found, here, component_K)
        else:
            _advance(model, number, found, stream["MND"], rule, chunk_values)

    with _eager(model):
        x_ND, scale_ND = record(model, ids, layer, propagate)
    X_MND = stream["MND"]

    @torch.no_grad()
    def read(position_T: Tensor, token_T: Tensor) -> Attribution:
        target_TD = unembedding.rows(token_T) * scale_ND[position_T]
        phi_TM = torch.einsum("mtd,td->tm", X_MND[:, position_T], target_TD)
        logit_T = (wide(x_ND)[position_T] * target_TD).sum(-1)
        _check_sum(model, phi_TM.sum(-1), logit_T, phi_TM)
        return Attribution(phi_TM[:, :-1], phi_TM[:, -1] + unembedding.bias(token_T))

    return read


def _check_components(components: Sequence[int], count: int) -> None:
    wrong = [c for c in components if not 0 <= c < count]
    if not components or wrong or len(set(components)) < len(components):
        found = f"component {wrong[0]}" if wrong else "none, or one of them twice"
        raise BadInput(f"found {found} on the shortlist; expected numbers of 0 to {count - 1}.")


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Let the model give its attention weights inside the block."""
    before = text_config(model)._attn_implementation
    causal_lm(model).set_attn_implementation("eager")
    try:
        yield
    finally:
        causal_lm(model).set_attn_implementation(before)


def _components(model: nn.Module, found: Layer, here: Block, component_K: Tensor) -> Tensor:
    """What each shortlisted component writes to the stream, and the rest of it: (K + 1, N, D)."""
    y_ND, n_heads, n_units = wide(found.y_ND), here.attention.n_heads, here.ffn.down.in_features
    down_DF, out_DE = wide(here.ffn.down.weight), wide(here.attention.out.weight)
    attended_ND = _scaled(wide(found.mixed_NE) @ out_DE.mT, found.scales.get("from_attention"))
    sum_ND = _scaled(wide(found.h_NF) @ down_DF.mT, found.scales.get("from_mlp"))
    sum_ND += attended_ND + wide(found.x_ND) + _biases(found, here)
    if (sum_ND - y_ND).norm() > tolerance(found.y_ND.dtype) * y_ND.norm():
        raise _unknown_part(model)
    X_MND = y_ND.new_zeros(len(component_K) + 1, *y_ND.shape)
    out_HDd = out_DE.unflatten(-1, (n_heads, -1)).movedim(1, 0)
    mixed_NHd = wide(found.mixed_NE).unflatten(-1, (n_heads, -1))
    for k, component in enumerate(component_K.tolist()):
        if component < n_units:
            x_ND = torch.outer(wide(found.h_NF[:, component]), down_DF[:, component])
            X_MND[k] = _scaled(x_ND, found.scales.get("from_mlp"))
        else:
            head = component - n_units
            x_ND = mixed_NHd[:, head] @ out_HDd[head].mT
            X_MND[k] = _scaled(x_ND, found.scales.get("from_attention"))
    X_MND[-1] = y_ND - X_MND[:-1].sum(0)
    return X_MND


def _advance(
    model: nn.Module, number: int, found: Layer, X_MND: Tensor, rule: Rule, chunk_values: int
) -> None:
    """Take the components through one layer, in place; biases go to the last, the rest."""
    here = block(model, number)
    out, down = here.attention.out, here.ffn.down
    if found.attention_HNN is None:
        raise BadInput(
            f"found the architecture {text_config(model).model_type!r}, whose layer {number} gives "
            "no attention weights; the softmax rule needs them. Use direct or adjoint."
        )
    M, N, D = X_MND.shape
    weight_HNN = found.attention_HNN.to(X_MND.dtype)
    value_ED, value_bias_E = _value_projection(here)
    step = max(1, chunk_values // (N * max(D, out.in_features)))
    for first in range(0, M, step):
        part_MND = X_MND[first : first + step]
        value_MNE = project(_scaled(part_MND, found.scales.get("to_attention")), value_ED)
        biased = first + step >= M
        if biased and value_bias_E is not None:
            value_MNE[-1] += value_bias_E
        mixed_MNE = _mixed(weight_HNN, value_MNE, out.in_features)
        added_MND = project(mixed_MNE, wide(out.weight))
        if biased and out.bias is not None:
            added_MND[-1] += out.bias
        part_MND += _scaled(added_MND, found.scales.get("from_attention"))
    gate_FD, gate_bias_F = _gate_projection(here.ffn)
    down_DF = wide(down.weight)
    step = max(1, chunk_values // (M * max(D, len(gate_FD))))
    for first in range(0, N, step):
        span = slice(first, first + step)
        scales = {name: scale_ND[span] for name, scale_ND in found.scales.items()}
        gate_MNF = project(_scaled(X_MND[:, span], scales.get("to_mlp")), gate_FD)
        if gate_bias_F is not None:
            gate_MNF[-1] += gate_bias_F
        added_MND = project(rule(gate_MNF).mul_(found.h_NF[span]), down_DF)
        if down.bias is not None:
            added_MND[-1] += down.bias
        X_MND[:, span] += _scaled(added_MND, scales.get("from_mlp"))


def _mixed(weight_HNN: Tensor, value_MNE: Tensor, width: int) -> Tensor:
    """Values (M, N, of all key/value heads) mixed by attention: (M, N, width of all heads)."""
    M, N, _ = value_MNE.shape
    H = len(weight_HNN)
    value_MNGd = value_MNE.unflatten(-1, (-1, width // H))
    G = value_MNGd.shape[2]
    value_GNX = value_MNGd.permute(2, 1, 0, 3).reshape(G, 1, N, -1)
    mixed_GhNX = weight_HNN.view(G, H // G, N, N) @ value_GNX
    return mixed_GhNX.view(H, N, M, -1).permute(2, 1, 0, 3).reshape(M, N, width)


def _value_projection(here: Block) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the values alone."""
    found, start = projections(here), 0
    module = found.get("qkv_proj") or found["v_proj"]
    if "qkv_proj" in found:
        # Queries are as wide as the heads' output; keys and values share the rest.
        start = (module.out_features + here.attention.out.in_features) // 2
    return wide(module.weight[start:]), None if module.bias is None else wide(module.bias[start:])


def _gate_projection(ffn: Ffn) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the gate alone."""
    units = slice(ffn.down.in_features)
    bias = None if ffn.gate.bias is None else wide(ffn.gate.bias[units])
    return wide(ffn.gate.weight[units]), bias
