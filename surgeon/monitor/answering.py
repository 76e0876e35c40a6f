"""Monitored answers, made by the model at hand; and how they are kept on disk."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.decoding import Decoder, Request, plan_rows, stream_key
from surgeon.monitor.engine import relayed
from surgeon.monitor.plan import Answered, Job, Plan
from surgeon.progress import bar
from surgeon.traces import Trace, append, read_traces, stop_ids
from surgeon.watch.spans import append_line
from surgeon.watch.watching import Watching

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TRACES, FIRINGS, READINGS = "traces.jsonl", "firings.jsonl", "readings.jsonl"


def watching(plan: Plan, model: "nn.Module") -> Watching:
    """The monitor's view of this model."""
    return Watching(
        model,
        plan.tokenizer,
        plan.monitor,
        random_rate=plan.rates,
        seed=plan.sampling.seed,
        levels=plan.levels,
    )


def decoded(plan: Plan, model: "nn.Module", jobs: Sequence[Job]) -> Iterator[Answered]:
    """Decode answers with the monitor looking on, and yield each when it ends."""
    if not jobs:
        return
    sampling, watcher = plan.sampling, watching(plan, model) if plan.levels else None
    requests = {
        job.index: Request(job.ids, stream_key(sampling.seed, job.prompt_id, job.sample))
        for job in jobs
    }
    decoder = Decoder(
        model,
        stop=stop_ids(model, plan.tokenizer),
        rows=plan_rows(model, list(requests.values()), sampling.max_tokens, sampling.batch),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        sheds=sampling.batch == 0,
        watcher=watcher,
    )
    for index, request in requests.items():
        decoder.add(index, request)
    job_by_index = {job.index: job for job in jobs}
    token_ids: dict[int, list[int]] = {job.index: [] for job in jobs}
    forced: dict[int, list[int]] = {job.index: [] for job in jobs}
    while decoder.busy:
        for index, token_id, is_forced, finish_reason in decoder.step():
            if is_forced:
                forced[index].append(len(token_ids[index]))
            token_ids[index].append(token_id)
            if finish_reason is not None:
                yield Answered(
                    job_by_index[index],
                    token_ids.pop(index),
                    finish_reason,
                    forced.pop(index),
                    watcher.firings.pop(index) if watcher else [],
                    watcher.readings.pop(index) if watcher else [],
                )


# --- what is kept ---------------------------------------------------------------------------------


class Kept(NamedTuple):
    """Answers that are done, as they are on disk."""

    traces: list[Trace]
    firings: list[dict[str, Any]]
    """One object per firing: where, why, and the text that was forced."""
    readings: list[dict[str, Any]]
    """One object per answer: what the detectors said."""


def respond(plan: Plan, work: Path | None, kept: Kept) -> "nn.Module | None":
    """Make the answers that `kept` lacks, adding each to it, and to the files in `work`, as soon as
    it ends; returns the model, if it was needed."""
    done = {(trace.prompt_id, trace.sample) for trace in kept.traces}
    jobs = [job for job in plan.jobs if (job.prompt_id, job.sample) not in done]
    if not jobs:
        return None
    model = plan.checkpoint.model(plan.device, plan.dtype)
    if plan.endpoint is None:
        answers = decoded(plan, model, jobs)
    else:
        answers = relayed(plan, model, jobs)
    with bar("monitor", len(jobs)) as advance:
        for answered in answers:
            added = rows_of(answered, plan.tokenizer)
            if work is not None:
                write(work, added)
            kept.traces.extend(added.traces)
            kept.firings.extend(added.firings)
            kept.readings.extend(added.readings)
            advance(note=f"{len(kept.firings)} firings")
    return model


def rows_of(answered: Answered, tokenizer: "PreTrainedTokenizerBase") -> Kept:
    """A finished answer as it is kept."""
    job, ids = answered.job, answered.token_ids
    name = {"prompt_id": job.prompt_id, "sample": job.sample}
    text = text_of(tokenizer, ids[:-1] if answered.finish_reason == "stop" else ids)
    trace = Trace(job.prompt_id, job.sample, job.ids, ids, text, answered.finish_reason)
    forced = set(answered.forced)
    starts = {firing.position for firing in answered.firings}
    firings = []
    for firing in answered.firings:
        end = firing.position + 1
        while end in forced and end not in starts:
            end += 1
        text = text_of(tokenizer, ids[firing.position : end])
        row = {**name, **firing._asdict(), "forced": text, "tokens": end - firing.position}
        firings.append({**row, "probability": round(float(firing.probability), 6)})
    readings = [
        {
            "position": int(reading.position),
            "level": reading.level,
            "probability": round(float(reading.probability), 6),
            "open": bool(reading.open),
        }
        for reading in answered.readings
    ]
    return Kept([trace], firings, [{**name, "readings": readings}])


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The tokens as text, special ones included."""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def write(work: Path, added: Kept) -> None:
    """Add an answer to the files: its trace last, which says that all of it is there."""
    for row in added.firings:
        append_line(work / FIRINGS, row)
    for row in added.readings:
        append_line(work / READINGS, row)
    for trace in added.traces:
        append(work / TRACES, trace)


def stored(work: Path) -> Kept:
    """The answers that are on disk; what a killed run left of others is taken away."""
    file = work / TRACES
    traces = read_traces(file) if file.is_file() else []
    done = {(trace.prompt_id, trace.sample) for trace in traces}
    return Kept(traces, *(_stored(work / name, done) for name in (FIRINGS, READINGS)))


def _stored(file: Path, done: set[tuple[str, int]]) -> list[dict[str, Any]]:
    found = file.read_bytes() if file.is_file() else b""
    # A last line without its end was cut short.
    whole = [json.loads(line) for line in found.splitlines(keepends=True) if line.endswith(b"\n")]
    rows = [row for row in whole if (row["prompt_id"], row["sample"]) in done]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not file.is_file() or text.encode() != found:
        lineage.write_text(file, text)
    return rows
