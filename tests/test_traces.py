"""Prompts in, traces out: what is read, what is refused and where, and what sampling promises."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from surgeon.errors import BadInput
from surgeon.traces import (
    Prompt,
    Sampling,
    Trace,
    append,
    encode,
    in_order,
    parse_prompt,
    read_prompts,
    read_traces,
    sample,
    sampled,
    stop_ids,
    text_of,
    token_texts,
)
from surgeon.traces.texts import WINDOW

USER = {"role": "user", "content": "w1 w2"}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_of_every_form_are_read(tmp_path: Path):
    system = {"role": "system", "content": "w3"}
    source = write(
        tmp_path / "p.jsonl",
        {"prompt": "w1 w2", "answer": 7, "level": "easy"},
        {"messages": [system, {**USER, "name": "x"}], "id": "b", "answer": None},
        {"prompt": [USER], "id": 12},
    )
    Path(source).write_text(Path(source).read_text() + "\n")
    assert read_prompts(source) == [
        Prompt("1", (USER,), "7", plain=True),
        Prompt("b", (system, USER), None),
        Prompt("12", (USER,), None),
    ]


def test_parquet_is_read_like_jsonl(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [
        {"prompt": "w1", "messages": None, "answer": "3", "id": 5},
        {"prompt": None, "messages": [USER], "answer": None, "id": 6},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    first, second = read_prompts(str(tmp_path / "p.parquet"))
    assert first == Prompt("5", ({"role": "user", "content": "w1"},), "3", plain=True)
    assert second == Prompt("6", (USER,), None)
    (tmp_path / "q.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match=r"q\.parquet is not a readable Parquet file"):
        read_prompts(str(tmp_path / "q.parquet"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("not json", r"found no valid JSON"),
        ("[1]", "found a list, expected an object"),
        ("{}", "found no columns, expected either prompt or messages"),
        ('{"text": "x"}', "found the columns text, expected either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "found both prompt and messages"),
        ('{"prompt": " "}', "found an empty prompt"),
        ('{"prompt": 3}', "found a int, expected a list of messages"),
        ('{"messages": "hi"}', "found text, expected a list of messages"),
        ('{"messages": []}', "found an empty list"),
        ('{"messages": [{"role": "user"}]}', "expected an object with role and content"),
        ('{"messages": [{"role": "user", "content": []}]}', "role and content, both text"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "the assistant's"),
        ('{"prompt": "a", "id": []}', "as id, expected text or a number"),
        ('{"prompt": "a", "answer": {"x": 1}}', "found an object as answer"),
        ('{"prompt": "a", "id": "1"}', r"the id '1' was already used at .*p\.jsonl:1: ids must"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row: str, message: str, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "w1"}\n\n' + row + "\n")
    with pytest.raises(BadInput, match=message) as error:
        read_prompts(str(file))
    assert str(error.value).startswith(f"{file}:3: ")
    assert "\n" not in str(error.value)


def test_sources_that_hold_nothing_are_refused(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    for source, message in (
        (tmp_path / "empty.jsonl", "holds no prompts"),
        (tmp_path / "latin.jsonl", r"latin\.jsonl:1: found bytes that are not UTF-8"),
        (tmp_path / "none.jsonl", "does not exist"),
        ("missing/none.jsonl", "does not exist"),
        (tmp_path, "is a directory"),
        ("builtin:nothing", "built-in name 'nothing'"),
    ):
        with pytest.raises(BadInput, match=message):
            read_prompts(str(source))


def test_a_name_that_is_no_file_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load(name: str, split: str) -> list[dict[str, Any]]:
        if name != "owner/set":
            raise FileNotFoundError("no\nsuch set")
        return [{"prompt": f"{split} 1", "answer": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("surgeon.traces.sources._unreachable", lambda: None)
    assert read_prompts("owner/set")[0].messages[0]["content"] == "train 1"
    assert read_prompts("owner/set:test[:10%]")[0].messages[0]["content"] == "test[:10%] 1"
    with pytest.raises(BadInput, match="no data set that could be fetched: no such set"):
        read_prompts("owner/other")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON | st.dictionaries(st.sampled_from(["prompt", "messages", "id", "answer"]), JSON))
def test_any_row_is_a_prompt_or_refused_by_name(row: Any):
    try:
        prompt = parse_prompt(row, "file:9", "9")
    except BadInput as error:
        assert str(error).startswith("file:9: ")
        return
    assert prompt.id
    assert prompt.messages[-1]["role"] != "assistant"
    assert all(set(m) == {"role", "content"} for m in prompt.messages)
    assert prompt.plain == isinstance(row.get("prompt"), str)


@given(st.binary(max_size=60))
def test_any_bytes_are_prompts_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_bytes(content)
    with pytest.raises(BadInput, match=r"any\.jsonl"):
        read_prompts(str(file))


# --- the trace file -------------------------------------------------------------------------------

TRACES = st.builds(
    Trace,
    prompt_id=st.text(),
    sample=st.integers(0, 9),
    prompt_token_ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
    token_ids=st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
    text=st.text(),
    finish_reason=st.sampled_from(["stop", "length"]),
)
MANY = st.lists(TRACES, max_size=5, unique_by=lambda t: t.key)


@given(MANY, st.integers(0, 10**4))
def test_a_file_cut_anywhere_keeps_its_whole_traces_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, traces: list[Trace], cut: int
):
    file = tmp_path_factory.mktemp("t") / "traces.jsonl"
    file.touch()
    for trace in traces:
        append(file, trace)
    assert read_traces(file) == traces
    content = file.read_bytes()
    content = content[: cut % (len(content) + 1)]
    file.write_bytes(content)
    kept = read_traces(file)
    # A whole trace that only lost its line break counts.
    whole = content.count(b"\n") + (content.endswith(b"}") and len(kept) > content.count(b"\n"))
    assert kept == traces[:whole]
    for trace in traces[whole:]:
        append(file, trace)
    assert read_traces(file) == traces


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": -1}, "found -1 as sample"),
        ({"sample": True}, "found True as sample"),
        ({"token_ids": []}, r"found \[\] as token_ids"),
        ({"token_ids": [1.5]}, "as token_ids"),
        ({"finish_reason": "eos"}, "found 'eos' as finish_reason"),
        ({"text": None}, "found None as text"),
        ({"prompt_id": "a"}, r"sample 0 of prompt 'a' was already at line 1"),
    ],
)
def test_a_bad_trace_is_named_by_line(change: dict, message: str, tmp_path: Path):
    row = dict(prompt_id="a", sample=0, prompt_token_ids=[1], token_ids=[2], text="")
    row |= dict(finish_reason="stop")
    source = write(tmp_path / "t.jsonl", row, {**row, "prompt_id": "b", **change})
    with pytest.raises(BadInput, match=message) as error:
        read_traces(source)
    assert str(error.value).startswith(f"{source}:2: ")


def test_a_missing_trace_file_and_a_bad_middle_line_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="does not exist"):
        read_traces(tmp_path / "none.jsonl")
    (tmp_path / "t.jsonl").write_text('{"prompt_id": \n{}\n')
    with pytest.raises(BadInput, match=r"t\.jsonl:1: found no valid JSON"):
        read_traces(tmp_path / "t.jsonl")


def test_a_trace_is_known_by_its_prompt_and_sample():
    trace = Trace("a", 3, [1], [2], "w2", "stop")
    assert trace.key == ("a", 3)
    assert in_order([trace, replace(trace, prompt_id="b"), replace(trace, sample=0)], AB) == [
        replace(trace, prompt_id="b"), replace(trace, sample=0), trace,
    ]  # fmt: skip


AB = [Prompt("b", (USER,)), Prompt("a", (USER,))]


# --- tokens as text -------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """How byte-level tokenizers spell each byte (GPT-2's table)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [bytes_to_unicode()[byte] for byte in range(256)]


BYTES = byte_alphabet()


@cache
def byte_level() -> Any:
    """Every byte is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


def test_a_character_split_over_tokens_goes_to_the_one_that_ends_it():
    tokenizer = byte_level()
    text = "a é\n\n🙂🙂b , c" + "漢" * 9
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) == len(text.encode())
    assert "".join(texts) == text
    assert texts[:4] == ["a", " ", "", "é"]
    assert texts[6:11] == ["", "", "", "🙂", ""]
    assert token_texts(tokenizer, []) == []


def test_a_last_character_without_its_end_is_kept_as_broken():
    tokenizer = byte_level()
    (*whole, _) = tokenizer("b🙂")["input_ids"]
    assert token_texts(tokenizer, whole) == ["b", "", "", "\ufffd"]


def test_bytes_that_form_no_character_take_few_calls_and_hide_none_that_follows():
    tokenizer = byte_level()
    lengths: list[int] = []

    class Counting:
        def decode(self, ids: list[int], **settings: Any) -> str:
            lengths.append(len(ids))
            return tokenizer.decode(ids, **settings)

    (first, *_) = tokenizer("é")["input_ids"]
    after = tokenizer("🙂 so")["input_ids"]
    texts = token_texts(Counting(), [first] * 8000 + after)  # pyright: ignore[reportArgumentType]
    assert len(texts) == 8000 + len(after)
    assert "".join(texts) == "\ufffd" * 8000 + "🙂 so"
    assert len(lengths) <= 3 * len(texts)
    assert max(lengths) <= WINDOW


@given(st.binary(max_size=60) | st.lists(st.sampled_from("é漢🙂").map(str.encode)).map(b"".join))
@example(b"\xc3" * 8 + "🙂".encode())
@example("🙂".encode()[:3] * 5 + "漢é".encode())
def test_every_character_is_in_the_text_of_some_token(content: bytes):
    tokenizer = byte_level()
    ids = [tokenizer.get_vocab()[BYTES[byte]] for byte in content]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts).replace("\ufffd", "") == content.decode(errors="ignore")


def test_text_leaves_out_the_token_that_ended_the_answer():
    tokenizer = byte_level()
    ids = tokenizer("no , .")["input_ids"]
    assert text_of(tokenizer, ids) == text_of(tokenizer, ids, "length") == "no , ."
    assert text_of(tokenizer, ids, "stop") == "no , "


# --- sampling -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pico(pico_source: tuple[Path, Path]) -> tuple[Any, Any]:
    import torch

    from surgeon.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(pico_source[0])
    return checkpoint.model(dtype=torch.float32), checkpoint.tokenizer()


PROMPTS = [Prompt(str(i), ({"role": "user", "content": f"w{i} w{i * i}"},)) for i in range(5)]


def test_a_prompt_ends_where_the_answer_begins(pico: tuple[Any, Any]):
    _, tokenizer = pico
    ids = encode(tokenizer, PROMPTS[2])
    assert ids == tokenizer("<|im_start|>user w2 w4<|im_end|><|im_start|>assistant ")["input_ids"]
    assert ids[-1] == tokenizer.get_vocab()["assistant"]


def test_thinking_reaches_the_template(pico: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    _, tokenizer = pico
    template = "{{ enable_thinking if enable_thinking is defined else 'w9' }} "
    monkeypatch.setattr(tokenizer, "chat_template", template + "{{ messages[0].content }}")
    given_ = {t: encode(tokenizer, PROMPTS[0], t) for t in (None, True, False)}
    assert tokenizer.decode(given_[None]) == "w9 w0 w0"
    # "True" and "False" are no words of this vocabulary.
    assert given_[True] == given_[False] == tokenizer("True w0 w0")["input_ids"]
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BadInput, match=r"prompt '0': the chat template refuses it \(roles must"):
        encode(tokenizer, PROMPTS[0])


def test_without_a_template_plain_text_is_encoded_as_it_is(
    pico: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model, tokenizer = pico
    monkeypatch.setattr(tokenizer, "chat_template", None)
    plain = replace(PROMPTS[2], plain=True)
    assert encode(tokenizer, plain) == tokenizer("w2 w4")["input_ids"]
    with pytest.raises(BadInput, match="prompt '2' is a list of messages"):
        encode(tokenizer, PROMPTS[2])
    (trace,) = sample(model, tokenizer, [plain], Sampling(samples=1, max_tokens=2))
    assert trace.prompt_token_ids == tokenizer("w2 w4")["input_ids"]
    assert "encoded as plain text" in capsys.readouterr().err


def test_traces_hold_what_was_sampled(pico: tuple[Any, Any]):
    model, tokenizer = pico
    sampling = Sampling(samples=4, max_tokens=50, temperature=1.0, top_p=1.0)
    traces = list(sample(model, tokenizer, PROMPTS, sampling))
    assert sorted(t.key for t in traces) == [(str(i), k) for i in range(5) for k in range(4)]
    assert {t.finish_reason for t in traces} == {"stop", "length"}
    for trace in traces:
        assert trace.prompt_token_ids == encode(tokenizer, PROMPTS[int(trace.prompt_id)])
        stopped = trace.token_ids[-1] in stop_ids(model, tokenizer)
        assert (trace.finish_reason == "stop") == stopped
        assert stopped or len(trace.token_ids) == 50
        shown = trace.token_ids[: -1 if stopped else None]
        assert trace.text.split(" ") == [tokenizer.decode([token]) for token in shown]
    assert len({tuple(t.token_ids) for t in traces}) == 20


def test_resuming_draws_the_same_traces(pico: tuple[Any, Any]):
    model, tokenizer = pico
    sampling = Sampling(samples=3, max_tokens=30, temperature=1.0)
    whole = {t.key: t for t in sample(model, tokenizer, PROMPTS, sampling)}
    done = set(list(whole)[:9])
    rest = list(sample(model, tokenizer, PROMPTS[::-1], sampling, done=done))
    assert {t.key for t in rest} == set(whole) - done
    assert all(whole[t.key] == t for t in rest)
    assert not list(sample(model, tokenizer, PROMPTS, sampling, done=set(whole)))
    other = list(sample(model, tokenizer, PROMPTS, replace(sampling, seed=1)))
    assert sum(whole[t.key].token_ids == t.token_ids for t in other) < 3


def test_sampled_draws_what_the_file_lacks_and_sorts(
    pico: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model, tokenizer = pico
    file, sampling = tmp_path / "t.jsonl", Sampling(samples=2, max_tokens=8)
    whole = sampled(file, model, tokenizer, PROMPTS, sampling, what="sample a")
    assert "sample a: 10/10" in capsys.readouterr().err
    assert [t.key for t in whole] == [(str(i), k) for i in range(5) for k in range(2)]
    assert in_order(read_traces(file), PROMPTS) == whole
    lines = file.read_bytes().splitlines(keepends=True)
    # Killed in the middle of the fourth line; another prompt's answer is there as well.
    other = json.dumps({**json.loads(lines[0]), "prompt_id": "other"}).encode() + b"\n"
    file.write_bytes(other + b"".join(lines[:3]) + lines[3][:20])
    assert sampled(file, model, tokenizer, PROMPTS, sampling) == whole
    assert "sample: 7/7" in capsys.readouterr().err
    assert sampled(file, model, tokenizer, PROMPTS, sampling) == whole
    assert len(read_traces(file)) == 11
    assert "sample" not in capsys.readouterr().err
    # What is kept elsewhere is neither drawn nor returned.
    done = {("0", 0), ("4", 1)}
    rest = sampled(tmp_path / "u.jsonl", model, tokenizer, PROMPTS, sampling, done=done)
    assert rest == [t for t in whole if t.key not in done]
    assert len(read_traces(tmp_path / "u.jsonl")) == 8


def test_every_end_token_stops(pico: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    model, tokenizer = pico
    assert stop_ids(model, tokenizer) == {2}
    monkeypatch.setattr(model.generation_config, "eos_token_id", [7, 9])
    assert stop_ids(model, tokenizer) == {2, 7, 9}
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    assert stop_ids(model, tokenizer) == {2}


def test_a_prompt_that_fills_the_context_is_named_before_anything_is_drawn(pico: tuple[Any, Any]):
    model, tokenizer = pico
    long = Prompt("long", ({"role": "user", "content": "w1 " * 2100},))
    with pytest.raises(
        BadInput, match=r"prompt 'long' has 21\d\d tokens, expected fewer than .* 2048"
    ):
        next(sample(model, tokenizer, [*PROMPTS, long], Sampling()))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(samples=0), dict(temperature=-1), dict(temperature=float("nan")), dict(top_p=0),
        dict(top_p=1.1), dict(top_k=-1), dict(max_tokens=0), dict(batch=-1),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict):
    with pytest.raises(BadInput, match=f"found {next(iter(wrong))} = .*, expected"):
        Sampling(**wrong)
