"""Run every benchmark, each in a process of its own so that peak memories don't mix.

`python -m benchmarks` runs all of them; `python -m benchmarks record merge_sweep` some.
"""

import subprocess
import sys
from pathlib import Path

from surgeon.lineage import versions

APART = {"evidence", "families", "gpu", "scale"}
"""Made by targets of their own: `make families`, `make gpu`, `make scale`."""


def main() -> int:
    """Exit status 1 when a benchmark failed to run (a missed target is a result, not a failure)."""
    here = Path(__file__).parent
    known = sorted(
        f.stem for f in here.glob("*.py") if not f.stem.startswith("_") and f.stem not in APART
    )
    chosen = sys.argv[1:] or known
    unknown = set(chosen) - set(known)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
        return 2
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    failed = []
    for name in chosen:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed to run: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
