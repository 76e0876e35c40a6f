"""Consensus of answers: s(x) of Neuron-OPSD (Eq. 4), read by the model that gave them, and whether
it tells the right ones.

    kept = sizes(model, traces, readings, "runs/consensus/a.jsonl")
    reliability(kept, lengths, right, questions).auroc
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import jsonl, nopsd
from surgeon.consensus.reliability import Reliability, reliability, sentence
from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.settings.nopsd import NopsdReadings
from surgeon.traces import Key, Trace

if TYPE_CHECKING:
    from torch import nn

    from surgeon.checkpoint import Checkpoint

__all__ = [
    "Reliability",
    "contribution_sets",
    "reliability",
    "require_budget",
    "sentence",
    "sizes",
    "stored_sizes",
]

WINDOW = 64
"""Responses whose sizes reach the disk together."""


def contribution_sets(
    model: "nn.Module", traces: Sequence[Trace], readings: NopsdReadings
) -> list[nopsd.ContributionSet]:
    """N(x) and s(x) of each response, one matrix product per layer and chunk."""
    from surgeon.contributions import contributions
    from surgeon.live.blocks import passed_units

    passed = passed_units(model)
    scores = contributions(
        model, traces, nopsd.contribution, activation=readings.activation,
        chunk_tokens=readings.chunk_tokens,
    )  # fmt: skip
    # Traces come in order, and so do each trace's chunks.
    return [
        nopsd.contribution_set((score for _, score in chunks), readings, passed)
        for _, chunks in groupby(scores, key=lambda pair: pair[0])
    ]


def require_budget(
    checkpoint: "Checkpoint", readings: NopsdReadings, name: str = "top_global"
) -> None:
    """Raise `BadInput` where a budget keeps every neuron, so that all sets would be alike.

    `name` is what the setting of `readings.top_global` is called where it was given.
    """
    budgets = [(name, readings.top_global, checkpoint.passed_units)]
    if readings.sets == "appendix":
        budgets.append(("top_layer", readings.top_layer, checkpoint.d_ff))
    for setting, amount, n in budgets:
        if nopsd.budget(amount, n) >= n:
            raise BadInput(
                f"{setting} {amount:g} keeps all {n:,} neurons of {checkpoint.spec}. Give a share, "
                f"for example {setting} 0.014 (5,000 of the 350,208 of the paper's model)."
            )


def stored_sizes(file: str | Path, readings: NopsdReadings) -> dict[Key, int]:
    """s(x) of the responses that a file has under these readings, by prompt and sample."""
    return {
        (row["prompt_id"], row["sample"]): int(row["consensus"])
        for _, row in jsonl.rows(file)
        if row["top"] == readings.top_global
    }


def sizes(
    model: "nn.Module",
    traces: Sequence[Trace],
    readings: NopsdReadings,
    file: str | Path,
    *,
    what: str = "consensus",
) -> dict[Key, int]:
    """s(x) of each response, 0 for one without tokens; those that the file lacks are read, and
    written as they come."""
    known = stored_sizes(file, readings)
    wanted = [trace for trace in traces if trace.key not in known]
    with bar(what, len(wanted)) as advance:
        for first in range(0, len(wanted), WINDOW):
            window = wanted[first : first + WINDOW]
            read = [trace for trace in window if trace.token_ids]
            found = dict.fromkeys((trace.key for trace in window), 0)
            sets = contribution_sets(model, read, readings) if read else []
            found |= {trace.key: s.consensus for trace, s in zip(read, sets, strict=True)}
            for (prompt_id, sample), size in found.items():
                row = {"prompt_id": prompt_id, "sample": sample, "consensus": size}
                jsonl.append(file, {**row, "top": readings.top_global})
            known |= found
            advance(len(window))
    return known
