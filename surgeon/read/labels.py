"""Labels of blocks that people made: blocks.csv filled in, or JSON lines."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from surgeon import jsonl
from surgeon.errors import BadInput

WORDS = {
    "e": "E", "explore": "E", "exploration": "E", "exploring": "E", "e-phase": "E",
    "x": "X", "exploit": "X", "exploitation": "X", "exploiting": "X", "x-phase": "X",
}  # fmt: skip
"""How a label may be written -> what it is."""
Labels = dict[str, str]
"""Block id -> E or X."""


def read_labels(file: str) -> dict[str, Labels]:
    """Annotator -> labels; who has no name there is called as the file. Rows without a label are
    left out. Raises `BadInput` naming the place of what can't be used."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise BadInput(f"--labels {file} does not exist, expected blocks.csv filled in.")
    found: dict[str, Labels] = {}
    for place, row in _rows(path):
        said = str(row.get("label") or "").strip()
        block = str(row.get("id") or "").strip()
        if not said:
            continue
        if said.lower() not in WORDS:
            raise BadInput(f"{place}: found the label {said[:40]!r}, expected E or X.")
        annotator = str(row.get("annotator") or "").strip() or path.stem
        labels = found.setdefault(annotator, {})
        if block in labels:
            raise BadInput(f"{place}: {annotator} labels block {block!r} twice. Remove one.")
        labels[block] = WORDS[said.lower()]
    if not found:
        raise BadInput(f"--labels {file} holds no label, expected E or X in the column label.")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(place, row) of a CSV or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 text ({error.reason}). Save it as CSV UTF-8."
        ) from error
    if text.lstrip()[:1] == "{":
        for place, row in jsonl.rows(path):
            if not isinstance(row, dict) or "id" not in row or "label" not in row:
                raise BadInput(f"{place}: expected an object with id and label.")
            yield place, row
        return
    # Spreadsheets of half of Europe write semicolons.
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        if not {"id", "label"} <= set(reader.fieldnames or ()):
            raise BadInput(
                f"{path} has no columns id and label, expected blocks.csv with label filled in."
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise BadInput(f"{path} can't be read as CSV ({error}).") from error


def require_known(found: Mapping[str, Labels], known: Collection[str], where: str) -> None:
    """Raise `BadInput` for a label of a block that isn't there."""
    for annotator, labels in found.items():
        for block in labels:
            if block not in known:
                raise BadInput(
                    f"{annotator} labels block {block!r}, which {where} doesn't hold, expected ids "
                    "of its own blocks.csv: label the one that surgeon read wrote."
                )
