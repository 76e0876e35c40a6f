"""A monitored run as a page: one of its traces, with what was seen and done along it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import lineage
from surgeon.monitor.jobs import MonitorPlan
from surgeon.monitor.journal import Entry
from surgeon.monitor.result import DrawnAnswer
from surgeon.report.monitored import page
from surgeon.watch.replay import replay

if TYPE_CHECKING:
    from torch import nn

REPORT = "report.html"


def draw(
    plan: MonitorPlan, model: "nn.Module | None", work: Path, entries: Sequence[Entry]
) -> DrawnAnswer | None:
    """Write `report.html` of the answer with the most firings, and return which one it is.

    The model reads the answer again for it, and is loaded where it isn't at hand. Returns None, and
    writes nothing, where no level was watched.
    """
    if not plan.levels or plan.monitor is None:
        return None
    if model is None:
        model = plan.checkpoint.model(plan.device, plan.dtype)
    trace, firings, _ = most_fired(plan, entries)
    monitor = replace(
        plan.monitor,
        channels={level: plan.monitor.channels[level] for level in plan.levels},
        detectors={level: plan.monitor.detectors[level] for level in plan.levels},
    )
    content = replay(model, plan.tokenizer, monitor, trace, [one.firing for one in firings])
    lineage.write_text(work / REPORT, page(content, plan.rates))
    return DrawnAnswer(prompt_id=trace.prompt_id, sample=trace.sample)


def most_fired(plan: MonitorPlan, entries: Sequence[Entry]) -> Entry:
    """The answer with the most firings; of several, the first in the order of the prompts."""
    by_key = {entry.trace.key: entry for entry in entries}
    return max((by_key[job.key] for job in plan.jobs), key=lambda entry: len(entry.firings))
