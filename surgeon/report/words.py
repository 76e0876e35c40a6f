"""Numbers and foreign text as the page shows them: a missing value is a dash, never an error."""

DASH = "\N{EN DASH}"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(128, 160), 65533)
_PICTURES |= dict.fromkeys((65534, 65535), 65533)


def visible(text: str) -> str:
    """The text with control characters drawn as their symbols; newlines and tabs stay.

    HTML parsers drop or replace control characters; lone surrogates can't be written as UTF-8.
    """
    clean = text.replace("\r\n", "\n").translate(_PICTURES)
    return clean.encode("utf-8", "replace").decode("utf-8")


def grouped(value: float | None, decimals: int = 0) -> str:
    """12345.6 -> 12,346; a dash for None."""
    return DASH if value is None else signed(value, decimals, separator=",")


def signed(value: float | None, decimals: int, *, separator: str = "") -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash for None."""
    if value is None:
        return DASH
    if abs(value) >= 1e15:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    shown = f"{value:{separator}.{decimals}f}"
    if not any(digit in shown for digit in "123456789"):
        shown = shown.lstrip("-")
    return shown.replace("-", "\N{MINUS SIGN}")


def times(n: int, word: str) -> str:
    """A number of things: 1 token, 2,000 tokens."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
