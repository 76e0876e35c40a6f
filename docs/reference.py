"""Writes docs/reference.md from the settings of the verbs: `make reference`."""

import dataclasses
from pathlib import Path
from typing import Any

from surgeon.settings import leaves
from surgeon.settings.schema import Leaf, Switches, expectation
from surgeon.settings.verbs import VERBS

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Settings

Made from the settings classes in [surgeon/settings](../surgeon/settings) by `make reference`.

Each name is an option of the command (`--row-tokens`), a parameter of the function (`row_tokens`),
and a name in a recipe or after `--set` (`--set row_tokens=1`). A name with a dot is the path in
nested settings and works after `--set` and in recipes as well.
"""


def text() -> str:
    """The page."""
    return "\n".join([HEAD, *(section(verb) for verb in VERBS)])


def section(verb: str) -> str:
    """One verb: what it does, and a table for its own settings and for each group."""
    settings = VERBS[verb].load_settings()
    command = verb.replace("trigger-", "trigger ")
    lines = [f"## surgeon {command}", "", " ".join((settings.__doc__ or "").split()), ""]
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(settings):
        groups.setdefault(leaf.path[-2] if len(leaf.path) > 1 else "", []).append(leaf)
    for group, found in groups.items():
        if group:
            about = " ".join((found[0].group.__doc__ or "").split())
            lines += [f"**{group}**: {about}", ""]
        lines += ["| name | values | default | |", "|---|---|---|---|"]
        lines += [row(leaf) for leaf in found]
        lines.append("")
    return "\n".join(lines)


def row(leaf: Leaf) -> str:
    """A setting as a row of its table."""
    name = f"`{leaf.name}`"
    path = ".".join(leaf.path)
    if len(leaf.path) > 1 and path != leaf.name:
        name += f", `{path}`"
    switches = leaf.marker(Switches)
    also = "".join(f" `--{option}`: {help}" for option, (_, help) in switches.options.items()) \
        if switches else ""  # fmt: skip
    cells = [name, expectation(leaf.kind), shown(leaf.default), (leaf.help + also).strip()]
    # "][" would be a link with a reference.
    return "| " + " | ".join(c.replace("|", r"\|").replace("][", r"]\[") for c in cells) + " |"


def shown(default: Any) -> str:
    """A default as it would be written in a recipe."""
    if default is dataclasses.MISSING:
        return "must be given"
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return ", ".join(
            f"{item:.4g}" if isinstance(item, float) else str(item) for item in default
        )
    return f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
