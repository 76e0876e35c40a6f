"""The published NEX core and this package on the same caches of many responses.

    git clone https://github.com/anonymous-research-artifacts/nex CORE
    python -m benchmarks.nex_core CORE            # compare, on seeds that grow
    python -m benchmarks.nex_core CORE --write    # tests/data/nex_core.npz

The core is run, nothing of it is copied. The caches are made here from seeds: responses that
recruit neurons in bursts, and odd ones (few neurons, equal masses, rows of any length, rows without
entries, responses of no or few rows). `--write` keeps one of each with what the core says of it.
"""

import importlib
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from surgeon import nex
from surgeon.activations import Activations, read_nex_cache, write_nex_cache
from surgeon.activations.files import CACHE_FILES, read_response_sums

D_FF = 300
FIXTURE = Path(__file__).parents[1] / "tests" / "data" / "nex_core.npz"
Rows = list[dict[int, float]]


def recording(rows: Rows, tokens: list[int]) -> Activations:
    """A recording of these rows."""
    keys = [sorted(row) for row in rows]
    return Activations(
        np.array([k for row in keys for k in row], np.int64),
        np.array([rows[r][k] for r, row in enumerate(keys) for k in row], np.float32),
        np.cumsum([0, *map(len, keys)]).astype(np.int64),
        np.array(tokens, np.int32),
    )


def bursts(rng: np.random.Generator) -> Activations:
    """Rows that recruit neurons in bursts, which later rows use again more or less."""
    rows: Rows = []
    seen, recent, reuse, explores, left = 6, np.arange(6), 0.5, True, 4
    n_rows = int(rng.integers(20, 60))
    for row in range(n_rows):
        if left == 0:
            explores, left, reuse = not explores, int(rng.integers(1, 8)), rng.random()
            recent = recent[:0] if explores else recent
        left -= 1
        fresh = np.arange(seen, seen + rng.poisson((12 if explores else 1) * (0.4 + 4 / (1 + row))))
        seen, recent = seen + len(fresh), np.append(recent, fresh)
        keys = {*fresh, *rng.integers(0, seen, 8), *recent[rng.random(len(recent)) < reuse]}
        rows.append({int(k): float(rng.gamma(1.0) + 1e-2) for k in keys})
    return recording(rows, [32] * (n_rows - 1) + [int(rng.integers(1, 33))])


def odd(rng: np.random.Generator) -> Activations:
    """Rows of any kind: few neurons, equal masses, no entries, any number of tokens."""
    kind, n_rows, rows = rng.integers(4), int(rng.integers(0, 40)), []
    for row in range(n_rows):
        n = int(rng.integers(0 if kind == 0 else 1, 8))
        keys = rng.integers(0, 30 if kind < 2 else 100 + 5 * row, n)
        rows.append({int(k): float(rng.choice([0.5, 1, 2]) if kind == 1 else rng.gamma(1) + 0.01)
                     for k in keys})  # fmt: skip
    return recording(rows, rng.integers(1, 33, n_rows).tolist())


KINDS = {"bursts": bursts, "odd": odd}


def ours(cache: Path, readings: nex.Readings = nex.DEFAULT) -> np.ndarray:
    """float64, the Good-Mass Fraction of every response of a cache; nan for an empty one."""
    rows = [acts.without_empty_rows() for acts in read_nex_cache(cache, d_ff=D_FF)]
    sums = read_response_sums(cache, d_ff=D_FF)
    n_neurons = 1 + max(int(neuron_K.max(initial=0)) for neuron_K, _ in sums)
    evidences = [nex.credit(acts, readings) for acts in rows]
    weight_N = nex.weights(*nex.accumulate(evidences, n_neurons))
    scores = [nex.good_mass_fraction(*response, weight_N) for response in sums]
    return np.array([nex.counted(s.score, s.mass == 0) for s in scores])


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("core", type=Path, help="the published repository")
    parser.add_argument("--write", action="store_true", help="write tests/data/nex_core.npz")
    parser.add_argument("--seeds", type=int, default=20)
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.core))
    core = importlib.import_module("nex_core")

    kept: dict[str, np.ndarray] = {}
    for kind, make in KINDS.items():
        worst, responses, moved = 0.0, 0, 0.0
        for seed in range(1 if asked.write else asked.seeds):
            rng = np.random.default_rng(seed)
            made = [make(rng) for _ in range(int(rng.integers(16, 24)))]
            with tempfile.TemporaryDirectory() as directory:
                cache = Path(directory)
                write_nex_cache(cache, made, d_ff=D_FF)
                theirs = core.score_responses(cache, core.learn_nex_weights(cache))
                mine = ours(cache)
                if asked.write:
                    for name, dtype in CACHE_FILES.items():
                        kept[f"{kind}/{name}"] = np.fromfile(cache / f"{name}.{dtype}", dtype)
                    kept[f"{kind}/score"] = theirs
            assert (np.isnan(mine) == np.isnan(theirs)).all()
            worst = max(worst, float(np.nanmax(np.abs(mine - theirs), initial=0)))
            responses += len(made)
            moved = max(moved, float(np.nanstd(theirs)))
        print(f"{kind}: {responses} responses, largest difference {worst:.2g} "
              f"(scores spread by {moved:.2g})")  # fmt: skip
    if asked.write:
        np.savez_compressed(FIXTURE, **kept)  # pyright: ignore[reportArgumentType]
        print(f"{FIXTURE}: {FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
