"""All candidates of a ranking together: scores, intervals, warnings, headline, `best`, report."""

# Shape letters: C candidates, P prompts.

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from surgeon import lineage, metrics, nex
from surgeon.families import Subject, write_out
from surgeon.rank.candidates import Response, candidate_dir, jsonable
from surgeon.rank.plan import SCORES, Plan
from surgeon.traces import read_traces, token_texts
from surgeon.truth import EVALUATION

if TYPE_CHECKING:
    from rich.table import Table

SPARSE_EVIDENCE = 0.2
"""Share of responses without weighted mass above which a ranking rests on a zero/non-zero step."""
SATURATED_ABOVE, SATURATED_RANGE = 0.95, 0.02
"""The better half is saturated when it starts above the first and spans less than the second."""
ROWS_WANTED = 48
"""Rows in the median response at which most responses had two or more counted cycles (measured on
the built-in family, 5,700 responses read at 1, 2, 4 and 8 tokens a row)."""


def conclude(
    plan: Plan, work: Path, *, select: str, truth: str | None, accuracy: dict[str, float]
) -> dict[str, Any]:
    """Write ranking.json, report.html and the link `best` from the candidates' scores."""
    stored = {
        s.name: lineage.read_object(candidate_dir(work, s) / "scores.json") for s in plan.subjects
    }
    responses = {
        name: [Response(**{**r, "logprob": nan(r["logprob"])}) for r in found["responses"]]
        for name, found in stored.items()
    }
    values = score_values(responses, [p.id for p in plan.prompts], plan.readings)
    candidates = describe(plan, responses, values, select, accuracy)
    ranking: dict[str, Any] = {
        "mini_set": {
            "path": plan.settings["mini_set"],
            "prompts": len(plan.prompts),
            "digest": plan.inputs["mini set"],
        },
        "settings": plan.settings,
        "select": select,
        "truth": truth,
        "favourites": {name: favourite(candidates, name) for name in SCORES},
        "headline": [],
        "warnings": warnings(plan, responses, candidates, select),
        "candidates": candidates,
    }
    ranking["headline"] = headline(ranking)
    if accuracy:
        ranking["selection_quality"] = {
            name: jsonable(
                metrics.selection_quality(
                    {c["name"]: nan(c["scores"][name]) for c in candidates}, accuracy
                )
            )
            for name in SCORES
        }
    link_best(plan, work, candidates[0]["name"])
    lineage.write_json(work / "ranking.json", ranking)
    write_report(plan, work, ranking, stored)
    return ranking


def nan(value: float | None) -> float:
    return math.nan if value is None else value


def score_values(
    responses: dict[str, list[Response]], prompt_ids: list[str], readings: nex.Readings
) -> dict[str, np.ndarray]:
    """Score name -> (P, C, 2): sum of its values over a prompt's responses, and how many it has.

    A model score is the mean over responses (NEX sec. 3.3), the ratio of the two sums over prompts;
    kept apart so that prompts can be resampled. Agreement has one value per prompt.
    """
    rows_of = [np.array(r.entropy_R) for rs in responses.values() for r in rs]
    top20 = iter(nex.entropy_top20(rows_of).tolist())
    omitted = readings.empty_response == "omitted"
    index = {prompt_id: n for n, prompt_id in enumerate(prompt_ids)}
    found = {name: np.zeros((len(prompt_ids), len(responses), 2)) for name in SCORES}
    for c, rows in enumerate(responses.values()):
        answers: dict[str, list[str | None]] = {}
        for r in rows:
            answers.setdefault(r.prompt_id, []).append(r.answer)
            for name, value in {
                "nex": math.nan if r.empty and omitted else r.nex,
                "length": float(r.tokens),
                "hes": r.hes,
                "entropy_top20": next(top20),
                "logprob": r.logprob,
                "explore_segments": float(r.explore_segments),
                "finished": float(r.finished),
            }.items():
                if not math.isnan(value):
                    found[name][index[r.prompt_id], c] += (value, 1)
        # One sample always agrees with itself: that says nothing.
        voted = {prompt_id: votes for prompt_id, votes in answers.items() if len(votes) > 1}
        shares = metrics.agreement_by_prompt(list(voted.values()))
        for prompt_id, share in zip(voted, shares, strict=True):
            found["agreement"][index[prompt_id], c] = (share, 1)
    return found


def ratio(sums: np.ndarray) -> np.ndarray:
    """`sums[..., 0] / sums[..., 1]`; nan where nothing was counted."""
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.full(top.shape, math.nan), where=bottom > 0)


def describe(
    plan: Plan,
    responses: dict[str, list[Response]],
    values: dict[str, np.ndarray],
    select: str,
    accuracy: dict[str, float],
) -> list[dict[str, Any]]:
    """The candidates' entries of ranking.json, best first; unscored ones come last."""
    point = {name: ratio(sums.sum(0)) for name, sums in values.items()}
    # Every score and candidate sees the same resampled prompts, so differences are paired.
    resampled = {
        name: ratio(metrics.resampled_means(sums, seed=plan.sampling.seed))
        for name, sums in values.items()
    }
    interval = {name: metrics.percentile_interval(drawn) for name, drawn in resampled.items()}
    gaps = resampled[select] - resampled[select][:, [best_first(point[select])[0]]]
    gap_C2 = metrics.percentile_interval(gaps)
    order = best_first(point[select])
    entries = []
    for place, c in enumerate(order):
        subject = plan.subjects[c]
        rows = responses[subject.name]
        entries.append(
            {
                "checkpoint": subject.spec,
                "name": subject.name,
                "ratio": subject.ratio,
                "method": method(subject),
                "digest": subject.digest,
                "rank": place + 1,
                "scores": jsonable({name: float(point[name][c]) for name in SCORES}),
                "interval": {
                    name: [None if math.isnan(x) else x for x in interval[name][c].tolist()]
                    for name in SCORES
                },
                "not_told_apart_from_best": place == 0 or bool(gap_C2[c, 0] <= 0 <= gap_C2[c, 1]),
                "responses": len(rows),
                "truncated": sum(not r.finished for r in rows),
                "tokens": sum(r.tokens for r in rows),
                "cycles": float(np.mean([r.cycles for r in rows])),
                "gated_cycles": float(np.mean([r.gated for r in rows])),
                "without_evidence": sum(not r.credible for r in rows),
                "kept_mass": float(np.mean([r.kept_mass for r in rows])),
                "saturation": jsonable({"x": nex.saturation(float(point["nex"][c]))})["x"],
                "reward": float(np.mean([r.reward for r in rows])),
                "bad": float(np.mean([r.bad for r in rows])),
                "accuracy": accuracy.get(subject.name),
            }
        )
    return entries


def method(subject: Subject) -> str | None:
    """The merge method of a candidate; None for an endpoint, which belongs to every method."""
    merge = subject.candidate.merge if subject.candidate else {}
    return merge.get("merge_method")


def best_first(point_C: np.ndarray) -> list[int]:
    """Candidate indices, highest score first; nan last, ties in the order given."""
    return sorted(range(len(point_C)), key=lambda c: (np.isnan(point_C[c]), -point_C[c], c))


def favourite(candidates: Iterable[dict[str, Any]], score: str) -> str | None:
    """The candidate with the highest value of a score; None when no candidate has one."""
    scored = [c for c in candidates if c["scores"][score] is not None]
    return max(scored, key=lambda c: c["scores"][score])["name"] if scored else None


def warnings(
    plan: Plan,
    responses: dict[str, list[Response]],
    candidates: list[dict[str, Any]],
    select: str,
) -> list[str]:
    """Plain sentences about what the ranking rests on; empty when nothing is amiss."""
    everything = [r for rows in responses.values() for r in rows]
    found = []
    row_tokens = plan.settings["row_tokens"]
    poor = np.mean([r.gated < 2 for r in everything])
    tokens = float(np.median([r.tokens for r in everything]))
    fitting = 2 ** max(0, math.floor(math.log2(max(1.0, tokens / ROWS_WANTED))))
    if poor > 0.5 and fitting < row_tokens:
        found.append(
            f"Rows of {row_tokens} tokens are too long for these traces: {poor:.0%} of the "
            "responses have fewer than two counted cycles, and one cycle teaches nothing (Eq. 6). "
            f"The median response has {tokens:.0f} tokens; row_tokens={fitting} would fit."
        )
    without = np.mean([not r.credible for r in everything])
    empty = [c["name"] for c in candidates if c["without_evidence"] == c["responses"]]
    if select == "nex" and (without > SPARSE_EVIDENCE or empty):
        tail = f" {len(empty)} candidates have none at all." if empty else ""
        found.append(
            f"The NEX ranking rests on a zero/non-zero step: {without:.0%} of the responses carry "
            f"no weighted mass and score 0.{tail} Read the differences with that in mind."
        )
    nex_scores = sorted((nan(c["scores"]["nex"]) for c in candidates), reverse=True)
    better = nex_scores[: max(2, len(nex_scores) // 2)]
    if (
        select == "nex" and len(better) > 1 and better[-1] > SATURATED_ABOVE
        and better[0] - better[-1] < SATURATED_RANGE
    ):  # fmt: skip
        found.append(
            f"NEX is saturated: the better half lies between {better[-1]:.3f} and {better[0]:.3f}. "
            "It tells weak candidates from good ones here, not the good ones from each other."
        )
    truncated = np.mean([not r.finished for r in everything])
    if truncated > SPARSE_EVIDENCE:
        found.append(
            f"{truncated:.0%} of the responses hit the limit of {plan.sampling.max_tokens} tokens: "
            "their scores describe unfinished traces."
        )
    return found


def headline(ranking: dict[str, Any]) -> list[str]:
    """The first lines of a ranking: agreement's dissent first, then the best and its equals."""
    candidates, select = ranking["candidates"], ranking["select"]
    best = candidates[0]
    lines = []
    other = ranking["favourites"]["agreement"]
    by_name = {c["name"]: c for c in candidates}
    if other is not None and select != "agreement":
        mine, theirs = (by_name[n]["scores"]["agreement"] for n in (best["name"], other))
        if theirs > (mine or 0):
            lines.append(
                f"Agreement prefers {other} ({theirs:.3f}) to {best['name']} ({nan(mine):.3f}): "
                "its samples agree on their answers more often. Compare both before choosing."
            )
    equal = [c["name"] for c in candidates[1:] if c["not_told_apart_from_best"]]
    apart = f"not told apart from it: {', '.join(equal)}" if equal else "told apart from all others"
    value = best["scores"][select]
    shown = "no evidence" if value is None else f"{value:.4g}"
    lines.append(f"Best by {select}: {best['name']} ({shown}); {apart}.")
    return lines


def link_best(plan: Plan, work: Path, name: str) -> None:
    """Point `best` at the chosen checkpoint; a virtual candidate is written out first."""
    subject = next(s for s in plan.subjects if s.name == name)
    if subject.checkpoint is not None:
        target = str(subject.checkpoint.path.resolve())
    else:
        directory = work / "checkpoints" / name
        if not directory.exists():
            directory.parent.mkdir(exist_ok=True)
            write_out(subject, directory)
        target = str(directory.relative_to(work))
    link = work / "best"
    temporary = work / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def write_report(plan: Plan, work: Path, ranking: dict[str, Any], stored: dict[str, Any]) -> None:
    """Write report.html; the trace read in it is one of the best candidate's."""
    from surgeon.report import write_report as write

    best = ranking["candidates"][0]["name"]
    reading = stored[best]["reading"]
    response = stored[best]["responses"][reading["response"]]
    subject = next(s for s in plan.subjects if s.name == best)
    traces = (plan.given or {}).get(best) or read_traces(
        candidate_dir(work, subject) / "traces.jsonl"
    )
    trace = next(
        t for t in traces if t.prompt_id == response["prompt_id"] and t.sample == response["sample"]
    )
    prompt = next(p for p in plan.prompts if p.id == trace.prompt_id)
    tokenizer = subject.source.tokenizer()
    write(
        work,
        ranking,
        reading={
            **reading,
            "candidate": best,
            "prompt_id": trace.prompt_id,
            "sample": trace.sample,
            "prompt": "\n".join(str(m["content"]) for m in prompt.messages),
            "tokens": token_texts(tokenizer, trace.token_ids),
            "row_tokens": plan.settings["row_tokens"],
            "cycles": response["cycles"],
            "score": response["nex"],
            "finish_reason": trace.finish_reason,
        },
        truth=read_evaluation(ranking["truth"]),
        lineage=lineage.read(work),
    )


def read_evaluation(truth: str | None) -> dict[str, Any] | None:
    """The evaluation behind `--truth`, for the report; None where it was a bare table."""
    path = Path(truth or "")
    file = path / EVALUATION if path.is_dir() else path
    return lineage.read_object(file) if truth and file.name == EVALUATION else None


WIDE = 118
"""Columns a terminal needs for every score in one table."""


def table(ranking: dict[str, Any], width: int = 80) -> "Table":
    """The ranking for a terminal `width` columns wide: best first, `=` where a candidate can't be
    told apart from it, each column's favourite in bold. Narrow terminals get the main columns."""
    from rich.table import Table

    select, candidates = ranking["select"], ranking["candidates"]
    scores = [s for s in SCORES if s != select]
    with_truth = any(c["accuracy"] is not None for c in candidates)
    if width < WIDE:
        main = (
            ("nex", "length", "agreement")
            if with_truth
            else ("nex", "length", "agreement", "finished")
        )
        scores = [s for s in scores if s in main]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("", justify="right")
    shown.add_column("candidate", no_wrap=True)
    shown.add_column(select, justify="right", no_wrap=True)
    shown.add_column("95% interval", justify="center", style="dim", no_wrap=True)
    for name in [*scores, "cycles", *(["accuracy"] if with_truth else [])]:
        title = {"explore_segments": "E segments", "entropy_top20": "top-20% H"}.get(name, name)
        shown.add_column(title, justify="right", no_wrap=True)

    def cell(c: dict[str, Any], name: str) -> str:
        value = c["scores"][name]
        if value is None:
            return "–"
        text = number(value)
        return f"[bold]{text}[/]" if ranking["favourites"][name] == c["name"] else text

    for c in candidates:
        low, high = c["interval"][select]
        interval = "–" if low is None else f"{number(low)} {number(high)}"
        mark = "" if c["rank"] == 1 or not c["not_told_apart_from_best"] else "="
        row = [f"{mark}{c['rank']}", escape(c["name"]), cell(c, select), interval]
        row += [*(cell(c, name) for name in scores), f"{c['cycles']:.1f}"]
        if with_truth:
            row.append("–" if c["accuracy"] is None else f"{c['accuracy']:.3f}")
        shown.add_row(*row)
    return shown


def number(value: float) -> str:
    """About four digits: three decimals below 10, none from 100 on."""
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def quality_table(ranking: dict[str, Any]) -> "Table | None":
    """How well each score would have chosen, where true accuracies are known."""
    from rich.table import Table

    if "selection_quality" not in ranking:
        return None
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("score")
    for name in ("Pearson r", "Spearman", "Regret@1 (pp)", "Hit@3", "its favourite"):
        shown.add_column(name, justify="right" if name != "its favourite" else "left")
    for score, q in ranking["selection_quality"].items():
        numbers = ["–" if q[k] is None else f"{q[k]:.2f}" for k in ("pearson", "spearman")]
        regret = "–" if q["regret_at_1"] is None else f"{q['regret_at_1']:.1f}"
        hit = "–" if q["hit_at_3"] is None else ("yes" if q["hit_at_3"] else "no")
        shown.add_row(score, *numbers, regret, hit, ranking["favourites"][score] or "–")
    return shown


def show(ranking: dict[str, Any]) -> None:
    """Print a ranking: headline, warnings, table and, with a truth, every score's quality."""
    from rich.console import Console

    console = Console(highlight=False)
    if ranking.get("already"):
        console.print("This ranking was finished before: nothing was computed.")
    for line in ranking["headline"]:
        console.print(line, style="bold", markup=False, soft_wrap=True)
    for line in ranking["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False, soft_wrap=True)
    console.print(table(ranking, console.width))
    quality = quality_table(ranking)
    if quality is not None:
        console.print("\nHow well each score would have chosen:")
        console.print(quality)
    console.print(f"Report: {ranking['out']}/report.html", markup=False, soft_wrap=True)
