"""The card of what is pushed: the one it has, and what it was made of."""

import re
from pathlib import PurePosixPath

from surgeon.checkpoint import fenced, hub_id
from surgeon.show import Origin

HEADING = "## Lineage"
ABSOLUTE = re.compile(r"(?<![\w:/.])~?/(?:[\w.+@-]+/)*([\w.+@-]+)/?")
"""An absolute path, and its name."""


def without_paths(text: str) -> str:
    """A text with every absolute path replaced by its last part."""
    return ABSOLUTE.sub(r"\1", text)


def card_text(old: str, repository: str, kind: str, tree: Origin, *, adapter: bool) -> str:
    """The card: the one that is there, or a new one; then the lineage, once."""
    body = (
        old.partition(f"\n{HEADING}")[0].rstrip() if old else _new(repository, kind, tree, adapter)
    )
    return without_paths("\n\n".join([body, HEADING, made_of(tree)])) + "\n"


def _new(repository: str, kind: str, tree: Origin, adapter: bool) -> str:
    front = [f"library_name: {'peft' if adapter else 'transformers'}"] if kind == "model" else []
    bases = [o.place for o in tree.walk() if o.place and not o.inputs and hub_id(o.place)]
    if bases and kind == "model":
        front += ["base_model:", *(f"- {base.partition('@')[0]}" for base in dict.fromkeys(bases))]
    front += ["tags:", "- surgeon"]
    made = f"Made by `surgeon {tree.verb}`." if tree.verb else "Pushed by `surgeon push`."
    name = repository.rpartition("/")[2]
    return "\n".join(["---", *front, "---", f"# {name}", "", made])


def made_of(tree: Origin) -> str:
    """The tree as text: roles, names and digests, and the commands."""
    if tree.verb is None and not tree.inputs:
        return "Nothing is recorded of how it was made."
    lines: list[str] = []
    _write(tree, 0, lines)
    return fenced("\n".join(lines))


def _write(origin: Origin, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    name = origin.place or "unknown"
    if origin.place and not hub_id(origin.place) and "builtin:" not in origin.place:
        name = PurePosixPath(origin.place).name
    digest = f" ({origin.digest[7:19]})" if origin.digest else ""
    lines.append(f"{indent}{origin.role + ': ' if origin.role else ''}{name}{digest}")
    if origin.command and not origin.repeated:
        lines.append(f"{indent}  $ {origin.command}")
    for below in origin.inputs:
        _write(below, depth + 1, lines)
