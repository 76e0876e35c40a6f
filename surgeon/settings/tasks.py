"""Settings of `surgeon tasks`."""

from typing import Annotated

from surgeon.settings.schema import POSITIONAL, UNRECORDED, Count, Metavar, Out, Part, settings


@settings
class TasksSettings:
    """Prepare labelled tasks of a known benchmark, for `evaluate --tasks` and `distill`."""

    benchmark: Annotated[str, POSITIONAL, Metavar("BENCHMARK")]
    """sciknoweval, edu-feedback, mmlu-pro, aime24, aime25, gpqa, hmmt25, brumo25, math500, gsm8k,
    or module:function."""
    out: Out
    """Directory to write: NAME.jsonl for each task, NAME-train.jsonl where it is split, and
    tasks.json."""
    source: Annotated[str | dict[str, str] | None, UNRECORDED, Metavar("FILE|NAME=FILE,...")] = None
    """Read the benchmark from here instead of the hub: a file or data set in the benchmark's own
    columns, or one for each task by name."""
    train: Part = 0.8
    """Share of the questions that are for training, where the benchmark is split here."""
    limit: Count | None = None
    """Questions of each file that are kept, after shuffling where it is split."""
    instruction: str | None = None
    """What stands below each question, instead of the benchmark's own sentence; may be empty."""
    seed: int = 0
    """Seed of the split, and of the order of options where the benchmark has none."""
