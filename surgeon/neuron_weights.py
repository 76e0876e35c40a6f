"""Neuron weights on disk, `weights.safetensors`: where they are, whose, and what they say."""

# Shapes: L layers, F units per layer.

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import artifact
from surgeon.checkpoint import split_member
from surgeon.errors import BadInput
from surgeon.ranking import Ranking

WEIGHTS = "weights.safetensors"


class NeuronWeights(NamedTuple):
    """What `rank` found out about the neurons of one checkpoint (NEX Eq. 11)."""

    path: Path
    digest: str
    """Digest of the checkpoint they were computed on; empty when the file does not say."""
    checkpoint: str
    """What that checkpoint was called."""
    weight_LF: np.ndarray
    """float32 in [-1, 1]; above 0 effective, below 0 redundant."""
    credit_LF: np.ndarray
    """float64 >= 0: evidence for the weight's sign, which breaks ties between equal weights."""
    mass_LF: np.ndarray | None
    """float32 >= 0: mean activation mass on the mini-set, of the activations that the ranking's
    top-k kept."""
    positive_LF: np.ndarray | None = None
    """float32 >= 0: all of it, kept or not; None in weights of a version that did not record it."""

    @property
    def whose(self) -> str:
        """What they were computed on, and where they lie."""
        in_ranking = self.path.parent.parent.name == "candidates"
        name = self.path.parent.name if in_ranking else self.checkpoint or "a checkpoint"
        return f"{name} ({self.path})"


def find_weights(spec: str | Path, digests: Collection[str] = ()) -> Path:
    """The weights file that a file, a ranking's directory or `RANK_DIR#candidate` names.

    In a ranking's directory that is the candidate computed on a checkpoint of `digests` where there
    is one, else the one that the ranking picked. Raises `BadInput`.
    """
    place, member = split_member(spec)
    path = Path(place).expanduser()
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    members = {p.parent.name: p for p in sorted(path.glob(f"candidates/*/{WEIGHTS}"))}
    if member:
        if member in members:
            return members[member]
    else:
        for file in members.values():
            if read_metadata(file).get("digest") in digests:
                return file
        if members and (path / "ranking.json").is_file():
            return members[_picked(artifact.read(Ranking, path), path)]
    if members:
        raise BadInput(
            f"{path} holds no weights of {member or 'the donor'}; it has those of "
            f"{', '.join(members)}. Name one: {path}#{next(iter(members))}"
        )
    raise BadInput(
        f"{path} has no neuron weights. Make them with: surgeon rank CHECKPOINT --mini-set "
        f"PROMPTS --out {path}"
    )


def _picked(ranking: Ranking, path: Path) -> str:
    """The candidate that a ranking picked; raises `BadInput` where it picked none."""
    if ranking.pick is None and len(ranking.candidates) > 1:
        raise BadInput(
            f"found no candidate of {path} that is the checkpoint asked for, and none that the "
            f"ranking picked: name whose weights to take, {path}#{ranking.best.name} for example."
        )
    return ranking.best.name


def recorded_top_k(file: Path) -> int | None:
    """Activations kept per token by the ranking that a weights file lies in; None where no ranking
    is around it, or it doesn't say."""
    directory = file.parent.parent.parent
    if file.parent.parent.name != "candidates" or not (directory / "ranking.json").is_file():
        return None
    settings = artifact.read(Ranking, directory).settings
    by_candidate = settings.get("top_k_by_candidate")
    own = by_candidate.get(file.parent.name) if isinstance(by_candidate, dict) else None
    found = settings.get("top_k") if own is None else own
    return found if isinstance(found, int) else None


def read_metadata(file: Path) -> dict[str, str]:
    """The free-form part of a safetensors header; raises `BadInput` for another kind of file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stream:
            return stream.metadata() or {}
    except SafetensorError as error:
        raise BadInput(f"{file} is not a safetensors file ({error}).") from error


def read_weights(file: Path, n_layers: int, d_ff: int) -> NeuronWeights:
    """Neuron weights for a model of that shape; raises `BadInput` for another shape or content."""
    from safetensors.numpy import load_file

    metadata = read_metadata(file)
    arrays = load_file(file)
    if "weight_LF" not in arrays:
        raise BadInput(f"{file} holds no neuron weights (weight_LF), only {names_of(arrays)}.")
    for name in {
        "weight_LF",
        "effective_LF",
        "redundant_LF",
        "mass_LF",
        "positive_LF",
    } & arrays.keys():
        require_shape(file, name, arrays[name], n_layers, d_ff)
        if not np.isfinite(arrays[name]).all():
            raise BadInput(f"{file} holds values in {name} that are not finite numbers.")
    weight_LF = arrays["weight_LF"].astype(np.float32)
    if np.abs(weight_LF).max(initial=0) > 1:
        raise BadInput(f"{file} holds weights outside [-1, 1]; neuron weights are a tanh.")
    nothing = np.zeros_like(weight_LF)
    credit_LF = np.where(
        weight_LF >= 0, arrays.get("effective_LF", nothing), arrays.get("redundant_LF", nothing)
    )
    return NeuronWeights(
        file,
        metadata.get("digest", ""),
        metadata.get("checkpoint", ""),
        weight_LF,
        credit_LF.astype(np.float64),
        arrays.get("mass_LF"),
        arrays.get("positive_LF"),
    )


def names_of(arrays: dict[str, np.ndarray]) -> str:
    """What a file holds instead, in words."""
    return ", ".join(f"{k} ({v.dtype})" for k, v in sorted(arrays.items())) or "nothing"


def require_shape(file: Path, name: str, array: np.ndarray, n_layers: int, d_ff: int) -> None:
    """Raise `BadInput` where a tensor isn't for a model of that shape."""
    if array.shape != (n_layers, d_ff):
        raise BadInput(
            f"{file} holds {name} of shape {list(array.shape)}; the models have {n_layers} layers "
            f"of {d_ff} FFN units. It belongs to another model."
        )
