"""`surgeon serve` on what `make real` made: python -m benchmarks.real.served

So many clients ask a server of their own machine for the answers to the test problems. Prints what
is right, tokens a second, and how long a client waited.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from benchmarks.real.loads import RUNS
from surgeon.answers import extract, same
from surgeon.traces import Prompt, read_prompts

BEST = str(RUNS / "ranking/best")
START_S = 180.0


class Reply(NamedTuple):
    """One answer over the wire."""

    right: bool
    tokens: int
    seconds: float


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def await_health(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Return when the server answers; raises RuntimeError if it ends or takes too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"no answer from {url} in {START_S:g} s")


def ask(url: str, model: str, prompt: Prompt, seed: int, most: int) -> Reply:
    """One problem over chat completions."""
    body = dict(
        model=model, messages=list(prompt.messages), max_tokens=most, temperature=0.7, top_p=0.9,
        seed=seed,
    )  # fmt: skip
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    begun = time.monotonic()
    with urlopen(request, timeout=600) as reply:
        content: Any = json.load(reply)
    found = extract(content["choices"][0]["message"]["content"], "auto")
    right = found is not None and same(found, str(prompt.answer))
    return Reply(right, content["usage"]["completion_tokens"], time.monotonic() - begun)


def measure(spec: str, prompts: Sequence[Prompt], clients: int, most: int) -> dict[str, float]:
    """The server's figures, from a start to its end."""
    port = free_port()
    url, name = f"http://127.0.0.1:{port}", "real"
    command = [sys.executable, "-m", "surgeon", "serve", spec, "--port", str(port), "--name", name]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        await_health(url, server)
        ready = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            jobs = [pool.submit(ask, url, name, p, n, most) for n, p in enumerate(prompts)]
            replies = [job.result() for job in jobs]
        ended = time.monotonic()
    finally:
        server.terminate()
        server.wait()
    return {
        "answers": len(replies),
        "accuracy": statistics.mean(reply.right for reply in replies),
        "start_s": ready - begun,
        "tokens_per_s": sum(reply.tokens for reply in replies) / (ended - ready),
        "median_s": statistics.median(reply.seconds for reply in replies),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="A server of a result, asked by many clients.")
    parser.add_argument("--checkpoint", default=BEST)
    parser.add_argument("--task", default=str(RUNS / "data/test.jsonl[350:400]"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--out", type=Path, default=RUNS / "served.json")
    given = parser.parse_args(arguments)
    found = measure(
        given.checkpoint, read_prompts(given.task), given.clients, given.max_tokens
    )  # fmt: skip
    text = json.dumps({name: round(value, 3) for name, value in found.items()})
    given.out.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
