"""What judges and writers are asked, and what they say."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from surgeon.settings.neureasoner import THINKING, Tags

# --- judges ---------------------------------------------------------------------------------------


class Question(NamedTuple):
    """What a judge is asked: where a trace fails at one level."""

    prompt_id: str
    sample: int
    level: str
    """`intra`, `inter` or `instance`."""
    text: str
    """The prompt."""
    steps: Sequence[str]
    """The texts of the trace's whole steps."""

    @property
    def key(self) -> tuple[str, int, str]:
        """The trace and the level."""
        return self.prompt_id, self.sample, self.level


class Finding(NamedTuple):
    """What a judge says of some steps of a trace."""

    level: str
    """`intra`, `inter` or `instance`."""
    first: int
    """Number of the first step, from 0."""
    last: int
    """Number of the last step, itself included."""
    reason: str = ""
    failing: bool = True
    contrast: bool = False
    """`instance`: the question is hard, so its thinking is what over-thinking is compared with."""
    attempts: tuple[int, ...] = ()
    """`inter`: the first step of each attempt in the stretch, ascending; none: not told apart."""


class JudgeVerdict(NamedTuple):
    """What a judge found, and the tokens it took."""

    findings: list[Finding]
    tokens_in: int = 0
    tokens_out: int = 0
    unusable: str = ""
    """Why there is no verdict: nothing is known of the trace at this level."""


# --- writers --------------------------------------------------------------------------------------


class Assignment(NamedTuple):
    """What a writer is asked: how a failure of a trace is mended."""

    id: str
    level: str
    """`intra` or `inter`."""
    question: str
    """The prompt."""
    steps: Sequence[str]
    """The texts of the trace's whole steps."""
    first: int
    """Number of the first failing step, from 0."""
    last: int
    """Number of the last failing step, itself included."""
    made: bool
    """The failure is to be made up: step `first` is sound, as are those before it."""
    before: str
    """The response up to step `first`, as it was written."""
    thinking: bool
    """The steps stand in a thinking block."""
    answer: str | None
    """The known final answer."""
    seed: int
    control: Mapping[str, str | int] = MappingProxyType({})
    """What a failure that is made up is to be like (App. G)."""
    tags: Tags = THINKING
    """What opens and what closes the thinking block."""

    @property
    def key(self) -> str:
        """Its name."""
        return self.id


class Rewritten(NamedTuple):
    """The parts of a response; joined, with a trigger before `diagnose`, they are the response."""

    prefix: str
    wrong: str
    diagnose: str
    continuation: str


class Draft(NamedTuple):
    """What a writer made of an assignment, and the tokens it took."""

    parts: Rewritten | None
    reason: str = ""
    """Why there are no parts."""
    tokens_in: int = 0
    tokens_out: int = 0
    made: bool = False
    """Its failure was made up."""
    unusable: bool = False
    """The writer gave no usable reply."""
