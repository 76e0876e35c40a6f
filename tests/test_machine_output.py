"""What programs read: JSON on standard output and nothing else, exit statuses, quiet, progress in a
log, completion."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest

from surgeon import cli, console, progress
from surgeon.artifact import told
from surgeon.families import subjects


@pytest.fixture
def place(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict, str]:
    """The JSON that a command prints, and what it says on stderr."""
    capsys.readouterr()
    cli.main([*words, "--json"])
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_sweep_a_ranking_and_a_transplant_print_their_results_only(place: Path, capsys):
    plan, _ = printed(capsys, "merge-sweep", "a", "b", "--ratios", "0.5", "--dry-run")
    assert plan["verb"] == "merge-sweep" and plan["out"] is None and plan["bytes"] > 0
    family, _ = printed(capsys, "merge-sweep", "a", "b", "--ratios", "0.5", "--virtual",
                        "--out", "f")  # fmt: skip
    assert family["out"] == "f" and [c["ratio"] for c in family["candidates"]] == [0, 0.5, 1]
    rank = ["rank", "f", "--mini-set", "mini.jsonl", "--samples", "1", "--max-tokens", "6",
            "--row-tokens", "2", "--top-k", "9", "--out", "r"]  # fmt: skip
    ahead, said = printed(capsys, *rank[:-2], "--dry-run")
    assert ahead["verb"] == "rank" and len(ahead["costs"]) == 3 and not Path("r").exists()
    ranking, said = printed(capsys, *rank)
    assert {c["name"] for c in ranking["candidates"]} == {"a", "slerp-0.5", "b"}
    assert ranking["out"] == "r" and ranking["already"] is False and "sample 1/3 a: 2/2" in said
    again, said = printed(capsys, *rank, "--quiet")
    assert again.pop("already") is True and not said
    assert again == {key: value for key, value in ranking.items() if key != "already"}


def test_names_that_are_made_apart_are_told(place: Path, capsys):
    import shutil

    shutil.copytree("a", "other/a")
    found = subjects(["a", "other/a"])
    assert [s.name for s in found] == ["a", "a-2"]
    assert capsys.readouterr().err == "Note: other/a is called a-2 here: a is a.\n"


def test_a_recipe_prints_a_line_for_each_step(place: Path, capsys):
    Path("r.yaml").write_text(
        "- merge-sweep: {a: a, b: b, ratios: '0.5', virtual: true, out: f}\n"
        "- diff: {first: a, second: 'f/family.json#slerp-0.5', units: 0}\n"
    )
    capsys.readouterr()
    cli.main(["run", "r.yaml", "--json", "--quiet"])
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["verb"] for row in rows] == ["merge-sweep", "diff"]
    assert 0 < rows[1]["total"]["relative"] < 1 and "1/2 merge-sweep" in err
    assert "comparing" not in err


def test_refused_input_leaves_standard_output_empty(place: Path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["show", "nowhere", "--json"])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("Error: found nothing at nowhere")


class Pair(NamedTuple):
    name: str
    value: float


@dataclass(frozen=True)
class Plain:
    pairs: tuple[Pair, ...]
    place: Path


class SaysItself:
    def told(self) -> dict[str, object]:
        return {"n": np.int64(3)}


def test_any_result_becomes_json():
    value = Plain((Pair("a", math.nan), Pair("b", 1.5)), Path("x/y"))
    assert told(value) == {
        "pairs": [{"name": "a", "value": None}, {"name": "b", "value": 1.5}], "place": "x/y",
    }  # fmt: skip
    assert told({"n": np.arange(2), 3: {None, True}} | {3: True}) == {"n": [0, 1], "3": True}
    assert told(SaysItself()) == {"n": 3}


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.track(range(8), what="sampling"):
        now[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "sampling: 2/8, 2 min left", "sampling: 4/8, 80 s left", "sampling: 6/8, 40 s left",
        "sampling: 8/8 in 160.0 s",
    ]  # fmt: skip
    with progress.board("ranking", 2) as shown:
        now[0] += 50
        shown.advance(0, 1)
        now[0] += 1
        shown.advance(0, 2)
    assert capsys.readouterr().err.splitlines() == [
        "ranking: 1/2, 50 s left",
        "ranking: 2/2 in 51.0 s",
    ]


def test_quiet_keeps_warnings(capsys):
    with progress.quiet():
        for _ in progress.track([1], what="x"):
            progress.say("a note")
            progress.say("Warning: something")
        with progress.board("y", 1) as shown:
            shown.advance(0, 1)
    assert capsys.readouterr().err == "Warning: something\n"
    progress.say("a note")
    assert capsys.readouterr().err == "a note\n"


def offered(words: str, capsys) -> list[str]:
    """What completion offers for the last of some words."""
    from click.shell_completion import BashComplete

    parts = words.split(" ")
    shell = BashComplete(cli.cli, {}, "surgeon", "_SURGEON_COMPLETE")
    return [f"{item.type}:{item.value}" for item in shell.get_completions(parts[1:-1], parts[-1])]


def test_completion_offers_verbs_options_choices_and_places(capsys):
    assert offered("surgeon tra", capsys) == ["plain:transplant"]
    assert "plain:--verify" in offered("surgeon show --v", capsys)
    assert offered("surgeon merge-sweep a b --engine m", capsys) == ["plain:mergekit"]
    assert offered("surgeon rank --mini-set x", capsys) == ["file:x"]
    assert offered("surgeon rank run", capsys) == ["file:run"]
    assert "plain:identify" in offered("surgeon trigger i", capsys)


def test_every_command_has_json_and_quiet():
    group = cli.cli
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        inner = isinstance(found, click.Group)
        commands = [found.get_command(context, n) for n in found.list_commands(context)] if inner \
            else [found]  # fmt: skip
        for command in commands:
            assert command is not None
            assert {"as_json", "quiet"} <= {p.name for p in command.params}, command.name


def test_colours_go_with_no_color(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.warn(["x"])
    assert capsys.readouterr().out == "\x1b[33mWarning: x\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    console.warn(["x"])
    assert capsys.readouterr().out == "Warning: x\n"


def test_a_reader_that_goes_away(place: Path):
    root = str(Path(cli.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "surgeon", "show", "mini.jsonl"],
        env={**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
