"""Calls of tools in what a model wrote: how templates have them written, and how they are read.

A template that takes `tools` tells the model to write calls in one of few forms. Each form is a row
of `FORMS`; the first whose mark the template holds is the model's.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from surgeon.settings.neureasoner import THINKING, Tags


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: str
    """A JSON object."""
    id: str

    @property
    def body(self) -> dict[str, object]:
        """As OpenAI writes it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def call_of(name: str, arguments: object) -> Call:
    """A call with an id of its own."""
    text = json.dumps(arguments, ensure_ascii=False)
    return Call(name, text, "call_" + uuid.uuid4().hex[:24])


class CallForm(NamedTuple):
    """How calls are written."""

    mark: str
    """Regular expression: what the template holds where calls are written so."""
    begin: str
    """The text that a call, or a list of calls, begins with."""
    end: str | None
    """The text that it ends with; None: the answer's end."""
    read: Callable[[str], list[Call] | None]
    """The calls between the two; None where it is none."""


def _json_calls(text: str) -> list[Call] | None:
    """`{"name": ..., "arguments": {...}}`, or a list of such, or several one after another."""
    decoder, found = json.JSONDecoder(), []
    text = text.strip()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        found += value if isinstance(value, list) else [value]
        text = text[end:].lstrip(" \t\r\n;,")
    calls = [_call(value) for value in found]
    return None if not calls or None in calls else [c for c in calls if c is not None]


def _call(value: object) -> Call | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return call_of(value["name"], arguments) if isinstance(arguments, dict) else None


def _tagged_calls(text: str) -> list[Call] | None:
    """`<function=NAME><parameter=KEY>VALUE</parameter>...</function>`; a value that is JSON is read
    as such, any other is text."""
    found = re.findall(r"<function=([^>\n]+)>(.*?)</function>", text, re.DOTALL)
    calls = []
    for name, body in found:
        pairs = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
        calls.append(call_of(name.strip(), {key.strip(): _value(text) for key, text in pairs}))
    return calls or None


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _mistral_calls(text: str) -> list[Call] | None:
    """A list of JSON calls, or `NAME[ARGS]{...}`, one after another."""
    if "[ARGS]" not in text:
        return _json_calls(text)
    calls: list[Call] = []
    for part in text.split("[TOOL_CALLS]"):
        name, _, arguments = part.partition("[ARGS]")
        name = re.sub(r"\[CALL_ID\].*", "", name, flags=re.DOTALL).strip()
        made = _call({"name": name, "arguments": arguments.strip()}) if name else None
        if made is None:
            return None
        calls.append(made)
    return calls


FORMS: Mapping[str, CallForm] = {
    "qwen-coder": CallForm(r"<function=", "<tool_call>", "</tool_call>", _tagged_calls),
    "hermes": CallForm(r"<tool_call>", "<tool_call>", "</tool_call>", _json_calls),
    "mistral": CallForm(r"\[TOOL_CALLS\]", "[TOOL_CALLS]", None, _mistral_calls),
    "phi": CallForm(r"<\|tool_call\|>", "<|tool_call|>", "<|/tool_call|>", _json_calls),
    "llama": CallForm(r"<\|python_tag\|>|\"parameters\":", '{"name":', None, _json_calls),
}
"""By the family that is known for it; the first that fits a template is taken."""
WITH_BEGIN = frozenset({'{"name":'})
"""Beginnings that belong to the call."""


def form_of(template: str) -> CallForm | None:
    """The form that a chat template asks for; None where it is none of those known."""
    return next((form for form in FORMS.values() if re.search(form.mark, template)), None)


class FreeCalls:
    """Passes text on, and takes the calls of a form out of it, as both come."""

    def __init__(
        self, form: CallForm, thinking: bool, most: int | None = None, tags: Tags = THINKING
    ):
        self.form, self.most, self.tags = form, most, tags
        """`most`: further calls are left out. What stands between the `tags` is no call."""
        self.calls: list[Call] = []
        self._waiting = ""
        self._inside = False
        self._thinking = thinking

    def push(self, piece: str) -> str:
        """The text that is certain to be no call."""
        self._waiting += piece
        passed = ""
        while True:
            if self._inside:
                end = self.form.end
                if end is None or end not in self._waiting:
                    return passed
                body, _, self._waiting = self._waiting.partition(end)
                passed += self._take(body, end)
                self._inside = False
                continue
            opening, closing = self.tags
            marks = [closing] if self._thinking else [self.form.begin, opening]
            hits = [(self._waiting.find(m), m) for m in marks if m in self._waiting]
            if not hits:
                cut = len(self._waiting) - _beginning(self._waiting, marks)
                text, self._waiting = self._waiting[:cut], self._waiting[cut:]
                return passed + text
            at, mark = min(hits)
            before, self._waiting = self._waiting[:at], self._waiting[at + len(mark) :]
            passed += before
            if mark == self.form.begin:
                self._inside = True
                if mark in WITH_BEGIN:
                    self._waiting = mark + self._waiting
            else:
                passed += mark
                self._thinking = mark == opening

    def finish(self) -> str:
        """What waited, where it was no call after all."""
        text, self._waiting = self._waiting, ""
        if not self._inside:
            return text
        return self._take(text, "")

    def _take(self, body: str, end: str) -> str:
        """Read a call; what is none stays text."""
        calls = self.form.read(body)
        if calls is None:
            begin = "" if self.form.begin in WITH_BEGIN else self.form.begin
            return begin + body + end
        self.calls += calls
        if self.most is not None:
            del self.calls[self.most :]
        return ""


def _beginning(text: str, marks: Sequence[str]) -> int:
    """The length of the longest end of a text that a mark begins with."""
    longest = min(max(map(len, marks)) - 1, len(text))
    lengths = range(longest, 0, -1)
    return next((n for n in lengths if any(mark.startswith(text[-n:]) for mark in marks)), 0)


class ForcedCalls:
    """Takes all text: a constraint makes it a list of calls, or the arguments of a named tool."""

    def __init__(self, name: str | None, most: int | None = None):
        self.name, self.most = name, most
        self.calls: list[Call] = []
        self._waiting = ""

    def push(self, piece: str) -> str:
        """Nothing is text."""
        self._waiting += piece
        return ""

    def finish(self) -> str:
        """An answer that was cut off is no call: it stays text."""
        text, self._waiting = self._waiting, ""
        if self.name is None:
            made = _json_calls(text)
        else:
            one = _call({"name": self.name, "arguments": text})
            made = None if one is None else [one]
        if made is None:
            return text
        self.calls = made[: self.most]
        return ""


def forced_schema(
    tools: Sequence[Mapping[str, object]], name: str | None, most: int | None
) -> dict[str, object]:
    """The JSON schema of an answer that calls a tool: the named one's arguments, or a list of up to
    `most` calls of any. `tools` are the `function` objects of a request."""
    if name is not None:
        return _arguments(next(tool for tool in tools if tool["name"] == name))
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": _arguments(tool)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **limit}


def _arguments(tool: Mapping[str, object]) -> dict[str, object]:
    schema = tool.get("parameters")
    return schema if isinstance(schema, dict) and schema else {"type": "object"}
