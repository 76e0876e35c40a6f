"""What a user may name: a directory, `builtin:NAME`, `base+adapter`, a hub id."""

import re
import shutil
from pathlib import Path
from typing import Any

from surgeon import lineage, store
from surgeon.checkpoint.directory import TOKENIZER_FILES, Checkpoint
from surgeon.checkpoint.loading import require_fit
from surgeon.checkpoint.specs import hub_id
from surgeon.checkpoint.templates import (
    TEMPLATE_FILES,
    named_template_files,
    read_templates,
    write_templates,
)
from surgeon.checkpoint.tensors import TensorInfo, read_header
from surgeon.errors import BadInput

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Files of which a tokenizer has one at least."""
MERGED = 1
"""Changes whenever a base and its adapter come out otherwise than before."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja",
             *(name for name in TOKENIZER_FILES if not name.endswith(".json"))]  # fmt: skip


def resolve(spec: str, work: Path | None = None) -> Checkpoint:
    """Open what the user named: a directory, `builtin:NAME`, `base+adapter` or `hub/id[@revision]`.

    An adapter is merged in float32, cast back, and kept under `work` (by default in the cache,
    `surgeon.store`). The network is used for hub ids only.
    """
    if spec.startswith("builtin:"):
        from surgeon import builtin

        return Checkpoint.open(builtin.path(spec.removeprefix("builtin:")), spec)
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise BadInput(f"{spec} is a PEFT adapter. Name its base too: BASE+{spec}")
        return opened(path, spec)
    if "+" in spec:
        base, _, adapter = spec.rpartition("+")
        return merge_adapter(resolve(base, work), Path(adapter).expanduser(), spec, work)
    if hub_id(spec):
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
        directory = snapshot_download(
            repository, revision=revision or None, allow_patterns=HUB_FILES
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{spec} is no local directory and could not be fetched from the hub: {reason}"
        ) from error
    return opened(directory, spec)


def opened(path: str | Path, spec: str) -> Checkpoint:
    """A user's checkpoint: its files, and that its weights are those its config describes."""
    checkpoint = Checkpoint.open(path, spec)
    require_fit(checkpoint)
    return checkpoint


def merge_adapter(base: Checkpoint, adapter: Path, spec: str, work: Path | None) -> Checkpoint:
    """Merge a PEFT adapter into its base in float32, cast back to the base's dtype, and open it.

    A tokenizer that lies beside the adapter takes the place of the base's.
    """
    import torch
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise BadInput(f"{adapter} is not a PEFT adapter: it has no adapter_config.json.")
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{adapter} has no adapter_model.safetensors (pickles are not read).")
    _require_adapter_fits(base, adapter, read_header(weights))
    origin = lineage.read(adapter) or {}
    digest = origin.get("inputs", {}).get("checkpoint")
    if digest is not None and digest not in base.digests:
        raise BadInput(
            f"{adapter} was made for another base: {origin['arguments'].get('checkpoint')} "
            f"({str(digest)[:19]}), not {base.spec} ({base.digest[:19]})."
        )
    identity = adapter_digest(base, adapter)

    def make(partial: Path) -> None:
        stored: Any = base.model()
        dtype = stored.dtype
        tuned: Any = PeftModel.from_pretrained(stored.to(torch.float32), str(adapter))
        merged = tuned.merge_and_unload(safe_merge=True).to(dtype)
        merged.save_pretrained(partial)
        own_tokenizer = _tokenizer_files(adapter)
        replaced = TOKENIZER_FILES if own_tokenizer else ()
        base.copy_side_files(partial, {*replaced, *(file.name for file in partial.iterdir())})
        for file in own_tokenizer:
            if file.parent == adapter:
                shutil.copy2(file, partial)
        if own_tokenizer:
            write_templates(partial, read_templates(adapter) or base.chat_templates)
        # Bytes may differ in a last bit from machine to machine; what they were made of doesn't.
        lineage.write_json(partial / lineage.FILE, {"candidate_digest": identity})

    if work is None:
        out = store.kept("merged", lineage.digest_of([MERGED, identity]), make, n_bytes=base.size)
        return Checkpoint.open(out, spec)
    out = work / f"merged-{identity[7:19]}"
    if not out.is_dir():
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(out)
    return Checkpoint.open(out, spec)


def adapter_digest(base: Checkpoint, adapter: Path) -> str:
    """`sha256:` of a base and all that an adapter adds; one of the `digests` of both merged."""
    weights = [adapter / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    files = {f.name: lineage.file_digest(f) for f in [*weights, *_tokenizer_files(adapter)]}
    return lineage.digest_of([base.digest, files])


def _tokenizer_files(adapter: Path) -> list[Path]:
    """The tokenizer and template beside an adapter; none where no vocabulary lies there."""
    if not any((adapter / name).is_file() for name in VOCABULARIES):
        return []
    names = (*TOKENIZER_FILES, *TEMPLATE_FILES)
    beside = [adapter / name for name in names if (adapter / name).is_file()]
    return [*beside, *named_template_files(adapter)]


def _require_adapter_fits(base: Checkpoint, adapter: Path, tensors: dict[str, TensorInfo]) -> None:
    """Raise `BadInput` when a LoRA factor's target is missing in the base or of another shape."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    # What transformers renames or fuses on load has no tensor of that name on disk.
    converted = bool(get_checkpoint_conversion_mapping(base.model_type))
    for name, info in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            continue
        target = base.tensors.get(f"{match[1]}.weight")
        if target is None and not converted:
            raise BadInput(f"{adapter} adapts {match[1]}, which {base.spec} does not have.")
        if target is not None:
            wanted = target.shape[1] if match[2] == "A" else target.shape[0]
            size = info.shape[1] if match[2] == "A" else info.shape[0]
            if wanted != size:
                raise BadInput(
                    f"{adapter} was made for another base: {match[1]} has size {size} in the "
                    f"adapter and {wanted} in {base.spec}."
                )
