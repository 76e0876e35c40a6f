"""The model over rows at different positions, which share its passes."""

# Shape letters: B rows of the batch (slots), T tokens of a chunk, V vocabulary, D model width.

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.attention import NAMES, ONE_TOKEN, attending
from surgeon.decoding.cache import SlotCache, cache_bytes_per_token, round_up
from surgeon.decoding.packing import Packed, packable
from surgeon.live.architecture import (
    context_limit,
    device_of,
    head_of,
    key_block,
    text_config,
    text_decoder,
)

PREFILL_TOKENS = 8192
"""Prompt tokens that share a pass."""
PREFILL_CHUNK = 128
"""Prompt tokens of one row per pass: on the CPU attention sums in another order above 191."""
PACKED_AFTER = 8
"""Single-token passes after which a copy of the weights is worth its making, where it changes no
bit."""


class Slots:
    """One cache for all rows; the masks are the model's own, at each row's position."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.decoder, self.config = text_decoder(model), text_config(model)
        self.head, self.limit = head_of(model), context_limit(model)
        self.device = device_of(model)
        self.on_cpu = self.device.type == "cpu"
        self.block, self.token_bytes = key_block(model), cache_bytes_per_token(model)
        self.chunk = PREFILL_CHUNK if self.on_cpu else PREFILL_TOKENS
        kind = self.config._attn_implementation
        self.attention = NAMES[kind]
        self.one_token = ONE_TOKEN if self.on_cpu and kind == "sdpa" else self.attention
        self.linears = packable(model)
        self.packed: Packed | None = None
        # In float32 an answer must not begin with one order of sums and go on with another.
        same_bits = all(linear.weight.dtype == torch.bfloat16 for linear in self.linears)
        self.passes_to_pack = PACKED_AFTER if same_bits else 0
        self.fresh(0, 0)

    def pack(self) -> None:
        """Copy the weights into the order of the CPU's products, where that is due."""
        if self.packed is None and self.linears and self.passes_to_pack <= 0:
            self.packed = Packed(self.linears)

    def _multiplying(self) -> AbstractContextManager[None]:
        """Entered around what runs the model."""
        self.pack()
        return nullcontext() if self.packed is None else self.packed.used()

    @property
    def capacity(self) -> int:
        """Positions that a row has room for."""
        return self.cache.capacity

    def positions(self, length: int) -> int:
        """The positions that a pass over so many prompt tokens writes."""
        return round_up(length, self.chunk if length > self.chunk else self.block)

    def fresh(self, rows: int, capacity: int) -> None:
        """Hold nothing, in so many rows of so many positions."""
        self.cache = SlotCache(self.config.num_hidden_layers, rows, capacity)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions per row."""
        self.cache.grow(capacity)

    def widen(self, rows: int) -> None:
        """Go on with more rows, the new ones free."""
        self.cache.widen(rows)

    def shrink(self, rows: int) -> None:
        """Go on with the first `rows` rows."""
        self.cache.rows = rows

    def move(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """What the rows `source` hold in their first positions now is in the rows `target`."""
        where, to = (torch.tensor(x, device=self.device) for x in (source, target))
        self.cache.move(where, to, length)

    def free(self, slot: int) -> None:
        """The row's request is gone; the next one begins at position 0 again."""

    def clear(self, slot: int) -> None:
        """Forget what the row holds, which may be no numbers."""
        self.cache.clear(slot)

    def read(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read tokens into rows (slot, tokens) that hold nothing yet."""
        # Neighbours of similar length share a pass: little padding.
        waiting = sorted((len(ids), slot, ids) for slot, ids in prompts if ids)
        while waiting:
            share = min(self.chunk, round_up(waiting[-1][0], self.block))
            n = max(1, PREFILL_TOKENS // share)
            self._read_together(waiting[-n:])
            del waiting[-n:]

    def _read_together(self, prompts: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """Keys and values of these prompts (length, slot, tokens); the longest come last."""
        lengths = [length for length, _, _ in prompts]
        longest, chunk = self.positions(lengths[-1]), self.chunk
        ids_BT = np.zeros((len(prompts), longest), dtype=np.int64)
        for i, (length, _, ids) in enumerate(prompts):
            ids_BT[i, :length] = ids
        ids = torch.from_numpy(ids_BT).to(self.device)
        slots = torch.tensor([slot for _, slot, _ in prompts], device=self.device)
        for start in range(0, longest, chunk):
            done = bisect_right(lengths, start)
            part = ids[done:, start : start + chunk]
            length = part.shape[1]
            self.cache.slots, self.cache.start = slots[done:], start
            # Padding stays within the context: some models rescale positions beyond it.
            position = torch.arange(start, start + length, device=self.device)
            position = position.clamp_(max=self.limit - 1)
            with attending(self.config, self.attention), self._multiplying():
                self.decoder(
                    input_ids=part,
                    position_ids=position.expand(len(part), -1),
                    past_key_values=self.cache,
                    use_cache=True,
                )
        self.cache.slots = None

    def logits(self, token_B: Tensor, length_B: np.ndarray) -> Tensor:
        """Run the model over each row's newest token; the float32 logits (B, V) of the next.

        `length_B` are the tokens of each row before it, 0 for a row not in use, which rewrites its
        position 0.
        """
        cache, longest = self.cache, int(length_B.max()) + 1
        position_B = torch.from_numpy(length_B).to(self.device)
        row_B = torch.arange(len(token_B), device=self.device)
        cache.at_B, cache.position_B = row_B * cache.capacity + position_B, position_B
        cache.start, cache.span = longest, min(round_up(longest, self.block), cache.capacity)
        self.passes_to_pack -= 1
        with attending(self.config, self.one_token), self._multiplying():
            hidden_B1D = self.decoder(
                input_ids=token_B[:, None],
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return self.head.logits(hidden_B1D[:, -1]).to(self.device)
