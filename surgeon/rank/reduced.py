"""What is on disk of one candidate of a ranking: recordings reduced to what scoring needs, weights,
evidence and scores; and how each is computed.
"""

# Shape letters: L layers, F units per layer, N neurons (layer * d_ff + unit), K neurons of one
# response, R rows, T tokens.

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from surgeon import activations, artifact, evidence_file, lineage, metrics, nex
from surgeon.answers import classes_of
from surgeon.checkpoint import read_header
from surgeon.families import Subject
from surgeon.progress import bar
from surgeon.rank.plan import RankPlan
from surgeon.rank.scores import Resamples
from surgeon.ranking import CandidateScores, CloseReading, RankedResponse
from surgeon.traces import Trace

if TYPE_CHECKING:
    from torch import nn

PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
TRACES, SCORES, RESAMPLES = "traces.jsonl", "scores.json", "resamples.safetensors"


def forget_reduced(directory: Path) -> None:
    """Delete a candidate's reduced recordings: its scores are computed. A kill meanwhile leaves all
    of them, or some under a name that the next call deletes."""
    gone = directory / "responses.partial"
    shutil.rmtree(gone, ignore_errors=True)
    if (directory / "responses").is_dir():
        (directory / "responses").rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def candidate_dir(work: Path, subject: Subject) -> Path:
    return work / "candidates" / subject.name


def is_scored(plan: RankPlan, directory: Path) -> bool:
    """Whether a candidate's `scores.json` is there, with the responses of all rounds so far, and
    all that the plan's scores measure."""
    if not (directory / SCORES).is_file():
        return False
    stored = artifact.read(CandidateScores, directory)
    if plan.settings.adaptive:
        wanted = len(plan.prompts) * plan.settings.sampling.samples
        if plan.traces is not None:
            wanted = len(plan.traces[directory.name])
        if len(stored.responses) < wanted:
            return False
    return all(plan.measures.keys() <= r.measured.keys() for r in stored.responses)


# ---------------------------------------------------------------- record and reduce


class Reduced(NamedTuple):
    """A response's recording, reduced to what scoring needs."""

    evidence: nex.Evidence
    neuron_K: np.ndarray
    mass_K: np.ndarray
    tokens_R: np.ndarray
    entropy_R: np.ndarray
    kept_mass: float
    measured: dict[str, float]
    """By score."""


def reduce_responses(
    plan: RankPlan,
    directory: Path,
    model: "nn.Module | None",
    traces: Sequence[Trace],
    what: str,
) -> Iterator[Reduced]:
    """Yield each trace's reduced recording, recording those that are not on disk yet."""
    store = directory / "responses"
    store.mkdir(exist_ok=True)
    files = [reduced_file(store, n) for n in range(len(traces))]
    missing = [n for n, file in enumerate(files) if not is_reduced(file, plan.measures)]
    room = plan.evidence_bytes - sum(map(stored_row_bytes, files))
    if missing:
        if model is None:
            raise ValueError(f"{directory} lacks {len(missing)} recordings, and no model is given")
        recordings = activations.record(
            model, traces, row_tokens=plan.row_tokens, top_k=plan.top_k[directory.name],
            tau=plan.settings.scoring.tau, wanted=set(missing),
        )  # fmt: skip
        with bar(f"record {what}", len(missing)) as advance:
            for n, recording in zip(missing, recordings, strict=True):
                if plan.settings.keep_activations:
                    keep(directory / "activations", traces[n], recording)
                reduced = reduce(recording, plan.readings, plan.measures)
                room -= row_bytes(recording.activations)
                # Rows that can't be kept aren't written.
                rows = recording.activations if room >= 0 or plan.settings.format else None
                save_reduced(files[n], reduced, recording.positive_N, rows)
                advance()
    yield from map(load_reduced, files)


def keep(directory: Path, trace: Trace, recording: activations.Recording) -> None:
    """Keep a recording as it is, for `--keep-activations`."""
    directory.mkdir(exist_ok=True)
    name = f"{file_stem(trace.prompt_id)}-{trace.sample}.safetensors"
    activations.save(directory / name, recording)


def file_stem(prompt_id: str) -> str:
    """A file name for a prompt's id, another one for every id, on file systems that tell no case
    apart too: short plain ids as they are, others as their letters and digits and a hash."""
    if PLAIN_ID.fullmatch(prompt_id):
        return prompt_id
    letters = re.sub(r"[^a-z0-9]+", "-", prompt_id.lower()).strip("-")[:40]
    return f"{letters}~{hashlib.sha256(prompt_id.encode()).hexdigest()[:16]}"


def reduce(
    recording: activations.Recording,
    readings: nex.Readings,
    measures: Mapping[str, Callable[[activations.Recording], float]],
) -> Reduced:
    """Credit, response masses and entropies of one recording (NEX Eq. 1-10), and its measures."""
    neuron_K, mass_K = nex.response_mass(recording.activations)
    return Reduced(
        nex.credit(recording.activations, readings),
        neuron_K,
        mass_K,
        recording.activations.tokens_R,
        nex.row_entropy(recording.entropy_T, recording.activations.tokens_R),
        recording.kept_mass,
        {name: float(measure(recording)) for name, measure in measures.items()},
    )


def reduced_file(store: Path, number: int) -> Path:
    """Where the reduced recording of a candidate's answer of that number lies."""
    return store / f"{number:06d}.safetensors"


def save_reduced(
    file: Path, reduced: Reduced, positive_N: np.ndarray, rows: activations.Activations | None
) -> None:
    """Write one reduced recording: a tensor for every field, by its name; beside them all positive
    mass of every neuron, and the rows where they are kept."""
    fields = reduced._asdict()
    evidence, measured = fields.pop("evidence"), fields.pop("measured")
    fields |= {f"evidence.{name}": value for name, value in evidence._asdict().items()}
    fields |= {f"measured.{name}": value for name, value in measured.items()}
    fields["positive_N"] = positive_N
    fields |= {f"rows.{name}": value for name, value in vars(rows).items()} if rows else {}
    lineage.write_tensors(file, {name: np.asarray(value) for name, value in fields.items()})


def is_reduced(file: Path, measures: Mapping[str, Any]) -> bool:
    """Whether a reduced recording is on disk, with these measures and in this layout."""
    names = {"evidence.faint_K", "positive_N", *(f"measured.{name}" for name in measures)}
    return file.is_file() and names <= read_header(file).keys()


def row_bytes(rows: activations.Activations) -> int:
    """Bytes that a response's rows take in kept evidence."""
    return evidence_file.row_bytes(len(rows.neuron_E), len(rows.tokens_R))


def stored_row_bytes(file: Path) -> int:
    """Bytes of the rows in a reduced recording; 0 without them, or where there is no such file."""
    header = read_header(file) if file.is_file() else {}
    if "rows.neuron_E" not in header:
        return 0
    entries, rows = (header[f"rows.{name}"].shape[0] for name in ("neuron_E", "tokens_R"))
    return evidence_file.row_bytes(entries, rows)


def load_reduced(file: Path) -> Reduced:
    """Read back what `save_reduced` wrote of a `Reduced`."""
    fields: dict[str, Any] = {"evidence": {}, "measured": {}}
    for name, value in load_tensors(file, lambda n: n != "positive_N" and not rows_of(n)).items():
        group, _, member = name.partition(".")
        if group == "measured":
            fields["measured"][member] = value.item()
        elif group == "evidence":
            single = evidence_file.per_response(member)
            fields["evidence"][member] = value.item() if single else value
        else:
            fields[name] = value.item() if name == "kept_mass" else value
    fields["evidence"] = nex.Evidence(**fields["evidence"])
    return Reduced(**fields)


def rows_of(tensor: str) -> str | None:
    """The field of `Activations` that a tensor of a reduced recording is."""
    return tensor.removeprefix("rows.") if tensor.startswith("rows.") else None


def load_tensors(file: Path, wanted: Callable[[str], object]) -> dict[str, np.ndarray]:
    """The tensors of a file whose names are wanted; the others stay on disk."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if wanted(name)}  # noqa: SIM118


def mean_positive(store: Path, responses: int) -> np.ndarray:
    """float64_N: all positive activation mass, mean over the responses."""
    total = 0.0
    for n in range(responses):
        total = total + load_tensors(reduced_file(store, n), "positive_N".__eq__)["positive_N"]
    return np.asarray(total, np.float64) / max(1, responses)


def keep_evidence(
    plan: RankPlan,
    directory: Path,
    subject: Subject,
    traces: Sequence[Trace],
    reduced: Sequence[Reduced],
) -> None:
    """Write evidence.safetensors: the rows only where all fit in, and nothing where the rest
    doesn't."""
    responses = [
        evidence_file.KeptResponse(
            trace.prompt_id, trace.sample, r.tokens_R, r.entropy_R, r.evidence, r.neuron_K,
            r.mass_K, None,
        )
        for trace, r in zip(traces, reduced, strict=True)
    ]  # fmt: skip
    files = [reduced_file(directory / "responses", n) for n in range(len(responses))]
    room = plan.evidence_bytes - sum(map(evidence_file.response_bytes, responses))
    if room < 0:
        return
    sizes = [stored_row_bytes(file) for file in files]
    # Whatever the order in which they were recorded, the same responses keep their rows: all.
    if all(sizes) and sum(sizes) <= room:
        for n, file in enumerate(files):
            rows = {rows_of(k) or k: v for k, v in load_tensors(file, rows_of).items()}
            responses[n] = responses[n]._replace(activations=activations.Activations(**rows))
    evidence_file.write(
        directory,
        evidence_file.CandidateEvidence(
            candidate=subject.name,
            digest=subject.digest,
            n_layers=subject.source.n_layers,
            d_ff=subject.source.d_ff,
            row_tokens=plan.row_tokens,
            top_k=plan.top_k[subject.name],
            readings=asdict(plan.readings),
            responses=tuple(responses),
        ),
    )


# ---------------------------------------------------------------- learn and score


class Learned(NamedTuple):
    """What a candidate's responses together say about its neurons."""

    weight_N: np.ndarray
    """float64 in [-1, 1] (Eq. 11)."""
    effective_N: np.ndarray
    redundant_N: np.ndarray
    faint_N: np.ndarray
    """Share of its evidence that is rounding (R18)."""
    mass_N: np.ndarray
    """float64, mean activation mass over the responses, of the activations that `top_k` keeps."""
    positive_N: np.ndarray
    """float64, mean activation mass over the responses, of all activations."""


def learn(n_neurons: int, reduced: Sequence[Reduced], positive_N: np.ndarray) -> Learned:
    """The neuron weights and what they rest on (NEX Eq. 9-11)."""
    effective_N, redundant_N = nex.accumulate((r.evidence for r in reduced), n_neurons)
    mass_N = np.zeros(n_neurons)
    for r in reduced:
        mass_N[r.neuron_K] += r.mass_K
    weight_N = nex.weights(effective_N, redundant_N)
    faint_N = nex.faint_share((r.evidence for r in reduced), n_neurons)
    mass_N /= max(1, len(reduced))
    return Learned(weight_N, effective_N, redundant_N, faint_N, mass_N, positive_N)


def write_weights(plan: RankPlan, directory: Path, subject: Subject, learned: Learned) -> None:
    """Write weights.safetensors: `weight_LF` and its like, with the checkpoint they belong to."""
    n_layers, d_ff = plan.shape(subject)
    lineage.write_tensors(
        directory / "weights.safetensors",
        {
            name.replace("_N", "_LF"): value.astype(np.float32).reshape(n_layers, d_ff)
            for name, value in learned._asdict().items()
            if len(value)  # caches don't say all mass
        },
        metadata={
            "format": "np", "digest": subject.digest, "checkpoint": subject.spec,
            "candidate": subject.name, "n_layers": str(n_layers), "d_ff": str(d_ff),
            "mini_set": plan.inputs["mini set"],
        },
    )  # fmt: skip


def credited_if_active(
    plan: RankPlan, directory: Path, reduced: Sequence[Reduced]
) -> list[nex.Evidence] | None:
    """Every response's evidence where all neurons that are active in an exploring stretch are
    credited (the ablation of sec. 5.3), from the rows on disk; None where a response has none, or
    the weights come from elsewhere."""
    files = [reduced_file(directory / "responses", n) for n in range(len(reduced))]
    if plan.shared_weight_LF is not None or not all(map(stored_row_bytes, files)):
        return None
    if plan.readings.credit == "active":
        return [r.evidence for r in reduced]
    rows = ({rows_of(k) or k: v for k, v in load_tensors(f, rows_of).items()} for f in files)
    return credited_anew((activations.Activations(**fields) for fields in rows), plan, reduced)


def credited_anew(
    rows: Iterable[activations.Activations], plan: RankPlan, reduced: Sequence[Reduced]
) -> list[nex.Evidence]:
    """The same from these rows: with the phases that were found, which credit doesn't change."""
    readings = replace(plan.readings, credit="active")
    return [
        nex.cycle_credit(
            acts, nex.first_seen(acts), r.evidence.slope_R, r.evidence.explore_R, readings
        )
        for acts, r in zip(rows, reduced, strict=True)
    ]


def write_resamples(
    plan: RankPlan,
    directory: Path,
    prompt_ids: Sequence[str],
    reduced: Sequence[Reduced],
    active: Sequence[nex.Evidence] | None = None,
) -> None:
    """Write resamples.safetensors: the NEX of every resample of the plan's prompts, weights
    learned anew in each, and the same by active credit; nothing where the weights came from
    elsewhere. `prompt_ids` are the responses'."""
    if plan.shared_weight_LF is not None:
        return
    place = {prompt.id: n for n, prompt in enumerate(plan.prompts)}
    prompt_N = np.array([place[prompt_id] for prompt_id in prompt_ids], np.int64)
    found = {}
    for name, evidences in {"nex": [r.evidence for r in reduced], "nex_active": active}.items():
        if evidences is not None:
            pairs = zip(evidences, reduced, strict=True)
            responses = [nex.Response(e, r.neuron_K, r.mass_K) for e, r in pairs]
            value_B, left_J = resampled(plan, responses, prompt_N, len(place))
            found |= {f"{name}_B": value_B, f"{name}_J": left_J}
    lineage.write_tensors(directory / RESAMPLES, found)


def resampled(
    plan: RankPlan, responses: Sequence[nex.Response], prompt_N: np.ndarray, prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """(float64_B, float64_J): the NEX of every resample of the prompts, and of all but one group
    of them."""
    count_BP = metrics.resample_counts(prompts, seed=plan.settings.seed)
    count_XP = np.concatenate([count_BP, metrics.left_out_counts(prompts)])
    value_X = nex.relearned(responses, prompt_N, count_XP, plan.readings)
    return value_X[: len(count_BP)], value_X[len(count_BP) :]


def read_resamples(directory: Path) -> dict[str, Resamples]:
    """By score, as written by `write_resamples`; empty where nothing was. Rankings made before
    groups were left out lack `left_J`."""
    file = directory / RESAMPLES
    found = load_tensors(file, lambda name: True) if file.is_file() else {}
    names = [name.removesuffix("_B") for name in found if name.endswith("_B")]
    return {name: Resamples(found[f"{name}_B"], found.get(f"{name}_J")) for name in names}


def cross_fitted(plan: RankPlan, directory: Path) -> Resamples:
    """The resamples of NEX with weights learned on one half of the prompts and scored on the other,
    moved so that they lie about the ranking's NEX; from the kept evidence."""
    kept = evidence_file.read(directory, rows=False)
    place = {prompt.id: n for n, prompt in enumerate(plan.prompts)}
    half_P = np.arange(len(place)) % 2
    np.random.default_rng(plan.settings.seed).shuffle(half_P)
    responses = [nex.Response(r.evidence, r.neuron_K, r.mass_K) for r in kept.responses]
    prompt_N = np.array([place[r.prompt_id] for r in kept.responses], np.int64)
    count_BP = metrics.resample_counts(len(place), seed=plan.settings.seed)
    count_BP = np.concatenate([np.ones((1, len(place))), count_BP])
    value_B = nex.relearned(responses, prompt_N, count_BP, plan.readings, fold_P=half_P)
    (whole,) = nex.relearned(responses, prompt_N, count_BP[:1], plan.readings)
    return Resamples(value_B[1:] - value_B[0] + whole, None)


def votes(traces: Sequence[Trace], answers: Sequence[str | None]) -> list[str | None]:
    """The class of each answer among those to the same prompt."""
    places: dict[str, list[int]] = {}
    for place, trace in enumerate(traces):
        places.setdefault(trace.prompt_id, []).append(place)
    found: list[str | None] = [None] * len(traces)
    groups = classes_of([[answers[n] for n in members] for members in places.values()])
    for members, group in zip(places.values(), groups, strict=True):
        for place, vote in zip(members, group, strict=True):
            found[place] = vote
    return found


def score(
    plan: RankPlan,
    learned: Learned,
    traces: Sequence[Trace],
    answers: Sequence[str | None],
    reduced: Sequence[Reduced],
    active: Sequence[nex.Evidence] | None = None,
) -> tuple[RankedResponse, ...]:
    """Every response with its Good-Mass Fraction (Eq. 12-16) and what else scores are made of;
    `active` is its evidence by active credit."""
    shared_LF = plan.shared_weight_LF
    weight_N = learned.weight_N if shared_LF is None else shared_LF.ravel()
    active_N = None
    if active is not None:
        active_N = nex.weights(*nex.accumulate(active, len(weight_N)))
    responses = []
    for trace, answer, r in zip(traces, answers, reduced, strict=True):
        mass = nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N)
        responses.append(
            RankedResponse(
                prompt_id=trace.prompt_id,
                sample=trace.sample,
                tokens=len(trace.token_ids),
                finished=trace.finish_reason != "length",
                answer=answer,
                nex=mass.score,
                nex_active=math.nan
                if active_N is None
                else nex.good_mass_fraction(r.neuron_K, r.mass_K, active_N).score,
                reward=mass.reward,
                bad=mass.bad,
                credible=mass.credible,
                empty=len(r.neuron_K) == 0,
                cycles=r.evidence.cycles,
                gated=r.evidence.gated,
                explore_segments=nex.segments(r.evidence.explore_R),
                kept_mass=r.kept_mass,
                faint=math.nan
                if shared_LF is not None
                else nex.resting_on(r.neuron_K, r.mass_K, weight_N, learned.faint_N),
                entropy_R=tuple(round(float(x), 6) for x in r.entropy_R),
                measured=r.measured,
            )
        )
    return tuple(responses)


def read_closely(
    plan: RankPlan, responses: Sequence[RankedResponse], reduced: Sequence[Reduced]
) -> CloseReading:
    """Novelty and phases of the response that the report shows."""
    place = choose_reading(responses)
    slope_R, explore_R = reduced[place].evidence.slope_R, reduced[place].evidence.explore_R
    return CloseReading(
        response=place,
        slope_R=tuple(slope_R.tolist()),
        z_R=tuple(nex.standardise(slope_R, plan.readings).z_R.tolist()),
        explore_R=tuple(explore_R.tolist()),
    )


def choose_reading(responses: Sequence[RankedResponse]) -> int:
    """The response shown in the report: a finished one with the most cycles, median length first.

    Deterministic: ties go to the earlier response.
    """
    middle = float(np.median([r.tokens for r in responses]))
    return min(
        range(len(responses)),
        key=lambda n: (
            not responses[n].finished,
            -min(responses[n].gated, 3),
            abs(responses[n].tokens - middle),
        ),
    )
