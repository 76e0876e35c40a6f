"""Whether E means exploring: the phases against the built-in task's exact knowledge of its steps.

    python -m benchmarks.phases [CHECKPOINT...] [--prompts N]

The task says of every token of a trace whether its step explores (leaps, checks, other readings,
restarts) or executes (surgeon/builtin/task.py), which no annotator can. Answers to the first
prompts of the built-in test set are sampled with three seeds and recorded at one token a row;
larger rows are sums of those. A row's truth is what most of its tokens do; rows without a majority
are left out, and so are tokens outside steps. Intervals (95 %) resample prompts, all seeds of a
prompt together. Nothing was tuned on these answers.

Printed for every checkpoint and row size: the share of rows that explore and that are called E;
accuracy, and that of calling every row by the more frequent truth; of the rows called E and X the
share that is (the paper's 98.2 and 81.0 % where its counts are the HMM's), of the exploring and
executing rows the share that is called so (where they are the annotators'); Cohen's kappa; kappa of
a threshold on entropy, and of one on the slope, that call as many rows of a response E; the share
of errors that call E what executes; and the accuracy over blocks, as the paper counts. Then every
seed's accuracy and kappa alone, and how much of each kind of step, and of each fifth of the
responses, is called E.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from surgeon import activations, metrics, nex
from surgeon.activations import Activations
from surgeon.builtin import task
from surgeon.families import open_checkpoint
from surgeon.read.agreeing import measures
from surgeon.settings.sampling import Sampling
from surgeon.traces import Trace, read_prompts, sample, token_texts

# Shape letters: T tokens, R rows, E entries, N neurons.

SIZES, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)
DEFAULT = ["builtin:instruct", "builtin:thinking", "builtin:second-thinking"]
TOP_K_SHARE = 2000 / 350208
"""Of the units, as in the paper."""
RESAMPLES = 1000


class Counts(NamedTuple):
    """Rows (or blocks) by truth and call."""

    explore_called_e: int = 0
    explore_called_x: int = 0
    execute_called_e: int = 0
    execute_called_x: int = 0


def counts(truth_R: np.ndarray, called_R: np.ndarray) -> Counts:
    """Counts of rows; truth is 1, 0 or -1 where it has none."""
    return Counts(*(
        int(np.sum((truth_R == truth) & (called_R == called)))
        for truth, called in ((1, True), (1, False), (0, True), (0, False))
    ))  # fmt: skip


def coarser(acts: Activations, size: int) -> Activations:
    """The rows of `size` tokens that rows of one token make."""
    n_rows = -(-len(acts.tokens_R) // size)
    row_E = np.repeat(np.arange(len(acts.tokens_R)) // size, np.diff(acts.start_R1))
    span = int(acts.neuron_E.max()) + 1 if len(acts.neuron_E) else 1
    key, place_E = np.unique(row_E * span + acts.neuron_E, return_inverse=True)
    mass = np.bincount(place_E, weights=acts.mass_E).astype(np.float32)
    start_R1 = np.searchsorted(key // span, np.arange(n_rows + 1)).astype(np.int64)
    tokens_R = np.add.reduceat(acts.tokens_R, np.arange(0, len(acts.tokens_R), size))
    return Activations(key % span, mass, start_R1, tokens_R.astype(np.int32))


def majority(explore_T: np.ndarray, size: int) -> np.ndarray:
    """What most tokens of each row do: 1 explore, 0 execute, -1 neither."""
    starts = np.arange(0, len(explore_T), size)
    explore_R = np.add.reduceat((explore_T == 1).astype(int), starts)
    execute_R = np.add.reduceat((explore_T == 0).astype(int), starts)
    return np.where(explore_R > execute_R, 1, np.where(execute_R > explore_R, 0, -1))


def topmost(values_R: np.ndarray, n: int) -> np.ndarray:
    """bool_R: the n rows with the largest values, the earlier ones among equals."""
    called_R = np.zeros(len(values_R), bool)
    called_R[np.argsort(-values_R, kind="stable")[:n]] = True
    return called_R


def blocks(explore_T: np.ndarray, called_R: np.ndarray, size: int) -> Counts:
    """Blocks: runs of rows called alike, each with the truth of most of its tokens."""
    edges = [0, *(np.flatnonzero(np.diff(called_R)) + 1).tolist(), len(called_R)]
    truths, called = [], []
    for a, b in pairwise(edges):
        piece_T = explore_T[a * size : b * size]
        truths.append(np.sign(np.sum(piece_T == 1) - np.sum(piece_T == 0)))
        called.append(called_R[a])
    return counts(np.array([{1: 1, 0: -1, -1: 0}[int(t)] for t in truths]), np.array(called))


def truth_of(prompt: str, pieces: Sequence[str]) -> np.ndarray:
    """int_T: 1 where a token's step explores, 0 where it executes, -1 outside steps."""
    found = task.phases(task.Problem.parse(prompt), pieces)
    return np.array([{"explore": 1, "execute": 0, None: -1}[phase] for phase in found])


def kinds_of(prompt: str, pieces: Sequence[str]) -> list[str]:
    """The kind of the step that each token's first character is in; empty outside steps."""
    labels = task.steps(task.Problem.parse(prompt), "".join(pieces))
    found, at = [], 0
    for piece in pieces:
        inside = [label.kind for label in labels if label.start <= at < label.end]
        found.append(inside[0] if inside else "")
        at += len(piece)
    return found


class Read(NamedTuple):
    """One response at one row size."""

    prompt_id: str
    seed: int
    """Of its sampling."""
    by: dict[str, Counts]
    called: dict[str, tuple[int, int]]
    """What its tokens are part of -> how many, and how many of them in rows called E."""


PARTS = 5
"""Parts of a response, of equal length."""


def called(
    kinds: Sequence[str], explore_T: np.ndarray, in_e_T: np.ndarray
) -> dict[str, tuple[int, int]]:
    """Tokens, and those in rows called E, by kind of step, by part of the response, and those that
    explore by part."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str, of_T: np.ndarray) -> None:
        found[name] = int(of_T.sum()), int((of_T & in_e_T).sum())

    for kind in dict.fromkeys(filter(None, kinds)):
        note(kind, np.array([k == kind for k in kinds]))
    part_T = np.arange(len(kinds)) * PARTS // max(1, len(kinds))
    for n in range(PARTS):
        note(f"part {n + 1}", part_T == n)
        note(f"part {n + 1}, exploring", (part_T == n) & (explore_T == 1))
    return found


def responses(spec: str, n: int, max_tokens: int) -> Iterator[tuple[int, Read]]:
    """(row size, counts) of every response."""
    checkpoint = open_checkpoint(spec)
    model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
    prompts = read_prompts("builtin:test")[:n]
    text = {p.id: str(p.messages[0]["content"]) for p in prompts}
    how = Sampling(samples=1, max_tokens=max_tokens)
    traces: list[Trace] = []
    seeds: list[int] = []
    for seed in SEEDS:
        found = list(sample(model, tokenizer, prompts, replace(how, seed=seed)))
        cut = sum(t.finish_reason == "length" for t in found)
        print(f"  seed {seed}: {sum(len(t.token_ids) for t in found):,} tokens, {cut} cut",
              flush=True)  # fmt: skip
        traces += found
        seeds += [seed] * len(found)
    top_k = max(1, round(TOP_K_SHARE * checkpoint.passed_units))
    recordings = activations.record(model, traces, row_tokens=1, top_k=top_k)
    for trace, seed, recording in zip(traces, seeds, recordings, strict=True):
        pieces = token_texts(tokenizer, trace.token_ids)
        explore_T = truth_of(text[trace.prompt_id], pieces)
        kinds = kinds_of(text[trace.prompt_id], pieces)
        for size in SIZES:
            acts = coarser(recording.activations, size)
            slope_R = nex.novelty(acts, nex.first_seen(acts))
            called_R = nex.phases(slope_R)
            entropy_R = nex.row_entropy(recording.entropy_T, acts.tokens_R)
            truth_R, n_called = majority(explore_T, size), int(called_R.sum())
            yield size, Read(trace.prompt_id, seed, {
                "rows": counts(truth_R, called_R),
                "entropy": counts(truth_R, topmost(entropy_R, n_called)),
                "slope": counts(truth_R, topmost(slope_R, n_called)),
                "blocks": blocks(explore_T, called_R, size),
            }, called(kinds, explore_T, np.repeat(called_R, size)[:len(kinds)]))  # fmt: skip


COLUMNS = (
    "row", "rows", "explore", "called E", "accuracy", "of the more frequent", "E is", "X is",
    "E met", "X met", "kappa", "by entropy", "by slope", "errors on E", "blocks", "their accuracy",
    "E is", "X is",
)  # fmt: skip


def by_prompt(reads: Sequence[Read], name: str) -> np.ndarray:
    """float64_P4: the counts of each prompt's responses together."""
    places = {p: i for i, p in enumerate(dict.fromkeys(r.prompt_id for r in reads))}
    sums_P4 = np.zeros((len(places), 4))
    for r in reads:
        sums_P4[places[r.prompt_id]] += r.by[name]
    return sums_P4


def ends(sums_P4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % intervals of the measures, prompts resampled."""
    count_BP = metrics.resample_counts(len(sums_P4), n=RESAMPLES)
    low, high = np.nanquantile(measures(count_BP @ sums_P4), (0.025, 0.975), axis=0)
    return low, high


def table(found: dict[int, list[Read]]) -> None:
    """Print the measures of every row size, as a table of the docs."""
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size, reads in found.items():
        sums = {name: by_prompt(reads, name) for name in reads[0].by}
        low, high = ends(sums["rows"])
        rows, m = sums["rows"].sum(0), measures(sums["rows"].sum(0))
        b, n = measures(sums["blocks"].sum(0)), rows.sum()
        others = [measures(sums[name].sum(0))[6] for name in ("entropy", "slope")]
        shares = [(rows[0] + rows[1]) / n, (rows[0] + rows[2]) / n]
        cells = [
            f"{size}", f"{n:,.0f}", *(f"{x:.1%}" for x in shares),
            f"{m[0]:.1%} ({low[0]:.1%} to {high[0]:.1%})", *(f"{x:.1%}" for x in m[1:6]),
            f"{m[6]:+.2f} ({low[6]:+.2f} to {high[6]:+.2f})", *(f"{x:+.2f}" for x in others),
            f"{m[7]:.0%}", f"{sums['blocks'].sum():,.0f}", f"{b[0]:.1%}", f"{b[2]:.1%}",
            f"{b[3]:.1%}",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def by_seed(found: dict[int, list[Read]]) -> None:
    """Print accuracy and kappa of every sampling seed alone."""
    columns = ("row", "seed", "responses", "rows", "accuracy", "kappa", "by entropy")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for size, reads in found.items():
        for seed in SEEDS:
            own = [r for r in reads if r.seed == seed]
            sums = by_prompt(own, "rows")
            low, high = ends(sums)
            m, entropy = measures(sums.sum(0)), measures(by_prompt(own, "entropy").sum(0))
            cells = [
                f"{size}", f"{seed}", f"{len(own)}", f"{sums.sum():,.0f}",
                f"{m[0]:.1%} ({low[0]:.1%} to {high[0]:.1%})",
                f"{m[6]:+.2f} ({low[6]:+.2f} to {high[6]:+.2f})", f"{entropy[6]:+.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)


def by_kind(found: dict[int, list[Read]]) -> None:
    """Print how much of each kind of step, and of each part of the responses, is called E."""
    for size, reads in found.items():
        total: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for r in reads:
            for name, (n, in_e) in r.called.items():
                total[name][0] += n
                total[name][1] += in_e
        parts = {name: n for name, n in total.items() if name.startswith("part")}
        kinds = {name: n for name, n in total.items() if name not in parts}
        shown = [f"{name} {e / n:.0%} of {n:,}" for name, (n, e) in kinds.items() if n]
        print(f"rows of {size}, in E: {'; '.join(shown)}")
        for without in ("", "check"):
            sums = {phase: [0, 0] for phase in ("explore", "execute")}
            for kind, n in kinds.items():
                if kind != without and kind in task.PHASE:
                    of = sums[task.PHASE[kind]]
                    of[0], of[1] = of[0] + n[0], of[1] + n[1]
            shares = [f"{n / of:.1%} of {of:,} that {p}" for p, (of, n) in sums.items() if of]
            print(f"  tokens in E{', checks left out' if without else ''}: {'; '.join(shares)}")
        shown = [
            f"{parts[f'part {i}'][1] / parts[f'part {i}'][0]:.0%} in E, "
            f"{parts[f'part {i}, exploring'][0] / parts[f'part {i}'][0]:.0%} explore"
            for i in range(1, PARTS + 1)
        ]
        print(f"  fifths of the responses: {'; '.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="*", default=DEFAULT)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--max-tokens", type=int, default=640)
    given = parser.parse_args()
    for spec in given.checkpoints:
        print(f"{spec}, {given.prompts} prompts, seeds {SEEDS}", flush=True)
        found: dict[int, list[Read]] = defaultdict(list)
        for size, read in responses(spec, given.prompts, given.max_tokens):
            found[size].append(read)
        table(found)
        by_seed(found)
        by_kind(found)


if __name__ == "__main__":
    main()
