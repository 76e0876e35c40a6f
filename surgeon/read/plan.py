"""A reading, checked against files and headers before anything is read."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import evidence_file, lineage, nex
from surgeon.builtin import task
from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.judges.wording import question_of
from surgeon.live.support import require
from surgeon.read.agreeing import ALL
from surgeon.read.labelling import MARKED, MARKERS, PhaseJudge, parse_phase_judge
from surgeon.read.labels import Labels, read_labels, require_known
from surgeon.read.opened_ranking import (
    OpenedRanking,
    open_ranking,
    ranked_traces,
    require_unchanged,
    subject_of,
)
from surgeon.read.passages import passage_id
from surgeon.settings import record
from surgeon.settings.read import ReadSettings
from surgeon.traces import read_traces

if TYPE_CHECKING:
    import torch


class ReadPlan(NamedTuple):
    """A reading whose inputs have been checked; nothing has been read yet."""

    settings: ReadSettings
    opened: OpenedRanking
    placement: "tuple[str, torch.dtype | None]"
    judge: PhaseJudge | None
    labels: dict[str, Labels]
    """Annotator -> what they labelled."""
    labelling: dict[str, str]
    """What is asked of labels: with another, a finished reading is labelled anew."""
    run: lineage.Run


def prepare(settings: ReadSettings) -> ReadPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    device_and_dtype = placement(settings.machine.device, settings.machine.dtype)
    path = Path(settings.ranking).expanduser()
    opened = open_ranking(path, settings.candidates, settings.traces)
    for candidate in opened.candidates:
        subject = subject_of(candidate)
        if candidate.plain and not opened.prompts:
            raise BadInput(
                f"{path} ranked answers given as text, and its mini-set "
                f"{opened.ranking.mini_set.path} isn't there or has changed. Name the responses "
                "as traces with --traces."
            )
        if not candidate.plain:
            ranked_traces(candidate, read_traces(candidate.source))
        if candidate.kept == "rows":
            continue
        if candidate.kept == "nothing" and not settings.record:
            raise BadInput(
                f"{candidate.directory} kept no evidence of its responses, expected "
                "evidence.safetensors: leave --no-record away, and they are recorded again."
            )
        if settings.record:
            require_unchanged(candidate, subject)
            require("record", subject.source)
    judge = None
    if settings.judge is not None:
        judge = parse_phase_judge(settings.judge, settings.endpoint, settings.judge_temperature)
        _require_judged(judge, opened)
    labels = _labels(settings, judge)
    if labels and all(c.kept != "nothing" for c in opened.candidates):
        require_known(labels, _blocks(opened), str(path))
    run = lineage.Run("read", record(settings), {"ranking": opened.digest})
    return ReadPlan(
        settings, opened, device_and_dtype, judge, labels, _labelling(settings, judge, labels), run
    )


def _require_judged(judge: PhaseJudge, opened: OpenedRanking) -> None:
    """Raise `BadInput` where the judge can't be asked about the prompts."""
    if judge.name == "builtin":
        if not opened.prompts:
            raise BadInput(
                f"found judge = builtin, but the mini-set {opened.ranking.mini_set.path} isn't "
                "there or has changed, expected its questions."
            )
        for prompt in opened.prompts.values():
            task.Problem.parse(question_of(prompt.messages))
    if judge.endpoint is not None:
        judge.endpoint.require_reachable()


def _labels(settings: ReadSettings, judge: PhaseJudge | None) -> dict[str, Labels]:
    """Annotator -> labels of all files; raises `BadInput` for a name that comes twice."""
    found: dict[str, Labels] = {}
    taken = {judge.name} if judge else set()
    taken |= {MARKED, ALL}
    for file in settings.labels:
        for annotator, labels in read_labels(file).items():
            if annotator in taken:
                raise BadInput(
                    f"--labels {file}: found the annotator {annotator!r}, who is there already; "
                    "expected another name in the column annotator."
                )
            taken.add(annotator)
            found[annotator] = labels
    return found


def _blocks(opened: OpenedRanking) -> set[str]:
    """The ids of all blocks, by what the ranking kept."""
    found = set()
    for candidate in opened.candidates:
        for r in evidence_file.read(candidate.directory, rows=False).responses:
            for start, end in pairwise(nex.segment_bounds(r.evidence.explore_R)):
                found.add(passage_id(candidate.name, r.prompt_id, r.sample, start, end))
    return found


def _labelling(
    settings: ReadSettings, judge: PhaseJudge | None, labels: dict[str, Labels]
) -> dict[str, str]:
    asked = {"blocks": str(settings.blocks), "seed": str(settings.seed)}
    if settings.markers:
        asked["markers"] = lineage.digest_of(list(MARKERS))
    if judge is not None:
        asked[f"judge {judge.name}"] = judge.digest
    return asked | {f"labels {name}": lineage.digest_of(found) for name, found in labels.items()}
