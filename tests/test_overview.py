"""`surgeon report`: one page over what was made of a family."""

import json
from pathlib import Path

import pytest

from surgeon import artifact, cli
from surgeon.errors import BadInput
from surgeon.overview import MeasuredPoints, Overview, headline, report
from surgeon.overview.fronts import front
from surgeon.overview.gathered_runs import Point


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([], []),
        ([(5, 0.5)], [0]),
        ([(9, 0.9), (5, 0.5), (7, 0.4), (9, 0.8)], [1, 0]),  # (7, .4) and (9, .8) are beaten
        ([(5, 0.5), (6, 0.5)], [0]),  # as accurate with more tokens
        ([(5, 0.5), (5, 0.5), (5, 0.4)], [0, 1]),  # equal ones together
    ],
)
def test_the_front_is_who_no_other_beats_in_both(points, kept):
    assert front(points) == kept


ENDS = {"avg": (0.1, 0.9)}


def candidate(name: str, place: str, avg: float, tokens: float) -> dict:
    zeros = dict(maj=0, pass1=avg, ece=0, truncated=0, missing=0)
    return dict(name=name, checkpoint=place, avg=avg, tokens=tokens, interval=ENDS, cons=[avg],
                ratio=None, digest="sha256:0", problems=4, responses=4, check_timeouts=0,
                check_deaths=0, **zeros)  # fmt: skip


@pytest.fixture
def runs(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    """A family, a transplant, and an evaluation that says how good they are."""
    monkeypatch.chdir(tmp_path)
    cli.main(["merge-sweep", "a", "b", "--ratios", "0.5", "--virtual", "--out", "runs/family"])
    Path("mask.json").write_text(json.dumps([1, 2, 3]))
    truth = tmp_path / "runs/truth"
    truth.mkdir()
    found = [
        candidate("a", "a", 0.25, 10),
        candidate("slerp-0.5", "runs/family/family.json#slerp-0.5", 0.75, 40),
        candidate("<b>&", "b", 0.5, 90),
    ]
    content = dict(task=dict(path="t.jsonl", problems=4, digest="sha256:1"), settings={},
                   warnings=[], candidates=found)  # fmt: skip
    (truth / "evaluate.json").write_text(json.dumps(content))
    (truth / "surgeon.json").write_text(json.dumps({"verb": "evaluate", "inputs": {}}))
    return tmp_path


def test_points_by_how_they_were_made_and_who_is_not_beaten(runs: Path, capsys):
    cli.main(["report", "runs", "--out", "page"])
    found = json.loads(Path("page/overview.json").read_text())
    (comparison,) = found["comparisons"]
    assert comparison["kind"] == "accuracy" and comparison["title"] == "t.jsonl (4 problems)"
    assert [(p["name"], p["made_by"], p["value"]) for p in comparison["points"]] == [
        ("slerp-0.5", "merge", 0.75), ("<b>&", "as it is", 0.5), ("a", "as it is", 0.25),
    ]  # fmt: skip
    assert comparison["front"] == ["a", "slerp-0.5"]
    assert [(m["place"], m["kind"]) for m in found["made"]] == [
        ("runs/family", "family"), ("runs/truth", "evaluation"),
    ]  # fmt: skip
    assert [o["place"] for o in found["made"][0]["lineage"]["inputs"]] == ["a", "b"]
    page = Path("page/report.html").read_text()
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page
    assert page.count('class="pt s') >= 3 and page.count("<polyline") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert "slerp-0.5 is the most accurate of 3 on t.jsonl" in page
    out = capsys.readouterr().out
    assert "slerp-0.5" in out and "page/report.html" in out
    cli.main(["report", "runs", "--out", "page"])
    assert "was finished before" in capsys.readouterr().out


def test_an_early_stop_stands_beside_the_checkpoint_without(runs: Path, capsys):
    from surgeon.early_stop.stop_result import EarlyStop, StopRow
    from surgeon.early_stop.sweeping import StopPoint

    def row(rule: str, right: float, tokens: float, written: bool = False) -> StopRow:
        at = StopPoint(value=None, right=right, tokens=tokens, share=1, stopped=0, over=(0, 0, 0))
        return StopRow(rule=rule, what="", written=written, chosen=at, test=at, over_random=None,
                       tokens_over_random=None)  # fmt: skip

    rows = (row("never", 0.5, 90), row("enough", 0.5, 40, written=True), row("budget", 0.4, 40))
    found = EarlyStop(
        checkpoint="b", digest="sha256:0", settings={"test": "t.jsonl"}, judged=True,
        test_judged=True, questions={"detectors": 8, "validation": 8, "test": 4}, labels={},
        channels={}, detectors={}, rule="enough", rows=rows, curves={}, test_curves={}, warnings=(),
    )  # fmt: skip
    Path("runs/stopped").mkdir()
    artifact.write("runs/stopped", found)
    cli.main(["report", "runs", "--out", "page"])
    (comparison,) = json.loads(Path("page/overview.json").read_text())["comparisons"]
    assert comparison["title"] == "t.jsonl (4 problems)"
    points = {p["name"]: (p["made_by"], p["value"], p["tokens"]) for p in comparison["points"]}
    assert points["b, enough stop"] == ("early-stop", 0.5, 40)
    assert points["b"] == ("as it is", 0.5, 90) and len(points) == 5
    cli.main(["show", "runs/stopped"])
    told = " ".join(capsys.readouterr().out.split())
    said = "rule enough of b: 50.0% right, 40 tokens; without a stop 50.0% right, 90 tokens"
    assert f"{said}, on 4 test questions" in told


def test_a_recommendation_that_isnt_the_highest_estimate_is_said():
    def point(name: str, value: float, recommended: bool = False) -> Point:
        return Point(name=name, place=name, made_by="merge", value=value, low=None, high=None,
                     tokens=40, source="runs/ranking", recommended=recommended)  # fmt: skip

    def said(*points: Point) -> str:
        found = MeasuredPoints(title="p (9 prompts)", kind="estimate", points=points, front=())
        return headline(Overview(comparisons=(found,), made=()))

    other = said(point("slerp-0.2", 0.6), point("slerp-0.4", 0.5, recommended=True))
    assert other.endswith("runs/ranking recommends slerp-0.4 (50.0%): NEX counts there too.")
    assert "recommends" not in said(point("slerp-0.2", 0.6, recommended=True), point("b", 0.5))


def test_the_same_checkpoint_measured_twice_stands_twice(runs: Path):
    import shutil

    shutil.copytree("runs/truth", "runs/again")
    found = report(runs=["runs"], out=Path("page"))
    names = [p.name for p in found.comparisons[0].points]
    assert len(names) == len(set(names)) == 6 and "a (runs/truth)" in names


def test_what_cant_be_reported(runs: Path):
    Path("empty").mkdir()
    with pytest.raises(BadInput, match="nothing that surgeon wrote in empty"):
        report(runs=["empty"], out=Path("page"))
    with pytest.raises(BadInput, match="is not a directory"):
        report(runs=["nowhere"], out=Path("page"))
    Path("runs/truth/evaluate.json").write_text("{")
    with pytest.raises(BadInput, match="truth/evaluate"):
        report(runs=["runs"], out=Path("page"))
    assert not Path("page").exists() and not Path("page.partial").exists()
