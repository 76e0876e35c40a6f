"""Chained sums with worked solutions in two styles: python -m benchmarks.real.problems

The problems are reasoning-gym's `chain_sum` with three and four terms of one digit. Of one stream
without repetitions the first ones are for training, the next for each use in turn, so no two files
share a problem. A worked solution is made from the running totals:

- terse: two operations in one leap, never looking back.
- long: one operation a step, some steps checked by going back, some taken wrong and corrected, and
  up to two fresh starts.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY = Path("runs/real/data")
SEED = 18
PARTS = {"train": 1200, "mini-set": 40, "test": 400, "pool": 120, "validation": 60, "fresh": 200,
         "stop": 80, "stop-test": 200}  # fmt: skip
"""Problems of each file, in the order of the stream; those of `stop` with three terms are
`stop-easy`, those with four `stop-hard`."""

CHECKED, WRONG, AGAIN, STARTS = 0.5, 0.06, 0.5, 3
"""Of the long style: shares of steps that are checked and that are first taken wrong, the share of
attempts that is followed by another, and the most attempts."""
STEP = "\n\n"
"""Between its steps, as `early-stop` and `trigger` take them apart."""


class Sum(NamedTuple):
    """A problem: `4 + 3 - 8` starts at 4 and takes two operations."""

    id: str
    question: str
    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def answer(self) -> int:
        return self.start + sum(signed(operation) for operation in self.operations)


def signed(operation: tuple[str, int]) -> int:
    """+3 as 3, -8 as -8."""
    sign, term = operation
    return term if sign == "+" else -term


def parsed(item: dict[str, Any], name: str) -> Sum:
    """A problem of reasoning-gym."""
    first, *rest = item["metadata"]["expression"].split()
    operations = tuple((sign, int(n)) for sign, n in zip(rest[::2], rest[1::2], strict=True))
    return Sum(name, item["question"], int(first), operations)


def stream(seed: int) -> Iterator[Sum]:
    """Problems without end, each question once."""
    gym: Any = import_module("reasoning_gym")
    items = gym.create_dataset(
        "chain_sum", min_terms=3, max_terms=4, min_digits=1, max_digits=1, seed=seed, size=10**6
    )
    seen: set[str] = set()
    for number in range(len(items)):
        problem = parsed(items[number], f"sum-{number}")
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def terse(problem: Sum) -> str:
    """Leaps of two operations: `4+3-8=-1`."""
    total, lines = problem.start, []
    for place in range(0, len(problem.operations), 2):
        leap = problem.operations[place : place + 2]
        taken = "".join(f"{sign}{term}" for sign, term in leap)
        after = total + sum(map(signed, leap))
        lines.append(f"{total}{taken}={after}")
        total = after
    return "\n".join([*lines, f"Answer: {total}"])


def long(problem: Sum, draw: random.Random) -> str:
    """Single steps, checks, slips that are corrected, and fresh starts."""
    lines: list[str] = []
    for attempt in range(STARTS):
        if attempt:
            lines.append("Wait, let me start over.")
        lines += steps(problem, draw)
        if draw.random() >= AGAIN:
            break
    thought = STEP.join(lines)
    return f"<think>\n{thought}\n</think>\nAnswer: {problem.answer}"


def steps(problem: Sum, draw: random.Random) -> Iterator[str]:
    """One attempt."""
    total = problem.start
    for sign, term in problem.operations:
        after = total + signed((sign, term))
        if draw.random() < WRONG:
            yield f"{total}{sign}{term}={after + draw.choice((-2, -1, 1, 2))}"
            yield f"Hmm, no: {total}{sign}{term}={after}"
        else:
            yield f"{total}{sign}{term}={after}"
        if draw.random() < CHECKED:
            back = "-" if sign == "+" else "+"
            yield f"Check: {after}{back}{term}={total}, ok."
        total = after
    yield f"So {total}."


def rows(problems: Sequence[Sum]) -> list[dict[str, str]]:
    """Problems with their answers, as `--mini-set` and `--task` read them."""
    return [{"id": p.id, "prompt": p.question, "answer": str(p.answer)} for p in problems]


def files(problems: Iterator[Sum], parts: dict[str, int]) -> dict[str, list[dict[str, str]]]:
    """The rows of every file, by its name."""
    made: dict[str, list[dict[str, str]]] = {}
    for name, number in parts.items():
        part = list(islice(problems, number))
        if name == "train":
            for style in ("terse", "long"):
                made[f"train-{style}"] = [
                    {"id": p.id, "prompt": p.question, "response": solution(p, style)} for p in part
                ]
        elif name == "stop":
            for level, operations in (("easy", 2), ("hard", 3)):
                some = [problem for problem in part if len(problem.operations) == operations]
                made[f"stop-{level}"] = rows(some)
        else:
            made[name] = rows(part)
    return made


def solution(problem: Sum, style: str) -> str:
    """The worked solution; the same for the same problem."""
    return terse(problem) if style == "terse" else long(problem, random.Random(problem.question))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Chained sums with worked solutions.")
    parser.add_argument("--out", type=Path, default=DIRECTORY)
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files(stream(SEED), PARTS).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text)
        print(f"{out}/{name}.jsonl: {len(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
