"""A step's rollouts, drawn by the student as it is: here, or by an engine that is pushed its
weights.

A rollout's random stream follows from the seed, the step, its question and its place in the batch,
so neither the number of processes nor a restart changes what is drawn. The rollouts of a question
share its prompt, which the decoder prefills once.
"""

# Shapes: none; see surgeon.decoding.

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from surgeon.decoding import Answer, Request, decode, stream_key
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pushing import PushedStudent
from surgeon.distill.run import TrainingRun
from surgeon.errors import BadInput
from surgeon.traces import Trace, stop_ids, text_of


class AnsweredQuestion(NamedTuple):
    """The answers to one question of the pool."""

    question: int
    answers: list[Answer]


class StepRollouts(NamedTuple):
    """What the student answered in a step."""

    questions: list[AnsweredQuestion]
    """In the order in which they were asked."""
    lag: int
    """Steps that the weights they were drawn with lag behind the student's."""
    generated: int
    """Tokens that were drawn, those of rollouts that were put aside among them."""


def step_rollouts(
    run: TrainingRun,
    engine: PushedStudent | None,
    step: int,
    questions: Sequence[int],
    places: Sequence[int],
    *,
    group: int = 1,
) -> StepRollouts:
    """`group` answers to each of the questions, which stand at these places of the whole batch.

    Another `engine` than the decoder here draws them with weights that may lag behind. Raises
    `BadInput` where the student's logits aren't finite any more.
    """
    plan, seed = run.plan, run.plan.settings.seed
    keys = [
        (f"{plan.prompts[i].id} step {step}", at)
        for i, place in zip(questions, places, strict=True)
        for at in range(place * group, (place + 1) * group)
    ]
    prompts = [plan.prompt_ids[i] for i in questions for _ in range(group)]
    try:
        if engine is None:
            stop = stop_ids(run.student.model, run.live.tokenizer)
            requests = [
                Request(ids, stream_key(seed, *key)) for ids, key in zip(prompts, keys, strict=True)
            ]
            answers = run.student.rollouts(lambda model: rollout(model, requests, stop, plan))
            lag = 0
        else:
            answers, lag = engine.rollouts(step, keys, prompts)
    except BadInput as error:
        if step == 0:
            raise
        raise BadInput(
            f"the rollouts of step {step + 1} failed: {error} If training did it, lower "
            "the learning rate and train anew, under another --out."
        ) from error
    firsts = range(0, len(answers), group)
    return StepRollouts(
        [
            AnsweredQuestion(i, answers[first : first + group])
            for i, first in zip(questions, firsts, strict=True)
        ],
        lag,
        sum(len(answer.token_ids) for answer in answers),
    )


def rollout(
    model: nn.Module, requests: Sequence[Request], stop: frozenset[int], plan: DistillPlan
) -> list[Answer]:
    """The student's answers, in the order of the requests."""
    drawn = plan.settings.rollout
    answers = decode(
        model, requests, stop=stop, max_tokens=plan.settings.sampling.max_tokens,
        temperature=drawn.temperature, top_p=drawn.top_p,
    )  # fmt: skip
    return sorted(answers, key=lambda answer: answer.index)


def traces_of(run: TrainingRun, rollouts: AnsweredQuestion) -> list[Trace]:
    """One question's rollouts as traces, whose answers can be read."""
    prompt = run.plan.prompts[rollouts.question]
    ids = run.plan.prompt_ids[rollouts.question]
    return [
        Trace(
            prompt.id, n, ids, answer.token_ids,
            text_of(run.live.tokenizer, answer.token_ids, answer.finish_reason),
            answer.finish_reason,
        )
        for n, answer in enumerate(rollouts.answers)
    ]  # fmt: skip


def told_of(rollouts: StepRollouts, engine: PushedStudent | None) -> dict[str, float]:
    """What is recorded of a step's rollouts, added up over responses."""
    answers = [answer for each in rollouts.questions for answer in each.answers]
    told = {
        "length": float(sum(len(answer.token_ids) for answer in answers)),
        "truncated": float(sum(answer.finish_reason == "length" for answer in answers)),
        "generated": float(rollouts.generated),
    }
    return told | ({} if engine is None else {"staleness": float(rollouts.lag * len(answers))})
