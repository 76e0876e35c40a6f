"""A stand-in of the hub: the repositories `OWNER/NAME` below a directory."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def hub(root: Path, cut: str | None = None) -> Iterator[str]:
    """Its address, inside the block; a file called `cut` breaks off, each time it is sent."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (root / parts[2] / parts[3]).is_dir():
                files = sorted((root / parts[2] / parts[3]).iterdir())
                told: object = {
                    "id": "/".join(parts[2:4]),
                    "sha": COMMIT,
                    "siblings": [{"rfilename": f.name} for f in files],
                }
                if "tree" in parts:
                    told = [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": COMMIT}
                        for f in files
                    ]
                self.reply(200, json.dumps(told).encode())
            elif (
                parts[2:3] == ["resolve"]
                and (file := root.joinpath(*parts[:2], *parts[4:])).is_file()
            ):
                self.reply(200, file.read_bytes())
            else:
                self.reply(404, b"{}")

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            if self.path.rpartition("/")[2] == cut:
                self.wfile.write(body[:10])
                self.close_connection = True
            else:
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
