"""Messages and tools of a chat request, and the tokens that the model's template makes of them."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.answers import opened
from surgeon.errors import BadInput
from surgeon.serve.grammar import DEEPEST, depth
from surgeon.serve.refusals import Refusal, encodable
from surgeon.serve.tools import CallForm, form_of
from surgeon.settings.neureasoner import Tags
from surgeon.traces import Prompt, chosen_template, encode
from surgeon.traces.messages import KEPT, REASONING, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant",
    "tool": "tool",
}  # fmt: skip
MOST_TOOLS = 128


class ToolChoice(NamedTuple):
    """Whether tools may be, or have to be, called."""

    tools: tuple[dict[str, Any], ...] = ()
    """As the request lists them; none where none may be called."""
    required: bool = False
    name: str | None = None
    """The one that has to be called."""

    @property
    def functions(self) -> list[Message]:
        """What each tool is."""
        return [tool["function"] for tool in self.tools]


class Rendered(NamedTuple):
    """A conversation as the model reads it."""

    ids: list[int]
    thinking: bool
    """The answer begins inside a thought."""
    form: CallForm | None
    """How calls are written, where there are tools."""


def read_messages(messages: object) -> tuple[Message, ...]:
    """The conversation, each message's parts of text joined by line breaks; raises `Refusal`."""
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages must be a list of at least one message.", param="messages")
    return tuple(_message(message, f"messages[{n}]") for n, message in enumerate(messages))


def _message(message: object, param: str) -> Message:
    if not isinstance(message, dict):
        raise Refusal(400, f"{param} is no object.", param=param)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(
            400, f"{param}.role is {str(role)[:40]!r}, expected {', '.join(ROLES)}.",
            param=f"{param}.role",
        )  # fmt: skip
    for name in ("function_call", "audio"):
        if message.get(name):
            raise Refusal(400, f"{param}.{name} is not supported.", param=f"{param}.{name}")
    made: Message = {"role": ROLES[role]}
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant":
            raise Refusal(
                400, f"{param}.tool_calls: only an assistant's message has calls.",
                param=f"{param}.tool_calls",
            )  # fmt: skip
        made["tool_calls"] = _calls(calls, f"{param}.tool_calls")
        content = "" if content is None else content
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") != "text":
            raise Refusal(
                400, f"{param}.content must be text, or a list of parts of type text.",
                param=f"{param}.content",
            )  # fmt: skip
        texts.append(encodable(text, f"{param}.content"))
    made["content"] = "\n".join(texts)
    for name in (*KEPT, *REASONING):
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise Refusal(400, f"{param}.{name} is no text.", param=f"{param}.{name}")
        encodable(value, f"{param}.{name}")
        if name in KEPT and role == "tool":
            made[name] = value
        elif name in REASONING and value:
            made[REASONING[0]] = value
    return made


def _calls(calls: object, param: str) -> list[Message]:
    """Calls with their arguments as objects, which templates write as JSON themselves."""
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments", "{}") if isinstance(function, dict) else None
        try:
            value = json.loads(arguments) if isinstance(arguments, str) else arguments
            good = isinstance(value, dict) and depth(value) <= DEEPEST
        except (ValueError, RecursionError):
            value, good = None, False
        if not isinstance(name, str) or not good:
            raise Refusal(
                400, f"{param} must be a list of calls, each with function.name and "
                "function.arguments, a JSON object as text.", param=param,
            )  # fmt: skip
        function = {"name": encodable(name, param), "arguments": value}
        identity: object = call.get("id")  # pyright: ignore[reportAttributeAccessIssue]
        named = {"id": encodable(identity, param)} if isinstance(identity, str) else {}
        made.append({**named, "type": "function", "function": function})
    return made


def read_tools(tools: object, choice: object) -> ToolChoice:
    """The tools that may be called; raises `Refusal`."""
    if tools is None or tools == []:
        if choice not in (None, "none", "auto"):
            raise Refusal(400, "tool_choice needs tools.", param="tool_choice")
        return ToolChoice()
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise Refusal(400, f"tools must be a list of up to {MOST_TOOLS} tools.", param="tools")
    if depth(tools) > DEEPEST:
        raise Refusal(400, f"tools has over {DEEPEST} levels.", param="tools")
    encodable(json.dumps(tools, ensure_ascii=False), "tools")
    names = []
    for n, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or tool.get("type") != "function"
            or not isinstance(function.get("name"), str)
            or not function["name"]
            or not isinstance(function.get("parameters", {}), dict | None)
        ):
            raise Refusal(
                400, f"tools[{n}] must be of type function, with function.name and "
                "function.parameters, a JSON schema.", param=f"tools[{n}]",
            )  # fmt: skip
        names.append(function["name"])
    if choice in (None, "auto"):
        return ToolChoice(tuple(tools))
    if choice == "none":
        return ToolChoice()
    if choice == "required":
        return ToolChoice(tuple(tools), required=True)
    wanted = choice.get("function") if isinstance(choice, dict) else None
    name = wanted.get("name") if isinstance(wanted, dict) else None
    if name not in names or choice.get("type") != "function":  # pyright: ignore
        raise Refusal(
            400, "tool_choice must be none, auto, required, or name a function of tools.",
            param="tool_choice",
        )  # fmt: skip
    return ToolChoice(tuple(tools), required=True, name=name)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    choice: ToolChoice,
    thinking: bool | None,
    template: str | None,
    tags: Tags,
) -> Rendered:
    """The tokens up to where the answer begins; raises `Refusal` where the template takes less than
    the request holds. A thought stands between the `tags`."""
    try:
        prompt = Prompt("messages", tuple(messages), tools=choice.tools)
        ids = encode(tokenizer, prompt, thinking, template)
    except BadInput as error:
        param = "tools" if "the tools" in str(error) else "messages"
        words = (
            str(error).removeprefix("prompt 'messages': ").replace("out of the row, or", "out, or")
        )
        raise Refusal(400, words, param=param) from error
    form = None
    if choice.tools:
        form = form_of(chosen_template(tokenizer, template, tools=True) or "")
        if form is None and not choice.required:
            raise Refusal(
                400, "tools: this server doesn't know the form in which this model's chat template "
                "has calls written; leave them out, or set tool_choice to required.",
                param="tools", code="unsupported_parameter",
            )  # fmt: skip
    return Rendered(ids, bool(opened(str(tokenizer.decode(ids[-32:])), [tags])), form)
