"""The built-in model watched while it decodes: what is read, what is forced, and in which row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_neureasoner_steps import tokenizer_of
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from surgeon.channels import Channels, read_back
from surgeon.checkpoint import resolve
from surgeon.decoding import Answer, Decoder, Request, stream_key
from surgeon.decoding.cache import cache_bytes_per_token
from surgeon.errors import BadInput
from surgeon.neureasoner.detectors import Detector, collect
from surgeon.neureasoner.features import FEATURES, trace_features
from surgeon.neureasoner.steps import StepEnds, split_steps
from surgeon.settings.neureasoner import LEVELS, WatchSettings
from surgeon.traces import Trace, encode, read_prompts, stop_ids
from surgeon.watch.monitor import Monitor
from surgeon.watch.redrawing import watch_of
from surgeon.watch.watching import Firing, Reading, Watching, forced_tokens, union, with_tags

MODEL = "builtin:thinking"
TRIGGERS = {"intra": "Let me start over.", "inter": "So"}
CHANNELS = {
    "intra": Channels(2, tuple(range(6)), ()),
    "inter": Channels(2, (5, 9), (3, 1)),
    "instance": Channels(2, tuple(range(10, 16)), ()),
}
NEVER, ALWAYS = 2.0, 0.0


class Run(NamedTuple):
    """Answers, and what was seen of them."""

    answers: list[Answer]
    firings: list[list[Firing]]
    readings: list[list[Reading]]

    @property
    def ids(self) -> list[list[int]]:
        return [answer.token_ids for answer in self.answers]


class Scene:
    """The model, its prompts, and a monitor whose detectors have random weights."""

    def __init__(self) -> None:
        checkpoint = resolve(MODEL)
        self.model, self.tokenizer = checkpoint.model(), checkpoint.tokenizer()
        self.prompts = read_prompts("builtin:test")
        torch.manual_seed(0)
        self.detectors = {
            level: Detector(channels.size * len(FEATURES[level]), 16).eval()
            for level, channels in CHANNELS.items()
        }
        self.word = self.tokenizer.convert_tokens_to_ids

    def monitor(self, thresholds: Mapping[str, float] | None = None, **settings: Any) -> Monitor:
        """Levels without a threshold never fire."""
        for level, detector in self.detectors.items():
            detector.threshold.fill_((thresholds or {}).get(level, NEVER))
        return Monitor(CHANNELS, self.detectors, WatchSettings(triggers=TRIGGERS, **settings), "")

    def requests(self, n: int, tokens: int | Sequence[int] = 90, **settings: Any) -> list[Request]:
        lengths = [tokens] * n if isinstance(tokens, int) else tokens
        return [
            Request(encode(self.tokenizer, prompt), stream_key(3, prompt.id, 0), length, **settings)
            for prompt, length in zip(self.prompts[:n], lengths, strict=True)
        ]

    def run(
        self,
        requests: Sequence[Request],
        monitor: Monitor | None,
        *,
        rows: int = 16,
        together: bool = True,
        sheds: bool = False,
        **watching: Any,
    ) -> Run:
        """Decode, all requests at once or one after the other."""
        watcher = None
        if monitor is not None:
            watcher = watch_of(self.model, self.tokenizer, monitor, **watching)
        decoder = Decoder(
            self.model, stop=stop_ids(self.model, self.tokenizer), rows=rows, max_tokens=500,
            temperature=0.6, top_p=0.95, sheds=sheds, watcher=watcher,
        )  # fmt: skip
        waves = [range(len(requests))] if together else [[i] for i in range(len(requests))]
        found: dict[int, list[int]] = {i: [] for i in range(len(requests))}
        forced: dict[int, list[int]] = {i: [] for i in found}
        reasons: dict[int, Any] = {}
        for wave in waves:
            for index in wave:
                decoder.add(index, requests[index])
            while decoder.busy:
                for index, token_id, is_forced, reason, _ in decoder.step():
                    if is_forced:
                        forced[index].append(len(found[index]))
                    found[index].append(token_id)
                    reasons[index] = reason
        answers = [Answer(i, found[i], reasons[i], tuple(forced[i])) for i in found]
        if watcher is None:
            return Run(answers, [], [])
        taken = [watcher.take(i) for i in found]
        assert not watcher.firings and not watcher.readings
        return Run(answers, [fired for fired, _ in taken], [read for _, read in taken])

    def traces(self, requests: Sequence[Request], run: Run) -> list[Trace]:
        return [
            Trace(str(i), 0, list(request.prompt), answer.token_ids, "", answer.finish_reason)
            for i, (request, answer) in enumerate(zip(requests, run.answers, strict=True))
        ]

    def step_ends(self, ids: Sequence[int]) -> list[int]:
        return [step.end for step in split_steps(StepEnds(self.tokenizer), ids)]

    def quantile(self, run: Run, level: str, share: float) -> float:
        found = [r.probability for some in run.readings for r in some if r.level == level]
        return float(np.quantile(found, share))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.fixture(scope="module")
def quiet(scene: Scene) -> tuple[list[Request], Run]:
    """Watched, but nothing fires. Two of the answers come to their end."""
    requests = scene.requests(16, [420 if i in (5, 14) else 150 for i in range(16)])
    return requests, scene.run(requests, scene.monitor())


@pytest.fixture(scope="module")
def keen(scene: Scene, quiet: tuple[list[Request], Run]) -> dict[str, float]:
    """Thresholds at which every level fires now and then."""
    shares = {"intra": 0.7, "inter": 0.8, "instance": 0.6}
    return {level: scene.quantile(quiet[1], level, share) for level, share in shares.items()}


# --- what is read ---------------------------------------------------------------------------------


def check_readings(scene: Scene, requests: Sequence[Request], run: Run, monitor: Monitor) -> None:
    """Each is the detector applied to the features of the finished trace, read in one pass."""
    channels, columns = union(CHANNELS)
    traces = scene.traces(requests, run)
    for trace, readings, x_TC in zip(
        traces, run.readings, read_back(scene.model, traces, channels), strict=True
    ):
        steps = split_steps(StepEnds(scene.tokenizer), trace.token_ids)
        for level in LEVELS:
            position_N, features_NCX = trace_features(
                x_TC, steps, level, monitor.settings, columns[level]
            )
            expected = scene.detectors[level].probability(features_NCX.flatten(1))
            at = {position: n for n, position in enumerate(position_N.tolist())}
            mine = [reading for reading in readings if reading.level == level]
            assert [r.probability for r in mine] == pytest.approx(
                [float(expected[at[r.position - 1]]) for r in mine], abs=1e-5
            )


def test_a_reading_is_the_detectors_word_on_the_whole_trace(
    scene: Scene, quiet: tuple[list[Request], Run]
):
    requests, run = quiet
    assert not any(run.firings) and sum(map(len, run.readings)) > 200
    check_readings(scene, requests, run, scene.monitor())
    probabilities = [r.probability for some in run.readings for r in some]
    assert np.ptp(probabilities) > 0.05


def test_so_it_is_after_tokens_were_forced(scene: Scene, keen: dict[str, float]):
    requests, monitor = scene.requests(12, 120), scene.monitor(keen, cooldown=0)
    run = scene.run(requests, monitor)
    assert {f.level for some in run.firings for f in some} == set(LEVELS)
    check_readings(scene, requests, run, monitor)


def test_detectors_are_read_where_they_learned_to_be_read(
    scene: Scene, quiet: tuple[list[Request], Run]
):
    """At the end of every step of a trace that thinks to its end, and once for `instance`."""
    requests, run = quiet
    traces = scene.traces(requests, run)
    channels, columns = union(CHANNELS)
    settings = scene.monitor().settings
    closed = 0
    for trace, readings in zip(traces, run.readings, strict=True):
        (x_TC,) = read_back(scene.model, [trace], channels)
        samples = collect([trace], [x_TC], [], StepEnds(scene.tokenizer), columns, settings)
        start = split_steps(StepEnds(scene.tokenizer), trace.token_ids)[0].start
        for level in LEVELS:
            ends = (start + 1 + np.flatnonzero(samples[level].end_N)).tolist()
            if ends and ends[-1] == len(trace.token_ids):
                ends.pop()  # the last token of an answer is never fed
            assert [r.position for r in readings if r.level == level] == ends
        closed += trace.finish_reason == "stop"
    assert closed, "no answer came to its end"


# --- what is forced -------------------------------------------------------------------------------


def test_a_trigger_comes_right_after_its_step_and_in_its_row_only(
    scene: Scene, quiet: tuple[list[Request], Run]
):
    """Greedy: up to its first firing an answer is as without a monitor; from there on as if the
    prompt had gone on that way."""
    requests = scene.requests(12, 90, temperature=0.0)
    plain = scene.run(requests, None)
    threshold = scene.quantile(quiet[1], "intra", 0.97)
    monitor = scene.monitor({"intra": threshold}, cap=1)
    run = scene.run(requests, monitor, levels=["intra"])
    fired = [index for index, firings in enumerate(run.firings) if firings]
    assert 0 < len(fired) < 12
    trigger = scene.word("Let me start over.")
    for index, request in enumerate(requests):
        answer = run.answers[index]
        if index not in fired:
            assert answer == plain.answers[index]
            continue
        (firing,) = run.firings[index]
        at = firing.position
        assert answer.forced == (at,)
        assert answer.token_ids[: at + 1] == [*plain.ids[index][:at], trigger]
        assert at in scene.step_ends(answer.token_ids)
        before = [end for end in scene.step_ends(answer.token_ids) if end < at]
        step = answer.token_ids[before[-1] if before else 1 : at]
        assert firing.step == str(scene.tokenizer.decode(step)).strip()
        assert firing.probability >= monitor.thresholds["intra"]
        told = [*request.prompt, *answer.token_ids[: at + 1]]
        rest = Request(told, b"", 90 - at - 1, temperature=0.0)
        (goes_on,) = scene.run([rest], None).answers
        assert answer.token_ids[at + 1 :] == goes_on.token_ids


def test_a_firing_is_a_reading_at_the_threshold_or_above(scene: Scene, keen: dict[str, float]):
    run = scene.run(scene.requests(12), scene.monitor(keen))
    for firings, readings in zip(run.firings, run.readings, strict=True):
        over = [r for r in readings if r.open and r.probability >= keen[r.level] - 1e-7]
        # A separator that is forced before the trigger lies between the two.
        assert [(r.level, r.probability) for r in over] == [f[1:3] for f in firings]
        assert all(f.position - r.position in (0, 1) for f, r in zip(firings, over, strict=True))


def test_instance_forces_the_finish_text_and_ends_the_thinking(scene: Scene):
    monitor = scene.monitor({"instance": ALWAYS, "intra": ALWAYS}, instance_steps=3, cap=1)
    requests = scene.requests(6, 60)
    for run, first in (
        (scene.run(requests, monitor, levels=["instance"]), True),
        (scene.run(requests, replace(monitor, settings=replace(monitor.settings, cap=9))), False),
    ):
        forced = scene.tokenizer("Okay, I have finished thinking.\n</think>\n\n")["input_ids"]
        for answer, firings, readings in zip(*run, strict=True):
            last = firings[-1]
            assert last.level == "instance" and (len(firings) == 1) == first
            ids = answer.token_ids
            assert ids[last.position : last.position + len(forced)] == forced
            tail = range(last.position, last.position + len(forced))
            assert set(tail) <= set(answer.forced)
            ends = scene.step_ends(ids)
            # Three steps, and the finish text as the fourth.
            assert ends.index(last.position) == 2 and len(ends) == 4
            assert ids[ends[-1]] == scene.word("</think>")
            assert max(r.position for r in readings) <= last.position
            assert "Answer:" in str(scene.tokenizer.decode(ids[ends[-1] :]))


def test_of_levels_that_fire_together_one_comes_first(scene: Scene):
    """instance, then intra, then inter; what was passed over couldn't have fired."""
    requests = scene.requests(4, 60)
    monitor = scene.monitor(dict.fromkeys(LEVELS, ALWAYS), instance_steps=3, cooldown=0, cap=99)
    run = scene.run(requests, monitor)
    assert [[f.level for f in some] for some in run.firings] == [["intra"] * 2 + ["instance"]] * 4
    assert not any(r.open for some in run.readings for r in some if r.level == "inter")
    run = scene.run(requests, monitor, levels=["inter", "intra"])
    assert {f.level for some in run.firings for f in some} == {"intra"}
    run = scene.run(requests, monitor, levels=["inter"])
    assert {r.level for some in run.readings for r in some} == {"inter"}
    assert {f.level for some in run.firings for f in some} == {"inter"}
    assert any(r.open for some in run.readings for r in some)


@pytest.mark.parametrize(("cooldown", "cap"), [(0, 3), (1, 8), (3, 99), (2, 0)])
def test_after_a_firing_steps_pass_and_a_response_has_so_many(
    scene: Scene, cooldown: int, cap: int
):
    requests = scene.requests(4, 90)
    run = scene.run(requests, scene.monitor({"inter": ALWAYS}, cooldown=cooldown, cap=cap))
    for answer, firings in zip(run.answers, run.firings, strict=True):
        ends = scene.step_ends(answer.token_ids)
        numbers = [ends.index(firing.position) for firing in firings]
        assert len(numbers) <= cap
        assert numbers == list(range(0, len(ends), cooldown + 1))[: len(numbers)]
        # Every step end that the last token of the answer doesn't hide was made use of.
        usable = [end for end in ends[:: cooldown + 1] if end < len(answer.token_ids)]
        assert len(numbers) == min(cap, len(usable))


def test_a_trigger_at_the_end_of_the_thinking_gets_its_separator_first(
    scene: Scene, quiet: tuple[list[Request], Run]
):
    """The last step has none; both are forced in place of the closing token. Here the prompt holds
    what was thought before that step."""
    close, line = scene.word("</think>"), scene.word("\n")
    rest = []
    for request, ids in zip(quiet[0], quiet[1].ids, strict=True):
        if close in ids:
            start = split_steps(StepEnds(scene.tokenizer), ids)[-1].start
            rest.append(Request([*request.prompt, *ids[:start]], b"", 60, temperature=0.0))
    plain = scene.run(rest, None).ids
    ends = [split_steps(StepEnds(scene.tokenizer), ids)[0].end for ids in plain]
    closes = [i for i, end in enumerate(ends) if plain[i][end : end + 1] == [close]]
    rest, steps = [rest[i] for i in closes], [plain[i][: ends[i]] for i in closes]
    assert len(rest) > 1 and all(step[-1] == line for step in steps)
    for level, cap in (("intra", 1), ("inter", 3)):
        monitor = scene.monitor({level: ALWAYS}, cap=cap)
        run = scene.run(rest, monitor, levels=[level])
        for step, answer, firings, readings in zip(steps, *run, strict=True):
            at = len(step)
            assert answer.token_ids[: at + 2] == [*step, line, scene.word(TRIGGERS[level])]
            assert answer.forced[:2] == (at, at + 1)
            assert firings[0].position == at + 1 == scene.step_ends(answer.token_ids)[0]
            assert firings[0].step == str(scene.tokenizer.decode(step)).strip()
            # The forced separator ends the step once more; nothing fires there.
            assert [(r.position, r.open) for r in readings[:2]] == [(at, True), (at + 1, False)]
            # And the step after it is the pause.
            assert not readings[2].open
            assert len(firings) <= cap


# --- random firing --------------------------------------------------------------------------------


def test_random_firing_has_its_rate_and_asks_no_detector(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    def asked(*_: Any) -> Any:
        raise AssertionError("a detector was asked")

    monkeypatch.setattr(Detector, "probability", asked)
    monitor = scene.monitor(dict.fromkeys(LEVELS, ALWAYS), cooldown=0, cap=999)
    requests = scene.requests(32, 150)
    rates = {"intra": 0.25, "inter": 0.4}
    run = scene.run(requests, monitor, rows=32, random_rate=rates)
    assert not any(run.readings)
    ends = sum(
        sum(end < len(ids) for end in scene.step_ends(ids)) for ids in run.ids
    )  # an end that is the last token is never seen
    fired = [firing for some in run.firings for firing in some]
    counts = {level: sum(f.level == level for f in fired) for level in LEVELS}
    # inter has its turn where intra left it one.
    chances = {"intra": ends, "inter": ends - counts["intra"]}
    assert ends > 400 and counts["instance"] == 0
    for level, rate in rates.items():
        n = chances[level]
        assert abs(counts[level] - n * rate) < 4 * (n * rate * (1 - rate)) ** 0.5
        assert {f.probability for f in fired if f.level == level} == {rate}


def test_the_rate_that_was_measured_gives_as_many_firings(scene: Scene, keen: dict[str, float]):
    """What a control takes: firings per reading at which the level could have fired."""
    requests = scene.requests(32, 90)
    levels = ["intra", "inter"]
    monitor = scene.monitor({level: keen[level] for level in levels}, cap=99)
    run = scene.run(requests, monitor, rows=32, levels=levels)
    count = {v: sum(f.level == v for some in run.firings for f in some) for v in LEVELS}
    rates = {
        v: count[v] / sum(r.open and r.level == v for some in run.readings for r in some)
        for v in levels
    }
    control = scene.run(requests, monitor, rows=32, random_rate=rates)
    for level in levels:
        found = sum(f.level == level for some in control.firings for f in some)
        assert found == pytest.approx(count[level], abs=4 * (count[level] + 1) ** 0.5)
    assert min(count[level] for level in levels) > 10


def test_random_firings_hang_on_the_seed_and_the_request_alone(scene: Scene):
    requests, monitor = scene.requests(10, 40), scene.monitor(instance_steps=2)
    rates = {"intra": 0.2, "inter": 0.2, "instance": 0.3}
    first = scene.run(requests, monitor, random_rate=rates, seed=5)
    assert {f.level for some in first.firings for f in some} == set(LEVELS)
    assert scene.run(requests, monitor, random_rate=rates, seed=5) == first
    assert scene.run(requests, monitor, together=False, random_rate=rates, seed=5) == first
    assert scene.run(requests, monitor, rows=32, random_rate=rates, seed=5) == first
    assert scene.run(requests, monitor, random_rate=rates, seed=6).firings != first.firings
    # Another rate moves no number of the stream: what fired first at the lower one fires still.
    more = scene.run(requests, monitor, random_rate={"inter": 0.5}, seed=5)
    less = scene.run(requests, monitor, random_rate={"inter": 0.2}, seed=5)
    assert all(
        some[0].position >= other[0].position
        for some, other in zip(less.firings, more.firings, strict=True)
        if some
    )


# --- rows -----------------------------------------------------------------------------------------


def same(found: Run, expected: Run) -> None:
    """The same tokens and the same words on them."""
    assert found.answers == expected.answers
    for rows in ("firings", "readings"):
        for some, others in zip(getattr(found, rows), getattr(expected, rows), strict=True):
            assert [r._replace(probability=0) for r in some] == [
                r._replace(probability=0) for r in others
            ]
            assert [r.probability for r in some] == pytest.approx(
                [r.probability for r in others], abs=1e-6
            )


@pytest.mark.slow
def test_rows_that_are_moved_and_refilled_keep_what_was_seen_of_them(
    scene: Scene, keen: dict[str, float], monkeypatch: pytest.MonkeyPatch
):
    """Forty requests of different lengths in a batch of 16, of 32, and one after the other; in half
    of them the prompt has opened the thinking, so that nothing marks where the response begins."""
    requests = scene.requests(40, [15 + 31 * i % 60 for i in range(40)])
    opening = [scene.word("<think>"), scene.word("\n")]
    for i in range(0, 40, 2):
        requests[i] = requests[i]._replace(prompt=[*requests[i].prompt, *opening])
    monitor, moved = scene.monitor(keen, cooldown=0), []
    alone = scene.run(requests, monitor, together=False)
    assert {f.level for some in alone.firings for f in some} == set(LEVELS)
    move = Watching.move
    monkeypatch.setattr(
        Watching,
        "move",
        lambda self, source, target: moved.extend(source) or move(self, source, target),
    )
    same(scene.run(requests, monitor, rows=16), alone)
    same(scene.run(requests, monitor, rows=32), alone)
    assert moved


@pytest.mark.slow
def test_an_answer_given_up_for_memory_is_watched_again_from_its_start(
    scene: Scene, quiet: tuple[list[Request], Run], monkeypatch: pytest.MonkeyPatch
):
    """Few firings: after one an answer is soon at its end, and there is memory enough."""
    requests = scene.requests(20, 180)
    monitor = scene.monitor({"intra": scene.quantile(quiet[1], "intra", 0.99)}, cap=99)
    whole = scene.run(requests, monitor, rows=32)
    assert any(whole.firings)
    room = 31 * 192 * cache_bytes_per_token(scene.model)
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: room)
    seats: list[int] = []
    seat = Watching.seat
    monkeypatch.setattr(
        Watching, "seat", lambda self, slot, index: seats.append(index) or seat(self, slot, index)
    )
    same(scene.run(requests, monitor, rows=32, sheds=True), whole)
    assert len(seats) > 20


def test_watching_leaves_answers_and_model_alone(scene: Scene, quiet: tuple[list[Request], Run]):
    requests, run = quiet
    plain = scene.run(requests, None)
    assert run.answers == plain.answers
    assert scene.run(requests, scene.monitor(), levels=[]).answers == plain.answers
    assert not any(module._forward_pre_hooks for module in scene.model.modules())


# --- what can't be --------------------------------------------------------------------------------


def test_a_tokenizer_without_the_trigger_is_refused(scene: Scene):
    monitor = replace(scene.monitor(), settings=WatchSettings())
    with pytest.raises(BadInput, match=r"no token '<INTRA>', .* `surgeon trigger sft`"):
        Watching(scene.model, scene.tokenizer, monitor)
    assert Watching(scene.model, scene.tokenizer, monitor, levels=["instance"]).forced


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(levels=["intro"]), "found the level 'intro'"),
        (dict(random_rate={"intra": 1.5}), "random rate 1.5 for 'intra'"),
        (dict(random_rate={"intro": 0.5}), "random rate 0.5 for 'intro'"),
    ],
)
def test_levels_and_rates_that_cant_be_are_refused(
    scene: Scene, settings: dict[str, Any], words: str
):
    with pytest.raises(BadInput, match=words):
        Watching(scene.model, scene.tokenizer, scene.monitor(), **settings)


def test_a_random_rate_for_a_level_without_a_monitor_is_refused(scene: Scene):
    """It would control nothing, without a word."""
    whole = scene.monitor()
    part = Monitor(
        {"intra": CHANNELS["intra"]}, {"intra": scene.detectors["intra"]}, whole.settings, ""
    )
    with pytest.raises(BadInput, match="'inter'"):
        Watching(scene.model, scene.tokenizer, part, random_rate={"intra": 0.1, "inter": 0.2})


def test_without_a_thinking_block_the_finish_text_stands_alone(scene: Scene):
    tokenizer = tokenizer_of("Okay, I have finished thinking.", "\n\n")
    tokenizer.backend_tokenizer.pre_tokenizer = Split("\n\n", "isolated")
    assert tokenizer.decode(forced_tokens(tokenizer, WatchSettings(), "instance")) == (
        "Okay, I have finished thinking.\n\n"
    )
    assert scene.tokenizer.decode(forced_tokens(scene.tokenizer, WatchSettings(), "instance")) == (
        "Okay, I have finished thinking.\n</think>\n\n"
    )


def test_a_closing_tag_that_is_no_token_is_written_in_several_where_answers_think_so():
    tokenizer = tokenizer_of("Done.", "</", "think", ">", "\n", "\n\n")
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("Done.|</|think|>|\n+"), "isolated")
    settings = with_tags(WatchSettings(finish="Done."), tokenizer, closes=True)
    ids = forced_tokens(tokenizer, settings, "enough")
    assert tokenizer.convert_ids_to_tokens(ids) == ["Done.", "\n", "</", "think", ">", "\n\n"]
    assert StepEnds(tokenizer).ends_thinking(ids[:-1])
    silent = with_tags(WatchSettings(finish="Done."), tokenizer, closes=False)
    assert tokenizer.decode(forced_tokens(tokenizer, silent, "enough")) == "Done.\n\n"
    other = with_tags(WatchSettings(), tokenizer, ("[THINK]", "[/THINK]"), closes=True)
    with pytest.raises(BadInput, match=r"expected \[/THINK\] in it\. Name the tags"):
        forced_tokens(tokenizer, other, "enough")


def test_the_end_that_is_forced_has_the_tokens_of_a_text_that_goes_on():
    """GPT-2's pieces: two line breaks are one token at the end of a text, and two before a word,
    which is all that a model has seen there."""
    tokenizer = tokenizer_of("<think>", "</think>", "\n", "\n\n", "A")
    pieces = Regex(r"</?think>|\w+|\s+(?!\S)|\s+")
    tokenizer.backend_tokenizer.pre_tokenizer = Split(pieces, "isolated")
    ids = forced_tokens(tokenizer, WatchSettings(finish=""), "enough")
    assert tokenizer.convert_ids_to_tokens(ids) == ["</think>", "\n", "\n"]
    assert [*ids, tokenizer.vocab["A"]] == tokenizer("</think>\n\nA")["input_ids"]


def test_a_model_whose_answer_is_another_message_is_sent_to_it():
    words = ["<|channel|>", "final", "<|message|>", "<|end|>", "<|start|>", "assistant", "Done."]
    tokenizer = tokenizer_of(*words)
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex(r"<\|\w+\|>|\w+\.?"), "isolated")
    tokenizer.chat_template = "<|channel|>analysis<|message|> <|channel|>final<|message|>"
    for finish in ("Done.", ""):
        settings = with_tags(WatchSettings(finish=finish), tokenizer, closes=True)
        forced = tokenizer.decode(forced_tokens(tokenizer, settings, "enough"))
        end = "<|end|><|start|>assistant<|channel|>final<|message|>"
        assert forced == finish + end
