"""Workers as processes of this machine: each a fresh interpreter at the other end of a socket."""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from surgeon.workers.bench import Job, Lines, Start, hello, set_up, work
from surgeon.workers.roster import Roster, threads

TAIL = 400
"""Characters of a dead worker's last words that are told."""
MOST_STARTS = 8
"""Workers that are started in the place of dead ones."""


class Process(NamedTuple):
    """A process, the pipe to it, and what it wrote where no message could be sent."""

    process: subprocess.Popen[bytes]
    connection: Connection
    words: Any
    start: Start


class Pipes:
    """Worker processes, one per device of a roster."""

    def __init__(self, roster: Roster):
        n = threads(len(roster.devices))
        here = (tuple(sys.path), os.getcwd())
        self.workers: dict[int, Process] = {}
        self.started = 0
        for device in roster.devices:
            self._begin(Start(device, roster.dtype, n, *here))

    def _begin(self, start: Start) -> None:
        ours, theirs = socket.socketpair()
        words = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker lives
        code = f"from surgeon.workers.pipes import main; main({theirs.fileno()})"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL, stdout=words, stderr=words, pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in start.path)},
        )  # fmt: skip
        theirs.close()
        connection = Connection(ours.detach())
        self.workers[self.started] = Process(process, connection, words, start)
        self.started += 1
        connection.send(start)

    def send(self, hand: int, job: Job, order: Any) -> None:
        """Give an idle worker an order; of one that died `receive` tells."""
        try:
            self.workers[hand].connection.send((job, order))
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> list[tuple[int, tuple[Any, ...]]]:
        """Wait for messages; a worker that died is started again, but for one that never began."""
        found: list[tuple[int, tuple[Any, ...]]] = []
        hands = {worker.connection: hand for hand, worker in self.workers.items()}
        for connection in wait(list(hands)):
            hand = hands[connection]  # pyright: ignore[reportArgumentType]
            try:
                message = connection.recv()  # pyright: ignore
            except (EOFError, OSError):
                message = ("gone", self._end(hand))
            found.append((hand, message))
        return found

    def _end(self, hand: int) -> str:
        """Bury a dead worker and start another; why it died."""
        worker = self.workers.pop(hand)
        worker.connection.close()
        status = worker.process.wait()
        worker.words.seek(0)
        text = worker.words.read().decode(errors="replace").strip()[-TAIL:]
        worker.words.close()
        why = f"exit status {status}"
        if status < 0:
            name = signal.Signals(-status).name
            why = f"{name}: out of memory?" if name == "SIGKILL" else name
        if self.started < len(self.workers) + 1 + MOST_STARTS and status < 0:
            self._begin(worker.start)
        return f"{why}; {text}" if text else why

    def expected(self) -> int:
        """Workers that live or are being started."""
        return len(self.workers)

    def close(self) -> None:
        """End the workers: their pipes end, and what is in flight with them."""
        for worker in self.workers.values():
            worker.connection.close()
        for worker in self.workers.values():
            try:
                worker.process.wait(2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.words.close()
        self.workers.clear()


def main(descriptor: int) -> None:
    """A worker's process, at its end of the socket."""
    # Ctrl-C goes to the whole group: the driver says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    lock, orders = threading.Lock(), queue.SimpleQueue[Any]()

    def send(message: tuple[Any, ...]) -> None:
        with lock:
            try:
                connection.send(message)
            except OSError:
                os._exit(0)

    def listen() -> None:
        """Take orders; without a driver there is nothing left to do."""
        while True:
            try:
                orders.put(connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)

    start: Start = connection.recv()
    bench = set_up(start)
    threading.Thread(target=listen, daemon=True).start()
    words, sys.stderr = sys.stderr, Lines(send)  # pyright: ignore[reportAttributeAccessIssue]
    send(hello(bench))
    while True:
        try:
            # Here, not where it is received: what it names may have to be imported.
            job, order = pickle.loads(orders.get())
            work(bench, job, order, send)
        except Exception:
            sys.stderr = words
            raise
