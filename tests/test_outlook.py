"""Dry runs of verbs that sample: what they say of tokens, time and disk, and that they write
nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon import evaluate, rank
from surgeon.cli import main
from surgeon.errors import BadInput
from surgeon.settings import bind
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.rank import RankSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import outlook
from surgeon.traces.outlook import Bounds, Known, Pace, mean_length


@pytest.fixture
def command(pico_source, tmp_path: Path) -> list[str]:
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3", "answer": "7"} for n in range(6)]
    file = tmp_path / "mini.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--samples", "2", "--max-tokens", "48", "--out", str(tmp_path / "out"), "--dry-run"]
    return [*map(str, pico_source), *options]


def test_a_dry_run_loads_nothing_says_what_is_unknown_and_writes_nothing(
    command, tmp_path, capsys, monkeypatch
):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("surgeon.rank.costs.live", never)
    monkeypatch.setattr("surgeon.evaluate.live", never)
    for verb, name in (("rank", "--mini-set"), ("evaluate", "--task")):
        more = ["--adaptive", "--row-tokens", "1", "--top-k", "6"] if verb == "rank" else []
        main([verb, *command, name, str(tmp_path / "mini.jsonl"), *more])
        said = capsys.readouterr().out
        # Two candidates, six prompts, two samples, 48 tokens at most.
        assert "at most 1,152 tokens, time unknown" in said and "--measure-s 30" in said
        assert ("The least is 83% of it" in said) == (verb == "rank")
        assert [p.name for p in tmp_path.iterdir()] == ["mini.jsonl"]


def test_a_timed_pass_measures_the_run_that_follows(command, tmp_path):
    given = dict(
        checkpoints=command[:2], mini_set=str(tmp_path / "mini.jsonl"), out=tmp_path / "out",
        samples=2, max_tokens=48, row_tokens=1, top_k=6,
    )  # fmt: skip
    found = rank.forecast(bind(RankSettings, {**given, "dry_run": True, "measure_s": 60.0}))
    assert not (tmp_path / "out.partial").exists() and len(found.costs) == 2
    made = rank.rank(**given)
    by_name = {c.name: c for c in made.candidates}
    for cost in found.costs:
        # Every answer ended in time, so its length is known exactly.
        assert cost.tokens.low == cost.tokens.likely == cost.tokens.high
        assert cost.tokens.likely == pytest.approx(by_name[cost.candidate].tokens)
        assert cost.seconds is not None and cost.seconds.low > 0
        size = sum(f.stat().st_size for f in
                   (tmp_path / "out" / "candidates" / cost.candidate).iterdir())  # fmt: skip
        assert cost.disk.low / 4 < size < 4 * cost.disk.high
    again = rank.forecast(bind(RankSettings, {**given, "dry_run": True}))
    assert again.costs == () and "finished" in again.lines[0]
    # What is there already is not drawn again.
    (tmp_path / "out").rename(tmp_path / "out.partial")
    (tmp_path / "out.partial" / "candidates" / command[1].split("/")[-1] / "scores.json").unlink()
    rest = rank.forecast(bind(RankSettings, {**given, "dry_run": True}))
    assert [(c.there, c.answers) for c in rest.costs] == [(12, 0), (12, 0)]
    with pytest.raises(BadInput, match="samples is 2 there and 3 here"):
        rank.forecast(bind(RankSettings, {**given, "samples": 3, "dry_run": True}))


def test_no_answer_is_taken_to_be_longer_than_the_context(command, tmp_path):
    given: dict[str, Any] = dict(checkpoints=command[:2], out=tmp_path / "out", dry_run=True)
    file, most = str(tmp_path / "mini.jsonl"), 2 * 6 * 2 * 2048  # the default limit is 32,768
    ranked = bind(RankSettings, {**given, "mini_set": file, "samples": 2})
    measured = bind(EvaluateSettings, {**given, "task": file, "samples": 2})
    assert rank.forecast(ranked).total().tokens.high == most
    assert evaluate.forecast(measured).total().tokens.high == most


def test_the_mean_length_holds_what_was_cut():
    assert mean_length([10, 20], [], 100) == Bounds(15, 15, 15)
    assert mean_length([], [], 100) == Bounds(1, None, 100)
    assert mean_length([], [40, 40], 100) == Bounds(40, None, 100)
    # Three end at 10, one is cut there: of the last 5 tokens, 20 of all four had 3 ends.
    found = mean_length([10, 10, 10], [10], 100)
    assert found.low == 10 and found.high == 32.5
    assert found.likely == pytest.approx(10 + 20 / 3 / 4)
    lengths = np.random.default_rng(0).exponential(100, 400).astype(int) + 1
    ended, cut = lengths[lengths < 80], np.full((lengths >= 80).sum(), 80)
    likely = mean_length(ended.tolist(), cut.tolist(), 4000).likely
    # The lengths that end first are short ones: their mean alone is below 40.
    assert likely is not None and abs(likely - lengths.mean()) < 15 and ended.mean() < 40


def test_others_lie_between_their_neighbours_in_the_family():
    def pace(name: str, tokens: int) -> Pace:
        return Pace(name, 0.0, 1.0, tokens, (tokens,), (), ())

    ratio = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 0.75, "e": 1.0}
    paces = {"a": pace("a", 10), "c": pace("c", 20), "e": pace("e", 100)}
    known = Known({}, paces, Sampling(max_tokens=384), ratio)
    assert known.length("b") == Bounds(10, 15, 20) and known.length("d") == Bounds(20, 60, 100)
    plain = known._replace(ratio={}).length("b")
    assert (plain.low, plain.high) == (10, 100) and plain.likely == pytest.approx(130 / 3)


def test_what_cannot_be_timed_is_refused(tmp_path):
    given = dict(checkpoints=["a"], mini_set="m.jsonl", out=tmp_path / "o")
    with pytest.raises(BadInput, match="found measure_s without dry_run"):
        bind(RankSettings, {**given, "measure_s": 3.0})
    with pytest.raises(BadInput, match=r"found dry_run, expected forecast\(settings\)"):
        rank.rank(**given, dry_run=True)
    with pytest.raises(BadInput, match="measure_s and another engine"):
        outlook.require_timed(1.0, local=False, given=False)


def test_numbers_are_written_in_the_unit_that_reads_best():
    assert [outlook.duration(s) for s in (0.42, 59, 190, 7200, 300000)] == [
        "0.4 s", "59 s", "3.2 min", "2.0 h", "3.5 days"
    ]  # fmt: skip
    assert [outlook.count(n) for n in (950, 12345, 4.123e6, 2e9)] == [
        "950",
        "12,345",
        "4.12M",
        "2G",
    ]
    assert [outlook.size(n) for n in (12, 3.1e4, 5.25e9)] == ["12 B", "31 KB", "5.25 GB"]
