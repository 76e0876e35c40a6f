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
EVERY_S = 30.0
"""Seconds between two lines about the same work where there is no terminal: a log, a notebook."""
_silent = False
"""Whether bars show nothing: in a worker, whose driver shows one for all."""
_quiet = False
"""Whether nothing but warnings is said."""


def silence_bars() -> None:
    """Let no bar of this process show anything."""
    global _silent
    _silent = True


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress and say nothing but warnings inside the block."""
    global _silent, _quiet
    before = _silent, _quiet
    _silent = _quiet = True
    try:
        yield
    finally:
        _silent, _quiet = before


class LogLines:
    """Progress in lines, for a log: one now and then, and one at the end."""

    def __init__(self, what: str, total: int | None):
        self.what, self.of = what, "" if total is None else f"/{total}"
        self.total, self.done = total, 0
        self.start = self.said = time.monotonic()

    def count(self, n: int = 1) -> None:
        """So many more are done; says so where the last line was a while ago."""
        self.done += n
        now = time.monotonic()
        if now - self.said < EVERY_S or self.done == self.total:
            return
        self.said = now
        left = ""
        if self.total and self.done:
            left = f", {_span((now - self.start) / self.done * (self.total - self.done))} left"
        say(f"{self.what}: {self.done}{self.of}{left}")

    def end(self) -> None:
        """All is done."""
        say(f"{self.what}: {self.done}{self.of} in {time.monotonic() - self.start:.1f} s")


def _span(seconds: float) -> str:
    """A time in the unit that reads best: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show a bar named `what` while the block runs; without a terminal, a line every `EVERY_S`
    seconds and one when it ends."""
    if _silent:
        yield lambda n=1, note="": None
        return
    if not sys.stderr.isatty():
        lines = LogLines(what, total)
        yield lambda n=1, note="": lines.count(n)
        lines.end()
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

    def __init__(
        self, progress: Progress | None, what: str, total: int | None, lines: LogLines | None = None
    ):
        self.progress, self.done, self.lines = progress, 0, lines
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
        if self.lines is not None:
            self.lines.count()
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
    """Show the work of several workers while the block runs; without a terminal, a line now and
    then and one when it ends."""
    if _silent:
        yield Board(None, what, total)
        return
    if not sys.stderr.isatty():
        lines = LogLines(what, total)
        yield Board(None, what, total, lines)
        lines.end()
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
    if not _quiet or text.startswith("Warning"):
        print(text, file=sys.stderr, flush=True)
