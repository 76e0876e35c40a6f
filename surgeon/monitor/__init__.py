"""`surgeon monitor`: answers that are watched while they are made, and corrected mid-answer.

The checkpoint's monitor (NeuReasoner sec. 3.3) reads a detector per failure level at the step ends
of every answer. A detector that fires at `intra` or `inter` forces that level's trigger token as
the next token. One that fires at `instance` forces a text that ends the thinking.

On disk: `traces.jsonl` (as `rank` and `evaluate` read them), `firings.jsonl` (one line each:
position, level, probability, the step's text, what was forced), `readings.jsonl` (one line per
answer: what every detector said at every step end), `monitor.json`, and `report.html`: the answer
with the most firings, drawn (left out where no level is watched).

jobs.py          the settings checked: prompts, monitor, the answers to make
local.py         answers decoded with the model at hand
relay.py         answers written by a server of completions, read by the model here
journal.py       what is kept of each answer
summary.py       counts and accuracy
result.py        monitor.json, and what is printed
drawing.py       report.html
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import artifact
from surgeon.monitor import journal
from surgeon.monitor.drawing import draw
from surgeon.monitor.jobs import MonitorPlan, prepare
from surgeon.monitor.journal import Entry
from surgeon.monitor.local import decoded
from surgeon.monitor.relay import relayed
from surgeon.monitor.result import MonitoredRun, VanillaRun, show
from surgeon.monitor.summary import compared, summary, texts
from surgeon.progress import bar
from surgeon.settings import verb
from surgeon.settings.monitor import MonitorSettings
from surgeon.traces import append, stored_traces
from surgeon.truth import DecodingTime

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MonitoredRun", "monitor", "show"]


@verb(MonitorSettings)
def monitor(settings: MonitorSettings) -> MonitoredRun:
    """Answer prompts with the checkpoint's monitor on, and write what happened to `out`.

    With a single `prompt`, the result holds the text of its answers too, and without `out` nothing
    is written. A run that was interrupted resumes with the answers that are missing. Raises
    `BadInput` before anything is decoded.
    """
    plan = prepare(settings)

    def work(partial: Path) -> MonitoredRun:
        model, entries, took = respond(plan, partial, journal.read(partial))
        vanilla = answered_plainly(plan, model, partial, entries) if settings.with_vanilla else None
        return summary(plan, entries, draw(plan, model, partial, entries), took, vanilla)

    if settings.out is None:
        _, entries, took = respond(plan, None, [])
        return replace(summary(plan, entries, None, took), texts=texts(plan, entries))
    run = artifact.once(settings.out, MonitoredRun, work, run=plan.run)
    if settings.prompt is None:
        return run
    return replace(run, texts=texts(plan, journal.read(settings.out)))


def respond(
    plan: MonitorPlan, work: Path | None, entries: list[Entry]
) -> "tuple[nn.Module | None, list[Entry], DecodingTime | None]":
    """The model, if it was needed, `entries` with the answers that they lacked, and how long those
    took.

    Each new answer is added to the files in `work`, where there is one, as soon as it ends.
    """
    done = {entry.trace.key for entry in entries}
    jobs = [job for job in plan.jobs if job.key not in done]
    if not jobs:
        return None, entries, None
    model = plan.checkpoint.model(plan.device, plan.dtype)
    every = list(entries)
    firings = sum(len(entry.firings) for entry in entries)
    start = time.monotonic()
    with bar("monitor", len(jobs)) as advance:
        answers = decoded if plan.settings.engine.is_local else relayed
        for answer in answers(plan, model, jobs):
            entry = journal.entry_of(answer, plan.tokenizer)
            if work is not None:
                journal.append(work, entry)
            every.append(entry)
            firings += len(entry.firings)
            advance(note=f"{firings} firings")
    new = [entry.trace for entry in every[len(entries) :]]
    return model, every, DecodingTime.of(new, time.monotonic() - start, plan.device)


def answered_plainly(
    plan: MonitorPlan, model: "nn.Module | None", work: Path, entries: list[Entry]
) -> VanillaRun:
    """The same answers with nothing watched and the same random numbers, and the comparison; what
    `vanilla.jsonl` holds already isn't decoded again."""
    file, plain = work / journal.VANILLA, plan._replace(levels=(), rates=None)
    traces = stored_traces(file)
    done = {trace.key for trace in traces}
    jobs = [job for job in plan.jobs if job.key not in done]
    took = None
    if jobs:
        model = model or plan.checkpoint.model(plan.device, plan.dtype)
        start, new = time.monotonic(), []
        with bar("without the monitor", len(jobs)) as advance:
            for answer in decoded(plain, model, jobs):
                new.append(journal.entry_of(answer, plan.tokenizer).trace)
                append(file, new[-1])
                advance()
        traces += new
        took = DecodingTime.of(new, time.monotonic() - start, plan.device)
    return compared(plan, entries, traces, took)
