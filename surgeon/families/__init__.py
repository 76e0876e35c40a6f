"""Families of merged checkpoints: what `family.json` says, and its candidates made real on disk.

subjects         what every verb takes: checkpoints, families spread into their candidates
description      the family, its candidates, and the file that says so
merge_config     mergekit's configs
merge_methods    the merge methods that are computed here, a row each
mixing           two checkpoints mixed chunk by chunk, bit-equal to mergekit
cosines          the angle between two checkpoints, tensor by tensor
candidate_files  the files of written candidates

Verbs that take checkpoints need the names below; `merge`, which makes families, takes the modules.
The one model in memory that becomes each candidate in turn is `surgeon.live.families`.
"""

from surgeon.families import (
    candidate_files,
    cosines,
    description,
    merge_config,
    merge_methods,
    mixing,
)
from surgeon.families.description import Candidate, Choices, Family, label
from surgeon.families.subjects import (
    Subject,
    as_subject,
    open_checkpoint,
    subjects,
    write_out,
)

__all__ = [
    "Candidate",
    "Choices",
    "Family",
    "Subject",
    "as_subject",
    "candidate_files",
    "cosines",
    "description",
    "label",
    "merge_config",
    "merge_methods",
    "mixing",
    "open_checkpoint",
    "subjects",
    "write_out",
]
