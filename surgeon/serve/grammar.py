"""Answers that have to match a JSON schema: llguidance says which tokens may come next."""

# Shape letters: V vocabulary.

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.serve.refusals import Refusal
from surgeon.serve.spelling import Spelling

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedTokenizerBase

DEEPEST, LONGEST = 64, 1 << 16
"""Levels and characters of a schema. What reads schemas is not to be tried with more."""

DEADLY = -(2**63) + 1024
"""From here down, numbers are -2**63 or less as a float. llguidance 1.9 overflows the stack at one
that a `const` or an `enum` holds, and so ends the process; as a bound it refuses them."""

WHITESPACE = r"\n?[ \t]{1,16}|\n"
"""Between the parts of JSON. Without an end to it, many a model goes on with nothing else."""


class Grammars:
    """Reads schemas for one vocabulary; made on the first use, which takes a second or two."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, stop: frozenset[int]):
        self.tokenizer, self.vocabulary, self.stop = tokenizer, vocabulary, stop
        self._made: Any = None

    def read(self, schema: object, param: str) -> "Grammar":
        """The grammar of a schema; raises `Refusal` that names the parameter."""
        if find_spec("llguidance") is None:
            raise Refusal(
                400, f"{param} needs the library llguidance on the server: pip install "
                "'surgeon[json]'.", param=param, code="unsupported_parameter",
            )  # fmt: skip
        if not self.stop:
            raise Refusal(400, f"{param}: this model has no stop token.", param=param)
        from llguidance import LLMatcher

        if depth(schema) > DEEPEST:
            raise Refusal(400, f"{param}: the schema has over {DEEPEST} levels.", param=param)
        if any(number <= DEADLY for number in numbers(schema)):
            raise Refusal(400, f"{param}: the schema has a number of -2**63 or less.", param=param)
        text = json.dumps(schema)
        if len(text) > LONGEST:
            raise Refusal(400, f"{param}: the schema has over {LONGEST} characters.", param=param)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITESPACE}
            )
        except ValueError as error:
            raise _unusable(param, str(error)) from error
        matcher = LLMatcher(self._tokens(), grammar, log_level=0)
        if matcher.is_error():
            raise _unusable(param, matcher.get_error())
        return Grammar(matcher, self.vocabulary, self.stop)

    def _tokens(self) -> "LLTokenizer":
        if self._made is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            wrapped: Any = TokenizerWrapper(_Vocabulary(self.tokenizer, self.vocabulary, self.stop))
            self._made = LLTokenizer(wrapped, n_vocab=self.vocabulary, eos_token=sorted(self.stop))
        return self._made


def _unusable(param: str, reason: str) -> Refusal:
    words = " ".join(reason.split())[:300]
    return Refusal(400, f"{param}: the schema can't be followed: {words}", param=param)


def depth(value: object) -> int:
    """Levels of nested lists and objects, without recursion."""
    level: list[Any] = [value]
    levels = 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        levels += 1
        inner: Iterable[Any] = (
            part for item in level for part in (item.values() if type(item) is dict else item)
        )
        level = list(inner)
    return levels


def numbers(value: object) -> Iterator[float]:
    """Every number in nested lists and objects, without recursion."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif isinstance(item, int | float):
            yield item


class _Vocabulary:
    """A vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, stop: frozenset[int]):
        spelling = Spelling(tokenizer)
        self.tokenizer, self.eos_token_id = tokenizer, min(stop)
        self.tokens = [spelling[i].bytes for i in range(vocabulary)]
        added = tokenizer.added_tokens_decoder  # pyright: ignore[reportAttributeAccessIssue]
        special = {i for i, token in added.items() if token.special}
        # Tokens without bytes are nothing that a text can go on with.
        nothing = {i for i, raw in enumerate(self.tokens) if not raw}
        self.special_token_ids = sorted(special | nothing | stop)

    def __call__(self, text: str) -> list[int]:
        ids: Any = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class Grammar:
    """A schema that was read."""

    def __init__(self, matcher: Any, vocabulary: int, stop: frozenset[int]):
        self._matcher, self.vocabulary, self.stop = matcher, vocabulary, stop

    def begin(self) -> "Match":
        """A constraint for one answer."""
        return Match(self._matcher.deep_copy(), self.vocabulary, self.stop)


class Match:
    """One answer on its way through a grammar: a `Constraint` of the decoder.

    Where the library gives up, for an answer that takes too much work, `failure` says why, and
    every token is allowed: the answer isn't to be used.
    """

    def __init__(self, matcher: Any, vocabulary: int, stop: frozenset[int]):
        self._matcher, self.vocabulary = matcher, vocabulary
        self.stop = np.array(sorted(stop))
        self.failure: str | None = None

    def allowed(self) -> np.ndarray:
        """The tokens (V,) that may come next; the stop tokens where the text is complete."""
        bits = np.zeros((self.vocabulary + 31) // 32, dtype=np.int32)
        if not self._failed():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        allowed_V = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(bool)
        allowed_V = allowed_V[: self.vocabulary]
        if not self._failed():
            allowed_V[self.stop] = self._matcher.is_accepting()
            if not allowed_V.any():
                self.failure = "no token of the vocabulary goes on with it"
        return np.ones_like(allowed_V) if self.failure is not None else allowed_V

    def accept(self, token_id: int) -> None:
        """Go on past this token."""
        if not self._failed():
            self._matcher.consume_token(token_id)
            self._failed()

    def _failed(self) -> bool:
        if self.failure is None and self._matcher.is_error():
            self.failure = " ".join(self._matcher.get_error().split())[:300]
        return self.failure is not None
