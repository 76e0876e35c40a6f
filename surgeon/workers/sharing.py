"""Answers to prompts by workers, appended to trace files by the driver as they end."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from surgeon.families import Subject
from surgeon.settings.sampling import Sampling
from surgeon.traces import Key, Prompt, Trace, append, keys_of, sample, stored_traces
from surgeon.workers.bench import Bench
from surgeon.workers.crew import Crew


class Drawing(NamedTuple):
    """Answers that a worker is to draw."""

    subject: Subject
    prompts: list[Prompt]
    sampling: Sampling
    done: frozenset[Key]
    """Answers to these prompts that are not drawn."""

    @classmethod
    def of(
        cls,
        subject: Subject,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: AbstractSet[Key],
    ) -> "Drawing":
        """The answers with these keys, to some of the prompts."""
        asked = {prompt_id for prompt_id, _ in keys}
        some = [prompt for prompt in prompts if prompt.id in asked]
        done = frozenset(keys_of(some, sampling.samples)) - keys
        return cls(subject, some, sampling, done)


def draw(bench: Bench, order: Drawing) -> Iterator[tuple[Key, Trace, bool]]:
    """A worker's job: each answer as it ends."""
    if order.prompts:
        model, tokenizer = bench.take(order.subject)
        for trace in sample(model, tokenizer, order.prompts, order.sampling, done=order.done):
            yield trace.key, trace, True


def answered(
    crew: Crew,
    files: Mapping[str, Path],
    subjects: Sequence[Subject],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    what: str,
    own_seeds: bool = False,
) -> None:
    """Append the answers that each subject's file lacks, whoever's turn it is to draw them.

    `files` are by the subject's name. With `own_seeds` each subject has its own seed. Raises
    BadInput as `traces.sample` does.
    """
    named = {subject.name: subject for subject in subjects}
    wanted = keys_of(prompts, sampling.samples)
    lacking = {}
    for name in named:
        there = {trace.key for trace in stored_traces(files[name])}
        lacking[name] = [key for key in wanted if key not in there]

    def order(name: str, keys: list[Key]) -> Drawing:
        how = sampling.own(name) if own_seeds else sampling
        return Drawing.of(named[name], prompts, how, set(keys))

    total = sum(map(len, lacking.values()))
    for result in crew.run(lacking, draw, order, what=what, total=total):
        append(files[result.group], result.value)
