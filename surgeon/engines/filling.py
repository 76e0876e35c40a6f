"""Trace files, filled by an engine candidate by candidate before any of them is needed."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from surgeon import jsonl
from surgeon.engines.agreement import Agreement, agreement, agreement_required
from surgeon.engines.in_process import VllmEngine
from surgeon.engines.servers import Counts, ServerEngine
from surgeon.engines.started import StartedEngine, require_vllm
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.live.families import live, tokenizer_of
from surgeon.progress import say
from surgeon.settings.engine import VLLM, EngineSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import (
    Key,
    Prompt,
    Sampler,
    encode_all,
    keys_of,
    sampled,
    settle,
    stored_traces,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

FILE = "engine.jsonl"
"""What each engine was asked, and how it compared: a row for every run at a candidate."""


class CountingSampler(Sampler, Protocol):
    """A sampler that knows what it was asked."""

    counts: Counts


class Engine(Protocol):
    """Who writes the answers, candidate after candidate."""

    def seat(self, subject: Subject, tokenizer: "PreTrainedTokenizerBase") -> CountingSampler:
        """The sampler of this candidate; the one before it can't be asked any more."""
        ...

    def close(self) -> None:
        """Let go of what was started."""
        ...


class Destination(NamedTuple):
    """A candidate, and the file that its answers go to."""

    subject: Subject
    file: Path


@contextmanager
def opened(
    settings: EngineSettings, dtype: "torch.dtype | None" = None, longest: int = 0
) -> Iterator[Engine]:
    """The engine that the settings name, until the block ends; not the decoder here.

    `longest` is the most tokens of prompt and answer together (0: the model's context), and `dtype`
    what an engine of this process computes in (None: as on disk).
    """
    if settings.name == VLLM:
        engine: Engine = VllmEngine(settings, dtype, longest)
    elif settings.serve_command is not None:
        engine = StartedEngine(settings)
    else:
        engine = ServerEngine(settings)
    try:
        yield engine
    finally:
        engine.close()


def require_engine(
    settings: EngineSettings, subjects: Sequence[Subject], prompts: Sequence[Prompt], *, asks: bool
) -> None:
    """Raise `BadInput` where the engine can't write these candidates' answers.

    Servers are asked whether they are there only where the run `asks` them anything.
    """
    if settings.name == VLLM:
        require_vllm()
    if not settings.is_server:
        return
    if settings.ask == "chat":
        for prompt in prompts:
            if prompt.tools:
                raise BadInput(
                    f"prompt {prompt.id!r} has tools, whose calls a chat server takes out of the "
                    "answer, expected none. Give --ask completions."
                )
    engine = ServerEngine(settings)
    endpoints = [engine.endpoint(subject) for subject in subjects]
    if settings.serve_command is not None:
        return
    places = {(endpoint.url, endpoint.model) for endpoint in endpoints}
    if len(places) < len(subjects):
        raise BadInput(
            f"found {len(subjects)} candidates and one server, {settings.name}: each candidate has "
            "weights of its own. Name a server for each, with {name} in --engine, or let each be "
            "started with --serve-command 'vllm serve {checkpoint} --served-model-name {name} "
            "--port {port}'."
        )
    for subject in subjects:
        if subject.checkpoint is None:
            raise BadInput(
                f"{subject.spec} is virtual, so no server can have loaded it, expected a written "
                "candidate. Write the family (merge-sweep without --virtual), or give "
                "--serve-command, which writes each before its server starts."
            )
    for endpoint in endpoints if asks else ():
        endpoint.require_reachable()


def fill(
    settings: EngineSettings,
    places: Sequence[Destination],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    placement: "tuple[str, torch.dtype | None]",
    *,
    report: Path,
    what: str = "sample",
    done: AbstractSet[Key] = frozenset(),
    own_seeds: bool = False,
) -> None:
    """Write what the trace files of `places` lack, with another engine than the decoder here; the
    decoder here samples once a model is loaded, so for it nothing is done.

    `placement` is the device and dtype of the model that an engine is checked against. `done` are
    answers that are kept elsewhere. With `own_seeds` each candidate has its own seed. Appends to
    `report`, in the same directory as the run's other files. Raises `BadInput` as the engine does;
    what has ended is kept.
    """
    if settings.is_local:
        return
    wanted = set(keys_of(prompts, sampling.samples)) - done
    lacking = [
        place for place in places if wanted - {trace.key for trace in stored_traces(place.file)}
    ]
    if not lacking:
        return
    tokenizers = [tokenizer_of(place.subject) for place in lacking]
    longest = sampling.max_tokens + max(
        _longest(place.subject, tokenizer, prompts, sampling)
        for place, tokenizer in zip(lacking, tokenizers, strict=True)
    )
    with opened(settings, placement[1], longest) as engine, ExitStack() as stack:
        models: Any = None
        if settings.checks:
            models = live([place.subject for place in lacking], *placement)
            stack.callback(models.close)
        for n, (place, tokenizer) in enumerate(zip(lacking, tokenizers, strict=True), 1):
            subject = place.subject
            place.file.parent.mkdir(parents=True, exist_ok=True)
            sampler = engine.seat(subject, tokenizer)
            if models is not None:
                few = prompts[: settings.checks]
                found = agreement(sampler, next(models)[1], tokenizer, few, sampling)
                note(report, settings, subject, found)
                agreement_required(found, subject.name, str(settings.name))
            name = f"{what} {n}/{len(lacking)} {subject.name}"
            how = sampling.own(subject.name) if own_seeds else sampling
            try:
                traces = sampled(place.file, sampler, tokenizer, prompts, how, what=name, done=done)
                settle(place.file, traces)
            finally:
                count(report, subject, sampler.counts)


def _longest(
    subject: Subject,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> int:
    """Tokens of the longest prompt; raises `BadInput` for one that fills the context."""
    context = subject.source.context
    encoded = encode_all(tokenizer, prompts, context, sampling.thinking, sampling.template)
    return max(map(len, encoded), default=1)


def note(report: Path, settings: EngineSettings, subject: Subject, found: Agreement) -> None:
    """Keep, and say, how an engine compared with the model here."""
    row = {"candidate": subject.name, "engine": settings.name, **found._asdict()}
    jsonl.append(report, row)
    say(
        f"{subject.name}: {found.tokens} greedy tokens of the engine, {found.differing} of them "
        f"not the most likely here (by at most {found.gap:.2g} in the logit; allowed "
        f"{found.tolerance:g})"
    )


def count(report: Path, subject: Subject, counts: Counts) -> None:
    """Keep what an engine was asked for a candidate, and say what isn't exact."""
    if not counts.requests:
        return
    jsonl.append(report, {"candidate": subject.name, **asdict(counts)})
    if counts.from_text:
        say(
            f"{subject.name}: the engine gave no token ids for {counts.from_text:,} of "
            f"{counts.requests:,} answers, so they are their texts' tokens; "
            f"{counts.retokenised:,} ({counts.retokenised / counts.from_text:.0%}) are known to "
            "differ from what was generated"
        )
    if counts.other_prompts:
        say(
            f"{subject.name}: before {counts.other_prompts:,} answers the engine counted another "
            "number of prompt tokens than the checkpoint's template makes"
        )
