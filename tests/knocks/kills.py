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
    """Run the chain twice: what differs between the two is no fault of kills."""
    chain.warm_up()
    content, seconds, writes, broken = {}, {}, {}, []
    for name in ("twin", "reference"):
        place = out / name
        shutil.rmtree(place, ignore_errors=True)
        chain.prepare(place)
        for step in STEPS:
            count = out / "count"
            ended = chain.run(step, place, counting(place, lambda n, f=count: f.write_text(str(n))))
            if ended.code:
                broken.append(step.name)
                print(f"{step.name} ended with {ended.code}: {ended.printed[-900:]}", flush=True)
            found = chain.content_of(place, step.out)
            if name == "reference" and (other := chain.differences(found, content[step.name])):
                print(f"{step.name}: two equal runs differ in {', '.join(other)}", flush=True)
            content[step.name], seconds[step.name] = found, ended.seconds
            writes[step.name] = int(count.read_text()) if count.is_file() else 0
            count.unlink(missing_ok=True)
            print(
                f"{name} {step.name}: {ended.seconds:.1f} s, {writes[step.name]} operations",
                flush=True,
            )
    if broken:
        sys.exit(f"steps that don't run undisturbed: {', '.join(broken)}")
    whole = {"content": content, "seconds": seconds, "writes": writes}
    (out / "reference.json").write_text(json.dumps(whole))


def run(out: Path, kills: int, seed: int) -> bool:
    """Go through the chain again and again, each step killed once or twice, until so many kills."""
    known = reference(out)
    chain.warm_up()
    log = out / f"kills-{seed}.jsonl"
    rows: list[Any] = [row for _, row in jsonl.rows(log)]
    done, number = sum(row["kills"] for row in rows), len(rows)
    place = out / f"killed-{seed}"
    if number % len(STEPS) == 0 or not place.is_dir():
        number -= number % len(STEPS)
    while done < kills:
        step = STEPS[number % len(STEPS)]
        if step is STEPS[0]:
            shutil.rmtree(place, ignore_errors=True)
            chain.prepare(place)
        row = killed(step, place, known, random.Random(f"{seed} {number}"))
        done, number = done + row["kills"], number + 1
        jsonl.append(log, row)
        if row["fault"]:
            print(f"{step.name}: {row['fault']}", flush=True)
    return told(out)


def killed(step: Step, place: Path, known: Reference, draw: random.Random) -> dict[str, Any]:
    """Run a step, kill it at random moments, run it again to its end, and compare."""
    chain.run  # noqa: B018
    hits, moments = 0, []
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(1, known.writes[step.name] + 1) if known.writes[step.name] else 0
        if at and draw.random() < 0.5:
            ended = chain.run(
                step,
                place,
                counting(
                    place,
                    lambda n, at=at: os.kill(os.getpid(), signal.SIGKILL) if n == at else None,
                ),
            )
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
        hits += ended.code == -signal.SIGKILL
        if ended.code not in (0, -signal.SIGKILL):
            return _row(
                step,
                hits,
                moments,
                f"ended with {ended.code}: {ended.printed[-800:]}",
                place,
                known,
            )
    ended = chain.run(step, place)
    if ended.code:
        return _row(
            step,
            hits,
            moments,
            f"doesn't resume ({ended.code}): {ended.printed[-800:]}",
            place,
            known,
        )
    other = chain.differences(chain.content_of(place, step.out), known.content[step.name])
    fault = f"differs in {', '.join(other)}" if other else ""
    if not fault and (left := chain.leftovers(place)):
        fault = f"leaves {', '.join(left[:5])}"
    return _row(step, hits, moments, fault, place, known)


def _row(
    step: Step, hits: int, moments: list[str], fault: str, place: Path, known: Reference
) -> dict[str, Any]:
    if fault and step.writes:
        # The next steps get what they should have got; what is wrong is kept beside.
        kept = place.with_name(
            f"{place.name}-{step.name}-{len(list(place.parent.glob('*-fault-*')))}-fault-"
        )
        for name in (step.out, f"{step.out}.partial"):
            if (place / name).exists():
                kept.mkdir(exist_ok=True)
                shutil.move(place / name, kept / name)
        shutil.copytree(known.place / step.out, place / step.out, symlinks=True)
        for tmp in chain.leftovers(place):
            shutil.rmtree(place / tmp, ignore_errors=True)
            (place / tmp).unlink(missing_ok=True)
    return {"step": step.name, "kills": hits, "moments": moments, "fault": fault}


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
