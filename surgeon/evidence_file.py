"""What a ranking keeps of each response: `candidates/NAME/evidence.safetensors`.

    kept = evidence_file.read("ranking/candidates/slerp-0.5")
    for response in kept.responses:
        response.evidence        cycles, phases, and what they say of neurons (NEX Eq. 1-10)
        response.mass_K          b_k of sec. 3.3
        response.activations     the sparse rows, where `kept.rows`

From the rows every reading of `NexReadings` can be applied again without a model. `recorded_again`
names what they don't hold: R5 (neurons kept per token), the threshold tau of sec. A.3, and rows
that aren't whole multiples of those kept.

Layout: one safetensors file; arrays of all responses stand one after another, and `*_N1` says where
each response begins. Its header holds the readings, the settings of the recording and the names of
the responses, as JSON.
"""

# Shapes: N responses, N1 responses + 1, R rows and E (row, neuron) entries of all of them,
# R1 rows + 1, K neurons of a response.

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import lineage, nex
from surgeon.activations import Activations
from surgeon.checkpoint import read_header
from surgeon.errors import BadInput

FILE = "evidence.safetensors"
FORMAT = "surgeon-evidence-1"
RECORDED_AGAIN = {
    "top_k": "R5, neurons kept per token",
    "tau": "the threshold that an activation has to pass (sec. A.3)",
}
"""What no kept evidence answers, as the rows hold sums of what was kept."""


class KeptResponse(NamedTuple):
    """One response of a candidate."""

    prompt_id: str
    sample: int
    tokens_R: np.ndarray
    """int32, tokens in each row."""
    entropy_R: np.ndarray
    """float64, mean next-token entropy of each row, nats."""
    evidence: nex.Evidence
    """Under the readings of the ranking."""
    neuron_K: np.ndarray
    """int64, ascending: the neurons it used."""
    mass_K: np.ndarray
    """float32, their mass over the response."""
    activations: Activations | None
    """Its rows; None where they were too large to keep, or weren't asked for."""


class CandidateEvidence(NamedTuple):
    """What is kept of one candidate's responses."""

    candidate: str
    digest: str
    """Of the checkpoint."""
    n_layers: int
    d_ff: int
    row_tokens: int
    top_k: int
    """Activations kept per token."""
    readings: Mapping[str, int | float | str]
    """Those of `evidence`, by name."""
    responses: tuple[KeptResponse, ...]
    """In the order of the candidate's scores.json."""

    @property
    def rows(self) -> bool:
        """Whether every response has its rows, so that other readings can be applied."""
        return all(response.activations is not None for response in self.responses)


def row_bytes(entries: int, rows: int) -> int:
    """Bytes that the (row, neuron) entries and rows of a response take in the file."""
    return 8 * entries + 8 * (rows + 1)


def response_bytes(response: KeptResponse) -> int:
    """Bytes that the rest of a response takes, at most."""
    arrays = [np.asarray(value) for value in response.evidence]
    arrays += [response.tokens_R, response.entropy_R, response.neuron_K, response.mass_K]
    return sum(array.nbytes for array in arrays)


def write(directory: str | Path, kept: CandidateEvidence) -> None:
    """Write evidence.safetensors; the rows only where all responses have theirs."""
    responses = kept.responses
    evidences = [r.evidence for r in responses]
    arrays = {
        "row_N1": pointer([len(r.tokens_R) for r in responses]),
        "tokens_R": joined([r.tokens_R for r in responses], np.int32),
        "entropy_R": joined([r.entropy_R for r in responses], np.float64),
        "mass_N1": pointer([len(r.neuron_K) for r in responses]),
        "mass.neuron_K": joined([r.neuron_K for r in responses], np.int32),
        "mass.mass_K": joined([r.mass_K for r in responses], np.float32),
        "evidence_N1": pointer([len(e.neuron_K) for e in evidences]),
    }
    for name in nex.Evidence._fields:
        values = [getattr(e, name) for e in evidences]
        if not per_response(name):
            dtype = {"neuron_K": np.int32, "explore_R": np.bool_}.get(name, np.float64)
            arrays[f"evidence.{name}"] = joined(values, dtype)
        else:
            arrays[f"evidence.{name}"] = np.array(values)
    rows = [r.activations for r in responses if r.activations is not None]
    if len(rows) == len(responses):
        arrays |= {
            "rows.start_R1": pointer(joined([np.diff(a.start_R1) for a in rows], np.int64)),
            "rows.neuron_E": joined([a.neuron_E for a in rows], np.int32),
            "rows.mass_E": joined([a.mass_E for a in rows], np.float32),
        }
    header = {
        name: value for name, value in kept._asdict().items() if name != "responses"
    } | {"responses": [[r.prompt_id, r.sample] for r in responses]}  # fmt: skip
    metadata = {"format": FORMAT, "kept": json.dumps(header)}
    lineage.write_tensors(Path(directory) / FILE, arrays, metadata)


def read(directory: str | Path, *, rows: bool = True) -> CandidateEvidence:
    """Read what `write` wrote, from a candidate's directory or the file itself; `rows=False` leaves
    the rows on disk. Raises `BadInput` where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(directory)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(
            f"{file} does not exist: the ranking kept no evidence of its responses. Rank again "
            "into another --out with a larger --evidence-mb (--traces takes the old ranking, so "
            "that nothing is sampled again)."
        )
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
            names = [name for name in opened.keys() if rows or not name.startswith("rows.")]  # noqa: SIM118
            arrays = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is no readable evidence: {error}") from error
    if metadata.get("format") != FORMAT:
        raise BadInput(f"{file} is a safetensors file but no evidence ({FORMAT}).")
    try:
        header = json.loads(metadata["kept"])
        names = header.pop("responses")
        kept = tuple(_response(arrays, n, *name) for n, name in enumerate(names))
        return CandidateEvidence(**header, responses=kept)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{file} is damaged evidence ({reason}). Rank again.") from error


class Mass(NamedTuple):
    """The mass of one response."""

    prompt_id: str
    sample: int
    neuron_K: np.ndarray
    mass_K: np.ndarray


def masses(file: str | Path, *, entries: int = 1 << 22) -> Iterator[Mass]:
    """The masses (b_k of NEX sec. 3.3) of all responses of a file, with about `entries` numbers in
    memory at a time, however many responses there are."""
    from safetensors import safe_open

    with safe_open(Path(file), framework="np") as opened:
        names = json.loads((opened.metadata() or {})["kept"])["responses"]
        start_N1 = opened.get_tensor("mass_N1")
    header = read_header(Path(file))
    # Not through a memory map, whose pages would stay as long as there is room.
    with open(file, "rb") as stream:

        def part(name: str, dtype: type[np.generic], begin: int, end: int) -> np.ndarray:
            stream.seek(header[name].start + begin * np.dtype(dtype).itemsize)
            return np.fromfile(stream, dtype, end - begin)

        first = 0
        while first < len(names):
            most = int(np.searchsorted(start_N1, start_N1[first] + entries, "right")) - 1
            last = min(len(names), max(first + 1, most))
            begin, end = int(start_N1[first]), int(start_N1[last])
            neuron_E = part("mass.neuron_K", np.int32, begin, end).astype(np.int64)
            mass_E = part("mass.mass_K", np.float32, begin, end)
            for n in range(first, last):
                own = slice(int(start_N1[n]) - begin, int(start_N1[n + 1]) - begin)
                prompt_id, sample = names[n]
                yield Mass(prompt_id, sample, neuron_E[own], mass_E[own])
            first = last


def require_rows(kept: CandidateEvidence, directory: str | Path) -> None:
    """Raise `BadInput` where the rows were not kept, which other readings need."""
    if not kept.rows:
        raise BadInput(
            f"{directory} has the evidence of {kept.candidate} but not its rows, which were larger "
            "than its share of --evidence-mb. Rank again into another --out with a larger one "
            "(--traces takes the old ranking, so that nothing is sampled again)."
        )


def recorded_again(name: str) -> str:
    """Why a setting can't be changed on kept evidence, and what to do, as a sentence."""
    return (
        f"{name} ({RECORDED_AGAIN[name]}) changes what is recorded: rank again into another --out "
        "(--traces takes the old ranking, so that nothing is sampled again)."
    )


def _response(
    arrays: Mapping[str, np.ndarray], n: int, prompt_id: str, sample: int
) -> KeptResponse:
    def span(name: str) -> slice:
        first, last = arrays[name][n : n + 2]
        return slice(int(first), int(last))

    rows, credited, used = span("row_N1"), span("evidence_N1"), span("mass_N1")
    activations = None
    if "rows.start_R1" in arrays:
        start_R1 = arrays["rows.start_R1"][rows.start : rows.stop + 1]
        entries = slice(int(start_R1[0]), int(start_R1[-1]))
        activations = Activations(
            arrays["rows.neuron_E"][entries].astype(np.int64),
            arrays["rows.mass_E"][entries],
            start_R1 - start_R1[0],
            arrays["tokens_R"][rows],
        )
    members = {}
    for name in nex.Evidence._fields:
        array = arrays[f"evidence.{name}"]
        if per_response(name):
            members[name] = array[n].item()
        else:
            members[name] = array[credited if name.endswith("_K") else rows]
    evidence = nex.Evidence(**members)
    return KeptResponse(
        prompt_id,
        sample,
        arrays["tokens_R"][rows],
        arrays["entropy_R"][rows],
        evidence._replace(neuron_K=evidence.neuron_K.astype(np.int64)),
        arrays["mass.neuron_K"][used].astype(np.int64),
        arrays["mass.mass_K"][used],
        activations,
    )


def per_response(field: str) -> bool:
    """Whether a field of `nex.Evidence` is a number; the others are arrays over its neurons (_K) or
    rows (_R)."""
    return not field.endswith(("_K", "_R"))


def pointer(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """int64_N1 from the number of entries of each: where each begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def joined(arrays: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """All arrays one after another."""
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)
