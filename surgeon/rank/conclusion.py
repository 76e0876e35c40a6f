"""All candidates of a ranking together: scores, intervals, warnings, headline, `best`, report."""

# Shape letters: P prompts, C candidates, B resamples, J groups of prompts that are left out.

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import artifact, estimate, evidence_file, lineage, metrics, nex, report, store
from surgeon.checkpoint import link_directory
from surgeon.families import Subject, write_out
from surgeon.rank import known
from surgeon.rank.candidates import with_rows
from surgeon.rank.curve import curve
from surgeon.rank.exploration import inverted_u
from surgeon.rank.plan import RankPlan, shuffled, tolerance
from surgeon.rank.recording import fitting, recorded
from surgeon.rank.reduced import TRACES, candidate_dir, cross_fitted, read_resamples
from surgeon.rank.scores import RECOMMENDED, Pool, Resamples, Score, informs, measures, nines, ratio
from surgeon.rank.sensitivity import sensitivity
from surgeon.ranking import (
    BenchmarkQuality,
    CandidateScores,
    MiniSet,
    RankedCandidate,
    RankedResponse,
    Ranking,
    Recommendation,
    Round,
    SelectionQuality,
)
from surgeon.report.words import grouped, times
from surgeon.settings.rank import RankSettings
from surgeon.traces import read_traces, token_texts
from surgeon.truth import EVALUATION, Evaluation, benchmark_sources

SPARSE_EVIDENCE = 0.2
"""Share of responses without weighted mass above which a ranking rests on a zero/non-zero step."""
SATURATED_ABOVE, SATURATED_RANGE = 0.95, 0.02
"""The better half is saturated when it starts above the first and spans less than the second."""
LOW_SHARE, MOST_SPLIT, CAMPS, SURER, MOST_READABLE, FEW_VOICES = 0.3, 0.5, 0.1, 0.4, 0.8, 0.7
"""Where the signs of `surgeon.estimate.signs` become warnings. In simulated families of 4 and more
whose errors are independent the share was .31 and more; where nobody is right more often than one
time in ten, .28 and less (benchmarks/estimate.py). Voices were 94 % and more on recorded families
of three samples a prompt, 37 to 67 % on one sample of each (benchmarks/relatives.py)."""


def conclude(plan: RankPlan, work: Path, rounds: Sequence[Round] = ()) -> Ranking:
    """Rank the candidates by their stored scores; write report.html and the link `best`."""
    plan = with_rows(plan, work)
    stored = {s.name: artifact.read(CandidateScores, candidate_dir(work, s)) for s in plan.subjects}
    pool = Pool(
        asked(plan, rounds),
        {name: scores.responses for name, scores in stored.items()},
        plan.readings,
        {subject.name: subject.digest for subject in plan.subjects},
        {s.name: relearned(plan, candidate_dir(work, s)) for s in plan.subjects},
    )
    settings = plan.settings
    candidates = describe(plan, pool, rounds)
    left = [c for c in candidates if c.dropped_after is None]
    # Who stopped early was chosen against by the selected score, not by the others.
    favourites = {
        name: favourite(left if name in (settings.select, "recommended") else candidates, name)
        for name in plan.scores
    }
    doubts = unsure_of_nex(pool.everything(), candidates)
    pick = candidates[0].name if favourites[settings.select] is not None else None
    advice = recommendation(candidates, favourites)
    checked = known.check(settings, plan.prompts, pool)
    ranking = Ranking(
        mini_set=MiniSet(
            path=settings.mini_set or str(settings.nex_cache),
            prompts=len(plan.prompts),
            digest=plan.inputs["mini set"],
        ),
        settings=lineage.plain(
            {**plan.run.arguments, **recorded(settings.scoring, plan.row_tokens, plan.top_k)}
        ),
        select=settings.select,
        truth=settings.truth,
        panels=settings.panels,
        last_stage=plan.last_stage,
        favourites=favourites,
        pick=pick,
        recommendation=advice,
        known=checked,
        headline=(
            *headline(candidates, settings.select, pick, advice, doubted=bool(doubts)),
            *rounds_lines(plan, candidates, rounds),
        ),
        warnings=(
            *warnings(settings, pool, candidates, plan.row_tokens),
            *not_cross_fitted(plan, work),
            *([known.in_words(checked)] if checked is not None and checked.misled else []),
        ),
        candidates=candidates,
        rounds=tuple(rounds),
        selection_quality=(
            selection_quality(plan, candidates, plan.accuracy) if plan.accuracy else None
        ),
        benchmarks=by_benchmark(plan, candidates),
        inverted_u=inverted_u(candidates, settings.seed),
        sensitivity=sensitivity(plan, work) if settings.sensitivity else None,
        curve=curve(plan, work, pool) if settings.curve is not None else None,
        out=work,
    )
    link_best(plan, work, pick)
    write_report(plan, work, ranking, stored[ranking.best.name])
    return ranking


def asked(plan: RankPlan, rounds: Sequence[Round]) -> list[str]:
    """The prompts, in the order in which resamples of them were drawn: with rounds, as asked."""
    prompt_ids = [prompt.id for prompt in plan.prompts]
    return shuffled(prompt_ids, plan.settings.seed)[: rounds[-1].prompts] if rounds else prompt_ids


# ---------------------------------------------------------------- numbers


def relearned(plan: RankPlan, directory: Path) -> dict[str, Resamples]:
    """A candidate's resamples by score, those of NEX cross-fitted where that is asked for."""
    found = read_resamples(directory)
    if plan.settings.cross_fit and "nex" in found and (directory / evidence_file.FILE).is_file():
        found["nex"] = cross_fitted(plan, directory)
    return found


def not_cross_fitted(plan: RankPlan, work: Path) -> list[str]:
    """Whose intervals couldn't be cross-fitted, in a sentence; nothing where none was asked for."""
    directories = {s.name: candidate_dir(work, s) for s in plan.subjects}
    names = [n for n, d in directories.items() if not (d / evidence_file.FILE).is_file()]
    if not plan.settings.cross_fit or not names:
        return []
    return [
        f"The NEX intervals of {', '.join(names)} are not cross-fitted: their evidence was not "
        "kept. Rank again into another --out with a larger --evidence-mb (--traces takes the old "
        "ranking, so that nothing is sampled again)."
    ]


def describe(
    plan: RankPlan, pool: Pool, rounds: Sequence[Round] = ()
) -> tuple[RankedCandidate, ...]:
    """The candidates, best first by the selected score; those that stopped early come after those
    that went on, and unscored ones last.

    Means are ratios of sums over prompts, and prompts are what is resampled (95 % intervals).
    """
    dropped = {name: (done.prompts, most) for done in rounds for name, most in done.dropped.items()}
    point_C, drawn_BC, left_JC = values(plan.scores, pool, plan.settings.seed)
    interval_C2 = intervals(plan.scores, pool, point_C, drawn_BC, left_JC)
    select = plan.settings.select
    order = best_first(point_C[select])
    order.sort(key=lambda c: -dropped.get(plan.subjects[c].name, (math.inf, 0))[0])
    left_C = [c for c in order if plan.subjects[c].name not in dropped]
    inside_C = metrics.may_be_best(point_C[select][left_C], drawn_BC[select][:, left_C])
    # One prompt says nothing of another.
    equal = {c for c, inside in zip(left_C, inside_C, strict=True) if inside}
    equal |= set(left_C) if len(pool.prompt_ids) < 2 else set()
    equal |= {c for c in order if dropped.get(plan.subjects[c].name, (0, -1))[1] >= 0}
    candidates = []
    for place, c in enumerate(order):
        subject = plan.subjects[c]
        rows = pool.responses[subject.name]
        candidates.append(
            RankedCandidate(
                checkpoint=subject.spec,
                name=subject.name,
                ratio=subject.ratio,
                method=method(subject),
                run=subject.run,
                step=subject.step,
                digest=subject.digest,
                rank=place + 1,
                scores={name: or_none(point_C[name][c]) for name in plan.scores},
                interval={
                    name: (or_none(interval_C2[name][c, 0]), or_none(interval_C2[name][c, 1]))
                    for name in plan.scores
                },
                not_told_apart_from_best=place == 0 or c in equal,
                dropped_after=dropped.get(subject.name, (None, 0))[0],
                responses=len(rows),
                truncated=sum(not r.finished for r in rows),
                tokens=sum(r.tokens for r in rows),
                cycles=float(np.mean([r.cycles for r in rows])),
                gated_cycles=float(np.mean([r.gated for r in rows])),
                without_evidence=sum(not r.credible for r in rows),
                kept_mass=float(np.mean([r.kept_mass for r in rows])),
                faint=mean(r.faint for r in rows),
                saturation=or_none(nex.saturation(float(point_C["nex"][c]))),
                reward=mean(r.reward for r in rows),
                bad=mean(r.bad for r in rows),
                accuracy=plan.accuracy.get(subject.name),
            )
        )
    return tuple(candidates)


class ScoreValues(NamedTuple):
    """By score, the candidates' values."""

    point_C: dict[str, np.ndarray]
    drawn_BC: dict[str, np.ndarray]
    """In every resample of the prompts."""
    left_JC: dict[str, np.ndarray]
    """Without each group of prompts."""


def values(scores: Mapping[str, Score], pool: Pool, seed: int) -> ScoreValues:
    """The values of the scores, of their resamples, and of all but one group of prompts."""
    sums_PC2 = {name: s(name, pool) for name, s in scores.items() if s.combined is None}
    point_C = {name: ratio(sums.sum(0)) for name, sums in sums_PC2.items()}
    # Every score and candidate sees the same resampled prompts, so differences are paired.
    drawn_BC = {
        name: ratio(metrics.resampled_means(sums, seed=seed)) for name, sums in sums_PC2.items()
    }
    left_JC = {name: ratio(metrics.left_out_means(sums)) for name, sums in sums_PC2.items()}
    for c, by_score in enumerate(pool.relearned.values()):
        for name, (value_B, left_J) in by_score.items():
            drawn_BC[name][:, c] = value_B
            left_JC[name][:, c] = math.nan if left_J is None else left_J
    found = ScoreValues(point_C, drawn_BC, left_JC)
    for name, score in scores.items():
        if score.combined is not None:
            for of in found:
                of[name] = score.combined(of)
    return found


def intervals(
    scores: Mapping[str, Score],
    pool: Pool,
    point_C: Mapping[str, np.ndarray],
    drawn_BC: Mapping[str, np.ndarray],
    left_JC: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """By score, the ends of the candidates' 95 % intervals, float64_C2."""
    found = {
        name: metrics.percentile_interval(drawn_BC[name]) if s.ends is None
        else s.ends(pool, drawn_BC[name])
        for name, s in scores.items()
    }  # fmt: skip
    for name, learned in {"nex": "nex", "recommended": "nex", "nex_active": "nex_active"}.items():
        relearned_C = np.array([learned in values for values in pool.relearned.values()], bool)
        if relearned_C.any():
            ends_C2 = metrics.corrected_interval(point_C[name], drawn_BC[name], left_JC[name])
            found[name] = np.where(relearned_C[:, None], ends_C2, found[name])
    rounding_C = resting_on_rounding(pool)
    if "nex" in found:
        found["nex"] = metrics.widened(found["nex"], rounding_C)
    if "recommended" in found and np.nansum(point_C["nex"]) > 0:
        estimate_C = point_C["estimate"]
        most_C = estimate_C if np.nansum(estimate_C) > 0 else np.ones_like(estimate_C)
        found["recommended"] = metrics.widened(
            found["recommended"], rounding_C * np.nan_to_num(most_C)
        )
    if any("nex" in values for values in pool.relearned.values()):
        found["saturation"] = nines(found)
    return found


def resting_on_rounding(pool: Pool) -> np.ndarray:
    """float64_C in [0, 1]: the share of each candidate's weighted mass that counts for weights made
    of rounding (R18), which might as well be of the other sign; 0 where weights are given."""
    return np.array([mean(r.faint for r in rows) or 0.0 for rows in pool.responses.values()])


def or_none(value: float) -> float | None:
    """None for nan: in an artifact a value that isn't there is null."""
    return float(value) if math.isfinite(value) else None


def mean(values: Iterable[float]) -> float | None:
    """Of the values that are there."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else None


def method(subject: Subject) -> str | None:
    """The merge method of a candidate; None for an endpoint, which belongs to every method."""
    merge = subject.candidate.merge if subject.candidate else {}
    return merge.get("merge_method")


def best_first(point_C: np.ndarray) -> list[int]:
    """Candidate indices, highest score first; nan last, ties in the order given."""
    return sorted(range(len(point_C)), key=lambda c: (np.isnan(point_C[c]), -point_C[c], c))


def favourite(candidates: Iterable[RankedCandidate], score: str) -> str | None:
    """The first candidate with the highest value of a score; None where no candidate has a value,
    or all of several have the same: that tells nobody apart."""
    scored = {c.name: math.nan if (v := c.scores[score]) is None else v for c in candidates}
    if not informs(np.array(list(scored.values()), float)):
        return None
    return max(scored, key=lambda name: (not math.isnan(scored[name]), scored[name]))


def tied(candidates: Sequence[RankedCandidate], score: str) -> list[str]:
    """The candidates that share the highest value of a score, in their order."""
    there = [value for c in candidates if (value := c.scores[score]) is not None]
    return [c.name for c in candidates if there and c.scores[score] == max(there)]


def recommendation(
    candidates: Sequence[RankedCandidate], favourites: Mapping[str, str | None]
) -> Recommendation | None:
    """What NEX and the votes choose; None where they tell nobody apart."""
    name = favourites["recommended"]
    if name is None:
        return None
    best = next(c for c in candidates if c.name == name)
    used = [
        score for score in RECOMMENDED
        if any(value > 0 for c in candidates if (value := c.scores[score]) is not None)
    ]  # fmt: skip
    return Recommendation(
        name=name,
        why=" x ".join(used),
        estimate=best.scores["estimate"],
        interval=best.interval["estimate"],
        tokens=best.tokens / max(1, best.responses),
        nex_alone=favourites["nex"],
    )


def by_benchmark(
    plan: RankPlan, candidates: Sequence[RankedCandidate]
) -> dict[str, BenchmarkQuality]:
    """The scores against each benchmark that the truth names."""
    sources = benchmark_sources(plan.settings.truth or "")
    return {
        name: BenchmarkQuality(
            truth=sources[name],
            accuracy=accuracy,
            selection_quality=selection_quality(plan, candidates, accuracy),
        )
        for name, accuracy in plan.benchmarks.items()
    }


def selection_quality(
    plan: RankPlan, candidates: Sequence[RankedCandidate], accuracy: Mapping[str, float]
) -> dict[str, SelectionQuality]:
    """By score, how well it would have chosen; nothing where it tells nobody apart."""
    quality = {}
    for name in plan.scores:
        values = {c.name: math.nan if (v := c.scores[name]) is None else v for c in candidates}
        if len(values) > 1 and not informs(np.array(list(values.values()))):
            values = dict.fromkeys(values, math.nan)
        by_measure = metrics.selection_quality(values, accuracy)
        quality[name] = SelectionQuality(
            **{key: or_none(value) for key, value in by_measure.items()}
        )
    return quality


# ---------------------------------------------------------------- words


def warnings(
    settings: RankSettings,
    pool: Pool,
    candidates: Sequence[RankedCandidate],
    row_tokens: int,
) -> tuple[str, ...]:
    """Plain sentences about what the ranking rests on; empty when nothing is amiss."""
    everything = pool.everything()
    lines = [*held(settings, pool), *rows_too_long(everything, row_tokens)]
    if settings.select in ("nex", "recommended"):
        lines += unsure_of_nex(everything, candidates)
    if len(candidates) > 1 and settings.select in ("estimate", "recommended", "dawid_skene"):
        lines += unsure_of_votes(estimate.signs(pool.answers()))
    if settings.nex_cache:
        lines.append(
            "Read from caches: what share of the activation mass they keep isn't known (it is "
            "shown as 100%), and there are no entropies and log-probabilities."
        )
    truncated = np.mean([not r.finished for r in everything])
    if truncated > SPARSE_EVIDENCE:
        lines.append(
            f"{truncated:.0%} of the responses were cut at {settings.sampling.end}: their scores "
            "describe unfinished traces."
        )
    return tuple(lines)


def held(settings: RankSettings, pool: Pool) -> list[str]:
    """Whether NEX's intervals hold the weights as they were learned, though they are its own."""
    names = [name for name, found in pool.relearned.items() if "nex" not in found]
    if not names or settings.weights is not None:
        return []
    whose = "all candidates" if len(names) == len(pool.responses) else ", ".join(names)
    return [
        f"The NEX intervals of {whose} hold the neuron weights as they were learned and are too "
        "narrow (7% to 22% held the score where 95% should): this ranking is of a version that "
        "didn't learn them anew in every resample. Rank again into another --out (with --traces "
        "and this ranking nothing is sampled again)."
    ]


def rows_too_long(responses: Sequence[RankedResponse], row_tokens: int) -> list[str]:
    """What rows would fit, where most responses have too few cycles to learn from."""
    poor = np.mean([r.gated < 2 for r in responses])
    tokens = float(np.median([r.tokens for r in responses]))
    fits = fitting(tokens)
    if poor <= 0.5 or fits >= row_tokens:
        return []
    return [
        f"Rows of {row_tokens} tokens are too long for these traces: {poor:.0%} of the "
        "responses have fewer than two counted cycles, and one cycle teaches nothing (Eq. 6). "
        f"The median response has {tokens:.0f} tokens; row_tokens={fits} would fit."
    ]


def unsure_of_nex(
    responses: Sequence[RankedResponse], candidates: Sequence[RankedCandidate]
) -> list[str]:
    """Where NEX says little: it separates nothing from something, or its best are all near 1."""
    lines = []
    without = np.mean([not r.credible for r in responses])
    empty = [c.name for c in candidates if c.without_evidence == c.responses]
    if without > SPARSE_EVIDENCE or empty:
        tail = f" {len(empty)} candidates have none at all." if empty else ""
        lines.append(
            f"The NEX ranking rests on a zero/non-zero step: {without:.0%} of the responses carry "
            f"no weighted mass and score 0.{tail} Read the differences with that in mind."
        )
    values = sorted((v for c in candidates if (v := c.scores["nex"]) is not None), reverse=True)
    better = values[: max(2, len(candidates) // 2)]
    if (
        len(better) > 1 and better[-1] > SATURATED_ABOVE
        and better[0] - better[-1] < SATURATED_RANGE
    ):  # fmt: skip
        lines.append(
            f"NEX is saturated: the better half lies between {better[-1]:.3f} and {better[0]:.3f}. "
            "It tells weak candidates from good ones here, not the good ones from each other."
        )
    return lines


def unsure_of_votes(signs: estimate.Signs) -> list[str]:
    """Where the votes say little of accuracies; nan (no votes at all) says nothing."""
    lines = []
    if 0 < signs.share < LOW_SHARE:
        lines.append(
            f"The answers are scattered: the most frequent one has {signs.share:.0%} of a prompt's "
            "votes on average. The estimated accuracies say little, and are likely too high."
        )
    elif signs.split >= MOST_SPLIT:
        lines.append(
            f"The votes are split: on {signs.split:.0%} of the prompts a second answer has at "
            "least half as many votes as the first. The estimated accuracies are unsure."
        )
    if signs.camps >= CAMPS:
        lines.append(
            f"Two camps: on {signs.camps:.0%} of the prompts several candidates always give one "
            "answer and several always another. The larger camp need not be right."
        )
    if signs.certainty - signs.agreement > SURER:
        lines.append(
            f"Together the votes are {signs.certainty:.0%} sure, yet no candidate agrees with "
            f"itself on more than {signs.agreement:.0%} of its samples: errors may be shared, and "
            "the estimated accuracies too high."
        )
    if signs.voices < FEW_VOICES:
        lines.append(
            f"The candidates err alike: they count as {signs.voices:.0%} as many independent "
            "voters. With one sample a prompt they also share the luck of the seed. The order is "
            "unsure and the estimated accuracies may be too high: take more samples a prompt."
        )
    if signs.readable < MOST_READABLE:
        lines.append(
            f"{1 - signs.readable:.0%} of the responses have no answer that can be read (truncated "
            "ones included); they count as wrong in the estimated accuracies."
        )
    return lines


def headline(
    candidates: Sequence[RankedCandidate],
    select: str,
    pick: str | None,
    advice: Recommendation | None,
    *,
    doubted: bool = False,
) -> tuple[str, ...]:
    """The first lines of a ranking: the recommendation, then the best by `select` and its equals.

    `doubted` says that NEX tells little here: then nobody is called told apart.
    """
    lines = recommended_lines(advice, select) if len(candidates) > 1 else []
    if pick is None:
        shown = {value for c in candidates if (value := c.scores[select]) is not None}
        found = f"all {len(candidates)} candidates have {shown.pop():.4g}" if shown else "no value"
        return (*lines, f"No best by {select}: {found}. It tells nobody apart.")
    value = candidates[0].scores[select]
    text = "no evidence" if value is None else f"{value:.4g}"
    if len(candidates) == 1:
        return (f"The only candidate: {pick} ({select} {text}).",)
    equal, first = [c.name for c in candidates[1:] if c.not_told_apart_from_best], [pick]
    if len(ties := tied(candidates, select)) > 1:
        first = ties
    others = [name for name in equal if name not in first]
    line = f"Best by {select}: {', '.join(first)} ({text})"
    if len(first) > 1:
        line += f"; they tie, and `best` is {pick}"
    if others:
        line += f"; not told apart from it: {', '.join(others)}"
    elif len(first) == 1 and not (doubted and select in ("nex", "recommended")):
        line += "; told apart from all others"
    return (*lines, f"{line}.")


def recommended_lines(advice: Recommendation | None, select: str) -> list[str]:
    """What a user is advised to take, why, and whether NEX alone says the same."""
    if advice is None:
        return []
    low, high = advice.interval
    tokens = f"{advice.tokens:.0f} tokens per answer"
    if advice.why == "nex":
        why = "no answers could be read and compared"
        if advice.estimate is not None:
            why = "no candidate's answers agree with the others'"
        return [
            f"Recommended: {advice.name}, {tokens}, by NEX alone: {why}, so its accuracy is "
            "unknown."
        ]
    if low is None or high is None or advice.estimate is None:
        about = "accuracy unknown"
    else:
        about = f"estimated accuracy {advice.estimate:.2f} (95%: {low:.2f} to {high:.2f})"
    if advice.nex_alone is None:
        alone = "NEX tells nobody apart here, so the votes alone chose"
    elif advice.nex_alone == advice.name:
        alone = "NEX alone would have picked it too"
    else:
        alone = f"NEX alone would have picked {advice.nex_alone}, and they disagree"
    return [f"Recommended: {advice.name}, {about}, {tokens}. {alone}."]


def rounds_lines(
    plan: RankPlan, candidates: Sequence[RankedCandidate], rounds: Sequence[Round]
) -> list[str]:
    """What stopping early saved, and who stopped; nothing where nobody could stop."""
    if not rounds:
        return []
    last, left = rounds[-1], sum(c.dropped_after is None for c in candidates)
    samples = plan.settings.sampling.samples
    # As long as their answers so far.
    whole = sum(c.tokens / max(1, c.responses) for c in candidates) * len(plan.prompts) * samples
    kept = "" if left == 1 else f", {left} candidates are left"
    return [
        f"{last.stopped.capitalize()}{kept}: {times(len(rounds), 'round')}, {last.prompts} of "
        f"{len(plan.prompts)} prompts, {grouped(last.tokens)} tokens; all prompts to all "
        f"candidates would take about {grouped(round(whole))}. Who stopped would not be ahead by "
        f"{tolerance(plan.settings):g} pp or more on all prompts of this mini-set."
    ]


# ---------------------------------------------------------------- files


def link_best(plan: RankPlan, work: Path, name: str | None) -> None:
    """Point `best` at the chosen checkpoint; a virtual candidate is written out first. Where none
    was chosen there is no link."""
    if name is None or plan.caches:
        (work / "best").unlink(missing_ok=True)
        return
    subject = next(s for s in plan.subjects if s.name == name)
    if subject.checkpoint is not None and not store.owns(subject.checkpoint.path):
        target = str(subject.checkpoint.path.resolve())
    else:
        directory = work / "checkpoints" / name
        if not directory.exists():
            directory.parent.mkdir(exist_ok=True)
            if subject.checkpoint is None:
                write_out(subject, directory)
            else:  # the cache forgets
                link_directory(subject.checkpoint.path, directory)
        target = str(directory.relative_to(work))
    link = work / "best"
    temporary = work / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def write_report(plan: RankPlan, work: Path, ranking: Ranking, stored: CandidateScores) -> None:
    """Write report.html; the trace read in it is one of the best candidate's. A cache has no text
    to read."""
    truth = read_evaluation(plan.settings.truth)
    if plan.caches:
        report.write_report(
            work, ranking, measures=measures(plan.scores), truth=truth, lineage=lineage.read(work)
        )
        return
    best, reading = ranking.best.name, stored.reading
    response = stored.responses[reading.response]
    subject = next(s for s in plan.subjects if s.name == best)
    file = candidate_dir(work, subject) / TRACES
    traces = read_traces(file) if plan.traces is None else plan.traces[best]
    trace = next(t for t in traces if t.key == (response.prompt_id, response.sample))
    prompt = next(p for p in plan.prompts if p.id == trace.prompt_id)
    report.write_report(
        work,
        ranking,
        measures=measures(plan.scores),
        reading=report.TraceReading(
            candidate=best,
            prompt_id=trace.prompt_id,
            sample=trace.sample,
            prompt="\n".join(str(m["content"]) for m in prompt.messages),
            tokens=token_texts(subject.source.tokenizer(), trace.token_ids),
            row_tokens=plan.row_tokens,
            slope_R=reading.slope_R,
            z_R=reading.z_R,
            explore_R=reading.explore_R,
            cycles=response.cycles,
            score=response.nex,
            finish_reason=trace.finish_reason,
        ),
        truth=truth,
        lineage=lineage.read(work),
    )


def read_evaluation(truth: str | None) -> Evaluation | None:
    """The evaluation behind `--truth`, for the report; None where it was a bare table, or there
    are several."""
    places = list(benchmark_sources(truth).values()) if truth else []
    if len(places) != 1:
        return None
    path = Path(places[0]).expanduser()
    file = path / EVALUATION if path.is_dir() else path
    if file.name != EVALUATION or not file.is_file():
        return None  # results of lm-eval
    return artifact.read(Evaluation, file)
