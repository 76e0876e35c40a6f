"""What is known of every answer of a pool: from what a ranking kept, or read by the reader.

What the reader says of an answer is on disk as soon as it is known (`readings.jsonl`), so a killed
run goes on from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon import evidence_file, jsonl, nex, nopsd
from surgeon.answers import check_many, classes_of, parse_tags, read_answers
from surgeon.curate.plan import CuratePlan, consensus_readings
from surgeon.curate.rules import agreement
from surgeon.progress import bar
from surgeon.traces import Trace
from surgeon.traces.records import Key

if TYPE_CHECKING:
    from torch import nn

WINDOW = 64
"""Answers that are in memory together."""
READINGS = "readings.jsonl"
Values = dict[str, Any]


def scored(plan: CuratePlan, work: Path) -> list[Values]:
    """A row for every answer of the pool, in its order."""
    rows: list[Values] = [
        {"prompt_id": a.prompt_id, "sample": a.sample, "tokens": a.tokens, "finished": a.finished}
        for a in plan.pool.answers
    ]
    found: dict[Key, Mapping[str, Any]] = {}
    if plan.pool.ranked is not None:
        found = _kept(plan)
    if plan.reads:
        for key, values in _read(plan, work).items():
            found[key] = {**found.get(key, {}), **values}
    for row in rows:
        row |= found.get((row["prompt_id"], row["sample"]), {})
    if plan.needs("votes") or plan.pool.golds:
        _vote(plan, rows)
    return rows


def good_masses(file: Path, weight_N: np.ndarray) -> Iterator[tuple[Key, float | None]]:
    """The Good-Mass Fraction of every response whose mass a file keeps (NEX Eq. 12-14); None
    without any mass."""
    for prompt_id, sample, neuron_K, mass_K in evidence_file.masses(file):
        score = nex.good_mass_fraction(neuron_K, mass_K, weight_N).score
        yield (prompt_id, sample), score if len(neuron_K) else None


def _kept(plan: CuratePlan) -> dict[Key, Mapping[str, Any]]:
    """What the ranking of the pool's candidate measured, and its masses under the given weights."""
    ranked = plan.pool.ranked
    assert ranked is not None
    found: dict[Key, dict[str, Any]] = {
        key: {"answer": r.answer, **{n: r.measured.get(n) for n in ("hes", "logprob")}}
        for key, r in ranked.responses.items()
    }
    if plan.weight_N is not None and plan.reader is None and ranked.evidence is not None:
        for key, score in good_masses(ranked.evidence, plan.weight_N):
            found[key]["nex"] = score
    return dict(found)


def _read(plan: CuratePlan, work: Path) -> dict[Key, Mapping[str, Any]]:
    """What the reader says of the answers that can be kept; read once, whatever was killed."""
    file = work / READINGS
    known: dict[Key, Mapping[str, Any]] = {
        (row["prompt_id"], row["sample"]): row for _, row in jsonl.rows(file)
    }
    wanted = {a.key for a in plan.pool.answers if a.fits and a.prompt_id not in plan.left.all}
    lacking = len(wanted - known.keys())
    if not lacking or plan.reader is None:
        return known
    device, dtype = plan.placement
    model: Any = plan.reader.model(device, dtype).to(device)  # pyright: ignore
    with bar("read", lacking) as advance:
        for traces in _windows(plan, wanted - known.keys()):
            for trace, values in zip(traces, _values(plan, model, traces), strict=True):
                row = {"prompt_id": trace.prompt_id, "sample": trace.sample, **values}
                jsonl.append(file, row)
                known[trace.key] = row
                advance()
    return known


def _windows(plan: CuratePlan, wanted: set[Key]) -> Iterator[list[Trace]]:
    window: list[Trace] = []
    for answered in plan.pool.rows():
        if answered.key in wanted:
            window.append(plan.pool.trace(answered))
        if len(window) == WINDOW:
            yield window
            window = []
    if window:
        yield window


def _values(plan: CuratePlan, model: "nn.Module", traces: Sequence[Trace]) -> list[Values]:
    """nex, hes, logprob and consensus of some answers, as far as rules need them."""
    from surgeon.activations import record
    from surgeon.contributions import contributions

    values: list[Values] = [{} for _ in traces]
    if plan.needs("weights", "recording"):
        recordings = record(model, traces, top_k=plan.top_k)
        for row, recording in zip(values, recordings, strict=True):
            row["hes"] = float(nex.hes(recording.entropy_T))
            row["logprob"] = float(nex.mean_logprob(recording.logprob_T))
            if plan.weight_N is not None:
                neuron_K, mass_K = nex.response_mass(recording.activations)
                score = nex.good_mass_fraction(neuron_K, mass_K, plan.weight_N).score
                row["nex"] = score if len(neuron_K) else None
    if plan.needs("sets"):
        readings = consensus_readings(plan.settings)
        scores = contributions(
            model, traces, nopsd.contribution, activation=readings.activation,
            chunk_tokens=readings.chunk_tokens,
        )  # fmt: skip
        for row, (_, chunks) in zip(values, groupby(scores, key=lambda p: p[0]), strict=True):
            row["consensus"] = nopsd.contribution_set((s for _, s in chunks), readings).consensus
    return values


def _vote(plan: CuratePlan, rows: list[Values]) -> None:
    """Add to each row what it answers, how many of the others agree, and whether it is true."""
    if plan.pool.ranked is None and plan.pool.tokenizer is not None:
        think = parse_tags(plan.settings.reading.think_tags)
        at = 0
        for traces in _windows(plan, {a.key for a in plan.pool.answers}):
            answers = read_answers(traces, plan.extract, plan.pool.tokenizer, think)
            for answer in answers:
                rows[at]["answer"] = answer
                at += 1
    places: dict[str, list[int]] = {}
    for n, row in enumerate(rows):
        places.setdefault(row["prompt_id"], []).append(n)
    given = [row.get("answer") for row in rows]
    votes: list[str | None] = [None] * len(rows)
    groups = classes_of([[given[n] for n in members] for members in places.values()])
    for members, group in zip(places.values(), groups, strict=True):
        for n, vote in zip(members, group, strict=True):
            votes[n] = vote
    for members in places.values():
        for n, share in agreement(votes, members).items():
            rows[n]["agreement"] = share
    golds = plan.pool.golds
    judged = [n for n, row in enumerate(rows) if row["prompt_id"] in golds]
    verdicts = check_many([(given[n], golds[rows[n]["prompt_id"]]) for n in judged], "exact")
    for n, verdict in zip(judged, verdicts, strict=True):
        rows[n]["correct"] = verdict.correct
