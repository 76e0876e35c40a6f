"""A stand-in of the hub that takes what is pushed to it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Taken:
    """What the hub holds."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        """`models/owner/name` -> what it was made with."""
        self.files: dict[str, bytes] = {}
        """`owner/name/path` -> content."""
        self.messages: list[str] = []
        self.refuses = False


@contextmanager
def taking(taken: Taken) -> Iterator[str]:
    """Its address, inside the block."""

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def reply(self, status: int, value: object = None) -> None:
            content = json.dumps(value or {}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            there = parts[:1] == ["api"] and "/".join(parts[1:4]) in taken.repositories
            self.reply(200 if there else 404, {"id": "/".join(parts[2:4])} if there else None)

        def do_POST(self) -> None:
            path, content = self.path.partition("?")[0], self.body()
            if taken.refuses:
                self.reply(403, {"error": "no"})
            elif path == "/api/repos/create":
                asked = json.loads(content)
                owner = f"{asked['organization']}/" if asked.get("organization") else ""
                name = f"{asked.get('type') or 'model'}s/{owner}{asked['name']}"
                # Versions of the library spell it in two ways.
                private = asked.get("private") or asked.get("visibility") == "private"
                taken.repositories[name] = {**asked, "private": bool(private)}
                self.reply(200, {"url": f"{taken.address}/{name.partition('/')[2]}"})
            elif path == "/api/validate-yaml":
                self.reply(200, {"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = json.loads(content)["files"]
                # (Large files go by Xet's own protocol, which nothing here speaks.)
                modes = [
                    {"path": f["path"], "shouldIgnore": False, "uploadMode": "regular"}
                    for f in files
                ]
                self.reply(200, {"files": modes})
            else:
                self.commit(path, content)

        def commit(self, path: str, content: bytes) -> None:
            owner_name = "/".join(path.split("/")[3:5])
            for line in content.splitlines():
                row = json.loads(line)
                value = row["value"]
                if row["key"] == "header":
                    taken.messages.append(value["summary"])
                else:
                    data = base64.b64decode(value["content"])
                    taken.files[f"{owner_name}/{value['path']}"] = data
            url = f"{taken.address}/{owner_name}/commit/{'c' * 40}"
            self.reply(200, {"success": True, "commitUrl": url, "commitOid": "c" * 40})

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        taken.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield taken.address
        finally:
            server.shutdown()
            thread.join()
