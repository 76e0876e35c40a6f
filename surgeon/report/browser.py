"""`report.html` of a reading: any response of a ranking, opened offline.

The page holds a line for every response and loads a response itself from a script beside it,
`data/CANDIDATE/NUMBER.js`: a page that was opened from disk can't read other files. Its script
draws foreign text as text nodes, and the content security policy lets it load scripts from beside
the page only.
"""

# Shape letters: R rows of a response.

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from surgeon.lineage import write_text
from surgeon.report.page import filled
from surgeon.report.words import visible

DATA = "data"
VERDICTS = {
    "effective": "its X rows use what its E rows introduced, more than the median cycle's do",
    "redundant": "they use less of it, or novelty doesn't fall",
    "even": "the median cycle itself: neither",
    "weak": "it fails the strength gate or introduces nothing: not counted",
}
"""Verdict on a cycle -> what it means."""


class BrowsedCycle(NamedTuple):
    """One E -> X cycle: rows `first` to `turn` explore, `turn` to `end` exploit (exclusive)."""

    first: int
    turn: int
    end: int
    introduced: int
    """Neurons (NEX Eq. 2)."""
    slope_explore: float
    """Median novelty slope."""
    slope_exploit: float
    reuse_share: float
    """Eq. 5."""
    progress: float
    """Eq. 6."""
    consolidation: float
    """Eq. 7."""
    gate: bool
    """It passes the strength gate (Eq. 8) and introduces neurons."""
    verdict: str
    """A key of `VERDICTS`."""


class BrowsedResponse(NamedTuple):
    """One response with what NEX reads in it."""

    candidate: str
    prompt_id: str
    sample: int
    finished: bool
    answer: str | None
    score: float
    """Good-Mass Fraction."""
    tokens_R: Sequence[int]
    text_R: Sequence[str]
    slope_R: Sequence[float]
    """Novelty slope (Eq. 1)."""
    z_R: Sequence[float]
    """Without its trend, standardised (Eq. 20)."""
    entropy_R: Sequence[float]
    """Mean next-token entropy, nats."""
    explore_R: Sequence[bool]
    cycles: Sequence[BrowsedCycle] | None
    """None where they aren't known."""

    def row(self) -> dict[str, object]:
        """A line of JSON."""
        cycles = None if self.cycles is None else [c._asdict() for c in self.cycles]
        return {**self._asdict(), "cycles": cycles}


class CandidateLine(NamedTuple):
    """A row of the table of candidates; each cell as shown, and as sorted."""

    name: str
    cells: Sequence[tuple[str, float | None]]


class AgreementLine(NamedTuple):
    """A row of the table of agreement."""

    annotator: str
    cells: Sequence[str]


class BrowserPage(NamedTuple):
    """What the page says above its responses."""

    headline: str
    leads: Sequence[str]
    warnings: Sequence[str]
    facts: Sequence[tuple[str, str, str]]
    columns: Sequence[tuple[str, str]]
    """(heading, unit) of the table of candidates."""
    candidates: Sequence[CandidateLine]
    agreement_columns: Sequence[str]
    agreement: Sequence[AgreementLine]
    agreement_notes: Sequence[str]


class Labelled(NamedTuple):
    """What annotators said of rows `start` to `end` (exclusive) of a response."""

    start: int
    end: int
    said: Mapping[str, str]
    """Annotator -> E or X."""


def write_response(directory: Path, candidate: int, number: int, response: BrowsedResponse) -> None:
    """Write the script that brings one response to the page."""
    file = directory / DATA / f"{candidate}" / f"{number}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    cycles = None if response.cycles is None else [list(cycle) for cycle in response.cycles]
    content = {
        "text": [visible(text) for text in response.text_R],
        "tokens": list(response.tokens_R),
        "slope": [float(f"{s:.4g}") for s in response.slope_R],
        "z": [float(f"{z:.4g}") for z in response.z_R],
        "entropy": [float(f"{h:.4g}") for h in response.entropy_R],
        "phase": "".join("E" if explore else "X" for explore in response.explore_R),
        "cycles": cycles,
    }
    key = json.dumps(f"{candidate}/{number}")
    # Whether it is whole is known from the line that is written after it.
    file.write_text(f"surgeonTake({key},{_json(content)});\n", encoding="utf-8")


class Shelf:
    """The lines of all responses, gathered one by one for the page."""

    def __init__(self, candidates: Sequence[str], prompts: Mapping[str, str]):
        self.candidates, self.prompts = list(candidates), dict(prompts)
        """Prompt id -> its text, empty where it isn't known."""
        self._place = {prompt_id: n for n, prompt_id in enumerate(self.prompts)}
        self.lines: list[list[Any]] = []
        self.labels: dict[str, list[Any]] = {}
        self._count: dict[int, int] = {}

    def add(self, candidate: int, response: BrowsedResponse, labels: Sequence[Labelled]) -> None:
        """Add a response, in the order in which the candidate's were written."""
        number = self._count.get(candidate, 0)
        self._count[candidate] = number + 1
        prompt = self._place.setdefault(response.prompt_id, len(self._place))
        self.prompts.setdefault(response.prompt_id, "")
        explore = list(response.explore_R)
        turns = sum(e and not before for e, before in zip(explore, [False, *explore], strict=False))
        verdicts = [cycle.verdict for cycle in response.cycles or ()]
        counts = [verdicts.count(name) for name in VERDICTS]
        self.lines.append([
            candidate, number, prompt, response.sample, sum(response.tokens_R), len(explore),
            sum(explore), turns, None if response.cycles is None else counts,
            int(response.finished), float(f"{response.score:.4g}"),
            None if response.answer is None else visible(response.answer)[:200],
        ])  # fmt: skip
        if labels:
            self.labels[f"{candidate}/{number}"] = [[b.start, b.end, b.said] for b in labels]

    def content(self) -> dict[str, object]:
        """What the page's script reads."""
        return {
            "candidates": list(map(visible, self.candidates)),
            "prompts": [[visible(name), visible(text)] for name, text in self.prompts.items()],
            "responses": self.lines,
            "labels": self.labels,
            "verdicts": VERDICTS,
        }


def write_browser(directory: Path, page: BrowserPage, shelf: Shelf) -> Path:
    """Write report.html, whose responses were written by `write_response` beside it."""
    path = directory / "report.html"
    text = filled(
        "browser.html.j2", "page.css", "browser.css",
        scripts=("page.js", "shelf.js", "browser.js"), beside=True,
        page=page, responses=len(shelf.lines), verdicts=VERDICTS,
        # A data block: `<` would end it, or begin a comment in it.
        index=Markup(_json(shelf.content()).replace("<", "\\u003c")),
    )  # fmt: skip
    write_text(path, text)
    return path


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)
