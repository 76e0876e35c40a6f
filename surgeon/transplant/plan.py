"""A transplant, checked before a byte is written."""

# Shapes: L layers, F units per layer.

from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import lineage, named
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neuron_weights import NeuronWeights, find_weights, read_weights
from surgeon.settings import record
from surgeon.settings.transplant import TransplantSettings
from surgeon.transplant.attentions import require_attention
from surgeon.transplant.exchange import bytes_needed
from surgeon.transplant.pair import Pair, corresponding
from surgeon.transplant.selections import (
    READ_ANSWERS,
    SELECTIONS,
    SelectionFunction,
    answers_file,
    scores,
    selection_of,
)
from surgeon.transplant.surgeries import SURGERIES, Surgery, surgery_of
from surgeon.transplant.units import choose, read_mask


class TransplantPlan(NamedTuple):
    """What moves, from where to where."""

    settings: TransplantSettings
    surgery: Surgery
    pair: Pair
    """Recipient and donor; the recipient twice for a surgery without a donor."""
    chosen_LF: np.ndarray
    """bool: the units that move, by the donor's numbers; none until it is decided."""
    select: SelectionFunction
    mask_LF: np.ndarray | None
    """The user's own choice."""
    weights: NeuronWeights | None
    """Of the donor (of the recipient for a surgery without one)."""
    recipient_weights: NeuronWeights | None
    warnings: tuple[str, ...]
    run: lineage.Run

    @property
    def parents(self) -> dict[str, Checkpoint]:
        """The checkpoints the result is made of, by role."""
        donor = {"donor": self.pair.donor} if self.surgery.donor else {}
        return {"recipient": self.pair.recipient, **donor}


def prepare(settings: TransplantSettings) -> TransplantPlan:
    """Open both checkpoints; raises `BadInput` when they don't fit. `decide` chooses the units."""
    surgery = surgery_of(settings.surgery, settings.alpha)
    if settings.donor is None and surgery.donor:
        alone = ", ".join(name for name, row in SURGERIES.items() if not row.donor)
        raise BadInput(f"surgery {settings.surgery} needs --donor; only {alone} does without.")
    selected = settings.selection.select
    function = selection_of(selected)
    if settings.answers is not None and selected in SELECTIONS and selected not in READ_ANSWERS:
        raise BadInput(
            f"found answers and select = {selected}, which reads none, expected one of "
            f"{', '.join(READ_ANSWERS)} or a module:function."
        )
    recipient = _open(settings.recipient)
    donor = recipient if settings.donor is None else _open(settings.donor)
    pair = corresponding(recipient, donor)
    if settings.with_attention:
        if not surgery.donor:
            raise BadInput(
                f"found with_attention and surgery {settings.surgery}, expected one with a donor."
            )
        require_attention(pair)
    from_other = settings.weights_from_other
    role = "recipient" if settings.donor is None else "donor"
    weights = _weights_of(settings.weights, donor, from_other, role)
    own = _weights_of(settings.recipient_weights, recipient, from_other, "recipient")
    plan = TransplantPlan(
        settings=settings,
        surgery=surgery,
        pair=pair,
        chosen_LF=np.zeros_like(pair.exists_LF),
        select=function,
        mask_LF=_mask(settings.mask, recipient),
        weights=weights,
        recipient_weights=own,
        warnings=(),
        run=lineage.Run("transplant", {}, {}, settings.seed),
    )
    return plan._replace(run=_run(plan))


def decide(plan: TransplantPlan) -> TransplantPlan:
    """The plan with its units chosen; raises `BadInput` when they can't be, or the disk is full."""
    settings, pair, score_LF = plan.settings, plan.pair, None
    if plan.mask_LF is None:
        assert plan.weights is not None
        score_LF = scores(settings, pair, plan.weights, plan.select)
    chosen_LF, warnings = choose(
        settings.selection, plan.weights, plan.mask_LF, score_LF, pair.exists_LF, settings.seed
    )
    if plan.surgery.donor and pair.recipient.digest == pair.donor.digest:
        warnings.append("donor and recipient have the same digest: nothing can change.")
    plan = plan._replace(chosen_LF=chosen_LF, warnings=tuple(warnings))
    if settings.out is not None and not settings.dry_run:
        _require_room(plan, settings.out)
    return plan


def _run(plan: TransplantPlan) -> lineage.Run:
    inputs = {role: parent.digest for role, parent in plan.parents.items()}
    recorded = {"weights": plan.weights, "recipient_weights": plan.recipient_weights}
    selected = plan.settings.selection.select
    inputs |= named.digests(surgery=plan.settings.surgery, select=selected)
    reads = selected in READ_ANSWERS or plan.settings.answers is not None
    if reads and plan.weights is not None:
        inputs["answers"] = lineage.file_digest(answers_file(plan.settings, plan.weights))
    inputs |= {name: lineage.file_digest(w.path) for name, w in recorded.items() if w is not None}
    arguments = record(plan.settings)
    if plan.mask_LF is not None:
        inputs["mask"] = lineage.digest_of(np.flatnonzero(plan.mask_LF).tolist())
        arguments["select"] = "mask"
    return plan.run._replace(arguments=arguments, inputs=inputs)


def _open(checkpoint: object) -> Checkpoint:
    """What the user named; a virtual candidate (`family.json#name`) is written out for the run."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(str(checkpoint))


def _weights_of(
    spec: str | None, of: Checkpoint, from_other: bool, role: str
) -> NeuronWeights | None:
    """Neuron weights, refused where they were computed on another checkpoint than `of`."""
    if spec is None:
        return None
    weights = read_weights(find_weights(spec, of.digests), of.n_layers, of.d_ff)
    if weights.digest not in of.digests and not from_other:
        whose = weights.checkpoint or "a checkpoint the file does not name"
        raise BadInput(
            f"{weights.path} was computed on {whose} ({weights.digest[:19] or 'no digest'}), not "
            f"on the {role} {of.spec} ({of.digest[:19]}). Rank the {role}, or give "
            "--weights-from-other."
        )
    return weights


def _mask(mask: object, of: Checkpoint) -> np.ndarray | None:
    if mask is None or isinstance(mask, str):
        return None if mask is None else read_mask(Path(mask), of.n_layers, of.d_ff)
    mask_LF = np.asarray(mask)
    if mask_LF.shape != (of.n_layers, of.d_ff) or mask_LF.dtype != np.bool_:
        raise BadInput(
            f"found a mask of shape {list(mask_LF.shape)} and type {mask_LF.dtype}, expected "
            f"[{of.n_layers}, {of.d_ff}] of bool."
        )
    return mask_LF


def _require_room(plan: TransplantPlan, out: Path) -> None:
    # Matching moves units within a block, so the touched files are the same either way.
    attention = plan.settings.with_attention
    size = bytes_needed(plan.pair, plan.chosen_LF, plan.surgery, out, attention=attention)
    if plan.surgery.pair:
        other = plan.pair.exchanged()
        size += bytes_needed(other, plan.chosen_LF, plan.surgery, out, attention=attention)
    lineage.require_room(out, size, "The transplant")
