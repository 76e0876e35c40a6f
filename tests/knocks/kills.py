"""kill -9 at random moments of a chain of every verb; the end is that of an undisturbed chain."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chain
from chain import STEPS, Step

from surgeon import jsonl


class Reference(NamedTuple):
    """The undisturbed chain."""

    place: Path
    content: dict[str, dict[str, str]]
    """Step -> what it leaves."""
    seconds: dict[str, float]
    writes: dict[str, int]
    """Step -> operations on files below the chain's directory."""


EVENTS = {
    "os.rename",
    "os.mkdir",
    "os.link",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.symlink",
    "shutil.rmtree",
}


def counting(place: Path, act: Callable[[int], None]) -> Callable[[], None]:
    """What a child does first: call `act` with the number of each operation on files, before it."""

    def inside() -> None:
        root, number = os.fspath(place), [0]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                mode, flags = arguments[1], arguments[2]
                if not (isinstance(mode, str) and set(mode) & set("wax+")) and not flags & (
                    os.O_WRONLY | os.O_RDWR
                ):
                    return
            elif event not in EVENTS:
                return
            # Inside the chain's directory, absolute or from there.
            first = str(arguments[0]) if arguments else ""
            if first.startswith(root) or not first.startswith("/"):
                number[0] += 1
                act(number[0])

        sys.addaudithook(hook)

    return inside


def reference(out: Path) -> Reference:
    """The undisturbed chain, made once by a process of another hash seed."""
    place, file = out / "reference", out / "reference.json"
    if not file.is_file():
        shutil.rmtree(place, ignore_errors=True)
        command = [sys.executable, __file__, str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    return Reference(place, **json.loads(file.read_text()))


def make_reference(out: Path) -> None:
    """Run the chain, undisturbed."""
    chain.warm_up()
    content, seconds, writes, broken = {}, {}, {}, []
    place, count = out / "reference", out / "count"
    shutil.rmtree(place, ignore_errors=True)
    chain.prepare(place)
    for step in STEPS:
        count.write_text("0")
        ended = chain.run(step, place, counting(place, lambda n: _write(count, n)))
        if ended.code:
            broken.append(step.name)
            print(f"{step.name} ended with {ended.code}: {ended.printed[-900:]}", flush=True)
        content[step.name] = chain.content_of(place, step.out)
        seconds[step.name], writes[step.name] = ended.seconds, int(count.read_text())
        print(f"{step.name}: {ended.seconds:.1f} s, {writes[step.name]} operations", flush=True)
    if broken:
        sys.exit(f"steps that don't run undisturbed: {', '.join(broken)}")
    whole = {"content": content, "seconds": seconds, "writes": writes}
    (out / "reference.json").write_text(json.dumps(whole))


def _write(file: Path, number: int) -> None:
    # Not through `open`, which is counted.
    descriptor = os.open(file, os.O_WRONLY)
    os.pwrite(descriptor, str(number).encode(), 0)
    os.close(descriptor)


def copied(known: Reference, place: Path, step: Step) -> Path:
    """The chain's inputs, and the outputs that a step reads."""
    shutil.rmtree(place, ignore_errors=True)
    chain.prepare(place)
    words = {word.partition("#")[0] for word in step.command.split()}
    if words & {"ranking", "second"}:
        words |= {"virtual", "truth"}
    for other in STEPS:
        if other.writes and other is not step and other.out in words:
            shutil.copytree(known.place / other.out, place / other.out, symlinks=True)
    return place


def run(out: Path, kills: int, seed: int) -> bool:
    """Kill steps at random moments until so many kills: each step once, then cheap ones oftener."""
    known = reference(out)
    chain.warm_up()
    log = out / f"kills-{seed}.jsonl"
    rows: list[Any] = [row for _, row in jsonl.rows(log)]
    done, number = sum(row["kills"] for row in rows), len(rows)
    writers = sorted((s for s in STEPS if s.writes), key=lambda s: known.seconds[s.name])
    while done < kills:
        draw = random.Random(f"{seed} {number}")
        costs = [1 / max(0.5, known.seconds[step.name]) for step in writers]
        step = writers[number] if number < len(writers) else draw.choices(writers, costs)[0]
        place = copied(known, out / f"killed-{seed}", step)
        row = killed(step, place, known, draw)
        done, number = done + row["kills"], number + 1
        jsonl.append(log, row)
        if row["fault"]:
            print(f"{step.name}: {row['fault']}", flush=True)
            shutil.copytree(
                place, out / "faults" / f"{seed}-{number}", symlinks=True, dirs_exist_ok=True
            )
    return told(out)


def killed(step: Step, place: Path, known: Reference, draw: random.Random) -> dict[str, Any]:
    """Run a step, kill it at random moments, run it again to its end, and compare."""
    moments: list[str] = []
    row: dict[str, Any] = {"step": step.name, "kills": 0, "moments": moments, "fault": ""}
    for _ in range(draw.choice((1, 1, 1, 2))):
        at = draw.randrange(1, max(1, known.writes[step.name]) + 1)
        if draw.random() < 0.6:

            def kill(number: int, at: int = at) -> None:
                if number == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            ended = chain.run(step, place, counting(place, kill))
            moments.append(f"operation {at}")
        else:
            wait = draw.uniform(0, known.seconds[step.name])
            process = chain.Running(step.command.split(), place)
            ended = process.wait(wait)
            if ended is None:
                process.signal(signal.SIGKILL)
                ended = process.wait()
            moments.append(f"{wait:.2f} s")
        assert ended is not None
        row["kills"] += ended.code == -signal.SIGKILL
        if ended.code not in (0, -signal.SIGKILL):
            return row | {"fault": f"ended with {ended.code}: {ended.printed[-800:]}"}
    ended = chain.run(step, place)
    if ended.code:
        return row | {"fault": f"doesn't resume ({ended.code}): {ended.printed[-800:]}"}
    other = chain.differences(chain.content_of(place, step.out), known.content[step.name])
    left = chain.leftovers(place)
    if other:
        return row | {"fault": f"differs in {', '.join(other)}"}
    return row | {"fault": f"leaves {', '.join(left[:5])}"} if left else row


def told(out: Path) -> bool:
    """Print what all kills did."""
    rows: list[Any] = [
        row for log in sorted(out.glob("kills-*.jsonl")) for _, row in jsonl.rows(log)
    ]
    faults = [row for row in rows if row["fault"]]
    print(f"kills: {sum(r['kills'] for r in rows)} of {len(rows)} steps, {len(faults)} faults")
    for row in faults:
        print(f"  {row['step']} killed at {', '.join(row['moments'])}: {row['fault'][:300]}")
    return not faults


if __name__ == "__main__":
    make_reference(Path(sys.argv[1]))
