"""What is true of candidates: the artifact of an evaluation, and accuracies read from one, or from
a small table, to hold a ranking against."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from surgeon.artifact import Already, Out, artifact, part
from surgeon.errors import BadInput

EVALUATION = "evaluate.json"


@part
class Gain:
    """How much more accurate than the baseline, on the same problems."""

    avg: float
    """Difference of the accuracies, from -1 to 1."""
    interval: tuple[float, float]


@part
class Measures:
    """What was measured of a candidate, or of several that differ in their seed only."""

    name: str
    avg: float
    """Avg@k: mean accuracy of one sample."""
    maj: float
    """Maj@k: accuracy of the most frequent answer, ties at their expected value."""
    pass1: float
    """Pass@1: Avg@k under another name."""
    ece: float
    """Expected calibration error of the majority vote."""
    tokens: float
    """Mean tokens per response."""
    truncated: float
    """Share of responses that hit the token limit."""
    missing: float
    """Share of responses in which no answer was found, truncated ones included."""
    interval: dict[str, tuple[float, float]]
    """95 % bootstrap interval of each of the above, by its name."""
    cons: tuple[float, ...]
    """Cons@1 to Cons@k: accuracy of the majority of that many samples."""
    gain: Gain | None = None
    """None without a baseline, and for the baseline itself."""


@part
class EvaluatedCandidate(Measures):
    """A checkpoint, or a file of responses, and what was measured of it."""

    checkpoint: str
    """What names it: a checkpoint, a family's candidate, or a file of traces."""
    ratio: float | None
    """Its place in a family of merges; None where it has none."""
    digest: str
    problems: int
    responses: int
    check_timeouts: int
    """Answers that count as wrong because their check took too long."""
    check_deaths: int
    """Answers that count as wrong because the process of their check ended by itself."""


@part
class EvaluatedGroup(Measures):
    """Candidates that differ in their seed only, measured as one."""

    members: tuple[str, ...]


@part
class EvaluatedTask:
    """The problems that were asked."""

    path: str
    problems: int
    digest: str


@artifact(EVALUATION, version=1)
class Evaluation:
    """The measured quality of candidates on a labelled task."""

    task: EvaluatedTask
    settings: dict[str, Any]
    """Flat names and values, as in surgeon.json."""
    warnings: tuple[str, ...]
    """What the accuracies may not show, in sentences."""
    candidates: tuple[EvaluatedCandidate, ...]
    groups: tuple[EvaluatedGroup, ...] = ()
    out: Out = Path()
    already: Already = False


def accuracies_file(path: str | Path) -> Path:
    """The file that holds the accuracies: `path`, or evaluate.json in that directory."""
    file = Path(path).expanduser()
    return file / EVALUATION if file.is_dir() else file


def read_accuracies(path: str | Path) -> dict[str, float]:
    """Candidate name -> true accuracy in [0, 1].

    `path` is the directory or the `evaluate.json` of an evaluation (its Avg@k is read), a JSON
    object `{"name": accuracy}`, or a CSV of two columns, name and accuracy, with or without a
    header. Raises `BadInput` naming the file and the entry that can't be used.
    """
    file = accuracies_file(path)
    if not file.is_file():
        raise BadInput(f"{file} is no file. Make it with surgeon evaluate, or give a CSV or JSON.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not text in UTF-8 ({error.reason}).") from error
    csv_like = file.suffix.lower() in (".csv", ".tsv")
    entries = _csv_entries(file, text) if csv_like else _json_entries(file, text)
    accuracies: dict[str, float] = {}
    for name, value in entries:
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise BadInput(f"{file}: {name} has accuracy {value!r}, expected a number from 0 to 1.")
        if name in accuracies:
            raise BadInput(f"{file} names {name} twice.")
        accuracies[name] = number
    if not accuracies:
        raise BadInput(f"{file} holds no accuracy.")
    return accuracies


def _json_entries(file: Path, text: str) -> list[tuple[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{file} holds a {type(content).__name__}, expected evaluate.json or an object "
            '{"name": accuracy}.'
        )
    if "candidates" not in content:
        return list(content.items())
    candidates = content["candidates"]
    if not isinstance(candidates, list) or not all(
        isinstance(c, dict) and "name" in c and "avg" in c for c in candidates
    ):
        raise BadInput(f"{file} is not an evaluation: its candidates lack `name` or `avg`.")
    return [(str(c["name"]), c["avg"]) for c in candidates]


def _csv_entries(file: Path, text: str) -> list[tuple[str, Any]]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    except csv.Error as error:
        raise BadInput(f"{file} is not a readable CSV ({error}).") from error
    for row in rows:
        if len(row) != 2:
            raise BadInput(f"{file} has a row of {len(row)} columns {row}, expected name,accuracy.")
    if rows and _number(rows[0][1]) is None:
        rows = rows[1:]
    return [(name.strip(), value) for name, value in rows]


def _number(value: Any) -> float | None:
    """A JSON number or the text of one; None for anything else, True and nan included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
