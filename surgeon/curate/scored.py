"""What is known of every answer of a pool: from what a ranking kept, or read by the reader.

What the reader says of an answer is on disk as soon as it is known (`readings.jsonl`), so a killed
run goes on from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import jsonl
from surgeon.answers import check_many, parse_tags, read_answers
from surgeon.curate.plan import CuratePlan
from surgeon.families import subjects
from surgeon.progress import bar
from surgeon.scoring.crews import ReadingOrder, read_by
from surgeon.scoring.reader import Asked, Values, good_masses, read_values
from surgeon.scoring.voting import agreement, places_of, votes_of
from surgeon.traces import Trace
from surgeon.traces.records import Key
from surgeon.workers import Crew

if TYPE_CHECKING:
    from torch import nn

WINDOW = 64
"""Answers that are in memory together."""
READINGS = "readings.jsonl"


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
    # Rows are taken from the pool as they are read, so that memory doesn't grow with it.
    windows = _windows(plan, wanted - known.keys())

    def keep(key: Key, values: Values) -> None:
        row = {"prompt_id": key[0], "sample": key[1], **values}
        jsonl.append(file, row)
        known[key] = row

    if plan.roster is not None:
        subject = subjects([str(plan.settings.reader)])[0]
        done = 0
        with Crew(plan.roster) as crew:
            for traces in windows:
                order = ReadingOrder(subject, _asked(plan), traces)
                what = f"read from {done} of {lacking}"
                for _, key, values in read_by(crew, {subject.name: order}, what=what):
                    keep(key, values)
                done += len(traces)
        return known
    device, dtype = plan.placement
    model: Any = plan.reader.model(device, dtype).to(device)  # pyright: ignore
    with bar("read", lacking) as advance:
        for traces in windows:
            for trace, values in zip(traces, _values(plan, model, traces), strict=True):
                keep(trace.key, values)
                advance()
    return known


def _windows(plan: CuratePlan, wanted: set[Key]) -> Iterator[list[Trace]]:
    window: list[Trace] = []
    # Every worker has some of a window.
    size = WINDOW * (1 if plan.roster is None else 16)
    for answered in plan.pool.rows():
        if answered.key in wanted:
            window.append(plan.pool.trace(answered))
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def _values(plan: CuratePlan, model: "nn.Module", traces: Sequence[Trace]) -> list[Values]:
    """nex, hes, logprob and consensus of some answers, as far as rules need them."""
    return read_values(model, traces, _asked(plan))


def _asked(plan: CuratePlan) -> Asked:
    return Asked(
        plan.needs("weights", "recording"), plan.needs("sets"), plan.weight_N, plan.top_k,
        plan.settings.consensus_top,
    )  # fmt: skip


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
    names = [row["prompt_id"] for row in rows]
    given = [row.get("answer") for row in rows]
    places, votes = places_of(names), votes_of(given, names)
    for members in places.values():
        for n, share in agreement(votes, members).items():
            rows[n]["agreement"] = share
    golds = plan.pool.golds
    judged = [n for n, row in enumerate(rows) if row["prompt_id"] in golds]
    verdicts = check_many([(given[n], golds[rows[n]["prompt_id"]]) for n in judged], "exact")
    for n, verdict in zip(judged, verdicts, strict=True):
        rows[n]["correct"] = verdict.correct
