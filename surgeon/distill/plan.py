"""What a distillation is asked to do, checked against files and headers."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage, nopsd
from surgeon.answers import parse_extractor
from surgeon.checkpoint import Checkpoint, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.settings.nopsd import Selection
from surgeon.traces import Prompt, Sampling, encode, read_prompts
from surgeon.training import Schedule, Tuning

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

METHODS = {
    "nopsd": "on-policy self-distillation from a teacher with neuron-chosen demonstrations",
    "lmsi": "fine-tuning on the model's own answers that agree with the majority (Huang et al.)",
    "ttrl": "GRPO with the majority's answer as the reward (Zuo et al.), through TRL",
    "intuitor": "GRPO with self-certainty as the reward (Zhao et al.), through TRL",
}
BY_TRL = ("ttrl", "intuitor")
CONTEXTS = ("nearest", "random")
EMAS = ("factors", "exact")
PARALLEL = ("ddp", "fsdp")
TRACKERS = ("tensorboard", "trackio", "wandb")
LEARNING_RATES = {"lora": 1e-4, "full": 1e-6}
PUBLISHED_RATES = {"ttrl": 5e-7, "intuitor": 3e-6}
"""Of full weights; TTRL's as in Neuron-OPSD App. A."""


class Plan(NamedTuple):
    """A distillation whose inputs have been checked; nothing has been computed yet."""

    checkpoint: Checkpoint
    prompts: list[Prompt]
    """The pool, its answers left out."""
    prompt_ids: list[list[int]]
    """Each question as the student sees it."""
    readings: nopsd.Readings
    tuning: Tuning
    schedule: Schedule
    sampling: Sampling
    """Of the zero-shot answers."""
    rollout: Sampling
    """Of the student's rollouts."""
    teacher_tokens: int
    """Most tokens of a teacher's prompt."""
    extract: Callable[[str], str | None]
    accelerator: "Accelerator"
    device: str
    dtype: "torch.dtype | None"
    settings: dict[str, Any]
    inputs: dict[str, str]

    def begin(self, out: Path) -> Path | None:
        """`lineage.begin` by the first process, and its answer or refusal for all of them."""
        told: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                told[0] = lineage.begin(
                    out,
                    verb="distill",
                    arguments=self.settings,
                    inputs=self.inputs,
                    seed=self.schedule.seed,
                )
            except BadInput as error:
                told[1] = str(error)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(told)
        if told[1] is not None:
            raise BadInput(told[1])
        return told[0]


def prepare(
    checkpoint: str,
    *,
    pool: str,
    out: str | Path,
    method: str,
    tuning: str,
    merge: bool,
    select: str | None,
    share: float,
    band: Sequence[float],
    context: str,
    shots: int,
    teacher_tokens: int,
    sets: str,
    activation: str,
    top_global: float,
    top_layer: float,
    chunk_tokens: int,
    demonstration: str,
    loss: str,
    temperature: float,
    top_p: float,
    rollout_temperature: float,
    rollout_top_p: float,
    max_tokens: int,
    thinking: bool | None,
    answer: str,
    samples: int,
    diagnose: int,
    steps: int,
    batch_size: int,
    lr: float | None,
    warmup: float,
    decay: str,
    weight_decay: float,
    clip: float,
    ema_rate: float,
    ema: str,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    gradient_checkpointing: bool,
    micro_tokens: int,
    save_every: int,
    parallel: str,
    tracker: str | None,
    seed: int,
    device: str,
    dtype: str,
) -> Plan:
    """Check every input of a distillation against files and headers; raises `BadInput`."""
    given = dict(locals())
    select = select or ("bottom" if method == "nopsd" else "all")
    for name, value, allowed in (
        ("method", method, METHODS), ("context", context, CONTEXTS), ("ema", ema, EMAS),
        ("parallel", parallel, PARALLEL),
    ):  # fmt: skip
        if value not in allowed:
            raise BadInput(f"{name} is {value!r}, expected one of: {', '.join(allowed)}.")
    for name, least in (
        ("shots", 1), ("samples", 2), ("diagnose", 1), ("steps", 1), ("batch_size", 1),
        ("micro_tokens", 1), ("teacher_tokens", 0),
    ):  # fmt: skip
        if given[name] < least:
            raise BadInput(f"{name} is {given[name]}; it must be at least {least}.")
    if not 0 < ema_rate <= 1:
        raise BadInput(f"ema_rate is {ema_rate}; it must be above 0 and at most 1.")
    if method != "nopsd" and select != "all":
        raise BadInput(f"{method} trains on the whole pool; it takes no select ({select!r}).")
    if method in BY_TRL and importlib.util.find_spec("trl") is None:
        raise BadInput(f"method {method!r} needs TRL: pip install 'surgeon[trl]'")
    if len(band) != 2:
        raise BadInput(f"band is {list(band)}; it must be two shares, such as 0.4 and 0.6.")
    Selection(select=select, share=share, band=(band[0], band[1]))  # pyright: ignore
    readings = nopsd.Readings(
        sets=sets, activation=activation, top_global=top_global, top_layer=top_layer,  # pyright: ignore
        chunk_tokens=chunk_tokens, demonstration=demonstration, loss=loss,  # pyright: ignore
    )  # fmt: skip
    tuned = Tuning(
        weights=tuning, rank=rank, alpha=alpha, dropout=dropout, targets=targets,  # pyright: ignore
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    if tuning == "full" and ema == "exact":
        raise BadInput("ema 'exact' is a choice under lora; full weights are averaged exactly.")
    if lr is None:
        lr = PUBLISHED_RATES.get(method, LEARNING_RATES[tuning])
    schedule = Schedule(
        lr=lr, warmup=warmup,
        decay=decay, weight_decay=weight_decay, clip=clip, save_every=save_every, seed=seed,  # pyright: ignore
    )  # fmt: skip
    sampling = Sampling(
        samples=1, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
        thinking=thinking,
    )  # fmt: skip
    rollout = replace(sampling, temperature=rollout_temperature, top_p=rollout_top_p)
    extract = parse_extractor(answer)
    if tracker is not None:
        require_tracker(tracker)
    where, kind = placement(device, dtype)
    # No label may reach anything below.
    prompts = [replace(prompt, answer=None) for prompt in read_prompts(pool)]
    if len(prompts) < 2:
        raise BadInput(f"{pool} holds 1 question, expected 2 or more: the others demonstrate.")
    opened = open_checkpoint(checkpoint)
    if method == "nopsd":
        require_budget(opened, readings)
    prompt_ids, room = measure_prompts(opened, prompts, sampling, teacher_tokens)
    accelerator = accelerate(where, tracker, Path(f"{out}.partial") / "training")
    if ema == "exact" and parallel == "fsdp" and accelerator.num_processes > 1:
        raise BadInput("ema 'exact' keeps whole matrices, so it can't be used with parallel fsdp.")
    if method in BY_TRL and accelerator.num_processes > 1:
        raise BadInput(f"method {method!r} runs in one process here; it was started in several.")
    settings = {
        name: value
        for name, value in given.items()
        # These change no number, or are inputs with a digest.
        if name not in ("checkpoint", "out", "save_every", "tracker", "seed")
    } | {"checkpoint": opened.spec, "select": select, "lr": schedule.lr, "band": list(band)}
    inputs = {
        "checkpoint": opened.digest,
        "pool": lineage.digest_of([asdict(prompt) for prompt in prompts]),
    }
    return Plan(
        opened, prompts, prompt_ids, readings, tuned, schedule, sampling, rollout, room, extract,
        accelerator, where, kind, settings, inputs,
    )  # fmt: skip


def require_budget(checkpoint: Checkpoint, readings: nopsd.Readings) -> None:
    """Raise `BadInput` where a budget keeps every neuron, so that all sets would be alike."""
    L, F = checkpoint.n_layers, checkpoint.d_ff
    for name, n in (("top_global", L * F), ("top_layer", F)):
        amount = getattr(readings, name)
        if name == "top_layer" and readings.sets == "main":
            continue
        if nopsd.budget(amount, n) >= n:
            raise BadInput(
                f"{name} {amount:g} keeps all {n:,} neurons of {checkpoint.spec}. Give a share, "
                f"for example {name} 0.014 (5,000 of the 350,208 of the paper's model)."
            )


def measure_prompts(
    checkpoint: Checkpoint, prompts: Sequence[Prompt], sampling: Sampling, teacher_tokens: int
) -> tuple[list[list[int]], int]:
    """Each question's tokens, and the most a teacher's prompt may have; raises `BadInput` where a
    question and its response don't fit the context."""
    if checkpoint.chat_template is None:
        raise BadInput(
            f"{checkpoint.spec} has no chat template, so demonstrations can't be shown as turns of "
            "a conversation. Add chat_template.jinja to it."
        )
    tokenizer = checkpoint.tokenizer()
    found = [encode(tokenizer, prompt, sampling.thinking) for prompt in prompts]
    limit = checkpoint.context
    room = limit - sampling.max_tokens
    longest = max(range(len(found)), key=lambda i: len(found[i]))
    if len(found[longest]) > room:
        raise BadInput(
            f"prompt {prompts[longest].id!r} has {len(found[longest])} tokens; with max_tokens "
            f"{sampling.max_tokens} it doesn't fit the context of {limit}. Shorten it, or lower "
            "max_tokens."
        )
    if teacher_tokens and len(found[longest]) > teacher_tokens:
        raise BadInput(
            f"prompt {prompts[longest].id!r} has {len(found[longest])} tokens, more than "
            f"teacher_tokens {teacher_tokens}; the question itself is never cut."
        )
    return found, min(room, teacher_tokens or room)


def accelerate(device: str, tracker: str | None, directory: Path) -> "Accelerator":
    """The processes, devices and trackers of this run; raises `BadInput` where accelerate was
    launched with an engine of its own."""
    from accelerate import Accelerator

    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true":
            raise BadInput(
                f"accelerate was launched with {engine}. Launch it with --multi_gpu; to share the "
                "weights among the processes add --set parallel=fsdp."
            )
    if ":" in device:
        import torch

        torch.cuda.set_device(device)
    # Precision follows from the checkpoint and --dtype, not from accelerate's own configuration.
    return Accelerator(
        cpu=device == "cpu", mixed_precision="no", log_with=tracker, project_dir=directory
    )


def require_tracker(tracker: str) -> None:
    """Raise `BadInput` for a tracker that is unknown or not installed."""
    from accelerate.tracking import get_available_trackers

    if tracker not in TRACKERS:
        raise BadInput(f"tracker is {tracker!r}, expected one of: {', '.join(TRACKERS)}.")
    if tracker not in [str(getattr(t, "value", t)) for t in get_available_trackers()]:
        raise BadInput(f"tracker {tracker!r} is not installed: pip install {tracker}")
