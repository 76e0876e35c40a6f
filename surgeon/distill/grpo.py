"""Stage 4 of the methods that learn from a reward instead of a teacher.

GRPO (Shao et al., 2024) draws G rollouts y_i of a question q and rewards each, R_1 ... R_G:

    A_i  = (R_i - mean R) / (std R + 1e-4)
    loss = - 1/G sum_i 1/|y_i| sum_t A_i log pi(y_it | q, y_i<t), mean over questions

Every rollout serves one update, so the ratio to the policy that drew it is 1, with the gradient
above, and there is nothing to clip. A question whose rollouts are rewarded alike teaches nothing.
The rewards:

    ttrl       1 for the answer of the rollouts' majority (Zuo et al., 2025)
    intuitor   the self-certainty, 1/|y| sum_t KL(uniform || pi(. | q, y<t)) (Zhao et al., 2025)
    grpo       1 for an answer that the check finds equal to the question's label
    dapo       the same, 1 or -1, plus the overlong punishment below

DAPO (Yu et al., 2025; arXiv 2503.14476) changes four things, of which three act here:

    sec. 3.1  clip-higher          without effect where every rollout serves one update
    sec. 3.2  dynamic sampling     questions whose rollouts are rewarded alike are replaced by
                                   others, drawn in up to `ROUNDS` rounds
    sec. 3.3  token-level loss     - 1/sum_i |y_i| sum_i sum_t A_i log pi(y_it | q, y_i<t)
    sec. 3.4  overlong punishment  0 up to L_max - L_cache tokens, then falling evenly, -1 at L_max;
                                   L_cache is the share 4,096 / 20,480 of L_max

`mask_truncated` leaves truncated rollouts out of the loss instead (its overlong filtering). Without
a label the methods read none; `grpo` and `dapo` train on the labelled questions of the pool.
"""

# Shapes: P response positions, C of them in a chunk, V vocabulary, G rollouts of a question.

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from surgeon.answers import check_many, classes_of, majority
from surgeon.decoding import Answer
from surgeon.distill.pushing import PushedStudent, pushed
from surgeon.distill.rollouts import (
    AnsweredQuestion,
    StepRollouts,
    step_rollouts,
    told_of,
    traces_of,
)
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.live.architecture import Head, head_of
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
ROUNDS = 8
"""Times that dapo draws rollouts for a step at most."""
CACHE = 4096 / 20480
"""Share of the longest answer in which the overlong punishment grows (DAPO sec. 4.1)."""


Reward = Callable[[TrainingRun, nn.Module, Sequence[AnsweredQuestion]], list[list[float]]]
"""(run, the student, several questions' rollouts) -> a reward for each."""


class RewardedMethod(NamedTuple):
    """How rollouts are rewarded, and what is made of it."""

    reward: Reward
    shape: Callable[[TrainingRun, AnsweredQuestion, Sequence[float]], list[float]] | None = None
    """(run, a question's rollouts, their rewards) -> what advantages are taken of instead."""
    asks_model: bool = False
    """Whether the reward needs the student, with its adapter folded in."""
    dynamic: bool = False
    """Draw other questions for those whose rollouts are rewarded alike."""
    by_token: bool = False
    """The loss is the mean over all tokens of a step; else over a response's, then over
    responses."""


class Rewarded(NamedTuple):
    """Responses, and what each of their tokens counts for."""

    sequences: Sequences
    token_P: Tensor
    advantage_P: Tensor
    """The response's, times its tokens' share."""
    share_P: Tensor
    """One over the response's number of tokens, or 1 where all tokens of a step count alike; 0
    for what is left out."""

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


def majority_reward(
    run: TrainingRun, model: nn.Module, rollouts: Sequence[AnsweredQuestion]
) -> list[list[float]]:
    """1 for a rollout whose answer is the majority's (TTRL); a truncated one votes for nothing."""
    read = [run.plan.read(traces_of(run, each)) for each in rollouts]
    return [majority_rewards(answers, len(answers)) for answers in read]


def checked_reward(
    run: TrainingRun, model: nn.Module, rollouts: Sequence[AnsweredQuestion]
) -> list[list[float]]:
    """1 for a rollout whose answer is the question's label by the check, else 0 (GRPO)."""
    plan = run.plan
    read = [plan.read(traces_of(run, each)) for each in rollouts]
    labels = [plan.labels[plan.prompts[each.question].id] for each in rollouts]
    pairs = [(a, label) for answers, label in zip(read, labels, strict=True) for a in answers]
    verdicts = iter(check_many(pairs, plan.settings.check or "exact"))
    return [[float(next(verdicts).correct) for _ in answers] for answers in read]


def shaped(run: TrainingRun, rollouts: AnsweredQuestion, rewards: Sequence[float]) -> list[float]:
    """1 for a right rollout, else -1, with the punishment of overlong ones (DAPO)."""
    most, settings = run.plan.settings.sampling.max_tokens, run.plan.settings.rollout
    punished = [
        0.0 if settings.mask_truncated else overlong_punishment(len(answer.token_ids), most)
        for answer in rollouts.answers
    ]
    return [2 * right - 1 + lost for right, lost in zip(rewards, punished, strict=True)]


def overlong_punishment(tokens: int, most: int) -> float:
    """What a response of so many tokens loses, in [-1, 0] (DAPO sec. 3.4)."""
    cache = CACHE * most
    return -min(max((tokens - (most - cache)) / cache, 0.0), 1.0)


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
    run: TrainingRun, model: nn.Module, rollouts: Sequence[AnsweredQuestion]
) -> list[list[float]]:
    """How far the model's distributions over a rollout are from uniform (Intuitor)."""
    head, device = head_of(model), next(model.parameters()).device

    def certainty(question: int, answer: Answer) -> float:
        ids = sequences([run.plan.prompt_ids[question]], [answer.token_ids])
        return self_certainty(response_states(model, ids.to(device)), head)

    return [[certainty(each.question, answer) for answer in each.answers] for each in rollouts]


def advantages(rewards: Sequence[float]) -> np.ndarray:
    """float64_G: how much better each rollout of a question is than its mean, in standard
    deviations."""
    reward_G = np.asarray(rewards, float)
    return (reward_G - reward_G.mean()) / (reward_G.std(ddof=1) + LEAST_SPREAD)


# --- training -------------------------------------------------------------------------------------


def grpo(method: RewardedMethod) -> Callable[[TrainingRun], History]:
    """What trains by that."""

    def train(run: TrainingRun) -> History:
        penalty = run.plan.settings.rollout.penalty
        start = AveragedWeights(run.student.model, 0.0) if penalty else None
        with pushed(run) as engine:
            return run.fit(
                rewarded_batches(run, method, engine), policy_loss(penalty), teacher=start,
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


class RewardedRollouts(NamedTuple):
    """A step's rollouts and their rewards."""

    rollouts: StepRollouts
    rewards: list[list[float]]


def rewarded_batches(
    run: TrainingRun, method: RewardedMethod, engine: PushedStudent | None = None
) -> Callable[[int], Iterator[Batch]]:
    """`batches(step)`: `samples` rollouts of each of the step's questions, with their
    advantages."""
    plan, peers = run.plan, run.live.accelerator
    size = plan.settings.batches.batch_size
    places = share_of(size, peers.process_index, peers.num_processes)

    def from_step(start: int) -> Iterator[Batch]:
        for step in count(start):
            drawn = draw(run.evidence.chosen, size, step, plan.settings.seed)
            questions = [drawn[place] for place in places]
            found = rewarded(run, method, engine, step, questions, places)
            if method.dynamic:
                found = informative(run, method, engine, step, places, found)
            yield batch_of(run, method, engine, found)

    return from_step


def rewarded(
    run: TrainingRun,
    method: RewardedMethod,
    engine: PushedStudent | None,
    step: int,
    questions: Sequence[int],
    places: Sequence[int],
) -> RewardedRollouts:
    """Rollouts of these questions, and what each is worth."""
    group = run.plan.settings.sampling.samples
    rollouts = step_rollouts(run, engine, step, questions, places, group=group)
    if method.asks_model:
        rewards = run.student.rollouts(lambda model: method.reward(run, model, rollouts.questions))
    else:
        rewards = method.reward(run, run.student.model, rollouts.questions)
    return RewardedRollouts(rollouts, rewards)


def informative(
    run: TrainingRun,
    method: RewardedMethod,
    engine: PushedStudent | None,
    step: int,
    places: Sequence[int],
    found: RewardedRollouts,
) -> RewardedRollouts:
    """As many questions as there are places whose rollouts are rewarded unlike each other, others
    drawn for those that are not; fewer, where `ROUNDS` rounds find no more of them, and if they
    find none what was drawn first (DAPO's dynamic sampling).

    What is drawn follows from the seed, the step and the round. Processes draw as long as one of
    them lacks a question.
    """
    plan, peers = run.plan, run.live.accelerator
    size, kept = plan.settings.batches.batch_size, unlike(found)
    generated = found.rollouts.generated
    for number in range(1, ROUNDS):
        lacking = torch.tensor(max(0, len(places) - len(kept)), device=peers.device)
        if int(peers.reduce(lacking, "sum") if peers.num_processes > 1 else lacking) == 0:  # pyright: ignore
            break
        at = step * ROUNDS + number
        drawn = draw(run.evidence.chosen, size, at, plan.settings.seed + 1)
        beyond = [place + number * size for place in places]
        questions = [drawn[place] for place in places]
        more = rewarded(run, method, engine, step, questions, beyond)
        kept, generated = kept + unlike(more), generated + more.rollouts.generated
    kept = kept[: len(places)] or list(zip(found.rollouts.questions, found.rewards, strict=True))
    rollouts = StepRollouts([each for each, _ in kept], found.rollouts.lag, generated)
    return RewardedRollouts(rollouts, [part for _, part in kept])


def unlike(found: RewardedRollouts) -> list[tuple[AnsweredQuestion, list[float]]]:
    """The questions whose rollouts are not all rewarded alike, with their rewards."""
    pairs = zip(found.rollouts.questions, found.rewards, strict=True)
    return [(each, rewards) for each, rewards in pairs if len(set(rewards)) > 1]


def batch_of(
    run: TrainingRun,
    method: RewardedMethod,
    engine: PushedStudent | None,
    found: RewardedRollouts,
) -> Batch:
    """A step's rollouts as micro-batches."""
    groups, rewards = found.rollouts.questions, found.rewards
    prompts = [run.plan.prompt_ids[g.question] for g in groups for _ in g.answers]
    answers = [answer for g in groups for answer in g.answers]
    advantage = np.concatenate(
        [
            advantages(part if method.shape is None else method.shape(run, g, part))
            for g, part in zip(groups, rewards, strict=True)
        ]
    )
    responses = [answer.token_ids for answer in answers]
    masks = method.by_token and run.plan.settings.rollout.mask_truncated
    counted = [not (masks and answer.finish_reason == "length") for answer in answers]
    shares = [
        float(counts) * (1.0 if method.by_token else 1 / len(ids))
        for counts, ids in zip(counted, responses, strict=True)
    ]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    micros = []
    for part in grouped(lengths, run.micro_tokens):
        share_P = torch.tensor([shares[b] for b in part for _ in responses[b]])
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
    learned = sum(len(ids) for counts, ids in zip(counted, responses, strict=True) if counts)
    alike = sum(len(part) for part in rewards if len(set(part)) == 1)
    return Batch(
        micros,
        weight=max(learned, 1) if method.by_token else len(responses),
        tokens=tokens,
        responses=len(responses),
        sums=told_of(found.rollouts, engine)
        | {"reward": float(sum(map(sum, rewards))), "alike": float(alike)},
    )
