"""Messages of a conversation, in every spelling that files have for them."""

import json
from collections.abc import Mapping
from typing import Any

from surgeon.errors import BadInput

Message = dict[str, Any]
"""`role` and `content` (text), and where the source has them `tool_calls`, `reasoning_content`,
`name` and `tool_call_id`."""
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's `from`, as a role."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""What servers and templates call the thinking of an earlier turn; here it is the first."""
UNREAD = ("function_call", "image", "images", "audio", "audios", "video", "videos", "refusal")
"""Fields of a message that say something and have no place in a prompt here."""
KEPT = ("name", "tool_call_id")


def kind_of(value: object) -> str:
    """What a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    if value is None or value in ("", [], {}):
        return "nothing" if value is None else f"an empty {type(value).__name__}"
    return names.get(type(value), f"a {type(value).__name__}")


def decoded(value: object) -> object:
    """A list or object that a table keeps as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parse_messages(content: object, place: str) -> tuple[Message, ...]:
    """The messages up to where an answer is wanted; raises BadInput that begins with `place`.

    A list of objects with `role` and `content` (text, or parts of text, which are joined by line
    breaks), or of ShareGPT's `from` and `value`.
    """
    rows = decoded(content)
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{place}: found {kind_of(rows)}, expected a list of messages.")
    messages = tuple(_message(row, place) for row in rows)
    if messages[-1]["role"] == "assistant":
        raise BadInput(
            f"{place}: the last message is the assistant's, expected a question. Leave it out."
        )
    return messages


def parse_reply(row: object, place: str) -> Message:
    """The assistant's message that answers a conversation; raises BadInput that begins with
    `place`."""
    message = _message(row, place)
    if message["role"] != "assistant" or not (message["content"].strip() or len(message) > 2):
        raise BadInput(
            f"{place}: found a last message {str(row)[:60]!r}, expected the assistant's answer."
        )
    return message


def ends_answered(content: object) -> bool:
    """Whether ShareGPT's form ends with the assistant's turn, as its training examples do."""
    return (
        isinstance(content, list)
        and len(content) > 1
        and isinstance(content[-1], Mapping)
        and "role" not in content[-1]
        and SPEAKERS.get(str(content[-1].get("from"))) == "assistant"
    )


def _message(row: object, place: str) -> Message:
    if isinstance(row, Mapping):
        # Columnar sources fill what a message lacks with null.
        row = {name: value for name, value in row.items() if value is not None}
        if "role" not in row and "from" in row:
            row = _of_sharegpt(row, place)
    shown = str(row)[:60]
    if not isinstance(row, dict) or not isinstance(row.get("role"), str) or not row["role"]:
        raise BadInput(
            f"{place}: found a message {shown!r}, expected an object with role and content, both "
            "text."
        )
    for name in UNREAD:
        if row.get(name):
            raise BadInput(
                f"{place}: found {name} in a message, expected text and tool_calls: prompts are "
                "text. Leave it out, or put what it says into the content."
            )
    calls = decoded(row.get("tool_calls"))
    reasoning = next((row[name] for name in REASONING if row.get(name)), None)
    if row.get("content") is None and (calls or reasoning):
        row = {**row, "content": ""}
    message: Message = {"role": row["role"], "content": _text(row.get("content"), shown, place)}
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise BadInput(f"{place}: found {kind_of(reasoning)} as reasoning, expected text.")
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = _calls(calls, place)
    for name in KEPT:
        if isinstance(row.get(name), str) and (name != "name" or row["role"] == "tool"):
            message[name] = row[name]
    return message


def _of_sharegpt(row: Mapping[str, Any], place: str) -> Message:
    speaker = row["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise BadInput(
            f"{place}: found a message from {str(speaker)[:40]!r}, expected one of: "
            f"{', '.join(SPEAKERS)}."
        )
    rest = {name: value for name, value in row.items() if name not in ("from", "value")}
    return {**rest, "role": SPEAKERS[speaker], "content": row.get("value")}


def _text(content: object, shown: str, place: str) -> str:
    """Content as text: parts of text are joined by line breaks, as servers do."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise BadInput(
            f"{place}: found a message {shown!r}, expected an object with role and content, both "
            "text."
        )
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else part
        if kind not in ("text", "input_text", None) or not isinstance(text, str):
            raise BadInput(
                f"{place}: found a part of a message of type {str(kind or kind_of(part))[:40]!r}, "
                "expected text: images and sound are not read. Leave the row out."
            )
        texts.append(text)
    return "\n".join(texts)


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Calls of tools, their arguments as objects, which is what templates take."""
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(
                f"{place}: found a tool call {str(call)[:60]!r}, expected an object with function: "
                "{name, arguments}."
            )
        arguments = function.get("arguments")
        arguments = {} if arguments is None else decoded(arguments)
        function = {**function, "arguments": arguments}
        known = {k: v for k, v in call.items() if v is not None and k in ("id", "type")}
        made.append({"type": "function", **known, "function": function})
    return made


def parse_tools(value: object, place: str) -> tuple[dict[str, Any], ...]:
    """A row's `tools`: descriptions of functions, as a list or as JSON text of one."""
    tools: Any = decoded(value)
    if tools in (None, "", [], {}):
        return ()
    rows: list[Any] = tools if isinstance(tools, list) else [tools]
    for tool in rows:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(
                f"{place}: found the tool {str(tool)[:60]!r}, expected an object with function: "
                "{name, description, parameters}."
            )
    return tuple(
        tool if "function" in tool else {"type": "function", "function": tool} for tool in rows
    )


def require_unicode(value: object, place: str, name: str = "") -> None:
    """Raise BadInput for text that has no UTF-8: half of a surrogate pair."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            require_unicode(key, place, name)
            require_unicode(part, place, f"{name}.{key}".strip("."))
    elif isinstance(value, list | tuple):
        for part in value:
            require_unicode(part, place, name)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])[1:-1]
            raise BadInput(
                f"{place}: found half a character ({half}) in {ascii(name)[1:-1]} at position "
                f"{error.start + 1}, expected whole Unicode text. Write the row again."
            ) from error
