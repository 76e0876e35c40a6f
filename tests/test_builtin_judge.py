"""The exact judge of the built-in task, and the examples in which its failures are mended."""

from itertools import groupby
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.family import writer
from surgeon.builtin import task
from surgeon.builtin.judge import judge
from surgeon.builtin.repairs import make_up, rewrite
from surgeon.errors import BadInput
from surgeon.judges.finding import Finding, Rewritten

EASY = task.Problem(3, ("+4", "*7", "-2", "+9", "-5", "+1"))
"""3, 7, 9, 7, 6, 1, 2."""
HARD = task.Problem(3, (*EASY.operations, "+2", "-1"))
DONE = ("So +4 *7 -2: 3 = 7", "So +9 -5 +1: 7 = 2")
AGAIN = "Let me start over. Start 3."
CHECK = "Wait, check +4: 3 = 7, ok."
SEEDS = st.integers(0, 10**9)


def spans(*steps: str, problem: task.Problem = EASY) -> list[tuple[str, int, int, bool]]:
    """Level, first, last and failing of each finding."""
    return [(f.level, f.first, f.last, f.failing) for f in judge(problem.prompt, steps)]


# --- judged by hand -------------------------------------------------------------------------------


def test_a_wrong_step_is_found_where_it_stands_with_what_it_should_be():
    """+4 of 3 is 7, not 8; what follows carries the 8 on and is right."""
    found = judge(EASY.prompt, ["Next +4: 3 = 8", "Next *7: 8 = 6"])
    assert found[0] == Finding("intra", 0, 0, "it should read: Next +4: 3 = 7")
    assert [f.level for f in found] == ["intra", "instance"]


def test_a_wrong_check_is_a_wrong_step():
    assert spans("Next +4: 3 = 7", "Wait, check +4: 3 = 8, no.") == [
        ("intra", 1, 1, True),
        ("instance", 0, 1, False),
    ]


def test_checks_of_what_was_checked_are_one_finding_as_long_as_they_go_on():
    steps = ("Next +4: 3 = 7", CHECK, CHECK, CHECK, "Next *7: 7 = 9")
    more = ("Wait, check *7: 7 = 9, ok.",) * 2
    assert spans(*steps, *more)[:-1] == [("inter", 2, 3, True), ("inter", 6, 6, True)]
    # A wrong check in between is another failure, and parts the run.
    wrong = "Wait, check +4: 3 = 7, no."
    assert spans("Next +4: 3 = 7", CHECK, CHECK, wrong, CHECK)[:-1] == [
        ("inter", 2, 2, True),
        ("intra", 3, 3, True),
        ("inter", 4, 4, True),
    ]


def test_starting_over_on_an_easy_problem_without_a_mistake_is_over_thinking():
    assert spans(*DONE, AGAIN, *DONE) == [("instance", 0, 4, True)]
    assert spans(*DONE) == [("instance", 0, 1, False)]
    assert (
        judge(EASY.prompt, [*DONE, AGAIN])[-1].reason == "easy, and started over without a mistake"
    )
    assert judge(EASY.prompt, DONE)[-1].reason == "easy, and thought once"


def test_starting_over_after_a_mistake_is_not():
    for wrong in ("So +4 *7 -2: 3 = 1", "Hm.", "Read # as shift."):
        assert spans(wrong, AGAIN) == [("intra", 0, 0, True), ("instance", 0, 1, False)]
    # The second time there was none.
    steps = ("So +4 *7 -2: 3 = 1", AGAIN, *DONE, AGAIN)
    assert spans(*steps)[-1] == ("instance", 0, 4, True)


def test_a_hard_problem_is_what_over_thinking_is_compared_with():
    found = judge(HARD.prompt, [*DONE, AGAIN])
    assert found == [Finding("instance", 0, 2, "hard", failing=False, contrast=True)]


def test_a_statement_about_an_operator_that_isnt_there_says_nothing_about_the_one_that_is():
    problem = task.Problem(3, ("#4", "+1", "+2", "+3", "+5", "+6"))
    assert spans("Read ~ as fold.", "Next #4: 3 = 7", problem=problem)[:-1] == [
        ("intra", 0, 0, True)
    ]
    # The other reading of its own operator is none of the three failures.
    assert spans("Read # as fold.", "Next #4: 3 = 1", problem=problem) == [
        ("instance", 0, 1, False)
    ]


@pytest.mark.parametrize(
    "odd", ["</think>", "Next +4: 3 = 7\n\nNext *7: 7 = 9", "<think>", "a\n\n"]
)
def test_a_step_keeps_its_number_whatever_is_written_in_it(odd: str):
    steps = ("Next +4: 3 = 7\n\n", odd, "\nNext *7: 7 = 8\n\n")
    assert spans(*steps)[:-1] == [("intra", 1, 1, True), ("intra", 2, 2, True)]


def test_without_steps_there_is_nothing_to_find_and_foreign_questions_are_refused():
    assert judge(EASY.prompt, []) == []
    with pytest.raises(BadInput, match="'What is 2 \\+ 2\\?'"):
        judge("What is 2 + 2?", [])


# --- judged against what was written --------------------------------------------------------------


class Trace:
    """A written response, and where it fails as far as the writer knows."""

    def __init__(self, seed: int, **policy: Any):
        rng = Random(seed)
        operator = rng.choice((None, None, "#", "~"))
        self.problem = writer.draw_problem(rng, operator=operator)
        self.meaning = rng.choice(writer.MEANINGS)
        response = writer.write(self.problem, writer.Policy(**policy), rng, self.meaning)
        self.text = response.text
        head = "<think>\n"
        self.steps = self.text.removeprefix(head).partition("\n</think>")[0].split("\n\n")
        start, self.mistakes = len(head), set()
        for i, step in enumerate(self.steps):
            if any(start <= at < start + len(step) for at, _ in response.mistakes):
                self.mistakes.add(i)
            start += len(step) + 2
        assert len(self.mistakes) == len(response.mistakes)

    def stagnation(self) -> list[tuple[int, int]]:
        """All checks of a run but the first."""
        runs = groupby(range(len(self.steps)), lambda i: self.steps[i].startswith("Wait"))
        found = [list(run) for checks, run in runs if checks]
        return [(run[1], run[-1]) for run in found if len(run) > 1]

    def over(self) -> bool:
        """Started over though nothing was wrong since the start before."""
        begin = 0
        for i, step in enumerate(self.steps):
            if step.startswith(task.RESTART):
                if not self.mistakes & set(range(begin, i)):
                    return True
                begin = i
        return False


POLICIES: dict[str, dict[str, float]] = {
    "hasty": dict(leap=0.4, slip=0.4, mistake=0.15),
    "careful": dict(leap=0.2, check=0.7, recheck=0.5, slip=0.3, mistake=0.15),
    "anxious": dict(leap=0.3, check=0.5, recheck=0.4, restart=0.6, slip=0.2, mistake=0.05),
    "brief": dict(leap=0.2, check=0.5, recheck=0.3, restart=0.4, mistake=0.1, finish=0.8),
    "sound": dict(leap=0.3, check=0.5, restart=0.3),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_injected_mistake_is_found_and_nothing_else(name: str):
    seen: set[str] = set()

    # The same seeds in every run: each kind of failure has to come up.
    for seed in range(150):
        trace = Trace(seed, **POLICIES[name])
        found = judge(trace.problem.prompt, trace.steps)
        assert {f.first for f in found if f.level == "intra"} == trace.mistakes
        assert all(f.first == f.last for f in found if f.level == "intra")
        stuck = [(f.first, f.last) for f in found if f.level == "inter"]
        assert stuck == trace.stagnation()
        (whole,) = [f for f in found if f.level == "instance"]
        easy = len(trace.problem.operations) <= task.EASY
        assert (whole.first, whole.last) == (0, len(trace.steps) - 1)
        assert whole.failing == (easy and trace.over())
        assert whole.contrast == (not easy)
        seen.update(f.level for f in found if f.failing)
    expected = {
        "hasty": {"intra"},
        "careful": {"intra", "inter"},
        "anxious": {"intra", "inter", "instance"},
        "brief": {"intra", "inter", "instance"},
        "sound": {"instance"},
    }
    assert seen == expected[name]


# --- mended ---------------------------------------------------------------------------------------


def joined(parts: Rewritten) -> str:
    return "".join(parts)


def mends(problem: task.Problem, parts: Rewritten, level: str, meaning: str) -> None:
    """The intended failure is where it should be, it is the only one, and the answer is right."""
    labels = task.steps(problem, joined(parts))
    before = len(task.steps(problem, parts.prefix))
    wrong = parts.wrong.removesuffix("\n\n").split("\n\n")
    fails = [label.failure if label.failure != "misread" else None for label in labels]
    assert fails[:before] == [None] * before
    assert fails[before] == level
    assert [label.text for label in labels[before : before + len(wrong)]] == wrong
    assert set(fails[before + len(wrong) :]) <= {None}
    assert labels[before + len(wrong)].text == parts.diagnose
    if level == "inter" or len(wrong) == 1:
        assert fails[before : before + len(wrong)] == [level] * len(wrong)
    assert task.answer(joined(parts)) == str(problem.answer(meaning))
    assert task.correct(problem, joined(parts)) == (problem.answer(meaning) == problem.answer())


def example(*steps: str, problem: task.Problem = EASY, level: str = "intra", **span: int) -> Any:
    first = span.get("first", len(steps) - 1)
    return rewrite(
        problem.prompt, steps, level, first, span.get("last", len(steps) - 1), rng=Random(0)
    )


def test_a_wrong_result_is_found_by_its_check():
    parts = example("Next +4: 3 = 7", "So *7 -2: 7 = 1")
    assert parts.prefix == "<think>\nNext +4: 3 = 7\n\n"
    assert parts.wrong == "So *7 -2: 7 = 1\n\n"
    assert parts.diagnose == "Wait, check *7: 7 = 9, -2: 9 = 7, no."
    assert parts.continuation.endswith("\n</think>\n\nAnswer: 2")
    mends(EASY, parts, "intra", "shift")


@pytest.mark.parametrize(
    "wrong",
    [
        "Next +4: 5 = 9",  # another value
        "Next *7: 3 = 1",  # another operation
        "So +4: 3 = 7",  # another word: a check would find nothing
        "Wait, check +4: 3 = 7, ok.",  # nothing to check yet
        "Let me start over. Start 4.",
        "Read # as fold.",
        "Hm, <thinking>.",
    ],
)
@pytest.mark.parametrize("problem", [EASY, HARD], ids=["easy", "hard"])
def test_anything_else_is_mended_by_a_new_start(wrong: str, problem: task.Problem):
    parts = example(wrong, problem=problem)
    assert parts.diagnose == AGAIN
    mends(problem, parts, "intra", "shift")


@pytest.mark.parametrize("said", ["shift", "fold"])
def test_a_statement_about_another_operator_leaves_the_reading_alone(said: str):
    problem = task.Problem(3, ("#4", "+1", "#2", "+3", "+5", "+6"))
    parts = example("Read ~ as fold.", problem=problem)
    mends(problem, parts, "intra", "shift")
    parts = example(f"Read # as {said}.", "Read ~ as shift.", problem=problem)
    mends(problem, parts, "intra", said)


def test_needless_checks_are_followed_by_the_step_that_goes_on():
    parts = example("Next +4: 3 = 7", CHECK, CHECK, CHECK, level="inter", first=2)
    assert parts.prefix == f"<think>\nNext +4: 3 = 7\n\n{CHECK}\n\n"
    assert parts.wrong == f"{CHECK}\n\n{CHECK}\n\n"
    assert parts.diagnose == "Next *7: 7 = 9"
    mends(EASY, parts, "inter", "shift")


def test_after_the_last_operation_the_thinking_ends():
    check = "Wait, check +9: 7 = 6, -5: 6 = 1, +1: 1 = 2, ok."
    parts = example(*DONE, check, check, level="inter")
    assert parts.diagnose == task.FINISH
    assert parts.continuation == "\n</think>\n\nAnswer: 2"
    mends(EASY, parts, "inter", "shift")


def test_a_span_of_several_steps_is_mended_as_a_whole():
    """As an endpoint may judge: a check after it would be one of its last step."""
    parts = example("Next +4: 3 = 8", "Next *7: 8 = 6", first=0)
    assert parts.diagnose == AGAIN
    mends(EASY, parts, "intra", "shift")


def test_needless_checks_before_the_failing_step_are_left_out():
    parts = example("Next +4: 3 = 7", CHECK, CHECK, "Next *7: 7 = 8")
    assert parts.prefix == f"<think>\nNext +4: 3 = 7\n\n{CHECK}\n\n"
    mends(EASY, parts, "intra", "shift")


@pytest.mark.parametrize(
    ("steps", "span"),
    [
        (("Next +4: 3 = 8", "Next *7: 8 = 5"), dict()),  # something is wrong before
        ((*DONE, AGAIN, "Next +4: 3 = 8"), dict()),  # started over before
        (("Next +4: 3 = 7",), dict()),  # nothing is wrong
        (("Next +4: 3 = 7", CHECK), dict(level="inter")),
        (("Next +4: 3 = 7", CHECK, CHECK, "Next *7: 7 = 9"), dict(level="inter", first=2)),
        (("Next +4: 3 = 8",), dict(first=0, last=1)),  # no such step
        (("Next\n\nNext",), dict()),  # would be two steps
        (("Hm. </think>",), dict()),  # would end the thinking
    ],
)
def test_where_no_example_can_be_made_there_is_none(steps: tuple[str, ...], span: dict[str, Any]):
    assert example(*steps, **span) is None


@given(SEEDS, st.sampled_from(["careful", "anxious", "hasty"]))
@settings(max_examples=150)
def test_examples_of_written_traces_hold_their_failure_and_its_repair_only(seed: int, name: str):
    trace = Trace(seed, **POLICIES[name])
    problem, question = trace.problem, trace.problem.prompt
    found = [f for f in judge(question, trace.steps) if f.level != "instance"]
    labels = task.steps_of(problem, trace.steps)
    for finding in found:
        parts = rewrite(
            question, trace.steps, finding.level, finding.first, finding.last, rng=Random(seed)
        )
        before = {label.failure for label in labels[: finding.first]}
        if before & {"intra", "instance"}:
            assert parts is None
            continue
        assert parts is not None
        mends(problem, parts, finding.level, trace.meaning)
        own = trace.steps[finding.first : finding.last + 1]
        assert parts.wrong == "".join(f"{step}\n\n" for step in own)
        if "inter" not in before:
            assert trace.text.startswith(parts.prefix + parts.wrong.removesuffix("\n\n"))
        if finding.level == "intra":
            assert parts.diagnose.startswith("Wait, check") and parts.diagnose.endswith("no.")
        again = rewrite(question, trace.steps, *finding[:3], rng=Random(seed))
        assert again == parts


@given(SEEDS, st.data())
@settings(max_examples=150)
def test_whatever_went_wrong_is_mended(seed: int, data: st.DataObject):
    """A step of a sound trace is spoiled, swapped for another, or left out."""
    trace = Trace(seed, leap=0.3, check=0.4)
    at = data.draw(st.integers(0, len(trace.steps) - 1))
    other = st.one_of(
        st.sampled_from(trace.steps),
        st.text("+4:= 37Nextok,.#~", min_size=1, max_size=12).filter(str.strip),
        st.sampled_from(["Read # as fold.", "Read ~ as shift.", AGAIN, task.FINISH]),
    )
    digits = [i for i, c in enumerate(trace.steps[at]) if c.isdigit()]
    spoiled = [
        trace.steps[at][:i] + d + trace.steps[at][i + 1 :] for i in digits for d in "0123456789"
    ]
    if spoiled:
        other = st.one_of(other, st.sampled_from(spoiled))
    steps = [*trace.steps[:at], data.draw(other), *trace.steps[at + 1 :]]
    found = [f for f in judge(trace.problem.prompt, steps) if f.level == "intra"]
    if not found:
        return
    first = found[0].first
    parts = rewrite(trace.problem.prompt, steps, "intra", first, first, rng=Random(seed))
    labels = task.steps_of(trace.problem, steps)
    assert (parts is None) == ("instance" in {label.failure for label in labels[:first]})
    if parts is not None:
        meaning = task.reading("\n".join(labels[i].text for i in range(first))) or task.RIGHT
        mends(trace.problem, parts, "intra", meaning)


@given(SEEDS, st.sampled_from(["sound", "careful", "anxious"]), st.sampled_from(["intra", "inter"]))
@settings(max_examples=150)
def test_made_up_failures_are_as_intended(seed: int, name: str, level: str):
    trace = Trace(seed, **POLICIES[name])
    question = trace.problem.prompt
    parts = make_up(question, trace.steps, level, rng=Random(seed))
    labels = task.steps_of(trace.problem, trace.steps)
    sound = [label.failure in (None, "misread", "inter") for label in labels]
    begin = labels[: sound.index(False)] if False in sound else labels
    if not any(label.kind in ("next", "leap") for label in begin):
        assert parts is None
        return
    assert parts is not None
    mends(trace.problem, parts, level, trace.meaning)
    once = [label.text for label in begin if label.failure != "inter"]
    kept = parts.prefix.removeprefix("<think>\n").removesuffix("\n\n").split("\n\n")
    own = kept[: -1 if level == "inter" else None]  # the check that goes before is made up as well
    assert own == once[: len(own)] or parts.prefix == "<think>\n"
    assert make_up(question, trace.steps, level, rng=Random(seed)) == parts


def test_made_up_failures_stand_in_different_places():
    trace = Trace(3, check=0.5)
    made = [make_up(trace.problem.prompt, trace.steps, "inter", rng=Random(i)) for i in range(60)]
    prefixes = {parts.prefix for parts in made if parts}
    counts = {parts.wrong.count("Wait") for parts in made if parts}
    assert len(prefixes) == len(trace.problem.operations)
    assert counts == {3, 4, 5}


def test_nothing_is_made_up_where_nothing_is_sound():
    for steps in ([], ["Next +4: 3 = 8", "Next *7: 8 = 6"], [AGAIN]):
        assert make_up(EASY.prompt, steps, "intra", rng=Random(0)) is None
    with pytest.raises(BadInput):
        make_up("What is 2 + 2?", [], "intra", rng=Random(0))
