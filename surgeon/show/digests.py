"""The digest of whatever a run can take as its input, computed anew."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, adapter_digest, hub_id, open_adapter, split_member
from surgeon.checkpoint.adapters import is_adapter
from surgeon.checkpoint.resolving import resolve, split_adapter
from surgeon.errors import BadInput
from surgeon.families import Family, open_checkpoint
from surgeon.families.description import candidate_digest

Verdict = Literal["same", "differs", "gone", "unknown"]
CANDIDATES = "candidates"
DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def verdict(place: str, digest: str, arguments: Mapping[str, Any]) -> Verdict:
    """Whether what is at a place has that digest; `arguments` are those of the run that says so.

    "unknown" where nothing says how the digest was made, or what it is of would have to be fetched.
    """
    named, member = split_member(place)
    local = Path(named).expanduser().exists() or "+" in named or named.startswith("builtin:")
    if not local:
        return "unknown" if hub_id(named) else "gone"
    certain = False
    for sure, found in _digests(named, member, arguments):
        certain |= sure
        if found == digest:
            return "same"
    return "differs" if certain else "unknown"


def _digests(place: str, member: str, arguments: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """(sure, digest): every digest that may stand for a place; `sure` where a digest of another
    kind isn't taken of such a thing."""
    path = Path(place).expanduser()
    if member and (path / CANDIDATES / member).is_dir():  # of a ranking: what it recorded of one
        place, path, member = f"{place}/{CANDIDATES}/{member}", path / CANDIDATES / member, ""
    if member:
        yield from ((True, digest) for digest in _of_member(Family.open(path), member))
    elif place.startswith("builtin:") or path.is_file():
        yield from _of_file(place, path, arguments)
    elif "+" in place and not path.exists():
        base, adapter = split_adapter(place)
        yield True, adapter_digest(resolve(base).digest, open_adapter(Path(adapter)))
        yield from ((True, digest) for digest in resolve(place).digests)
    elif (path / "config.json").is_file():
        yield from ((True, digest) for digest in Checkpoint.open(path).digests)
    else:
        depth = 1 if is_adapter(path) else 3
        for file in sorted(path.rglob("*")):
            inside = len(file.relative_to(path).parts)
            if file.is_file() and inside <= (depth if file.suffix == ".safetensors" else 1):
                yield False, lineage.file_digest(file)


def _of_member(family: Family, name: str) -> Iterator[str]:
    """A candidate's, of its recipe and its endpoints' recorded digests: the tree goes on to the
    endpoints themselves."""
    candidate = family.candidate(name)
    if candidate.endpoint is not None:
        yield from family.endpoints[candidate.endpoint].digests
        return
    yield candidate_digest(candidate.merge, family)
    directory = family.directory(candidate)
    if directory is not None:
        yield Checkpoint.open(directory).digest


def _of_file(place: str, path: Path, arguments: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    if path.is_file():
        yield path.suffix == ".safetensors", lineage.file_digest(path)
        if path.suffix == ".safetensors":
            yield from ((True, digest) for digest in _of_masks(path))
        if path.suffix not in DATA:
            return
    else:
        try:
            yield from ((True, digest) for digest in open_checkpoint(place).digests)
        except BadInput:
            pass  # then it is a set of prompts
        else:
            return
    from surgeon.traces import digest_of_prompts, read_prompts

    try:
        prompts = read_prompts(place, columns=arguments.get("columns"))
    except BadInput:
        return  # data of another kind, whose bytes were compared
    yield True, digest_of_prompts(prompts)
    if limit := arguments.get("limit"):
        yield True, digest_of_prompts(prompts[:limit])


def _of_masks(path: Path) -> Iterator[str]:
    """Of each mask in a file: a transplant takes its units, however they are written."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in list(file.keys()):
            if file.get_slice(name).get_dtype() in ("BOOL", "U8", "I8"):
                yield lineage.digest_of(file.get_tensor(name).reshape(-1).nonzero()[:, 0].tolist())
