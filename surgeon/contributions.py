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

from surgeon.activations import check_traces
from surgeon.errors import BadInput
from surgeon.live.architecture import text_config, text_decoder
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
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(traces, batch_tokens):
            for number, chunk in _read(
                model, found, [traces[i] for i in batch], activation, chunk_tokens, batch_tokens
            ):
                states, tokens = chunk
                unembedding_TD = unembedding_VD[tokens]
                yield (
                    batch[number],
                    torch.stack(
                        [
                            score(state_TF, unit.down.weight, unembedding_TD).float()
                            for state_TF, unit in zip(states, found, strict=True)
                        ],
                        1,
                    ),
                )
    finally:
        model.train(was_training)


def _batches(traces: Sequence[Trace], batch_tokens: int) -> Iterator[list[int]]:
    """Consecutive traces whose padded tokens fit a pass."""
    batch: list[int] = []
    longest = 0
    for i, trace in enumerate(traces):
        length = len(trace.prompt_token_ids) + len(trace.token_ids)
        if batch and max(longest, length) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, length)
    if batch:
        yield batch


def _read(
    model: nn.Module,
    found: Sequence[Units],
    traces: Sequence[Trace],
    activation: str,
    chunk_tokens: int,
    pass_tokens: int,
) -> Iterator[tuple[int, tuple[list[Tensor], Tensor]]]:
    """(Number, (activations (T, F) by layer, token ids (T,))) for each chunk of each response.

    A chunk that lies across two passes is put together before it is given out.
    """
    decoder, device = text_decoder(model), next(model.parameters()).device
    ids = [[*t.prompt_token_ids, *t.token_ids] for t in traces]
    longest = max(map(len, ids))
    ids_BP = torch.zeros(len(ids), longest, dtype=torch.long)
    for b, row in enumerate(ids):
        ids_BP[b, : len(row)] = torch.tensor(row)
    ids_BP = ids_BP.to(device)
    cache: Any = None
    if longest > pass_tokens:
        from transformers import DynamicCache

        cache = DynamicCache(config=text_config(model))
    left: list[list[Tensor]] = [[] for _ in traces]
    for first in range(0, longest, pass_tokens):
        part_BP = ids_BP[:, first : first + pass_tokens]
        sink: list[Tensor] = []
        with _tapped(found, activation, sink):
            decoder(input_ids=part_BP, past_key_values=cache, use_cache=cache is not None)
        for b, trace in enumerate(traces):
            # The state at position t - 1 predicts token t: shift by one.
            start = len(trace.prompt_token_ids) - 1
            end = start + len(trace.token_ids)
            low, high = max(start, first), min(end, first + part_BP.shape[1])
            if low >= high:
                continue
            states = [layer_BPF[b, low - first : high - first] for layer_BPF in sink]
            done = low - start - (len(left[b][0]) if left[b] else 0)
            if left[b]:
                states = [torch.cat(pair) for pair in zip(left[b], states, strict=True)]
            whole = len(states[0]) if high == end else len(states[0]) // chunk_tokens * chunk_tokens
            for at in range(0, whole, chunk_tokens):
                chunk = [state_TF[at : min(at + chunk_tokens, whole)] for state_TF in states]
                token_T = torch.tensor(trace.token_ids[done + at :][: len(chunk[0])], device=device)
                yield b, (chunk, token_T)
            left[b] = [state_TF[whole:] for state_TF in states]
