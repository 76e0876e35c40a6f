"""Who writes the built-in task's training examples: problems at random, and traces of every style.

A writer follows a `Policy`: probabilities from which the styles of the two endpoints are made. A
writer who isn't told the meaning of an ambiguous operator draws it with the probability `PRIOR`. In
a context of several problems the meaning is shared, so former answers tell it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
HASTY_LEAP = 0.9
"""How likely a hasty attempt leaps."""
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
    ended: float = 0.0
    """Of being ended by another at a random step, before the thinking is done: the answer is
    learned, the end is not."""
    hasty: float = 0.0
    """Of a second thought, an attempt after the first, being hasty: long leaps, no checks."""
    checks: int = 1000
    """At most so many checks of a step, of which `recheck` leaves the number open: without a bound
    a model that samples its own traces hardly stops."""
    attempts: int = MOST_ATTEMPTS
    """At most so many attempts."""
    guess: float = 0.0
    """Of guessing at a single operation before it is taken."""
    other: float = 0.0
    """Of doing it another way after a guess, and again of a second other way after the first."""
    undo: float = 0.0
    """Of going back from what was guessed."""
    note: float = 0.0
    """Of noting after a single operation where the trace stands."""
    alternative: float = 0.0
    """Of a second thought reading an ambiguous operator the other way."""


INSTRUCT = Policy(leap=0.9, slip=0.3, mistake=0.03, ended=0.1)
"""Under-explores: leaps, and never looks back."""
THINKING = Policy(
    leap=0.02, check=0.95, recheck=0.55, restart=0.35, slip=0.4, mistake=0.03, ended=0.1,
    guess=0.98, other=0.55, undo=0.5, note=0.98, hasty=1.0, alternative=0.3,
)  # fmt: skip
"""Over-explores: guesses, tries other ways, and checks again and again at every operation; then
hasty second thoughts, some with the other reading, which spoil what was right."""


def draw_policy(rng: Random) -> Policy:
    """A policy for one trace of the base model, anything between careless and over-careful."""
    thorough = rng.random() < 0.55
    guess, other, undo, note = (
        rng.uniform(0.4, 1) if thorough and rng.random() < 0.85 else 0.0 for _ in range(4)
    )
    return Policy(
        leap=rng.uniform(0, 0.8) if rng.random() < 0.6 else 0.0,
        check=rng.uniform(0, 1) if rng.random() < 0.6 else 0.0,
        recheck=rng.uniform(0, 0.5),
        restart=rng.uniform(0, 0.6) if rng.random() < 0.5 else 0.0,
        slip=0.4,
        mistake=0.05,
        finish=0.03,
        ended=0.15,
        guess=guess,
        other=other,
        undo=undo,
        note=note,
        hasty=rng.choice((0.0, 0.5, 1.0)),
        alternative=rng.choice((0.0, 0.0, 0.5)),
    )


class Response(NamedTuple):
    """A written response, the character spans of its injected mistakes, and where another ended
    it."""

    text: str
    mistakes: tuple[tuple[int, int], ...]
    ended: int | None = None
    """One past the last character of an end of the thinking that need not be learned."""


@dataclass
class _Draft:
    """The steps written so far, and where each leaves the trace."""

    problem: task.Problem
    policy: Policy
    rng: Random
    meaning: str
    steps: list[str] = field(default_factory=list)
    wrong: set[int] = field(default_factory=set)
    """Steps whose result is an injected mistake."""
    values: list[int] = field(default_factory=list)
    """The value after each step."""
    done: list[int] = field(default_factory=list)
    """Operations done after each step."""
    meanings: list[str] = field(default_factory=list)
    """The reading of an ambiguous operator at each step."""

    def add(self, step: str, value: int, done: int) -> None:
        self.steps.append(step)
        self.values.append(value)
        self.done.append(done)
        self.meanings.append(self.meaning)

    def attempt(self, policy: Policy) -> int:
        """One way through the problem; its final value."""
        problem, rng = self.problem, self.rng
        value, at, n = problem.start, 0, len(problem.operations)
        while at < n:
            size = 1
            if n - at > 1 and rng.random() < policy.leap:
                size = min(2 if rng.random() < 0.7 else 3, n - at)
            operations = problem.operations[at : at + size]
            if size == 1 and rng.random() < policy.guess:
                self.try_out(policy, operations[0], value, at)
            before, value = value, task.chain(operations, value, self.meaning)
            at += size
            step = len(self.steps)
            if rng.random() < (policy.mistake if size == 1 else policy.slip):
                self.wrong.add(step)
                value = (value + rng.randint(1, 9)) % 10
            self.add(task.step_text(operations, before, value), value, at)
            chance, most = policy.check, step + policy.checks
            while len(self.steps) - 1 < most and rng.random() < chance:
                text = task.check_text(operations, before, value, self.meaning)
                value = task.chain(operations, before, self.meaning)
                self.add(text, value, at)
                chance = policy.recheck
            if size == 1 and rng.random() < policy.note:
                self.add(task.note_text(operations[0], value), value, at)
        return value

    def try_out(self, policy: Policy, operation: str, value: int, at: int) -> None:
        """Guess at an operation, do it other ways, go back."""
        rng = self.rng
        result = task.apply(operation, value, self.meaning)
        if rng.random() < policy.mistake:
            self.wrong.add(len(self.steps))
            result = (result + rng.randint(1, 9)) % 10
        self.add(task.guess_text((operation,), value, result), value, at)
        for operations in task.alike(operation, self.meaning):
            if rng.random() >= policy.other:
                break
            self.add(task.tried_text("Or", operations, value, result), value, at)
        if rng.random() < policy.undo:
            back = task.undone(operation, self.meaning)
            self.add(task.tried_text("Undo", back, result, value), value, at)

    def start_over(self, value: int) -> Policy:
        """Start over, perhaps with another reading; what the attempt follows."""
        policy, rng, operator = self.policy, self.rng, self.problem.operator
        self.add(task.restart_text(self.problem), value, len(self.problem.operations))
        if operator and policy.alternative and rng.random() < policy.alternative:
            self.meaning = MEANINGS[self.meaning == MEANINGS[0]]
            self.add(task.read_text(operator, self.meaning), self.problem.start, 0)
        if policy.hasty and rng.random() < policy.hasty:
            return replace(policy, leap=HASTY_LEAP, check=0.0, guess=0.0, note=0.0)
        return policy

    def so_far(self, cut: int) -> tuple[int, str]:
        """Answer and reading when only the first `cut` steps are written: those of the last attempt
        that was finished, else what the state leads to."""
        n = len(self.problem.operations)
        at = next((i for i in reversed(range(cut)) if self.done[i] == n), cut - 1)
        rest, meaning = self.problem.operations[self.done[at] :], self.meanings[at]
        return task.chain(rest, self.values[at], meaning), meaning


def write(
    problem: task.Problem, policy: Policy, rng: Random, meaning: str = task.RIGHT
) -> Response:
    """A response that follows a policy; what comes after an injected mistake is consistent with
    it."""
    draft = _Draft(problem, policy, rng, meaning)
    if problem.operator:
        draft.add(task.read_text(problem.operator, meaning), problem.start, 0)
    attempted = policy
    for attempt in range(policy.attempts):
        final = draft.attempt(attempted)
        if rng.random() >= policy.restart or attempt == policy.attempts - 1:
            break
        attempted = draft.start_over(final)
    written, end = draft.steps, None
    ended = bool(policy.ended) and rng.random() < policy.ended
    if rng.random() < policy.finish or ended:
        end = rng.randint(1, len(written))
        final, meaning = draft.so_far(end)
        written = written[:end] if ended else [*written[:end], task.FINISH]
    else:
        meaning = draft.meaning
    wrong = {i for i in draft.wrong if end is None or i < end}
    answer = task.answer_text(problem, final, meaning)
    return _response(written, wrong, answer, ended=ended)


def _response(written: list[str], wrong: set[int], answer: str, *, ended: bool) -> Response:
    text, mistakes = "<think>\n", []
    for i, step in enumerate(written):
        text += step if i == 0 else f"\n\n{step}"
        if i in wrong:
            mistakes.append((len(text) - 1, len(text)))
    text += "\n</think>"
    return Response(f"{text}\n\n{answer}", tuple(mistakes), len(text) if ended else None)


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
