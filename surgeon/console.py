"""What a verb prints: for a person at a terminal, or as JSON for a program."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

_aside = False
"""Whether text goes to stderr, as standard output belongs to the result."""


def console() -> Console:
    """Standard output; text is printed as it is, without colours for numbers."""
    return Console(highlight=False, stderr=_aside)


@contextmanager
def aside() -> Iterator[None]:
    """What is said inside the block goes to stderr."""
    global _aside
    before, _aside = _aside, True
    try:
        yield
    finally:
        _aside = before


def print_json(value: object, *, indent: int | None = 2) -> None:
    """A JSON value on standard output, and nothing else; one line where `indent` is None."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    # A lone surrogate in a model's text can't be written otherwise.
    sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8") + "\n")
    sys.stdout.flush()


def table(*columns: str, left: Iterable[str] = ()) -> Table:
    """A table without lines: the first column and those in `left` to the left, others right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    aligned = {*columns[:1], *left}
    for name in columns:
        made.add_column(name, justify="left" if name in aligned else "right", no_wrap=True)
    return made


def say(text: str, style: str = "") -> None:
    """A sentence, broken only where the terminal breaks it."""
    console().print(text, style=style, markup=False, soft_wrap=True)


def announce(already: bool, what: str) -> None:
    """Say so where a run was finished before: `This ranking`."""
    if already:
        say(f"{what} was finished before: nothing was computed.")


def warn(lines: Iterable[str]) -> None:
    """Warnings, a line each."""
    for line in lines:
        say(f"Warning: {line}", style="yellow")
