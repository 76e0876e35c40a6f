"""Stage 4 of the baselines that learn from a reward instead of a teacher: GRPO (Shao et al., 2024).

TTRL (Zuo et al., 2025): an answer is rewarded when it is the majority's among the rollouts of its
question. Intuitor (Zhao et al., 2025): a rollout is rewarded by its self-certainty, how far the
model's distributions are from uniform.

A rollout's advantage is its reward minus the mean of its question's rollouts, over their standard
deviation. The loss is the mean over a response's tokens, then over responses. Every rollout serves
one update, so the ratio to the policy that drew it is 1 and there is nothing to clip. A question
whose rollouts are rewarded alike teaches nothing.
"""

# Shapes: P response positions, C of them in a chunk, V vocabulary, G rollouts of a question.

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from surgeon.answers import classes_of, majority
from surgeon.decoding import Answer, Request, stream_key
from surgeon.distill.on_policy import rollout
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.errors import BadInput
from surgeon.live.architecture import Head, head_of
from surgeon.traces import Trace, stop_ids, text_of
from surgeon.training.loop import Batch, Loss
from surgeon.training.sequences import (
    Sequences,
    draw,
    grouped,
    response_states,
    sequences,
    share_of,
)
from surgeon.training.state import History
from surgeon.training.tuning import AveragedWeights

CHUNK = 256
"""Positions whose logits exist at the same time."""
LEAST_SPREAD = 1e-4
"""Added to the standard deviation of a question's rewards."""


class AnsweredQuestion(NamedTuple):
    """The answers to one question of the pool."""

    question: int
    answers: list[Answer]


Reward = Callable[[TrainingRun, nn.Module, AnsweredQuestion], list[float]]
"""(run, the student, one question's rollouts) -> a reward each."""


class Rewarded(NamedTuple):
    """Responses, and what each of their tokens counts for."""

    sequences: Sequences
    token_P: Tensor
    advantage_P: Tensor
    """The response's, over its number of tokens."""
    share_P: Tensor
    """One over the response's number of tokens."""

    def to(self, device: torch.device) -> "Rewarded":
        return Rewarded(
            self.sequences.to(device), self.token_P.to(device), self.advantage_P.to(device),
            self.share_P.to(device),
        )  # fmt: skip


# --- rewards --------------------------------------------------------------------------------------


def majority_rewards(answers: Sequence[str | None], group: int) -> list[float]:
    """1 for every answer in the largest class of its group, else 0 (TTRL).

    Answers come group after group; None (no answer) never wins, of equally large classes one does.
    """
    rewards = []
    groups = [answers[first : first + group] for first in range(0, len(answers), group)]
    for votes in classes_of(groups):
        best = majority(votes)
        rewards += [float(vote is not None and vote == best) for vote in votes]
    return rewards


def majority_reward(run: TrainingRun, model: nn.Module, rollouts: AnsweredQuestion) -> list[float]:
    """1 for a rollout whose answer is the majority's (TTRL); a truncated one votes for nothing."""
    prompt = run.plan.prompts[rollouts.question]
    ids = run.plan.prompt_ids[rollouts.question]
    traces = [
        Trace(
            prompt.id, n, ids, answer.token_ids,
            text_of(run.live.tokenizer, answer.token_ids, answer.finish_reason),
            answer.finish_reason,
        )
        for n, answer in enumerate(rollouts.answers)
    ]  # fmt: skip
    return majority_rewards(run.plan.read(traces), len(traces))


def self_certainty(hidden_PD: Tensor, head: Head) -> float:
    """Mean over positions of KL(uniform || p) in nats: -log V - mean over the vocabulary of log p
    (Intuitor)."""
    total = 0.0
    for part_CD in hidden_PD.split(CHUNK):
        log_p_CV = head.logits(part_CD).log_softmax(-1)
        V = log_p_CV.shape[1]
        total += float(-(log_p_CV.mean(-1) + torch.log(torch.tensor(float(V)))).sum())
    return total / len(hidden_PD)


def self_certainty_reward(
    run: TrainingRun, model: nn.Module, rollouts: AnsweredQuestion
) -> list[float]:
    """How far the model's distributions over a rollout are from uniform (Intuitor)."""
    head, device = head_of(model), next(model.parameters()).device
    prompt = run.plan.prompt_ids[rollouts.question]
    return [
        self_certainty(
            response_states(model, sequences([prompt], [answer.token_ids]).to(device)), head
        )
        for answer in rollouts.answers
    ]


def advantages(rewards: Sequence[float]) -> np.ndarray:
    """float64_G: how much better each rollout of a question is than its mean, in standard
    deviations."""
    reward_G = np.asarray(rewards, float)
    return (reward_G - reward_G.mean()) / (reward_G.std(ddof=1) + LEAST_SPREAD)


# --- training -------------------------------------------------------------------------------------


def grpo(reward: Reward) -> Callable[[TrainingRun], History]:
    """A method that trains by that reward."""

    def train(run: TrainingRun) -> History:
        penalty = run.plan.settings.rollout.penalty
        start = AveragedWeights(run.student.model, 0.0) if penalty else None
        return run.fit(
            rewarded_batches(run, reward), policy_loss(penalty), teacher=start,
            target=token_logprobs, guards=GUARDS,
        )  # fmt: skip

    return train


def policy_loss(penalty: float) -> Callable[[nn.Module, Rewarded, Tensor | None], Loss]:
    """GRPO's loss, with `penalty` times the KL to the start (k3 estimator)."""

    def loss(model: nn.Module, micro: Rewarded, start_P: Tensor | None) -> Loss:
        micro = micro.to(next(model.parameters()).device)
        head, states_PD = head_of(model), response_states(model, micro.sequences)
        # Without a penalty nothing depends on where it started.
        start_P = torch.zeros_like(micro.share_P) if start_P is None else start_P

        def part(
            states_CD: Tensor,
            token_C: Tensor,
            advantage_C: Tensor,
            share_C: Tensor,
            start_C: Tensor,
        ) -> tuple[Tensor, Tensor, Tensor]:
            log_p_CV = head.logits(states_CD).float().log_softmax(-1)
            own_C = log_p_CV.gather(1, token_C[:, None])[:, 0]
            total = -(advantage_C * own_C).sum()
            kl_C = torch.zeros_like(own_C)
            if penalty:
                gap_C = start_C - own_C
                kl_C = gap_C.exp() - gap_C - 1
                total = total + penalty * (share_C * kl_C).sum()
            entropy = -torch.linalg.vecdot(log_p_CV.exp(), log_p_CV).sum()
            return total, entropy.detach(), kl_C.sum().detach()

        columns = (states_PD, micro.token_P, micro.advantage_P, micro.share_P, start_P)
        total = entropy = kl = states_PD.new_zeros((), dtype=torch.float32)
        for chunk in zip(*(column.split(CHUNK) for column in columns), strict=True):
            more: tuple[Tensor, Tensor, Tensor] = recomputed(  # pyright: ignore
                part, *chunk, use_reentrant=False
            )
            total, entropy, kl = total + more[0], entropy + more[1], kl + more[2]
        sums = {"student_entropy": entropy}
        return Loss(total, sums | {"kl": kl} if penalty else sums)

    return loss


def token_logprobs(model: nn.Module, micro: Rewarded) -> Tensor:
    """log p (P) of each token of the responses."""
    micro = micro.to(next(model.parameters()).device)
    head, states_PD = head_of(model), response_states(model, micro.sequences)
    pairs = zip(states_PD.split(CHUNK), micro.token_P.split(CHUNK), strict=True)
    return torch.cat(
        [
            -nn.functional.cross_entropy(head.logits(s).float(), t, reduction="none")
            for s, t in pairs
        ]
    )


def rewarded_batches(run: TrainingRun, reward: Reward) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: `samples` rollouts of each of the step's questions, with their advantages.

    What is drawn follows from the seed, the step and a rollout's place in the batch, as in
    Neuron-OPSD.
    """
    plan, peers = run.plan, run.live.accelerator
    size, group = plan.settings.batches.batch_size, plan.settings.sampling.samples
    stop = stop_ids(run.student.model, run.live.tokenizer)

    def drawn_and_rewarded(
        model: nn.Module, questions: Sequence[int], requests: Sequence[Request]
    ) -> tuple[list[AnsweredQuestion], list[list[float]]]:
        answers = rollout(model, requests, stop, plan)
        groups = [
            AnsweredQuestion(i, answers[first : first + group])
            for i, first in zip(questions, range(0, len(answers), group), strict=True)
        ]
        return groups, [reward(run, model, rollouts) for rollouts in groups]

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(run.evidence.chosen, size, step, plan.settings.seed)
            places = share_of(size, peers.process_index, peers.num_processes)
            questions = [drawn[place] for place in places]
            requests = [
                Request(
                    plan.prompt_ids[i],
                    stream_key(plan.settings.seed, f"{plan.prompts[i].id} step {step}", at),
                )
                for i, place in zip(questions, places, strict=True)
                for at in range(place * group, (place + 1) * group)
            ]
            try:
                groups, rewards = run.student.rollouts(
                    lambda model, questions=questions, requests=requests: drawn_and_rewarded(
                        model, questions, requests
                    )
                )
            except BadInput as error:
                if step == 0:
                    raise
                raise BadInput(
                    f"the rollouts of step {step + 1} failed: {error} If training did it, lower "
                    "the learning rate and train anew, under another --out."
                ) from error
            yield batch_of(run, groups, rewards)

    return from_step


def batch_of(
    run: TrainingRun, groups: Sequence[AnsweredQuestion], rewards: Sequence[Sequence[float]]
) -> Batch:
    """A step's rollouts as micro-batches."""
    prompts = [run.plan.prompt_ids[g.question] for g in groups for _ in g.answers]
    answers = [answer for g in groups for answer in g.answers]
    advantage = np.concatenate([advantages(part) for part in rewards])
    responses = [answer.token_ids for answer in answers]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    micros = []
    for part in grouped(lengths, run.plan.settings.batches.micro_tokens):
        share_P = torch.tensor([1 / len(responses[b]) for b in part for _ in responses[b]])
        own_P = torch.tensor([float(advantage[b]) for b in part for _ in responses[b]])
        micros.append(
            Rewarded(
                sequences([prompts[b] for b in part], [responses[b] for b in part]),
                torch.tensor([token for b in part for token in responses[b]]),
                own_P * share_P,
                share_P,
            )
        )
    tokens = sum(map(len, responses))
    return Batch(
        micros,
        weight=len(responses),
        tokens=tokens,
        responses=len(responses),
        sums={
            "length": float(tokens),
            "truncated": float(sum(a.finish_reason == "length" for a in answers)),
            "reward": float(sum(map(sum, rewards))),
        },
    )
