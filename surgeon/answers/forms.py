"""Answers as texts: what is taken off before their value is read."""

import re

_WRAPPED = re.compile(
    r"\\(?:text|textbf|textrm|textit|textnormal|mathrm|mathbf|mathsf|mathit|boldsymbol|mbox|"
    r"operatorname|textsf|texttt|textsc|mathcal|mathit|rm|bf|it|boxed|fbox|emph|displaystyle)\s*\{([^{}]*)\}"
)
_DROPPED = re.compile(
    r"(?<!\\)\\[,!;:>]|\\(?:left|right|big|Big|bigg|Bigg|bigl|bigr|displaystyle|textstyle|limits|mathstrut|strut)"
    r"(?![A-Za-z])|\\(?=$)"
)
_SWITCHES = re.compile(r"\\(?:rm|bf|it|sf|tt|bfseries|itshape)(?![A-Za-z])")
_SPACE = re.compile(r"(?<!\\)\\ |\\q?quad\b|~|\s+")
_PAIRS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"),
    ("`", "`"), ('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("「", "」"), ("*", "*"),
)  # fmt: skip
GSM8K = "####"
_CHARACTERS = str.maketrans({"−": "-", "，": ",", "：": ":", "（": "(", "）": ")", "＝": "="})


_HIGH = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile(r"(?<=10)[⁻]?[⁰¹²³⁴-⁹]+")


def _power(match: re.Match[str]) -> str:
    """10⁻⁴ as 10^{-4}."""
    return f"^{{{match.group().translate(_HIGH)}}}"


def tidy(answer: str) -> str:
    r"""The text without what is only typesetting: outer `$`, `\( \)`, bold and quotes, `\text{}`
    and its like, `\left`, spaces that LaTeX adds, a closing full stop.

    Doing it twice changes nothing, and an answer of which nothing would remain is kept as it is.
    """
    for _ in range(100):
        shorter = _once_shorter(answer)
        if not shorter or shorter == answer:
            break
        answer = shorter
    return answer


def _once_shorter(answer: str) -> str:
    answer = _RAISED.sub(_power, answer)
    answer = answer.translate(_CHARACTERS).replace("{,}", ",").replace("\\%", "%")
    if GSM8K in answer:
        answer = answer.rpartition(GSM8K)[2].strip() or answer
    answer = _WRAPPED.sub(r" \1 ", answer)
    answer = _SWITCHES.sub(" ", answer)
    answer = _DROPPED.sub("", answer)
    answer = _SPACE.sub(" ", answer).strip()
    for opening, closing in _PAIRS:
        inside = answer[len(opening) : len(answer) - len(closing)]
        if (
            len(answer) >= len(opening) + len(closing)
            and answer == opening + inside + closing
            and opening not in inside
            and closing not in inside
        ):
            answer = inside.strip()
    if not re.search(r"\b[ap]\.m\.$", answer):
        answer = answer.rstrip(".。;,").rstrip()
    return answer
