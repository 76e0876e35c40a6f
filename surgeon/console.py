"""What a verb prints for a person at a terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Standard output; text is printed as it is, without colours for numbers."""
    return Console(highlight=False)


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
