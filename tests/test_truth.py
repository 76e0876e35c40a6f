"""Reading true accuracies: every accepted form, and what is said of every other."""

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.errors import BadInput
from surgeon.truth import benchmark_sources, read_accuracies


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("t.json", '{"a": 0.5, "b": 1}', {"a": 0.5, "b": 1.0}),
        ("t.json", '{"candidates": [{"name": "a", "avg": 0.25, "maj": 1}]}', {"a": 0.25}),
        ("t.csv", "name,accuracy\na,0.5\nb, 0.25\n\n", {"a": 0.5, "b": 0.25}),
        ("t.csv", "a,0.5\n", {"a": 0.5}),
        ("t.tsv", "a\t0.5\n", {"a": 0.5}),
    ],
)
def test_truth_reads_evaluations_and_small_tables(
    tmp_path: Path, name: str, text: str, wanted: dict[str, float]
):
    (tmp_path / name).write_text(text)
    assert read_accuracies(tmp_path / name) == wanted


def test_truth_reads_the_directory_of_an_evaluation(tmp_path: Path):
    (tmp_path / "evaluate.json").write_text('{"candidates": [{"name": "a", "avg": 0.25}]}')
    assert read_accuracies(tmp_path) == {"a": 0.25}


def test_a_benchmark_is_a_task_of_an_evaluation_of_several(tmp_path: Path):
    tasks = [{"name": "x", "measures": [{"name": "a", "avg": 0.75}]}]
    whole = {"candidates": [{"name": "a", "avg": 0.25}], "tasks": tasks}
    (tmp_path / "evaluate.json").write_text(json.dumps(whole))
    assert read_accuracies(tmp_path, "x") == {"a": 0.75}
    assert read_accuracies(tmp_path, "mean") == read_accuracies(tmp_path) == {"a": 0.25}
    with pytest.raises(BadInput, match="found tasks x, expected task y"):
        read_accuracies(tmp_path, "y")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.json", "{", "not valid JSON"),
        ("t.json", "[1]", "holds a list"),
        ("t.json", "{}", "no accuracy"),
        ("t.json", '{"a": 72.4}', "from 0 to 1"),
        ("t.json", '{"a": true}', "from 0 to 1"),
        ("t.json", '{"a": NaN}', "from 0 to 1"),
        ("t.json", '{"candidates": [{"name": "a"}]}', "not an evaluation"),
        ("t.csv", "a,0.5,1\n", "3 columns"),
        ("t.csv", "a,0.5\nb,x\n", "b has accuracy 'x'"),
        ("t.csv", "a,0.5\na,0.6\n", "twice"),
        ("t.csv", "", "no accuracy"),
    ],
)
def test_truth_that_cannot_be_used_names_file_and_reason(
    tmp_path: Path, name: str, text: str, words: str
):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=words) as error:
        read_accuracies(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(BadInput, match="is no file"):
        read_accuracies(tmp_path / "none.json")


def result(task: str, values: dict[str, float], **others: Any) -> str:
    """What lm-eval writes of one model on one task."""
    return json.dumps({"results": {task: {"alias": task, "sample_len": 4, **values}}, **others})


def test_truth_reads_results_of_lm_eval(tmp_path: Path):
    values = {
        "exact_match,strict": 0.25,
        "exact_match,flexible": 0.5,
        "exact_match_stderr,strict": 1,
    }
    (tmp_path / "a.json").write_text(result("gsm8k", values))
    (tmp_path / "runs__b").mkdir()
    (tmp_path / "runs__b" / "results_2026-01-01.json").write_text(
        result("gsm8k", values, config={"model_args": "pretrained=runs/b/,dtype=float32"})
    )
    assert read_accuracies(f"{tmp_path}#exact_match,strict") == {"a": 0.25, "b": 0.25}
    with pytest.raises(BadInput, match=r"2 metrics of gsm8k .*exact_match,strict; .*=DIR#METRIC"):
        read_accuracies(tmp_path, "gsm8k")
    with pytest.raises(BadInput, match="found 2 metrics exact_match "):
        read_accuracies(f"{tmp_path}#exact_match")
    two = {"results": {"x": {"acc,none": 0.5, "acc_norm,none": 1}, "y": {"acc,none": 0.75}}}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "c.json").write_text(json.dumps(two))
    assert read_accuracies(tmp_path / "t", "y") == {"c": 0.75}
    assert read_accuracies(f"{tmp_path / 't'}#acc", "x") == {"c": 0.5}
    with pytest.raises(BadInput, match="found tasks x, y, expected task z"):
        read_accuracies(tmp_path / "t", "z")
    (tmp_path / "t" / "surgeon.json").write_text("{}")
    with pytest.raises(BadInput, match=r"surgeon.json is no result of lm-eval"):
        read_accuracies(tmp_path / "t", "y")


def test_several_benchmarks_are_listed_by_name(tmp_path: Path):
    assert benchmark_sources("t.json") == {"": "t.json"}
    assert benchmark_sources("runs/lr=1/t.json") == {"": "runs/lr=1/t.json"}
    listed = "aime24=a/evaluate.json, gpqa=b#exact_match,strict"
    assert benchmark_sources(listed) == {
        "aime24": "a/evaluate.json",
        "gpqa": "b#exact_match,strict",
    }
    file = tmp_path / "lr=1.csv"
    file.write_text("a,0.5")
    assert benchmark_sources(str(file)) == {"": str(file)}
    with pytest.raises(BadInput, match="benchmark x twice"):
        benchmark_sources("x=a,x=b")
    with pytest.raises(BadInput, match="benchmark x without a file"):
        benchmark_sources("x=,y=b")
