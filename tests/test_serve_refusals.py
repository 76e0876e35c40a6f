"""What a server doesn't take, and how it says so."""

import json
import socket
from collections.abc import Iterator
from functools import cache
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, MODEL, TIMEOUT_S, Server, serving

from surgeon.errors import BadInput
from surgeon.serve import query
from surgeon.serve.app import Limits
from surgeon.serve.query import read_chat, read_completion
from surgeon.serve.refusals import Refusal
from surgeon.serve.service import Service, load
from surgeon.settings.serve import ServeSettings

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"items": value}
    return value


def schema(value: Any) -> dict[str, Any]:
    return dict(response_format={"type": "json_schema", "json_schema": {"schema": value}})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=2, max_waiting=2) as made:
        yield made


@pytest.mark.parametrize(
    ("changes", "status", "param", "code", "words"),
    [
        (dict(model="gpt-5"), 404, "model", "model_not_found", "'gpt-5' does not exist"),
        (dict(model=["thinking"]), 404, "model", "model_not_found", "does not exist"),
        (dict(tools=[TOOL]), 400, "tools", None, "leaves out the tools"),
        (dict(tools=TOOL), 400, "tools", None, "a list of up to 128"),
        (dict(tools=[TOOL] * 129), 400, "tools", None, "a list of up to 128"),
        (dict(tools=["add"]), 400, "tools[0]", None, "of type function"),
        (dict(tools=[TOOL, {"type": "custom"}]), 400, "tools[1]", None, "of type function"),
        (dict(tools=[{"type": "function", "function": {"name": "a", "parameters": 3}}]), 400,
         "tools[0]", None, "a JSON schema"),
        (dict(tools=[TOOL | {"x": nested(70)}]), 400, "tools", None, "over 64 levels"),
        (dict(tools=[TOOL | {"x": "\ud800"}]), 400, "tools", None, "no valid Unicode"),
        (dict(tools=[TOOL], tool_choice="some"), 400, "tool_choice", None, "none, auto, required"),
        (dict(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "b"}}), 400,
         "tool_choice", None, "name a function of tools"),
        (dict(tool_choice="required"), 400, "tool_choice", None, "needs tools"),
        (dict(parallel_tool_calls=1), 400, "parallel_tool_calls", None, "true or false"),
        (dict(functions=[{"name": "a"}]), 400, "functions", "unsupported_parameter", "leave it"),
        (dict(logprobs=0), 400, "logprobs", None, "true or false"),
        (dict(logprobs="yes"), 400, "logprobs", None, "true or false"),
        (dict(logprobs=True, top_logprobs=21), 400, "top_logprobs", None, "from 0 to 20"),
        (dict(logprobs=True, top_logprobs=True), 400, "top_logprobs", None, "whole number"),
        (dict(top_logprobs=2), 400, "top_logprobs", None, "needs logprobs"),
        (dict(presence_penalty=2.1), 400, "presence_penalty", None, "from -2 to 2"),
        (dict(frequency_penalty="1"), 400, "frequency_penalty", None, "from -2 to 2"),
        (dict(frequency_penalty=float("-inf")), 400, "frequency_penalty", None, "from -2 to 2"),
        (dict(repetition_penalty=0), 400, "repetition_penalty", None, "from 0.01 to 10"),
        (dict(repetition_penalty=True), 400, "repetition_penalty", None, "from 0.01 to 10"),
        (dict(min_p=1.01), 400, "min_p", None, "from 0 to 1"),
        (dict(min_p=float("nan")), 400, "min_p", None, "from 0 to 1"),
        (dict(logit_bias=[1]), 400, "logit_bias", None, "an object of token ids"),
        (dict(logit_bias={"a": 1}), 400, "logit_bias", None, "an object of token ids"),
        (dict(logit_bias={"-1": 1}), 400, "logit_bias", None, "an object of token ids"),
        (dict(logit_bias={"²": 1}), 400, "logit_bias", None, "an object of token ids"),
        (dict(logit_bias={"1" * 5000: 1}), 400, "logit_bias", None, "an object of token ids"),
        (dict(logit_bias={"1": 101}), 400, "logit_bias", None, "from -100 to 100"),
        (dict(logit_bias={"1": True}), 400, "logit_bias", None, "from -100 to 100"),
        (dict(logit_bias={"1": None}), 400, "logit_bias", None, "from -100 to 100"),
        (dict(logit_bias={"1": float("nan")}), 400, "logit_bias", None, "from -100 to 100"),
        (dict(logit_bias={"99999": 1}), 400, "logit_bias", None, "token 99999, outside"),
        (dict(logit_bias={str(i): 1 for i in range(1025)}), 400, "logit_bias", None, "up to 1024"),
        (dict(response_format="json"), 400, "response_format", None, "of type text, json_object"),
        (dict(response_format={"type": "xml"}), 400, "response_format", None, "of type text"),
        (dict(response_format={"type": "json_schema"}), 400, "response_format", None,
         "json_schema.schema"),
        (dict(response_format={"type": "json_schema", "json_schema": {"schema": True}}), 400,
         "response_format", None, "an object"),
        (schema({"type": "objct"}), 400, "response_format", None, "objct"),
        (schema({"$ref": "http://127.0.0.1/x"}), 400, "response_format", None, "can't be followed"),
        (schema({"not": {}}), 400, "response_format", None, "can't be followed"),
        (schema({"type": "string", "pattern": "("}), 400, "response_format", None,
         "can't be followed"),
        (schema({"type": "object", "properties": {"a": False}, "required": ["a"]}), 400,
         "response_format", None, "nsatisfiable"),
        (schema(nested(70)), 400, "response_format", None, "over 64 levels"),
        # llguidance overflows the stack at these, and the server with it.
        *((schema(value), 400, "response_format", None, "a number of -2**63 or less") for value in (
            {"enum": [1, -(2**63)]}, {"const": {"a": [512 - 2**63]}},
            {"type": "integer", "enum": [-(2**63) - 1, 2]}, {"type": "integer", "const": -1e308},
            {"allOf": [{"const": -(10**400)}, {"type": "integer"}]})),
        (schema({"type": "number", "maximum": 1e300}), 400, "response_format", None,
         "can't be followed"),
        (schema({"enum": ["x" * 70_000]}), 400, "response_format", None, "over 65536 characters"),
        (dict(n=3, best_of=2), 400, "best_of", None, "from 3 to 128"),
        (dict(best_of=120), 400, "best_of", None, "at once"),
        (dict(metadata=nested(300)), 400, None, None, "over 200 levels"),
        (dict(echo=True), 400, "echo", "unsupported_parameter", "leave it out"),
        (dict(messages=[{"role": "user", "content": "3", "tool_calls": [1]}]), 400,
         "messages[0].tool_calls", None, "only an assistant"),
        (dict(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "a",
         "arguments": "{"}}]}]), 400, "messages[0].tool_calls", None, "a JSON object as text"),
        (dict(messages=[{"role": "assistant", "tool_calls": 3}]), 400, "messages[0].tool_calls",
         None, "a list of calls"),
        (dict(messages=[{"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]}]), 400,
         "messages", None, "leaves out a tool call"),
        (dict(messages=[{"role": "tool", "content": None}]), 400, "messages[0].content", None,
         "must be text"),
        (dict(messages=[{"role": "critic", "content": "3"}]), 400, "messages[0].role", None,
         "assistant, tool"),
        (dict(messages=[{"role": "user", "content": "3", "name": 7}]), 400, "messages[0].name",
         None, "no text"),
        (dict(frobnicate=1), 400, "frobnicate", "unknown_parameter", "frobnicate"),
        (dict(messages=[]), 400, "messages", None, "at least one message"),
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
    ("changes", "param", "words"),
    [
        (dict(logprobs=True), "logprobs", "a whole number from 0 to 20"),
        (dict(logprobs=-1), "logprobs", "from 0 to 20"),
        (dict(logprobs=21), "logprobs", "from 0 to 20"),
        (dict(top_logprobs=1), "top_logprobs", "leave it out"),
        (dict(echo=1), "echo", "true or false"),
        (dict(echo=True, stream=True), "echo", "can't be streamed"),
        (dict(max_tokens=0), "max_tokens", "from 1 to 2048"),
        (dict(echo=True, max_tokens=-1), "max_tokens", "from 0 to 2048"),
        (dict(suffix="x"), "suffix", "leave it out"),
        (dict(tools=[TOOL]), "tools", "leave it out"),
    ],
    ids=str,
)
def test_completions_refuse_by_name(server: Server, changes: Any, param: str, words: str):
    status, body, _ = server.send("POST", "/v1/completions", dict(prompt="3") | changes)
    assert (status, body["error"]["param"]) == (400, param) and words in body["error"]["message"]


def test_what_a_missing_library_is_for_is_refused_by_the_extras_name(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    for module in ("grammar", "metering"):
        monkeypatch.setattr(f"surgeon.serve.{module}.find_spec", lambda name: None)
    body = CHAT | dict(response_format={"type": "json_object"})
    status, reply, _ = server.send("POST", "/v1/chat/completions", body)
    assert status == 400 and "pip install 'surgeon[json]'" in reply["error"]["message"]
    with serving(rows=1) as bare:
        status, reply, _ = bare.send("GET", "/metrics")
        assert status == 501 and "pip install 'surgeon[serve]'" in reply["error"]["message"]
        assert bare.chat(0, max_tokens=1).usage.completion_tokens == 1


def test_an_action_needs_a_monitor_that_acts():
    for asked in (
        ServeSettings(checkpoint=MODEL, action="resample"), ServeSettings(checkpoint=MODEL, draws=2)
    ):  # fmt: skip
        with pytest.raises(BadInput, match="carries no monitor that could act"):
            load(asked)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, -(2**63), 1e308, float("inf"), "\ud800", "function", "required"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "function", "name", "json_schema", "schema", "role", "content",
                         "text", "parameters", "arguments", "0", "7", "properties"]),
        inner, max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip
READERS = [(read_chat, query.CHAT), (read_completion, query.COMPLETION)]


@given(
    st.sampled_from(READERS).flatmap(
        lambda one: st.tuples(
            st.just(one[0]),
            st.dictionaries(
                st.sampled_from([*sorted(one[1] | query.IGNORED | set(query.NEUTRAL)), "x"]), JUNK,
                min_size=1, max_size=4,
            ),
        )
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_is_read_or_refused(asked: tuple[Any, dict[str, Any]]):
    """Any parameter with any value: a request, or a refusal that isn't the server's fault."""
    read, changes = asked
    service = loaded()
    sound = {"prompt": "3"} if read is read_completion else CHAT
    try:
        found = read(json.dumps(sound | changes).encode(), service.tokenizer, service.offer)
    except Refusal as why:
        assert 400 <= why.status < 500
        json.dumps(why.body).encode()
    else:
        assert found.requests


@cache
def loaded() -> Service:
    return load(ServeSettings(checkpoint=MODEL, name="thinking"))


@given(
    st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "ignore"))
)
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_json_are_refused(raw: bytes):
    for read, _ in READERS:
        with pytest.raises(Refusal) as caught:
            read(raw, loaded().tokenizer, loaded().offer)
        assert caught.value.status == 400


@pytest.mark.parametrize("levels", [10, 199, 400, 900, *range(970, 1010, 3), 5000])
def test_lists_in_lists_are_read_or_refused(server: Server, levels: int):
    for body in (
        b'{"messages": ' + b"[" * levels + b"]" * levels + b"}",
        b'{"prompt": "3", "temperature": ' + b"[" * levels + b"]" * levels + b"}",
        b'{"frobnicate": ' + b'{"a":' * levels + b"1" + b"}" * levels + b"}",
    ):
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert server.send("POST", path, body)[0] == 400


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
        tools=[], tool_choice="none", parallel_tool_calls=False, logprobs=False,
        presence_penalty=0.0, logit_bias={},
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
    with pytest.raises(openai.BadRequestError, match="leaves out the tools"):
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


def test_a_text_that_can_be_no_prompt_isnt_read(monkeypatch: pytest.MonkeyPatch):
    """Reading takes turns: megabytes of text would keep everybody waiting."""
    service = loaded()
    monkeypatch.setattr(type(service.tokenizer), "__call__", lambda *_, **__: pytest.fail("read"))
    text = "3 " * (query.CHARACTERS * service.offer.max_prompt_tokens)
    chat = {**CHAT, "messages": [{"role": "user", "content": text}]}
    for read, body in ((read_chat, chat), (read_completion, {"prompt": text})):
        with pytest.raises(Refusal, match=r"characters for them\.") as caught:
            read(json.dumps(body).encode(), service.tokenizer, service.offer)
        assert caught.value.status == 400
        assert caught.value.body["error"]["code"] == "context_length_exceeded"
