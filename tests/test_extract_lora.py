"""A checkpoint's change as an adapter: what it holds, what it misses, and that PEFT loads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon import artifact
from surgeon import extract_lora as module
from surgeon.checkpoint import Checkpoint, resolve, rewrite
from surgeon.errors import BadInput
from surgeon.extract_lora import Extraction, extract_lora, show


def changed(base: Path, out: Path, rank: int, touched: tuple[str, ...], noise: float = 0) -> Path:
    """A copy whose tensors of these names got a change of this rank, and some noise."""
    torch.manual_seed(3)

    def edit(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 1:
            return tensor + 0.1
        a, b = torch.randn(rank, tensor.shape[1]), torch.randn(tensor.shape[0], rank)
        return tensor + 0.02 * b @ a + noise * torch.randn_like(tensor)

    out.mkdir()
    rewrite(Checkpoint.open(base), out, edit, lambda name: any(t in name for t in touched))
    return out


@pytest.fixture(scope="module")
def base(make_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("extract") / "base", dtype="float32", shards=2)


def peft_merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    model: Any = Checkpoint.open(base).model(dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()  # pyright: ignore


def test_a_change_of_low_rank_comes_back(base: Path, tmp_path: Path, capsys):
    tuned = changed(base, tmp_path / "tuned", 2, ("q_proj", "down_proj"))
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2 w3"}\n{"prompt": "w4"}\n')
    made = extract_lora(
        str(tuned), base=str(base), out=tmp_path / "lora", rank=2,
        mini_set=str(tmp_path / "mini.jsonl"),
    )  # fmt: skip
    assert len(made.modules) == 6 and made.error < 1e-4 and not made.saved and not made.left
    assert made.logits is not None and made.logits.kl < 1e-6 < made.logits.kl_base
    assert made.logits.agreement == 1 and made.logits.largest < 1e-3
    merged = peft_merged(base, tmp_path / "lora")
    whole, own = Checkpoint.open(tuned), resolve(f"{base}+{tmp_path / 'lora'}", tmp_path / "work")
    for name in whole.tensors:
        torch.testing.assert_close(merged[name], whole.tensor(name), rtol=1e-4, atol=1e-5)
        assert torch.equal(own.tensor(name), merged[name]), name
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    assert sorted(p.name for p in (tmp_path / "lora").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "extraction.json",
        "surgeon.json",
    ]  # fmt: skip
    assert artifact.read(Extraction, tmp_path / "lora") == made
    show(made)
    assert "use it as" in capsys.readouterr().out


def test_energy_takes_the_least_rank_that_holds_it(base: Path, tmp_path: Path):
    tuned = changed(base, tmp_path / "tuned", 2, ("q_proj", "layers.0.mlp.up_proj"), noise=0.001)
    made = extract_lora(str(tuned), base=str(base), out=tmp_path / "lora", energy=0.9)
    for found in made.modules:
        change = Checkpoint.open(tuned).tensor(f"{found.module}.weight") - Checkpoint.open(
            base
        ).tensor(f"{found.module}.weight")
        squared = torch.linalg.svdvals(change.double()).square()
        held = (squared.cumsum(0) / squared.sum()).tolist()
        assert held[found.rank - 1] >= 0.9 and (found.rank == 1 or held[found.rank - 2] < 0.9)
        assert found.error == pytest.approx((1 - held[found.rank - 1]) ** 0.5, rel=1e-3)
    assert made.error <= 0.1**0.5
    merged, own = peft_merged(base, tmp_path / "lora"), resolve(f"{base}+{tmp_path / 'lora'}")
    assert all(torch.equal(own.tensor(name), merged[name]) for name in own.tensors)


@pytest.mark.parametrize("tied", [True, False])
def test_what_lora_cant_hold_is_saved_whole_or_left(tied: bool, make_checkpoint, tmp_path: Path):
    root = make_checkpoint(tmp_path / "base", dtype="float32", tied=tied)
    tuned = changed(root, tmp_path / "tuned", 2, ("v_proj", "embed_tokens", "model.norm"))
    made = extract_lora(str(tuned), base=str(root), out=tmp_path / "lora", rank=2)
    assert made.saved == ("model.embed_tokens", "model.norm") and not made.left
    assert made.error < 1e-4
    own, whole = resolve(f"{root}+{tmp_path / 'lora'}"), Checkpoint.open(tuned)
    merged = peft_merged(root, tmp_path / "lora")
    assert all(torch.equal(own.tensor(name), merged[name]) for name in own.tensors)
    assert own.tensors.keys() == whole.tensors.keys()
    for name in whole.tensors:
        torch.testing.assert_close(own.tensor(name), whole.tensor(name), rtol=1e-4, atol=1e-5)
    left = extract_lora(str(tuned), base=str(root), out=tmp_path / "left", rank=2, rest="leave")
    assert left.left == ("model.embed_tokens.weight", "model.norm.weight") and left.error > 0.1
    assert "the base's in the result" in (tmp_path / "left" / "README.md").read_text()
    own = resolve(f"{root}+{tmp_path / 'left'}")
    name = "model.norm.weight"
    assert torch.equal(own.tensor(name), Checkpoint.open(root).tensor(name))


def test_a_killed_run_goes_on_with_the_modules_that_it_lacks(base, tmp_path: Path, monkeypatch):
    tuned = changed(base, tmp_path / "tuned", 2, ("q_proj",))
    settings: dict[str, Any] = dict(base=str(base), rank=2)
    extract_lora(str(tuned), out=tmp_path / "whole", **settings)
    factor, done = module._factor, []

    def dying(plan: Any, name: str, file: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        factor(plan, name, file)
        done.append(name)

    monkeypatch.setattr(module, "_factor", dying)
    with pytest.raises(KeyboardInterrupt):
        extract_lora(str(tuned), out=tmp_path / "lora", **settings)
    assert not (tmp_path / "lora").exists()
    rest: list[str] = []
    monkeypatch.setattr(module, "_factor", lambda p, n, f: (rest.append(n), factor(p, n, f)))
    extract_lora(str(tuned), out=tmp_path / "lora", **settings)
    assert len(rest) == 1 and not set(rest) & set(done)
    one, two = (
        (tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("whole", "lora")
    )
    assert one == two
    assert extract_lora(str(tuned), out=tmp_path / "lora", **settings).already


def test_the_base_of_an_adapter_may_be_an_adapter_itself(base: Path, tmp_path: Path):
    """The base that PEFT can't name lies beside the adapter, and PEFT loads both."""
    from peft import AutoPeftModelForCausalLM

    tuned = changed(base, tmp_path / "one", 2, ("q_proj",))
    extract_lora(str(tuned), base=str(base), out=tmp_path / "lora", rank=2)
    spec = f"{base}+{tmp_path / 'lora'}"
    more = changed(resolve(spec).path, tmp_path / "two", 2, ("v_proj",))
    extract_lora(str(more), base=spec, out=tmp_path / "second", rank=2)
    loaded: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "second"))
    merged, whole = loaded.merge_and_unload().state_dict(), Checkpoint.open(more)
    for name in whole.tensors:
        torch.testing.assert_close(merged[name], whole.tensor(name), rtol=1e-4, atol=1e-4)
    both = resolve(f"{spec}+{tmp_path / 'second'}")
    assert all(torch.equal(both.tensor(name), merged[name]) for name in both.tensors)


def test_a_pair_that_doesnt_fit_is_refused(base: Path, tmp_path: Path, make_checkpoint):
    wide = make_checkpoint(tmp_path / "wide", hidden_size=64)
    other = make_checkpoint(tmp_path / "other", "llama")
    copy = shutil.copytree(base, tmp_path / "copy")
    norm = changed(base, tmp_path / "norm", 1, ("model.norm",))
    for checkpoint, words in (
        (wide, "expected one shape"),
        (other, "expected one architecture"),
        (copy, "nothing to extract"),
        (norm, "LoRA can't hold"),
    ):
        with pytest.raises(BadInput, match=words):
            extract_lora(str(checkpoint), base=str(base), out=tmp_path / "lora", rank=2)
    for settings in ({}, {"rank": 2, "energy": 0.9}):
        with pytest.raises(BadInput, match="rank and energy, expected one"):
            extract_lora(str(norm), base=str(base), out=tmp_path / "lora", **settings)
    assert not list(tmp_path.glob("lora*"))


def test_experts_that_are_fused_are_left_and_what_they_carry_is_said(
    make_checkpoint, tmp_path: Path, capsys
):
    root = make_checkpoint(tmp_path / "base", "qwen3_moe", dtype="float32")
    tuned = changed(root, tmp_path / "tuned", 1, ("q_proj", "experts.1."))
    made = extract_lora(str(tuned), base=str(root), out=tmp_path / "lora", rank=1)
    one, two = Checkpoint.open(tuned), Checkpoint.open(root)
    energy = {n: (one.tensor(n) - two.tensor(n)).square().sum().item() for n in one.tensors}
    experts = sorted(n for n, value in energy.items() if value and ".experts." in n)
    assert experts and list(made.left) == experts and all("experts.1." in n for n in experts)
    share = sum(energy[n] for n in experts) / sum(energy.values())
    assert made.left_energy == pytest.approx(share, rel=1e-4)
    assert made.error == pytest.approx(share**0.5, rel=1e-3)
    show(made)
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"They carry {share:.1%} of the squared change" in said and experts[0] in said
    alone = changed(root, tmp_path / "alone", 1, ("experts.1.",))
    with pytest.raises(BadInput, match=r"differs from .* only in .*experts\.1\."):
        extract_lora(str(alone), base=str(root), out=tmp_path / "none", rank=1)
    same = shutil.copytree(root, tmp_path / "same")
    with pytest.raises(BadInput, match="nothing to extract"):
        extract_lora(str(same), base=str(root), out=tmp_path / "none", rank=1)
    assert not list(tmp_path.glob("none*"))
