"""`surgeon rank`: order checkpoints without labels, and say how far the order can be trusted.

plan.py         every input checked, before anything is computed
candidates.py   one candidate: sample, record, credit, weights, scores
conclusion.py   all candidates: intervals, warnings, headline, `best`, report, tables
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.rank.candidates import score_candidates
from surgeon.rank.conclusion import conclude, show, table
from surgeon.rank.plan import SCORES, prepare, read_truth

__all__ = ["SCORES", "rank", "show", "table"]


def rank(
    checkpoints: Sequence[str],
    *,
    mini_set: str,
    out: str | Path,
    samples: int = 3,
    seed: int = 0,
    select: str = "nex",
    preset: str = "reference",
    traces: str | None = None,
    weights: str | None = None,
    credit: str = "introduced",
    answer: str = "auto",
    truth: str | None = None,
    row_tokens: int = 32,
    top_k: int = 2000,
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_tokens: int = 32768,
    thinking: bool | None = None,
    batch: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    keep_activations: bool = False,
) -> dict[str, Any]:
    """Rank checkpoints on an unlabelled mini-set and write the ranking to the directory `out`.

    `checkpoints` are directories, hub ids, `base+adapter`, families or `family.json#candidate`.
    Every candidate answers each prompt `samples` times (or its responses come from `traces`), and
    is scored with NEX and its baselines; `select` names the score that orders them. `truth` (an
    evaluation, or a JSON or CSV of accuracies) adds each score's selection quality. Returns the
    content of `ranking.json`. A finished ranking is not computed again: with another `select` or
    `truth` only its last stage is. Raises `BadInput` before anything is sampled.
    """
    plan = prepare(
        checkpoints, mini_set=mini_set, samples=samples, seed=seed, select=select, preset=preset,
        traces=traces, weights=weights, credit=credit, answer=answer, row_tokens=row_tokens,
        top_k=top_k, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
        thinking=thinking, batch=batch, device=device, dtype=dtype,
        keep_activations=keep_activations,
    )  # fmt: skip
    accuracy = read_truth(truth, plan.subjects) if truth else {}
    out = Path(out)
    partial = lineage.begin(
        out, verb="rank", arguments=plan.settings, inputs=plan.inputs, seed=seed
    )
    if partial is None:
        found = lineage.read_object(out / "ranking.json")
        if found["select"] == select and found.get("truth") == truth:
            return {**found, "out": str(out), "already": True}
        ranking = conclude(plan, out, select=select, truth=truth, accuracy=accuracy)
        return {**ranking, "out": str(out)}
    score_candidates(plan, partial, device=device, dtype=dtype, keep=keep_activations)
    ranking = conclude(plan, partial, select=select, truth=truth, accuracy=accuracy)
    lineage.finish(partial, out)
    return {**ranking, "out": str(out)}
