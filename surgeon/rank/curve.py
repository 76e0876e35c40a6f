"""How many prompts are enough: the same ranking from random parts of the mini-set (NEX sec. 5.3,
Fig. 5), from what a ranking keeps, without a model.

Of every size some parts are drawn without replacement. The neuron weights are learned from the
part alone (from the kept evidence), and so are votes and percentiles: what a user with so many
prompts would have got. `nex_all` scores all responses with the weights of the part.
"""

# Shapes: P prompts, C candidates, B parts of the mini-set.

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from surgeon import evidence_file, metrics, nex
from surgeon.progress import track
from surgeon.rank.plan import RankPlan, curve_sizes
from surgeon.rank.reduced import candidate_dir
from surgeon.rank.scores import Pool, informs, ratio
from surgeon.ranking import CurveRow, PromptCurve

LEFT_OUT = ("saturation", "nex_active")
"""NEX in another spelling, and one whose weights would be held."""
ALL = "nex_all"
ACCURACIES = ("estimate", "dawid_skene")
"""The scores that are accuracies, so that they have an error."""


def parts(prompts: int, sizes: Sequence[int], draws: int, seed: int) -> dict[int, np.ndarray]:
    """Size -> bool_BP, the prompts of each part; all prompts are one part."""
    found = {}
    for size in sizes:
        rng = np.random.default_rng([seed, size])
        chosen_BP = np.zeros((draws if size < prompts else 1, prompts), bool)
        for part_P in chosen_BP:
            part_P[rng.choice(prompts, size, replace=False)] = True
        found[size] = chosen_BP
    return found


def curve(plan: RankPlan, work: Path, pool: Pool) -> PromptCurve:
    """Every score at every size, against the truth where it is known, and against all prompts."""
    settings, n_prompts = plan.settings, len(pool.prompt_ids)
    sizes = curve_sizes(str(settings.curve), n_prompts)
    chosen = parts(n_prompts, sizes, settings.draws, settings.seed)
    every_BP = np.concatenate([*chosen.values(), np.ones((1, n_prompts), bool)])
    learned, held = learned_anew(plan, work, pool, every_BP)
    points = [
        of_part(plan, pool, every_BP[b], {name: value_BC[b] for name, value_BC in learned.items()})
        for b in track(range(len(every_BP)), what="parts of the mini-set")
    ]
    whole, rows, at = points[-1], [], 0
    names = list(pool.responses)
    accuracy_C = np.array([plan.accuracy.get(name, math.nan) for name in names])
    for size, chosen_BP in chosen.items():
        drawn = points[at : at + len(chosen_BP)]
        at += len(chosen_BP)
        rows += [
            row_of(size, score, [p[score] for p in drawn], whole[score], accuracy_C)
            for score in whole
        ]
    return PromptCurve(
        asked=str(settings.curve),
        draws=settings.draws,
        held=held,
        rows=tuple(rows),
        line=sentence(rows, settings.select, known=bool(plan.accuracy)),
    )


def learned_anew(
    plan: RankPlan, work: Path, pool: Pool, chosen_BP: np.ndarray
) -> tuple[dict[str, np.ndarray], bool]:
    """NEX of every part, float64_BC by name, with weights learned from the part: of the part's
    responses, and of all; and whether weights are held, as no evidence was kept."""
    found = {name: np.zeros((len(chosen_BP), len(pool.responses))) for name in ("nex", ALL)}
    place, directories = pool.places(), [candidate_dir(work, s) for s in plan.subjects]
    files = [directory / evidence_file.FILE for directory in directories]
    if plan.shared_weight_LF is not None or not all(file.is_file() for file in files):
        return {}, plan.shared_weight_LF is None
    everything_BP = np.ones(chosen_BP.shape)
    for c, file in enumerate(files):
        kept = evidence_file.read(file, rows=False).responses
        responses = [nex.Response(r.evidence, r.neuron_K, r.mass_K) for r in kept]
        prompt_N = np.array([place[r.prompt_id] for r in kept], np.int64)
        count_BP = chosen_BP.astype(float)
        found["nex"][:, c] = nex.relearned(responses, prompt_N, count_BP, plan.readings)
        found[ALL][:, c] = nex.relearned(
            responses, prompt_N, count_BP, plan.readings, scored_BP=everything_BP
        )
    return found, False


def of_part(
    plan: RankPlan, pool: Pool, chosen_P: np.ndarray, learned: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """By score, float64_C: the candidates' values by a part of the prompts."""
    ids = [p for p, inside in zip(pool.prompt_ids, chosen_P, strict=True) if inside]
    asked = set(ids)
    part = pool._replace(
        prompt_ids=ids,
        responses={
            name: tuple(r for r in rows if r.prompt_id in asked)
            for name, rows in pool.responses.items()
        },
        relearned={},
    )
    scores = {name: s for name, s in plan.scores.items() if name not in LEFT_OUT}
    found = {name: ratio(s(name, part).sum(0)) for name, s in scores.items() if s.combined is None}
    found |= learned
    for name, score in scores.items():
        if score.combined is not None:
            found[name] = score.combined(found)
    return found


def row_of(
    size: int,
    score: str,
    drawn: Sequence[np.ndarray],
    whole_C: np.ndarray,
    accuracy_C: np.ndarray,
) -> CurveRow:
    """A score at a size: means over the parts that tell candidates apart, and 5 % to 95 %."""
    telling = [value_C for value_C in drawn if informs(value_C)]
    known = bool(np.isfinite(accuracy_C).all())
    measured = {
        "order": [metrics.spearman(value_C, whole_C) for value_C in telling],
        "same": [float(best(value_C) == best(whole_C)) for value_C in telling],
    }
    if known:
        measured["pearson"] = [metrics.pearson(value_C, accuracy_C) for value_C in telling]
        measured["regret"] = [metrics.regret_at_1(value_C, accuracy_C) for value_C in telling]
    if score in ACCURACIES:
        against_C = accuracy_C if known else whole_C
        measured["error"] = [float(np.abs(value_C - against_C).mean()) for value_C in drawn]
    return CurveRow(
        prompts=size,
        score=score,
        draws=len(drawn),
        **{name: mean_of(values) for name, values in measured.items()},
        spread={name: middle(values) for name, values in measured.items() if name != "same"},
    )


def best(value_C: np.ndarray) -> int:
    """The first candidate with the highest value."""
    return int(np.argmax(np.nan_to_num(value_C, nan=-math.inf)))


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def mean_of(values: Iterable[float]) -> float | None:
    """None where no part has a value."""
    there = finite(values)
    return float(np.mean(there)) if there else None


def middle(values: Iterable[float]) -> tuple[float | None, float | None]:
    """The ends of the middle 90 % of the parts."""
    there = finite(values)
    if not there:
        return None, None
    low, high = np.quantile(there, (0.05, 0.95))
    return float(low), float(high)


def sentence(rows: Sequence[CurveRow], select: str, *, known: bool) -> str:
    """How many prompts were enough, by the selected score."""
    own = [row for row in rows if row.score == select]
    last = own[-1]
    if known and (whole := last.regret) is not None:
        good = steady(own, lambda row: row.regret is not None and row.regret <= whole + 1)
        at = "at no size" if good is None else f"from {good} prompts on"
        few = own[0]
        first = "unknown" if few.regret is None else f"{few.regret:.1f} pp"
        return (
            f"By {select}, picks lost {first} on average with {few.prompts} prompts and "
            f"{whole:.1f} pp with {last.prompts}; within 1 pp of that {at}."
        )
    good = steady(own, lambda row: row.same == 1)
    at = "at no size" if good is None else f"from {good} prompts on"
    return f"By {select}, every part of the mini-set had the pick of all prompts {at}."


def steady(rows: Sequence[CurveRow], holds: Callable[[CurveRow], bool]) -> int | None:
    """The smallest size from which on something holds at every size."""
    found = None
    for row in reversed(rows):
        if not holds(row):
            break
        found = row.prompts
    return found
