"""Counts and times of a server, in Prometheus' text format (the library prometheus_client)."""

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from surgeon.serve.refusals import Refusal

if TYPE_CHECKING:
    from surgeon.serve.worker import Worker

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models"})
HUNG_UP = "499"
"""The status, as nginx has it, of a request whose client left before its reply."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
"""Upper ends of the buckets that times are counted in."""


class Meter:
    """What is counted of one server; nothing where the library is missing."""

    def __init__(self, worker: "Worker"):
        self.worker = worker
        self.registry: Any = None
        if find_spec("prometheus_client") is None:
            return
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self.registry.register(self)  # pyright: ignore[reportArgumentType]
        known: Any = dict(registry=self.registry)
        self._requests = Counter(
            "surgeon_requests", "Requests by endpoint and status.", ["endpoint", "status"], **known
        )
        self._prompt_tokens = Counter("surgeon_prompt_tokens", "Tokens of prompts.", **known)
        self._seconds = Histogram(
            "surgeon_request_seconds", "From a request to the end of its reply.", ["endpoint"],
            buckets=SECONDS, **known,
        )  # fmt: skip
        self._first = Histogram(
            "surgeon_time_to_first_token_seconds", "From a request to its first token.",
            buckets=SECONDS, **known,
        )  # fmt: skip

    def collect(self) -> Iterator[Any]:
        """What the worker knows; called by the library."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        worker = self.worker
        running, waiting = worker.load
        yield CounterMetricFamily(
            "surgeon_generated_tokens", "Tokens that were decoded.", worker.tokens
        )
        yield CounterMetricFamily("surgeon_answers", "Answers that ended.", worker.answered)
        for name, about, value in (
            ("running", "Answers being decoded.", running),
            ("waiting", "Answers that wait for a row.", waiting),
            ("rows", "Answers that can be decoded at once.", worker.rows),
        ):
            yield GaugeMetricFamily(f"surgeon_answers_{name}", about, value)
        up = worker.dead is None
        yield GaugeMetricFamily("surgeon_engine_up", "1 while the model can be run.", float(up))

    def page(self) -> tuple[bytes, str]:
        """The text, and its content type; raises `Refusal`."""
        if self.registry is None:
            raise Refusal(
                501, "/metrics needs the library prometheus_client on the server: pip install "
                "'surgeon[serve]'.", kind="server_error", code="unsupported",
            )  # fmt: skip
        from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def request(self, endpoint: str, status: str, seconds: float) -> None:
        """A request was answered, or given up."""
        if self.registry is not None:
            self._requests.labels(endpoint, status).inc()
            self._seconds.labels(endpoint).observe(seconds)

    def prompts(self, tokens: int) -> None:
        """A request was taken."""
        if self.registry is not None:
            self._prompt_tokens.inc(tokens)

    def first_token(self, seconds: float) -> None:
        """The first token of a request came."""
        if self.registry is not None:
            self._first.observe(seconds)


class Metered:
    """An application whose requests are counted."""

    def __init__(self, app: ASGIApp, meter: Meter):
        self.app, self.meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), HUNG_UP

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, seen)
        finally:
            # Other paths are the clients' own: any number of them.
            endpoint = scope["path"] if scope["path"] in ENDPOINTS else "other"
            self.meter.request(endpoint, status, time.monotonic() - began)
