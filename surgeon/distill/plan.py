"""What a distillation is asked to do, checked against files and headers; starts nothing."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import engines, lineage, named, nopsd
from surgeon.answers import (
    classes_of,
    final_texts,
    gold_problem,
    parse_check,
    parse_extractor,
    parse_tags,
    read_answers,
    tags_of,
)
from surgeon.answers.thinking import Tags
from surgeon.checkpoint import Checkpoint, placement
from surgeon.consensus import require_budget
from surgeon.distill.traits import MethodTraits
from surgeon.errors import BadInput
from surgeon.families import as_subject, open_checkpoint
from surgeon.live import support
from surgeon.live.families import stop_ids_of
from surgeon.settings import record
from surgeon.settings.distill import DistillSettings
from surgeon.settings.engine import VLLM
from surgeon.settings.nopsd import Selection
from surgeon.settings.training import Schedule
from surgeon.traces import (
    Prompt,
    Sampling,
    Trace,
    digest_of_prompts,
    encode,
    keys_of,
    read_plain,
    read_prompts,
)
from surgeon.training import processes
from surgeon.training.tuning import require_targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


AUTO = "auto"
STEPS = 150
"""Optimizer steps of Neuron-OPSD (App. A)."""


class DistillPlan(NamedTuple):
    """A distillation whose inputs have been checked; nothing has been computed yet."""

    settings: DistillSettings
    method: MethodTraits
    checkpoint: Checkpoint
    prompts: list[Prompt]
    """The pool, its answers left out."""
    prompt_ids: list[list[int]]
    """Each question as the student sees it."""
    selection: Selection
    schedule: Schedule
    """With a learning rate."""
    teacher_tokens: int
    """Most tokens of a teacher's prompt."""
    tokenizer: "PreTrainedTokenizerBase"
    extract: Callable[[str], str | None]
    steps: int
    """Optimizer steps."""
    validation: list[Prompt]
    """Labelled problems that choose the step; empty where none were given."""
    labels: dict[str, str]
    """Question -> its answer, for reports and the rewards of labelled methods; empty without."""
    imported: list[Trace]
    """Answers that were made elsewhere."""
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run

    @property
    def zero_shot(self) -> Sampling:
        """How the first answer to each question is drawn."""
        return replace(self.settings.sampling, samples=1)

    def votes(
        self, questions: Sequence[Sequence[Trace]], check: str = "exact"
    ) -> list[list[str | None]]:
        """What each answer to each question votes for; a truncated one for nothing.

        Beside labels answers vote as `surgeon evaluate` counts them, by `check`; no training may
        depend on it.
        """
        return classes_of([self.read(traces) for traces in questions], check)

    def read(self, traces: Sequence[Trace]) -> list[str | None]:
        """The answer in each response, as `surgeon evaluate` reads it."""
        return read_answers(traces, self.extract, self.tokenizer, self._think)

    def after_thinking(self, trace: Trace) -> str | None:
        """A response without its thinking; None where it has no end."""
        return final_texts([trace], self.tokenizer, self._think)[0]

    @property
    def thinking_tags(self) -> list[str]:
        """What opens and what closes thinking, as the template or the user says."""
        tags = (*tags_of(self.checkpoint.chat_template), *self._think)
        return [tag for pair in tags for tag in pair]

    @property
    def _think(self) -> tuple[Tags, ...]:
        return parse_tags(self.settings.reading.think_tags)


def prepare(settings: DistillSettings, method: MethodTraits) -> DistillPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    selection = require_method(method, settings)
    processes.require_launch(settings.batches.tracker)
    sharded = settings.batches.parallel == "fsdp" and processes.world() > 1
    if settings.averaging.ema == "exact" and sharded:
        raise BadInput("ema 'exact' keeps whole matrices, so it can't be used with parallel fsdp.")
    lr = settings.schedule.lr or method.rate[settings.tuning.weights]
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    # No label may reach anything below.
    prompts = read_prompts(settings.pool, columns=settings.columns)
    prompts = [replace(prompt, answer=None) for prompt in prompts]
    if len(prompts) < 2:
        raise BadInput(
            f"{settings.pool} holds 1 question, expected 2 or more: the others demonstrate."
        )
    checkpoint = open_checkpoint(settings.checkpoint)
    if method.needs_sets:
        require_budget(checkpoint, settings.readings)
    support.require("distill" if method.needs_sets else "decode", checkpoint)
    require_targets(support.skeleton(checkpoint.full_config), settings.tuning)
    tokenizer = checkpoint.tokenizer()
    prompt_ids, prompt_budget = measure_prompts(checkpoint, tokenizer, prompts, settings)
    labels, validation = read_labels(settings, prompts), read_validation(settings, checkpoint)
    if method.needs_labels and not labels:
        raise BadInput(
            f"method {settings.method!r} is rewarded by labels, found none: give --labels FILE, "
            "the pool's questions with their answers."
        )
    asked = len(labels) if method.needs_labels else len(prompts)
    steps = steps_of(settings, method, selection, asked)
    imported = read_imported(settings, checkpoint, tokenizer, prompts)
    require_own_engine(method, settings, checkpoint, prompts)
    given = {"responses": lineage.file_digest(settings.responses)} if settings.responses else {}
    if labels:
        given["labels"] = lineage.digest_of(labels)
    if validation:
        given["validation"] = digest_of_prompts(validation)
    run = lineage.Run(
        "distill",
        record(settings)
        | {"checkpoint": checkpoint.spec, "select": selection.select, "lr": lr, "steps": steps},
        {
            "checkpoint": checkpoint.digest,
            "pool": digest_of_prompts(prompts),
            **given,
            **named.digests(method=settings.method, answer=settings.answer),
        },
        settings.seed,
    )
    return DistillPlan(
        settings, method, checkpoint, prompts, prompt_ids, selection,
        replace(settings.schedule, lr=lr), prompt_budget, tokenizer, extract,
        steps, validation, labels, imported, device, dtype, run,
    )  # fmt: skip


def read_labels(settings: DistillSettings, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Question of the pool -> its answer; raises `BadInput` for labels of other questions."""
    if settings.labels is None:
        if settings.check is not None and settings.validation is None:
            raise BadInput("found check without labels, expected --labels FILE too.")
        return {}
    check = settings.check or "exact"
    parse_check(check)

    def complaint(problem: Prompt) -> str | None:
        return None if problem.answer is None else gold_problem(problem.answer, check)

    asked = {prompt.id: prompt.messages for prompt in prompts}
    labels = {}
    for problem in read_prompts(settings.labels, complaint, settings.columns):
        if problem.answer is None or problem.id not in asked:
            continue
        if problem.messages != asked[problem.id]:
            raise BadInput(
                f"{settings.labels}: question {problem.id!r} isn't the pool's of that id, expected "
                "the pool's own questions with their answers."
            )
        labels[problem.id] = problem.answer
    if not labels:
        raise BadInput(
            f"{settings.labels} holds no answer to a question of the pool, expected the pool's ids "
            "with answers."
        )
    return labels


def read_validation(settings: DistillSettings, checkpoint: Checkpoint) -> list[Prompt]:
    """The labelled problems that choose a step; raises `BadInput` for one without a usable
    answer, or that doesn't fit."""
    if settings.validation is None:
        return []
    if settings.batches.parallel == "fsdp" and processes.world() > 1:
        raise BadInput("validation keeps whole weights, so it can't be used with parallel fsdp.")
    check = settings.check or "exact"
    parse_check(check)

    def complaint(problem: Prompt) -> str | None:
        if problem.answer is None:
            return "no answer, expected the correct one in the field `answer` of every problem"
        return gold_problem(problem.answer, check)

    problems = read_prompts(settings.validation, complaint, settings.columns)
    measure_prompts(checkpoint, checkpoint.tokenizer(), problems, settings)
    return problems


def decided(plan: DistillPlan, method: MethodTraits) -> DistillPlan:
    """The plan of the method that `auto` takes."""
    settings = plan.settings
    selection = plan.selection if method.needs_sets else replace(plan.selection, select="all")
    lr = settings.schedule.lr or method.rate[settings.tuning.weights]
    return plan._replace(
        method=method, selection=selection, schedule=replace(plan.schedule, lr=lr),
        steps=steps_of(settings, method, selection, len(plan.prompts)),
    )  # fmt: skip


def steps_of(
    settings: DistillSettings, method: MethodTraits, selection: Selection, pool: int
) -> int:
    """Optimizer steps: as many as were asked for, or that make so many epochs."""
    epochs = settings.epochs or (method.epochs if settings.steps is None else None)
    if epochs is None:
        return settings.steps or STEPS
    if not method.by_question:
        raise BadInput(
            f"{settings.method} learns answers, of which it isn't known yet how many it keeps: "
            "give steps instead of epochs."
        )
    how = replace(selection, select="bottom") if selection.select == "auto" else selection
    questions = len(nopsd.select(np.arange(pool), how, seed=settings.seed))
    return math.ceil(epochs * questions / settings.batches.batch_size)


def read_imported(
    settings: DistillSettings,
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
) -> list[Trace]:
    """The answers that are imported, `samples` to each question; raises `BadInput` where one is
    missing."""
    if settings.responses is None:
        return []
    stop = stop_ids_of(as_subject(checkpoint), tokenizer)
    found = read_plain(settings.responses, prompts, tokenizer, settings.sampling, stop)
    found.say(settings.responses)
    wanted = keys_of(prompts, settings.sampling.samples)
    traces = {trace.key: trace for trace in found.traces}
    missing = [key for key in wanted if key not in traces]
    if missing:
        question, sample = missing[0]
        raise BadInput(
            f"{settings.responses} lacks {len(missing)} of {len(wanted)} answers, first sample "
            f"{sample} of question {question!r}. Add them, or lower samples."
        )
    return [traces[key] for key in wanted]


def require_own_engine(
    method: MethodTraits,
    settings: DistillSettings,
    checkpoint: Checkpoint,
    prompts: Sequence[Prompt],
) -> None:
    """Raise `BadInput` where the engine can't write the answers, or isn't asked for any."""
    if settings.rollout.staleness and not method.may_lag:
        raise BadInput(
            f"found staleness = {settings.rollout.staleness}, expected 0: method "
            f"{settings.method!r} has to draw with the weights that it updates."
        )
    if settings.rollout.staleness and settings.engine.name != VLLM:
        raise BadInput(
            f"found staleness = {settings.rollout.staleness}, expected 0: only engine vllm is "
            "pushed weights."
        )
    if settings.engine.name == VLLM and processes.world() > 1:
        raise BadInput("engine vllm runs in one process here; distill was started in several.")
    asks = not settings.out.exists() and settings.responses is None
    engines.require_engine(settings.engine, [as_subject(checkpoint)], prompts, asks=asks)


def require_method(method: MethodTraits, settings: DistillSettings) -> Selection:
    """Which questions the method trains on; raises `BadInput` where it can't be run so."""
    if method.extra is not None and importlib.util.find_spec(method.extra) is None:
        raise BadInput(
            f"method {settings.method!r} needs {method.extra}: pip install "
            f"'surgeon[{method.extra}]'"
        )
    if settings.method == AUTO and settings.epochs is not None:
        raise BadInput(
            "found epochs with method auto, which may take one that learns answers: give steps."
        )
    if settings.force and settings.method != AUTO:
        raise BadInput(
            f"found force with method {settings.method!r}, which trains in any case: it is for "
            "method auto."
        )
    for name, value in own_options(settings).items():
        if method.options is not None and name not in method.options:
            raise BadInput(
                f"found {name} = {value} with method {settings.method!r}, which makes no use of it."
            )
    if method.one_process and processes.world() > 1:
        raise BadInput(
            f"method {settings.method!r} runs in one process here; it was started in several."
        )
    if method.needs_sets:
        return settings.selection
    select = settings.selection.select
    if select not in ("all", Selection().select):
        raise BadInput(
            f"{settings.method} trains on the whole pool; it takes no select ({select!r})."
        )
    return replace(settings.selection, select="all")


def own_options(settings: DistillSettings) -> dict[str, object]:
    """The settings for some methods only that were given another value than their default."""
    given = {
        "lowest": (settings.lowest, None),
        "threshold": (settings.pseudo.threshold, None),
        "pseudo_targets": (settings.pseudo.targets, None),
        "penalty": (settings.rollout.penalty, 0.0),
        "mask_truncated": (settings.rollout.mask_truncated, False),
        "context": (settings.demonstrations.context, "nearest"),
        "ema": (settings.averaging.ema, "factors"),
    }
    return {name: value for name, (value, default) in given.items() if value != default}


def measure_prompts(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    settings: DistillSettings,
) -> tuple[list[list[int]], int]:
    """Each question's tokens, and the most a teacher's prompt may have; raises `BadInput` where a
    question and its response don't fit the context."""
    if not checkpoint.chat_templates:
        raise BadInput(
            f"{checkpoint.spec} has no chat template, so demonstrations can't be shown as turns of "
            "a conversation. Add chat_template.jinja to it."
        )
    sampling = settings.sampling
    teacher_tokens = settings.demonstrations.teacher_tokens
    prompt_ids = [
        encode(tokenizer, prompt, sampling.thinking, sampling.template) for prompt in prompts
    ]
    budget = checkpoint.context - sampling.max_tokens
    longest = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    length, name = len(prompt_ids[longest]), prompts[longest].id
    if length > budget:
        raise BadInput(
            f"prompt {name!r} has {length} tokens; with max_tokens {sampling.max_tokens} it "
            f"doesn't fit the context of {checkpoint.context}. Shorten it, or lower max_tokens."
        )
    if teacher_tokens and length > teacher_tokens:
        raise BadInput(
            f"prompt {name!r} has {length} tokens, more than teacher_tokens {teacher_tokens}; the "
            "question itself is never cut."
        )
    return prompt_ids, min(budget, teacher_tokens or budget)
