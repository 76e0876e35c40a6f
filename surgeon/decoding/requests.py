"""What goes into a batch and what comes out of it, and who may look on."""

# Shape letters: B rows of the batch (slots).

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from surgeon.decoding.shaping import PLAIN, Constraint, Likelihood, Shaping

FinishReason = Literal["stop", "length"]


class Request(NamedTuple):
    """One answer to decode; a setting that is None is the batch's."""

    prompt: Sequence[int]
    stream: bytes
    """Sixteen bytes, see `stream_key`; not used when the temperature is 0."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    shaping: Shaping = PLAIN
    constraint: Constraint | None = None
    """What the answer has to be like; at every step some token must be allowed."""
    likelihoods: int | None = None
    """Tell each token's log-probability, and those of so many of the likeliest."""


class Token(NamedTuple):
    """The next token of the answer to request `index`."""

    index: int
    token_id: int
    forced: bool
    """A watcher chose it, not the model."""
    finish_reason: FinishReason | None
    """Set on an answer's last token."""
    likelihood: Likelihood | None = None
    """Where the request asked for it."""


class Answer(NamedTuple):
    """What was decoded for `requests[index]`."""

    index: int
    token_ids: list[int]
    """The generated tokens; with the stop token, where one ended the answer."""
    finish_reason: FinishReason
    forced: tuple[int, ...] = ()
    """Positions in `token_ids` of the tokens that a watcher chose."""


@dataclass(frozen=True)
class Rewind:
    """An answer goes back, and on from there with other random numbers."""

    length: int
    """Tokens of the answer that stay."""
    number: int
    """Which of the streams that follow from the request's own it goes on with."""
    token_ids: Sequence[int] = ()
    """What comes next, whatever would be drawn: tokens that the model drew there before."""


class Watcher(Protocol):
    """Looks at every row after each token it is fed, and may choose its next tokens.

    A slot is a row's number in the batch; it may be any number below the `rows` of the decoder.
    """

    def attached(self) -> AbstractContextManager[Any]:
        """Entered around each single-token pass and the `look` that follows; passes that read
        prompts lie outside."""
        ...

    def seat(self, slot: int, index: int) -> None:
        """Request `index` starts in row `slot`, from the beginning: also when it was given up for
        want of memory and starts again, so what was seen of it before is to be forgotten.

        Row and request stay together until the next `seat` or `move` to that slot.
        """
        ...

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The requests of the rows `source` now sit in the rows `target`, one to one."""
        ...

    def look(
        self, slots: Sequence[int], fed_B: Tensor, chosen_B: Tensor
    ) -> "Mapping[int, Sequence[int] | Rewind]":
        """The tokens to force, by slot; none for a slot that is left out. A `Rewinding` watcher may
        send an answer back instead; `chosen_B` is then not emitted.

        `slots` are the rows in use. `fed_B[slot]` is the token that the pass fed to a row: its
        prompt's last one in the first pass after `seat`, then each token of the answer in turn.
        `chosen_B[slot]` is about to be emitted; forced tokens begin in its place, and take the
        place of forced tokens that are still to come. Both hold every row of the batch, as the
        pass did, with rows not in use in between. The watcher must change neither.
        """
        ...


@runtime_checkable
class Rewinding(Watcher, Protocol):
    """A watcher that may send answers back: tokens are emitted once they are certain to stay."""

    def settled(self, slot: int) -> int:
        """So many tokens of the answer in this row are never taken back."""
        ...
