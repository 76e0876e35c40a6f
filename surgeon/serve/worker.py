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

from surgeon.decoding import (
    Decoder,
    Likelihood,
    NotFinite,
    Request,
    Token,
    prompt_likelihoods,
)
from surgeon.errors import BadInput
from surgeon.serve.best import Scoring
from surgeon.serve.grammar import Match
from surgeon.serve.refusals import Refusal, closing, dead, failed, overloaded
from surgeon.traces import Trace
from surgeon.watch.watching import Firing, Watching

if TYPE_CHECKING:
    from torch import nn


LOST = ("device-side assert", "illegal memory access", "unspecified launch failure")
"""Words of errors after which every later call fails in this process, whatever it asks for."""
FAILURES = 3
"""Passes that fail in a row before a single token is tried, which tells a request's fault from the
model's."""


class NextToken(NamedTuple):
    """The next token of an answer."""

    index: int
    token_id: int
    finish_reason: str | None
    """Set on the answer's last token: `stop` for a stop token, or `length`."""
    firings: Sequence[Firing] = ()
    """Of the monitor, since the token before."""
    likelihood: Likelihood | None = None
    """Where the request asked for it."""


class PromptRead(NamedTuple):
    """What the model thinks of a prompt's tokens, where a request asked for it."""

    index: int
    likelihoods: list[Likelihood]
    """Of all tokens but the first."""
    last: bool
    """The request asked for no answer beside."""


class Breakoff(NamedTuple):
    """An answer that won't be finished."""

    index: int
    why: Refusal


class Scored(NamedTuple):
    """What a rule says of answers that have ended."""

    scores: list[float | None]


Deliver = Callable[[NextToken | PromptRead | Breakoff], None]


class _Join(NamedTuple):
    index: int
    request: Request
    deliver: Deliver
    reads: bool
    """The prompt's tokens are told of."""


class _Score(NamedTuple):
    traces: Sequence[Trace]
    scoring: Scoring
    deliver: Callable[[Scored | Breakoff], None]


class _Leave(NamedTuple):
    index: int


class _Close(NamedTuple):
    within_s: float


class _Client:
    """Who is told of an answer, and of how many of its firings so far."""

    def __init__(self, deliver: Deliver, match: Match | None):
        self.deliver, self.match, self.firings = deliver, match, 0


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
        self.decoder = self._decoder(self.rows, self.watching)
        # The decoder may have fewer than it was asked for.
        self.rows = self.decoder.rows
        self.closing = False
        """No new requests are taken."""
        self.dead: str | None = None
        """Why the model can't be run any more, if so."""
        self.failures = 0
        """Passes that failed since the last that didn't."""
        self.answered = self.tokens = 0
        """Answers that were finished and tokens that were decoded, ever."""
        self._numbers = itertools.count()
        self._open: set[int] = set()
        # The only queue whose `put` may interrupt another one: a signal handler closes the worker.
        self._inbox: SimpleQueue[_Join | _Score | _Leave | _Close] = SimpleQueue()
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
        if self.dead is not None:
            raise dead(self.dead)
        if self.closing:
            raise closing()
        if len(self._open) + n > self.rows + self.max_waiting:
            raise overloaded(self.max_waiting)

    def join(
        self, requests: Sequence[Request], deliver: Deliver, *, reads: bool = False
    ) -> list[int]:
        """Let requests join the batch; their numbers. Raises `Refusal`.

        Where it `reads`, the prompts' tokens are told of too; a request of 0 tokens is that alone.

        Each needs a `leave` in the end, also when it was answered.
        """
        self.check_room(len(requests))
        indices = [next(self._numbers) for _ in requests]
        self._open.update(indices)
        for index, request in zip(indices, requests, strict=True):
            self._inbox.put(_Join(index, request, deliver, reads))
        return indices

    def score(
        self,
        traces: Sequence[Trace],
        scoring: Scoring,
        deliver: Callable[[Scored | Breakoff], None],
    ) -> None:
        """Let the model score answers that have ended, between two passes of the batch."""
        if self.dead is not None or self.closing:
            deliver(Breakoff(-1, closing() if self.dead is None else dead(self.dead)))
        else:
            self._inbox.put(_Score(traces, scoring, deliver))

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
        """Decode until the worker is closed; answers that aren't done then are broken off.

        What ends the model for good is raised in the end. Until the worker is closed it goes on,
        as `dead`, and refuses: whoever watches over a server asks it how it is.
        """
        fatal: BaseException | None = None
        try:
            while self._admit():
                self._step()
        except BaseException as error:
            fatal = error
            raise
        finally:
            if fatal is not None and not isinstance(fatal, KeyboardInterrupt | SystemExit):
                self._die(fatal)
            self.closing = True
            self._refuse_all(closing() if self.dead is None else dead(self.dead))

    def _die(self, why: BaseException) -> None:
        """Say that the model is lost, and refuse until the worker is closed."""
        self.dead = f"{type(why).__name__}: {_first_words(why)}"
        print(f"The engine is dead: {self.dead}", file=sys.stderr, flush=True)
        self._refuse_all(dead(self.dead))
        while self._deadline is None:
            command = self._inbox.get()
            if isinstance(command, _Close):
                return
            if isinstance(command, _Join | _Score):
                command.deliver(Breakoff(number_of(command), dead(self.dead)))

    def _refuse_all(self, why: Refusal) -> None:
        """Break off every answer, and those that are about to join."""
        self._break_off(why)
        while not self._inbox.empty():
            command = self._inbox.get()
            if isinstance(command, _Join | _Score):
                command.deliver(Breakoff(number_of(command), why))
            elif isinstance(command, _Close):
                self._deadline = time.monotonic()

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
            elif isinstance(command, _Score):
                self._score(command)
                wait = not self._answers
            else:
                self._join(command)
                wait = not self._answers

    def _join(self, command: _Join) -> None:
        index, request, deliver, reads = command
        try:
            if reads:
                told = self._read(request)
                self.failures = 0
                deliver(PromptRead(index, told, request.max_tokens == 0))
            if request.max_tokens == 0:
                return
            self.decoder.add(index, request)
        except NotFinite as error:
            deliver(Breakoff(index, failed(f"The model failed: {error}")))
            self._count_failure()
            return
        except BadInput as error:
            deliver(Breakoff(index, Refusal(400, str(error))))
            return
        except (RuntimeError, MemoryError) as error:
            self._check_alive(error)
            traceback.print_exc()
            deliver(Breakoff(index, failed(f"The model failed: {_first_words(error)}")))
            self._count_failure()
            return
        match = request.constraint if isinstance(request.constraint, Match) else None
        self._answers[index] = _Client(deliver, match)

    def _score(self, command: _Score) -> None:
        try:
            command.deliver(Scored(command.scoring(self.model, command.traces)))
        except (BadInput, RuntimeError, MemoryError) as error:
            self._check_alive(error)
            traceback.print_exc()
            why = failed(f"The answers can't be scored: {_first_words(error)}")
            command.deliver(Breakoff(-1, why))

    def _read(self, request: Request) -> list[Likelihood]:
        return prompt_likelihoods(self.model, request.prompt, request.likelihoods or 0)

    def _check_alive(self, error: BaseException) -> None:
        """Raise the error again where the device is lost, which no later pass gets over."""
        import torch

        if any(words in str(error) for words in LOST):
            raise error from None
        device = next(self.model.parameters()).device
        if device.type == "cpu" or isinstance(error, torch.OutOfMemoryError | BadInput):
            return
        try:
            torch.zeros(1, device=device).add_(1).cpu()
        except torch.OutOfMemoryError:
            return
        except RuntimeError:
            raise error from None

    def _step(self) -> None:
        try:
            tokens = self.decoder.step()
        except (BadInput, RuntimeError, MemoryError) as error:
            # Out of memory, or weights that give no numbers: keep serving.
            self._check_alive(error)
            if not isinstance(error, BadInput):
                traceback.print_exc()
            reason = _first_words(error)
            print(f"A pass of the model failed: {reason}", file=sys.stderr, flush=True)
        else:
            self._tell(tokens)
            for index in self.decoder.failed:
                self._fail(index)
            if tokens:
                self.failures = 0
            elif self.decoder.failed:
                self._count_failure()
            return
        # A decoder plans with the memory that is free: the old one, and with the error the frames
        # of its pass, must be gone by then.
        del self.decoder
        self.decoder = self._decoder(self.rows, self.watching)
        self._break_off(failed(f"The model failed: {reason}"))
        self._count_failure()

    def _count_failure(self) -> None:
        """Raise where passes fail one after another, and a single token is too much too."""
        self.failures += 1
        if self.failures < FAILURES:
            return
        self.failures = 0
        # What the monitor keeps of the answers in the batch isn't touched.
        watcher = None if self._answers else self.watching
        try:
            decoder = self._decoder(1, watcher)
            decoder.add(0, Request([min(self.stop, default=0)], bytes(16), max_tokens=1))
            decoder.step()
            broken = NotFinite() if decoder.failed else None
        except (BadInput, RuntimeError, MemoryError) as error:
            broken = error
        if watcher is not None:
            watcher.take(0)
        if broken is not None:
            raise RuntimeError(
                f"{FAILURES} passes in a row failed, and one over a single token then: "
                f"{_first_words(broken)}"
            ) from broken

    def _tell(self, tokens: Sequence[Token]) -> None:
        for index, token_id, _, finish_reason, likelihood in tokens:
            answer = self._answers.get(index)
            if answer is None:
                continue
            if answer.match is not None and answer.match.failure is not None:
                why = f"The answer can't be kept to its grammar: {answer.match.failure}"
                answer.deliver(Breakoff(index, failed(why)))
                self._forget(index)
                self.decoder.cancel(index)
                continue
            firings: Sequence[Firing] = ()
            if self.watching is not None:
                fired = self.watching.firings.get(index, [])
                # Fewer, for a while, after an answer was given up and is made again.
                firings = fired[answer.firings :]
                answer.firings = max(answer.firings, len(fired))
            self.tokens += 1
            answer.deliver(NextToken(index, token_id, finish_reason, firings, likelihood))
            if finish_reason is not None:
                self._forget(index)

    def _fail(self, index: int) -> None:
        """Break off an answer for which the model gave no numbers."""
        why = str(NotFinite())
        print(f"An answer failed: {why}", file=sys.stderr, flush=True)
        if (answer := self._answers.get(index)) is not None:
            answer.deliver(Breakoff(index, failed(f"The model failed: {why}")))
            self._forget(index)

    def _forget(self, index: int) -> None:
        self._answers.pop(index, None)
        if self.watching is not None:
            self.watching.take(index)

    def _break_off(self, why: Refusal) -> None:
        for index, answer in list(self._answers.items()):
            answer.deliver(Breakoff(index, why))
            self._forget(index)

    def _decoder(self, rows: int, watcher: Watching | None) -> Decoder:
        return Decoder(
            self.model, stop=self.stop, rows=rows, max_tokens=self.max_tokens, patient=True,
            watcher=watcher,
        )  # fmt: skip


def number_of(command: _Join | _Score) -> int:
    """The answer that a command is about; -1 for several."""
    return command.index if isinstance(command, _Join) else -1


def _first_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
