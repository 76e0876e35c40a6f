"""Settings of `surgeon summary`."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Many, Metavar, Out, settings


@settings
class SummarySettings:
    """Pool rankings of several families: how well does each score choose, on the whole?"""

    rankings: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("[NAME=]RANKING...")] = ()
    """Directories of rankings that have a truth, a family each; NAME is what the family is called,
    by default the directory."""
    out: Out | None = None
    """Directory to write summary.json and summary.md to; without it the tables are only printed."""
