"""A batch whose requests join and leave while it runs: rows are slots, each at its own position."""

# Shape letters: B rows of the batch (slots), V vocabulary, S numbers of a random stream.

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.alone import Alone
from surgeon.decoding.cache import available_bytes, cache_bytes_per_token, round_up
from surgeon.decoding.choosing import (
    STREAM_BLOCK,
    VECTORS,
    DrawSettings,
    NotFinite,
    choose,
    stream_key,
    uniforms,
)
from surgeon.decoding.fitting import ROWS, evaluating, passes_of, row_block
from surgeon.decoding.packing import bytes_of, packable
from surgeon.decoding.requests import (
    FinishReason,
    Request,
    Rewind,
    Rewinding,
    Token,
    Watcher,
)
from surgeon.decoding.shaping import PLAIN, Constraint, Shaping, likelihoods, shaped
from surgeon.errors import BadInput
from surgeon.live.architecture import (
    check_decodable,
    context_limit,
    device_of,
    key_block,
    text_config,
)
from surgeon.live.processor import fitting_threads

LARGEST_BATCH = 256
OUTLOOK = 2048
"""Tokens per answer that an automatic batch size makes room for; longer answers shed rows."""


def plan_rows(model: nn.Module, requests: Sequence[Request], max_tokens: int, batch: int) -> int:
    """How many rows to decode at once: `batch`, or as many as the free memory is likely to hold."""
    longest = max(len(request.prompt) for request in requests)
    tokens = round_up(longest + min(max_tokens, OUTLOOK), key_block(model))
    fit = memory_for_cache(model) // (cache_bytes_per_token(model) * tokens)
    most = batch or max(1, min(LARGEST_BATCH, fit))
    return whole_rows(min(most, round_up(len(requests), ROWS)), model)


def whole_rows(n: int, model: nn.Module) -> int:
    """`n` or somewhat fewer rows, see `fitting.ROWS`."""
    on_cpu = device_of(model).type == "cpu"
    return n // ROWS * ROWS if on_cpu and n > ROWS else n


def _drawn(logits_BV: Tensor, number_B: Tensor, draw: DrawSettings) -> Tensor:
    """`choose`, so that a row's token doesn't depend on how many rows are given: where rows don't
    fill the CPU's vectors, it would compute the last numbers in another way."""
    n, V = logits_BV.shape
    if logits_BV.device.type == "cpu" and V % VECTORS and n % ROWS:
        filled = torch.arange(round_up(n, ROWS)).clamp_(max=n - 1)
        logits_BV, number_B = logits_BV[filled], number_B[filled]
    return choose(logits_BV, number_B, **draw._asdict())[:n]


def memory_for_cache(model: nn.Module) -> int:
    """Bytes that keys and values may take: 70% of what is free, beside a copy of the weights."""
    copied = bytes_of(packable(model))
    return int(0.7 * max(0, available_bytes(device_of(model)) - copied))


@dataclass(eq=False)
class _Row:
    """The answer in the making of one slot."""

    index: int
    prompt: Sequence[int]
    stream: bytes
    most: int
    draw: DrawSettings
    shaping: Shaping = PLAIN
    constraint: Constraint | None = None
    likelihoods: int | None = None
    token_ids: list[int] = field(default_factory=list)
    """What was emitted, and what is held."""
    count: int = 0
    """Tokens decoded since the row was seated. While below len(token_ids), an answer that was given
    up is made again, and what was emitted stands."""
    queue: deque[int] = field(default_factory=deque)
    """Forced tokens that are still to come."""
    again: deque[int] = field(default_factory=deque)
    """Tokens that were drawn before, and still are to come once more."""
    held: list[Token] = field(default_factory=list)
    """The last of the tokens, which may still be taken back."""
    goes_on: bytes = b""
    """The random stream, where it isn't the request's own any more."""

    @property
    def told(self) -> int | None:
        """The next token, where it isn't for the model to choose."""
        if self.count < len(self.token_ids):
            return self.token_ids[self.count]
        coming = self.again or self.queue
        return coming[0] if coming else None

    def numbers(self) -> np.ndarray:
        """The random numbers of the next tokens."""
        return uniforms(self.goes_on or self.stream, self.count // STREAM_BLOCK)


class Decoder:
    """A batch that requests join and leave while it runs.

    `rows` is how many answers are decoded at once; more requests wait. The batch widens to that as
    requests come, and shrinks as they go. `max_tokens` and what follows hold for requests that
    don't bring their own. Where it `sheds`, the youngest answers are given up when the memory for
    keys and values ends, and start again later (tokens that were emitted stay as they are, and
    aren't emitted again); else `rows` answers are held, whatever memory it takes. Where it is
    `patient`, prompts are read a chunk at a time between the tokens of answers in the making, which
    a long prompt would hold up else; all answers together take somewhat longer then.

    An answer depends on its request, not on its neighbours or on when it came, see `decode`. One
    thread at a time may use a decoder and its model: that is the caller's business.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stop: frozenset[int],
        rows: int,
        max_tokens: int,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 0,
        sheds: bool = True,
        patient: bool = False,
        watcher: Watcher | None = None,
    ):
        check_decodable(model)
        self.passes = passes_of(model, splits=watcher is not None)
        if isinstance(self.passes, Alone) and (watcher is not None or self.passes.one_at_a_time):
            # A watcher is told of a pass's only row as of the batch's only one.
            rows = 1
        self.model, self.stop, self.limit = model, stop, context_limit(model)
        self.watcher, self.sheds, self.patient = watcher, sheds, patient
        self.rewinding = watcher if isinstance(watcher, Rewinding) else None
        self.max_tokens, self.draw = max_tokens, DrawSettings(temperature, top_p, top_k)
        self.device = device_of(model)
        self.on_cpu = self.device.type == "cpu"
        self.rows = self.most = whole_rows(rows, model)
        self.row_block = row_block(self.passes)
        self.budget, self.block = memory_for_cache(model), key_block(model)
        self.indices: set[int] = set()
        self.waiting: deque[_Row] = deque()
        self.longest = 0
        """Positions that each row needs at first, for the longest request since the last idling."""
        self.row_B: list[_Row | None] = []
        """The answers in the making."""
        self.reading: dict[int, _Row] = {}
        """By slot, those whose prompts are being read: their slots have no row in `row_B` yet."""
        self.token_B = torch.zeros(0, dtype=torch.long, device=self.device)
        self.length_B = np.zeros(0, dtype=np.int64)
        """The position of each row's next token; 0 for an idle row, which rewrites position 0."""
        self.random_BS = np.zeros((0, STREAM_BLOCK))
        self.failed: list[int] = []
        """Requests that the last pass ended, as their logits aren't finite."""
        self.logprob_V: dict[int, Tensor] = {}
        """Log-probabilities of this pass, for the slots that tell them."""

    def add(self, index: int, request: Request) -> None:
        """Let a request join; its tokens come under `index`, which must not be in use.

        Raises BadInput for a prompt that is empty or fills the context, and for settings that are
        out of range.
        """
        if index in self.indices:
            raise ValueError(f"request {index} is in the batch already")
        length = len(request.prompt)
        if not length:
            raise BadInput("found a prompt without tokens, expected at least one.")
        if length >= self.limit:
            raise BadInput(
                f"found a prompt of {length} tokens, expected fewer than the model's "
                f"context of {self.limit}: shorten it."
            )
        draw = self.draw.but(request.temperature, request.top_p, request.top_k)
        draw.check()
        request.shaping.check(int(text_config(self.model).vocab_size))
        most = self.max_tokens if request.max_tokens is None else request.max_tokens
        if most < 1:
            raise BadInput(f"found max_tokens = {most}, expected at least 1.")
        if not self.busy:
            self.longest = 0
        row = _Row(
            index, request.prompt, request.stream, min(most, self.limit - length), draw,
            request.shaping, request.constraint, request.likelihoods,
        )  # fmt: skip
        self.longest = max(self.longest, self._needed(row))
        self.indices.add(index)
        self.waiting.append(row)

    def cancel(self, index: int) -> None:
        """Drop a request and what was decoded for it; one that has ended already is no matter."""
        if index not in self.indices:
            return
        self.indices.remove(index)
        for b, row in [*enumerate(self.row_B), *self.reading.items()]:
            if row is not None and row.index == index:
                with torch.inference_mode():
                    self._free(b)
                return
        self.waiting = deque(row for row in self.waiting if row.index != index)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being decoded."""
        return bool(self.indices)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Run one pass over all rows and return the token of each: none for an answer that was
        given up until it is where it was, so the list may be empty while the decoder is `busy`.

        An answer whose logits aren't finite ends without one, in `failed`; the others go on.
        """
        self.failed.clear()
        with evaluating(self.model), fitting_threads(self.model):
            if not self._refill():
                return []
            with nullcontext() if self.watcher is None else self.watcher.attached():
                logits_BV = self._shape(self._pass())
                try:
                    token_B = self._choose(logits_BV)
                except NotFinite:
                    token_B = self._choose(self._without_broken(logits_BV))
                forced, back = self._force(token_B)
            return self._accept(token_B, forced, back)

    # refill

    def _refill(self) -> bool:
        """Give free slots to waiting requests; False when nothing is left to decode."""
        if not self.busy:
            return False
        if self.waiting:
            self._make_room()
            free = self._free_slots(len(self.row_B))
            # Prompts are read together: a pass for one row costs about as much as for several, so
            # in a large batch a few free rows wait for others.
            if len(free) > len(self.row_B) // 32:
                self._seat(free[: len(self.waiting)])
        else:
            n, seated = len(self.row_B), self._seated()
            # Moving rows costs a copy of their keys: not for each that ends.
            if n - seated > n // 16:
                self._shrink(min(n, self._width(seated)))
        self._read()
        return True

    def _free_slots(self, below: int) -> list[int]:
        rows = enumerate(self.row_B[:below])
        return [b for b, row in rows if row is None and b not in self.reading]

    def _seated(self) -> int:
        return len(self.reading) + sum(row is not None for row in self.row_B)

    def _width(self, rows: int) -> int:
        """The least number of rows that a batch for so many may have."""
        if not self.on_cpu:
            return rows
        block = min(self.row_block, self.most)
        # Above 16 rows a few more cost little.
        return round_up(rows, max(block, min(ROWS // 2, self.most)) if rows > ROWS else block)

    def _needed(self, row: _Row) -> int:
        """Positions to make room for where this request is seated."""
        length = len(row.prompt)
        # Room for 128 tokens of the answer: most short ones then end without a copy of the cache.
        return max(self.passes.positions(length - 1), length + min(row.most, 128))

    def _make_room(self) -> None:
        """Positions and rows for the requests that wait, as far as there is memory."""
        seated = self._seated()
        if not seated:
            # What memory once ended at may be free again.
            self.most = self.rows
            capacity = round_up(self.longest, self.block)
            # A cache that is somewhat too large is kept, as making one costs more than its memory.
            if not capacity <= self.passes.capacity <= 4 * capacity:
                self.passes.fresh(len(self.row_B), capacity)
        elif seated < self.most:
            needed = max(self._needed(row) for row in islice(self.waiting, self.most - seated))
            if needed > self.passes.capacity:
                self._grow(needed)
                seated = self._seated()
        n = min(self.most, self._width(seated + len(self.waiting)))
        if self.sheds:
            n = min(n, self._fit(self.passes.capacity))
        if n > len(self.row_B):
            self._widen(n)

    def _seat(self, slots: list[int]) -> None:
        """Give these slots to the requests that wait longest, and begin with their prompts: all but
        the last token, which the first pass over the row feeds."""
        prompts = []
        for b in slots:
            row = self.waiting.popleft()
            row.count = 0
            row.queue.clear()
            self.reading[b] = row
            prompts.append((b, row.prompt[:-1]))
        self.passes.begin(prompts)

    def _read(self) -> None:
        """Read prompts: all of them, or, while answers are in the making, a chunk."""
        while self.reading:
            goes_on = any(row is not None for row in self.row_B)
            for b in self.passes.read_on(self.passes.portion if self.patient else 0):
                self._start(b, self.reading.pop(b))
            if self.patient and goes_on:
                break

    def _start(self, b: int, row: _Row) -> None:
        """The next pass is the row's first: its prompt has been read."""
        self.row_B[b] = row
        self.length_B[b] = len(row.prompt) - 1
        self.token_B[b] = row.prompt[-1]
        self.random_BS[b] = row.numbers()
        if self.watcher is not None:
            self.watcher.seat(b, row.index)

    # one token for every row

    def _pass(self) -> Tensor:
        """Run the model over each row's newest token; the logits (B, V) of the next."""
        longest = int(self.length_B.max()) + 1
        if longest > self.passes.capacity:
            self._grow(longest)
        return self.passes.logits(self.token_B, self.length_B)

    def _shape(self, logits_BV: Tensor) -> Tensor:
        """The logits to draw from, and what is to be told of those given: row by row, which leaves
        the bits of every other row alone."""
        self.logprob_V.clear()
        copied = False
        for b, row in enumerate(self.row_B):
            # What is made again was told of already, and is not for the model to choose.
            if row is None or row.count < len(row.token_ids):
                continue
            if row.likelihoods is not None:
                self.logprob_V[b] = logits_BV[b].float().log_softmax(-1)
            told = row.again or row.queue
            if told or (row.shaping == PLAIN and row.constraint is None):
                continue
            if not copied:
                logits_BV, copied = logits_BV.clone(), True
            logits_BV[b] = shaped(
                logits_BV[b], row.shaping, row.prompt, row.token_ids, row.draw.temperature,
                row.constraint,
            )  # fmt: skip
        return logits_BV

    def _without_broken(self, logits_BV: Tensor) -> Tensor:
        """End the answers whose logits aren't finite; the logits, with zeros in their place."""
        broken_B = ~logits_BV.amax(-1).isfinite()
        for b in broken_B.nonzero()[:, 0].tolist():
            if (row := self.row_B[b]) is not None:
                self.failed.append(row.index)
                self.indices.remove(row.index)
                self._free(b)
            if b not in self.reading:
                self.passes.clear(b)
        return logits_BV.masked_fill(broken_B[:, None], 0)

    def _choose(self, logits_BV: Tensor) -> Tensor:
        """Each row's next token by its own settings and the next number of its stream."""
        slots_by_draw: dict[DrawSettings, list[int]] = {}
        at_B = np.zeros(len(self.row_B), dtype=np.int64)
        for b, row in enumerate(self.row_B):
            if row is not None:
                slots_by_draw.setdefault(row.draw, []).append(b)
                at_B[b] = row.count % STREAM_BLOCK
        number_B = torch.from_numpy(self.random_BS[np.arange(len(at_B)), at_B])
        if self.device.type == "mps":
            # It has no float64, which the choice adds up in.
            logits_BV = logits_BV.float().cpu()
        number_B = number_B.to(logits_BV.device)
        if len(slots_by_draw) == 1:
            (draw,) = slots_by_draw
            return _drawn(logits_BV, number_B, draw).to(self.device)
        token_B = torch.zeros_like(self.token_B)
        for draw, slots in slots_by_draw.items():
            where = torch.tensor(slots, device=logits_BV.device)
            token_B[where] = _drawn(logits_BV[where], number_B[where], draw).to(self.device)
        return token_B

    def _force(self, token_B: Tensor) -> tuple[set[int], dict[int, Rewind]]:
        """Put the tokens that aren't for the model to choose into `token_B`; the slots of those
        that a watcher chose, and where answers go back."""
        seated = [(b, row) for b, row in enumerate(self.row_B) if row is not None]
        self._tell(token_B, seated)
        if self.watcher is None:
            return set(), {}
        wanted = self.watcher.look([b for b, _ in seated], self.token_B, token_B)
        back = {b: one for b, one in wanted.items() if isinstance(one, Rewind)}
        if wanted:
            for b, row in seated:
                tokens = wanted.get(b)
                if tokens and not isinstance(tokens, Rewind):
                    row.queue = deque(tokens)
            self._tell(token_B, seated)
        forced = set()
        for b, row in seated:
            if b in back:
                continue
            if row.again:
                if row.count >= len(row.token_ids):
                    row.again.popleft()
            elif row.queue:
                row.queue.popleft()
                forced.add(b)
        return forced, back

    def _tell(self, token_B: Tensor, seated: Sequence[tuple[int, _Row]]) -> None:
        told = {b: row.told for b, row in seated if row.told is not None}
        if told:
            where = torch.tensor(list(told), device=self.device)
            token_B[where] = torch.tensor(list(told.values()), device=self.device)

    def _accept(self, token_B: Tensor, forced: set[int], back: dict[int, Rewind]) -> list[Token]:
        """Append each row's token, and free the slots whose answers ended."""
        self.token_B = token_B
        found: list[Token] = []
        for b, token in enumerate(token_B.tolist()):
            row = self.row_B[b]
            if row is None:
                continue
            if b in back:
                self._rewind(b, row, back[b])
                continue
            row.count += 1
            # An answer that was given up is made again up to where it was: not emitted twice.
            if row.count > len(row.token_ids):
                row.token_ids.append(token)
                reason: FinishReason | None = None
                if token in self.stop or row.count >= row.most:
                    reason = "stop" if token in self.stop else "length"
                likelihood = None
                if row.likelihoods is not None:
                    logprob_1V = self.logprob_V[b][None]
                    (likelihood,) = likelihoods(logprob_1V, [token], row.likelihoods)
                row.held.append(Token(row.index, token, b in forced, reason, likelihood))
                found += self._certain(b, row, reason is not None)
                if row.constraint is not None and reason is None:
                    row.constraint.accept(token)
                if reason is not None:
                    self.indices.remove(row.index)
                    self._free(b)
                    continue
            self.length_B[b] += 1
            if row.count % STREAM_BLOCK == 0:
                self.random_BS[b] = row.numbers()
        return found

    def _certain(self, b: int, row: _Row, ended: bool) -> list[Token]:
        """The tokens that are held and will stay."""
        count = len(row.held)
        if self.rewinding is not None and not ended:
            count = max(0, count + self.rewinding.settled(b) - len(row.token_ids))
        certain = row.held[:count]
        del row.held[:count]
        return certain

    def _rewind(self, b: int, row: _Row, to: Rewind) -> None:
        """Take back an answer's last tokens: the next pass feeds the last of those that stay."""
        more = len(row.token_ids) - to.length
        if not 0 <= more <= len(row.held):
            raise ValueError(f"{more} tokens can't be taken back of {len(row.held)} that are held")
        del row.token_ids[to.length :], row.held[len(row.held) - more :]
        row.queue.clear()
        row.again = deque(to.token_ids)
        row.count = to.length
        row.goes_on = stream_key(to.number, row.stream.hex(), to.length)
        self.length_B[b] = len(row.prompt) - 1 + row.count
        self.token_B[b] = row.token_ids[-1] if row.token_ids else row.prompt[-1]
        self.random_BS[b] = row.numbers()
        self.passes.back(b, [*row.prompt, *row.token_ids][:-1])

    def _free(self, b: int) -> None:
        self.reading.pop(b, None)
        self.row_B[b] = None
        self.length_B[b] = 0
        self.passes.free(b)

    # size

    def _fit(self, capacity: int) -> int:
        """Rows of so many positions that there is memory for."""
        return whole_rows(max(1, self.budget // (capacity * self.passes.token_bytes)), self.model)

    def _grow(self, needed: int) -> None:
        """Make room for `needed` positions a row, giving up the youngest rows where memory ends."""
        capacity = round_up(max(needed, self.passes.capacity * 3 // 2), self.block)
        if self.sheds and self._fit(capacity) < len(self.row_B):
            capacity = round_up(needed, self.block)
            fit = self._fit(capacity)
            if fit < len(self.row_B):
                self._shed(fit)
        self.passes.grow(capacity)

    def _widen(self, n: int) -> None:
        """Go on with `n` rows, the new ones free."""
        more = n - len(self.row_B)
        self.row_B += [None] * more
        self.length_B = np.append(self.length_B, np.zeros(more, dtype=np.int64))
        self.random_BS = np.append(self.random_BS, np.zeros((more, STREAM_BLOCK)), 0)
        self.token_B = torch.cat([self.token_B, self.token_B.new_zeros(more)])
        self.passes.widen(n)

    def _shed(self, n: int) -> None:
        """Go on with `n` rows; the answers that are given up start again, with the same result."""
        rows = [(row.count, b) for b, row in enumerate(self.row_B) if row is not None]
        rows += [(-1, b) for b in self.reading]
        for _, b in sorted(rows)[: max(0, len(rows) - n)]:
            row = self.row_B[b] or self.reading[b]
            self.waiting.appendleft(row)
            self._free(b)
        self.most = n
        self._shrink(n)

    def _shrink(self, n: int) -> None:
        """Move the answers of the last rows into free slots, and go on with `n` rows."""
        if n == len(self.row_B):
            return
        free = self._free_slots(n)
        source = [b for b in range(n, len(self.row_B)) if self.row_B[b] or b in self.reading]
        target = free[: len(source)]
        if source:
            longest = min(int(self.length_B.max()), self.passes.capacity)
            self.passes.move(source, target, longest)
            self.token_B[target] = self.token_B[source]
            self.length_B[target], self.random_BS[target] = (
                self.length_B[source],
                self.random_BS[source],
            )
            for old, new in zip(source, target, strict=True):
                self.row_B[new] = self.row_B[old]
                if old in self.reading:
                    self.reading[new] = self.reading.pop(old)
            if self.watcher is not None:
                # It hasn't been told of those that are still read.
                seated = [i for i, b in enumerate(target) if self.row_B[b]]
                self.watcher.move([source[i] for i in seated], [target[i] for i in seated])
        self.row_B, self.token_B = self.row_B[:n], self.token_B[:n]
        self.length_B, self.random_BS = self.length_B[:n], self.random_BS[:n]
        self.passes.shrink(n)
