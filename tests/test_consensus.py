"""Consensus as a signal: what it says of right answers, worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from surgeon.consensus import reliability, sentence, sizes
from surgeon.consensus.reliability import auroc, partial_correlations, within
from surgeon.settings.nopsd import TOP_GLOBAL, TOP_LAYER, NopsdReadings
from surgeon.traces import Trace


def test_auroc_counts_pairs_of_a_right_and_a_wrong_response():
    """Right at 1 and 3, wrong at 2 and 3: of four pairs 1 < 2, 1 < 3 are won and 3 = 3 is half."""
    value, right = np.array([1.0, 3.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 0.0])
    assert auroc(value, right) == pytest.approx(2.5 / 4)
    assert auroc(-value, right) == pytest.approx(1 - 2.5 / 4)
    assert np.isnan(auroc(value, np.ones(4)))
    # A half-right response is half a right one and half a wrong one, at one and the same value.
    assert auroc(np.array([1.0, 2.0]), np.array([0.5, 0.5])) == pytest.approx(0.5)
    # Questions 0 and 1 apart: 1 < 2 is won in question 0, 3 = 3 is half in question 1.
    assert within(value, right, np.array([0, 1, 0, 1])) == pytest.approx(1.5 / 2)


def test_partial_correlation_is_that_of_what_length_leaves():
    rng = np.random.default_rng(0)
    z = rng.normal(size=400)
    x, y = z + rng.normal(size=400), z + rng.normal(size=400)

    def left(v: np.ndarray) -> np.ndarray:
        return v - np.polyval(np.polyfit(z, v, 1), z)

    one = np.ones((1, 400))
    wanted = np.corrcoef(left(x), left(y))[0, 1]
    assert partial_correlations(x, y, z, one)[0] == pytest.approx(wanted)
    assert np.isnan(partial_correlations(2 * z, y, z, one)[0])
    assert np.isnan(partial_correlations(x, np.ones(400), z, one)[0])
    plain = partial_correlations(x, y, np.ones(400), one)[0]
    assert plain == pytest.approx(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize(("sign", "end"), [(1, "bottom"), (-1, "top")])
def test_the_reliable_end_is_where_the_right_answers_are(sign: int, end: str):
    """Two domains of different s(x) and accuracy; in both the wrong answers use more neurons."""
    rng = np.random.default_rng(1)
    right = np.repeat([0.9, 0.3], 200) > rng.random(400)
    s = np.repeat([100, 300], 200) + sign * 20 * ~right + rng.integers(0, 30, 400)
    domain = np.repeat(["bio", "chem"], 200)
    questions = [f"q{n // 4}" for n in range(400)]
    found = reliability(s, rng.integers(5, 50, 400), right, questions, domain_N=domain.tolist())
    by_domain = {trend.domain: trend for trend in found.trends}
    assert by_domain.keys() == {"bio", "chem"}
    for trend in found.trends:
        assert trend.slope is not None and trend.interval is not None
        assert trend.slope * sign < 0 and trend.interval[0] < trend.slope < trend.interval[1]
    assert sum(b.responses for b in found.bins) == 400
    assert (found.bins[0].gain - found.bins[-1].gain) * sign > 0.1
    assert abs(sum(b.gain * b.responses for b in found.bins)) < 1e-9
    one = reliability(s[:200], np.full(200, 7), right[:200], questions[:200])
    assert one.end == end and one.length_auroc == 0.5
    assert one.accuracy_at[-1] == pytest.approx(one.accuracy)
    assert (one.accuracy_at[0] - one.accuracy) * sign > 0
    assert ("smaller" if end == "bottom" else "larger") in sentence(one)


def test_nothing_is_claimed_without_a_contrast():
    found = reliability([5, 6], [1, 2], [1, 1], ["a", "b"])
    assert (found.auroc, found.partial_r, found.within, found.end) == (None, None, None, None)
    assert "all of 2 responses are right" in sentence(found)
    assert reliability([5], [1], [0], ["a"]).trends[0].slope is None


def test_sizes_are_read_once_and_again_under_another_budget(make_checkpoint, tmp_path: Path):
    from surgeon.checkpoint import Checkpoint

    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    traces = [Trace(f"q{n}", 0, [5, 6], [7 + n] * n, "", "stop") for n in range(4)]
    readings, file = NopsdReadings(top_global=0.1), tmp_path / "a.jsonl"
    first = sizes(model, traces, readings, file)
    assert first["q0", 0] == 0 and all(first[f"q{n}", 0] > 0 for n in (1, 2, 3))
    before = file.read_bytes()
    assert sizes(model, traces, readings, file) == first and file.read_bytes() == before
    more = sizes(model, traces, NopsdReadings(top_global=0.2), file)
    assert more["q3", 0] > first["q3", 0]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 8


def test_the_default_budgets_are_the_papers_numbers_on_its_model():
    from surgeon.nopsd import budget

    assert budget(TOP_GLOBAL, 36 * 9728) == 5000 and budget(TOP_LAYER, 9728) == 2000
