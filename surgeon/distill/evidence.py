"""What a method trains on, and whether training is likely to help.

Stage 2 is here: which questions to train on, and how much room there is for sharpening. `gather`
functions of the methods call stages 1 to 3 and measure.
"""

# Shapes: N questions of the pool, Q chosen ones, T response tokens.

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from surgeon import lineage, metrics, nopsd
from surgeon.answers import check_many
from surgeon.artifact import part
from surgeon.consensus import Reliability, reliability
from surgeon.distill.accuracy_gap import AccuracyGap, teachers_gap
from surgeon.distill.demonstrations import Context, find_contexts, prompt_of_teacher
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import Answers, LiveModel, answer_pool, pool_sets
from surgeon.errors import BadInput
from surgeon.live.architecture import head_of
from surgeon.traces import Prompt, Trace
from surgeon.training.sequences import response_states, sequences, unembedding

FEW = 8
"""Questions that are answered first, where nothing can be learned without readable answers."""


@part
class Verdict:
    """What the diagnostics say of a method."""

    method: str
    speaks: Literal["for", "against", "neither"]
    gain: float | None
    """What it would gain in accuracy by the votes; None where nothing estimates it."""
    why: str


@part
class WorthByLabels:
    """What the answers are worth by labels (Tab. 5), which only labelled methods train on."""

    questions: int
    """That have a label and all `samples` answers."""
    avg: float
    """Avg@k: share of right answers."""
    maj: float
    """Maj@k: share of questions whose most frequent answer is right."""
    signal: Reliability | None
    """Whether s(x) tells which first answers of the labelled pool are right; None without sets."""
    rewarded: bool = False
    """Whether training is rewarded by them."""


@part
class Diagnostics:
    """What was measured before training."""

    pool: int
    """Questions."""
    chosen: int
    """Questions to train on."""
    room: float
    """Room for sharpening, in [0, 1] (Tab. 5)."""
    unread: float
    """Share of the finished answers in which no answer was found: they vote for nothing."""
    truncated: float
    """Share of the answers that hit the token limit."""
    labelled: WorthByLabels | None = None
    """None without labels."""
    verdicts: tuple[Verdict, ...] = ()
    """What is said of each method, where `auto` chooses."""
    taken: str | None = None
    """The method that `auto` takes; None where it takes none, or wasn't asked."""


@part
class SetDiagnostics(Diagnostics):
    """What was measured of contribution sets and demonstrations as well."""

    consensus_pool: float
    consensus_chosen: float
    """Mean s(x)."""
    consensus_length_r: float | None
    """Correlation of s(x) with the answers' length; None where one of them is constant."""
    set_size: float
    mean_jaccard_distance: float
    student_entropy: float
    teacher_entropy: float
    """Nats per token of the answers."""
    entropy_gap: float
    entropy_gap_interval: tuple[float, float]
    """Teacher's minus student's, and its bootstrap interval (Tab. 6)."""
    probed: int
    """Questions on which room and entropies were measured."""
    shots: float
    """Mean number of demonstrations that fit."""
    demonstrations_dropped: int
    questions_with_dropped: int
    select: str = "bottom"
    """What was selected, after `auto`."""
    signal: Reliability | None = None
    """Whether s(x) tells which first answers the question's other answers agree with, on up to
    `diagnose` questions of the whole pool."""
    accuracy_gaps: tuple[AccuracyGap, ...] = ()
    """How much more often the teacher is right than the student on the probed questions, by votes
    and, where all of them have one, by labels."""

    @property
    def selects(self) -> bool:
        """Whether training is on a part of the pool; what `auto` takes instead of nopsd isn't."""
        return self.taken in (None, "nopsd")


class PoolEvidence(NamedTuple):
    """What stages 1 to 3 found."""

    answers: Answers
    chosen: list[int]
    """Positions in the pool that are trained on, ascending."""
    contexts: dict[int, Context]
    """By position in the pool; empty where there is no teacher."""
    diagnostics: Diagnostics


def answers_only(plan: DistillPlan, live: LiveModel, work: Path) -> PoolEvidence:
    """`samples` answers to every question; all are trained on."""
    answers = answer_pool(plan, live, plan.prompts, plan.settings.sampling, work)
    room, unread = sharpening_room(plan, answers, plan.prompts)
    diagnostics = Diagnostics(
        pool=len(plan.prompts),
        chosen=len(plan.prompts),
        room=room,
        unread=unread,
        truncated=truncated(answers.values()),
        labelled=labelled(plan, answers, plan.prompts),
    )
    return PoolEvidence(answers, list(range(len(plan.prompts))), {}, diagnostics)


def voted_answers(plan: DistillPlan, live: LiveModel, work: Path) -> PoolEvidence:
    """What `answers_only` gathers, for a method that learns the majority: raises `BadInput` where
    no answer is found in any response to the first few questions, spread over the pool."""
    few = plan.prompts[:: max(1, len(plan.prompts) // FEW)][:FEW]
    sampling = plan.settings.sampling
    answers = answer_pool(plan, live, few, sampling, work, what="answer a few questions")
    traces = [[answers[prompt.id, n] for n in range(sampling.samples)] for prompt in few]
    if all(vote is None for row in plan.votes(traces) for vote in row):
        cut = sum(trace.finish_reason == "length" for row in traces for trace in row)
        raise BadInput(
            f"no answer was found by {plan.settings.answer!r} in the first "
            f"{len(few) * sampling.samples} responses, of which {cut} were cut at "
            f"{sampling.max_tokens} tokens, so there is no majority to learn. Say with --answer "
            "how an answer is read, or raise --max-tokens."
        )
    return answers_only(plan, live, work)


def probed_answers(plan: DistillPlan, live: LiveModel, work: Path) -> PoolEvidence:
    """`samples` answers to the questions that the diagnostics are taken on, for methods that
    answer the pool while they train. All questions are trained on; where training reads labels,
    all that have one."""
    chosen = [
        i
        for i, prompt in enumerate(plan.prompts)
        if not plan.method.needs_labels or prompt.id in plan.labels
    ]
    asked = [plan.prompts[i] for i in probe(plan, chosen)]
    answers = answer_pool(plan, live, asked, plan.settings.sampling, work, what="room")
    room, unread = sharpening_room(plan, answers, asked)
    ends = (answers[p.id, n] for p in asked for n in range(plan.settings.sampling.samples))
    diagnostics = Diagnostics(
        pool=len(plan.prompts),
        chosen=len(chosen),
        room=room,
        unread=unread,
        truncated=truncated(ends),
        labelled=labelled(plan, answers, asked),
    )
    return PoolEvidence(answers, chosen, {}, diagnostics)


def with_sets(plan: DistillPlan, live: LiveModel, work: Path) -> PoolEvidence:
    """An answer to every question, contribution sets, the chosen questions and what their teacher
    sees; `samples` answers to those that the diagnostics are taken on."""
    answers = answer_pool(plan, live, plan.prompts, plan.zero_shot, work)
    traces = [answers[prompt.id, 0] for prompt in plan.prompts]
    sets, consensus_N = pool_sets(plan, live, traces, work)
    signal = pool_signal(plan, live, traces, consensus_N, work)
    select = plan.selection.select
    if select == "auto":
        select = signal.end or "bottom"
    chosen = choose(plan, live, consensus_N, select, work)
    probed = probe(plan, chosen)
    questions = [plan.prompts[i] for i in probed]
    more = answer_pool(
        plan, live, questions, plan.settings.sampling, work, what="room for sharpening"
    )
    contexts = find_contexts(plan, live, traces, sets, chosen, work)
    lengths = np.array([len(trace.token_ids) for trace in traces])
    length_r = metrics.pearson(consensus_N, lengths)
    dropped = [len(context.shot_K) - context.kept for context in contexts.values()]
    room, unread = sharpening_room(plan, more, questions)
    student, teacher = entropies(plan, live, traces, contexts, probed)
    student_mean, teacher_mean, gap_Q = nopsd.entropy_gap(student, teacher)
    diagnostics = SetDiagnostics(
        pool=len(plan.prompts),
        chosen=len(chosen),
        consensus_pool=float(np.mean(consensus_N)),
        consensus_chosen=float(np.mean(consensus_N[chosen])),
        consensus_length_r=length_r if np.isfinite(length_r) else None,
        set_size=float(np.mean(sets.size_N)),
        mean_jaccard_distance=nopsd.mean_distance(sets, seed=plan.settings.seed),
        truncated=truncated(traces),
        room=room,
        unread=unread,
        student_entropy=student_mean,
        teacher_entropy=teacher_mean,
        entropy_gap=float(gap_Q.mean()),
        entropy_gap_interval=metrics.bootstrap_interval(gap_Q, seed=plan.settings.seed),
        probed=len(probed),
        shots=float(np.mean([context.kept for context in contexts.values()])),
        demonstrations_dropped=sum(dropped),
        questions_with_dropped=sum(n > 0 for n in dropped),
        select=select,
        signal=signal,
        labelled=labelled(plan, more, questions, consensus_N),
        accuracy_gaps=tuple(teachers_gap(plan, live, traces, contexts, more, probed, work)),
    )
    return PoolEvidence(more, chosen, contexts, diagnostics)


def labelled(
    plan: DistillPlan,
    answers: Answers,
    prompts: Sequence[Prompt],
    consensus_N: np.ndarray | None = None,
) -> WorthByLabels | None:
    """What labels say of these questions' answers, and of s(x) of the pool's first answers."""
    if not plan.labels:
        return None
    k = plan.settings.sampling.samples
    asked = [prompt for prompt in prompts if prompt.id in plan.labels]
    right = rightness(plan, [answers[prompt.id, n] for prompt in asked for n in range(k)])
    correct = [right[first : first + k] for first in range(0, len(right), k)]
    own = [[answers[prompt.id, n] for n in range(k)] for prompt in asked]
    votes = plan.votes(own, plan.settings.check or "exact")
    signal = None
    if consensus_N is not None:
        known = [i for i, prompt in enumerate(plan.prompts) if prompt.id in plan.labels]
        firsts = [answers[plan.prompts[i].id, 0] for i in known]
        signal = reliability(
            consensus_N[known], [len(trace.token_ids) for trace in firsts],
            list(map(float, rightness(plan, firsts))), [trace.prompt_id for trace in firsts],
            seed=plan.settings.seed,
        )  # fmt: skip
    return WorthByLabels(
        questions=len(asked),
        avg=float(np.mean(right)) if right else 0.0,
        maj=float(np.mean(metrics.majority_by_prompt(votes, correct))) if right else 0.0,
        signal=signal,
        rewarded=plan.method.needs_labels,
    )


def rightness(plan: DistillPlan, traces: Sequence[Trace]) -> list[bool]:
    """Whether each answer is what the labels say."""
    pairs = [
        (answer, plan.labels[trace.prompt_id])
        for answer, trace in zip(plan.read(traces), traces, strict=True)
    ]
    return [verdict.correct for verdict in check_many(pairs, plan.settings.check or "exact")]


# --- stage 2: which questions to train on ---------------------------------------------------------


def pool_signal(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    consensus_N: np.ndarray,
    work: Path,
) -> Reliability:
    """Whether s(x) of a question's first answer tells how many of its other answers agree with it:
    which end of the pool is the reliable one. No label is read."""
    asked = pool_questions(plan)
    questions = [plan.prompts[i] for i in asked]
    more = answer_pool(plan, live, questions, plan.settings.sampling, work, what="vote on the pool")
    samples = range(plan.settings.sampling.samples)
    votes = plan.votes([[more[prompt.id, n] for n in samples] for prompt in questions])
    agreeing = [
        0.0 if own is None else float(np.mean([own == v for v in rest])) for own, *rest in votes
    ]
    return reliability(
        consensus_N[asked],
        [len(traces[i].token_ids) for i in asked],
        agreeing,
        [prompt.id for prompt in questions],
        against="votes",
        seed=plan.settings.seed,
    )


def pool_questions(plan: DistillPlan) -> list[int]:
    """Up to `diagnose` random questions of the whole pool, ascending."""
    order = np.random.default_rng(plan.settings.seed).permutation(len(plan.prompts))
    return sorted(order[: plan.settings.diagnose].tolist())


def choose(
    plan: DistillPlan, live: LiveModel, consensus_N: np.ndarray, select: str, work: Path
) -> list[int]:
    """Positions of the questions to train on; writes `selection.json`."""
    how = replace(plan.selection, select=select)
    chosen = nopsd.select(consensus_N, how, seed=plan.settings.seed).tolist()
    if live.accelerator.is_main_process:
        questions = [{"id": plan.prompts[i].id, "consensus": int(consensus_N[i])} for i in chosen]
        lineage.write_json(work / "selection.json", {"select": select, "questions": questions})
    return chosen


def probe(plan: DistillPlan, chosen: Sequence[int]) -> list[int]:
    """The chosen questions on which the diagnostics are taken: at most `diagnose`, at random."""
    order = np.random.default_rng(plan.settings.seed).permutation(len(chosen))
    return sorted(chosen[i] for i in order[: plan.settings.diagnose])


def sharpening_room(
    plan: DistillPlan, answers: Answers, prompts: Sequence[Prompt]
) -> tuple[float, float]:
    """Room for sharpening on these questions, from `samples` answers each, and the share of the
    answers with an end in which no answer was found: they vote for nothing."""
    samples = range(plan.settings.sampling.samples)
    traces = [[answers[prompt.id, n] for n in samples] for prompt in prompts]
    votes = plan.votes(traces)
    unread = [
        vote is None
        for row, voted in zip(traces, votes, strict=True)
        for trace, vote in zip(row, voted, strict=True)
        if trace.finish_reason != "length"
    ]
    room = nopsd.room_for_sharpening(metrics.agreement_by_prompt(votes))
    return room, float(np.mean(unread)) if unread else 0.0


def truncated(traces: Iterable[Trace]) -> float:
    """Share of answers that hit the token limit."""
    return float(np.mean([trace.finish_reason == "length" for trace in traces]))


# --- is the teacher sharper than the student? -----------------------------------------------------


@torch.no_grad()
def entropies(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    contexts: Mapping[int, Context],
    probed: Sequence[int],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token entropies (T) of student and teacher over the zero-shot answers (Tab. 6)."""
    head_VD, head = unembedding(live.model), head_of(live.model)
    student, teacher = [], []
    for i in probed:
        prompts = (
            plan.prompt_ids[i],
            prompt_of_teacher(plan, live.tokenizer, traces, contexts[i], i),
        )
        states = [
            response_states(
                live.model,
                sequences([prompt], [traces[i].token_ids]).to(live.accelerator.device),
            )
            for prompt in prompts
        ]
        both = nopsd.reverse_kl(states[0], states[1], head_VD, softcap=head.cap, factor=head.factor)
        student.append(both.student_entropy_T.cpu().numpy())
        teacher.append(both.teacher_entropy_T.cpu().numpy())
    return student, teacher
