"""What `surgeon monitor` is asked to do."""

from pathlib import Path
from typing import Annotated

from surgeon.errors import BadInput
from surgeon.settings.engine import EngineSettings
from surgeon.settings.neureasoner import Action
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
    UNRECORDED,
    Count,
    Many,
    Metavar,
    Positive,
    settings,
)


@settings
class MonitorSettings:
    """Answer with the checkpoint's monitor on: a detector that fires forces its trigger."""

    checkpoint: Annotated[str, POSITIONAL, UNRECORDED, Metavar("CHECKPOINT")]
    """The checkpoint that answers."""
    prompts: Annotated[str | None, Metavar("FILE")] = None
    """Questions: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set on the hub,
    hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]. Those with an answer are judged."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    prompt: str | None = None
    """One question instead; its answer is shown."""
    out: Annotated[Path | None, Metavar("DIR"), UNRECORDED] = None
    """Directory to write; with `prompt` it may be left out, and nothing is written."""
    sampling: Sampling = Sampling(samples=1, temperature=0.6, top_p=0.95, max_tokens=16000)
    levels: Many[str] | None = None
    """Watch only these of the monitor's levels, or all of them; none watches nothing, and needs no
    monitor. By default those that a calibration left on (`surgeon trigger calibrate`)."""
    action: Annotated[Action | None, RECORDED_WHERE_SET] = None
    """What a firing at intra or inter does: force the trigger (trigger), draw the step anew until
    nothing fires (resample), or draw several and keep the one that the detector likes best
    (choose); the last two need no training. By default what the monitor was calibrated for."""
    draws: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Most new draws of a step; by default the monitor's, 4."""
    random_rate: Annotated[str | dict[str, float] | None, Metavar("DIR")] = None
    """Control: fire at random, as often as that monitored run did, or as {level: chance}."""
    with_vanilla: bool = False
    """Answer without the monitor as well, with the same random numbers, and report the paired
    difference in right answers, tokens and time."""
    monitor_file: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """Another monitor than the checkpoint's own."""
    limit: Count | None = None
    """Only the first N questions."""
    check: str = "exact"
    """How answers are judged: exact, choice, math, or module:function."""
    answer: str = "auto"
    """What is read out of a response: auto, boxed, choice, number, last-line, a regex with one
    group, or module:function."""
    timeout_s: Positive = 5.0
    """Seconds that one check may take."""
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        if (self.prompts is None) == (self.prompt is None):
            raise BadInput("expected either prompts (a file) or prompt (a text). Give one of them.")
        if self.prompts is not None and self.out is None:
            raise BadInput("found no out, expected a directory to write the traces to: --out DIR.")
        if self.prompt is not None and not self.prompt.strip():
            raise BadInput("found an empty prompt, expected a question.")
        if self.with_vanilla and not self.engine.is_local:
            raise BadInput(
                "found with_vanilla and an engine, expected the decoder here: times of the two are "
                "compared. `surgeon evaluate --engine` answers plainly."
            )
        if self.with_vanilla and self.out is None:
            raise BadInput("found with_vanilla and no out, expected a directory: --out DIR.")
        if self.action in ("resample", "choose") and not self.engine.is_local:
            raise BadInput(
                f"found action = {self.action} and an engine, expected the decoder here: an engine "
                "takes nothing back."
            )
        if self.engine.ask is not None:
            raise BadInput("found ask = chat, expected completions: answers are continued here.")
