"""What `surgeon pick` is asked to do, checked against files and headers."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import engines, lineage, named, nopsd
from surgeon.answers import Extractor, gold_problem, parse_check, parse_extractor, parse_tags
from surgeon.checkpoint import placement, split_member
from surgeon.errors import BadInput
from surgeon.families import Subject, subjects
from surgeon.live.families import require_prompts
from surgeon.live.support import require
from surgeon.neuron_weights import (
    NeuronWeights,
    find_weights,
    read_metadata,
    read_weights,
)
from surgeon.scoring.ranked import RankedPool, is_ranking, prompts_of, ranked_pools
from surgeon.scoring.reader import needs_model, recorded_alike
from surgeon.scoring.rules import RULES, Rule, measured, rule_of, short
from surgeon.settings import record
from surgeon.settings.pick import PickSettings
from surgeon.traces import Prompt, Trace, digest_of_prompts, read_prompts
from surgeon.traces.given import read_candidate_traces
from surgeon.workers import Roster, roster

if TYPE_CHECKING:
    import torch

VOTE = Rule("what most of the other candidates answer", "votes", measured("vote"))
PICKING = RULES | {"vote": VOTE}
"""Every rule by name."""
PASS_OF_ITS_OWN = {"consensus"}


class PickFrom(NamedTuple):
    """One checkpoint's answers, and how they are scored."""

    name: str
    spec: str
    digest: str
    subject: Subject | None
    """Who answers or reads; None where a ranking says all that is asked."""
    ranked: RankedPool | None
    given: list[Trace] | None
    """Its answers, where neither a ranking nor the checkpoint gives them."""
    weights: NeuronWeights | None
    """None where they are learned from the ranking's other prompts, or no rule needs them."""
    top_k: int
    """Activations kept per token; 0 where a ranking recorded them."""

    @property
    def weight_N(self) -> np.ndarray | None:
        """float32, the given neuron weights."""
        return None if self.weights is None else self.weights.weight_LF.ravel()


class PickPlan(NamedTuple):
    """Picks whose inputs have been checked; nothing has been scored yet."""

    settings: PickSettings
    rules: dict[str, Rule]
    """All that are compared, the one that picks first."""
    sources: list[PickFrom]
    prompts: list[Prompt]
    """Empty where they are known by id only."""
    extract: Extractor
    placement: "tuple[str, torch.dtype | None]"
    roster: Roster | None
    """The workers; None where this process works alone."""
    run: lineage.Run
    warnings: tuple[str, ...]

    @property
    def needed(self) -> set[str]:
        """What must be known of the answers."""
        return {str(rule.needs) for rule in self.rules.values()}

    @property
    def golds(self) -> dict[str, str]:
        """Prompt -> its answer, where it has one."""
        return {prompt.id: prompt.answer for prompt in self.prompts if prompt.answer is not None}

    def reads(self, source: PickFrom) -> bool:
        """Whether a model is to run over its answers."""
        return needs_model(self.needed, kept=source.ranked is not None)


def prepare(settings: PickSettings) -> PickPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    for name in settings.by:
        rule_of(name, PICKING)
    device_and_dtype = placement(settings.machine.device, settings.machine.dtype, several=True)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    parse_check(settings.check)
    ranked = [spec for spec in settings.sources if is_ranking(spec)]
    if ranked and len(ranked) < len(settings.sources):
        other = next(spec for spec in settings.sources if spec not in ranked)
        raise BadInput(
            f"found a ranking, {ranked[0]}, and {other}, expected a ranking or checkpoints."
        )
    prompts, sources = _of_ranking(settings) if ranked else _of_checkpoints(settings)
    for prompt in prompts:
        if prompt.answer is not None and (problem := gold_problem(prompt.answer, settings.check)):
            raise BadInput(f"prompt {prompt.id!r}: {problem}.")
    rules = rules_for(settings, weighted=all(_weighted(s) for s in sources), several=len(sources))
    inputs = {source.name: source.digest for source in sources}
    inputs |= {
        f"weights {s.name}": lineage.file_digest(s.weights.path)
        for s in sources if s.weights is not None
    }  # fmt: skip
    if prompts:
        inputs["prompts of it"] = digest_of_prompts(prompts)
    for source in sources:
        if source.given is not None:
            inputs[f"traces {source.name}"] = lineage.digest_of(
                [[*trace.key, trace.token_ids] for trace in source.given]
            )
    inputs |= named.digests(answer=settings.answer, check=settings.check)
    for name in settings.by:
        inputs |= named.digests(by=name)
    run = lineage.Run("pick", record(settings), inputs, settings.seed)
    return PickPlan(
        settings, rules, sources, prompts, extract, device_and_dtype, workers, run,
        tuple(_warnings(sources, prompts)),
    )  # fmt: skip


def rules_for(settings: PickSettings, *, weighted: bool, several: int) -> dict[str, Rule]:
    """All rules that are compared: those named, and those that take no pass of their own."""
    if "nex" in settings.by and not weighted:
        raise BadInput(
            "found no weights, expected --weights RANKING: rank the checkpoint on other prompts "
            "first (surgeon rank CHECKPOINT --mini-set FILE), or pick --by another rule."
        )
    if "vote" in settings.by and several < 2:
        raise BadInput(
            "found by = vote and one candidate, expected several: it is the others that vote."
        )
    free = [name for name in PICKING if name not in {*PASS_OF_ITS_OWN, "random"}]
    free = [n for n in free if (n != "nex" or weighted) and (n != "vote" or several > 1)]
    names = dict.fromkeys([*settings.by, *free])
    rules = {short(name): rule_of(name, PICKING) for name in names}
    if len(rules) < len(names):
        raise BadInput(f"found by = {', '.join(settings.by)}, expected rules of different names.")
    return rules


def _weighted(source: PickFrom) -> bool:
    """Whether NEX has weights: given ones, or those of a ranking's other prompts."""
    if source.weights is not None:
        return True
    return source.ranked is not None and source.ranked.evidence is not None


def _of_ranking(settings: PickSettings) -> tuple[list[Prompt], list[PickFrom]]:
    """The prompts and candidates of a ranking."""
    places = {split_member(spec)[0] for spec in settings.sources}
    if len(places) > 1:
        raise BadInput(
            f"found {len(places)} rankings, {' and '.join(sorted(places)[:2])}, expected one: its "
            "candidates answered the same prompts."
        )
    asked = {"traces": settings.traces, "limit": settings.limit, "engine": settings.engine.name}
    if given := next((name for name, value in asked.items() if value is not None), None):
        raise BadInput(
            f"found {given} and a ranking, expected one of them: its candidates have answered."
        )
    pools = {p.directory: p for spec in settings.sources for p in ranked_pools(spec)}
    if "nex" in settings.by:
        lacking = [p.directory for p in pools.values() if p.evidence is None]
        if lacking:
            raise BadInput(
                f"{lacking[0]} kept no evidence of its responses, expected evidence.safetensors: "
                "rank with a larger --evidence-mb, or pick --by another rule."
            )
    ranking = next(iter(pools)).parents[1]
    if settings.prompts is None:
        by_id = prompts_of(ranking)
    else:
        by_id = {p.id: p for p in read_prompts(settings.prompts, columns=settings.columns)}
        asked = {key[0] for pool in pools.values() for key in pool.responses}
        if strangers := sorted(asked - by_id.keys()):
            raise BadInput(
                f"{settings.prompts} lacks the prompt {strangers[0]!r}, which {ranking} answered."
            )
        by_id = {name: prompt for name, prompt in by_id.items() if name in asked}
    reads = "consensus" in settings.by
    sources = []
    for pool in pools.values():
        candidate = pool.candidate
        subject = _reader(candidate.checkpoint, candidate.digest) if reads else None
        weights = None
        if settings.weights is not None:
            weights = _weights(settings, candidate.checkpoint, {candidate.digest}, pool.shape)
            if weights.path.resolve().parent == pool.directory.resolve():
                raise BadInput(
                    f"found the weights that were learned on these responses ({weights.path}), "
                    "expected those of another ranking. Leave --weights out, and each prompt's "
                    "answers are scored with what the other prompts say."
                )
        sources.append(
            PickFrom(
                candidate.name, candidate.checkpoint, pool.digest, subject, pool, None,
                weights, 0,
            )
        )  # fmt: skip
    untold = next((pool.directory for pool in pools.values() if pool.traces is None), None)
    if reads and untold is not None:
        raise BadInput(
            f"{untold} holds no traces, which consensus reads: its responses were given to the "
            "ranking. Name the checkpoints instead, with --prompts and --traces."
        )
    if reads:
        _require_sets(settings, [s.subject for s in sources if s.subject is not None])
    return list(by_id.values()), sources


def _reader(spec: str, digest: str) -> Subject:
    """The candidate of a ranking as a checkpoint, the same that was ranked."""
    found = subjects([spec])[0]
    if found.digest != digest:
        raise BadInput(
            f"{spec} isn't the checkpoint that was ranked any more (its digest differs). Rank anew."
        )
    return found


def _of_checkpoints(settings: PickSettings) -> tuple[list[Prompt], list[PickFrom]]:
    """What is asked, and the checkpoints that answer it or read given answers."""
    if settings.prompts is None:
        raise BadInput(
            f"found no prompts, expected --prompts FILE: {settings.sources[0]} is no finished "
            "ranking, so what the answers are to has to be said."
        )
    every = read_prompts(settings.prompts, columns=settings.columns)
    prompts = every[: settings.limit]
    chosen = subjects(list(settings.sources))
    require("record", *(subject.source for subject in chosen))
    given: dict[str, list[Trace]] = {}
    if settings.traces is not None:
        if not settings.engine.is_local:
            raise BadInput(
                "found traces and engine, expected one of them: each says where the answers come "
                "from."
            )
        given = read_candidate_traces(settings.traces, chosen, every)
        kept = {prompt.id for prompt in prompts}
        given = {name: [t for t in own if t.prompt_id in kept] for name, own in given.items()}
        _require_fit(given, chosen)
    else:
        if not settings.out.exists():
            require_prompts(chosen, prompts, settings.sampling)
        asks = not settings.out.exists()
        engines.require_engine(settings.engine, chosen, prompts, asks=asks)
        if settings.sampling.samples < 2:
            raise BadInput("found samples = 1, expected 2 or more: one answer is no choice.")
    if "consensus" in settings.by:
        _require_sets(settings, chosen)
    sources = []
    for subject in chosen:
        weights = None
        if settings.weights is not None:
            shape = (subject.source.n_layers, subject.source.d_ff)
            digests = {subject.digest}
            if subject.checkpoint is not None:
                digests |= set(subject.checkpoint.digests)
            weights = _weights(settings, subject.spec, digests, shape)
        file = None if weights is None else weights.path
        top_k = recorded_alike(settings.top_k, subject.source, file)
        sources.append(
            PickFrom(
                subject.name, subject.spec, subject.digest, subject, None, given.get(subject.name),
                weights, top_k,
            )
        )  # fmt: skip
    return prompts, sources


def _weights(
    settings: PickSettings, owner: str, digests: set[str], shape: tuple[int, int]
) -> NeuronWeights:
    """The neuron weights of that checkpoint; raises `BadInput` where they are another's."""
    assert settings.weights is not None
    weights = read_weights(find_weights(settings.weights, digests), *shape)
    if weights.digest not in digests and not settings.weights_from_other:
        raise BadInput(
            f"{weights.path} was computed on {weights.checkpoint or 'another checkpoint'} "
            f"({weights.digest[:19] or 'no digest'}), not on {owner} ({min(digests)[:19]}). Rank "
            f"{owner}, or give --weights-from-other."
        )
    return weights


def _require_fit(given: dict[str, list[Trace]], chosen: Sequence[Subject]) -> None:
    for subject in chosen:
        traces = given[subject.name]
        for trace in traces:
            length = len(trace.prompt_token_ids) + len(trace.token_ids)
            if length > subject.source.context:
                raise BadInput(
                    f"sample {trace.sample} of prompt {trace.prompt_id!r} has {length} tokens with "
                    f"its prompt, expected at most {subject.source.context}, the context of "
                    f"{subject.name}."
                )
        counts = [trace.prompt_id for trace in traces]
        if len(set(counts)) == len(counts):
            raise BadInput(
                f"the traces of {subject.name} have one answer to each prompt, expected several to "
                "pick from."
            )


def _require_sets(settings: PickSettings, chosen: Sequence[Subject]) -> None:
    for subject in chosen:
        n = subject.source.n_layers * subject.source.d_ff
        if nopsd.budget(settings.consensus_top, n) >= n:
            raise BadInput(
                f"consensus_top {settings.consensus_top:g} keeps all {n:,} neurons of "
                f"{subject.spec}. Give a share, for example --consensus-top 0.014."
            )


def _warnings(sources: Sequence[PickFrom], prompts: Sequence[Prompt]) -> Iterator[str]:
    if any(s.ranked is not None and s.ranked.traces is None for s in sources):
        yield (
            "the ranking was given its responses and kept no texts: no words are counted, and the "
            "picks aren't written as traces."
        )
    learned = {
        read_metadata(s.weights.path).get("mini_set") for s in sources if s.weights is not None
    }
    if prompts and digest_of_prompts(prompts) in learned:
        yield (
            "the weights were learned on the same prompts, by answers that may be these: take "
            "those of a ranking on others."
        )
