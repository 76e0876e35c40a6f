"""`annotate.html`: blocks of traces to be labelled by a person, without a server.

What is labelled stays in the browser until it is saved as labels.csv, which `surgeon read --labels`
reads. The page doesn't hold what the phases say.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from surgeon.lineage import digest_of, write_text
from surgeon.report.page import filled
from surgeon.report.words import visible


class BlockShown(NamedTuple):
    """A block as an annotator sees it."""

    id: str
    question: str
    before: str
    """The end of what stands before it."""
    text: str


def write_annotator(directory: Path, blocks: Sequence[BlockShown]) -> Path:
    """Write annotate.html into the directory."""
    path = directory / "annotate.html"
    rows = [[b.id, *map(visible, b[1:])] for b in blocks]
    content = {"blocks": rows, "key": digest_of([b.id for b in blocks])[:16]}
    data = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    text = filled(
        "annotator.html.j2", "page.css", "browser.css", scripts=("annotator.js",),
        n=len(blocks), blocks=Markup(data),
    )  # fmt: skip
    write_text(path, text)
    return path
