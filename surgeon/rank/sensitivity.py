"""What a ranking would be under other readings: rescored from its kept rows, one at a time."""

# Shapes: C candidates, N neurons.

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surgeon import evidence_file, metrics, nex
from surgeon.progress import bar
from surgeon.rank.plan import RankPlan
from surgeon.rank.reduced import candidate_dir
from surgeon.rank.scores import informs
from surgeon.ranking import RescoredReading, SelectionQuality, Sensitivity

CHANGES: dict[str, tuple[Any, ...]] = {
    "log_time_from": (0, 1),
    "reuse_median_over": ("gated", "all"),
    "short_run_joins": ("previous", "longer"),
    "empty_response": ("omitted", "zero"),
    "zero_mad": ("residual", "epsilon"),
    "min_rows": (3, 6),
    "rho": (0.9, 0.95, 0.99),
    "min_run": (1, 2, 3),
    "gmm_steps": (10, 50, 200),
    "reuse_median_in": ("float32", "float64"),
    "credit": ("introduced", "active"),
}
"""The values that each reading is tried with; the ranking's own is no change."""
NUMBERS = {
    "log_time_from": "R1", "reuse_median_over": "R2", "short_run_joins": "R3",
    "empty_response": "R4", "zero_mad": "R6", "min_rows": "R6", "reuse_median_in": "R18",
}  # fmt: skip


def others(readings: nex.Readings) -> dict[str, nex.Readings]:
    """The readings that differ from these in one place, then the presets, by what they change."""
    found = {
        f"{name} = {value}": replace(readings, **{name: value})
        for name, values in CHANGES.items()
        for value in values
        if value != getattr(readings, name)
    }
    presets = {f"preset {name}": preset for name, preset in nex.PRESETS.items()}
    return found | {name: r for name, r in presets.items() if r != readings}


def sensitivity(plan: RankPlan, work: Path) -> Sensitivity:
    """Every candidate's NEX under every other reading; without rows, only why not."""
    again = tuple(map(evidence_file.recorded_again, evidence_file.RECORDED_AGAIN))
    kept = {}
    for subject in plan.subjects:
        directory = candidate_dir(work, subject)
        if not (directory / evidence_file.FILE).is_file():
            return Sensitivity(rows=(), recorded_again=(missing_rows(subject.name), *again))
        kept[subject.name] = evidence_file.read(directory)
        if not kept[subject.name].rows:
            return Sensitivity(rows=(), recorded_again=(missing_rows(subject.name), *again))
    shared_LF = plan.shared_weight_LF
    shared_N = None if shared_LF is None else shared_LF.ravel()
    tried = {"": plan.readings, **others(plan.readings)}
    by_reading = {}
    with bar("readings", len(tried)) as advance:
        for name, readings in tried.items():
            by_reading[name] = {n: rescored(k, readings, shared_N) for n, k in kept.items()}
            advance()
    default = by_reading.pop("")
    return Sensitivity(
        rows=tuple(
            row_of(name, scores, default, plan.accuracy)
            for name, scores in ({"as ranked": default} | by_reading).items()
        ),
        recorded_again=again,
    )


def missing_rows(name: str) -> str:
    return (
        f"The rows of {name} were not kept, so no reading can be applied anew: rank again into "
        "another --out with a larger --evidence-mb (--traces takes the old ranking, so that "
        "nothing is sampled again)."
    )


def rescored(
    kept: evidence_file.CandidateEvidence,
    readings: nex.Readings,
    shared_N: np.ndarray | None = None,
) -> float:
    """A candidate's NEX under these readings, its weights learned anew where none are shared; nan
    without a response that counts."""
    weight_N = shared_N
    if weight_N is None:
        rows = [r.activations for r in kept.responses if r.activations is not None]
        evidences = [nex.credit(acts, readings) for acts in rows]
        weight_N = nex.weights(*nex.accumulate(evidences, kept.n_layers * kept.d_ff))
    scores = [nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N) for r in kept.responses]
    counted = [nex.counted(s.score, s.mass == 0, readings) for s in scores]
    there = [value for value in counted if not math.isnan(value)]
    return float(np.mean(there)) if there else math.nan


def row_of(
    name: str,
    scores: Mapping[str, float],
    default: Mapping[str, float],
    accuracy: Mapping[str, float],
) -> RescoredReading:
    """What a reading would have said, beside what was ranked."""
    value_C, default_C = (np.array(list(s.values())) for s in (scores, default))
    tells = informs(value_C)
    quality = None
    if accuracy:
        of = scores if tells or len(scores) == 1 else dict.fromkeys(scores, math.nan)
        found = metrics.selection_quality(of, accuracy)
        quality = SelectionQuality(**{k: none_for_nan(v) for k, v in found.items()})
    change_C = np.abs(value_C - default_C)
    return RescoredReading(
        reading=name,
        number=NUMBERS.get(name.partition(" ")[0], ""),
        scores={n: none_for_nan(v) for n, v in scores.items()},
        change=none_for_nan(float(np.nanmax(change_C, initial=0))),
        order=none_for_nan(metrics.spearman(value_C, default_C)),
        favourite=max(scores, key=lambda n: np.nan_to_num(scores[n], nan=-1)) if tells else None,
        quality=quality,
    )


def none_for_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None


def in_words(found: Sensitivity) -> str:
    """Whether the ranking hangs on a reading, in a sentence."""
    if not found.rows:
        return found.recorded_again[0]
    ranked, *changed = found.rows
    elsewhere = [row for row in changed if row.favourite != ranked.favourite]
    if not elsewhere:
        return f"NEX prefers {ranked.favourite or 'nobody'} under each of {len(changed)} readings."
    listed: Sequence[str] = [f"{row.favourite or 'nobody'} ({row.reading})" for row in elsewhere]
    return (
        f"NEX prefers {ranked.favourite or 'nobody'} as ranked, and another candidate under "
        f"{len(elsewhere)} of {len(changed)} readings: {', '.join(listed)}."
    )
