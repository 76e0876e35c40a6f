# ruff: noqa: E501
"""Damage to text and bytes that still looks like what it was: a seeded mutator.

A seed is cut into pieces once (strings, numbers, words, brackets, line breaks). A mutant is a copy
of that list with a few pieces, or whole values from an opening bracket to its closing one, replaced,
left out, doubled or exchanged; now and then single bytes change as well.
"""

import random
import re
from collections.abc import Sequence

PIECE = re.compile(rb'"(?:\\.|[^"\\])*"|[\w.+/-]+|\s+|.', re.DOTALL)
PAIRS = {b"[": b"]", b"{": b"}"}
VALUES = [
    b"null", b"true", b"false", b"0", b"-1", b"1", b"2", b"-0.0", b"1e400", b"-1e400", b"NaN",
    b"Infinity", b"1e-320", b"9007199254740993", b"1" + b"0" * 30, b"9" * 5000, b"0.5", b'""',
    b'"a"', b'"../x"', b'"/etc/passwd"', b'"..\\\\x"', b'"\\ud800"', b'"\\u0000"', b'"\\u2028"',
    b'"nan"', b'"1"', b'"' + b"x" * 300 + b'"', b'"hf:a/b"', b'"os:system"', b'"~"', b'"."',
    b'"#"', b'"a+b"', b'"</script><script>alert(1)</script>"', b"[]", b"{}", b"[[]]", b"[null]",
    b'{"a": 1}', b'[{"a": [1, {"b": null}]}]', b"[" * 40 + b"]" * 40, b"[" * 3000 + b"]" * 3000,
    b"[" * 120000, b'{"a":' * 1200 + b"1" + b"}" * 1200, b'"\xff\xfe"', b'"\xed\xa0\x80"',
    b'"\xe2\x80\xae"', b'"\\"', b"18446744073709551615", b"9223372036854775808", b"-9223372036854775809",
]  # fmt: skip
"""JSON values that readers may not expect; most are YAML too."""
YAML = [
    b"2024-99-99", b"2001-12-14t21:59:43.10-05:00", b"0b_", b"0x_", b"1:99:99", b".inf", b".nan",
    b"!!python/object/apply:os.system ['true']", b"!!binary '='", b"!!int 'x'", b"!!float 'x'",
    b"!!timestamp 'x'", b"!!set {a, b}", b"!!omap [a]", b"!!null 'x'", b"!!bool 'x'", b"&a [*a]",
    b"&a {a: *a}", b"*a", b"? [a]\n: b", b"{[a]: b}", b"{{a: b}: c}", b"<<: 1", b"<<: [1]", b"|", b">",
    b"%YAML 9.9", b"---", b"...", b"@", b"`", b"yes", b"1_000", b"+.5", b"=", b"~", b"!!x y", b"!<",
    b"&a [1,1,1,1,1,1,1,1,1]", b"[*a,*a,*a,*a]", b"\t", b"- ", b": ", b"? ", b"[" * 2000,
    b"- " * 2000 + b"1", b"${t}", b"${x}", b"module:function", b"\xef\xbb\xbf", b"\xff",
]  # fmt: skip
JINJA = [
    b"{{", b"}}", b"{%", b"%}", b"{#", b"{% for a in range(99999) %}", b"{% endfor %}", b"{{ 1/0 }}",
    b"{{ ''.__class__ }}", b"{{ messages.x.y }}", b"{{ messages | tojson }}", b"{% if x %}", b"{% endif %}",
    b"{{ 'a' * 10 ** 9 }}", b"{{ 9 ** 9 ** 9 }}", b"{% include 'x' %}", b"{% import 'x' as y %}",
    b"{% macro a(b) %}{{ a(b) }}{% endmacro %}{{ a(1) }}", b"{{ raise_exception('x') }}",
    b"{{ strftime_now('%Y') }}", b"{{ strftime_now(1) }}", b"{% set a = messages %}", b"{% generation %}",
    b"{% endgeneration %}", b"{{ x.y.z }}", b"{{ messages[99].content }}", b"{{ none + 1 }}",
    b"{{ ('%c' % 55296) }}", b"{{ '%d' | format('x') }}", b"{{ messages | sort }}", b"{{ [1] | first }}",
    b"{% continue %}", b"{% break %}", b"{{ '\\ud800' }}", b"{{ cycler() }}", b"{{ lipsum(9) }}",
    b"{{ dict(a=1) }}", b"{{ messages | map('x') | list }}", b"{{ ['x'] | join(messages) }}",
    b"{{ '{0.__class__}'.format(1) }}", b"{{ 'x' | int(base=99) }}", b"{{ 1 | round('x') }}",
    b"{{ '(' * 500 }}", b"{{ " + b"(" * 300 + b"1" + b")" * 300 + b" }}", b"{% set ns = namespace() %}",
    b"{{ loop.index }}", b"{% extends 'x' %}", b"{% block a %}", b"{{ self }}", b"{{ messages is x }}",
]  # fmt: skip


class Mutator:
    """Mutants of some seeds, the same for the same random numbers."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes] = (), noise: float = 0.15):
        self.seeds = [PIECE.findall(seed) for seed in seeds]
        self.ends = [_ends(pieces) for pieces in self.seeds]
        self.values, self.noise = [*VALUES, *words], noise
        self.texts = [value for value in self.values if value.startswith(b'"')]
        """What stands in, and the share of mutants whose single bytes change as well."""

    def mutant(self, draw: random.Random) -> bytes:
        """One damaged input."""
        which = draw.randrange(len(self.seeds))
        pieces, ends = list(self.seeds[which]), self.ends[which]
        for _ in range(1 + (draw.random() < 0.5) + (draw.random() < 0.2) * draw.randrange(6)):
            if pieces:
                self._damage(pieces, ends, draw)
                ends = None
        content = b"".join(pieces)
        return _noisy(content, draw) if draw.random() < self.noise else content

    def _damage(
        self, pieces: list[bytes], ends: dict[int, int] | None, draw: random.Random
    ) -> None:
        at = draw.randrange(len(pieces))
        for _ in range(6):  # spaces say little, and what is broken everywhere is refused at once
            if pieces[at][:1] in b'"[{' or pieces[at][:1].isalnum():
                break
            at = draw.randrange(len(pieces))
        end = at + 1
        if pieces[at] in PAIRS:
            end = ends.get(at, end) if ends is not None else _end(pieces, at)
        kind = draw.randrange(8)
        if kind <= 3:
            key = pieces[at + 1 : at + 2] == [b":"]
            pieces[at:end] = [draw.choice(self.texts if key else self.values)]
        elif kind == 4:
            _leave_out(pieces, at, end)
        elif kind == 5:
            pieces[at:at] = [*pieces[at:end], b","]
        elif kind == 6:
            other = draw.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        else:
            pieces[at:end] = [pieces[draw.randrange(len(pieces))]]


def _ends(pieces: list[bytes]) -> dict[int, int]:
    """Where each opening bracket's value ends."""
    found, waiting = {}, []
    for n, piece in enumerate(pieces):
        if piece in PAIRS:
            waiting.append(n)
        elif piece in (b"]", b"}") and waiting:
            found[waiting.pop()] = n + 1
    return found


def _end(pieces: list[bytes], at: int) -> int:
    depth = 0
    for n in range(at, len(pieces)):
        depth += (pieces[n] in PAIRS) - (pieces[n] in (b"]", b"}"))
        if depth == 0:
            return n + 1
    return at + 1


def _leave_out(pieces: list[bytes], at: int, end: int) -> None:
    """Take out a value, a key with its value, and the comma that went with it."""
    if pieces[end : end + 1] == [b":"]:
        end += 1
        while end < len(pieces) and pieces[end].isspace():
            end += 1
        end = _end(pieces, end) if pieces[end : end + 1] and pieces[end] in PAIRS else end + 1
    if pieces[end : end + 1] == [b","]:
        end += 1
    elif at and pieces[at - 1] == b",":
        at -= 1
    del pieces[at:end]


def _noisy(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, put in, left out, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 2, 8))))
        elif kind == 2:
            del data[at : at + draw.choice((1, 2, 8, 64))]
        elif kind == 3 and at < len(data):
            data[at] = draw.choice(b'\0\n\r\t "\\{}[]:,-9\x7f\x80\xff')
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def framed(header: bytes, data: bytes, draw: random.Random) -> bytes:
    """A safetensors file of that header: its length mostly right, its data mostly all there."""
    length = len(header)
    if draw.random() < 0.06:
        length = draw.choice(
            (0, 1, length - 1, length + 1, 1 << 20, 100 << 20, 1 << 40, (1 << 64) - 1)
        )
    kind = draw.random()
    if kind < 0.05:
        data = data[: draw.randrange(len(data) + 1)]
    elif kind < 0.1:
        data += bytes(draw.randrange(64))
    return (max(0, length) % (1 << 64)).to_bytes(8, "little") + header + data
