"""What the model reads: all of a prompt, in whatever form its chat template takes, or a refusal."""

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.checkpoint import Checkpoint, rewrite
from surgeon.errors import BadInput
from surgeon.traces import Prompt, encode

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }} "
TAIL = "<|im_end|>{% endfor %}<|im_start|>assistant "
TEXT = HEAD + "{{ m.content }}" + TAIL
PARTS = HEAD + "{% for p in m.content %}{{ p.text }}{% endfor %}" + TAIL
MIXED = (
    HEAD + "{% if m.role == 'system' %}{{ m.content + '' }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}" + TAIL
)
CALLS = (
    HEAD + "{{ m.content }}{% for c in m.tool_calls or [] %} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }} {% endfor %}" + TAIL
)
CALLS_AS_TEXT = CALLS.replace("arguments | tojson }}", "arguments + '' }}")
TOOLS = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + CALLS
STRIPS = (
    HEAD + "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}"
    "{{ m.content | trim }}{% endif %}" + TAIL
)
REASONS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    + HEAD
    + "{% if m.reasoning_content and loop.index0 > ns.last %}<think> {{ m.reasoning_content }} "
    "</think> {% endif %}{{ m.content }}" + TAIL
)

SYSTEM = {"role": "system", "content": "w7"}
USER = {"role": "user", "content": "w1 w2"}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "w5", "arguments": {"w6": "w8"}}}],
}
TOLD = {"role": "tool", "content": "w9"}
TOOL = {"type": "function", "function": {"name": "w10", "parameters": {}}}


@pytest.fixture
def tokenizer(pico_source: tuple[Path, Path]) -> Any:
    return Checkpoint.open(pico_source[0]).tokenizer()


def read(tokenizer: Any, template: str, *messages: dict[str, Any], **more: Any) -> str:
    tokenizer.chat_template = template
    return tokenizer.decode(encode(tokenizer, Prompt("p", messages, **more)))


@pytest.mark.parametrize("template", [TEXT, PARTS, MIXED], ids=["text", "parts", "mixed"])
def test_content_takes_the_form_that_the_template_reads(tokenizer: Any, template: str):
    text = read(tokenizer, template, SYSTEM, USER)
    assert text.split() == [
        "<|im_start|>", "system", "w7", "<|im_end|>", "<|im_start|>", "user", "w1", "w2",
        "<|im_end|>", "<|im_start|>", "assistant",
    ]  # fmt: skip


@pytest.mark.parametrize("template", [CALLS, CALLS_AS_TEXT], ids=["object", "text"])
def test_calls_of_tools_are_rendered(tokenizer: Any, template: str):
    tokenizer.chat_template = template
    prompt = Prompt("p", (USER, CALL, TOLD))
    call = CALL
    if template == CALLS_AS_TEXT:
        function = {"name": "w5", "arguments": '{"w6": "w8"}'}
        call = {**CALL, "tool_calls": [{"type": "function", "function": function}]}
    text = tokenizer.apply_chat_template([USER, call, TOLD], tokenize=False)
    assert "w8" in text
    assert encode(tokenizer, prompt) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tools_are_rendered(tokenizer: Any):
    assert "w10" in read(tokenizer, TOOLS, USER, tools=(TOOL,))


@pytest.mark.parametrize(
    ("template", "messages", "tools", "what"),
    [
        (TEXT, (USER, CALL, TOLD), (), "a tool call of message 2"),
        (TEXT, (USER,), (TOOL,), "the tools"),
        (CALLS.replace("{{ c.function.arguments | tojson }}", ""), (USER, CALL, TOLD), (),
         "the arguments of a tool call of message 2"),
        (TEXT.replace("{{ m.role }}", "{% if m.role == 'system' %}{% continue %}{% endif %}"),
         (SYSTEM, USER), (), "message 1"),
        (TEXT, (USER, {**SYSTEM, "role": "assistant", "reasoning_content": "w3"}, USER), (),
         "the reasoning of message 2"),
        ("w1 w2", (USER,), (), "message 1"),
    ],
    ids=["calls", "tools", "arguments", "system", "reasoning", "all"],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused(
    tokenizer: Any, template: str, messages: tuple[Any, ...], tools: tuple[Any, ...], what: str
):
    with pytest.raises(BadInput, match=rf"prompt 'p': the chat template leaves out {what}"):
        read(tokenizer, template, *messages, tools=tools)


def test_templates_that_strip_thinking_on_purpose_pass(tokenizer: Any):
    earlier = {"role": "assistant", "content": "<think> w3 </think> w4"}
    assert "w3" not in read(tokenizer, STRIPS, USER, earlier, USER)
    split = {"role": "assistant", "content": "w4", "reasoning_content": "w3"}
    for template in (STRIPS, STRIPS.replace("</think>", "[/THINK]")):
        text = read(tokenizer, template, USER, split, USER)
        assert "w3" not in text and "w4" in text
    assert "w3" not in read(tokenizer, REASONS, USER, split, USER)
    # After the last question it is what the model goes on from.
    assert "w3" in read(tokenizer, REASONS, USER, split, TOLD)


def test_a_template_is_chosen_by_name(tokenizer: Any):
    tokenizer.chat_template = {"default": TEXT, "tool_use": TOOLS, "short": "w3 " + TEXT}
    prompt = Prompt("p", (USER,))
    assert "w10" in tokenizer.decode(encode(tokenizer, Prompt("p", (USER,), tools=(TOOL,))))
    assert tokenizer.decode(encode(tokenizer, prompt, template="short")).startswith("w3")
    with pytest.raises(BadInput, match="expected one of the checkpoint's: default, short, tool_u"):
        encode(tokenizer, prompt, template="long")
    del tokenizer.chat_template["default"]
    with pytest.raises(BadInput, match=r"no default, .* Choose it with --template NAME"):
        encode(tokenizer, prompt)
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="expected none: the checkpoint has none"):
        encode(tokenizer, prompt, template="long")


# --- where templates live -------------------------------------------------------------------------


def setting(path: Path, file: str, value: Any) -> None:
    content = json.loads((path / file).read_text()) if (path / file).is_file() else {}
    (path / file).write_text(json.dumps({**content, "chat_template": value}))


LISTED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
PLACES = {
    "text": (lambda p: setting(p, "tokenizer_config.json", "d"), {"default": "d"}),
    "list": (lambda p: setting(p, "tokenizer_config.json", LISTED),
             {"default": "d", "tool_use": "t"}),
    "no default": (lambda p: setting(p, "tokenizer_config.json", LISTED[1:]), {"tool_use": "t"}),
    "processor": (lambda p: setting(p, "chat_template.json", "d"), {"default": "d"}),
    "processor's config": (lambda p: setting(p, "processor_config.json", "d"), {"default": "d"}),
    "files": (lambda p: [(p / "chat_template.jinja").write_text("d"),
                         (p / "additional_chat_templates").mkdir(),
                         (p / "additional_chat_templates" / "rag.jinja").write_text("r")],
              {"default": "d", "rag": "r"}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_template_is_read_counted_and_copied_wherever_it_lives(
    place: str, pico_pair: tuple[Path, Path], tmp_path: Path
):
    (path, _), (put, templates) = pico_pair, PLACES[place]
    (path / "chat_template.jinja").unlink()
    bare = Checkpoint.open(path)
    digest = bare.digest
    assert bare.tokenizer().chat_template is None
    put(path)
    checkpoint = Checkpoint.open(path)
    assert checkpoint.chat_templates == templates and checkpoint.digest != digest
    one = set(templates) == {"default"}
    assert checkpoint.tokenizer().chat_template == (templates["default"] if one else templates)
    (tmp_path / "copy").mkdir()
    rewrite(checkpoint, tmp_path / "copy", lambda name, tensor: tensor, lambda name: False)
    copied = Checkpoint.open(tmp_path / "copy")
    assert copied.chat_templates == templates and copied.digest == checkpoint.digest


@pytest.mark.parametrize("place", PLACES)
def test_a_candidate_has_the_templates_of_the_endpoint_that_gives_them(
    place: str, pico_pair: tuple[Path, Path], tmp_path: Path
):
    from transformers import AutoTokenizer

    from surgeon.families import Family, subjects
    from surgeon.live.families import tokenizer
    from surgeon.merge import sweep

    (a, b), (put, templates) = pico_pair, PLACES[place]
    setting(a, "tokenizer_config.json", [{"name": "old", "template": "o"}])
    (b / "chat_template.jinja").unlink()
    put(b)
    out = tmp_path / "out"
    sweep(a, b, ratios="0.5", template="second", out=out, virtual=True)
    family = Family.open(out)
    form = templates if set(templates) != {"default"} else templates["default"]
    assert tokenizer(family).chat_template == form
    from surgeon.families.subjects import write_out

    (middle,) = (s for s in subjects([str(out)]) if s.name == "slerp-0.5")
    written = Checkpoint.open(write_out(middle, tmp_path / "written"))
    assert written.chat_templates == templates
    assert AutoTokenizer.from_pretrained(written.path).chat_template == form
