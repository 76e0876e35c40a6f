"""`report.html`: a ranking as one self-contained page that opens offline.

The page holds its style, script and charts; a content security policy forbids it every request.
Text from checkpoints and models is foreign: it reaches the page only through the template's or
`Markup.format`'s escaping. `C` stands for candidates.
"""

import base64
import functools
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from surgeon.lineage import write_text
from surgeon.report.panels import evidence_groups, scatter_figures, score_groups
from surgeon.report.reading import phases
from surgeon.report.rows import (
    Cell,
    Json,
    Row,
    count_cells,
    find_favourites,
    interval_text,
    measure_of,
    per_response,
    read_row,
    score_cells,
    shown_scores,
    sort_key,
    with_unit,
)
from surgeon.report.words import DASH, finite, grouped, integer, signed, visible

HERE = Path(__file__).parent
TALL_TABLE = 40
"""Tables with more rows than this scroll in a box of their own."""


def write_report(
    out: Path,
    ranking: Json,
    reading: Json | None = None,
    truth: Json | None = None,
    lineage: Json | None = None,
) -> Path:
    """Write `report.html` into the directory `out` (or to `out` itself if it ends in .html).

    `ranking` is the content of ranking.json, `reading` one trace read with its novelty and phases,
    `truth` the content of evaluate.json, `lineage` that of surgeon.json. Missing numbers (None or
    NaN) are drawn as dashes. Returns the file's path.
    """
    path = Path(out)
    if path.suffix != ".html":
        path = path / "report.html"
    # A ranking is written in OUT.partial, and then renamed.
    directory = str(path.parent).removesuffix(".partial")
    write_text(path, render(ranking, reading, truth, lineage, out=directory))
    return path


def render(
    ranking: Json,
    reading: Json | None = None,
    truth: Json | None = None,
    lineage: Json | None = None,
    *,
    out: str = "DIR",
) -> str:
    """The page as text; arguments as for `write_report`, `out` for the command line it shows.

    Equal arguments give equal pages.
    """
    rows = [read_row(i, candidate, truth) for i, candidate in enumerate(ranking["candidates"])]
    select = str(ranking.get("select", "nex"))
    scores = shown_scores(ranking, rows)
    favourites = find_favourites(ranking, rows, scores)
    return filled(
        "ranking.html.j2",
        "page.css",
        headline=_headline(ranking, rows, favourites, select),
        warnings=[str(warning) for warning in ranking.get("warnings") or []],
        facts=_facts(ranking, rows, select),
        preferences=_preferences(rows, scores, favourites),
        rows=rows,
        tall=len(rows) > TALL_TABLE,
        columns=[(score, measure_of(score)) for score in scores],
        cells=[score_cells(row, scores, favourites) for row in rows],
        counts=[count_cells(candidate) for candidate in ranking["candidates"]],
        any_tied=any(row.tied for row in rows[1:]),
        select=measure_of(select).label,
        score_figures=score_groups(rows, scores, favourites),
        truth_line=_truth_line(ranking, truth),
        quality=_quality(ranking, scores),
        scatter_figures=scatter_figures(
            rows, scores, favourites, ranking.get("selection_quality") or {}
        ),
        evidence_figures=evidence_groups(rows),
        evidence_line=_evidence_line(ranking),
        trace=phases(reading) if reading else None,
        settings=_settings(ranking),
        provenance=_provenance(lineage, {row.name for row in rows}),
        command=_command(ranking, lineage, out),
    )


def filled(template: str, *styles: str, **values: Any) -> str:
    """A page from a template of this directory that extends `page.html.j2`, with its style sheets.

    Foreign text among the values is escaped, and control characters are drawn.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup("".join((HERE / name).read_text(encoding="utf-8") for name in styles)),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )
    return visible(page)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _headline(
    ranking: Json, rows: Sequence[Row], favourites: Mapping[str, int], select: str
) -> list[str]:
    """The sentences at the top; agreement's dissent comes first, given or not."""
    given = [str(line) for line in ranking.get("headline") or []]
    if not rows:
        return given or ["No candidates were ranked."]
    best = rows[0]
    if not given:
        ties = sum(row.tied for row in rows[1:])
        value = with_unit(measure_of(select), best.value.get(select))
        given = [f"{best.name} ranks first of {len(rows)} by {measure_of(select).label} ({value})."]
        if ties:
            others = "1 other candidate" if ties == 1 else f"{ties} other candidates"
            given.append(f"{others} can't be told apart from it.")
    other = favourites.get("agreement", 0)
    mine, theirs = (rows[index].value.get("agreement") for index in (0, other))
    dissent = theirs is not None and theirs > (mine or 0.0)
    if select != "agreement" and dissent and "agreement" not in given[0].lower():
        given.insert(
            0, f"Agreement prefers {rows[other].name}, {measure_of(select).label} {best.name}."
        )
    return given


def _total(ranking: Json, key: str) -> int | None:
    known = [integer(candidate.get(key)) for candidate in ranking["candidates"]]
    values = [value for value in known if value is not None]
    return sum(values) if values else None


def _facts(ranking: Json, rows: Sequence[Row], select: str) -> list[tuple[str, str, str]]:
    """(term, value, note) of what was ranked, on what, by what."""
    mini_set = ranking.get("mini_set") or {}
    measure = measure_of(select)
    responses, truncated = _total(ranking, "responses"), _total(ranking, "truncated")
    share = f", {100 * truncated / responses:.1f}%" if responses and truncated is not None else ""
    facts = [
        ("candidates", grouped(len(rows)), ""),
        ("ranked by", measure.label, measure.what),
    ]
    if rows:
        ends = interval_text(measure, rows[0].interval.get(select, (None, None)))
        value = with_unit(measure, rows[0].value.get(select))
        facts.append(("best", rows[0].name, f"{value} ({ends})" if ends else value))
    if len(rows) > 1:
        ties = [row.name for row in rows[1:] if row.tied]
        listed = ", ".join(ties[:4]) + (f" and {len(ties) - 4} more" if len(ties) > 4 else "")
        facts.append(("not told apart from it", str(len(ties)), listed))
    return [
        *facts,
        (
            "mini-set",
            f"{grouped(integer(mini_set.get('prompts')))} prompts",
            str(mini_set.get("path") or ""),
        ),
        (
            "responses",
            grouped(responses),
            f"{grouped(truncated)} truncated{share}; {grouped(_total(ranking, 'tokens'))} tokens",
        ),
    ]


def _preferences(
    rows: Sequence[Row], scores: Sequence[str], favourites: Mapping[str, int]
) -> list[tuple[Row, str]]:
    """(candidate, the scores that prefer it), in rank order."""
    of_row: dict[int, list[str]] = {}
    for score in scores:
        if score in favourites and score != "accuracy":
            of_row.setdefault(favourites[score], []).append(measure_of(score).label)
    return [(rows[index], ", ".join(of_row[index])) for index in sorted(of_row)]


def _evidence_line(ranking: Json) -> list[str]:
    """What stands behind the scores, in sentences."""
    candidates = ranking["candidates"]
    settings = ranking.get("settings") or {}
    lines = []
    cycles = [v for candidate in candidates if (v := finite(candidate.get("cycles"))) is not None]
    if cycles:
        low, high = (f"{end:.1f}" for end in (min(cycles), max(cycles)))
        lines.append(f"{low if low == high else f'{low} to {high}'} cycles per response.")
    responses, without = _total(ranking, "responses"), _total(ranking, "without_evidence")
    if responses and without is not None:
        empty = sum(per_response(candidate, "without_evidence") == 1 for candidate in candidates)
        lines.append(
            f"{grouped(without)} of {grouped(responses)} responses carry no evidence "
            f"({100 * without / responses:.1f}%); "
            + (
                f"{empty} of {len(candidates)} candidates have none at all."
                if empty
                else "every candidate has some."
            )
        )
    kept = [v for candidate in candidates if (v := finite(candidate.get("kept_mass"))) is not None]
    if kept:
        top_k = integer(settings.get("top_k"))
        how = f"The {grouped(top_k)} largest" if top_k else "The largest"
        low, high = (f"{100 * end:.1f}" for end in (min(kept), max(kept)))
        share = low if low == high else f"{low} to {high}"
        lines.append(
            f"{how} activations of each token keep {share}% of the positive activation mass."
        )
    row_tokens = integer(settings.get("row_tokens"))
    if row_tokens:
        lines.append(f"A row is {row_tokens} token{'s' if row_tokens != 1 else ''}.")
    return lines


def _quality(ranking: Json, scores: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Rows of the selection-quality table; the best of each column is marked."""
    given: Json = ranking.get("selection_quality") or {}
    names = list(dict.fromkeys([*(s for s in scores if s in given), *given]))
    keys = ("pearson", "spearman", "regret_at_1", "hit_at_3")
    table = {name: [finite(_as_number((given[name] or {}).get(k))) for k in keys] for name in names}
    best: list[float | None] = []
    for column, pick in enumerate((max, max, min, max)):
        known = [v for values in table.values() if (v := values[column]) is not None]
        best.append(pick(known) if known else None)
    out = []
    for name, values in table.items():
        cells = []
        for column, value in enumerate(values):
            shown = signed(value, 1 if keys[column] == "regret_at_1" else 3)
            if keys[column] == "hit_at_3" and value in (0, 1):
                shown = "yes" if value else "no"
            cells.append(
                Cell(shown, sort_key(value), "", value is not None and value == best[column])
            )
        out.append((measure_of(name).label, cells))
    return out


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _truth_line(ranking: Json, truth: Json | None) -> str:
    """Where the accuracies come from."""
    truth = truth or {}
    problems = [
        n for c in truth.get("candidates") or [] if (n := integer(c.get("problems"))) is not None
    ]
    samples = integer((truth.get("settings") or {}).get("samples"))
    task = truth.get("task")
    if isinstance(task, Mapping):
        task = task.get("path") or task.get("name")
    parts = [f"Accuracy was measured on {task}" if task else "Accuracy was measured apart"]
    if problems:
        parts.append(f"{grouped(max(problems))} problems")
    if samples:
        parts.append("one sample each" if samples == 1 else f"{samples} samples each")
    if ranking.get("truth"):
        parts.append(f"and read from {ranking['truth']}")
    return ", ".join(parts) + ". No label was used to rank."


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
    if isinstance(value, (list, tuple)):
        return [(name, ", ".join(str(item) for item in value) or DASH)]
    return [(name, str(value))]


def _settings(ranking: Json) -> list[tuple[str, str]]:
    mini_set = ranking.get("mini_set") or {}
    settings = {**(ranking.get("settings") or {})}
    settings.pop("mini_set", None)
    return [*_flat(mini_set, "mini_set"), *_flat(settings)]


def _provenance(lineage: Json | None, candidates: set[str]) -> list[tuple[str, str]]:
    """Versions, and the inputs that aren't candidates (their digests have a table), flat."""
    known = lineage or {}
    inputs = {k: v for k, v in (known.get("inputs") or {}).items() if k not in candidates}
    return [*_flat(known.get("versions") or {}, "version"), *_flat(inputs, "input")]


SET = ("temperature", "top_p", "thinking")
"""Settings without a flag of their own on the command line."""


def _command(ranking: Json, lineage: Json | None, out: str) -> str:
    """The command line that repeats the run: as recorded, or put together from its settings."""
    given = (lineage or {}).get("command")
    if isinstance(given, str):
        return given
    if isinstance(given, Sequence):
        return shlex.join(str(word) for word in given)
    settings = {**(ranking.get("settings") or {})}
    mini_set = (ranking.get("mini_set") or {}).get("path")
    settings = {"mini_set": mini_set, "out": out, "select": ranking.get("select"), **settings}
    settings["truth"] = ranking.get("truth")
    words = ["surgeon", "rank"]
    words += [str(candidate.get("checkpoint")) for candidate in ranking["candidates"]]
    for name, value in settings.items():
        flag = "--" + str(name).replace("_", "-")
        if value is None or (value is False and name not in SET):
            continue
        if name in SET:
            words += ["--set", f"{name}={str(value).lower() if value in (True, False) else value}"]
        else:
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)
