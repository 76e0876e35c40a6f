"""What the text that names a checkpoint says by itself, before anything is opened."""

import re
from pathlib import Path

HUB_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(@[\w./-]+)?")


def hub_id(spec: str) -> str | None:
    """`owner/name` where a spec is a hub id (`owner/name[@revision]`) and no path, else None."""
    match = HUB_ID.fullmatch(spec)
    return match[1] if match and not Path(spec).expanduser().exists() else None


def split_member(spec: str | Path) -> tuple[str, str]:
    """`PLACE#MEMBER` -> place and member; the member is empty where the spec names the whole.

    A path that exists is never split, whatever its name.
    """
    text = str(spec)
    place, hash_sign, member = text.rpartition("#")
    return (place, member) if hash_sign and not Path(text).exists() else (text, "")
