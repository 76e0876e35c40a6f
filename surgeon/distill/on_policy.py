"""Stage 4 of Neuron-OPSD: every step the student answers questions as it is now, and the loss is
the reverse KL of its distribution from the teacher's at each token of its own answers.
"""

# Shapes: P response positions, B sequences.

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from typing import Any, NamedTuple

from torch import Tensor, nn

from surgeon import nopsd
from surgeon.distill.demonstrations import prompt_of_teacher
from surgeon.distill.pushing import PushedStudent, pushed
from surgeon.distill.rollouts import step_rollouts, told_of
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.live.architecture import head_of
from surgeon.training.loop import Batch, Loss
from surgeon.training.sequences import (
    Sequences,
    draw,
    grouped,
    response_states,
    sequences,
    share_of,
    unembedding,
)
from surgeon.training.state import History
from surgeon.training.student import is_sharded
from surgeon.training.tuning import AveragedChange, AveragedWeights, Teacher


class Imitation(NamedTuple):
    """The same responses after the student's prompts and after the teacher's."""

    student: Sequences
    teacher: Sequences


def imitate(run: TrainingRun) -> History:
    """Draw the student towards its own slow average, which sees demonstrations."""
    with pushed(run) as engine:
        return run.fit(
            rollout_batches(run, engine), reverse_kl_loss, teacher=make_teacher(run),
            target=teacher_states, guards=GUARDS,
        )  # fmt: skip


def make_teacher(run: TrainingRun) -> Teacher:
    """The average that the student is drawn towards; its memory is said before it is taken."""
    model, averaging = run.student.model, run.plan.settings.averaging
    if averaging.ema == "factors":
        return AveragedWeights(model, averaging.ema_rate)
    needed = AveragedChange.bytes_needed(model)
    run.live.accelerator.print(f"exact average of the change: {needed / 1e9:.2f} GB in float32")
    return AveragedChange(model, averaging.ema_rate)


def teacher_states(model: nn.Module, micro: Any) -> tuple[Tensor, Tensor | None]:
    """The teacher's states at the positions of `micro.teacher`, and its unembedding where that is
    trained."""
    device = next(model.parameters()).device
    states_PD = response_states(model, micro.teacher.to(device))
    head = unembedding(model)
    if not head.requires_grad:
        return states_PD, None
    # A shard's gathered weight is overwritten when the student's comes back.
    return states_PD, head.detach().clone() if is_sharded(model) else head.detach()


def reverse_kl_loss(
    model: nn.Module, micro: Imitation, target: tuple[Tensor, Tensor | None]
) -> Loss:
    """Reverse KL of the student from the teacher on the student's own responses, Eq. 10."""
    device = next(model.parameters()).device
    head_VD, head = unembedding(model), head_of(model)
    states_PD = response_states(model, micro.student.to(device))
    both = nopsd.reverse_kl(
        states_PD, target[0], head_VD, teacher_head_VD=target[1], softcap=head.cap,
        factor=head.factor,
    )  # fmt: skip
    sums = {
        "kl": both.kl_T.sum(),
        "student_entropy": both.student_entropy_T.sum(),
        "teacher_entropy": both.teacher_entropy_T.sum(),
        "agreement": both.agree_T.sum(),
    }
    return Loss(both.total, sums)


def rollout_batches(
    run: TrainingRun, engine: PushedStudent | None = None
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: the student's rollouts of each step's questions, with both prompts."""
    plan, evidence, peers = run.plan, run.evidence, run.live.accelerator
    settings = plan.settings
    size = settings.batches.batch_size
    traces = [evidence.answers[prompt.id, 0] for prompt in plan.prompts]

    @cache
    def teacher_ids(i: int) -> tuple[int, ...]:
        return tuple(prompt_of_teacher(plan, run.live.tokenizer, traces, evidence.contexts[i], i))

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(evidence.chosen, size, step, settings.seed)
            places = share_of(size, peers.process_index, peers.num_processes)
            queries = [drawn[place] for place in places]
            rollouts = step_rollouts(run, engine, step, queries, places)
            responses = [each.answers[0].token_ids for each in rollouts.questions]
            lengths = [
                len(teacher_ids(i)) + len(r) for i, r in zip(queries, responses, strict=True)
            ]
            micros = [
                Imitation(
                    sequences(
                        [plan.prompt_ids[queries[b]] for b in part], [responses[b] for b in part]
                    ),
                    sequences(
                        [teacher_ids(queries[b]) for b in part], [responses[b] for b in part]
                    ),
                )
                for part in grouped(lengths, run.micro_tokens)
            ]
            tokens = sum(map(len, responses))
            yield Batch(
                micros,
                weight=tokens if settings.readings.loss == "mean" else len(responses),  # R14
                tokens=tokens,
                responses=len(responses),
                sums=told_of(rollouts, engine),
            )

    return from_step
