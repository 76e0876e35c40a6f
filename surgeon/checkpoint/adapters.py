"""PEFT adapters as they lie on disk: what they hold, and whether they fit a base.

Only headers and JSON are read here; nothing heavy is imported.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.checkpoint.directory import INDEX, SINGLE, TOKENIZER_FILES
from surgeon.checkpoint.specs import hub_id
from surgeon.checkpoint.templates import TEMPLATE_FILES, named_template_files
from surgeon.checkpoint.tensors import TensorInfo, read_header, read_json
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before every name in an adapter's file."""
MERGED_KINDS = ("LORA", "TRAINABLE_TOKENS")
WITHOUT_WEIGHTS = (
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT",
    "CPT", "CARTRIDGE", "XLORA", "POLY",
)  # fmt: skip
"""Kinds that act beside the weights and can't be added to them."""
UNMERGED = {
    "alora_invocation_tokens": "acts from its invocation tokens on",
    "layer_replication": "repeats layers of its base",
    "arrow_config": "chooses among experts while it runs",
}
"""Options of LoRA with which no single set of weights does the same, and why."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files of which a tokenizer has one at least."""
FACTOR = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(\..*)?"
)


class Adapter(NamedTuple):
    """A PEFT adapter's directory, its config and the headers of its weights."""

    path: Path
    spec: str
    """How the user named it."""
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    """By their names in the file, PEFT's prefix left out."""

    @property
    def modules(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Module that LoRA adapts, as the file calls it -> part (`lora_A`, ...) -> shape."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, info in self.tensors.items():
            if match := FACTOR.fullmatch(name):
                found.setdefault(match["module"], {})[match["part"]] = info.shape
        return found

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer and template beside it; none where no vocabulary lies there."""
        if not any((self.path / name).is_file() for name in VOCABULARIES):
            return []
        names = (*TOKENIZER_FILES, *TEMPLATE_FILES)
        beside = [self.path / name for name in names if (self.path / name).is_file()]
        return [*beside, *named_template_files(self.path)]


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no checkpoint; its base's config may lie there."""
    if not (directory / CONFIG_FILE).is_file():
        return False
    is_whole = any((directory / name).is_file() for name in (SINGLE, INDEX))
    return not ((directory / "config.json").is_file() and is_whole)


def adapter_alone(directory: Path, spec: str) -> str:
    """The sentence for an adapter that was named without its base."""
    base = read_json(directory / CONFIG_FILE).get("base_model_name_or_path")
    trained = f" (its config says {base})" if base else ""
    return f"{spec} is a PEFT adapter. Name its base too{trained}: BASE+{spec}"


def open_adapter(path: Path, spec: str = "") -> Adapter:
    """An adapter whose kind can be merged; raises `BadInput` for any other and for no adapter."""
    spec = spec or str(path)
    if not path.is_dir():
        raise BadInput(
            f"{spec} is no adapter: no such directory"
            + ("." if hub_id(spec) else ", and not a hub id (owner/name[@revision]).")
        )
    if not (path / CONFIG_FILE).is_file():
        raise BadInput(f"{spec} is not a PEFT adapter: it has no {CONFIG_FILE}.")
    config = read_json(path / CONFIG_FILE)
    _require_mergeable(spec, config)
    if not (path / WEIGHTS_FILE).is_file():
        pickled = sorted(file.name for file in path.glob("adapter_model.*"))
        raise BadInput(
            f"{spec} holds pickled weights only ({pickled[0]}). Pickle can run code: convert them "
            "to safetensors first."
            if pickled
            else f"{spec} has no {WEIGHTS_FILE}. Fetch or copy it again."
        )
    tensors = {
        name.removeprefix(PREFIX): info for name, info in read_header(path / WEIGHTS_FILE).items()
    }
    if not tensors:
        raise BadInput(f"{spec} has no weights: the header of {WEIGHTS_FILE} names no tensor.")
    return Adapter(path, spec, config, tensors)


def write_adapter_config(config: "PeftConfig", out: Path) -> None:
    """Write PEFT's config into a directory. Its sets are in the order of chance, which differs from
    one process to the next, and equal content is to be equal bytes."""
    config.save_pretrained(str(out))
    content = read_json(out / CONFIG_FILE)
    sets = {name for name, value in vars(config).items() if isinstance(value, set)}
    ordered = {n: sorted(value) if n in sets else value for n, value in content.items()}
    lineage.write_json(out / CONFIG_FILE, ordered)


def _require_mergeable(spec: str, config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind in WITHOUT_WEIGHTS:
        raise BadInput(
            f"found a {kind} adapter in {spec}, expected LORA: {kind} acts beside the weights and "
            "can't be merged into them. Train a LoRA adapter instead."
        )
    if kind not in MERGED_KINDS:
        raise BadInput(
            f"found {'no peft_type' if kind is None else f'a {kind} adapter'} in {spec}, expected "
            "LORA. Merge it with PEFT first (merge_and_unload, save_pretrained) and name the "
            "merged checkpoint."
        )
    for option, why in UNMERGED.items():
        if config.get(option):
            raise BadInput(
                f"found {option} in {spec}, expected LoRA that can be merged: such an adapter "
                f"{why}, which no checkpoint of its base's shape does."
            )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise BadInput(
            f"found task_type {config['task_type']} in {spec}, expected CAUSAL_LM: the adapter was "
            "trained on another kind of model."
        )


def adapter_digest(base_digest: str, adapter: Adapter) -> str:
    """`sha256:` of a base and all that an adapter adds; one of the `digests` of both merged."""
    weights = [adapter.path / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    files = {
        str(f.relative_to(adapter.path)): lineage.file_digest(f)
        for f in [*weights, *adapter.tokenizer_files]
    }
    return lineage.made_of(lineage.digest_of([base_digest, files]), base_digest, *files.values())
