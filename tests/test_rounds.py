"""Rounds over prompts: who stops, who goes on voting, when it ends, and how it resumes."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from surgeon import artifact, nex, rank
from surgeon.errors import BadInput
from surgeon.rank import rounds
from surgeon.rank.conclusion import values
from surgeon.rank.reduced import read_resamples
from surgeon.rank.scores import RECOMMENDED, SCORES, Pool
from surgeon.ranking import CandidateScores, RankedResponse
from surgeon.settings.rank import RankSettings


def response(prompt_id: str, answer: str) -> RankedResponse:
    return RankedResponse(
        prompt_id=prompt_id, sample=0, tokens=96, finished=True, answer=answer, nex=0.5,
        reward=0.2, bad=0.2, credible=True, empty=False, cycles=4, gated=3, explore_segments=4,
        kept_mass=0.5, entropy_R=(), measured={},
    )  # fmt: skip


def race(accuracies: dict[str, float], *, tolerance=0.02, budget=None, seed=0) -> list[Any]:
    """The rounds of candidates that answer 60 prompts, each right with its own chance."""
    rng, scores = np.random.default_rng(seed), {n: SCORES[n] for n in (*RECOMMENDED, "recommended")}
    prompt_ids = [f"q{n}" for n in range(60)]
    answers = {
        name: tuple(
            response(q, "7" if rng.random() < chance else f"{rng.integers(100, 999)}")
            for q in prompt_ids
        )
        for name, chance in accuracies.items()
    }
    seen: dict[str, tuple[RankedResponse, ...]] = dict.fromkeys(answers, ())

    def ask(names, asked):
        seen.update({n: tuple(r for r in answers[n] if r.prompt_id in asked) for n in names})
        return Pool(list(asked), dict(seen), nex.DEFAULT)

    rules = rounds.Race(scores, "recommended", tolerance, budget, seed)
    return list(rounds.run(rules, list(answers), prompt_ids, ask))


def test_candidates_that_cant_be_the_best_stop_and_a_jury_goes_on():
    chances = {"bad": 0.1, "fair": 0.5, "good": 0.95, "worse": 0.2, "so-so": 0.55}
    for seed in range(3):
        done = race(chances, seed=seed)
        assert [r.prompts for r in done] == rounds.sizes(60)[: len(done)]
        gone = [name for r in done for name in r.dropped]
        assert {"bad", "worse", "fair"} <= set(gone) and "good" not in gone
        assert all(len(r.answering) >= rounds.JURY for r in done) and done[-1].leader == "good"
        assert [bool(r.stopped) for r in done] == [False] * (len(done) - 1) + [True]


def test_a_race_ends_where_its_budget_or_its_prompts_end():
    equal = dict.fromkeys("abcd", 0.6)
    whole = race(equal, tolerance=0.0)
    assert whole[-1].stopped == "all prompts are asked" and whole[-1].prompts == 60
    # 96 tokens a response, four candidates.
    short = race(equal, tolerance=0.0, budget=25 * 4 * 96)
    assert short[-1].stopped == "the budget ended" and short[-1].prompts == 25
    assert short[-1].tokens <= 25 * 4 * 96


def test_who_stops_is_bounded_on_all_prompts_and_told_with_its_bound_on_others():
    """3.8 pp behind with a standard error of 2 pp, bound at 2.1 of them (.05 over three rounds): on
    other prompts it may be ahead by .5 pp; on all 100, of which 80 are asked, it stays behind."""
    pool = Pool([f"q{n}" for n in range(80)], {"a": (), "b": ()}, nex.DEFAULT)
    rules = rounds.Race({}, "recommended", 0.0, None, 0)
    drawn_BC = np.stack([np.full(400, 0.5), np.random.default_rng(0).normal(0.462, 0.02, 400)], 1)
    values = {"recommended": np.array([0.5, 0.462])}, {"recommended": drawn_BC}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "values", lambda *_: values)
        leader, dropped = rounds.decide(rules, pool, ["a", "b"], [20, 80, 100])
        assert leader == "a" and 0 < dropped["b"] < 0.012
        assert rounds.decide(rules, pool, ["a", "b"], [20, 80]) == ("a", {})  # the last round


def test_nobody_is_dropped_where_the_score_has_no_value():
    point_C, drawn_BC = np.array([0.5, math.nan, 0.5]), np.full((10, 3), [0.5, math.nan, 0.5])
    ahead_C = rounds.most_ahead(point_C, drawn_BC, 0, 5, 0.05)
    # Five prompts on which two never differed don't show that one isn't ahead by 2 pp.
    assert math.isnan(ahead_C[1]) and ahead_C[2] > 0.1


def test_an_adaptive_ranking_resumes_to_the_same_result(pico_source, tmp_path, monkeypatch):
    """Killed at the end of its second round."""
    monkeypatch.setattr(rounds, "LEAST", 2)
    monkeypatch.setattr(rounds, "LEVEL", 1e-9)  # so that nobody stops
    mini_set = tmp_path / "mini.jsonl"
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3"} for n in range(5)]
    mini_set.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few: dict[str, Any] = dict(
        mini_set=str(mini_set), adaptive=True, tolerance=0.0, samples=2, max_tokens=48,
        row_tokens=2, top_k=6, seed=3,
    )  # fmt: skip
    paths = [str(p) for p in pico_source]
    expected = rank.rank(paths, out=tmp_path / "whole", **few)
    asked = rounds.shuffled([f"q{n}" for n in range(5)], 3)
    assert [r.prompts for r in expected.rounds] == [2, 3, 5]
    stored = artifact.read(
        CandidateScores, tmp_path / "whole" / "candidates" / paths[0].split("/")[-1]
    )
    assert [r.prompt_id for r in stored.responses[::2]] == asked
    assert not list((tmp_path / "whole").rglob("responses"))
    real, calls = rounds.decide, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(rounds, "decide", killed)
    with pytest.raises(KeyboardInterrupt):
        rank.rank(paths, out=tmp_path / "out", **few)
    monkeypatch.setattr(rounds, "decide", real)
    result = rank.rank(paths, out=tmp_path / "out", **few)
    assert replace(result, out=expected.out) == expected
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Who stopped when" in page and "all prompts are asked" in page.lower()
    with pytest.raises(BadInput, match=r"tolerance is 0\.0 there and 1\.0 here"):
        rank.rank(paths, out=tmp_path / "out", **{**few, "tolerance": 1.0})


def test_who_stopped_is_resampled_with_all_prompts_that_were_asked(
    pico_source, make_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(rounds, "LEAST", 2)
    monkeypatch.setattr(rounds, "JURY", 1)
    gone = iter([{"c": -0.1}, {}, {}])
    monkeypatch.setattr(rounds, "decide", lambda *_: ("a", next(gone)))
    third = make_checkpoint(tmp_path / "c", seed=5, noise_from=pico_source[0])
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3"} for n in range(5)]
    (tmp_path / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pools = []
    real = rounds.pool_of
    monkeypatch.setattr(rounds, "pool_of", lambda *a: pools.append(real(*a)) or pools[-1])
    found = rank.rank(
        [*map(str, pico_source), str(third)], mini_set=str(tmp_path / "mini.jsonl"),
        out=tmp_path / "out", adaptive=True, samples=2, max_tokens=48, row_tokens=2, top_k=6,
    )  # fmt: skip
    assert [len(r.answering) for r in found.rounds] == [3, 2, 2]
    assert {c.name: c.dropped_after for c in found.candidates} == {"a": None, "b": None, "c": 2}
    # In a later round it is compared with nobody; at the end its resamples are those of all.
    assert [sorted(n for n, r in pool.relearned.items() if r) for pool in pools] == [
        ["a", "b", "c"], ["a", "b"], ["a", "b"]
    ]  # fmt: skip
    for pool in pools:
        values(SCORES, pool, 0)
    for name in "abc":
        left_J = read_resamples(tmp_path / "out" / "candidates" / name)["nex"].left_J
        assert left_J is not None and len(left_J) == 5


def test_tolerance_and_budget_need_adaptive(tmp_path):
    with pytest.raises(BadInput, match="found budget without adaptive"):
        RankSettings(checkpoints=("a",), mini_set="m.jsonl", out=tmp_path, budget=5)
