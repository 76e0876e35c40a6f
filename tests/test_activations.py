"""Recording against a literal pass over the model, and the fast selection against plain sorting."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from surgeon.activations import (
    Activations,
    Recording,
    load,
    read_nex_cache,
    record,
    save,
    write_nex_cache,
)
from surgeon.activations.rows import RowSums
from surgeon.activations.selection import Held, Top, _select, largest
from surgeon.activations.statistics import token_statistics
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.live.architecture import Head
from surgeon.live.blocks import FfnSite, blocks, d_ff
from surgeon.live.passes import in_windows
from surgeon.traces import Trace

FAMILIES = [
    "qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "phi3", "glm4",
    "qwen3_moe", "mixtral", "qwen3_vl",
]  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {"mistral": dict(sliding_window=16)}


@pytest.fixture(scope="module")
def family(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Callable[..., tuple[Checkpoint, Any]]:
    made: dict[Any, tuple[Checkpoint, Any]] = {}

    def model(name: str, dtype: str = "float32") -> tuple[Checkpoint, Any]:
        if (name, dtype) not in made:
            path = tmp_path_factory.mktemp("family") / name
            make_checkpoint(path, name, dtype=dtype, **SMALL.get(name, {}))
            checkpoint = Checkpoint.open(path)
            made[name, dtype] = checkpoint, checkpoint.model()
        return made[name, dtype]

    return model


def some_traces(n: int, longest: int = 60, seed: int = 0) -> list[Trace]:
    rng = np.random.default_rng(seed)

    def ids(most: int) -> list[int]:
        return rng.integers(3, 128, rng.integers(1, most + 1)).tolist()

    return [Trace(str(i), 0, ids(20), ids(longest), "", "stop") for i in range(n)]


# --- a literal recording --------------------------------------------------------------------------


def literal_activations(model: Any, ids: list[int]) -> list[dict[int, float]]:
    """Per position, every unit's positive h by key: the FFN is computed again, unit by unit, from
    the input of each block."""
    width, layers = d_ff(model), model.get_decoder().layers
    found: list[dict[int, float]] = [{} for _ in ids]
    inputs: dict[int, torch.Tensor] = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, a, n=n: inputs.__setitem__(n, a[0][0]))
        for n, layer in enumerate(layers)
    ]
    with torch.inference_mode():
        model.get_decoder()(input_ids=torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        for n, layer in enumerate(layers):
            x, mlp = inputs[n], layer.mlp
            act: Any = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
            if hasattr(mlp, "experts"):
                router = mlp.gate
                _, _, chosen = router(x)
                for t, experts in enumerate(chosen.tolist()):
                    for e in experts:
                        gate, up = (mlp.experts.gate_up_proj[e] @ x[t]).chunk(2)
                        units = (mlp.experts.act_fn(gate) * up).tolist()
                        first = n * width + e * len(units)
                        found[t] |= {first + j: h for j, h in enumerate(units) if h > 0}
                continue
            if hasattr(mlp, "gate_up_proj"):
                gate, up = mlp.gate_up_proj(x).chunk(2, -1)
            else:
                gate, up = mlp.gate_proj(x), mlp.up_proj(x)
            for t, row in enumerate((act(gate) * up).tolist()):
                found[t] |= {n * width + j: h for j, h in enumerate(row) if h > 0}
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recording_holds_what_the_model_computes(
    name: str, family: Callable[..., tuple[Checkpoint, Any]]
):
    checkpoint, model = family(name)
    assert d_ff(model) == checkpoint.d_ff
    traces, K, row_tokens = some_traces(4), 20, 8
    recordings = list(record(model, traces, row_tokens=row_tokens, top_k=K))
    for trace, recording in zip(traces, recordings, strict=True):
        start = len(trace.prompt_token_ids)
        ids = [*trace.prompt_token_ids, *trace.token_ids]
        activations, total, kept = recording.activations, 0.0, 0.0
        positive_N = np.zeros(checkpoint.n_layers * checkpoint.d_ff)
        rows: list[dict[int, float]] = []
        for t, units in enumerate(literal_activations(model, ids)[start:]):
            top = sorted(units.items(), key=lambda item: (-item[1], item[0]))[:K]
            total, kept = total + sum(units.values()), kept + sum(h for _, h in top)
            for key, h in units.items():
                positive_N[key] += h
            if t % row_tokens == 0:
                rows.append({})
            for key, h in top:
                rows[-1][key] = rows[-1].get(key, 0.0) + h
        T = len(trace.token_ids)
        assert activations.tokens_R.tolist() == [8] * (T // 8) + [T % 8] * (T % 8 > 0)
        assert len(activations.start_R1) == len(rows) + 1
        for r, expected in enumerate(rows):
            neuron, mass = activations.row(r)
            assert neuron.tolist() == sorted(expected)
            np.testing.assert_allclose(mass, [expected[k] for k in sorted(expected)], rtol=2e-4)
        assert recording.kept_mass == pytest.approx(kept / total, rel=1e-4)
        np.testing.assert_allclose(recording.positive_N, positive_N, rtol=2e-4, atol=1e-6)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
        logp = logits.log_softmax(-1)
        chosen = logp.gather(1, torch.tensor(trace.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(recording.logprob_T, chosen, atol=1e-4)
        np.testing.assert_allclose(recording.entropy_T, -(logp.exp() * logp).sum(1), atol=1e-4)
    dtypes = {n: a.dtype.name for n, a in vars(recordings[0].activations).items()}
    assert dtypes == dict(neuron_E="int64", mass_E="float32", start_R1="int64", tokens_R="int32")


def equal(a: Recording, b: Recording) -> bool:
    pairs = [(x, vars(b.activations)[n]) for n, x in vars(a.activations).items()]
    pairs += [(a.logprob_T, b.logprob_T), (a.entropy_T, b.entropy_T)]
    return all(np.array_equal(x, y) for x, y in pairs) and (abs(a.kept_mass - b.kept_mass) < 1e-6)


def test_windows_are_those_of_all_traces_whichever_are_wanted(family):
    """Kernels round sums over other rows otherwise: what a run that goes on lacks is read as it
    would have been."""
    _, model = family("qwen3", "float32")
    traces, read = some_traces(9), []

    def numbers(window: list[Trace]) -> list[int]:
        read.append([traces.index(trace) for trace in window])
        return read[-1]

    assert list(in_windows(model, traces, 16, numbers)) == list(range(9))
    windows = read.copy()
    assert len(windows) > 2 and len(windows[1]) > 1
    read.clear()
    first, second = windows[0][-1], windows[1][-1]
    assert list(in_windows(model, traces, 16, numbers, {first, second})) == [first, second]
    assert read == windows[:2]
    whole = list(record(model, traces, row_tokens=8, top_k=10))
    some = record(model, traces, row_tokens=8, top_k=10, wanted={2, 7})
    assert all(equal(a, b) for a, b in zip((whole[2], whole[7]), some, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3_text", "phi3", "mistral"])
def test_a_recording_does_not_depend_on_batch_order_or_chunks(
    name: str, dtype: str, family: Callable[..., tuple[Checkpoint, Any]]
):
    _, model = family(name, dtype)
    traces = some_traces(9)
    settings: Any = dict(row_tokens=8, top_k=10)
    whole = list(record(model, traces, **settings))
    alone = [next(iter(record(model, [trace], **settings))) for trace in traces]
    assert all(map(equal, whole, alone))
    assert all(map(equal, whole, reversed(list(record(model, traces[::-1], **settings)))))
    chunks = list(record(model, traces, **settings, chunk_tokens=16))
    if dtype == "float32":
        assert all(map(equal, whole, record(model, traces, **settings, batch_tokens=100)))
        assert all(
            np.array_equal(a.activations.neuron_E, b.activations.neuron_E)
            for a, b in zip(whole, chunks, strict=True)
        )
    for a, b in zip(whole, chunks, strict=True):
        np.testing.assert_allclose(a.logprob_T, b.logprob_T, atol=1e-4 if "32" in dtype else 0.2)


def test_a_long_prompt_is_read_once_for_its_samples(
    family: Callable[..., tuple[Checkpoint, Any]], monkeypatch: pytest.MonkeyPatch
):
    """And a sample's bits don't depend on whether there are others."""
    _, model = family("qwen3")
    long, short = some_traces(12, seed=5), some_traces(4, seed=6)
    prompt = list(range(3, 43))
    samples = [replace(t, prompt_token_ids=prompt) for t in long if len(t.token_ids) > 8]
    traces = [*samples[:2], *short, *samples[2:]]
    plain = list(record(model, traces, row_tokens=8, top_k=10))
    for name, value in dict(SMALL_MODEL=0, SHARED_PROMPT=20, SHARED_RESPONSE=8, QUERIES=5).items():
        monkeypatch.setattr(f"surgeon.live.passes.{name}", value)
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: read.append(args[0].numel())
    )
    found = list(record(model, traces, row_tokens=8, top_k=10, chunk_tokens=32))
    hook.remove()
    # The prompt but for its last token, that with each response, and the others, padded.
    assert read[:2] == [32, 7]
    assert sum(read) <= 39 + sum(1 + len(t.token_ids) for t in samples) + 4 * 80
    for a, b in zip(plain, found, strict=True):
        assert a.activations.tokens_R.tolist() == b.activations.tokens_R.tolist()
        np.testing.assert_allclose(a.logprob_T, b.logprob_T, atol=1e-4)
        np.testing.assert_allclose(a.positive_N, b.positive_N, rtol=2e-4, atol=1e-5)
    alone = [
        next(iter(record(model, [trace], row_tokens=8, top_k=10, chunk_tokens=32)))
        for trace in traces
    ]
    assert all(map(equal, found, alone))


def test_holding_fewer_layers_at_a_time_changes_nothing(
    family: Callable[..., tuple[Checkpoint, Any]], monkeypatch: pytest.MonkeyPatch
):
    for name in ("qwen3", "qwen3_moe"):
        _, model = family(name)
        traces = some_traces(3)
        whole = list(record(model, traces, row_tokens=4, top_k=15))
        with monkeypatch.context() as patch:
            patch.setattr("surgeon.activations.HELD_BYTES", 1)
            assert all(map(equal, whole, record(model, traces, row_tokens=4, top_k=15)))


def test_everything_positive_is_kept_when_top_k_allows(
    family: Callable[..., tuple[Checkpoint, Any]],
):
    _, model = family("qwen3")
    for recording in record(model, some_traces(2), row_tokens=5, top_k=10_000):
        assert recording.kept_mass == pytest.approx(1, abs=1e-6)
        assert (recording.activations.mass_E > 0).all()


def test_experts_computed_one_by_one_are_switched_for_the_pass(
    family: Callable[..., tuple[Checkpoint, Any]],
):
    _, model = family("qwen3_moe")
    traces = some_traces(2)
    expected = list(record(model, traces, top_k=10))
    for kind in ("eager", "batched_mm"):
        model.set_experts_implementation(kind)
        try:
            found = list(record(model, traces, top_k=10))
            assert model.config._experts_implementation == kind
        finally:
            model.set_experts_implementation("grouped_mm")
        for a, b in zip(expected, found, strict=True):
            assert a.activations.neuron_E.tolist() == b.activations.neuron_E.tolist()
    assert not any("_apply_gate" in module.__dict__ for module in model.modules())


def test_a_layer_that_does_not_report_is_an_error(
    family: Callable[..., tuple[Checkpoint, Any]], monkeypatch: pytest.MonkeyPatch
):
    _, model = family("qwen3")
    mlp = model.get_decoder().layers[1].mlp
    monkeypatch.setattr(mlp, "forward", lambda x: x)
    with pytest.raises(RuntimeError, match="2 of 3 FFN sites reported"):
        next(iter(record(model, some_traces(1))))
    assert not mlp.down_proj._forward_pre_hooks


def test_traces_that_the_model_cannot_read_are_named(
    family: Callable[..., tuple[Checkpoint, Any]],
):
    _, model = family("qwen3")
    good = some_traces(1)[0]
    for wrong, message in (
        (Trace("a", 2, [5], [128], "", "stop"), r"sample 2 of prompt 'a' has the token 128"),
        (
            Trace("a", 0, [5], [7] * 2048, "", "stop"),
            "has 2049 tokens; the model's context is 2048",
        ),
        (Trace("a", 0, [5], [], "", "stop"), "no response tokens"),
    ):
        with pytest.raises(BadInput, match=message):
            next(iter(record(model, [good, wrong])))
    with pytest.raises(BadInput, match="found row_tokens 0"):
        next(iter(record(model, [good], row_tokens=0)))


def test_an_unsupported_architecture_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(BadInput, match="architecture 'gpt2'"):
        blocks(model)


def test_weights_that_are_not_finite_are_refused(make_checkpoint: Any, tmp_path: Path):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight[3] = torch.nan  # pyright: ignore
    with pytest.raises(BadInput, match="not finite"):
        next(iter(record(model, some_traces(1))))


# --- selection ------------------------------------------------------------------------------------


def plain_top(h_NW: torch.Tensor, key_NW: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """Sort everything by value, then by key; keep the positive among the first k."""
    found = []
    for values, keys in zip(h_NW.float().tolist(), key_NW.tolist(), strict=True):
        pairs = sorted(zip(keys, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:k]
        found.append(sorted((key, value) for key, value in pairs if value > 0))
    return found


def as_lists(top: Top) -> list[list[tuple[int, float]]]:
    return [
        [(int(k), float(m)) for k, m in zip(keys, masses, strict=True) if m > 0]
        for keys, masses in zip(top.key_NK, top.mass_NK, strict=True)
    ]


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    N=st.integers(1, 7),
    F=st.sampled_from([1, 7, 50, 3000]),
    k=st.sampled_from([1, 5, 60, 200]),
    kind=st.sampled_from(["spread", "ties", "few", "none", "constant"]),
    cut=st.integers(0, 3),
)
def test_selection_equals_a_plain_sort(
    seed: int, dtype: torch.dtype, N: int, F: int, k: int, kind: str, cut: int
):
    generator = torch.Generator().manual_seed(seed)
    d_ff, sites = F + 3, [FfnSite(layer, torch.nn.Identity(), 0, 0, F) for layer in range(3)]
    hs = []
    for _ in sites:
        h = torch.randn(N + 2, F, generator=generator)
        if kind == "ties":
            h = (h * 2).round()
        elif kind == "few":
            h = torch.where(torch.rand(h.shape, generator=generator) < 0.01, h, -1)
        elif kind == "none":
            h = -h.abs()
        elif kind == "constant":
            h = torch.ones_like(h)
        hs.append(h.to(dtype))
    held = [Held(site, h, None) for site, h in zip(sites, hs, strict=True)]
    rows = slice(1, N + 1)
    before = largest(held[:cut], rows, k, d_ff) if cut else None
    top = largest(held[cut:], rows, k, d_ff, before) if cut < 3 else before
    assert top is not None
    all_NW = torch.cat(hs, 1)[rows]
    key_W = np.concatenate([np.arange(F) + layer * d_ff for layer in range(3)])
    assert as_lists(top) == plain_top(all_NW, np.tile(key_W, (N, 1)), k)
    total = all_NW.float().clamp(min=0).sum(1, dtype=torch.float64)
    # Sums are rounded to the dtype of the activations: an ulp of bfloat16 is 2^-8.
    rtol = 1e-5 if dtype is torch.float32 else 2**-8
    np.testing.assert_allclose(top.total_N, total, rtol=rtol, atol=1e-6)


@given(
    seed=st.integers(0, 2**32), k=st.sampled_from([1, 5, 30, 99, 100]), ties=st.booleans()
)  # fmt: skip
def test_selection_on_other_devices_equals_that_on_the_cpu(seed: int, k: int, ties: bool):
    h = torch.randn(6, 100, generator=torch.Generator().manual_seed(seed))
    h = (h * 3).round() if ties else h
    flat, count, mass, total = _select(h.clone(), k, 0)
    site = FfnSite(0, torch.nn.Identity(), 0, 0, 100)
    top = largest([Held(site, h, None)], slice(0, 6), k, 100)
    expected = [(n * 100 + key, m) for n, row in enumerate(as_lists(top)) for key, m in row]
    assert list(zip(flat.tolist(), mass.tolist(), strict=True)) == expected
    assert count.tolist() == [len(row) for row in as_lists(top)]
    np.testing.assert_allclose(total, top.total_N, rtol=1e-6)


@given(seed=st.integers(0, 2**32), k=st.sampled_from([1, 4, 9, 40]), ties=st.booleans())
def test_selection_among_experts_numbers_units_by_expert(seed: int, k: int, ties: bool):
    """Two dense sites around one of four experts, two chosen per token, five units each."""
    rng = np.random.default_rng(seed)
    N, units, d_ff = 5, 5, 24
    dense = FfnSite(0, torch.nn.Identity(), 0, 0, 24)
    experts = FfnSite(1, torch.nn.Identity(), 4, 0, units)
    shared = FfnSite(1, torch.nn.Identity(), 0, 4 * units, 3)
    chosen = np.sort(np.stack([rng.permutation(4)[:2] for _ in range(N)]), axis=1)
    hs = [torch.tensor(rng.normal(size=(N, w)), dtype=torch.float32) for w in (24, 10, 3)]
    hs = [(h * 2).round() if ties else h for h in hs]
    held = [
        Held(dense, hs[0], None),
        Held(experts, hs[1], torch.tensor(chosen)),
        Held(shared, hs[2], None),
    ]
    routed = (chosen[:, :, None] * units + np.arange(units)).reshape(N, -1)
    keys = np.concatenate(
        [np.tile(np.arange(24), (N, 1)), d_ff + routed, np.tile(d_ff + 20 + np.arange(3), (N, 1))],
        axis=1,
    )
    expected = plain_top(torch.cat(hs, 1), keys, k)
    assert as_lists(largest(held, slice(0, N), k, d_ff)) == expected
    before = largest(held[:1], slice(0, N), k, d_ff)
    assert as_lists(largest(held[1:], slice(0, N), k, d_ff, before)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_misleading_sample_does_not_mislead_the_selection(dtype: torch.dtype):
    """All large values lie where the sample looks, or nowhere there."""
    W, k = 32_768, 1500
    site = FfnSite(0, torch.nn.Identity(), 0, 0, W)
    for where in (0, 3):
        h = torch.rand(3, W, generator=torch.Generator().manual_seed(1))
        h[:, where::16] += 2
        top = largest([Held(site, h.to(dtype), None)], slice(0, 3), k, W)
        keys = np.tile(np.arange(W), (3, 1))
        assert as_lists(top) == plain_top(h.to(dtype), keys, k)


# --- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("V", [7, 5000])
def test_tiles_of_the_vocabulary_give_the_whole_distribution(
    V: int, cap: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("surgeon.activations.statistics.TILE_VALUES", {"cpu": 1})
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 12, generator=generator) * 3
    linear = torch.nn.Linear(12, V)
    with torch.no_grad():
        linear.weight.normal_(generator=generator)
        linear.bias.copy_(torch.arange(V) / V)
    head = Head(linear, cap)
    token = torch.randint(0, V, (300,), generator=generator)
    with torch.no_grad():
        logprob, entropy = token_statistics(head, hidden, token)
        logits = linear.double()(hidden.double())
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    logp = logits.log_softmax(-1)
    torch.testing.assert_close(
        logprob.double(), logp.gather(1, token[:, None])[:, 0], atol=2e-5, rtol=1e-5
    )
    expected = -(logp.exp() * logp).sum(1)
    torch.testing.assert_close(entropy.double(), expected, atol=2e-5, rtol=1e-5)
    assert (entropy >= 0).all()


def f32(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def i32(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


# --- files ----------------------------------------------------------------------------------------


@st.composite
def activations(draw: st.DrawFn, neurons: int = 300) -> Activations:
    rows = draw(st.lists(st.sets(st.integers(0, neurons - 1), max_size=6), max_size=5))
    neuron = np.array([k for row in rows for k in sorted(row)], np.int64)
    mass = draw(nps.arrays(np.float32, len(neuron), elements=st.floats(2**-10, 60_000, width=16)))
    start = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    tokens = draw(nps.arrays(np.int32, len(rows), elements=st.integers(1, 32)))
    return Activations(neuron, mass, start, tokens)


def same(a: Activations, b: Activations) -> bool:
    return all(
        np.array_equal(x, vars(b)[n]) and x.dtype == vars(b)[n].dtype for n, x in vars(a).items()
    )


@given(activations(), st.floats(0, 1))
def test_a_saved_recording_comes_back(
    tmp_path_factory: pytest.TempPathFactory, acts: Activations, kept: float
):
    file = tmp_path_factory.getbasetemp() / "r.safetensors"
    T = int(acts.tokens_R.sum())
    tokens = (-np.arange(T, dtype=np.float32), np.ones(T, np.float32))
    recording = Recording(acts, *tokens, kept, np.arange(7, dtype=np.float32))
    save(file, recording)
    back = load(file)
    assert same(back.activations, acts)
    assert equal(back, recording) and np.array_equal(back.positive_N, recording.positive_N)


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    (tmp_path / "a").write_bytes(b"no")
    with pytest.raises(BadInput, match="not a readable recording"):
        load(tmp_path / "a")
    with pytest.raises(BadInput, match="not a readable recording"):
        load(tmp_path / "none")
    save_file({"x": np.zeros(1)}, tmp_path / "b")
    with pytest.raises(BadInput, match="not a recording"):
        load(tmp_path / "b")


@given(st.lists(activations(neurons=300), max_size=4), st.sampled_from([100, 299, 65_536]))
def test_the_nex_cache_comes_back(
    tmp_path_factory: pytest.TempPathFactory, many: list[Activations], d_ff: int
):
    directory = tmp_path_factory.getbasetemp() / "cache"
    write_nex_cache(directory, many, d_ff=d_ff)
    back = read_nex_cache(directory, d_ff=d_ff)
    assert len(back) == len(many)
    assert all(map(same, back, many))


def test_the_nex_cache_has_the_published_layout(tmp_path: Path):
    """Two responses; units of 100 per layer: key 205 is unit 5 of layer 2."""
    a = Activations(np.array([5, 205, 5]), f32([1, 2, 4]), np.array([0, 2, 3]), i32([32, 7]))
    b = Activations(np.array([100]), f32([1e9]), np.array([0, 1]), i32([3]))
    write_nex_cache(tmp_path, [a, b], d_ff=100)

    def numbers(name: str) -> list:
        file = tmp_path / name
        return np.fromfile(file, np.dtype(file.suffix[1:]).newbyteorder("<")).tolist()

    assert numbers("rows/sample_row_ptr.int64") == [0, 2, 3]
    assert numbers("rows/row_ptr.int64") == [0, 2, 3, 4]
    assert numbers("rows/token_row_ptr.int64") == [0, 32, 39, 42]
    assert numbers("rows/keys.uint32") == [5, (2 << 16) + 5, 5, 1 << 16]
    assert numbers("rows/w_sum.float16") == [1, 2, 4, 65504]
    assert numbers("base/row_ptr.int64") == [0, 2, 3]
    assert numbers("base/keys.uint32") == [5, (2 << 16) + 5, 1 << 16]
    assert numbers("base/w_sum.float16") == [5, 2, 65504]


def test_what_the_nex_cache_cannot_hold_is_refused(tmp_path: Path):
    one = f32([1])

    def acts(key: int) -> Activations:
        return Activations(np.array([key]), one, np.array([0, 1]), i32([1]))

    with pytest.raises(BadInput, match="found 98304 FFN units per layer"):
        write_nex_cache(tmp_path, [acts(0)], d_ff=98_304)
    with pytest.raises(BadInput, match="found activations in layer 255"):
        write_nex_cache(tmp_path, [acts(255 * 100)], d_ff=100)
    write_nex_cache(tmp_path, [acts(254 * 100 + 99)], d_ff=100)
    assert read_nex_cache(tmp_path, d_ff=100)[0].neuron_E.tolist() == [25_499]
    with pytest.raises(BadInput, match="has unit 99, the model 50"):
        read_nex_cache(tmp_path, d_ff=50)
    keys = np.array([(255 << 16) | 70], np.uint32)
    keys.tofile(tmp_path / "rows" / "keys.uint32")
    (back,) = read_nex_cache(tmp_path, d_ff=50)
    assert (back.neuron_E.tolist(), back.start_R1.tolist()) == ([], [0, 0])
    np.array([0, 2]).tofile(tmp_path / "rows" / "row_ptr.int64")
    with pytest.raises(BadInput, match="row_ptr contradicts the other arrays"):
        read_nex_cache(tmp_path, d_ff=100)
    (tmp_path / "rows" / "keys.uint32").write_bytes(b"12345")
    with pytest.raises(BadInput, match="5 bytes, no whole number of uint32"):
        read_nex_cache(tmp_path, d_ff=100)
    (tmp_path / "rows" / "keys.uint32").unlink()
    with pytest.raises(BadInput, match=r"keys\.uint32 does not exist"):
        read_nex_cache(tmp_path, d_ff=100)


def test_tau_leaves_out_neurons_that_never_pass_it_in_a_row():
    """Rows of two tokens. Row 0: neuron 1 has .5 and .4, neuron 2 .2 and .9: above .5 is only 2,
    whose whole mass 1.1 stays. Row 1: 1 has .6 and stays, 3 has .5 and goes. Kept: 1.7 of 3.1."""
    sums = RowSums(2, 5, tau=0.5)
    key = np.array([[1, 2], [1, 2], [1, 3]])
    mass = np.array([[0.5, 0.2], [0.4, 0.9], [0.6, 0.5]], np.float32)
    sums.add(Top(key, mass, mass.sum(-1)))
    acts, kept = sums.finish()
    assert acts.neuron_E.tolist() == [2, 1] and acts.start_R1.tolist() == [0, 1, 2]
    assert acts.mass_E == pytest.approx([1.1, 0.6])
    assert kept == pytest.approx(1.7 / 3.1)
