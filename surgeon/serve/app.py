"""The web application: routes, limits, the key, and requests that are followed until they end."""

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from surgeon.decoding import Request as Decoding
from surgeon.decoding import stream_key
from surgeon.serve.asked import Asked, read_chat, read_completion, unknown_model
from surgeon.serve.engine import Broken, Emitted, Engine
from surgeon.serve.loading import Loaded
from surgeon.serve.refusals import Refusal, closing, failed
from surgeon.serve.replies import CHAT, COMPLETION, END, Form, Reply, Written, event, usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STREAM = "serve"
"""The name that a seed's random numbers go by."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Neither stored nor held back by a proxy on the way."""


class Limits(NamedTuple):
    """What a request may be."""

    body_bytes: int
    body_s: float = 60.0
    """Seconds for a body to arrive."""


def build(loaded: Loaded, *, limits: Limits, api_key: str | None = None) -> Starlette:
    """The application in front of a loaded model."""
    front = Front(loaded, limits, api_key)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", front.chat, methods=["POST"]),
            Route("/v1/completions", front.complete, methods=["POST"]),
            Route("/v1/models", front.models),
            Route("/v1/models/{name:path}", front.model),
            Route("/health", front.health),
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

    def __init__(self, loaded: Loaded, limits: Limits, api_key: str | None):
        self.engine, self.offer = loaded.engine, loaded.offer
        self.limits, self.api_key = limits, api_key
        # A tokenizer isn't made for several threads; the worker has the one that was given.
        self.tokenizer, self.reading = deepcopy(loaded.tokenizer), deepcopy(loaded.tokenizer)
        self.one_reader = asyncio.Lock()
        self.about = {
            "id": self.offer.names[0], "object": "model", "created": int(time.time()),
            "owned_by": "surgeon", "max_model_len": self.offer.context,
            "surgeon": {"levels": list(loaded.levels)},
        }  # fmt: skip

    async def health(self, _: Request) -> Response:
        """Whether requests are taken, and how many answers are being decoded."""
        running, waiting = self.engine.load
        status = "closing" if self.engine.closing else "ok"
        body = {"status": status, "running": running, "waiting": waiting}
        return JSONResponse(body, 503 if self.engine.closing else 200)

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

    async def _answer(self, request: Request, read: Callable[..., Asked], form: Form) -> ASGIApp:
        self._authorise(request)
        self.engine.check_room()
        raw = await self._body(request)
        # A long text takes its time, which others needn't wait for.
        async with self.one_reader:
            asked = await asyncio.to_thread(read, raw, self.reading, self.offer)
        head = {
            "id": form.prefix + uuid.uuid4().hex, "created": int(time.time()),
            "model": self.offer.names[0],
        }  # fmt: skip
        monitored = self.engine.watching is not None
        reply = Reply(form, head, monitored, asked.token_ids, asked.usage)
        return Following(self.engine, self.tokenizer, asked, reply)

    def _authorise(self, request: Request) -> None:
        if self.api_key is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        good = hmac.compare_digest(given.strip().encode("latin-1"), self.api_key.encode())
        if kind.lower() != "bearer" or not good:
            raise Refusal(
                401, "Incorrect API key provided; send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
            )  # fmt: skip

    async def _body(self, request: Request) -> bytes:
        """The request's body, within limits."""
        # A page in a browser may send other kinds of content here without asking first.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise Refusal(415, "Send JSON, with the header `Content-Type: application/json`.")
        most = self.limits.body_bytes
        raw = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_s):
                async for part in request.stream():
                    raw += part
                    if len(raw) > most:
                        raise Refusal(413, f"The body has more than {most} bytes.")
        except TimeoutError as error:
            raise Refusal(408, "The body did not arrive in time.") from error
        return bytes(raw)


class Following:
    """The response to a request for answers: follows them until they end or the client is gone."""

    def __init__(
        self, engine: Engine, tokenizer: "PreTrainedTokenizerBase", asked: Asked, reply: Reply
    ):
        self.engine, self.asked, self.reply = engine, asked, reply
        self.prompts = [ids for ids in asked.prompts for _ in range(asked.n)]
        self.answers = [Written(tokenizer, asked.stop, asked.keep_stop) for _ in self.prompts]
        self.queue: asyncio.Queue[Emitted | Broken | None] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._joined() as indices:
            listening = asyncio.create_task(self._listen(receive))
            try:
                await (self._stream if self.asked.stream else self._whole)(indices, send)
            except ClientDisconnect:
                # The batch has a free row again, which is all there is to do.
                pass
            finally:
                listening.cancel()

    @contextmanager
    def _joined(self) -> Iterator[dict[int, int]]:
        """The answers are in the batch inside the block; yields the choice of each number there."""
        loop, put = asyncio.get_running_loop(), self.queue.put_nowait

        def deliver(found: Emitted | Broken) -> None:
            # After a shutdown that could not wait there is no loop to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(put, found)

        asked = self.asked
        requests = [
            Decoding(
                ids,
                # The same prompt and seed give the same answers, alone or among other prompts.
                stream_key(asked.seed, STREAM, number % asked.n),
                asked.max_tokens,
                asked.temperature,
                asked.top_p,
                asked.top_k,
            )
            for number, ids in enumerate(self.prompts)
        ]
        indices = self.engine.join(requests, deliver)
        try:
            yield {index: number for number, index in enumerate(indices)}
        finally:
            for index in indices:
                self.engine.leave(index)

    async def _listen(self, receive: Receive) -> None:
        """Say when the client hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.queue.put_nowait(None)

    async def _pieces(
        self, indices: dict[int, int]
    ) -> AsyncIterator[list[tuple[int, str, list[int]]]]:
        """Per choice the text and tokens that came since the last look, until all have ended.

        Raises `Refusal` when an answer was broken off, and `ClientDisconnect`.
        """
        unfinished = len(indices)
        while unfinished:
            found = [await self.queue.get()]
            while not self.queue.empty():
                found.append(self.queue.get_nowait())
            text_by_choice: dict[int, str] = {}
            ids_by_choice: dict[int, list[int]] = {}
            for one in found:
                if one is None:
                    raise ClientDisconnect()
                if isinstance(one, Broken):
                    raise one.why
                number = indices[one.index]
                answer = self.answers[number]
                if answer.finish_reason is not None:
                    continue
                piece = answer.take(one)
                text_by_choice[number] = text_by_choice.get(number, "") + piece
                ids_by_choice.setdefault(number, []).append(one.token_id)
                if answer.finish_reason is not None:
                    unfinished -= 1
                    self.engine.leave(one.index)
            yield [(n, text, ids_by_choice[n]) for n, text in text_by_choice.items()]

    async def _whole(self, indices: dict[int, int], send: Send) -> None:
        texts = [""] * len(indices)
        async for pieces in self._pieces(indices):
            for number, text, _ in pieces:
                texts[number] += text
        counts = usage(self.asked.prompts, self.answers)
        body = self.reply.whole(texts, self.answers, counts)
        await _start(send, "application/json", {"Content-Length": str(len(body))})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, indices: dict[int, int], send: Send) -> None:
        await _start(send, "text/event-stream; charset=utf-8", STREAM_HEADERS)
        begin = b"".join(map(self.reply.begin, range(len(indices))))
        if begin:
            await _write(send, begin)
        held: dict[int, list[int]] = {}
        try:
            async for pieces in self._pieces(indices):
                events = b""
                for number, text, ids in pieces:
                    held.setdefault(number, []).extend(ids)
                    answer = self.answers[number]
                    if text or answer.finish_reason is not None:
                        events += self.reply.more(number, text, answer, held.pop(number))
                if events:
                    await _write(send, events)
            await _write(send, self.reply.count(usage(self.asked.prompts, self.answers)) + END)
        except Refusal as why:
            # The status was sent long ago: the stream says it, and ends without [DONE].
            await _write(send, event(why.body))
        await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, content_type: str, headers: dict[str, str]) -> None:
    found = {"Content-Type": content_type, **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in found.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _write(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


# --- what goes wrong ------------------------------------------------------------------------------


def _said(why: Refusal) -> Response:
    # What is left of the body isn't read.
    headers = why.headers | ({"Connection": "close"} if why.status in (408, 413, 415) else {})
    return JSONResponse(why.body, why.status, headers)


async def _refuse(_: Request, why: Exception) -> Response:
    assert isinstance(why, Refusal)
    return _said(why)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}."
    return _said(Refusal(error.status_code, text))


async def _gone(_: Request, __: Exception) -> Response:
    # Nobody reads it.
    return _said(closing())


async def _defect(_: Request, __: Exception) -> Response:
    # The traceback goes to the server's own output.
    return _said(failed("The server failed; its output says how."))
