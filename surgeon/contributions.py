"""What each FFN unit adds to the tokens a response is made of, from one teacher-forced pass.

Early unembedding (Neuron-OPSD Eq. 2-3): the unit's activation at the position that predicts a
token, times the projection of its output column onto that token's unembedding row.
"""

# Shapes: T response tokens, L layers, F units per layer, D model width, B traces and P tokens of a
# pass.

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.architecture import text_config, text_decoder
from surgeon.live.passes import check_traces, evaluating, length, passes
from surgeon.traces import Trace

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(activation_TF, down_DF, unembedding_TD) -> score_TF, such as `nopsd.contribution`."""


class Units(NamedTuple):
    """The FFN of one layer in a live model."""

    activation: nn.Module
    """The activation function, whose output is act(gate)."""
    down: nn.Linear
    """The down projection, whose input is act(gate) * up."""


def units(model: nn.Module) -> list[Units]:
    """The FFN of each layer; raises `BadInput` naming the architecture for mixtures of experts."""
    found = []
    for layer in text_decoder(model).layers:  # pyright: ignore
        mlp = getattr(layer, "mlp", None)
        down = getattr(mlp, "down_proj", None)
        activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
        if not isinstance(down, nn.Linear) or not isinstance(activation, nn.Module):
            raise BadInput(
                f"found the architecture {text_config(model).model_type!r}, whose FFN is not one "
                "gated block per layer; contribution sets are defined for dense models only."
            )
        found.append(Units(activation, down))
    return found


@contextmanager
def _tapped(found: Sequence[Units], activation: str, sink: list[Tensor]) -> Iterator[None]:
    """Append each layer's activations (B, P, F) to `sink` in every pass inside the block."""

    def gate(_: nn.Module, __: Any, out: Tensor) -> None:
        sink.append(out)

    def gated(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sink.append(args[0])

    undo = [
        unit.activation.register_forward_hook(gate)
        if activation == "gate"
        else unit.down.register_forward_pre_hook(gated)
        for unit in found
    ]
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
    found, unembedding_VD = units(model), model.get_output_embeddings().weight  # pyright: ignore
    check_traces(model, traces)
    # By layer: what a pass left of a chunk that goes on in the next one.
    rest: list[Tensor] = []
    with evaluating(model):
        for step in passes(model, traces, batch_tokens=batch_tokens, in_order=True):
            sink: list[Tensor] = []
            with _tapped(found, activation, sink):
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
                        score(state_TF[span], unit.down.weight, unembedding_TD).float()
                        for state_TF, unit in zip(states, found, strict=True)
                    ]
                    yield part.trace, torch.stack(scores, 1)
                rest = [] if ends else [state_TF[whole:] for state_TF in states]
