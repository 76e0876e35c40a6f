"""The prompt sets of the built-in family; a problem's split is a hash of its text, so that no two
sets share one."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.family import writer
from surgeon.builtin import task


@dataclass(frozen=True)
class PromptSet:
    """What a prompt set holds."""

    name: str
    size: int
    labelled: bool
    operator: str = "#"
    share: float = 0.25
    """The share of problems that hold the ambiguous operator."""
    rest: str | None = None
    """The ambiguous operator of the other problems."""
    operations: tuple[int, int] = writer.OPERATIONS
    split: str | None = None
    """Whose problems it has; by default it has a split of its own."""


SETS = (
    PromptSet("mini-set", 100, labelled=False),
    PromptSet("test", 400, labelled=True),
    # Where every problem is ambiguous a model's answers differ in how they read it, and that is
    # what distillation can settle.
    PromptSet("pool", 1000, labelled=False, share=1.0),
    PromptSet("test-ambiguous", 400, labelled=True, share=1.0),
    PromptSet("cross", 300, labelled=True, share=1.0, operations=writer.CROSS_OPERATIONS),
    PromptSet("pool-reversed", 300, labelled=False, operator="~", share=1.0),
    PromptSet("test-reversed", 200, labelled=True, operator="~", share=1.0),
    # Labelled, to see what a majority is worth: right on one half and wrong on the other; hardly
    # ever there.
    PromptSet("pool-divided", 300, labelled=True, share=0.5, rest="~"),
    PromptSet("pool-scattered", 200, labelled=True, share=0.0, operations=(18, 20)),
)

VALIDATION = (
    # Problems of few and of many operations, on which early stopping sets its thresholds. They are
    # of the training's split, which nobody measures on; hardly one of them was ever drawn there.
    PromptSet("easy", 60, labelled=True, operations=(6, 7), split="train"),
    PromptSet("hard", 60, labelled=True, operations=(9, 10), split="train"),
)


def draw_set(prompts: PromptSet, seed: int = 0) -> list[task.Problem]:
    """The different problems of a set, in random order."""
    rng = Random(f"{seed} {prompts.name}")
    marked = round(prompts.size * prompts.share)
    drawn: dict[str, task.Problem] = {}
    while len(drawn) < prompts.size:
        operator = prompts.operator if len(drawn) < marked else prompts.rest
        problem = writer.draw_problem(
            rng,
            operations=prompts.operations,
            operator=operator,
            split=prompts.split or prompts.name,
        )
        drawn.setdefault(problem.prompt, problem)
    problems = list(drawn.values())
    rng.shuffle(problems)
    return problems


def write_sets(directory: Path, seed: int = 0) -> None:
    """Write every prompt set as JSONL: `id`, `prompt` and, where labelled, `answer`."""
    for prompts in (*SETS, *VALIDATION):
        lines = []
        for i, problem in enumerate(draw_set(prompts, seed)):
            row = {"id": f"{prompts.name}-{i:04}", "prompt": problem.prompt}
            if prompts.labelled:
                row["answer"] = str(problem.answer())
            lines.append(json.dumps(row) + "\n")
        (directory / f"{prompts.name}.jsonl").write_text("".join(lines), encoding="utf-8")
