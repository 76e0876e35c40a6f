"""Baselines that learn from a reward instead of a teacher, through TRL's GRPO trainer.

TTRL (Zuo et al., 2025): an answer is rewarded when it is the majority's among the rollouts of its
question. Intuitor (Zhao et al., 2025): a rollout is rewarded by its self-certainty, how far the
model's distributions are from uniform. TRL is an extra: `pip install 'surgeon[trl]'`. Unlike the
methods of this package a run that is killed in this stage begins the stage again.
"""

# Shapes: P response positions, V vocabulary, G rollouts of a question.

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.answers import classes_of, majority
from surgeon.distill.run import GUARDS, TrainingRun
from surgeon.errors import BadInput
from surgeon.live.architecture import Head, head_of
from surgeon.progress import bar
from surgeon.traces import Trace, chosen_template, stop_ids, text_of
from surgeon.training.loop import Journal
from surgeon.training.sequences import response_states, sequences
from surgeon.training.state import METRICS, History

if TYPE_CHECKING:
    from trl import GRPOConfig  # pyright: ignore

CHUNK = 256
"""Positions whose logits exist at the same time."""
Reward = Callable[..., list[float]]
"""What TRL calls with the rollouts of a batch, question after question."""


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


def self_certainty(hidden_PD: Tensor, head: Head) -> float:
    """Mean over positions of KL(uniform || p) in nats: -log V - mean over the vocabulary of log p
    (Intuitor)."""
    total = 0.0
    for part_CD in hidden_PD.split(CHUNK):
        log_p_CV = head.logits(part_CD).log_softmax(-1)
        V = log_p_CV.shape[1]
        total += float(-(log_p_CV.mean(-1) + torch.log(torch.tensor(float(V)))).sum())
    return total / len(hidden_PD)


def grpo(
    reward: Callable[[TrainingRun], Reward], penalty: float
) -> Callable[[TrainingRun], History]:
    """A method that trains with TRL by that reward; `penalty` is the weight of the KL to the start.

    It raises `BadInput` when the loss is not finite.
    """

    def train(run: TrainingRun) -> History:
        from datasets import Dataset
        from transformers import PrinterCallback, TrainerCallback
        from trl import GRPOTrainer  # pyright: ignore

        settings = run.plan.settings
        responses = settings.sampling.samples * settings.batches.batch_size
        run.directory.mkdir(exist_ok=True)
        (run.directory / METRICS).write_text("")
        journal = Journal(run.live.accelerator, run.directory, guards=GUARDS)

        class Writer(TrainerCallback):
            """Hands each step to the journal when it ends."""

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.begun = time.monotonic()

            def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
                if "loss" in logs:
                    step, seconds = len(journal.records) + 1, time.monotonic() - self.begun
                    journal.add(record_of(step, logs, responses, seconds))
                    advance(note=f"reward {logs['reward']:.3f}")

        rows = [{"prompt": list(prompt.messages)} for prompt in run.plan.prompts]
        template = run.plan.settings.sampling.template
        run.live.tokenizer.chat_template = chosen_template(run.live.tokenizer, template)
        with bar(run.what, settings.steps) as advance, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = GRPOTrainer(
                model=run.student.adapter or run.student.model,  # pyright: ignore
                reward_funcs=[reward(run)],  # pyright: ignore[reportArgumentType]
                args=config_of(run, penalty),
                train_dataset=Dataset.from_list(rows),
                processing_class=run.live.tokenizer,
                callbacks=[Writer()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return journal.history()

    return train


def config_of(run: TrainingRun, penalty: float) -> "GRPOConfig":
    """The run's settings as TRL names them."""
    from trl import GRPOConfig  # pyright: ignore

    settings, schedule = run.plan.settings, run.plan.schedule
    group, thinking = settings.sampling.samples, settings.sampling.thinking
    on_cpu = run.live.accelerator.device.type == "cpu"
    return GRPOConfig(
        output_dir=str(run.directory),
        max_steps=settings.steps,
        learning_rate=schedule.peak,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(schedule.decay, schedule.decay),
        warmup_steps=round(schedule.warmup * settings.steps),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.clip,
        per_device_train_batch_size=group,
        gradient_accumulation_steps=settings.batches.batch_size,
        num_generations=group,
        max_completion_length=settings.sampling.max_tokens,
        temperature=settings.rollout.temperature,
        top_p=settings.rollout.top_p,
        beta=penalty,
        chat_template_kwargs={} if thinking is None else {"enable_thinking": thinking},
        gradient_checkpointing=settings.tuning.gradient_checkpointing,
        use_cpu=on_cpu,
        bf16=run.student.bf16 and not on_cpu,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def record_of(step: int, log: dict[str, Any], responses: int, seconds: float) -> dict[str, float]:
    """One entry of TRL's log under this package's names; raises `BadInput` for a loss that isn't
    finite."""
    names = {
        "loss": "loss", "reward": "reward", "kl": "kl", "entropy": "student_entropy",
        "completions/mean_length": "length", "completions/clipped_ratio": "truncated",
        "learning_rate": "lr", "grad_norm": "gradient_norm",
    }  # fmt: skip
    numbers = {ours: float(log[name]) for name, ours in names.items() if name in log}
    if not math.isfinite(numbers["loss"]):
        raise BadInput(
            f"the loss became {numbers['loss']} in step {step}. Lower the learning rate."
        )
    tokens = responses * numbers["length"]
    return {
        "step": step, **numbers, "tokens": tokens, "responses": responses, "seconds": seconds,
        "tokens_per_s": tokens / seconds,
    }  # fmt: skip


def prompt_ids_of(run: TrainingRun) -> dict[str, list[int]]:
    """The tokens of each question by its messages, of which TRL hands on a copy."""
    return {
        json.dumps(prompt.messages): ids
        for prompt, ids in zip(run.plan.prompts, run.plan.prompt_ids, strict=True)
    }


def majority_reward(run: TrainingRun) -> Reward:
    """1 for a rollout whose answer is the majority's (TTRL); a truncated one votes for nothing."""
    stop, ids_of = stop_ids(run.student.model, run.live.tokenizer), prompt_ids_of(run)

    def rollout(messages: list, ids: list[int]) -> Trace:
        reason = "stop" if ids[-1] in stop else "length"
        text = text_of(run.live.tokenizer, ids, reason)
        return Trace("", 0, ids_of[json.dumps(messages)], ids, text, reason)

    def ttrl(prompts: list, completion_ids: list[list[int]], **_: Any) -> list[float]:
        answers = run.plan.read(list(map(rollout, prompts, completion_ids)))
        return majority_rewards(answers, run.plan.settings.sampling.samples)

    return ttrl


def self_certainty_reward(run: TrainingRun) -> Reward:
    """How far the model's distributions over a rollout are from uniform (Intuitor)."""
    ids_of = prompt_ids_of(run)

    @torch.no_grad()
    def intuitor(prompts: list, completion_ids: list[list[int]], **_: Any) -> list[float]:
        model = run.student.model
        head, device, rewards = head_of(model), run.live.accelerator.device, []
        for messages, ids in zip(prompts, completion_ids, strict=True):
            prompt = ids_of[json.dumps(messages)]
            states_PD = response_states(model, sequences([prompt], [ids]).to(device))
            rewards.append(self_certainty(states_PD, head))
        return rewards

    return intuitor
