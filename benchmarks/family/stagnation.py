"""Does stagnation stay when Thinking is fine-tuned on good traces of its own?

    python -m benchmarks.family.stagnation --out DIR [--checkpoint builtin:thinking] [--limit 300]

Thinking answers questions of `builtin:pool`, which the task can judge. It is trained for one epoch
on its right, finished answers. Both models are read on the same 60 test problems as the cards.
"""

import argparse
from pathlib import Path

from benchmarks.family.card import FEATURED, MAX_TOKENS
from benchmarks.family.features import features
from surgeon import jsonl
from surgeon.builtin import task
from surgeon.checkpoint import resolve
from surgeon.rank import rank
from surgeon.sft import sft
from surgeon.traces import read_prompts, read_traces


def good_traces(checkpoint: str, limit: int, out: Path) -> Path:
    """The right, finished answers of a checkpoint to questions of the pool, as a file of traces."""
    ranking = rank(
        [checkpoint], mini_set=f"builtin:pool[:{limit}]", out=out / "answers", samples=1,
        max_tokens=MAX_TOKENS, row_tokens=4, top_k=9,
    )  # fmt: skip
    problems = {
        prompt.id: task.Problem.parse(prompt.messages[0]["content"])
        for prompt in read_prompts("builtin:pool")
    }
    name = ranking.candidates[0].name
    traces = read_traces(ranking.out / "candidates" / name / "traces.jsonl")
    good = [
        t for t in traces
        if t.finish_reason == "stop" and task.correct(problems[t.prompt_id], t.text)
    ]  # fmt: skip
    jsonl.write(out / "good.jsonl", [vars(trace) for trace in good])
    print(f"{len(good)} of {len(traces)} answers are right and finished")
    return out / "good.jsonl"


def row(name: str, spec: str) -> str:
    """What one checkpoint's traces look like."""
    checkpoint = resolve(spec)
    problems = [
        task.Problem.parse(prompt.messages[0]["content"])
        for prompt in read_prompts("builtin:test")[:FEATURED]
    ]
    found = features(checkpoint.model(), checkpoint.tokenizer(), problems, max_tokens=MAX_TOKENS)
    return (
        f"| {name} | {found.median_tokens:.0f} | {found.stagnating:.2f} | {found.spoiled:.2f} | "
        f"{found.cycling[4]:.2f} |"
    )


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", default="builtin:thinking")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    traces = good_traces(given.checkpoint, given.limit, given.out)
    sft(given.checkpoint, traces=[str(traces)], out=given.out / "tuned", lr=1e-3, seed=0)
    print("| | median tokens | steps that check again | right once, then spoiled or cut | "
          "three cycles at 4 tokens a row |")  # fmt: skip
    print("|---|---|---|---|---|")
    print(row(given.checkpoint, given.checkpoint))
    print(row("after its good traces", str(given.out / "tuned")))


if __name__ == "__main__":
    main()
