"""A small server on 127.0.0.1 that answers as a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = tuple[int, Any] | tuple[int, Any, Mapping[str, str]] | None
"""Status, body (bytes as they are, anything else as JSON) and headers; None breaks off."""


@contextmanager
def served(answer: Callable[[str, Any, Any], Said]) -> Iterator[str]:
    """Yield the URL of a server that says `answer(path, body, headers)`, body None for a GET."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(answer(self.path, None, self.headers))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.say(answer(self.path, body, self.headers))

        def say(self, said: Said) -> None:
            if said is None:
                return
            status, value, *more = said
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            kind = "text/html" if isinstance(value, bytes) else "application/json"
            for name, text in {
                "Content-Type": kind, "Content-Length": str(len(raw)), **(more[0] if more else {})
            }.items():  # fmt: skip
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
