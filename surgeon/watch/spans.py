"""Files of labelled spans: one JSON object a line, with the fields of `neureasoner.steps.Span`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon import jsonl
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import Span
from surgeon.settings.neureasoner import LEVELS


def read_spans(path: str | Path) -> list[Span]:
    """The spans of a JSONL file, in its order; a last line that was cut short is left out.

    Each line is an object with the fields of `Span`; those with a default may be missing. Raises
    BadInput naming the line that is no span.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path} does not exist, expected a file of labelled spans.")
    return [parse_span(row, place) for place, row in jsonl.rows(path)]


def parse_span(row: object, place: str) -> Span:
    """One line of a span file; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {str(row)[:40]!r}, expected a span (an object).")
    fields = {**Span._field_defaults, **row}

    def whole(name: str) -> bool:
        return type(fields.get(name)) is int and fields[name] >= 0

    checks = {
        "prompt_id": (isinstance(fields.get("prompt_id"), str), "text"),
        "sample": (whole("sample"), "a whole number from 0"),
        "level": (fields.get("level") in LEVELS, " or ".join(LEVELS)),
        "first": (whole("first"), "the number of a step, from 0"),
        "last": (
            whole("first") and whole("last") and fields["last"] >= fields["first"],
            "a step from `first`",
        ),
        "failing": (isinstance(fields["failing"], bool), "true or false"),
        "pair": (fields["pair"] is None or whole("pair"), "a whole number or null"),
        "reason": (isinstance(fields["reason"], str), "text"),
        "attempts": (_ascending(fields), "ascending steps from `first` to `last`"),
    }
    for name, (good, expected) in checks.items():
        if not good:
            found = repr(fields[name])[:40] if name in fields else "nothing"
            raise BadInput(f"{place}: found {found} as {name} of a span, expected {expected}.")
    fields["attempts"] = tuple(fields["attempts"])
    return Span(**{name: fields[name] for name in checks})


def _ascending(fields: Mapping[str, Any]) -> bool:
    attempts = fields["attempts"]
    if not isinstance(attempts, list | tuple) or not all(type(n) is int for n in attempts):
        return False
    if list(attempts) != sorted(set(attempts)):
        return False
    return not attempts or (fields["first"] <= attempts[0] and attempts[-1] <= fields["last"])
