"""Layers read off live models: families that no table names, loaded and without weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIZE, write_tokenizer

from surgeon.activations import record
from surgeon.attribution import direct
from surgeon.channels import Channels, read_back, tapped
from surgeon.checkpoint import Checkpoint, d_ff_of
from surgeon.contributions import contributions
from surgeon.errors import BadInput
from surgeon.live.architecture import head_of
from surgeon.live.blocks import block, blocks, d_ff
from surgeon.live.passes import passes
from surgeon.neurons import sites
from surgeon.nopsd import contribution
from surgeon.traces import Trace
from surgeon.transplant import transplant

ROUTED = dict(num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
SHARED = dict(n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
              topk_group=1, **ROUTED)  # fmt: skip
HALF = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
LINEAR = dict(layer_types=["linear_attention", "full_attention", "linear_attention"],
              linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
              linear_value_head_dim=8)  # fmt: skip
DENSE: dict[str, dict[str, Any]] = {
    "smollm3": {},
    "olmo3": dict(sliding_window=16, **HALF),
    "cohere2": dict(sliding_window=16, **HALF),
    "granite": {},
    "exaone4": dict(sliding_window=16, **HALF),
    "ministral3": {},
    "seed_oss": {},
    "lfm2": dict(layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False),
    "qwen3_5_text": LINEAR,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=16, **HALF),
    "deepseek_v3": {**SHARED, **LATENT},
    "glm4_moe": SHARED,
    "qwen2_moe": dict(num_experts=4, shared_expert_intermediate_size=24, **ROUTED),
    "qwen3_next": dict(num_experts=4, shared_expert_intermediate_size=24, **ROUTED, **LINEAR),
}
REFUSED = {"starcoder2": "mlp.c_proj", "arcee": "mlp.down_proj", "bitnet": "mlp.down_proj",
           "gpt2": "has no layers"}  # fmt: skip
FAMILIES = DENSE | MIXTURES


def config_of(model_type: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    size = {**SIZE, **FAMILIES.get(model_type, {}), **changes}
    if model_type == "gpt2":
        size = {}
    if model_type == "deepseek_v3":
        size |= dict(num_key_value_heads=4)
    return AutoConfig.for_model(model_type, **size)


def model_of(model_type: str, seed: int = 0, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(model_type, **changes)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


@pytest.fixture(scope="module")
def live():
    """Models by family, made once."""
    made: dict[str, Any] = {}

    def of(model_type: str) -> Any:
        if model_type not in made:
            made[model_type] = model_of(model_type)
        return made[model_type]

    return of


def some_traces(n: int = 4) -> list[Trace]:
    rng = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return rng.integers(3, 128, rng.integers(1, most + 1)).tolist()

    return [Trace(str(i), 0, ids(20), ids(60), "", "stop") for i in range(n)]


def units_of(model: Any, ids: list[int]) -> dict[int, torch.Tensor]:
    """By layer: h (T, d_ff) in a plain pass, from the projections' inputs; 0 where a token's router
    leaves an expert out."""
    seen: dict[int, torch.Tensor] = {}
    undo = []
    width = d_ff(model)
    for one in blocks(model):
        seen[one.layer] = torch.zeros(len(ids), width)
        for site in one.sites:

            def dense(_: Any, args: Any, site: Any = site) -> None:
                h_TF = args[0].detach().reshape(len(ids), -1)
                seen[site.layer][:, site.first : site.first + site.n_units] = h_TF

            def routed(module: Any, args: Any, site: Any = site) -> None:
                x_TD, expert_TC = args[0].reshape(len(ids), -1), args[1].reshape(len(ids), -1)
                for t, chosen in enumerate(expert_TC.tolist()):
                    for e in chosen:
                        weight = module.gate_up_proj[e]
                        both = x_TD[t] @ (weight if module.is_transposed else weight.mT)
                        if module.has_bias:
                            both = both + module.gate_up_proj_bias[e]
                        h_F = type(module)._apply_gate(module, both[None])[0]
                        seen[site.layer][t, e * site.n_units : (e + 1) * site.n_units] = h_F

            hook = routed if site.experts else dense
            undo.append(site.module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in undo:
        handle.remove()
    return seen


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_recording_is_what_a_plain_pass_computes(model_type: str, live: Any):
    model = live(model_type)
    traces = some_traces()
    for trace, recording in zip(
        traces, record(model, traces, row_tokens=1, top_k=100_000), strict=True
    ):
        ids = [*trace.prompt_token_ids, *trace.token_ids]
        start, width = len(trace.prompt_token_ids), d_ff(model)
        expected_TN = torch.cat(list(units_of(model, ids).values()), 1)[start:].clamp(min=0)
        found_TN = torch.zeros_like(expected_TN)
        for t in range(len(trace.token_ids)):
            neuron, mass = recording.activations.row(t)
            found_TN[t, neuron] = torch.tensor(mass)
        assert found_TN.shape[1] == width * 3
        torch.testing.assert_close(found_TN, expected_TN, rtol=1e-3, atol=1e-5)
        positive_N = torch.from_numpy(recording.positive_N)
        torch.testing.assert_close(positive_N, expected_TN.sum(0), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        chosen = logits.gather(1, torch.tensor(trace.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(recording.logprob_T, chosen, atol=1e-4)


SCALED = {
    "cohere2": ("logit_scale", 2.5), "granite": ("logits_scaling", 2.5),
    "hyperclovax": ("logits_scaling", 2.5), "falcon_h1": ("lm_head_multiplier", 2.5),
    "gemma2": ("final_logit_softcapping", 1.5), "recurrent_gemma": ("logits_soft_cap", 1.5),
}  # fmt: skip


@pytest.mark.parametrize("model_type", SCALED)
def test_the_unembedding_says_what_the_model_says(model_type: str):
    """Greedy tokens wouldn't show a factor that all logits share; sampled ones follow it."""
    name, factor = SCALED[model_type]
    torch.manual_seed(0)
    changes: dict[str, Any] = {name: factor}
    model = model_of(model_type, **changes)
    ids = torch.tensor([[5, 9, 3, 77, 20]])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits
        found, part = head_of(model).logits(hidden), head_of(model).tile(hidden, slice(8, 24))
        plain = model.get_output_embeddings()(hidden)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(part, expected[..., 8:24])
    assert not torch.allclose(plain, expected, rtol=0.05)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_long_traces_are_read_as_short_ones(model_type: str, live: Any):
    """In chunks where the cache can, past the window; else in one pass."""
    model = live(model_type)
    traces = some_traces()
    whole = list(record(model, traces, row_tokens=8, top_k=40))
    parts = list(record(model, traces, row_tokens=8, top_k=40, batch_tokens=32, chunk_tokens=16))
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.logprob_T, b.logprob_T, atol=1e-4)
        np.testing.assert_allclose(
            a.activations.mass_E.sum(), b.activations.mass_E.sum(), rtol=1e-4
        )
    cached = [step.cache is not None for step in passes(model, traces, batch_tokens=16)]
    kinds = set(getattr(model.config, "layer_types", None) or [])
    assert any(cached) == (not kinds & {"linear_attention", "conv"})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_without_weights_says_the_same(model_type: str, live: Any):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config_of(model_type))
    forms = [
        [[site[2:] for site in one.sites] for one in blocks(model)]
        for model in (skeleton, live(model_type))
    ]
    assert forms[0] == forms[1]
    assert d_ff(skeleton) == max(one.n_units for one in blocks(skeleton))
    assert d_ff(skeleton) == d_ff_of(skeleton.config.to_dict())


@pytest.mark.parametrize("model_type", DENSE)
def test_contributions_of_other_families_follow_the_definition(model_type: str, live: Any):
    model, (trace, *_) = live(model_type), some_traces()
    kind = "gated" if model_type == "lfm2" else "gate"
    settings: Any = dict(activation=kind, chunk_tokens=7)
    score_TLF, parts_TLF = (
        torch.cat([score for _, score in contributions(model, [trace], contribution, **how)])
        for how in (settings, settings | dict(batch_tokens=16))
    )
    torch.testing.assert_close(parts_TLF, score_TLF, rtol=1e-3, atol=1e-4)
    gates: dict[int, torch.Tensor] = {}
    undo = []
    for one in blocks(model):
        module: Any = one.ffn.down if kind == "gated" else one.ffn.activation

        def keep(_: Any, args: Any, out: Any, n: int = one.layer) -> None:
            gates[n] = (args[0] if kind == "gated" else out)[0]

        undo.append(module.register_forward_hook(keep))
    ids = [*trace.prompt_token_ids, *trace.token_ids]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in undo:
        handle.remove()
    start = len(trace.prompt_token_ids)
    word_TD = model.get_output_embeddings().weight[trace.token_ids]
    for one in blocks(model):
        expected = gates[one.layer][start - 1 : -1] * (word_TD @ one.ffn.down.weight)
        torch.testing.assert_close(score_TLF[:, one.layer], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_mixtures_have_no_single_ffn(model_type: str, live: Any):
    with pytest.raises(BadInput, match=f"'{model_type}', whose layer .* dense models only"):
        _ = [one.ffn for one in blocks(live(model_type))]


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items())
def test_an_ffn_of_another_form_is_refused_by_name(model_type: str, reason: str):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config_of(model_type))
    with pytest.raises(BadInput, match=f"'{model_type}'.*{reason}") as error:
        blocks(model)
    assert "\n" not in str(error.value)


def test_layers_and_heads_that_a_model_lacks_are_named(live: Any):
    with pytest.raises(BadInput, match="layer 3; expected 0 to 2 in this smollm3 model"):
        block(live("smollm3"), 3)
    with pytest.raises(BadInput, match="'lfm2', whose layer 0 has an output projection"):
        _ = block(live("lfm2"), 0).attention


@pytest.mark.parametrize("model_type", [m for m in DENSE if m != "lfm2"])
def test_channels_of_other_families_are_read_back_as_a_plain_pass_shows_them(
    model_type: str, live: Any
):
    """At layer 1, which attends fully in all of them; the layers above are never reached."""
    model, traces, channels = live(model_type), some_traces(), Channels(1, (40, 0), (3, 1))
    for batch_tokens in (16, 4096):
        read = read_back(model, traces, channels, batch_tokens=batch_tokens)
        for trace, x_TC in zip(traces, read, strict=True):
            ids = torch.tensor([[*trace.prompt_token_ids, *trace.token_ids]])
            with torch.no_grad(), tapped(model, channels) as tap:
                model(input_ids=ids, use_cache=False)
            expected = tap.last[0, len(trace.prompt_token_ids) :]
            torch.testing.assert_close(x_TC, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_that_scales_what_it_writes_is_refused_by_the_logit_lens(dtype: torch.dtype):
    """Granite multiplies both blocks' outputs; half precision is too coarse to check the sum."""
    trace = some_traces(1)[0]
    ids = [*trace.prompt_token_ids, *trace.token_ids]
    direct(model_of("granite", residual_multiplier=1.0).to(dtype), ids)
    with pytest.raises(BadInput, match="'granite', whose components don't sum"):
        read = direct(model_of("granite", residual_multiplier=0.3).to(dtype), ids)
        read(torch.tensor([3]), torch.tensor([7]))


# --- the same units on disk


def written(path: Path, model_type: str, seed: int = 0) -> Checkpoint:
    model = model_of(model_type, seed=seed)
    model.save_pretrained(path)
    write_tokenizer(path)
    return Checkpoint.open(path)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_units_have_one_number_live_and_on_disk(model_type: str, live: Any, tmp_path: Path):
    """The down projection's columns, unit by unit, and no unit twice."""
    checkpoint, model = written(tmp_path / "m", model_type), live(model_type)
    assert checkpoint.d_ff == d_ff(model)
    stored = sites(checkpoint)
    for one in blocks(model):
        down_DF: dict[int, torch.Tensor] = {}
        for site in one.sites:
            weight: Any = site.module.weight if not site.experts else site.module.down_proj
            for e in range(max(site.experts, 1)):
                part = weight[e] if site.experts else weight
                part = part.mT if site.experts and site.module.is_transposed else part  # pyright: ignore
                for j in range(site.n_units):
                    down_DF[site.first + e * site.n_units + j] = part[:, j].detach()
        found: dict[int, torch.Tensor] = {}
        for place in (place for place in stored if place.layer == one.layer):
            slab = place.slab("down")
            view_DF = slab.view(checkpoint.tensor(slab.name), place.n_units)
            for j in range(place.n_units):
                assert place.first + j not in found
                found[place.first + j] = view_DF[:, j]
        assert found.keys() == down_DF.keys()
        assert all(torch.equal(found[n], down_DF[n]) for n in found)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_units_of_other_families_move_as_a_whole_or_not_at_all(model_type: str, tmp_path: Path):
    """No unit: the same bytes. All units: every projection is the donor's, the rest is not."""
    a, b = (written(tmp_path / str(seed), model_type, seed) for seed in (0, 1))
    exists_LF = np.zeros((a.n_layers, a.d_ff), bool)
    transplant(a, donor=b, mask=exists_LF, out=tmp_path / "none")
    assert Checkpoint.open(tmp_path / "none").digest == a.digest
    for place in sites(a):
        exists_LF[place.layer, place.span] = True
    transplant(a, donor=b, mask=exists_LF, out=tmp_path / "all")
    made = Checkpoint.open(tmp_path / "all")
    moved = {slab.name for place in sites(a) for slab in place.slabs}
    for name in a.tensors:
        assert torch.equal(made.tensor(name), (b if name in moved else a).tensor(name))
