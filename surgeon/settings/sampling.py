"""How answers are drawn, on which machine, and how they are read: groups that verbs share."""

import hashlib
from dataclasses import replace
from typing import Annotated

from surgeon.settings.schema import (
    RECORDED_WHERE_SET,
    UNRECORDED,
    Amount,
    Count,
    Many,
    Metavar,
    Number,
    Probability,
    settings,
)

Columns = Annotated[str | dict[str, str] | None, UNRECORDED, Metavar("NAME=COLUMN,...")]
"""Which columns hold prompts, answers and ids. (Prompts have a digest.)"""
Template = Annotated[str | None, Metavar("NAME")]


@settings
class Sampling:
    """How answers are drawn. The defaults here are NEX's (sec. 4.3; samples: 5.2). Neuron-OPSD has
    temperature 0.6 (App. A; distill), NeuReasoner 0.6 and top_p 0.95 (sec. 4.1; monitor)."""

    samples: Count = 3
    """Answers per prompt."""
    temperature: Amount = 0.7
    """0 takes the most likely token."""
    top_p: Probability = 0.9
    """Share of the probability that is drawn from, most likely tokens first."""
    top_k: Number = 0
    """Most likely tokens that are drawn from; 0: no limit."""
    max_tokens: Count = 32768
    """Longest answer, tokens."""
    seed: int = 0
    """Seed of the answers' random streams."""
    batch: Annotated[Number, UNRECORDED] = 0
    """Answers decoded at once; 0: as many as memory is likely to hold. Changes no answer."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; by default the template decides."""
    template: Template = None
    """Name of the chat template that prompts are rendered with, where the checkpoint has several;
    by default its `default`, and `tool_use` for prompts with tools."""

    @property
    def end(self) -> str:
        """Where an answer is cut, in words."""
        return f"the limit of {self.max_tokens} tokens, or the end of the context"

    def own(self, name: str) -> "Sampling":
        """The same with a seed of its own for the candidate of that name."""
        digest = hashlib.sha256(repr((self.seed, name)).encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:6], "little"))


@settings
class AnswerReading:
    """How an answer is found in a response."""

    answer_words: Annotated[Many[str], RECORDED_WHERE_SET] = ()
    """Words for "answer" in other languages, such as respuesta or 答案, that `auto` knows too."""
    think_tags: Annotated[Many[str], Metavar("'OPEN CLOSE'"), RECORDED_WHERE_SET] = ()
    """Tags around thinking, besides <think> and those that the chat template names."""


@settings
class Machine:
    """Where a model runs."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    dtype: str = "auto"
    """auto (as on disk), float32, bfloat16 or float16."""
