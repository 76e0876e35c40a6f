"""How many threads torch uses."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Run torch operations on so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch operations on one thread: where the work is already shared out, or too small to be,
    its threads would only wait for each other."""
    with on_threads(1):
        yield
