"""Traces of several candidates that were made elsewhere: which file is whose."""

from collections.abc import Callable, Sequence
from pathlib import Path

from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.traces.prompts import Prompt
from surgeon.traces.records import Trace, in_order, read_traces


def read_candidate_traces(
    source: str,
    candidates: Sequence[Subject],
    prompts: Sequence[Prompt],
    name: str = "traces",
    read: Callable[[Path, Subject], list[Trace]] = lambda file, _: read_traces(file),
) -> dict[str, list[Trace]]:
    """Candidate name -> its traces, from one JSONL (one candidate), a directory of NAME.jsonl, or
    the directory of a ranking or an evaluation; `name` is the option that names them."""
    path, option = Path(source), f"--{name}"
    if path.is_dir():
        forms = ("{}.jsonl", "candidates/{}/traces.jsonl", "traces/{}.jsonl")
        places = [{s.name: path / form.format(s.name) for s in candidates} for form in forms]
        files = next((f for f in places if any(p.is_file() for p in f.values())), places[0])
    elif len(candidates) == 1:
        files = {candidates[0].name: path}
    else:
        raise BadInput(
            f"{option} {source} is one file and there are {len(candidates)} candidates. Give a "
            "directory with one NAME.jsonl per candidate."
        )
    ids = {prompt.id for prompt in prompts}
    traces = {}
    for subject in candidates:
        name, file = subject.name, files[subject.name]
        if not file.is_file():
            raise BadInput(
                f"{option} has no {file}, the traces of candidate {name}. Give one NAME.jsonl per "
                "candidate, or the directory of a ranking or an evaluation of them."
            )
        traces[name] = read(file, subject)
        strangers = sorted({trace.prompt_id for trace in traces[name]} - ids)
        if strangers:
            raise BadInput(f"{file} answers prompt {strangers[0]!r}, which the prompts lack.")
        if not traces[name]:
            raise BadInput(f"{file} holds no trace.")
        traces[name] = in_order(traces[name], prompts)
    return traces
