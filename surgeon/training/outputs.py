"""What training leaves on disk: a checkpoint, an adapter, or the base with its adapter added."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgeon import progress, store
from surgeon.checkpoint import (
    Checkpoint,
    label_dtype,
    link_directory,
    stored_dtype,
    torch_dtype,
)
from surgeon.checkpoint.adapters import write_adapter_config
from surgeon.errors import BadInput
from surgeon.training.student import Student, all_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_result(
    base: Checkpoint,
    student: Student,
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    merge: bool,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prepare: Callable[[nn.Module], object] = lambda model: None,
) -> None:
    """What training made: a checkpoint of full weights, an adapter, or (`merge`) the checkpoint
    that the adapter makes of its base.

    `weights` are `student.weights()`. A `tokenizer` takes the place of the base's. `prepare` does
    to a fresh base what was done to the one that was adapted.
    """
    if student.adapter is None:
        write_full(base, student.model, weights, out, tokenizer=tokenizer)
    elif merge:
        write_merged(base, student.adapter, weights, out, prepare=prepare, tokenizer=tokenizer)
    else:
        write_adapter(base, student.adapter, weights, out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)


def write_full(
    base: Checkpoint, model: Any, weights: Mapping[str, Tensor], out: Path, *, tokenizer: Any = None
) -> None:
    """The trained checkpoint, each weight in the dtype it has in the base's files.

    `weights` are those of `all_weights`, whole. A `tokenizer` takes the place of the base's. Raises
    `BadInput` for a weight that is not finite.
    """
    stored = {name: info.dtype for name, info in base.tensors.items()}
    usual = stored_dtype(base) or "F32"  # for weights that transformers renames or fuses on load
    cast = {
        name: tensor.detach().to("cpu", torch_dtype(stored.get(name, usual)))
        for name, tensor in weights.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in cast.values()):
        raise BadInput("a weight is not finite after training; lower the learning rate.")
    model.save_pretrained(out, state_dict=cast)
    label_dtype(out)  # save_pretrained names the dtype that the model was trained in
    written = {"config.json"}
    if tokenizer is not None:
        written |= {
            Path(name).relative_to(out).as_posix() for name in tokenizer.save_pretrained(out)
        }
    base.copy_side_files(out, written)


def write_adapter(base: Checkpoint, adapter: Any, weights: Mapping[str, Tensor], out: Path) -> None:
    """A PEFT adapter directory, loadable as BASE+DIR; `weights` are the trained parameters, by
    their names in the model inside the wrapper."""
    from safetensors.torch import save_file

    config = adapter.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_for_peft(base, out)
    config.inference_mode = True
    write_adapter_config(config, out)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in as_stored(weights).items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def base_for_peft(base: Checkpoint, out: Path) -> tuple[str, str | None]:
    """What PEFT loads as the adapter's base, and its revision on the hub.

    A base that lasts no longer than this run or the cache, such as BASE+ADAPTER, a virtual
    candidate or what was dequantised, is put beside the adapter first, as `base`.
    """
    if not store.owns(base.path):
        if base.hub_id:
            return base.hub_id, base.spec.partition("@")[2] or None
        named = Path(base.spec).expanduser().is_dir()
        return base.spec if named else str(base.path.resolve()), None
    if not (out / "base").is_dir():
        link_directory(base.path, out / "base")
    final = out.absolute().with_name(out.name.removesuffix(".partial")) / "base"
    progress.say(f"{base.spec} is no name that PEFT can load: it lies beside the adapter, {final}.")
    return str(final), None


def as_stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's trained parameters by the names they have in its file."""
    return {
        "base_model.model." + f"{name}.".replace(".default.", ".").removesuffix("."): tensor
        for name, tensor in weights.items()
    }


def write_merged(
    base: Checkpoint,
    adapter: Any,
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    prepare: Callable[[Any], Any] = lambda model: None,
    tokenizer: Any = None,
) -> None:
    """The checkpoint that a trained adapter makes of its base: merged in float32, then cast.

    `prepare` does to the fresh base what was done to the one that was adapted.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    model: Any = base.model(dtype=torch.float32)
    prepare(model)
    fresh: Any = get_peft_model(model, adapter.peft_config["default"])
    set_peft_model_state_dict(fresh, as_stored(weights))
    merged = fresh.merge_and_unload(safe_merge=True)
    write_full(base, merged, all_weights(merged), out, tokenizer=tokenizer)
