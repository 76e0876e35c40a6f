"""Where a neuron lives: unit j of layer l is row j of gate and up, and column j of down.

A neuron's key is layer * d_ff + unit; in a mixture of experts unit j of expert e has the number
e * units_per_expert + j.
"""

# Shapes: F units, D model width, E experts.

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


class Slab(NamedTuple):
    """The part of one stored tensor that holds one projection of a block of units."""

    name: str
    """The tensor's name in the files."""
    role: str
    """`gate`, `up`, `down`, `gate_bias` or `up_bias`."""
    axis: int
    """The axis along which units lie, after `expert` has been taken."""
    start: int
    """Where unit 0 lies on that axis."""
    step: int = 1
    """How far unit j + 1 lies from unit j; 2 where gate and up alternate."""
    expert: int | None = None
    """The index on the first axis of a tensor that holds all experts."""

    @property
    def canonical_axis(self) -> int:
        """The units' axis in `view`: 1 for down, else 0."""
        return 1 if self.role == "down" else 0

    def index(self, units: "slice | None", n_units: int) -> tuple:
        """What to index the stored tensor with to get those units (a slice of 0..n_units)."""
        first, last, _ = (units or slice(None)).indices(n_units)
        along = slice(
            self.start + first * self.step, self.start + (last - 1) * self.step + 1, self.step
        )
        rest = (slice(None),) * self.axis + (along,)
        return rest if self.expert is None else (self.expert, *rest)

    def view(self, tensor: "Tensor", n_units: int, units: "slice | None" = None) -> "Tensor":
        """The units inside `tensor`, without a copy: gate, up (F, D); down (D, F); biases (F,)."""
        part = tensor[self.index(units, n_units)]
        return part if part.dim() == 1 or self.axis == self.canonical_axis else part.mT


class Site(NamedTuple):
    """A block of units of one layer that are stored together: a dense FFN, or one expert."""

    layer: int
    first: int
    """The number of its first unit within the layer: 0, or expert * units per expert."""
    n_units: int
    slabs: tuple[Slab, ...]
    """Gate, up, down, and the biases of gate and up where there are any."""

    @property
    def span(self) -> slice:
        """Its units among the layer's `d_ff`."""
        return slice(self.first, self.first + self.n_units)

    def slab(self, role: str) -> Slab:
        """The slab of that role."""
        return next(slab for slab in self.slabs if slab.role == role)


_LAYER = re.compile(
    r"(?:model\.language_model\.|language_model\.model\.|model\.|)layers\.(\d+)\."
    r"(?:mlp|block_sparse_moe|feed_forward)\.(.+)"
)
_DENSE = re.compile(
    r"(?:experts\.(\d+)\.|(shared_experts?)\.)?(gate|up|down|gate_up)_proj\.(weight|bias)"
)
_MIXTRAL = re.compile(r"(?:experts\.(\d+)\.)?w([123])\.weight")
_ALL_EXPERTS = re.compile(r"experts\.(gate_up|down)_proj(_bias)?")
_ROUTER = re.compile(
    r"(?:gate|router|shared_expert_gate|moe_statics)\.(?:weight|bias|e_score_correction_bias)"
)
_SHARED = sys.maxsize
"""Stands for the number of the expert that all tokens share, whose units follow the others'."""
_MIXTRAL_ROLES = {"1": "gate", "3": "up", "2": "down"}


def sites(checkpoint: Checkpoint) -> list[Site]:
    """Where every FFN unit of a checkpoint is stored, from its headers, by layer and first unit.

    Unit j of a layer is row j of gate and up and column j of down (NEX sec. 5.5); unit j of
    expert e has number e * units_per_expert + j, and a shared expert's units follow them. Known
    are separate and fused gate and up, one file entry per expert (qwen3_moe, mixtral) or one for
    all experts, in either orientation, and the alternating columns of gpt_oss. The bias of down
    belongs to no unit. Raises `BadInput` naming the tensor when a layer's FFN is incomplete, of
    another shape than the config says, or of a kind not listed here.
    """
    found: dict[tuple[int, int], list[tuple[Slab, int]]] = {}
    for name, info in checkpoint.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) >= checkpoint.n_layers:
            continue  # beyond the last layer: draft heads that predict further tokens
        entries = _entries(checkpoint, name, match[2], info.shape)
        if entries is None:
            raise BadInput(
                f"{checkpoint.spec} ({checkpoint.model_type}) stores {name} {list(info.shape)} in "
                "its FFN, of a layout whose units surgeon can't tell apart."
            )
        for expert, slab, n_units in entries:
            found.setdefault((int(match[1]), expert), []).append((slab, n_units))
    by_layer: dict[int, list[Site]] = {layer: [] for layer in range(checkpoint.n_layers)}
    for (layer, expert), slabs in sorted(found.items()):
        members = by_layer[layer]
        if expert == _SHARED:
            first = members[-1].span.stop if members else 0
        else:
            first = expert * slabs[0][1]
        members.append(_site(checkpoint, layer, first, slabs))
    for layer, members in by_layer.items():
        if not members or members[-1].span.stop > checkpoint.d_ff:
            stored = members[-1].span.stop if members else 0
            raise BadInput(
                f"{checkpoint.spec} ({checkpoint.model_type}) stores {stored} FFN units in layer "
                f"{layer}, its config says {checkpoint.d_ff}."
            )
    return [site for members in by_layer.values() for site in members]


def _entries(
    checkpoint: Checkpoint, name: str, rest: str, shape: tuple[int, ...]
) -> list[tuple[int, Slab, int]] | None:
    """(expert, slab, units) for each thing a tensor stores; None where the layout is unknown."""
    if _ROUTER.fullmatch(rest) or rest in ("down_proj.bias", "experts.down_proj_bias"):
        return []
    if match := _MIXTRAL.fullmatch(rest):
        role = _MIXTRAL_ROLES[match[2]]
        axis = 1 if role == "down" else 0
        return [(int(match[1] or 0), Slab(name, role, axis, 0), shape[axis])]
    if match := _DENSE.fullmatch(rest):
        expert = _SHARED if match[2] else int(match[1] or 0)
        part, kind = match[3], match[4]
        suffix = "_bias" if kind == "bias" else ""
        if part == "down":
            return [] if suffix else [(expert, Slab(name, "down", 1, 0), shape[1])]
        if part == "gate_up":
            half = shape[0] // 2
            return [
                (expert, Slab(name, "gate" + suffix, 0, 0), half),
                (expert, Slab(name, "up" + suffix, 0, half), half),
            ]
        return [(expert, Slab(name, part + suffix, 0, 0), shape[0])]
    if match := _ALL_EXPERTS.fullmatch(rest):
        return _entries_of_all_experts(checkpoint, name, match[1], bool(match[2]), shape)
    return None


def _entries_of_all_experts(
    checkpoint: Checkpoint, name: str, part: str, bias: bool, shape: tuple[int, ...]
) -> list[tuple[int, Slab, int]] | None:
    """The same for a tensor with experts on its first axis.

    gate_up is (E, 2F, D) and down (E, D, F) in memory; files may hold both transposed. Which it is
    follows from the shape as it does when transformers loads them; gpt_oss is always transposed,
    with gate in the even columns and up in the odd ones.
    """
    config, alternating = checkpoint.text_config, checkpoint.model_type == "gpt_oss"
    width = int(config["hidden_size"])
    n_units = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    if bias:
        if shape[1] != 2 * n_units:
            return None
        axis = 0
    else:
        straight = (2 * n_units, width) if part == "gate_up" else (width, n_units)
        if shape[1:] == straight and not alternating:
            axis = 0 if part == "gate_up" else 1
        elif shape[1:] == straight[::-1]:
            axis = 1 if part == "gate_up" else 0
        else:
            return None
    if part == "down":
        return [(e, Slab(name, "down", axis, 0, 1, e), n_units) for e in range(shape[0])]
    suffix = "_bias" if bias else ""
    start, step = (1, 2) if alternating else (n_units, 1)
    return [
        (expert, slab, n_units)
        for expert in range(shape[0])
        for slab in (
            Slab(name, "gate" + suffix, axis, 0, step, expert),
            Slab(name, "up" + suffix, axis, start, step, expert),
        )
    ]


_ROLES = ("gate", "up", "down", "gate_bias", "up_bias")


def _site(checkpoint: Checkpoint, layer: int, first: int, slabs: list[tuple[Slab, int]]) -> Site:
    """One block of units from its slabs; raises `BadInput` where a part is missing or disagrees."""
    roles = [slab.role for slab, _ in slabs]
    sizes = {n_units for _, n_units in slabs}
    if len(sizes) > 1 or len(set(roles)) < len(roles) or not {"gate", "up", "down"} <= {*roles}:
        raise BadInput(
            f"{checkpoint.spec} ({checkpoint.model_type}) stores an FFN in layer {layer} with "
            f"{', '.join(sorted(roles))} of {sorted(sizes)} units; expected gate, up and down "
            "of one size."
        )
    for slab, _ in slabs:
        shape = checkpoint.tensors[slab.name].shape[slab.expert is not None :]
        if len(shape) == 2 and shape[1 - slab.axis] != checkpoint.text_config.get("hidden_size"):
            raise BadInput(
                f"{checkpoint.spec} stores {slab.name} as {list(shape)}; its config says hidden "
                f"size {checkpoint.text_config.get('hidden_size')}."
            )
    ordered = sorted((slab for slab, _ in slabs), key=lambda slab: _ROLES.index(slab.role))
    return Site(layer, first, sizes.pop(), tuple(ordered))
