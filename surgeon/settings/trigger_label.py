"""What `surgeon trigger label` can be asked to do."""

from typing import Annotated

from surgeon.errors import BadInput
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.engine import EngineSettings
from surgeon.settings.neureasoner import LEVELS, Level
from surgeon.settings.sampling import Columns, Machine, Sampling
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
    Share,
    settings,
)
from surgeon.settings.workforce import Workforce


@settings
class LabelSettings:
    """Sample traces, let a judge say which steps fail, decode counterparts that don't.

    Writes traces.jsonl, prompts.jsonl, spans.jsonl, verdicts.jsonl and label.json.
    """

    checkpoint: Annotated[str, POSITIONAL]
    """Whose traces are judged."""
    prompts: File | None = None
    """Questions: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set on the hub,
    hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]. Without them the easy and hard ones alone are
    labelled, which needs no judge."""
    out: Out
    """Directory to write."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    judge: Annotated[str, Metavar("builtin|URL#MODEL|MODULE:FUNCTION")] = "builtin"
    """Who says which steps fail."""
    judge_temperature: Amount | None = None
    """Sampling temperature of an endpoint; by default its own."""
    easy: File | None = None
    """Easy questions, for over-thinking."""
    hard: File | None = None
    """Hard questions, to compare the easy ones with."""
    traces: File | None = None
    """Label these responses instead of sampling."""
    responses: Annotated[File | None, RECORDED_WHERE_SET] = None
    """Import these answers, as plain text, instead of sampling: rows with prompt_id and
    response."""
    spans: File | None = None
    """Labels made by hand, for `traces`; no judge is asked."""
    levels: Many[Level] = LEVELS
    """Failure levels that are looked for."""
    most_unusable: Annotated[Share, UNRECORDED] = 0.1
    """Share of the judge's verdicts that may stay without a usable reply: their traces are left out
    at that level, and counted; above it the run stops."""
    limit: Count | None = None
    """Only the first questions of each file, so many."""
    inter_steps: Count = 3
    """Fewest consecutive steps of a stretch of stagnation (inter); shorter ones are no failure."""
    pairs: Number = 2
    """Most failing spans of a level and trace that get a counterpart."""
    resample: Number = 4
    """Most tries at a counterpart that doesn't fail."""
    instance_steps: Count = 4
    """The first steps, by which over-thought questions are compared with hard ones."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    sampling: Sampling = Sampling(samples=1, temperature=0.6, top_p=0.95, max_tokens=16000)
    endpoint: EndpointSettings = EndpointSettings()
    machine: Machine = Machine()
    workforce: Workforce = Workforce()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        """Raise BadInput for no level, and for files that are of no use without another."""
        if not self.levels:
            raise BadInput(f"found levels = (), expected some of: {', '.join(LEVELS)}.")
        if self.prompts is None and self.easy is None:
            raise BadInput(
                "found no questions, expected prompts=FILE, or easy=FILE and hard=FILE, which "
                "label over-thinking without a judge."
            )
        if (self.easy is None) != (self.hard is None):
            raise BadInput("easy and hard questions are compared with each other: give both files.")
        if self.traces and self.responses:
            raise BadInput("found traces and responses, expected one of them.")
        if self.engine.ask is not None:
            raise BadInput(
                "found ask = chat, expected completions: counterparts go on from a part of an "
                "answer."
            )
        if self.spans and not (self.traces or self.responses):
            raise BadInput("spans count the steps of certain traces: give those with traces=FILE.")
