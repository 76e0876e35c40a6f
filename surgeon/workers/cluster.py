"""Workers as actors of a Ray cluster: Ray finds the nodes and places them; objects carry the rest.

An actor carries out one order at a time on a thread of its own, and hands over what it has made
whenever the driver asks. So results travel as objects from any node, no file is shared, and nothing
here differs for a driver outside the cluster (`ray://HOST:PORT`).
"""

import os
import pickle
import queue
import sys
import threading
import time
from importlib import import_module
from typing import Any

from surgeon import progress
from surgeon.errors import BadInput
from surgeon.workers.bench import Job, Lines, Start, hello, set_up, work
from surgeon.workers.roster import Roster, spread

WAIT_S = 20.0
"""How long an actor that has nothing to say lets the driver wait for its answer."""
PATIENCE_S = 60.0
"""After so long without any worker, the driver says what it waits for."""


class Actor:
    """A worker's process on a node, as Ray calls it."""

    def __init__(self, start: Start, driver_node: str):
        self.messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        context = import_module("ray").get_runtime_context()
        node = context.get_node_id()
        near = node == driver_node
        if start.device == "auto" and context.get_accelerator_ids().get("GPU"):
            # Ray shows an actor its own GPUs only.
            gpus = len(context.get_accelerator_ids()["GPU"])
            start = start._replace(device=spread("cuda", gpus)[0])
        elif start.device == "auto":
            start = start._replace(device="cpu")
        self.bench = set_up(start._replace(near=near))
        sys.stderr = Lines(self.messages.put)  # pyright: ignore[reportAttributeAccessIssue]
        # Several nodes of a cluster may have one host's name.
        kind, info = hello(self.bench)
        self.messages.put((kind, info | {"host": f"{info['host']}-{node[:6]}"}))

    def begin(self, packed: bytes) -> None:
        """Begin an order, on a thread of its own."""
        job, order = pickle.loads(packed)
        threading.Thread(
            target=work, args=(self.bench, job, order, self.messages.put), daemon=True
        ).start()

    def collect(self, wait_s: float) -> list[tuple[Any, ...]]:
        """What was made since the last call; waits for the first of it."""
        found: list[tuple[Any, ...]] = []
        try:
            found.append(self.messages.get(timeout=wait_s))
            while True:
                found.append(self.messages.get_nowait())
        except queue.Empty:
            return found


class Actors:
    """The actors of a run, as many as the cluster has room for."""

    def __init__(self, roster: Roster):
        self.ray: Any = import_module("ray")
        self.roster = roster
        self.ours = not self.ray.is_initialized()
        if self.ours:
            self._connect()
        self.start = Start(roster.device, roster.dtype, 0, tuple(sys.path), os.getcwd())
        resources = self.ray.cluster_resources()
        by_gpu = resources.get("GPU", 0) >= roster.gpus and roster.device in ("auto", "cuda")
        self.needs = {"num_gpus": roster.gpus, "num_cpus": 1} if by_gpu else {"num_cpus": 1}
        room = int(resources["GPU"] // roster.gpus) if by_gpu else int(resources.get("CPU", 1))
        self.actors: dict[int, Any] = {}
        self.asked: dict[Any, int] = {}
        """What an actor was asked for -> its number."""
        self.started = 0
        self.since = time.monotonic()
        for _ in range(min(room, roster.most or room)):
            self._begin()
        if not self.actors:
            raise BadInput(f"the cluster has no room for a worker that needs {self.needs}.")

    def _connect(self) -> None:
        """Join the cluster; `auto` is the one that this machine belongs to, else a new one here."""
        address, quiet = self.roster.address, {"log_to_driver": False, "logging_level": "error"}
        try:
            self.ray.init(address=address, **quiet)
        except ConnectionError as error:
            if address != "auto":
                raise BadInput(
                    f"no Ray cluster answers at {address} ({error}). Start one: ray start --head."
                ) from error
            progress.say("This machine belongs to no Ray cluster: one is started on it.")
            self.ray.init(**quiet)

    def _begin(self) -> None:
        remote = self.ray.remote(**self.needs, scheduling_strategy="SPREAD")(Actor)
        driver_node = self.ray.get_runtime_context().get_node_id()
        self.actors[self.started] = remote.remote(self.start, driver_node)
        self._ask(self.started)
        self.started += 1

    def _ask(self, number: int) -> None:
        self.asked[self.actors[number].collect.remote(WAIT_S)] = number

    def send(self, hand: int, job: Job, order: Any) -> None:
        """Give an idle worker an order."""
        self.actors[hand].begin.remote(pickle.dumps((job, order)))

    def receive(self) -> list[tuple[int, tuple[Any, ...]]]:
        """Wait for messages. In the place of a worker that died another is asked for: Ray starts it
        where there is room, now or when a node joins."""
        ready, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=PATIENCE_S)
        if not ready and self.since is not None:
            progress.say(
                f"Waiting for Ray to place {len(self.actors)} workers that need {self.needs}."
            )
        found: list[tuple[int, tuple[Any, ...]]] = []
        for reference in ready:
            number = self.asked.pop(reference)
            try:
                messages = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                del self.actors[number]
                why = " ".join(str(error).split())[:300]
                found.append((number, ("gone", why)))
                if not isinstance(error, self.ray.exceptions.RayTaskError):
                    self._begin()
                continue
            self._ask(number)
            found += [(number, message) for message in messages]
        return found

    def expected(self) -> int:
        """Workers that live or are asked for."""
        return len(self.actors)

    def close(self) -> None:
        """End the actors, and the connection where it was made here."""
        for actor in self.actors.values():
            self.ray.kill(actor)
        self.actors.clear()
        if self.ours:
            self.ray.shutdown()
