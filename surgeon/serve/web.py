"""The socket, the web server's thread, and the signals that end it all."""

import asyncio
import ipaddress
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from surgeon.serve.worker import Worker

SLOW_READERS_S = 5
"""Seconds that clients have to fetch the last of their replies."""
HEAD_S = 60.0
"""Seconds for the head of a request to arrive; a body has as many."""
BACKLOG = 2048
"""Connections that may wait to be taken up."""


def require_packages() -> None:
    """Raise `BadInput` where the packages of the extra `serve` are missing."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise BadInput(
            f"surgeon serve needs {' and '.join(missing)}: pip install 'surgeon[serve]'."
        )


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to the address, port 0 to any free one; raises `BadInput`.

    Who connects is turned away until a server takes it up.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise BadInput(f"found the host {host!r}, which is no address here ({error}).") from error
    with socket.socket(family, kind, protocol) as bound:
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError as error:
            raise _taken(host, port, error) from error
        yield bound


def _taken(host: str, port: int, error: OSError) -> BadInput:
    return BadInput(
        f"{host}:{port} can't be listened on ({error.strerror}): give another --port (0: any "
        "free one) or --host."
    )


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def url_of(bound: socket.socket) -> str:
    """Where clients find the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: "Starlette",
    worker: "Worker",
    bound: socket.socket,
    *,
    grace_s: float,
    begun: Callable[[], None] = lambda: None,
) -> bool:
    """Serve until the worker is closed, which SIGINT and SIGTERM do; True after SIGINT.

    The model works in the calling thread, the web server in another. No connection is taken any
    more once a signal has come, answers have `grace_s` seconds to end, and whoever is still waiting
    is told so. A second signal means at once, and a third doesn't wait for the pass that runs.
    `begun` is called when connections are taken.
    """
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=_impatient(),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace_s) + SLOW_READERS_S,
        )
    )

    def stop(signals: int) -> None:
        worker.close(grace_s if signals == 1 else 0)
        server.should_exit, server.force_exit = True, signals > 2
        if signals > 2:
            # Not even the pass that runs is waited for.
            raise KeyboardInterrupt

    try:
        bound.listen(BACKLOG)
    except OSError as error:
        # Another process bound it too, and was first to listen.
        host, port = bound.getsockname()[:2]
        raise _taken(host, port, error) from error
    with stopped_by_signals(stop) as caught, ThreadPoolExecutor(1, "surgeon serve") as pool:
        serving = pool.submit(server.run, sockets=[bound])
        serving.add_done_callback(lambda _: worker.close(0))
        try:
            while not (server.started or serving.done()):
                time.sleep(0.01)
            if server.started:
                begun()
            worker.run()
        finally:
            server.should_exit = True
            serving.result()
    return signal.SIGINT in caught[:1]


def _impatient() -> type[asyncio.Protocol]:
    """uvicorn's protocol, closing connections on which half a head is all that comes: it would keep
    them for ever, and a process can have only so many."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
            super().connection_made(transport)
            self.time_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.time_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_timing()
            super().connection_lost(exc)

        def between_requests(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def time_head(self) -> None:
            if not self.between_requests():
                self.stop_timing()
            elif self.head is None:
                self.head = self.loop.call_later(HEAD_S, self.late)

        def late(self) -> None:
            self.head = None
            if self.between_requests():
                self.transport.close()

        def stop_timing(self) -> None:
            if self.head is not None:
                self.head.cancel()
                self.head = None

    return Impatient


@contextmanager
def stopped_by_signals(stop: Callable[[int], None]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM call `stop` with how many have come, inside the block; yields them.

    Signals come to the main thread only: in another one nothing is changed.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def handle(number: int, _: object) -> None:
        caught.append(number)
        stop(len(caught))

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
