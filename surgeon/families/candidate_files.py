"""Writing merged checkpoints: each endpoint tensor is read once for all candidates.

A safetensors file is a header that knows every tensor's place, then the bytes. So all files are
laid out first, their space is reserved, and chunks go to their place as they are mixed, by several
threads and in any order. A shard gets its name when it is whole; a killed run resumes with the
next one.
"""

import errno
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon import lineage
from surgeon.checkpoint import (
    DTYPES,
    FLOATS,
    INDEX,
    TEMPLATE_FILES,
    TOKENIZER_FILES,
    Checkpoint,
    TensorInfo,
    card,
    disk_name,
    fenced,
    label_dtype,
    markdown_table,
    read_header,
    read_json,
    read_templates,
    torch_dtype,
    write_templates,
)
from surgeon.errors import BadInput
from surgeon.families import mixing
from surgeon.families.cosines import merge_groups
from surgeon.families.description import Candidate, Choices, Family, mergekit_yaml
from surgeon.families.merge_methods import MergeConfig, Mix, recipe
from surgeon.progress import bar
from surgeon.threads import one_thread

GENERATION_FILES = ("generation_config.json",)
SIDES = {"tokenizer": TOKENIZER_FILES, "template": TEMPLATE_FILES, "generation": GENERATION_FILES}
"""What a candidate takes whole from one endpoint, and the files it consists of."""
CHOSEN = tuple(name for files in SIDES.values() for name in files)
OWN_FILES = ("mergekit_config.yml", "family.json", "cosines.json")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Layout:
    """Where each tensor of one safetensors file lies."""

    shard: str
    header: bytes
    offset: dict[str, int]
    """Tensor name -> byte offset from the start of the file."""
    size: int


def layout(checkpoint: Checkpoint, shard: str, dtype: str | None) -> Layout:
    """The file that holds the tensors of `shard` once they are in `dtype` (None: as they are)."""
    infos = {name: in_dtype(checkpoint.tensors[name], dtype) for name in checkpoint.shards[shard]}
    width = {name: DTYPES[i.dtype].nbytes if i.dtype in DTYPES else 1 for name, i in infos.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place, at = {}, 0
    # Widest first, so that every tensor is aligned to its own item size.
    for name in sorted(infos, key=lambda n: (-width[n], n)):
        info, place[name] = infos[name], at
        at += info.nbytes
        offsets = [place[name], at]
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return Layout(
        shard,
        struct.pack("<Q", len(text)) + text,
        {name: start + offset for name, offset in place.items()},
        start + at,
    )


def in_dtype(info: TensorInfo, dtype: str | None) -> TensorInfo:
    """A tensor as it is written in `dtype` (None: as it is); only floats are cast."""
    if dtype is None or info.dtype not in FLOATS:
        return info
    name = disk_name(dtype)
    return info._replace(dtype=name, nbytes=math.prod(info.shape) * DTYPES[name].nbytes)


def candidate_bytes(checkpoint: Checkpoint, dtype: str | None) -> int:
    """Bytes one written candidate takes, headers and side files included."""
    shards = sum(layout(checkpoint, shard, dtype).size for shard in checkpoint.shards)
    return shards + sum(file.stat().st_size for file in checkpoint.side_files) + (64 << 10)


def write_weights(family: Family, candidates: list[Candidate], outs: list[Path]) -> None:
    """Write the weights of fast-path candidates into existing directories, side by side.

    Shards that are already there are kept. Raises `BadInput` when the disk is full; running again
    resumes.
    """
    a = family.endpoints[0]
    keys = {name: group.key for group in merge_groups(a) for name in group.names}
    workers = max(2, os.cpu_count() or 1)
    pairs = list(zip(candidates, outs, strict=True))
    closing: list[Future[None]] = []
    try:
        with (
            one_thread(),
            bar(f"writing {len(candidates)} candidates", len(a.tensors)) as advance,
            ThreadPoolExecutor(workers) as pool,
        ):
            for shard in a.shards:
                # Every candidate's file is open at once: a chunk that was read is mixed for all.
                todo = [(c, out) for c, out in pairs if not (out / shard).exists()]
                plan = layout(a, shard, family.dtype)
                with _reserved([out / f".{shard}.tmp" for _, out in todo], plan) as files:
                    tasks = _tasks(family, plan, keys, [c for c, _ in todo], files, advance)
                    _drain(pool, tasks, limit=4 * workers)
                closing += [
                    pool.submit(_publish, file, out, plan)
                    for file, (_, out) in zip(files, todo, strict=True)
                ]
            for future in closing:
                future.result()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise BadInput(
            f"The disk of {outs[0].parent} is full. Free some space, then run the same command "
            "again: finished shards and candidates are kept."
        ) from error
    for out in outs:
        write_index(a, out, family.dtype)


@contextmanager
def _reserved(files: list[Path], plan: Layout) -> Iterator[list[int]]:
    """One open file per candidate, with the header written and the space for the rest reserved.

    They stay open after a block that went well: `_publish` closes them.
    """
    with ExitStack() as on_failure:
        opened: list[int] = []
        for file in files:
            opened.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644))
            on_failure.callback(os.close, opened[-1])
            try:
                os.posix_fallocate(opened[-1], 0, plan.size)
            except OSError as error:
                if error.errno in DISK_FULL:
                    raise
                os.ftruncate(opened[-1], plan.size)  # a file system that can't reserve
            _write_at(opened[-1], plan.header, 0)
        yield opened
        on_failure.pop_all()


def _tasks(
    family: Family,
    plan: Layout,
    keys: dict[str, str],
    candidates: list[Candidate],
    files: list[int],
    advance: Callable[..., None],
) -> Iterator[Callable[[], None]]:
    """One task per chunk: mix it for every candidate and put it where it belongs."""
    a, b = family.endpoints[0], family.endpoints[-1]
    names = a.shards[plan.shard]
    if not files:
        advance(len(names))
        return
    scratch, mixes = mixing.Scratch(), mixes_of(candidates)
    stored_a, stored_b = a.read_many(names), b.read_many(names)
    for name in names:
        first, second = stored_a[name].reshape(-1), stored_b[name].reshape(-1)
        at = plan.offset[name]
        if first.is_floating_point():
            dtype = torch_dtype(family.dtype) if family.dtype else first.dtype
            cosine = family.cosines.get(keys[name])
            recipes = [recipe(mix, cosine, dtype) for mix in mixes]
            for start, stop in mixing.chunks(first.numel()):
                pair = (first[start:stop], second[start:stop])
                yield partial(
                    _mix, *pair, recipes, dtype, scratch, files, at + start * dtype.itemsize
                )
        elif first.numel():
            for file in files:
                yield partial(_write_at, file, as_bytes(first), at)
        advance(1)


def mixes_of(candidates: list[Candidate]) -> list[Mix]:
    """The recipes of candidates that are all mixed here."""
    mixes = [candidate.mix for candidate in candidates]
    for candidate, mix in zip(candidates, mixes, strict=True):
        if mix is None:
            raise ValueError(f"{candidate.name} is not a mix of the two endpoints")
    return [mix for mix in mixes if mix is not None]


def _mix(
    first: Tensor,
    second: Tensor,
    recipes: list[mixing.Recipe],
    dtype: torch.dtype,
    scratch: mixing.Scratch,
    files: list[int],
    at: int,
) -> None:
    chunks = mixing.mixed(first, second, recipes, dtype, scratch)
    for file, chunk in zip(files, chunks, strict=True):
        _write_at(file, as_bytes(chunk), at)


def as_bytes(tensor_N: Tensor) -> memoryview:
    """The bytes of a flat tensor, without a copy."""
    return memoryview(tensor_N.contiguous().view(torch.uint8).numpy())  # pyright: ignore


def _write_at(file: int, data: "bytes | memoryview", at: int) -> None:
    view = memoryview(data)
    while view:
        n = os.pwrite(file, view, at)
        view, at = view[n:], at + n


def _drain(pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], None]], limit: int) -> None:
    """Run the tasks on the pool, at most `limit` waiting at a time; the first error is raised."""
    running: set[Future[None]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(task))
            if len(running) >= limit:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        for future in running:
            future.result()
    finally:
        # Files are closed next, so nothing may still be writing to them.
        wait(running)


def _publish(file: int, out: Path, plan: Layout) -> None:
    """Make a complete shard durable, check that it reads back, and give it its name."""
    temporary = out / f".{plan.shard}.tmp"
    try:
        os.fsync(file)
    finally:
        os.close(file)
    if set(read_header(temporary)) != set(plan.offset):
        raise RuntimeError(f"{temporary} does not read back as it was written")
    os.replace(temporary, out / plan.shard)


def write_index(
    a: Checkpoint, out: Path, dtype: str | None, *, of: Checkpoint | None = None
) -> None:
    """The shard index, as in the first endpoint; `of` has the tensors where `a` has them not."""
    if not a.indexed:
        return
    index = read_json(a.path / INDEX)
    places = {name: shard for shard, names in a.shards.items() for name in names}
    size = sum(in_dtype(info, dtype).nbytes for info in (of or a).tensors.values())
    metadata = {**(index.get("metadata") or {}), "total_size": size}
    lineage.write_json(out / INDEX, {"metadata": metadata, "weight_map": places})


def write_side_files(family: Family, candidate: Candidate, out: Path) -> None:
    """Config, tokenizer, template, generation config, merge config and model card."""
    a = family.endpoints[0]
    a.copy_side_files(out, {*CHOSEN, *OWN_FILES})
    if "_name_or_path" in a.config:
        # Older versions of transformers noted where a model was loaded from: a path, often.
        config = {k: v for k, v in a.config.items() if k != "_name_or_path"}
        lineage.write_json(out / "config.json", config)
    label_dtype(out)
    copy_choices(family, out)
    lineage.write_text(out / "mergekit_config.yml", mergekit_yaml(family, candidate))
    lineage.write_text(out / "README.md", model_card(family, candidate))


def copy_choices(family: Family, out: Path, *, there: tuple[str, ...] = ()) -> None:
    """Put the chosen tokenizer, template and generation config into `out`, replacing others.

    The parts in `there` were made for this candidate and stay.
    """
    for part, names in SIDES.items():
        if part in there:
            continue
        for name in names:
            (out / name).unlink(missing_ok=True)
        for file in family.source(part).side_files:
            if file.name in names:
                shutil.copyfile(file, out / file.name)
    if "template" in there:
        return
    # Those of the tokenizer's own endpoint stay where they live, unless another file hides them.
    templates = family.source("template").chat_templates
    if templates != read_templates(out):
        write_templates(out, templates)


def model_card(family: Family, candidate: Candidate) -> str:
    """A README.md that names the parents, never by path."""
    names = family.endpoint_names
    where = "" if candidate.ratio is None else f" at ratio {candidate.ratio:g} of the way"
    rows = [
        (name, endpoint.spec if endpoint.hub_id else name, f"`{digest}`")
        for name, endpoint, digest in zip(
            names, family.endpoints, family.endpoint_digests, strict=True
        )
    ]
    made = made_by_config(candidate.merge, family.choices)
    parts = [
        f"{part} " + ("by the merge config" if part in made else f"from {names[side == 'second']}")
        for part, side in family.choices._asdict().items()
    ]
    sections = [
        f"A merge of two language models by {candidate.merge['merge_method']}{where} from the "
        "first parent to the second.",
        markdown_table(("parent", "named", "digest"), rows),
        f"Not merged, but taken whole: {', '.join(parts)}.",
        fenced(mergekit_yaml(family, candidate), "yaml"),
    ]
    tags = ("merge", "mergekit")
    return card(candidate.name, sections, parents=family.endpoints, tags=tags)


def made_by_config(merge: MergeConfig, choices: Choices) -> tuple[str, ...]:
    """Which of tokenizer and template a merge config makes; another template may be chosen."""
    made = ["tokenizer"] if any(key in merge for key in ("tokenizer", "tokenizer_source")) else []
    if "chat_template" in merge or (made and choices.template == "first"):
        made.append("template")
    return tuple(made)


def begin_candidate(family: Family, candidate: Candidate, out: Path) -> Path | None:
    """The partial directory of one candidate; None when `out` already holds it."""
    work = lineage.begin(
        out,
        verb="merge",
        arguments={
            "merge": candidate.merge,
            "dtype": family.dtype,
            "choices": family.choices._asdict(),
        },
        inputs=family.inputs,
        seed=None if candidate.mix else family.seed,
    )
    if work is not None:
        record, identity = lineage.read(work) or {}, {"candidate_digest": candidate.digest}
        if not identity.items() <= record.items():
            lineage.write_json(work / lineage.FILE, record | identity)
    return work
