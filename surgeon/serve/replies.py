"""What goes back to a client, as OpenAI's endpoints word it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from surgeon.decoding import Likelihood
from surgeon.serve.query import Query
from surgeon.serve.spelling import Spelling
from surgeon.serve.stops import StopStrings
from surgeon.serve.tools import Call
from surgeon.serve.worker import NextToken, PromptRead
from surgeon.traces.texts import Detokenizer
from surgeon.watch.watching import Firing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = b"data: [DONE]\n\n"
LEAST = -9999.0
"""What is told of a token that the model thinks impossible: JSON has no infinity."""
UNFINISHED: "ChoiceBody" = {"logprobs": None, "finish_reason": None}
"""What a piece of a stream says of an answer without an end yet."""


class ChoiceBody(TypedDict, total=False):
    """One answer, or a piece of it in a stream, as OpenAI writes it."""

    index: int
    message: dict[str, object]
    delta: dict[str, object]
    text: str
    logprobs: dict[str, object] | None
    finish_reason: str | None
    token_ids: list[int]
    stop_reason: str | None
    surgeon: dict[str, object]
    """What the monitor did, its firings; and why the answer was chosen among several."""


class Usage(TypedDict):
    """Counts of tokens as OpenAI gives them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PartialAnswer:
    """One answer as far as it has come."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", query: Query, number: int = 0):
        """`number` is the answer's place among those of the request."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(query.stop, query.keep_stop)
        self._calling = None if query.calling is None else query.calling.reader()
        self.prompt = query.prompts[number // query.of]
        self.echo = "" if query.echo is None else query.echo[number // query.of]
        """What the reply's text begins with."""
        self.prompt_likelihoods: list[Likelihood] | None = None
        """Of the prompt's tokens but the first, where they are told."""
        self.likelihoods: list[Likelihood] = []
        """Of the tokens, but for a stop token, where they are told."""
        self.token_ids: list[int] = []
        """All tokens, with the stop token where one ended the answer."""
        self.pieces: list[str] = []
        """The text that each token added."""
        self.firings: list[Firing] = []
        self.finish_reason: str | None = None
        self.chosen: dict[str, object] | None = None
        """Among how many answers it was chosen, by which rule, and with which score."""
        self._reported = self._called = 0
        """Tokens, and calls of tools, that `news` has returned."""

    @property
    def text(self) -> str:
        """All text that is certain."""
        return "".join(self.pieces)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.hit

    @property
    def calls(self) -> list[Call]:
        """The calls of tools that were found so far."""
        return [] if self._calling is None else self._calling.calls

    def begin(self, read: PromptRead) -> None:
        """Take what was read of the prompt."""
        self.prompt_likelihoods = read.likelihoods
        if read.last:
            self.finish_reason = "length"

    def take(self, token: NextToken) -> None:
        """Add the next token of an answer that isn't over."""
        text = ""
        if token.finish_reason != "stop":
            text = self._stops.push(self._detokenizer.push(token.token_id))
            if token.likelihood is not None:
                self.likelihoods.append(token.likelihood)
        if token.finish_reason is not None:
            text += self._stops.push(self._detokenizer.finish()) + self._stops.finish()
        self.finish_reason = token.finish_reason if self._stops.hit is None else "stop"
        if self._calling is not None:
            text = self._calling.push(text)
            if self.finish_reason is not None:
                text += self._calling.finish()
            if self.finish_reason == "stop" and self._calling.calls:
                self.finish_reason = "tool_calls"
        self.token_ids.append(token.token_id)
        self.pieces.append(text)
        self.firings += token.firings

    def news(self) -> "News | None":
        """What came since the last news; None while that is no text and no call, unless it is the
        last."""
        first = self._reported
        text, calls = "".join(self.pieces[first:]), self.calls[self._called :]
        silent = not text and not calls
        if silent and (self.finish_reason is None or first == len(self.pieces)):
            return None
        made = News(text, first, calls, self._called)
        self._reported, self._called = len(self.pieces), len(self.calls)
        return made

    @property
    def shown_firings(self) -> list[Firing]:
        """The firings whose forced tokens the answer's end left room for."""
        return [firing for firing in self.firings if firing.position < len(self.token_ids)]


class News(NamedTuple):
    """A part of an answer."""

    text: str
    first: int
    """The place of the first token of the part."""
    calls: Sequence[Call]
    called: int
    """Calls before these."""


def _whole_message(text: str, calls: Sequence[Call]) -> ChoiceBody:
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text.strip() or None, "tool_calls": [call.body for call in calls]}
    return {"message": message}


def _delta(news: News) -> ChoiceBody:
    delta: dict[str, object] = {"content": news.text} if news.text else {}
    if news.calls:
        delta["tool_calls"] = [
            {"index": number, **call.body} for number, call in enumerate(news.calls, news.called)
        ]
    return {"delta": delta}


def _chat_logprobs(
    answer: "PartialAnswer", first: int, told: Spelling, _: int
) -> dict[str, object]:
    def entry(token_id: int, logprob: float) -> dict[str, object]:
        text, raw = told[token_id]
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(raw)}

    pairs = zip(answer.token_ids[first:], answer.likelihoods[first:], strict=False)
    content = [
        entry(token_id, likelihood.logprob)
        | {"top_logprobs": [entry(*pair) for pair in likelihood.top]}
        for token_id, likelihood in pairs
    ]
    return {"content": content, "refusal": None}


def _completion_logprobs(
    answer: "PartialAnswer", first: int, told: Spelling, offset: int
) -> dict[str, object]:
    """With the prompt's tokens before those of the answer where they are told."""
    ids, likelihoods = answer.token_ids[first:], list[Likelihood | None](answer.likelihoods[first:])
    ids = ids[: len(likelihoods)]
    if answer.prompt_likelihoods is not None and first == 0:
        ids = [*answer.prompt, *ids]
        likelihoods = [None, *answer.prompt_likelihoods, *likelihoods]
    texts = [told[i].text for i in ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    tops: list[dict[str, float] | None] = []
    for text, likelihood in zip(texts, likelihoods, strict=True):
        if likelihood is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        # Of several tokens with one text the likeliest is told; the answer's own always is.
        for token_id, logprob in likelihood.top:
            top.setdefault(told[token_id].text, max(logprob, LEAST))
        top.setdefault(text, max(likelihood.logprob, LEAST))
        tops.append(top)
    own = [None if one is None else max(one.logprob, LEAST) for one in likelihoods]
    return {"tokens": texts, "token_logprobs": own, "top_logprobs": tops, "text_offset": offsets}


class ReplyForm(NamedTuple):
    """How one endpoint words its replies."""

    prefix: str
    whole: str
    """The kind of a reply that comes at once."""
    part: str
    """The kind of a piece of a stream."""
    say: Callable[[str, Sequence[Call]], ChoiceBody]
    """A choice's text and calls, at once."""
    add: Callable[[News], ChoiceBody]
    """More of a choice."""
    logprobs: Callable[[PartialAnswer, int, Spelling, int], dict[str, object]]
    """What is told of a choice's tokens, from one on, which come at an offset in the text."""
    begin: ChoiceBody | None
    """What a choice of a stream begins with."""


CHAT = ReplyForm(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    _whole_message,
    _delta,
    _chat_logprobs,
    {"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = ReplyForm(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text, _: {"text": text},
    lambda news: {"text": news.text},
    _completion_logprobs,
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
    spelling: Spelling | None = None
    """Where log-probabilities are told."""

    def whole(self, answers: Sequence[PartialAnswer], usage: Usage) -> bytes:
        """The body of a reply that comes at once."""
        choices = [
            self._choice(number, self.form.say(answer.echo + answer.text, answer.calls), answer, 0)
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
        return self._event([self._choice(number, self.form.add(news), answer, news.first)])

    def count(self, usage: Usage) -> bytes:
        """The event with the count of tokens, where the client wants one."""
        return self._event([], usage) if self.usage else b""

    def _choice(
        self, number: int, text: ChoiceBody, answer: PartialAnswer, first: int
    ) -> ChoiceBody:
        """A choice, or a piece of it with the tokens from the first one on."""
        choice: ChoiceBody = {"index": number, **text, **UNFINISHED}
        if self.token_ids:
            choice["token_ids"] = answer.token_ids[first:]
        if self.spelling is not None:
            offset = sum(map(len, answer.pieces[:first]))
            choice["logprobs"] = self.form.logprobs(answer, first, self.spelling, offset)
        if answer.finish_reason is not None:
            choice["finish_reason"] = answer.finish_reason
            choice["stop_reason"] = answer.stop_string
            about: dict[str, object] = {}
            if self.monitored:
                about["firings"] = [f.row() for f in answer.shown_firings]
            if answer.chosen is not None:
                about["best_of"] = answer.chosen
            if about:
                choice["surgeon"] = about
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
