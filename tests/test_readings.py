"""Readings of NEX: each can be set, what is rescored under each, and the published core's cache."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import nex_core
from surgeon import nex, rank
from surgeon.activations.files import CACHE_FILES
from surgeon.errors import BadInput
from surgeon.rank.plan import arguments_of
from surgeon.settings import bind
from surgeon.settings.nex import NexReadings, ReadingChoices
from surgeon.settings.rank import RankSettings


def settings_of(**values: Any) -> RankSettings:
    return bind(RankSettings, {"checkpoints": ["a"], "mini_set": "m", "out": "o", **values}, "rank")


def readings_of(**values: Any) -> NexReadings:
    settings = settings_of(**values)
    return settings.readings.over(nex.PRESETS[settings.scoring.preset])


def test_every_reading_can_be_set_and_the_rest_is_the_presets():
    others: dict[str, Any] = dict(
        log_time_from=1, reuse_median_over="all", short_run_joins="longer", empty_response="zero",
        zero_mad="epsilon", min_rows=7, rho=0.6, min_run=4, gmm_steps=9, reuse_median_in="float64",
    )  # fmt: skip
    assert {*others, "credit"} == {f.name for f in fields(NexReadings)}
    assert set(others) == {f.name for f in fields(ReadingChoices)}
    for name, value in others.items():
        assert asdict(readings_of(**{name: value})) == {**asdict(NexReadings()), name: value}
    for preset in ("paper", "reference"):
        assert readings_of(preset=preset) == nex.PRESETS[preset]
    assert readings_of(preset="paper", log_time_from=0).log_time_from == 0


def test_a_reading_that_is_left_alone_is_not_in_the_record_but_for_r18():
    settings = settings_of(preset="paper", log_time_from=0)
    record = arguments_of(settings, readings_of(preset="paper", log_time_from=0))
    assert record["log_time_from"] == 0
    assert record["reuse_median_in"] == "float64"
    assert "rho" not in record and "sampling_top_k" not in record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(rho=1), "found rho = 1, expected a number above 0 and below 1"),
        (dict(min_rows=2), "found min_rows = 2, expected a whole number of at least 3"),
        (dict(log_time_from=2), "found log_time_from = 2, expected one of: 0, 1"),
        (dict(reuse_median_in="half"), "expected one of: float32, float64"),
        (dict(gmm_steps=0), "found gmm_steps = 0, expected a whole number of at least 1"),
    ],
)
def test_a_reading_out_of_range_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=words):
        settings_of(**change)


def test_r8_nines_keep_the_order():
    values = {"nex": np.array([0.5, 0.99, 0.9, np.nan])}
    from surgeon.rank.scores import nines

    assert nines(values) == pytest.approx([0.30103, 2, 1, np.nan], nan_ok=True)


# ---------------------------------------------------------------- the published core's cache

CORE = Path(__file__).parent / "data" / "nex_core.npz"


def unpacked(kind: str, directory: Path) -> np.ndarray:
    """Write a recorded cache; the published core's scores of its responses."""
    core = np.load(CORE)
    for name, dtype in CACHE_FILES.items():
        file = directory / f"{name}.{dtype}"
        file.parent.mkdir(exist_ok=True, parents=True)
        core[f"{kind}/{name}"].tofile(file)
    return core[f"{kind}/score"]


@pytest.mark.parametrize("kind", ["bursts", "odd"])
def test_every_response_of_a_cache_scores_as_the_published_core_scored_it(kind: str, tmp_path):
    """Recorded by `python -m benchmarks.nex_core CORE --write` on caches that it made."""
    theirs = unpacked(kind, tmp_path)
    assert len(theirs) > 20
    ours = {
        arithmetic: nex_core.ours(tmp_path, replace(nex.DEFAULT, reuse_median_in=arithmetic))
        for arithmetic in ("float32", "float64")
    }
    assert ours["float32"] == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    if kind == "odd":
        # Without R18 the same responses miss the core's scores by far.
        assert np.nanmax(np.abs(ours["float64"] - theirs)) > 1e-3


def test_caches_are_ranked_without_a_model(tmp_path, capsys):
    theirs = {kind: unpacked(kind, tmp_path / "caches" / kind) for kind in ("bursts", "odd")}
    (tmp_path / "truth.json").write_text('{"bursts": 0.7, "odd": 0.3}')
    asked: dict[str, Any] = dict(nex_cache=str(tmp_path / "caches"), out=tmp_path / "out")
    result = rank.rank(**asked, select="nex", sensitivity=True, truth=str(tmp_path / "truth.json"))
    for c in result.candidates:
        assert c.scores["nex"] == pytest.approx(np.nanmean(theirs[c.name]), abs=1e-6)
        assert (c.scores["estimate"], c.scores["hes"]) == (None, None)
    assert result.sensitivity is not None and len(result.sensitivity.rows) > 10
    assert not (tmp_path / "out" / "best").exists()
    assert "Read from caches" in " ".join(result.warnings)
    rank.show(result)
    assert "bursts" in capsys.readouterr().out
    truth = str(tmp_path / "truth.json")
    assert rank.rank(**asked, select="nex", truth=truth).already
    one = rank.rank(nex_cache=str(tmp_path / "caches" / "odd"), out=tmp_path / "one")
    assert one.best.name == "odd" and one.recommendation is not None
    assert one.recommendation.why == "nex"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(nex_cache="nowhere"), "--nex-cache nowhere holds no cache"),
        (dict(nex_cache="x", mini_set="m"), "found nex_cache and mini_set, expected nex_cache"),
        (dict(nex_cache="x", checkpoints=["a"], traces="t"), "nex_cache and checkpoints, traces"),
        (dict(mini_set="m"), "rank: lacks checkpoints"),
        (dict(format="tar"), "found format = tar, expected one of: nex-cache"),
    ],
)
def test_a_ranking_of_caches_takes_nothing_else(tmp_path, change: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=words):
        rank.rank(out=tmp_path / "out", **change)
    assert not list(tmp_path.iterdir())


def test_a_damaged_cache_is_refused(tmp_path):
    unpacked("odd", tmp_path / "odd")
    (tmp_path / "odd" / "base" / "w_sum.float16").write_bytes(b"1")
    with pytest.raises(BadInput, match="no whole number of float16"):
        rank.rank(nex_cache=str(tmp_path / "odd"), out=tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["odd"]


def test_a_cache_written_here_ranks_as_the_recordings_did(pico_source, tmp_path):
    """But for the float16 of its masses; it knows whose answers it holds."""
    mini_set = tmp_path / "mini.jsonl"
    mini_set.write_text("".join(f'{{"id": "q{n}", "prompt": "w{n} + 3"}}\n' for n in range(3)))
    whole = rank.rank(
        [str(p) for p in pico_source], mini_set=str(mini_set), out=tmp_path / "out", samples=2,
        max_tokens=64, row_tokens=2, top_k=6, format="nex-cache", reuse_median_in="float64",
    )  # fmt: skip
    cached = rank.rank(
        nex_cache=str(tmp_path / "out"), out=tmp_path / "again", row_tokens=2,
        reuse_median_in="float64",
    )  # fmt: skip
    by_name = {c.name: c for c in cached.candidates}
    for c in whole.candidates:
        same = by_name[c.name]
        assert same.digest == c.digest
        assert same.scores["nex"] == pytest.approx(c.scores["nex"], abs=2e-3)
        assert same.scores["estimate"] == pytest.approx(c.scores["estimate"])
        assert (same.tokens, same.truncated) == (c.tokens, c.truncated)
