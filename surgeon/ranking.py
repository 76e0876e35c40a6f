"""What `rank` writes for others to read: ranking.json, and each candidate's scores.json."""

# Shape letters: R rows of a response.

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue

from surgeon.artifact import Already, Out, artifact, part

Measured = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""nan where there is no value; null in the file."""
Interval = tuple[float | None, float | None]
"""Ends of a 95% bootstrap interval over prompts; None, None where there is nothing to resample."""


def percent(share: float) -> str:
    """A share in two digits: 100%, 12%, 0.35%, 1.2e-05%."""
    points = 100 * share
    return f"{points:.0f}%" if points >= 10 else f"{points:.2g}%"


@part
class MiniSet:
    """The prompts that were answered."""

    path: str
    prompts: int
    digest: str


@part
class SelectionQuality:
    """How well a score would have chosen, by the true accuracies; None where undefined."""

    pearson: float | None
    spearman: float | None
    regret_at_1: float | None
    """Accuracy lost by picking the score's favourite, in percentage points."""
    hit_at_3: float | None
    """1 when the most accurate candidate is among the score's first three, else 0."""


@part
class BenchmarkQuality:
    """One benchmark's true accuracies, and how well each score would have chosen by them."""

    truth: str
    """Where the accuracies were read."""
    accuracy: dict[str, float]
    """Candidate -> its accuracy in [0, 1]."""
    selection_quality: dict[str, SelectionQuality]
    """By score."""


def mean_quality(qualities: Iterable[SelectionQuality]) -> SelectionQuality:
    """Each measure's mean over the qualities in which it is defined; None where it is in none."""
    listed = list(qualities)

    def mean(values: Iterable[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if there else None

    return SelectionQuality(
        pearson=mean(q.pearson for q in listed),
        spearman=mean(q.spearman for q in listed),
        regret_at_1=mean(q.regret_at_1 for q in listed),
        hit_at_3=mean(q.hit_at_3 for q in listed),
    )


@part
class InvertedU:
    """Accuracy as a parabola of the E segments (NEX sec. 5.2), one point a candidate."""

    of: str
    """What stands for accuracy: "accuracy" (the truth), or "estimate"."""
    candidates: int
    r2: float
    r2_line: float
    vertex: float | None
    """E segments per response at which the parabola turns; None where it is a line."""
    vertex_interval: Interval
    """95 % by resampling the candidates; None, None where most resamples have no maximum."""
    p: float
    """F-test of the square term."""
    verdict: str
    """"inverted U", "U", "rising", "falling" or "flat"."""
    line: str
    """All of it in a sentence."""


@part
class RescoredReading:
    """NEX under another reading, all else alike."""

    reading: str
    """What differs: "rho = 0.9"; "as ranked" for nothing."""
    number: str
    """R1 to R18, where it has one."""
    scores: dict[str, float | None]
    """Candidate -> its NEX."""
    change: float | None
    """Largest change of a candidate's score."""
    order: float | None
    """Spearman correlation with the order as ranked; None where one of them tells nobody apart."""
    favourite: str | None
    """None where it tells nobody apart."""
    quality: SelectionQuality | None = None
    """None without a truth."""


@part
class Sensitivity:
    """What a ranking would be under other readings of NEX, one at a time."""

    rows: tuple[RescoredReading, ...]
    """First the ranking itself; empty where the rows weren't kept."""
    recorded_again: tuple[str, ...]
    """What can't be applied to kept rows, in sentences."""


Spread = tuple[float | None, float | None]
"""The middle 90 % of several draws."""


@part
class CurveRow:
    """A score from a part of the mini-set, mean over the parts that were drawn; None where no part
    tells candidates apart."""

    prompts: int
    """In each part."""
    score: str
    """`nex_all`: NEX of all responses, by weights that the part alone taught."""
    draws: int
    order: float | None = None
    """Spearman correlation with the order by all prompts."""
    same: float | None = None
    """Share of the parts with the favourite of all prompts."""
    pearson: float | None = None
    """With the true accuracies, where they are known; so is the next."""
    regret: float | None = None
    """Regret@1, percentage points."""
    error: float | None = None
    """Of a score that is an accuracy: mean absolute error against the true one; without a truth,
    distance from its value by all prompts."""
    spread: dict[str, Spread]
    """Of each of these but `same`."""


@part
class PromptCurve:
    """How the ranking depends on the number of prompts (NEX Fig. 5)."""

    asked: str
    draws: int
    """Parts of each size but that of all prompts, which is one."""
    held: bool
    """Whether NEX's weights are those of all prompts, because no evidence was kept."""
    rows: tuple[CurveRow, ...]
    """By size, then by score."""
    line: str
    """How many prompts were enough, in a sentence."""


@part
class RankedCandidate:
    """One checkpoint, its scores, and what stands behind them."""

    checkpoint: str
    """What names it on a command line."""
    name: str
    ratio: float | None
    """Share of the second endpoint in a merge."""
    method: str | None
    """Merge method; None for an endpoint, which belongs to every method."""
    run: Annotated[str, Field(exclude_if=lambda value: not value)] = ""
    """The training run that it is a checkpoint of."""
    step: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None
    """Its training step."""
    digest: str
    rank: int
    """1 is the best."""
    scores: dict[str, float | None]
    """Score -> its mean; higher ranks first. None without a value."""
    interval: dict[str, Interval]
    dropped_after: int | None = None
    """Prompts after which it stopped answering as a contender; None where it didn't."""
    not_told_apart_from_best: bool
    """The interval of the difference from the best holds 0. True of the best itself."""
    responses: int
    truncated: int
    """Responses cut at the token limit."""
    tokens: int
    """Of all responses together."""
    cycles: float
    """E -> X cycles per response."""
    gated_cycles: float
    """Of these the ones that are strong enough and introduce neurons."""
    without_evidence: int
    """Responses without weighted mass."""
    kept_mass: float
    """Share of the positive activation mass that `top_k` keeps."""
    faint: float | None = None
    """Share of the score that rests on cycles whose progress is below 1e-6, rounding (NEX R18):
    mean over the responses with weighted mass."""
    saturation: float | None
    """NEX stretched: -log10(1 - NEX)."""
    reward: float | None
    """NEX Eq. 15, mean over responses."""
    bad: float | None
    """NEX Eq. 16, mean over responses."""
    accuracy: float | None
    """In [0, 1], where a truth was given; the mean over its benchmarks."""


@part
class Recommendation:
    """The candidate that NEX and the votes together choose, and what a user needs to know of it."""

    name: str
    why: str
    """The scores that chose it: "nex x estimate", or one of them alone."""
    estimate: float | None
    """Its accuracy in [0, 1], estimated without labels; None where no other candidate votes."""
    interval: Interval
    """Of the estimate."""
    tokens: float
    """Mean tokens of its responses."""
    nex_alone: str | None
    """What NEX alone would choose; None where it tells nobody apart."""


@part
class KnownAnswers:
    """How often the votes give answers that are known (`known`)."""

    asked: int
    right: float
    """Of them the first answer of all votes together; equal first ones share."""
    said: float
    """Chance that a vote is right by how the votes agree, in (0, 1]."""
    p: float
    """Of so few right ones or fewer, were the votes right as often as they say, less .15."""
    gap: float
    """Estimated less true accuracies on these prompts, mean over the candidates."""
    p_gap: float
    """Of such a gap or a larger one, were it .05 (t-test over the prompts)."""
    misled: bool
    """One of the two is below .05: the candidates err alike."""


@part
class Round:
    """More prompts for the candidates that could still be the best, and who stopped then."""

    prompts: int
    """Asked so far, in all rounds."""
    answering: tuple[str, ...]
    """The candidates that answered in this round."""
    leader: str | None
    """First by the selected score afterwards; None where it has no value."""
    dropped: dict[str, float]
    """Candidates that can't be chosen any more, with the most that each may be ahead of the leader
    on any prompts of the kind (upper end of the simultaneous interval, in units of the score)."""
    tokens: int
    """Of all responses so far."""
    stopped: str
    """Why no other round follows; empty where one does."""


@artifact("rounds.json")
class Rounds:
    """The rounds of a ranking with `adaptive`, as far as they are decided."""

    rounds: tuple[Round, ...]


@artifact("ranking.json", version=2)
class Ranking:
    """Checkpoints in order, and how far the order can be trusted."""

    mini_set: MiniSet
    settings: dict[str, JsonValue]
    """The run's arguments, with the numbers that `row_tokens` and `top_k` came to; what was asked
    for is beside them: `row_tokens_asked`, `top_k_share`."""
    select: str
    """The score that orders the candidates."""
    truth: str | None = None
    """Where the accuracies were read."""
    panels: tuple[str, ...] = ()
    """Panels of the page from outside this package."""
    last_stage: dict[str, str] = Field(default_factory=dict)
    """Digests of the files that the last stage reads: the truth, functions from outside."""
    favourites: dict[str, str | None]
    """Score -> the candidate with its highest value; None where it tells nobody apart."""
    pick: str | None = None
    """The candidate that `select` chooses and `best` links to; None where it tells nobody apart."""
    recommendation: Recommendation | None = None
    """None where neither NEX nor the votes tell anybody apart."""
    known: Annotated[KnownAnswers | None, Field(exclude_if=lambda value: value is None)] = None
    """None where no known answer was to be looked at."""
    headline: tuple[str, ...]
    """The ranking in sentences, the most important first."""
    warnings: tuple[str, ...]
    candidates: tuple[RankedCandidate, ...]
    """Best first."""
    rounds: tuple[Round, ...] = ()
    """Where candidates stopped early (`adaptive`)."""
    selection_quality: Annotated[
        dict[str, SelectionQuality] | None, Field(exclude_if=lambda value: value is None)
    ] = None
    """By score, against the accuracy (the mean over benchmarks); None without a truth."""
    benchmarks: Annotated[
        dict[str, BenchmarkQuality], Field(exclude_if=lambda value: not value)
    ] = Field(default_factory=dict)
    """By name, where the truth names benchmarks."""
    inverted_u: Annotated[InvertedU | None, Field(exclude_if=lambda value: value is None)] = None
    """None for fewer than four candidates that have both."""
    sensitivity: Annotated[Sensitivity | None, Field(exclude_if=lambda value: value is None)] = None
    """None where it wasn't asked for."""
    curve: Annotated[PromptCurve | None, Field(exclude_if=lambda value: value is None)] = None
    """None where it wasn't asked for."""
    out: Out
    already: Already = False

    @property
    def best(self) -> RankedCandidate:
        """The first candidate; whether it was chosen, says `pick`."""
        return self.candidates[0]

    @property
    def over_benchmarks(self) -> dict[str, SelectionQuality]:
        """Score -> the mean of each measure over the benchmarks (NEX Tab. 2 and 3)."""
        found = [b.selection_quality for b in self.benchmarks.values()]
        scores = dict.fromkeys(score for quality in found for score in quality)
        return {s: mean_quality(q[s] for q in found if s in q) for s in scores}

    @property
    def rounding(self) -> str | None:
        """How much of the NEX scores rests on rounding (R18), in a sentence; None for nothing."""
        shares = {c.name: c.faint for c in self.candidates if c.faint}
        if not shares:
            return None
        most = max(shares, key=lambda name: shares[name])
        mean = sum(shares.values()) / len(self.candidates)
        return (
            f"{percent(mean)} of the weighted mass behind NEX (at most {percent(shares[most])}, "
            f"{most}) rests on cycles whose progress is below 1e-6: rounding, which the published "
            "code counts and preset paper doesn't (R18)."
        )

    @staticmethod
    def upgrade(content: dict[str, Any], version: int) -> dict[str, JsonValue]:
        """Version 1 always chose its first candidate, and estimated no accuracy."""
        if version == 1 and content.get("candidates"):
            content["pick"] = content["candidates"][0].get("name")
        return content


@part
class RankedResponse:
    """What is kept of one scored response."""

    prompt_id: str
    sample: int
    tokens: int
    finished: bool
    """It ended before the token limit."""
    answer: str | None
    """The class that it votes for among the answers to its prompt: equal values, one class. None
    where none can be read."""
    nex: float
    """Good-Mass Fraction in [0, 1] (Eq. 14)."""
    nex_active: Measured = math.nan
    """The same under weights that credit all neurons which are active in an exploring stretch (the
    ablation of sec. 5.3); nan where the rows weren't kept, or the weights came from elsewhere."""
    reward: Measured
    bad: Measured
    credible: bool
    """Any of its mass sits on a weighted neuron."""
    empty: bool
    """It has no mass at all."""
    cycles: int
    gated: int
    """Cycles that passed the strength gate and introduced neurons."""
    explore_segments: int
    kept_mass: float
    """Share of the positive activation mass that `top_k` keeps."""
    faint: Measured = math.nan
    """Share of its weighted mass whose weights are rounding (NEX R18); nan without weighted mass,
    and where the weights came from elsewhere."""
    entropy_R: tuple[float, ...]
    """Mean next-token entropy of each row, nats."""
    measured: dict[str, Measured]
    """Score -> what its `measure` read off the recording: `hes`, `logprob`, ..."""


@part
class CloseReading:
    """The response that the report shows: its novelty and phases, row by row."""

    response: int
    """Its place among the candidate's responses."""
    slope_R: tuple[float, ...]
    """Novelty slope (Eq. 1)."""
    z_R: tuple[float, ...]
    """The slope without its trend, standardised (Eq. 20)."""
    explore_R: tuple[bool, ...]
    """True in exploring rows."""


@artifact("scores.json", version=2)
class CandidateScores:
    """One candidate's responses, scored."""

    reading: CloseReading
    responses: tuple[RankedResponse, ...]
    """In the order of the prompts."""

    @staticmethod
    def upgrade(content: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 1 had two measured scores, beside the other fields."""
        for row in content["responses"] if version == 1 else ():
            row["measured"] = {name: row.pop(name) for name in ("hes", "logprob")}
        return content
