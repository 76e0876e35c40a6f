"""Prompts out of files as users have them: every format, every usual name, every encoding."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.errors import BadInput
from surgeon.rank.reduced import file_stem
from surgeon.traces import Prompt, Trace, append, read_prompts
from surgeon.traces.columns import last_boxed

ROWS = [{"prompt": 'a, "b"\n; c', "answer": "1"}, {"prompt": "é\u2028w", "answer": "2"}]
EXPECTED = [
    Prompt(str(n), ({"role": "user", "content": row["prompt"]},), row["answer"], plain=True)
    for n, row in enumerate(ROWS, 1)
]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


FILES = {
    "plain.jsonl": lines(ROWS).encode(),
    "mark.jsonl": lines(ROWS).encode("utf-8-sig"),
    "crlf.jsonl": lines(ROWS, "\r\n").encode("utf-8-sig"),
    "no-end.jsonl": lines(ROWS).encode()[:-1],
    "wide.jsonl": lines(ROWS).encode("utf-16"),
    "array.json": json.dumps(ROWS, indent=1).encode("utf-8-sig"),
    "array.jsonl": json.dumps(ROWS).encode(),
    "lines.json": lines(ROWS).encode(),
    "nested.json": json.dumps({"data": ROWS}, indent=2).encode(),
    "table.csv": table(ROWS).encode("utf-8-sig"),
    "semicolons.csv": table(ROWS, ";").encode(),
    "tabs.tsv": table(ROWS, "\t").encode(),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_prompts(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(FILES[name])
    assert read_prompts(str(tmp_path / name)) == EXPECTED


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_texts_come_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
):
    texts = [f"{text}." for text in texts]
    rows = [{"id": f"n{n}", "question": text} for n, text in enumerate(texts)]
    there = tmp_path_factory.mktemp("texts")
    files = {"a.jsonl": lines(rows), "b.json": json.dumps(rows), "c.csv": table(rows)}
    for name, content in files.items():
        (there / name).write_bytes(content.encode())
        found = [prompt.messages[0]["content"] for prompt in read_prompts(str(there / name))]
        assert found == texts


@given(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"]), st.binary(max_size=80))
def test_any_bytes_are_prompts_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes
):
    file = tmp_path_factory.getbasetemp() / f"any{suffix}"
    file.write_bytes(content)
    try:
        assert read_prompts(str(file))
    except BadInput as error:
        assert str(file) in str(error)
        assert "\n" not in str(error)


USER = {"role": "user", "content": "q"}
USUAL = [
    ({"question": "q", "answer": "5"}, "5"),
    ({"problem": "q", "solution": "So \\boxed{\\frac{1}{2}}."}, "\\frac{1}{2}"),
    ({"problem": "q", "solution": "long", "answer": 7, "level": 3}, "7"),
    ({"instruction": "q", "input": "", "output": "long"}, None),
    ({"question": "q", "answer": "2+3\n5 <<2+3=5>>\n#### 1,005"}, "1,005"),
    ({"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "5"}}, "5"),
    ({"prompt": [USER], "reward_model": {"ground_truth": ["5"]}}, "5"),
    ({"messages": [USER], "ground_truth": 5}, "5"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, None),
    ({"conversations": [{"from": "human", "value": "q"}]}, None),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, None),
    ({"conversations": json.dumps([{"from": "human", "value": "q"}])}, None),
    ({"question": "q", "choices": [], "final_answer": "B"}, "B"),
]


@pytest.mark.parametrize(("row", "answer"), USUAL, ids=lambda v: str(v)[:40])
def test_usual_names_are_found(row: dict[str, Any], answer: str | None, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts(str(tmp_path / "p.jsonl"))
    assert prompt.messages == (USER,) and prompt.answer == answer


def test_what_belongs_to_a_question_is_asked(tmp_path: Path):
    rows = [
        {"instruction": "Add.", "input": "2 and 3"},
        {"question": "q", "system_prompt": "Be brief."},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
    ]
    (tmp_path / "p.jsonl").write_text(lines(rows))
    first, second, third = read_prompts(str(tmp_path / "p.jsonl"))
    assert first.messages[0]["content"] == "Add.\n\n2 and 3"
    assert second.messages == ({"role": "system", "content": "Be brief."}, USER)
    assert not second.plain
    assert [m["role"] for m in third.messages] == ["system", "user"]


def test_an_answered_conversation_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "p.jsonl").write_text(lines([row, row]))
    assert len(read_prompts(str(tmp_path / "p.jsonl"))) == 2
    assert "2 conversations end with the assistant's turn" in capsys.readouterr().err


@pytest.mark.parametrize(
    "columns", ["prompt=text, answer=meta.gold,id=key", {"prompt": "text", "answer": "meta.gold"}]
)
def test_columns_are_taken_by_name(columns: Any, tmp_path: Path):
    row = {"text": "q", "question": "other", "answer": "other", "meta": {"gold": 5}, "key": "k"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts(str(tmp_path / "p.jsonl"), columns=columns)
    assert (prompt.messages, prompt.answer) == ((USER,), "5")
    assert prompt.id == ("k" if isinstance(columns, str) else "1")


def test_a_data_set_has_a_config_a_revision_and_a_split(monkeypatch: pytest.MonkeyPatch):
    import datasets

    asked = []

    def load(*names: str, **how: str) -> list[dict[str, str]]:
        asked.append((names, how))
        return [{"question": "q", "answer": "#### 5"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (prompt,) = read_prompts("hf:openai/gsm8k#main@abc123:test[:10]")
    assert prompt.answer == "5"
    read_prompts("hf:squad")
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test[:10]", "revision": "abc123"}),
        (("squad",), {"split": "train"}),
    ]


def test_a_data_set_without_a_network_is_one_line_after_one_try(monkeypatch: pytest.MonkeyPatch):
    """A port that refuses: `datasets` itself would ask six times, over 24 s."""
    import socket
    import time

    from datasets import config
    from huggingface_hub import constants

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        for place in (constants, config):
            monkeypatch.setattr(place, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(time, "sleep", lambda s: pytest.fail(f"waited {s} s to ask again"))
        with pytest.raises(BadInput, match=f"no data set that .* {url} can't be reached") as error:
            read_prompts("nobody/nothing")
        assert "\n" not in str(error.value) and "refused" in str(error.value)
        assert not constants.HF_HUB_OFFLINE and not config.HF_HUB_OFFLINE


def test_tool_turns_are_read_as_servers_write_them(tmp_path: Path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "r"},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": json.dumps([{"name": "f", "parameters": {}}]),
    }
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts(str(tmp_path / "p.jsonl"))
    _, asked, told = prompt.messages
    assert asked["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert asked["reasoning_content"] == "r" and asked["content"] == ""
    assert told == {"role": "tool", "tool_call_id": "1", "content": "2"}
    assert prompt.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


def test_nested_braces_of_the_last_box():
    assert last_boxed("\\boxed{1} then \\boxed{\\frac{1}{2}} .") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1") is None and last_boxed("none") is None


IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["a/b", "a_b", "A", "a", "../x", "", ".", "CON", "x" * 300, "a~b", "a-0"]
)


@given(st.lists(IDS, unique=True))
def test_ids_of_any_form_have_file_names_of_their_own(ids: list[str]):
    stems = [file_stem(prompt_id) for prompt_id in ids]
    assert len({stem.lower() for stem in stems}) == len(ids)
    assert all(stem and len(stem) <= 64 and not set(stem) & set("/\\.\0 ") for stem in stems)


@pytest.mark.parametrize("form", ["{}.jsonl", "candidates/{}/traces.jsonl", "traces/{}.jsonl"])
def test_traces_of_a_ranking_or_an_evaluation_are_found(form: str, tmp_path: Path):
    from types import SimpleNamespace

    from surgeon.traces.given import read_candidate_traces

    candidates: Any = [SimpleNamespace(name=name) for name in ("a", "b")]
    for candidate in candidates:
        file = tmp_path / form.format(candidate.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, Trace(f"of {candidate.name}", 0, [1], [2], "", "stop"))
    prompts = [Prompt(f"of {name}", (USER,)) for name in ("a", "b")]
    found = read_candidate_traces(str(tmp_path), candidates, prompts)
    assert {name: traces[0].prompt_id for name, traces in found.items()} == {
        "a": "of a", "b": "of b",
    }  # fmt: skip
    with pytest.raises(BadInput, match="the traces of candidate a"):
        read_candidate_traces(str(tmp_path / "nowhere"), candidates[:1], prompts)


def test_a_part_of_a_file_keeps_its_rows_and_their_names(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("".join(f'{{"id": "q{n}", "prompt": "w{n}"}}\n' for n in range(5)))
    ids = {part: [p.id for p in read_prompts(f"{file}[{part}]")] for part in (":2", "2:", "1:3")}
    assert ids == {":2": ["q0", "q1"], "2:": ["q2", "q3", "q4"], "1:3": ["q1", "q2"]}
    assert len(read_prompts("builtin:test[:7]")) == 7
    with pytest.raises(BadInput, match="holds no prompts"):
        read_prompts(f"{file}[9:]")
    file.rename(tmp_path / "q[1:2]")  # a file of that name is itself
    assert [p.id for p in read_prompts(f"{tmp_path}/q[1:2]")] == [f"q{n}" for n in range(5)]
