"""What a difference means for a merge, a transplant, and an endpoint of reinforcement learning."""

from collections.abc import Mapping, Sequence

from surgeon.checkpoint import FLOATS, Checkpoint
from surgeon.diff.parts import block_of
from surgeon.diff.sums import Sums
from surgeon.diff.unit_places import UnitPlaces
from surgeon.errors import BadInput
from surgeon.families import label
from surgeon.families.cosines import merge_groups
from surgeon.merge import preflight, relation

LITTLE = 0.2
"""Share of the difference below which the FFN units hold little of it."""
DENSE = 0.05
"""Share of equal weights below which an update is dense."""


def for_a_merge(
    first: Checkpoint, second: Checkpoint, sums: Mapping[str, Sums], apart: Sequence[str]
) -> list[str]:
    """Sentences about merging the two; `apart` are tensors that can't be mixed."""
    if apart:
        return [
            f"Merge: not tensor by tensor, {len(apart)} tensors have no partner of their shape "
            f"(first {apart[0]})."
        ]
    said = [f"Merge: {text}." for text in relation.warnings(first, second, related(sums))]
    cosines = by_group(first, sums)
    if not said and cosines:
        said.append(
            "Merge: nothing speaks against it, cosine of "
            + ", ".join(f"{k} {v:.4f}" for k, v in related(sums).cosine.items())
            + "."
        )
    try:
        said.append(f"Merge: {preflight.fallback(first, cosines).line()}.")
    except BadInput as error:
        said.append(f"Merge: {error}.")
    return said


def related(sums: Mapping[str, Sums]) -> relation.Relation:
    """The figures of all weights in the form that merge-sweep has of samples."""
    differing = tuple(name for name, s in sums.items() if s.equal < s.n)
    by_kind: dict[str, Sums] = {}
    for name, s in sums.items():
        kind = block_of(name).kind
        if kind in relation.KINDS:
            by_kind[kind] = by_kind.get(kind, Sums()).plus(s)
    return relation.Relation(
        tensors=len(sums),
        differing=differing,
        sampled=sum(sums[name].n for name in differing),
        equal=sum(sums[name].equal for name in differing),
        cosine={kind: s.cosine or 0.0 for kind, s in by_kind.items()},
        whole=True,
    )


def by_group(first: Checkpoint, sums: Mapping[str, Sums]) -> dict[str, float]:
    """Cosine of each group of tensors that a merge mixes by one angle."""
    found = {}
    for group in merge_groups(first):
        members = [sums[name] for name in group.names if name in sums]
        if len(members) == len(group.names) and first.tensors[group.names[0]].dtype in FLOATS:
            total = Sums()
            for member in members:
                total = total.plus(member)
            found[group.key] = 1.0 if total.cosine is None else total.cosine
    return found


def for_a_transplant(kinds: Mapping[str, Sums], places: Sequence[UnitPlaces]) -> list[str]:
    """Sentences about moving FFN units from one to the other."""
    total = sum(s.dd for s in kinds.values())
    if total == 0:
        return ["Transplant: the weights are equal, so there is nothing to move."]
    share = {kind: s.dd / total for kind, s in kinds.items() if s.dd}
    ffn = share.pop("FFN", 0.0)
    others = ", ".join(
        f"{v:.0%} in {'embedding and head' if k == 'embedding' else k}"
        for k, v in sorted(share.items(), key=lambda item: -item[1])
    )
    line = f"Transplant: {ffn:.0%} of the squared difference lies in the FFN"
    line += f", {others}" if others else ""
    if ffn < LITTLE:
        line += ": moving FFN units moves little of what the two differ in"
    elif others:
        line += "; what lies outside the FFN stays behind whichever units move"
    said = [f"{line}."]
    units, moved = sum(p.units for p in places), sum(p.elsewhere for p in places)
    stay = sum(p.in_place for p in places)
    if moved:
        layers = ", ".join(str(p.layer) for p in places if p.elsewhere)
        said.append(
            f"Transplant: {moved} of {units} FFN units that were looked for are in another place "
            f"in the other (layers {layers}): match them with --match permutation."
        )
    elif units:
        same = sum(p.same * p.units for p in places) / units
        said.append(
            f"Transplant: {stay} of {units} FFN units that were looked for are most alike to the "
            f"unit of the same number (mean cosine {same:.3f}), none is a unit in another place."
        )
    return said


def for_reinforcement_learning(total: Sums) -> list[str]:
    """One sentence on how sparse the update is."""
    if total.equal == total.n:
        return []
    equal = total.equal / total.n
    if equal >= relation.SPARSE:
        line = "a sparse update, as reinforcement learning leaves"
    elif equal < DENSE:
        line = "a dense update, as supervised training leaves"
    else:
        line = "neither the sparse update of reinforcement learning nor a dense one"
    return [
        f"Reinforcement learning: {equal:.1%} of the weights are equal in every bit and "
        f"{total.unmoved / total.n:.1%} moved by at most 1e-5: {line}."
    ]


def beside_the_weights(first: Checkpoint, second: Checkpoint) -> list[str]:
    """What differs in tokenizer, template, generation config and config."""
    said = []
    if vocabulary := preflight.vocabulary_difference(first, second):
        said.append(f"{vocabulary}.")
    said += [f"{text}." for _, text in preflight.notices(first, second)]
    if first.model_type != second.model_type:
        said.insert(0, f"{label(first)} is {first.model_type}, {label(second)} "
                       f"{second.model_type}.")  # fmt: skip
    return said
