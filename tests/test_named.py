"""Rows of registries and functions from outside."""

import pytest

from surgeon import lineage, named
from surgeon.errors import BadInput

TABLE = {"length": len, "sum": sum}


def test_a_row_or_a_function_from_outside():
    assert named.row(TABLE, "length", "select") is len
    assert named.row(TABLE, "math:sqrt", "select")(4) == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lenght", "found select = lenght, expected one of: length, sum; or module:function. Did"),
        ("nowhere_at_all:f", "can't be imported"),
        ("math:no_such", "has no function 'no_such'"),
        ("math:pi", "has no function 'pi'"),
        ("a b:c", "expected one of"),
    ],
)
def test_anything_else_is_refused(name: str, words: str):
    with pytest.raises(BadInput) as caught:
        named.row(TABLE, name, "select")
    assert words in str(caught.value)


def test_a_module_of_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_rows_of_a_test.py").write_text("def f(): return 3\n")
    monkeypatch.chdir(tmp_path)
    assert named.row(TABLE, "my_rows_of_a_test:f", "select")() == 3


def test_the_file_behind_a_function_is_an_input_of_the_run(tmp_path, monkeypatch):
    file = tmp_path / "my_rows_of_another_test.py"
    file.write_text("def f(): return 3\n")
    monkeypatch.chdir(tmp_path)
    named.row(TABLE, "my_rows_of_another_test:f", "select")
    specs = dict(select="my_rows_of_another_test:f", answer="Answer: (.)", check="sum", other=None)
    inputs = named.digests(**specs)
    assert inputs == {"select my_rows_of_another_test:f": lineage.file_digest(file)}
    file.write_text("def f(): return 4\n")
    assert named.digests(**specs).keys() == inputs.keys() and named.digests(**specs) != inputs
