"""A monitored run as a page: one of its traces, with what was seen and done along it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import lineage
from surgeon.monitor.answering import Kept
from surgeon.monitor.plan import Plan
from surgeon.report.monitored import page
from surgeon.traces import Trace
from surgeon.watch.replay import replay

if TYPE_CHECKING:
    from torch import nn

REPORT = "report.html"


def draw(plan: Plan, model: "nn.Module | None", work: Path, kept: Kept) -> dict[str, Any] | None:
    """Write `report.html` of the answer with the most firings, and return which one it is.

    The answer is read again for it; `model` is loaded where it isn't at hand. Where no level was
    watched there is nothing to draw, and None.
    """
    if not plan.levels:
        return None
    if model is None:
        model = plan.checkpoint.model(plan.device, plan.dtype)
    trace = most_fired(plan, kept)
    monitor = replace(
        plan.monitor,
        channels={level: plan.monitor.channels[level] for level in plan.levels},
        detectors={level: plan.monitor.detectors[level] for level in plan.levels},
    )
    data = replay(model, plan.tokenizer, monitor, trace, kept.firings)
    lineage.write_text(work / REPORT, page({**data, "rates": plan.rates}))
    return {"prompt_id": trace.prompt_id, "sample": trace.sample}


def most_fired(plan: Plan, kept: Kept) -> Trace:
    """The answer with the most firings; of several, the first in the order of the prompts."""
    firings = Counter((row["prompt_id"], row["sample"]) for row in kept.firings)
    traces = {(trace.prompt_id, trace.sample): trace for trace in kept.traces}
    names = [(job.prompt_id, job.sample) for job in plan.jobs]
    return traces[max(names, key=lambda name: firings[name])]
