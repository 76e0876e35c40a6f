"""Where steps begin and end, and the files of labelled spans."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from benchmarks.family import tokenizer as builtin_tokenizer
from surgeon import jsonl
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import (
    Span,
    Step,
    StepEnds,
    StepRows,
    attributed_steps,
    check_spans,
    split_steps,
    tag_begun,
    thinking_tags,
)
from surgeon.traces import Trace
from surgeon.watch.spans import read_spans


def tokenizer_of(*words: str) -> Any:
    """A tokenizer of exactly these pieces, and an end token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
    )


def byte_level() -> Any:
    """Pieces as byte-level tokenizers spell them, merged separators included."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<end>",
        "<think>",
        "</think>",
        "a",
        "Ġ",
        "Ċ",
        "ĊĊ",
        ".ĊĊ",
        ".Ċ",
        "ĊĠĊ",
        "ĊĊa",
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


TOKENIZERS: dict[str, Any] = {
    "built-in": builtin_tokenizer.build(),
    "one separator": tokenizer_of("<think>", "</think>", "\n\n", "a", " ", "b"),
    "line breaks only": tokenizer_of("<think>", "</think>", "\n", "a", " ", "b"),
    "merged": byte_level(),
    "no thinking": tokenizer_of("\n\n", "\n", "a", ".\n\n"),
    # No tag is a token, and pieces of tags come with text and separators in them.
    "in pieces": tokenizer_of(
        "<", "think", ">", "</", "/", "</think", ".</", "x\n\n<", ">\n\n", "\n", "\n\n", "a", " "
    ),
}
ENDS = {name: StepEnds(tokenizer) for name, tokenizer in TOKENIZERS.items()}
IDS = {
    name: [i for i in range(len(tokenizer)) if name != "built-in"]
    or tokenizer.convert_tokens_to_ids(
        ["<think>", "</think>", "\n\n", "\n", " 3", "Next", "<|im_end|>"]
    )
    for name, tokenizer in TOKENIZERS.items()
}


def online(ends: StepEnds, rows: list[list[int]]) -> list[list[Step]]:
    """The steps of several responses that are read side by side."""
    state, found = StepRows(ends, len(rows)), [[] for _ in rows]

    def end(ended_B: np.ndarray) -> None:
        for b in np.flatnonzero(ended_B):
            found[b].append(Step(int(state.start_B[b]), int(state.position_B[b])))
        state.begin_step(ended_B)

    for t in range(max(map(len, rows), default=0)):
        live_B = np.array([t < len(row) for row in rows])
        id_B = [row[t] if t < len(row) else 0 for row in rows]
        end(live_B & state.closing(id_B))
        end(state.push(id_B, live_B)[2])
    # What is left when the response ends without its end token.
    state.position_B += state.held_B
    end((state.text_B | (state.held_B > 0)) & ~state.over_B)
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_steps_are_the_same_online_and_afterwards(name: str):
    @given(st.lists(st.lists(st.sampled_from(IDS[name]), max_size=20), max_size=4))
    def agree(rows: list[list[int]]) -> None:
        assert online(ENDS[name], rows) == [split_steps(ENDS[name], row) for row in rows]

    agree()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_steps_are_whole_and_have_text(name: str):
    tokenizer = TOKENIZERS[name]

    @given(st.lists(st.sampled_from(IDS[name]), max_size=30))
    def check(ids: list[int]) -> None:
        steps = split_steps(ENDS[name], ids)
        for i, (start, end) in enumerate(steps):
            assert i == 0 or start == steps[i - 1].end
            text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
            assert text.strip()
            # No blank line within a step but for the token that ends it and leading white space.
            before = tokenizer.decode(ids[start : end - 1], clean_up_tokenization_spaces=False)
            assert "\n\n" not in before.lstrip()

    check()


def test_steps_of_a_built_in_response():
    tokenizer = TOKENIZERS["built-in"]
    text = "<think>\nNext +4: 3 = 7\n\nSo *7 -2: 7 = 7\n</think>\n\nAnswer: 7"
    ids = tokenizer(text)["input_ids"]
    steps = split_steps(StepEnds(tokenizer), ids)
    assert [tokenizer.decode(ids[a:b]) for a, b in steps] == [
        "\nNext +4: 3 = 7\n\n",
        "So *7 -2: 7 = 7\n",
    ]


def test_the_template_may_have_opened_the_thinking():
    tokenizer = TOKENIZERS["built-in"]
    ids = tokenizer("Next +4: 3 = 7\n\nSo *7 -2: 7 = 7\n</think>\n\nAnswer: 7")["input_ids"]
    assert len(split_steps(StepEnds(tokenizer), ids)) == 2


def test_without_a_thinking_block_the_whole_response_has_steps():
    tokenizer = TOKENIZERS["no thinking"]
    a, dot, end = tokenizer.convert_tokens_to_ids(["a", ".\n\n", "<end>"])
    assert split_steps(StepEnds(tokenizer), [a, dot, a, a, end]) == [Step(0, 2), Step(2, 4)]
    assert not ENDS["no thinking"].named and ENDS["merged"].named


def test_three_line_breaks_end_one_step():
    tokenizer = TOKENIZERS["line breaks only"]
    a, line = tokenizer.convert_tokens_to_ids(["a", "\n"])
    assert split_steps(StepEnds(tokenizer), [a, line, line, line, line, a]) == [
        Step(0, 3),
        Step(3, 6),
    ]


def test_a_separator_is_recognised_in_one_token_or_two():
    ends, ids = ENDS["merged"], TOKENIZERS["merged"].get_vocab()
    pairs = [
        ("a", "ĊĊ"),
        (".Ċ", "Ċ"),
        ("a", ".ĊĊ"),
        ("Ċ", "ĊĊa"),
        ("Ċ", "ĊĠĊ"),
        ("a", "ĊĠĊ"),
        ("a", "Ċ"),
    ]
    before, now = zip(*((ids[x], ids[y]) for x, y in pairs), strict=True)
    assert ends.after(before, now).tolist() == [True, True, True, True, True, False, False]
    assert ends.thinking_over([ids["</think>"], ids["<end>"], ids["a"]]).tolist() == [
        True,
        True,
        False,
    ]


def pieces(*words: str) -> list[int]:
    return TOKENIZERS["in pieces"].convert_tokens_to_ids(list(words))


@pytest.mark.parametrize(
    "words, expected",
    [
        # The tags of several tokens belong to no step, nor do tokens that hold some of one.
        (["<", "think", ">", "\n", "a", "\n\n", "a", "a", "</", "think", ">", "a"],
         [Step(3, 6), Step(6, 8)]),
        (["<", "think", ">\n\n", "a", "\n", ".</", "think", ">\n\n", "a", "\n\n"], [Step(3, 5)]),
        (["\n", "<", "think", ">", "a", "</think", ">"], [Step(4, 5)]),
        # The template has opened the thinking.
        (["a", "\n\n", "</", "think", ">", "a"], [Step(0, 2)]),
        # What only begins like a tag is text, as is an opening tag after text.
        (["a", "</", "a", "\n\n", "<", "</", "think", ">", "a"], [Step(0, 4), Step(4, 5)]),
        (["a", "<", "think", ">", "a"], [Step(0, 5)]),
        (["<", "a", "think", ">", "\n\n"], [Step(0, 5)]),
        # A token that ends a step ends it, whatever it ends with.
        (["a", "x\n\n<", "/", "think", ">", "a"], [Step(0, 2)]),
        # A response that was cut within a tag ends there; one that ended has no more text.
        (["a", "</", "think"], [Step(0, 3)]),
        (["a", "</", "<end>"], [Step(0, 1)]),
    ],
)  # fmt: skip
def test_a_tag_may_be_several_tokens(words: list[str], expected: list[Step]):
    ids, ends = pieces(*words), ENDS["in pieces"]
    assert split_steps(ends, ids) == expected
    assert online(ends, [ids, pieces("a")])[0] == expected
    over = [ends.ends_thinking(ids[: n + 1]) for n in range(len(ids))]
    assert any(over) == (words[-1] == "<end>" or "".join(words).find("</think>") > 0)


def test_a_tag_that_has_begun_goes_with_its_row():
    state = StepRows(ENDS["in pieces"], 1)
    a, slash, think, over = pieces("a", "</", "think", ">")
    for i in (a, slash):
        state.push([i], np.array([True]))
    state.grow(3)
    state.move([0], [2])
    state.seat(0)
    live_B = np.array([False, False, True])
    assert not state.closing([over, over, think]).any()
    counted_B, _, _ = state.push([a, a, think], live_B)
    assert not counted_B.any() and state.held_B.tolist() == [0, 0, 2]
    # The step is over before the tag.
    assert state.closing([over, over, over]).tolist() == [False, False, True]
    assert state.position_B.tolist() == [0, 0, 1]
    counted_B, _, _ = state.push([a, a, a], live_B)
    # It was none: its tokens count, before this one.
    assert counted_B.tolist() == [False, False, True] and state.freed == {2: 2}
    assert state.position_B[2] == 4
    state.rewind(2)
    assert state.position_B[2] == 0 and not state.closing([over] * 3).any()


def test_a_step_before_a_tag_of_several_tokens_is_known_late():
    ends = ENDS["in pieces"]
    for words, begun in ((["a", "</", "think", ">"], True), (["a", "<end>"], False), (["a"], False),
                         (["a", "\n\n", "</", "think", ">"], False)):  # fmt: skip
        ids = pieces(*words)
        assert tag_begun(ends, ids, split_steps(ends, ids)[0]) is begun


def test_letters_of_several_bytes_may_lie_in_several_tokens():
    """The left half-circle is three bytes, here of two tokens."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = "".join(bytes_to_unicode()[byte] for byte in "◁/think▷".encode())
    words = ["<unk>", "a", letters[:2], letters[2:5], letters[5:], *sorted(set(letters))]
    built = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, "<unk>"))
    built.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built)
    tokenizer.chat_template = "{{ '◁think▷' }}{{ '◁/think▷' }}"
    ends = StepEnds(tokenizer)
    assert ends.thinking == thinking_tags(tokenizer) == ("◁think▷", "◁/think▷")
    assert split_steps(ends, [1, 2, 3, 4, 1]) == [Step(0, 1)]
    tokenizer.chat_template = None
    assert thinking_tags(tokenizer) == ("<think>", "</think>")


def test_ids_beyond_the_tokenizer_count_as_text():
    assert split_steps(ENDS["no thinking"], [10_000]) == [Step(0, 1)]


# ---------------------------------------------------------------- files


def test_spans_survive_the_file(tmp_path: Path):
    spans = [
        Span("p1", 0, "intra", 2, 2),
        Span("p2", 3, "inter", 1, 4, failing=False, pair=7, reason="went on – fine"),
    ]
    for span in spans:
        jsonl.append(tmp_path / "spans.jsonl", span._asdict())
    assert read_spans(tmp_path / "spans.jsonl") == spans


def test_a_torn_last_line_is_left_out_and_mended(tmp_path: Path):
    file, span = tmp_path / "spans.jsonl", Span("p", 0, "intra", 0, 0)
    jsonl.append(file, span._asdict())
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:20])
    assert read_spans(file) == [span]
    jsonl.append(file, span._asdict())
    assert read_spans(file) == [span, span]


def test_a_hand_made_file_needs_the_five_fields_only(tmp_path: Path):
    file = tmp_path / "spans.jsonl"
    file.write_text('{"prompt_id": "p", "sample": 0, "level": "inter", "first": 0, "last": 2}\n\n')
    assert read_spans(file) == [Span("p", 0, "inter", 0, 2)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "expected a span"),
        ("{", "no valid JSON"),
        ('{"sample": 0, "level": "intra", "first": 0, "last": 0}', "found nothing as prompt_id"),
        ('{"prompt_id": "p", "sample": 0, "level": "x", "first": 0, "last": 0}', "intra or inter"),
        ('{"prompt_id": "p", "sample": 0, "level": "intra", "first": 3, "last": 1}', "as last"),
        ('{"prompt_id": "p", "sample": true, "level": "intra", "first": 0, "last": 0}', "sample"),
        (
            '{"prompt_id": "", "sample": 0, "level": "intra", "first": 0, "last": 0, "failing": 1}',
            "true or false",
        ),
        ('{"prompt_id": "", "sample": 0, "level": "intra", "first": "0", "last": 0}', "as first"),
    ],
)
def test_a_line_that_is_no_span_is_named(tmp_path: Path, line: str, said: str):
    file = tmp_path / "spans.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(BadInput, match=said) as error:
        read_spans(file)
    assert str(error.value).startswith(f"{file}:1: ")


def test_spans_that_miss_their_trace_are_refused():
    tokenizer = TOKENIZERS["built-in"]
    ids = tokenizer("<think>\nNext +4: 3 = 7\n\nNext -2: 7 = 5\n</think>\n\nAnswer: 5")["input_ids"]
    trace = Trace("p", 0, [1], ids, "", "stop")
    check_spans([Span("p", 0, "intra", 0, 1)], [trace], StepEnds(tokenizer))
    with pytest.raises(BadInput, match="ends at step 2, but the trace has 2 steps"):
        check_spans([Span("p", 0, "intra", 0, 2)], [trace], StepEnds(tokenizer))
    with pytest.raises(BadInput, match="not among the 1 traces"):
        check_spans([Span("p", 1, "intra", 0, 0)], [trace], StepEnds(tokenizer))


@pytest.mark.parametrize(
    "attempts, opening, expected",
    [
        ((), 1, [(2, 9)]),  # not told apart: all of the stretch
        ((2, 5, 6), 1, [(2, 2), (5, 5), (6, 6)]),
        ((2, 5, 6), 2, [(2, 3), (5, 5), (6, 7)]),  # an attempt ends where the next begins
        ((3, 9), 4, [(3, 6), (9, 9)]),  # and with the stretch
    ],
)
def test_sec21_inter_is_attributed_over_the_initial_steps_of_its_attempts(
    attempts: tuple[int, ...], opening: int, expected: list[tuple[int, int]]
):
    span = Span("q", 0, "inter", 2, 9, attempts=attempts)
    assert attributed_steps(span, opening) == expected
    # The other levels take all of theirs: the wrong step, the first K steps.
    assert attributed_steps(span._replace(level="intra"), opening) == [(2, 9)]
