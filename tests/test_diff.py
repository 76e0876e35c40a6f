"""`surgeon diff`: figures by layer and block, and what they mean."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgeon import cli, jsonl
from surgeon.checkpoint import Checkpoint
from surgeon.diff import WeightDiff, diff
from surgeon.diff.parts import block_of
from surgeon.diff.sums import compared
from surgeon.errors import BadInput


def edited(source: Path, out: Path, edit) -> Path:
    """A copy of a checkpoint with every tensor edited: `edit(name, tensor)` returns the new one."""
    shutil.copytree(source, out)
    for shard in out.glob("*.safetensors"):
        tensors = {n: edit(n, t).contiguous() for n, t in load_file(shard).items()}
        save_file(tensors, shard, metadata={"format": "pt"})
    return out


def block(found: WeightDiff, layer: int | None, name: str):
    return next(b for b in found.blocks if (b.layer, b.block) == (layer, name))


def test_figures_are_those_of_the_whole_tensors(pico_pair, monkeypatch):
    a, b = map(Checkpoint.open, pico_pair)
    monkeypatch.setattr("surgeon.diff.sums.PIECE", 100)
    name = "model.layers.1.mlp.up_proj.weight"
    found = compared(a, b, name)
    x, y = a.tensor(name).double(), b.tensor(name).double()
    assert found.n == x.numel() and found.equal == int((x == y).sum())
    assert found.relative == pytest.approx(float((y - x).norm() / x.norm()))
    assert found.cosine == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())))
    assert found.largest == float((y - x).abs().max())
    assert found.unmoved == int(((y - x).abs() <= 1e-5).sum())


def test_a_change_in_one_block_is_found_there_and_nowhere_else(pico_pair, tmp_path: Path):
    def edit(name: str, tensor: Tensor) -> Tensor:
        return tensor * 1.5 if "layers.2.self_attn.v_proj" in name else tensor

    found = diff(str(pico_pair[0]), str(edited(pico_pair[0], tmp_path / "c", edit)))
    moved = block(found, 2, "v")
    assert moved.share == 1.0 and moved.relative == pytest.approx(0.5, abs=0.01)
    assert moved.cosine == pytest.approx(1.0, abs=1e-4) and moved.equal < 0.05
    assert all(b.equal == 1.0 and b.relative == 0.0 for b in found.blocks if b is not moved)
    text = " ".join(found.meaning)
    assert "34 of 35 tensors are equal" in text and "0% of the squared difference lies in" in text
    assert "moves little of what the two differ in" in text and "a sparse update" in text
    # The angle of a stretched tensor is 0.
    assert "SLERP falls back to linear on 100% of the tensors (35 of 35" in text


def test_units_in_other_places_are_found_in_their_layer(pico_pair, tmp_path: Path):
    order = torch.arange(48).roll(1)

    def edit(name: str, tensor: Tensor) -> Tensor:
        if "layers.1.mlp" not in name:
            return tensor
        return tensor[:, order] if "down" in name else tensor[order]

    found = diff(str(pico_pair[0]), str(edited(pico_pair[0], tmp_path / "c", edit)), units=16)
    assert [(p.units, p.in_place, p.elsewhere) for p in found.units] == [
        (16, 16, 0), (16, 0, 16), (16, 16, 0)
    ]  # fmt: skip
    assert found.units[1].nearest == pytest.approx(1.0, abs=1e-4) and found.units[1].same < 0.5
    assert any("(layers 1): match them with --match permutation" in line for line in found.meaning)


def test_siblings_of_one_base_fit_a_merge(pico_pair):
    found = diff(*map(str, pico_pair))
    assert found.total.parameters == sum(
        math.prod(i.shape) for i in Checkpoint.open(pico_pair[0]).tensors.values()
    )
    assert sum(k.share for k in found.kinds) == pytest.approx(1.0)
    assert any(line.startswith("Merge: nothing speaks against it") for line in found.meaning)
    assert "a dense update" in " ".join(found.meaning) and not found.apart
    assert all(p.in_place == p.units for p in found.units)


def test_what_merge_sweep_says_of_the_angles_is_said_here(pico_pair, tmp_path, capsys):
    """Over a mixture of experts, whose experts have one angle together."""
    from conftest import write_checkpoint

    a = write_checkpoint(tmp_path / "m1", "qwen3_moe", tied=False)
    b = write_checkpoint(tmp_path / "m2", "qwen3_moe", tied=False, seed=1, noise_from=a)
    cli.main(["merge-sweep", str(a), str(b), "--dry-run", "--out", str(tmp_path / "f")])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("SLERP falls"))
    found = diff(str(a), str(b))
    assert f"Merge: {line}." in found.meaning
    assert {b.block for b in found.blocks if b.layer == 0} >= {"router", "q", "norm", "down"}
    assert block(found, None, "head").parameters == 128 * 32


def test_an_adapter_and_its_base(pico_pair, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        Checkpoint.open(pico_pair[0]).model(),  # pyright: ignore[reportArgumentType]
        LoraConfig(r=2, target_modules=["gate_proj"], init_lora_weights=False),
    )
    model.save_pretrained(str(tmp_path / "lora"))
    found = diff(str(pico_pair[0]), f"{pico_pair[0]}+{tmp_path / 'lora'}")
    changed = {b.block for b in found.blocks if b.equal < 1}
    assert changed == {"gate"} and found.second.name == "a+lora"


def test_a_page_and_a_file_that_resume(pico_pair, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []

    def counted(*args):
        calls.append(args[2])
        if len(calls) == 20:
            raise KeyboardInterrupt
        return compared(*args)

    monkeypatch.setattr("surgeon.diff.compared", counted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["diff", "a", "b", "--out", "d"])
    assert stop.value.code == 130
    assert len(list(jsonl.rows("d.partial/tensors.jsonl"))) == 19
    cli.main(["diff", "a", "b", "--out", "d"])
    assert len(calls) == 36  # 35 tensors, one of them begun twice
    found = json.loads(Path("d/diff.json").read_text())
    monkeypatch.setattr("surgeon.diff.compared", compared)
    alone = diff("a", "b")
    assert found["total"]["relative"] == alone.total.relative
    page = Path("d/report.html").read_text()
    assert page.count('class="heat"') == 4 and page.count("layer 1, down:") == 4
    assert "http" not in page.replace("http-equiv", "")
    capsys.readouterr()
    cli.main(["diff", "a", "b", "--out", "d"])
    assert "was finished before" in capsys.readouterr().out


def test_vocabularies_and_templates_are_told(pico_pair, tmp_path: Path):
    from conftest import write_checkpoint

    other = write_checkpoint(tmp_path / "wide", vocab_size=160, shards=1)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    found = diff(str(pico_pair[0]), str(other))
    assert found.apart == ("model.embed_tokens.weight",)
    assert any("chat templates differ" in line for line in found.beside)
    assert found.meaning[0].startswith("Merge: not tensor by tensor, 1 tensors have no partner")


def test_a_tensor_with_nan_is_named(pico_pair, tmp_path: Path):
    def edit(name: str, tensor: Tensor) -> Tensor:
        return tensor * math.nan if "layers.0.self_attn.q_proj" in name else tensor

    found = diff(str(pico_pair[0]), str(edited(pico_pair[0], tmp_path / "c", edit)))
    assert found.broken == ("model.layers.0.self_attn.q_proj.weight",)
    assert found.total.equal == 1.0


def test_what_cant_be_compared(pico_pair, tmp_path: Path, make_checkpoint):
    other = make_checkpoint(tmp_path / "neox", "gpt_neox")
    with pytest.raises(BadInput, match="no tensor of"):
        diff(str(pico_pair[0]), str(other))
    with pytest.raises(BadInput, match="no checkpoint"):
        diff(str(pico_pair[0]), str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.mlp.experts.7.gate_proj.weight", (3, "gate", "FFN")),
        ("model.layers.3.mlp.experts.gate_up_proj", (3, "gate+up", "FFN")),
        ("model.layers.3.mlp.gate.weight", (3, "router", "other")),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", (0, "down", "FFN")),
        ("model.language_model.layers.11.self_attn.q_norm.weight", (11, "norm", "norm")),
        ("gpt_neox.layers.1.attention.query_key_value.weight", (1, "qkv", "attention")),
        ("transformer.h.5.attn.c_attn.weight", (5, "qkv", "attention")),
        ("transformer.h.5.mlp.c_fc.weight", (5, "up", "FFN")),
        ("model.embed_tokens.weight", (None, "embedding", "embedding")),
        ("lm_head.weight", (None, "head", "embedding")),
        ("model.norm.weight", (None, "norm", "norm")),
    ],
)
def test_the_block_of_a_tensor(name: str, expected: tuple):
    assert tuple(block_of(name)) == expected
