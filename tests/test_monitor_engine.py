"""Monitored answers from an engine that shows no activations: a small server stands for it."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from endpoints import Said, served
from test_monitor import MODEL, lines, untrained
from test_neureasoner_steps import tokenizer_of
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from surgeon import endpoint
from surgeon.checkpoint import resolve
from surgeon.decoding import Decoder, Request, stream_key
from surgeon.engines.completions import Continuation
from surgeon.errors import BadInput
from surgeon.monitor import MonitoredRun, monitor
from surgeon.monitor.relay import _Reader
from surgeon.neureasoner.steps import StepEnds
from surgeon.traces import read_traces, stop_ids
from surgeon.watch.monitor import Monitor

TOKENS = 80
NAMES = ("thinking", "instruct")
STANDARD = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "n"}


class Engine:
    """Completions of built-in models, in the manner of one of several servers.

    `kind` is `vllm` (gives token ids, keeps the stop string, says what stopped it), `sglang` (text
    without the stop string, says what stopped it) or `plain` (nothing beyond the standard, and
    anything else in a request is refused).
    """

    def __init__(self) -> None:
        self.tokenizer = resolve(MODEL).tokenizer()
        self.models = {name: resolve(f"builtin:{name}").model() for name in NAMES}
        self.lock = threading.Lock()
        self.reset()

    def reset(self, kind: str = "vllm", fail: Callable[[int], Any] = lambda _: None) -> None:
        self.kind, self.fail = kind, fail
        self.asked: list[dict[str, Any]] = []

    def answer(self, path: str, body: dict[str, Any] | None, _: Any) -> Said:
        if body is None:
            return 200, {"data": [{"id": name} for name in NAMES]}
        assert path == "/v1/completions"
        with self.lock:
            self.asked.append(body)
            failure = self.fail(len(self.asked))
            if failure is not None:
                return failure
            if self.kind == "plain" and set(body) - STANDARD:
                return 400, {"error": {"message": f"unknown: {sorted(set(body) - STANDARD)}"}}
            return 200, {"choices": [self.completion(body)]}

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.models[body["model"]]
        stop = stop_ids(model, self.tokenizer)
        decoder = Decoder(
            model, stop=stop, rows=1, max_tokens=body["max_tokens"],
            temperature=body["temperature"], top_p=body["top_p"],
        )  # fmt: skip
        decoder.add(0, Request(body["prompt"], stream_key(body["seed"], "", 0)))
        ids, ended, text, by = [], [], "", None
        while decoder.busy and not by:
            for _, token, *_ in decoder.step():
                (ended if token in stop else ids).append(token)
            text = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            by = next((end for end in body.get("stop", []) if end in text), None)
        finish = "stop" if by or ended else "length"
        if self.kind == "vllm":
            return dict(text=text, finish_reason=finish, stop_reason=by, token_ids=[*ids, *ended])
        row = dict(text=text.removesuffix(by) if by else text, finish_reason=finish)
        return row if self.kind == "plain" else {**row, "matched_stop": by}


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """`(engine, spec)` of a server that runs while the tests do."""
    made = Engine()
    with served(made.answer) as url:
        yield made, f"{url}#thinking"


@pytest.fixture(scope="module")
def sometimes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor whose levels fire here and there in greedy answers."""
    place = tmp_path_factory.mktemp("engine")
    made = untrained()
    made.save(place)
    monitor(
        MODEL, prompts="builtin:test", out=place / "out", limit=3, max_tokens=TOKENS,
        temperature=0.0, monitor_file=str(place),
    )  # fmt: skip
    rows = [r for row in lines(place / "out" / "readings.jsonl") for r in row["readings"]]
    for level, detector in made.detectors.items():
        found = sorted({r["probability"] for r in rows if r["level"] == level})
        # Halfway between two, well apart, so that no last digit decides.
        n = len(found) * 3 // 4
        detector.threshold.fill_((found[n - 1] + found[n]) / 2)
    made.save(place)
    return place


@pytest.fixture
def run(sometimes: Path, tmp_path: Path) -> Callable[..., MonitoredRun]:
    def call(name: str = "out", **changes: Any) -> MonitoredRun:
        arguments: dict[str, Any] = dict(
            prompts="builtin:test", out=tmp_path / name, limit=3, max_tokens=TOKENS,
            temperature=0.0, monitor_file=str(sometimes),
        )  # fmt: skip
        return monitor(MODEL, **(arguments | changes))

    return call


def of(place: Path) -> tuple[dict[tuple[str, int], Any], list[Any]]:
    """The traces of a run by prompt, and its firings but for the last digits."""
    traces = {(t.prompt_id, t.sample): t for t in read_traces(place / "traces.jsonl")}
    firings = [
        (r["prompt_id"], r["sample"], r["position"], r["level"], r["step"], r["forced"])
        for r in lines(place / "firings.jsonl")
    ]
    return traces, sorted(firings)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "plain"])
def test_the_engines_answers_are_those_made_here(
    kind: str, engine: Any, run: Callable[..., MonitoredRun], tmp_path: Path
):
    """Greedy, with the same weights on both sides: the same tokens, firings and readings."""
    server, url = engine
    server.reset(kind)
    there, here = run("there", engine=url), run("here")
    assert of(tmp_path / "there") == of(tmp_path / "here")
    assert len(of(tmp_path / "here")[1]) > 3
    for level, row in here.levels.items():
        assert asdict(there.levels[level]) == pytest.approx(asdict(row))
    tokens = [
        sorted((r["prompt_id"], r["readings"][-1]["position"]) for r in lines(tmp_path / name))
        for name in ("there/readings.jsonl", "here/readings.jsonl")
    ]
    assert tokens[0] == tokens[1]
    stops = [body.get("stop") for body in server.asked]
    if kind == "plain":
        # It refused what it doesn't know, didn't say what stopped it, and was asked without.
        assert stops[-1] is None and "return_token_ids" not in server.asked[-1]
        assert server.asked[-1]["max_tokens"] > 1
    else:
        assert set(map(str, stops)) == {"['\\n\\n']"}


def test_a_closing_tag_of_several_tokens_is_found_there_as_here(
    engine: Any, sometimes: Path, run: Callable[..., MonitoredRun], tmp_path: Path
):
    server, url = engine
    server.reset()
    made = Monitor.load(sometimes)
    tags = replace(made.settings, thinking=("<think>", "4 = 8"), closes=True)
    replace(made, settings=tags).save(tmp_path / "tags.safetensors")
    for name, more in (("there", dict(engine=url)), ("here", {})):
        run(name, monitor_file=str(tmp_path / "tags.safetensors"), **more)
    traces, firings = of(tmp_path / "here")
    assert of(tmp_path / "there") == (traces, firings) and firings
    assert any("4 = 8" in trace.text for trace in traces.values())
    read = [lines(tmp_path / name / "readings.jsonl") for name in ("there", "here")]
    places = [
        sorted(
            (row["prompt_id"], r["position"], r["level"]) for row in some for r in row["readings"]
        )
        for some in read
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("text, stopped", [("A", "\n\n"), ("A\n\n", None)])
def test_a_step_that_comes_as_text_has_the_tokens_of_a_text_that_goes_on(
    text: str, stopped: str | None
):
    tokenizer = tokenizer_of("A", "\n", "\n\n")
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(r"\w+|\s+(?!\S)|\s+"), "isolated")
    reader: Any = _Reader.__new__(_Reader)
    reader.tokenizer, reader.ends, reader.stop = tokenizer, StepEnds(tokenizer), frozenset({1})
    piece = Continuation(text, None, "stop", stopped, says=True)
    ids = reader.tokens(SimpleNamespace(ids=[]), piece, True)
    assert tokenizer.convert_ids_to_tokens(ids) == ["A", "\n", "\n"]


def test_a_model_whose_memory_cant_be_continued_reads_all_anew(
    engine: Any, run: Callable[..., MonitoredRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Recurrent layers, say, whose state takes one token after others."""
    server, url = engine
    server.reset()
    monkeypatch.setattr("surgeon.monitor.relay.chunk_cache", lambda _: None)
    run("there", engine=url, limit=2)
    run("here", limit=2)
    assert of(tmp_path / "there") == of(tmp_path / "here")
    assert of(tmp_path / "here")[1]


def test_whole_answers_come_back_with_their_end(engine: Any, tmp_path: Path):
    """Without a watched level nothing is cut: the stop token ends the trace, as it does here."""
    server, url = engine
    checkpoint = resolve("builtin:instruct")
    replace(untrained(), checkpoint=checkpoint.digest).save(tmp_path)
    settings: dict[str, Any] = dict(
        prompts="builtin:test", limit=3, max_tokens=100, temperature=0.0, levels=["none"],
        monitor_file=str(tmp_path),
    )  # fmt: skip
    monitor(checkpoint.spec, out=tmp_path / "here", **settings)
    here = of(tmp_path / "here")[0]
    assert {trace.finish_reason for trace in here.values()} == {"stop"}
    for kind in ("vllm", "sglang", "plain"):
        server.reset(kind)
        there = url.replace("#thinking", "#instruct")
        monitor(checkpoint.spec, out=tmp_path / kind, engine=there, **settings)
        assert of(tmp_path / kind)[0] == here
        assert all("stop" not in body for body in server.asked)


def test_pieces_draw_different_numbers_and_the_same_in_another_run(
    engine: Any, run: Any, tmp_path: Path
):
    server, url = engine
    server.reset()
    settings: dict[str, Any] = dict(engine=url, temperature=1.0, top_p=1.0, samples=2, limit=2)
    run("one", **settings)
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == len(seeds) > 20
    run("two", batch=1, **settings)
    assert of(tmp_path / "one") == of(tmp_path / "two")


def test_it_retries_and_goes_on(engine: Any, run: Any, tmp_path: Path, monkeypatch: Any):
    server, url = engine
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    failures = {
        2: (503, {"error": {"message": "busy"}}),
        3: (200, b"<html>not JSON"),
        5: (200, {"choices": []}),
        7: (429, {"error": "slow down"}),
    }
    server.reset(fail=failures.get)
    run("there", engine=url, limit=1)
    run("here", limit=1)
    assert of(tmp_path / "there") == of(tmp_path / "here")


def test_an_engine_that_goes_down_loses_the_answers_in_flight_only(
    engine: Any, run: Any, tmp_path: Path, monkeypatch: Any
):
    server, url = engine
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    server.reset(fail=lambda n: (500, {"error": {"message": "out of memory"}}) if n > 15 else None)
    with pytest.raises(BadInput, match=r"answered 500: out of memory\. Attempts: 6\.") as e:
        run("there", engine=url, batch=1)
    assert "\n" not in str(e.value) and "the same command resumes" in str(e.value)
    kept = len(read_traces(tmp_path / "there.partial" / "traces.jsonl"))
    assert 0 < kept < 3
    server.reset()
    run("there", engine=url)
    asked = {tuple(body["prompt"][:20]) for body in server.asked}
    assert len(asked) == 3 - kept
    run("here")
    assert of(tmp_path / "there") == of(tmp_path / "here")


def test_a_finished_run_needs_no_engine(engine: Any, run: Any):
    server, _ = engine
    server.reset()
    with served(server.answer) as url:
        settings: dict[str, Any] = dict(engine=f"{url}#thinking", limit=1, max_tokens=20)
        first = run(**settings)
    assert run(**settings) == replace(first, already=True)


def test_a_refusal_is_one_clear_line(engine: Any, run: Any, tmp_path: Path):
    server, url = engine
    server.reset(fail=lambda _: (404, {"error": {"message": "no such route"}}))
    with pytest.raises(BadInput, match=r"thinking at .* answered 404: no such route"):
        run(engine=url)
    server.reset(fail=lambda _: (200, {"choices": [{"text": "", "finish_reason": "length"}]}))
    with pytest.raises(BadInput, match="wrote nothing"):
        run(engine=url)


def test_what_isnt_there_is_said_before_anything_is_made(engine: Any, run: Any, tmp_path: Path):
    _, url = engine
    with pytest.raises(BadInput, match=r"can't be reached .* Is the server running"):
        run(engine="http://127.0.0.1:9/v1#thinking")
    with pytest.raises(BadInput, match=r"no model 'other'; .* thinking"):
        run(engine=url.replace("#thinking", "#other"))
    assert list(tmp_path.iterdir()) == []
