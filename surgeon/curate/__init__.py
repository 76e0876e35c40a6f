"""`surgeon curate`: the best part of a pool of answers, for a student to learn (NEX sec. 5.4.3).

answer_pool.py  the pool: a file, or a ranking's candidate
traces.overlap  prompts that must not be learned
plan.py         what is checked before a model is loaded
scored.py       what is known of every answer
written.py      selections on disk

The rules are those of surgeon.scoring, as those of `surgeon pick` are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgeon import artifact, jsonl
from surgeon.artifact import part
from surgeon.console import announce, console, say, table, warn
from surgeon.curate.plan import CuratePlan, prepare
from surgeon.curate.scored import READINGS, scored
from surgeon.curate.written import write_selections
from surgeon.scoring.reader import Values
from surgeon.scoring.rules import order, within
from surgeon.settings import verb
from surgeon.settings.curate import CurateSettings

LEAST_KNOWN = 0.99
"""Share of the answers that should have a value under a rule."""


@part
class KeptAnswers:
    """One selection."""

    by: str
    responses: int
    prompts: int
    tokens: int
    mean_tokens: float
    finished: float
    """Share that ended by themselves."""
    correct: float | None
    """Share with the true answer, where answers were given; nothing was chosen by it."""
    known: float
    """Share of the pool that the rule has a value for."""


@part
class SharedAnswers:
    """Two selections."""

    one: str
    other: str
    share: float
    """Tokens in both, as a share of one's."""


@artifact.artifact("curate.json")
class Curation:
    """What `surgeon curate` kept."""

    pool: str
    responses: int
    """That could be kept."""
    tokens: int
    """Theirs."""
    budget: int
    """Tokens of a selection, at most."""
    excluded_by_id: int
    """Prompts."""
    excluded_by_text: int
    too_long: int
    """Answers beyond the reader's context."""
    cut: int
    """Answers left out because they were cut at a limit."""
    everything: KeptAnswers
    """The pool itself, for comparison."""
    selections: tuple[KeptAnswers, ...]
    overlap: tuple[SharedAnswers, ...]
    messages: bool
    """Whether there are rows for TRL and LLaMA-Factory."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


@verb(CurateSettings)
def curate(settings: CurateSettings) -> Curation:
    """Keep the best part of a pool of answers, the same number of tokens by every rule.

    Writes NAME.jsonl (traces) for every rule, rows for TRL and LLaMA-Factory beside it where the
    prompts are known, `scores.jsonl` with what is known of every answer, and `curate.json`. Raises
    `BadInput` before a model is loaded.
    """
    plan = prepare(settings)
    return artifact.once(settings.out, Curation, lambda work: select(plan, work), run=plan.run)


def select(plan: CuratePlan, work: Path) -> Curation:
    """Score, choose, write."""
    settings, pool = plan.settings, plan.pool
    rows = scored(plan, work)
    tokens_N = np.array([a.tokens for a in pool.answers])
    allowed_N = np.array([
        a.fits and a.prompt_id not in plan.left.all and (a.finished or not settings.finished)
        for a in pool.answers
    ])  # fmt: skip
    places = np.flatnonzero(allowed_N)
    candidates = [rows[n] for n in places.tolist()]
    budget = round(settings.keep * int(tokens_N[places].sum()))
    kept: dict[str, np.ndarray] = {}
    for name, rule in plan.rules.items():
        order_N = order(name, rule, candidates, seed=settings.seed, worst=settings.worst)
        kept[name] = np.zeros(len(rows), bool)
        kept[name][places[within(order_N, tokens_N[places], budget)]] = True
    messages = write_selections(pool, kept, work)
    jsonl.write(work / "scores.jsonl", rows)
    (work / READINGS).unlink(missing_ok=True)
    known = {
        name: float(np.mean([rule.of(row) is not None for row in candidates]))
        for name, rule in plan.rules.items()
    }
    return Curation(
        pool=settings.pool,
        responses=len(places),
        tokens=int(tokens_N[places].sum()),
        budget=budget,
        excluded_by_id=len(plan.left.by_id),
        excluded_by_text=len(plan.left.by_text - plan.left.by_id),
        too_long=sum(not a.fits for a in pool.answers),
        cut=sum(settings.finished and not a.finished for a in pool.answers),
        everything=summary("everything", rows, allowed_N, 1.0),
        selections=tuple(summary(name, rows, kept_N, known[name]) for name, kept_N in kept.items()),
        overlap=tuple(overlap(kept, tokens_N)),
        messages=messages,
        warnings=tuple(_warnings(plan, known, messages)),
    )


def summary(name: str, rows: Sequence[Values], kept_N: np.ndarray, known: float) -> KeptAnswers:
    """A selection in numbers."""
    kept = [rows[n] for n in np.flatnonzero(kept_N).tolist()]
    judged = [row["correct"] for row in kept if "correct" in row]
    tokens = sum(row["tokens"] for row in kept)
    return KeptAnswers(
        by=name,
        responses=len(kept),
        prompts=len({row["prompt_id"] for row in kept}),
        tokens=tokens,
        mean_tokens=tokens / len(kept),
        finished=sum(row["finished"] for row in kept) / len(kept),
        correct=sum(judged) / len(judged) if judged else None,
        known=known,
    )


def overlap(kept: Mapping[str, np.ndarray], tokens_N: np.ndarray) -> list[SharedAnswers]:
    """How much of each selection is in each other one, by tokens."""
    names = list(kept)
    return [
        SharedAnswers(
            one=one, other=other,
            share=float(tokens_N[kept[one] & kept[other]].sum() / tokens_N[kept[one]].sum()),
        )
        for one in names for other in names if one != other
    ]  # fmt: skip


def _warnings(plan: CuratePlan, known: Mapping[str, float], messages: bool) -> list[str]:
    found = [
        f"{name} has no value for {1 - share:.0%} of the answers: they come last."
        for name, share in known.items() if share < LEAST_KNOWN
    ]  # fmt: skip
    if not messages:
        found.append(
            "the prompts are known as tokens only, so no rows were written for TRL and "
            "LLaMA-Factory: give --prompts FILE."
        )
    if plan.settings.exclude and any(text is None for text in plan.pool.texts.values()):
        found.append(
            "the prompts are known as tokens only, so they were excluded by id alone: give "
            "--prompts FILE."
        )
    return found


def show(result: Curation) -> None:
    """Print the selections, how much they share, and where they are."""
    announce(result.already, "This curation")
    left = result.excluded_by_id + result.excluded_by_text
    say(
        f"{result.responses:,} answers of {result.tokens:,} tokens; left out: {left} prompts "
        f"({result.excluded_by_id} by id, {result.excluded_by_text} by text), {result.too_long} "
        f"answers beyond the context, {result.cut} cut. A selection has {result.budget:,} tokens."
    )
    columns = ["selection", "answers", "prompts", "tokens", "mean length", "finished"]
    judged = result.everything.correct is not None
    names = [s.by for s in result.selections]
    found = table(*columns, *(["correct"] if judged else []))
    for s in (*result.selections, result.everything):
        cells: list[Any] = [
            s.by, s.responses, s.prompts, f"{s.tokens:,}", f"{s.mean_tokens:.0f}",
            f"{s.finished:.0%}",
        ]  # fmt: skip
        cells += ["-" if s.correct is None else f"{s.correct:.0%}"] if judged else []
        found.add_row(*map(str, cells))
    console().print(found)
    if result.overlap:
        shared = {(s.one, s.other): f"{s.share:.0%}" for s in result.overlap}
        say("")
        found = table("its tokens in", *names)
        for one in names:
            found.add_row(one, *(shared.get((one, other), "") for other in names))
        console().print(found)
    warn(result.warnings)
    say(f"Train on one: surgeon sft CHECKPOINT --traces {result.out / names[0]}.jsonl")
