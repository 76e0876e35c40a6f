"""Settings of `surgeon pick`."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.engine import EngineSettings
from surgeon.settings.nopsd import TOP_GLOBAL
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
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
class PickSettings:
    """Pick the best of several answers to each prompt: by NEX, and by every other rule beside it.

    No rule reads a label (NEX sec. 5.4.1). Where the prompts have answers, picks are held against
    them: best, random and worst of n. A killed run resumes with what it has.
    """

    sources: Annotated[Many[str], POSITIONAL, UNRECORDED, Metavar("RANKING[#NAME]|CHECKPOINT...")]
    """A ranking or some of its candidates, whose responses are scored from what the ranking kept,
    without a model; or checkpoints or a family, which answer --prompts or read --traces."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    prompts: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """What is asked. Answers, where they are there, say how often each rule picks a right one. Of a
    ranking, by default, its mini-set."""
    traces: Annotated[str | None, Metavar("FILE|DIR"), UNRECORDED] = None
    """Pick among these answers instead of sampling: a file, one NAME.jsonl per checkpoint, or the
    directory of a ranking or evaluation."""
    weights: Annotated[str | None, Metavar("RANKING[#NAME]|FILE"), UNRECORDED] = None
    """Neuron weights of the same checkpoint, from a ranking on other prompts; a ranking of several
    has each one's. Without them a ranking's own responses are scored with weights that are learned
    from the other prompts' responses."""
    weights_from_other: bool = False
    """Take weights that were computed on another checkpoint."""
    by: Annotated[Many[str], Metavar("RULE")] = ("nex",)
    """The rule that picks, of nex, hes, low-hes, length (shortest), longest, logprob, agreement
    (majority), vote (the other candidates'), consensus, random, or module:function. Further names
    stand beside it, as all do that take no pass of their own (consensus does)."""
    limit: Count | None = None
    """Prompts that are kept, the first ones."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution."""
    check: str = "exact"
    """How answers are compared: exact, choice, math, or module:function."""
    answer: str = "auto"
    """How an answer is read: auto, boxed, choice, number, last-line, a regex with one group, or
    module:function."""
    timeout_s: Positive = 5.0
    """Seconds that checking one answer may take."""
    words: Many[str] = ("wait",)
    """Words that are counted in answers, such as those of checks (NEX sec. A.12)."""
    top_k: Annotated[Count | Part | Literal["auto"], Metavar("N|SHARE|auto")] = "auto"
    """Activations kept per token: a count, or a share, below 1, of the units that a token passes
    through. auto: as many as the ranking of the weights kept; where no ranking says so, the paper's
    share, 2000 of 350208."""
    consensus_top: Positive = TOP_GLOBAL
    """Neurons kept per token for consensus; below 1 a share of all. By default Neuron-OPSD's
    share."""
    seed: Annotated[int, SHARED] = 0
    """Seed of everything random."""
    sampling: Sampling = Sampling()
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()
    workforce: Workforce = Workforce()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        """Raise BadInput for rules that stand there twice, and for no rule."""
        twice = [name for name in self.by if self.by.count(name) > 1]
        if twice or not self.by:
            raise BadInput(
                f"found by = {', '.join(self.by)}, expected one or more rules, each once."
            )
        if not self.sources:
            raise BadInput(
                "found no source, expected a ranking, or checkpoints with --prompts and --weights."
            )
