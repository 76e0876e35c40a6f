"""`report.html` of a pick: every rule beside the others, and every prompt's answers, offline.

The page holds a line for every prompt of every candidate and loads its answers from a script beside
it, `data/CANDIDATE/NUMBER.js`, as the page of a reading does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon.lineage import write_text
from surgeon.report import figures
from surgeon.report.browser import DATA
from surgeon.report.charts import Figure
from surgeon.report.figures import Dot
from surgeon.report.page import filled
from surgeon.report.words import DASH, signed, visible

LONGEST_ANSWER = 200
"""Characters that are shown of what was read out of an answer."""


class PickNumber(NamedTuple):
    """A number with its interval, as it is shown: in percent, or tokens."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        return self.value is not None and not math.isnan(self.value)


class ShownRule(NamedTuple):
    """What one rule's picks are worth."""

    name: str
    what: str
    """The answer it takes, in a few words."""
    quantities: Sequence[PickNumber]
    """In the order of `PickPage.columns`."""


class CandidateRow(NamedTuple):
    """One candidate's numbers, in the order of `PickPage.candidate_columns`."""

    name: str
    quantities: Sequence[PickNumber]


class PickColumn(NamedTuple):
    """A heading, its unit, and how its numbers are written."""

    heading: str
    unit: str
    decimals: int
    charted: bool = False


class PickPage(NamedTuple):
    """What the page says above the prompts."""

    headline: str
    leads: Sequence[str]
    warnings: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    columns: Sequence[PickColumn]
    rules: Sequence[ShownRule]
    """That which picks first; then, with answers, random and oracle."""
    candidate_columns: Sequence[PickColumn]
    candidates: Sequence[CandidateRow]
    notes: Sequence[str]


class PickedAnswer(NamedTuple):
    """One of the answers to a prompt."""

    sample: int
    tokens: int
    right: bool | None
    """None where that isn't known."""
    finished: bool
    answer: str | None
    """What was read out of it."""
    values: Sequence[float | None]
    """Under every rule."""
    text: str | None
    """None where it wasn't kept."""


class PickedPrompt(NamedTuple):
    """The answers of one candidate to one prompt, and which of them each rule picks."""

    candidate: int
    prompt_id: str
    answers: Sequence[PickedAnswer]
    picks: Sequence[int]
    """Place of each rule's pick among the answers."""


class PickShelf:
    """The lines of all prompts, gathered one by one; each one's answers are written at once."""

    def __init__(
        self, directory: Path, candidates: Sequence[str], rules: Sequence[str],
        prompts: Mapping[str, str],
    ):  # fmt: skip
        self.directory, self.candidates, self.rules = directory, list(candidates), list(rules)
        self.prompts = dict(prompts)
        """Prompt id -> its text, empty where it isn't known."""
        self._place = {prompt_id: n for n, prompt_id in enumerate(self.prompts)}
        self.lines: list[list[Any]] = []
        self._count: dict[int, int] = {}

    def add(self, prompt: PickedPrompt) -> None:
        """Write the answers to a prompt, and keep its line."""
        number = self._count.get(prompt.candidate, 0)
        self._count[prompt.candidate] = number + 1
        place = self._place.setdefault(prompt.prompt_id, len(self._place))
        self.prompts.setdefault(prompt.prompt_id, "")
        rights = [answer.right for answer in prompt.answers]
        known = [right for right in rights if right is not None]
        said = {answer.answer for answer in prompt.answers}
        self.lines.append([
            prompt.candidate, number, place, len(prompt.answers), sum(known) if known else None,
            "".join("-" if rights[n] is None else str(int(bool(rights[n]))) for n in prompt.picks),
            len(said), [prompt.answers[n].sample for n in prompt.picks],
        ])  # fmt: skip
        answers = [
            [a.sample, a.tokens, a.right, a.finished, _cut(a.answer), list(map(_short, a.values)),
             None if a.text is None else visible(a.text)]
            for a in prompt.answers
        ]  # fmt: skip
        key = f"{prompt.candidate}/{number}"
        file = self.directory / DATA / f"{key}.js"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = _json({"answers": answers, "picks": list(prompt.picks)})
        file.write_text(f"surgeonTake({json.dumps(key)},{content});\n", encoding="utf-8")

    def content(self) -> dict[str, object]:
        """What the page's script reads."""
        return {
            "candidates": list(map(visible, self.candidates)),
            "rules": list(map(visible, self.rules)),
            "prompts": [[visible(name), visible(text)] for name, text in self.prompts.items()],
            "lines": self.lines,
        }


def write_picked(page: PickPage, shelf: PickShelf) -> Path:
    """Write report.html over the answers that lie beside it."""
    path = shelf.directory / "report.html"
    text = filled(
        "picked.html.j2", "page.css", "browser.css", "picked.css",
        scripts=("page.js", "shelf.js", "picked.js"), beside=True,
        page=page, rules=shelf.rules, figures=charts(page), lines=len(shelf.lines),
        judged=any(line[4] is not None for line in shelf.lines), written=written, ends=ends,
        # A data block: `<` would end it, or begin a comment in it.
        index=Markup(_json(shelf.content()).replace("<", "\\u003c")),
    )  # fmt: skip
    write_text(path, text)
    return path


def charts(page: PickPage) -> list[Figure]:
    """A chart of every column that has one: a rule a row, with its interval."""
    found = []
    for n, column in enumerate(page.columns):
        rows = [(place, rule, rule.quantities[n]) for place, rule in enumerate(page.rules)]
        dots = [
            Dot(place, q.value or 0.0, float(place), q.low, q.high,
                f"{rule.name}: {written(q, column)}{ends(q, column, before=' ')}", place == 0)
            for place, rule, q in rows if q.known
        ]  # fmt: skip
        if not column.charted or len(dots) < 2:
            continue
        names = [rule.name for rule in page.rules]
        label = f"{column.heading} by each rule, {column.unit}"
        chart = figures.rank_chart(dots, names, label=label, favourite=None, most_accurate=None)
        found.append(Figure(column.heading, column.unit, "", chart))
    return found


def written(quantity: PickNumber, column: PickColumn) -> str:
    """A number as its column writes it; a dash without one."""
    return signed(quantity.value, column.decimals) if quantity.known else DASH


def ends(quantity: PickNumber, column: PickColumn, before: str = "") -> str:
    """Its interval in words, empty without one."""
    if not quantity.known or quantity.low is None or quantity.high is None:
        return ""
    low, high = (signed(end, column.decimals) for end in (quantity.low, quantity.high))
    return f"{before}{low} to {high}"


def _short(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.7g}")


def _cut(answer: str | None) -> str | None:
    return None if answer is None else visible(answer)[:LONGEST_ANSWER]


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
