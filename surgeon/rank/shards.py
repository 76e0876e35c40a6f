"""Candidates of a ranking by several workers: shards of their answers, drawn, recorded and reduced.

The driver writes the files that one process would, as the answers come; what is on disk already is
not made again, whoever made it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import activations, nex
from surgeon.families import Subject
from surgeon.rank import reduced, scores
from surgeon.rank.plan import RankPlan
from surgeon.settings.rank import RankSettings
from surgeon.traces import Key, Trace, append, keys_of, stored_traces
from surgeon.workers import Bench, Crew
from surgeon.workers.sharing import Drawing, draw


class Shard(NamedTuple):
    """Some of a candidate's answers, for one worker."""

    settings: RankSettings
    readings: nex.Readings
    row_tokens: int
    top_k: int
    evidence_bytes: int
    """Rows that are larger are not kept."""
    drawing: Drawing
    """Those to be drawn."""
    traces: list[Trace]
    """Those that were drawn already, and are to be recorded."""


class Read(NamedTuple):
    """A recorded answer."""

    reduced: reduced.Reduced
    positive_N: np.ndarray
    rows: activations.Activations | None
    """Where they may be kept as evidence."""
    recording: activations.Recording | None
    """Where it is kept."""


def read(bench: Bench, shard: Shard) -> Iterator[tuple[Key, Trace | Read, bool]]:
    """A worker's job: each answer as it ends, then each one's recording, reduced."""
    settings, traces = shard.settings, list(shard.traces)
    for key, trace, _ in draw(bench, shard.drawing):
        traces.append(trace)
        yield key, trace, False
    model, _ = bench.take(shard.drawing.subject)
    measures = scores.measured(scores.rows_for(settings.select))
    recordings = activations.record(
        model, traces, row_tokens=shard.row_tokens, top_k=shard.top_k, tau=settings.scoring.tau
    )
    for trace, recording in zip(traces, recordings, strict=True):
        less = reduced.reduce(recording, shard.readings, measures)
        kept = recording if settings.keep_activations else None
        small = reduced.row_bytes(recording.activations) <= shard.evidence_bytes
        small = small or settings.format is not None
        rows = recording.activations if small else None
        yield trace.key, Read(less, recording.positive_N, rows, kept), True


class Files:
    """What is on disk of one candidate, and what it lacks."""

    def __init__(self, plan: RankPlan, work: Path, subject: Subject):
        self.plan, self.subject = plan, subject
        self.directory = reduced.candidate_dir(work, subject)
        self.store = self.directory / "responses"
        self.store.mkdir(parents=True, exist_ok=True)
        if plan.traces is None:
            wanted = keys_of(plan.prompts, plan.settings.sampling.samples)
            stored = stored_traces(self.directory / reduced.TRACES)
        else:
            stored = plan.traces[subject.name]
            wanted = [trace.key for trace in stored]
        self.traces = {trace.key: trace for trace in stored}
        self.file = {key: reduced.reduced_file(self.store, n) for n, key in enumerate(wanted)}
        stored_bytes = sum(map(reduced.stored_row_bytes, self.file.values()))
        self.room = plan.evidence_bytes - stored_bytes
        self.lacking = [
            key for key in wanted if not reduced.is_reduced(self.file[key], plan.measures)
        ]

    def shard(self, keys: Sequence[Key]) -> Shard:
        """An order for these answers."""
        settings = self.plan.settings
        undrawn = {key for key in keys if key not in self.traces}
        drawn = [self.traces[key] for key in keys if key in self.traces]
        plan, top_k = self.plan, self.plan.top_k[self.subject.name]
        how = plan.sampling_of(self.subject)
        drawing = Drawing.of(self.subject, plan.prompts, how, undrawn)
        return Shard(
            settings, plan.readings, plan.row_tokens, top_k, plan.evidence_bytes, drawing, drawn
        )

    def add(self, key: Key, value: Trace | Read) -> None:
        """Write what a worker made."""
        if isinstance(value, Trace):
            append(self.directory / reduced.TRACES, value)
            self.traces[key] = value
            return
        if value.recording is not None:
            reduced.keep(self.directory / "activations", self.traces[key], value.recording)
        rows = value.rows
        if rows is not None:
            self.room -= reduced.row_bytes(rows)
            rows = rows if self.room >= 0 else None
        reduced.save_reduced(self.file[key], value.reduced, value.positive_N, rows)


def gather(plan: RankPlan, work: Path, subjects: Sequence[Subject]) -> Iterator[Subject]:
    """Let the workers make what the candidates lack; yields each as soon as it lacks nothing."""
    assert plan.roster is not None
    files = {subject.name: Files(plan, work, subject) for subject in subjects}
    left = {name: len(one.lacking) for name, one in files.items()}
    yield from (one.subject for name, one in files.items() if not left[name])
    undrawn = sum(k not in one.traces for one in files.values() for k in one.lacking)
    with Crew(plan.roster) as crew:
        for result in crew.run(
            {name: one.lacking for name, one in files.items()},
            read,
            lambda name, keys: files[name].shard(keys),
            what=f"rank {len(subjects)} candidates",
            total=undrawn + sum(left.values()),
        ):
            files[result.group].add(result.unit, result.value)
            if result.done:
                left[result.group] -= 1
                if not left[result.group]:
                    yield files[result.group].subject
