"""Partial directory, lineage, rename."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgeon import lineage
from surgeon.errors import BadInput


def begin(out: Path, **arguments):
    return lineage.begin(out, verb="rank", arguments=arguments, inputs={"a": "sha256:1"}, seed=0)


def test_a_directory_has_its_name_only_when_it_is_finished(tmp_path: Path):
    partial = begin(tmp_path / "out", k=1)
    assert (
        partial is not None
        and partial == tmp_path / "out.partial"
        and not (tmp_path / "out").exists()
    )
    lineage.write_json(partial / "x.json", {"x": 1})
    lineage.finish(partial, tmp_path / "out")
    assert json.loads((tmp_path / "out/x.json").read_text()) == {"x": 1}
    assert not partial.exists()


def test_the_same_run_is_continued_and_a_finished_one_is_not_done_again(tmp_path: Path):
    partial = begin(tmp_path / "out", k=1, path=tmp_path)
    assert partial is not None
    (partial / "half").write_text("kept")
    assert begin(tmp_path / "out", k=1, path=tmp_path) == partial
    assert (partial / "half").read_text() == "kept"
    lineage.finish(partial, tmp_path / "out")
    assert begin(tmp_path / "out", k=1, path=tmp_path) is None


@pytest.mark.parametrize("finished", [False, True])
def test_another_run_is_refused_with_what_differs(tmp_path: Path, finished: bool):
    partial = begin(tmp_path / "out", k=1, ratios=[0.1, 0.2])
    assert partial is not None
    if finished:
        lineage.finish(partial, tmp_path / "out")
    with pytest.raises(BadInput, match=r"arguments.k is 1 there and 2 here"):
        begin(tmp_path / "out", k=2, ratios=[0.1, 0.2])


def test_a_foreign_directory_is_never_touched(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(BadInput, match="not written by surgeon"):
        begin(tmp_path / "out", k=1)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


def test_a_run_killed_before_its_first_write_starts_afresh(tmp_path: Path):
    (tmp_path / "out.partial").mkdir()
    assert begin(tmp_path / "out", k=1) == tmp_path / "out.partial"


def test_a_file_is_old_or_new_never_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lineage.write_text(tmp_path / "f", "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        lineage.write_text(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"


def test_json_refuses_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        lineage.write_json(tmp_path / "f", {"x": float("nan")})


def test_too_little_room_is_said_in_gigabytes(tmp_path: Path):
    with pytest.raises(BadInput, match=r"copy needs 1000000\.00 GB .* has .* GB free"):
        lineage.require_room(tmp_path / "not/yet/there", 10**15, "copy")


def test_a_run_of_the_first_format_may_lack_a_setting_that_is_newer(tmp_path: Path):
    out = tmp_path / "o"
    out.mkdir()
    old = {"verb": "v", "arguments": {"n": 1}, "inputs": {}, "seed": 0, "versions": {}}
    (out / lineage.FILE).write_text(json.dumps(old))
    assert lineage.begin(out, verb="v", arguments={"n": 1, "top_k": 0}, inputs={}, seed=0) is None
    with pytest.raises(BadInput, match=r"arguments\.n is 1 there and 2 here"):
        lineage.begin(out, verb="v", arguments={"n": 2, "top_k": 0}, inputs={}, seed=0)
    (out / lineage.FILE).write_text(json.dumps({"format": lineage.FORMAT, **old}))
    with pytest.raises(BadInput, match=r"arguments\.top_k is null there and 0 here"):
        lineage.begin(out, verb="v", arguments={"n": 1, "top_k": 0}, inputs={}, seed=0)


HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
"""Another process that works in a directory until its input ends."""


def test_a_run_that_another_process_is_at_is_refused(tmp_path: Path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    run: Any = dict(verb="rank", arguments={}, inputs={})
    lineage.begin(out, **run)
    lineage.let_go(partial)
    command = [sys.executable, "-c", HOLD, str(partial)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        with pytest.raises(BadInput, match=r"another process is writing .*out\.partial\. Wait"):
            lineage.begin(out, **run)
        other.communicate()
    # With its process the lock is gone, and this one may begin twice.
    assert lineage.begin(out, **run) == lineage.begin(out, **run) == partial
    lineage.finish(partial, out)
    assert lineage.begin(out, **run) is None and not partial.exists()


def test_a_result_of_an_input_that_changed_meanwhile_is_refused(tmp_path: Path):
    out, partial, file = tmp_path / "out", tmp_path / "out.partial", tmp_path / "in.jsonl"
    other = tmp_path / "other.jsonl"
    file.write_text("1")
    other.write_text("1")
    with lineage.reading():
        whole = lineage.digest_of_files([file])
        lineage.begin(out, verb="rank", arguments={}, inputs={"a": whole})
        other.write_text("of the same content, and of no concern")
        times = file.stat()
        file.write_text("2")
        with pytest.raises(
            BadInput, match=r"in\.jsonl changed while it was read.*Remove .*partial"
        ):
            lineage.finish(partial, out)
        assert not out.exists()
        file.unlink()
        with pytest.raises(BadInput, match=r"in\.jsonl went away while it was read.*Put it back"):
            lineage.finish(partial, out)
        assert not out.exists()
        # As the file was when its digest was made, all is well.
        file.write_text("1")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        lineage.finish(partial, out)
        assert out.is_dir()


def test_an_input_that_was_only_touched_or_written_again_is_the_same(tmp_path: Path):
    out, partial, file = tmp_path / "out", tmp_path / "out.partial", tmp_path / "in.jsonl"
    file.write_text("1")
    with lineage.reading():
        whole = lineage.digest_of_files([file])
        lineage.begin(out, verb="rank", arguments={}, inputs={"a": whole})
        file.unlink()
        file.write_text("1")
        os.utime(file, (1, 1))
        lineage.finish(partial, out)
    assert out.is_dir()


def test_what_a_run_made_for_itself_may_go(tmp_path: Path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with lineage.reading():
        inputs: dict[str, str] = {}
        for file in (tmp_path / "part.partial" / "a", lineage.scratch() / "b"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(file.name)
            inputs[file.name] = lineage.file_digest(file)
            file.unlink()
        lineage.begin(out, verb="rank", arguments={}, inputs=inputs)
        lineage.finish(partial, out)
    assert out.is_dir()


def test_what_lies_in_a_held_directory_takes_no_lock_of_its_own(tmp_path: Path):
    """A sweep begins a thousand candidates, and a process has a thousand open files."""
    whole = begin(tmp_path / "out")
    assert whole is not None
    before = len(os.listdir("/proc/self/fd"))
    parts = [begin(whole / str(n)) for n in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and parts == [
        whole / f"{n}.partial" for n in range(5)
    ]
    lineage.finish(whole / "0.partial", whole / "0")
    assert begin(whole / "0") is None
    lineage.let_go(whole)


def test_what_came_to_be_at_out_meanwhile_stays(tmp_path: Path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    lineage.begin(out, verb="rank", arguments={}, inputs={})
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(BadInput, match="out came to be while"):
        lineage.finish(partial, out)
    assert (out / "mine").read_text() == "x" and partial.is_dir()


@pytest.mark.parametrize("text", ["[1]", "null", '"x"'])
def test_a_record_that_is_no_object_is_refused(tmp_path: Path, text: str):
    (tmp_path / lineage.FILE).write_text(text)
    with pytest.raises(BadInput, match="holds no JSON object"):
        lineage.begin(tmp_path, verb="rank", arguments={}, inputs={})


def test_a_name_that_is_no_text_is_kept_as_json(tmp_path: Path):
    name = os.fsdecode(b"a\xff")
    lineage.write_json(tmp_path / "a.json", {"name": name})
    assert lineage.read_object(tmp_path / "a.json") == {"name": name}
