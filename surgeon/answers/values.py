r"""Answers by value: what `\frac12`, `0.5` and `1/2` have in common.

`value` reads one answer and gives its form, which says all that counts: equal forms are one answer,
whoever compares them with whom and in whichever order. Units, currency signs, `x =`, `about`,
thousands commas, spelling and letter case of words are no part of it; a unit is kept beside it, so
that 12 cm and 12 kg differ while both are 12.
"""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from surgeon.answers import expressions
from surgeon.answers.expressions import Unread
from surgeon.answers.forms import tidy


class Value(NamedTuple):
    """What an answer says."""

    form: str
    """Of its value; equal forms are one answer."""
    unit: str = ""
    """Of a number: `%`, `cm`, `$`, `am`; empty where none is written."""
    known: bool = True
    """Whether the form is that of a value or of plain words; else it is the text of an expression
    that is not understood, and another text may be equal to it."""


MOST_CHARACTERS = 2000
"""Of an answer whose value is looked for; a longer one is text."""
_MOST_PARTS = 200


@lru_cache(maxsize=1 << 17)
def value(answer: str) -> Value:
    """The value of an answer; never raises."""
    return Value(answer) if _MADE.fullmatch(answer) else _read(tidy(answer))


def canonical(answer: str) -> str:
    r"""The form under which an answer is counted: `\text{ 1,000.}` -> `1000`, `\frac12` -> `0.5`.

    Applying it twice changes nothing, and no answer becomes empty.
    """
    return value(answer).form or answer


def same(answer: str, other: str) -> bool:
    """Whether two answers are one: equal in form, and in their units where both have one.

    A percentage is equal to its number and to its share: 50% = 50 and 50% = 0.5.
    """
    one, two = value(answer), value(other)
    if one.form == two.form:
        return not one.unit or not two.unit or _one_unit(one.unit, two.unit)
    if _in_one_unit(one) == _in_one_unit(two) != "" or _of_the_day(one) == _of_the_day(two) != "":
        return True
    if _TIME.fullmatch(one.form) and not one.unit + two.unit and _shares(one, two):
        return True
    if _TIME.fullmatch(two.form) and not one.unit + two.unit and _shares(two, one):
        return True
    if _of_the_option(answer, two) or _of_the_option(other, one):
        return True
    if "=" in answer and "=" in other and _as_equation(answer) == _as_equation(other) != "":
        return True
    if (one.unit == "%") == (two.unit == "%"):
        return False
    percent, share = (one, two) if one.unit == "%" else (two, one)
    if share.unit:
        return False
    try:
        hundredth = expressions.constant(f"({percent.form})/100")
    except Unread:
        return False
    return expressions.written(hundredth) == share.form


def _one_unit(one: str, two: str) -> bool:
    """Whether two units may be one: a degree may be of any scale of temperature."""
    return one == two or ("degree" in (one, two) and {one, two} <= {"degree", "°c", "°f"})


def _of_the_option(answer: str, other: Value) -> bool:
    """Whether an answer such as (C) 24 gives beside its letter the number that the other is."""
    match = _CHOICE.fullmatch(tidy(answer))
    beside = match and match[2]
    if not beside or not re.search(r"\d", other.form):
        return False
    found = _read(tidy(beside))
    return found.form == other.form and (
        not found.unit or not other.unit or found.unit == other.unit
    )


_SCALES_OF = {
    "s": ("s", "1"), "min": ("s", "60"), "h": ("s", "3600"), "day": ("s", "86400"),
    "week": ("s", "604800"), "mm": ("m", "1/1000"), "cm": ("m", "1/100"), "m": ("m", "1"),
    "km": ("m", "1000"), "nm": ("m", "10^{-9}"), "µm": ("m", "10^{-6}"), "mg": ("g", "1/1000"),
    "g": ("g", "1"), "kg": ("g", "1000"), "ml": ("l", "1/1000"), "l": ("l", "1"),
    "m/s": ("m/s", "1"), "kmh": ("m/s", "5/18"), "j": ("j", "1"), "kj": ("j", "1000"),
    "w": ("w", "1"), "kw": ("w", "1000"), "mv": ("v", "1/1000"), "v": ("v", "1"),
    "ma": ("a", "1/1000"), "a": ("a", "1"), "cent": ("$", "1/100"), "$": ("$", "1"),
}  # fmt: skip
"""Unit -> the unit of the same quantity that it is counted in, and how many of it one is."""


def _in_one_unit(of: Value) -> str:
    """A quantity in its first unit, 15000 s for 250 min; empty for anything else."""
    unit, scale = _SCALES_OF.get(of.unit, ("", ""))
    if not unit:
        return ""
    try:
        return f"{expressions.written(expressions.constant(f'({of.form})*({scale})'))} {unit}"
    except Unread:
        return ""


def _of_the_day(of: Value) -> str:
    """A time that says which half of the day it is in, as one of 24 hours; empty otherwise."""
    match = _TIME.fullmatch(of.form)
    if not match or not match[1] or (not of.unit and int(match[1]) < 13):
        return ""
    later = 12 if of.unit == "pm" and int(match[1]) < 12 else 0
    return f"{(int(match[1]) + later) % 24 if of.unit else int(match[1])}:{match[2]}"


def _shares(clock: Value, other: Value) -> bool:
    """Whether 1:10, which may be a time, is the ratio that the other gives."""
    try:
        return expressions.fingerprint(clock.form.replace(":", "/", 1)) == other.form
    except Unread:
        return False


def _as_equation(text: str) -> str:
    """The form of y = 2x + 1 as an equation between x and y; empty where it is none."""
    parts = _split(tidy(text), _RELATION)
    if len(parts) != 2 or not all(parts):
        return ""
    try:
        tree = ("-", expressions.parse(parts[0]), expressions.parse(parts[1]))
        return _projective(tree, "=", signed=False).form if expressions.names(tree) else ""
    except Unread:
        return ""


_MADE = re.compile(r"value [0-9a-f]{20}")
"""A form of `expressions.mark`."""


def _read(text: str) -> Value:
    if len(text) > MOST_CHARACTERS:
        return Value(text, known=False)
    for reader in _READERS:
        try:
            found = reader(text)
        except Unread:
            continue
        if found is not None:
            return found
    return _words(text)


def _form(text: str) -> str:
    return _read(text.strip()).form


# --- words, dates, times --------------------------------------------------------------------------

_CHOICE = re.compile(r"\(?([A-J])[).:]\)?(?:\s+(\S.*))?|\(([A-J])\)", re.DOTALL)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATES = (
    re.compile(rf"{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?", re.IGNORECASE),
    re.compile(rf"(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? (\d{{4}}))?", re.IGNORECASE),
    re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})"),
)
_TIME = re.compile(
    r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s*(?:([ap])\.?\s*m\.?|noon))?|(\d{1,2})\s*([ap])\.?\s*m\.?",
    re.IGNORECASE,
)
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBER_WORDS = {word: n for n, word in enumerate(_ONES)}
NUMBER_WORDS |= {word: 10 * (n + 2) for n, word in enumerate(_TENS)}
NUMBER_WORDS |= {
    f"{ten}{between}{one}": 10 * (t + 2) + n
    for t, ten in enumerate(_TENS)
    for n, one in enumerate(_ONES[:10])
    if n
    for between in (" ", "-")
}
PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
"""Of a whole, in the singular (two thirds)."""
NUMBER_WORDS |= {"one hundred": 100, "a hundred": 100, "hundred": 100, "one thousand": 1000}
_PLAIN_WORDS = re.compile(r"[^\W\d_]{3,}[^\\{}=<>+*/^\d$]*|(?i:no|so|on|is|in|at|of|or|up|us|we)")
_KEPT_AS_IT_IS = re.compile(r"[0-9A-F]+_\{?([0-9]{1,2})\}?")


def _choice(text: str) -> Value | None:
    """(B), B) Paris, B. Paris: the letter."""
    match = _CHOICE.fullmatch(text)
    return match and Value(match[1] or match[3])


_ELEMENTS = (
    "H|He|Li|Be|B|C|N|O|F|Ne|Na|Mg|Al|Si|P|S|Cl|Ar|K|Ca|Sc|Ti|V|Cr|Mn|Fe|Co|Ni|Cu|Zn|Ga|Ge|As|Se|"
    "Br|Kr|Rb|Sr|Y|Zr|Nb|Mo|Ag|Cd|In|Sn|Sb|Te|I|Xe|Cs|Ba|La|Ce|W|Pt|Au|Hg|Tl|Pb|Bi|U"
)
_CHEMICAL = re.compile(rf"(?:(?:{_ELEMENTS}|\(|\))\d*)+(?:\^[\d+-]{{1,3}})?")
_CHEMISTRY = re.compile(r"\\(?:ce|mathrm|text)(?=\s*\{)|[_{}]")


def _chemical(text: str) -> Value | None:
    r"""H_2SO_4, \ce{SO4^2-}: the formula without its typesetting."""
    plain = _CHEMISTRY.sub("", text).strip()
    if not _CHEMICAL.fullmatch(plain) or len(re.findall("[A-Z]", plain)) < 2:
        return None
    return (
        Value(plain) if re.search(r"\d", plain) and plain.count("(") == plain.count(")") else None
    )


_NOTHING = re.compile(
    r"(?:dne|(?:(?:the|this) (?:limit|value|sum|integral) )?(?:does not|doesn't) exist)",
    re.IGNORECASE,
)


def _nothing(text: str) -> Value | None:
    """DNE: what is asked for does not exist."""
    return Value("does not exist") if _NOTHING.fullmatch(text.replace("’", "'")) else None


def _date(text: str) -> Value | None:
    for n, pattern in enumerate(_DATES):
        match = pattern.fullmatch(text)
        if not match:
            continue
        if n == 2:
            year, month, day = map(int, match.groups())
            return Value(f"{year}-{month}-{day}")
        name, day = match.groups()[:2] if n == 0 else match.groups()[1::-1]
        month = _MONTHS.index(name.lower()[:3]) + 1
        return Value(f"{match[3] or ''}-{month}-{int(day)}")
    return None


def _time(text: str) -> Value | None:
    match = _TIME.fullmatch(text)
    if not match:
        return None
    hour, minute = int(match[1] or match[5]), int(match[2] or 0)
    if hour > 24 or minute > 59:
        return None
    half = (match[4] or match[6] or "").lower()
    seconds = f":{match[3]}" if match[3] else ""
    return Value(f"{hour}:{minute:02d}{seconds}", f"{half}m" if half else "")


def _base(text: str) -> Value | None:
    """1101_2 stays a numeral: the question was for one."""
    match = _KEPT_AS_IT_IS.fullmatch(text)
    return match and Value(f"{text.partition('_')[0]}_{match[1]}")


_DURATION = re.compile(
    r"(?:(\d+)\s*(?:hours?|hrs?|h)\b)\s*(?:,|and)?\s*(?:(\d+)\s*(?:minutes?|mins?|m)\b)",
    re.IGNORECASE,
)


def _duration(text: str) -> Value | None:
    """2 hours 30 minutes, in minutes."""
    match = _DURATION.fullmatch(text)
    return match and Value(str(60 * int(match[1]) + int(match[2])), "min")


def _number_word(text: str) -> Value | None:
    number = NUMBER_WORDS.get(text.casefold())
    if number is not None:
        return Value(str(number))
    count, _, part = text.casefold().replace("-", " ").partition(" ")
    whole = PARTS.get(part.removesuffix("s"))
    number = 1 if count == "a" else NUMBER_WORDS.get(count)
    return Value(expressions.fingerprint(f"{number}/{whole}")) if whole and number else None


def _plain_words(text: str) -> Value | None:
    # A comma or an "and" between words makes a list, unless it is a sentence.
    if not _PLAIN_WORDS.fullmatch(text):
        return None
    first = re.match(r"[A-Za-z]+", text)
    if first and expressions.is_function(first.group()):
        return None
    if ("," in text or " and " in text or " or " in text) and len(text.split()) < 12:
        return None
    return _words(text)


def _words(text: str) -> Value:
    folded = " ".join(text.split()).strip(".!?'\" ")
    if len(folded) > 1:
        folded = folded.casefold()
    folded = re.sub(r"^(?:the|an|a) (?=\w{3})", "", folded)
    math = re.search(r"[\\^_=<>+*/|{}]|\d\s*[A-Za-z(]", text)
    return Value(folded or text, known=not math or len(text) > MOST_CHARACTERS)


# --- several values -------------------------------------------------------------------------------

_OPEN, _CLOSE = "([{", ")]}"
_BRACKET = re.compile(r"\\langle(?![a-z])|\\rangle(?![a-z])|\\[lr]brace(?![a-z])|\\[{}]|[\[\](){}]")
_AND = re.compile(
    r"\s*[,;]\s*(?:and|or)\s+|\s+(?:and|or)\s+|\s*[,;]\s*|\s*\\quad\s*|\s*(?:、|，)\s*"
)
_EMPTY = re.compile(r"\\emptyset|\\varnothing|∅|\\\{\s*\\\}|\{\}")
_CUP = re.compile(r"\\cup(?![a-z])|∪")
_PLUS_MINUS = re.compile(r"\\pm(?![a-z])|±|\+/-|\+-")
_MINUS_PLUS = re.compile(r"\\mp(?![a-z])|∓")
_MATRIX = re.compile(
    r"\\begin\s*\{([bpvBV]?(?:small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)"
    r"\\end\s*\{\1\}", re.DOTALL,
)  # fmt: skip
_INFINITE = re.compile(r"([+-]?)\s*(?:\\infty|∞|\\text\s*\{\s*infinity\s*\}|infinity|inf)")


def _depths(text: str) -> Iterator[tuple[int, int, str, int]]:
    """(Start, end, bracket, depth outside of it) of every bracket."""
    depth = 0
    for match in _BRACKET.finditer(text):
        token = match.group()
        opens = token in ("\\langle", "\\lbrace", "\\{") or token in _OPEN
        depth -= not opens
        yield match.start(), match.end(), token, depth
        depth += opens


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The parts between the pattern's matches that stand outside of all brackets."""
    spans: list[tuple[int, int]] = []
    inside = [(s, d) for s, _, _, d in _depths(text)]
    if inside and min(d for _, d in inside) < 0:
        return [text]
    start, at, depth = 0, 0, 0
    opens = [(s, e, token, d) for s, e, token, d in _depths(text)]
    for match in pattern.finditer(text):
        while at < len(opens) and opens[at][0] < match.start():
            token = opens[at][2]
            depth = opens[at][3] + (token in ("\\langle", "\\lbrace", "\\{") or token in _OPEN)
            at += 1
        if depth == 0:
            spans.append((start, match.start()))
            start = match.end()
    return [text[a:b].strip() for a, b in [*spans, (start, len(text))]]


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(Opening, inside, closing) of a text that stands in one pair of brackets."""
    brackets = list(_depths(text))
    if len(brackets) < 2 or brackets[0][0] != 0 or brackets[-1][1] != len(text):
        return None
    if any(depth == 0 for _, _, _, depth in brackets[1:-1]) or brackets[-1][3] != 0:
        return None
    (_, begin, opening, _), (end, _, closing, _) = brackets[0], brackets[-1]
    return opening, text[begin:end].strip(), closing


def _distinct(parts: list[str]) -> str:
    return "{" + ", ".join(sorted(set(parts))) + "}"


def _empty(text: str) -> Value | None:
    return Value("{}") if _EMPTY.fullmatch(text) else None


def _bracketed(text: str) -> Value | None:
    """Sets, tuples, intervals."""
    found = _enclosed(text)
    if found is None:
        return None
    opening, inside, closing = found
    parts = [part for part in _split(inside, _AND) if part]
    if len(parts) > _MOST_PARTS or ("|" in inside and "\\mid" in inside):
        return None
    if opening in ("\\{", "\\lbrace") or (opening == "{" and len(parts) > 1):
        forms = [_form(part) for part in parts]
        return (
            (Value(_distinct(forms)) if len(set(forms)) > 1 else _read(parts[0])) if parts else None
        )
    if opening == "{" or len(parts) < 2:
        return _read(inside) if opening in "({" and inside and len(parts) == 1 else None
    left = "(" if opening == "\\langle" else opening
    right = ")" if closing == "\\rangle" else closing
    return Value(f"{left}{', '.join(_form(part) for part in parts)}{right}")


def _union(text: str) -> Value | None:
    parts = _split(text, _CUP)
    if len(parts) < 2:
        return None
    forms = {
        f"{{{_form(part)}}}" if part.startswith("\\{") and "," not in part else _form(part)
        for part in parts
    }
    if all(_MEMBERS.fullmatch(form) for form in forms):
        return Value(_distinct([member for form in forms for member in _members(form)]))
    return Value(" ∪ ".join(sorted(forms)))


def _plus_minus(text: str) -> Value | None:
    if not _PLUS_MINUS.search(text):
        return None
    both = [_MINUS_PLUS.sub(lower, _PLUS_MINUS.sub(upper, text)) for upper, lower in ("+-", "-+")]
    return Value(_distinct([_form(part) for part in both]))


def _list(text: str) -> Value | None:
    """Values beside each other, in any order; those of several named unknowns keep the names."""
    parts = [part for part in _split(text, _AND) if part]
    if not 1 < len(parts) <= _MOST_PARTS:
        return None
    if any(len(part.split()) > 6 for part in parts):
        return None
    names = {m[1] for part in parts if (m := _ASSIGNED.match(part))}
    if len(names) > 1:
        return Value(_distinct([_named(part) for part in parts]))
    found = [_read(part) for part in parts]
    if len({of.unit for of in found} - {""}) == len(parts):  # 5 apples and 12 oranges
        return Value(_distinct([f"{of.form} {of.unit}" for of in found]))
    forms = [form for of in found for form in _members(of.form)]
    return Value(_distinct(forms)) if len(set(forms)) > 1 else _read(parts[0])


def _members(form: str) -> list[str]:
    # 1, \pm 2 is three values.
    return form[1:-1].split(", ") if _MEMBERS.fullmatch(form) else [form]


_MEMBERS = re.compile(r"\{[^(){}\[\]]+\}")


def _named(part: str) -> str:
    match = _ASSIGNED.match(part)
    return f"{match[1]} = {_form(part[match.end() :])}" if match else _form(part)


def _matrix(text: str) -> Value | None:
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    cells = [[_form(cell) for cell in row.split("&")] for row in rows]
    return Value("[" + "; ".join(", ".join(row) for row in cells) + "]")


def _infinity(text: str) -> Value | None:
    match = _INFINITE.fullmatch(text)
    return match and Value("-∞" if match[1] == "-" else "∞")


# --- relations ------------------------------------------------------------------------------------

_NAME = r"(?:[A-Za-z]|\\(?!frac|sqrt)[a-z]+)(?:_\{?\w+\}?)?(?:\^\{-1\})?'?(?:\(\s*[A-Za-z\d]\s*\))?"
_ASSIGNED = re.compile(rf"({_NAME})\s*(?:=|\\approx(?![a-z])|≈|:=)\s*(?=\S)")
_LHS_WORDS = re.compile(r"[A-Za-z][A-Za-z ]*[A-Za-z]")
_RELATION = re.compile(
    r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne|in|approx)(?![a-z])|<=|>=|!=|[<>=≤≥≠∈≈]"
)
_SIGNS = {
    "\\leqslant": "≤", "\\leq": "≤", "\\le": "≤", "<=": "≤", "\\geqslant": "≥", "\\geq": "≥",
    "\\ge": "≥", ">=": "≥", "\\lt": "<", "\\gt": ">", "\\neq": "≠", "\\ne": "≠", "!=": "≠",
    "\\in": "∈", "\\approx": "=", "≈": "=",
}  # fmt: skip
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}


def _relation(text: str) -> Value | None:
    parts = _split(text, _RELATION)
    if len(parts) < 2 or len(parts) > 6:
        return None
    signs: list[str] = []
    rest = text
    for part in parts[:-1]:
        rest = rest[rest.index(part) + len(part) :] if part else rest
        match = _RELATION.search(rest)
        assert match
        signs.append(_SIGNS.get(match.group(), match.group()))
        rest = rest[match.end() :]
    if not parts[-1]:
        return None
    if not parts[0]:
        # "= 12", "≈ 2.7"
        return _read(parts[-1]) if set(signs) == {"="} else None
    if not all(parts):
        return None
    if set(signs) == {"="}:
        return _equation(parts)
    if signs == ["∈"]:
        return _read(parts[1])
    return _inequality(parts, signs)


def _equation(parts: list[str]) -> Value | None:
    lone = re.fullmatch(_NAME, parts[0]) or _LHS_WORDS.fullmatch(parts[0])
    if lone:
        return _read(parts[-1])
    if len(parts) == 2 and re.fullmatch(_NAME, parts[1]):
        return _read(parts[0])
    if len(parts) == 2 and _names_in_order(parts[0]) and _enclosed(parts[1]):
        return _read(parts[1])
    right = expressions.parse(parts[-1])
    try:
        left = expressions.parse(parts[0])
    except Unread:  # the length of a side, the probability of an event
        return _read(parts[-1]) if len(parts[0]) < 40 else None
    if not expressions.names(left) | expressions.names(right):
        return _read(parts[-1])
    # One equation up to a factor: the difference of its sides, as shares of the first place's.
    return _projective(("-", left, right), "=", signed=False)


def _names_in_order(text: str) -> bool:
    """(x, y) or (r, \\theta): the order that a bare tuple of their values is read in."""
    found = _enclosed(text)
    names = _split(found[1], _AND) if found and found[0] == "(" else []
    plain = [name.lstrip("\\") for name in names if re.fullmatch(_NAME, name)]
    return len(plain) == len(names) > 1 and plain == sorted(plain)


def _projective(tree: expressions.Tree, sign: str, *, signed: bool) -> Value:
    found = expressions.values(tree)
    size = found[0]
    if size == 0:
        raise Unread
    if signed:
        size = abs(size)
    shares = [expressions.written(expressions.ratio(x, size)) for x in found]
    return Value(expressions.mark([sign, *shares]))


def _inequality(parts: list[str], signs: list[str]) -> Value | None:
    if len(parts) == 2 and re.fullmatch(_NAME, parts[1]) and not re.fullmatch(_NAME, parts[0]):
        parts, signs = parts[::-1], [_TURNED[signs[0]]] if signs[0] in _TURNED else signs
    if len(parts) == 2 and re.fullmatch(_NAME, parts[0]):
        bound = _form(parts[1])
        return Value(
            {
                "<": f"(-∞, {bound})", "≤": f"(-∞, {bound}]", ">": f"({bound}, ∞)",
                "≥": f"[{bound}, ∞)", "≠": f"≠ {bound}",
            }[signs[0]]
        )  # fmt: skip
    if len(parts) == 3 and re.fullmatch(_NAME, parts[1]):
        if set(signs) <= {">", "≥"}:
            parts, signs = parts[::-1], [_TURNED[sign] for sign in signs[::-1]]
        if set(signs) <= {"<", "≤"}:
            left, right = "(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]"
            return Value(f"{left}{_form(parts[0])}, {_form(parts[2])}{right}")
    if len(parts) != 2 or signs[0] not in _TURNED:
        return None
    sides = [expressions.parse(part) for part in parts]
    if signs[0] in "<≤":
        sides, signs = sides[::-1], [_TURNED[signs[0]]]
    return _projective(("-", *sides), signs[0], signed=signs[0] != "≠")


# --- one number -----------------------------------------------------------------------------------

_UNIT_NAMES = {
    "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre",
    "m": "meter metre", "in": "inch inche", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "kg": "kilogram kilo", "g": "gram", "mg": "milligram", "lb": "pound lbs", "oz": "ounce",
    "l": "liter litre L", "ml": "milliliter millilitre mL", "s": "second sec", "min": "minute",
    "h": "hour hr", "day": "day", "week": "week", "month": "month", "year": "year yr",
    "$": "dollar usd us$", "cent": "cent ¢", "€": "euro eur", "£": "gbp", "%": "percent percentage",
    "degree": "degree deg °", "radian": "radian rad", "°c": "degreescelsius celsius",
    "°f": "degreesfahrenheit fahrenheit", "mph": "", "nm": "nanometer nanometre",
    "µm": "micrometer micrometre", "kj": "kilojoule", "kw": "kilowatt",
    "ma": "milliampere milliamp", "mv": "millivolt", "m/s": "meterspersecond",
    "n": "newton", "j": "joule", "w": "watt", "v": "volt", "a": "ampere amp", "k": "kelvin",
    "hz": "hertz", "pa": "pascal", "mol": "mole", "kmh": "km/h",
}  # fmt: skip
_UNIT = {alias: name for name, words in _UNIT_NAMES.items() for alias in (name, *words.split())}
_LENGTHS = ("cm", "mm", "km", "m", "in", "ft", "yd", "mi")
UNITS = frozenset(_UNIT.values()) - {"degree"}
UNITS |= {length + power for length in _LENGTHS for power in "²³"}
"""Whose names are known, so that two of them are two units (a degree may be of any scale)."""
_SHORT_UNITS = r"[mgslLhNJWVAK]"
_LONG_UNITS = (
    r"(?:cm|mm|km|kg|mg|ml|mL|ft|in|lbs?|oz|min|hrs?|sec|mph|yd|mi|Hz|Pa|mol|rad|deg|nm|µm|kJ|kW|"
    r"mA|mV)"
)
_TAIL = re.compile(
    r"\s*(?:(?P<sign>\\?%|％|\\?\$|€|£|¥|¢|°\s*[CF]?(?![a-z])|\^\s*\{?\s*\\circ\s*\}?\s*[CF]?(?![a-z])"
    r"|\\degree[s]?)|(?P<word>"
    rf"(?:(?<=[\d\s)}}])(?:{_LONG_UNITS}(?![A-Za-z])|(?!(?:and|or|mod|over|sin|cos|tan|log|ln)\b)"
    r"[^\W\d_]{3,})"
    rf"|(?<=\s){_SHORT_UNITS}(?![A-Za-z(]))"
    r"(?:\s*(?:\^\s*\{?-?\d\}?|[²³]|/|\.|-|·|\\cdot|per\b|of\b)?\s*\(?[^\W\d_]*\)?)*+))\s*$"
)
MEASURE = re.compile(
    r"[ ]?(?:(?:square|cubic) )?(?:"
    + "|".join(
        sorted(
            (re.escape(a) for a in _UNIT if a[0].isalpha() and len(a) > 1), key=len, reverse=True
        )
    )
    + r"|[gmLAJNVW](?![A-Za-z(])|°\s?[CF])s?(?:\^?[23²³])?(?![A-Za-z])"
    r"(?:\s?(?:/|per)\s?(?:hours?|h|minutes?|min|seconds?|s|days?|weeks?|years?|cm|m|km|L|mL|kg|mol)"
    r"(?:\^?[23²³])?(?![A-Za-z]))?",
    re.IGNORECASE,
)
"""A unit whose name is known, behind a number."""
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
_HEAD = re.compile(
    r"(?:(?:the )?(?:(?:final )?answer|solution|result)\s*(?:[:=]|is\b)\s*|(?:about|approximately|approx\.?|around|roughly|exactly|nearly|only|just|equal to|equals|"  # noqa: E501
    r"therefore|thus|simply|a total of|total of)\s+|(?:\\approx(?![a-z])|≈|~|\\sim(?![a-z])|=)\s*)+",  # noqa: E501
    re.IGNORECASE,
)  # fmt: skip
_CURRENCY = re.compile(r"(-?)\s*(US\s*\\?\$|\\?\$|€|£|¥|₹|Rs\.?|USD|EUR)\s*(?=[\d.-])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED = re.compile(
    r"(-?)(\d{1,3}(?:[ '’_]\d{3})+|\d{1,3}(?:\.\d{3}){2,}|\d{1,2}(?:,\d{2})+,\d{3})(\.\d+)?"
)
_RATIO = re.compile(r"(-?[\d.]+|[\d./]+)\s*(?::|\\colon|\bto\b)\s*(-?[\d.]+|[\d./]+)")
_RATIOS = re.compile(r"\d+(?:\s*:\s*\d+){2,}")


def _ungrouped(text: str) -> str:
    """Without thousands commas, outside of brackets: (1,234) stays a pair."""
    brackets = [(start, depth) for start, _, _, depth in _depths(text)]
    if "," not in text or (brackets and min(depth for _, depth in brackets) < 0):
        return text

    def plain(match: re.Match[str]) -> str:
        before = [b for b in _depths(text) if b[0] < match.start()]
        opened = bool(before) and before[-1][3] + (before[-1][2][-1] in "([{e") > 0
        return match.group() if opened else match.group().replace(",", "")

    return _THOUSANDS.sub(plain, text)


_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(
    rf"(-?\s*(?:{_CURRENCY.pattern})?)([\d,]*\d(?:\.\d+)?|[a-z]+(?:[ -][a-z]+)?)\s*"
    rf"\b({'|'.join(_SCALES)})\b(.*)",
    re.IGNORECASE | re.DOTALL,
)


def _scaled(text: str) -> Value | None:
    """3.5 million, $2 billion, five thousand dollars: the whole number, with its unit."""
    match = _SCALED.fullmatch(text)
    if not match:
        return None
    size = NUMBER_WORDS.get(match[4].casefold(), match[4].replace(",", ""))
    try:
        number = Decimal(size).scaleb(_SCALES[match[5].lower()])
    except InvalidOperation:
        return None
    return _read(f"{match[1]}{number:f}{match[6]}")


def _prefixed(text: str) -> Value | None:
    head = _HEAD.match(text)
    return _read(text[head.end() :]) if head and head.end() < len(text) else None


def _grouped(text: str) -> Value | None:
    plain = _ungrouped(text)
    return _read(plain) if plain != text else None


def _spaced(text: str) -> Value | None:
    match = _SPACED.fullmatch(text)
    return match and _read(match[1] + re.sub(r"\D", "", match[2]) + (match[3] or ""))


def _ratio(text: str) -> Value | None:
    match = _RATIO.fullmatch(text)
    if match:
        return Value(expressions.written(expressions.constant(f"({match[1]})/({match[2]})")))
    if _RATIOS.fullmatch(text):
        parts = [int(part) for part in text.split(":")]
        shared = max(gcd(*parts), 1)
        return Value(":".join(str(part // shared) for part in parts))
    return None


def _money(text: str) -> Value | None:
    match = _CURRENCY.match(text)
    if not match:
        return None
    inner = _read(match[1] + text[match.end() :])
    unit = _unit_of(match[2].replace("\\", ""))
    return inner._replace(unit=unit) if inner.unit in ("", unit) else inner


def _unit_of(text: str) -> str:
    plain = re.sub(r"[\\\s{}().]|text|mathrm", "", text).casefold()
    plain = plain.replace("^circ", "°").replace("°c", "°c").replace("\\", "")
    if plain in ("°", "degrees"):
        return "degree"
    for power, marks in (
        ("²", ("square", "sq", "squared", "²", "^2")),
        ("³", ("cubic", "cubed", "³", "^3")),
    ):
        for mark in marks:
            rest = plain.removeprefix(mark) if mark[0].isalpha() else plain.removesuffix(mark)
            rest = rest.removesuffix(mark)
            if rest not in (plain, "") and _unit_of(rest) in UNITS:
                return _unit_of(rest) + power
    single = plain.removesuffix("s") if len(plain) > 3 else plain
    for before, after in (("milesperhour", "mph"), ("kilometersperhour", "kmh"), ("km/h", "kmh")):
        if plain == before:
            return after
    return _UNIT.get(plain) or _UNIT.get(single) or single.replace("^2", "²").replace("^3", "³")


def _with_unit(text: str) -> Value | None:
    """A number and the words behind it."""
    for start in _tail_starts(text):
        match = _TAIL.match(text, start)
        if not match or not text[:start].strip():
            continue
        head = text[:start].strip()
        if NUMBER_WORDS.get(head.casefold()) is not None:
            return Value(str(NUMBER_WORDS[head.casefold()]), _unit_of(match.group()))
        if match["sign"] and _TRIGONOMETRIC.search(head):
            continue
        try:
            expressions.constant(head)
        except Unread:
            inner = _money(head) or _ratio(head) or _spaced(head)
            if inner is None:
                continue
            return inner._replace(unit=_unit_of(match.group()))
        return Value(expressions.written(expressions.constant(head)), _unit_of(match.group()))
    return None


def _tail_starts(text: str) -> list[int]:
    """Where a unit may begin, the first few."""
    starts = re.finditer(
        r"\s*(?:\\?%|％|°|\^|\\degree|€|£|¥|¢|\\?\$|(?<![\\A-Za-z])[^\W\d_])", text
    )
    return [match.start() for match, _ in zip(starts, range(8), strict=False)]


def _expression(text: str) -> Value | None:
    return Value(expressions.fingerprint(text))


_READERS: tuple[Callable[[str], Value | None], ...] = (
    _choice, _nothing, _date, _time, _duration, _base, _number_word, _chemical,
    _scaled, _plain_words, _prefixed, _infinity, _empty,
    _matrix, _grouped, _spaced, _ratio, _money, _bracketed, _union, _with_unit, _expression,
    _plus_minus, _list, _relation,
)  # fmt: skip
"""In the order in which they are asked."""
