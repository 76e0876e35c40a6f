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
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
Advance = Callable[..., None]
"""`advance(n=1, note="")`: n more items are done; the note is shown after the bar."""
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}", style="dim"),
)
_silent = False
"""Whether bars show nothing: in a worker, whose driver shows one for all."""


def silence_bars() -> None:
    """Let no bar of this process show anything."""
    global _silent
    _silent = True


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar named `what` while the block runs; without a terminal, a line when it ends."""
    if _silent:
        yield lambda n=1, note="": None
        return
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
    with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            progress.update(task, advance=n)
            if note:
                progress.update(task, note=note)

        yield advance


class Board:
    """One view of several workers: a bar for all, and a row for each."""

    def __init__(self, progress: Progress | None, what: str, total: int | None):
        self.progress, self.done = progress, 0
        self.rows: dict[int, TaskID] = {}
        self.all = None if progress is None else progress.add_task(what, total=total, note="")

    def row(self, number: int, text: str, done: int, of: int) -> None:
        """Show what worker `number` is at, and how many units of how many it has done."""
        if self.progress is None:
            return
        if number not in self.rows:
            self.rows[number] = self.progress.add_task("", note="")
        self.progress.reset(self.rows[number], description=text, completed=done, total=of)

    def advance(self, number: int, done: int) -> None:
        """One more result is there; worker `number` has done so many units of its order."""
        self.done += 1
        if self.progress is not None and self.all is not None:
            self.progress.update(self.all, advance=1)
            if number in self.rows:
                self.progress.update(self.rows[number], completed=done)

    def say(self, text: str) -> None:
        """Print a line above the view."""
        if self.progress is None:
            say(text)
        else:
            self.progress.console.print(text, markup=False, highlight=False)


@contextmanager
def board(what: str, total: int | None = None) -> Iterator[Board]:
    """Show the work of several workers while the block runs; without a terminal, a line when it
    ends."""
    if not sys.stderr.isatty():
        shown, start = Board(None, what, total), time.monotonic()
        yield shown
        of = "" if total is None else f"/{total}"
        say(f"{what}: {shown.done}{of} in {time.monotonic() - start:.1f} s")
        return
    with Progress(*COLUMNS, console=Console(stderr=True)) as progress:
        yield Board(progress, what, total)


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
