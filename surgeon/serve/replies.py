"""What goes back to a client, as OpenAI's endpoints word it."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.serve.engine import Emitted
from surgeon.serve.text import Detokenizer, StopStrings
from surgeon.watch.watching import Firing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = b"data: [DONE]\n\n"


class Written:
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
        self._told = 0
        """Tokens that `news` gave."""

    @property
    def text(self) -> str:
        """All text that is certain."""
        return "".join(self.pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.hit

    def take(self, token: Emitted) -> None:
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
        first = self._told
        text = "".join(self.pieces[first:])
        if not text and (self.finish_reason is None or first == len(self.pieces)):
            return None
        self._told = len(self.pieces)
        return text, self.token_ids[first:]

    def extension(self) -> dict[str, Any]:
        """What the monitor did, for those who ask this server."""
        # A firing may force tokens that the answer's end left no room for.
        kept = [f for f in self.firings if f.position < len(self.token_ids)]
        return {"firings": [firing._asdict() for firing in kept]}


class Form(NamedTuple):
    """How one endpoint words its replies."""

    prefix: str
    whole: str
    """The kind of a reply that comes at once."""
    part: str
    """The kind of a piece of a stream."""
    say: Callable[[str], dict[str, Any]]
    """A choice's text, at once."""
    add: Callable[[str], dict[str, Any]]
    """More of a choice's text."""
    begin: dict[str, Any] | None
    """What a choice of a stream begins with."""


CHAT = Form(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Form(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
)


class Reply(NamedTuple):
    """The reply to one request in the making: what all of its parts share."""

    form: Form
    head: dict[str, Any]
    """`id`, `created`, `model`."""
    monitored: bool
    token_ids: bool
    usage: bool

    def whole(self, answers: Sequence[Written], usage: dict[str, int]) -> bytes:
        """The body of a reply that comes at once."""
        choices = [
            self._choice(number, self.form.say(answer.text), answer, answer.token_ids)
            for number, answer in enumerate(answers)
        ]
        return _json({**self._object(self.form.whole), "choices": choices, "usage": usage})

    def begin(self, number: int) -> bytes:
        """The first event of a choice; nothing where the form has none."""
        if self.form.begin is None:
            return b""
        return self._event([{"index": number, **self.form.begin, **_unfinished()}])

    def more(self, number: int, answer: Written) -> bytes:
        """The event of a choice's news, if any; the last of a choice says why it ended."""
        news = answer.news()
        if news is None:
            return b""
        text, token_ids = news
        return self._event([self._choice(number, self.form.add(text), answer, token_ids)])

    def count(self, usage: dict[str, int]) -> bytes:
        """The event with the count of tokens, where the client wants one."""
        return self._event([], usage) if self.usage else b""

    def _choice(
        self, number: int, text: dict[str, Any], answer: Written, ids: Sequence[int]
    ) -> dict[str, Any]:
        choice = {"index": number, **text, **_unfinished()}
        if self.token_ids:
            choice["token_ids"] = list(ids)
        if answer.finish_reason is not None:
            choice["finish_reason"] = answer.finish_reason
            choice["stop_reason"] = answer.stop_string
            if self.monitored:
                choice["surgeon"] = answer.extension()
        return choice

    def _object(self, kind: str) -> dict[str, Any]:
        return {"id": self.head["id"], "object": kind, **self.head}

    def _event(self, choices: list[dict[str, Any]], usage: Any = None) -> bytes:
        found = {**self._object(self.form.part), "choices": choices}
        return event(found | ({"usage": usage} if self.usage else {}))


def _unfinished() -> dict[str, Any]:
    return {"logprobs": None, "finish_reason": None}


def usage(prompts: Sequence[Sequence[int]], answers: Sequence[Written]) -> dict[str, int]:
    """Counts of tokens as OpenAI gives them: each prompt once, whatever the number of answers."""
    asked, given = sum(map(len, prompts)), sum(len(answer.token_ids) for answer in answers)
    return {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}


def event(found: dict[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + _json(found) + b"\n\n"


def _json(found: dict[str, Any]) -> bytes:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
