"""Writes the settings of each verb into its page, docs/verbs/VERB.md: `make reference`.

A page's text is written by hand down to a marker; what follows the marker is made here.
"""

import dataclasses
from pathlib import Path
from typing import Any

from surgeon.settings import leaves
from surgeon.settings.schema import Leaf, Switches, expectation
from surgeon.settings.verbs import VERBS

PAGES = Path(__file__).with_name("verbs")
MARKER = "<!-- settings -->\n"


def pages() -> dict[Path, str]:
    """Page -> its text, the text by hand as it is."""
    return {(page := PAGES / f"{verb}.md"): text(verb, page) for verb in VERBS}


def text(verb: str, page: Path) -> str:
    """A verb's page."""
    command = verb.replace("trigger-", "trigger ")
    head = f"# surgeon {command}\n\n{summary(verb)}\n\n{MARKER}"
    if page.exists():
        head = page.read_text(encoding="utf-8").partition(MARKER)[0] + MARKER
    return "\n".join([head, "## Settings", "", *section(verb)])


def summary(verb: str) -> str:
    """The docstring of a verb's settings."""
    return " ".join((VERBS[verb].load_settings().__doc__ or "").split())


def section(verb: str) -> list[str]:
    """A table of the verb's own settings, and one of each group's."""
    settings, lines = VERBS[verb].load_settings(), []
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
    return lines


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
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
