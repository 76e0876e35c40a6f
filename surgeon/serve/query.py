"""A request, read from its JSON as OpenAI's endpoints take it.

Parameters that would change the answer and aren't offered here are refused, not ignored; unknown
ones are refused too, as OpenAI does.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from surgeon.decoding import Request, Shaping, stream_key
from surgeon.serve.conversation import ToolChoice, read_messages, read_tools, render
from surgeon.serve.grammar import Grammar, Grammars, depth
from surgeon.serve.refusals import Refusal, encodable
from surgeon.serve.tools import CallForm, ForcedCalls, FreeCalls, forced_schema
from surgeon.settings.neureasoner import THINKING, Tags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

BOTH = frozenset({
    "model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "stream",
    "stream_options", "include_stop_str_in_output", "return_token_ids", "min_p", "logit_bias",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "response_format", "logprobs",
    "best_of",
})  # fmt: skip
CHAT = BOTH | {
    "messages", "max_completion_tokens", "chat_template_kwargs", "top_logprobs", "tools",
    "tool_choice", "parallel_tool_calls",
}  # fmt: skip
COMPLETION = BOTH | {"prompt", "add_special_tokens", "echo"}
IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
})  # fmt: skip
"""They change no answer."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_logprobs": (0,), "echo": (False,), "suffix": ("",), "tools": ([],),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (),
    "moderation": (), "reasoning_effort": (), "verbosity": (),
}  # fmt: skip
"""Parameters that aren't offered: the values that ask for nothing."""
STOPS, STOP_LENGTH = 16, 256
"""Most stop strings of a request, and characters of one."""
MOST_ANSWERS = 128
MOST_LIKELY = 20
"""Log-probabilities beside the token's own."""
MOST_BIASES = 1024
MOST_LEVELS = 200
CHARACTERS = 64
"""Characters per token of the longest prompt that a text is read at all of: text has about four."""
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
    best_of: int | None = 1
    """Answers that are decoded for each that is sent, where a request doesn't say; None where
    nothing can choose among them."""
    grammars: Grammars | None = None
    """None where a monitor forces tokens, which no grammar could allow for."""
    tags: Tags = THINKING
    """What a thought stands between."""


class Told(NamedTuple):
    """Log-probabilities that a request asks for."""

    top: int
    """The likeliest tokens that are told beside the answer's own."""
    prompt: bool
    """The prompt's tokens are told as well."""


class Calling(NamedTuple):
    """How calls of tools are found in an answer."""

    form: CallForm | None
    thinking: bool
    forced: bool
    name: str | None
    most: int | None
    tags: Tags = THINKING

    def reader(self) -> FreeCalls | ForcedCalls:
        """For one answer."""
        if self.forced or self.form is None:
            return ForcedCalls(self.name, self.most)
        return FreeCalls(self.form, self.thinking, self.most, self.tags)


class Query(NamedTuple):
    """A request that makes sense."""

    prompts: list[list[int]]
    """Token ids; each is answered `n` times."""
    n: int
    of: int
    """Answers that are decoded to each prompt; the `n` best are sent, where they are fewer."""
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
    shaping: Shaping = Shaping()
    grammar: Grammar | None = None
    told: Told | None = None
    echo: tuple[str, ...] | None = None
    """The text of each prompt, where answers are to begin with it."""
    calling: Calling | None = None

    @property
    def requests(self) -> list[Request]:
        """The answers to decode, in the order of the choices: all of the first prompt, and so on.

        The same prompt and seed give the same answers, alone or among other prompts.
        """
        settings = self.max_tokens, self.temperature, self.top_p, self.top_k
        return [
            Request(
                ids, stream_key(self.seed, STREAM, number), *settings, self.shaping,
                None if self.grammar is None else self.grammar.begin(),
                None if self.told is None else self.told.top,
            )
            for ids in self.prompts
            for number in range(self.of)
        ]  # fmt: skip


def read_chat(raw: bytes, tokenizer: "PreTrainedTokenizerBase", offer: Offer) -> Query:
    """The body of a chat request; raises `Refusal`."""
    body = _read(raw, CHAT, offer)
    if "max_completion_tokens" in body and "max_tokens" in body:
        raise Refusal(
            400, "max_tokens and max_completion_tokens can't be set both.", param="max_tokens"
        )
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    if tokenizer.chat_template is None:
        raise Refusal(400, "This model has no chat template: ask /v1/completions instead.")
    messages = read_messages(body.get("messages"))
    _require_short([str(message["content"]) for message in messages], "messages", offer)
    choice = read_tools(body.get("tools"), body.get("tool_choice"))
    thinking = _thinking(body.get("chat_template_kwargs"), offer.thinking)
    several = _switch(body, "parallel_tool_calls", True)
    told = None
    top = _whole(body, "top_logprobs", 0, 0, MOST_LIKELY)
    if _switch(body, "logprobs", False):
        told = Told(top, prompt=False)
    elif top:
        raise Refusal(400, "top_logprobs needs logprobs = true.", param="top_logprobs")
    shown = render(tokenizer, messages, choice, thinking, offer.template, offer.tags)
    most = _tokens(body, name, offer.max_tokens, offer)
    query = _query(body, offer, [shown.ids], "messages", most)._replace(told=told)
    if not choice.tools:
        return query
    calls = None if several else 1
    if choice.required:
        query = query._replace(grammar=_forced(query, choice, calls, offer))
    calling = Calling(
        shown.form, shown.thinking, choice.required, choice.name, calls, offer.tags
    )  # fmt: skip
    return query._replace(calling=calling)


def _forced(query: Query, choice: ToolChoice, most: int | None, offer: Offer) -> Grammar:
    """What makes an answer a call."""
    if query.grammar is not None:
        raise Refusal(
            400, "response_format can't be set where tool_choice asks for a call.",
            param="response_format",
        )  # fmt: skip
    schema = forced_schema(choice.functions, choice.name, most)
    return _grammars(offer, "tool_choice").read(schema, "tool_choice")


def read_completion(raw: bytes, tokenizer: "PreTrainedTokenizerBase", offer: Offer) -> Query:
    """The body of a request to complete text or token ids; raises `Refusal`."""
    body = _read(raw, COMPLETION, offer)
    special = _switch(body, "add_special_tokens", True)
    given = _prompts(body.get("prompt"), offer)
    _require_short([text for text in given if isinstance(text, str)], "prompt", offer)
    prompts = [
        [int(i) for i in tokenizer(p, add_special_tokens=special)["input_ids"]]  # pyright: ignore
        if isinstance(p, str)
        else p
        for p in given
    ]
    echo = _switch(body, "echo", False)
    if echo and _switch(body, "stream", False):
        raise Refusal(400, "echo can't be streamed: leave out one of them.", param="echo")
    # OpenAI's default for this endpoint. Without an answer, a prompt may still be told of.
    most = _whole(body, "max_tokens", min(16, offer.max_tokens), 0 if echo else 1, offer.max_tokens)
    told = None
    if "logprobs" in body and body["logprobs"] is not False:
        told = Told(_whole(body, "logprobs", 0, 0, MOST_LIKELY), prompt=echo)
    texts = None
    if echo:
        texts = tuple(p if isinstance(p, str) else str(tokenizer.decode(p)) for p in given)
    return _query(body, offer, prompts, "prompt", most)._replace(told=told, echo=texts)


def _read(raw: bytes, known: frozenset[str], offer: Offer) -> Mapping[str, object]:
    """The request's JSON object without what is null, its names and model checked."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no valid JSON ({error}).") from error
    if not isinstance(body, dict):
        raise Refusal(400, "The body is no JSON object.")
    if depth(body) > MOST_LEVELS:
        raise Refusal(400, f"The body has over {MOST_LEVELS} levels of lists and objects.")
    body = {name: value for name, value in body.items() if value is not None}
    for name, value in body.items():
        if name in known or name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise Refusal(
                400, f"Unrecognized request argument supplied: {name[:80]}", param=name[:80],
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


def _require_short(texts: Sequence[str], param: str, offer: Offer) -> None:
    """Raise `Refusal` for text that can't be a prompt, before others wait while it is read."""
    most, found = CHARACTERS * offer.max_prompt_tokens, sum(map(len, texts))
    if found > most * max(1, len(texts) if param == "prompt" else 1):
        raise Refusal(
            400, f"The prompt has {found} characters; this server takes {offer.max_prompt_tokens} "
            f"tokens, and reads up to {most} characters for them.", param=param,
            code="context_length_exceeded",
        )  # fmt: skip


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
    of = _best_of(body, n, max_tokens, offer)
    _check_answers(of * len(prompts), "best_of", offer)
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
        of=of,
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
        shaping=_shaping(body, offer),
        grammar=_response_format(body.get("response_format"), offer),
    )


def _best_of(body: Mapping[str, object], n: int, max_tokens: int, offer: Offer) -> int:
    """Answers that are decoded to each prompt."""
    if offer.best_of is None:
        if body.get("best_of", n) != n:
            raise Refusal(
                400, "best_of is not supported by this server: the model's activations can't be "
                "recorded; leave it out.", param="best_of", code="unsupported_parameter",
            )  # fmt: skip
        return n
    # Greedy answers are one answer, and of a prompt alone there is none to choose.
    plain = body.get("temperature", offer.temperature) == 0 or not max_tokens
    default = n if plain else max(n, offer.best_of)
    return _whole(body, "best_of", default, n, MOST_ANSWERS)


def _shaping(body: Mapping[str, object], offer: Offer) -> Shaping:
    """What is done to logits before a token is drawn."""
    return Shaping(
        bias=_bias(body.get("logit_bias"), offer),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 10),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
        min_p=_number(body, "min_p", 0.0, 0, 1),
    )


def _bias(bias: object, offer: Offer) -> tuple[tuple[int, float], ...]:
    bias = {} if bias is None else bias
    found: dict[int, float] = {}
    good = isinstance(bias, dict) and len(bias) <= MOST_BIASES
    for name, value in bias.items() if isinstance(bias, dict) and good else ():
        # isdecimal knows digits of all scripts, and int their values: a token id is plain.
        good = good and name.isascii() and name.isdecimal() and len(name) < 12
        good = good and type(value) in (int, float) and -100 <= value <= 100
        if not good:
            break
        found[int(name)] = float(value)
    if not good:
        raise Refusal(
            400, "logit_bias must be an object of token ids, as text, and numbers from -100 to "
            f"100, of up to {MOST_BIASES} tokens.", param="logit_bias",
        )  # fmt: skip
    if found and max(found) >= offer.vocabulary:
        raise Refusal(
            400, f"logit_bias names token {max(found)}, outside the model's 0 to "
            f"{offer.vocabulary - 1}.", param="logit_bias",
        )  # fmt: skip
    return tuple(found.items())


def _response_format(wanted: object, offer: Offer) -> Grammar | None:
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _grammars(offer, "response_format").read({"type": "object"}, "response_format")
    named = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise Refusal(
            400, "response_format must be of type text, json_object, or json_schema with "
            "json_schema.schema, an object.", param="response_format",
        )  # fmt: skip
    return _grammars(offer, "response_format").read(schema, "response_format")


def _grammars(offer: Offer, param: str) -> Grammars:
    if offer.grammars is None:
        raise Refusal(
            400, f"{param}: this server has a monitor, which forces tokens that no grammar allows "
            "for; serve without one (--levels none).", param=param, code="unsupported_parameter",
        )  # fmt: skip
    return offer.grammars


# --- single parameters ----------------------------------------------------------------------------


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
            encodable(one, "prompt")
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
    return tuple(encodable(text, "stop") for text in stops)


def _tokens(body: Mapping[str, object], name: str, default: int, offer: Offer) -> int:
    return _whole(body, name, default, 1, offer.max_tokens)


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
