"""`surgeon pick`: the best of several answers to each prompt (NEX sec. 5.4.1, 5.4.2).

plan.py        what is checked before anything is sampled or read
gathered.py    the answers, and what is known of them
comparing.py   best, random and worst of a prompt's answers
picks.py       what is found
pick_page.py   the page, and what is printed

The rules are those of surgeon.scoring, as those of `surgeon curate` are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from surgeon import artifact, jsonl
from surgeon.pick.comparing import (
    ByPrompt,
    Estimated,
    by_prompt,
    choices,
    drawn,
    estimated,
    mean_of,
)
from surgeon.pick.gathered import Answers, gather
from surgeon.pick.pick_page import show, write_page
from surgeon.pick.picks import (
    MeanOfPrompts,
    OrderedCandidates,
    PickedBy,
    PickedCandidate,
    Picks,
)
from surgeon.pick.plan import PICKING, PickPlan, prepare
from surgeon.ranking import Interval
from surgeon.scoring.rules import values_of
from surgeon.settings import verb
from surgeon.settings.pick import PickSettings

__all__ = ["Picks", "choose", "pick", "prepare", "show"]

SAID_ABOVE = {"candidate", "prompt_id"}
LEAST_KNOWN = 0.99
"""Share of the answers that should have a value under a rule."""
NO_INTERVAL: Interval = (None, None)


@verb(PickSettings)
def pick(settings: PickSettings) -> Picks:
    """Pick the best of several answers to each prompt, and compare all rules.

    Writes `picks.jsonl` (every prompt with the values of its answers and what each rule picks),
    `picked/NAME.jsonl` (the picks as traces), `pick.json`, and `report.html`, which shows any
    prompt's answers. Raises `BadInput` before anything is sampled or read.
    """
    plan = prepare(settings)
    return artifact.once(settings.out, Picks, lambda work: choose(plan, work), run=plan.run)


def choose(plan: PickPlan, work: Path) -> Picks:
    """Gather, pick, compare, write."""
    gathered = gather(plan, work)
    write_picks(plan, gathered, work)
    seed = plan.settings.seed
    found = {a.source.name: {n: by_prompt(n, r, a.rows) for n, r in plan.rules.items()}
             for a in gathered}  # fmt: skip
    random = {a.source.name: drawn(a.rows) for a in gathered}
    known = {
        (a.source.name, n): float(np.mean(~np.isnan(values_of(n, r, a.rows))))
        for a in gathered for n, r in plan.rules.items()
    }  # fmt: skip
    candidates = tuple(
        _candidate(a, found[a.source.name], random[a.source.name],
                   {n: known[a.source.name, n] for n in plan.rules}, seed)
        for a in gathered
    )  # fmt: skip
    rules = list(plan.rules)
    overall = None
    prompts = {tuple(dict.fromkeys(row["prompt_id"] for row in a.rows)) for a in gathered}
    if len(gathered) > 1 and len(prompts) == 1:
        pooled = {
            n: ByPrompt(*(mean_of(columns) for columns in zip(*(f[n] for f in found.values()),
                                                              strict=True)))
            for n in rules
        }  # fmt: skip
        means = mean_of([r[0] for r in random.values()]), mean_of([r[1] for r in random.values()])
        share = {n: sum(known[c.name, n] for c in candidates) / len(candidates) for n in rules}
        overall = _numbers("all", "", [r for a in gathered for r in a.rows], pooled, means, share,
                           seed)  # fmt: skip
    weights = "none"
    if "nex" in plan.rules:
        weights = "other prompts" if plan.sources[0].weights is None else "given"
    labelled = {row["prompt_id"] for a in gathered for row in a.rows if "correct" in row}
    result = Picks(
        by=rules[0],
        weights=weights,
        labelled=len(labelled),
        candidates=candidates,
        overall=overall,
        ordered=tuple(in_order(n, candidates) for n in rules) if labelled else (),
        warnings=(*plan.warnings, *_warnings(plan, known)),
    )
    write_page(plan, gathered, work, result)
    return result


def _candidate(
    answers: Answers,
    found: Mapping[str, ByPrompt],
    random: tuple[np.ndarray, np.ndarray],
    known: Mapping[str, float],
    seed: int,
) -> PickedCandidate:
    source = answers.source
    return _numbers(source.name, source.spec, answers.rows, found, random, known, seed)


def _numbers(
    name: str,
    spec: str,
    rows: Sequence[Mapping[str, object]],
    found: Mapping[str, ByPrompt],
    random: tuple[np.ndarray, np.ndarray],
    known: Mapping[str, float],
    seed: int,
) -> PickedCandidate:
    def figure(value_P: np.ndarray) -> MeanOfPrompts:
        return as_figure(estimated(value_P, seed=seed))

    return PickedCandidate(
        name=name,
        checkpoint=spec,
        prompts=len({row["prompt_id"] for row in rows}),
        answers=len(rows),
        tokens=float(np.mean([float(str(row["tokens"])) for row in rows])),
        random=figure(random[0]),
        oracle=figure(random[1]),
        rules=tuple(
            PickedBy(
                by=by,
                right=figure(p.right),
                worst=figure(p.worst),
                over_random=figure(p.right - random[0]),
                over_worst=figure(p.right - p.worst),
                tokens=figure(p.tokens),
                right_tokens=figure(p.right_tokens),
                right_words=figure(p.right_words),
                known=known[by],
            )
            for by, p in found.items()
        ),
    )


def as_figure(found: Estimated) -> MeanOfPrompts:
    """For the file: no interval where there is no value."""
    ends = NO_INTERVAL if math.isnan(found.value) else (found.low, found.high)
    return MeanOfPrompts(value=found.value, interval=ends)


def in_order(by: str, candidates: Sequence[PickedCandidate]) -> OrderedCandidates:
    """The paper's two counts; equal to the last digit counts as no less."""
    best_over_worst = ordered = 0
    for candidate in candidates:
        rule = next(rule for rule in candidate.rules if rule.by == by)
        best, random, worst = (f.value for f in (rule.right, candidate.random, rule.worst))
        best_over_worst += best >= worst - 1e-12
        ordered += best >= random - 1e-12 and random >= worst - 1e-12
    return OrderedCandidates(
        by=by, candidates=len(candidates), best_over_worst=best_over_worst, in_order=ordered
    )


def write_picks(plan: PickPlan, gathered: Sequence[Answers], work: Path) -> None:
    """Write picks.jsonl and picked/NAME.jsonl."""
    (work / "picked").mkdir(exist_ok=True)
    lines = []
    for answers in gathered:
        picked = []
        outside = {
            n: values_of(n, rule, answers.rows)
            for n, rule in plan.rules.items() if n not in PICKING
        }  # fmt: skip
        for prompt_id, members, picks in choices(plan.rules, answers.rows, plan.settings.seed):
            chosen = picks[next(iter(plan.rules))]
            picked.append(answers.traces[chosen])
            row = answers.rows[chosen]
            lines.append({
                "candidate": answers.source.name, "prompt_id": prompt_id, "sample": row["sample"],
                "answer": row.get("answer"),
                **({"correct": row["correct"]} if "correct" in row else {}),
                "picks": {name: answers.rows[n]["sample"] for name, n in picks.items()},
                "answers": [
                    {k: v for k, v in answers.rows[n].items() if k not in SAID_ABOVE}
                    | {name: plain(v[n]) for name, v in outside.items()}
                    for n in members
                ],
            })  # fmt: skip
        ranked = answers.source.ranked
        if ranked is None or ranked.traces is not None:
            file = work / "picked" / f"{answers.source.name}.jsonl"
            jsonl.write(file, map(asdict, picked))
    jsonl.write(work / "picks.jsonl", lines)


def plain(value: float) -> float | None:
    """For JSON, which has no nan."""
    return None if math.isnan(value) else float(value)


def _warnings(plan: PickPlan, known: Mapping[tuple[str, str], float]) -> list[str]:
    lacking = {}
    for (_, rule), share in known.items():
        if share < LEAST_KNOWN and rule not in ("agreement", "vote"):
            lacking[rule] = min(share, lacking.get(rule, 1.0))
    return [
        f"{rule} has no value for up to {1 - share:.0%} of a candidate's answers: they aren't "
        "picked by it."
        for rule, share in lacking.items()
    ]
