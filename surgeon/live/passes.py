"""Traces read back through a model: right-padded passes of traces of similar length, in chunks.

    for step in passes(model, traces, batch_tokens=4096):
        with hooks(...):
            hidden_BTD = step.run()
        for b, part in enumerate(step.parts):
            ... hidden_BTD[b, part.columns(start, stop)]

The model makes its own masks and positions, so a pass is right for every kind of attention. A trace
that is longer than a pass is read in chunks through the model's own key/value cache, where that
cache continues a sequence exactly; else in one pass.
"""

# Shape letters: B traces of a pass, T its tokens, D model width.

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from surgeon.live.processor import fitting_threads, say_slow_type
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
    try:
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
) -> Iterator[T]:
    """`read`'s results for traces, in their order, a window of consecutive ones at a time.

    Within a window `passes` may order the traces as it likes, and memory stays bounded. Between
    windows the caller may use the model.
    """
    window: list[Trace] = []
    tokens = 0
    say_slow_type(model)
    with evaluating(model):
        for i, trace in enumerate(traces):
            window.append(trace)
            tokens += length(trace)
            following = length(traces[i + 1]) if i + 1 < len(traces) else math.inf
            if tokens + following > WINDOW_PASSES * batch_tokens:
                with fitting_threads(model):
                    results = read(window)
                yield from results
                window, tokens = [], 0


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
    those that attention sums in the same order share a pass.
    """
    device = device_of(model)
    batches = _Batches(batch_tokens, chunk_tokens or batch_tokens, key_block(model) if apart else 1)
    lengths = [length(trace) for trace in traces]
    for batch in batches.of(lengths, in_order):
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


class _Batches:
    """Which traces share a pass; with a `block` above 1 only those of one kind."""

    def __init__(self, tokens: int, chunk: int, block: int):
        self.tokens, self.block = tokens, block
        self.chunk = self.padded(chunk)

    def padded(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def of(self, lengths: Sequence[int], in_order: bool) -> Iterator[list[int]]:
        """Numbers of traces, by their lengths."""
        order: Sequence[int] = range(len(lengths))
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
