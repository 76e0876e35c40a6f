"""How far the phases agree with labels (NEX Tab. 1), and annotators with each other.

The paper gives 89.6 % overall, 98.2 % of 1,429 E blocks and 81.0 % of 1,429 X blocks. Whose counts
those are is open: runs of rows alternate, so that the HMM's own E and X blocks are about as many,
which speaks for its counts; that what fails is "over-detection of E" speaks for the annotators'.
Both are given: of the blocks called E the share labelled E, and of those labelled E the share
called so.
"""

# Shape letters: P prompts, and 4 counts: label E called E, label E called X, label X called E,
# label X called X.

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from surgeon import metrics
from surgeon.artifact import part
from surgeon.read.labels import Labels
from surgeon.read.passages import PhaseBlock
from surgeon.report.browser import AgreementLine
from surgeon.report.words import signed

RESAMPLES = 1000
ALL = "all who agree"
DASH = "–"
AGREEMENT_COLUMNS = (
    "blocks", "accuracy (95%)", "the more frequent label", "of E", "of X", "E found", "X found",
    "kappa (95%)", "errors that call E",
)  # fmt: skip
Ends = tuple[float | None, float | None]


@part
class LabelAgreement:
    """The phases against one annotator's labels; None where nothing was counted."""

    annotator: str
    blocks: int
    counts: tuple[int, int, int, int]
    """Blocks labelled E and called E; E, called X; X, called E; X, called X."""
    accuracy: float | None
    accuracy_interval: Ends
    """95 %, resampling prompts."""
    most_frequent: float | None
    """Share of the more frequent label: what calling everything so would reach."""
    of_e: float | None
    """Of the blocks called E, the share labelled E."""
    of_x: float | None
    e_found: float | None
    """Of the blocks labelled E, the share called E."""
    x_found: float | None
    kappa: float | None
    kappa_interval: Ends
    over_detected: float | None
    """Of the disagreements, the share that calls E what is labelled X."""


@part
class AnnotatorPair:
    """Two annotators, on the blocks that both labelled."""

    one: str
    other: str
    blocks: int
    accuracy: float | None
    kappa: float | None


def measures(counts_4: np.ndarray) -> np.ndarray:
    """float64[..., 8] of counts[..., 4]: accuracy, share of the more frequent label, of E, of X, E
    found, X found, kappa, over-detected; nan where nothing was counted."""
    ee, ex, xe, xx = np.moveaxis(np.asarray(counts_4, float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = ee + ex + xe + xx
        return np.stack([
            (ee + xx) / n, np.maximum(ee + ex, xe + xx) / n, ee / (ee + xe), xx / (ex + xx),
            ee / (ee + ex), xx / (xe + xx), metrics.cohens_kappa(counts_4), xe / (ex + xe),
        ], -1)  # fmt: skip


def agreement(
    annotator: str, labels: Labels, found: Mapping[str, PhaseBlock], *, seed: int
) -> LabelAgreement:
    """The phases of the blocks against labels of them."""
    prompts: dict[str, int] = {}
    for block in labels:
        prompts.setdefault(found[block].prompt_id, len(prompts))
    counts_P4 = np.zeros((len(prompts), 4))
    for block, label in labels.items():
        p = found[block]
        counts_P4[prompts[p.prompt_id], 2 * (label == "X") + (not p.explore)] += 1
    total_4 = counts_P4.sum(0)
    m = [float(value) if math.isfinite(value) else None for value in measures(total_4)]
    ends: list[Ends] = [(None, None)] * 8
    if len(prompts) > 1:
        count_BP = metrics.resample_counts(len(prompts), seed=seed, n=RESAMPLES)
        for i, pair in enumerate(metrics.percentile_interval(measures(count_BP @ counts_P4))):
            low, high = (float(end) if math.isfinite(end) else None for end in pair)
            ends[i] = low, high
    ee, ex, xe, xx = map(int, total_4)
    return LabelAgreement(
        annotator=annotator,
        blocks=len(labels),
        counts=(ee, ex, xe, xx),
        accuracy=m[0],
        accuracy_interval=ends[0],
        most_frequent=m[1],
        of_e=m[2],
        of_x=m[3],
        e_found=m[4],
        x_found=m[5],
        kappa=m[6],
        kappa_interval=ends[6],
        over_detected=m[7],
    )


def agreements(
    by_annotator: Mapping[str, Labels],
    found: Mapping[str, PhaseBlock],
    people: Sequence[str],
    seed: int,
) -> tuple[LabelAgreement, ...]:
    """Every annotator's; with several people also that of the blocks on which all of them agree."""
    every = dict(by_annotator)
    if len(people) > 1:
        blocks = set.intersection(*(set(by_annotator[name]) for name in people))
        first = by_annotator[people[0]]
        every[ALL] = {
            block: first[block]
            for block in sorted(blocks)
            if all(by_annotator[name][block] == first[block] for name in people)
        }
    return tuple(agreement(name, labels, found, seed=seed) for name, labels in every.items())


def pairs(by_annotator: Mapping[str, Labels]) -> tuple[AnnotatorPair, ...]:
    """Every two annotators with blocks in common."""
    made = []
    for (one, a), (other, b) in combinations(by_annotator.items(), 2):
        both = sorted(a.keys() & b.keys())
        counts_4 = np.zeros(4)
        for block in both:
            counts_4[2 * (a[block] == "X") + (b[block] == "X")] += 1
        if both:
            kappa = float(metrics.cohens_kappa(counts_4))
            made.append(
                AnnotatorPair(
                    one=one, other=other, blocks=len(both),
                    accuracy=float((counts_4[0] + counts_4[3]) / len(both)),
                    kappa=kappa if math.isfinite(kappa) else None,
                )
            )  # fmt: skip
    return tuple(made)


def agreement_line(found: LabelAgreement) -> AgreementLine:
    """A row of the table."""

    def share(value: float | None) -> str:
        return DASH if value is None else f"{100 * value:.1f}%"

    def within(ends: Ends, text: str, show: str) -> str:
        low, high = ends
        if low is None or high is None:
            return text
        if show == "%":
            return f"{text} ({100 * low:.1f} to {100 * high:.1f})"
        return f"{text} ({signed(low, 2)} to {signed(high, 2)})"

    return AgreementLine(found.annotator, [
        f"{found.blocks:,}", within(found.accuracy_interval, share(found.accuracy), "%"),
        share(found.most_frequent), share(found.of_e), share(found.of_x), share(found.e_found),
        share(found.x_found), within(found.kappa_interval, signed(found.kappa, 2), ""),
        share(found.over_detected),
    ])  # fmt: skip


def notes(found: Sequence[LabelAgreement], both: Sequence[AnnotatorPair]) -> list[str]:
    """Sentences below the table."""
    lines = [
        "of E: of the blocks that the phases call E, the share labelled E; E found: of the blocks "
        "labelled E, the share called E. The paper has 89.6, 98.2 and 81.0 % (Tab. 1), of 2,858 "
        "blocks that two people labelled."
    ] if found else []  # fmt: skip
    lines += [
        f"{p.one} and {p.other} agree on {100 * (p.accuracy or 0):.1f}% of {p.blocks:,} blocks "
        f"(Cohen's kappa {signed(p.kappa, 2)})."
        for p in both
    ]
    return lines


def agreement_warnings(found: Sequence[LabelAgreement]) -> list[str]:
    """Where the phases agree with labels no better than chance."""
    poor = [a for a in found if a.kappa is not None and (a.kappa_interval[0] or 0) <= 0]
    return [
        f"The phases agree with {a.annotator} no better than chance can: kappa "
        f"{agreement_line(a).cells[7]} over {a.blocks} blocks."
        for a in poor
    ]
