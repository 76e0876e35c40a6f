"""`surgeon early-stop`: when a checkpoint has thought enough, found out without a judge.

plan.py         what is checked before anything is sampled
probing.py      thinking ended on trial, after every step
courses.py      a trace with what comes of ending it at each place
learning.py     detectors of enough (after every step) and of easy questions (after the first K)
stop_rules.py   rules that end the thinking: detectors, and what they are held against
sweeping.py     right answers and tokens at every threshold, and the one that is chosen
stop_result.py  early-stop.json, its page and card, and how it is shown

On disk: the checkpoint with `monitor.safetensors`, as `surgeon monitor` and `surgeon serve` load
it; `early-stop.json`, `early-stop.html`; and in `early-stop/` the traces and probes of both sets
and of the test.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon import artifact, lineage
from surgeon.checkpoint import Checkpoint, rewrite
from surgeon.early_stop.courses import Course, courses_of
from surgeon.early_stop.learning import Stoppers, learned, watched_courses
from surgeon.early_stop.plan import LEAST, EarlyStopPlan, prepare, require_thinking
from surgeon.early_stop.probing import probed
from surgeon.early_stop.stop_result import (
    PAGE,
    EarlyStop,
    StopRow,
    card_of,
    chance_warning,
    page_of,
    show,
)
from surgeon.early_stop.stop_rules import DIGITS, STOPS
from surgeon.early_stop.sweeping import (
    StopPoint,
    chosen_of_all,
    difference,
    outcome,
    point,
    swept,
)
from surgeon.errors import BadInput
from surgeon.settings import verb
from surgeon.settings.early_stop import EarlyStopSettings
from surgeon.traces import Prompt, sampled
from surgeon.watch.monitor import Monitor

if TYPE_CHECKING:
    from torch import nn

__all__ = ["STOPS", "EarlyStop", "early_stop", "show"]

INSIDE = "early-stop"
NEVER = 2.0
"""A threshold that no probability reaches."""


@verb(EarlyStopSettings)
def early_stop(settings: EarlyStopSettings) -> EarlyStop:
    """Learn when to end a checkpoint's thinking, and write the checkpoint with that monitor.

    Raises `BadInput` before anything is sampled for what can be checked. A killed run resumes with
    the traces and probes that it has.
    """
    plan = prepare(settings)
    return artifact.once(
        settings.out, EarlyStop, lambda work: _early_stop(plan, work), run=plan.run
    )


def _early_stop(plan: EarlyStopPlan, work: Path) -> EarlyStop:
    settings = plan.settings
    (work / INSIDE).mkdir(exist_ok=True)
    model = plan.checkpoint.model(plan.device, plan.dtype)
    courses = _courses(plan, model, plan.prompts, plan.judged, work / INSIDE, "sets")
    held = [course for course in courses if course.trace.prompt_id in plan.validation]
    found = learned(plan, model, [c for c in courses if c.trace.prompt_id not in plan.validation])
    held = watched_courses(plan, model, found, held)
    curves = swept(held, seed=settings.seed)
    picked = chosen_of_all(curves, settings.margin)
    name = _written(plan, found, picked)
    pick = picked[name]
    rate = outcome(STOPS[name], pick.value, held).rate if pick else 0.0
    picked["random"] = point(rate, outcome(STOPS["random"], rate, held), held, seed=settings.seed)
    test: list[Course] = []
    if plan.test:
        test = _courses(plan, model, plan.test, plan.test_judged, work / INSIDE, "test")
        test = watched_courses(plan, model, found, test)
    rows = tuple(_row(plan, rule, picked, held, test, name) for rule in STOPS)
    written = next(row for row in rows if row.written)
    result = EarlyStop(
        checkpoint=plan.checkpoint.spec,
        digest=plan.checkpoint.digest,
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        judged=plan.judged,
        test_judged=plan.test_judged,
        questions={"detectors": len(plan.prompts) - len(plan.validation),
                   "validation": len(plan.validation), "test": len(plan.test)},
        labels={"enough": _share([c.right_S for c in courses]),
                "right": float(np.mean([c.right for c in courses]))},
        channels={level: c._asdict() for level, c in found.channels.items()},
        detectors=dict(found.reports),
        rule=name,
        rows=rows,
        curves={rule: tuple(points) for rule, points in curves.items()},
        test_curves={} if not test else
        {rule: tuple(points) for rule, points in swept(test, seed=settings.seed).items()},
        warnings=tuple(_warnings(plan, found, written, [*courses, *test])),
    )  # fmt: skip
    _write(plan, found, result, pick, work)
    return result


def _courses(
    plan: EarlyStopPlan,
    model: "nn.Module",
    prompts: list[Prompt],
    judged: bool,
    where: Path,
    name: str,
) -> list[Course]:
    """Traces of the questions, ended on trial everywhere; what lies on disk is taken from there."""
    file, sampling = where / f"{name}-traces.jsonl", plan.settings.sampling
    if not plan.ends.named:
        # A few first: no more is drawn of a checkpoint that doesn't think.
        few = sampled(file, model, plan.tokenizer, prompts[:LEAST], sampling, what="sample a few")
        require_thinking(plan, few)
    traces = sampled(file, model, plan.tokenizer, prompts, sampling, what=f"sample, {name}")
    require_thinking(plan, traces)
    probes = probed(plan, model, traces, where / f"{name}-probes.jsonl")
    gold = {prompt.id: str(prompt.answer) for prompt in prompts} if judged else None
    return courses_of(plan, traces, probes, gold)


def _share(values: list[np.ndarray]) -> float:
    return float(np.concatenate(values).mean())


def _written(plan: EarlyStopPlan, found: Stoppers, picked: dict[str, StopPoint | None]) -> str:
    """The rule that the monitor carries; raises `BadInput` for one that wasn't learned."""
    rule, levels = plan.settings.rule, set(found.detectors)
    if rule == "auto":
        fine = {n: p for n, p in picked.items() if p is not None and STOPS[n].detects}
        known = "enough" if "enough" in levels else "instance"
        return min(fine, key=lambda n: (fine[n].tokens, -fine[n].right), default=known)
    if ({"enough", "instance"} if rule == "both" else {rule}) - levels:
        raise BadInput(f"the rule {rule} can't be written. {' '.join(found.warnings)}")
    return rule


def _row(
    plan: EarlyStopPlan,
    rule: str,
    picked: dict[str, StopPoint | None],
    held: list[Course],
    test: list[Course],
    written: str,
) -> StopRow:
    """A rule at its chosen threshold: on the questions it was chosen on, and on the test."""
    seed, one, against = plan.settings.seed, picked[rule], picked["random"]
    assert against is not None
    tested = over = None
    if one is not None:
        courses = test or held
        found = outcome(STOPS[rule], one.value, courses)
        chance = outcome(STOPS["random"], against.value, courses)
        over = difference(found, chance, courses, seed=seed)
        if test:
            tested = point(one.value, found, courses, seed=seed)
    return StopRow(
        rule=rule, what=STOPS[rule].what, written=rule == written, chosen=one, test=tested,
        over_random=None if over is None else over[0],
        tokens_over_random=None if over is None else over[1],
    )  # fmt: skip


def _warnings(
    plan: EarlyStopPlan,
    found: Stoppers,
    written: StopRow,
    courses: list[Course],
) -> list[str]:
    warnings = list(found.warnings)
    share = require_thinking(plan, [course.trace for course in courses])
    if share < 1:
        opening, closing = plan.watch.thinking
        warnings.append(
            f"{1 - share:.1%} of the answers don't think between {opening} and {closing}: the "
            "monitor ends those too."
        )
    if written.chosen is None:
        warnings.append(
            f"no threshold of {written.rule} keeps the right answers within "
            f"{plan.settings.margin:.1%}: the monitor that was written never fires."
        )
    if said := chance_warning(written):
        warnings.append(said)
    return warnings


# --- the directory --------------------------------------------------------------------------------


def _write(
    plan: EarlyStopPlan, found: Stoppers, result: EarlyStop, pick: StopPoint | None, work: Path
) -> None:
    """Copy the checkpoint, and put monitor and card beside it."""
    rewrite(plan.checkpoint, work, lambda _, tensor: tensor, lambda _: False)
    lineage.write_text(work / "README.md", card_of(plan.checkpoint, result))
    lineage.write_text(work / PAGE, page_of(result))
    monitor = monitor_of(plan, found, result.rule, pick)
    replace(monitor, checkpoint=Checkpoint.open(work).digest).save(work)


def monitor_of(plan: EarlyStopPlan, found: Stoppers, rule: str, pick: StopPoint | None) -> Monitor:
    """The detectors of a rule at its threshold."""
    thresholds: dict[str, float] = {}
    detectors = dict(found.detectors)
    value = None if pick is None else pick.value
    if rule == "both" and value is not None:
        thresholds = {"instance": value[1], "enough": value[2]}
    elif rule == "instance" and value is not None:
        thresholds = {"instance": value[1]}
    elif value is not None:
        thresholds = {"enough": value}
    if value is not None and rule != "enough" and value[0] == "hard":
        detectors["instance"] = detectors["instance"].opposite()
    if not thresholds:
        thresholds = {level: NEVER for level in detectors if rule in ("both", level)}
    for level, threshold in thresholds.items():
        # The probabilities that are it or more when rounded.
        detectors[level].threshold.fill_(threshold - 0.5 * 10**-DIGITS)
    return Monitor(
        {level: found.channels[level] for level in thresholds},
        {level: detectors[level] for level in thresholds},
        plan.watch, plan.checkpoint.digest,
    )  # fmt: skip
