"""The HTML report: it stands alone, escapes what it is given, and draws what is missing as dashes.

All rankings and traces here are made up; they have the shape that `surgeon rank` writes.
"""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgeon import artifact, report
from surgeon.errors import BadInput
from surgeon.rank.scores import SCORES, measures
from surgeon.ranking import Ranking
from surgeon.report import TraceReading, figures, write_report
from surgeon.report.figures import axis
from surgeon.report.reading import ROWS_SHOWN, Band, bands
from surgeon.report.words import DASH, grouped, signed, visible
from surgeon.truth import EvaluatedTask, Evaluation

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr", "col", "source"}
LOADS = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A page's elements and text, with the tags that were left open or closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[tuple[frozenset[str], str]] = []
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> never closed" for tag, _ in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop()[0] != tag:
            self.faults.append(f"</{tag}> out of place at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        names = {tag for tag, _ in self.open} | {f".{k}" for _, c in self.open for k in c.split()}
        self.words.append((frozenset(names), data))

    def text(self, inside: str = "body") -> str:
        """All text within elements of a tag or a .class, without scripts."""
        return "".join(
            data for path, data in self.words if inside in path and not path & {"script"}
        )

    def lines(self, inside: str) -> list[str]:
        return [line.strip() for line in self.text(inside).splitlines() if line.strip()]

    def all(self, tag: str, kind: str = "") -> Iterator[dict[str, str]]:
        """Attributes of the elements of a tag, and of a class where one is given."""
        for name, attributes in self.elements:
            if name == tag and (not kind or kind in attributes.get("class", "").split()):
                yield attributes

    def count(self, tag: str, kind: str = "") -> int:
        return len(list(self.all(tag, kind)))


def checked(page: str) -> Page:
    """Parse `page` and require what every report must have: good form and nothing to fetch."""
    parsed = Page(page)
    assert parsed.faults == []
    for tag, attributes in parsed.elements:
        assert tag not in {"iframe", "object", "embed", "img", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has an inline handler {name}"
            if name in LOADS:
                assert value.startswith("#") or value == "data:,", f"{tag} {name}={value}"
    assert parsed.count("script") == 1
    assert not re.search(r"url\(|@import", parsed.text("style"))
    policy = [a["content"] for a in parsed.all("meta") if "http-equiv" in a]
    assert len(policy) == 1 and policy[0].startswith("default-src 'none'")
    numeric = ("points", "d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
    for _, attributes in parsed.elements:
        for name in numeric:
            assert not re.search("nan|inf", attributes.get(name, ""))
    return parsed


def typed(ranking: dict[str, Any]) -> Ranking:
    """A ranking as it comes back from ranking.json."""
    return artifact.parse(Ranking, json.loads(json.dumps(ranking)), Path("out/ranking.json"))


def render(ranking: dict[str, Any], *others: Any, **named: Any) -> str:
    return report.render(typed(ranking), measures(SCORES), *others, **named)


# Made-up results, shaped like a family whose middle is best (an inverted U).

CURVE = (
    (0.0, 0.20, 50, 0.00, 1.1, 0.800), (0.2, 0.27, 53, 0.00, 1.2, 0.812),
    (0.3, 0.31, 54, 0.00, 1.25, 0.836), (0.4, 0.38, 56, 0.00, 1.3, 0.861),
    (0.5, 0.47, 62, 0.00, 1.3, 0.794), (0.55, 0.51, 73, 0.00, 1.5, 0.870),
    (0.6, 0.55, 88, 0.00, 1.7, 0.931), (0.65, 0.66, 104, 0.02, 2.0, 0.955),
    (0.7, 0.75, 122, 0.04, 2.3, 0.9703), (0.75, 0.77, 149, 0.05, 2.5, 0.9741),
    (0.8, 0.73, 172, 0.09, 2.8, 0.9758), (0.85, 0.67, 194, 0.20, 3.1, 0.9902),
    (0.9, 0.55, 246, 0.35, 3.3, 0.9836), (1.0, 0.37, 290, 0.58, 4.1, 0.9811),
)  # fmt: skip


def candidate(
    method: str | None, ratio: float | None, row: tuple[float, ...], shift: float = 0.0
) -> dict[str, Any]:
    _, accuracy, length, cut, segments, nex = row
    accuracy, nex = accuracy + shift, min(nex + shift / 9, 0.9999)
    name = f"{method}-{ratio:.2f}" if method else f"run-{length:.0f}"
    scores = {
        "nex": nex,
        "length": length * (1 + shift),
        "hes": 0.31 * length + 4 * shift,
        "entropy_top20": 0.12 + length / 1800,
        "logprob": -0.34 + length / 2400,
        "explore_segments": segments,
        "agreement": 0.25 + 0.8 * accuracy,
        "finished": 1 - cut,
    }
    width = {"nex": 0.02 * (1.02 - nex) + 0.003, "agreement": 0.04, "finished": 0.02}
    return {
        "checkpoint": f"runs/family/family.json#{name}",
        "name": name,
        "ratio": ratio,
        "method": method,
        "scores": scores,
        "interval": {
            s: [v - width.get(s, abs(v) * 0.06), v + width.get(s, abs(v) * 0.07)]
            for s, v in scores.items()
        },
        "responses": 300,
        "truncated": round(300 * cut),
        "tokens": round(300 * length),
        "cycles": segments,
        "gated_cycles": 0.8 * segments - 0.3,
        "saturation": -math.log10(1 - nex),
        "reward": 0.4 * nex,
        "bad": 0.5 - 0.4 * nex,
        "without_evidence": round(300 * max(0.0, 0.4 - segments / 8)),
        "kept_mass": 0.83 + 0.02 * shift + segments / 80,
        "digest": "sha256:" + f"{round(1e6 * length + 1e4 * shift):016x}" * 4,
        "accuracy": accuracy,
    }


def ranking(candidates: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    candidates = sorted(candidates, key=lambda c: -(c["scores"]["nex"] or 0))
    for rank, one in enumerate(candidates, start=1):
        one["rank"] = rank
        one["not_told_apart_from_best"] = rank <= max(1, len(candidates) // 6)
    best = candidates[0]["name"]
    names = candidates[0]["scores"]
    by = {s: max(candidates, key=lambda c, s=s: c["scores"][s])["name"] for s in names}
    return {
        "mini_set": {"path": "builtin/mini.jsonl", "prompts": 100, "digest": "sha256:" + "3f" * 32},
        "settings": {
            "samples": 3, "temperature": 0.7, "top_p": 0.9, "max_tokens": 384, "seed": 0,
            "row_tokens": 4, "top_k": 9, "preset": "reference", "credit": "introduced",
            "thinking": None, "keep_activations": False, "mini_set": "builtin/mini.jsonl",
        },
        "select": "nex",
        "favourites": by,
        "warnings": [],
        "headline": [f"{best} ranks first of {len(candidates)} candidates by NEX."],
        "candidates": candidates,
        **changes,
    }  # fmt: skip


def family(methods: tuple[str, ...] = ("slerp",)) -> dict[str, Any]:
    found = [candidate(m, row[0], row, 0.012 * i) for i, m in enumerate(methods) for row in CURVE]
    made = ranking(found)
    by = made["favourites"]
    return {
        **made,
        "headline": [
            f"Agreement prefers {by['agreement']}; NEX prefers {by['nex']}.",
            f"By NEX the best of {len(found)} candidates is {by['nex']} (0.990, 95% interval 0.987 "
            "to 0.993). slerp-0.90 can't be told apart from it.",
        ],
        "warnings": [
            "NEX is above 0.97 for half of the candidates: among those it can't rank. Look at "
            "agreement as well.",
            "12% of the responses carry no evidence: they have fewer than two cycles. Rows of 4 "
            "tokens fit the traces; longer rows don't.",
        ],
        "selection_quality": {
            "nex": {"pearson": 0.741, "spearman": 0.68, "regret_at_1": 10.0, "hit_at_3": False},
            "agreement": {"pearson": 0.994, "spearman": 0.98, "regret_at_1": 0.0, "hit_at_3": True},
            "length": {"pearson": 0.481, "spearman": 0.59, "regret_at_1": 39.5, "hit_at_3": False},
            "hes": {"pearson": 0.522, "spearman": 0.59, "regret_at_1": 39.5, "hit_at_3": False},
            "logprob": {"pearson": 0.64, "spearman": 0.6, "regret_at_1": 39.5, "hit_at_3": False},
            "entropy_top20": {"pearson": 0.4, "spearman": 0.5, "regret_at_1": 9.5, "hit_at_3": 0.0},
            "explore_segments": {
                "pearson": None, "spearman": None, "regret_at_1": 39.5, "hit_at_3": None,
            },
            "finished": {"pearson": -0.2, "spearman": -0.1, "regret_at_1": 57.0, "hit_at_3": None},
        },
    }  # fmt: skip


def unplaced(n: int) -> dict[str, Any]:
    """Candidates without a ratio, all different."""
    rows = [CURVE[i % len(CURVE)] for i in range(n)]
    found = []
    for i, row in enumerate(rows):
        one = candidate(None, None, row, i / (9 * n))
        one["name"] = f"org/checkpoint-{1000 + 7 * i}"
        one["checkpoint"] = one["name"]
        found.append(one)
    return ranking(found)


def trace_read(n_steps: int = 16, row_tokens: int = 4) -> TraceReading:
    words = ["<think>", "\n", "Start", " 3", "."]
    for i in range(n_steps):
        a = (3 + 4 * i) % 10
        words += [
            "\n\n",
            "Next",
            f" {'ABCDEFGH'[i % 8]}",
            " +4",
            ":",
            f" {a}",
            " =",
            f" {(a + 4) % 10}",
        ]
        if i % 5 == 2:
            words += ["\n\n", "Wait", ",", " let", " me", " check", " A", " +4", ":", f" {a}", " =",
                      f" {(a + 4) % 10}", ",", " ok", "."]  # fmt: skip
    words += ["\n", "</think>", "\n\n", "Answer", ":", " 7", "<|im_end|>"]
    n_rows = math.ceil(len(words) / row_tokens)
    slope = [
        9 / (1 + 0.5 * r) + (1.6 if (r // 6) % 3 == 0 else 0.35) * (1 + 0.3 * math.sin(2.1 * r))
        for r in range(n_rows)
    ]
    z = [2.2 * math.sin(r / 2.9 + 1.2) + 0.4 * math.cos(5 * r) for r in range(n_rows)]
    return TraceReading(
        candidate="slerp-0.85", prompt_id="mini-017", sample=1,
        prompt="Start 3. A +4; B *7; C -2; D +4; E *3; F +1; G -5; H *2. Find x.",
        tokens=words, row_tokens=row_tokens, slope_R=slope, z_R=z,
        explore_R=[v > 0.3 for v in z], cycles=4, score=0.9871, finish_reason="stop",
    )  # fmt: skip


TRUTH = Evaluation(
    task=EvaluatedTask(path="builtin/test.jsonl", problems=400, digest="sha256:00"),
    settings={"samples": 1},
    warnings=(),
    candidates=(),
)
LINEAGE = {
    "verb": "rank",
    "inputs": {"slerp-0.00": "sha256:" + "ab" * 32, "traces": "sha256:" + "cd" * 32},
    "seed": 0,
    "versions": {"surgeon": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
}  # fmt: skip


def cells(parsed: Page) -> list[list[dict[str, str]]]:
    """Attributes of the number cells of the candidates' table, row by row."""
    found: list[list[dict[str, str]]] = []
    for tag, attributes in parsed.elements:
        if tag == "table" and "sortable" not in attributes.get("class", ""):
            break
        if tag == "tr" and "data-c" in attributes:
            found.append([])
        elif tag == "td" and found:
            found[-1].append(attributes)
        elif tag == "table" and found:
            break
    return found


@pytest.mark.parametrize("n", [1, 2, 40, 41, 200])
def test_candidates_without_a_ratio_are_drawn_by_rank(n: int):
    page = render(unplaced(n))
    parsed = checked(page)
    assert len(page) < 3_000_000
    assert len(cells(parsed)) == n
    assert parsed.count("figure", "panel") > len(SCORES)
    assert parsed.count("polyline", "line") == 0
    assert "one row per candidate" in parsed.text()


def test_each_merge_method_is_a_line_in_every_panel():
    parsed = checked(render(family(("slerp", "linear")), trace_read(), TRUTH, LINEAGE))
    labels = [a.get("aria-label", "") for a in parsed.all("svg")]
    panels = [label for label in labels if "against the merge ratio" in label]
    assert len(panels) == 9 + 9  # accuracy and eight scores; nine pieces of evidence
    assert parsed.count("polyline", "line") == 2 * len(panels)
    assert {"linear", "slerp"} <= set(parsed.lines(".legend"))
    # The most accurate candidate is marked in accuracy's panel and in every score's.
    assert parsed.count("path", "truth") == 9 + 1  # and in the legend
    assert len([label for label in labels if label.startswith("Accuracy in % against")]) == 8
    assert parsed.count("line", "best-line") == 9 + 8 + 1


def test_checkpoints_of_training_runs_are_drawn_against_the_step():
    found = [
        {**candidate(None, None, row, 0.01 * m), "name": f"{run}-{100 * n}", "run": f"/x/{run}",
         "step": 100 * n}
        for m, run in enumerate(("warm", "cold"))
        for n, row in enumerate(CURVE[:6], 1)
    ]  # fmt: skip
    page = render(ranking([*found, candidate(None, None, CURVE[-1])]))
    parsed = checked(page)
    labels = [a.get("aria-label", "") for a in parsed.all("svg")]
    panels = [label for label in labels if "against the training step" in label]
    assert len(panels) == 9 + 9 and not [x for x in labels if "merge ratio" in x]
    assert parsed.count("polyline", "line") == 2 * len(panels)
    assert {"warm", "cold"} <= set(parsed.lines(".legend"))
    assert "Candidates without a training step" in parsed.text()


def test_an_endpoint_without_a_method_belongs_to_every_line():
    found = [candidate(m, row[0], row) for m in ("slerp", "linear") for row in CURVE[1:-1]]
    found.append({**candidate("slerp", 0.0, CURVE[0]), "name": "org/instruct"})
    parsed = checked(render(ranking(found)))
    longest = max((a["points"] for a in parsed.all("polyline", "line")), key=len)
    assert longest.count(",") == len(CURVE) - 1
    assert parsed.lines(".legend").count("linear") == 2  # scores and evidence


def test_the_table_shows_scores_intervals_and_favourites():
    ranking = family()
    parsed = checked(render(ranking))
    first = cells(parsed)[0]
    best = ranking["candidates"][0]
    assert float(first[2]["data-v"]) == pytest.approx(best["scores"]["nex"])
    assert [("favourite" in cell["class"]) for cell in first[1:4]] == [False, True, False]
    low, high = best["interval"]["nex"]
    assert f"{low:.4f}{DASH}{high:.4f}" in parsed.text("td")
    marked = sum("favourite" in cell.get("class", "") for row in cells(parsed) for cell in row)
    assert marked == len(ranking["favourites"]) + 1  # and the highest accuracy


def test_missing_numbers_are_dashes():
    ranking = family()
    whole = cells(checked(render(ranking)))
    for one in ranking["candidates"][2:]:
        one["scores"]["agreement"] = one["saturation"] = one["reward"] = None
        one["interval"]["agreement"] = [None, None]
    one["accuracy"] = one["ratio"] = None
    parsed = checked(render(ranking, trace_read()))
    empty = [sum(c["data-v"] == "" for c in row) for row in cells(parsed)]
    assert [sum(c["data-v"] == "" for c in row) for row in whole] == [0] * len(whole)
    assert empty == [0, 0] + [1] * (len(whole) - 3) + [2]
    assert not {"nan", "None"} & set(re.findall(r"\w+", parsed.text("table")))


def test_a_score_nobody_has_is_an_empty_panel():
    ranking = family()
    for one in ranking["candidates"]:
        one["scores"]["agreement"], one["interval"]["agreement"] = None, [None, None]
    ranking["favourites"]["agreement"] = None
    assert "no values" in checked(render(ranking)).text("figcaption")


def test_a_score_from_outside_follows_under_its_own_name():
    ranking = family()
    for n, one in enumerate(ranking["candidates"]):
        one["scores"]["mine:odd"], one["interval"]["mine:odd"] = float(n), [None, None]
    ranking["favourites"]["mine:odd"] = ranking["candidates"][-1]["name"]
    assert "mine:odd" in checked(render(ranking)).text("thead")


def test_a_ranking_of_an_older_version_is_drawn_the_same():
    """Version 1 files without a format, as they were written before there was one."""
    ranking = family()
    assert "format" not in ranking and "panels" not in ranking
    assert render(ranking) == render({**ranking, "format": 1, "panels": []})
    with pytest.raises(BadInput, match="found format 3, expected 2"):
        render({**ranking, "format": 3})


def test_an_empty_response_is_said_to_be_empty():
    empty = trace_read()._replace(tokens=[], slope_R=[], z_R=[], explore_R=[])
    assert "The response is empty." in checked(render(unplaced(1), empty)).text()


def test_the_headline_leads_the_page():
    ranking = family()
    parsed = checked(render(ranking))
    assert parsed.text("h1") == ranking["headline"][0]
    assert parsed.lines(".lead") == ranking["headline"][1:]


def test_warnings_are_shown_and_their_box_is_absent_without_any():
    ranking = family()
    parsed = checked(render(ranking))
    assert parsed.lines(".warnings") == ["Warnings", *ranking["warnings"]]
    assert checked(render({**ranking, "warnings": []})).count("section", "warnings") == 0


def test_nothing_is_said_of_accuracy_where_none_is_known():
    ranking = family()
    for one in ranking["candidates"]:
        one["accuracy"] = None
    ranking.pop("selection_quality")
    assert "accuracy" not in checked(render(ranking)).text("main").lower()


def test_selection_quality_marks_the_best_of_each_column():
    parsed = checked(render(family(), None, TRUTH))
    table = "".join(parsed.text(".quality").split())
    assert "Agreement0.994(best)0.980(best)0.0(best)yes(best)" in table
    assert f"Esegments{DASH}{DASH}39.5{DASH}" in table
    assert "test.jsonl, 400 problems, one sample each" in parsed.text("main")


def test_evidence_is_said_in_words():
    ranking = family()
    text = " ".join(checked(render(ranking)).text("main").split())
    assert "1.1 to 4.1 cycles per response." in text
    assert "The 9 largest activations of each token keep 84.4 to 88.1%" in text
    assert "every candidate has some." in text and "A row is 4 tokens." in text
    for one in ranking["candidates"][:2]:
        one["without_evidence"] = one["responses"]
    assert "2 of 14 candidates have none at all." in checked(render(ranking)).text("main")


def test_the_command_is_the_one_that_was_recorded(tmp_path: Path):
    path = write_report(tmp_path, typed(family()), measures(SCORES), trace_read(), TRUTH, LINEAGE)
    assert path == tmp_path / "report.html"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert Page(path.read_text()).count("pre", "command") == 0
    recorded = render(family(), lineage={**LINEAGE, "command": "surgeon rank 'a b'"})
    assert Page(recorded).text("code") == "surgeon rank 'a b'"


# One trace, read


def test_bands_are_the_runs_of_equal_phase():
    assert bands([True, True, False], 4) == [
        Band(0, 2, "e", "E", "exploring"),
        Band(2, 3, "x", "X", "exploiting"),
        Band(3, 4, "n", "", "no phase"),
    ]
    assert bands([], 0) == []


def test_rows_of_text_carry_their_number_phase_and_novelty():
    reading = trace_read()._replace(
        tokens=["a", "\n\n", "\nb", " c", "<d>"], row_tokens=2,
        slope_R=[1.5, 0.25], z_R=[2.0, -1.0], explore_R=[True, False],
    )  # fmt: skip
    parsed = checked(render(unplaced(1), reading))
    rows = list(parsed.all("span", "row"))
    assert [row["class"] for row in rows] == ["row e", "row x", "row n"]
    assert rows[0]["title"] == "row 1, exploring: s = 1.50, z = 2.00"
    assert rows[1]["title"] == "row 2, exploiting: s = 0.25, z = −1.00"
    assert rows[2]["title"] == f"row 3, no phase: s = {DASH}, z = {DASH}"
    assert parsed.text(".trace-text") == "a\n\n\nb c<d>"
    numbers = [a["data-n"] for a in parsed.all("i") if "data-n" in a]
    assert numbers == ["E\N{NO-BREAK SPACE}1", "X\N{NO-BREAK SPACE}2", "3"]
    shades = [(a["x"], a["width"]) for a in parsed.all("rect", "e") if "shade" in a["class"]]
    assert shades == [("0", "1")] * 2  # novelty and z


def test_a_long_trace_shows_its_beginning_and_end_and_says_so():
    long = trace_read(3600, row_tokens=4)
    n_rows = math.ceil(len(long.tokens) / 4)
    assert len(long.tokens) > 32_000 and n_rows > sum(ROWS_SHOWN)
    page = render(family(), long)
    parsed = checked(page)
    assert len(page) < 3_000_000
    shown = [int(a["data-r"]) for a in parsed.all("span", "row")]
    assert shown == [*range(ROWS_SHOWN[0]), *range(n_rows - ROWS_SHOWN[1], n_rows)]
    said = f"Rows {ROWS_SHOWN[0] + 1:,} to {n_rows - ROWS_SHOWN[1]:,} of {n_rows:,} are not shown"
    assert said in parsed.text(".omitted")
    wide = trace_read()._replace(tokens=["x" * 10**6] * 3, row_tokens=1, prompt="y" * 10**6)
    assert len(render(unplaced(1), wide)) < 300_000


# Foreign text

HOSTILE = st.one_of(
    st.sampled_from([
        "</script><script>alert(1)</script>", "<!--", "]]>", "\"><img src=x onerror=alert(1)>",
        "' onmouseover='x", "{{ 7 * 7 }}", "{0.__class__}", "&lt;&amp;", "<svg/onload=x>",
        "</title><b>", "/very" * 80 + "/long/path", "\x00\x1b[31m\r\n", "\ud800", "\u202egnp.x",
        "https://example.org/x.js", "javascript:alert(1)",
    ]),
    st.text(st.characters(), max_size=30),
)  # fmt: skip


def shape(parsed: Page) -> list[tuple[str, str]]:
    return [(tag, a.get("class", "").replace("long", "").strip()) for tag, a in parsed.elements]


PLAIN = shape(checked(render(unplaced(3))))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=HOSTILE, other=HOSTILE)
def test_foreign_text_never_becomes_markup(name: str, other: str):
    ranking = unplaced(3)
    best = ranking["candidates"][0]
    # What is no Unicode text can't be in a JSON file.
    name, other = (text.encode("utf-8", "replace").decode() or "x" for text in (name, other))
    best["name"], best["checkpoint"], best["digest"] = name, other, other
    ranking["settings"]["preset"] = ranking["mini_set"]["path"] = other
    ranking["headline"] = [f"Agreement likes {name}"]
    ranking["favourites"] = dict.fromkeys(ranking["favourites"], name)
    parsed = checked(render(ranking))
    assert shape(parsed) == PLAIN
    assert visible(name) in parsed.text("bdi")
    assert visible(f"Agreement likes {name}") == parsed.text("h1")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tokens=st.lists(HOSTILE, max_size=9), row_tokens=st.integers(1, 4))
def test_foreign_tokens_are_shown_as_they_are(tokens: list[str], row_tokens: int):
    reading = trace_read()._replace(tokens=tokens, row_tokens=row_tokens, prompt="".join(tokens))
    parsed = checked(render(unplaced(1), reading))
    rows = ["".join(tokens[i : i + row_tokens]) for i in range(0, len(tokens), row_tokens)]
    assert parsed.text(".trace-text") == "".join(visible(row) for row in rows)
    assert parsed.text(".prompt") == visible("".join(tokens))


# Numbers and scales


@given(st.lists(st.floats(-1e100, 1e100), max_size=8), st.integers(2, 8))
def test_scales_cover_their_values_with_few_round_ticks(values: list[float], ticks: int):
    scale = axis(values, ticks=ticks)
    assert all(scale.low <= value <= scale.high for value in values)
    assert 1 <= len(scale.ticks) <= 2 * ticks + 1
    assert list(scale.ticks) == sorted(set(scale.ticks))
    slack = scale.step / 1e6
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in scale.ticks)
    assert all(scale.text(tick) for tick in scale.ticks)


def test_an_interval_that_reaches_a_scores_limit_is_cut_with_an_arrow():
    ends = [(0.9, 1.2), (1.1, 12.0), (1.3, 1.9)]
    dots = [
        figures.Dot(n, n / 2, value, *ends[n], "", False) for n, value in enumerate((1.0, 1.3, 1.5))
    ]
    marks: dict[str, Any] = dict(label="", favourite=None, most_accurate=None)
    chart = figures.ratio_chart(dots, figures.axis([0, 1]), **marks)
    top = [t for t in chart.ticks if t[3] == "\N{UPWARDS ARROW}"]
    assert len(top) == 1 and top[0][0] == chart.dots[1].x
    # The scores take a fair part of the height, and nothing is drawn outside of it.
    heights = [dot.y for dot in chart.dots]
    assert max(heights) - min(heights) > figures.HEIGHT / 6
    assert all(figures.TOP <= d.high <= d.low <= figures.HEIGHT - figures.BOTTOM
               for d in chart.dots if d.low is not None and d.high is not None)  # fmt: skip


def test_tick_labels_have_the_decimals_their_step_needs():
    assert [axis([0, 1], pad=0).text(t) for t in (0.0, 0.6)] == ["0.0", "0.6"]
    scale = axis([-0.34, -0.22])
    assert [scale.text(t) for t in scale.ticks] == ["−0.30", "−0.25"]
    assert axis([0, 12_000]).text(10_000) == "10,000"
    assert axis([0, 3e8]).text(2e8) == "2e8"


def test_numbers_are_written_plainly():
    assert signed(-0.0004, 3) == "0.000" and signed(-1.5, 1) == "−1.5"
    assert grouped(1234567) == "1,234,567" and grouped(None) == DASH
    assert visible("a\x00\t\n\r\n\x85\ud800") == "a␀\t\n\n�?"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_and_marks_have_enough_contrast(scheme: str):
    """WCAG 2 AA: 4.5 for text, 3 for the parts of a chart that carry meaning."""
    style = Page(render(unplaced(1))).text("style")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 3
    block = blocks[["light", "dark", "print"].index(scheme)]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", block))
    colour = {
        k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in colour.items()
    }
    grounds = ("paper", "raised", "e", "x", "warn-paper")
    on = {
        "ink": grounds,
        "soft": ("paper", "raised"),
        "link": ("paper",),
        "warn": ("paper", "warn-paper"),
        "paper": ("e-edge", "x-edge"),
    }
    for ink, papers in on.items():
        for paper in papers:
            assert contrast(colour[ink], colour[paper]) >= 4.5, (ink, paper)
    for mark in ("s0", "s1", "s2", "s3", "s4", "truth", "e-edge", "x-edge"):
        assert contrast(colour[mark], colour["paper"]) >= 3, mark


# In a browser

DRIVER = """
function act(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const fire = (node, kind) => node.dispatchEvent(
    new view.PointerEvent(kind, { bubbles: true, clientX: 0, clientY: 0 }));
  const table = page.querySelector("table.sortable");
  const names = () => Array.from(table.tBodies[0].rows).map(row => row.cells[1].textContent.trim());
  const out = { before: names() };
  const heads = Array.from(table.tHead.rows[0].cells);
  const head = heads.find(cell => cell.textContent.includes("Agreement"));
  head.firstElementChild.click(); out.down = names();
  head.firstElementChild.click(); out.up = names(); out.sort = head.getAttribute("aria-sort");
  fire(page.querySelector('#scores .panel g[data-c="3"]'), "pointerover");
  out.readouts = Array.from(page.querySelectorAll("#scores .readout"), node => node.textContent);
  out.marked = page.querySelectorAll("tr.on").length;
  fire(page.querySelector("h1"), "pointerover");
  out.restored = page.querySelector("#scores .readout").textContent;
  const strip = page.querySelector(".strip");
  const key = name => strip.dispatchEvent(new view.KeyboardEvent("keydown", { key: name }));
  key("ArrowRight"); key("ArrowRight");
  out.row = page.querySelector(".row-readout").textContent;
  out.lit = Array.from(page.querySelectorAll(".row.on"), node => node.dataset.r);
  fire(page.querySelector('.row[data-r="5"]'), "pointerover");
  out.pointed = strip.getAttribute("aria-valuenow");
  return out;
}
window.onload = function () {
  const found = { pages: [] };
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    found.pages.push({
      name: frame.dataset.name, width: frame.clientWidth,
      needs: page.scrollingElement.scrollWidth,
      panels: Array.from(page.querySelectorAll(".panel svg"), svg => svg.clientHeight),
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
    });
  }
  found.acted = act(document.querySelector('iframe[data-name="full"]'));
  document.body.textContent = JSON.stringify(found);
};
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH; the form is checked above")
def test_reports_render_in_a_browser_without_errors_or_requests(tmp_path: Path):
    assert CHROMIUM is not None
    hostile = unplaced(2)
    name = "</script><img src=http://127.0.0.1:9/x onerror=alert(1)>" * 9
    hostile["candidates"][0]["name"] = name
    hostile["favourites"] = dict.fromkeys(hostile["favourites"], name)
    pages = {
        "full": render(family(("slerp", "linear")), trace_read(), TRUTH, LINEAGE),
        "one": render(unplaced(1), trace_read(3)),
        "many": render(unplaced(200), trace_read(400)),
        "hostile": render(hostile, trace_read()._replace(tokens=["<script>throw 1</script>"] * 9)),
    }
    # A page that does break the rule shows that breaking it is noticed.
    pages["control"] = pages["one"].replace("</body>", "<script>let injected;</script></body>")
    frames = []
    for name, page in pages.items():
        (tmp_path / f"{name}.html").write_text(page, encoding="utf-8")
        frames += [
            f'<iframe data-name="{name}" src="{name}.html" width="{width}" height="900"></iframe>'
            for width in (380, 1400)
        ]
    harness = f"<!doctype html><body>{''.join(frames)}<script>{DRIVER}</script></body>"
    (tmp_path / "harness.html").write_text(harness)
    run = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--disable-dev-shm-usage", "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
            "--window-size=1500,1000", "--dump-dom", (tmp_path / "harness.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in console if "control.html" in line], "the browser's console is not read"
    assert [line for line in console if "control.html" not in line] == []
    found = json.loads(Page(run.stdout).text("body"))
    assert len(found["pages"]) == len(frames)
    for page in found["pages"]:
        assert page["fetched"] == [], page["name"]
        assert page["needs"] <= page["width"], f"{page['name']} is wider than its window"
        assert page["panels"] and all(height > 40 for height in page["panels"])

    acted = found["acted"]
    agreement = {
        c["name"]: c["scores"]["agreement"] for c in family(("slerp", "linear"))["candidates"]
    }
    before = [agreement[name] for name in acted["before"]]
    down, up = ([agreement[name] for name in acted[order]] for order in ("down", "up"))
    assert down == sorted(agreement.values(), reverse=True) != before
    assert up == sorted(agreement.values()) and acted["sort"] == "ascending"
    assert acted["marked"] == 1
    pointed = acted["before"][3]
    assert all(text.startswith(f"{pointed}: ") for text in acted["readouts"])
    assert acted["restored"].startswith("highest at")
    assert acted["row"].startswith("row 2, ") and acted["lit"] == ["1"]
    assert acted["pointed"] == "6"
