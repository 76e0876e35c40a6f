"""What a monitored run keeps of its answers: traces, firings and readings, in three files.

An answer's trace is written last: where there is one, all of the answer is on disk.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from surgeon import jsonl, traces
from surgeon.monitor.jobs import MonitoredAnswer
from surgeon.traces import Key, Trace, stored_traces, text_of
from surgeon.watch.watching import Firing, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

R = TypeVar("R", Firing, Reading)
TRACES, FIRINGS, READINGS = "traces.jsonl", "firings.jsonl", "readings.jsonl"
VANILLA = "vanilla.jsonl"
"""Traces of the same answers without the monitor."""


class LoggedFiring(NamedTuple):
    """A firing and what it forced: a row of `firings.jsonl`, beside the answer's key."""

    firing: Firing
    text: str
    """Of the forced tokens."""
    tokens: int
    """How many they are, as far as they are in the answer."""


class Entry(NamedTuple):
    """One finished answer, as it is kept."""

    trace: Trace
    firings: list[LoggedFiring]
    readings: list[Reading]


def entry_of(answer: MonitoredAnswer, tokenizer: "PreTrainedTokenizerBase") -> Entry:
    """What is kept of an answer; probabilities are rounded to six digits."""
    job, ids = answer.job, answer.token_ids
    text = text_of(tokenizer, ids, answer.finish_reason)
    trace = Trace(*job.key, job.ids, ids, text, answer.finish_reason)
    forced = set(answer.forced)
    starts = {firing.position for firing in answer.firings}
    firings = []
    for firing in answer.firings:
        if firing.redrawn is not None:
            firings.append(LoggedFiring(_rounded(firing), "", 0))
            continue
        end = firing.position + 1
        while end in forced and end not in starts:
            end += 1
        text = text_of(tokenizer, ids[firing.position : end])
        firings.append(LoggedFiring(_rounded(firing), text, end - firing.position))
    return Entry(trace, firings, [_rounded(reading) for reading in answer.readings])


def _rounded(one: R) -> R:
    return one._replace(probability=round(float(one.probability), 6))


def append(work: Path, entry: Entry) -> None:
    """Add an answer to the files of a run."""
    name = {"prompt_id": entry.trace.prompt_id, "sample": entry.trace.sample}
    for one in entry.firings:
        row = {**name, **one.firing.row(), "forced": one.text, "tokens": one.tokens}
        jsonl.append(work / FIRINGS, row)
    readings = [reading._asdict() for reading in entry.readings]
    jsonl.append(work / READINGS, {**name, "readings": readings})
    traces.append(work / TRACES, entry.trace)


def read(directory: Path) -> list[Entry]:
    """The answers in a run's files; what a killed run left of others is taken away."""
    kept = {trace.key: Entry(trace, [], []) for trace in stored_traces(directory / TRACES)}
    for key, row in _own_rows(directory / FIRINGS, kept.keys()):
        firing = Firing(**{name: row[name] for name in Firing._fields if name in row})
        kept[key].firings.append(LoggedFiring(firing, row["forced"], row["tokens"]))
    for key, row in _own_rows(directory / READINGS, kept.keys()):
        kept[key].readings.extend(Reading(**reading) for reading in row["readings"])
    return list(kept.values())


def _own_rows(file: Path, keys: Iterable[Key]) -> list[tuple[Key, dict[str, Any]]]:
    """The rows of these answers; others, which lack their trace, are taken out of the file."""
    known = set(keys)
    every = [((row["prompt_id"], row["sample"]), row) for _, row in jsonl.rows(file)]
    own = [(key, row) for key, row in every if key in known]
    if not file.is_file() or len(own) < len(every):
        jsonl.write(file, (row for _, row in own))
    return own
