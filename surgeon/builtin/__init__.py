"""The built-in family: tiny reasoning models trained from nothing on a task whose every step can be
checked.

`path("thinking")` is a checkpoint directory, `path("second-thinking")` that of another seed,
`path("test")` a prompt set. `task` has the problems and the exact checker, `judge` and
`reconstruct` what the trigger stages ask of it. `make family` made the files
(`benchmarks/family`).
"""

from pathlib import Path

from surgeon.errors import BadInput

CHECKPOINTS = ("base", "instruct", "thinking", "instruct-ffn", "thinking-ffn")
SECOND = ("second-base", "second-instruct", "second-thinking")
"""Of a second training with another seed, to see what holds on both."""
PROMPT_SETS = (
    "mini-set",
    "test",
    "pool",
    "pool-reversed",
    "test-reversed",
    "cross",
    "test-ambiguous",
    "pool-divided",
    "pool-scattered",
)
VALIDATION_SETS = ("easy", "hard")
"""Of the training's split: problems of few and of many operations."""
NAMES = (*CHECKPOINTS, *SECOND, *PROMPT_SETS, *VALIDATION_SETS)
"""Every name that `path` knows."""

DATA = Path(__file__).parent / "data"


def path(name: str) -> Path:
    """Where a shipped checkpoint (a directory) or prompt set (a JSONL file) lies; raises BadInput
    for another name."""
    if name not in NAMES:
        raise BadInput(f"found the built-in name {name!r}, expected one of {', '.join(NAMES)}")
    return DATA / (f"{name}.jsonl" if name in (*PROMPT_SETS, *VALIDATION_SETS) else name)
