"""Asking a model behind a chat endpoint for JSON of a given shape."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from surgeon.answers import after_thinking
from surgeon.answers.thinking import TAGS
from surgeon.endpoint import Endpoint, Refused
from surgeon.errors import BadInput
from surgeon.settings.asking import EndpointSettings


class NoReply(BadInput):
    """A question to which no usable reply came; another question may fare better."""

    def __init__(self, text: str, tokens_in: int = 0, tokens_out: int = 0):
        super().__init__(text)
        self.tokens_in, self.tokens_out = tokens_in, tokens_out


CHARACTERS_PER_TOKEN = 3.5
"""For estimates: English and mathematics in usual vocabularies."""
OWN_FAULT = frozenset({400, 413, 422})
"""Statuses by which a server refuses a request for what is in it, such as too long a trace."""


class Shape(NamedTuple):
    """What a reply must look like."""

    name: str
    schema: Mapping[str, Any]
    """JSON schema of an object: types, `enum`, `items`, `properties`, all of them required."""


class ChatReply(NamedTuple):
    """A reply of the right shape, and what it took."""

    value: dict[str, Any]
    tokens_in: int
    tokens_out: int
    """Tokens as the server counts them, all attempts together; 0 where it doesn't say."""


@dataclass
class Chat(Endpoint):
    """A model behind a chat endpoint; safe to ask from several threads."""

    structured: str = EndpointSettings.structured
    temperature: float | None = None
    """None sends none: some models refuse any but their own."""
    tries: int = 3
    """Replies asked for until one has the right shape."""

    @classmethod
    def of(cls, spec: str, settings: EndpointSettings, temperature: float | None) -> "Chat":
        """The model that `URL#model` names, asked by the settings; raises `BadInput`."""
        return cls.parse(
            spec, structured=settings.structured, temperature=temperature,
            timeout=settings.timeout, attempts=settings.attempts,
        )  # fmt: skip

    def require_reachable(self) -> None:
        """Raise `BadInput` when nothing answers at the URL, or it refuses the key."""
        self.models()

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        shape: Shape,
        check: Callable[[dict[str, Any]], str | None] = lambda _: None,
    ) -> ChatReply:
        """The model's reply as JSON of this shape, for which `check` has no complaint.

        A reply of another shape is asked for again with the complaint. Raises `NoReply` when the
        endpoint keeps giving replies that can't be used, or refuses this request alone, and
        `BadInput` when it stays out of reach or refuses altogether.
        """
        asked = list(messages)
        tokens_in = tokens_out = 0
        complaint = ""
        for _ in range(self.tries):
            try:
                text, used = self._complete(asked, shape)
            except Refused as error:
                if error.status in OWN_FAULT:
                    raise NoReply(str(error), tokens_in, tokens_out) from error
                raise
            tokens_in, tokens_out = tokens_in + used[0], tokens_out + used[1]
            value, complaint = read_value(text, shape)
            if value is not None:
                complaint = check(value) or ""
                if not complaint:
                    return ChatReply(value, tokens_in, tokens_out)
            asked = [
                *messages,
                {"role": "assistant", "content": text[:4000]},
                {"role": "user", "content": f"That can't be used: {complaint} Answer again, with "
                                            "the JSON object only."},
            ]  # fmt: skip
        raise NoReply(
            f"{self.model} at {self.url} gave {self.tries} replies that can't be used; the last: "
            f"{complaint} What was done is kept: the same command resumes.",
            tokens_in,
            tokens_out,
        )

    def _complete(
        self, messages: Sequence[Mapping[str, str]], shape: Shape
    ) -> tuple[str, tuple[int, int]]:
        """The text of a reply, and the tokens it took."""
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.structured == "json_schema":
            wanted = {"name": shape.name, "strict": True, "schema": strict(shape.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}

        try:
            return self.exchange(
                lambda client: client.chat.completions.with_raw_response.create(**body), _content
            )
        except Refused as error:
            if error.status in (400, 422) and self.structured == "json_schema":
                hint = "If it knows no JSON schema, set structured=json_object or none."
                raise Refused(f"{error} {hint}", error.status) from error
            raise


def _content(reply: Any) -> tuple[str, tuple[int, int]]:
    """The text of a chat completion, and the tokens it took."""
    usage = reply.get("usage") or {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    used_in, used_out = (n if isinstance(n, int) else 0 for n in counts)
    return str(reply["choices"][0]["message"]["content"] or ""), (used_in, used_out)


# --- shapes ---------------------------------------------------------------------------------------


def strict(schema: Mapping[str, Any]) -> dict[str, object]:
    """The schema as servers want it that enforce it: every property required, no others."""
    made = dict(schema)
    if made.get("type") == "object":
        made["properties"] = {k: strict(v) for k, v in made["properties"].items()}
        made["required"] = list(made["properties"])
        made["additionalProperties"] = False
    elif made.get("type") == "array":
        made["items"] = strict(made["items"])
    return made


def read_value(text: str, shape: Shape) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a reply, or None and what is wrong with it.

    Thinking before it and a code fence around it are taken off.
    """
    text = (after_thinking(text, TAGS) or "").strip()
    if text.startswith("```"):
        text = text.partition("\n")[2].rpartition("```")[0]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"it is no JSON object ({error})."
    complaint = mismatch(value, shape.schema)
    return (None, complaint) if complaint else (value, "")


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "boolean": (bool,),
}  # fmt: skip


def mismatch(value: Any, schema: Mapping[str, Any], where: str = "the reply") -> str:
    """What in a JSON value is not as its schema says; empty when all is."""
    wanted = schema["type"]
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    if value is None and "null" in kinds:
        return ""
    good = [k for k in kinds if k != "null" and isinstance(value, _TYPES[k])]
    if not good or (isinstance(value, bool) and "boolean" not in kinds):
        return f"{where} is {json.dumps(value)[:40]}, expected {' or '.join(kinds)}."
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r}, expected one of {', '.join(map(str, schema['enum']))}."
    if isinstance(value, dict):
        for name, inner in schema["properties"].items():
            if name not in value:
                return f"{where} lacks {name!r}."
            complaint = mismatch(value[name], inner, name)
            if complaint:
                return complaint
    if isinstance(value, list):
        for i, item in enumerate(value):
            complaint = mismatch(item, schema["items"], f"{where}[{i}]")
            if complaint:
                return complaint
    return ""


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return round(len(text) / CHARACTERS_PER_TOKEN)
