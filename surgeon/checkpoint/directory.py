"""The checkpoint directory, and the live model and tokenizer in it."""

import os
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import lineage
from surgeon.checkpoint import specs
from surgeon.checkpoint.config import (
    CHOSEN,
    MOST_PARTS,
    Config,
    context_of,
    d_ff_of,
    excessive,
    passed_units_of,
)
from surgeon.checkpoint.templates import DEFAULT, named_template_files, read_templates
from surgeon.checkpoint.tensors import TensorInfo, read_header, read_json, read_tensor, same_bytes
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
RECORDS = (
    lineage.FILE,
    "transplant.json",
    "early-stop.json",
    "early-stop.html",
    "calibration.json",
)
"""Files that say how a directory was made; they are no part of the checkpoint."""
UNUSABLE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RuntimeError,
    AssertionError,
)  # fmt: skip
"""What transformers raises for a config that makes no model."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A directory holding `config.json`, safetensors weights and a tokenizer."""

    path: Path
    spec: str = ""
    """How the user named it: a directory, a hub id, `base+adapter` or `builtin:NAME`."""

    @classmethod
    def open(cls, path: str | Path, spec: str = "") -> "Checkpoint":
        """Open a directory after checking every header in it; raises `BadInput`."""
        path = Path(path)
        if not path.is_dir():
            raise BadInput(f"{path} is not a directory. Give a Hugging Face checkpoint directory.")
        checkpoint = cls(path, spec or str(path))
        checkpoint.check()
        return checkpoint

    def check(self) -> None:
        """Read config and headers; raises `BadInput` where the directory can't be used."""
        if self.config and (self.path / "adapter_config.json").is_file():
            raise BadInput(
                f"{self.path} holds a checkpoint and an adapter: transformers would add the "
                "adapter to the weights, and other programs wouldn't. Move adapter_config.json "
                "and adapter_model.safetensors to a directory of their own, and name both as "
                "BASE+ADAPTER where the adapter is meant."
            )
        if not self.config or not self.tensors:
            raise BadInput(f"{self.path} has no weights: its headers name no tensor.")
        self.side_files  # noqa: B018 - what is there now

    @property
    def hub_id(self) -> str | None:
        """`owner/name` on the hub, None for a checkpoint that was named otherwise."""
        return specs.hub_id(self.spec)

    @property
    def name(self) -> str:
        """A short name for tables: the directory's own, or what the user typed for a hub id."""
        return self.path.resolve().name if self.spec == str(self.path) else self.spec

    @cached_property
    def config(self) -> Config:
        """`config.json`; raises `BadInput` when it is missing, malformed or wants remote code."""
        file = self.path / "config.json"
        if not file.is_file():
            if (self.path / "adapter_config.json").is_file():
                raise BadInput(
                    f"{self.path} is a PEFT adapter. Name its base too: BASE+{self.path}"
                )
            raise BadInput(f"{self.path} is not a checkpoint: it has no config.json.")
        config = read_json(file)
        if nan := _nan_in(config):
            raise BadInput(
                f"{file} has {nan} = NaN, expected a number. Write the real value there."
            )
        if many := excessive(config):
            raise BadInput(
                f"{file} has {many}, expected at most {MOST_PARTS:,}. Take the config that belongs "
                "to the weights."
            )
        if not isinstance(config.get("model_type"), str):
            raise BadInput(f"{file} names no model_type, so it is not a transformers config.")
        named = config.get("architectures") or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise BadInput(f"{file} has architectures = {named!r}, expected a list of names.")
        if not isinstance(config.get("text_config", {}), dict | None):
            raise BadInput(f"{file} has a text_config that is no JSON object. Fetch it again.")
        if "auto_map" in config:
            from transformers import CONFIG_MAPPING

            if config["model_type"] not in CONFIG_MAPPING:
                raise BadInput(
                    f"{self.path} needs trust_remote_code (model_type {config['model_type']!r} "
                    "lives in its repository). surgeon runs no code from checkpoints: use one "
                    "whose architecture transformers ships."
                )
        return config

    @property
    def text_config(self) -> Config:
        """The language model's part of the config (all of it for text-only models)."""
        return self.config.get("text_config") or self.config

    @property
    def model_type(self) -> str:
        return self.config["model_type"]

    @property
    def n_layers(self) -> int:
        """Layers; raises `BadInput` where the config has another thing there than a number."""
        value = self.text_config.get("num_hidden_layers")
        if value is None:
            value = getattr(self.full_config.get_text_config(), "num_hidden_layers", None)
        if type(value) is not int or value < 1:
            raise BadInput(
                f"{self.path}/config.json has num_hidden_layers = {value!r}, expected a whole "
                "number above 0. Take the config that belongs to the weights."
            )
        return value

    @property
    def d_ff(self) -> int:
        """FFN units per layer; for mixtures of experts, experts x units per expert. Raises
        `BadInput` where the config has another thing there than numbers."""
        with refused(UNUSABLE, f"{self.path}/config.json has sizes that are no numbers"):
            return d_ff_of(self.text_config)

    @cached_property
    def passed_units(self) -> int:
        """FFN units that a token passes through, over all layers; for mixtures of experts, the
        chosen and the shared ones. Raises `BadInput` where nothing says how many are chosen."""
        found = (re.search(r"\blayers\.(\d+)\..*\bexperts\.", name) for name in self.tensors)
        routed = {int(match[1]) for match in found if match}
        self.n_layers  # noqa: B018 - refused where it is no number
        with refused(UNUSABLE, f"{self.path}/config.json has sizes that are no numbers"):
            for config in (self.text_config, self.full_config.get_text_config().to_dict()):
                if (units := passed_units_of(config, routed)) is not None:
                    return units
        raise BadInput(
            f"{self.path}/config.json doesn't say how many experts a token passes through, "
            f"expected {CHOSEN[0]}. Give --top-k as a count."
        )

    @property
    def context(self) -> int:
        """The most tokens, prompt and answer together, that the model takes."""
        return context_of(self.full_config.get_text_config())

    @cached_property
    def full_config(self) -> "PretrainedConfig":
        """transformers' config, the defaults that `config.json` leaves out included.

        Raises `BadInput` where transformers refuses what the file says.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, AutoConfig

        if self.model_type not in CONFIG_MAPPING:
            raise BadInput(
                f"transformers does not know the architecture {self.model_type!r} of {self.spec}. "
                "Update transformers, or correct model_type in config.json."
            )
        try:
            return AutoConfig.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except (*UNUSABLE, StrictDataclassError, ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"{self.path}/config.json is refused: {reason}") from error

    @property
    def tied(self) -> bool:
        """True when the unembedding is the embedding and is not stored a second time."""
        return not any(name.endswith("lm_head.weight") for name in self.tensors)

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Shard file name -> the tensor names inside it: the files that transformers would read.

        Where a single file lies beside an index that places tensors elsewhere, transformers takes
        the first and other readers the second; such a directory is refused with `BadInput`.
        """
        headers, index = self._headers, self._weight_map
        shards: dict[str, list[str]] = {shard: [] for shard in headers}
        for name, shard in (index or {}).items():
            if name not in headers[shard]:
                raise BadInput(
                    f"{self.path / INDEX} places {name!r} in {shard}, which does not hold it. "
                    "Fetch or copy both again."
                )
            shards[shard].append(name)
        seen: dict[str, str] = {}
        for shard, header in headers.items():
            for name in header:
                if name in seen:
                    raise BadInput(
                        f"{self.path} holds {name!r} twice, in {seen[name]} and in {shard}: "
                        "readers differ in which they take. Save the model again."
                    )
                seen[name] = shard
            # transformers reads a tensor that the index leaves out.
            listed = set(shards[shard])
            shards[shard] += [name for name in header if name not in listed]
        if head := self._redundant_head(seen):
            shards[seen[head]].remove(head)
        return shards

    def _redundant_head(self, places: dict[str, str]) -> str | None:
        """An unembedding that is the embedding, stored a second time though the config ties both;
        transformers drops it. `places`: tensor name -> shard."""
        ties = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        heads = [name for name in places if name.endswith("lm_head.weight")]
        embeddings = [name for name in places if name.endswith("embed_tokens.weight")]
        if not ties or len(heads) != 1 or len(embeddings) != 1:
            return None
        infos = [self._headers[places[name]][name] for name in (*heads, *embeddings)]
        if infos[0][1:4] != infos[1][1:4]:
            return None
        files = [self.path / places[name] for name in (*heads, *embeddings)]
        return heads[0] if same_bytes(files, infos) else None

    @cached_property
    def _headers(self) -> dict[str, dict[str, TensorInfo]]:
        """Each weights file's header, in the order of the index."""
        files = [SINGLE] if self._weight_map is None else dict.fromkeys(self._weight_map.values())
        return {shard: read_header(self.path / shard) for shard in files}

    @property
    def indexed(self) -> bool:
        """Whether the weights are found through an index."""
        return self._weight_map is not None

    @cached_property
    def _weight_map(self) -> dict[str, str] | None:
        """Tensor name -> shard, from the index; None where one file holds all weights."""
        named = self.config.get("transformers_weights")
        if named not in (None, SINGLE):
            raise BadInput(
                f"{self.path}/config.json names its weights itself (transformers_weights = "
                f"{named!r}). Save the model again under the usual name, {SINGLE}."
            )
        single = (self.path / SINGLE).is_file()
        if not (self.path / INDEX).is_file():
            if not single:
                self._refuse_without_weights()
            return None
        places = self._read_index()
        others = sorted({shard for shard in places.values() if shard != SINGLE})
        if single and others:
            raise BadInput(
                f"{self.path} holds {SINGLE} and an index of other files ({others[0]}): "
                f"transformers reads the first, other programs the shards. Remove {SINGLE}, or "
                f"{INDEX} and its shards, whichever isn't meant."
            )
        return None if single else places

    def _refuse_without_weights(self) -> None:
        pickles = sorted(p.name for p in self.path.glob("*.bin")) or sorted(
            p.name for p in self.path.glob("*.pt*")
        )
        kind = read_json(self.path / "config.json").get("quantization_config")
        if pickles and isinstance(kind, dict):
            raise BadInput(
                f"{self.path} holds pickled, quantised weights ({pickles[0]}, "
                f"{kind.get('quant_method')}): its numbers can't be mixed or moved. Use the "
                "checkpoint that it was made from (base_model in its README)."
            )
        if pickles:
            raise BadInput(
                f"{self.path} holds pickled weights only ({pickles[0]}). Pickle can run code: "
                "convert them to safetensors first."
            )
        hint = ""
        if gguf := sorted(p.name for p in self.path.glob("*.gguf")):
            hint = f" Name its GGUF file instead: {self.path / gguf[0]}"
        elif loose := sorted(p.name for p in self.path.glob("*.safetensors")):
            hint = (
                f" {loose[0]} is there, under a name that transformers doesn't look for: call a "
                f"single file {SINGLE}, or fetch the index of the shards."
            )
        raise BadInput(f"{self.path} has no weights: neither {SINGLE} nor {INDEX} is there.{hint}")

    def _read_index(self) -> dict[str, str]:
        """The index, checked: plain file names that exist."""
        file = self.path / INDEX
        try:
            content = read_json(file)
            items = dict(content["weight_map"].items())
        except (KeyError, AttributeError) as error:
            raise BadInput(f"{file} is not a safetensors index ({error!r}).") from error
        if not isinstance(content.get("metadata"), dict):
            raise BadInput(
                f'{file} has no metadata, which transformers asks for. Add "metadata": {{}} to it.'
            )
        if not items:
            raise BadInput(f"{file} is empty: its weight_map names no tensor. Fetch it again.")
        for shard in items.values():
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..", "."):
                raise BadInput(
                    f"{file} names the shard {shard!r}, which is outside the directory. "
                    "Shards must be plain file names beside the index."
                )
        shards = dict.fromkeys(items.values())
        missing = [shard for shard in shards if not os.path.isfile(self.path / shard)]
        if missing:
            raise BadInput(
                f"{self.path} lacks {len(missing)} of its {len(shards)} shards ({missing[0]}). "
                "Fetch or copy it again."
            )
        return items

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in the order of `shards`, from the headers alone."""
        return {
            name: self._headers[shard][name]._replace(shard=shard)
            for shard, names in self.shards.items()
            for name in names
        }

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(info.nbytes for info in self.tensors.values())

    def tensor(self, name: str) -> "Tensor":
        """Read one tensor; the rest of the checkpoint stays on disk."""
        if name not in self.tensors:
            raise KeyError(f"{self.path} has no tensor {name!r}.")
        info = self.tensors[name]
        with open(self.path / info.shard, "rb", 0) as file:
            return read_tensor(file, info)

    def read_many(self, names: list[str]) -> "dict[str, Tensor]":
        """Read several tensors, opening each shard once."""
        from safetensors import safe_open

        by_shard: dict[str, list[str]] = {}
        for name in names:
            if name not in self.tensors:
                raise KeyError(f"{self.path} has no tensor {name!r}.")
            by_shard.setdefault(self.tensors[name].shard, []).append(name)
        tensors = {}
        for shard, members in by_shard.items():
            with safe_open(self.path / shard, framework="pt") as file:
                for name in members:
                    tensors[name] = file.get_tensor(name)
        return {name: tensors[name] for name in names}

    @cached_property
    def side_files(self) -> list[Path]:
        """Files that belong to the checkpoint beside weights and lineage: config, tokenizer, ...

        Those that are there when it is opened: one that goes away later is missed where it is read
        or copied. Named templates lie in a directory of their own: see `side_name`.
        """
        weights = {*self.shards, INDEX, SINGLE}
        beside = sorted(
            p
            for p in self.path.iterdir()
            if p.is_file() and p.name not in weights and p.name not in RECORDS
            and p.suffix not in {".safetensors", ".bin", ".pt", ".pth", ".md", ".tmp"}
            and not p.name.startswith(".")
        )  # fmt: skip
        return [*beside, *named_template_files(self.path)]

    def side_name(self, file: Path) -> str:
        """A side file's path inside the checkpoint."""
        return file.relative_to(self.path).as_posix()

    def copy_side_files(self, out: Path, skip: Collection[str] = ()) -> None:
        """Copy the side files into a directory, but those whose path inside is in `skip`."""
        for file in self.side_files:
            name = self.side_name(file)
            if name not in skip:
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copy2(file, out / name)

    @cached_property
    def digest(self) -> str:
        """`sha256:` over config, tokenizer, template, generation config and every weight byte."""
        files = [*self.side_files, *(self.path / shard for shard in self.shards)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lineage.file_digest, files))
        by_name = dict(zip(map(self.side_name, files), digests, strict=True))
        return lineage.made_of(lineage.digest_of(by_name), *digests)

    @property
    def digests(self) -> set[str]:
        """`digest`, and that of what this directory was made from: a virtual candidate, or a base
        and its adapter."""
        origin = (lineage.read(self.path) or {}).get("candidate_digest")
        return {self.digest} if origin is None else {self.digest, origin}

    @cached_property
    def generation_config(self) -> Config:
        """`generation_config.json`, or an empty dict."""
        return read_json(self.path / "generation_config.json")

    @property
    def chat_templates(self) -> dict[str, str]:
        """Name -> chat template, wherever they live; the one without a name is "default"."""
        return read_templates(self.path)

    @property
    def chat_template(self) -> str | None:
        """The default chat template's text; None where there is none."""
        return self.chat_templates.get(DEFAULT)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, with the checkpoint's chat templates; raises `BadInput` when the
        directory holds none."""
        from transformers import AutoTokenizer

        if not any((self.path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json")):
            raise BadInput(f"{self.path} has no tokenizer (tokenizer.json). Copy it beside config.")
        templates = self.chat_templates
        # The library in Rust raises nothing more special than `Exception`.
        kinds = (*UNUSABLE, OSError, ImportError, Exception)
        with refused(kinds, f"the tokenizer of {self.path} can't be read"):
            # Without a word about it, transformers asks the user whether to run code.
            tokenizer = AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        use_templates(tokenizer, templates)
        return tokenizer

    def model(self, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "nn.Module":
        """The model in eval mode on `device`, in `dtype` (by default the one on disk).

        Raises `BadInput` when the weights don't fit the architecture the config names.
        """
        from surgeon.checkpoint import loading

        return loading.load(self, device, dtype)


class refused:
    """Turns errors of other people's readers into `BadInput`, inside the block.

    `Exception` stands for exactly that class, as a library in Rust raises it, and not for all.
    """

    def __init__(self, kinds: tuple[type[Exception], ...], what: str):
        self.kinds = tuple(kind for kind in kinds if kind is not Exception)
        self.bare, self.what = Exception in kinds, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        if kind is None or issubclass(kind, BadInput):
            return
        if issubclass(kind, self.kinds) or (self.bare and kind is Exception):
            reason = " ".join(str(error).split())[:200]
            advice = "Fetch or copy it again."
            if issubclass(kind, ImportError):
                advice = "Install what is missing."
            raise BadInput(f"{self.what} ({kind.__name__}: {reason}). {advice}")


def index_single(directory: Path) -> None:
    """Give a checkpoint's single file of weights the index that shards have.

    Some programs (vLLM) load every safetensors file in a directory unless an index names those of
    the weights.
    """
    single = directory / SINGLE
    if not single.is_file() or (directory / INDEX).exists():
        return
    tensors = read_header(single)
    size = sum(tensor.nbytes for tensor in tensors.values())
    lineage.write_json(
        directory / INDEX,
        {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(tensors, SINGLE)},
    )


def _nan_in(config: Config, where: str = "") -> str | None:
    """The name of the first value that is not a number."""
    for key, value in config.items():
        if isinstance(value, dict):
            if found := _nan_in(value, f"{where}{key}."):
                return found
        elif any(isinstance(v, float) and isnan(v) for v in (value, *_items(value))):
            return f"{where}{key}"
    return None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def use_templates(tokenizer: Any, templates: Mapping[str, str]) -> None:
    """Give a tokenizer these chat templates, in the form that transformers keeps them in."""
    alone = set(templates) <= {DEFAULT}
    tokenizer.chat_template = templates.get(DEFAULT) if alone else dict(templates)
