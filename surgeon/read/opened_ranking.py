"""A finished ranking, opened to be read: its candidates, what it kept of them, and their traces."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from surgeon import artifact, evidence_file, lineage, nex
from surgeon.checkpoint import read_header
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.judges.wording import question_of
from surgeon.live.families import stop_ids_of
from surgeon.ranking import CandidateScores, RankedCandidate, Ranking
from surgeon.settings.sampling import Sampling
from surgeon.traces import (
    Key,
    Prompt,
    Trace,
    digest_of_prompts,
    read_plain,
    read_prompts,
    read_traces,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRACES = "traces.jsonl"
FORMS = ("{}.jsonl", "candidates/{}/traces.jsonl", "traces/{}.jsonl")
"""Where a directory of traces has a candidate's."""
Kept = Literal["rows", "phases", "nothing"]


class ReadCandidate(NamedTuple):
    """A candidate of a ranking, whose responses are read."""

    ranked: RankedCandidate
    directory: Path
    """`RANKING/candidates/NAME`."""
    kept: Kept
    """All that reading takes; slopes and phases without the rows that cycles are made of; or
    nothing."""
    source: Path
    """Where its traces are."""
    plain: bool
    """They are texts, which the ranking read as tokens."""
    row_tokens: int
    top_k: int
    tau: float
    readings: nex.Readings

    @property
    def name(self) -> str:
        return self.ranked.name


class OpenedRanking(NamedTuple):
    """A ranking and its candidates, in its order."""

    path: Path
    ranking: Ranking
    candidates: tuple[ReadCandidate, ...]
    prompts: Mapping[str, Prompt]
    """By id; none where the mini-set isn't there any more."""
    digest: str

    @property
    def questions(self) -> dict[str, str]:
        """Prompt id -> its text."""
        return {name: question_of(list(p.messages)) for name, p in self.prompts.items()}


def open_ranking(path: Path, chosen: Sequence[str], given: str | None) -> OpenedRanking:
    """The candidates of the ranking at `path`, or those chosen; `given` says where their traces
    are. Raises `BadInput`."""
    if not (path / "ranking.json").is_file():
        raise BadInput(
            f"{path} holds no ranking.json, expected the directory of a finished ranking. Make one "
            "with: surgeon rank CHECKPOINT... --mini-set FILE --out DIR."
        )
    ranking = artifact.read(Ranking, path)
    if ranking.settings.get("nex_cache"):
        raise BadInput(
            f"{path} ranks caches of the published NEX code, which hold no text to read. Rank the "
            "checkpoints themselves."
        )
    names = [c.name for c in ranking.candidates]
    for name in chosen:
        if name not in names:
            raise BadInput(f"found no candidate {name!r} in {path}, expected {', '.join(names)}.")
    wanted = [c for c in ranking.candidates if not chosen or c.name in chosen]
    opened = tuple(_open(path, ranking, candidate, given) for candidate in wanted)
    files = [c.directory / "scores.json" for c in opened] + [c.source for c in opened]
    digest = lineage.digest_of_files(files)
    return OpenedRanking(path, ranking, opened, _prompts(ranking), digest)


def _open(
    path: Path, ranking: Ranking, ranked: RankedCandidate, given: str | None
) -> ReadCandidate:
    try:
        directory = path / "candidates" / artifact.plain_name(ranked.name)
    except ValueError as error:
        raise BadInput(f"{path} ranks a candidate whose name {error}. Rank again.") from error
    if not (directory / "scores.json").is_file():
        raise BadInput(f"{directory} holds no scores.json: the ranking is damaged. Rank again.")
    said = ranking.settings
    file = directory / evidence_file.FILE
    kept: Kept = "nothing"
    if file.is_file():
        kept = "rows" if "rows.start_R1" in read_header(file) else "phases"
    source, plain = _source(directory, said, ranked.name, len(ranking.candidates), given)
    by_candidate = said.get("top_k_by_candidate")
    top_k = by_candidate[ranked.name] if isinstance(by_candidate, dict) else said["top_k"]
    preset = nex.PRESETS[str(said.get("preset", "reference"))]
    chosen = {f.name: said[f.name] for f in fields(preset) if said.get(f.name) is not None}
    readings = nex.Readings(**{**vars(preset), **chosen})
    return ReadCandidate(
        ranked, directory, kept, source, plain, int(str(said["row_tokens"])), int(str(top_k)),
        float(str(said.get("tau") or 0.0)), readings,
    )  # fmt: skip


def _source(
    directory: Path, said: Mapping[str, object], name: str, n: int, given: str | None
) -> tuple[Path, bool]:
    """The file of a candidate's traces, and whether they are plain text."""
    if given is None and (directory / TRACES).is_file():
        return directory / TRACES, False
    plain = given is None and not said.get("traces") and bool(said.get("responses"))
    place = Path(str(given or said.get("traces") or said.get("responses") or "")).expanduser()
    if place.is_dir():
        files = [place / form.format(name) for form in FORMS]
    else:
        files = [place] if n == 1 else []
    for file in files:
        if file.is_file():
            return file, plain
    raise BadInput(
        f"{directory} holds no {TRACES}, and there is no file of its responses at {place}. Name it "
        "with --traces (a directory of NAME.jsonl, or a ranking)."
    )


def _prompts(ranking: Ranking) -> dict[str, Prompt]:
    """The mini-set, where it is still what was ranked on."""
    named = ranking.mini_set.path
    if named.startswith("builtin:") or Path(named).is_file():
        try:
            read = read_prompts(named)
        except BadInput:  # it needed columns, or has changed
            return {}
        if digest_of_prompts(read) == ranking.mini_set.digest:
            return {prompt.id: prompt for prompt in read}
    return {}


def subject_of(candidate: ReadCandidate) -> Subject:
    """The candidate's checkpoint; raises `BadInput` where it isn't there any more."""
    return subjects([candidate.ranked.checkpoint])[0]


def require_unchanged(candidate: ReadCandidate, subject: Subject) -> None:
    """Raise `BadInput` where the checkpoint is no longer what was ranked."""
    if subject.digest != candidate.ranked.digest:
        raise BadInput(
            f"{candidate.ranked.checkpoint} has changed since {candidate.directory} was ranked, "
            "and its rows weren't kept: rank again, or give --no-record."
        )


def traces_of(
    candidate: ReadCandidate,
    subject: Subject,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Mapping[str, Prompt],
) -> dict[Key, Trace]:
    """The traces behind the candidate's scores; raises `BadInput` where some are missing or of
    another length than what was scored."""
    if candidate.plain:
        found = read_plain(
            candidate.source, list(prompts.values()), tokenizer, Sampling(),
            stop_ids_of(subject, tokenizer),
        ).traces  # fmt: skip
    else:
        found = read_traces(candidate.source)
    return ranked_traces(candidate, found)


def ranked_traces(candidate: ReadCandidate, found: Sequence[Trace]) -> dict[Key, Trace]:
    """The traces by their keys; raises `BadInput` where one that was scored is missing, or has
    another length."""
    traces = {trace.key: trace for trace in found}
    for response in artifact.read(CandidateScores, candidate.directory).responses:
        trace = traces.get((response.prompt_id, response.sample))
        if trace is None or len(trace.token_ids) != response.tokens:
            there = "none" if trace is None else f"{len(trace.token_ids)} tokens"
            raise BadInput(
                f"{candidate.source}: found {there} as sample {response.sample} of prompt "
                f"{response.prompt_id!r}, expected the {response.tokens} tokens that were ranked. "
                "Name the ranked responses with --traces."
            )
    return traces
