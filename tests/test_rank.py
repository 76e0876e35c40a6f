"""Ranking: what is written, what it agrees with, how it resumes, and what it warns of."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from surgeon import activations, artifact, estimate, evidence_file, metrics, nex, rank
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import subjects
from surgeon.rank import candidates, conclusion, exploration, recording, reduced, signal
from surgeon.rank.scores import Pool, Resamples, find
from surgeon.rank.sensitivity import rescored
from surgeon.ranking import CandidateScores, RankedCandidate, RankedResponse, Ranking, percent
from surgeon.settings import bind
from surgeon.settings.rank import RankSettings, Scoring
from surgeon.settings.sampling import Sampling
from surgeon.traces import Trace, read_traces
from surgeon.traces import sampling as engine

SMALL: dict[str, Any] = dict(samples=2, max_tokens=96, row_tokens=2, top_k=6, seed=3)


@pytest.fixture(scope="module")
def mini_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("set") / "mini.jsonl"
    rows = [{"id": f"q{n}", "prompt": f"w{n} w{n + 1} + 3"} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def ranked(pico_source, mini_set: Path, tmp_path_factory) -> tuple[Path, Ranking]:
    """One finished ranking of two checkpoints, shared by the tests that only read it."""
    out = tmp_path_factory.mktemp("ranked") / "out"
    result = rank.rank(
        [str(p) for p in pico_source], mini_set=str(mini_set), out=out, keep_activations=True,
        **SMALL,
    )  # fmt: skip
    return out, result


def test_active_credit_stands_beside_introduced_in_one_run(ranked):
    """Its column is what kept rows give under that reading, and its interval is learned anew."""
    out, result = ranked
    for c in result.candidates:
        kept = evidence_file.read(out / "candidates" / c.name)
        expected = rescored(kept, nex.Readings(credit="active"))
        assert c.scores["nex_active"] == pytest.approx(expected, abs=1e-6)
        drawn = reduced.read_resamples(out / "candidates" / c.name)["nex_active"]
        assert drawn.left_J is not None and len(drawn.left_J) == 5
        point = np.array([c.scores["nex_active"]])
        ends = metrics.corrected_interval(point, drawn.value_B[:, None], drawn.left_J[:, None])[0]
        assert c.interval["nex_active"] == pytest.approx(tuple(ends))


def test_intervals_are_cross_fitted_where_asked(ranked, pico_source, mini_set, tmp_path):
    """Only the last stage is redone, no score moves, and without evidence it says so."""
    out, result = ranked
    shutil.copytree(out, tmp_path / "out", symlinks=True)
    asked: dict[str, Any] = dict(
        mini_set=str(mini_set), out=tmp_path / "out", keep_activations=True, cross_fit=True, **SMALL
    )
    found = rank.rank([str(p) for p in pico_source], **asked)
    for old, new in zip(result.candidates, found.candidates, strict=True):
        assert old.name == new.name and old.scores == new.scores
        assert {s for s in new.interval if old.interval[s] != new.interval[s]} == {
            "nex", "recommended", "saturation",
        }  # fmt: skip
    (tmp_path / "out" / "candidates" / result.best.name / "evidence.safetensors").unlink()
    again = rank.rank([str(p) for p in pico_source], **(asked | {"cross_fit": False}))
    assert again.candidates == result.candidates
    lacking = rank.rank([str(p) for p in pico_source], **asked)
    assert any(f"of {result.best.name} are not cross-fitted" in line for line in lacking.warnings)


def test_ranking_json_has_the_promised_schema(ranked):
    out, result = ranked
    written = json.loads((out / "ranking.json").read_text())
    assert artifact.read(Ranking, out) == result
    assert {"mini_set", "settings", "select", "candidates"} <= written.keys()
    assert "selection_quality" not in written
    assert [c["rank"] for c in written["candidates"]] == [1, 2]
    for c in written["candidates"]:
        assert set(c["scores"]) == set(c["interval"]) == {
            "nex", "estimate", "recommended", "nex_active", "saturation", "length", "hes",
            "entropy_top20", "entropy_rows", "logprob", "explore_segments", "agreement",
            "dawid_skene", "finished",
        }  # fmt: skip
        assert c["responses"] == 10 and 0 <= c["truncated"] <= 10 and c["tokens"] > 0
        assert {"checkpoint", "name", "not_told_apart_from_best", "cycles"} <= c.keys()
        for score, value in c["scores"].items():
            low, high = c["interval"][score]
            if value is None:
                continue
            assert low <= value + 1e-9 and value - 1e-9 <= high, score
    scores = [c["scores"]["recommended"] for c in written["candidates"]]
    assert scores == sorted(scores, reverse=True) and written["select"] == "recommended"
    assert written["recommendation"]["name"] == written["pick"] == written["candidates"][0]["name"]
    assert written["candidates"][0]["not_told_apart_from_best"]


def test_the_scores_are_those_of_the_kept_recordings(ranked, pico_source):
    """The same numbers from the rows on disk, without anything of the verb in between."""
    out, result = ranked
    by_name = {c.name: c for c in result.candidates}
    for path in pico_source:
        checkpoint = Checkpoint.open(path)
        kept = sorted((out / "candidates" / path.name / "activations").iterdir())
        recordings = [activations.load(file) for file in kept]
        assert len(recordings) == 10
        evidence = [nex.credit(r.activations) for r in recordings]
        n = checkpoint.n_layers * checkpoint.d_ff
        weight_N = nex.weights(*nex.accumulate(evidence, n))
        scores = [
            nex.good_mass_fraction(*nex.response_mass(r.activations), weight_N) for r in recordings
        ]
        c = by_name[path.name]
        nex_score = np.mean([score.score for score in scores if score.mass > 0])
        assert c.scores["nex"] == pytest.approx(nex_score, abs=1e-6)
        assert c.scores["hes"] == pytest.approx(
            np.mean([r.entropy_T.sum() for r in recordings]), rel=1e-5
        )
        assert c.scores["length"] == np.mean([len(r.logprob_T) for r in recordings])
        assert c.cycles == np.mean([e.cycles for e in evidence]) and c.cycles > 0
        stored = load_file(out / "candidates" / path.name / "weights.safetensors")
        np.testing.assert_allclose(stored["weight_LF"].ravel(), weight_N, atol=1e-6)
        assert stored["mass_LF"].shape == (checkpoint.n_layers, checkpoint.d_ff)


def test_the_weights_name_the_checkpoint_they_were_computed_on(ranked, pico_source):
    from safetensors import safe_open

    for path in pico_source:
        file = ranked[0] / "candidates" / path.name / "weights.safetensors"
        with safe_open(file, framework="np") as opened:
            assert opened.metadata()["digest"] == Checkpoint.open(path).digest


def test_best_is_a_link_to_the_first_candidate(ranked):
    out, result = ranked
    assert Checkpoint.open((out / "best").resolve()).digest == result.best.digest


def test_reduced_recordings_are_gone_and_the_report_is_there(ranked):
    out, _ = ranked
    assert not list(out.rglob("responses")) and (out / "report.html").stat().st_size > 1000
    assert not out.with_name("out.partial").exists()


def test_a_candidate_answers_the_same_whoever_is_beside_it(ranked, pico_source, mini_set, tmp_path):
    """Its random streams follow from the seed, its name, the prompt and the sample, and nothing
    else."""
    second = pico_source[1]
    rank.rank([str(second)], mini_set=str(mini_set), out=tmp_path / "alone", **SMALL)
    alone, beside = (
        read_traces(out / "candidates" / second.name / "traces.jsonl")
        for out in (tmp_path / "alone", ranked[0])
    )
    assert alone == beside and len({tuple(t.token_ids) for t in alone}) == len(alone)


def test_candidates_share_no_luck_and_an_older_ranking_goes_on_as_it_was_begun(
    pico_source, mini_set, tmp_path
):
    """Two names of one model draw other answers; where surgeon.json doesn't say so, as of a ranking
    that was begun before candidates had seeds of their own, both draw the same ones."""
    shutil.copytree(pico_source[0], tmp_path / "c")
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), out=tmp_path / "out", **SMALL)

    def drawn() -> list[list[Trace]]:
        rank.rank([str(pico_source[0]), str(tmp_path / "c")], **arguments)
        places = [tmp_path / "out" / "candidates" / name for name in ("a", "c")]
        return [read_traces(place / "traces.jsonl") for place in places]

    a, c = drawn()
    assert all(x.key == y.key and x.token_ids != y.token_ids for x, y in zip(a, c, strict=True))
    run = json.loads((tmp_path / "out" / "surgeon.json").read_text())
    assert run["arguments"].pop("seeds") == "own"
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "surgeon.json").write_text(json.dumps(run))
    for _ in range(2):  # begun, then finished
        a, c = drawn()
        assert a == c


def test_a_finished_ranking_computes_nothing_again(ranked, pico_source, mini_set, monkeypatch):
    out, result = ranked

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished ranking was computed again")

    monkeypatch.setattr(candidates, "live", never)
    again = rank.rank(
        [str(p) for p in pico_source], mini_set=str(mini_set), out=out, keep_activations=True,
        **SMALL,
    )  # fmt: skip
    assert again.already and again.candidates == result.candidates


def test_truth_and_select_only_redo_the_last_stage(
    pico_source, mini_set, tmp_path, monkeypatch, capsys
):
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), out=tmp_path / "out", **SMALL)
    specs = [str(p) for p in pico_source]
    first = rank.rank(specs, **arguments)
    (tmp_path / "truth.json").write_text(json.dumps({"a": 0.25, "b": 0.5}))
    monkeypatch.setattr(candidates, "live", None)
    second = rank.rank(specs, **arguments, select="length", truth=str(tmp_path / "truth.json"))
    rank.show(second)
    told = capsys.readouterr().out.partition("would have chosen")[2]
    assert "its favourite" in told and "…" not in told
    assert second.select == "length" and first.selection_quality is None
    assert second.selection_quality is not None
    assert set(second.selection_quality) == set(rank.SCORES)
    regret = second.selection_quality["length"].regret_at_1
    assert regret == (25.0 if second.favourites["length"] == "a" else 0.0)
    lengths = [c.scores["length"] or 0.0 for c in second.candidates]
    assert lengths == sorted(lengths, reverse=True)
    assert Path(tmp_path / "out" / "best").resolve().name == second.best.name


def test_several_benchmarks_are_reported_apart_and_in_the_mean(
    pico_source, mini_set, ranked, tmp_path, capsys
):
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), out=tmp_path / "out", **SMALL)
    arguments |= dict(traces=str(ranked[0]), select="length")
    specs = [str(p) for p in pico_source]
    (tmp_path / "x.json").write_text('{"a": 0.2, "b": 0.6}')
    (tmp_path / "y.csv").write_text("a,0.9\nb,0.3\n")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "evaluate.json").write_text('{"a": 0.7, "b": 0.6}')
    alone = rank.rank(specs, **arguments, truth=str(tmp_path / "x.json"))
    assert alone.benchmarks == {} and "benchmarks" not in artifact.jsonable(alone)
    listed = ",".join(
        f"{n}={tmp_path / f}" for n, f in zip("xyz", ("x.json", "y.csv", "z"), strict=True)
    )
    result = rank.rank(specs, **arguments, truth=listed)
    assert {c.name: c.accuracy for c in result.candidates} == pytest.approx({"a": 0.6, "b": 0.5})
    x, y, z = (result.benchmarks[name].selection_quality["length"] for name in "xyz")
    assert alone.selection_quality and x == alone.selection_quality["length"]
    sign = 1 if result.favourites["length"] == "b" else -1
    assert [q.pearson for q in (x, y, z)] == pytest.approx([sign, -sign, -sign])
    regrets = (0, 60, 10) if result.favourites["length"] == "b" else (40, 0, 0)
    assert [q.regret_at_1 for q in (x, y, z)] == pytest.approx(regrets)
    mean = result.over_benchmarks["length"]
    assert mean.regret_at_1 == pytest.approx(sum(regrets) / 3)
    assert mean.pearson == pytest.approx(-sign / 3)
    assert artifact.read(rank.Ranking, tmp_path / "out").benchmarks == result.benchmarks
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Accuracy is the mean over 3 benchmarks: x (" in page
    assert "<h3><bdi>y</bdi></h3>" in page and "Mean of each measure" in page
    rank.show(result)
    shown = capsys.readouterr().out
    assert "By benchmark (3)" in shown and "by the mean accuracy" in shown
    (tmp_path / "y.csv").write_text("a,0.3\nb,0.3\n")
    edited = rank.rank(specs, **arguments, truth=listed)
    assert edited.benchmarks["y"].accuracy == {"a": 0.3, "b": 0.3}
    one = rank.rank(specs, **arguments, truth=f"x={tmp_path / 'x.json'}")
    assert one.over_benchmarks == one.selection_quality == alone.selection_quality


def test_an_interrupted_ranking_resumes_to_the_same_result(
    ranked, pico_source, mini_set, tmp_path, monkeypatch
):
    """Interrupted while sampling, then while recording; the third run ends as if never stopped."""
    arguments: dict[str, Any] = dict(
        mini_set=str(mini_set), out=tmp_path / "out", keep_activations=True, **SMALL
    )
    specs = [str(p) for p in pico_source]
    calls = {"append": 0, "save": 0}

    def interrupted(name: str, original: Any, after: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            if calls[name] == after:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(engine, "append", interrupted("append", engine.append, 4))
        with pytest.raises(KeyboardInterrupt):
            rank.rank(specs, **arguments)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(reduced, "save_reduced", interrupted("save", reduced.save_reduced, 13))
        with pytest.raises(KeyboardInterrupt):
            rank.rank(specs, **arguments)
    result = rank.rank(specs, **arguments)
    for mine, theirs in zip(result.candidates, ranked[1].candidates, strict=True):
        assert mine.name == theirs.name and mine.tokens == theirs.tokens
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_kill_while_recordings_go_leaves_none_of_them(
    adaptive: bool, pico_source, mini_set, tmp_path, monkeypatch
):
    arguments: dict[str, Any] = dict(
        mini_set=str(mini_set), out=tmp_path / "out", adaptive=adaptive, **SMALL
    )
    specs, remove = [str(p) for p in pico_source], reduced.shutil.rmtree

    def killed(path: Any, **how: Any) -> None:
        if Path(path).name == "responses.partial" and Path(path).is_dir():
            next(Path(path).iterdir()).unlink()
            raise KeyboardInterrupt
        remove(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(reduced.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            rank.rank(specs, **arguments)
    result = rank.rank(specs, **arguments)
    assert len(result.candidates) == len(specs)
    assert not list((tmp_path / "out").glob("candidates/*/responses*"))


def test_given_traces_are_scored_without_sampling(
    ranked, pico_source, mini_set, tmp_path, monkeypatch
):
    source, result = ranked
    for path in pico_source:
        traces = source / "candidates" / path.name / "traces.jsonl"
        (tmp_path / f"{path.name}.jsonl").write_bytes(traces.read_bytes())
    monkeypatch.setattr(candidates, "sampled", None)
    again = rank.rank(
        [str(p) for p in pico_source], mini_set=str(mini_set), out=tmp_path / "out",
        traces=str(tmp_path), **SMALL,
    )  # fmt: skip
    for mine, theirs in zip(again.candidates, result.candidates, strict=True):
        assert mine.scores == pytest.approx(theirs.scores, abs=1e-5)


def test_shared_weights_replace_each_candidates_own(ranked, pico_source, mini_set, tmp_path):
    out, _ = ranked
    weights = out / "candidates" / "a" / "weights.safetensors"
    shared = rank.rank(
        [str(p) for p in pico_source], mini_set=str(mini_set), out=tmp_path / "out",
        weights=str(weights), **SMALL,
    )  # fmt: skip
    by_name = {c.name: c.scores["nex"] or 0.0 for c in shared.candidates}
    own = {c.name: c.scores["nex"] or 0.0 for c in ranked[1].candidates}
    assert by_name["a"] == pytest.approx(own["a"], abs=1e-6)
    assert own["b"] > 0 and by_name["b"] != pytest.approx(own["b"], abs=1e-6)


def test_weights_of_an_unrelated_checkpoint_are_refused_unless_told(
    ranked, pico_source, mini_set, tmp_path
):
    weights = str(ranked[0] / "candidates" / "a" / "weights.safetensors")
    given: dict[str, Any] = dict(mini_set=str(mini_set), weights=weights, **SMALL)
    with pytest.raises(BadInput, match=r"which is no candidate here .* --weights-from-other"):
        rank.rank([str(pico_source[1])], out=tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())
    settings = bind(
        RankSettings,
        {"checkpoints": [str(pico_source[1])], "out": tmp_path / "out", **given,
         "weights_from_other": True},
    )  # fmt: skip
    assert rank.prepare(settings).shared_weight_LF is not None


def test_other_readings_score_the_kept_rows(ranked, pico_source, mini_set, tmp_path, capsys):
    """A finished ranking is only concluded anew; each row is what that reading says."""
    out = tmp_path / "out"
    shutil.copytree(ranked[0], out, symlinks=True)
    asked: dict[str, Any] = dict(mini_set=str(mini_set), out=out, keep_activations=True, **SMALL)
    truth = tmp_path / "truth.json"
    truth.write_text('{"a": 0.4, "b": 0.6}')
    result = rank.rank([str(p) for p in pico_source], **asked, sensitivity=True, truth=str(truth))
    found = result.sensitivity
    assert found is not None
    rows = {row.reading: row for row in found.rows}
    own = {c.name: pytest.approx(c.scores["nex"]) for c in result.candidates}
    assert rows["as ranked"].scores == own and rows["as ranked"].change == 0
    assert {"log_time_from = 1", "rho = 0.9", "credit = active", "preset paper"} <= set(rows)
    assert "preset reference" not in rows
    assert any((row.change or 0) > 0 for row in found.rows)
    readings = nex.PRESETS["paper"]
    acts = [
        activations.load(f).activations
        for f in sorted((out / "candidates" / "b" / "activations").glob("*.safetensors"))
    ]
    weight_N = nex.weights(*nex.accumulate([nex.credit(a, readings) for a in acts], 10**4))
    scores = [nex.good_mass_fraction(*nex.response_mass(a), weight_N).score for a in acts]
    assert rows["preset paper"].scores["b"] == pytest.approx(np.mean(scores))
    quality = rows["credit = active"].quality
    assert quality is not None and quality.regret_at_1 in (0, 10, pytest.approx(20))
    assert "tau" in " ".join(found.recorded_again)
    page = (out / "report.html").read_text()
    assert "NEX under other readings" in page and "credit = active" in page
    rank.show(result)
    assert "credit = active" in capsys.readouterr().out
    again = rank.rank([str(p) for p in pico_source], **asked, sensitivity=True, truth=str(truth))
    assert again.already and again.sensitivity == found
    # Without rows there is nothing to rescore, and that is what it says.
    (out / "candidates" / "a" / "evidence.safetensors").unlink()
    lost = rank.rank([str(p) for p in pico_source], **asked, sensitivity=True)
    assert lost.sensitivity is not None and lost.sensitivity.rows == ()
    assert "larger --evidence-mb" in lost.sensitivity.recorded_again[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(select="nix"), "found select = nix, expected one of: nex, estimate, recommended"),
        (dict(select="nowhere:score"), "nowhere can't be imported"),
        (dict(panels=["nix"]), "found panels = nix, expected one of: table, rounds"),
        (dict(preset="own"), "found preset = own, expected one of: reference, paper"),
        (dict(credit="all"), "found credit = all, expected one of: introduced, active"),
        (dict(samples=0), "found samples = 0, expected a whole number of at least 1"),
        (dict(answer="(a)(b)"), "group"),
        (dict(weights="nowhere"), "--weights nowhere is no file"),
        (dict(traces="nowhere"), "--traces nowhere is one file"),
        (dict(truth="nowhere"), "nowhere is no file"),
        (dict(mini_set="nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    pico_source, mini_set, tmp_path, change: dict[str, Any], words: str
):
    arguments = {"mini_set": str(mini_set), "out": tmp_path / "out", **SMALL, **change}
    with pytest.raises(BadInput, match=words):
        rank.rank([str(p) for p in pico_source], **arguments)
    assert not list(tmp_path.iterdir())


def test_a_run_with_other_arguments_does_not_touch_a_finished_one(ranked, pico_source, mini_set):
    before = (ranked[0] / "ranking.json").read_bytes()
    with pytest.raises(BadInput, match=r"arguments\.top_k is 6 there and 7 here"):
        rank.rank(
            [str(p) for p in pico_source], mini_set=str(mini_set), out=ranked[0],
            keep_activations=True, **{**SMALL, "top_k": 7},
        )  # fmt: skip
    assert (ranked[0] / "ranking.json").read_bytes() == before


# Rows from outside -------------------------------------------------------------------------------

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_scores_and_panels_of_ones_own_are_a_function_and_a_row(
    examples, ranked, pico_source, mini_set, tmp_path
):
    """A score of what is recorded, and one that is measured while a response is recorded."""
    specs = [str(p) for p in pico_source]
    whole = ranked[0] / "candidates"
    out, given = tmp_path / "out", tmp_path / "traces"
    given.mkdir()
    for path in pico_source:
        (given / f"{path.name}.jsonl").symlink_to(whole / path.name / "traces.jsonl")
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), out=out, traces=str(given), **SMALL)
    measured = rank.rank(
        specs,
        select="my_score:weakest",
        panels=["my_panel:price"],
        keep_activations=True,
        **arguments,
    )
    for c in measured.candidates:
        kept = (out / "candidates" / c.name / "activations").iterdir()
        least = [activations.load(file).logprob_T.min() for file in kept]
        assert c.scores["my_score:weakest"] == pytest.approx(np.mean(least), rel=1e-5)
    assert set(measured.candidates[0].scores) == {*rank.SCORES, "my_score:weakest"}
    values = [c.scores["my_score:weakest"] or 0.0 for c in measured.candidates]
    assert values == sorted(values, reverse=True) and values[0] < 0
    page = (out / "report.html").read_text()
    assert "<h2>What an answer costs</h2>" in page and "Weakest token" in page

    arguments["keep_activations"] = True
    counted = rank.rank(specs, select="my_score:digits", **arguments)
    assert not counted.already and counted.panels == ()
    stored = [
        artifact.read(CandidateScores, out / "candidates" / c.name) for c in counted.candidates
    ]
    for c, found in zip(counted.candidates, stored, strict=True):
        digits = [sum(map(str.isdigit, r.answer)) for r in found.responses if r.answer is not None]
        expected = np.mean(digits) if digits else None
        assert c.scores["my_score:digits"] == pytest.approx(expected)
    assert "What an answer costs" not in (out / "report.html").read_text()


def test_a_measured_score_needs_a_ranking_that_measured_it(examples, ranked, pico_source, mini_set):
    with pytest.raises(BadInput, match="was recorded without my_score:weakest"):
        rank.rank(
            [str(p) for p in pico_source], mini_set=str(mini_set), out=ranked[0],
            keep_activations=True, select="my_score:weakest", **SMALL,
        )  # fmt: skip


def test_another_measured_score_is_measured_where_a_killed_ranking_resumes(
    examples, pico_source, mini_set, tmp_path, monkeypatch
):
    """The first candidate is done and the second begun, both without the score."""
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), out=tmp_path / "out", **SMALL)
    specs = [str(p) for p in pico_source]
    with monkeypatch.context() as patch:
        saved: list[Path] = []

        def save(file: Path, *rest: Any) -> None:
            if len(saved) == 13:
                raise KeyboardInterrupt
            saved.append(file)
            save_reduced(file, *rest)

        save_reduced = reduced.save_reduced
        patch.setattr(reduced, "save_reduced", save)
        with pytest.raises(KeyboardInterrupt):
            rank.rank(specs, **arguments)
    resumed = rank.rank(specs, select="my_score:weakest", **arguments)
    assert all(c.scores["my_score:weakest"] is not None for c in resumed.candidates)


def test_a_score_says_how_it_is_computed_in_one_way(tmp_path, monkeypatch):
    text = "from surgeon.rank import Score\nneither = Score('N', '', 'none')\n"
    (tmp_path / "odd_score.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match="found select = odd_score:neither, expected of, meas"):
        find("odd_score:neither")


def test_what_is_no_number_is_no_value():
    rows = {name: tuple(response(f"q{n}") for n in range(3)) for name in "ab"}
    pool = Pool(["q0", "q1", "q2"], rows, nex.DEFAULT)
    values = [1.0, math.nan, None, 2.0, math.inf, 4.0]
    assert pool.sums(values)[:, :, 0].tolist() == [[1, 2], [0, 0], [0, 4]]
    assert pool.sums(values)[:, :, 1].tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_response_without_mass_counts_as_the_reading_says():
    """R4: left out by the reference, 0 as the paper is worded."""
    rows = {"a": (response("q0"), response("q0", empty=True, nex=0.0))}
    for preset, expected in (("reference", [0.5, 1]), ("paper", [0.5, 2])):
        pool = Pool(["q0"], rows, nex.PRESETS[preset])
        assert rank.SCORES["nex"]("nex", pool)[0, 0].tolist() == expected


def test_an_interval_is_wider_by_what_rests_on_rounding():
    """NEX .5 and an estimate of 1 on every prompt: .3 of the weighted mass counts for rounding."""
    prompts = [f"q{n}" for n in range(4)]
    rows = {c: tuple(response(q, answer="7", faint=0.3) for q in prompts) for c in "abc"}
    pool = Pool(prompts, rows, nex.DEFAULT)
    scores = {name: rank.SCORES[name] for name in ("nex", "estimate", "recommended")}
    found = conclusion.intervals(scores, pool, *conclusion.values(scores, pool, 0))
    assert found["nex"] == pytest.approx(np.tile([0.2, 0.8], (3, 1)))
    assert found["recommended"] == pytest.approx(np.tile([0.2, 0.8], (3, 1)), abs=0.02)
    assert found["estimate"].min() > 0.95


def test_scores_of_the_first_format_are_read(ranked, tmp_path):
    directory = ranked[0] / "candidates" / "a"
    stored = json.loads((directory / "scores.json").read_text())
    for row in stored["responses"]:
        row |= row.pop("measured")
    (tmp_path / "scores.json").write_text(
        json.dumps({k: stored[k] for k in ("reading", "responses")})
    )
    old, new = (artifact.read(CandidateScores, place) for place in (tmp_path, directory))
    assert old == new and set(new.responses[0].measured) == {"hes", "logprob"}


# What a ranking says of itself -------------------------------------------------------------------


def response(prompt_id: str = "q0", **changes: Any) -> RankedResponse:
    values: dict[str, Any] = dict(
        prompt_id=prompt_id, sample=0, tokens=96, finished=True, answer="7", nex=0.5, reward=0.2,
        bad=0.2, credible=True, empty=False, cycles=4, gated=3, explore_segments=4,
        kept_mass=0.5, entropy_R=(0.1, 0.2), measured={"hes": 1.0, "logprob": -0.1},
    )  # fmt: skip
    return RankedResponse(**{**values, **changes})


def candidate(name: str, **changes: Any) -> RankedCandidate:
    values: dict[str, Any] = dict(
        checkpoint=name, name=name, ratio=None, method=None, digest="", rank=1, scores={},
        interval={}, not_told_apart_from_best=False, responses=10, truncated=0, tokens=960,
        cycles=4.0, gated_cycles=3.0, without_evidence=0, kept_mass=0.5, saturation=None,
        reward=None, bad=None, accuracy=None,
    )  # fmt: skip
    return RankedCandidate(**{**values, **changes})


def warned(rows: dict[str, list[RankedResponse]], nex_scores: dict[str, float], row_tokens=4):
    settings = RankSettings(
        checkpoints=tuple(rows), mini_set="m.jsonl", out=Path("out"),
        scoring=Scoring(row_tokens=row_tokens), sampling=Sampling(max_tokens=384),
    )  # fmt: skip
    pool = Pool(["q0"], {name: tuple(rs) for name, rs in rows.items()}, nex.DEFAULT)
    shown = [
        candidate(
            name, scores={"nex": nex_scores[name]}, responses=len(rs),
            without_evidence=sum(not r.credible for r in rs),
        )
        for name, rs in rows.items()
    ]  # fmt: skip
    return " ".join(conclusion.warnings(settings, pool, shown, row_tokens))


def test_nothing_is_warned_of_when_nothing_is_amiss():
    rows = {name: [response() for _ in range(10)] for name in "abcd"}
    assert warned(rows, {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}) == ""


def test_rows_too_long_for_the_traces_come_with_the_size_that_fits():
    rows = {name: [response(gated=1) for _ in range(10)] for name in "ab"}
    text = warned(rows, {"a": 0.9, "b": 0.8}, row_tokens=32)
    assert "Rows of 32 tokens are too long" in text and "row_tokens=2 would fit" in text


def test_a_ranking_that_rests_on_a_step_says_so():
    rows = {"a": [response()] * 10, "b": [response(credible=False, nex=0.0)] * 10}
    text = warned(rows, {"a": 0.9, "b": 0.0})
    assert "zero/non-zero step: 50%" in text and "1 candidates have none at all" in text


def test_saturated_scores_are_called_saturated():
    rows = {name: [response()] * 10 for name in "abcd"}
    assert "saturated" in warned(rows, {"a": 0.991, "b": 0.985, "c": 0.5, "d": 0.1})


def test_intervals_that_hold_the_weights_as_learned_are_said_to():
    settings = RankSettings(checkpoints=("a", "b"), mini_set="m.jsonl", out=Path("out"))
    rows = {name: (response(),) for name in "ab"}
    drawn = Resamples(np.zeros(3), None)
    pool = Pool(["q0"], rows, nex.DEFAULT, relearned={"a": {}, "b": {"nex": drawn}})
    (line,) = conclusion.held(settings, pool)
    assert "of a hold the neuron weights as they were learned" in line and "--traces" in line
    assert not conclusion.held(settings, pool._replace(relearned={"a": {"nex": drawn}}))
    given = RankSettings(
        checkpoints=("a",), mini_set="m.jsonl", out=Path("out"), weights="w.safetensors"
    )
    assert not conclusion.held(given, pool)


def test_truncation_is_said():
    rows = {"a": [response(finished=False)] * 10}
    assert (
        "100% of the responses were cut at the limit of 384 tokens, or the end of the context:"
        in warned(rows, {"a": 0.9})
    )


def entry(name: str, tie: bool = False, **scores: float | None) -> RankedCandidate:
    scores = {"nex": 0.5, "estimate": 0.5, "recommended": 0.25, "agreement": 0.5, **scores}
    interval = {
        s: (None, None) if v is None else (v - 0.1, v + 0.1) for s, v in scores.items()
    }  # fmt: skip
    return candidate(name, scores=scores, interval=interval, not_told_apart_from_best=tie)


def lines(entries: list[RankedCandidate], select: str, *, doubted: bool = False) -> list[str]:
    favourites = {s: conclusion.favourite(entries, s) for s in entries[0].scores}
    pick = entries[0].name if favourites[select] else None
    advice = conclusion.recommendation(entries, favourites)
    return list(conclusion.headline(entries, select, pick, advice, doubted=doubted))


def test_the_recommendation_leads_with_its_accuracy_its_cost_and_what_nex_alone_says():
    entries = [
        entry("b", tie=True, nex=0.8, estimate=0.7, recommended=0.56),
        entry("a", nex=0.9, estimate=0.4, recommended=0.36),
    ]
    first, second = lines(entries, "recommended")
    assert first == (
        "Recommended: b, estimated accuracy 0.70 (95%: 0.60 to 0.80), 96 tokens per answer. "
        "NEX alone would have picked a, and they disagree."
    )
    assert second == "Best by recommended: b (0.56); told apart from all others."
    assert lines(entries[::-1], "nex")[0] == first
    same = [entries[0], entry("a", nex=0.7, estimate=0.4, recommended=0.28)]
    assert lines(same, "recommended")[0].endswith("NEX alone would have picked it too.")


def test_without_readable_answers_nex_recommends_alone_and_the_first_line_says_so():
    entries = [
        entry("a", nex=0.9, estimate=None, recommended=0.9),
        entry("b", nex=0.8, estimate=None, recommended=0.8),
    ]
    assert lines(entries, "recommended")[0] == (
        "Recommended: a, 96 tokens per answer, by NEX alone: no answers could be read and "
        "compared, so its accuracy is unknown."
    )


def test_a_score_that_tells_nobody_apart_names_no_best():
    entries = [entry(n, nex=0.0, estimate=e, recommended=e) for n, e in (("a", 0.6), ("b", 0.2))]
    first, second = lines(entries, "nex")
    assert "NEX tells nobody apart here, so the votes alone chose" in first and "a," in first
    assert second == "No best by nex: all 2 candidates have 0. It tells nobody apart."
    assert conclusion.favourite(entries, "nex") is None
    assert conclusion.favourite(entries, "estimate") == "a"


def test_nobody_is_told_apart_by_nex_where_nex_is_in_doubt():
    entries = [entry("a", tie=True, nex=0.9), entry("b", nex=0.8)]
    assert lines(entries, "nex")[-1] == "Best by nex: a (0.9); told apart from all others."
    assert lines(entries, "nex", doubted=True)[-1] == "Best by nex: a (0.9)."


def test_equal_candidates_tie_and_one_candidate_is_the_only_one():
    entries = [
        entry("a", tie=True, agreement=1.0), entry("b", tie=True, agreement=1.0),
        entry("c", agreement=0.2),
    ]  # fmt: skip
    line = lines(entries, "agreement")[-1]
    assert line == "Best by agreement: a, b (1); they tie, and `best` is a."
    assert lines(entries[:1], "nex") == ["The only candidate: a (nex 0.5)."]


def test_votes_in_trouble_are_warned_of():
    calm = estimate.Signs(0.6, 0.2, 0.0, 0.8, 0.95, 1.0, 1.0)
    assert conclusion.unsure_of_votes(calm) == []
    assert conclusion.unsure_of_votes(estimate.Signs(*[math.nan] * 7)) == []
    for change, words in (
        (dict(share=0.2), "The answers are scattered"),
        (dict(split=0.6), "The votes are split: on 60% of the prompts"),
        (dict(camps=0.3), "Two camps: on 30% of the prompts"),
        (dict(agreement=0.4), "Together the votes are 95% sure"),
        (dict(voices=0.5), "The candidates err alike"),
        (dict(readable=0.5), "50% of the responses have no answer that can be read"),
    ):
        (line,) = conclusion.unsure_of_votes(calm._replace(**change))
        assert line.startswith(words)


def test_without_information_there_is_no_best_no_regret_and_no_hit(
    ranked, pico_source, mini_set, tmp_path
):
    """One row a response: no cycles, so NEX is 0 everywhere. What was linked before is gone."""
    specs = [str(p) for p in pico_source]
    (tmp_path / "truth.csv").write_text("a,0.5\nb,0.25\n")
    given = tmp_path / "traces"
    given.mkdir()
    for path in pico_source:
        source = ranked[0] / "candidates" / path.name / "traces.jsonl"
        (given / f"{path.name}.jsonl").write_bytes(source.read_bytes())
    arguments: dict[str, Any] = dict(
        mini_set=str(mini_set),
        out=tmp_path / "out",
        traces=str(given),
        **SMALL | {"row_tokens": 96},
    )
    first = rank.rank(specs, select="length", **arguments)
    assert first.pick is not None and (tmp_path / "out" / "best").is_symlink()
    result = rank.rank(specs, select="nex", truth=str(tmp_path / "truth.csv"), **arguments)
    assert {c.scores["nex"] for c in result.candidates} == {0.0}
    assert result.pick is None and result.favourites["nex"] is None
    assert not (tmp_path / "out" / "best").exists() and not result.already
    assert result.selection_quality is not None
    quality = result.selection_quality["nex"]
    assert (quality.regret_at_1, quality.hit_at_3, quality.pearson) == (None, None, None)
    assert result.selection_quality["length"].regret_at_1 is not None
    assert all(c.not_told_apart_from_best for c in result.candidates)
    assert "the score tells nobody apart" in (tmp_path / "out" / "report.html").read_text()


def test_an_edited_truth_or_score_concludes_a_finished_ranking_anew(
    ranked, pico_source, mini_set, tmp_path, monkeypatch
):
    import importlib
    import shutil
    import sys

    out = tmp_path / "out"
    shutil.copytree(ranked[0], out, symlinks=True)
    specs, truth = [str(p) for p in pico_source], tmp_path / "truth.csv"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = tmp_path / "edited_score.py"

    def run(accuracy: float, value: int) -> Ranking:
        truth.write_text(f"a,{accuracy}\nb,0.2\n")
        module.write_text(f"def mine(response):\n    return {value} * response.tokens\n")
        sys.modules.pop("edited_score", None)
        importlib.invalidate_caches()
        return rank.rank(
            specs, mini_set=str(mini_set), out=out, keep_activations=True, truth=str(truth),
            select="edited_score:mine", **SMALL,
        )  # fmt: skip

    first = run(0.5, 1)
    assert run(0.5, 1).already
    assert {c.name: c.accuracy for c in run(0.75, 1).candidates} == {"a": 0.75, "b": 0.2}
    scaled = run(0.75, -1)
    assert scaled.pick != first.pick
    monkeypatch.delitem(sys.modules, "edited_score")


def test_a_candidate_without_a_score_is_last_and_null():
    assert conclusion.best_first(np.array([math.nan, 0.2, 0.5])) == [2, 1, 0]


# Kept evidence -----------------------------------------------------------------------------------


def test_evidence_file_gives_back_every_response_and_the_ranking_from_it(ranked, pico_source):
    """Rows, evidence and mass of every response: the same as the recordings', and the same scores,
    also where the readings are applied to the rows again."""
    out, _ = ranked
    for path in pico_source:
        directory = out / "candidates" / path.name
        kept = evidence_file.read(directory)
        scored = artifact.read(CandidateScores, directory).responses
        assert kept.rows and (kept.row_tokens, kept.top_k) == (2, 6)
        assert kept.readings == asdict(nex.DEFAULT)
        assert [(r.prompt_id, r.sample) for r in kept.responses] == [
            (r.prompt_id, r.sample) for r in scored
        ]
        n = kept.n_layers * kept.d_ff
        weight_N = nex.weights(*nex.accumulate([r.evidence for r in kept.responses], n))
        for response, score in zip(kept.responses, scored, strict=True):
            acts = response.activations
            assert acts is not None
            name = f"{response.prompt_id}-{response.sample}.safetensors"
            recording = activations.load(directory / "activations" / name)
            for field, value in vars(recording.activations).items():
                np.testing.assert_array_equal(getattr(acts, field), value)
            again = nex.credit(acts)
            for mine, theirs in zip(again, response.evidence, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            found = nex.good_mass_fraction(response.neuron_K, response.mass_K, weight_N)
            assert found.score == score.nex and score.cycles == again.cycles
            np.testing.assert_allclose(response.entropy_R, score.entropy_R, atol=1e-6)
    light = evidence_file.read(directory, rows=False)
    assert not light.rows and light.responses[0].evidence.cycles == scored[0].cycles


def test_evidence_beyond_its_share_is_not_kept_rows_first(pico_source, mini_set, tmp_path, ranked):
    directory = ranked[0] / "candidates" / "a"
    whole = evidence_file.read(directory)
    rest = sum(map(evidence_file.response_bytes, whole.responses))
    arguments: dict[str, Any] = dict(mini_set=str(mini_set), traces=str(ranked[0]), **SMALL)
    for n, (share, rows) in enumerate([(1.5 * rest, False), (0.5 * rest, None)]):
        out = tmp_path / str(n)
        rank.rank([str(pico_source[0])], out=out, evidence_mb=share / 1e6, **arguments)
        if rows is None:
            with pytest.raises(BadInput, match="larger --evidence-mb"):
                evidence_file.read(out / "candidates" / "a")
            continue
        kept = evidence_file.read(out / "candidates" / "a")
        with pytest.raises(BadInput, match="but not its rows"):
            evidence_file.require_rows(kept, out)
        for mine, theirs in zip(kept.responses, whole.responses, strict=True):
            np.testing.assert_array_equal(mine.evidence.effective_K, theirs.evidence.effective_K)


def test_weights_name_all_positive_mass_beside_what_is_kept(ranked, pico_source):
    out, _ = ranked
    for path in pico_source:
        stored = load_file(out / "candidates" / path.name / "weights.safetensors")
        files = (out / "candidates" / path.name / "activations").iterdir()
        recordings = [activations.load(file) for file in files]
        total = np.mean([r.positive_N.sum(dtype=float) for r in recordings])
        assert stored["positive_LF"].sum(dtype=float) == pytest.approx(total, rel=1e-5)
        assert (stored["positive_LF"] >= stored["mass_LF"] * (1 - 1e-5)).all()
        for r in recordings:
            kept = r.activations.mass_E.sum(dtype=float)  # float16 in the file
            assert r.kept_mass == pytest.approx(kept / r.positive_N.sum(dtype=float), rel=5e-3)


def test_the_inverted_u_is_a_statement_with_its_numbers():
    def at(points: Sequence[tuple[float, float]], **changes: Any) -> list[RankedCandidate]:
        return [
            entry(f"c{n}", explore_segments=x, estimate=y, **changes)
            for n, (x, y) in enumerate(points)
        ]

    noise = [0.01, -0.01, 0.02, -0.02, 0.01, 0.0, -0.01]
    hill = [(x, 0.8 - 0.03 * (x - 3) ** 2 + e) for x, e in enumerate(noise)]
    found = exploration.inverted_u(at(hill))
    assert found is not None and (found.verdict, found.of) == ("inverted U", "estimate")
    low, high = found.vertex_interval
    assert low is not None and high is not None and low < 3.0 < high
    assert found.vertex == pytest.approx(3, abs=0.3) and found.p < 0.01
    assert "an inverted U with its top at 3.0 E segments (95%: " in found.line
    up = exploration.inverted_u(at([(x, 0.1 * x + e) for x, e in enumerate(noise)]))
    assert up is not None and up.verdict == "rising"
    flat = exploration.inverted_u(at([(x, e) for x, e in enumerate(noise)]))
    assert flat is not None and flat.verdict == "flat"
    assert exploration.inverted_u(at(hill[:3])) is None
    assert exploration.inverted_u(at([(1.0, 0.5)] * 6)) is None


# ---------------------------------------------------------------- how densely it records


@pytest.mark.parametrize(
    ("model_type", "extra", "units"),
    [
        ("qwen3", {}, None),
        ("qwen3_moe", {}, 2 * 16),
        ("qwen3_moe", {"mlp_only_layers": [1]}, 2 * 16),
        ("mixtral", {}, None),
    ],
)
def test_a_share_is_of_the_units_that_a_token_passes_through(
    make_checkpoint, tmp_path: Path, model_type: str, extra: dict[str, Any], units: int | None
):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", model_type, **extra))
    dense = int(checkpoint.config["intermediate_size"])
    each = units or dense * (2 if model_type == "mixtral" else 1)
    alone = len(extra.get("mlp_only_layers", ()))
    expected = (checkpoint.n_layers - alone) * each + alone * dense
    assert (
        checkpoint.passed_units
        == expected
        < checkpoint.n_layers * checkpoint.d_ff + (model_type == "qwen3")
    )
    subject = subjects([str(checkpoint.path)])
    assert list(recording.top_k(Scoring(top_k=0.25), subject).values()) == [round(expected / 4)]
    assert list(recording.top_k(Scoring(), subject).values()) == [max(1, round(expected / 175.104))]
    assert list(recording.top_k(Scoring(top_k=7), subject).values()) == [7]
    assert list(recording.top_k(Scoring(preset="paper"), subject).values()) == [2000]


def test_rows_fit_the_shorter_median_response():
    def traces(*lengths: int) -> list[Trace]:
        return [Trace("q", n, [1], [1] * length, "", "stop") for n, length in enumerate(lengths)]

    for lengths, expected in {
        (47, 0, 900): 1, (96, 1, 800): 2, (191,): 2, (192,): 4, (10**6,): 32, (1535, 1536): 16,
    }.items():  # fmt: skip
        found = recording.row_length({"a": traces(*lengths), "b": traces(10**7)})
        assert found.row_tokens == expected and found.line.count("\n") == 0, lengths
    assert recording.row_tokens(Scoring(preset="paper")) == 32
    assert recording.row_tokens(Scoring(preset="paper", row_tokens=3)) == 3


def test_auto_is_decided_once_and_the_same_however_the_traces_come(
    pico_source, mini_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Rows of two tokens, as 20 are wanted; a killed run finds them again, and so do given traces
    and rounds; a cache's rows are read off it."""
    monkeypatch.setattr(recording, "ROWS_WANTED", 20)
    specs = [str(p) for p in pico_source]
    asked = dict(mini_set=str(mini_set), samples=1, max_tokens=48, seed=3)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(reduced, "save_reduced", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            rank.rank(specs, out=out, **asked)
    assert capsys.readouterr().err.count("row_tokens auto: 2 (") == 1
    monkeypatch.setattr(recording, "ROWS_WANTED", 1)  # decided is decided
    first = rank.rank(specs, out=out, **asked)
    assert "row_tokens auto" not in capsys.readouterr().err
    monkeypatch.setattr(recording, "ROWS_WANTED", 20)
    settings = json.loads((out / "ranking.json").read_text())["settings"]
    units = Checkpoint.open(specs[0]).passed_units
    assert settings["row_tokens"] == 2 and settings["row_tokens_asked"] == "auto"
    assert settings["top_k_share"] == pytest.approx(2000 / 350208)
    assert settings["top_k"] == max(1, round(units * 2000 / 350208))
    kept = evidence_file.read(out / "candidates" / "b")
    assert (kept.row_tokens, kept.top_k) == (2, settings["top_k"])
    assert rank.rank(specs, out=out, **asked, select="length").settings == first.settings
    told = rank.rank(
        specs, out=tmp_path / "told", **asked, row_tokens=2, top_k=settings["top_k"],
        format="nex-cache",
    )  # fmt: skip
    scores = {c.name: c.scores for c in first.candidates}
    assert {c.name: c.scores for c in told.candidates} == scores
    given = rank.rank(specs, out=tmp_path / "given", traces=out, **asked)
    assert {c.name: c.scores for c in given.candidates} == scores
    rounds = rank.rank(specs, out=tmp_path / "rounds", adaptive=True, tolerance=0, **asked)
    assert rounds.settings["row_tokens"] == 2
    cached = rank.rank(nex_cache=str(tmp_path / "told"), out=tmp_path / "cached")
    assert (cached.settings["row_tokens"], cached.settings["top_k"]) == (2, None)
    assert "The kept activations of each token" in (cached.out / "report.html").read_text()


def test_consensus_is_held_against_the_others_vote(
    ranked, pico_source, mini_set: Path, tmp_path: Path, capsys
):
    """Asked of a finished ranking; by hand: a response's share of the other candidate's answers."""
    out = Path(shutil.copytree(ranked[0], tmp_path / "out"))
    asked: dict[str, Any] = dict(mini_set=str(mini_set), out=out, keep_activations=True, **SMALL)
    checkpoints = [str(p) for p in pico_source]
    with pytest.raises(BadInput, match="consensus_top 5000 keeps all"):
        rank.rank(checkpoints, **asked, consensus=True, consensus_top=5000)
    result = rank.rank(checkpoints, **asked, consensus=True, consensus_top=0.1)
    assert result.already
    found = artifact.read(signal.PooledConsensus, out).candidates
    kept = {n: artifact.read(CandidateScores, out / "candidates" / n).responses for n in found}
    a, b = kept
    shares = [
        np.mean([r.answer is not None and r.answer == o.answer for o in kept[b]
                 if o.prompt_id == r.prompt_id])
        for r in kept[a]
    ]  # fmt: skip
    assert found[a].against == "votes" and found[a].responses == len(kept[a]) == 10
    assert found[a].accuracy == pytest.approx(np.mean(shares))
    rank.show(result)
    assert f"consensus of {a}: " in capsys.readouterr().out


def test_a_share_is_said_in_plain_digits_from_ten_percent_up():
    shares = (1, 0.998, 0.3349, 0.0994, 0.0035, 1.2e-7)
    assert [percent(share) for share in shares] == [
        "100%", "100%", "33%", "9.9%", "0.35%", "1.2e-05%",
    ]  # fmt: skip
