"""Answers by value: the set of answers with known golds, votes, and what no text may do."""

import json
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.answers import (
    EXTRACTORS,
    canonical,
    check_many,
    checks,
    choice_letter,
    classes,
    classes_of,
    extract,
    gold_problem,
    majority,
    parse_extractor,
    parse_tags,
    read_answers,
    same,
)
from surgeon.answers import votes as voting
from surgeon.errors import BadInput
from surgeon.traces import Trace

ROWS: list[dict] = [
    {**json.loads(line), **({"half": name[8:-6]} if "blind" in name else {})}
    for name in (
        "answers.jsonl",
        "answers_fresh.jsonl",
        "answers_blind.jsonl",
        "answers_blind4.jsonl",
    )
    for line in (Path(__file__).parent / "data" / name).read_text().splitlines()
]
PIECES = st.sampled_from(
    ["\\boxed{", "{", "}", "\\{", "\\", "<think>", "</think>", "Answer:", "answer is ", "(C)", "**",
     "A", "I ", "1,000", "-3", ".5", "$", "\\text{", ".", ",", "{,}", "\n", " ", "−", "é", "\\frac",
     "\\,", "+", "^", "!", "|", "\\sqrt", "\\pm", "\\cup", "(", "[", "]", ")", "=", "<", "\\le",
     "x", "/", "0", "%", "cm", " and ", ":", "_", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
     "e", "\\overline{", "i", "\\log", "mod", "\\circ", "°", "9", "²", "∞", "٣", "½", "####", "é"]
)  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=14).map("".join))


def is_right(row: dict) -> bool:
    """Whether the reader finds the row's gold answer in its response."""
    given = row.get("settings") or {}
    think = [tuple(given["think"])] if "think" in given else [("<think>", "</think>")]
    how = "choice" if row["kind"] == "choice" else "auto"
    answer = parse_extractor(how, given.get("words", ()), think)(row["response"])
    if answer is None:
        return False
    if how == "choice":
        return choice_letter(answer) == choice_letter(row["gold"])
    return same(answer, row["gold"])


@pytest.mark.parametrize(
    ("half", "share", "least"),
    [
        ("development", 0.99, 450), ("figures", 0.99, 450), ("fresh", 0.99, 400),
        ("blind", 0.98, 400), ("blind4", 0.97, 300),
    ],
)  # fmt: skip
def test_the_answer_set_is_read_and_compared_right(half: str, share: float, least: int):
    rows = [row for row in ROWS if row["half"] == half]
    found = [is_right(row) for row in rows]
    wrong_equal = [
        r["id"] for r, equal in zip(rows, found, strict=True) if equal and not r["right"]
    ]
    assert not wrong_equal
    assert (
        sum(f == r["right"] for f, r in zip(found, rows, strict=True)) >= share * len(rows) > least
    )


@pytest.mark.parametrize(
    "spellings",
    [
        [r"\frac12", r"\frac{1}{2}", "0.5", "1/2", "$.50$", r"\dfrac{2}{4}", r"\(1/2\)"],
        [r"12\,\text{cm}", r"12 \text{ cm}", "12", "12 centimeters", "12cm", "x = 12"],
        ["x=5", "5", "5.", "**5**", "five", r"\mathbf{5}"],
        [r"\$18", "18", "$18.00", "18 dollars", "USD 18"],
        ["004", "4"],
        ["True", "true", r"\text{True}", "TRUE."],
        ["1,234", "1234", "1{,}234", r"1\,234", "1 234", "1.234e3"],
        [r"2\sqrt{2}", r"\sqrt8", "√8", "2^{3/2}", r"\frac{4}{\sqrt{2}}"],
        ["(x+1)^2", "x^2+2x+1", "1+2x+x²", r"(1+x)\cdot(x+1)"],
        [r"\{1, 2\}", r"\{2,1\}", "1 and 2", "2, 1", "x=1 or x=2"],
        ["(0, 1]", r"\left(0,1\right]", r"x\in(0,1]", r"0<x\le1"],
        ["3+4i", "4i + 3"],
        [r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"],
        ["2 1/2", r"2\frac{1}{2}", "5/2", "2.5", "2½", "2 ½"],
        ["⅔", "2/3"],
        ["3.5 million", r"3.5\text{ million}", "$3.5 million", "3,500,000", "3500000 dollars"],
        ["five thousand", "5,000", "5 thousand"],
        ["(x, y) = (4, 1)", "(4, 1)", "(x,y)=(4,1)"],
        ["Paris", "paris.", r"\text{Paris}", "'Paris'"],
        ["(B) 12", "B", "(B)", "B. twelve"],
        ["March 5", "5 March", "5th of March"],
        [r"0.\overline{3}", "1/3"],
        ["x+y=2", "y = 2 - x + 0y", "2x+2y=4"][::2],
    ],
)
def test_one_value_is_one_vote_however_it_is_written(spellings: list[str]):
    assert {same(a, b) for a, b in combinations(spellings, 2)} == {True}
    assert len({canonical(spelling) for spelling in spellings}) == 1
    assert len(set(classes(spellings))) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/4", "3/4"), ("(0,1)", "(0,1]"), ("12 cm", "12 kg"), ("x>3", "x<3"), ("$5", "€5"),
        ("(1,2)", "(2,1)"), ("1/3", "0.33"), ("no", "on"), ("1.414", r"\sqrt{2}"), ("3:45", "3:54"),
        ("2^{10}", "1000"), ("50%", "5"), ("1,234", "1.234"), ("101_2", "110_2"), ("5!", "5"),
        (r"\sqrt{x^2}", "x"), ("(1,234)", "1234"), ("A", "B"), ("7 apples", "8 apples"),
        (r"-\infty", r"\infty"), ("1½", "1/2"),
        ("3.5 million", "3.5"), ("(C) 24", "42"), ("2x", "2"),
        ("Listen", "Silent"), (r"\pm 2", "2"),
        ("3:45 am", "3:45 pm"), (r"\sin 30", r"\sin 30^\circ"), ("1e400", "1e401"), ("i", "1"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)  # fmt: skip
def test_two_values_are_two_votes(one: str, other: str):
    assert not same(one, other)
    assert len(set(classes([one, other]))) == 2


def test_equality_that_is_not_transitive_splits_into_exact_forms():
    """12 cm = 12 = 12 kg, but 12 cm and 12 kg differ: three classes. Without the 12 kg: one."""
    for order in permutations(["12 cm", "12", "12 kg", "12.0 cm"]):
        votes = dict(zip(order, classes(order), strict=True))
        assert votes["12 cm"] == votes["12.0 cm"]
        assert len(set(votes.values())) == 3
    assert len(set(classes(["12 cm", "12", "12.0 cm"]))) == 1
    assert len(set(classes(["50%", "0.5"]))) == 1
    assert len(set(classes(["50%", "0.5", "50"]))) == 3


def test_math_verify_joins_what_has_no_exact_form():
    r"""An integral is no expression of ours; math-verify says that \int_0^1 2x dx is 1."""
    one = classes([r"\int_0^1 2x\,dx", "1", "2", None])
    assert one[0] == one[1] != one[2]
    assert one[3] is None
    assert classes([None, "2", "1", r"\int_0^1 2x\,dx"]) == one[::-1]


def test_the_majority_is_the_same_for_every_order():
    votes = ["0.5", "1/2", "3", "3.0", None, "7"]
    assert len({majority(classes(order)) for order in permutations(votes)}) == 1
    assert majority([None, None]) is None
    assert majority(classes(["1/2", ".5", "3"])) == "0.5"


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), TEXT), max_size=6), st.randoms(use_true_random=False))
def test_voting_never_raises_and_does_not_depend_on_the_order(answers: list, random):
    # Workers are slow to start: what math-verify says of pairs is a fixed table either way.
    before, voting._compare = voting._compare, lambda pairs: None
    try:
        order = list(range(len(answers)))
        random.shuffle(order)
        votes = classes(answers)
        assert classes([answers[i] for i in order]) == [votes[i] for i in order]
        assert [v is None for v in votes] == [a is None for a in answers]
        assert majority(votes) == majority([votes[i] for i in order])
        assert classes_of([answers, answers[:2]])[0] == votes
        letters = classes(answers, "choice")
        assert classes([answers[i] for i in order], "choice") == [letters[i] for i in order]
    finally:
        voting._compare = before


@settings(deadline=None)
@given(TEXT, TEXT)
def test_reading_and_comparing_never_raise(text: str, other: str):
    for how in EXTRACTORS:
        extract(text, how)
    assert same(text, text)
    assert same(text, other) == same(other, text)
    assert bool(canonical(text).strip()) == bool(text.strip())
    choice_letter(text)
    gold_problem(text, "math")


def test_the_check_math_says_equal_wherever_math_verify_does():
    pairs = [("0.3333333", r"\frac{1}{3}"), (r"\int_0^1 2x\,dx", "1"), (r"x^2-1", "(x-1)(x+1)")]
    assert [v.correct for v in check_many(pairs, "math")] == [True] * 3


def test_pairs_about_which_math_verify_is_wrong_stay_different():
    pairs = [
        ("3:45 pm", "3:45 am"), ("42_7", "42_8"), ("1:2:3", "1:3:2"), ("2024-03-05", "2024-05-03"),
        ("5 kg", "5 g"),
    ]  # fmt: skip
    assert [v.correct for v in check_many(pairs, "math")] == [False] * 5


@pytest.mark.parametrize(
    "gold",
    ["See the proof above.", r"\frac{1}{", "It depends on which of the two boxes we take", " "],
)
def test_a_gold_answer_without_a_value_is_named(gold: str):
    assert gold_problem(gold, "math")


@pytest.mark.parametrize(
    "gold",
    ["12", r"\frac{1}{2}", "no real solutions", "infinitely many", "Paris", "So 9*2=18.\n#### 18",
     r"\{1,2\}", "12 cm", "x=5", r"\boxed{7}", "3:45 p.m.", "(0, 1]", r"\int_0^1 x\,dx", "2x+1"],
)  # fmt: skip
def test_a_gold_answer_with_a_value_is_taken(gold: str):
    assert gold_problem(gold, "math") is None


class _Tokenizer:
    """Of a template that names [THINK] and opens it for one of two prompts."""

    chat_template = "[THINK] ... [/THINK]"

    def decode(self, ids: list[int]) -> str:
        return {1: "Begin with <think>. [INST]", 2: "[INST] [THINK]\n"}[ids[0]]


def test_thinking_is_known_from_each_prompt_and_the_template_or_by_setting():
    texts = {1: "[THINK]The answer is 1.[/THINK]The answer is 2.", 2: "The answer is 3."}
    traces = [Trace(str(i), 0, [i], [0], text, "stop") for i, text in texts.items()]
    traces.append(Trace("3", 0, [1], [0], "<<The answer is 4.>> The answer is 5.", "stop"))
    read = parse_extractor("auto")
    tags, tokenizer = parse_tags(["<< >>"]), cast(Any, _Tokenizer())
    for order in permutations(traces):
        answers = read_answers(order, read, tokenizer, tags)
        found = {t.prompt_id: answer for t, answer in zip(order, answers, strict=True)}
        assert [found[i] for i in "123"] == ["2", None, "5"]
    with pytest.raises(BadInput, match="two tags"):
        parse_tags(["</think>"])


def test_an_option_is_its_letter_and_the_number_beside_it():
    assert same(r"\text{(C) } 24", "24")
    assert same("(C) 24", "C")
    assert not same("(C) 24 kg", "24 cm")


def test_a_bare_pair_is_no_pair_of_names_in_another_order():
    assert not same("(y, x) = (4, 1)", "(4, 1)")


def test_one_result_in_bold_stands_before_a_remark_but_not_before_a_conclusion():
    assert extract("The number is **28**.\n\nThere were 30 at first.") == "28"
    assert extract("The price is **3**.\n\nSo she pays 12.") == "12"
    assert extract("One is **3**.\n\nThe other is **4**.\n\nThere are 7.") == "7"
    assert extract("La respuesta: 22 porque 11 por 2 es 22.") == "22"


@pytest.mark.parametrize(
    ("response", "gold", "near_miss"),
    [
        ("The train runs at 62 km/h, not 26 km/h.", "62", "26"),
        ("Its seat is The Hague (not Amsterdam).", "The Hague", "Amsterdam"),
        ("It is 20°C outside.", "20 degrees", "20°F"),
        ("The current is 1.5 A.", "1500 mA", "1.5 mA"),
        ("It weighs 0.35 kg.", "350 g", "35 g"),
        ("The car goes 36 km/h.", "10 m/s", "36 m/s"),
        ("Each costs 5 cents.", "$0.05", "$5"),
        ("The diagonal is 5√2 cm.", r"5\sqrt{2}", "5"),
        ("The area is 9π square inches.", r"9\pi", "9"),
        ("The mass is 3×10⁻⁵ kg.", r"3\times10^{-5}", "10"),
        ("It opened on May 24, 1883.", "24 May 1883", "1883"),
        ("That brings us to 2023-11-05.", "5 November 2023", "2023-05-11"),
        ("She arrives at 7 pm.", "7:00 pm", "7:00 am"),
        ("So he ate ⅜ of the cake.", "3/8", "8"),
        ("The odds are 10 to 4, or 5 : 2 in lowest terms.", "5:2", "10:2"),
        ("Hence x < 3.", r"(-\infty, 3)", "3"),
        ("The acid is $\\mathrm{HNO_3}$.", "HNO3", "HNO2"),
        ("Therefore the equation has no integer solutions.", "no integer solutions", "0"),
        ("This limit does not exist.", "DNE", "0"),
        ("No, the lines never meet because 3 = 3.", "no", "3"),
        ("The opera was composed by Verdi.", "Verdi", "the opera"),
        ("Answer: 8 (of 20 tries)", "8", "20"),
        ("Its density is 7.9 g/cm³.", r"7.9\ \text{g/cm}^3", "7.9 kg"),
        ("Adding up, a total of $4 + 5 = 9$ pears.", "9", "4"),
    ],
)  # fmt: skip
def test_what_a_sentence_says_of_its_answer_is_read_with_it(
    response: str, gold: str, near_miss: str
):
    answer = parse_extractor("auto")(response)
    assert answer is not None
    assert same(answer, gold) and not same(answer, near_miss)


def test_a_lone_letter_is_a_choice():
    read = parse_extractor("choice")
    assert [read(text) for text in ("b", "(c)", "**d**.", " a ")] == ["B", "C", "D", "A"]
    assert read("e is Euler's number") is None


@pytest.mark.parametrize(("one", "other"), [("-2 1/2", "-3/2"), (r"12\frac{1}{2}\%", r"12\%")])
def test_math_verify_isnt_asked_about_mixed_numbers(one: str, other: str):
    """It takes them for a sum or for their whole part; of a refusal it takes a number."""
    assert not checks.same_value("It depends on which of the 4 doors is open.", "4")
    assert not checks.same_value(one, other) and not same(one, other)
