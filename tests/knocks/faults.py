"""Full disks, signals, two processes, clocks, read-only, vanishing and changing inputs.

Each knock takes one step of the chain in a copy of the undisturbed chain, disturbs it once, and
then runs it undisturbed to its end, which must be that of the reference. What the disturbed run may
do: succeed, or end with one line and a status that says why; never a traceback.
"""

import ctypes
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import chain
from chain import STEPS, Ended, Step
from kills import Reference, copied, counting, reference

from surgeon import jsonl

NAMESPACE = 0x00020000
"""Linux's CLONE_NEWNS."""
WRITERS = [step for step in STEPS if step.writes]


class Knock(NamedTuple):
    """What one knock found."""

    step: str
    what: str
    """The disturbance, in words."""
    ended: str
    fault: str = ""


def run(out: Path, seed: int, times: dict[str, int]) -> bool:
    """Each kind of knock so many times; those that the log holds are not done again."""
    known = reference(out)
    chain.warm_up()
    log = out / f"faults-{seed}.jsonl"
    rows: list[Any] = [row for _, row in jsonl.rows(log)]
    for kind, count in times.items():
        done = sum(row["kind"] == kind for row in rows)
        for number in range(done, count):
            draw = random.Random(f"{seed} {kind} {number}")
            # Every step comes before one comes again.
            order = WRITERS.copy()
            random.Random(f"{seed} {kind} {number // len(WRITERS)}").shuffle(order)
            step = order[number % len(WRITERS)]
            found = KINDS[kind](out, known, step, draw)
            if found is not None:
                jsonl.append(log, {"kind": kind, **found._asdict()})
                if found.fault:
                    print(f"{kind} {found.step} ({found.what}): {found.fault}", flush=True)
    return told(out)


def told(out: Path) -> bool:
    """Print what all knocks found."""
    rows: list[Any] = [
        row for log in sorted(out.glob("faults-*.jsonl")) for _, row in jsonl.rows(log)
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        ends: dict[str, int] = {}
        for row in mine:
            ends[row["ended"]] = ends.get(row["ended"], 0) + 1
        words = ", ".join(f"{n} {end}" for end, n in sorted(ends.items()))
        print(f"{kind}: {len(mine)} ({words}), {sum(bool(r['fault']) for r in mine)} faults")
    for row in rows:
        if row["fault"]:
            print(f"  {row['kind']} {row['step']} ({row['what']}): {row['fault'][:400]}")
    return not any(row["fault"] for row in rows)


# --- a place to disturb ---------------------------------------------------------------------------


def spoken(ended: Ended) -> str:
    """How a disturbed run ended, in a word; a traceback or a silent death is a fault."""
    if "Traceback (most recent call last)" in ended.printed:
        return "traceback"
    # A signal's own end: while Python ends, after the work.
    words = {
        0: "done", 2: "refused", 130: "interrupted", 143: "terminated",
        -signal.SIGINT: "interrupted", -signal.SIGTERM: "terminated",
    }  # fmt: skip
    return words.get(ended.code, f"status {ended.code}")


def judged(
    step: Step, place: Path, known: Reference, what: str, first: Ended, allowed: set[str]
) -> Knock:
    """The disturbed run's end, then the same command undisturbed, compared with the reference."""
    how = spoken(first)
    if how not in allowed:
        return Knock(step.name, what, how, f"{how}: {first.printed[-700:]}")
    if how == "refused" and len(first.printed.strip().splitlines()[-1]) < 20:
        return Knock(step.name, what, how, f"refused without a sentence: {first.printed[-300:]}")
    last = chain.run(step, place)
    if last.code:
        return Knock(step.name, what, how, f"doesn't resume ({last.code}): {last.printed[-500:]}")
    other = chain.differences(chain.content_of(place, step.out), known.content[step.name])
    fault = f"differs in {', '.join(other)}" if other else ""
    left = chain.leftovers(place)
    return Knock(step.name, what, how, fault or (f"leaves {', '.join(left[:4])}" if left else ""))


# --- the knocks -----------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[int], None]]:
    """A file system in memory at `place`; yields what sets its size in bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not _APART and libc.unshare(NAMESPACE):
        raise PermissionError(ctypes.get_errno(), "mounting isn't allowed here")
    _APART.append(True)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(place)], check=True)

    def resize(n_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={n_bytes}", str(place)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


_APART: list[bool] = []


def full_disk(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock:
    """The disk is full at some write, later it isn't."""
    mount = out / "disk"
    with small_disk(mount) as resize:
        place = copied(known, mount / "chain", step)
        # The cache is warm or not, as it would be.
        used = _used(mount)
        needed = sum(f.stat().st_size for f in (known.place / step.out).rglob("*") if f.is_file())
        room = 4096 * draw.randrange(0, max(2, int(1.1 * needed) // 4096 + 4))
        resize(used + room)
        first = chain.run(step, place, _no_reserve)
        resize(2 << 30)
        return judged(step, place, known, f"{room} bytes of {needed}", first, {"done", "refused"})


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _no_reserve() -> None:
    from surgeon import lineage

    lineage.DISK_RESERVE = -(1 << 50)  # else every verb would refuse such a disk at once


def signalled(number: int) -> Callable[..., Knock]:
    """A signal at a random moment."""

    def knock(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock:
        place = copied(known, out / "disturbed", step)
        wait = draw.uniform(0, known.seconds[step.name])
        scratch = out / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()

        def inside() -> None:
            import tempfile

            tempfile.tempdir = str(scratch)

        process = chain.Running(step.command.split(), place, inside)
        first = process.wait(wait)
        if first is None:
            process.signal(number)
            first = process.wait(60)
        what = f"{signal.Signals(number).name} after {wait:.2f} s"
        if first is None:
            process.signal(signal.SIGKILL)
            process.wait()
            return Knock(step.name, what, "hangs", "still runs a minute later")
        if left := [p.name for p in scratch.iterdir()]:
            return Knock(
                step.name,
                what,
                spoken(first),
                f"leaves {', '.join(left)} in the temporary directory",
            )
        word = "interrupted" if number == signal.SIGINT else "terminated"
        return judged(step, place, known, what, first, {"done", word})

    return knock


def two_at_once(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock:
    """Two processes with the same command, one a little later."""
    place = copied(known, out / "disturbed", step)
    wait = draw.choice((0.0, draw.uniform(0, 0.1), draw.uniform(0, 1.1 * known.seconds[step.name])))
    one = chain.Running(step.command.split(), place)
    time.sleep(wait)
    other = chain.Running(step.command.split(), place)
    ends = [process.wait() for process in (one, other)]
    what = f"the second {wait:.2f} s later"
    words = [spoken(end) for end in ends if end is not None]
    for end, word in zip(ends, words, strict=True):
        if word not in ("done", "refused") and end is not None:
            return Knock(step.name, what, word, f"{word}: {end.printed[-700:]}")
    if "done" not in words:
        texts = " | ".join(end.printed[-300:] for end in ends if end is not None)
        return Knock(step.name, what, "both refused", f"nobody did it: {texts}")
    best = ends[words.index("done")]
    assert best is not None
    return judged(step, place, known, what, best, {"done"})._replace(
        ended=" and ".join(sorted(words))
    )


def clock(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock:
    """The clock jumps back or ahead while a step runs, is killed, and runs again; so do the times
    of its inputs."""
    place = copied(known, out / "disturbed", step)
    days = draw.choice((-20000, -400, -1, 1, 400, 20000))
    for file in place.rglob("*"):
        if file.is_file() and not file.is_symlink():
            moved = time.time() + 86400 * draw.choice((days, 0, -days))
            os.utime(file, (max(0.0, moved), max(0.0, moved)))

    def inside() -> None:
        real, start = time.time, time.time()
        jump = start + draw.uniform(0, known.seconds[step.name])
        time.time = lambda: real() + (86400 * days if real() > jump else 0)

    process = chain.Running(step.command.split(), place, inside)
    first = process.wait(draw.uniform(0.3, 1.2) * known.seconds[step.name])
    if first is None:
        process.signal(signal.SIGKILL)
        process.wait()
        first = chain.run(step, place, inside)
    return judged(step, place, known, f"{days} days", first, {"done"})


def read_only(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock:
    """Nothing but the output's directory can be written; then not even that."""
    mount = out / "disk"
    with small_disk(mount):
        place = copied(known, mount / "chain", step)
        inputs = list(place.iterdir())
        for path in inputs:
            subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        good = chain.run(step, place)
        found = judged(step, place, known, "inputs", good, {"done"})
        if found.fault:
            return found
        shutil.rmtree(place / step.out)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        bad = chain.run(step, place)
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)
        return judged(step, place, known, "all of the disk", bad, {"refused"})


def _inputs(step: Step, place: Path) -> list[Path]:
    """Files below the places that a command names."""
    words = [w.partition("#")[0] for w in step.command.split()]
    named = [
        place / w for w in words if w != step.out and (place / w).exists() and w not in (".", "")
    ]
    return [
        f
        for p in named
        for f in ([p] if p.is_file() else p.rglob("*"))
        if f.is_file() and not f.is_symlink()
    ]


def vanishing(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock | None:
    """An input file goes away at a random moment, and comes back."""
    place = copied(known, out / "disturbed", step)
    files = _inputs(step, place)
    if not files:
        return None
    file = draw.choice(files)
    aside, wait = out / "aside", draw.uniform(0, known.seconds[step.name])
    process = chain.Running(step.command.split(), place)
    first = process.wait(wait)
    shutil.move(file, aside)
    if first is None:
        first = process.wait()
    shutil.move(aside, file)
    assert first is not None
    what = f"{file.relative_to(place)} after {wait:.2f} s"
    return judged(step, place, known, what, first, {"done", "refused"})


def changing(out: Path, known: Reference, step: Step, draw: random.Random) -> Knock | None:
    """An input file changes at a random moment. What the run says it was made of must be what it
    was made of: the old file, or the new one, or nothing at all."""
    place = copied(known, out / "disturbed", step)
    files = [f for f in _inputs(step, place) if f.suffix in (".jsonl", ".safetensors")]
    if not files:
        return None
    file = draw.choice(files)
    wait = draw.uniform(0, known.seconds[step.name])
    at = draw.randrange(1, max(1, known.writes[step.name]) + 1)
    new = _altered(file, draw)

    def swap(number: int) -> None:
        if number == at:
            _replace(file, new)

    by_time = draw.random() < 0.5
    process = chain.Running(step.command.split(), place, None if by_time else counting(place, swap))
    first = process.wait(wait) if by_time else process.wait()
    if first is None:
        _replace(file, new)
        first = process.wait()
    assert first is not None
    what = f"{file.relative_to(place)} {f'after {wait:.2f} s' if by_time else f'at operation {at}'}"
    how = spoken(first)
    if how not in ("done", "refused"):
        return Knock(step.name, what, how, f"{how}: {first.printed[-700:]}")
    if how == "refused":
        return Knock(step.name, what, how)
    found = chain.content_of(place, step.out)
    if not chain.differences(found, known.content[step.name]):
        return Knock(step.name, what, "done with the old")
    # Not the old one: the same command on the new file, from the start.
    shutil.rmtree(place / step.out)
    _replace(file, new)
    fresh = chain.run(step, place)
    other = chain.differences(found, chain.content_of(place, step.out))
    fault = f"neither old nor new: {', '.join(other)}" if other or fresh.code else ""
    return Knock(step.name, what, "done with the new", fault)


def _altered(file: Path, draw: random.Random) -> bytes:
    data = bytearray(file.read_bytes())
    if file.suffix == ".jsonl":
        lines = bytes(data).splitlines(keepends=True)
        return b"".join(lines[:-1]) if len(lines) > 1 else bytes(data) + bytes(data)
    # Some bytes of the weights, the header left alone; small changes, so that all stays finite.
    start = 8 + int.from_bytes(data[:8], "little")
    for _ in range(2000):
        data[(draw.randrange(start, len(data)) // 4) * 4] ^= 1
    return bytes(data)


def _replace(file: Path, content: bytes) -> None:
    """As `cp` does: in place, where others may be reading."""
    # Not through a hard link of the reference.
    if file.stat().st_nlink > 1:
        file.unlink()
    file.write_bytes(content)


KINDS: dict[str, Callable[..., Knock | None]] = {
    "disk full": full_disk,
    "SIGINT": signalled(signal.SIGINT),
    "SIGTERM": signalled(signal.SIGTERM),
    "two at once": two_at_once,
    "clock": clock,
    "read-only": read_only,
    "vanishing": vanishing,
    "changing": changing,
}
