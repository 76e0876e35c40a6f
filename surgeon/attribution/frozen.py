"""A model's layers with everything held that makes them non-linear, as DePass does.

Nothing of a layer is written anew here: the model makes its own pass, and hooks either note what it
computed (`record`) or change what its gradient sees (`linear`). Norms are told apart by which
tensor they take and give, not by name, so sandwich norms and norms after the block need no table.
"""

# Shape letters: N tokens of a sequence, D model width, F units, H heads, E width of all heads.

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.architecture import text_config, text_decoder
from surgeon.live.blocks import Block, block
from surgeon.live.passes import evaluating, forward


@dataclass
class Layer:
    """What one layer computed in an ordinary pass; scales are the norms' frozen diagonals."""

    x_ND: Tensor
    """The residual stream that enters it."""
    y_ND: Tensor
    """The one that leaves it."""
    mixed_NE: Tensor
    """Input of the output projection: the heads' mixed values."""
    h_NF: Tensor
    """Input of the down projection: act(gate) * up."""
    attention_HNN: Tensor | None
    """Attention weights, where the model gives them (`eager`)."""
    scales: dict[str, Tensor] = field(default_factory=dict)
    """(N, D) of the norm, if any, `to_attention`, `from_attention`, `to_mlp`, `from_mlp`."""


def projections(block: Block) -> dict[str, nn.Linear]:
    """Queries, keys and values of a layer, by name: apart (`q_proj` ...) or fused (`qkv_proj`).

    Raises `BadInput` naming the architecture where a layer attends in another way.
    """
    module = block.attention.module
    for names in (("qkv_proj",), ("q_proj", "k_proj", "v_proj")):
        found = {
            n: m for n, m in module.named_children() if n in names and isinstance(m, nn.Linear)
        }
        if len(found) == len(names):
            return found
    raise BadInput(
        f"found the architecture {block.kind!r}, whose layer {block.layer} has no projections to "
        "queries, keys and values, expected some: attribution holds them."
    )


def norms(block: Block) -> list[nn.Module]:
    """The norms of a layer."""
    return [module for name, module in block.module.named_children() if "norm" in name]


def wide(tensor: Tensor) -> Tensor:
    """The same in float32, or in its own precision where that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def tolerance(dtype: torch.dtype) -> float:
    """How far, as a share, what is put together again may be from what the model computed."""
    return 0.05 if dtype in (torch.float16, torch.bfloat16) else 1e-3


def scale(norm: nn.Module, x_ND: Tensor, out_ND: Tensor, model: nn.Module) -> Tensor:
    """The diagonal (N, D) that an RMS norm is at these values.

    Whether the weight is w or 1 + w is asked of the norm itself. Raises `BadInput` for other norms.
    """
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if isinstance(eps, float):
        ones_D = torch.ones_like(x_ND[:1])
        # `forward`, since calling the norm would run the hooks that are on it.
        weight_D = wide(norm.forward(ones_D)) * (1 + eps) ** 0.5
        wide_ND = wide(x_ND)
        found_ND = weight_D * torch.rsqrt(wide_ND.square().mean(-1, keepdim=True) + eps)
        difference_ND = wide_ND * found_ND - wide(out_ND)
        if difference_ND.norm() <= tolerance(out_ND.dtype) * wide(out_ND).norm():
            return found_ND
    if not bool(out_ND.isfinite().all()):
        raise BadInput("found hidden states that are not finite: broken weights?")
    raise BadInput(
        f"found the architecture {text_config(model).model_type!r}, whose {type(norm).__name__} is "
        "no RMS norm; expected one: attribution holds its scale."
    )


@torch.no_grad()
def record(
    model: nn.Module,
    ids: list[int],
    first: int,
    sink: Callable[[int, Layer], None],
    *,
    until: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Call `sink(number, layer)` for the layers `first` to `until` as the model computes them.

    Returns (state (N, D) before the final norm, that norm's scale (N, D)). Nothing is kept of a
    layer that the sink doesn't keep.
    """
    final: dict[str, Tensor] = {}

    def last(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        final["x"], final["scale"] = args[0][0], scale(norm, args[0][0], out[0], model)

    with ExitStack() as undo:
        decoder: Any = text_decoder(model)
        for number in range(first, len(decoder.layers) if until is None else until + 1):
            _record_layer(undo, model, number, sink)
        undo.callback(decoder.norm.register_forward_hook(last).remove)
        run(model, ids)
    return final["x"], final["scale"]


def _record_layer(
    undo: ExitStack, model: nn.Module, number: int, sink: Callable[[int, Layer], None]
) -> None:
    here = block(model, number)
    projections(here)
    seen: dict[str, Any] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    def attended(_: nn.Module, __: Any, out: tuple[Tensor, Tensor | None]) -> None:
        seen["from_attention"], seen["attention"] = out

    def activated(_: nn.Module, __: Any, out: Tensor) -> None:
        seen["from_mlp"] = out

    def normed(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.setdefault("norms", []).append((norm, args[0], out))

    def leave(_: nn.Module, __: Any, out: Tensor) -> None:
        attention = seen["attention"]
        layer = Layer(
            seen["block"][0], out[0], seen["mixed"][0], seen["h"][0],
            None if attention is None else attention[0],
        )  # fmt: skip
        for norm, x, normed_x in seen.get("norms", []):
            places = [name for name in ("to_attention", "to_mlp") if seen[name] is normed_x]
            places += [name for name in ("from_attention", "from_mlp") if seen[name] is x]
            if len(places) != 1:
                raise BadInput(
                    f"found the architecture {text_config(model).model_type!r}, whose layer "
                    f"{number} has a norm that is neither before nor after one of its two blocks; "
                    "attribution doesn't know this layout."
                )
            layer.scales[places[0]] = scale(norm, x[0], normed_x[0], model)
        seen.clear()
        sink(number, layer)

    for module, name in (
        (here.module, "block"),
        (here.attention.module, "to_attention"),
        (here.ffn.module, "to_mlp"),
        (here.attention.out, "mixed"),
        (here.ffn.down, "h"),
    ):
        undo.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
    for norm in norms(here):
        undo.callback(norm.register_forward_hook(normed).remove)
    undo.callback(here.attention.module.register_forward_hook(attended).remove)
    undo.callback(here.ffn.module.register_forward_hook(activated).remove)
    undo.callback(here.module.register_forward_hook(leave).remove)


class Graph(NamedTuple):
    """A pass whose gradient is the ratio rule's linear map from one layer's output onwards."""

    hidden_1ND: Tensor
    """Final hidden states, after the final norm."""
    x_1ND: Tensor
    """Leaf: the residual stream that enters the layer."""
    out_1ND: Tensor
    """Leaf: what the layer's output projection gives, bias included."""
    down_1ND: Tensor
    """Leaf: what its down projection gives, bias included."""
    mixed_NE: Tensor
    h_NF: Tensor
    zeros: list[Tensor]
    """Leaves that are added to the outputs of later projections with a bias: a bias' gradient."""
    biases: list[Tensor]


def linear(model: nn.Module, ids: list[int], layer: int) -> Graph:
    """Make the model's own pass with a gradient that sees it as linear after layer `layer`.

    Its values are the ordinary ones. Attention weights, norm scales, `up` and act(gate) / gate
    count as constants: queries, keys and `up` are detached, the others' gradients replaced.
    """
    kept: dict[str, Tensor] = {}
    zeros: list[Tensor] = []
    biases: list[Tensor] = []

    def leaf(name: str, value: Tensor) -> Tensor:
        kept[name] = value.detach().requires_grad_()
        return kept[name]

    def enter(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (leaf("x", args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": leaf("x", kwargs["hidden_states"])}

    def writes(read: str, name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            kept[read] = args[0].detach()[0]
            return leaf(name, out)

        return hook

    def normed(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        scale_ND = scale(norm, args[0].detach()[0], out.detach()[0], model)
        return _through(out, args[0] * scale_ND.to(out.dtype))

    def activated(activation: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        gate = args[0].detach()
        # At 0 the ratio is its limit, so that the gradient is finite.
        gate = gate.where(gate.abs() >= 1e-6, 1e-6)
        return _through(out, args[0] * (activation.forward(gate) / gate))

    def biased(module: nn.Linear, _: Any, out: Tensor) -> Tensor:
        biases.append(module.bias.detach())
        zeros.append(torch.zeros_like(biases[-1]).requires_grad_())
        return out + zeros[-1]

    decoder: Any = text_decoder(model)
    with ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        undo.enter_context(_weights_without_gradient(model))
        here = block(model, layer)
        undo.callback(here.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        undo.callback(here.attention.out.register_forward_hook(writes("mixed", "out")).remove)
        undo.callback(here.ffn.down.register_forward_hook(writes("h", "down")).remove)
        # Of this layer only the norms after its two blocks are on the way.
        hooks = [(norm, normed) for norm in (*norms(here), decoder.norm)]
        for number in range(layer + 1, len(decoder.layers)):
            later = block(model, number)
            hooks += [(norm, normed) for norm in norms(later)]
            hooks += [(_activation(later), activated)]
            for part in (later.attention.module, later.ffn.module):
                linears = [m for m in part.modules() if isinstance(m, nn.Linear)]
                hooks += [(m, biased) for m in linears if m.bias is not None]
            hooks += [(module, _detached(span)) for module, span in _constants(later)]
        for module, hook in hooks:
            undo.callback(module.register_forward_hook(hook).remove)
        hidden_1ND = run(model, ids)
    return Graph(
        hidden_1ND, kept["x"], kept["out"], kept["down"], kept["mixed"], kept["h"], zeros, biases
    )


def _constants(layer: Block) -> list[tuple[nn.Module, slice]]:
    """Projections whose output (or that part of it) counts as constant: queries, keys, up."""
    everything, ffn = slice(None), layer.ffn
    found = projections(layer)
    if fused := found.get("qkv_proj"):
        # Queries, keys, values: the last two are of one width.
        width = (fused.out_features - layer.attention.out.in_features) // 2
        constants: list[tuple[nn.Module, slice]] = [(fused, slice(0, fused.out_features - width))]
    else:
        constants = [(found["q_proj"], everything), (found["k_proj"], everything)]
    return [*constants, (ffn.up, slice(ffn.down.in_features, None) if ffn.fused else everything)]


def _activation(layer: Block) -> nn.Module:
    if layer.ffn.activation is None:
        raise BadInput(
            f"found the architecture {layer.kind!r}, whose activation function is no module, "
            "expected one: attribution holds act(gate) / gate. Use direct."
        )
    return layer.ffn.activation


def _detached(part: slice) -> Callable[..., Tensor]:
    def hook(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        if part == slice(None):
            return out.detach()
        constant = torch.zeros(out.shape[-1], dtype=torch.bool, device=out.device)
        constant[part] = True
        return torch.where(constant, out.detach(), out)

    return hook


def _through(value: Tensor, gradient: Tensor) -> Tensor:
    """`value`, with the gradient of `gradient`."""
    return value.detach() + (gradient - gradient.detach())


@contextmanager
def _weights_without_gradient(model: nn.Module) -> Iterator[None]:
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)


def run(model: nn.Module, ids: list[int]) -> Tensor:
    """The final hidden states (1, N, D) of one sequence."""
    id_1N = torch.tensor([ids], device=next(model.parameters()).device)
    with evaluating(model):
        return forward(model, id_1N)
