"""The batched decoder against transformers' own, family by family, and against itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgeon.decoding import (
    Answer,
    Decoder,
    Request,
    attention,
    context_limit,
    decode,
    fitting,
    plan_rows,
    stream_key,
)
from surgeon.decoding.cache import available_bytes, cache_bytes_per_token
from surgeon.decoding.choosing import choose, uniforms
from surgeon.decoding.fitting import why_alone
from surgeon.decoding.packing import Packed
from surgeon.decoding.slots import Slots
from surgeon.errors import BadInput
from surgeon.live import processor

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "mistral": dict(sliding_window=16),
    "gemma2": {},
    "gemma3_text": {},
    "olmo2": {},
    "phi3": {},
    "glm4": {},
    "qwen3_moe": {},
    "mixtral": {},
    "qwen3_vl": {},
}
STOP = frozenset({2, 5})


@pytest.fixture(scope="module")
def family_model(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Callable[[str], Any]:
    from surgeon.checkpoint import Checkpoint

    made: dict[str, Any] = {}

    def model(family: str) -> Any:
        if family not in made:
            path = tmp_path_factory.mktemp("family") / family
            make_checkpoint(path, family, dtype="float32", **FAMILIES[family])
            made[family] = Checkpoint.open(path).model()
            # Tried here, not under the hooks of a test.
            assert why_alone(made[family]) is None
            fitting.row_block(Slots(made[family]))
        return made[family]

    return model


@pytest.fixture(scope="module")
def model(family_model: Callable[[str], Any]) -> Any:
    return family_model("qwen3")


def prompts(n: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(6, 128, rng.integers(1, longest + 1)).tolist() for _ in range(n)]


def requests(n: int, longest: int = 40, seed: int = 0) -> list[Request]:
    return [
        Request(ids, stream_key(seed, str(i), 0)) for i, ids in enumerate(prompts(n, longest, seed))
    ]


def run(model: Any, wanted: list[Request] | dict[int, Request], **settings: Any) -> list[Answer]:
    settings = dict(stop=STOP, max_tokens=40) | settings
    return sorted(decode(model, wanted, **settings), key=lambda answer: answer.index)


def greedy_reference(model: Any, ids: list[int], max_tokens: int) -> list[int]:
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(STOP), pad_token_id=0
    )
    tensor = torch.tensor([ids])
    mask = torch.ones_like(tensor)
    out = model.generate(input_ids=tensor, attention_mask=mask, generation_config=config)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_those_of_generate(family: str, family_model: Callable[[str], Any]):
    model = family_model(family)
    wanted = requests(6)
    answers = run(model, wanted, temperature=0, max_tokens=24, batch=4)
    assert [answer.index for answer in answers] == list(range(6))
    for request, answer in zip(wanted, answers, strict=True):
        assert answer.token_ids == greedy_reference(model, list(request.prompt), 24)
        ended = answer.token_ids[-1] in STOP
        assert answer.finish_reason == ("stop" if ended else "length")
        assert ended or len(answer.token_ids) == 24


def states_of(model: Any, wanted: list[Request], batch: int) -> tuple[list[Answer], list[Any]]:
    """The answers, and the last hidden states (rows, D) of every step."""
    seen: list[Any] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].float().numpy().copy())
    )
    try:
        return run(model, wanted, batch=batch, max_tokens=20), seen
    finally:
        hook.remove()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("qwen3_moe", "mixtral")])
def test_an_answers_bits_do_not_depend_on_its_neighbours(
    family: str, family_model: Callable[[str], Any]
):
    """Experts are left out: how many tokens share one depends on the neighbours."""
    model, wanted = family_model(family), requests(30, longest=420)
    (alone,), steps = states_of(model, wanted[3:4], batch=17)
    own = {step[0].tobytes() for step in steps}
    assert len(own) == len(alone.token_ids) > 1
    for order, batch in ((wanted, 17), (wanted[:20][::-1], 64)):
        answers, steps = states_of(model, order, batch)
        found = answers[order.index(wanted[3])]
        assert found.token_ids == alone.token_ids
        assert own <= {row.tobytes() for step in steps for row in step}


def test_answers_do_not_depend_on_batch_order_or_on_what_is_left_to_do(model: Any):
    wanted = requests(30)
    whole = run(model, wanted, batch=16)
    for part, batch in ((wanted[::-1], 30), (wanted[7:12], 0), (wanted, 19)):
        for answer in run(model, part, batch=batch):
            twin = whole[wanted.index(part[answer.index])]
            assert answer.token_ids == twin.token_ids
            assert answer.finish_reason == twin.finish_reason


def test_requests_may_have_numbers_of_their_own(model: Any):
    wanted = requests(3)
    whole = run(model, wanted)
    found = run(model, {7: wanted[2], 1: wanted[0]})
    assert found == [whole[0]._replace(index=1), whole[2]._replace(index=7)]


def test_an_answer_is_cut_where_it_is_told_to_and_the_others_go_on(model: Any):
    whole = {answer.index: answer.token_ids for answer in run(model, requests(5), batch=2)}
    assert all(len(ids) > 3 for ids in whole.values())

    def until(index: int, token_ids: Sequence[int]) -> bool:
        assert list(token_ids) == whole[index][: len(token_ids)]
        return index in (1, 3) and len(token_ids) == 3

    cut = {answer.index: answer for answer in run(model, requests(5), batch=2, until=until)}
    for index, ids in whole.items():
        assert cut[index].token_ids == (ids[:3] if index in (1, 3) else ids)
    assert {cut[1].finish_reason, cut[3].finish_reason} == {"length"}


def test_the_seed_and_the_name_of_a_response_choose_its_stream():
    keys = {stream_key(s, p, k) for s in (0, 1) for p in ("1", "11") for k in (0, 1, 11)}
    assert len(keys) == 12
    key = stream_key(0, "1", 1)
    first, second = uniforms(key, 0), uniforms(key, 1)
    assert (uniforms(key, 0) == first).all()
    assert ((first >= 0) & (first < 1)).all()
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(512) >> np.uint64(11)
    assert (np.concatenate([first, second]) == raw / 2.0**53).all()


def test_long_prompts_are_read_in_chunks(model: Any, monkeypatch: pytest.MonkeyPatch):
    wanted = requests(12, longest=300)
    whole = run(model, wanted, batch=16)
    monkeypatch.setattr("surgeon.decoding.slots.PREFILL_TOKENS", 64)
    monkeypatch.setattr("surgeon.decoding.slots.PREFILL_CHUNK", 64)
    assert run(model, wanted, batch=16) == whole
    for request, answer in zip(wanted[:3], run(model, wanted[:3], temperature=0), strict=True):
        assert answer.token_ids == greedy_reference(model, list(request.prompt), 40)


def test_rows_given_up_for_memory_come_back_with_the_same_answer(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    wanted = requests(24)
    whole = run(model, wanted, max_tokens=150, stop=frozenset(), batch=32)
    # Room for 32 rows at first, but not when the longest answers need 16 positions more.
    room = 31 * 192 * cache_bytes_per_token(model)
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: room)
    monkeypatch.setattr("surgeon.decoding.batch.OUTLOOK", 8)
    shed: list[int] = []
    keep = Decoder._shed
    monkeypatch.setattr(Decoder, "_shed", lambda loop, n: (shed.append(n), keep(loop, n)))
    assert run(model, wanted, max_tokens=150, stop=frozenset()) == whole
    assert shed == [16]


def test_rows_are_refilled_and_the_batch_shrinks(model: Any):
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    stop = frozenset(range(0, 128, 20))
    try:
        answers = run(model, requests(120), stop=stop, max_tokens=200, batch=32)
    finally:
        hook.remove()
    tokens = sum(len(answer.token_ids) for answer in answers)
    assert max(seen) == 32
    assert min(seen) <= 16
    # Every step of a full batch does useful work in nearly all of its rows.
    assert tokens > 0.6 * sum(seen)
    assert tokens <= sum(seen)


def test_a_stop_token_budget_or_the_context_ends_an_answer(make_checkpoint: Any, tmp_path: Path):
    from surgeon.checkpoint import Checkpoint

    path = make_checkpoint(tmp_path / "m", dtype="float32", max_position_embeddings=32)
    model = Checkpoint.open(path).model()
    assert context_limit(model) == 32
    wanted = requests(6, longest=30)
    for answer in run(model, wanted, stop=frozenset()):
        assert len(answer.token_ids) == 32 - len(wanted[answer.index].prompt)
        assert answer.finish_reason == "length"
    (one,) = run(model, wanted[:1], stop=frozenset(), max_tokens=1)
    assert len(one.token_ids) == 1
    (every,) = run(model, wanted[:1], stop=frozenset(range(128)))
    assert (len(every.token_ids), every.finish_reason) == (1, "stop")
    assert run(model, []) == []
    with pytest.raises(BadInput, match="a prompt of 32 tokens"):
        run(model, [Request([7] * 32, b"")])
    with pytest.raises(BadInput, match="without tokens"):
        run(model, [Request([], b"")])


def test_rescaled_rotary_embeddings_are_used_up_to_their_original_length(make_checkpoint: Any):
    from transformers import Phi3Config, Phi3ForCausalLM

    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4)
    rope |= dict(long_factor=[2.0] * 4, original_max_position_embeddings=64)
    config = Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=256, rope_parameters=rope, pad_token_id=0,
        original_max_position_embeddings=64,
    )  # fmt: skip
    assert context_limit(Phi3ForCausalLM(config)) == 64


def test_attention_that_takes_no_mask_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(BadInput, match="attn_implementation='sdpa'"):
        run(model, requests(1))


def test_the_batch_fits_the_memory(model: Any, monkeypatch: pytest.MonkeyPatch):
    assert cache_bytes_per_token(model) == 2 * 3 * 2 * 8 * 4
    assert 1 << 20 < available_bytes(torch.device("cpu")) < 1 << 50
    wanted = [Request([7] * 64, b"")] * 100
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: 384 * 128 * 21)
    assert plan_rows(model, wanted, 64, 0) == 16
    assert plan_rows(model, wanted, 1, 0) == 128 * 21 // 80 // 16 * 16
    assert plan_rows(model, wanted[:3], 1, 0) == 16
    assert plan_rows(model, wanted, 32768, 0) == 1
    assert plan_rows(model, wanted, 32768, 50) == 48
    assert plan_rows(model, wanted, 32768, 7) == 7
    assert plan_rows(model, wanted[:20], 32768, 50) == 32
    monkeypatch.setattr("surgeon.decoding.batch.memory_for_cache", lambda _: 0)
    assert plan_rows(model, wanted, 64, 0) == 1


# --- what prompts share ---------------------------------------------------------------------------


def read_tokens(model: Any, wanted: list[Request], **settings: Any) -> tuple[list[Answer], int]:
    """The answers, and how many tokens were read in passes of several."""
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: read.append(args[0].numel() if args[0].shape[1] > 1 else 0)
    )
    try:
        return run(model, wanted, max_tokens=12, **settings), sum(read)
    finally:
        hook.remove()


def test_the_samples_of_a_prompt_are_read_once(model: Any, monkeypatch: pytest.MonkeyPatch):
    """Also those seated later, and a beginning of whole chunks that other prompts share."""
    rng = np.random.default_rng(3)
    shared = rng.integers(6, 128, 300).tolist()
    prompts = [shared, shared[:200], [*shared[:260], 7, 8], shared[:200], [9], shared[:20], [9]]
    wanted = [
        Request(prompt, stream_key(0, str(p), k), max_tokens=3 + (p + 5 * k) % 11)
        for k in range(4)
        for p, prompt in enumerate(prompts)
    ]
    shares, read_now = read_tokens(model, wanted, batch=16, stop=frozenset())
    with monkeypatch.context() as patch:
        patch.setattr("surgeon.decoding.slots._marks", lambda *_: ())
        each, read_each = read_tokens(model, wanted, batch=16, stop=frozenset())
    assert shares == each
    # 384 tokens in whole chunks, a short row beside their first one, and the ends of two others.
    assert read_now <= 384 + 128 + 2 * 128 + 128 < read_each / 4
    twice = [*wanted[:7], *wanted[:7]]
    some, _ = read_tokens(model, twice, batch=2, stop=frozenset())
    assert [a.token_ids for a in some[:7]] == [a.token_ids for a in some[7:]]


def test_a_row_that_was_free_holds_what_was_read_into_it(model: Any):
    """A chat's next turn begins as the last one did: only what is new is read."""
    rng = np.random.default_rng(4)
    turn = rng.integers(6, 128, 270).tolist()
    following = [*turn, *rng.integers(6, 128, 90).tolist()]
    wanted = [Request(ids, stream_key(0, str(i), 0)) for i, ids in enumerate([turn, following])]
    expected = run(model, wanted, max_tokens=12, stop=frozenset())
    decoder = Decoder(model, stop=frozenset(), rows=16, max_tokens=12)
    read: list[int] = []
    decoder.add(9, Request([7] * 400, b"s" * 16, max_tokens=30))  # keeps the batch going
    for index, request in enumerate(wanted):
        found = []
        hook = model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: read.append(args[0].numel() if args[0].shape[1] > 1 else 0)
        )
        decoder.add(index, request)
        while len(found) < 12:
            found += [token.token_id for token in decoder.step() if token.index == index]
        hook.remove()
        assert found == expected[index].token_ids
    # Of the one that goes on and the first turn together, then of the first; at last what is new.
    assert sum(read) == 3 * 2 * 128 + 128 + 112


@pytest.mark.parametrize("lengths", [[1, 60, 400, 900], [900, 3, 7, 130], [800, 790, 900, 770]])
def test_rows_attend_to_their_own_keys_whoever_is_longer(lengths: list[int]):
    """With a window of 500 keys, so that long rows see nothing of the first span."""
    torch.manual_seed(0)
    B, K, D = len(lengths), 912, 8
    query, key, value = torch.randn(B, 6, 1, D), torch.randn(B, 3, K, D), torch.randn(B, 3, K, D)
    at_K, length_B1 = torch.arange(K), torch.tensor(lengths)[:, None]
    is_open = (at_K < length_B1) & (at_K >= length_B1 - 500)
    mask = torch.zeros(B, 1, 1, K).masked_fill_(~is_open[:, None, None], -torch.inf)
    found, _ = attention.attend(torch.nn.Identity(), query, key, value, mask, scaling=0.5)
    score = (query.view(B, 3, 2, D) @ key.transpose(2, 3)) * 0.5 + mask
    expected = (score.softmax(-1) @ value).reshape(B, 1, 6, D)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for b in range(B):
        one = slice(b, b + 1)
        alone, _ = attention.attend(
            torch.nn.Identity(), query[one], key[one], value[one], mask[one].clone(), scaling=0.5
        )
        assert torch.equal(alone, found[one])


# --- choosing a token -----------------------------------------------------------------------------


def literal_choice(logits: np.ndarray, u: float, temperature: float, top_p: float, top_k: int):
    """The definition, word by word, with ties broken by the smaller id."""
    scaled = logits.astype(np.float32) / np.float32(temperature)
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    mass = np.exp(scaled.astype(np.float64) - scaled.max())
    order = order[: top_k or None]
    total = sum(mass[i] for i in order)
    kept, reached = [], 0.0
    for i in order:
        if reached >= top_p * total and kept:
            break
        kept.append(i)
        reached += mass[i]
    point, reached = u * reached, 0.0
    for i in kept:
        reached += mass[i]
        if point < reached:
            return i, min(abs(point - reached), abs(point - reached + mass[i])) / total
    return kept[-1], 0.0


@given(
    st.integers(0, 2**32),
    st.sampled_from([5, 64, 300, 2049, 5000]),
    st.sampled_from([1.0, 0.7, 0.2]),
    st.sampled_from([1.0, 0.9, 0.5, 1e-6]),
    st.sampled_from([0, 1, 3, 64, 200, 10_000]),
    st.sampled_from(["spread", "peaked", "ties"]),
)
def test_choose_follows_the_definition(
    seed: int, V: int, temperature: float, top_p: float, top_k: int, shape: str
):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, {"spread": 0.1, "peaked": 4, "ties": 1}[shape], (4, V))
    if shape == "ties":
        logits = logits.round(0)
    u = rng.random(4)
    found = choose(
        torch.tensor(logits, dtype=torch.float32),
        torch.tensor(u),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )
    for row in range(4):
        expected, margin = literal_choice(logits[row], u[row], temperature, top_p, top_k)
        # The nucleus may end one token earlier or later where its mass meets top_p to rounding.
        if margin > 1e-3:
            assert found[row] == expected


def test_temperature_zero_takes_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0]])
    u = torch.tensor([0.99], dtype=torch.float64)
    for temperature in (0, 5e-324, 1e-300, 9e-6):
        assert choose(logits, u, temperature=temperature, top_p=0.9, top_k=0).tolist() == [1]


def test_frequencies_follow_the_probabilities():
    n = 20_000
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0]).expand(n, 4)
    u = torch.from_numpy(np.random.default_rng(0).random(n))
    counts = choose(logits, u, temperature=0.5, top_p=1.0, top_k=0).bincount(minlength=4)
    expected = torch.softmax(logits[0] / 0.5, 0)
    assert torch.allclose(counts / n, expected, atol=0.01)
    counts = choose(logits, u, temperature=1.0, top_p=0.8, top_k=0).bincount(minlength=4)
    kept = torch.tensor([1.0, 0.0, 2.0, -1.0]).softmax(0) * torch.tensor([1, 0, 1, 0])
    assert torch.allclose(counts / n, kept / kept.sum(), atol=0.01)


def test_logits_that_are_not_finite_are_refused():
    u = torch.tensor([0.5], dtype=torch.float64)
    for temperature in (0, 1.0):
        with pytest.raises(BadInput, match="not finite"):
            choose(torch.tensor([[0.0, torch.nan]]), u, temperature=temperature, top_p=1, top_k=0)


def test_small_models_run_on_one_thread(model: Any):
    seen: list[int] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in decode(model, requests(3), stop=STOP, max_tokens=5):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        hook.remove()
    assert set(seen) == {1}


@pytest.mark.parametrize(("several", "chosen"), [(0.4, 2), (2.4, 1), (9.0, 1)])
def test_the_faster_number_of_threads_is_measured(
    model: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any, several: float, chosen: int
):
    """By a clock that a pass moves on by one second on one thread, by `several` on two."""
    now = [0.0]

    def passing(*_: Any) -> None:
        now[0] += 1.0 if torch.get_num_threads() == 1 else several

    monkeypatch.setattr(processor, "SMALL_MODEL", 0)
    monkeypatch.setattr(processor, "_THREADS", {})
    monkeypatch.setattr(processor.time, "perf_counter", lambda: now[0])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processor._say.cache_clear()
    hook = model.register_forward_pre_hook(passing)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with processor.fitting_threads(model):
            assert torch.get_num_threads() == chosen
        passes = now[0]
        with processor.fitting_threads(model):
            assert torch.get_num_threads() == chosen and now[0] == passes
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with processor.fitting_threads(model):
            assert torch.get_num_threads() == 2 and now[0] == passes
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
        hook.remove()
    told = capfd.readouterr().err
    assert ("one is used" in told) == (chosen == 1)
    assert chosen == 2 or f"1000 ms on one thread and {1000 * several:.0f} ms on 2" in told


def test_float16_on_a_cpu_is_said_once(model: Any, capfd: Any):
    processor._say.cache_clear()
    processor.say_slow_type(model)
    assert not capfd.readouterr().err
    half = torch.nn.Linear(1, 1).half()
    processor.say_slow_type(half)
    processor.say_slow_type(half)
    assert capfd.readouterr().err.count("Float16 is slow on a CPU: bfloat16 was 6.6 times") == 1


# --- rows and weights -----------------------------------------------------------------------------


def test_a_batch_has_so_many_rows_that_their_number_changes_no_bit(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    """It is tried with the model: here products of fewer than 8 rows come out otherwise."""
    passes, blocks = Slots(model), fitting._BLOCKS
    assert fitting.row_block(passes) in (1, 2, 4, 8, 16)
    monkeypatch.setattr(fitting, "_BLOCKS", {})
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0] * (1 + 1e-6 * (len(args[0]) < 8)),)
    )
    try:
        assert fitting.row_block(passes) in (8, 16)
    finally:
        hook.remove()
    assert set(fitting._BLOCKS) <= set(blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same_answers_and_are_gone_after_them(
    make_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    from surgeon.checkpoint import Checkpoint

    path = make_checkpoint(tmp_path / "m", dtype="float32")
    model: Any = Checkpoint.open(path).model().to(dtype)
    wanted, settings = requests(9, longest=150), dict(stop=frozenset(), max_tokens=20)
    plain = run(model, wanted, **settings)
    monkeypatch.setattr("surgeon.decoding.packing.SMALL_MODEL", 0)
    made: list[int] = []
    keep = Packed.__init__
    monkeypatch.setattr(
        Packed, "__init__", lambda own, linears: (made.append(len(linears)), keep(own, linears))[1]
    )
    packed = run(model, wanted, **settings)
    assert made and set(made) == {3 * 7 + 1}
    same = sum(a.token_ids == b.token_ids for a, b in zip(plain, packed, strict=True))
    assert same >= 8
    # The answer of one doesn't depend on the others, in float32 to the bit.
    if dtype == torch.float32:
        (alone,) = run(model, wanted[4:5], **settings)
        assert alone.token_ids == packed[4].token_ids
    assert not any("forward" in vars(module) for module in model.modules())
    # Other weights are packed anew.
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-3)
    changed = run(model, wanted, **settings)
    assert changed != packed
    monkeypatch.undo()
    again = run(model, wanted, **settings)
    assert sum(a.token_ids == b.token_ids for a, b in zip(changed, again, strict=True)) >= 8
