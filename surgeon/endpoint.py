"""A model behind an OpenAI-compatible endpoint: where it is, its key, and asking again.

The `openai` client speaks to it (the extra `endpoint`), imported once a URL was given.
"""

import json
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")

KEY = "OPENAI_API_KEY"
"""Environment variable of the key; local servers need none."""
PASSING = frozenset({408, 409, 425, 429})
"""Statuses that may be gone at the next attempt, as are those from 500 on."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; twice as many before each further one."""
LONGEST_PAUSE = 120.0
"""Seconds; a server that asks for a longer pause isn't waited for."""
PATIENCE = 20.0
"""Seconds for a connection, and for the list of models."""


class Refused(BadInput):
    """The server said no, and will say it again."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Unusable(Exception):
    """A reply isn't what was asked for; the text goes on from the model's name."""


@dataclass
class Endpoint:
    """A model behind an endpoint; safe to ask from several threads."""

    url: str
    """Up to the version, such as `https://api.openai.com/v1`."""
    model: str
    timeout: float = 300.0
    """Seconds for one attempt."""
    attempts: int = 6
    """Attempts at getting a reply, with growing pauses between them."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set it to end the pauses: who waits then fails at once."""

    def __post_init__(self) -> None:
        for name in ("timeout", "attempts"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} is {getattr(self, name)}; it must be above 0.")

    @classmethod
    def parse(cls, spec: str, **settings: Any) -> Self:
        """The endpoint that `URL#model` names; raises `BadInput` for anything else."""
        url, _, model = spec.partition("#")
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or not model:
            raise BadInput(
                f"found the endpoint {spec!r}, expected URL#model, for example "
                "http://localhost:8000/v1#Qwen3-32B."
            )
        url = url.rstrip("/").removesuffix("/completions").removesuffix("/chat")
        return cls(url, model, **settings)

    @cached_property
    def client(self) -> "OpenAI":
        """What speaks to the server; raises `BadInput` where the library is missing."""
        openai = _library()
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BadInput(f"{KEY} holds characters that no key has. Set it anew, or unset it.")
        client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            # `exchange` tries again: replies can be wrong too, and pauses must end at once.
            max_retries=0,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, PATIENCE)),
            # The key isn't for whomever a redirect names.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        weakref.finalize(self, client.close)
        return client

    def exchange(self, send: Callable[["OpenAI"], Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the JSON that `send` gets from the client, as a raw response.

        Tries again as long as that may help. Raises `Refused` when the server says no, `BadInput`
        when there is no usable reply in the end.
        """
        attempt = 0
        while True:
            try:
                found = json.loads(send(self.client).text)
                try:
                    return read(found)
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise Unusable("sent a reply of another form.") from error
            except (_library().APIError, Unusable, json.JSONDecodeError) as error:
                text, wait = self._failure(error)
                pause = FIRST_PAUSE * 2**attempt if wait is None else wait
                attempt += 1
                if attempt == self.attempts or pause > LONGEST_PAUSE or self.stopped.wait(pause):
                    raise BadInput(
                        f"{text} Attempts: {attempt}. What was done is kept: the same command "
                        "goes on."
                    ) from error

    def models(self) -> list[str]:
        """The models that the server lists, none where it has no list.

        Raises `BadInput` when nothing answers at the URL, or it refuses the key.
        """
        openai = _library()
        try:
            found = self.client.models.with_raw_response.list(timeout=min(self.timeout, PATIENCE))
            return [str(row["id"]) for row in json.loads(found.text)["data"]]
        except (openai.APIConnectionError, json.JSONDecodeError) as error:
            text, _ = self._failure(error)
            raise BadInput(f"{text} Is the server running, and the URL right?") from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403, 502, 503, 504) or error.status_code < 400:
                raise BadInput(self._failure(error)[0]) from error
        except (KeyError, TypeError):
            pass
        return []

    def _failure(self, error: Any) -> tuple[str, float | None]:
        """What went wrong, in words, and the seconds that the server wants to be left alone.

        Raises `Refused` for what another attempt won't change.
        """
        openai = _library()
        who = f"{self.model} at {self.url}"
        if isinstance(error, openai.APIStatusError):
            code, headers = error.status_code, error.response.headers
            said = _message(error.body)
            if code < 400:
                said = f"it is at {headers.get('location')} now: name that URL."
            elif code in (401, 403):
                said += f" The key is read from {KEY}."
            elif code == 404:
                said += " Are the URL (most end in /v1) and the model's name right?"
            text = f"{who} answered {code}: {said}"
            if (code not in PASSING and code < 500) or error.code == "insufficient_quota":
                raise Refused(text, code) from error
            return text, _seconds(headers.get("retry-after"))
        if isinstance(error, openai.APITimeoutError):
            return f"{who} gave no reply in time.", None
        if isinstance(error, openai.APIConnectionError):
            return f"{who} can't be reached ({error.__cause__}).", None
        said = error if isinstance(error, Unusable) else "sent something other than JSON."
        return f"{who} {said}", None


def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise BadInput(
            "an endpoint is asked by the openai client: pip install 'surgeon[endpoint]'"
        ) from error
    return openai


def _message(body: object) -> str:
    """What an error's body says, on one line."""
    if isinstance(body, dict):
        body = next((body[name] for name in ("message", "error", "detail") if name in body), body)
    return (" ".join(str(body or "").split()) or "nothing")[:300].rstrip(".") + "."


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None
