"""Prompts: the problems to answer, from files, the built-in family or the hub."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from surgeon import jsonl
from surgeon.errors import BadInput

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


def read_prompts(
    source: str, complaint: Callable[[Prompt], str | None] = lambda prompt: None
) -> list[Prompt]:
    """Read prompts from a JSONL or Parquet file, `builtin:NAME`, or a hub data set "name[:split]".

    Each row holds `prompt` (text, or a list of messages) or `messages`, and may hold `id` (else the
    row's number, from 1) and `answer`; other fields are ignored. The hub is asked only where no
    such file exists and the source is written like an id. Raises BadInput naming file and line,
    also for a prompt that `complaint` returns words for: what was found, and what is expected.
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
        if (words := complaint(prompt)) is not None:
            raise BadInput(f"{place}: found {words}.")
        prompts[prompt.id], places[prompt.id] = prompt, place
    if not prompts:
        raise BadInput(f"{source} holds no prompts, expected at least one row.")
    return list(prompts.values())


def parse_prompt(row: object, place: str, default_id: str) -> Prompt:
    """One row as a Prompt; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(
            f"{place}: found {kind_of(row)}, expected an object with prompt or messages."
        )
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
            raise BadInput(f"{place}: found {kind_of(value)} as {name}, expected text or a number.")
    return Prompt(str(identity), messages, None if answer is None else str(answer), plain)


def _parse_messages(content: object, place: str) -> tuple[dict[str, str], ...]:
    if not isinstance(content, list) or not content:
        raise BadInput(f"{place}: found {kind_of(content)}, expected a list of messages.")
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


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    if value is None or value in ("", [], {}):
        return "nothing" if value is None else f"an empty {type(value).__name__}"
    return names.get(type(value), f"a {type(value).__name__}")


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", jsonl.parse(line, f"{path}:{number}")


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
