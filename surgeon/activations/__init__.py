"""Sparse FFN activations of sampled responses, from one teacher-forced pass (NEX Eq. 3-4, A.3).

The activation of a unit is h = phi(gate) * up, the input of `down_proj`; its mass is max(0, h). Of
every response token the `top_k` largest masses over all layers together are kept, those computed AT
the token's own position (the pass that reads the token, as published), and summed over rows of
`row_tokens` tokens. Among equal masses the smaller neuron key is kept.
"""

# Shape letters: T response tokens, N tokens of a pass, B batch, F units, C chosen experts, D width.

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.activations.files import load, read_nex_cache, save, write_nex_cache
from surgeon.activations.rows import Activations, Recording, RowSums
from surgeon.activations.selection import Held, Top, largest
from surgeon.activations.statistics import token_statistics
from surgeon.decoding.cache import round_up
from surgeon.errors import BadInput
from surgeon.live.architecture import (
    context_limit,
    fitting_threads,
    head_of,
    key_block,
    text_config,
    text_decoder,
)
from surgeon.neurons import FfnSite, ffn_sites, live_d_ff
from surgeon.traces import Trace

__all__ = [
    "Activations",
    "Recording",
    "load",
    "read_nex_cache",
    "record",
    "save",
    "write_nex_cache",
]

HELD_BYTES = 256 << 20
"""Activations are held this far before they are reduced to each token's largest."""


@contextmanager
def tapped(sites: Sequence[FfnSite], sink: Any) -> Iterator[None]:
    """Call `sink(site, h_NF, expert_NC)` for every site of every pass inside the block."""
    undo = []
    try:
        for site in sites:
            undo += _tap_experts(site, sink) if site.experts else [_tap_dense(site, sink)]
        yield
    finally:
        for release in undo:
            release()


def _tap_dense(site: FfnSite, sink: Any) -> Any:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        sink(site, args[0].detach().flatten(0, -2), None)

    return site.module.register_forward_pre_hook(before).remove


def _tap_experts(site: FfnSite, sink: Any) -> list[Any]:
    """The experts' activations come sorted by expert, over all tokens: put them back by token."""
    module, chosen = site.module, {}

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        chosen["expert"] = args[1].detach()

    def gate(gate_up: Tensor) -> Tensor:
        h = type(module)._apply_gate(module, gate_up)  # pyright: ignore[reportAttributeAccessIssue]
        expert_NC = chosen.pop("expert")
        N, C = expert_NC.shape
        place_NC = torch.arange(N * C, device=h.device).view(N, C)
        if module.config._experts_implementation == "grouped_mm":  # pyright: ignore
            # The same call on the same numbers as the library makes, so the same order.
            _, order = torch.sort(expert_NC.reshape(-1))
            place_NC = torch.empty_like(order).scatter_(0, order, place_NC.flatten()).view(N, C)
        expert_NC, ascending_NC = expert_NC.sort(-1)
        place_NC = place_NC.gather(1, ascending_NC)
        sink(site, h.detach()[place_NC.flatten()].view(N, C * site.n_units), expert_NC)
        return h

    module._apply_gate = gate  # pyright: ignore
    return [
        module.register_forward_pre_hook(before).remove,
        lambda: module.__dict__.pop("_apply_gate", None),
    ]


@torch.inference_mode()
def record(
    model: nn.Module,
    traces: Sequence[Trace],
    *,
    row_tokens: int = 32,
    top_k: int = 2000,
    chunk_tokens: int = 1024,
    batch_tokens: int = 0,
) -> Iterator[Recording]:
    """Read each trace back through the model and yield its recording, in the order of `traces`.

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
    sites = ffn_sites(model)
    check_traces(model, traces)
    device = next(model.parameters()).device
    budget = batch_tokens or (1024 if device.type == "cpu" else 8192)
    recorder = _Recorder(model, sites, row_tokens, top_k, chunk_tokens)
    was_training = model.training
    model.eval()
    try:
        with recorder.experts_reported():
            for window in _windows(traces, 8 * budget):
                with fitting_threads(model):
                    recordings = recorder.window(window, budget)
                yield from recordings
    finally:
        model.train(was_training)


def check_traces(model: nn.Module, traces: Sequence[Trace]) -> None:
    """Raise BadInput for a trace that is longer than the context or has unknown tokens."""
    limit = context_limit(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]  # pyright: ignore
    for trace in traces:
        name = f"sample {trace.sample} of prompt {trace.prompt_id!r}"
        ids = [*trace.prompt_token_ids, *trace.token_ids]
        if not trace.prompt_token_ids or not trace.token_ids:
            raise BadInput(f"{name} has no prompt tokens or no response tokens; expected both.")
        if len(ids) > limit:
            raise BadInput(f"{name} has {len(ids)} tokens; the model's context is {limit}.")
        if max(ids) >= vocabulary:
            raise BadInput(
                f"{name} has the token {max(ids)}; the model knows {vocabulary}. The traces come "
                "from a model with another tokenizer."
            )


def _windows(traces: Sequence[Trace], tokens: int) -> Iterator[list[Trace]]:
    """Runs of consecutive traces of about `tokens` tokens: recordings wait for their turn within
    one, so that memory stays bounded."""
    window: list[Trace] = []
    held = 0
    for trace in traces:
        length = len(trace.prompt_token_ids) + len(trace.token_ids)
        if window and held + length > tokens:
            yield window
            window, held = [], 0
        window.append(trace)
        held += length
    if window:
        yield window


class _Recorder:
    """A model with its taps."""

    def __init__(
        self,
        model: nn.Module,
        sites: list[FfnSite],
        row_tokens: int,
        top_k: int,
        chunk_tokens: int,
    ):
        self.model, self.decoder, self.head = model, text_decoder(model), head_of(model)
        self.sites, self.row_tokens, self.top_k = sites, row_tokens, top_k
        self.block, self.limit = key_block(model), context_limit(model)
        self.chunk_tokens = round_up(chunk_tokens, self.block)
        self.d_ff = live_d_ff(model)
        self.n_neurons = self.d_ff * text_config(model).num_hidden_layers
        self.device = next(model.parameters()).device

    @contextmanager
    def experts_reported(self) -> Iterator[None]:
        """Experts that are computed one by one never report; let them be computed together."""
        config = text_config(self.model)
        kind = getattr(config, "_experts_implementation", None)
        change = any(site.experts for site in self.sites) and kind not in (
            "grouped_mm",
            "batched_mm",
        )
        if change:
            self.model.set_experts_implementation("grouped_mm")  # pyright: ignore
        try:
            yield
        finally:
            if change:
                self.model.set_experts_implementation(kind)  # pyright: ignore

    def window(self, traces: list[Trace], budget: int) -> list[Recording]:
        """The recordings of these traces, in their order."""
        ids = [[*trace.prompt_token_ids, *trace.token_ids] for trace in traces]
        order = sorted(range(len(traces)), key=lambda i: -len(ids[i]))
        found: dict[int, Recording] = {}
        while order:
            longest = round_up(len(ids[order[0]]), self.block)
            batch = order[: max(1, budget // longest)]
            batch = [i for i in batch if self._kind(ids[i]) == self._kind(ids[order[0]])]
            order = order[len(batch) :]
            starts = [len(traces[i].prompt_token_ids) for i in batch]
            recordings = self.batch([ids[i] for i in batch], starts)
            found |= zip(batch, recordings, strict=True)
        return [found[i] for i in range(len(traces))]

    def _kind(self, ids: list[int]) -> tuple[bool, ...]:
        """Sequences of one kind may share a pass: attention on the CPU sums in another order from
        192 and from 768 positions on, and chunks are read otherwise."""
        length = round_up(len(ids), self.block)
        return tuple(length >= least for least in (192, 768, self.chunk_tokens + 1))

    def batch(self, ids: list[list[int]], starts: list[int]) -> list[Recording]:
        """Record right-padded sequences whose responses begin at `starts`."""
        longest = round_up(len(ids[0]), self.block)
        ids_BT = np.zeros((len(ids), longest), dtype=np.int64)
        for b, row in enumerate(ids):
            ids_BT[b, : len(row)] = row
        ids_BT = torch.from_numpy(ids_BT).to(self.device)
        rows = [RowSums(self.row_tokens, self.n_neurons) for _ in ids]
        logprobs: list[list[Tensor]] = [[] for _ in ids]
        entropies: list[list[Tensor]] = [[] for _ in ids]
        cache = None
        if longest > self.chunk_tokens:
            from transformers import DynamicCache

            cache = DynamicCache(config=text_config(self.model))
        for first in range(0, longest, self.chunk_tokens):
            last = min(first + self.chunk_tokens, longest)
            # Where each sequence's response lies in this chunk, in flat positions of the pass.
            spans = [
                slice(
                    b * (last - first) + max(start, first) - first,
                    b * (last - first) + max(start, first, min(len(row), last)) - first,
                )
                for b, (row, start) in enumerate(zip(ids, starts, strict=True))
            ]
            hidden_BTD, tops = self._pass(ids_BT[:, first:last], first, cache, spans)
            for b, top in enumerate(tops):
                if top is not None:
                    rows[b].add(top)
            self._statistics(hidden_BTD, ids_BT, first, ids, starts, logprobs, entropies)
        found = []
        for b, row in enumerate(rows):
            activations, kept = row.finish()
            logprob_T, entropy_T = (torch.cat(x[b]).cpu().numpy() for x in (logprobs, entropies))
            if not np.isfinite(logprob_T).all() or not np.isfinite(activations.mass_E).all():
                raise BadInput("found activations or logits that are not finite: broken weights?")
            found.append(Recording(activations, logprob_T, entropy_T, kept))
        return found

    def _pass(
        self, ids_BT: Tensor, first: int, cache: Any, spans: list[slice]
    ) -> tuple[Tensor, list[Top | None]]:
        """Hidden states of a chunk, and the largest activations of each sequence's span of it."""
        tops: list[Top | None] = [None] * len(spans)
        wanted = [b for b, span in enumerate(spans) if span.stop > span.start]
        held: list[Held] = []
        reported = size = 0

        def reduce() -> None:
            for b in wanted:
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

        B, T = ids_BT.shape
        # Padding stays within the context: some models rescale positions beyond it.
        position_T = torch.arange(first, first + T, device=self.device).clamp_(max=self.limit - 1)
        with tapped(self.sites if wanted else [], sink):
            hidden_BTD = self.decoder(
                input_ids=ids_BT,
                position_ids=position_T.expand(B, -1),
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        if wanted and reported != len(self.sites):
            raise RuntimeError(
                f"{reported} of {len(self.sites)} FFN sites reported: is the model compiled?"
            )
        if held:
            reduce()
        return hidden_BTD, tops

    def _statistics(
        self,
        hidden_BTD: Tensor,
        ids_BT: Tensor,
        first: int,
        ids: list[list[int]],
        starts: list[int],
        logprobs: list[list[Tensor]],
        entropies: list[list[Tensor]],
    ) -> None:
        """Log-probabilities and entropies of the response tokens that this chunk predicts."""
        T = hidden_BTD.shape[1]
        spans = [
            (max(start - 1, first), min(len(row) - 1, first + T))
            for row, start in zip(ids, starts, strict=True)
        ]
        chosen = [b for b, (low, high) in enumerate(spans) if high > low]
        if not chosen:
            return
        hidden_ND = torch.cat(
            [hidden_BTD[b, spans[b][0] - first : spans[b][1] - first] for b in chosen]
        )
        token_N = torch.cat([ids_BT[b, spans[b][0] + 1 : spans[b][1] + 1] for b in chosen])
        counts = [spans[b][1] - spans[b][0] for b in chosen]
        logprob_N, entropy_N = token_statistics(self.head, hidden_ND, token_N)
        for b, logprob, entropy in zip(
            chosen, logprob_N.split(counts), entropy_N.split(counts), strict=True
        ):
            logprobs[b].append(logprob)
            entropies[b].append(entropy)
