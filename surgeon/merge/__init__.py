"""`merge-sweep`: two endpoints in, a family of merged checkpoints out.

The methods of `families.merge_methods` are mixed here, each endpoint tensor read once for all
ratios, bit-equal to what mergekit writes with the same number of torch threads. Every other method
is written by mergekit.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from surgeon import artifact, console
from surgeon.checkpoint import Checkpoint, link_directory
from surgeon.families import Family, candidate_files, description
from surgeon.merge import mergekit, parted
from surgeon.merge.aligned import Aligned
from surgeon.merge.plan import SweepPlan, counted, prepare
from surgeon.progress import track
from surgeon.settings import verb
from surgeon.settings.merge_sweep import MergeSweepSettings

SIDE_BY_SIDE = 64
"""Candidates written at once: each holds an open file."""
log = logging.getLogger(__name__)


class SweepReport(NamedTuple):
    """A sweep's plan, and what came of it."""

    plan: SweepPlan
    family: Family | None
    """None after a dry run."""
    written: tuple[str, ...] = ()
    """Candidates written by this run."""
    kept: tuple[str, ...] = ()
    """Candidates that were there already."""

    def told(self) -> dict[str, object]:
        """The report for a program: the family's description, or the plan of a dry run."""
        plan = {"notices": self.plan.notices, "bytes": self.plan.n_bytes}
        figures = {"figures": self.plan.family.figures, "candidates": [
            {"name": c.name, "ratio": c.ratio} for c in self.plan.family.candidates
        ]}  # fmt: skip
        if self.family is None:
            return {"out": None, **plan, **figures}
        done = {"out": self.family.path, "written_now": self.written, "kept": self.kept}
        return {**done, **artifact.jsonable(self.family.described())}

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines = [*self.plan.lines(), *(f"Notice: {text}" for text in self.plan.notices)]
        if self.family is None:
            return [*lines, "Dry run: nothing was written."]
        if self.family.virtual:
            done = f"{counted(len(self.family.candidates), 'candidate')} described, none written"
        else:
            done = f"{counted(len(self.written), 'candidate')} written, {len(self.kept)} kept"
        return [*lines, f"{self.family.path}: {done}."]


@verb(MergeSweepSettings)
def sweep(settings: MergeSweepSettings) -> SweepReport:
    """Merge two checkpoints at many ratios into the new directory `out`, and describe the family.

    Resumes after a kill; a finished family of the same arguments is returned as it is. Raises
    `BadInput` before anything is written.
    """
    plan = prepare(settings)
    if settings.dry_run:
        return SweepReport(plan, None)
    for line in (*plan.lines(), *plan.notices):
        log.info(line)
    described = artifact.once(
        settings.out, description.Description, lambda work: write(plan, work), run=plan.run
    )
    family = Family.of(described)
    merged = [c.name for c in family.candidates if c.path]
    written = tuple(name for name in merged if name not in plan.kept)
    return SweepReport(plan, family, written, plan.kept)


def write(plan: SweepPlan, work: Path) -> description.Description:
    """Write the family into its partial directory."""
    family = _at_home(replace(plan.family, path=work))
    if family.cosines and not (work / description.COSINES).exists():
        description.write_cosines(family, torch.get_num_threads())
    if not plan.settings.virtual:
        _write_candidates(plan, family)
        candidates = [
            replace(c, path=c.name, written=True) if c.merge else c for c in family.candidates
        ]
        family = replace(family, candidates=tuple(candidates))
    return family.described()


def _at_home(family: Family) -> Family:
    """The family with endpoints that are no directory of the user's (merged from an adapter, or
    aligned with the other) kept under its own roof."""
    endpoints = []
    for name, endpoint in zip(family.endpoint_names, family.endpoints, strict=True):
        if not isinstance(endpoint, Aligned) and not description.from_adapter(endpoint):
            endpoints.append(endpoint)
            continue
        home = family.path / "endpoints" / name
        if not home.is_dir():
            home.parent.mkdir(exist_ok=True)
            if isinstance(endpoint, Aligned):
                moving = home.with_name(name + ".partial")
                shutil.rmtree(moving, ignore_errors=True)
                moving.mkdir()
                endpoint.write(moving)
                moving.rename(home)
            else:
                link_directory(endpoint.path, home)
        endpoints.append(Checkpoint.open(home, endpoint.spec))
    return replace(family, endpoints=tuple(endpoints))


def _write_candidates(plan: SweepPlan, family: Family) -> None:
    """Write every merged candidate, each published when it is whole and passes its smoke test."""
    places = [
        (
            candidate,
            candidate_files.begin_candidate(family, candidate, family.path / candidate.name),
        )
        for candidate in family.candidates
        if candidate.merge
    ]
    todo = [(candidate, work) for candidate, work in places if work is not None]
    if plan.roster is not None and todo:
        smoke = plan.settings.smoke
        parted.write_candidates(plan.roster, family, plan.others, todo, plan.by_mergekit, smoke)
        return
    fast = [pair for pair in todo if pair[0].name not in plan.by_mergekit]
    smoke = plan.settings.smoke
    for start in range(0, len(fast), SIDE_BY_SIDE):
        batch = fast[start : start + SIDE_BY_SIDE]
        candidate_files.write_weights(family, [c for c, _ in batch], [work for _, work in batch])
        for candidate, work in track(batch, what="smoke tests" if smoke else "publishing"):
            candidate_files.write_side_files(family, candidate, work)
            parted.publish(candidate, work, smoke)
    slow = [pair for pair in todo if pair[0].name in plan.by_mergekit]
    for candidate, work in track(slow, what="mergekit") if slow else ():
        mergekit.write(family, candidate, work, plan.others)
        parted.publish(candidate, work, smoke)


def show(report: SweepReport) -> None:
    """Print what a sweep found and wrote."""
    for line in report.lines():
        console.say(line)
