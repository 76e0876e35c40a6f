"""Caches of the published NEX code: ranked without a model, and written from our own recordings.

A cache says how many tokens each row has, which neurons, and with what mass; it knows no text and
no entropy. One that was written here has `responses.json` beside its arrays, which says whose
responses they are and how they answered.
"""

# Shapes: R rows, N neurons.

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from surgeon import activations, artifact, evidence_file, lineage, nex
from surgeon.activations.files import nex_cache_shape, read_response_sums
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.progress import track
from surgeon.rank import scores
from surgeon.rank.plan import RankPlan, arguments_of, curve_sizes, last_stage, read_truth
from surgeon.rank.reduced import (
    Reduced,
    candidate_dir,
    credited_anew,
    is_scored,
    learn,
    load_tensors,
    read_closely,
    reduced_file,
    rows_of,
    score,
    write_resamples,
    write_weights,
)
from surgeon.ranking import CandidateScores
from surgeon.report import panels
from surgeon.settings.rank import RankSettings
from surgeon.traces import Prompt, Trace

CACHE = "nex-cache"


@artifact.part
class CachedResponse:
    """What a cache's arrays don't say of a response."""

    prompt_id: str
    sample: int
    finished: bool
    answer: str | None
    """The class that it votes for; None where none can be read."""


@artifact.artifact("responses.json")
class CachedResponses:
    """Whose responses a cache holds, in the order of its arrays."""

    checkpoint: str
    digest: str
    n_layers: int
    d_ff: int
    responses: tuple[CachedResponse, ...]


# ---------------------------------------------------------------- writing


def write_cache(
    plan: RankPlan,
    directory: Path,
    subject: Subject,
    traces: Sequence[Trace],
    answers: Sequence[str | None],
) -> None:
    """Write `nex-cache/` of a candidate from its reduced recordings, and `responses.json` in it."""
    found = []
    for n in range(len(traces)):
        file = reduced_file(directory / "responses", n)
        rows = {rows_of(k) or k: v for k, v in load_tensors(file, rows_of).items()}
        found.append(activations.Activations(**rows))
    n_layers, d_ff = plan.shape(subject)
    activations.write_nex_cache(directory / CACHE, found, d_ff=d_ff)
    responses = tuple(
        CachedResponse(
            prompt_id=t.prompt_id, sample=t.sample, finished=t.finish_reason != "length", answer=a
        )
        for t, a in zip(traces, answers, strict=True)
    )
    artifact.write(
        directory / CACHE,
        CachedResponses(
            checkpoint=subject.spec, digest=subject.digest, n_layers=n_layers, d_ff=d_ff,
            responses=responses,
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- ranking


def found_in(source: str) -> dict[str, Path]:
    """Candidate name -> its cache: one cache, a directory of several, or a ranking that wrote some.
    Raises `BadInput` where there is none."""
    path = Path(source).expanduser()
    if (path / "rows").is_dir():
        whole = path.resolve()
        return {whole.parent.name if whole.name == CACHE else whole.name: path}
    several = {
        p.parent.parent.name: p.parent for p in sorted(path.glob(f"candidates/*/{CACHE}/rows"))
    }
    several = several or {p.parent.name: p.parent for p in sorted(path.glob("*/rows"))}
    if not several:
        raise BadInput(
            f"--nex-cache {source} holds no cache: no rows/ and no NAME/rows/. The published "
            "code's layout is a directory with rows/ and base/; rank --format nex-cache writes one."
        )
    return several


def prepare_caches(settings: RankSettings) -> RankPlan:
    """Check a ranking of caches; raises `BadInput`."""
    rows = scores.rows_for(settings.select)
    panels.rows_for(settings.panels)
    caches = found_in(settings.nex_cache or "")
    described = {name: describe_cache(path) for name, path in caches.items()}
    subjects = [
        Subject(name, str(caches[name]), None, about.digest or digest_of_cache(caches[name]), None)
        for name, about in described.items()
    ]
    for name, about in described.items() if not settings.out.exists() else ():
        read_cache(caches[name], about)
    ids = dict.fromkeys(r.prompt_id for about in described.values() for r in about.responses)
    prompts = [Prompt(name, ({"role": "user", "content": ""},)) for name in ids]
    inputs = {s.name: digest_of_cache(caches[s.name]) for s in subjects}
    inputs["mini set"] = lineage.digest_of(list(ids))
    readings = settings.readings.over(
        replace(nex.PRESETS[settings.scoring.preset], credit=settings.scoring.credit)
    )
    accuracy, benchmarks = read_truth(settings.truth, subjects)
    if settings.curve is not None:
        curve_sizes(settings.curve, len(prompts))
    row_tokens, given = settings.scoring.row_tokens, settings.scoring.top_k
    return RankPlan(
        settings=settings,
        scores=rows,
        readings=readings,
        subjects=subjects,
        prompts=prompts,
        extract=lambda _: None,
        placement=("cpu", None),
        roster=None,
        top_k={s.name: given for s in subjects} if isinstance(given, int) else {},
        traces=None,
        shared_weight_LF=None,
        accuracy=accuracy,
        last_stage=last_stage(settings),
        run=lineage.Run("rank", arguments_of(settings, readings), inputs, settings.seed),
        caches=MappingProxyType(caches),
        shapes={name: (about.n_layers, about.d_ff) for name, about in described.items()},
        benchmarks=benchmarks,
        row_tokens=row_tokens_of(caches) if row_tokens == "auto" else row_tokens,
    )


def row_tokens_of(caches: Mapping[str, Path]) -> int:
    """Tokens of the longest row of some caches."""
    files = [path / "rows" / "token_row_ptr.int64" for path in caches.values()]
    longest = (np.diff(np.fromfile(f, "<i8")).max(initial=1) for f in files if f.is_file())
    return int(max(longest, default=1))


def digest_of_cache(path: Path) -> str:
    """Of all arrays."""
    files = sorted(f for kind in ("rows", "base") for f in (path / kind).iterdir() if f.is_file())
    return lineage.digest_of({f"{f.parent.name}/{f.name}": lineage.file_digest(f) for f in files})


def describe_cache(path: Path) -> CachedResponses:
    """What is known of a cache: what its responses.json says, else its shape and how many there
    are, each to a prompt of its own."""
    if (path / "responses.json").is_file():
        return artifact.read(CachedResponses, path)
    n_layers, d_ff = nex_cache_shape(path)
    pointer = np.fromfile(path / "rows" / "sample_row_ptr.int64", "<i8")
    responses = tuple(
        CachedResponse(prompt_id=f"{n:06d}", sample=0, finished=True, answer=None)
        for n in range(len(pointer) - 1)
    )
    return CachedResponses(
        checkpoint=str(path), digest="", n_layers=n_layers, d_ff=d_ff, responses=responses
    )


def read_cache(
    path: Path, about: CachedResponses
) -> tuple[list[activations.Activations], list[tuple[np.ndarray, np.ndarray]]]:
    """The rows and the summed masses of every response; raises `BadInput` for a damaged cache."""
    rows = [a.without_empty_rows() for a in activations.read_nex_cache(path, d_ff=about.d_ff)]
    sums = read_response_sums(path, d_ff=about.d_ff)
    if not len(rows) == len(sums) == len(about.responses):
        raise BadInput(
            f"{path} has {len(rows)} responses in rows/, {len(sums)} in base/ and "
            f"{len(about.responses)} in responses.json: they contradict each other."
        )
    if not rows:
        raise BadInput(f"{path} holds no response.")
    return rows, sums


def score_caches(plan: RankPlan, work: Path) -> None:
    """Write `candidates/NAME/` for every cache that has no `scores.json` yet."""
    missing = [s for s in plan.subjects if not is_scored(plan, candidate_dir(work, s))]
    for subject in track(missing, what="read caches"):
        directory = candidate_dir(work, subject)
        directory.mkdir(parents=True, exist_ok=True)
        about = describe_cache(plan.caches[subject.name])
        rows, sums = read_cache(plan.caches[subject.name], about)
        nothing = dict.fromkeys(plan.measures, math.nan)
        reduced = [
            Reduced(nex.credit(acts, plan.readings), *response, acts.tokens_R, np.zeros(0), 1.0,
                    nothing)
            for acts, response in zip(rows, sums, strict=True)
        ]  # fmt: skip
        traces = [
            Trace(
                r.prompt_id, r.sample, [], [0] * int(acts.tokens_R.sum()), "",
                "stop" if r.finished else "length",
            )
            for r, acts in zip(about.responses, rows, strict=True)
        ]  # fmt: skip
        n_neurons = about.n_layers * about.d_ff
        # A cache holds what was kept; what was not isn't known.
        learned = learn(n_neurons, reduced, np.zeros(n_neurons))
        write_weights(plan, directory, subject, learned._replace(positive_N=np.zeros(0)))
        keep_rows(plan, directory, subject, traces, reduced, rows)
        active = credited_anew(rows, plan, reduced)
        write_resamples(plan, directory, [t.prompt_id for t in traces], reduced, active)
        answers = [r.answer for r in about.responses]
        responses = score(plan, learned, traces, answers, reduced, active)
        reading = read_closely(plan, responses, reduced)
        artifact.write(directory, CandidateScores(reading=reading, responses=responses))


def keep_rows(
    plan: RankPlan,
    directory: Path,
    subject: Subject,
    traces: Sequence[Trace],
    reduced: Sequence[Reduced],
    rows: Sequence[activations.Activations],
) -> None:
    """Write evidence.safetensors, the rows included."""
    n_layers, d_ff = plan.shape(subject)
    evidence_file.write(
        directory,
        evidence_file.CandidateEvidence(
            candidate=subject.name,
            digest=subject.digest,
            n_layers=n_layers,
            d_ff=d_ff,
            row_tokens=plan.row_tokens,
            top_k=plan.top_k.get(subject.name, 0),
            readings=asdict(plan.readings),
            responses=tuple(
                evidence_file.KeptResponse(
                    t.prompt_id, t.sample, r.tokens_R, r.entropy_R, r.evidence, r.neuron_K,
                    r.mass_K, acts,
                )
                for t, r, acts in zip(traces, reduced, rows, strict=True)
            ),
        ),
    )  # fmt: skip
