"""Settings of `surgeon distill`."""

from typing import Annotated, Literal

from annotated_types import Gt, Le

from surgeon.errors import BadInput
from surgeon.settings.engine import EngineSettings
from surgeon.settings.nopsd import NopsdReadings, Selection
from surgeon.settings.sampling import AnswerReading, Columns, Machine, Sampling
from surgeon.settings.schema import (
    POSITIONAL,
    RECORDED_WHERE_SET,
    SHARED,
    UNRECORDED,
    Amount,
    Count,
    File,
    Metavar,
    Number,
    Out,
    Probability,
    settings,
)
from surgeon.settings.training import Batches, Schedule, Tuning


@settings
class Demonstrations:
    """What the teacher sees before the question."""

    context: Literal["nearest", "random", "length", "answer", "embedding"] = "nearest"
    """The questions with the most similar contribution sets; or as controls random ones, others as
    long as those, ones with the same answer, or the nearest by the model's own states."""
    shots: Count = 10
    """Demonstrations before the teacher's question."""
    teacher_tokens: Number = 0
    """Most tokens of a teacher's prompt; 0: what the context leaves beside the response."""


@settings
class PseudoSolution:
    """uopsd: which of a question's rollouts teaches, and which are taught."""

    threshold: Annotated[Probability | None, RECORDED_WHERE_SET] = None
    """Share of the rollouts that must give the most frequent answer, else the question is passed
    over; by default 0.5. One over the rollouts or less passes over none."""
    targets: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Rollouts of a question with another answer that are taught, the longest; by default 1."""


@settings
class Rollout:
    """How the student's answers are drawn while it trains."""

    temperature: Amount = 1.0
    """0 takes the most likely token."""
    top_p: Probability = 1.0
    """Share of the probability that is drawn from, most likely tokens first."""
    penalty: Annotated[Amount, RECORDED_WHERE_SET] = 0.0
    """ttrl, intuitor, grpo, dapo: weight of the KL to the start; published are 0.005 for Intuitor,
    0.04 for GRPO, 0 for TTRL (App. A) and DAPO."""
    mask_truncated: Annotated[bool, RECORDED_WHERE_SET] = False
    """dapo: leave truncated rollouts out of the loss, instead of punishing overlong ones."""
    staleness: Annotated[Number, RECORDED_WHERE_SET] = 0
    """Steps that the weights of another engine may lag behind the student: they are pushed every
    1 + so many steps."""


@settings
class Averaging:
    """How the teacher follows the student."""

    ema_rate: Annotated[float, Gt(0), Le(1)] = 0.01
    """Share of the way to the student that the teacher goes in a step (Eq. 9)."""
    ema: Literal["factors", "exact"] = "factors"
    """R12, LoRA: both factors are averaged apart, or their product is (takes more memory)."""


@settings
class DistillSettings:
    """Train a checkpoint on its own answers to unlabelled questions (Neuron-OPSD)."""

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """The checkpoint to distil."""
    pool: File
    """Unlabelled questions: JSON lines, a JSON array, CSV, Parquet, builtin:NAME, or a data set
    on the hub, hf:OWNER/NAME[#CONFIG][@REVISION][:SPLIT]; answers in it are not read."""
    out: Out
    """Directory to write; nothing is written elsewhere."""
    columns: Columns = None
    """Columns with other names than the usual ones: prompt=problem,answer=solution, of prompt,
    messages, answer, id, tools and system."""
    responses: Annotated[File | None, RECORDED_WHERE_SET] = None
    """Import these answers to the pool, as plain text, instead of sampling them: rows with
    prompt_id and response."""
    method: str = "nopsd"
    """nopsd, uopsd, lmsi, ttrl, intuitor, opsa; grpo and dapo, which read labels; auto, the one
    that the diagnostics speak for; or module:function."""
    force: Annotated[bool, UNRECORDED] = False
    """auto: train the likeliest method though the diagnostics speak for none."""
    merge: bool = False
    """Write a checkpoint instead of an adapter."""
    answer: str = "auto"
    """How an answer is read: auto, boxed, choice, number, last-line, a regex with one group, or
    module:function."""
    labels: Annotated[File | None, RECORDED_WHERE_SET] = None
    """The pool's questions with their answers, for the report: how often answers and their
    majority are right, and whether s(x) tells. Of the methods, grpo and dapo are rewarded by them,
    and no other reads them."""
    check: Annotated[str | None, RECORDED_WHERE_SET] = None
    """How answers are compared with labels: exact (the default), choice, math, or
    module:function."""
    diagnose: Count = 64
    """Questions that the diagnostics are taken on."""
    steps: Count | None = None
    """Optimizer steps; by default 150, and of ttrl, intuitor, grpo and dapo one epoch (App. A)."""
    lowest: Annotated[Probability | None, RECORDED_WHERE_SET] = None
    """opsa: the share of a response's tokens, the least likely ones, that is suppressed; by default
    0.2, as published."""
    epochs: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Passes over the questions that are trained on, instead of steps."""
    validation: Annotated[File | None, RECORDED_WHERE_SET] = None
    """Labelled problems: the weights of the step with the highest Maj@k on them are kept, and the
    result says that labels chose them."""
    validate_every: Annotated[Count | None, RECORDED_WHERE_SET] = None
    """Steps between two looks at the validation problems; by default a tenth of all."""
    seed: Annotated[int, SHARED, UNRECORDED] = 0
    """Seed of everything random."""
    tuning: Tuning = Tuning()
    selection: Selection = Selection()
    demonstrations: Demonstrations = Demonstrations()
    readings: NopsdReadings = NopsdReadings()
    sampling: Sampling = Sampling(samples=8, temperature=0.6, top_p=1.0, max_tokens=4096)
    reading: AnswerReading = AnswerReading()
    rollout: Rollout = Rollout()
    averaging: Averaging = Averaging()
    pseudo: PseudoSolution = PseudoSolution()
    schedule: Schedule = Schedule()
    batches: Batches = Batches()
    machine: Machine = Machine()
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        """Raise BadInput for settings that don't go together."""
        if self.sampling.samples < 2:
            raise BadInput(
                f"found samples = {self.sampling.samples}, expected at least 2: what they agree on "
                "is counted."
            )
        if self.steps is not None and self.epochs is not None:
            raise BadInput("found both steps and epochs, expected one of them.")
        if self.validate_every is not None and self.validation is None:
            raise BadInput(
                "found validate_every without validation, expected --validation FILE too."
            )
        if self.tuning.weights == "full" and self.averaging.ema == "exact":
            raise BadInput("ema 'exact' is a choice under lora; full weights are averaged exactly.")

    @property
    def writes_adapter(self) -> bool:
        """Whether the result is a PEFT adapter."""
        return self.tuning.weights == "lora" and not self.merge
