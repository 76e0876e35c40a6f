"""Memory of one training step, by arithmetic for a 7B shape and by measurement for smaller ones.

    python -m benchmarks.training_memory [--tokens 16384]
    python -m benchmarks.training_memory --measure 1b [--tuning lora] [--layers N] [--tokens 256]

The arithmetic: bytes of weights, gradients, master copies and moments follow from the number of
parameters; the activations that are kept for the backward pass from tokens, width and layers. The
measurement makes a random-weight model of the shape, does one step with `surgeon.training.fit`, and
counts the bytes of what it then holds, and the process's peak less what it had before the model.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks._timing import peak_mib
from surgeon.settings.training import Schedule, Tuning


class Shape(NamedTuple):
    """A dense decoder."""

    layers: int
    width: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def per_layer(self) -> int:
        """Parameters of a layer's products."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim * self.width
        return attention + 3 * self.width * self.d_ff

    @property
    def parameters(self) -> int:
        """All but norms and biases."""
        return self.layers * self.per_layer + self.vocabulary * self.width * (2 - self.tied)

    def factors(self, rank: int) -> int:
        """Parameters of LoRA's factors on every product of the layers."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = (q, kv, kv, q, self.d_ff, self.d_ff, self.d_ff)
        return self.layers * rank * sum(self.width + side for side in sides)


SHAPES = {
    "7b": Shape(28, 3584, 18944, 28, 4, 128, 152_064, False),  # Qwen2.5-7B
    "1b": Shape(16, 2048, 8192, 32, 8, 64, 128_256, True),  # Llama-3.2-1B
}
TUNINGS = {
    "lora": Tuning(gradient_checkpointing=True),
    "full": Tuning(weights="full", gradient_checkpointing=True),
    "mastered": Tuning(weights="full", mastered=True, gradient_checkpointing=True),
}


def held(shape: Shape, tuning: Tuning) -> dict[str, int]:
    """Bytes that are held between two steps, and the gradients that come to them within one."""
    n = shape.parameters
    if tuning.weights == "lora":
        m = shape.factors(tuning.rank)
        return {"weights": 2 * n + 4 * m, "gradients": 4 * m, "optimizer": 8 * m}
    if tuning.mastered:
        return {"weights": 2 * n, "gradients": 2 * n, "optimizer": 12 * n}
    return {"weights": 4 * n, "gradients": 4 * n, "optimizer": 8 * n}


def activations(shape: Shape, tuning: Tuning, tokens: int) -> int:
    """Bytes kept for the backward pass of so many tokens: with checkpointing each layer's input and
    the inside of one layer, else the inside of each (products' inputs and outputs, the gate)."""
    size = 2 if tuning.weights == "lora" or tuning.mastered else 4
    attention = 2 * shape.width + 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    inside = attention + 2 * shape.width + 4 * shape.d_ff
    if tuning.gradient_checkpointing:
        return tokens * size * (shape.layers * shape.width + inside)
    return tokens * size * shape.layers * inside


def model_of(shape: Shape, dtype: torch.dtype) -> Any:
    """A random Llama of this shape, made without its slow initialisation."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.d_ff, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied,
        dtype=dtype,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with no_init_weights():
        model: Any = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1) if "norm" in name else parameter.uniform_(-0.02, 0.02)
    model.tie_weights()
    return model


def bytes_of(tensors: Any) -> int:
    """Bytes of tensors, one that is shared once."""
    by_place = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(by_place.values())


def step(shape: Shape, tuning: Tuning, tokens: int) -> dict[str, float]:
    """Bytes after one step of training, and at its peak beside what there was before."""
    from accelerate import Accelerator

    from surgeon.training import loop
    from surgeon.training.sequences import nll_loss, targets
    from surgeon.training.student import Student
    from surgeon.training.tuning import tune

    before = peak_mib()
    full = tuning.weights == "full" and not tuning.mastered
    model = model_of(shape, torch.float32 if full else torch.bfloat16)
    adapter = tune(model, tuning)
    ids = torch.randint(0, shape.vocabulary, (tokens,)).tolist()
    micros = [targets([ids], [[False] + [True] * (tokens - 1)])]
    kept: list[Any] = []
    made = loop.optimizer_of

    def remembered(*given: Any) -> Any:
        kept.append(made(*given))
        return kept[-1]

    def batches(_: int) -> Iterator[loop.Batch]:
        yield loop.Batch(micros, weight=tokens - 1, tokens=tokens - 1, responses=1, sums={})

    with mock.patch.object(loop, "optimizer_of", remembered), TemporaryDirectory() as place:
        loop.fit(
            Student(model, Accelerator(cpu=True), adapter), batches, nll_loss, Path(place), steps=1,
            schedule=Schedule(),
        )  # fmt: skip
    moments = [tensor for row in kept[0].state.values() for tensor in row.values()]
    return {
        "weights": bytes_of(model.parameters()),
        "optimizer": bytes_of(moments),
        "peak": (peak_mib() - before) * 2**20,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the arithmetic of every shape and tuning, and one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--measure", choices=SHAPES, help="measure this shape")
    parser.add_argument("--tuning", choices=TUNINGS, default="lora")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape's")
    parser.add_argument("--vocabulary", type=int, default=0, help="a smaller vocabulary")
    parser.add_argument("--tokens", type=int, default=16384, help="of a micro-batch")
    given = parser.parse_args(arguments)
    print("| shape | tuning | weights | gradients | optimizer | activations | together, GB |")
    print("|---|---|---|---|---|---|---|")
    shapes = [given.measure] if given.measure else list(SHAPES)
    for name in shapes:
        shape = SHAPES[name]
        shape = shape._replace(
            layers=given.layers or shape.layers, vocabulary=given.vocabulary or shape.vocabulary
        )
        for how in [given.tuning] if given.measure else list(TUNINGS):
            parts = held(shape, TUNINGS[how])
            parts["activations"] = activations(shape, TUNINGS[how], given.tokens)
            cells = [f"{value / 1e9:.2f}" for value in (*parts.values(), sum(parts.values()))]
            print(f"| {name} | {how} | {' | '.join(cells)} |")
            if given.measure:
                found = step(shape, TUNINGS[how], given.tokens)
                print(
                    f"measured: weights {found['weights'] / 1e9:.2f}, optimizer "
                    f"{found['optimizer'] / 1e9:.2f}, peak {found['peak'] / 1e9:.2f} GB"
                )


if __name__ == "__main__":
    main()
