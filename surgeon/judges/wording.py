"""The texts that judges and writers are asked with, from `wording.yaml` or a file like it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from surgeon.errors import BadInput
from surgeon.settings import yaml_text

FILE = Path(__file__).with_name("wording.yaml")
PHASE_FILE = Path(__file__).with_name("phase_wording.yaml")
_NAME = re.compile(r"\{\{(\w+)\}\}")


class JudgeText(TypedDict):
    """A conversation with a judge."""

    system: str
    user: str


class WriterText(TypedDict):
    """What a writer is asked about a failure that is there, and about one to be made up."""

    own: str
    made: str


class WriterTexts(TypedDict):
    """What writers are asked."""

    system: str
    intra: WriterText
    inter: WriterText


class Texts(TypedDict):
    """Every text."""

    judge: dict[str, JudgeText]
    """By level."""
    write: WriterTexts


def read_texts(path: str | Path | None = None) -> Texts:
    """The texts of a file (by default the one that is shipped); raises `BadInput` where it lacks
    any."""
    return cast("Texts", _read(path, FILE))


def read_phase_texts(path: str | Path | None = None) -> JudgeText:
    """What labels of phases are asked for with, likewise."""
    return cast("JudgeText", _read(path, PHASE_FILE))


def _read(path: str | Path | None, shipped: Path) -> object:
    import yaml

    known = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    if path is None:
        return known
    try:
        found = yaml_text.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"prompt_file {path} can't be read as YAML ({reason}).") from error
    _require_same(found, known, str(path), shipped.name)
    return found


def _require_same(found: Any, known: Any, where: str, shipped: str) -> None:
    """Raise `BadInput` unless there is a text wherever the shipped file has one."""
    if isinstance(known, str):
        if not isinstance(found, str):
            raise BadInput(f"{where} is no text; see {shipped} of surgeon for the form.")
        unknown = set(_NAME.findall(found)) - set(_NAME.findall(known))
        if unknown:
            raise BadInput(
                f"{where} holds {{{{{min(unknown)}}}}}, expected only: "
                f"{', '.join(sorted(set(_NAME.findall(known)))) or 'none'}."
            )
        return
    if not isinstance(found, dict) or set(found) != set(known):
        raise BadInput(f"{where} must hold {', '.join(known)}; see {shipped} of surgeon.")
    for name in known:
        _require_same(found[name], known[name], f"{where}: {name}", shipped)


def filled(text: str, **values: object) -> str:
    """The text with its {{names}} filled in, each value as it is."""
    return _NAME.sub(lambda match: str(values[match[1]]), text)


def conversation(system: str, user: str) -> list[dict[str, str]]:
    """The messages of one request."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """A prompt's messages as one text."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}{_called(m)}" for m in messages)


def _called(message: Mapping[str, Any]) -> str:
    """A message's calls of tools, as text."""
    calls = message.get("tool_calls")
    return f"\ncalls {json.dumps(calls, ensure_ascii=False)}" if calls else ""
