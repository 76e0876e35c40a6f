"""What is asked of a server, how often, and what is said when it doesn't answer as it should."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from endpoints import Said, served

from surgeon import endpoint
from surgeon.endpoint import Endpoint, Refused, Unusable
from surgeon.errors import BadInput


class Server:
    """Says `"good"` to whoever asks, after the replies that a test wants first."""

    def __init__(self) -> None:
        self.first: list[Said] = []
        self.asked: list[tuple[str, Any, Mapping[str, str]]] = []

    def __call__(self, path: str, body: Any, headers: Mapping[str, str]) -> Said:
        self.asked.append((path, body, headers))
        return self.first.pop(0) if self.first else (200, {"id": "good", "data": [{"id": "m"}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    return Server()


@pytest.fixture
def at(server: Server) -> Iterator[Endpoint]:
    with served(server) as url:
        yield Endpoint.parse(f"{url}#m")


def exchange(at: Endpoint, read: Callable[[Any], Any] = lambda found: found["id"]) -> Any:
    return at.exchange(lambda client: client.models.with_raw_response.retrieve("m"), read)


@pytest.mark.parametrize(
    "spec",
    ["http://a/v1", "a#m", "ftp://a#m", "http://#m", "http://a:80o0#m", "http://[a#m", "#m", ""],
)
def test_an_endpoint_is_a_url_and_a_model(spec: str):
    with pytest.raises(BadInput, match=r"expected URL#model, for example http://"):
        Endpoint.parse(spec)


def test_the_url_may_be_copied_with_its_path():
    for end in ("", "/", "/chat/completions", "/completions/"):
        found = Endpoint.parse(f"http://a:1/v1{end}#org/m:8b")
        assert (found.url, found.model) == ("http://a:1/v1", "org/m:8b")
    with pytest.raises(BadInput, match="found attempts = 0, expected"):
        Endpoint.parse("http://a#m", attempts=0)


def test_the_key_is_sent_where_there_is_one(
    server: Server, at: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    assert at.models() == ["m"]
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    assert exchange(Endpoint(at.url, "m")) == "good"
    sent = [headers["Authorization"] for _, _, headers in server.asked]
    assert "secret" not in sent[0] and sent[1] == "Bearer sk-secret"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-se\ncret")
    with pytest.raises(BadInput, match="found characters in OPENAI_API_KEY") as caught:
        Endpoint(at.url, "m").models()
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named_and_not_followed(
    server: Server, at: Endpoint, monkeypatch: pytest.MonkeyPatch, status: int
):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    other = Server()
    with served(other) as elsewhere:
        server.first = [(status, {}, {"Location": elsewhere})] * 2
        for ask in (at.models, lambda: exchange(at)):
            with pytest.raises(BadInput, match=f"answered {status}: it is at {elsewhere} now"):
                ask()
    assert other.asked == [] and len(server.asked) == 2


def test_what_passes_is_tried_again(server: Server, at: Endpoint):
    server.first = [
        *((status, {"error": "later"}) for status in (408, 409, 425, 429, 500, 502, 529)),
        None,
        (200, b"<html>Not JSON"),
        (200, {}),
        (200, ["other"]),
    ]
    at.attempts = len(server.first) + 1
    assert exchange(at) == "good"


def test_a_server_says_how_long_it_wants_to_be_left_alone(server: Server, at: Endpoint):
    server.first = [(429, {}, {"Retry-After": "0.3"}), (503, {}, {"Retry-After": "tomorrow"})]
    start = time.monotonic()
    assert exchange(at) == "good"
    assert 0.3 <= time.monotonic() - start < 2
    server.first = [(429, {"error": {"message": "quota of the day"}}, {"Retry-After": "3600"})]
    with pytest.raises(BadInput, match=r"answered 429: quota of the day\. Attempts: 1\."):
        exchange(at)


def test_pauses_grow(server: Server, at: Endpoint, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(at.stopped, "wait", pauses.append)
    server.first = [(500, {"error": {"message": "out of\nmemory"}})] * 6
    with pytest.raises(BadInput) as caught:
        exchange(at)
    assert pauses == [pytest.approx(2**n, rel=endpoint.JITTER) for n in range(5)]
    assert pauses != [1, 2, 4, 8, 16]
    assert str(caught.value) == (
        f"m at {at.url} answered 500: out of memory. Attempts: 6. What was done is kept: the same "
        "command resumes."
    )


def test_whoever_waits_stops_when_told(
    server: Server, at: Endpoint, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 60.0)
    server.first = [(500, {})] * 6
    threading.Timer(0.2, at.stopped.set).start()
    start = time.monotonic()
    with pytest.raises(BadInput, match=r"Attempts: 1\."):
        exchange(at)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": {"message": "no such field"}}, "no such field."),
        (401, {"error": {"message": "bad key."}}, "bad key. The key is read from OPENAI_API_KEY."),
        (404, {"detail": "Not Found"},
         "Not Found. Are the URL (most end in /v1) and the model's name right?"),
        (422, {"object": "error", "message": "two\n lines"}, "two lines."),
        (403, b"", "nothing. The key is read from OPENAI_API_KEY."),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "pay."),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_is_final(server: Server, at: Endpoint, status: int, body: Any, said: str):
    server.first = [(status, body)]
    with pytest.raises(Refused) as caught:
        exchange(at)
    assert str(caught.value) == f"m at {at.url} answered {status}: {said}"
    assert caught.value.status == status and len(server.asked) == 1


def test_a_reply_may_be_found_unusable(server: Server, at: Endpoint):
    def read(found: Any) -> Any:
        if len(server.asked) < 3:
            raise Unusable("wrote nothing.")
        return found["id"]

    assert exchange(at, read) == "good"
    server.asked.clear()
    at.attempts = 1
    with pytest.raises(BadInput, match=r"^m at \S+ wrote nothing\. Attempts: 1\."):
        exchange(at, read)


def test_slow_replies_are_not_waited_for(at: Endpoint, monkeypatch: pytest.MonkeyPatch):
    def slow(*_: Any) -> Said:
        time.sleep(1)
        return None

    with served(slow) as url:
        found = Endpoint(url, "m", timeout=0.1, attempts=1)
        with pytest.raises(BadInput, match=r"gave no reply in time\. Attempts: 1\."):
            exchange(found)
        with pytest.raises(BadInput, match=r"gave no reply in time\. Is the server running"):
            found.models()


def test_models_are_listed_where_the_server_has_a_list(server: Server, at: Endpoint):
    for reply in ((404, {}), (405, b""), (429, {}), (200, {}), (200, {"data": None}), (200, [])):
        server.first = [reply]
        assert at.models() == []
    for reply, said in (
        ((401, {"error": {"message": "no"}}), "answered 401: no. The key is read from"),
        ((503, {"error": {"message": "loading"}}), "answered 503: loading."),
        ((200, b"<html>"), "sent something other than JSON. Is the server running, and the URL"),
    ):
        server.first = [reply]
        with pytest.raises(BadInput) as caught:
            at.models()
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_at_once():
    start = time.monotonic()
    with pytest.raises(BadInput, match=r"can't be reached \(.*refused\)\. Is the server running"):
        Endpoint.parse("http://127.0.0.1:9/v1#m").models()
    assert time.monotonic() - start < 5


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BadInput, match=r"pip install 'surgeon\[endpoint\]'"):
        Endpoint.parse("http://127.0.0.1:9/v1#m").models()
