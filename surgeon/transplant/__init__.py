"""Move FFN neurons from a donor checkpoint into a recipient (NEX sec. 5.5).

Unit j of layer l moves as a whole: row j of gate and up, column j of down. Attention (unless it is
asked for), norms, embeddings, routers and the bias of down stay the recipient's, and so do its
tokenizer, template and generation config. Units of a mask that were not chosen keep their bits.

A mask numbers the donor's units, as weights computed on the donor do. With `match="permutation"`
unit j of the donor goes to the place of the recipient's unit it is matched to.
"""

# Shapes: L layers, F units per layer.

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import artifact, console, lineage
from surgeon.settings import verb
from surgeon.settings.transplant import TransplantSettings
from surgeon.transplant.attentions import attention_of
from surgeon.transplant.difference import Difference
from surgeon.transplant.exchange import model_card, write
from surgeon.transplant.pair import Pair, matched
from surgeon.transplant.plan import TransplantPlan, decide, prepare
from surgeon.transplant.report import Similarity, TransplantReport
from surgeon.transplant.similarity import sampled_similarity
from surgeon.transplant.surgeries import SURGERIES

__all__ = ["SURGERIES", "Similarity", "TransplantReport", "transplant"]


@verb(TransplantSettings)
def transplant(settings: TransplantSettings) -> TransplantReport:
    """Write `out`: the recipient with chosen FFN units of the donor (two checkpoints for `swap`).

    Repeating a finished run does nothing; a killed one resumes. Raises `BadInput` before the first
    byte is written when anything doesn't fit.
    """
    plan = prepare(settings)
    if settings.dry_run or settings.out is None:
        return carry_out(decide(plan), None)
    lineage.check(settings.out, plan.run)
    before = _report_in_lineage(settings.out)
    if before is not None:
        return before
    if not settings.out.exists():
        plan = decide(plan)
    return artifact.once(
        settings.out, TransplantReport, lambda work: carry_out(plan, work), run=plan.run
    )


class Alignment(NamedTuple):
    """Which unit of the donor goes where, and how alike the two are."""

    pair: Pair
    """With the order of units where they were matched."""
    moved_LF: np.ndarray
    """bool: the units that move, by the recipient's numbers."""
    similarity: Similarity | None
    matched_similarity: float | None
    warnings: tuple[str, ...] = ()


def align(plan: TransplantPlan) -> Alignment:
    """Compare the units of both checkpoints, and match them where the settings ask for it."""
    pair, chosen_LF = plan.pair, plan.chosen_LF
    if not plan.surgery.donor:
        return Alignment(pair, chosen_LF, None, None)
    if plan.settings.match is None:
        similarity = sampled_similarity(
            pair.recipient, pair.donor, pair.recipient_sites, pair.donor_sites, plan.settings.seed
        )
        warning = (
            f"units of the same number have mean cosine {similarity.same:.3f}, units of different "
            f"numbers {similarity.shuffled:.3f}: they don't correspond, as they would in siblings "
            "of one ancestor. Try --match permutation."
        )
        return Alignment(pair, chosen_LF, similarity, None, (warning,) * similarity.low)
    pair, before, after = matched(pair, chosen_LF)
    assert pair.order_LF is not None
    warning = (
        f"even matched units have mean cosine {after.same:.3f} only: the models are strangers."
    )
    moved_LF = np.take_along_axis(chosen_LF, pair.order_LF, 1)
    return Alignment(pair, moved_LF, before, after.same, (warning,) * after.low)


def carry_out(plan: TransplantPlan, work: Path | None) -> TransplantReport:
    """Perform the transplant in the directory `work` and report it; None measures only."""
    alignment = align(plan)
    difference = Difference(alignment.pair)
    if work is not None:
        _exchange(plan, alignment, difference, work)
    report = _report(plan, alignment, difference)
    if work is not None:
        _describe(plan, report, work)
    return report


def _exchange(
    plan: TransplantPlan, alignment: Alignment, difference: Difference, work: Path
) -> None:
    """Write the new recipient, and for a pair the new donor, adding to `difference`."""
    pair, surgery = alignment.pair, plan.surgery
    attention = plan.settings.with_attention
    effect_LF = alignment.moved_LF & (plan.settings.alpha > 0)
    if not surgery.pair:
        write(pair, effect_LF, surgery, work, difference=difference, attention=attention)
        return
    for role in plan.parents:
        (work / role).mkdir(exist_ok=True)
    write(pair, effect_LF, surgery, work / "recipient", difference=difference, attention=attention)
    other = pair.exchanged()
    write(other, plan.chosen_LF, surgery, work / "donor", side=1, attention=attention)


def _report(plan: TransplantPlan, alignment: Alignment, difference: Difference) -> TransplantReport:
    pair, surgery, moved_LF = plan.pair, plan.surgery, alignment.moved_LF
    mass_of, mass_share, positive_share = _mass_shares(plan, moved_LF)
    attention = attention_of(pair.recipient, moved_LF) if plan.settings.with_attention else []
    return TransplantReport(
        recipient=pair.recipient.name,
        donor=pair.donor.name if surgery.donor else "",
        surgery=surgery.name,
        alpha=plan.settings.alpha,
        selection=plan.settings.units_in_words(),
        weights=_whose(plan),
        units_L=tuple(moved_LF.sum(1).tolist()),
        parameters_L=_parameters(pair, moved_LF),
        of_units_L=tuple(pair.exists_LF.sum(1).tolist()),
        attention_parameters=sum(math.prod(pair.recipient.tensors[n].shape) for n in attention),
        mass_share=mass_share,
        positive_share=positive_share,
        mass_of=mass_of,
        difference_share=difference.share(moved_LF) if surgery.donor else None,
        difference_sampled=surgery.donor and difference.sampled,
        outside_share=difference.outside() if surgery.donor else None,
        similarity=alignment.similarity,
        matched_similarity=alignment.matched_similarity,
        warnings=(*plan.warnings, *alignment.warnings),
    )


def _whose(plan: TransplantPlan) -> str:
    """Whose neuron weights chose the units, and whether that is another checkpoint's."""
    if plan.weights is None:
        return ""
    donor = plan.settings.donor is not None
    role, of = ("donor", plan.pair.donor) if donor else ("recipient", plan.pair.recipient)
    other = "" if plan.weights.digest in of.digests else f", which is not the {role}"
    return f"{plan.weights.whose}{other}"


def _mass_shares(
    plan: TransplantPlan, moved_LF: np.ndarray
) -> tuple[str, float | None, float | None]:
    """Whose recording of activation mass is at hand, and the units' share of it: of what the top-k
    kept, and of all positive mass."""
    of_weights = "recipient" if plan.settings.donor is None else "donor"
    recordings = (
        ("recipient", plan.recipient_weights, moved_LF),
        (of_weights, plan.weights, plan.chosen_LF),
    )
    for whose, weights, mask_LF in recordings:
        if weights is not None and weights.mass_LF is not None:
            kept, everything = (
                None
                if mass_LF is None
                else float(
                    mass_LF[mask_LF].sum(dtype=float) / max(mass_LF.sum(dtype=float), 1e-300)
                )
                for mass_LF in (weights.mass_LF, weights.positive_LF)
            )
            return whose, kept, everything
    return "", None, None


def _parameters(pair: Pair, moved_LF: np.ndarray) -> tuple[int, ...]:
    """Parameters in the moved units, per layer."""
    count_L = [0] * len(moved_LF)
    width = int(pair.recipient.text_config["hidden_size"])
    for site in pair.recipient_sites:
        each = sum(1 if slab.role.endswith("bias") else width for slab in site.slabs)
        count_L[site.layer] += each * int(moved_LF[site.layer, site.span].sum())
    return tuple(count_L)


def _describe(plan: TransplantPlan, report: TransplantReport, work: Path) -> None:
    """Add model cards, and to each of a pair its lineage."""
    name = work.name.removesuffix(".partial")
    if not plan.surgery.pair:
        card = model_card(name, "recipient", report.lines(), plan.parents, plan.run.inputs)
        lineage.write_text(work / "README.md", card)
        return
    for role in plan.parents:
        card = model_card(f"{name}, {role}", role, report.lines(), plan.parents, plan.run.inputs)
        lineage.write_text(work / role / "README.md", card)
        record = {**(lineage.read(work) or {}), "part": role}
        lineage.write_json(work / role / lineage.FILE, record)


def _report_in_lineage(out: Path) -> TransplantReport | None:
    """The report of a finished run from before it had a file of its own."""
    report = (lineage.read(out) or {}).get("report")
    if not isinstance(report, dict):
        return None
    if isinstance(pair := report.get("similarity"), list):
        report = {**report, "similarity": dict(zip(("same", "shuffled"), pair, strict=True))}
    return replace(artifact.parse(TransplantReport, report, out / lineage.FILE), already=True)


def show(report: TransplantReport) -> None:
    """Print what a transplant moved, or would move."""
    console.announce(report.already, "This transplant")
    for line in report.lines():
        console.say(line)
    console.say(f"written: {report.out}" if report.out else "dry run: nothing was written")
