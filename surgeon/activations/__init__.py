"""Sparse FFN activations of sampled responses, from one teacher-forced pass (NEX Eq. 3-4, A.3).

The activation of a unit is h = phi(gate) * up, the input of `down_proj`; its mass is max(0, h). Of
every response token the `top_k` largest masses over all layers together are kept, those computed AT
the token's own position (the pass that reads the token, as published), and summed over rows of
`row_tokens` tokens. Among equal masses the smaller neuron key is kept. A neuron none of whose kept
activations in a row is above `tau` is left out of the row, its mass with it (sec. A.3).
"""

# Shape letters: T response tokens, N tokens of a pass, B batch, F units, C chosen experts, D width.

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.activations.files import load, read_nex_cache, save, write_nex_cache
from surgeon.activations.rows import Activations, Recording, RowSums
from surgeon.activations.selection import Held, Top, add_positive, largest
from surgeon.activations.statistics import token_statistics
from surgeon.errors import BadInput
from surgeon.live.architecture import at_hand, device_of, head_of, text_config
from surgeon.live.blocks import FfnSite, blocks, d_ff
from surgeon.live.experts import experts_reported, tap_experts
from surgeon.live.passes import Pass, check_traces, in_windows, length, passes
from surgeon.traces import Trace

__all__ = [
    "PAPER_TOP_K",
    "PAPER_UNITS",
    "Activations",
    "Recording",
    "kept_per_token",
    "load",
    "read_nex_cache",
    "record",
    "save",
    "write_nex_cache",
]

HELD_BYTES = 256 << 20
"""Activations are held this far before they are reduced to each token's largest."""
PAPER_TOP_K, PAPER_UNITS = 2000, 350208
"""Activations kept of the units of the paper's model (NEX A.3): 36 layers of 9,728."""


Sink = Callable[[FfnSite, Tensor, Tensor | None], None]
"""Called with a site, h_NF of its units (chosen ones, where it has experts) and the chosen experts
(N, C), ascending."""


@contextmanager
def tapped(sites: Sequence[FfnSite], sink: Sink) -> Iterator[None]:
    """Call `sink` for every site of every pass inside the block."""
    with ExitStack() as undo:
        for site in sites:
            if site.experts:
                _tap_experts(undo, site, sink)
            else:
                _tap_dense(undo, site, sink)
        yield


def _tap_dense(undo: ExitStack, site: FfnSite, sink: Sink) -> None:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sink(site, args[0].detach().flatten(0, -2), None)

    undo.callback(site.module.register_forward_pre_hook(before).remove)


def _tap_experts(undo: ExitStack, site: FfnSite, sink: Sink) -> None:
    def told(h_NCU: Tensor, expert_NC: Tensor, _: Tensor) -> None:
        sink(site, h_NCU.flatten(1), expert_NC)

    tap_experts(undo, site, told)


def kept_per_token(passed_units: int, share: float = PAPER_TOP_K / PAPER_UNITS) -> int:
    """How many activations a share of the units that a token passes through is; at least 1."""
    return max(1, round(share * passed_units))


@torch.inference_mode()
def record(
    model: nn.Module,
    traces: Sequence[Trace],
    *,
    row_tokens: int = 32,
    top_k: int = 2000,
    tau: float = 0.0,
    chunk_tokens: int = 1024,
    batch_tokens: int = 0,
    wanted: Container[int] | None = None,
) -> Iterator[Recording]:
    """Read each trace back through the model and yield its recording, in the order of `traces`; of
    all, or of the `wanted` numbers, to the bit as if all were asked for.

    Traces of similar length share right-padded passes of at most `batch_tokens` tokens (0: 1024 on
    the CPU, 8192 elsewhere). Longer ones are read in chunks of `chunk_tokens` through a key/value
    cache, so memory grows with the chunk and the cache only. Raises BadInput for an architecture
    that can't be recorded, and for a trace that the model can't read.
    """
    if row_tokens < 1 or top_k < 1 or chunk_tokens < 1 or batch_tokens < 0:
        raise BadInput(
            f"found row_tokens {row_tokens}, top_k {top_k}, chunk_tokens {chunk_tokens}, "
            f"batch_tokens {batch_tokens}; expected at least 1, 1, 1 and 0."
        )
    if tau < 0:
        raise BadInput(f"found tau {tau}, expected at least 0.")
    sites = [site for block in blocks(model) for site in block.sites]
    check_traces(model, traces)
    budget = batch_tokens or (1024 if device_of(model).type == "cpu" else 8192)
    recorder = _Recorder(model, sites, row_tokens, top_k, tau, chunk_tokens, budget)
    with experts_reported(model, sites):
        yield from in_windows(model, traces, budget, recorder.window, wanted)


@dataclass
class _Reading:
    """What has been read of one trace."""

    start: int
    """The place of its first response token."""
    stop: int
    """The place behind its last one."""
    token_T: Tensor
    """Its response tokens."""
    rows: RowSums
    logprobs: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)

    def recording(self) -> Recording:
        activations, kept = self.rows.finish()
        logprob_T, entropy_T = (torch.cat(x).cpu().numpy() for x in (self.logprobs, self.entropies))
        if not np.isfinite(logprob_T).all() or not np.isfinite(activations.mass_E).all():
            raise BadInput("found activations or logits that are not finite: broken weights?")
        positive_N = self.rows.positive_N.astype(np.float32)
        return Recording(activations, logprob_T, entropy_T, kept, positive_N)


class _Recorder:
    """A model with its taps."""

    def __init__(
        self,
        model: nn.Module,
        sites: list[FfnSite],
        row_tokens: int,
        top_k: int,
        tau: float,
        chunk_tokens: int,
        batch_tokens: int,
    ):
        self.model, self.head, self.sites = model, head_of(model), sites
        self.row_tokens, self.top_k, self.tau = row_tokens, top_k, tau
        self.chunk_tokens, self.batch_tokens = chunk_tokens, batch_tokens
        self.d_ff = d_ff(model)
        self.n_neurons = self.d_ff * text_config(model).num_hidden_layers

    def window(self, traces: list[Trace]) -> list[Recording]:
        """The recordings of these traces, in their order."""
        readings = [self._reading(trace) for trace in traces]
        for step in passes(
            self.model,
            traces,
            batch_tokens=self.batch_tokens,
            chunk_tokens=self.chunk_tokens,
            apart=True,
        ):
            members = [readings[part.trace] for part in step.parts]
            hidden_BTD, tops = self._run(step, members)
            for member, top in zip(members, tops, strict=True):
                if top is not None:
                    member.rows.add(top)
            self._statistics(step, hidden_BTD, members)
        return [reading.recording() for reading in readings]

    def _reading(self, trace: Trace) -> _Reading:
        return _Reading(
            len(trace.prompt_token_ids),
            length(trace),
            torch.tensor(trace.token_ids),
            RowSums(self.row_tokens, self.n_neurons, self.tau),
        )

    def _run(self, step: Pass, members: list[_Reading]) -> tuple[Tensor, list[Top | None]]:
        """Hidden states of a pass, and the largest activations of each response in it."""
        B, T = step.ids_BT.shape
        # Where each response lies in the flat positions of the pass.
        spans = [
            slice(b * T + columns.start, b * T + columns.stop)
            for b, columns in enumerate(
                part.columns(member.start, member.stop)
                for part, member in zip(step.parts, members, strict=True)
            )
        ]
        tops: list[Top | None] = [None] * B
        wanted = [b for b, span in enumerate(spans) if span.stop > span.start]
        held: list[Held] = []
        reported = size = 0

        def reduce() -> None:
            for b in wanted:
                add_positive(held, spans[b], self.d_ff, members[b].rows.positive_N)
                tops[b] = largest(held, spans[b], self.top_k, self.d_ff, tops[b])
            held.clear()

        def sink(site: FfnSite, h_NF: Tensor, expert_NC: Tensor | None) -> None:
            nonlocal reported, size
            reported += 1
            held.append(Held(site, h_NF, expert_NC))
            size += h_NF.numel() * h_NF.element_size()
            if size > HELD_BYTES:
                reduce()
                size = 0

        with tapped(self.sites if wanted else [], sink):
            hidden_BTD = step.run()
        if wanted and reported != len(self.sites):
            raise RuntimeError(
                f"{reported} of {len(self.sites)} FFN sites reported: is the model compiled?"
            )
        if held:
            reduce()
        return hidden_BTD, tops

    def _statistics(self, step: Pass, hidden_BTD: Tensor, members: list[_Reading]) -> None:
        """Log-probabilities and entropies of the response tokens that a pass predicts."""
        chosen, hidden, tokens = [], [], []
        for b, (part, member) in enumerate(zip(step.parts, members, strict=True)):
            # The state at a token's place predicts the token after it.
            columns = part.columns(member.start - 1, member.stop - 1)
            if columns.stop > columns.start:
                chosen.append(member)
                hidden.append(hidden_BTD[b, columns])
                done = part.first + columns.start + 1 - member.start
                tokens.append(member.token_T[done : done + columns.stop - columns.start])
        if not chosen:
            return
        counts = [len(token_T) for token_T in tokens]
        token_N = torch.cat(tokens).to(hidden_BTD.device)
        with at_hand(self.head.module):
            logprob_N, entropy_N = token_statistics(self.head, torch.cat(hidden), token_N)
        for member, logprob_T, entropy_T in zip(
            chosen, logprob_N.split(counts), entropy_N.split(counts), strict=True
        ):
            member.logprobs.append(logprob_T)
            member.entropies.append(entropy_T)
