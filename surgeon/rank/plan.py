"""What a ranking is asked to do, checked against files and headers."""

# Shape letters: L layers, F units per layer.

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import artifact, lineage, named, nex
from surgeon.activations import Recording
from surgeon.activations.files import RESERVED_LAYER, UNITS
from surgeon.answers import parse_extractor, parse_tags
from surgeon.checkpoint import placement, read_header
from surgeon.engines import require_engine
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.live.families import require_prompts, stop_ids_of, tokenizer_of
from surgeon.live.support import require
from surgeon.neuron_weights import read_metadata
from surgeon.rank import known, recording, scores
from surgeon.rank.scores import Score
from surgeon.ranking import CandidateScores
from surgeon.report import panels
from surgeon.settings import record
from surgeon.settings.rank import RankSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import (
    Prompt,
    Trace,
    digest_of_prompts,
    read_plain,
    read_prompts,
)
from surgeon.traces.given import read_candidate_traces
from surgeon.truth import accuracies_files, benchmark_sources, read_accuracies
from surgeon.workers import Roster, roster

if TYPE_CHECKING:
    import torch


TOLERANCE = 2.0
"""Percentage points."""
SIZES = re.compile(r"\d+:\d+:\d+|\d+(,\d+)*")
LEAST = 2
"""Prompts of a part of the mini-set."""


class RankPlan(NamedTuple):
    """A ranking whose inputs have been checked; nothing has been computed yet."""

    settings: RankSettings
    scores: dict[str, Score]
    readings: nex.Readings
    subjects: list[Subject]
    prompts: list[Prompt]
    extract: Callable[[str], str | None]
    """The answer that a response's text gives."""
    placement: "tuple[str, torch.dtype | None]"
    """Device and dtype."""
    roster: Roster | None
    """The workers; None where this process works alone."""
    top_k: Mapping[str, int]
    """Candidate -> activations that are kept per token; none for caches that don't say."""
    traces: dict[str, list[Trace]] | None
    """Candidate -> its traces, where none are sampled."""
    shared_weight_LF: np.ndarray | None
    """Neuron weights that score every candidate; None: each has its own."""
    accuracy: dict[str, float]
    """Candidate -> its true accuracy in [0, 1], the mean over benchmarks; empty where none are
    known."""
    last_stage: dict[str, str]
    """Digests of the files that the last stage reads."""
    run: lineage.Run
    caches: Mapping[str, Path] = MappingProxyType({})
    """Candidate -> its cache of the published NEX code, where no model is read."""
    shapes: Mapping[str, tuple[int, int]] = MappingProxyType({})
    """Candidate -> layers and units per layer of its cache."""
    benchmarks: Mapping[str, dict[str, float]] = MappingProxyType({})
    """Benchmark -> candidate -> accuracy, where the truth names benchmarks."""
    row_tokens: int = 0
    """Tokens per row of the slope; 0 until the first traces say."""
    own_seeds: bool = False
    """Whether each candidate draws its answers with a seed of its own."""

    def sampling_of(self, subject: Subject) -> Sampling:
        """How this candidate's answers are drawn."""
        sampling = self.settings.sampling
        return sampling.own(subject.name) if self.own_seeds else sampling

    def shape(self, subject: Subject) -> tuple[int, int]:
        """Layers, and FFN units per layer."""
        if subject.name in self.shapes:
            return self.shapes[subject.name]
        return subject.source.n_layers, subject.source.d_ff

    @property
    def inputs(self) -> dict[str, str]:
        return self.run.inputs

    @property
    def evidence_bytes(self) -> int:
        """Most bytes of evidence that each candidate may keep."""
        return int(self.settings.evidence_mb * 1e6) // len(self.subjects)

    @property
    def measures(self) -> Mapping[str, Callable[[Recording], float]]:
        """What the scores read off a recording, by score."""
        return scores.measured(self.scores)


def prepare(settings: RankSettings) -> RankPlan:
    """Check every input of a ranking against files and headers; raises `BadInput`."""
    rows = scores.rows_for(settings.select)
    panels.rows_for(settings.panels)
    device_and_dtype = placement(settings.machine.device, settings.machine.dtype, several=True)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    prompts = read_prompts(settings.mini_set, columns=settings.columns)
    known.require(settings, prompts)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    if settings.curve is not None:
        curve_sizes(settings.curve, len(prompts))
    parse_tags(settings.reading.think_tags)
    candidates = subjects(list(settings.checkpoints))
    require("record", *(subject.source for subject in candidates))
    if settings.format == "nex-cache":
        require_cacheable(candidates)
    traces = given_traces(settings, candidates, prompts)
    if traces is None and not settings.out.exists():
        require_prompts(candidates, prompts, settings.sampling)
    if traces is None:
        asks = not settings.out.exists()
        require_engine(settings.engine, candidates, prompts, asks=asks)
    shared = None
    if settings.weights:
        shared = read_shared_weights(settings.weights, candidates)
        if not settings.weights_from_other:
            require_related(settings.weights, candidates)
    accuracy, benchmarks = read_truth(settings.truth, candidates)
    inputs = {subject.name: subject.digest for subject in candidates}
    # Candidate names hold no spaces, so these can't be taken for one.
    inputs["mini set"] = digest_of_prompts(prompts)
    inputs |= named.digests(answer=settings.answer)
    for name, file in (
        ("given traces", settings.traces),
        ("given responses", settings.responses),
        ("given weights", settings.weights),
    ):
        if file and Path(file).is_file():
            inputs[name] = lineage.file_digest(file)
    scoring = settings.scoring
    readings = settings.readings.over(replace(nex.PRESETS[scoring.preset], credit=scoring.credit))
    own_seeds = traces is None and not begun_with_one_seed(settings.out)
    arguments = arguments_of(settings, readings) | ({"seeds": "own"} if own_seeds else {})
    plan = RankPlan(
        settings=settings,
        scores=rows,
        readings=readings,
        subjects=candidates,
        prompts=prompts,
        extract=extract,
        placement=device_and_dtype,
        roster=workers,
        top_k=recording.top_k(settings.scoring, candidates),
        traces=traces,
        shared_weight_LF=shared,
        accuracy=accuracy,
        last_stage=last_stage(settings),
        run=lineage.Run("rank", arguments, inputs, settings.seed),
        benchmarks=benchmarks,
        row_tokens=recording.row_tokens(settings.scoring),
        own_seeds=own_seeds,
    )
    require_measured(plan)
    return plan


def arguments_of(settings: RankSettings, readings: nex.Readings) -> dict[str, object]:
    """What makes the run this run. Rankings made before a setting existed lack it: they are the
    same runs where it is left alone, except for R18, which changed what the default computes."""
    arguments = record(settings) | recording.asked(settings.scoring)
    alone = {name for name, chosen in asdict(settings.readings).items() if chosen is None}
    if settings.sampling.top_k == 0:
        alone.add("sampling_top_k")
    arguments = {name: value for name, value in arguments.items() if name not in alone}
    if settings.adaptive:
        arguments |= {"tolerance": tolerance(settings), "budget": settings.budget}
    return arguments | {"reuse_median_in": readings.reuse_median_in}


def begun_with_one_seed(out: Path) -> bool:
    """Whether a ranking is there whose candidates all draw with one seed: it goes on so, as earlier
    versions did it."""
    for place in (out, out.with_name(out.name + ".partial")):
        there = lineage.read(place)
        if there is not None:
            return "seeds" not in (there.get("arguments") or {})
    return False


def require_cacheable(candidates: Sequence[Subject]) -> None:
    """Raise `BadInput` for a model that the published code's cache can't hold."""
    for subject in candidates:
        n_layers, d_ff = subject.source.n_layers, subject.source.d_ff
        if d_ff > UNITS or n_layers > RESERVED_LAYER:
            raise BadInput(
                f"found {n_layers} layers of {d_ff} units in {subject.name}, expected at most "
                f"{RESERVED_LAYER} of {UNITS}: --format nex-cache can't hold this model. Use "
                "--keep-activations."
            )


def tolerance(settings: RankSettings) -> float:
    """Percentage points by which a pick of early rounds may be behind the best."""
    return TOLERANCE if settings.tolerance is None else settings.tolerance


def shuffled(prompt_ids: Sequence[str], seed: int) -> list[str]:
    """The order in which rounds ask prompts: files are often sorted, by difficulty for example."""
    order: list[int] = np.random.default_rng(seed).permutation(len(prompt_ids)).tolist()
    return [prompt_ids[n] for n in order]


def curve_sizes(text: str, prompts: int) -> list[int]:
    """Sizes from `start:stop:step` or a comma list, ascending, at most `prompts`; raises
    `BadInput`."""
    found: list[int] = []
    if SIZES.fullmatch(text):
        numbers = [int(part) for part in re.split("[:,]", text)]
        if ":" not in text:
            found = sorted(set(numbers))
        elif numbers[2] and numbers[0] <= numbers[1]:
            found = list(range(numbers[0], numbers[1] + 1, numbers[2]))
    if not found or found[0] < LEAST:
        raise BadInput(
            f"found curve = {text}, expected start:stop:step or a list of numbers of prompts from "
            f"{LEAST} on, such as 10:100:10."
        )
    if found[0] > prompts:
        raise BadInput(
            f"found curve = {text} and {prompts} prompts, expected numbers up to {prompts}."
        )
    return [size for size in found if size <= prompts]


def last_stage(settings: RankSettings) -> dict[str, str]:
    """Digests of the truth and of the scores and panels from outside: a finished ranking is
    concluded anew where one was edited."""
    digests = named.digests(select=settings.select)
    if settings.cross_fit:
        digests["cross-fit"] = "asked"
    if settings.known is not None:
        digests["known"] = str(settings.known)
    for panel in settings.panels:
        digests |= named.digests(panels=panel)
    for name, place in benchmark_sources(settings.truth).items() if settings.truth else ():
        found = [lineage.file_digest(file) for file in accuracies_files(place)]
        digests[f"truth {name}".strip()] = found[0] if len(found) == 1 else lineage.digest_of(found)
    return digests


def require_measured(plan: RankPlan) -> None:
    """Raise `BadInput` where a finished ranking lacks what the selected score measures."""
    select, out = plan.settings.select, plan.settings.out
    measured_outside = select not in scores.SCORES and plan.scores[select].measure
    for subject in plan.subjects if measured_outside else ():
        directory = out / "candidates" / subject.name
        if (directory / "scores.json").is_file():
            responses = artifact.read(CandidateScores, directory).responses
            if any(select not in response.measured for response in responses):
                raise BadInput(
                    f"{out} was recorded without {select}, which is measured while responses are "
                    "recorded. Choose another --out."
                )


def given_traces(
    settings: RankSettings, candidates: Sequence[Subject], prompts: Sequence[Prompt]
) -> dict[str, list[Trace]] | None:
    """Candidate name -> the traces that were made elsewhere; None where answers are sampled."""
    given = [n for n in ("traces", "responses", "engine") if _is_given(settings, n)]
    if len(given) > 1:
        raise BadInput(
            f"found {given[0]} and {given[1]}, expected one of them: each says where the answers "
            "come from."
        )
    if settings.traces:
        return read_candidate_traces(settings.traces, candidates, prompts)
    if settings.responses is None:
        return None

    def read(file: Path, subject: Subject) -> list[Trace]:
        tokenizer = tokenizer_of(subject)
        stop = stop_ids_of(subject, tokenizer)
        found = read_plain(file, prompts, tokenizer, settings.sampling, stop)
        found.say(f"{subject.name}: {file}")
        return found.traces

    return read_candidate_traces(settings.responses, candidates, prompts, "responses", read)


def _is_given(settings: RankSettings, name: str) -> bool:
    return not settings.engine.is_local if name == "engine" else bool(getattr(settings, name))


def read_shared_weights(source: str, candidates: Sequence[Subject]) -> np.ndarray:
    """The `weight_LF` of another ranking, checked against every candidate's layers and units."""
    from safetensors.numpy import load_file

    file = Path(source)
    if not file.is_file():
        raise BadInput(f"--weights {source} is no file. A ranking writes weights.safetensors.")
    if "weight_LF" not in read_header(file):
        raise BadInput(f"--weights {source} has no tensor weight_LF, so it was not made by rank.")
    weight_LF = load_file(file)["weight_LF"]
    for subject in candidates:
        shape = (subject.source.n_layers, subject.source.d_ff)
        if weight_LF.shape != shape:
            raise BadInput(
                f"--weights {source} is for {weight_LF.shape[0]} layers x {weight_LF.shape[1]} "
                f"units; {subject.name} has {shape[0]} x {shape[1]}."
            )
    return weight_LF


def require_related(source: str, candidates: Sequence[Subject]) -> None:
    """Raise `BadInput` for weights of a checkpoint that is no candidate, no endpoint of a
    candidate's family, and nothing that a candidate was made from: scores mean something within a
    series of models (NEX sec. A.7)."""
    metadata = read_metadata(Path(source))
    related: set[str] = set()
    for subject in candidates:
        related.add(subject.digest)
        if subject.family is not None:
            related |= {*subject.family.endpoint_digests, *subject.family.others.values()}
        if subject.checkpoint is not None:
            made = lineage.read(subject.checkpoint.path) or {}
            related |= subject.checkpoint.digests | set(map(str, made.get("inputs", {}).values()))
    digest = metadata.get("digest", "")
    if digest not in related:
        raise BadInput(
            f"--weights {source} was computed on {metadata.get('checkpoint') or 'a checkpoint'} "
            f"({digest[:19] or 'no digest'}), which is no candidate here and none was made from "
            "it. Rank with weights of their own, or give --weights-from-other."
        )


def read_truth(
    source: str | None, candidates: Sequence[Subject]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Candidate name -> accuracy in [0, 1], the mean over benchmarks; and the same by benchmark
    where benchmarks are named. Raises `BadInput` when a candidate is missing."""
    by_benchmark = {}
    for name, place in benchmark_sources(source).items() if source else ():
        accuracy = read_accuracies(place, name)
        missing = [s.name for s in candidates if s.name not in accuracy]
        if missing:
            raise BadInput(
                f"--truth {name + '=' if name else ''}{place} lacks {len(missing)} of the "
                f"{len(candidates)} ranked candidates, first {missing[0]} (it has "
                f"{', '.join(sorted(accuracy)[:3])}, ...). Evaluate them too."
            )
        by_benchmark[name] = {s.name: accuracy[s.name] for s in candidates}
    if not by_benchmark:
        return {}, {}
    of = list(by_benchmark.values())
    mean = {s.name: sum(a[s.name] for a in of) / len(of) for s in candidates}
    return mean, {} if "" in by_benchmark else by_benchmark
