"""An evaluation for a paper or a spreadsheet: tables in three forms, and a reliability diagram."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from surgeon import lineage
from surgeon.truth import MEAN, Beside, Evaluation, Measures, TaskResult, Transfer

TABLE, LATEX, CSV, DIAGRAM = "tables.md", "tables.tex", "tables.csv", "calibration.svg"
OWN = "*"
"""Behind the value of a task that the candidate was trained on."""
PANEL, MARGIN = 150, 46
"""Side of a reliability diagram and the room for its words, SVG units."""
MOST_PANELS = 60


class Grid(NamedTuple):
    """A table of text."""

    title: str
    head: list[str]
    rows: list[list[str]]


def write_tables(evaluation: Evaluation, work: Path) -> None:
    """Write all four files."""
    grids = tables_of(evaluation)
    lineage.write_text(work / TABLE, "\n".join(map(markdown, grids)))
    lineage.write_text(work / LATEX, "\n".join(map(latex, grids)))
    lineage.write_text(work / CSV, long_form(evaluation))
    lineage.write_text(work / DIAGRAM, diagram(evaluation))


def results(evaluation: Evaluation) -> Sequence[TaskResult | None]:
    """The tasks; None stands for the only one."""
    return evaluation.tasks or (None,)


def rows_of(evaluation: Evaluation, task: TaskResult | None) -> dict[str, Measures]:
    """Every candidate and group, on one task or over all."""
    if task is not None:
        return {one.name: one for one in task.measures}
    return {one.name: one for one in (*evaluation.candidates, *evaluation.groups)}


ECE = "Expected calibration error"


def tables_of(evaluation: Evaluation) -> list[Grid]:
    """Avg@k, Maj@k and ECE by task (Tab. 7, 8), and in-domain against cross-domain (Tab. 3, 4)."""
    k = evaluation.settings["samples"]
    grids = [
        matrix(evaluation, f"Avg@{k}, %", lambda m: m.avg, 100),
        matrix(evaluation, f"Maj@{k}, %", lambda m: m.maj, 100),
    ]
    if k > 1:  # one sample has all the votes
        grids.append(matrix(evaluation, ECE, lambda m: m.ece, 1))
    if evaluation.transfers:
        grids.append(transfer_table(evaluation.transfers, f"Avg@{k}, %", "avg", 100))
        if k > 1:
            grids.append(transfer_table(evaluation.transfers, ECE, "ece", 1))
    return grids


def shown(value: float, unit: float) -> str:
    """Percent with two digits, shares with three."""
    return f"{unit * value:.2f}" if unit == 100 else f"{value:.3f}"


def matrix(
    evaluation: Evaluation, title: str, value: Callable[[Measures], float], unit: float
) -> Grid:
    """Rows are candidates and groups, columns tasks and their mean."""
    tasks, whole = evaluation.tasks, rows_of(evaluation, None)
    by_task = {task.name: rows_of(evaluation, task) for task in tasks}
    last = MEAN if tasks else title
    rows = []
    for name, measures in whole.items():
        row = [name]
        for task, measured in by_task.items():
            own = OWN if evaluation.sources.get(name) == task else ""
            row.append(shown(value(measured[name]), unit) + own)
        rows.append([*row, shown(value(measures), unit)])
    if any(OWN in cell for row in rows for cell in row[1:]):
        title += f" ({OWN} trained on)"
    return Grid(title, ["", *by_task, last], rows)


def transfer_table(transfers: Sequence[Transfer], title: str, metric: str, unit: float) -> Grid:
    """In-domain and cross-domain values, each with its difference to the baseline's."""

    def cells(compared: Beside | None) -> list[str]:
        if compared is None:
            return ["–", "–"]
        value = shown(compared.value, unit)
        if compared.gain is None or compared.gain_interval is None:
            return [value, "–"]
        digits = ".2f" if unit == 100 else ".3f"
        low, high = (f"{unit * end:+{digits}}" for end in compared.gain_interval)
        return [value, f"{unit * compared.gain:+{digits}} ({low} to {high})"]

    rows = [
        [
            one.name,
            ", ".join(one.sources),
            *cells(getattr(one, f"in_{metric}")),
            *cells(getattr(one, f"cross_{metric}")),
        ]
        for one in transfers
    ]
    head = ["", "trained on", "in-domain", "Δ", "cross-domain", "Δ"]
    return Grid(f"{title}: in-domain and cross-domain", head, rows)


def markdown(grid: Grid) -> str:
    """A table with its title."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = line(["---", *["---:"] * (len(grid.head) - 1)])
    return "\n".join([f"**{grid.title}**", "", line(grid.head), rule, *map(line, grid.rows), ""])


LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "Δ": r"$\Delta$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex(grid: Grid) -> str:
    """The same for a paper, with booktabs."""

    def line(cells: Iterable[str]) -> str:
        safe = ("".join(LATEX_SIGNS.get(sign, sign) for sign in cell) for cell in cells)
        return " & ".join(safe) + r" \\"

    return "\n".join(
        [
            r"\begin{table}", r"\centering", rf"\caption{{{line([grid.title])[:-3]}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.head) - 1)}}}", r"\toprule", line(grid.head),
            r"\midrule", *map(line, grid.rows), r"\bottomrule", r"\end{tabular}", r"\end{table}",
            "",
        ]
    )  # fmt: skip


def long_form(evaluation: Evaluation) -> str:
    """CSV with a row for every candidate, task and metric; the task `mean` is the mean of all."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["name", "trained_on", "task", "metric", "value", "low", "high", "gain", "gain_low",
         "gain_high"]
    )  # fmt: skip
    for task in (*evaluation.tasks, None):
        where = MEAN if task is None else task.name
        for name, measures in rows_of(evaluation, task).items():
            for metric, (low, high) in measures.interval.items():
                gain = measures.gain if metric == "avg" else None
                more = ["", "", ""] if gain is None else [gain.avg, *gain.interval]
                value = getattr(measures, metric)
                source = evaluation.sources.get(name, "")
                writer.writerow([name, source, where, metric, value, low, high, *more])
    for one in evaluation.transfers:
        for name in ("in_avg", "cross_avg", "in_ece", "cross_ece"):
            compared = getattr(one, name)
            if compared is not None:
                support, _, metric = name.partition("_")
                more = compared.gain_interval or ("", "")
                gain = "" if compared.gain is None else compared.gain
                writer.writerow(
                    [one.name, "+".join(one.sources), f"{support}-domain", metric, compared.value,
                     *compared.interval, gain, *more]
                )  # fmt: skip
    return file.getvalue()


# Reliability diagram -----------------------------------------------------------------------------


def diagram(evaluation: Evaluation) -> str:
    """Accuracy of the majority over its share of the votes, a panel for each candidate and task;
    the diagonal is perfect calibration, a dot's area the number of problems. An SVG."""
    columns = [*evaluation.tasks, None] if evaluation.tasks else [None]
    names = list(rows_of(evaluation, None))[: max(1, MOST_PANELS // len(columns))]
    step = PANEL + MARGIN
    panels = []
    for y, name in enumerate(names):
        for x, task in enumerate(columns):
            where = "" if not evaluation.tasks else " · all" if task is None else f" · {task.name}"
            measures = rows_of(evaluation, task)[name]
            panels.append(
                f'<g transform="translate({MARGIN + x * step} {MARGIN + y * step})">'
                f"{panel(name + where, measures)}</g>"
            )
    width, height = MARGIN + len(columns) * step, MARGIN + len(names) * step
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="sans-serif" font-size="10">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def panel(title: str, measures: Measures) -> str:
    """One candidate's reliability diagram."""
    most = max((b.problems for b in measures.calibration), default=1)
    parts = [
        f'<text y="-18" font-size="11">{escape(title)}</text>',
        f'<text y="-5" fill="#666">ECE {measures.ece:.3f}</text>',
        f'<rect width="{PANEL}" height="{PANEL}" fill="none" stroke="#bbb"/>',
        f'<line x1="0" y1="{PANEL}" x2="{PANEL}" y2="0" stroke="#bbb" stroke-dasharray="3"/>',
        f'<text x="0" y="{PANEL + 12}">0</text>',
        f'<text x="{PANEL}" y="{PANEL + 12}" text-anchor="end">1 vote share</text>',
        '<text x="-4" y="8" text-anchor="end">1</text>',
        f'<text x="-4" y="{PANEL}" text-anchor="end">0</text>',
    ]
    for b in measures.calibration:
        x, y = PANEL * b.confidence, PANEL * (1 - b.accuracy)
        radius = 2 + 8 * (b.problems / most) ** 0.5
        said = f"{b.problems} problems: share {b.confidence:.2f}, right {b.accuracy:.2f}"
        parts.append(
            f'<line x1="{x:.1f}" y1="{PANEL - x:.1f}" x2="{x:.1f}" y2="{y:.1f}" stroke="#c44"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#36c" fill-opacity=".7">'
            f"<title>{said}</title></circle>"
        )
    return "".join(parts)
