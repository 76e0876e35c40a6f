"""The prompt sets of the built-in family; a problem's split is a hash of its text, so that no two
sets share one. All are drawn but the one that `scattered` chose by what the models answer."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.family import writer
from surgeon import builtin
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
    marks: tuple[int, int] = (1, 2)
    """Fewest and most operations of the ambiguous operator in a problem that holds it."""
    chosen_of: int = 0
    """How many are drawn of which `scattered` chooses; 0 where all that are drawn are taken."""


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
    # ever there, since several readings and slips on the long way leave many answers.
    PromptSet("pool-divided", 300, labelled=True, share=0.5, rest="~"),
    PromptSet(
        "pool-scattered", 40, labelled=True, share=1.0, operations=writer.CROSS_OPERATIONS,
        marks=(2, 4), chosen_of=80,
    ),
)  # fmt: skip

VALIDATION = (
    # Problems of few and of many operations, on which early stopping sets its thresholds. They are
    # of the training's split, which nobody measures on; hardly one of them was ever drawn there.
    PromptSet("easy", 60, labelled=True, operations=(6, 7), split="train"),
    PromptSet("hard", 60, labelled=True, operations=(9, 10), split="train"),
)


def draw_set(prompts: PromptSet, seed: int = 0) -> list[task.Problem]:
    """The different problems of a set, in random order; of one that was chosen, the shipped ones,
    whatever the seed."""
    if prompts.chosen_of:
        lines = builtin.path(prompts.name).read_text(encoding="utf-8").splitlines()
        return [task.Problem.parse(json.loads(line)["prompt"]) for line in lines]
    rng = Random(f"{seed} {prompts.name}")
    problems = _drawn(prompts, rng)
    rng.shuffle(problems)
    return problems


def candidates(prompts: PromptSet) -> list[task.Problem]:
    """The problems of which a set is chosen, in the order of the draw."""
    return _drawn(replace(prompts, size=prompts.chosen_of), Random(f"0 {prompts.name}"))


def _drawn(prompts: PromptSet, rng: Random) -> list[task.Problem]:
    marked = round(prompts.size * prompts.share)
    drawn: dict[str, task.Problem] = {}
    while len(drawn) < prompts.size:
        operator = prompts.operator if len(drawn) < marked else prompts.rest
        problem = writer.draw_problem(
            rng,
            operations=prompts.operations,
            operator=operator,
            split=prompts.split or prompts.name,
            marks=prompts.marks,
        )
        drawn.setdefault(problem.prompt, problem)
    return list(drawn.values())


def write_sets(directory: Path, seed: int = 0) -> None:
    """Write every prompt set as JSONL."""
    for prompts in (*SETS, *VALIDATION):
        text = jsonl(prompts, draw_set(prompts, seed))
        (directory / f"{prompts.name}.jsonl").write_text(text, encoding="utf-8")


def jsonl(prompts: PromptSet, problems: list[task.Problem]) -> str:
    """The lines of a set: `id`, `prompt` and, where labelled, `answer`."""
    lines = []
    for i, problem in enumerate(problems):
        row = {"id": f"{prompts.name}-{i:04}", "prompt": problem.prompt}
        if prompts.labelled:
            row["answer"] = str(problem.answer())
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)
