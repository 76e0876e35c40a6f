"""Stage 3: which of the model's own answers the teacher sees before each question."""

# Shapes: Q chosen questions, K demonstrations.

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from surgeon import jsonl, nopsd
from surgeon.answers import classes_of
from surgeon.distill import controls
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import LiveModel
from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.traces import Prompt, Trace, encode
from surgeon.training.sequences import response_states, sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Context(NamedTuple):
    """The demonstrations of one question."""

    shot_K: list[int]
    """Positions in the pool, nearest first."""
    distance_K: list[float] | None
    """Their distances; None where they were chosen by none."""
    kept: int
    """How many of them, from the nearest on, fit the teacher's prompt."""


def demonstrated(plan: DistillPlan, trace: Trace) -> str | None:
    """The text shown for an answer (R13); None where it has no end, or nothing after thinking."""
    if trace.finish_reason == "length":
        return None
    whole = plan.settings.readings.demonstration == "response"
    text = trace.text if whole else plan.after_thinking(trace)
    return (text or "").strip() or None


def conversation(query: Prompt, shots: Sequence[tuple[Prompt, str]]) -> Prompt:
    """Each demonstration as a turn, the nearest last, then the question (R19).

    A system message of the question stands first; those of the demonstrations are left out.
    """
    system = [m for m in query.messages if m["role"] == "system"]
    question = [m for m in query.messages if m["role"] != "system"]
    turns = [
        message
        for prompt, text in reversed(shots)
        for message in (
            *(m for m in prompt.messages if m["role"] != "system"),
            {"role": "assistant", "content": text},
        )
    ]
    return Prompt(query.id, (*system, *turns, *question), tools=query.tools)


def teacher_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    query: Prompt,
    shots: Sequence[tuple[Prompt, str]],
    thinking: bool | None,
    template: str | None = None,
) -> list[int]:
    """Tokens of that conversation."""
    return encode(tokenizer, conversation(query, shots), thinking, template)


def find_contexts(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    sets: nopsd.Sets,
    chosen: Sequence[int],
    work: Path,
) -> dict[int, Context]:
    """Demonstrations of each chosen question; writes `contexts.jsonl`, or reads it."""
    file, ids = work / "contexts.jsonl", [prompt.id for prompt in plan.prompts]
    if live.accelerator.is_main_process and not file.is_file():
        contexts = choose_contexts(plan, live, traces, sets, chosen)
        jsonl.write(
            file,
            [
                {
                    "id": ids[query],
                    "shots": [ids[i] for i in context.shot_K],
                    "distances": context.distance_K,
                    "kept": context.kept,
                }
                for query, context in contexts.items()
            ],
        )
    live.accelerator.wait_for_everyone()
    place = {name: i for i, name in enumerate(ids)}
    return {
        place[row["id"]]: Context(
            [place[shot] for shot in row["shots"]], row["distances"], row["kept"]
        )
        for _, row in jsonl.rows(file)
    }


def selected(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    sets: nopsd.Sets,
    chosen: Sequence[int],
    able_N: np.ndarray,
) -> tuple[list[list[int]], list[list[float] | None]]:
    """Demonstrations of each chosen question, from those that can demonstrate, and their distances
    where they were chosen by one."""
    settings, seed, queries = plan.settings.demonstrations, plan.settings.seed, np.array(chosen)
    none: list[list[float] | None] = [None] * len(chosen)
    if settings.context == "random":
        drawn = nopsd.random_contexts(
            len(traces), settings.shots, queries=queries, candidates=able_N, seed=seed
        )
        return drawn.tolist(), none
    if settings.context == "answer":
        read = classes_of([plan.read(traces)])[0]
        same = controls.of_the_same_answer(
            read, settings.shots, queries=chosen, candidates=able_N, seed=seed
        )
        if not any(same):
            raise BadInput(
                "no question that is trained on has its answer from another one too, so context "
                "'answer' has nothing to show. Choose another --context."
            )
        return same, none
    if settings.context == "embedding":
        vector_ND = embeddings(plan, live)
        by_cosine, cosine = controls.nearest_by_cosine(
            vector_ND, settings.shots, queries=chosen, candidates=able_N
        )
        return by_cosine, [*cosine]
    near = nopsd.nearest(sets, settings.shots, queries=queries, candidates=able_N)
    if settings.context == "nearest":
        return near.index_QK.tolist(), near.distance_QK.tolist()
    shown = [demonstrated(plan, trace) or "" for trace in traces]
    length_N = np.array(
        [len(ids) + len(text) for ids, text in zip(plan.prompt_ids, shown, strict=True)]
    )
    like = controls.of_like_lengths(
        near.index_QK.tolist(), length_N, queries=chosen, candidates=able_N
    )
    return like, none


@torch.no_grad()
def embeddings(plan: DistillPlan, live: LiveModel) -> np.ndarray:
    """float64_ND: the mean of the model's last states over each question's prompt."""
    device = live.accelerator.device
    return np.stack(
        [
            response_states(live.model, sequences([ids[:1]], [ids[1:] or ids[:1]]).to(device))
            .float().mean(0).double().cpu().numpy()
            for ids in plan.prompt_ids
        ]
    )  # fmt: skip


def choose_contexts(
    plan: DistillPlan,
    live: LiveModel,
    traces: Sequence[Trace],
    sets: nopsd.Sets,
    chosen: Sequence[int],
) -> dict[int, Context]:
    """Demonstrations of each chosen question, from the answers that can demonstrate: those with an
    end.

    Demonstrations are dropped whole, farthest first, until the teacher's prompt fits.
    """
    how = plan.settings.readings.demonstration
    texts = [demonstrated(plan, trace) for trace in traces]
    able = np.array([i for i, text in enumerate(texts) if text is not None])
    if len(able) < 2:
        whole = ", or set demonstration=response" if how == "answer" else ""
        raise BadInput(
            f"of {len(traces)} answers {len(able)} ended with something to show the teacher. "
            f"Raise max_tokens{whole}."
        )
    shots, distances = selected(plan, live, traces, sets, chosen, able)
    contexts: dict[int, Context] = {}
    with bar("contexts", len(chosen)) as advance:
        for query, shot_K, distance_K in zip(chosen, shots, distances, strict=True):
            context = Context(shot_K, distance_K, len(shot_K))
            while context.kept and plan.teacher_tokens < len(
                prompt_of_teacher(plan, live.tokenizer, traces, context, query)
            ):
                context = context._replace(kept=context.kept - 1)
            contexts[query] = context
            advance()
    return contexts


def prompt_of_teacher(
    plan: DistillPlan,
    tokenizer: "PreTrainedTokenizerBase",
    traces: Sequence[Trace],
    context: Context,
    query: int,
) -> list[int]:
    """The teacher's prompt for a question, with the demonstrations that fit."""
    sampling = plan.settings.sampling
    return teacher_prompt(
        tokenizer, plan.prompts[query], shown_shots(plan, traces, context), sampling.thinking,
        sampling.template,
    )  # fmt: skip


def teacher_conversation(
    plan: DistillPlan, traces: Sequence[Trace], context: Context, query: int
) -> Prompt:
    """The same as messages, under the question's name."""
    return conversation(plan.prompts[query], shown_shots(plan, traces, context))


def shown_shots(
    plan: DistillPlan, traces: Sequence[Trace], context: Context
) -> list[tuple[Prompt, str]]:
    """The demonstrations that fit, as question and text."""
    return [
        (plan.prompts[i], str(demonstrated(plan, traces[i])))
        for i in context.shot_K[: context.kept]
    ]
