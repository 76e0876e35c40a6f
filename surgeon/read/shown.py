"""A reading for people: the page, and the tables of a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from surgeon.console import announce, console, say, table, warn
from surgeon.read.agreeing import AGREEMENT_COLUMNS, agreement_line, notes
from surgeon.read.labels import Labels
from surgeon.read.passages import BEFORE, PhaseBlock
from surgeon.read.phase_entropy import PhaseEntropy
from surgeon.read.phase_reading import PhaseReading
from surgeon.read.phased import read_responses
from surgeon.read.plan import ReadPlan
from surgeon.report.annotator import BlockShown, write_annotator
from surgeon.report.browser import (
    VERDICTS,
    BrowserPage,
    CandidateLine,
    Labelled,
    Shelf,
    write_browser,
)
from surgeon.report.words import grouped, signed, times

DASH = "–"
PAPER = "the paper: .2475 and .1688 for Qwen3-4B (Tab. 5); rho .43, 34.7 % (sec. 5.1)"
COLUMNS = (
    ("responses", ""), ("rows in E", "%"), ("E segments", "per response"),
    *((f"{name} cycles", "") for name in VERDICTS),
    ("entropy of E", "nats"), ("entropy of X", "nats"), ("difference", "nats, 95%"),
    ("slope and entropy", "Spearman"), ("z and entropy", "Spearman"),
    ("in disagreement", "% of rows"),
)  # fmt: skip


def headline(found: Sequence[PhaseEntropy]) -> str:
    """What the entropies say, in a sentence."""
    known = [c for c in found if c.difference is not None]
    higher = [c for c in known if (c.difference or 0) > 0]
    if not known:
        return "No candidate has rows of both phases."
    if len(found) == 1:
        c = known[0]
        more = "the more" if higher else "not the more"
        return (
            f"E is {more} uncertain phase of {c.candidate}: {c.entropy_explore:.3f} nats against "
            f"{c.entropy_exploit:.3f}."
        )
    return f"E is the more uncertain phase in {len(higher)} of {times(len(known), 'candidate')}."


class LabelledBlocks(NamedTuple):
    """Blocks, and what annotators said of them."""

    blocks: Mapping[str, PhaseBlock]
    """By id."""
    by_annotator: Mapping[str, Labels]


def write_page(plan: ReadPlan, work: Path, result: PhaseReading, labelled: LabelledBlocks) -> None:
    """Write report.html over the responses that lie beside it."""
    names = [c.candidate for c in result.candidates]
    shelf = Shelf(names, plan.opened.questions)
    said: dict[tuple[str, int], dict[tuple[int, int], dict[str, str]]] = {}
    for annotator, labels in labelled.by_annotator.items():
        for block, label in labels.items():
            p = labelled.blocks[block]
            of_response = said.setdefault((p.candidate, p.number), {})
            of_response.setdefault((p.start, p.end), {})[annotator] = label
    for place, name in enumerate(names):
        for number, response in enumerate(read_responses(work, name)):
            of_response = sorted(said.get((name, number), {}).items())
            shelf.add(place, response, [Labelled(*rows, by) for rows, by in of_response])
    write_browser(work, page_of(result), shelf)


def write_annotation(work: Path, found: Sequence[PhaseBlock], questions: Mapping[str, str]) -> None:
    """Write the page on which a person labels the blocks."""
    write_annotator(
        work,
        [BlockShown(p.id, questions.get(p.prompt_id, ""), p.before[-BEFORE:], p.text)
         for p in found],
    )  # fmt: skip


def page_of(result: PhaseReading) -> BrowserPage:
    """What the page says above its responses."""
    found = result.candidates
    cycles = [c.cycles for c in found if c.cycles is not None]
    counts = [f"{grouped(sum(c[name] for c in cycles))} {name}" for name in VERDICTS]
    rows, explore = sum(c.rows for c in found), sum(c.explore_rows for c in found)
    return BrowserPage(
        headline=headline(found),
        leads=[f"Compare with {PAPER}."],
        warnings=result.warnings,
        facts=[
            ("ranking", Path(result.ranking).name or result.ranking, result.ranking),
            ("candidates", grouped(len(found)), ""),
            ("responses", grouped(sum(c.responses for c in found)), ""),
            ("rows", grouped(rows), f"{times(result.row_tokens, 'token')} each"),
            ("rows in E", f"{100 * explore / max(1, rows):.0f}%", ""),
            ("cycles", grouped(sum(map(sum, (c.values() for c in cycles)))), ", ".join(counts)),
        ],
        columns=COLUMNS,
        candidates=[CandidateLine(c.candidate, cells(c)) for c in found],
        agreement_columns=AGREEMENT_COLUMNS,
        agreement=[agreement_line(a) for a in result.agreement],
        agreement_notes=notes(result.agreement, result.annotators),
    )


def cells(c: PhaseEntropy) -> list[tuple[str, float | None]]:
    """A candidate's cells: as shown, and as sorted."""
    share = 100 * c.explore_rows / c.rows if c.rows else None
    verdicts = [None if c.cycles is None else c.cycles[name] for name in VERDICTS]
    low, high = c.difference_interval
    ends = "" if low is None or high is None else f" ({signed(low, 3)} to {signed(high, 3)})"
    different = None if c.disagreement is None else 100 * c.disagreement
    return [
        (grouped(c.responses), c.responses), (signed(share, 0), share),
        (signed(c.segments, 1), c.segments), *((grouped(v), v) for v in verdicts),
        (signed(c.entropy_explore, 3), c.entropy_explore),
        (signed(c.entropy_exploit, 3), c.entropy_exploit),
        (signed(c.difference, 3) + ends, c.difference),
        (signed(c.spearman, 2), c.spearman), (signed(c.spearman_z, 2), c.spearman_z),
        (signed(different, 1), different),
    ]  # fmt: skip


def show(result: PhaseReading) -> None:
    """Print a reading: each candidate's phases and cycles, and where to look at them."""
    announce(result.already, "This reading")
    say(headline(result.candidates))
    warn(result.warnings)
    of_cycles = table("candidate", "E rows", "E segments", *VERDICTS)
    entropies = table("candidate", "entropy E", "entropy X", "difference (95%)", "rho", "disagree")
    for c in result.candidates:
        shown = [text for text, _ in cells(c)]
        of_cycles.add_row(c.candidate, f"{shown[1]}%", *shown[2:7])
        entropies.add_row(c.candidate, *shown[7:11], f"{shown[12]}%")
    console().print(of_cycles)
    console().print(entropies)
    say(f"({PAPER})", style="dim")
    if result.agreement:
        against = table("annotator", "blocks", "accuracy (95%)", "of E", "of X", "E found",
                        "X found", "kappa")  # fmt: skip
        for a in result.agreement:
            shown = agreement_line(a).cells
            against.add_row(a.annotator, shown[0], shown[1], *shown[3:7], signed(a.kappa, 2))
        console().print(against)
        for line in notes(result.agreement, result.annotators):
            say(line, style="dim")
    else:
        say(
            f"Label blocks: {result.out}/annotate.html or blocks.csv, then --labels FILE; or "
            "--judge, or --markers."
        )
    say(f"Any response: {result.out}/report.html; cycles: {result.out}/cycles.jsonl")
