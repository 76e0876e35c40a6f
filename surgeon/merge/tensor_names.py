"""Two spellings of one architecture: the second endpoint as the first's files would name it.

Experts one by one or fused, vision-language names before and after their renaming, with a prefix or
without, a tied head that is stored or not: transformers' own conversions say which tensors are one
parameter of the live model.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surgeon.checkpoint import Checkpoint, torch_dtype
from surgeon.errors import BadInput
from surgeon.families import label
from surgeon.live.families import Place, places
from surgeon.live.support import skeleton
from surgeon.merge.aligned import Aligned, Piece

Read = Callable[[list[str]], dict[str, Tensor]]


class TensorNames:
    """Which parameter of the live model each tensor of a checkpoint is."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Built from the config and the headers alone."""
        self.checkpoint = checkpoint
        self.model: Any = skeleton(checkpoint.full_config)
        self.state: dict[str, Tensor] = self.model.state_dict()
        self.places = places(self.model, self.state, list(checkpoint.tensors))
        self.of_key = {key: place for place in self.places for key in self._outputs(place)}

    def _outputs(self, place: Place) -> list[str]:
        """The live parameters that come of the tensors of a place."""
        if place.converter is None or len(place.converter.target_patterns) == 1:
            return [place.key]
        return list(live(self.model, place, headers(self.checkpoint)))

    @property
    def unplaced(self) -> list[str]:
        """Tensors that the architecture has no parameter for."""
        placed = {name for place in self.places for name in place.names}
        return [name for name in self.checkpoint.tensors if name not in placed]

    def weights_of(self, module: Any) -> list[str]:
        """Live names of the parameters of one module, the embedding or the head."""
        own = {id(p) for p in module.parameters(recurse=False)} if module is not None else set()
        named = self.model.named_parameters(remove_duplicate=False)
        return [name for name, parameter in named if id(parameter) in own]

    @property
    def head(self) -> str | None:
        """Live name of the head's weight."""
        module = self.model.get_output_embeddings()
        names = [n for n, m in self.model.named_modules() if m is module]
        return f"{names[0]}.weight" if module is not None and names else None

    @property
    def embedding(self) -> str:
        """Live name of the embedding's weight."""
        module = self.model.get_input_embeddings()
        return next(n for n, m in self.model.named_modules() if m is module) + ".weight"

    def vocabulary_tensors(self) -> list[str]:
        """Names on disk of the tensors with a row per token: embedding, head, head's bias."""
        keys = [self.embedding, self.head]
        keys += [self.head.removesuffix("weight") + "bias"] if self.head else []
        found = [self.of_key[key].names for key in keys if key in self.of_key]
        return [names[0] for names in found if len(names) == 1]


def headers(checkpoint: Checkpoint) -> Read:
    """Reads tensors without their values: shapes and dtypes, on torch's meta device."""

    def read(names: list[str]) -> dict[str, Tensor]:
        infos = {name: checkpoint.tensors[name] for name in names}
        return {
            name: torch.empty(info.shape, dtype=torch_dtype(info.dtype), device="meta")
            for name, info in infos.items()
        }

    return read


def live(model: Any, place: Place, read: Read) -> dict[str, Tensor]:
    """The live parameters of a place, converted as `from_pretrained` would."""
    import copy

    tensors = read(list(place.names))
    if place.converter is None:
        return {place.key: tensors[place.names[0]]}
    converter = copy.deepcopy(place.converter)
    for name, pattern in zip(place.names, place.patterns, strict=True):
        converter.add_tensor(place.key, name, pattern, tensors[name])
    made = converter.convert(place.key, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}


def alike(first: Checkpoint, second: Checkpoint) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """The endpoints with the tensor names of the first, and a sentence for each thing done.

    Endpoints of the same names come back as they are. Raises `BadInput` where one has a weight that
    the other lacks.
    """
    if first.tensors.keys() == second.tensors.keys():
        return first, second, []
    one, two = TensorNames(first), TensorNames(second)
    names = f"{label(first)} and {label(second)}"
    said = []
    left = [*one.unplaced, *two.unplaced]
    left = [n for n in left if (n in first.tensors) != (n in second.tensors)]
    if left:
        said.append(
            f"{len(left)} tensors of {names} have no place in the architecture (first {left[0]}); "
            "the candidates have none"
        )
    head = one.head
    stored = [head is not None and head in spelling.of_key for spelling in (one, two)]
    if head is not None and stored[0] != stored[1]:
        said.append(_tied_head(one if stored[0] else two, head, names))
    _require_same_keys(one, two, head)
    pieces = respelled(one, two, head)
    here = {
        n: Piece(i, lambda n=n: first.tensor(n)) for n, i in first.tensors.items() if n in pieces
    }
    if len(here) < len(first.tensors):
        changes = {"without": sorted(first.tensors.keys() - here.keys())}
        first = Aligned(first.path, first.spec, here, changes, (first.digest,))
    shared = [n for n in pieces if n in second.tensors]
    if len(shared) < len(pieces):
        said.append(
            f"{names} spell one architecture in two ways ({_differing(first, second)}); the "
            f"candidates have the names of {label(first)}"
        )
    changes = {"spelled": sorted(pieces)}
    return first, Aligned(second.path, second.spec, pieces, changes, (second.digest,)), said


def _differing(first: Checkpoint, second: Checkpoint) -> str:
    only = [
        next((n for n in one.tensors if n not in two.tensors), "none")
        for one, two in ((first, second), (second, first))
    ]
    return f"{only[0]} and {only[1]}"


def _tied_head(owner: TensorNames, head: str, names: str) -> str:
    """The sentence for a head that only one of two tied endpoints stores."""
    checkpoint = owner.checkpoint
    stored, embedding = (owner.of_key[key].names[0] for key in (head, owner.embedding))
    if not torch.equal(checkpoint.tensor(stored), checkpoint.tensor(embedding)):
        raise BadInput(
            f"only {checkpoint.spec} has a head of its own: {stored} is not its embedding, though "
            "its config ties the two. Save both endpoints tied, or both untied."
        )
    return f"of {names}, only {label(checkpoint)} stores the tied head, which is its embedding"


def _require_same_keys(one: TensorNames, two: TensorNames, head: str | None) -> None:
    for here, there in ((one, two), (two, one)):
        only = [key for key in here.of_key if key not in there.of_key and key != head]
        if only:
            name = here.of_key[only[0]].names[0]
            raise BadInput(
                f"{here.checkpoint.spec} has {len(only)} tensors that {there.checkpoint.spec} "
                f"lacks, first {name}. Endpoints must have the same layers."
            )


def respelled(one: TensorNames, two: TensorNames, head: str | None) -> dict[str, Piece]:
    """The second's tensors under the first's names, in the first's shards."""
    shard_of = {name: info.shard for name, info in one.checkpoint.tensors.items()}
    source, pieces = two.checkpoint, {}
    last: dict[str, dict[str, Tensor]] = {}

    def make(place: Place, name: str) -> Tensor:
        if place.key not in last:  # the experts of a layer are converted once
            last.clear()
            last[place.key] = _group(one, two, place, head, source.read_many)
        return last[place.key][name]

    for place in one.places:
        for name, tensor in _group(one, two, place, head, headers(source)).items():
            dtype = source.tensors[_source_of(two, place, head).names[0]].dtype
            shape, nbytes = tuple(tensor.shape), tensor.numel() * tensor.element_size()
            info = one.checkpoint.tensors[name]._replace(dtype=dtype, shape=shape, nbytes=nbytes)
            pieces[name] = Piece(info, lambda place=place, name=name: make(place, name))
    return {name: pieces[name] for name in shard_of if name in pieces}


def _source_of(two: TensorNames, place: Place, head: str | None) -> Place:
    """Where the second has a parameter of the first; a tied head is its embedding."""
    if place.key == head and head not in two.of_key:
        return two.of_key[two.embedding]
    return two.of_key[place.key]


def _group(
    one: TensorNames, two: TensorNames, place: Place, head: str | None, read: Read
) -> dict[str, Tensor]:
    """The second's tensors for one place of the first, by the first's names."""
    there = _source_of(two, place, head)
    if place.names == there.names:
        return read(list(place.names))
    if place.patterns == there.patterns:  # renamed, nothing else
        found = read(list(there.names))
        return {to: found[name] for to, name in zip(place.names, there.names, strict=True)}
    keys = [key for key, found in one.of_key.items() if found is place]
    sources = {id(p): p for p in (_source_of(two, place._replace(key=k), head) for k in keys)}
    parameters: dict[str, Tensor] = {}
    for found in sources.values():
        parameters |= live(two.model, found, read)
    if place.converter is None:
        return {place.names[0]: parameters[place.key]}
    return _reverted(one, place, {key: parameters[key] for key in keys})


def _reverted(one: TensorNames, place: Place, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Live parameters as the files of the first would store them."""
    from transformers.core_model_loading import revert_weight_conversion

    made = revert_weight_conversion(one.model, parameters)
    if set(made) == set(place.names):
        return {name: made[name].contiguous() for name in place.names}
    back = [p for p in places(one.model, one.state, list(made)) if p.key == place.key]
    if not back or back[0].patterns != place.patterns:
        raise BadInput(
            f"found {place.names[0]} in {one.checkpoint.spec}, spelled otherwise than transformers "
            "writes it. Load that checkpoint with transformers and save it again."
        )
    pairs = zip(place.names, back[0].names, strict=True)
    return {name: made[there].contiguous() for name, there in pairs}
