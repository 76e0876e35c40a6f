"""The candidates of a sweep by several workers: each merges some, smoke-tests and publishes them.

A worker on this machine writes where the driver would. One on another node writes to a directory of
its own and sends the files, which the driver puts in place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from surgeon import lineage
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import Candidate, Family, candidate_files
from surgeon.live.families import smoke_test
from surgeon.merge import mergekit
from surgeon.workers import Bench, Crew, Roster

CHUNK_BYTES = 32 << 20
"""Of a file that is sent from another node."""


class MergeOrder(NamedTuple):
    """Candidates that a worker is to write, and all it needs for that."""

    family: Family
    others: dict[str, Checkpoint]
    candidates: list[Candidate]
    by_mergekit: bool
    smoke: bool
    threads: int
    """Of torch: mergekit's last bits depend on it."""


class Chunk(NamedTuple):
    """A part of a candidate's file."""

    file: str
    offset: int
    data: bytes


def merge(bench: Bench, order: MergeOrder) -> Iterator[tuple[str, Chunk | None, bool]]:
    """A worker's job: each candidate's name, once it is published here or sent."""
    torch.set_num_threads(order.threads)
    family = order.family
    if not bench.near:
        require_endpoints(family)
        family = replace(family, path=lineage.scratch())
    places = [(c, candidate_files.begin_candidate(family, c, family.path / c.name))
              for c in order.candidates]  # fmt: skip
    # None where a worker published it, and died before it could say so.
    todo = [(candidate, work) for candidate, work in places if work is not None]
    yield from ((candidate.name, None, True) for candidate, work in places if work is None)
    if not order.by_mergekit and todo:
        candidate_files.write_weights(family, [c for c, _ in todo], [work for _, work in todo])
    for candidate, work in todo:
        if order.by_mergekit:
            mergekit.write(family, candidate, work, order.others)
        else:
            candidate_files.write_side_files(family, candidate, work)
        publish(candidate, work, order.smoke)
        if not bench.near:
            yield from sent(candidate.name, family.path / candidate.name)
        yield candidate.name, None, True


def require_endpoints(family: Family) -> None:
    """Raise `BadInput` unless this node has the endpoints under the paths of the driver's."""
    for endpoint in family.endpoints:
        if not endpoint.path.is_dir():
            raise BadInput(
                f"{endpoint.path} is not on every node, expected the endpoints there, under the "
                "same path. Copy it, or merge with --workers N on this machine."
            )
    family.require_unchanged()


def sent(name: str, directory: Path) -> Iterator[tuple[str, Chunk, bool]]:
    """A candidate's files in chunks, without the record that the driver has of its own."""
    for path in sorted(directory.rglob("*")):
        file = path.relative_to(directory).as_posix()
        if not path.is_file() or file == lineage.FILE:
            continue
        with open(path, "rb") as stream:
            offset = 0
            while (data := stream.read(CHUNK_BYTES)) or not offset:
                yield name, Chunk(file, offset, data), False
                offset += len(data) or 1
        path.unlink()


def publish(candidate: Candidate, work: Path, smoke: bool) -> None:
    """Smoke-test a candidate's partial directory and give it its name."""
    if smoke:
        try:
            smoke_test(work)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{candidate.name} failed its smoke test and stays unpublished in {work}: {reason}"
            ) from error
    lineage.finish(work, work.with_name(candidate.name))


def write_candidates(
    roster: Roster,
    family: Family,
    others: dict[str, Checkpoint],
    todo: Sequence[tuple[Candidate, Path]],
    by_mergekit: frozenset[str],
    smoke: bool,
) -> None:
    """Let the workers write these candidates, whose partial directories are there."""
    places = {candidate.name: work for candidate, work in todo}
    candidates = {candidate.name: candidate for candidate, _ in todo}
    groups = {
        "mergekit": [name for name in places if name in by_mergekit],
        "merging": [name for name in places if name not in by_mergekit],
    }

    def order(group: str, names: list[str]) -> MergeOrder:
        chosen = [candidates[name] for name in names]
        slow = group == "mergekit"
        return MergeOrder(family, others, chosen, slow, smoke, torch.get_num_threads())

    with Crew(roster) as crew:
        results = crew.run(groups, merge, order, what="merge", least=1)
        for result in results:
            work = places[result.unit]
            if isinstance(result.value, Chunk):
                write_chunk(work, result.value)
            elif work.is_dir():
                lineage.finish(work, work.with_name(result.unit))


def write_chunk(work: Path, chunk: Chunk) -> None:
    """Put a part of a file where it belongs; the first one begins the file anew."""
    path = work / chunk.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "r+b" if chunk.offset else "wb") as stream:
        stream.seek(chunk.offset)
        stream.write(chunk.data)
