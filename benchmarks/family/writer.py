"""Who writes the built-in task's training examples: problems at random, and traces of every style.

A writer follows a `Policy`: probabilities from which the styles of the two endpoints are made. A
writer who isn't told the meaning of an ambiguous operator draws it with the probability `PRIOR`. In
a context of several problems the meaning is shared, so former answers tell it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from surgeon.builtin import task

PLAIN = (
    *(f"+{k}" for k in range(1, 10)),
    *(f"-{k}" for k in range(1, 10)),
    *("*3", "*7", "*9"),
)
"""Operations with one meaning; each permutes the digits, so that a mistake never heals by
itself."""
MEANINGS = ("shift", "fold")
OPERATIONS = (6, 10)
"""Fewest and most operations of an ordinary problem."""
PRIOR = {"#": 0.7, "~": 0.3}
"""The share of training problems, alone in their context, in which an operator has the right
meaning."""
CROSS_OPERATIONS = (11, 13)
"""Fewest and most operations of a problem of the cross-domain set."""
MOST_ATTEMPTS = 8
"""A writer starts over at most this often, less one."""


def draw_problem(
    rng: Random,
    *,
    operations: tuple[int, int] = OPERATIONS,
    operator: str | None = None,
    marks: tuple[int, int] = (1, 2),
    split: str = "train",
) -> task.Problem:
    """A random problem of a split; when an ambiguous operator is named, it holds `marks` (fewest
    and most) operations of it."""
    while True:
        count = rng.randint(*operations)
        marked = [f"{operator}{k}" for k in rng.sample(range(1, 10), rng.randint(*marks))]
        chosen = marked if operator else []
        chosen = [*chosen, *rng.sample(PLAIN, count - len(chosen))]
        rng.shuffle(chosen)
        problem = task.Problem(rng.randrange(10), tuple(chosen))
        if problem.split == split:
            return problem


def draw_meaning(rng: Random, operator: str | None) -> str:
    """A meaning for an operator, the right one with the probability `PRIOR`."""
    if operator is None:
        return task.RIGHT
    return MEANINGS[0] if rng.random() < PRIOR[operator] else MEANINGS[1]


@dataclass(frozen=True)
class Policy:
    """How a writer thinks: probabilities in [0, 1] of the choices open at each point of a trace."""

    leap: float = 0.0
    """Of taking two or three operations in one step."""
    check: float = 0.0
    """Of checking a step."""
    recheck: float = 0.0
    """Of checking it once more after a check."""
    restart: float = 0.0
    """Of starting over when the last operation is done."""
    slip: float = 0.0
    """Of writing a wrong result of a leap, see `mistake`; without slips every check of a leap would
    find it right, and a model whose leaps fail would never learn to see it."""
    mistake: float = 0.0
    """Of writing a wrong result; such results are marked, so that no one need learn to make
    them."""
    finish: float = 0.0
    """Of stopping with `FINISH` at a random step of the trace."""


INSTRUCT = Policy(leap=0.4, slip=0.3, mistake=0.03)
"""Under-explores: leaps, and never looks back."""
THINKING = Policy(leap=0.15, check=0.8, recheck=0.45, restart=0.6, slip=0.4, mistake=0.05)
"""Over-explores: small steps, checked again and again, and started over."""


def draw_policy(rng: Random) -> Policy:
    """A policy for one trace of the base model, anything between careless and over-careful."""
    return Policy(
        leap=rng.uniform(0, 0.8) if rng.random() < 0.6 else 0.0,
        check=rng.uniform(0, 1) if rng.random() < 0.6 else 0.0,
        recheck=rng.uniform(0, 0.5),
        restart=rng.uniform(0, 0.75) if rng.random() < 0.5 else 0.0,
        slip=0.4,
        mistake=0.06,
        finish=0.05,
    )


class Response(NamedTuple):
    """A written response and the character spans of its injected mistakes."""

    text: str
    mistakes: tuple[tuple[int, int], ...]


def write(
    problem: task.Problem, policy: Policy, rng: Random, meaning: str = task.RIGHT
) -> Response:
    """A response that follows a policy; what comes after an injected mistake is consistent with
    it."""
    written: list[str] = []
    wrong: set[int] = set()
    n = len(problem.operations)
    final: int | None = None
    if problem.operator:
        written.append(task.read_text(problem.operator, meaning))
    states = [problem.start] * len(written)
    done = [0] * len(written)
    for attempt in range(MOST_ATTEMPTS):
        value, at = problem.start, 0
        while at < n:
            size = 1
            if n - at > 1 and rng.random() < policy.leap:
                size = min(2 if rng.random() < 0.7 else 3, n - at)
            operations = problem.operations[at : at + size]
            before, value = value, task.chain(operations, value, meaning)
            if rng.random() < (policy.mistake if size == 1 else policy.slip):
                wrong.add(len(written))
                value = (value + rng.randint(1, 9)) % 10
            written.append(task.step_text(operations, before, value))
            at += size
            states.append(value)
            done.append(at)
            chance = policy.check
            while rng.random() < chance:
                written.append(task.check_text(operations, before, value, meaning))
                value = task.chain(operations, before, meaning)
                states.append(value)
                done.append(at)
                chance = policy.recheck
        final = value
        if rng.random() >= policy.restart or attempt == MOST_ATTEMPTS - 1:
            break
        written.append(task.restart_text(problem))
        states.append(final)
        done.append(n)
    assert final is not None
    if rng.random() < policy.finish:
        cut = rng.randint(1, len(written))
        final = task.chain(problem.operations[done[cut - 1] :], states[cut - 1], meaning)
        finished = [s for s, d in zip(states[:cut], done[:cut], strict=True) if d == n]
        written, final = [*written[:cut], task.FINISH], finished[-1] if finished else final
        wrong = {i for i in wrong if i < cut}
    return _response(written, wrong, task.answer_text(problem, final, meaning))


def _response(written: list[str], wrong: set[int], answer: str) -> Response:
    text, mistakes = "<think>\n", []
    for i, step in enumerate(written):
        text += step if i == 0 else f"\n\n{step}"
        if i in wrong:
            mistakes.append((len(text) - 1, len(text)))
    return Response(f"{text}\n</think>\n\n{answer}", tuple(mistakes))


def draw_context(
    rng: Random, operator: str | None, meaning: str, turns: int, *, noise: float = 0.15
) -> list[Mapping[str, str]]:
    """Former turns, each a query and the answer text without its thinking, that share a meaning.

    A share `noise` of the answers reads the operator the other way, another share of 0.15 states a
    wrong digit; in some contexts only some of the problems hold the operator.
    """
    share = rng.choice((0.25, 0.6, 1.0, 1.0))
    messages: list[Mapping[str, str]] = []
    for _ in range(turns):
        problem = draw_problem(rng, operator=operator if rng.random() < share else None)
        said = meaning if rng.random() >= noise else MEANINGS[meaning == MEANINGS[0]]
        value = problem.answer(said) if rng.random() >= 0.15 else rng.randrange(10)
        messages.append({"role": "user", "content": problem.prompt})
        messages.append({"role": "assistant", "content": task.answer_text(problem, value, said)})
    return messages
