"""Which selection of FFN units is worth more than as many, or as heavy, active units at random.

    python -m benchmarks.transplant_study screen     every selection, on the first family
    python -m benchmarks.transplant_study attention  some with the attention of their layers
    python -m benchmarks.transplant_study controls   the best of `screen` against their own controls
    python -m benchmarks.transplant_study family     trains the second family's pair, 5 minutes
    python -m benchmarks.transplant_study confirm    the better one, once, on the second family
    python -m benchmarks.transplant_study table      what there is of these

A killed run continues where it was. No selection sees a label. Pairs differ in their FFN weights
only, but in `attention`, which takes the pair that differs in all. All but `confirm` ask problems
of the built-in pool, which no table of results reads; `confirm` asks the test set.

What is chosen is the accuracy over the mean of five seeds of random units: in `screen` as many
active units, the same for all selections of one size, an equal number in each layer; in `controls`
and `confirm` as many active ones in each layer, and active ones of as much activation mass in each
layer, whichever of the two is more accurate. Intervals are paired by problem, and resample problems
and seeds.

`confirm` takes other models too: --recipient, --donor, --mini-set, --task, --max-tokens, --name.
"""

# Shape letters: P problems, C checkpoints, S seeds, B resamples.

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEEDS, SIZES = 5, (0.2,)
"""Seeds of every control; sizes are shares of all units, of which about half are active here."""
SELECTIONS = (
    "effective", "mass", "difference", "mass-difference", "attribution", "attribution-path",
)  # fmt: skip
LEADING = ("mass", "attribution-path")
"""Selections that are tried with an equal number of units in each layer, and in other ways, too."""
WAYS: dict[str, dict[str, Any]] = {"blend": {"alpha": 0.7}}
"""Other ways to move the larger number of units, of selections and of the control."""
STEPS = ("screen", "attention", "controls", "family", "confirm", "table")
CONTROLS = {"count": "random-active", "mass": "random-mass"}
FINALISTS, RESAMPLES = 1, 4000


class Move(NamedTuple):
    """One transplant of the study."""

    name: str
    settings: Mapping[str, Any]

    def seeds(self, control: str) -> list["Move"]:
        """Random units in the place of its own, by seed."""
        return [
            Move(
                f"{self.name}-{control}-{seed}",
                {**self.settings, "control": CONTROLS[control], "seed": seed},
            )
            for seed in range(SEEDS)
        ]


class Gap(NamedTuple):
    """How much more accurate than the mean of a control's seeds, in shares of 1."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


class Pair(NamedTuple):
    """A recipient and a donor, what they are asked, and where everything about them lies."""

    place: Path
    recipient: str
    donor: str
    mini_set: str
    task: str
    max_tokens: int
    rank: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and units of each."""
        from surgeon.families import open_checkpoint

        checkpoint = open_checkpoint(self.recipient)
        return checkpoint.n_layers, checkpoint.d_ff

    def evaluate(self, moves: Sequence[Move], out: str) -> None:
        """Rank both, make the transplants, and ask all the problems; what is there stays."""
        from surgeon.evaluate import evaluate
        from surgeon.families import open_checkpoint
        from surgeon.rank import rank
        from surgeon.transplant import transplant

        ranking = rank(
            (self.recipient, self.donor), mini_set=self.mini_set, out=self.place / "ranking",
            max_tokens=self.max_tokens, **self.rank,
        )  # fmt: skip
        digest = open_checkpoint(self.donor).digest
        donor = next(c.name for c in ranking.candidates if c.digest == digest)
        made = []
        for move in moves:
            made.append(str(self.place / "moved" / move.name))
            transplant(
                self.recipient, donor=self.donor, weights=f"{self.place / 'ranking'}#{donor}",
                out=made[-1], **move.settings,
            )  # fmt: skip
        evaluate(
            (self.recipient, self.donor, *made), task=self.task, out=self.place / out, samples=1,
            max_tokens=self.max_tokens, seed=1,
        )  # fmt: skip


def screened(n_layers: int, d_ff: int) -> tuple[list[Move], dict[str, str]]:
    """Every selection, and the name of the control of each."""
    moves = [Move("all-effective", {})]
    against: dict[str, str] = {}

    def add(size: str, units: int, way: str = "") -> None:
        end = f"-{size}-{way}" if way else f"-{size}"
        how = WAYS.get(way, {})
        each = {"top_units": round(units / n_layers), "budget": "layer"}
        found = [
            Move(f"{name}{end}", {"select": name, "top_units": units, **how})
            for name in (LEADING if way else SELECTIONS)
        ]
        if not way:
            found += [Move(f"{name}{end}-layers", {"select": name, **each}) for name in LEADING]
        against.update({move.name: f"random{end}" for move in found})
        moves.extend(found + Move(f"random{end}", {**each, **how}).seeds("count"))

    for share in SIZES:
        add(f"{100 * share:.0f}", round(share * n_layers * d_ff))
    for way in WAYS:
        add(f"{100 * SIZES[-1]:.0f}", round(SIZES[-1] * n_layers * d_ff), way)
    return moves, against


def attending(n_layers: int, d_ff: int) -> tuple[list[Move], dict[str, str]]:
    """Selections and controls with the attention of their layers and without, and the name of the
    control of each."""
    moves: list[Move] = []
    against: dict[str, str] = {}
    units = round(SIZES[-1] * n_layers * d_ff)
    for end, how in (("", {}), ("-attention", {"with_attention": True})):
        moves.append(Move(f"all-effective{end}", how))
        found = [
            Move(f"{name}{end}", {"select": name, "top_units": units, **how}) for name in LEADING
        ]
        each = {"top_units": round(units / n_layers), "budget": "layer"}
        against.update({move.name: f"random{end}" for move in found})
        moves.extend(found + Move(f"random{end}", {**each, **how}).seeds("count"))
    return moves, against


# Results -----------------------------------------------------------------------------------------


def answers(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What was read out of every checkpoint's responses, in the problems' order."""
    found = {}
    for file in sorted((out / "answers").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        found[file.stem] = sorted(rows, key=lambda row: row["prompt_id"])
    return found


def right(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float64_P: whether each answer is right."""
    return np.array([row["correct"] for row in rows], dtype=float)


def gap(right_P: np.ndarray, control_SP: np.ndarray) -> Gap:
    """A selection less the mean of its control's seeds, with a 95 % interval over both."""
    rng = np.random.default_rng(0)
    n_seeds, n = control_SP.shape
    drawn = []
    for _ in range(RESAMPLES):
        problem_P, seed_S = rng.integers(n, size=n), rng.integers(n_seeds, size=n_seeds)
        drawn.append(right_P[problem_P].mean() - control_SP[seed_S][:, problem_P].mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Gap(float(right_P.mean() - control_SP.mean()), float(low), float(high))


def seeds_of(found: Mapping[str, Sequence[Mapping[str, Any]]], control: str) -> np.ndarray:
    """float64_SP: the right answers of a control's seeds."""
    return np.stack([right(found[f"{control}-{seed}"]) for seed in range(SEEDS)])


def estimated(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The accuracy that the others' vote gives every checkpoint, without a label."""
    from surgeon.estimate import estimate, numbered

    names = list(found)
    votes = [[[found[name][p]["answer"]] for name in names] for p in range(len(found[names[0]]))]
    return dict(zip(names, estimate(numbered(votes)).accuracy_C.tolist(), strict=True))


def shared_gaps(pair: Pair, out: str, against: Mapping[str, str]) -> dict[str, Gap]:
    """Every selection against random active units of that number, moved in that way."""
    found = answers(pair.place / out)
    return {
        name: gap(right(found[name]), seeds_of(found, f"{control}-count"))
        for name, control in against.items()
    }


def finalists(pair: Pair) -> list[Move]:
    """The selections with the largest gaps."""
    gaps = shared_gaps(pair, "screen", screened(*pair.shape)[1])
    best = sorted(gaps, key=lambda name: -gaps[name].mean)[:FINALISTS]
    return [move for name in best for move in screened(*pair.shape)[0] if move.name == name]


def own_gaps(out: Path, name: str) -> dict[str, Gap]:
    """A selection against as many, and as heavy, active units."""
    found = answers(out)
    return {c: gap(right(found[name]), seeds_of(found, f"{name}-{c}")) for c in CONTROLS}


def winner(pair: Pair) -> Move:
    """The finalist whose smaller gap is the larger."""
    out = pair.place / "controls"
    return max(
        finalists(pair), key=lambda move: min(g.mean for g in own_gaps(out, move.name).values())
    )


def with_controls(moves: Sequence[Move]) -> list[Move]:
    """The moves, each with its controls."""
    return [one for m in moves for one in (m, *(s for c in CONTROLS for s in m.seeds(c)))]


def tokens_of(out: Path) -> dict[str, float]:
    """Mean tokens of an answer."""
    from surgeon import artifact
    from surgeon.truth import Evaluation

    return {c.name: c.tokens for c in artifact.read(Evaluation, out).candidates}


def report_of(pair: Pair, name: str) -> Any:
    from surgeon import artifact
    from surgeon.transplant import TransplantReport

    return artifact.read(TransplantReport, pair.place / "moved" / name)


def table_of(pair: Pair, out: str, against: Mapping[str, str]) -> str:
    """A row per selection and control, of `screen` or `attention`."""
    found, gaps = answers(pair.place / out), shared_gaps(pair, out, against)
    tokens = tokens_of(pair.place / out)
    votes = estimated(found)
    lines = [
        "| moved | units | mass kept | tokens | accuracy | over random-active, pp | estimate |",
        "|---|---|---|---|---|---|---|",
    ]
    controls = dict.fromkeys(f"{c}-count" for c in against.values())
    names = [name for name in found if name.rpartition("-")[0] not in controls]
    for name in sorted(names, key=lambda n: -float(right(found[n]).mean())):
        cells = [name, *_moved(pair, name), f"{tokens[name]:.0f}"]
        cells += [f"{right(found[name]).mean():.3f}", str(gaps.get(name, "")), f"{votes[name]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for control in controls:
        each = [float(row.mean()) for row in seeds_of(found, control)]
        vote = np.mean([votes[f"{control}-{seed}"] for seed in range(SEEDS)])
        cells = [control.removesuffix("-count") + ", five seeds", *_moved(pair, f"{control}-0")]
        cells += [f"{np.mean([tokens[f'{control}-{seed}'] for seed in range(SEEDS)]):.0f}"]
        cells += [f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})", "", f"{vote:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    truth = [float(right(found[name]).mean()) for name in votes]
    r = np.corrcoef(truth, list(votes.values()))[0, 1]
    best = max(gaps, key=lambda name: votes[name])
    lines.append(
        f"\nThe vote's estimate of {len(votes)} checkpoints: r {r:.2f}, mean error "
        f"{np.abs(np.subtract(truth, list(votes.values()))).mean():.3f}; of the selections it "
        f"takes {best} ({right(found[best]).mean():.3f})."
    )
    return "\n".join(lines)


def _moved(pair: Pair, name: str) -> list[str]:
    if not (pair.place / "moved" / name).is_dir():
        return ["", ""]
    report = report_of(pair, name)
    return [str(report.units), f"{report.mass_share:.1%}"]


def table_of_controls(pair: Pair, out: str, moves: Sequence[Move]) -> str:
    """Selections against controls of their own."""
    found = answers(pair.place / out)
    lines = [
        "| moved | units | mass kept | accuracy | over as many, pp | over as heavy, pp |",
        "|---|---|---|---|---|---|",
    ]
    for move in moves:
        gaps = own_gaps(pair.place / out, move.name)
        cells = [move.name, *_moved(pair, move.name), f"{right(found[move.name]).mean():.3f}"]
        lines.append(f"| {' | '.join([*cells, *map(str, gaps.values())])} |")
        for control, kind in CONTROLS.items():
            each = [float(row.mean()) for row in seeds_of(found, f"{move.name}-{control}")]
            cells = [f"{kind}, five seeds", *_moved(pair, f"{move.name}-{control}-0")]
            cells += [f"{np.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})", "", ""]
            lines.append(f"| {' | '.join(cells)} |")
    made = {m.name for m in with_controls(moves)}
    lines += [
        f"| {name} | | | {right(rows).mean():.3f} | | |"
        for name, rows in found.items()
        if name not in made
    ]
    return "\n".join(lines)


# Command line ------------------------------------------------------------------------------------


def write_pool(file: Path, first: int, problems: int) -> None:
    """Problems of the built-in pool from number `first` on, with their answers."""
    from surgeon import lineage
    from surgeon.builtin import path, task

    lines = path("pool").read_text(encoding="utf-8").splitlines()[first : first + problems]
    rows = [json.loads(line) for line in lines]
    told = [{**r, "answer": str(task.Problem.parse(r["prompt"]).answer())} for r in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    lineage.write_text(file, "".join(json.dumps(row) + "\n" for row in told))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--dir", type=Path, default=Path("runs/transplant-study"))
    parser.add_argument("--problems", type=int, default=60, help="of the pool")
    parser.add_argument("--samples", type=int, default=2, help="of each prompt of the mini-set")
    parser.add_argument("--recipient", help="by default the trained pair's")
    parser.add_argument("--donor")
    parser.add_argument("--mini-set", default="builtin:mini-set[:40]")
    parser.add_argument("--task", default="builtin:test[:150]")
    parser.add_argument("--max-tokens", type=int, default=640)
    parser.add_argument("--name", default="second", help="of the pair, for its directory")
    return parser.parse_args(arguments)


class Pairs(NamedTuple):
    """The pairs of the study."""

    first: Pair
    """On which selections are chosen."""
    whole: Pair
    """Of the same family, differing in attention and embeddings too."""
    second: Pair
    """On which the winner is confirmed."""


def pairs(options: argparse.Namespace) -> Pairs:
    """The pairs that were asked for; writes their problems."""
    builtin = {"samples": options.samples, "row_tokens": 1, "top_k": 9}
    pool = options.dir / f"pool-{options.problems}.jsonl"
    if not pool.is_file():
        write_pool(pool, 600, options.problems)
    first, whole = (
        Pair(
            options.dir / name, f"builtin:instruct{end}", f"builtin:thinking{end}",
            "builtin:mini-set[:40]", str(pool), 640, builtin,
        )
        for name, end in (("first", "-ffn"), ("whole", ""))
    )  # fmt: skip
    own = builtin if options.recipient is None else {"samples": options.samples}
    trained = options.dir / "family"
    second = Pair(
        options.dir / options.name,
        options.recipient or str(trained / "instruct-ffn"),
        options.donor or str(trained / "thinking-ffn"),
        options.mini_set, options.task, options.max_tokens, own,
    )  # fmt: skip
    return Pairs(first, whole, second)


def train_second(out: Path) -> None:
    """Train the second family's pair on its base model, as the first family's was, on a third of
    the tokens."""
    from dataclasses import replace

    import torch

    from benchmarks.family.train import STAGES, run_stages
    from surgeon.builtin import path

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    base = out / "base"
    if not base.exists():
        base.symlink_to(path("second-base"))
    stages = [replace(stage, tokens=stage.tokens // 3) for stage in STAGES if stage.ffn_only]
    run_stages(out, stages=tuple(stages), seed=1)


def chosen_for(second: Pair, first: Pair) -> Move:
    """The winner with the same shares of units of another model."""
    move = winner(first)
    here, there = (np.prod(pair.shape) for pair in (first, second))
    per_layer = move.settings.get("budget") == "layer"
    scale = second.shape[1] / first.shape[1] if per_layer else there / here
    return Move(
        move.name,
        {**move.settings, "top_units": round(move.settings["top_units"] * float(scale))},
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parsed(arguments)
    first, whole, second = pairs(options)
    if options.step == "screen":
        first.evaluate(screened(*first.shape)[0], "screen")
    elif options.step == "attention":
        whole.evaluate(attending(*whole.shape)[0], "attention")
    elif options.step == "controls":
        first.evaluate(with_controls(finalists(first)), "controls")
    elif options.step == "family":
        train_second(options.dir / "family")
    elif options.step == "confirm":
        second.evaluate(with_controls([chosen_for(second, first)]), "confirm")
    if (first.place / "screen").is_dir() and options.step in ("screen", "table"):
        print(table_of(first, "screen", screened(*first.shape)[1]))
    if (whole.place / "attention").is_dir() and options.step in ("attention", "table"):
        print(table_of(whole, "attention", attending(*whole.shape)[1]))
    if (first.place / "controls").is_dir() and options.step in ("controls", "table"):
        print(table_of_controls(first, "controls", finalists(first)))
        print(f"\nThe winner: {winner(first).name}.")
    if (second.place / "confirm").is_dir() and options.step in ("confirm", "table"):
        print(table_of_controls(second, "confirm", [winner(first)]))


if __name__ == "__main__":
    main()
