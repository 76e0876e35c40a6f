"""Prompts with their answers, as training and curation take them: our traces, a prompt and a
response, or a conversation that ends with the assistant's message.

    {"prompt_id", "sample", "prompt_token_ids", "token_ids", "text", "finish_reason"}
    {"prompt"|"messages"|..., "response"|"completion"|"output"}
    {"messages"|"conversations": [..., {"role": "assistant", ...}]}

A response is learned as it stands, behind the prompt as it is asked; a conversation goes through
the chat template.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import jsonl
from surgeon.errors import BadInput
from surgeon.traces.columns import USUAL, Columns, at
from surgeon.traces.messages import Message, decoded, kind_of, parse_reply, require_unicode
from surgeon.traces.prompts import Prompt, parse_prompt
from surgeon.traces.records import Key, Trace, parse_trace
from surgeon.traces.rendering import AnsweredTokens, encode, encode_reply, replied
from surgeon.traces.sources import read_rows
from surgeon.traces.texts import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSES = ("response", "completion", "output", "generation")
"""Columns that usually hold the answer; the first one wins."""
LINES = (".jsonl", ".ndjson")


class Answered(NamedTuple):
    """A prompt and what answers it."""

    prompt_id: str
    sample: int
    """0, 1, ... among the answers to the same prompt."""
    prompt: Prompt | None
    """None for a trace whose prompt is known as tokens only."""
    text: str
    """The answer; of a message, its content."""
    finished: bool
    """It ended by itself."""
    trace: Trace | None = None
    """Its tokens, where they are known."""
    reply: Message | None = None
    """The assistant's message, where the row is a conversation."""

    @property
    def key(self) -> Key:
        return self.prompt_id, self.sample


def read_answered(
    source: str | Path,
    prompts: Mapping[str, Prompt] | None = None,
    columns: str | Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Answered]]:
    """Yield (place, row) for every row of a file, one at a time where it holds JSON lines.

    `prompts` says what the prompts of traces are. Rows without an id are named by their number, and
    rows of one id are samples in their order. Raises BadInput naming the row that is none, and for
    a sample that comes twice.
    """
    path, names = Path(source).expanduser(), Columns.parse(columns)
    lines = path.suffix.lower() in LINES and path.is_file()
    samples: dict[str, int] = {}
    seen: set[Key] = set()
    number = 0
    for number, (place, row) in enumerate(jsonl.rows(path) if lines else read_rows(str(source)), 1):
        answered = parse_answered(row, place, str(number), prompts or {}, names)
        if answered.trace is None:
            sample = samples[answered.prompt_id] = samples.get(answered.prompt_id, -1) + 1
            answered = answered._replace(sample=sample)
        if answered.key in seen:
            raise BadInput(
                f"{place}: sample {answered.sample} of prompt {answered.prompt_id!r} was there "
                "already, expected each once."
            )
        seen.add(answered.key)
        yield place, answered
    if not number:
        raise BadInput(f"{source} holds no rows, expected traces or prompts with their responses.")


def parse_answered(
    row: object, place: str, default_id: str, prompts: Mapping[str, Prompt], columns: Columns
) -> Answered:
    """One row; raises BadInput that begins with `place`."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {kind_of(row)}, expected an object.")
    if "token_ids" in row:
        trace = parse_trace(row, place)
        prompt = prompts.get(trace.prompt_id)
        if prompts and prompt is None:
            raise BadInput(
                f"{place}: found the prompt {trace.prompt_id!r}, expected one of --prompts."
            )
        ended = trace.finish_reason == "stop"
        return Answered(trace.prompt_id, trace.sample, prompt, trace.text, ended, trace)
    response = next((row[name] for name in RESPONSES if row.get(name) is not None), None)
    if isinstance(decoded(response), list):
        response = _only(decoded(response), place)
    if response is not None:
        rest = {name: value for name, value in row.items() if name not in RESPONSES}
        prompt = parse_prompt(rest, place, default_id, columns)
        if isinstance(response, dict):
            reply = parse_reply(response, place)
            require_unicode(reply, place, "response")
            return Answered(prompt.id, 0, prompt, reply["content"], True, reply=reply)
        if not isinstance(response, str) or not response.strip():
            raise BadInput(f"{place}: found {kind_of(response)} as response, expected text.")
        require_unicode(response, place, "response")
        finished = row.get("finish_reason", "stop") != "length"
        return Answered(prompt.id, 0, prompt, response, finished)
    return _conversation(row, place, default_id, columns)


def _only(messages: Any, place: str) -> object:
    """TRL's completion: a list of the assistant's one message."""
    if len(messages) != 1:
        raise BadInput(
            f"{place}: found a response of {len(messages)} messages, expected one. Put the others "
            "into messages."
        )
    return messages[0]


def _conversation(row: dict[str, Any], place: str, default_id: str, columns: Columns) -> Answered:
    named = columns.named.get("messages")
    usual = (named,) if named else USUAL["messages"]
    name = next((name for name in usual if at(row, name) is not None), None)
    messages: Any = decoded(at(row, name)) if name else None
    if not isinstance(messages, list) or len(messages) < 2:
        raise BadInput(
            f"{place}: found no answer, expected a trace, a column "
            f"{', '.join(RESPONSES[:-1])} or {RESPONSES[-1]}, or messages that end with the "
            "assistant's."
        )
    reply = parse_reply(messages[-1], place)
    require_unicode(reply, place, "response")
    fields = {name: row[name] for name in (*USUAL["id"], *USUAL["tools"], *USUAL["system"])
              if row.get(name) is not None}  # fmt: skip
    prompt = parse_prompt(fields | {"messages": messages[:-1]}, place, default_id)
    return Answered(prompt.id, 0, prompt, reply["content"], True, reply=reply)


# --- as tokens ------------------------------------------------------------------------------------


def tokens_of(
    tokenizer: "PreTrainedTokenizerBase",
    answered: Answered,
    thinking: bool | None = None,
    template: str | None = None,
) -> AnsweredTokens:
    """The tokens of a row, and which of them the assistant writes; raises BadInput.

    A trace keeps its tokens where this tokenizer reads them as its text, and its prompt's unless
    the prompt itself is known; of another tokenizer it is encoded anew.
    """
    if answered.reply is not None and answered.prompt is not None:
        return encode_reply(tokenizer, answered.prompt, answered.reply, thinking, template)
    trace, prompt = answered.trace, answered.prompt
    asked = encode(tokenizer, prompt, thinking, template) if prompt is not None else None
    if trace is not None and reads(tokenizer, trace):
        asked = trace.prompt_token_ids if asked is None else asked
        learned = [False] * len(asked) + [True] * len(trace.token_ids)
        return AnsweredTokens([*asked, *trace.token_ids], learned)
    if asked is None:
        raise BadInput(
            f"prompt {answered.prompt_id!r}: the trace was written with another tokenizer, so its "
            "prompt must be known as text: give its file with --prompts."
        )
    return replied(tokenizer, asked, answered.text, end=answered.finished)


def reads(tokenizer: "PreTrainedTokenizerBase", trace: Trace) -> bool:
    """Whether a trace's tokens are this tokenizer's: they spell its text."""
    ids = (*trace.prompt_token_ids, *trace.token_ids)
    return (
        max(ids) < len(tokenizer)
        and text_of(tokenizer, trace.token_ids, trace.finish_reason) == trace.text
    )
