"""One step of on-policy self-distillation against TRL's SDFTTrainer: tokens per second and memory.

Both train the same random model of a 150k vocabulary with LoRA on the same questions, with
responses of the same length, a teacher that is a moving average and sees ten demonstrations, and
the reverse KL over the whole vocabulary; each in a process of its own, on one thread. A step is
timed from end to end, and apart: its rollouts, and what follows. Time is CPU time, in which other
processes take no part; memory is what the process takes above its imports.
TRL is an extra: `pip install 'surgeon[trl]'`.
"""

# Shapes: none; see surgeon.training.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._timing import peak_mib

VOCABULARY, HIDDEN, LAYERS = 151_936, 128, 4
BATCH, MICRO, LENGTH, SHOTS = 16, 8, 64, 10
STEPS, WARM = 4, 1
"""Steps, and how many of them are not timed."""
RATE, RANK, LR = 0.01, 16, 1e-4
SPEED, MEMORY = 1.5, 0.5
"""Targets: at least this many times the tokens per second, at most this share of the memory."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def write_model(path: Path) -> None:
    """A random Qwen3 whose distributions are as peaked as a trained model's, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN,
            num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.6)
    model.save_pretrained(path)
    words = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "system"]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)


def question(i: int) -> str:
    """Twenty words."""
    return " ".join(f"w{(37 * i + j) % 5000}" for j in range(20))


def demonstrations(i: int) -> list[tuple[str, str]]:
    """Ten other questions, each with an answer of twenty words."""
    return [(question(i + 1 + j), question(1000 + i + j)) for j in range(SHOTS)]


class Taken(NamedTuple):
    """What a training took."""

    seconds: list[float]
    """CPU seconds of each step, from its rollouts to the next one's."""
    imported: float
    """The largest memory before the model was loaded, MiB."""
    tokens: list[tuple[int, int, int]]
    """Student's prompts, teacher's prompts and responses of each step, tokens without padding."""
    rollouts: list[float]
    """Of the seconds of each step those until its responses were there."""


@contextmanager
def sized(**sizes: int) -> Iterator[None]:
    """Other sizes inside the block: vocabulary, hidden, batch, length, steps."""
    names = [name.upper() for name in sizes]
    before = {name: globals()[name] for name in names}
    globals().update({name.upper(): value for name, value in sizes.items()})
    try:
        yield
    finally:
        globals().update(before)


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds, in which other processes take no part; of a GPU what it has done by then."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def losses(directory: Path) -> list[float]:
    """The loss of every step of a training in that directory."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def train_here(path: Path, device: str = "cpu", model_path: Path | None = None) -> Taken:
    """The steps of this package; `path` is where it writes, and the model unless given apart."""
    from accelerate import Accelerator

    from surgeon.checkpoint import Checkpoint
    from surgeon.decoding import Request, decode, stream_key
    from surgeon.distill.on_policy import Imitation, reverse_kl_loss, teacher_states
    from surgeon.settings.training import Schedule, Tuning
    from surgeon.training.loop import Batch, fit
    from surgeon.training.sequences import sequences
    from surgeon.training.student import Student
    from surgeon.training.tuning import AveragedWeights, tune

    imported, starts, drawn, lengths = peak_mib(), [], [], []
    clock = clock_of(device)
    checkpoint = Checkpoint.open(model_path or path)
    model: Any = checkpoint.model(device)
    tokenizer = checkpoint.tokenizer()
    tune(model, Tuning(rank=RANK))
    student = Student(model, Accelerator(cpu=device == "cpu"))

    def encoded(messages: list[dict[str, str]]) -> list[int]:
        found: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return list(found["input_ids"])

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, STEPS + 1):
            starts.append(clock())
            numbers = range(step * BATCH, (step + 1) * BATCH)
            asked = [[{"role": "user", "content": question(i)}] for i in numbers]
            shown = [
                [{"role": role, "content": text} for pair in demonstrations(i)
                 for role, text in zip(("user", "assistant"), pair, strict=True)]
                for i in numbers
            ]  # fmt: skip
            prompts = [encoded(a) for a in asked]
            told = [encoded(s + a) for s, a in zip(shown, asked, strict=True)]
            requests = [Request(p, stream_key(0, str(step), b)) for b, p in enumerate(prompts)]
            answers = student.rollouts(
                lambda m, r=requests: sorted(
                    decode(m, r, stop=frozenset(), max_tokens=LENGTH, temperature=1.0, top_p=1.0)
                )
            )
            drawn.append(clock())
            responses = [answer.token_ids for answer in answers]
            parts = [slice(b, b + MICRO) for b in range(0, BATCH, MICRO)]
            micros = [
                Imitation(sequences(prompts[p], responses[p]), sequences(told[p], responses[p]))
                for p in parts
            ]
            lengths.append(tuple(sum(map(len, each)) for each in (prompts, told, responses)))
            tokens = BATCH * LENGTH
            yield Batch(micros, tokens, tokens, BATCH, {"length": float(tokens)})

    # A step more, whose start is the end of the last one.
    fit(
        student, batches, reverse_kl_loss, path if model_path else path / "ours",
        teacher=AveragedWeights(model, RATE), target=teacher_states, steps=STEPS + 1,
        schedule=Schedule(lr=LR, save_every=0),
    )  # fmt: skip
    return taken_of(starts, drawn, imported, lengths)


def taken_of(
    starts: list[float], drawn: list[float], imported: float, lengths: list[tuple[int, int, int]]
) -> Taken:
    """What the steps took, from when each began and when its responses were there."""
    return Taken(
        [b - a for a, b in pairwise(starts)],
        imported,
        lengths[:STEPS],
        [b - a for a, b in zip(starts, drawn, strict=True)][:STEPS],
    )


def train_trl(path: Path, device: str = "cpu") -> Taken:
    """The steps of TRL's trainer, with the same settings."""
    clock = clock_of(device)
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # pyright: ignore

    imported, starts, drawn, lengths = peak_mib(), [], [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            starts.append(clock())

        def on_self_distillation_batch_prepared(
            self,
            *,
            prompt_ids: torch.Tensor,
            completion_ids: torch.Tensor,
            teacher_attention_mask: torch.Tensor,
            **_: Any,
        ) -> None:
            drawn.append(clock())
            response = completion_ids.numel()
            teacher = int(teacher_attention_mask.sum()) - response
            lengths.append((int((prompt_ids != 0).sum()), teacher, response))

    rows = [
        {
            "prompt": [{"role": "user", "content": question(i)}],
            "privileged_context": " ".join(
                f"<|im_start|> user {q} <|im_end|> <|im_start|> assistant {a} <|im_end|>"
                for q, a in demonstrations(i)
            ),
        }
        for i in range((STEPS + 1) * BATCH)
    ]
    config = SDFTConfig(
        output_dir=str(path / "trl"), max_steps=STEPS + 1, shuffle_dataset=False,
        per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO,
        learning_rate=LR, use_cpu=device == "cpu", bf16=False, gradient_checkpointing=False,
        report_to=[], save_strategy="no", logging_strategy="no",
        teacher_model_kind="ema", teacher_update_rate=RATE, teacher_sync_steps=1,
        distillation_mode="full_logits", distillation_alpha=1.0, distillation_is_clip=None,
        num_generations=1, max_prompt_length=None, max_completion_length=LENGTH, temperature=1.0,
        teacher_prompt_template="{privileged_context} {prompt}", disable_tqdm=True,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = VOCABULARY - 1
    trainer = SDFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(path),
        peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear",
                               task_type="CAUSAL_LM"),
        callbacks=[Watch()],
    )  # fmt: skip
    trainer.train()
    return taken_of(starts, drawn, imported, lengths)


def measure(side: str, path: Path) -> None:
    """Run one side in this process and print what it took as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    taken = {"ours": train_here, "trl": train_trl}[side](path)
    peak = peak_mib() - taken.imported
    steps = list(zip(taken.seconds, taken.rollouts, strict=True))[WARM:]
    seconds, rollouts = min(steps)
    told = {"seconds": seconds, "rollouts": rollouts, "peak": peak, "tokens": taken.tokens}
    print(json.dumps(told))


def main() -> dict[str, float]:
    """Print both sides and the ratios."""
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed, so there is nothing to compare with: pip install trl")
        return {}
    found = {}
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        for side in ("ours", "trl"):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.distill_step", side, work]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(done.stderr[-3000:])
                raise SystemExit(1)
            found[side] = json.loads(done.stdout.strip().splitlines()[-1])
    for ours, theirs in zip(found["ours"]["tokens"], found["trl"]["tokens"], strict=True):
        if any(abs(a - b) > 0.02 * b for a, b in zip(ours, theirs, strict=True)):
            raise SystemExit(f"the sides don't do the same work: {ours} and {theirs} tokens")
    tokens = BATCH * LENGTH
    speed = found["trl"]["seconds"] / found["ours"]["seconds"]
    memory = found["ours"]["peak"] / found["trl"]["peak"]
    print(
        f"a step of {BATCH} responses of {LENGTH} tokens; {LAYERS} layers of width {HIDDEN}, "
        f"vocabulary {VOCABULARY:,}; LoRA rank {RANK}, full-vocabulary reverse KL, one thread"
    )
    for side, name in (("ours", "surgeon"), ("trl", "TRL SDFTTrainer")):
        numbers = found[side]
        rest = numbers["seconds"] - numbers["rollouts"]
        print(
            f"  {name:<16} {numbers['seconds']:7.2f} s a step, from end to end: rollouts "
            f"{numbers['rollouts']:.2f} s ({numbers['rollouts'] / numbers['seconds']:.0%}), "
            f"teacher and student {rest:.2f} s"
        )
        print(
            f"  {'':<16} {tokens / numbers['seconds']:7.0f} tokens/s"
            f"  {numbers['peak']:7.0f} MiB   prompts of {numbers['tokens'][0][0] / BATCH:.0f} and "
            f"{numbers['tokens'][0][1] / BATCH:.0f} tokens"
        )
    parts = [
        (found["trl"]["rollouts"], found["ours"]["rollouts"]),
        tuple(found[side]["seconds"] - found[side]["rollouts"] for side in ("trl", "ours")),
    ]
    for what, (theirs, ours) in zip(("rollouts", "the rest"), parts, strict=True):
        print(f"  {what:<16} {theirs / ours:7.2f} x")
    for what, value, target, good in (
        ("tokens/s", speed, SPEED, speed >= SPEED), ("memory", memory, MEMORY, memory <= MEMORY),
    ):  # fmt: skip
        verdict = "reached" if good else "missed"
        print(f"  {what:<16} {value:7.2f} x  (target {target:g}: {verdict})")
    return {"speed": speed, "memory": memory}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
