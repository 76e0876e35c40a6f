"""`sweep`: what it refuses before writing, what it writes, and how it goes on after a kill."""

import copy
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config
from transformers.utils import logging as hf_logging

import surgeon.merge
from surgeon import lineage
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import Family, merge_methods, subjects, write_out
from surgeon.families.merge_methods import falls_back
from surgeon.live.families import live
from surgeon.merge import mergekit, preflight, sweep
from surgeon.merge.members import from_config, parse_ratios

MERGES = Path(__file__).parent.parent / "merges"
Pair = tuple[Path, Path]


def run(pair: Pair, out: Path, **options: Any) -> surgeon.merge.SweepReport:
    """A small sweep without smoke tests, unless the options say otherwise."""
    settings: dict[str, Any] = {"ratios": "0.25,0.5", "smoke": False, **options}
    return sweep(str(pair[0]), str(pair[1]), out=out, **settings)


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Every path below `root` with its size and modification time."""
    return {
        str(p.relative_to(root)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in sorted(root.rglob("*"))
        if not p.is_dir()
    }


def stored(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint.open(path)
    return checkpoint.read_many(list(checkpoint.tensors))


def equal(one: Path, two: Path) -> bool:
    first, second = stored(one), stored(two)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(path: Path, edit: Any) -> None:
    for file in path.glob("*.safetensors"):
        save_file(edit(load_file(file)), file, metadata={"format": "pt"})


# ------------------------------------------------------------------------------------- the plan


@given(start=st.integers(0, 100), steps=st.integers(0, 60), step=st.integers(1, 40))
def test_ratio_ranges_are_exact_decimals_with_both_ends(start: int, steps: int, step: int) -> None:
    stop = start + steps * step
    if stop > 100:
        return
    text = f"{start / 100}:{stop / 100}:{step / 100}"
    wanted = [Decimal(start + i * step) / 100 for i in range(steps + 1)]
    assert parse_ratios(text) == wanted


@given(st.lists(st.decimals(0, 1, places=3), min_size=1, max_size=8))
def test_ratio_lists_are_sorted_and_each_ratio_is_there_once(values: list[Decimal]) -> None:
    assert parse_ratios(" , ".join(map(str, values))) == sorted(set(values))


@given(st.text("0123456789.:,-eE naif", max_size=12))
def test_any_other_ratio_text_is_bad_input(text: str) -> None:
    try:
        values = parse_ratios(text)
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert values and all(0 <= v <= 1 for v in values)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ("", "neither start:stop:step"),
        ("0.1:0.9", "neither start:stop:step"),
        ("half", "neither start:stop:step"),
        ("0.1:0.9:0", "positive step"),
        ("0.9:0.1:0.1", "start <= stop"),
        ("0.5,1.5", r"ratio 1\.5 lies outside"),
        ("0:1:0.00001", "100001 candidates"),
        ("nan", "neither"),
        ("inf:1:1", "neither"),
    ],
)
def test_bad_ratios_say_what_was_expected(ratios: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_ratios(ratios)


@pytest.mark.parametrize(
    ("file", "count"), [("slerp", 19), ("linear", 19), ("methods", 8), ("qwen3-4b", 17)]
)
def test_shipped_configs_have_the_candidates_their_comments_say(file: str, count: int) -> None:
    plan = from_config(MERGES / f"{file}.yaml", None)
    assert len(plan.members) == count
    assert len({m.name for m in plan.members}) == count
    assert {p.stem for p in MERGES.glob("*.yaml")} == {"slerp", "linear", "methods", "qwen3-4b"}


def test_the_papers_family_names_its_endpoints() -> None:
    plan = from_config(MERGES / "qwen3-4b.yaml", None)
    assert plan.endpoints == ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-4B-Thinking-2507")
    assert {m.merge["merge_method"] for m in plan.members} == {"slerp", "linear"}


def config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "merge.yaml"
    file.write_text(text)
    return file


SLERP = "merge: {merge_method: slerp, base_model: a, models: [{model: a}, {model: b}], "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no valid YAML"),
        ("", "found no mapping"),
        ("merge: 3", "found merge = 3, expected"),
        ("merge: {merge_method: slerp}\nsweeps: {}", "has no setting 'sweeps'"),
        ("merge: {models: []}", "names no merge_method"),
        (SLERP + 'parameters: {t: "${t}"}}', r"\$\{t\} stands in `merge:`"),
        (SLERP + "parameters: {t: 0.5}}\nsweep: {t: [0.1]}", r"no \$\{t\} stands"),
        (SLERP + 'parameters: {t: "${t}"}}\nsweep: {t: 0.5}', "expected start:stop:step or a list"),
        (SLERP + 'parameters: {t: "x${t}"}}\nsweep: {t: [0.5]}', "mixes a swept value with text"),
        (SLERP + 'parameters: {t: "${t}"}}\nsweep: {t: [0.5, 0.50]}', "two candidates would be"),
        (SLERP + 'parameters: {t: "${1-t}"}}\nsweep: {t: [x]}', "needs a number"),
        (SLERP + "parameters: {t: 0.5}}\nendpoints: [a]", "found endpoints = .*expected"),
        (SLERP + "parameters: {t: 0.5}}\nsweep: [1]", "found sweep = .*expected names with values"),
    ],
)
def test_bad_merge_configs_name_the_file_and_the_key(
    tmp_path: Path, text: str, message: str
) -> None:
    file = config(tmp_path, text)
    with pytest.raises(BadInput, match=message) as caught:
        from_config(file, None)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_under_merge_stays_a_layer_gradient(tmp_path: Path) -> None:
    text = SLERP + 'parameters: {t: [0, "${t}", 1]}}\nsweep: {t: 0.2:0.4:0.2}'
    plan = from_config(config(tmp_path, text), None)
    assert [m.merge["parameters"]["t"] for m in plan.members] == [[0, 0.2, 1], [0, 0.4, 1]]
    assert [(m.name, m.ratio) for m in plan.members] == [("slerp-0.2", 0.2), ("slerp-0.4", 0.4)]


# ------------------------------------------------------------------------------------ the sweep


def test_a_sweep_writes_whole_checkpoints_and_describes_them(pico_pair: Pair, tmp_path) -> None:
    report = run(pico_pair, tmp_path / "f", method=("slerp", "linear"), smoke=True)
    family = report.family
    assert family is not None and not (tmp_path / "f.partial").exists()
    names = ["a", "slerp-0.25", "slerp-0.5", "linear-0.25", "linear-0.5", "b"]
    assert [c.name for c in family.candidates] == names
    assert [c.ratio for c in family.candidates] == [0, 0.25, 0.5, 0.25, 0.5, 1]
    assert report.written == tuple(names[1:-1]) and report.kept == ()
    for candidate, path in zip(family.candidates[1:-1], report.written, strict=True):
        made = lineage.read(tmp_path / "f" / path)
        assert made is not None and made["candidate_digest"] == candidate.digest
        assert list(made["inputs"].values()) == list(family.endpoint_digests)
    for subject, model, tokenizer in live(subjects([str(tmp_path / "f")])):
        assert model(input_ids=torch.tensor([[1, 5, 9]])).logits.isfinite().all(), subject
        assert tokenizer.chat_template


def test_the_second_run_does_nothing_and_says_so(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "f")
    before = tree(tmp_path / "f")
    report = run(pico_pair, tmp_path / "f")
    assert tree(tmp_path / "f") == before
    assert report.written == () and report.kept == ("slerp-0.25", "slerp-0.5")
    assert "0 candidates written, 2 kept" in report.lines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": "0.25,0.75"}, r"ratios is \[\"0.25\", \"0.5\"\] there"),
        ({"method": "linear"}, "methods"),
        ({"dtype": "float32"}, 'dtype is null there and "float32" here'),
        ({"template": "second"}, "choices.template"),
        ({"virtual": True}, "virtual is false there and true here"),
    ],
)
def test_other_arguments_stop_with_the_difference(
    pico_pair: Pair, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(pico_pair, tmp_path / "f")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match=message):
        run(pico_pair, tmp_path / "f", **change)
    assert tree(tmp_path) == before


def test_a_changed_endpoint_stops_with_the_difference(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "f")
    edit_tensors(pico_pair[1], lambda t: {k: v * 2 for k, v in t.items()})
    with pytest.raises(BadInput, match=r"inputs\.b is \"sha256:"):
        run(pico_pair, tmp_path / "f")


def test_out_that_is_not_ours_is_left_alone(pico_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "precious.txt").write_text("x")
    with pytest.raises(BadInput, match="was not written by surgeon"):
        run(pico_pair, tmp_path / "f")
    assert [p.name for p in (tmp_path / "f").iterdir()] == ["precious.txt"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(pico_pair: Pair, tmp_path: Path) -> None:
    before = tree(tmp_path)
    report = run(pico_pair, tmp_path / "f", dry_run=True)
    assert tree(tmp_path) == before and not (tmp_path / "f.partial").exists()
    text = "\n".join(report.lines())
    assert report.family is None
    for part in ("slerp-0.25, slerp-0.5", "first: a (qwen3", "falls back to linear", "Dry run"):
        assert part in text


def test_a_virtual_family_is_only_described_and_has_the_written_ones_digests(
    pico_pair: Pair, tmp_path: Path
) -> None:
    written = run(pico_pair, tmp_path / "w").family
    virtual = run(pico_pair, tmp_path / "v", virtual=True).family
    assert written is not None and virtual is not None and virtual.virtual
    files = {p.name for p in (tmp_path / "v").rglob("*")}
    assert files == {"family.json", "surgeon.json", "cosines.json"}
    assert [c.digest for c in virtual.candidates] == [c.digest for c in written.candidates]
    (subject,) = subjects([f"{tmp_path / 'v'}#slerp-0.25"])
    made = write_out(subject, tmp_path / "best")
    assert equal(made, tmp_path / "w" / "slerp-0.25")
    for file in (tmp_path / "w" / "slerp-0.25").iterdir():
        if file.name == "surgeon.json":  # where and by which command isn't the candidate's
            mine, other = (json.loads(f.read_bytes()) for f in (made / file.name, file))
            left_out = dict.fromkeys(("command", "directory"))
            assert {**mine, **left_out} == {**other, **left_out}
        else:
            assert (made / file.name).read_bytes() == file.read_bytes()


def test_the_share_of_tensors_that_fall_back_is_counted(pico_pair: Pair, tmp_path: Path) -> None:
    report = run(pico_pair, tmp_path / "f", dry_run=True)
    a, b = stored(pico_pair[0]), stored(pico_pair[1])
    near = [
        torch.nn.functional.cosine_similarity(a[k].double().ravel(), b[k].double().ravel(), 0)
        for k in a
    ]
    linear = [falls_back(float(c)) for c in near]
    assert report.plan.fallback is not None and 0 < sum(linear) < len(a)
    assert report.plan.fallback[:2] == (sum(linear), len(a))
    assert report.plan.fallback.parameters == sum(
        t.numel() for t, is_linear in zip(a.values(), linear, strict=True) if is_linear
    )


def test_another_dtype_merges_the_ends_too(pico_pair: Pair, tmp_path: Path) -> None:
    family = run(pico_pair, tmp_path / "f", ratios="0.5", dtype="float32", smoke=True).family
    assert family is not None
    assert [c.name for c in family.candidates] == ["slerp-0", "slerp-0.5", "slerp-1"]
    assert family.candidates[0].digest != family.endpoint_digests[0]
    ends = stored(tmp_path / "f" / "slerp-0")
    assert all(torch.equal(ends[k], v.float()) for k, v in stored(pico_pair[0]).items())
    assert Checkpoint.open(tmp_path / "f" / "slerp-0").config["dtype"] == "float32"


def test_a_candidate_that_fails_its_smoke_test_is_named_and_not_published(
    pico_pair: Pair, tmp_path: Path
) -> None:
    edit_tensors(pico_pair[1], lambda t: {k: v.fill_(float("inf")) for k, v in t.items()})
    with pytest.raises(
        BadInput, match=r"linear-0\.5 failed its smoke test .* not finite"
    ) as caught:
        run(pico_pair, tmp_path / "f", method="linear", ratios="0.5", smoke=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "f.partial" / "linear-0.5").exists()


# --------------------------------------------------------------------------------- after a kill


@pytest.mark.parametrize("kill_at", range(1, 15, 2))
def test_a_killed_sweep_goes_on_where_it_was(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Killed at the n-th rename: shards, side files and candidates are all renamed into place."""
    reference = run(pico_pair, tmp_path / "whole")
    real = os.replace
    calls: list[str] = []

    def killed(source: Any, target: Any) -> None:
        calls.append(str(target))
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(pico_pair, tmp_path / "f")
    monkeypatch.undo()
    assert not (tmp_path / "f").exists()
    partial = tmp_path / "f.partial"
    kept = {k: v for k, v in tree(partial).items() if k.startswith("slerp-") and "/." not in k}
    whole = {k: v for k, v in kept.items() if k.endswith(".safetensors") and ".tmp" not in k}
    report = run(pico_pair, tmp_path / "f")
    after = tree(tmp_path / "f")
    for name, entry in whole.items():
        assert after[name.replace(".partial", "")] == entry  # a finished shard isn't written again
    assert report.family is not None and reference.family is not None
    for candidate in ("slerp-0.25", "slerp-0.5"):
        assert equal(tmp_path / "f" / candidate, tmp_path / "whole" / candidate)
        hidden = [p.name for p in (tmp_path / "f" / candidate).iterdir() if p.name[0] == "."]
        assert hidden == []
    assert not list(tmp_path.rglob("*.partial"))


def test_published_candidates_are_kept_and_one_of_another_recipe_stops(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Path] = []

    def failing(path: Path) -> None:
        if published:
            raise KeyboardInterrupt
        published.append(path)

    monkeypatch.setattr("surgeon.merge.parted.smoke_test", failing)
    with pytest.raises(KeyboardInterrupt):
        run(pico_pair, tmp_path / "f", smoke=True)
    monkeypatch.undo()
    first = tmp_path / "f.partial" / "slerp-0.25"
    before = tree(first)
    saved = (first / "surgeon.json").read_text()
    made = json.loads(saved)
    made["arguments"]["merge"]["parameters"]["t"] = 0.2
    (first / "surgeon.json").write_text(json.dumps(made))
    with pytest.raises(BadInput, match=r"merge\.parameters\.t is 0\.2 there and 0\.25 here"):
        run(pico_pair, tmp_path / "f", smoke=True)
    (first / "surgeon.json").write_text(saved)
    then = before["surgeon.json"][1]
    os.utime(first / "surgeon.json", ns=(then, then))
    report = run(pico_pair, tmp_path / "f", smoke=True)
    assert report.kept == ("slerp-0.25",) and report.written == ("slerp-0.5",)
    assert tree(tmp_path / "f" / "slerp-0.25") == before


# ------------------------------------------------------------------------------- what is refused


def untie(path: Path) -> None:
    edit_json(path / "config.json", tie_word_embeddings=False)


def widen(path: Path) -> None:
    edit_tensors(
        path,
        lambda t: {
            k: torch.cat([v, v[:4]]) if k == "model.embed_tokens.weight" else v
            for k, v in t.items()
        },
    )
    edit_json(path / "config.json", vocab_size=132)


def drop_norm(path: Path) -> None:
    edit_tensors(path, lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"})
    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={k: v for k, v in weight_map.items() if k != "model.norm.weight"})


def other_word(path: Path) -> None:
    file = path / "tokenizer.json"
    text = json.loads(file.read_text())
    text["model"]["vocab"] = {
        {"w0": "zero", "w1": "one"}.get(k, k): v for k, v in text["model"]["vocab"].items()
    }
    file.write_text(json.dumps(text))


def to_float32(path: Path) -> None:
    edit_tensors(path, lambda t: {k: v.float() for k, v in t.items()})


def quantize(path: Path) -> None:
    edit_json(path / "config.json", quantization_config={"quant_method": "fp8"})


def poison(path: Path) -> None:
    edit_tensors(path, lambda t: {k: v.fill_(float("nan")) for k, v in t.items()})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: edit_json(p / "config.json", architectures=["LlamaForCausalLM"]),
            "architectures differ: .* is Qwen3ForCausalLM .* is LlamaForCausalLM",
        ),
        (untie, "tie_word_embeddings is false"),
        (widen, r"embed_tokens.weight has shape \[128, 32\] .* \[132, 32\] .* vocabularies"),
        (drop_norm, r"lacks 1 weights .*, first model\.norm\.weight"),
        (to_float32, "is BF16 in .* and F32 in .* --dtype"),
        (quantize, r"are quantised \(fp8\), and the files hold no scales"),
        (other_word, r'differ: id \d+ is "w0" and "zero"; id \d+ is "w1" and "one"'),
        (lambda p: (p / "tokenizer.json").unlink(), "b has no tokenizer.json"),
        (poison, "holds NaN or infinity"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "model-00002-of-00004.safetensors").unlink(), "lacks 1 of its 4 shards"),
    ],
)
def test_endpoints_that_do_not_fit_are_refused_before_a_byte_is_written(
    pico_pair: Pair, tmp_path: Path, spoil: Any, message: str
) -> None:
    spoil(pico_pair[1])
    before = tree(tmp_path)
    with pytest.raises(BadInput, match=message) as caught:
        run(pico_pair, tmp_path / "f")
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before and not (tmp_path / "f.partial").exists()


def test_integer_tensors_must_agree(make_checkpoint, tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a")
    b = make_checkpoint(tmp_path / "b", seed=1, noise_from=a)
    for i, path in enumerate((a, b)):
        edit_tensors(path, lambda t, i=i: t | {"steps": torch.tensor([i])})
    with pytest.raises(BadInput, match=r"integer tensor steps differs"):
        run((a, b), tmp_path / "f")


def test_an_architecture_nobody_knows_is_refused_by_name(pico_pair: Pair, tmp_path: Path) -> None:
    for path in pico_pair:
        edit_json(path / "config.json", model_type="qwen9", architectures=["Qwen9ForCausalLM"])
    with pytest.raises(BadInput, match="does not know the architecture 'qwen9'"):
        run(pico_pair, tmp_path / "f")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "ties"},
            "found method = ties, expected one of: slerp, linear;",
        ),
        ({"method": ("slerp", "slerp")}, "each of them once"),
        ({"method": ()}, "methods none"),
        ({"dtype": "int8"}, "found dtype = int8, expected one of: float64"),
        ({"template": "third"}, "found template = third, expected one of: first, second"),
        ({"engine": "slow"}, "found engine = slow, expected one of: fast, mergekit"),
        ({"engine": "mergekit", "virtual": True}, "can't be virtual"),
        ({"config": "no.yaml"}, r"no\.yaml: no such file"),
    ],
)
def test_bad_options_are_refused(
    pico_pair: Pair, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(pico_pair, tmp_path / "f", **options)
    assert not (tmp_path / "f.partial").exists()


def test_a_checkpoint_is_no_family_with_itself(pico_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs two different checkpoints"):
        run((pico_pair[0], pico_pair[0]), tmp_path / "f")
    with pytest.raises(BadInput, match="needs two endpoints"):
        sweep(str(pico_pair[0]), out=tmp_path / "f")


def test_too_small_a_disk_is_refused_before_a_byte_is_written(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(BadInput, match=r"needs .* GB and .* has 0\.00 GB free"):
        run(pico_pair, tmp_path / "f")
    assert not (tmp_path / "f.partial").exists()


# --------------------------------------------------------------------------- choices and notices


def test_differences_are_said_aloud_and_choices_recorded(pico_pair: Pair, tmp_path: Path) -> None:
    b = pico_pair[1]
    (b / "chat_template.jinja").write_text("{{ messages }}")
    edit_json(b / "generation_config.json", temperature=0.6)
    edit_json(b / "tokenizer_config.json", eos_token="<pad>")
    edit_json(b / "config.json", rms_norm_eps=0.1)
    report = run(pico_pair, tmp_path / "f", template="second")
    text = "\n".join(report.plan.notices)
    assert "chat templates differ between a and b, first in line 1" in text
    assert "candidates take the template of b (--template)" in text
    assert "generation configs differ between a and b: temperature (None and 0.6)" in text
    assert 'eos_token differs between a and b: "<|im_end|>" and "<pad>"' in text
    assert "configs differ between a and b: rms_norm_eps" in text
    assert report.family is not None and report.family.choices.template == "second"
    made = tmp_path / "f" / "slerp-0.5"
    assert (made / "chat_template.jinja").read_text() == "{{ messages }}"
    assert "temperature" not in Checkpoint.open(made).generation_config
    recorded = lineage.read(tmp_path / "f")
    assert recorded is not None and recorded["arguments"]["choices"]["template"] == "second"


def test_equal_endpoints_give_no_notice(pico_pair: Pair, tmp_path: Path) -> None:
    assert run(pico_pair, tmp_path / "f", dry_run=True).plan.notices == ()


def test_an_explicit_tokenizer_accepts_vocabularies_that_differ(
    pico_pair: Pair, tmp_path: Path
) -> None:
    other_word(pico_pair[1])
    report = run(pico_pair, tmp_path / "f", tokenizer="second")
    assert "candidates take the tokenizer of b" in report.plan.notices[0]
    written = Checkpoint.open(tmp_path / "f" / "slerp-0.5")
    assert preflight.vocabulary(written) == preflight.vocabulary(Checkpoint.open(pico_pair[1]))


# --------------------------------------------------------------------------------- by mergekit


def test_the_mergekit_engine_writes_the_same_family(pico_pair: Pair, tmp_path: Path) -> None:
    fast = run(pico_pair, tmp_path / "fast", method=("slerp", "linear")).family
    slow = run(
        pico_pair, tmp_path / "slow", method=("slerp", "linear"), engine="mergekit", smoke=True
    ).family
    assert fast is not None and slow is not None
    for one, two in zip(fast.candidates, slow.candidates, strict=True):
        here, there = fast.directory(one), slow.directory(two)
        assert one.digest == two.digest and here is not None and there is not None
        assert equal(here, there)
        assert Checkpoint.open(here).shards == Checkpoint.open(there).shards
        assert {p.name for p in here.iterdir()} == {p.name for p in there.iterdir()}


def test_transformers_line_about_the_name_that_mergekit_sets_is_left_out() -> None:
    handler = logging.StreamHandler(lines := io.StringIO())  # one of its own: under CI=1 the lines
    hf_logging.add_handler(handler)  # of transformers reach pytest's once more
    try:
        for context, said in ((mergekit._old_name_unsaid(), 0), (nullcontext(), 1)):
            hf_logging.warning_once.cache_clear()  # it is said once in a process
            with context:
                Qwen3Config().torch_dtype = torch.float32
            assert lines.getvalue().count("`torch_dtype` is deprecated") == said
    finally:
        hf_logging.remove_handler(handler)


def test_config_families_are_written_by_mergekit_with_their_seed(
    pico_pair: Pair, tmp_path: Path
) -> None:
    file = MERGES / "methods.yaml"
    family = run(pico_pair, tmp_path / "f", config=file, smoke=True).family
    assert family is not None
    names = [c.name for c in family.candidates]
    assert names[1:3] == ["ties-t0.5-density0.2", "ties-t0.5-density0.5"]
    assert family.methods == ("ties", "dare_linear", "slerp")
    dare_only = config(tmp_path, file.read_text().split("---")[1])
    again = run(pico_pair, tmp_path / "g", config=dare_only).family
    other = run(pico_pair, tmp_path / "h", config=dare_only, seed=1).family
    assert again is not None and other is not None
    dare = {f.name: f.path / "dare_linear-0.5" for f in (family, again, other)}
    assert equal(dare["f"], dare["g"]) and not equal(dare["f"], dare["h"])
    assert family.candidate("dare_linear-0.5").digest != other.candidate("dare_linear-0.5").digest
    assert "path" not in yaml.safe_load((dare["f"] / "mergekit_config.yml").read_text())
    assert str(tmp_path) not in (dare["f"] / "mergekit_config.yml").read_text()


def test_plain_configs_take_the_fast_path_and_can_be_virtual(
    pico_pair: Pair, tmp_path: Path
) -> None:
    family = run(pico_pair, tmp_path / "f", config=MERGES / "slerp.yaml", virtual=True).family
    flags = run(pico_pair, tmp_path / "g", ratios="0.05:0.95:0.05", virtual=True).family
    assert family is not None and flags is not None
    assert [c.digest for c in family.candidates] == [c.digest for c in flags.candidates]
    with pytest.raises(BadInput, match=r"ties-t0\.5-density0\.2 can't be virtual"):
        run(pico_pair, tmp_path / "h", config=MERGES / "methods.yaml", virtual=True)


def test_a_config_may_name_a_third_model(pico_pair: Pair, make_checkpoint, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", shards=3)
    text = {
        "merge": {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": m, "parameters": {"weight": "${t}"}} for m in ("a", "b")],
        },
        "sweep": {"t": [0.5]},
    }
    file = config(tmp_path, yaml.safe_dump(text))
    family = run(pico_pair, tmp_path / "f", config=file).family
    assert family is not None
    assert family.others == {str(base): Checkpoint.open(base).digest}
    written = (tmp_path / "f" / "task_arithmetic-0.5" / "mergekit_config.yml").read_text()
    assert "base_model: base" in written and str(tmp_path) not in written


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"merge_method": "magic"}, "mergekit refuses the merge 'magic'"),
        ({"merge_method": "ties"}, "mergekit can't merge ties"),
        ({"merge_method": "slerp", "slices": []}, "mergekit refuses the merge 'slerp'"),
    ],
)
def test_what_mergekit_refuses_is_one_line(
    pico_pair: Pair, tmp_path: Path, merge: dict[str, Any], message: str
) -> None:
    models = {} if "slices" in merge else {"models": [{"model": "a"}, {"model": "b"}]}
    file = config(tmp_path, yaml.safe_dump({"merge": {**merge, **models}}))
    with pytest.raises(BadInput, match=message) as caught:
        run(pico_pair, tmp_path / "f", config=file)
    assert "\n" not in str(caught.value)


def test_a_moe_by_mergekit_comes_out_fused_and_equal(make_checkpoint, tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "a", "qwen3_moe", tied=False)
    b = make_checkpoint(tmp_path / "b", "qwen3_moe", tied=False, seed=1, noise_from=a)
    run((a, b), tmp_path / "fast", ratios="0.5", smoke=True)
    run((a, b), tmp_path / "slow", ratios="0.5", engine="mergekit", smoke=True)
    models: list[Any] = [
        Checkpoint.open(tmp_path / how / "slerp-0.5").model() for how in ("fast", "slow")
    ]
    one, two = (m.state_dict() for m in models)
    assert all(torch.equal(one[k], two[k]) for k in one)


# ---------------------------------------------------------------------- endpoints and the outside


def test_an_adapter_endpoint_is_merged_and_kept_with_the_family(
    pico_pair: Pair, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = Checkpoint.open(pico_pair[0]).model()
    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(tmp_path / "lora"))
    spec = f"{pico_pair[0]}+{tmp_path / 'lora'}"
    report = sweep(str(pico_pair[0]), spec, out=tmp_path / "f", ratios="0.5", smoke=False)
    assert report.family is not None
    assert [c.name for c in report.family.candidates] == ["a", "slerp-0.5", "a+lora"]
    assert (tmp_path / "f" / "endpoints" / "a+lora" / "config.json").is_file()
    again = Family.open(tmp_path / "f")
    again.require_unchanged()
    assert not equal(tmp_path / "f" / "slerp-0.5", pico_pair[0])
    assert [s.name for s in subjects([str(tmp_path / "f")])] == ["a", "slerp-0.5", "a+lora"]


def test_nothing_outside_out_is_written_and_the_network_is_not_asked(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = tree(tmp_path)
    # Relative names, which mergekit's model card would look up on the hub.
    monkeypatch.chdir(tmp_path)
    runs: dict[str, dict[str, Any]] = {"f": {}, "g": {"engine": "mergekit"}, "h": {"virtual": True}}
    for out, options in runs.items():
        sweep("a", "b", out=out, ratios="0.5", **options)
    after = {
        name: entry
        for name, entry in tree(tmp_path).items()
        if name.split("/")[0] not in ("f", "g", "h")
    }
    assert after == before


ELECT, ORTHOGONAL = "examples.my_merge:elect", "examples.my_merge:orthogonal"


def test_a_method_of_ones_own_is_the_same_written_and_virtual(
    pico_pair: Pair, tmp_path: Path
) -> None:
    from examples.my_merge import elect, orthogonal

    written = run(pico_pair, tmp_path / "f", method=(ELECT, ORTHOGONAL), ratios="0.3").family
    virtual = run(
        pico_pair, tmp_path / "v", method=(ELECT, ORTHOGONAL), ratios="0.3", virtual=True
    ).family
    assert written is not None and virtual is not None
    names = [c.name for c in written.candidates]
    assert names == ["a", "elect-0.3", "orthogonal-0.3", "b"]
    assert [c.digest for c in written.candidates] == [c.digest for c in virtual.candidates]
    a, b = (Checkpoint.open(path) for path in pico_pair)
    for name, function in (("elect-0.3", elect), ("orthogonal-0.3", orthogonal)):
        made = Checkpoint.open(tmp_path / "f" / name)
        for key in a.tensors:
            first, second = (c.tensor(key).float().flatten() for c in (a, b))
            cosine = {"cosine": written.cosines[key]} if function is orthogonal else {}
            expected = function(first, second, 0.3, **cosine).bfloat16()
            assert torch.equal(made.tensor(key).flatten(), expected), key
    live_models = {s.name: model.state_dict() for s, model, _ in _copies(tmp_path / "v")}
    for name in ("elect-0.3", "orthogonal-0.3"):
        on_disk: Any = Checkpoint.open(tmp_path / "f" / name).model()
        for key, tensor in on_disk.state_dict().items():
            assert torch.equal(tensor, live_models[name][key]), key


def _copies(path: Path) -> list[tuple[Any, Any, Any]]:
    """Every subject of a family with a model of its own."""
    found = live(subjects([str(path)]))
    return [(subject, copy.deepcopy(model), tokenizer) for subject, model, tokenizer in found]


def test_a_config_may_name_a_method_of_ones_own(pico_pair: Pair, tmp_path: Path) -> None:
    merge = {
        "merge_method": ELECT, "base_model": "a", "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": "${t}"},
    }  # fmt: skip
    file = config(tmp_path, yaml.safe_dump({"merge": merge, "sweep": {"t": [0.3]}}))
    report = run(pico_pair, tmp_path / "f", config=file)
    assert report.written == ("elect-0.3",) and not report.plan.by_mergekit


def test_a_family_that_was_read_runs_no_code_of_the_current_directory(
    pico_pair: Pair, tmp_path: Path
) -> None:
    """As `surgeon` starts: the current directory isn't on the Python path."""
    (tmp_path / "found_beside.py").write_text("def merge(a, b, t):\n    return a + t * (b - a)\n")
    sweep_here = (
        "from surgeon.merge import sweep\n"
        "sweep('a', 'b', out='f', method='found_beside:merge', ratios='0.5', virtual=True)\n"
    )
    read = (
        "from surgeon.families import subjects, write_out\n"
        "write_out(subjects(['f/family.json#merge-0.5'])[0], 'out')\n"
    )
    root = str(Path(__file__).parents[1])

    def start(code: str, *path: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((root, *path)),
            "PYTHONSAFEPATH": "1",
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    assert start(sweep_here).returncode == 0
    refused = start(read)
    assert refused.returncode != 0 and "PYTHONPATH=." in refused.stderr
    assert not (tmp_path / "out").exists()
    assert start(read, ".").returncode == 0 and (tmp_path / "out" / "config.json").is_file()
    (tmp_path / "found_beside.py").write_text("def merge(a, b, t):\n    return a - t * (b - a)\n")
    edited = start(read.replace("'out'", "'again'"), ".")
    assert edited.returncode != 0 and "the code of found_beside:merge changed" in edited.stderr


def returns_less(a: Any, b: Any, t: float) -> Any:
    return (a + b)[:1]


def edits(a: Any, b: Any, t: float) -> Any:
    return a.add_(b)


def looks_around(a: Any, b: Any, t: float) -> Any:
    return a + t * b / b.norm()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("returns_less", "expected a tensor of its inputs' shape"),
        ("edits", "changes its inputs"),
        ("looks_around", "a part of a tensor otherwise than the whole"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_method_that_breaks_the_rules_is_refused(
    pico_pair: Pair, tmp_path: Path, method: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(pico_pair, tmp_path / "f", method=f"{__name__}:{method}")
    assert not (tmp_path / "f.partial").exists()


def test_a_row_is_all_that_a_method_needs(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(t: float, cosine: float, dtype: torch.dtype) -> tuple[float, ...]:
        return -t, 1 + t

    monkeypatch.setitem(
        merge_methods.METHODS, "beyond", merge_methods.MergeMethod(beyond, merge_methods.weigh)
    )
    family = run(pico_pair, tmp_path / "f", method="beyond", ratios="0.5").family
    assert family is not None and [c.name for c in family.candidates] == ["a", "beyond-0.5", "b"]
    a, b = (Checkpoint.open(path) for path in pico_pair)
    for key in a.tensors:
        expected = 1.5 * b.tensor(key).float() - 0.5 * a.tensor(key).float()
        made = Checkpoint.open(tmp_path / "f" / "beyond-0.5").tensor(key)
        assert torch.equal(made, expected.bfloat16()), key


def test_a_virtual_family_without_its_cosines_is_written_out_all_the_same(
    pico_pair: Pair, tmp_path: Path
) -> None:
    run(pico_pair, tmp_path / "f", ratios="0.5", virtual=True)
    named = f"{tmp_path / 'f' / 'family.json'}#slerp-0.5"
    first = write_out(subjects([named])[0], tmp_path / "one")
    (tmp_path / "f" / "cosines.json").unlink()
    second = write_out(subjects([named])[0], tmp_path / "two")
    assert Checkpoint.open(first).digest == Checkpoint.open(second).digest


def test_a_family_of_another_format_is_refused_and_one_without_is_read(
    pico_pair: Pair, tmp_path: Path
) -> None:
    run(pico_pair, tmp_path / "f", ratios="0.5", virtual=True)
    file = tmp_path / "f" / "family.json"
    content = json.loads(file.read_text())
    assert content.pop("format") == 1
    file.write_text(json.dumps(content))
    assert len(Family.open(file).candidates) == 3
    file.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(BadInput, match="found format 7"):
        Family.open(file)
