"""Move FFN neurons from a donor checkpoint into a recipient (NEX sec. 5.5).

Unit j of layer l moves as a whole: row j of gate and up, column j of down. Attention, norms,
embeddings, routers and the bias of down stay the recipient's, and so do its tokenizer, template
and generation config. Units of a mask that were not chosen keep their bits.

A mask numbers the donor's units, as weights computed on the donor do. With `match="permutation"`
unit j of the donor goes to the place of the recipient's unit it is matched to.
"""

# Shapes: L layers, F units per layer.

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgeon import lineage
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.transplant.operations import (
    SURGERIES,
    Operation,
    Similarity,
    operation,
    sampled_similarity,
)
from surgeon.transplant.selection import (
    BUDGETS,
    CONTROLS,
    SIGNS,
    Choice,
    NeuronWeights,
    choose,
    find_weights,
    mass_matched_units,
    parse_layers,
    random_units,
    read_mask,
    read_weights,
    signed_units,
)
from surgeon.transplant.writing import (
    Difference,
    Pair,
    bytes_needed,
    corresponding,
    matched,
    model_card,
    write,
)

__all__ = [
    "BUDGETS",
    "CONTROLS",
    "SIGNS",
    "SURGERIES",
    "NeuronWeights",
    "Report",
    "Similarity",
    "find_weights",
    "mass_matched_units",
    "parse_layers",
    "random_units",
    "read_weights",
    "signed_units",
    "transplant",
]


class Report(NamedTuple):
    """What moved, or would move in a dry run."""

    recipient: str
    donor: str
    surgery: str
    alpha: float
    selection: str
    """In words: sign or mask, threshold, share, layers, control, seed."""
    units_L: tuple[int, ...]
    parameters_L: tuple[int, ...]
    """Parameters in the units that move."""
    of_units_L: tuple[int, ...]
    mass_share: float | None
    """Share of the activation mass on the mini-set that the units carry; None if not recorded."""
    mass_of: str
    """`recipient` or `donor`: whose activation mass that is."""
    difference_share: float | None
    """Share of the squared difference of all compared FFN weights that lies in the units."""
    difference_sampled: bool
    """Whether that share is an estimate from a part of each large projection."""
    similarity: Similarity | None
    """Of units of the same number; None for a surgery without a donor."""
    matched_similarity: float | None
    """Mean cosine after matching; None without it."""
    warnings: tuple[str, ...]
    out: str
    """Where the result is; empty for a dry run."""

    @property
    def units(self) -> int:
        """Units that move."""
        return sum(self.units_L)

    @property
    def parameters(self) -> int:
        """Parameters in them."""
        return sum(self.parameters_L)

    def lines(self) -> list[str]:
        """The report as text, one line per layer."""
        everything = sum(self.of_units_L)
        share = self.units / max(1, everything)
        what = self.surgery + (f" with alpha {self.alpha:g}" if self.alpha != 1 else "")
        source = f"{self.donor} -> {self.recipient}" if self.donor else self.recipient
        found = [
            f"{source}: {what}",
            f"chosen: {self.selection}",
            "layer    units       of  params",
        ]
        found += [
            f"{layer:5d} {units:8,d} {of:8,d}  {parameters:,d}"
            for layer, (units, of, parameters) in enumerate(
                zip(self.units_L, self.of_units_L, self.parameters_L, strict=True)
            )
        ]
        found.append(
            f"total: {self.units:,d} of {everything:,d} units ({share:.1%}), "
            f"{self.parameters:,d} parameters"
        )
        if self.mass_share is not None:
            found.append(
                f"activation mass: {self.mass_share:.1%} of the {self.mass_of}'s on the mini-set"
                + ("" if self.mass_of == "recipient" else " (the recipient's was not given)")
            )
        else:
            found.append("activation mass: not recorded in the weights given")
        if self.difference_share is not None:
            where = " of the FFNs matched" if self.matched_similarity is not None else ""
            found.append(
                f"weight difference: {self.difference_share:.1%} of the squared difference of the "
                f"FFN weights{where} lies in these units"
                + (" (estimated from a part of each)" if self.difference_sampled else "")
            )
        if self.similarity is not None:
            found.append(
                f"similarity: units of the same number have mean cosine "
                f"{self.similarity.same:.4f}, of different numbers {self.similarity.shuffled:.4f}"
            )
        if self.similarity is not None and self.matched_similarity is not None:
            found.append(
                f"matching: raised the mean cosine from {self.similarity.same:.4f} to "
                f"{self.matched_similarity:.4f}"
            )
        found += [f"warning: {warning}" for warning in self.warnings]
        found.append(f"written: {self.out}" if self.out else "dry run: nothing was written")
        return found


def transplant(
    recipient: str | Path | Checkpoint,
    *,
    donor: str | Path | Checkpoint | None = None,
    weights: str | Path | None = None,
    select: str = "effective",
    mask: str | Path | np.ndarray | None = None,
    control: str | None = None,
    threshold: float = 0.0,
    top_fraction: float | None = None,
    budget: str = "global",
    layers: str | None = None,
    alpha: float = 1.0,
    surgery: str = "replace",
    match: str | None = None,
    weights_from_other: bool = False,
    recipient_weights: str | Path | None = None,
    seed: int = 0,
    dry_run: bool = False,
    out: str | Path | None = None,
) -> Report:
    """Write `out`: the recipient with chosen FFN units of the donor (two checkpoints for `swap`).

    Units are chosen by the sign of `weights` (`select`), or by `mask`, a safetensors file or an
    array (L, F) of bool; `control` puts others in their place (see `selection`). `surgery` is a
    name of `SURGERIES` or `module:function` (see `operations`); `ablate` needs no donor. `swap`
    writes `out/recipient` and `out/donor`. Repeating a finished run does nothing; a killed one
    continues. Raises `BadInput` before the first byte is written when anything doesn't fit.
    """
    doing = operation(surgery, alpha)
    choice = Choice(select, control, threshold, top_fraction, budget, layers, seed)
    choice.checked(weights is not None, mask is not None)
    if match not in (None, "permutation"):
        raise BadInput(f"found --match {match!r}, expected permutation, or none.")
    if out is None and not dry_run:
        raise BadInput("transplant needs --out, the directory to write (or --dry-run).")
    if donor is None and doing.needs_donor:
        raise BadInput(f"surgery {surgery} needs --donor; only ablate does without.")
    into = _open(recipient)
    other = into if donor is None else _open(donor)
    pair = corresponding(into, other)
    whose = "recipient" if donor is None else "donor"
    recorded = _weights_of(weights, other, weights_from_other, whose)
    own = _weights_of(recipient_weights, into, weights_from_other, "recipient")
    given_LF = _mask(mask, into)
    chosen_LF, warnings = choose(choice, recorded, given_LF, pair.exists_LF)

    inputs = {"recipient": into.digest}
    if doing.needs_donor:
        inputs["donor"] = other.digest
        if into.digest == other.digest:
            warnings.append("donor and recipient have the same digest: nothing can change.")
    for name, found in (("weights", recorded), ("recipient_weights", own)):
        if found is not None:
            inputs[name] = lineage.file_digest(found.path)
    if given_LF is not None:
        inputs["mask"] = lineage.digest_of(np.flatnonzero(given_LF).tolist())
    work = None
    if not dry_run:
        assert out is not None
        if not Path(out).exists():
            _require_room(pair, chosen_LF, doing, Path(out))
        arguments = choice._asdict() | dict(alpha=alpha, surgery=surgery, match=match)
        del arguments["seed"]
        if given_LF is not None:
            arguments["select"] = "mask"
        work = lineage.begin(out, verb="transplant", arguments=arguments, inputs=inputs, seed=seed)
        if work is None:
            return _read_report(Path(out))

    alike = after = None
    if doing.needs_donor and match is None:
        alike = sampled_similarity(into, other, pair.mine, pair.theirs, seed)
        if alike.low:
            warnings.append(
                f"units of the same number have mean cosine {alike.same:.3f}, units of different "
                f"numbers {alike.shuffled:.3f}: they don't correspond, as they would in siblings "
                "of one ancestor. Try --match permutation."
            )
    elif doing.needs_donor:
        pair, (before, after, strangers) = matched(pair, chosen_LF)
        alike = Similarity(before, strangers)
        if Similarity(after, strangers).low:
            warnings.append(
                f"even matched units have mean cosine {after:.3f} only: the models are strangers."
            )
    moved_LF = chosen_LF
    if pair.order_LF is not None:
        moved_LF = np.take_along_axis(chosen_LF, pair.order_LF, 1)
    mass_of, mass_share = _mass_share((own, moved_LF), (recorded, chosen_LF), whose)
    difference = Difference(pair)
    if work is not None:
        effect_LF = moved_LF & (alpha > 0)
        if doing.pair:
            for name in ("recipient", "donor"):
                (work / name).mkdir(exist_ok=True)
            write(pair, effect_LF, doing, work / "recipient", difference=difference)
            write(pair.turned(), chosen_LF, doing, work / "donor", side=1)
        else:
            write(pair, effect_LF, doing, work, difference=difference)
    report = Report(
        recipient=into.name,
        donor=other.name if doing.needs_donor else "",
        surgery=doing.name,
        alpha=alpha,
        selection=choice.in_words(given_LF is not None),
        units_L=tuple(moved_LF.sum(1).tolist()),
        parameters_L=_parameters(pair, moved_LF),
        of_units_L=tuple(pair.exists_LF.sum(1).tolist()),
        mass_share=mass_share,
        mass_of=mass_of,
        difference_share=difference.share(moved_LF) if doing.needs_donor else None,
        difference_sampled=doing.needs_donor and difference.sampled,
        similarity=alike,
        matched_similarity=after,
        warnings=tuple(warnings),
        out="" if work is None else str(out),
    )
    if work is not None:
        assert out is not None
        _publish(work, Path(out), report, pair, doing, inputs)
    return report


def _open(spec: str | Path | Checkpoint) -> Checkpoint:
    """What the user named; a virtual candidate (`family.json#name`) is written out for the run."""
    if isinstance(spec, Checkpoint):
        return spec
    return open_checkpoint(str(spec))


def _weights_of(
    spec: str | Path | None, of: Checkpoint, from_other: bool, role: str
) -> NeuronWeights | None:
    """Neuron weights, refused where they were computed on another checkpoint than `of`."""
    if spec is None:
        return None
    found = read_weights(find_weights(spec, of.digests), of.n_layers, of.d_ff)
    if found.digest not in of.digests and not from_other:
        whose = found.checkpoint or "a checkpoint the file does not name"
        raise BadInput(
            f"{found.path} was computed on {whose} ({found.digest[:19] or 'no digest'}), not on "
            f"the {role} {of.spec} ({of.digest[:19]}). Rank the {role}, or give "
            "--weights-from-other."
        )
    return found


def _mask(mask: str | Path | np.ndarray | None, of: Checkpoint) -> np.ndarray | None:
    if mask is None or isinstance(mask, str | Path):
        return None if mask is None else read_mask(Path(mask), of.n_layers, of.d_ff)
    if mask.shape != (of.n_layers, of.d_ff) or mask.dtype != np.bool_:
        raise BadInput(
            f"found a mask of shape {list(mask.shape)} and type {mask.dtype}, expected "
            f"[{of.n_layers}, {of.d_ff}] of bool."
        )
    return mask


def _require_room(pair: Pair, chosen_LF: np.ndarray, doing: Operation, out: Path) -> None:
    # Matching moves units within a block, so the touched files are the same either way.
    size = bytes_needed(pair, chosen_LF, doing, out)
    if doing.pair:
        size += bytes_needed(pair.turned(), chosen_LF, doing, out)
    lineage.require_room(out, size, "The transplant")


def _mass_share(
    of_recipient: tuple[NeuronWeights | None, np.ndarray],
    of_numbered: tuple[NeuronWeights | None, np.ndarray],
    numbered: str,
) -> tuple[str, float | None]:
    """Whose recording of activation mass is at hand, and the share of it in the units."""
    for whose, (weights, mask_LF) in (("recipient", of_recipient), (numbered, of_numbered)):
        if weights is not None and weights.mass_LF is not None:
            mass_LF = weights.mass_LF.astype(np.float64)
            return whose, float(mass_LF[mask_LF].sum() / max(mass_LF.sum(), 1e-300))
    return "", None


def _parameters(pair: Pair, moved_LF: np.ndarray) -> tuple[int, ...]:
    """Parameters in the moved units, per layer."""
    count_L = [0] * len(moved_LF)
    width = int(pair.recipient.text_config["hidden_size"])
    for site in pair.mine:
        each = sum(1 if slab.role.endswith("bias") else width for slab in site.slabs)
        count_L[site.layer] += each * int(moved_LF[site.layer, site.span].sum())
    return tuple(count_L)


def _publish(
    work: Path, out: Path, report: Report, pair: Pair, doing: Operation, inputs: dict[str, str]
) -> None:
    """Add model card and report to the finished directory and give it its name."""
    parents = {"recipient": pair.recipient} | ({"donor": pair.donor} if doing.needs_donor else {})
    made = {**(lineage.read(work) or {}), "report": report._asdict()}
    lineage.write_json(work / lineage.FILE, made)
    targets = [work / "recipient", work / "donor"] if doing.pair else [work]
    for target in targets:
        title = out.name if target == work else f"{out.name}, {target.name}"
        rest_of = "donor" if target.name == "donor" and doing.pair else "recipient"
        card = model_card(title, rest_of, report.lines()[:-1], parents, inputs)
        lineage.write_text(target / "README.md", card)
        if target != work:
            lineage.write_json(target / lineage.FILE, {**made, "part": target.name})
    lineage.finish(work, out)


def _read_report(out: Path) -> Report:
    """The report of a finished run, from its lineage."""
    made = (lineage.read(out) or {}).get("report")
    if not isinstance(made, dict) or made.keys() != set(Report._fields):
        raise BadInput(
            f"{out / lineage.FILE} holds no report of a transplant. Choose another --out."
        )
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in made.items()}
    if values["similarity"] is not None:
        values["similarity"] = Similarity(*values["similarity"])
    return Report(**values)


def show(report: Report) -> None:
    """Print what a transplant moved, or would move."""
    from rich.console import Console

    console = Console(highlight=False)
    for line in report.lines():
        console.print(line, markup=False, soft_wrap=True)
