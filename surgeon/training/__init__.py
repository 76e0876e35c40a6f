"""Training: what is tuned, a slow teacher, and a loop that can be killed and continued exactly.

tuning.py      LoRA or full weights; the teacher, an average of the student
processes.py   one process or several: how they start, which one writes
student.py     the model on them
sequences.py   token sequences, the loss of their tokens, and how a step shares them out
loop.py        `fit`: batches from a generator, steps, records, warnings
state.py       what is saved, and brought back
writing.py     what is left at the end: a checkpoint or an adapter
"""

from surgeon.settings.training import Schedule, Tuning
from surgeon.training.loop import Batch, Guards, Journal, Loss, fit
from surgeon.training.sequences import (
    Sequences,
    Targets,
    chunked_nll,
    draw,
    grouped,
    nll_loss,
    require_plain_logits,
    response_states,
    sequences,
    share_of,
    targets,
    token_nll,
    unembedding,
)
from surgeon.training.state import METRICS, History
from surgeon.training.student import Student, is_sharded
from surgeon.training.tuning import (
    AveragedChange,
    AveragedWeights,
    Teacher,
    folded,
    trainable,
    tune,
)
from surgeon.training.writing import Base, write_result

__all__ = [
    "METRICS",
    "AveragedChange",
    "AveragedWeights",
    "Base",
    "Batch",
    "Guards",
    "History",
    "Journal",
    "Loss",
    "Schedule",
    "Sequences",
    "Student",
    "Targets",
    "Teacher",
    "Tuning",
    "chunked_nll",
    "draw",
    "fit",
    "folded",
    "grouped",
    "is_sharded",
    "nll_loss",
    "require_plain_logits",
    "response_states",
    "sequences",
    "share_of",
    "targets",
    "token_nll",
    "trainable",
    "tune",
    "unembedding",
    "write_result",
]
