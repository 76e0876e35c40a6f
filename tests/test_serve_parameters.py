"""Parameters of requests beyond the plain draw: log-probabilities, penalties, grammars, tools."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from serving import CHAT, MODEL, TIMEOUT_S, Model, Server, joined, serving, until

from surgeon import builtin
from surgeon.decoding import Shaping
from surgeon.serve.query import read_chat
from surgeon.serve.replies import PartialAnswer
from surgeon.serve.service import load
from surgeon.serve.spelling import Spelling, Spelt
from surgeon.serve.tools import FORMS, FreeCalls, form_of
from surgeon.serve.worker import NextToken
from surgeon.settings.serve import ServeSettings

HERMES = """\
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}
Write <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": [1, 2]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
STOP: Any = {"type": "function", "function": {"name": "stop", "parameters": EMPTY}}
PAIR: Any = {
    "type": "object",
    "properties": {"x": {"enum": ["left", "right"]}, "y": {"type": "boolean"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
ASKED = dict(type="json_schema", json_schema=dict(name="pair", schema=PAIR, strict=True))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=4, max_waiting=4, cors=["https://page.example"]) as made:
        yield made


@pytest.fixture(scope="module")
def here() -> Model:
    return Model.load()


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same model, whose template takes tools."""
    path = tmp_path_factory.mktemp("serve") / "tooled"
    shutil.copytree(builtin.path("thinking"), path)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if name.endswith("jinja") or not (path / "chat_template.jinja").exists():
            (path / "chat_template.jinja").write_text(HERMES)
    with serving(rows=4, checkpoint=str(path)) as made:
        yield made


# --- log-probabilities ----------------------------------------------------------------------------


def reference(here: Model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return here.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_log_probabilities_are_of_the_models_own_distribution(server: Server, here: Model):
    """Whatever the temperature; the stop token isn't told of."""
    reply = server.chat(
        0, logprobs=True, top_logprobs=3, max_tokens=1000,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    (choice,) = reply.choices
    content = choice.logprobs.content
    assert choice.finish_reason == "stop" and len(content) == len(choice.token_ids) - 1
    assert "".join(entry.token for entry in content) == choice.message.content
    assert bytes(b for entry in content for b in entry.bytes).decode() == choice.message.content
    prompt = here.ids(0)
    logprob_TV = reference(here, [*prompt, *choice.token_ids])
    for i, entry in enumerate(content):
        row_V = logprob_TV[len(prompt) - 1 + i]
        assert entry.logprob == pytest.approx(float(row_V[choice.token_ids[i]]), abs=1e-3)
        values = [one.logprob for one in entry.top_logprobs]
        assert values == pytest.approx(row_V.topk(3).values.tolist(), abs=1e-3)


def test_a_stream_tells_the_same_log_probabilities(server: Server):
    asked: dict[str, Any] = dict(logprobs=True, top_logprobs=2, max_tokens=20)
    whole = server.chat(1, **asked).choices[0]
    entries: list[Any] = []
    for piece in server.chat(1, stream=True, **asked):
        for choice in piece.choices:
            entries += choice.logprobs.content if choice.logprobs else []
    assert [e.to_dict() for e in entries] == [e.to_dict() for e in whole.logprobs.content]
    bare = server.chat(1, logprobs=True, max_tokens=3).choices[0].logprobs
    assert [entry.top_logprobs for entry in bare.content] == [[], [], []]
    assert server.chat(1, max_tokens=3).choices[0].logprobs is None


@pytest.mark.parametrize("given", ["text", "ids"])
@pytest.mark.parametrize("most", [0, 1, 4])
def test_an_echoed_prompt_is_told_of_as_lm_eval_asks(
    server: Server, here: Model, given: str, most: int
):
    """Two prompts of several tokens, the first of which nothing comes before."""
    texts = ["Start 3. Apply +4.", "So 7"]
    ids = [here.tokenizer(text)["input_ids"] for text in texts]
    reply = server.client.completions.create(
        model="thinking", prompt=texts if given == "text" else ids, max_tokens=most, echo=True,
        logprobs=1, temperature=0, seed=1234,
    )  # fmt: skip
    assert len(reply.choices) == 2
    for text, prompt, choice in zip(texts, ids, reply.choices, strict=True):
        told: Any = choice.logprobs
        assert choice.text.startswith(text) and choice.finish_reason == "length"
        assert "".join(told.tokens) == choice.text
        assert len(told.tokens) == len(prompt) + most
        assert [choice.text[at] for at in told.text_offset] == [t[0] for t in told.tokens]
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        row_TV = reference(here, prompt)
        own = [float(row_TV[i, token]) for i, token in enumerate(prompt[1:])]
        assert told.token_logprobs[1 : len(prompt)] == pytest.approx(own, abs=1e-3)
        for token, value, top in zip(
            told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
        ):
            assert top[token] == value and len(top) <= 2
        # The answer is greedy: each of its tokens is the likeliest.
        for token, top in zip(
            told.tokens[len(prompt) :], told.top_logprobs[len(prompt) :], strict=True
        ):
            assert max(top, key=top.__getitem__) == token
    assert reply.usage is not None and reply.usage.completion_tokens == 2 * most
    until(lambda: server.worker.load == (0, 0))


def test_an_echo_without_log_probabilities_is_the_text_alone(server: Server):
    ask: Any = dict(model="thinking", prompt="Start 3.", max_tokens=5, seed=3)
    plain = server.client.completions.create(**ask).choices[0]
    echoed = server.client.completions.create(**ask, echo=True).choices[0]
    assert echoed.text == "Start 3." + plain.text and echoed.logprobs is None
    told = server.client.completions.create(**ask, logprobs=0).choices[0].logprobs
    assert told is not None and told.tokens is not None and told.top_logprobs is not None
    assert "".join(told.tokens) == plain.text
    assert [len(top) for top in told.top_logprobs] == [1] * 5
    none = server.client.completions.create(**ask | dict(max_tokens=0), echo=True).choices[0]
    assert none.text == "Start 3."


def test_tokens_are_spelt_as_they_stand_in_a_text():
    """Byte-level BPE within a character, and SentencePiece's spaces and bytes."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    def fast(words: list[str], decoder: Any) -> Spelling:
        made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, words[0]))
        made.decoder = decoder  # pyright: ignore
        return Spelling(PreTrainedTokenizerFast(tokenizer_object=made))

    level = fast(["Ġhi", "é", "Ã", "©", "ðŁ"], decoders.ByteLevel())
    assert level[0] == Spelt(" hi", b" hi")
    assert level[2] == Spelt("\ufffd", b"\xc3") and level[3] == Spelt("\ufffd", b"\xa9")
    assert level[4] == Spelt("\ufffd", b"\xf0\x9f")
    assert level[99] == Spelt("", b"")
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    piece = fast(["▁hi", "hi", "<0xC3>", "<0x41>"], decoders.Sequence(steps))
    assert [piece[i].bytes for i in range(4)] == [b" hi", b"hi", b"\xc3", b"A"]
    assert piece[2].text == "\ufffd" and piece[0].text == " hi"


# --- what shapes the draw -------------------------------------------------------------------------


def test_penalties_and_bias_are_those_of_the_decoder(server: Server, here: Model):
    token = here.tokenizer.get_vocab()["Wait, check"]
    body = dict(repetition_penalty=1.3, min_p=0.05)
    reply = server.chat(
        2, frequency_penalty=0.4, presence_penalty=0.3, logit_bias={str(token): 2.5},
        extra_body=body,
    )  # fmt: skip
    shaping = Shaping(((token, 2.5),), 1.3, 0.4, 0.3, 0.05)
    (answer,) = here.decode(here.request(2)._replace(shaping=shaping))
    (plain,) = here.decode(here.request(2))
    assert reply.choices[0].message.content == here.text(answer) != here.text(plain)


def test_a_bias_of_100_and_a_neighbour_without_one(server: Server, here: Model):
    token = here.tokenizer.get_vocab()["So"]
    stream = server.chat(3, stream=True, max_tokens=1000)
    next(stream)
    reply = server.chat(0, logit_bias={str(token): 100}, max_tokens=5)
    assert reply.choices[0].message.content == "So" * 5
    (answer,) = here.decode(here.request(3), max_tokens=1000)
    assert joined(stream)[0] == here.text(answer)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=1e-300, min_p=1e-300),
        dict(temperature=5e-324),
        dict(temperature=1e-5, repetition_penalty=0.01),
        dict(temperature=2, repetition_penalty=10, frequency_penalty=2, min_p=1),
        dict(logit_bias={str(i): -100 for i in range(200)}, temperature=0.01),
    ],
    ids=str,
)
def test_extreme_settings_fail_nobody(server: Server, settings: dict[str, Any]):
    body = CHAT | dict(max_tokens=5, logprobs=True, top_logprobs=20) | settings
    status, reply, _ = server.send("POST", "/v1/chat/completions", body)
    assert status == 200 and reply["usage"]["completion_tokens"] <= 5
    if settings["temperature"] < 1e-5:
        cold = server.send("POST", "/v1/chat/completions", body | dict(temperature=0, min_p=0))[1]
        assert reply["choices"][0]["message"] == cold["choices"][0]["message"]


# --- grammars -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_an_answer_matches_its_schema(server: Server, temperature: float):
    for seed in range(3):
        reply = server.chat(
            seed, response_format=ASKED, temperature=temperature, max_tokens=400, n=2
        )
        for choice in reply.choices:
            assert choice.finish_reason == "stop"
            value = json.loads(choice.message.content)
            assert value["x"] in ("left", "right") and isinstance(value["y"], bool)
            assert set(value) == {"x", "y"}


def test_a_schema_may_have_the_bounds_of_64_bits(server: Server):
    """As other programs write them for their integers."""
    number = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "default": 2**63 - 1}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": number}}
    assert server.chat(0, response_format=schema, max_tokens=30).choices[0].message.content


def test_any_json_is_an_object_and_so_are_completions(server: Server):
    kind: Any = {"type": "json_object"}
    text = server.chat(0, response_format=kind, max_tokens=60, stream=True)
    assert joined(text)[0].lstrip().startswith("{")
    reply = server.client.completions.create(
        model="thinking", prompt="So", max_tokens=400, seed=1, extra_body={"response_format": ASKED}
    )
    assert set(json.loads(reply.choices[0].text)) == {"x", "y"}


def test_a_monitored_server_refuses_grammars(tmp_path: Path):
    from test_monitor import untrained

    untrained().save(tmp_path)
    with serving(rows=1, monitor_file=str(tmp_path)) as monitored:
        with pytest.raises(openai.BadRequestError, match="this server has a monitor"):
            monitored.chat(0, response_format=ASKED)
        assert monitored.chat(0, max_tokens=2, logprobs=True).choices[0].logprobs is not None


def test_an_answer_that_its_grammar_gives_up_on_fails_alone(
    server: Server, here: Model, monkeypatch: pytest.MonkeyPatch
):
    from surgeon.serve.grammar import Match

    def gives_up(self: Match, token_id: int) -> None:
        self.failure = "too much work"

    stream = server.chat(3, stream=True)
    next(stream)
    monkeypatch.setattr(Match, "accept", gives_up)
    with pytest.raises(openai.InternalServerError, match="too much work"):
        server.chat(0, response_format=ASKED)
    assert joined(stream)[0] == here.text(*here.decode(here.request(3)))
    until(lambda: server.worker.load == (0, 0))
    assert not server.worker.decoder.busy


# --- tools ----------------------------------------------------------------------------------------

CALLS = {
    "hermes": ('<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>', "HERMES"),
    "qwen-coder": (
        '<tool_call>\n<function=f>\n<parameter=a>\n[1, "é"]\n</parameter>\n'
        "</function>\n</tool_call>",
        "<tool_call>\n<function=example>",
    ),
    "mistral": ('[TOOL_CALLS][{"name": "f", "arguments": {"a": [1, "é"]}}]', "[TOOL_CALLS]"),
    "phi": ('<|tool_call|>[{"name":"f","arguments":{"a":[1,"é"]}}]<|/tool_call|>', "<|tool_call|>"),
    "llama": ('{"name": "f", "parameters": {"a": [1, "é"]}}', '{"name": , "parameters": }'),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_calls_are_read_in_pieces_of_any_size(form: str, size: int):
    text, template = CALLS[form]
    assert form_of(HERMES if template == "HERMES" else template) is FORMS[form]
    begins = "" if form == "llama" else "Well <t <"
    reader = FreeCalls(FORMS[form], thinking=False)
    whole = begins + text
    passed = "".join(reader.push(whole[i : i + size]) for i in range(0, len(whole), size))
    passed += reader.finish()
    assert passed == begins
    (call,) = reader.calls
    assert call.name == "f" and json.loads(call.arguments) == {"a": [1, "é"]}
    assert call.id.startswith("call_")


@pytest.mark.parametrize(
    ("text", "calls", "left"),
    [
        ('<tool_call>{"name": "f"</tool_call>.', 0, '<tool_call>{"name": "f"</tool_call>.'),
        ('<tool_call>{"arguments": {}}</tool_call>', 0, '<tool_call>{"arguments": {}}</tool_call>'),
        ('<tool_call>{"name": "f", "arguments": 3}</tool_call>', 0,
         '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
        ('<tool_call>{"name": "f"}', 1, ""),
        ('<tool_call>{"na', 0, '<tool_call>{"na'),
        (f"<tool_call>{'[' * 5000}</tool_call>", 0, f"<tool_call>{'[' * 5000}</tool_call>"),
        ('<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>', 2, "\n"),
        ('<think><tool_call>{"name": "f"}</tool_call></think>', 0,
         '<think><tool_call>{"name": "f"}</tool_call></think>'),
        ('<think>a</think>b<tool_call>{"name": "f"}</tool_call>', 1, "<think>a</think>b"),
        ("<tool_call></tool_call>", 0, "<tool_call></tool_call>"),
        ("no call <tool_", 0, "no call <tool_"),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', 1, ""),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_no_call_stays_text(text: str, calls: int, left: str):
    for size in (1, 1000):
        reader = FreeCalls(FORMS["hermes"], thinking=False)
        passed = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
        assert passed + reader.finish() == left
        assert len(reader.calls) == calls
    one = FreeCalls(FORMS["hermes"], thinking=True)
    assert one.push("hm <tool_call>{</think>") + one.finish() == "hm <tool_call>{</think>"
    other = FreeCalls(FORMS["hermes"], thinking=False, tags=("[THINK]", "[/THINK]"))
    thought = "[THINK]<tool_call>{}</tool_call>[/THINK]"
    assert other.push(thought + '<tool_call>{"name": "f"}</tool_call>') == thought
    assert [call.name for call in other.calls] == ["f"]


def test_mistrals_newer_calls_and_several_of_them():
    reader = FreeCalls(FORMS["mistral"], thinking=False, most=None)
    reader.push('[TOOL_CALLS]f[CALL_ID]123[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}')
    assert reader.finish() == ""
    assert [(c.name, json.loads(c.arguments)) for c in reader.calls] == [("f", {"a": 1}), ("g", {})]


def test_a_call_in_an_answer_becomes_a_call_of_the_reply(
    tooled: Server, here: Model, monkeypatch: pytest.MonkeyPatch
):
    """An answer that the small model wouldn't write, token by token."""
    offer = load(ServeSettings(checkpoint=MODEL, name="thinking")).offer
    assert offer.tags == ("<think>", "</think>")
    tokenizer = here.tokenizer
    # A request looks through no vocabulary: of a large one that takes longer than all else.
    monkeypatch.setattr(type(tokenizer), "get_vocab", None)
    before = tokenizer.chat_template
    tokenizer.chat_template = HERMES
    try:
        query = read_chat(json.dumps(CHAT | dict(tools=[ADD])).encode(), tokenizer, offer)
    finally:
        tokenizer.chat_template = before
    assert query.calling is not None and not query.calling.forced
    answer = PartialAnswer(tokenizer, query)
    text = 'So<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    ids = tokenizer(text)["input_ids"]
    news = []
    for i in [*ids, tokenizer.eos_token_id]:
        answer.take(NextToken(0, i, "stop" if i == tokenizer.eos_token_id else None))
        if (one := answer.news()) is not None:
            news.append(one)
    assert answer.finish_reason == "tool_calls" and answer.text == "So"
    assert "".join(one.text for one in news) == "So"
    assert [call.name for one in news for call in one.calls] == ["add"]
    assert json.loads(answer.calls[0].arguments) == {"a": 1, "b": 2}
    # Cut off, it is what it was.
    answer = PartialAnswer(tokenizer, query)
    for n, i in enumerate(ids[:9]):
        answer.take(NextToken(0, i, "length" if n == 8 else None))
    assert answer.finish_reason == "length" and not answer.calls
    assert answer.text == tokenizer.decode(ids[:9])


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_has_to_be_called_is_called(tooled: Server, stream: bool):
    named = {"type": "function", "function": {"name": "add"}}
    for choice, names in ((named, {"add"}), ("required", {"add", "stop"})):
        reply = tooled.chat(
            1, tools=[ADD, STOP], tool_choice=choice, temperature=1.0, max_tokens=1000,
            stream=stream, parallel_tool_calls=False,
        )  # fmt: skip
        if stream:
            pieces = [c for piece in reply for c in piece.choices]
            assert not any(piece.delta.content for piece in pieces)
            calls = [call for piece in pieces for call in piece.delta.tool_calls or ()]
            reason = pieces[-1].finish_reason
            assert [call.index for call in calls] == [0]
        else:
            (found,) = reply.choices
            calls, reason = found.message.tool_calls, found.finish_reason
            assert found.message.content is None and len(calls) == 1
        assert reason == "tool_calls"
        for call in calls:
            assert call.function.name in names and call.type == "function"
            value = json.loads(call.function.arguments)
            if call.function.name == "add":
                assert value["a"] <= 99 and value["b"] in (1, 2)


def test_tools_and_their_turns_reach_the_template(tooled: Server):
    """More of the prompt with tools; a call and its result come back; none leaves them out."""
    user = {"role": "user", "content": "Start 3."}

    def ask(messages: Any, **settings: Any) -> Any:
        return tooled.client.chat.completions.create(
            model="thinking", messages=messages, **settings
        )

    plain = ask([user], max_tokens=1).usage.prompt_tokens
    with_tools = ask([user], tools=[ADD], max_tokens=1).usage.prompt_tokens
    none = ask([user], tools=[ADD], tool_choice="none", max_tokens=1)
    assert none.usage.prompt_tokens == plain < with_tools
    call = {"id": "call_1", "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}  # fmt: skip
    turns = [
        user,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    reply = ask(turns, tools=[ADD], max_tokens=1)
    assert reply.usage.prompt_tokens > with_tools
    asked = dict(response_format=ASKED, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="response_format can't be set where"):
        tooled.chat(0, tools=[ADD], **asked)


# --- beside the answers ---------------------------------------------------------------------------


def test_pages_of_an_origin_may_ask_and_others_not(server: Server):
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    connection = HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT_S)
    try:
        for origin, good in (("https://page.example", True), ("https://other.example", False)):
            connection.request("OPTIONS", "/v1/chat/completions", headers=ask | {"Origin": origin})
            reply = connection.getresponse()
            reply.read()
            assert (reply.status == 200) == good
            assert (reply.getheader("access-control-allow-origin") == origin) == good
    finally:
        connection.close()
    body = CHAT | dict(max_tokens=1)
    _, _, headers = server.send("POST", "/v1/chat/completions", body, Origin="https://page.example")
    assert headers["access-control-allow-origin"] == "https://page.example"


def test_without_origins_no_page_may_ask(tooled: Server):
    body = CHAT | dict(max_tokens=1)
    _, _, headers = tooled.send("POST", "/v1/chat/completions", body, Origin="https://page.example")
    assert "access-control-allow-origin" not in headers


def metrics(server: Server) -> dict[str, float]:
    status, text, headers = server.send("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics_count_requests_tokens_and_times(server: Server):
    before = metrics(server)
    reply = server.chat(0, max_tokens=7)
    assert server.send("POST", "/v1/chat/completions", CHAT | dict(n=0))[0] == 400
    assert server.send("GET", "/nowhere/at/all")[0] == 404
    until(lambda: server.worker.load == (0, 0))
    after = metrics(server)
    chat = 'surgeon_requests_total{endpoint="/v1/chat/completions",status="%d"}'

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more(chat % 200) == 1 and more(chat % 400) == 1
    assert more('surgeon_requests_total{endpoint="other",status="404"}') == 1
    assert more("surgeon_prompt_tokens_total") == reply.usage.prompt_tokens
    assert more("surgeon_generated_tokens_total") == 7
    assert more("surgeon_time_to_first_token_seconds_count") == 1
    assert more('surgeon_request_seconds_count{endpoint="/v1/chat/completions"}') == 2
    assert after["surgeon_engine_up"] == 1 and after["surgeon_answers_running"] == 0


def test_a_dead_engine_is_told_by_its_health(monkeypatch: pytest.MonkeyPatch, capfd: Any):
    """A pass that ends the worker: the server goes on, and says so to everybody who asks."""
    raised: list[Any] = []
    # The worker's own thread raises what killed it, in the end.
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    with serving(rows=2) as server:
        stream = server.chat(0, stream=True, max_tokens=1000)
        next(stream)

        def lost() -> Any:
            raise SystemError("the device is gone")

        monkeypatch.setattr(server.worker.decoder, "step", lost)
        with pytest.raises(openai.APIError, match="the device is gone"):
            joined(stream)
        status, body, _ = server.send("GET", "/health")
        assert (status, body["status"]) == (503, "dead") and "device is gone" in body["reason"]
        with pytest.raises(openai.InternalServerError, match="The engine is dead") as error:
            server.chat(1)
        assert error.value.status_code == 503 and error.value.code == "engine_dead"
        assert metrics(server)["surgeon_engine_up"] == 0
    assert isinstance(raised[0], SystemError)
    assert "The engine is dead: SystemError: the device is gone" in capfd.readouterr().err
