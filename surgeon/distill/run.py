"""Stage 4 as a method sees it: `TrainingRun`, and learning from answers that stand already."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from surgeon.distill.evidence import PoolEvidence
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import LiveModel
from surgeon.distill.validation import Validation
from surgeon.traces import Trace
from surgeon.training.loop import Batch, Guards, Loss, fit
from surgeon.training.memory import micro_tokens
from surgeon.training.sequences import (
    Targets,
    draw,
    grouped,
    nll_loss,
    require_plain_logits,
    sequences,
    share_of,
)
from surgeon.training.state import History
from surgeon.training.student import Student
from surgeon.training.tuning import Teacher, tune

GUARDS = Guards({"length": 0.5, "student_entropy": 0.2})
"""A mean length below half of where it began, or a token entropy below a fifth, is a collapse; for
methods whose student answers as it trains."""


class TrainingRun(NamedTuple):
    """What a method trains, on what, and where its record goes."""

    plan: DistillPlan
    evidence: PoolEvidence
    live: LiveModel
    student: Student
    directory: Path
    micro_tokens: int
    """Of a forward and backward pass."""

    @property
    def what(self) -> str:
        """What the progress bar says."""
        return f"train ({self.plan.settings.method})"

    def answers(self, question: int) -> list[Trace]:
        """The `samples` answers to a question of the pool."""
        name = self.plan.prompts[question].id
        samples = range(self.plan.settings.sampling.samples)
        return [self.evidence.answers[name, n] for n in samples]

    def fit(
        self,
        batches: Callable[[int], Iterator[Batch]],
        loss: Callable[..., Loss],
        *,
        teacher: Teacher | None = None,
        target: Callable[..., Any] | None = None,
        guards: Guards | None = None,
    ) -> History:
        """`training.fit` with the settings of the run."""
        if self.plan.validation:
            batches = self._validation.watched(batches)
        history = fit(
            self.student, batches, loss, self.directory, steps=self.plan.steps,
            schedule=self.plan.schedule, teacher=teacher, target=target, guards=guards,
            what=self.what,
        )  # fmt: skip
        if self.plan.validation:
            self._validation.keep_best()
        return history

    @property
    def _validation(self) -> Validation:
        return Validation(self.plan, self.live, self.student, self.directory)

    def learn(self, pairs: Sequence[tuple[int, Trace]]) -> History:
        """Train on answers as they stand: (question of the pool, answer)."""
        return self.fit(answer_batches(self, pairs), nll_loss)


def ready(
    plan: DistillPlan, evidence: PoolEvidence, live: LiveModel, directory: Path
) -> TrainingRun:
    """The student made of the model, and all that a method trains it with."""
    bf16 = any(tensor.dtype == torch.bfloat16 for tensor in live.model.parameters())
    require_plain_logits(live.model, plan.prompt_ids[0])
    adapter = tune(live.model, plan.settings.tuning, seed=plan.settings.seed)
    parallel = plan.settings.batches.parallel
    student = Student(live.model, live.accelerator, adapter, parallel=parallel, bf16=bf16)
    fits = micro_tokens(student, plan.settings.batches.micro_tokens, directory)
    return TrainingRun(plan, evidence, live, student, directory, fits)


def answer_batches(
    run: TrainingRun, pairs: Sequence[tuple[int, Trace]]
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: answers in turn, each once per epoch."""
    batches, peers = run.plan.settings.batches, run.live.accelerator

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(range(len(pairs)), batches.batch_size, step, run.plan.settings.seed)
            places = share_of(batches.batch_size, peers.process_index, peers.num_processes)
            share = [pairs[drawn[place]] for place in places]
            prompts = [run.plan.prompt_ids[i] for i, _ in share]
            responses = [trace.token_ids for _, trace in share]
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
            micros = [
                Targets(
                    sequences([prompts[b] for b in part], [responses[b] for b in part]),
                    torch.tensor([token for b in part for token in responses[b]]),
                )
                for part in grouped(lengths, run.micro_tokens)
            ]
            tokens = sum(map(len, responses))
            yield Batch(micros, tokens, tokens, len(responses), {"length": float(tokens)})

    return from_step
