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
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.answers import canonical
from surgeon.distill.evidence import Evidence
from surgeon.distill.plan import Plan
from surgeon.errors import BadInput
from surgeon.live.architecture import Head, head_of
from surgeon.progress import bar
from surgeon.traces import stop_ids
from surgeon.training import METRICS, Guards, History, Journal, Student, response_states, sequences

PENALTY = {"ttrl": 0.0, "intuitor": 0.005}
"""Weight of the KL to the start: TTRL as in Neuron-OPSD App. A, Intuitor as published."""
CHUNK = 256


def majority_rewards(votes: Sequence[str | None], group: int) -> list[float]:
    """1 for every vote that is the most frequent of its group, else 0 (TTRL).

    Votes come group after group; None (no answer) never wins, ties go to the vote that came first.
    """
    rewards = []
    for first in range(0, len(votes), group):
        members = votes[first : first + group]
        count = Counter(vote for vote in members if vote is not None)
        best = max(count, key=lambda vote: count[vote]) if count else None
        rewards += [float(vote is not None and vote == best) for vote in members]
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


def train_grpo(
    plan: Plan,
    evidence: Evidence,
    student: Student,
    adapter: Any,
    directory: Path,
    guards: Guards,
    what: str,
) -> History:
    """Train with TRL; returns the record of every step, which `directory/metrics.jsonl` holds too.

    Raises `BadInput` when the loss is not finite.
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

    settings, schedule = plan.settings, plan.schedule
    group = settings["samples"]
    thinking = plan.sampling.thinking
    device = plan.accelerator.device
    config = GRPOConfig(
        output_dir=str(directory),
        max_steps=settings["steps"],
        learning_rate=schedule.lr,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(schedule.decay, schedule.decay),
        warmup_steps=round(schedule.warmup * settings["steps"]),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.clip,
        per_device_train_batch_size=group,
        gradient_accumulation_steps=settings["batch_size"],
        num_generations=group,
        max_completion_length=plan.rollout.max_tokens,
        temperature=plan.rollout.temperature,
        top_p=plan.rollout.top_p,
        beta=PENALTY[settings["method"]],
        chat_template_kwargs={} if thinking is None else {"enable_thinking": thinking},
        gradient_checkpointing=plan.tuning.gradient_checkpointing,
        use_cpu=device.type == "cpu",
        bf16=student.bf16 and device.type != "cpu",
        seed=schedule.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    directory.mkdir(exist_ok=True)
    (directory / METRICS).write_text("")
    journal = Journal(plan.accelerator, directory, guards=guards)

    class Writer(TrainerCallback):
        """Hands each step to the journal when it ends."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.monotonic()

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                seconds = time.monotonic() - self.begun
                journal.add(
                    record_of(
                        len(journal.history.records) + 1,
                        logs,
                        group * settings["batch_size"],
                        seconds,
                    )
                )
                advance(note=f"reward {logs['reward']:.3f}")

    with bar(what, settings["steps"]) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=student.model if adapter is None else adapter,  # pyright: ignore
            reward_funcs=[reward(plan, evidence, student.model)],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": list(p.messages)} for p in plan.prompts]),
            processing_class=evidence.tokenizer,
            callbacks=[Writer()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return journal.history


def record_of(step: int, log: dict[str, Any], responses: int, seconds: float) -> dict[str, float]:
    """One entry of TRL's log under this package's names; raises `BadInput` for a loss that isn't
    finite."""
    names = {
        "loss": "loss", "reward": "reward", "kl": "kl", "entropy": "student_entropy",
        "completions/mean_length": "length", "completions/clipped_ratio": "truncated",
        "learning_rate": "lr", "grad_norm": "gradient_norm",
    }  # fmt: skip
    found = {mine: float(log[name]) for name, mine in names.items() if name in log}
    if not math.isfinite(found["loss"]):
        raise BadInput(f"the loss became {found['loss']} in step {step}. Lower the learning rate.")
    tokens = responses * found["length"]
    return {
        "step": step, **found, "tokens": tokens, "responses": responses, "seconds": seconds,
        "tokens_per_s": tokens / seconds,
    }  # fmt: skip


def reward(plan: Plan, evidence: Evidence, model: nn.Module) -> Any:
    """The reward function that TRL calls with the rollouts of a batch, question after question."""
    stop = stop_ids(model, evidence.tokenizer)
    asked = [json.dumps(prompt.messages) for prompt in plan.prompts]
    ids_of = dict(zip(asked, plan.prompt_ids, strict=True))

    def ttrl(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return majority_rewards([voted(ids) for ids in completion_ids], plan.settings["samples"])

    def voted(ids: list[int]) -> str | None:
        if ids[-1] not in stop:
            return None
        text = evidence.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False)
        answer = plan.extract(str(text))
        return None if answer is None else canonical(answer)

    @torch.no_grad()
    def intuitor(prompts: list, completion_ids: list[list[int]], **_: Any) -> list[float]:
        head, device = head_of(model), plan.accelerator.device
        told = []
        for messages, ids in zip(prompts, completion_ids, strict=True):
            prompt = ids_of[json.dumps(messages)]
            states_PD = response_states(model, sequences([prompt], [ids]).to(device))
            told.append(self_certainty(states_PD, head))
        return told

    return ttrl if plan.settings["method"] == "ttrl" else intuitor
