"""`surgeon read`: the phases and cycles of every response of a ranking, and their proof.

opened_ranking.py  the ranking, what it kept, and its traces
phased.py          one response read: rows, phases, cycles
phase_entropy.py   entropy of E and X rows; novelty against entropy
passages.py        blocks to be labelled
labels.py          labels that people made
labelling.py       who else labels: words, a judge
agreeing.py        the phases against labels; annotators against each other
forecast.py        what it will take
phase_reading.py   read.json
plan.py            what is checked before anything is read
shown.py           the page, and the tables of a terminal
"""

from pathlib import Path

from surgeon import artifact, jsonl
from surgeon.errors import BadInput
from surgeon.read.agreeing import agreement_warnings, agreements, pairs
from surgeon.read.forecast import forecast
from surgeon.read.labelling import MARKED, by_markers, judged
from surgeon.read.labels import Labels, require_known
from surgeon.read.passages import CSV, all_passages, drawn, write_csv
from surgeon.read.phase_entropy import PhaseEntropy, phase_entropy, uncertainty_warnings
from surgeon.read.phase_reading import PhaseReading
from surgeon.read.phased import cycle_rows, read_candidates, read_responses
from surgeon.read.plan import ReadPlan, prepare
from surgeon.read.shown import LabelledBlocks, show, write_annotation, write_page
from surgeon.settings import verb
from surgeon.settings.read import ReadSettings

__all__ = ["PhaseEntropy", "PhaseReading", "forecast", "prepare", "read", "show"]

CYCLES = "cycles.jsonl"


@verb(ReadSettings)
def read(settings: ReadSettings) -> PhaseReading:
    """Read every response of a ranking and write report.html, cycles.jsonl and responses/.

    Slopes, phases and cycles come from the evidence that the ranking kept; responses whose rows it
    didn't keep are recorded again. A killed run goes on with the responses that it lacks. Raises
    `BadInput` before anything is read.
    """
    if settings.dry_run:
        raise BadInput(
            "found dry_run, expected forecast(settings): from Python that says what it will take."
        )
    plan = prepare(settings)

    def work(partial: Path) -> PhaseReading:
        read_candidates(plan.opened, partial, record=settings.record, placement=plan.placement)
        return conclude(plan, partial)

    reading = artifact.once(settings.out, PhaseReading, work, run=plan.run)
    if reading.already and reading.labelling != plan.labelling:
        reading = conclude(plan, settings.out)
        artifact.write(settings.out, reading)
    return reading


def conclude(plan: ReadPlan, work: Path) -> PhaseReading:
    """What all responses say together, and labels of them; writes cycles.jsonl, the blocks to be
    labelled, and the page."""
    names = [c.name for c in plan.opened.candidates]
    jsonl.write(
        work / CYCLES,
        (row for name in names for response in read_responses(work, name)
         for row in cycle_rows(response)),
    )  # fmt: skip
    found = tuple(
        phase_entropy(name, read_responses(work, name), seed=plan.settings.seed) for name in names
    )
    labelled = label(plan, work)
    against = agreements(
        labelled.by_annotator, labelled.blocks, list(plan.labels), plan.settings.seed
    )
    unknown = [c.candidate for c in found if c.cycles is None]
    without = [
        f"The ranking kept no rows of {', '.join(unknown)}: their cycles have no reuse and no "
        "verdict (--no-record)."
    ] if unknown else []  # fmt: skip
    result = PhaseReading(
        ranking=str(plan.opened.path),
        row_tokens=plan.opened.candidates[0].row_tokens,
        candidates=found,
        agreement=against,
        annotators=pairs(labelled.by_annotator),
        labelling=plan.labelling,
        warnings=(*uncertainty_warnings(found), *agreement_warnings(against), *without),
        out=work,
    )
    write_page(plan, work, result, labelled)
    return result


def label(plan: ReadPlan, work: Path) -> LabelledBlocks:
    """Draw the blocks that are to be labelled, write them for people, and label them as asked."""
    settings = plan.settings
    names = [c.name for c in plan.opened.candidates]
    sample = drawn(work, names, settings.blocks, settings.seed)
    questions = plan.opened.questions
    write_csv(work / CSV, sample, questions)
    write_annotation(work, sample, questions)
    by_annotator: dict[str, Labels] = {}
    if settings.markers:
        by_annotator[MARKED] = by_markers(sample)
    if plan.judge is not None:
        by_annotator[plan.judge.name] = judged(
            work, plan.judge, sample, questions, settings.endpoint
        )
    by_annotator |= plan.labels
    wanted = {block for labels in by_annotator.values() for block in labels}
    blocks = {p.id: p for p in sample}
    if not wanted <= blocks.keys():
        # People may have labelled what another draw held.
        every = (p for name in names for p in all_passages(work, name))
        blocks |= {p.id: p for p in every if p.id in wanted}
        require_known(plan.labels, blocks, str(plan.opened.path))
    return LabelledBlocks(blocks, by_annotator)
