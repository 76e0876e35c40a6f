"""Answers read by several workers, each with its own copy of the checkpoint."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from surgeon.families import Subject
from surgeon.scoring.reader import Asked, Values, read_values
from surgeon.traces import Trace
from surgeon.traces.records import Key
from surgeon.workers import Bench, Crew


class ReadingOrder(NamedTuple):
    """Answers that a worker is to read."""

    subject: Subject
    asked: Asked
    traces: list[Trace]


def read(bench: Bench, order: ReadingOrder) -> Iterator[tuple[Key, Values, bool]]:
    """A worker's job: what the checkpoint says of each answer."""
    model, _ = bench.take(order.subject)
    values = read_values(model, order.traces, order.asked)
    for trace, row in zip(order.traces, values, strict=True):
        yield trace.key, row, True


def read_by(
    crew: Crew, orders: Mapping[str, ReadingOrder], *, what: str = "read"
) -> Iterator[tuple[str, Key, Values]]:
    """Yield (order, answer, what its checkpoint says of it) as the workers read."""
    by_key = {name: {t.key: t for t in order.traces} for name, order in orders.items()}
    for result in crew.run(
        {name: list(keys) for name, keys in by_key.items()},
        read,
        lambda name, keys: orders[name]._replace(traces=[by_key[name][key] for key in keys]),
        what=what,
        total=sum(map(len, by_key.values())),
    ):
        yield result.group, result.unit, result.value
