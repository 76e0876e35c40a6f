"""Progress of long work, on stderr: what is being done, how far, and the time left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
Advance = Callable[..., None]
"""`advance(n=1, note="")`: n more items are done; the note is shown after the bar."""


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar named `what` while the block runs; without a terminal, a line when it ends."""
    if not sys.stderr.isatty():
        done, start = 0, time.monotonic()

        def count(n: int = 1, note: str = "") -> None:
            nonlocal done
            done += n

        yield count
        seconds = time.monotonic() - start
        of = "" if total is None else f"/{total}"
        print(f"{what}: {done}{of} in {seconds:.1f} s", file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            progress.update(task, advance=n)
            if note:
                progress.update(task, note=note)

        yield advance


def track(items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
    """Yield each item and advance a bar once the consumer is done with it."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # pyright: ignore[reportArgumentType]
    with bar(what, total) as advance:
        for item in items:
            yield item
            advance()


def say(text: str) -> None:
    """Print a line that belongs to the run, not to its result."""
    print(text, file=sys.stderr, flush=True)
