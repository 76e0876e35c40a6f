"""A reading, checked against files and headers before anything is read."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import lineage
from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.live.support import require
from surgeon.read.opened_ranking import (
    OpenedRanking,
    open_ranking,
    ranked_traces,
    require_unchanged,
    subject_of,
)
from surgeon.settings import record
from surgeon.settings.read import ReadSettings
from surgeon.traces import read_traces

if TYPE_CHECKING:
    import torch


class ReadPlan(NamedTuple):
    """A reading whose inputs have been checked; nothing has been read yet."""

    settings: ReadSettings
    opened: OpenedRanking
    placement: "tuple[str, torch.dtype | None]"
    run: lineage.Run


def prepare(settings: ReadSettings) -> ReadPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    device_and_dtype = placement(settings.machine.device, settings.machine.dtype)
    path = Path(settings.ranking).expanduser()
    opened = open_ranking(path, settings.candidates, settings.traces)
    for candidate in opened.candidates:
        subject = subject_of(candidate)
        if candidate.plain and not opened.prompts:
            raise BadInput(
                f"{path} ranked answers given as text, and its mini-set "
                f"{opened.ranking.mini_set.path} isn't there or has changed. Name the responses "
                "as traces with --traces."
            )
        if not candidate.plain:
            ranked_traces(candidate, read_traces(candidate.source))
        if candidate.kept == "rows":
            continue
        if candidate.kept == "nothing" and not settings.record:
            raise BadInput(
                f"{candidate.directory} kept no evidence of its responses, expected "
                "evidence.safetensors: leave --no-record away, and they are recorded again."
            )
        if settings.record:
            require_unchanged(candidate, subject)
            require("record", subject.source)
    run = lineage.Run("read", record(settings), {"ranking": opened.digest})
    return ReadPlan(settings, opened, device_and_dtype, run)
