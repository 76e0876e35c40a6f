"""Every FFN unit is found once, where the model reads it, in every layout a file can have."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon.checkpoint import SINGLE, Checkpoint
from surgeon.errors import BadInput
from surgeon.neurons import sites

# Shapes: L layers, F units per layer, E experts, D model width.

IDS = torch.tensor([[5, 6, 7, 8]])
SMALL: dict[str, Any] = dict(
    vocab_size=128, hidden_size=32, intermediate_size=16, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip


def write_model(path: Path, config: Any, auto: Any, shards: int) -> Checkpoint:
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size=-(-size // shards))
    return Checkpoint.open(path)


def write_all_experts(path: Path, shards: int = 1) -> Checkpoint:
    """A qwen3_vl_moe checkpoint: one tensor holds gate and up of all experts."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = SMALL | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32,
        patch_size=4, num_position_embeddings=16, deepstack_visual_indexes=[0],
    )  # fmt: skip
    config = AutoConfig.for_model("qwen3_vl_moe", text_config=text, vision_config=vision)
    return write_model(path, config, AutoModelForImageTextToText, shards)


def write_alternating(path: Path, shards: int = 1) -> Checkpoint:
    """A gpt_oss checkpoint: gate in even columns, up in odd ones, with biases."""
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=16)
    config = AutoConfig.for_model("gpt_oss", **SMALL, **extra)
    return write_model(path, config, AutoModelForCausalLM, shards)


def change(checkpoint: Checkpoint, edit: Any) -> Checkpoint:
    """The same directory, opened again after `edit(tensors)` changed its only shard."""
    tensors = load_file(checkpoint.path / SINGLE)
    edit(tensors)
    save_file(tensors, checkpoint.path / SINGLE, metadata={"format": "pt"})
    return Checkpoint.open(checkpoint.path)


@pytest.mark.parametrize(
    "model_type",
    ["qwen2", "qwen3", "llama", "mistral", "gemma2", "gemma3_text", "olmo2", "phi3", "glm4",
     "qwen3_moe", "mixtral", "qwen3_vl"],
)  # fmt: skip
def test_blocks_tile_the_units_of_every_layer(tmp_path: Path, make_checkpoint, model_type: str):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", model_type))
    found = sites(checkpoint)
    for layer in range(checkpoint.n_layers):
        members = [site for site in found if site.layer == layer]
        assert [s.first for s in members] == list(range(0, checkpoint.d_ff, members[0].n_units))
        assert members[-1].span.stop == checkpoint.d_ff
    experts = {"qwen3_moe": 4, "mixtral": 4}.get(model_type, 1)
    assert len(found) == experts * checkpoint.n_layers
    for site in found:
        for slab in site.slabs:
            tensor = checkpoint.tensor(slab.name)
            shape = slab.view(tensor, site.n_units).shape
            assert shape == ((32, site.n_units) if slab.role == "down" else (site.n_units, 32))


@pytest.mark.parametrize("layout", ["separate", "biased", "fused", "experts", "one-tensor", "odd"])
def test_a_unit_is_what_the_model_multiplies_with(tmp_path: Path, make_checkpoint, layout: str):
    """Unit by unit from the files: down @ (act(gate x + b) * (up x + b)) is the FFN's output."""
    checkpoint = {
        "separate": lambda: Checkpoint.open(make_checkpoint(tmp_path / "m")),
        "biased": lambda: Checkpoint.open(make_checkpoint(tmp_path / "m", "llama", mlp_bias=True)),
        "fused": lambda: Checkpoint.open(make_checkpoint(tmp_path / "m", "phi3")),
        "experts": lambda: Checkpoint.open(make_checkpoint(tmp_path / "m", "qwen3_moe")),
        "one-tensor": lambda: write_all_experts(tmp_path / "m"),
        "odd": lambda: write_alternating(tmp_path / "m"),
    }[layout]()
    model: Any = checkpoint.model(dtype=torch.float32)
    ffn = model.get_decoder().layers[1].mlp
    x_TD = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    members = [site for site in sites(checkpoint) if site.layer == 1]
    with torch.no_grad():
        if layout in ("separate", "biased", "fused"):
            wanted = ffn(x_TD[None])[0] - (ffn.down_proj.bias if layout == "biased" else 0)
            found = unit_by_unit(checkpoint, members[0], x_TD, layout)
            assert torch.allclose(found, wanted, atol=1e-5)
            return
        for expert, site in enumerate(members):
            index, weight = torch.full((3, 1), expert), torch.ones(3, 1)
            wanted = ffn.experts(x_TD, index, weight)
            if layout == "odd":
                wanted = wanted - ffn.experts.down_proj_bias[expert]
            found = unit_by_unit(checkpoint, site, x_TD, layout)
            assert torch.allclose(found, wanted, atol=1e-5), expert


def unit_by_unit(checkpoint: Checkpoint, site: Any, x_TD: torch.Tensor, layout: str) -> Any:
    part = {
        slab.role: slab.view(checkpoint.tensor(slab.name), site.n_units).float()
        for slab in site.slabs
    }
    gate_TF = x_TD @ part["gate"].T + part.get("gate_bias", 0)
    up_TF = x_TD @ part["up"].T + part.get("up_bias", 0)
    if layout == "odd":
        gate_TF, up_TF = gate_TF.clamp(max=7), up_TF.clamp(-7, 7)
        hidden_TF = (up_TF + 1) * gate_TF * torch.sigmoid(1.702 * gate_TF)
    else:
        hidden_TF = torch.nn.functional.silu(gate_TF) * up_TF
    return hidden_TF @ part["down"].T


def test_the_turned_layout_of_hub_files_is_read_the_same(tmp_path: Path):
    checkpoint = write_all_experts(tmp_path / "m")
    before = [
        slab.view(checkpoint.tensor(slab.name), site.n_units).clone()
        for site in sites(checkpoint) for slab in site.slabs
    ]  # fmt: skip
    logits = checkpoint.model()(IDS).logits

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if ".experts." in name:
                tensors[name] = tensors[name].mT.contiguous()

    turned = change(checkpoint, turn)
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert turned.tensors[name].shape == (4, 32, 48)
    after = [
        slab.view(turned.tensor(slab.name), site.n_units)
        for site in sites(turned) for slab in site.slabs
    ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(turned.model()(IDS).logits, logits)


def test_a_part_of_the_units_is_indexed_as_the_whole_is(tmp_path: Path):
    checkpoint = write_alternating(tmp_path / "m")
    for site in sites(checkpoint)[:2]:
        for slab in site.slabs:
            tensor = checkpoint.tensor(slab.name)
            part = slab.view(tensor, site.n_units, slice(3, 9))
            whole = slab.view(tensor, site.n_units)
            assert torch.equal(part, whole[:, 3:9] if slab.role == "down" else whole[3:9])


def test_views_write_through_to_the_tensor(tmp_path: Path):
    checkpoint = write_alternating(tmp_path / "m")
    site = sites(checkpoint)[1]
    slab = site.slab("up")
    tensor = checkpoint.tensor(slab.name)
    slab.view(tensor, site.n_units)[2] = 9.0
    assert (tensor[1, :, 5] == 9).all() and int((tensor == 9).sum()) == 32


def test_dense_layers_of_a_mixture_are_narrower_blocks(tmp_path: Path, make_checkpoint):
    path = make_checkpoint(tmp_path / "m", "qwen3_moe", mlp_only_layers=[1])
    found = sites(Checkpoint.open(path))
    assert [(s.first, s.n_units) for s in found if s.layer == 1] == [(0, 48)]
    assert [s.n_units for s in found if s.layer == 0] == [16, 16, 16, 16]


def test_a_missing_projection_is_named(tmp_path: Path, make_checkpoint):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m"))
    damaged = change(checkpoint, lambda t: t.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(
        BadInput, match=r"layer 2 with down, gate of \[48\] units; expected gate, up"
    ):
        sites(damaged)


def test_a_layer_without_an_ffn_is_named(tmp_path: Path, make_checkpoint):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m"))

    def remove(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate", "up", "down"):
            del tensors[f"model.layers.1.mlp.{part}_proj.weight"]

    with pytest.raises(BadInput, match="stores 0 FFN units in layer 1, its config says 48"):
        sites(change(checkpoint, remove))


def test_a_width_other_than_the_configs_is_named(tmp_path: Path, make_checkpoint):
    path = make_checkpoint(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(BadInput, match=r"down_proj.weight as \[32, 48\]; its config says .* 64"):
        sites(Checkpoint.open(path))
