"""Checks: whether an answer is right, given the gold one."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from surgeon.answers.reading import MODULE_FUNCTION, canonical, choice, named_function
from surgeon.errors import BadInput

Check = Callable[[str, str], bool]


class Verdict(NamedTuple):
    """Whether an answer is right, and whether its check had to be stopped (it is wrong then)."""

    correct: bool
    timed_out: bool = False
    """the check ran past the wall-clock limit and its process was killed"""
    died: bool = False
    """the process of the check ended by itself, for example for want of memory"""


def choice_letter(answer: str) -> str | None:
    """The letter A-J that a short answer such as `C`, `(c)`, `C.` or `Answer: C` stands for."""
    plain = canonical(answer).strip("()[]{}*.: ")
    return plain.upper() if len(plain) == 1 and plain.upper() in "ABCDEFGHIJ" else choice(answer)


def exact_check(answer: str, gold: str) -> bool:
    return canonical(answer) == canonical(gold)


def _choice_check(answer: str, gold: str) -> bool:
    letter = choice_letter(answer)
    return letter is not None and letter == choice_letter(gold)


def math_check(answer: str, gold: str) -> bool:
    """What math-verify says, without its own time limits: a worker process has a hard one."""
    from math_verify import parse, verify

    # Its own limits use SIGALRM: they fail in threads and can't stop a computation inside C code.
    wanted = parse(_as_latex(gold), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    given = parse(_as_latex(answer), parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return bool(verify(wanted, given, timeout_seconds=None))


def _as_latex(answer: str) -> str:
    # math-verify reads plain "x^2+1" as nothing at all; inside dollars it is an expression.
    return answer if "$" in answer or "\\(" in answer or "\\boxed" in answer else f"${answer}$"


CHECKS: dict[str, Check] = {"exact": exact_check, "choice": _choice_check, "math": math_check}


def parse_check(how: str) -> str:
    """`how` itself when it names a check; raises `BadInput` when it doesn't or can't be used."""
    if how in CHECKS:
        if how == "math" and importlib.util.find_spec("math_verify") is None:
            raise BadInput(
                "found no math-verify, needed by the check 'math'. Do: pip install 'surgeon[math]'"
            )
    elif MODULE_FUNCTION.fullmatch(how):
        named_function(how, "answer check")
    else:
        raise BadInput(
            f"found the answer check {how!r}, expected {', '.join(CHECKS)} or module:function."
        )
    return how


def gold_problem(gold: str, how: str) -> str | None:
    """Why no answer could be right against this gold answer under the check `how`, or None."""
    if not gold.strip():
        return "an empty answer"
    if how == "choice" and choice_letter(gold) is None:
        return f"the answer {gold!r}, expected a letter A-J for the check 'choice'"
    return None
