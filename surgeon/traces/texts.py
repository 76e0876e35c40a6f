"""Tokens as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What bytes that form no character decode to."""
WINDOW = 16
"""Tokens that are decoded together at most, as long as characters are whole."""
NO_CHARACTER = 8
"""So many tokens in a row without a whole character (of 4 bytes at most) are none to come."""


def text_of(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], finish_reason: str = "length"
) -> str:
    """Tokens as text, special ones included, spaces as they are.

    Of an answer that was ended by a stop token (`finish_reason` "stop") that token is left out.
    """
    ids = list(token_ids[:-1] if finish_reason == "stop" else token_ids)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class Detokenizer:
    """The text of one answer as its tokens come, in pieces that never end within a character.

    Together the pieces are what the tokenizer makes of all tokens at once; special tokens are text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        """The latest tokens; how a token is written may depend on those before it."""
        self.known = 0
        """Characters of their text that were returned already."""
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
        piece = certain[self.known :]
        self.known = max(self.known, len(certain))
        if certain == text:
            if len(self.ids) > WINDOW:
                # It goes on from where a character began.
                self.ids = self.ids[self.whole :]
                self.known = len(self._text())
            self.whole = len(self.ids)
        return piece

    def finish(self) -> str:
        """What is left at the end: bytes that became no character."""
        piece = self._text()[self.known :]
        self.ids, self.known, self.whole = [], 0, 0
        return piece

    def _text(self) -> str:
        return text_of(self.tokenizer, self.ids)


def token_texts(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> list[str]:
    """The text each token adds; a character split over tokens goes to the one that ends it.

    A last character without its end stays, as U+FFFD. At most three short calls of the decoder a
    token, whatever the tokens are.
    """
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push(token_id) for token_id in token_ids]
    return [*texts[:-1], texts[-1] + detokenizer.finish()] if texts else []


def row_texts(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], sizes: Sequence[int]
) -> list[str]:
    """The text that each row of tokens adds; a character split over rows goes to the one that ends
    it. `sizes` are the rows' tokens; two calls of the decoder a row."""
    texts: list[str] = []
    ids: list[int] = []
    known = at = 0
    for n, size in enumerate(sizes):
        row = list(token_ids[at : at + size])
        ids, at = ids + row, at + size
        text = text_of(tokenizer, ids)
        certain = text.rstrip(BROKEN)
        last = n == len(sizes) - 1
        if last or len(text) - len(certain) >= NO_CHARACTER:
            certain = text
        texts.append(certain[known:])
        known = max(known, len(certain))
        if certain == text:
            # It goes on from here; how a token is written may depend on those before it.
            ids = ids[-max(size, WINDOW) :]
            known = len(text_of(tokenizer, ids))
    return texts
