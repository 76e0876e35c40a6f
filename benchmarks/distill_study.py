"""The study of `surgeon distill`'s methods on the built-in family, as recipes: every method at
three learning rates, then five seeds at the best of them, with controls and other pools.

    python -m benchmarks.distill_study labels     what grpo and dapo are rewarded by
    python -m benchmarks.distill_study rates      writes recipes/distill-study.yaml
    surgeon run recipes/distill-study.yaml        24 trainings of seed 0, and problems that choose
    python -m benchmarks.distill_study table      rates and what each training took
    python -m benchmarks.distill_study estimate   hours of both recipes on one core
    python -m benchmarks.distill_study seeds      writes recipes/distill-study-seeds.yaml
    surgeon run recipes/distill-study-seeds.yaml
    python -m benchmarks.distill_study results    tables of what it measured
    python -m benchmarks.distill_study law        Neuron-OPSD's teachers, and what they were worth

A killed run continues where it was. A training generates about `ANSWERS` answers, before it and in
it, whatever its method; how many tokens those were stands in the table. Rates are chosen by Avg@4
on the first 60 problems of `test-ambiguous`, which no table of results reads; a best rate at the
edge of the three is marked, since a better one may lie beyond.
"""

# Shapes: none.

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgeon.metrics import pearson

ROOT = Path(__file__).parents[1]
PLACE = "runs/distill-study"
RATES, SEEDS, ANSWERS = (3e-4, 1e-3, 3e-3), 5, 800
SPEED, ROLLOUTS, LENGTH, LEARNING = 3550, 2000, 150, 25
"""What the built-in base does on one core: tokens per second in large batches, and in those of a
step; tokens per answer; seconds of a training beside its rollouts."""
VALIDATION, TEST = "builtin:test-ambiguous[:60]", "builtin:test-ambiguous[60:260]"
LONGER = "builtin:cross[:100]"
LABELS = {
    Path(f"{PLACE}/labels.jsonl"): "pool",
    Path(f"{PLACE}/labels-reversed.jsonl"): "pool-reversed",
}
"""Files of right answers, and the pools that are without."""
GROUPED = {"samples": 8, "batch_size": 4, "steps": 23}
"""Eight rollouts of four questions a step."""
METHODS: dict[str, dict[str, Any]] = {
    # Eight questions answered before training for what is said of it, eight times each, and again
    # by the teacher; 200 first answers; then 16 rollouts a step.
    "nopsd": {"steps": 29},
    "uopsd": GROUPED,
    "lmsi": {"pool": "builtin:pool[:100]", "steps": 50},
    "ttrl": GROUPED,
    "intuitor": GROUPED,
    "opsa": {"steps": 46},
    "grpo": GROUPED | {"labels": f"{PLACE}/labels.jsonl"},
    # Dynamic sampling draws about as much again.
    "dapo": GROUPED | {"labels": f"{PLACE}/labels.jsonl", "steps": 12},
}
CONTROLS: dict[str, dict[str, Any]] = {
    "nopsd-top": {"select": "top"},
    "nopsd-auto": {"select": "auto"},
    "nopsd-random": {"context": "random"},
    "nopsd-length": {"context": "length"},
    "nopsd-answer": {"context": "answer"},
    "nopsd-embedding": {"context": "embedding"},
}
"""Neuron-OPSD with another end of the pool, or with other demonstrations."""
POOLS = {
    "wrong": ("builtin:pool-divided[:200]", "builtin:pool-divided[200:300]"),
    "rare": ("builtin:pool-reversed[:200]", "builtin:test-reversed[:100]"),
}
"""Where the majority is wrong more often than not, or rarely exists (answered by Instruct): the
pool to train on, and problems like it."""
ELSEWHERE = ("nopsd", "uopsd", "lmsi", "ttrl", "grpo")
"""The methods that are trained on those pools."""


class Trained(NamedTuple):
    """One training of the study."""

    name: str
    method: str
    lr: float
    seed: int = 0
    more: Mapping[str, Any] = {}


def rates() -> list[Trained]:
    """Every method at every rate, with seed 0."""
    return [Trained(f"{m}-{lr:g}", m, lr) for m in METHODS for lr in RATES]


def seeds(best: Mapping[str, float]) -> list[Trained]:
    """Five seeds of every method, of the controls, and of every method on the other pools."""
    told = {"labels": f"{PLACE}/labels.jsonl"}  # what is said of the teacher, not trained on
    plain = [
        Trained(f"{m}-s{s}", m, best[m], s, told if m == "nopsd" else {})
        for m in METHODS
        for s in range(SEEDS)
    ]
    controls = [
        Trained(f"{name}-s{s}", "nopsd", best["nopsd"], s, {**more, **told})
        for name, more in CONTROLS.items()
        for s in range(SEEDS)
    ]
    return plain + controls


def on_pool(pool: str, best: Mapping[str, float]) -> list[Trained]:
    """Five seeds of the methods that are trained on another pool."""
    place, _ = POOLS[pool]
    more: dict[str, Any] = {"pool": place, "labels": place}
    if pool == "rare":
        more |= {"checkpoint": "builtin:instruct", "labels": f"{PLACE}/labels-reversed.jsonl"}
    own = {"lmsi": {"pool": place.replace(":200]", ":100]")}}  # as few as on the plain pool
    return [
        Trained(f"{pool}-{m}-s{s}", m, best[m], s, more | own.get(m, {}))
        for m in ELSEWHERE
        for s in range(SEEDS)
    ]


def teachers(best: Mapping[str, float]) -> list[Trained]:
    """Every setting of Neuron-OPSD with one step of training, for what is said of its teacher on
    more questions than a training has answers for."""
    look = {"diagnose": 64, "steps": 1}
    plain = [one for one in seeds(best) if one.method == "nopsd"]
    pools = [one for pool in POOLS for one in on_pool(pool, best) if one.method == "nopsd"]
    return [
        Trained(f"teacher-{one.name.removesuffix('-s0')}", "nopsd", one.lr, 0, {**one.more, **look})
        for one in (*plain, *pools)
        if one.seed == 0
    ]


# --- as recipes -----------------------------------------------------------------------------------

COMMON = f"""\
# every training: a checkpoint, the pool's first 200 questions
- distill: &method
    checkpoint: builtin:base
    pool: builtin:pool[:200]
    merge: true
    top_global: 0.0143 # 22 of 1,536 neurons: the paper's share, 5,000 of 350,208
    max_tokens: 640 # the family's budget
    samples: 8 # Neuron-OPSD sec. 5.5
    diagnose: 8 # so that diagnostics take a small part of the {ANSWERS:,} answers
"""


def fields_of(trained: Trained) -> dict[str, Any]:
    """A training's own settings."""
    own = {"out": f"{PLACE}/{trained.name}", "method": trained.method, **METHODS[trained.method]}
    return own | {"lr": f"{trained.lr:g}", "seed": trained.seed} | dict(trained.more)


def recipe(head: str, trained: Iterable[Trained], measures: Iterable[str]) -> str:
    """The text of a recipe."""
    text, first = [head, COMMON], True
    for one in trained:
        if not first:
            text.append("- distill:\n    <<: *method\n")
        text += [f"    {name}: {_plain(value)}\n" for name, value in fields_of(one).items()]
        text.append("\n")
        first = False
    return "".join([*text, *measures])


def measure(
    name: str, task: str, trained: Iterable[Trained], base: str = "builtin:base",
    *, samples: int = 4, grouped: bool = False,
) -> str:  # fmt: skip
    """The text of a measurement of trainings."""
    names = [one.name for one in trained]
    text = "- evaluate:\n    checkpoints:\n"
    text += "".join(f"      - {place}\n" for place in (base, *(f"{PLACE}/{n}" for n in names)))
    text += f"    task: {task}\n    out: {PLACE}/{name}\n    baseline: {base.split(':')[1]}\n"
    if grouped:
        text += "    groups:\n"
        for group in dict.fromkeys(n.rpartition("-s")[0] for n in names):
            members = ", ".join(n for n in names if n.rpartition("-s")[0] == group)
            text += f"      {group}: [{members}]\n"
    return (
        text + f"    samples: {samples}\n    temperature: 0.6\n    max_tokens: 640\n    seed: 1\n\n"
    )


def rates_recipe() -> str:
    """recipes/distill-study.yaml."""
    head = (
        "# Every method of `surgeon distill` at three learning rates, seed 0, on the built-in\n"
        "# family's plain pool, and the problems that choose the rate. Written by\n"
        "# `python -m benchmarks.distill_study rates`; before it, `... labels`. After it,\n"
        "# `... seeds` writes the recipe of the study itself. Each training generates about\n"
        f"# {ANSWERS:,} answers.\n\n"
    )
    return recipe(head, rates(), [measure("rates", VALIDATION, rates())]).rstrip() + "\n"


def votes(temperature: float) -> str:
    """The text of a measurement: how often the majority of eight of the base's answers to the pool
    is right, drawn as a step of training draws them (1), or as the pool's answers are (0.6)."""
    return (
        f"- evaluate:\n    checkpoints: builtin:base\n    task: {PLACE}/labels.jsonl[:100]\n"
        f"    out: {PLACE}/votes-{temperature:g}\n    temperature: {temperature:g}\n"
        "    samples: 8\n    top_p: 1\n    max_tokens: 640\n    seed: 2\n\n"
    )


class Measurement(NamedTuple):
    """One measurement of trainings."""

    name: str
    task: str
    trained: list[Trained]
    base: str = "builtin:base"

    @property
    def answers(self) -> int:
        """Four to each problem by each checkpoint."""
        first, last = self.task.partition("[")[2].rstrip("]").split(":")
        return (len(self.trained) + 1) * (int(last) - int(first or 0)) * 4


def measurements(best: Mapping[str, float]) -> list[Measurement]:
    """What the second recipe measures: problems like the pool's, longer ones, and the other
    pools' own."""
    plain = seeds(best)
    return [
        Measurement("test", TEST, plain),
        Measurement("cross", LONGER, plain),
        *(
            Measurement(
                pool, task, on_pool(pool, best),
                "builtin:instruct" if pool == "rare" else "builtin:base",
            )
            for pool, (_, task) in POOLS.items()
        ),
    ]  # fmt: skip


def all_trained(best: Mapping[str, float]) -> list[Trained]:
    """What the second recipe trains."""
    return [*seeds(best), *(one for pool in POOLS for one in on_pool(pool, best))]


def seeds_recipe(best: Mapping[str, float]) -> str:
    """recipes/distill-study-seeds.yaml."""
    head = (
        "# Five seeds of every method of `surgeon distill` at the rate that\n"
        "# recipes/distill-study.yaml chose, of Neuron-OPSD's controls, and on pools whose\n"
        "# majority is wrong or rare. Written by `python -m benchmarks.distill_study seeds`.\n\n"
    )
    measures = [
        measure(one.name, one.task, one.trained, one.base, grouped=True)
        for one in measurements(best)
    ]
    measures += [votes(1), votes(0.6)]
    return recipe(head, [*all_trained(best), *teachers(best)], measures).rstrip() + "\n"


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


# --- what was found -------------------------------------------------------------------------------


class Found(NamedTuple):
    """A training at one rate."""

    avg: float
    """Avg@4 on the problems that choose."""
    tokens: int
    """Generated, before training and in it."""
    seconds: float
    """Of training."""


def found() -> dict[str, dict[float, Found]]:
    """Method -> rate -> what came of it, of the trainings that are finished and measured."""
    measured = Path(PLACE) / "rates" / "evaluate.json"
    if not measured.is_file():
        raise SystemExit(f"{measured} isn't there: surgeon run recipes/distill-study.yaml")
    avg = {c["name"]: c["avg"] for c in json.loads(measured.read_text())["candidates"]}
    results: dict[str, dict[float, Found]] = {}
    for one in rates():
        cost = json.loads((Path(PLACE) / one.name / "distill.json").read_text())["cost"]
        seconds = sum(cost[f"{part}_seconds"] for part in ("rollout", "teacher", "student"))
        tokens = cost["answered"] + cost["generated"]
        results.setdefault(one.method, {})[one.lr] = Found(avg[one.name], tokens, seconds)
    return results


def best_rates() -> dict[str, float]:
    """Method -> the rate with the highest Avg@4; the smallest of equal ones."""
    return {m: max(rows, key=lambda lr: (rows[lr].avg, -lr)) for m, rows in found().items()}


def table() -> str:
    """Markdown: every method at every rate."""
    head = "| method | " + " | ".join(f"lr {lr:g}" for lr in RATES)
    lines = [head + " | tokens generated | seconds of training |", "|---" * (len(RATES) + 3) + "|"]
    best = best_rates()
    for method, rows in found().items():
        cells = [
            (f"**{row.avg:.3f}**" if lr == best[method] else f"{row.avg:.3f}")
            + (" (edge)" if lr == best[method] and lr in (RATES[0], RATES[-1]) else "")
            for lr, row in rows.items()
        ]
        tokens = [row.tokens for row in rows.values()]
        seconds = [row.seconds for row in rows.values()]
        lines.append(
            f"| {method} | {' | '.join(cells)} | {min(tokens):,} to {max(tokens):,} | "
            f"{min(seconds):.0f} to {max(seconds):.0f} |"
        )
    return "\n".join(lines)


def results() -> str:
    """Markdown: of every measurement of the second recipe a table of its groups."""
    tables = []
    for one in measurements(dict.fromkeys(METHODS, RATES[1])):
        file = Path(PLACE) / one.name / "evaluate.json"
        if not file.is_file():
            raise SystemExit(f"{file} isn't there: surgeon run recipes/distill-study-seeds.yaml")
        found = json.loads(file.read_text())
        lines = [
            f"`{one.task}`\n",
            "| | Avg@4 | gain, pp (95 %) | Maj@4 | ECE (95 %) | tokens | cut |",
            "|---" * 7 + "|",
            *(_measured(row) for row in (found["candidates"][0], *found["groups"])),
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _measured(row: Mapping[str, Any]) -> str:
    said = ""
    if gain := row["gain"]:
        said = _with_interval(100 * gain["avg"], [100 * end for end in gain["interval"]], ".1f")
    low, high = row["interval"]["ece"]
    return (
        f"| {row['name']} | {row['avg']:.3f} | {said} | {row['maj']:.3f} | {row['ece']:.3f} "
        f"({low:.3f} to {high:.3f}) | {row['tokens']:.0f} | {row['truncated']:.0%} |"
    )


def law() -> str:
    """Markdown: of every setting of Neuron-OPSD what was known of its teacher before training, and
    what it gained: does the accuracy gap tell (2605.30070), and does the teacher know what the
    majority doesn't?"""
    lines = [
        "| setting | entropy gap | accuracy gap, votes | labels | teacher | student | majority "
        "| gain, pp |",
        "|---" * 8 + "|",
    ]
    points = []
    places = [("test", name) for name in ("nopsd", *CONTROLS)]
    places += [(pool, f"{pool}-nopsd") for pool in POOLS]
    for measured, name in places:
        groups = json.loads((Path(PLACE) / measured / "evaluate.json").read_text())["groups"]
        gain = next(group["gain"] for group in groups if group["name"] == name)
        file = Path(PLACE) / f"teacher-{name}" / "distill.json"
        said = json.loads(file.read_text())["diagnostics"]
        votes, labels = said["accuracy_gaps"]
        points.append((labels["gap"], gain["avg"]))
        cells = [
            _with_interval(said["entropy_gap"], said["entropy_gap_interval"], ".4f"),
            *(_with_interval(gap["gap"], gap["interval"], ".3f") for gap in (votes, labels)),
            *(f"{share:.3f}" for share in (labels["teacher"], labels["student"])),
            f"{said['labelled']['maj']:.3f}",
            _with_interval(100 * gain["avg"], [100 * end for end in gain["interval"]], ".1f"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    gaps, gains = np.array(points).T
    slope = np.polyfit(gaps, gains, 1)[0]
    lines.append(
        f"\nGain against the gap by labels: slope {slope:.2f}, r {pearson(gaps, gains):.2f}."
    )
    return "\n".join(lines)


def _with_interval(value: float, interval: Sequence[float], form: str) -> str:
    low, high = interval
    return f"{value:+{form}} ({low:+{form}} to {high:+{form}})"


def estimate() -> str:
    """Hours of both recipes on one core, by what was measured of trainings and measurements."""
    best = dict.fromkeys(METHODS, RATES[1])
    each = ANSWERS * LENGTH / ROLLOUTS + LEARNING
    first = len(rates()) * each + (len(rates()) + 1) * 60 * 4 * LENGTH / SPEED
    count = len(all_trained(best))
    answers = sum(one.answers for one in measurements(best))
    asked = len(teachers(best)) * 64 * 16  # both sides, eight times each
    second = count * each + (answers + asked) * LENGTH / SPEED
    return (
        f"recipes/distill-study.yaml: {len(rates())} trainings, {first / 3600:.1f} h\n"
        f"recipes/distill-study-seeds.yaml: {count} trainings and {answers:,} answers to measure "
        f"them, {second / 3600:.1f} h"
    )


def write_labels() -> list[Path]:
    """The right answers of the pools that have none, which the task knows."""
    from surgeon.builtin import path, task

    written = []
    for file, name in LABELS.items():
        rows = [json.loads(line) for line in path(name).read_text().splitlines()[:400]]
        for row in rows:
            row["answer"] = str(task.Problem.parse(row["prompt"]).answer())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        written.append(file)
    return written


def main(what: str) -> None:
    """What is asked for."""
    if what == "labels":
        print(*write_labels(), sep="\n")
    elif what == "rates":
        (ROOT / "recipes" / "distill-study.yaml").write_text(rates_recipe())
    elif what == "seeds":
        (ROOT / "recipes" / "distill-study-seeds.yaml").write_text(seeds_recipe(best_rates()))
    elif what in (told := {"table": table, "results": results, "law": law, "estimate": estimate}):
        print(told[what]())
    else:
        raise SystemExit(
            f"found {what}, expected {', '.join(('labels', 'rates', 'seeds', *told))}."
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "table")
