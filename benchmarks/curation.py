"""`surgeon curate` on 100,000 recorded responses: from the mass that a ranking kept to selections.

Target: at least 2,000 responses a second, and memory that doesn't grow with their masses.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks._timing import peak_mib
from surgeon import evidence_file, lineage
from surgeon.scoring.reader import good_masses
from surgeon.scoring.rules import RULES, order, within

RESPONSES, NEURONS, USED = 100_000, 30_000, 1_000


def write_masses(file: Path) -> None:
    """The part of a ranking's evidence that curation reads, as `evidence_file` lays it out."""
    draw = np.random.default_rng(0)
    start_N1 = np.arange(RESPONSES + 1, dtype=np.int64) * USED
    one = np.sort(draw.permutation(NEURONS)[:USED]).astype(np.int32)
    arrays = {
        "mass_N1": start_N1,
        "mass.neuron_K": np.tile(one, RESPONSES),
        "mass.mass_K": draw.random(RESPONSES * USED, dtype=np.float32),
    }
    names = [[f"p{n}", 0] for n in range(RESPONSES)]
    header = json.dumps({"responses": names})
    lineage.write_tensors(file, arrays, {"format": evidence_file.FORMAT, "kept": header})


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / evidence_file.FILE
        # In a process of its own, so that this one's peak is curation's.
        code = f"from benchmarks.curation import *; write_masses(Path({str(file)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
        weight_N = np.random.default_rng(1).uniform(-1, 1, NEURONS).astype(np.float32)
        before, begun = peak_mib(), time.process_time()
        rows = [
            {"prompt_id": key[0], "sample": key[1], "nex": score}
            for key, score in good_masses(file, weight_N)
        ]
        tokens_N = np.full(RESPONSES, 2000)
        order_N = order("nex", RULES["nex"], rows, seed=0, worst=False)
        kept = within(order_N, tokens_N, int(0.2 * tokens_N.sum())).sum()
        seconds, size = time.process_time() - begun, file.stat().st_size / 2**20
    print(
        f"{RESPONSES:,} responses with {USED:,} neurons each, {size:.0f} MiB of mass: "
        f"{RESPONSES / seconds:,.0f} a second (target 2,000), {kept:,} kept; peak memory "
        f"{before:.0f} -> {peak_mib():.0f} MiB (target: below the masses' size)"
    )


if __name__ == "__main__":
    main()
