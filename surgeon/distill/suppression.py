"""Stage 4 of OPSA, On-Policy Self-Adaptation (Ding and Zhang, 2026; arXiv 2608.31046): no teacher
and no reward, the least likely tokens of the student's own answers are suppressed.

Of a response y of n tokens, S are the max(1, floor(f n)) tokens with the lowest log pi(y_i | x,
y_<i), f = 0.2. With H_i the entropy of pi(. | x, y_<i), and its least and largest value in S:

    A_i  = -1/2 - 1/2 (H_i - H_min) / (H_max - H_min), in [-1, -1/2]                its Eq. 4 and 5
    loss = - 1/|S| sum over S of A_i log pi(y_i | x, y_<i), mean over responses

A token that was unlikely where the model was undecided is pushed down most. Where all entropies in
S are equal A is -1, as in the published code. The paper words S, H_min and H_max by response, and
the code takes them over a process's batch: here by response, so that no batching changes them.
Neither A nor S has a gradient. One rollout of each question, as in Neuron-OPSD.
"""

# Shapes: B responses, P response positions, C of them in a chunk, T tokens of one response,
# K tokens of S, V vocabulary.

from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surgeon.distill.pushing import PushedStudent, pushed
from surgeon.distill.rollouts import step_rollouts, told_of
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.live.architecture import Head, head_of
from surgeon.training.loop import Batch, Loss
from surgeon.training.sequences import (
    Sequences,
    chunked_nll,
    draw,
    grouped,
    response_states,
    sequences,
    share_of,
)
from surgeon.training.state import History

CHUNK = 256
"""Positions whose logits exist at the same time."""
LOWEST = 0.2
"""The published share."""


class Sampled(NamedTuple):
    """Responses and their tokens."""

    sequences: Sequences
    token_P: Tensor
    length_B: list[int]
    """Tokens of each response."""


def suppress(run: TrainingRun) -> History:
    """Push the student's least likely tokens down."""
    lowest = run.plan.settings.lowest or LOWEST
    with pushed(run) as engine:
        return run.fit(sampled_batches(run, engine), suppression_loss(lowest), guards=GUARDS)


def lowest_tokens(logprob_T: Tensor, share: float) -> Tensor:
    """int64_K: positions of the least likely share of a response's tokens, ascending; at least
    one. Of equally likely ones the first."""
    K = max(1, int(share * len(logprob_T)))
    return logprob_T.argsort(stable=True)[:K].sort().values


def negative_advantages(entropy_K: Tensor) -> Tensor:
    """A (K) of the suppressed tokens of one response, in [-1, -1/2], from their entropies."""
    low, high = entropy_K.min(), entropy_K.max()
    if low == high:
        return torch.full_like(entropy_K, -1.0)
    return -0.5 - 0.5 * (entropy_K - low) / (high - low)


@torch.no_grad()
def logprobs_and_entropies(states_PD: Tensor, token_P: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """log p (P) of the tokens and the entropy (P) of where they were drawn, in nats."""
    logprobs, entropies = [], []
    for states_CD, token_C in zip(states_PD.split(CHUNK), token_P.split(CHUNK), strict=True):
        log_p_CV = head.logits(states_CD).log_softmax(-1)
        logprobs.append(log_p_CV.gather(1, token_C[:, None])[:, 0])
        entropies.append(-torch.linalg.vecdot(log_p_CV.exp(), log_p_CV))
    return torch.cat(logprobs), torch.cat(entropies)


def suppression_loss(share: float) -> Callable[[nn.Module, Sampled, None], Loss]:
    """OPSA's loss, which suppresses that share of every response's tokens."""

    def loss(model: nn.Module, micro: Sampled, _: None) -> Loss:
        device, head = next(model.parameters()).device, head_of(model)
        token_P = micro.token_P.to(device)
        states_PD = response_states(model, micro.sequences.to(device))
        logprob_P, entropy_P = logprobs_and_entropies(states_PD, token_P, head)
        total = states_PD.new_zeros((), dtype=torch.float32)
        suppressed, first = 0, 0
        for tokens in micro.length_B:
            at_K = first + lowest_tokens(logprob_P[first : first + tokens], share)
            weight_K = negative_advantages(entropy_P[at_K]) / len(at_K)
            total = total + chunked_nll(states_PD[at_K], head, token_P[at_K], weight_P=weight_K)
            suppressed, first = suppressed + len(at_K), first + tokens
        sums = {
            "student_entropy": entropy_P.sum(),
            "logprob": logprob_P.sum(),
            "suppressed": torch.tensor(float(suppressed), device=device),
        }
        return Loss(total, sums)

    return loss


def sampled_batches(
    run: TrainingRun, engine: PushedStudent | None = None
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: a rollout of each of the step's questions."""
    plan, peers = run.plan, run.live.accelerator
    size = plan.settings.batches.batch_size
    places = share_of(size, peers.process_index, peers.num_processes)

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(run.evidence.chosen, size, step, plan.settings.seed)
            questions = [drawn[place] for place in places]
            rollouts = step_rollouts(run, engine, step, questions, places)
            prompts = [plan.prompt_ids[i] for i in questions]
            responses = [each.answers[0].token_ids for each in rollouts.questions]
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
            micros = [
                Sampled(
                    sequences([prompts[b] for b in part], [responses[b] for b in part]),
                    torch.tensor([token for b in part for token in responses[b]]),
                    [len(responses[b]) for b in part],
                )
                for part in grouped(lengths, run.micro_tokens)
            ]
            yield Batch(
                micros,
                weight=len(responses),
                tokens=sum(map(len, responses)),
                responses=len(responses),
                sums=told_of(rollouts, engine),
            )

    return from_step
