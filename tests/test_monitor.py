"""Monitored runs: what they write, that they resume to the same, and what they refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_report import Page

from surgeon import artifact
from surgeon.answers import extract
from surgeon.channels import Channels
from surgeon.checkpoint import INDEX, Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.families import subjects
from surgeon.merge import sweep
from surgeon.monitor import MonitoredRun, drawing, journal, monitor, show
from surgeon.monitor.jobs import prepare
from surgeon.monitor.local import decoded
from surgeon.monitor.result import DrawnAnswer
from surgeon.monitor.summary import correct_by_prompt
from surgeon.neureasoner.detectors import Detector
from surgeon.neureasoner.features import FEATURES
from surgeon.neureasoner.steps import StepEnds, split_steps
from surgeon.settings import bind
from surgeon.settings.monitor import MonitorSettings
from surgeon.settings.neureasoner import WatchSettings
from surgeon.traces import Sampling, Trace, read_prompts, read_traces, sample
from surgeon.watch.monitor import Monitor

PROMPTS, SAMPLES, TOKENS = 5, 2, 120
MODEL = "builtin:thinking"
TRIGGERS = {"intra": "Let me start over.", "inter": "So"}
CHANNELS = {
    "intra": Channels(2, tuple(range(6)), ()),
    "inter": Channels(2, (5, 9), (0, 1)),
    "instance": Channels(2, tuple(range(10, 16)), ()),
}


def untrained(**settings: Any) -> Monitor:
    """Detectors of random weights on the built-in family, which fire at nothing."""
    torch.manual_seed(0)
    detectors = {}
    for level, channels in CHANNELS.items():
        detectors[level] = Detector(channels.size * len(FEATURES[level]), 16).eval()
        detectors[level].requires_grad_(False).threshold.fill_(2.0)
    settings = dict(cooldown=1, cap=3, triggers=TRIGGERS) | settings
    return Monitor(CHANNELS, detectors, WatchSettings(**settings), resolve(MODEL).digest)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor file whose levels fire at about a fifth of the step ends, instance at half."""
    place = tmp_path_factory.mktemp("monitor")
    made = untrained()
    made.save(place / "silent.safetensors")
    monitor(
        MODEL, prompts="builtin:test", out=place / "out", limit=8, max_tokens=TOKENS, seed=7,
        monitor_file=str(place / "silent.safetensors"),
    )  # fmt: skip
    rows = [r for row in lines(place / "out" / "readings.jsonl") for r in row["readings"]]
    for level, share in (("intra", 0.8), ("inter", 0.8), ("instance", 0.5)):
        found = [r["probability"] for r in rows if r["level"] == level]
        made.detectors[level].threshold.fill_(float(np.quantile(found, share)))
    made.save(place / "monitor.safetensors")
    return place / "monitor.safetensors"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Callable[..., MonitoredRun]:
    """`run(name, **changes)`: a few problems, two short answers each."""

    def call(name: str = "out", **changes: Any) -> MonitoredRun:
        arguments: dict[str, Any] = dict(
            prompts="builtin:test", out=tmp_path / name, limit=PROMPTS, samples=SAMPLES,
            max_tokens=TOKENS, monitor_file=str(fitted),
        )  # fmt: skip
        return monitor(MODEL, **(arguments | changes))

    return call


def test_answers_are_read_behind_the_monitors_own_tags(tmp_path: Path):
    """Those of `--think-tags` when it was made, or of the vocabulary, that no template names."""
    untrained(thinking=("[THINK]", "[/THINK]")).save(file := tmp_path / "monitor.safetensors")
    given: dict[str, Any] = dict(prompts="builtin:test", limit=1, samples=1, levels=("intra",))
    plan = prepare(
        bind(MonitorSettings, dict(given, checkpoint=MODEL, out=tmp_path, monitor_file=str(file)))
    )
    (prompt,) = plan.prompts
    for text, right in ((f"[THINK]Answer: 5[/THINK]Answer: {prompt.answer}", 1),
                        (f"[THINK]Answer: {prompt.answer}", 0)):  # fmt: skip
        found = correct_by_prompt(plan, [Trace(prompt.id, 0, [1], [2, 3], text, "stop")])
        assert found is not None and found[0].tolist() == [right]


def test_every_firing_is_logged_where_its_tokens_are(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    result = run()
    traces = {(t.prompt_id, t.sample): t for t in read_traces(tmp_path / "out" / "traces.jsonl")}
    firings = lines(tmp_path / "out" / "firings.jsonl")
    assert len(traces) == PROMPTS * SAMPLES == result.responses
    assert {row["level"] for row in firings} == {"intra", "inter", "instance"}
    tokenizer = resolve(MODEL).tokenizer()
    for row in firings:
        trace = traces[row["prompt_id"], row["sample"]]
        ids = trace.token_ids[row["position"] : row["position"] + row["tokens"]]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == row["forced"]
        if row["level"] in TRIGGERS:
            assert row["forced"] == TRIGGERS[row["level"]]
        else:
            assert "</think>" in row["forced"] or trace.finish_reason == "length"
        steps = split_steps(StepEnds(tokenizer), trace.token_ids)
        (step,) = [step for step in steps if step.end == row["position"]]
        text = tokenizer.decode(trace.token_ids[step.start : step.end])
        assert row["step"] == str(text).strip()
    for level, counts in result.levels.items():
        mine = [row for row in firings if row["level"] == level]
        assert counts.firings == len(mine)
        assert counts.per_response == pytest.approx(len(mine) / len(traces))
        assert counts.responses == len({(r["prompt_id"], r["sample"]) for r in mine})
    lengths = [len(t.token_ids) for t in traces.values()]
    assert result.tokens.mean == pytest.approx(np.mean(lengths))
    assert result.tokens.total == sum(lengths)
    assert result.tokens.forced == sum(row["tokens"] for row in firings)
    cut = np.mean([t.finish_reason == "length" for t in traces.values()])
    assert result.truncated == pytest.approx(cut)
    assert result.finished == pytest.approx(1 - cut)


def test_a_firing_keeps_quiet_for_a_step_and_three_are_the_most(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    run()
    tokenizer = resolve(MODEL).tokenizer()
    positions: dict[tuple[str, int], list[int]] = {}
    for row in lines(tmp_path / "out" / "firings.jsonl"):
        positions.setdefault((row["prompt_id"], row["sample"]), []).append(row["position"])
    assert max(map(len, positions.values())) == 3
    for trace in read_traces(tmp_path / "out" / "traces.jsonl"):
        found = positions.get((trace.prompt_id, trace.sample), [])
        ends = [step.end for step in split_steps(StepEnds(tokenizer), trace.token_ids)]
        numbers = [ends.index(position) for position in found]
        assert all(b - a >= 2 for a, b in pairwise(numbers))


def test_the_rate_is_of_the_step_ends_where_a_level_could_fire(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    result = run()
    rows = [r for row in lines(tmp_path / "out" / "readings.jsonl") for r in row["readings"]]
    for level, counts in result.levels.items():
        mine = [r for r in rows if r["level"] == level]
        open_ones = [r for r in mine if r["open"]]
        assert counts.readings == len(mine) > len(open_ones) - (level == "instance")
        assert counts.rate == pytest.approx(counts.firings / len(open_ones))


def test_without_levels_the_answers_are_those_of_sample(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    result = run(levels=["none"])
    assert result.levels == {}
    checkpoint = resolve(MODEL)
    sampling = Sampling(samples=SAMPLES, temperature=0.6, top_p=0.95, max_tokens=TOKENS)
    prompts = read_prompts("builtin:test")[:PROMPTS]
    plain = sample(checkpoint.model(), checkpoint.tokenizer(), prompts, sampling)
    found = read_traces(tmp_path / "out" / "traces.jsonl")
    assert {(t.prompt_id, t.sample): t for t in found} == {
        (t.prompt_id, t.sample): t for t in plain
    }


def test_levels_may_be_left_out(run: Callable[..., MonitoredRun], tmp_path: Path):
    result = run(levels=["inter,instance"])
    assert list(result.levels) == ["inter", "instance"]
    assert {row["level"] for row in lines(tmp_path / "out" / "firings.jsonl")} == {
        "inter",
        "instance",
    }


def test_a_run_that_was_cut_short_goes_on_to_the_same_result(
    run: Callable[..., MonitoredRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run("whole")
    work, write = tmp_path / "cut.partial", journal.append
    written: list[Any] = []

    def dying(place: Path, entry: Any) -> None:
        """Writes three answers, the firings of a fourth, and half a line of its trace."""
        write(place, entry)
        written.append(entry)
        if len(written) == 4:
            file = place / "traces.jsonl"
            *whole, last = file.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"".join(whole) + last[:22])
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "append", dying)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(journal, "append", write)
    assert len(read_traces(work / "traces.jsonl")) == 3
    jobs: list[Any] = []
    monkeypatch.setattr(
        "surgeon.monitor.decoded",
        lambda plan, model, todo: jobs.extend(todo) or decoded(plan, model, todo),
    )
    again = run("cut")
    assert len(jobs) == PROMPTS * SAMPLES - 3
    for name in ("traces.jsonl", "firings.jsonl", "readings.jsonl"):
        rows = [rows_without_chance(tmp_path / place / name) for place in ("whole", "cut")]
        assert rows[0] == rows[1]
    assert replace(again, out=None, time=None) == replace(whole, out=None, time=None)
    assert again.time is not None and again.time.answers == PROMPTS * SAMPLES - 3


@pytest.mark.slow
def test_kill_minus_nine_loses_the_answers_in_flight_only(
    fitted: Path, run: Callable[..., MonitoredRun], tmp_path: Path
):
    """The same command line twice killed and run again; what was whole on disk stays as it is."""
    out, work = tmp_path / "killed", tmp_path / "killed.partial"
    command = [
        sys.executable, "-m", "surgeon", "monitor", MODEL, "--prompts", "builtin:test",
        "--out", str(out), "--limit", str(PROMPTS), "--samples", str(SAMPLES),
        "--max-tokens", str(TOKENS), "--monitor-file", str(fitted), "--batch", "2",
    ]  # fmt: skip
    kept: list[bytes] = []
    for answers in (2, 6):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while len(kept) < answers:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
            file = work / "traces.jsonl"
            kept = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
    found = (work / "traces.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in found if line.endswith(b"\n")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True)
    left = PROMPTS * SAMPLES - len(kept)
    assert f"monitor: {left}/{left} in" in printed.stderr
    assert (out / "traces.jsonl").read_bytes().startswith(b"".join(kept))
    whole = run("whole")
    for name in ("traces.jsonl", "firings.jsonl", "readings.jsonl"):
        rows = [rows_without_chance(tmp_path / place / name) for place in ("whole", "killed")]
        assert rows[0] == rows[1]
    stored = json.loads((out / "monitor.json").read_text())
    assert stored["time"]["answers"] == left
    stored["time"] = None
    assert stored == {"format": 1, **artifact.jsonable(replace(whole, time=None))}


def rows_without_chance(path: Path) -> list[dict[str, Any]]:
    """A file's rows in order; probabilities, equal but for the last digits, left out."""
    rows = lines(path)
    for row in rows:
        for one in (row, *row.get("readings", [])):
            one.pop("probability", None)
    return sorted(rows, key=json.dumps)


def test_a_step_is_drawn_anew_instead_of_a_trigger(
    run: Callable[..., MonitoredRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given: dict[str, Any] = dict(action="choose", draws=2, levels=["intra"], with_vanilla=True)
    result = run(limit=3, **given)
    rows = lines(tmp_path / "out" / "firings.jsonl")
    assert rows and all(row["tokens"] == 0 and row["redrawn"] > 0 for row in rows)
    assert result.tokens.forced == 0
    assert result.tokens.redrawn == sum(row["redrawn"] for row in rows)
    vanilla, n = result.vanilla, result.responses
    assert vanilla is not None
    decoded = result.tokens.mean + result.tokens.redrawn / n
    assert vanilla.tokens + vanilla.tokens_change[0] == pytest.approx(decoded)
    assert result.drawn is not None and (tmp_path / "out" / "report.html").is_file()
    show(result)
    assert "tokens more each for new draws" in " ".join(capsys.readouterr().out.split())
    # What was kept of it is read again as it was.
    kept = journal.read(tmp_path / "out")
    assert sum(one.firing.redrawn or 0 for e in kept for one in e.firings) == result.tokens.redrawn
    random = run("random", limit=3, random_rate=str(tmp_path / "out"), **given)
    assert random.tokens.redrawn > 0 and random.levels["intra"].readings == 0


def test_the_same_answers_without_the_monitor_are_paired_with_it(
    run: Callable[..., MonitoredRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The plain ones are those that `sample` draws; up to the first firing both are the same."""
    result = run(with_vanilla=True, limit=2)
    plain = {t.key: t for t in read_traces(tmp_path / "out" / "vanilla.jsonl")}
    checkpoint = resolve(MODEL)
    drawn = list(sample(
        checkpoint.model(), checkpoint.tokenizer(), read_prompts("builtin:test")[:2],
        Sampling(samples=SAMPLES, temperature=0.6, top_p=0.95, max_tokens=TOKENS),
    ))  # fmt: skip
    assert len(drawn) == 2 * SAMPLES
    assert [plain[trace.key].token_ids for trace in drawn] == [t.token_ids for t in drawn]
    first: dict[Any, int] = {}
    for row in lines(tmp_path / "out" / "firings.jsonl"):
        first.setdefault((row["prompt_id"], row["sample"]), row["position"])
    watched = {t.key: t for t in read_traces(tmp_path / "out" / "traces.jsonl")}
    for key, trace in watched.items():
        same = first.get(key, len(trace.token_ids)) - 2  # a separator may have been forced before
        assert trace.token_ids[:same] == plain[key].token_ids[:same]
    vanilla, time_ = result.vanilla, result.time
    assert vanilla is not None and vanilla.time is not None and time_ is not None
    lengths = [len(t.token_ids) for t in plain.values()]
    assert vanilla.tokens == pytest.approx(np.mean(lengths))
    assert vanilla.tokens_change[0] == pytest.approx(result.tokens.mean - np.mean(lengths))
    assert vanilla.time.tokens == sum(lengths) and time_.tokens == result.tokens.total
    assert vanilla.pass1 is not None and vanilla.pass1_change is not None and result.pass1
    assert vanilla.pass1_change[0] == pytest.approx(result.pass1.value - vanilla.pass1.value)
    show(result)
    said = capsys.readouterr().out
    assert "tokens/s" in said and "Pass@1" in said and "answers decoded in" in said
    with pytest.raises(BadInput, match="found with_vanilla and no out"):
        monitor(MODEL, prompt="Start 3. Apply +4. Find x.", with_vanilla=True)


def test_watching_nothing_needs_no_monitor(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given: dict[str, Any] = dict(prompts="builtin:test", limit=1, max_tokens=20)
    result = monitor(MODEL, out=tmp_path / "out", levels=("none",), **given)
    assert result.levels == {} and result.drawn is None and result.responses == 1
    show(result)
    assert "No level was watched" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"carries no monitor.*or watch nothing: --levels none"):
        monitor(MODEL, out=tmp_path / "other", **given)


def test_a_finished_run_is_not_done_again_and_another_is_refused(
    run: Callable[..., MonitoredRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = run(limit=1)
    capsys.readouterr()
    again = run(limit=1, batch=3)
    assert again == replace(first, already=True)
    show(again)
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"another run.*temperature"):
        run(limit=1, temperature=0.7)


def test_one_prompt_prints_its_trace_and_writes_nothing(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    prompt = read_prompts("builtin:test")[0].messages[0]["content"]
    settings: dict[str, Any] = dict(
        prompt=prompt, samples=2, max_tokens=TOKENS, monitor_file=str(fitted)
    )
    result = monitor(MODEL, **settings)
    assert list(tmp_path.iterdir()) == [] and result.out is None
    kept = monitor(MODEL, out="out", **settings)
    assert kept.texts == result.texts == monitor(MODEL, out="out", **settings).texts
    traces = sorted(read_traces("out/traces.jsonl"), key=lambda trace: trace.sample)
    for trace, response in zip(traces, result.texts, strict=True):
        assert "".join(part.text for part in response.parts) == trace.text
    levels = [part.level for r in result.texts for part in r.parts if part.level]
    assert len(levels) == sum(row.firings for row in result.levels.values()) > 0
    capsys.readouterr()
    show(result)
    printed = capsys.readouterr().out
    assert printed.count(f"[{levels[0]} 0.") == levels.count(levels[0])
    assert "sample 1" in printed and "Written" not in printed
    assert "ended by" in printed


def test_random_firing_takes_the_rates_of_a_monitored_run(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    monitored = run("monitored")
    rates = {level: row.rate for level, row in monitored.levels.items()}
    control = run("control", random_rate=str(tmp_path / "monitored"))
    assert control.settings["random_rate"] == rates
    firings = lines(tmp_path / "control" / "firings.jsonl")
    for row in firings:
        assert row["probability"] == pytest.approx(rates[row["level"]], abs=1e-6)
    places = [{(r["prompt_id"], r["sample"], r["position"]) for r in rows} for rows in (
        firings, lines(tmp_path / "monitored" / "firings.jsonl"))]  # fmt: skip
    assert firings and places[0] != places[1]
    certain = run("certain", random_rate={"inter": 1}, limit=1)
    assert list(certain.levels) == ["inter"]
    assert certain.levels["inter"].per_response == 3
    assert run("never", random_rate={"inter": 0}, limit=1).levels["inter"].firings == 0


def drawn(place: Path) -> Page:
    page = Page((place / "report.html").read_text(encoding="utf-8"))
    assert page.faults == []
    return page


def test_the_answer_with_the_most_firings_is_drawn(
    run: Callable[..., MonitoredRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    result = run(levels=["instance"], seed=4)
    names = [(p.id, s) for p in read_prompts("builtin:test")[:PROMPTS] for s in range(SAMPLES)]
    rows = lines(tmp_path / "out" / "firings.jsonl")
    counts = [sum((r["prompt_id"], r["sample"]) == name for r in rows) for name in names]
    assert counts[0] == 0 and counts.count(max(counts)) > 1
    prompt_id, sample = names[counts.index(max(counts))]
    assert result.drawn == DrawnAnswer(prompt_id=prompt_id, sample=sample)
    report = drawn(tmp_path / "out")
    assert f"{prompt_id}, sample {sample}" in report.text("bdi")
    mine = [r for r in rows if (r["prompt_id"], r["sample"]) == (prompt_id, sample)]
    mine.sort(key=lambda row: row["position"])
    flags = [f"{n} {r['level']} {r['probability']:.3f}" for n, r in enumerate(mine, 1)]
    assert report.text(".flag") == "".join(flags)
    capsys.readouterr()
    show(result)
    assert f"report.html (prompt {prompt_id}, sample {sample})" in capsys.readouterr().out


def test_only_watched_levels_are_drawn_and_without_any_nothing(
    run: Callable[..., MonitoredRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run("some", levels=["inter", "instance"], limit=2)
    facts = drawn(tmp_path / "some").text("dt")
    assert "inter" in facts and "instance" in facts and "intra" not in facts
    result = run("none", levels=["none"], limit=1)
    assert result.drawn is None and not (tmp_path / "none" / "report.html").exists()
    capsys.readouterr()
    show(result)
    assert "no report" in capsys.readouterr().out


def test_random_firing_is_drawn_as_such(run: Callable[..., MonitoredRun], tmp_path: Path):
    run(random_rate={"inter": 1}, limit=1)
    report = drawn(tmp_path / "out")
    assert "3 firings in" in report.text("h1") and "fired at random" in report.text(".lead")
    assert report.text(".flag") == "1 inter 1.0002 inter 1.0003 inter 1.000"
    # What the detector says is there nonetheless.
    assert "read back 0." in report.text("td")


def test_a_run_killed_at_its_report_makes_nothing_but_that(
    run: Callable[..., MonitoredRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def dying(*_: Any) -> str:
        raise KeyboardInterrupt

    whole = run("whole", limit=2)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "page", dying)
        with pytest.raises(KeyboardInterrupt):
            run(limit=2)
    monkeypatch.setattr("surgeon.monitor.decoded", dying)
    assert replace(run(limit=2), out=None, time=None) == replace(whole, out=None, time=None)
    assert drawn(tmp_path / "out").text() == drawn(tmp_path / "whole").text()


def test_labelled_prompts_are_judged_and_others_left_out(
    run: Callable[..., MonitoredRun], tmp_path: Path
):
    """The gold answers are those of a first run's samples 0, but for one problem without."""
    settings: dict[str, Any] = dict(limit=None, max_tokens=200)
    rows = [
        {"id": prompt.id, "prompt": prompt.messages[0]["content"]}
        for prompt in read_prompts("builtin:test")[:PROMPTS]
    ]
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("unlabelled", prompts=str(file), **settings).pass1 is None
    found = {
        (trace.prompt_id, trace.sample): extract(trace.text)
        if trace.finish_reason == "stop"
        else ""
        for trace in read_traces(tmp_path / "unlabelled" / "traces.jsonl")
    }
    for row in rows[1:]:
        row["answer"] = found[row["id"], 0] or "none"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("labelled", prompts=str(file), **settings)
    right = [found[row["id"], sample] == row["answer"] for row in rows[1:] for sample in (0, 1)]
    assert 0 < np.mean(right) < 1
    assert result.pass1 is not None
    assert result.pass1.problems == PROMPTS - 1
    assert result.pass1.value == pytest.approx(np.mean(right))
    low, high = result.pass1.interval
    assert low <= result.pass1.value <= high


@pytest.fixture
def carrying(fitted: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that carries its monitor."""
    copy = Path(shutil.copytree(resolve(MODEL).path, tmp_path / "copy"))
    shutil.copy(fitted, copy)
    return copy


def test_a_checkpoint_carries_its_monitor(carrying: Path, tmp_path: Path):
    settings: dict[str, Any] = dict(prompts="builtin:test", limit=1, max_tokens=8)
    result = monitor(str(carrying), out=tmp_path / "out", **settings)
    assert list(result.levels) == ["intra", "inter", "instance"]


def test_the_index_of_a_checkpoint_leaves_its_monitor_out(tmp_path: Path):
    """vLLM loads every safetensors file that no index leaves out."""
    copy = Path(shutil.copytree(resolve(MODEL).path, tmp_path / "copy"))
    before = Checkpoint.open(copy)
    assert not (copy / INDEX).exists()
    untrained().save(copy)
    after = Checkpoint.open(copy)
    index = json.loads((copy / INDEX).read_text())
    assert index["weight_map"] == dict.fromkeys(before.tensors, "model.safetensors")
    assert (after.digest, list(after.shards)) == (before.digest, ["model.safetensors"])
    untrained().save(tmp_path / "alone.safetensors")
    assert not (tmp_path / INDEX).exists()


def test_a_virtual_candidate_is_monitored(tmp_path: Path):
    """By a monitor that was made for it, wherever it was written out then."""
    sweep(
        MODEL, "builtin:instruct", out=tmp_path / "f", method="linear", ratios="0.1", virtual=True
    )
    spec = f"{tmp_path / 'f'}#linear-0.1"
    replace(untrained(), checkpoint=subjects([spec])[0].digest).save(tmp_path)
    settings: dict[str, Any] = dict(
        prompts="builtin:test", limit=1, max_tokens=8, monitor_file=str(tmp_path)
    )
    result = monitor(spec, out=tmp_path / "out", **settings)
    assert result.checkpoint == spec and result.responses == 1
    with pytest.raises(BadInput, match=r"is a family; name one candidate"):
        monitor(str(tmp_path / "f"), out=tmp_path / "all", **settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(prompts=None), "either prompts"),
        (dict(prompt="x"), "either prompts"),
        (dict(prompts=None, prompt="  "), "empty prompt"),
        (dict(out=None), "--out"),
        (dict(samples=0), "samples = 0"),
        (dict(limit=0), "limit = 0"),
        (dict(levels=["intro"]), "'intro'"),
        (dict(random_rate={"intra": 2}), "random rate 2"),
        (dict(random_rate={"extra": 0.5}), "'extra'.*levels of this monitor"),
        (dict(random_rate="nowhere"), "nowhere is no monitored run"),
        (dict(monitor_file=None), "carries no monitor"),
        (dict(monitor_file="nowhere"), "nowhere"),
        (dict(prompts="nowhere.jsonl"), "nowhere.jsonl"),
        (dict(check="exactly"), "exactly"),
        (dict(engine="localhost:8000"), "URL#MODEL"),
        (dict(device="tpu"), "tpu"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cant_be_is_refused_before_anything_is_made(
    run: Callable[..., MonitoredRun], tmp_path: Path, changes: dict[str, Any], words: str
):
    with pytest.raises(BadInput, match=words):
        run(**changes)
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_that_doesnt_fit_is_refused(
    run: Callable[..., MonitoredRun], tmp_path: Path, fitted: Path
):
    other = tmp_path / "other.safetensors"
    replace(Monitor.load(fitted), checkpoint="sha256:else").save(other)
    with pytest.raises(BadInput, match="another checkpoint") as caught:
        run(monitor_file=str(other))
    assert "\n" not in str(caught.value)
    untrained(triggers={"intra": "<INTRA>", "inter": "<INTER>"}).save(other)
    with pytest.raises(BadInput, match="no token '<INTRA>'"):
        run(monitor_file=str(other))
    other.write_bytes(b"nonsense")
    with pytest.raises(BadInput, match="not a readable monitor"):
        run(monitor_file=str(other))
    assert [p.name for p in tmp_path.iterdir()] == ["other.safetensors"]


def test_a_prompt_that_fills_the_context_is_named(run: Callable[..., MonitoredRun], tmp_path: Path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"id": "q", "prompt": "1" * 3000}) + "\n")
    with pytest.raises(BadInput, match=r"prompt 'q' has \d+ tokens"):
        run(prompts=str(tmp_path / "long.jsonl"))
