"""Activations of a few monitored channels of one layer, while decoding and read back from traces.

The channel of an FFN unit is |h|, h = act(gate) * up: the input of the down projection. The channel
of an attention head is the Euclidean norm of its part of the output projection's input.
"""

# Shape letters: B rows, T tokens of a pass or of a response, C channels, U units, H heads, D width
# of a head.

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.live.blocks import block
from surgeon.live.passes import check_traces, in_windows, length, passes
from surgeon.traces import Trace


class Channels(NamedTuple):
    """Monitored components of one layer; activations list the units first, then the heads."""

    layer: int
    units: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """How many channels there are."""
        return len(self.units) + len(self.heads)


class Tap:
    """The channels' activations in the latest pass of the model."""

    unit_BTU: Tensor | None = None
    head_BTH: Tensor | None = None
    on = True
    """Whether passes are seen."""

    def __init__(self, channels: Channels):
        self.channels = channels

    @property
    def last(self) -> Tensor:
        """(B, T, C) float32 on the model's device, every position of the pass, padding included."""
        wanted = ((self.channels.units, self.unit_BTU), (self.channels.heads, self.head_BTH))
        parts = [part for numbers, part in wanted if numbers and part is not None]
        if len(parts) < sum(bool(numbers) for numbers, _ in wanted):
            raise RuntimeError("the model has made no pass yet, or a compiled one without hooks")
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@contextmanager
def tapped(model: nn.Module, channels: Channels) -> Iterator[Tap]:
    """See the channels in every pass inside the block, at the cost of a gather per projection.

    Raises `BadInput` for mixtures of experts, for heads that don't divide the output projection's
    input, and for numbers the layer doesn't have.
    """
    here = block(model, channels.layer)
    down, attention = here.ffn.down, here.attention
    check_channels(channels, down.in_features, attention.n_heads)
    tap = Tap(channels)
    device = down.weight.device
    unit_U, head_H = (torch.tensor(n, device=device) for n in (channels.units, channels.heads))
    every_head = channels.heads == tuple(range(attention.n_heads))

    def units(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not tap.on:
            return
        tap.unit_BTU = args[0].detach().index_select(-1, unit_U).abs().float()

    def heads(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not tap.on:
            return
        mixed_BTHD = args[0].detach().unflatten(-1, (attention.n_heads, -1))
        if not every_head:
            mixed_BTHD = mixed_BTHD.index_select(-2, head_H)
        tap.head_BTH = torch.linalg.vector_norm(mixed_BTHD, dim=-1, dtype=torch.float32)

    with ExitStack() as undo:
        if channels.units:
            undo.callback(down.register_forward_pre_hook(units).remove)
        if channels.heads:
            undo.callback(attention.out.register_forward_pre_hook(heads).remove)
        yield tap


def check_channels(channels: Channels, n_units: int, n_heads: int) -> None:
    """Raise `BadInput` for no channels, and for numbers that are doubled or not in the layer."""
    if not channels.size:
        raise BadInput("found no channels to monitor; expected at least one unit or head.")
    for name, numbers, count in (
        ("unit", channels.units, n_units),
        ("head", channels.heads, n_heads),
    ):
        wrong = [n for n in numbers if not 0 <= n < count]
        if wrong:
            raise BadInput(
                f"found {name} {wrong[0]} in layer {channels.layer}; expected 0 to {count - 1}. "
                "The channels belong to another model."
            )
        if len(set(numbers)) < len(numbers):
            raise BadInput(f"found a {name} of layer {channels.layer} twice; expected it once.")


@torch.no_grad()
def read_back(
    model: nn.Module, traces: Sequence[Trace], channels: Channels, *, batch_tokens: int = 4096
) -> Iterator[Tensor]:
    """Yield x_TC, float32 on the CPU, of each trace's response, in the order of `traces`.

    Row i is read at the position whose input is response token i, as while decoding. Traces of
    similar length share right-padded passes of at most `batch_tokens` tokens; a longer one is read
    in parts through a key/value cache. Raises `BadInput` as `tapped` does, for traces that the
    model can't read, and for activations that are not finite.
    """
    if batch_tokens < 1:
        raise BadInput(f"found batch_tokens {batch_tokens}, expected at least 1.")
    check_traces(model, traces)

    def read(window: list[Trace]) -> list[Tensor]:
        parts: list[list[Tensor]] = [[] for _ in window]
        # Entered for each window: the caller may use the model while it holds the result.
        with tapped(model, channels) as tap:
            for step in passes(model, window, batch_tokens=batch_tokens, until=channels.layer):
                step.run()
                x_BTC = tap.last.cpu()
                for b, part in enumerate(step.parts):
                    trace = window[part.trace]
                    columns = part.columns(len(trace.prompt_token_ids), length(trace))
                    parts[part.trace].append(x_BTC[b, columns])
        found = [torch.cat(part) for part in parts]
        if not all(bool(x_TC.isfinite().all()) for x_TC in found):
            raise BadInput("found activations that are not finite: broken weights?")
        return found

    yield from in_windows(model, traces, batch_tokens, read)
