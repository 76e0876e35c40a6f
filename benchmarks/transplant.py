"""Time and peak memory of `surgeon transplant` on a sharded checkpoint made on the spot.

Time is a ratio to `cp -r` of the same bytes within one run, each the shortest of some rounds with
the inputs in the page cache. Fingerprinting the inputs (sha256 of every byte, for the lineage) is
timed apart from the transplant itself: `cp` has nothing like it.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MIB, GB = 1 << 20, 10**9
TARGET_RATIO = 1.3
"""Times `cp -r`."""
TARGET_EXTRA = 500 * MIB
"""Bytes of peak memory beyond the largest shard of each checkpoint."""
WIDTH, UNITS, VOCABULARY, HEADS, SHARD = 2048, 6144, 32000, 16, 500 * MIB

RUN = """
import json, resource, sys, time
import numpy as np
from surgeon.checkpoint import Checkpoint
from surgeon.transplant import transplant
recipient, donor, out, layers, dry = sys.argv[1:]
begin = time.perf_counter()
a, b = Checkpoint.open(recipient), Checkpoint.open(donor)
a.digest, b.digest
fingerprinted, busy = time.perf_counter(), time.process_time()
mask_LF = np.random.default_rng(0).random((a.n_layers, a.d_ff)) < 0.1
report = transplant(a, donor=b, mask=mask_LF, layers=layers or None, dry_run=bool(dry), out=out)
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([fingerprinted - begin, end - fingerprinted, time.process_time() - busy, peak]))
"""


class Run(NamedTuple):
    """One transplant in a process of its own."""

    fingerprint: float
    """Seconds for the digests of both inputs."""
    seconds: float
    """Seconds for everything else, imports apart."""
    cpu: float
    """Processor seconds of that: what it takes on a machine that has other work too."""
    peak: int
    """Bytes, the process's largest resident size."""


def write_checkpoint(path: Path, size: int, seed: int) -> int:
    """Write a bf16 qwen3-shaped checkpoint of about `size` bytes in 500-MiB shards; its layers."""
    import torch
    from safetensors.torch import save_file

    layer = {
        **{f"self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"},
        "mlp.gate_proj.weight": (UNITS, WIDTH),
        "mlp.up_proj.weight": (UNITS, WIDTH),
        "mlp.down_proj.weight": (WIDTH, UNITS),
        "input_layernorm.weight": (WIDTH,),
        "post_attention_layernorm.weight": (WIDTH,),
    }
    head = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    n_layers = max(4, round((size - 2 * VOCABULARY * WIDTH) / layer_bytes))
    shapes = head | {
        f"model.layers.{n}.{name}": shape for n in range(n_layers) for name, shape in layer.items()
    }
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if filled + nbytes > SHARD and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += nbytes
    path.mkdir(parents=True)
    noise = torch.randn(1 << 26, generator=torch.Generator().manual_seed(0)).bfloat16()
    rng = torch.Generator().manual_seed(1)
    weight_map = {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, shape in members.items():
            n = torch.Size(shape).numel()
            start = int(torch.randint(len(noise) - n, (1,), generator=rng))
            tensors[name] = noise[start : start + n].view(shape) * (1 + seed / 64)
            weight_map[name] = file
        save_file(tensors, path / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": WIDTH, "intermediate_size": UNITS, "num_hidden_layers": n_layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY,
        "head_dim": WIDTH // HEADS, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return n_layers


def copied(source: Path, target: Path) -> tuple[float, float, float]:
    """Seconds of `cp -r`, with its bytes flushed as a transplant's are, and processor seconds."""
    os.sync()
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "-r", source, target], check=True)
    copied, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sync", "-f", target], check=True)
    end = time.perf_counter()
    shutil.rmtree(target)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return copied - begin, end - begin, cpu


def transplanted(recipient: Path, donor: Path, out: Path, layers: str, dry: bool = False) -> Run:
    """Run a transplant of a tenth of the units in a process of its own."""
    os.sync()
    command = [sys.executable, "-c", RUN, recipient, donor, out, layers, "1" if dry else ""]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(out, ignore_errors=True)
    return Run(*json.loads(found.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> bool:
    """Print the figures; True when time and memory are within the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=4, help="size of each checkpoint")
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    size = int(options.gb * GB)
    place = options.dir or Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if free < 4 * size + GB:
        print(
            f"transplant: skipped, {place} has {free / GB:.0f} GB free, needs {4 * size / GB:.0f}"
        )
        return True
    root = Path(tempfile.mkdtemp(prefix="bench-transplant-", dir=place))
    try:
        n_layers = write_checkpoint(root / "recipient", size, 0)
        write_checkpoint(root / "donor", size, 1)
        return measure(root, n_layers, options.rounds)
    finally:
        shutil.rmtree(root)


def measure(root: Path, n_layers: int, rounds: int) -> bool:
    """Print one line per case; True when all are within the targets."""
    recipient, donor = root / "recipient", root / "donor"
    shards = [file.stat().st_size for file in recipient.glob("*.safetensors")]
    largest = 2 * max(shards)
    print(
        f"transplant: two checkpoints of {sum(shards) / GB:.2f} GB in {len(shards)} shards of at "
        f"most {max(shards) / MIB:.0f} MiB, {n_layers} layers"
    )
    cases = {"all layers": "", "a quarter of the layers": f"0-{n_layers // 4 - 1}"}
    copies, runs = [], {case: [] for case in cases}
    for _ in range(rounds):  # interleaved, so that other load on the machine meets all alike
        copies.append(copied(recipient, root / "copy"))
        for case, layers in cases.items():
            runs[case].append(transplanted(recipient, donor, root / "out", layers))
    dry = transplanted(recipient, donor, root / "out", "", dry=True)
    copy, flushed, copy_cpu = (min(column) for column in zip(*copies, strict=True))
    print(
        f"  cp -r {copy:.2f} s ({copy_cpu:.2f} s of processor); with its bytes on the disk "
        f"{flushed:.2f} s"
    )
    good = True
    for case, members in runs.items():
        seconds, peak = min(r.seconds for r in members), max(r.peak for r in members)
        cpu = min(r.cpu for r in members)
        fast, small = seconds <= TARGET_RATIO * copy, peak <= largest + TARGET_EXTRA
        good &= fast and small
        print(
            f"  {case}: {seconds:.2f} s, {seconds / copy:.2f} x cp -r (target {TARGET_RATIO}, "
            f"{'met' if fast else 'missed'}), {seconds / flushed:.2f} x with flushing, "
            f"{cpu / copy_cpu:.2f} x its processor time; peak "
            f"{peak / MIB:.0f} MiB (target {(largest + TARGET_EXTRA) / MIB:.0f}, "
            f"{'met' if small else 'missed'})"
        )
    fingerprint = min(r.fingerprint for members in runs.values() for r in members)
    print(f"  fingerprints of both inputs {fingerprint:.2f} s; dry run {dry.seconds:.2f} s")
    return good


if __name__ == "__main__":
    main()
