"""Whether s(x) of Neuron-OPSD tells which responses of a ranking the others' vote agrees with.

Without labels: a response's rightness is the share of the other candidates' answers to its prompt
that it agrees with, each candidate one vote; of a single candidate, of its own other answers.
"""

from pathlib import Path

from surgeon import artifact
from surgeon.consensus import Reliability, reliability, require_budget, sentence, sizes
from surgeon.errors import BadInput
from surgeon.live import support
from surgeon.live.families import live
from surgeon.rank.plan import RankPlan
from surgeon.ranking import CandidateScores, RankedResponse, Ranking
from surgeon.scoring.voting import agreement, places_of, pooled, votes_of
from surgeon.settings.nopsd import NopsdReadings
from surgeon.settings.rank import RankSettings
from surgeon.traces import stored_traces


@artifact.artifact("consensus.json")
class PooledConsensus:
    """What s(x) says of the responses of every candidate, against the vote."""

    top: float
    """Neurons kept per token; below 1 a share of all."""
    candidates: dict[str, Reliability]
    out: artifact.Out = Path()
    already: artifact.Already = False


def require_signal(plan: RankPlan) -> None:
    """Raise `BadInput` where s(x) can't be read."""
    if not plan.settings.consensus:
        return
    if plan.caches:
        raise BadInput("found consensus with nex_cache, expected checkpoints: a model reads s(x).")
    for subject in plan.subjects:
        support.require("distill", subject.source)
        require_budget(subject.source, readings_of(plan.settings), "consensus_top")


def readings_of(settings: RankSettings) -> NopsdReadings:
    """How contribution sets are formed."""
    return NopsdReadings(top_global=settings.consensus_top)


def write_signal(plan: RankPlan, ranking: Ranking) -> None:
    """Read s(x) of every response (`candidates/NAME/consensus.jsonl`) and write consensus.json,
    unless it is there."""
    out = plan.settings.out
    file = out / PooledConsensus.FILE  # pyright: ignore[reportAttributeAccessIssue]
    if file.is_file() and artifact.read(PooledConsensus, out).top == plan.settings.consensus_top:
        return
    names = [candidate.name for candidate in ranking.candidates]
    kept = {
        name: artifact.read(CandidateScores, out / "candidates" / name).responses for name in names
    }
    right = rightness(kept)
    found = {}
    for n, (subject, model, _) in enumerate(live(plan.subjects, *plan.placement), 1):
        place = out / "candidates" / subject.name
        stored = stored_traces(place / "traces.jsonl")
        traces = {trace.key: trace for trace in stored}
        read = [traces[r.prompt_id, r.sample] for r in kept[subject.name]]
        what = f"consensus {n}/{len(plan.subjects)} {subject.name}"
        size = sizes(model, read, readings_of(plan.settings), place / "consensus.jsonl", what=what)
        found[subject.name] = reliability(
            [size[trace.key] for trace in read],
            [len(trace.token_ids) for trace in read],
            right[subject.name],
            [trace.prompt_id for trace in read],
            against="votes",
            seed=plan.settings.seed,
        )
    artifact.write(out, PooledConsensus(top=plan.settings.consensus_top, candidates=found))


def signal_lines(out: Path) -> list[str]:
    """What s(x) says, a line for each candidate; none where nobody asked."""
    if not (out / PooledConsensus.FILE).is_file():  # pyright: ignore[reportAttributeAccessIssue]
        return []
    found = artifact.read(PooledConsensus, out).candidates
    return [f"consensus of {name}: {sentence(measured)}" for name, measured in found.items()]


def rightness(kept: dict[str, tuple[RankedResponse, ...]]) -> dict[str, list[float]]:
    """Candidate -> of each response the share of the others' vote; 0 where none can be read."""
    every = [(name, response) for name, responses in kept.items() for response in responses]
    prompts = [response.prompt_id for _, response in every]
    votes = votes_of([response.answer for _, response in every], prompts)
    share = [0.0] * len(every)
    for places in places_of(prompts).values():
        if len(kept) == 1:
            told = agreement(votes, places)
        else:
            shares = pooled([votes[n] for n in places], [every[n][0] for n in places])
            told = {n: s for n, s in zip(places, shares, strict=True) if s is not None}
        for n, one in told.items():
            share[n] = one
    found: dict[str, list[float]] = {name: [] for name in kept}
    for (name, _), one in zip(every, share, strict=True):
        found[name].append(one)
    return found
