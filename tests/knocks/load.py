# ruff: noqa: E501
"""A hundred clients of `surgeon serve` on loopback, good ones and bad ones, for minutes.

Good clients ask short questions one after another and check that each reply is the one to their own
question, whole, and the only one on its connection. The others read slowly, stop in the middle of a
request, hang up, send 10 MB, or send what is no JSON. Counted: replies by status, latencies of the
good clients, the server's memory after a first fifth of the time and at the end.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from surgeon import jsonl

CLIENTS = {"good": 60, "slow": 10, "half": 10, "gone": 10, "large": 4, "broken": 6}
QUESTIONS = 40
PAUSE_S = 1.5
"""Most seconds that a good client waits between two questions."""
GROWTH = 0.05
PATIENCE_S = 300.0
BROKEN = [b"", b"{", b"[]", b"nul", b'{"prompt": }', b"\xff\xfe", b'{"prompt": "x", "prompt": {}}', b'{"a":' * 4000,
          b'{"prompt": "\\ud800"}', b'{"prompt": "x", "max_tokens": 1e999}', b'{"messages": [{"role": 1}]}', b"9" * 10000]  # fmt: skip


class Reply(Exception):
    """What a connection said that is no reply."""


class Tally:
    """What all clients saw."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.answers: dict[int, str] = {}
        """Question -> the answer that came first; seeds make it the only right one."""
        self.faults: Counter[str] = Counter()
        self.sent = 0


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, path: str
) -> tuple[int, bytes]:
    """One exchange on an open connection."""
    writer.write(_request(body, path))
    await writer.drain()
    return await asyncio.wait_for(reply(reader), PATIENCE_S)


def _request(body: bytes, path: str, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    ).encode() + body


async def reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a reply, whatever its framing."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    found = re.match(r"HTTP/1\.1 (\d+)", head)
    if found is None:
        raise Reply(head[:60])
    if length := re.search(r"content-length: (\d+)", head, re.IGNORECASE):
        return int(found[1]), await reader.readexactly(int(length[1]))
    parts = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return int(found[1]), b"".join(parts)


def question(number: int, stream: bool) -> bytes:
    """One of the good clients' questions."""
    body = {
        "prompt": f"Start {number}.",
        "max_tokens": 1 + number % 4,
        "seed": number,
        "stream": stream,
    }
    return json.dumps(body).encode()


async def good(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """Questions one after another, on a connection that is kept or a new one."""
    reader = writer = None
    while time.monotonic() < end:
        if writer is None or draw.random() < 0.1:
            if writer is not None:
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert reader is not None
        number, stream = draw.randrange(QUESTIONS), draw.random() < 0.3
        start = time.monotonic()
        tally.sent += 1
        status, body = await ask(reader, writer, question(number, stream), "/v1/completions")
        tally.statuses[f"good {status}"] += 1
        if status == 200:
            tally.seconds.append(time.monotonic() - start)
            text = _text(body, stream)
            if tally.answers.setdefault(number, text) != text:
                tally.faults["an answer to another question"] += 1
        elif status != 429:
            tally.faults[f"a good question got {status}"] += 1
        await asyncio.sleep(draw.uniform(0, PAUSE_S))
        # Nothing may come that wasn't asked for.
        with suppress(TimeoutError):
            if extra := await asyncio.wait_for(reader.read(1), 0.001):
                tally.faults[f"bytes that nobody asked for ({extra!r})"] += 1
            else:
                writer.close()
                writer = None


def _text(body: bytes, stream: bool) -> str:
    if not stream:
        return json.loads(body)["choices"][0]["text"]
    events = [e.removeprefix(b"data: ") for e in body.split(b"\n\n") if e.startswith(b"data: ")]
    if events[-1] != b"[DONE]" or events.count(b"[DONE]") != 1:
        raise Reply(f"a stream that ends with {events[-1][:60]!r}")
    return "".join(
        json.loads(e)["choices"][0]["text"] for e in events[:-1] if json.loads(e)["choices"]
    )


async def slow(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """A stream of a long answer, read a few bytes at a time."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        body = json.dumps(
            {"prompt": "Start 3.", "max_tokens": 150, "seed": draw.randrange(99), "stream": True}
        )
        writer.write(_request(body.encode(), "/v1/completions"))
        tally.sent += 1
        text, stop = b"", time.monotonic() + 60
        while time.monotonic() < min(stop, end + 20):
            part = await asyncio.wait_for(reader.read(draw.choice((1, 64, 400))), PATIENCE_S)
            text += part
            if not part or b"[DONE]" in text or b"429" in text[:20]:
                break
            await asyncio.sleep(draw.uniform(0, 0.2))
        tally.statuses["slow whole" if b"[DONE]" in text else "slow left"] += 1
        writer.close()


async def half(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """A request that stops in the middle: its head, or its body."""
    while time.monotonic() < end:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        whole = _request(question(1, False), "/v1/completions", draw.choice((None, 10_000)))
        writer.write(whole[: draw.randrange(1, len(whole))])
        with suppress(ConnectionError):
            await writer.drain()
            await asyncio.sleep(draw.uniform(0, min(30.0, max(1.0, end - time.monotonic()))))
        tally.statuses["half"] += 1
        writer.transport.abort() if draw.random() < 0.5 else writer.close()


async def gone(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """Clients that hang up before, or in the middle of, their answer."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(
            {"prompt": "Start 3.", "max_tokens": 300, "n": 2, "stream": draw.random() < 0.5}
        )
        writer.write(_request(body.encode(), "/v1/completions"))
        tally.sent += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(draw.randrange(1, 600)), draw.uniform(0, 1))
        tally.statuses["gone"] += 1
        writer.transport.abort()
        await asyncio.sleep(draw.uniform(0, 1))


async def large(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """Prompts of 10 MB, and of just less than what is taken."""
    text = "Start 3. " * 1_200_000
    while time.monotonic() < end:
        size, expected = draw.choice(((10 << 20, 413), ((4 << 20) - 100, 400)))
        body = json.dumps({"prompt": text[:size]}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        tally.sent += 1
        status, _ = await ask(reader, writer, body, "/v1/completions")
        tally.statuses[f"large {status}"] += 1
        if status not in (expected, 429):
            tally.faults[f"{size >> 20} MB got {status}"] += 1
        writer.close()
        await asyncio.sleep(draw.uniform(1, 6))


async def broken(port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """Bodies that are no request."""
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        tally.sent += 1
        status, _ = await ask(
            reader,
            writer,
            draw.choice(BROKEN),
            draw.choice(("/v1/completions", "/v1/chat/completions")),
        )
        tally.statuses[f"broken {status}"] += 1
        if not (400 <= status < 500):
            tally.faults[f"no request got {status}"] += 1
        writer.close()
        await asyncio.sleep(draw.uniform(0, 2))


async def one(kind: str, port: int, tally: Tally, draw: random.Random, end: float) -> None:
    """A client that starts anew when its connection ends without a reply, which is a fault."""
    work = {
        "good": good,
        "slow": slow,
        "half": half,
        "gone": gone,
        "large": large,
        "broken": broken,
    }[kind]
    await asyncio.sleep(draw.uniform(0, 2))
    while time.monotonic() < end:
        try:
            await work(port, tally, draw, end)
        except (
            OSError,
            asyncio.IncompleteReadError,
            TimeoutError,
            Reply,
            ValueError,
            KeyError,
        ) as error:
            if kind in ("good", "large", "broken", "slow"):
                tally.faults[f"{kind}: {type(error).__name__} {str(error)[:80]}"] += 1
            await asyncio.sleep(0.2)


async def clients(port: int, pid: int, seconds: float, seed: int) -> tuple[Tally, list[float]]:
    """All clients for so long; what they saw, and the server's memory over time, MB."""
    tally, end, memory = Tally(), time.monotonic() + seconds, []

    async def measure() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(5.0, seconds / 20))
            memory.append(_memory_mb(pid))

    tasks = [measure()]
    for kind, count in CLIENTS.items():
        tasks += [
            one(kind, port, tally, random.Random(f"{seed} {kind} {n}"), end) for n in range(count)
        ]
    await asyncio.gather(*tasks)
    return tally, memory


def _memory_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) / 1024


def run(out: Path, seconds: float, seed: int) -> bool:
    """Start a server, ask it for so many seconds, stop it; True where nothing went wrong."""
    log = out / "server.log"
    command = [sys.executable, "-m", "surgeon", "serve", "builtin:instruct", "--port", "0"]
    with open(log, "w") as words:
        server = subprocess.Popen(command, stderr=words, stdout=words, env=_environment())
        try:
            port = _port(server, log)
            tally, memory = asyncio.run(clients(port, server.pid, seconds, seed))
            time.sleep(3)
            left = asyncio.run(_health(port))
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(600)
    row = told(tally, memory, seconds, status, left, log.read_text())
    jsonl.append(out / "server.jsonl", row)
    return not row["faults"]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")}


def _port(server: "subprocess.Popen[bytes]", log: Path) -> int:
    late = time.monotonic() + 300
    while time.monotonic() < late and server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", log.read_text()):
            return int(found[1])
        time.sleep(0.2)
    raise SystemExit(f"the server didn't start: {log.read_text()[-2000:]}")


async def _health(port: int) -> Mapping[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    status, body = await reply(reader)
    writer.close()
    return {"http": status, **json.loads(body)}


def told(
    tally: Tally,
    memory: list[float],
    seconds: float,
    status: int,
    left: Mapping[str, Any],
    log: str,
) -> dict[str, Any]:
    """The figures, printed and as a row."""
    spent = sorted(tally.seconds)
    early, late = memory[len(memory) // 5], memory[-1]
    faults = dict(tally.faults)
    if late > (1 + GROWTH) * early:
        faults[f"memory grew from {early:.0f} to {late:.0f} MB"] = 1
    if left["running"] or left["waiting"]:
        faults[f"answers go on for nobody ({dict(left)})"] = 1
    if status not in (0, 143):
        faults[f"the server ended with {status}"] = 1
    if "Traceback" in log:
        faults["a traceback in the server's output"] = log.count("Traceback")
    row = {
        "clients": sum(CLIENTS.values()), "seconds": seconds, "requests": tally.sent, "statuses": dict(sorted(tally.statuses.items())),
        "p50_s": round(spent[len(spent) // 2], 4), "p99_s": round(spent[int(len(spent) * 0.99)], 4),
        "memory_mb": [round(early, 1), round(late, 1), round(max(memory), 1)], "faults": faults,
    }  # fmt: skip
    for name, value in row.items():
        print(f"server {name}: {value}")
    return row
