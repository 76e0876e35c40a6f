"""What a server doesn't take, and how it says so."""

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
from serving import CHAT, MODEL, TIMEOUT_S, Server, serving

from surgeon.serve.app import Limits

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=2, max_waiting=2) as made:
        yield made


@pytest.mark.parametrize(
    ("changes", "status", "param", "code", "words"),
    [
        (dict(model="gpt-5"), 404, "model", "model_not_found", "'gpt-5' does not exist"),
        (dict(model=["thinking"]), 404, "model", "model_not_found", "does not exist"),
        (dict(tools=[TOOL]), 400, "tools", "unsupported_parameter", "tools is not supported"),
        (dict(logprobs=True), 400, "logprobs", "unsupported_parameter", "not supported"),
        (dict(logprobs=0), 400, "logprobs", "unsupported_parameter", "not supported"),
        (dict(presence_penalty=1), 400, "presence_penalty", "unsupported_parameter", "leave it"),
        (dict(response_format={"type": "json_object"}), 400, "response_format",
         "unsupported_parameter", "not supported"),
        (dict(frobnicate=1), 400, "frobnicate", "unknown_parameter", "frobnicate"),
        (dict(messages=[]), 400, "messages", None, "at least one message"),
        (dict(messages=[{"role": "tool", "content": "3"}]), 400, "messages[0].role", None, "tool"),
        (dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400,
         "messages[0].content", None, "must be text"),
        (dict(messages=[{"role": "user", "content": "\ud800"}]), 400, "messages[0].content", None,
         "no valid Unicode"),
        (dict(max_tokens=0), 400, "max_tokens", None, "from 1 to 2048"),
        (dict(max_tokens=5000), 400, "max_tokens", None, "from 1 to 2048"),
        (dict(max_tokens="5"), 400, "max_tokens", None, "whole number"),
        (dict(max_tokens=True), 400, "max_tokens", None, "whole number"),
        (dict(max_tokens=5, max_completion_tokens=5), 400, "max_tokens", None, "both"),
        (dict(temperature=3), 400, "temperature", None, "from 0 to 2"),
        (dict(temperature=float("nan")), 400, "temperature", None, "from 0 to 2"),
        (dict(top_p=-0.1), 400, "top_p", None, "from 0 to 1"),
        (dict(n=0), 400, "n", None, "from 1"),
        (dict(n=5), 400, "n", None, "takes 4 at once"),
        (dict(seed=1.5), 400, "seed", None, "whole number"),
        (dict(stop=["x"] * 17), 400, "stop", None, "up to 16"),
        (dict(stop=["x" * 300]), 400, "stop", None, "1 to 256 characters"),
        (dict(stop=[""]), 400, "stop", None, "1 to 256"),
        (dict(stream="yes"), 400, "stream", None, "true or false"),
        (dict(stream_options={"include_usage": True}), 400, "stream_options", None, "stream"),
        (dict(chat_template_kwargs={"tools": 1}), 400, "chat_template_kwargs", None, "enable_thi"),
        (dict(messages=[{"role": "user", "content": "3 " * 3000}]), 400, "messages",
         "context_length_exceeded", "takes 2047"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_cant_be_answered_is_said_in_openais_words(
    server: Server, changes: Any, status: int, param: str, code: str | None, words: str
):
    found, body, _ = server.send("POST", "/v1/chat/completions", CHAT | changes)
    error = body["error"]
    assert (found, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error" and words in error["message"]
    assert server.worker.load == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "must be text or token ids"),
        ([], "must be text or token ids"),
        ([1.5], "must be text or token ids"),
        (["a", 1], "must be text or token ids"),
        ([-1], "outside the model's 0 to"),
        ([[1], [1 << 40]], "outside the model's 0 to"),
        ("", "no tokens"),
        ([1] * 2048, "has 2048 tokens"),
        (["a"] * 100_000, "asks for 100000 answers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_prompts_that_cant_be_gone_on_with(server: Server, prompt: Any, words: str):
    status, body, _ = server.send("POST", "/v1/completions", dict(prompt=prompt))
    assert (status, body["error"]["param"]) == (400, "prompt") and words in body["error"]["message"]


def test_parameters_that_ask_for_nothing_are_taken(server: Server):
    body = CHAT | dict(
        tools=[], tool_choice="none", logprobs=False, presence_penalty=0.0, logit_bias={},
        user="me", stop=None, response_format={"type": "text"}, metadata={"a": "b"}, n=1,
        max_tokens=1, stream_options=None,
    )  # fmt: skip
    assert server.send("POST", "/v1/chat/completions", body)[0] == 200


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "no valid JSON"),
        (b"\xff\xfe\xfd", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[]", "no JSON object"),
        (b"", "no valid JSON"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "no valid JSON"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_bodies_that_are_no_request(server: Server, raw: bytes, words: str):
    status, body, _ = server.send("POST", "/v1/chat/completions", raw)
    assert status == 400 and words in body["error"]["message"]


def test_the_client_raises_its_own_errors(server: Server):
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        server.chat(model="other")
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        server.chat(tools=[TOOL])
    with pytest.raises(openai.APIStatusError, match="more than 1048576 bytes") as error:
        server.chat(user="x" * (3 << 20))
    assert error.value.status_code == 413


def test_other_paths_methods_and_kinds_of_content(server: Server):
    status, body, headers = server.send("GET", "/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST") and "error" in body
    status, body, _ = server.send("POST", "/v1/embeddings", {})
    assert status == 404 and "/v1/embeddings" in body["error"]["message"]
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        head = {"Content-Type": kind}
        assert server.send("POST", "/v1/chat/completions", CHAT, **head)[0] == 415
    head = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.send("POST", "/v1/chat/completions", CHAT | dict(max_tokens=1), **head)[0] == 200


def test_models_and_health(server: Server):
    assert [model.id for model in server.client.models.list()] == ["thinking"]
    assert server.client.models.retrieve("builtin:thinking").id == "thinking"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("other/name")
    status, body, _ = server.send("GET", "/health")
    assert (status, body) == (200, {"status": "ok", "running": 0, "waiting": 0})
    assert server.chat(0, model=MODEL, max_tokens=1).model == "thinking"


def test_a_body_that_is_too_large_or_too_slow_is_cut_off():
    with serving(limits=Limits(1000, body_s=0.3)) as made:
        status, body, headers = made.send("POST", "/v1/completions", dict(prompt="x" * 2000))
        assert status == 413 and "more than 1000 bytes" in body["error"]["message"]
        assert headers["connection"] == "close"
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for size, sent, status in ((500, 10, 408), (1 << 30, 5000, 413)):
            with socket.create_connection(("127.0.0.1", made.port), TIMEOUT_S) as connection:
                connection.sendall(f"{head}Content-Length: {size}\r\n\r\n{'x' * sent}".encode())
                reply = connection.recv(1 << 16)
                assert reply.startswith(f"HTTP/1.1 {status} ".encode())
        assert made.send("POST", "/v1/completions", dict(prompt="x"))[0] == 200


def test_a_key_is_asked_for_where_there_is_one():
    with serving(api_key="géheim") as made:
        body = CHAT | dict(max_tokens=1)
        wrong = ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic géheim"})
        for head in wrong:
            for method, path, sent in (
                ("GET", "/v1/models", None),
                ("POST", "/v1/chat/completions", body),
                ("POST", "/v1/completions", b"not even JSON"),
            ):
                status, found, headers = made.send(method, path, sent, **head)
                assert (status, found["error"]["code"]) == (401, "invalid_api_key")
                assert headers["www-authenticate"] == "Bearer"
        head = {"Authorization": "bearer géheim".encode().decode("latin-1")}
        assert made.send("POST", "/v1/chat/completions", body, **head)[0] == 200
        assert made.send("GET", "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            made.client.with_options(api_key="other").models.list()


def test_a_connection_is_kept_also_when_a_request_on_it_was_refused(server: Server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    try:
        connection.connect()
        name = connection.sock.getsockname()
        for changes, status in ((dict(), 200), (dict(n=99), 400)):
            raw = json.dumps(CHAT | dict(max_tokens=2) | changes)
            head = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", raw, head)
            reply = connection.getresponse()
            assert reply.status == status and reply.read()
            assert connection.sock.getsockname() == name
    finally:
        connection.close()
