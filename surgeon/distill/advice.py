"""`--method auto`: which method the diagnostics speak for, before any of them trains.

Without labels a method's gain is estimated by the votes of the pool's own answers, on up to
`diagnose` of its questions:

    nopsd              the accuracy gap between its teacher and the student, by votes
    lmsi, uopsd, ttrl  how much more often the majority of one half of a question's answers is what
                       the other half's majority says than a single answer of the first half is
    intuitor, opsa     no gain, but whether the score that they push up is higher for answers that
                       most others agree with than for others of the same question (AUROC)

A method is spoken for where the interval of its number lies above 0 (of an AUROC above 1/2), and
against where it doesn't reach above that; against nopsd also where its teacher is neither clearly
more often right nor clearly sharper, against the majority where its two halves disagree in more
than half of the questions. Of those spoken for the one of the largest gain is taken; of the
majority's methods lmsi, which generates nothing while it trains. Labels have no say, and methods
that read them are never taken. Rules of ours, which no study has tuned: where most answers are
wrong in the same way, no diagnostic without labels can see it.
"""

# Shapes: Q questions, G answers to each, P response positions.

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from surgeon import metrics
from surgeon.answers import majority
from surgeon.distill.evidence import (
    PoolEvidence,
    SetDiagnostics,
    Verdict,
    pool_questions,
    sharpening_room,
    with_sets,
)
from surgeon.distill.grpo import self_certainty
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import Answers, LiveModel
from surgeon.distill.suppression import LOWEST, logprobs_and_entropies, lowest_tokens
from surgeon.live.architecture import Head, head_of
from surgeon.traces import Prompt
from surgeon.training.sequences import response_states, sequences

if TYPE_CHECKING:
    from torch import Tensor


BY_MAJORITY = ("lmsi", "uopsd", "ttrl")
"""Of equal gain the first is taken."""
FEWEST = 8
"""Of fewer questions no interval says anything."""
LITTLE_ROOM = 0.02
MOSTLY_UNREAD = 0.5
Score = Callable[["Tensor", "Tensor", Head], float]


def weigh(plan: DistillPlan, live: LiveModel, work: Path) -> PoolEvidence:
    """What all label-free methods are judged by, and the one that is taken."""
    evidence = with_sets(plan, live, work)
    measured = evidence.diagnostics
    assert isinstance(measured, SetDiagnostics)
    questions = [plan.prompts[i] for i in pool_questions(plan)]
    samples = range(plan.settings.sampling.samples)
    votes = plan.votes([[evidence.answers[p.id, n] for n in samples] for p in questions])
    room, unread = sharpening_room(plan, evidence.answers, questions)
    verdicts = [
        of_the_teacher(measured),
        *of_the_majority_methods(votes, room, unread, seed=plan.settings.seed),
        of_a_score(
            "intuitor", "self-certainty",
            scores(live, evidence.answers, questions, samples, certainty), votes,
            seed=plan.settings.seed,
        ),
        of_a_score(
            "opsa", "likelihood of the least likely tokens",
            scores(live, evidence.answers, questions, samples, tail), votes,
            seed=plan.settings.seed,
        ),
    ]  # fmt: skip
    taken = best_of(verdicts, forced=plan.settings.force)
    diagnostics = replace(measured, verdicts=tuple(verdicts), taken=taken)  # pyright: ignore
    if not diagnostics.selects:
        diagnostics = replace(diagnostics, chosen=diagnostics.pool)  # pyright: ignore
    return evidence._replace(diagnostics=diagnostics)


def best_of(verdicts: Sequence[Verdict], *, forced: bool = False) -> str | None:
    """The method of the largest gain that is spoken for, else one without an estimate that is;
    None where none is, or, `forced`, the one of the largest gain. The first of equal ones."""
    able = [verdict for verdict in verdicts if verdict.speaks == "for"]
    if not able and forced:
        able = list(verdicts)
    best = max(able, key=lambda v: -1.0 if v.gain is None else v.gain, default=None)
    return None if best is None else best.method


# --- what is said of a method ---------------------------------------------------------------------


def of_the_teacher(measured: SetDiagnostics) -> Verdict:
    """Neuron-OPSD, by its teacher."""
    gap = measured.accuracy_gaps[0]  # by votes
    (low, high), entropy = gap.interval, measured.entropy_gap_interval[1]
    why = f"the teacher is right {gap.gap:+.3f} ({low:+.3f} to {high:+.3f}) more often"
    sharper = entropy < 0
    why += f" and {'' if sharper else 'not '}clearly sharper"
    if gap.questions < FEWEST:
        return Verdict(method="nopsd", speaks="neither", gain=gap.gap, why=f"{why}: too few")
    if high <= 0 or (low <= 0 and not sharper):
        return Verdict(method="nopsd", speaks="against", gain=gap.gap, why=why)
    speaks = "for" if low > 0 else "neither"
    return Verdict(method="nopsd", speaks=speaks, gain=gap.gap, why=why)


def of_the_majority_methods(
    votes: Sequence[Sequence[str | None]], room: float, unread: float, *, seed: int = 0
) -> list[Verdict]:
    """Those that follow the majority, by whether there is one and what it adds."""
    gain_Q, agree_Q = split_half(votes)
    low, high = metrics.bootstrap_interval(gain_Q, seed=seed)
    gain, agree = float(np.mean(gain_Q)), float(np.mean(agree_Q))
    why = (
        f"two halves of the answers have the same majority in {agree:.0%} of the questions, which "
        f"beats one answer by {gain:+.3f} ({low:+.3f} to {high:+.3f})"
    )
    speaks = "for" if low > 0 and len(votes) >= FEWEST else "neither"
    if unread > MOSTLY_UNREAD:
        speaks, why = "against", f"{unread:.0%} of the answers can't be read"
    elif room < LITTLE_ROOM:
        speaks, why = "against", f"the answers agree already (room {room:.3f})"
    elif agree < 0.5 or high <= 0:
        speaks = "against"
    return [
        Verdict(method=name, speaks=speaks, gain=gain, why=why)  # pyright: ignore
        for name in BY_MAJORITY
    ]


def split_half(votes: Sequence[Sequence[str | None]]) -> tuple[np.ndarray, np.ndarray]:
    """For each question (Q) how much more often the majority of either half of its answers is the
    other half's than a single answer is; and whether both halves have the same majority."""
    gains, agrees = [], []
    for row in votes:
        halves = [row[0::2], row[1::2]]
        best = [majority(half) for half in halves]
        same = float(best[0] is not None and best[0] == best[1])
        single = [
            np.mean([vote is not None and vote == other for vote in half])
            for half, other in zip(halves, reversed(best), strict=True)
        ]
        gains.append(same - float(np.mean(single)))
        agrees.append(same)
    return np.array(gains), np.array(agrees)


def of_a_score(
    method: str,
    name: str,
    score_QG: Sequence[Sequence[float]],
    votes: Sequence[Sequence[str | None]],
    *,
    seed: int = 0,
) -> Verdict:
    """A method that pushes up a score of an answer, by whether agreeing answers have more of it."""
    auroc_Q = np.array(
        [
            value
            for scores_G, row in zip(score_QG, votes, strict=True)
            if (value := auroc_within(scores_G, row)) is not None
        ]
    )
    if len(auroc_Q) < FEWEST:
        why = f"only in {len(auroc_Q)} questions some answers agree and others don't"
        return Verdict(method=method, speaks="neither", gain=None, why=why)
    low, high = metrics.bootstrap_interval(auroc_Q, seed=seed)
    why = (
        f"within a question {name} tells answers of the majority from others with AUROC "
        f"{auroc_Q.mean():.3f} ({low:.3f} to {high:.3f})"
    )
    speaks = "for" if low > 0.5 else "against" if high <= 0.5 else "neither"
    return Verdict(method=method, speaks=speaks, gain=None, why=why)


def auroc_within(score_G: Sequence[float], votes: Sequence[str | None]) -> float | None:
    """P(an answer of the majority has the higher score than another), equal ones half; None where
    all are, or no two agree."""
    best = majority(votes)
    if sum(vote == best for vote in votes) < 2:
        return None
    inside = [s for s, v in zip(score_G, votes, strict=True) if v is not None and v == best]
    outside = [s for s, v in zip(score_G, votes, strict=True) if v is None or v != best]
    if not inside or not outside:
        return None
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside]))


# --- scores of an answer --------------------------------------------------------------------------


@torch.no_grad()
def scores(
    live: LiveModel,
    answers: Answers,
    questions: Sequence[Prompt],
    samples: Sequence[int],
    score: Score,
) -> list[list[float]]:
    """A score of each answer (QG), from one pass over it."""
    head, device = head_of(live.model), live.accelerator.device

    def of(name: str, n: int) -> float:
        trace = answers[name, n]
        made = sequences([trace.prompt_token_ids], [trace.token_ids]).to(device)
        tokens = torch.tensor(trace.token_ids, device=device)
        return score(response_states(live.model, made), tokens, head)

    return [[of(prompt.id, n) for n in samples] for prompt in questions]


def certainty(states_PD: "Tensor", token_P: "Tensor", head: Head) -> float:
    """Self-certainty, which intuitor rewards."""
    return self_certainty(states_PD, head)


def tail(states_PD: "Tensor", token_P: "Tensor", head: Head) -> float:
    """Mean log p of the tokens that opsa suppresses."""
    logprob_P, _ = logprobs_and_entropies(states_PD, token_P, head)
    return float(logprob_P[lowest_tokens(logprob_P, LOWEST)].mean())
