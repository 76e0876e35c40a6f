"""`surgeon trigger fluctuation`: profiles and single features by hand, and the page."""

from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trigger_labels import lines, random_labels

from surgeon import jsonl
from surgeon.channels import read_back
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.neureasoner import pairs
from surgeon.neureasoner.steps import Span, StepEnds, split_steps
from surgeon.settings.neureasoner import WatchSettings
from surgeon.traces import read_traces
from surgeon.trigger.detectors import monitored_channels
from surgeon.trigger.fluctuation import comparison, fluctuation, show
from surgeon.trigger.identify import identify, read_channels


def test_fig2_activation_in_time_is_in_units_of_each_channels_mean():
    """Channels of mean 2 and 4 (over both spans); tokens 2 and 4 of the first: (1 + 1) / 2, then
    (2 + 0) / 2; the span has no third token."""
    span_TC, other_TC = np.array([[2.0, -4.0], [-4.0, 0.0]]), np.array([[0.0, 8.0]])
    usual_C = pairs.usual_level([span_TC, other_TC])
    assert usual_C.tolist() == [2, 4]
    assert pairs.time_profile(span_TC, usual_C, 3).tolist()[:2] == [1, 1]
    assert np.isnan(pairs.time_profile(span_TC, usual_C, 3)[2])


def test_fig2_power_of_an_alternating_channel_is_all_at_pi():
    """1, -3, 1, -3 have the magnitudes 1, 3, 1, 3: without their mean -1, 1, -1, 1. At pi they add
    up to 4, squared 16; at pi/2 to -1 - i + 1 + i = 0. A channel that doesn't move has no say."""
    x_TC = np.array([[1.0, 5.0], [-3.0, 5.0], [1.0, 5.0], [-3.0, 5.0]])
    assert pairs.frequency_profile(x_TC, (pi / 2, pi)) == pytest.approx([0, 1], abs=1e-12)
    assert np.isnan(pairs.frequency_profile(x_TC[:, 1:], (pi / 2, pi))).all()


def test_effect_size_and_auroc_of_a_feature():
    """Failing 1, 3 (mean 2, squares 2), others 0, 0, 1, -1 (mean 0, squares 2): 2 / sqrt(4 / 4).

    Of 8 pairs the failing one is higher in 7, and 1 against 1 is half a pair."""
    value_N = np.array([1.0, 3, 0, 0, 1, -1])
    failing_N = np.array([True, True, False, False, False, False])
    assert pairs.effect_size(value_N, failing_N, range(6))[0] == pytest.approx(2)
    assert pairs.auroc(value_N, failing_N, range(6))[0] == pytest.approx(7.5 / 8)
    assert pairs.effect_size(value_N, failing_N & (value_N > 2), range(6))[0] is None
    d, low, high = pairs.effect_size(np.tile(value_N, 9), np.tile(failing_N, 9), range(54))
    assert low is not None and high is not None and 1 < low < d < high < 4  # pyright: ignore


def test_a_mean_is_over_problems_not_over_spans():
    """Problem 0 has 1 and 3, problem 1 has 8 and nothing: (2 + 8) / 2, and 5 of problem 0 alone."""
    value_NX = np.array([[1.0, 4], [3, 6], [8, np.nan]])
    assert [ends[0] for ends in pairs.mean_with_interval(value_NX, [0, 0, 1])] == [5, 5]


def test_pairs_are_compared_where_there_are_any():
    spans = [
        Span("q", 0, "intra", 1, 1, pair=0), Span("q", 1, "intra", 1, 1, False, 0),
        Span("q", 0, "intra", 3, 3), Span("q", 0, "intra", 0, 0, False),
        Span("q", 0, "inter", 0, 2), Span("q", 0, "inter", 3, 3, False),
    ]  # fmt: skip
    assert comparison(spans, "intra") == (spans[:2], True)
    assert comparison(spans, "inter") == (spans[4:], False)


@pytest.fixture(scope="module")
def place(pico_source: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("fluctuation")
    labels = random_labels(root / "labels", pico_source[0])
    given: dict[str, Any] = dict(checkpoint=pico_source[0], labels=labels)
    identify(**given, out=root / "channels", channels=4)
    return {**given, "channels": root / "channels"}


def test_features_are_those_that_the_detector_reads_and_the_page_stands_alone(
    place: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = fluctuation(**place, out=tmp_path / "out", tokens=6)
    assert set(result.levels) == {"intra", "inter", "instance"}
    row = result.levels["intra"]
    spans = [s for s in lines(place["labels"] / "spans.jsonl") if s["level"] == "intra"]
    assert (row.spans, row.counterparts) == (24, 16) == (
        sum(s["failing"] for s in spans), sum(not s["failing"] for s in spans)
    )  # fmt: skip
    # The energy feature, by hand: over the last 4 steps, log of the summed squares without mean.
    checkpoint = Checkpoint.open(place["checkpoint"])
    (channels,) = [monitored_channels(read_channels(place["channels"]))["intra"]]
    traces = read_traces(place["labels"] / "traces.jsonl")
    by_trace = dict(
        zip([t.key for t in traces], read_back(checkpoint.model(), traces, channels), strict=True)
    )
    ends, tokenizer = {}, checkpoint.tokenizer()
    for trace in traces:
        ends[trace.key] = split_steps(StepEnds(tokenizer), trace.token_ids)
    means: dict[str, list[float]] = {}
    for span in (s for s in spans if s["failing"]):
        key = span["prompt_id"], span["sample"]
        steps, at = ends[key], span["last"]
        start, end = steps[max(0, at - WatchSettings().k + 1)].start, steps[at].end
        x_TC = by_trace[key][start:end].abs().double().numpy()
        energy_C = np.log(((x_TC - x_TC.mean(0)) ** 2).sum(0) + 1e-8)
        means.setdefault(span["prompt_id"], []).append(energy_C.mean())
    expected = np.mean([np.mean(values) for values in means.values()])
    assert row.features["energy"].failing[0] == pytest.approx(expected, rel=1e-6)
    assert len(row.time_failing) == 6 and len(row.power_failing) == len(row.frequencies) == 16
    assert sum(ends[0] or 0 for ends in row.power_failing) == pytest.approx(1)
    show(result)
    said = capsys.readouterr()
    assert "intra: 24 failing, 16 others, 8 problems" in said.out
    assert "no failing span has a counterpart" in " ".join((said.out + said.err).split())
    page = (tmp_path / "out" / "fluctuation.html").read_text()
    assert page.count("<svg") >= 6 and "http" not in page.replace("http-equiv", "")
    assert fluctuation(**place, out=tmp_path / "out", tokens=6).already


def test_a_level_without_two_sides_is_left_out_and_nothing_to_compare_is_refused(
    place: dict[str, Any], tmp_path: Path, pico_source: Any
):
    labels = random_labels(tmp_path / "labels", pico_source[0], n=2)
    rows = [row for row in lines(labels / "spans.jsonl") if row["failing"]]
    jsonl.write(labels / "spans.jsonl", rows)
    with pytest.raises(BadInput, match=r"nothing to compare. intra: found no failing span"):
        fluctuation(**{**place, "labels": labels}, out=tmp_path / "out")
