"""What a monitored run is asked to do, checked against files and headers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.answers import gold_problem, parse_check, parse_extractor
from surgeon.checkpoint import Checkpoint, placement
from surgeon.decoding.requests import FinishReason
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.monitor.endpoint import Completions
from surgeon.traces import Prompt, Sampling, encode, read_prompts
from surgeon.watch.monitor import Monitor, find_monitor, read_levels
from surgeon.watch.watching import Firing, Reading, check_rates, forced_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


FILE = "monitor.json"


class Job(NamedTuple):
    """One answer to make."""

    index: int
    """Its number among all answers of the run, made or not."""
    prompt_id: str
    sample: int
    ids: list[int]


class Answered(NamedTuple):
    """A finished answer, and what the monitor did."""

    job: Job
    token_ids: list[int]
    finish_reason: FinishReason
    forced: list[int]
    """Positions of the tokens that the monitor chose."""
    firings: list[Firing]
    readings: list[Reading]


class Plan(NamedTuple):
    """A monitored run whose inputs have been checked; nothing has been computed yet."""

    checkpoint: Checkpoint
    tokenizer: "PreTrainedTokenizerBase"
    monitor: Monitor
    levels: tuple[str, ...]
    rates: dict[str, float] | None
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    sampling: Sampling
    endpoint: Completions | None
    extract: Callable[[str], str | None]
    device: str
    dtype: "torch.dtype | None"
    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def jobs(self) -> list[Job]:
        """Every answer of the run, prompt after prompt."""
        k = self.sampling.samples
        return [
            Job(n * k + sample, prompt.id, sample, ids)
            for n, (prompt, ids) in enumerate(zip(self.prompts, self.prompt_ids, strict=True))
            for sample in range(k)
        ]


def prepare(
    checkpoint: str,
    *,
    prompts: str | None,
    prompt: str | None,
    out: str | Path | None,
    samples: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int,
    levels: Sequence[str] | None,
    random_rate: Mapping[str, float] | str | None,
    monitor_file: str | None,
    limit: int | None,
    check: str,
    answer: str,
    timeout_s: float,
    thinking: bool | None,
    engine: str | None,
    seed: int,
    batch: int,
    device: str,
    dtype: str,
) -> Plan:
    """Check every input of a monitored run against files and headers; raises `BadInput`."""
    sampling = Sampling(
        samples=samples, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens,
        seed=seed, batch=batch, thinking=thinking,
    )  # fmt: skip
    if (prompts is None) == (prompt is None):
        raise BadInput("expected either prompts (a file) or prompt (a text). Give one of them.")
    if prompts is not None and out is None:
        raise BadInput("found no out; expected a directory to write the traces to: --out DIR.")
    if limit is not None and limit < 1:
        raise BadInput(f"found limit = {limit}, expected at least 1.")
    if not 0 < timeout_s < math.inf:
        raise BadInput(f"found timeout_s = {timeout_s}, expected a number of seconds above 0.")
    where, kind = placement(device, dtype)
    extract = parse_extractor(answer)
    parse_check(check)
    chosen = read_chosen(prompts, prompt, check)[:limit]
    opened = open_checkpoint(checkpoint)
    tokenizer = opened.tokenizer()
    prompt_ids = encode_prompts(opened, tokenizer, chosen, thinking)
    place = find_monitor(checkpoint, opened, monitor_file)
    if place is None:
        raise BadInput(
            f"{checkpoint} carries no monitor. Train one with `surgeon trigger detectors`, or name "
            "one with --monitor-file."
        )
    monitor = Monitor.load(place, opened)
    rates = read_rates(random_rate, monitor.levels)
    watched = read_levels(levels, monitor.levels)
    if rates is not None:
        watched = tuple(level for level in watched if level in rates)
    require_triggers(tokenizer, monitor, watched)
    endpoint = None
    if engine is not None:
        endpoint = Completions.parse(engine)
        if out is None or not Path(out).exists():
            endpoint.require_reachable()
    settings = {
        **asdict(sampling), "prompts": prompts, "prompt": prompt, "levels": list(watched),
        "random_rate": rates, "limit": limit, "check": check, "answer": answer,
        "timeout_s": timeout_s, "engine": engine, "device": device, "dtype": dtype,
    }  # fmt: skip
    # How many are decoded at once changes no response (each has its own random stream).
    settings.pop("batch")
    inputs = {
        "checkpoint": opened.digest,
        "monitor": lineage.file_digest(place),
        "prompts": lineage.digest_of([asdict(one) for one in chosen]),
    }
    return Plan(
        opened, tokenizer, monitor, watched, rates, chosen, prompt_ids, sampling, endpoint,
        extract, where, kind, settings, inputs,
    )  # fmt: skip


def read_chosen(prompts: str | None, prompt: str | None, check: str) -> list[Prompt]:
    """The prompts, those that have a true answer with one that can be checked."""
    if prompt is not None:
        if not prompt.strip():
            raise BadInput("found an empty prompt, expected a question.")
        return [Prompt("prompt", ({"role": "user", "content": prompt},), None, True)]
    assert prompts is not None
    found = read_prompts(prompts)
    for one in found:
        wrong = gold_problem(one.answer, check) if one.answer is not None else None
        if wrong:
            raise BadInput(f"{prompts}: the answer of prompt {one.id!r} can't be used: {wrong}.")
    return found


def encode_prompts(
    checkpoint: Checkpoint,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    thinking: bool | None,
) -> list[list[int]]:
    """Each prompt's tokens; raises `BadInput` for one that fills the context."""
    found = [encode(tokenizer, prompt, thinking) for prompt in prompts]
    limit = checkpoint.context
    for prompt, ids in zip(prompts, found, strict=True):
        if len(ids) >= limit:
            raise BadInput(
                f"prompt {prompt.id!r} has {len(ids)} tokens, expected fewer than the model's "
                f"context of {limit}: shorten it or leave it out."
            )
    return found


def read_rates(
    given: Mapping[str, float] | str | None, known: Sequence[str]
) -> dict[str, float] | None:
    """Chance of a random firing by level, some of those `known`; a text names the directory of a
    monitored run, whose rates are taken."""
    if given is None:
        return None
    if isinstance(given, str):
        if not (Path(given) / FILE).is_file():
            raise BadInput(
                f"random_rate {given} is no monitored run (it has no {FILE}). Give the directory "
                "of one, or level: rate."
            )
        found = lineage.read_object(Path(given) / FILE)["levels"]
        given = {level: row["rate"] for level, row in found.items() if row["rate"] is not None}
    check_rates(given, known)
    return {level: float(rate) for level, rate in given.items()}


def require_triggers(
    tokenizer: "PreTrainedTokenizerBase", monitor: Monitor, levels: Sequence[str]
) -> None:
    """Raise `BadInput` where the tokenizer lacks a token that a level forces."""
    for level in levels:
        forced_tokens(tokenizer, monitor.settings, level)
