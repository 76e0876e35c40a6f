"""The command line: what it offers is frozen here, and how it fails."""

import errno
import signal
import subprocess
import sys

import click
import pytest
from safetensors import SafetensorError

from surgeon import cli
from surgeon.errors import BadInput
from surgeon.settings import leaves
from surgeon.settings.verbs import VERBS

COMMANDS = {
    "merge-sweep": "a b out method ratios config virtual dry_run dtype template generation "
    "tokenizer uniform more",
    "rank": "checkpoints mini_set out samples seed select preset traces weights credit answer "
    "truth max_tokens row_tokens top_k batch device dtype keep_activations evidence_mb",
    "evaluate": "checkpoints task tasks checks answers trained_on consensus out samples seed check "
    "answer limit baseline max_tokens batch device dtype",
    "transplant": "recipient donor weights select mask control surgery alpha threshold "
    "top_fraction top_units budget layers with_attention answers device match weights_from_other "
    "recipient_weights seed dry_run out",
    "weights": "weights out",
    "tasks": "benchmark out source train limit instruction seed",
    "summary": "rankings out",
    "soup": "ranking out most device dtype",
    "read": "ranking out candidates traces record markers judge judge_temperature labels blocks "
    "seed dry_run structured prompt_file parallel price_in price_out device dtype",
    "distill": "checkpoint pool out method tuning merge select shots context steps batch_size lr "
    "ema max_tokens save_every tracker answer seed device dtype",
    "curate": "pool out by keep worst reader weights weights_from_other prompts columns exclude "
    "finished answer top_k consensus_top thinking template seed device dtype",
    "pick": "sources out prompts traces limit weights weights_from_other by columns check answer "
    "top_k samples max_tokens seed engine workers device dtype",
    "sft": "checkpoint traces mix prompts columns out tuning merge epochs held_out pack lr "
    "batch_size save_every thinking template seed device dtype",
    "trigger label": "checkpoint prompts out judge easy hard traces spans levels samples limit "
    "temperature top_p max_tokens structured prompt_file parallel price_in price_out seed batch "
    "device dtype",
    "trigger identify": "checkpoint labels out method layer k channels seed device dtype",
    "trigger fluctuation": "checkpoint labels channels out tokens k instance_steps seed "
    "device dtype",
    "trigger detectors": "checkpoint labels channels out k instance_steps probes negatives "
    "criterion cooldown cap seed device dtype",
    "extract-lora": "checkpoint base out rank energy rest mini_set device dtype",
    "trigger reconstruct": "checkpoint labels out source failures limit structured prompt_file "
    "parallel price_in price_out answer seed",
    "trigger sft": "checkpoint examples out monitor labels tuning merge epochs lr batch_size "
    "mask_wrong save_every seed device dtype",
    "early-stop": "checkpoint easy hard out test by rule margin instance_steps probes "
    "answer_tokens samples temperature top_p max_tokens limit check answer seed batch device dtype",
    "trigger calibrate": "checkpoint prompts out judge monitor_file levels limit samples "
    "false_alarms trials check answer seed batch device dtype",
    "monitor": "checkpoint prompts prompt out samples temperature top_p max_tokens levels "
    "random_rate monitor_file engine limit check answer seed batch device dtype",
    "serve": "checkpoint host port name rows max_waiting max_tokens levels monitor_file best_of "
    "best_by weights device dtype",
    "diff": "first second out units",
    "push": "what repository public kind message revision dry_run",
    "report": "runs out",
    "show": "what verify",
    "run": "",
}


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Every command by its full name."""
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = isinstance(command, click.Group)
        found |= commands(command, f"{name} ") if inner else {prefix + name: command}
    return found


FOUND = commands(cli.cli)


def test_the_commands_and_their_options_are_these():
    assert set(FOUND) == set(COMMANDS)
    for name, options in COMMANDS.items():
        found = {p.name for p in FOUND[name].params} - {"recipe", "settings"}
        assert found >= set(options.split()), name


def test_no_word_of_the_help_is_broken(capsys: pytest.CaptureFixture[str]):
    words = {word for leaf in leaves(VERBS["rank"].load_settings()) for word in leaf.help.split()}
    cli.main(["rank", "--help"])
    assert words <= set(capsys.readouterr().out.split())


def leave(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """The exit status when a command ends with `error`."""

    @click.command("boom")
    def boom() -> None:
        raise error

    monkeypatch.setitem(cli.cli.commands, "boom", boom)
    with pytest.raises(SystemExit) as caught:
        cli.main(["boom"])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys):
    assert leave(monkeypatch, BadInput("found x,\n  expected y")) == 2
    assert capsys.readouterr().err == "Error: found x, expected y\n"


def test_a_full_disk_is_one_line_and_status_2(monkeypatch, capsys):
    assert leave(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "out/x")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", [SafetensorError, Exception])  # tokenizers raise plain ones
def test_a_disk_that_a_writer_in_rust_finds_full_is_one_line(kind, monkeypatch, capsys):
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert leave(monkeypatch, kind(text)) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "no space left on the disk of the output" in told


def test_an_interrupt_at_the_very_end_is_without_a_word():
    """The work is done; what libraries clear up when Python ends takes longer."""
    code = (
        "import atexit, os, signal; from surgeon import cli\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "cli.main(['--version'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, -signal.SIGINT) and "Traceback" not in ended.stderr


def test_a_place_that_cant_be_written_is_one_line_and_status_2(monkeypatch, capsys):
    assert leave(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/out")) == 2
    assert capsys.readouterr().err == "Error: /out can't be written: Permission denied.\n"


def test_an_interrupt_says_that_the_command_resumes(monkeypatch, capsys):
    assert leave(monkeypatch, KeyboardInterrupt()) == 130
    assert "resumes" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setitem(cli.cli.commands, "boom", click.Command("boom", callback=lambda: 1 / 0))
        cli.main(["boom"])


def test_an_unknown_option_is_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["rank", "--mini", "x"])
    assert caught.value.code == 2 and "--mini-set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--effective", "--redundant"], ["--select", "mass", "--effective"]]
)
def test_two_options_of_one_parameter_are_refused(options, capsys):
    """The last one would win in silence."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["transplant", "--recipient", "a", "--donor", "b", "--out", "x", *options])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"found {options[0]} and {options[-1]}, which both set select" in said
