"""The tables of docs/picking.md from runs with several seeds.

    python -m benchmarks.evidence best PICK...           # of `surgeon pick`, one directory a seed
    python -m benchmarks.evidence curated DIR            # of recipes/curate.yaml: runs/curate
    python -m benchmarks.evidence trained RANKING        # of recipes/trained-family.yaml

`best`: what each rule picks, the mean over the candidates of every run, in percentage points over
an answer drawn at random. A prompt's seeds are resampled together (95 %), and the range over the
single runs stands beside it. "In order" are the paper's counts (NEX Fig. 7: 19 and 16 of 20): best
>= worst, and best >= random >= worst, over candidates with their seeds together, and over each run.
Then tokens and words of right picks less those of right answers at random, where a prompt has
several (sec. 5.4.2); a check is a "Wait", another way an "Or" or "Undo", a restart a "start over".

`curated`: what each rule kept (how much of it is right says the task, which no rule asks), and the
students' accuracy: the mean over seeds, each seed, and the difference to the students of random
selections (95 %, problems resampled, a problem's seeds together).

`trained`: NEX and the estimate by vote of mixtures beside merges, held against the truth (Fig. 3):
correlations over all, over the merges and over the mixtures of each seed.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgeon import artifact, jsonl, metrics
from surgeon.builtin import task
from surgeon.pick import Picks
from surgeon.pick.comparing import by_prompt, drawn, estimated, mean_of
from surgeon.pick.plan import PICKING
from surgeon.ranking import Ranking
from surgeon.traces import read_prompts
from surgeon.truth import Evaluation

# Shape letters: P prompts.

WORDS = {
    "checks": re.compile(r"\bWait\b"),
    "other ways": re.compile(r"\b(?:Or|Undo)\b"),
    "restarts": re.compile(r"\bstart over\b"),
}
SEED = re.compile(r"mix-(?P<share>[\d.]+)-seed-(?P<seed>\d+)")

Rows = list[dict[str, Any]]


class PickRun(NamedTuple):
    """One seed's picks."""

    rules: list[str]
    rows: dict[str, Rows]
    """Candidate -> its answers, in the order of the prompts."""


def read_run(directory: Path) -> PickRun:
    """The answers of a pick with their values, and how often each counted word is in them."""
    texts = {}
    for file in sorted((directory / "traces").glob("*.jsonl")):
        for _, row in jsonl.rows(file):
            texts[file.stem, row["prompt_id"], row["sample"]] = row["text"]
    rows: dict[str, Rows] = defaultdict(list)
    for _, line in jsonl.rows(directory / "picks.jsonl"):
        for answer in line["answers"]:
            place = {"candidate": line["candidate"], "prompt_id": line["prompt_id"]}
            text = texts.get((*place.values(), answer["sample"]))
            found = {name: len(w.findall(text)) for name, w in WORDS.items() if text is not None}
            rows[line["candidate"]].append(answer | place | found)
    rules = [r.by for r in artifact.read(Picks, directory).candidates[0].rules]
    return PickRun(rules, dict(rows))


class Pooled(NamedTuple):
    """A rule over some runs: arrays by prompt, the mean over candidates and runs."""

    over_random: np.ndarray
    right: np.ndarray
    words: dict[str, np.ndarray]
    """Counted word, and "tokens" -> right picks less right answers at random."""


def pooled(runs: Sequence[PickRun], rule: str) -> Pooled:
    """The mean over every candidate of every run."""
    over, right, words = [], [], defaultdict(list)
    for run in runs:
        for rows in run.rows.values():
            found, (random_P, _) = by_prompt(rule, PICKING[rule], rows), drawn(rows)
            over.append(found.right - random_P)
            right.append(found.right)
            words["tokens"].append(found.right_tokens)
            words["words that the pick counted"].append(found.right_words)
            for name in WORDS:
                if all(name in row for row in rows):
                    counted = [row | {"words": row[name]} for row in rows]
                    words[name].append(by_prompt(rule, PICKING[rule], counted).right_words)
    gains = {name: mean_of(values) for name, values in words.items() if values}
    return Pooled(mean_of(over), mean_of(right), gains)


def counts(runs: Sequence[PickRun], rule: str) -> tuple[int, int, int]:
    """Candidates, and the paper's two counts; the runs' seeds together."""
    best_over_worst = ordered = 0
    names = list(runs[0].rows)
    for name in names:
        found = [by_prompt(rule, PICKING[rule], run.rows[name]) for run in runs]
        best, worst = (float(np.mean([getattr(f, k).mean() for f in found]))
                       for k in ("right", "worst"))  # fmt: skip
        random = float(np.mean([drawn(run.rows[name])[0].mean() for run in runs]))
        best_over_worst += best >= worst - 1e-12
        ordered += best >= random - 1e-12 and random >= worst - 1e-12
    return len(names), best_over_worst, ordered


def shown(value_P: np.ndarray, times: float, form: str) -> str:
    """A mean with its interval."""
    found = estimated(value_P, seed=0)
    if np.isnan(found.value):
        return "none"
    ends = (form.format(times * end) for end in (found.low, found.high))
    return f"{form.format(times * found.value)} ({', '.join(ends)})"


def best(directories: Sequence[Path]) -> None:
    """Print the tables of best of n."""
    runs = [read_run(directory) for directory in directories]
    alike = {(tuple(r.rules), tuple(r.rows)) for r in runs}
    if len(alike) > 1:
        raise SystemExit("found picks of different rules or candidates, expected seeds of one pick")
    answers = sum(len(rows) for run in runs for rows in run.rows.values())
    print(f"{len(runs)} seeds, {len(runs[0].rows)} candidates, {answers:,} answers\n")
    print(
        "| picked by | over random, pp | by seed | right, % | best >= worst | in order | by seed |"
    )
    print("|---|---|---|---|---|---|---|")
    found = {rule: pooled(runs, rule) for rule in runs[0].rules}
    for rule, p in found.items():
        single = [100 * float(np.nanmean(pooled([run], rule).over_random)) for run in runs]
        n, best_over_worst, ordered = counts(runs, rule)
        by_seed = [counts([run], rule) for run in runs]
        cells = [
            rule, shown(p.over_random, 100, "{:+.1f}"), " ".join(f"{s:+.1f}" for s in single),
            shown(p.right, 100, "{:.1f}"), f"{best_over_worst} of {n}", f"{ordered} of {n}",
            ", ".join(f"{c[1]}/{c[2]}" for c in by_seed),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    for name, place in (("random", 0), ("oracle", 1)):
        value_P = mean_of([drawn(rows)[place] for run in runs for rows in run.rows.values()])
        print(f"| {name} | | | {shown(value_P, 100, '{:.1f}')} | | | |")
    names = list(next(iter(found.values())).words)
    print(f"\nOf right picks, less right answers at random:\n\n| picked by | {' | '.join(names)} |")
    print(f"|{'---|' * (len(names) + 1)}")
    for rule, p in found.items():
        cells = [shown(p.words[name], 1, "{:+.2f}") for name in names]
        print(f"| {rule} | {' | '.join(cells)} |")


def right_share(file: Path, golds: Mapping[str, str]) -> tuple[int, int, float]:
    """Answers of a selection, their tokens, and the share that is right."""
    rows = [row for _, row in jsonl.rows(file)]
    right = [task.answer(row["text"]) == golds[row["prompt_id"]] for row in rows]
    return len(rows), sum(len(row["token_ids"]) for row in rows), float(np.mean(right))


def curated(directory: Path) -> None:
    """Print selections, and their students."""
    prompts = read_prompts("builtin:pool")
    golds = {p.id: str(task.Problem.parse(str(p.messages[0]["content"])).answer()) for p in prompts}
    evaluation = artifact.read(Evaluation, directory / "test")
    members = {group.name: group.members for group in evaluation.groups}
    accuracy = {c.name: c for c in evaluation.candidates}

    def correct(name: str) -> np.ndarray:
        rows = jsonl.rows(directory / "test" / "answers" / f"{name}.jsonl")
        return np.array([row["correct"] for _, row in rows], float)

    random_P = np.mean([correct(name) for name in members["random"]], axis=0)
    columns = (
        "learned", "answers", "tokens", "mean length", "right, %", "student, %", "by seed",
        "over random, pp", "its tokens", "cut, %",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, students in {"base": ("base",), **members}.items():
        cells = ["", "", "", ""]
        if name != "base":
            rule = {"shortest": "length"}.get(name, name)
            files = sorted(directory.glob(f"kept-*/{rule}.jsonl"))
            pool = directory / "pool" / "candidates" / "thinking" / "traces.jsonl"
            found = np.array([right_share(file, golds) for file in files or [pool]])
            n, tokens, right = found.mean(0)
            cells = [f"{n:.0f}", f"{tokens:,.0f}", f"{tokens / n:.0f}", f"{100 * right:.0f}"]
        own = [accuracy[student] for student in students]
        right_P = np.mean([correct(student) for student in students], axis=0)
        cells += [
            shown(right_P, 100, "{:.1f}"), " ".join(f"{100 * c.avg:.1f}" for c in own),
            "" if name == "random" else shown(right_P - random_P, 100, "{:+.1f}"),
            f"{np.mean([c.tokens for c in own]):.0f}",
            f"{100 * float(np.mean([c.truncated for c in own])):.0f}",
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")


def trained(directory: Path) -> None:
    """Print mixtures beside merges."""
    ranking = artifact.read(Ranking, directory)
    known = [c for c in ranking.candidates if c.accuracy is not None]
    columns = ["nex", "estimate", "recommended", "length"]
    print(f"| candidate | accuracy, % | {' | '.join(columns)} | tokens |")
    print(f"|{'---|' * (len(columns) + 3)}")
    for c in sorted(known, key=lambda c: c.name):
        cells = [f"{100 * (c.accuracy or 0):.1f}",
                 *(f"{c.scores[s]:.3f}" if c.scores.get(s) is not None else "-" for s in columns),
                 f"{c.tokens / c.responses:.0f}"]  # fmt: skip
        print(f"| {c.name} | {' | '.join(cells)} |")
    mixtures = [c for c in known if SEED.fullmatch(c.name)]
    seeds = sorted({SEED.fullmatch(c.name)["seed"] for c in mixtures})  # pyright: ignore
    groups = {"all": known, "merges and endpoints": [c for c in known if c not in mixtures]}
    for seed in seeds:
        own = [c for c in mixtures if c.name.endswith(f"-seed-{seed}")]
        groups[f"mixtures, seed {seed}"] = own
        groups[f"mixtures, seed {seed}, with the merges"] = [*own, *groups["merges and endpoints"]]
    print(f"\n| over | candidates | {' | '.join(f'r of {s}, regret pp' for s in columns)} |")
    print(f"|{'---|' * (len(columns) + 2)}")
    for name, members in groups.items():
        truth = np.array([c.accuracy for c in members], float)
        cells = []
        for score in columns:
            value = np.array([c.scores.get(score) for c in members], float)
            r = metrics.pearson(value, truth)
            cells.append(f"{r:+.2f}, {metrics.regret_at_1(value, truth):.1f}")
        print(f"| {name} | {len(members)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=["best", "curated", "trained"])
    parser.add_argument("directories", nargs="+", type=Path)
    given = parser.parse_args()
    if given.table == "best":
        best(given.directories)
    elif given.table == "curated":
        curated(given.directories[0])
    else:
        trained(given.directories[0])


if __name__ == "__main__":
    main()
