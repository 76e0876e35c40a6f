"""`surgeon diff`: where two checkpoints differ, and what that means.

sums.py         what two tensors have in common, piece by piece
blocks.py       the part of a model that a tensor belongs to
unit_places.py  FFN units that are in other places
meaning.py      sentences: merge, transplant, reinforcement learning, what lies beside the weights

It asks what merge-sweep and transplant ask, so it stands above them.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from surgeon import artifact, jsonl, lineage
from surgeon.artifact import part
from surgeon.checkpoint import FLOATS, Checkpoint
from surgeon.console import announce, console, say, table
from surgeon.diff import meaning
from surgeon.diff.parts import ORDER, block_of
from surgeon.diff.sums import Sums, compared, finite
from surgeon.diff.unit_places import UnitPlaces, unit_places
from surgeon.errors import BadInput
from surgeon.families import label, open_checkpoint
from surgeon.merge import tensor_names
from surgeon.progress import bar
from surgeon.report.heat import HeatPage, write_heat
from surgeon.settings import record, verb
from surgeon.settings.diff import DiffSettings
from surgeon.threads import one_thread

__all__ = ["BlockDifference", "DiffedCheckpoint", "WeightDiff", "diff", "show"]

TENSORS = "tensors.jsonl"
PAGE = "report.html"
MEASURES = ("relative", "cosine", "equal", "unmoved")
LONGEST = 64
"""Layers that are printed; pages and JSON have all."""


@part
class DiffedCheckpoint:
    """One of the two."""

    name: str
    spec: str
    digest: str | None = None
    """None where nothing is written: digesting reads all of it once more."""
    model_type: str
    dtypes: tuple[str, ...]
    parameters: int


@part
class BlockDifference:
    """How one block of one layer differs."""

    layer: int | None
    """None outside the layers, and for a sum over all."""
    block: str
    """`q`, `gate`, `norm`, ...; or a kind of blocks: `attention`, `FFN`."""
    parameters: int
    relative: float | None
    """Norm of the difference over the norm of the first's weights; None where those are zero."""
    cosine: float | None
    """Between both, flattened; None where one is zero."""
    equal: float
    """Share of the weights that are the same in both, in every bit where the dtypes are."""
    unmoved: float
    """Share that differs by at most 1e-5: the sparsity of the update."""
    share: float
    """Of the squared difference of all weights."""


@artifact.artifact("diff.json")
class WeightDiff:
    """Where two checkpoints differ."""

    first: DiffedCheckpoint
    second: DiffedCheckpoint
    total: BlockDifference
    kinds: tuple[BlockDifference, ...]
    """By kind of block, over all layers."""
    blocks: tuple[BlockDifference, ...]
    """By layer and block."""
    units: tuple[UnitPlaces, ...]
    """FFN units that were looked for, by layer; empty where FFNs don't correspond."""
    apart: tuple[str, ...]
    """Tensors that only one has, or of another shape in the other: they are in no figure."""
    broken: tuple[str, ...] = ()
    """Tensors that hold NaN or infinity in one of them: they are in no figure."""
    beside: tuple[str, ...]
    """What differs beside the weights, in sentences."""
    meaning: tuple[str, ...]
    """What it all means, in sentences."""
    out: Annotated[Path | None, Field(exclude=True)] = None
    already: artifact.Already = False


class DiffPlan(NamedTuple):
    """Two checkpoints that were opened; no weight has been read."""

    settings: DiffSettings
    first: Checkpoint
    second: Checkpoint
    """With the first's spelling of tensors, where both are one architecture."""
    given: Checkpoint
    """The second as it was named."""
    common: list[str]
    apart: list[str]


@verb(DiffSettings)
def diff(settings: DiffSettings) -> WeightDiff:
    """Compare two checkpoints tensor by tensor; both are read in pieces, one tensor at a time.

    Raises `BadInput` where no tensor of one has a partner in the other.
    """
    plan = prepare(settings)
    if settings.out is None:
        return concluded(plan, summed(plan, None), digests=False)
    inputs = {"first": plan.first.digest, "second": plan.given.digest}
    run = lineage.Run("diff", record(settings), inputs)

    def work(directory: Path) -> WeightDiff:
        found = concluded(plan, summed(plan, directory / TENSORS), digests=True)
        write_heat(directory / PAGE, page_of(found))
        return found

    return artifact.once(settings.out, WeightDiff, work, run=run)


def prepare(settings: DiffSettings) -> DiffPlan:
    """Open both; raises `BadInput` where they can't be compared."""
    first, given = open_checkpoint(settings.first), open_checkpoint(settings.second)
    second = given
    if first.model_type == second.model_type and first.tensors.keys() != second.tensors.keys():
        # Where that can't be, what has no partner is listed.
        with suppress(BadInput):
            first, second, _ = tensor_names.alike(first, second)
    here, there = first.tensors, second.tensors
    common = [n for n, i in here.items() if n in there and there[n].shape == i.shape
              and i.dtype in FLOATS and there[n].dtype in FLOATS]  # fmt: skip
    matched = set(common)
    apart = [n for n in (*here, *(n for n in there if n not in here)) if n not in matched]
    if not common:
        raise BadInput(
            f"found no tensor of {settings.first} ({first.model_type}) that {settings.second} "
            f"({second.model_type}) has in the same shape, expected two checkpoints of one "
            "architecture and size."
        )
    return DiffPlan(settings, first, second, given, common, apart)


def summed(plan: DiffPlan, kept: Path | None) -> dict[str, Sums]:
    """The sums of every common tensor; `kept` holds what a killed run has done."""
    rows = dict[str, Sums]()
    for _, row in jsonl.rows(kept) if kept is not None else ():
        rows[row["tensor"]] = Sums(*row["sums"])
    left = [name for name in plan.common if name not in rows]
    with bar("comparing", len(left)) as advance, one_thread():
        for name in left:
            sums = rows[name] = compared(plan.first, plan.second, name)
            if kept is not None and finite(sums):
                jsonl.append(kept, {"tensor": name, "sums": list(sums)})
            advance(1)
    return {name: rows[name] for name in plan.common}


def concluded(plan: DiffPlan, sums: Mapping[str, Sums], *, digests: bool) -> WeightDiff:
    """Figures by block and kind, and what they mean."""
    broken = [name for name, s in sums.items() if not finite(s)]
    sums = {name: s for name, s in sums.items() if finite(s)}
    total, kinds, blocks = Sums(), dict[str, Sums](), dict[tuple[int | None, str], Sums]()
    for name, s in sums.items():
        block = block_of(name)
        total = total.plus(s)
        kinds[block.kind] = kinds.get(block.kind, Sums()).plus(s)
        key = (block.layer, block.name)
        blocks[key] = blocks.get(key, Sums()).plus(s)
    with one_thread():
        places = unit_places(plan.first, plan.second, plan.settings.units)
    said = [
        *meaning.for_a_merge(plan.first, plan.second, sums, [*plan.apart, *broken]),
        *meaning.for_a_transplant(kinds, places),
        *meaning.for_reinforcement_learning(total),
    ]
    order = sorted(blocks, key=lambda k: (-1 if k[0] is None else k[0], ORDER.index(k[1])))
    return WeightDiff(
        first=_diffed(plan.first, digests),
        second=_diffed(plan.given, digests),
        total=_difference(None, "all", total, total.dd),
        kinds=tuple(_difference(None, kind, s, total.dd) for kind, s in kinds.items()),
        blocks=tuple(_difference(*key, blocks[key], total.dd) for key in order),
        units=places,
        apart=tuple(plan.apart),
        broken=tuple(broken),
        beside=tuple(meaning.beside_the_weights(plan.first, plan.given)),
        meaning=tuple(said),
    )


def _diffed(checkpoint: Checkpoint, digests: bool) -> DiffedCheckpoint:
    infos = checkpoint.tensors.values()
    n = 0
    for info in infos:
        size = 1
        for length in info.shape:
            size *= length
        n += size
    return DiffedCheckpoint(
        name=label(checkpoint),
        spec=checkpoint.spec,
        digest=checkpoint.digest if digests else None,
        model_type=checkpoint.model_type,
        dtypes=tuple(sorted({info.dtype for info in infos})),
        parameters=n,
    )


def _difference(layer: int | None, block: str, s: Sums, whole: float) -> BlockDifference:
    return BlockDifference(
        layer=layer,
        block=block,
        parameters=s.n,
        relative=s.relative,
        cosine=s.cosine,
        equal=s.equal / s.n if s.n else 1.0,
        unmoved=s.unmoved / s.n if s.n else 1.0,
        share=s.dd / whole if whole else 0.0,
    )


# --- shown ----------------------------------------------------------------------------------------


def page_of(found: WeightDiff) -> HeatPage:
    """The page's values: a heat map for each measure."""
    inside = [b for b in found.blocks if b.layer is not None]
    columns = [name for name in ORDER if any(b.block == name for b in inside)]
    layers = sorted({b.layer for b in inside if b.layer is not None})
    cell = {(b.layer, b.block): b for b in inside}
    maps = {
        name: [
            [getattr(cell[layer, c], name) if (layer, c) in cell else None for c in columns]
            for layer in layers
        ]
        for name in MEASURES
    }
    names = (found.first.name, found.second.name)
    if names[0] == names[1]:
        names = (found.first.spec, found.second.spec)
    return HeatPage(
        names=names,
        headline=headline(found),
        meaning=found.meaning,
        beside=found.beside,
        layers=layers,
        columns=columns,
        maps=maps,
        outside=[_cells(b) for b in found.blocks if b.layer is None],
        kinds=[_cells(b) for b in (*found.kinds, found.total)],
        units=[
            (str(p.layer), f"{p.units}", f"{p.in_place}", f"{p.elsewhere}", f"{p.same:.4f}",
             f"{p.nearest:.4f}")
            for p in found.units
        ],
        apart=found.apart,
        facts=[
            (what, c.spec, f"{c.model_type}, {c.parameters:,} parameters, {'/'.join(c.dtypes)}")
            for what, c in (("first", found.first), ("second", found.second))
        ],
    )  # fmt: skip


def _cells(b: BlockDifference) -> tuple[str, ...]:
    return (b.block, f"{b.parameters:,}", _share_of_norm(b.relative), _cosine(b.cosine),
            f"{b.equal:.1%}", f"{b.unmoved:.1%}", f"{b.share:.1%}")  # fmt: skip


def _share_of_norm(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def headline(found: WeightDiff) -> str:
    """One sentence with the figures of all weights."""
    total = found.total
    if total.equal == 1.0:
        return f"All {total.parameters:,} weights are equal."
    return (
        f"The second is {_share_of_norm(total.relative)} of the first's norm away from it "
        f"(cosine {_cosine(total.cosine)}); {total.equal:.1%} of {total.parameters:,} weights are "
        "equal in every bit."
    )


def show(found: WeightDiff) -> None:
    """Print the figures by layer and kind, and what they mean."""
    announce(found.already, "This comparison")
    say(headline(found), style="bold")
    names = ("block", "weights", "moved", "cosine", "equal", "unmoved", "share")
    rows = table(*names)
    for b in (*found.kinds, found.total):
        rows.add_row(*_cells(b))
    console().print(rows)
    say("")
    _show_layers(found)
    for line in (*found.meaning, *(f"Beside the weights: {text}" for text in found.beside)):
        say(line)
    if found.apart:
        first = ", ".join(found.apart[:3])
        say(f"{len(found.apart)} tensors have no partner and are in no figure: {first}, ...")
    if found.broken:
        say(f"{len(found.broken)} tensors hold NaN or infinity: {', '.join(found.broken[:3])}")
    if found.out is not None:
        say(f"Page: {found.out / PAGE}")


def _show_layers(found: WeightDiff) -> None:
    """How far each block of each layer moved, in percent of its norm."""
    page = page_of(found)
    if not page.layers:
        return
    rows = table("layer", *page.columns)
    step = -(-len(page.layers) // LONGEST)
    for layer, values in list(zip(page.layers, page.maps["relative"], strict=True))[::step]:
        rows.add_row(str(layer), *(_share_of_norm(value) for value in values))
    some = f", one layer in {step}" if step > 1 else ""
    say(f"moved, in percent of the first's norm{some}:")
    console().print(rows)
    say("")
