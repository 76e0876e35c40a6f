"""Rows of a registry, and functions from outside: `name`, or `module:function`."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from surgeon import lineage
from surgeon.errors import BadInput

T = TypeVar("T")
ON_PATH = "on the Python path (PYTHONPATH=. adds the current directory, whose code then runs)"
MODULE_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def row(table: Mapping[str, T], name: str, what: str) -> T | Any:
    """`table[name]`, or what `module:function` names; `what` is the setting, for messages.

    Raises `BadInput` that lists the rows and the nearest one, or says why the import failed.
    """
    if name in table:
        return table[name]
    if MODULE_FUNCTION.fullmatch(name):
        return function(name, what)
    near = difflib.get_close_matches(name, table, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(
        f"found {what} = {name}, expected one of: {', '.join(table)}; or module:function.{meant}"
    )


def function(spec: str, what: str, *, here: bool = True) -> Callable[..., Any]:
    """The function that `module:function` names, from the Python path or the current directory.

    `here` False leaves the current directory out: for names that the user didn't type.

    Raises `BadInput` when there is no such module or function; `what` says what it was wanted for.
    An error inside the module's own code keeps its traceback.
    """
    module_name, _, attribute = spec.partition(":")
    if not MODULE_FUNCTION.fullmatch(spec):
        raise BadInput(f"found the {what} {spec!r}, expected module:function.")
    if here and os.getcwd() not in sys.path:
        # Last, so that a file beside the user's data can't shadow an installed module.
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise BadInput(
            f"found the {what} {spec!r}, but {module_name} can't be imported ({error}); expected a "
            f"module {'on the Python path or in the current directory' if here else ON_PATH}."
        ) from None
    value = getattr(module, attribute, None)
    if not callable(value):
        raise BadInput(
            f"found the {what} {spec!r}, but {module_name} has no function {attribute!r}."
        )
    return value


def digests(**roles: str | None) -> dict[str, str]:
    """For a run's inputs: `role spec` -> digest of the file behind each spec that is
    `module:function`, so that a run with an edited function is another run."""
    inputs = {}
    for role, spec in roles.items():
        if spec is None or not MODULE_FUNCTION.fullmatch(spec):
            continue
        file = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
        if file is not None:
            inputs[f"{role} {spec}"] = lineage.file_digest(file)
    return inputs
