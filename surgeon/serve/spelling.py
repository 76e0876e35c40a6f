"""Single tokens as text and bytes, as log-probabilities are told by."""

import re
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How tokenizers with byte fallback spell a byte."""
SPACE = "▁"
"""How SentencePiece spells the space before a word, which decoding a token alone leaves out."""


class Spelt(NamedTuple):
    """One token as it stands in a text."""

    text: str
    """With U+FFFD for bytes that are no whole character."""
    bytes: bytes


class Spelling:
    """The text of each token of a vocabulary by itself; special tokens are text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self._known: dict[int, Spelt] = {}

    def __getitem__(self, token_id: int) -> Spelt:
        if token_id not in self._known:
            self._known[token_id] = self._spelt(token_id)
        return self._known[token_id]

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The alphabet of byte-level BPE."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {letter: byte for byte, letter in bytes_to_unicode().items()}

    def _spelt(self, token_id: int) -> Spelt:
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            # A row of the embedding that the tokenizer has no token for.
            return Spelt("", b"")
        text = str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if (found := BYTE.fullmatch(token)) is not None:
            raw = bytes([int(found[1], 16)])
            return Spelt(raw.decode(errors="replace"), raw)
        if "\ufffd" in text and all(letter in self._byte_of for letter in token):
            return Spelt(text, bytes(self._byte_of[letter] for letter in token))
        if token.startswith(SPACE) and not text.startswith(" "):
            text = " " + text
        return Spelt(text, text.encode())
