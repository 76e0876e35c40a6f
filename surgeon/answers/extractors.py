"""Extractors: the answer in a response. Another one is a function and a row of `EXTRACTORS`."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from surgeon import named
from surgeon.answers.phrases import (
    MOST_LETTERS,
    emphasised,
    formula,
    last,
    last_value,
    stated,
    truth,
    weak,
)
from surgeon.answers.prose import called, denied, own, refuses, shaped, without_remarks
from surgeon.answers.thinking import TAGS, Tags, after_thinking, opened, tags_of
from surgeon.errors import BadInput
from surgeon.traces.rendering import template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgeon.traces import Trace

Extractor = Callable[[str], str | None]

# --- extractors: text after the thinking block -> answer ------------------------------------------


_BRACES = re.compile(r"\\+f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(
    r"\\f?boxed\s*(-?\d+(?:\.\d+)?(?:/\d+)?|\\[a-z]+\{[^{}]*\}(?:\{[^{}]*\})?|[A-Za-z](?![A-Za-z]))"
)
_UNCLOSED_BOX = re.compile(r"\\f?boxed\s*\{([^{}\n]{1,80})[\s$.\\\])]{0,9}$")
_BESIDE = re.compile(
    r"[\s$.\\()\[\]]*(?:,|;|,?\s*(?:and|or|&)\b)[\s$\\()\[\]]*(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(Begin, end, inside) of every filled box that stands in no other, in their order."""
    # One pass with a stack: a response that repeats "\boxed{" must not cost quadratic time.
    open_at: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, str]] = []
    for token in _BRACES.finditer(text):
        word = token.group()
        if word == "{":
            open_at.append(None)
        elif "boxed" in word:
            open_at.append((token.start(), token.end()))
        elif word == "}" and open_at:
            start = open_at.pop()
            if start is None:
                continue
            inside = text[start[1] : token.start()].strip()
            if inside and "\\boxed" not in inside:
                found.append((start[0], token.end(), inside))
    return found


def _boxed(text: str) -> str | None:
    """The last box; with those that stand beside it as members of one list."""
    boxes = _boxes(text)
    if not boxes:
        bare = last(_BARE_BOX, text)
        if bare:
            return bare.group(1)
        unclosed = last(_UNCLOSED_BOX, text)
        return unclosed and (unclosed.group(1).strip(" $.") or None)
    answers = [boxes[-1][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        if not _BESIDE.fullmatch(text, before[1], after[0]):
            break
        answers.insert(0, before[2])
    return ", ".join(dict.fromkeys(answers))


# "I" and "A" are also English words: not a choice in "I think" or "A train leaves".
_NOT_A_WORD = r"(?![A-Za-z0-9_'’])"
_NOT_PROSE = r"(?!(?<=[IA])[ \t]+[a-z])"
_NOT_PRONOUN = r"(?!(?<=I)\s+(?:am|was|do|don|did|can|could|would|will|think|believe|need|have)\b)"
_CHOICE_BOX = re.compile(r"[\s({\[*$]*([A-Ja-j])(?![A-Za-z0-9])")
_CHOICE_FORMS = (
    re.compile(
        r"(?i:\b(?:pick|choice|selection) is|leaves (?:us |me )?(?:with )?)[\s*(\[]*"
        rf"([A-J]){_NOT_A_WORD}(?!\s+[a-z]+\s+(?:because|of))"
    ),
    re.compile(r"\b(?:is|must be)\s+[*(\[]{0,4}([A-J])[.)]\s*[A-Za-z]"),
    re.compile(
        r"(?i:\banswer|\bcorrect (?:choice|option|one))[*_\s]*(?i:is\b)?[*_\s]*[:：=]?"
        r"[\s*_$\"'(\[{]*"
        rf"(?:([A-J]){_NOT_A_WORD}{_NOT_PRONOUN}|([a-j])[).\]*_ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(
        r"(?<![A-Za-z0-9_'’])[(\[*]{0,4}([A-J])[)\].*]{0,4}(?:\s{1,3}[^.\n]{0,40}?)?\s{1,3}(?:is|must be|seems)\s+"  # noqa: E501
        r"(?:(?:the|our|my)\s+)?(?:(?:final|most|only|best)\s+)*"
        r"(?:correct|right|answer|best|true)\b(?!\s*[:=])"
    ),
    re.compile(
        r"\(([A-J])\)|\[([A-J])\]|\*\*([A-J])[.)]?\*\*|^[ \t]*([A-J])(?:[.):][ \t]|[.):]?[ \t]*$)",
        re.MULTILINE,
    ),
    re.compile(rf"(?<![A-Za-z0-9_'’])([A-J]){_NOT_A_WORD}{_NOT_PROSE}"),
)
_ALONE = re.compile(r"[\s(\[*_]*([A-Ja-j])[\s)\].*_]*")
_MARKUP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathsf|mbox)\b")


def choice(text: str) -> str | None:
    box = _boxed(text)
    if box is not None:
        letter = _CHOICE_BOX.match(_MARKUP.sub("", box))
        if letter:
            return letter.group(1).upper()
    alone = _ALONE.fullmatch(text)
    if alone:
        return alone.group(1).upper()
    for form in _CHOICE_FORMS:
        if letter := last(form, text):
            return next(group for group in letter.groups() if group).upper()
    return None


# The sign counts only where it can't be a minus between two terms ("10-3" ends in 3).
_NUMBER = re.compile(
    r"(?:(?<![A-Za-z0-9_.)\]}])[-+−])?"
    r"(?<![A-Za-z0-9_.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
)


def _number(text: str) -> str | None:
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    number = last(_NUMBER, text)
    return number and number.group().replace(",", "").replace("−", "-").removeprefix("+")


def _last_line(text: str) -> str | None:
    for line in reversed(text.splitlines()):
        if line.strip():
            return line.strip()
    return None


def _auto(text: str, words: Sequence[str] = ()) -> str | None:
    text = own(text)
    answer = _boxed(text) or stated(text, words=words)
    if answer:
        return answer
    text = without_remarks(text[-MOST_LETTERS:])
    if refuses(text):
        return _last_line(text)
    readers = (denied, formula, weak, emphasised, shaped, called, last_value, truth, _last_line)
    return next((answer for read in readers if (answer := read(text))), None)


EXTRACTORS: dict[str, Extractor] = {
    "auto": _auto,
    "boxed": _boxed,
    "choice": choice,
    "number": _number,
    "last-line": _last_line,
}


def parse_extractor(
    how: str, words: Sequence[str] = (), think: Sequence[Tags] = TAGS[:1]
) -> Extractor:
    """The function that `how` names: response text -> answer, or None where there is none.

    The function looks only at the text after the thinking block, which `think` delimits; `words`
    are other words for "answer" that `auto` knows. Raises `BadInput` for an unknown name, an
    invalid regex, one with other than one group, or a `module:function` that can't be imported.
    """
    if how in EXTRACTORS:
        read = partial(_auto, words=tuple(words)) if how == "auto" else EXTRACTORS[how]
    elif named.MODULE_FUNCTION.fullmatch(how):
        read = _returning_text(named.function(how, "answer extractor"), how)
    else:
        read = _last_group(_one_group(how))

    def answer(text: str) -> str | None:
        tail = after_thinking(text, think)
        return None if tail is None else read(tail)

    return answer


def extract(text: str, how: str = "auto") -> str | None:
    """The answer in a response, read the way `how` says (see the module); None if there is none."""
    return parse_extractor(how)(text)


def read_answers(
    traces: "Sequence[Trace]",
    read: Extractor,
    tokenizer: "PreTrainedTokenizerBase",
    think: Sequence[Tags] = (),
) -> list[str | None]:
    """The answer in each response; None for a truncated one, whose last number means nothing.

    Where a response's own prompt ends inside a thinking block, as some templates begin one, a
    response that never closes the block is unfinished all the same.
    """
    texts = final_texts(traces, tokenizer, think)
    return [None if text is None else read(text) for text in texts]


def final_texts(
    traces: "Sequence[Trace]",
    tokenizer: "PreTrainedTokenizerBase",
    think: Sequence[Tags] = (),
) -> list[str | None]:
    """The text after the thinking of each response; None for one that is truncated or still thinks.

    Tags are `think`, `<think>` and those that the tokenizer's chat templates name.
    """
    tags = (*think, *tags_of(template_text(tokenizer)))

    def final(trace: "Trace") -> str | None:
        if trace.finish_reason == "length":
            return None
        opening = opened(str(tokenizer.decode(trace.prompt_token_ids[-32:])), tags)
        return after_thinking(opening + trace.text, tags)

    return [final(trace) for trace in traces]


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
