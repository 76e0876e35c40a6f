"""The cache: made once, whole or absent, and never taken from under who uses it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surgeon import store
from surgeon.errors import BadInput


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(store.LIMIT, raising=False)
    monkeypatch.setattr(store, "_held", {})
    monkeypatch.setattr(store, "_temporary", {})
    return tmp_path / "xdg" / "surgeon"


def writes(n_bytes: int, made: list[str] | None = None, name: str = "x"):
    def make(partial: Path) -> None:
        if made is not None:
            made.append(name)
        (partial / "file").write_bytes(b"x" * n_bytes)

    return make


def released() -> None:
    """As if the processes so far had ended."""
    for descriptor in store._held.values():
        os.close(descriptor)
    store._held.clear()


def test_what_was_made_is_not_made_again(own_cache: Path):
    made: list[str] = []
    one = store.kept("merged", "sha256:" + "a" * 64, writes(3, made))
    released()
    assert store.kept("merged", "sha256:" + "a" * 64, writes(3, made)) == one
    assert store.owns(one) and not store.owns(own_cache.parent)
    assert made == ["x"] and one == own_cache / "merged" / ("a" * 32)
    store.kept("merged", "sha256:" + "b" * 64, writes(3, made))
    assert made == ["x", "x"]


def test_an_entry_that_lost_a_file_is_made_again():
    made: list[str] = []
    one = store.kept("merged", "a", writes(3, made))
    (one / "file").unlink()
    assert (store.kept("merged", "a", writes(3, made)) / "file").is_file()
    assert made == ["x", "x"]


def test_an_error_leaves_nothing(own_cache: Path):
    def make(partial: Path) -> None:
        (partial / "file").write_text("half")
        raise BadInput("found x, expected y")

    with pytest.raises(BadInput):
        store.kept("merged", "a", make)
    assert not [p for p in own_cache.rglob("*") if p.suffix != ".lock" and p.name != "merged"]


def test_the_least_recently_used_goes_first_and_none_in_use(monkeypatch, own_cache: Path):
    monkeypatch.setenv(store.LIMIT, "1K")
    for n, name in enumerate("abc"):
        store.kept("merged", name, writes(300), n_bytes=300)
        os.utime(own_cache / "merged" / f"{name}.lock", (n, n))
    released()
    store.kept("merged", "a", writes(300), n_bytes=300)  # used: now the newest, and held
    os.utime(own_cache / "merged" / "a.lock", (0, 0))
    store.kept("merged", "d", writes(300), n_bytes=300)
    left = sorted(p.name for p in (own_cache / "merged").iterdir())
    assert left == ["a", "a.lock", "c", "c.lock", "d", "d.lock"]


@pytest.mark.parametrize("size", ["0", "2"])
def test_without_the_cache_or_too_large_for_it_a_directory_goes_with_the_process(
    size: str, monkeypatch, own_cache: Path
):
    monkeypatch.setenv(store.LIMIT, size)
    made: list[str] = []
    one = store.kept("merged", "a", writes(3, made), n_bytes=3)
    assert (one / "file").is_file() and own_cache not in one.parents
    assert store.kept("merged", "a", writes(3, made), n_bytes=3) == one and made == ["x"]
    assert not own_cache.exists()


def test_a_cache_that_cant_be_made_is_no_obstacle(monkeypatch, tmp_path: Path, capsys):
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "plain"))
    assert (store.kept("merged", "a", writes(3)) / "file").is_file()
    assert "keeps nothing for later" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("20GB", 20 * 10**9), ("1.5 kb", 1500), ("7", 7), ("3T", 3 * 10**12), ("", 64 * 10**9)],
)
def test_sizes(text: str, n_bytes: int, monkeypatch):
    monkeypatch.setenv(store.LIMIT, text)
    assert store.limit() == n_bytes


@pytest.mark.parametrize("text", ["much", "-1", "GB", "1XB"])
def test_a_size_that_cant_be_read(text: str, monkeypatch):
    monkeypatch.setenv(store.LIMIT, text)
    with pytest.raises(BadInput, match="expected a size such as 20GB"):
        store.limit()


CODE = """
import sys, time
from pathlib import Path
from surgeon import store
def make(partial):
    print("making", flush=True)
    (partial / "file").write_text("half")
    time.sleep(float(sys.argv[1]))
    (partial / "file").write_text("whole")
print((store.kept("merged", "a", make) / "file").read_text(), flush=True)
"""


def start(seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", CODE, str(seconds)], stdout=subprocess.PIPE,
                            text=True)  # fmt: skip


def test_a_killed_run_leaves_no_entry_and_the_next_one_makes_it():
    killed = start(600)
    assert killed.stdout is not None and killed.stdout.readline() == "making\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert start(0).communicate()[0] == "making\nwhole\n"


def test_of_two_processes_one_makes_the_entry_and_the_other_waits(own_cache: Path):
    first = start(0.5)
    while not (own_cache / "merged" / "a.partial").exists():
        time.sleep(0.01)
    second = start(0)
    assert first.communicate()[0] == "making\nwhole\n"
    assert second.communicate()[0] == "whole\n"


def test_what_a_killed_run_left_goes_when_the_next_entry_is_made(own_cache: Path):
    left = own_cache / "merged" / "b.partial"
    left.mkdir(parents=True)
    store.kept("merged", "a", writes(3))
    assert not left.exists()
