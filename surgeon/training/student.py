"""The model that is trained, on one process or several; sequences, and their states and losses."""

# Shapes: B sequences, T tokens, P response positions, C of them in a chunk, D model width.

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from surgeon.errors import BadInput
from surgeon.live.architecture import Head, text_decoder
from surgeon.training.tuning import folded

if TYPE_CHECKING:
    from accelerate import Accelerator

PARALLEL = ("ddp", "fsdp")
"""How several processes share a model: each holds it whole, or a part of every layer."""


class _Root(nn.Module):
    """Runs a function of the model inside one forward call, so that DDP and FSDP see that call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


class Student:
    """The model that is trained, on this process and its peers.

    `parallel` is `ddp` (every process holds the model) or `fsdp` (torch's fully_shard: each holds
    a part of every layer); one process needs neither. With `bf16` float32 weights compute in
    bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: "Accelerator",
        *,
        parallel: str = "ddp",
        bf16: bool = False,
    ):
        self.model, self.accelerator, self.bf16 = model, accelerator, bf16
        self.sharded = parallel == "fsdp" and accelerator.num_processes > 1
        self.root: Any = _Root(model.to(accelerator.device))
        if self.sharded:
            _shard(self.root, accelerator)
        else:
            self.root = accelerator.prepare_model(self.root)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bfloat16 where the weights are kept in float32."""
        if not self.bf16 or next(self.model.parameters()).dtype != torch.float32:
            return nullcontext()
        return torch.autocast(self.accelerator.device.type, torch.bfloat16)

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, *args)`, in training mode when gradients are on."""
        self.model.train(torch.is_grad_enabled())
        with self.autocast():
            return self.root(function, *args)

    @torch.no_grad()
    def rollouts(self, function: Callable[[nn.Module], Any]) -> Any:
        """`function(model)` with the whole model on each process, for decoding at its own pace."""
        self.model.eval()
        with self.autocast():
            if not self.sharded:
                with folded(self.model):
                    return function(self.model)
            found = self.root(_gathered(self.root, function))
        self._forget_gathered()
        return found

    @contextmanager
    def taught_by(self, acting: AbstractContextManager[None]) -> Iterator[None]:
        """Inside the block the model has the weights that `acting` gives it."""
        self._forget_gathered()
        with acting:
            yield
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Let go of gathered weights, which would hide that the shards behind them have changed."""
        for part in _shards(self.root):
            part.reshard()

    def last(self, is_last: bool) -> AbstractContextManager[Any]:
        """Between processes, gradients are exchanged once: in the last micro-batch."""
        if is_last or self.sharded or self.accelerator.num_processes == 1:
            return nullcontext()
        return self.accelerator.no_sync(self.root)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The full tensors behind shards, on the CPU of the first process; all have to ask, and
        the others get nothing: a machine has room for one copy."""
        found = {}
        for name, tensor in tensors.items():
            full: Any = tensor
            if hasattr(tensor, "full_tensor"):
                full = tensor.full_tensor()  # pyright: ignore
            if self.accelerator.is_main_process:
                found[name] = full.detach().cpu()
        return found


def _shard(root: _Root, accelerator: "Accelerator") -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in text_decoder(root.model).layers:  # pyright: ignore
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)


def _shards(module: nn.Module) -> list[Any]:
    """The parts of a model that are gathered together."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    """True where a process holds a part of each layer only."""
    return bool(_shards(model))


def _gathered(root: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called while every shard is gathered and stays so."""

    def run(model: nn.Module) -> Any:
        parts = [part for part in _shards(root) if part is not root]
        for part in parts:
            part.set_reshard_after_forward(False)
            part.unshard()
        try:
            return function(model)
        finally:
            for part in parts:
                part.set_reshard_after_forward(True)
                part.reshard()

    return run


# --- sequences and their losses -------------------------------------------------------------------


def unembedding(model: nn.Module) -> Tensor:
    """The unembedding matrix (V, D); of a sharded model, whole only inside a call."""
    module: Any = model.get_output_embeddings()  # pyright: ignore
    if not isinstance(module, nn.Linear) or module.bias is not None:
        raise BadInput(
            f"found an unembedding of kind {type(module).__name__}, expected a plain matrix: leave "
            "it out of the targets."
        )
    return module.weight


class Sequences(NamedTuple):
    """Right-padded token ids, and where the states that predict a response token are."""

    ids_BT: Tensor
    at_P: Tensor
    """int64 positions in the flattened (B * T) states, response after response."""

    def to(self, device: torch.device) -> "Sequences":
        return Sequences(self.ids_BT.to(device), self.at_P.to(device))


def sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Sequences:
    """Prompts followed by their responses, padded to the longest."""
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    places = []
    for b, row in enumerate(rows):
        ids_BT[b, : len(row)] = torch.tensor(row)
        # The state at a token predicts the next one: shift by one.
        start = b * longest + len(prompts[b]) - 1
        places.append(torch.arange(start, start + len(responses[b])))
    return Sequences(ids_BT, torch.cat(places))


def response_states(model: nn.Module, sequences: Sequences) -> Tensor:
    """Final hidden states (P, D) at the positions that predict a response token.

    Padding stands on the right, so causal attention needs no mask.
    """
    states_BTD = text_decoder(model)(input_ids=sequences.ids_BT, use_cache=False).last_hidden_state
    return states_BTD.flatten(0, 1)[sequences.at_P]


def chunked_nll(hidden_PD: Tensor, head: Head, token_P: Tensor, chunk_tokens: int = 0) -> Tensor:
    """Sum of -log p(token) in nats, the logits made (and made again) in chunks of tokens."""
    chunk = chunk_tokens or 1024

    def nll(part_CD: Tensor, token_C: Tensor) -> Tensor:
        return nn.functional.cross_entropy(head.logits(part_CD), token_C, reduction="sum")

    total = hidden_PD.new_zeros((), dtype=torch.float32)
    for part_CD, token_C in zip(hidden_PD.split(chunk), token_P.split(chunk), strict=True):
        total = total + recomputed(nll, part_CD, token_C, use_reentrant=False)
    return total
