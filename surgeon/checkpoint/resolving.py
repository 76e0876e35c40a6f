"""What a user may name: a directory, a GGUF file, `builtin:NAME`, `base+adapter`, a hub id."""

import shutil
from pathlib import Path

from surgeon import lineage, store
from surgeon.checkpoint.adapter_merging import write_merged_base
from surgeon.checkpoint.adapters import (
    Adapter,
    adapter_alone,
    adapter_digest,
    is_adapter,
    open_adapter,
)
from surgeon.checkpoint.dequantising import dequantised
from surgeon.checkpoint.directory import TOKENIZER_FILES, Checkpoint
from surgeon.checkpoint.gguf_files import open_gguf
from surgeon.checkpoint.loading import require_fit
from surgeon.checkpoint.specs import hub_id
from surgeon.errors import BadInput

MERGED = 3
"""Changes whenever a base and its adapter come out otherwise than before."""
HUB_FILES = ["*.json", "*.safetensors", "*.jinja",
             *(name for name in TOKENIZER_FILES if not name.endswith(".json"))]  # fmt: skip


def resolve(spec: str, work: Path | None = None) -> Checkpoint:
    """Open what the user named: a directory, a GGUF file, `builtin:NAME`, `base+adapter` or
    `hub/id[@revision]`.

    An adapter is merged in float32, cast back, and kept under `work` (by default in the cache,
    `surgeon.store`). The network is used for hub ids only.
    """
    if spec.startswith("builtin:") and "+" not in spec:
        from surgeon import builtin

        return Checkpoint.open(builtin.path(spec.removeprefix("builtin:")), spec)
    path = Path(spec).expanduser()
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise BadInput(f"{spec[:80]}: found no name of a directory: {error.strerror}.") from error
    if is_directory:
        if is_adapter(path):
            raise BadInput(adapter_alone(path, spec))
        return opened(path, spec)
    if path.is_file() and path.suffix == ".gguf":
        return open_gguf(path, spec)
    if "+" in spec:
        base, named = split_adapter(spec)
        adapter = open_adapter(_adapter_directory(named), named)
        return merge_adapter(resolve(base, work), adapter, spec, work)
    if hub_id(spec):
        return fetch(spec)
    if path.is_file():
        raise BadInput(
            f"{spec} is a file, expected a checkpoint's directory (or a .gguf file). Name "
            f"{path.parent} where the file belongs to one."
        )
    raise BadInput(
        f"{spec} is no checkpoint: no such directory, and not a hub id (owner/name[@revision])."
    )


def split_adapter(spec: str) -> tuple[str, str]:
    """`BASE+ADAPTER` -> base and adapter, at the last `+` after which an adapter is named.

    Directories may have a `+` in their names.
    """
    places = [at for at, letter in enumerate(spec) if letter == "+"]
    for at in reversed(places):
        if Path(spec[at + 1 :]).expanduser().is_dir() and spec[:at]:
            return spec[:at], spec[at + 1 :]
    base, _, adapter = spec.rpartition("+")
    return base, adapter


def _adapter_directory(named: str) -> Path:
    """Where an adapter lies; one of the hub is fetched first."""
    path = Path(named).expanduser()
    return path if path.is_dir() or not hub_id(named) else fetch_files(named)


def fetch(spec: str) -> Checkpoint:
    """Fetch a checkpoint of the hub; raises `BadInput` where it can't be, or is an adapter."""
    directory = fetch_files(spec)
    if is_adapter(directory):
        raise BadInput(adapter_alone(directory, spec))
    return opened(directory, spec)


def fetch_files(spec: str) -> Path:
    """Download a hub repository's safetensors, configs and tokenizer into the hub's own cache."""
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = spec.partition("@")
    # What goes wrong on the way is an error of the hub's HTTP library, which it says and tries
    # again for a while.
    on_the_way = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    refusals = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError)
    try:
        directory = snapshot_download(
            repository, revision=revision or None, allow_patterns=HUB_FILES
        )
    except (*refusals, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"{spec} is no local directory and could not be fetched from the hub: {reason}"
        ) from error
    except on_the_way as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(
            f"{spec} could not be fetched whole: the hub went away ({reason}). The same command "
            "fetches what is missing."
        ) from error
    return Path(directory)


def opened(path: str | Path, spec: str) -> Checkpoint:
    """A user's checkpoint, dequantised where it is quantised: its files, and that its weights are
    those its config describes."""
    checkpoint = dequantised(Checkpoint.open(path, spec))
    require_fit(checkpoint)
    return checkpoint


def merge_adapter(base: Checkpoint, adapter: Adapter, spec: str, work: Path | None) -> Checkpoint:
    """A base with a PEFT adapter merged in float32, in the base's dtype.

    It lies under `work`, or in the cache. A tokenizer beside the adapter takes the place of the
    base's. Raises `BadInput` where the adapter was made for another base.
    """
    origin = lineage.read(adapter.path) or {}
    digest = origin.get("inputs", {}).get("checkpoint")
    if digest is not None and digest not in base.digests:
        raise BadInput(
            f"{adapter.spec} was made for another base: {origin['arguments'].get('checkpoint')} "
            f"({str(digest)[:19]}), not {base.spec} ({base.digest[:19]})."
        )
    identity = adapter_digest(base.digest, adapter)

    def make(partial: Path) -> None:
        write_merged_base(base, adapter, partial)
        # Bytes may differ in a last bit from machine to machine; what they were made of doesn't.
        lineage.write_json(partial / lineage.FILE, {"candidate_digest": identity})

    if work is None:
        key = lineage.digest_of([MERGED, identity])
        return Checkpoint.open(store.kept("merged", key, make, n_bytes=base.size), spec)
    out = work / f"merged-{identity[7:19]}"
    if not out.is_dir():
        partial = out.with_name(out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(out)
    return Checkpoint.open(out, spec)
