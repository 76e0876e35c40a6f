"""One candidate of a ranking: its responses, what they say about its neurons, and their scores.

A response is on disk as soon as it ended, and so is its reduced recording; a candidate is done when
its `scores.json` is there. Recordings are reduced at once to what scoring needs.
"""

# Shape letters: L layers, F units per layer, N neurons (layer * d_ff + unit), K neurons of one
# response, R rows, T tokens.

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surgeon import activations, lineage, nex
from surgeon.answers import canonical, read_answers
from surgeon.checkpoint import placement
from surgeon.families import Subject
from surgeon.live.families import live
from surgeon.progress import bar
from surgeon.rank.plan import Plan
from surgeon.traces import Trace, append, read_traces, sample


class Response(NamedTuple):
    """What is kept of one scored response."""

    prompt_id: str
    sample: int
    tokens: int
    finished: bool
    answer: str | None
    nex: float
    reward: float
    bad: float
    credible: bool
    empty: bool
    cycles: int
    gated: int
    explore_segments: int
    hes: float
    logprob: float
    kept_mass: float
    entropy_R: list[float]


def score_candidates(plan: Plan, work: Path, *, device: str, dtype: str, keep: bool) -> None:
    """Write `candidates/NAME/` for every candidate that has no `scores.json` yet."""
    missing = [s for s in plan.subjects if not (candidate_dir(work, s) / "scores.json").is_file()]
    for n, (subject, model, tokenizer) in enumerate(live(missing, *placement(device, dtype))):
        where = f"{len(plan.subjects) - len(missing) + n + 1}/{len(plan.subjects)}"
        directory = candidate_dir(work, subject)
        directory.mkdir(parents=True, exist_ok=True)
        if plan.given is None:
            traces = sample_traces(plan, directory, model, tokenizer, f"{where} {subject.name}")
        else:
            traces = plan.given[subject.name]
        reduced = list(
            reduce_responses(plan, directory, model, traces, f"{where} {subject.name}", keep)
        )
        answers = read_answers(traces, plan.extract, tokenizer)
        write_candidate(plan, directory, subject, traces, answers, reduced)
        shutil.rmtree(directory / "responses", ignore_errors=True)


def candidate_dir(work: Path, subject: Subject) -> Path:
    return work / "candidates" / subject.name


def sample_traces(
    plan: Plan, directory: Path, model: Any, tokenizer: Any, what: str
) -> list[Trace]:
    """The candidate's traces, sampled where `traces.jsonl` lacks them, in prompt order."""
    file = directory / "traces.jsonl"
    done = {(t.prompt_id, t.sample) for t in read_traces(file)} if file.is_file() else set()
    wanted = len(plan.prompts) * plan.sampling.samples - len(done)
    if wanted > 0:
        with bar(f"sample {what}", wanted) as advance:
            for trace in sample(model, tokenizer, plan.prompts, plan.sampling, done=done):
                append(file, trace)
                advance()
    order = {prompt.id: n for n, prompt in enumerate(plan.prompts)}
    return sorted(read_traces(file), key=lambda t: (order[t.prompt_id], t.sample))


class Reduced(NamedTuple):
    """A response's recording, reduced to what scoring needs."""

    evidence: nex.Evidence
    neuron_K: np.ndarray
    mass_K: np.ndarray
    entropy_R: np.ndarray
    hes: float
    logprob: float
    kept_mass: float


def reduce_responses(
    plan: Plan, directory: Path, model: Any, traces: Sequence[Trace], what: str, keep: bool
) -> Iterator[Reduced]:
    """Yield each trace's reduced recording, recording those that are not on disk yet."""
    store = directory / "responses"
    store.mkdir(exist_ok=True)
    files = [store / f"{n:06d}.safetensors" for n in range(len(traces))]
    missing = [n for n, file in enumerate(files) if not file.is_file()]
    row_tokens, top_k = plan.settings["row_tokens"], plan.settings["top_k"]
    if missing:
        recordings = activations.record(
            model, [traces[n] for n in missing], row_tokens=row_tokens, top_k=top_k
        )
        with bar(f"record {what}", len(missing)) as advance:
            for n, recording in zip(missing, recordings, strict=True):
                if keep:
                    (directory / "activations").mkdir(exist_ok=True)
                    trace = traces[n]
                    name = f"{trace.prompt_id.replace('/', '_')}-{trace.sample}.safetensors"
                    activations.save(directory / "activations" / name, recording)
                save_reduced(files[n], reduce(recording, plan.readings))
                advance()
    yield from map(load_reduced, files)


def reduce(recording: activations.Recording, readings: nex.Readings) -> Reduced:
    """Credit, response masses and entropies of one recording (NEX Eq. 1-10)."""
    neuron_K, mass_K = nex.response_mass(recording.activations)
    return Reduced(
        nex.credit(recording.activations, readings),
        neuron_K,
        mass_K,
        nex.row_entropy(recording.entropy_T, recording.activations.tokens_R),
        nex.hes(recording.entropy_T),
        nex.mean_logprob(recording.logprob_T),
        recording.kept_mass,
    )


def save_reduced(file: Path, reduced: Reduced) -> None:
    """Write one reduced recording under a temporary name, then rename."""
    from safetensors.numpy import save_file

    evidence = reduced.evidence
    tensors = {
        "credit_neuron_K": evidence.neuron_K,
        "effective_K": evidence.effective_K,
        "redundant_K": evidence.redundant_K,
        "slope_R": evidence.slope_R,
        "explore_R": evidence.explore_R,
        "cycles": np.array([evidence.cycles, evidence.gated]),
        "neuron_K": reduced.neuron_K,
        "mass_K": reduced.mass_K,
        "entropy_R": reduced.entropy_R,
        "scalars": np.array([reduced.hes, reduced.logprob, reduced.kept_mass], np.float64),
    }
    temporary = file.with_suffix(".tmp")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary)
    os.replace(temporary, file)


def load_reduced(file: Path) -> Reduced:
    """Read back what `save_reduced` wrote."""
    from safetensors.numpy import load_file

    t = load_file(file)
    evidence = nex.Evidence(
        neuron_K=t["credit_neuron_K"],
        effective_K=t["effective_K"],
        redundant_K=t["redundant_K"],
        slope_R=t["slope_R"],
        explore_R=t["explore_R"],
        cycles=int(t["cycles"][0]),
        gated=int(t["cycles"][1]),
    )
    hes, logprob, kept = (float(x) for x in t["scalars"])
    return Reduced(evidence, t["neuron_K"], t["mass_K"], t["entropy_R"], hes, logprob, kept)


def write_candidate(
    plan: Plan,
    directory: Path,
    subject: Subject,
    traces: Sequence[Trace],
    answers: Sequence[str | None],
    reduced: list[Reduced],
) -> None:
    """Learn the candidate's weights, score its responses, and write both (scores.json last)."""
    from safetensors.numpy import save_file

    shape = (subject.source.n_layers, subject.source.d_ff)
    effective_N, redundant_N = nex.accumulate((r.evidence for r in reduced), shape[0] * shape[1])
    own_N = nex.weights(effective_N, redundant_N)
    weight_N = own_N if plan.shared_weight_LF is None else plan.shared_weight_LF.ravel()
    mass_N = np.zeros(len(own_N), np.float64)
    for r in reduced:
        mass_N[r.neuron_K] += r.mass_K
    responses = []
    for trace, answer, r in zip(traces, answers, reduced, strict=True):
        score = nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N)
        responses.append(
            Response(
                prompt_id=trace.prompt_id,
                sample=trace.sample,
                tokens=len(trace.token_ids),
                finished=trace.finish_reason != "length",
                answer=None if answer is None else canonical(answer),
                nex=score.score,
                reward=score.reward,
                bad=score.bad,
                credible=score.credible,
                empty=len(r.neuron_K) == 0,
                cycles=r.evidence.cycles,
                gated=r.evidence.gated,
                explore_segments=nex.segments(r.evidence.explore_R),
                hes=r.hes,
                logprob=r.logprob,
                kept_mass=r.kept_mass,
                entropy_R=[round(float(x), 6) for x in r.entropy_R],
            )
        )
    temporary = directory / ".weights.tmp"
    save_file(
        {
            "weight_LF": own_N.astype(np.float32).reshape(shape),
            "effective_LF": effective_N.astype(np.float32).reshape(shape),
            "redundant_LF": redundant_N.astype(np.float32).reshape(shape),
            "mass_LF": (mass_N / max(1, len(reduced))).astype(np.float32).reshape(shape),
        },
        temporary,
        metadata={
            "format": "np", "digest": subject.digest, "checkpoint": subject.spec,
            "candidate": subject.name, "n_layers": str(shape[0]), "d_ff": str(shape[1]),
            "mini_set": plan.inputs["mini set"],
        },
    )  # fmt: skip
    os.replace(temporary, directory / "weights.safetensors")
    read = choose_reading(responses)
    evidence = reduced[read].evidence
    reading = {
        "response": read,
        "slope_R": evidence.slope_R.tolist(),
        "z_R": nex.standardise(evidence.slope_R, plan.readings).z_R.tolist(),
        "explore_R": evidence.explore_R.tolist(),
    }
    rows = [jsonable(r._asdict()) for r in responses]
    lineage.write_json(directory / "scores.json", {"reading": reading, "responses": rows})


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """NaN has no place in JSON: it becomes null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def choose_reading(responses: Sequence[Response]) -> int:
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
