"""What the stages hand each other: directories of labels, and the checkpoint they are about."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage, neurons
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import Span, Step, StepEnds, check_spans, split_steps
from surgeon.traces import Prompt, Trace, read_prompts, read_traces
from surgeon.watch.spans import read_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRACES, PROMPTS, SPANS = "traces.jsonl", "prompts.jsonl", "spans.jsonl"


class Labels(NamedTuple):
    """A directory of labels: traces, the prompts they answer, and spans of their steps."""

    path: Path
    prompts: dict[str, Prompt]
    """By id."""
    traces: dict[tuple[str, int], Trace]
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
    prompts = {prompt.id: prompt for prompt in read_prompts(str(path / PROMPTS))}
    order = {name: i for i, name in enumerate(prompts)}
    traces = read_traces(path / TRACES)
    for trace in traces:
        if trace.prompt_id not in prompts:
            raise BadInput(
                f"{path / TRACES} answers the prompt {trace.prompt_id!r}, which is not in "
                f"{path / PROMPTS}."
            )
    require_own_tokens(traces, checkpoint, path / TRACES)
    traces.sort(key=lambda trace: (order[trace.prompt_id], trace.sample))
    spans = read_spans(path / SPANS)
    if not any(span.failing for span in spans):
        raise BadInput(f"{path / SPANS} holds no failing span: there is nothing to learn from.")
    check_spans(spans, traces, tokenizer)
    digest = lineage.digest_of([lineage.file_digest(path / n) for n in (TRACES, PROMPTS, SPANS)])
    return Labels(path, prompts, {(t.prompt_id, t.sample): t for t in traces}, spans, digest)


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
    found = [site for site in neurons.sites(checkpoint) if site.layer == layer]
    if len(found) > 1:
        raise BadInput(
            f"{checkpoint.spec} ({checkpoint.model_type}) is a mixture of experts in layer {layer};"
            " units are identified and watched in dense models only."
        )
    return found[0].n_units, int(checkpoint.text_config["num_attention_heads"])


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts so that `read_prompts` reads the same ones."""
    lines = []
    for prompt in prompts:
        row: dict[str, Any] = {"id": prompt.id}
        if prompt.plain:
            row["prompt"] = prompt.messages[0]["content"]
        else:
            row["messages"] = list(prompt.messages)
        if prompt.answer is not None:
            row["answer"] = prompt.answer
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    lineage.write_text(path, "".join(lines))


def whole_steps(ends: StepEnds, trace: Trace) -> list[Step]:
    """The steps of a trace that were brought to an end; all but the last one of a cut trace."""
    ids = trace.token_ids
    steps = split_steps(ends, ids)
    if steps and steps[-1].end == len(ids) and trace.finish_reason == "length":
        previous = ids[-2:-1] or [ids[-1]]
        if not ends.after(previous, ids[-1:])[0]:
            steps.pop()
    return steps


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Response tokens as text, special ones included."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def step_texts(
    tokenizer: "PreTrainedTokenizerBase", trace: Trace, steps: Iterable[Step]
) -> list[str]:
    """The text of each step, its separator included."""
    return [text_of(tokenizer, trace.token_ids[step.start : step.end]) for step in steps]


def say(text: str) -> None:
    """Print a line that belongs to the run, not to its result."""
    print(text, file=sys.stderr, flush=True)
