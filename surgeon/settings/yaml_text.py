"""YAML that people type: recipes, `--set`, merge configs, wordings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_VALUES = 1_000_000
"""Values that a text may stand for, those behind aliases counted each time."""


def parse(text: str) -> object:
    """The value of a YAML text; raises `yaml.YAMLError` for whatever is none.

    PyYAML lets other errors through: for dates that don't exist, numbers without digits, a thousand
    brackets. Aliases that contain themselves, or multiply beyond bounds, are refused, and so is
    half of a surrogate pair.
    """
    import yaml

    return _guarded(lambda: yaml.safe_load(text))


def parse_all(text: str) -> list[object]:
    """The value of each document of a YAML text; raises as `parse` does."""
    import yaml

    found = _guarded(lambda: list(yaml.safe_load_all(text)))
    return found if isinstance(found, list) else []


def _guarded(load: "Callable[[], object]") -> object:
    import yaml

    try:
        value = load()
        _count(value, (), [0])
    except RecursionError as error:
        raise yaml.YAMLError("found more nested lists than anybody writes") from error
    except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise yaml.YAMLError(f"found a value that YAML has no form of ({error})") from error
    return value


def _count(value: object, inside: tuple[int, ...], counted: list[int]) -> None:
    import yaml

    counted[0] += 1
    if counted[0] > MOST_VALUES:
        raise yaml.YAMLError(f"found aliases that stand for over {MOST_VALUES:,} values")
    if id(value) in inside:
        raise yaml.YAMLError("found an alias inside of what it names")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, part in value.items():
            _count(key, (*inside, id(value)), counted)
            _count(part, (*inside, id(value)), counted)
    elif isinstance(value, list | tuple | set):
        for part in value:
            _count(part, (*inside, id(value)), counted)
