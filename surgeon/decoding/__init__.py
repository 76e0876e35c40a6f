"""The batched decoder: rows of a batch are slots, refilled as soon as an answer ends."""

# Shape letters: B rows of the batch (slots), T tokens of a chunk, K key positions, V vocabulary,
# D model width, S numbers of a random stream.

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.architecture import (
    causal_masks,
    check_attention,
    context_limit,
    fitting_threads,
    head_of,
    key_block,
    layer_windows,
    mask_argument,
    text_config,
    text_decoder,
)
from surgeon.decoding.attention import attending
from surgeon.decoding.cache import SlotCache, available_bytes, cache_bytes_per_token, round_up
from surgeon.decoding.choosing import STREAM_BLOCK, choose, stream_key, uniforms
from surgeon.errors import BadInput

__all__ = ["Answer", "Request", "context_limit", "decode", "stream_key"]

ROWS = 16
"""On the CPU a batch has a multiple of this many rows. Matrix products of fewer, and the last
elements of tensors of another size, are computed in another way, so an answer's bits would depend
on how many others are decoded beside it."""
LARGEST_BATCH = 256
OUTLOOK = 2048
"""Tokens per answer that an automatic batch size makes room for; longer answers shed rows."""
PREFILL_TOKENS = 8192
"""Prompt tokens that share a pass."""
PREFILL_CHUNK = 128
"""Prompt tokens of one row per pass: on the CPU attention sums in another order above 191."""


class Request(NamedTuple):
    """One answer to decode: the prompt's tokens and the key of its own random stream."""

    prompt: Sequence[int]
    stream: bytes
    """Sixteen bytes, see `stream_key`; not used when the temperature is 0."""


class Answer(NamedTuple):
    """What was decoded for `requests[index]`."""

    index: int
    token_ids: list[int]
    """The generated tokens; with the stop token, where one ended the answer."""
    finish_reason: Literal["stop", "length"]


def plan_rows(model: nn.Module, requests: Sequence[Request], max_tokens: int, batch: int) -> int:
    """How many rows to decode at once: `batch`, or as many as the free memory is likely to hold."""
    longest = max(len(request.prompt) for request in requests)
    tokens = round_up(longest + min(max_tokens, OUTLOOK), key_block(model))
    fit = memory_for_cache(model) // (cache_bytes_per_token(model) * tokens)
    most = batch or max(1, min(LARGEST_BATCH, fit))
    return whole_rows(min(most, round_up(len(requests), ROWS)), model)


def whole_rows(n: int, model: nn.Module) -> int:
    """`n` or somewhat fewer rows, see `ROWS`."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return n // ROWS * ROWS if on_cpu and n > ROWS else n


def memory_for_cache(model: nn.Module) -> int:
    """Bytes that keys and values may take: 70% of what is free."""
    return int(0.7 * available_bytes(next(model.parameters()).device))


@torch.inference_mode()
def decode(
    model: nn.Module,
    requests: Sequence[Request],
    *,
    stop: frozenset[int],
    max_tokens: int,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 0,
    batch: int = 0,
) -> Iterator[Answer]:
    """Decode every request and yield each answer when it ends.

    A row whose answer has ended takes the next request, so short answers don't wait for long ones;
    once no request waits, the batch shrinks with the rows that are left. The answer to a request
    depends on its prompt and stream, not on its neighbours: to the bit on the CPU in float32 on one
    thread (which small models always run on), for families without experts. `max_tokens` counts
    generated tokens; the model's context ends an answer too. Raises BadInput for a prompt that is
    empty or fills the context.
    """
    check_attention(model)
    limit = context_limit(model)
    for request in requests:
        if not request.prompt:
            raise BadInput("found a prompt without tokens, expected at least one.")
        if len(request.prompt) >= limit:
            raise BadInput(
                f"found a prompt of {len(request.prompt)} tokens, expected fewer than the model's "
                f"context of {limit}: shorten it."
            )
    if not requests:
        return
    batch_loop = _Loop(model, requests, stop, max_tokens, limit, batch)
    was_training = model.training
    model.eval()
    try:
        while True:
            with fitting_threads(model):
                if not batch_loop.refill():
                    return
                logits_BV = batch_loop.step()
                token_B = choose(
                    logits_BV,
                    batch_loop.random(),
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                )
            yield from batch_loop.accept(token_B)
    finally:
        model.train(was_training)


@dataclass
class _Row:
    """The answer in the making of one slot."""

    index: int
    prompt: Sequence[int]
    stream: bytes
    most: int
    token_ids: list[int] = field(default_factory=list)


class _Loop:
    """The batch: which request sits in which slot, and the tensors that the next pass needs."""

    def __init__(
        self,
        model: nn.Module,
        requests: Sequence[Request],
        stop: frozenset[int],
        max_tokens: int,
        limit: int,
        batch: int,
    ):
        self.model, self.decoder, self.stop = model, text_decoder(model), stop
        self.head, self.limit = head_of(model), limit
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.waiting = deque(
            _Row(i, r.prompt, r.stream, min(max_tokens, limit - len(r.prompt)))
            for i, r in enumerate(requests)
        )
        n = plan_rows(model, requests, max_tokens, batch)
        on_cpu = self.device.type == "cpu"
        self.step_rows = min(ROWS, n) if on_cpu else 1
        self.fixed = batch > 0
        self.budget = memory_for_cache(model)
        self.token_bytes = cache_bytes_per_token(model)
        self.windows = sorted(layer_windows(model)[0], key=lambda window: window or 0)
        longest = max(len(request.prompt) for request in requests)
        self.block, self.config = key_block(model), text_config(model)
        self.own_attention = on_cpu and self.config._attn_implementation == "sdpa"
        capacity = round_up(longest + min(max_tokens, 128), self.block)
        layers = text_config(model).num_hidden_layers
        self.cache = SlotCache(layers, n, capacity)
        self.row_B: list[_Row | None] = [None] * n
        self.token_B = torch.zeros(n, dtype=torch.long, device=self.device)
        self.length_B = np.zeros(n, dtype=np.int64)
        """The position of each row's next token; 0 for an idle row, which rewrites position 0."""
        self.random_BS = np.zeros((n, STREAM_BLOCK))
        self.masks = {window: self._closed(n, capacity) for window in self.windows}

    def _closed(self, rows: int, capacity: int) -> Tensor:
        return torch.full((rows, capacity), -torch.inf, dtype=self.dtype, device=self.device)

    # refill

    def refill(self) -> bool:
        """Give free slots to waiting requests; False when nothing is left to decode."""
        free = [b for b, row in enumerate(self.row_B) if row is None]
        n = len(self.row_B)
        if self.waiting and len(free) > n // 32:
            self._seat(free[: len(self.waiting)])
        elif len(free) == n:
            return False
        elif not self.waiting and len(free) > n // 16:
            self._shrink(min(n, round_up(n - len(free), self.step_rows)))
        return True

    def _seat(self, slots: list[int]) -> None:
        seated = []
        for b in slots:
            row = self.waiting.popleft()
            self.row_B[b] = row
            length = len(row.prompt) - 1
            self.length_B[b] = length
            self.token_B[b] = row.prompt[-1]
            self.random_BS[b] = uniforms(row.stream, 0)
            for window, mask in self.masks.items():
                mask[b] = -torch.inf
                mask[b, 0 if window is None else max(0, length - window) : length] = 0
            if length:
                seated.append((length, b))
        # Neighbours of similar length share a pass: little padding.
        seated.sort()
        chunk = PREFILL_CHUNK if self.device.type == "cpu" else PREFILL_TOKENS
        while seated:
            n = max(1, PREFILL_TOKENS // min(chunk, round_up(seated[-1][0], self.block)))
            self._prefill([b for _, b in seated[-n:]], chunk)
            del seated[-n:]

    def _prefill(self, slots: list[int], chunk: int) -> None:
        """Keys and values of these rows' prompts, all but the last token; the longest come last."""
        lengths = [int(self.length_B[b]) for b in slots]
        longest = round_up(lengths[-1], chunk if lengths[-1] > chunk else self.block)
        if longest > self.cache.capacity:
            self._grow(longest)
        ids_BT = np.zeros((len(slots), longest), dtype=np.int64)
        for i, b in enumerate(slots):
            row = self.row_B[b]
            assert row is not None
            ids_BT[i, : lengths[i]] = row.prompt[:-1]
        ids = torch.from_numpy(ids_BT).to(self.device)
        for start in range(0, longest, chunk):
            done = bisect_right(lengths, start)
            part = ids[done:, start : start + chunk]
            length = part.shape[1]
            self.cache.slots = torch.tensor(slots[done:], device=self.device)
            self.cache.start = start
            # Padding stays within the context: some models rescale positions beyond it.
            position = torch.arange(start, start + length, device=self.device)
            position = position.clamp_(max=self.limit - 1)
            masks = causal_masks(
                self.model, start, length, start + length, dtype=self.dtype, device=self.device
            )
            self.decoder(
                input_ids=part,
                position_ids=position.expand(len(part), -1),
                attention_mask=masks,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache.slots = None

    # one token for every row

    def step(self) -> Tensor:
        """Run the model over each row's newest token; the logits (B, V) of the next."""
        longest = int(self.length_B.max()) + 1
        if longest > self.cache.capacity:
            self._grow(longest)
        n, cache = len(self.row_B), self.cache
        length_B = torch.from_numpy(self.length_B).to(self.device)
        at_B = torch.arange(n, device=self.device) * cache.capacity + length_B
        for window, mask in self.masks.items():
            flat = mask.view(-1)
            if window is not None and longest > window:
                flat.index_fill_(
                    0, torch.where(length_B >= window, at_B - window, at_B), -torch.inf
                )
            flat.index_fill_(0, at_B, 0.0)
        cache.at_B, cache.start = at_B, longest
        cache.span = min(round_up(longest, self.block), cache.capacity)
        masks = {window: mask[:, None, None, : cache.span] for window, mask in self.masks.items()}
        with attending(self.config) if self.own_attention else nullcontext():
            hidden_B1D = self.decoder(
                input_ids=self.token_B[:, None],
                position_ids=length_B[:, None],
                attention_mask=mask_argument(self.model, masks),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return self.head.logits(hidden_B1D[:, -1])

    def random(self) -> Tensor:
        """The next number of each row's stream."""
        n = len(self.row_B)
        at_B = [len(row.token_ids) % STREAM_BLOCK if row is not None else 0 for row in self.row_B]
        return torch.from_numpy(self.random_BS[np.arange(n), at_B]).to(self.device)

    def accept(self, token_B: Tensor) -> list[Answer]:
        """Append each row's token; free the slots whose answers ended and return those."""
        self.token_B = token_B
        ended = []
        for b, token in enumerate(token_B.tolist()):
            row = self.row_B[b]
            if row is None:
                continue
            row.token_ids.append(token)
            count = len(row.token_ids)
            if token in self.stop or count >= row.most:
                reason = "stop" if token in self.stop else "length"
                ended.append(Answer(row.index, row.token_ids, reason))
                self._free(b)
                continue
            self.length_B[b] += 1
            if count % STREAM_BLOCK == 0:
                self.random_BS[b] = uniforms(row.stream, count // STREAM_BLOCK)
        return ended

    def _free(self, b: int) -> None:
        self.row_B[b] = None
        self.length_B[b] = 0
        for mask in self.masks.values():
            mask[b] = -torch.inf

    # size

    def _grow(self, needed: int) -> None:
        """Make room for `needed` positions a row, giving up the youngest rows where memory ends."""
        capacity = round_up(max(needed, self.cache.capacity * 3 // 2), self.block)
        n = len(self.row_B)
        if not self.fixed and n * capacity * self.token_bytes > self.budget:
            capacity = round_up(needed, self.block)
            fit = max(1, self.budget // (capacity * self.token_bytes))
            fit = whole_rows(fit, self.model)
            if fit < n:
                self._shed(fit)
        self.cache.grow(capacity)
        for window, old in self.masks.items():
            self.masks[window] = self._closed(len(self.row_B), capacity)
            self.masks[window][:, : old.shape[1]] = old

    def _shed(self, n: int) -> None:
        """Go on with `n` rows; the answers that are given up start again, with the same result."""
        rows = [(len(row.token_ids), b) for b, row in enumerate(self.row_B) if row is not None]
        for _, b in sorted(rows)[: max(0, len(rows) - n)]:
            row = self.row_B[b]
            assert row is not None
            row.token_ids = []
            self.waiting.appendleft(row)
            self._free(b)
        self.step_rows = min(self.step_rows, n)
        self._shrink(n)

    def _shrink(self, n: int) -> None:
        """Move the answers of the last rows into free slots, and go on with `n` rows."""
        if n == len(self.row_B):
            return
        source = [b for b, row in enumerate(self.row_B) if row is not None and b >= n]
        target = [b for b, row in enumerate(self.row_B[:n]) if row is None][: len(source)]
        if source:
            where, to = (torch.tensor(x, device=self.device) for x in (source, target))
            self.cache.move(where, to, min(int(self.length_B.max()), self.cache.capacity))
            self.token_B[to] = self.token_B[where]
            for mask in self.masks.values():
                mask[to] = mask[where]
            self.length_B[target], self.random_BS[target] = (
                self.length_B[source],
                self.random_BS[source],
            )
            for old, new in zip(source, target, strict=True):
                self.row_B[new] = self.row_B[old]
        self.row_B, self.token_B = self.row_B[:n], self.token_B[:n]
        self.length_B, self.random_BS = self.length_B[:n], self.random_BS[:n]
        self.masks = {window: mask[:n] for window, mask in self.masks.items()}
        self.cache.rows = n
