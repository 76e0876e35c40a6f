"""Traces read back through a model: right-padded passes of traces of similar length, in chunks.

    for step in passes(model, traces, batch_tokens=4096):
        with hooks(...):
            hidden_BTD = step.run()
        for b, part in enumerate(step.parts):
            ... hidden_BTD[b, part.columns(start, stop)]

The model makes its own masks and positions, so a pass is right for every kind of attention. A trace
that is longer than a pass is read in chunks through the model's own key/value cache, where that
cache continues a sequence exactly; else in one pass. Where it pays, a prompt is read once, and each
of its samples from the prompt's cache on.
"""

# Shape letters: B traces of a pass, T its tokens, K keys (T and those before), D model width.

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.architecture import (
    causal_lm,
    context_limit,
    device_of,
    key_block,
    text_config,
    text_decoder,
)
from surgeon.live.processor import SMALL_MODEL, fitting_threads, parameters_of, say_slow_type
from surgeon.traces import Trace

if TYPE_CHECKING:
    from transformers import DynamicCache

T = TypeVar("T")

WINDOW_PASSES = 8
"""Results wait for their turn among the traces of about this many passes."""
SUMMATION_EDGES = (192, 768)
"""Attention on the CPU sums in another order from so many positions on."""
CHUNKABLE = {"full_attention", "sliding_attention"}
"""Kinds of layers whose cache takes several tokens at once after others, exactly."""
SHARED_PROMPT, SHARED_RESPONSE = 128, 256
"""Tokens of prompt and response from which on a large model on the CPU reads the response after its
prompt's cache, and in passes of its own: shorter ones of different prompts share passes instead.
Whether there are other samples plays no part, so that the bits don't depend on it."""
QUERIES = 256
"""Tokens of a chunk that attend together to the keys up to the last of them."""
IN_PARTS = "surgeon_in_parts"
"""`attend_in_parts` instead of transformers' function."""


class Part(NamedTuple):
    """The tokens of one trace that a pass may hold: its row of the pass."""

    trace: int
    """Its number among the traces."""
    first: int
    """The place, in prompt and response, of the token in the pass's first column."""
    stop: int
    """The place behind its last token in the pass; `first` or less when only padding is left."""

    def columns(self, start: int, stop: int) -> slice:
        """The columns of the pass that hold the places `start` to `stop` of the trace."""
        low = max(start, self.first)
        return slice(low - self.first, max(low, min(stop, self.stop)) - self.first)


@dataclass(frozen=True, eq=False)
class Pass:
    """One call of the model; `run` it before the next one is asked for."""

    model: nn.Module
    ids_BT: Tensor
    parts: tuple[Part, ...]
    cache: "DynamicCache | None"
    """The model's keys and values of the chunks before; None where one pass holds everything."""
    until: int | None

    def run(self) -> Tensor:
        """Hidden states (B, T, D), padding included, as `forward` returns them."""
        first = self.parts[0].first
        return forward(self.model, self.ids_BT, first=first, cache=self.cache, until=self.until)


class _Enough(Exception):
    """The pass has come as far as it is wanted."""

    def __init__(self, hidden_BTD: Tensor):
        self.hidden_BTD = hidden_BTD


def forward(
    model: nn.Module,
    ids_BT: Tensor,
    *,
    first: int = 0,
    cache: "DynamicCache | None" = None,
    until: int | None = None,
) -> Tensor:
    """Feed tokens that follow `first` earlier ones; the final hidden states (B, T, D).

    With `until` the pass ends behind that layer, whose output is returned.
    """
    decoder: Any = text_decoder(model)
    # Padding stays within the context: some models rescale positions beyond it.
    position_T = torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)
    position_T.clamp_(max=context_limit(model) - 1)
    undo = None if until is None else decoder.layers[until].register_forward_hook(_stop)
    config = text_config(model)
    in_parts = first and ids_BT.device.type == "cpu" and config._attn_implementation == "sdpa"
    try:
        with _attending_in_parts(config) if in_parts else nullcontext():
            return decoder(
                input_ids=ids_BT,
                position_ids=position_T.expand(len(ids_BT), -1),
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
    except _Enough as enough:
        return enough.hidden_BTD
    finally:
        if undo is not None:
            undo.remove()


def attend_in_parts(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """transformers' attention of tokens that follow others, in parts that don't touch the keys
    behind them: queries (B, heads, T, D), keys and values (B, H, K, D), mask (B, 1, T, K); returns
    (B, T, heads, D)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend, T, K = ALL_ATTENTION_FUNCTIONS["sdpa"], query.shape[2], key.shape[2]
    if mask is None:
        return attend(module, query, key, value, mask, **more)
    outs = []
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        part, seen = slice(start, stop), slice(K - T + stop)
        out, _ = attend(
            module, query[:, :, part], key[:, :, seen], value[:, :, seen],
            mask[:, :, part, seen], **more,
        )  # fmt: skip
        outs.append(out)
    return torch.cat(outs, 1), None


@contextmanager
def _attending_in_parts(config: Any) -> Iterator[None]:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IN_PARTS, attend_in_parts)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IN_PARTS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    before = config._attn_implementation_internal
    config._attn_implementation_internal = IN_PARTS
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _stop(_: nn.Module, __: Any, out: Tensor | tuple[Tensor, ...]) -> None:
    raise _Enough(out if isinstance(out, Tensor) else out[0])


def length(trace: Trace) -> int:
    """Tokens of prompt and response."""
    return len(trace.prompt_token_ids) + len(trace.token_ids)


def check_traces(model: nn.Module, traces: Sequence[Trace]) -> None:
    """Raise BadInput for a trace that is longer than the context or has unknown tokens."""
    limit = context_limit(model)
    vocabulary = causal_lm(model).get_input_embeddings().weight.shape[0]
    for trace in traces:
        name = f"sample {trace.sample} of prompt {trace.prompt_id!r}"
        if not trace.prompt_token_ids or not trace.token_ids:
            raise BadInput(f"{name} has no prompt tokens or no response tokens; expected both.")
        if length(trace) > limit:
            raise BadInput(f"{name} has {length(trace)} tokens; the model's context is {limit}.")
        highest = max(max(trace.prompt_token_ids), max(trace.token_ids))
        if highest >= vocabulary:
            raise BadInput(
                f"{name} has the token {highest}; the model knows {vocabulary}. The traces come "
                "from a model with another tokenizer."
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, and as it was after it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def in_windows(
    model: nn.Module,
    traces: Sequence[Trace],
    batch_tokens: int,
    read: Callable[[list[Trace]], list[T]],
    wanted: Container[int] | None = None,
) -> Iterator[T]:
    """`read`'s results for traces, in their order, a window of consecutive ones at a time.

    Within a window `passes` may order the traces as it likes, and memory stays bounded; the samples
    of a prompt stay together up to twice that. Between windows the caller may use the model.

    With `wanted`, results are those of the traces of these numbers only. Windows stay those of all
    traces, for sums over other rows round otherwise: a run that goes on has the numbers it would
    have had. Windows without any such trace aren't read.
    """
    window: list[Trace] = []
    asked: list[bool] = []
    tokens = 0
    say_slow_type(model)
    with evaluating(model):
        for i, trace in enumerate(traces):
            window.append(trace)
            asked.append(wanted is None or i in wanted)
            tokens += length(trace)
            following, most = math.inf, WINDOW_PASSES * batch_tokens
            if i + 1 < len(traces):
                following = length(traces[i + 1])
                most *= 1 + (traces[i + 1].prompt_token_ids == trace.prompt_token_ids)
            if tokens + following > most:
                if any(asked):
                    with fitting_threads(model):
                        results = read(window)
                    yield from compress(results, asked)
                window, asked, tokens = [], [], 0


def passes(
    model: nn.Module,
    traces: Sequence[Trace],
    *,
    batch_tokens: int,
    chunk_tokens: int = 0,
    until: int | None = None,
    in_order: bool = False,
    apart: bool = False,
) -> Iterator[Pass]:
    """The passes that read every trace once; the chunks of a trace follow one another.

    Traces of similar length, the longest first (or, `in_order`, consecutive ones) share passes of
    at most `batch_tokens` tokens with padding. A longer trace is read in chunks of `chunk_tokens`
    (0: `batch_tokens`) through a cache, where the architecture allows. With `apart` not even the
    rounding of a row depends on its neighbours: lengths are padded to a block of keys, and only
    those that attention sums in the same order share a pass. The samples of a long prompt follow it
    one by one then, see `SHARED_PROMPT`.
    """
    device = device_of(model)
    batches = _Batches(batch_tokens, chunk_tokens or batch_tokens, key_block(model) if apart else 1)
    lengths = [length(trace) for trace in traces]
    by_prompt, others = _by_prompt(model, traces) if apart else ({}, range(len(traces)))
    for numbers in by_prompt.values():
        yield from _after_prompt(model, traces, numbers, batches.chunk, until)
    for batch in batches.of(lengths, others, in_order):
        longest = batches.padded(max(lengths[i] for i in batch))
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for b, i in enumerate(batch):
            ids_BT[b, : lengths[i]] = torch.tensor(
                [*traces[i].prompt_token_ids, *traces[i].token_ids]
            )
        ids_BT = ids_BT.to(device)
        cache = chunk_cache(model) if longest > batches.chunk else None
        step = longest if cache is None else batches.chunk
        for first in range(0, longest, step):
            part_BT = ids_BT[:, first : first + step]
            last = first + part_BT.shape[1]
            parts = tuple(Part(i, first, min(lengths[i], last)) for i in batch)
            yield Pass(model, part_BT, parts, cache, until)


def _by_prompt(
    model: nn.Module, traces: Sequence[Trace]
) -> tuple[dict[tuple[int, ...], list[int]], list[int]]:
    """The numbers of traces that are read from their prompt's cache on, by prompt; the others'."""
    found: dict[tuple[int, ...], list[int]] = {}
    others: list[int] = []
    cache = chunk_cache(model)
    fits = (
        device_of(model).type == "cpu"
        and parameters_of(model) >= SMALL_MODEL
        and cache is not None
        and {type(layer).__name__ for layer in cache.layers} == {"DynamicLayer"}
    )
    for i, trace in enumerate(traces):
        long = (
            len(trace.prompt_token_ids) > SHARED_PROMPT and len(trace.token_ids) > SHARED_RESPONSE
        )
        if fits and long:
            found.setdefault(tuple(trace.prompt_token_ids), []).append(i)
        else:
            others.append(i)
    return found, others


def _after_prompt(
    model: nn.Module, traces: Sequence[Trace], numbers: Sequence[int], chunk: int, until: int | None
) -> Iterator[Pass]:
    """The passes over samples of one prompt, from its last token on, which predicts the first of
    each response; what comes before is read once."""
    device = device_of(model)
    prompt_T = torch.tensor(traces[numbers[0]].prompt_token_ids, device=device)
    cache, shared = chunk_cache(model), len(prompt_T) - 1
    assert cache is not None
    for first in range(0, shared, chunk):
        ids_1T = prompt_T[None, first : min(first + chunk, shared)]
        forward(model, ids_1T, first=first, cache=cache, until=until)
    for i in numbers:
        cache.crop(shared - cache.get_seq_length())
        response_T = torch.tensor(traces[i].token_ids, device=device)
        ids_1T = torch.cat([prompt_T[-1:], response_T])[None]
        for start in range(0, ids_1T.shape[1], chunk):
            part_1T, first = ids_1T[:, start : start + chunk], shared + start
            yield Pass(model, part_1T, (Part(i, first, first + part_1T.shape[1]),), cache, until)


class _Batches:
    """Which traces share a pass; with a `block` above 1 only those of one kind."""

    def __init__(self, tokens: int, chunk: int, block: int):
        self.tokens, self.block = tokens, block
        self.chunk = self.padded(chunk)

    def padded(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def of(
        self, lengths: Sequence[int], order: Sequence[int], in_order: bool
    ) -> Iterator[list[int]]:
        """Those numbers of traces, by their lengths."""
        if not in_order:
            order = sorted(order, key=lambda i: -lengths[i])
        batch: list[int] = []
        longest = 0
        for i in order:
            longest = max(longest, self.padded(lengths[i]))
            full = longest * (len(batch) + 1) > self.tokens
            if batch and (full or self._kind(lengths[i]) != self._kind(lengths[batch[0]])):
                yield batch
                batch, longest = [], self.padded(lengths[i])
            batch.append(i)
        if batch:
            yield batch

    def _kind(self, tokens: int) -> tuple[bool, ...]:
        if self.block == 1:
            return ()
        return tuple(self.padded(tokens) >= edge for edge in (*SUMMATION_EDGES, self.chunk + 1))


def chunk_cache(model: nn.Module) -> "DynamicCache | None":
    """The model's cache, empty; None where it can't continue a sequence by several tokens at once:
    recurrent layers start anew, and chunks of chunked attention end where the pass does."""
    from transformers.cache_utils import DynamicCache, get_layer_types_and_kwargs

    config = text_config(model)
    kinds, _ = get_layer_types_and_kwargs(config)
    return DynamicCache(config=config) if set(kinds) <= CHUNKABLE else None
