"""Which neurons move: those of the highest score, a mask of one's own, or a control for either.

Everything here is arrays in, arrays out, but for the function that reads a mask.
"""

# Shapes: L layers, F units per layer, C chosen units of one layer.

from pathlib import Path

import numpy as np

from surgeon.errors import BadInput
from surgeon.neuron_weights import NeuronWeights, names_of, read_metadata, require_shape
from surgeon.settings.transplant import UnitSelection


def read_mask(file: Path, n_layers: int, d_ff: int) -> np.ndarray:
    """`mask_LF` (bool) of a safetensors file; raises `BadInput`."""
    from safetensors.numpy import load_file

    if not file.is_file():
        raise BadInput(f"{file} does not exist. A mask is a safetensors file with mask_LF (bool).")
    read_metadata(file)
    arrays = load_file(file)
    if "mask_LF" not in arrays or arrays["mask_LF"].dtype != np.bool_:
        raise BadInput(f"{file} holds no mask_LF of type bool, only {names_of(arrays)}.")
    require_shape(file, "mask_LF", arrays["mask_LF"], n_layers, d_ff)
    return arrays["mask_LF"]


def parse_layers(text: str | None, n_layers: int) -> np.ndarray:
    """(L,) bool from `8-23` or `0,3,5-7` (both ends included); None means all layers."""
    layer_L = np.ones(n_layers, bool)
    if text is None:
        return layer_L
    layer_L[:] = False
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise BadInput(f"found layers {text!r}, expected numbers and ranges such as 0,3,8-23.")
        begin, end = int(first), int(last or first)
        if begin > end or end >= n_layers:
            raise BadInput(
                f"found layers {part.strip()!r}; the models have layers 0 to {n_layers - 1}."
            )
        layer_L[begin : end + 1] = True
    return layer_L


def highest_units(
    score_LF: np.ndarray,
    among_LF: np.ndarray,
    tie_LF: np.ndarray,
    top_fraction: float | None = None,
    top_units: int | None = None,
    budget: str = "global",
) -> np.ndarray:
    """(L, F) bool: of the units `among_LF` that share (rounded) or number with the highest score.

    Counted over all layers together (`budget="global"`) or within each (`"layer"`). Equal scores
    go to the higher `tie_LF`, then to the lower key.
    """
    if top_fraction is None and top_units is None:
        return among_LF.copy()
    order = np.lexsort((-tie_LF.ravel(), -score_LF.ravel()))
    order = order[among_LF.ravel()[order]]  # lexsort is stable: equal units stay in key order
    layer_of = order // among_LF.shape[1]
    groups = [order] if budget == "global" else [order[layer_of == n] for n in range(len(among_LF))]
    kept_LF = np.zeros_like(among_LF)
    for group in groups:
        kept = top_units if top_fraction is None else round(top_fraction * len(group))
        kept_LF.ravel()[group[:kept]] = True
    return kept_LF


def random_units(chosen_LF: np.ndarray, among_LF: np.ndarray, seed: int) -> np.ndarray:
    """(L, F) bool: in each layer as many units as chosen there, drawn from `among_LF`.

    A layer's draw depends on the seed and the layer only. Chosen units may be drawn again. Raises
    `BadInput` when a layer has fewer units to draw from.
    """
    drawn_LF = np.zeros_like(chosen_LF)
    for layer, (chosen_F, among_F) in enumerate(zip(chosen_LF, among_LF, strict=True)):
        pool, count = np.flatnonzero(among_F), int(chosen_F.sum())
        if count > len(pool):
            raise BadInput(
                f"layer {layer} has {len(pool)} active units to draw from, and {count} were "
                "chosen. Use --control random, or choose fewer with --top-fraction."
            )
        rng = np.random.default_rng([seed, layer])
        drawn_LF[layer, rng.choice(pool, count, replace=False)] = True
    return drawn_LF


def random_mass_units(
    chosen_LF: np.ndarray, among_LF: np.ndarray, mass_LF: np.ndarray, seed: int
) -> np.ndarray:
    """(L, F) bool: in each layer units drawn from `among_LF` until they have the mass of the chosen
    ones.

    In seeded order, a unit is taken where it brings the total nearer to that mass. Chosen units may
    be drawn again.
    """
    drawn_LF = np.zeros_like(chosen_LF)
    for layer, (chosen_F, among_F) in enumerate(zip(chosen_LF, among_LF, strict=True)):
        mass_F = mass_LF[layer].astype(np.float64)
        missing = mass_F[chosen_F].sum()
        rng = np.random.default_rng([seed, layer])
        for unit in rng.permutation(np.flatnonzero(among_F)):
            left = missing - mass_F[unit]
            if abs(left) < abs(missing):
                drawn_LF[layer, unit], missing = True, left
    return drawn_LF


def mass_matched_units(
    chosen_LF: np.ndarray, other_LF: np.ndarray, mass_LF: np.ndarray, seed: int
) -> np.ndarray:
    """(L, F) bool: the chosen units, cut down to the activation mass of those of the other sign.

    Layer by layer. Where the chosen units together weigh no more than the others, all stay: then
    the other sign is the heavier one and is cut in its own run, so that both runs move equal mass.
    Else the units that stay are found in two passes. First each unit of the other sign, in seeded
    order, takes the free chosen unit of the nearest mass, if that brings the total nearer to the
    other sign's. Then, while a free unit brings the total nearer still, the free unit nearest to
    the missing mass is added. Ties go to the lower unit.
    """
    kept_LF = np.zeros_like(chosen_LF)
    for layer, (chosen_F, other_F) in enumerate(zip(chosen_LF, other_LF, strict=True)):
        mass_F = mass_LF[layer].astype(np.float64)
        wanted = mass_F[other_F].sum()
        if mass_F[chosen_F].sum() <= wanted:
            kept_LF[layer] = chosen_F
            continue
        rng = np.random.default_rng([seed, layer])
        free = np.flatnonzero(chosen_F)
        missing = wanted
        for target in rng.permutation(mass_F[other_F]):
            missing, free = _take(kept_LF[layer], mass_F, free, target, missing)
        while len(free):
            before = len(free)
            missing, free = _take(kept_LF[layer], mass_F, free, missing, missing)
            if len(free) == before:
                break
    return kept_LF


def _take(
    kept_F: np.ndarray, mass_F: np.ndarray, free_C: np.ndarray, target: float, missing: float
) -> tuple[float, np.ndarray]:
    """Keep the free unit of mass nearest to `target` if less is missing then; what is left."""
    if not len(free_C):
        return missing, free_C
    nearest = int(np.abs(mass_F[free_C] - target).argmin())
    left = missing - float(mass_F[free_C[nearest]])
    if abs(left) >= abs(missing):
        return missing, free_C
    kept_F[free_C[nearest]] = True
    return left, np.delete(free_C, nearest)


def choose(
    selection: UnitSelection,
    weights: NeuronWeights | None,
    mask_LF: np.ndarray | None,
    score_LF: np.ndarray | None,
    exists_LF: np.ndarray,
    seed: int = 0,
) -> tuple[np.ndarray, list[str]]:
    """(L, F) bool, the units that move, and what the user should know about the choice.

    Those of the mask, or else the ones with a score above the threshold, which is 0 but for signs.
    """
    layer_L = parse_layers(selection.layers, len(exists_LF))

    def strongest(score_LF: np.ndarray) -> np.ndarray:
        assert weights is not None
        among_LF = (score_LF > selection.threshold) & layer_L[:, None] & exists_LF
        most = (selection.top_fraction, selection.top_units, selection.budget)
        return highest_units(score_LF, among_LF, weights.credit_LF, *most)

    if mask_LF is not None:
        if (mask_LF & ~exists_LF).any():
            raise BadInput("the mask names units beyond the end of a narrower layer.")
        chosen_LF = mask_LF & layer_L[:, None]
    else:
        assert score_LF is not None
        chosen_LF = strongest(score_LF)
    warnings = []
    if selection.top_units is not None and selection.budget == "global":
        found = int(chosen_LF.sum())
        if found < selection.top_units:
            warnings.append(f"only {found} units qualify, of {selection.top_units} asked for.")
    if selection.control == "random":
        chosen_LF = random_units(chosen_LF, exists_LF, seed)
    elif selection.control is not None:
        assert weights is not None
        mass_LF = mass_of(weights, f"--control {selection.control}")
        active_LF = exists_LF & (mass_LF > 0)
        if selection.control == "random-active":
            chosen_LF = random_units(chosen_LF, active_LF, seed)
        elif selection.control == "random-mass":
            chosen_LF = random_mass_units(chosen_LF, active_LF, mass_LF, seed)
        else:
            assert score_LF is not None
            other = "redundant" if selection.select == "effective" else "effective"
            kept_LF = mass_matched_units(chosen_LF, strongest(-score_LF), mass_LF, seed)
            if chosen_LF.any() and np.array_equal(kept_LF, chosen_LF):
                warnings.append(
                    f"mass-matched kept all: the {selection.select} units are the lighter sign in "
                    f"every layer. Select the {other} ones to have those trimmed."
                )
            chosen_LF = kept_LF
    if not chosen_LF.any():
        warnings.append("no unit was chosen: the result has the recipient's weights.")
    return chosen_LF, warnings


def mass_of(weights: NeuronWeights, asked_by: str) -> np.ndarray:
    """Activation mass (L, F); raises `BadInput` for weights without it."""
    if weights.mass_LF is None:
        raise BadInput(f"{weights.path} has no mass_LF; {asked_by} needs it.")
    return weights.mass_LF
