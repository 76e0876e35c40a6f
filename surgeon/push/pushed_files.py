"""The files of a result that go to the hub."""

from pathlib import Path

LEFT = (".tmp", ".partial", ".lock")
"""Ends of names that only a run in progress has."""
STATES = "state-"
"""Directories of a trainer's state: its weights a second time, and the optimiser's."""


def files_of(directory: Path) -> dict[str, Path]:
    """Path in the repository -> file; hidden files, linked directories and states are left out."""
    found = {}
    for file in sorted(directory.rglob("*")):
        inside = file.relative_to(directory)
        hidden = any(p.startswith((".", STATES)) for p in inside.parts)
        if file.is_file() and not hidden and not any(p.endswith(LEFT) for p in inside.parts):
            found[inside.as_posix()] = file
    return found


def size_text(n_bytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"
