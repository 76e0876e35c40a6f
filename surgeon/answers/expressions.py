r"""Expressions by value: LaTeX or plain text -> an exact number, or digits at fixed places.

`fingerprint` is a form of the value, so equal expressions have equal ones whoever compares them
with whom. A constant that is rational is exact. Any other is 25 digits of 50, and an expression
with variables is its values at three fixed places (two of positive numbers, one of negative ones),
which is how `(x+1)^2` and `x^2+2x+1` are one. Nothing is evaluated that could take long: powers
above `MOST_BITS` bits and nests deeper than `MOST_NESTED` are `Unread`.
"""

import hashlib
import re
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias

Complex: TypeAlias = Any
"""A number of mpmath, which has no types and is imported late."""
Number: TypeAlias = Fraction | Complex
Mpmath: TypeAlias = Any
"""A context of mpmath: its functions at one precision."""
Tree = tuple
"""("number", Fraction), ("name", str), or (operation, Tree...)."""

MOST_CHARACTERS, MOST_NESTED, MOST_BITS = 400, 30, 20_000
PLACES = 3
_DIGITS, _KEPT = 50, 25
_LARGEST = 10_000
"""Of an exponent, an angle or the argument of a factorial that isn't exact."""


class Unread(ValueError):
    """What stands there is no expression that this module can evaluate."""


@cache
def _mp() -> Mpmath:
    from mpmath import MPContext

    context = MPContext()
    context.dps = _DIGITS
    return context


# --- text -> tree ---------------------------------------------------------------------------------

_FUNCTIONS = (
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc",
    "log", "ln", "lg", "exp", "sqrt", "min", "max", "gcd", "lcm",
)  # fmt: skip
_TOKEN = re.compile(
    r"\s*(\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\.\d+|"
    + "|".join(_FUNCTIONS)
    + r"|pi(?![a-z])|mod(?![a-z])|[^\W\d_]|\S)"
)
_WORD = re.compile(r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|(?:or|to|is|no|of|if)(?![A-Za-z]))")
_KNOWN_WORD = re.compile("(?:" + "|".join((*_FUNCTIONS, "pi", "mod")) + ")+[a-z]{0,2}")
_SAME = {
    "√": "\\sqrt", "π": "\\pi", "·": "*", "×": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-",
    "–": "-", "²": "^2", "³": "^3", "θ": "\\theta",
    "\\cdot": "*", "\\times": "*", "\\div": "/", "\\ast": "*", "**": "^", "\\dfrac": "\\frac",
    "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\lvert": "|", "\\rvert": "|", "\\vert": "|",
    "\\mid": "|", "\\bmod": "mod", "\\lbrace": "{", "\\rbrace": "}",
}  # fmt: skip
_SAME |= {
    glyph: f"({n}/{d})"
    for glyph, n, d in [
        ("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅖", 2, 5),
        ("⅗", 3, 5), ("⅘", 4, 5), ("⅙", 1, 6), ("⅚", 5, 6), ("⅛", 1, 8), ("⅜", 3, 8), ("⅝", 5, 8),
        ("⅞", 7, 8),
    ]
}  # fmt: skip
_SAMES = re.compile(
    "|".join(re.escape(k) + ("(?![A-Za-z])" if k[0] == "\\" else "") for k in _SAME)
)
_TIMES_TEN = re.compile(r"(\d)\s*[xX]\s*(?=10\s*\^)")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degrees?(?![a-z])")
_MIXED = re.compile(r"(?<![\d.^/}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_MIXED_GLYPH = re.compile(r"(?<![\d.^/}])(\d+)\s*([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])")
_MIXED_LATEX = re.compile(
    r"(?<![\d.^/}A-Za-z])(\d+)\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?!\w)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{?\s*(\d+)\s*\}?")


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, again = match.groups()
    value = Fraction(int((whole or "0") + fixed), 10 ** len(fixed))
    value += Fraction(int(again), 10 ** len(fixed) * (10 ** len(again) - 1))
    return f"({value.numerator}/{value.denominator})"


def _prepared(text: str) -> str:
    text = _MIXED_GLYPH.sub(r"(\1+\2)", text)  # 1½ is a sum, not a product
    text = _SAMES.sub(lambda m: _SAME[m.group()] + " ", text)
    text = _DEGREES.sub(r"\\degree ", text)
    text = _TIMES_TEN.sub(r"\1*", text)
    text = _REPEATING.sub(_repeating, text)
    text = _E_NOTATION.sub(r"(\1*10^{\2})", text)
    text = _MIXED.sub(r"(\1+\2/\3)", text)
    return _MIXED_LATEX.sub(lambda m: f"({m[1]}+\\frac{{{m[2] or m[3]}}}{{{m[4] or m[5]}}})", text)


class _Parser:
    """Recursive descent; `^` binds tighter than a sign, products may leave out their sign."""

    def __init__(self, text: str):
        if len(text) > MOST_CHARACTERS:
            raise Unread
        text = _prepared(text)
        for word in _WORD.findall(text):
            if not _KNOWN_WORD.fullmatch(word):
                raise Unread
        self.tokens: list[str] = _TOKEN.findall(text)
        self.at = self.nested = self.bars = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unread
        self.at += 1
        return token

    def whole(self) -> Tree:
        tree = self.sum()
        if self.peek():
            raise Unread
        return tree

    def sum(self) -> Tree:
        tree = self.product()
        while self.peek() in ("+", "-"):
            tree = (self.take(), tree, self.product())
        return tree

    def product(self, *, implicit: bool = False) -> Tree:
        tree = self.signed()
        while True:
            token = self.peek()
            if token in ("*", "/", "mod") and not implicit:
                tree = (self.take(), tree, self.signed())
            elif self._begins(token, implicit):
                tree = ("*", tree, self.power())
            else:
                return tree

    def _begins(self, token: str, implicit: bool) -> bool:
        """Whether a factor begins here, with no sign before it."""
        name = token.lstrip("\\")
        if implicit and (name in _FUNCTIONS or token == "("):
            return False
        if token == "|":
            return not self.bars
        return token in ("(", "{", "[") or (
            token not in ("mod", "\\rfloor", "\\rceil", "\\degree") and token[-1:].isalnum()
        )

    def signed(self) -> Tree:
        minus = False
        while self.peek() in ("+", "-"):
            minus ^= self.take() == "-"
        tree = self.power()
        return ("*", ("number", Fraction(-1)), tree) if minus else tree

    def power(self) -> Tree:
        tree = self.after(self.atom())
        if self.peek() != "^":
            return tree
        self.take()
        return self.after(("^", tree, self.exponent()))

    def exponent(self) -> Tree:
        self._deeper()
        minus = False
        while self.peek() in ("+", "-"):
            minus ^= self.take() == "-"
        tree = self.power()
        self.nested -= 1
        return ("*", ("number", Fraction(-1)), tree) if minus else tree

    def after(self, tree: Tree) -> Tree:
        while self.peek() in ("!", "\\degree"):
            tree = (self.take(), tree)
        return tree

    def _deeper(self) -> None:
        self.nested += 1
        if self.nested > MOST_NESTED:
            raise Unread

    def atom(self) -> Tree:
        self._deeper()
        tree = self._atom()
        self.nested -= 1
        return tree

    def _atom(self) -> Tree:
        token = self.take()
        closing = {"(": ")", "{": "}", "[": "]", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
        name = token.lstrip("\\")
        if token[0].isdigit() or token[0] == ".":
            return ("number", Fraction(token))
        if token in closing:
            bars, self.bars = self.bars, 0
            tree = self.sum()
            self.take(closing[token])
            self.bars = bars
            return (name, tree) if token[0] == "\\" else tree
        if token == "|":
            self.bars += 1
            tree = self.sum()
            self.take("|")
            self.bars -= 1
            return ("abs", tree)
        if name in ("frac", "binom", "dbinom", "tbinom"):
            return ("/" if name == "frac" else "binom", self.digit(), self.digit())
        if name in _FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return ("pi",)
        if token.isalpha() or (token[0] == "\\" and name.isalpha()):
            return self.name(name if token.isalpha() else token)
        raise Unread

    def digit(self) -> Tree:
        """An argument as TeX takes it: a group, or one character."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return ("number", Fraction(token[0]))
        return self.atom()

    def function(self, name: str) -> Tree:
        if name in ("min", "max", "gcd", "lcm"):
            raise Unread
        base: Tree | None = None
        power: Tree | None = None
        if name == "sqrt" and self.peek() == "[":
            base = self.atom()
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.digit()
            else:
                power = self.exponent()
        grouped = self.peek() in ("(", "{", "[", "|") or name == "sqrt"
        inside = self.atom() if grouped else self.product(implicit=True)
        tree = (name, inside) if base is None else (name, inside, base)
        return tree if power is None else ("^", tree, power)

    def name(self, name: str) -> Tree:
        if name in _NO_NAMES:
            raise Unread
        while self.peek() == "'":
            name += self.take()
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                self.take()
                part = ""
                while self.peek() != "}":
                    part += self.take()
                self.take()
            else:
                part = self.take()
            name += "_" + part
        return {"e": ("e",), "i": ("i",)}.get(name, ("name", name))


_NO_NAMES = {
    "\\" + word
    for word in [
        "infty",
        "int",
        "sum",
        "prod",
        "lim",
        "begin",
        "end",
        "pm",
        "mp",
        "cup",
        "cap",
        "in",
        "to",
        "le",
        "leq",
        "ge",
        "geq",
        "ne",
        "neq",
        "approx",
        "text",
        "mathrm",
        "left",
        "right",
        "frac",
        "overline",
        "underline",
        "vec",
        "hat",
        "emptyset",
        "varnothing",
        "quad",
        "sim",
        "equiv",
        "forall",
        "exists",
        "mathbb",
        "mathcal",
        "langle",
        "rangle",
        "partial",
        "nabla",
        "Rightarrow",
        "rightarrow",
        "implies",
        "subset",
        "subseteq",
        "setminus",
        "boxed",
        "pmod",
        "dots",
        "ldots",
        "cdots",
        "circ",
        "angle",
        "triangle",
        "perp",
        "parallel",
    ]
}


# --- tree -> value --------------------------------------------------------------------------------


def _small(x: Number) -> Number:
    if isinstance(x, Fraction):
        if max(x.numerator.bit_length(), x.denominator.bit_length()) > MOST_BITS:
            raise Unread
    elif abs(x) > _LARGEST:
        raise Unread
    return x


def _inexact(x: Number) -> Complex:
    if isinstance(x, Fraction):
        return _mp().mpc(_mp().mpf(x.numerator) / x.denominator)
    return x


def _root(n: int, k: int) -> int | None:
    """The whole k-th root of n >= 0, None where it has none."""
    if k > 64:
        return n if n < 2 else None
    low = int(_mp().nint(_mp().root(n, k))) if n.bit_length() < 150 else 0
    return low if low**k == n else None


def _power(x: Number, y: Number) -> Number:
    if isinstance(y, Fraction) and y.denominator == 1 and isinstance(x, Fraction):
        bits = max(x.numerator.bit_length(), x.denominator.bit_length())
        if bits * abs(y.numerator) > MOST_BITS and abs(x) != 1:
            raise Unread
        if x == 0 and y <= 0:
            raise Unread
        return x**y.numerator
    if isinstance(y, Fraction) and isinstance(x, Fraction) and x >= 0:
        up, down = _root(x.numerator, y.denominator), _root(x.denominator, y.denominator)
        if up is not None and down is not None:
            return _power(Fraction(up, down), Fraction(y.numerator))
    if x == 0:
        raise Unread
    x, y = _inexact(x), _small(_inexact(y))
    if abs(_mp().log(x) * y) > _LARGEST:
        raise Unread
    return _mp().power(x, y)


def _factorial(x: Number) -> Number:
    if isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000:
        result = 1
        for n in range(2, int(x) + 1):
            result *= n
        return Fraction(result)
    if abs(x) > 100:
        raise Unread
    return _mp().gamma(_inexact(x) + 1)


def _divide(x: Number, y: Number) -> Number:
    if y == 0:
        raise Unread
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x / y
    return _inexact(x) / _inexact(y)


def _logarithm(x: Number, base: Number) -> Number:
    if x == 0 or base == 0 or base == 1:
        raise Unread
    return _mp().log(_inexact(x)) / _mp().log(_inexact(base))


def _step(x: Number, name: str) -> Number:
    x = exact(x)
    if not isinstance(x, Fraction):
        if abs(x.imag) > 0:
            raise Unread
        x = (
            Fraction(int(_mp().floor(x.real)))
            if name == "lfloor"
            else Fraction(int(_mp().ceil(x.real)))
        )
        return x
    return Fraction(x.__floor__() if name == "lfloor" else x.__ceil__())


def _apply(name: str, args: list[Number]) -> Number:
    mp, x = _mp(), args[0]
    y = args[1] if len(args) > 1 else None
    both = isinstance(x, Fraction) and isinstance(y, Fraction)
    if name in ("+", "-", "*"):
        assert y is not None
        if not both:
            x, y = _inexact(x), _inexact(y)
        return x + y if name == "+" else x - y if name == "-" else x * y  # pyright: ignore
    if name == "/":
        return _divide(x, y)  # pyright: ignore[reportArgumentType]
    if name == "^":
        return _power(x, y)  # pyright: ignore[reportArgumentType]
    if name == "mod":
        if not both or y == 0:
            raise Unread
        return x % y  # pyright: ignore
    if name == "!":
        return _factorial(x)
    if name == "binom":
        assert y is not None
        down = _apply("*", [_factorial(y), _factorial(_apply("-", [x, y]))])
        return _divide(_factorial(x), down)
    if name == "sqrt":
        return _power(x, _divide(Fraction(1), y if y is not None else Fraction(2)))
    if name == "abs":
        return abs(x) if isinstance(x, Fraction) else mp.mpc(abs(x))
    if name in ("lfloor", "lceil"):
        return _step(x, name)
    if name == "\\degree":
        return _inexact(x) * mp.pi / 180
    if name in ("log", "ln", "lg"):
        # Written without a base, log is taken as natural, lg as decimal.
        base = (
            y if y is not None else Fraction(10) if name == "lg" else _inexact(Fraction(1)) * mp.e
        )
        return _logarithm(x, base)
    if name == "exp":
        return mp.exp(_small(_inexact(x)))
    x = _small(_inexact(x))
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    return getattr(mp, names.get(name, name))(x)


def _value(tree: Tree, place: int) -> Number:
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "name":
        return _at(tree[1], place)
    if kind in ("pi", "e"):
        return _mp().mpc(_mp().pi if kind == "pi" else _mp().e)
    if kind == "i":
        return _mp().mpc(0, 1)
    value = _apply(kind, [_value(part, place) for part in tree[1:]])
    return _small(value) if isinstance(value, Fraction) else value


@cache
def _at(name: str, place: int) -> Fraction:
    number = int.from_bytes(hashlib.sha256(f"{place} {name}".encode()).digest()[:4], "big")
    value = Fraction(number % 2000 + 137, 997)
    return -value if place == PLACES - 1 else value


def names(tree: Tree) -> set[str]:
    if tree[0] == "name":
        return {tree[1]}
    return set().union(*(names(part) for part in tree[1:] if isinstance(part, tuple)))


def is_function(word: str) -> bool:
    """Whether a word is the name of a function, or of \\pi."""
    return bool(_KNOWN_WORD.fullmatch(word))


def ratio(x: Number, y: Number) -> Number:
    """x / y; raises `Unread` for y = 0."""
    return exact(_divide(x, y))


def exact(x: Number) -> Number:
    """A rational number where it is one to within 38 digits."""
    if isinstance(x, Fraction):
        return x
    mp = _mp()
    if not (mp.isfinite(x.real) and mp.isfinite(x.imag)):
        raise Unread
    if abs(x.imag) > mp.mpf(10) ** -38 * max(1, abs(x.real)):
        return x
    if abs(x.real) > 10**12:
        return mp.mpc(x.real)
    near = _rational(x.real)
    return mp.mpc(x.real) if near is None else near


def _rational(x: Complex) -> Fraction | None:
    mp = _mp()
    scaled = int(mp.nint(x * mp.mpf(10) ** 45))
    near = Fraction(scaled, 10**45).limit_denominator(10**6)
    off = abs(mp.mpf(near.numerator) / near.denominator - x)
    return near if off < mp.mpf(10) ** -38 * max(1, abs(x)) else None


def plain(x: Fraction) -> str:
    """A whole number, a decimal number of at most 12 places, or a reduced fraction."""
    twos_and_fives, places = x.denominator, 0
    while twos_and_fives > 1 and places <= 12:
        places += 1
        if (x * 10**places).denominator == 1:
            digits = f"{abs(x.numerator) * 10**places // x.denominator:0{places + 1}d}"
            return f"{'-' if x < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return str(x)


def written(x: Number) -> str:
    """One number: exact where it is rational, 25 digits where it isn't."""
    x = exact(x)
    if isinstance(x, Fraction):
        return plain(x)
    real, imaginary = (_rational(part) if abs(part) < 10**12 else None for part in (x.real, x.imag))
    mp = _mp()
    parts = [
        plain(near) if near is not None else f"{mp.nstr(part, _KEPT)}…"
        for near, part in ((real, x.real), (imaginary, x.imag))
    ]
    return parts[0] if parts[1] == "0" else f"{parts[0]} + {parts[1]}i"


def parse(text: str) -> Tree:
    """The tree of an expression; raises `Unread`."""
    try:
        return _Parser(text).whole()
    except (ValueError, RecursionError, IndexError):
        raise Unread from None


def values(tree: Tree) -> list[Number]:
    """Its value at each place (one where it has no variable); raises `Unread`."""
    places = PLACES if names(tree) else 1
    try:
        return [exact(_value(tree, place)) for place in range(places)]
    except (ValueError, ArithmeticError, RecursionError, TypeError, AttributeError):
        raise Unread from None


def constant(text: str) -> Number:
    """The value of an expression without variables; raises `Unread`."""
    found = values(parse(text))
    if len({written(x) for x in found}) > 1:
        raise Unread
    return found[0]


def fingerprint(text: str) -> str:
    """The form of an expression's value (see the module); raises `Unread`."""
    tree = parse(text)
    if tree[0] == "name":
        return str(tree[1])
    forms = [written(x) for x in values(tree)]
    return forms[0] if len(set(forms)) == 1 else mark(forms)


def mark(forms: list[str]) -> str:
    """A short name for what has no plain form."""
    return "value " + hashlib.sha256(" ".join(forms).encode()).hexdigest()[:20]
