"""Which FFN units and attention heads of one layer push a model towards the tokens it wrote.

NeuReasoner sec. 2.1: phi(c, t) of every component c of the middle layer for response token t, the
k highest of each token, and those that are among them at every token of a span (Mixture of
Neurons). A component's number is that of its unit, or the number of units plus that of its head.
"""

# Shape letters: T targets, C components (units, then heads), K kept.

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from surgeon.attribution.shares import Attribution, Read, adjoint, direct, middle_layer, softmax
from surgeon.errors import BadInput
from surgeon.live.blocks import block
from surgeon.live.passes import check_traces
from surgeon.live.processor import fitting_threads
from surgeon.traces import Trace

__all__ = [
    "Attribution",
    "Method",
    "Persistent",
    "Read",
    "Where",
    "adjoint",
    "attribute",
    "direct",
    "elected",
    "middle_layer",
    "persistent",
    "softmax",
    "top_k",
]

Method = Literal["direct", "adjoint", "softmax"]
TARGETS = 64
"""Targets whose attributions are held at once."""


class Where(NamedTuple):
    """The response tokens of one span; several ranges where it is made of several pieces."""

    trace: int
    """Its number among the traces."""
    ranges: tuple[tuple[int, int], ...]
    """[start, end) over response tokens; each token is its own target."""


class Persistent(NamedTuple):
    """The components of a span that are among the top k throughout."""

    numbers: tuple[int, ...]
    """By share, then by mean rank."""
    shares: tuple[float, ...]
    """Of the span's tokens, those that have the component among their top k."""
    fell_back: bool
    """R16: none is at every token, so these are the ones at most tokens. Say so to the user."""


def top_k(phi_TC: Tensor, k: int) -> Tensor:
    """The numbers (T, k) of each target's highest components, highest first; ties to the lower."""
    if not 1 <= k <= phi_TC.shape[-1]:
        raise BadInput(f"found k {k}, expected 1 to {phi_TC.shape[-1]} components.")
    return torch.argsort(phi_TC, dim=-1, descending=True, stable=True)[..., :k]


def persistent(top_TK: Tensor, *, fallback: int = 0) -> Persistent:
    """The components in every row of `top_k`'s numbers; where none is, the most frequent ones.

    Those are `fallback` many (0: all that share the highest count), at most K (reading R16).
    """
    rows = top_TK.tolist()
    if not rows:
        raise BadInput("found a span without tokens, expected at least one.")
    counts = Counter(number for row in rows for number in row)
    ranks: Counter[int] = Counter()
    for row in rows:
        for rank, number in enumerate(row):
            ranks[number] += rank
    order = sorted(counts, key=lambda n: (-counts[n], ranks[n] / counts[n], n))
    most = counts[order[0]]
    fell_back = most < len(rows)
    if not fell_back or not fallback:
        order = [number for number in order if counts[number] == most]
    if fell_back:
        order = order[: min(fallback or len(rows[0]), len(rows[0]))]
    return Persistent(
        tuple(order), tuple(counts[number] / len(rows) for number in order), fell_back
    )


def elected(spans: Sequence[Sequence[int]], most: int) -> list[int]:
    """The components that are kept in most spans; of equals those that come earlier in theirs.

    Each span lists its components as `Persistent.numbers` does.
    """
    votes = Counter(number for numbers in spans for number in numbers)
    ranks: Counter[int] = Counter()
    for numbers in spans:
        for rank, number in enumerate(numbers):
            ranks[number] += rank
    return sorted(votes, key=lambda n: (-votes[n], ranks[n] / votes[n], n))[:most]


def attribute(
    model: nn.Module,
    traces: Sequence[Trace],
    spans: Sequence[Where],
    *,
    method: Method = "direct",
    layer: int | None = None,
    k: int,
    shortlist: int = 0,
    temperature: float = 0.1,
    fallback: int = 0,
) -> Iterator[Persistent]:
    """Yield the persistent components of each span, in the order of `spans`.

    A token's target logit is its own, read where the model predicts it. Spans of one trace that
    follow one another share a pass (not with `softmax`, whose result depends on its shortlist: the
    `shortlist` components of the span with the highest mean direct score; 0: four times k).
    `fallback` is for spans without a component that persists, as in `persistent`.
    Raises `BadInput` for spans that aren't in their trace and traces that the model can't read.
    """
    if method not in get_args(Method):
        raise BadInput(f"found method {method!r}, expected one of {', '.join(get_args(Method))}.")
    layer = middle_layer(model) if layer is None else layer
    here = block(model, layer)
    n_components = here.ffn.down.in_features + here.attention.n_heads
    count = shortlist or min(4 * k, n_components)
    if not 1 <= k <= count <= n_components:
        raise BadInput(
            f"found k {k} and shortlist {count}; expected 1 <= k <= shortlist <= "
            f"{n_components}, the units and heads of the layer."
        )
    if fallback < 0:
        raise BadInput(f"found fallback {fallback}, expected 0 (all of the highest count) or more.")
    check_traces(model, traces)
    for number, span in enumerate(spans):
        _check_span(number, span, traces)
    for trace_number, group in groupby(spans, key=lambda span: span.trace):
        trace, members = traces[trace_number], list(group)
        ids = [*trace.prompt_token_ids, *trace.token_ids]
        with fitting_threads(model):
            if method == "softmax":
                tops = [
                    _shortlisted(model, ids, _targets(trace, [span]), layer, k, count, temperature)
                    for span in members
                ]
            else:
                tops = _shared(model, ids, trace, members, method, layer, k)
        for top_TK in tops:
            yield persistent(top_TK, fallback=fallback)


def _check_span(number: int, span: Where, traces: Sequence[Trace]) -> None:
    if not 0 <= span.trace < len(traces):
        raise BadInput(f"span {number} is in trace {span.trace}; expected 0 to {len(traces) - 1}.")
    length = len(traces[span.trace].token_ids)
    if not span.ranges or any(not 0 <= start < end <= length for start, end in span.ranges):
        raise BadInput(
            f"span {number} has the ranges {list(span.ranges)}; expected some of [start, end) "
            f"within the {length} response tokens of its trace."
        )


def _targets(trace: Trace, spans: Sequence[Where]) -> list[int]:
    """The places in prompt and response, in order, of all response tokens in these spans."""
    start = len(trace.prompt_token_ids)
    tokens = {t for span in spans for low, high in span.ranges for t in range(low, high)}
    return [start + t for t in sorted(tokens)]


def _tops(
    read: Read, ids: list[int], targets: list[int], k: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(attributions, numbers of the top k) of the targets, a chunk at a time."""
    for first in range(0, len(targets), TARGETS):
        place_T = torch.tensor(targets[first : first + TARGETS], device=device)
        phi_TC, _ = read(place_T - 1, torch.tensor(ids, device=device)[place_T])
        if not bool(phi_TC.isfinite().all()):
            raise BadInput("found attributions that are not finite: broken weights?")
        yield phi_TC, top_k(phi_TC, k)


def _shared(
    model: nn.Module,
    ids: list[int],
    trace: Trace,
    spans: list[Where],
    method: Method,
    layer: int,
    k: int,
) -> list[Tensor]:
    """The numbers (T, K) of the top k of each span of one trace, from one pass."""
    device = next(model.parameters()).device
    targets = _targets(trace, spans)
    # What comes after the last target can't have a part in it; the target itself isn't read.
    read = (direct if method == "direct" else adjoint)(model, ids[: targets[-1]], layer=layer)
    top_TK = torch.cat([top_TK for _, top_TK in _tops(read, ids, targets, k, device)]).cpu()
    row = {target: t for t, target in enumerate(targets)}
    return [top_TK[[row[t] for t in _targets(trace, [span])]] for span in spans]


def _shortlisted(
    model: nn.Module,
    ids: list[int],
    targets: list[int],
    layer: int,
    k: int,
    count: int,
    temperature: float,
) -> Tensor:
    """The same of one span by the softmax rule, for the highest in mean direct score."""
    device = next(model.parameters()).device
    read = direct(model, ids[: targets[-1]], layer=layer)
    sums = [phi_TC.sum(0) for phi_TC, _ in _tops(read, ids, targets, k, device)]
    component_C = top_k(torch.stack(sums).sum(0)[None], count)[0].sort().values
    read = softmax(
        model, ids[: targets[-1]], component_C.tolist(), layer=layer, temperature=temperature
    )
    top_TK = torch.cat([top_TK for _, top_TK in _tops(read, ids, targets, k, device)])
    return component_C[top_TK].cpu()
