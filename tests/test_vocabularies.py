"""Endpoints of two vocabulary sizes or two spellings: merged, or refused with the way out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon.merge
from surgeon import cli
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import Family, open_checkpoint
from surgeon.merge.aligned import Aligned
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


def test_rows_of_two_sizes_are_refused_with_the_command(
    padded: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"use 128 of these rows. Run: .*--vocabulary crop$"):
        run(padded[0], padded[1], tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("how", "n_rows"), [("crop", 136), ("pad", 144), ("union", 128)])
def test_rows_of_two_sizes_become_one(
    padded: tuple[Path, Path], tmp_path: Path, how: Any, n_rows: int
) -> None:
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


def test_a_merge_config_with_a_tokenizer_excludes_the_settings(
    padded: tuple[Path, Path], tmp_path: Path
) -> None:
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


# --- what is known to go wrong --------------------------------------------------------------------


def reconfigured(path: Path, **changes: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def test_a_sparse_update_is_said_with_its_share(pico_pair: tuple[Path, Path], tmp_path: Path):
    a = Checkpoint.open(pico_pair[0])
    sparse = Path(shutil.copytree(pico_pair[0], tmp_path / "sparse"))
    name = "model.layers.1.mlp.up_proj.weight"
    shard = sparse / a.tensors[name].shard
    tensors = load_file(shard)
    tensors[name].view(-1)[: 48 * 32 // 4] += 1  # a quarter of its 48 x 32 weights
    save_file(tensors, shard, metadata={"format": "pt"})
    found = relation(a, Checkpoint.open(sparse))
    assert (found.differing, found.sampled, found.equal_share) == ((name,), 48 * 32, 0.75)
    said = warnings(a, Checkpoint.open(sparse), found)
    assert any("75% of 1536 weights sampled in 1 tensors are equal" in text for text in said)
    assert any(f"candidates differ in 1 only ({name})" in text for text in said)


def test_two_rotations_are_said_with_both_bases(pico_pair: tuple[Path, Path], tmp_path: Path):
    rope = {"rope_type": "default", "rope_theta": 1e6}
    reconfigured(pico_pair[1], rope_parameters=rope, rope_theta=None)
    a, b = (Checkpoint.open(path) for path in pico_pair)
    (said,) = warnings(a, b, relation(a, b))
    assert "rope_theta 10000.0 and 1000000.0" in said and "take those of a" in said
    report = run(*pico_pair, tmp_path / "f", dry_run=True)
    assert said in report.plan.notices


# --- tokens at other ids --------------------------------------------------------------------------


def renamed_tokens(path: Path, rename: dict[str, str]) -> Path:
    """The tokenizer of a checkpoint with other words at the ids of `rename`."""
    text = json.loads((path / "tokenizer.json").read_text())
    words = text["model"]["vocab"]
    text["model"]["vocab"] = {rename.get(word, word): i for word, i in words.items()}
    for added in text["added_tokens"]:
        added["content"] = rename.get(added["content"], added["content"])
    (path / "tokenizer.json").write_text(json.dumps(text))
    settings = (path / "tokenizer_config.json").read_text()
    for old, new in rename.items():
        if old.startswith("<"):
            settings = settings.replace(f'"{old}"', f'"{new}"')
    (path / "tokenizer_config.json").write_text(settings)
    return path


@pytest.fixture
def swapped(make_checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """Two models whose tokenizers have `w3` and `w4` at each other's ids; `b` has a `novel`."""
    a = make_checkpoint(tmp_path / "a", dtype="float32")
    b = make_checkpoint(tmp_path / "b", dtype="float32", seed=1)
    return a, renamed_tokens(b, {"w3": "w4", "w4": "w3", "w5": "novel"})


def test_tokens_at_other_ids_are_refused_and_united(
    swapped: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r'"w3" and "w4".*--vocabulary union'):
        run(*swapped, tmp_path / "f")
    run(*swapped, tmp_path / "f", vocabulary="union")
    made = Checkpoint.open(tmp_path / "f" / "linear-0.5")
    a, b = (Checkpoint.open(path) for path in swapped)
    at = [c.tokenizer().get_vocab() for c in (a, b, made)]
    rows = [c.tensor(EMBEDDING) for c in (a, b, made)]
    assert len(rows[2]) == 129 == len(at[2])
    for word in ("w3", "w4", "w7", "<|im_end|>"):
        mean = (rows[0][at[0][word]] + rows[1][at[1][word]]) / 2
        torch.testing.assert_close(rows[2][at[2][word]], mean)
    torch.testing.assert_close(rows[2][at[2]["w5"]], rows[0][at[0]["w5"]])
    torch.testing.assert_close(rows[2][at[2]["novel"]], rows[1][at[1]["novel"]])


def test_stop_ids_are_those_of_the_union(make_checkpoint, tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a", dtype="float32")
    b = make_checkpoint(tmp_path / "b", dtype="float32", seed=1)
    renamed_tokens(b, {"<|im_end|>": "<end>", "w3": "<|im_end|>"})
    reconfigured(b, eos_token_id=2)
    run(a, b, tmp_path / "f", vocabulary="union", generation="second")
    made = Checkpoint.open(tmp_path / "f" / "linear-0.5")
    ids = made.tokenizer().get_vocab()
    # The second's id 2 is its `<end>`, which stands elsewhere in the union.
    assert ids["<end>"] != 2 == ids["<|im_end|>"]
    assert made.generation_config["eos_token_id"] == ids["<end>"]
    assert made.generation_config["pad_token_id"] == 0
    assert made.config["eos_token_id"] == 2
    second = Family.open(tmp_path / "f").endpoints[1]
    assert second.config["eos_token_id"] == ids["<end>"]


MERGE = """merge: {merge_method: linear, models: [{model: a, parameters: {weight: 0.5}},
{model: b, parameters: {weight: 0.5}}], %s}"""


def test_mergekits_tokenizer_source_is_the_candidates(
    swapped: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "m.yaml").write_text(MERGE % "tokenizer_source: b")
    run(*swapped, tmp_path / "f", config=tmp_path / "m.yaml")
    made = Checkpoint.open(tmp_path / "f" / "linear")
    a, b = (Checkpoint.open(path) for path in swapped)
    at = [c.tokenizer().get_vocab() for c in (a, b, made)]
    assert at[2] == at[1]
    mean = (a.tensor(EMBEDDING)[at[0]["w3"]] + b.tensor(EMBEDDING)[at[1]["w3"]]) / 2
    torch.testing.assert_close(made.tensor(EMBEDDING)[at[2]["w3"]], mean)


def test_a_family_with_mergekits_rows_is_evaluated(
    swapped: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "m.yaml").write_text(MERGE % "tokenizer_source: union")
    (tmp_path / "mini.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3 w7"}\n')
    run(*swapped, tmp_path / "f", config=tmp_path / "m.yaml")
    assert Checkpoint.open(tmp_path / "f" / "linear").tensor(EMBEDDING).shape[0] == 129
    command = ["rank", str(tmp_path / "f"), "--mini-set", str(tmp_path / "mini.jsonl")]
    try:
        cli.main([*command, "--out", str(tmp_path / "r"), "--max-tokens", "4"])
    except SystemExit as ended:
        assert not ended.code
    assert (tmp_path / "r").is_dir()


# --- views --------------------------------------------------------------------------------------


def test_a_stored_tied_head_merges_with_none(make_checkpoint, tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a", dtype="float32")
    b = make_checkpoint(tmp_path / "b", dtype="float32", seed=1)
    run(a, b, tmp_path / "same")
    file = b / "model.safetensors"
    tensors = load_file(file)
    head = tensors[EMBEDDING].clone()
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    for name, pair in (("b stores it", (a, b)), ("a stores it", (b, a))):
        run(*pair, tmp_path / name)
        made = Checkpoint.open(tmp_path / name / "linear-0.5")
        expected = Checkpoint.open(tmp_path / "same" / "linear-0.5").tensor(EMBEDDING)
        assert torch.equal(made.tensor(EMBEDDING), expected)
        assert torch.equal(made.model().get_output_embeddings().weight, expected)  # pyright: ignore
    save_file(tensors | {"lm_head.weight": head + 1}, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="is not its embedding"):
        run(a, b, tmp_path / "f")


@pytest.mark.parametrize("how", ["pad", "union"])
def test_a_virtual_candidate_is_the_written_one(
    padded: tuple[Path, Path], tmp_path: Path, how: Any
) -> None:
    run(*padded, tmp_path / "written", vocabulary=how)
    run(*padded, tmp_path / "virtual", vocabulary=how, virtual=True)
    written = Checkpoint.open(tmp_path / "written" / "linear-0.5")
    made = open_checkpoint(f"{tmp_path / 'virtual'}/family.json#linear-0.5")
    assert made.tensors.keys() == written.tensors.keys()
    assert all(torch.equal(made.tensor(n), written.tensor(n)) for n in written.tensors)
    assert made.config == written.config
    assert made.tokenizer().get_vocab() == written.tokenizer().get_vocab()


@pytest.mark.parametrize("how", ["pad", "union"])
def test_killed_while_an_endpoint_is_aligned(
    padded: tuple[Path, Path], tmp_path: Path, monkeypatch, how: Any
) -> None:
    run(*padded, tmp_path / "whole", vocabulary=how)
    whole = {p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")}
    for nth in (1, 2):  # in the midst of the first endpoint and of the second
        calls, write_it = [0], Aligned.write

        def write(self: Aligned, out: Path, calls=calls, write_it=write_it, nth=nth) -> None:
            calls[0] += 1
            write_it(self, out)
            if calls[0] == nth:
                (out / "config.json").unlink()
                raise KeyboardInterrupt

        if how == "pad" and nth == 2:
            break  # only the second has rows added
        monkeypatch.setattr(Aligned, "write", write)
        with pytest.raises(KeyboardInterrupt):
            run(*padded, tmp_path / f"f{nth}", vocabulary=how)
        assert not (tmp_path / f"f{nth}").exists()
        monkeypatch.setattr(Aligned, "write", write_it)
        run(*padded, tmp_path / f"f{nth}", vocabulary=how)
        again = {p.relative_to(tmp_path / f"f{nth}") for p in (tmp_path / f"f{nth}").rglob("*")}
        assert again == whole
        one, two = (Checkpoint.open(tmp_path / f / "linear-0.5") for f in ("whole", f"f{nth}"))
        assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.tensors)
