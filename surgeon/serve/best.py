"""The best of several answers: which rule chooses, and what it needs to know of them.

The model that answered reads its answers back, one recorded pass for all of them, in the worker's
thread: NEX with the weights of a ranking of this checkpoint, or another rule that needs no other
candidate.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from surgeon.answers import extract
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.live import support
from surgeon.neuron_weights import NeuronWeights, find_weights, read_weights
from surgeon.scoring.reader import Asked, Values, read_values, recorded_alike
from surgeon.scoring.rules import RULES, Rule, rule_of, short, values_of
from surgeon.scoring.voting import agreement, votes_of
from surgeon.settings.serve import ServeSettings
from surgeon.traces import Trace

if TYPE_CHECKING:
    from torch import nn

SERVED = {name: rule for name, rule in RULES.items() if name not in ("consensus", "random")}
"""The rules that a server can choose by."""


class Best(NamedTuple):
    """How the best of several answers is chosen."""

    by: str
    rule: Rule
    asked: Asked

    def scores(self, model: "nn.Module", traces: Sequence[Trace]) -> list[float | None]:
        """The value of each answer, the best the highest; None where it has none."""
        rows: list[Values] = [
            {
                "prompt_id": t.prompt_id, "sample": t.sample, "tokens": len(t.token_ids),
                "finished": t.finish_reason == "stop",
            }
            for t in traces
        ]  # fmt: skip
        if self.asked.recording:
            for row, values in zip(rows, read_values(model, traces, self.asked), strict=True):
                row |= values
        if self.rule.needs == "votes":
            answers = [extract(t.text) if t.finish_reason == "stop" else None for t in traces]
            votes = votes_of(answers, [t.prompt_id for t in traces])
            for n, share in agreement(votes, range(len(votes))).items():
                rows[n]["agreement"] = share
        found = values_of(self.by, self.rule, rows).tolist()
        return [None if math.isnan(value) else value for value in found]


Scoring = Callable[["nn.Module", Sequence[Trace]], list[float | None]]


def best_first(scores: Sequence[float | None]) -> list[int]:
    """The places of the answers, best first: equals in their order, those without a value last."""

    def last(n: int) -> float:
        score = scores[n]
        return math.inf if score is None else -score

    return sorted(range(len(scores)), key=last)


def chooser(settings: ServeSettings, checkpoint: Checkpoint) -> Best | None:
    """How this server chooses; None where the checkpoint can't be recorded, and nobody asked.

    Raises `BadInput` for weights that are another checkpoint's, and a rule that needs some.
    """
    by = settings.best_by or ("nex" if settings.weights is not None else "logprob")
    rule = rule_of(by, SERVED)
    if rule.needs == "weights" and settings.weights is None:
        raise BadInput(
            f"found best_by = {by} without weights, expected --weights RANKING: rank "
            f"{settings.checkpoint} first (surgeon rank), or choose by another rule."
        )
    records = rule.needs in ("weights", "recording")
    if records:
        try:
            support.require("record", checkpoint)
        except BadInput:
            if settings.best_of == 1 and settings.best_by is None and settings.weights is None:
                return None
            raise
    weights = None if settings.weights is None else _weights(settings, checkpoint)
    top_k = 1
    if records:
        top_k = recorded_alike("auto", checkpoint, None if weights is None else weights.path)
    weight_N = None if weights is None else weights.weight_LF.ravel()
    return Best(short(by), rule, Asked(records, False, weight_N, top_k, 1.0))


def _weights(settings: ServeSettings, checkpoint: Checkpoint) -> NeuronWeights:
    digests = set(checkpoint.digests) | {checkpoint.digest}
    assert settings.weights is not None
    file = find_weights(settings.weights, digests)
    weights = read_weights(file, checkpoint.n_layers, checkpoint.d_ff)
    if weights.digest not in digests and not settings.weights_from_other:
        raise BadInput(
            f"{weights.path} was computed on {weights.checkpoint or 'another checkpoint'}, not on "
            f"{checkpoint.spec}. Rank it, or give --weights-from-other."
        )
    return weights
