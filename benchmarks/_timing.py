"""What every benchmark measures with."""

import resource
import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Shortest of some runs, in CPU seconds: other processes take no part in it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def seconds_in_turns(
    *calls: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Shortest time of each call after a first; they take turns, so that a busy moment hits all
    alike. Wall time, or another clock's such as `time.process_time`."""
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = clock()
            call()
            if repeat:
                best[i] = min(best[i], clock() - start)
    return best


def peak_mib() -> float:
    """The largest memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
