"""The model over rows at different positions, which share its passes."""

# Shape letters: B rows of the batch (slots), T tokens of a chunk, V vocabulary, D model width.

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.attention import NAMES, ONE_TOKEN, SPAN, attending
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
from surgeon.live.processor import SMALL_MODEL, parameters_of

PREFILL_TOKENS = 8192
"""Prompt tokens that share a pass."""
PREFILL_CHUNK = 128
"""Prompt tokens of one row per pass: on the CPU attention sums in another order above 191."""
WIDE_CHUNK = 2048
"""The same elsewhere."""
PASS_TOKENS, SMALL_PASS_TOKENS = 32, 1024
"""A pass over prompts costs as much, whatever is in it, as reading so many tokens: of a large model
on the CPU, whose weights come from memory, and of others, whose operations have to be begun."""
PACKED_AFTER = 8
"""Single-token passes after which a copy of the weights is worth its making, where it changes no
bit."""


@dataclass(eq=False)
class _Prompt:
    """Tokens to be read into a row."""

    slot: int
    ids: Sequence[int]
    marks: tuple[bytes, ...]
    own: tuple[bytes, ...]
    """What the row holds of what was read into it before, until this is begun."""
    begun: bool = False
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
        self.chunk = PREFILL_CHUNK if self.on_cpu else WIDE_CHUNK
        large = self.on_cpu and parameters_of(model) >= SMALL_MODEL
        self.pass_tokens = PASS_TOKENS if large else SMALL_PASS_TOKENS
        self.portion = max(self.chunk, self.pass_tokens)
        """Tokens that are read at a time by those who are patient."""
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
        self.unread: list[_Prompt] = []
        """What is still to be read, in the order in which it came."""
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
        start = max(0, length - 1) // self.chunk * self.chunk
        return start + self._width(start, length)

    def _width(self, start: int, length: int) -> int:
        """Columns of the pass that reads a prompt of that length from `start` on."""
        # Sums over more keys than a span come in parts that follow from how many there are.
        if self.on_cpu and start + self.chunk > SPAN:
            return self.chunk
        return min(self.chunk, round_up(length - start, self.block))

    def fresh(self, rows: int, capacity: int) -> None:
        """Hold nothing, in so many rows of so many positions."""
        self.cache = SlotCache(self.config.num_hidden_layers, rows, capacity)
        self.held.clear()
        self.idle.clear()
        self.unread.clear()

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
        """What the rows `source` hold in their first positions now is in the rows `target`, and
        what is still to be read into them."""
        moved = dict(zip(source, target, strict=True))
        for prompt in self.unread:
            if prompt.slot in moved:
                prompt.slot, prompt.own = moved[prompt.slot], ()
                length = max(length, prompt.done)
        self._copy(source, target, length)
        for old, new in moved.items():
            self.held[new] = self.held.pop(old, ())
        self.idle.difference_update(target)
        self.idle.update(source)

    def _copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        where, to = (torch.tensor(x, device=self.device) for x in (source, target))
        self.cache.move(where, to, length)

    def free(self, slot: int) -> None:
        """The row's request is gone; what was read for it stays until the next one is seated."""
        self.idle.add(slot)
        self.unread = [prompt for prompt in self.unread if prompt.slot != slot]

    def back(self, slot: int, ids: Sequence[int]) -> None:
        """Go on after these tokens, the first of those that the row holds: what lies behind them
        is closed by the mask."""

    def clear(self, slot: int) -> None:
        """Forget what the row holds, which may be no numbers."""
        self.cache.clear(slot)
        self.held.pop(slot, None)

    def begin(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Take tokens to read into rows (slot, tokens) that are free or hold nothing yet.

        What another row holds of the same beginning will be copied, which changes no bit: the
        samples of a prompt are read once, and a beginning that prompts share in whole chunks.
        """
        for slot, ids in prompts:
            own = self.held.pop(slot, ())
            self.idle.discard(slot)
            self.unread.append(_Prompt(slot, ids, _marks(ids, self.chunk), own))

    def read_on(self, tokens: int = 0) -> list[int]:
        """Read what has been begun: in passes of up to `tokens` until those are read (a small pass
        counts as `PASS_TOKENS`), or (0) all; the rows into which everything is read now.

        Those that have come least far go first, so a short prompt doesn't wait for a long one.
        """
        whole: list[int] = []
        left = tokens
        while self.unread and not (tokens and left <= 0):
            due = self._due()
            ended = [prompt for prompt in due if prompt.done >= len(prompt.ids)]
            if not ended:
                chosen, width = self._together(due, tokens or PREFILL_TOKENS)
                self._read_chunk(chosen, width)
                left -= max(self.pass_tokens, len(chosen) * width)
                ended = [prompt for prompt in chosen if prompt.done >= len(prompt.ids)]
            whole += [prompt.slot for prompt in ended]
            self.unread = [prompt for prompt in self.unread if prompt not in ended]
        return whole

    def _due(self) -> list[_Prompt]:
        """What is next: what none holds yet is read for one of those that share it; others wait."""
        place_of: dict[bytes, int] = {}
        if not all(prompt.begun for prompt in self.unread):
            place_of = {mark: slot for slot, marks in self.held.items() for mark in marks}
        coming: set[bytes] = set()
        due = []
        for prompt in self.unread:
            if prompt.begun:
                due.append(prompt)
            elif not any(mark in coming and mark not in place_of for mark in prompt.marks):
                due.append(prompt)
                self._place(prompt, place_of)
            coming.update(prompt.marks)
        return due

    def _place(self, prompt: _Prompt, place_of: Mapping[bytes, int]) -> None:
        """Copy what another row holds of this prompt, as far as its own row doesn't hold it."""
        prompt.begun = True
        for n, mark in reversed([*enumerate(prompt.marks, 1)]):
            if mark in prompt.own or mark in place_of:
                prompt.done = min(n * self.chunk, len(prompt.ids))
                if mark not in prompt.own:
                    self._copy([place_of[mark]], [prompt.slot], prompt.done)
                break
        self._hold(prompt)

    def _hold(self, prompt: _Prompt) -> None:
        self.held[prompt.slot] = prompt.marks[: -(-prompt.done // self.chunk)]

    def _together(self, due: Sequence[_Prompt], most: int) -> tuple[list[_Prompt], int]:
        """Prompts that a pass reads, of up to so many tokens, and its columns: as many as share it
        for less padding than a pass of their own would cost."""
        start = min(prompt.done for prompt in due)
        of_width = sorted(
            ((self._width(start, len(p.ids)), p) for p in due if p.done == start),
            key=lambda pair: (pair[0], pair[1].slot),
        )
        chosen: list[_Prompt] = []
        padding = columns = 0
        for width, prompt in of_width:
            padding += len(chosen) * (width - columns)
            if chosen and (padding > self.pass_tokens or (len(chosen) + 1) * width > most):
                break
            columns = width
            chosen.append(prompt)
        return chosen, columns

    def _read_chunk(self, prompts: Sequence[_Prompt], width: int) -> None:
        """Keys and values of the next chunk of prompts that have come equally far."""
        start = prompts[0].done
        ids_BT = np.zeros((len(prompts), width), dtype=np.int64)
        for i, prompt in enumerate(prompts):
            part = prompt.ids[start : start + self.chunk]
            ids_BT[i, : len(part)] = part
        self.cache.slots = torch.tensor([prompt.slot for prompt in prompts], device=self.device)
        self.cache.start = start
        # Padding stays within the context: some models rescale positions beyond it.
        position = torch.arange(start, start + width, device=self.device)
        position = position.clamp_(max=self.limit - 1)
        with attending(self.config, self.attention), self._multiplying():
            self.decoder(
                input_ids=torch.from_numpy(ids_BT).to(self.device),
                position_ids=position.expand(len(prompts), -1),
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache.slots = None
        for prompt in prompts:
            prompt.done = min(start + self.chunk, len(prompt.ids))
            self._hold(prompt)

    def logits(self, token_B: Tensor, length_B: np.ndarray) -> Tensor:
        """Run the model over each row's newest token; the float32 logits (B, V) of the next.

        `length_B` are the tokens of each row before it, 0 for a row not in use.
        """
        cache, longest = self.cache, int(length_B.max()) + 1
        position_B = torch.from_numpy(length_B).to(self.device)
        row_B = torch.arange(len(token_B), device=self.device)
        # The token of a row without an answer goes where nothing is held.
        at_B = position_B.clone()
        without = self.idle.union(prompt.slot for prompt in self.unread)
        if idle := [slot for slot in without if slot < len(token_B)]:
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
