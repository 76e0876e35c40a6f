"""`surgeon early-stop`: rules over courses, thresholds, the directory that carries a monitor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surgeon.early_stop import STOPS, early_stop
from surgeon.early_stop.courses import Course
from surgeon.early_stop.stop_result import Ends, StopRow, chance_warning
from surgeon.early_stop.stop_rules import first
from surgeon.early_stop.sweeping import StopPoint, by_question, chosen, front, outcome, point, swept
from surgeon.settings.neureasoner import THINKING
from surgeon.traces import Trace


def course(
    prompt_id: str = "a", *, right: float = 0.0, right_S=(0, 0, 1, 0), votes=("1", "2", "3", "2"),
    enough=(0.1, 0.9, 0.4), easy: float = 0.7, tokens: int = 100,
) -> Course:  # fmt: skip
    """Places before the first step and after three of ten tokens; a forced answer takes five."""
    n = len(right_S)
    return Course(
        Trace(prompt_id, 0, [1], [5] * tokens, "", "stop"), right, np.arange(n) - 1,
        10 * np.arange(n), np.full(n, 5), np.array(right_S, float), list(votes),
        np.linspace(-1, 0, n), np.array([False, False, True, False][:n]),
        np.array([np.nan, *enough]), easy, read_after=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "value", "place"),
    [
        ("never", None, None),
        ("enough", 0.5, 2),
        ("enough", 0.95, None),
        ("instance", ("easy", 0.6), 2),
        ("instance", ("hard", 0.6), None),
        ("both", ("hard", 0.2, 0.99), 2),
        ("both", ("easy", 0.9, 0.05), 1),
        ("steps", 3, 3),
        ("budget", 11, 2),
        ("nothinking", None, 0),
        ("alphaone", 0, 2),
        ("think-or-not", -0.1, 3),
        ("probe", 2, None),
    ],
)
def test_a_rule_ends_a_course_at_its_place(rule, value, place):
    assert STOPS[rule].of(course(), value) == place


def test_rules_never_stop_before_the_first_step_but_nothinking():
    one = course(enough=(1.0, 1.0, 1.0), easy=1.0)
    for name, rule in STOPS.items():
        for value in rule.values([one]):
            place = rule.of(one, value)
            if isinstance(place, np.ndarray):
                place = np.flatnonzero(place)[0]
            assert place is None or place > 0 or name == "nothinking"
    assert first(one, np.ones(4, bool)) == 1


def test_what_is_tried_on_the_way_is_paid_for():
    """Stopping after the third step: 30 tokens, 5 for the answer, and 2 x 5 for those tried before.
    Without a stop all three were tried: 100 + 15."""
    same = course(votes=("1", "4", "5", "5"), right_S=(0, 0, 0, 1))
    found = outcome(STOPS["probe"], 2, [same, course()])
    assert found.tokens_N.tolist() == [45, 115]
    assert found.right_N.tolist() == [1, 0] and found.stopped_N.tolist() == [True, False]
    plain = outcome(STOPS["budget"], 11, [same])
    assert plain.tokens_N.tolist() == [25]


def test_stopping_by_chance_is_counted_at_its_expected_value():
    """With .5: after steps 1, 2, 3 with .5, .25, .125, else to the end: right only after step 2."""
    found = outcome(STOPS["random"], 0.5, [course(right=1.0)])
    assert found.right_N.tolist() == [0.25 + 0.125]
    assert found.tokens_N.tolist() == [0.5 * 15 + 0.25 * 25 + 0.125 * 35 + 0.125 * 100]
    assert found.stopped_N.tolist() == [0.875]
    assert found.rate == 0.875 / (0.5 * 1 + 0.25 * 2 + 0.125 * 3 + 0.125 * 3) == 0.5


def test_the_threshold_has_the_fewest_tokens_within_the_margin():
    courses = [course(c, right=1.0, right_S=(0, 0, 0, 1)) for c in "abcdef"]
    points = [
        point(v, outcome(STOPS["enough"], v, courses), courses, seed=0) for v in (0.05, 0.3, 0.95)
    ]
    assert [p.right for p in points] == [0, 0, 1]
    pick = chosen(points, 0.01)
    assert pick is not None and pick.value == 0.95 and pick.share == 1
    assert chosen(points[:2], 0.01) is None
    assert [p.value for p in front(points)] == [0.05, 0.95]


@pytest.mark.parametrize(
    ("over", "tokens", "said"),
    [
        ((-0.019, -0.057, 0.006), (-0.4, -1.7, 1.3), "isn't told apart"),
        ((0.02, 0.001, 0.04), (5.0, 1.0, 9.0), None),  # more right answers than by chance
        ((-0.01, -0.03, 0.01), (-17.0, -24.0, -11.0), None),  # fewer tokens than by chance
    ],
)
def test_a_rule_that_chance_equals_is_warned_of(over: Ends, tokens: Ends, said: str | None):
    at = StopPoint(
        value=0.98, right=0.55, tokens=87.6, share=0.998, stopped=0.025, over=(-0.025, -0.06, 0.0)
    )
    row = StopRow(
        rule="instance", what="", written=True, chosen=at, test=None, over_random=over,
        tokens_over_random=tokens,
    )  # fmt: skip
    found = chance_warning(row)
    if said is None:
        assert found is None
    else:
        assert found is not None and said in found and "99.8% of the tokens" in found


def test_questions_weigh_the_same_however_many_answers_they_have():
    courses = [course("a"), course("a"), course("b")]
    assert by_question(courses, np.array([1.0, 0.0, 1.0])).tolist() == [0.5, 1.0]
    assert set(swept(courses, seed=0)) == set(STOPS)


def test_an_empty_finish_closes_the_thinking_right_after_the_step():
    from surgeon import builtin
    from surgeon.checkpoint import Checkpoint
    from surgeon.settings.neureasoner import WatchSettings
    from surgeon.watch.watching import forced_tokens

    tokenizer = Checkpoint.open(builtin.path("thinking")).tokenizer()
    for finish, text in (("", "</think>\n\n"), ("Done.", "Done.\n</think>\n\n")):
        ids = forced_tokens(tokenizer, WatchSettings(finish=finish), "enough")
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A small run on the built-in family, labels by answers."""
    out = tmp_path_factory.mktemp("early") / "stopped"
    early_stop(
        "builtin:thinking", easy="builtin:easy", hard="builtin:hard", test="builtin:test[0:2]",
        out=out, limit=4, samples=1, max_tokens=160, answer_tokens=8, probes=6,
        detector=dict(updates=20),
    )  # fmt: skip
    return out


def test_the_directory_is_the_checkpoint_with_a_monitor(stopped: Path, capsys):
    from surgeon import builtin
    from surgeon.checkpoint import Checkpoint
    from surgeon.monitor import monitor
    from surgeon.watch.monitor import Monitor

    made = Checkpoint.open(stopped)
    assert made.digest == Checkpoint.open(builtin.path("thinking")).digest
    carried = Monitor.load(stopped, made)
    assert set(carried.levels) <= {"enough", "instance"}
    run = monitor(stopped, prompts="builtin:easy", limit=1, max_tokens=60, out=stopped.parent / "m")
    assert set(run.levels) == set(carried.levels)


def test_the_result_counts_every_rule_on_the_test(stopped: Path):
    result = json.loads((stopped / "early-stop.json").read_text())
    assert [row["rule"] for row in result["rows"]] == list(STOPS)
    assert result["questions"] == {"detectors": 4, "validation": 4, "test": 2}
    never = result["test_curves"]["never"][0]
    assert never["share"] == 1 and never["over"] == [0, 0, 0]
    page = (stopped / "early-stop.html").read_text()
    assert all(f"<bdi>{row['rule']}" in page for row in result["rows"])


def test_what_an_early_stop_refuses(tmp_path: Path):
    from surgeon.errors import BadInput

    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "Start 1. Apply +1. Find x."}\n')
    same = dict(easy="builtin:easy", hard="builtin:hard", out=tmp_path / "out")
    for given, words in (
        (dict(easy=few), "has 1 questions, expected at least 4"),
        (dict(hard="builtin:easy"), "is in both builtin:easy and builtin:easy"),
        (dict(test="builtin:hard[0:9]"), "expected different questions"),
        (dict(easy="builtin:mini-set", by="answers"), "has no answer"),
        (dict(easy="builtin:mini-set", samples=2), "expected at least 3 samples"),
        (dict(by="agreement", samples=2), "expected at least 3"),
        (dict(margin=2), "margin = 2"),
    ):
        with pytest.raises(BadInput, match=words) as caught:
            early_stop("builtin:thinking", **{**same, **given})  # pyright: ignore
        assert "\n" not in str(caught.value)
    assert not any(p.name.startswith("out") for p in tmp_path.iterdir())


def test_a_server_ends_the_thinking_where_the_monitor_says_so(stopped: Path, tmp_path: Path):
    """At a threshold of nothing: after the first step that a detector is read at."""
    from serving import serving

    from surgeon.watch.monitor import Monitor

    carried, file = Monitor.load(stopped), tmp_path / "eager.safetensors"
    for detector in carried.detectors.values():
        detector.threshold.fill_(0.0)
    carried.save(file)
    with serving(checkpoint=str(stopped), monitor_file=str(file), rows=2) as server:
        reply = server.chat(max_tokens=200).choices[0]
    (firing,) = reply.model_extra["surgeon"]["firings"]
    assert firing["level"] in carried.levels
    assert "Okay, I have finished thinking.\n</think>\n\n" in reply.message.content


@pytest.mark.parametrize(
    "settings, words",
    [
        # The template has opened and closed an empty block.
        (dict(thinking=False), "<think> and </think> in none of 8 answers, expected"),
        # It could write them, and a few answers show that it doesn't.
        (dict(think_tags=["[A] [/A]"]), r"\[A\] and \[/A\] in none of 4 answers, expected"),
    ],
)
def test_a_checkpoint_that_doesnt_think_between_tags_is_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
):
    from surgeon.errors import BadInput

    with pytest.raises(BadInput, match=words):
        early_stop(
            "builtin:thinking", easy="builtin:easy", hard="builtin:hard", out=tmp_path / "out",
            limit=4, samples=1, max_tokens=8, **settings,
        )  # fmt: skip


def test_answers_are_read_behind_the_tags_that_are_watched(tmp_path: Path):
    """They may be tokens of the vocabulary that no chat template names."""
    from dataclasses import replace

    from surgeon.early_stop.courses import courses_of
    from surgeon.early_stop.plan import prepare
    from surgeon.early_stop.probing import Probe
    from surgeon.settings import bind
    from surgeon.settings.early_stop import EarlyStopSettings

    given = dict(easy="builtin:easy", hard="builtin:hard", out=tmp_path / "out", limit=4)
    plan = prepare(bind(EarlyStopSettings, dict(checkpoint="builtin:thinking", **given)))
    plan = plan._replace(watch=replace(plan.watch, thinking=("[THINK]", "[/THINK]")))
    thought = "[THINK]Perhaps the answer is 5.\n\n"
    traces = [
        Trace("a", n, [1], [2, 3], thought + rest, "stop")
        for n, rest in enumerate(("[/THINK]7", "so"))
    ]
    probes = {trace.key: [Probe(*trace.key, -1, 0, [2, 3], 1, "stop", 0.0)] for trace in traces}
    assert [course.right for course in courses_of(plan, traces, probes, {"a": "7"})] == [1, 0]
    assert [course.right for course in courses_of(plan, traces, probes, {"a": "5"})] == [0, 0]


@pytest.mark.parametrize(
    "prompt, text, expected",
    [
        ("<think>\n", "so 3", True),
        ("", "<think>\nso 3", True),
        ("", "so 3.</think>3", True),
        ("<think>\n\n</think>\n\n", "so 3", False),
        ("what is <think>?", "so 3", False),
    ],
)
def test_where_an_answer_thinks(prompt: str, text: str, expected: bool):
    from types import SimpleNamespace

    from surgeon.early_stop.plan import thinks

    tokenizer: Any = SimpleNamespace(decode=lambda _: prompt)
    assert thinks(tokenizer, Trace("a", 0, [1], [2], text, "stop"), THINKING) is expected
