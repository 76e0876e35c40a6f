"""One sampling seed for all candidates, or one for each: what the votes estimate from either.

    python -m benchmarks.seeds OUT TRUTH FAMILY|CHECKPOINT...

The candidates answer builtin:mini-set twice, with one seed (OUT/common) and as `rank`
lets them (OUT/own); TRUTH holds their accuracies. Answers that are there already are not drawn
again. Rows: the seeds, samples of a prompt, and prompts. Columns: mean absolute error of the
estimated accuracies, regret of the highest estimate in percentage points, r with the accuracies,
and how many independent candidates they count as. With all prompts and one sample it is the mean of
both samples; of 50 prompts it is the mean of 40 draws. The last lines say what an evaluation gains
from one seed: the standard error of the difference in accuracy between neighbours, one sample.
"""

# Shape letters: P prompts, C candidates, S samples of a prompt.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from surgeon import estimate, metrics
from surgeon.answers import parse_extractor, read_answers
from surgeon.builtin import task
from surgeon.families import Subject, subjects
from surgeon.live.families import live, tokenizer_of
from surgeon.settings.sampling import Sampling
from surgeon.traces import Prompt, keys_of, read_prompts, sampled, stored_traces
from surgeon.truth import read_accuracies

SAMPLING = Sampling(samples=2, max_tokens=640)
PART, DRAWS = 50, 40
"""Prompts of a part of the mini-set, and parts drawn."""


def draw(family: Sequence[Subject], prompts: Sequence[Prompt], directory: Path, own: bool) -> None:
    """Write the answers of every candidate that lacks some."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = len(prompts) * SAMPLING.samples
    lacking = [s for s in family if len(stored_traces(directory / f"{s.name}.jsonl")) < wanted]
    for subject, model, tokenizer in live(lacking, "cpu", None):
        how = SAMPLING.own(subject.name) if own else SAMPLING
        file = directory / f"{subject.name}.jsonl"
        sampled(file, model, tokenizer, prompts, how, what=f"{directory.name} {subject.name}")


def votes(family: Sequence[Subject], prompts: Sequence[Prompt], directory: Path) -> np.ndarray:
    """int64_PCS: the answers, numbered."""
    tokenizer, extract = tokenizer_of(family[0]), parse_extractor("auto", ())
    answer = {}
    for subject in family:
        traces = stored_traces(directory / f"{subject.name}.jsonl")
        found = read_answers(traces, extract, tokenizer, ())
        answer |= {(subject.name, *t.key): a for t, a in zip(traces, found, strict=True)}
    samples = range(SAMPLING.samples)
    return estimate.numbered(
        [[[answer[s.name, p.id, n] for n in samples] for s in family] for p in prompts]
    )


def judged(answer_PCS: np.ndarray, accuracy_C: np.ndarray) -> list[float]:
    """Error, regret, r and voices."""
    value_C = estimate.estimate(answer_PCS).accuracy_C
    return [
        float(np.abs(value_C - accuracy_C).mean()),
        metrics.regret_at_1(value_C, accuracy_C),
        metrics.pearson(value_C, accuracy_C),
        estimate.signs(answer_PCS).voices * len(accuracy_C),
    ]


def neighbours_error(
    family: Sequence[Subject], prompts: Sequence[Prompt], directory: Path
) -> float:
    """Standard error of the difference in accuracy between candidates and the next ones, paired by
    prompt, mean over them and over the samples."""
    question = {p.id: task.Problem.parse(str(p.messages[-1]["content"])) for p in prompts}
    right_CPS = np.array(
        [
            [
                [
                    task.correct(question[key[0]], found[key])
                    for key in keys_of([p], SAMPLING.samples)
                ]
                for p in prompts
            ]
            for subject in family
            for found in [
                {t.key: t.text for t in stored_traces(directory / f"{subject.name}.jsonl")}
            ]
        ],
        float,
    )
    error_CS = np.diff(right_CPS, axis=0).std(1, ddof=1) / np.sqrt(len(prompts))
    return float(error_CS.mean())


def main() -> None:
    family, prompts = subjects(sys.argv[3:]), read_prompts("builtin:mini-set")
    accuracy = read_accuracies(sys.argv[2], "")
    accuracy_C = np.array([accuracy[subject.name] for subject in family])
    print(
        "| seeds | samples | prompts | error | regret (pp) | r | voices |\n"
        "|---|---|---|---|---|---|---|"
    )
    for kind in ("common", "own"):
        directory = Path(sys.argv[1]) / kind
        draw(family, prompts, directory, kind == "own")
        answer_PCS = votes(family, prompts, directory)
        rng = np.random.default_rng(0)
        for samples in ([[0], [1]], [[0, 1]]):
            parts = [rng.choice(len(prompts), PART, replace=False) for _ in range(DRAWS)]
            whole = [judged(answer_PCS[..., s], accuracy_C) for s in samples]
            part = [
                judged(answer_PCS[part_P][..., samples[n % len(samples)]], accuracy_C)
                for n, part_P in enumerate(parts)
            ]
            for size, rows in ((len(prompts), whole), (PART, part)):
                error, regret, r, voices = np.mean(rows, axis=0)
                print(
                    f"| {kind} | {len(samples[0])} | {size} | {error:.3f} | {regret:.1f} | {r:.2f} "
                    f"| {voices:.1f} of {len(family)} |",
                    flush=True,
                )
    for kind in ("common", "own"):
        error = neighbours_error(family, prompts, Path(sys.argv[1]) / kind)
        print(f"{kind}: neighbours' accuracies differ with a standard error of {error:.4f}")


if __name__ == "__main__":
    main()
