"""Settings of `surgeon curate`."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from surgeon.errors import BadInput
from surgeon.settings.nopsd import TOP_GLOBAL
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Template
from surgeon.settings.schema import (
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
class CurateSettings:
    """Keep the best part of a pool of answers, by NEX or another rule, to train a student on.

    Every selection gets the same number of tokens (NEX Tab. 4), best answers first; the prompts of
    the mini-set and of tasks are left out. No selection reads a label. A killed run resumes with
    the answers that it has scored. Nothing is sampled, so there is no engine: the answers are the
    pool's, which `surgeon rank` or `evaluate` may have had written by one.
    """

    pool: Annotated[str, Metavar("FILE|RANKING#NAME"), UNRECORDED]
    """Answers: a file of traces, of prompts with a response, or of messages that end with the
    assistant's; or a candidate of a ranking, whose responses are scored from what the ranking
    kept, without a model."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    by: Annotated[Many[str], Metavar("RULE")] = ("nex",)
    """One or more of nex, hes, low-hes, length (shortest first), longest, logprob, agreement,
    consensus, random, or module:function; each makes a selection."""
    keep: Annotated[float, Gt(0), Le(1)] = 0.2
    """Share of the pool's response tokens that a selection holds."""
    worst: bool = False
    """Keep the worst instead: a control."""
    reader: Annotated[str | None, Metavar("CHECKPOINT"), UNRECORDED] = None
    """The checkpoint whose activations read the answers, and whose tokens they are counted in; of a
    ranking's candidate, itself."""
    weights: Annotated[str | None, Metavar("RANKING[#NAME]|FILE"), UNRECORDED] = None
    """Neuron weights of the reader, from a ranking on a mini-set that isn't in the pool."""
    weights_from_other: bool = False
    """Take weights that were computed on another checkpoint."""
    prompts: Annotated[str | None, Metavar("FILE"), UNRECORDED] = None
    """The pool's prompts, where it holds traces; messages are written and texts compared only
    where they are known. Their answers, where they have some, are counted for the report."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution."""
    exclude: Annotated[Many[str], Metavar("FILE"), UNRECORDED] = ()
    """Prompt sets that must not be learned, such as the mini-set and the tasks: prompts of the
    same id, and those that share 13 words in a row, are left out."""
    finished: bool = False
    """Leave out answers that were cut at a token limit."""
    answer: str = "auto"
    """How an answer is read, for agreement and the report: auto, boxed, choice, number, last-line,
    a regex with one group, or module:function."""
    top_k: Annotated[Count | Part | Literal["auto"], Metavar("N|SHARE|auto")] = "auto"
    """Activations of the reader kept per token: a count, or a share, below 1, of the units that a
    token passes through. auto: as many as the ranking of the weights kept; where no ranking says
    so, the paper's share, 2000 of 350208."""
    consensus_top: Positive = TOP_GLOBAL
    """Neurons kept per token for consensus; below 1 a share of all. By default Neuron-OPSD's
    share."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; by default the template decides."""
    template: Template = None
    """Name of the chat template that prompts are rendered with, where the reader has several."""
    seed: Annotated[int, UNRECORDED] = 0
    """Seed of random selections, and of the order among equals."""
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()
    workforce: Workforce = Workforce()

    def __post_init__(self) -> None:
        """Raise BadInput for a rule that stands there twice."""
        twice = [name for name in self.by if self.by.count(name) > 1]
        if twice or not self.by:
            raise BadInput(
                f"found by = {', '.join(self.by)}, expected one or more rules, each once."
            )
