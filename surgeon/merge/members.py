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
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from surgeon.errors import BadInput
from surgeon.families.merge_config import plain_merge, plain_mix
from surgeon.families.merge_methods import MergeConfig, Mix, method_of, require_method, short_name
from surgeon.settings import settings, yaml_text

LIMIT = 1000
"""Candidates of one sweep; more is a slip of the keyboard."""
PLACEHOLDER = re.compile(r"\$\{\s*(1\s*-\s*)?([A-Za-z_]\w*)\s*\}")


class Member(NamedTuple):
    """One candidate before it has a digest or a place."""

    name: str
    ratio: float | None
    merge: MergeConfig


class Sweep(NamedTuple):
    """The candidates of a sweep, and what its lineage records of the request."""

    members: list[Member]
    request: dict[str, Any]
    endpoints: tuple[str, str] | None = None
    """The endpoints a config suggests."""


@settings
class MergeDocument:
    """One document of a merge config."""

    merge: dict[str, Any]
    """mergekit's config."""
    sweep: dict[str, Any] | None = None
    """Swept names with their values."""
    endpoints: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if "merge_method" not in self.merge:
            raise BadInput("`merge:` names no merge_method (slerp, linear, ties, ...)")


def parse_ratios(ratios: str) -> list[Decimal]:
    """Ratios from `start:stop:step` (inclusive, decimal) or `0.2,0.5`, ascending, each once.

    Raises `BadInput` unless every ratio lies between 0 and 1.
    """
    is_range = ":" in ratios
    try:
        values = [Decimal(part.strip()) for part in ratios.split(":" if is_range else ",")]
    except InvalidOperation:
        values = []
    if not values or not all(v.is_finite() for v in values) or (is_range and len(values) != 3):
        raise BadInput(
            f"ratios {ratios!r} are neither start:stop:step (0.05:0.95:0.05) nor a list (0.2,0.5)"
        )
    if is_range:
        start, stop, step = values
        if step <= 0 or start > stop:
            raise BadInput(
                f"ratios {ratios!r}: found step {step} from {start} to {stop}, expected a "
                "positive step and start <= stop, as in 0.05:0.95:0.05"
            )
        count = int((stop - start) / step) + 1
        _refuse_too_many(count)
        values = [start + i * step for i in range(count)]
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
    values = [value for value in parse_ratios(ratios) if 0 < value < 1]
    members = []
    for method, value in itertools.product(methods, values):
        mix = Mix(method, float(value))
        name = f"{short_name(method)}-{plain(value)}"
        members.append(Member(name, mix.t, plain_merge(mix, dtype)))
    request = {"methods": list(methods), "ratios": [plain(v) for v in values], "dtype": dtype}
    return Sweep(members, request)


def averaged(more: Sequence[str], dtype: str | None, disk_dtype: str | None) -> Sweep:
    """The uniform average of `a`, `b` and `more` (a uniform soup, Wortsman et al. 2022).

    Sums of more than two are taken in float32 and rounded once, to `dtype` or else the endpoints'
    `disk_dtype`.
    """
    names = ["a", "b", *more]
    name = f"uniform-{len(names)}"
    request = {"uniform": len(names), "dtype": dtype}
    if not more:
        return Sweep([Member(name, 0.5, plain_merge(Mix("linear", 0.5), dtype))], request)
    models = [{"model": model, "parameters": {"weight": 1.0}} for model in names]
    merge: MergeConfig = {"merge_method": "linear", "models": models}
    if dtype or disk_dtype:
        merge |= {"dtype": "float32", "out_dtype": dtype or disk_dtype}
    return Sweep([Member(name, None, merge)], request)


def from_config(file: Path, dtype: str | None) -> Sweep:
    """The sweep of a merge config; raises `BadInput` naming the file and the key."""
    try:
        return _from_documents(_documents(file), dtype)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from error


def _documents(file: Path) -> list[MergeDocument]:
    if not file.is_file():
        raise BadInput("no such file. Merge configs are YAML, see merges/slerp.yaml")
    try:
        documents: list[Any] = [
            d for d in yaml_text.parse_all(file.read_text(encoding="utf-8")) if d
        ]
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"found no valid YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise BadInput("found no mapping, expected the keys merge, sweep and endpoints")
    if strange := [key for d in documents for key in d if not isinstance(key, str)]:
        raise BadInput(f"found the key {strange[0]!r}, expected merge, sweep and endpoints")
    return [MergeDocument(**document) for document in documents]


def _from_documents(documents: list[MergeDocument], dtype: str | None) -> Sweep:
    members: list[Member] = []
    for document in documents:
        method_of(str(document.merge["merge_method"]), typed=True)
        merge = document.merge if dtype is None else {**document.merge, "dtype": dtype}
        members += _expand(merge, document.sweep or {})
    _refuse_too_many(len(members))
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise BadInput(f"two candidates would be called {max(names, key=names.count)!r}")
    content = [{"merge": d.merge, "sweep": d.sweep} for d in documents]
    endpoints = [d.endpoints for d in documents if d.endpoints is not None]
    return Sweep(members, {"config": content, "dtype": dtype}, (endpoints or [None])[-1])


def _expand(merge: MergeConfig, sweep: dict[str, object]) -> list[Member]:
    """One member per combination of swept values."""
    values = {name: _values(name, swept) for name, swept in sweep.items()}
    wanted = _placeholders(merge)
    for name in sorted(wanted ^ values.keys()):
        raise BadInput(
            f"${{{name}}} stands in `merge:` but `sweep:` has no {name!r}"
            if name in wanted
            else f"sweep has {name!r}, but no ${{{name}}} stands in `merge:`"
        )
    method = short_name(str(merge["merge_method"]))
    members = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        filled = {key: _filled(value, chosen) for key, value in merge.items()}
        mix = plain_mix(filled)
        if mix is not None and mix.t in (0.0, 1.0):
            continue  # that is an endpoint, which belongs to the family anyway
        one = len(chosen) == 1
        tail = "".join(f"-{'' if one else name}{_text(v)}" for name, v in chosen.items())
        t = chosen.get("t")
        ratio = float(t) if isinstance(t, Decimal) and 0 <= t <= 1 else None
        members.append(Member(f"{method}{tail}", mix.t if mix else ratio, filled))
    return members


def _values(name: str, swept: object) -> list[object]:
    """The values of one swept name: decimals where they are numbers."""
    if isinstance(swept, str) and ":" in swept:
        return list(parse_ratios(swept))
    if not isinstance(swept, list) or not swept:
        raise BadInput(f"sweep {name} is {swept!r}, expected start:stop:step or a list of values")
    return [
        Decimal(str(v)) if isinstance(v, int | float) and not isinstance(v, bool) else v
        for v in swept
    ]


def _placeholders(value: object) -> set[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return set().union(*map(_placeholders, inner))
    return {m[2] for m in PLACEHOLDER.finditer(value)} if isinstance(value, str) else set()


def _filled(value: object, chosen: dict[str, object]) -> object:
    """`value` with its placeholders replaced; a whole-string placeholder keeps the value's type."""
    if isinstance(value, dict):
        return {key: _filled(inner, chosen) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, chosen) for inner in value]
    if not isinstance(value, str) or not PLACEHOLDER.search(value):
        return value
    match = PLACEHOLDER.fullmatch(value)
    if match is None:
        raise BadInput(f"{value!r} mixes a swept value with text; it must stand alone")
    number = chosen[match[2]]
    if isinstance(number, Decimal):
        whole = number == number.to_integral_value() and "." not in str(number)
        number = int(number) if whole else float(number)
    if match[1] is None:
        return number
    if not isinstance(number, int | float):
        raise BadInput(f"{value} needs a number, found {number!r}")
    return 1 - number


def _text(value: object) -> str:
    text = plain(value) if isinstance(value, Decimal) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")


def _refuse_too_many(count: int) -> None:
    if count > LIMIT:
        raise BadInput(f"the sweep has {count} candidates, more than {LIMIT}: take a larger step")
