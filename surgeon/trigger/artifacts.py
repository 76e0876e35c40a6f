"""What the stages hand each other: directories of labels, and the checkpoint they are about."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import console, engines, jsonl, lineage, neurons
from surgeon.artifact import part
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import as_subject
from surgeon.neureasoner.steps import Span, StepEnds, check_spans, whole_steps
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.engine import EngineSettings
from surgeon.traces import (
    Key,
    LocalSampler,
    Prompt,
    Sampler,
    Trace,
    in_order,
    read_prompts,
    read_traces,
    text_of,
)
from surgeon.watch.spans import read_spans

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TRACES, PROMPTS, SPANS = "traces.jsonl", "prompts.jsonl", "spans.jsonl"
KINDS = ("prefix", "wrong", "trigger", "signal", "diagnose", "continuation")
"""The segments of a training example's response, in their order."""


@part
class Spending:
    """What a judge or a writer behind an endpoint took."""

    tokens_in: int
    tokens_out: int
    money: float | None
    """None where the prices aren't known."""

    @classmethod
    def of(cls, tokens: tuple[int, int], asking: EndpointSettings) -> "Spending":
        return cls(tokens_in=tokens[0], tokens_out=tokens[1], money=asking.money(*tokens))

    def show(self, what: str) -> None:
        """Print it, if there is any."""
        if self.tokens_in or self.tokens_out:
            money = "" if self.money is None else f", {self.money:.2f} at the prices given"
            console.say(f"{what}: {self.tokens_in:,} tokens in, {self.tokens_out:,} out{money}")


class Labels(NamedTuple):
    """A directory of labels: traces, the prompts they answer, and spans of their steps."""

    path: Path
    prompts: dict[str, Prompt]
    """By id."""
    traces: dict[Key, Trace]
    """By prompt id and sample, in the prompts' order."""
    spans: list[Span]
    digest: str


def read_labels(
    path: str | Path, checkpoint: Checkpoint, tokenizer: "PreTrainedTokenizerBase"
) -> Labels:
    """The labels in a directory, checked against each other and against the checkpoint's tokens.

    The directory may be hand-made: it holds `traces.jsonl`, `prompts.jsonl` and `spans.jsonl`.
    Raises `BadInput` where a file is missing or broken, a span names no step of a trace, or a trace
    holds tokens that the checkpoint doesn't have.
    """
    path = Path(path)
    missing = [name for name in (TRACES, PROMPTS, SPANS) if not (path / name).is_file()]
    if missing:
        raise BadInput(
            f"{path} has no {missing[0]}, so it holds no labels. Make them with: surgeon trigger "
            f"label {checkpoint.spec} --prompts FILE --out {path}"
        )
    digest = lineage.digest_of_files(path / name for name in (TRACES, PROMPTS, SPANS))
    prompts = {prompt.id: prompt for prompt in read_prompts(str(path / PROMPTS))}
    traces = read_traces(path / TRACES)
    for trace in traces:
        if trace.prompt_id not in prompts:
            raise BadInput(
                f"{path / TRACES} answers the prompt {trace.prompt_id!r}, which is not in "
                f"{path / PROMPTS}."
            )
    require_own_tokens(traces, checkpoint, path / TRACES)
    spans = read_spans(path / SPANS)
    if not any(span.failing for span in spans):
        raise BadInput(f"{path / SPANS} holds no failing span: there is nothing to learn from.")
    check_spans(spans, traces, StepEnds(tokenizer))
    return Labels(
        path,
        prompts,
        {trace.key: trace for trace in in_order(traces, list(prompts.values()))},
        spans,
        digest,
    )


def require_own_tokens(traces: Iterable[Trace], checkpoint: Checkpoint, where: str | Path) -> None:
    """Raise `BadInput` for a token id that the checkpoint's vocabulary doesn't reach."""
    size = int(checkpoint.text_config["vocab_size"])
    for trace in traces:
        largest = max(*trace.prompt_token_ids, *trace.token_ids)
        if largest >= size:
            raise BadInput(
                f"{where}: sample {trace.sample} of prompt {trace.prompt_id!r} holds token "
                f"{largest}, but {checkpoint.spec} has {size}. The traces are of another model."
            )


def require_layer(checkpoint: Checkpoint, layer: int) -> tuple[int, int]:
    """How many units and heads a layer has, by the headers; raises `BadInput` for a layer that
    isn't there and for mixtures of experts."""
    if not 0 <= layer < checkpoint.n_layers:
        raise BadInput(
            f"layer is {layer}; {checkpoint.spec} has the layers 0 to {checkpoint.n_layers - 1}."
        )
    sites = [site for site in neurons.sites(checkpoint) if site.layer == layer]
    if len(sites) > 1:
        raise BadInput(
            f"{checkpoint.spec} ({checkpoint.model_type}) is a mixture of experts in layer {layer};"
            " units are identified and watched in dense models only."
        )
    return sites[0].n_units, int(checkpoint.text_config["num_attention_heads"])


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `read_prompts` reads the same ones."""
    rows = []
    for prompt in prompts:
        row: dict[str, Any] = {"id": prompt.id}
        if prompt.plain:
            row["prompt"] = prompt.messages[0]["content"]
        else:
            row["messages"] = list(prompt.messages)
        if prompt.tools:
            row["tools"] = list(prompt.tools)
        if prompt.answer is not None:
            row["answer"] = prompt.answer
        rows.append(row)
    jsonl.write(path, rows)


class StepReader:
    """Traces as a judge or a writer reads them: a text per step."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer, self.ends = tokenizer, StepEnds(tokenizer)

    def steps(self, trace: Trace) -> list[str]:
        """The texts of a trace's whole steps, each with its separator."""
        return [
            text_of(self.tokenizer, trace.token_ids[step.start : step.end])
            for step in whole_steps(self.ends, trace)
        ]


class Live(StepReader):
    """A checkpoint's tokenizer and steps, and its model once it is needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: "torch.dtype | None",
        engine: EngineSettings | None = None,
    ):
        """`engine` writes in the place of the decoder here."""
        super().__init__(checkpoint.tokenizer())
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.engine, self.running = engine or EngineSettings(), ExitStack()

    @cached_property
    def model(self) -> "nn.Module":
        """The model, loaded."""
        return self.checkpoint.model(self.device, self.dtype)

    @cached_property
    def sampler(self) -> Sampler:
        """Who writes the checkpoint's answers."""
        if self.engine.is_local:
            return LocalSampler(self.model, self.tokenizer)
        engine = self.running.enter_context(engines.opened(self.engine, self.dtype))
        return engine.seat(as_subject(self.checkpoint), self.tokenizer)

    def close(self) -> None:
        """Let go of an engine."""
        self.running.close()
