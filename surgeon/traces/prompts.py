"""Prompts: the problems to answer, from files, the built-in family or the hub."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from surgeon import lineage
from surgeon.errors import BadInput
from surgeon.traces.columns import HOW, Columns
from surgeon.traces.messages import (
    Message,
    decoded,
    ends_answered,
    kind_of,
    parse_messages,
    parse_tools,
    require_unicode,
)
from surgeon.traces.sources import read_rows


@dataclass(frozen=True)
class Prompt:
    """One problem to answer."""

    id: str
    messages: tuple[Message, ...]
    """The conversation so far, each `{"role": ..., "content": ...}` and what else it said."""
    answer: str | None = None
    """The true answer, where the source has one; sampling never sees it."""
    plain: bool = False
    """The source gave bare text: without a chat template it may be encoded as it is."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the model may call, as the chat template takes them."""

    @property
    def record(self) -> dict[str, object]:
        """All of it as plain values, without what it doesn't have."""
        fields = asdict(self)
        if not self.tools:
            # Digests of prompts are older than tools.
            del fields["tools"]
        return fields


def digest_of_prompts(prompts: Iterable[Prompt]) -> str:
    """`sha256:` over all that prompts say, in their order."""
    return lineage.digest_of([prompt.record for prompt in prompts])


def read_prompts(
    source: str,
    complaint: Callable[[Prompt], str | None] = lambda prompt: None,
    columns: str | Mapping[str, str] | None = None,
) -> list[Prompt]:
    """Read prompts from a file (JSON lines, a JSON array, CSV, TSV, Parquet), `builtin:NAME`, or a
    data set on the hub, `[hf:]OWNER/NAME[#CONFIG][@REVISION][:SPLIT]`.

    Each row holds a question or a conversation, and may hold an id (else the row's number, from 1),
    the answer, and tools, in columns of their usual names (see docs/inputs.md) or in those that
    `columns` names; other columns are ignored. Raises BadInput naming file and line, also for a
    prompt that `complaint` returns words for: what was found, and what is expected.
    """
    names = Columns.parse(columns)
    prompts: dict[str, Prompt] = {}
    places: dict[str, str] = {}
    answered = 0
    for number, (place, row) in enumerate(read_rows(source), 1):
        prompt, cut = _parse(row, place, str(number), names)
        if prompt.id in prompts:
            raise BadInput(
                f"{place}: the id {prompt.id!r} was already used at {places[prompt.id]}: ids must "
                "differ."
            )
        if (words := complaint(prompt)) is not None:
            raise BadInput(f"{place}: found {words}.")
        prompts[prompt.id], places[prompt.id] = prompt, place
        answered += cut
    if not prompts:
        raise BadInput(f"{source} holds no prompts, expected at least one row.")
    if answered:
        print(
            f"{source}: {answered} conversations end with the assistant's turn; it is left out.",
            file=sys.stderr,
            flush=True,
        )
    return list(prompts.values())


def parse_prompt(
    row: object, place: str, default_id: str, columns: Columns | None = None
) -> Prompt:
    """One row as a Prompt; raises BadInput that begins with `place`."""
    return _parse(row, place, default_id, columns or Columns())[0]


def _parse(row: object, place: str, default_id: str, columns: Columns) -> tuple[Prompt, bool]:
    """A row's prompt, and whether the answer that ends its conversation was left out."""
    if not isinstance(row, dict):
        raise BadInput(
            f"{place}: found {kind_of(row)}, expected an object with prompt or messages."
        )
    fields = columns.fields(row, place)
    if ("prompt" in fields) == ("messages" in fields):
        present = ", ".join(sorted(str(name) for name, v in row.items() if v is not None))
        found = "both prompt and messages" if "prompt" in fields else f"the columns {present}"
        found = found if present else "no columns"
        raise BadInput(f"{place}: found {found}, expected either prompt or messages. {HOW}")
    content: Any = fields["prompt"] if "prompt" in fields else fields["messages"]
    plain, cut = "prompt" in fields and isinstance(content, str), False
    if plain:
        if not content.strip():
            raise BadInput(f"{place}: found an empty prompt, expected a question.")
        messages: tuple[Message, ...] = ({"role": "user", "content": content},)
    else:
        content = decoded(content)
        cut = ends_answered(content)
        messages = parse_messages(content[:-1] if cut else content, place)
    system = fields.get("system")
    if isinstance(system, str) and system.strip():
        if messages[0]["role"] == "system":
            raise BadInput(f"{place}: found two system messages, expected one. {HOW}")
        messages, plain = ({"role": "system", "content": system}, *messages), False
    identity, answer = fields.get("id", default_id), fields.get("answer")
    for name, value in (("id", identity), ("answer", answer)):
        if not (value is None or isinstance(value, str | int | float)) or value == "":
            raise BadInput(f"{place}: found {kind_of(value)} as {name}, expected text or a number.")
    tools = parse_tools(fields.get("tools"), place)
    prompt = Prompt(
        str(identity), messages, None if answer is None else str(answer), plain and not tools, tools
    )
    require_unicode(prompt.record, place)
    return prompt, cut
