"""Traces: sampled answers, and the JSONL files that keep them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from surgeon import jsonl
from surgeon.errors import BadInput
from surgeon.traces.messages import kind_of, require_unicode
from surgeon.traces.prompts import Prompt

Key = tuple[str, int]
"""Which answer: prompt id and sample."""


@dataclass(frozen=True)
class Trace:
    """One sampled answer."""

    prompt_id: str
    sample: int
    """0, 1, ... among the answers to the same prompt."""
    prompt_token_ids: list[int]
    token_ids: list[int]
    """The generated tokens, with the stop token where one ended the answer."""
    text: str
    """The generated tokens as text, special tokens included, the final stop token left out."""
    finish_reason: Literal["stop", "length"]

    @property
    def key(self) -> Key:
        """Which answer it is: (prompt id, sample)."""
        return self.prompt_id, self.sample


def read_traces(path: str | Path) -> list[Trace]:
    """The traces of a JSONL file, in its order; a last line that was cut short is left out.

    Raises BadInput naming the line that is no trace or repeats a prompt's sample.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path} does not exist, expected a file of traces.")
    traces: dict[Key, Trace] = {}
    places: dict[Key, str] = {}
    for place, row in jsonl.rows(path):
        trace = parse_trace(row, place)
        if trace.key in traces:
            line = places[trace.key].rpartition(":")[2]
            raise BadInput(
                f"{place}: sample {trace.sample} of prompt {trace.prompt_id!r} was already at line "
                f"{line}."
            )
        traces[trace.key], places[trace.key] = trace, place
    return list(traces.values())


def stored_traces(path: str | Path) -> list[Trace]:
    """The traces of a file that a run has begun; none where it isn't there yet."""
    return read_traces(path) if Path(path).is_file() else []


def append(path: str | Path, trace: Trace) -> None:
    """Add a trace to a JSONL file as one write; a last line that was cut short is cut off first."""
    jsonl.append(path, asdict(trace))


def settle(path: str | Path, traces: Sequence[Trace]) -> None:
    """Put a finished file of traces in this order: the same bytes, whoever drew them, and in which
    order they ended. Other traces in the file come last."""
    if Path(path).is_file():
        stored = read_traces(path)
        wanted = {trace.key for trace in traces}
        ordered = [*traces, *(trace for trace in stored if trace.key not in wanted)]
        if stored != ordered:
            jsonl.write(path, map(asdict, ordered))


def parse_trace(row: object, place: str) -> Trace:
    """One line of a trace file; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {kind_of(row)}, expected a trace (an object).")
    checks = {
        "prompt_id": isinstance(row.get("prompt_id"), str),
        "sample": type(row.get("sample")) is int and row["sample"] >= 0,
        "prompt_token_ids": _token_ids(row.get("prompt_token_ids")),
        "token_ids": _token_ids(row.get("token_ids")),
        "text": isinstance(row.get("text"), str),
        "finish_reason": row.get("finish_reason") in ("stop", "length"),
    }
    for name, good in checks.items():
        if not good:
            found = repr(row[name])[:40] if name in row else "nothing"
            raise BadInput(f"{place}: found {found} as {name} of a trace. See `Trace` for fields.")
    require_unicode({name: row[name] for name in ("prompt_id", "text")}, place)
    return Trace(**{name: row[name] for name in checks})


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def keys_of(prompts: Sequence[Prompt], samples: int) -> list[Key]:
    """The keys of `samples` answers to each prompt, in the prompts' order."""
    return [(prompt.id, number) for prompt in prompts for number in range(samples)]


def in_order(traces: Iterable[Trace], prompts: Sequence[Prompt]) -> list[Trace]:
    """The traces in the order of the prompts, each prompt's by sample."""
    place = {prompt.id: n for n, prompt in enumerate(prompts)}
    return sorted(traces, key=lambda trace: (place[trace.prompt_id], trace.sample))
