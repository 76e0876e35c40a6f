"""BASE+ADAPTER is what PEFT's own merge makes of it, whatever the adapter's kind and names."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import store
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.families import subjects

Q, FFN = "q_proj", "down_proj"


@pytest.fixture(scope="module")
def bases(make_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Float32 checkpoints, with a head of its own and with the embedding as head."""
    root = tmp_path_factory.mktemp("bases")
    return {
        tied: make_checkpoint(root / f"tied-{tied}", dtype="float32", tied=tied, shards=2)
        for tied in (False, True)
    }


def live(path: Path, rows: int | None = None) -> Any:
    model: Any = Checkpoint.open(path).model(dtype=torch.float32)
    if rows is not None:
        torch.manual_seed(5)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def trained(path: Path, out: Path, rows: int | None = None, **config: Any) -> Any:
    """PEFT's model with an adapter of random weights, saved in `out`."""
    from peft import LoraConfig, get_peft_model

    given = {"r": 3, "task_type": "CAUSAL_LM", "target_modules": [Q, FFN], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned: Any = get_peft_model(live(path, rows), LoraConfig(**given))
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    if "magnitude" in name:
                        parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
                    else:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        tuned.save_pretrained(str(out))
    return tuned


def logits(model: Any, vocabulary: int = 128) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) * 5 % vocabulary
    with torch.no_grad():
        return model.eval()(ids, use_cache=False).logits


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 7},
    "rank-stabilised": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {FFN: 2}},
    "anchored pattern": {"rank_pattern": {r"^model\.layers\.0\.mlp\.down_proj": 1}},
    "all-linear": {"target_modules": "all-linear"},
    "regular expression": {"target_modules": r".*layers\.[02]\..*(q|v)_proj"},
    "some layers": {"layers_to_transform": [1]},
    "head and embedding saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms saved": {"modules_to_save": ["input_layernorm", "norm"]},
    "token rows": {"trainable_token_indices": {"embed_tokens": [3, 7]}},
    "embedding": {"target_modules": [Q, "embed_tokens"]},
    "embedding with dora": {"target_modules": [Q, "embed_tokens"], "use_dora": True},
    "head": {"target_modules": [Q, "lm_head"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_as_peft_does(kind: str, bases, tmp_path: Path):
    tuned = trained(bases[False], tmp_path / "adapter", **KINDS[kind])
    merged = resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    found = merged.model().state_dict()
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert differing == []
    base = Checkpoint.open(bases[False])
    assert any(not torch.equal(merged.tensor(n), base.tensor(n)) for n in base.tensors)


TIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": [Q, "lm_head"]},
    "embedding": {"target_modules": [Q, "embed_tokens"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("kind", TIED)
def test_where_one_of_two_tied_ends_was_adapted_they_are_untied(kind, bases, tmp_path: Path):
    tuned = trained(bases[True], tmp_path / "adapter", **TIED[kind])
    wanted = logits(tuned)
    merged = resolve(f"{bases[True]}+{tmp_path / 'adapter'}", tmp_path / "work")
    assert merged.config["tie_word_embeddings"] is False and not merged.tied
    torch.testing.assert_close(logits(merged.model()), wanted, rtol=1e-5, atol=1e-5)


BOTH_TIED: dict[str, dict[str, Any]] = {
    "no end": {},
    "saved": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "token rows": {"trainable_token_indices": {"embed_tokens": [3, 7]}},
    "lora": {"target_modules": [Q, "embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("kind", BOTH_TIED)
def test_ends_that_stay_alike_stay_tied(kind: str, bases, tmp_path: Path):
    tuned = trained(bases[True], tmp_path / "adapter", **BOTH_TIED[kind])
    wanted = logits(tuned)
    merged = resolve(f"{bases[True]}+{tmp_path / 'adapter'}", tmp_path / "work")
    assert merged.tied
    torch.testing.assert_close(logits(merged.model()), wanted, rtol=1e-5, atol=1e-5)


GROWN: dict[str, dict[str, Any]] = {
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "stored with the adapter": {},
    "embedding adapted": {"target_modules": [Q, "embed_tokens"]},
}


@pytest.mark.parametrize("rows", [136, 120])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", GROWN)
def test_a_vocabulary_of_another_size_is_the_adapters(kind, tied, rows, bases, tmp_path: Path):
    tuned = trained(bases[tied], tmp_path / "adapter", rows, **GROWN[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    wanted = logits(tuned, rows)
    if kind == "embedding adapted" and not tied and rows > 128:
        # PEFT stores no row of a head that isn't adapted itself.
        with pytest.raises(BadInput, match=r"lacks the values of the new ones"):
            resolve(f"{bases[tied]}+{tmp_path / 'adapter'}", tmp_path / "work")
        return
    merged = resolve(f"{bases[tied]}+{tmp_path / 'adapter'}", tmp_path / "work")
    assert merged.config["vocab_size"] == rows
    torch.testing.assert_close(logits(merged.model(), rows), wanted, rtol=1e-5, atol=1e-5)


def test_new_rows_without_values_are_refused(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "adapter", 136, target_modules=[Q, "embed_tokens"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "lora_" in k}, file)
    with pytest.raises(BadInput, match="another base"):
        resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")


def test_new_rows_may_come_as_trained_tokens(bases, tmp_path: Path):
    rows = {name: [3, *range(128, 132)] for name in ("embed_tokens", "lm_head")}
    tuned = trained(bases[False], tmp_path / "adapter", 132, trainable_token_indices=rows)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if "lora_" in k or "token_adapter" in k}
    save_file(kept, file)
    wanted = logits(tuned, 132)
    merged = resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")
    assert merged.config["vocab_size"] == 132
    torch.testing.assert_close(logits(merged.model(), 132), wanted, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_the_result_is_the_float32_merge_cast(make_checkpoint, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base")
    tuned = trained(base, tmp_path / "adapter")
    merged = resolve(f"{base}+{tmp_path / 'adapter'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    for name, tensor in merged.model().state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name


@pytest.mark.parametrize(
    "outer", ["model.language_model.", "language_model.model.", "model.text_model."]
)
def test_names_of_another_release_or_class_are_understood(outer: str, bases, tmp_path: Path):
    tuned = trained(bases[False], tmp_path / "adapter", rank_pattern={"layers.1.mlp.down_proj": 2})
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    old, new = "base_model.model.model.", f"base_model.model.{outer}"
    save_file({k.replace(old, new): v for k, v in load_file(file).items()}, file)
    merged = resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    found = merged.model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral", "qwen3_vl", "gemma3_text", "glm4"])
def test_families_whose_files_call_things_otherwise(model_type, make_checkpoint, tmp_path: Path):
    base = make_checkpoint(tmp_path / "base", model_type, dtype="float32")
    tuned = trained(base, tmp_path / "adapter", target_modules=[Q, "o_proj"])
    merged = resolve(f"{base}+{tmp_path / 'adapter'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    found = merged.model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert merged.tensors.keys() == Checkpoint.open(base).tensors.keys()


def test_conv1d_layers_store_their_weights_transposed(tmp_path: Path):
    from conftest import write_tokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    base = tmp_path / "base"
    tuned = trained(base, tmp_path / "adapter", target_modules=["c_attn"], fan_in_fan_out=True)
    merged = resolve(f"{base}+{tmp_path / 'adapter'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    found = merged.model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- what can't be merged -------------------------------------------------------------------------


def edit(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "acts beside the weights"),
        ({"peft_type": "PREFIX_TUNING"}, "acts beside the weights"),
        ({"peft_type": "IA3"}, "found a IA3 adapter .* Merge it with PEFT first"),
        ({"peft_type": None}, "found no peft_type"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"task_type": "SEQ_CLS"}, "found task_type SEQ_CLS"),
        ({"target_modules": [Q, FFN, "v_proj"]}, "lacks the weights of v_proj"),
    ],
)
def test_an_adapter_that_cant_be_merged_is_one_line(changes, words, bases, tmp_path: Path):
    trained(bases[False], tmp_path / "adapter")
    edit(tmp_path / "adapter", **changes)
    with pytest.raises(BadInput, match=words):
        resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")


def test_an_adapter_that_lost_a_tensor_or_gained_one_is_refused(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(file)
    last = sorted(name for name in whole if "lora_B" in name)[-1]
    save_file({k: v for k, v in whole.items() if k != last}, file)
    with pytest.raises(BadInput, match=r"lacks 1 of its weights"):
        resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")
    save_file({**whole, "base_model.model.nowhere.weight": torch.ones(2)}, file)
    with pytest.raises(BadInput, match="has no place"):
        resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")


def test_an_adapter_with_a_nan_is_refused(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(file).items()}, file)
    with pytest.raises(BadInput, match="NaN"):
        resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")


# --- how it is named ------------------------------------------------------------------------------


def test_both_parts_may_come_from_the_hub(bases, tmp_path: Path, monkeypatch):
    import huggingface_hub

    trained(bases[False], tmp_path / "adapter")
    asked = []

    def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(bases[False] if repository == "owner/base" else tmp_path / "adapter")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    local = resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path / "work")
    spec = "owner/base@v1+owner/adapter@v2"
    merged = resolve(spec, tmp_path / "work")
    assert merged.digest == local.digest and merged.spec == spec
    assert sorted(asked) == [("owner/adapter", "v2"), ("owner/base", "v1")]
    with pytest.raises(BadInput, match=r"is a PEFT adapter. Name its base too"):
        resolve("owner/adapter")


def test_a_plus_in_a_directorys_name_is_no_separator(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "my+adapter")
    base = shutil.copytree(bases[False], tmp_path / "my+base")
    merged = resolve(f"{base}+{tmp_path / 'my+adapter'}", tmp_path / "work")
    assert merged.digests & resolve(f"{base}+{tmp_path / 'my+adapter'}").digests


def test_two_adapters_are_merged_one_after_the_other(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "one")
    first = resolve(f"{bases[False]}+{tmp_path / 'one'}", tmp_path / "work")
    tuned = trained(first.path, tmp_path / "two", target_modules=["v_proj"])
    both = resolve(f"{bases[False]}+{tmp_path / 'one'}+{tmp_path / 'two'}", tmp_path / "work")
    expected = tuned.merge_and_unload().state_dict()
    found = both.model().state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_alone_is_told_to_name_its_base(bases, tmp_path: Path):
    trained(bases[False], tmp_path / "adapter")
    for opened in (lambda s: subjects([s]), resolve, Checkpoint.open):
        with pytest.raises(BadInput, match=r"is a PEFT adapter. Name its base too"):
            opened(str(tmp_path / "adapter"))


def test_an_adapter_may_lie_beside_its_bases_config(bases, tmp_path: Path):
    """As Unsloth and others push it: no weights belong to that config."""
    trained(bases[False], tmp_path / "adapter")
    plain = resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path)
    shutil.copy(bases[False] / "config.json", tmp_path / "adapter")
    for opened in (lambda s: subjects([s]), resolve):
        with pytest.raises(BadInput, match=r"is a PEFT adapter. Name its base too"):
            opened(str(tmp_path / "adapter"))
    assert resolve(f"{bases[False]}+{tmp_path / 'adapter'}", tmp_path).digest == plain.digest


def test_a_merged_base_is_made_once(bases, tmp_path: Path, monkeypatch):
    from surgeon.checkpoint import resolving

    trained(bases[False], tmp_path / "adapter", lora_alpha=5)
    made: list[Path] = []
    write = resolving.write_merged_base
    monkeypatch.setattr(
        resolving, "write_merged_base", lambda b, a, out: (made.append(out), write(b, a, out))
    )
    spec = f"{bases[False]}+{tmp_path / 'adapter'}"
    one, two = resolve(spec), resolve(spec)
    assert one.path == two.path and store.owns(one.path) and len(made) == 1
    edit(tmp_path / "adapter", lora_alpha=6)
    assert resolve(spec).path != one.path and len(made) == 2


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_lora_on_fused_experts_is_merged_as_peft_does(model_type, make_checkpoint, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    base = make_checkpoint(tmp_path / "base", model_type, num_hidden_layers=1, dtype="float32")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=experts, task_type="CAUSAL_LM"
    )
    tuned: Any = get_peft_model(Checkpoint.open(base).model(), config)  # pyright: ignore
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, 0, 0.1)
    tuned.save_pretrained(str(tmp_path / "lora"))
    ids = torch.arange(3, 20)[None]
    merged: Any = resolve(f"{base}+{tmp_path / 'lora'}", tmp_path).model()
    assert torch.equal(merged(ids).logits, tuned.merge_and_unload()(ids).logits)
