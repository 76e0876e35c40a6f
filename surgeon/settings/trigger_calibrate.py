"""What `surgeon trigger calibrate` can be asked to do."""

from typing import Annotated, Literal

from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import LEVELS, Level
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
    SHARED,
    UNRECORDED,
    Amount,
    Count,
    File,
    Many,
    Metavar,
    Number,
    Out,
    Part,
    Positive,
    Share,
    settings,
)


@settings
class CalibrateSettings:
    """Set a monitor's thresholds for the checkpoint that it watches, and find out whether it helps.

    Traces of the checkpoint itself are judged. Each level gets the threshold at which a chosen
    share of the sound step ends fires falsely. Where the questions have answers, firings are forced
    on trial at failing and at sound step ends, each beside the same beginning without one: a level
    whose firing gains right answers gets the threshold that gains most, and one that neither gains
    them nor saves tokens at no cost is off by default in what is written: a copy of the checkpoint
    that carries the monitor, and calibration.json. A level that draws steps anew is measured on
    whole answers with all of its firings. Questions are best those that neither detectors nor
    training have seen.
    """

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """A checkpoint with its monitor, as a rule after `surgeon trigger sft`."""
    prompts: File
    """Questions: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set on the hub,
    hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]."""
    out: Out
    """Directory to write."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    judge: Annotated[str, Metavar("builtin|URL#MODEL|MODULE:FUNCTION")] = "builtin"
    """Who says which steps fail."""
    judge_temperature: Amount | None = None
    """Sampling temperature of an endpoint; by default its own."""
    monitor_file: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """Another monitor than the checkpoint's own."""
    levels: Many[Level] = LEVELS
    """Levels that are calibrated, of those that the monitor has."""
    limit: Count | None = None
    """Only the first questions, so many."""
    action: Annotated[Literal["trigger", "resample"] | None, RECORDED_WHERE_SET] = None
    """What a firing at intra or inter does, on trial and in what is written: force its token
    (trigger), or draw the step anew (resample; no trigger training is needed). By default what the
    monitor's does."""
    inter_steps: Count = 3
    """Fewest consecutive steps of a stretch of stagnation (inter)."""
    most_unusable: Annotated[Share, UNRECORDED] = 0.1
    """Share of the judge's verdicts that may stay without a usable reply."""
    false_alarms: Part = 0.05
    """Share of the sound step ends that may fire."""
    threshold: Literal["value", "false-alarms"] = "value"
    """The threshold of a level: the one with the largest expected gain where it is worth switching
    on there (value), or the one of the false alarms, which a level that draws steps anew always
    has. Whether it is on is judged at the threshold that it gets."""
    trials: Number = 100
    """Most firings that are forced at failing and at sound step ends each, by level; 0: none, and
    every level stays on."""
    tolerance: Share = 0.01
    """Right answers, as a share, that saved tokens may be paid with at worst (95 % interval)."""
    check: str = "exact"
    """How answers are judged: exact, choice, math, or module:function."""
    answer: str = "auto"
    """What is read out of a response: auto, boxed, choice, number, last-line, a regex with one
    group, or module:function."""
    timeout_s: Positive = 5.0
    """Seconds that one check may take."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    sampling: Sampling = Sampling(samples=2, temperature=0.6, top_p=0.95, max_tokens=16000)
    reading: AnswerReading = AnswerReading()
    endpoint: EndpointSettings = EndpointSettings()
    machine: Machine = Machine()
