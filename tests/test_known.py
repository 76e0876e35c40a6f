"""Known answers beside the votes: what the votes can't show, they show."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import adaptive
from surgeon import nex
from surgeon.errors import BadInput
from surgeon.rank import conclusion, known
from surgeon.rank.scores import Pool
from surgeon.ranking import RankedResponse
from surgeon.settings.rank import RankSettings
from surgeon.traces import Prompt


def settings(number: int | None) -> RankSettings:
    return RankSettings(checkpoints=("a",), mini_set="m.jsonl", out=Path("out"), known=number)


def response(prompt_id: str, sample: int, answer: str | None) -> RankedResponse:
    return RankedResponse(
        prompt_id=prompt_id, sample=sample, tokens=9, finished=True, answer=answer, nex=0.5,
        reward=0.2, bad=0.2, credible=True, empty=False, cycles=4, gated=3, explore_segments=4,
        kept_mass=0.5, entropy_R=(), measured={},
    )  # fmt: skip


def family(read_wrong: float, n: int = 60, seed: int = 0) -> tuple[list[Prompt], Pool]:
    """Five candidates that slip now and then, on prompts of which all read a share the wrong way
    most of the time. The answer 10 * p is right, 10 * p + 1 the other reading's."""
    rng = np.random.default_rng(seed)
    wrong_P = rng.random(n) < read_wrong
    prompts = [
        Prompt(f"q{p}", ({"role": "user", "content": "?"},), f"{10 * p}.0") for p in range(n)
    ]
    responses = {}
    for c in range(5):
        rows = []
        for p in range(n):
            for s in range(3):
                reading = wrong_P[p] == (rng.random() < 0.7)
                slip = rng.random() < 0.15 + 0.05 * c
                value = 10 * p + (int(rng.integers(2, 9)) if slip else int(reading))
                rows.append(response(f"q{p}", s, f"{value}"))
        responses[f"c{c}"] = tuple(rows)
    return prompts, Pool([prompt.id for prompt in prompts], responses, nex.DEFAULT)


@pytest.mark.parametrize("seed", range(5))
def test_common_errors_are_told_from_common_truths_by_twenty_answers(seed: int):
    """The votes of both families look alike: which reading is right, they can't say."""
    for read_wrong, misled in ((0.0, False), (1.0, True), (0.6, True)):
        prompts, pool = family(read_wrong, seed=seed)
        found = known.check(settings(20), prompts, pool)
        assert found is not None and found.asked == 20 and found.said > 0.6
        assert found.misled == misled, (read_wrong, found)
    signs = [conclusion.unsure_of_votes(known.estimate.signs(family(w, seed=seed)[1].answers()))
             for w in (0.0, 1.0)]  # fmt: skip
    assert signs[0] == signs[1]


def test_equal_values_are_one_answer_and_equal_votes_share():
    prompts = [Prompt("q", ({"role": "user", "content": "?"},), "1/2")]
    given = {"a": ("0.5", "7"), "b": ("0.5", "7"), "c": (None, None)}
    rows = {c: tuple(response("q", s, a) for s, a in enumerate(two)) for c, two in given.items()}
    found = known.check(settings(1), prompts, Pool(["q"], rows, nex.DEFAULT))
    assert found is not None and found.right == 0.5


def test_no_answer_is_looked_at_unasked_and_never_more_than_asked():
    prompts, pool = family(1.0)
    assert known.check(settings(None), prompts, pool) is None
    assert len(known.drawn(settings(7), prompts)) == 7
    few = [*prompts[:3], Prompt("x", prompts[0].messages)]
    with pytest.raises(BadInput, match="found 3 prompts with an answer"):
        known.require(settings(4), few)
    nothing = Pool(["q0"], {"a": (response("q0", 0, None),)}, nex.DEFAULT)
    assert known.check(settings(1), prompts[:1], nothing) is None


def test_recorded_votes_and_what_twenty_known_answers_say_of_them():
    """Three families of the built-in task. Two pools are mirror images: most answers read an
    operator one way, which is right in the one and wrong in the other."""
    gold = {name: f["gold"] for name, f in json.loads(adaptive.RECORDED.read_text()).items()}
    warned, error = {}, {}
    for name, family in adaptive.recorded().items():
        prompts = [Prompt(f"{p}", ({"role": "user", "content": "?"},), answer)
                   for p, answer in enumerate(gold[name])]  # fmt: skip
        pool = adaptive.pool(family.responses, [prompt.id for prompt in prompts])
        accuracy_C = pool.voted().accuracy_C
        error[name] = np.abs(accuracy_C - family.accuracy_C).mean()
        found = [known.check(replace(settings(20), seed=n), prompts, pool) for n in range(20)]
        warned[name] = sum(one is not None and one.misled for one in found)
        assert not conclusion.unsure_of_votes(known.estimate.signs(pool.answers()))
    assert error["built-in"] < 0.05 and error["ambiguous prompts"] < 0.05
    assert error["wrong majority"] > 0.2
    assert warned["wrong majority"] == 20
    assert warned["built-in"] <= 1 and warned["ambiguous prompts"] <= 1
