"""Endpoints of two vocabulary sizes or two spellings: merged, or refused with the way out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon.merge
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import Family
from surgeon.merge.relation import relation, warnings

EMBEDDING = "model.embed_tokens.weight"


def run(a: Path, b: Path, out: Path, **options: Any) -> surgeon.merge.SweepReport:
    settings: dict[str, Any] = {"smoke": False, **options}
    if "config" not in settings:
        settings |= {"ratios": "0.5", "method": ("linear",)}
    return surgeon.merge.sweep(str(a), str(b), out=out, **settings)


@pytest.fixture
def padded(make_checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """Two unrelated models with one tokenizer of 128 entries, and 144 and 136 rows."""
    return (
        make_checkpoint(tmp_path / "a", dtype="float32", vocab_size=144),
        make_checkpoint(tmp_path / "b", dtype="float32", seed=1, vocab_size=136),
    )


def test_rows_of_two_sizes_are_refused_with_the_command(padded, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"use 128 of these rows. Run: .*--vocabulary crop$"):
        run(padded[0], padded[1], tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("how", "n_rows"), [("crop", 136), ("pad", 144), ("union", 128)])
def test_rows_of_two_sizes_become_one(padded, tmp_path: Path, how: Any, n_rows: int) -> None:
    run(padded[0], padded[1], tmp_path / "f", vocabulary=how)
    a, b = (Checkpoint.open(path).tensor(EMBEDDING) for path in padded)
    made = Checkpoint.open(tmp_path / "f" / "linear-0.5")
    assert made.config["vocab_size"] == n_rows == made.tensor(EMBEDDING).shape[0]
    expected = (a[: len(b)] + b) / 2
    # Padding takes the longer endpoint's rows, so their mean is those rows.
    expected = torch.cat([expected, a[len(b) :]])[:n_rows]
    torch.testing.assert_close(made.tensor(EMBEDDING), expected)
    made.model()
    assert Family.open(tmp_path / "f").endpoints[1].tensor(EMBEDDING).shape[0] == n_rows


def test_fused_and_single_experts_merge_as_one_spelling_does(
    make_checkpoint, tmp_path: Path
) -> None:
    a = make_checkpoint(tmp_path / "a", "qwen3_moe", dtype="float32")
    b = make_checkpoint(tmp_path / "b", "qwen3_moe", dtype="float32", seed=1)
    run(a, b, tmp_path / "same")
    file = b / "model.safetensors"
    tensors = load_file(file)
    fused = {name: t for name, t in tensors.items() if ".experts." not in name}
    for layer in range(3):
        at = f"model.layers.{layer}.mlp.experts."
        parts = [
            [tensors[f"{at}{e}.{p}_proj.weight"] for e in range(4)] for p in ("gate", "up", "down")
        ]
        fused[at + "gate_up_proj"] = torch.cat([torch.stack(p) for p in parts[:2]], dim=1)
        fused[at + "down_proj"] = torch.stack(parts[2])
    save_file(fused, file, metadata={"format": "pt"})
    report = run(a, b, tmp_path / "two")
    assert "in two ways" in " ".join(report.plan.notices)
    one, two = (Checkpoint.open(tmp_path / f / "linear-0.5") for f in ("same", "two"))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.tensors)


def test_what_is_known_to_go_wrong_is_said_with_figures(
    make_checkpoint, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    a, sibling = (Checkpoint.open(path) for path in pico_pair)
    assert warnings(a, sibling, relation(a, sibling)) == []
    stranger = Checkpoint.open(make_checkpoint(tmp_path / "stranger", seed=7))
    assert "no common ancestor" in warnings(a, stranger, relation(a, stranger))[0]
    assert "are equal" in warnings(a, a, relation(a, a))[0]


def test_a_merge_config_with_a_tokenizer_excludes_the_settings(padded, tmp_path: Path) -> None:
    text = "merge: {merge_method: linear, models: [{model: a, parameters: {weight: 0.5}}, "
    text += "{model: b, parameters: {weight: 0.5}}], tokenizer: {source: union}}"
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(BadInput, match="found --vocabulary pad and a `tokenizer`"):
        run(padded[0], padded[1], tmp_path / "f", config=tmp_path / "m.yaml", vocabulary="pad")
    run(padded[0], padded[1], tmp_path / "f", config=tmp_path / "m.yaml")
    by_mergekit = Checkpoint.open(tmp_path / "f" / "linear")
    run(padded[0], padded[1], tmp_path / "g", vocabulary="union")
    ours = Checkpoint.open(tmp_path / "g" / "linear-0.5")
    assert all(torch.equal(ours.tensor(n), by_mergekit.tensor(n)) for n in by_mergekit.tensors)
