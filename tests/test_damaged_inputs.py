"""Inputs that `make knocks` found: each was once a traceback, and is refused in one line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from surgeon import artifact, builtin, cli, evidence_file, lineage, truth
from surgeon.checkpoint import Checkpoint, read_header, read_templates, resolve
from surgeon.checkpoint.adapters import write_adapter_config
from surgeon.checkpoint.loading import require_fit
from surgeon.checkpoint.rewriting import rewrite
from surgeon.errors import BadInput
from surgeon.families import Family
from surgeon.ranking import CandidateScores
from surgeon.settings.sampling import Sampling
from surgeon.show import kinds
from surgeon.traces import read_prompts
from surgeon.traces.answered import read_answered
from surgeon.traces.imported import read_plain

TRACE = {"prompt_id": "a", "sample": 0, "prompt_token_ids": [1], "token_ids": [3], "text": "x",
         "finish_reason": "stop"}  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(builtin.path("instruct"), tmp_path / "copy"))


def write(place: Path, **changes: object) -> None:
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def use(checkpoint: Checkpoint) -> object:
    return checkpoint.n_layers, checkpoint.d_ff, checkpoint.passed_units, checkpoint.tensors


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": [1]},
        {"text_config": "x"},
        {"num_hidden_layers": "two"},
        {"num_hidden_layers": [2]},
        {"intermediate_size": "x"},
        {"intermediate_size": ["x"]},
        {"num_experts": [4], "moe_intermediate_size": {}},
    ],
    ids=str,
)
def test_a_config_with_other_things_than_numbers(copy: Path, changes: dict[str, Any]):
    write(copy, **changes)
    with pytest.raises(BadInput, match=r"config\.json has (a text_config|sizes|num_hidden_layers)"):
        use(Checkpoint.open(copy))


def test_a_config_may_count_experts_that_it_switches_off(copy: Path):
    """As that of Doge, which has 16,384 of none."""
    d_ff = resolve(str(copy)).d_ff
    write(copy, num_experts=16384, num_experts_per_tok=64, is_moe=False)
    assert resolve(str(copy)).d_ff == d_ff
    for changes in ({"num_experts": 10**9}, {"num_experts": 16384, "is_moe": True}):
        write(copy, **changes)
        with pytest.raises(BadInput, match="num_experts = "):
            Checkpoint.open(copy)


def test_a_config_may_leave_its_number_of_layers_to_transformers(copy: Path):
    file = copy / "config.json"
    config = json.loads(file.read_text())
    del config["num_hidden_layers"], config["layer_types"]
    file.write_text(json.dumps(config))
    checkpoint = Checkpoint.open(copy)
    assert checkpoint.n_layers == checkpoint.full_config.num_hidden_layers


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"model": 1}', '{"added_tokens_decoder": 7}', "[" * 100_000, "\xff"],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_a_damaged_tokenizer(copy: Path, name: str, text: str):
    (copy / name).write_bytes(text.encode("latin-1"))
    try:
        Checkpoint(copy).tokenizer()
    except BadInput as error:
        assert "tokenizer" in str(error) and "\n" not in str(error)
    else:
        assert name == "tokenizer_config.json" and text in ('{"model": 1}',)


def test_templates_of_names_that_are_no_text(copy: Path):
    rows = [{"name": ["a"], "template": "x"}]
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": rows}))
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match=r"found the chat template \['a'\]"):
        read_templates(copy)


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}


@pytest.mark.parametrize(
    "changes",
    [{"lora_alpha": "x"}, {"lora_alpha": [1]}, {"target_modules": [1]}, {"target_modules": [["x"]]},
     {"target_modules": 7}, {"rank_pattern": [1]}, {"alpha_pattern": 3}, {"bias": 5},
     {"trainable_token_indices": [10**12]}, {"trainable_token_indices": {"a": 3}}],
    ids=str,
)  # fmt: skip
def test_an_adapter_with_settings_of_other_kinds(tmp_path: Path, changes: dict[str, Any]):
    import torch
    from safetensors.torch import save_file

    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    factors = {f"{name}A.weight": torch.ones(2, 96), f"{name}B.weight": torch.ones(384, 2)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    try:
        resolve(f"builtin:instruct+{tmp_path}", tmp_path / "work")
    except BadInput as error:
        assert str(tmp_path) in str(error)
    else:
        assert "rank_pattern" in changes or "bias" in changes


@pytest.mark.parametrize(
    "kept", ["{", "7", "[]", "{}", '{"responses": [7]}', '{"responses": [["a"]]}', "[" * 5000]
)
def test_damaged_evidence(tmp_path: Path, kept: str):
    import numpy as np

    metadata = {"format": evidence_file.FORMAT, "kept": kept}
    lineage.write_tensors(tmp_path / evidence_file.FILE, {"row_N1": np.zeros(2)}, metadata)
    with pytest.raises(BadInput, match="is damaged evidence"):
        evidence_file.read(tmp_path)


@pytest.mark.parametrize(
    "row", [7, {"x": 1}, {**TRACE, "token_ids": 7}, {**TRACE, "prompt_id": []}], ids=str
)
def test_show_reads_every_row(tmp_path: Path, row: object):
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in (TRACE, row)))
    with pytest.raises(BadInput):
        kinds.kind_of(str(file))


@pytest.mark.parametrize(
    "tasks", [7, [7], [{}], [{"name": "t"}], [{"name": "t", "measures": 7}]], ids=str
)
def test_an_evaluation_with_tasks_of_another_form(tmp_path: Path, tasks: object):
    file = tmp_path / "e.json"
    file.write_text(json.dumps({"candidates": 7, "tasks": tasks}))
    with pytest.raises(BadInput, match="is not an evaluation"):
        truth.read_accuracies(file, "t")


@pytest.mark.parametrize("arguments", [7, [1], "x"])
def test_a_record_of_another_form_is_another_run(tmp_path: Path, arguments: Any):
    (tmp_path / lineage.FILE).write_text(json.dumps({"verb": "rank", "arguments": arguments}))
    with pytest.raises(BadInput, match="holds another run"):
        lineage.begin(tmp_path, verb="rank", arguments={"a": 1}, inputs={})


def test_a_terminated_command_says_so_and_cleans_up(tmp_path: Path):
    """SIGTERM ends a command as an interrupt does: status 143, and its temporary files are gone."""
    code = (
        "import sys, time; from surgeon import cli, lineage\n"
        "def work(*_, **__):\n"
        "    print(lineage.scratch(), flush=True); time.sleep(60)\n"
        "cli.cli.main = work; cli.main(['x'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        scratch = Path(process.stdout.readline().strip())
        assert scratch.is_dir()
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate()
    assert process.returncode == cli.TERMINATED == 143
    assert words == "Terminated. The same command resumes where it was.\n"
    assert not scratch.exists()


def test_an_index_with_a_name_that_no_file_can_have(copy: Path):
    index = {"metadata": {}, "weight_map": {"a": "x" * 300}}
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match="lacks 1 of its 1 shards"):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "in.jsonl"),
        FileNotFoundError("No such file or directory: in.jsonl"),
        OSError(36, "File name too long", "in.jsonl"),
        OSError(116, "Stale file handle", "in.jsonl"),
    ],
    ids=str,
)
def test_a_file_that_went_away_is_told_in_one_line(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def work(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", work)
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert line.startswith("Error: a file can't be used any more (") and "in.jsonl" in line


@pytest.mark.parametrize(
    "row",
    [
        {**TRACE, "text": "x\ud800"},
        {"prompt": "x", "response": "y\ud800"},
        {"prompt": "x", "response": {"role": "assistant", "content": "y\ud800"}},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "\ud800"},
            ]
        },
    ],
    ids=["trace", "text", "message", "conversation"],
)
def test_half_a_character_in_an_answer(tmp_path: Path, row: dict[str, Any]):
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=r"found half a character \(\\ud800\)"):
        list(read_answered(file))


def test_half_a_character_in_a_response(tmp_path: Path):
    prompts = read_prompts("builtin:mini-set")[:1]
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"prompt_id": prompts[0].id, "responses": ["a", "\ud800"]}) + "\n"
    )
    tokenizer = resolve("builtin:instruct").tokenizer()
    with pytest.raises(BadInput, match="found half a character"):
        read_plain(tmp_path / "t.jsonl", prompts, tokenizer, Sampling(), {2})


def test_a_tokenizer_of_its_own_code_is_neither_run_nor_asked_about(
    copy: Path, monkeypatch: pytest.MonkeyPatch
):
    (copy / "evil.py").write_text("raise SystemExit('it ran')")
    settings = {
        "auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]},
        "tokenizer_class": "Evil",
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    try:
        tokenizer = Checkpoint(copy).tokenizer()
    except BadInput as error:
        assert "trust_remote_code" in str(error)
    else:
        assert type(tokenizer).__module__.startswith("transformers.")


def test_a_package_that_a_tokenizer_needs_is_told_to_be_installed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(*_: object, **__: object) -> None:
        raise ImportError("needs the protobuf library")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(BadInput, match=r"needs the protobuf library\)\. Install what is missing"):
        Checkpoint(copy).tokenizer()


def test_a_checkpoint_with_an_adapter_inside_is_refused(copy: Path):
    (copy / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(BadInput, match="holds a checkpoint and an adapter"):
        Checkpoint.open(copy)


def test_names_that_lead_out_of_a_result_are_refused(tmp_path: Path):
    entry = {"spec": "builtin:instruct", "name": "a", "path": None, "digest": "sha256:0"}
    member = {"ratio": 0.5, "merge": {}, "digest": "sha256:1"}
    family = {"name": "f", "methods": [], "dtype": None, "choices": {}, "seed": 0, "others": {},
              "endpoints": [entry, entry]}  # fmt: skip
    for name in ("../out", "/tmp/x", "a/b", "..", "", "a\\b", "a\0", "x" * 300):
        content = {**family, "candidates": [{**member, "name": name}]}
        (tmp_path / "family.json").write_text(json.dumps(content))
        with pytest.raises(BadInput, match=r"found candidates\.0\.name unusable .*plain file name"):
            Family.open(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 10**8},
        {"model_type": "qwen3_vl", "vision_config": {"depth": 10**8}},
        {"model_type": "bart", "decoder_layers": 1e9},
        {"model_type": "qwen3", "num_labels": 10**8},
        {"model_type": "mixtral", "num_local_experts": 10**9},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 20_000},
        {"model_type": "gpt2", "n_layer": 2000},
    ],
    ids=lambda config: str(config)[:50],
)
def test_a_config_that_asks_for_parts_without_end(copy: Path, config: dict[str, Any]):
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"config.json has (\w+ = |a list of )"):
        require_fit(Checkpoint.open(copy))


def test_the_config_of_an_adapter_has_one_order(tmp_path: Path):
    """PEFT writes a set as Python's hashes have it, so a resumed run's bytes would differ."""
    from peft import LoraConfig

    names = [f"{letter}_proj" for letter in "qkvouwxyz"]
    config = LoraConfig(r=2, target_modules=names)
    assert isinstance(config.target_modules, set)
    write_adapter_config(config, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(names)
    loaded: Any = LoraConfig.from_pretrained(str(tmp_path))
    assert loaded.target_modules == set(names)


@pytest.mark.parametrize("named", [True, {"a": 1}, [1], "x"], ids=str)
def test_architectures_of_another_kind(copy: Path, named: object):
    write(copy, architectures=named)
    with pytest.raises(BadInput, match="has architectures = "):
        Checkpoint.open(copy)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([[7], 10**9], [0, 8]), ([[[]], 2**64 - 1], [0, 8]), ([-1, -2], [0, 8]), ([2.0], [0, 8]),
     ([2], [0.0, 8.0]), ([True, 2], [0, 8]), ("2", [0, 8])],
    ids=str,
)  # fmt: skip
def test_sizes_in_a_header_that_are_no_whole_numbers(tmp_path: Path, shape: Any, offsets: Any):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
    text = json.dumps(header).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(BadInput, match="sizes that are no whole numbers"):
        read_header(file)


FAMILY = {
    "format": 1, "name": "f", "methods": ["slerp"], "dtype": None, "choices": {}, "seed": 0,
    "others": {},
    "endpoints": [
        {"spec": f"builtin:{name}", "name": name, "path": None, "digest": "sha256:0"}
        for name in ("instruct", "thinking")
    ],
    "candidates": [{"name": "instruct", "ratio": 0.0, "merge": {}, "digest": "sha256:0"}],
}  # fmt: skip


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"endpoints": FAMILY["endpoints"][:1]}, "found 1 endpoints, expected two"),
        ({"choices": {"../..": "first"}}, "found the choice"),
        ({"candidates": [FAMILY["candidates"][0] | {"ratio": float("inf")}]}, "the ratio inf"),
        ({"candidates": [FAMILY["candidates"][0] | {"ratio": 7.0}]}, "the ratio 7.0"),
    ],
)
def test_a_family_that_cant_be(tmp_path: Path, changes: dict[str, Any], said: str):
    (tmp_path / "family.json").write_text(json.dumps(FAMILY | changes))
    with pytest.raises(BadInput, match=said):
        Family.open(tmp_path)


@pytest.mark.parametrize("merge", [{"parameters": "p"}, {"models": ["a"]}, {"models": {"a": 1}}])
def test_a_merge_config_whose_parts_are_no_objects(tmp_path: Path, merge: dict[str, Any]):
    candidate = {"name": "m", "ratio": 0.5, "digest": "sha256:1",
                 "merge": {"merge_method": "slerp", "base_model": "a"} | merge}  # fmt: skip
    content = FAMILY | {"candidates": [candidate]}
    (tmp_path / "family.json").write_text(json.dumps(content))
    assert Family.open(tmp_path).candidates[0].mix is None


@pytest.mark.parametrize(
    "file, content",
    [
        ("curate.json", {"warnings": 2}),
        ("monitor.json", {"levels": {"intra": 1}, "tokens": {"mean": "x"}, "pass1": 3}),
        ("monitor.json", {"levels": [1], "tokens": 7}),
        ("transplant.json", {"units_L": ["a", 1], "of_units_L": 3, "warnings": 2}),
    ],
)
def test_show_reads_what_it_can_of_a_damaged_result(tmp_path: Path, file: str, content: Any):
    (tmp_path / file).write_text(json.dumps(content))
    assert kinds.kind_of(str(tmp_path)).facts is not None


@pytest.mark.parametrize("content", [{"format": 1}, {"format": 1, "responses": 3}])
def test_an_older_file_of_other_content(tmp_path: Path, content: dict[str, Any]):
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="found format 1 with other content"):
        artifact.read(CandidateScores, tmp_path)


@pytest.mark.parametrize(
    "text, said",
    [
        ("1: a\nmerge: {merge_method: slerp}", "found the key 1"),
        ("merge: {merge_method: 'os:getcwd'}\nsweep: {t: '0.1:0.9:0.4'}", "can't be called"),
    ],
)
def test_merge_configs_of_other_kinds(tmp_path: Path, text: str, said: str, capsys):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge-sweep", "builtin:instruct", "builtin:thinking", "--config",
                  str(tmp_path / "m.yaml"), "--out", str(tmp_path / "out")])  # fmt: skip
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_spec_that_no_directory_can_have():
    with pytest.raises(BadInput, match="File name too long"):
        resolve("x" * 400)


def test_a_text_config_without_layers(copy: Path):
    config = json.loads((copy / "config.json").read_text())
    del config["num_hidden_layers"], config["layer_types"]
    (copy / "config.json").write_text(json.dumps(config | {"text_config": {"rope_theta": 1e4}}))
    with pytest.raises(BadInput):
        _ = Checkpoint.open(copy).n_layers


@pytest.mark.parametrize("back", [False, True], ids=["gone", "back at the end"])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocabulary.txt"])
def test_a_side_file_that_goes_away_while_its_checkpoint_is_copied(
    tmp_path: Path, monkeypatch, capsys, name: str, back: bool
):
    """The copy would lack it, and the record would say that it was there."""
    monkeypatch.chdir(tmp_path)
    for place, checkpoint in (("a", "instruct"), ("b", "thinking")):
        shutil.copytree(builtin.path(checkpoint), place)
    file, aside = Path("a", name), Path("aside")
    if not file.exists():
        file.write_text("of the checkpoint")
    begin, finish = lineage.begin, lineage.finish

    def begun(out: str | Path, **run: Any) -> Path | None:
        if file.exists():
            file.rename(aside)
        return begin(out, **run)

    def finished(partial: Path, out: str | Path) -> None:
        if back and aside.exists():
            aside.rename(file)
        finish(partial, out)

    monkeypatch.setattr(lineage, "begin", begun)
    monkeypatch.setattr(lineage, "finish", finished)
    command = ["merge-sweep", "a", "b", "--ratios", "0.5", "--no-smoke", "--out", "family"]
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and name in said and "ut it back" in said
    assert not Path("family").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    if aside.exists():
        aside.rename(file)
    cli.main(command)
    assert Path("family", "slerp-0.5", name).read_bytes() == file.read_bytes()


def test_a_side_file_that_goes_away_is_missed_by_digest_copy_and_edit(tmp_path: Path):
    place, out = tmp_path / "a", tmp_path / "out"
    shutil.copytree(builtin.path("instruct"), place)
    out.mkdir()
    checkpoint = Checkpoint.open(place)
    (place / "tokenizer.json").unlink()
    for use in (
        lambda: checkpoint.digest,
        lambda: checkpoint.copy_side_files(out),
        lambda: rewrite(checkpoint, out, lambda _, tensor: tensor, lambda _: False),
    ):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
            use()
