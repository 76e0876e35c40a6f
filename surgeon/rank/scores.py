"""Every score of a ranking is a row of this file: how it is computed, and how it is written.

A score of your own is a function and a row in a file of your own, named as `module:function`:

    surgeon rank ... --select my_score:digits

where `digits` is a function of one response, or a whole `Score`. See examples/my_score.py.
"""

# Shape letters: P prompts, C candidates.

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from surgeon import estimate, metrics, named, nex
from surgeon.activations import Recording
from surgeon.errors import BadInput
from surgeon.ranking import RankedResponse
from surgeon.report import Measure


class Resamples(NamedTuple):
    """What a score is where the prompts are others and its neuron weights are learned anew."""

    value_B: np.ndarray
    """float64, in every resample of the prompts."""
    left_J: np.ndarray | None
    """float64, without each group of `metrics.left_out_counts`; None where that isn't known."""


class Pool(NamedTuple):
    """The responses of all candidates to the same prompts."""

    prompt_ids: list[str]
    responses: Mapping[str, tuple[RankedResponse, ...]]
    """By candidate."""
    readings: nex.Readings
    digests: Mapping[str, str] = MappingProxyType({})
    """Candidate -> its checkpoint's digest, where known: equal ones are copies."""
    relearned: Mapping[str, Mapping[str, Resamples]] = MappingProxyType({})
    """Candidate -> score -> its resamples; no score whose weights were held."""

    def answers(self) -> np.ndarray:
        """int64_PCS: the answers of all candidates, as `surgeon.estimate` takes them."""
        place = self.places()
        rows: list[list[list[str | None]]] = [[[] for _ in self.responses] for _ in place]
        for c, responses in enumerate(self.responses.values()):
            for r in responses:
                rows[place[r.prompt_id]][c].append(r.answer)
        return estimate.numbered(rows)

    def classes(self) -> list[list[str]]:
        """By prompt, the classes of its answers in the order of their numbers in `answers`."""
        found: dict[str, dict[str, None]] = {prompt_id: {} for prompt_id in self.prompt_ids}
        for r in self.everything():
            if r.answer is not None:
                found[r.prompt_id][r.answer] = None
        return [list(names) for names in found.values()]

    def voted(self) -> estimate.Estimate:
        """The estimate of every candidate's accuracy by the others' votes."""
        names = [self.digests.get(name, name) for name in self.responses]
        copies_CC = np.array([[a == b for b in names] for a in names], dtype=bool)
        return estimate.estimate(self.answers(), copies_CC)

    def everything(self) -> list[RankedResponse]:
        """All responses, candidate after candidate."""
        return [r for rows in self.responses.values() for r in rows]

    def places(self) -> dict[str, int]:
        """Prompt -> its place among all."""
        return {prompt_id: n for n, prompt_id in enumerate(self.prompt_ids)}

    def sums(self, values: Iterable[float | None]) -> np.ndarray:
        """float64_PC2 from one value for each of `everything`: by prompt and candidate the sum of
        the values, and how many there are; None and what isn't finite are none."""
        place = self.places()
        sums_PC2 = np.zeros((len(self.prompt_ids), len(self.responses), 2))
        remaining = iter(values)
        for c, rows in enumerate(self.responses.values()):
            for r in rows:
                value = next(remaining)
                if value is not None and math.isfinite(value):
                    sums_PC2[place[r.prompt_id], c] += (value, 1)
        return sums_PC2


class Score(NamedTuple):
    """A score that orders candidates, higher first. One of `of`, `measure`, `pooled` and `combined`
    is given.

    A candidate's score is the mean over its responses (NEX sec. 3.3).
    """

    label: str
    """What it is called."""
    unit: str
    """Of its values, empty for a share: "tokens", "nats", "per response"."""
    what: str
    """What it says, in a few words."""
    of: Callable[[RankedResponse], float | None] | None = None
    """The value of one response; None or nan where it has none."""
    measure: Callable[[Recording], float] | None = None
    """Or: the value of one response, from its tokens' statistics and activations. It is computed
    where the response is recorded, and kept by the score's name."""
    pooled: Callable[[Pool], np.ndarray] | None = None
    """Or: float64_PC2 as of `Pool.sums`, for what takes all responses to say."""
    combined: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    """Or: the candidates' values from those of the other scores, by name; candidates are the last
    axis of each, and resamples of the prompts may stand before it."""
    ends: Callable[[Pool, np.ndarray], np.ndarray] | None = None
    """float64_C2: the ends of the interval, from the resampled values (float64_BC), where they
    aren't just the middle 95 % of those."""
    decimals: int = 3
    column: str = ""
    """Its heading in a terminal, where that isn't its name."""

    def __call__(self, name: str, pool: Pool) -> np.ndarray:
        """float64_PC2: by prompt and candidate, the sum of the score's values and their number.

        The two are kept apart so that prompts can be resampled.
        """
        if self.pooled is not None:
            return self.pooled(pool)
        if self.combined is not None:
            raise TypeError(f"{name} is made of other scores' values, not of responses")
        of = self.of or (lambda response: response.measured[name])
        return pool.sums(of(response) for response in pool.everything())


def ratio(sums: np.ndarray) -> np.ndarray:
    """`sums[..., 0] / sums[..., 1]`; nan where nothing was counted."""
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.full(top.shape, math.nan), where=bottom > 0)


def good_mass(pool: Pool) -> np.ndarray:
    """NEX; a response without any mass may not count at all (R4)."""
    return pool.sums(nex.counted(r.nex, r.empty, pool.readings) for r in pool.everything())


def active_mass(pool: Pool) -> np.ndarray:
    """NEX with every active neuron credited; without the rows there is none."""
    return pool.sums(nex.counted(r.nex_active, r.empty, pool.readings) for r in pool.everything())


def entropy_top20(pool: Pool) -> np.ndarray:
    """The percentile is that of all candidates' rows."""
    rows = [np.array(r.entropy_R) for r in pool.everything()]
    return pool.sums(nex.entropy_top20(rows).tolist())


def entropy_rows(pool: Pool) -> np.ndarray:
    """The percentile is that of all candidates' rows."""
    rows = [np.array(r.entropy_R) for r in pool.everything()]
    return pool.sums(nex.entropy_rows(rows).tolist())


def agreement(pool: Pool) -> np.ndarray:
    """One value per prompt and candidate: samples agree with each other, not with themselves."""
    place = pool.places()
    sums_PC2 = np.zeros((len(place), len(pool.responses), 2))
    for c, rows in enumerate(pool.responses.values()):
        answers: dict[str, list[str | None]] = {}
        for r in rows:
            answers.setdefault(r.prompt_id, []).append(r.answer)
        # One sample always agrees with itself: that says nothing.
        voted = {prompt_id: votes for prompt_id, votes in answers.items() if len(votes) > 1}
        shares = metrics.agreement_by_prompt(list(voted.values()))
        for prompt_id, share in zip(voted, shares, strict=True):
            sums_PC2[place[prompt_id], c] = (share, 1)
    return sums_PC2


def voted_accuracy(pool: Pool) -> np.ndarray:
    """The matches with the others' vote, on the scale of an accuracy."""
    found = pool.voted()
    voted_PC = ~np.isnan(found.match_PC)
    return np.stack([np.nan_to_num(found.match_PC), np.nan_to_num(voted_PC * found.scale_C)], -1)


def voted_ends(pool: Pool, drawn_BC: np.ndarray) -> np.ndarray:
    """The interval also holds what the vote itself may miss."""
    found = pool.voted()
    return estimate.interval(found, drawn_BC * found.scale_C)


def fitted_accuracy(pool: Pool) -> np.ndarray:
    """By the one-coin model of Dawid and Skene, fitted to all prompts."""
    answers = pool.answers()
    right_PC = estimate.dawid_skene(answers).right_PC
    n_PC = (answers != estimate.ABSENT).sum(-1).astype(float)
    return np.stack([np.nan_to_num(right_PC) * n_PC, n_PC], -1)


def informs(value_C: np.ndarray) -> bool:
    """Whether a score's values tell candidates apart: of several, not all are equal."""
    there = value_C[np.isfinite(value_C)]
    return len(there) > 0 and (len(value_C) == 1 or bool(np.ptp(there) > 0))


def recommended(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """NEX times the estimated accuracy; one of them alone where the other is 0 or unknown for
    every candidate."""
    usable = [values[name] for name in RECOMMENDED if np.nansum(values[name]) > 0]
    return np.prod(usable, axis=0) if usable else np.full_like(values["nex"], math.nan)


def nines(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The model score of NEX, spread where it is near 1 (R8)."""
    nex_C = values["nex"]
    return np.array([nex.saturation(x) for x in nex_C.ravel().tolist()]).reshape(nex_C.shape)


RECOMMENDED = ("nex", "estimate")
"""The scores whose product recommends."""

SCORES: dict[str, Score] = {
    "nex": Score(
        "NEX", "", "Good-Mass Fraction: share of activation mass on useful neurons",
        pooled=good_mass, decimals=4,
    ),
    "estimate": Score(
        "Estimated accuracy", "", "accuracy without labels, by the votes of the other candidates",
        pooled=voted_accuracy, ends=voted_ends,
    ),
    "recommended": Score(
        "Recommended", "", "NEX times the estimated accuracy", combined=recommended,
        column="NEX x est.",
    ),
    "nex_active": Score(
        "NEX, all active", "", "NEX that credits all neurons active in an exploring stretch",
        pooled=active_mass, decimals=4, column="NEX act.",
    ),
    "saturation": Score(
        "NEX in nines", "", "-log10(1 - NEX): the same order, spread near 1", combined=nines,
        decimals=2, column="nines",
    ),
    "length": Score(
        "Length", "tokens", "mean response length", of=lambda r: r.tokens, decimals=1
    ),
    "hes": Score(
        "HES", "nats", "sum of token entropies over a response",
        measure=lambda recording: nex.hes(recording.entropy_T), decimals=1,
    ),
    "entropy_top20": Score(
        "Top-20% entropy", "", "share of rows in the pool's most uncertain",
        pooled=entropy_top20, column="top-20% H",
    ),
    "entropy_rows": Score(
        "Uncertain rows", "per response", "rows among the pool's most uncertain fifth",
        pooled=entropy_rows, decimals=1, column="H rows",
    ),
    "logprob": Score(
        "Log-prob", "nats/token", "mean log-probability of the sampled tokens",
        measure=lambda recording: nex.mean_logprob(recording.logprob_T),
    ),
    "explore_segments": Score(
        "E segments", "per response", "exploring stretches",
        of=lambda r: r.explore_segments, decimals=2, column="E segments",
    ),
    "agreement": Score(
        "Agreement", "", "share of a prompt's samples that agree on an answer", pooled=agreement
    ),
    "dawid_skene": Score(
        "Dawid-Skene", "", "accuracy without labels, by the one-coin model of 1979",
        pooled=fitted_accuracy, column="D-S",
    ),
    "finished": Score(
        "Finished", "", "share of responses that ended before the token limit",
        of=lambda r: r.finished,
    ),
}  # fmt: skip
"""Every score a ranking reports, in the order of the terminal's table."""

ON_PAGE = (
    "nex",
    "estimate",
    "recommended",
    "agreement",
    "finished",
    "length",
    "explore_segments",
    "hes",
)
"""The scores that the page shows first, in its order."""


def measures(scores: Mapping[str, Score]) -> dict[str, Measure]:
    """How the page calls and writes the scores, in its order."""
    rows = {name: scores[name] for name in [*ON_PAGE, *scores]}
    return {name: Measure(s.label, s.unit, s.decimals, s.what) for name, s in rows.items()}


def find(name: str) -> Score:
    """The row of that name, or what `module:function` names: a `Score`, or a function of one
    response. Raises `BadInput`."""
    row = named.row(SCORES, name, "select")
    if not isinstance(row, Score):
        what = (row.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        return Score(short(name).replace("_", " "), "", what, of=row)
    if [row.of, row.measure, row.pooled, row.combined].count(None) != 3:
        raise BadInput(
            f"found select = {name}, expected of, measure, pooled or combined in it, and only one."
        )
    return row


def short(name: str) -> str:
    """A score's name without the module of one from outside."""
    return name.rpartition(":")[2]


def rows_for(select: str) -> dict[str, Score]:
    """The scores of a ranking: all rows, and the one that is selected from outside."""
    return SCORES | {select: find(select)}


def measured(rows: Mapping[str, Score]) -> dict[str, Callable[[Recording], float]]:
    """What scores read off a recording, by score."""
    return {name: s.measure for name, s in rows.items() if s.measure is not None}
