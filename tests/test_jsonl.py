"""JSON lines: cut anywhere, a file keeps the whole rows before the cut, and goes on from there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from surgeon import jsonl
from surgeon.errors import BadInput

VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=5)
HARD = {"text": 'a\n"\\\x85\u2028\u2029\x00é漢😀', "half": "\ud83d", "\ude00": ["\ud83d\ude00"]}


@given(ROWS, st.integers(0, 10**4))
@example([HARD, {}, HARD], 10**9)
@example([HARD, HARD], 199)
def test_a_file_cut_anywhere_keeps_the_rows_before_the_cut_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cut: int
):
    file = tmp_path_factory.mktemp("j") / "rows.jsonl"
    ends = [0]
    for row in rows:
        jsonl.append(file, row)
        ends.append(file.stat().st_size)
    content = file.read_bytes() if rows else b""
    assert len(content.decode().splitlines()) == len(rows)
    cut = min(cut, len(content)) if cut > 10**4 else cut % (len(content) + 1)
    file.write_bytes(content[:cut])
    # A row that only lost its line break counts.
    whole = sum(end - 1 <= cut for end in ends[1:])
    places, kept = zip(*jsonl.rows(file), strict=True) if whole else ((), ())
    assert json.dumps(kept) == json.dumps(rows[:whole])
    assert list(places) == [f"{file}:{n}" for n in range(1, whole + 1)]
    for row in rows[whole:]:
        jsonl.append(file, row)
    if rows:
        # What was cut off comes again, and nothing else has changed.
        assert file.read_bytes() == content or cut == len(content) - 1


@given(ROWS)
def test_a_file_written_at_once_is_the_one_that_grew(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    directory = tmp_path_factory.mktemp("j")
    for row in rows:
        jsonl.append(directory / "grown", row)
    jsonl.write(directory / "written", rows)
    grown = (directory / "grown").read_bytes() if rows else b""
    assert (directory / "written").read_bytes() == grown


def test_a_long_torn_line_is_cut_off(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    jsonl.append(file, {"a": 1})
    with open(file, "ab") as stream:
        stream.write(b'{"text": "' + b"x" * 200_000)
    jsonl.append(file, {"a": 2})
    assert file.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_a_row_that_finds_no_room_is_an_error_and_is_cut_off_by_the_next(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    code = (
        "import resource, sys; from surgeon import jsonl\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))\n"
        "jsonl.append(sys.argv[1], {'text': 'short'})\n"
        "try: jsonl.append(sys.argv[1], {'text': 'of many characters'})\n"
        "except OSError: sys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert ended.returncode == 7
    assert file.stat().st_size == 30
    jsonl.append(file, {"text": "after"})
    assert [row["text"] for _, row in jsonl.rows(file)] == ["short", "after"]


def test_text_is_readable_and_every_row_is_one_line(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    jsonl.append(file, HARD)
    text = file.read_bytes().decode()
    assert "é漢😀" in text
    assert len(text.splitlines()) == 1
    ((_, row),) = jsonl.rows(file)
    # Two halves that follow each other are one character to JSON.
    assert row == {**HARD, "\ude00": ["😀"]}


def test_a_missing_file_has_no_rows_and_a_damaged_line_is_named(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    assert not list(jsonl.rows(file))
    for bad, message in (
        (b"nope\n", "found no valid JSON"),
        (b'{"a": \n{}\n', "found no valid JSON"),
        (b'{"a": "\xe9"}\n', "found bytes that are not UTF-8"),
        (b"[" * 10**5 + b"\n", "found no valid JSON"),
    ):
        file.write_bytes(b"{}\n\n" + bad + b'{"torn')
        with pytest.raises(BadInput, match=message) as error:
            list(jsonl.rows(file))
        assert str(error.value).startswith(f"{file}:3: ")
