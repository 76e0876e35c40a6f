"""A request, read from its JSON as OpenAI's endpoints take it.

Parameters that would change the answer and aren't offered here are refused, not ignored; unknown
ones are refused too, as OpenAI does.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from surgeon.decoding import Request, stream_key
from surgeon.errors import BadInput
from surgeon.serve.refusals import Refusal
from surgeon.traces import Prompt, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

BOTH = frozenset({
    "model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "stream",
    "stream_options", "include_stop_str_in_output", "return_token_ids",
})  # fmt: skip
CHAT = BOTH | {"messages", "max_completion_tokens", "chat_template_kwargs"}
COMPLETION = BOTH | {"prompt", "add_special_tokens"}
IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
})  # fmt: skip
"""They change no answer."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,),
    "logit_bias": ({},), "logprobs": (False,), "top_logprobs": (0,), "echo": (False,),
    "suffix": ("",), "best_of": (1,), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (),
    "moderation": (), "reasoning_effort": (), "verbosity": (),
}  # fmt: skip
"""Parameters that aren't offered: the values that ask for nothing."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
STOPS, STOP_LENGTH = 16, 256
"""Most stop strings of a request, and characters of one."""
MOST_ANSWERS = 128
STREAM = "serve"
"""The name that a seed's random numbers go by."""


class Offer(NamedTuple):
    """What the server serves, as far as requests depend on it."""

    names: tuple[str, ...]
    """The model's name, and others it goes by."""
    context: int
    vocabulary: int
    """Token ids are below this."""
    max_tokens: int
    """Most tokens of an answer."""
    max_prompt_tokens: int
    most_answers: int
    """Answers that a request may ask for."""
    temperature: float
    top_p: float
    top_k: int
    thinking: bool | None
    template: str | None = None
    """Name of the chat template."""


class Query(NamedTuple):
    """A request that makes sense."""

    prompts: list[list[int]]
    """Token ids; each is answered `n` times."""
    n: int
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: tuple[str, ...]
    keep_stop: bool
    """The stop string stays in the text."""
    stream: bool
    usage: bool
    """A stream ends with a count of tokens."""
    token_ids: bool
    """The answer's tokens come with its text."""

    @property
    def requests(self) -> list[Request]:
        """The answers to decode, in the order of the choices: all of the first prompt, and so on.

        The same prompt and seed give the same answers, alone or among other prompts.
        """
        settings = self.max_tokens, self.temperature, self.top_p, self.top_k
        return [
            Request(ids, stream_key(self.seed, STREAM, number), *settings)
            for ids in self.prompts
            for number in range(self.n)
        ]


def read_chat(raw: bytes, tokenizer: "PreTrainedTokenizerBase", offer: Offer) -> Query:
    """The body of a chat request; raises `Refusal`."""
    body = _read(raw, CHAT, offer)
    if "max_completion_tokens" in body and "max_tokens" in body:
        raise Refusal(
            400, "max_tokens and max_completion_tokens can't be set both.", param="max_tokens"
        )
    most = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    if tokenizer.chat_template is None:
        raise Refusal(400, "This model has no chat template: ask /v1/completions instead.")
    messages = _messages(body.get("messages"))
    thinking = _thinking(body.get("chat_template_kwargs"), offer.thinking)
    try:
        ids = encode(tokenizer, Prompt("messages", messages), thinking, offer.template)
    except BadInput as error:
        raise Refusal(400, str(error), param="messages") from error
    return _query(body, offer, [ids], "messages", _tokens(body, most, offer.max_tokens, offer))


def read_completion(raw: bytes, tokenizer: "PreTrainedTokenizerBase", offer: Offer) -> Query:
    """The body of a request to complete text or token ids; raises `Refusal`."""
    body = _read(raw, COMPLETION, offer)
    special = _switch(body, "add_special_tokens", True)
    prompts = [
        [int(i) for i in tokenizer(p, add_special_tokens=special)["input_ids"]]  # pyright: ignore
        if isinstance(p, str)
        else p
        for p in _prompts(body.get("prompt"), offer)
    ]
    # OpenAI's default for this endpoint.
    most = _tokens(body, "max_tokens", min(16, offer.max_tokens), offer)
    return _query(body, offer, prompts, "prompt", most)


def _read(raw: bytes, known: frozenset[str], offer: Offer) -> Mapping[str, object]:
    """The request's JSON object without what is null, its names and model checked."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no valid JSON ({error}).") from error
    if not isinstance(body, dict):
        raise Refusal(400, "The body is no JSON object.")
    body = {name: value for name, value in body.items() if value is not None}
    for name, value in body.items():
        if name in known or name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise Refusal(
                400, f"Unrecognized request argument supplied: {name}", param=name,
                code="unknown_parameter",
            )  # fmt: skip
        # True is 1 to Python, and not to those who ask.
        if (value, type(value) is bool) not in [(ok, type(ok) is bool) for ok in NEUTRAL[name]]:
            raise Refusal(
                400, f"{name} is not supported by this server; leave it out.", param=name,
                code="unsupported_parameter",
            )  # fmt: skip
    model = body.get("model", offer.names[0])
    if model not in offer.names:
        raise unknown_model(model, offer)
    return body


def unknown_model(name: object, offer: Offer) -> Refusal:
    """The request names a model that isn't here."""
    return Refusal(
        404, f"The model {str(name)[:80]!r} does not exist here; this server has "
        f"{offer.names[0]!r}.", param="model", code="model_not_found",
    )  # fmt: skip


def _query(
    body: Mapping[str, object], offer: Offer, prompts: list[list[int]], param: str, max_tokens: int
) -> Query:
    for ids in prompts:
        if not ids:
            raise Refusal(400, "The prompt has no tokens.", param=param)
        if len(ids) > offer.max_prompt_tokens:
            raise Refusal(
                400, f"The prompt has {len(ids)} tokens; this server takes "
                f"{offer.max_prompt_tokens} (the model's context is {offer.context}).",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
    n = _whole(body, "n", 1, 1, MOST_ANSWERS)
    _check_answers(n * len(prompts), "n", offer)
    temperature = _number(body, "temperature", offer.temperature, 0, 2)
    top_p = _number(body, "top_p", offer.top_p, 0, 1)
    top_k = _whole(body, "top_k", offer.top_k, -1, 1 << 31)
    if top_p == 0:
        # The smallest nucleus is the most likely token.
        temperature, top_p = 0.0, 1.0
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise Refusal(400, "stream_options is no object.", param="stream_options")
    stream = _switch(body, "stream", False)
    if options and not stream:
        raise Refusal(400, "stream_options needs stream = true.", param="stream_options")
    return Query(
        prompts=prompts,
        n=n,
        seed=_whole(body, "seed", secrets.randbits(62), -(1 << 63), 1 << 63),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, top_k),
        stop=_stops(body.get("stop")),
        keep_stop=_switch(body, "include_stop_str_in_output", False),
        stream=stream,
        usage=_switch(options, "include_usage", False),
        token_ids=_switch(body, "return_token_ids", False),
    )


# --- single parameters ----------------------------------------------------------------------------


def _messages(messages: object) -> tuple[dict[str, str], ...]:
    """The conversation, each message's parts of text joined by line breaks."""
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages must be a list of at least one message.", param="messages")
    plain = []
    for n, message in enumerate(messages):
        param = f"messages[{n}]"
        if not isinstance(message, dict):
            raise Refusal(400, f"{param} is no object.", param=param)
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in ROLES:
            raise Refusal(
                400, f"{param}.role is {str(role)[:40]!r}, expected {', '.join(ROLES)}.",
                param=f"{param}.role",
            )  # fmt: skip
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise Refusal(400, f"{param}.{name} is not supported.", param=f"{param}.{name}")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = []
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str) or part.get("type") != "text":
                raise Refusal(
                    400, f"{param}.content must be text, or a list of parts of type text.",
                    param=f"{param}.content",
                )  # fmt: skip
            texts.append(_encodable(text, f"{param}.content"))
        plain.append({"role": ROLES[role], "content": "\n".join(texts)})
    return tuple(plain)


def _thinking(kwargs: object, default: bool | None) -> bool | None:
    kwargs = {} if kwargs is None else kwargs
    value = kwargs.get("enable_thinking", default) if isinstance(kwargs, dict) else kwargs
    alone = isinstance(kwargs, dict) and set(kwargs) <= {"enable_thinking"}
    if not alone or not isinstance(value, bool | None):
        raise Refusal(
            400,
            "chat_template_kwargs may hold enable_thinking (true or false) only.",
            param="chat_template_kwargs",
        )
    return value


def _prompts(prompt: object, offer: Offer) -> list[str | list[int]]:
    """Text, token ids, or a list of either."""

    def is_ids(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)

    several: list[Any] = prompt if isinstance(prompt, list) and not is_ids(prompt) else [prompt]
    if not several or not all(isinstance(p, str) or is_ids(p) for p in several):
        raise Refusal(400, "prompt must be text or token ids, or a list of either.", param="prompt")
    _check_answers(len(several), "prompt", offer)
    for one in several:
        if isinstance(one, str):
            _encodable(one, "prompt")
        elif not all(0 <= i < offer.vocabulary for i in one):
            raise Refusal(
                400, f"prompt holds token ids outside the model's 0 to {offer.vocabulary - 1}.",
                param="prompt",
            )  # fmt: skip
    return several


def _check_answers(count: int, param: str, offer: Offer) -> None:
    if count > offer.most_answers:
        raise Refusal(
            400, f"The request asks for {count} answers; this server takes {offer.most_answers} at "
            "once.", param=param,
        )  # fmt: skip


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if (
        not isinstance(stops, list)
        or len(stops) > STOPS
        or not all(isinstance(s, str) and 0 < len(s) <= STOP_LENGTH for s in stops)
    ):
        raise Refusal(
            400, f"stop must be text of 1 to {STOP_LENGTH} characters, or a list of up to {STOPS}.",
            param="stop",
        )  # fmt: skip
    return tuple(_encodable(text, "stop") for text in stops)


def _tokens(body: Mapping[str, object], name: str, default: int, offer: Offer) -> int:
    return _whole(body, name, default, 1, offer.max_tokens)


def _encodable(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(400, f"{param} is no valid Unicode ({error.reason}).", param=param) from error
    return text


def _checked(
    body: Mapping[str, object], name: str, default: T, good: Callable[[Any], bool], expected: str
) -> T:
    value: Any = body.get(name)
    value = default if value is None else value
    if not good(value):
        raise Refusal(400, f"{name} is {str(value)[:40]}, expected {expected}.", param=name)
    return value


def _whole(body: Mapping[str, object], name: str, default: int, low: int, high: int) -> int:
    expected = f"a whole number from {low} to {high}"
    return _checked(body, name, default, lambda v: type(v) is int and low <= v <= high, expected)


def _number(
    body: Mapping[str, object], name: str, default: float, low: float, high: float
) -> float:
    def good(value: Any) -> bool:
        # What a checkpoint has for a default may be unusual.
        return type(value) in (int, float) and (low <= value <= high or value == default)

    return float(_checked(body, name, default, good, f"a number from {low} to {high}"))


def _switch(body: Mapping[str, object], name: str, default: bool) -> bool:
    return _checked(body, name, default, lambda v: isinstance(v, bool), "true or false")
