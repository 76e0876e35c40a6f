"""Who writes the answers: servers, started servers and plain text, in the place of the decoder."""

import json
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import served
from serving import MODEL, PROMPTS, Server, serving

from surgeon import endpoint, engines, jsonl
from surgeon.checkpoint import resolve
from surgeon.decoding import Request, decode, stream_key
from surgeon.engines import started
from surgeon.errors import BadInput
from surgeon.evaluate import evaluate
from surgeon.families import as_subject, subjects
from surgeon.live.families import stop_ids_of, tokenizer_of
from surgeon.rank import rank
from surgeon.settings.engine import EngineSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import (
    Ask,
    LocalSampler,
    encode,
    read_plain,
    read_traces,
    sample,
    stop_ids,
    stored_traces,
    text_of,
)

GREEDY = Sampling(samples=1, temperature=0.0, max_tokens=24)
FEW = PROMPTS[:3]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def here() -> tuple[Any, Any]:
    checkpoint = resolve(MODEL)
    return checkpoint.model(), checkpoint.tokenizer()


class Fake:
    """A server of the built-in model that says as much as one of its kind."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.asked: list[dict[str, Any]] = []
        self.kind, self.fail = "vllm", dict[int, Any]()
        self.lock = threading.Lock()

    def answer(self, path: str, body: Any, _: Any) -> Any:
        if body is None:
            return 200, {"data": [{"id": "thinking"}]}
        self.asked.append(body)
        if len(self.asked) in self.fail:
            return self.fail[len(self.asked)]
        if self.kind == "plain" and "return_token_ids" in body:
            return 400, {"error": {"message": "unknown: return_token_ids"}}
        ids = body.get("prompt") or encode(self.tokenizer, FEW[0])
        stop = stop_ids(self.model, self.tokenizer)
        with self.lock:
            (found,) = decode(
                self.model, [Request(ids, stream_key(body["seed"], "", 0))], stop=stop,
                max_tokens=body["max_tokens"], temperature=body["temperature"],
                top_p=body["top_p"],
            )  # fmt: skip
        text = text_of(self.tokenizer, found.token_ids, found.finish_reason)
        choice: dict[str, Any] = {"text": text, "finish_reason": found.finish_reason}
        read = {"prompt_token_ids": ids} if self.kind == "vllm" else {}
        if self.kind == "vllm":
            choice["token_ids"] = found.token_ids
        if "messages" in body:
            choice["message"] = {"content": text}
        else:
            choice |= read
        count = len(found.token_ids) + (self.kind == "other")
        usage = {"prompt_tokens": len(ids), "completion_tokens": count}
        return 200, {"choices": [choice], "usage": usage, **read}


def sampler_at(url: str, here: tuple[Any, Any], **settings: Any) -> engines.ServerSampler:
    engine = EngineSettings(name=url, **settings)
    subject = as_subject(resolve(MODEL))
    with engines.opened(engine) as opened:
        made = opened.seat(subject, here[1])
    assert isinstance(made, engines.ServerSampler)
    return made


def test_a_servers_greedy_traces_are_those_made_here(server: Server, here: tuple[Any, Any]):
    asked = sampler_at(f"{server.url}#thinking", here)
    theirs = {trace.key: trace for trace in sample(asked, here[1], FEW, GREEDY)}
    assert theirs == {trace.key: trace for trace in sample(here[0], here[1], FEW, GREEDY)}
    assert asked.counts.requests == len(FEW) and asked.counts.from_text == 0


@pytest.mark.parametrize("kind", ["vllm", "plain", "other"])
def test_tokens_are_the_engines_or_the_texts(kind: str, here: tuple[Any, Any]):
    """`plain` gives text and a count of tokens that fits it, `other` one that doesn't."""
    fake = Fake(*here)
    fake.kind = kind
    sampling = Sampling(samples=2, max_tokens=24, seed=5)
    with served(fake.answer) as url:
        asked = sampler_at(f"{url}#thinking", here)
        traces = {trace.key: trace for trace in sample(asked, here[1], FEW, sampling)}
    for prompt in FEW:
        ids = encode(here[1], prompt)
        for number in range(2):
            seed = engines.seed_of(5, (prompt.id, number))
            (answer,) = decode(
                here[0], [Request(ids, stream_key(seed, "", 0))], max_tokens=24,
                stop=stop_ids(*here), temperature=0.7, top_p=0.9,
            )  # fmt: skip
            assert traces[prompt.id, number].token_ids == answer.token_ids
    counts = asked.counts
    assert (counts.requests, counts.from_text) == (6, 0 if kind == "vllm" else 6)
    assert counts.retokenised == (6 if kind == "other" else 0)
    assert len({body["seed"] for body in fake.asked}) == 6
    if kind == "vllm":
        first = fake.asked[0]
        assert first["repetition_penalty"] == 1.0 and first["stop_token_ids"] == [*asked.stop]


def test_what_failed_is_asked_again_and_what_ended_is_kept(
    here: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    fake, report = Fake(*here), tmp_path / engines.FILE
    place = engines.Destination(as_subject(resolve(MODEL)), tmp_path / "t" / "traces.jsonl")
    busy = (429, {"error": {"message": "slow down"}})
    with served(fake.answer) as url:
        engine = EngineSettings(name=f"{url}#thinking", parallel=1, attempts=2)
        fake.fail = {2: busy, 4: busy, 5: busy, 6: busy}
        with pytest.raises(BadInput, match=r"slow down\. Attempts: 2\..*the same command resumes"):
            engines.fill(engine, [place], FEW, GREEDY, ("cpu", None), report=report)
        assert len(stored_traces(place.file)) == 2
        fake.asked.clear()
        fake.fail = {}
        engines.fill(engine, [place], FEW, GREEDY, ("cpu", None), report=report)
        assert len(fake.asked) == 1
        engines.fill(engine, [place], FEW, GREEDY, ("cpu", None), report=report)
        assert len(fake.asked) == 1
    traces = {trace.key: trace for trace in read_traces(place.file)}
    assert traces == {trace.key: trace for trace in sample(*here, FEW, GREEDY)}
    rows = [row for _, row in jsonl.rows(report)]
    assert [row["requests"] for row in rows] == [2, 1]


def test_the_estimate_comes_first_and_requests_keep_their_pace(
    here: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
):
    fake = Fake(*here)
    with served(fake.answer) as url:
        asked = sampler_at(
            f"{url}#thinking", here, price_in=1000.0, price_out=10000.0, requests_per_minute=1200
        )
        waits: list[float] = []
        asked.endpoint.stopped.wait = waits.append  # pyright: ignore
        asks = [Ask((p.id, 0), encode(here[1], p), p) for p in FEW]
        assert len(list(asked.answers(asks, GREEDY))) == 3
    said = capsys.readouterr().err
    tokens = sum(len(ask.ids) for ask in asks)
    assert f"3 requests to thinking at {url}, {tokens} tokens in and at most 72 out" in said
    assert f"at most {tokens / 1000 + 0.72:.2f} at the prices given" in said
    assert max(waits) > 0.05 and max(waits) <= 0.1


def test_a_chat_server_is_given_messages(here: tuple[Any, Any]):
    fake = Fake(*here)
    with served(fake.answer) as url:
        asked = sampler_at(f"{url}#thinking", here, ask="chat")
        (trace,) = sample(asked, here[1], FEW[:1], GREEDY)
        assert trace == next(iter(sample(*here, FEW[:1], GREEDY)))
        assert fake.asked[0]["messages"] == list(FEW[0].messages)
        with pytest.raises(BadInput, match="as other tokens than the checkpoint here does"):
            list(sample(asked, here[1], FEW[1:2], GREEDY))


def test_an_engine_with_other_weights_is_found_out(server: Server, here: tuple[Any, Any]):
    asked = sampler_at(f"{server.url}#thinking", here)
    found = engines.agreement(asked, here[0], here[1], FEW[:1], GREEDY)
    assert found.differing == 0 and found.gap <= found.tolerance and found.tokens == 32
    other = resolve("builtin:instruct").model()
    found = engines.agreement(asked, other, here[1], FEW[:1], GREEDY)
    with pytest.raises(BadInput, match="doesn't write as instruct does: of its 32 greedy tokens"):
        engines.agreement_required(found, "instruct", "URL")


def test_verbs_answer_through_a_server_as_they_do_here(server: Server, tmp_path: Path):
    """Greedy: the same files but for the order of the lines, and no model is needed to evaluate."""
    url = f"{server.url}#thinking"
    settings: dict[str, Any] = dict(
        task="builtin:test", limit=2, samples=1, temperature=0.0, max_tokens=16
    )
    there = evaluate([MODEL], out=tmp_path / "there", engine=url, **settings)
    here = evaluate([MODEL], out=tmp_path / "here", **settings)
    assert there.candidates == here.candidates
    name = here.candidates[0].name
    lines = [(tmp_path / d / "traces" / f"{name}.jsonl").read_text() for d in ("there", "here")]
    assert lines[0] == lines[1]
    assert json.loads((tmp_path / "there" / "surgeon.json").read_text())["arguments"]["engine"]
    assert (tmp_path / "there" / engines.FILE).is_file()
    with pytest.raises(BadInput, match="engine is"):
        evaluate([MODEL], out=tmp_path / "there", **settings)


SERVER = """
import json, sys
sys.path.insert(0, {tests!r})
from endpoints import served
import threading
def answer(path, body, headers):
    if body is None:
        return 200, {{"data": [{{"id": sys.argv[2]}}]}}
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n")
    choice = {{"text": "x", "finish_reason": "length", "token_ids": [7, 8]}}
    return 200, {{"choices": [choice]}}
import endpoints
class At(endpoints.ThreadingHTTPServer):
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", int(sys.argv[3])), handler)
endpoints.ThreadingHTTPServer = At
with served(answer):
    threading.Event().wait()
"""


def test_a_server_is_started_for_each_candidate_and_stopped(
    pico_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(started, "LEAVING_S", 0.2)
    script = tmp_path / "server.py"
    script.write_text(SERVER.format(tests=str(Path(__file__).parent)))
    port = started.free_port()
    log = tmp_path / "log"
    engine = EngineSettings(
        name=f"http://127.0.0.1:{port}/v1#{{name}}",
        serve_command=shlex.join([sys.executable, str(script), str(log), "{name}", "{port}"]),
        checked_prompts=0,
    )
    both = subjects([str(pico_pair[0]), str(pico_pair[1])])
    places = [engines.Destination(s, tmp_path / f"{s.name}.jsonl") for s in both]
    engines.fill(engine, places, FEW[:1], GREEDY, ("cpu", None), report=tmp_path / "r")
    assert log.read_text().split() == [s.name for s in both]
    assert all(len(read_traces(place.file)) == 1 for place in places)
    assert not started.listens("127.0.0.1", port)
    broken = EngineSettings(
        name=engine.name, serve_command=f"{sys.executable} -c 'raise SystemExit(\"no memory\")'"
    )
    with pytest.raises(BadInput, match=r"ended with status 1 .*: no memory\."):
        engines.fill(broken, places, FEW[:2], GREEDY, ("cpu", None), report=tmp_path / "r")
    with served(lambda *_: (200, {})) as url:
        taken = EngineSettings(name=f"{url}#x", serve_command="true")
        with pytest.raises(BadInput, match=r"found a server at .* already"):
            engines.fill(taken, places, FEW[:2], GREEDY, ("cpu", None), report=tmp_path / "r")


def test_plain_answers_are_imported(here: tuple[Any, Any], tmp_path: Path):
    subject = as_subject(resolve(MODEL))
    tokenizer = tokenizer_of(subject)
    stop = stop_ids_of(subject, tokenizer)
    assert stop == stop_ids(*here) and LocalSampler(*here).stop == stop
    theirs = list(sample(*here, FEW, GREEDY))
    file = tmp_path / "plain.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt_id": t.prompt_id, "response": t.text, "finish_reason": t.finish_reason}
        for t in theirs
    ]
    rows.append({"id": FEW[0].id, "responses": ["7", "8"]})
    jsonl.write(file, rows)
    found = read_plain(file, FEW, tokenizer, GREEDY, stop)
    assert found.traces[: len(FEW)] == theirs and (found.from_text, found.changed) == (5, 0)
    assert [t.sample for t in found.traces[-2:]] == [1, 2]
    assert all(t.token_ids[-1] in stop for t in found.traces[-2:])
    jsonl.write(file, [{"prompt_id": "nobody", "response": "x"}])
    with pytest.raises(BadInput, match=r"plain\.jsonl:1: found an answer to 'nobody'"):
        read_plain(file, FEW, tokenizer, GREEDY, stop)
    jsonl.write(file, [rows[0] | {"sample": 0}, rows[0] | {"sample": 0}])
    with pytest.raises(BadInput, match=r"sample 0 of prompt .* was already there"):
        read_plain(file, FEW, tokenizer, GREEDY, stop)


def test_a_ranking_of_imported_answers(pico_pair: Any, tmp_path: Path):
    prompts = tmp_path / "mini.jsonl"
    jsonl.write(prompts, [{"id": "a", "prompt": "w1 w2"}, {"id": "b", "prompt": "w3"}])
    file = tmp_path / "answers.jsonl"
    words = " ".join(f"w{n} + {n % 10}" for n in range(24))
    jsonl.write(file, [{"prompt_id": p, "response": [words, words[:-8]]} for p in "ab"])
    result = rank(
        [str(pico_pair[0])], mini_set=str(prompts), out=tmp_path / "out", responses=str(file),
        row_tokens=2, top_k=6,
    )  # fmt: skip
    assert result.candidates[0].responses == 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (dict(name="localhost:8000"), "expected local, vllm or URL#MODEL"),
        (dict(serve_command="x"), "found serve_command = x without a server"),
        (dict(name="vllm"), "needs vllm, which isn't installed"),
        (dict(name="http://127.0.0.1:9/v1#m"), "can't be reached"),
        (dict(name="http://127.0.0.1:9/v1"), "expected URL#model"),
    ],
)
def test_what_isnt_there_is_said_before_anything_is_made(settings: dict[str, Any], line: str):
    with pytest.raises(BadInput, match=line) as caught:
        engines.require_engine(
            EngineSettings(**settings), [as_subject(resolve(MODEL))], FEW, asks=True
        )
    assert "\n" not in str(caught.value)


def test_a_family_needs_a_server_for_each(pico_pair: Any, server: Server):
    both = subjects([str(pico_pair[0]), str(pico_pair[1])])
    one = EngineSettings(name=f"{server.url}#thinking")
    with pytest.raises(BadInput, match="found 2 candidates and one server"):
        engines.require_engine(one, both, FEW, asks=True)
    named = EngineSettings(name=f"{server.url}#{{name}}")
    with pytest.raises(BadInput, match="has no model"):
        engines.require_engine(named, both, FEW, asks=True)
    virtual = both[0]._replace(checkpoint=None)
    with pytest.raises(BadInput, match="is virtual, so no server can have loaded it"):
        engines.require_engine(one, [virtual], FEW, asks=True)


def test_the_weights_that_are_pushed_are_the_students(pico_pair: Any):
    """With the adapter folded in, under the names of the files."""
    import torch

    from surgeon.checkpoint import Checkpoint
    from surgeon.distill.pushing import weights_of
    from surgeon.settings.training import Tuning
    from surgeon.training.tuning import folded, tune

    checkpoint = Checkpoint.open(pico_pair[0])
    model = checkpoint.model(dtype=torch.float32)
    before = weights_of(model, checkpoint)
    assert before.keys() == checkpoint.tensors.keys()
    tune(model, Tuning())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    with folded(model):
        after = weights_of(model, checkpoint)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("proj" in name for name in changed)
    (logits,) = (model(torch.tensor([[5, 6, 7]])).logits,)
    plain = checkpoint.model(dtype=torch.float32)
    plain.load_state_dict(after, strict=False)
    torch.testing.assert_close(plain(torch.tensor([[5, 6, 7]])).logits, logits)
