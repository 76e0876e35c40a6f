"""Typed JSON files: written once, read back the same, and refused when they can't be used."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from surgeon import artifact, lineage
from surgeon.errors import BadInput


@artifact.part
class Row:
    name: str
    score: float | None = None


@artifact.artifact("things.json", version=1)
class Things:
    rows: tuple[Row, ...]
    note: str = "none"
    out: artifact.Out = Path()
    already: artifact.Already = False


THINGS = Things(rows=(Row(name="a", score=0.5), Row(name="b", score=None)))


def test_what_is_written_is_read_back(tmp_path: Path):
    artifact.write(tmp_path, THINGS)
    read = artifact.read(Things, tmp_path)
    assert read == dataclasses.replace(THINGS, out=tmp_path)
    stored = json.loads((tmp_path / "things.json").read_text())
    assert stored["format"] == 1 and not {"out", "already"} & set(stored)


def test_a_number_that_is_none_is_null(tmp_path: Path):
    artifact.write(tmp_path, Things(rows=(Row(name="a", score=math.nan),)))
    assert artifact.read(Things, tmp_path).rows[0].score is None


def test_a_file_without_a_format_is_of_version_one(tmp_path: Path):
    (tmp_path / "things.json").write_text('{"rows": [{"name": "a"}], "more": 1}')
    assert artifact.read(Things, tmp_path).rows == (Row(name="a"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"rows": [{"name": 3}]}', r"found rows\.0\.name unusable"),
        ('{"format": 9, "rows": []}', "found format 9, expected 1"),
        ("{", "can't be read as JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_file_that_cant_be_used_is_refused_by_name(tmp_path: Path, text: str, words: str):
    (tmp_path / "things.json").write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        artifact.read(Things, tmp_path)
    assert "things.json" in str(caught.value)


def test_once_works_once_and_then_reads(tmp_path: Path):
    run, calls = lineage.Run("thing", {"n": 1}, {}, 0), []

    def work(partial: Path) -> Things:
        calls.append(partial)
        return THINGS

    first = artifact.once(tmp_path / "o", Things, work, run=run)
    again = artifact.once(tmp_path / "o", Things, work, run=run)
    assert len(calls) == 1 and not first.already and again.already
    assert again.rows == first.rows == THINGS.rows and first.out == again.out == tmp_path / "o"
    with pytest.raises(BadInput, match=r"arguments\.n is 1 there and 2 here"):
        artifact.once(tmp_path / "o", Things, work, run=run._replace(arguments={"n": 2}))
    with pytest.raises(BadInput, match=r"arguments\.n is 1 there and 2 here"):
        lineage.check(tmp_path / "o", run._replace(arguments={"n": 2}))


def test_once_resumes_what_was_interrupted(tmp_path: Path):
    run = lineage.Run("thing", {}, {})

    def killed(partial: Path) -> Things:
        (partial / "half").write_text("done")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact.once(tmp_path / "o", Things, killed, run=run)
    assert not (tmp_path / "o").exists()

    def resumed(partial: Path) -> Things:
        assert (partial / "half").read_text() == "done"
        return THINGS

    assert artifact.once(tmp_path / "o", Things, resumed, run=run).rows == THINGS.rows


def test_the_command_line_is_kept(tmp_path: Path):
    token = lineage.COMMAND.set("surgeon thing --n 1")
    try:
        artifact.once(tmp_path / "o", Things, lambda _: THINGS, run=lineage.Run("thing", {}, {}))
    finally:
        lineage.COMMAND.reset(token)
    kept = lineage.read(tmp_path / "o") or {}
    assert kept["command"] == "surgeon thing --n 1" and kept["format"] == lineage.FORMAT
    # Another spelling of the same run is the same run.
    again = artifact.once(
        tmp_path / "o", Things, lambda _: THINGS, run=lineage.Run("thing", {}, {})
    )
    assert again.already


def test_tensors_are_whole_or_not_there(tmp_path: Path):
    import numpy as np
    from safetensors.numpy import load_file

    lineage.write_tensors(tmp_path / "a.safetensors", {"x": np.arange(6).reshape(2, 3).T})
    assert load_file(tmp_path / "a.safetensors")["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
