"""`surgeon distill`: train a checkpoint on its own answers, without labels (Neuron-OPSD).

Four stages, each a function, each with its artifact in the directory, each continued after a kill:

    1  answer_pool, pool_sets     zero-shot answers and contribution sets    rollouts/, sets/
    2  choose, sharpening_room    which questions to train on; is there      selection.json
                                  room for sharpening?
    3  find_contexts, entropies,  demonstrations for the teacher; is it      contexts.jsonl,
       teachers_gap               sharper than the student, and more often   teacher/,
                                  right?                                     diagnostics.json
    4  train                      the method                                 training/

traits.py           what a method needs
plan.py             every setting checked, before anything is computed or started
methods.py          the methods, a row each: what is gathered, and what trains; LMSI is here
pool.py             stage 1
evidence.py         stage 2; what a method gathers before training, and what is measured of it
demonstrations.py   stage 3
accuracy_gap.py     how much more often the teacher is right than the student
advice.py           which method the diagnostics speak for
diagnostics.py      the measurements in words
run.py              stage 4 as a method sees it
rollouts.py         a step's rollouts, by the decoder here or by an engine
pushing.py          vLLM as that engine, which is pushed the student
on_policy.py        stage 4 of Neuron-OPSD: teacher and loss
pseudo_solutions.py  stage 4 of U-OPSD
controls.py         other demonstrations than the nearest ones
suppression.py      stage 4 of OPSA, without a teacher
grpo.py             stage 4 of what learns from a reward: TTRL, Intuitor, GRPO, DAPO
validation.py       which step is kept, where labelled problems may say so
outcome.py          the adapter or checkpoint, its card, what is printed
"""

from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.distill.diagnostics import write_diagnostics
from surgeon.distill.methods import METHODS, Finisher, method_of, taken
from surgeon.distill.outcome import Distillation, show, write
from surgeon.distill.plan import AUTO, DistillPlan, decided, prepare
from surgeon.distill.pool import load
from surgeon.distill.run import TrainingRun, ready
from surgeon.settings import verb
from surgeon.settings.distill import DistillSettings
from surgeon.training import processes

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["METHODS", "Distillation", "Finisher", "TrainingRun", "distill", "show"]


@verb(DistillSettings)
def distill(settings: DistillSettings) -> Distillation:
    """Distil a checkpoint from its own answers to the unlabelled questions in `pool`.

    Writes a PEFT adapter to the directory `out`, or a checkpoint (`merge`, or `tuning="full"`).
    Answers in the pool are not read. A killed run resumes when it is called again, a finished one
    is not computed again. Runs under `torchrun` and `accelerate launch` too. Raises `BadInput`
    before anything is sampled.
    """
    plan = prepare(settings, method_of(settings.method))
    return processes.once(
        settings.out, Distillation, lambda accelerator, work: run_stages(plan, accelerator, work),
        run=plan.run, device=plan.device, tracker=settings.batches.tracker,
    )  # fmt: skip


def run_stages(plan: DistillPlan, accelerator: "Accelerator", work: Path) -> Distillation:
    """The four stages, and what they leave; continued from what `work` holds already."""
    method, live = method_of(plan.settings.method), load(plan, accelerator)
    evidence = method.gather(plan, live, work)
    if accelerator.is_main_process:
        write_diagnostics(plan, evidence.diagnostics, work)
    if plan.settings.method == AUTO:
        measured = evidence.diagnostics
        method = taken(measured)
        plan = decided(plan, method)
        if not method.needs_sets:  # else it is there already
            evidence = method.gather(plan, live, work)._replace(diagnostics=measured)
    run = ready(plan, evidence, live, work / "training")
    with processes.tracking(accelerator, plan.run.arguments):
        history = method.train(run)
    return write(plan, evidence, run.student, history, work)
