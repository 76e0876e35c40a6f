"""`surgeon trigger calibrate`: thresholds and worth by hand, trials, the copy that carries both."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_monitor import MODEL, untrained

from surgeon import jsonl
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.monitor import monitor
from surgeon.monitor import show as show_monitor
from surgeon.neureasoner import worth
from surgeon.neureasoner.worth import NEVER, Readings, Trials
from surgeon.settings.sampling import Sampling
from surgeon.traces import LocalSampler, encode, read_prompts, read_traces, sample
from surgeon.trigger.calibrate import Calibration, calibrate, show
from surgeon.trigger.trials import Trial, tried
from surgeon.watch.monitor import Monitor


def test_the_threshold_of_a_share_of_false_alarms():
    """Sound .1, .2, .3, .8 and failing .5, .9. One of four may fire: .5 is the lowest with one
    alarm (.8), so halfway to .3. None may: .9 alone, halfway to .8. A sound one above all: never.
    """
    probability_N = np.array([0.1, 0.2, 0.3, 0.8, 0.5, 0.9])
    failing_N = np.array([False] * 4 + [True] * 2)
    assert worth.false_alarm_threshold(probability_N, failing_N, 0.25) == pytest.approx(0.4)
    assert worth.false_alarm_threshold(probability_N, failing_N, 0.2) == pytest.approx(0.85)
    assert worth.false_alarm_threshold(-probability_N, failing_N, 0.2) == NEVER


READINGS = Readings(
    np.array([0.2, 0.6, 0.9, 0.7, 0.1]),
    np.array([False, True, False, False, False]),
    np.array([0, 0, 0, 1, 2]),
    np.array([0, 0, 0, 1, 2]),
)


def test_a_trace_is_worth_its_first_firing():
    """At .5 trace 0 fires first at its failing step (.6), trace 1 at a sound one: with +.5 and -.2
    (.5 - .2) / 3. From .65 on both fire at sound ones, at .15 as well. With -.6 nothing gains."""
    assert worth.first_firings(READINGS, 0.5).tolist() == [False, True, False, True, False]
    assert worth.expected_gain(READINGS, 0.5, 0.5, -0.2) == pytest.approx(0.1)
    assert worth.expected_gain(READINGS, 0.65, 0.5, -0.2) == pytest.approx(-0.4 / 3)
    assert worth.best_gain_threshold(READINGS, 0.5, -0.2) == pytest.approx(0.4)
    assert worth.best_gain_threshold(READINGS, 0.5, -0.6) == NEVER


def of(gain_true: float, gain_false: float, tokens: float) -> worth.Worth:
    """Forty problems, a failing end read at .9 and a sound one at .2 each, every trial the same."""
    n = 40
    readings = Readings(
        np.tile([0.2, 0.9], n), np.tile([False, True], n), np.repeat(np.arange(n), 2),
        np.repeat(np.arange(n), 2),
    )  # fmt: skip
    failing_K = np.tile([False, True], n)
    gain_K = np.where(failing_K, gain_true, gain_false)
    return worth.worth(
        readings, Trials(failing_K, np.repeat(np.arange(n), 2), gain_K, np.full(2 * n, tokens)),
        alarms=0.55, tolerance=0.01,
    )  # fmt: skip


def test_a_detector_is_on_where_it_gains_or_saves_and_off_where_it_costs():
    gains = of(1, -1, -30)
    assert gains.on and gains.threshold == gains.best == pytest.approx(0.55)
    assert gains.gain == [1, 1, 1] and gains.tokens == [-30, -30, -30]
    assert (gains.fired_true, gains.fired_false) == (1, 0) and "gains right" in gains.reason
    saves = of(0, -1, -30)
    assert saves.on and saves.best == NEVER and saves.threshold == 0.55
    assert "saves tokens" in saves.reason
    assert not of(0, -1, 30).on
    costs = of(-1, -1, -30)
    assert not costs.on and costs.gain == [-1, -1, -1] and "costs right" in costs.reason
    assert costs.true.trials == costs.false.trials == 40


def test_whether_a_detector_is_on_is_judged_at_the_threshold_that_it_gets():
    """Each answer is read at .6 at a sound end, which costs it, and then at .9 at a failing one,
    which gains: from .75 on all gain; at the false alarms' .55 all lose."""
    n = 40
    failing_N, problem_N = np.tile([False, True], n), np.repeat(np.arange(n), 2)
    readings = Readings(np.tile([0.6, 0.9], n), failing_N, problem_N, problem_N)
    gain_N = np.where(failing_N, 1.0, -1.0)
    trials = Trials(failing_N, problem_N, gain_N, np.zeros(2 * n))
    best = worth.worth(readings, trials, 0.55, tolerance=0.01)
    assert best.on and best.threshold == pytest.approx(0.75) and best.gain == [1, 1, 1]
    asked = worth.worth(readings, trials, 0.55, tolerance=0.01, at_alarms=True)
    assert not asked.on and asked.threshold == 0.55 and asked.gain == [-1, -1, -1]
    never = worth.worth(readings, trials, NEVER, tolerance=0.01, at_alarms=True)
    assert not never.on and never.gain == [0, 0, 0] and never.fired_true == 0


def test_steps_drawn_anew_are_worth_what_whole_answers_gain():
    """Each single firing gains nothing on trial, yet of two answers to each of 20 problems one is
    right with all of them and wrong without; 30 tokens more are decoded in the one, 10 in the
    other."""
    none, n = of(0, 0, 0), 20
    problem_N = np.repeat(np.arange(n), 2)
    found = worth.measured(
        none, READINGS, 0.5, np.tile([1.0, 0.0], n), np.tile([30.0, 10.0], n), problem_N,
        tolerance=0.01,
    )  # fmt: skip
    assert not none.on and found.on and "gains right" in found.reason
    assert found.gain == [0.5, 0.5, 0.5] and found.tokens == [20, 20, 20]
    assert (found.threshold, found.answers) == (0.5, 40)
    assert (found.fired_true, found.fired_false) == pytest.approx((1 / 3, 1 / 3))
    # Half of the problems lose what the others gain: not told apart.
    even = worth.measured(
        none, READINGS, 0.5, np.repeat([1.0, -1.0], n), np.zeros(2 * n), problem_N, tolerance=0.01
    )
    assert even.gain[0] == 0 and not even.on and even.gain[1] == pytest.approx(-0.4, abs=0.1)


def test_a_level_that_draws_steps_anew_is_measured_on_whole_answers(tmp_path: Path, capsys: Any):
    made = untrained()
    made.save(tmp_path / "monitor.safetensors")
    result = calibrate(
        MODEL, out=tmp_path / "out", prompts="builtin:test", limit=4, samples=1, max_tokens=90,
        inter_steps=1, trials=1, levels=("intra",), action="resample", false_alarms=0.3,
        monitor_file=str(tmp_path / "monitor.safetensors"),
    )  # fmt: skip
    row, inside = result.levels["intra"], tmp_path / "out" / "calibration"
    found = row.worth
    assert found is not None and found.answers == 4
    assert row.threshold == row.false_alarms is not None
    plain = {t.prompt_id: t.token_ids for t in read_traces(inside / "labels" / "traces.jsonl")}
    rows = [row for _, row in jsonl.rows(inside / "watched-intra.jsonl")]
    assert [row["prompt_id"] for row in rows] == list(plain)
    assert any(row["redrawn"] for row in rows)
    for one in rows:
        assert one["redrawn"] or one["token_ids"] == plain[one["prompt_id"]]
    more = [len(one["token_ids"]) + one["redrawn"] - len(plain[one["prompt_id"]]) for one in rows]
    assert found.tokens[0] == pytest.approx(np.mean(more))
    # None of the answers comes to its end.
    assert found.gain == [0, 0, 0] and not row.on
    show(result)
    assert "measured, 4 answers" in capsys.readouterr().out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    """A calibration of detectors of random weights, two trials of each kind; read only."""
    root = tmp_path_factory.mktemp("calibrate")
    untrained().save(root / "monitor.safetensors")
    given: dict[str, Any] = dict(
        prompts="builtin:test", limit=5, samples=1, max_tokens=90, inter_steps=1, trials=2,
        levels=("intra", "inter"), monitor_file=str(root / "monitor.safetensors"),
    )  # fmt: skip
    return calibrate(MODEL, out=root / "out", **given), root / "out"


def test_the_copy_carries_thresholds_and_what_is_off(made: Any, tmp_path: Path, capsys: Any):
    result, out = made
    loaded = Monitor.load(out, Checkpoint.open(out))
    assert loaded.levels == ("intra", "inter", "instance")
    # Every answer is cut at 90 tokens, so no firing gains any.
    for level, row in result.levels.items():
        assert row.before == 2.0 and row.worth is not None and not row.on
        assert loaded.off[level] == row.worth.reason
        assert loaded.thresholds[level] == pytest.approx(row.threshold or NEVER)
        sound = [r for r in [row.false_alarms] if r is not None]
        assert all(0 < value < 1 for value in sound)
    assert loaded.default_levels == ("instance",) and loaded.thresholds["instance"] == 2.0
    show(result)
    assert "off" in capsys.readouterr().out
    given: dict[str, Any] = dict(prompts="builtin:test", limit=1, max_tokens=30)
    run = monitor(str(out), out=tmp_path / "run", **given)
    assert set(run.levels) == {"instance"}
    show_monitor(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "intra isn't watched: by its calibration" in said and "--levels intra watches it" in said
    asked = monitor(str(out), out=tmp_path / "asked", levels=("intra",), **given)
    assert set(asked.levels) == {"intra"}


def test_a_trial_is_the_trace_up_to_a_step_end_with_and_without_the_trigger(made: Any):
    _, out = made
    tokenizer: Any = resolve(MODEL).tokenizer()
    traces = {t.prompt_id: t for t in read_traces(out / "calibration" / "labels" / "traces.jsonl")}
    tried = read_traces(out / "calibration" / "trials.jsonl")
    assert 4 <= len(tried) <= 2 * 2 * 2 * 2 and len(tried) % 2 == 0
    for fired, plain in zip(tried[::2], tried[1::2], strict=True):
        assert fired.sample == plain.sample - 1 and fired.prompt_id == plain.prompt_id
        original, same = traces[fired.prompt_id].token_ids, 0
        while original[: same + 1] == fired.token_ids[: same + 1] == plain.token_ids[: same + 1]:
            same += 1
        ends = [n for n in range(1, same + 1) if tokenizer.decode(original[:n]).endswith("\n\n")]
        texts = [tokenizer.decode(fired.token_ids[n:]) for n in ends]
        assert any(text.startswith(("Let me start over.", "So")) for text in texts)
        assert max(len(fired.token_ids), len(plain.token_ids)) <= 90


def test_where_the_context_is_full_nothing_follows_a_firing(tmp_path: Path):
    """A model that went on until its context was full, at most 40 tokens behind the prompt."""
    checkpoint = resolve(MODEL)
    model: Any = checkpoint.model()
    tokenizer = checkpoint.tokenizer()
    (prompt,) = read_prompts("builtin:test")[:1]
    asked = encode(tokenizer, prompt)
    model.config.max_position_embeddings = len(asked) + 40
    sampler, sampling = LocalSampler(model, tokenizer), Sampling(samples=1, max_tokens=500)
    (trace,) = sample(sampler, tokenizer, [prompt], sampling)
    assert len(trace.token_ids) == 40
    trials = [Trial("intra", True, trace, 0, end, end) for end in (20, 39, 40)]
    pairs = tried(
        sampling, sampler, tokenizer, trials, {"intra": [9, 9]}, tmp_path / "trials.jsonl"
    )
    assert [len(one.token_ids) for pair in pairs for one in pair] == [40] * 6
    assert pairs[1][0].token_ids == [*trace.token_ids[:39], 9]
    assert pairs[2][0].token_ids == pairs[2][1].token_ids == trace.token_ids
    assert {one.finish_reason for pair in pairs for one in pair} == {"length"}


def test_the_same_again_is_read_without_the_model(made: Any, monkeypatch: pytest.MonkeyPatch):
    result, out = made
    monkeypatch.setattr(Checkpoint, "model", None)
    again = calibrate(
        MODEL, out=out, prompts="builtin:test", limit=5, samples=1, max_tokens=90, inter_steps=1,
        trials=2, levels=("intra", "inter"), monitor_file=str(out.parent / "monitor.safetensors"),
    )  # fmt: skip
    assert again.already and again.levels == result.levels


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, "carries no monitor. Train one with `surgeon trigger detectors`"),
        ({"monitor_file": "nowhere.safetensors"}, "nowhere.safetensors does not exist"),
        ({"false_alarms": 0}, "false_alarms = 0"),
        ({"judge": "someone"}, "expected builtin, URL#model"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str):
    given: dict[str, Any] = {"prompts": "builtin:test", "limit": 2, **changes}
    if "judge" in changes:
        untrained(triggers={"intra": "So", "inter": "So"}).save(tmp_path / "m.safetensors")
        given["monitor_file"] = str(tmp_path / "m.safetensors")
    with pytest.raises(BadInput, match=said) as caught:
        calibrate(MODEL, out=tmp_path / "out", **given)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
