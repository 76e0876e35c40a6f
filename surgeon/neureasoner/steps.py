"""Steps of a response, and spans of steps that a judge or a person has labelled."""

# Shapes: B rows of a batch, T tokens of a response, V ids of the tokenizer.

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import THINKING
from surgeon.traces import Key, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"

# What a token's text is made of.
_BREAK, _STARTS, _STOPS, _TEXT, _OPEN, _OVER = 1, 2, 4, 8, 16, 32


class Step(NamedTuple):
    """Response token positions [start, end); the separator belongs to the step it ends."""

    start: int
    end: int


class StepEnds:
    """Which tokens end a step and which end the thinking, looked up once per tokenizer.

    A step ends with the token that completes a blank line: one that contains "\\n\\n", or one that
    begins with "\\n" after one that ends with "\\n". A step has more than white space in it, so a
    longer run of line breaks opens the next step instead of ending an empty one. The thinking is
    over at the closing token, or at the end of the text; those tokens belong to no step. A
    tokenizer without such tokens has no thinking block: all of its responses are steps.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", thinking: tuple[str, str] = THINKING
    ) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        flag_V = np.full(max(vocabulary.values()) + 2, _TEXT, np.uint8)
        exact: dict[str, int] = {}
        # The last entry stands for ids beyond the tokenizer's, which some models can emit.
        for token, i in vocabulary.items():
            # Line breaks as byte-level and sentence-piece tokenizers spell them.
            if any(mark in token for mark in ("\n", "Ċ", "<0x0A>")) or not token.strip(
                " \t\r\n\v\f\xa0ĠĊĉčċČ▁"
            ):
                text = str(tokenizer.decode([i], clean_up_tokenization_spaces=False))
                flag_V[i] = _flags(text)
                exact[text] = i
        for word, flag in zip(thinking, (_OPEN, _OVER), strict=True):
            if word in vocabulary:
                flag_V[vocabulary[word]] |= flag
        if tokenizer.eos_token_id is not None:
            flag_V[tokenizer.eos_token_id] |= _OVER  # pyright: ignore
        self.flag_V = flag_V
        self.close_id: int | None = vocabulary.get(thinking[1])
        """The token that closes the thinking block, where the tokenizer has one."""
        self.line_id, self.separator_id = exact.get("\n"), exact.get(SEPARATOR)
        """The tokens that are a line break and a blank line and nothing else, where there are."""

    def flags(self, ids_B: Any) -> np.ndarray:
        """uint8_B: what each token is made of; for `StepRows` and `split_steps`."""
        return self.flag_V[np.minimum(np.asarray(ids_B, np.int64), len(self.flag_V) - 1)]

    def after(self, previous_ids_B: Any, ids_B: Any) -> np.ndarray:
        """bool_B: a separator is complete with this token (it ends a step that has text)."""
        return _complete(self.flags(previous_ids_B), self.flags(ids_B))

    def separator_after(self, token_id: int) -> list[int]:
        """Tokens that complete a separator after this one; none where the tokenizer has no such."""
        if self.line_id is not None and self.flags(token_id) & _STOPS:
            return [self.line_id]
        if self.separator_id is not None:
            return [self.separator_id]
        return [] if self.line_id is None else [self.line_id] * 2

    def thinking_over(self, ids_B: Any) -> np.ndarray:
        """bool_B: this token closes the thinking block or ends the response."""
        return self.flags(ids_B) & _OVER > 0


def _flags(text: str) -> int:
    return (
        _BREAK * (SEPARATOR in text)
        | _STARTS * text.startswith("\n")
        | _STOPS * text.endswith("\n")
        | _TEXT * bool(text.strip())
    )


def _complete(previous_B: np.ndarray, flag_B: np.ndarray) -> np.ndarray:
    joined_B = (previous_B & _STOPS > 0) & (flag_B & _STARTS > 0)
    return joined_B | (flag_B & _BREAK > 0)


def split_steps(ends: StepEnds, token_ids: Sequence[int]) -> list[Step]:
    """The steps of the thinking part of a response; of all of it where it has no thinking block.

    What is left after the last separator is a step as well. An opening token before any text is
    left out, with the white space before it.
    """
    steps: list[Step] = []
    start, text, previous = 0, False, 0
    end = len(token_ids)
    for i, flag in enumerate(ends.flags(token_ids).tolist() if len(token_ids) else []):
        if flag & _OVER:
            end = i
            break
        if flag & _OPEN and not text and not steps:
            start = i + 1
        else:
            text = text or bool(flag & _TEXT)
            joined = previous & _STOPS and flag & _STARTS
            if text and (flag & _BREAK or joined):
                steps.append(Step(start, i + 1))
                start, text = i + 1, False
        previous = flag
    if text:
        steps.append(Step(start, end))
    return steps


def separated(ends: StepEnds, token_ids: Sequence[int], step: Step) -> bool:
    """Whether a step of a response ends with a separator, not with the thinking or the response."""
    return bool(ends.after(token_ids[max(step.end - 2, 0)], token_ids[step.end - 1]))


def whole_steps(ends: StepEnds, trace: Trace) -> list[Step]:
    """The steps of a trace that were brought to an end: not the last one of a trace that was cut
    within it."""
    ids = trace.token_ids
    steps = split_steps(ends, ids)
    cut = steps and steps[-1].end == len(ids) and trace.finish_reason == "length"
    return steps[:-1] if cut and not separated(ends, ids, steps[-1]) else steps


class StepRows:
    """Where every row of a batch stands in its steps, one token at a time.

    The same rule as `split_steps`: push each token; a row's step is over when `push` says so, or
    when the token to come is one that `closing` recognises.
    """

    def __init__(self, ends: StepEnds, rows: int) -> None:
        self.ends = ends
        self.flag_B = np.zeros(rows, np.uint8)
        self.text_B = np.zeros(rows, bool)
        self.over_B = np.zeros(rows, bool)
        """The thinking is over: nothing more is counted."""
        self.count_B = np.zeros(rows, np.int64)
        """Steps that have ended."""
        self.position_B = np.zeros(rows, np.int64)
        """Response tokens seen."""
        self.start_B = np.zeros(rows, np.int64)
        """First position of the current step."""
        self.before_B = np.zeros(rows, np.uint8)
        """What the token before the current step is made of."""

    def _names(self) -> list[str]:
        return [name for name in vars(self) if name.endswith("_B")]

    def grow(self, rows: int) -> None:
        """Make room for more rows, if there are fewer."""
        for name in self._names():
            array = getattr(self, name)
            setattr(self, name, np.pad(array, (0, max(0, rows - len(array)))))

    def seat(self, row: int) -> None:
        """A response begins in this row."""
        for name in self._names():
            getattr(self, name)[row] = 0

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The responses of some rows go on in others."""
        for name in self._names():
            array = getattr(self, name)
            array[list(target)] = array[list(source)]

    def push(self, ids_B: Any, live_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(counted_B, opened_B, ended_B) for the next token of the rows that are `live_B`.

        A counted token belongs to a step; one that opens the thinking throws away what came before
        it; a step has ended with this token where `ended_B`.
        """
        flag_B = self.ends.flags(ids_B)
        self.over_B |= live_B & (flag_B & _OVER > 0)
        counted_B = live_B & ~self.over_B
        opened_B = counted_B & (flag_B & _OPEN > 0) & ~self.text_B & (self.count_B == 0)
        counted_B &= ~opened_B
        self.text_B |= counted_B & (flag_B & _TEXT > 0)
        ended_B = counted_B & self.text_B & _complete(self.flag_B, flag_B)
        self.position_B += live_B
        self.start_B = np.where(opened_B, self.position_B, self.start_B)
        self.flag_B = np.where(live_B, flag_B, self.flag_B)
        self.before_B = np.where(opened_B, flag_B, self.before_B)
        return counted_B, opened_B, ended_B

    def closing(self, next_ids_B: Any) -> np.ndarray:
        """bool_B: the current step will be over because this token comes next."""
        return ~self.over_B & self.text_B & self.ends.thinking_over(next_ids_B)

    def begin_step(self, rows_B: np.ndarray) -> None:
        """The next token of these rows begins a step; to be called after each end."""
        self.count_B += rows_B
        self.text_B &= ~rows_B
        self.start_B = np.where(rows_B, self.position_B, self.start_B)
        self.before_B = np.where(rows_B, self.flag_B, self.before_B)

    def rewind(self, row: int) -> None:
        """The current step of this row begins anew."""
        self.position_B[row], self.flag_B[row] = self.start_B[row], self.before_B[row]
        self.text_B[row] = False


# ---------------------------------------------------------------- labelled spans


def attributed_steps(span: "Span", opening: int = 1) -> list[tuple[int, int]]:
    """The runs of steps (first, last) whose tokens are the time steps of a span (sec. 2.1).

    `intra` and `instance`: all of its steps. `inter`: the first `opening` steps of each attempt;
    all steps where the attempts weren't told apart (R26).
    """
    if span.level != "inter" or not span.attempts:
        return [(span.first, span.last)]
    ends = [*(attempt - 1 for attempt in span.attempts[1:]), span.last]
    return [
        (attempt, min(attempt + opening - 1, end))
        for attempt, end in zip(span.attempts, ends, strict=True)
    ]


class Span(NamedTuple):
    """Steps of one trace that show a failure, or that were looked at and show none."""

    prompt_id: str
    sample: int
    level: str
    """One of `LEVELS`."""
    first: int
    """Number of the first step, from 0."""
    last: int
    """Number of the last step, itself included."""
    failing: bool = True
    pair: int | None = None
    """Positive and negative spans with the same number were made to be compared."""
    reason: str = ""
    attempts: tuple[int, ...] = ()
    """`inter`: the first step of each attempt in it, ascending; none: not told apart."""

    @property
    def key(self) -> Key:
        """The key of its trace."""
        return self.prompt_id, self.sample


def check_spans(spans: Iterable[Span], traces: Iterable[Trace], ends: StepEnds) -> None:
    """Raise BadInput for a span that names no trace, or steps that its trace doesn't have."""
    by_key = {trace.key: trace for trace in traces}
    counts: dict[Key, int] = {}
    for number, span in enumerate(spans, 1):
        who = f"span {number} is of sample {span.sample} of prompt {span.prompt_id!r}"
        if span.key not in by_key:
            raise BadInput(
                f"{who}, which is not among the {len(by_key)} traces: give the traces that were "
                "labelled."
            )
        if span.key not in counts:
            counts[span.key] = len(split_steps(ends, by_key[span.key].token_ids))
        if span.last >= counts[span.key]:
            n = counts[span.key]
            raise BadInput(
                f"{who} and ends at step {span.last}, but the trace has {n} step{'s' * (n != 1)} "
                "(numbered from 0): spans and traces don't belong together, or the steps were "
                "counted in another way."
            )
