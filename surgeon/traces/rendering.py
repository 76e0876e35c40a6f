"""A prompt as the model reads it: through the chat template, with nothing left out.

Templates differ in what they take: content as text or as a list of parts, arguments of tool calls
as objects or as JSON. What a template has no place for, it skips without a word. So each
conversation is rendered a second time with a mark at the end of everything that somebody said; the
form is taken in which all marks are there, and where there is none the prompt is refused. Marks
stand at the end, so templates that strip the thinking of earlier turns pass.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import TAGS
from surgeon.traces.messages import REASONING, Message
from surgeon.traces.prompts import Prompt
from surgeon.traces.template_trial import RunawayTemplateError, try_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVERY = range(1 << 60)
"""All messages, by their places."""


class Conversation(NamedTuple):
    """What a chat template is given."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    thinking: bool | None = None,
    template: str | None = None,
) -> list[int]:
    """The prompt's token ids, up to where the answer begins.

    With the tokenizer's chat template of the name `template` (by default as transformers chooses);
    bare text is encoded as it is where there is none. Raises BadInput for messages without a
    template, for those that the template refuses, and where it leaves out what somebody said.
    """
    text = chosen_template(tokenizer, template, tools=bool(prompt.tools))
    if text is None:
        if not prompt.plain:
            raise BadInput(
                f"prompt {prompt.id!r} is a list of messages and the tokenizer has no chat "
                "template: give plain `prompt` rows, or a checkpoint with a template."
            )
        ids = tokenizer(prompt.messages[0]["content"])["input_ids"]
    else:
        given = conversation(tokenizer, prompt, text, thinking)
        encoded = _tokens(
            tokenizer, text, given.messages, tools=given.tools, add_generation_prompt=True,
            **_switch(thinking),
        )  # fmt: skip
        ids = encoded["input_ids"]
    if not ids:
        raise BadInput(f"prompt {prompt.id!r} has no tokens, expected at least one.")
    return list(ids)  # pyright: ignore[reportArgumentType]


def chosen_template(
    tokenizer: "PreTrainedTokenizerBase", name: str | None, *, tools: bool = False
) -> str | None:
    """The text of the tokenizer's chat template of that name; None where it has none at all.

    Without a name it is `tool_use` for prompts with tools, else `default`, as in transformers.
    Raises BadInput for a name that isn't there, and where one must be chosen.
    """
    found: Any = tokenizer.chat_template
    templates = found if isinstance(found, dict) else {} if found is None else {"default": found}
    names = ", ".join(sorted(templates))
    if name is not None and name not in templates:
        has = f"one of the checkpoint's: {names}" if names else "none: the checkpoint has none"
        raise BadInput(f"found the chat template {name!r}, expected {has}. Change --template.")
    if name is None and not templates:
        return None
    name = name or ("tool_use" if tools and "tool_use" in templates else "default")
    if name not in templates:
        raise BadInput(
            f"found the chat templates {names} and no default, expected the name of one. Choose it "
            "with --template NAME."
        )
    return templates[name]


def template_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """All chat templates of a tokenizer, one below the other; empty where it has none."""
    found: Any = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(found.values()) if isinstance(found, dict) else str(found)


GENERATION = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
"""How a chat template marks what the assistant writes."""


class AnsweredTokens(NamedTuple):
    """A conversation with its answer, as tokens."""

    ids: list[int]
    learned: list[bool]
    """Whether the assistant writes the token."""


def encode_reply(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    reply: Message,
    thinking: bool | None = None,
    template: str | None = None,
) -> AnsweredTokens:
    """The prompt's tokens and those of the message that answers it.

    What is written by the assistant says the template itself where it has `{% generation %}`: every
    answer of the conversation. Else it is what the conversation with the answer has more than the
    prompt, up to the last token that ends an answer; the prompt is encoded as it is asked. Raises
    BadInput as `encode` does, and where the template leaves out a part of the answer.
    """
    text = chosen_template(tokenizer, template, tools=bool(prompt.tools))
    asked = encode(tokenizer, prompt, thinking, template)
    if text is None:
        return replied(tokenizer, asked, reply["content"])
    answered = Prompt(prompt.id, (*prompt.messages, reply), tools=prompt.tools)
    given = conversation(tokenizer, answered, text, thinking)
    options: dict[str, Any] = {
        "tools": given.tools, "add_generation_prompt": False, **_switch(thinking),
    }  # fmt: skip
    rendered = _text(tokenizer, text, given.messages, **options)
    if GENERATION.search(text):
        found = _tokens(
            tokenizer, text, given.messages, return_assistant_tokens_mask=True, **options
        )
        ids, learned = list(found["input_ids"]), [bool(m) for m in found["assistant_masks"]]
    else:
        before = conversation(tokenizer, prompt, text, thinking)
        options |= {"tools": before.tools, "add_generation_prompt": True}
        head = _text(tokenizer, text, before.messages, **options)
        if not rendered.startswith(head):
            raise BadInput(
                f"prompt {prompt.id!r}: the chat template renders it otherwise once it is "
                "answered, so the answer's tokens can't be told. Give the answer in a column "
                "response beside the prompt, which is learned as it stands."
            )
        ids, learned = replied(tokenizer, asked, rendered[len(head) :], end=False)
        ids, learned = _to_the_end(tokenizer, ids, learned)
    whole = tokenizer.decode([i for i, flag in zip(ids, learned, strict=True) if flag])
    for name in ("content", *REASONING):
        if _squeezed(reply.get(name) or "") not in _squeezed(str(whole)):
            raise BadInput(
                f"prompt {prompt.id!r}: the chat template leaves out a part of the answer, "
                "expected all of it. Give the answer in a column response beside the prompt, which "
                "is learned as it stands."
            )
    return AnsweredTokens(ids, learned)


def replied(
    tokenizer: "PreTrainedTokenizerBase", asked: Sequence[int], text: str, *, end: bool = True
) -> AnsweredTokens:
    """A prompt's tokens and those of the text that answers it, its end too unless it was cut."""
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    if end and tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return AnsweredTokens([*asked, *ids], [False] * len(asked) + [True] * len(ids))


def _to_the_end(
    tokenizer: "PreTrainedTokenizerBase", ids: list[int], learned: list[bool]
) -> AnsweredTokens:
    """Without what the template puts behind the answer's end, which is added where it has none."""
    eos = tokenizer.eos_token_id
    if eos is None:
        return AnsweredTokens(ids, learned)
    ends = [n for n, (i, flag) in enumerate(zip(ids, learned, strict=True)) if flag and i == eos]
    if not ends:
        return AnsweredTokens([*ids, int(eos)], [*learned, True])  # pyright: ignore[reportArgumentType]
    return AnsweredTokens(ids[: ends[-1] + 1], learned[: ends[-1] + 1])


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _switch(thinking: bool | None) -> Message:
    return {} if thinking is None else {"enable_thinking": thinking}


def conversation(
    tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, template: str, thinking: bool | None
) -> Conversation:
    """The prompt in the form in which the template renders all of it; raises BadInput where there
    is none, naming what is left out or what the template says."""
    messages = [_reasoned(n, m, prompt, template) for n, m in enumerate(prompt.messages)]
    marked, tools, marks = _marked(messages, prompt.tools)
    calls = any(message.get("tool_calls") for message in messages)
    forms: list[tuple[Collection[int], bool]] = [((), False), (EVERY, False)]
    forms += [((), True), (EVERY, True)] if calls else []
    fault: str | None = None
    tried = set()
    while forms:
        parts, as_text = form = forms.pop(0)
        tried.add(form)
        shaped = _shaped(messages, parts, as_text)
        try:
            rendered = _rendered(
                tokenizer, template, _shaped(marked, parts, as_text), tools, thinking
            )
            _rendered(tokenizer, template, shaped, list(prompt.tools), thinking)
        except RunawayTemplateError:
            raise
        except BadInput as error:
            fault = fault or f"the chat template refuses it ({error})"
            continue
        missing = [what for mark, what in marks.items() if mark not in rendered.lower()]
        if not missing:
            return Conversation(shaped, list(prompt.tools) or None)
        if not parts:
            # Some templates take one role's content as text and another's as parts.
            some = frozenset(n for n in range(len(messages)) if f"message {n + 1}" in missing)
            if some and (some, as_text) not in tried:
                forms.insert(0, (some, as_text))
        fault = fault or (
            f"the chat template leaves out {missing[0]}, expected all of the prompt in what the "
            "model reads. Leave it out of the row, or choose another template with --template"
        )
    raise BadInput(f"prompt {prompt.id!r}: {fault}.")


def _reasoned(place: int, message: Message, prompt: Prompt, template: str) -> Message:
    """A message with its thinking where the template reads it."""
    if "reasoning_content" not in message:
        return message
    reasoning = message["reasoning_content"]
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    for name in REASONING:
        if re.search(rf"""(?:\.|['"]){name}\b""", template):
            return {**rest, name: reasoning}
    for opening, closing in TAGS:
        if closing in template:
            thought = f"{opening}\n{reasoning.strip()}\n{closing}\n\n{rest['content']}"
            return {**rest, "content": thought}
    raise BadInput(
        f"prompt {prompt.id!r}: the chat template leaves out the reasoning of message {place + 1}, "
        "expected all of the prompt in what the model reads. Leave it out of the row, or choose "
        "another template with --template."
    )


def _marked(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]]
) -> tuple[list[Message], list[dict[str, Any]], dict[str, str]]:
    """Messages and tools with a mark in all that is said, and what each mark stands for."""
    marks: dict[str, str] = {}

    def mark(what: str) -> str:
        text = f"qzx{len(marks)}xzq"
        marks[text] = what
        return text

    last_user = max((n for n, m in enumerate(messages) if m["role"] == "user"), default=-1)
    marked = []
    for n, message in enumerate(messages):
        where, made = f"message {n + 1}", dict(message)
        if message["content"].strip():
            made["content"] = f"{message['content']} {mark(where)}"
        for name in REASONING:
            # The thinking of earlier turns is left out on purpose.
            if name in message and n > last_user:
                made[name] = f"{message[name]} {mark(f'the reasoning of {where}')}"
        if "tool_calls" in message:
            what = f"a tool call of {where}"
            made["tool_calls"] = [_marked_call(c, what, mark) for c in message["tool_calls"]]
        marked.append(made)
    described = []
    for tool in tools:
        function = tool["function"]
        name = f"{function['name']}_{mark('the tools')}"
        described.append({**tool, "function": {**function, "name": name}})
    return marked, described, marks


def _marked_call(call: Message, what: str, mark: Callable[[str], str]) -> Message:
    function = dict(call["function"])
    function["name"] = f"{function['name']}_{mark(what)}"
    arguments = function["arguments"]
    if isinstance(arguments, dict) and arguments:
        text = mark(f"the arguments of {what}")
        function["arguments"] = {**arguments, text: text}
    elif isinstance(arguments, str) and arguments:
        function["arguments"] = f"{arguments} {mark(f'the arguments of {what}')}"
    return {**call, "function": function}


def _shaped(messages: Sequence[Message], parts: Collection[int], as_text: bool) -> list[Message]:
    """Messages with the content of some as parts, and arguments of calls as JSON text."""
    return [_shape(message, n in parts, as_text) for n, message in enumerate(messages)]


def _shape(message: Message, parts: bool, as_text: bool) -> Message:
    shaped = dict(message)
    if parts:
        shaped["content"] = [{"type": "text", "text": message["content"]}]
    if as_text and "tool_calls" in message:
        shaped["tool_calls"] = [
            {**c, "function": {**c["function"], "arguments": _json(c["function"]["arguments"])}}
            for c in message["tool_calls"]
        ]
    return shaped


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(
    tokenizer: "PreTrainedTokenizerBase", template: str, messages: list[Message], **options: Any
) -> str:
    """A conversation as text, once the template was tried out on it."""
    _try_out(tokenizer, template, messages, options)
    text: Any = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, **options
    )
    return str(text)


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", template: str, messages: list[Message], **options: Any
) -> dict[str, list[int]]:
    """A conversation as tokens, once the template was tried out on it."""
    _try_out(tokenizer, template, messages, options)
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, return_dict=True, **options
        )
    except TypeError as error:  # half a surrogate is no text to a tokenizer
        raise BadInput(
            f"the chat template wrote what can't be tokenized ({error!s:.80})."
        ) from error
    return dict(encoded)


def _try_out(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    messages: list[Message],
    options: Mapping[str, Any],
) -> None:
    seen = ("tools", "add_generation_prompt", "enable_thinking")
    variables = {name: options[name] for name in seen if name in options}
    try_out(template, {**tokenizer.special_tokens_map, **variables, "messages": messages})


def _rendered(
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    messages: list[Message],
    tools: list[dict[str, Any]],
    thinking: bool | None,
) -> str:
    """The conversation as text; raises BadInput with what the template, or Jinja, says."""
    from jinja2 import TemplateError

    try:
        return _text(
            tokenizer, template, messages, tools=tools or None, add_generation_prompt=True,
            **_switch(thinking),
        )  # fmt: skip
    except RunawayTemplateError:
        raise
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError,
            ArithmeticError, RecursionError) as error:  # fmt: skip
        raise BadInput(" ".join(str(error).split())[:200]) from error
