"""The checkpoint: a Hugging Face model directory, read lazily and never edited in place.

Opening one reads `config.json` and the safetensors headers only, and refuses what could not be
loaded or should not be: truncated shards, an index that points outside the directory, pickled
weights, models that need code from their repository.
"""

import atexit
import json
import mmap
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
WEIGHT_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool",
    **{f"{sign}{bits}": f"{name}{bits}" for sign, name in (("I", "int"), ("U", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
PIECE = 1 << 20
"""Bytes per write: with tens of megabytes at once, Linux takes several times as long."""
HEADER_LIMIT = 100 << 20
"""Bytes: the largest header the safetensors format allows."""
LIVE_DTYPES = ("float32", "bfloat16", "float16")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]


class TensorInfo(NamedTuple):
    """What a safetensors header says of one tensor."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int
    """Where its bytes begin in the file."""


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
        checkpoint.config  # noqa: B018
        checkpoint.tensors  # noqa: B018
        return checkpoint

    @property
    def name(self) -> str:
        """A short name for tables: the directory's own, or what the user typed for a hub id."""
        return self.path.resolve().name if self.spec == str(self.path) else self.spec

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`; raises `BadInput` when it is missing, malformed or wants remote code."""
        file = self.path / "config.json"
        if not file.is_file():
            raise BadInput(f"{self.path} is not a checkpoint: it has no config.json.")
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{file} is not valid JSON ({error}).") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise BadInput(f"{file} names no model_type, so it is not a transformers config.")
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
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config (all of it for text-only models)."""
        return self.config.get("text_config", self.config)

    @property
    def model_type(self) -> str:
        return self.config["model_type"]

    @property
    def n_layers(self) -> int:
        return int(self.text_config["num_hidden_layers"])

    @property
    def d_ff(self) -> int:
        """FFN units per layer; for mixtures of experts, experts x units per expert."""
        config = self.text_config
        experts = config.get("num_experts") or config.get("num_local_experts")
        if not experts:
            return int(config["intermediate_size"])
        units = config.get("moe_intermediate_size") or config["intermediate_size"]
        # A few layers of such a model may be dense; keys must have room for the wider kind.
        return max(int(experts) * int(units), int(config.get("intermediate_size") or 0))

    @property
    def tied(self) -> bool:
        """True when the unembedding is the embedding and is not stored a second time."""
        return not any(name.endswith("lm_head.weight") for name in self.tensors)

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Shard file name -> the tensor names inside it, in the index's order."""
        if (self.path / INDEX).is_file():
            return self._indexed_shards()
        if (self.path / SINGLE).is_file():
            return {SINGLE: list(read_header(self.path / SINGLE))}
        pickles = sorted(p.name for p in self.path.glob("*.bin")) or sorted(
            p.name for p in self.path.glob("*.pt*")
        )
        if pickles:
            raise BadInput(
                f"{self.path} holds pickled weights only ({pickles[0]}). Pickle can run code: "
                "convert them to safetensors first."
            )
        raise BadInput(f"{self.path} has no weights: neither {SINGLE} nor {INDEX} is there.")

    def _indexed_shards(self) -> dict[str, list[str]]:
        file = self.path / INDEX
        try:
            weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
            items = list(weight_map.items())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file} is not a safetensors index ({error!r}).") from error
        shards: dict[str, list[str]] = {}
        for name, shard in items:
            if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", "..", "."):
                raise BadInput(
                    f"{file} names the shard {shard!r}, which is outside the directory. "
                    "Shards must be plain file names beside the index."
                )
            shards.setdefault(shard, []).append(name)
        missing = [shard for shard in shards if not (self.path / shard).is_file()]
        if missing:
            raise BadInput(
                f"{self.path} lacks {len(missing)} of its {len(shards)} shards ({missing[0]}). "
                "Fetch or copy it again."
            )
        return shards

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in the order of `shards`, from the headers alone."""
        found = {}
        for shard, names in self.shards.items():
            header = read_header(self.path / shard)
            for name in names:
                if name not in header:
                    raise BadInput(
                        f"{self.path / INDEX} places {name!r} in {shard}, which does not hold it."
                    )
                found[name] = header[name]._replace(shard=shard)
        return found

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
        found = {}
        for shard, members in by_shard.items():
            with safe_open(self.path / shard, framework="pt") as file:
                for name in members:
                    found[name] = file.get_tensor(name)
        return {name: found[name] for name in names}

    @property
    def side_files(self) -> list[Path]:
        """Files that belong to the checkpoint beside weights and lineage: config, tokenizer, ..."""
        weights = {*self.shards, INDEX, SINGLE}
        return sorted(
            p
            for p in self.path.iterdir()
            if p.is_file() and p.name not in weights and p.name != lineage.FILE
            and p.suffix not in {".safetensors", ".bin", ".pt", ".pth", ".md", ".tmp"}
            and not p.name.startswith(".")
        )  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """`sha256:` over config, tokenizer, template, generation config and every weight byte."""
        files = [*self.side_files, *(self.path / shard for shard in self.shards)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            digests = list(pool.map(lineage.file_digest, files))
        by_name = dict(zip((f.name for f in files), digests, strict=True))
        return lineage.digest_of(by_name)

    @property
    def digests(self) -> set[str]:
        """`digest`, and that of the virtual candidate this directory was written from, if any."""
        made = lineage.read(self.path) or {}
        return {self.digest} | ({made["candidate_digest"]} if "candidate_digest" in made else set())

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """`generation_config.json`, or an empty dict."""
        return read_json(self.path / "generation_config.json")

    @property
    def chat_template(self) -> str | None:
        """The chat template's text, from its own file or from the tokenizer's config."""
        file = self.path / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        return read_json(self.path / "tokenizer_config.json").get("chat_template")

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer; raises `BadInput` when the directory holds none."""
        from transformers import AutoTokenizer

        if not any((self.path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json")):
            raise BadInput(f"{self.path} has no tokenizer (tokenizer.json). Copy it beside config.")
        return AutoTokenizer.from_pretrained(self.path, local_files_only=True)

    def model(self, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "nn.Module":
        """The model in eval mode on `device`, in `dtype` (by default the one on disk).

        Raises `BadInput` when the weights don't fit the architecture the config names.
        """
        import transformers
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        try:
            AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (StrictDataclassError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"{self.path}/config.json is refused: {reason}") from error

        conditional = any(
            name.endswith("ForConditionalGeneration") for name in self.config["architectures"] or []
        )
        auto: Any = AutoModelForImageTextToText if conditional else AutoModelForCausalLM
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            model, info = auto.from_pretrained(
                self.path,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported in `info`, and refused below
            )
        finally:
            transformers.logging.set_verbosity(verbosity)
        wrong = [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
        if wrong:
            raise BadInput(
                f"{self.path} lacks {len(wrong)} weights of a {self.model_type} model or has them "
                f"in another shape, first {sorted(wrong)[0]}. Config and weights don't match."
            )
        return model.to(device).eval()


def placement(device: str, dtype: str) -> "tuple[str, torch.dtype | None]":
    """The device and dtype to run in; `auto` is an accelerator if there is one, and the dtype on
    disk (None). Raises `BadInput` for a device that is not there or a dtype that has no name."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps") or not (
        kind == "cpu" or getattr(torch.backends if kind == "mps" else torch, kind).is_available()
    ):
        raise BadInput(f"device is {device!r}, expected auto, cpu, or an accelerator present.")
    if dtype != "auto" and dtype not in LIVE_DTYPES:
        raise BadInput(f"dtype is {dtype!r}, expected auto, {', '.join(LIVE_DTYPES)}.")
    return device, None if dtype == "auto" else getattr(torch, dtype)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one when there is no file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file} holds a {type(value).__name__}, expected a JSON object.")
    return value


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor name -> info from a safetensors file, checked against the file's real size."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(HEADER_LIMIT, size):
            raise BadInput(f"{file} is not a safetensors file (its header is unreadable).")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            found, end = {}, 0
            for name, info in header.items():
                begin, stop = info["data_offsets"]
                shape, dtype = tuple(info["shape"]), info["dtype"]
                if stop - begin != _n_elements(shape) * WEIGHT_BYTES.get(dtype, 1) and (
                    dtype in WEIGHT_BYTES
                ):
                    raise ValueError(f"{name} has {stop - begin} bytes for {dtype}{list(shape)}")
                found[name] = TensorInfo(file.name, dtype, shape, stop - begin, 8 + length + begin)
                end = max(end, stop)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file} has a corrupt safetensors header ({error}).") from error
    if 8 + length + end != size:
        raise BadInput(
            f"{file} is truncated or corrupt: its header describes {8 + length + end} bytes, the "
            f"file has {size}. Fetch or copy it again."
        )
    return found


def _n_elements(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def resolve(spec: str, work: Path | None = None) -> Checkpoint:
    """Open what the user named: a directory, `builtin:NAME`, `base+adapter` or `hub/id[@revision]`.

    An adapter is merged in float32, cast back, and kept under `work` (a temporary directory that
    goes with the process by default). The network is used for hub ids only.
    """
    if spec.startswith("builtin:"):
        from surgeon import builtin

        return Checkpoint.open(builtin.path(spec.removeprefix("builtin:")), spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise BadInput(f"{spec} is a PEFT adapter. Name its base too: BASE+{spec}")
        return Checkpoint.open(path, spec)
    if "+" in spec:
        base, _, adapter = spec.rpartition("+")
        return merge_adapter(resolve(base, work), Path(adapter).expanduser(), spec, work)
    if HUB_ID.fullmatch(spec) and not path.exists():
        return fetch(spec)
    raise BadInput(
        f"{spec} is no checkpoint: no such directory, and not a hub id (owner/name[@revision])."
    )


def fetch(spec: str) -> Checkpoint:
    """Download a hub repository's safetensors, configs and tokenizer into the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = spec.partition("@")
    try:
        found = snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{spec} is no local directory and could not be fetched from the hub: {reason}"
        ) from error
    return Checkpoint.open(found, spec)


def merge_adapter(base: Checkpoint, adapter: Path, spec: str, work: Path | None) -> Checkpoint:
    """Merge a PEFT adapter into its base in float32, cast back to the base's dtype, and open it."""
    import torch
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise BadInput(f"{adapter} is not a PEFT adapter: it has no adapter_config.json.")
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{adapter} has no adapter_model.safetensors (pickles are not read).")
    _require_adapter_fits(base, adapter, read_header(weights))
    made = lineage.read(adapter) or {}
    digest = made.get("inputs", {}).get("checkpoint")
    if made.get("verb") == "distill" and digest not in base.digests:
        raise BadInput(
            f"{adapter} was made for another base: {made['arguments'].get('checkpoint')} "
            f"({str(digest)[:19]}), not {base.spec} ({base.digest[:19]})."
        )
    if work is None:
        work = Path(tempfile.mkdtemp(prefix="surgeon-"))
        atexit.register(shutil.rmtree, work, ignore_errors=True)
    identity = [base.digest, *(lineage.file_digest(adapter / f.name) for f in (weights,))]
    out = work / f"merged-{lineage.digest_of(identity)[7:19]}"
    if not out.is_dir():
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stored: Any = base.model()
        dtype = stored.dtype
        tuned: Any = PeftModel.from_pretrained(stored.to(torch.float32), str(adapter))
        merged = tuned.merge_and_unload(safe_merge=True).to(dtype)
        merged.save_pretrained(partial)
        base.tokenizer().save_pretrained(partial)
        for file in base.side_files:
            if not (partial / file.name).exists():
                shutil.copy2(file, partial)
        partial.rename(out)
    return Checkpoint.open(out, spec)


def _require_adapter_fits(base: Checkpoint, adapter: Path, tensors: dict[str, TensorInfo]) -> None:
    """Raise `BadInput` when a LoRA factor's target is missing in the base or of another shape."""
    for name, info in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            continue
        target = base.tensors.get(f"{match[1]}.weight")
        # Layers that transformers renames or fuses on load have no tensor of that name on disk.
        if target is None and base.model_type not in {"qwen3_moe", "mixtral"}:
            raise BadInput(f"{adapter} adapts {match[1]}, which {base.spec} does not have.")
        if target is not None:
            wanted = target.shape[1] if match[2] == "A" else target.shape[0]
            found = info.shape[1] if match[2] == "A" else info.shape[0]
            if wanted != found:
                raise BadInput(
                    f"{adapter} was made for another base: {match[1]} has size {found} in the "
                    f"adapter and {wanted} in {base.spec}."
                )


def read_tensor(file: FileIO, info: TensorInfo, scratch: "Tensor | None" = None) -> "Tensor":
    """One tensor's bytes from an open shard, in memory of its own (not a mapping of the file).

    `scratch` (uint8) is used as that memory where it is given.
    """
    import torch

    data = torch.empty(info.nbytes, dtype=torch.uint8) if scratch is None else scratch
    data = data[: info.nbytes]
    file.seek(info.start)
    rest = data.numpy().data
    while rest:
        rest = rest[_some(file.readinto(rest), file) :]  # the system reads at most 2 GB at a time
    return data.view(getattr(torch, TORCH_NAMES[info.dtype])).reshape(info.shape)


def map_tensor(path: Path, info: TensorInfo, *, ahead: bool = True) -> "Tensor":
    """One tensor of a shard as a private mapping: what is not looked at need not be read.

    `ahead` asks the system to fetch all of it meanwhile. A mapping is good only as long as no one
    writes to the file, so it is not for keeping.
    """
    import torch

    dtype = getattr(torch, TORCH_NAMES[info.dtype])
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    begin = info.start % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        mapped = mmap.mmap(
            file.fileno(), begin + info.nbytes, access=mmap.ACCESS_COPY, offset=info.start - begin
        )
    if ahead:
        mapped.madvise(mmap.MADV_WILLNEED)
    data = torch.frombuffer(mapped, dtype=torch.uint8, offset=begin, count=info.nbytes)
    return data.view(dtype).reshape(info.shape)


def _some(count: int | None, file: FileIO) -> int:
    if not count:
        raise BadInput(f"{file.name} became shorter while it was read. Fetch or copy it again.")
    return count


def rewrite(
    source: Checkpoint,
    out: Path,
    edit: "Callable[[str, Tensor], Tensor]",
    touched: Callable[[str], bool],
    *,
    threads: int = 1,
) -> None:
    """Copy `source` into the existing directory `out`, passing the touched tensors through `edit`.

    Shards without a touched tensor are hard-linked where the file system allows (copied
    otherwise); the others are written anew, `threads` shards at a time and of each one tensor in
    memory. `edit(name, tensor)` must keep shape and dtype; it may change the tensor it is given
    and return it, and must not keep it. Shards that are already there (from a run that was killed)
    are kept. Nothing of `source` is changed. Publishing `out` is the
    caller's.
    """
    for file in source.side_files:
        shutil.copy2(file, out / file.name)
    if (source.path / INDEX).is_file():
        shutil.copy2(source.path / INDEX, out / INDEX)
    waiting = []
    # A shard is flushed to the disk while the next ones are computed.
    with ThreadPoolExecutor(1) as flusher, ThreadPoolExecutor(threads) as writers:
        for shard, names in source.shards.items():
            target = out / shard
            if target.exists():
                continue  # it got its name only when it was whole
            edited = {name: source.tensors[name] for name in names if touched(name)}
            if edited:
                work = (source.path / shard, target, edited, edit, flusher)
                waiting.append(writers.submit(_rewrite_shard, *work))
            else:
                link_or_copy(source.path / shard, target)
        try:
            for flush in [written.result() for written in waiting]:
                flush.result()
        finally:
            for written in waiting:
                written.cancel()  # after an error or an interrupt, start no further shard


def _rewrite_shard(
    source: Path,
    target: Path,
    edited: dict[str, TensorInfo],
    edit: "Callable[[str, Tensor], Tensor]",
    flusher: ThreadPoolExecutor,
) -> "Future[None]":
    """Write `source` with some tensors edited; header and layout stay. Its name comes last."""
    import torch

    temporary = target.with_name(f".{target.name}.tmp")
    # One memory for all tensors: fresh pages cost more than the reading.
    scratch = torch.empty(max(info.nbytes for info in edited.values()), dtype=torch.uint8)
    with open(source, "rb", 0) as old_file, open(temporary, "wb", 0) as new_file:
        done = 0
        for name, info in sorted(edited.items(), key=lambda item: item[1].start):
            copy_range(old_file, new_file, done, info.start)
            old = read_tensor(old_file, info, scratch)
            new = edit(name, old)
            if new.shape != info.shape or new.dtype != old.dtype:
                raise ValueError(
                    f"edit changed {name} from {old.dtype}{list(info.shape)} to "
                    f"{new.dtype}{list(new.shape)}; it must keep both."
                )
            _write_all(new_file, new.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            done = info.start + info.nbytes
        copy_range(old_file, new_file, done, os.fstat(old_file.fileno()).st_size)
    return flusher.submit(_flush_and_name, temporary, target)


def copy_range(source: FileIO, target: FileIO, begin: int, end: int) -> None:
    """Append bytes `begin` to `end` of `source` to `target`, a piece in memory at a time."""
    piece = memoryview(bytearray(min(PIECE, max(0, end - begin))))
    source.seek(begin)
    while begin < end:
        count = _some(source.readinto(piece[: end - begin]), source)
        _write_all(target, piece[:count])
        begin += count


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data[:PIECE]) :]


def _flush_and_name(temporary: Path, target: Path) -> None:
    lineage.sync(temporary)
    os.replace(temporary, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a finished file, or copy it where links are not possible (another file system)."""
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(real, temporary)
        lineage.sync(temporary)
        os.replace(temporary, target)
