"""A client of OpenAI-compatible chat endpoints that gets JSON of a given shape, or says why not."""

import contextlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from surgeon.answers import after_thinking
from surgeon.errors import BadInput

T = TypeVar("T")
R = TypeVar("R")

KEY = "OPENAI_API_KEY"
"""Environment variable of the key; without it none is sent."""
STRUCTURED = ("json_schema", "json_object", "none")
"""How the shape is asked for: enforced by the server, any JSON enforced, or by the prompt alone."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be gone at the next attempt."""
LONGEST_WAIT = 60.0
CHARACTERS_PER_TOKEN = 3.5
"""For estimates: English and mathematics in usual vocabularies."""
LARGEST_REPLY = 32 << 20


class Shape(NamedTuple):
    """What a reply must look like."""

    name: str
    schema: Mapping[str, Any]
    """JSON schema of an object: types, `enum`, `items`, `properties`, all of them required."""


class Reply(NamedTuple):
    """A reply of the right shape, and what it took."""

    value: dict[str, Any]
    tokens_in: int
    tokens_out: int
    """Tokens as the server counts them, all attempts together; 0 where it doesn't say."""


class _Passing(Exception):
    """This attempt failed in a way that another one may not."""

    def __init__(self, text: str, *, reached: bool = True, wait: float | None = None):
        super().__init__(text)
        self.reached, self.wait = reached, wait


@dataclass
class Endpoint:
    """A model behind a chat endpoint; safe to ask from several threads."""

    url: str
    """The part before `/chat/completions`, such as `https://api.openai.com/v1`."""
    model: str
    structured: str = "json_schema"
    temperature: float | None = None
    """None sends none: some models refuse any but their own."""
    timeout: float = 300.0
    """Seconds for one attempt."""
    attempts: int = 6
    """Attempts at getting a reply, with growing pauses: 1, 2, 4, ... seconds."""
    tries: int = 3
    """Replies asked for until one has the right shape."""
    pause: float = 1.0
    """Seconds before the second attempt."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set it to end the pauses: who waits then fails at once."""

    def __post_init__(self) -> None:
        if self.structured not in STRUCTURED:
            raise BadInput(
                f"structured is {self.structured!r}, expected one of: {', '.join(STRUCTURED)}."
            )
        for name in ("timeout", "attempts", "tries"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} is {getattr(self, name)}; it must be above 0.")

    @classmethod
    def parse(cls, spec: str, **settings: Any) -> "Endpoint":
        """The endpoint that `URL#model` names; raises `BadInput` for anything else."""
        url, _, model = spec.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or not model:
            raise BadInput(
                f"found the endpoint {spec!r}, expected URL#model, for example "
                "http://localhost:8000/v1#Qwen3-32B."
            )
        return cls(url.rstrip("/").removesuffix("/chat/completions"), model, **settings)

    def require_reachable(self) -> None:
        """Raise `BadInput` when nothing answers at the URL, or it refuses the key."""
        try:
            self._send("/models", None, timeout=min(self.timeout, 20.0))
        except _Passing as error:
            if not error.reached:
                raise BadInput(f"{error} Is the server running, and the URL right?") from error
        except _Refused as error:
            # Not every server lists its models; a refused key is refused for good.
            if error.status in (401, 403):
                raise BadInput(str(error)) from error

    def ask(
        self,
        messages: Sequence[Mapping[str, str]],
        shape: Shape,
        check: Callable[[dict[str, Any]], str | None] = lambda _: None,
    ) -> Reply:
        """The model's reply as JSON of this shape, for which `check` has no complaint.

        A reply of another shape is asked for again with the complaint. Raises `BadInput` when the
        endpoint stays out of reach, refuses, or keeps giving replies that can't be used.
        """
        asked = [dict(message) for message in messages]
        tokens_in = tokens_out = 0
        complaint = ""
        for _ in range(self.tries):
            text, used = self._complete(asked, shape)
            tokens_in, tokens_out = tokens_in + used[0], tokens_out + used[1]
            value, complaint = read_value(text, shape)
            if value is not None:
                complaint = check(value) or ""
                if not complaint:
                    return Reply(value, tokens_in, tokens_out)
            asked = [
                *(dict(message) for message in messages),
                {"role": "assistant", "content": text[:4000]},
                {"role": "user", "content": f"That can't be used: {complaint} Answer again, with "
                                            "the JSON object only."},
            ]  # fmt: skip
        raise BadInput(
            f"{self.model} at {self.url} gave {self.tries} replies that can't be used; the last: "
            f"{complaint} What was done is kept: the same command goes on."
        )

    def _complete(
        self, messages: list[dict[str, str]], shape: Shape
    ) -> tuple[str, tuple[int, int]]:
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.structured == "json_schema":
            wanted = {"name": shape.name, "strict": True, "schema": strict(shape.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        for attempt in range(self.attempts):
            try:
                return _content(self._send("/chat/completions", body, timeout=self.timeout))
            except _Passing as error:
                if attempt == self.attempts - 1 or self.stopped.is_set():
                    raise BadInput(
                        f"{error} {attempt + 1} attempts failed. What was done is kept: the same "
                        "command goes on when the endpoint is back."
                    ) from error
                wait = self.pause * 2**attempt if error.wait is None else error.wait
                self.stopped.wait(min(wait, LONGEST_WAIT))
            except _Refused as error:
                hint = ""
                if error.status in (400, 422) and self.structured == "json_schema":
                    hint = " If it knows no JSON schema, set structured=json_object or none."
                raise BadInput(f"{error}{hint}") from error
        raise AssertionError

    def _send(self, path: str, body: dict[str, Any] | None, *, timeout: float) -> Any:
        """The JSON of one exchange; raises `_Passing` or `_Refused`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        request.add_header("Content-Type", "application/json")
        key = os.environ.get(KEY)
        if key:
            # Not to be repeated to whomever a redirect names.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        who = f"{self.model} at {self.url}"
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                raw = answer.read(LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read(LARGEST_REPLY))
            text = f"{who} answered {error.code}: {said}"
            if error.code in PASSING:
                wait = _seconds(error.headers.get("Retry-After"))
                raise _Passing(text, wait=wait) from error
            raise _Refused(text, error.code) from error
        except urllib.error.URLError as error:
            text = f"{who} can't be reached ({error.reason})."
            raise _Passing(text, reached=False) from error
        except (OSError, http.client.HTTPException) as error:
            reason = "no reply in time" if isinstance(error, TimeoutError) else repr(error)
            raise _Passing(f"{who} broke off ({reason}).") from error
        try:
            return json.loads(raw)
        except ValueError as error:
            raise _Passing(f"{who} answered with something other than JSON.") from error


class _Refused(Exception):
    """The endpoint said no, and will say it again."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


def _message(raw: bytes) -> str:
    """What an error's body says, on one line."""
    text = raw.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        inner = value.get("error", value) if isinstance(value, dict) else value
        text = str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    return (" ".join(text.split()) or "nothing")[:300].rstrip(".") + "."


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None


def _content(answer: Any) -> tuple[str, tuple[int, int]]:
    """The text of a chat completion, and the tokens it took."""
    try:
        text = answer["choices"][0]["message"]["content"] or ""
        usage = answer.get("usage") or {}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _Passing("the endpoint's reply is no chat completion.") from error
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    used = tuple(n if isinstance(n, int) else 0 for n in counts)
    return str(text), (used[0], used[1])


def in_parallel(
    endpoint: Endpoint, items: Iterable[T], function: Callable[[T], R], parallel: int
) -> Iterator[tuple[T, R]]:
    """Yield (item, `function(item)`) as they end, at most `parallel` at a time.

    After the first error, or when the consumer stops, nothing more is begun and nobody waits for
    another attempt; what was under way is still yielded before the error is raised.
    """
    endpoint.stopped.clear()
    waiting, running = iter(items), dict[Future[R], T]()
    failure: BaseException | None = None
    with ThreadPoolExecutor(parallel) as pool:
        try:
            while True:
                while failure is None and len(running) < parallel:
                    item = next(waiting, endpoint)
                    if item is endpoint:
                        break
                    running[pool.submit(function, item)] = item  # pyright: ignore
                if not running:
                    break
                for task in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(task)
                    error = task.exception()
                    if error is None:
                        yield item, task.result()
                    elif failure is None:
                        failure = error
                        endpoint.stopped.set()
        finally:
            endpoint.stopped.set()
    if failure is not None:
        raise failure


# --- shapes ---------------------------------------------------------------------------------------


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
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
    text = (after_thinking(text) or "").strip()
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
