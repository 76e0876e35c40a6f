"""The web application: routes, limits, the key, and requests that are followed until they end."""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from surgeon.serve.best import Best, best_first
from surgeon.serve.metering import Meter, Metered
from surgeon.serve.query import Query, read_chat, read_completion, unknown_model
from surgeon.serve.refusals import Refusal, closing, failed
from surgeon.serve.replies import (
    CHAT,
    COMPLETION,
    END,
    Envelope,
    PartialAnswer,
    ReplyForm,
    Usage,
    event,
    usage,
)
from surgeon.serve.service import Service
from surgeon.serve.spelling import Spelling
from surgeon.serve.worker import Breakoff, NextToken, PromptRead, Scored, Worker
from surgeon.traces import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PATIENCE = 4
"""Times the largest body that are read, though not kept, before the connection is closed."""
TURN_S = 0.5
"""Seconds after which a request that waits to be read asks whether the server goes on."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Neither stored nor held back by a proxy on the way."""


class Limits(NamedTuple):
    """What a request may be."""

    body_bytes: int
    body_s: float = 60.0
    """Seconds for a body to arrive."""


def build(
    service: Service,
    *,
    limits: Limits,
    api_key: str | None = None,
    origins: Sequence[str] = (),
) -> Starlette:
    """The application in front of a loaded model; pages of these `origins` may use it."""
    front = Front(service, limits, api_key)
    layers = [Middleware(Metered, front.meter)]
    if origins:
        layers.append(
            Middleware(
                CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )  # fmt: skip
    return Starlette(
        middleware=layers,
        routes=[
            Route("/v1/chat/completions", front.chat, methods=["POST"]),
            Route("/v1/completions", front.complete, methods=["POST"]),
            Route("/v1/models", front.models),
            Route("/v1/models/{name:path}", front.model),
            Route("/health", front.health),
            Route("/metrics", front.metrics),
        ],
        exception_handlers={
            Refusal: _refuse,
            HTTPException: _unrouted,
            ClientDisconnect: _gone,
            Exception: _defect,
        },
    )


class Front:
    """The endpoints."""

    def __init__(self, service: Service, limits: Limits, api_key: str | None):
        self.worker, self.offer, self.best = service.worker, service.offer, service.best
        self.limits, self.api_key = limits, api_key
        # A tokenizer isn't made for several threads; the worker has the one that was given.
        self.tokenizer, self.reading = deepcopy(service.tokenizer), deepcopy(service.tokenizer)
        self.one_reader = asyncio.Lock()
        self.meter, self.spelling = Meter(service.worker), Spelling(self.tokenizer)
        self.about = {
            "id": self.offer.names[0], "object": "model", "created": int(time.time()),
            "owned_by": "surgeon", "max_model_len": self.offer.context,
            "surgeon": {"levels": list(service.levels)},
        }  # fmt: skip

    async def health(self, _: Request) -> Response:
        """Whether requests are taken, and how many answers are being decoded."""
        running, waiting = self.worker.load
        lost = self.worker.dead
        status = "dead" if lost is not None else "closing" if self.worker.closing else "ok"
        body = {"status": status, "running": running, "waiting": waiting}
        if lost is not None:
            body["reason"] = lost
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def metrics(self, _: Request) -> Response:
        """Counts and times, for Prometheus."""
        text, kind = self.meter.page()
        return Response(text, headers={"Content-Type": kind})

    async def models(self, request: Request) -> Response:
        """The one model."""
        self._authorise(request)
        return JSONResponse({"object": "list", "data": [self.about]})

    async def model(self, request: Request) -> Response:
        """The one model, by a name."""
        self._authorise(request)
        name = request.path_params["name"]
        if name not in self.offer.names:
            raise unknown_model(name, self.offer)
        return JSONResponse(self.about)

    async def chat(self, request: Request) -> ASGIApp:
        """Answer a conversation."""
        return await self._answer(request, read_chat, CHAT)

    async def complete(self, request: Request) -> ASGIApp:
        """Go on with text or token ids."""
        return await self._answer(request, read_completion, COMPLETION)

    async def _answer(
        self, request: Request, read: Callable[..., Query], form: ReplyForm
    ) -> ASGIApp:
        self._authorise(request)
        self.worker.check_room()
        raw = await self._body(request)
        # A long text takes its time, which others needn't wait for.
        async with self._turn():
            # Much may have happened while others were read.
            if await request.is_disconnected():
                raise ClientDisconnect
            self.worker.check_room()
            query = await asyncio.to_thread(read, raw, self.reading, self.offer)
        reply = Envelope(
            form, form.prefix + uuid.uuid4().hex, int(time.time()), self.offer.names[0],
            monitored=self.worker.watching is not None, token_ids=query.token_ids,
            usage=query.usage, spelling=None if query.told is None else self.spelling,
        )  # fmt: skip
        return Follower(self.worker, self.tokenizer, query, reply, self.meter, self.best)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One request is read at a time. Those that wait hear of the server's end."""
        while True:
            try:
                async with asyncio.timeout(TURN_S):
                    await self.one_reader.acquire()
                break
            except TimeoutError:
                if self.worker.closing or self.worker.dead is not None:
                    self.worker.check_room()
        try:
            yield
        finally:
            self.one_reader.release()

    def _authorise(self, request: Request) -> None:
        if self.api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        good = hmac.compare_digest(key.strip().encode("latin-1"), self.api_key.encode())
        if kind.lower() != "bearer" or not good:
            raise Refusal(
                401, "Incorrect API key provided; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
            )  # fmt: skip

    async def _body(self, request: Request) -> bytes:
        """The request's body, within limits."""
        # A page in a browser may send other kinds of content here without asking first.
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind.strip().lower() != "application/json":
            raise Refusal(415, "Send JSON, with the header `Content-Type: application/json`.")
        most = self.limits.body_bytes
        raw, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for part in request.stream():
                    size += len(part)
                    if size <= most:
                        raw += part
                    # Most clients read an answer only when all of their body is sent.
                    elif size > PATIENCE * most:
                        break
        except TimeoutError as error:
            raise Refusal(408, "The body did not arrive in time.") from error
        if size > most:
            raise Refusal(413, f"The body has more than {most} bytes.")
        return bytes(raw)


class Follower:
    """The response to a request for answers: follows them until they end or the client is gone."""

    def __init__(
        self,
        worker: Worker,
        tokenizer: "PreTrainedTokenizerBase",
        query: Query,
        reply: Envelope,
        meter: Meter,
        best: Best | None = None,
    ):
        self.worker, self.query, self.reply, self.meter = worker, query, reply, meter
        self.best = best
        """What chooses, where more answers are decoded than sent."""
        self.requests = query.requests
        self.answers = [PartialAnswer(tokenizer, query, n) for n in range(len(self.requests))]
        self.began = time.monotonic()
        self.waits = True
        """No token came yet."""
        self.choice: dict[int, int] = {}
        """The place among the answers of each of the worker's numbers."""
        self.broken: Refusal | None = None
        self.gone = False
        self.news = asyncio.Event()
        """Something came."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._joined():
            listening = asyncio.create_task(self._listen(receive))
            try:
                # A client that is gone needs no reply; leaving the batch frees its row.
                with suppress(ClientDisconnect):
                    await (self._stream if self.query.stream else self._whole)(send)
            finally:
                listening.cancel()

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """The answers are in the batch inside the block."""
        loop = asyncio.get_running_loop()

        def deliver(news: NextToken | PromptRead | Breakoff) -> None:
            # After a shutdown that could not wait the loop is closed.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._arrive, news)

        reads = self.query.told is not None and self.query.told.prompt
        if any(request.max_tokens == 0 for request in self.requests):
            reads = True
        indices = self.worker.join(self.requests, deliver, reads=reads)
        self.meter.prompts(sum(map(len, self.query.prompts)))
        self.choice = {index: number for number, index in enumerate(indices)}
        try:
            yield
        finally:
            for index in indices:
                self.worker.leave(index)

    def _arrive(self, news: NextToken | PromptRead | Breakoff) -> None:
        """Take what comes at once: an answer that ends frees its row, however slow its reader."""
        answer = self.answers[self.choice[news.index]]
        if answer.finish_reason is not None:
            # A stop string ended the answer, and the worker hasn't heard of it yet.
            return
        if isinstance(news, Breakoff):
            self.broken = news.why
        else:
            if isinstance(news, PromptRead):
                answer.begin(news)
            else:
                answer.take(news)
                if self.waits:
                    self.meter.first_token(time.monotonic() - self.began)
                self.waits = False
            if answer.finish_reason is not None:
                self.worker.leave(news.index, answered=True)
        self.news.set()

    async def _listen(self, receive: Receive) -> None:
        """Say when the client hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.news.set()

    async def _more(self) -> bool:
        """Wait for more; whether there will be yet more.

        Raises `Refusal` when an answer was broken off, and `ClientDisconnect`.
        """
        await self.news.wait()
        self.news.clear()
        if self.gone:
            raise ClientDisconnect
        if self.broken is not None:
            raise self.broken
        return any(answer.finish_reason is None for answer in self.answers)

    async def _whole(self, send: Send) -> None:
        while await self._more():
            pass
        body = self.reply.whole(await self._chosen(), self._usage())
        await _start(send, "application/json", {"Content-Length": str(len(body))})
        await _write(send, body, more=False)

    async def _stream(self, send: Send) -> None:
        await _start(send, "text/event-stream; charset=utf-8", STREAM_HEADERS)
        sent = self.query.n * len(self.query.prompts)
        await _write(send, b"".join(map(self.reply.begin, range(sent))))
        try:
            more = True
            while more:
                more = await self._more()
                # Which of several answers is sent is known when all have ended.
                if more and self.query.of > self.query.n:
                    continue
                answers = await self._chosen()
                events = (self.reply.more(n, one) for n, one in enumerate(answers))
                await _write(send, b"".join(events))
            await _write(send, self.reply.count(self._usage()) + END)
        except Refusal as why:
            # The status was sent long ago: the stream says it, and ends without [DONE].
            await _write(send, event(why.body))
        await _write(send, b"", more=False)

    async def _chosen(self) -> list[PartialAnswer]:
        """The answers that are sent: all, or the best to each prompt, once all have ended."""
        query, best = self.query, self.best
        if query.of == query.n or best is None:
            return self.answers
        loop = asyncio.get_running_loop()
        sent: list[PartialAnswer] = []
        for first in range(0, len(self.answers), query.of):
            members = self.answers[first : first + query.of]
            told: asyncio.Future[Scored | Breakoff] = loop.create_future()

            def deliver(found: Scored | Breakoff, told: Any = told) -> None:
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(_settle, told, found)

            self.worker.score([trace_of(n, a) for n, a in enumerate(members)], best.scores, deliver)
            found = await told
            if isinstance(found, Breakoff):
                raise found.why
            for place in best_first(found.scores)[: query.n]:
                members[place].chosen = {
                    "of": query.of, "by": best.by, "score": found.scores[place],
                    "scores": found.scores,
                }  # fmt: skip
                sent.append(members[place])
        return sent

    def _usage(self) -> Usage:
        return usage(self.query.prompts, self.answers)


def _settle(told: "asyncio.Future[Scored | Breakoff]", found: Scored | Breakoff) -> None:
    if not told.done():
        told.set_result(found)


def trace_of(number: int, answer: PartialAnswer) -> Trace:
    """An answer that has ended, for the rule that chooses."""
    reason = "length" if answer.finish_reason == "length" else "stop"
    return Trace("", number, list(answer.prompt), answer.token_ids, answer.text, reason)


async def _start(send: Send, content_type: str, headers: dict[str, str]) -> None:
    every = {"Content-Type": content_type, **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in every.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _write(send: Send, body: bytes, *, more: bool = True) -> None:
    if body or not more:
        await send({"type": "http.response.body", "body": body, "more_body": more})


# --- what goes wrong ------------------------------------------------------------------------------


def _error(why: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    sent = {**why.headers, **(headers or {})}
    if why.status in (408, 413, 415):
        # What is left of the body isn't read.
        sent["Connection"] = "close"
    return JSONResponse(why.body, why.status, sent)


async def _refuse(_: Request, why: Exception) -> Response:
    assert isinstance(why, Refusal)
    return _error(why)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}."
    return _error(Refusal(error.status_code, text), error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    # Nobody reads this response.
    return _error(closing())


async def _defect(_: Request, __: Exception) -> Response:
    # The traceback goes to the server's own output.
    return _error(failed("The server failed; its output says how."))
