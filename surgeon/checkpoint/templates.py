"""The chat templates of a directory, in every place that transformers has kept them in.

`chat_template.jinja` and `additional_chat_templates/NAME.jinja` (now); `chat_template` in
tokenizer_config.json, a text or a list of named ones (before); `chat_template.json` and
processor_config.json (processors of models that see images).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.checkpoint.tensors import read_json
from surgeon.errors import BadInput

DEFAULT = "default"
"""The name of a template that has no other."""
JINJA, NAMED = "chat_template.jinja", "additional_chat_templates"
TEMPLATE_FILES = (JINJA, "chat_template.json")
TEMPLATE_SETTINGS = ("tokenizer_config.json", "chat_template.json", "processor_config.json")
"""Files that may hold templates beside other settings, those of the tokenizer first."""


def named_template_files(path: Path) -> list[Path]:
    """The files of `additional_chat_templates/`, by name."""
    return sorted(p for p in (path / NAMED).glob("*.jinja") if p.is_file())


def read_templates(path: Path) -> dict[str, str]:
    """Name -> chat template; the one without a name is called "default".

    Files of Jinja win over the tokenizer's config, and that over the processor's, as in
    transformers. Raises `BadInput` naming a file that holds no text.
    """
    templates = {file.stem: _text(file) for file in named_template_files(path)}
    if (path / JINJA).is_file():
        return {DEFAULT: _text(path / JINJA)} | templates
    for name in TEMPLATE_SETTINGS:
        found = _listed(read_json(path / name).get("chat_template"), path / name)
        if found:
            return found | templates
    return templates


def write_templates(out: Path, templates: Mapping[str, str]) -> None:
    """Make these the only chat templates of a directory, as files of Jinja."""
    for name in TEMPLATE_FILES:
        (out / name).unlink(missing_ok=True)
    for file in named_template_files(out):
        file.unlink()
    for name in TEMPLATE_SETTINGS:
        settings = read_json(out / name)
        if settings.pop("chat_template", None) is not None:
            lineage.write_json(out / name, settings)
    for name, text in templates.items():
        file = out / JINJA if name == DEFAULT else out / NAMED / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        # Bytes: line breaks stay as they are.
        file.write_bytes(text.encode())


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file} is not UTF-8 text ({error.reason}), expected a template.") from None


def _listed(value: Any, file: Path) -> dict[str, str]:
    """Templates as a text, a list of `{"name", "template"}`, or an object of them by name."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    rows = list(value.items()) if isinstance(value, dict) else [(None, value)]
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        rows = [(row.get("name"), row.get("template")) for row in value]
    templates: dict[str, str] = {}
    for name, text in rows:
        is_text = isinstance(name, str) and isinstance(text, str)
        if not is_text or not name or set(name) & set("/\\\0"):
            raise BadInput(
                f"{file}: found the chat template {name!r} of kind {type(text).__name__}, expected "
                "a text, or a list of name and template."
            )
        templates[name] = text
    return templates
