"""YAML that people type: recipes, `--set`, merge configs, wordings."""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

MOST_VALUES = 1_000_000
"""Values that a text may stand for, those behind aliases counted each time."""


def parse(text: str) -> object:
    """The value of a YAML text; raises `yaml.YAMLError` for whatever is none.

    PyYAML lets other errors through: for dates that don't exist, numbers without digits, a thousand
    brackets. Aliases that contain themselves, or multiply beyond bounds, are refused, and so are
    half of a surrogate pair, and a key that one mapping has twice, of which PyYAML takes the last.
    """
    import yaml

    return _guarded(lambda: yaml.load(text, _loader()))


def parse_all(text: str) -> list[object]:
    """The value of each document of a YAML text; raises as `parse` does."""
    import yaml

    found = _guarded(lambda: list(yaml.load_all(text, _loader())))
    return found if isinstance(found, list) else []


@functools.cache
def _loader() -> "type[yaml.SafeLoader]":
    """PyYAML's safe loader, which refuses a key that a mapping has twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        # Where mappings are composed: later on, keys that `<<` brings are among a mapping's own.
        def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.Node:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"found {key.value} twice in a mapping", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
            return node

    return Loader


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
