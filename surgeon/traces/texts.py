"""Tokens as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"
"""What bytes that form no character decode to."""
LONGEST_CHARACTER = 8
"""Tokens that may wait for the rest of a character: a byte each, and some to spare."""


def text_of(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], finish_reason: str = "length"
) -> str:
    """Tokens as text, special ones included, spaces as they are.

    Of an answer that was ended by a stop token (`finish_reason` "stop") that token is left out.
    """
    ids = list(token_ids[:-1] if finish_reason == "stop" else token_ids)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def token_texts(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> list[str]:
    """The text each token adds; a character split over tokens goes to the one that ends it.

    A last character without its end stays, as U+FFFD. At most three short calls of the decoder a
    token, whatever the tokens are.
    """
    texts: list[str] = []
    # The text of tokens [context, len(texts)) begins with `known` characters that are in `texts`
    # already: one token of context keeps the spaces that a tokenizer drops at the start of a text.
    context, known = 0, 0

    def settle(end: int, text: str) -> None:
        nonlocal context, known
        # Several tokens that waited for each other: the last one ends their characters.
        texts.extend([""] * (end - 1 - len(texts)))
        texts.append(text[known:])
        context, known = end - 1, len(text_of(tokenizer, token_ids[end - 1 : end]))

    for end in range(1, len(token_ids) + 1):
        text = text_of(tokenizer, token_ids[context:end])
        if not text.endswith(BROKEN) or end == len(token_ids):
            settle(end, text)
        elif end - len(texts) == LONGEST_CHARACTER:
            # What has waited longest is no part of a character that may still come.
            oldest = len(texts) + 1
            settle(oldest, text_of(tokenizer, token_ids[context:oldest]))
    return texts
