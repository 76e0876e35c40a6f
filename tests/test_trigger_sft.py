"""`surgeon trigger sft`: rows that are trained, exact resume, and the monitor that is carried."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
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

from surgeon.artifact import read
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.monitor import monitor as watch
from surgeon.settings import bind
from surgeon.settings.trigger_sft import SftSettings
from surgeon.training.loop import Batch
from surgeon.trigger.artifacts import read_labels
from surgeon.trigger.detectors import detectors, fit_detectors
from surgeon.trigger.examples import encode_example, read_examples
from surgeon.trigger.identify import identify
from surgeon.trigger.reconstruct import reconstruct
from surgeon.trigger.sft import ExampleCounts, TriggerSft, batches, prepare, sft
from surgeon.trigger.sft import show as show_sft
from surgeon.trigger.tokens import add_triggers, prepare_rows
from surgeon.watch.monitor import Monitor

SMALL: dict[str, Any] = dict(
    batch_size=4, micro_tokens=64, held_out=0.2, lr=1e-2, rank=4, save_every=2
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
def carried(chain: Path) -> tuple[TriggerSft, Path]:
    """A full tuning that carries its monitor; read only."""
    out = chain / "sft"
    given = dict(examples=chain / "examples", monitor=chain / "monitor", labels=chain / "labels")
    return sft(MODEL, out=out, batch_size=8, lr=3e-4, epochs=2.0, **given), out  # pyright: ignore


def losses(directory: Path) -> list[dict[str, float]]:
    """The training record without the clock."""
    rows = lines(directory / "training" / "metrics.jsonl")
    clock = {name for row in rows for name in row if "seconds" in name} | {"tokens_per_s"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


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
    assert result.embedding == ("grown" if name == "full" else "reserved rows")
    assert result.triggers == {"<INTRA>": 128, "<INTER>": 129}
    made, base = tensors(tmp_path / "out"), tensors(source.path)
    assert made.keys() == base.keys()  # a tied unembedding is not stored twice
    assert {t.dtype for t in made.values()} == {torch.bfloat16}
    # Not the float32 that it was trained in.
    assert Checkpoint.open(tmp_path / "out").config["dtype"] == "bfloat16"
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
    assert result.result == "adapter" and not (out / "config.json").exists()
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
    assert again.result == "checkpoint"
    for key, tensor in tensors(tmp_path / "m").items():
        assert torch.equal(tensor, merged.tensor(key)), key
    show_sft(result)
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
    assert [row["step"] for row in told] == list(range(1, result.training.steps + 1))
    assert result.training.last_loss == told[-1]["loss"] < told[0]["loss"]
    assert result.examples == ExampleCounts(learned=10, held_out=2, too_long=0)
    assert result.training.steps == 3  # ceil(10 / 4) of one epoch


def test_a_checkpoint_that_knows_the_triggers_keeps_its_rows(pico: Path, tmp_path: Path):
    sft(str(pico / "tied"), examples=pico, out=tmp_path / "one", **SMALL)
    again = sft(str(tmp_path / "one"), examples=pico, out=tmp_path / "two", tuning="lora", **SMALL)
    assert again.embedding == "as it was" and again.triggers == {
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
    assert plain.held_out_loss.before == masked.held_out_loss.before
    fall = [r.held_out_loss.before["wrong"] - r.held_out_loss.after["wrong"]
            for r in (plain, masked)]  # fmt: skip
    assert fall[0] > fall[1] + 0.1


def test_accumulated_micro_batches_are_one_batch(pico: Path, tmp_path: Path):
    for tokens in (1, 4096):
        sft(str(pico / "tied"), examples=pico, out=tmp_path / str(tokens),
            **{**SMALL, "micro_tokens": tokens})  # fmt: skip
    one, four = losses(tmp_path / "1"), losses(tmp_path / "4096")
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
    assert result.examples.too_long == 1
    assert result.warnings == ["1 examples were longer than the context."]
    with pytest.raises(BadInput, match="every example is longer than the context of 8"):
        tiny = make_checkpoint(tmp_path / "t", vocab_size=136, max_position_embeddings=8)
        sft(str(tiny), examples=examples, out=tmp_path / "other", **SMALL)


def test_a_loss_that_is_not_finite_ends_the_training(pico: Path, tmp_path: Path):
    given = {**SMALL, "lr": 1e30, "epochs": 50.0}
    with pytest.raises(BadInput, match=r"became .* in step \d\. Lower the learning rate"):
        sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


# --- killed and continued

RUNS: dict[str, dict[str, Any]] = {
    "full": {"tuning": "full", "base": "untied"},
    "adapter": {"tuning": "lora", "base": "untied", "gradient_checkpointing": True},
    "merged into a grown embedding": {"tuning": "lora", "merge": True, "base": "full"},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
def test_killed_after_a_saved_state_it_ends_in_the_same_weights(
    pico: Path, tmp_path: Path, monkeypatch, run: dict[str, Any]
):
    from surgeon.training import loop

    given = {**SMALL, **run, "examples": pico, "epochs": 2.0, "dropout": 0.1}
    base = str(pico / given.pop("base"))
    sft(base, out=tmp_path / "whole", **given)
    seed, begun = loop.seed_everything, []

    def stop_in_the_fifth_step(of_run: int, step: int, process: int) -> None:
        begun.append(step)
        if step == 4:
            raise KeyboardInterrupt
        seed(of_run, step, process)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "seed_everything", stop_in_the_fifth_step)
        with pytest.raises(KeyboardInterrupt):
            sft(base, out=tmp_path / "out", **given)
    states = sorted((tmp_path / "out.partial" / "training").glob("state-*"))
    assert [state.name for state in states] == ["state-000004"]
    # A later state that the kill cut short.
    shutil.copytree(states[0], states[0].with_name("state-000006.partial"))
    begun.clear()
    monkeypatch.setattr(loop, "seed_everything", lambda *n: (begun.append(n[1]), seed(*n)))
    sft(base, out=tmp_path / "out", **given)
    assert begun == [4, 5]
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    name = "adapter_model.safetensors" if run == RUNS["adapter"] else "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [p.name for p in (tmp_path / "out" / "training").iterdir()] == ["metrics.jsonl"]


def test_one_step_is_one_step_of_adamw_on_the_mean_loss_of_the_learned_tokens(
    make_checkpoint, tmp_path: Path
):
    """Written out: full logits, cross-entropy of the unmasked tokens over their number, the
    gradient cut to norm 1, torch's AdamW at the peak rate (one step: the warm-up is over)."""
    source = make_checkpoint(tmp_path / "m", vocab_size=136, dtype="float32")
    examples = write_examples(tmp_path / "examples.jsonl", 4)
    sft(str(source), examples=examples, out=tmp_path / "out", lr=1e-3, held_out=0.0,
        batch_size=4, micro_tokens=1, weight_decay=0.1, device="cpu")  # fmt: skip
    base = Checkpoint.open(source)
    tokenizer: Any = base.tokenizer()
    new = add_triggers(tokenizer, TRIGGERS)
    model: Any = base.model(dtype=torch.float32).train()
    prepare_rows(model, new)
    total, n = torch.zeros(()), 0
    for example in read_examples(examples):
        one = encode_example(tokenizer, example, mask_wrong=True)
        logits_TV = model(input_ids=torch.tensor([one.ids])).logits[0]
        for t in range(1, len(one.ids)):
            if one.learned[t]:
                total = total - logits_TV[t - 1].log_softmax(-1)[one.ids[t]]
                n += 1
    (total / n).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1).step()
    (row,) = losses(tmp_path / "out")
    assert row["loss"] == pytest.approx(total.item() / n, rel=1e-5)
    assert row["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert row["tokens"] == n and row["lr"] == 1e-3
    made = tensors(tmp_path / "out")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(made[name], parameter.detach(), rtol=1e-5, atol=2e-6)


def test_every_example_comes_once_per_epoch_and_a_process_without_one_learns_nothing(
    pico: Path, tmp_path: Path
):
    """Of 9 examples in batches of 4 the last one stands alone; with two processes, one has none."""
    plan = prepared(pico, tmp_path, held_out=0.25)
    assert len(plan.learned) == 9 and plan.steps_per_epoch == 3

    def drawn(process: int, processes: int, start: int = 0, steps: int = 6) -> list[Batch]:
        peers: Any = SimpleNamespace(process_index=process, num_processes=processes)
        return list(islice(batches(plan, peers, 64)(start), steps))

    alone, pair = drawn(0, 1), [drawn(0, 2), drawn(1, 2)]
    assert [batch.responses for batch in alone] == [4, 4, 1, 4, 4, 1]
    learned = sorted(t for e in plan.learned for t, on in zip(e.ids, e.learned, strict=True) if on)
    for epoch in (alone[:3], alone[3:]):
        assert sorted(tokens_of(epoch)) == learned
    assert tokens_of(alone[:3]) != tokens_of(alone[3:])
    for step, batch in enumerate(alone):
        shares = [of_process[step] for of_process in pair]
        assert sorted(tokens_of(shares)) == sorted(tokens_of([batch]))
        assert sum(share.weight for share in shares) == batch.weight
        assert all(len(share.micros) >= 1 for share in shares)
    assert pair[1][2].weight == 0 == len(pair[1][2].micros[0].token_P)
    assert tokens_of(drawn(0, 1, start=4, steps=1)) == tokens_of(alone[4:5])


def tokens_of(batches: list[Batch]) -> list[int]:
    return [t for batch in batches for micro in batch.micros for t in micro.token_P.tolist()]


def prepared(pico: Path, tmp_path: Path, **changes: Any) -> Any:
    given = {**SMALL, "examples": pico, "out": tmp_path / "out", **changes}
    return prepare(bind(SftSettings, {"checkpoint": str(pico / "tied"), **given}))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_make_the_same_weights(pico: Path, tmp_path: Path, parallel: str):
    """Of the 9 examples in batches of 4 one process has none in the third step."""
    from test_training import launched

    given = {**SMALL, "examples": str(pico), "held_out": 0.25, "device": "cpu", "lr": 1e-3,
             "parallel": parallel}  # fmt: skip
    runs = {"full": {"tuning": "full"}, "lora": {"tuning": "lora"}}
    base = str(pico / "untied")
    launched(
        "import torch; torch.set_num_threads(1)\nfrom surgeon.trigger.sft import sft\n"
        f"for name, run in {runs!r}.items():\n"
        f"    sft({base!r}, out={str(tmp_path)!r} + '/' + name, **run, **{given!r})"
    )
    for name, run in runs.items():
        sft(base, out=tmp_path / "one" / name, **run, **given)
        one, two = losses(tmp_path / "one" / name), losses(tmp_path / name)
        assert [row["responses"] for row in two] == [4, 4, 1]
        for mine, other in zip(one, two, strict=True):
            assert mine["tokens"] == other["tokens"]
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-2)
        results = [read(TriggerSft, d / name) for d in (tmp_path, tmp_path / "one")]
        assert results[0].examples == results[1].examples
        for kind, value in results[0].held_out_loss.after.items():
            assert value == pytest.approx(results[1].held_out_loss.after[kind], rel=1e-2)
        file = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
        mine, other = (load_file(d / name / file) for d in (tmp_path, tmp_path / "one"))
        assert mine.keys() == other.keys()
        for key, tensor in mine.items():
            torch.testing.assert_close(tensor, other[key], rtol=2e-2, atol=2e-3)


SCRIPT = "import sys, json; from surgeon.trigger.sft import sft; sft(**json.loads(sys.argv[1]))"


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_command_again(pico: Path, tmp_path: Path):
    given = {**SMALL, "save_every": 1, "epochs": 20.0, "examples": str(pico)}
    sft(str(pico / "tied"), out=tmp_path / "whole", **given)
    told = json.dumps({"checkpoint": str(pico / "tied"), "out": str(tmp_path / "out"), **given})
    command = [sys.executable, "-c", SCRIPT, told]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial, deadline = tmp_path / "out.partial" / "training", time.monotonic() + 120
    while not list(partial.glob("state-*/state.json")):
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
    stage, loop = (sys.modules[f"surgeon.{name}"] for name in ("trigger.sft", "training.loop"))

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, "card", cut)
        with pytest.raises(KeyboardInterrupt):
            sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **SMALL)
    monkeypatch.setattr(loop, "seed_everything", cut)
    result = sft(str(pico / "tied"), examples=pico, out=tmp_path / "out", **SMALL)
    assert result.training.steps == 3 == len(losses(tmp_path / "out"))


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
    assert fitted.reports == result.detectors
    for level, detector in fitted.detectors.items():
        for name, tensor in detector.state_dict().items():
            assert torch.equal(tensor, found.detectors[level].state_dict()[name])
        other = before.detectors[level].state_dict()["mean_X"]
        assert not torch.equal(other, detector.state_dict()["mean_X"])
    with pytest.raises(BadInput, match="made for another checkpoint"):
        Monitor.load(out, resolve(MODEL))


def prepare_again(chain: Path, **changes: Any) -> Any:
    """The plan of `carried`."""
    given = dict(checkpoint=MODEL, examples=chain / "examples", monitor=chain / "monitor",
                 labels=chain / "labels", out="out", **changes)  # fmt: skip
    return prepare(bind(SftSettings, given))


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
    assert ids == {result.triggers["<INTER>"]}


def test_what_was_learned_is_told(carried, capsys):
    result, out = carried
    assert read(TriggerSft, out) == result
    assert json.loads((out / "sft.json").read_text())["settings"]["lr"] == 3e-4
    show_sft(result)
    printed = capsys.readouterr().out
    assert "<INTRA> = 200, <INTER> = 201 (embedding: grown)" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if str(out) not in line)
    card = (out / "README.md").read_text()
    for name in ("wrong", "diagnose", "continuation"):
        before, after = result.held_out_loss.before[name], result.held_out_loss.after[name]
        assert f"| {name} | {before:.3f} | {after:.3f} |" in card
        assert f"{after:.3f}" in printed
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
    assert set(result.detectors or ()) == {"intra", "inter", "instance"}
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
    assert kept.detectors is None
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
    assert result.checkpoint.spec == name
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
    assert again.already and replace(again, already=False) == result
    with pytest.raises(BadInput, match=r"arguments\.epochs is 2.0 there and 3.0 here"):
        sft(MODEL, epochs=3.0, **given)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"micro_tokens": 0}, "micro_tokens = 0"),
        ({"epochs": 0.0}, "epochs = 0.0"),
        ({"held_out": 1.0}, "held_out = 1.0"),
        ({"tuning": "some"}, "weights = some"),
        ({"rank": 0}, "rank = 0"),
        ({"lr": -1.0}, "lr = -1.0"),
        ({"decay": "stepwise"}, "decay = stepwise"),
        ({"tracker": "stdout"}, "tensorboard, trackio, wandb"),
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
