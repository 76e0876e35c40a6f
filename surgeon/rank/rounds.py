"""Rounds over prompts: candidates that can't be the best any more stop answering (`--adaptive`).

A round asks the candidates that are left some more prompts. Then it bounds from above how far each
would be ahead of the leader once all prompts are asked: by the bootstrap over prompts, in which all
see the same prompts, for all candidates and rounds together. The prompts that were asked are among
those, so only the others are uncertain. Who can't be ahead by more than the tolerance stops. It
goes on until one is left, all prompts are asked, or the budget ends.

Votes need voters: where fewer than `JURY` candidates are left, those that stopped last go on
answering, but can't be chosen any more.
"""

# Shape letters: B resamples, C candidates.

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from surgeon import artifact
from surgeon.rank.candidates import score_candidates
from surgeon.rank.conclusion import best_first, values
from surgeon.rank.plan import RankPlan, shuffled, tolerance
from surgeon.rank.reduced import (
    candidate_dir,
    credited_if_active,
    forget_reduced,
    load_reduced,
    read_resamples,
    reduced_file,
    write_resamples,
)
from surgeon.rank.scores import Pool, Score
from surgeon.ranking import CandidateScores, Round, Rounds
from surgeon.traces import in_order

FIRST, LEAST, GROWTH = 0.05, 5, 1.5
"""The first round asks that share of the prompts, and at least `LEAST`; every other one asks
`GROWTH` times as many as those before it together."""
LEVEL = 0.05
"""Chance that a candidate is dropped that will be ahead by more than the tolerance, in all
rounds."""
JURY = 3
"""Fewest candidates that answer. Two always match each other equally often, so that their votes
alone never tell them apart, however many prompts are asked."""
ROUNDS = "rounds.json"
UNSEEN = 1 / 3
"""Where few prompts were asked, candidates may never have differed: one prompt more counts, with
that difference (one of three samples)."""


class Race(NamedTuple):
    """What is compared, and when it ends."""

    scores: Mapping[str, Score]
    select: str
    tolerance: float
    """In units of the score."""
    budget: int | None
    """Most tokens of all responses together; None: no limit."""
    seed: int


def sizes(prompts: int) -> list[int]:
    """How many prompts have been asked after each round."""
    found, size = [], max(LEAST, math.ceil(FIRST * prompts))
    while size < prompts:
        found.append(size)
        size = math.ceil(GROWTH * size)
    return [*found, prompts]


def run(
    race: Race,
    names: Sequence[str],
    prompt_ids: Sequence[str],
    ask: Callable[[Sequence[str], Sequence[str]], Pool],
    done: Sequence[Round] = (),
) -> Iterator[Round]:
    """Yield each round once it is decided; `done` are those of a run that was interrupted.

    `prompt_ids` are asked in their order. `ask(candidates, prompts)` has the candidates answer the
    prompts (all from the first on) and returns the responses of everybody so far.
    """
    planned, rounds = sizes(len(prompt_ids)), list(done)
    while not over(race, planned, rounds):
        answering = answering_next(names, rounds)
        size = affordable(race, planned, rounds, len(answering))
        pool = ask(answering, prompt_ids[:size])
        left = left_after(names, rounds)
        leader, dropped = decide(race, pool, left, planned)
        tokens = sum(r.tokens for r in pool.everything())
        rounds.append(
            Round(
                prompts=size, answering=tuple(answering), leader=leader, dropped=dropped,
                tokens=tokens, stopped="",
            )
        )  # fmt: skip
        why = over(race, planned, rounds)
        following = len(answering_next(names, rounds))
        if not why and affordable(race, planned, rounds, following) <= size:
            why = "the budget ended"
        rounds[-1] = replace(rounds[-1], stopped=why)  # pyright: ignore
        yield rounds[-1]


def left_after(names: Sequence[str], rounds: Sequence[Round]) -> list[str]:
    """The candidates that can still be chosen."""
    gone = {name for done in rounds for name in done.dropped}
    return [name for name in names if name not in gone]


def answering_next(names: Sequence[str], rounds: Sequence[Round]) -> list[str]:
    """Who answers in the next round: those that are left, and the jury."""
    left = left_after(names, rounds)
    # Within a round, who could have been furthest ahead stays longest.
    gone = [
        name
        for done in reversed(rounds)
        for name in sorted(done.dropped, key=lambda name: -done.dropped[name])
    ]
    chosen = {*left, *gone[: max(0, JURY - len(left))]}
    return [name for name in names if name in chosen]


def over(race: Race, planned: Sequence[int], rounds: Sequence[Round]) -> str:
    """Why no round follows; empty where one does."""
    if not rounds:
        return ""
    last = rounds[-1]
    if last.stopped:
        return last.stopped
    if len(last.dropped) and _left(rounds) == 1:
        return "one candidate is left"
    if last.prompts >= planned[-1]:
        return "all prompts are asked"
    return ""


def _left(rounds: Sequence[Round]) -> int:
    return len(rounds[0].answering) - sum(len(done.dropped) for done in rounds)


def affordable(race: Race, planned: Sequence[int], rounds: Sequence[Round], answering: int) -> int:
    """How many prompts will have been asked after the next round: as planned, or as many as the
    budget allows by the tokens so far."""
    if not rounds:
        return planned[0]
    last = rounds[-1]
    size = min((n for n in planned if n > last.prompts), default=last.prompts)
    if race.budget is None:
        return size
    asked = before = 0
    for done in rounds:
        asked += (done.prompts - before) * len(done.answering)
        before = done.prompts
    each = last.tokens / max(1, asked)
    more = math.floor((race.budget - last.tokens) / max(1e-9, each * answering))
    return min(size, last.prompts + max(0, more))


def decide(
    race: Race, pool: Pool, left: Sequence[str], planned: Sequence[int]
) -> tuple[str | None, dict[str, float]]:
    """(the leader of those left, the candidates to drop with the most that each may be ahead of it
    on any prompts of the kind); nobody is dropped where the score has no value.

    Dropped is who can't be ahead once all prompts of the mini-set are asked. After the last round
    nothing is to come, and who is dropped can't be ahead on other prompts of the kind.
    """
    names = list(pool.responses)
    point_C, drawn_BC, _ = values(race.scores, pool, race.seed)
    member_C = [names.index(name) for name in left]
    point_C, drawn_BC = point_C[race.select][member_C], drawn_BC[race.select][:, member_C]
    first = best_first(point_C)[0]
    if math.isnan(point_C[first]):
        return None, {}
    asked, whole = len(pool.prompt_ids), planned[-1]
    to_come = 1 - asked / whole if asked < whole else 1.0
    gap_C = point_C - point_C[first]
    ahead_C = most_ahead(point_C, drawn_BC, first, asked, LEVEL / len(planned))
    # The correction for a finite population: those asked are among those that will be.
    at_end_C = gap_C + math.sqrt(to_come) * (ahead_C - gap_C)
    # nan (no value yet) is not below anything.
    dropped = {
        left[c]: float(ahead_C[c])
        for c in range(len(left))
        if c != first and at_end_C[c] < race.tolerance
    }
    return left[first], dropped


def most_ahead(
    point_C: np.ndarray, drawn_BC: np.ndarray, first: int, prompts: int, level: float
) -> np.ndarray:
    """float64_C: the upper ends of how far each candidate is ahead of candidate `first`, which hold
    for all together except with chance `level`."""
    gap_C = point_C - point_C[first]
    deviation_BC = np.nan_to_num(drawn_BC - drawn_BC[:, [first]] - gap_C)
    # The bootstrap's spread of few prompts is too small by just that.
    variance_C = (deviation_BC**2).mean(0) * prompts / max(1, prompts - 1)
    spread_C = np.sqrt(variance_C + (UNSEEN / prompts) ** 2)
    worst_B = np.max(-deviation_BC / spread_C, axis=1, initial=0.0)
    # Where resamples never differ the bootstrap has no quantile of its own.
    least = NormalDist().inv_cdf(1 - level)
    return gap_C + max(float(np.quantile(worst_B, 1 - level)), least) * spread_C


# ---------------------------------------------------------------- with models


def score_in_rounds(plan: RankPlan, work: Path) -> list[Round]:
    """Have the candidates answer and score them, round after round; returns the rounds."""
    done = list(rounds_of(work))
    by_id, by_name = {p.id: p for p in plan.prompts}, {s.name: s for s in plan.subjects}

    def ask(names: Sequence[str], prompt_ids: Sequence[str]) -> Pool:
        prompts = [by_id[prompt_id] for prompt_id in prompt_ids]
        subjects = [by_name[name] for name in names]
        traces = plan.traces and {
            name: in_order([t for t in plan.traces[name] if t.prompt_id in prompt_ids], prompts)
            for name in names
        }
        # What is kept of a candidate is its share of what all may keep.
        share = plan.settings.evidence_mb * len(subjects) / len(plan.subjects)
        settings = replace(plan.settings, evidence_mb=share)
        now = plan._replace(settings=settings, prompts=prompts, subjects=subjects, traces=traces)
        score_candidates(now, work)
        return pool_of(plan, work, prompt_ids)

    settings = plan.settings
    race = Race(
        plan.scores, settings.select, tolerance(settings) / 100, settings.budget, settings.seed
    )
    order = shuffled(list(by_id), settings.seed)
    for found in run(race, list(by_name), order, ask, done):
        done.append(found)
        artifact.write(work, Rounds(rounds=tuple(done)))
    last = [by_id[prompt_id] for prompt_id in order[: done[-1].prompts]]
    for subject in plan.subjects:
        resample_again(plan._replace(prompts=last), candidate_dir(work, subject))
        forget_reduced(candidate_dir(work, subject))
    return done


def resample_again(plan: RankPlan, directory: Path) -> None:
    """Resample a candidate's NEX with all prompts that were asked of anybody: who stopped early was
    resampled with its own, which can't be paired with the others'."""
    if not (directory / "responses").is_dir():
        return
    responses = artifact.read(CandidateScores, directory).responses
    if len({r.prompt_id for r in responses}) < len(plan.prompts):
        files = [reduced_file(directory / "responses", n) for n in range(len(responses))]
        reduced = list(map(load_reduced, files))
        active = credited_if_active(plan, directory, reduced)
        write_resamples(plan, directory, [r.prompt_id for r in responses], reduced, active)


def rounds_of(work: Path) -> tuple[Round, ...]:
    """The rounds that a directory has the decisions of."""
    there = (work / ROUNDS).is_file()
    return artifact.read(Rounds, work).rounds if there else ()


def pool_of(plan: RankPlan, work: Path, prompt_ids: Sequence[str]) -> Pool:
    """The responses of all candidates to these prompts, as they are on disk."""
    stored = {s.name: artifact.read(CandidateScores, candidate_dir(work, s)) for s in plan.subjects}
    digests = {subject.name: subject.digest for subject in plan.subjects}
    responses = {name: scores.responses for name, scores in stored.items()}
    # Resamples of who stopped earlier are of fewer prompts: nobody is compared with it any more.
    relearned = {
        s.name: read_resamples(candidate_dir(work, s))
        if {r.prompt_id for r in responses[s.name]} == set(prompt_ids)
        else {}
        for s in plan.subjects
    }
    return Pool(list(prompt_ids), responses, plan.readings, digests, relearned)
