"""Rows of a file or data set, each with the place it stands at: `FILE:LINE`, or `FILE: row N`."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from surgeon import jsonl
from surgeon.errors import BadInput

Rows = Iterator[tuple[str, object]]
DATASET = re.compile(
    r"(?P<hub>hf:)?(?P<name>(?:[\w.-]+/)?[\w.-]+)(?:#(?P<config>[\w.-]+))?"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]:%+-]+))?"
)
"""`[hf:]OWNER/NAME[#CONFIG][@REVISION][:SPLIT]`."""
PART = re.compile(r"(?P<whole>.+)\[(?P<first>\d*):(?P<end>\d*)\]")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
EXPECTED = "a .jsonl, .json, .csv, .tsv or .parquet file of prompts, or hf:OWNER/NAME:SPLIT"
WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
LONGEST_CELL = 1 << 30
HUB_S = 10.0
"""Seconds that the hub may take to say anything."""


def read_rows(source: str) -> Rows:
    """The rows of a file, of `builtin:NAME`, or of a data set on the hub; raises BadInput.

    `[FIRST:END]` behind a file or `builtin:NAME` takes rows FIRST to END - 1, counted from 0; one
    of the two may be left out. The hub is asked only for `hf:...`, and where no such file exists
    and the source is written like an id.
    """
    part = PART.fullmatch(source)
    if part and not Path(source).exists() and not source.startswith("hf:"):
        first, end = (int(part[name]) if part[name] else None for name in ("first", "end"))
        return islice(read_rows(part["whole"]), first, end)
    if source.startswith("builtin:"):
        from surgeon import builtin

        source = str(builtin.path(source.removeprefix("builtin:")))
    path = Path(source).expanduser()
    if not source.startswith("hf:"):
        if path.is_dir():
            raise BadInput(f"{source} is a directory, expected {EXPECTED}.")
        if path.is_file():
            return _file_rows(path)
    found = DATASET.fullmatch(source)
    if found and (found["hub"] or ("/" in found["name"] and path.suffix not in SUFFIXES)):
        return _hub_rows(source, found)
    raise BadInput(f"{source} does not exist. Give {EXPECTED}.")


def _file_rows(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix in (".csv", ".tsv"):
        return _table_rows(path, "\t" if suffix == ".tsv" else None)
    return _json_rows(path)


def _content(path: Path) -> bytes:
    """A text file as UTF-8 without a byte order mark."""
    content = path.read_bytes()
    for mark, encoding in WIDE.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding).encode()
            except UnicodeError as error:
                raise BadInput(f"{path} is not UTF-16 text, as its mark says ({error}).") from error
    return content.removeprefix(codecs.BOM_UTF8)


def _json_rows(path: Path) -> Rows:
    """One object a line; or one array of objects, or one object that holds an array."""
    content = _content(path)
    if content.lstrip()[:1] == b"[":
        yield from _array_rows(_text(content, path), path)
        return
    if path.suffix.lower() == ".json" and (whole := _whole(content)) is not None:
        lists = [v for v in whole.values() if isinstance(v, list) and v and _objects(v)]
        rows = lists[0] if len(lists) == 1 and len(whole) == 1 else [whole]
        for number, row in enumerate(rows, 1):
            yield f"{path}: row {number}", row
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield f"{path}:{number}", jsonl.parse(line, f"{path}:{number}")


def _objects(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _whole(content: bytes) -> dict[str, object] | None:
    """The one object that a file is; None where it is something else, such as one a line."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _array_rows(text: str, path: Path) -> Rows:
    """The items of one JSON array, each by the line it begins in."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")

    def skip(position: int) -> int:
        end = space.match(text, position)
        return end.end() if end else position

    position, line, counted = skip(skip(0) + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        place = f"{path}:{line}"
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{place}: found no valid JSON ({error}), expected an object."
            ) from error
        yield place, row
        position = skip(position)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            raise BadInput(f"{place}: the array has no end after this item, expected ']'.")
    rest = skip(position + 1)
    if text[rest:]:
        line += text.count("\n", counted, rest)
        raise BadInput(f"{path}:{line}: found text after the array, expected one array a file.")


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}:{line}: found bytes that are not UTF-8 text ({error.reason}). Save the file "
            "as UTF-8."
        ) from error


def _table_rows(path: Path, delimiter: str | None) -> Rows:
    """Rows of a table with a header; an empty cell is a cell that isn't there."""
    text = _text(_content(path), path)
    first = text.partition("\n")[0]
    if delimiter is None:
        delimiter = ";" if first.count(";") > first.count(",") else ","
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield from _cells(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), path
        )
    finally:
        csv.field_size_limit(before)


def _cells(reader: Any, path: Path) -> Rows:
    header: list[str] | None = None
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(f"{path}:{start}: found no valid row of a table ({error}).") from error
        place, start = f"{path}:{start}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise BadInput(f"{place}: found the column {twice[0]!r} twice, expected it once.")
            continue
        if len(cells) != len(header):
            raise BadInput(
                f"{place}: found {len(cells)} cells, expected {len(header)} as in the header. Put "
                "text with commas or line breaks in double quotes."
            )
        yield place, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _parquet_rows(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(f"{path} needs pyarrow: pip install 'surgeon[data]'.") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} is not a readable Parquet file: {reason}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: found text that is not UTF-8 ({error.reason}).") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _hub_rows(source: str, found: re.Match[str]) -> Rows:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise BadInput(
            f"{source} is no file here; a hub data set needs: pip install 'surgeon[data]'."
        ) from error
    config = [found["config"]] if found["config"] else []
    revision = {"revision": found["revision"]} if found["revision"] else {}
    why = _unreachable()
    try:
        with _offline(why is not None):
            rows: Any = datasets.load_dataset(
                found["name"], *config, split=found["split"] or "train", **revision
            )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = why or " ".join(str(error).split())[:200]
        raise BadInput(
            f"{source} is no file here and no data set that could be fetched: {reason}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source}: row {number}", row


def _unreachable() -> str | None:
    """Why nothing can come from the hub, None where it answers at all: `datasets` asks for half a
    minute before it gives up."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and it isn't in the cache of the hub's files"
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_S).close()
    except HTTPError:
        return None
    except OSError as error:
        why = error.reason if isinstance(error, URLError) else error
        # Certificates are `datasets`' own concern: it may know others.
        if isinstance(why, SSLError):
            return None
        return (
            f"{constants.ENDPOINT} can't be reached ({why}), and it isn't in the cache of the "
            "hub's files"
        )
    return None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """`datasets` reads what it has already, where `offline`."""
    from datasets import config
    from huggingface_hub import constants

    places: tuple[Any, ...] = (constants, config)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = offline or place.HF_HUB_OFFLINE
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
