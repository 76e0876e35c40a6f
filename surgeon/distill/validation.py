"""Which step of training is kept, by labelled problems: only with `--validation`, and said so.

Before steps 0, n, 2n, ... and after the last one the student answers the problems `samples` times
with the settings of `sampling`; the weights of the step with the highest Maj@k are kept, the first
of equal ones (Neuron-OPSD App. A, for TTRL).
"""

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from surgeon import jsonl, metrics
from surgeon.answers import check_many
from surgeon.artifact import part
from surgeon.decoding import Request, decode, stream_key
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import LiveModel
from surgeon.traces import Trace, encode, stop_ids, text_of
from surgeon.training.loop import Batch
from surgeon.training.student import Student, all_weights
from surgeon.training.tuning import trainable

FILE, BEST = "validation.jsonl", "best.safetensors"


@part
class Validated:
    """How a step of training was chosen by labels."""

    problems: int
    step: int
    """The one whose weights are the result; 0: before training."""
    maj: tuple[tuple[int, float], ...]
    """(step, Maj@k)."""


class Validation(NamedTuple):
    """A training whose problems are looked at."""

    plan: DistillPlan
    live: LiveModel
    student: Student
    directory: Path

    @property
    def every(self) -> int:
        """Steps between two looks at the problems."""
        return self.plan.settings.validate_every or max(1, math.ceil(self.plan.steps / 10))

    def watched(
        self, batches: Callable[[int], Iterator[Batch]]
    ) -> Callable[[int], Iterator[Batch]]:
        """The same batches, with a look at the problems before every n-th step."""

        def from_step(start: int) -> Iterator[Batch]:
            self.forget_lost()
            work = batches(start)
            for step in count(start):
                if step % self.every == 0:
                    self.look(step)
                yield next(work)

        return from_step

    def forget_lost(self) -> None:
        """Forget what was measured where the best weights are gone: a kill came after they were
        removed with the states, so training begins anew."""
        if self.live.accelerator.is_main_process and not (self.directory / BEST).is_file():
            (self.directory / FILE).unlink(missing_ok=True)
        self.live.accelerator.wait_for_everyone()

    def look(self, step: int) -> None:
        """Measure the student as it is; keep its weights where it is the best so far."""
        known = dict(looks(self.directory))
        if step in known:
            return
        maj = self.student.rollouts(self.measured)
        if maj > max(known.values(), default=-1.0):
            weights = self.student.weights()
            if self.live.accelerator.is_main_process:
                from safetensors.torch import save_file

                temporary = self.directory / f"{BEST}.partial"
                save_file(
                    {name: tensor.contiguous() for name, tensor in weights.items()}, temporary
                )
                temporary.replace(self.directory / BEST)
        self.live.accelerator.wait_for_everyone()
        if self.live.accelerator.is_main_process:
            jsonl.append(self.directory / FILE, {"step": step, "maj": maj})
        self.live.accelerator.wait_for_everyone()

    def measured(self, model: torch.nn.Module) -> float:
        """Maj@k of the model on the problems; every process answers all of them."""
        plan, sampling = self.plan, self.plan.settings.sampling
        k, problems = sampling.samples, self.plan.validation
        keys = [(problem, n) for problem in problems for n in range(k)]
        prompts = {
            problem.id: encode(self.live.tokenizer, problem, sampling.thinking, sampling.template)
            for problem in problems
        }
        requests = [
            Request(prompts[problem.id], stream_key(sampling.seed, f"validation {problem.id}", n))
            for problem, n in keys
        ]
        decoded = decode(
            model, requests, stop=stop_ids(self.student.model, self.live.tokenizer),
            max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
        )  # fmt: skip
        answers = sorted(decoded, key=lambda answer: answer.index)
        traces = [
            Trace(
                problem.id, n, prompts[problem.id], answer.token_ids,
                text_of(self.live.tokenizer, answer.token_ids, answer.finish_reason),
                answer.finish_reason,
            )
            for (problem, n), answer in zip(keys, answers, strict=True)
        ]  # fmt: skip
        read = plan.read(traces)
        pairs = [
            (answer, str(problem.answer)) for (problem, _), answer in zip(keys, read, strict=True)
        ]
        check = plan.settings.check or "exact"
        right = [verdict.correct for verdict in check_many(pairs, check)]
        firsts = range(0, len(right), k)
        votes = plan.votes([traces[first : first + k] for first in firsts], check)
        correct = [right[first : first + k] for first in firsts]
        return float(np.mean(metrics.majority_by_prompt(votes, correct)))

    def keep_best(self) -> None:
        """Look once more, and give the student the weights of its best step."""
        self.look(self.plan.steps)
        if best_step(self.directory) == self.plan.steps:
            return
        from safetensors.torch import load_file

        model, adapter = self.student.model, self.student.adapter
        own = dict(trainable(model)) if adapter is not None else dict(all_weights(model))
        with torch.no_grad():
            for name, tensor in load_file(self.directory / BEST).items():
                own[name].copy_(tensor)


def looks(directory: Path) -> list[tuple[int, float]]:
    """(step, Maj@k) of what was measured."""
    return [(row["step"], row["maj"]) for _, row in jsonl.rows(directory / FILE)]


def best_step(directory: Path) -> int:
    """The first step with the highest Maj@k."""
    return max(looks(directory), key=lambda pair: (pair[1], -pair[0]))[0]


def outcome(directory: Path, problems: int) -> Validated | None:
    """How the step was chosen; None where no problem was looked at."""
    found = looks(directory)
    if not found:
        return None
    return Validated(problems=problems, step=best_step(directory), maj=tuple(found))
