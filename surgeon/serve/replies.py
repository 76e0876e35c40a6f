"""What goes back to a client, as OpenAI's endpoints word it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from surgeon.serve.stops import StopStrings
from surgeon.serve.worker import NextToken
from surgeon.traces.texts import Detokenizer
from surgeon.watch.watching import Firing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = b"data: [DONE]\n\n"
UNFINISHED: "ChoiceBody" = {"logprobs": None, "finish_reason": None}
"""What a piece of a stream says of an answer without an end yet."""


class ChoiceBody(TypedDict, total=False):
    """One answer, or a piece of it in a stream, as OpenAI writes it."""

    index: int
    message: dict[str, str | None]
    delta: dict[str, str]
    text: str
    logprobs: None
    finish_reason: str | None
    token_ids: list[int]
    stop_reason: str | None
    surgeon: dict[str, list[dict[str, object]]]
    """What the monitor did: its firings."""


class Usage(TypedDict):
    """Counts of tokens as OpenAI gives them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PartialAnswer:
    """One answer as far as it has come."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str], keep_stop: bool):
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops, keep_stop)
        self.token_ids: list[int] = []
        """All tokens, with the stop token where one ended the answer."""
        self.pieces: list[str] = []
        """The text that each token added."""
        self.firings: list[Firing] = []
        self.finish_reason: str | None = None
        self._reported = 0
        """Tokens that `news` has returned."""

    @property
    def text(self) -> str:
        """All text that is certain."""
        return "".join(self.pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.hit

    def take(self, token: NextToken) -> None:
        """Add the next token of an answer that isn't over."""
        text = ""
        if token.finish_reason != "stop":
            text = self._stops.push(self._detokenizer.push(token.token_id))
        if token.finish_reason is not None:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        self.token_ids.append(token.token_id)
        self.pieces.append(text)
        self.firings += token.firings
        self.finish_reason = token.finish_reason if self._stops.hit is None else "stop"

    def news(self) -> tuple[str, list[int]] | None:
        """Text and tokens since the last news; None while they add no text, unless they are the
        last."""
        first = self._reported
        text = "".join(self.pieces[first:])
        if not text and (self.finish_reason is None or first == len(self.pieces)):
            return None
        self._reported = len(self.pieces)
        return text, self.token_ids[first:]

    @property
    def shown_firings(self) -> list[Firing]:
        """The firings whose forced tokens the answer's end left room for."""
        return [firing for firing in self.firings if firing.position < len(self.token_ids)]


class ReplyForm(NamedTuple):
    """How one endpoint words its replies."""

    prefix: str
    whole: str
    """The kind of a reply that comes at once."""
    part: str
    """The kind of a piece of a stream."""
    say: Callable[[str], ChoiceBody]
    """A choice's text, at once."""
    add: Callable[[str], ChoiceBody]
    """More of a choice's text."""
    begin: ChoiceBody | None
    """What a choice of a stream begins with."""


CHAT = ReplyForm(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = ReplyForm(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
)


class Envelope(NamedTuple):
    """What all parts of the reply to one request share."""

    form: ReplyForm
    id: str
    created: int
    """Unix time."""
    model: str
    monitored: bool
    token_ids: bool
    usage: bool

    def whole(self, answers: Sequence[PartialAnswer], usage: Usage) -> bytes:
        """The body of a reply that comes at once."""
        choices = [
            self._choice(number, self.form.say(answer.text), answer, answer.token_ids)
            for number, answer in enumerate(answers)
        ]
        return _json({**self._head(self.form.whole), "choices": choices, "usage": usage})

    def begin(self, number: int) -> bytes:
        """The first event of a choice; nothing where the form has none."""
        if self.form.begin is None:
            return b""
        return self._event([{"index": number, **self.form.begin, **UNFINISHED}])

    def more(self, number: int, answer: PartialAnswer) -> bytes:
        """The event of a choice's news, if any; the last of a choice says why it ended."""
        news = answer.news()
        if news is None:
            return b""
        text, token_ids = news
        return self._event([self._choice(number, self.form.add(text), answer, token_ids)])

    def count(self, usage: Usage) -> bytes:
        """The event with the count of tokens, where the client wants one."""
        return self._event([], usage) if self.usage else b""

    def _choice(
        self, number: int, text: ChoiceBody, answer: PartialAnswer, ids: Sequence[int]
    ) -> ChoiceBody:
        choice: ChoiceBody = {"index": number, **text, **UNFINISHED}
        if self.token_ids:
            choice["token_ids"] = list(ids)
        if answer.finish_reason is not None:
            choice["finish_reason"] = answer.finish_reason
            choice["stop_reason"] = answer.stop_string
            if self.monitored:
                choice["surgeon"] = {"firings": [f._asdict() for f in answer.shown_firings]}
        return choice

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _event(self, choices: list[ChoiceBody], usage: Usage | None = None) -> bytes:
        counted = {"usage": usage} if self.usage else {}
        return event({**self._head(self.form.part), "choices": choices, **counted})


def usage(prompts: Sequence[Sequence[int]], answers: Sequence[PartialAnswer]) -> Usage:
    """The count of tokens: each prompt once, whatever the number of answers."""
    prompt, answer = sum(map(len, prompts)), sum(len(answer.token_ids) for answer in answers)
    return {
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
    }  # fmt: skip


def event(content: Mapping[str, object]) -> bytes:
    """One event of a stream."""
    return b"data: " + _json(content) + b"\n\n"


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
