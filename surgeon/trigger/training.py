"""Trigger SFT's parts: examples as tokens with a mask, the trigger tokens' rows, the Trainer."""

# Shapes: B examples of a pass, T tokens, V vocabulary, D model width.

import json
import math
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon.errors import BadInput
from surgeon.progress import bar
from surgeon.traces import Prompt, encode
from surgeon.training import Schedule
from surgeon.trigger.rewriting import FILE, KINDS

IGNORED = -100


class Segment(NamedTuple):
    """A part of a response."""

    kind: str
    text: str
    learned: bool


class Example(NamedTuple):
    """A prompt and the response that is learned, in segments."""

    id: str
    prompt: Prompt
    segments: tuple[Segment, ...]

    @property
    def problem(self) -> str:
        """What examples of the same prompt share."""
        return json.dumps(self.prompt.messages)


class Encoded(NamedTuple):
    """An example as tokens."""

    ids: list[int]
    labels: list[int]
    """The same, and `IGNORED` where nothing is learned."""
    kinds: list[str]
    """The kind of segment of each token; empty for the prompt."""


# --- examples -------------------------------------------------------------------------------------


def read_examples(path: str | Path) -> list[Example]:
    """The examples of a directory or file; raises BadInput naming the line that is none."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(
            f"{file} does not exist: make examples with surgeon trigger reconstruct CHECKPOINT "
            "--labels DIR --out DIR"
        )
    examples = []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{file}:{number}: found no valid JSON ({error}).") from error
            examples.append(_parse_example(row, f"{file}:{number}", str(number)))
    if not examples:
        raise BadInput(f"{file} holds no examples, expected at least one.")
    return examples


def _parse_example(row: Any, place: str, number: str) -> Example:
    from surgeon.traces import parse_prompt

    if not isinstance(row, dict) or not isinstance(row.get("segments"), list):
        raise BadInput(f"{place}: found no example: an object with messages and segments.")
    asked: dict[str, Any] = {"id": row.get("id", number), "messages": row.get("messages")}
    if row.get("plain") and isinstance(asked["messages"], list) and len(asked["messages"]) == 1:
        asked = {"id": asked["id"], "prompt": asked["messages"][0].get("content")}
    prompt = parse_prompt(asked, place, number)
    segments = []
    for part in row["segments"]:
        good = (
            isinstance(part, dict)
            and part.get("kind") in KINDS
            and isinstance(part.get("text"), str)
            and isinstance(part.get("learned", True), bool)
        )
        if not good:
            raise BadInput(
                f"{place}: found the segment {str(part)[:60]!r}, expected kind (one of "
                f"{', '.join(KINDS)}), text, and whether it is learned."
            )
        segments.append(Segment(part["kind"], part["text"], part.get("learned", True)))
    return Example(prompt.id, prompt, tuple(segments))


def encode_example(
    tokenizer: Any, example: Example, *, mask_wrong: bool, thinking: bool | None = None
) -> Encoded:
    """Prompt, response and its end as tokens, Eq. 7; the response is tokenised in one piece, as a
    model would have written it.

    The prompt and what isn't learned are ignored by the loss, and with `mask_wrong` the failing
    step as well (R11). A token over the border of two segments is learned where both are.
    """
    head = encode(tokenizer, example.prompt, thinking)
    text = "".join(segment.text for segment in example.segments)
    segment_of = [s for s, part in enumerate(example.segments) for _ in part.text]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned_S = [
        part.learned and not (mask_wrong and part.kind == "wrong") for part in example.segments
    ]
    ids, labels, kinds = list(head), [IGNORED] * len(head), [""] * len(head)
    for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        first, last = segment_of[min(start, len(text) - 1)], segment_of[max(start, end - 1)]
        learned = learned_S[first] and learned_S[last]
        ids.append(token)
        labels.append(token if learned else IGNORED)
        kinds.append(example.segments[last].kind)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
        kinds.append(example.segments[-1].kind)
    return Encoded(ids, labels, kinds)


def padded(examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Right-padded (B, T) ids, labels and attention mask."""
    longest = max(len(example.ids) for example in examples)
    ids_BT = torch.zeros(len(examples), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    mask_BT = torch.zeros_like(ids_BT)
    for b, example in enumerate(examples):
        n = len(example.ids)
        ids_BT[b, :n] = torch.tensor(example.ids)
        labels_BT[b, :n] = torch.tensor(example.labels)
        mask_BT[b, :n] = 1
    return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}


# --- the trigger tokens ---------------------------------------------------------------------------


def add_triggers(tokenizer: Any, names: Iterable[str]) -> list[int]:
    """Make the triggers tokens of their own; the ids of those that are new."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    new = [name for name in names if name not in known]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], True)
    return [tokenizer.convert_tokens_to_ids(name) for name in new]


def rows_of(checkpoint: Any) -> int:
    """Rows of a checkpoint's embedding; more than tokens where some are reserved."""
    return int(checkpoint.text_config["vocab_size"])


@torch.no_grad()
def prepare_rows(model: Any, new_ids: Sequence[int]) -> bool:
    """Give the new tokens rows in embedding and unembedding, at the mean of the others; reserved
    rows are used where there are enough. True where the matrices had to grow."""
    if not new_ids:
        return False
    rows = model.get_input_embeddings().weight.shape[0]
    grows = max(new_ids) >= rows
    if grows:
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    for weight_VD in weights:
        # Reserved rows were never trained: they say nothing of what a token is like.
        weight_VD[list(new_ids)] = weight_VD[: min(new_ids)].float().mean(0).to(weight_VD.dtype)
    return grows


# --- training -------------------------------------------------------------------------------------


def train(
    model: Any,
    examples: Sequence[Encoded],
    directory: Path,
    *,
    schedule: Schedule,
    epochs: float,
    batch_size: int,
    micro_batch: int,
    device: str,
    bf16: bool = False,
) -> list[dict[str, float]]:
    """Train with transformers' Trainer; the record of every step (loss, lr, gradient norm).

    The state is saved every `schedule.save_every` steps in `directory`, and a run that finds one
    there continues from it with the numbers it would have had. Raises `BadInput` when the loss is
    not finite.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    steps = max(1, round(epochs * -(-len(examples) // batch_size)))
    arguments = TrainingArguments(
        output_dir=str(directory), max_steps=steps, learning_rate=schedule.lr,
        lr_scheduler_type=schedule.decay, warmup_steps=round(schedule.warmup * steps),
        weight_decay=schedule.weight_decay, max_grad_norm=schedule.clip,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch_size // micro_batch, logging_steps=1,
        save_strategy="steps", save_steps=schedule.save_every or steps, save_total_limit=1,
        report_to=[], disable_tqdm=True, remove_unused_columns=False, bf16=bf16,
        use_cpu=device == "cpu", seed=schedule.seed, data_seed=schedule.seed,
        logging_nan_inf_filter=False,
    )  # fmt: skip
    # With several accelerators in sight it would split each batch over all of them.
    arguments._n_gpu = min(1, arguments.n_gpu)
    with bar("train", steps) as advance:

        class Bar(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                advance(state.global_step)

            def on_log(
                self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any
            ) -> None:
                if logs and "loss" in logs:
                    advance(note=f"loss {logs['loss']:.4f}")
                    if not math.isfinite(logs["loss"]):
                        raise BadInput(
                            f"the loss became {logs['loss']} in step {state.global_step}. Lower "
                            "the learning rate, under another --out."
                        )

        trainer = Trainer(
            model=model, args=arguments, train_dataset=list(examples),  # pyright: ignore
            data_collator=padded, callbacks=[Bar()],
        )  # fmt: skip
        # Its own printing of every record would tear the bar.
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        with warnings.catch_warnings():
            # A state of a grown embedding holds all of it, which is as it should be.
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
            trainer.train(resume_from_checkpoint=_saved_state(directory))
    return [
        {"step": row["step"], "loss": row["loss"], "lr": row["learning_rate"],
         "gradient_norm": row["grad_norm"]}
        for row in trainer.state.log_history
        if "loss" in row
    ]  # fmt: skip


def _saved_state(directory: Path) -> str | None:
    """The newest state that was saved whole; what a kill left half is removed."""
    whole = []
    for state in directory.glob("checkpoint-*"):
        try:
            json.loads((state / "trainer_state.json").read_text())  # written last
        except (OSError, ValueError):
            shutil.rmtree(state)
        else:
            whole.append((int(state.name.rpartition("-")[2]), state))
    return str(max(whole)[1]) if whole else None


@torch.no_grad()
def loss_by_kind(
    model: nn.Module, examples: Sequence[Encoded], micro_batch: int
) -> dict[str, float]:
    """Mean -log p (nats) of the tokens of each kind of segment, learned or not."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    sums: dict[str, list[float]] = {}
    for first in range(0, len(examples), micro_batch):
        part = examples[first : first + micro_batch]
        batch = {name: tensor.to(device) for name, tensor in padded(part).items()}
        logits_BTV = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        for b, example in enumerate(part):
            target_T = batch["input_ids"][b, 1 : len(example.ids)]
            nll_T = nn.functional.cross_entropy(
                logits_BTV[b, : len(target_T)].float(), target_T, reduction="none"
            )
            for kind, value in zip(example.kinds[1:], nll_T.tolist(), strict=True):
                if kind:
                    total = sums.setdefault(kind, [0.0, 0.0])
                    total[0] += value
                    total[1] += 1
    model.train(was_training)
    return {kind: total / count for kind, (total, count) in sums.items()}
