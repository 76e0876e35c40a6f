"""Readings of NEX: each can be set, what is rescored under each, and the published core's cache."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import nex_core
from surgeon import nex
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


@pytest.mark.parametrize("kind", ["bursts", "odd"])
def test_every_response_of_a_cache_scores_as_the_published_core_scored_it(kind: str, tmp_path):
    """Recorded by `python -m benchmarks.nex_core CORE --write` on caches that it made."""
    core = np.load(CORE)
    for name, dtype in CACHE_FILES.items():
        file = tmp_path / f"{name}.{dtype}"
        file.parent.mkdir(exist_ok=True)
        core[f"{kind}/{name}"].tofile(file)
    theirs = core[f"{kind}/score"]
    assert len(theirs) > 20
    ours = {
        arithmetic: nex_core.ours(tmp_path, replace(nex.DEFAULT, reuse_median_in=arithmetic))
        for arithmetic in ("float32", "float64")
    }
    assert ours["float32"] == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    if kind == "odd":
        # Without R18 the same responses miss the core's scores by far.
        assert np.nanmax(np.abs(ours["float64"] - theirs)) > 1e-3
