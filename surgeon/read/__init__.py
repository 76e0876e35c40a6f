"""`surgeon read`: the phases and cycles of every response of a ranking, and their proof.

opened_ranking.py  the ranking, what it kept, and its traces
phased.py          one response read: rows, phases, cycles
phase_entropy.py   entropy of E and X rows; novelty against entropy
phase_reading.py   read.json
plan.py            what is checked before anything is read
shown.py           the page, and the tables of a terminal
"""

from pathlib import Path

from surgeon import artifact, jsonl
from surgeon.read.phase_entropy import PhaseEntropy, phase_entropy, uncertainty_warnings
from surgeon.read.phase_reading import PhaseReading
from surgeon.read.phased import cycle_rows, read_candidates, read_responses
from surgeon.read.plan import ReadPlan, prepare
from surgeon.read.shown import show, write_page
from surgeon.settings import verb
from surgeon.settings.read import ReadSettings

__all__ = ["PhaseEntropy", "PhaseReading", "prepare", "read", "show"]

CYCLES = "cycles.jsonl"


@verb(ReadSettings)
def read(settings: ReadSettings) -> PhaseReading:
    """Read every response of a ranking and write report.html, cycles.jsonl and responses/.

    Slopes, phases and cycles come from the evidence that the ranking kept; responses whose rows it
    didn't keep are recorded again. A killed run goes on with the responses that it lacks. Raises
    `BadInput` before anything is read.
    """
    plan = prepare(settings)

    def work(partial: Path) -> PhaseReading:
        read_candidates(plan.opened, partial, record=settings.record, placement=plan.placement)
        return conclude(plan, partial)

    return artifact.once(settings.out, PhaseReading, work, run=plan.run)


def conclude(plan: ReadPlan, work: Path) -> PhaseReading:
    """What all responses say together; writes cycles.jsonl and the page."""
    names = [c.name for c in plan.opened.candidates]
    jsonl.write(
        work / CYCLES,
        (row for name in names for response in read_responses(work, name)
         for row in cycle_rows(response)),
    )  # fmt: skip
    found = tuple(
        phase_entropy(name, read_responses(work, name), seed=plan.settings.seed) for name in names
    )
    warnings = uncertainty_warnings(found)
    unknown = [c.candidate for c in found if c.cycles is None]
    if unknown:
        warnings.append(
            f"The ranking kept no rows of {', '.join(unknown)}: their cycles have no reuse and no "
            "verdict (--no-record)."
        )
    result = PhaseReading(
        ranking=str(plan.opened.path),
        row_tokens=plan.opened.candidates[0].row_tokens,
        candidates=found,
        warnings=tuple(warnings),
        out=work,
    )
    write_page(plan, work, result)
    return result
