"""`surgeon trigger detectors`: a monitor of labels and channels, and what is too little for one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trigger_labels import MODEL, lines, make_labels, random_labels

from surgeon import artifact
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.settings.neureasoner import LEVELS
from surgeon.traces import read_traces
from surgeon.trigger.detectors import Detection, detectors, require_own_channels, show
from surgeon.trigger.identify import Identified, LayerSize, identify, read_channels
from surgeon.watch.monitor import Monitor
from surgeon.watch.spans import read_spans

SMALL: dict[str, Any] = dict(updates=20, hidden=8, instance_steps=2, probes=6)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `labels` and `channels`; read only."""
    root = tmp_path_factory.mktemp("detectors")
    identify(MODEL, labels=make_labels(root), out=root / "channels", spans=4, channels=6)
    return root


@pytest.fixture(scope="module")
def done(stages: Path) -> tuple[Detection, Path]:
    """What `detectors` returned and wrote; read only."""
    out = stages / "monitor"
    given: dict[str, Any] = dict(labels=stages / "labels", channels=stages / "channels", **SMALL)
    return detectors(MODEL, out=out, k_inter=2, cap=3, **given), out


def test_the_monitor_is_that_of_its_checkpoint_channels_and_settings(stages: Path, done):
    result, out = done
    checkpoint = resolve(MODEL)
    made = Monitor.load(out, checkpoint)
    assert made.checkpoint == checkpoint.digest and made.levels == LEVELS
    told = read_channels(stages / "channels")
    for level, channels in made.channels.items():
        row = told.levels[level]
        assert (channels.layer, list(channels.units)) == (told.layer, row.units)
        assert list(channels.heads) == row.heads
        assert len(made.detectors[level].state_dict()["layers.0.bias"]) == 8
    assert (made.settings.k, made.settings.k_inter, made.settings.cap) == (4, 2, 3)
    assert (made.settings.instance_steps, len(made.settings.probes)) == (2, 6)
    assert made.thresholds == {n: row["threshold"] for n, row in result.levels.items()}
    assert result == artifact.read(Detection, out) and result.out == out


def test_what_firing_is_worth_is_found_out_on_trial(stages: Path, tmp_path: Path, capsys):
    """Steps are drawn anew, as the model knows no trigger; what isn't worth it is off."""
    given: dict[str, Any] = dict(
        labels=stages / "labels", channels=stages / "channels", max_tokens=60
    )
    result = detectors(
        MODEL, out=tmp_path / "out", trials=2, action="resample", **given, **SMALL
    )  # fmt: skip
    monitor = Monitor.load(tmp_path / "out")
    assert monitor.settings.action == "resample"
    assert set(result.worth) and set(result.worth) <= set(monitor.levels)
    for level, row in result.worth.items():
        assert 0 < row.true.trials + row.false.trials <= 4
        assert monitor.off.get(level, row.reason) == row.reason
    assert set(monitor.off) <= set(result.worth)
    show(result)
    said = capsys.readouterr().out
    assert "firing at" in said and "isn't known yet" not in said
    tried = read_traces(tmp_path / "out" / "trials.jsonl")
    assert tried and max(len(trace.token_ids) for trace in tried) <= 60 + 400


def test_a_threshold_that_moved_is_said(stages: Path, tmp_path: Path, monkeypatch):
    def worths(_plan: Any, _model: Any, monitor: Monitor, *_: Any) -> dict[str, Any]:
        monitor.detectors["intra"].threshold.fill_(0.875)
        return {}

    monkeypatch.setattr("surgeon.trigger.detectors.worths", worths)
    result = detectors(
        MODEL, out=tmp_path / "out", trials=2, action="resample", max_tokens=60,
        labels=stages / "labels", channels=stages / "channels", **SMALL,
    )  # fmt: skip
    (warning,) = [line for line in result.warnings if "fires from" in line]
    learned = result.levels["intra"]["threshold"]
    assert warning.startswith("intra fires from 0.875, where") and f"{learned:.3f}." in warning


def test_problems_are_in_one_part_only(stages: Path, done):
    result, _ = done
    spans = read_spans(stages / "labels" / "spans.jsonl")
    for level, report in result.levels.items():
        problems = {s.prompt_id for s in spans if s.level == level}
        assert report["train"]["problems"] + report["test"]["problems"] == len(problems)
        assert report["test"]["problems"] >= 2
        assert report["tokens"]["n"] == report["test"]["tokens"]


def test_the_same_input_gives_the_same_monitor(stages: Path, done, tmp_path: Path):
    _, out = done
    given: dict[str, Any] = dict(
        labels=stages / "labels", channels=stages / "channels", k_inter=2, cap=3, **SMALL
    )
    detectors(MODEL, out=tmp_path / "same", **given)
    detectors(MODEL, out=tmp_path / "other", seed=1, **given)
    first, same, other = (
        Monitor.load(place).detectors["intra"].state_dict()
        for place in (out, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_pairs_leave_what_has_no_counterpart_out(stages: Path, done, tmp_path: Path):
    pairs = detectors(
        MODEL, labels=stages / "labels", channels=stages / "channels", out=tmp_path / "out",
        negatives="pairs", **SMALL,
    )  # fmt: skip
    for level, report in pairs.levels.items():
        both = [sum(part["tokens"] for part in (r["train"], r["test"]))
                for r in (report, done[0].levels[level])]  # fmt: skip
        assert both[0] < both[1]


def relabelled(stages: Path, place: Path, level: str, keep: int) -> Path:
    """Labels in which a level fails in `keep` problems only."""
    place.mkdir()
    for name in ("traces.jsonl", "prompts.jsonl"):
        (place / name).write_bytes((stages / "labels" / name).read_bytes())
    rows = lines(stages / "labels" / "spans.jsonl")
    failing = sorted({r["prompt_id"] for r in rows if r["level"] == level and r["failing"]})
    kept = [
        r for r in rows
        if r["level"] != level or not r["failing"] or r["prompt_id"] in failing[:keep]
    ]  # fmt: skip
    (place / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return place


def test_a_level_with_too_few_labels_is_left_out_and_said(stages: Path, tmp_path: Path, capsys):
    labels = relabelled(stages, tmp_path / "few", "instance", 1)
    result = detectors(
        MODEL, labels=labels, channels=stages / "channels", out=tmp_path / "out", **SMALL
    )
    made = Monitor.load(tmp_path / "out")
    assert made.levels == ("intra", "inter") == tuple(result.levels)
    (warning,) = result.warnings
    assert warning.startswith("instance has no detector: found failing steps in 1 problems")
    show(result)
    printed = capsys.readouterr().out
    assert "Warning: instance has no detector" in printed and "instance, tokens" not in printed
    assert all(len(line) <= 80 for line in printed.partition("On held-out")[0].splitlines())


def test_too_few_labels_for_any_level_are_refused(stages: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "model", None)
    labels = relabelled(stages, tmp_path / "few", "intra", 1)
    file = tmp_path / "channels.json"
    file.write_text('{"layer": 2, "levels": {"intra": {"units": [1, 2], "heads": []}}}')
    with pytest.raises(BadInput, match="intra fails in 1 problems and not in") as caught:
        detectors(MODEL, labels=labels, channels=file, out=tmp_path / "out", **SMALL)
    assert "\n" not in str(caught.value) and not (tmp_path / "out.partial").exists()


def test_channels_written_by_hand_are_watched(stages: Path, tmp_path: Path):
    file = tmp_path / "channels.json"
    file.write_text('{"layer": 3, "levels": {"inter": {"units": [], "heads": [0, 3]}}}')
    detectors(MODEL, labels=stages / "labels", channels=file, out=tmp_path / "out", **SMALL)
    made = Monitor.load(tmp_path / "out", resolve(MODEL))
    assert made.channels == {"inter": (3, (), (0, 3))}


def test_channels_of_another_checkpoint_are_refused(stages: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "model", None)
    given: dict[str, Any] = dict(labels=stages / "labels", out=tmp_path / "out")
    with pytest.raises(BadInput, match=r"another checkpoint \(builtin:thinking") as caught:
        detectors("builtin:instruct", channels=stages / "channels", **given)
    assert "Identify the channels of this one first" in str(caught.value)
    for rows, said in (
        ({"layer": 9, "levels": {"inter": {"units": [3], "heads": []}}}, "layer is 9"),
        ({"layer": 1, "levels": {"inter": {"units": [384], "heads": []}}}, "unit 384"),
        (
            {"layer": 1, "levels": {"inter": {"units": [3, 3], "heads": []}}},
            "unit of layer 1 twice",
        ),
        ({"layer": 1, "levels": {"inter": {"units": [], "heads": [-1]}}}, "head -1"),
    ):
        with pytest.raises(BadInput, match=said):
            require_own_channels(Identified(**rows), resolve(MODEL), "here")


def test_a_finished_run_is_read_and_other_arguments_are_told(stages: Path, done, monkeypatch):
    result, out = done
    monkeypatch.setattr(Checkpoint, "model", None)
    given: dict[str, Any] = dict(labels=stages / "labels", channels=stages / "channels", out=out)
    given |= {**SMALL, "k_inter": 2}
    again = detectors(MODEL, **given, cap=3)
    assert again == replace(result, already=True)
    with pytest.raises(BadInput, match=r"arguments\.cap is 3 there and 4 here"):
        detectors(MODEL, **given, cap=4)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"negatives": "some"}, "expected one of: all, pairs"),
        ({"batch_tokens": 0}, "batch_tokens = 0"),
        ({"held_out": 0.0}, "held_out = 0.0, expected a number above 0 and below 1"),
        ({"hidden": 0}, "hidden = 0"),
        ({"positions": "starts"}, "positions = starts"),
        ({"criterion": "best"}, "criterion = best"),
        ({"probes": 1}, "probes = 1, expected a whole number of at least 2"),
        ({"cooldown": -1}, "cooldown = -1"),
        ({"channels": "nowhere"}, "find channels with surgeon trigger identify"),
        ({"labels": "nowhere"}, "nowhere has no traces.jsonl"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    stages: Path, tmp_path: Path, monkeypatch, changes: dict[str, Any], said: str
):
    monkeypatch.setattr(Checkpoint, "model", None)
    given = {"labels": stages / "labels", "channels": stages / "channels", **SMALL, **changes}
    with pytest.raises(BadInput, match=said) as caught:
        detectors(MODEL, out=tmp_path / "out", **given)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_other_architectures_are_watched_from_identify_to_a_monitor(
    make_checkpoint, tmp_path: Path, model_type: str
):
    path = make_checkpoint(tmp_path / "m", model_type)
    labels = random_labels(tmp_path / "labels", path)
    found = identify(str(path), labels=labels, out=tmp_path / "c", spans=3, channels=4)
    assert found.components == LayerSize(units=48, heads=4) and found.layer == 1
    detectors(str(path), labels=labels, channels=tmp_path / "c", out=tmp_path / "d", **SMALL)
    assert Monitor.load(tmp_path / "d", Checkpoint.open(path)).levels == LEVELS
