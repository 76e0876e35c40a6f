"""The worker that owns the model: requests join and leave the batch between its passes.

`run` is the worker, in whatever thread calls it; the other methods are for one other thread, the
event loop's. What goes in is a queue of commands, what comes out are calls of `deliver` functions,
made in the worker's thread.
"""

import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from surgeon.decoding import Decoder, Request, Token
from surgeon.errors import BadInput
from surgeon.serve.refusals import Refusal, closing, failed, overloaded
from surgeon.watch.watching import Firing, Watching

if TYPE_CHECKING:
    from torch import nn


class NextToken(NamedTuple):
    """The next token of an answer."""

    index: int
    token_id: int
    finish_reason: str | None
    """Set on the answer's last token: `stop` for a stop token, or `length`."""
    firings: Sequence[Firing] = ()
    """Of the monitor, since the token before."""


class Breakoff(NamedTuple):
    """An answer that won't be finished."""

    index: int
    why: Refusal


Deliver = Callable[[NextToken | Breakoff], None]


class _Join(NamedTuple):
    index: int
    request: Request
    deliver: Deliver


class _Leave(NamedTuple):
    index: int


class _Close(NamedTuple):
    within_s: float


class _Client:
    """Who is told of an answer, and of how many of its firings so far."""

    def __init__(self, deliver: Deliver):
        self.deliver, self.firings = deliver, 0


class Worker:
    """Decodes requests, `rows` answers at once; at most `max_waiting` more wait."""

    def __init__(
        self,
        model: "nn.Module",
        *,
        stop: frozenset[int],
        rows: int,
        max_waiting: int,
        max_tokens: int,
        watching: Watching | None = None,
    ):
        self.model, self.stop, self.rows, self.max_tokens = model, stop, rows, max_tokens
        self.max_waiting, self.watching = max_waiting, watching
        self.decoder = self._decoder()
        # The decoder may have fewer than it was asked for.
        self.rows = self.decoder.rows
        self.closing = False
        """No new requests are taken."""
        self.answered = self.tokens = 0
        """Answers that were finished and tokens that were decoded, ever."""
        self._numbers = itertools.count()
        self._open: set[int] = set()
        # The only queue whose `put` may interrupt another one: a signal handler closes the worker.
        self._inbox: SimpleQueue[_Join | _Leave | _Close] = SimpleQueue()
        self._answers: dict[int, _Client] = {}
        self._deadline: float | None = None

    # the event loop's side

    @property
    def load(self) -> tuple[int, int]:
        """Answers in the batch, and answers that wait."""
        n = len(self._open)
        return min(n, self.rows), max(0, n - self.rows)

    def check_room(self, n: int = 1) -> None:
        """Raise `Refusal` when no `n` more answers may join."""
        if self.closing:
            raise closing()
        if len(self._open) + n > self.rows + self.max_waiting:
            raise overloaded(self.max_waiting)

    def join(self, requests: Sequence[Request], deliver: Deliver) -> list[int]:
        """Let requests join the batch; their numbers. Raises `Refusal`.

        Each needs a `leave` in the end, also when it was answered.
        """
        self.check_room(len(requests))
        indices = [next(self._numbers) for _ in requests]
        self._open.update(indices)
        for index, request in zip(indices, requests, strict=True):
            self._inbox.put(_Join(index, request, deliver))
        return indices

    def leave(self, index: int, *, answered: bool = False) -> None:
        """Nobody waits for this answer any more, because it is `answered` or given up."""
        if index in self._open:
            self._open.remove(index)
            self.answered += answered
            self._inbox.put(_Leave(index))

    def close(self, within_s: float) -> None:
        """Take no more requests, and end `run`: when all is answered, or after so many seconds.

        Any thread may call it, and a signal handler.
        """
        self.closing = True
        self._inbox.put(_Close(within_s))

    # the worker

    def run(self) -> None:
        """Decode until the worker is closed; answers that aren't done then are broken off."""
        try:
            while self._admit():
                self._step()
        finally:
            self.closing = True
            self._break_off(closing())
            while not self._inbox.empty():
                command = self._inbox.get()
                if isinstance(command, _Join):
                    command.deliver(Breakoff(command.index, closing()))

    def _admit(self) -> bool:
        """Carry out the commands, waiting for one where there is nothing to decode; False at the
        end."""
        wait = not self._answers
        while True:
            if self._deadline is not None and (
                not self._answers or time.monotonic() >= self._deadline
            ):
                return False
            try:
                command = self._inbox.get(block=wait)
            except Empty:
                return True
            wait = False
            if isinstance(command, _Close):
                end = time.monotonic() + command.within_s
                self._deadline = end if self._deadline is None else min(end, self._deadline)
            elif isinstance(command, _Leave):
                self._forget(command.index)
                self.decoder.cancel(command.index)
                wait = not self._answers
            else:
                self._join(command)
                wait = not self._answers

    def _join(self, command: _Join) -> None:
        try:
            self.decoder.add(command.index, command.request)
        except BadInput as error:
            command.deliver(Breakoff(command.index, Refusal(400, str(error))))
            return
        self._answers[command.index] = _Client(command.deliver)

    def _step(self) -> None:
        try:
            tokens = self.decoder.step()
        except (BadInput, RuntimeError, MemoryError) as error:
            # Out of memory, or weights that give no numbers: keep serving.
            if not isinstance(error, BadInput):
                traceback.print_exc()
            reason = " ".join(str(error).split())[:300]
            print(f"A pass of the model failed: {reason}", file=sys.stderr, flush=True)
        else:
            self._tell(tokens)
            return
        # A decoder plans with the memory that is free: the old one, and with the error the frames
        # of its pass, must be gone by then.
        del self.decoder
        self.decoder = self._decoder()
        self._break_off(failed(f"The model failed: {reason}"))

    def _tell(self, tokens: Sequence[Token]) -> None:
        for index, token_id, _, finish_reason in tokens:
            answer = self._answers.get(index)
            if answer is None:
                continue
            firings: Sequence[Firing] = ()
            if self.watching is not None:
                fired = self.watching.firings.get(index, [])
                # Fewer, for a while, after an answer was given up and is made again.
                firings = fired[answer.firings :]
                answer.firings = max(answer.firings, len(fired))
            self.tokens += 1
            answer.deliver(NextToken(index, token_id, finish_reason, firings))
            if finish_reason is not None:
                self._forget(index)

    def _forget(self, index: int) -> None:
        self._answers.pop(index, None)
        if self.watching is not None:
            self.watching.take(index)

    def _break_off(self, why: Refusal) -> None:
        for index, answer in list(self._answers.items()):
            answer.deliver(Breakoff(index, why))
            self._forget(index)

    def _decoder(self) -> Decoder:
        return Decoder(
            self.model,
            stop=self.stop,
            rows=self.rows,
            max_tokens=self.max_tokens,
            watcher=self.watching,
        )
