"""Choose the pool on which hardly any majority exists: `python -m benchmarks.family.scattered`.

Many problems are drawn from the set's own split (`sets.candidates`): long ones that hold several
ambiguous operations, so that answers differ in the reading and in slips. Each model answers each
of them; a problem stays where no digit has more than `MOST` of a model's answers. No score and no
accuracy is looked at. Chosen ones look more divided than they are, so what the pool is like is
measured afterwards, with other streams: `python -m benchmarks.family.pools`.

The answers of each model are kept beside the pool that is written: a killed run goes on.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.family import pools, sets
from surgeon import builtin
from surgeon.builtin import task

NAMES = ("base",)
"""The models that answer: the others have few majorities on what is drawn (`instruct` on 6 % of 100
problems, `second-instruct` on 3 %, `second-base` on 5 % of 40; `base` on 15 % of 80)."""
SAMPLES = 8
MOST = 3
"""Of the samples, answers that may be the same."""
CHUNK = 20
"""Problems between two writes."""
SEED = 1000
"""Of the streams of the first chunk; `pools` uses 0."""


def chosen(
    problems: Sequence[task.Problem], said: Sequence[Mapping[str, Sequence[str | None]]], size: int
) -> list[task.Problem]:
    """The first problems, as many as `size`, on which no model has a digit more than `MOST` times;
    `said` maps, for each model, a prompt to the answers."""
    kept = [
        problem for problem in problems if all(_most(each[problem.prompt]) <= MOST for each in said)
    ]
    return kept[:size]


def _most(answers: Sequence[str | None]) -> int:
    return max(Counter(one for one in answers if one is not None).values(), default=0)


def answered(
    name: str, problems: Sequence[task.Problem], file: Path
) -> dict[str, list[str | None]]:
    """The answers of a model to each prompt; those that `file` holds aren't made again."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    known: dict[str, list[str | None]] = {row["prompt"]: row["said"] for row in rows}
    tok = AutoTokenizer.from_pretrained(builtin.path(name))
    model = AutoModelForCausalLM.from_pretrained(builtin.path(name), dtype=torch.float32).eval()
    for at in range(0, len(problems), CHUNK):
        chunk = problems[at : at + CHUNK]
        if all(problem.prompt in known for problem in chunk):
            continue
        found = pools.answers(model, tok, chunk, SAMPLES, seed=SEED + at)
        new = {p.prompt: each for p, each in zip(chunk, found, strict=True)}
        known |= new
        with file.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({"prompt": p, "said": s}) + "\n" for p, s in new.items())
        print(f"{name}: {at + len(chunk)}/{len(problems)}", flush=True)
    return known


def main() -> None:
    """The command line."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.scattered")
    parser.add_argument("--out", type=Path, default=Path("runs/scattered"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    prompts = next(s for s in sets.SETS if s.chosen_of)
    drawn = sets.candidates(prompts)
    said = [answered(name, drawn, args.out / f"{name}.jsonl") for name in NAMES]
    kept = chosen(drawn, said, prompts.size)
    (args.out / f"{prompts.name}.jsonl").write_text(sets.jsonl(prompts, kept), encoding="utf-8")
    print(f"{len(kept)} of {len(drawn)} problems: {args.out / prompts.name}.jsonl")


if __name__ == "__main__":
    main()
