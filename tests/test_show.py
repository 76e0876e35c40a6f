"""`surgeon show`: what things are, what they were made of, and whether that is still there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import cli
from surgeon.errors import BadInput
from surgeon.show import Shown, describe
from surgeon.show.places import locate


def facts(found: Shown) -> dict[str, str]:
    return {fact.name: fact.text for fact in found.facts}


def nudge(directory: Path) -> None:
    """Change one weight of a checkpoint."""
    shard = sorted(directory.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})


@pytest.fixture
def made(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    """A family of two endpoints, and a transplant between them, as commands make them."""
    monkeypatch.chdir(tmp_path)
    cli.main(["merge-sweep", "a", "b", "--ratios", "0.5", "--no-smoke", "--out", "runs/family"])
    mask = torch.zeros(3, 48, dtype=torch.bool)
    mask[1, :5] = True
    save_file({"mask_LF": mask}, tmp_path / "mask.safetensors")
    cli.main(["transplant", "--recipient", "runs/family/family.json#slerp-0.5", "--donor", "b",
              "--mask", "mask.safetensors", "--out", "runs/moved"])  # fmt: skip
    return tmp_path


def test_a_checkpoint_its_shape_and_what_takes_it(pico_pair):
    found = describe(str(pico_pair[0]))
    assert found.kind == "checkpoint" and not found.lineage.inputs
    said = facts(found)
    assert said["shape"] == "3 layers, width 32, 4 heads (2 of keys), 48 FFN units a layer"
    stored = [load_file(file) for file in sorted(pico_pair[0].glob("*.safetensors"))]
    n = sum(t.numel() for tensors in stored for t in tensors.values())
    assert said["weights"].startswith(f"{n:,} parameters in ")
    assert "bfloat16" in said["weights"] and "in 4 files" in said["weights"]
    assert said["context"] == "2,048 tokens" and said["chat template"] == "default"
    assert said["vocabulary"] == "128 rows, 128 tokens (WordLevel)"
    assert all(use.why_not is None for use in found.uses)
    assert {"rank", "transplant", "serve"} <= {use.verb for use in found.uses}


def test_an_architecture_whose_units_arent_gated_is_told_apart(tmp_path, make_checkpoint):
    found = describe(str(make_checkpoint(tmp_path / "neox", "gpt_neox")))
    refused = {use.verb for use in found.uses if use.why_not}
    assert {"rank", "transplant"} <= refused and "evaluate" not in refused


def test_the_tree_leads_back_to_the_endpoints_with_commands_and_digests(made: Path):
    found = describe("runs/moved", verify=True)
    assert found.kind == "checkpoint, transplant"
    assert "replace: 5 of 144 units of" in facts(found)["surgery"]
    root = found.lineage
    assert root.verb == "transplant" and str(root.command).startswith("surgeon transplant ")
    by_role = {origin.role: origin for origin in root.inputs}
    recipient = by_role["recipient"]
    assert recipient.verb == "merge-sweep" and str(recipient.place).endswith("slerp-0.5")
    assert [str(o.place) for o in recipient.inputs] == ["a", "b"]
    assert by_role["donor"].place == "b" and by_role["donor"].verb is None
    assert by_role["mask"].place == "mask.safetensors"
    verdicts = {o.role: o.verdict for o in root.walk() if o.role}
    assert verdicts == {"recipient": "same", "a": "same", "b": "same", "donor": "same",
                        "mask": "same"}  # fmt: skip
    assert not found.broken


def test_a_changed_endpoint_is_found_and_a_removed_one(made: Path, capsys):
    nudge(made / "b")
    found = describe("runs/moved", verify=True)
    assert [o.role for o in found.broken] == ["b", "donor"]
    assert {o.verdict for o in found.broken} == {"differs"}
    shutil.rmtree(made / "b")
    gone = describe("runs/moved", verify=True)
    assert {o.role: o.verdict for o in gone.lineage.walk() if o.role} == {
        "recipient": "gone", "a": "same", "b": "unknown", "donor": "unknown", "mask": "same",
    }  # fmt: skip
    capsys.readouterr()
    cli.main(["show", "runs/moved", "--verify"])
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 5 recorded inputs are what they were, 2 couldn't be compared" in out
    assert "which is gone. Put it back" in out


def test_the_tree_is_found_from_elsewhere_and_after_a_move(made: Path, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a", "b", "runs", "mask.safetensors"):
        shutil.move(made / name, other / name)
    monkeypatch.chdir("/")
    found = describe(str(other / "runs/moved"), verify=True)
    assert {o.verdict for o in found.lineage.walk() if o.role} == {"same"}
    assert {o.place for o in found.lineage.inputs} >= {str(other / "b").lstrip("/")}


def test_a_recipe_tells_where_its_steps_inputs_lie(pico_pair, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        "- merge-sweep: {a: a, b: b, ratios: '0.5', virtual: true, out: fam}\n"
    )
    cli.main(["run", "r.yaml", "--set", "out=other"])
    found = describe("other")
    assert found.kind == "family" and found.lineage.command == "surgeon run r.yaml --set out=other"
    assert [str(o.place) for o in found.lineage.inputs] == ["a", "b"]
    assert facts(found)["on disk"].startswith("0 of 1")
    virtual = describe("other/family.json#slerp-0.5", verify=True)
    assert virtual.kind == "virtual candidate of a family"
    assert {o.verdict for o in virtual.lineage.inputs} == {"same"}


def test_what_the_package_brings_and_files(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe("builtin:instruct").kind == "checkpoint"
    row = {"prompt_id": "p", "sample": 0, "prompt_token_ids": [1], "token_ids": [3, 4], "text": "x",
           "finish_reason": "stop"}  # fmt: skip
    Path("t.jsonl").write_text("".join(json.dumps({**row, "sample": n}) + "\n" for n in range(3)))
    found = describe("t.jsonl")
    assert found.kind == "traces" and facts(found)["answers"] == "3 to 1 prompts"
    assert facts(found)["tokens"] == "6, 2 an answer" and facts(found)["finished"] == "100%"
    Path("p.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n')
    assert facts(describe("p.jsonl"))["with an answer"] == "1"


def test_one_screen(made: Path, capsys):
    capsys.readouterr()
    cli.main(["show", "runs/moved"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 40 and "not compared" not in out


@pytest.mark.parametrize(
    ("spec", "words"),
    [("nowhere/at/all", "found nothing at"), ("a/config.txt", "doesn't know"),
     ("empty", "nothing that surgeon knows"), ("void.jsonl", "holds no rows"),
     ("a/family.json#x", "merge-sweep")],
)  # fmt: skip
def test_what_cant_be_shown(pico_pair, tmp_path: Path, monkeypatch, spec: str, words: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "void.jsonl").write_text("")
    (tmp_path / "a/config.txt").write_text("x")
    with pytest.raises(BadInput, match=words):
        describe(spec)


def test_a_spec_of_several_parts_is_located_whole(pico_pair, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("a+b", [tmp_path]) == "a+b" and locate("a+c", [tmp_path]) is None
    assert locate("builtin:instruct", []) == "builtin:instruct"
    assert locate("c", [tmp_path]) is None
