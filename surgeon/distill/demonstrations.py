"""Stage 3: which of the model's own answers the teacher sees before each question."""

# Shapes: Q chosen questions, K demonstrations.

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import jsonl, nopsd
from surgeon.distill.pool import LiveModel
from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.traces import Prompt, Trace, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgeon.distill.plan import DistillPlan


class Context(NamedTuple):
    """The demonstrations of one question."""

    shot_K: list[int]
    """Positions in the pool, nearest first."""
    distance_K: list[float] | None
    """Their Jaccard distances; None for random ones."""
    kept: int
    """How many of them, from the nearest on, fit the teacher's prompt."""


def demonstrated(plan: "DistillPlan", trace: Trace) -> str | None:
    """The text shown for an answer (R13); None where it has no end, or nothing after thinking."""
    if trace.finish_reason == "length":
        return None
    whole = plan.settings.readings.demonstration == "response"
    text = trace.text if whole else plan.after_thinking(trace)
    return (text or "").strip() or None


def teacher_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    query: Prompt,
    shots: Sequence[tuple[Prompt, str]],
    thinking: bool | None,
    template: str | None = None,
) -> list[int]:
    """Tokens of a conversation: each demonstration as a turn, the nearest last, then the question.

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
    conversation = Prompt(query.id, (*system, *turns, *question), tools=query.tools)
    return encode(tokenizer, conversation, thinking, template)


def find_contexts(
    plan: "DistillPlan",
    live: LiveModel,
    traces: Sequence[Trace],
    sets: nopsd.Sets,
    chosen: Sequence[int],
    work: Path,
) -> dict[int, Context]:
    """Demonstrations of each chosen question; writes `contexts.jsonl`, or reads it."""
    file, ids = work / "contexts.jsonl", [prompt.id for prompt in plan.prompts]
    if live.accelerator.is_main_process and not file.is_file():
        contexts = choose_contexts(plan, live.tokenizer, traces, sets, chosen)
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


def choose_contexts(
    plan: "DistillPlan",
    tokenizer: "PreTrainedTokenizerBase",
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
    settings, queries = plan.settings.demonstrations, np.array(chosen)
    if settings.context == "nearest":
        near = nopsd.nearest(sets, settings.shots, queries=queries, candidates=able)
        shots, distances = near.index_QK.tolist(), near.distance_QK.tolist()
    else:
        shots = nopsd.random_contexts(
            len(traces), settings.shots, queries=queries, candidates=able, seed=plan.settings.seed
        ).tolist()
        distances = [None] * len(chosen)
    contexts: dict[int, Context] = {}
    with bar("contexts", len(chosen)) as advance:
        for query, shot_K, distance_K in zip(chosen, shots, distances, strict=True):
            context = Context(shot_K, distance_K, len(shot_K))
            while context.kept and plan.teacher_tokens < len(
                prompt_of_teacher(plan, tokenizer, traces, context, query)
            ):
                context = context._replace(kept=context.kept - 1)
            contexts[query] = context
            advance()
    return contexts


def prompt_of_teacher(
    plan: "DistillPlan",
    tokenizer: "PreTrainedTokenizerBase",
    traces: Sequence[Trace],
    context: Context,
    query: int,
) -> list[int]:
    """The teacher's prompt for a question, with the demonstrations that fit."""
    shots = [
        (plan.prompts[i], str(demonstrated(plan, traces[i])))
        for i in context.shot_K[: context.kept]
    ]
    sampling = plan.settings.sampling
    return teacher_prompt(
        tokenizer, plan.prompts[query], shots, sampling.thinking, sampling.template
    )
