"""The slow teacher, the loop and its exact resume, on real tiny models."""

# Shapes: B sequences, T tokens, P response positions.

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.settings.training import Schedule, Tuning
from surgeon.training.loop import Batch, Guards, Loss, fit, seed_everything
from surgeon.training.mastered import MasteredAdamW, optimizer_of
from surgeon.training.sequences import (
    chunked_nll,
    require_plain_logits,
    response_states,
    sequences,
    unembedding,
)
from surgeon.training.state import METRICS, states
from surgeon.training.student import Student
from surgeon.training.tuning import AveragedChange, AveragedWeights, folded, trainable, tune

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]]
RESPONSES = [[20, 21, 22], [23, 24, 25, 26, 27], [28], [29, 30, 31, 32]]


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_checkpoint) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("training") / "m", dtype="float32")


@pytest.fixture
def model(source: Path) -> Any:
    return Checkpoint.open(source).model()


def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def micro(rows) -> tuple:
    return sequences([PROMPTS[b] for b in rows], [RESPONSES[b] for b in rows]), torch.tensor(
        [token for b in rows for token in RESPONSES[b]]
    )


def nll(model: nn.Module, given: tuple, target: Any) -> Loss:
    """Cross-entropy on fixed responses; with a teacher, pulled towards its states as well."""
    states_PD = response_states(model, given[0])
    logits_PV = states_PD @ unembedding(model).T
    total = nn.functional.cross_entropy(logits_PV, given[1], reduction="sum")
    if target is not None:
        total = total + (states_PD - target).square().sum()
    return Loss(total, {"nll": total.detach()})


def states_of(model: nn.Module, given: tuple) -> torch.Tensor:
    return response_states(model, given[0])


def batches(*groups: list[int]) -> Any:
    """Every step the same rows, in these micro-batches."""

    def generate(start: int) -> Iterator[Batch]:
        while True:
            rows = [b for group in groups for b in group]
            tokens = sum(len(RESPONSES[b]) for b in rows)
            yield Batch([micro(g) for g in groups], tokens, tokens, len(rows), {"length": tokens})

    return generate


def plain(record: dict) -> dict:
    """A record without the clock."""
    return {k: v for k, v in record.items() if "seconds" not in k and k != "tokens_per_s"}


# --- sequences


def test_states_are_those_that_predict_the_response(model):
    """The state at the last prompt token predicts the first response token."""
    found = sequences([[5, 6, 7], [8]], [[20, 21], [22, 23, 24]])
    assert found.ids_BT.tolist() == [[5, 6, 7, 20, 21], [8, 22, 23, 24, 0]]
    assert found.at_P.tolist() == [2, 3, 5, 6, 7]
    with torch.no_grad():
        together = response_states(model, found)
        alone = response_states(model, sequences([[8]], [[22, 23, 24]]))
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)


def test_chunked_nll_and_its_gradient_equal_the_unchunked(model):
    from surgeon.live.architecture import head_of

    gradients, totals = [], []
    for chunk in (2, 100):
        given, token_P = micro([0, 1, 2])
        total = chunked_nll(response_states(model, given), head_of(model), token_P, chunk)
        model.zero_grad()
        total.backward()
        totals.append(total.item())
        gradients.append([p.grad.clone() for p in model.parameters()])
    plain_total = nll(model, micro([0, 1, 2]), None).total.item()
    assert totals == pytest.approx([plain_total] * 2, rel=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_model_whose_logits_are_not_its_unembedding_is_refused(model, make_checkpoint, tmp_path):
    """A cap that the family applies is known; one that the config doesn't tell is not."""
    capped: Any = Checkpoint.open(make_checkpoint(tmp_path / "gemma", "gemma2")).model()
    for good in (model, capped):
        require_plain_logits(good, PROMPTS[0])
    forward = model.forward

    def louder(**inputs: Any) -> Any:
        out = forward(**inputs)
        out.logits = out.logits * 1.1
        return out

    model.forward = louder
    with pytest.raises(BadInput, match=r"Qwen3ForCausalLM, whose logits.*differ by 9%"):
        require_plain_logits(model, PROMPTS[0])


# --- what is tuned


def test_lora_starts_without_effect_and_follows_the_seed(source: Path):
    given = micro([0, 1])
    models = [Checkpoint.open(source).model() for _ in range(4)]
    with torch.no_grad():
        before = response_states(models[0], given[0])
        for model, seed in zip(models, (0, 0, 1), strict=False):
            tune(model, Tuning(rank=4), seed=seed)
        assert torch.equal(response_states(models[0], given[0]), before)
    weights = [torch.cat([p.flatten() for p in trainable(m).values()]) for m in models[:3]]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(".lora_" in name for name in trainable(models[0]))
    assert all(p.requires_grad for p in trainable(models[3]).values())


def test_full_weights_are_trained_in_float32(pico_pair):
    model: Any = Checkpoint.open(pico_pair[0]).model()
    assert tune(model, Tuning(weights="full")) is None
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}


def test_targets_that_match_nothing_are_refused(model):
    with pytest.raises(BadInput, match="no_such"):
        tune(model, Tuning(targets="no_such"))


def test_an_adapted_unembedding_is_refused(make_checkpoint, tmp_path: Path):
    model: Any = Checkpoint.open(make_checkpoint(tmp_path / "m", tied=False)).model()
    tune(model, Tuning(targets="lm_head"))
    with pytest.raises(BadInput, match="leave it out of the targets"):
        unembedding(model)


@pytest.mark.parametrize(
    "wrong", [{"weights": "some"}, {"rank": 0}, {"dropout": 1.0}, {"mastered": True}]
)
def test_wrong_tunings_are_refused(wrong):
    with pytest.raises(BadInput):
        Tuning(**wrong)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_gradient_checkpointing_changes_no_gradient(source: Path, weights):
    gradients = []
    for recompute in (False, True):
        model: Any = Checkpoint.open(source).model().train()
        tune(model, Tuning(weights=weights, gradient_checkpointing=recompute))
        nll(model, micro([0, 1, 2]), None).total.backward()
        gradients.append([p.grad for p in trainable(model).values()])
        assert any(grad.abs().max() > 0 for grad in gradients[-1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# --- the teacher


def test_eq09_teacher_starts_at_the_student_and_moves_by_the_rate(model):
    tune(model, Tuning(weights="full"))
    teacher = AveragedWeights(model, rate=0.25)
    name, weight = next(iter(trainable(model).items()))
    start = weight.detach().clone()
    assert torch.equal(teacher.tensors[name], start)
    with torch.no_grad():
        weight += 4.0
    teacher.update()  # .75 * start + .25 * (start + 4)
    torch.testing.assert_close(teacher.tensors[name], start + 1.0)
    teacher.update()
    torch.testing.assert_close(teacher.tensors[name], start + 1.75)


def test_teacher_of_a_bfloat16_model_is_kept_in_float32_and_moves():
    """A gap of 2% at rate .01 would be rounded away in bfloat16 every time."""
    layer = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    teacher = AveragedWeights(layer, rate=0.01)
    with torch.no_grad():
        layer.weight.mul_(1.02)
        before = teacher.tensors["weight"].clone()
        for _ in range(200):
            teacher.update()
        gap = (layer.weight.float() - before).norm()
        left = (layer.weight.float() - teacher.tensors["weight"]).norm()
    assert left / gap == pytest.approx(0.99**200, rel=0.01)


@pytest.mark.parametrize("kind", ["factors", "exact", "full"])
def test_teacher_acts_inside_its_block_only(source: Path, kind):
    """Inside, the model computes with the average; afterwards with its own weights, to the bit."""
    model: Any = Checkpoint.open(source).model()
    tune(model, Tuning(weights="full" if kind == "full" else "lora", rank=4))
    teacher = (AveragedChange if kind == "exact" else AveragedWeights)(model, 0.5)
    given = micro([0, 1])[0]
    with torch.no_grad():
        start = response_states(model, given)
        torch.manual_seed(0)
        for parameter in trainable(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        moved = response_states(model, given)
        with teacher.acting():
            torch.testing.assert_close(response_states(model, given), start)
        assert torch.equal(response_states(model, given), moved)
        teacher.update()
        with teacher.acting():
            between = response_states(model, given)
    assert not torch.allclose(between, start) and not torch.allclose(between, moved)
    assert all(p.requires_grad for p in trainable(model).values())


def test_r12_exact_average_is_that_of_the_product_and_factors_are_not(source: Path):
    model: Any = Checkpoint.open(source).model()
    tune(model, Tuning(rank=4, alpha=8))
    exact, factors = AveragedChange(model, 0.5), AveragedWeights(model, 0.5)
    name = next(iter(exact.layers))
    layer: Any = exact.layers[name]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = torch.zeros(b.shape[0], a.shape[1])
    torch.manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            a.normal_()
            b.normal_()
        expected = 0.5 * expected + 0.5 * (8 / 4) * (b @ a).detach()
        exact.update()
        factors.update()
    torch.testing.assert_close(exact.tensors[name], expected)
    mean_a, mean_b = (factors.tensors[f"{name}.lora_{x}.default.weight"] for x in "AB")
    assert not torch.allclose(2 * mean_b @ mean_a, expected, atol=0.1)
    # What the model computes with it: the base plus the averaged change.
    x = torch.randn(2, a.shape[1])
    with torch.no_grad(), exact.acting():
        torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ expected.T)
    assert AveragedChange.bytes_needed(model) == sum(4 * t.numel() for t in exact.tensors.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folding_computes_the_same_and_leaves_every_bit(make_checkpoint, tmp_path: Path, dtype):
    model: Any = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype=dtype)).model()
    tune(model, Tuning(rank=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.normal_(0, 0.05)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        given = micro([0, 1])[0]
        plain_PD = response_states(model, given)
        with folded(model):
            folded_PD = response_states(model, given)
        tolerance = 1e-4 if dtype == "float32" else 0.1
        torch.testing.assert_close(folded_PD, plain_PD, rtol=tolerance, atol=tolerance)
        assert torch.equal(response_states(model, given), plain_PD)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- the loop


def test_schedule_rises_and_falls():
    schedule = Schedule(lr=1.0, warmup=0.2, decay="linear")
    assert [round(schedule.rate(s, 10), 3) for s in range(10)] == [
        0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125,
    ]  # fmt: skip
    cosine = Schedule(lr=2.0, warmup=0.0)
    assert cosine.rate(0, 11) == 2.0 and cosine.rate(6, 11) == pytest.approx(1.0)
    assert Schedule(decay="constant", lr=0.1).rate(149, 150) == 0.1


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"lr": math.nan}, {"warmup": 2.0}, {"decay": "step"}]
)
def test_wrong_schedules_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Schedule(**wrong)


def test_accumulated_micro_batches_equal_one_batch(source: Path, tmp_path: Path):
    """Gradients are summed over micro-batches and divided by all tokens at once."""
    results = []
    for groups in ([[0, 1, 2, 3]], [[0], [1, 2], [3]]):
        model: Any = Checkpoint.open(source).model()
        tune(model, Tuning(weights="full"))
        student = Student(model, accelerator())
        out = tmp_path / str(len(groups))
        schedule = Schedule(lr=1e-3, warmup=0, save_every=0)
        records = fit(student, batches(*groups), nll, out, steps=2, schedule=schedule).records
        results.append((records, [p.detach().clone() for p in model.parameters()]))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-5)
        assert one["length"] == 13 / 4
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", ["factors", "exact", "full", "mastered"])
def test_a_killed_run_continues_with_the_numbers_it_would_have_had(
    source: Path, tmp_path: Path, kind
):
    """Killed in step 6 with a state of step 4 behind it, and a torn last line in its record."""

    def run(out: Path, killed_at: int | None = None):
        model: Any = Checkpoint.open(source).model()
        full = Tuning(weights="full", mastered=kind == "mastered")
        tuning = full if kind in ("full", "mastered") else Tuning(rank=4, dropout=0.1)
        tune(model, tuning)
        teacher = (AveragedChange if kind == "exact" else AveragedWeights)(model, 0.1)
        steady = batches([0, 1], [2, 3])

        def work(start: int) -> Iterator[Batch]:
            for step, batch in enumerate(steady(start), start):
                if step == killed_at:
                    raise Killed
                yield batch

        schedule = Schedule(lr=1e-2, save_every=2)
        records = fit(
            Student(model, accelerator()), work, nll, out, steps=8, schedule=schedule,
            teacher=teacher, target=states_of,
        ).records  # fmt: skip
        return records, trainable(model), teacher.tensors

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", killed_at=5)
    assert [p.name for p in states(tmp_path / "cut")] == ["state-000004"]
    file = tmp_path / "cut" / METRICS
    assert len(file.read_text().splitlines()) == 5
    with open(file, "a") as lines:
        lines.write('{"step": 6, "lo')
    (tmp_path / "cut" / "state-000006.partial").mkdir()
    again = run(tmp_path / "cut")
    assert [plain(r) for r in again[0]] == [plain(r) for r in whole[0]]
    assert len({r["loss"] for r in whole[0]}) == 8
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [plain(r) for r in written] == [plain(r) for r in whole[0]]
    for mine, other in zip(again[1:], whole[1:], strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_bfloat16_weights_are_their_masters_rounded_which_move_as_float32_ones():
    """Steps of 1e-4 of a weight: bfloat16 alone would round each of them away."""
    torch.manual_seed(0)
    start = torch.randn(8, 5).bfloat16()
    plain = torch.nn.Parameter(start.float())
    small = torch.nn.Parameter(start.clone())
    theirs, mine = optimizer_of([plain], 0.1), optimizer_of([small], 0.1)
    assert isinstance(theirs, torch.optim.AdamW) and isinstance(mine, MasteredAdamW)
    for _ in range(40):
        gradient = torch.randn(8, 5).bfloat16()
        plain.grad, small.grad = gradient.float(), gradient
        for optimizer in (theirs, mine):
            optimizer.param_groups[0]["lr"] = 1e-4
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(mine.state[small]["master"], plain.detach())
    assert torch.equal(small, plain.detach().bfloat16()) and not torch.equal(small, start)


def test_mastered_weights_turn_as_far_as_float32_ones(source: Path):
    """Rotary frequencies in bfloat16 would be off by radians at a few thousand tokens."""
    model: Any = Checkpoint.open(source).model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tune(model, Tuning(weights="full", mastered=True))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert any("inv_freq" in name for name in before)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize("mastered", [False, True])
def test_a_weight_without_a_gradient_stays_and_is_no_hindrance_to_resuming(
    source: Path, tmp_path: Path, mastered: bool
):
    """Text never passes the towers of a model that sees, nor a bias of routers."""
    for steps in (2, 4):
        model: Any = Checkpoint.open(source).model()
        model.unused = torch.nn.Parameter(torch.ones(3))
        tune(model, Tuning(weights="full", mastered=mastered))
        student, schedule = Student(model, accelerator()), Schedule(save_every=2)
        fit(student, batches([0, 1]), nll, tmp_path, steps=steps, schedule=schedule)
        assert torch.equal(model.unused.float(), torch.ones(3))
    assert [p.name for p in states(tmp_path)] == ["state-000004"]


def test_a_finished_run_is_not_trained_further(source: Path, tmp_path: Path):
    def never(start: int) -> Iterator[Batch]:
        yield from ()

    first = []
    for work in (batches([0]), never):
        model: Any = Checkpoint.open(source).model()
        tune(model, Tuning(rank=2))
        student, schedule = Student(model, accelerator()), Schedule(save_every=2)
        records = fit(student, work, nll, tmp_path, steps=3, schedule=schedule).records
        first.append(([plain(r) for r in records], list(trainable(model).values())))
    assert first[0][0] == first[1][0]
    assert all(torch.equal(a, b) for a, b in zip(first[0][1], first[1][1], strict=True))


def test_a_small_model_trains_on_one_thread(model, tmp_path: Path):
    """Two threads that wait for one another made training 25 times slower on a busy machine."""
    threads: list[int] = []

    def loss(*args: Any) -> Loss:
        threads.append(torch.get_num_threads())
        return nll(*args)

    student, before = Student(model, accelerator()), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(student, batches([0]), loss, tmp_path, steps=1, schedule=Schedule())
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(model, tmp_path: Path):
    tune(model, Tuning(rank=2))

    def broken(model: nn.Module, given: tuple, _: Any) -> Loss:
        found = nll(model, given, None)
        return found._replace(total=found.total * math.inf)

    student = Student(model, accelerator())
    with pytest.raises(BadInput, match="the loss became inf in step 1"):
        fit(student, batches([0]), broken, tmp_path, steps=9, schedule=Schedule())
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_guards_tell_a_collapse_once(model, tmp_path: Path, capsys):
    tune(model, Tuning(rank=2))

    def shrinking(start: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches([0])(start)):
            yield batch._replace(sums={"length": 100.0 if step < 4 else 10.0})

    history = fit(
        Student(model, accelerator()), shrinking, nll, tmp_path, steps=10,
        schedule=Schedule(save_every=0), guards=Guards({"length": 0.5}, window=2),
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [row["warnings"] for row in rows if "warnings" in row] == [history.warnings]
    assert [row["step"] for row in rows if "warnings" in row] == [
        6
    ]  # the means of steps 5 and 6, and of 1 and 2, are 10 and 100
    assert "length has collapsed: 10 over the last 2 steps, 100" in capsys.readouterr().err


def test_random_state_follows_from_seed_step_and_process():
    drawn = {}
    for numbers in ((0, 1, 0), (0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)):
        seed_everything(*numbers)
        value = torch.rand(1).item()
        assert drawn.setdefault(numbers, value) == value
    assert len(set(drawn.values())) == 4


# --- several processes

CASES = [("lora", "ddp"), ("full", "ddp"), ("lora", "fsdp"), ("full", "fsdp")]


def trained(source: str, out: Path, weights: str, parallel: str) -> dict[str, Any]:
    """Two steps, then two more by a new model that finds their state; the end of it, whole.

    With two processes one has a single micro-batch, the other three.
    """
    accelerator = Accelerator(cpu=True)
    mine = [[0], [1], [2], [3]]
    if accelerator.num_processes > 1:
        mine = (mine[:1], mine[1:])[accelerator.process_index]
    for steps in (2, 4):
        model: Any = Checkpoint.open(source).model()
        tune(model, Tuning(weights=weights, rank=4))  # pyright: ignore
        student = Student(model, accelerator, parallel=parallel)
        teacher = AveragedWeights(model, 0.1)
        records = fit(
            student, batches(*mine), nll, out, teacher=teacher, target=states_of, steps=steps,
            schedule=Schedule(lr=1e-2, warmup=0, decay="constant", save_every=2),
        ).records  # fmt: skip
    return {
        "records": [plain(r) for r in records],
        "weights": student.whole(dict(trainable(model))),
        "teacher": student.whole(teacher.tensors),
        "drawn": student.rollouts(lambda m: greedy(m, accelerator.process_index)),
    }


def greedy(model: nn.Module, process: int) -> list[int]:
    """Decode a few tokens, more on the second process: peers must not wait for each other."""
    from surgeon.decoding import Request, decode

    most = 4 + 5 * process
    requests = [Request(PROMPTS[0], b"0" * 16)]
    (answer,) = decode(model, requests, stop=frozenset(), max_tokens=most, temperature=0)
    return answer.token_ids[:4]


def peers(source: str, out: str) -> None:
    """What each of two processes runs."""
    torch.set_num_threads(1)
    for weights, parallel in CASES:
        result = trained(source, Path(out) / f"{weights}-{parallel}", weights, parallel)
        if Accelerator(cpu=True).is_main_process:
            torch.save(result, Path(out) / f"{weights}-{parallel}.pt")
    for parallel in ("ddp", "fsdp"):
        taught(source, Path(out) / f"sft-{parallel}", parallel)


def taught(source: str, out: Path, parallel: str) -> list[float]:
    """`surgeon sft` on seven answers, four of them a step; its losses."""
    from surgeon.sft import sft

    rows = [
        {"id": f"p{n}", "prompt": f"w{n} w1", "response": " ".join(["w3"] * (1 + n))}
        for n in range(7)
    ]
    file = out.with_suffix(f".{os.environ.get('RANK', '0')}.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft(source, traces=[str(file)], out=out, parallel=parallel, batch_size=4, lr=1e-2, epochs=2,
        device="cpu")  # fmt: skip
    metrics = (out / "training" / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in metrics]


def launched(code: str, processes: int = 2) -> None:
    """Run Python code in processes that know each other."""
    code += "\nfrom surgeon.training.processes import end\nend()"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
                "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    )
    done = subprocess.run(
        [*launcher, "--no-python", sys.executable, "-c", code],
        env=env, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_agree_with_one(source: Path, tmp_path: Path):
    """With DDP and with fully_shard; also over a stop and a continuation."""
    launched(f"import test_training; test_training.peers({str(source)!r}, {str(tmp_path)!r})")
    for weights, parallel in CASES:
        name = f"{weights}-{parallel}"
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        one = trained(str(source), tmp_path / f"{name}-alone", weights, parallel)
        assert len(two["records"]) == 4
        for a, b in zip(one["records"], two["records"], strict=True):
            for number in ("loss", "nll", "length", "tokens", "responses"):
                assert a[number] == pytest.approx(b[number], rel=2e-4), (name, number)
        for part in ("weights", "teacher"):
            assert one[part].keys() == two[part].keys()
            for key, tensor in one[part].items():
                torch.testing.assert_close(tensor, two[part][key], rtol=1e-3, atol=2e-4)
        assert one["drawn"] == two["drawn"]
    alone = taught(str(source), tmp_path / "sft-alone", "ddp")
    weights = Checkpoint.open(tmp_path / "sft-alone").model().state_dict()
    for parallel in ("ddp", "fsdp"):
        # What is there is not trained again: these are the losses of two processes.
        assert taught(str(source), tmp_path / f"sft-{parallel}", parallel) == pytest.approx(
            alone, rel=2e-4
        )
        two = Checkpoint.open(tmp_path / f"sft-{parallel}").model().state_dict()
        for key, tensor in weights.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-3, atol=2e-4)
    assert len(alone) == 4 and alone[-1] < alone[0]
