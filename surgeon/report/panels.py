"""The panels of a ranking's page: a function and a row each.

A panel of your own is a function in a file of your own, named as `module:function`:

    surgeon rank ... --panels my_panel:cost

It gets the `RankingPage` and returns what the panel shows: `Markup` (of `fragment`, for
example), or plain text; None leaves the panel out. See examples/my_panel.py.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon import named
from surgeon.ranking import SelectionQuality
from surgeon.report.charts import curve_group, evidence_groups, scatter_figures, score_groups
from surgeon.report.measures import (
    Cell,
    RankingPage,
    count_cells,
    score_cells,
    sort_key,
    span_text,
)
from surgeon.report.page import part
from surgeon.report.reading import trace_view
from surgeon.report.words import DASH, grouped, signed, times

TEMPLATE = "panels.html.j2"
NEX_ALL = "NEX of all responses, by the part's weights"
TALL_TABLE = 40
"""Tables with more rows than this scroll in a box of their own."""


class Panel(NamedTuple):
    """A section of the page."""

    title: str
    """In the page's list of sections."""
    heading: str
    draw: Callable[[RankingPage], Markup | str | None]
    """What it shows; None where there is nothing to show."""

    def __call__(self, page: RankingPage) -> Markup | str | None:
        return self.draw(page)


def table(page: RankingPage) -> Markup:
    """Every candidate with its scores, intervals and counts."""
    return part(
        TEMPLATE,
        "table",
        candidates=page.candidates,
        select=page.select.label,
        measures=page.scores.values(),
        cells=[score_cells(page, place) for place in range(len(page.candidates))],
        counts=[count_cells(candidate) for candidate in page.candidates],
        tall=len(page.candidates) > TALL_TABLE,
    )


def scores(page: RankingPage) -> Markup:
    """Every score of every candidate, as charts."""
    return part(TEMPLATE, "groups", groups=score_groups(page), select=page.select.label)


def accuracy(page: RankingPage) -> Markup | None:
    """How well each score would have chosen, and each score against accuracy."""
    quality = page.ranking.selection_quality
    figures = scatter_figures(page)
    if not figures and quality is None:
        return None
    return part(
        TEMPLATE,
        "accuracy",
        line=_truth_line(page),
        tables=_quality_tables(page, quality or {}),
        figures=figures,
    )


def evidence(page: RankingPage) -> Markup:
    """What stands behind the scores, in sentences and as charts."""
    return part(
        TEMPLATE,
        "evidence",
        lines=_evidence_lines(page),
        figure_groups=evidence_groups(page),
        select=page.select.label,
    )


def readings(page: RankingPage) -> Markup | None:
    """NEX under other readings, where that was asked for."""
    found = page.ranking.sensitivity
    if found is None:
        return None
    with_truth = any(row.quality is not None for row in found.rows)
    rows = []
    for row in found.rows:
        values = [(row.order, 2), (row.change, 4)]
        if row.quality is not None:
            values += [(row.quality.pearson, 2), (row.quality.regret_at_1, 1)]
        texts = [signed(value, decimals) for value, decimals in values]
        rows.append((row.reading, row.number, row.favourite or DASH, texts))
    return part(TEMPLATE, "readings", rows=rows, with_truth=with_truth, lines=found.recorded_again)


def curve(page: RankingPage) -> Markup | None:
    """The ranking by fewer prompts, where that was asked for."""
    group, found = curve_group(page), page.ranking.curve
    if group is None or found is None:
        return None
    known = any(row.regret is not None for row in found.rows)
    rows = []
    for row in found.rows:
        label = page.scores[row.score].label if row.score in page.scores else NEX_ALL
        values = [(row.order, 2), (None if row.same is None else 100 * row.same, 0)]
        values += [(row.pearson, 2), (row.regret, 1)] if known else []
        rows.append((row.prompts, label, [signed(v, d) for v, d in [*values, (row.error, 3)]]))
    return part(
        TEMPLATE, "curve", group=group, rows=rows, with_truth=known, line=found.line,
        held=found.held, select=page.select.label,
    )  # fmt: skip


def rounds(page: RankingPage) -> Markup | None:
    """Who stopped answering when, where candidates could."""
    if not page.ranking.rounds:
        return None
    rows = []
    for n, done in enumerate(page.ranking.rounds, 1):
        gone = [
            f"{name} ({signed(100 * most, 1)})"
            for name, most in sorted(done.dropped.items(), key=lambda item: item[1])
        ]
        counts = (n, done.prompts, len(done.answering), done.tokens)
        rows.append((list(map(grouped, counts)), done.leader or DASH, ", ".join(gone) or DASH))
    return part(TEMPLATE, "rounds", rows=rows, end=page.ranking.rounds[-1].stopped)


def trace(page: RankingPage) -> Markup | None:
    """One response of the best candidate with its novelty and phases."""
    if page.reading is None:
        return None
    return part("trace.html.j2", "trace", view=trace_view(page.reading))


def settings(page: RankingPage) -> Markup:
    """The command, the checkpoints, the settings, and the versions."""
    ranking, lineage = page.ranking, page.lineage
    names = {candidate.name for candidate in page.candidates}
    inputs = {k: v for k, v in lineage.get("inputs", {}).items() if k not in names}
    mini_set = {"path": ranking.mini_set.path, "prompts": ranking.mini_set.prompts,
                "digest": ranking.mini_set.digest}  # fmt: skip
    arguments = {k: v for k, v in ranking.settings.items() if k != "mini_set"}
    return part(
        TEMPLATE,
        "settings",
        command=lineage.get("command"),
        candidates=page.candidates,
        columns=[
            ("Settings", [*_flat(mini_set, "mini_set"), *_flat(arguments)]),
            (
                "Versions and inputs",
                [*_flat(lineage.get("versions", {}), "version"), *_flat(inputs, "input")],
            ),
        ],
    )


PANELS: dict[str, Panel] = {
    "table": Panel("Table", "Candidates, best first", table),
    "rounds": Panel("Rounds", "Who stopped when", rounds),
    "scores": Panel("Scores", "Every score", scores),
    "accuracy": Panel("Against accuracy", "Against accuracy", accuracy),
    "evidence": Panel("Evidence", "Evidence", evidence),
    "readings": Panel("Readings", "NEX under other readings", readings),
    "curve": Panel("Prompts", "How many prompts are enough", curve),
    "trace": Panel("One trace", "One trace, read", trace),
    "settings": Panel("Settings", "Settings and provenance", settings),
}
"""Every panel, in the order of the page; those from outside stand before the last."""


def find(name: str) -> Panel:
    """The row of that name, or what `module:function` names: a `Panel`, or a function that draws.

    Raises `BadInput`.
    """
    row = named.row(PANELS, name, "panels")
    if isinstance(row, Panel):
        return row
    title = name.partition(":")[2].replace("_", " ").capitalize()
    heading = (row.__doc__ or title).strip().partition("\n")[0].rstrip(".")
    return Panel(title, heading, row)


def rows_for(extra: Iterable[str]) -> dict[str, Panel]:
    """The panels of a page: all rows, and before the last one those from outside."""
    panels = PANELS | {name: find(name) for name in extra}
    return {name: panels[name] for name in sorted(panels, key=lambda name: name == "settings")}


# ---------------------------------------------------------------- in words


def _truth_line(page: RankingPage) -> str:
    """Where the accuracies come from."""
    if page.ranking.benchmarks and page.truth is None:
        places = ", ".join(f"{name} ({b.truth})" for name, b in page.ranking.benchmarks.items())
        count = times(len(page.ranking.benchmarks), "benchmark")
        return f"Accuracy is the mean over {count}: {places}. No label was used to rank."
    parts, truth = ["Accuracy was measured apart"], page.truth
    if truth is not None:
        samples = _count(truth.settings, "samples")
        parts = [
            f"Accuracy was measured on {truth.task.path}",
            f"{grouped(truth.task.problems)} problems",
            "one sample each" if samples == 1 else f"{samples} samples each",
        ]
    if page.ranking.truth:
        parts.append(f"and read from {page.ranking.truth}")
    return ", ".join(parts) + ". No label was used to rank."


def _quality_tables(
    page: RankingPage, quality: Mapping[str, SelectionQuality]
) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """(heading, rows) of each table: by the accuracy, by each benchmark, the mean over them."""
    found, several = page.ranking.benchmarks, len(page.ranking.benchmarks) > 1
    tables = [("By the mean accuracy" if several else ", ".join(found), quality)]
    if several:
        tables += [(name, b.selection_quality) for name, b in found.items()]
        mean = "Mean of each measure over the benchmarks (NEX Tab. 2 and 3)"
        tables.append((mean, page.ranking.over_benchmarks))
    return [(heading, rows) for heading, q in tables if (rows := _quality_rows(page, q))]


def _quality_rows(
    page: RankingPage, quality: Mapping[str, SelectionQuality]
) -> list[tuple[str, list[Cell]]]:
    """Rows of the selection-quality table; the best of each column is marked."""
    columns = {"pearson": max, "spearman": max, "regret_at_1": min, "hit_at_3": max}
    best = {}
    for field, pick in columns.items():
        values = [v for q in quality.values() if (v := getattr(q, field)) is not None]
        best[field] = pick(values) if values else None
    rows = []
    for score in page.scores:
        if score not in quality:
            continue
        cells = []
        for field in columns:
            value = getattr(quality[score], field)
            text = signed(value, 1 if field == "regret_at_1" else 3)
            if field == "hit_at_3" and value in (0, 1):
                text = "yes" if value else "no"
            marked = value is not None and value == best[field]
            cells.append(Cell(text, sort_key(value), "", marked))
        rows.append((page.scores[score].label, cells))
    return rows


def _evidence_lines(page: RankingPage) -> list[str]:
    """What stands behind the scores, in sentences."""
    candidates = page.candidates
    responses, without = page.total("responses"), page.total("without_evidence")
    empty = sum(c.without_evidence == c.responses for c in candidates)
    row_tokens, top_k = _count(page.ranking.settings, "row_tokens"), page.ranking.settings["top_k"]
    # Of a cache it isn't known.
    largest = f"{grouped(top_k)} largest" if isinstance(top_k, int) else "kept"
    return [
        f"{span_text(c.cycles for c in candidates)} cycles per response.",
        f"{grouped(without)} of {grouped(responses)} responses carry no evidence "
        f"({100 * without / responses:.1f}%); "
        + (
            f"{empty} of {len(candidates)} candidates have none at all."
            if empty
            else "every candidate has some."
        ),
        f"The {largest} activations of each token keep "
        f"{span_text(100 * c.kept_mass for c in candidates)}% of the positive activation mass.",
        f"A row is {times(row_tokens, 'token')}.",
        *([page.ranking.rounding] if page.ranking.rounding else []),
        *([page.ranking.inverted_u.line] if page.ranking.inverted_u else []),
    ]


def _count(settings: Mapping[str, Any], name: str) -> int:
    """A whole number among recorded settings."""
    return settings[name]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        return [
            line
            for key, inner in value.items()
            for line in _flat(inner, f"{name}.{key}" if name else str(key))
        ]
    if isinstance(value, bool):
        return [(name, "yes" if value else "no")]
    if value is None:
        return [(name, DASH)]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(map(str, value)) or DASH)]
    return [(name, str(value))]
