"""The built-in task: chained arithmetic modulo 10 whose every step, and not only the answer, can be
checked.

A problem starts at a digit and applies 6 to 10 different operations in turn:

    Start 3. Apply +4 *7 -2 +9 -5 +1. Find x.

A response thinks in steps separated by blank lines and ends with the answer:

    <think>
    Next +4: 3 = 7                      one operation
                                        (a blank line)
    So *7 -2: 7 = 7                     a leap over several operations
    Wait, check *7: 7 = 9, -2: 9 = 7, ok.
    Maybe +9: 7 = 6                     a guess at the next operation, before it is taken
    Or minus 1: 7 = 6, ok.              the same by other operations
    Undo minus 9: 6 = 7, ok.               back from the result
    Next +9: 7 = 6
    Note x = 6 after +9.
    Let me start over. Start 3.
    </think>

    Answer: 7

Two operators are ambiguous: `#k` and `~k` mean either *shift* (x + k) or *fold* (k - x). The
meaning `RIGHT` is the one that counts. A response states the meaning it takes in its first step and
in its answer (`Read # as shift. Answer: 7`).

Pure Python: no model runs here.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from surgeon.builtin import PROMPT_SETS
from surgeon.errors import BadInput

AMBIGUOUS = ("#", "~")
"""Operators with two meanings, to be followed by a digit from 1 to 9."""
RIGHT = "shift"
"""The meaning by which answers to problems with an ambiguous operator are judged."""
EASY = 7
"""A problem with at most this many operations counts as easy: starting over on it is over-
thinking."""

RESTART = "Let me start over."
FINISH = "Okay, I have finished thinking."
THINK = ("<think>", "</think>")

_BUCKETS = 16


@dataclass(frozen=True)
class Problem:
    """A start digit and the operations to apply to it, all different, such as `("+4", "*7",
    "#2")`."""

    start: int
    operations: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What the user is shown."""
        return f"Start {self.start}. Apply {' '.join(self.operations)}. Find x."

    @property
    def operator(self) -> str | None:
        """The ambiguous operator in it, or None."""
        return next((o[0] for o in self.operations if o[0] in AMBIGUOUS), None)

    @property
    def split(self) -> str:
        """The only split the problem may be used in, by a hash of its text: `train` or one of
        `PROMPT_SETS`."""
        bucket = zlib.crc32(self.prompt.encode()) % _BUCKETS
        return PROMPT_SETS[bucket] if bucket < len(PROMPT_SETS) else "train"

    def answer(self, meaning: str = RIGHT) -> int:
        """The final digit when an ambiguous operator has this meaning."""
        value = self.start
        for operation in self.operations:
            value = apply(operation, value, meaning)
        return value

    @classmethod
    def parse(cls, prompt: str) -> "Problem":
        """The problem a prompt states; raises BadInput when it states none."""
        match = _PROMPT.fullmatch(prompt.strip())
        if not match:
            raise BadInput(
                f"found the prompt {prompt[:80]!r}, expected one of the built-in task such as "
                "'Start 3. Apply +4 *7. Find x.'"
            )
        return cls(int(match[1]), tuple(match[2].split()))


def apply(operation: str, value: int, meaning: str = RIGHT) -> int:
    """The digit that an operation makes of a digit."""
    operator, k = operation[0], int(operation[1:])
    if operator == "+":
        return (value + k) % 10
    if operator == "-":
        return (value - k) % 10
    if operator == "*":
        return (value * k) % 10
    return (value + k) % 10 if meaning == "shift" else (k - value) % 10


# ------------------------------------------------------------------------------------------ writing


def answer_text(problem: Problem, value: int, meaning: str = RIGHT) -> str:
    """What follows the thinking: the reading of an ambiguous operator, if there is one, and the
    answer."""
    operator = problem.operator
    return f"{read_text(operator, meaning)} Answer: {value}" if operator else f"Answer: {value}"


def read_text(operator: str, meaning: str) -> str:
    """The sentence that states how an ambiguous operator is read."""
    return f"Read {operator} as {meaning}."


def restart_text(problem: Problem) -> str:
    """The sentence that goes back to the start."""
    return f"{RESTART} Start {problem.start}."


def step_text(operations: tuple[str, ...], value: int, result: int) -> str:
    """One step: a single operation, or a leap over several."""
    word = "Next" if len(operations) == 1 else "So"
    return f"{word} {' '.join(operations)}: {value} = {result}"


def check_text(operations: tuple[str, ...], value: int, stated: int, meaning: str) -> str:
    """The check of a step that stated a result: the operations one by one, and the verdict."""
    return f"Wait, check {_parts(operations, value, meaning, stated)}"


def note_text(operation: str, value: int) -> str:
    """The statement of where the trace stands."""
    return f"Note x = {value} after {operation}."


def guess_text(operations: tuple[str, ...], value: int, result: int) -> str:
    """The result of operations that aren't taken yet."""
    return f"Maybe {' '.join(operations)}: {value} = {result}"


def tried_text(
    word: Literal["Or", "Undo"], operations: tuple[str, ...], value: int, expected: int
) -> str:
    """Other operations one by one (plain ones, or those that undo the latest), and whether they
    lead where they should."""
    return f"{word} {_parts(operations, value, RIGHT, expected, spelled)}"


SPELLED = {"+": "plus", "-": "minus", "*": "times"}


def spelled(operation: str) -> str:
    """A plain operation in words, as other ways are written: those aren't the problem's own."""
    return f"{SPELLED[operation[0]]} {operation[1:]}"


def _parts(
    operations: tuple[str, ...],
    value: int,
    meaning: str,
    expected: int,
    said: Callable[[str], str] = str,
) -> str:
    parts = []
    for operation in operations:
        result = apply(operation, value, meaning)
        parts.append(f"{said(operation)}: {value} = {result}")
        value = result
    return f"{', '.join(parts)}, {'ok' if value == expected else 'no'}."


_ALIKE = {"*3": (("*7", "*9"), ("*9", "*7")), "*7": (("*3", "*9"), ("*9", "*3"))}
_ALIKE["*9"] = (("*3", "*3"), ("*7", "*7"))
_UNDONE = {"*3": "*7", "*7": "*3", "*9": "*9"}


def alike(operation: str, meaning: str) -> tuple[tuple[str, ...], ...]:
    """Two ways in plain operations to do what an operation does."""
    operator, k = operation[0], int(operation[1:])
    if operator == "*":
        return _ALIKE[operation]
    if operator in AMBIGUOUS:
        if meaning != "shift":
            return ("*9", f"+{k}"), ("*9", f"-{10 - k}")
        return (f"+{k}",), _halves("+", k)
    return ((f"-{10 - k}" if operator == "+" else f"+{10 - k}",), _halves(operator, k))


def _halves(sign: str, k: int) -> tuple[str, str]:
    if k == 1:
        return f"{sign}2", f"{'-' if sign == '+' else '+'}1"
    return f"{sign}{k // 2}", f"{sign}{k - k // 2}"


def undone(operation: str, meaning: str) -> tuple[str, ...]:
    """Plain operations that lead back from an operation's result."""
    operator, k = operation[0], int(operation[1:])
    if operator == "*":
        return (_UNDONE[operation],)
    if operator in AMBIGUOUS and meaning != "shift":
        return "*9", f"+{k}"
    return (f"{'+' if operator == '-' else '-'}{k}",)


def chain(operations: tuple[str, ...], value: int, meaning: str) -> int:
    """The digit that operations make of a digit, one after another."""
    for operation in operations:
        value = apply(operation, value, meaning)
    return value


# ----------------------------------------------------------------------------------------- checking

Kind = Literal[
    "read", "guess", "alternative", "undo", "next", "leap", "note", "check", "restart", "finish",
    "other",
]  # fmt: skip
"""An alternative is other operations to the same end, or a reading that a trace takes after it had
taken the other one."""
Phase = Literal["explore", "execute"]
Failure = Literal["intra", "inter", "instance", "misread"]


PHASE: dict[Kind, Phase] = {
    "read": "execute",
    "guess": "explore",
    "alternative": "explore",
    "undo": "explore",
    "note": "execute",
    "next": "execute",
    "leap": "explore",
    "check": "explore",
    "restart": "explore",
    "finish": "execute",
}
"""Whether a step of a kind explores (tries, doubts or looks back) or executes the plan. A step that
can't be read does neither."""


class StepLabel(NamedTuple):
    """What the exact checker says of one step of a trace."""

    index: int
    kind: Kind
    text: str
    start: int
    """First character of the step in the checked text."""
    end: int
    """One past its last character."""
    failure: Failure | None
    """intra: a wrong step; inter: stagnation, the same check again; instance: starting over on an
    easy problem whose work had no mistake in it; misread: the other meaning of an ambiguous
    operator; None: nothing."""
    right: str
    """The step as it should have been written at this point (the text itself when nothing is
    wrong)."""

    @property
    def phase(self) -> Phase | None:
        """Whether the step explores or executes; None where it can't be read."""
        return PHASE.get(self.kind)


_BEGINS: dict[str, Phase] = {
    "Next": "execute",
    "Note": "execute",
    "Maybe": "explore",
    "Or": "explore",
    "Undo": "explore",
    "So": "explore",
    "Wait,": "explore",
    "Let": "explore",
    "Okay,": "execute",
}
"""What an unfinished step does, by its first word."""
_PROMPT = re.compile(r"Start (\d)\. Apply ((?:[-+*#~][1-9] ?)+)\. Find x\.")
_STEP = re.compile(r"(Next|So) ([-+*#~][1-9](?: [-+*#~][1-9])*): (\d) = (\d)")
_GUESS = re.compile(r"Maybe ([-+*#~][1-9](?: [-+*#~][1-9])*): (\d) = (\d)")
_TRIED = re.compile(r"(Or|Undo) (.+), (ok|no)\.")
_TRIED_PART = re.compile(r"(plus|minus|times) ([1-9]): \d = \d")
_NOTE = re.compile(r"Note x = (\d) after ([-+*#~][1-9])\.")
_CHECK = re.compile(r"Wait, check (.+), (ok|no)\.")
_PART = re.compile(r"([-+*#~][1-9]): (\d) = (\d)")
_RESTART = re.compile(re.escape(RESTART) + r"(?: Start (\d)\.)?")
_READ = re.compile(r"Read ([#~]) as (shift|fold)\.")
_ANSWER = re.compile(r"Answer: (\d)")


def answer(text: str) -> str | None:
    """The last stated answer after the thinking, or None when there is none or the thinking never
    ended."""
    head, end, tail = text.rpartition("</think>")
    if not end and "<think>" in head + tail:
        return None
    found = _ANSWER.findall(tail)
    return found[-1] if found else None


def correct(problem: Problem, text: str) -> bool:
    """Whether a response states the right answer."""
    return answer(text) == str(problem.answer())


def reading(text: str) -> str | None:
    """The meaning a response reads an ambiguous operator as (its last statement), or None."""
    found = _READ.findall(text)
    return found[-1][1] if found else None


def steps(problem: Problem, text: str) -> list[StepLabel]:
    """A label for each step of a response's thinking, each judged from the state the trace itself
    is in.

    A wrong result is an error where it is written and not in the steps that carry it on. The text
    may be truncated anywhere: an unfinished last step is left out.
    """
    return _labels(problem, text, _spans(text))


def phases(problem: Problem, pieces: Sequence[str]) -> list[Phase | None]:
    """What each token of a response does, from the tokens' texts in order: explore or execute.

    A token belongs to the step that its first character belongs to, a blank line to the step before
    it. An unfinished last step counts by its first word. None before and after the thinking, in a
    step that can't be read, and in an unfinished one whose first word says nothing.
    """
    text = "".join(pieces)
    labels = steps(problem, text)
    bounds: list[tuple[int, Phase | None]] = [(label.start, label.phase) for label in labels]
    stop = text.find("</think>")
    if stop < 0:
        at = labels[-1].end if labels else text.find("<think>") + len("<think>")
        tail = text[at:]
        if words := tail.split():
            begin = at + len(tail) - len(tail.lstrip())
            bounds.append((begin, _begun(labels, words)))
        stop = len(text)
    found: list[Phase | None] = []
    at, i = 0, 0
    now: Phase | None = None
    for piece in pieces:
        while i < len(bounds) and bounds[i][0] <= at:
            now, i = bounds[i][1], i + 1
        found.append(now if at < stop else None)
        at += len(piece)
    return found


def _begun(labels: Sequence[StepLabel], words: Sequence[str]) -> Phase | None:
    if words[0] == "Read":
        read = any(label.kind in ("read", "alternative") for label in labels)
        return None if read else "execute"
    return _BEGINS.get(words[0])


def steps_of(problem: Problem, parts: Sequence[str]) -> list[StepLabel]:
    """A label for each of these steps, whatever is written in them; characters are counted in the
    text that a blank line after each makes of them."""
    text, spans = "", []
    for part in parts:
        step = part.strip()
        spans.append((len(text), len(text) + len(step)))
        text += f"{step}\n\n"
    return _labels(problem, text, spans)


def _labels(problem: Problem, text: str, spans: Sequence[tuple[int, int]]) -> list[StepLabel]:
    labels: list[StepLabel] = []
    state = _State(problem)
    for start, end in spans:
        step = text[start:end]
        kind, failure, right = state.judge(step)
        labels.append(StepLabel(len(labels), kind, step, start, end, failure, right))
    return labels


def _spans(text: str) -> list[tuple[int, int]]:
    begin = text.find("<think>")
    begin = 0 if begin < 0 else begin + len("<think>")
    stop = text.find("</think>", begin)
    closed = stop >= 0
    stop = stop if closed else len(text)
    spans, at = [], begin
    while at < stop:
        end = text.find("\n\n", at, stop)
        ends = end >= 0 or closed
        end = end if end >= 0 else stop
        inner = text[at:end]
        if ends and inner.strip():
            left = at + len(inner) - len(inner.lstrip())
            spans.append((left, left + len(inner.strip())))
        at = end + 2
    return spans


class _State:
    """Where a trace stands: the value, the next operation, and the last step or guess, against
    which what looks back is judged."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.meaning = RIGHT
        self.stated: str | None = None
        self.clean = True
        self._begin()

    def _begin(self) -> None:
        self.value = self.problem.start
        self.at = 0
        self.last: tuple[tuple[str, ...], int, int] | None = None
        self.guessed = False
        self.tried: set[str] = set()

    def judge(self, step: str) -> tuple[Kind, Failure | None, str]:
        if match := _READ.fullmatch(step):
            return self._read(step, match)
        if match := _RESTART.fullmatch(step):
            return self._restart(step, match)
        if step == FINISH:
            return "finish", None, step
        if match := _STEP.fullmatch(step):
            return self._step(step, match)
        if match := _CHECK.fullmatch(step):
            return self._check(step, match)
        if match := _GUESS.fullmatch(step):
            return self._guess(step, match)
        if match := _TRIED.fullmatch(step):
            return self._tried(step, match)
        if match := _NOTE.fullmatch(step):
            return self._note(step, match)
        self.clean = False
        return "other", "intra", self._next()

    def _read(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        operator = self.problem.operator
        if operator is None:
            self.clean = False
            return "read", "intra", self._next()
        right = read_text(operator, RIGHT)
        if operator != match[1]:
            self.clean = False
            return "read", "intra", right
        kind: Kind = "read" if self.stated in (None, match[2]) else "alternative"
        self.meaning = self.stated = match[2]
        return kind, None if match[2] == RIGHT else "misread", right

    def _restart(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        over = self.clean and len(self.problem.operations) <= EASY
        self._begin()
        self.value = int(match[1] or self.problem.start)
        self.clean = self.value == self.problem.start
        if not self.clean:
            return "restart", "intra", restart_text(self.problem)
        return "restart", "instance" if over else None, FINISH if over else step

    def _step(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        operations, value, result = tuple(match[2].split()), int(match[3]), int(match[4])
        expected = self.problem.operations[self.at : self.at + len(operations)]
        kind: Kind = "next" if len(operations) == 1 else "leap"
        right = self._next(len(operations))
        fine = (
            (match[1] == "Next") == (len(operations) == 1)
            and operations == expected
            and value == self.value
            and result == chain(operations, value, self.meaning)
        )
        self.last, self.guessed, self.value = (operations, value, result), False, result
        self.tried = set()
        if operations[-1] in self.problem.operations:
            self.at = self.problem.operations.index(operations[-1]) + 1
        self.clean &= fine
        return kind, None if fine else "intra", step if fine else right

    def _guess(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        operations, value, result = tuple(match[1].split()), int(match[2]), int(match[3])
        expected = self.problem.operations[self.at : self.at + len(operations)]
        again = self.guessed and self.last is not None and self.last[0] == operations
        self.last, self.guessed = (operations, value, result), True
        if not again:
            self.tried = set()
        right = chain(operations, self.value, self.meaning)
        if operations != expected or (value, result) != (self.value, right):
            self.clean = False
            return "guess", "intra", self._next()
        return "guess", "inter" if again else None, self._next() if again else step

    def _tried(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        word = "Undo" if match[1] == "Undo" else "Or"
        kind: Kind = "undo" if word == "Undo" else "alternative"
        parts = [_TRIED_PART.fullmatch(part) for part in match[2].split(", ")]
        signs = {word: sign for sign, word in SPELLED.items()}
        tried = tuple(signs[part[1]] + part[2] for part in parts if part)
        if self.last is None or len(tried) < len(parts):
            self.clean = False
            return kind, "intra", self._next()
        operations, before, stated = self.last
        start, end = (before, stated) if word == "Or" else (stated, before)
        there = [chain(operations, digit, self.meaning) for digit in range(10)]
        back = [chain(tried, digit if word == "Or" else there[digit], RIGHT) for digit in range(10)]
        fine = back == (there if word == "Or" else list(range(10)))
        if not fine or step != tried_text(word, tried, start, end):
            self.clean = False
            return kind, "intra", self._next()
        again = match[0] in self.tried
        self.tried.add(match[0])
        return kind, "inter" if again else None, self._next() if again else step

    def _note(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        done = self.problem.operations[: self.at]
        if not done or step != note_text(done[-1], self.value):
            self.clean = False
            return "note", "intra", note_text(done[-1], self.value) if done else self._next()
        again = match[0] in self.tried
        self.tried.add(match[0])
        return "note", "inter" if again else None, self._next() if again else step

    def _check(self, step: str, match: re.Match[str]) -> tuple[Kind, Failure | None, str]:
        parts = [_PART.fullmatch(part) for part in match[1].split(", ")]
        if self.last is None or any(part is None for part in parts):
            self.clean = False
            return "check", "intra", self._next()
        operations, before, stated = self.last
        if not self.guessed:
            stated = self.value
        right = check_text(operations, before, stated, self.meaning)
        again = "check" in self.tried
        self.tried.add("check")
        # A check that is right leaves the right result behind: it mends what the step broke.
        found = int([part for part in parts if part][-1][3])
        if not self.guessed:
            self.value = found
        if step != right:
            self.clean = False
            return "check", "intra", right
        return "check", "inter" if again else None, self._next() if again else step

    def _next(self, size: int = 1) -> str:
        operations = self.problem.operations[self.at : self.at + size]
        if not operations:
            return FINISH
        return step_text(operations, self.value, chain(operations, self.value, self.meaning))
