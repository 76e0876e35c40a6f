"""Prompts to answers: what a sampler is asked, the decoder here as a sampler, and what keeps
answers on disk as they end. Other samplers: surgeon/engines.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.settings.sampling import Sampling
from surgeon.traces.prompts import Prompt
from surgeon.traces.records import Key, Trace, append, in_order, keys_of, stored_traces
from surgeon.traces.rendering import encode
from surgeon.traces.texts import text_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from surgeon.decoding import Answer

Until = Callable[[int, Sequence[int]], bool]
"""Whether the answer of that index, whose tokens so far are given, is to be cut after the last."""


class Ask(NamedTuple):
    """One answer to be written."""

    key: Key
    """Its random numbers follow from the seed and from this."""
    ids: Sequence[int]
    """What comes before it: the prompt's tokens, as the model reads them."""
    prompt: Prompt | None = None
    """What `ids` were rendered from; None where they go on from a part of an answer."""
    max_tokens: int | None = None
    """In place of the sampling's own."""


@runtime_checkable
class Sampler(Protocol):
    """Who writes the answers of one candidate."""

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def stop(self) -> frozenset[int]:
        """The tokens that end an answer."""
        ...

    def answers(
        self, asks: Sequence[Ask], sampling: Sampling, until: Until | None = None
    ) -> "Iterator[Answer]":
        """Yield the answer to `asks[index]` as it ends, with the stop token where one ended it."""
        ...


class LocalSampler:
    """The decoder of this process as the sampler."""

    def __init__(self, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase"):
        from surgeon.decoding import context_limit

        self.model, self.context = model, context_limit(model)
        self.stop = stop_ids(model, tokenizer)

    def answers(
        self, asks: Sequence[Ask], sampling: Sampling, until: Until | None = None
    ) -> "Iterator[Answer]":
        from surgeon.decoding import NotFinite, Request, decode, stream_key

        requests = [
            Request(ask.ids, stream_key(sampling.seed, *ask.key), max_tokens=ask.max_tokens)
            for ask in asks
        ]
        try:
            yield from decode(
                self.model,
                requests,
                stop=self.stop,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                batch=sampling.batch,
                until=until,
            )
        except NotFinite as error:
            raise error.named(lambda n: "prompt {!r}, sample {}".format(*asks[n].key)) from error


def encode_all(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    context: int,
    thinking: bool | None = None,
    template: str | None = None,
) -> list[list[int]]:
    """Each prompt's token ids; raises BadInput as `encode` does, and for a prompt that fills a
    context of that many tokens."""
    encoded = [encode(tokenizer, prompt, thinking, template) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= context:
            raise BadInput(
                f"prompt {prompt.id!r} has {len(ids)} tokens, expected fewer than the model's "
                f"context of {context}: shorten it or leave it out."
            )
    return encoded


def stop_ids(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Every token that ends an answer: those of the generation config and of the tokenizer."""
    return ends_of(model.generation_config, tokenizer)


def ends_of(generation: Any, tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Every token that ends an answer, by a generation config and a tokenizer."""
    ends: set[Any] = set()
    for ids in (generation.eos_token_id, tokenizer.eos_token_id):
        ends |= set(ids) if isinstance(ids, list) else {ids}
    return frozenset(ends - {None})


def sample(
    sampler: "nn.Module | Sampler",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    done: AbstractSet[Key] = frozenset(),
) -> Iterator[Trace]:
    """Sample answers and yield each trace when it ends; a model is decoded here.

    `done` names answers that are not drawn again. A trace depends on the seed, the prompt and its
    sample number, not on what else is drawn or in which order. Raises BadInput, before anything is
    drawn, for a prompt that can't be encoded or fills the model's context.
    """
    if not isinstance(sampler, Sampler):
        sampler = LocalSampler(sampler, tokenizer)
    if tokenizer.chat_template is None:
        print("No chat template: prompts are encoded as plain text.", file=sys.stderr, flush=True)
    encoded = encode_all(tokenizer, prompts, sampler.context, sampling.thinking, sampling.template)
    asks = [
        Ask(key, ids, prompt)
        for prompt, ids in zip(prompts, encoded, strict=True)
        for key in keys_of([prompt], sampling.samples)
        if key not in done
    ]
    for answer in sampler.answers(asks, sampling):
        yield Trace(
            *asks[answer.index].key,
            prompt_token_ids=list(asks[answer.index].ids),
            token_ids=answer.token_ids,
            text=text_of(tokenizer, answer.token_ids, answer.finish_reason),
            finish_reason=answer.finish_reason,
        )


def sampled(
    file: str | Path,
    sampler: "nn.Module | Sampler",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    what: str = "sample",
    done: AbstractSet[Key] = frozenset(),
) -> list[Trace]:
    """The answers to the prompts in a trace file, in the prompts' order; those that it lacks are
    sampled and appended as they end, under a progress bar named `what`.

    `done` names answers that are kept elsewhere: they are neither drawn nor returned, and may be in
    the file for other readers, as may answers to other prompts. Raises BadInput as `sample` does.
    """
    wanted = set(keys_of(prompts, sampling.samples)) - done
    traces = {trace.key: trace for trace in stored_traces(file) if trace.key in wanted}
    lacking = len(wanted) - len(traces)
    if lacking:
        from surgeon.decoding import NotFinite

        try:
            with bar(what, lacking) as advance:
                drawn = sample(sampler, tokenizer, prompts, sampling, done=done | traces.keys())
                for trace in drawn:
                    append(file, trace)
                    traces[trace.key] = trace
                    advance()
        except NotFinite as error:  # of which checkpoint, where several are sampled
            raise BadInput(f"{what}: {error}") from error
    return in_order(traces.values(), prompts)
