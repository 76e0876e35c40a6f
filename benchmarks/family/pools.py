"""What a majority is worth on the prompt sets: `python -m benchmarks.family.pools [CHECKPOINT...]`.

Eight answers of each checkpoint to each of the first problems of a set. A majority is more than
half of all answers, those that were cut or state no digit counted too.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.family import card, features, sets
from surgeon import builtin
from surgeon.builtin import task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

SETS = ("test-ambiguous", "pool-divided", "test-reversed", "pool-scattered")
"""Labelled sets: as `pool`, where the majority should be right; half of it reversed; as
`pool-reversed`; chosen ones (`scattered`), where there should hardly be one."""


class Votes(NamedTuple):
    """Shares in [0, 1]."""

    accuracy: float
    """Of one answer."""
    held: float
    """Of the problems on which there is a majority."""
    right: float
    """Of those on which it is right; 0 where there is none."""
    plural: float
    """Of all problems on which the most frequent answer is right, ties at their expected value."""


def votes(problems: Sequence[task.Problem], answers: Sequence[Sequence[str | None]]) -> Votes:
    """What the answers to each problem, one row each, agree on."""
    single = held = right = plural = 0.0
    for problem, said in zip(problems, answers, strict=True):
        gold = str(problem.answer())
        single += sum(one == gold for one in said) / len(said)
        counts = Counter(one for one in said if one is not None)
        most = max(counts.values(), default=0)
        best = [one for one, n in counts.items() if n == most]
        plural += (gold in best) / max(1, len(best))
        if most > len(said) / 2:
            held += 1
            right += best == [gold]
    n = len(problems)
    return Votes(single / n, held / n, right / max(1, held), plural / n)


def answers(
    model: "nn.Module",
    tok: "PreTrainedTokenizerBase",
    problems: Sequence[task.Problem],
    samples: int,
    seed: int = 0,
) -> list[list[str | None]]:
    """The digits that a model answers, a row for each problem."""
    heads = [features.prompt_ids(tok, problem) for problem in problems for _ in range(samples)]
    found = features.decoded(model, tok, heads, card.MAX_TOKENS, seed)
    digits = [task.answer(str(tok.decode(answer.token_ids))) for answer in found]
    return [digits[i : i + samples] for i in range(0, len(digits), samples)]


def main() -> None:
    """The command line."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.pools")
    parser.add_argument("names", nargs="*", default=["base", "instruct", "thinking"])
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument(
        "--set", dest="sets", action="append", choices=SETS, help="may be repeated; else all"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| checkpoint | set | accuracy | with a majority | of those right | Maj |")
    print("|---|---|---|---|---|---|")
    for name in args.names:
        tok = AutoTokenizer.from_pretrained(builtin.path(name))
        model = AutoModelForCausalLM.from_pretrained(builtin.path(name), dtype=torch.float32)
        for prompts in (s for s in sets.SETS if s.name in (args.sets or SETS)):
            problems = sets.draw_set(prompts)[: args.problems]
            found = votes(problems, answers(model.eval(), tok, problems, args.samples))
            cells = " | ".join(f"{share:.3f}" for share in found)
            print(f"| {name} | {prompts.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
