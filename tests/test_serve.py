"""A server on 127.0.0.1, asked by the real client of OpenAI's endpoints: what it answers."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import MODEL, PROMPTS, TOKENS, Model, Server, joined, serving
from test_monitor import lines, untrained

from surgeon.decoding import Request, context_limit, stream_key
from surgeon.monitor import monitor
from surgeon.serve.query import read_completion
from surgeon.serve.replies import PartialAnswer
from surgeon.serve.service import load
from surgeon.serve.worker import NextToken
from surgeon.settings.serve import ServeSettings
from surgeon.traces import read_traces
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import Firing, Watching


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


# --- answers --------------------------------------------------------------------------------------


def test_an_answer_is_what_decoding_gives_for_the_seed(server: Server, here: Model):
    for number, settings in enumerate(
        (dict(), dict(temperature=0), dict(temperature=1.3, top_p=1), dict(top_p=0))
    ):
        reply = server.chat(number, **settings)
        greedy = settings.get("top_p") == 0
        (answer,) = here.decode(
            here.request(number), **(dict(temperature=0) if greedy else settings)
        )
        (choice,) = reply.choices
        assert choice.message.content == here.text(answer)
        assert choice.message.role == "assistant"
        assert choice.finish_reason == answer.finish_reason
        prompt, given = len(here.ids(number)), len(answer.token_ids)
        assert reply.usage.to_dict() == {
            "prompt_tokens": prompt, "completion_tokens": given, "total_tokens": prompt + given,
        }  # fmt: skip
        assert reply.object == "chat.completion" and reply.model == "thinking"
        assert abs(reply.created - time.time()) < 600 and reply.id.startswith("chatcmpl-")


def test_an_answer_that_ends_by_itself_is_without_its_stop_token(server: Server, here: Model):
    reply = server.chat(0, max_tokens=1000, extra_body={"return_token_ids": True})
    (answer,) = here.decode(here.request(0), max_tokens=1000)
    (choice,) = reply.choices
    assert answer.finish_reason == choice.finish_reason == "stop"
    assert choice.message.content == here.text(answer)
    assert "</think>" in choice.message.content and "<|im_end|>" not in choice.message.content
    assert choice.token_ids == answer.token_ids


def test_the_pieces_of_a_stream_are_the_text(server: Server, alone: list[str]):
    pieces = list(server.chat(1, stream=True, stream_options={"include_usage": True}))
    *said, count = pieces
    assert {piece.object for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece.id for piece in pieces}) == 1
    choices = [piece.choices[0] for piece in said]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == alone[1]
    assert len(choices) > 10
    assert [choice.finish_reason for choice in choices] == [None] * (len(said) - 1) + ["length"]
    assert [piece.usage for piece in said] == [None] * len(said)
    assert count.choices == [] and count.usage.completion_tokens == TOKENS
    assert count.usage.to_dict() == server.chat(1).usage.to_dict()


def test_a_stream_is_server_sent_events(server: Server):
    body = dict(prompt="Start 3.", stream=True, max_tokens=5, n=2, return_token_ids=True)
    status, text, headers = server.send("POST", "/v1/completions", body)
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    events = text.split("\n\n")
    assert events.pop() == "" and events.pop() == "data: [DONE]"
    choices = []
    for line in events:
        assert line.startswith("data: {") and "\n" not in line
        piece = json.loads(line.removeprefix("data: "))
        assert piece["object"] == "text_completion" and "usage" not in piece
        choices += piece["choices"]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert sum(len(choice["token_ids"]) for choice in mine) == 5
        assert [choice["finish_reason"] for choice in mine][-1] == "length"


def test_a_seed_gives_the_answer_again_and_none_another(server: Server):
    texts = [server.chat(2, seed=seed).choices[0].message.content for seed in (5, 5, 6)]
    assert texts[0] == texts[1] != texts[2]
    # Two answers may be equal by chance, eight are not.
    free = [server.chat(2, seed=None, temperature=1.5).choices[0].message.content for _ in range(8)]
    assert len(set(free)) > 1


def test_clients_at_once_get_the_answers_they_get_alone(server: Server, alone: list[str]):
    """Four, two of which wait; every other one streams."""

    def ask(number: int) -> str:
        if number % 2:
            return joined(server.chat(number, stream=True))[0]
        return server.chat(number).choices[0].message.content

    with ThreadPoolExecutor(4) as pool:
        for numbers in (range(4), range(4, 8)):
            assert list(pool.map(ask, numbers)) == [alone[number] for number in numbers]


def test_choices_are_several_answers(server: Server, here: Model):
    answers = here.decode(*(here.request(1, choice) for choice in range(3)))
    reply = server.chat(1, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert texts == [here.text(answer) for answer in answers]
    assert len(set(texts)) == 3
    assert reply.usage.completion_tokens == sum(len(answer.token_ids) for answer in answers)
    streamed = ["", "", ""]
    for piece in server.chat(1, n=3, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_an_answer_ends_before_a_stop_string_and_its_row_is_free(
    server: Server, here: Model, alone: list[str]
):
    assert "\n\n" in alone[4]
    before = server.worker.answered
    settings: dict[str, Any] = dict(max_tokens=2000, stop=["nowhere", "\n\n"])
    reply = server.chat(4, **settings)
    (choice,) = reply.choices
    assert choice.message.content == alone[4].partition("\n\n")[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "\n\n")
    assert reply.usage.completion_tokens < TOKENS
    assert server.worker.load == (0, 0) and server.worker.answered == before + 1
    text, last = joined(server.chat(4, stream=True, **settings))
    assert text == choice.message.content
    assert (last.finish_reason, last.stop_reason) == ("stop", "\n\n")
    kept = server.chat(4, stop="\n\n", extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == choice.message.content + "\n\n"


def test_max_tokens_goes_by_both_names_and_the_context_ends_an_answer(server: Server, here: Model):
    for name in ("max_tokens", "max_completion_tokens"):
        reply = server.chat(0, **{"max_tokens": openai.omit, name: 3})
        assert reply.usage.completion_tokens == 3
        assert reply.choices[0].finish_reason == "length"
    limit = context_limit(here.model)
    prompt = (here.ids(0) * limit)[: limit - 4]
    settings: dict[str, Any] = dict(model="thinking", temperature=2, top_p=1, seed=0)
    reply = server.client.completions.create(prompt=prompt, max_tokens=100, **settings)
    assert reply.usage and reply.usage.total_tokens == limit
    assert reply.choices[0].finish_reason == "length"


def test_completions_go_on_from_text_or_tokens(server: Server, here: Model):
    text = "Start 3. Apply"
    ids = here.tokenizer(text)["input_ids"]
    requests = [Request(prompt, stream_key(7, "serve", 0)) for prompt in (ids, here.ids(5))]
    texts = [here.text(answer) for answer in here.decode(*requests)]
    settings: dict[str, Any] = dict(model="thinking", seed=7, max_tokens=TOKENS)

    def ask(prompt: Any) -> list[str]:
        reply = server.client.completions.create(prompt=prompt, **settings)
        assert reply.object == "text_completion"
        return [choice.text for choice in reply.choices]

    assert ask(text) == ask(ids) == ask([ids]) == texts[:1]
    assert ask([ids, here.ids(5)]) == texts
    assert ask([text, text]) == texts[:1] * 2
    stream = server.client.completions.create(prompt=ids, stream=True, **settings)
    assert "".join(piece.choices[0].text for piece in stream) == texts[0]
    reply = server.client.completions.create(model="thinking", prompt=text, temperature=0)
    assert reply.usage and reply.usage.completion_tokens == 16


def test_messages_are_put_as_the_template_says(server: Server, here: Model):
    """Parts of text are one text, `developer` is `system`, and thinking may be switched off."""
    parts: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Start 3."}]},
    ]
    reply = server.client.chat.completions.create(
        model="thinking", messages=parts, max_tokens=1,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )  # fmt: skip
    plain = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Start 3."},
    ]  # fmt: skip
    encoded = here.tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, return_dict=True, enable_thinking=False
    )
    assert reply.usage and reply.usage.prompt_tokens == len(encoded["input_ids"])


# --- the monitor ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sometimes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor whose levels fire here and there in greedy answers."""
    place = tmp_path_factory.mktemp("serve")
    made = untrained()
    made.save(place)
    monitor(
        MODEL, prompts="builtin:test", out=place / "out", limit=3, max_tokens=100,
        temperature=0.0, monitor_file=str(place),
    )  # fmt: skip
    rows = [r for row in lines(place / "out" / "readings.jsonl") for r in row["readings"]]
    for level, detector in made.detectors.items():
        found = sorted({r["probability"] for r in rows if r["level"] == level})
        # Halfway between two, so that no last digit decides.
        n = len(found) * 3 // 4
        detector.threshold.fill_((found[n - 1] + found[n]) / 2)
    made.save(place)
    return place


@pytest.fixture(scope="module")
def monitored(sometimes: Path) -> Iterator[Server]:
    with serving(rows=4, monitor_file=str(sometimes)) as made:
        yield made


def test_firings_come_with_the_answer(monitored: Server, here: Model, sometimes: Path):
    """The text with what was forced, and the firings, in both modes, also side by side."""
    watching = Watching(here.model, here.tokenizer, Monitor.load(sometimes))
    requests = [here.request(number) for number in range(4)]
    answers = here.decode(*requests, max_tokens=100, watcher=watching)
    plain = here.decode(*requests, max_tokens=100)
    expected = []
    for answer in answers:
        fired = [f for f in watching.firings[answer.index] if f.position < len(answer.token_ids)]
        expected.append([(f.position, f.level, f.step) for f in fired])
    assert sum(map(len, expected)) > 4

    def ask(number: int) -> Any:
        (choice,) = monitored.chat(number, max_tokens=100).choices
        return choice.message.content, choice.surgeon["firings"]

    def follow(number: int) -> Any:
        *before, last = [p.choices[0] for p in monitored.chat(number, max_tokens=100, stream=True)]
        assert not any("surgeon" in choice.model_extra for choice in before)
        text = "".join(choice.delta.content or "" for choice in [*before, last])
        return text, last.surgeon["firings"]

    for call in (ask, follow):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(call, range(4)))
        for (text, firings), answer, other, rows in zip(
            found, answers, plain, expected, strict=True
        ):
            assert text == here.text(answer)
            assert [(f["position"], f["level"], f["step"]) for f in firings] == rows
            assert all(0 <= f["probability"] <= 1 for f in firings)
            assert (text != here.text(other)) == bool(rows)


def test_steps_that_are_drawn_anew_are_not_sent_before_they_stay(here: Model, sometimes: Path):
    """A stream has the text of the answer, which is the same again; sixty-four rows are watched."""
    settings: dict[str, Any] = dict(
        monitor_file=str(sometimes), action="choose", draws=2, levels=["intra"]
    )
    with serving(rows=64, **settings) as made:

        def ask(number: int) -> Any:
            (choice,) = made.chat(number, max_tokens=80).choices
            return choice.message.content, choice.surgeon["firings"]

        def follow(number: int) -> Any:
            pieces = [piece.choices[0] for piece in made.chat(number, max_tokens=80, stream=True)]
            text = "".join(choice.delta.content or "" for choice in pieces)
            return text, pieces[-1].surgeon["firings"]

        with ThreadPoolExecutor(8) as pool:
            asked, followed = list(pool.map(ask, range(8))), list(pool.map(follow, range(8)))
    plain = here.decode(*[here.request(number) for number in range(8)], max_tokens=80)
    for (text, firings), (streamed, rows), other in zip(asked, followed, plain, strict=True):
        assert text == streamed
        assert [(f["position"], f["step"], f["redrawn"]) for f in firings] == [
            (f["position"], f["step"], f["redrawn"]) for f in rows
        ]
        assert all(f["redrawn"] > 0 and f["level"] == "intra" for f in firings)
        assert firings or text == here.text(other)
    assert any(firings for _, firings in asked)


def test_firings_that_an_answers_end_cut_off_are_left_out(monitored: Server, here: Model):
    (whole,) = monitored.chat(0, max_tokens=100).choices
    first = whole.surgeon["firings"][0]
    for more, expected in ((0, []), (1, [first["position"]])):
        (choice,) = monitored.chat(0, max_tokens=first["position"] + more).choices
        assert [firing["position"] for firing in choice.surgeon["firings"]] == expected
    # A separator that comes before the trigger was the last token.
    body = json.dumps(dict(prompt=[1])).encode()
    offer = load(ServeSettings(checkpoint=MODEL)).offer
    written = PartialAnswer(here.tokenizer, read_completion(body, here.tokenizer, offer))
    written.take(NextToken(0, 5, "length", [Firing(1, "intra", 0.9, "a step")]))
    assert written.shown_firings == []


def test_the_models_page_says_what_is_watched(monitored: Server, server: Server):
    pages = [one.send("GET", "/v1/models")[1]["data"] for one in (monitored, server)]
    assert [page["surgeon"]["levels"] for (page,) in pages] == [["intra", "inter", "instance"], []]
    assert "surgeon" not in server.chat(0, max_tokens=1).choices[0].model_extra


def test_it_is_an_engine_for_monitored_runs(server: Server, sometimes: Path, tmp_path: Path):
    """Greedy, this server writing and the model here reading: as with the model here alone."""
    settings: dict[str, Any] = dict(
        prompts="builtin:test", limit=3, max_tokens=90, temperature=0.0,
        monitor_file=str(sometimes),
    )  # fmt: skip
    asked = server.worker.answered
    monitor(MODEL, out=tmp_path / "there", engine=f"{server.url}#thinking", batch=3, **settings)
    monitor(MODEL, out=tmp_path / "here", **settings)
    there, here = (
        {(t.prompt_id, t.sample): t for t in read_traces(tmp_path / name / "traces.jsonl")}
        for name in ("there", "here")
    )
    assert there == here
    firings = [
        sorted(
            (r["prompt_id"], r["position"], r["level"], r["forced"])
            for r in lines(tmp_path / name / "firings.jsonl")
        )
        for name in ("there", "here")
    ]
    assert firings[0] == firings[1] and len(firings[0]) > 3
    # Step by step, each from where the last one ended.
    assert server.worker.answered - asked > 20
