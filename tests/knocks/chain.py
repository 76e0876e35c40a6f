# ruff: noqa: E501
"""A chain of every verb on the built-in family, each step seconds long, and how a step is run.

A step is one command line of `surgeon` in a process of its own. The process is forked from this
one, which has imported everything already: a fresh interpreter would spend most of its life on
imports, and kills would hit little else.
"""

import atexit
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHORT = "--max-tokens 24 --samples 2 --seed 0"


class Step(NamedTuple):
    """One command."""

    name: str
    command: str
    writes: str | None = None
    """What it writes, in the chain's directory; None for commands that print only."""

    @property
    def out(self) -> str:
        """The directory of `--out`, or the step's name."""
        return self.writes or self.name


def _step(name: str, command: str, *, silent: bool = False) -> Step:
    return Step(name, command if silent else f"{command} --out {name}", None if silent else name)


STEPS = [
    _step("family", "merge-sweep builtin:instruct builtin:thinking --ratios 0.5"),
    _step("virtual", "merge-sweep builtin:instruct builtin:thinking --ratios 0.5 --virtual"),
    _step("truth", f"evaluate virtual --task builtin:test --limit 2 {SHORT}"),
    _step("ranking", f"rank virtual --mini-set mini.jsonl {SHORT} --row-tokens 2 --top-k 9 --truth truth"),
    _step("second", "rank virtual --mini-set mini.jsonl --max-tokens 24 --samples 2 --seed 1 --row-tokens 2 --top-k 9 --truth truth"),
    _step("three", "rank builtin:instruct builtin:thinking builtin:base --mini-set mini.jsonl --max-tokens 300 --samples 2 --top-k 9 --seed 0"),
    _step("averaged", "soup three --most 2"),
    Step("recipe", "run recipe.yaml", "ran"),
    _step("tasks", "tasks gsm8k --source raw.jsonl --set train=0.5"),
    _step("summary", "summary ranking second"),
    _step("reading", "read ranking"),
    _step("weights", "weights ranking"),
    _step("moved", "transplant --recipient builtin:instruct --donor builtin:thinking --weights ranking#thinking --effective"),
    _step("lora", "extract-lora builtin:thinking --base builtin:instruct --rank 4"),
    _step("distilled", "distill builtin:instruct --pool pool.jsonl --max-tokens 300 --samples 2 --steps 2 --batch-size 2 --demonstration response "
          "--lr 0.001 --save-every 1 --share 0.9 --shots 1 --diagnose 2 --seed 0"),
    _step("curated", "curate --pool ranking#thinking --by logprob --by length --keep 0.5"),
    _step("picked", f"pick builtin:instruct --prompts builtin:test --limit 2 {SHORT} --by logprob --by length"),
    _step("tuned", "sft builtin:instruct --traces answers.jsonl --set tuning=lora --epochs 1 --batch-size 3 --save-every 1 --lr 0.001"),
    _step("labels", "trigger label builtin:thinking --prompts builtin:mini-set --limit 8 --samples 2 --max-tokens 400 --resample 1 --seed 0"),
    _step("channels", "trigger identify builtin:thinking --labels labels --spans 4 --channels 4 --seed 0"),
    _step("fluctuation", "trigger fluctuation builtin:thinking --labels labels --channels channels --seed 0"),
    _step("detectors", "trigger detectors builtin:thinking --labels labels --channels channels --updates 5 --folds 2 --hidden 4 --seed 0"),
    _step("examples", "trigger reconstruct builtin:thinking --labels labels --seed 0"),
    _step("triggered", "trigger sft builtin:thinking --examples examples --monitor detectors --labels labels --no-refit "
          "--epochs 1 --batch-size 2 --save-every 1 --lr 0.001 --seed 0"),
    _step("calibrated", "trigger calibrate triggered --prompts builtin:test --limit 2 --samples 1 --max-tokens 60 --trials 2 --seed 0"),
    _step("stopping", "early-stop builtin:thinking --easy builtin:easy --hard builtin:hard --limit 4 --samples 2 --max-tokens 120 "
          "--updates 5 --folds 2 --answer-tokens 8 --seed 0"),
    _step("monitored", "monitor stopping --prompts builtin:test --limit 2 --samples 1 --max-tokens 40 --seed 0"),
    _step("difference", "diff builtin:instruct moved"),
    _step("page", "report ranking second truth"),
    _step("shown", "show moved", silent=True),
    _step("pushing", "push moved someone/moved --dry-run", silent=True),
]  # fmt: skip


def prepare(place: Path) -> None:
    """The chain's input files."""
    from surgeon import builtin

    place.mkdir(parents=True, exist_ok=True)

    def some(source: str, first: int, end: int, target: str) -> None:
        lines = builtin.path(source).read_text().splitlines()[first:end]
        (place / target).write_text("\n".join(lines) + "\n")

    some("mini-set", 0, 3, "mini.jsonl")
    some("pool", 0, 4, "pool.jsonl")
    (place / "recipe.yaml").write_text(
        "- merge-sweep: {a: builtin:instruct, b: builtin:thinking, ratios: 0.5, out: ran/family}\n"
        "- report: {runs: [ran/family], out: ran/page}\n"
    )
    rows = [
        {"question": f"What is {n} + {n}?", "answer": f"It is so.\n#### {2 * n}"} for n in range(6)
    ]
    (place / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"Start {n}.", "response": f"Answer: {n}"} for n in range(6)]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- processes ------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    """Its exit status; below 0 the signal that killed it."""
    seconds: float
    printed: str


def warm_up() -> None:
    """Import what the steps will import."""
    import importlib
    import pkgutil

    import surgeon

    for module in pkgutil.walk_packages(surgeon.__path__, "surgeon."):
        if module.name not in ("surgeon.__main__", "surgeon.traces.template_process"):
            importlib.import_module(module.name)
    for name in ("peft", "mergekit.config", "mergekit.plan", "sklearn.mixture", "transformers.models.qwen3.modeling_qwen3",
                 "accelerate", "scipy.stats", "hmmlearn.hmm", "torch.optim", "huggingface_hub", "datasets"):  # fmt: skip
        importlib.import_module(name)


class Running:
    """A step's process."""

    def __init__(
        self, command: Sequence[str], place: Path, inside: Callable[[], None] | None = None
    ):
        # Not beside the chain, whose disk may be full.
        self.log = Path(tempfile.gettempdir()) / f"knock-{os.getpid()}-{time.monotonic_ns()}.log"
        self.start = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(command, place, self.log, inside)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> Ended | None:
        """Wait for its end; None where it still runs after so many seconds."""
        late = None if seconds is None else time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, 0 if late is None else os.WNOHANG)
            if pid:
                text = self.log.read_text(errors="replace")
                self.log.unlink()
                return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - self.start, text)
            if late is not None and time.monotonic() > late:
                return None
            time.sleep(0.003)


def _child(
    command: Sequence[str], place: Path, log: Path, inside: Callable[[], None] | None
) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if inside is not None:
            inside()
        from surgeon.cli import main

        try:
            main(list(command))
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # pyright: ignore
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run(step: Step, place: Path, inside: Callable[[], None] | None = None) -> Ended:
    """Run a step to its end."""
    ended = Running(step.command.split(), place, inside).wait()
    assert ended is not None
    return ended


# --- what a step leaves ---------------------------------------------------------------------------

TIMES = re.compile(
    r"(seconds|_s|_ms|rate|per_second|took|finished_at|started|peak|memory|_mb|^times?)$"
)
"""Ends of the names of fields that hold times and what else differs between two equal runs."""


def content_of(place: Path, name: str) -> dict[str, str]:
    """File -> digest of its content, timings left out, for a step's output."""
    root = place / name
    found = {}
    for file in sorted(root.rglob("*")) if root.is_dir() else ():
        if file.is_symlink():
            found[str(file.relative_to(root))] = f"-> {os.readlink(file)}"
        elif file.is_file():
            found[str(file.relative_to(root))] = _digest(file)
    return found


def _digest(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix == ".json":
        data = json.dumps(untimed(json.loads(data)), sort_keys=False).encode()
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in data.splitlines()]
        data = "\n".join(json.dumps(untimed(row)) for row in rows).encode()
    elif file.suffix == ".md":
        data = re.sub(rb"(?m)^\d.* s of training.*$", b"TIME", data)
    elif file.suffix == ".html":
        data = re.sub(rb"\d+(\.\d+)? (ms|s|min|h)\b", b"TIME", data)
    return hashlib.sha256(data).hexdigest()[:16]


def untimed(value: Any) -> Any:
    """A JSON value without its timings."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not TIMES.search(k)}
    return [untimed(v) for v in value] if isinstance(value, list) else value


def leftovers(place: Path) -> list[str]:
    """Partial and temporary files in a directory."""
    return [
        str(p.relative_to(place)) for p in place.rglob("*") if p.name.endswith((".partial", ".tmp"))
    ]


def differences(mine: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Files that two outputs don't have in common."""
    return sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
