"""What a ranking will take, before it begins (`--dry-run`)."""

import time
from collections.abc import Iterator
from typing import Any

from surgeon import activations, artifact, evidence_file, lineage
from surgeon.errors import BadInput
from surgeon.families import Subject, candidate_files
from surgeon.live.families import live, tokenizer_of
from surgeon.rank.plan import RankPlan, prepare
from surgeon.rank.recording import MOST_ROW_TOKENS, fitting
from surgeon.rank.reduced import SCORES, TRACES, candidate_dir, is_scored
from surgeon.rank.rounds import sizes
from surgeon.ranking import CandidateScores, Ranking
from surgeon.settings.rank import RankSettings
from surgeon.traces import Trace, keys_of, outlook
from surgeon.traces.outlook import Bounds, Cost, Known, Outlook, Pace

TENSORS = 6
"""Of weights.safetensors, float32 each."""
PER_ENTRY, PER_TOKEN = 48, 32
"""Bytes of evidence at most, where no neuron is kept twice in a row and each in one row only."""
RESAMPLED = 2000 * 8
"""Bytes of the resamples."""


def forecast(settings: RankSettings) -> Outlook:
    """What the ranking will take: answers, tokens, time and disk by candidate; writes nothing.

    Raises `BadInput` as the ranking would.
    """
    if settings.nex_cache is not None:
        raise BadInput(
            "found dry_run and nex_cache, expected one of them: a cache holds its responses, and "
            "nothing is sampled."
        )
    plan = prepare(settings)
    lineage.check(settings.out, plan.run)
    local, given = settings.engine.is_local, plan.traces is not None
    outlook.require_timed(settings.measure_s, local=local, given=given)
    if settings.out.exists():
        artifact.read(Ranking, settings.out)
        return Outlook("rank", (), ("It is finished: nothing would be computed.",), free(plan))
    known = Known(
        there(plan),
        paces(plan) if settings.measure_s else {},
        outlook.within_context(settings.sampling, plan.subjects),
        outlook.ratios(plan.subjects),
    )
    lines = [*(pace.line for pace in known.paces.values())]
    if known.paces and len(plan.subjects) > len(known.paces):
        lines.append("The others are taken to lie between these, at the pace of the slowest.")
    tokenizer = tokenizer_of(plan.subjects[0])
    prompt_tokens = outlook.mean_prompt_tokens(tokenizer, plan.prompts, settings.sampling)
    costs = tuple(cost(plan, known, subject, prompt_tokens) for subject in plan.subjects)
    return Outlook(
        "rank", costs, (*lines, *notes(plan, known, costs, prompt_tokens)), free(plan), least(plan)
    )


def free(plan: RankPlan) -> int:
    return lineage.free_bytes(plan.settings.out)


def there(plan: RankPlan) -> dict[str, list[Trace]]:
    """Candidate -> its answers that are known already."""
    if plan.traces is not None:
        return plan.traces
    work = plan.settings.out.with_name(plan.settings.out.name + ".partial")
    return outlook.on_disk({s.name: [candidate_dir(work, s) / TRACES] for s in plan.subjects})


def paces(plan: RankPlan) -> dict[str, Pace]:
    """The first, the middle and the last candidate, timed."""
    settings = plan.settings
    found = {}
    models = live(outlook.timed_ones(plan.subjects), *plan.placement)
    for subject, model, tokenizer, load_s in outlook.loaded(models):
        pace = outlook.timed(
            subject, model, tokenizer, plan.prompts, plan.sampling_of(subject),
            load_s=load_s, seconds=settings.measure_s,
        )  # fmt: skip
        found[subject.name] = read_back(plan, subject, model, pace)
    return found


def read_back(plan: RankPlan, subject: Subject, model: Any, pace: Pace) -> Pace:
    """The pace with that of recording, for at most as many seconds."""
    tokens = sum(len(trace.token_ids) for trace in pace.traces) / max(1, len(pace.traces))
    row_tokens = plan.row_tokens or min(MOST_ROW_TOKENS, fitting(tokens))
    traces = [trace for trace in pace.traces if trace.token_ids]
    begun, read, drawn, kept = time.monotonic(), 0, 0, 0
    recordings: Iterator[activations.Recording] = activations.record(
        model, traces, row_tokens=row_tokens, top_k=plan.top_k[subject.name],
        tau=plan.settings.scoring.tau,
    )  # fmt: skip
    for trace, recording in zip(traces, recordings, strict=True):
        rows = recording.activations
        read += len(trace.prompt_token_ids) + len(trace.token_ids)
        drawn += len(trace.token_ids)
        # The rows, and about as much again for what they say of neurons.
        kept += 2 * evidence_file.row_bytes(len(rows.neuron_E), len(rows.tokens_R))
        if time.monotonic() - begun > plan.settings.measure_s:
            break
    spent = time.monotonic() - begun
    return pace._replace(read_s=spent, read=read, kept_bytes=kept / max(1, drawn))


def cost(plan: RankPlan, known: Known, subject: Subject, prompt_tokens: float) -> Cost:
    """What one candidate will take; nothing where it is scored."""
    sampling = plan.settings.sampling
    wanted = keys_of(plan.prompts, sampling.samples)
    if plan.traces is not None:
        wanted = [trace.key for trace in plan.traces[subject.name]]
    workers = 1 if plan.roster is None else max(1, len(plan.roster.devices))
    found = outlook.lacking(known, subject.name, wanted, prompt_tokens, workers)
    work = plan.settings.out.with_name(plan.settings.out.name + ".partial")
    directory = candidate_dir(work, subject)
    if (directory / SCORES).is_file() and is_scored(plan, directory):
        done = artifact.read(CandidateScores, directory).responses
        if len(done) >= len(wanted):
            nothing = Bounds(0, 0, 0)
            return Cost(subject.name, len(done), 0, nothing, nothing, nothing)
    n_layers, d_ff = plan.shape(subject)
    fixed = float(TENSORS * 4 * n_layers * d_ff + RESAMPLED)
    return found._replace(
        disk=found.disk + Bounds(fixed, fixed, fixed) + evidence(plan, known, found)
    )


def evidence(plan: RankPlan, known: Known, found: Cost) -> Bounds:
    """Bytes that a candidate's evidence will take: its share at most."""
    most, pace = float(plan.evidence_bytes), known.pace(found.candidate)
    drawn = float(sum(len(t.token_ids) for t in known.there.get(found.candidate, ())))
    tokens = found.tokens + Bounds(drawn, drawn, drawn)
    if pace is None or not pace.kept_bytes:
        each = PER_ENTRY * plan.top_k[found.candidate] + PER_TOKEN
        return Bounds(0, None, min(most, tokens.high * each))
    size = tokens.times(pace.kept_bytes)
    likely = None if size.likely is None else min(size.likely, most)
    return Bounds(min(size.low, most), likely, min(size.high, most))


def least(plan: RankPlan) -> float:
    """The smallest share of the whole that a ranking in rounds may come to."""
    return sizes(len(plan.prompts))[0] / len(plan.prompts) if plan.settings.adaptive else 1.0


def notes(plan: RankPlan, known: Known, costs: tuple[Cost, ...], prompt_tokens: float) -> list[str]:
    """What isn't known, and what the table leaves out."""
    settings = plan.settings
    local = settings.engine.is_local
    lines = outlook.about(known, plan.prompts, prompt_tokens, local=local)
    if plan.traces is not None:
        lines = ["The answers are given: nothing is sampled, each is read back once."]
    if plan.roster is not None and plan.roster.address is not None:
        lines.append(
            "The time is that of one worker: how many the cluster has room for isn't known."
        )
    tokens_in = int(prompt_tokens * sum(c.answers for c in costs))
    tokens = sum((c.tokens for c in costs), Bounds(0, 0, 0))
    low, high = (settings.engine.money(tokens_in, int(n)) for n in (tokens.low, tokens.high))
    if low is not None and high is not None:
        lines.append(f"At the prices given: {low:,.2f} to {high:,.2f}.")
    each = 4 * max(s.source.n_layers * s.source.d_ff for s in plan.subjects)
    responses = len(plan.prompts) * settings.sampling.samples
    at_once = len(plan.subjects) if settings.adaptive else 1
    lines.append(
        f"While it runs, recordings take up to {outlook.size(each * responses * at_once)} more "
        f"beside the evidence; they go when {'it ends' if settings.adaptive else 'each is scored'}."
    )
    virtual = next((s for s in plan.subjects if s.checkpoint is None and s.family), None)
    if virtual is not None and virtual.family is not None:
        family = virtual.family
        size = candidate_files.candidate_bytes(family.endpoints[0], family.dtype)
        lines.append(f"`best` is written out where it is virtual: {outlook.size(size)}.")
    if settings.keep_activations:
        lines.append(
            "Recordings that are kept (--keep-activations) come on top; see docs/scale.md."
        )
    return lines
