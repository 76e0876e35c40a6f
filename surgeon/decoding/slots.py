"""The model over rows at different positions, which share its passes."""

# Shape letters: B rows of the batch (slots), T tokens of a chunk, V vocabulary, D model width.

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


@dataclass(eq=False)
class _Prompt:
    """Tokens to be read into a row."""

    slot: int
    ids: Sequence[int]
    marks: tuple[bytes, ...]
    done: int = 0
    """So many are in the row already: all, or whole chunks."""


def _marks(ids: Sequence[int], chunk: int) -> tuple[bytes, ...]:
    """A digest of the tokens up to the end of each chunk, the last one whole or not."""
    digest = hashlib.blake2b(digest_size=16)
    found = []
    for start in range(0, len(ids), chunk):
        digest.update(np.asarray(ids[start : start + chunk], dtype=np.int64).tobytes())
        found.append(digest.digest())
    return tuple(found)


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
        self.held: dict[int, tuple[bytes, ...]] = {}
        """What was read into each row, see `_marks`: positions that nothing has been written to
        since."""
        self.idle: set[int] = set()
        """Rows whose request is gone."""
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
        self.held.clear()
        self.idle.clear()

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions per row."""
        self.cache.grow(capacity)

    def widen(self, rows: int) -> None:
        """Go on with more rows, the new ones free."""
        self.cache.widen(rows)

    def shrink(self, rows: int) -> None:
        """Go on with the first `rows` rows."""
        self.cache.rows = rows
        for slot in [slot for slot in self.held if slot >= rows]:
            del self.held[slot]

    def move(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """What the rows `source` hold in their first positions now is in the rows `target`."""
        self._copy(source, target, length)
        for old, new in zip(source, target, strict=True):
            self.held[new] = self.held.pop(old, ())
        self.idle.difference_update(target)
        self.idle.update(source)

    def _copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        where, to = (torch.tensor(x, device=self.device) for x in (source, target))
        self.cache.move(where, to, length)

    def free(self, slot: int) -> None:
        """The row's request is gone; what was read for it stays until the next one is seated."""
        self.idle.add(slot)

    def clear(self, slot: int) -> None:
        """Forget what the row holds, which may be no numbers."""
        self.cache.clear(slot)
        self.held.pop(slot, None)

    def read(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Read tokens into rows (slot, tokens) that are free or hold nothing yet.

        What another row holds of the same beginning is copied, which changes no bit: the samples
        of a prompt are read once, and a beginning that prompts share in whole chunks.
        """
        found = []
        for slot, ids in prompts:
            if ids:
                found.append(_Prompt(slot, ids, _marks(ids, self.chunk)))
            else:
                self.held.pop(slot, None)
        unread = {slot for slot, _ in prompts}
        self.idle -= unread
        while found:
            place_of = self._places(unread)
            begun: set[bytes] = set()
            now: list[_Prompt] = []
            later: list[_Prompt] = []
            for prompt in found:
                # What none holds yet is read for one of those that share it; others wait for it.
                wait = any(mark in begun and mark not in place_of for mark in prompt.marks)
                (later if wait else now).append(prompt)
                begun.update(prompt.marks)
            self._place(now, place_of)
            self._read_unread(now)
            self.held |= {prompt.slot: prompt.marks for prompt in now}
            unread -= {prompt.slot for prompt in now}
            found = later

    def _places(self, unread: set[int]) -> dict[bytes, int]:
        """A row that holds each beginning, without those whose content is about to change."""
        return {
            mark: slot for slot, marks in self.held.items() if slot not in unread for mark in marks
        }

    def _place(self, prompts: Sequence["_Prompt"], place_of: dict[bytes, int]) -> None:
        """Copy what other rows hold of these prompts, as far as their own rows don't hold it."""
        for prompt in prompts:
            own = self.held.pop(prompt.slot, ())
            for n, mark in reversed([*enumerate(prompt.marks, 1)]):
                if mark in own or mark in place_of:
                    prompt.done = min(n * self.chunk, len(prompt.ids))
                    if mark not in own:
                        self._copy([place_of[mark]], [prompt.slot], prompt.done)
                    break

    def _read_unread(self, prompts: Sequence["_Prompt"]) -> None:
        # Neighbours of similar length share a pass: little padding.
        waiting = sorted(
            (prompt for prompt in prompts if prompt.done < len(prompt.ids)),
            key=lambda prompt: (len(prompt.ids), prompt.slot),
        )
        while waiting:
            share = min(self.chunk, round_up(len(waiting[-1].ids), self.block))
            n = max(1, PREFILL_TOKENS // share)
            self._read_together(waiting[-n:])
            del waiting[-n:]

    def _read_together(self, prompts: Sequence["_Prompt"]) -> None:
        """Keys and values of these prompts; the longest comes last."""
        longest, chunk = self.positions(len(prompts[-1].ids)), self.chunk
        ids_BT = np.zeros((len(prompts), longest), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            ids_BT[i, : len(prompt.ids)] = prompt.ids
        ids = torch.from_numpy(ids_BT).to(self.device)
        slots = torch.tensor([prompt.slot for prompt in prompts], device=self.device)
        for start in range(min(prompt.done for prompt in prompts), longest, chunk):
            rows = [i for i, p in enumerate(prompts) if p.done <= start < len(p.ids)]
            if not rows:
                continue
            part = ids[rows, start : start + chunk]
            length = part.shape[1]
            self.cache.slots, self.cache.start = slots[rows], start
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

        `length_B` are the tokens of each row before it, 0 for a row not in use.
        """
        cache, longest = self.cache, int(length_B.max()) + 1
        position_B = torch.from_numpy(length_B).to(self.device)
        row_B = torch.arange(len(token_B), device=self.device)
        # A free row's token goes where nothing is held.
        at_B = position_B.clone()
        if idle := [slot for slot in self.idle if slot < len(token_B)]:
            at_B[idle] = cache.capacity - 1
        cache.at_B, cache.position_B = row_B * cache.capacity + at_B, position_B
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
