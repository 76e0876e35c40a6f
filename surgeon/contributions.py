"""What each FFN unit adds to the tokens a response is made of, from one teacher-forced pass.

Early unembedding (Neuron-OPSD Eq. 2-3): the unit's activation at the position that predicts a
token, times the projection of its output column onto that token's unembedding row.
"""

# Shapes: T response tokens, L layers, F units per layer, D model width, B traces and P tokens of a
# pass.

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.architecture import causal_lm
from surgeon.live.blocks import Ffn, blocks
from surgeon.live.passes import check_traces, evaluating, length, passes
from surgeon.traces import Trace

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(activation_TF, down_DF, unembedding_TD) -> score_TF, such as `nopsd.contribution`."""


@contextmanager
def _tapped(ffns: Sequence[Ffn], activation: str, sink: list[Tensor]) -> Iterator[None]:
    """Append each layer's activations (B, P, F) to `sink` in every pass inside the block."""

    def gate(_: nn.Module, __: Any, out: Tensor) -> None:
        sink.append(out)

    def gated(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sink.append(args[0])

    undo = []
    for ffn in ffns:
        if activation == "gated":
            undo.append(ffn.down.register_forward_pre_hook(gated))
        elif ffn.activation is not None:
            undo.append(ffn.activation.register_forward_hook(gate))
        else:
            raise BadInput(
                f"found a {type(ffn.module).__name__} whose activation function is no module, "
                "expected one: act(gate) can't be seen. Use activation gated."
            )
    try:
        yield
    finally:
        for handle in undo:
            handle.remove()


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
    key/value cache, so memory doesn't grow with its length but for the cache. Raises `BadInput`
    for mixtures of experts and for traces that the model can't read.
    """
    ffns = [block.ffn for block in blocks(model)]
    unembedding_VD = causal_lm(model).get_output_embeddings().weight
    check_traces(model, traces)
    # By layer: what a pass left of a chunk that goes on in the next one.
    rest: list[Tensor] = []
    with evaluating(model):
        for step in passes(model, traces, batch_tokens=batch_tokens, in_order=True):
            sink: list[Tensor] = []
            with _tapped(ffns, activation, sink):
                step.run()
            for b, part in enumerate(step.parts):
                trace = traces[part.trace]
                # The state at a token's place predicts the token after it.
                start, stop = len(trace.prompt_token_ids) - 1, length(trace) - 1
                columns = part.columns(start, stop)
                states = [layer_BPF[b, columns] for layer_BPF in sink]
                at = part.first + columns.start - start
                if rest:
                    at -= len(rest[0])
                    states = [torch.cat(pair) for pair in zip(rest, states, strict=True)]
                ends = part.first + columns.stop >= stop
                T = len(states[0])
                whole = T if ends else T - T % chunk_tokens
                for first in range(0, whole, chunk_tokens):
                    span = slice(first, min(first + chunk_tokens, whole))
                    token_T = torch.tensor(trace.token_ids[at + span.start : at + span.stop])
                    unembedding_TD = unembedding_VD[token_T.to(unembedding_VD.device)]
                    scores = [
                        score(state_TF[span], ffn.down.weight, unembedding_TD).float()
                        for state_TF, ffn in zip(states, ffns, strict=True)
                    ]
                    yield part.trace, torch.stack(scores, 1)
                rest = [] if ends else [state_TF[whole:] for state_TF in states]
