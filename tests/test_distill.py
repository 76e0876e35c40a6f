"""`surgeon distill` from end to end on tiny models, and what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from surgeon import artifact, cli, nopsd
from surgeon.answers import majority, parse_tags, read_answers
from surgeon.artifact import read
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.consensus import reliability
from surgeon.decoding import Answer
from surgeon.distill import Distillation, demonstrations, distill, pool, show
from surgeon.distill import evidence as stages
from surgeon.distill import rollouts as drawing
from surgeon.distill.diagnostics import cautions
from surgeon.distill.grpo import (
    Rewarded,
    advantages,
    majority_reward,
    majority_rewards,
    policy_loss,
    self_certainty,
    token_logprobs,
)
from surgeon.distill.methods import method_of, of_the_majority
from surgeon.distill.plan import DistillPlan, prepare
from surgeon.distill.pool import LiveModel
from surgeon.distill.rollouts import AnsweredQuestion
from surgeon.distill.run import TrainingRun
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.live.architecture import Head
from surgeon.merge import sweep
from surgeon.settings import bind
from surgeon.settings.distill import DistillSettings
from surgeon.threads import one_thread
from surgeon.traces import Prompt, Trace, read_prompts, read_traces
from surgeon.training.sequences import draw, grouped, sequences, share_of

SMALL: dict[str, Any] = dict(
    top_global=0.1, max_tokens=80, temperature=1.0, top_p=1.0, share=0.4, shots=2, samples=2,
    diagnose=3, steps=4, batch_size=4, lr=1e-2, save_every=2, rank=4, answer="last-line",
    device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_checkpoint) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("distill") / "m", dtype="float32")


def write_pool(path: Path, n: int = 16, *, labels: bool = False) -> str:
    rows = [
        {"id": f"q{i}", "prompt": f"w{i} + w{i + 1} = ?", **({"answer": str(i)} if labels else {})}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(directory: Path) -> list[dict]:
    """The training record without the clock."""
    lines = (directory / "training" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    clock = {name for row in rows for name in row if "seconds" in name} | {"tokens_per_s"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory) -> tuple[Distillation, Path]:
    """One finished run on one thread; read only."""
    root = tmp_path_factory.mktemp("done")
    out = root / "out"
    with one_thread():
        return distill(str(source), pool=write_pool(root / "pool.jsonl"), out=out, **SMALL), out


# --- the whole


def test_four_stages_leave_their_artifacts_and_an_adapter_that_loads(source, done, capsys):
    result, out = done
    made = {p.name for p in out.iterdir()}
    assert made == {
        "surgeon.json", "rollouts", "sets", "selection.json", "contexts.jsonl", "teacher",
        "diagnostics.json", "training", "distill.json", "README.md", "adapter_config.json",
        "adapter_model.safetensors",
    }  # fmt: skip
    assert sorted(os.listdir(out / "training")) == ["metrics.jsonl", "micro-tokens.json"]
    chosen = json.loads((out / "selection.json").read_text())["questions"]
    assert len(chosen) == round(0.4 * 16)
    told = [json.loads(line) for line in (out / "contexts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in told] == [q["id"] for q in chosen]
    assert all(row["id"] not in row["shots"] and len(row["shots"]) == 2 for row in told)
    for record in records(out):
        assert {"loss", "kl", "student_entropy", "teacher_entropy", "length", "truncated",
                "agreement", "tokens"} <= record.keys()  # fmt: skip
        assert record["loss"] == pytest.approx(record["kl"], rel=1e-5)  # R14: mean over tokens
        assert 0 <= record["agreement"] <= 1
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = Checkpoint.open(source).model()(input_ids=ids).logits
        after = resolve(f"{source}+{out}").model()(input_ids=ids).logits
    assert not torch.allclose(before, after)
    show(result)
    assert f"{source}+{out}" in capsys.readouterr().out.replace("\n", "")


def test_a_finished_run_is_not_repeated(source: Path, done):
    result, out = done
    pool = out.parent / "pool.jsonl"
    again = distill(str(source), pool=str(pool), out=out, **SMALL)
    assert again.already and replace(again, already=False) == result


def test_no_label_is_read(source: Path, done, tmp_path: Path):
    """The same pool with answers gives the same bytes."""
    _, out = done
    pool = write_pool(tmp_path / "pool.jsonl", labels=True)
    distill(str(source), pool=pool, out=tmp_path / "out", **SMALL)
    for name in ("adapter_model.safetensors", "selection.json", "contexts.jsonl",
                 "diagnostics.json"):  # fmt: skip
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert records(out) == records(tmp_path / "out")
    inputs = [
        json.loads((d / "surgeon.json").read_text())["inputs"] for d in (out, tmp_path / "out")
    ]
    assert inputs[0] == inputs[1]


def test_killed_in_each_stage_it_ends_in_the_same_result(
    source: Path, done, tmp_path: Path, monkeypatch
):
    """Stopped while it answers, makes contexts, trains and removes what is no longer needed; each
    time continued by the same call."""
    _, out = done
    again = tmp_path / "out"
    questions = write_pool(tmp_path / "pool.jsonl")

    class Killed(Exception):
        pass

    def stop_after(n: int, real):
        calls = iter(range(n))

        def function(*args, **kwargs):
            if next(calls, None) is None:
                raise Killed
            return real(*args, **kwargs)

        return function

    from surgeon.distill import rollouts
    from surgeon.traces import sampling

    for module, name, n in (
        (sampling, "append", 5), (pool, "contribution_sets", 0),
        (demonstrations, "teacher_prompt", 3), (rollouts, "rollout", 3),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop_after(n, getattr(module, name)))
            with pytest.raises(Killed):
                distill(str(source), pool=questions, out=again, **SMALL)
        assert not again.exists()

    real = shutil.rmtree

    def half_removed(path: Path, **how: Any) -> None:
        if (path / "state.json").is_file():
            (path / "state.json").unlink()
            raise Killed
        real(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half_removed)
        for _ in ("the state of step 2, behind that of step 4", "that of step 4, at the end"):
            with pytest.raises(Killed):
                distill(str(source), pool=questions, out=again, **SMALL)
    distill(str(source), pool=questions, out=again, **SMALL)
    assert records(again) == records(out)
    for name in ("adapter_model.safetensors", "rollouts/part-0.jsonl", "teacher/part-0.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    assert sorted(os.listdir(again / "training")) == ["metrics.jsonl", "micro-tokens.json"]


def test_diagnostics_are_printed_before_training(source: Path, tmp_path: Path, monkeypatch, capsys):
    def stop(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("surgeon.distill.ready", stop)
    pool = write_pool(tmp_path / "pool.jsonl")
    with pytest.raises(InterruptedError):
        distill(str(source), pool=pool, out=tmp_path / "out", **SMALL)
    said = capsys.readouterr().err
    for words in ("room for sharpening", "entropy gap", "mean Jaccard distance", "Warning: "):
        assert words in said
    told = json.loads((tmp_path / "out.partial" / "diagnostics.json").read_text())
    assert all(f"Warning: {line}" in said for line in told["warnings"])


def test_the_other_readings_run_to_their_end(source: Path, tmp_path: Path):
    """R9, R12 to R14 and the controls; the loss is summed over each response, not averaged."""
    out = tmp_path / "out"
    distill(
        str(source), pool=write_pool(tmp_path / "pool.jsonl"), out=out,
        **{**SMALL, "steps": 2, "top_layer": 0.2}, select="band", band=(0.2, 0.5),
        context="random", sets="appendix", activation="gated", chunk_tokens=16,
        demonstration="response", loss="sum", ema="exact",
    )  # fmt: skip
    chosen = json.loads((out / "selection.json").read_text())["questions"]
    assert len(chosen) == round(0.5 * 16) - round(0.2 * 16)
    told = [json.loads(line) for line in (out / "contexts.jsonl").read_text().splitlines()]
    assert all(row["distances"] is None and len(row["shots"]) == 2 for row in told)
    for record in records(out):
        assert record["loss"] == pytest.approx(record["kl"] * record["length"], rel=1e-5)
    assert resolve(f"{source}+{out}").n_layers == 3


def test_a_tracker_gets_what_is_recorded(source: Path, tmp_path: Path):
    """Through accelerate: every number of metrics.jsonl, at its step."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pool, out = write_pool(tmp_path / "pool.jsonl"), tmp_path / "out"
    distill(str(source), pool=pool, out=out, tracker="tensorboard", **SMALL)
    found = EventAccumulator(str(out / "training" / "surgeon"))
    found.Reload()
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {"loss", "kl", "student_entropy", "teacher_entropy", "length", "truncated",
            "agreement", "tokens_per_s"} <= rows[0].keys()  # fmt: skip
    for name in rows[0].keys() - {"warnings"}:
        scalars = [(event.step, event.value) for event in found.Scalars(name)]
        assert scalars == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows]


def test_a_student_that_training_broke_stops_the_run_in_one_line(source: Path, tmp_path: Path):
    pool = write_pool(tmp_path / "pool.jsonl")
    with pytest.raises(BadInput, match=r"step 2 failed: found logits .* lower the learning rate"):
        distill(str(source), pool=pool, out=tmp_path / "out", **{**SMALL, "lr": 1e20})


@pytest.mark.slow
def test_kill_minus_nine_while_training(source: Path, done, tmp_path: Path):
    _, out = done
    pool = write_pool(tmp_path / "pool.jsonl")
    again = tmp_path / "out"
    code = (
        "import torch; torch.set_num_threads(1)\nfrom surgeon.distill import distill\n"
        f"distill({str(source)!r}, pool={pool!r}, out={str(again)!r}, **{SMALL!r})"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    partial, deadline = tmp_path / "out.partial", time.monotonic() + 280
    while not any(partial.glob("training/state-*[0-9]")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not again.exists()
    subprocess.run(command, check=True, capture_output=True)
    assert records(again) == records(out)
    name = "adapter_model.safetensors"
    assert (again / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.slow
def test_two_processes_make_the_same_adapter(source: Path, done, tmp_path: Path):
    from test_training import launched

    _, out = done
    pool = write_pool(tmp_path / "pool.jsonl")
    settings = {parallel: {**SMALL, "parallel": parallel} for parallel in ("ddp", "fsdp")}
    launched(
        "import torch; torch.set_num_threads(1)\nfrom surgeon.distill import distill\n"
        f"for name, settings in {settings!r}.items():\n"
        f"    out = {str(tmp_path)!r} + '/' + name\n"
        f"    distill({str(source)!r}, pool={pool!r}, out=out, **settings)"
    )
    for parallel in settings:
        again = tmp_path / parallel
        assert (again / "contexts.jsonl").read_bytes() == (out / "contexts.jsonl").read_bytes()
        for mine, other in zip(records(again), records(out), strict=True):
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert mine["responses"] == other["responses"] == 4
        one, two = (load_file(d / "adapter_model.safetensors") for d in (out, again))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_command_runs_under_torchrun_and_says_its_result_once(source: Path, tmp_path: Path):
    command = [
        "distill", str(source), "--pool", write_pool(tmp_path / "pool.jsonl"), "--out", "out",
        "--device", "cpu", "--answer", "last-line", "--max-tokens", "80", "--shots", "2",
        "--steps", "1", "--batch-size", "2", "--set", "top_global=0.1", "--set", "diagnose=3",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
                "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    told = subprocess.run(
        [*launcher, "-m", "surgeon", *command], cwd=tmp_path, env=env, capture_output=True,
        text=True, timeout=280, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert sorted(p.name for p in (tmp_path / "out" / "rollouts").iterdir()) == [
        "part-0.jsonl", "part-1.jsonl",
    ]  # fmt: skip
    assert told.stdout.count("adapter in out") == 1


def test_processes_share_the_sets_though_one_is_ahead(source: Path, tmp_path: Path, monkeypatch):
    """The second begins when the first has written its share."""
    monkeypatch.setattr(pool, "BLOCK", 4)
    plan = planned(source, tmp_path)
    live = living(plan)
    traces = [Trace(f"q{i}", 0, [5, 6], [20 + i, 21], "", "stop") for i in range(16)]

    class Process:
        def __init__(self, index: int, meanwhile: Any):
            self.process_index, self.num_processes = index, 2
            self.wait_for_everyone = meanwhile

    def run(index: int, meanwhile: Any, work: Path):
        peer: Any = Process(index, meanwhile)
        return pool.pool_sets(plan, live._replace(accelerator=peer), traces, work)

    for name in ("ahead", "alone"):
        (tmp_path / name).mkdir()
    sets, consensus_N = run(0, lambda: run(1, lambda: None, tmp_path / "ahead"), tmp_path / "ahead")
    whole, expected_N = pool.pool_sets(plan, live, traces, tmp_path / "alone")
    assert sets.neuron_E.tolist() == whole.neuron_E.tolist()
    assert consensus_N.tolist() == expected_N.tolist()


# --- outputs


def test_merge_writes_the_base_with_its_adapter_added(source: Path, done, tmp_path: Path):
    _, out = done
    pool = write_pool(tmp_path / "pool.jsonl")
    result = distill(str(source), pool=pool, out=tmp_path / "out", merge=True, **SMALL)
    assert result.result == "checkpoint"
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    merged = Checkpoint.open(tmp_path / "out")
    assert merged.chat_template
    expected = resolve(f"{source}+{out}")
    for name in merged.tensors:
        assert torch.equal(merged.tensor(name), expected.tensor(name)), name


def test_full_weights_are_written_in_their_own_dtype(pico_pair, tmp_path: Path):
    pool = write_pool(tmp_path / "pool.jsonl")
    result = distill(
        str(pico_pair[0]), pool=pool, out=tmp_path / "out", tuning="full",
        **{**SMALL, "steps": 2, "lr": 1e-3, "gradient_checkpointing": True},
    )  # fmt: skip
    assert result.result == "checkpoint"
    base, made = Checkpoint.open(pico_pair[0]), Checkpoint.open(tmp_path / "out")
    assert {i.dtype for i in made.tensors.values()} == {"BF16"}
    assert made.tensors.keys() == base.tensors.keys()
    assert any(not torch.equal(made.tensor(n), base.tensor(n)) for n in made.tensors)
    assert made.chat_template and made.tokenizer()
    assert "No label was read" in (tmp_path / "out" / "README.md").read_text()


def test_lmsi_learns_the_answers_of_the_majority(source: Path, tmp_path: Path):
    pool = write_pool(tmp_path / "pool.jsonl", 6)
    settings = {**SMALL, "steps": 8, "samples": 3, "max_tokens": 24}
    result = distill(str(source), pool=pool, out=tmp_path / "out", method="lmsi", **settings)
    losses = [record["loss"] for record in records(tmp_path / "out")]
    assert losses[-1] < losses[0]
    assert not (tmp_path / "out" / "contexts.jsonl").exists()
    assert type(result.diagnostics) is stages.Diagnostics
    assert read(Distillation, tmp_path / "out") == result
    assert result.result == "adapter"


def test_a_method_from_outside_trains_an_adapter(source: Path, tmp_path: Path, monkeypatch):
    """examples/my_finisher.py, as `module:function`: each question's shortest answer is learned."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    out, settings = tmp_path / "out", {**SMALL, "samples": 3, "max_tokens": 200}
    questions = write_pool(tmp_path / "pool.jsonl", 6)
    result = distill(str(source), pool=questions, out=out, method="my_finisher:brevity", **settings)
    assert result.result == "adapter" and result.settings["select"] == "all"
    assert resolve(f"{source}+{out}").n_layers == 3
    assert (
        "made by fine-tuning on the model's own shortest answers" in (out / "README.md").read_text()
    )
    by_question: dict[str, list[int]] = {}
    for trace in read_traces(out / "rollouts" / "part-0.jsonl"):
        if trace.finish_reason == "stop":
            by_question.setdefault(trace.prompt_id, []).append(len(trace.token_ids))
    assert any(len(set(lengths)) > 1 for lengths in by_question.values())
    shortest = {min(lengths) for lengths in by_question.values()}
    for record in records(out):
        assert 4 * min(shortest) <= record["tokens"] <= 4 * max(shortest)
    with pytest.raises(BadInput, match="has no function 'verbosity'"):
        planned(source, tmp_path, method="my_finisher:verbosity")


# --- the parts


def planned(source: Path, tmp_path: Path, **changes: Any) -> DistillPlan:
    questions = changes.pop("pool", None) or write_pool(tmp_path / "pool.jsonl")
    given = dict(checkpoint=str(source), pool=questions, out=tmp_path / "out")
    settings = bind(DistillSettings, {**given, **SMALL, **changes})
    return prepare(settings, method_of(settings.method))


def living(plan: DistillPlan) -> LiveModel:
    return pool.load(plan, Accelerator(cpu=True))


def running(plan: DistillPlan, answers: Any = None, live: Any = None) -> Any:
    """A training run with what rewards and majorities look at."""
    evidence: Any = SimpleNamespace(answers=answers)
    student: Any = SimpleNamespace(model=live and live.model)
    return TrainingRun(plan, evidence, live, student, Path(), 16384)


def answered(i: int, text: str, reason: str = "stop") -> Trace:
    return Trace(f"q{i}", 0, [5], [20], text, reason)  # pyright: ignore


def test_demonstrations_stand_nearest_last_without_their_thinking(source: Path):
    """R13; a system message of the question stands first."""
    tokenizer = Checkpoint.open(source).tokenizer()
    query = Prompt("q", ({"role": "system", "content": "w9"}, {"role": "user", "content": "w0"}))
    shots = [
        (Prompt(str(i), ({"role": "user", "content": f"w{i}"},)), f"x{i} x{i}") for i in (1, 2)
    ]
    text = str(tokenizer.decode(demonstrations.teacher_prompt(tokenizer, query, shots, None)))
    turns = [turn.split("<|im_start|>")[-1].split() for turn in text.split("<|im_end|>")]
    assert [turn[0] for turn in turns] == ["system", "user", "assistant", "user", "assistant",
                                           "user", "assistant"]  # fmt: skip
    assert [turn[1] for turn in turns[:-1]] == ["w9", "w2", "x2", "w1", "x1", "w0"]


@pytest.mark.parametrize(
    ("text", "reason", "how", "shown"),
    [
        ("<think> w1 </think>\n\nw2 ", "stop", "answer", "w2"),
        ("w1 </think> w2", "stop", "answer", "w2"),  # the template opens the block itself
        ("<think> w1 </think> w2", "stop", "response", "<think> w1 </think> w2"),
        ("<think> w1 </think> w2", "length", "answer", None),
        ("<think> w1", "stop", "answer", None),
        ("<think> w1 </think> ", "stop", "answer", None),
    ],
)
def test_r13_what_is_shown_of_an_answer(source: Path, tmp_path: Path, text, reason, how, shown):
    plan = planned(source, tmp_path, demonstration=how)
    assert demonstrations.demonstrated(plan, answered(0, text, reason)) == shown


@pytest.mark.parametrize(
    ("template", "tags", "ending", "text", "shown"),
    [
        # The template opens the block: a response that never closes it shows and says nothing.
        ("<think>", (), "<think> ", "w1", None),
        ("<think>", (), "<think> ", "w1 </think> w2", "w2"),
        # Tags that the template names.
        ("[THINK] [/THINK]", (), "", "[THINK] w1 [/THINK] w2", "w2"),
        ("", (), "", "[THINK] w1 [/THINK] w2", "[THINK] w1 [/THINK] w2"),
        # Tags that are given.
        ("", "[MUSE] [/MUSE]", "", "[MUSE] w1 [/MUSE] w2", "w2"),
        ("", "w3 w4", "w3 ", "w1", None),
    ],
)
def test_answers_are_read_and_shown_as_evaluate_reads_them(
    pico_pair, tmp_path: Path, template, tags, ending, text, shown
):
    file = pico_pair[0] / "chat_template.jinja"
    said = file.read_text().replace("assistant ", f"assistant {ending}")
    file.write_text(f"{said}{{# {template} #}}")
    plan = planned(pico_pair[0], tmp_path, think_tags=tags)
    trace = replace(answered(0, text), prompt_token_ids=plan.prompt_ids[0])
    assert demonstrations.demonstrated(plan, trace) == shown
    assert plan.read([trace]) == read_answers(
        [trace], plan.extract, plan.tokenizer, parse_tags(tags and [tags])
    )
    assert plan.read([trace]) == [shown]
    votes = plan.votes([[trace, replace(trace, finish_reason="length")]])
    assert (votes[0][0] is None) is (shown is None) and votes[0][1] is None


def test_words_for_answer_in_other_languages_are_read(source: Path, tmp_path: Path):
    text = "Respuesta: 7 (de 9 intentos)"
    plain = planned(source, tmp_path, answer="auto")
    words = planned(source, tmp_path, answer="auto", answer_words="respuesta")
    assert words.read([answered(0, text)]) != plain.read([answered(0, text)])
    assert "answer_words" not in plain.run.arguments and "think_tags" not in plain.run.arguments
    assert words.run.arguments["answer_words"] == ("respuesta",)
    with pytest.raises(BadInput, match="expected two tags"):
        planned(source, tmp_path, think_tags="[THINK]")


def test_answer_words_and_think_tags_of_the_command_line_change_the_votes(
    tmp_path: Path, capsys, monkeypatch
):
    """Two answers a question, which are one by the given words, and none by the given tags."""
    monkeypatch.chdir(tmp_path)
    questions = read_prompts("builtin:pool")[:2]
    for name, form in (("words", "Respuesta: 7\nLuego {} pasos"), ("tags", "[MUSE] {} [/MUSE] 7")):
        rows = [
            {"prompt_id": p.id, "response": form.format(50 + n)}
            for p in questions for n in range(2)
        ]  # fmt: skip
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("pool.jsonl").write_text(
        "".join(
            json.dumps({"id": p.id, "prompt": p.messages[-1]["content"]}) + "\n" for p in questions
        )
    )
    command = [
        "distill", "builtin:instruct", "--pool", "pool.jsonl", "--method", "lmsi", "--steps", "1",
        "--diagnose", "1", "--rank", "1", "--set", "samples=2", "--set", "max_tokens=30",
        "--set", "batch_size=1",
    ]  # fmt: skip
    rooms = {}
    for out, responses, *more in (
        ("none", "words"),
        ("words", "words", "--answer-words", "respuesta"),
        ("tags", "tags", "--think-tags", "[MUSE] [/MUSE]"),
    ):
        cli.main([*command, "--responses", f"{responses}.jsonl", "--out", out, *more])
        rooms[out] = re.findall(r"room for sharpening +([0-9.]+)", capsys.readouterr().out)[-1]
    assert rooms == {"none": "0.500", "words": "0.000", "tags": "0.000"}
    # The name by which the command says that its adapter is used.
    assert (
        resolve("builtin:instruct+words").tensors.keys()
        == resolve("builtin:instruct").tensors.keys()
    )
    with pytest.raises(SystemExit):
        cli.main([*command, "--responses", "tags.jsonl", "--out", "tags"])
    assert "think_tags" in capsys.readouterr().err


@pytest.mark.parametrize("virtual", [False, True])
def test_an_adapter_on_a_base_that_does_not_last_loads_in_peft(
    source: Path, done, pico_pair, tmp_path: Path, virtual: bool
):
    """BASE+ADAPTER and a candidate of a virtual family are put beside the adapter, as `base`."""
    from peft import AutoPeftModelForCausalLM

    spec = f"{source}+{done[1]}"
    if virtual:
        a, b = map(str, pico_pair)
        sweep(a, b, out=tmp_path / "f", ratios="0.45", virtual=True, smoke=False)
        spec = f"{tmp_path / 'f'}/family.json#slerp-0.45"
    out, questions = tmp_path / "out", write_pool(tmp_path / "pool.jsonl", 6)
    distill(spec, pool=questions, out=out, method="lmsi", **{**SMALL, "steps": 1})
    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(out / "base")
    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        loaded = theirs.eval()(input_ids=ids).logits
        start = open_checkpoint(spec).model(dtype=torch.float32)(input_ids=ids).logits
        ours = resolve(f"{out / 'base'}+{out}").model(dtype=torch.float32)(input_ids=ids).logits
        theirs.disable_adapter_layers()
        without = theirs(input_ids=ids).logits
    assert torch.allclose(without, start, atol=1e-5)
    assert not torch.allclose(loaded, start, atol=1e-3)
    # What `+` merges is rounded to the base's dtype, here bf16.
    assert (loaded - ours).abs().max() < 0.2 * (loaded - start).abs().max()


def test_demonstrations_are_dropped_whole_farthest_first_and_counted(source: Path, tmp_path: Path):
    """With room for two of three demonstrations the two nearest stay."""
    traces = [answered(i, "w1 w2") for i in range(16)]
    plan = planned(source, tmp_path)
    tokenizer = plan.checkpoint.tokenizer()
    live = living(plan)
    two = [(plan.prompts[i], "w1 w2") for i in (0, 1)]
    room = len(demonstrations.teacher_prompt(tokenizer, plan.prompts[2], two, None)) + 3
    plan = planned(source, tmp_path, shots=3, teacher_tokens=room)
    sets = nopsd.gather([np.arange(i, i + 9, dtype=np.int32) for i in range(16)], 200)
    (tmp_path / "work").mkdir()
    found = demonstrations.find_contexts(plan, live, traces, sets, [3, 8], tmp_path / "work")
    again = demonstrations.find_contexts(plan, live, [], sets, [], tmp_path / "work")
    assert found == again  # what is on disk is read
    assert {query: c.shot_K for query, c in found.items()} == {3: [2, 4, 1], 8: [7, 9, 6]}
    for query, context in found.items():
        ids = demonstrations.prompt_of_teacher(plan, tokenizer, traces, context, query)
        assert context.kept == 2 and len(ids) <= room
        query_ids = plan.prompt_ids[query]
        assert ids[-len(query_ids) :] == query_ids  # the question itself always stays
        text = str(tokenizer.decode(ids))
        shown = [plan.prompts[i].messages[0]["content"] in text for i in context.shot_K]
        assert shown == [True, True, False]


def test_questions_without_a_finished_answer_demonstrate_nothing(source: Path, tmp_path: Path):
    plan = planned(source, tmp_path, shots=5)
    live = living(plan)
    traces = [answered(i, "w1", "stop" if i in (2, 5) else "length") for i in range(16)]
    sets = nopsd.gather([np.arange(i, i + 9, dtype=np.int32) for i in range(16)], 200)
    (tmp_path / "work").mkdir()
    found = demonstrations.find_contexts(plan, live, traces, sets, [0, 9], tmp_path / "work")
    assert {query: set(c.shot_K) for query, c in found.items()} == {0: {2, 5}, 9: {2, 5}}
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").mkdir()
    none = [answered(i, "w1", "length") for i in range(16)]
    with pytest.raises(BadInput, match="of 16 answers 0 ended"):
        demonstrations.find_contexts(plan, live, none, sets, [0], tmp_path / "work")


def test_every_chosen_question_comes_once_per_epoch():
    chosen = [3, 5, 8, 13, 21]
    drawn = [i for step in range(5) for i in draw(chosen, 2, step, seed=0)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == chosen
    assert drawn[:5] != drawn[5:]
    assert draw(chosen, 2, 3, seed=0) == drawn[6:8]  # a step needs no other


def test_processes_share_a_batch():
    assert share_of(5, 0, 2) + share_of(5, 1, 2) == [0, 2, 4, 1, 3]
    with pytest.raises(BadInput, match="batch_size = 1"):
        share_of(1, 1, 2)


def test_micro_batches_hold_their_tokens_padding_included():
    assert grouped([3, 9, 4, 8, 1], 18) == [[1, 3], [2, 0, 4]]
    assert grouped([30, 2], 18) == [[0], [1]]


def test_majority_keeps_answers_that_agree_and_one_of_a_tie(source: Path, tmp_path: Path):
    plan = planned(source, tmp_path, samples=3, method="lmsi")
    texts = {0: ["w1", "w2", "w2"], 1: ["w5", "w4", "w3"], 2: ["w9", "w9", "w9"]}
    answers = {
        (f"q{i}", n): Trace(
            f"q{i}", n, [5], [20], texts.get(i, ["w7"] * 3)[n], "length" if i > 1 else "stop"
        )
        for i in range(16)
        for n in range(3)
    }
    kept = of_the_majority(running(plan, answers))
    one = majority(["w3", "w4", "w5"])
    assert [(i, trace.text) for i, trace in kept] == [(0, "w2"), (0, "w2"), (1, one)]


def test_lmsi_stops_after_a_few_questions_without_any_answer(
    source: Path, tmp_path: Path, monkeypatch
):
    plan = planned(source, tmp_path, samples=2, method="lmsi", answer="number")
    asked: list[int] = []

    def answer_pool(plan, live, prompts, *_, **__):
        asked.append(len(prompts))
        return {(p.id, n): Trace(p.id, n, [5], [20], text, "stop") for p in prompts for n in (0, 1)}

    monkeypatch.setattr(stages, "answer_pool", answer_pool)
    text, live = "no number", running(plan, {}).live
    with pytest.raises(BadInput, match="in the first 16 responses, of which 0 were cut"):
        stages.voted_answers(plan, live, tmp_path)
    assert asked == [8]
    text = "7"
    assert stages.voted_answers(plan, live, tmp_path).diagnostics.room == 0 and asked[1:] == [8, 16]


def test_room_counts_finished_answers_in_which_nothing_was_found(source: Path, tmp_path: Path):
    """Of (7, 7), (nothing, 5) and (cut, cut): shares of the most frequent 1, 1/2 and 0, one of the
    four finished unread."""
    plan = planned(source, tmp_path, answer="number")
    texts = [["7", "x 7"], ["w", "5"], ["9", "9"]]
    answers = {
        (f"q{i}", n): answered(i, text, "length" if i == 2 else "stop")
        for i, row in enumerate(texts)
        for n, text in enumerate(row)
    }
    assert stages.sharpening_room(plan, answers, plan.prompts[:3]) == (0.5, 0.25)


def test_diagnostics_warn_in_plain_words(source: Path, tmp_path: Path):
    plan = planned(source, tmp_path)
    good = stages.SetDiagnostics(
        pool=16, chosen=6, room=0.3, truncated=0.0, unread=0.0, consensus_pool=9.0,
        consensus_chosen=5.0, consensus_length_r=0.1, set_size=9.0, mean_jaccard_distance=0.87,
        student_entropy=0.3, teacher_entropy=0.28, entropy_gap=-0.02,
        entropy_gap_interval=(-0.03, -0.01), probed=3, shots=2.0, demonstrations_dropped=0,
        questions_with_dropped=0,
    )  # fmt: skip
    upside_down = reliability(np.arange(16), [5] * 16, [0] * 8 + [1] * 8, list(map(str, range(16))))
    quiet = [good, replace(good, consensus_length_r=None)]
    # Neither separates the paper's domains: PHYS has room below .04 and gained most.
    quiet += [replace(good, room=0.01), replace(good, mean_jaccard_distance=0.63)]
    assert [cautions(plan, measured) for measured in quiet] == [[]] * 4
    for change, said in (
        ({"entropy_gap_interval": (-0.01, 0.002)}, "not clearly sharper"),
        (
            {"truncated": 0.5},
            "50% of the answers were cut at the limit of 80 tokens, or the end of the context;",
        ),
        ({"unread": 0.4}, "In 40% of the finished answers 'last-line' finds nothing"),
        ({"consensus_length_r": 0.95}, "length"),
        ({"signal": upside_down}, "at the top of s(x) agree with the vote more often, and the bot"),
        ({"questions_with_dropped": 2, "demonstrations_dropped": 7}, "7 demonstrations of 2"),
    ):
        (line,) = cautions(plan, replace(good, **change))
        assert said in line


def test_auto_takes_the_end_of_the_pool_whose_answers_agree(source, tmp_path, monkeypatch):
    """16 questions with two answers each; those of the upper half of s(x) agree, the others don't:
    the top is reliable, and what the paper takes is warned of."""
    plan = planned(source, tmp_path, select="auto", answer="number", diagnose=16)
    answers = {
        (f"q{i}", n): answered(i, "7" if i >= 8 else str(n)) for i in range(16) for n in range(2)
    }
    monkeypatch.setattr(stages, "answer_pool", lambda *_, **__: answers)
    traces = [answers[f"q{i}", 0] for i in range(16)]
    signal = stages.pool_signal(plan, living(plan), traces, np.arange(16), tmp_path)
    assert signal.against == "votes" and (signal.auroc, signal.end) == (0.0, "top")
    chosen = stages.choose(plan, living(plan), np.arange(16), "top", tmp_path)
    assert chosen == [10, 11, 12, 13, 14, 15]
    assert json.loads((tmp_path / "selection.json").read_text())["select"] == "top"


def test_labels_are_told_and_change_no_training(source: Path, done, tmp_path: Path, capsys):
    """The same run with labels: the same adapter, and Maj - Avg of the pool's answers."""
    _, out = done
    labels = write_pool(tmp_path / "pool.jsonl", labels=True)
    with one_thread():
        result = distill(
            str(source), pool=labels, labels=labels, out=tmp_path / "out", **SMALL | {"steps": 1}
        )
    for name in ("selection.json", "contexts.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert records(out)[0] == {**records(tmp_path / "out")[0], "lr": records(out)[0]["lr"]}
    found = result.diagnostics.labelled
    assert found is not None and found.questions == 3
    assert found.signal is not None and found.signal.responses == 16
    assert "labels, not used" in capsys.readouterr().err


def test_labelled_measures_by_hand(source: Path, tmp_path: Path):
    """q0: 0, 0, 5 (label 0), q1: 3, 1, 3 (label 1): Avg 3/6, Maj 1/2."""
    labels = write_pool(tmp_path / "labels.jsonl", labels=True)
    plan = planned(source, tmp_path, labels=labels, answer="number", samples=3)
    texts = [["0", "0", "5"], ["3", "1", "3"]]
    answers = {
        (f"q{i}", n): answered(i, t) for i, row in enumerate(texts) for n, t in enumerate(row)
    }
    found = stages.labelled(plan, answers, plan.prompts[:2])
    assert found is not None and (found.avg, found.maj) == (0.5, 0.5) and found.signal is None


def test_beside_labels_answers_vote_by_the_check(source: Path, tmp_path: Path):
    """As `surgeon evaluate` counts them: option A and A are one answer, B loses."""
    (tmp_path / "labels.jsonl").write_text('{"id": "q0", "prompt": "w0 + w1 = ?", "answer": "A"}')
    labels = str(tmp_path / "labels.jsonl")
    plan = planned(source, tmp_path, labels=labels, check="choice", answer="(.+)", samples=3)
    answers = {("q0", n): answered(0, text) for n, text in enumerate(["option A", "A", "B"])}
    found = stages.labelled(plan, answers, plan.prompts[:1])
    assert found is not None and found.maj == 1.0


# --- baselines with a reward


def test_ttrl_rewards_the_majority_of_each_group():
    answers = ["4", "5", "4", None, None, None, "7", "8"]
    assert majority_rewards(answers, 4)[:6] == [1, 0, 1, 0, 0, 0]
    assert sorted(majority_rewards(answers, 4)[6:]) == [0, 1]
    assert majority_rewards(answers[::-1], 4) == majority_rewards(answers, 4)[::-1]


def test_ttrl_reads_a_finished_rollout_without_its_stop_token(source: Path, tmp_path: Path):
    """Of 7, 8, 8 (cut short) and 7 the two sevens agree."""
    plan = planned(source, tmp_path, method="ttrl", samples=4, answer=r"(\d)$")
    live = living(plan)
    seven, eight = (live.tokenizer.get_vocab()[word] for word in "78")
    answers = [
        Answer(0, [seven, 2], "stop"), Answer(1, [eight, 2], "stop"), Answer(2, [eight], "length"),
        Answer(3, [seven, 2], "stop"),
    ]  # fmt: skip
    run = running(plan, live=live)
    assert majority_reward(run, live.model, [AnsweredQuestion(0, answers)]) == [[1, 0, 0, 1]]


def test_advantages_are_standard_deviations_from_the_questions_mean():
    """Rewards 1, 0, 0, 1: mean 1/2, standard deviation of the sample .57735."""
    assert advantages([1, 0, 0, 1]) == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert advantages([1, 1]).tolist() == [0, 0]


@torch.no_grad()
def test_grpo_averages_tokens_then_responses_and_pulls_to_the_start(source: Path):
    """Against the definition, token by token; a penalty adds k3 of the KL, 0 at the start."""
    model = Checkpoint.open(source).model()
    prompts, responses, advantage = [[5, 6], [7]], [[8, 9, 10], [11]], [0.5, -2.0]
    share = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    each = torch.tensor([0.5, 0.5, 0.5, -2.0]) * share
    token = torch.tensor([8, 9, 10, 11])
    micro = Rewarded(sequences(prompts, responses), token, each, share)
    own = token_logprobs(model, micro).detach()
    wanted = []
    for prompt, response, a in zip(prompts, responses, advantage, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
        ours = torch.stack([logits[t, r] for t, r in zip(at, response, strict=True)])
        wanted.append(-a * ours.mean())
    loss = policy_loss(0.0)(model, micro, None)
    assert float(loss.total) == pytest.approx(float(sum(wanted)), rel=1e-5)
    assert loss.sums.keys() == {"student_entropy"}
    at_start = policy_loss(0.5)(model, micro, own)
    assert float(at_start.total) == pytest.approx(float(loss.total), rel=1e-5)
    away = policy_loss(0.5)(model, micro, own + 0.2)
    k3 = np.exp(0.2) - 0.2 - 1
    assert float(away.total - loss.total) == pytest.approx(0.5 * 2 * k3, rel=1e-3)
    assert float(away.sums["kl"]) == pytest.approx(4 * k3, rel=1e-3)


def test_intuitor_rewards_distance_from_uniform():
    """p = (3/4, 1/4): -log 2 - (log 3/4 + log 1/4) / 2 = 0.1438; a uniform p gives 0."""
    head = Head(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        head.module.weight.copy_(torch.eye(2))  # pyright: ignore
        sure, unsure = torch.tensor([[np.log(3.0), 0.0]]).float(), torch.zeros(1, 2)
        assert self_certainty(sure, head) == pytest.approx(0.143841, abs=1e-5)
        assert self_certainty(unsure, head) == pytest.approx(0.0, abs=1e-6)
        assert self_certainty(torch.cat([sure, unsure]), head) == pytest.approx(0.07192, abs=1e-5)


def test_a_reward_trains_and_a_kill_changes_nothing(source: Path, tmp_path: Path, monkeypatch):
    """TTRL for one epoch, killed in its second step, and when its states and best weights are gone,
    and continued; labels choose the step."""
    pool = write_pool(tmp_path / "pool.jsonl", 6)
    labels = write_pool(tmp_path / "labels.jsonl", 2, labels=True)
    settings = {**SMALL, "batch_size": 2, "max_tokens": 12, "save_every": 1, "validation": labels}
    settings |= {"method": "ttrl", "validate_every": 2}
    del settings["steps"]
    with one_thread():
        result = distill(str(source), pool=pool, out=tmp_path / "one", **settings)
        real, calls = drawing.rollout, iter(range(1))

        def rollout(*args):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(drawing, "rollout", rollout)
            with pytest.raises(KeyboardInterrupt):
                distill(str(source), pool=pool, out=tmp_path / "two", **settings)
        with monkeypatch.context() as patch:
            patch.setattr(artifact, "write", killed)
            with pytest.raises(KeyboardInterrupt):
                distill(str(source), pool=pool, out=tmp_path / "two", **settings)
        assert not (tmp_path / "two.partial" / "training" / "best.safetensors").exists()
        distill(str(source), pool=pool, out=tmp_path / "two", **settings)
    told = records(tmp_path / "one")
    assert [record["step"] for record in told] == [1, 2, 3]  # 6 questions, 2 a step
    assert told == records(tmp_path / "two")
    for name in ("adapter_model.safetensors", "training/validation.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for record in told:
        assert {"loss", "reward", "student_entropy", "length", "truncated"} <= record.keys()
        assert record["responses"] == 2 * SMALL["samples"] and 0 <= record["reward"] <= 1
    assert result.validated is not None and [step for step, _ in result.validated.maj] == [0, 2, 3]
    assert "chosen on 2 labelled problems" in (tmp_path / "one" / "README.md").read_text()
    if result.validated.step == 0:
        weights = load_file(tmp_path / "one" / "adapter_model.safetensors")
        assert all(not t.any() for name, t in weights.items() if "lora_B" in name)


def test_intuitor_runs_with_the_published_penalty(source: Path, tmp_path: Path):
    settings = {**SMALL, "steps": 1, "batch_size": 2, "max_tokens": 8, "penalty": 0.005}
    pool = write_pool(tmp_path / "pool.jsonl", 4)
    result = distill(str(source), pool=pool, out=tmp_path / "out", method="intuitor", **settings)
    (record,) = records(tmp_path / "out")
    assert record["reward"] > 0 and record["kl"] == pytest.approx(0, abs=1e-5)
    assert result.training["steps"] == 1


def test_rates_and_epochs_are_the_methods_own(source: Path, tmp_path: Path):
    def of(**changes: Any) -> tuple[float | None, int]:
        asked = {"lr": None, "steps": None, "batch_size": 4, **changes}
        plan = planned(source, tmp_path, **asked)
        return plan.schedule.lr, plan.steps

    assert of(method="ttrl", tuning="full") == (5e-7, 4)  # App. A: 16 questions, 4 a step
    assert of(method="ttrl") == (pytest.approx(1e-5), 4)
    assert of(method="intuitor", tuning="full", epochs=2) == (3e-6, 8)
    assert of(method="lmsi")[1] == of()[1] == 150
    assert of(epochs=1, share=0.5, select="auto")[1] == 2
    assert of(method="ttrl", steps=7)[1] == 7


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 1}, "both steps and epochs"),
        ({"epochs": 1, "steps": None, "method": "lmsi"}, "give steps instead of epochs"),
        ({"validate_every": 2}, "validate_every without validation"),
        ({"validation": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"check": "math"}, "check without labels"),
        ({"method": "grp"}, "Did you mean 'grpo'"),
        ({"method": "ttrl", "staleness": 1}, "'ttrl' has to draw with the weights that it updates"),
        ({"staleness": 1}, "only engine vllm is pushed weights"),
        ({"method": "dapo"}, "rewarded by labels, found none: give --labels FILE"),
        ({"select": "best"}, "bottom, top, auto, band"),
        ({"context": "far"}, "nearest, random"),
        ({"ema": "slow"}, "factors, exact"),
        ({"tuning": "some"}, "weights = some, expected one of: lora, full"),
        ({"tuning": "full", "ema": "exact"}, "averaged exactly"),
        ({"share": 0.0}, "share = 0.0"),
        ({"band": [0.5]}, "expected a list of 2"),
        ({"top_global": 5000}, "keeps all 144 neurons"),
        ({"shots": 0}, "shots = 0"),
        ({"samples": 1}, "samples = 1, expected at least 2"),
        ({"ema_rate": 0.0}, "ema_rate"),
        ({"steps": 0}, "steps = 0"),
        ({"tracker": "stdout"}, "tensorboard, trackio, wandb"),
        ({"max_tokens": 2045}, "doesn't fit the context of 2048"),
        ({"teacher_tokens": 3}, "more than teacher_tokens 3"),
        ({"method": "lmsi", "select": "top"}, "takes no select"),
        ({"targets": "q_proj,up"}, "found target 'up', expected all-linear or some of: down_proj,"),
        ({"method": "ttrl", "lowest": 0.3}, "lowest = 0.3 with method 'ttrl', which makes no use"),
        ({"penalty": 0.1}, "penalty = 0.1 with method 'nopsd'"),
        ({"method": "opsa", "context": "random"}, "context = random with method 'opsa'"),
        ({"device": "abacus"}, "device"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_in_one_line(source: Path, tmp_path: Path, changes, said):
    with pytest.raises(BadInput) as error:
        planned(source, tmp_path, **changes)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_of_accelerates_own_is_refused(source: Path, tmp_path: Path, monkeypatch, engine):
    """What `accelerate launch --use_fsdp` or `--use_deepspeed` tells the processes."""
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(BadInput, match=f"launched with {engine}.*parallel=fsdp"):
        planned(source, tmp_path)


def test_an_empty_pool_is_refused(source: Path, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match="holds no prompts"):
        planned(source, tmp_path, pool=str(tmp_path / "empty.jsonl"))
    with pytest.raises(BadInput, match="2 or more"):
        planned(source, tmp_path, pool=write_pool(tmp_path / "one.jsonl", 1))


def test_a_prompt_longer_than_the_context_is_refused_by_name(source: Path, tmp_path: Path):
    pool = tmp_path / "long.jsonl"
    rows = [{"prompt": "w1"}, {"id": "long", "prompt": "w2 " * 2100}]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"'long' has 21\d\d tokens"):
        planned(source, tmp_path, pool=str(pool))


def test_a_tokenizer_without_a_template_is_refused(pico_pair, tmp_path: Path):
    (pico_pair[0] / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="has no chat template"):
        planned(pico_pair[0], tmp_path)


def test_an_adapter_of_another_base_is_refused(done, make_checkpoint, tmp_path: Path):
    """Of another shape, and of the same shape but with other weights."""
    _, out = done
    for name, change in (("wide", {"hidden_size": 64}), ("sibling", {"seed": 7})):
        other = make_checkpoint(tmp_path / name, dtype="float32", **change)
        with pytest.raises(BadInput, match="another base"):
            planned(Path(f"{other}+{out}"), tmp_path)


def test_other_arguments_than_those_of_the_directory_are_refused(source: Path, done):
    _, out = done
    pool = str(out.parent / "pool.jsonl")
    with pytest.raises(BadInput, match="shots is 2 there and 1 here"):
        distill(str(source), pool=pool, out=out, **{**SMALL, "shots": 1})


# PEFT says of LoRA on experts' fused weights which it leaves alone.
@pytest.mark.filterwarnings(r"ignore:The following \w+ keys did not match")
def test_a_mixture_of_experts_is_distilled(make_checkpoint, tmp_path: Path):
    path = make_checkpoint(tmp_path / "moe", "qwen3_moe", dtype="float32")
    settings = SMALL | {"steps": 1}
    distill(str(path), pool=write_pool(tmp_path / "p.jsonl"), out=tmp_path / "out", **settings)
    assert resolve(f"{path}+{tmp_path / 'out'}").n_layers == 3
