"""What is known of every answer: from what a ranking kept, or read by its own checkpoint.

Answers, and what a model says of them, are on disk as soon as they are known, so a killed run goes
on from there.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surgeon import engines, jsonl
from surgeon.answers import check_many, parse_tags, read_answers
from surgeon.families import Subject
from surgeon.live.families import live, tokenizer_of
from surgeon.pick.plan import PickFrom, PickPlan
from surgeon.progress import bar
from surgeon.scoring.crews import ReadingOrder, read_by
from surgeon.scoring.ranked import RankedPool, crossed
from surgeon.scoring.reader import Asked, Values, good_masses, read_values
from surgeon.scoring.voting import agreement, places_of, pooled, votes_of
from surgeon.traces import Trace, in_order, read_traces, sampled, settle, stored_traces
from surgeon.traces.records import Key
from surgeon.workers import Crew, answered

WINDOW = 64
"""Answers that are read together."""


class Answers(NamedTuple):
    """One candidate's answers."""

    source: PickFrom
    traces: list[Trace]
    rows: list[Values]
    """What is known of each, in the order of the traces."""


def gather(plan: PickPlan, work: Path) -> list[Answers]:
    """Every candidate's answers, with all that the rules need."""
    traces = answers_of(plan, work)
    read = readings_of(plan, work, traces)
    counted = re.compile(rf"\b(?:{'|'.join(map(re.escape, plan.settings.words))})\b", re.IGNORECASE)
    gathered = []
    for source in plan.sources:
        known, own = _known(plan, source), traces[source.name]
        texts = plan.settings.words and (source.ranked is None or source.ranked.traces is not None)
        rows: list[Values] = [
            {
                "candidate": source.name, "prompt_id": t.prompt_id, "sample": t.sample,
                "tokens": len(t.token_ids), "finished": t.finish_reason != "length",
                **known.get(t.key, {}), **read[source.name].get(t.key, {}),
                "words": len(counted.findall(t.text)) if texts else None,
            }
            for t in own
        ]  # fmt: skip
        if source.ranked is None:
            assert source.subject is not None
            think = parse_tags(plan.settings.reading.think_tags)
            found = read_answers(own, plan.extract, tokenizer_of(source.subject), think)
            for row, answer in zip(rows, found, strict=True):
                row["answer"] = answer
        gathered.append(Answers(source, own, rows))
    _vote(plan, [row for answers in gathered for row in answers.rows])
    return gathered


# Answers -----------------------------------------------------------------------------------------


def answers_of(plan: PickPlan, work: Path) -> dict[str, list[Trace]]:
    """Candidate name -> its answers: a ranking's, given ones, or sampled into `traces/`."""
    found, asked = {}, []
    for source in plan.sources:
        if source.ranked is not None:
            file = source.ranked.traces
            found[source.name] = untold(source.ranked) if file is None else read_traces(file)
        elif source.given is not None:
            found[source.name] = source.given
        elif source.subject is not None:
            asked.append(source.subject)
    return found | _sampled(plan, work, asked) if asked else found


def untold(ranked: RankedPool) -> list[Trace]:
    """Responses that were given to a ranking, of which it kept what it measured and no text."""
    return [
        Trace(r.prompt_id, r.sample, [], [0] * r.tokens, "", "stop" if r.finished else "length")
        for r in ranked.responses.values()
    ]


def _sampled(plan: PickPlan, work: Path, chosen: Sequence[Subject]) -> dict[str, list[Trace]]:
    """The answers that `traces/` lacks are sampled, each written as soon as it ends."""
    (work / "traces").mkdir(exist_ok=True)
    sampling = plan.settings.sampling
    files = {subject.name: work / "traces" / f"{subject.name}.jsonl" for subject in chosen}
    engines.fill(
        plan.settings.engine, [engines.Destination(s, files[s.name]) for s in chosen],
        plan.prompts, sampling, plan.placement, report=work / engines.FILE, what="pick",
    )  # fmt: skip
    wanted = len(plan.prompts) * sampling.samples
    missing = [s for s in chosen if len(stored_traces(files[s.name])) < wanted]
    if plan.roster is not None and missing:
        with Crew(plan.roster) as crew:
            answered(crew, files, missing, plan.prompts, sampling, what="sample")
    else:
        for n, (subject, model, tokenizer) in enumerate(live(missing, *plan.placement), 1):
            what = f"sample {n}/{len(missing)} {subject.name}"
            sampled(files[subject.name], model, tokenizer, plan.prompts, sampling, what=what)
    found = {}
    for name, file in files.items():
        found[name] = in_order(stored_traces(file), plan.prompts)
        settle(file, found[name])
    return found


# What a model says of them -----------------------------------------------------------------------


def readings_of(
    plan: PickPlan, work: Path, traces: Mapping[str, list[Trace]]
) -> dict[str, dict[Key, Values]]:
    """Candidate name -> what its model says of its answers; read once, whatever was killed."""
    (work / "readings").mkdir(exist_ok=True)
    files = {s.name: work / "readings" / f"{s.name}.jsonl" for s in plan.sources}
    known = {name: _stored(file) for name, file in files.items()}
    orders: dict[str, ReadingOrder] = {}
    for source in plan.sources:
        lacking = [t for t in traces[source.name] if t.key not in known[source.name]]
        if plan.reads(source) and lacking:
            assert source.subject is not None
            orders[source.name] = ReadingOrder(source.subject, _asked(plan, source), lacking)

    def keep(name: str, key: Key, values: Values) -> None:
        jsonl.append(files[name], {"prompt_id": key[0], "sample": key[1], **values})
        known[name][key] = values

    if plan.roster is not None and orders:
        with Crew(plan.roster) as crew:
            for name, key, values in read_by(crew, orders):
                keep(name, key, values)
        return known
    wanted = [order.subject for order in orders.values()]
    for n, (subject, model, _) in enumerate(live(wanted, *plan.placement), 1):
        order = orders[subject.name]
        with bar(f"read {n}/{len(wanted)} {subject.name}", len(order.traces)) as advance:
            for start in range(0, len(order.traces), WINDOW):
                window = order.traces[start : start + WINDOW]
                values = read_values(model, window, order.asked)
                for trace, row in zip(window, values, strict=True):
                    keep(subject.name, trace.key, row)
                    advance()
    return known


def _asked(plan: PickPlan, source: PickFrom) -> Asked:
    kept = source.ranked is not None
    return Asked(
        not kept and bool({"weights", "recording"} & plan.needed), "sets" in plan.needed,
        source.weight_N, source.top_k, plan.settings.consensus_top,
    )  # fmt: skip


def _stored(file: Path) -> dict[Key, Values]:
    return {
        (row.pop("prompt_id"), row.pop("sample")): row for _, row in jsonl.rows(file)
    }  # fmt: skip


def _known(plan: PickPlan, source: PickFrom) -> dict[Key, Values]:
    """What a ranking measured of its responses, and their NEX."""
    ranked = source.ranked
    if ranked is None:
        return {}
    found: dict[Key, Values] = {
        key: {"answer": r.answer, **{n: r.measured.get(n) for n in ("hes", "logprob")}}
        for key, r in ranked.responses.items()
    }
    if "nex" not in plan.rules or ranked.evidence is None:
        return found
    if source.weight_N is None:
        n_layers, d_ff = ranked.shape
        scores = crossed(ranked.evidence, n_layers * d_ff)
    else:
        scores = dict(good_masses(ranked.evidence, source.weight_N))
    for key, score in scores.items():
        found[key]["nex"] = score
    return found


# Votes and truth ---------------------------------------------------------------------------------


def _vote(plan: PickPlan, rows: Sequence[Values]) -> None:
    """Add to each row how many of the candidate's other answers agree, the other candidates' vote,
    and whether it is true."""
    names = [row["prompt_id"] for row in rows]
    votes = votes_of([row.get("answer") for row in rows], names)
    places = places_of(names)
    several = len(plan.sources) > 1
    for members in places.values():
        owners = [rows[n]["candidate"] for n in members]
        for owner in dict.fromkeys(owners):
            own = [n for n in members if rows[n]["candidate"] == owner]
            for n, share in agreement(votes, own).items():
                rows[n]["agreement"] = share
        if several:
            shares = pooled([votes[n] for n in members], owners)
            for n, share in zip(members, shares, strict=True):
                rows[n]["vote"] = share
    golds = plan.golds
    judged = [row for row in rows if row["prompt_id"] in golds]
    pairs: list[Any] = [(row.get("answer"), golds[row["prompt_id"]]) for row in judged]
    verdicts = check_many(pairs, plan.settings.check, timeout_s=plan.settings.timeout_s)
    for row, verdict in zip(judged, verdicts, strict=True):
        row["correct"] = verdict.correct
