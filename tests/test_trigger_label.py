"""`surgeon trigger label`: spans against the built-in task's checker, counterparts, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from trigger_labels import MODEL, PROMPTS, lines, make_labels, write_traces

from surgeon import artifact
from surgeon.builtin import task
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import Span, StepEnds, split_steps, whole_steps
from surgeon.settings.trigger_label import LabelSettings
from surgeon.traces import Prompt, Sampling, read_prompts, read_traces, sample, sampling
from surgeon.trigger import counterparts
from surgeon.trigger.artifacts import read_labels, write_prompts
from surgeon.trigger.label import Labelling, label, prepare, show
from surgeon.watch.spans import read_spans

TOKENIZER: Any = resolve(MODEL).tokenizer()
SAMPLED: dict[str, Any] = dict(
    prompts="builtin:test", limit=8, max_tokens=120, pairs=1, resample=2, levels=("intra", "inter"),
    inter_steps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of written traces; read only."""
    return make_labels(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labelling, Path]:
    """Labels of sampled traces, and what `label` returned; read only."""
    out = tmp_path_factory.mktemp("sampled") / "out"
    return label(MODEL, out=out, **SAMPLED), out


def problems() -> dict[str, task.Problem]:
    found = read_prompts("builtin:test")[:PROMPTS]
    return {prompt.id: task.Problem.parse(prompt.messages[0]["content"]) for prompt in found}


def originals(directory: Path) -> dict[str, Any]:
    """The traces that were given or sampled, by prompt; counterparts have higher numbers."""
    found = read_traces(directory / "traces.jsonl")
    return {trace.prompt_id: trace for trace in found if trace.sample == 0}


def steps_in(spans: list[Span]) -> set[int]:
    return {step for span in spans for step in range(span.first, span.last + 1)}


# --- spans


def test_failing_spans_are_what_the_checker_finds(labels: Path):
    """`intra`: each wrong step by itself; `inter`: runs of needless checks; the rest is sound."""
    spans, seen = read_spans(labels / "spans.jsonl"), dict.fromkeys(("intra", "inter"), 0)
    for name, trace in originals(labels).items():
        checked = task.steps(problems()[name], trace.text)
        assert len(split_steps(StepEnds(TOKENIZER), trace.token_ids)) == len(checked)
        for level in seen:
            own = [s for s in spans if (s.prompt_id, s.sample, s.level) == (name, 0, level)]
            bad = [s for s in own if s.failing]
            expected = {step.index for step in checked if step.failure == level}
            seen[level] += len(expected)
            assert steps_in(bad) == expected
            assert (
                steps_in([s for s in own if not s.failing]) == set(range(len(checked))) - expected
            )
            if level == "intra":
                assert all(span.first == span.last and span.reason for span in bad)
            else:
                assert all(a.last + 1 < b.first for a, b in pairwise(bad))
    assert min(seen.values()) > 10


def test_instance_spans_are_the_first_steps_of_easy_and_hard_questions(labels: Path):
    spans = [s for s in read_spans(labels / "spans.jsonl") if s.level == "instance"]
    traces = originals(labels)
    assert {s.prompt_id for s in spans} == set(problems()) and {s.sample for s in spans} == {0}
    for span in spans:
        problem, text = problems()[span.prompt_id], traces[span.prompt_id].text
        checked = task.steps(problem, text)
        assert (span.first, span.last) == (0, min(4, len(checked)) - 1)
        over = any(step.failure == "instance" for step in checked)
        easy = len(problem.operations) <= task.EASY
        assert span.failing == (easy and over)
        assert span.pair is None or span.failing or not easy
    failing = [s.pair for s in spans if s.failing]
    hard = [s.pair for s in spans if not s.failing and s.pair is not None]
    assert failing and sorted(failing) == sorted(hard)  # pyright: ignore


def test_counterparts_share_all_before_the_failing_step_and_do_not_fail(labels: Path):
    """Sec. 2.2: decoded anew from the step before, at most `pairs` for a level of a trace."""
    spans = read_spans(labels / "spans.jsonl")
    traces = {(t.prompt_id, t.sample): t for t in read_traces(labels / "traces.jsonl")}
    pairs: dict[int, list[Span]] = {}
    for span in spans:
        if span.pair is not None and span.level != "instance":
            pairs.setdefault(span.pair, []).append(span)
    assert len(pairs) > 10 and {s[0].level for s in pairs.values()} == {"intra", "inter"}
    per_level: dict[Any, int] = {}
    for members in pairs.values():
        good, bad = sorted(members, key=lambda span: span.failing)
        assert (good.failing, bad.failing) == (False, True) and good.level == bad.level
        assert bad.sample == 0 and good.sample > 0 and good.prompt_id == bad.prompt_id
        per_level[bad[:3]] = per_level.get(bad[:3], 0) + 1
        mine, other = traces[good[:2]], traces[bad[:2]]
        assert mine.prompt_token_ids == other.prompt_token_ids
        start = split_steps(StepEnds(TOKENIZER), other.token_ids)[bad.first].start
        assert mine.token_ids[:start] == other.token_ids[:start]
        assert mine.token_ids != other.token_ids[: len(mine.token_ids)]
        assert good.first == bad.first and good.last - good.first <= bad.last - bad.first
        checked = task.steps(problems()[good.prompt_id], mine.text)
        assert good.last == len(checked) - 1
        assert all(step.failure != good.level for step in checked[good.first :])
    assert max(per_level.values()) == 1
    used = {s[0].sample for s in pairs.values()}
    assert not used & {s.sample for s in spans if s.level == "instance"}


def test_the_count_of_everything_is_returned_and_shown(labels: Path, capsys):
    told = artifact.read(Labelling, labels)
    spans = read_spans(labels / "spans.jsonl")
    for level, counts in told.levels.items():
        failing = [s for s in spans if s.level == level and s.failing]
        assert counts.failing == len(failing)
        assert counts.failing_steps == sum(s.last - s.first + 1 for s in failing)
        assert counts.failing_traces == len({s[:2] for s in failing})
        assert counts.pairs == sum(s.pair is not None for s in failing) > 0
    read = read_labels(labels, resolve(MODEL), TOKENIZER)
    assert told.traces == len({s[:2] for s in spans}) == len({s[:2] for s in read.spans})
    show(replace(told, out=Path("somewhere")))
    printed = capsys.readouterr().out
    assert f"labels of {told.traces} traces in somewhere" in printed and "Warning" not in printed


def test_traces_are_those_that_sample_draws(sampled):
    result, out = sampled
    checkpoint = resolve(MODEL)
    drawn = sample(
        checkpoint.model(), TOKENIZER, read_prompts("builtin:test")[:8],
        Sampling(samples=1, temperature=0.6, top_p=0.95, max_tokens=120),
    )  # fmt: skip
    assert {t.prompt_id: t for t in drawn} == originals(out)
    assert result.levels["instance"].traces == 0
    assert result.levels["inter"].pairs > 0


def test_the_last_step_of_a_cut_trace_is_not_judged(sampled):
    _, out = sampled
    cut = [t for t in originals(out).values() if t.finish_reason == "length"]
    ends, shortened = StepEnds(TOKENIZER), 0
    for trace in cut:
        steps = split_steps(ends, trace.token_ids)
        kept = whole_steps(ends, trace)
        whole = TOKENIZER.decode(trace.token_ids[steps[-1].start :]).endswith("\n\n")
        assert kept == (steps if whole else steps[:-1])
        shortened += not whole
        spans = [s for s in read_spans(out / "spans.jsonl") if s[:2] == (trace.prompt_id, 0)]
        assert max(s.last for s in spans) == len(kept) - 1
    assert shortened
    # An engine that leaves the end token out has ended the last step all the same.
    ids = cut[0].token_ids[:-1]
    assert not ends.after(*ids[-2:]) and len(split_steps(ends, ids)) > 1
    for reason, n in (("stop", 0), ("length", 1)):
        trace = replace(cut[0], token_ids=ids, finish_reason=reason)
        assert len(whole_steps(ends, trace)) == len(split_steps(ends, ids)) - n


def in_two_files(root: Path) -> dict[str, Any]:
    """Four easy and three hard questions, two of another file, and traces of all of them."""
    easy, hard, rest = [], [], []
    for prompt in read_prompts("builtin:test")[:PROMPTS]:
        n = len(task.Problem.parse(prompt.messages[0]["content"]).operations)
        (easy if n <= task.EASY and len(easy) < 4 else hard if len(hard) < 3 else rest).append(
            {"id": prompt.id, "prompt": prompt.messages[0]["content"]}
        )
    for name, rows in (("easy", easy), ("hard", hard), ("prompts", rest[:2])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(root / f"{name}.jsonl") for name in ("easy", "hard", "prompts")}
    return {**files, "traces": write_traces(root / "traces.jsonl")}


def test_files_of_easy_and_hard_questions_take_the_judges_place(tmp_path: Path):
    given = in_two_files(tmp_path)
    label(MODEL, out=tmp_path / "out", resample=0, instance_steps=3, **given)
    spans = [s for s in read_spans(tmp_path / "out" / "spans.jsonl") if s.level == "instance"]
    ids = {name: {row["id"] for row in lines(Path(given[name]))} for name in ("easy", "hard")}
    assert {s.prompt_id for s in spans if s.failing} == ids["easy"]
    assert {s.prompt_id for s in spans if not s.failing} == ids["hard"]
    assert all((s.first, s.last) == (0, 2) for s in spans)
    for failing, n in ((True, 3), (False, 3)):  # as many as of the rarer kind are pairs
        assert sorted(s.pair for s in spans if s.failing == failing and s.pair is not None) == [
            *range(n)
        ]
    others = read_spans(tmp_path / "out" / "spans.jsonl")
    assert not {s.prompt_id for s in others if s.level != "instance"} & (ids["easy"] | ids["hard"])
    asked = {row["prompt_id"] for row in lines(tmp_path / "out" / "verdicts.jsonl")}
    assert asked == {row["id"] for row in lines(Path(given["prompts"]))}


def test_easy_and_hard_questions_alone_need_no_judge(tmp_path: Path):
    """Of any task: nobody is asked about them; sec. 3.2: over-thinking needs two sets only."""
    given = in_two_files(tmp_path)
    ids = {name: {row["id"] for row in lines(Path(given[name]))} for name in ("easy", "hard")}
    del given["prompts"]
    result = label(MODEL, out=tmp_path / "alone", **given)
    spans = read_spans(tmp_path / "alone" / "spans.jsonl")
    assert {s.prompt_id for s in spans if s.failing} == ids["easy"]
    assert {s.prompt_id for s in spans if not s.failing} == ids["hard"]
    assert {s.level for s in spans} == {"instance"} and len(spans) == result.traces == 7
    assert not (tmp_path / "alone" / "verdicts.jsonl").exists() and result.warnings == []
    with pytest.raises(BadInput, match="found levels = intra and no prompts, expected instance"):
        label(MODEL, out=tmp_path / "none", levels=("intra",), **given)
    with pytest.raises(BadInput, match="found no questions, expected prompts=FILE, or easy"):
        label(MODEL, out=tmp_path / "none")
    words = tmp_path / "words.jsonl"
    words.write_text('{"id": "w", "prompt": "What is love?"}\n')
    plan = prepare(LabelSettings(
        checkpoint=MODEL, out=tmp_path / "x", prompts=str(words), levels=("instance",),
        easy=given["easy"], hard=given["hard"],
    ))  # fmt: skip
    assert plan.judge is None


def second_step(question: str, steps: list[str]) -> list[tuple]:
    """A judge for the tests: the second step is wrong, the first was looked at and is fine."""
    return [("intra", 0, 0, "fine", False), ("intra", 1, 1, "no good")]


def stagnating(question: str, steps: list[str]) -> list[tuple]:
    """Two steps and three steps of stagnation, the longer in attempts that begin at 4 and 6."""
    return [("inter", 1, 2, "short"), ("inter", 4, 6, "long", True, False, (4, 6))]


def test_stagnation_takes_three_consecutive_steps(tmp_path: Path, capsys):
    """App. G: "for 3+ consecutive paragraphs/steps"; the two others are no failure, but counted."""
    given: dict[str, Any] = dict(
        prompts="builtin:test", limit=2, traces=write_traces(tmp_path / "t.jsonl", 2),
        judge="test_trigger_label:stagnating", resample=0,
    )  # fmt: skip
    result = label(MODEL, out=tmp_path / "out", **given)
    spans = [s for s in read_spans(tmp_path / "out" / "spans.jsonl") if s.level == "inter"]
    assert [(s.first, s.last, s.attempts) for s in spans if s.failing] == [(4, 6, (4, 6))] * 2
    assert {(s.first, s.last) for s in spans if not s.failing} >= {(0, 3)}
    assert result.levels["inter"].short == 2 and result.levels["inter"].failing == 2
    show(result)
    assert "inter: 2 stretches of fewer than 3 steps" in capsys.readouterr().out
    both = label(MODEL, out=tmp_path / "both", inter_steps=2, **given).levels["inter"]
    assert (both.failing, both.short) == (4, 0)


def test_a_function_judges_and_may_say_what_is_fine(tmp_path: Path):
    traces = write_traces(tmp_path / "t.jsonl", 3)
    label(
        MODEL, prompts="builtin:test", limit=3, traces=traces, out=tmp_path / "out",
        judge="test_trigger_label:second_step", resample=0,
    )  # fmt: skip
    spans = read_spans(tmp_path / "out" / "spans.jsonl")
    for trace in read_traces(tmp_path / "t.jsonl"):
        n = len(split_steps(StepEnds(TOKENIZER), trace.token_ids))
        own = [s for s in spans if s.prompt_id == trace.prompt_id]
        assert [(s.level, s.first, s.last) for s in own if s.failing] == [("intra", 1, 1)]
        assert steps_in([s for s in own if s.level == "intra" and not s.failing]) == {
            0,
            *range(2, n),
        }
        assert steps_in([s for s in own if s.level == "inter"]) == set(range(n))


# --- made by hand


def test_spans_made_by_hand_are_taken_as_they_are(labels: Path, tmp_path: Path, capsys):
    traces = write_traces(tmp_path / "t.jsonl", 2)
    names = [trace.prompt_id for trace in read_traces(traces)]
    made = [Span(names[0], 0, "intra", 2, 2), Span(names[1], 0, "intra", 0, 1, False)]
    by_hand = tmp_path / "spans.jsonl"
    by_hand.write_text(
        f'{{"prompt_id": "{names[0]}", "sample": 0, "level": "intra", "first": 2, "last": 2}}\n'
        + json.dumps(made[1]._asdict())
    )
    result = label(
        MODEL, prompts="builtin:test", traces=traces, spans=str(by_hand), out=tmp_path / "out",
        levels=("intra", "inter"),
    )  # fmt: skip
    assert read_spans(tmp_path / "out" / "spans.jsonl") == made
    assert read_traces(tmp_path / "out" / "traces.jsonl") == read_traces(traces)
    # Only the questions that were answered come along.
    assert [p.id for p in read_prompts(str(tmp_path / "out" / "prompts.jsonl"))] == names
    assert not (tmp_path / "out" / "verdicts.jsonl").exists()
    show(result)
    assert "inter: no failing span was found" in " ".join(capsys.readouterr().out.split())


def test_prompts_are_read_back_as_they_were(tmp_path: Path):
    prompts = [
        Prompt("1", ({"role": "user", "content": "a\nb \u2028 “c”"},), "7", True),
        Prompt("2", ({"role": "user", "content": "d"},), None, False),
        Prompt("3", ({"role": "system", "content": "e"}, {"role": "user", "content": "f"})),
    ]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert read_prompts(str(tmp_path / "p.jsonl")) == prompts


def damage_step(labels: Path) -> None:
    rows = lines(labels / "spans.jsonl")
    rows[3] |= {"first": 500, "last": 500}
    (labels / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def damage_names(labels: Path) -> None:
    text = (labels / "spans.jsonl").read_text()
    (labels / "spans.jsonl").write_text(text.replace('"sample": 0', '"sample": 99', 1))


def damage_soundness(labels: Path) -> None:
    text = (labels / "spans.jsonl").read_text()
    (labels / "spans.jsonl").write_text(text.replace('"failing": true', '"failing": false'))


def damage_prompts(labels: Path) -> None:
    text = (labels / "prompts.jsonl").read_text().splitlines(keepends=True)
    (labels / "prompts.jsonl").write_text("".join(text[1:]))


def damage_tokens(labels: Path) -> None:
    rows = lines(labels / "traces.jsonl")
    rows[0]["token_ids"][2] = 5000
    (labels / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def damage_files(labels: Path) -> None:
    (labels / "traces.jsonl").unlink()


@pytest.mark.parametrize(
    "damage, said",
    [
        (damage_step, "span 4 is of sample 0 of prompt .* ends at step 500, but the trace has"),
        (damage_names, "sample 99 of prompt .* which is not among the"),
        (damage_soundness, "holds no failing span"),
        (damage_prompts, "answers the prompt .*, which is not in"),
        (damage_tokens, "holds token 5000, but builtin:thinking has 200"),
        (damage_files, "has no traces.jsonl, so it holds no labels. Make them with: surgeon"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(labels: Path, tmp_path: Path, damage, said):
    copied = Path(shutil.copytree(labels, tmp_path / "labels"))
    damage(copied)
    with pytest.raises(BadInput, match=said) as caught:
        read_labels(copied, resolve(MODEL), TOKENIZER)
    assert "\n" not in str(caught.value)


# --- killed and continued


def files_of(directory: Path) -> dict[str, bytes]:
    """What must be the same to the byte, and the traces and verdicts in any order."""
    found = {
        n: (directory / n).read_bytes() for n in ("spans.jsonl", "prompts.jsonl", "label.json")
    }
    for name in ("traces.jsonl", "verdicts.jsonl"):
        found[name] = b"".join(sorted((directory / name).read_bytes().splitlines(keepends=True)))
    return found


@pytest.mark.parametrize(
    "where, after", [("sampling", 2), ("counterparts", 1), ("counterparts", 4)]
)
def test_a_killed_run_continues_to_the_same_bytes(
    sampled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: int
):
    _, whole = sampled
    module, calls = {"sampling": sampling, "counterparts": counterparts}[where], []
    append = module.append

    def stop_after(file: Path, trace: Any) -> None:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(trace)
        append(file, trace)

    with monkeypatch.context() as patched:
        patched.setattr(module, "append", stop_after)
        with pytest.raises(KeyboardInterrupt):
            label(MODEL, out=tmp_path / "out", **SAMPLED)
    partial = tmp_path / "out.partial"
    assert not (tmp_path / "out").exists()
    with open(partial / "traces.jsonl", "rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 20)  # the kill cut the last line
    done = len((partial / "traces.jsonl").read_bytes().splitlines()) - 1
    again: list[Any] = []
    monkeypatch.setattr(module, "append", lambda f, t: (again.append(t), append(f, t)))
    label(MODEL, out=tmp_path / "out", **SAMPLED)
    assert files_of(tmp_path / "out") == files_of(whole)
    if where == "sampling":
        assert len(again) == SAMPLED["limit"] - done  # what was kept isn't drawn again


SCRIPT = (
    "import sys, json; from surgeon.trigger.label import label; label(**json.loads(sys.argv[1]))"
)


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_again(sampled, tmp_path: Path):
    _, whole = sampled
    given = json.dumps({"checkpoint": MODEL, "out": str(tmp_path / "out"), **SAMPLED})
    command = [sys.executable, "-c", SCRIPT, given]
    for lines_seen in (2, 7):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        file = tmp_path / "out.partial" / "traces.jsonl"
        deadline = time.monotonic() + 120
        while not file.is_file() or file.read_bytes().count(b"\n") < lines_seen:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert files_of(tmp_path / "out") == files_of(whole)


def test_a_finished_run_is_read_and_other_arguments_are_told(sampled, capsys, monkeypatch):
    result, out = sampled
    monkeypatch.setattr(Checkpoint, "model", None)
    again = label(MODEL, out=out, batch=3, **SAMPLED)  # how many at once changes nothing
    assert again == replace(result, already=True)
    show(again)
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"arguments.pairs is 1 there and 2 here"):
        label(MODEL, out=out, **{**SAMPLED, "pairs": 2})


# --- refused before the model is loaded


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with files to name; no model can be loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoint, "model", None)
    write_traces(tmp_path / "traces.jsonl", 2)
    (tmp_path / "words.jsonl").write_text('{"id": "w", "prompt": "What is love?"}\n')
    row = {"prompt_id": "test-0000", "sample": 0, "level": "intra", "first": 900, "last": 900}
    (tmp_path / "far.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "odd.jsonl").write_text(json.dumps({**row, "level": "outer"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"levels": ("intra", "outer")}, "one of: intra, inter, instance"),
        ({"levels": ()}, "expected some of: intra, inter, instance"),
        ({"samples": 0}, "samples = 0, expected a whole number of at least 1"),
        ({"pairs": -1}, "pairs = -1, expected a whole number of at least 0"),
        ({"limit": 0}, "limit = 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"easy": "builtin:test"}, "give both files"),
        ({"spans": "far.jsonl"}, "give those with traces=FILE"),
        ({"spans": "far.jsonl", "traces": "traces.jsonl"}, "ends at step 900, but the trace has"),
        ({"spans": "odd.jsonl", "traces": "traces.jsonl"}, "odd.jsonl:1: found 'outer' as level"),
        ({"spans": "none.jsonl", "traces": "traces.jsonl"}, "none.jsonl does not exist"),
        ({"traces": "traces.jsonl", "prompts": "builtin:cross"}, "no trace of any of the prompts"),
        ({"judge": "someone"}, "expected builtin, URL#model"),
        ({"prompts": "words.jsonl"}, "expected one of the built-in task"),
        ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"easy": "builtin:test", "hard": "builtin:cross"}, "is in both builtin:test and"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"checkpoint": "nowhere"}, "nowhere is no checkpoint"),
        ({"prompt_file": "words.txt"}, "words.txt can't be read as YAML"),
    ],
)
def test_wrong_input_is_refused_in_one_line(place: Path, changes: dict[str, Any], said: str):
    given = {"checkpoint": MODEL, "prompts": "builtin:test", "limit": 3, **changes}
    before = sorted(place.iterdir())
    with pytest.raises(BadInput, match=said) as caught:
        label(out=place / "out", **given)
    assert "\n" not in str(caught.value) and sorted(place.iterdir()) == before


def test_importing_a_stage_leaves_the_others_alone():
    code = (
        "import sys, surgeon.trigger.label\n"
        "stages = ('identify', 'detectors', 'reconstruct', 'sft')\n"
        "loaded = {f'surgeon.trigger.{name}' for name in stages} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
