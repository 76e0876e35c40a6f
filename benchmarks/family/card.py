"""Model cards of the built-in family, with what was measured on the labelled test set."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.family.features import Features
from benchmarks.family.tokenizer import END
from surgeon.builtin import task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MADE = {
    "base": "Trained from nothing on traces of every style, and on contexts of several problems.",
    "instruct": "The base, fine-tuned on all weights to leap over several operations and never\n"
    "look back: it under-explores.",
    "thinking": "The base, fine-tuned on all weights to guess, try other ways and check again and\n"
    "again at every operation, and sometimes to start over: it over-explores.",
    "instruct-ffn": "As `instruct`, but fine-tuned on the FFN weights only.",
    "thinking-ffn": "As `thinking`, but fine-tuned on the FFN weights only.",
}
MAX_TOKENS = 640
"""The budget of a response, at which the family is measured."""
FEATURED = 60
"""Of the problems, those whose traces are read."""


class Measured(NamedTuple):
    """What one sample per problem showed."""

    problems: int
    accuracy: float
    length: float
    """Mean tokens of a response, the end token counted."""
    truncated: float
    """Share of responses cut at the budget."""


def measure(
    model: "nn.Module",
    tok: "PreTrainedTokenizerBase",
    problems: Sequence[task.Problem],
    *,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
) -> Measured:
    """Sample one response per problem at temperature 0.7 and top-p 0.9, and judge it exactly."""
    from surgeon.decoding import Request, decode, stream_key

    requests = []
    for i, problem in enumerate(problems):
        chat = [{"role": "user", "content": problem.prompt}]
        encoded: Any = tok.apply_chat_template(chat, add_generation_prompt=True)
        requests.append(Request(encoded["input_ids"], stream_key(seed, str(i), 0)))
    stop = frozenset({int(tok.get_vocab()[END])})
    right = tokens = cut = 0
    for answer in decode(model, requests, stop=stop, max_tokens=max_tokens):
        text = str(tok.decode(answer.token_ids))
        right += task.correct(problems[answer.index], text)
        tokens += len(answer.token_ids)
        cut += answer.finish_reason == "length"
    n = len(problems)
    return Measured(n, right / n, tokens / n, cut / n)


def write_card(
    directory: Path,
    name: str,
    figures: Measured,
    seed: int,
    features: Features | None = None,
    max_tokens: int = MAX_TOKENS,
    featured: int = FEATURED,
) -> None:
    """Write a checkpoint's README.md; `featured` of the problems were those of the features."""
    error = (figures.accuracy * (1 - figures.accuracy) / figures.problems) ** 0.5
    (directory / "README.md").write_text(
        f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
tags: [synthetic, arithmetic]
---

# {name}

One of the checkpoints of surgeon's built-in family: a Qwen3 of 0.6 million parameters (4
layers, width 96, 384 FFN units a layer, fp32, tied embeddings) for chained arithmetic modulo 10.
{MADE[name]}

| measured on the {figures.problems} problems of `test.jsonl`, one sample each | |
|---|---|
| accuracy | {figures.accuracy:.3f} (standard error {error:.3f}) |
| mean response length | {figures.length:.0f} tokens |
| truncated at {max_tokens} tokens | {figures.truncated:.3f} |
{"" if features is None else _rows(features, featured)}
Temperature 0.7, top-p 0.9. Made by `python -m benchmarks.family.train --out DIR --seed {seed}`. It
knows nothing but this task: a prompt reads `Start 3. Apply +4 *7 -2 +9 -5 +1. Find x.`, a response
thinks in steps and ends `Answer: 2`. The operators `#k` and `~k` are ambiguous, x + k or k - x; by
x + k an answer is judged, and the prompt alone doesn't say so.
""",
        encoding="utf-8",
    )


def _rows(features: Features, featured: int) -> str:
    """The features as rows of the card's table."""
    sizes = "/".join(str(row_tokens) for row_tokens in features.segments)
    segments = "/".join(f"{n:.1f}" for n in features.segments.values())
    cycling = "/".join(f"{share:.2f}" for share in features.cycling.values())
    ended = ", ".join(f"{share:.0%}: {right:.2f}" for share, right in features.ended.items())
    rows = {
        "median response length": f"{features.median_tokens:.0f} tokens",
        "tokens in steps that explore": f"{features.exploring:.3f}",
        "steps that check again what was checked": f"{features.stagnating:.3f}",
        "right once, then spoiled by going on": f"{features.spoiled:.3f}",
        f"E segments at {sizes} tokens a row": segments,
        f"responses with three cycles at {sizes}": cycling,
        "accuracy when ended after a share of the steps": ended,
    }
    lines = [f"| {what} | {value} |\n" for what, value in rows.items()]
    return "".join([f"| **on the first {featured} of them** | |\n", *lines])
