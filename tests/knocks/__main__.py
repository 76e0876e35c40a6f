"""`python tests/knocks PART [--full]`: see docs/reliability.md."""

import argparse
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SHARE = {"kills": 40, "fuzz": 100_000, "server_s": 60}
FULL = {"kills": 200, "fuzz": 1_000_000, "server_s": 600}
"""How much of each is done by `make knocks`, and by `make knocks-full`."""


def main() -> None:
    """Do the parts that are named, or all; status 1 where there was a fault."""
    parser = argparse.ArgumentParser("knocks", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["fuzz", "kills", "faults", "server", "pages"])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/knocks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="most seconds of the fuzzing")
    parser.add_argument("--only", help="fuzz only targets with this in their names")
    given = parser.parse_args()
    out = (given.out / ("full" if given.full else "share")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.update(
        XDG_CACHE_HOME=str(out / "cache"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    amount, good = FULL if given.full else SHARE, True
    for part in given.parts:
        start = time.monotonic()
        good = _do(part, out, amount, given) and good
        print(f"{part}: {time.monotonic() - start:.0f} s\n", flush=True)
    sys.exit(0 if good else 1)


def _do(part: str, out: Path, amount: dict[str, int], given: argparse.Namespace) -> bool:
    if part == "fuzz":
        import fuzz

        seconds = given.seconds or (6 * 3600 if given.full else 300)
        return fuzz.run(out, amount["fuzz"], seconds, given.seed, given.only)
    if part == "kills":
        import kills

        return kills.run(out, amount["kills"], given.seed)
    if part == "faults":
        import faults

        many = 30 if given.full else 4
        times = dict.fromkeys(faults.KINDS, many)
        return faults.run(out, given.seed, times)
    if part == "server":
        import load

        return load.run(out, amount["server_s"], given.seed)
    import pages

    return pages.run(out)


if __name__ == "__main__":
    main()
