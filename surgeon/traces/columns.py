"""Which column of a row holds what: the usual names, or those that a mapping gives."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.errors import BadInput
from surgeon.traces.messages import decoded, kind_of

USUAL = {
    "prompt": ("prompt", "question", "problem", "instruction", "query"),
    "messages": ("messages", "conversations", "conversation"),
    "answer": (
        "answer", "reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer",
        "solution", "target", "gold",
    ),
    "id": ("id", "unique_id"),
    "tools": ("tools",),
    "system": ("system", "system_prompt"),
}  # fmt: skip
"""What a prompt is made of, and the names that its columns usually have; the first one wins. A dot
leads into an object."""
OWN_PLACE = ("choices", "options", "context", "passage")
"""Columns that belong to a question and aren't in its text."""
LAST_LINE = re.compile(r"(?:^|\n)####[ \t]*(\S[^\n]*?)\s*\Z")
"""Where GSM8K's solutions state the answer."""
HOW = "Name columns with --columns prompt=COLUMN,answer=COLUMN."


@dataclass(frozen=True)
class Columns:
    """The columns that a mapping names, by what they hold; of the rest the usual names count."""

    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: str | Mapping[str, str] | None) -> "Columns":
        """From `prompt=question,answer=solution`, or a mapping; raises BadInput."""
        if spec is None:
            return cls()
        pairs: list[tuple[str, str]] = []
        for part in spec.split(",") if isinstance(spec, str) else ():
            name, _, column = part.partition("=")
            pairs.append((name.strip(), column.strip()))
        if not isinstance(spec, str):
            pairs = [(str(name), str(column)) for name, column in spec.items()]
        for name, column in pairs:
            if name not in USUAL or not column:
                raise BadInput(
                    f"found columns {name}={column}, expected NAME=COLUMN with a NAME of "
                    f"{', '.join(USUAL)}."
                )
        named = dict(pairs)
        if len(named) < len(pairs) or {"prompt", "messages"} <= named.keys():
            raise BadInput(
                f"found columns {spec}, expected each name once, and prompt or messages, not both."
            )
        return cls(named)

    def fields(self, row: Mapping[str, Any], place: str) -> dict[str, object]:
        """What a row holds, by the names of `USUAL`; raises BadInput that begins with `place`."""
        found: dict[str, object] = {}
        for name, usual in USUAL.items():
            if name in self.named:
                found[name] = self._named(row, name, place)
            elif not self._replaced(name):
                values = {column: at(row, column) for column in usual}
                present = {c: v for c, v in values.items() if v is not None}
                if name == "prompt" and "prompt" not in present:
                    _require_one(present, place)
                if present:
                    column = next(iter(present))
                    found[name] = _completed(row, name, column, present[column], place)
        if "answer" in found:
            found["answer"] = stated(found["answer"], place)
        return {name: value for name, value in found.items() if value is not None}

    def _replaced(self, name: str) -> bool:
        """Whether a prompt is taken from a column that the mapping names, so not from this one."""
        other = {"prompt": "messages", "messages": "prompt"}.get(name)
        return other in self.named

    def _named(self, row: Mapping[str, Any], name: str, place: str) -> object:
        column = self.named[name]
        value = at(row, column)
        if (value is None and name in ("prompt", "messages")) or not _has(row, column):
            raise BadInput(
                f"{place}: found no column {column!r} for {name}, expected one of: "
                f"{', '.join(map(str, sorted(row, key=str)))}. {HOW}"
            )
        return value


def at(row: Mapping[str, Any], column: str) -> object:
    """The value of a column, None where it isn't there; a dot leads into an object."""
    if column in row:
        return row[column]
    first, dot, rest = column.partition(".")
    inner = decoded(row.get(first)) if dot else None
    return at(inner, rest) if isinstance(inner, Mapping) else None


def _has(row: Mapping[str, Any], column: str) -> bool:
    first, dot, rest = column.partition(".")
    inner = decoded(row.get(first)) if dot else None
    return column in row or (isinstance(inner, Mapping) and _has(inner, rest))


def _require_one(present: Mapping[str, Any], place: str) -> None:
    """Raise BadInput where several columns could be the question."""
    if len({str(value).strip() for value in present.values()}) > 1:
        raise BadInput(
            f"{place}: found {' and '.join(present)}, expected one column with the question. {HOW}"
        )


def _completed(row: Mapping[str, Any], name: str, column: str, value: Any, place: str) -> object:
    """A column's value with what belongs to it: Alpaca's input, a solution's boxed answer."""
    if name == "prompt" and column != "prompt":
        for other in OWN_PLACE:
            if row.get(other) not in (None, "", [], {}):
                raise BadInput(
                    f"{place}: found {other} beside {column}, expected a prompt that holds them: "
                    f"they would not be asked. Write a prompt column, or --columns prompt={column} "
                    "to ask without."
                )
        if column == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
            return f"{value}\n\n{row['input']}"
    if name == "answer" and column == "solution" and isinstance(value, str):
        return last_boxed(value) or value
    return value


def stated(answer: Any, place: str) -> object:
    """The answer that a column states: after GSM8K's ####, and of a list of one that one."""
    if isinstance(answer, list | tuple) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, float) and not math.isfinite(answer):
        raise BadInput(f"{place}: found {answer} as answer, expected text or a number.")
    if answer is not None and not isinstance(answer, str | int | float):
        raise BadInput(
            f"{place}: found {kind_of(answer)} as answer, expected text or a number. {HOW}"
        )
    line = LAST_LINE.search(answer) if isinstance(answer, str) else None
    return line[1] if line else answer


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` of a solution holds, None where there is none."""
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + 7 : end].strip() or None
    return None
