"""Prompts, sampling settings and traces, and the in-process engine that samples."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgeon.errors import BadInput

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

DATASET_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]:%+-]+)?")
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Prompt:
    """One problem to answer."""

    id: str
    messages: tuple[dict[str, str], ...]
    """The conversation so far, each `{"role": ..., "content": ...}`."""
    answer: str | None = None
    """The true answer, where the source has one; sampling never sees it."""
    plain: bool = False
    """The source gave bare text: without a chat template it may be encoded as it is."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; the defaults are the paper's (NEX sec. 5.1)."""

    samples: int = 3
    """Answers per prompt."""
    temperature: float = 0.7
    """0 takes the most likely token."""
    top_p: float = 0.9
    top_k: int = 0
    """0: no limit."""
    max_tokens: int = 32768
    """Generated tokens per answer."""
    seed: int = 0
    batch: int = 0
    """Answers decoded at once; 0: as many as memory is likely to hold. No effect on the answers."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; None leaves it to the template."""

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("samples", self.samples >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (no limit) or more"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("batch", self.batch >= 0, "0 (automatic) or more"),
        ):
            if not good:
                raise BadInput(f"found {name} = {getattr(self, name)}, expected {expected}.")


@dataclass(frozen=True)
class Trace:
    """One sampled answer."""

    prompt_id: str
    sample: int
    """0, 1, ... among the answers to the same prompt."""
    prompt_token_ids: list[int]
    token_ids: list[int]
    """The generated tokens, with the stop token where one ended the answer."""
    text: str
    """The generated tokens as text, special tokens included, the final stop token left out."""
    finish_reason: Literal["stop", "length"]


# --- prompts --------------------------------------------------------------------------------------


def read_prompts(source: str) -> list[Prompt]:
    """Read prompts from a JSONL or Parquet file, `builtin:NAME`, or a hub data set "name[:split]".

    Each row holds `prompt` (text, or a list of messages) or `messages`, and may hold `id` (else the
    row's number, from 1) and `answer`; other fields are ignored. The hub is asked only where no
    such file exists and the source is written like an id. Raises BadInput naming file and line.
    """
    if source.startswith("builtin:"):
        from surgeon import builtin

        source = str(builtin.path(source.removeprefix("builtin:")))
    path = Path(source).expanduser()
    if path.is_dir():
        raise BadInput(f"{source} is a directory, expected a .jsonl or .parquet file of prompts.")
    if path.is_file():
        rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    elif DATASET_ID.fullmatch(source) and path.suffix not in FILE_SUFFIXES:
        rows = _hub_rows(source)
    else:
        raise BadInput(f"{source} does not exist. Give a .jsonl or .parquet file of prompts.")
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    for number, (place, row) in enumerate(rows, 1):
        prompt = parse_prompt(row, place, str(number))
        if prompt.id in prompts:
            raise BadInput(
                f"{place}: the id {prompt.id!r} was already used at {places[prompt.id]}: ids must "
                "differ."
            )
        prompts[prompt.id], places[prompt.id] = prompt, place
    if not prompts:
        raise BadInput(f"{source} holds no prompts, expected at least one row.")
    return list(prompts.values())


def parse_prompt(row: object, place: str, default_id: str) -> Prompt:
    """One row as a Prompt; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {_kind(row)}, expected an object with prompt or messages.")
    # Columnar sources fill what a row lacks with null.
    row = {name: value for name, value in row.items() if value is not None}
    if ("prompt" in row) == ("messages" in row):
        found = "both prompt and messages" if "prompt" in row else f"the fields {sorted(row)}"
        raise BadInput(f"{place}: found {found}, expected either prompt or messages.")
    content = row["prompt"] if "prompt" in row else row["messages"]
    plain = "prompt" in row and isinstance(content, str)
    if plain:
        if not content.strip():
            raise BadInput(f"{place}: found an empty prompt, expected a question.")
        messages: tuple[dict[str, str], ...] = ({"role": "user", "content": content},)
    else:
        messages = _parse_messages(content, place)
    identity, answer = row.get("id", default_id), row.get("answer")
    for name, value in (("id", identity), ("answer", answer)):
        if not (value is None or isinstance(value, str | int | float)) or value == "":
            raise BadInput(f"{place}: found {_kind(value)} as {name}, expected text or a number.")
    return Prompt(str(identity), messages, None if answer is None else str(answer), plain)


def _parse_messages(content: object, place: str) -> tuple[dict[str, str], ...]:
    if not isinstance(content, list) or not content:
        raise BadInput(f"{place}: found {_kind(content)}, expected a list of messages.")
    for message in content:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise BadInput(
                f"{place}: found a message {str(message)[:60]!r}, expected an object with role and "
                "content, both text."
            )
    if content[-1]["role"] == "assistant":
        raise BadInput(f"{place}: the last message is the assistant's, expected a question.")
    return tuple({"role": m["role"], "content": m["content"]} for m in content)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    if value is None or value in ("", [], {}):
        return "nothing" if value is None else f"an empty {type(value).__name__}"
    return names.get(type(value), f"a {type(value).__name__}")


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parse_json(line, f"{path}:{number}")


def _parse_json(line: bytes, place: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{place}: found bytes that are not UTF-8 text ({error.reason}).") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: found no valid JSON ({error}), expected one object.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(f"{path} needs pyarrow: pip install 'surgeon[data]'.") from error
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} is not a readable Parquet file: {reason}") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _hub_rows(source: str) -> Iterator[tuple[str, object]]:
    name, _, split = source.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            f"{source} is no file here; a hub data set needs: pip install 'surgeon[data]'."
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{source} is no file here and no data set that could be fetched: {reason}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source}: row {number}", row


# --- the trace file -------------------------------------------------------------------------------


def read_traces(path: str | Path) -> list[Trace]:
    """The traces of a JSONL file, in its order; a last line that was cut short is left out.

    Raises BadInput naming the line that is no trace or repeats a prompt's sample.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} does not exist, expected a file of traces.")
    traces: list[Trace] = []
    seen: dict[tuple[str, int], int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip() or (not line.endswith(b"\n") and _torn(line)):
                continue
            trace = parse_trace(_parse_json(line, f"{path}:{number}"), f"{path}:{number}")
            key = (trace.prompt_id, trace.sample)
            if key in seen:
                raise BadInput(
                    f"{path}:{number}: sample {trace.sample} of prompt {trace.prompt_id!r} was "
                    f"already at line {seen[key]}."
                )
            seen[key] = number
            traces.append(trace)
    return traces


def parse_trace(row: object, place: str) -> Trace:
    """One line of a trace file; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {_kind(row)}, expected a trace (an object).")
    checks = {
        "prompt_id": isinstance(row.get("prompt_id"), str),
        "sample": type(row.get("sample")) is int and row["sample"] >= 0,
        "prompt_token_ids": _token_ids(row.get("prompt_token_ids")),
        "token_ids": _token_ids(row.get("token_ids")),
        "text": isinstance(row.get("text"), str),
        "finish_reason": row.get("finish_reason") in ("stop", "length"),
    }
    for name, good in checks.items():
        if not good:
            found = repr(row[name])[:40] if name in row else "nothing"
            raise BadInput(f"{place}: found {found} as {name} of a trace. See `Trace` for fields.")
    return Trace(**{name: row[name] for name in checks})


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def append(path: str | Path, trace: Trace) -> None:
    """Add a trace to a JSONL file as one write; a last line that was cut short is cut off first."""
    line = json.dumps(asdict(trace)).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = _mend(file, end) + line
        file.write(line)


def _torn(line: bytes) -> bool:
    """True for a line without an end that was cut short; False for a whole one that lacks only
    the line break."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _mend(file: Any, end: int) -> bytes:
    """Cut off a torn last line; the line break that a whole one still needs."""
    start, tail = end, b""
    while start and b"\n" not in tail:
        size = min(start, 1 << 16)
        start -= size
        file.seek(start)
        tail = file.read(size) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not _torn(last):
        return b"\n"
    file.truncate(end - len(last))
    return b""


# --- the engine -----------------------------------------------------------------------------------


def encode(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, thinking: bool | None = None
) -> list[int]:
    """The prompt's token ids, up to where the answer begins.

    With the tokenizer's chat template; bare text is encoded as it is where there is none. Raises
    BadInput for messages without a template, and for those that the template refuses.
    """
    if tokenizer.chat_template is None:
        if not prompt.plain:
            raise BadInput(
                f"prompt {prompt.id!r} is a list of messages and the tokenizer has no chat "
                "template: give plain `prompt` rows, or a checkpoint with a template."
            )
        ids = tokenizer(prompt.messages[0]["content"])["input_ids"]
    else:
        from jinja2 import TemplateError

        switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        try:
            encoded: Any = tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, return_dict=True, **switch
            )
        except TemplateError as error:
            raise BadInput(
                f"prompt {prompt.id!r}: the chat template refuses it ({error})."
            ) from error
        ids = encoded["input_ids"]
    if not ids:
        raise BadInput(f"prompt {prompt.id!r} has no tokens, expected at least one.")
    return list(ids)  # pyright: ignore[reportArgumentType]


def stop_ids(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Every token that ends an answer: those of the generation config and of the tokenizer."""
    named = [model.generation_config.eos_token_id, tokenizer.eos_token_id]  # pyright: ignore
    found: set[int] = set()
    for ids in named:
        found |= set(ids) if isinstance(ids, list) else {ids}
    return frozenset(i for i in found if i is not None)  # pyright: ignore[reportReturnType]


def sample(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    done: AbstractSet[tuple[str, int]] = frozenset(),
) -> Iterator[Trace]:
    """Sample answers with a live model and yield each trace when it ends.

    `done` names (prompt id, sample) pairs that are not drawn again. A trace depends on the seed,
    the prompt and its sample number, not on what else is drawn or in which order. Raises BadInput,
    before anything is drawn, for a prompt that can't be encoded or fills the model's context.
    """
    from surgeon.decoding import Request, context_limit, decode, stream_key

    if tokenizer.chat_template is None:
        print("No chat template: prompts are encoded as plain text.", file=sys.stderr, flush=True)
    limit, names, requests = context_limit(model), [], []
    for prompt in prompts:
        ids = encode(tokenizer, prompt, sampling.thinking)
        if len(ids) >= limit:
            raise BadInput(
                f"prompt {prompt.id!r} has {len(ids)} tokens, expected fewer than the model's "
                f"context of {limit}: shorten it or leave it out."
            )
        for number in range(sampling.samples):
            if (prompt.id, number) not in done:
                names.append((prompt.id, number))
                requests.append(Request(ids, stream_key(sampling.seed, prompt.id, number)))
    stop = stop_ids(model, tokenizer)
    for answer in decode(
        model,
        requests,
        stop=stop,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        batch=sampling.batch,
    ):
        prompt_id, number = names[answer.index]
        shown = answer.token_ids[:-1] if answer.finish_reason == "stop" else answer.token_ids
        text = tokenizer.decode(shown, clean_up_tokenization_spaces=False)
        yield Trace(
            prompt_id,
            number,
            list(requests[answer.index].prompt),
            answer.token_ids,
            str(text),
            answer.finish_reason,
        )
