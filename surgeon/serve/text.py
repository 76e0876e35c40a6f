"""Tokens into text while they come, and where a stop string ends it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What bytes decode to that are no character, or not yet."""
WINDOW = 16
"""Tokens that are decoded together at most, as long as characters are whole."""
NO_CHARACTER = 8
"""So many tokens in a row without a whole character (of 4 bytes at most) are none to come."""


class Detokenizer:
    """The text of one answer as its tokens come, in pieces that never end within a character.

    Together the pieces are what the tokenizer makes of all tokens at once; special tokens are text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        """The latest tokens; how a token is written may depend on those before it."""
        self.given = 0
        """Characters of their text that were handed out."""
        self.whole = 0
        """Tokens of them after which the text last ended in a whole character."""

    def push(self, token_id: int) -> str:
        """The text that is certain now and wasn't before; often empty within a character."""
        self.ids.append(token_id)
        text = self._text()
        certain = text.rstrip(BROKEN)
        if len(text) - len(certain) >= NO_CHARACTER <= len(self.ids) - self.whole:
            # The last three bytes may still be the beginning of a character.
            kept = self.ids[-3:]
            del self.ids[-3:]
            piece = self.finish()
            self.ids = kept
            return piece
        piece = certain[self.given :]
        self.given = max(self.given, len(certain))
        if certain == text:
            if len(self.ids) > WINDOW:
                # It goes on from where a character began.
                self.ids = self.ids[self.whole :]
                self.given = len(self._text())
            self.whole = len(self.ids)
        return piece

    def finish(self) -> str:
        """What is left at the end: bytes that became no character."""
        piece = self._text()[self.given :]
        self.ids, self.given, self.whole = [], 0, 0
        return piece

    def _text(self) -> str:
        if not self.ids:
            return ""
        return str(self.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False))


class StopStrings:
    """Passes text on up to the first stop string; what may be the beginning of one waits."""

    def __init__(self, stops: Sequence[str], keep: bool = False):
        self.stops, self.keep = stops, keep
        """`keep`: the stop string itself is passed on as well."""
        self.longest = max(map(len, stops), default=0)
        self.waiting = ""
        self.hit: str | None = None

    def push(self, piece: str) -> str:
        """The text that can be passed on now; `hit` is set once a stop string is complete."""
        if not self.stops:
            return piece
        if self.hit is not None:
            return ""
        text = self.waiting + piece
        found = [(text.find(stop), stop) for stop in self.stops if stop in text]
        if found:
            at, self.hit = min(found)
            self.waiting = ""
            return text[: at + len(self.hit) if self.keep else at]
        length = next(
            (
                n
                for n in range(min(self.longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-n:]) for stop in self.stops)
            ),
            0,
        )
        cut = len(text) - length
        self.waiting = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was waiting for a stop string that didn't come."""
        piece, self.waiting = self.waiting, ""
        return piece
