"""Stage 4 of U-OPSD (Li et al., 2026; arXiv 2608.06296): the model's own majority solves the
question for the teacher, and the student is corrected where it disagreed.

Of a question x the student draws G rollouts, which vote with their answers. Where the most frequent
answer has at least the share tau of the G votes and some rollouts give another, the longest rollout
y+ that gives it is the pseudo-solution, and the k longest y- that don't are taught:

    loss = 1/(sum |y-|) sum over y-, t of KL( pi_bar(. | x, y+, y-_<t) || pi(. | x, y-_<t) )

with pi_bar a slow average of the student, as in Neuron-OPSD, over the whole vocabulary. The
direction is forward: the authors found that reverse KL loses the ends of answers. Other questions
are passed over; a step without any leaves the gradient 0.

Readings. tau = 1/2 and k = 1 as in the text; in its ablation tau = 0 is better. The text takes the
longest agreeing rollout and the abstract the shortest: its ablation finds little between them. A
rollout that is cut, or in which no answer is found, votes for nothing, so it disagrees and can be
taught, but never teaches. R25: the teacher sees the pseudo-solution as a turn, the question with
it, before the question (as R19); the whole response, since the bare answer teaches nothing (its
ablation), and without its thinking tags where the template would drop what is between them.
"""

# Shapes: P response positions, G rollouts of a question.

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surgeon import nopsd
from surgeon.answers import majority
from surgeon.decoding import Answer
from surgeon.distill.demonstrations import teacher_prompt
from surgeon.distill.on_policy import make_teacher, teacher_states
from surgeon.distill.pushing import PushedStudent, pushed
from surgeon.distill.rollouts import AnsweredQuestion, step_rollouts, told_of, traces_of
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.live.architecture import head_of
from surgeon.training.loop import Batch, Guards, Loss
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

THRESHOLD, TARGETS = 0.5, 1
"""tau and k."""


class Split(NamedTuple):
    """A question's rollouts, by their answers."""

    agreeing: list[int]
    """That give the most frequent one, the longest first."""
    disagreeing: list[int]
    """That don't, the longest first."""


class TaughtRollout(NamedTuple):
    """A rollout that is taught."""

    question: int
    answer: Answer
    teacher_ids: tuple[int, ...]
    """The teacher's prompt, with the pseudo-solution."""


class Corrected(NamedTuple):
    """The same responses after the student's prompts and after the teacher's."""

    student: Sequences
    teacher: Sequences
    weight_P: Tensor


def correct(run: TrainingRun) -> History:
    """Draw the student, where it disagrees with its majority, towards itself with the majority's
    solution."""
    with pushed(run) as engine:
        return run.fit(
            corrected_batches(run, engine), forward_kl_loss, teacher=make_teacher(run),
            target=teacher_states, guards=Guards({"length": GUARDS.collapse["length"]}),
        )  # fmt: skip


def split(votes: Sequence[str | None], lengths: Sequence[int], threshold: float) -> Split | None:
    """Who agrees with the most frequent answer, and who doesn't; None where nobody does, all do,
    or the most frequent has less than the share `threshold` of the votes."""
    best = majority(votes)
    order = sorted(range(len(votes)), key=lambda g: (-lengths[g], g))
    agreeing = [g for g in order if best is not None and votes[g] == best]
    disagreeing = [g for g in order if g not in agreeing]
    if not agreeing or not disagreeing or len(agreeing) < threshold * len(votes):
        return None
    return Split(agreeing, disagreeing)


def lessons(run: TrainingRun, asked: Sequence[AnsweredQuestion]) -> list[TaughtRollout]:
    """The rollouts of these questions that are taught."""
    plan, settings = run.plan, run.plan.settings.pseudo
    threshold = THRESHOLD if settings.threshold is None else settings.threshold
    traces = [traces_of(run, each) for each in asked]
    found = []
    for each, own, votes in zip(asked, traces, plan.votes(traces), strict=True):
        parts = split(votes, [len(answer.token_ids) for answer in each.answers], threshold)
        prompt = None
        if parts is not None:
            prompts = (solved_prompt(run, each.question, own[g].text) for g in parts.agreeing)
            prompt = next((ids for ids in prompts if len(ids) <= plan.teacher_tokens), None)
        if parts is not None and prompt is not None:
            taught = parts.disagreeing[: settings.targets or TARGETS]
            found += [TaughtRollout(each.question, each.answers[g], tuple(prompt)) for g in taught]
    return found


def solved_prompt(run: TrainingRun, question: int, solution: str) -> list[int]:
    """The teacher's prompt: the question with a solution, then the question again (R25)."""
    query, sampling = run.plan.prompts[question], run.plan.settings.sampling
    plain = solution
    for tag in run.plan.thinking_tags:
        plain = plain.replace(tag, "")

    def prompt(text: str) -> list[int]:
        turns = [(query, text.strip())]
        return teacher_prompt(
            run.live.tokenizer, query, turns, sampling.thinking, sampling.template
        )

    # A template that drops the thinking makes the shorter prompt of the text that has its tags.
    return max(prompt(solution), prompt(plain), key=len)


def forward_kl_loss(
    model: nn.Module, micro: Corrected, target: tuple[Tensor, Tensor | None]
) -> Loss:
    """Forward KL of the teacher from the student on the rollouts that are taught."""
    device = next(model.parameters()).device
    head_VD, head = unembedding(model), head_of(model)
    states_PD = response_states(model, micro.student.to(device))
    weight_P = micro.weight_P.to(device)
    both = nopsd.forward_kl(
        states_PD, target[0], head_VD, teacher_head_VD=target[1], weight_T=weight_P,
        softcap=head.cap, factor=head.factor,
    )  # fmt: skip
    sums = {
        "kl": both.kl_T @ weight_P,
        "student_entropy": both.student_entropy_T @ weight_P,
        "teacher_entropy": both.teacher_entropy_T @ weight_P,
        "agreement": both.agree_T @ weight_P,
    }
    return Loss(both.total, sums)


def corrected_batches(
    run: TrainingRun, engine: PushedStudent | None = None
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: of `samples` rollouts of each of the step's questions those that are
    taught."""
    plan, peers = run.plan, run.live.accelerator
    size, group = plan.settings.batches.batch_size, plan.settings.sampling.samples
    places = share_of(size, peers.process_index, peers.num_processes)

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(run.evidence.chosen, size, step, plan.settings.seed)
            questions = [drawn[place] for place in places]
            rollouts = step_rollouts(run, engine, step, questions, places, group=group)
            found = lessons(run, rollouts.questions)
            weight = 1.0
            if (
                not found
            ):  # a step without a lesson: something to pass through, which weighs nothing
                first = rollouts.questions[0]
                ids = tuple(plan.prompt_ids[first.question])
                found, weight = [TaughtRollout(first.question, first.answers[0], ids)], 0.0
            told = told_of(rollouts, engine)
            responses = sum(len(each.answers) for each in rollouts.questions)
            tokens = int(weight) * sum(len(lesson.answer.token_ids) for lesson in found)
            yield Batch(
                micros_of(run, found, weight),
                weight=tokens,
                tokens=tokens,
                responses=responses,
                sums=told | {"taught": len(found) * weight},
            )

    return from_step


def micros_of(run: TrainingRun, found: Sequence[TaughtRollout], weight: float) -> list[Corrected]:
    """What is taught as micro-batches."""
    responses = [lesson.answer.token_ids for lesson in found]
    lengths = [len(lesson.teacher_ids) + len(r) for lesson, r in zip(found, responses, strict=True)]
    return [
        Corrected(
            sequences(
                [run.plan.prompt_ids[found[b].question] for b in part], [responses[b] for b in part]
            ),
            sequences([found[b].teacher_ids for b in part], [responses[b] for b in part]),
            torch.full((sum(len(responses[b]) for b in part),), weight),
        )
        for part in grouped(lengths, run.micro_tokens)
    ]
