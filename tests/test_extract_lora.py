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


def as_the_model_has_them(source: Path, out: Path) -> Path:
    """A copy whose file holds the live model's parameters: the experts of a layer in one."""
    from safetensors.torch import save_file

    shutil.copytree(source, out)
    for file in out.glob("model*"):
        file.unlink()
    state = Checkpoint.open(source).model().state_dict()
    state.pop("lm_head.weight", None)
    save_file(
        {name: t.contiguous() for name, t in state.items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    return out


@pytest.mark.parametrize("form", ["one by one", "fused", "gpt_oss", "mixed"])
def test_experts_get_factors_of_their_own_however_the_files_hold_them(
    form: str, make_checkpoint, tmp_path: Path, capsys
):
    """Against PEFT: the merged model's weights and logits are the tuned one's."""
    from peft import PeftModel

    if form == "gpt_oss":  # transposed experts, gate and up interleaved, biases
        settings: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=2)
    else:
        settings = {}
    root = make_checkpoint(
        tmp_path / "base", "gpt_oss" if form == "gpt_oss" else "qwen3_moe", dtype="float32",
        num_hidden_layers=2, **settings,
    )  # fmt: skip
    model: Any = Checkpoint.open(root).model()
    torch.manual_seed(5)
    touched = ("layers.1.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj", "q_proj")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight").endswith(touched):
                *_, rows, columns = parameter.shape
                change = torch.randn(*parameter.shape[:-2], rows, 2) @ torch.randn(2, columns)
                parameter += 0.05 * change
            elif name.endswith(("layers.1.mlp.gate.weight", "layers.1.mlp.router.weight")):
                parameter += 0.1 * torch.randn_like(parameter)
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    Checkpoint.open(root).copy_side_files(tuned, {file.name for file in tuned.iterdir()})
    if form == "fused":
        root = as_the_model_has_them(root, tmp_path / "base-fused")
    if form in ("fused", "mixed"):
        tuned = as_the_model_has_them(tuned, tmp_path / "tuned-fused")
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2 w3 w5 w8"}\n{"prompt": "w4"}\n')
    given: dict[str, Any] = dict(base=str(root), mini_set=str(tmp_path / "mini.jsonl"))
    made = extract_lora(str(tuned), out=tmp_path / "lora", rank=2, **given)
    rows = {m.module: m for m in made.modules}
    assert len(rows) == 4 and not made.left and len(made.saved) == 1
    assert rows["model.layers.1.mlp.experts.down_proj"].rank == 2 and made.error < 1e-4
    assert made.logits is not None and made.logits.largest < 1e-3 < made.logits.kl_base
    loaded: Any = PeftModel.from_pretrained(
        Checkpoint.open(root).model(),  # pyright: ignore
        str(tmp_path / "lora"),
    )
    ids = torch.arange(3, 20)[None]
    want = model(ids).logits
    torch.testing.assert_close(loaded(ids).logits, want, rtol=1e-3, atol=1e-3)
    own: Any = resolve(f"{root}+{tmp_path / 'lora'}", tmp_path / "work").model()
    state = loaded.merge_and_unload().state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-4)
        assert torch.equal(own.state_dict()[name], state[name]), name

    # A rank that is too small: what is missed is said, and the logits' error is that of PEFT.
    least = extract_lora(str(tuned), out=tmp_path / "least", energy=0.5, **given)
    assert {m.rank for m in least.modules} == {1} and 0.1 < least.error < 0.5**0.5
    assert least.logits is not None
    worse: Any = PeftModel.from_pretrained(
        Checkpoint.open(root).model(),  # pyright: ignore
        str(tmp_path / "least"),
    )
    tokenizer = Checkpoint.open(tuned).tokenizer()
    largest = 0.0
    for text in ("w1 w2 w3 w5 w8", "w4"):
        ids = torch.tensor(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )[None]
        with torch.no_grad():
            found = (model(ids).logits - worse(ids).logits).abs().max().item()
        largest = max(largest, found)
    assert least.logits.largest == pytest.approx(largest, rel=1e-3)


def test_what_of_a_mixture_cant_be_held_is_left_and_said(make_checkpoint, tmp_path: Path, capsys):
    """The biases of gpt-oss's experts lie in the module whose weights get factors."""
    root = make_checkpoint(
        tmp_path / "base", "gpt_oss", dtype="float32", num_hidden_layers=1, num_local_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    model: Any = Checkpoint.open(root).model()
    with torch.no_grad():
        experts = model.model.layers[0].mlp.experts
        experts.down_proj_bias += 0.1
        bias_alone = tmp_path / "bias"
        model.save_pretrained(bias_alone)
        experts.down_proj += 0.1
        model.save_pretrained(tmp_path / "tuned")
    made = extract_lora(str(tmp_path / "tuned"), base=str(root), out=tmp_path / "lora", rank=1)
    assert made.left == ("model.layers.0.mlp.experts.down_proj_bias",)
    assert made.left_energy == pytest.approx(1 / 49, rel=1e-3)  # 4 x 32 of 4 x 32 x (1 + 48)
    show(made)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "down_proj_bias. They carry 2.0% of the squared change" in said
    with pytest.raises(BadInput, match=r"differs from .* only in .*down_proj_bias"):
        extract_lora(str(bias_alone), base=str(root), out=tmp_path / "none", rank=1)
    assert not list(tmp_path.glob("none*"))
