"""The model that is trained, on one process or several."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from surgeon.live.architecture import text_decoder
from surgeon.training.tuning import folded, trainable

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel

T = TypeVar("T")


class _Root(nn.Module):
    """Runs a function of the model inside one forward call, so that DDP and FSDP see that call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        return function(self.model, *args)


class Student:
    """The model that is trained, on this process and its peers.

    `adapter` is its PEFT wrapper, None for full weights. `parallel` is `ddp` (every process holds
    the model) or `fsdp` (torch's fully_shard: each holds a part of every layer); one process needs
    neither. With `bf16` float32 weights compute in bfloat16.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: "Accelerator",
        adapter: "PeftModel | None" = None,
        *,
        parallel: str = "ddp",
        bf16: bool = False,
    ):
        self.model, self.accelerator, self.adapter, self.bf16 = model, accelerator, adapter, bf16
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

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """`function(model, *args)`, in training mode when gradients are on."""
        self.model.train(torch.is_grad_enabled())
        with self.autocast():
            return self.root(function, *args)

    @torch.no_grad()
    def rollouts(self, function: Callable[[nn.Module], T]) -> T:
        """`function(model)` with the whole model on each process, for decoding at its own pace."""
        self.model.eval()
        with self.autocast():
            if not self.sharded:
                with folded(self.model):
                    return function(self.model)
            result = self.root(_gathered(self.root, function))
        self._forget_gathered()
        return result

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

    def weights(self) -> dict[str, Tensor]:
        """What was trained under LoRA, else every weight, each as `whole` brings it."""
        return self.whole(
            all_weights(self.model) if self.adapter is None else dict(trainable(self.model))
        )

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The full tensors behind shards, on the CPU of the first process; all have to ask, and
        the others get nothing: a machine has room for one copy."""
        whole = {}
        for name, tensor in tensors.items():
            full: Any = tensor
            if hasattr(tensor, "full_tensor"):
                full = tensor.full_tensor()  # pyright: ignore
            if self.accelerator.is_main_process:
                whole[name] = full.detach().cpu()
        return whole


def all_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers by name, a tied one once."""
    every = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: t for name, t in model.state_dict().items() if name not in every}
    return {**dict(model.named_parameters()), **buffers}


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


def _gathered(root: nn.Module, function: Callable[..., T]) -> Callable[..., T]:
    """The function, called while every shard is gathered and stays so."""

    def run(model: nn.Module) -> T:
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
