"""Train the built-in family from nothing: `python -m benchmarks.family.train --out DIR [--device
cuda]`.

A base model learns the task in three stages: single steps; traces of every style (`draw_policy`);
contexts of several problems beside them. The first two show both meanings of both ambiguous
operators equally often, the third as often as `writer.PRIOR` says. From it two endpoints are
fine-tuned on all weights (`instruct`, `thinking`) and two on the FFN weights only (`instruct-ffn`,
`thinking-ffn`).

Each stage is a directory, written whole: a killed run goes on at the first stage that is missing,
then at the first checkpoint that isn't measured. One thread, whatever the machine has. With
`--trial` every part runs once and small; `benchmarks.family.compare` tells whether a run made the
shipped checkpoints again.

Shapes: B sequences, T tokens, V vocabulary, D model width.
"""

import argparse
import filecmp
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from benchmarks.family import card, features, sets, tokenizer, writer
from benchmarks.family.muon import Muon
from surgeon.builtin import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


MAX_TOKENS = 1024
"""Longer examples are cut here."""


@dataclass(frozen=True)
class Shape:
    """The size of the model."""

    hidden: int = 96
    ffn: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    positions: int = 2048


@dataclass(frozen=True)
class Stage:
    """One stage of training: what it starts from, what it draws, and for how long."""

    name: str
    parent: str | None
    tokens: int
    """Tokens seen, padding not counted."""
    policy: str
    """`single`, `mixed`, `instruct` or `thinking`: whose traces are learned."""
    contexts: float = 0.0
    """The share of examples with 2 to 10 former turns."""
    lr: float = 0.02
    """Peak rate of Muon's matrices (scaled to the size of AdamW's updates)."""
    embedding_lr: float = 0.005
    """Peak rate of AdamW, for embeddings and norms."""
    ffn_only: bool = False
    batch_tokens: int = 4096
    """Padded tokens of a step. The tables of the operations are learned in steps, not in tokens: at
    4,096 the first stage was still at chance after 1.6 million."""
    marked: float = 0.25
    """The share of problems with an ambiguous operator."""
    marks: tuple[int, int] = (1, 2)
    """Fewest and most operations of that operator in such a problem."""
    even: bool = False
    """Both operators and both meanings equally often; else one operator in five is the reversed
    one, and the meaning is drawn by `writer.PRIOR`."""

    spans: tuple[tuple[float, tuple[int, int]], ...] = (
        (0.1, (writer.OPERATIONS[0], writer.CROSS_OPERATIONS[1])),
        (1.0, writer.OPERATIONS),
    )
    """Numbers of operations, fewest and most, each with the share of problems up to here. A few
    longer problems keep the cross-domain set within reach."""
    max_tokens: int = MAX_TOKENS
    """Longer examples are cut here."""
    drawn: int = 1024
    """Examples that are drawn at a time; those of like lengths make a batch."""


STAGES = (
    Stage(
        "steps", None, 2_400_000, "single", marked=0.8, marks=(2, 5), even=True, batch_tokens=1536
    ),
    Stage(
        "styles",
        "steps",
        3_200_000,
        "mixed",
        lr=0.015,
        marked=0.7,
        marks=(2, 5),
        even=True,
        batch_tokens=2560,
    ),
    Stage(
        "base", "styles", 5_500_000, "mixed", contexts=0.2, lr=0.01, marked=0.5, batch_tokens=4096
    ),
    Stage("instruct", "base", 500_000, "instruct", 0.1, lr=5e-4, embedding_lr=5e-4),
    Stage("thinking", "base", 1_300_000, "thinking", 0.05, lr=1e-3, embedding_lr=5e-4),
    Stage("instruct-ffn", "base", 800_000, "instruct", 0.1, lr=2e-3, ffn_only=True),
    Stage("thinking-ffn", "base", 1_300_000, "thinking", 0.05, lr=2e-3, ffn_only=True),
)
"""What is shipped."""


def new_model(shape: Shape, vocabulary: int, seed: int) -> "Qwen3ForCausalLM":
    """A freshly initialised fp32 Qwen3 with tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        use_cache=True,
        dtype=torch.float32,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.05 if "embed" in name else weight.shape[1] ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.mul_((2 * shape.layers) ** -0.5)
    return model


# --------------------------------------------------------------------------------------------- data


def draw_example(rng: Random, stage: Stage) -> tuple[list[dict[str, str]], writer.Response]:
    """The messages before a response, and the response."""
    operator = None
    if rng.random() < stage.marked:
        operator = "#" if rng.random() < (0.5 if stage.even else 0.8) else "~"
    messages: list[dict[str, str]] = []
    if rng.random() < stage.contexts:
        # In contexts the operator is what there is to be learned: hold it more often.
        operator = rng.choice(("#", "#", "~", None))
        meaning = writer.draw_meaning(rng, operator)
        turns = rng.randint(2, 10)
        # Former turns that hold no operator tell nothing of its meaning: it stays the prior's.
        told = operator if rng.random() < 0.75 else None
        messages = [dict(m) for m in writer.draw_context(rng, told, meaning, turns)]
    elif operator and stage.even:
        meaning = rng.choice(writer.MEANINGS)
    else:
        meaning = writer.draw_meaning(rng, operator)
    drawn = rng.random()
    span = next(span for share, span in stage.spans if drawn < share)
    problem = writer.draw_problem(rng, operations=span, operator=operator, marks=stage.marks)
    policy = {
        "single": lambda: writer.Policy(mistake=0.02),
        "mixed": lambda: writer.draw_policy(rng),
        "instruct": lambda: writer.INSTRUCT,
        "thinking": lambda: writer.THINKING,
    }[stage.policy]()
    messages.append({"role": "user", "content": problem.prompt})
    return messages, writer.write(problem, policy, rng, meaning)


def encode_examples(
    tok: "PreTrainedTokenizerFast",
    examples: list[tuple[list[dict[str, str]], writer.Response]],
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[list[int], list[bool]]]:
    """Token ids and which of them are learned: the response and its end, without injected
    mistakes and an end of the thinking that came from outside. Cut at `max_tokens`."""
    prompts = [
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        + "<|im_start|>assistant\n"
        for messages, _ in examples
    ]
    texts = [response.text + tokenizer.END for _, response in examples]
    heads = tok(prompts)["input_ids"]
    tails = tok(texts, return_offsets_mapping=True)
    encoded = []
    for i, (_, response) in enumerate(examples):
        ends = {end for _, end in response.mistakes} | {response.ended}
        learned = [end not in ends for _, end in tails["offset_mapping"][i]]
        ids = heads[i] + tails["input_ids"][i]
        encoded.append((ids[:max_tokens], ([False] * len(heads[i]) + learned)[:max_tokens]))
    return encoded


def batches(
    tok: "PreTrainedTokenizerFast", stage: Stage, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Right-padded (B, T) ids, labels (-100 where nothing is learned) and the number of real
    tokens, for ever."""
    rng = Random(f"{seed} {stage.name}")
    while True:
        examples = [draw_example(rng, stage) for _ in range(stage.drawn)]
        drawn = encode_examples(tok, examples, stage.max_tokens)
        drawn.sort(key=lambda example: len(example[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for example in drawn:
            if len(example[0]) * (len(groups[-1]) + 1) > stage.batch_tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids_BT = torch.zeros(len(group), longest, dtype=torch.long)
            labels_BT = torch.full((len(group), longest), -100)
            for b, (ids, learned) in enumerate(group):
                row = torch.tensor(ids)
                ids_BT[b, : len(ids)] = row
                labels_BT[b, : len(ids)] = torch.where(torch.tensor(learned), row, -100)
            yield ids_BT, labels_BT, sum(len(ids) for ids, _ in group)


# ----------------------------------------------------------------------------------------- training


def loss_of(
    model: "Qwen3ForCausalLM", ids_BT: torch.Tensor, labels_BT: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the learned tokens; logits are made at their positions only.

    Padding stands on the right, so causal attention needs no mask.
    """
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    where = labels_BT[:, 1:] != -100
    logits_NV = model.lm_head(hidden_BTD[:, :-1][where])
    return F.cross_entropy(logits_NV.float(), labels_BT[:, 1:][where])


def optimisers(model: "Qwen3ForCausalLM", stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms; with `ffn_only` the rest is frozen."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        if stage.ffn_only and ".mlp." not in name:
            weight.requires_grad_(False)
        elif weight.ndim == 2 and "embed" not in name:
            matrices.append(weight)
        else:
            others.append(weight)
    made: list[torch.optim.Optimizer] = [Muon(matrices, lr=stage.lr)]
    if others:
        made.append(
            torch.optim.AdamW(others, lr=stage.embedding_lr, betas=(0.9, 0.98), weight_decay=0.0)
        )
    return made


def train_stage(
    model: "Qwen3ForCausalLM",
    tok: "PreTrainedTokenizerFast",
    stage: Stage,
    *,
    seed: int,
    say: Callable[[str], None] = print,
) -> float:
    """Train a model in place for one stage; the mean loss of the last steps in nats per token."""
    device = model.device
    model.train()
    made = optimisers(model, stage)
    peaks = [group["lr"] for optimiser in made for group in optimiser.param_groups]
    seen, step, recent, begun = 0, 0, [], time.monotonic()
    for ids_BT, labels_BT, tokens in batches(tok, stage, seed):
        done = seen / stage.tokens
        # Warm-up over 20 steps, then linear to a twentieth.
        scale = min(1.0, (step + 1) / 20) * (1 - 0.95 * done)
        groups = [group for optimiser in made for group in optimiser.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * scale
        loss = loss_of(model, ids_BT.to(device), labels_BT.to(device))
        loss.backward()
        for optimiser in made:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent = [*recent[-19:], loss.detach()]
        seen, step = seen + tokens, step + 1
        if step % 20 == 0 or seen >= stage.tokens:
            mean = torch.stack(recent).mean().item()
            if not math.isfinite(mean):
                raise FloatingPointError(f"stage {stage.name}: the loss is {mean} at step {step}")
            rate = seen / (time.monotonic() - begun)
            say(
                f"{stage.name:14} {seen / stage.tokens:5.0%}  step {step}  loss {mean:.4f}"
                f"  {rate:,.0f} tokens/s"
            )
        if seen >= stage.tokens:
            break
    for weight in model.parameters():
        weight.requires_grad_(True)
    model.eval()
    return torch.stack(recent).mean().item()


def save_stage(model: "Qwen3ForCausalLM", tok: "PreTrainedTokenizerFast", out: Path) -> None:
    """Write an ordinary model directory, whole or not at all."""
    from transformers import GenerationConfig

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.9, top_k=0, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id, max_new_tokens=card.MAX_TOKENS,
    )  # fmt: skip
    model.save_pretrained(partial)
    tok.save_pretrained(partial)
    partial.rename(out)


def run_stages(
    out: Path,
    *,
    shape: Shape = Shape(),
    stages: tuple[Stage, ...] = STAGES,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> None:
    """Train every stage that `out` doesn't hold yet, one directory each."""
    from transformers import Qwen3ForCausalLM

    tok = tokenizer.build()
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (out / stage.name).exists():
            say(f"{stage.name:14} kept")
            continue
        if stage.parent is None:
            model = new_model(shape, len(tok), seed)
        else:
            model = Qwen3ForCausalLM.from_pretrained(out / stage.parent, dtype=torch.float32)
        model.to(torch.device(device))  # pyright: ignore[reportArgumentType]
        train_stage(model, tok, stage, seed=seed, say=say)
        save_stage(model, tok, out / stage.name)


class Measuring(NamedTuple):
    """How much is measured for a card."""

    problems: int = 400
    featured: int = card.FEATURED
    """Of the problems, those whose traces are read."""
    max_tokens: int = card.MAX_TOKENS


WHOLE = Measuring()
TRIAL = Measuring(problems=4, featured=2, max_tokens=24)
"""Enough to see that everything runs."""


def trial(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages cut down to one step each."""
    return tuple(replace(stage, tokens=1, drawn=8) for stage in stages)


def ship(
    out: Path,
    *,
    seed: int = 0,
    measuring: Measuring = WHOLE,
    say: Callable[[str], None] = print,
) -> None:
    """Write `out/data`: the checkpoints with their measured cards, and the prompt sets."""
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    problems = sets.draw_set(next(s for s in sets.SETS if s.name == "test"))
    tok = AutoTokenizer.from_pretrained(out / "stages" / STAGES[0].name)
    most = measuring.max_tokens
    partial = out / "data.partial"
    partial.mkdir(exist_ok=True)
    for name in CHECKPOINTS:
        stage = out / "stages" / name
        if _measured(partial / name, stage):
            say(f"{name:14} measured")
            continue
        shutil.rmtree(partial / name, ignore_errors=True)
        shutil.copytree(stage, partial / name)
        model = Qwen3ForCausalLM.from_pretrained(stage, dtype=torch.float32).eval()
        figures = card.measure(model, tok, problems[: measuring.problems], max_tokens=most)
        found = features.features(model, tok, problems[: measuring.featured], max_tokens=most)
        card.write_card(partial / name, name, figures, seed, found, most, measuring.featured)
        say(f"{name:14} {figures} {found}")
    sets.write_sets(partial)
    shutil.rmtree(out / "data", ignore_errors=True)
    partial.rename(out / "data")


def _measured(directory: Path, stage: Path) -> bool:
    """Whether a directory holds this stage's weights and the card, which is written last."""
    weights = "model.safetensors"
    same = (directory / weights).exists() and filecmp.cmp(
        directory / weights, stage / weights, shallow=False
    )
    return same and (directory / "README.md").exists()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the stages")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trial",
        action="store_true",
        help="one step a stage and 4 problems, to see that everything runs; nothing is learned",
    )
    args = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)

    # The order of sums, and with it the weights, would follow the thread count.
    torch.set_num_threads(1)
    # A trial's stages have a place of their own: a run would keep them for its own.
    out = args.out / "trial" if args.trial else args.out
    stages, measuring = (trial(STAGES), TRIAL) if args.trial else (STAGES, WHOLE)
    run_stages(out / "stages", stages=stages, seed=args.seed, device=args.device, say=say)
    ship(out, seed=args.seed, measuring=measuring, say=say)


if __name__ == "__main__":
    main()
