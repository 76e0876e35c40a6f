"""Votes: which of several answers are one, and which of them most samples give.

Everything that votes or measures agreement goes through `classes` or `classes_of`: agreement,
Maj@k, Cons@k, LMSI, TTRL and the room for sharpening.

Answers of equal form and unit (`values.value`) are one class always. Different forms are joined
where they are equal all the same: 12 cm and 12, 50% and 50 or 0.5, and texts of expressions that
this package doesn't understand and math-verify finds equal. That equality isn't transitive (12 cm =
12 = 12 kg), so a group of forms that it connects is one class only if each of them equals each
other; if not, every form in it is a class of its own. Nothing of this depends on the order of the
answers.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import combinations

from surgeon.answers.check_worker import check_many
from surgeon.answers.checks import choice_letter
from surgeon.answers.forms import tidy
from surgeon.answers.values import Value, same, value

MOST_PAIRS = 500
"""Of different answers to one question that math-verify compares; of more it compares none."""
MOST_CHARACTERS = 300
"""Of an answer that math-verify compares."""
LIMIT_S = 2.0
_VERDICTS: dict[tuple[str, str], bool] = {}
_MOST_VERDICTS = 1 << 17

Answers = Sequence[str | None]


def classes(answers: Answers, how: str = "exact") -> list[str | None]:
    """For each answer to one question the class that it votes for: equal values, equal names.

    None (no answer) stays None. By the check `choice` answers vote for their letters; by any other
    for their values (see the module). A name is the value where it has a short form, else the
    shortest of the texts. Never raises.
    """
    return classes_of([answers], how)[0]


def classes_of(questions: Sequence[Answers], how: str = "exact") -> list[list[str | None]]:
    """`classes` of the answers to each of many questions, with one start of the workers."""
    texts = [sorted({a for a in answers if a is not None}) for answers in questions]
    if how == "choice":
        letters = {text: choice_letter(text) for part in texts for text in part}
        others = [[None if a and letters[a] else a for a in answers] for answers in questions]
        rest = classes_of(others)
        return [
            [
                letters[a] if a is not None and letters[a] else r
                for a, r in zip(row, r_row, strict=True)
            ]
            for row, r_row in zip(questions, rest, strict=True)
        ]
    _compare(pair for part in texts for pair in _unknown_pairs(part))
    names = [_names(part) for part in texts]
    return [
        [None if answer is None else name[answer] for answer in answers]
        for name, answers in zip(names, questions, strict=True)
    ]


def majority(votes: Answers) -> str | None:
    """The class with the most votes, None where nobody votes.

    Between classes with equally many votes the draw is fair (by a digest of their names), and the
    same for every order of the votes.
    """
    count = Counter(vote for vote in votes if vote is not None)
    return max(count, key=lambda vote: (count[vote], _draw(vote)), default=None)


def _draw(vote: str) -> bytes:
    return hashlib.sha256(vote.encode(errors="surrogatepass")).digest()


# --- what math-verify is asked --------------------------------------------------------------------


def _representatives(texts: Sequence[str]) -> dict[Value, str]:
    """Value -> the first, shortest text that has it."""
    found: dict[Value, str] = {}
    for text in sorted(texts, key=lambda text: (len(text), text)):
        found.setdefault(value(text), text)
    return found


def _unknown_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    of = {v: t for v, t in _representatives(texts).items() if len(t) <= MOST_CHARACTERS}
    unknown = {text for v, text in of.items() if not v.known}
    # Words are no expressions: nothing is equal to them but themselves.
    comparable = sorted(unknown | {text for v, text in of.items() if _is_value(v)})
    if len(unknown) * len(comparable) > MOST_PAIRS:
        return []
    return [(a, b) for a, b in combinations(comparable, 2) if a in unknown or b in unknown]


def _is_value(v: Value) -> bool:
    return v.known and (any(c.isdigit() for c in v.form) or v.form.startswith(("(", "[", "{")))


def _compare(pairs: Iterable[tuple[str, str]]) -> None:
    new = [pair for pair in dict.fromkeys(pairs) if pair not in _VERDICTS]
    if len(_VERDICTS) + len(new) > _MOST_VERDICTS:
        _VERDICTS.clear()
    if new:
        verdicts = check_many(new, "math", timeout_s=LIMIT_S)
        _VERDICTS.update({p: v.correct for p, v in zip(new, verdicts, strict=True)})


# --- classes --------------------------------------------------------------------------------------


def _names(texts: Sequence[str]) -> dict[str, str]:
    """Text -> the name of its class."""
    text_of = _representatives(texts)
    equal = partial(_equal, text_of)
    class_of: dict[Value, str] = {}
    for group in _connected(text_of):
        if all(equal(a, b) for a, b in combinations(group, 2)):
            class_of |= dict.fromkeys(group, _name(group, text_of))
        else:
            class_of |= {one: f"{_name([one], text_of)} {one.unit}".strip() for one in group}
    shared = Counter(class_of[group[0]] for group in _connected(text_of))
    for one in text_of:  # 12 cm and 12 kg without a bare 12
        if shared[class_of[one]] > 1:
            class_of[one] = f"{class_of[one]} {one.unit}".strip()
    return {text: class_of[value(text)] for text in texts}


def _equal(text_of: dict[Value, str], one: Value, two: Value) -> bool:
    a, b = sorted((text_of[one], text_of[two]))
    return same(a, b) or _VERDICTS.get((a, b), False)


def _connected(text_of: dict[Value, str]) -> list[list[Value]]:
    """Groups of values that chains of equal pairs connect."""
    forms: dict[str, list[Value]] = {}
    for one in text_of:
        forms.setdefault(one.form, []).append(one)
    parent = {one: one for one in text_of}

    def root(one: Value) -> Value:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    def join(one: Value, two: Value) -> None:
        parent[root(one)] = root(two)

    for members in forms.values():
        for a, b in combinations(members[:100], 2):
            if _equal(text_of, a, b):
                join(a, b)
    numbers = [members[0] for members in forms.values()]
    for one in [v for v in text_of if v.unit == "%"]:
        for two in numbers if len(numbers) <= MOST_PAIRS else ():
            if _equal(text_of, one, two):
                join(one, two)
    unknown = [v for v in text_of if not v.known]
    for one in unknown if len(unknown) * len(text_of) <= 4 * MOST_PAIRS else ():
        for two in text_of:
            if one != two and _equal(text_of, one, two):
                join(one, two)
    groups: dict[Value, list[Value]] = {}
    for one in text_of:
        groups.setdefault(root(one), []).append(one)
    return list(groups.values())


def _name(group: Sequence[Value], text_of: dict[Value, str]) -> str:
    forms = [v.form for v in group if v.known and not v.form.startswith("value ")]
    names = forms or [tidy(text_of[v]) for v in group]
    return min(names, key=lambda name: (len(name), name))
