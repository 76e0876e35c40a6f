"""`surgeon show`: what something is, what can be done with it, and what it was made of.

kinds.py      what a path or a spec is, in facts
ancestry.py   the tree back to what no command made
places.py     where the inputs of a run lie
digests.py    their digests, computed anew
"""

from pathlib import Path

from rich.tree import Tree

from surgeon.artifact import part
from surgeon.console import console, say, table
from surgeon.settings import verb
from surgeon.settings.show import ShowSettings
from surgeon.show.ancestry import Origin, ancestry
from surgeon.show.kinds import Fact, Use, kind_of
from surgeon.show.places import locate

__all__ = ["Fact", "Origin", "Shown", "Use", "ancestry", "describe", "show"]

WIDEST = 96
"""Characters of a command in the tree."""
MOST_LINES = 24
"""Lines of the tree that are printed; all of it is in the JSON."""
MARKS = {"same": "✓", "differs": "✗ differs", "gone": "✗ gone", "unknown": "? not compared"}


@part
class Shown:
    """What something is."""

    spec: str
    """As it was named."""
    kind: str
    facts: tuple[Fact, ...]
    uses: tuple[Use, ...]
    """The commands that take it."""
    lineage: Origin
    verified: bool

    @property
    def broken(self) -> list[Origin]:
        """What isn't any more what a run took."""
        return [o for o in self.lineage.walk() if o.verdict in ("differs", "gone")]


@verb(ShowSettings)
def describe(settings: ShowSettings) -> Shown:
    """What a path or a spec is. Raises `BadInput` where nothing is there, or it is damaged."""
    kind = kind_of(settings.what)
    place = locate(settings.what, [Path.cwd()]) or settings.what
    return Shown(
        spec=settings.what,
        kind=kind.name,
        facts=tuple(Fact(name=name, text=text) for name, text in kind.facts),
        uses=tuple(kind.uses),
        lineage=ancestry(place, verify=settings.verify),
        verified=settings.verify,
    )


def show(found: Shown) -> None:
    """Print it, on one screen."""
    say(f"{found.spec}: {found.kind}", style="bold")
    rows = table("", "")
    rows.show_header = False
    rows.columns[0].style = "dim"
    rows.columns[1].justify, rows.columns[1].no_wrap = "left", False
    for fact in found.facts:
        rows.add_row(fact.name, _plain(fact.text))
    able = [use.verb for use in found.uses if use.why_not is None]
    if able:
        rows.add_row("commands", ", ".join(able))
    refused: dict[str, list[str]] = {}
    for use in found.uses:
        if use.why_not is not None:
            refused.setdefault(use.why_not, []).append(use.verb)
    for why, verbs in refused.items():
        rows.add_row("not with", _plain(f"{', '.join(verbs)}: {why}"))
    console().print(rows)
    say("")
    _print_tree(found.lineage)
    if found.verified:
        _print_verdict(found)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_tree(root: Origin) -> None:
    if root.verb is None and not root.inputs:
        say("Made by no command that is recorded here.", style="dim")
        return
    tree = Tree(_label(root), guide_style="dim")
    left = _grow(tree, root, MOST_LINES)
    console().print(tree, no_wrap=True, overflow="ignore", crop=False)
    if left < 0:
        say("More of the tree: --json.", style="dim")


def _grow(tree: Tree, origin: Origin, left: int) -> int:
    """Add an origin's inputs, as long as there is room; returns the lines that are left."""
    for below in origin.inputs:
        left -= 1
        if left < 0:
            break
        left = _grow(tree.add(_label(below)), below, left)
    return left


def _label(origin: Origin) -> str:
    parts = [f"[dim]{_plain(origin.role)}[/]"] if origin.role else []
    parts.append(_plain(origin.place) if origin.place else "[dim]not found here[/]")
    if origin.digest:
        parts.append(f"[dim]{origin.digest[7:19]}[/]")
    if origin.verdict:
        mark = MARKS[origin.verdict]
        colour = {"same": "green", "unknown": "yellow"}.get(origin.verdict, "red")
        parts.append(f"[{colour}]{mark}[/]")
    text = "  ".join(parts)
    if origin.repeated:
        text += "  [dim]as above[/]"
    elif origin.verb is not None:
        command = origin.command or f"surgeon {origin.verb}"
        shown = command if len(command) <= WIDEST else f"{command[: WIDEST - 1]}…"
        text += f"\n[dim]{_plain(shown)}[/]"
    return text


def _print_verdict(found: Shown) -> None:
    asked = [o for o in found.lineage.walk() if o.verdict is not None]
    same = sum(o.verdict == "same" for o in asked)
    unknown = sum(o.verdict == "unknown" for o in asked)
    say("")
    if not asked:
        say("Nothing to verify: no input is recorded.")
        return
    line = f"{same} of {len(asked)} recorded inputs are what they were"
    if unknown:
        line += f", {unknown} couldn't be compared"
    say(f"{line}.", style="red" if found.broken else "green")
    for origin in found.broken:
        why = f": {origin.why}" if origin.why else ""
        say(
            f"{origin.role} {origin.place}: {MARKS[origin.verdict or 'gone'][2:]}{why}", style="red"
        )
