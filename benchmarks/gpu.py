"""One GPU against the CPU, and against others' code, in under eight minutes: one table, one JSON.

    python -m benchmarks.gpu [--out gpu.json] [--seconds 450] [--only record decode]
    python -m benchmarks.gpu --device cpu --small       # the same checks anywhere, in seconds

Parity, on the built-in checkpoint (float32 on the CPU against float32 and bfloat16 on the device):
greedy answers, recordings, NEX scores, surgeries, a distillation step, monitored answers and the
detectors. Speed and memory, on random weights of a 4B model's shape in bfloat16: `record` against
the plain forward pass, one long trace, tokens per second of the decoder (and `generate`), monitored
against plain decoding, a distillation step against TRL's.

It needs torch, transformers, peft and accelerate; what else this package imports may lie as wheels
in a directory (`--wheels DIR`; `make gpu-wheels` fills one), which are unpacked and put last on the
path. TRL is compared with where it is installed. A check that fails is a row that says so, and
checks for which no time is left are named.
"""

# Shapes: none; see the modules that are called.

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

RECORD, MONITORED = 1.10, 1.05
"""Targets: at most this many times the forward pass; the plain decoder."""
NEAR_TIE = 1e-3
"""Logits nearer than this may change places between a CPU and a GPU in float32."""


class Size(NamedTuple):
    """What is run."""

    shape: dict[str, Any]
    """Of the random model."""
    prompts: int
    """Of the built-in family, in the parity checks."""
    tokens: int
    """Of an answer, in the parity checks."""
    traces: tuple[int, int]
    """Traces that are recorded, and tokens of each."""
    long: int
    """Tokens of the long trace."""
    batches: tuple[int, ...]
    """Rows that are decoded at once."""
    new: int
    """Tokens that are decoded in each."""
    steps: int
    """Passes of the monitored decoder that are compared."""


LARGE = Size(
    dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
         num_key_value_heads=8, head_dim=128, vocab_size=151_936),
    24, 160, (8, 2048), 32_768, (1, 8, 64, 128), 128, 128,
)  # fmt: skip
SMALL = Size(
    dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
         num_key_value_heads=2, head_dim=8, vocab_size=512),
    3, 24, (2, 48), 96, (1, 4), 6, 6,
)  # fmt: skip


class Row(NamedTuple):
    """One figure of the table."""

    check: str
    what: str
    value: float | None
    unit: str = ""
    target: str = ""
    met: bool | None = None


class Bench:
    """Where the checks run, and what they share."""

    def __init__(self, device: str, size: Size):
        import torch

        self.device, self.size, self.on_gpu = device, size, device.startswith("cuda")
        self.wide = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
        self._model: Any = None

    def clock(self) -> float:
        """Seconds, what the device was told done."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def fresh(self) -> None:
        """Begin to measure memory anew."""
        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """The largest memory since `fresh`, GiB: of the device; without one of the process."""
        import torch

        from benchmarks._timing import peak_mib

        return torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else peak_mib() / 1024

    def random_model(self) -> Any:
        """Random weights of the large shape, in bfloat16, made on the device."""
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM
        from transformers.initialization import no_init_weights

        if self._model is None:
            config = Qwen3Config(
                **self.size.shape, tie_word_embeddings=True, max_position_embeddings=40_960,
                eos_token_id=None, pad_token_id=0, dtype=torch.bfloat16,
            )  # fmt: skip
            torch.manual_seed(0)
            with no_init_weights(), torch.device(self.device):
                model: Any = Qwen3ForCausalLM(config)
            model.to(torch.bfloat16)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "norm" in name:
                        parameter.fill_(1)
                    else:
                        parameter.normal_(0, 0.02)
            model.tie_weights()
            self._model = model.to(self.device).eval()
        return self._model

    def let_go(self) -> None:
        """Give the random model's memory back."""
        self._model = None
        self.fresh()

    def trace(self, tokens: int, seed: int = 0) -> Any:
        """A prompt of eight random tokens and the rest as its answer."""
        import numpy as np

        from surgeon.traces import Trace

        high = self.size.shape["vocab_size"]
        ids = np.random.default_rng(seed).integers(3, high, tokens).tolist()
        return Trace(str(seed), 0, ids[:8], ids[8:], "", "stop")


# --- parity ---------------------------------------------------------------------------------------


def greedy(bench: Bench, model: Any, tokenizer: Any) -> list[Any]:
    """Greedy answers to some built-in prompts, in their order."""
    from surgeon.settings.sampling import Sampling
    from surgeon.traces import in_order, read_prompts, sample

    prompts = read_prompts("builtin:test")[: bench.size.prompts]
    how = Sampling(samples=1, temperature=0, max_tokens=bench.size.tokens)
    return in_order(sample(model, tokenizer, prompts, how), prompts)


def builtin_model(device: str, dtype: Any) -> tuple[Any, Any]:
    from surgeon.checkpoint import resolve

    checkpoint = resolve("builtin:thinking")
    return checkpoint.model(device, dtype), checkpoint.tokenizer()


def gap_where_they_part(model: Any, ours: Any, theirs: Any) -> float | None:
    """The gap between the two largest logits where two answers part, by `model`; None where they
    don't."""
    import torch

    pair = [trace.token_ids for trace in (ours, theirs)]
    at = next((n for n, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), None)
    if at is None:
        return None
    ids = torch.tensor([[*ours.prompt_token_ids, *ours.token_ids[:at]]])
    with torch.inference_mode():
        top = model(input_ids=ids).logits[0, -1].float().topk(2).values
    return float(top[0] - top[1])


def parity(bench: Bench) -> Iterator[Row]:
    """Greedy answers, recordings and NEX scores of one checkpoint."""
    import numpy as np
    import torch

    from surgeon import nex
    from surgeon.activations import record

    reference, tokenizer = builtin_model("cpu", torch.float32)
    answers = greedy(bench, reference, tokenizer)
    n_neurons = reference.config.num_hidden_layers * reference.config.intermediate_size
    learned = {}

    def read(model: Any) -> tuple[list[Any], np.ndarray]:
        recordings = list(record(model, answers, row_tokens=2, top_k=60))
        evidence = [nex.credit(r.activations) for r in recordings]
        return recordings, nex.weights(*nex.accumulate(evidence, n_neurons))

    recorded, learned["cpu"] = read(reference)
    for name, dtype in bench.wide:
        model, _ = builtin_model(bench.device, dtype)
        exact = dtype is torch.float32
        theirs = greedy(bench, model, tokenizer)
        gaps = [gap_where_they_part(reference, *pair) for pair in zip(answers, theirs, strict=True)]
        parted = [gap for gap in gaps if gap is not None]
        apart = sum(gap > NEAR_TIE for gap in parted)
        same = 1 - len(parted) / len(gaps)
        yield Row("decode", f"{name}: greedy answers the same", same)
        yield Row(
            "decode", f"{name}: parted at a gap above {NEAR_TIE:g}", apart, "",
            "0" if exact else "", apart == 0 if exact else None,
        )  # fmt: skip
        found, weight_N = read(model)
        pairs = list(zip(recorded, found, strict=True))
        logprob = max(float(np.abs(a.logprob_T - b.logprob_T).max()) for a, b in pairs)
        most = 1e-3 if exact else 0.5
        yield Row(
            "record", f"{name}: largest difference of a log-probability", logprob, "nats",
            f"<= {most:g}", logprob <= most,
        )  # fmt: skip
        kept = [(set(a.activations.neuron_E), set(b.activations.neuron_E)) for a, b in pairs]
        shared = float(np.mean([len(a & b) / len(a | b) for a, b in kept]))
        least = 0.99 if exact else 0.9
        yield Row(
            "record", f"{name}: neurons kept by both", shared, "", f">= {least:g}", shared >= least
        )
        scores = []
        for side, weights in ((recorded, learned["cpu"]), (found, weight_N)):
            mass = [nex.response_mass(r.activations) for r in side]
            scores.append(float(np.mean([nex.good_mass_fraction(*m, weights).score for m in mass])))
        off = abs(scores[0] - scores[1])
        most = 0.005 if exact else 0.05
        yield Row(
            "nex", f"{name}: difference of the score (CPU {scores[0]:.4f})", off, "",
            f"<= {most:g}", off <= most,
        )  # fmt: skip


def surgeries(bench: Bench) -> Iterator[Row]:
    """Every way of moving neurons, on tensors of the device: the bits of the CPU."""
    import torch

    from surgeon.checkpoint import resolve
    from surgeon.transplant.surgeries import SURGERIES

    name = "model.layers.0.mlp.down_proj.weight"
    pair = [resolve(f"builtin:{n}").read_many([name])[name] for n in ("thinking", "instruct")]
    mask_F = torch.arange(pair[0].shape[1]) % 3 == 0
    for surgery, row in SURGERIES.items():
        made = []
        for device in ("cpu", bench.device):
            tensors = [tensor.to(device) for tensor in pair]
            found = row.function(*tensors, mask_F.to(device), 1)
            whole = found if isinstance(found, tuple) else (found,)
            made.append([tensor.cpu() for tensor in whole])
        differ = max(float((a.float() - b.float()).abs().max()) for a, b in zip(*made, strict=True))
        yield Row(
            "transplant", f"{surgery}: largest difference", differ, "", "<= 0.01", differ <= 0.01
        )


def detectors(bench: Bench) -> Iterator[Row]:
    """Probabilities of a level's detector."""
    import torch

    from surgeon.neureasoner.detectors import Detector

    torch.manual_seed(0)
    detector = Detector(320).eval()
    features_NX = torch.randn(64, 320)
    with torch.inference_mode():
        ours = detector.probability(features_NX)
        theirs = detector.to(bench.device).probability(features_NX.to(bench.device)).cpu()
    differ = float((ours - theirs).abs().max())
    yield Row("detectors", "largest difference of a probability", differ, "", "<= 1e-5",
              differ <= 1e-5)  # fmt: skip


def distillation(bench: Bench) -> Iterator[Row]:
    """Steps of on-policy distillation: the CPU's losses, and TRL's time and memory."""
    import importlib.util

    from benchmarks import distill_step as steps

    sizes = {} if bench.on_gpu else dict(vocabulary=512, hidden=32, batch=4, length=6, steps=2)
    with tempfile.TemporaryDirectory() as work, steps.sized(**sizes):
        losses, taken = [], {}
        for device in dict.fromkeys(("cpu", bench.device)):
            if device == "cpu" and bench.on_gpu:
                with steps.sized(vocabulary=512, hidden=32, batch=4, length=6, steps=2):
                    path = Path(work) / "small"
                    steps.write_model(path)
                    for each in ("cpu", bench.device):
                        steps.train_here(path / each, device=each, model_path=path)
                        losses.append(steps.losses(path / each))
            else:
                path = Path(work) / "model"
                steps.write_model(path)
                bench.fresh()
                taken["ours"] = steps.train_here(path / "ours", device=device, model_path=path)
                losses.append(steps.losses(path / "ours"))
                memory = bench.peak()
        differ = abs(losses[0][0] - losses[-1][0]) / abs(losses[0][0])
        yield Row("distill", "float32: relative difference of the first loss", differ, "",
                  "<= 0.01", differ <= 0.01)  # fmt: skip
        tokens = steps.BATCH * steps.LENGTH
        seconds = min(taken["ours"].seconds[steps.WARM :])
        yield Row("distill", "tokens of a step", tokens / seconds, "tokens/s")
        yield Row("distill", "peak memory", memory, "GiB")
        if importlib.util.find_spec("trl") is None or not bench.on_gpu:
            yield Row("distill", "TRL isn't installed, or there is no GPU: not compared", None)
            return
        bench.fresh()
        theirs = min(steps.train_trl(Path(work) / "model", device=bench.device).seconds[1:])
        yield Row("distill", "times TRL's tokens per second", theirs / seconds, "x",
                  f">= {steps.SPEED}", theirs / seconds >= steps.SPEED)  # fmt: skip
        yield Row("distill", "share of TRL's peak memory", memory / bench.peak(), "x",
                  f"<= {steps.MEMORY}", memory / bench.peak() <= steps.MEMORY)  # fmt: skip


# --- speed and memory -----------------------------------------------------------------------------


def in_turns(bench: Bench, calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The shortest time of each call after a first; they take turns."""
    best = [float("inf")] * len(calls)
    for repeat in range(repeats + 1):
        for i, call in enumerate(calls):
            start = bench.clock()
            call()
            if repeat:
                best[i] = min(best[i], bench.clock() - start)
    return best


def recording(bench: Bench) -> Iterator[Row]:
    """`record` against the forward pass, and one long trace."""
    import torch

    from surgeon.activations import record

    model = bench.random_model()
    n, tokens = bench.size.traces
    traces = [bench.trace(tokens, seed) for seed in range(n)]
    ids_BT = torch.tensor([[*t.prompt_token_ids, *t.token_ids] for t in traces])
    # As many rows a pass as `record` reads in one.
    rows = max(1, 8192 // tokens)

    @torch.inference_mode()
    def forward() -> None:
        for part_BT in ids_BT.split(rows):
            model(input_ids=part_BT.to(bench.device), use_cache=False)

    plain, own = in_turns(bench, [forward, lambda: list(record(model, traces))], 2)
    yield Row("record", f"{n} traces of {tokens} tokens", n * tokens / own, "tokens/s")
    yield Row("record", "times the forward pass with logits", own / plain, "x",
              f"<= {RECORD}", own <= RECORD * plain)  # fmt: skip
    bench.fresh()
    start = bench.clock()
    list(record(model, [bench.trace(bench.size.long)]))
    took = bench.clock() - start
    yield Row("record", f"one trace of {bench.size.long} tokens", bench.size.long / took,
              "tokens/s")  # fmt: skip
    yield Row("record", f"its peak memory, weights of {weight_bytes(model) / 2**30:.1f} GiB in it",
              bench.peak(), "GiB", "one GPU's", True)  # fmt: skip


def weight_bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def decoding(bench: Bench) -> Iterator[Row]:
    """Tokens per second of the decoder, by the rows of a batch, and of `generate`."""
    import torch

    from surgeon.decoding import Request, decode, stream_key

    model, new = bench.random_model(), bench.size.new
    for rows in bench.size.batches:
        bench.fresh()
        requests = [
            Request(bench.trace(64, b).prompt_token_ids * 8, stream_key(0, str(b), 0))
            for b in range(rows)
        ]

        def ours(asked: list[Any] = requests, n: int = rows) -> None:
            list(decode(model, asked, stop=frozenset(), max_tokens=new, batch=n))

        ids_BT = torch.tensor([list(r.prompt) for r in requests]).to(bench.device)

        def theirs(ids_BT: Any = ids_BT) -> None:
            model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=True, temperature=0.7,
                top_p=0.9, top_k=0, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
            )  # fmt: skip

        own, other = in_turns(bench, [ours, theirs], 1)
        yield Row("decode", f"{rows} rows, {new} tokens each", rows * new / own, "tokens/s")
        yield Row("decode", f"{rows} rows: times generate's", other / own, "x")
        if rows == 1 and bench.on_gpu:
            read = weight_bytes(model) * new / own / 1e12
            yield Row("decode", "1 row: weights read", read, "TB/s", "of 3.35 on an H100 SXM")
        yield Row("decode", f"{rows} rows: peak memory of both", bench.peak(), "GiB")


def monitored(bench: Bench) -> Iterator[Row]:
    """A monitor that never fires, against plain decoding: the same answers, in what time."""
    import numpy as np

    from benchmarks import monitor as benchmark
    from surgeon.watch.watching import Watching

    shape, steps = bench.size.shape, bench.size.steps
    with benchmark.sized(shape["vocab_size"], shape["num_hidden_layers"] // 2,
                         shape["num_attention_heads"]):  # fmt: skip
        model = bench.random_model()
        watcher = Watching(model, benchmark.tokenizer_of(), benchmark.monitor_of())
        pair = [benchmark.decoder_of(model, 8, steps, w) for w in (None, watcher)]
        seconds: tuple[list[float], ...] = ([], [])
        answers: tuple[list[Any], ...] = ([], [])
        bench.fresh()
        for n in range(steps - 1):
            for i in (0, 1) if n % 2 else (1, 0):
                start = bench.clock()
                answers[i].append(pair[i].step())
                seconds[i].append(bench.clock() - start)
    half = len(seconds[0]) // 2
    plain, own = (float(np.median(taken[half:])) for taken in seconds)
    same = float(answers[0] == answers[1])
    yield Row("monitor", "monitored answers are the plain ones", same, "", "1", same == 1)
    yield Row("monitor", "times plain decoding, 8 rows", own / plain, "x", f"<= {MONITORED}",
              own <= MONITORED * plain)  # fmt: skip
    yield Row("monitor", "peak memory of both", bench.peak(), "GiB")


CHECKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "parity": parity,
    "surgeries": surgeries,
    "detectors": detectors,
    "recording": recording,
    "decoding": decoding,
    "monitored": monitored,
    "distillation": distillation,
}
"""In the order in which they are run; those before `recording` need no large model."""


# --- the run --------------------------------------------------------------------------------------


def unpack(wheels: str) -> None:
    """Put the wheels of a directory last on the path, unpacked: what is installed comes first."""
    place = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(Path(wheels).glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(place)
    sys.path.append(place)


def run(names: list[str], bench: Bench, seconds: float) -> list[Row]:
    """The rows of these checks; one that fails is a row, and so is one that has no time left."""
    rows, begun = [], time.monotonic()
    for name in names:
        left = seconds - (time.monotonic() - begun)
        if left <= 0:
            rows.append(Row(name, "left out: no time", None))
            continue
        bench.fresh()
        start = time.monotonic()
        try:
            rows.extend(CHECKS[name](bench))
        except Exception as error:  # the other checks of a machine that is lent for minutes count
            rows.append(
                Row(name, f"FAILED: {type(error).__name__}: {error}"[:300], None, met=False)
            )
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
    return rows


def machine(device: str) -> str:
    """What it ran on."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return (
        f"{gpu}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        value = "" if row.value is None else f"{row.value:,.4g} {row.unit}".strip()
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        lines.append(f"{row.check:<12} {row.what:<58} {value:>18}  {row.target:<24} {verdict}")
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Run the checks, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--wheels", help="directory of wheels that aren't installed")
    parser.add_argument("--device", help="default: cuda, or cpu where there is none")
    parser.add_argument("--small", action="store_true", help="small shapes; the default on a CPU")
    parser.add_argument("--seconds", type=float, default=450, help="begin no check after so many")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    asked = parser.parse_args(arguments)
    if asked.wheels:
        unpack(asked.wheels)
    import torch

    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    small = asked.small or device == "cpu"
    bench = Bench(device, SMALL if small else LARGE)
    begun = time.monotonic()
    rows = run(asked.only, bench, asked.seconds)
    took = time.monotonic() - begun
    said = machine(device)
    print(f"{said}; {'small' if small else 'large'} shapes, {took:.0f} s")
    print(table(rows))
    content = {
        "machine": said,
        "small": small,
        "seconds": took,
        "rows": [r._asdict() for r in rows],
    }
    Path(asked.out).write_text(json.dumps(content, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
