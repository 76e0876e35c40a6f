"""Stages 1 to 3: the pool's own answers, whom to train on, what to show the teacher, and whether
training is likely to help.
"""

# Shapes: N questions of the pool, Q chosen ones, K demonstrations, T response tokens.

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from surgeon import lineage, metrics, nopsd
from surgeon.answers import after_thinking, canonical
from surgeon.contributions import contributions
from surgeon.distill.plan import Plan
from surgeon.errors import BadInput
from surgeon.live.architecture import head_of
from surgeon.live.blocks import require_dense
from surgeon.progress import bar
from surgeon.settings.nopsd import Selection
from surgeon.traces import Prompt, Sampling, Trace, append, encode, read_traces, sample
from surgeon.training import response_states, sequences, unembedding

BLOCK = 256
"""Questions whose sets share a file; a killed run computes at most one of them again."""
LITTLE_ROOM = 0.05
"""Room for sharpening below which there is little to gain (a choice of ours)."""
DIVERSE = 0.7
"""Mean Jaccard distance below which the paper's domains gained nothing from retrieval over random
contexts; its diverse one had .87, the others .63 to .64 (sec. 5.2)."""
TRUNCATED = 0.2
UNREAD = 0.2
"""Shares of answers without an end, or without an answer that was found, that are worth a word (a
choice of ours)."""

Answers = dict[tuple[str, int], Trace]
"""(prompt id, sample) -> trace."""


class Context(NamedTuple):
    """The demonstrations of one question."""

    shot_K: list[int]
    """Positions in the pool, nearest first."""
    distance_K: list[float] | None
    """Their Jaccard distances; None for random ones."""
    kept: int
    """How many of them, from the nearest on, fit the teacher's prompt."""


class Evidence(NamedTuple):
    """What stages 1 to 3 found."""

    model: Any
    tokenizer: Any
    answers: Answers
    chosen: list[int]
    """Positions in the pool that are trained on, ascending."""
    contexts: dict[int, Context]
    """By position in the pool."""
    diagnostics: dict[str, Any]
    warnings: list[str]


def gather_evidence(plan: Plan, work: Path) -> Evidence:
    """Run stages 1 to 3, or read what they left in `work`; prints what they say."""
    model: Any = plan.checkpoint.model(plan.device, plan.dtype)
    model.to(plan.accelerator.device)
    tokenizer = plan.checkpoint.tokenizer()
    every = replace(plan.sampling, samples=plan.settings["samples"])
    if plan.settings["method"] != "nopsd":
        answers = answer_pool(plan, model, tokenizer, plan.prompts, every, work)
        chosen = list(range(len(plan.prompts)))
        found: dict[str, Any] = {
            "pool": len(plan.prompts),
            "chosen": len(chosen),
            **room(plan, answers, plan.prompts),
            "truncated": truncated(answers.values()),
        }
        return told(plan, Evidence(model, tokenizer, answers, chosen, {}, found, []), work)
    require_dense(model)
    answers = answer_pool(plan, model, tokenizer, plan.prompts, plan.sampling, work)
    traces = [answers[prompt.id, 0] for prompt in plan.prompts]
    sets, consensus_N = pool_sets(plan, model, traces, work)
    chosen = choose(plan, consensus_N, work)
    probed = probe(plan, chosen)
    asked = [plan.prompts[i] for i in probed]
    more = answer_pool(plan, model, tokenizer, asked, every, work, what="room for sharpening")
    contexts = find_contexts(plan, tokenizer, traces, sets, chosen, work)
    length_N = np.array([len(trace.token_ids) for trace in traces])
    size_N = sets.size_N
    found = {
        "pool": len(plan.prompts),
        "chosen": len(chosen),
        "consensus_pool": float(np.mean(consensus_N)),
        "consensus_chosen": float(np.mean(consensus_N[chosen])),
        "consensus_length_r": metrics.pearson(consensus_N, length_N),
        "set_size": float(np.mean(size_N)),
        "mean_jaccard_distance": nopsd.mean_distance(sets, seed=plan.schedule.seed),
        "truncated": truncated(traces),
        **room(plan, more, asked),
        **gap(plan, model, tokenizer, traces, contexts, probed),
        "shots": float(np.mean([c.kept for c in contexts.values()])),
        "demonstrations_dropped": sum(len(c.shot_K) - c.kept for c in contexts.values()),
        "questions_with_dropped": sum(len(c.shot_K) > c.kept for c in contexts.values()),
    }
    return told(plan, Evidence(model, tokenizer, answers, chosen, contexts, found, []), work)


# --- stage 1: answers and contribution sets -------------------------------------------------------


def answer_pool(
    plan: Plan,
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    work: Path,
    what: str = "answer the pool",
) -> Answers:
    """Zero-shot answers to the prompts, each written as it ends; those on disk aren't drawn again.

    Several processes share the prompts, each with a file of its own.
    """
    directory, accelerator = work / "rollouts", plan.accelerator
    directory.mkdir(exist_ok=True)
    done = stored_answers(directory).keys()
    accelerator.wait_for_everyone()
    mine = prompts[accelerator.process_index :: accelerator.num_processes]
    missing = [p for p in mine if any((p.id, n) not in done for n in range(sampling.samples))]
    if missing:
        total = sum((p.id, n) not in done for p in missing for n in range(sampling.samples))
        file = directory / f"part-{accelerator.process_index}.jsonl"
        with bar(what, total) as advance:
            for trace in sample(model, tokenizer, missing, sampling, done=done):
                append(file, trace)
                advance()
    accelerator.wait_for_everyone()
    return stored_answers(directory)


def stored_answers(directory: Path) -> Answers:
    """Every answer on disk."""
    files = sorted(directory.glob("part-*.jsonl"))
    return {(t.prompt_id, t.sample): t for file in files for t in read_traces(file)}


def pool_sets(
    plan: Plan, model: nn.Module, traces: Sequence[Trace], work: Path
) -> tuple[nopsd.Sets, np.ndarray]:
    """N(x) and s(x) (int64_N) of every question from its first answer, in the pool's order."""
    from safetensors.numpy import load_file, save_file

    directory, accelerator = work / "sets", plan.accelerator
    directory.mkdir(exist_ok=True)
    firsts = list(range(0, len(traces), BLOCK))
    files = [directory / f"{first:07d}.safetensors" for first in firsts]
    # Shared out by number, whatever is there: a peer may have begun to write already.
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    pairs = list(zip(firsts, files, strict=True))[mine]
    missing = [(first, file) for first, file in pairs if not file.is_file()]
    with bar("contribution sets", len(missing)) as advance:
        for first, file in missing:
            found = set_block(model, traces[first : first + BLOCK], plan.readings)
            temporary = file.with_suffix(".tmp")
            save_file(
                {
                    "neuron_E": np.concatenate([s.neuron_K for s in found]),
                    "start_N1": np.cumsum([0, *(len(s.neuron_K) for s in found)], dtype=np.int64),
                    "consensus_N": np.array([s.consensus for s in found], np.int64),
                },
                temporary,
            )
            temporary.rename(file)
            advance()
    accelerator.wait_for_everyone()
    blocks = [load_file(file) for file in files]
    start_N1 = np.cumsum([0, *np.concatenate([np.diff(b["start_N1"]) for b in blocks])])
    neuron_E = np.concatenate([b["neuron_E"] for b in blocks])
    n_neurons = plan.checkpoint.n_layers * plan.checkpoint.d_ff
    consensus_N = np.concatenate([b["consensus_N"] for b in blocks])
    return nopsd.Sets(neuron_E, start_N1.astype(np.int64), n_neurons), consensus_N


def set_block(
    model: nn.Module, traces: Sequence[Trace], readings: nopsd.Readings
) -> list[nopsd.ContributionSet]:
    """The contribution set of each trace, one matrix product per layer and chunk."""
    scores = contributions(
        model, traces, nopsd.contribution, activation=readings.activation,
        chunk_tokens=readings.chunk_tokens,
    )  # fmt: skip
    found: dict[int, nopsd.ContributionSet] = {}
    # A pass gives the chunks of its traces in turn; each trace's chunks stay in order.
    for number, chunks in groupby(scores, key=lambda pair: pair[0]):
        found[number] = nopsd.contribution_set((score for _, score in chunks), readings)
    return [found[number] for number in range(len(traces))]


# --- stage 2: whom to train on --------------------------------------------------------------------


def choose(plan: Plan, consensus_N: np.ndarray, work: Path) -> list[int]:
    """Positions of the questions to train on; writes `selection.json`."""
    settings = plan.settings
    chosen = nopsd.select(
        consensus_N,
        Selection(select=settings["select"], share=settings["share"], band=tuple(settings["band"])),
        seed=plan.schedule.seed,
    ).tolist()
    if plan.accelerator.is_main_process:
        lineage.write_json(
            work / "selection.json",
            {
                "select": settings["select"],
                "questions": [
                    {"id": plan.prompts[i].id, "consensus": int(consensus_N[i])} for i in chosen
                ],
            },
        )
    return chosen


def probe(plan: Plan, chosen: Sequence[int]) -> list[int]:
    """The chosen questions on which the diagnostics are taken: at most `diagnose`, at random."""
    order = np.random.default_rng(plan.schedule.seed).permutation(len(chosen))
    return sorted(chosen[i] for i in order[: plan.settings["diagnose"]])


def vote(plan: Plan, trace: Trace) -> str | None:
    """What an answer votes for; a truncated one for nothing."""
    answer = None if trace.finish_reason == "length" else plan.extract(trace.text)
    return None if answer is None else canonical(answer)


def room(plan: Plan, answers: Answers, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Room for sharpening on these questions, from `samples` answers each, and the share of the
    answers with an end in which no answer was found: they vote for nothing."""
    samples = plan.settings["samples"]
    drawn = [[answers[prompt.id, n] for n in range(samples)] for prompt in prompts]
    votes = [[vote(plan, trace) for trace in traces] for traces in drawn]
    unread = [
        voted is None
        for traces, row in zip(drawn, votes, strict=True)
        for trace, voted in zip(traces, row, strict=True)
        if trace.finish_reason != "length"
    ]
    return {
        "room": nopsd.room_for_sharpening(metrics.agreement_by_prompt(votes)),
        "unread": float(np.mean(unread)) if unread else 0.0,
    }


def truncated(traces: Any) -> float:
    """Share of answers that hit the token limit."""
    return float(np.mean([trace.finish_reason == "length" for trace in traces]))


# --- stage 3: demonstrations ----------------------------------------------------------------------


def demonstrated(trace: Trace, how: str) -> str | None:
    """The text shown for an answer (R13); None where it has no end, or nothing after thinking."""
    if trace.finish_reason == "length":
        return None
    text = trace.text if how == "response" else after_thinking(trace.text)
    return (text or "").strip() or None


def teacher_prompt(
    tokenizer: Any, query: Prompt, shots: Sequence[tuple[Prompt, str]], thinking: bool | None
) -> list[int]:
    """Tokens of a conversation: each demonstration as a turn, the nearest last, then the question.

    A system message of the question stands first; those of the demonstrations are left out.
    """
    system = [m for m in query.messages if m["role"] == "system"]
    turns = [m for m in query.messages if m["role"] != "system"]
    shown = [
        message
        for prompt, text in reversed(shots)
        for message in (
            *(m for m in prompt.messages if m["role"] != "system"),
            {"role": "assistant", "content": text},
        )
    ]
    conversation = Prompt(query.id, (*system, *shown, *turns))
    return encode(tokenizer, conversation, thinking)


def find_contexts(
    plan: Plan,
    tokenizer: Any,
    traces: Sequence[Trace],
    sets: nopsd.Sets,
    chosen: Sequence[int],
    work: Path,
) -> dict[int, Context]:
    """Demonstrations of each chosen question; writes `contexts.jsonl`, or reads it.

    Those whose answer has no end can't demonstrate. Demonstrations are dropped whole, farthest
    first, until the teacher's prompt fits.
    """
    file, ids = work / "contexts.jsonl", [prompt.id for prompt in plan.prompts]
    if plan.accelerator.is_main_process and not file.is_file():
        shown = [demonstrated(trace, plan.readings.demonstration) for trace in traces]
        able = np.array([i for i, text in enumerate(shown) if text is not None])
        if len(able) < 2:
            whole = ", or set demonstration=response"
            raise BadInput(
                f"of {len(traces)} answers {len(able)} ended with something to show the teacher. "
                f"Raise max_tokens{whole * (plan.readings.demonstration == 'answer')}."
            )
        k, queries = plan.settings["shots"], np.array(chosen)
        distances = None
        if plan.settings["context"] == "nearest":
            near = nopsd.nearest(sets, k, queries=queries, candidates=able)
            shots, distances = near.index_QK, near.distance_QK
        else:
            shots = nopsd.random_contexts(
                len(traces), k, queries=queries, candidates=able, seed=plan.schedule.seed
            )
        lines = []
        with bar("contexts", len(chosen)) as advance:
            for row, query in enumerate(chosen):
                pairs = [(plan.prompts[i], str(shown[i])) for i in shots[row]]
                while pairs and plan.teacher_tokens < len(
                    teacher_prompt(tokenizer, plan.prompts[query], pairs, plan.sampling.thinking)
                ):
                    pairs.pop()
                line = {
                    "id": ids[query],
                    "shots": [ids[i] for i in shots[row]],
                    "distances": None if distances is None else distances[row].tolist(),
                    "kept": len(pairs),
                }
                lines.append(json.dumps(line) + "\n")
                advance()
        lineage.write_text(file, "".join(lines))
    plan.accelerator.wait_for_everyone()
    place = {name: i for i, name in enumerate(ids)}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        place[row["id"]]: Context(
            [place[shot] for shot in row["shots"]], row["distances"], row["kept"]
        )
        for row in rows
    }


def prompt_of_teacher(
    plan: Plan, tokenizer: Any, traces: Sequence[Trace], context: Context, query: int
) -> list[int]:
    """The teacher's prompt for a question, with the demonstrations that fit."""
    how = plan.readings.demonstration
    shots = [(plan.prompts[i], str(demonstrated(traces[i], how))) for i in context.shot_K]
    return teacher_prompt(
        tokenizer, plan.prompts[query], shots[: context.kept], plan.sampling.thinking
    )


@torch.no_grad()
def gap(
    plan: Plan,
    model: nn.Module,
    tokenizer: Any,
    traces: Sequence[Trace],
    contexts: dict[int, Context],
    probed: Sequence[int],
) -> dict[str, Any]:
    """Token entropies of student and teacher over the zero-shot answers, and their gap (Tab. 6)."""
    head_VD, cap = unembedding(model), head_of(model).cap
    device = plan.accelerator.device
    student, teacher = [], []
    for i in probed:
        told = prompt_of_teacher(plan, tokenizer, traces, contexts[i], i)
        states = [
            response_states(model, sequences([prompt], [traces[i].token_ids]).to(device))
            for prompt in (plan.prompt_ids[i], told)
        ]
        both = nopsd.reverse_kl(states[0], states[1], head_VD, softcap=cap)
        student.append(both.student_entropy_T.cpu().numpy())
        teacher.append(both.teacher_entropy_T.cpu().numpy())
    student_mean, teacher_mean, gap_Q = nopsd.entropy_gap(student, teacher)
    low, high = metrics.bootstrap_interval(gap_Q, seed=plan.schedule.seed)
    return {
        "student_entropy": student_mean,
        "teacher_entropy": teacher_mean,
        "entropy_gap": float(gap_Q.mean()),
        "entropy_gap_interval": [low, high],
        "probed": len(probed),
    }


# --- what it says ---------------------------------------------------------------------------------


def cautions(plan: Plan, found: dict[str, Any]) -> list[str]:
    """Plain sentences on why training may not help; empty when nothing speaks against it."""
    said = []
    if found["room"] < LITTLE_ROOM:
        said.append(
            f"Room for sharpening is {found['room']:.3f}: the answers to a question nearly always "
            "agree, so there is little to gain here."
        )
    if found["truncated"] > TRUNCATED:
        said.append(
            f"{found['truncated']:.0%} of the answers hit the limit of "
            f"{plan.sampling.max_tokens} tokens; they vote for nothing and demonstrate nothing."
        )
    if found["unread"] > UNREAD:
        said.append(
            f"In {found['unread']:.0%} of the finished answers {plan.settings['answer']!r} finds "
            "nothing to vote with, so the room for sharpening looks larger than it is. Choose "
            "another --answer."
        )
    if plan.settings["method"] != "nopsd":
        return said
    if found["entropy_gap_interval"][1] >= 0:
        low, high = found["entropy_gap_interval"]
        said.append(
            f"The teacher is not clearly sharper than the student: entropy gap "
            f"{found['entropy_gap']:+.4f} nats per token ({low:+.4f} to {high:+.4f}). In the paper "
            "such pools gained nothing."
        )
    if plan.settings["context"] == "nearest" and found["mean_jaccard_distance"] < DIVERSE:
        said.append(
            f"The pool is homogeneous (mean Jaccard distance "
            f"{found['mean_jaccard_distance']:.3f}): nearest demonstrations may do no better than "
            "random ones."
        )
    if abs(found["consensus_length_r"]) > 0.8:
        said.append(
            f"The size of the sets follows the answers' length (r = "
            f"{found['consensus_length_r']:.2f}): the selection is nearly one by length."
        )
    if found["questions_with_dropped"]:
        said.append(
            f"{found['demonstrations_dropped']} demonstrations of "
            f"{found['questions_with_dropped']} questions were dropped to fit "
            f"{plan.teacher_tokens} tokens."
        )
    return said


def summary(found: dict[str, Any]) -> list[str]:
    """The diagnostics as text."""
    lines = [
        f"pool                    {found['pool']} questions, {found['chosen']} to train on, "
        f"{found['truncated']:.0%} of the answers truncated",
        f"room for sharpening     {found['room']:.3f}",
    ]
    if "entropy_gap" in found:
        low, high = found["entropy_gap_interval"]
        lines += [
            f"entropy gap             {found['entropy_gap']:+.4f} nats per token "
            f"({low:+.4f} to {high:+.4f}; teacher {found['teacher_entropy']:.4f}, student "
            f"{found['student_entropy']:.4f})",
            f"mean Jaccard distance   {found['mean_jaccard_distance']:.3f}",
            f"consensus s(x)          {found['consensus_chosen']:.0f} where chosen, "
            f"{found['consensus_pool']:.0f} in the pool",
            f"demonstrations          {found['shots']:.1f} per question, "
            f"{found['demonstrations_dropped']} dropped for length",
        ]
    return lines


def told(plan: Plan, evidence: Evidence, work: Path) -> Evidence:
    """Write and print the diagnostics, with the warnings that follow from them."""
    said = cautions(plan, evidence.diagnostics)
    if plan.accelerator.is_main_process:
        written = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in evidence.diagnostics.items()
        }
        lineage.write_json(work / "diagnostics.json", {**written, "warnings": said})
        for line in (*summary(evidence.diagnostics), *(f"Warning: {line}" for line in said)):
            print(line, file=sys.stderr, flush=True)
    return evidence._replace(warnings=said)
