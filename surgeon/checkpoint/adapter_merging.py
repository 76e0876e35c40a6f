"""A base with a PEFT adapter added to its weights, tensor by tensor.

The arithmetic is PEFT's own: its layers are put around a model without weights, and each gets the
base's weights in float32 when its turn comes, merges, and is written in the base's dtype. So DoRA,
rank-stabilised LoRA and whatever else PEFT merges come out as PEFT's `merge_and_unload` makes them,
with one module in memory. One thing is done otherwise: where the head is the embedding and only
one of the two was adapted, PEFT's merge changes both; here the two are untied, and the model is the
one that was trained.

Architectures whose weights transformers fuses on load are merged as a whole where the fused weights
are adapted.
"""

import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import lineage
from surgeon.checkpoint.adapters import Adapter
from surgeon.checkpoint.directory import INDEX, TOKENIZER_FILES, UNUSABLE, Checkpoint
from surgeon.checkpoint.dtypes import cast_weights, torch_dtype
from surgeon.checkpoint.live_names import live_model, live_names
from surgeon.checkpoint.rewriting import link_or_copy, rewrite
from surgeon.checkpoint.templates import read_templates, write_templates
from surgeon.checkpoint.tensors import read_json
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn

OUTER = ("model", "language_model", "text_model", "transformer", "decoder", "backbone", "module")
"""What one release or class puts before the names of another's text modules."""
LARGEST_GROWTH = 1 << 20
"""Tokens that an adapter may add to its base's vocabulary."""
WRAPPINGS = ("base_layer", "original_module", "token_adapter")
"""What PEFT's wrappers put inside the names of the modules they wrap."""


def write_merged_base(base: Checkpoint, adapter: Adapter, out: Path) -> None:
    """Write the base with the adapter merged into the existing directory `out`.

    A tokenizer that lies beside the adapter takes the place of the base's; a vocabulary that was
    grown for the adapter is the result's. Raises `BadInput` where the adapter was made for another
    base.
    """
    with _quiet():
        merging = Merging(base, adapter)
        if merging.fused:
            _merge_whole(base, adapter, out)
        else:
            merging.write(out)
    own = adapter.tokenizer_files
    if own:
        for name in TOKENIZER_FILES:
            (out / name).unlink(missing_ok=True)
        for file in own:
            if file.parent == adapter.path:
                shutil.copy2(file, out)
        write_templates(out, read_templates(adapter.path) or base.chat_templates)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT's and transformers' remarks on tied weights and saved embeddings are dealt with here."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


class Merging:
    """The base's modules without weights, the adapter's layers around them."""

    def __init__(self, base: Checkpoint, adapter: Adapter):

        self.base, self.adapter = base, adapter
        self.model: Any = live_model(base)
        self.head = _name(self.model, self.model.get_output_embeddings())
        self.embedding = _name(self.model, self.model.get_input_embeddings())
        self.tied = bool(self.head) and (
            self.model.get_submodule(self.head).weight
            is self.model.get_submodule(self.embedding).weight
        )
        self.files, converted = live_names(self.model, base)
        self.names = self._live_names()
        self.fused = bool(adapter.config.get("target_parameters")) or any(
            f"{self.names[module]}.weight" in converted or self.names[module] is None
            for module in adapter.modules
        )
        self.merged: dict[str, Tensor] = {}
        if not self.fused:
            self._wrap()

    # --- names ---

    def _live_names(self) -> dict[str, str]:
        """Module as the adapter's file calls it -> as this release of transformers does."""
        live = {name for name, _ in self.model.named_modules()}
        text = self.embedding.rpartition(".")[0]
        names = {}
        for module in self.adapter.modules:
            # PEFT wraps a module once for each of its adapted parameters.
            name = _live_name(module.replace(".base_layer", ""), live, text)
            if name is None and self._fuses(module):
                name = module
            if name is None:
                raise BadInput(
                    f"{self.adapter.spec} adapts {module}, which {self.base.spec} does not have. "
                    "It was made for another base."
                )
            names[module] = name
        taken = list(names.values())
        by_parameter = bool(self.adapter.config.get("target_parameters"))
        if len(set(taken)) != len(taken) and not by_parameter:
            raise BadInput(
                f"{self.adapter.spec} adapts {max(taken, key=taken.count)} under two names. Save "
                "the adapter again with one release of PEFT."
            )
        return names

    def _fuses(self, module: str) -> bool:
        """Whether the base's files have a module that transformers fuses into another on load."""
        return f"{module}.weight" in self.base.tensors

    # --- PEFT's layers ---

    def _wrap(self) -> None:
        import torch
        from peft import PeftModel
        from peft.utils import set_peft_model_state_dict
        from safetensors.torch import load_file

        try:
            self._grow()
            self._require_shapes()
            config = self._config()
            self.wrapped: Any = PeftModel(self.model, config, low_cpu_mem_usage=True)
            for module in self.wrapped.modules():
                # PEFT would send the adapter to where the base is: nowhere.
                if hasattr(module, "_move_adapter_to_device_of_base_layer"):
                    module._move_adapter_to_device_of_base_layer = _stay
            stored = load_file(self.adapter.path / "adapter_model.safetensors")
            state = {self._renamed(name): tensor for name, tensor in _once(stored).items()}
            state = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
            loaded = set_peft_model_state_dict(self.wrapped, state, low_cpu_mem_usage=True)
        except BadInput:
            raise
        except UNUSABLE as error:
            reason = " ".join(str(error).split())[:300]
            raise BadInput(
                f"{self.adapter.spec} does not fit {self.base.spec}: {reason}"
            ) from error
        if loaded.unexpected_keys:
            raise BadInput(
                f"{self.adapter.spec} holds {loaded.unexpected_keys[0]}, for which "
                f"{self.base.spec} has no place. It was made for another base."
            )
        inner = self.wrapped.base_model.model
        lacking = [n for n, p in inner.named_parameters() if p.is_meta and _of_adapter(n)]
        if lacking:
            raise BadInput(
                f"{self.adapter.spec} lacks {len(lacking)} of its weights, first {lacking[0]}. "
                "Fetch or copy it again."
            )
        self.inner, self.dtype = inner, torch.float32
        self.loaded = {
            n: p.data for n, p in inner.named_parameters() if not p.is_meta and not _of_adapter(n)
        }

    def _renamed(self, name: str) -> str:
        """A name in the adapter's file, its module called as the live model does."""
        prefix = "base_model.model."
        bare = name.removeprefix(prefix)
        for module, live in self.names.items():
            if bare.startswith(module + "."):
                return prefix + live + bare.removeprefix(module)
        module, _, rest = bare.rpartition(".")
        live = _live_name(
            module, {n for n, _ in self.model.named_modules()}, self.embedding.rpartition(".")[0]
        )
        return f"{prefix}{live or module}.{rest}"

    def _config(self) -> "PeftConfig":
        """The adapter's config with exact names, ranks and alphas instead of patterns."""
        import re

        from peft import PeftConfig
        from peft.utils.other import get_pattern_key

        config: Any = PeftConfig.from_pretrained(str(self.adapter.path))
        config.inference_mode = True
        modules = self.adapter.modules
        if self.adapter.config["peft_type"] != "LORA" or not modules:
            return config
        self._require_all_targets(config)
        ranks, alphas = {}, {}
        old = config.alpha_pattern or {}
        for module, parts in modules.items():
            key = re.escape(self.names[module])
            first = parts.get("lora_A") or parts.get("lora_embedding_A")
            if first is None:
                raise BadInput(f"{self.adapter.spec} has no lora_A of {module}. Copy it again.")
            ranks[key] = first[0]
            alphas[key] = old.get(get_pattern_key(list(old), module), config.lora_alpha)
        config.target_modules = set(self.names.values())
        config.rank_pattern, config.alpha_pattern = ranks, alphas
        config.init_lora_weights, config.exclude_modules = True, None
        config.layers_to_transform = config.layers_pattern = None
        return config

    def _require_all_targets(self, config: Any) -> None:
        """Refuse an adapter whose config names modules that its file lacks."""
        targets = config.target_modules
        if isinstance(targets, str) or not targets:
            return
        for target in targets:
            there = any(m == target or m.endswith("." + target) for m in self.adapter.modules)
            live = any(
                n == target or n.endswith("." + target) for n, _ in self.model.named_modules()
            )
            if live and not there and not config.layers_to_transform:
                raise BadInput(
                    f"{self.adapter.spec} lacks the weights of {target}, which its config names. "
                    "Fetch or copy it again."
                )

    # --- shapes ---

    def _grow(self) -> None:
        """Give embedding and head as many rows as the adapter's have."""
        ends = {n.rpartition(".")[2] for n in (self.embedding, self.head) if n}
        rows = {
            info.shape[0]
            for name, info in self.adapter.tensors.items()
            if name.endswith((".weight", "base_layer.weight"))
            and "lora_" not in name
            and ends & set(name.split("."))
        }
        indices = self.adapter.config.get("trainable_token_indices") or []
        lists = indices.values() if isinstance(indices, dict) else [indices]
        before = self.model.get_submodule(self.embedding).weight.shape[0]
        most = max((int(i) + 1 for each in lists for i in each), default=0)
        self.row_values = {int(i) for each in lists for i in each}
        if most > before + LARGEST_GROWTH:
            raise BadInput(
                f"{self.adapter.spec} trains token {most - 1} of a vocabulary of {before}. It was "
                "made for another base."
            )
        if not rows and most > before:
            rows = {most}
        if len(rows) > 1:
            raise BadInput(
                f"{self.adapter.spec} has embeddings of {min(rows)} and of {max(rows)} rows, "
                "expected one vocabulary."
            )
        self.grown = rows.pop() if rows and rows != {before} else None
        if self.grown is not None:
            self.model.resize_token_embeddings(self.grown, mean_resizing=False)
            self.model.tie_weights()

    def _require_shapes(self) -> None:
        for module, parts in self.adapter.modules.items():
            weight = getattr(self.model.get_submodule(self.names[module]), "weight", None)
            if weight is None or weight.dim() != 2:
                continue
            sizes = {d for part in parts.items() for d in _outer_size(*part)}
            if not sizes <= set(weight.shape):
                raise BadInput(
                    f"{self.adapter.spec} was made for another base: {module} has size "
                    f"{min(sizes - set(weight.shape))} in the adapter and {list(weight.shape)} in "
                    f"{self.base.spec}."
                )

    # --- merging ---

    def changed(self) -> dict[str, str]:
        """Live parameter that comes out otherwise -> the module whose merge makes it."""
        owners = {}
        for key, module in self.inner.named_modules():
            wrapper = hasattr(module, "unload_and_optionally_merge_module")
            if not (wrapper or hasattr(module, "base_layer")) or _inside(key):
                continue
            for name, _ in module.named_parameters():
                if not _of_adapter(name) or "modules_to_save" in name:
                    owners[f"{key}.{_plain(name)}"] = key
        for name in self.loaded:
            owners.setdefault(_plain(name), "")
        return owners

    def merge(self, key: str) -> None:
        """Merge one module; its parameters are in `merged` afterwards, float32."""
        parent, _, last = key.rpartition(".")
        target = self.inner.get_submodule(key)
        saved = "ModulesToSave" in type(target).__name__
        for place, module in list(target.named_modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                full = ".".join(filter(None, (place, name)))
                if parameter.is_meta and not (saved and "original_module" in full):
                    tensor = self._stored(f"{key}.{_plain(full)}", tuple(parameter.shape))
                    setattr(module, name, _frozen(tensor))
        try:
            if hasattr(target, "unload_and_optionally_merge_module"):
                done = target.unload_and_optionally_merge_module(
                    merge=True, safe_merge=True, adapter_names=None
                )
            else:
                target.merge(safe_merge=True)
                done = target.get_base_layer()
        except ValueError as error:
            raise BadInput(f"{self.adapter.spec}: {' '.join(str(error).split())}") from error
        for name, parameter in done.named_parameters():
            self.merged[f"{key}.{_plain(name)}"] = parameter.data
        owner = self.inner.get_submodule(parent) if parent else self.inner
        owner._modules[last] = None  # its memory is free now

    def _stored(self, live: str, shape: tuple[int, ...]) -> "Tensor":
        """A parameter of the base in float32, from its files, or the one the adapter brought."""
        import torch

        for name, tensor in self.loaded.items():
            if _plain(name) == live:
                return tensor
        if live not in self.files and self.tied and live == f"{self.head}.weight":
            return self._stored(f"{self.embedding}.weight", shape)
        if live not in self.files:
            raise BadInput(f"{self.base.spec} has no weights of {live}, which the adapter changes.")
        tensor = self.base.tensor(self.files[live]).to(torch.float32)
        if tuple(tensor.shape) == shape:
            return tensor
        if tensor.shape[0] > shape[0] and tensor.shape[1:] == shape[1:]:
            return tensor[: shape[0]]
        new = set(range(tensor.shape[0], shape[0]))
        if not new <= self.row_values or tensor.shape[1:] != shape[1:]:
            raise BadInput(
                f"{self.adapter.spec} was trained with {shape[0]} rows of {live}, {self.base.spec} "
                f"has {tensor.shape[0]}, and the adapter lacks the values of the new ones. Save it "
                "with save_embedding_layers=True."
            )
        return torch.cat([tensor, tensor.new_zeros(shape[0] - tensor.shape[0], *shape[1:])])

    # --- files ---

    def write(self, out: Path) -> None:
        """Write weights and config; files of the base without a changed tensor are linked."""
        owners = self.changed()
        untied = self._untied(owners)
        if untied:
            owners.setdefault(f"{self.embedding}.weight", "")
        if self.grown is not None:
            for end in filter(None, (self.embedding, self.head)):
                if f"{end}.weight" in self.files:
                    owners.setdefault(f"{end}.weight", "")
        missing = [live for live in owners if live not in self.files and live != untied]
        if missing and missing != [f"{self.head}.weight"]:
            raise BadInput(f"{self.base.spec} has no weights of {missing[0]}, which are adapted.")
        by_file = {self.files[live]: live for live in owners if live in self.files}
        if untied or self.grown is not None:
            self._write_shards(out, by_file, owners, untied)
        else:
            rewrite(
                self.base,
                out,
                lambda name, tensor: self._value(by_file[name], owners).to(tensor.dtype),
                by_file.__contains__,
            )

    def _value(self, live: str, owners: dict[str, str]) -> "Tensor":
        if live not in self.merged and owners.get(live):
            self.merge(owners[live])
        if live in self.merged:
            return self.merged.pop(live)
        shape = tuple(self.model.get_parameter(live).shape) if not owners.get(live) else ()
        return self._stored(live, shape)

    def _untied(self, owners: dict[str, str]) -> str | None:
        """The head's live name where it no longer is the embedding, or None."""
        import torch

        if not self.tied or f"{self.head}.weight" in self.files:
            return None
        both = [f"{name}.weight" for name in (self.embedding, self.head)]
        touched = [name for name in both if owners.get(name)]
        if not touched:
            return None  # a base weight that came with the adapter is that of both
        values = []
        for live in both:
            shape = tuple(self._shape(live))
            if owners.get(live):
                self.merge(owners[live])
                values.append(self.merged[live])
            else:
                values.append(self._stored(f"{self.embedding}.weight", shape))
                self.merged[live] = values[-1]
        if torch.equal(*values):
            self.merged.pop(both[1])
            owners.pop(both[1], None)
            return None
        return both[1]

    def _shape(self, live: str) -> Iterable[int]:
        module = self.model.get_submodule(live.rpartition(".")[0])
        for name, parameter in module.named_parameters():
            if _plain(name) == "weight" and not _of_adapter(name):
                return parameter.shape
        raise ValueError(f"{live} has no weight")

    def _write_shards(
        self, out: Path, by_file: dict[str, str], owners: dict[str, str], untied: str | None
    ) -> None:
        """Write shards whose tensors change their shapes or number, one in memory at a time."""
        from safetensors.torch import save_file

        base, index = self.base, read_json(self.base.path / INDEX)
        home = base.tensors[self.files[f"{self.embedding}.weight"]]
        base.copy_side_files(out)
        added = 0
        for shard, names in base.shards.items():
            if not any(name in by_file for name in names):
                link_or_copy(base.path / shard, out / shard)
                continue
            tensors = {}
            for name in names:
                dtype = torch_dtype(base.tensors[name].dtype)
                tensor = (
                    self._value(by_file[name], owners).to(dtype)
                    if name in by_file
                    else base.tensor(name)
                )
                added += tensor.nbytes - base.tensors[name].nbytes
                tensors[name] = tensor.contiguous()
            if untied and shard == home.shard:
                name = self._head_in_files(untied)
                tensors[name] = self._value(untied, owners).to(torch_dtype(home.dtype)).contiguous()
                added += tensors[name].nbytes
                if index:
                    index["weight_map"][name] = shard
            save_file(tensors, out / shard, metadata={"format": "pt"})
        if index:
            index.setdefault("metadata", {})["total_size"] = base.size + added
            lineage.write_json(out / INDEX, index)
        self._write_config(out, bool(untied))

    def _head_in_files(self, live: str) -> str:
        """What the head is called in files of this architecture."""
        from transformers.core_model_loading import revert_weight_conversion

        state = {live: self.merged[live]}
        return next(iter(revert_weight_conversion(self.model, state)))

    def _write_config(self, out: Path, untied: bool) -> None:
        config = read_json(out / "config.json")
        parts = [config, *(v for k, v in config.items() if k == "text_config")]
        for part in parts:
            if self.grown is not None and ("vocab_size" in part or len(parts) == 1):
                part["vocab_size"] = self.grown
            if untied:
                part["tie_word_embeddings"] = False
        lineage.write_json(out / "config.json", config)


def _merge_whole(base: Checkpoint, adapter: Adapter, out: Path) -> None:
    """Merge with the whole model in float32, and let transformers write it."""
    import torch
    from peft import PeftModel

    stored: Any = base.model()
    dtype = stored.dtype
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tuned: Any = PeftModel.from_pretrained(stored.to(torch.float32), str(adapter.path))
        merged = tuned.merge_and_unload(safe_merge=True)
        cast_weights(merged, dtype)
    except (ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BadInput(f"{adapter.spec} does not fit {base.spec}: {reason}") from error
    if any("missing adapter keys" in str(warning.message) for warning in said):
        raise BadInput(f"{adapter.spec} lacks weights that its config names. Copy it again.")
    merged.save_pretrained(out)
    base.copy_side_files(out, {file.name for file in out.iterdir()})


def _once(stored: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """An adapter's tensors without the second and third copies that PEFT stores of saved modules
    where the vocabulary was grown."""
    kept = {}
    for name, tensor in stored.items():
        plain = name.replace(".modules_to_save.", ".")
        if ".original_module." not in name and (plain == name or plain not in stored):
            kept[plain] = tensor
    return kept


def _stay(*_: object, **__: object) -> None:
    """In place of PEFT's moving of an adapter."""


def _frozen(tensor: "Tensor") -> "nn.Parameter":
    from torch import nn

    return nn.Parameter(tensor, requires_grad=False)


def _name(model: Any, module: Any) -> str:
    return next((name for name, other in model.named_modules() if other is module), "")


def _live_name(module: str, live: set[str], text: str) -> str | None:
    """The live module that a name of another release or class means, or None."""
    if module in live:
        return module
    parts = module.split(".")
    while parts:
        tail = ".".join(parts)
        for name in (f"{text}.{tail}" if text else tail, tail, f"model.{tail}"):
            if name in live:
                return name
        if parts[0] not in OUTER:
            return None
        parts = parts[1:]
    return None


def _of_adapter(name: str) -> bool:
    """Whether a parameter inside PEFT's wrappers is the adapter's own."""
    return any(
        part.startswith("lora_") or part in ("modules_to_save", "trainable_tokens_delta")
        for part in name.split(".")
    )


def _inside(key: str) -> bool:
    return any(part in (*WRAPPINGS, "modules_to_save") for part in key.split("."))


def _plain(name: str) -> str:
    """A parameter's name with what PEFT's wrappers add left out."""
    name = name.replace("modules_to_save.default.", "")
    return ".".join(part for part in name.split(".") if part not in WRAPPINGS)


def _outer_size(part: str, shape: tuple[int, ...]) -> list[int]:
    """The dimension of a factor that isn't the rank, where it has one."""
    at = {"lora_A": 1, "lora_B": 0, "lora_embedding_A": 1, "lora_embedding_B": 0}.get(part)
    return [] if at is None or len(shape) != 2 else [shape[at]]
