"""The one form in which answers are compared."""

import re

_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,!;:> ]|\\q?quad\b|\\(?:left|right)(?![A-Za-z])|~|\s+")
_AROUND_SIGNS = re.compile(r" *([,;:=+\-*/^(){}\[\]<>|]) *")
_THOUSANDS = re.compile(r"([-+]?\\?[$€£]?)([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_DECIMAL = re.compile(r"([-+]?)([0-9]+)(?:\.([0-9]*))?")


def canonical(answer: str) -> str:
    r"""The form under which two answers are the same vote: `\text{ 1,000.}` -> `1000`.

    Removed: outer spaces, `$`, `\( \)` and `\text{}`; LaTeX spacing and `\left \right`; spaces
    around signs; trailing dots; thousands commas; the plus sign and trailing zeros of a plain
    decimal number. `\dfrac` becomes `\frac`. Letter case is kept. Applying it twice changes
    nothing, and an answer of which nothing would remain is kept as it is.
    """
    while True:
        shorter = _once_shorter(answer)
        if not shorter or shorter == answer:
            return answer
        answer = shorter


def _once_shorter(answer: str) -> str:
    answer = answer.replace("−", "-").replace("{,}", ",").replace("\\%", "%")
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    answer = _WRAPPED.sub(r"\1", answer)
    answer = _LATEX_SPACE.sub(_space_or_nothing, answer)
    answer = _AROUND_SIGNS.sub(r"\1", answer).strip()
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = answer[len(opening) : len(answer) - len(closing)]
        if (
            len(answer) >= len(opening) + len(closing)
            and answer == opening + inside + closing
            and opening not in inside
        ):
            answer = inside.strip()
    answer = answer.rstrip(".。").rstrip()
    thousands = _THOUSANDS.match(answer)
    if thousands:
        answer = thousands[1] + thousands[2].replace(",", "") + answer[thousands.end() :]
    decimal = _DECIMAL.fullmatch(answer)
    if decimal:
        sign, whole, part = decimal[1].replace("+", ""), decimal[2], (decimal[3] or "").rstrip("0")
        answer = f"{sign}{whole}.{part}" if part else f"{sign}{whole}"
    return answer


def _space_or_nothing(space: re.Match[str]) -> str:
    return " " if space.group().isspace() or space.group() == "~" else ""
