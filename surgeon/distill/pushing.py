"""Rollouts by vLLM: the student's weights are pushed to the engine, which answers with them."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from surgeon import engines
from surgeon.checkpoint import Checkpoint
from surgeon.decoding import Answer
from surgeon.distill.run import TrainingRun
from surgeon.errors import BadInput
from surgeon.families import as_subject
from surgeon.settings.engine import VLLM
from surgeon.settings.sampling import Sampling
from surgeon.traces import Ask, Key

if TYPE_CHECKING:
    from torch import Tensor


class Rollouts(NamedTuple):
    """The student's answers to a step's questions."""

    answers: list[Answer]
    """In the order of the questions."""
    lag: int
    """Steps that the weights they were drawn with lag behind the student's."""


class PushedStudent:
    """The student as an engine has it."""

    def __init__(self, run: TrainingRun, engine: engines.VllmEngine, sampling: Sampling):
        self.run, self.engine, self.sampling = run, engine, sampling
        checkpoint = run.plan.checkpoint
        self.sampler = engine.seat(as_subject(checkpoint), run.live.tokenizer)
        self.pushed: int | None = None
        """The step whose weights the engine has."""

    def rollouts(self, step: int, keys: Sequence[Key], prompts: Sequence[list[int]]) -> Rollouts:
        """Answers to the prompts, with weights of this step or of one shortly before it."""
        every = 1 + self.run.plan.settings.rollout.staleness
        if self.pushed is None or (step % every == 0 and step != self.pushed):
            self.run.student.rollouts(self._push)
            self.pushed = step
        asks = [Ask(key, ids) for key, ids in zip(keys, prompts, strict=True)]
        answers = sorted(self.sampler.answers(asks, self.sampling), key=lambda a: a.index)
        return Rollouts(answers, step - self.pushed)

    def _push(self, model: nn.Module) -> None:
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="surgeon-") as place:
            weights = weights_of(model, self.run.plan.checkpoint)
            save_file(weights, Path(place) / "model.safetensors")
            self.engine.load(Path(place))


def weights_of(model: nn.Module, checkpoint: Checkpoint) -> "dict[str, Tensor]":
    """A model's weights by their names on disk, adapters folded in by the caller; raises
    `BadInput` where some have no name there."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            weights[name.replace(".base_layer.", ".")] = tensor.detach().cpu().contiguous().clone()
    lacking = sorted(checkpoint.tensors.keys() - weights.keys())
    if lacking:
        raise BadInput(
            f"{checkpoint.spec} ({checkpoint.model_type}) has {lacking[0]} on disk, which its live "
            "model holds in another form, so it can't be pushed to vllm. Leave --engine out."
        )
    return {name: weights[name] for name in checkpoint.tensors}


@contextmanager
def pushed(run: TrainingRun) -> Iterator[PushedStudent | None]:
    """The engine that draws the rollouts inside the block; None: the model here draws them."""
    settings, drawn = run.plan.settings, run.plan.settings.rollout
    if settings.engine.name != VLLM:
        if settings.engine.is_server:
            run.live.accelerator.print("rollouts are drawn here: no server has the student.")
        yield None
        return
    sampling = Sampling(
        temperature=drawn.temperature, top_p=drawn.top_p, seed=settings.seed,
        max_tokens=settings.sampling.max_tokens,
    )  # fmt: skip
    longest = max(map(len, run.plan.prompt_ids)) + sampling.max_tokens
    with engines.opened(settings.engine, run.plan.dtype, longest) as engine:
        assert isinstance(engine, engines.VllmEngine)
        yield PushedStudent(run, engine, sampling)
