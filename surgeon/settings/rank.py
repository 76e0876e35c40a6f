"""What `surgeon rank` can be asked to do."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.engine import EngineSettings
from surgeon.settings.nex import ReadingChoices
from surgeon.settings.nopsd import TOP_GLOBAL
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
    SHARED,
    UNRECORDED,
    Amount,
    Count,
    Many,
    Metavar,
    Out,
    Part,
    Positive,
    settings,
)
from surgeon.settings.workforce import Workforce


@settings
class Scoring:
    """How NEX reads a response."""

    preset: Literal["reference", "paper"] = "reference"
    """Readings of the paper: as its published code computes, or as it is worded."""
    credit: Literal["introduced", "active"] = "introduced"
    """Neurons that are credited: those an exploring stretch introduces, or (an ablation) all that
    are active in it."""
    row_tokens: Annotated[Count | Literal["auto"], Metavar("N|auto")] = "auto"
    """Tokens per row of the novelty slope. auto: the most of 1, 2, 4, ... 32 at which the median
    response has 48 rows, of the first or the last candidate, whose is shorter; 32 with preset
    paper."""
    top_k: Annotated[Count | Part | Literal["auto"], Metavar("N|SHARE|auto")] = "auto"
    """Activations kept per token, over all layers: a count, or a share, below 1, of the units that
    a token passes through (of experts, the chosen ones). auto: the paper's share, 2000 of 350208;
    2000 with preset paper."""
    tau: Annotated[Amount, RECORDED_WHERE_SET] = 0.0
    """Activation that a neuron has to pass once in a row to be in it (sec. A.3)."""


@settings
class RankSettings:
    """Rank checkpoints without labels: NEX, its baselines, and an estimate of accuracy by vote."""

    checkpoints: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("CHECKPOINT|FAMILY...")] = ()
    """Directories, hub ids, BASE+ADAPTER, families, or FAMILY/family.json#CANDIDATE."""
    mini_set: Annotated[str, Metavar("FILE")] = ""
    """Unlabelled prompts: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set on
    the hub, hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    seed: Annotated[int, SHARED] = 0
    """Seed of everything random."""
    select: Annotated[str, UNRECORDED, Metavar("SCORE")] = "recommended"
    """The score that orders the candidates: recommended (NEX times the accuracy that the votes
    estimate), nex (as in the paper), another of the table's columns, or module:function."""
    traces: Annotated[str | None, Metavar("FILE|DIR")] = None
    """Use these responses instead of sampling: a file, one NAME.jsonl per candidate, or the
    directory of another ranking or evaluation."""
    responses: Annotated[str | None, RECORDED_WHERE_SET, Metavar("FILE|DIR")] = None
    """Import these answers, as plain text, instead of sampling: a file of rows with prompt_id and
    response, or one NAME.jsonl per candidate."""
    weights: Annotated[str | None, Metavar("FILE")] = None
    """Score with another ranking's neuron weights: those of a candidate, or of what one was made
    from."""
    weights_from_other: Annotated[bool, UNRECORDED] = False
    """Accept weights that were computed on a checkpoint unrelated to the candidates."""
    answer: Annotated[str, Metavar("HOW")] = "auto"
    """How an answer is read: auto, boxed, choice, number, last-line, a regex with one group, or
    module:function."""
    truth: Annotated[str | None, UNRECORDED, Metavar("FILE|NAME=FILE,...")] = None
    """True accuracies to hold the scores against, of one benchmark or of several by name
    (aime24=FILE,gpqa=FILE): evaluate.json or its directory, by candidate (JSON, CSV), or a
    directory of lm-eval's results[#METRIC]."""
    panels: Annotated[Many[str], UNRECORDED, Metavar("MODULE:FUNCTION")] = ()
    """Panels of your own on the report's page."""
    known: Annotated[Count | None, UNRECORDED] = None
    """Look at the true answers of so many prompts, drawn by the seed from those that come with one,
    to see whether the votes give them: errors that all candidates share show in nothing else."""
    adaptive: Annotated[bool, RECORDED_WHERE_SET] = False
    """Ask prompts in rounds: candidates that can't be the best any more stop answering, and it ends
    when one is left."""
    tolerance: Annotated[Amount | None, UNRECORDED] = None
    """With adaptive: percentage points of the score by which the chosen candidate may be behind the
    best; by default 2."""
    budget: Annotated[Count | None, UNRECORDED] = None
    """With adaptive: most tokens of all responses together; by default no limit."""
    keep_activations: bool = False
    """Keep the recordings on disk, a file a response, with the statistics of every token."""
    format: Annotated[Literal["nex-cache"] | None, RECORDED_WHERE_SET] = None
    """nex-cache: write each candidate's rows as the published NEX code reads them, too."""
    nex_cache: Annotated[str | None, RECORDED_WHERE_SET, Metavar("DIR")] = None
    """Rank caches of the published NEX code instead of checkpoints, without a model: one cache, a
    directory of one per candidate, or a ranking that wrote some."""
    evidence_mb: Annotated[Amount, UNRECORDED] = 4000
    """Megabytes of evidence that are kept, an equal share for each candidate: what the responses
    say of neurons, and their sparse rows, for other readings without a model. What exceeds the
    share isn't kept, the rows first."""
    cross_fit: Annotated[bool, UNRECORDED] = False
    """Intervals of NEX by cross-fitting: weights learned on one half of the prompts score the
    other; by default they are learned from the prompts that they score."""
    consensus: Annotated[bool, UNRECORDED] = False
    """Read each response once more, for the consensus s(x) of Neuron-OPSD, and report whether it
    tells which responses the others' vote agrees with. May be asked of a finished ranking."""
    consensus_top: Annotated[Positive, UNRECORDED] = TOP_GLOBAL
    """Neurons kept per token for consensus; below 1 a share of all."""
    sensitivity: Annotated[bool, UNRECORDED] = False
    """Score again under every other reading of NEX, one at a time, from the kept rows."""
    curve: Annotated[str | None, UNRECORDED, Metavar("START:STOP:STEP")] = None
    """Rank by random parts of the mini-set too, of so many prompts (10:100:10, or a list), from
    what is kept: how many prompts are enough."""
    draws: Annotated[Count, UNRECORDED] = 10
    """With curve: parts of each size."""
    dry_run: Annotated[bool, UNRECORDED] = False
    """Say what it will take (tokens, time, disk) and write nothing."""
    measure_s: Annotated[Amount, UNRECORDED] = 0.0
    """With dry_run: seconds for which the first, the middle and the last candidate answer each, to
    measure how long answers are and how fast they come; 0: nothing is loaded."""
    scoring: Scoring = Scoring()
    readings: ReadingChoices = ReadingChoices()
    sampling: Sampling = Sampling()
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()
    workforce: Workforce = Workforce()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        named = {name for name in ("checkpoints", "mini_set") if getattr(self, name)}
        others = {"traces", "responses", "weights", "format", "known"}
        if self.nex_cache is None:
            if lacking := [name for name in ("checkpoints", "mini_set") if name not in named]:
                raise BadInput(f"lacks {', '.join(lacking)}.")
        elif given := sorted(named | {name for name in others if getattr(self, name)}):
            raise BadInput(
                f"found nex_cache and {', '.join(given)}, expected nex_cache alone: a cache holds "
                "its responses' activations already."
            )
        if self.nex_cache is not None and isinstance(self.scoring.top_k, float):
            raise BadInput(
                f"found top_k = {self.scoring.top_k:g} and nex_cache, expected a count or nothing: "
                "a cache holds what was kept already, and doesn't say of how many."
            )
        if self.measure_s and not self.dry_run:
            raise BadInput(
                "found measure_s without dry_run, expected both: only a dry run measures."
            )
        if self.cross_fit and self.weights is not None:
            raise BadInput(
                "found cross_fit and weights, expected one of them: given weights are learned from "
                "no prompt here, so there is nothing to fit across."
            )
        if not self.adaptive and (self.tolerance, self.budget) != (None, None):
            name = "tolerance" if self.tolerance is not None else "budget"
            raise BadInput(
                f"found {name} without adaptive, expected both: every candidate answers every "
                "prompt unless --adaptive lets some stop early."
            )
        if self.adaptive and self.curve is not None:
            raise BadInput(
                "found adaptive and curve, expected one of them: candidates that stopped early "
                "have answered too few prompts for parts of all."
            )
        if self.adaptive and self.nex_cache is not None:
            raise BadInput(
                "found adaptive and nex_cache, expected one of them: a cache holds all responses."
            )
