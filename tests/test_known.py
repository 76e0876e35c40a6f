"""Known answers beside the votes: what the votes can't show, they show."""

from pathlib import Path

import numpy as np
import pytest

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
