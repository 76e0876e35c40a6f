"""Judges behind an endpoint: what they are asked, what is made of it, and that nothing is lost."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoints import Said, served
from trigger_labels import MODEL, lines, write_traces

from surgeon import endpoint
from surgeon.answers.thinking import TAGS
from surgeon.builtin.judge import judge
from surgeon.checkpoint import resolve
from surgeon.endpoint import in_parallel
from surgeon.errors import BadInput
from surgeon.judges import docket
from surgeon.judges.chat import Chat, Shape, read_value, strict
from surgeon.judges.finding import Finding, Question
from surgeon.judges.judges import SHAPES, EndpointJudge, parse_judge
from surgeon.judges.wording import FILE, read_texts
from surgeon.settings.asking import EndpointSettings
from surgeon.traces import read_prompts, read_traces
from surgeon.trigger.artifacts import Spending, StepReader
from surgeon.trigger.label import Labelling, label, show
from surgeon.watch.spans import read_spans

N = 4
EXAMPLES = Path(__file__).parents[1] / "examples"
Answer = Callable[[dict[str, Any]], Said]


def asked_about(body: dict[str, Any]) -> tuple[str, list[str]]:
    """The question and the steps of a request."""
    text = body["messages"][1]["content"]
    question, rest = text.split("Question:\n", 1)[1].split("\n\nSteps:\n")
    parts = re.split(r"(?:^|\n\n)\[(\d+)\] ", rest.split("\n\nReply with")[0])[1:]
    assert [int(number) for number in parts[::2]] == list(range(1, len(parts) // 2 + 1))
    return question, [f"{step}\n\n" for step in parts[1::2]]


def reply(content: Any, usage: tuple[int, int] | None = (100, 10)) -> Said:
    text = content if isinstance(content, str) else json.dumps(content)
    value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, value


def exact(body: dict[str, Any]) -> Said:
    """The built-in task's judge, as a model at an endpoint would put it."""
    name = body["response_format"]["json_schema"]["name"]
    question, steps = asked_about(body)
    found = judge(question, steps)
    if name == "effort":
        (one,) = [finding for finding in found if finding.level == "instance"]
        settled = 1 if one.failing else len(steps)
        difficulty = "hard" if one.contrast else "easy"
        return reply({"difficulty": difficulty, "settled": settled, "reason": one.reason})
    return reply({
        "failures": [
            {"first": f.first + 1, "last": f.last + 1, "reason": f.reason,
             "attempts": [n + 1 for n in f.attempts]}
            for f in found if name.startswith(f"{f.level}_")
        ]
    })  # fmt: skip


class Server:
    """A chat endpoint; `answer` says what to reply, and may be changed while it runs."""

    def __init__(self) -> None:
        self.answer: Answer = exact
        self.asked: list[dict[str, Any]] = []
        self.listed = 0

    def __call__(self, path: str, body: Any, _: Any) -> Said:
        if body is None:
            self.listed += 1
            return 200, {"data": [{"id": "m"}]}
        assert path == "/v1/chat/completions"
        self.asked.append(body)
        return self.answer(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.001)
    monkeypatch.delenv(endpoint.KEY, raising=False)
    made = Server()
    with served(made) as url:
        made.url = f"{url}#m"  # pyright: ignore
        yield made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Traces of the first problems by a writer who fails at every level."""
    return write_traces(tmp_path_factory.mktemp("written") / "written.jsonl", N)


@pytest.fixture
def run(server: Any, written: str, tmp_path: Path) -> Callable[..., Labelling]:
    """`run(name, **changes)`: label those traces by that server; nothing is decoded."""

    def call(name: str = "out", **changes: Any) -> Labelling:
        arguments: dict[str, Any] = dict(
            prompts="builtin:test", traces=written, judge=server.url, pairs=0, levels=("intra",),
            out=tmp_path / name, inter_steps=1,
        )  # fmt: skip
        return label(MODEL, **(arguments | changes))

    return call


def question(level: str, steps: Sequence[str] = ("a", "b")) -> Question:
    return Question("q", 0, level, "How?", steps)


# --- labels ---------------------------------------------------------------------------------------


def test_the_labels_are_those_of_the_judge_that_is_asked(
    server: Any, run: Callable[..., Labelling], tmp_path: Path
):
    """The built-in task's own judge, at an endpoint and here, counterparts included."""
    levels = ("intra", "inter", "instance")
    there = run("there", levels=levels, pairs=1, resample=1)
    run("here", levels=levels, pairs=1, resample=1, judge="builtin")
    spans = {}
    for name in ("there", "here"):
        found = read_spans(tmp_path / name / "spans.jsonl")
        # The difficulty stands before an endpoint's reason.
        spans[name] = [s._replace(reason=s.reason.split(": ")[-1]) for s in found]
    assert spans["there"] == spans["here"]
    assert {s.level for s in spans["here"] if s.failing and s.pair is not None} >= {"intra"}
    n = len(server.asked)
    assert n > N * len(levels) and server.listed == 1
    assert there.judge == Spending(tokens_in=100 * n, tokens_out=10 * n, money=None)
    assert len(lines(tmp_path / "there" / "verdicts.jsonl")) == n


def test_a_server_that_can_is_told_the_exact_shape(server: Any, run: Any):
    run(judge_temperature=0.5)
    run("own", limit=1)
    first, last = server.asked[0], server.asked[-1]
    assert first["model"] == "m" and first["temperature"] == 0.5 and "temperature" not in last
    wanted = first["response_format"]["json_schema"]
    assert first["response_format"]["type"] == "json_schema" and wanted["strict"] is True
    step = wanted["schema"]["properties"]["failures"]["items"]
    for part in (wanted["schema"], step):
        assert part["required"] == list(part["properties"])
        assert part["additionalProperties"] is False
    assert step["properties"]["first"] == {"type": "integer"}
    instance: Any = strict(SHAPES["instance"].schema)
    assert instance["properties"]["settled"]["type"] == ["integer", "null"]


@pytest.mark.parametrize("structured", ["json_object", "none"])
def test_a_server_that_knows_no_schema_is_asked_for_less(
    server: Any, run: Any, structured: str, tmp_path: Path
):
    def older(body: dict[str, Any]) -> Said:
        if body.get("response_format", {}).get("type") == "json_schema":
            return 400, {"error": {"message": "unknown response_format"}}
        return reply({"failures": [{"first": 1, "last": 2, "reason": "wrong"}]})

    server.answer = older
    with pytest.raises(BadInput) as caught:
        run()
    assert "answered 400: unknown response_format. If it knows no JSON schema, set " in str(
        caught.value
    )
    assert "structured=json_object or none" in str(caught.value)
    run(structured, structured=structured)
    wanted = {"json_object": {"type": "json_object"}, "none": None}[structured]
    assert server.asked[-1].get("response_format") == wanted
    spans = [s for s in read_spans(tmp_path / structured / "spans.jsonl") if s.failing]
    assert [(s.first, s.last, s.reason) for s in spans] == [(0, 1, "wrong")] * N


def test_what_it_will_take_is_said_before_anything_is_asked(
    server: Any, run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(docket, "say", lambda text: said.append((text, len(server.asked))))
    result = run(price_in=2.0, price_out=1000.0)
    ((text, before),) = said
    assert before == 0
    pattern = (
        rf"judge: {N} requests to m at {re.escape(server.url[:-2])}, about ([\d,]+) tokens in and "
        r"([\d,]+) out, about ([\d.]+) at the prices given"
    )
    found = re.match(pattern, text)
    assert found is not None, text
    tokens_in, tokens_out = (int(found[i].replace(",", "")) for i in (1, 2))
    assert float(found[3]) == pytest.approx((2 * tokens_in + 1000 * tokens_out) / 1e6, abs=0.006)
    characters = sum(len(m["content"]) for body in server.asked for m in body["messages"])
    assert tokens_in == pytest.approx(characters / 3.5, rel=0.01)
    assert result.judge.money == pytest.approx((2 * 100 * N + 1000 * 10 * N) / 1e6)
    show(result)
    assert (
        f"judge: {100 * N} tokens in, {10 * N} out, 0.04 at the prices" in capsys.readouterr().out
    )
    said.clear()
    run("free")
    assert "prices" not in said[0][0]


# --- replies that can't be used -------------------------------------------------------------------


def test_a_reply_that_cant_be_used_is_asked_for_again_with_the_complaint(
    server: Any, run: Any, tmp_path: Path
):
    replies: list[Any] = [
        "I think step 2 is wrong.",
        {"failures": [{"first": 2, "last": 99, "reason": "far out"}]},
        {"failures": [{"first": 2, "last": 2, "reason": "wrong"}]},
    ]
    server.answer = lambda _: reply(replies[len(server.asked) - 1])
    result = run(limit=1)
    first, second, third = [body["messages"] for body in server.asked]
    assert len(first) == 2 and second[:2] == third[:2] == first
    assert second[2] == {"role": "assistant", "content": replies[0]}
    assert second[3]["content"].startswith("That can't be used: it is no JSON object")
    assert json.loads(third[2]["content"]) == replies[1] and len(third) == 4
    assert "first 2, last 99 are no steps; there are 1 to " in third[3]["content"]
    assert result.judge.tokens_in == 300
    (span,) = [s for s in read_spans(tmp_path / "out" / "spans.jsonl") if s.failing]
    assert (span.first, span.last) == (1, 1)


def test_three_of_them_end_the_run_in_one_line_and_it_goes_on_with_the_rest(
    server: Any, run: Any, tmp_path: Path
):
    run("whole", parallel=1)
    questions = [asked_about(body)[0] for body in server.asked]
    server.asked.clear()

    def stubborn(body: dict[str, Any]) -> Said:
        return reply({"failures": 3}) if asked_about(body)[0] == questions[2] else exact(body)

    server.answer = stubborn
    with pytest.raises(BadInput) as caught:
        run("cut", parallel=1, most_unusable=0)
    assert str(caught.value) == (
        f"prompt 'test-0002', sample 0, intra: m at {server.url[:-2]} gave 3 replies that can't be "
        "used; the last: failures is 3, expected array. What was done is kept: the same command "
        "resumes."
    )
    kept = [row["prompt_id"] for row in lines(tmp_path / "cut.partial" / "verdicts.jsonl")]
    assert kept == ["test-0000", "test-0001"] and len(server.asked) == 2 + 3
    server.answer = exact
    server.asked.clear()
    result = run("cut", parallel=1)
    assert sorted(asked_about(body)[0] for body in server.asked) == sorted(questions[2:])
    for name in ("spans.jsonl", "traces.jsonl", "prompts.jsonl"):
        files = [(tmp_path / place / name).read_bytes() for place in ("whole", "cut")]
        assert files[0] == files[1]
    # The three that couldn't be used were lost with the run, and so were their tokens.
    assert result.judge.tokens_in == 100 * N


def test_a_trace_without_a_usable_verdict_is_left_out_and_counted(
    server: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """One of 4 stays without, also where a share of .1 would be less than one; its steps are
    neither failing nor sound. A refusal of its own request is the same."""
    run("whole")
    whole = read_spans(tmp_path / "whole" / "spans.jsonl")
    lost = next(s.prompt_id for s in whole if s.failing)
    question = next(p for p in read_prompts("builtin:test") if p.id == lost).messages[0]["content"]
    for name, odd in (("shape", reply({"failures": 3})), ("long", (400, {"error": "too long"}))):
        server.answer = lambda body, odd=odd: (
            odd if asked_about(body)[0] == question else exact(body)
        )
        result = run(name)
        spans = read_spans(tmp_path / name / "spans.jsonl")
        assert spans == [span for span in whole if span.prompt_id != lost]
        assert result.levels["intra"].unusable == 1
        show(result)
        assert "intra: 1 traces are left out" in capsys.readouterr().out


@pytest.mark.parametrize("usable", [0, 2])
def test_above_a_share_of_unusable_verdicts_the_run_stops_and_asks_them_again(
    server: Any, run: Any, tmp_path: Path, usable: int
):
    def odd(body: dict[str, Any]) -> Said:
        asked = list(dict.fromkeys(asked_about(b)[0] for b in server.asked))
        return exact(body) if len(asked) <= usable else reply({"failures": 3})

    server.answer = odd
    with pytest.raises(BadInput, match=r"2 of (2|4) questions got no usable reply, more"):
        run("cut", parallel=1, most_unusable=0.3)
    server.answer = exact
    server.asked.clear()
    assert run("cut", parallel=1).levels["intra"].unusable == 0
    assert len(server.asked) == N - usable


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "it is no JSON object"),
        ("null", "the reply is null, expected object."),
        ("[1]", "the reply is [1], expected object."),
        ('{"steps": []}', "the reply lacks 'failures'."),
        ('{"failures": {}}', "failures is {}, expected array."),
        ('{"failures": [1]}', "failures[0] is 1, expected object."),
        ('{"failures": [{"first": 1}]}', "failures[0] lacks 'last'."),
        ('{"failures": [{"first": true, "last": 1, "reason": ""}]}', "first is true, expected in"),
        ('{"failures": [{"first": 1.5, "last": 1, "reason": ""}]}', "first is 1.5, expected in"),
        ('{"failures": [{"first": 1, "last": 1, "reason": null}]}', "reason is null, expected st"),
        ("[" * 100_000, "it is no JSON object"),
    ],
    ids=lambda value: value[:40],
)
def test_a_wrong_shape_is_said(value: str, said: str):
    found, complaint = read_value(value, SHAPES["intra"])
    assert found is None and said in complaint


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "```json\n{}\n```",
        " \n{} ",
        *(f"{opening}\nWell, {{1}}.\n{closing}\n\n{{}}" for opening, closing in TAGS),
        f"An end without a beginning: {{1}}{TAGS[1][1]}\n```json\n{{}}\n```",
    ],
)
def test_what_stands_around_the_object_is_taken_off(text: str):
    value = {"difficulty": "easy", "settled": None, "reason": "x"}
    found, complaint = read_value(text.replace("{}", json.dumps(value)), SHAPES["instance"])
    assert found == value and complaint == ""


@pytest.mark.parametrize("opening", [opening for opening, _ in TAGS])
def test_a_judge_whose_thought_never_ends_has_said_nothing(opening: str):
    value = {"difficulty": "easy", "settled": None, "reason": "x"}
    found, complaint = read_value(f"{opening} {json.dumps(value)}", SHAPES["instance"])
    assert found is None and "no JSON object" in complaint


# --- servers that fail ----------------------------------------------------------------------------


def test_what_passes_is_waited_for(server: Any, run: Any, tmp_path: Path):
    failures: list[Said] = [
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
        (500, {"error": {"message": "oops"}}),
        (200, b"<html>a gateway</html>"),
        (200, {"choices": []}),
        None,
    ]
    server.answer = lambda body: failures.pop() if failures else exact(body)
    run("shaken", parallel=1)
    run("calm")
    spans = [(tmp_path / name / "spans.jsonl").read_bytes() for name in ("shaken", "calm")]
    assert spans[0] == spans[1]


def test_a_server_that_goes_down_loses_only_what_was_not_answered(
    server: Any, run: Any, tmp_path: Path
):
    def dying(body: dict[str, Any]) -> Said:
        return exact(body) if len(server.asked) <= 2 else (500, {"error": {"message": "memory"}})

    server.answer = dying
    with pytest.raises(BadInput, match=r"^prompt .* answered 500: memory\. Attempts: ") as caught:
        run(parallel=2)
    assert "\n" not in str(caught.value) and "the same command resumes" in str(caught.value)
    assert len(lines(tmp_path / "out.partial" / "verdicts.jsonl")) == 2
    server.answer = exact
    server.asked.clear()
    run(parallel=2)
    assert len(server.asked) == N - 2


def test_after_the_first_failure_nobody_keeps_waiting(server: Any, monkeypatch: pytest.MonkeyPatch):
    """One is refused while others wait for another attempt; what was under way is yielded."""
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 60.0)

    def answer(body: dict[str, Any]) -> Said:
        text = body["messages"][0]["content"]
        if text == "refused":
            time.sleep(0.3)
            return 400, {}
        if text == "slow":
            time.sleep(0.6)
        return (500, {}) if text == "busy" else reply({})

    server.answer = answer
    chat = Chat.parse(server.url, structured="none")
    shape = Shape("nothing", {"type": "object", "properties": {}})

    def ask(text: str) -> Any:
        return chat.ask([{"role": "user", "content": text}], shape)

    start, done = time.monotonic(), []
    with pytest.raises(BadInput, match="answered 400"):
        for item, _ in in_parallel(chat, ["busy", "slow", "refused", "busy", "never"], ask, 4):
            done.append(item)
    assert done == ["slow"] and time.monotonic() - start < 20
    assert "never" not in [body["messages"][0]["content"] for body in server.asked]


def test_an_endpoint_that_is_not_there_is_said_before_anything_is_made(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither is a model loaded, for traces that would have to be sampled."""
    monkeypatch.setattr("surgeon.checkpoint.Checkpoint.model", None)
    with pytest.raises(BadInput, match=r"can't be reached .* Is the server running") as caught:
        run(judge="http://127.0.0.1:9/v1#m", traces=None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_key_is_said_before_anything_is_made(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(endpoint.KEY, "sk-secret")
    seen = []

    def closed(path: str, _: Any, headers: Any) -> Said:
        seen.append((path, headers["Authorization"]))
        return 401, {"error": {"message": "Incorrect API key provided."}}

    with served(closed) as url, pytest.raises(BadInput) as caught:
        run(judge=f"{url}#m")
    assert str(caught.value) == (
        f"m at {url} answered 401: Incorrect API key provided. The key is read from OPENAI_API_KEY."
    )
    assert seen == [("/v1/models", "Bearer sk-secret")] and list(tmp_path.iterdir()) == []


def test_a_finished_run_needs_no_server(run: Any, server: Any):
    first = run()
    asked = len(server.asked)
    assert run() == replace(first, already=True)
    assert (len(server.asked), server.listed) == (asked, 1)


# --- what a reply means ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difficulty", "settled", "expected"),
    [
        ("easy", 4, [(True, False)]),
        ("easy", 5, [(False, False)]),
        ("easy", None, [(False, False)]),
        ("medium", 1, []),
        ("hard", 1, [(False, True)]),
    ],
)
def test_an_easy_question_is_over_thought_when_half_of_the_steps_come_after_its_end(
    server: Any, difficulty: str, settled: int | None, expected: list[tuple[bool, bool]]
):
    value = {"difficulty": difficulty, "settled": settled, "reason": "so"}
    server.answer = lambda _: reply(value, None)
    asked = EndpointJudge(Chat.parse(server.url), read_texts()["judge"], 3)
    verdict = asked(question("instance", ["step\n\n"] * 8))
    assert [(f.failing, f.contrast) for f in verdict.findings] == expected
    assert all((f.first, f.last) == (0, 7) for f in verdict.findings)
    # This server doesn't count.
    assert (verdict.tokens_in, verdict.tokens_out) == (0, 0)


def test_a_settled_step_that_is_not_there_is_asked_for_again(server: Any):
    values = [{"difficulty": "easy", "settled": n, "reason": ""} for n in (9, 0, 8)]
    server.answer = lambda _: reply(values[len(server.asked) - 1])
    asked = EndpointJudge(Chat.parse(server.url), read_texts()["judge"], 3)
    assert not asked(question("instance", ["step\n\n"] * 8)).findings[0].failing
    assert "settled is 9; the steps are 1 to 8." in server.asked[1]["messages"][3]["content"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("bulletin", r"judge = bulletin, expected builtin, URL#model .* or module:function"),
        ("http://localhost:8000/v1", "expected URL#model"),
        ("nowhere:judge", "nowhere can't be imported"),
        ("json:judge", "json has no function 'judge'"),
    ],
)
def test_a_judge_that_is_none_is_refused(spec: str, said: str):
    with pytest.raises(BadInput, match=said):
        parse_judge(spec, read_texts(), EndpointSettings())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(structured="xml"), "structured = xml, expected one of: json_schema, json_object"),
        (dict(timeout=0), "timeout = 0, expected a number above 0"),
        (dict(attempts=0), "attempts = 0, expected a whole number of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(server: Any, run: Any, settings: Any, said: str):
    with pytest.raises(BadInput, match=said):
        run(**settings)
    assert server.listed == 0


@pytest.mark.parametrize(
    "found",
    [None, "intra", ("intra", 0), ("extra", 0, 0), ("intra", 1, 0), ("intra", 0, 2),
     ("intra", 0.0, 1)],
    ids=str,
)  # fmt: skip
def test_what_a_function_says_is_checked(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = f"judge_{abs(hash(str(found)))}"
    (tmp_path / f"{name}.py").write_text(f"def judge(question, steps):\n    return [{found!r}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"gave .* for 2 steps, expected a list of \(level, first"):
        parse_judge(f"{name}:judge", read_texts(), EndpointSettings())(question("intra"))


def test_a_function_may_say_tuples_or_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "judge_of_pairs.py").write_text(
        "def judge(question, steps):\n    return [('intra', 0, 1, 'no'), ('inter', 1, 1)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = parse_judge("judge_of_pairs:judge", read_texts(), EndpointSettings())
    assert asked(question("intra")).findings == [Finding("intra", 0, 1, "no")]
    assert asked(question("inter")).findings == [Finding("inter", 1, 1)]
    assert asked(question("instance")).findings == []


def test_a_judge_from_outside_labels_the_traces(
    run: Callable[..., Labelling], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """examples/my_judge.py, as `module:function`: steps that stand there word for word before."""
    monkeypatch.syspath_prepend(EXAMPLES)
    result = run("mine", judge="my_judge:repetitions", levels=("intra", "inter"))
    traces = {t.prompt_id: t for t in read_traces(tmp_path / "mine" / "traces.jsonl")}
    reader, repeated = StepReader(resolve(MODEL).tokenizer()), set()
    for name, trace in traces.items():
        steps = [step.strip() for step in reader.steps(trace)]
        repeated |= {(name, n) for n, step in enumerate(steps) if step in steps[:n]}
    spans = [s for s in read_spans(tmp_path / "mine" / "spans.jsonl") if s.failing]
    assert {(s.prompt_id, s.first) for s in spans} == repeated and len(repeated) > 5
    assert {s.level for s in spans} == {"inter"} and result.levels["intra"].failing == 0
    assert all(re.fullmatch(r"as step \d+", s.reason) for s in spans)
    with pytest.raises(BadInput, match="my_judge has no function 'echoes'"):
        run("other", judge="my_judge:echoes")


# --- prompts of one's own -------------------------------------------------------------------------


def test_prompts_of_ones_own_are_what_is_asked(server: Any, run: Any, tmp_path: Path):
    texts = yaml.safe_load(FILE.read_text())
    texts["judge"]["intra"] = {"system": "Be brief.", "user": "Q {{question}} S {{steps}}"}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(texts))
    server.answer = lambda _: reply({"failures": []})
    run(prompt_file=str(own))
    system, user = server.asked[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"].startswith("Q ") and " S [1] " in user["content"]
    texts["judge"]["intra"]["system"] = "Be very brief."
    own.write_text(yaml.safe_dump(texts))
    with pytest.raises(BadInput, match=r"another run.*texts"):
        run(prompt_file=str(own))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda texts: texts["judge"]["intra"].update(user="{{answer}}"),
         r"judge: intra: user holds \{\{answer\}\}, expected only: question, steps"),
        (lambda texts: texts["judge"]["intra"].update(system="{{question}}"),
         r"system holds \{\{question\}\}, expected only: none"),
        (lambda texts: texts["judge"]["inter"].update(user=3), "judge: inter: user is no text"),
        (lambda texts: texts["judge"].pop("inter"), "judge must hold intra, inter, instance"),
        (lambda texts: texts.update(extra={}), "own.yaml must hold judge, write"),
        (lambda texts: texts["write"].update(intra=[]), "write: intra must hold own, made"),
    ],
)  # fmt: skip
def test_prompts_that_lack_something_are_refused(
    change: Callable[[Any], Any], said: str, run: Any, server: Any, tmp_path: Path
):
    texts = yaml.safe_load(FILE.read_text())
    change(texts)
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(texts))
    with pytest.raises(BadInput, match=said) as caught:
        run(prompt_file=str(own))
    assert "\n" not in str(caught.value) and server.listed == 0
    assert list(tmp_path.iterdir()) == [own]


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"", b"text", None], ids=str)
def test_a_file_that_is_no_yaml_is_refused(content: bytes | None, run: Any, tmp_path: Path):
    own = tmp_path / "own.yaml"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(BadInput, match=r"can't be read as YAML|must hold judge, write") as caught:
        run(prompt_file=str(own))
    assert "own.yaml" in str(caught.value) and "\n" not in str(caught.value)
