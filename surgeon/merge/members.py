"""Which candidates a sweep has: from methods and ratios, or from a merge config.

A merge config is YAML with these keys; several documents (`---`) make one family of several merges:

    merge:                     # mergekit's own config, verbatim; the models `a` and `b` are the
      merge_method: slerp      # endpoints of the command line, others are paths or hub ids
      base_model: a
      models: [{model: a}, {model: b}]
      parameters:
        t: ${t}                # where a swept value goes; ${1 - t} is its complement
    sweep:
      t: 0.05:0.95:0.05        # start:stop:step, or a list of values: one candidate each
    endpoints: [A, B]          # optional: used when the command line names none

A list *under `merge:`* keeps mergekit's meaning, a gradient over the layers: it is no sweep.
Several swept names give every combination. The one called `t` is the candidate's ratio.
"""

import itertools
import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from surgeon.errors import BadInput
from surgeon.families.config import plain_merge, plain_mix
from surgeon.families.methods import Mix, require_method, short_name

LIMIT = 1000
"""Candidates of one sweep; more is a slip of the keyboard."""
PLACEHOLDER = re.compile(r"\$\{\s*(1\s*-\s*)?([A-Za-z_]\w*)\s*\}")
MERGE_KEYS = {"merge", "sweep", "endpoints"}


class Member(NamedTuple):
    """One candidate before it has a digest or a place."""

    name: str
    ratio: float | None
    merge: dict[str, Any]


class Sweep(NamedTuple):
    """The candidates of a sweep, and what its lineage records of the request."""

    members: list[Member]
    request: dict[str, Any]
    endpoints: tuple[str, str] | None = None
    """The endpoints a config suggests."""


def parse_ratios(ratios: str) -> list[Decimal]:
    """Ratios from `start:stop:step` (inclusive, decimal) or `0.2,0.5`, ascending, each once.

    Raises `BadInput` unless every ratio lies between 0 and 1.
    """
    try:
        if ":" in ratios:
            start, stop, step = (Decimal(part.strip()) for part in ratios.split(":"))
            if not (start.is_finite() and stop.is_finite() and step.is_finite()):
                raise ValueError("not finite")
            if step <= 0 or start > stop:
                raise BadInput(
                    f"ratios {ratios!r}: found step {step} from {start} to {stop}, expected a "
                    "positive step and start <= stop, as in 0.05:0.95:0.05"
                )
            count = int((stop - start) / step) + 1
            _refuse_too_many(count)
            values = [start + i * step for i in range(count)]
        else:
            values = [Decimal(part.strip()) for part in ratios.split(",")]
            if not all(value.is_finite() for value in values):
                raise ValueError("not finite")
    except BadInput:
        raise
    except (ValueError, InvalidOperation) as error:
        raise BadInput(
            f"ratios {ratios!r} are neither start:stop:step (0.05:0.95:0.05) nor a list (0.2,0.5)"
        ) from error
    outside = [value for value in values if not 0 <= value <= 1]
    if outside:
        raise BadInput(f"ratio {outside[0]} lies outside 0 to 1 (0 is the first endpoint)")
    return sorted(dict.fromkeys(values))


def plain(value: Decimal) -> str:
    """A decimal without exponent or trailing zeros: 0.50 -> 0.5."""
    return f"{value.normalize():f}" if value else "0"


def from_methods(methods: tuple[str, ...], ratios: str, dtype: str | None) -> Sweep:
    """The sweep of `--method` and `--ratios`; 0 and 1 are left to the endpoints themselves."""
    for method in methods:
        require_method(method)
    if not methods or len(set(methods)) != len(methods):
        raise BadInput(f"methods {', '.join(methods) or 'none'}: expected each of them once")
    values = [v for v in parse_ratios(ratios) if 0 < v < 1]
    members = [
        Member(
            f"{short_name(method)}-{plain(v)}", float(v), plain_merge(Mix(method, float(v)), dtype)
        )
        for method in methods
        for v in values
    ]
    request = {"methods": list(methods), "ratios": [plain(v) for v in values], "dtype": dtype}
    return Sweep(members, request)


def from_config(file: Path, dtype: str | None) -> Sweep:
    """The sweep of a merge config; raises `BadInput` naming the file and the key."""
    documents = _documents(file)
    members: list[Member] = []
    endpoints: tuple[str, str] | None = None
    for document in documents:
        unknown = sorted(set(document) - MERGE_KEYS)
        if unknown or not isinstance(document.get("merge"), dict):
            raise BadInput(
                f"{file}: found {', '.join(map(repr, unknown)) or 'no `merge:` mapping'}, expected "
                "the keys merge (a mergekit config), sweep and endpoints"
            )
        merge = document["merge"]
        if dtype is not None:
            merge = {**merge, "dtype": dtype}
        if "merge_method" not in merge:
            raise BadInput(f"{file}: `merge:` names no merge_method (slerp, linear, ties, ...)")
        given = document.get("endpoints")
        if given is not None:
            if not (isinstance(given, list) and len(given) == 2):
                raise BadInput(
                    f"{file}: endpoints is {given!r}, expected a list of two checkpoints"
                )
            endpoints = (str(given[0]), str(given[1]))
        members += _expand(file, merge, document.get("sweep") or {})
    _refuse_too_many(len(members))
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"{file}: two candidates would be called {name!r}")
    request = {"config": [{k: d.get(k) for k in ("merge", "sweep")} for d in documents]}
    return Sweep(members, {**request, "dtype": dtype}, endpoints)


def _documents(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise BadInput(f"{file} is not a file. Merge configs are YAML, see merges/slerp.yaml")
    try:
        documents = [d for d in yaml.safe_load_all(file.read_text(encoding="utf-8")) if d]
    except yaml.YAMLError as error:
        raise BadInput(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise BadInput(f"{file} holds no mapping with the keys merge and sweep")
    return documents


def _expand(file: Path, merge: dict[str, Any], sweep: Any) -> list[Member]:
    """One member per combination of swept values."""
    if not isinstance(sweep, dict):
        raise BadInput(f"{file}: sweep is {sweep!r}, expected names with their values")
    values = {name: _values(file, name, given) for name, given in sweep.items()}
    wanted = _placeholders(merge)
    for name in sorted(wanted ^ values.keys()):
        raise BadInput(
            f"{file}: ${{{name}}} stands in `merge:` but `sweep:` has no {name!r}"
            if name in wanted
            else f"{file}: sweep has {name!r}, but no ${{{name}}} stands in `merge:`"
        )
    method = short_name(str(merge["merge_method"]))
    found = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        filled = _fill(file, merge, chosen)
        mix = plain_mix(filled)
        if mix is not None and mix.t in (0.0, 1.0):
            continue  # that is an endpoint, which belongs to the family anyway
        one = len(chosen) == 1
        tail = "".join(f"-{'' if one else name}{_text(v)}" for name, v in chosen.items())
        t = chosen.get("t")
        ratio = float(t) if isinstance(t, Decimal) and 0 <= t <= 1 else None
        found.append(Member(f"{method}{tail}", mix.t if mix else ratio, filled))
    return found


def _values(file: Path, name: str, given: Any) -> list[Any]:
    """The values of one swept name: decimals where they are numbers."""
    if isinstance(given, str) and ":" in given:
        return list(parse_ratios(given))
    if not isinstance(given, list) or not given:
        raise BadInput(
            f"{file}: sweep {name} is {given!r}, expected start:stop:step or a list of values"
        )
    return [
        Decimal(str(v)) if isinstance(v, int | float) and not isinstance(v, bool) else v
        for v in given
    ]


def _placeholders(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_placeholders(v) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(_placeholders(v) for v in value))
    return {m[2] for m in PLACEHOLDER.finditer(value)} if isinstance(value, str) else set()


def _fill(file: Path, value: Any, chosen: dict[str, Any]) -> Any:
    """`value` with its placeholders replaced; a whole-string placeholder keeps the value's type."""
    if isinstance(value, dict):
        return {k: _fill(file, v, chosen) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(file, v, chosen) for v in value]
    match = PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str) and PLACEHOLDER.search(value):
            raise BadInput(f"{file}: {value!r} mixes a swept value with text; it must stand alone")
        return value
    found = chosen[match[2]]
    number = float(found) if isinstance(found, Decimal) else found
    if isinstance(found, Decimal) and found == found.to_integral_value() and "." not in str(found):
        number = int(found)
    if match[1] is None:
        return number
    if not isinstance(number, int | float):
        raise BadInput(f"{file}: {value} needs a number, found {number!r}")
    return 1 - number


def _text(value: Any) -> str:
    text = plain(value) if isinstance(value, Decimal) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _refuse_too_many(count: int) -> None:
    if count > LIMIT:
        raise BadInput(f"the sweep has {count} candidates, more than {LIMIT}: take a larger step")
