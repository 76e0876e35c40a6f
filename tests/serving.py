"""Servers for tests, and the same model at hand to compare with."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import openai

from surgeon.checkpoint import resolve
from surgeon.decoding import Request, decode, stream_key
from surgeon.serve import web
from surgeon.serve.app import Limits, build
from surgeon.serve.service import load
from surgeon.serve.worker import Worker
from surgeon.settings.serve import ServeSettings
from surgeon.traces import encode, read_prompts, stop_ids

MODEL = "builtin:thinking"
CHAT: dict[str, Any] = dict(model="thinking", messages=[{"role": "user", "content": "Start 3."}])
TOKENS = 40
SAMPLED: dict[str, Any] = dict(temperature=0.7, top_p=0.9)
"""What the checkpoint's generation_config.json says."""
PROMPTS = read_prompts("builtin:test")[:8]
TIMEOUT_S = 60.0


class Server(NamedTuple):
    port: int
    worker: Worker
    client: openai.OpenAI

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def chat(self, number: int = 0, **settings: Any) -> Any:
        """The reply to a prompt, or its stream."""
        body: dict[str, Any] = dict(model="thinking", max_tokens=TOKENS, seed=number)
        messages: Any = list(PROMPTS[number].messages)
        return self.client.chat.completions.create(messages=messages, **(body | settings))

    def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of one exchange, whatever they are."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json"} | headers)
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in reply.getheaders()}
        content = json.loads(text) if found["content-type"] == "application/json" else text
        return reply.status, content, found


@contextmanager
def serving(
    limits: Limits | None = None,
    api_key: str | None = None,
    checkpoint: str = MODEL,
    **settings: Any,
) -> Iterator[Server]:
    """A server that runs inside the block."""
    loaded = load(ServeSettings(checkpoint=checkpoint, name="thinking", **settings))
    app = build(
        loaded, limits=limits or Limits(1 << 20), api_key=api_key, origins=settings.get("cors", ())
    )
    begun = threading.Event()
    with ExitStack() as stack:
        bound = stack.enter_context(web.listening("127.0.0.1", 0))
        thread = threading.Thread(
            target=web.run,
            args=(app, loaded.worker, bound),
            kwargs=dict(grace_s=0.0, begun=begun.set),
        )
        thread.start()
        stack.callback(thread.join, TIMEOUT_S)
        stack.callback(loaded.worker.close, 0)
        assert begun.wait(TIMEOUT_S)
        made = connected(bound.getsockname()[1], loaded.worker, api_key=api_key or "any")
        yield stack.enter_context(made)
    assert not thread.is_alive()


@contextmanager
def connected(port: int, worker: Worker, *, api_key: str = "any") -> Iterator[Server]:
    """A client of a server that runs."""
    url = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=TIMEOUT_S) as client:
        yield Server(port, worker, client)


class Model(NamedTuple):
    """The same checkpoint, here."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls) -> "Model":
        checkpoint = resolve(MODEL)
        return cls(checkpoint.model(), checkpoint.tokenizer())

    def ids(self, number: int) -> list[int]:
        return encode(self.tokenizer, PROMPTS[number])

    def request(self, number: int, choice: int = 0, seed: int | None = None) -> Request:
        """What the server should make of `chat(number)`."""
        key = stream_key(number if seed is None else seed, "serve", choice)
        return Request(self.ids(number), key)

    def decode(self, *requests: Request, **settings: Any) -> list[Any]:
        stop = stop_ids(self.model, self.tokenizer)
        settings = {"max_tokens": TOKENS, **SAMPLED, **settings}
        found = decode(self.model, requests, stop=stop, **settings)
        return sorted(found, key=lambda answer: answer.index)

    def text(self, answer: Any) -> str:
        ids = answer.token_ids[: -1 if answer.finish_reason == "stop" else None]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class Gate:
    """Lets the passes of an worker through one by one, from now on."""

    def __init__(self, worker: Worker):
        self.decoder, self.step = worker.decoder, worker.decoder.step
        self.passes = threading.Semaphore(0)
        self.decoder.step = self._pass

    def _pass(self) -> Any:
        assert self.passes.acquire(timeout=TIMEOUT_S)
        return self.step()

    def lift(self) -> None:
        """Let all through, as before."""
        self.decoder.step = self.step
        self.let()

    def let(self, n: int = 1 << 20) -> None:
        self.passes.release(n)


def until(good: Callable[[], bool]) -> None:
    """Wait until something is so, a while at most."""
    end = time.monotonic() + TIMEOUT_S
    while not good():
        assert time.monotonic() < end
        time.sleep(0.005)


def joined(stream: Any) -> tuple[str, Any]:
    """The text of a stream's first choice, and its last piece."""
    text, last = "", None
    for piece in stream:
        for choice in piece.choices:
            text += choice.delta.content or ""
            last = choice
    return text, last
