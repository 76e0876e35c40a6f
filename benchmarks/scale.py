"""A ranking on machines that aren't here: bytes moved, bottleneck and cost, by arithmetic and by a
simulation of the crew's own agenda.

    python -m benchmarks.scale [--case 70b-1000] [--price 2.5]

Arithmetic gives what a replica (some GPUs that hold one candidate by tensor parallelism) does in a
second, from the memory's bandwidth, the peak of its arithmetic and shares of both that are reached.
The simulation hands out the units of all candidates by `surgeon.workers`' own agenda to replicas
that load, draw, record and send, with answers of random lengths, and replicas that die. Every
assumption is a number in `Machine` and `Case`.
"""

# Shapes: none.

import argparse
import heapq
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from surgeon.workers.crew import LEAST, Agenda


class Machine(NamedTuple):
    """A node of eight H100 SXM and its network; shares are of what was reached elsewhere."""

    gpu_gb: float = 80
    bandwidth_tb: float = 3.35
    bandwidth_share: float = 0.6
    flops_t: float = 989
    flops_share: float = 0.4
    memory_share: float = 0.9
    load_gb_s: float = 5.0
    """Weights from a disk or the network, each replica."""
    mix_gb_s: float = 1.5
    """A virtual candidate: two endpoints read from the host's memory, mixed and copied."""
    link_gb_s: float = 1.25
    """Into the driver: 10 Gbit/s."""
    hours_between_deaths: float = 500
    """Of one replica."""


class Case(NamedTuple):
    """A ranking."""

    name: str
    candidates: int
    prompts: int
    samples: int = 3
    mean_tokens: float = 6000
    spread: float = 0.8
    """Of the logarithm of an answer's length."""
    longest: int = 32_768
    parameters_b: float = 70.6
    layers: int = 80
    d_ff: int = 28_672
    kv_bytes: int = 2 * 80 * 8 * 128 * 2
    """Keys and values of a token."""
    gpus: int = 4
    """Of a replica."""
    replicas: int = 16
    virtual: bool = False
    dense: bool = True
    """Whether every answer brings a float32 for each neuron (all its positive mass)."""


CASES = [
    Case("4b-19", 19, 100, parameters_b=4.0, layers=36, d_ff=9728,
         kv_bytes=2 * 36 * 8 * 128 * 2, gpus=1, replicas=8),
    Case("70b-19", 19, 100, replicas=2),
    Case("70b-1000", 1000, 100, replicas=64),
    Case("70b-1000-virtual", 1000, 100, replicas=64, virtual=True),
    Case("70b-1000-sparse", 1000, 100, replicas=64, dense=False),
    Case("70b-1000-512", 1000, 100, replicas=512),
    Case("70b-1000-1e6", 1000, 1_000_000, replicas=512),
]  # fmt: skip
SIMULATED = 400_000
"""Answers above which only the arithmetic is done."""
EVIDENCE = 1.0e6
"""Bytes of a reduced recording and its rows, without the dense part."""
TRACE_BYTES = 14
"""Bytes of a trace file per token: its id and its text."""


class Rates(NamedTuple):
    """What one replica does."""

    rows: int
    """Answers that its memory holds at once, of mean length."""
    tokens_s: float
    """Drawn by a full batch."""
    recorded_s: float
    """Tokens read back per second."""
    load_s: float
    answer_bytes: float
    """What is sent of an answer."""


def rates(case: Case, machine: Machine) -> Rates:
    """Arithmetic: a pass reads all weights and the keys and values of all rows."""
    weights = 2e9 * case.parameters_b
    room = machine.memory_share * machine.gpu_gb * 1e9 * case.gpus - weights
    if room <= 0:
        raise SystemExit(f"{case.name}: {case.gpus} GPUs don't hold the weights")
    context = case.mean_tokens / 2
    rows = max(1, min(256, int(room / (case.kv_bytes * case.mean_tokens))))
    bandwidth = machine.bandwidth_tb * 1e12 * machine.bandwidth_share * case.gpus
    pass_s = (weights + rows * context * case.kv_bytes) / bandwidth
    pass_s += 0.1e-3 * case.layers * (case.gpus > 1)  # two reductions a layer
    flops = machine.flops_t * 1e12 * machine.flops_share * case.gpus
    load = (
        2 * weights / 1e9 / machine.mix_gb_s if case.virtual else weights / 1e9 / machine.load_gb_s
    )
    dense = 4.0 * case.layers * case.d_ff if case.dense else 0.0
    return Rates(
        rows,
        rows / pass_s,
        flops / (2e9 * case.parameters_b),
        load,
        EVIDENCE + dense + TRACE_BYTES * case.mean_tokens,
    )


class Outcome(NamedTuple):
    """What a simulated ranking took."""

    hours: float
    busy: float
    """Share of the replicas' time in which they drew or recorded."""
    full: float
    """Share of a full batch's rows that were in use while answers were drawn."""
    loads: int
    lost_tokens: float
    deaths: int
    link: float
    """Share of the time in which the driver's link was busy; 1: it was the bottleneck."""


def simulate(case: Case, machine: Machine, seed: int = 0) -> Outcome:
    """Replicas take orders from the agenda until nothing is left."""
    rng = np.random.default_rng(seed)
    rate = rates(case, machine)
    units: dict[str, list[Hashable]] = {
        str(c): list(range(case.prompts * case.samples)) for c in range(case.candidates)
    }
    agenda = Agenda(units, LEAST)
    mean = np.log(case.mean_tokens) - case.spread**2 / 2
    loaded: dict[int, str | None] = dict.fromkeys(range(case.replicas))
    waiting = [(0.0, r) for r in range(case.replicas)]
    drawn = drawing = 0.0
    busy = lost = link_until = link_busy = end = 0.0
    loads = deaths = 0
    while agenda:
        now, r = heapq.heappop(waiting)
        group, chosen = agenda.next(loaded[r], case.replicas)
        assert group is not None
        load = rate.load_s if group != loaded[r] else 0.0
        loads, loaded[r] = loads + (load > 0), group
        tokens = np.minimum(rng.lognormal(mean, case.spread, len(chosen)), case.longest)
        # Rows are refilled as answers end; a row's pace is that of a full batch.
        rows = [0.0] * min(rate.rows, len(chosen))
        for n in tokens:
            heapq.heapreplace(rows, rows[0] + n)
        drawn, drawing = drawn + float(tokens.sum()), drawing + max(rows) * rate.rows
        work = max(rows) * rate.rows / rate.tokens_s + tokens.sum() / rate.recorded_s
        dies = rng.exponential(machine.hours_between_deaths * 3600)
        if dies < load + work:
            # What had ended is with the driver: half of the batch's tokens are lost.
            deaths += 1
            lost += len(rows) * case.mean_tokens / 2
            done = int(len(chosen) * max(0.0, dies - load) / work)
            agenda.back(group, set(chosen[done:]))
            loaded[r], busy = None, busy + max(0.0, dies - load)
            heapq.heappush(waiting, (now + dies + 120, r))
            continue
        sending = len(chosen) * rate.answer_bytes / (machine.link_gb_s * 1e9)
        link_until = max(link_until, now + load) + sending
        link_busy += sending
        end = max(end, now + load + work, link_until)
        busy += work
        heapq.heappush(waiting, (max(now + load + work, link_until - 3600), r))
    return Outcome(
        end / 3600,
        busy / (end * case.replicas),
        drawn / drawing,
        loads,
        int(lost),
        deaths,
        min(1.0, link_busy / end),
    )


def main() -> None:
    """Print a table of the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=[case.name for case in CASES])
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU hour, dollars")
    asked = parser.parse_args()
    machine = Machine()
    print(
        f"{'case':<18}{'GPUs':>6}{'rows':>6}{'drawn/s':>9}{'read/s':>9}{'load s':>8}"
        f"{'hours':>10}{'busy':>7}{'full':>7}{'loads':>7}{'dead':>6}{'link':>6}{'sent TB':>10}"
        f"{'loaded TB':>11}{'dollars':>13}"
    )
    for case in CASES:
        if asked.case not in (None, case.name):
            continue
        rate, gpus = rates(case, machine), case.gpus * case.replicas
        answers = case.candidates * case.prompts * case.samples
        sent = answers * rate.answer_bytes / 1e12
        if answers <= SIMULATED:
            took = simulate(case, machine)
            hours, busy, full, loads, _, dead, link = took
        else:
            seconds = case.mean_tokens * (1 / rate.tokens_s + 1 / rate.recorded_s)
            hours = max(answers * seconds / case.replicas, sent * 1e3 / machine.link_gb_s) / 3600
            busy, full, loads, dead = 1.0, 1.0, case.candidates, 0
            link = sent * 1e3 / machine.link_gb_s / 3600 / hours
        loaded = loads * 2 * case.parameters_b * (2 if case.virtual else 1) / 1e3
        print(
            f"{case.name:<18}{gpus:>6}{rate.rows:>6}{rate.tokens_s:>9,.0f}{rate.recorded_s:>9,.0f}"
            f"{rate.load_s:>8.0f}{hours:>10,.1f}{busy:>7.2f}{full:>7.2f}{loads:>7,}{dead:>6}{link:>6.2f}"
            f"{sent:>10,.2f}{loaded:>11,.1f}{hours * gpus * asked.price:>13,.0f}"
        )


if __name__ == "__main__":
    main()
