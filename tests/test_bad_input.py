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


PROMPT_FILES: dict[str, tuple[str, bytes | str, str]] = {
    "an array that breaks off": ("p.json", '[{"prompt": "w1"},\n{"prompt": ', "p.json:2: found no"),
    "an array without commas": ("p.json", '[{"prompt": "w1"}\n{"prompt": "w2"}]', "expected ']'"),
    "two arrays": ("p.json", '[{"prompt": "w1"}]\n[]', "p.json:2: found text after the array"),
    "half a character": ("p.jsonl", '{"prompt": "w1 \\ud800"}', "p.jsonl:1: found half a char"),
    "half an id": ("p.jsonl", '{"prompt": "w1", "id": "\\udc00"}', "(\\udc00) in id"),
    "Latin-1": ("p.jsonl", b'{"prompt": "w1"}\n{"prompt": "\xe9"}', "p.jsonl:2: found bytes that"),
    "Latin-1 in a table": ("p.csv", b"prompt\nw1\n\xe9\n", "p.csv:3: found bytes that are not"),
    "cut UTF-16": ("p.jsonl", b"\xff\xfe{", "is not UTF-16 text"),
    "a short row": ("p.csv", "prompt,answer\nw1\n", "p.csv:2: found 1 cells, expected 2"),
    "a long row": ("p.csv", "prompt,answer\nw1,2,3\n", "p.csv:2: found 3 cells, expected 2"),
    "an open quote": ("p.csv", 'prompt\n"w1\n', "p.csv:2: found no valid row"),
    "a column twice": ("p.csv", "prompt,prompt\nw1,w2\n", "the column 'prompt' twice"),
    "a table of nothing": ("p.csv", "prompt\n", "holds no prompts"),
    "a table without a question": ("p.csv", "text\nw1\n", "found the columns text, expected"),
    "no Parquet": ("p.parquet", "PAR1", "is not a readable Parquet file"),
    "two questions": ("p.jsonl", '{"question": "w1", "problem": "w2"}', "question and problem"),
    "choices": ("p.jsonl", '{"question": "w1", "choices": ["w2"]}', "found choices beside"),
    "a speaker": ("p.jsonl", '{"conversations": [{"from": "x", "value": "w1"}]}', "from 'x'"),
    "an image": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        "a part of a message of type 'image'",
    ),
    "images": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": "w1", "images": ["x"]}]}',
        "found images in a message",
    ),
    "an old call": (
        "p.jsonl",
        '{"messages": [{"role": "assistant", "content": "w1", "function_call": {"name": "f"}}]}',
        "found function_call",
    ),
    "a call without a name": (
        "p.jsonl", '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "found a tool call",
    ),
    "a tool without a name": ("p.jsonl", '{"prompt": "w1", "tools": [{"x": 1}]}', "found the tool"),
    "two system messages": (
        "p.jsonl",
        '{"system": "w1", "messages": [{"role": "system", "content": "w2"}, '
        '{"role": "user", "content": "w3"}]}',
        "two system messages",
    ),
    "no number": ("p.jsonl", '{"prompt": "w1", "answer": NaN}', "found nan as answer"),
    "answers": ("p.jsonl", '{"prompt": "w1", "answer": ["1", "2"]}', "found a list as answer"),
    "an empty id": ("p.jsonl", '{"prompt": "w1", "id": ""}', "found an empty str as id"),
    "tools without a place": (
        "p.jsonl",
        '{"prompt": "w1", "tools": [{"name": "w2"}]}',
        "prompt '1': the chat template leaves out the tools",
    ),
    "calls without a place": (
        "p.jsonl",
        '{"messages": [{"role": "assistant", "tool_calls": [{"name": "w5"}]}, '
        '{"role": "tool", "content": "w1"}]}',
        "leaves out a tool call of message 1",
    ),
    "reasoning without a place": (
        "p.jsonl",
        '{"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", '
        '"reasoning_content": "w3"}, {"role": "user", "content": "w4"}]}',
        "leaves out the reasoning of message 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROMPT_FILES)
def test_a_file_of_prompts_that_cant_be_asked(place: Path, capsys, case: str):
    name, content, words = PROMPT_FILES[case]
    (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refused(capsys, "rank", "a", "--mini-set", name, "--out", "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--columns", "prompt"], "found columns prompt=, expected NAME=COLUMN"),
        (["--columns", "question=prompt"], "with a NAME of prompt, messages, answer"),
        (["--columns", "prompt=prompt,messages=prompt"], "prompt or messages, not both"),
        (["--columns", "prompt=text"], "mini.jsonl:1: found no column 'text' for prompt"),
        (["--columns", "answer=gold"], "mini.jsonl:1: found no column 'gold' for answer"),
        (["--template", "rag"], "found the chat template 'rag', expected one of the checkpoint's"),
    ],
)
def test_columns_and_templates_that_arent_there(
    place: Path, capsys, options: list[str], words: str
):
    command = ("rank", "a", "--mini-set", "mini.jsonl", "--out", "out", *options)
    assert words in refused(capsys, *command)


def test_a_choice_of_templates_without_a_default(place: Path, capsys):
    (place / "a" / "chat_template.jinja").unlink()
    (place / "a" / "additional_chat_templates").mkdir()
    (place / "a" / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    line = refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")
    assert "found the chat templates rag and no default" in line and "--template NAME" in line


def test_a_template_that_is_no_text(place: Path, capsys):
    (place / "a" / "chat_template.jinja").write_bytes(b"\xff")
    line = refused(capsys, "rank", "a", "--mini-set", "mini.jsonl", "--out", "out")
    assert "chat_template.jinja is not UTF-8 text" in line


def test_a_directory_of_prompts(place: Path, capsys):
    assert "is a directory" in refused(capsys, "rank", "a", "--mini-set", "b", "--out", "out")


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
