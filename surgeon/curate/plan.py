"""A curation, checked against files and headers before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import lineage, named, nopsd
from surgeon.answers import parse_extractor, parse_tags
from surgeon.checkpoint import Checkpoint, placement
from surgeon.curate.answer_pool import AnswerPool, open_pool, ranked_pool
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.live.support import require
from surgeon.neuron_weights import find_weights, read_weights
from surgeon.scoring.ranked import RankedPool
from surgeon.scoring.reader import needs_model, recorded_alike
from surgeon.scoring.rules import Rule, rule_of, short
from surgeon.settings import record
from surgeon.settings.curate import CurateSettings
from surgeon.traces import digest_of_prompts, read_prompts
from surgeon.traces.overlap import Left, left_out
from surgeon.workers import Roster, roster

if TYPE_CHECKING:
    import torch


class CuratePlan(NamedTuple):
    """A curation whose inputs have been checked; nothing has been scored yet."""

    settings: CurateSettings
    rules: dict[str, Rule]
    pool: AnswerPool
    reader: Checkpoint | None
    """None where all is known without a model."""
    weight_N: np.ndarray | None
    """float32, where a rule needs the neuron weights."""
    top_k: int
    """Activations of the reader that are kept per token; 0 without a reader."""
    left: Left
    extract: Callable[[str], str | None]
    placement: "tuple[str, torch.dtype | None]"
    roster: Roster | None
    """The workers that read; None where this process does."""
    run: lineage.Run

    def needs(self, *kinds: str) -> bool:
        """Whether a rule needs one of these to be known."""
        return any(rule.needs in kinds for rule in self.rules.values())

    @property
    def reads(self) -> bool:
        """Whether the reader's model is to run over the answers."""
        kept = self.pool.ranked is not None and self.reader is None
        return needs_model({rule.needs for rule in self.rules.values()}, kept=kept)


def prepare(settings: CurateSettings) -> CuratePlan:
    """Check the settings against files and headers; raises `BadInput`."""
    rules = {short(name): rule_of(name) for name in settings.by}
    if len(rules) < len(settings.by):
        raise BadInput(f"found by = {', '.join(settings.by)}, expected rules of different names.")
    device_and_dtype = placement(settings.machine.device, settings.machine.dtype)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    excluded = [read_prompts(source) for source in settings.exclude]
    ranked = ranked_pool(settings.pool)
    reader = None if settings.reader is None else open_checkpoint(settings.reader)
    needed: set[str] = {rule.needs for rule in rules.values()}
    _require_reader(ranked, reader, needed)
    if reader is not None and needed & {"weights", "recording", "sets"}:
        require("record", reader)
    weights_file, weight_N = _weights(settings, ranked, reader, needed)
    if reader is not None and "sets" in needed:
        n = reader.n_layers * reader.d_ff
        if nopsd.budget(settings.consensus_top, n) >= n:
            raise BadInput(
                f"consensus_top {settings.consensus_top:g} keeps all {n:,} neurons of "
                f"{reader.spec}. Give a share, for example --consensus-top 0.014."
            )
    pool = open_pool(
        settings, None if reader is None else reader.tokenizer(),
        1 << 60 if reader is None else reader.context,
    )  # fmt: skip
    left = left_out(pool.texts, excluded)
    if all(a.prompt_id in left.all or not a.fits for a in pool.answers):
        raise BadInput(
            f"{settings.pool}: every answer is excluded or too long, expected some left."
        )
    inputs = {"pool": pool.digest} | {
        f"exclude {n}": digest_of_prompts(prompts) for n, prompts in enumerate(excluded, 1)
    }
    if pool.prompts:
        inputs["prompts"] = digest_of_prompts(pool.prompts.values())
    if reader is not None:
        inputs["reader"] = reader.digest
    if weights_file is not None:
        inputs["weights"] = lineage.file_digest(weights_file)
    for name in settings.by:
        inputs |= named.digests(by=name)
    top_k = 0 if reader is None else recorded_alike(settings.top_k, reader, weights_file)
    arguments = record(settings) | ({"top_k": top_k} if top_k else {})
    return CuratePlan(
        settings, rules, pool, reader, weight_N, top_k, left, extract, device_and_dtype, workers,
        lineage.Run("curate", arguments, inputs, settings.seed),
    )  # fmt: skip


def _require_reader(ranked: RankedPool | None, reader: Checkpoint | None, needed: set[str]) -> None:
    """Raise `BadInput` where a rule needs a model that wasn't named."""
    if reader is not None:
        return
    if "sets" in needed or (ranked is None and needed & {"weights", "recording", "votes"}):
        raise BadInput(
            "found no reader, expected --reader CHECKPOINT: nex, hes, logprob, agreement and "
            "consensus ask it about a file of answers (a ranking's candidate brings four of them)."
        )
    if ranked is not None and "weights" in needed and ranked.evidence is None:
        raise BadInput(
            f"{ranked.directory} kept no evidence of its responses, expected evidence.safetensors: "
            f"give --reader {ranked.candidate.checkpoint}, or rank with a larger --evidence-mb."
        )


def _weights(
    settings: CurateSettings,
    ranked: RankedPool | None,
    reader: Checkpoint | None,
    needed: set[str],
) -> tuple[Path | None, np.ndarray | None]:
    """The file of the reader's neuron weights, and these; of a ranking's candidate, its own.

    Raises `BadInput` where they are another checkpoint's, or were learned on the pool itself.
    """
    if "weights" not in needed:
        return None, None
    if settings.weights is None:
        raise BadInput(
            "found no weights, expected --weights RANKING#NAME: rank the reader on a mini-set that "
            "isn't in the pool first (surgeon rank READER --mini-set FILE)."
        )
    if reader is not None:
        owner, digests, shape = reader.spec, set(reader.digests), (reader.n_layers, reader.d_ff)
    else:
        assert ranked is not None
        owner, digests = ranked.candidate.checkpoint, {ranked.candidate.digest}
        shape = ranked.shape
    weights = read_weights(find_weights(settings.weights, digests), *shape)
    if weights.digest not in digests and not settings.weights_from_other:
        raise BadInput(
            f"{weights.path} was computed on {weights.checkpoint or 'another checkpoint'}, not on "
            f"the reader {owner}. Rank the reader, or give --weights-from-other."
        )
    if ranked is not None and weights.path.resolve().parent == ranked.directory.resolve():
        raise BadInput(
            f"found the weights that were learned on the pool itself ({weights.path}), expected "
            "those of a ranking on a mini-set that isn't in it (NEX sec. 4.2)."
        )
    return weights.path, weights.weight_LF.ravel()
