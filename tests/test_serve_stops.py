"""Text of tokens that come one by one, and stop strings in it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from surgeon.checkpoint import resolve
from surgeon.serve.stops import StopStrings
from surgeon.traces.texts import BROKEN, Detokenizer

TEXT = st.text(st.sampled_from("a b\n€é😀漢\u0301\u200d👩🏽"), max_size=60)


def bytewise() -> Any:
    """A tokenizer whose token ids are bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    made: Any = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def falling_back() -> Any:
    """Words with a space before them, and bytes for characters it doesn't know."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = [f"<0x{n:02X}>" for n in range(256)] + ["▁", "a", "▁a", "b", "▁b"]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    made: Any = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made)


BYTEWISE, FALLING_BACK, BUILTIN = bytewise(), falling_back(), resolve("builtin:base").tokenizer()


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    one = Detokenizer(tokenizer)
    return [*map(one.push, ids), one.finish()]


def whole(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""


@given(TEXT)
def test_pieces_are_whole_characters_and_together_the_text(text: str):
    pieces = pieces_of(BYTEWISE, list(text.encode()))
    assert "".join(pieces) == text
    assert not any(BROKEN in piece for piece in pieces)
    # A character is there with its last byte.
    ends = [len(letter.encode()) - 1 for letter in text]
    expected = [
        piece for letter, n in zip(text, ends, strict=True) for piece in [""] * n + [letter]
    ]
    assert pieces == [*expected, ""]


@given(TEXT)
def test_words_keep_the_spaces_between_them(text: str):
    ids = FALLING_BACK(text.replace(" ", "▁"), add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(FALLING_BACK, ids)) == whole(FALLING_BACK, ids)


@given(st.lists(st.integers(0, 173), max_size=60))
def test_special_tokens_are_text(ids: list[int]):
    assert "".join(pieces_of(BUILTIN, ids)) == whole(BUILTIN, ids)


def one_each(text: str) -> str:
    """Runs of broken bytes as one: how many there are depends on where they are cut."""
    while BROKEN * 2 in text:
        text = text.replace(BROKEN * 2, BROKEN)
    return text


@given(st.lists(st.one_of(st.binary(max_size=12), TEXT.map(str.encode)), max_size=8))
def test_bytes_that_are_no_text_cost_no_character_beside_them(parts: list[bytes]):
    ids = list(b"".join(parts))
    assert one_each("".join(pieces_of(BYTEWISE, ids))) == one_each(whole(BYTEWISE, ids))


def test_bytes_that_are_no_text_dont_pile_up():
    one = Detokenizer(BYTEWISE)
    for _ in range(1000):
        one.push(0xFF)
        assert len(one.ids) < 20
    for byte in "漢".encode():
        last = one.push(byte)
    assert last.strip(BROKEN) == "漢"


# --- stop strings ---------------------------------------------------------------------------------

STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4)


@given(st.text("ab.", max_size=30), STOPS, st.booleans())
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], keep: bool):
    """Letter by letter: the stop string that is complete first, of several the longest."""
    one = StopStrings(stops, keep)
    found = "".join(one.push(letter) for letter in text) + one.finish()
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    if not ends:
        assert (found, one.hit) == (text, None)
        return
    complete = [stop for stop in stops if text[: ends[0]].endswith(stop)]
    hit = max(complete, key=len)
    assert one.hit == hit
    assert found == text[: ends[0] if keep else ends[0] - len(hit)]


@given(st.lists(st.text("ab.", max_size=5), max_size=8), STOPS)
def test_no_piece_holds_what_may_be_a_stop_string(pieces: list[str], stops: list[str]):
    one = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += one.push(piece)
        assert not any(stop in shown for stop in stops)
    text, found = "".join(pieces), shown + one.finish()
    assert text.startswith(found)
    assert (one.hit is None) == (found == text) == (not any(stop in text for stop in stops))


def test_text_waits_only_while_it_may_be_a_stop_string():
    one = StopStrings(["\n\n", "stop"])
    assert [one.push(p) for p in ("a\n", "b", "st", "op", "more")] == ["a", "\nb", "", "", ""]
    assert one.hit == "stop" and one.finish() == ""
    kept = StopStrings(["</s>"], keep=True)
    assert [kept.push(p) for p in ("x<", "/s", "> y")] == ["x", "", "</s>"]
