"""Families of merged checkpoints: what `family.json` says, and its candidates made real.

`mixing` has the arithmetic (bit-equal to mergekit), `description` the file, `writing` the streaming
writer, `live` the one model in memory that becomes each candidate in turn.
"""

from surgeon.families.description import (
    COSINES,
    FILE,
    Candidate,
    Choices,
    Family,
    candidate_digest,
    label,
    mergekit_yaml,
    plain_merge,
    plain_mix,
    write_cosines,
    write_family,
)
from surgeon.families.live import (
    Materialiser,
    Subject,
    config_differences,
    live,
    open_checkpoint,
    smoke_test,
    subjects,
    write_out,
)
from surgeon.families.mixing import Mix, coefficients, cosine, falls_back, mixed, units
from surgeon.families.writing import (
    begin_candidate,
    candidate_bytes,
    family_cosines,
    write_side_files,
    write_weights,
)

__all__ = [
    "COSINES",
    "FILE",
    "Candidate",
    "Choices",
    "Family",
    "Materialiser",
    "Mix",
    "Subject",
    "begin_candidate",
    "candidate_bytes",
    "candidate_digest",
    "coefficients",
    "config_differences",
    "cosine",
    "falls_back",
    "family_cosines",
    "label",
    "live",
    "mergekit_yaml",
    "mixed",
    "open_checkpoint",
    "plain_merge",
    "plain_mix",
    "smoke_test",
    "subjects",
    "units",
    "write_cosines",
    "write_family",
    "write_out",
    "write_side_files",
    "write_weights",
]
