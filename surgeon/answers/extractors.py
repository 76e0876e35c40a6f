"""Extractors: the answer in a response. Another one is a function and a row of `EXTRACTORS`."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from surgeon import named
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgeon.traces import Trace

Extractor = Callable[[str], str | None]

# --- the part of a response that holds the answer -------------------------------------------------


def after_thinking(text: str) -> str | None:
    """The text after the last `</think>`: all of it without one, None when a block never ends."""
    answer = text.rpartition("</think>")[2]
    return None if "<think>" in answer else answer


# --- extractors: text after the thinking block -> answer ------------------------------------------


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def _boxed(text: str) -> str | None:
    # One pass with a stack: a response that repeats "\boxed{" must not cost quadratic time.
    open_at: list[int | None] = []
    last_start, answer = -1, None
    for token in _BRACES.finditer(text):
        word = token.group()
        if word == "{":
            open_at.append(None)
        elif word.startswith("\\boxed"):
            open_at.append(token.end())
        elif word == "}" and open_at:
            start = open_at.pop()
            if start is not None and start > last_start:
                inside = text[start : token.start()].strip()
                if inside:
                    last_start, answer = start, inside
    return answer


# "I" and "A" are also English words: not a choice in "I think" or "A train leaves".
_NOT_A_WORD = r"(?![A-Za-z0-9_'’])"
_NOT_PROSE = r"(?!(?<=[IA])[ \t]+[a-z])"
_NOT_PRONOUN = r"(?!(?<=I)\s+(?:am|was|do|don|did|can|could|would|will|think|believe|need|have)\b)"
_CHOICE_BOX = re.compile(r"[\s({\[*$]*([A-Ja-j])(?![A-Za-z0-9])")
_CHOICE_FORMS = (
    re.compile(
        r"(?i:\banswer|\bcorrect (?:choice|option|one))[*_\s]*(?i:is\b)?[*_\s]*[:：=]?"
        r"[\s*_$\"'(\[{]*"
        rf"(?:([A-J]){_NOT_A_WORD}{_NOT_PRONOUN}|([a-j])[).\]*_ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(
        r"\(([A-J])\)|\[([A-J])\]|\*\*([A-J])[.)]?\*\*|^[ \t]*([A-J])(?:[.):][ \t]|[.):]?[ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(rf"(?<![A-Za-z0-9_'’])([A-J]){_NOT_A_WORD}{_NOT_PROSE}"),
)
_MARKUP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|mbox)\b")


def choice(text: str) -> str | None:
    box = _boxed(text)
    if box is not None:
        letter = _CHOICE_BOX.match(_MARKUP.sub("", box))
        if letter:
            return letter.group(1).upper()
    for form in _CHOICE_FORMS:
        if letter := _last(form, text):
            return next(group for group in letter.groups() if group).upper()
    return None


# The sign counts only where it can't be a minus between two terms ("10-3" ends in 3).
_NUMBER = re.compile(
    r"(?:(?<![A-Za-z0-9_.)\]}])[-+−])?"
    r"(?<![A-Za-z0-9_.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
)


def _number(text: str) -> str | None:
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    number = _last(_NUMBER, text)
    return number and number.group().replace(",", "").replace("−", "-").removeprefix("+")


def _last_line(text: str) -> str | None:
    for line in reversed(text.splitlines()):
        if line.strip():
            return line.strip()
    return None


_ANSWER_LINE = re.compile(r"(?i)\banswer(?:\s+is)?[*_\s]*[:：=][*_\s]*(\S.*)")


def _answer_line(text: str) -> str | None:
    line = _last(_ANSWER_LINE, text)
    return line and (line.group(1).strip().strip("*_").strip() or None)


def _auto(text: str) -> str | None:
    answers = (read(text) for read in (_boxed, _answer_line, _number, _last_line))
    return next((answer for answer in answers if answer is not None), None)


EXTRACTORS: dict[str, Extractor] = {
    "auto": _auto,
    "boxed": _boxed,
    "choice": choice,
    "number": _number,
    "last-line": _last_line,
}


def parse_extractor(how: str) -> Extractor:
    """The function that `how` names: response text -> answer, or None where there is none.

    The function looks only at the text after the thinking block. Raises `BadInput` for an unknown
    name, an invalid regex, one with other than one group, or a `module:function` that can't be
    imported.
    """
    if how in EXTRACTORS:
        read = EXTRACTORS[how]
    elif named.MODULE_FUNCTION.fullmatch(how):
        read = _returning_text(named.function(how, "answer extractor"), how)
    else:
        read = _last_group(_one_group(how))

    def answer(text: str) -> str | None:
        tail = after_thinking(text)
        return None if tail is None else read(tail)

    return answer


def extract(text: str, how: str = "auto") -> str | None:
    """The answer in a response, read the way `how` says (see the module); None if there is none."""
    return parse_extractor(how)(text)


def read_answers(
    traces: "Sequence[Trace]", read: Extractor, tokenizer: "PreTrainedTokenizerBase"
) -> list[str | None]:
    """The answer in each response; None for a truncated one, whose last number means nothing.

    Where the chat template has begun the thinking block, so that a response has no `<think>`, one
    that never closes the block is unfinished all the same.
    """
    if not traces:
        return []
    prompt_ends = str(tokenizer.decode(traces[0].prompt_token_ids[-32:]))
    opening = "<think>" if after_thinking(prompt_ends) is None else ""
    return [None if t.finish_reason == "length" else read(opening + t.text) for t in traces]


def _one_group(how: str) -> re.Pattern[str]:
    names = ", ".join(EXTRACTORS)
    try:
        pattern = re.compile(how)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(
            f"found the answer extractor {how!r}, which is not a valid regex ({error}); expected "
            f"{names}, module:function, or a regex with exactly one group."
        ) from None
    if pattern.groups != 1:
        raise BadInput(
            f"found the answer extractor {how!r}, a regex with {pattern.groups} groups; expected "
            f"{names}, module:function, or a regex with one group such as 'Answer: (.+)'."
        )
    return pattern


def _last_group(pattern: re.Pattern[str]) -> Extractor:
    def read(text: str) -> str | None:
        answer = None
        for match in pattern.finditer(text):
            answer = (match.group(1) or "").strip() or answer
        return answer

    return read


def _returning_text(function: Callable[..., object], how: str) -> Extractor:
    def read(text: str) -> str | None:
        answer = function(text)
        if answer is None or isinstance(answer, str):
            return answer
        raise BadInput(f"found {type(answer).__name__} returned by {how}, expected str or None.")

    return read
