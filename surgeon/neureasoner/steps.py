"""Steps of a response, and spans of steps that a judge or a person has labelled."""

# Shapes: B rows of a batch, T tokens of a response, V ids of the tokenizer.

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import TAGS, THINKING, Tags
from surgeon.traces import Key, Trace, template_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"

# What a token's text is made of.
_BREAK, _STARTS, _STOPS, _TEXT, _OPEN, _OVER, _MARK = 1, 2, 4, 8, 16, 32, 64
# White space as tokenizers spell it.
_WHITE = " \t\r\n\v\f\xa0ĠĊĉčċČ▁"


class Step(NamedTuple):
    """Response token positions [start, end); the separator belongs to the step it ends."""

    start: int
    end: int


class Begun(NamedTuple):
    """A tag that several tokens spell, as far as it has come: it may still turn out to be none."""

    text: str = ""
    """What it begins with, in the tokenizer's own letters."""
    letters: tuple[int, ...] = ()
    """Of each of the last tokens, which are held: they belong to a step only if this is no tag."""


class SpeltTags:
    """Tags that are no single tokens, recognised across tokens, wherever those begin and end.

    They are looked for in the tokenizer's own letters, so that a character may lie in several
    tokens. Neither tag may hold white space.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", opening: str | None, closing: str | None
    ) -> None:
        self.tokenizer = tokenizer
        self.opening, self.closing = (
            tag and _letters(tag, tokenizer.get_vocab()) for tag in (opening, closing)
        )
        self.beginnings = {
            tag[:n] for tag in (self.opening, self.closing) if tag for n in range(1, len(tag))
        }
        self._ends = tuple(self.beginnings)
        self._known: dict[int, str] = {}

    def flag(self, token: str) -> int:
        """What a token has to do with a tag, by itself."""
        if self.closing and self.closing in token:
            return _OVER
        opens = self.opening is not None and self.opening in token
        return _MARK * (opens or token.endswith(self._ends))

    def follow(self, begun: Begun, token_id: int, *, first: bool) -> tuple[Begun, int]:
        """What has begun after one more token, and which tag it completes (a flag; 0 for none).

        The opening tag counts only where it comes `first`, before any text.
        """
        if token_id not in self._known:
            token = self.tokenizer.convert_ids_to_tokens(int(token_id))
            self._known[token_id] = token if isinstance(token, str) else "\0"
        token = self._known[token_id]
        text = begun.text + token
        if self.closing and self.closing in text:
            return Begun(), _OVER
        if first and self.opening and self.opening in text.lstrip(_WHITE)[: len(self.opening)]:
            return Begun(), _OPEN
        left = rest = self._beginning(text, first)
        letters: list[int] = []
        for count in reversed((*begun.letters, len(token))):
            if left > 0:
                letters.insert(0, count)
            left -= count
        return Begun(text[len(text) - rest :], tuple(letters)), 0

    def _beginning(self, text: str, first: bool) -> int:
        """The length of the longest end of a text that a tag begins with."""
        tags = [tag for tag in (self.closing, first and self.opening) if tag]
        longest = max((len(tag) - 1 for tag in tags), default=0)
        for n in range(min(longest, len(text)), 0, -1):
            if any(tag.startswith(text[-n:]) for tag in tags):
                return n
        return 0


def _letters(tag: str, vocabulary: dict[str, int]) -> str:
    """A tag as a byte-level tokenizer spells it, where this is one."""
    if tag.isascii():
        return tag
    # Bytes that can be seen stand for themselves, the others for what follows Latin-1 (GPT-2).
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in seen]
    spelt = "".join(
        chr(byte if byte in seen else 256 + others.index(byte)) for byte in tag.encode()
    )
    return spelt if set(spelt) <= vocabulary.keys() else tag


def thinking_tags(tokenizer: "PreTrainedTokenizerBase") -> Tags:
    """The tags that a checkpoint thinks between: of `TAGS` the first whose end its chat template
    names, or else that is a token of its own; `THINKING` where there is none."""
    for known in (template_text(tokenizer), tokenizer.get_vocab()):
        for tags in TAGS:
            if tags[1] in known:
                return tags
    return THINKING


class StepEnds:
    """Which tokens end a step and which end the thinking, looked up once per tokenizer.

    A step ends with the token that completes a blank line: one that contains "\\n\\n", or one that
    begins with "\\n" after one that ends with "\\n". A step has more than white space in it, so a
    longer run of line breaks opens the next step instead of ending an empty one. The thinking is
    over at the closing tag, or at the end of the text; those tokens belong to no step. A response
    that has no thinking block is all steps.

    A tag is a token, or, where the tokenizer has no such token, text that several tokens spell;
    tokens that hold some of it belong to it as a whole. By default the tags are those of
    `thinking_tags`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", thinking: Tags | None = None) -> None:
        self.thinking = thinking = thinking or thinking_tags(tokenizer)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        lacking = [None if tag in vocabulary else tag for tag in thinking]
        self.spelt = SpeltTags(tokenizer, *lacking) if any(lacking) else None
        """The tags that are no single tokens."""
        self.named = thinking[1] in vocabulary or thinking[1] in template_text(tokenizer)
        """The vocabulary or a chat template names the closing tag; where neither does, only answers
        show whether a checkpoint thinks between tags."""
        flag_V = np.full(max(vocabulary.values()) + 2, _TEXT, np.uint8)
        exact: dict[str, int] = {}
        # The last entry stands for ids beyond the tokenizer's, which some models can emit.
        for token, i in vocabulary.items():
            # Line breaks as byte-level and sentence-piece tokenizers spell them.
            if any(mark in token for mark in ("\n", "Ċ", "<0x0A>")) or not token.strip(_WHITE):
                text = str(tokenizer.decode([i], clean_up_tokenization_spaces=False))
                flag_V[i] = _flags(text)
                exact[text] = i
            if self.spelt is not None:
                flag_V[i] |= self.spelt.flag(token)
        for word, flag in zip(thinking, (_OPEN, _OVER), strict=True):
            if word in vocabulary:
                flag_V[vocabulary[word]] |= flag
        if tokenizer.eos_token_id is not None:
            flag_V[tokenizer.eos_token_id] |= _OVER  # pyright: ignore
        self.flag_V = flag_V
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
        """bool_B: this token by itself closes the thinking block, or it ends the response."""
        return self.flags(ids_B) & _OVER > 0

    def ends_thinking(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens of a response closes the thinking block, or ends the
        response."""
        if not len(token_ids) or self.flags(token_ids[-1]) & _OVER:
            return bool(len(token_ids))
        if self.spelt is None or not self.spelt.closing:
            return False
        begun, what = Begun(), 0
        # A token has a letter at least.
        for i in token_ids[-len(self.spelt.closing) :]:
            begun, what = self.spelt.follow(begun, i, first=False)
        return what == _OVER


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

    What is left after the last separator is a step as well. An opening tag before any text is left
    out, with the white space before it.
    """
    steps: list[Step] = []
    start, text, previous, begun = 0, False, 0, Begun()
    end = len(token_ids)
    for i, flag in enumerate(ends.flags(token_ids).tolist() if len(token_ids) else []):
        first = not text and not steps
        whole = flag & _BREAK or (previous & _STOPS and flag & _STARTS)
        previous, held = flag, False
        if ends.spelt is not None and not flag & _OVER and (begun.text or flag & _MARK):
            before = begun
            begun, what = ends.spelt.follow(before, token_ids[i], first=first)
            flag |= what
            if not what:
                begun, held = (Begun(begun.text), False) if whole else (begun, bool(begun.text))
                # Tokens that were held, and are no tag.
                text = text or len(before.letters) > len(begun.letters) - held
            elif what == _OVER:
                begun = before
        if flag & _OVER:
            end = i - len(begun.letters)
            break
        if flag & _OPEN and not text and not steps:
            start = i + 1
        elif not held:
            text = text or bool(flag & _TEXT)
            if text and whole:
                steps.append(Step(start, i + 1))
                start, text = i + 1, False
    else:
        text = text or bool(begun.letters)
    if text:
        steps.append(Step(start, end))
    return steps


def tag_begun(ends: StepEnds, token_ids: Sequence[int], step: Step) -> bool:
    """Whether a step of a response is followed by the first of several tokens that spell the
    closing tag: it is known to be over only when they are there."""
    if step.end >= len(token_ids) or separated(ends, token_ids, step):
        return False
    return not ends.thinking_over(token_ids[step.end])


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
        """Response tokens seen, without those that are held."""
        self.start_B = np.zeros(rows, np.int64)
        """First position of the current step."""
        self.before_B = np.zeros(rows, np.uint8)
        """What the token before the current step is made of."""
        self.held_B = np.zeros(rows, np.int64)
        """Tokens that may be of a tag. They are seen, and counted only if it turns out to be
        none."""
        self.tag_B = np.zeros(rows, bool)
        """A tag may have begun."""
        self.freed: dict[int, int] = {}
        """By row: held tokens that count from the last `push` on, before its own."""
        self._begun = [Begun()] * rows
        self._begun_before = [Begun()] * rows

    def _names(self) -> list[str]:
        return [name for name in vars(self) if name.endswith("_B")]

    def grow(self, rows: int) -> None:
        """Make room for more rows, if there are fewer."""
        for name in self._names():
            array = getattr(self, name)
            setattr(self, name, np.pad(array, (0, max(0, rows - len(array)))))
        for some in (self._begun, self._begun_before):
            some += [Begun()] * (rows - len(some))

    def seat(self, row: int) -> None:
        """A response begins in this row."""
        for name in self._names():
            getattr(self, name)[row] = 0
        self._begun[row] = self._begun_before[row] = Begun()

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The responses of some rows go on in others."""
        for name in self._names():
            array = getattr(self, name)
            array[list(target)] = array[list(source)]
        for some in (self._begun, self._begun_before):
            for row, begun in zip(target, [some[row] for row in source], strict=True):
                some[row] = begun

    def push(self, ids_B: Any, live_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(counted_B, opened_B, ended_B) for the next token of the rows that are `live_B`.

        A counted token belongs to a step; one that opens the thinking throws away what came before
        it; a step has ended with this token where `ended_B`.
        """
        flag_B = self.ends.flags(ids_B)
        seen_B = live_B & ~self.over_B
        first_B = ~self.text_B & (self.count_B == 0)
        complete_B = _complete(self.flag_B, flag_B)
        tags_B, held_B = self._follow_tags(ids_B, flag_B, seen_B, first_B, complete_B)
        self.over_B |= live_B & ((flag_B | tags_B) & _OVER > 0)
        counted_B = live_B & ~self.over_B
        opened_B = counted_B & ((flag_B | tags_B) & _OPEN > 0) & ~self.text_B
        opened_B &= self.count_B == 0
        counted_B &= ~opened_B & ~held_B
        self.text_B |= counted_B & (flag_B & _TEXT > 0)
        ended_B = counted_B & self.text_B & complete_B
        self.position_B += live_B & ~held_B
        self.start_B = np.where(opened_B, self.position_B, self.start_B)
        self.flag_B = np.where(live_B, flag_B, self.flag_B)
        self.before_B = np.where(opened_B, flag_B, self.before_B)
        return counted_B, opened_B, ended_B

    def _follow_tags(
        self,
        ids_B: Any,
        flag_B: np.ndarray,
        seen_B: np.ndarray,
        first_B: np.ndarray,
        complete_B: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8_B: the tags that are complete with this token, bool_B: it is held)."""
        self.freed = {}
        tags_B, held_B = np.zeros(len(flag_B), np.uint8), np.zeros(len(flag_B), bool)
        if self.ends.spelt is None:
            return tags_B, held_B
        rows_B = seen_B & (flag_B & _OVER == 0) & (self.tag_B | (flag_B & _MARK > 0))
        for b in np.flatnonzero(rows_B).tolist():
            before = self._begun[b]
            begun, tags_B[b] = self.ends.spelt.follow(before, int(ids_B[b]), first=bool(first_B[b]))
            if tags_B[b]:
                self.position_B[b] += len(before.letters)
            else:
                # A token that ends a step is none of a tag, whatever it ends with.
                begun = Begun(begun.text) if complete_B[b] else begun
                held_B[b] = bool(begun.letters)
                freed = len(before.letters) - (len(begun.letters) - int(held_B[b]))
                if freed:
                    self.freed[b] = freed
                    self.text_B[b] = True
                    self.position_B[b] += freed
            self._begun[b], self.tag_B[b] = begun, bool(begun.text)
            self.held_B[b] = len(begun.letters)
        return tags_B, held_B

    def closing(self, next_ids_B: Any) -> np.ndarray:
        """bool_B: the current step will be over because this token comes next."""
        over_B = self.ends.thinking_over(next_ids_B)
        if self.ends.spelt is not None:
            for b in np.flatnonzero(self.tag_B & ~self.over_B & ~over_B).tolist():
                begun = self._begun[b]
                over_B[b] = self.ends.spelt.follow(begun, int(next_ids_B[b]), first=False)[1] > 0
        return ~self.over_B & self.text_B & over_B

    def begin_step(self, rows_B: np.ndarray) -> None:
        """The next token of these rows begins a step; to be called after each end."""
        self.count_B += rows_B
        self.text_B &= ~rows_B
        self.start_B = np.where(rows_B, self.position_B, self.start_B)
        self.before_B = np.where(rows_B, self.flag_B, self.before_B)
        for b in np.flatnonzero(rows_B).tolist() if self.ends.spelt is not None else []:
            self._begun_before[b] = Begun(self._begun[b].text)

    def rewind(self, row: int) -> None:
        """The current step of this row begins anew."""
        self.position_B[row], self.flag_B[row] = self.start_B[row], self.before_B[row]
        self.text_B[row] = False
        begun = self._begun[row] = self._begun_before[row]
        self.tag_B[row], self.held_B[row] = bool(begun.text), 0


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
