"""`surgeon trigger sft`: rows that are trained, exact resume, and the monitor that is carried."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trigger_labels import (
    MODEL,
    TRIGGERS,
    lines,
    make_labels,
    random_labels,
    write_examples,
)

from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.monitor import monitor as watch
from surgeon.trigger import detectors, identify, reconstruct, sft, show_sft
from surgeon.trigger.artifacts import read_labels
from surgeon.trigger.detecting import fit_detectors
from surgeon.trigger.tuning import prepare
from surgeon.watch.monitor import Monitor

SMALL: dict[str, Any] = dict(
    batch_size=4, micro_batch=2, held_out=0.2, lr=1e-2, rank=4, save_every=2
)
QUICK: dict[str, Any] = dict(updates=20, hidden=8, instance_steps=2, probes=6)


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory, make_checkpoint) -> Path:
    """Checkpoints `tied` and `untied` with 8 reserved rows, `full` without, and examples; read
    only."""
    root = tmp_path_factory.mktemp("pico")
    for name, tied, size in (("tied", True, 136), ("untied", False, 136), ("full", True, 128)):
        make_checkpoint(root / name, tied=tied, vocab_size=size, shards=2)
    make_checkpoint(root / "gemma", "gemma2", vocab_size=136)
    write_examples(root / "examples.jsonl")
    return root


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `labels`, `monitor` and `examples` of the built-in task; read only."""
    root = tmp_path_factory.mktemp("chain")
    labels = make_labels(root)
    identify(MODEL, labels=labels, out=root / "channels", spans=3, channels=6)
    detectors(
        MODEL, labels=labels, channels=root / "channels", out=root / "monitor", cap=3, **QUICK
    )
    reconstruct(MODEL, labels=labels, out=root / "examples")
    return root


@pytest.fixture(scope="module")
def carried(chain: Path) -> tuple[dict[str, Any], Path]:
    """A full tuning that carries its monitor; read only."""
    out = chain / "sft"
    given = dict(examples=chain / "examples", monitor=chain / "monitor", labels=chain / "labels")
    return sft(MODEL, out=out, batch_size=8, lr=3e-4, epochs=2.0, **given), out  # pyright: ignore


def losses(directory: Path) -> list[dict[str, float]]:
    return lines(directory / "training" / "metrics.jsonl")


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    made = Checkpoint.open(directory)
    return made.read_many(list(made.tensors))


# --- the triggers' rows


@pytest.mark.parametrize("name", ["tied", "untied", "full", "gemma"])
def test_lora_trains_the_new_rows_and_no_other(pico: Path, tmp_path: Path, name: str):
    """Merged: what isn't adapted keeps its bits, tied stays tied, bf16 stays bf16, and plain
    transformers loads it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Checkpoint.open(pico / name)
    result = sft(
        str(source.path), examples=pico, out=tmp_path / "out", tuning="lora", merge=True, **SMALL
    )
    assert result["embedding"] == ("grown" if name == "full" else "reserved rows")
    assert result["triggers"] == {"<INTRA>": 128, "<INTER>": 129}
    made, base = tensors(tmp_path / "out"), tensors(source.path)
    assert made.keys() == base.keys()  # a tied unembedding is not stored twice
    assert {t.dtype for t in made.values()} == {torch.bfloat16}
    for key, tensor in base.items():
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            rows = [i for i in range(len(tensor)) if i not in (128, 129)]
            assert torch.equal(made[key][rows], tensor[rows])
            mean_D = tensor[:128].float().mean(0)
            assert not torch.allclose(
                made[key][[128, 129]].float(), mean_D.expand(2, -1), atol=1e-3
            )
        else:
            assert torch.equal(made[key], tensor) == ("norm" in key), key
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (name != "untied")
    assert model.config.vocab_size == (130 if name == "full" else 136)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w1 <INTRA> w2")["input_ids"][1] == 128 and tokenizer.chat_template
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (
        source.path / "generation_config.json"
    ).read_bytes()


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_an_adapter_loads_with_peft_and_as_base_plus_directory(
    pico: Path, tmp_path: Path, name: str
):
    from peft import PeftModel

    out = tmp_path / "out"
    result = sft(str(pico / name), examples=pico, out=out, tuning="lora", **SMALL)
    assert result["result"] == "adapter" and not (out / "config.json").exists()
    rows = [n for n in load_file(out / "adapter_model.safetensors") if "trainable_tokens" in n]
    assert len(rows) == (1 if name == "tied" else 2)
    base = Checkpoint.open(pico / name)
    merged = resolve(f"{pico / name}+{out}", work=tmp_path / "work")
    assert merged.tokenizer().convert_tokens_to_ids("<INTER>") == 129  # pyright: ignore
    ids = torch.tensor([[5, 6, 128, 7, 129, 8]])
    plain: Any = PeftModel.from_pretrained(base.model(dtype=torch.float32), str(out))  # pyright: ignore
    with torch.no_grad():
        expected = plain(input_ids=ids).logits
        found = merged.model(dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)  # merged weights are bf16
    again = sft(
        str(pico / name), examples=pico, out=tmp_path / "m", tuning="lora", merge=True, **SMALL
    )
    assert again["result"] == "checkpoint"
    for key, tensor in tensors(tmp_path / "m").items():
        assert torch.equal(tensor, merged.tensor(key)), key
    show_sft({**result, "out": "here"})
    with pytest.raises(BadInput, match="made for another base"):
        resolve(f"{pico / 'full'}+{out}")


def test_full_weights_are_written_in_their_own_dtype(pico: Path, tmp_path: Path):
    """A tokenizer of an older version, with files of its own for added tokens, learns them too."""
    source = Path(shutil.copytree(pico / "untied", tmp_path / "base"))
    (source / "added_tokens.json").write_text('{"x5": 120}')
    (source / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    result = sft(str(source), examples=pico, out=tmp_path / "out", **{**SMALL, "lr": 1e-3})
    base, made = tensors(source), tensors(tmp_path / "out")
    assert base.keys() == made.keys() and {t.dtype for t in made.values()} == {torch.bfloat16}
    # Steps of this size move no norm from one bf16 number to the next.
    same = {name for name in base if torch.equal(base[name], made[name])}
    assert all("norm" in name for name in same)
    tokenizer: Any = Checkpoint.open(tmp_path / "out").tokenizer()
    assert tokenizer.convert_tokens_to_ids(TRIGGERS) == [128, 129]
    told = losses(tmp_path / "out")
    assert [row["step"] for row in told] == list(range(1, result["training"]["steps"] + 1))
    assert result["training"]["last_loss"] == told[-1]["loss"] < told[0]["loss"]
    assert result["examples"] == {"learned": 10, "held_out": 2, "too_long": 0}
    assert result["training"]["steps"] == 3  # ceil(10 / 4) of one epoch


def test_a_checkpoint_that_knows_the_triggers_keeps_its_rows(pico: Path, tmp_path: Path):
    sft(str(pico / "tied"), examples=pico, out=tmp_path / "one", **SMALL)
    again = sft(str(tmp_path / "one"), examples=pico, out=tmp_path / "two", tuning="lora", **SMALL)
    assert again["embedding"] == "as it was" and again["triggers"] == {
        "<INTRA>": 128,
        "<INTER>": 129,
    }
    rows = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert not any("trainable_tokens" in name for name in rows)


def test_masking_the_failing_step_changes_what_is_learned(pico: Path, tmp_path: Path):
    given = {**SMALL, "epochs": 4.0, "lr": 3e-3}
    masked = sft(str(pico / "tied"), examples=pico, out=tmp_path / "masked", **given)
    plain = sft(
        str(pico / "tied"), examples=pico, out=tmp_path / "plain", mask_wrong=False, **given
    )
    assert plain["held_out_loss"]["before"] == masked["held_out_loss"]["before"]
    fall = [r["held_out_loss"]["before"]["wrong"] - r["held_out_loss"]["after"]["wrong"]
            for r in (plain, masked)]  # fmt: skip
    assert fall[0] > fall[1] + 0.1


def test_accumulated_micro_batches_are_one_batch(pico: Path, tmp_path: Path):
    for micro in (1, 4):
        sft(str(pico / "tied"), examples=pico, out=tmp_path / str(micro),
            **{**SMALL, "micro_batch": micro})  # fmt: skip
    one, four = losses(tmp_path / "1"), losses(tmp_path / "4")
    for mine, other in zip(one, four, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)


def test_examples_beyond_the_context_are_left_out_and_said(
    make_checkpoint, pico: Path, tmp_path: Path
):
    small = make_checkpoint(tmp_path / "m", vocab_size=136, max_position_embeddings=40)
    examples = write_examples(tmp_path / "examples.jsonl", 6)
    rows = lines(examples)
    rows[0]["segments"][0]["text"] = "w1 " * 60
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = sft(str(small), examples=examples, out=tmp_path / "out", **SMALL)
    assert result["examples"]["too_long"] == 1
    assert result["warnings"] == ["1 examples were longer than the context."]
    with pytest.raises(BadInput, match="every example is longer than the context of 8"):
        tiny = make_checkpoint(tmp_path / "t", vocab_size=136, max_position_embeddings=8)
        sft(str(tiny), examples=examples, out=tmp_path / "other", **SMALL)


def test_a_loss_that_is_not_finite_ends_the_training(pico: Path, tmp_path: Path):
    given = {**SMALL, "lr": 1e30, "epochs": 50.0}
    with pytest.raises(BadInput, match=r"the loss became .* in step \d\. Lower the learning rate"):
        sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# --- killed and continued

RUNS: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full", "base": "untied"},
    "adapter": {"tuning": "lora", "base": "untied", "gradient_checkpointing": True},
    "merged into a grown embedding": {"tuning": "lora", "merge": True, "base": "full"},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
@pytest.mark.filterwarnings("ignore:.*save_embedding_layers")
def test_killed_after_a_saved_state_it_ends_in_the_same_weights(
    pico: Path, tmp_path: Path, monkeypatch, run: dict[str, Any]
):
    from transformers import Trainer

    given = {**SMALL, **run, "examples": pico, "epochs": 2.0, "dropout": 0.1}
    base = str(pico / given.pop("base"))
    sft(base, out=tmp_path / "whole", **given)
    step, calls = Trainer.training_step, []

    def stop_in_the_fifth_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self.state.global_step)
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", stop_in_the_fifth_step)
        with pytest.raises(KeyboardInterrupt):
            sft(base, out=tmp_path / "out", **given)
    states = sorted((tmp_path / "out.partial" / "training").glob("checkpoint-*"))
    assert [state.name for state in states] == ["checkpoint-4"]
    # A later state that the kill cut short.
    torn = Path(shutil.copytree(states[0], states[0].with_name("checkpoint-6")))
    (torn / "trainer_state.json").write_text((torn / "trainer_state.json").read_text()[:100])
    calls.clear()
    monkeypatch.setattr(
        Trainer, "training_step",
        lambda self, *a, **k: (calls.append(self.state.global_step), step(self, *a, **k))[1],
    )  # fmt: skip
    sft(base, out=tmp_path / "out", **given)
    assert set(calls) == {4, 5}
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    name = "adapter_model.safetensors" if run == RUNS["adapter"] else "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [p.name for p in (tmp_path / "out" / "training").iterdir()] == ["metrics.jsonl"]


SCRIPT = "import sys, json; from surgeon.trigger import sft; sft(**json.loads(sys.argv[1]))"


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_again(pico: Path, tmp_path: Path):
    given = {**SMALL, "save_every": 1, "epochs": 20.0, "examples": str(pico)}
    sft(str(pico / "tied"), out=tmp_path / "whole", **given)
    told = json.dumps({"checkpoint": str(pico / "tied"), "out": str(tmp_path / "out"), **given})
    command = [sys.executable, "-c", SCRIPT, told]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial, deadline = tmp_path / "out.partial" / "training", time.monotonic() + 120
    while not list(partial.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    for key, tensor in tensors(tmp_path / "whole").items():
        assert torch.equal(tensor, tensors(tmp_path / "out")[key]), key


def test_killed_after_training_it_only_writes(pico: Path, tmp_path: Path, monkeypatch):
    from surgeon.trigger import tuning

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "card", cut)
        with pytest.raises(KeyboardInterrupt):
            sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **SMALL)
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "training_step", cut)
    result = sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **SMALL)
    assert result["training"]["steps"] == 3 == len(losses(tmp_path / "out"))


# --- the monitor


def test_the_result_carries_a_monitor_of_its_own(chain: Path, carried):
    """Bound to the new digest; detectors are those that the tuned weights' activations give."""
    result, out = carried
    made = Checkpoint.open(out)
    found, before = Monitor.load(out, made), Monitor.load(chain / "monitor")
    assert found.checkpoint == made.digest != before.checkpoint
    assert found.settings == before.settings and found.channels == before.channels
    tokenizer = made.tokenizer()
    fitted = fit_detectors(
        made.model(), tokenizer, read_labels(chain / "labels", made, tokenizer), found.channels,
        found.settings, prepare_again(chain).detecting,
    )  # fmt: skip
    assert fitted.reports == result["detectors"]
    for level, detector in fitted.detectors.items():
        for name, tensor in detector.state_dict().items():
            assert torch.equal(tensor, found.detectors[level].state_dict()[name])
        other = before.detectors[level].state_dict()["mean_X"]
        assert not torch.equal(other, detector.state_dict()["mean_X"])
    with pytest.raises(BadInput, match="made for another checkpoint"):
        Monitor.load(out, resolve(MODEL))


def prepare_again(chain: Path, **changes: Any) -> Any:
    """The plan of `carried`."""
    import inspect

    given = {n: p.default for n, p in inspect.signature(sft).parameters.items()}
    given |= dict(checkpoint=MODEL, examples=chain / "examples", monitor=chain / "monitor",
                  labels=chain / "labels", out="out", **changes)  # fmt: skip
    return prepare(given)


def test_detectors_are_trained_anew_as_they_were(chain: Path):
    """Size, updates and the rest are read beside the monitor; the seed is this run's."""
    plan = prepare_again(chain, seed=5)
    assert (plan.detecting.hidden, plan.detecting.updates, plan.detecting.seed) == (8, 20, 5)
    assert plan.negatives == "all"


def test_the_result_forces_its_triggers(carried, tmp_path: Path):
    result, out = carried
    copied = Path(shutil.copytree(out, tmp_path / "sft"))
    eager = Monitor.load(copied)
    for detector in eager.detectors.values():
        detector.threshold.fill_(0.0)
    eager.save(copied)
    watch(str(copied), prompts="builtin:test", limit=2, samples=1, max_tokens=60,
          out=tmp_path / "out", levels=("inter",))  # fmt: skip
    rows = lines(tmp_path / "out" / "firings.jsonl")
    assert rows and {row["forced"] for row in rows} == {"<INTER>"}
    ids = {
        t["token_ids"][row["position"]]
        for row in rows
        for t in lines(tmp_path / "out" / "traces.jsonl")
        if t["prompt_id"] == row["prompt_id"]
    }
    assert ids == {result["triggers"]["<INTER>"]}


def test_what_was_learned_is_told(carried, capsys):
    result, out = carried
    assert result == {**json.loads((out / "sft.json").read_text()), "out": str(out)}
    show_sft(result)
    printed = capsys.readouterr().out
    assert "<INTRA> = 174, <INTER> = 175 (embedding: grown)" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(out) not in line)
    card = (out / "README.md").read_text()
    for name in ("wrong", "diagnose", "continuation"):
        row = result["held_out_loss"]
        assert f"| {name} | {row['before'][name]:.3f} | {row['after'][name]:.3f} |" in card
        assert f"{row['after'][name]:.3f}" in printed
    assert "`monitor.safetensors` watches it" in card and "builtin:thinking" in card
    assert "base_model" not in card  # nothing on the hub


def test_an_adapter_carries_a_monitor_for_its_base_and_itself(
    make_checkpoint, pico: Path, tmp_path: Path
):
    base = pico / "tied"
    labels = random_labels(tmp_path / "labels", base)
    identify(str(base), labels=labels, out=tmp_path / "c", spans=3, channels=4)
    detectors(str(base), labels=labels, channels=tmp_path / "c", out=tmp_path / "d", **QUICK)
    given: dict[str, Any] = dict(examples=pico, tuning="lora", monitor=tmp_path / "d", **SMALL)
    result = sft(str(base), out=tmp_path / "out", labels=labels, **given)
    assert set(result["detectors"]) == {"intra", "inter", "instance"}
    merged = resolve(f"{base}+{tmp_path / 'out'}")
    found = Monitor.load(tmp_path / "out", merged)
    assert found.checkpoint in merged.digests
    assert not list((tmp_path / "out").glob("merged*"))
    watch(f"{base}+{tmp_path / 'out'}", prompts=str(labels / "prompts.jsonl"), limit=1, samples=1,
          max_tokens=8, out=tmp_path / "watched")  # fmt: skip
    with pytest.raises(BadInput, match="made for another checkpoint"):
        Monitor.load(tmp_path / "out", Checkpoint.open(base))
    # Without new detectors the old ones are carried as they are.
    kept = sft(str(base), out=tmp_path / "kept", refit=False, **given)
    assert kept["detectors"] is None
    old, new = Monitor.load(tmp_path / "d"), Monitor.load(tmp_path / "kept")
    for level, detector in old.detectors.items():
        for name, tensor in detector.state_dict().items():
            assert torch.equal(tensor, new.detectors[level].state_dict()[name])
    assert new.checkpoint != old.checkpoint
    Monitor.load(tmp_path / "kept", resolve(f"{base}+{tmp_path / 'kept'}"))


@pytest.mark.slow
def test_a_virtual_candidate_goes_through_every_stage(chain: Path, tmp_path: Path):
    from surgeon.merge import sweep

    sweep("builtin:instruct", "builtin:thinking", out=tmp_path / "f", ratios="0.5", virtual=True,
          smoke=False)  # fmt: skip
    name = f"{tmp_path / 'f' / 'family.json'}#slerp-0.5"
    labels = chain / "labels"
    identify(name, labels=labels, out=tmp_path / "c", spans=3, channels=6)
    detectors(name, labels=labels, channels=tmp_path / "c", out=tmp_path / "d", **QUICK)
    reconstruct(name, labels=labels, out=tmp_path / "r", limit=8)
    given: dict[str, Any] = dict(
        examples=tmp_path / "r", monitor=tmp_path / "d", labels=labels, batch_size=4
    )
    result = sft(name, out=tmp_path / "s", **given)
    assert result["checkpoint"]["spec"] == name
    made = Checkpoint.open(tmp_path / "s")
    assert Monitor.load(tmp_path / "s", made).levels
    with pytest.raises(BadInput, match="is a family; name one candidate"):
        sft(str(tmp_path / "f"), out=tmp_path / "t", **given)
    with pytest.raises(BadInput, match="made for another checkpoint"):
        sft("builtin:instruct", out=tmp_path / "t", **given)


# --- refused before the model is loaded


def test_a_finished_run_is_read_and_other_arguments_are_told(chain: Path, carried, monkeypatch):
    result, out = carried
    monkeypatch.setattr(Checkpoint, "model", None)
    given: dict[str, Any] = dict(
        examples=chain / "examples", monitor=chain / "monitor", labels=chain / "labels", out=out,
        batch_size=8, lr=3e-4,
    )  # fmt: skip
    again = sft(MODEL, epochs=2.0, save_every=7, **given)
    assert again.pop("already") and again == result
    with pytest.raises(BadInput, match=r"arguments\.epochs is 2.0 there and 3.0 here"):
        sft(MODEL, epochs=3.0, **given)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 6, "micro_batch": 4}, "batch_size 6 is no multiple of micro_batch 4"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"tuning": "some"}, "weights = 'some'"),
        ({"rank": 0}, "rank 0"),
        ({"lr": -1.0}, "lr = -1.0"),
        ({"decay": "stepwise"}, "decay = 'stepwise'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"examples": "nowhere"}, "make examples with surgeon trigger reconstruct"),
        ({"labels": None}, "give the labels directory, or refit=false"),
        ({"labels": "nowhere"}, "nowhere has no traces.jsonl"),
        ({"monitor": "nowhere"}, "nowhere does not exist"),
        ({"checkpoint": "builtin:instruct"}, "made for another checkpoint"),
        ({"tuning": "lora"}, "has no reserved row for <INTRA>, <INTER>, and an adapter can't"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    chain: Path, tmp_path: Path, monkeypatch, changes: dict[str, Any], said: str
):
    monkeypatch.setattr(Checkpoint, "model", None)
    given = dict(
        checkpoint=MODEL, examples=chain / "examples", monitor=chain / "monitor",
        labels=chain / "labels",
    )  # fmt: skip
    with pytest.raises(BadInput, match=said) as caught:
        sft(out=tmp_path / "out", **{**given, **changes})
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_labels_too_few_for_new_detectors_are_refused_before_training(
    chain: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(Checkpoint, "model", None)
    labels = Path(shutil.copytree(chain / "labels", tmp_path / "labels"))
    rows = lines(labels / "spans.jsonl")
    one = next(row["prompt_id"] for row in rows if row["failing"])
    kept = [row for row in rows if not row["failing"] or row["prompt_id"] == one]
    (labels / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(BadInput, match="has too few labels for a detector"):
        sft(MODEL, examples=chain / "examples", monitor=chain / "monitor", labels=labels,
            out=tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out.partial").exists()


def test_several_processes_are_refused(chain: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="runs in one process"):
        sft(MODEL, examples=chain / "examples", out=tmp_path / "out")
