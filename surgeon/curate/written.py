"""A selection on disk: our traces, and messages as TRL and LLaMA-Factory take them."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from surgeon import lineage
from surgeon.curate.answer_pool import AnswerPool
from surgeon.settings.neureasoner import TAGS
from surgeon.traces.answered import Answered
from surgeon.traces.messages import Message

TRL, LLAMA_FACTORY = "trl", "llamafactory"
SHAREGPT_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user",
    "assistant_tag": "assistant", "system_tag": "system",
}  # fmt: skip


def write_selections(pool: AnswerPool, kept: Mapping[str, np.ndarray], work: Path) -> bool:
    """Write NAME.jsonl for every selection (traces), and where the prompts are known
    `trl/NAME.jsonl` and `llamafactory/NAME.jsonl` with its `dataset_info.json`.

    Returns whether messages could be written. The pool is read once, row by row.
    """
    messages = bool(pool.texts) and all(text is not None for text in pool.texts.values())
    folders = ["", *((TRL, LLAMA_FACTORY) if messages else ())]
    for folder in folders:
        (work / folder).mkdir(exist_ok=True)
    with ExitStack() as stack:
        files = {
            (name, folder): stack.enter_context(
                open(work / folder / f"{name}.jsonl", "w", encoding="utf-8")
            )
            for name in kept
            for folder in folders
        }
        for n, answered in enumerate(pool.rows()):
            chosen = [name for name, kept_N in kept.items() if kept_N[n]]
            if not chosen:
                continue
            rows: dict[str, Any] = {"": asdict(pool.trace(answered))}
            if messages:
                rows |= in_messages(answered)
            for name in chosen:
                for folder in folders:
                    files[name, folder].write(json.dumps(rows[folder]) + "\n")
    if messages:
        info = {
            name: {
                "file_name": f"{name}.jsonl", "formatting": "sharegpt",
                "columns": {"messages": "messages"}, "tags": SHAREGPT_TAGS,
            }
            for name in kept
        }  # fmt: skip
        lineage.write_json(work / LLAMA_FACTORY / "dataset_info.json", info)
    return messages


def in_messages(answered: Answered) -> dict[str, dict[str, Any]]:
    """A row for TRL (prompt and completion, of which it learns the second) and one for
    LLaMA-Factory (all messages)."""
    assert answered.prompt is not None
    prompt = [dict(message) for message in answered.prompt.messages]
    reply: Message = answered.reply or {"role": "assistant", "content": whole(answered.text)}
    tools = {"tools": list(answered.prompt.tools)} if answered.prompt.tools else {}
    return {
        TRL: {"prompt": prompt, "completion": [reply], **tools},
        LLAMA_FACTORY: {"messages": [*prompt, reply], **tools},
    }


def whole(text: str) -> str:
    """A response with the beginning of its thinking, which some templates put into the prompt."""
    for opening, closing in TAGS:
        end = text.find(closing)
        if end >= 0:
            return text if opening in text[:end] else f"{opening}\n{text}"
    return text
