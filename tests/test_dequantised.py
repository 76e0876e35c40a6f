"""Quantised checkpoints and GGUF files, written here, read as full-precision checkpoints."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from surgeon import cli
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput

BLOCK = 16
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "ab", "answer": "1"}\n')
    return tmp_path / "cache" / "surgeon"


def evaluate(spec: Path, out: Path) -> None:
    cli.main(
        ["evaluate", str(spec), "--task", str(spec.parent / "p.jsonl"), "--out", str(out),
         "--samples", "1", "--max-tokens", "2"]
    )  # fmt: skip


# --- GGUF -----------------------------------------------------------------------------------------


@pytest.fixture
def gguf_file(tmp_path: Path, make_checkpoint) -> Path:
    """A tiny Qwen2 as llama.cpp's converter writes it, its matrices in Q8_0."""
    source = make_checkpoint(
        tmp_path / "source", "qwen2", vocab_size=288, hidden_size=32, num_hidden_layers=2
    )
    config, model = Checkpoint.open(source).config, Checkpoint.open(source).model()
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, "ab", "<|im_end|>", *(f"<x{i}>" for i in range(30))]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 31)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            short = "token_embd.weight"
        elif name == "model.norm.weight":
            short = "output_norm.weight"
        else:
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            module, _, part = rest.rpartition(".")
            short = f"blk.{layer}.{NAMES[module]}.{part}"
        if values.ndim > 1 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(short, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(short, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_a_gguf_file_is_a_checkpoint(gguf_file: Path, tmp_path: Path, own_cache: Path, capsys):
    evaluate(gguf_file, tmp_path / "one")
    assert "is dequantised to bfloat16" in capsys.readouterr().err
    evaluate(gguf_file, tmp_path / "two")
    assert "dequantised" not in capsys.readouterr().err  # it is in the cache
    read = resolve(str(gguf_file))
    assert read.path.parent == own_cache / "gguf" and read.tied and read.chat_template
    name = "model.layers.1.mlp.up_proj.weight"
    before = Checkpoint.open(tmp_path / "source").tensor(name).float()
    # Q8_0 has 127 steps up to the largest of 32 values, bfloat16 8 bits.
    assert (read.tensor(name).float() - before).abs().max() < 0.01 * before.abs().max()
    assert read.tokenizer().encode("ab") == [256]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_gguf_file_that_breaks_off(gguf_file: Path, own_cache: Path, share: float):
    content = gguf_file.read_bytes()
    gguf_file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadInput, match="damaged or cut off"):
        resolve(str(gguf_file))
    assert not own_cache.exists()


# --- other kinds ----------------------------------------------------------------------------------


def in_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """DeepSeek's FP8: a scale for each square block; with what it stands for."""
    rows, columns = (n // BLOCK for n in weight.shape)
    blocks = weight.float().reshape(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    stored = (blocks / scale).to(torch.float8_e4m3fn)
    meant = (stored.float() * scale).reshape(weight.shape)
    return stored.reshape(weight.shape), scale[:, 0, :, 0].contiguous(), meant


@pytest.fixture
def fp8(tmp_path: Path, make_checkpoint) -> tuple[Path, dict[str, torch.Tensor]]:
    """A mixture of experts in DeepSeek's FP8, and the weights that it stands for."""
    path = make_checkpoint(tmp_path / "fp8", "qwen3_moe", num_hidden_layers=2)
    stored, meant = {}, {}
    for name, tensor in load_file(path / "model.safetensors").items():
        meant[name] = tensor
        stored[name] = tensor
        if name.endswith("_proj.weight"):
            stored[name], stored[f"{name}_scale_inv"], meant[name] = in_blocks(tensor)
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    quantise(path, quant_method="fp8", weight_block_size=[BLOCK, BLOCK])
    return path, meant


def quantise(path: Path, **settings: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def test_fp8_in_blocks_is_dequantised_once(fp8, tmp_path: Path, own_cache: Path, capsys):
    path, meant = fp8
    evaluate(path, tmp_path / "one")
    assert "is quantised (fp8): dequantised to bfloat16" in capsys.readouterr().err
    evaluate(path, tmp_path / "two")
    assert "dequantised" not in capsys.readouterr().err
    read = resolve(str(path))
    assert read.path.parent == own_cache / "dequantised"
    assert read.tensors.keys() == meant.keys() and "quantization_config" not in read.config
    for name in read.tensors:
        assert torch.equal(read.tensor(name), meant[name].to(torch.bfloat16)), name
    assert read.chat_template == Checkpoint.open(path).chat_template


def test_biases_of_routers_stay_in_float32(tmp_path: Path, make_checkpoint, own_cache: Path):
    """As DeepSeek and GLM keep them, whatever the weights are: they decide which experts are asked
    by their last digits."""
    path = make_checkpoint(
        tmp_path / "fp8", "glm4_moe", num_hidden_layers=2, n_routed_experts=4, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, num_experts_per_tok=2,
        moe_intermediate_size=16,
    )  # fmt: skip
    name, stored = "model.layers.1.mlp.gate.e_score_correction_bias", {}
    for key in (whole := Checkpoint.open(path)).tensors:
        stored[key] = whole.tensor(key)
        if key.endswith("_proj.weight"):
            stored[key], stored[f"{key}_scale_inv"], _ = in_blocks(stored[key])
    for shard in whole.shards:
        (path / shard).unlink()
    (path / "model.safetensors.index.json").unlink()
    stored[name] = torch.tensor([0.1, 0.1001, 0.1002, 0.3])
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    quantise(path, quant_method="fp8", weight_block_size=[BLOCK, BLOCK])
    assert torch.equal(resolve(str(path)).tensor(name), stored[name])


def test_a_dequantised_endpoint_merges(fp8, tmp_path: Path, make_checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoint(
        tmp_path / "plain", "qwen3_moe", num_hidden_layers=2, noise_from=resolve("fp8").path
    )
    cli.main(["merge-sweep", "plain", "fp8", "--out", "family", "--ratios", "0.5"])
    assert "quantization_config" not in Checkpoint.open(tmp_path / "family" / "slerp-0.5").config


def without_scales(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("_inv")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def without_a_weight(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def of_other_blocks(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight_scale_inv"
    tensors[name] = torch.ones(3, 3)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_scales, "the files hold no scales"),
        (without_a_weight, "does not hold the weights"),
        (of_other_blocks, "can't be dequantised|does not hold the weights"),
    ],
)
def test_weights_that_are_not_what_their_config_says(fp8, own_cache: Path, damage, words: str):
    path, _ = fp8
    damage(path)
    with pytest.raises(BadInput, match=words):
        resolve(str(path))
    assert not list(own_cache.glob("*/*/config.json"))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gptq", "base_model in its README"),
        ("bitsandbytes_4bit", "needs the package bitsandbytes"),
        ("compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_kinds_that_cant_be_read(fp8, monkeypatch, method: str, words: str):
    from surgeon.checkpoint import quantised

    path, _ = fp8
    quantise(path, quant_method=method)
    monkeypatch.setattr(quantised, "_installed", lambda module: False)
    with pytest.raises(BadInput, match=words):
        resolve(str(path))


def test_mxfp4_experts_are_dequantised(tmp_path: Path, make_checkpoint):
    path = make_checkpoint(
        tmp_path / "oss", "gpt_oss", num_hidden_layers=1, num_local_experts=2,
        num_experts_per_tok=1, intermediate_size=32, tied=False,
    )  # fmt: skip
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    for projection in (name, name.replace("gate_up", "down")):
        experts, wide, narrow = tensors.pop(projection).shape
        codes = torch.randint(0, 256, (experts, narrow, wide // 32, 16), dtype=torch.uint8)
        tensors[f"{projection}_blocks"] = codes
        tensors[f"{projection}_scales"] = torch.full(codes.shape[:3], 124, dtype=torch.uint8)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    quantise(path, quant_method="mxfp4")
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    codes = tensors[f"{name}_blocks"].long()
    # Two codes in a byte, the lower first; a scale of 124 is 2^(124 - 127).
    meant = torch.stack([values[codes & 15], values[codes >> 4]], -1).flatten(2) / 8
    assert torch.equal(resolve(str(path)).tensor(name).float(), meant.transpose(1, 2))
