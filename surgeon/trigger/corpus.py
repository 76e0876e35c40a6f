"""Reference reasoning from outside, in which failures are made up (the raw corpus of Eq. 4)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from surgeon.answers.thinking import TAGS
from surgeon.errors import BadInput
from surgeon.judges.makeup import COPIED
from surgeon.traces import Prompt, parse_prompt
from surgeon.traces.columns import Columns
from surgeon.traces.sources import read_rows

SHORT = "the reference has too few steps"
_COMPUTES = re.compile(r"[0-9=<>]|\\\w")
"""What a critical step has: a number, a relation, or a formula."""
RESPONSES = ("reasoning", "response", "solution", "completion", "output")
"""Columns of the reference, the first that is there."""


class Reference(NamedTuple):
    """A question, and how it was reasoned about."""

    prompt: Prompt
    steps: tuple[str, ...]
    """Each with its separator."""


def read_corpus(source: str, columns: str | Mapping[str, str] | None = None) -> list[Reference]:
    """The references of a file or data set: questions with a reasoning (or response) column, or
    conversations that end with the assistant's turn, such as Bespoke-Stratos-17k.

    Of a response with a thinking block only that is taken. Raises `BadInput` naming the row that
    holds none, and for an id that occurs twice.
    """
    names = Columns.parse(columns)
    found: dict[str, Reference] = {}
    for number, (place, row) in enumerate(read_rows(source), 1):
        prompt = parse_prompt(row, place, str(number), names)
        text = _response(row)
        if not text:
            raise BadInput(
                f"{place}: found no reasoning, expected it in a column {', '.join(RESPONSES)}, or "
                "a conversation that ends with the assistant's turn."
            )
        if prompt.id in found:
            raise BadInput(f"{place}: the id {prompt.id!r} was already used; ids must differ.")
        steps = [part.strip() for part in re.split(r"\n\s*\n", thinking_of(text))]
        found[prompt.id] = Reference(prompt, tuple(f"{step}\n\n" for step in steps if step))
    if not found:
        raise BadInput(f"{source} holds no references, expected at least one row.")
    return list(found.values())


def _response(row: object) -> str:
    """The text of a row's reference; empty where it has none."""
    if not isinstance(row, dict):
        return ""
    for name in RESPONSES:
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    turns = row.get("messages") or row.get("conversations")
    last = turns[-1] if isinstance(turns, list) and turns else None
    if isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt"):
        text = last.get("content", last.get("value"))
        return text if isinstance(text, str) else ""
    return ""


def thinking_of(text: str) -> str:
    """What stands in a response's thinking block; all of it where there is none."""
    for opening, closing in TAGS:
        head, found, _ = text.partition(closing)
        if found:
            return head.rpartition(opening)[2]
    return text


class Perturbed(NamedTuple):
    """Where a failure is made up in a reference."""

    reference: Reference
    level: str
    step: int
    """The next critical step after those that are copied."""

    @property
    def name(self) -> str:
        return f"{self.reference.prompt.id}/{self.level}"


def perturbed(
    references: Sequence[Reference], levels: Sequence[str], seed: int
) -> Iterator[Perturbed | str]:
    """A place per reference and level, or why there is none.

    The first 2 to 4 steps are copied as they are; the next critical one is the first after them
    that computes something (R27), or the next one where none does.
    """
    for reference in references:
        for level in levels:
            rng = Random(f"{seed} {reference.prompt.id} {level}")
            fits = [n for n in COPIED if n < len(reference.steps)]
            if not fits:
                yield SHORT
                continue
            copied = rng.choice(fits)
            later = range(copied, len(reference.steps))
            step = next((n for n in later if _COMPUTES.search(reference.steps[n])), copied)
            yield Perturbed(reference, level, step)
