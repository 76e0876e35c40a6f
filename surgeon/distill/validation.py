"""Which step of training is kept, by labelled problems: only with `--validation`, and said so.

Before steps 0, n, 2n, ... and after the last one the student answers the problems `samples` times
with the settings of `sampling`; the weights of the step with the highest Maj@k are kept, the first
of equal ones (Neuron-OPSD App. A, for TTRL).
"""

import math
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from surgeon import jsonl, metrics
from surgeon.answers import check_many
from surgeon.artifact import part
from surgeon.decoding import Request, decode, stream_key
from surgeon.traces import Trace, encode, stop_ids, text_of
from surgeon.training.loop import Batch
from surgeon.training.student import all_weights
from surgeon.training.tuning import trainable

if TYPE_CHECKING:
    from surgeon.distill.run import TrainingRun

FILE, BEST = "validation.jsonl", "best.safetensors"


@part
class Validated:
    """How a step of training was chosen by labels."""

    problems: int
    step: int
    """The one whose weights are the result; 0: before training."""
    maj: tuple[tuple[int, float], ...]
    """(step, Maj@k)."""


def every(run: "TrainingRun") -> int:
    """Steps between two looks at the problems."""
    return run.plan.settings.validate_every or max(1, math.ceil(run.plan.steps / 10))


def validated(
    run: "TrainingRun", batches: Callable[[int], Iterator[Batch]]
) -> Callable[[int], Iterator[Batch]]:
    """The same batches, with a look at the problems before every n-th step."""

    def from_step(start: int) -> Iterator[Batch]:
        work = batches(start)
        for step in count(start):
            if step % every(run) == 0:
                look(run, step)
            yield next(work)

    return from_step


def look(run: "TrainingRun", step: int) -> None:
    """Measure the student as it is; keep its weights where it is the best so far."""
    known = dict(looks(run.directory))
    if step in known:
        return
    maj = run.student.rollouts(lambda model: measured(run, model))
    if maj > max(known.values(), default=-1.0):
        weights = run.student.weights()
        if run.live.accelerator.is_main_process:
            from safetensors.torch import save_file

            temporary = run.directory / f"{BEST}.partial"
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
            temporary.replace(run.directory / BEST)
    run.live.accelerator.wait_for_everyone()
    if run.live.accelerator.is_main_process:
        jsonl.append(run.directory / FILE, {"step": step, "maj": maj})
    run.live.accelerator.wait_for_everyone()


def looks(directory: Path) -> list[tuple[int, float]]:
    """(step, Maj@k) of what was measured."""
    return [(row["step"], row["maj"]) for _, row in jsonl.rows(directory / FILE)]


def measured(run: "TrainingRun", model: torch.nn.Module) -> float:
    """Maj@k of the model on the problems; every process answers all of them."""
    plan, sampling = run.plan, run.plan.settings.sampling
    k, problems = sampling.samples, run.plan.validation
    keys = [(problem, n) for problem in problems for n in range(k)]
    prompts = {
        problem.id: encode(run.live.tokenizer, problem, sampling.thinking, sampling.template)
        for problem in problems
    }
    requests = [
        Request(prompts[problem.id], stream_key(sampling.seed, f"validation {problem.id}", n))
        for problem, n in keys
    ]
    answers = decode(
        model, requests, stop=stop_ids(run.student.model, run.live.tokenizer),
        max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
    )  # fmt: skip
    traces = [
        Trace(
            problem.id, n, prompts[problem.id], answer.token_ids,
            text_of(run.live.tokenizer, answer.token_ids, answer.finish_reason),
            answer.finish_reason,
        )
        for (problem, n), answer in zip(keys, sorted(answers, key=lambda a: a.index), strict=True)
    ]  # fmt: skip
    read = plan.read(traces)
    pairs = [(answer, str(problem.answer)) for (problem, _), answer in zip(keys, read, strict=True)]
    right = [verdict.correct for verdict in check_many(pairs, plan.settings.check or "exact")]
    firsts = range(0, len(right), k)
    votes = plan.votes([traces[first : first + k] for first in firsts])
    correct = [right[first : first + k] for first in firsts]
    return float(np.mean(metrics.majority_by_prompt(votes, correct)))


def keep_best(run: "TrainingRun") -> None:
    """Look once more, and give the student the weights of its best step."""
    look(run, run.plan.steps)
    if best_step(run.directory) == run.plan.steps:
        return
    from safetensors.torch import load_file

    model, adapter = run.student.model, run.student.adapter
    own = dict(trainable(model)) if adapter is not None else dict(all_weights(model))
    with torch.no_grad():
        for name, tensor in load_file(run.directory / BEST).items():
            own[name].copy_(tensor)


def best_step(directory: Path) -> int:
    """The first step with the highest Maj@k."""
    return max(looks(directory), key=lambda pair: (pair[1], -pair[0]))[0]


def outcome(directory: Path, problems: int) -> Validated | None:
    """How the step was chosen; None where no problem was looked at."""
    found = looks(directory)
    if not found:
        return None
    return Validated(problems=problems, step=best_step(directory), maj=tuple(found))
