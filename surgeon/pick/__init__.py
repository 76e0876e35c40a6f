"""`surgeon pick`: the best of several answers to each prompt (NEX sec. 5.4.1, 5.4.2).

plan.py        what is checked before anything is sampled or read
gathered.py    the answers, and what is known of them
comparing.py   best, random and worst of a prompt's answers

The rules are those of surgeon.scoring, as those of `surgeon curate` are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon import artifact, jsonl
from surgeon.artifact import part
from surgeon.console import announce, console, say, table, warn
from surgeon.pick.comparing import ByPrompt, Estimated, by_prompt, drawn, estimated, mean_of
from surgeon.pick.gathered import Answers, gather
from surgeon.pick.plan import PICKING, PickPlan, prepare
from surgeon.ranking import Interval, Measured
from surgeon.scoring.rules import order, values_of
from surgeon.scoring.voting import places_of
from surgeon.settings import verb
from surgeon.settings.pick import PickSettings

if TYPE_CHECKING:
    from rich.table import Table

SAID_ABOVE = {"candidate", "prompt_id"}
LEAST_KNOWN = 0.99
"""Share of the answers that should have a value under a rule."""
NO_INTERVAL: Interval = (None, None)


@part
class MeanOfPrompts:
    """A mean over prompts; no value where answers aren't known."""

    value: Measured
    interval: Interval
    """95 %, by resampling the prompts; paired, where it is a difference."""


@part
class PickedBy:
    """What one rule picks."""

    by: str
    right: MeanOfPrompts
    """Share of the prompts in which its pick is right."""
    worst: MeanOfPrompts
    """Share in which the answer that it likes least is."""
    over_random: MeanOfPrompts
    """Right picks less right answers drawn at random, of all prompts."""
    over_worst: MeanOfPrompts
    """Right picks less right answers of those that it likes least."""
    tokens: MeanOfPrompts
    """Of its picks."""
    right_tokens: MeanOfPrompts
    """Tokens of right picks less those of right answers at random, where a prompt has several."""
    right_words: MeanOfPrompts
    """Counted words, likewise."""
    known: float
    """Share of the answers that have a value."""


@part
class PickedCandidate:
    """One checkpoint's answers, and what each rule picks of them."""

    name: str
    checkpoint: str
    prompts: int
    answers: int
    tokens: float
    """Mean of all its answers."""
    random: MeanOfPrompts
    """Share of the prompts in which an answer drawn at random is right."""
    oracle: MeanOfPrompts
    """Share in which any answer is."""
    rules: tuple[PickedBy, ...]
    """That which picks first."""


@part
class OrderedCandidates:
    """In how many candidates a rule's picks stand in order (NEX Fig. 7)."""

    by: str
    candidates: int
    best_over_worst: int
    """Best >= worst."""
    in_order: int
    """Best >= random >= worst."""


@artifact.artifact("pick.json")
class Picks:
    """What was picked, and how good each rule's picks are."""

    by: str
    """The rule of picks.jsonl."""
    weights: str
    """Where those of NEX came from: "given", "other prompts" of the same ranking, or "none"."""
    labelled: int
    """Prompts with an answer."""
    candidates: tuple[PickedCandidate, ...]
    overall: PickedCandidate | None
    """The mean over candidates; None for one, and where they answered different prompts."""
    ordered: tuple[OrderedCandidates, ...]
    """Empty without answers."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


@verb(PickSettings)
def pick(settings: PickSettings) -> Picks:
    """Pick the best of several answers to each prompt, and compare all rules.

    Writes `picks.jsonl` (every prompt with the values of its answers and what each rule picks),
    `picked/NAME.jsonl` (the picks as traces) and `pick.json`. Raises `BadInput` before anything is
    sampled or read.
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
    return Picks(
        by=rules[0],
        weights=weights,
        labelled=len(labelled),
        candidates=candidates,
        overall=overall,
        ordered=tuple(in_order(n, candidates) for n in rules) if labelled else (),
        warnings=(*plan.warnings, *_warnings(plan, known)),
    )


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
        for prompt_id, members in places_of([r["prompt_id"] for r in answers.rows]).items():
            own = [answers.rows[n] for n in members]
            picks = {
                name: members[order(name, rule, own, seed=plan.settings.seed, worst=False)[0]]
                for name, rule in plan.rules.items()
            }
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


# --- what is printed ------------------------------------------------------------------------------


def show(result: Picks) -> None:
    """Print what each rule's picks are worth, and where the picks are."""
    announce(result.already, "This pick")
    shown = result.overall or (result.candidates[0] if len(result.candidates) == 1 else None)
    for candidate in [shown] if shown is not None else result.candidates:
        n = len(result.candidates) if candidate is result.overall else 1
        per = candidate.answers / max(1, candidate.prompts) / n
        about = f"{n} candidates" if candidate is result.overall else candidate.name
        say(f"{about}: the best of {per:.3g} answers to {candidate.prompts} prompts, by each rule")
        console().print(rule_table(result, candidate))
    if result.ordered:
        first = result.ordered[0]
        if first.candidates > 1:
            say(
                f"By {first.by}, best >= worst in {first.best_over_worst} of {first.candidates} "
                f"candidates, best >= random >= worst in {first.in_order} (NEX Fig. 7: 19 and 16 "
                "of 20)."
            )
    if result.weights == "other prompts":
        say("Each prompt's answers were scored with weights learned from the other prompts.")
    if result.labelled:
        say(
            "In brackets: 95 %, prompts resampled. The last two columns: tokens, and words such as "
            "'wait', of right picks less those of right answers at random."
        )
    warn(result.warnings)
    traces = any((result.out / "picked").iterdir())
    say(f"Picks: {result.out}/picks.jsonl" + (f"; as traces: {result.out}/picked" * traces))


def rule_table(result: Picks, candidate: PickedCandidate) -> "Table":
    """Every rule's row, and random and oracle where answers are known."""
    judged = result.labelled > 0
    scores = ["right %", "over random", "worst %", "tokens", "of right", "words"]
    found = table("picked by", *(scores if judged else ["tokens"]))
    for rule in candidate.rules:
        tokens = f"{rule.tokens.value:.0f}"
        cells = [
            shown(rule.right, 100, "{:.1f}"), shown(rule.over_random, 100, "{:+.1f}"),
            shown(rule.worst, 100, "{:.1f}", ends=False), tokens,
            shown(rule.right_tokens, 1, "{:+.0f}"),
            shown(rule.right_words, 1, "{:+.2f}", ends=False),
        ]  # fmt: skip
        found.add_row(rule.by, *(cells if judged else [tokens]))
    if judged:
        tokens = f"{candidate.tokens:.0f}"
        found.add_row("random", shown(candidate.random, 100, "{:.1f}"), "", "", tokens, "", "")
        found.add_row("oracle", shown(candidate.oracle, 100, "{:.1f}"), *[""] * 5)
    return found


def shown(figure: MeanOfPrompts, times: float, form: str, *, ends: bool = True) -> str:
    """A figure with its interval; a dash without a value."""
    low, high = figure.interval
    if math.isnan(figure.value) or low is None or high is None:
        return "-"
    value = form.format(times * figure.value)
    return f"{value} ({times * low:.0f} {times * high:.0f})" if ends else value
