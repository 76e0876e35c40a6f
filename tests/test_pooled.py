"""Families together: the paper's averages, and what is refused."""

import json
from pathlib import Path

import pytest
from test_report import family

from surgeon import artifact
from surgeon.errors import BadInput
from surgeon.rank.pooled import RankingSummary, show, summary
from surgeon.ranking import Ranking

PRINTED = {
    "Qwen3-4B": (0.859, 0.90, 1),
    "Qwen3-VL-4B": (0.782, 5.70, 2),
    "Qwen3-VL-8B": (0.869, 2.04, 4),
    "Qwen3-VL-32B": (0.601, 2.05, 0),
}
"""NEX Tab. 2: Pearson r and Regret@1, means over five benchmarks, and the hits among them."""


def write(out: Path, pearson: float, regret: float, hits: int, benchmarks: int = 5) -> Path:
    """A ranking whose NEX has these means over its benchmarks; length tells nobody apart in one."""
    content, nothing = family(), dict.fromkeys(("pearson", "spearman", "regret_at_1", "hit_at_3"))
    content["benchmarks"] = {}
    for n in range(benchmarks):
        apart = 0.01 * (n - (benchmarks - 1) / 2)
        quality = {"pearson": pearson + apart, "spearman": None, "regret_at_1": regret + apart}
        nex = {**quality, "hit_at_3": float(n < hits)}
        content["benchmarks"][f"b{n}"] = {
            "truth": f"b{n}.csv",
            "accuracy": {c["name"]: 0.5 for c in content["candidates"]},
            "selection_quality": {"nex": nex, "length": nex if n else nothing},
        }
    out.mkdir()
    (out / "ranking.json").write_text(json.dumps({"format": 2, **content}))
    return out


def test_the_printed_averages_come_out_of_the_printed_families(tmp_path: Path, capsys):
    places = [str(write(tmp_path / name, *row)) for name, row in PRINTED.items()]
    result = summary(rankings=places, out=tmp_path / "out")
    nex, length = result.overall
    assert nex.score == "nex" and (nex.pairs, nex.asked, nex.hits) == (20, 20, 7)
    assert nex.mean.pearson == pytest.approx(0.778, abs=5e-4)
    assert nex.mean.regret_at_1 == pytest.approx(2.67, abs=5e-3)
    assert nex.mean.hit_at_3 == pytest.approx(0.35) and nex.mean.spearman is None
    assert (length.pairs, length.asked) == (16, 20)
    for found, (pearson, regret, hits) in zip(result.families, PRINTED.values(), strict=True):
        assert found.mean[0].mean.pearson == pytest.approx(pearson)
        assert found.mean[0].mean.regret_at_1 == pytest.approx(regret)
        assert found.mean[0].hits == hits
    assert artifact.read(RankingSummary, tmp_path / "out").overall == result.overall
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| Qwen3-4B | 5 | 0.859 | – | 0.90 | 1/5 |" in text
    assert "| Overall | 20 | 0.778 | – | 2.67 | 7/20 |" in text
    show(result)
    assert "7/20" in capsys.readouterr().out
    assert summary(rankings=places, out=tmp_path / "out").already


def test_with_unequal_benchmarks_pairs_and_families_differ(tmp_path: Path):
    a, b = write(tmp_path / "a", 0.9, 0, 1, 1), write(tmp_path / "b", 0.5, 4, 3, 3)
    result = summary(rankings=[f"x={a}", str(b)])
    assert [f.name for f in result.families] == ["x", "b"]
    assert result.overall[0].mean.pearson == pytest.approx(0.6)
    assert result.over_families[0].mean.pearson == pytest.approx(0.7)
    assert any("different benchmarks" in line for line in result.warnings)


def test_one_truth_is_one_benchmark_and_none_is_refused(tmp_path: Path):
    place = write(tmp_path / "a", 0.9, 0, 1)
    content = json.loads((place / "ranking.json").read_text())
    del content["benchmarks"]
    (place / "ranking.json").write_text(json.dumps(content))
    (found,) = summary(rankings=[str(place / "ranking.json")]).families
    ranking = artifact.read(Ranking, place)
    assert found.benchmarks == {"truth": ranking.selection_quality} and found.name == "a"
    with pytest.raises(BadInput, match="two families called a"):
        summary(rankings=[str(place), str(place)])
    with pytest.raises(BadInput, match="found no ranking"):
        summary(rankings=[])
    del content["selection_quality"]
    (place / "ranking.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"found no truth in .*ranking\.json"):
        summary(rankings=[str(place)])
    with pytest.raises(BadInput, match="nowhere"):
        summary(rankings=["nowhere"])
