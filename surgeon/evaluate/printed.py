"""An evaluation on a terminal."""

from typing import TYPE_CHECKING

from surgeon import console
from surgeon.consensus import sentence
from surgeon.evaluate.tables import tables_of
from surgeon.truth import EVALUATION, EvaluatedGroup, Evaluation, Gain, Transfer

if TYPE_CHECKING:
    from rich.table import Table

NARROW = ("no answer", "95% interval", "ECE", "truncated")
"""Columns that a narrow terminal does without, in the order in which they go."""


def table(evaluation: Evaluation, width: int = 120) -> "Table":
    """An evaluation for a terminal `width` columns wide, highest accuracy first."""
    from rich.markup import escape

    k, baseline = evaluation.settings["samples"], evaluation.settings["baseline"]
    rows = sorted(evaluation.candidates, key=lambda c: -c.avg)
    groups = sorted(evaluation.groups, key=lambda c: -c.avg)
    columns: dict[str, list[str]] = {"candidate": [], f"Avg@{k}": [], "95% interval": []}
    if baseline:
        columns[f"gain on {baseline}, pp"] = []
    # One sample has all the votes: its error of calibration would be its share of wrong answers.
    votes = (f"Maj@{k}", "ECE") if k > 1 else (f"Maj@{k}",)
    columns |= {name: [] for name in (*votes, "tokens", "truncated", "no answer")}
    for c in [*rows, *groups]:
        several = f" ({len(c.members)} seeds)" if isinstance(c, EvaluatedGroup) else ""
        low, high = c.interval["avg"]
        cells = [escape(c.name + several), f"{c.avg:.3f}", f"{low:.3f} … {high:.3f}"]
        if baseline:
            cells.append(gain_text(c.gain))
        cells += [
            f"{c.maj:.3f}", *([f"{c.ece:.3f}"] if k > 1 else []), f"{c.tokens:.0f}",
            f"{c.truncated:.0%}", f"{c.missing:.0%}",
        ]  # fmt: skip
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    for name in filter(columns.__contains__, NARROW):
        if sum(max(map(len, [n, *cells])) + 2 for n, cells in columns.items()) - 2 > width:
            del columns[name]
    printed = console.table(*columns)
    for column in printed.columns:
        column.style = "dim" if "interval" in str(column.header) else ""
    for n, cells in enumerate(zip(*columns.values(), strict=True), 1):
        printed.add_row(*cells, end_section=n == len(rows))
    return printed


def table_of_tasks(evaluation: Evaluation) -> "Table":
    """Avg@k by task; a star where the candidate was trained on it."""
    from rich.markup import escape

    grid = tables_of(evaluation)[0]
    printed = console.table(grid.title, *grid.head[1:])
    for name, *cells in grid.rows:
        printed.add_row(escape(name), *cells)
    return printed


def transfer_line(one: Transfer) -> str:
    """What training on a task brought there and elsewhere."""
    parts = []
    for what, compared in (("in-domain", one.in_avg), ("cross-domain", one.cross_avg)):
        if compared is not None:
            gain = ""
            if compared.gain is not None and compared.gain_interval is not None:
                gained = Gain(avg=compared.gain, interval=compared.gain_interval)
                gain = f", {gain_text(gained)} pp on the baseline"
            parts.append(f"{what} {compared.value:.3f}{gain}")
    return f"{one.name}, trained on {', '.join(one.sources)}: {'; '.join(parts)}"


def gain_text(gain: Gain | None) -> str:
    """A paired gain and its interval in percentage points; a dash for the baseline itself."""
    if gain is None:
        return "–"
    low, high = gain.interval
    return f"{100 * gain.avg:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})"


def show(evaluation: Evaluation) -> None:
    """Print an evaluation: what was asked, the table, the warnings."""
    settings = evaluation.settings
    console.announce(evaluation.already, "This evaluation")
    asked = f"{evaluation.task.problems} problems, {settings['samples']} samples each"
    if evaluation.tasks:
        how = ", ".join(f"{task.name} {task.problems} ({task.check})" for task in evaluation.tasks)
        console.say(f"{asked}: {how}; of all tasks the mean is shown, Pass@1 is Avg@k.")
    else:
        console.say(
            f"{asked}, answers read by {settings['answer']!r} and checked by "
            f"{settings['check']!r}; Pass@1 is Avg@k."
        )
    terminal = console.console()
    terminal.print(table(evaluation, terminal.width))
    if evaluation.tasks:
        terminal.print(table_of_tasks(evaluation))
    for one in evaluation.transfers:
        console.say(transfer_line(one))
    for candidate in evaluation.candidates:
        if candidate.consensus is not None:
            console.say(f"consensus of {candidate.name}: {sentence(candidate.consensus)}")
    if evaluation.times:
        paces = ", ".join(f"{name} {t.tokens_per_s:,.0f}" for name, t in evaluation.times.items())
        seconds = sum(took.seconds for took in evaluation.times.values())
        console.say(f"Decoded in {seconds:.1f} s; tokens/s: {paces}.")
    console.warn(evaluation.warnings)
    console.say(f"Written: {evaluation.out}/{EVALUATION}; tables.md, .tex, .csv, calibration.svg")
