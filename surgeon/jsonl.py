"""JSON lines that survive a kill: a file is a run of whole rows, whatever happened to its writer.

A killed process, or a full disk, leaves at most one line that was cut short, the last one. Readers
leave it out and writers cut it off, so the same command resumes with the rows before it. A last row
that only lost its line break is whole and is kept.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.errors import BadInput

# Many readers take these for line breaks too (`str.splitlines` does).
ESCAPED = {ord(break_): f"\\u{ord(break_):04x}" for break_ in "\x85\u2028\u2029"}


def append(file: str | Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file, which needs not exist yet, as one write; a torn last line goes first."""
    line = _line(row)
    with open(file, "ab+", buffering=0) as stream:
        if end := stream.seek(0, os.SEEK_END):
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                line = _mend(file, end) + line
        # A disk that fills up takes a part without a word; only what comes after it is refused.
        while line:
            line = line[stream.write(line) :]


def write(file: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file of rows, atomically."""
    lineage.write_text(file, b"".join(map(_line, rows)).decode())


def rows(file: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for each line, the place as `file:line`; blank lines are skipped.

    A file that doesn't exist has no rows, and a last line that was cut short is none. Raises
    `BadInput` naming the place of any other line that isn't JSON in UTF-8.
    """
    file = Path(file)
    if not file.is_file():
        return
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip() and (line.endswith(b"\n") or not _torn(line)):
                yield f"{file}:{number}", parse(line, f"{file}:{number}")


def parse(line: bytes, place: str) -> object:
    """The JSON value of one line; raises `BadInput` that begins with `place`."""
    try:
        # Editors on Windows put a mark before the first line.
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{place}: found bytes that are not UTF-8 text ({error.reason}, byte "
            f"{error.start + 1}). Save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: found no valid JSON ({error}), expected one object.") from error


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False).translate(ESCAPED)
    # Half a surrogate pair is no Unicode; what `backslashreplace` makes of it is its JSON escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _torn(line: bytes) -> bool:
    """Whether a last line without a line break was cut short: rows are objects, and an object
    without its end isn't valid JSON."""
    try:
        json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return True
    return False


def _mend(file: str | Path, end: int) -> bytes:
    """Cut off a torn last line; returns the line break that a whole one still needs."""
    with open(file, "rb") as lines:
        (last,) = deque(lines, maxlen=1)
    if not _torn(last):
        return b"\n"
    os.truncate(file, end - len(last))
    return b""
