"""Benchmarks as tasks, from small copies of their data sets' rows."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from surgeon import artifact
from surgeon.answers import gold_problem
from surgeon.errors import BadInput
from surgeon.tasks import BENCHMARKS, show, tasks
from surgeon.traces import read_prompts
from surgeon.truth import PreparedTasks

ROWS: dict[str, list[dict[str, Any]]] = {
    "sciknoweval": [
        {
            "prompt": {"default": "Given a question and four options, select the right one."},
            "question": f"Which one is number {n}?", "type": "mcq-4-choices", "answer": "",
            "choices": {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[n % 4], "domain": "Biology", "details": {"level": "L1"},
        }
        for n in range(10)
    ] + [{"prompt": {}, "question": "Open?", "type": "open-ended-qa", "answer": "so",
          "choices": {"text": [], "label": []}, "answerKey": "", "domain": "Biology"}],
    "edu-feedback": [{"text": f"comment {n}", "label": n % 2} for n in range(5)],
    "mmlu-pro": [
        {"question_id": 70 + n, "question": "Which?", "options": [f"o{i}" for i in range(10)],
         "answer": "J", "answer_index": 9, "category": "law"}
        for n in range(5)
    ],
    "aime24": [{"id": 60, "problem": "Find $x$.", "solution": "...", "answer": "204"}],
    "aime25": [{"problem_idx": 1, "problem": "Find $y$.", "answer": 70, "problem_type": ["a"]}],
    "gpqa": [
        {"Question": "What?", "Correct Answer": "this\n", "Incorrect Answer 1": "a",
         "Incorrect Answer 2": "b", "Incorrect Answer 3": "c", "Record ID": f"rec{n}"}
        for n in range(8)
    ],
    "hmmt25": [{"problem_idx": 1, "problem": "Compute.", "answer": "\\frac{9 \\sqrt{23}}{23}"}],
    "brumo25": [{"problem_idx": 1, "problem": "Compute.", "answer": "1/2"}],
    "math500": [{"problem": "P", "solution": "s", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
                 "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"}],
    "gsm8k": [{"question": "How many?", "answer": "She has 16 - 3.\n#### 1,018"}],
}  # fmt: skip


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_benchmark_has_a_row_here():
    assert ROWS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_questions_that_evaluate_takes(name: str, tmp_path: Path, capsys: Any):
    file, benchmark = written(tmp_path / "rows.jsonl", ROWS[name]), BENCHMARKS[name]
    names = list(benchmark.sources)
    source = file if len(names) == 1 else dict.fromkeys(names, file)
    made = tasks(name, out=tmp_path / "out", source=source)
    assert list(made.tasks) == names and artifact.read(PreparedTasks, tmp_path / "out") == made
    usable = sum(row.get("type") != "open-ended-qa" for row in ROWS[name])
    for task, prepared in made.tasks.items():
        prompts = read_prompts(str(tmp_path / "out" / prepared.file))
        assert len(prompts) == prepared.problems
        assert all(gold_problem(str(p.answer), prepared.check) is None for p in prompts)
        train = tmp_path / "out" / f"{task}-train.jsonl"
        assert train.exists() == benchmark.split
        if benchmark.split:
            more = read_prompts(str(train))
            assert len(more) == round(0.8 * usable) and len(more) + len(prompts) == usable
            assert not {p.id for p in more} & {p.id for p in prompts}
    show(made)
    assert f"--tasks {tmp_path / 'out'}" in capsys.readouterr().out.replace("\n", "")
    assert tasks(name, out=tmp_path / "out", source=source).already


def test_answers_are_the_benchmarks_own(tmp_path: Path):
    def first(name: str, **changes: Any) -> dict[str, Any]:
        out = tmp_path / f"{name}{len(changes)}"
        file = written(tmp_path / f"{name}.jsonl", ROWS[name])
        (prepared,) = tasks(name, out=out, source=file, **changes).tasks.values()
        return json.loads((out / prepared.file).read_text().splitlines()[0])

    assert first("gsm8k")["answer"] == "1018"
    assert first("aime25") == {
        "id": "1", "prompt": "Find $y$.\n\nPut the final answer in \\boxed{}.", "answer": "70",
    }  # fmt: skip
    assert first("aime25", instruction="")["prompt"] == "Find $y$."
    assert first("mmlu-pro")["answer"] == "J" and "J. o9" in first("mmlu-pro")["prompt"]
    rows = (tmp_path / "g").with_suffix(".jsonl")
    tasks("gpqa", out=tmp_path / "g", source=written(rows, ROWS["gpqa"]))
    letters = set()
    for line in (tmp_path / "g" / "gpqa.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert f"\n{row['answer']}. this\n" in row["prompt"]
        letters.add(row["answer"])
    assert len(letters) > 1, "the right option stands in different places"


def test_a_benchmark_from_outside_is_a_function_that_returns_one(tmp_path: Path, monkeypatch):
    (tmp_path / "my_benchmark.py").write_text(
        "from surgeon.tasks.benchmarks import contest\n"
        "def mine():\n    return contest('rows.jsonl', 'q', 'a', name='mine')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    written(tmp_path / "rows.jsonl", [{"Q": "Find x.", "A": 3}])
    assert tasks("my_benchmark:mine", out=tmp_path / "out").tasks["mine"].problems == 1


@pytest.mark.parametrize(
    ("name", "rows", "changes", "words"),
    [
        ("nothing", [], {}, "benchmark = nothing"),
        ("edu-feedback", [], {"source": None}, "lies on no hub that surgeon knows"),
        ("gsm8k", [{"problem": "x"}], {}, r":1: found the columns problem, expected answer among"),
        ("mmlu-pro", [{"question": "x", "options": ["a"], "answer_index": "?", "question_id": 1}],
         {}, "a row that can't be read"),
        ("mmlu-pro", [{"question": "x", "options": ["a"], "answer_index": -1, "question_id": 1}],
         {}, "option -1 of 1 is right"),
        ("edu-feedback", [{"text": "x", "label": 2}], {}, "label 2, expected one of 1"),
        ("gsm8k", [{"question": "x", "answer": "so 5"}], {}, "no #### before the answer"),
        ("sciknoweval", ROWS["sciknoweval"], {}, "found one source, expected one for each task"),
        ("sciknoweval", [], {"source": {"math": "x"}}, "found a source for math, expected tasks"),
        ("sciknoweval", ROWS["sciknoweval"][-1:], {"source": "bio=rows.jsonl"}, "no question of"),
        ("gsm8k", [], {"source": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)  # fmt: skip
def test_unusable_benchmarks_are_refused(
    name: str, rows: list, changes: dict, words: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(BadInput, match=words):
        tasks(name, out=tmp_path / "out", **({"source": file} | changes))
    assert not list(tmp_path.glob("out*"))
