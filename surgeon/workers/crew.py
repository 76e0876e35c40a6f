"""The driver of several workers: who does what next, and what is lost with a worker."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from surgeon import __version__, progress
from surgeon.errors import BadInput
from surgeon.workers.bench import Job
from surgeon.workers.roster import Roster

LEAST = 16
"""Units of an order, where so many are left: a batch is the better used the more rows it has."""
MOST_DEATHS = 3
"""Workers that may die at the same group before the run gives up."""


class Gone(RuntimeError):
    """A worker that never began, or work at which worker after worker died."""


class Result(NamedTuple):
    """What a worker made."""

    group: str
    unit: Any
    value: Any
    done: bool
    """Whether it was the unit's last."""


class Transport(Protocol):
    """Starts workers, and carries messages to and from them."""

    def send(self, hand: int, job: Job, order: Any) -> None:
        """Give an idle worker an order."""
        ...

    def receive(self) -> list[tuple[int, tuple[Any, ...]]]:
        """Wait for messages: those of `bench`, and ("gone", why) for a worker that died. Another
        one may be started in its place; it says that it is ready, under a number of its own."""
        ...

    def expected(self) -> int:
        """Workers that live or are being started."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class Hand:
    """A worker, as the driver knows it."""

    def __init__(self, number: int, info: Mapping[str, Any]):
        self.number = number
        self.name = f"{info['host']} {info['device']}"
        self.group: str | None = None
        """What it has loaded."""
        self.left: set[Hashable] | None = None
        """The units in flight; None while it is idle."""
        self.given = 0


class Crew:
    """Workers that live as long as the block: `with Crew(roster) as crew`."""

    def __init__(self, roster: Roster, transport: Transport | None = None):
        self.roster, self.transport = roster, transport
        self.hands: dict[int, Hand] = {}
        self.said: set[str] = set()

    def __enter__(self) -> "Crew":
        if self.transport is None:
            # Not at the top: each knows the crew's messages.
            from surgeon.workers import cluster, pipes

            remote = self.roster.address is not None
            self.transport = cluster.Actors(self.roster) if remote else pipes.Pipes(self.roster)
        return self

    def __exit__(self, *error: object) -> None:
        if self.transport is not None:
            self.transport.close()

    def run(
        self,
        groups: Mapping[str, Sequence[Hashable]],
        job: Job,
        order: Callable[[str, list[Any]], Any],
        *,
        what: str,
        total: int | None = None,
        least: int = LEAST,
    ) -> Iterator[Result]:
        """Let the workers do all units of all groups; yields their results as they come.

        A group is what has to be loaded for its units. `order(group, units)` is what the job gets
        for these units: it is asked when they are handed out, so it can hold what was done of them
        by a worker that died. `total` results are expected, for the progress bar. Raises
        `BadInput` where a worker does.
        """
        if self.transport is None:
            raise ValueError("a crew works inside its block")
        agenda = Agenda(groups, least)
        deaths: dict[str, int] = {}
        with progress.board(what, total) as board:
            while True:
                for hand in [hand for hand in self.hands.values() if hand.left is None]:
                    group, units = agenda.next(hand.group, self.transport.expected())
                    if group is None:
                        continue
                    hand.group, hand.left, hand.given = group, set(units), len(units)
                    board.row(hand.number, f"{hand.name}  {group}", 0, hand.given)
                    self.transport.send(hand.number, job, order(group, units))
                if not agenda and all(hand.left is None for hand in self.hands.values()):
                    return
                for number, message in self.transport.receive():
                    if message[0] == "gone":
                        self._lost(number, message[1], agenda, deaths, board)
                    else:
                        yield from self._heard(number, message, board)

    def _heard(
        self, number: int, message: tuple[Any, ...], board: progress.Board
    ) -> Iterator[Result]:
        kind = message[0]
        if kind == "ready":
            _require_same(message[1])
            self.hands[number] = Hand(number, message[1])
            return
        if kind == "said":
            if message[1] not in self.said:
                self.said.add(message[1])
                board.say(message[1])
            return
        hand = self.hands[number]
        if kind == "refused":
            raise BadInput(message[1])
        if kind == "failed":
            raise RuntimeError(f"{hand.name} failed at {hand.group}:\n{message[1]}")
        if hand.left is None or hand.group is None:
            raise RuntimeError(f"{hand.name} sent {kind} without an order")
        if kind == "end":
            if hand.left:
                raise RuntimeError(f"{hand.name} left out {len(hand.left)} units of {hand.group}")
            hand.left = None
            board.row(number, f"{hand.name}  idle", 0, 0)
            return
        _, unit, value, done = message
        if done:
            hand.left.discard(unit)
        board.advance(number, hand.given - len(hand.left))
        yield Result(hand.group, unit, value, done)

    def _lost(
        self,
        number: int,
        why: str,
        agenda: "Agenda",
        deaths: dict[str, int],
        board: progress.Board,
    ) -> None:
        """A worker died: its units in flight are for others."""
        hand = self.hands.pop(number, None)
        if hand is None:
            if not self.hands and not self.transport_expects():
                raise Gone(f"no worker could be started: {why}")
            board.say(f"A worker could not be started: {why}")
            return
        board.row(number, f"{hand.name}  gone", 0, 0)
        if hand.left is None or hand.group is None:
            board.say(f"Worker {hand.name} is gone ({why}).")
            return
        agenda.back(hand.group, hand.left)
        deaths[hand.group] = deaths.get(hand.group, 0) + 1
        if deaths[hand.group] >= MOST_DEATHS:
            raise Gone(
                f"{deaths[hand.group]} workers died at {hand.group}, the last one: {why}. What is "
                "done is kept: the same command resumes, with fewer workers or a smaller --batch."
            )
        board.say(f"Worker {hand.name} is gone at {hand.group} ({why}): others do its work.")
        if not self.hands and not self.transport_expects():
            raise Gone(f"no worker is left, the last one: {why}. The same command resumes.")

    def transport_expects(self) -> int:
        """Workers that live or are being started."""
        return 0 if self.transport is None else self.transport.expected()


class Agenda:
    """What is to be done: units by group, in the groups' order."""

    def __init__(self, groups: Mapping[str, Sequence[Hashable]], least: int):
        self.waiting = {group: deque(units) for group, units in groups.items() if units}
        self.place = {group: {u: n for n, u in enumerate(units)} for group, units in groups.items()}
        self.taken: dict[str, int] = {}
        """Orders given out, by group."""
        self.least = least

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def next(self, loaded: str | None, workers: int) -> tuple[str | None, list[Hashable]]:
        """The next group and units for a worker that has a group loaded: its own group, else one
        that nobody began, else the one with most left. Orders shrink towards the end, so that the
        workers end together."""
        if not self.waiting:
            return None, []
        fresh = next((group for group in self.waiting if group not in self.taken), None)
        longest = max(self.waiting, key=lambda group: len(self.waiting[group]))
        group = loaded if loaded in self.waiting else fresh or longest
        assert group is not None
        units = self.waiting[group]
        left = sum(map(len, self.waiting.values()))
        n = max(self.least, -(-left // (2 * max(1, workers))))
        if len(units) - n < self.least:
            n = len(units) if len(units) <= n or workers < 2 else n
        chosen = [units.popleft() for _ in range(min(n, len(units)))]
        self.taken[group] = self.taken.get(group, 0) + 1
        if not units:
            del self.waiting[group]
        return group, chosen

    def back(self, group: str, units: set[Hashable]) -> None:
        """Units that were lost come first."""
        place = self.place[group]
        again = sorted(units, key=place.__getitem__)
        self.waiting[group] = deque([*again, *self.waiting.get(group, ())])


def _require_same(info: Mapping[str, Any]) -> None:
    if info["version"] != __version__:
        raise BadInput(
            f"{info['host']} has surgeon {info['version']}, and this machine {__version__}. "
            "Install the same on every node."
        )
