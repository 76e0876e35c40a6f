"""Where each layer of a live model computes its FFN units and mixes its heads.

Read off the model itself, loaded or built without weights (`torch.device("meta")`): a gated FFN,
down(act(gate) * up), is known by its projections, and routed experts by transformers' own interface
for them. So a new family needs no entry anywhere, and one of another form is refused by name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from surgeon.checkpoint import d_ff_of, passed_units_of
from surgeon.errors import BadInput
from surgeon.live.architecture import text_config, text_decoder

PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""What families call the projections of a gated FFN."""
FUSED = ("gate_up_proj", "down_proj")
ACTIVATIONS = ("act_fn", "activation_fn")
WRITERS = {"down_proj", "w2", "fc2", "c_proj", "output_linear", "dense_4h_to_h", "wo"}
"""What families call the projection through which an FFN, of whatever form, writes."""
NO_FFN = {"self_attn", "attn", "attention", "linear_attn", "mamba", "gate", "router"}
"""Parts of a layer that hold no FFN units, whatever their projections are called."""


class Ffn(NamedTuple):
    """A gated FFN: down(act(gate) * up)."""

    module: nn.Module
    gate: nn.Linear
    """Where gate and up are fused: both, the gate's rows first."""
    up: nn.Linear
    down: nn.Linear
    """Its input is h, the activations of the units."""
    activation: nn.Module | None
    """Its output is act(gate); None where it is a bare function."""

    @property
    def fused(self) -> bool:
        """Whether one projection gives gate and up."""
        return self.gate is self.up


class Attention(NamedTuple):
    """The attention of a layer."""

    module: nn.Module
    out: nn.Linear
    """Its input is the heads' mixed values, head after head."""
    n_heads: int


class FfnSite(NamedTuple):
    """A module that computes units of one layer."""

    layer: int
    module: nn.Module
    """Dense: the down projection, whose input is the units' h. Experts: the module of all experts,
    whose `_apply_gate` returns h of the chosen ones."""
    experts: int
    """How many experts it holds; 0 for a dense one."""
    first: int
    """The number of its first unit within the layer."""
    n_units: int
    """Units, of one expert where there are experts."""


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of a live model. What a layer lacks is refused where it is asked for."""

    kind: str
    """The `model_type`, for messages."""
    layer: int
    module: nn.Module
    n_heads: int
    """0 where the config has none."""

    @cached_property
    def sites(self) -> tuple[FfnSite, ...]:
        """Where its units are computed, by first unit; raises BadInput where that isn't known.

        Routed experts come first, unit j of expert e at e * n_units + j; the units of an expert
        that all tokens share follow them.
        """
        experts, ffns = list(_experts(self.module)), list(_ffns(self.module))
        known = {id(ffn.down) for ffn in ffns} | {id(module) for module in experts}
        strange = [name for name, module in _writers(self.module) if id(module) not in known]
        if strange or len(ffns) > 1 or len(experts) > 1 or not known:
            found = f"writes through {strange[0]}" if strange else f"has {len(known)} FFNs"
            raise self._refusal(found, "one gated FFN, or routed experts of transformers' kind")
        sites = []
        for module in experts:
            weight: Any = module.down_proj
            n_units = weight.shape[1 if module.is_transposed else 2]
            sites.append(FfnSite(self.layer, module, weight.shape[0], 0, n_units))
        for ffn in ffns:
            first = sum(site.experts * site.n_units for site in sites)
            sites.append(FfnSite(self.layer, ffn.down, 0, first, ffn.down.in_features))
        return tuple(sites)

    @property
    def n_units(self) -> int:
        """Its units, of all experts together."""
        return sum(max(site.experts, 1) * site.n_units for site in self.sites)

    @property
    def ffns(self) -> tuple[Ffn, ...]:
        """Its FFNs that all tokens pass through, in the order of `sites`."""
        return tuple(_ffns(self.module))

    @cached_property
    def ffn(self) -> Ffn:
        """Its one FFN; raises BadInput for a mixture of experts."""
        if [site.experts for site in self.sites] != [0]:
            raise self._refusal("is a mixture of experts", "one gated FFN: dense models only")
        return next(_ffns(self.module))

    @cached_property
    def attention(self) -> Attention:
        """Its attention; raises BadInput where its heads can't be told apart."""
        module: Any = getattr(self.module, "self_attn", None)
        out = getattr(module, "o_proj", None)
        if not isinstance(out, nn.Linear) or not self.n_heads or out.in_features % self.n_heads:
            width = out.in_features if isinstance(out, nn.Linear) else None
            raise self._refusal(
                f"has an output projection of input width {width}",
                f"one that {self.n_heads} attention heads divide evenly",
            )
        return Attention(module, out, self.n_heads)

    def _refusal(self, found: str, expected: str) -> BadInput:
        return BadInput(
            f"found the architecture {self.kind!r}, whose layer {self.layer} {found}, "
            f"expected {expected}."
        )


def block(model: nn.Module, layer: int) -> Block:
    """One layer; raises BadInput for a number that the model doesn't have."""
    config, layers = text_config(model), layers_of(model)
    if not 0 <= layer < len(layers):
        raise BadInput(
            f"found layer {layer}; expected 0 to {len(layers) - 1} in this {config.model_type} "
            "model."
        )
    own = config.per_layer_config[layer] if config.is_heterogeneous else config
    n_heads = getattr(own, "num_attention_heads", None) or 0
    return Block(config.model_type, layer, layers[layer], n_heads)


def blocks(model: nn.Module) -> list[Block]:
    """Every layer; raises BadInput, naming the architecture, where units can't be recorded."""
    found = [block(model, layer) for layer in range(len(layers_of(model)))]
    most = d_ff(model)
    for one in found:
        if one.n_units > most:
            raise BadInput(
                f"found the architecture {one.kind!r}, whose layer {one.layer} has {one.n_units} "
                f"FFN units, expected at most the {most} of its config."
            )
    return found


def d_ff(model: nn.Module) -> int:
    """FFN units per layer, the same number as the `d_ff` of its `Checkpoint`."""
    return d_ff_of(text_config(model).to_dict())


def passed_units(model: nn.Module) -> int:
    """FFN units that a token passes through, over all layers: of experts the chosen ones."""
    routed = [one.layer for one in blocks(model) if any(site.experts for site in one.sites)]
    units = passed_units_of(text_config(model).to_dict(), routed)
    if units is None:
        raise BadInput(
            f"found the architecture {text_config(model).model_type!r}, whose config doesn't say "
            "how many experts a token passes through, expected num_experts_per_tok."
        )
    return units


def layers_of(model: nn.Module) -> nn.ModuleList:
    """Its layers; raises BadInput for a model of another build."""
    layers = getattr(text_decoder(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise BadInput(
            f"found the architecture {text_config(model).model_type!r}, whose decoder has no "
            "layers, expected a stack of blocks that attend and then mix."
        )
    return layers


def _parts(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a layer that may hold FFN units, by name."""
    for name, module in layer.named_modules():
        if not NO_FFN.intersection(name.split(".")):
            yield name, module


def _ffns(layer: nn.Module) -> Iterator[Ffn]:
    for _, module in _parts(layer):
        linears = {n: m for n, m in module.named_children() if isinstance(m, nn.Linear)}
        others = [m for n, m in module.named_children() if n not in linears]
        # A norm between the product and the last projection: its input is no longer h.
        if any(True for other in others for _ in other.parameters()):
            continue
        activation = next((m for n, m in module.named_children() if n in ACTIVATIONS), None)
        if linears.keys() == set(FUSED):
            gate_up, down = (linears[name] for name in FUSED)
            if gate_up.out_features == 2 * down.in_features:
                yield Ffn(module, gate_up, gate_up, down, activation)
        for names in PROJECTIONS:
            if linears.keys() == set(names):
                gate, up, down = (linears[name] for name in names)
                if gate.out_features == up.out_features == down.in_features:
                    yield Ffn(module, gate, up, down, activation)


def _experts(layer: nn.Module) -> Iterator[nn.Module]:
    """Modules of all experts, whose h passes through `_apply_gate`."""
    for _, module in _parts(layer):
        stored = isinstance(getattr(module, "down_proj", None), nn.Parameter)
        if stored and hasattr(module, "_apply_gate") and getattr(module, "has_gate", False):
            yield module


def _writers(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What looks like the last projection of an FFN, by name: a module, or the one that owns it."""
    for name, module in _parts(layer):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in WRITERS:
            yield name, module
        for own, _ in module.named_parameters(recurse=False):
            if own in WRITERS:
                yield f"{name}.{own}", module
