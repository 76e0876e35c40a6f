"""Reading true accuracies: every accepted form, and what is said of every other."""

from pathlib import Path

import pytest

from surgeon.errors import BadInput
from surgeon.truth import read_accuracies


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
