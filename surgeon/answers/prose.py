"""What belongs to an answer in plain prose, and what is a remark, a check, or another question."""

import re

from surgeon.answers.values import MEASURE, NUMBER_WORDS, PARTS

TAIL = 200
"""Characters of a response's end in which the marks of a turn's end are looked for."""
_SPECIAL = re.compile(r"(?:\s*(?:<\|[a-z_]{2,30}\|>|</s>|<eos>|<end_of_turn>))+\s*$")
"""What a model ends its turn with, where a decoder has left it in the text."""
_QUOTE_MARKS = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_ANOTHER = re.compile(
    r"\n\s{0,9}(?:Q|Question|Input|Problem|Exercise|Example)[ \t]?\d{0,3}[ \t]?[:.][ \t]"
)
"""A base model goes on with the next question of its own."""
_SENTENCE = re.compile(r"(?<=[.!?])[\"'*)]{0,3}\s+(?=[\"'*(“]{0,3}[A-Z])|\n+")
_CHECK = re.compile(
    r"(?:^|(?<=[\s*_]))(?:check(?:ing)?[ \t]?[:*]|let(?:'|’| u)s (?:verify|check|double)|"
    r"to (?:double[- ]?check|verify)\b|we can (?:verify|check)|verification\b|"
    r"you can (?:check|verify))",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(r"\b(?:so|thus|therefore|hence|answer|finally)\b", re.IGNORECASE)
_REMARK = re.compile(
    r"[\"'*(]{0,3}(?:(?:This|That) is (?:also|a typical|why|because|known|listed|the same)\b"
    r"|It is (?:also|about [\d.,]+ times|worth|known|named)\b|If you\b"
    r"|For (?:comparison|reference)\b|By (?:the way|contrast|comparison)\b|In comparison\b"
    r"|Incidentally\b|Interestingly\b|Note\b"
    r"|Fun fact\b|Feel free\b|Let me know\b|Please\b|I hope\b|You can\b"
    r"|At (?:that|this) (?:speed|rate|pace|price)\b"
    r"|I (?:ordered|used|counted|sorted|took|checked|computed)\b"
    r"|With [^.]{1,60}?\b(?:could|would)\b)"
)
_NOT_THIS = re.compile(
    r"(?:,|\s[—–-]|\s\()\s?(?:and\s)?not\s(?!equal|includ|in\b|more|less|exceed|even\b|only\b|just\b)"
    r"[^,;()\n]{1,60}\)?(?=[.!*\s]*$)"
)
"""48 km/h, not 45 km/h."""
_REFUSES = re.compile(
    r"\b(?:it depends|depends on|isn(?:'|’)t a unique|is no unique|"
    r"can(?:not|(?:'|’)t) be (?:determined|answered)|not enough information|"
    r"don(?:'|’)t have (?:access|enough)|unable to)\b",
    re.IGNORECASE,
)


def own(text: str) -> str:
    """The answer's own text: without marks of a turn's end, quotation marks of lines, and the
    questions that a model asks itself afterwards."""
    text = text[:-TAIL] + _SPECIAL.sub("", text[-TAIL:])
    if text.lstrip().startswith(">"):
        text = _QUOTE_MARKS.sub("", text)
    another = _ANOTHER.search(text)
    if another and re.search(r"\d", text[: another.start()]):
        text = text[: another.start()]
    return text


def without_remarks(text: str) -> str:
    """The text without a check at its end and the remarks behind its answer."""
    number = re.search(r"\d", text)
    if number:
        conclusions = [found.end() for found in _CONCLUDES.finditer(text)]
        check = _CHECK.search(text, max([number.end(), *conclusions[-1:]]))
        text = text[: check.start()] if check else text
    parts = _sentences(text)
    while len(parts) > 1 and _REMARK.match(parts[-1][1]):
        parts.pop()
    text = text[: parts[-1][0] + len(parts[-1][1])] if parts else text
    return text[:-TAIL] + _NOT_THIS.sub("", text[-TAIL:])


def refuses(text: str) -> bool:
    """Whether the last sentence says that there is no answer."""
    parts = _sentences(text)
    return bool(parts) and bool(_REFUSES.search(parts[-1][1]))


def _sentences(text: str) -> list[tuple[int, str]]:
    """(Begin, sentence) of all that holds a letter or a digit."""
    found, start = [], 0
    for match in [*_SENTENCE.finditer(text), None]:
        end = match.start() if match else len(text)
        part = text[start:end]
        if re.search(r"\w", part):
            found.append((start + len(part) - len(part.lstrip()), part.strip()))
        start = match.end() if match else end
    return found


# --- values of several words ----------------------------------------------------------------------

_N = r"[-−]?\d+(?:[.,]\d+)*(?:/\d+)?"
_ASSIGNED = r"[a-zA-Z]\s?=\s?" + _N
_APPROXIMATE = re.compile(
    r"\*{0,2}[ \t]?(?:\((?:≈|about|approximately|roughly|or about)|"
    r",? or (?:about|approximately|roughly)|≈)"
    r"[ \t]?[\d.,]{1,20}[ \t]?%?\)?[ \t]?\.?\*{0,2}\.?$"
)
_CLOSED = r"(?: in (?:its )?(?:lowest|simplest) (?:terms|form))?[*$\s]{0,4}[.!]?[*$\s]{0,4}$"
_UNIT = rf"(?i:{MEASURE.pattern}| (?:square |cubic )?units?)?"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|"
    r"Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
_SHAPES = tuple(
    re.compile(pattern + _CLOSED)
    for pattern in (
        rf"(?<![\w=])({_ASSIGNED}(?:,? (?:and|or) {_ASSIGNED}|, {_ASSIGNED})+)",
        r"(?<=\s)([(\[][^()\[\]A-Za-z]{1,40},[^()\[\]A-Za-z]{1,40}[)\]])",
        r"\bratio (?:of )?(\d+ to \d+)",
        r"(?i:(?<![\w.])(\d+ hours?(?:,| and)? \d+ minutes?))",
        r"(?i:\b(\d{1,2}(?:st|nd|rd|th) of [A-Z][a-z]{2,8}(?:,? \d{4})?))",
        rf"\b({_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)",
        rf"(?<![\w.])(\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?:,? \d{{4}})?)",
        r"(?<![\w-])(\d{4}-\d{2}-\d{2})",
        r"(?<![\w.:])(\d{1,2}(?::\d{2})?\s?[ap]\.?m\.?)",
        r"(?<![\w.:/-])(\d+ ?: ?\d+)",
        rf"(?:^|(?<=\s))([a-zA-Z] ?(?:≥|≤|<=|>=|<|>|≠) ?{_N})",
        rf"(?<![\w.])(\d*(?:√\d+|√\(\d+\)|π)(?:/\d+)?{_UNIT})",
        rf"(?<![\w.])(\d+(?:\.\d+)? ?[×x] ?10[⁻⁰¹²³⁴-⁹]+{_UNIT})",
        r"(?<![\w.])(\$?\d+(?:\.\d+)? (?:hundred|thousand|million|billion|trillion)(?: [a-z]+)?)",
        r"\b((?i:mon|tues|wednes|thurs|fri|satur|sun)day)",
        r"(\*\*\d+ [a-z]+\*\* and \*\*\d+ [a-z]+\*\*)",
    )
)
_FEW = "|".join(word for word, n in NUMBER_WORDS.items() if 0 < n < 11)
_FRACTIONS = re.compile(
    rf"\b((?:{_FEW})[ -](?:{'|'.join(PARTS)})s?)" + _CLOSED,
    re.IGNORECASE,
)
_SO_WORD = re.compile(
    rf"\b(?:so|leaving|thus|therefore)\b[^\d\n.]{{0,20}}?\b({'|'.join(NUMBER_WORDS)})\b[^\d\n.]*\.?\s*$",
    re.IGNORECASE,
)
_THERE_ARE = re.compile(
    rf"(?:(?:so|thus|hence|therefore),? )?there (?:are|is) ({_N})\s[^=\d]", re.IGNORECASE
)
_NEEDED = re.compile(
    rf"(?:so|thus|hence|therefore),? ({_N}) [^=\d,]{{1,60}}?(?:is|are) (?:needed|required|left)\b",
    re.IGNORECASE,
)


def shaped(text: str) -> str | None:
    """The answer of several words that the text ends with: x = 2 or x = 5, a tuple, a ratio, a
    date, a duration, a multiple of a root; or the number that its last sentence begins with."""
    parts = _sentences(text[-4000:])
    if not parts:
        return None
    sentence = parts[-1][1]
    exact = _APPROXIMATE.sub("", sentence)
    for shape in (*_SHAPES, _FRACTIONS):
        if found := shape.search(exact):
            return found.group(1).replace("**", "")
    if exact != sentence:
        found = re.search(rf"({_N}){_CLOSED}", exact)
        return found and found.group(1)
    for begin in (_THERE_ARE, _NEEDED):
        if (found := begin.match(sentence)) and not re.search(r",\s(?:so|which|and)\b|;", sentence):
            return found.group(1)
    found = _SO_WORD.search(sentence)
    return found and found.group(1)


_DENIED = re.compile(
    r"[*_]{0,3}(yes|no|true|false)[*_]{0,3}[,.:]\s+[^\d\n]{3,120}?,?\s+(?:because|since|as|for)\s",
    re.IGNORECASE,
)
_NONE = re.compile(
    r"\b((?:no (?:(?:real|integer|rational|positive|such) )?(?:solutions?|roots?|zeros))|"
    r"(?:does not|doesn(?:'|’)t) exist)[.!*$\s]*$",
    re.IGNORECASE,
)


def denied(text: str) -> str | None:
    """The verdict of a single sentence that gives its reason, and what says that nothing is there:
    no real solutions, does not exist."""
    parts = _sentences(text)
    if len(parts) == 1 and (found := _DENIED.match(parts[0][1])):
        return found.group(1)
    found = _NONE.search(parts[-1][1]) if parts else None
    return found and found.group(1)


_EMPHASIS = re.compile(r"\*\*([^*\n]{1,60})\*\*|(?<![*\w])\*([^*\n]{1,60})\*(?![*\w])")
_COPULA = re.compile(
    r".{3,120}?\b(?:is|was|are|were)(?: (?:called|named|known as))?\s+(?P<what>[^.,;:=()]{1,60}?)"
    r"(?:\s*\([^()]{0,40}\))?[.!*\s]*$"
)  # fmt: skip


def called(text: str) -> str | None:
    """The words that a single sentence is about: the only one in bold, or what `is` gives."""
    parts = _sentences(text)
    if not 0 < len(parts) < 4:
        return None
    bold = list(_EMPHASIS.finditer(text))
    strong = [found for found in bold if found.group(1)]
    for marked in (strong, bold):
        if len(marked) == 1:
            inside = (marked[0].group(1) or marked[0].group(2)).strip(" .:")
            return inside if 0 < len(inside.split()) < 5 and not re.search(r"\d", inside) else None
    if re.search(r"\d", re.sub(r"\([^()]{0,40}\)", "", parts[-1][1])):
        return None
    found = _COPULA.fullmatch(parts[-1][1].replace("*", ""))
    if not found or len(found["what"].split()) > 4 or re.search(r"[\\$]", parts[-1][1]):
        return None
    if any(word.casefold() in NUMBER_WORDS for word in found["what"].split()):
        return None
    return re.sub(r"^[a-z]+ by (?=[A-Z])", "", found["what"].strip())
