"""What a reading will take, before it begins (`--dry-run`)."""

from pathlib import Path

from surgeon import artifact, lineage
from surgeon.ranking import CandidateScores
from surgeon.read.phase_reading import PhaseReading
from surgeon.read.phased import responses_file
from surgeon.read.plan import prepare
from surgeon.report.words import times
from surgeon.settings.read import ReadSettings
from surgeon.traces.outlook import Outlook, size

BYTES_PER_TOKEN, BYTES_PER_ROW = 12, 110
"""Of a response's line and its script, on the built-in family; real text takes about as much."""


def forecast(settings: ReadSettings) -> Outlook:
    """What the reading will take; writes nothing. Raises `BadInput` as the reading would."""
    plan = prepare(settings)
    lineage.check(settings.out, plan.run)
    free = lineage.free_bytes(settings.out)
    if settings.out.exists():
        artifact.read(PhaseReading, settings.out)
        return Outlook(
            "read", (), ("It is finished: at most labels and the page would be made anew.",), free
        )
    lines, disk, total = [], 0.0, 0
    partial = settings.out.with_name(f"{settings.out.name}.partial")
    for candidate in plan.opened.candidates:
        scored = artifact.read(CandidateScores, candidate.directory).responses
        tokens = sum(r.tokens for r in scored)
        disk += BYTES_PER_TOKEN * tokens + BYTES_PER_ROW * tokens / candidate.row_tokens
        total += len(scored)
        done = _lines_of(responses_file(partial, candidate.name))
        how = "read from what the ranking kept"
        if candidate.kept != "rows" and settings.record:
            how = f"recorded again, {tokens:,} tokens: the ranking kept no rows"
        elif candidate.kept != "rows":
            how = "read without their cycles' reuse: the ranking kept no rows"
        there = f", {done} of them there already" if done else ""
        lines.append(f"{candidate.name}: {times(len(scored), 'response')}{there}, {how}.")
    if plan.judge is not None:
        about = "" if plan.judge.endpoint is None else f" ({plan.judge.name} is asked once each)"
        lines.append(f"A judge labels at most {settings.blocks} blocks{about}.")
    lines.append(
        f"All together: {times(total, 'response')}, about {size(round(disk))} on disk; free there: "
        f"{size(free)}."
    )
    lines.append("Dry run: nothing was written. Leave --dry-run away to read.")
    return Outlook("read", (), tuple(lines), free)


def _lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0
