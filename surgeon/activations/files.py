"""Recordings on disk: one safetensors file each, or the cache layout of the published NEX code."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from surgeon import lineage
from surgeon.activations.rows import Activations, Recording
from surgeon.errors import BadInput

FORMAT = "surgeon-recording-1"
UNIT_BITS = 16
UNITS = 1 << UNIT_BITS
RESERVED_LAYER = 255
"""The published code drops neurons of this layer."""
CACHE_FILES = {
    "rows/sample_row_ptr": "int64",
    "rows/row_ptr": "int64",
    "rows/token_row_ptr": "int64",
    "rows/keys": "uint32",
    "rows/w_sum": "float16",
    "base/row_ptr": "int64",
    "base/keys": "uint32",
    "base/w_sum": "float16",
}
"""The cache's arrays, each a file NAME.DTYPE of raw little-endian numbers."""


def save(path: str | Path, recording: Recording) -> None:
    """Write a recording as one safetensors file, under a temporary name until it is complete."""
    arrays = {
        **vars(recording.activations),
        "logprob_T": recording.logprob_T,
        "entropy_T": recording.entropy_T,
        "positive_N": recording.positive_N,
    }
    metadata = {"format": FORMAT, "kept_mass": repr(float(recording.kept_mass))}
    lineage.write_tensors(path, arrays, metadata)


def load(path: str | Path) -> Recording:
    """Read a recording back; raises BadInput for a file that is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is not a readable recording: {error}") from error
    expected = {*Activations.__dataclass_fields__, "logprob_T", "entropy_T"}
    positive_N = arrays.pop("positive_N", np.zeros(0, np.float32))
    if metadata.get("format") != FORMAT or set(arrays) != expected:
        raise BadInput(f"{path} is a safetensors file but not a recording ({FORMAT}).")
    activations = Activations(**{n: arrays[n] for n in Activations.__dataclass_fields__})
    kept = float(metadata["kept_mass"])
    return Recording(activations, arrays["logprob_T"], arrays["entropy_T"], kept, positive_N)


def write_nex_cache(directory: str | Path, recordings: Sequence[Activations], *, d_ff: int) -> None:
    """Write activations in the published NEX code's cache layout.

    Raw little-endian arrays under `rows/` and `base/` of `directory`; keys are (layer << 16) | unit
    in uint32 and masses float16 (larger ones than 65,504 are written as that). Raises BadInput for
    more than 65,536 units per layer or a layer beyond 254, which the layout can't hold.
    """
    if d_ff > UNITS:
        raise BadInput(
            f"found {d_ff} FFN units per layer, expected at most {UNITS}: the nex-cache layout "
            "can't hold this model. Keep the safetensors recordings instead."
        )
    highest = max((int(a.neuron_E.max(initial=0)) // d_ff for a in recordings), default=0)
    if highest >= RESERVED_LAYER:
        raise BadInput(
            f"found activations in layer {highest}, expected at most layer {RESERVED_LAYER - 1}: "
            "the nex-cache layout can't hold this model."
        )
    base = [_response_sums(a) for a in recordings]
    arrays = {
        "rows/sample_row_ptr": _pointer([len(a.tokens_R) for a in recordings]),
        "rows/row_ptr": _pointer(np.concatenate([np.diff(a.start_R1) for a in recordings] or [[]])),
        "rows/token_row_ptr": _pointer(np.concatenate([a.tokens_R for a in recordings] or [[]])),
        "rows/keys": _join([_cache_keys(a.neuron_E, d_ff) for a in recordings]),
        "rows/w_sum": _join([a.mass_E for a in recordings]),
        "base/row_ptr": _pointer([len(neuron) for neuron, _ in base]),
        "base/keys": _join([_cache_keys(neuron, d_ff) for neuron, _ in base]),
        "base/w_sum": _join([mass for _, mass in base]),
    }
    for name, dtype in CACHE_FILES.items():
        file = Path(directory) / f"{name}.{dtype}"
        file.parent.mkdir(parents=True, exist_ok=True)
        array = arrays[name]
        if dtype == "float16":
            # Beyond float16's range a mass would become infinite; below it, zero.
            array = np.clip(array, np.finfo(np.float16).smallest_subnormal, 65504)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_bytes(array.astype(np.dtype(dtype).newbyteorder("<")).tobytes())
        os.replace(temporary, file)


def read_nex_cache(directory: str | Path, *, d_ff: int) -> list[Activations]:
    """Read activations from the published NEX code's cache layout.

    As that code does, neurons of the reserved layer 255 are dropped and masses that aren't finite
    or positive count as 0. Raises BadInput for a missing file, arrays that contradict each other,
    or a unit beyond `d_ff`.
    """
    arrays = _cache_arrays(directory, "rows/")
    sample, row = arrays["rows/sample_row_ptr"], arrays["rows/row_ptr"]
    token, keys = arrays["rows/token_row_ptr"], arrays["rows/keys"]
    for name, pointer, end in (
        ("sample_row_ptr", sample, len(row) - 1),
        ("row_ptr", row, len(keys)),
        ("token_row_ptr", token, None),
    ):
        _require_pointer(f"{directory}/rows/{name}", pointer, end)
    if len(token) != len(row) or len(arrays["rows/w_sum"]) != len(keys):
        raise BadInput(
            f"{directory}/rows has {len(keys)} keys, {len(arrays['rows/w_sum'])} masses, "
            f"{len(row) - 1} rows and {len(token) - 1} token counts: they contradict each other."
        )
    neuron_E, mass_E, real_E = _cache_entries(directory, arrays, "rows", d_ff)
    found = []
    for first, last in pairwise(sample.tolist()):
        row_R = np.repeat(np.arange(last - first), np.diff(row[first : last + 1]))
        span = slice(int(row[first]), int(row[last]))
        real = real_E[span]
        row_E, part_E, kept_E = row_R[real], neuron_E[span][real], mass_E[span][real]
        order = np.lexsort((part_E, row_E))
        counts = np.bincount(row_E, minlength=last - first)
        tokens_R = np.diff(token[first : last + 1]).astype(np.int32)
        found.append(Activations(part_E[order], kept_E[order], _pointer(counts), tokens_R))
    return found


def read_response_sums(directory: str | Path, *, d_ff: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """b_k of NEX sec. 3.3 for each response of a cache, as the published code scores it: neurons
    (int64_K) and masses (float32_K), by float16 sums of their own. Raises BadInput as
    `read_nex_cache`."""
    arrays = _cache_arrays(directory, "base/")
    pointer = arrays["base/row_ptr"]
    _require_pointer(f"{directory}/base/row_ptr", pointer, len(arrays["base/keys"]))
    if len(arrays["base/w_sum"]) != len(arrays["base/keys"]):
        raise BadInput(f"{directory}/base has more keys than masses, or fewer.")
    neuron_E, mass_E, real_E = _cache_entries(directory, arrays, "base", d_ff)
    found = []
    for first, last in pairwise(pointer.tolist()):
        real = real_E[first:last] & (mass_E[first:last] > 0)
        found.append((neuron_E[first:last][real], mass_E[first:last][real]))
    return found


def nex_cache_shape(directory: str | Path) -> tuple[int, int]:
    """Layers and units per layer that a cache tells of: one more than its largest of both. Raises
    BadInput as `read_nex_cache`."""
    keys = np.concatenate([_cache_arrays(directory, kind, ("keys",))[f"{kind}keys"]
                           for kind in ("rows/", "base/")])  # fmt: skip
    layer_E = keys >> UNIT_BITS
    keys, layer_E = keys[layer_E != RESERVED_LAYER], layer_E[layer_E != RESERVED_LAYER]
    if not len(keys):
        raise BadInput(f"{directory} is a nex-cache without a single activation.")
    return int(layer_E.max()) + 1, int((keys & (UNITS - 1)).max()) + 1


def _cache_arrays(
    directory: str | Path, kind: str, only: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of a cache whose names begin with `kind`, by name."""
    arrays: dict[str, np.ndarray] = {}
    for name, dtype in CACHE_FILES.items():
        if not name.startswith(kind) or (only and name.removeprefix(kind) not in only):
            continue
        file = Path(directory) / f"{name}.{dtype}"
        if not file.is_file():
            raise BadInput(f"{file} does not exist: {directory} holds no nex-cache.")
        raw = np.dtype(dtype).newbyteorder("<")
        if file.stat().st_size % raw.itemsize:
            raise BadInput(f"{file} has {file.stat().st_size} bytes, no whole number of {dtype}.")
        arrays[name] = np.frombuffer(file.read_bytes(), raw).astype(dtype)
    return arrays


def _require_pointer(what: str, pointer: np.ndarray, end: int | None) -> None:
    bad = not len(pointer) or pointer[0] != 0 or (np.diff(pointer) < 0).any()
    if bad or (end is not None and pointer[-1] != end):
        raise BadInput(
            f"{what} contradicts the other arrays: not ascending from 0 to "
            f"{end if end is not None else 'the token count'}."
        )


def _cache_entries(
    directory: str | Path, arrays: dict[str, np.ndarray], kind: str, d_ff: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neurons (int64_E), masses (float32_E) and whether they count (bool_E)."""
    keys, mass_E = arrays[f"{kind}/keys"], arrays[f"{kind}/w_sum"].astype(np.float32)
    layer_E, unit_E = keys >> UNIT_BITS, keys & (UNITS - 1)
    real_E = layer_E != RESERVED_LAYER
    wide = unit_E[real_E].max(initial=0)
    if wide >= d_ff:
        raise BadInput(f"{directory} has unit {wide}, the model {d_ff} per layer: another model's.")
    mass_E = np.where(np.isfinite(mass_E), np.maximum(mass_E, 0), 0).astype(np.float32)
    return layer_E.astype(np.int64) * d_ff + unit_E, mass_E, real_E


def _pointer(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _cache_keys(neuron_E: np.ndarray, d_ff: int) -> np.ndarray:
    return (neuron_E // d_ff << UNIT_BITS) | (neuron_E % d_ff)


def _response_sums(activations: Activations) -> tuple[np.ndarray, np.ndarray]:
    neuron_K, inverse_E = np.unique(activations.neuron_E, return_inverse=True)
    return neuron_K, np.bincount(inverse_E, activations.mass_E, len(neuron_K))
