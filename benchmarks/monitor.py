"""Monitored against plain decoding, on a random-weight model of Qwen3-0.6B's shape.

    python -m benchmarks.monitor [--tokens 192] [--batch 8] [--layers 28] [--dtype bf16] [--profile]

Two decoders share the model and take turns pass by pass: one plain, one with a monitor of three
levels that reads its detectors at every step end and never fires, so both give the same answers.
What is compared are sums over blocks of passes; the ratio is the median over blocks. On the CPU it
is one thread's CPU seconds, in which other processes take no part. The paper reports 1.06 to 1.09.
"""

# Shape letters: K blocks of passes.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import cProfile
import gc
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks._timing import peak_mib
from benchmarks.record import DTYPES, model_of
from surgeon.channels import Channels
from surgeon.decoding import Decoder, Request, stream_key
from surgeon.neureasoner.detectors import Detector
from surgeon.neureasoner.features import FEATURES
from surgeon.settings.neureasoner import WatchSettings
from surgeon.watch.monitor import Monitor
from surgeon.watch.watching import Watching, union

TARGET = 1.05
VOCABULARY, PROMPT, LAYER = 151_936, 64, 14
UNITS, HEADS, STEP = 28, 4, 97
"""Channels of each level, units so far apart."""
ENDING = 32
"""One word in so many ends a step; a paragraph of thinking has some 40 tokens or more."""
BLOCK, WARM = 16, 8
"""Passes that are compared together, and passes before the first block."""


@contextmanager
def sized(vocabulary: int, layer: int, n_heads: int) -> Iterator[None]:
    """Another model inside the block: its vocabulary, the watched layer, its heads."""
    before = {name: globals()[name] for name in ("VOCABULARY", "LAYER", "HEADS", "UNITS", "STEP")}
    globals().update(VOCABULARY=vocabulary, LAYER=layer)
    if n_heads < 3 * HEADS:
        globals().update(HEADS=1, UNITS=4, STEP=5)
    try:
        yield
    finally:
        globals().update(before)


def tokenizer_of() -> Any:
    """Words of no meaning; one in `ENDING` ends with a blank line."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [f"w{i}.\n\n" if i % ENDING == 1 else f"w{i}" for i in range(VOCABULARY - 2)]
    vocabulary = {word: i for i, word in enumerate([*words, "<INTRA>", "<INTER>"])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="w0")


def monitor_of() -> Monitor:
    """Untrained detectors over channels of their own, with thresholds that nothing reaches."""
    channels, detectors = {}, {}
    for n, level in enumerate(FEATURES):
        units = tuple(range(n, n + STEP * UNITS, STEP))
        channels[level] = Channels(LAYER, units, tuple(range(HEADS * n, HEADS * (n + 1))))
        detectors[level] = Detector(channels[level].size * len(FEATURES[level])).eval()
        detectors[level].requires_grad_(False).threshold.fill_(2.0)
    return Monitor(channels, detectors, WatchSettings(), "")


def decoder_of(model: Any, batch: int, tokens: int, watcher: Watching | None) -> Decoder:
    """A batch of prompts, its first pass done."""
    decoder = Decoder(
        model, stop=frozenset(), rows=batch, max_tokens=tokens, temperature=0.6, top_p=0.95,
        top_k=20, sheds=False, watcher=watcher,
    )  # fmt: skip
    ids_BT = np.random.default_rng(0).integers(0, VOCABULARY, (batch, PROMPT)).tolist()
    for b, ids in enumerate(ids_BT):
        decoder.add(b, Request(ids, stream_key(0, str(b), 0)))
    decoder.step()
    return decoder


def profile(model: Any, watcher: Watching, batch: int, clock: Callable[[], float]) -> None:
    """Where the time of the watcher goes, per pass."""
    passes = 64
    decoder = decoder_of(model, batch, passes + 1, watcher)
    profiler = cProfile.Profile(clock)
    profiler.enable()
    for _ in range(passes):
        decoder.step()
    profiler.disable()
    print(f"  profile of {passes} passes: ms per pass, itself and what it calls")
    stats: Any = pstats.Stats(profiler)
    rows = [
        (total, own, calls, os.path.basename(file), name)
        for (file, _, name), (_, calls, own, total, _) in stats.stats.items()
        if "surgeon" in file and ("neureasoner" in file or "channels" in file or name == "step")
    ]
    for total, own, calls, file, name in sorted(rows, reverse=True)[:16]:
        print(
            f"    {1e3 * total / passes:8.3f} {1e3 * own / passes:8.3f} own "
            f"{calls / passes:6.2f} calls  {file} {name}"
        )


def main() -> None:
    """Print the ratio, and the profile when the target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=90, help="fewer tokens after so many")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bf16 where the CPU has it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="also when the target is met")
    args = parser.parse_args()
    on_cpu = args.device == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    if on_cpu:
        torch.set_num_threads(1)
    fast = not on_cpu or torch.cpu._is_avx512_bf16_supported()
    name = args.dtype or ("bf16" if fast else "fp32")
    model = model_of(args.layers, DTYPES[name], VOCABULARY).to(args.device)
    watcher = Watching(model, tokenizer_of(), monitor_of())
    decoders = [decoder_of(model, args.batch, args.tokens, w) for w in (None, watcher)]

    answers: tuple[list[Any], ...] = ([], [])
    seconds: tuple[list[float], ...] = ([], [])
    begun = time.perf_counter()
    gc.disable()
    for n in range(args.tokens - 1):
        if n >= WARM + 2 * BLOCK and time.perf_counter() - begun > args.seconds:
            break
        # Which of them goes first changes too.
        for i in (0, 1) if n % 2 else (1, 0):
            start = clock()
            answers[i].append(decoders[i].step())
            seconds[i].append(clock() - start)
    gc.enable()
    plain_K, monitored_K = (
        np.array(taken[WARM:])[: (len(taken) - WARM) // BLOCK * BLOCK].reshape(-1, BLOCK).sum(1)
        for taken in seconds
    )
    ratio = float(np.median(monitored_K / plain_K))
    low, high = np.quantile(monitored_K / plain_K, (0.25, 0.75))
    same = answers[0] == answers[1]
    print(
        f"{name} on {args.device}{', one thread' if on_cpu else ''}, {args.layers} layers, batch "
        f"{args.batch}, {len(answers[0]) + 1} tokens each; load average {os.getloadavg()[0]:.1f}, "
        f"peak {peak_mib() / 1024:.1f} GiB"
    )
    ends = sum(r.level == "intra" for rows in watcher.readings.values() for r in rows)
    firings, size = sum(map(len, watcher.firings.values())), union(watcher.monitor.channels)[0].size
    print(
        f"  {size} channels of layer {LAYER}, {ends} step ends in "
        f"{args.batch * len(answers[1])} tokens, {firings} firings; "
        f"the same answers: {'yes' if same else 'NO'}"
    )
    print(f"  plain      {1e3 * np.median(plain_K) / BLOCK:8.2f} ms per pass")
    print(f"  monitored  {1e3 * np.median(monitored_K) / BLOCK:8.2f} ms per pass")
    verdict = "met" if ratio <= TARGET else "missed"
    print(
        f"  monitored / plain = {ratio:.3f} (middle half of {len(plain_K)} blocks {low:.3f} to "
        f"{high:.3f}); target <= {TARGET}: {verdict}"
    )
    if ratio > TARGET or args.profile:
        profile(model, watcher, args.batch, clock)


if __name__ == "__main__":
    main()
