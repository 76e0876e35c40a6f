"""The engine that samples answers in this process, and what keeps them on disk as they end."""

import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    ends: set[Any] = set()
    for ids in (model.generation_config.eos_token_id, tokenizer.eos_token_id):  # pyright: ignore
        ends |= set(ids) if isinstance(ids, list) else {ids}
    return frozenset(ends - {None})


def sample(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    done: AbstractSet[Key] = frozenset(),
) -> Iterator[Trace]:
    """Sample answers with a live model and yield each trace when it ends.

    `done` names answers that are not drawn again. A trace depends on the seed, the prompt and its
    sample number, not on what else is drawn or in which order. Raises BadInput, before anything is
    drawn, for a prompt that can't be encoded or fills the model's context.
    """
    # Not at the top: whoever reads traces needs no torch.
    from surgeon.decoding import Request, context_limit, decode, stream_key

    if tokenizer.chat_template is None:
        print("No chat template: prompts are encoded as plain text.", file=sys.stderr, flush=True)
    encoded = encode_all(
        tokenizer, prompts, context_limit(model), sampling.thinking, sampling.template
    )
    keys, requests = [], []
    for prompt, ids in zip(prompts, encoded, strict=True):
        for key in keys_of([prompt], sampling.samples):
            if key not in done:
                keys.append(key)
                requests.append(Request(ids, stream_key(sampling.seed, *key)))
    for answer in decode(
        model,
        requests,
        stop=stop_ids(model, tokenizer),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        batch=sampling.batch,
    ):
        yield Trace(
            *keys[answer.index],
            prompt_token_ids=list(requests[answer.index].prompt),
            token_ids=answer.token_ids,
            text=text_of(tokenizer, answer.token_ids, answer.finish_reason),
            finish_reason=answer.finish_reason,
        )


def sampled(
    file: str | Path,
    model: "nn.Module",
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
        with bar(what, lacking) as advance:
            for trace in sample(model, tokenizer, prompts, sampling, done=done | traces.keys()):
                append(file, trace)
                traces[trace.key] = trace
                advance()
    return in_order(traces.values(), prompts)
