"""A client of OpenAI-compatible completions, which goes on from a prompt given as token ids."""

import contextlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from surgeon.errors import BadInput

KEY = "OPENAI_API_KEY"
"""Environment variable of the key; without it none is sent."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be gone at the next attempt."""
LONGEST_WAIT = 60.0
LARGEST_REPLY = 32 << 20


class Piece(NamedTuple):
    """What the engine wrote, and why it stopped."""

    text: str
    token_ids: list[int] | None
    """As the engine had them; None where it doesn't say."""
    finish_reason: str
    """`stop` (the stop string or the end of the answer) or `length`."""
    stopped_by: str | int | None
    """The stop string, or the id of a stop token, or None for the model's own end."""
    says: bool
    """Whether the engine tells by what it was stopped."""


class _Passing(Exception):
    """This attempt failed in a way that another one may not."""

    def __init__(self, text: str, *, wait: float | None = None):
        super().__init__(text)
        self.wait = wait


class _Refused(Exception):
    """The endpoint said no, and will say it again."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


@dataclass
class Endpoint:
    """A model behind a completions endpoint; safe to ask from several threads."""

    url: str
    """The part before `/completions`, such as `http://localhost:8000/v1`."""
    model: str
    """Empty: the only one the server has."""
    timeout: float = 300.0
    """Seconds for one attempt."""
    attempts: int = 5
    """Attempts at getting a reply, with growing pauses: 1, 2, 4, ... seconds."""
    pause: float = 1.0
    """Seconds before the second attempt."""
    extras: bool = True
    """Ask for what vLLM and SGLang say beyond the standard; off once a server refuses it."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set it to end the pauses: who waits then fails at once."""

    @classmethod
    def parse(cls, spec: str) -> "Endpoint":
        """The endpoint that `URL` or `URL#model` names; raises `BadInput` for anything else."""
        url, _, model = spec.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BadInput(
                f"found the engine {spec!r}, expected URL#model, for example "
                "http://localhost:8000/v1#Qwen3-8B."
            )
        return cls(url.rstrip("/").removesuffix("/completions"), model)

    def reached(self) -> "Endpoint":
        """This endpoint with its model's name; raises `BadInput` when nothing answers there, and
        for a model that it doesn't have."""
        try:
            found = self._send("/models", None, timeout=min(self.timeout, 20.0))
        except _Passing as error:
            raise BadInput(f"{error} Is the server running, and the URL right?") from error
        except _Refused as error:
            # Not every server lists its models; a refused key is refused for good.
            if error.status in (401, 403) or not self.model:
                raise BadInput(f"{error} Name the model: {self.url}#MODEL.") from error
            return self
        names = []
        with contextlib.suppress(KeyError, TypeError):
            names = [str(row["id"]) for row in found["data"]]
        if self.model in names or (self.model and not names):
            return self
        if self.model or len(names) != 1:
            wanted = f"no model {self.model!r}" if self.model else "no single model"
            raise BadInput(
                f"{self.url} has {wanted}; name one of those it has: {self.url}#MODEL, "
                f"MODEL being {', '.join(names[:8]) or '(it lists none)'}."
            )
        return replace(self, model=names[0])

    def complete(self, ids: list[int], *, stop: str | None, **settings: Any) -> Piece:
        """Go on from these tokens, to `stop` if it is given; raises `BadInput` when the endpoint
        stays out of reach or refuses."""
        attempt = 0
        while True:
            body: dict[str, Any] = {"model": self.model, "prompt": ids, **settings}
            if stop is not None:
                body["stop"] = [stop]
            extras = self.extras
            if extras:
                body |= {"include_stop_str_in_output": True, "return_token_ids": True}
            try:
                return self._piece(self._send("/completions", body, timeout=self.timeout))
            except _Passing as error:
                attempt += 1
                if attempt == self.attempts or self.stopped.is_set():
                    raise BadInput(
                        f"{error} {attempt} attempts failed. The answers that were finished are "
                        "kept: the same command goes on when the engine is back."
                    ) from error
                wait = self.pause * 2 ** (attempt - 1) if error.wait is None else error.wait
                self.stopped.wait(min(wait, LONGEST_WAIT))
            except _Refused as error:
                if not extras or error.status not in (400, 422):
                    raise BadInput(str(error)) from error
                self.extras = False

    def _piece(self, reply: Any) -> Piece:
        try:
            choice = reply["choices"][0]
            text, finish = str(choice["text"]), choice["finish_reason"]
        except (KeyError, IndexError, TypeError) as error:
            raise _Passing(f"{self._who} sent a reply that is no completion.") from error
        if finish not in ("stop", "length"):
            raise _Passing(f"{self._who} broke off (finish_reason {finish!r}).")
        ids = choice.get("token_ids")
        if not (isinstance(ids, list) and all(type(i) is int for i in ids)):
            ids = None
        # As vLLM and SGLang call it.
        names = [name for name in ("stop_reason", "matched_stop") if name in choice]
        by = choice[names[0]] if names else None
        return Piece(text, ids, finish, by if isinstance(by, str | int) else None, bool(names))

    @property
    def _who(self) -> str:
        return f"{self.model or 'the engine'} at {self.url}"

    def _send(self, path: str, body: dict[str, Any] | None, *, timeout: float) -> Any:
        """The JSON of one exchange; raises `_Passing` or `_Refused`."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        request.add_header("Content-Type", "application/json")
        key = os.environ.get(KEY)
        if key:
            # Not to be repeated to whomever a redirect names.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                raw = answer.read(LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read(LARGEST_REPLY))
            text = f"{self._who} answered {error.code}: {said}"
            if error.code in PASSING:
                raise _Passing(text, wait=_seconds(error.headers.get("Retry-After"))) from error
            raise _Refused(text, error.code) from error
        except urllib.error.URLError as error:
            raise _Passing(f"{self._who} can't be reached ({error.reason}).") from error
        except (OSError, http.client.HTTPException) as error:
            reason = "no reply in time" if isinstance(error, TimeoutError) else repr(error)
            raise _Passing(f"{self._who} broke off ({reason}).") from error
        try:
            return json.loads(raw)
        except ValueError as error:
            raise _Passing(f"{self._who} answered with something other than JSON.") from error


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
