"""What is tuned, and the teacher that follows it slowly."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from surgeon.checkpoint import cast_weights
from surgeon.errors import BadInput
from surgeon.settings.training import Tuning

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import Linear


def tune(
    model: nn.Module, tuning: Tuning, *, rows: Sequence[int] = (), seed: int = 0
) -> "PeftModel | None":
    """Make a model trainable in place; returns its PEFT wrapper under LoRA, else None.

    LoRA's factors are float32 on a base of any dtype and start without effect; the `rows` (token
    ids) of embedding and unembedding are trained beside them, and no other row. Full weights are
    brought to float32: in bfloat16 steps of a usual size are rounded away, unless the optimizer
    makes them in float32 copies (`mastered`).
    """
    adapter = None
    if tuning.weights == "full":
        if tuning.mastered:
            cast_weights(model, torch.bfloat16)
        else:
            model.float()
        model.requires_grad_(True)
    else:
        from peft import LoraConfig, get_peft_model

        names = [name.strip() for name in tuning.targets.split(",")]
        config = LoraConfig(
            r=tuning.rank,
            lora_alpha=tuning.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=tuning.dropout,
            target_modules=names[0] if names == ["all-linear"] else names,
            task_type="CAUSAL_LM",
            trainable_token_indices=_rows_by_module(model, rows, names) if rows else None,
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft's own
            torch.manual_seed(seed)
            try:
                adapter = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
            except ValueError as error:
                raise BadInput(
                    f"found targets {tuning.targets!r}: {' '.join(str(error).split())}"
                ) from error
    if tuning.gradient_checkpointing:
        # The older name goes in transformers 6, the newer came in 5.
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})  # pyright: ignore
    return adapter


def require_targets(model: nn.Module, tuning: Tuning) -> None:
    """Raise `BadInput` for a target that is no module of a model, which needs no weights."""
    if tuning.weights == "full" or tuning.targets.strip() == "all-linear":
        return
    modules = [f".{name}" for name, _ in model.named_modules()]
    for target in (name.strip() for name in tuning.targets.split(",")):
        if not any(module.endswith(f".{target}") for module in modules):
            there = sorted(
                {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
            )
            raise BadInput(
                f"found target {target!r}, expected all-linear or some of: {', '.join(there)}."
            )


def _rows_by_module(
    model: Any, rows: Sequence[int], targets: Sequence[str]
) -> dict[str, list[int]]:
    """The rows of the embedding, and of the unembedding where that is a matrix of its own."""
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    for module in modules:
        if module is not None and names[module] in targets:
            raise BadInput(
                f"found {names[module]} among the targets, of which single rows are trained: leave "
                "it out of the targets."
            )
    if modules[1] is None or modules[1].weight is modules[0].weight:
        modules.pop()
    return {names[module]: list(rows) for module in modules}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- the teacher ----------------------------------------------------------------------------------


class Teacher(Protocol):
    """A slow average of the student in float32 that starts at the student (Neuron-OPSD Eq. 9)."""

    tensors: dict[str, Tensor]

    def update(self) -> None:
        """Move by `rate` towards the student."""
        ...

    def acting(self) -> AbstractContextManager[None]:
        """Give the model the teacher's weights inside the block; no gradient may be pending."""
        ...


class AveragedWeights:
    """The average of every trained parameter: all weights, or both factors of LoRA apart."""

    def __init__(self, model: nn.Module, rate: float):
        self.model, self.rate = model, rate
        self.tensors = {n: p.detach().clone().float() for n, p in trainable(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in trainable(self.model).items():
            average = self.tensors[name]
            average.lerp_(parameter.to(average.dtype), self.rate)  # Eq. 9

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Parameters are exchanged, without a copy where the dtype allows."""
        own = trainable(self.model)
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, parameter in own.items():
                kept[name] = _put(parameter, self.tensors[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in own.items():
                    _put(parameter, kept[name])


def _put(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Give a parameter this value; returns the one it had."""
    if hasattr(parameter, "to_local"):  # a shard, whose memory the wrapper knows by address
        before = parameter.detach().clone()
        parameter.copy_(value)
        return before
    before = parameter.data
    parameter.data = value.to(parameter.dtype)
    return before


class AveragedChange:
    """LoRA: the average of the effective change, scale * B A, one dense matrix per module.

    Averaging both factors apart is not the average of their product; this is, and takes the
    memory of the adapted weights in float32.
    """

    def __init__(self, model: nn.Module, rate: float):
        self.layers, self.rate = _lora_layers(model), rate
        self.tensors = {name: _change(layer) for name, layer in self.layers.items()}

    @staticmethod
    def bytes_needed(model: nn.Module) -> int:
        """Memory of the average."""
        return sum(
            4 * layer.get_base_layer().weight.numel()  # pyright: ignore[reportCallIssue]
            for layer in _lora_layers(model).values()
        )

    @torch.no_grad()
    def update(self) -> None:
        for name, layer in self.layers.items():
            self.tensors[name].lerp_(_change(layer), self.rate)  # Eq. 9

    @contextmanager
    def acting(self) -> Iterator[None]:
        scales, undo = {}, []
        for name, layer in self.layers.items():
            scales[name], layer.scaling["default"] = layer.scaling["default"], 0.0
            undo.append(layer.register_forward_hook(_adding(self.tensors[name])))
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.scaling["default"] = scales[name]
            for handle in undo:
                handle.remove()


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """LoRA's change added to the weights inside the block, for decoding without its extra products.

    Takes a second copy of the adapted weights for as long; afterwards they have their own bits.
    """
    layers, kept = _lora_layers(model), {}
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                weight: Any = layer.get_base_layer().weight
                kept[name] = weight.data
                weight.data = (weight.data.float() + _change(layer)).to(weight.dtype)
                layer.merged_adapters.append("default")
        yield
    finally:
        for name, data in kept.items():
            layers[name].get_base_layer().weight.data = data
            layers[name].merged_adapters.clear()


def _lora_layers(model: nn.Module) -> "dict[str, Linear]":
    from peft.tuners.lora import Linear

    return {name: m for name, m in model.named_modules() if isinstance(m, Linear)}


def _change(layer: "Linear") -> Tensor:
    return layer.get_delta_weight("default").detach().float()


def _adding(change: Tensor) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + nn.functional.linear(args[0], change.to(args[0].dtype)).to(out.dtype)

    return hook
