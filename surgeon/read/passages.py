"""Blocks of responses, to be labelled: the maximal runs of rows of one phase (NEX sec. 5.1)."""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon.lineage import write_text
from surgeon.nex import segment_bounds
from surgeon.read.phased import read_responses
from surgeon.report.browser import BrowsedResponse

CSV = "blocks.csv"
COLUMNS = ("id", "question", "before", "block", "label", "annotator")
BEFORE = 800
"""Characters of what stands before a block that an annotator sees."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell that begins so would be run by a spreadsheet."""


class PhaseBlock(NamedTuple):
    """One block."""

    id: str
    candidate: str
    number: int
    """Of the response among the candidate's."""
    prompt_id: str
    sample: int
    start: int
    end: int
    """Its rows, the end excluded."""
    explore: bool
    """What the phases call it; no annotator is told."""
    text: str
    before: str
    """All that stands before it in the response."""


def passage_id(candidate: str, prompt_id: str, sample: int, start: int, end: int) -> str:
    """The name of a block, which says nothing of its phase."""
    key = "\0".join([candidate, prompt_id, str(sample), str(start), str(end)])
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def passages(number: int, response: BrowsedResponse) -> Iterator[PhaseBlock]:
    """The blocks of a response, in order."""
    at = 0
    whole = "".join(response.text_R)
    bounds = segment_bounds(np.array(response.explore_R, bool))
    for start, end in pairwise(bounds):
        text = "".join(response.text_R[start:end])
        yield PhaseBlock(
            passage_id(response.candidate, response.prompt_id, response.sample, start, end),
            response.candidate, number, response.prompt_id, response.sample, start, end,
            bool(response.explore_R[start]), text, whole[:at],
        )  # fmt: skip
        at += len(text)


def all_passages(work: Path, name: str) -> Iterator[PhaseBlock]:
    """The blocks of all of a candidate's responses."""
    for number, response in enumerate(read_responses(work, name)):
        yield from passages(number, response)


def drawn(work: Path, names: Sequence[str], n: int, seed: int) -> list[PhaseBlock]:
    """At most `n` blocks (those of one response, where it has more), in a random order: whole
    responses, drawn from every candidate in turn."""
    counts = {
        name: [len(segment_bounds(np.array(r.explore_R, bool))) - 1
               for r in read_responses(work, name)]
        for name in names
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    orders = {name: rng.permutation(len(counts[name])).tolist() for name in names}
    chosen: dict[str, set[int]] = {name: set() for name in names}
    total = 0
    for turn in range(max(map(len, orders.values()), default=0)):
        for name in names:
            if turn >= len(orders[name]):
                continue
            number = orders[name][turn]
            count = counts[name][number]
            if count and (total == 0 or total + count <= n):
                chosen[name].add(number)
                total += count
    found = [
        passage
        for name in names
        for passage in all_passages(work, name)
        if passage.number in chosen[name]
    ]
    return [found[i] for i in rng.permutation(len(found)).tolist()]


def write_csv(file: Path, found: Sequence[PhaseBlock], questions: Mapping[str, str]) -> None:
    """Write the blocks as a table to be filled in: `label` is E or X."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for p in found:
        cells = (questions.get(p.prompt_id, ""), p.before[-BEFORE:], p.text)
        writer.writerow([p.id, *map(_harmless, cells), "", ""])
    write_text(file, text.getvalue().encode("utf-8", "replace").decode())


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell
