"""Asking a judge about many traces: what was said already isn't asked again, what it takes is said
first, and nothing that was said is lost.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from surgeon.builtin.judge import Finding
from surgeon.endpoint import Endpoint
from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.trigger.artifacts import say
from surgeon.trigger.endpoint import in_parallel
from surgeon.trigger.judges import Judge, Verdict
from surgeon.watch.spans import append_line

FILE = "verdicts.jsonl"


class Unit(NamedTuple):
    """One question to the judge: a level of one trace."""

    prompt_id: str
    sample: int
    level: str
    question: str
    steps: Sequence[str]

    @property
    def key(self) -> tuple[str, int, str]:
        return self.prompt_id, self.sample, self.level


class Prices(NamedTuple):
    """Money per million tokens, in any currency; None where it isn't known."""

    tokens_in: float | None
    tokens_out: float | None

    def of(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost."""
        if self.tokens_in is None or self.tokens_out is None:
            return None
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


def estimate(
    what: str, endpoint: Endpoint, counts: Sequence[tuple[int, int]], prices: Prices
) -> str:
    """What requests of about so many tokens in and out will take, in words."""
    tokens_in, tokens_out = sum(c[0] for c in counts), sum(c[1] for c in counts)
    money = prices.of(tokens_in, tokens_out)
    return (
        f"{what}: {len(counts)} requests to {endpoint.model} at {endpoint.url}, about "
        f"{tokens_in:,} tokens in and {tokens_out:,} out"
        + ("" if money is None else f", about {money:.2f} at the prices given")
        + " (the endpoint's own thinking not counted)."
    )


class Docket:
    """The verdicts of a run, on disk as they come."""

    def __init__(self, work: Path, judge: Judge, *, parallel: int, prices: Prices):
        self.file, self.judge, self.parallel, self.prices = work / FILE, judge, parallel, prices
        self.verdicts = read_verdicts(self.file)

    def judge_all(self, units: Sequence[Unit], what: str) -> None:
        """Ask about every unit that has no verdict yet; raises `BadInput` as the judge does."""
        missing = [unit for unit in units if unit.key not in self.verdicts]
        for unit in missing:
            if not unit.steps:
                self._note(unit, Verdict([]))
        missing = [unit for unit in missing if unit.steps]
        if not missing:
            return
        endpoint = self.judge.endpoint
        if endpoint is not None:
            say(self.estimate(missing, what))
        with bar(what, len(missing)) as advance:
            if endpoint is None:
                for unit in missing:
                    self._note(unit, self._ask(unit))
                    advance()
                return
            for unit, verdict in in_parallel(endpoint, missing, self._ask, self.parallel):
                self._note(unit, verdict)
                advance()

    def _ask(self, unit: Unit) -> Verdict:
        try:
            return self.judge(unit.level, unit.question, unit.steps)
        except BadInput as error:
            which = f"prompt {unit.prompt_id!r}, sample {unit.sample}, {unit.level}"
            raise BadInput(f"{which}: {error}") from error

    def estimate(self, units: Sequence[Unit], what: str) -> str:
        """What asking will take, in words."""
        assert self.judge.endpoint is not None
        counts = [self.judge.expected(u.level, u.question, u.steps) for u in units]
        return estimate(what, self.judge.endpoint, counts, self.prices)

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that the endpoint has counted so far."""
        return (
            sum(verdict.tokens_in for verdict in self.verdicts.values()),
            sum(verdict.tokens_out for verdict in self.verdicts.values()),
        )

    def _note(self, unit: Unit, verdict: Verdict) -> None:
        row = {
            "prompt_id": unit.prompt_id,
            "sample": unit.sample,
            "level": unit.level,
            "findings": [finding._asdict() for finding in verdict.findings],
            "tokens_in": verdict.tokens_in,
            "tokens_out": verdict.tokens_out,
        }
        append_line(self.file, row)
        self.verdicts[unit.key] = verdict


def read_verdicts(file: Path) -> dict[tuple[str, int, str], Verdict]:
    """The verdicts on disk; a last line that was cut short is left out."""
    found = {}
    if not file.is_file():
        return found
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                continue
            raise BadInput(f"{file}:{number} is damaged. Remove the line.") from error
        findings = [Finding(**finding) for finding in row["findings"]]
        key = (row["prompt_id"], row["sample"], row["level"])
        found[key] = Verdict(findings, row["tokens_in"], row["tokens_out"])
    return found
