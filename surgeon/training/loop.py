"""`fit`, the training loop.

`fit` knows no method. It takes batches from a generator (where on-policy rollouts live), a loss
function and, with a teacher, a target function that runs under the teacher's weights. Nothing in a
step depends on what was drawn before it: the random state is set from (seed, step, process), so a
run that was killed continues with the same numbers as one that wasn't.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon import jsonl, lineage
from surgeon.errors import BadInput
from surgeon.live.processor import fitting_threads
from surgeon.progress import bar
from surgeon.settings.training import Schedule
from surgeon.training.mastered import optimizer_of
from surgeon.training.state import METRICS, History, resume, save
from surgeon.training.student import Student
from surgeon.training.tuning import Teacher, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator


class Batch(NamedTuple):
    """One step's work on this process."""

    micros: list[Any]
    """What `loss` takes, one forward and backward pass each; at least one."""
    weight: float
    """What the summed loss is divided by (added up over processes): tokens, or responses; 0 where
    nothing is learned."""
    tokens: int
    """Response tokens, over which the loss function's sums are averaged for the record."""
    responses: int
    sums: dict[str, float]
    """Added up over this process's responses; their means are recorded."""


class Loss(NamedTuple):
    """What a loss function returns for a micro-batch."""

    total: Tensor
    """Scalar with a gradient, summed over tokens."""
    sums: dict[str, Tensor]
    """Summed over tokens, without gradients; the means per token are recorded."""


@dataclass(frozen=True)
class Guards:
    """What to watch while training: a metric's name, and below which share of where it began its
    mean over ten steps is called a collapse."""

    collapse: Mapping[str, float] = field(default_factory=dict)
    window: int = 10

    def warnings(self, records: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """Metric -> a sentence, for those that have collapsed by the last of the records."""
        collapsed = {}
        n = self.window
        if len(records) < 2 * n:
            return collapsed
        for name, share in self.collapse.items():
            begin = sum(r[name] for r in records[:n]) / n
            now = sum(r[name] for r in records[-n:]) / n
            if now < share * begin:
                collapsed[name] = (
                    f"{name.replace('_', ' ')} has collapsed: {now:.4g} over the last {n} steps, "
                    f"{begin:.4g} over the first {n} (step {records[-1]['step']}). Lower the "
                    "learning rate, or train for fewer steps."
                )
        return collapsed


@dataclass
class Spent:
    """Seconds of one step on this process."""

    rollouts: float
    """Until the batch was there: rollouts and their rewards, or examples."""
    teacher: float = 0.0
    """Passes under the teacher's weights."""

    @contextmanager
    def teaching(self, device: torch.device) -> Iterator[None]:
        """The block is the teacher's; what an accelerator has queued is waited for on both
        sides."""
        _wait_for(device)
        begun = time.monotonic()
        yield
        _wait_for(device)
        self.teacher += time.monotonic() - begun

    def record(self, seconds: float) -> dict[str, float]:
        """The parts of a step of so many seconds; what is left is the student's passes and its
        update."""
        return {
            "rollout_seconds": self.rollouts,
            "teacher_seconds": self.teacher,
            "student_seconds": seconds - self.rollouts - self.teacher,
        }


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Journal:
    """The record of every step: a line of `metrics.jsonl`, sent to the trackers, watched for a
    collapse, which is said once."""

    def __init__(
        self,
        accelerator: "Accelerator",
        directory: Path,
        history: History | None = None,
        guards: Guards | None = None,
    ):
        self.accelerator, self.file = accelerator, directory / METRICS
        before = history or History([], {})
        self.records, self.warnings = [*before.records], dict(before.warnings)
        self.guards = guards or Guards()

    def history(self) -> History:
        """All steps so far."""
        return History(self.records, self.warnings)

    def add(self, record: dict[str, float]) -> None:
        """Record a step."""
        self.records.append(record)
        collapsed = self.guards.warnings(self.records)
        fresh = {name: text for name, text in collapsed.items() if name not in self.warnings}
        self.warnings |= fresh
        if self.accelerator.is_main_process:
            for text in fresh.values():
                print(f"Warning: {text}", file=sys.stderr, flush=True)
            jsonl.append(self.file, {**record, "warnings": fresh} if fresh else record)
        self.accelerator.log(record, step=int(record["step"]))


def fit(
    student: Student,
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[..., Loss],
    directory: Path,
    *,
    steps: int,
    schedule: Schedule,
    teacher: Teacher | None = None,
    target: Callable[..., Any] | None = None,
    guards: Guards | None = None,
    what: str = "train",
) -> History:
    """Train; returns the record of every step, which `directory/metrics.jsonl` holds too.

    `batches(step)` yields the batches from that step on. `loss(model, micro, target)` is called
    with gradients; with a teacher, `target(model, micro)` is called before it under the teacher's
    weights, without (else the target is None). The state (parameters, teacher, optimizer) is saved
    every `schedule.save_every` steps, and a run that finds one in `directory` continues from it
    with the numbers it would have had. Raises `BadInput` when the loss is not finite.
    """
    accelerator = student.accelerator
    parameters = trainable(student.model)
    optimizer = optimizer_of(list(parameters.values()), schedule.weight_decay)
    start, history = resume(directory, student, optimizer, teacher)
    journal = Journal(accelerator, directory, history, guards)
    work = iter(batches(start))
    with ExitStack() as stack:
        if accelerator.num_processes == 1:  # several may disagree on what is faster
            stack.enter_context(fitting_threads(student.model))
        advance = stack.enter_context(bar(what, steps)) if accelerator.is_main_process else None
        if advance:
            advance(start)
        for step in range(start, steps):
            begun = time.monotonic()
            seed_everything(schedule.seed, step, accelerator.process_index)
            batch = next(work)
            spent = Spent(rollouts=time.monotonic() - begun)
            rate = schedule.rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            means = _backward(student, batch, loss, teacher, target, spent)
            _require_finite("the loss", means["loss"], step + 1)
            gradient = _clip(list(parameters.values()), schedule.clip)
            _require_finite("the norm of the gradient", gradient, step + 1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if teacher is not None:
                teacher.update()
            seconds = time.monotonic() - begun
            journal.add(
                {
                    "step": step + 1,
                    **means,
                    "lr": rate,
                    "gradient_norm": gradient,
                    "seconds": seconds,
                    **spent.record(seconds),
                    "tokens_per_s": means["tokens"] / seconds,
                }
            )
            if advance:
                advance(note=f"loss {means['loss']:.4f}")
            if schedule.save_every and (step + 1) % schedule.save_every == 0:
                save(directory, step + 1, student, optimizer, teacher)
    if start < steps and (not schedule.save_every or steps % schedule.save_every):
        save(directory, steps, student, optimizer, teacher)
    return journal.history()


def _backward(
    student: Student,
    batch: Batch,
    loss: Callable[..., Loss],
    teacher: Teacher | None,
    target: Callable[..., Any] | None,
    spent: Spent,
) -> dict[str, float]:
    """Leave a batch's gradient in the parameters; the means over all processes."""
    accelerator = student.accelerator
    world = accelerator.num_processes
    # Sums are kept where float64 exists, which isn't every accelerator.
    device = accelerator.device if world > 1 else torch.device("cpu")
    counts = torch.tensor(
        [batch.weight, batch.tokens, batch.responses, *batch.sums.values()],
        dtype=torch.float64, device=device,
    )  # fmt: skip
    weight, tokens, responses, *of_responses = _added(accelerator, counts).tolist()
    weight, counted = weight or 1.0, tokens or 1.0  # a step may have nothing to learn from
    most = int(_largest(accelerator, torch.tensor(len(batch.micros), device=device)))
    totals: dict[str, Tensor] = {}
    for number in range(most):
        # Peers with shards must make the same calls: one that has run out repeats without weight.
        micro, own = batch.micros[min(number, len(batch.micros) - 1)], number < len(batch.micros)
        if not own and not student.sharded:
            break
        pull = None
        if teacher is not None and target is not None:
            with (
                spent.teaching(accelerator.device),
                torch.no_grad(),
                student.taught_by(teacher.acting()),
            ):
                pull = student(target, micro)
        last = number == (most if student.sharded else len(batch.micros)) - 1
        with student.last(last):
            part: Loss = student(loss, micro, pull)
            # Averaged over processes by the wrapper, so multiplied here.
            (part.total * (world / weight if own else 0.0)).backward()
        if own:
            for name, value in {"loss": part.total.detach(), **part.sums}.items():
                totals[name] = totals.get(name, 0) + value.to(device).double()
    names = list(totals)
    added = _added(accelerator, torch.stack([totals[name] for name in names])).tolist()
    sums = dict(zip(names, added, strict=True))
    means = {name: value / counted for name, value in sums.items()}
    means["loss"] = sums["loss"] / weight
    means |= {name: v / responses for name, v in zip(batch.sums, of_responses, strict=True)}
    return {**means, "tokens": tokens, "responses": responses}


def _clip(parameters: list[nn.Parameter], clip: float) -> float:
    """Shorten the gradient to that norm (0: leave it); the norm it had."""
    norm: Any = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise BadInput(
            f"{what} became {value} in step {step}. Lower the learning rate and train anew, under "
            "another --out; the last saved state is kept."
        )


def _added(accelerator: "Accelerator", tensor: Tensor) -> Tensor:
    """The sum over processes."""
    return accelerator.reduce(tensor, "sum")  # pyright: ignore[reportReturnType]


def _largest(accelerator: "Accelerator", tensor: Tensor) -> Tensor:
    """The maximum over processes."""
    if accelerator.num_processes == 1:
        return tensor
    return accelerator.gather(tensor[None]).max()  # pyright: ignore


def seed_everything(seed: int, step: int, process: int) -> None:
    """Set torch's random state from these numbers alone."""
    text = lineage.digest_of([seed, step, process]).removeprefix("sha256:")
    torch.manual_seed(int(text[:15], 16))
