r"""The answer where a response states it: `The answer is 3/4.`, `Final answer: \( x \)`, `#### 18`,
or the last value of its prose."""

import re
from collections import deque
from collections.abc import Sequence
from functools import cache

from surgeon.answers.values import MEASURE, NUMBER_WORDS

MOST_LETTERS = 20_000
"""Of a response's end, where its answer is looked for in prose."""


def last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


# --- what follows "the answer is" -----------------------------------------------------------------

_MARKS = r"[*_#`\s>]*"
_LINKS = (
    r"(?:[*_]{0,3}\s{0,3}(?:is\b|are\b|was\b|equals\b|would be\b|must be\b|should be\b|will be\b|"
    r"comes (?:out )?to\b|turns out to be\b|=|:|：|—|–|→|->)[*_]{0,3}\s{0,3}){1,3}"
)
_FOREIGN_LINKS = (
    r"(?:\s{0,3}[*_]{0,3}(?:es\b|est\b|ist\b|lautet\b|é\b|è\b|jest\b|är\b|er\b|adalah\b|là\b|este\b|"
    r"olan\b|is\b|to\b|это\b|равен\b|равна\b|равно\b|є\b|是|为|為|は|が|이|은|는|:|：|=|—|–)"
    r"[*_]{0,3}\s{0,3}){1,3}"
)
_HEADING = r"(?:[ \t]{0,3}[*_]{0,3}[:：]?[*_]{0,3}[ \t]{0,3}\n\s{0,20})"


@cache
def _stated(words: tuple[str, ...]) -> re.Pattern[str]:
    own = rf"\b(?:answers?|result)(?:\s*\([^()\n]{{0,40}}\)|\s+(?:to|for|of)\s[^.:\n=]{{1,60}}?)?(?={_LINKS}){_LINKS}"  # noqa: E501
    heading = rf"(?:^[ \t]{{0,3}}(?:#{{1,6}}|[*_]{{1,3}})?\s{{0,3}}(?:the\s+)?(?:final\s+|correct\s+)?answer{_HEADING})"  # noqa: E501
    given = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    foreign = rf"|(?:{given})(?:{_FOREIGN_LINKS}|{_HEADING})" if words else ""
    return re.compile(f"(?:{heading}|{own}{foreign})", re.IGNORECASE | re.MULTILINE)


_WEAK = re.compile(
    rf"\b(?:solutions?|roots?|values?|total|sum|output)(?:\s+(?:to|for|of)\s[^.:\n=]{{1,60}}?)?{_LINKS}",
    re.IGNORECASE,
)
_TAGGED = re.compile(
    r"<answer>\s*((?:(?!<answer>).){1,2000}?)\s*</answer>", re.DOTALL | re.IGNORECASE
)
_JSON = re.compile(
    r'"(?:final_)?answer"\s*:\s*("(?:[^"\\]|\\.){0,2000}"|-?[\d.]+|true|false)', re.IGNORECASE
)
_GSM8K = re.compile(
    r"^[ \t]*####[ \t]*(?![ \t]*(?:the |final |correct )*(?:answer|solution))(\S.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_MATH = re.compile(
    r"\$\$(?P<a>[^$]{1,2000}?)\$\$|\\\((?P<b>.{1,2000}?)\\\)|\\\[(?P<c>.{1,2000}?)\\\]"
    r"|(?<!\\)\$(?P<d>(?!\s*\d[\d.,]*\s+[A-Za-z]{2,})[^$\n]{1,2000}?)(?<!\\)\$"
    r"|\\begin\{(?P<env>align|equation|gather|eqnarray|multline)\*?\}(?P<e>.{1,2000}?)\\end\{(?P=env)\*?\}",
    re.DOTALL,
)
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:align|gather|split|array)[a-z]*\*?\}(?:\{[lcr| ]*\})?")


def _inside(match: re.Match[str]) -> str:
    """What a formula's delimiters hold; of aligned lines the last, without its marks."""
    inside = next(match[name] for name in "abcde" if match[name] is not None)
    lines = _ALIGNED.sub("", inside)
    if lines == inside and not match["e"]:
        return inside
    filled = [line for line in re.split(r"\\\\(?:\[[^\]]*\])?", lines) if line.strip(" &\n.,")]
    return filled[-1].replace("&", " ").strip() if filled else inside


_FENCE = re.compile(r"```[a-z]*\n(.{1,500}?)\n?```", re.DOTALL)
_BOLD = re.compile(r"\*\*([^*\n]{1,200}?)\*\*|__([^_\n]{1,200}?)__")
_QUOTED = re.compile(
    r'"([^"\n]{1,200})"|“([^”\n]{1,200})”|\'([^\'\n]{1,200})\'(?![A-Za-z])|`([^`\n]{1,200})`|「([^」\n]{1,200})」'
)
_FILLERS = re.compile(
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|clearly|actually|now|hence|equal to|"
    r"given by|as follows|likely|probably|option|choice|letter)\b[,:]?\s*|[:：=]\s*)+",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"(?<![ap]\.m)(?<!\b[A-Z])[.!?](?=\s|$|[\"'*)])|[。！]|\n|;|"
    r",?\s+(?:because|porque|parce que|puisque|weil|denn|perché|omdat|потому что)\s|"
    r",?\s+(?:since|so|which|where|as|but|while|although|though|when|if|given|after|by)\s|"
    r",\s+not\b|,\s+(?=(?:and|I|we|he|she|it|they|the|this|that)\s+[a-z]{2,})|\s\((?=[^\W\d_]{2,}\s)|\s[—–]\s|です|입니다|\s#"
)
_FOLLOWS = re.compile(
    r"\s*(?:\\?%|percent\b|[ap]\.?m\b\.?|(?:,|,?\s*(?:and|or)\b)\s*(?=\$|\\\(|\d))", re.IGNORECASE
)  # fmt: skip


def answer_at(text: str) -> str | None:
    """The answer that a text begins with: a formula, something bold or quoted, else what stands
    there up to the end of the sentence or a reason."""
    text = text.lstrip(" \t\n*_:：>")
    text = text[_FILLERS.match(text).end() :] if _FILLERS.match(text) else text  # pyright: ignore
    text = text.lstrip("*_ \t")
    fence = _FENCE.match(text)
    if fence:
        return fence.group(1).strip() or None
    math = _MATH.match(text)
    if math:
        inside = _inside(math)
        return _with_followers(inside, text[math.end() :])
    for pattern in (_BOLD, _QUOTED):
        found = pattern.match(text)
        if found:
            return next(group for group in found.groups() if group is not None).strip() or None
    end = _ENDS.search(text)
    while end and not text[: end.start()].strip(" *_#"):
        text = text[end.end() :]
        end = _ENDS.search(text)
    part = text[: end.start()] if end else text
    part = re.split(r"\*\*(?![\w(])", part, maxsplit=1)[0]  # the end of something bold
    if part.count("$") == 1:  # the end of a formula
        part = re.sub(r"(?<=[\w})])\$", "", part)
    return part.strip().strip("*_").strip().rstrip(".,;").strip() or None


def _with_followers(inside: str, rest: str) -> str | None:
    inside = inside.strip().rstrip(".,;").strip()
    follows = _FOLLOWS.match(rest)
    if not follows:
        return inside or None
    word = follows.group()
    if word.strip().strip(",").strip() in ("", "and", "or"):
        more = answer_at(rest[follows.end() :])
        return f"{inside}, {more}" if more else inside
    return inside + " " + word.strip()


_LETTERED = re.compile(r"^[ \t*_]{0,4}(?:A|Ans)[.:][*_]{0,2}[ \t]+(\S.*)$", re.MULTILINE)
"""Q: how many? A: 12"""
_OPTION_B = re.compile(r"^[ \t*_(]{0,4}B[.:)]", re.MULTILINE)
_NEGATED = re.compile(r"(?:not|n't|unclear|wrong|incorrect)\b", re.IGNORECASE)
_THAT_IS = re.compile(
    r"(\S[^\n.!?]{0,60}?)\s+(?:is|are|must be)\s+(?:the|our|my)\s+(?:(?:final|correct|right|desired)\s+)*"  # noqa: E501
    r"answers?\b", re.IGNORECASE,
)  # fmt: skip


def stated(text: str, words: Sequence[str] = ()) -> str | None:
    """What the last statement of an answer gives: `<answer>`, JSON, `####`, a phrase."""
    for pattern in (_TAGGED, _JSON, _GSM8K):
        found = last(pattern, text)
        if found and found.group(1).strip(" \"'"):
            return found.group(1).strip().strip('"').strip()
    found = last(_LETTERED, text)
    if found and not _OPTION_B.search(text):
        return answer_at(found.group(1))
    candidates = list(deque(_stated(tuple(words)).finditer(text), maxlen=50))
    for match in reversed(candidates):
        rest = text[match.end() : match.end() + 4000]
        if _NEGATED.match(rest):
            continue
        answer = answer_at(rest)
        if answer:
            answer = _shorter(answer)
            if answer:
                return answer
    found = last(_THAT_IS, text[-MOST_LETTERS:])
    if found:
        return last_value(found.group(1)) or found.group(1).strip()
    return None


def _shorter(answer: str) -> str | None:
    """A statement of many words is read for the last value in it."""
    if len(re.findall(r"(?<!\\)\b[^\W\d_]{2,}", answer)) <= 5 or "\\" in answer:
        return answer
    return last_value(answer) or answer


# --- prose ----------------------------------------------------------------------------------------

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_VALUE = re.compile(
    r"(?:(?<![\w.)\]}^])[-−+]\s?)?(?<![\w.])(?:\\?[$€£¥]\s?)?"
    rf"(?:\d+:\d+(?::\d+)*(?:\s?[aApP]\.?[mM]\b)?|\d*\s?[¼½¾⅐-⅞]|\d+ \d+/\d+|\d{{1,3}}(?: \d{{3}})+(?!\d)|{_DIGITS}\s?/\s?{_DIGITS}"  # noqa: E501
    rf"|{_DIGITS}(?:\s?(?:x|×|\\times|\*)\s?10\^\{{?-?\d+\}}?|[eE][-+]?\d+)?|\.\d+)(?:\s?\\?%)?"
)  # fmt: skip
_WORDED = re.compile(
    r"\b(?:" + "|".join(sorted(map(re.escape, NUMBER_WORDS), key=len, reverse=True)) + r")\b",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"(?<!\\)[^\W\d_]{2,}")


_TYPESET = re.compile(
    r"(?<=\d)(?:(?:\\[!,])*,(?:\\[!,])*(?=\d{3})|\{,\}(?=\d{3})|\\,(?=\d{3})"
    r"|\s*\\text\s*\{\s*to\s*\}\s*(?=\d)|\s*\\colon\s*(?=\d))"
)


def _plain_between(match: re.Match[str]) -> str:
    """Thousands commas and ratio colons between digits, without their typesetting."""
    return ":" if "to" in match.group() or "colon" in match.group() else ","


def last_value(text: str) -> str | None:
    """The last value that prose mentions: a formula, or a number with its fraction bar, percent
    sign, time or power of ten; a number word where there is no digit."""
    text = _TYPESET.sub(_plain_between, text[-MOST_LETTERS:])
    number, math = last(_VALUE, text), None
    for match in deque(_MATH.finditer(text), maxlen=3):
        inside = _inside(match)
        if re.search(r"\d|\\[a-z]|[A-Za-z]", inside):
            math = (match, inside)
    if math and (number is None or number.end() <= math[0].end()):
        inside = math[1].strip()
        if inside.count("=") > 1 and "," in inside:
            return inside.rstrip(".,")  # x = 5, y = 3
        return re.split(r"(?<![<>!\\:])=(?!=)", inside)[-1].strip().rstrip(".,") or inside
    if number:
        found = number.group().strip().replace("−", "-").removeprefix("+").strip()
        unit = MEASURE.match(text, number.end())
        return found + unit.group() if unit and "%" not in found else found
    word = last(_WORDED, text)
    return word.group() if word else None


def formula(text: str) -> str | None:
    """The last line where it holds no words: what stands behind its last `=`, or all of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" `*_$#\t")]
    if not lines:
        return None
    line = lines[-1].strip("`*_# \t").strip()
    if _LETTERS.search(re.sub(r"\\[A-Za-z]+|\\\(|\\\)", "", line)) or not re.search(r"[\w]", line):
        return None
    if not re.search(r"\d", line) and len(lines) > 1:
        return None
    math = _MATH.fullmatch(line)
    if math:
        line = _inside(math)
    return re.split(r"(?<![<>!\\:])=(?!=)", line)[-1].strip(" $.") or None


_CONCLUDES = re.compile(
    r"=|\b(?:so|thus|hence|therefore|total|altogether|finally|remain\w*|left|sum)\b", re.IGNORECASE
)
_BOLD_RESULT = re.compile(
    r"(?:\bis|\bare|\bequals|=|:)[ \t]+(?:\*\*([^*\n]{1,60})\*\*|__([^_\n]{1,60})__)[.!]?(?=\s|$)"
)


def emphasised(text: str) -> str | None:
    """The only thing in bold, where it is the value that a sentence ends with and what comes
    behind it is a remark: it draws no conclusion."""
    text = text[-MOST_LETTERS:]
    bold = list(_BOLD.finditer(text))
    found = last(_BOLD_RESULT, text)
    if len(bold) != 1 or not found or _CONCLUDES.search(text, found.end()):
        return None
    inside = (found.group(1) or found.group(2)).strip()
    return inside if re.search(r"\d", inside) and len(_LETTERS.findall(inside)) <= 2 else None


_TRUTH = r"(true|false|yes|no|valid|invalid)"
_SAID = re.compile(rf"\b(?:is|are|:)\s+[*_]{{0,3}}{_TRUTH}[*_]{{0,3}}[.!]?\s*$", re.IGNORECASE)
_FIRST = re.compile(rf"^[*_\s]{{0,4}}{_TRUTH}[*_]{{0,3}}(?:[,.!:]|\s*$)", re.IGNORECASE)


def truth(text: str) -> str | None:
    """Yes, no, true or false, where the last line ends or begins with it."""
    line = text.rstrip().rpartition("\n")[2][-2000:]
    found = _SAID.search(line) or _FIRST.match(line)
    return found and found.group(1)


def weak(text: str) -> str | None:
    """What stands after "the solution is", where it is a value."""
    for match in reversed(list(deque(_WEAK.finditer(text[-MOST_LETTERS:]), maxlen=10))):
        answer = answer_at(text[-MOST_LETTERS:][match.end() :][:2000])
        if answer and re.search(r"\d|\\", answer) and len(_LETTERS.findall(answer)) <= 2:
            return answer
    return None
