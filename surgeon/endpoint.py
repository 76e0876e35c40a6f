"""A model behind an OpenAI-compatible endpoint: its address, its key, and repeated attempts.

The `openai` client speaks to it (the extra `endpoint`); it is imported when a URL is given.
"""

import json
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
R = TypeVar("R")

KEY = "OPENAI_API_KEY"
"""Environment variable of the key; local servers need none."""
PASSING = frozenset({408, 409, 425, 429})
"""Statuses worth retrying; every 5xx is too."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; twice as many before each further one."""
JITTER = 0.25
"""A pause is longer or shorter by up to this share, so that many requests don't return at once."""
LONGEST_PAUSE = 120.0
"""Seconds; where a server asks for a longer pause, the attempt was the last."""
PATIENCE = 20.0
"""Seconds for a connection, and for the reply that lists the models."""


class Refused(BadInput):
    """The server refuses the request, and would refuse it again."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Unusable(Exception):
    """The reply has the wrong form. The message completes `<model> at <url> ...`."""


@dataclass
class Endpoint:
    """A model behind an endpoint; several threads may use it at once."""

    url: str
    """Up to the version, such as `https://api.openai.com/v1`."""
    model: str
    timeout: float = 300.0
    """Seconds for one attempt."""
    attempts: int = 6
    """Attempts at one reply, with growing pauses between them."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set it to end every pause: the exchanges that wait then fail at once."""

    def __post_init__(self) -> None:
        for name in ("timeout", "attempts"):
            if getattr(self, name) <= 0:
                raise BadInput(f"found {name} = {getattr(self, name)}, expected more than 0.")

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
        """The client of the server; raises `BadInput` where the library is missing."""
        openai = _library()
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BadInput(
                f"found characters in {KEY} that no key has, expected ASCII. Set it anew, or unset "
                "it."
            )
        client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            # `exchange` retries instead: it knows wrong replies too, and can end a pause.
            max_retries=0,
            timeout=openai.Timeout(self.timeout, connect=min(self.timeout, PATIENCE)),
            # A redirect would send the key to another server.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        weakref.finalize(self, client.close)
        return client

    def exchange(self, send: Callable[["OpenAI"], Any], read: Callable[[Any], T]) -> T:
        """`read` of a reply: `send` gets the client and returns its raw response, `read` gets the
        JSON in it.

        Retries what may pass. Raises `Refused` for a refusal, `BadInput` when no attempt brought a
        usable reply.
        """
        attempt = 0
        while True:
            try:
                reply = json.loads(send(self.client).text)
                try:
                    return read(reply)
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise Unusable("sent a reply of another form.") from error
            except (_library().APIError, Unusable, json.JSONDecodeError) as error:
                text, wait = self._failure(error)
                pause = FIRST_PAUSE * 2**attempt if wait is None else wait
                attempt += 1
                # What a server asks for is the least.
                spread = random.uniform(-JITTER if wait is None else 0.0, JITTER)
                late = pause > LONGEST_PAUSE
                if attempt == self.attempts or late or self.stopped.wait(pause * (1 + spread)):
                    raise BadInput(
                        f"{text} Attempts: {attempt}. What was done is kept: the same command "
                        "resumes."
                    ) from error

    def models(self) -> list[str]:
        """The names of the server's models; none where the server has no such list.

        Raises `BadInput` when nothing answers at the URL, or the server refuses the key.
        """
        openai = _library()
        try:
            reply = self.client.models.with_raw_response.list(timeout=min(self.timeout, PATIENCE))
            return [str(row["id"]) for row in json.loads(reply.text)["data"]]
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
        """The error in a sentence, and the seconds of pause that the server asks for, if it does.

        Raises `Refused` for an error that another attempt won't change.
        """
        openai = _library()
        who = f"{self.model} at {self.url}"
        if isinstance(error, openai.APIStatusError):
            code, headers = error.status_code, error.response.headers
            message = _message(error.body)
            if code < 400:
                message = f"it is at {headers.get('location')} now: name that URL."
            elif code in (401, 403):
                message += f" The key is read from {KEY}."
            elif code == 404:
                message += " Are the URL (most end in /v1) and the model's name right?"
            text = f"{who} answered {code}: {message}"
            if (code not in PASSING and code < 500) or error.code == "insufficient_quota":
                raise Refused(text, code) from error
            return text, _seconds(headers.get("retry-after"))
        if isinstance(error, openai.APITimeoutError):
            return f"{who} gave no reply in time.", None
        if isinstance(error, openai.APIConnectionError):
            return f"{who} can't be reached ({error.__cause__}).", None
        complaint = error if isinstance(error, Unusable) else "sent something other than JSON."
        return f"{who} {complaint}", None


def _library() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise BadInput(
            "an endpoint is asked by the openai client: pip install 'surgeon[endpoint]'"
        ) from error
    return openai


def _message(body: object) -> str:
    """The message in an error's body, on one line."""
    if isinstance(body, dict):
        body = next((body[name] for name in ("message", "error", "detail") if name in body), body)
    return (" ".join(str(body or "").split()) or "nothing")[:300].rstrip(".") + "."


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None


def is_endpoint(spec: str) -> bool:
    """Whether a judge, a writer or an engine is named by a URL."""
    return spec.startswith(("http://", "https://"))


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
