"""Settings of `surgeon early-stop`."""

from typing import Annotated, Literal

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import DetectorTraining, Text, WatchSettings
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    SHARED,
    UNRECORDED,
    Count,
    File,
    Many,
    Metavar,
    Out,
    Part,
    Positive,
    Share,
    settings,
)

Stopper = Literal["auto", "enough", "instance", "both"]


@settings
class EarlyStopSettings:
    """Find out when a checkpoint has thought enough, and write it with a monitor that ends its
    thinking there.

    No judge, no training of the checkpoint (NeuReasoner sec. 3.3, the level that makes most of its
    saving). Labels come from the two sets alone: the thinking is ended after each of its steps, and
    it was enough where the forced answer is right. What is right says the vote of the question's
    other answers, or the question's own answer where it has one. Thresholds are set on questions
    that no detector was trained on. Writes the checkpoint with its monitor.safetensors,
    early-stop.json, early-stop.html, traces and probes. A killed run resumes with what it has.
    """

    checkpoint: Annotated[str, POSITIONAL]
    """Whose thinking is ended."""
    easy: File
    """Easy questions: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set on the
    hub, hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]. About 40."""
    hard: File
    """Hard questions, about as many."""
    out: Out
    """Directory to write."""
    test: File | None = None
    """Other questions, on which every rule is measured with the threshold that was set before."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution."""
    limit: Count | None = None
    """Only the first questions of each file, so many."""
    by: Literal["auto", "answers", "agreement"] = "auto"
    """What a right answer is: the question's own (answers), or that of most other samples of the
    question (agreement). auto: answers where every question has one. The test's likewise."""
    rule: Stopper = "auto"
    """The monitor that is written: a detector read after every step (enough), the paper's, read
    once after the first steps (instance), or both; auto: the one with the fewest tokens."""
    margin: Share = 0.01
    """A threshold is chosen where right answers become no fewer than by this share, by the lower
    end of a paired 95 % interval."""
    validation: Part = 0.5
    """Share of the questions on which thresholds are set; detectors learn from the others."""
    instance_steps: Count = WatchSettings.instance_steps
    """The first steps (K), after which `instance` is read."""
    k_enough: Count = WatchSettings.k_enough
    """Steps that the features of `enough` reach over."""
    channels: Count = 32
    """Units and heads that each detector reads, those with the highest attributions."""
    probes: Count = 64
    """Places of an answer at which its thinking is ended on trial, step ends evenly over it."""
    answer_tokens: Count = 64
    """Longest answer after a forced end, tokens."""
    finish: Text = WatchSettings.finish
    """The text that ends the thinking; an empty one closes it right after the step."""
    slow_words: Many[Text] = ("Wait", "Hmm", "Alternatively", "But", "Maybe")
    """Words that begin a step of slow thinking, for AlphaOne's rule."""
    check: str = "exact"
    """How answers are compared: exact, choice, math, or module:function."""
    answer: Annotated[str, Metavar("EXTRACTOR")] = "auto"
    """How an answer is read: auto, boxed, choice, number, last-line, a regex with one group, or
    module:function."""
    timeout_s: Positive = 5.0
    """Seconds that checking one answer may take."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    detector: DetectorTraining = DetectorTraining()
    sampling: Sampling = Sampling(samples=4, temperature=0.6, top_p=0.95, max_tokens=16000)
    reading: AnswerReading = AnswerReading()
    machine: Machine = Machine()

    def __post_init__(self) -> None:
        """Raise BadInput for votes without voters."""
        if self.by == "agreement" and self.sampling.samples < 3:
            raise BadInput(
                f"found samples = {self.sampling.samples}, expected at least 3: agreement is with "
                "most of a question's other answers."
            )

    def watch(self) -> WatchSettings:
        """What the monitor watches for."""
        return WatchSettings(
            instance_steps=self.instance_steps, k_enough=self.k_enough, finish=self.finish
        )
