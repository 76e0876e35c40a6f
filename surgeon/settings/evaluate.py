"""Settings of `surgeon evaluate`."""

from typing import Annotated

from surgeon.errors import BadInput
from surgeon.settings.engine import EngineSettings
from surgeon.settings.nopsd import TOP_GLOBAL
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
    UNRECORDED,
    Amount,
    Count,
    File,
    Many,
    Metavar,
    Out,
    Positive,
    settings,
)
from surgeon.settings.workforce import Workforce

Named = str | dict[str, str] | None
"""Names with values, as `NAME=VALUE,NAME=VALUE` or a mapping."""


@settings
class EvaluateSettings:
    """Measure checkpoints on labelled tasks: accuracy, majority, calibration.

    Each answer is read out of its response, compared with the task's, and counted. Re-running is
    free; an interrupted run resumes with the responses that it lacks.
    """

    checkpoints: Annotated[Many[str], Metavar("CHECKPOINT..."), POSITIONAL, UNRECORDED]
    """Checkpoints, or a family."""
    task: File = ""
    """Labelled prompts, each with its answer: JSON lines, a JSON array, CSV, Parquet,
    builtin:NAME, or a data set on the hub, hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]."""
    out: Out
    """The directory to write."""
    tasks: Annotated[Named, RECORDED_WHERE_SET, Metavar("NAME=FILE,...|DIR")] = None
    """Several labelled tasks by name, or a directory that surgeon tasks wrote. A problem is then
    called TASK/ID."""
    checks: Annotated[Named, RECORDED_WHERE_SET, Metavar("NAME=CHECK,...")] = None
    """Tasks whose answers are compared otherwise than by check."""
    answers: Annotated[Named, RECORDED_WHERE_SET, Metavar("NAME=HOW,...")] = None
    """Tasks whose answers are read otherwise than by answer."""
    trained_on: Annotated[Named, UNRECORDED, Metavar("CANDIDATE=TASK,...")] = None
    """What candidates were trained on: they are reported in that domain and across the others."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    sampling: Sampling = Sampling(samples=8)
    check: str = "exact"
    """How answers are compared: exact, choice, math, or module:function."""
    answer: str = "auto"
    """How an answer is read: auto, boxed, choice, number, last-line, a regex, or
    module:function."""
    timeout_s: Positive = 5.0
    """Seconds that checking one answer may take."""
    limit: Count | None = None
    """Problems of each task that are kept, the first ones."""
    baseline: str | None = None
    """Candidate that the others are compared with, by a paired bootstrap over problems."""
    groups: dict[str, tuple[str, ...]] | None = None
    """Candidates that differ in their seed only, by the name under which they are reported as one,
    with intervals over problems and seeds."""
    consensus: Annotated[bool, UNRECORDED] = False
    """Read each response once more, for the consensus s(x) of Neuron-OPSD, and report whether it
    tells right answers from wrong ones. May be asked of a finished evaluation."""
    consensus_top: Annotated[Positive, UNRECORDED] = TOP_GLOBAL
    """Neurons kept per token for consensus; below 1 a share of all."""
    responses: dict[str, str] | None = None
    """Files of answers that were made elsewhere, by name: traces, such as those of `monitor`, or
    rows with prompt_id and response (text). They are judged beside the others, and nothing is
    sampled for them."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Say what it will take (tokens, time, disk) and write nothing."""
    measure_s: Annotated[Amount, UNRECORDED] = 0.0
    """With dry_run: seconds for which the first, the middle and the last candidate answer each, to
    measure how long answers are and how fast they come; 0: nothing is loaded."""
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()
    workforce: Workforce = Workforce()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        if self.measure_s and not self.dry_run:
            raise BadInput(
                "found measure_s without dry_run, expected both: only a dry run measures."
            )
