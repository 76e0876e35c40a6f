"""Nine SLERP candidates of a Qwen3-0.6B-shaped pair: merge-sweep, mergekit, plain copying.

Makes two random bf16 siblings (1.2 GB each) in a temporary directory, then times
(1) copying the bytes of nine candidates, fsync included; (2) `sweep` of nine candidates, fsync and
the endpoints' digests included, smoke tests left out (mergekit has none); (3) nine `run_merge`
calls of mergekit in one process, which leaves its files to the page cache, so the time until they
are on disk too is given beside it. Sources are in the page cache throughout.
Needs 15 GB of disk; under 4 minutes on two idle cores.
"""

import json
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RATIOS = "0.1:0.9:0.1"
COUNT = 9
# Qwen/Qwen3-0.6B config.json
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "hidden_act": "silu",
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "attention_bias": False,
    "bos_token_id": 151643, "eos_token_id": 151645, "initializer_range": 0.02,
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the model above."""
    d, f, q, kv, h = 1024, 3072, 16 * 128, 8 * 128, 128
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (151936, d)}
    for i in range(28):
        layer = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,), "mlp.gate_proj": (f, d),
            "mlp.up_proj": (f, d), "mlp.down_proj": (d, f), "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q),
            "self_attn.q_norm": (h,), "self_attn.k_norm": (h,),
        }  # fmt: skip
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (d,)}


def write_pair(root: Path) -> tuple[Path, Path]:
    """Two random siblings in one safetensors file each."""
    torch.manual_seed(0)
    a = {name: torch.randn(shape).mul_(0.02).bfloat16() for name, shape in shapes().items()}
    for where in ("a", "b"):
        path = root / where
        path.mkdir()
        (path / "config.json").write_text(json.dumps(SHAPE))
        save_file(a, path / "model.safetensors", metadata={"format": "pt"})
        for tensor in a.values():
            tensor.add_(torch.randn(tensor.shape, dtype=torch.bfloat16), alpha=0.004)
    return root / "a", root / "b"


def timed(what: Callable[[], object]) -> float:
    """Seconds of a call, started with nothing left to write back from before."""
    os.sync()
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def copy_nine(source: Path, out: Path) -> None:
    """The bytes of nine candidates, copied and made durable."""
    out.mkdir()
    for i in range(COUNT):
        target = out / f"{i}.safetensors"
        shutil.copyfile(source / "model.safetensors", target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def sweep_nine(a: Path, b: Path, out: Path) -> None:
    """One `sweep` of nine ratios."""
    from surgeon.merge import sweep

    sweep(str(a), str(b), out=out, ratios=RATIOS, smoke=False)


def mergekit_nine(a: Path, b: Path, out: Path) -> None:
    """Nine `run_merge` calls; their import and the sweep's lie outside the timing."""
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import MergeOptions, run_merge

    for i in range(1, COUNT + 1):
        LoaderCache().loaders.clear()
        config = {
            "merge_method": "slerp", "base_model": str(a), "parameters": {"t": i / 10},
            "models": [{"model": str(a)}, {"model": str(b)}], "dtype": "bfloat16",
        }  # fmt: skip
        options = MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(config), str(out / str(i)), options)


def main() -> None:
    """Print the comparison; all sides run with torch's default thread count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mergekit.merge  # noqa: F401

        import surgeon.merge  # noqa: F401
    with tempfile.TemporaryDirectory(prefix="merge-sweep-") as work:
        root = Path(work)
        a, b = write_pair(root)
        out = root / "out"
        n_bytes = COUNT * (a / "model.safetensors").stat().st_size
        seconds: dict[str, float] = {}
        durable = 0.0
        runs: dict[str, Callable[[], object]] = {
            "copy": lambda: copy_nine(a, out),
            "sweep": lambda: sweep_nine(a, b, out),
            "mergekit": lambda: mergekit_nine(a, b, out),
        }
        for name, run in runs.items():
            for file in (a, b):  # into the page cache
                (file / "model.safetensors").read_bytes()
            seconds[name] = timed(run)
            if name == "mergekit":
                start = time.perf_counter()
                os.sync()
                durable = seconds[name] + time.perf_counter() - start
                seconds["mergekit, on disk"] = durable
            shutil.rmtree(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    size = f"{n_bytes / 1e9:.1f} GB"
    print(f"merge-sweep, {COUNT} SLERP candidates of a Qwen3-0.6B-shaped pair ({size})")
    for name, value in seconds.items():
        print(f"  {name:<22}{value:7.1f} s  {n_bytes / 1e9 / value:5.2f} GB/s")
    faster, over = durable / seconds["sweep"], seconds["sweep"] / seconds["copy"]
    print(
        f"  {faster:.2f}x faster than nine mergekit runs with their files on disk (target >= 2); "
        f"{seconds['mergekit'] / seconds['sweep']:.2f}x without waiting for mergekit's files"
    )
    print(f"  {over:.2f}x the time of copying the same bytes (target <= 2)")
    print(f"  peak memory of the process {peak:.1f} GB, mapped files included")


if __name__ == "__main__":
    main()
