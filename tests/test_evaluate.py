"""Evaluation: what it measures, that it resumes to the same numbers, and what it refuses."""

import csv
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from surgeon import artifact
from surgeon import evaluate as evaluation
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.evaluate import evaluate, show, table
from surgeon.merge import sweep
from surgeon.settings import bind
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.traces import Trace, append, encode, read_traces
from surgeon.traces import sampling as engine
from surgeon.truth import EvaluatedCandidate, EvaluatedTask, Evaluation, read_accuracies

METRICS = ("avg", "maj", "pass1", "ece", "tokens", "truncated", "missing")
PROBLEMS = 6


@pytest.fixture(scope="module")
def talkative(pico_source: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two siblings `a` and `b` for which a third of the tokens ends the answer."""
    root = tmp_path_factory.mktemp("talkative")
    for source in pico_source:
        copy = Path(shutil.copytree(source, root / source.name))
        stop = {"eos_token_id": [2, *range(80, 128)], "pad_token_id": 0}
        (copy / "generation_config.json").write_text(json.dumps(stop))
    return root


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Six problems; by `even` half of all non-empty answers to the gold answer 0 are right."""
    lines = [
        {"id": f"p{n}", "prompt": f"w{n} w{n + 7} ?", "answer": str(n % 2)} for n in range(PROBLEMS)
    ]
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's with a check that is right about half of the time."""
    (tmp_path / "parity_check.py").write_text(
        textwrap.dedent(
            """
            def even(answer, gold):
                return len(answer) % 2 == int(gold)
            """
        )
    )
    monkeypatch.delitem(sys.modules, "parity_check", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return "parity_check:even"


@pytest.fixture
def run(talkative: Path, task: Path, mine: str, tmp_path: Path) -> Callable[..., Evaluation]:
    """`run(out_name, **changes)`: both siblings on the task, 3 samples, at most 4 tokens."""

    def call(out: str = "out", checkpoints: tuple[str, ...] = ("a", "b"), **changes: Any):
        arguments: dict[str, Any] = dict(
            task=str(task), out=tmp_path / out, samples=3, temperature=1.0, top_p=1.0,
            max_tokens=4, check=mine, answer="last-line", device="cpu", dtype="float32",
        )  # fmt: skip
        return evaluate([str(talkative / c) for c in checkpoints], **(arguments | changes))

    return call


def prepared(checkpoint: str, task: Path, answer: str = "last-line") -> evaluation.EvaluatePlan:
    """A checked plan of three samples per problem, nothing run yet."""
    return evaluation.prepare(
        bind(
            EvaluateSettings,
            dict(checkpoints=checkpoint, task=str(task), out="out", samples=3, max_tokens=9,
                 answer=answer, device="cpu"),
        )
    )  # fmt: skip


def test_evaluation_has_the_promised_schema_and_counts_by_hand(
    run: Callable[..., Evaluation], tmp_path: Path
):
    evaluation = run()
    assert evaluation.out == tmp_path / "out" and not evaluation.already
    assert artifact.read(Evaluation, tmp_path / "out") == evaluation
    result = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert result.keys() == {
        "format", "task", "settings", "warnings", "candidates", "groups", "consensus_top",
        "tasks", "transfers", "sources", "times",
    }  # fmt: skip
    for name, took in result["times"].items():
        found = read_traces(tmp_path / "out" / "traces" / f"{name}.jsonl")
        assert took["answers"] == len(found) and took["seconds"] > 0
        assert took["tokens"] == sum(len(trace.token_ids) for trace in found)
        assert took["tokens_per_s"] == pytest.approx(took["tokens"] / took["seconds"])
    assert set(result["times"]) == {"a", "b"}
    assert result["task"]["problems"] == PROBLEMS
    assert result["settings"]["samples"] == 3
    assert [c["name"] for c in result["candidates"]] == ["a", "b"]
    for c in result["candidates"]:
        assert {"checkpoint", "ratio", "digest", "check_timeouts", "check_deaths"} <= c.keys()
        assert c["interval"].keys() == set(METRICS)
        for name in METRICS:
            low, high = c["interval"][name]
            assert low <= high
            if name != "ece":  # a resampled calibration error is biased upward
                assert low - 1e-12 <= c[name] <= high + 1e-12
        traces = read_traces(tmp_path / "out" / "traces" / f"{c['name']}.jsonl")
        assert len(traces) == c["responses"] == 3 * PROBLEMS
        assert c["tokens"] == pytest.approx(np.mean([len(t.token_ids) for t in traces]))
        assert c["truncated"] == pytest.approx(
            np.mean([t.finish_reason == "length" for t in traces])
        )
        right = {
            t.key: t.finish_reason == "stop"
            and bool(t.text.strip())
            and len(t.text.strip().splitlines()[-1].strip()) % 2 == int(t.prompt_id[1:]) % 2
            for t in traces
        }
        assert c["avg"] == c["pass1"] == pytest.approx(np.mean(list(right.values())))
        lines = (tmp_path / "out" / "answers" / f"{c['name']}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert {(r["prompt_id"], r["sample"]): r["correct"] for r in rows} == right
    assert 0 < result["candidates"][0]["avg"] < 1
    assert 0 < result["candidates"][0]["truncated"] < 1


def test_a_baseline_adds_the_paired_gain_of_the_others(run: Callable[..., Evaluation]):
    result = run(baseline="a")
    a, b = result.candidates
    assert a.gain is None and b.gain is not None
    assert b.gain.avg == pytest.approx(b.avg - a.avg)
    low, high = b.gain.interval
    assert low <= b.gain.avg <= high and low < high
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table(result))
    assert f"{100 * b.gain.avg:+.1f} (" in console.export_text()


def test_seeds_of_one_setting_are_reported_as_one_group(run: Callable[..., Evaluation]):
    result = run(baseline="a", groups={"both": ["a", "b"], "b alone": ["b"]})
    a, b = result.candidates
    both, alone = result.groups
    for name in ("avg", "maj", "tokens", "ece"):
        assert getattr(both, name) == pytest.approx((getattr(a, name) + getattr(b, name)) / 2)
        assert getattr(alone, name) == pytest.approx(getattr(b, name))
    assert alone.interval == b.interval and alone.gain == b.gain
    assert both.gain is not None and b.gain is not None
    assert both.gain.avg == pytest.approx(b.gain.avg / 2)
    low, high = both.interval["avg"]
    assert low <= min(a.avg, b.avg) and high >= max(a.avg, b.avg)
    console = Console(record=True, width=200)
    console.print(table(result))
    assert "both (2 seeds)" in console.export_text()


def test_responses_made_elsewhere_are_judged_beside_the_others(
    run: Callable[..., Evaluation], tmp_path: Path
):
    first = run("first")
    file = tmp_path / "first" / "traces" / "b.jsonl"
    result = run("second", checkpoints=("a",), responses={"theirs": str(file)}, baseline="a")
    a, theirs = result.candidates
    assert theirs.name == "theirs" and theirs.checkpoint == str(file)
    for name in METRICS:
        assert getattr(theirs, name) == getattr(first.candidates[1], name)
    assert theirs.gain is not None
    assert theirs.gain.avg == pytest.approx(theirs.avg - a.avg)
    with pytest.raises(BadInput, match=f"lacks {PROBLEMS} of {4 * PROBLEMS} responses"):
        run("third", checkpoints=("a",), samples=4, responses={"theirs": str(file)})


def test_voting_over_fewer_samples_is_reported_too(run: Callable[..., Evaluation]):
    for c in run().candidates:
        assert len(c.cons) == 3
        assert c.cons[0] == pytest.approx(c.avg) and c.cons[2] == pytest.approx(c.maj)


def test_a_finished_evaluation_is_not_done_again_and_says_so(
    run: Callable[..., Evaluation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = run(samples=1, limit=2)
    before = (tmp_path / "out" / "evaluate.json").stat().st_mtime_ns
    capsys.readouterr()
    again = run(samples=1, limit=2, batch=3)
    assert again == replace(first, already=True)  # pyright: ignore
    assert (tmp_path / "out" / "evaluate.json").stat().st_mtime_ns == before
    show(again)
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"another run.*limit"):
        run(samples=1, limit=3)


@pytest.mark.parametrize("before", [{}, {"answer_words": [], "think_tags": []}])
def test_a_run_made_before_reading_had_settings_is_the_same_command(
    run: Callable[..., Evaluation], tmp_path: Path, before: dict[str, list[str]]
):
    run(samples=1, limit=1, checkpoints=("a",))
    file = tmp_path / "out" / "surgeon.json"
    content = json.loads(file.read_text())
    assert not {"answer_words", "think_tags"} & content["arguments"].keys()
    content["arguments"] |= before
    file.write_text(json.dumps(content))
    assert run(samples=1, limit=1, checkpoints=("a",)).already
    with pytest.raises(BadInput, match=r"another run.*answer_words"):
        run(samples=1, limit=1, checkpoints=("a",), answer_words="respuesta")


def test_another_version_of_the_users_check_is_another_run(
    run: Callable[..., Evaluation], tmp_path: Path
):
    run(samples=1, limit=1, checkpoints=("a",))
    (tmp_path / "parity_check.py").write_text("def even(answer, gold):\n    return True\n")
    with pytest.raises(BadInput, match=r"another run.*parity_check"):
        run(samples=1, limit=1, checkpoints=("a",))


@pytest.mark.parametrize("stop_after", [5, 20])
def test_interrupted_and_resumed_equals_uninterrupted(
    run: Callable[..., Evaluation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
):
    whole = run("whole")
    written = 0

    def stop(file: Path, trace: Trace) -> None:
        nonlocal written
        if written == stop_after:
            raise KeyboardInterrupt
        written += 1
        append(file, trace)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    assert not (tmp_path / "out").exists()
    torn = tmp_path / "out.partial" / "traces" / ("a.jsonl" if stop_after < 18 else "b.jsonl")
    with open(torn, "a") as file:  # the line a kill leaves half written
        file.write('{"prompt_id": "p0", "sam')
    assert run("out").candidates == whole.candidates
    assert not (tmp_path / "out.partial").exists()
    for name in ("a", "b"):
        both = [
            sorted(read_traces(tmp_path / out / "traces" / f"{name}.jsonl"), key=repr)
            for out in ("whole", "out")
        ]
        assert both[0] == both[1]
        answers = [
            (tmp_path / out / "answers" / f"{name}.jsonl").read_text() for out in ("whole", "out")
        ]
        assert answers[0] == answers[1]


def test_candidates_of_a_virtual_family_answer_as_the_written_ones_do(
    run: Callable[..., Evaluation], talkative: Path, tmp_path: Path
):
    a, b = str(talkative / "a"), str(talkative / "b")
    for name, virtual in (("virtual", True), ("written", False)):
        sweep(a, b, out=tmp_path / name, ratios="0.45", virtual=virtual, smoke=False)
    settings: dict[str, Any] = dict(samples=1, limit=3)
    found = [
        run(f"out-{name}", (str(tmp_path / name),), **settings).candidates
        for name in ("virtual", "written")
    ]
    assert [c.name for c in found[0]] == ["a", "slerp-0.45", "b"]
    assert [c.ratio for c in found[0]] == [0, 0.45, 1]
    assert found[0][1].checkpoint.endswith("family.json#slerp-0.45")
    for virtual, written in zip(*found, strict=True):
        assert {**asdict(virtual), "checkpoint": ""} == {**asdict(written), "checkpoint": ""}
    one = run("one", (f"{tmp_path / 'virtual'}/family.json#slerp-0.45",), **settings)
    assert one.candidates == found[0][1:2]


def test_a_kill_between_sampling_and_checking_samples_nothing_again(
    run: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "judge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(samples=1)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "sampled", interrupt)
        assert run(samples=1).candidates[0].responses == PROBLEMS


def test_truncated_responses_have_no_answer_and_are_warned_about(
    run: Callable[..., Evaluation], capsys: pytest.CaptureFixture[str]
):
    result = run(max_tokens=1, checkpoints=("a",))
    (c,) = result.candidates
    assert c.tokens == 1
    assert c.missing >= c.truncated > 0.2
    assert c.avg <= 1 - c.truncated
    assert any("limit of 1 tokens" in line for line in result.warnings)
    show(result)
    assert "limit of 1 tokens" in " ".join(capsys.readouterr().out.split())


def test_measured_values_equal_the_metrics_on_hand_made_responses(
    tmp_path: Path, talkative: Path, task: Path
):
    """Two problems x 3 samples: votes 1,1,- (gold 1) and 2,3,3 (gold 2).

    Avg = (2/3 + 1/3) / 2 = 1/2, Maj = (1 + 0) / 2, confidence 2/3 twice, in one bin of which the
    accuracy is 1/2: ECE = 1/6.
    """
    texts = [["Answer: 1", "Answer: 1.0", "Answer: 1"], ["Answer: 2", "Answer: 3", "Answer: 3."]]
    traces = [
        Trace(f"p{p}", s, [1], [5] * (s + 1), text, "length" if (p, s) == (0, 2) else "stop")
        for p, row in enumerate(texts)
        for s, text in enumerate(row)
    ]
    task.write_text(
        '{"id": "p0", "prompt": "w1", "answer": "1"}\n{"id": "p1", "prompt": "w2", "answer": "2"}\n'
    )
    work = tmp_path / "work"
    (work / "traces").mkdir(parents=True)
    for trace in reversed(traces):
        append(work / "traces" / "a.jsonl", trace)
    plan = prepared(str(talkative / "a"), task, answer="auto")
    (c,) = evaluation.measure(plan, work).candidates
    assert (c.avg, c.maj) == (pytest.approx(0.5), pytest.approx(0.5))
    assert c.ece == pytest.approx(1 / 6)
    assert (c.tokens, c.truncated, c.missing) == pytest.approx((2, 1 / 6, 1 / 6))


@pytest.mark.parametrize(
    ("ending", "wanted"),
    [("<think> ", [None, "w2"]), ("<think> </think> ", ["w1", "w2"]), ("", ["w1", "w2"])],
)
def test_an_unfinished_thinking_block_that_the_template_began_holds_no_answer(
    pico_pair: tuple[Path, Path],
    task: Path,
    ending: str,
    wanted: list[str | None],
):
    template = pico_pair[0] / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant ", f"assistant {ending}"))
    tokenizer = Checkpoint.open(pico_pair[0]).tokenizer()
    plan = prepared(str(pico_pair[0]), task)
    ids = encode(tokenizer, plan.problems[0])
    traces = [
        Trace("p0", 0, ids, [5, 2], "w1", "stop"),
        Trace("p0", 1, ids, [5, 2], "w1 </think> w2", "stop"),
    ]
    assert evaluation.read_answers(traces, plan.tasks[0].extract, tokenizer) == wanted


def test_table_is_sorted_by_accuracy():
    def candidate(name: str, avg: float) -> EvaluatedCandidate:
        numbers: dict[str, Any] = dict.fromkeys(METRICS, 0.25) | {"avg": avg}
        return EvaluatedCandidate(
            name=name, **numbers, interval={"avg": (avg - 0.1, avg + 0.1)}, cons=(), checkpoint="",
            ratio=None, digest="", problems=1, responses=8, check_timeouts=0, check_deaths=0,
        )  # fmt: skip

    result = Evaluation(
        task=EvaluatedTask(path="", problems=1, digest=""),
        settings={"samples": 8, "baseline": None},
        warnings=(),
        candidates=(candidate("x", 0.1), candidate("y", 0.7)),
    )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(table(result))
    text = console.export_text()
    assert "Avg@8" in text
    assert text.index("y ") < text.index("x ")
    assert "0.600 … 0.800" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, "samples = 0"),
        ({"limit": 0}, "limit = 0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"timeout_s": 0}, "timeout_s = 0"),
        (
            {"check": "exactly"},
            "check = exactly, expected one of: exact, choice, math; or module:function. Did you",
        ),
        ({"answer": "(a)(b)"}, "2 groups"),
        ({"check": "choice"}, r"task.jsonl:1: found the answer '0', expected a letter"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "float12"}, "dtype is 'float12'"),
        ({"baseline": "c"}, "baseline c is not evaluated. Name one of: a, b"),
        ({"groups": {"g": ["c"]}}, "group g holds c, which is not evaluated. Name some of: a, b"),
        ({"responses": {"theirs": "nowhere.jsonl"}}, "theirs: nowhere.jsonl is no file"),
        ({"responses": {"a": "nowhere.jsonl"}}, "responses are called 'a', expected a name of its"),
        ({"responses": ["x"]}, r"found responses = \['x'\], expected names with values"),
        ({"groups": {"g": []}}, "group g holds no candidate"),
        ({"groups": ["a"]}, r"found groups = \['a'\], expected names with values"),
        ({"task": "no-such-file.jsonl"}, "no-such-file"),
        ({"checkpoints": ("nothing",)}, "nothing"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_written(
    run: Callable[..., Evaluation], tmp_path: Path, changes: dict[str, Any], words: str
):
    with pytest.raises(BadInput, match=words):
        run(**changes)
    assert not list(tmp_path.glob("out*"))


def test_a_problem_without_answer_is_named_by_its_line(run: Callable[..., Evaluation], task: Path):
    task.write_text('{"prompt": "w1", "answer": "1"}\n\n{"prompt": "w2"}\n')
    with pytest.raises(BadInput, match=r"task\.jsonl:3: found no answer"):
        run()


def test_consensus_may_be_asked_of_a_finished_evaluation(
    run: Callable[..., Evaluation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = run("first", checkpoints=("a",), consensus_top=0.1)
    assert first.candidates[0].consensus is None and first.consensus_top is None
    other = {"responses": {"theirs": str(tmp_path / "first" / "traces" / "a.jsonl")}}
    at_once = run("second", checkpoints=("a",), consensus=True, consensus_top=0.1, **other)
    later = run("first", checkpoints=("a",), consensus=True, consensus_top=0.1)
    a, theirs = at_once.candidates
    assert theirs.consensus is None, "no model of theirs is here"
    assert a.consensus is not None and a.consensus == later.candidates[0].consensus
    assert a.consensus.accuracy == pytest.approx(a.avg)
    assert artifact.read(Evaluation, tmp_path / "first").candidates == later.candidates
    rows = (tmp_path / "first" / "consensus" / "a.jsonl").read_text().splitlines()
    assert len(rows) == 3 * PROBLEMS
    show(later)
    assert "consensus of a: AUROC" in capsys.readouterr().out
    with pytest.raises(BadInput, match="consensus_top 5000 keeps all"):
        run("third", consensus=True, consensus_top=5000)


# --- several tasks


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Three tasks whose problems have the same ids; `odd` and `even` have golds of one kind."""
    files = {}
    for name, gold, n in (("odd", "1", 4), ("even", "0", 6), ("far", "0", 2)):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"w{len(files)} w{i} ?", "answer": gold} for i in range(n)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(file)
    return files


def test_several_tasks_are_one_table_with_in_domain_and_cross_domain(
    run: Callable[..., Evaluation], three: dict[str, str], tmp_path: Path, capsys: Any
):
    named = ",".join(f"{name}={file}" for name, file in three.items())
    several: dict[str, Any] = dict(task="", baseline="a", groups={"both": ["a", "b"]})
    result = run(tasks=named, trained_on="b=odd", **several)
    a, b = result.candidates
    of = {task.name: {m.name: m for m in task.measures} for task in result.tasks}
    assert {name: len(m) for name, m in of.items()} == {"odd": 3, "even": 3, "far": 3}
    assert [task.problems for task in result.tasks] == [4, 6, 2]
    for one in (a, b, *result.groups):
        for metric in METRICS:
            values = [getattr(of[task][one.name], metric) for task in of]
            assert getattr(one, metric) == pytest.approx(np.mean(values))
    # By hand: right where the answer's length is odd and the gold 1, or even and the gold 0.
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "answers" / "b.jsonl").read_text().splitlines()
    ]
    for name in of:
        own = [row["correct"] for row in rows if row["prompt_id"].startswith(f"{name}/")]
        assert of[name]["b"].avg == pytest.approx(np.mean(own))
    (moved,) = result.transfers
    assert (moved.name, moved.sources) == ("b", ("odd",))
    assert moved.in_avg is not None and moved.cross_avg is not None and moved.cross_ece is not None
    assert moved.in_avg.value == of["odd"]["b"].avg
    assert moved.in_avg.gain == pytest.approx(of["odd"]["b"].avg - of["odd"]["a"].avg)
    cross = [np.mean([of[t][name].avg for t in ("even", "far")]) for name in "ba"]
    assert moved.cross_avg.value == pytest.approx(cross[0])
    assert moved.cross_avg.gain == pytest.approx(cross[0] - cross[1])
    low, high = moved.cross_avg.gain_interval or (0, 0)
    assert low <= cross[0] - cross[1] <= high
    ece = np.mean([of[t]["b"].ece for t in ("even", "far")])
    assert moved.cross_ece.value == pytest.approx(ece)
    assert sum(b.problems for b in a.calibration) == 12
    for bin_ in of["odd"]["a"].calibration:
        assert bin_.low < bin_.confidence <= bin_.low + 1 / 15 + 1e-9 or bin_.confidence == 0
    total = sum(abs(b.accuracy - b.confidence) * b.problems for b in of["odd"]["a"].calibration)
    assert total / 4 == pytest.approx(of["odd"]["a"].ece)
    assert artifact.read(Evaluation, tmp_path / "out") == result
    show(result)
    assert "b, trained on odd: in-domain" in " ".join(capsys.readouterr().out.split())
    assert read_accuracies(tmp_path / "out", "far") == {
        name: of["far"][name].avg for name in ("a", "b", "both")
    }
    again = run(tasks=named, trained_on="b=elsewhere", **several)
    assert again.transfers[0].in_avg is None and again.transfers[0].cross_avg is not None
    assert again.transfers[0].cross_avg.value == pytest.approx(b.avg)
    assert "b was trained on elsewhere, which is none of the tasks" in again.warnings[-1]


def test_tables_hold_every_value_for_a_paper_and_a_spreadsheet(
    run: Callable[..., Evaluation], three: dict[str, str], tmp_path: Path
):
    result = run(task="", tasks=three, trained_on={"b": "even"}, baseline="a")
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "tables.csv").read_text().splitlines()))
    by = {(r["name"], r["task"], r["metric"]): float(r["value"]) for r in rows}
    for task in result.tasks:
        for one in task.measures:
            assert by[one.name, task.name, "ece"] == one.ece
    assert by["b", "mean", "avg"] == result.candidates[1].avg
    assert result.transfers[0].in_avg is not None
    assert by["b", "in-domain", "avg"] == result.transfers[0].in_avg.value
    text = (out / "tables.md").read_text()
    assert f"{100 * by['b', 'even', 'avg']:.2f}* |" in text and "| mean |" in text
    tex = (out / "tables.tex").read_text()
    assert tex.count(r"\begin{tabular}") == 5 and r"Avg@3, \%" in tex
    diagram = ElementTree.parse(out / "calibration.svg")
    assert len(diagram.findall(".//{*}g")) == 2 * 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "x.jsonl"}, "found both task and tasks"),
        ({"tasks": None}, "found neither task nor tasks"),
        ({"tasks": "odd"}, "found tasks = odd, expected NAME=FILE,NAME=FILE,... or a directory"),
        ({"tasks": "a=x,a=y"}, "found a twice in tasks"),
        ({"tasks": {"o/d": "x.jsonl"}}, "found a task called 'o/d'"),
        ({"tasks": {"mean": "x.jsonl"}}, "none of mean, in-domain, cross-domain"),
        ({"tasks": "odd=nowhere.jsonl"}, "nowhere.jsonl"),
        ({"checks": "no=math"}, "checks name no, which is no task. Name some of: odd, even, far"),
        ({"answers": "odd"}, "found 'odd' in answers, expected NAME=VALUE"),
        ({"checks": {"odd": "choice"}}, r"odd.jsonl:1: found the answer '1', expected a letter"),
        ({"trained_on": "c=odd"}, "trained_on names c, which is not evaluated"),
        ({"task": "task.jsonl", "tasks": None, "trained_on": "a=x"}, "trained_on without tasks"),
        ({"task": "task.jsonl", "tasks": None, "checks": "a=math"}, "checks with one task"),
    ],
)
def test_unusable_tasks_are_refused_before_anything_is_written(
    run: Callable[..., Evaluation], three: dict[str, str], tmp_path: Path, changes: dict, words: str
):
    with pytest.raises(BadInput, match=re.escape(words) if "(" not in words else words):
        run(**({"task": "", "tasks": three} | changes))
    assert not list(tmp_path.glob("out*"))
