"""`record` against the plain forward pass, on a random-weight model of Qwen3-0.6B's shape.

    python -m benchmarks.record [--tokens 512] [--peak-tokens 8192] [--layers 28] [--dtypes bf16]

Prints, per dtype, seconds of the decoder alone, of the decoder with all logits, and of `record`
(activations, log-probabilities and entropies), each the best of interleaved repeats, and ratios.
The peak memory of `record` on one long trace is measured in a fresh process, beside that of the
model alone.
"""

import argparse
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks._timing import peak_mib, seconds_in_turns
from surgeon.activations import record
from surgeon.traces import Trace

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TARGET = 1.15


def model_of(layers: int, dtype: torch.dtype, vocabulary: int) -> Any:
    """A random Qwen3 of the 0.6B model's width, tied, made without its slow initialisation."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.initialization import no_init_weights

    config = Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=vocabulary, tie_word_embeddings=True,
        max_position_embeddings=40960, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    with no_init_weights():
        model: Any = Qwen3ForCausalLM(config)
    model.to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    model.tie_weights()
    return model.eval()


def trace_of(tokens: int, vocabulary: int) -> Trace:
    """A short prompt and a response, `tokens` tokens together."""
    ids = np.random.default_rng(0).integers(0, vocabulary, tokens).tolist()
    return Trace("0", 0, ids[:8], ids[8:], "", "stop")


def compare(name: str, tokens: int, layers: int, top_k: int, vocabulary: int, repeats: int) -> None:
    model = model_of(layers, DTYPES[name], vocabulary)
    trace = trace_of(tokens, vocabulary)
    ids = torch.tensor([[*trace.prompt_token_ids, *trace.token_ids]])

    @torch.inference_mode()
    def decoder() -> None:
        model.get_decoder()(input_ids=ids, use_cache=False)

    @torch.inference_mode()
    def logits() -> None:
        model(input_ids=ids, use_cache=False)

    def recorded() -> None:
        list(record(model, [trace], top_k=top_k))

    plain, full, own = seconds_in_turns(decoder, logits, recorded, repeats=repeats)
    print(f"{name}: {tokens} tokens, {layers} layers, {torch.get_num_threads()} threads")
    print(f"  decoder alone      {plain:7.2f} s   record / decoder alone = {own / plain:.2f}")
    print(f"  forward, logits    {full:7.2f} s   record / forward       = {own / full:.2f}")
    verdict = "met" if own <= TARGET * full else "missed"
    print(f"  record             {own:7.2f} s   target <= {TARGET} x forward: {verdict}")


def peak(name: str, tokens: int, layers: int, top_k: int, vocabulary: int) -> None:
    """Print the peak memory of this process before and after recording one long trace."""
    model = model_of(layers, DTYPES[name], vocabulary)
    before = peak_mib() / 1024
    start = time.perf_counter()
    list(record(model, [trace_of(tokens, vocabulary)], top_k=top_k))
    after = peak_mib() / 1024
    took = time.perf_counter() - start
    print(
        f"{name}: record of {tokens} tokens: peak {after:.2f} GiB, {after - before:.2f} GiB above "
        f"the model alone ({before:.2f} GiB), {took:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--peak-tokens", type=int, default=8192, help="0: leave the memory out")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--top-k", type=int, default=2000)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--peak-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = (args.layers, args.top_k, args.vocabulary)
    if args.peak_only:
        peak(args.dtypes[0], args.peak_tokens, *shape)
        return
    for name in args.dtypes:
        compare(name, args.tokens, *shape, repeats=args.repeats)
    if args.peak_tokens:
        for name in args.dtypes:
            command = [sys.executable, "-m", "benchmarks.record", "--peak-only", "--dtypes", name]
            for option in ("peak_tokens", "layers", "top_k", "vocabulary"):
                command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
