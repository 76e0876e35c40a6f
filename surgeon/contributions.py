"""What each FFN unit adds to the tokens a response is made of, from one teacher-forced pass.

Early unembedding (Neuron-OPSD Eq. 2-3): the unit's activation at the position that predicts a
token, times the projection of its output column onto that token's unembedding row.
"""

# Shapes: T response tokens, L layers, F units per layer, D model width, B traces and P tokens of a
# pass.

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.architecture import causal_lm
from surgeon.live.blocks import Ffn, FfnSite, blocks, d_ff
from surgeon.live.experts import experts_reported, tap_experts
from surgeon.live.passes import check_traces, evaluating, length, passes
from surgeon.live.processor import fitting_threads
from surgeon.traces import Trace

MOST_SCORES = 1 << 26
"""Numbers of a chunk of a mixture's scores."""
Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(activation_TF, down_DF, unembedding_TD) -> score_TF, such as `nopsd.contribution`."""


class _States(NamedTuple):
    """What one site told of some tokens, the tokens first."""

    k: Tensor
    """Activations: of a dense FFN (T, F), of experts (T, C, units)."""
    expert: Tensor | None = None
    """(T, C) numbers of the chosen experts."""
    weight: Tensor | None = None
    """(T, C) their routing weights."""

    def of(self, place: Callable[[Tensor], Tensor]) -> "_States":
        if self.expert is None or self.weight is None:
            return _States(place(self.k))
        return _States(place(self.k), place(self.expert), place(self.weight))


def _joined(before: _States, after: _States) -> _States:
    k = torch.cat((before.k, after.k))
    if before.expert is None or after.expert is None:
        return _States(k)
    assert before.weight is not None and after.weight is not None
    expert = torch.cat((before.expert, after.expert))
    return _States(k, expert, torch.cat((before.weight, after.weight)))


class _Site(NamedTuple):
    """Where units of a layer are computed, and how their contribution is scored."""

    place: FfnSite
    ffn: Ffn | None
    """None for experts."""

    def tap(self, undo: ExitStack, activation: str, sink: Callable[[_States], None]) -> None:
        """Call `sink` with the states (B * P tokens) of every pass."""
        if self.ffn is None:
            tap_experts(undo, self.place, lambda *told: sink(_States(*told)))
            return

        def gate(_: nn.Module, __: Any, out: Tensor) -> None:
            sink(_States(out.flatten(0, -2)))

        def gated(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            sink(_States(args[0].flatten(0, -2)))

        if activation == "gated":
            undo.callback(self.ffn.down.register_forward_pre_hook(gated).remove)
        elif self.ffn.activation is not None:
            undo.callback(self.ffn.activation.register_forward_hook(gate).remove)
        else:
            raise BadInput(
                f"found a {type(self.ffn.module).__name__} whose activation function is no module, "
                "expected one: act(gate) can't be seen. Use activation gated."
            )

    def scores(self, states: _States, unembedding_TD: Tensor, score: Score) -> Tensor:
        """(T, units): of experts that a token doesn't pass through 0."""
        if self.ffn is not None:
            return score(states.k, self.ffn.down.weight, unembedding_TD).float()
        assert states.expert is not None and states.weight is not None
        module: Any = self.place.module
        T, E, U = len(states.k), self.place.experts, self.place.n_units
        found_TEU = states.k.new_zeros(T, E, U, dtype=torch.float32)
        for expert in states.expert.unique().tolist():
            t, c = torch.where(states.expert == expert)
            down_DU = module.down_proj[expert]
            down_DU = down_DU.T if module.is_transposed else down_DU
            k_TU = states.k[t, c] * states.weight[t, c, None].to(states.k.dtype)
            found_TEU[t, expert] = score(k_TU, down_DU, unembedding_TD[t]).float()
        return found_TEU.flatten(1)


def _sites(model: nn.Module) -> list[list[_Site]]:
    """By layer."""
    found = []
    for block in blocks(model):
        ffns = iter(block.ffns)
        found.append([_Site(s, None if s.experts else next(ffns)) for s in block.sites])
    return found


@torch.inference_mode()
def contributions(
    model: nn.Module,
    traces: Sequence[Trace],
    score: Score,
    *,
    activation: str = "gate",
    chunk_tokens: int = 128,
    batch_tokens: int = 4096,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the trace, scores (T, L, F) of the next `chunk_tokens` of its response).

    Traces come in order, and a trace's chunks in order. `score` is applied once per layer and
    chunk; `activation` is `gate` (act(gate) alone) or `gated` (act(gate) * up). Traces share a
    right-padded pass of at most `batch_tokens` tokens; a longer one is read in parts through a
    key/value cache, so memory doesn't grow with its length but for the cache.

    Of a mixture of experts a token has the units of the experts that it passes through (unit j of
    expert e is e * units + j, shared experts' units follow), each times the routing weight of its
    expert; the others' scores are 0, the activation is `gated` for all, and chunks are as short as
    their memory asks. Raises `BadInput` for traces that the model can't read.
    """
    layers, width = _sites(model), d_ff(model)
    sites = [site for layer in layers for site in layer]
    if any(site.ffn is None for site in sites):
        activation = "gated"  # experts report nothing else
        # Rows hold all experts' units, most of them 0.
        chunk_tokens = max(1, min(chunk_tokens, MOST_SCORES // (len(layers) * width)))
    unembedding_VD = causal_lm(model).get_output_embeddings().weight
    check_traces(model, traces)

    def scored(states: Sequence[_States], unembedding_TD: Tensor) -> Tensor:
        told, rows = iter(states), []
        for layer in layers:
            parts = [site.scores(next(told), unembedding_TD, score) for site in layer]
            row_TF = torch.cat(parts, 1)
            rows.append(nn.functional.pad(row_TF, (0, width - row_TF.shape[1])))
        return torch.stack(rows, 1)

    # By site: what a pass left of a chunk that goes on in the next one.
    rest: list[_States] = []
    places = [site.place for site in sites]
    with evaluating(model), experts_reported(model, places), fitting_threads(model):
        for step in passes(model, traces, batch_tokens=batch_tokens, in_order=True):
            told: list[_States] = []
            with ExitStack() as undo:
                for site in sites:
                    site.tap(undo, activation, told.append)
                step.run()
            width_P = len(told[0].k) // len(step.parts)
            for b, part in enumerate(step.parts):
                trace = traces[part.trace]
                # The state at a token's place predicts the token after it.
                start, stop = len(trace.prompt_token_ids) - 1, length(trace) - 1
                columns = part.columns(start, stop)
                own = slice(b * width_P + columns.start, b * width_P + columns.stop)
                states = [one.of(lambda x, own=own: x[own]) for one in told]
                at = part.first + columns.start - start
                if rest:
                    at -= len(rest[0].k)
                    states = [_joined(*pair) for pair in zip(rest, states, strict=True)]
                ends = part.first + columns.stop >= stop
                T = len(states[0].k)
                whole = T if ends else T - T % chunk_tokens
                for first in range(0, whole, chunk_tokens):
                    span = slice(first, min(first + chunk_tokens, whole))
                    token_T = torch.tensor(trace.token_ids[at + span.start : at + span.stop])
                    unembedding_TD = unembedding_VD[token_T.to(unembedding_VD.device)]
                    part_of = [one.of(lambda x, span=span: x[span]) for one in states]
                    yield part.trace, scored(part_of, unembedding_TD)
                rest = [] if ends else [one.of(lambda x, n=whole: x[n:]) for one in states]
