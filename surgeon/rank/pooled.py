"""`surgeon summary`: how well each score chooses, over several families and benchmarks.

A pair is a family and a benchmark. A reading of the NEX paper, which doesn't define its averages: a
family's row is the mean of each measure over its benchmarks (Tab. 2), "Overall" the mean over all
pairs (Tab. 2 and 3: the four printed families average to the printed .778, 2.67 pp and 7/20).
Candidates of different families are never thrown together: a score means something within a series
of models (sec. A.7). With unequal numbers of benchmarks the mean over families differs from that
over pairs, so both are given.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from surgeon import artifact, lineage
from surgeon.console import announce, console, say, table, warn
from surgeon.errors import BadInput
from surgeon.rank.show import shown
from surgeon.ranking import KnownAnswers, Ranking, SelectionQuality, mean_quality
from surgeon.report.words import times
from surgeon.settings import verb
from surgeon.settings.summary import SummarySettings

DASH = "–"
ONLY = "truth"
"""What the benchmark is called where the truth names none."""


@artifact.part
class PooledQuality:
    """How well a score would have chosen: the mean of each measure where it is defined."""

    score: str
    mean: SelectionQuality
    pairs: int
    """Family and benchmark pairs in which the score tells candidates apart."""
    asked: int
    """All pairs."""
    hits: float
    """Hit@3, summed over the pairs."""


@artifact.part
class SummarisedFamily:
    """One ranking, and how well each of its scores would have chosen."""

    name: str
    ranking: str
    candidates: int
    benchmarks: dict[str, dict[str, SelectionQuality]]
    """Benchmark -> score -> quality."""
    mean: tuple[PooledQuality, ...]
    """Over the benchmarks, by score."""
    recommended: str | None = None
    """The candidate that was recommended; None where none was."""
    accuracy: float | None = None
    """Its true accuracy."""
    estimate: float | None = None
    """Its estimated one."""
    regret: float | None = None
    """What the most accurate candidate has more, in percentage points."""
    estimate_error: float | None = None
    """Mean absolute difference of the estimated from the true accuracies."""
    known: KnownAnswers | None = None
    """What known answers said of the votes; None where none were looked at."""


@artifact.artifact("summary.json")
class RankingSummary:
    """How well each score chooses, over several families."""

    families: tuple[SummarisedFamily, ...]
    overall: tuple[PooledQuality, ...]
    """Over all pairs of a family and a benchmark, by score."""
    over_families: tuple[PooledQuality, ...]
    """The mean over the families' means, by score: each family counts once."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


class ReadFamily(NamedTuple):
    """A ranking as it was read."""

    name: str
    file: Path
    ranking: Ranking


@verb(SummarySettings)
def summary(settings: SummarySettings) -> RankingSummary:
    """Pool the selection quality of rankings, a family each, by score: per family, over all pairs
    of a family and a benchmark, and over families. Raises `BadInput` for a ranking without a truth,
    and where two have one name."""
    found = read_families(settings.rankings)
    if settings.out is None:
        return summarise(found)
    run = lineage.Run("summary", {}, {f.name: lineage.file_digest(f.file) for f in found})

    def work(partial: Path) -> RankingSummary:
        result = summarise(found)
        lineage.write_text(partial / "summary.md", in_markdown(result))
        return result

    return artifact.once(settings.out, RankingSummary, work, run=run)


def read_families(specs: Sequence[str]) -> list[ReadFamily]:
    """Every ranking that was named, each with a name of its own."""
    if not specs:
        raise BadInput("found no ranking, expected one or more. Name directories of surgeon rank.")
    families: dict[str, ReadFamily] = {}
    for spec in specs:
        name, _, place = spec.rpartition("=")
        if not name or "/" in name or Path(spec).expanduser().exists():
            name, place = "", spec
        path = Path(place).expanduser()
        ranking = artifact.read(Ranking, path)
        file = path / "ranking.json" if path.is_dir() else path
        name = name or file.resolve().parent.name
        if not ranking.selection_quality:
            raise BadInput(
                f"found no truth in {file}, expected one: its scores weren't held against "
                "accuracies. Rank it again with --truth (only the last stage is redone)."
            )
        if name in families:
            raise BadInput(
                f"found two families called {name}, expected a name each. Name them: NAME={place}."
            )
        families[name] = ReadFamily(name, file, ranking)
    return list(families.values())


def summarise(found: Sequence[ReadFamily]) -> RankingSummary:
    """The families, and what holds over them."""
    families = [summarised(f) for f in found]
    pairs = [quality for f in families for quality in f.benchmarks.values()]
    means = [{pooled.score: pooled.mean for pooled in f.mean} for f in families]
    return RankingSummary(
        families=tuple(families),
        overall=pool(pairs),
        over_families=pool(means),
        warnings=tuple(warnings(found)),
    )


def summarised(family: ReadFamily) -> SummarisedFamily:
    ranking = family.ranking
    by_benchmark = {name: b.selection_quality for name, b in ranking.benchmarks.items()}
    if not by_benchmark:
        by_benchmark = {ONLY: ranking.selection_quality or {}}
    accuracy = {c.name: c.accuracy for c in ranking.candidates if c.accuracy is not None}
    gaps = [
        abs(value - c.accuracy)
        for c in ranking.candidates
        if c.accuracy is not None and (value := c.scores.get("estimate")) is not None
    ]
    advice = ranking.recommendation
    of_advised = accuracy.get(advice.name) if advice is not None else None
    return SummarisedFamily(
        recommended=advice.name if advice is not None else None,
        accuracy=of_advised,
        estimate=advice.estimate if advice is not None else None,
        regret=100 * (max(accuracy.values()) - of_advised) if of_advised is not None else None,
        estimate_error=sum(gaps) / len(gaps) if gaps else None,
        known=ranking.known,
        name=family.name,
        ranking=str(family.file),
        candidates=len(ranking.candidates),
        benchmarks=by_benchmark,
        mean=pool(list(by_benchmark.values())),
    )


def pool(pairs: Sequence[Mapping[str, SelectionQuality]]) -> tuple[PooledQuality, ...]:
    """By score, each measure's mean over the pairs."""
    rows = []
    for score in dict.fromkeys(score for pair in pairs for score in pair):
        there = [pair[score] for pair in pairs if score in pair]
        hits = [q.hit_at_3 for q in there if q.hit_at_3 is not None]
        rows.append(
            PooledQuality(
                score=score,
                mean=mean_quality(there),
                pairs=len(hits),
                asked=len(pairs),
                hits=sum(hits),
            )
        )
    return tuple(rows)


def warnings(found: Sequence[ReadFamily]) -> list[str]:
    """What keeps the numbers from being comparable."""
    lines = []
    if small := [f.name for f in found if len(f.ranking.candidates) < 4]:
        lines.append(
            f"Fewer than four candidates in {', '.join(small)}: Hit@3 is 1 there for any score."
        )
    if len({f.ranking.mini_set.digest for f in found}) > 1:
        lines.append("The families answered different mini-sets.")
    names = {tuple(sorted(f.ranking.benchmarks)) for f in found}
    if len(names) > 1:
        lines.append(
            "The families have different benchmarks: the mean over pairs weighs those with more of "
            "them more, the mean over families doesn't."
        )
    scoring = ("preset", "credit", "row_tokens", "top_k")
    if len({str([f.ranking.settings.get(key) for key in scoring]) for f in found}) > 1:
        lines.append(f"The families were scored with different {', '.join(scoring)}.")
    return lines


# ---------------------------------------------------------------- showing


def cells(row: PooledQuality) -> list[str]:
    """Pearson, Spearman, Regret@1 and Hit@3 as the paper prints them."""
    hits = f"{row.hits:.0f}" if row.hits == round(row.hits) else f"{row.hits:.2f}"
    mean = row.mean
    return [
        shown(mean.pearson, 3), shown(mean.spearman, 3), shown(mean.regret_at_1, 2),
        f"{hits}/{row.pairs}" if row.pairs else DASH,
    ]  # fmt: skip


def family_rows(result: RankingSummary, score: str) -> list[list[str]]:
    """A score's row for each family, and overall (NEX Tab. 2)."""
    rows = []
    for family in result.families:
        row = next((r for r in family.mean if r.score == score), None)
        values = cells(row) if row is not None else [DASH] * 4
        rows.append([family.name, str(len(family.benchmarks)), *values])
    overall = next(r for r in result.overall if r.score == score)
    return [*rows, ["Overall", str(overall.asked), *cells(overall)]]


def score_rows(result: RankingSummary) -> list[list[str]]:
    """Every score over all pairs, and over families (NEX Tab. 3)."""
    by_family = {r.score: r.mean for r in result.over_families}
    return [
        [r.score, *cells(r), shown(by_family[r.score].pearson, 3),
         shown(by_family[r.score].regret_at_1, 2)]
        for r in result.overall
    ]  # fmt: skip


FAMILY_HEADINGS = ("family", "benchmarks", "Pearson r", "Spearman", "Regret@1 (pp)", "Hit@3")
SCORE_HEADINGS = ("score", "Pearson r", "Spearman", "Regret@1 (pp)", "Hit@3",
                  "r over families", "regret")  # fmt: skip


def advised_rows(result: RankingSummary) -> list[list[str]]:
    """What each family's ranking recommends, and how far off its estimates are."""
    rows = []
    for f in result.families:
        known = DASH
        if f.known is not None:
            verdict = "common errors" if f.known.misled else "no common errors"
            known = f"{f.known.right:.3g} of {f.known.asked}: {verdict}"
        rows.append(
            [f.name, f.recommended or DASH, shown(f.estimate, 3), shown(f.accuracy, 3),
             shown(f.regret, 1), shown(f.estimate_error, 3), known]
        )  # fmt: skip
    return rows


ADVISED_HEADINGS = ("family", "recommended", "estimate", "accuracy", "regret (pp)",
                    "error of the estimates", "known answers")  # fmt: skip


def filled(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    found = table(*headings)
    for row in rows:
        found.add_row(*map(escape, row))
    return found


def show(result: RankingSummary) -> None:
    """Print a summary: NEX by family, then every score over all pairs."""
    announce(result.already, "This summary")
    warn(result.warnings)
    terminal, pairs = console(), sum(len(f.benchmarks) for f in result.families)
    if any(row.score == "nex" for row in result.overall):
        say("NEX by family, each a mean over its benchmarks:")
        terminal.print(filled(FAMILY_HEADINGS, family_rows(result, "nex")))
    count = times(pairs, "pair")
    say(f"\nEvery score, mean over {count} of a family and a benchmark, and over families:")
    terminal.print(filled(SCORE_HEADINGS, score_rows(result)))
    say("\nWhat each ranking recommends, and its estimated accuracies against the true ones:")
    terminal.print(filled(ADVISED_HEADINGS, advised_rows(result)))
    if str(result.out) != ".":
        say(f"Every score by family and benchmark: {result.out}/summary.md and summary.json")


def in_markdown(result: RankingSummary) -> str:
    """Both tables, every score by family, and every score by benchmark."""
    lines = ["# How well each score chooses", "", *result.warnings, ""]

    def add(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines.extend(
            [f"## {title}", "", *map(line, (headings, ["---"] * len(headings), *rows)), ""]
        )

    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"

    add("What each ranking recommends", ADVISED_HEADINGS, advised_rows(result))
    add("Every score, mean over pairs of a family and a benchmark", SCORE_HEADINGS,
        score_rows(result))  # fmt: skip
    for row in result.overall:
        add(f"{row.score} by family", FAMILY_HEADINGS, family_rows(result, row.score))
    rows = [
        [f.name, name, score, *cells(pool([{score: q}])[0])]
        for f in result.families
        for name, quality in f.benchmarks.items()
        for score, q in quality.items()
    ]
    add("By benchmark", ("family", "benchmark", "score", *FAMILY_HEADINGS[2:]), rows)
    return "\n".join(lines)
