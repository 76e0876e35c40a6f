"""Where something came from, as a tree back to what no command made.

`surgeon.json` names the inputs of a run by digest; `places` finds them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.artifact import part
from surgeon.checkpoint import split_member
from surgeon.checkpoint.resolving import split_adapter
from surgeon.errors import BadInput
from surgeon.families.description import FILE as FAMILY
from surgeon.show.digests import Verdict, verdict
from surgeon.show.places import places_of, seen

DEEPEST = 12
"""Generations that are followed."""
WORST: tuple[Verdict | None, ...] = ("differs", "gone", "unknown", "same", None)


@part
class Origin:
    """One thing in the tree, and what it was made of."""

    role: str
    """What the run that used it calls it: `donor`; empty for the root."""
    place: str | None
    """A path or a spec; None where nothing says where it is."""
    verb: str | None = None
    """What made it; None where no command did, or it isn't here."""
    command: str | None = None
    """The command line that made it, where it was recorded."""
    seed: int | None = None
    digest: str | None = None
    """As the run that used it recorded it; None for the root, and for several candidates."""
    verdict: Verdict | None = None
    """Whether it still has that digest; None where nobody asked, or nothing was recorded."""
    why: str = ""
    """Why that couldn't be told, where something stood in the way."""
    repeated: bool = False
    """Whether its inputs stand above in the tree, and not here again."""
    inputs: tuple["Origin", ...] = ()

    def walk(self) -> Iterator["Origin"]:
        """It and everything below."""
        yield self
        for origin in self.inputs:
            yield from origin.walk()


def ancestry(place: str, *, verify: bool = False) -> Origin:
    """The tree of a path or a spec; with `verify`, digests are computed anew and compared."""
    return TreeReader(verify).origin("", place, ())


class TreeReader:
    """One reading of a tree: each place is digested once."""

    def __init__(self, verify: bool):
        self.verify = verify
        self.known: dict[tuple[str, str], tuple[Verdict, str]] = {}
        self.opened: set[Path] = set()

    def origin(self, role: str, place: str, above: tuple[str, ...]) -> Origin:
        """A place and what it was made of; `above` are the directories that led to it."""
        made = home(place)
        record = None if made is None else lineage.read(made)
        # A merge that was kept in the cache names no verb.
        if made is None or record is None or "verb" not in record:
            return Origin(role=role, place=place, inputs=self.parts(place, above))
        repeated = made in self.opened
        self.opened.add(made)
        fresh = not repeated and len(above) < DEEPEST
        return Origin(
            role=role,
            place=place,
            verb=record["verb"],
            command=record.get("command"),
            seed=record.get("seed"),
            repeated=repeated,
            inputs=self.inputs(made, record, (*above, str(made))) if fresh else (),
        )

    def parts(self, place: str, above: tuple[str, ...]) -> tuple[Origin, ...]:
        """Base and adapter of BASE+ADAPTER; nothing for any other."""
        if "+" not in place or Path(place).expanduser().exists() or len(above) >= DEEPEST:
            return ()
        roles = zip(("base", "adapter"), split_adapter(place), strict=True)
        return tuple(self.origin(role, there, (*above, place)) for role, there in roles)

    def inputs(
        self, made: Path, record: Mapping[str, Any], above: tuple[str, ...]
    ) -> tuple[Origin, ...]:
        """What a run was made of; candidates of one family stand as one."""
        places, arguments = places_of(made, record), record.get("arguments") or {}
        found: list[Origin] = []
        families: dict[str, list[Origin]] = {}
        for role, digest in (record.get("inputs") or {}).items():
            place = places.get(role)
            if place is not None and home(place) == made:
                place = None  # what it wrote itself is no ancestor
            if place is None:
                unknown = "unknown" if self.verify else None
                found.append(Origin(role=role, place=None, digest=digest, verdict=unknown))
                continue
            said, why = self.verdict(place, digest, arguments) if self.verify else (None, "")
            family = _family_of(place)
            if family is not None and str(family) != str(made):
                member = Origin(role=role, place=place, digest=digest, verdict=said, why=why)
                families.setdefault(seen(family), []).append(member)
                continue
            origin = self.origin(role, place, above)
            found.append(replace(origin, digest=digest, verdict=said, why=why))
        return (*(self.group(*item, above) for item in families.items()), *found)

    def group(self, family: str, members: list[Origin], above: tuple[str, ...]) -> Origin:
        """One candidate of a family, or several as the family."""
        if len(members) == 1:
            (one,) = members
            there = self.origin(one.role, str(one.place), above)
            return replace(there, digest=one.digest, verdict=one.verdict, why=one.why)
        worst = min((m.verdict for m in members), key=WORST.index)
        why = next((m.why for m in members if m.verdict == worst and m.why), "")
        if worst == "differs":
            why = ", ".join(m.role for m in members if m.verdict == worst)
        there = self.origin(f"{len(members)} candidates", family, above)
        return replace(there, verdict=worst, why=why)

    def verdict(self, place: str, digest: str, arguments: Mapping[str, Any]) -> tuple[Verdict, str]:
        key = (place, digest)
        if key not in self.known:
            try:
                self.known[key] = verdict(place, digest, arguments), ""
            except BadInput as error:
                self.known[key] = "gone", str(error)
        return self.known[key]


def home(place: str) -> Path | None:
    """The directory that the run which made a place wrote: the place, or the nearest above it."""
    path = Path(split_member(place)[0]).expanduser()
    if not path.exists():
        return None
    path = path.resolve()
    # What lies in a run's directory is at most that deep: OUT/candidates/NAME/weights...
    for directory in (path, *list(path.parents)[:3]):
        if (directory / lineage.FILE).is_file():
            return directory
    return None


def _family_of(place: str) -> Path | None:
    """The family that a place is, or is a candidate of."""
    named, _ = split_member(place)
    path = Path(named).expanduser()
    if not path.exists():
        return None
    path = path.resolve()
    return next((d for d in (path, path.parent) if (d / FAMILY).is_file()), None)
