"""What `surgeon pick` costs per response, on a random-weight model of Qwen3-0.6B's shape.

    python -m benchmarks.pick [--tokens 512] [--layers 28] [--dtypes bf16]

A response is read once, and scored with one sparse dot product (NEX sec. A.6): beside it the plain
forward pass with all logits, in CPU seconds, each the best of interleaved repeats. Target: at most
1.15 times it.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks._timing import seconds_in_turns
from benchmarks.record import DTYPES, TARGET, model_of, trace_of
from surgeon import nex
from surgeon.activations import record
from surgeon.scoring.reader import Asked, good_mass, read_values


def compare(name: str, tokens: int, layers: int, top_k: int, vocabulary: int, repeats: int) -> None:
    model = model_of(layers, DTYPES[name], vocabulary)
    trace = trace_of(tokens, vocabulary)
    ids = torch.tensor([[*trace.prompt_token_ids, *trace.token_ids]])
    n = layers * model.config.intermediate_size
    weight_N = np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)
    asked = Asked(True, False, weight_N, top_k, 1.0)

    @torch.inference_mode()
    def forward() -> None:
        model(input_ids=ids, use_cache=False)

    def picked() -> None:
        read_values(model, [trace], asked)

    plain, own = seconds_in_turns(forward, picked, repeats=repeats, clock=time.process_time)
    (recording,) = record(model, [trace], top_k=top_k)
    neuron_K, mass_K = nex.response_mass(recording.activations)
    begun = time.perf_counter()
    for _ in range(10):
        good_mass(neuron_K, mass_K, weight_N)
    dot = (time.perf_counter() - begun) / 10
    verdict = "met" if own <= TARGET * plain else "missed"
    print(f"{name}: {tokens} tokens, {layers} layers, {torch.get_num_threads()} threads")
    print(f"  forward, logits  {plain:7.2f} CPU s a response")
    print(
        f"  pick             {own:7.2f} CPU s, {own / plain:.2f} x forward (target <= {TARGET}: "
        f"{verdict}); of it the dot product over {len(neuron_K):,} neurons {1000 * dot:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--top-k", type=int, default=2000)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    args = parser.parse_args()
    shape = (args.layers, args.top_k, args.vocabulary)
    for name in args.dtypes:
        compare(name, args.tokens, *shape, repeats=args.repeats)


if __name__ == "__main__":
    main()
