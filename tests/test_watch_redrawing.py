"""Steps that are drawn anew where a detector fires: which one stays, what is emitted, and rows."""

from itertools import pairwise, takewhile
from typing import Any

import numpy as np
import pytest
from test_watch_watching import ALWAYS, Run, Scene, same

from surgeon.channels import read_back
from surgeon.decoding import Decoder, Rewind
from surgeon.decoding.cache import cache_bytes_per_token
from surgeon.errors import BadInput
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import StepEnds, split_steps
from surgeon.watch.redrawing import Redrawing
from surgeon.watch.watching import Firing


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.fixture(scope="module")
def threshold(scene: Scene) -> float:
    """At which `intra` fires at about a fifth of the step ends; no last digit decides."""
    run = scene.run(scene.requests(8, 60), scene.monitor())
    found = sorted(r.probability for some in run.readings for r in some if r.level == "intra")
    n = len(found) * 4 // 5
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(found[n - 4 : n + 4])]
    return max(gaps)[1]


def redrawn(scene: Scene, run: Run) -> list[tuple[Firing, list[float]]]:
    """(firing, what the detector said of each new draw) of the steps that came to their end, where
    nothing rests after a firing; checks where they stand."""
    found = []
    for answer, firings, readings in zip(run.answers, run.firings, run.readings, strict=True):
        ends = [0, *scene.step_ends(answer.token_ids)]
        for firing in firings:
            assert firing.level == "intra" and firing.redrawn and firing.step
            # An opening token is left out of the first step.
            assert firing.position in ends or firing.position == 1
            if not any(firing.position < end < len(answer.token_ids) for end in ends):
                continue
            at = next(n for n, r in enumerate(readings) if r.probability == firing.probability)
            draws = takewhile(lambda reading: not reading.open, readings[at + 1 :])
            found.append((firing, [reading.probability for reading in draws]))
    return found


def test_a_step_is_drawn_anew_until_nothing_fires(scene: Scene, threshold: float):
    requests, monitor = scene.requests(8, 90), scene.monitor({"intra": threshold})
    plain = scene.run(requests, monitor, levels=[])
    again = scene.monitor({"intra": threshold}, action="resample", draws=3, cooldown=0)
    run = scene.run(requests, again, levels=["intra"])
    found = redrawn(scene, run)
    assert len(found) > 5
    for firing, draws in found:
        assert firing.probability >= threshold and 1 <= len(draws) <= 3
        assert all(probability >= threshold for probability in draws[:-1])
        assert draws[-1] < threshold or len(draws) == 3
    assert len({len(draws) for _, draws in found}) > 1
    for answer, other, firings in zip(run.answers, plain.answers, run.firings, strict=True):
        assert answer.forced == () and len(answer.token_ids) <= 90
        at = firings[0].position if firings else len(other.token_ids)
        assert answer.token_ids[:at] == other.token_ids[:at]
    assert run.ids != plain.ids
    # Alone, an answer is the same.
    same(scene.run(requests[:3], again, levels=["intra"], together=False),
         Run(run.answers[:3], run.firings[:3], run.readings[:3]))  # fmt: skip


@pytest.mark.parametrize("closing", ["</think>", "4 = 8"])
def test_of_several_draws_the_one_that_the_detector_likes_best_stays(
    scene: Scene, threshold: float, closing: str
):
    """What stays is what the model was fed: read back in one pass, it has the lowest probability of
    all draws."""
    requests = scene.requests(8, 90)
    tags = ("<think>", closing)
    monitor = scene.monitor({"intra": threshold}, action="choose", draws=2, thinking=tags)
    run = scene.run(requests, monitor, levels=["intra"])
    level, kept, again = "intra", 0, 0
    traces = scene.traces(requests, run)
    for trace, firings, readings, x_TC in zip(
        traces, run.firings, run.readings,
        read_back(scene.model, traces, monitor.channels[level]), strict=True,
    ):  # fmt: skip
        steps = split_steps(StepEnds(scene.tokenizer, tags), trace.token_ids)
        position_N, features_NCX = trace_features(x_TC, steps, level, monitor.settings)
        probability_N = scene.detectors[level].probability(features_NCX.flatten(1)).tolist()
        said = dict(zip(position_N.tolist(), probability_N, strict=True))
        for firing in firings:
            (step,) = [step for step in steps if step.start == firing.position]
            at = next(n for n, r in enumerate(readings) if r.probability == firing.probability)
            draws = [r.probability for r in readings[at : at + 3]]
            if step.end >= len(trace.token_ids) or len(draws) < 3 or readings[at + 2].open:
                continue
            assert said[step.end - 1] == pytest.approx(min(draws), abs=1e-5)
            kept += min(draws) < draws[0]
            again += min(draws) < draws[2]
    assert (kept and again) or closing != "</think>"
    same(scene.run(requests[:3], monitor, levels=["intra"], together=False),
         Run(run.answers[:3], run.firings[:3], run.readings[:3]))  # fmt: skip


@pytest.mark.parametrize("action", ["resample", "choose"])
def test_tokens_that_are_thrown_away_are_counted_with_what_had_begun_of_a_tag(
    scene: Scene, action: str, monkeypatch: pytest.MonkeyPatch
):
    taken, begun, rewind = dict.fromkeys(range(8), 0), [], Decoder._rewind

    def counting(self: Decoder, b: int, row: Any, to: Rewind) -> None:
        gone = row.token_ids[to.length :]
        taken[row.index] += len(gone)
        begun.append(not str(scene.tokenizer.decode(gone)).endswith("\n\n"))
        rewind(self, b, row, to)

    monkeypatch.setattr(Decoder, "_rewind", counting)
    # The model writes it often; its first tokens are held until it is whole.
    tags = ("<think>", "4 = 8")
    monitor = scene.monitor({"intra": ALWAYS}, action=action, draws=2, thinking=tags, cooldown=0)
    run = scene.run(scene.requests(8, 90), monitor, levels=["intra"])
    counted = {i: sum(f.redrawn or 0 for f in some) for i, some in enumerate(run.firings)}
    assert counted == taken and any(begun)


def test_draws_are_refused_where_a_firing_draws_nothing(scene: Scene):
    monitor = scene.monitor({"intra": ALWAYS})
    with pytest.raises(BadInput, match="found draws = 3 with action trigger"):
        monitor.acting(None, 3)
    assert monitor.acting("resample", 3).settings.draws == 3


@pytest.mark.parametrize("action", ["resample", "choose"])
def test_at_random_no_detector_is_asked(scene: Scene, action: str):
    requests = scene.requests(8, 60)
    monitor = scene.monitor({"intra": ALWAYS}, action=action, draws=2)
    run = scene.run(requests, monitor, random_rate={"intra": 0.3}, seed=4)
    firings = [firing for some in run.firings for firing in some]
    assert len(firings) > 3 and not any(run.readings)
    assert all(firing.redrawn and firing.probability == 0.3 for firing in firings)
    same(scene.run(requests, monitor, random_rate={"intra": 0.3}, seed=4), run)


def test_what_ends_the_thinking_is_forced_as_ever(scene: Scene, threshold: float):
    thresholds = {"intra": threshold, "instance": ALWAYS}
    monitor = scene.monitor(thresholds, action="resample", instance_steps=3, finish="")
    run = scene.run(scene.requests(6, 60), monitor)
    close = scene.word("</think>")
    for answer, firings in zip(run.answers, run.firings, strict=True):
        ended = [firing for firing in firings if firing.level == "instance"]
        assert all(answer.token_ids[firing.position] == close for firing in ended)
        assert all(firing.redrawn is None for firing in ended)
    levels = {firing.level for some in run.firings for firing in some}
    assert levels == {"intra", "instance"}


def test_an_answer_given_up_for_memory_comes_to_the_same(
    scene: Scene, threshold: float, monkeypatch: pytest.MonkeyPatch
):
    requests = scene.requests(12, 180)
    monitor = scene.monitor({"intra": threshold}, action="choose", draws=2, cap=99)
    whole = scene.run(requests, monitor, rows=32, levels=["intra"])
    room = 12 * 192 * cache_bytes_per_token(scene.model)
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: room)
    seats: list[int] = []
    seat = Redrawing.seat
    monkeypatch.setattr(
        Redrawing, "seat", lambda self, slot, index: seats.append(index) or seat(self, slot, index)
    )
    found = scene.run(requests, monitor, rows=32, sheds=True, levels=["intra"])
    assert len(seats) > 12
    assert found.ids == whole.ids
    assert [len(some) for some in found.firings] == [len(some) for some in whole.firings]
    assert np.ptp([len(some) for some in whole.firings]) > 0
