"""One response read: its rows of text, their novelty and entropy, its phases and its cycles."""

# Shape letters: R rows of a response.

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import activations, artifact, evidence_file, jsonl, nex
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.live.families import OneLive, tokenizer_of
from surgeon.progress import bar, say
from surgeon.ranking import CandidateScores, RankedResponse
from surgeon.read.opened_ranking import (
    OpenedRanking,
    ReadCandidate,
    require_unchanged,
    subject_of,
    traces_of,
)
from surgeon.report.browser import BrowsedCycle, BrowsedResponse, write_response
from surgeon.traces import Key, Trace, row_texts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

RESPONSES = "responses"
DIGITS = 6


class RowsRead(NamedTuple):
    """What a recording says of a response's rows."""

    tokens_R: np.ndarray
    slope_R: np.ndarray
    explore_R: np.ndarray
    entropy_R: np.ndarray
    cycles: Sequence[nex.CycleReading] | None
    """None where the rows weren't kept, so that only the phases are known."""


def read_candidates(
    opened: OpenedRanking,
    work: Path,
    *,
    record: bool,
    placement: "tuple[str, torch.dtype | None]",
) -> None:
    """Write `responses/NAME.jsonl` and the page's data for every candidate; what is there already
    stays."""
    (work / RESPONSES).mkdir(exist_ok=True)
    one = OneLive(*placement)
    try:
        for place, candidate in enumerate(opened.candidates):
            _read_candidate(opened, candidate, place, work, record=record, one=one)
    finally:
        one.close()


def responses_file(work: Path, candidate: str) -> Path:
    """Where what was read of a candidate's responses lies."""
    return work / RESPONSES / f"{candidate}.jsonl"


def read_responses(work: Path, candidate: str) -> Iterator[BrowsedResponse]:
    """What was read of a candidate's responses, in their order."""
    for _, row in jsonl.rows(responses_file(work, candidate)):
        cycles = row.pop("cycles")
        yield BrowsedResponse(
            **row, cycles=None if cycles is None else [BrowsedCycle(**c) for c in cycles]
        )


def _read_candidate(
    opened: OpenedRanking,
    candidate: ReadCandidate,
    place: int,
    work: Path,
    *,
    record: bool,
    one: OneLive,
) -> None:
    file = responses_file(work, candidate.name)
    scored = artifact.read(CandidateScores, candidate.directory).responses
    done = sum(1 for _ in jsonl.rows(file))
    missing = scored[done:]
    if not missing:
        return
    subject = subject_of(candidate)
    tokenizer = tokenizer_of(subject)
    traces = traces_of(candidate, subject, tokenizer, opened.prompts)
    with bar(f"read {candidate.name}", len(scored)) as advance:
        advance(done)
        rows = _rows(candidate, subject, [traces[_key(r)] for r in scored], done, record, one)
        for number, (response, read) in enumerate(zip(missing, rows, strict=True), start=done):
            browsed = browse(candidate, response, traces[_key(response)], read, tokenizer)
            # The page's part first: a line in the file says that both are there.
            write_response(work, place, number, browsed)
            jsonl.append(file, browsed.row())
            advance()


def _key(response: RankedResponse) -> Key:
    return response.prompt_id, response.sample


def _rows(
    candidate: ReadCandidate,
    subject: Subject,
    traces: Sequence[Trace],
    done: int,
    record: bool,
    one: OneLive,
) -> Iterator[RowsRead]:
    """The rows of these traces from number `done` on: as kept, or recorded again where they
    weren't."""
    if candidate.kept != "rows" and record:
        require_unchanged(candidate, subject)
        say(f"{candidate.name}: the ranking kept no rows, so its responses are recorded again")
        model, _ = one.take(subject)
        recordings = activations.record(
            model, traces, row_tokens=candidate.row_tokens, top_k=candidate.top_k,
            tau=candidate.tau, wanted=range(done, len(traces)),
        )  # fmt: skip
        for recording in recordings:
            acts = recording.activations
            first_K = nex.first_seen(acts)
            slope_R = nex.novelty(acts, first_K)
            explore_R = nex.phases(slope_R, candidate.readings)
            yield RowsRead(
                acts.tokens_R, slope_R, explore_R,
                nex.row_entropy(recording.entropy_T, acts.tokens_R),
                nex.cycle_readings(acts, first_K, slope_R, explore_R, candidate.readings),
            )  # fmt: skip
        return
    kept = {(r.prompt_id, r.sample): r for r in evidence_file.read(candidate.directory).responses}
    for trace in traces[done:]:
        r = kept[trace.key]
        acts, slope_R, explore_R = r.activations, r.evidence.slope_R, r.evidence.explore_R
        cycles = None
        if acts is not None:
            cycles = nex.cycle_readings(
                acts, nex.first_seen(acts), slope_R, explore_R, candidate.readings
            )
        yield RowsRead(r.tokens_R, slope_R, explore_R, r.entropy_R, cycles)


def browse(
    candidate: ReadCandidate,
    response: RankedResponse,
    trace: Trace,
    read: RowsRead,
    tokenizer: "PreTrainedTokenizerBase",
) -> BrowsedResponse:
    """A response as it is kept and shown. Raises `BadInput` where its rows aren't its tokens'."""
    tokens = read.tokens_R.tolist()
    if sum(tokens) != len(trace.token_ids):
        raise BadInput(
            f"{candidate.directory}: found {sum(tokens)} tokens in the rows of sample "
            f"{trace.sample} of prompt {trace.prompt_id!r}, expected the {len(trace.token_ids)} of "
            "its trace. Rank again."
        )
    z_R = nex.standardise(read.slope_R, candidate.readings).z_R
    cycles = None
    if read.cycles is not None:
        cycles = [_cycle(cycle) for cycle in read.cycles]
    return BrowsedResponse(
        candidate=candidate.name,
        prompt_id=trace.prompt_id,
        sample=trace.sample,
        finished=response.finished,
        answer=response.answer,
        score=_rounded(response.nex),
        tokens_R=tokens,
        text_R=row_texts(tokenizer, trace.token_ids, tokens),
        slope_R=list(map(_rounded, read.slope_R.tolist())),
        z_R=list(map(_rounded, z_R.tolist())),
        entropy_R=list(map(_rounded, read.entropy_R.tolist())),
        explore_R=read.explore_R.tolist(),
        cycles=cycles,
    )


def _cycle(read: nex.CycleReading) -> BrowsedCycle:
    explore, exploit = read.cycle
    return BrowsedCycle(
        first=explore.start,
        turn=exploit.start,
        end=exploit.stop,
        introduced=len(read.neuron_K),
        slope_explore=_rounded(read.slope_explore),
        slope_exploit=_rounded(read.slope_exploit),
        reuse_share=_rounded(read.share),
        # Rounding would make a faint progress of either sign nothing.
        progress=float(f"{read.progress:.{DIGITS}g}"),
        consolidation=_rounded(read.consolidation),
        gate=read.strong,
        verdict=read.verdict,
    )


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)


def cycle_rows(response: BrowsedResponse) -> Iterator[Mapping[str, Any]]:
    """The lines of cycles.jsonl that a response makes; rows are counted from 0, ends excluded."""
    for n, cycle in enumerate(response.cycles or ()):
        values = cycle._asdict()
        first, turn, end = (values.pop(name) for name in ("first", "turn", "end"))
        yield {
            "candidate": response.candidate,
            "prompt_id": response.prompt_id,
            "sample": response.sample,
            "cycle": n,
            "explore": [first, turn],
            "exploit": [turn, end],
            **values,
            "explore_text": "".join(response.text_R[first:turn]),
            "exploit_text": "".join(response.text_R[turn:end]),
        }
