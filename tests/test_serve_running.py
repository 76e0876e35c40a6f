"""Clients that come and go, signals that end a server, and where it listens."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import (
    CHAT,
    MODEL,
    PROMPTS,
    TIMEOUT_S,
    TOKENS,
    Gate,
    Model,
    Server,
    connected,
    joined,
    serving,
    until,
)
from test_monitor import untrained

from surgeon.errors import BadInput
from surgeon.serve import Served, serve, web
from surgeon.serve.app import Follower, Limits, build
from surgeon.serve.metering import Meter
from surgeon.serve.query import read_completion
from surgeon.serve.refusals import closing
from surgeon.serve.replies import COMPLETION, Envelope
from surgeon.serve.service import load
from surgeon.serve.worker import Breakoff, NextToken
from surgeon.settings.serve import ServeSettings


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """No monitor; two rows, of which as many requests may wait."""
    with serving(rows=2, max_waiting=2) as made:
        yield made


@pytest.fixture(scope="module")
def here() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def alone(here: Model) -> list[str]:
    """The text of each prompt's answer, with its number for a seed, alone in the batch."""
    return [here.text(*here.decode(here.request(number))) for number in range(len(PROMPTS))]


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    """The module's server does no pass that isn't let through; in the end it is idle again."""
    made = Gate(server.worker)
    yield made
    made.lift()
    until(lambda: server.worker.load == (0, 0))


def test_more_than_may_wait_are_told_to_come_again(server: Server, gate: Gate, alone: list[str]):
    """Two rows and two that wait."""
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.chat, number) for number in range(4)]
        until(lambda: server.worker.load == (2, 2))
        assert server.send("GET", "/health")[1] == {"status": "ok", "running": 2, "waiting": 2}
        with pytest.raises(openai.RateLimitError, match="as many answers wait as may") as error:
            server.chat(4)
        assert error.value.code == "rate_limit_exceeded"
        assert error.value.response.headers["retry-after"] == "1"
        gate.let()
        found = [future.result(TIMEOUT_S).choices[0].message.content for future in asked]
    assert found == alone[:4]
    assert server.chat(4).choices[0].message.content == alone[4]


def test_one_that_hangs_up_frees_its_row_and_the_others_go_on(
    server: Server, gate: Gate, alone: list[str]
):
    """Mid-stream, while it waits for a whole answer, and while it waits for a row."""
    other = server.chat(0, stream=True)
    leaving = server.chat(1, stream=True, n=2, max_tokens=1000)
    until(lambda: server.worker.load == (2, 1))
    gate.let(3)
    assert any(choice.delta.content for piece in leaving for choice in piece.choices)
    leaving.close()
    until(lambda: server.worker.load == (1, 0))
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
            raw = json.dumps(CHAT | dict(max_tokens=1000, n=2)).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            connection.sendall(head.encode() + raw)
            until(lambda: server.worker.load == (2, 1))
        until(lambda: server.worker.load == (1, 0))
    gate.let(1)
    until(lambda: len(server.worker.decoder.indices) == 1)
    gate.let()
    assert joined(other)[0] == alone[0]


def test_nothing_is_kept_of_answers_that_ended(tmp_path: Path):
    """Whole ones, streams that were left, and such that a stop string ended."""
    made = untrained()
    for detector in made.detectors.values():
        detector.threshold.fill_(0)
    made.save(tmp_path)
    with serving(rows=3, max_waiting=3, monitor_file=str(tmp_path)) as server:
        for number in range(3):
            server.chat(number, n=2, stop="9")
            stream = server.chat(number, n=5, stream=True)
            next(stream)
            stream.close()
            until(lambda: server.worker.load == (0, 0))
        (choice,) = server.chat(0).choices
        assert len(choice.surgeon["firings"]) == 3
        worker = server.worker
        until(lambda: worker.load == (0, 0) and worker._inbox.empty())
        until(lambda: not worker._answers)
        assert not worker.decoder.indices and not worker.decoder.waiting
        assert worker.watching is not None
        assert not worker.watching.firings and not worker.watching.readings


def test_a_failing_pass_costs_the_answers_in_it_only(
    server: Server, alone: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    decoder = server.worker.decoder
    step = decoder.step

    def failing() -> Any:
        if len(decoder.indices) == 2:
            raise RuntimeError("CUDA out of\nmemory")
        return step()

    monkeypatch.setattr(decoder, "step", failing)
    stream = server.chat(0, stream=True, max_tokens=1000)
    next(stream)
    with pytest.raises(openai.InternalServerError, match="The model failed: CUDA out of memory"):
        server.chat(1, max_tokens=1000)
    with pytest.raises(openai.APIError, match="The model failed: CUDA out of memory"):
        joined(stream)
    assert server.worker.load == (0, 0) and server.worker.decoder is not decoder
    assert server.chat(2).choices[0].message.content == alone[2]
    assert "A pass of the model failed: CUDA out of memory\n" in capfd.readouterr().err


def test_an_answer_that_a_stop_string_ended_is_whole_though_the_next_pass_fails(here: Model):
    """The worker is in that pass when the answer ends, and breaks off what it knows of."""
    loaded = load(ServeSettings(checkpoint=MODEL))
    body = dict(prompt=[1], stop="Next", seed=0)
    query = read_completion(json.dumps(body).encode(), loaded.tokenizer, loaded.offer)
    for ends in (False, True):
        reply = Envelope(COMPLETION, "cmpl-1", 0, "thinking", False, False, False)
        meter = Meter(loaded.worker)
        following = Follower(loaded.worker, loaded.tokenizer, query, reply, meter)
        following.choice = {0: 0}
        token = here.tokenizer.get_vocab()["Next" if ends else "So"]
        following._arrive(NextToken(0, token, None))
        following._arrive(Breakoff(0, closing()))
        assert (following.broken is None) == ends


def test_a_reader_that_stalls_holds_no_row(server: Server, here: Model):
    """A client that takes nothing: its answer ends, and others have its place."""
    loaded = load(ServeSettings(checkpoint=MODEL, name="thinking", rows=1, max_waiting=0))
    app = build(loaded, limits=Limits(1 << 20))
    worker = threading.Thread(target=loaded.worker.run)
    worker.start()
    raw = json.dumps(CHAT | dict(stream=True, max_tokens=20, temperature=0)).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "root_path": "",
    }  # fmt: skip

    async def ask() -> bytes:
        sent: list[bytes] = []
        bodies = [{"type": "http.request", "body": raw, "more_body": False}]
        reading = asyncio.Event()

        async def receive() -> Any:
            return bodies.pop() if bodies else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await reading.wait()
                sent.append(message["body"])

        task = asyncio.create_task(app(scope, receive, send))
        async with asyncio.timeout(TIMEOUT_S):
            while loaded.worker.answered == 0:
                await asyncio.sleep(0.01)
            assert loaded.worker.load == (0, 0) and not sent
            reading.set()
            await task
        return b"".join(sent)

    try:
        found = asyncio.run(ask())
    finally:
        loaded.worker.close(0)
        worker.join(TIMEOUT_S)
    texts = re.findall(rb'"content":"((?:[^"\\]|\\.)*)"', found)
    text = json.loads(b'"' + b"".join(texts) + b'"')
    whole = server.send("POST", "/v1/chat/completions", CHAT | dict(max_tokens=20, temperature=0))
    assert text == whole[1]["choices"][0]["message"]["content"]
    assert found.endswith(b"data: [DONE]\n\n")


def test_rows_are_those_that_the_decoder_has():
    """On the CPU a multiple of 16, so that more wait."""
    assert (
        load(ServeSettings(checkpoint=MODEL, rows=20)).worker.rows
        == 16
        == load(ServeSettings(checkpoint=MODEL, rows=16)).worker.rows
    )


# --- the end --------------------------------------------------------------------------------------


def ended_by(script: Callable[[Server], Any], *, grace_s: float) -> tuple[bool, Any]:
    """Run a server in this thread, as the command does, and `script` in another one; whether it was
    interrupted, and what the script returned."""
    loaded = load(ServeSettings(checkpoint=MODEL, name="thinking"))
    app = build(loaded, limits=Limits(1 << 20))
    begun = threading.Event()
    with web.listening("127.0.0.1", 0) as bound, ThreadPoolExecutor(1) as pool:
        port = bound.getsockname()[1]

        def beside() -> Any:
            try:
                assert begun.wait(TIMEOUT_S)
                with connected(port, loaded.worker) as made:
                    return script(made)
            finally:
                loaded.worker.close(0)

        future = pool.submit(beside)
        interrupted = web.run(app, loaded.worker, bound, grace_s=grace_s, begun=begun.set)
        return interrupted, future.result(TIMEOUT_S)


def send_signal(number: int) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_lets_answers_end(here: Model):
    """A stream and a whole answer, while new clients are turned away."""

    def script(server: Server) -> Any:
        gate = Gate(server.worker)
        stream = server.chat(0, stream=True)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(server.chat, 1)
            until(lambda: server.worker.load == (2, 0))
            gate.let(3)
            assert next(stream)
            send_signal(signal.SIGTERM)
            until(lambda: server.worker.closing)
            gate.let()
            with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):
                server.chat(2)
            return joined(stream)[0], whole.result(TIMEOUT_S).choices[0].message.content

    interrupted, texts = ended_by(script, grace_s=TIMEOUT_S)
    requests = [here.request(number) for number in (0, 1)]
    assert list(texts) == [here.text(answer) for answer in here.decode(*requests)]
    assert not interrupted


def test_ctrl_c_without_grace_tells_those_who_wait():
    def script(server: Server) -> None:
        gate = Gate(server.worker)
        stream = server.chat(0, stream=True)
        with ThreadPoolExecutor(1) as pool:
            whole = pool.submit(server.chat, 1)
            until(lambda: server.worker.load == (2, 0))
            gate.let(3)
            assert next(stream)
            send_signal(signal.SIGINT)
            until(lambda: server.worker.closing)
            gate.let()
            with pytest.raises(openai.APIError, match="The server is shutting down"):
                joined(stream)
            with pytest.raises(openai.InternalServerError, match="shutting down") as error:
                whole.result(TIMEOUT_S)
        assert (error.value.status_code, error.value.code) == (503, "shutting_down")

    assert ended_by(script, grace_s=0)[0]


def test_a_second_signal_takes_the_grace_away():
    def script(server: Server) -> None:
        gate = Gate(server.worker)
        stream = server.chat(0, stream=True, max_tokens=2000)
        gate.let(2)
        send_signal(signal.SIGINT)
        until(lambda: server.worker.closing)
        gate.let(20)
        texts = 0
        with pytest.raises(openai.APIError, match="The server is shutting down"):
            for piece in stream:
                texts += bool(piece.choices[0].delta.content)
                if texts == 5:
                    send_signal(signal.SIGTERM)
                    gate.let()

    assert ended_by(script, grace_s=TIMEOUT_S)[0]


def test_a_third_signal_doesnt_wait_for_the_pass():
    closed: list[float] = []

    def script(server: Server) -> None:
        worker, close = server.worker, server.worker.close
        worker.close = lambda within_s: (closed.append(within_s), close(within_s))[1]
        Gate(worker)
        stream = server.chat(0, stream=True)
        until(lambda: worker.load == (1, 0))
        for n in range(1, 4):
            send_signal(signal.SIGINT)
            until(lambda n=n: len(closed) == n)
        with suppress(openai.APIError):
            joined(stream)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ended_by(script, grace_s=TIMEOUT_S)
    assert closed[:3] == [TIMEOUT_S, 0, 0]
    assert signal.getsignal(signal.SIGINT) is before


# --- where it listens -----------------------------------------------------------------------------


def test_a_port_that_is_taken_is_one_line_before_anything_is_loaded(server: Server):
    with pytest.raises(
        BadInput, match=r"127\.0\.0\.1:\d+ can't be listened on \(.*in use\)"
    ) as error:
        serve("no/such/checkpoint", port=server.port)
    assert "\n" not in str(error.value)


def test_two_that_bound_a_port_before_either_listened():
    loaded = load(ServeSettings(checkpoint=MODEL))
    app = build(loaded, limits=Limits(1 << 20))
    with web.listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with web.listening("127.0.0.1", port) as second:
            first.listen()
            with pytest.raises(BadInput, match=f"127.0.0.1:{port} can't be listened on"):
                web.run(app, loaded.worker, second, grace_s=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(port=-1), "port = -1"),
        (dict(port=70000), "port = 70000"),
        (dict(host="no such host"), "'no such host', which is no address here"),
        (dict(host="192.0.2.1"), r"192\.0\.2\.1:0 can't be listened on"),
        (dict(rows=0), "rows = 0"),
        (dict(max_tokens=-1), "max_tokens = -1"),
        (dict(max_waiting=-1), "max_waiting = -1"),
        (dict(max_body_bytes=0), "max_body_bytes = 0"),
        (dict(grace_s=-1.0), "grace_s = -1"),
        (dict(levels=["intra"]), "intra"),
        (dict(monitor_file="nowhere"), "nowhere"),
        (dict(device="tpu"), "tpu"),
        (dict(checkpoint="no/such/checkpoint"), "no/such/checkpoint"),
    ],
    ids=str,
)
def test_what_cant_be_served_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=words):
        serve(**({"checkpoint": MODEL, "port": 0} | changes))


def test_a_server_that_others_can_reach_without_a_key_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Sockets are bound, and none of them listens."""
    for host, own in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with web.listening(host, 0) as bound:
            assert web.is_loopback(bound) == own
    monkeypatch.setattr(web, "run", lambda *_, **__: False)
    monkeypatch.delenv("SURGEON_API_KEY", raising=False)
    for host, key, warned in (
        ("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "secret", False),
    ):  # fmt: skip
        assert serve(MODEL, host=host, port=0, api_key=key) == Served(0, 0, interrupted=False)
        assert ("anybody who can reach 0.0.0.0" in capsys.readouterr().err) == warned


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_command_serves_until_a_signal(number: int, status: int, here: Model):
    """In a process of its own, with an answer in flight that has its time to end."""
    command = [sys.executable, "-m", "surgeon", "serve", MODEL, "--port", "0"]
    environment = os.environ | {"SURGEON_API_KEY": "secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        timer = threading.Timer(2 * TIMEOUT_S, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == f"Loading {MODEL} ...\n"
            line = process.stderr.readline()
            found = re.search(r"Serving (\S+) at (http://127\.0\.0\.1:\d+/v1): 16 rows", line)
            assert found and found[1] == MODEL, line
            messages: Any = list(PROMPTS[0].messages)
            with openai.OpenAI(base_url=found[2], api_key="secret", timeout=TIMEOUT_S) as client:
                stream = client.chat.completions.create(
                    model=MODEL, messages=messages, seed=0, max_tokens=TOKENS, stream=True
                )
                text = next(iter(stream)).choices[0].delta.content or ""
                process.send_signal(number)
                text += joined(stream)[0]
            said = process.stderr.read()
            assert process.wait(TIMEOUT_S) == status
        finally:
            timer.cancel()
            process.kill()
    assert text == here.text(*here.decode(here.request(0)))
    assert f"Stopped after 1 answers, {TOKENS} tokens." in said
    assert "Traceback" not in said


def test_half_a_head_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    """On a new connection and on one that was used; who sends a whole head isn't hurried."""
    monkeypatch.setattr(web, "HEAD_S", 0.5)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving() as server:
        for before in (b"", whole):
            with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as client:
                client.sendall(before + whole[:20])
                received = b"".join(iter(lambda c=client: c.recv(4096), b""))
                assert received.count(b"HTTP/1.1 200") == bool(before)
        assert server.chat(max_tokens=TOKENS).choices


def test_who_hung_up_before_its_turn_is_not_read(monkeypatch: pytest.MonkeyPatch):
    gate, read = threading.Event(), []

    def gated(raw: bytes, *rest: Any) -> Any:
        read.append(raw)
        assert gate.wait(TIMEOUT_S)
        return read_completion(raw, *rest)

    monkeypatch.setattr("surgeon.serve.app.read_completion", gated)
    body = {"prompt": "3", "max_tokens": 1}
    raw = json.dumps(body).encode()
    head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    with serving() as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.send, "POST", "/v1/completions", body)
        until(lambda: len(read) == 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as client:
            client.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + raw)
            assert server.send("GET", "/health")[0] == 200
        assert server.send("GET", "/health")[0] == 200
        gate.set()
        assert first.result()[0] == 200
        assert server.send("POST", "/v1/completions", body)[0] == 200
    assert len(read) == 2
