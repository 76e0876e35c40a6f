"""Reading answers out of responses, their canonical form, and checks with a hard time limit."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.answers import (
    CHECKS,
    EXTRACTORS,
    CheckVerdict,
    after_thinking,
    canonical,
    check_many,
    choice_letter,
    classes,
    extract,
    gold_problem,
    parse_check,
    parse_extractor,
    same,
)
from surgeon.errors import BadInput

# Text in which the things that extractors look for are frequent.
PIECES = st.sampled_from(
    ["\\boxed{", "{", "}", "\\{", "\\", "<think>", "</think>", "Answer:", "answer is ", "(C)", "**",
     "A", "I ", "1,000", "-3", ".5", "$", "\\text{", ".", ",", "{,}", "\n", " ", "−", "é", "\\frac",
     "\\,", "+"]
)  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))


@pytest.mark.parametrize(
    ("text", "how", "wanted"),
    [
        # boxed
        (r"so \boxed{5}, no: \boxed{\frac{1}{2}} 7", "boxed", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "boxed", "5"),
        (r"\boxed{\{1,2\}} \boxed{3", "boxed", r"\{1,2\}"),
        (r"\boxed {x}\boxed{ }", "boxed", "x"),
        (r"\boxed{\left\{ x \right.}", "boxed", r"\left\{ x \right."),
        ("no box, 5", "boxed", None),
        # choice
        ("the answer is (C).", "choice", "C"),
        ("Answer: C", "choice", "C"),
        ("**Answer:** **D**", "choice", "D"),
        ("Answer: b", "choice", "B"),
        ("Answer: A because (B) fails", "choice", "A"),
        (r"(A) or \boxed{\text{(B)}}", "choice", "B"),
        ("Option A is wrong. The correct option is D.", "choice", "D"),
        ("maybe (A), rather (E)", "choice", "E"),
        ("B) Paris", "choice", "B"),
        ("**J**", "choice", "J"),
        ("so D", "choice", "D"),
        ("I think A good idea", "choice", None),
        ("The answer is I don't know", "choice", None),
        ("the answer is a number", "choice", None),
        ("DNA and K", "choice", None),
        # number
        ("3 apples and 4 pears", "number", "4"),
        ("it is -1,234.50.", "number", "-1234.50"),
        ("10-3", "number", "3"),
        ("minus −7", "number", "-7"),
        ("1,2,3", "number", "3"),
        ("1{,}000", "number", "1000"),
        ("x2 v1.2.3", "number", None),
        ("6.02e23 of H2O", "number", "6.02e23"),
        ("得5", "number", "5"),
        ("a .5", "number", ".5"),
        # last line, regex
        ("one\n two \n\n", "last-line", "two"),
        (" \n", "last-line", None),
        ("Answer: 3 ... Answer: 4", r"Answer: (\d+)", "4"),
        ("Answer: 3", r"(?:Answer: (\d))?", "3"),
        ("nothing", r"Answer: (\d+)", None),
        # auto, in its order
        (r"\boxed{5} Answer: 6", "auto", "5"),
        ("Answer: 42 apples\n7", "auto", "42 apples"),
        ("**Final answer:**\n\n x = 7 **", "auto", "x = 7"),
        ("x is 3\nthe end", "auto", "3"),
        ("I give\nup", "auto", "up"),
        ("", "auto", None),
        # thinking
        ("<think>1</think>2 and 3", "number", "3"),
        ("<think>so 1", "auto", None),
        ("so 1</think>two", "auto", "two"),
        ("a<think>1</think> 2 <think> 3", "auto", None),
    ],
)
def test_extract(text: str, how: str, wanted: str | None):
    assert extract(text, how) == wanted


@given(TEXT, st.sampled_from([*EXTRACTORS, r"Answer: (.*)"]))
def test_extract_returns_a_non_empty_answer_or_none_for_any_text(text: str, how: str):
    answer = extract(text, how)
    assert answer is None or (answer.strip() == answer and answer != "")
    if "<think>" in text.rpartition("</think>")[2]:
        assert answer is None


@given(TEXT)
def test_boxed_is_balanced_and_stands_in_the_text(text: str):
    answer = extract(text, "boxed")
    if answer is not None:
        plain = answer.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        depths = [plain[: i + 1].count("{") - plain[: i + 1].count("}") for i in range(len(plain))]
        assert min(depths, default=0) >= 0
        assert not depths or depths[-1] == 0
        assert answer in text


NESTED = st.recursive(
    st.text("ab 1"), lambda inner: st.tuples(inner, inner).map(lambda two: f"{two[0]}{{{two[1]}}}")
)


@given(NESTED.filter(str.strip), TEXT.filter(lambda t: t[-1:] != "\\" and "<th" not in t))
def test_boxed_finds_what_was_put_in_a_box(inside: str, before: str):
    assert extract(f"{before}\\boxed{{{inside}}}", "boxed") == inside.strip()


@pytest.mark.parametrize("how", EXTRACTORS)
def test_a_degenerate_response_is_read_in_linear_time(how: str):
    pieces = ("\\boxed{", "Answer:", "answer ", "(A", "1,000,", "{", " ", "\\boxed{{", "A ", "\n")
    start = time.process_time()
    for piece in pieces:
        extract(piece * 20_000, how)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("boxd", "0 groups"),
        ("(a)(b)", "2 groups"),
        ("(a", "not a valid regex"),
        ("a{99999999999999999999}", "not a valid regex"),
        ("no_such_module:f", "can't be imported"),
        ("math:no_such_function", "has no function"),
    ],
)
def test_a_wrong_extractor_is_refused_before_any_text_is_read(how: str, words: str):
    with pytest.raises(BadInput, match=words):
        parse_extractor(how)


def test_after_thinking():
    assert after_thinking("a") == "a"
    assert after_thinking("a</think>b</think>c") == "c"
    assert after_thinking("<think>a") is None


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's in the current directory."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            import os, subprocess, sys, time

            def first_word(text):
                return text.split()[0] if text.split() else None

            def three(text):
                return 3

            def same_length(answer, gold):
                print("noise on stdout")
                return len(answer) == len(gold)

            def sleepy(answer, gold):
                if answer == "sleep":
                    code = "import time; time.sleep(60)"
                    subprocess.Popen([sys.executable, "-c", code, os.getcwd()])
                    time.sleep(60)
                if answer == "spin":
                    while True:
                        pass
                if answer == "exit":
                    os._exit(7)
                return answer == gold

            def failing(answer, gold):
                raise KeyError("oops")
            """
        )
    )
    root = str(Path(__file__).parent.parent)
    monkeypatch.setattr(sys, "path", [root, *(p for p in sys.path if p != os.getcwd())])
    monkeypatch.chdir(tmp_path)
    return name


def test_extractor_from_a_module_in_the_current_directory(mine: str):
    assert extract("<think>x</think> so 5", f"{mine}:first_word") == "so"
    assert extract("", f"{mine}:first_word") is None
    with pytest.raises(BadInput, match="returned by"):
        extract("a", f"{mine}:three")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (r" \text{ 1,000. } ", "1000"),
        (r"$\dfrac{1}{2}$", "0.5"),
        (r"\(\left( 1 ,\, 2 \right)\)", "(1, 2)"),
        ("1{,}000", "1000"),
        ("1,000 m", "1000"),
        ("(1,234)", "(1, 234)"),
        ("+5.0", "5"),
        ("3.140", "3.14"),
        ("−3", "-3"),
        ("007", "7"),
        (r"50\%", "50"),
        ("Paris.", "paris"),
        ("...", "..."),
        ("", ""),
        ("New  York", "new york"),
    ],
)
def test_canonical(answer: str, wanted: str):
    assert canonical(answer) == wanted


@given(TEXT)
def test_canonical_never_raises_or_empties_an_answer(answer: str):
    once = canonical(answer)
    assert bool(once.strip()) == bool(answer.strip())


@pytest.mark.parametrize(
    "answer", ["C", "(C)", "c.", "**C**", "Answer: C", r"\text{C}", "C) Paris"]
)
def test_choice_letter(answer: str):
    assert choice_letter(answer) == "C"


def test_exact_and_choice_checks():
    pairs = [("1,000", "1000"), ("5", "6"), (None, "5"), ("Paris", "paris")]
    assert [v.correct for v in check_many(pairs, "exact")] == [True, False, False, True]
    pairs = [("(C)", "C"), ("c", "C"), ("D", "C"), (None, "C"), ("42", "C")]
    assert [v.correct for v in check_many(pairs, "choice")] == [True, True, False, False, False]


def test_a_check_of_the_users_is_an_example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")
    pairs = [("3.14", "3.1416"), ("3.2", "3.1416"), ("1,000", "1000"), ("pi", "3"), ("x", "x")]
    verdicts = check_many([*pairs, (None, "1")], "my_check:within_a_percent")
    assert [v.correct for v in verdicts] == [True, False, True, False, False, False]


def test_an_extractor_of_the_users_is_an_example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(Path(__file__).parents[1] / "examples")
    texts = ["so [[7]], no: [[ 8 ]]", "the answer is 8", "[[]]"]
    assert [extract(text, "my_extractor:bracketed") for text in texts] == ["8", None, None]


def test_every_row_of_the_checks_decides_and_names_the_form_of_a_vote():
    for how, check in CHECKS.items():
        assert parse_check(how) is check
        assert check_many([("B", "B"), ("B", "C")], how) == [
            CheckVerdict(True), CheckVerdict(False),
        ]  # fmt: skip
    assert classes(["(b) Paris"], "choice") == ["B"]
    assert classes(["1,000.0"], "math") == classes(["1000"]) == ["1000"]


def test_gold_answers_that_nothing_could_equal_are_named():
    assert gold_problem("C", "choice") is None
    assert "letter" in str(gold_problem("42", "choice"))
    assert "empty" in str(gold_problem(" ", "exact"))


@pytest.mark.parametrize("how", ["exactly", "no_such_module:f", "math:no_such_function", ""])
def test_a_wrong_check_is_refused(how: str):
    with pytest.raises(BadInput, match="check"):
        parse_check(how)


def test_math_check_knows_equal_expressions_and_stops_a_power_tower():
    pairs = [
        ("0.5", r"\frac{1}{2}"), ("x^2+1", "1+x^2"), (r"\{2,1\}", r"\{1,2\}"), ("50%", "0.5"),
        ("4", "3"), ("9^{9^{9^{9}}}", "5"), (None, "1"), ("a word", "a  word."), ("2", "1"),
    ]  # fmt: skip
    verdicts = check_many(pairs, "math", timeout_s=2)
    right = [True, True, True, True, False, False, False, True, False]
    assert [v.correct for v in verdicts] == right
    assert [v.timed_out or v.died for v in verdicts] == [False] * 5 + [True] + [False] * 3


def processes_of(mark: str) -> list[str]:
    """Command lines of running processes that contain `mark`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in command:
            found.append(command)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_check_past_its_limit_is_killed_with_its_children_and_the_rest_goes_on(mine: str):
    pairs = [("sleep", "1"), ("1", "1"), ("spin", "1"), ("exit", "1"), ("2", "1"), ("3", "3")]
    start = time.monotonic()
    verdicts = check_many(pairs, f"{mine}:sleepy", timeout_s=1)
    assert time.monotonic() - start < 20
    assert verdicts == [
        CheckVerdict(False, timed_out=True),
        CheckVerdict(True),
        CheckVerdict(False, timed_out=True),
        CheckVerdict(False, died=True),
        CheckVerdict(False),
        CheckVerdict(True),
    ]
    assert not processes_of(str(Path.cwd()))


def test_checks_run_from_a_thread_and_equal_pairs_run_once(mine: str):
    got: list[CheckVerdict] = []
    pairs = [("aa", "bb"), ("a", "bb"), ("aa", "bb")] * 5
    thread = threading.Thread(
        target=lambda: got.extend(check_many(pairs, f"{mine}:same_length", workers=1))
    )
    thread.start()
    thread.join()
    assert [v.correct for v in got] == [True, False, True] * 5


def test_a_check_that_raises_is_reported_and_not_counted_as_wrong(mine: str):
    with pytest.raises(BadInput, match="raised an exception"):
        check_many([("a", "b"), ("c", "d")], f"{mine}:failing")


def test_a_worker_ends_itself_when_its_parent_was_killed(mine: str):
    script = (
        "import sys; from surgeon.answers import check_many; print('up', flush=True); "
        f"check_many([('spin', '1')], '{mine}:sleepy', timeout_s=0.5)"
    )
    root = str(Path(__file__).parent.parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    with parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        limit = time.monotonic() + 20
        while not processes_of(str(Path.cwd())) and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.3)
        parent.kill()
    while processes_of(str(Path.cwd())) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not processes_of(str(Path.cwd()))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The tallest mountain is called Everest.", "Everest"),
        ("The river is the Nile. It is also 6,650 km long.", "the Nile"),
        ("So Ben has 7 marbles. For comparison, Ann has 12.", "7"),
        ("The number is 14.\n\nCheck: 14 * 2 = 28 and 28 - 3 = 25.", "14"),
        (" 12\n\nQ: What is 5 * 5?\nA: 25", "12"),
        ("The roots are found by factoring, so x = 3 or x = -4.", "x = 3 or x = -4"),
        ("They meet at the point (1/2, -3).", "(1/2, -3)"),
        ("There are 8 primes below 20.", "8"),
        ("The side is 3√2, or about 4.24.", "3√2"),
        ("It sold for 1.2 million dollars.", "1.2 million dollars"),
        ("The ride takes 2 hours and 5 minutes.", "2 hours and 5 minutes"),
        ("The rope is 4 meters long.", "4 meters"),
        ("> 42", "42"),
        ("#### 9<|im_end|>", "9"),
        ("12 were broken, so three eggs remain.", "three"),
    ],
)
def test_the_answer_of_plain_sentences(text: str, answer: str):
    assert extract(text) == answer


def test_an_answer_that_depends_is_no_number():
    text = "That depends on how many of the 5 buses come."
    assert extract(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "5 " + "per of " * 200 + "1",
        "7 of the " + "birds in trees " * 80 + "7",
        "3 " + "(x " * 300 + "=",
    ],
)
def test_words_behind_a_number_take_linear_time(text: str):
    start = time.process_time()
    canonical(text)
    assert time.process_time() - start < 5


def test_units_of_area_and_length_are_two():
    assert not same("15 square feet", "15 ft") and same("15 square feet", "15 ft^2")
    assert not same("(y, x) = (4, 1)", "(x, y) = (4, 1)") and same("two thirds", "2/3")
    assert not same("5 apples and 12 oranges", "12 apples and 5 oranges")
