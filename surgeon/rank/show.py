"""A ranking for a person at a terminal."""

from rich.markup import escape
from rich.table import Table

from surgeon.console import announce, console, say, table, warn
from surgeon.rank.scores import SCORES, short
from surgeon.rank.sensitivity import in_words
from surgeon.rank.signal import signal_lines
from surgeon.ranking import PromptCurve, RankedCandidate, Ranking, SelectionQuality, Sensitivity

WIDE = 118
"""Columns a terminal needs for every score in one table."""
NARROW = ("nex", "estimate", "length", "agreement", "finished")
"""The scores that a narrower one shows; the last makes room for the accuracy."""
DASH = "–"
HELD = "No evidence was kept: NEX is by the weights that all prompts taught, not by the part's own."


def show(ranking: Ranking) -> None:
    """Print a ranking: headline, warnings, table and, with a truth, every score's quality."""
    announce(ranking.already, "This ranking")
    for line in ranking.headline:
        say(line, style="bold")
    warn(ranking.warnings)
    terminal = console()
    terminal.print(candidate_table(ranking, terminal.width))
    if ranking.rounding:
        say(ranking.rounding, style="dim")
    if ranking.inverted_u is not None:
        say(ranking.inverted_u.line, style="dim")
    if ranking.selection_quality is not None:
        by = " by the mean accuracy" if len(ranking.benchmarks) > 1 else ""
        terminal.print(f"\nHow well each score would have chosen{by}:")
        terminal.print(quality_table(ranking))
    if ranking.benchmarks:
        say(f"\nBy benchmark ({len(ranking.benchmarks)}), and the mean over them:")
        terminal.print(benchmark_table(ranking))
        say("Every score by benchmark: report.html and ranking.json.", style="dim")
    if ranking.sensitivity is not None:
        show_sensitivity(ranking.sensitivity)
    if ranking.curve is not None:
        show_curve(ranking.curve, ranking.select)
    for line in signal_lines(ranking.out):
        say(line)
    say(f"Report: {ranking.out}/report.html")


def show_sensitivity(found: Sensitivity) -> None:
    """What other readings would have said."""
    say(f"\n{in_words(found)}")
    rows = table("reading", "", "order", "largest change", "favourite", left=["favourite"])
    with_truth = any(row.quality is not None for row in found.rows)
    for heading in ("Pearson r", "Regret@1 (pp)") if with_truth else ():
        rows.add_column(heading, justify="right", no_wrap=True)
    for row in found.rows:
        cells = [row.reading, row.number, shown(row.order, 2), shown(row.change, 4),
                 escape(row.favourite or DASH)]  # fmt: skip
        if (q := row.quality) is not None:
            cells += [shown(q.pearson, 2), shown(q.regret_at_1, 1)]
        rows.add_row(*cells)
    if found.rows:
        console().print(rows)
        for line in found.recorded_again:
            say(line, style="dim")


def show_curve(curve: PromptCurve, select: str) -> None:
    """The selected score, NEX and the estimate's error by the number of prompts."""
    say(f"\n{curve.line}")
    by_score = {(row.prompts, row.score): row for row in curve.rows}
    known = any(row.regret is not None for row in curve.rows)
    scores = list(dict.fromkeys((select, "nex")))
    columns = [
        what if score == select else f"{score} {what}"
        for score in scores
        for what in (["r", "regret"] if known else ["order", "same pick"])
    ]
    rows = table("prompts", "parts", *columns, "error of est.")
    for size in dict.fromkeys(row.prompts for row in curve.rows):
        cells: list[str] = []
        for score in scores:
            row = by_score[size, score]
            if known:
                cells += [shown(row.pearson, 2), shown(row.regret, 1)]
            else:
                cells += [shown(row.order, 2), DASH if row.same is None else f"{row.same:.0%}"]
        error = by_score[size, "estimate"].error
        rows.add_row(str(size), str(by_score[size, select].draws), *cells, shown(error, 3))
    console().print(rows)
    if curve.held:
        say(HELD, style="dim")
    say("Every score: report.html and ranking.json.", style="dim")


def shown(value: float | None, decimals: int) -> str:
    return DASH if value is None else f"{value:.{decimals}f}"


def candidate_table(ranking: Ranking, width: int = 80) -> Table:
    """The ranking for a terminal `width` columns wide: best first, `=` where a candidate can't be
    told apart from it, each column's favourite in bold. Narrow terminals get the main columns."""
    select, with_truth = ranking.select, any(c.accuracy is not None for c in ranking.candidates)
    scores = [name for name in ranking.favourites if name not in (select, "saturation")]
    if width < WIDE:
        scores = [name for name in scores if name in NARROW[: 2 if with_truth else 3]]

    def cell(c: RankedCandidate, name: str) -> str:
        value = c.scores[name]
        if value is None:
            return DASH
        return f"[bold]{number(value)}[/]" if ranking.favourites[name] == c.name else number(value)

    def title(name: str) -> str:
        return SCORES[name].column or name if name in SCORES else short(name)

    rows = table("", "candidate", title(select), "95% interval", left=["candidate"])
    rows.columns[0].justify = "right"
    rows.columns[3].justify, rows.columns[3].style = "center", "dim"
    for heading in [*map(title, scores), "cycles", *(["accuracy"] if with_truth else [])]:
        rows.add_column(heading, justify="right", no_wrap=True)
    for c in ranking.candidates:
        low, high = c.interval[select]
        interval = DASH if low is None or high is None else f"{number(low)} {number(high)}"
        mark = "" if c.rank == 1 or not c.not_told_apart_from_best else "="
        row = [f"{mark}{c.rank}", escape(c.name), cell(c, select), interval]
        row += [*(cell(c, name) for name in scores), f"{c.cycles:.1f}"]
        if with_truth:
            row.append(DASH if c.accuracy is None else f"{c.accuracy:.3f}")
        rows.add_row(*row)
    return rows


def number(value: float) -> str:
    """About four digits: three decimals below 10, none from 100 on."""
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def hit_text(chance: float) -> str:
    return {"0.00": "no", "1.00": "yes"}.get(f"{chance:.2f}", f"{chance:.2f}")


def quality_table(ranking: Ranking) -> Table:
    """How well each score would have chosen, where true accuracies are known."""
    favourite = "its favourite"
    rows = table("score", "Pearson", "Spearman", "Regret pp", "Hit@3", favourite, left=[favourite])
    rows.columns[-1].no_wrap, rows.columns[-1].overflow = False, "fold"
    equals = {}
    for score in ranking.selection_quality or {}:
        values = [v for c in ranking.candidates if (v := c.scores[score]) is not None]
        equals[score] = sum(value == max(values) for value in values)
    for score, q in (ranking.selection_quality or {}).items():
        picked = escape(ranking.favourites[score] or DASH)
        if ranking.favourites[score] and equals[score] > 1:
            # The regret is the mean over them.
            picked += f" and {equals[score] - 1} equal"
        rows.add_row(score, *quality_cells(q), picked)
    return rows


def quality_cells(q: SelectionQuality) -> list[str]:
    """Pearson, Spearman, Regret@1 and Hit@3 of a benchmark."""
    hit = DASH if q.hit_at_3 is None else hit_text(q.hit_at_3)
    return [shown(q.pearson, 2), shown(q.spearman, 2), shown(q.regret_at_1, 1), hit]


def benchmark_table(ranking: Ranking) -> Table:
    """The selected score and NEX by benchmark; of all scores the mean over the benchmarks."""
    rows = table(
        "benchmark", "score", "Pearson r", "Spearman", "Regret@1 (pp)", "Hit@3", left=["score"]
    )
    for name, benchmark in ranking.benchmarks.items():
        for score in dict.fromkeys((ranking.select, "nex")):
            q = benchmark.selection_quality[score]
            rows.add_row(escape(name), score, *quality_cells(q))
    for score, q in ranking.over_benchmarks.items():
        share = shown(q.hit_at_3, 2)
        rows.add_row("mean", score, *quality_cells(q)[:3], share)
    return rows
