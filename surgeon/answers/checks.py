"""Checks: whether an answer is right, given the gold one. Another one is a function and a row of
`CHECKS`, or `module:function`, called as `function(answer, gold) -> bool`."""

import importlib.util
import re
from collections.abc import Callable
from typing import NamedTuple

from surgeon import named
from surgeon.answers.extractors import choice
from surgeon.answers.forms import tidy
from surgeon.answers.prose import refuses
from surgeon.answers.values import UNITS, same, value
from surgeon.errors import BadInput

Compare = Callable[[str, str], bool]
"""(answer, gold) -> whether the answer is right."""


class Check(NamedTuple):
    """A way to compare answers; without a slow comparison the fast one decides."""

    slow: Compare | None = None
    """Compares in a process of its own that is killed when it takes too long."""
    fast: Compare | None = None
    """Compares in this process, before `slow` where there is one: then only True is final."""
    problem: Callable[[str], str | None] = lambda gold: None
    """Why no answer could be right against a gold answer; None where one could."""
    warm: tuple[str, str] | None = None
    """A pair that is compared before the first time limit starts: it does the slow imports."""
    memory: int | None = None
    """Bytes of address space that the process of `slow` may take."""
    needs: str = ""
    """The module that it imports, an extra of this package under the check's own name."""


class CheckVerdict(NamedTuple):
    """Whether an answer is right, and whether its check had to be stopped (it is wrong then)."""

    correct: bool
    timed_out: bool = False
    """The check ran past the wall-clock limit and its process was killed."""
    died: bool = False
    """The process of the check ended by itself, for example for want of memory."""


_LETTER = re.compile(r"[\s(\[{*_\"'$]*([A-Ja-j])(?:[\s)\]}*_\"'$.]*|[)\].:]+[*_]*\s.*)", re.DOTALL)


def choice_letter(answer: str) -> str | None:
    """The letter A-J that an answer such as `C`, `(c)`, `C.`, `(c) Paris` or `Answer: C` stands
    for."""
    letter = _LETTER.fullmatch(tidy(answer))
    return letter.group(1).upper() if letter else choice(answer)


def same_letter(answer: str, gold: str) -> bool:
    """The same letter; an answer without one is wrong."""
    letter = choice_letter(answer)
    return letter is not None and letter == choice_letter(gold)


def _no_letter(gold: str) -> str | None:
    if choice_letter(gold) is None:
        return f"the answer {gold!r}, expected a letter A-J for the check 'choice'"
    return None


_LONG_WORDS = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
MOST_WORDS = 6
"""Of a gold answer in words; a longer one, or a sentence, is prose."""


def _no_value(gold: str) -> str | None:
    """Why math-verify and this package read nothing of a gold answer, None where one does."""
    text = tidy(gold)
    braces = re.sub(r"\\\\|\\[{}]", "", text)
    if braces.count("{") != braces.count("}"):
        return f"the answer {gold!r}, expected as many {{ as }} for the check 'math'"
    read = value(gold)
    if read.known and (read.unit or any(c.isdigit() for c in read.form) or len(read.form) < 3):
        return None
    words = len(_LONG_WORDS.findall(text))
    sentence = words >= 3 and gold.rstrip().endswith((".", "!", "?"))
    if words > MOST_WORDS or sentence:
        return (
            f"the answer {gold!r}, expected a value or a few words for the check 'math'. Give the "
            "final answer alone, or use --check exact"
        )
    return None


_NO_NUMBER = re.compile(r"\d+:\d+(?::\d+)*|\d*-\d+-\d+|[0-9A-F]+_\d+")
"""Times, ratios of three, dates and numerals of a base. math-verify reads one number of each and
is wrong about 3:45 am and 3:45 pm, 1:2:3 and 1:3:2, 2024-03-05 and 2024-05-03, 42_7 and 42_8."""


_MIXED = re.compile(r"\d\s+\d+\s*/\s*\d+|\d\s*\\[dt]?frac")
"""Mixed numbers, which math-verify takes for sums: -1 1/3 is -2/3 to it, and 33 1/3 percent 33."""


def same_value(answer: str, gold: str) -> bool:
    """What math-verify says, without its own time limits: a worker process has a hard one."""
    from math_verify import parse, verify

    if refuses(answer):  # it takes a number of the sentence
        return False
    if any("\\overline" in text for text in (answer, gold)):  # it drops the bar of 0.(36)
        return False
    if all(_NO_NUMBER.fullmatch(value(text).form) for text in (answer, gold)):
        return False
    if any(_MIXED.search(tidy(text)) for text in (answer, gold)) and all(
        value(text).known for text in (answer, gold)
    ):
        return False
    units = {value(answer).unit, value(gold).unit}
    if len(units) == 2 and units <= UNITS:  # math-verify drops units: 5 kg and 5 g are one to it
        return False
    # Its own limits use SIGALRM: they fail in threads and can't stop a computation inside C code.
    wanted = parse(_as_latex(gold), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    found = parse(_as_latex(answer), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return bool(verify(wanted, found, timeout_seconds=None))


def _as_latex(answer: str) -> str:
    # math-verify reads plain "x^2+1" as nothing at all; inside dollars it is an expression.
    return answer if "$" in answer or "\\(" in answer or "\\boxed" in answer else f"${answer}$"


CHECKS = {
    "exact": Check(fast=same),
    "choice": Check(
        fast=same_letter,
        problem=_no_letter,
    ),
    # A power tower fills the memory of a machine in seconds.
    "math": Check(
        slow=same_value,
        fast=same,
        problem=_no_value,
        warm=("x", "1"),
        memory=4 << 30,
        needs="math_verify",
    ),
}


def parse_check(how: str) -> Check:
    """The check that `how` names; raises `BadInput` when there is none or it can't be used."""
    row = named.row(CHECKS, how, "check")
    if not isinstance(row, Check):
        return Check(slow=row)
    if row.needs and importlib.util.find_spec(row.needs) is None:
        package = row.needs.replace("_", "-")
        raise BadInput(
            f"found no {package}, needed by the check {how!r}. Do: pip install 'surgeon[{how}]'"
        )
    return row


def gold_problem(gold: str, how: str) -> str | None:
    """Why no answer could be right against this gold answer under the check `how`, or None."""
    return CHECKS.get(how, Check()).problem(gold) if gold.strip() else "an empty answer"
