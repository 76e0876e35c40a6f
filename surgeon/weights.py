"""`surgeon weights`: whether neuron weights agree, and whose weights can score whose responses.

Weights are compared over the neurons that have any evidence in either. What one's weights say of
another's responses is the Good-Mass Fraction (NEX Eq. 14), a mean over responses where the ranking
kept their masses (evidence.safetensors), else that of the mean activation mass.
"""

# Shapes: L layers, F units per layer, N neurons (L * F), C weights that are compared.

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.table import Table

from surgeon import artifact, evidence_file, lineage, metrics, nex
from surgeon.checkpoint import read_header, split_member
from surgeon.console import announce, console, say, table, warn
from surgeon.errors import BadInput
from surgeon.neuron_weights import (
    WEIGHTS,
    NeuronWeights,
    find_weights,
    read_metadata,
    read_weights,
)
from surgeon.settings import verb
from surgeon.settings.weights import WeightsSettings

DASH = "–"
PAIRS_SHOWN, MATRIX_SHOWN = 12, 8
"""A terminal shows this many pairs, the least alike first, and a matrix of this many rows."""


@artifact.part
class ComparedWeights:
    """Weights that were compared."""

    name: str
    file: str
    checkpoint: str
    digest: str
    """Of the checkpoint they were computed on; empty where the file doesn't say."""
    mini_set: str
    """Digest of the prompts; empty where the file doesn't say."""
    n_layers: int
    d_ff: int
    effective: int
    """Neurons with a weight above 0."""
    redundant: int
    """Neurons with a weight below 0."""
    mass_effective: float | None
    """Share of the recorded activation mass on effective neurons; None where none is recorded."""
    mass_redundant: float | None


@artifact.part
class Likeness:
    """How alike two sets of weights are; None where there is nothing to compare."""

    neurons: int
    """With evidence in either."""
    correlation: float | None
    """Pearson, over them."""
    same_sign: float | None
    """Share of the neurons with evidence in both whose weights have one sign."""
    effective_overlap: float | None
    """Neurons effective in both over those effective in either (Jaccard)."""
    redundant_overlap: float | None


@artifact.part
class WeightsPair:
    """Two sets of weights for models of one shape."""

    a: str
    b: str
    whole: Likeness
    layers: tuple[Likeness, ...]


@artifact.part
class ScoredBy:
    """What one's weights say of everybody's responses."""

    weights: str
    score: dict[str, float | None]
    """Whose responses -> their score; None where the models differ in shape, or no mass is kept."""
    order: float | None
    """Spearman correlation with what everybody's own weights say; None below three."""


@artifact.artifact("weights.json")
class WeightsComparison:
    """Neuron weights, compared."""

    weights: tuple[ComparedWeights, ...]
    pairs: tuple[WeightsPair, ...]
    """Those of one shape."""
    scores_from: Literal["responses", "mean mass"]
    """What the scores are made of."""
    scores: tuple[ScoredBy, ...]
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


class Compared(NamedTuple):
    """Weights as they were read."""

    name: str
    read: NeuronWeights
    mini_set: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.read.weight_LF.shape


@verb(WeightsSettings)
def weights(settings: WeightsSettings) -> WeightsComparison:
    """Compare neuron weights, pair by pair and layer by layer, and score everybody's responses with
    everybody's weights. Raises `BadInput` for less than two, or none in a place."""
    found = read_all(settings.weights)
    if settings.out is None:
        return compare(found)
    inputs = {c.name: lineage.file_digest(c.read.path) for c in found}
    run = lineage.Run("weights", {}, inputs)
    return artifact.once(settings.out, WeightsComparison, lambda _: compare(found), run=run)


# ---------------------------------------------------------------- reading


def read_all(specs: Sequence[str]) -> list[Compared]:
    """Every set of weights that was named, each with a name of its own."""
    files = list(dict.fromkeys(file for spec in specs for file in files_of(spec)))
    if len(files) < 2:
        raise BadInput(
            f"found {len(files)} set of neuron weights, expected two or more to compare. Name a "
            "ranking of several candidates, or several: RANKING#NAME or weights.safetensors."
        )
    short = [read_metadata(f).get("candidate") or f.parent.name for f in files]
    names = [
        s if short.count(s) == 1 else f"{f.parent.parent.parent.name or f.parent.name}#{s}"
        for s, f in zip(short, files, strict=True)
    ]
    names = [n if names.count(n) == 1 else str(f) for n, f in zip(names, files, strict=True)]
    return [read_one(name, file) for name, file in zip(names, files, strict=True)]


def files_of(spec: str) -> list[Path]:
    """The weights files that a spec names: all of a ranking's candidates where it names none."""
    place, member = split_member(spec)
    several = sorted(Path(place).expanduser().glob(f"candidates/*/{WEIGHTS}"))
    return several if several and not member else [find_weights(spec)]


def read_one(name: str, file: Path) -> Compared:
    """One set of weights, of whatever shape."""
    metadata, header = read_metadata(file), read_header(file)
    shape = header["weight_LF"].shape if "weight_LF" in header else (0, 0)
    if len(shape) != 2:
        raise BadInput(f"{file} holds weight_LF of {len(shape)} dimensions, expected 2.")
    return Compared(name, read_weights(file, shape[0], shape[1]), metadata.get("mini_set", ""))


# ---------------------------------------------------------------- comparing


def compare(found: Sequence[Compared]) -> WeightsComparison:
    """Everything that is said of these weights."""
    pairs = [
        WeightsPair(
            a=a.name,
            b=b.name,
            whole=likeness(a.read.weight_LF, b.read.weight_LF),
            layers=tuple(map(likeness, a.read.weight_LF, b.read.weight_LF)),
        )
        for a, b in combinations(found, 2)
        if a.shape == b.shape
    ]
    masses = {c.name: responses_of(c) for c in found}
    kept = all(responses is not None for responses in masses.values())
    by_score = {
        a.name: {
            b.name: score(a, b, masses[b.name] if kept else None) if a.shape == b.shape else None
            for b in found
        }
        for a in found
    }
    return WeightsComparison(
        weights=tuple(map(described, found)),
        pairs=tuple(pairs),
        scores_from="responses" if kept else "mean mass",
        scores=tuple(
            ScoredBy(weights=name, score=row, order=order(row, by_score))
            for name, row in by_score.items()
        ),
        warnings=tuple(warnings(found, kept=kept)),
    )


def described(one: Compared) -> ComparedWeights:
    weight_LF, mass_LF = one.read.weight_LF, one.read.mass_LF
    total = 0.0 if mass_LF is None else float(mass_LF.sum(dtype=np.float64))

    def share(of_LF: np.ndarray) -> float | None:
        return float(mass_LF[of_LF].sum(dtype=np.float64)) / total if total else None  # pyright: ignore

    return ComparedWeights(
        name=one.name,
        file=str(one.read.path),
        checkpoint=one.read.checkpoint,
        digest=one.read.digest,
        mini_set=one.mini_set,
        n_layers=one.shape[0],
        d_ff=one.shape[1],
        effective=int((weight_LF > 0).sum()),
        redundant=int((weight_LF < 0).sum()),
        mass_effective=share(weight_LF > 0),
        mass_redundant=share(weight_LF < 0),
    )


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Two arrays of weights of one shape, over the neurons with evidence in either."""
    either, both = (a != 0) | (b != 0), (a != 0) & (b != 0)
    return Likeness(
        neurons=int(either.sum()),
        correlation=none_for_nan(metrics.pearson(a[either], b[either])),
        same_sign=float(np.mean(a[both] * b[both] > 0)) if both.any() else None,
        effective_overlap=overlap(a > 0, b > 0),
        redundant_overlap=overlap(a < 0, b < 0),
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float | None:
    """Jaccard index of two sets; None for two empty ones."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else None


def responses_of(one: Compared) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The neurons and masses of each response that was kept beside the weights; None without."""
    directory = one.read.path.parent
    if not (directory / evidence_file.FILE).is_file():
        return None
    kept = evidence_file.read(directory, rows=False)
    return [(r.neuron_K, r.mass_K) for r in kept.responses]


def score(
    by: Compared, of: Compared, responses: Sequence[tuple[np.ndarray, np.ndarray]] | None
) -> float | None:
    """The score of one's responses by another's weights; of the mean mass without responses."""
    if responses is None:
        if of.read.mass_LF is None:
            return None
        mass_N = of.read.mass_LF.ravel()
        responses = [(np.flatnonzero(mass_N), mass_N[mass_N > 0])]
    weight_N = by.read.weight_LF.ravel()
    scores = [nex.good_mass_fraction(*response, weight_N) for response in responses]
    counted = [nex.counted(s.score, s.mass == 0) for s in scores]
    there = [value for value in counted if not math.isnan(value)]
    return float(np.mean(there)) if there else None


def order(
    row: Mapping[str, float | None], by_score: Mapping[str, Mapping[str, float | None]]
) -> float | None:
    """How well one's weights order everybody: Spearman with everybody's score by their own."""
    pairs = [(row[name], by_score[name][name]) for name in row]
    there = [(x, own) for x, own in pairs if x is not None and own is not None]
    if len(there) < 3:
        return None
    return none_for_nan(metrics.spearman(*np.array(there).T))


def none_for_nan(value: float) -> float | None:
    return value if math.isfinite(value) else None


def warnings(found: Sequence[Compared], *, kept: bool) -> list[str]:
    """What keeps the comparison from meaning much."""
    lines = []
    shapes = {c.shape for c in found}
    if len(shapes) > 1:
        shown = ", ".join(f"{c.name} {c.shape[0]} x {c.shape[1]}" for c in found[:4])
        lines.append(
            f"The models differ in shape ({shown}): a neuron of one is none of another, so only "
            "those of one shape are compared."
        )
    if not kept:
        lines.append(
            "Not every ranking kept its responses (evidence.safetensors): the scores are those of "
            "the mean activation mass, not means over responses."
        )
    return lines


# ---------------------------------------------------------------- showing


def show(result: WeightsComparison) -> None:
    """Print a comparison: the weights, the pairs, and who scores whom."""
    announce(result.already, "This comparison")
    warn(result.warnings)
    terminal = console()
    rows = table("weights", "of", "effective", "redundant", "mass on effective", "on redundant",
                 left=["of"])  # fmt: skip
    for w in result.weights:
        rows.add_row(
            w.name, Path(w.checkpoint).name or DASH, str(w.effective), str(w.redundant),
            share_text(w.mass_effective), share_text(w.mass_redundant),
        )  # fmt: skip
    terminal.print(rows)
    if result.pairs:
        alike = sorted(result.pairs, key=lambda p: p.whole.correlation or 0.0)
        more = f" (the {PAIRS_SHOWN} least alike)" if len(alike) > PAIRS_SHOWN else ""
        say(f"\nPairs{more}, over the neurons with evidence in either:")
        terminal.print(pair_table(alike[:PAIRS_SHOWN]))
    say(f"\nWho scores whom (rows: the weights; scores from {result.scores_from}):")
    terminal.print(score_table(result))
    if str(result.out) != ".":
        say(f"All of it, layer by layer: {result.out}/weights.json")


def pair_table(pairs: Sequence[WeightsPair]) -> Table:
    """Pairs for a terminal, with the layer in which they are least alike."""
    rows = table("a", "b", "r", "same sign", "effective", "redundant", "least alike in",
                 left=["b"])  # fmt: skip
    for pair in pairs:
        found = {n: x.correlation for n, x in enumerate(pair.layers) if x.correlation is not None}
        least = min(found, key=lambda n: found[n]) if found else None
        rows.add_row(
            pair.a, pair.b, number(pair.whole.correlation), share_text(pair.whole.same_sign),
            share_text(pair.whole.effective_overlap), share_text(pair.whole.redundant_overlap),
            DASH if least is None else f"layer {least} ({found[least]:.2f})",
        )  # fmt: skip
    return rows


def score_table(result: WeightsComparison) -> Table:
    """Scores by everybody's weights; the columns of the first few only, where there are many."""
    names = [w.name for w in result.weights][:MATRIX_SHOWN]
    rows = table("weights", *names, "order of all")
    for row in result.scores:
        rows.add_row(row.weights, *(number(row.score[n]) for n in names), number(row.order))
    return rows


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"


def share_text(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.0f}%"
