# ruff: noqa: E501
"""Damaged inputs into every reader: each must be read or refused in one line.

A fault is any exception but `BadInput` (and what the command line says in one line of a full or
read-only disk), a file or process touched outside the reader's directory, more than `CPU_S` seconds
for one input, or memory that grows. Inputs come in blocks, each seeded by target and number, so a
stopped run goes on where it was, and a fault can be made again.
"""

import contextlib
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from readers import Target, targets

from surgeon import jsonl
from surgeon.errors import BadInput

BLOCK = 500
"""Inputs between two lines of the log."""
CPU_S = 5.0
"""Seconds of computing that one input may cost."""
GROWTH_MB = 300
"""Memory that a kind of input may take beyond what the readers' libraries do."""
HEADROOM = 3 << 30
"""Bytes of address space beyond what is used at the start: a bomb ends in MemoryError, a fault."""
TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
           "shutil.rmtree", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
           "socket.connect", "pickle.find_class"}  # fmt: skip


class TooSlow(Exception):
    """An input took more than its time."""


class Watch:
    """What is written outside of a directory, by this process, while an input is read."""

    def __init__(self, inside: Path):
        self.inside, self.on, self.seen = os.fspath(inside), False, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if not self.on:
            return
        if event == "open":
            _path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
                mode is None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if not writes:
                return
        elif event not in TOUCHES:
            return
        place = str(arguments[0]) if arguments else ""
        if place == os.devnull or place.isdecimal():  # a pipe to a process of ours
            return
        if not place.startswith(self.inside) and "template_process" not in str(arguments):
            self.seen.append(f"{event} {place[:80]}")


def run(out: Path, total: int, seconds: float, seed: int, only: str | None = None) -> bool:
    """Feed up to `total` inputs in about so many seconds; True where there was no fault."""
    log = out / f"fuzz-{seed}.jsonl"
    done = {(row["target"], row["block"]) for _, row in jsonl.rows(log)}  # pyright: ignore
    with tempfile.TemporaryDirectory(dir=_memory()) as work, _quiet():
        kinds = [t for t in targets(Path(work)) if only is None or only in t.name]
        watch = Watch(Path(work))
        _bounded()
        end, weight = time.monotonic() + seconds, sum(t.weight for t in kinds)
        blocks = {t.name: max(1, round(total * t.weight / weight / BLOCK)) for t in kinds}
        for number in range(max(blocks.values())):
            for target in kinds:
                # Rarer kinds have fewer blocks, spread over the run.
                mine = number * blocks[target.name] // max(blocks.values())
                if (target.name, mine) in done:
                    continue
                if time.monotonic() > end:
                    break
                done.add((target.name, mine))
                jsonl.append(log, block(target, mine, seed, watch, out / "found"))
    return _told(out)


def block(target: Target, number: int, seed: int, watch: Watch, found: Path) -> dict[str, Any]:
    """Read one block of inputs; returns its line of the log."""
    draw = random.Random(f"{seed} {target.name} {number}")
    faults: Counter[str] = Counter()
    start, before = time.process_time(), _peak_mb()
    refused = 0
    for _ in range(BLOCK):
        content = target.mutator.mutant(draw)
        fault, good = once(target, content, draw, watch)
        refused += not good
        if fault:
            faults[fault] += 1
            if faults[fault] <= 2:
                keep(found / target.name.replace(" ", "-"), content, fault)
    if number and _peak_mb() - before > GROWTH_MB:
        faults[f"memory grew by {_peak_mb() - before:.0f} MB"] += 1
    return {"target": target.name, "block": number, "inputs": BLOCK, "refused": refused,
            "seconds": round(time.process_time() - start, 3), "peak_mb": round(_peak_mb()),
            "faults": dict(faults)}  # fmt: skip


def once(target: Target, content: bytes, draw: random.Random, watch: Watch) -> tuple[str, bool]:
    """What went wrong with one input, if anything, and whether it was read."""
    watch.on, watch.seen = True, []
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
    fault, good = "", True
    try:
        target.read(content, draw)
    except BadInput as error:
        good = False
        fault = "" if str(error).strip() else "BadInput without a word"
    except (Exception, RecursionError) as error:
        good, fault = False, signature(error)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        watch.on = False
    return fault or (f"touched {watch.seen[0]}" if watch.seen else ""), good


def signature(error: BaseException) -> str:
    """The exception and the innermost line of this package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/surgeon/" in f.filename]
    where = f"{own[-1].filename.rpartition('/surgeon/')[2]}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {where}"


def keep(place: Path, content: bytes, fault: str) -> None:
    """Store an input that made a fault, with what it made."""
    place.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(content).hexdigest()[:12]
    (place / name).write_bytes(content)
    (place / f"{name}.txt").write_text(fault + "\n", errors="backslashreplace")


def _told(out: Path) -> bool:
    """Print what all runs into this directory have read."""
    rows: list[Any] = [
        row for log in sorted(out.glob("fuzz-*.jsonl")) for _, row in jsonl.rows(log)
    ]
    inputs, spent, faults = Counter(), Counter(), Counter()
    for row in rows:
        inputs[row["target"]] += row["inputs"]
        spent[row["target"]] += row["seconds"]
        for fault, times in row["faults"].items():
            faults[f"{row['target']}: {fault}"] += times
    for name, count in inputs.most_common():
        print(f"{name:24} {count:8,} inputs {count / max(spent[name], 1e-9):8,.0f} a second")
    print(
        f"fuzz: {sum(inputs.values()):,} inputs, {sum(faults.values()):,} faults of {len(faults)} kinds"
    )
    for fault, times in faults.most_common():
        print(f"  {times:6} x {fault}")
    return not faults


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory() -> str | None:
    """A directory in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _bounded() -> None:
    def late(*_: object) -> None:
        raise TooSlow(f"more than {CPU_S} s")

    signal.signal(signal.SIGVTALRM, late)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, resource.RLIM_INFINITY))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What readers and libraries remark goes nowhere."""
    import logging

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def again(out: Path, file: Path) -> None:
    """Read one kept input once more, its traceback and all."""
    with tempfile.TemporaryDirectory() as work:
        (target,) = [t for t in targets(Path(work)) if t.name.replace(" ", "-") == file.parent.name]
        for n in range(200):  # what else is drawn decides too
            try:
                target.read(file.read_bytes(), random.Random(n))
            except BadInput as error:
                print("refused:", error)
            except Exception:
                traceback.print_exc()
                return
    shutil.rmtree(out / "again", ignore_errors=True)


if __name__ == "__main__":
    again(Path("runs/knocks"), Path(sys.argv[1]))
