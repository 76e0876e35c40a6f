"""Stage 4: what the student is trained on, and what pulls it where.

Neuron-OPSD: every step the student answers questions as it is now; the loss is the reverse KL of
its distribution from the teacher's at each token of its own answers. LMSI: the answers that agree
with the majority of their question's, drawn before training, are learned as they stand.
"""

# Shapes: P response positions, B sequences.

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surgeon import lineage, nopsd
from surgeon.decoding import Answer, Request, decode, stream_key
from surgeon.distill.evidence import Evidence, prompt_of_teacher, vote
from surgeon.distill.plan import BY_TRL, Plan
from surgeon.errors import BadInput
from surgeon.live.architecture import head_of
from surgeon.traces import Trace, stop_ids
from surgeon.training import (
    AveragedChange,
    AveragedWeights,
    Batch,
    Guards,
    History,
    Loss,
    Sequences,
    Student,
    Targets,
    Teacher,
    fit,
    grouped,
    is_sharded,
    nll_loss,
    response_states,
    sequences,
    share_of,
    tune,
    unembedding,
)

GUARDS = Guards({"length": 0.5, "student_entropy": 0.2})
"""A mean length below half of where it began, or a token entropy below a fifth, is a collapse."""


class Trained(NamedTuple):
    """What stage 4 left."""

    student: Student
    adapter: Any
    """The PEFT wrapper; None for full weights."""
    history: History


def train(plan: Plan, evidence: Evidence, work: Path) -> Trained:
    """Train the model of stage 1 by the plan's method, continuing where `work` left off."""
    model, settings = evidence.model, plan.settings
    bf16 = any(tensor.dtype == torch.bfloat16 for tensor in model.parameters())
    adapter = tune(model, plan.tuning, seed=plan.schedule.seed)
    student = Student(
        model,
        plan.accelerator,
        parallel=settings["parallel"],
        bf16=bf16,
    )
    plan.accelerator.init_trackers("surgeon", config=flat(settings))
    directory, what = work / "training", f"train ({settings['method']})"
    if settings["method"] == "nopsd":
        history = fit(
            student, on_policy(plan, evidence, student), imitation, directory,
            steps=plan.settings["steps"], schedule=plan.schedule, guards=GUARDS, what=what,
            teacher=make_teacher(plan, student), target=teacher_states,
        )  # fmt: skip
    elif settings["method"] in BY_TRL:
        from surgeon.distill.grpo import train_grpo

        history = train_grpo(plan, evidence, student, adapter, directory, GUARDS, what)
    else:
        history = fit(
            student, majority_answers(plan, evidence), nll_loss, directory,
            steps=plan.settings["steps"], schedule=plan.schedule, what=what,
        )  # fmt: skip
    # Not end_training(), which would part the processes before the result is written.
    for tracker in plan.accelerator.trackers:
        tracker.finish()
    return Trained(student, adapter, history)


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as trackers take them."""
    plain = lineage.plain(settings)
    return {k: str(v) if v is None or isinstance(v, list) else v for k, v in plain.items()}


def make_teacher(plan: Plan, student: Student) -> Teacher:
    """The average that the student is drawn towards; its memory is said before it is taken."""
    rate = plan.settings["ema_rate"]
    if plan.settings["ema"] == "factors":
        return AveragedWeights(student.model, rate)
    needed = AveragedChange.bytes_needed(student.model)
    plan.accelerator.print(f"exact average of the change: {needed / 1e9:.2f} GB in float32")
    return AveragedChange(student.model, rate)


# --- Neuron-OPSD ----------------------------------------------------------------------------------


class Micro(NamedTuple):
    """The same responses after the student's prompts and after the teacher's."""

    student: Sequences
    teacher: Sequences


def teacher_states(model: nn.Module, micro: Micro) -> tuple[Tensor, Tensor | None]:
    """The teacher's states at the response positions, and its unembedding where that is trained."""
    device = next(model.parameters()).device
    states_PD = response_states(model, micro.teacher.to(device))
    head = unembedding(model)
    if not head.requires_grad:
        return states_PD, None
    # A shard's gathered weight is overwritten when the student's comes back.
    return states_PD, head.detach().clone() if is_sharded(model) else head.detach()


def imitation(model: nn.Module, micro: Micro, target: tuple[Tensor, Tensor | None]) -> Loss:
    """Reverse KL of the student from the teacher on the student's own responses, Eq. 10."""
    device = next(model.parameters()).device
    head_VD, cap = unembedding(model), head_of(model).cap
    states_PD = response_states(model, micro.student.to(device))
    found = nopsd.reverse_kl(states_PD, target[0], head_VD, teacher_head_VD=target[1], softcap=cap)
    sums = {
        "kl": found.kl_T.sum(),
        "student_entropy": found.student_entropy_T.sum(),
        "teacher_entropy": found.teacher_entropy_T.sum(),
        "agreement": found.agree_T.sum(),
    }
    return Loss(found.total, sums)


def on_policy(plan: Plan, evidence: Evidence, student: Student) -> Any:
    """`batches(step)`: the student's rollouts of each step's questions, with both prompts.

    A step's questions follow from the seed and the step; a rollout's random stream from those and
    its place in the batch, so neither the number of processes nor a restart changes what is drawn.
    """
    accelerator, tokenizer = plan.accelerator, evidence.tokenizer
    stop = stop_ids(student.model, tokenizer)
    traces = [evidence.answers[prompt.id, 0] for prompt in plan.prompts]
    size, micro_tokens = plan.settings["batch_size"], plan.settings["micro_tokens"]
    told: dict[int, list[int]] = {}

    def asked(i: int) -> list[int]:
        if i not in told:
            told[i] = prompt_of_teacher(plan, tokenizer, traces, evidence.contexts[i], i)
        return told[i]

    def batches(start: int) -> Iterator[Batch]:
        step = start
        while True:
            drawn = draw(evidence.chosen, size, step, plan.schedule.seed)
            places = share_of(size, accelerator.process_index, accelerator.num_processes)
            queries = [drawn[place] for place in places]
            requests = [
                Request(
                    plan.prompt_ids[i],
                    stream_key(plan.schedule.seed, f"{plan.prompts[i].id} step {step}", place),
                )
                for i, place in zip(queries, places, strict=True)
            ]
            try:
                answers = student.rollouts(
                    lambda model, requests=requests: rollout(model, requests, stop, plan)
                )
            except BadInput as error:
                if step == 0:
                    raise
                raise BadInput(
                    f"the rollouts of step {step + 1} failed: {error} If training did it, lower "
                    "the learning rate and train anew, under another --out."
                ) from error
            responses = [answer.token_ids for answer in answers]
            micros = [
                Micro(
                    sequences([plan.prompt_ids[queries[b]] for b in part],
                              [responses[b] for b in part]),
                    sequences([asked(queries[b]) for b in part], [responses[b] for b in part]),
                )
                for part in grouped(
                    [len(asked(i)) + len(r) for i, r in zip(queries, responses, strict=True)],
                    micro_tokens,
                )
            ]  # fmt: skip
            tokens = sum(map(len, responses))
            yield Batch(
                micros,
                weight=tokens if plan.readings.loss == "mean" else len(responses),  # R14
                tokens=tokens,
                responses=len(responses),
                sums={
                    "length": float(tokens),
                    "truncated": float(sum(a.finish_reason == "length" for a in answers)),
                },
            )
            step += 1

    return batches


def rollout(
    model: nn.Module, requests: Sequence[Request], stop: frozenset[int], plan: Plan
) -> list[Answer]:
    """The student's answers, in the order of the requests."""
    found = decode(
        model, requests, stop=stop, max_tokens=plan.rollout.max_tokens,
        temperature=plan.rollout.temperature, top_p=plan.rollout.top_p,
    )  # fmt: skip
    return sorted(found, key=lambda answer: answer.index)


def draw(chosen: Sequence[int], size: int, step: int, seed: int) -> list[int]:
    """The questions of a step: every chosen one once per epoch, in an order of its own."""
    drawn = []
    for at in range(step * size, (step + 1) * size):
        epoch, place = divmod(at, len(chosen))
        order = np.random.default_rng([seed, epoch]).permutation(len(chosen))
        drawn.append(chosen[int(order[place])])
    return drawn


# --- LMSI -----------------------------------------------------------------------------------------


def majority(plan: Plan, evidence: Evidence) -> list[tuple[int, Trace]]:
    """(Question, answer) for every answer that gives its question's most frequent one.

    A tie goes to the answer that was drawn first; a question without any answer is left out.
    """
    samples, kept = plan.settings["samples"], []
    for i, prompt in enumerate(plan.prompts):
        traces = [evidence.answers[prompt.id, n] for n in range(samples)]
        votes = [vote(plan, trace) for trace in traces]
        count = Counter(v for v in votes if v is not None)
        if count:
            best = max(count, key=lambda v: count[v])
            kept += [(i, trace) for trace, v in zip(traces, votes, strict=True) if v == best]
    if not kept:
        raise BadInput(
            f"no answer was found in any response by the extractor {plan.settings['answer']!r}, so "
            "there is no majority to learn."
        )
    return kept


def majority_answers(plan: Plan, evidence: Evidence) -> Any:
    """`batches(step)`: answers that agree with their question's majority."""
    accelerator, kept = plan.accelerator, majority(plan, evidence)
    size, micro_tokens = plan.settings["batch_size"], plan.settings["micro_tokens"]

    def batches(start: int) -> Iterator[Batch]:
        step = start
        while True:
            drawn = draw(range(len(kept)), size, step, plan.schedule.seed)
            places = share_of(size, accelerator.process_index, accelerator.num_processes)
            mine = [kept[drawn[place]] for place in places]
            prompts = [plan.prompt_ids[i] for i, _ in mine]
            responses = [trace.token_ids for _, trace in mine]
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
            micros = [
                Targets(
                    sequences([prompts[b] for b in part], [responses[b] for b in part]),
                    torch.tensor([token for b in part for token in responses[b]]),
                )
                for part in grouped(lengths, micro_tokens)
            ]
            tokens = sum(map(len, responses))
            yield Batch(micros, tokens, tokens, len(responses), {"length": float(tokens)})
            step += 1

    return batches
