"""Training: what is tuned, a slow teacher, and a loop that can be killed and continued exactly.

tuning.py      LoRA or full weights; the teacher, an average of the student
student.py     the model on one process or several, sequences and their losses
loop.py        `fit`: batches from a generator, steps, records, warnings
state.py       what is saved, and brought back
writing.py     what is left at the end: a checkpoint or an adapter
"""

from surgeon.training.loop import Batch, Guards, Journal, Loss, Schedule, fit
from surgeon.training.state import METRICS
from surgeon.training.student import (
    PARALLEL,
    Sequences,
    Student,
    chunked_nll,
    is_sharded,
    response_states,
    sequences,
    unembedding,
)
from surgeon.training.tuning import (
    AveragedChange,
    AveragedWeights,
    Teacher,
    Tuning,
    folded,
    trainable,
    tune,
)
from surgeon.training.writing import all_weights, write_adapter, write_full, write_merged

__all__ = [
    "METRICS",
    "PARALLEL",
    "AveragedChange",
    "AveragedWeights",
    "Batch",
    "Guards",
    "Journal",
    "Loss",
    "Schedule",
    "Sequences",
    "Student",
    "Teacher",
    "Tuning",
    "all_weights",
    "chunked_nll",
    "fit",
    "folded",
    "is_sharded",
    "response_states",
    "sequences",
    "trainable",
    "tune",
    "unembedding",
    "write_adapter",
    "write_full",
    "write_merged",
]
