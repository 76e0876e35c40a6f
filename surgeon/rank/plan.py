"""What a ranking is asked to do, checked against files and headers."""

# Shape letters: L layers, F units per layer.

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgeon import lineage, nex
from surgeon.answers import parse_extractor
from surgeon.checkpoint import placement, read_header
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.live.support import require
from surgeon.traces import Prompt, Sampling, Trace, read_prompts, read_traces
from surgeon.truth import read_accuracies

SCORES = {
    "nex": "Good-Mass Fraction (NEX Eq. 14), mean over responses",
    "length": "mean response length, tokens",
    "hes": "high-entropy sum: mean sum of token entropies, nats",
    "entropy_top20": "share of rows above the 80th percentile of row entropy over all candidates",
    "logprob": "mean token log-probability, nats",
    "explore_segments": "mean number of E segments",
    "agreement": "share of a prompt's samples that give its most frequent answer",
    "finished": "share of responses that ended before the token limit",
}
"""Every score a ranking reports, higher first, with its unit."""


class Plan(NamedTuple):
    """A ranking whose inputs have been checked; nothing has been computed yet."""

    subjects: list[Subject]
    prompts: list[Prompt]
    sampling: Sampling
    readings: nex.Readings
    extract: Callable[[str], str | None]
    shared_weight_LF: np.ndarray | None
    given: dict[str, list[Trace]] | None
    settings: dict[str, Any]
    inputs: dict[str, str]


def prepare(
    checkpoints: Sequence[str],
    *,
    mini_set: str,
    samples: int,
    seed: int,
    select: str,
    preset: str,
    traces: str | None,
    weights: str | None,
    credit: str,
    answer: str,
    row_tokens: int,
    top_k: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    thinking: bool | None,
    batch: int,
    device: str,
    dtype: str,
    keep_activations: bool,
) -> Plan:
    """Check every input of a ranking against files and headers; raises `BadInput`."""
    if select not in SCORES:
        raise BadInput(f"--select {select} is no score. Choose one of: {', '.join(SCORES)}.")
    if preset not in nex.PRESETS:
        raise BadInput(f"--preset {preset} is unknown. Choose one of: {', '.join(nex.PRESETS)}.")
    if credit not in ("introduced", "active"):
        raise BadInput(f"--credit {credit} is unknown. Choose introduced or active.")
    for name, value, least in (
        ("samples", samples, 1), ("row_tokens", row_tokens, 1), ("top_k", top_k, 1),
        ("max_tokens", max_tokens, 1), ("batch", batch, 0),
    ):  # fmt: skip
        if value < least:
            raise BadInput(f"{name} is {value}; it must be at least {least}.")
    placement(device, dtype)
    prompts = read_prompts(mini_set)
    extract = parse_extractor(answer)
    chosen = subjects(list(checkpoints))
    require("record", *(subject.source for subject in chosen))
    given = read_given(traces, chosen, prompts) if traces else None
    shared = read_shared_weights(weights, chosen) if weights else None
    sampling = Sampling(
        samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed,
        batch=batch, thinking=thinking,
    )  # fmt: skip
    settings = {
        **asdict(sampling), "preset": preset, "credit": credit, "row_tokens": row_tokens,
        "top_k": top_k, "answer": answer, "dtype": dtype, "device": device,
        "keep_activations": keep_activations, "mini_set": mini_set, "traces": traces,
        "weights": weights,
    }  # fmt: skip
    # How many are decoded at once changes no response (each has its own random stream).
    settings.pop("batch")
    inputs = {subject.name: subject.digest for subject in chosen}
    # Candidate names hold no spaces, so these can't be taken for one.
    inputs["mini set"] = lineage.digest_of([asdict(prompt) for prompt in prompts])
    for name, file in (("given traces", traces), ("given weights", weights)):
        if file and Path(file).is_file():
            inputs[name] = lineage.file_digest(file)
    readings = replace(nex.PRESETS[preset], credit=credit)
    return Plan(chosen, prompts, sampling, readings, extract, shared, given, settings, inputs)


def read_given(
    source: str, chosen: Sequence[Subject], prompts: Sequence[Prompt]
) -> dict[str, list[Trace]]:
    """Candidate name -> its traces, from one JSONL (one candidate) or a directory of NAME.jsonl."""
    path = Path(source)
    if path.is_dir():
        files = {subject.name: path / f"{subject.name}.jsonl" for subject in chosen}
    elif len(chosen) == 1:
        files = {chosen[0].name: path}
    else:
        raise BadInput(
            f"--traces {source} is one file and there are {len(chosen)} candidates. Give a "
            "directory with one NAME.jsonl per candidate."
        )
    known = {prompt.id for prompt in prompts}
    found = {}
    for name, file in files.items():
        if not file.is_file():
            raise BadInput(f"--traces has no {file}, the traces of candidate {name}.")
        found[name] = read_traces(file)
        strangers = sorted({trace.prompt_id for trace in found[name]} - known)
        if strangers:
            raise BadInput(f"{file} answers prompt {strangers[0]!r}, which the mini-set lacks.")
        if not found[name]:
            raise BadInput(f"{file} holds no trace.")
    return found


def read_shared_weights(source: str, chosen: Sequence[Subject]) -> np.ndarray:
    """The `weight_LF` of another ranking, checked against every candidate's layers and units."""
    from safetensors.numpy import load_file

    file = Path(source)
    if not file.is_file():
        raise BadInput(f"--weights {source} is no file. A ranking writes weights.safetensors.")
    if "weight_LF" not in read_header(file):
        raise BadInput(f"--weights {source} has no tensor weight_LF, so it was not made by rank.")
    weight_LF = load_file(file)["weight_LF"]
    for subject in chosen:
        wanted = (subject.source.n_layers, subject.source.d_ff)
        if weight_LF.shape != wanted:
            raise BadInput(
                f"--weights {source} is for {weight_LF.shape[0]} layers x {weight_LF.shape[1]} "
                f"units; {subject.name} has {wanted[0]} x {wanted[1]}."
            )
    return weight_LF


def read_truth(source: str, chosen: Sequence[Subject]) -> dict[str, float]:
    """Candidate name -> accuracy in [0, 1]; raises `BadInput` when a candidate is missing."""
    accuracy = read_accuracies(source)
    missing = [s.name for s in chosen if s.name not in accuracy]
    if missing:
        raise BadInput(
            f"--truth {source} lacks {len(missing)} of the {len(chosen)} ranked candidates, first "
            f"{missing[0]} (it has {', '.join(sorted(accuracy)[:3])}, ...). Evaluate them too."
        )
    return {s.name: accuracy[s.name] for s in chosen}
