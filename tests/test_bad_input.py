"""Every kind of unusable input, from the command line: one line, status 2, nothing written."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import test_checkpoint as damages

from surgeon import cli

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def place(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    """A directory with two checkpoints `a` and `b` and a mini-set, made the current one."""
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line that a refused command prints; nothing but the inputs is there afterwards."""
    before = sorted(p.name for p in Path().iterdir())
    with pytest.raises(SystemExit) as caught:
        cli.main(list(command))
    line = capsys.readouterr().err
    assert caught.value.code == 2, line
    assert line.startswith("Error: ") and line.count("\n") == 1, line
    assert sorted(p.name for p in Path().iterdir()) == before
    return line


DAMAGES = [
    damages.damage_truncate, damages.damage_header, damages.damage_missing_shard,
    damages.damage_index_outside, damages.damage_index_lies, damages.damage_no_config,
    damages.damage_config, damages.damage_remote_code, damages.damage_pickle,
    damages.damage_no_weights,
]  # fmt: skip
COMMANDS = {
    "merge-sweep": ["merge-sweep", "b", "a", "--out", "out"],
    "rank": ["rank", "b", "a", "--mini-set", "mini.jsonl", "--out", "out"],
    "transplant": ["transplant", "--recipient", "b", "--donor", "a", "--mask", "m", "--out", "out"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_checkpoint(place: Path, capsys, damage, command: list[str]):
    damage(place / "a")
    # (The directory `a` has lost its config, so it may be named as a directory without one.)
    assert "a" in refused(capsys, *command)


def change_config(path: Path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_checkpoints_of_different_shape(place: Path, capsys, make_checkpoint):
    shutil.rmtree(place / "b")
    make_checkpoint(place / "b", hidden_size=16)
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "hidden_size" in line or "shape" in line


def test_checkpoints_of_different_vocabulary_name_the_first_differing_token(place: Path, capsys):
    file = place / "b" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    words["w3"], words["w4"] = words["w4"], words["w3"]
    file.write_text(json.dumps(tokenizer))
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "w3" in line and "w4" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "mini.jsonl"),
        ('{"prompt": "w1"}\n{"prompt": \n', "mini.jsonl:2"),
        ('{"prompt": "w1"}\n{"text": "w1"}\n', "mini.jsonl:2"),
        ('{"id": 1, "prompt": "w1"}\n{"id": 1, "prompt": "w2"}\n', "mini.jsonl:2"),
        ('["w1"]\n', "mini.jsonl:1"),
        ('{"messages": [{"role": "user"}]}\n', "mini.jsonl:1"),
    ],
)
def test_an_empty_or_malformed_mini_set_is_named_by_its_line(
    place: Path, capsys, content: str, words: str
):
    (place / "mini.jsonl").write_text(content)
    assert words in refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")


def test_an_unknown_score(place: Path, capsys):
    line = refused(
        capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--select", "acc"
    )
    assert "found select = acc, expected" in line and "agreement" in line


def test_an_output_that_is_there_already(place: Path, capsys):
    (place / "out").mkdir()
    (place / "out" / "mine").write_text("")
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "not written by surgeon" in line or "exists" in line


def test_an_output_of_other_arguments_names_what_differs(place: Path, capsys):
    cli.main(["merge-sweep", "a", "b", "--out", "out", "--virtual", "--ratios", "0.5"])
    capsys.readouterr()
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--virtual", "--ratios", "0.25")
    assert "0.5" in line and "0.25" in line


def test_no_space(place: Path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out")
    assert "GB free" in line
    line = refused(capsys, "merge-sweep", "a", "b", "--out", "out", "--config", "nowhere.yaml")
    assert "nowhere.yaml" in line


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "--mini-set", "mini.jsonl", "--out", "out"],
        ["rank", "nowhere", "--mini-set", "mini.jsonl", "--out", "out"],
        ["rank", "a", "--out", "out"],
        ["evaluate", "a", "--task", "mini.jsonl", "--out", "out"],
        ["run", "nowhere.yaml"],
        ["rank", "a", "--mini-set", "mini.jsonl", "--out", "out", "--set", "tok_k=3"],
        ["merge-sweep", "a", "b", "--out", "out", "--ratios", "2:1:0.1"],
        ["merge-sweep", "a", "b", "--out", "out", "--method", "sleep"],
    ],
    ids=lambda c: " ".join(c),
)
def test_a_command_that_asks_for_the_impossible(place: Path, capsys, command: list[str]):
    refused(capsys, *command)
