"""Monitored traces read back: what `Watching` logged while decoding comes out again."""

from copy import deepcopy
from dataclasses import replace as changed
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from surgeon.channels import Channels
from surgeon.checkpoint import resolve
from surgeon.decoding import Request, decode, stream_key
from surgeon.errors import BadInput
from surgeon.neureasoner.detectors import Detector
from surgeon.neureasoner.features import FEATURES
from surgeon.neureasoner.steps import StepEnds, split_steps
from surgeon.settings.neureasoner import WatchSettings
from surgeon.traces import Trace, encode, read_prompts, stop_ids
from surgeon.watch.monitor import Monitor
from surgeon.watch.replay import Replay, replay
from surgeon.watch.watching import Firing, Reading, Watching, union

MODEL = "builtin:thinking"
TRIGGERS = {"intra": "Let me start over.", "inter": "So"}
CHANNELS = {
    "intra": Channels(2, tuple(range(6)), ()),
    "inter": Channels(2, (5, 9), (0, 1)),
    "instance": Channels(2, tuple(range(10, 16)), ()),
}
PROMPTS, TOKENS = 24, 150


class Run(NamedTuple):
    """A monitored run."""

    model: Any
    tokenizer: Any
    monitor: Monitor
    traces: list[Trace]
    firings: list[list[Firing]]
    readings: list[list[Reading]]


def decoded(run: Run, max_tokens: int = TOKENS, **settings: Any) -> Run:
    """The same with other answers."""
    prompts = read_prompts("builtin:test")[:PROMPTS]
    requests = [
        Request(encode(run.tokenizer, prompt), stream_key(3, prompt.id, 0)) for prompt in prompts
    ]
    watching = Watching(run.model, run.tokenizer, run.monitor, **settings)
    traces: dict[int, Trace] = {}
    for answer in decode(
        run.model, requests, stop=stop_ids(run.model, run.tokenizer), max_tokens=max_tokens,
        temperature=0.6, top_p=0.95, top_k=0, batch=8, watcher=watching,
    ):  # fmt: skip
        ids, request = answer.token_ids, requests[answer.index]
        name = prompts[answer.index].id
        text = run.tokenizer.decode(ids)
        traces[answer.index] = Trace(name, 0, list(request.prompt), ids, text, answer.finish_reason)
    return run._replace(
        traces=[traces[i] for i in range(PROMPTS)],
        firings=[watching.firings[i] for i in range(PROMPTS)],
        readings=[watching.readings[i] for i in range(PROMPTS)],
    )


@pytest.fixture(scope="module")
def run() -> Run:
    """Detectors of random weights that fire at about a third of the step ends."""
    checkpoint = resolve(MODEL)
    torch.manual_seed(0)
    detectors = {}
    for level, channels in CHANNELS.items():
        detectors[level] = Detector(channels.size * len(FEATURES[level]), 16).eval()
        detectors[level].requires_grad_(False).threshold.fill_(2.0)
    monitor = Monitor(
        CHANNELS, detectors, WatchSettings(triggers=TRIGGERS, cap=4), checkpoint.digest
    )
    made = Run(checkpoint.model(), checkpoint.tokenizer(), monitor, [], [], [])
    quiet = decoded(made)
    for level, share in (("intra", 0.8), ("inter", 0.8), ("instance", 0.2)):
        found = [r.probability for some in quiet.readings for r in some if r.level == level]
        detectors[level].threshold.fill_(float(np.quantile(found, share)))
    return decoded(made)


@pytest.fixture(scope="module")
def eager(run: Run) -> Run:
    """Fires at each end of a step, so that no answer comes to its end."""
    detectors = {level: deepcopy(detector) for level, detector in run.monitor.detectors.items()}
    for level, detector in detectors.items():
        detector.threshold.fill_(0.0 if level == "inter" else 2.0)
    keen = WatchSettings(triggers=TRIGGERS, cooldown=0, cap=99)
    return decoded(run._replace(monitor=Monitor(CHANNELS, detectors, keen, "")))


def replayed(run: Run, n: int) -> Replay:
    firings = run.firings[n]
    return replay(run.model, run.tokenizer, run.monitor, run.traces[n], firings)


def agree(found: Replay, readings: list[Reading]) -> None:
    """All readings are there, each with its probability."""
    names = [name for name in Reading._fields if name != "probability"]
    assert [[getattr(row, name) for name in names] for row in found.readings] == [
        [getattr(reading, name) for name in names] for reading in readings
    ]
    assert [row.probability for row in found.readings] == pytest.approx(
        [reading.probability for reading in readings], abs=1e-4
    )


@pytest.mark.parametrize("name", ["run", "eager"])
def test_every_reading_and_firing_of_a_run_comes_out_again(
    name: str, request: pytest.FixtureRequest
):
    run: Run = request.getfixturevalue(name)
    levels: set[str] = set()
    without = shut = 0
    for n, (trace, firings) in enumerate(zip(run.traces, run.firings, strict=True)):
        found = replayed(run, n)
        agree(found, run.readings[n])
        assert len(found.firings) == len(firings)
        for row, firing in zip(found.firings, firings, strict=True):
            assert row.read_back == pytest.approx(firing.probability, abs=1e-4)
            assert row.probability == firing.probability
            assert (row.position, row.level) == (firing.position, firing.level)
            start, end = found.steps[row.step]
            assert "".join(found.tokens[start : row.start]).strip() == firing.step
            assert start < row.start <= row.position <= end or row.end == len(trace.token_ids)
            forced = "".join(found.tokens[row.position : row.end])
            if firing.level in TRIGGERS:
                assert TRIGGERS[firing.level].startswith(forced)
            else:
                assert forced.startswith("Okay, I have") or trace.finish_reason == "length"
            without += row.start < row.position
            levels.add(firing.level)
        shut += sum(not row.open for row in found.readings)
    assert shut, "no pause was tried"
    if name == "run":
        assert levels == set(TRIGGERS) | {"instance"}
    else:
        assert without, "no missing separator was tried"


def test_a_closing_tag_of_several_tokens_is_found_alike_while_decoding_and_afterwards(run: Run):
    """The text 4 = 8 is said often, in three tokens; what begins so goes on otherwise as often."""
    settings = changed(run.monitor.settings, thinking=("<think>", "4 = 8"), closes=True)
    cut = decoded(run._replace(monitor=changed(run.monitor, settings=settings)))
    ends, closed, texts = StepEnds(run.tokenizer, settings.thinking), 0, ""
    for n, (trace, firings) in enumerate(zip(cut.traces, cut.firings, strict=True)):
        found = replayed(cut, n)
        agree(found, cut.readings[n])
        assert [row.position for row in found.firings] == [firing.position for firing in firings]
        said, _, rest = trace.text.partition("4 = 8")
        if rest:
            closed += 1
            last = found.steps[-1].end
            assert run.tokenizer.decode(trace.token_ids[:last]).strip() in said
            assert said.removeprefix(run.tokenizer.decode(trace.token_ids[:last])).strip() == ""
            assert all(reading.position <= last for reading in cut.readings[n])
            # Known too late to force anything.
            assert all(f.position <= last for f in firings) and found.steps == split_steps(
                ends, trace.token_ids
            )
        texts += said
    assert closed > 5 and texts.count("4 =") > 5


def test_the_result_fits_the_trace(run: Run):
    n = max(range(PROMPTS), key=lambda n: len(run.firings[n]))
    trace = run.traces[n]
    found = replayed(run, n)
    length, channels = len(trace.token_ids), union(CHANNELS)[0]
    assert len(found.tokens) == len(found.activation_TC) == length
    assert found.units + found.heads == [*channels.units, *channels.heads]
    assert {len(x_C) for x_C in found.activation_TC} == {channels.size}
    assert "".join(found.tokens) == trace.text
    assert "Apply" in found.prompt and found.finish_reason == trace.finish_reason
    steps = split_steps(StepEnds(run.tokenizer), trace.token_ids)
    assert found.steps == steps
    for level, row in found.levels.items():
        assert row.threshold == run.monitor.thresholds[level]
        assert len(row.columns) == CHANNELS[level].size
        last = steps[: row.window][-1] if level == "instance" else steps[-1]
        known = [p is not None for p in row.probability_T]
        assert known == [steps[0].start <= t < last.end for t in range(length)]


def test_probabilities_between_step_ends_are_those_a_reading_there_would_give(run: Run):
    """A trace that is cut after any token gives the same numbers up to there."""
    n = max(range(PROMPTS), key=lambda n: len(run.traces[n].token_ids))
    whole = replay(run.model, run.tokenizer, run.monitor, run.traces[n], [])
    ids = run.traces[n].token_ids[:40]
    part = changed(run.traces[n], token_ids=ids, finish_reason="length")
    cut = replay(run.model, run.tokenizer, run.monitor, part, [])
    for level in run.monitor.levels:
        a, b = (found.levels[level].probability_T[:40] for found in (whole, cut))
        assert [p is None for p in a] == [p is None for p in b]
        known = [p for p in a if p is not None]
        assert known == pytest.approx([p for p in b if p is not None], abs=1e-5)
        assert len(set(known)) > 10


@pytest.mark.parametrize("max_tokens", [40, 43, 46])
@pytest.mark.parametrize("name", ["run", "eager"])
def test_answers_cut_within_what_was_forced_are_read_like_any_other(
    name: str, max_tokens: int, request: pytest.FixtureRequest
):
    short = decoded(request.getfixturevalue(name), max_tokens)
    for n, readings in enumerate(short.readings):
        agree(replayed(short, n), readings)


def test_an_answer_may_end_before_the_token_that_fired(eager: Run):
    """The limit came between the forced separator and the trigger."""
    n, firing, start = next(
        (n, firing, row.start)
        for n, firings in enumerate(eager.firings)
        for firing, row in zip(firings, replayed(eager, n).firings, strict=True)
        if row.start < row.position
    )
    ids = eager.traces[n].token_ids[: firing.position]
    trace = changed(eager.traces[n], token_ids=ids, finish_reason="length")
    firings = [other for other in eager.firings[n] if other.position <= firing.position]
    found = replay(eager.model, eager.tokenizer, eager.monitor, trace, firings)
    assert found.firings[-1].start == start
    assert found.firings[-1].position == found.firings[-1].end == len(ids)
    agree(found, [r for r in eager.readings[n] if r.position < firing.position])


def test_random_firing_keeps_its_rate_beside_the_detectors_word(run: Run):
    random = decoded(run, random_rate={"intra": 0.3, "inter": 0.3})
    n = max(range(PROMPTS), key=lambda n: len(random.firings[n]))
    found = replayed(random, n)
    assert len(found.firings) == len(random.firings[n]) > 0
    for row in found.firings:
        assert row.probability == 0.3
        assert row.read_back == found.levels[row.level].probability_T[row.start - 1]


def test_firings_may_come_in_any_order(run: Run):
    n = max(range(PROMPTS), key=lambda n: len(run.firings[n]))
    backwards = run.firings[n][::-1]
    found = replay(run.model, run.tokenizer, run.monitor, run.traces[n], backwards)
    assert len(backwards) > 1 and found == replayed(run, n)


def test_firings_of_another_trace_or_monitor_are_refused(run: Run):
    n = max(range(PROMPTS), key=lambda n: len(run.firings[n]))
    first = run.firings[n][0]
    for wrong in (
        first._replace(position=first.position + 1),
        first._replace(position=0),
        first._replace(position=10**6),
        first._replace(level={"intra": "inter", "inter": "intra"}.get(first.level, "intra")),
        first._replace(level="else"),
    ):
        with pytest.raises(BadInput, match=r"prompt 'test-\d+', sample 0: found"):
            replay(run.model, run.tokenizer, run.monitor, run.traces[n], [wrong])


def test_a_response_without_steps_has_channels_and_no_probabilities(run: Run):
    end = run.tokenizer.eos_token_id
    trace = Trace("x", 0, [5, 6], [end], "", "stop")
    found = replay(run.model, run.tokenizer, run.monitor, trace, [])
    assert found.steps == found.readings == found.firings == []
    assert len(found.activation_TC) == 1
    assert all(row.probability_T == [None] for row in found.levels.values())
