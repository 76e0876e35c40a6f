"""The methods: a row each, of what is gathered before training and the function that trains.

A method from outside, `--method my_method:method`, is a function that takes a `TrainingRun` and
returns the history of its training, or a `Finisher` where its other fields matter:
examples/my_finisher.py is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from surgeon import named
from surgeon.answers import majority
from surgeon.distill.advice import weigh
from surgeon.distill.evidence import (
    Diagnostics,
    PoolEvidence,
    SetDiagnostics,
    answers_only,
    probed_answers,
    voted_answers,
    with_sets,
)
from surgeon.distill.grpo import (
    RewardedMethod,
    checked_reward,
    grpo,
    majority_reward,
    self_certainty_reward,
    shaped,
)
from surgeon.distill.on_policy import imitate
from surgeon.distill.plan import DistillPlan
from surgeon.distill.pool import LiveModel
from surgeon.distill.pseudo_solutions import correct
from surgeon.distill.run import TrainingRun
from surgeon.distill.suppression import suppress
from surgeon.distill.traits import MethodTraits
from surgeon.errors import BadInput
from surgeon.traces import Trace
from surgeon.training.state import History

Gather = Callable[[DistillPlan, LiveModel, Path], PoolEvidence]
Train = Callable[[TrainingRun], History]


LORA_RATE = 20
"""Times the published rate of full weights: under LoRA one factor begins at 0, so that rate would
move nothing. A choice of ours, untuned; sweep it."""


@dataclass(frozen=True)
class Finisher(MethodTraits):
    """A way to train a checkpoint on its own answers."""

    train: Train
    gather: Gather = answers_only
    """Stages 1 to 3."""

    def __call__(self, run: TrainingRun) -> History:
        return self.train(run)


def learn_majority(run: TrainingRun) -> History:
    """LMSI: learn the answers that agree with their question's majority, as they stand."""
    return run.learn(of_the_majority(run))


def of_the_majority(run: TrainingRun) -> list[tuple[int, Trace]]:
    """(Question, answer) for every answer that gives its question's most frequent one.

    Of equally frequent ones one is drawn (`answers.majority`); a question without any answer is
    left out.
    """
    kept = []
    answers = [run.answers(i) for i in range(len(run.plan.prompts))]
    for i, (traces, votes) in enumerate(zip(answers, run.plan.votes(answers), strict=True)):
        best = majority(votes)
        if best is not None:
            kept += [(i, trace) for trace, v in zip(traces, votes, strict=True) if v == best]
    if not kept:
        raise BadInput(
            f"no answer was found in any response by the extractor {run.plan.settings.answer!r}, "
            "so there is no majority to learn."
        )
    return kept


def not_chosen(run: TrainingRun) -> History:
    """`auto` is another method by the time that it trains."""
    raise AssertionError(f"auto took {run.evidence.diagnostics.taken}")


METHODS: dict[str, Finisher] = {
    "auto": Finisher(
        "the method that the diagnostics spoke for", not_chosen, gather=weigh, needs_sets=True
    ),
    "nopsd": Finisher(
        "on-policy self-distillation from a teacher with neuron-chosen demonstrations",
        imitate,
        gather=with_sets,
        needs_sets=True,
        may_lag=True,
        options=("context", "ema"),
    ),
    "uopsd": Finisher(
        "on-policy self-distillation from a teacher that sees the majority's solution (Li et al.)",
        correct,
        gather=probed_answers,
        may_lag=True,
        options=("threshold", "pseudo_targets", "ema"),
    ),
    "lmsi": Finisher(
        "fine-tuning on the model's own answers that agree with the majority (Huang et al.)",
        learn_majority,
        gather=voted_answers,
        by_question=False,
        options=(),
    ),
    "ttrl": Finisher(
        "GRPO with the majority's answer as the reward (Zuo et al.)",
        grpo(RewardedMethod(majority_reward)),
        gather=probed_answers,
        rate={"lora": LORA_RATE * 5e-7, "full": 5e-7},  # Neuron-OPSD App. A
        epochs=1,
        options=("penalty",),
    ),
    "intuitor": Finisher(
        "GRPO with self-certainty as the reward (Zhao et al.)",
        grpo(RewardedMethod(self_certainty_reward, asks_model=True)),
        gather=probed_answers,
        rate={"lora": LORA_RATE * 3e-6, "full": 3e-6},  # full: as published
        epochs=1,
        options=("penalty",),
    ),
    "opsa": Finisher(
        "suppression of the least likely tokens of the model's own answers (Ding and Zhang)",
        suppress,
        gather=probed_answers,
        rate={"lora": LORA_RATE * 1e-6, "full": 1e-6},  # full: as published
        options=("lowest",),
    ),
    "grpo": Finisher(
        "GRPO with a check against labels as the reward (Shao et al.)",
        grpo(RewardedMethod(checked_reward)),
        gather=probed_answers,
        needs_labels=True,
        rate={"lora": LORA_RATE * 1e-6, "full": 1e-6},  # full: as published
        epochs=1,
        options=("penalty",),
    ),
    "dapo": Finisher(
        "DAPO with a check against labels as the reward (Yu et al.)",
        grpo(RewardedMethod(checked_reward, shaped, dynamic=True, by_token=True)),
        gather=probed_answers,
        needs_labels=True,
        rate={"lora": LORA_RATE * 1e-6, "full": 1e-6},  # full: as published
        epochs=1,
        options=("penalty", "mask_truncated"),
    ),
}


def taken(measured: SetDiagnostics | Diagnostics) -> Finisher:
    """The method that `auto` takes; raises `BadInput` where it takes none."""
    if measured.taken is None:
        raise BadInput(
            "the diagnostics speak for no method, so auto trains none (diagnostics.json says why). "
            "Name a --method, or train the likeliest of them all the same with --force."
        )
    return method_of(measured.taken)


def method_of(name: str) -> Finisher:
    """The method of that row, or from outside; raises `BadInput` where there is none."""
    method = named.row(METHODS, name, "method")
    if isinstance(method, Finisher):
        return method
    first_line = (method.__doc__ or name).strip().partition("\n")[0]
    return Finisher(first_line.rstrip("."), method)
