"""The decoder here against others' on the same prompts: tokens per second, memory, first token.

    python -m benchmarks.decoding [--out decoding.json] [--checkpoint DIR] [--vllm PYTHON]
        [--shapes 135M 0.6B] [--rows 1 8 32 128] [--tokens 32] [--mixed] [--repeats 3]

Engines: `local` (the decoder here), `generate` (transformers' own, in one batch sorted by length,
left-padded), `continuous` (transformers' continuous batching) and, where there is an environment
that has it (`make test-vllm` makes one, in .venv-vllm), `vllm`. Each has a process of its own and
one model in it; for each number of rows they take turns, so that a busy moment hits all alike, and
a ratio is the median of those within one turn. `cpu` counts the seconds that a process computed,
which others on the machine take no part in.

Every answer has exactly `--tokens` tokens; with `--mixed` between a quarter of them and all, of
which only those that were asked for count (the batches of `generate` and `continuous` run to the
longest). The first token's time is that of a run of the whole batch with one token.
Sampling is by temperature 0.7 and top-p 0.9. Without `--checkpoint` the weights are random ones of
SmolLM2-135M's shape (its final norm scaled so that a nucleus is as small as a real model's); those
of Qwen3-0.6B's shape always are.
"""

# Shapes: none; see the modules that are called.

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

TEMPERATURE, TOP_P = 0.7, 0.9
GOALS = {
    "generate": {1: 1.0, 8: 2.0, 32: 2.0, 128: 2.0},
    "vllm": {1: 1.0, 8: 1.1, 32: 1.5, 128: 1.5},
}
"""At least so many times the tokens per second of another engine, by rows."""
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "135M": ("llama", dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, vocab_size=49_152, max_position_embeddings=8192)),
    "0.6B": ("qwen3", dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151_936, max_position_embeddings=8192)),
    "tiny": ("llama", dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=512, max_position_embeddings=512)),
}  # fmt: skip


class Task(NamedTuple):
    """Prompts, and how many tokens each answer has."""

    prompts: list[list[int]]
    tokens: list[int]


class Engine(Protocol):
    """Who decodes; made from a checkpoint's directory and the name of a dtype."""

    def run(self, task: Task) -> int:
        """Answer every prompt; the tokens that were asked for and came."""
        ...


def task_of(rows: int, tokens: int, mixed: bool, vocabulary: int) -> Task:
    """Prompts of 32 to 96 tokens."""
    import random

    rng = random.Random(0)
    prompts = [
        [rng.randrange(vocabulary // 2, vocabulary) for _ in range(rng.randint(32, 96))]
        for _ in range(rows)
    ]
    least = max(1, tokens // 4)
    return Task(prompts, [rng.randint(least, tokens) if mixed else tokens for _ in prompts])


# --- engines --------------------------------------------------------------------------------------


def loaded(directory: str, dtype: str) -> Any:
    """The model by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


class Local:
    """The decoder here."""

    def __init__(self, directory: str, dtype: str):
        self.model = loaded(directory, dtype)

    def run(self, task: Task) -> int:
        from surgeon.decoding import Request, decode, stream_key

        requests = [
            Request(prompt, stream_key(0, str(i), 0), max_tokens=n)
            for i, (prompt, n) in enumerate(zip(*task, strict=True))
        ]
        answers = decode(
            self.model, requests, stop=frozenset(), max_tokens=max(task.tokens),
            temperature=TEMPERATURE, top_p=TOP_P, batch=max(16, len(requests)),
        )  # fmt: skip
        return sum(len(answer.token_ids) for answer in answers)


class Generate:
    """transformers' `generate`, one left-padded batch."""

    def __init__(self, directory: str, dtype: str):
        self.model = loaded(directory, dtype)

    def run(self, task: Task) -> int:
        import torch

        prompts = sorted(task.prompts, key=len)
        longest, most = len(prompts[-1]), max(task.tokens)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = self.model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0,
            max_new_tokens=most, min_new_tokens=most, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out.shape[1] == longest + most
        return sum(task.tokens)


class Continuous:
    """transformers' continuous batching."""

    def __init__(self, directory: str, dtype: str):
        self.model = loaded(directory, dtype)

    def run(self, task: Task) -> int:
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        page, most = 32, max(task.tokens)
        pages = sum(-(-(len(p) + n) // page) + 1 for p, n in zip(*task, strict=True))
        answers = self.model.generate_batch(
            task.prompts,
            generation_config=GenerationConfig(
                do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0, eos_token_id=-1,
                max_new_tokens=most,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=page, num_blocks=max(64, pages),
                max_batch_tokens=max(256, len(task.prompts)),
                use_cuda_graph=False, use_async_batching=False,
            ),
            progress_bar=False,
        )  # fmt: skip
        found = [answer.generated_tokens for answer in answers.values()]
        if len(found) != len(task.prompts) or any(len(ids) != most for ids in found):
            raise RuntimeError(f"{len(found)} answers of {len(task.prompts)}")
        return sum(task.tokens)


class Vllm:
    """vLLM in its own process."""

    def __init__(self, directory: str, dtype: str):
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        self.llm = LLM(
            directory, dtype=dtype, max_model_len=512, skip_tokenizer_init=True, seed=0,
            enable_prefix_caching=False, gpu_memory_utilization=0.2,
        )  # fmt: skip

    def run(self, task: Task) -> int:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        params = [
            SamplingParams(
                temperature=TEMPERATURE, top_p=TOP_P, max_tokens=n, min_tokens=n, ignore_eos=True,
                detokenize=False,
            )
            # Without seeds of their own: on a CPU vLLM 0.32 ends where it reads such a prompt in
            # parts, as it does of 128.
            for n in task.tokens
        ]  # fmt: skip
        inputs: list[Any] = [{"prompt_token_ids": ids} for ids in task.prompts]
        answers = self.llm.generate(inputs, params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)


ENGINES: dict[str, Any] = {
    "local": Local,
    "generate": Generate,
    "continuous": Continuous,
    "vllm": Vllm,
}


def work(name: str, directory: str, dtype: str) -> None:
    """A process of one engine: a line of JSON in, one out, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine: Engine = ENGINES[name](directory, dtype)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        rows, tokens, mixed, vocabulary = json.loads(line)
        task = task_of(rows, tokens, mixed, vocabulary)
        start, cpu = time.perf_counter(), time.process_time()
        found = engine.run(task)
        if found != sum(task.tokens):
            raise RuntimeError(f"{name} gave {found} tokens, expected {sum(task.tokens)}")
        report = {
            "tokens": found,
            "wall": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "peak": _peak_mib(),
        }
        print(json.dumps(report), file=answers, flush=True)


def _peak_mib() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- the driver -----------------------------------------------------------------------------------


class Worker:
    """A process of one engine, asked from here."""

    def __init__(self, name: str, python: str, directory: str, dtype: str):
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.decoding", "--worker", name, directory, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {
                "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                **({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if "OMP_NUM_THREADS" in os.environ
                   else {}),
            },
        )  # fmt: skip
        self.alive = self._answer() is not None

    def ask(self, rows: int, tokens: int, mixed: bool, vocabulary: int) -> dict[str, float] | None:
        """What a run took; None where the engine has ended."""
        if self.alive:
            assert self.process.stdin is not None
            print(
                json.dumps([rows, tokens, mixed, vocabulary]), file=self.process.stdin, flush=True
            )
            if (answer := self._answer()) is not None:
                return answer
            self.alive = False
        return None

    def _answer(self) -> dict[str, float] | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        last = self.errors.read().strip().rpartition("\n")[2]
        print(f"{self.name} has ended: {last}", flush=True)
        return None

    def end(self) -> None:
        """No more questions."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Row(NamedTuple):
    """What one engine did at one number of rows: medians."""

    shape: str
    dtype: str
    rows: int
    engine: str
    tokens_s: float
    """Tokens per second of wall time."""
    tokens_cpu_s: float
    """Tokens per second of its own CPU time."""
    first_s: float
    """Seconds to the first token of all rows."""
    peak_mib: float
    ratio: float
    """Tokens per CPU second of the decoder here over this engine's, the median of the turns."""
    ratio_wall: float
    goal: float | None
    met: bool | None


def write_random(shape: str, directory: Path) -> None:
    """A checkpoint of random weights in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(
        kind, **sizes, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
        pad_token_id=0, dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "model.norm.weight":
                # Logits that spread by about 5, as those of trained models do.
                parameter.fill_(5 / (0.02 * sizes["hidden_size"] ** 0.5))
            elif "norm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    model.tie_weights()
    model.save_pretrained(directory)


def measured(
    shape: str, directory: str, pythons: dict[str, str], given: argparse.Namespace
) -> list[Row]:
    """Every engine at every number of rows, in turns."""
    vocabulary = json.loads((Path(directory) / "config.json").read_text())["vocab_size"]
    workers = [Worker(n, python, directory, given.dtype) for n, python in pythons.items()]
    found = []
    for rows in given.rows:
        turns: list[dict[str, dict[str, float]]] = []
        firsts: dict[str, list[float]] = {worker.name: [] for worker in workers}
        for turn in range(given.repeats + 1):
            turns.append({})
            for worker in workers:
                # A turn before the first warms up, with a few tokens.
                tokens = given.tokens if turn else 4
                first = worker.ask(rows, 1, False, vocabulary)
                whole = worker.ask(rows, tokens, given.mixed, vocabulary)
                if first and whole:
                    turns[-1][worker.name] = whole
                    firsts[worker.name].append(first["wall"])
        for worker in workers:
            mine = [turn for turn in turns[1:] if worker.name in turn and "local" in turn]
            if not mine:
                continue
            found.append(_row(shape, given.dtype, rows, worker.name, mine, firsts[worker.name]))
            print(_line(found[-1]), flush=True)
    for worker in workers:
        worker.end()
    return found


def _row(
    shape: str,
    dtype: str,
    rows: int,
    name: str,
    turns: list[dict[str, dict[str, float]]],
    firsts: list[float],
) -> Row:
    def speed(kind: str, of: str) -> list[float]:
        return [turn[of]["tokens"] / turn[of][kind] for turn in turns]

    def ratio(kind: str) -> float:
        pairs = zip(speed(kind, "local"), speed(kind, name), strict=True)
        return statistics.median(own / other for own, other in pairs)

    goal, reached = GOALS.get(name, {}).get(rows), ratio("cpu")
    return Row(
        shape, dtype, rows, name, statistics.median(speed("wall", name)),
        statistics.median(speed("cpu", name)), statistics.median(firsts[1:]),
        max(turn[name]["peak"] for turn in turns), reached, ratio("wall"), goal,
        None if goal is None else reached >= goal,
    )  # fmt: skip


def _line(row: Row) -> str:
    goal = "" if row.goal is None else f"{row.goal:.1f} {'met' if row.met else 'missed'}"
    return (
        f"| {row.shape} {row.dtype} | {row.rows} | {row.engine} | {row.tokens_s:.1f} | "
        f"{row.tokens_cpu_s:.1f} | {row.first_s:.2f} | {row.peak_mib:.0f} | {row.ratio:.2f} | "
        f"{row.ratio_wall:.2f} | {goal} |"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="a file of JSON")
    parser.add_argument("--checkpoint", help="directory of the 135M shape's weights")
    parser.add_argument("--vllm", default=".venv-vllm/bin/python", help="a Python that has vLLM")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["135M", "0.6B"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--mixed", action="store_true", help="answers of different lengths")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        work(*given.worker)
        return 0
    pythons = {n: given.vllm if n == "vllm" else sys.executable for n in given.engines}
    if "vllm" in pythons and not Path(given.vllm).is_file():
        print(f"vLLM is left out: there is no {given.vllm} (make test-vllm makes one, or --vllm)")
        del pythons["vllm"]
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"{platform.processor() or platform.machine()}, OMP_NUM_THREADS {threads}")
    heads = (
        "model", "rows", "engine", "tok/s", "tok/CPU s", "first token, s", "peak MiB",
        "local/this, CPU", "local/this, wall", "goal",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    found: list[Row] = []
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as place:
            directory = given.checkpoint if shape == "135M" and given.checkpoint else place
            if directory == place:
                write_random(shape, Path(place))
            found += measured(shape, str(Path(directory).absolute()), pythons, given)
    if given.out:
        Path(given.out).write_text(json.dumps([row._asdict() for row in found], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
