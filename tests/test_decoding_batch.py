"""The batch that requests join and leave while it runs, and watchers that force tokens in it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surgeon.decoding import Answer, Decoder, NotFinite, Request, Token, decode, stream_key
from surgeon.decoding.cache import cache_bytes_per_token
from surgeon.decoding.fitting import row_block, why_alone
from surgeon.decoding.slots import Slots
from surgeon.errors import BadInput

STOP = frozenset({2, 5})
MANY_STOPS = frozenset(range(0, 128, 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Any) -> Any:
    from surgeon.checkpoint import Checkpoint

    path = tmp_path_factory.mktemp("decoder") / "m"
    made = Checkpoint.open(make_checkpoint(path, dtype="float32")).model()
    # Tried here, not under the hooks of a test.
    assert why_alone(made) is None
    row_block(Slots(made))
    return made


def requests(n: int, longest: int = 40, seed: int = 0, **settings: Any) -> list[Request]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(6, 128, rng.integers(1, longest + 1)).tolist() for _ in range(n)]
    return [Request(ids, stream_key(seed, str(i), 0), **settings) for i, ids in enumerate(prompts)]


def run(model: Any, wanted: Sequence[Request], **settings: Any) -> list[Answer]:
    settings = dict(stop=STOP, max_tokens=40) | settings
    return sorted(decode(model, wanted, **settings), key=lambda answer: answer.index)


class Script:
    """A watcher that forces `plan[index][position]`, a list of tokens, and keeps what it saw."""

    def __init__(self, model: Any, plan: Mapping[int, Mapping[int, list[int]]] | None = None):
        self.model, self.plan = model, plan or {}
        self.index_of: dict[int, int] = {}
        self.fed: dict[int, list[int]] = {}
        self.chosen: dict[int, list[int]] = {}
        self.states: dict[int, list[Tensor]] = defaultdict(list)
        self.seats: list[int] = []
        self.moves = 0
        self.last_BF = torch.zeros(0)

    @contextmanager
    def attached(self) -> Iterator[None]:
        def see(_: Any, args: tuple[Tensor, ...]) -> None:
            assert args[0].shape[1] == 1
            self.last_BF = args[0][:, -1].clone()

        hook = self.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(see)
        try:
            yield
        finally:
            hook.remove()

    def seat(self, slot: int, index: int) -> None:
        self.seats.append(index)
        self.index_of[slot] = index
        self.fed[index], self.chosen[index], self.states[index] = [], [], []

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        self.moves += len(source)
        self.index_of |= {t: self.index_of[s] for s, t in zip(source, target, strict=True)}

    def look(self, slots: Sequence[int], fed_B: Tensor, chosen_B: Tensor) -> dict[int, list[int]]:
        assert len(fed_B) == len(chosen_B) == len(self.last_BF) > max(slots)
        wanted = {}
        for slot in slots:
            index = self.index_of[slot]
            position = len(self.fed[index])
            self.fed[index].append(int(fed_B[slot]))
            self.chosen[index].append(int(chosen_B[slot]))
            self.states[index].append(self.last_BF[slot])
            if position in self.plan.get(index, {}):
                wanted[slot] = self.plan[index][position]
        return wanted


# --- a watcher ------------------------------------------------------------------------------------


def test_a_watcher_that_forces_nothing_changes_no_answer(model: Any):
    wanted = requests(40)
    plain = run(model, wanted, stop=MANY_STOPS, batch=32)
    script = Script(model)
    assert run(model, wanted, stop=MANY_STOPS, batch=32, watcher=script) == plain
    assert sorted(script.seats) == list(range(40))
    assert script.moves > 0


def test_it_is_asked_after_single_token_passes_and_sees_each_rows_own_token(model: Any):
    """Prompts of up to 300 tokens are read in passes that it must not be asked about."""
    wanted = requests(50, longest=300)
    script = Script(model, {7: {3: [9, 9]}, 30: {0: [11]}})
    answers = run(model, wanted, stop=MANY_STOPS, batch=32, watcher=script)
    assert script.moves > 0
    for request, answer in zip(wanted, answers, strict=True):
        assert script.fed[answer.index] == [request.prompt[-1], *answer.token_ids[:-1]]


def test_its_activations_are_those_of_the_token_it_is_told_of(model: Any):
    wanted = requests(20, longest=300)
    script = Script(model, {4: {2: [9, 8, 7]}})
    answers = run(model, wanted, max_tokens=12, batch=16, watcher=script)
    for request, answer in zip(wanted, answers, strict=True):
        seen: list[Tensor] = []
        hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0][0])
        )
        with torch.inference_mode():
            model(torch.tensor([[*request.prompt, *answer.token_ids]]))
        hook.remove()
        start = len(request.prompt) - 1
        expected_TF = seen[0][start : start + len(answer.token_ids)]
        found_TF = torch.stack(script.states[answer.index])
        torch.testing.assert_close(found_TF, expected_TF, rtol=1e-4, atol=1e-5)


def states_of(model: Any, wanted: list[Request], **settings: Any) -> tuple[list[Answer], list[Any]]:
    """The answers, and the last hidden states (rows, D) of each step."""
    steps: list[Any] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: steps.append(args[0].numpy().copy())
    )
    try:
        return run(model, wanted, **settings), steps
    finally:
        hook.remove()


def test_forcing_tokens_in_one_row_leaves_the_bits_of_the_others_alone(model: Any):
    wanted = requests(20, longest=300)
    script = Script(model, {3: {1: [9, 10, 11], 8: [12]}})
    watched, steps = states_of(model, wanted, batch=32, watcher=script)
    assert watched[3].token_ids[1:4] == [9, 10, 11] and watched[3].token_ids[8] == 12
    assert watched[3].forced == (1, 2, 3, 8)
    rows = {row.tobytes() for step in steps for row in step}
    for index in (0, 2, 4, 19):
        (alone,), own = states_of(model, [wanted[index]], batch=16)
        assert watched[index] == alone._replace(index=index)
        assert {step[0].tobytes() for step in own} <= rows
    assert run(model, wanted, batch=32)[3] != watched[3]


def test_after_forced_tokens_the_answer_goes_on_from_them(model: Any):
    (request,) = requests(1)
    script = Script(model, {0: {4: [20, 21, 22]}})
    plain = run(model, [request], temperature=0)[0].token_ids
    forced = run(model, [request], temperature=0, watcher=script)[0].token_ids
    assert forced[:7] == [*plain[:4], 20, 21, 22] != plain[:7]
    told = Request([*request.prompt, *forced[:7]], b"")
    assert forced[7:] == run(model, [told], temperature=0, max_tokens=33)[0].token_ids
    assert script.chosen[0][4] == plain[4]
    assert script.chosen[0][5:7] == [21, 22]


def test_forced_tokens_use_up_random_numbers_like_any_others(model: Any):
    """Forcing what would have been drawn anyway changes nothing that follows."""
    wanted = requests(3)
    plain = run(model, wanted, stop=frozenset(), temperature=1.0, top_p=1.0, max_tokens=300)
    ids = plain[1].token_ids
    # Across the end of a block of 256 random numbers.
    script = Script(model, {1: {2: ids[2:5], 250: ids[250:260]}})
    again = run(
        model, wanted, stop=frozenset(), temperature=1.0, top_p=1.0, max_tokens=300, watcher=script
    )
    assert [a.token_ids for a in again] == [a.token_ids for a in plain]
    assert again[1].forced == (2, 3, 4, *range(250, 260))


def test_later_forced_tokens_take_the_place_of_those_still_to_come(model: Any):
    script = Script(model, {0: {1: [20, 21, 22, 23], 3: [30, 31]}})
    (answer,) = run(model, requests(1), stop=frozenset(), watcher=script)
    assert answer.token_ids[1:5] == [20, 21, 30, 31]
    assert answer.forced == (1, 2, 3, 4)


def test_a_forced_stop_token_or_the_token_budget_ends_the_answer(model: Any):
    wanted = requests(2)
    script = Script(model, {0: {3: [9, 5, 9]}, 1: {3: [9] * 10}})
    first, second = run(model, wanted, stop=frozenset({5}), max_tokens=8, watcher=script)
    assert first.token_ids[3:] == [9, 5] and first.finish_reason == "stop"
    assert second.token_ids[3:] == [9] * 5 and second.finish_reason == "length"


def shedding(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for 32 rows of 176 positions, but not of 192."""
    monkeypatch.setattr("surgeon.decoding.batch.row_block", lambda _: 16)
    room = 31 * 192 * cache_bytes_per_token(model)
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: room)


def test_answers_given_up_for_memory_are_seated_again_and_emitted_once(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    wanted = requests(24)
    plan = {i: {2: [9, 9], 100: [7]} for i in range(0, 24, 2)}
    settings: dict[str, Any] = dict(max_tokens=150, stop=frozenset())
    whole = run(model, wanted, batch=32, watcher=Script(model, plan), **settings)
    shedding(model, monkeypatch)
    script = Script(model, plan)
    decoder = Decoder(model, rows=32, watcher=script, **settings)
    for index, request in enumerate(wanted):
        decoder.add(index, request)
    tokens: dict[int, list[Token]] = defaultdict(list)
    while decoder.busy:
        for token in decoder.step():
            tokens[token.index].append(token)
    assert len(script.seats) == 24 + 8
    for answer in whole:
        found = tokens[answer.index]
        assert [token.token_id for token in found] == answer.token_ids
        assert tuple(i for i, token in enumerate(found) if token.forced) == answer.forced
        assert script.fed[answer.index] == [wanted[answer.index].prompt[-1], *answer.token_ids[:-1]]


# --- coming and going -----------------------------------------------------------------------------


def collect(decoder: Decoder, most: int | None = None) -> dict[int, list[int]]:
    """The tokens of up to `most` steps by index, until nothing is left to do."""
    found: dict[int, list[int]] = defaultdict(list)
    while decoder.busy and most != 0:
        for token in decoder.step():
            found[token.index].append(token.token_id)
        most = None if most is None else most - 1
    return found


@pytest.mark.parametrize("rows", [1, 16, 48])
def test_requests_that_join_while_it_runs_get_the_answers_of_decode(model: Any, rows: int):
    wanted = requests(40, longest=300)
    whole = run(model, wanted, stop=MANY_STOPS, batch=16)
    decoder = Decoder(model, stop=MANY_STOPS, rows=rows, max_tokens=40)
    found: dict[int, list[int]] = defaultdict(list)
    widths: set[int] = set()
    for first in range(0, 40, 8):
        for index in range(first, first + 8):
            decoder.add(index, wanted[index])
        for index, ids in collect(decoder, 3).items():
            found[index] += ids
        widths.add(len(decoder.row_B))
    for index, ids in collect(decoder).items():
        found[index] += ids
    assert max(widths) <= rows
    if rows > 1:  # in one row sums come in another order: tokens may differ where two are as likely
        assert [found[index] for index in range(40)] == [answer.token_ids for answer in whole]
    assert [len(found[index]) > 0 for index in range(40)] == [True] * 40


@pytest.mark.parametrize(("block", "expected"), [(16, [16, 32, 48, 48]), (4, [8, 32, 40, 40])])
def test_the_batch_widens_as_requests_come_and_shrinks_as_they_go(
    model: Any, monkeypatch: pytest.MonkeyPatch, block: int, expected: list[int]
):
    """In steps of so many rows as leave the bits of each alone; above 16 rows of 8."""
    monkeypatch.setattr("surgeon.decoding.batch.row_block", lambda _: block)
    decoder = Decoder(model, stop=frozenset(), rows=48, max_tokens=8)
    wanted = requests(40)
    widths = []
    for index, request in enumerate(wanted[:5]):
        decoder.add(index, request)
    for count in (0, 20, 15, 0):
        start = len(decoder.indices)
        for index in range(start, start + count):
            decoder.add(index, wanted[index])
        decoder.step()
        widths.append(len(decoder.row_B))
    assert widths == expected
    while decoder.busy:
        decoder.step()
        widths.append(len(decoder.row_B))
    assert widths[-1] == 16


def test_it_takes_requests_after_it_was_idle(model: Any):
    wanted = requests(6)
    whole = run(model, wanted)
    decoder = Decoder(model, stop=STOP, rows=16, max_tokens=40)
    assert not decoder.busy and decoder.step() == []
    for index, answer in enumerate(whole):
        decoder.add(index, wanted[index])
        assert decoder.busy
        assert collect(decoder) == {index: answer.token_ids}
        assert not decoder.busy and decoder.step() == []


def test_a_longer_prompt_that_joins_gets_room_and_a_cache_far_too_large_is_let_go(model: Any):
    short, long = requests(1, longest=8)[0], Request(list(range(6, 106)) * 8, stream_key(0, "l", 0))
    expected = run(model, [short, long])
    decoder = Decoder(model, stop=STOP, rows=16, max_tokens=40)
    decoder.add(0, short)
    found = collect(decoder, 2)
    decoder.add(1, long)
    for index, ids in collect(decoder).items():
        found[index] += ids
    assert found == {answer.index: answer.token_ids for answer in expected}
    assert decoder.passes.capacity >= 840
    decoder.add(2, short)
    assert collect(decoder) == {2: expected[0].token_ids}
    assert decoder.passes.capacity <= 160


def test_a_prompt_that_joins_may_cost_the_youngest_their_rows(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    """The rows that are given up while it is made room for are not those it is read into."""
    wanted = requests(24)
    long = Request(list(range(6, 126)) + [9] * 40, stream_key(0, "l", 0))
    whole = run(model, [*wanted, long], batch=32)
    shedding(model, monkeypatch)
    decoder = Decoder(model, stop=STOP, rows=32, max_tokens=40)
    for index, request in enumerate(wanted):
        decoder.add(index, request)
    found = collect(decoder, 4)
    assert len(decoder.row_B) == 32
    decoder.add(24, long)
    for index, ids in collect(decoder, 1).items():
        found[index] += ids
    assert len(decoder.row_B) == 16
    for index, ids in collect(decoder).items():
        found[index] += ids
    assert found == {answer.index: answer.token_ids for answer in whole}


def test_a_long_prompt_that_joins_a_patient_batch_holds_up_nobody(model: Any):
    """It is read a chunk at a time, whatever happens to other rows meanwhile."""
    wanted = requests(24, longest=10, max_tokens=9)
    wanted[20] = Request(list(range(6, 106)) * 8, stream_key(0, "l", 0))
    wanted[21] = wanted[20]._replace(stream=stream_key(0, "l", 1))
    wanted[22] = Request(list(range(7, 107)) * 6, stream_key(0, "gone", 0))
    whole = run(model, wanted, stop=frozenset())
    script = Script(model)
    decoder = Decoder(model, stop=frozenset(), rows=16, max_tokens=40, patient=True, watcher=script)
    for index in range(12):
        decoder.add(index, wanted[index]._replace(max_tokens=3 if index else 30))
    found = collect(decoder, 2)
    for index in (20, 21, 22, 23):
        decoder.add(index, wanted[index])
    first: dict[int, int] = {}
    for step in range(40):
        tokens = decoder.step()
        assert step >= 28 or any(token.index == 0 for token in tokens)
        for token in tokens:
            first.setdefault(token.index, step)
            found[token.index].append(token.token_id)
        if step == 2:
            # The others have ended: rows move while prompts are read into them.
            assert 20 in {row.index for row in decoder.reading.values()}
            decoder.cancel(22)
    # Seven chunks; the second sample costs none of its own.
    assert first[23] <= 1 and 5 <= first[20] <= 8 and first[21] <= 9 and 22 not in first
    for index, ids in collect(decoder).items():
        found[index] += ids
    for index in (0, 20, 21, 23):
        assert found[index][:9] == whole[index].token_ids[:9]
    assert script.fed[20] == [wanted[20].prompt[-1], *found[20][:-1]]


def test_a_cancelled_request_is_gone_and_its_row_serves_the_next(model: Any):
    wanted = requests(20)
    whole = run(model, wanted, stop=frozenset())
    decoder = Decoder(model, stop=frozenset(), rows=16, max_tokens=40)
    for index, request in enumerate(wanted):
        decoder.add(index, request)
    before = collect(decoder, 3)
    assert sorted(before) == list(range(16))
    decoder.cancel(4)
    decoder.cancel(17)  # waits
    decoder.cancel(99)
    after = collect(decoder, 1)
    assert 4 not in after and 16 in after
    for index, ids in collect(decoder).items():
        after[index] += ids
    assert 17 not in after
    for answer in whole:
        if answer.index not in (4, 17):
            assert before[answer.index] + after[answer.index] == answer.token_ids
    decoder.add(4, wanted[4])
    assert collect(decoder) == {4: whole[4].token_ids}


def test_cancelling_everything_leaves_it_idle(model: Any):
    decoder = Decoder(model, stop=STOP, rows=1, max_tokens=40)
    for index, request in enumerate(requests(2)):
        decoder.add(index, request)
    decoder.step()
    decoder.cancel(0)
    assert decoder.busy
    decoder.cancel(1)
    assert not decoder.busy and decoder.step() == []


def test_what_a_request_cant_be_is_refused_when_it_is_added(model: Any):
    decoder = Decoder(model, stop=STOP, rows=4, max_tokens=40)
    with pytest.raises(BadInput, match="without tokens"):
        decoder.add(0, Request([], b""))
    with pytest.raises(BadInput, match="a prompt of 2048 tokens"):
        decoder.add(0, Request([7] * 2048, b""))
    for name, value in (("max_tokens", 0), ("temperature", -1), ("top_p", 0), ("top_k", -1)):
        with pytest.raises(BadInput, match=f"{name} = {value}"):
            decoder.add(0, Request([7], b"")._replace(**{name: value}))
    assert not decoder.busy
    (request,) = requests(1)
    decoder.add(0, request)
    with pytest.raises(ValueError, match="request 0"):
        decoder.add(0, request)


def test_the_model_is_in_eval_mode_only_while_it_runs(model: Any):
    seen: list[bool] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, _: seen.append(module.training)
    )
    decoder = Decoder(model, stop=STOP, rows=1, max_tokens=4)
    decoder.add(0, requests(1)[0])
    model.train()
    try:
        decoder.step()
        assert model.training
        for _ in decode(model, requests(1), stop=frozenset(), max_tokens=2):
            assert not model.training
        assert model.training
    finally:
        model.eval()
        hook.remove()
    assert seen == [False] * 3


# --- settings of a request ------------------------------------------------------------------------


def test_requests_with_their_own_settings_get_the_answers_of_a_batch_with_those(model: Any):
    kinds: list[dict[str, Any]] = [
        {},
        dict(temperature=0.0),
        dict(temperature=1.5, top_p=1.0),
        dict(top_k=3, max_tokens=7),
    ]
    wanted = requests(36)
    mixed = [request._replace(**kinds[i % 4]) for i, request in enumerate(wanted)]
    found = run(model, mixed, stop=frozenset(), batch=19)
    for k, settings in enumerate(kinds):
        part = wanted[k::4]
        for answer in run(model, part, **(dict(stop=frozenset()) | settings)):
            assert found[4 * answer.index + k].token_ids == answer.token_ids
            assert len(answer.token_ids) == settings.get("max_tokens", 40)


def test_settings_do_not_move_the_bits_of_a_choice(tmp_path: Path, make_checkpoint: Any):
    """A vocabulary whose rows don't fill whole registers, in a batch of 16 different settings."""
    from surgeon.checkpoint import Checkpoint

    path = make_checkpoint(tmp_path / "m", dtype="float32", vocab_size=131)
    model = Checkpoint.open(path).model()
    wanted = requests(16)
    whole = run(model, wanted, stop=frozenset(), temperature=0.9, top_p=0.8)
    mixed = [
        request._replace(temperature=0.5 + i / 10) if i else request
        for i, request in enumerate(wanted)
    ]
    found = run(model, mixed, stop=frozenset(), temperature=0.9, top_p=0.8)
    assert found[0] == whole[0]
    assert found[4] == whole[4]
    assert sum(a != b for a, b in zip(found, whole, strict=True)) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_without_finite_logits_fails_alone(model: Any, temperature: float):
    """Token 7 has no numbers. What shares the pass, and what later sits in that row, is as ever."""
    wanted = [r._replace(prompt=[i if i != 7 else 8 for i in r.prompt]) for r in requests(40)]
    clean = run(model, wanted, batch=16, temperature=temperature)
    bad = {3, 11, 20}
    mixed = [r._replace(prompt=[*r.prompt, 7, 9]) if n in bad else r for n, r in enumerate(wanted)]

    def poison(_: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out.masked_fill((args[0] == 7)[..., None], torch.nan)

    hook = model.get_input_embeddings().register_forward_hook(poison)
    try:
        decoder = Decoder(model, stop=STOP, rows=16, max_tokens=40, temperature=temperature)
        for n, request in enumerate(mixed):
            decoder.add(n, request)
        found: dict[int, list[int]] = defaultdict(list)
        failed: list[int] = []
        while decoder.busy:
            for token in decoder.step():
                found[token.index].append(token.token_id)
            failed += decoder.failed
        # An answer may come upon the token by itself.
        own = {a.index for a in clean if 7 in a.token_ids[:-1]}
        assert bad <= set(failed) <= bad | own and not bad & found.keys()
        for answer in clean:
            if answer.index not in bad | own:
                assert found[answer.index] == answer.token_ids
        # The first batch is finished; what waits isn't begun.
        told: list[int] = []
        answers = decode(model, mixed, stop=STOP, max_tokens=1, temperature=0, batch=16)
        with pytest.raises(NotFinite, match="for request 3 and 1 more: the weights") as error:
            told.extend(answer.index for answer in answers)
        assert sorted(told) == sorted({*range(16)} - {3, 11})
        assert error.value.indices == (3, 11)
    finally:
        hook.remove()
