"""Many answers checked, those of slow or foreign checks in worker processes that can be killed."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import IO

from surgeon.answers.checks import CHECKS, CheckVerdict, parse_check
from surgeon.errors import BadInput

_EXIT_LIMIT_S = 10.0
"""Seconds a worker that has closed its output may take to end before it is killed."""
_START_LIMIT_S = 120.0
"""Seconds a worker may take to start and import; not counted against the limit of a pair."""


def check_many(
    pairs: Sequence[tuple[str | None, str]],
    how: str,
    *,
    timeout_s: float = 5.0,
    workers: int = 2,
) -> list[CheckVerdict]:
    """One verdict per (answer, gold), in order; no answer (None) is wrong.

    A check's fast function decides here. Its slow one, and `module:function`, run in `workers`
    fresh processes with a hard limit of `timeout_s` seconds of wall-clock time per pair: past it
    the process is killed and replaced, and the answer counts as wrong. Equal pairs are checked
    once. May be called from any thread; no process is left behind. Raises `BadInput` for an unknown
    check, and when the user's function raises.
    """
    check = parse_check(how)
    if timeout_s <= 0 or workers < 1:
        raise BadInput(f"found timeout_s={timeout_s}, workers={workers}; expected both above zero.")
    verdicts: dict[tuple[str, str], CheckVerdict] = {}
    waiting: list[tuple[str, str]] = []
    for answer, gold in dict.fromkeys(pairs):
        if answer is None:
            continue
        right = check.fast is not None and check.fast(answer, gold)
        if right or check.slow is None:
            verdicts[answer, gold] = CheckVerdict(right)
        else:
            waiting.append((answer, gold))
    if waiting:
        verdicts.update(_check_in_processes(waiting, how, timeout_s, min(workers, len(waiting))))
    return [
        CheckVerdict(False) if answer is None else verdicts[answer, gold] for answer, gold in pairs
    ]


def _check_in_processes(
    pairs: list[tuple[str, str]], how: str, timeout_s: float, workers: int
) -> dict[tuple[str, str], CheckVerdict]:
    todo = deque(pairs)
    verdicts: dict[tuple[str, str], CheckVerdict] = {}
    running = [_Worker(how, timeout_s) for _ in range(workers)]

    def drain(worker: _Worker) -> None:
        while todo:
            try:
                pair = todo.popleft()
            except IndexError:  # the other thread took the last one
                return
            verdicts[pair] = worker.check(*pair)

    with ThreadPoolExecutor(workers, thread_name_prefix="answer-check") as pool:
        try:
            done, _ = wait(
                [pool.submit(drain, worker) for worker in running], return_when=FIRST_EXCEPTION
            )
            for future in done:
                future.result()
        finally:
            # Whatever happened, Ctrl-C included: the threads end once their processes are gone.
            todo.clear()
            for worker in running:
                worker.close()
    return verdicts


class _Worker:
    """A fresh Python process that checks one pair at a time, killed when one takes too long."""

    def __init__(self, how: str, timeout_s: float):
        self.how = how
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[str] | None = None
        self.closed = False
        self.lock = threading.Lock()

    def check(self, answer: str, gold: str) -> CheckVerdict:
        if self.process is None:
            self._start()
        line, too_late = self._ask([answer, gold], self.timeout_s)
        exit_code = None if line and not too_late else self._end(0 if too_late else _EXIT_LIMIT_S)
        if line:
            return CheckVerdict(json.loads(line))
        # An uncaught Python exception ends a process with status 1, its traceback is on stderr.
        # Checks of this package catch their own: what is left there is want of memory, and only one
        # pair's.
        if exit_code == 1 and self.how not in CHECKS:
            raise BadInput(
                f"the answer check {self.how} raised an exception (shown above) on the answer "
                f"{answer!r} with the gold answer {gold!r}. Return True or False for any answer."
            )
        return CheckVerdict(False, timed_out=too_late, died=not too_late)

    def close(self) -> None:
        """End the process, whatever it is doing; a `check` waiting for it in a thread returns."""
        with self.lock:
            self.closed = True
        self._end()

    def _start(self) -> None:
        # Where this package lies comes last: it may have been imported from a place since left.
        home = str(Path(__file__).parents[2])
        path = json.dumps([*(place or os.getcwd() for place in sys.path), home])
        with self.lock:
            if self.closed:
                return
            # A new interpreter and not a fork: the caller may hold threads, locks, an accelerator.
            # -c and not multiprocessing, which would import the caller's main script again. A
            # session of its own, so that what the check itself starts can be killed with it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,
            )
        line, _ = self._ask([self.how, self.timeout_s], _START_LIMIT_S)
        if not line and not self.closed:
            self._end()
            raise RuntimeError(f"the process for the answer check {self.how} did not start")

    def _ask(self, message: list[str | float], limit_s: float) -> tuple[str, bool]:
        """The reply of the process ("" when it ended), and whether it was killed for being late."""
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            return "", False
        too_late = threading.Event()

        def kill() -> None:
            too_late.set()
            _kill(process)

        timer = threading.Timer(limit_s, kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        timer.cancel()
        timer.join()  # from here on `too_late` can't change
        return (line if line.endswith("\n") else ""), too_late.is_set()

    def _end(self, grace_s: float = 0) -> int | None:
        """Kill and reap the process, after `grace_s` for one that is ending; its exit code."""
        with self.lock:
            process, self.process = self.process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
        _kill(process)
        exit_code = process.wait()
        for pipe in (process.stdin, process.stdout):
            # What was still buffered for a dead process can't be delivered, and need not be.
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        return exit_code


def _kill(process: "subprocess.Popen[str]") -> None:
    # Not process.kill(): that spares what the check has started.
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


_BOOT = (
    "import json, sys; places = json.loads(sys.argv[1]); "
    "sys.path[:] = places + [place for place in sys.path if place not in places]; "
    "from surgeon.answers.check_worker import serve; serve()"
)


def serve() -> None:
    """The loop of a worker process: one line of JSON in, one out, until the input ends."""
    replies = _private_stdout()
    how, timeout_s = json.loads(sys.stdin.readline())
    check = parse_check(how)
    compare = check.slow
    assert compare is not None, f"{how} needs no process"
    if check.needs:  # what a library says of each answer it can't parse
        logging.getLogger(check.needs).setLevel(logging.CRITICAL)
    if check.warm:
        compare(*check.warm)
    if check.memory and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (check.memory, check.memory))
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        _self_destruct_after(timeout_s + 2)
        correct = bool(compare(answer, gold))
        _self_destruct_after(0)
        print(json.dumps(correct), file=replies, flush=True)


def _private_stdout() -> IO[str]:
    # A check that prints must not write into the replies: from now on descriptor 1 is stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _self_destruct_after(seconds: float) -> None:
    """Have the kernel end this process: the last resort if the parent, whose job it is, is dead."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
