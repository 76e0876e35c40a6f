"""`surgeon trigger reconstruct`: examples of the built-in task, checked exactly; endpoints."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoints import served
from trigger_labels import MODEL, lines, make_labels

from surgeon import jsonl
from surgeon.builtin import task
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.judges.finding import Assignment, Draft, Rewritten
from surgeon.judges.makeup import SIGNALS
from surgeon.judges.wording import read_texts
from surgeon.judges.writers import parse_writer
from surgeon.settings.asking import EndpointSettings
from surgeon.traces import Prompt, read_traces
from surgeon.trigger.artifacts import StepReader
from surgeon.trigger.corpus import Reference, perturbed
from surgeon.trigger.reconstruct import LevelExamples, Reconstruction, reconstruct, show
from surgeon.trigger.tokens import add_triggers
from surgeon.watch.spans import read_spans

KINDS = ["prefix", "wrong", "trigger", "diagnose", "continuation"]
TOKENIZER: Any = resolve(MODEL).tokenizer()
TRIGGERS = {"intra": "<INTRA>", "inter": "<INTER>"}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("reconstruct"))


@pytest.fixture(scope="module")
def done(labels: Path) -> tuple[Reconstruction, Path]:
    """What `reconstruct` returned and wrote; read only."""
    out = labels.parent / "examples"
    return reconstruct(MODEL, labels=labels, out=out), out


def examples(out: Path) -> list[dict[str, Any]]:
    return lines(out / "examples.jsonl")


def texts(example: dict[str, Any]) -> dict[str, str]:
    assert [p["kind"] for p in example["segments"] if p["kind"] != "signal"] == KINDS
    return {part["kind"]: part["text"] for part in example["segments"]}


def test_an_example_fails_where_it_says_and_nowhere_else(done):
    """By the task's own checker, the trigger taken out: the failing steps, a repair, no failure
    after it, and the right answer."""
    for example in examples(done[1]):
        problem = task.Problem.parse(example["messages"][0]["content"])
        part = texts(example)
        text = part["prefix"] + part["wrong"] + part["diagnose"] + part["continuation"]
        checked = task.steps(problem, text)
        n = len(task.steps(problem, part["prefix"]))
        wrong = len(task.steps(problem, part["prefix"] + part["wrong"])) - n
        bad = [step.index for step in checked if step.failure not in (None, "misread")]
        assert bad == list(range(n, n + wrong)) and wrong >= 1
        assert {checked[i].failure for i in bad} == {example["level"]}
        if all(step.failure != "misread" for step in checked):
            assert task.correct(problem, text)


def test_the_trigger_is_one_token_in_its_place(done):
    """After the blank line that ends the failing step, before the diagnosis; Eq. 5."""
    tokenizer: Any = resolve(MODEL).tokenizer()
    before = len(tokenizer)
    new = add_triggers(tokenizer, TRIGGERS.values())
    assert new == [before, before + 1]
    assert add_triggers(tokenizer, TRIGGERS.values()) == []
    for example in examples(done[1]):
        part = texts(example)
        ids = tokenizer("".join(part.values()), add_special_tokens=False)["input_ids"]
        (at,) = [i for i, token in enumerate(ids) if token in new]
        assert tokenizer.convert_ids_to_tokens(ids[at]) == TRIGGERS[example["level"]]
        assert tokenizer.decode(ids[:at]) == part["prefix"] + part["wrong"]
        assert part["wrong"].endswith("\n\n")
        assert tokenizer.decode(ids[at + 1 :]) == part["diagnose"] + part["continuation"]
        learned = {p["kind"]: p["learned"] for p in example["segments"]}
        assert learned == {kind: kind != "trigger" for kind in KINDS}


def test_own_failures_are_the_traces_and_made_ones_are_not(labels: Path, done):
    result, out = done
    traces = {(t.prompt_id, t.sample): t for t in read_traces(labels / "traces.jsonl")}
    spans = read_spans(labels / "spans.jsonl")
    counts = {"intra": [0, 0], "inter": [0, 0]}
    for example in examples(out):
        name, sample, level = example["id"].rsplit("/", 2)
        part, text = texts(example), traces[name, int(sample)].text
        assert level == example["level"] and int(sample) == 0  # no counterpart
        counts[level][example["made"]] += 1
        problem = task.Problem.parse(example["messages"][0]["content"])
        steps = [step.text for step in task.steps(problem, text)]
        failing = [s for s in spans if s[:3] == (name, 0, level) and s.failing]
        own = ["".join(f"{step}\n\n" for step in steps[s.first : s.last + 1]) for s in failing]
        if not example["made"]:
            assert part["wrong"] in own
            if level == "intra":  # the first mistake
                assert part["wrong"] == own[0]
        elif level == "intra":
            assert part["wrong"] not in text
    assert all(min(pair) > 0 for pair in counts.values())
    told = {level: LevelExamples(own=own, made=made) for level, (own, made) in counts.items()}
    assert result.levels == told and result.examples == len(examples(out))
    names = [example["id"] for example in examples(out)]
    assert len(set(names)) == len(names)  # one per trace and level


def test_only_what_is_asked_for_is_written(labels: Path, done, tmp_path: Path, capsys):
    both = {example["id"]: example for example in examples(done[1])}
    own = reconstruct(MODEL, labels=labels, out=tmp_path / "own", failures="own")
    kept = {example["id"]: example for example in examples(tmp_path / "own")}
    assert kept == {name: e for name, e in both.items() if not e["made"]}
    assert all(row.made == 0 for row in own.levels.values())
    made = reconstruct(MODEL, labels=labels, out=tmp_path / "made", failures="made")
    assert all(row.own == 0 for row in made.levels.values()) and made.examples > 10
    some = reconstruct(MODEL, labels=labels, out=tmp_path / "some", levels=("inter",), limit=3)
    assert {example["level"] for example in examples(tmp_path / "some")} == {"inter"}
    assert some.examples + sum(some.left_out.values()) == 3
    capsys.readouterr()
    show(own)
    printed = capsys.readouterr().out
    assert f"intra: {own.levels['intra'].own} of its own failures, 0 made-up" in printed
    assert f"{own.examples} examples in {tmp_path}" in printed.replace("\n", "")


def test_a_trace_that_nobody_looked_at_gets_no_made_up_failure(labels: Path, tmp_path: Path):
    """What comes before the failure is learned, so it must be known to be sound."""
    copied = Path(shutil.copytree(labels, tmp_path / "labels"))
    rows = lines(copied / "spans.jsonl")
    first = next(row["prompt_id"] for row in rows if row["level"] == "intra" and row["failing"])
    # Only one trace was looked at, and only for one level.
    kept = [row for row in rows if row["prompt_id"] == first and row["level"] == "intra"]
    (copied / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    reconstruct(MODEL, labels=copied, out=tmp_path / "out")
    assert [e["id"] for e in examples(tmp_path / "out")] == [f"{first}/0/intra"]


def test_examples_follow_the_seed(labels: Path, done, tmp_path: Path):
    text = (done[1] / "examples.jsonl").read_bytes()
    for seed, same in ((0, True), (1, False)):
        out = tmp_path / str(seed)
        reconstruct(MODEL, labels=labels, out=out, seed=seed)
        assert ((out / "examples.jsonl").read_bytes() == text) == same


def test_a_killed_run_continues_to_the_same_bytes(labels: Path, done, tmp_path: Path, monkeypatch):
    append, calls = jsonl.append, []

    def stop_at_the_sixth(file: Path, row: dict[str, Any]) -> None:
        calls.append(row)
        if len(calls) == 6:
            raise KeyboardInterrupt
        append(file, row)

    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "append", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(MODEL, labels=labels, out=tmp_path / "out")
    file = tmp_path / "out.partial" / "written.jsonl"
    os.truncate(file, file.stat().st_size - 9)  # the kill cut the last line
    again: list[Any] = []
    monkeypatch.setattr(jsonl, "append", lambda f, r: (again.append(r), append(f, r)))
    result = reconstruct(MODEL, labels=labels, out=tmp_path / "out")
    assert len(again) == len(lines(done[1] / "written.jsonl")) - 4
    for name in ("examples.jsonl", "reconstruct.json"):
        assert (tmp_path / "out" / name).read_bytes() == (done[1] / name).read_bytes()
    assert reconstruct(MODEL, labels=labels, out=tmp_path / "out") == replace(result, already=True)
    with pytest.raises(BadInput, match='failures is "both" there and "own" here'):
        reconstruct(MODEL, labels=labels, out=tmp_path / "out", failures="own")


# --- a model behind an endpoint writes


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """`(say, asked, url)`: replies are what `say[0](user's text)` gives; what was asked is kept."""
    say: list[Callable[[str], dict[str, str]]] = []
    asked: list[dict[str, Any]] = []

    def answer(path: str, body: Any, headers: Any) -> tuple[int, Any]:
        if body is None:
            return 200, {"data": [{"id": "writer"}]}
        asked.append(body)
        text = json.dumps(say[0](body["messages"][-1]["content"]))
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return 200, {"choices": [{"message": message}], "usage": usage}

    with served(answer) as url:
        yield say, asked, f"{url}#writer"


def repair(asked: str) -> dict[str, str]:
    """What a writer replies who knows the answer that it was told."""
    known = asked.partition("The final answer is known to be ")[2][:1]
    loop = re.search(r"Length: exactly (\d) steps", asked)
    return {
        "wrong": "\n\n".join(["Next +1: 1 = 3"] * (int(loop[1]) if loop else 1)),
        "error_span": '"1 = 3"',
        "past_attempts": "Turned it over.",
        "analysis": "It is 2.",
        "pivot": "Add one.",
        "continuation": "Next +1: 1 = 2",
        "answer": f"Answer: {known}",
    }


def test_an_endpoint_mends_the_traces_own_text(labels: Path, server, tmp_path: Path):
    say, asked, url = server
    say[:], asked[:] = [repair], []
    result = reconstruct(
        MODEL, labels=labels, out=tmp_path / "out", source=url, price_in=10.0, price_out=100.0
    )
    made = examples(tmp_path / "out")
    assert len(made) == len(asked) == result.examples > 20
    assert result.source.tokens_in == 100 * len(asked)
    assert result.source.money == pytest.approx(len(asked) * (100 * 10 + 10 * 100) / 1e6)
    traces = {(t.prompt_id, t.sample): t for t in read_traces(labels / "traces.jsonl")}
    kinds, controls = set(), list[Any]()
    for example in made:
        name, sample, level = example["id"].rsplit("/", 2)
        text, part = traces[name, int(sample)].text, texts(example)
        assert text.startswith(part["prefix"]) and part["trigger"] == TRIGGERS[level]
        if example["made"]:  # App. G: CONTROL is drawn, told and kept; loops have that many steps
            steps = [step for step in part["wrong"].split("\n\n") if step.strip()]
            assert set(steps) == {"Next +1: 1 = 3"}
            assert len(steps) == example["control"].get("loop_length", 1)
            controls.append(tuple(example["control"].values()))
        else:  # as it was written, white space included
            assert text.startswith(part["prefix"] + part["wrong"].rstrip())
            assert part["wrong"].endswith("\n\n")
        # Eq. 5: the trigger, p (the paper's own sentence), d in its bullets, c.
        assert part["signal"] == f"\n{SIGNALS[level]}\n"
        assert (
            part["diagnose"]
            == {
                "intra": '- error span: "1 = 3"\n- analysis: It is 2.',
                "inter": "- past attempts summary: Turned it over.\n"
                "- problem-grounded analysis: It is 2.\n- pivot: Add one.",
            }[level]
        )
        assert part["continuation"].startswith("\n\nNext +1: 1 = 2\n</think>\n\nAnswer: ")
        kinds.add((level, example["made"]))
    assert len(kinds) == 4
    assert len(set(controls)) > 5 and {c[0] for c in controls} >= {"long", 3}
    told = "\n".join(body["messages"][1]["content"] for body in asked)
    assert "Kind of the mistake: sign error (a sign is lost or turned)." in told
    assert "What they go round in: bounds (bounds that narrow nothing down)." in told
    again = reconstruct(
        MODEL, labels=labels, out=tmp_path / "out", source=url, price_in=10.0, price_out=100.0
    )
    assert again.already and len(asked) == len(made)


def test_answers_that_are_not_the_known_one_are_left_out(labels: Path, server, tmp_path: Path):
    say, asked, url = server
    asked[:] = []
    say[:] = [lambda text: repair(text) | {"answer": "Answer: 4"}]
    result = reconstruct(MODEL, labels=labels, out=tmp_path / "out", source=url, failures="own")
    known = {p["id"]: p["answer"] for p in lines(labels / "prompts.jsonl")}
    assert {known[e["id"].split("/")[0]] for e in examples(tmp_path / "out")} == {"4"}
    assert result.left_out == {"the answer isn't the known one": len(asked) - result.examples}
    say[:] = [
        lambda text: repair(text) | {"answer": "[MUSE] 9 [/MUSE] Loesung: 4. Es waren 7 Schritte."}
    ]
    read = reconstruct(
        MODEL, labels=labels, out=tmp_path / "read", source=url, failures="own",
        answer_words="Loesung", think_tags="[MUSE] [/MUSE]",
    )  # fmt: skip
    assert read.left_out == result.left_out
    say[:] = [lambda text: repair(text) | {"answer": "none"}]
    with pytest.raises(BadInput, match=r"no example could be written \(the answer isn't the known"):
        reconstruct(MODEL, labels=labels, out=tmp_path / "none", source=url, failures="own")


def test_control_tokens_in_a_reply_are_complained_of(labels: Path, server, tmp_path: Path):
    say, asked, url = server
    asked[:] = []

    def learns(text: str) -> dict[str, str]:
        if "holds a control token" in text:
            return repair(asked[-1]["messages"][1]["content"])
        return repair(text) | {"analysis": "<INTRA> wrong"}

    say[:] = [learns]
    result = reconstruct(MODEL, labels=labels, out=tmp_path / "out", source=url, limit=2)
    assert result.examples == 2 and len(asked) == 4
    assert "analysis holds a control token" in asked[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"failures": "none"}, "expected one of: both, own, made"),
        ({"levels": ("instance",)}, "one of: intra, inter"),
        ({"levels": ()}, "expected some of: intra, inter"),
        ({"limit": 0}, "limit = 0"),
        ({"parallel": 0}, "parallel = 0"),
        ({"answer": "guess"}, "guess"),
        ({"source": "someone"}, "expected builtin, URL#model"),
        ({"source": "http://127.0.0.1:9/v1#m", "structured": "xml"}, "structured = xml"),
        ({"labels": "nowhere"}, "nowhere has no traces.jsonl"),
        ({"prompt_file": "nowhere.yaml"}, "nowhere.yaml can't be read"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    labels: Path, tmp_path: Path, monkeypatch, changes: dict[str, Any], said: str
):
    monkeypatch.setattr(Checkpoint, "model", None)
    with pytest.raises(BadInput, match=said) as caught:
        reconstruct(**{"checkpoint": MODEL, "labels": labels, "out": tmp_path / "out", **changes})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_questions_of_another_task_need_another_source(labels: Path, tmp_path: Path):
    copied = Path(shutil.copytree(labels, tmp_path / "labels"))
    rows = lines(copied / "prompts.jsonl")
    rows[0]["prompt"] = "What is love?"
    (copied / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"expected one of the built-in task .*source=FILE"):
        reconstruct(MODEL, labels=copied, out=tmp_path / "out")


# --- a corpus


def reference(question: str, n: int) -> dict[str, Any]:
    """A conversation as Bespoke-Stratos-17k writes them: the thinking between its own tags."""
    steps = [f"Thought {'abcdef'[i]}" if i < 6 else f"So x = {i}" for i in range(n)]
    text = "<|begin_of_thought|>\n\n" + "\n\n".join(steps) + "\n\n<|end_of_thought|>\n\nAnswer: 4"
    return {
        "conversations": [
            {"from": "user", "value": question}, {"from": "assistant", "value": text}
        ],
        "answer": "4",
    }  # fmt: skip


def test_failures_are_made_up_in_a_corpus_without_labels(server, tmp_path: Path):
    """Two to four steps as they are, then the next that computes: here the seventh. Prompts of an
    excluded task, by 13 words in a row, and references of two steps are left out, and counted."""
    say, asked, url = server
    say[:], asked[:] = [repair], []
    same = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    rows = [reference(f"What is {i}?", 9) for i in range(6)]
    rows += [reference(f"Say {same}.", 9), reference("Short?", 2)]
    jsonl.write(tmp_path / "corpus.jsonl", rows)
    jsonl.write(tmp_path / "task.jsonl", [{"prompt": f"Now {same} and on", "id": "t"}])
    given: dict[str, Any] = dict(
        corpus=str(tmp_path / "corpus.jsonl"), exclude=(str(tmp_path / "task.jsonl"),), source=url
    )
    result = reconstruct(MODEL, out=tmp_path / "out", **given)
    assert result.left_out == {
        "the reference has too few steps": 2, "the prompt is in an excluded set": 2
    }  # fmt: skip
    made = examples(tmp_path / "out")
    assert len(made) == result.examples == 12 and all(example["made"] for example in made)
    steps = [f"Thought {letter}\n\n" for letter in "abcdef"]
    for example in made:
        part = texts(example)
        assert part["prefix"] == "<think>\n" + "".join(steps)
        assert part["continuation"].endswith("\n</think>\n\nAnswer: 4")
    told = asked[0]["messages"][1]["content"]
    assert "NEXT:\nSo x = 6\n" in told and "goes on from there:\nSo x = 7\n\nSo x = 8\n" in told
    with pytest.raises(BadInput, match=r"expected either labels .* or a corpus"):
        reconstruct(MODEL, out=tmp_path / "both", labels=tmp_path, **given)
    with pytest.raises(BadInput, match="found failures = own and a corpus"):
        reconstruct(MODEL, out=tmp_path / "own", failures="own", **given)


@pytest.mark.parametrize(
    "n, texts_of, expected",
    [
        (5, lambda i: f"x = {i}", {2, 3, 4}),  # the next step computes: the one after 2 to 4
        (3, lambda i: f"x = {i}", {2}),
        (6, lambda i: "words" if i < 5 else "2 + 2", {5}),
        (6, lambda i: "words", {2, 3, 4}),  # none computes: the next one
    ],
)
def test_r27_the_step_that_is_rewritten_is_the_next_critical_one(n, texts_of, expected):
    steps = tuple(f"{texts_of(i)}\n\n" for i in range(n))
    references = [Reference(Prompt(str(i), (), None, True), steps) for i in range(40)]
    places = list(perturbed(references, ("intra", "inter"), 0))
    assert {place.step for place in places} == expected  # pyright: ignore
    assert places == list(perturbed(references, ("intra", "inter"), 0))


def test_the_built_in_task_writes_in_a_corpus_of_its_own(labels: Path, tmp_path: Path):
    prompts = {p["id"]: p for p in lines(labels / "prompts.jsonl")}
    spans = read_spans(labels / "spans.jsonl")
    bad = {s.key for s in spans if s.failing and s.level == "intra"}
    rows = [
        {**prompts[trace.prompt_id], "response": trace.text}
        for trace in read_traces(labels / "traces.jsonl")
        if trace.sample == 0 and trace.key not in bad
    ]
    jsonl.write(tmp_path / "corpus.jsonl", rows)
    result = reconstruct(MODEL, corpus=str(tmp_path / "corpus.jsonl"), out=tmp_path / "out")
    assert result.levels["intra"].made > 0 and result.levels["inter"].made > 0
    test_an_example_fails_where_it_says_and_nowhere_else((result, tmp_path / "out"))
    jsonl.write(tmp_path / "none.jsonl", [{"prompt": "What?"}])
    with pytest.raises(BadInput, match=r"none.jsonl:1: found no reasoning, expected it in a col"):
        reconstruct(MODEL, corpus=str(tmp_path / "none.jsonl"), out=tmp_path / "o")


# --- a file of repairs


def test_repairs_from_a_file_are_used_as_they_are(labels: Path, tmp_path: Path):
    """Without steps a repair is of the trace's first failing span of its level; a made-up step
    stands in the place of the steps it names; a wrong final answer is left out."""
    spans = read_spans(labels / "spans.jsonl")
    (span, *_) = sorted(s for s in spans if s.failing and s.level == "intra" and s.first > 0)
    own = [s for s in spans if s.key == span.key and s.level == "intra" and s.failing]
    known = {p["id"]: p["answer"] for p in lines(labels / "prompts.jsonl")}
    trace = {t.key: t for t in read_traces(labels / "traces.jsonl")}[span.key]
    text = {"diagnosis": "No.", "continuation": "So on.", "answer": f"x = {known[span.prompt_id]}"}
    other = next(p for p in known if p != span.prompt_id)
    rows = [
        {"prompt_id": span.prompt_id, "level": "intra", **text},
        {"prompt_id": span.prompt_id, "level": "inter", "first": 1, "wrong": "Hm. Hm.", **text},
        {"prompt_id": other, "level": "intra", "first": 1, **text, "answer": "x = 11"},
    ]
    jsonl.write(tmp_path / "repairs.jsonl", rows)
    given: dict[str, Any] = dict(labels=labels, source=str(tmp_path / "repairs.jsonl"))
    result = reconstruct(MODEL, out=tmp_path / "out", answer=r"x = (\d+)", **given)
    assert result.left_out == {"the answer isn't the known one": 1} and result.examples == 2
    first, second = examples(tmp_path / "out")
    steps = StepReader(TOKENIZER).steps(trace)
    at = min(s.first for s in own)
    assert first["id"] == f"{span.prompt_id}/0/intra" and not first["made"]
    assert texts(first)["prefix"] == "<think>" + "".join(steps[:at])
    assert texts(first)["wrong"] == steps[at].strip() + "\n\n"
    assert texts(first)["diagnose"] == "No."
    assert texts(first)["continuation"] == f"\n\nSo on.\n</think>\n\nx = {known[span.prompt_id]}"
    assert second["made"] and texts(second)["wrong"] == "Hm. Hm.\n\n"
    assert texts(second)["prefix"] == "<think>" + steps[0]
    rows[0]["diagnosis"] = "Nein."
    jsonl.write(tmp_path / "repairs.jsonl", rows)  # another file, so another run
    with pytest.raises(BadInput, match="source"):
        reconstruct(MODEL, out=tmp_path / "out", answer=r"x = (\d+)", **given)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"level": "instance"}, "found 'instance' as level of a repair, expected intra or inter"),
        ({"diagnosis": ""}, "found '' as diagnosis of a repair, expected text"),
        ({"continuation": "<INTRA> so"}, "holds a control token"),
        ({"first": -1}, "found -1 as first of a repair"),
        ({"first": 900}, "is of the steps 900 to 900; the trace has 0 to"),
        ({"prompt_id": "nobody"}, "nobody/0/intra is of a trace that"),
    ],
)
def test_a_repair_that_is_none_is_refused(labels: Path, tmp_path: Path, changes, said: str):
    row = {"prompt_id": "test-0000", "level": "intra", "first": 0, "diagnosis": "a",
           "continuation": "b", "answer": "c"}  # fmt: skip
    file = tmp_path / "repairs.jsonl"
    jsonl.write(file, [{**row, **changes}])
    with pytest.raises(BadInput, match=said):
        reconstruct(MODEL, labels=labels, out=tmp_path / "out", source=str(file))
    jsonl.write(file, [row, row])
    with pytest.raises(BadInput, match="a second repair of test-0000/0/intra"):
        reconstruct(MODEL, labels=labels, out=tmp_path / "out", source=str(file))


# --- a function from outside writes


def test_a_writer_from_outside_mends_the_traces_own_failures(
    labels: Path, done, tmp_path: Path, monkeypatch
):
    """examples/my_writer.py, as `module:function`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    given: dict[str, Any] = dict(labels=labels, source="my_writer:second_thought")
    result = reconstruct(MODEL, out=tmp_path / "out", failures="own", **given)
    traces = {t.key: t for t in read_traces(labels / "traces.jsonl")}
    known = {p["id"]: p["answer"] for p in lines(labels / "prompts.jsonl")}
    for example in examples(tmp_path / "out"):
        name, sample, _ = example["id"].rsplit("/", 2)
        part = texts(example)
        start = part["prefix"] + part["wrong"].rstrip()
        assert traces[name, int(sample)].text.startswith(start) and part["wrong"].strip()
        assert part["diagnose"] in (
            "Wait. That step doesn't hold.",
            "Hold on. That step doesn't hold.",
        )
        assert part["continuation"] == f"\n</think>\n\nAnswer: {known[name]}"
    openings = {texts(example)["diagnose"][:4] for example in examples(tmp_path / "out")}
    assert openings == {"Wait", "Hold"} and result.examples == len(examples(tmp_path / "out"))
    # It makes no failure up: those of traces without one are left out.
    both = reconstruct(MODEL, out=tmp_path / "both", **given)
    assert both.examples == result.examples
    cases = done[0].examples + sum(done[0].left_out.values())
    reason = "something else is wrong before the failing step"
    assert both.left_out == {reason: cases - result.examples} and both.left_out[reason] > 0


WRITERS = """
from surgeon.judges.finding import Rewritten

asked = []

def makes(assignment, rng):
    asked.append(assignment)
    return Rewritten("a", "b", "c", "d") if assignment.made else None

def three(assignment, rng):
    return "a", "b", "c"

def number(assignment, rng):
    return "a", "b", "c", 4
"""


def test_what_a_writer_from_outside_gives_is_checked(tmp_path: Path, monkeypatch):
    (tmp_path / "some_writers.py").write_text(WRITERS)
    monkeypatch.syspath_prepend(tmp_path)
    own = Assignment("q/0/intra", "intra", "How?", ["x\n\n"] * 4, 2, 3, False, "", True, None, 0)

    def draft(name: str, assignment: Assignment, *, may_make: bool = True) -> Draft:
        writer = parse_writer(
            f"some_writers:{name}", read_texts(), str, may_make=may_make, asking=EndpointSettings()
        )
        writer.check(["a question of any task"])  # foreign functions aren't asked beforehand
        return writer(assignment)

    parts = Rewritten("a", "b", "c", "d")
    assert draft("makes", own) == Draft(parts, made=True)
    # It is asked for a failure at a sound step: the one before the failing one.
    asked = sys.modules["some_writers"].asked
    assert [(a.made, a.first, a.last) for a in asked] == [(False, 2, 3), (True, 1, 1)]
    assert draft("makes", own, may_make=False).parts is None
    assert draft("makes", own._replace(first=0)).parts is None
    assert draft("makes", own._replace(made=True)) == Draft(parts, made=True)
    for name in ("three", "number"):
        with pytest.raises(BadInput, match=rf"the writer some_writers:{name} gave .*, expected No"):
            draft(name, own)
    with pytest.raises(BadInput, match="some_writers has no function 'none'"):
        draft("none", own)
