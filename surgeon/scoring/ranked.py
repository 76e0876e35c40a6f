"""Answers that a ranking kept, candidate by candidate, with what it measured of them."""

# Shapes: N neurons.

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from surgeon import artifact, evidence_file, lineage, nex
from surgeon.checkpoint import read_header, split_member
from surgeon.errors import BadInput
from surgeon.ranking import CandidateScores, RankedCandidate, RankedResponse, Ranking
from surgeon.scoring.reader import good_mass
from surgeon.traces import Prompt, digest_of_prompts, read_prompts
from surgeon.traces.records import Key

TRACES = "traces.jsonl"


class RankedPool(NamedTuple):
    """A candidate of a ranking, and its responses."""

    directory: Path
    """`RANKING/candidates/NAME`."""
    candidate: RankedCandidate
    responses: Mapping[Key, RankedResponse]

    @property
    def evidence(self) -> Path | None:
        """The file with the masses of its responses, where the ranking kept it."""
        file = self.directory / evidence_file.FILE
        return file if file.is_file() else None

    @property
    def traces(self) -> Path | None:
        """The file of its responses; None where they were given to the ranking."""
        file = self.directory / TRACES
        return file if file.is_file() else None

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and units of each."""
        n_layers, d_ff = read_header(self.directory / "weights.safetensors")["weight_LF"].shape
        return n_layers, d_ff

    @property
    def digest(self) -> str:
        """Of its responses and what was measured of them."""
        kept = (self.traces, self.directory / "scores.json", self.evidence)
        return lineage.digest_of_files(file for file in kept if file is not None)


def crossed(evidence: Path, n_neurons: int) -> dict[Key, float | None]:
    """The Good-Mass Fraction of every response, by weights that are learned from the responses to
    all other prompts, so that no answer has a part in its own weights; None without any mass."""
    responses = evidence_file.read(evidence, rows=False).responses
    effective_N, redundant_N = nex.accumulate((r.evidence for r in responses), n_neurons)
    members: dict[str, list[evidence_file.KeptResponse]] = {}
    for response in responses:
        members.setdefault(response.prompt_id, []).append(response)
    found = {}
    for prompt_id, own in members.items():
        plus_N, minus_N = nex.accumulate((r.evidence for r in own), n_neurons)
        # A sum without its own addends may miss 0 by a rounding.
        weight_N = nex.weights(
            np.maximum(effective_N - plus_N, 0), np.maximum(redundant_N - minus_N, 0)
        )
        for r in own:
            found[prompt_id, r.sample] = good_mass(r.neuron_K, r.mass_K, weight_N)
    return found


def is_ranking(spec: str) -> bool:
    """Whether a spec names a finished ranking, or a candidate of one."""
    return (Path(split_member(spec)[0]).expanduser() / "ranking.json").is_file()


def ranked_pools(spec: str) -> list[RankedPool]:
    """The candidates that `RANKING` or `RANKING#NAME` names, best first; raises `BadInput`."""
    place, member = split_member(spec)
    path = Path(place).expanduser()
    if not (path / "ranking.json").is_file():
        raise BadInput(f"{path} is a directory but no finished ranking, expected a file or one.")
    named = {candidate.name: candidate for candidate in artifact.read(Ranking, path).candidates}
    if member and member not in named:
        raise BadInput(
            f"found no candidate {member!r} in {path}, expected the name of one: "
            f"{path}#{next(iter(named))} ({', '.join(named)})."
        )
    pools = []
    for candidate in [named[member]] if member else named.values():
        directory = path / "candidates" / candidate.name
        scores = artifact.read(CandidateScores, directory)
        responses = {(r.prompt_id, r.sample): r for r in scores.responses}
        pools.append(RankedPool(directory, candidate, responses))
    return pools


def prompts_of(ranking: Path) -> dict[str, Prompt]:
    """The prompts that a ranking read, by id, where they are still there; else none."""
    arguments = (lineage.read(ranking) or {}).get("arguments", {})
    named = str(arguments.get("mini_set", ""))
    if named.startswith("builtin:") or Path(named).is_file():
        read = read_prompts(named)
        if digest_of_prompts(read) == artifact.read(Ranking, ranking).mini_set.digest:
            return {prompt.id: prompt for prompt in read}
    return {}
