"""Examples of trigger SFT: their file, their tokens, what of them is learned, and its loss."""

# Shapes: B examples of a pass, T tokens, P of them in responses.

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from surgeon import jsonl
from surgeon.errors import BadInput
from surgeon.traces import Prompt, encode, parse_prompt
from surgeon.training.sequences import Targets, grouped, targets, token_nll
from surgeon.trigger.artifacts import KINDS
from surgeon.trigger.reconstruct import EXAMPLES as FILE


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
    learned: list[bool]
    """Whether the loss counts the token."""
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
    examples = [_parse_example(row, place) for place, row in jsonl.rows(file)]
    if not examples:
        raise BadInput(f"{file} holds no examples, expected at least one.")
    return examples


def _parse_example(row: Any, place: str) -> Example:
    number = place.rpartition(":")[2]
    if not isinstance(row, dict) or not isinstance(row.get("segments"), list):
        raise BadInput(f"{place}: found no example: an object with messages and segments.")
    fields: dict[str, Any] = {"id": row.get("id", number), "messages": row.get("messages")}
    if row.get("tools"):
        fields["tools"] = row["tools"]
    if row.get("plain") and isinstance(fields["messages"], list) and len(fields["messages"]) == 1:
        fields = {"id": fields["id"], "prompt": fields["messages"][0].get("content")}
    prompt = parse_prompt(fields, place, number)
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
    tokenizer: Any,
    example: Example,
    *,
    mask_wrong: bool,
    thinking: bool | None = None,
    template: str | None = None,
) -> Encoded:
    """Prompt, response and its end as tokens, Eq. 7; the response is tokenised in one piece, as a
    model would have written it.

    The prompt and what isn't learned are ignored by the loss, and with `mask_wrong` the failing
    step as well (R11). A token over the border of two segments is learned where both are.
    """
    head = encode(tokenizer, example.prompt, thinking, template)
    text = "".join(segment.text for segment in example.segments)
    segment_of = [s for s, part in enumerate(example.segments) for _ in part.text]
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    learned_S = [
        part.learned and not (mask_wrong and part.kind == "wrong") for part in example.segments
    ]
    ids, learned, kinds = list(head), [False] * len(head), [""] * len(head)
    for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        first, last = segment_of[min(start, len(text) - 1)], segment_of[max(start, end - 1)]
        ids.append(token)
        learned.append(learned_S[first] and learned_S[last])
        kinds.append(example.segments[last].kind)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        learned.append(True)
        kinds.append(example.segments[-1].kind)
    if not any(learned[1:]):
        raise BadInput(f"example {example.id!r} has no token to learn, expected at least one.")
    return Encoded(ids, learned, kinds)


# --- in batches -----------------------------------------------------------------------------------


def micro_batches(examples: Sequence[Encoded], micro_tokens: int) -> list[Targets]:
    """Examples of similar length together, each group of at most `micro_tokens` padded tokens."""
    return [
        targets([examples[b].ids for b in group], [examples[b].learned for b in group])
        for group in grouped([len(example.ids) for example in examples], micro_tokens)
    ]


@torch.no_grad()
def loss_by_kind(
    model: nn.Module, examples: Sequence[Encoded], micro_tokens: int
) -> dict[str, float]:
    """Mean -log p (nats) of the tokens of each kind of segment, learned or not."""
    sums: dict[str, list[float]] = {}
    for group in grouped([len(example.ids) for example in examples], micro_tokens):
        part = [examples[b] for b in group]
        kinds_P = [kind for example in part for kind in example.kinds[1:] if kind]
        every = targets([e.ids for e in part], [[bool(kind) for kind in e.kinds] for e in part])
        for kind, value in zip(kinds_P, token_nll(model, every).tolist(), strict=True):
            total = sums.setdefault(kind, [0.0, 0.0])
            total[0] += value
            total[1] += 1
    return {kind: total / count for kind, (total, count) in sums.items()}
