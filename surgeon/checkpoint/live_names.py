"""What the tensors of a checkpoint's files are called in the live model, and become there.

transformers renames tensors on load and makes several into one: the experts of a layer, one by one
in most files, are one parameter of three dimensions in the model. Files may hold that parameter
too; either way the live name is the same.
"""

import copy
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.directory import Checkpoint
from surgeon.checkpoint.loading import model_class
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def live_model(base: Checkpoint) -> "PreTrainedModel":
    """The model of a checkpoint without its weights; raises `BadInput` where it writes no text."""
    import torch

    try:
        kind = model_class(base.full_config)
    except ValueError as error:
        raise BadInput(f"{base.spec}: {error}") from error
    with torch.device("meta"):
        model = kind(base.full_config)
        model.tie_weights()
    return model


def live_names(
    model: Any, checkpoint: Checkpoint
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Live parameter -> its tensor in the files, and those that are converted -> their tensors.

    A conversion into several parameters goes by the name of the first.
    """
    from transformers.core_model_loading import dot_natural_key

    loading = _Loading(model)
    names: dict[str, str] = {}
    made: dict[str, list[str]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        live, pattern = loading.name_of(name)
        if pattern is None:
            names[live] = name
        else:
            made.setdefault(live, []).append(name)
    return names, {live: tuple(files) for live, files in made.items()}


def converted(
    model: Any, checkpoint: Checkpoint, live: str, files: tuple[str, ...]
) -> "dict[str, Tensor]":
    """What these tensors of the files become on load, by live name: `files` of `live_names`."""
    loading = _Loading(model)
    owner: Any = None
    for name in files:
        key, pattern = loading.name_of(name)
        if owner is None:
            owner = copy.deepcopy(
                next(c for c in loading.converters if pattern in c.source_patterns)
            )
        owner.add_tensor(key, name, pattern, checkpoint.tensor(name))
    made = owner.convert(live, model=model, config=model.config)
    return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


class _Loading:
    """transformers' renamings and converters for a model."""

    def __init__(self, model: Any):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(model)
        self.renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self.converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.live, self.prefix = model.state_dict(), model.base_model_prefix

    def name_of(self, name: str) -> tuple[str, str | None]:
        """A tensor's live name, and the converter's pattern where one takes it."""
        from transformers.core_model_loading import rename_source_key

        live, pattern = rename_source_key(
            name, self.renamings, self.converters, self.prefix, self.live
        )
        if live not in self.live and name in self.live:
            return rename_source_key(name, [], [], self.prefix, self.live)
        return live, pattern
