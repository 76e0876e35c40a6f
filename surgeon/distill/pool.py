"""Stage 1: the pool's own answers, and the contribution set of each question.

Both are written as they come and not computed again. Several processes share them out, each with
files of its own.
"""

# Shapes: N questions of the pool, K neurons of a set, E stored entries.

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import nn

from surgeon import engines, jsonl, lineage, nopsd
from surgeon.consensus import contribution_sets
from surgeon.distill.plan import DistillPlan
from surgeon.families import as_subject
from surgeon.progress import bar
from surgeon.traces import (
    Key,
    Prompt,
    Sampling,
    Trace,
    in_order,
    read_traces,
    sampled,
    settle,
    stored_traces,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


BLOCK = 256
"""Questions whose sets share a file; a killed run computes at most one of them again."""

Answers = dict[Key, Trace]


class LiveModel(NamedTuple):
    """The checkpoint's model, loaded, and the processes that share the work."""

    model: nn.Module
    tokenizer: "PreTrainedTokenizerBase"
    accelerator: "Accelerator"


def load(plan: DistillPlan, accelerator: "Accelerator") -> LiveModel:
    """The plan's checkpoint on this process's device."""
    model = plan.checkpoint.model(plan.device, plan.dtype)
    return LiveModel(
        model.to(accelerator.device),  # pyright: ignore[reportArgumentType]
        plan.checkpoint.tokenizer(),
        accelerator,
    )


def answer_pool(
    plan: DistillPlan,
    live: LiveModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    work: Path,
    what: str = "answer the pool",
) -> Answers:
    """Zero-shot answers to the prompts, with every other that is on disk."""
    directory, accelerator = work / "rollouts", live.accelerator
    directory.mkdir(exist_ok=True)
    imported = directory / "part-imported.jsonl"
    if accelerator.is_main_process and plan.imported and not imported.is_file():
        jsonl.write(imported, map(asdict, plan.imported))
    accelerator.wait_for_everyone()
    return answer_prompts(plan, live, prompts, sampling, directory, what)


def answer_prompts(
    plan: DistillPlan,
    live: LiveModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    directory: Path,
    what: str,
) -> Answers:
    """Answers to the prompts, with every other in the directory, which keeps them; shared out
    between processes."""
    accelerator = live.accelerator
    directory.mkdir(exist_ok=True)
    file = directory / f"part-{accelerator.process_index}.jsonl"
    accelerator.wait_for_everyone()
    done = stored_answers(directory).keys()
    accelerator.wait_for_everyone()
    share = prompts[accelerator.process_index :: accelerator.num_processes]
    engines.fill(
        plan.settings.engine, [engines.Destination(as_subject(plan.checkpoint), file)], share,
        sampling, (plan.device, plan.dtype), report=directory.parent / engines.FILE, what=what,
        done=done,
    )  # fmt: skip
    sampled(file, live.model, live.tokenizer, share, sampling, what=what, done=done)
    settle(file, in_order(stored_traces(file), plan.prompts))
    accelerator.wait_for_everyone()
    return stored_answers(directory)


def stored_answers(directory: Path) -> Answers:
    """Every answer on disk."""
    files = sorted(directory.glob("part-*.jsonl"))
    return {trace.key: trace for file in files for trace in read_traces(file)}


def pool_sets(
    plan: DistillPlan, live: LiveModel, traces: Sequence[Trace], work: Path
) -> tuple[nopsd.Sets, np.ndarray]:
    """N(x) and s(x) (int64_N) of every question from its first answer, in the pool's order."""
    from safetensors.numpy import load_file

    directory, accelerator = work / "sets", live.accelerator
    directory.mkdir(exist_ok=True)
    firsts = list(range(0, len(traces), BLOCK))
    files = [directory / f"{first:07d}.safetensors" for first in firsts]
    # Shared out by number, whatever is there: a peer may have begun to write already.
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    pairs = list(zip(firsts, files, strict=True))[share]
    missing = [(first, file) for first, file in pairs if not file.is_file()]
    with bar("contribution sets", len(missing)) as advance:
        for first, file in missing:
            block = contribution_sets(
                live.model, traces[first : first + BLOCK], plan.settings.readings
            )
            sizes = [len(s.neuron_K) for s in block]
            lineage.write_tensors(
                file,
                {
                    "neuron_E": np.concatenate([s.neuron_K for s in block]),
                    "start_N1": np.cumsum([0, *sizes], dtype=np.int64),
                    "consensus_N": np.array([s.consensus for s in block], np.int64),
                },
            )
            advance()
    accelerator.wait_for_everyone()
    blocks = [load_file(file) for file in files]
    start_N1 = np.cumsum([0, *np.concatenate([np.diff(b["start_N1"]) for b in blocks])])
    neuron_E = np.concatenate([b["neuron_E"] for b in blocks])
    n_neurons = plan.checkpoint.n_layers * plan.checkpoint.d_ff
    consensus_N = np.concatenate([b["consensus_N"] for b in blocks])
    return nopsd.Sets(neuron_E, start_N1.astype(np.int64), n_neurons), consensus_N
