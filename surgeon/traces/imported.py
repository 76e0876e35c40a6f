"""Answers as plain text, made elsewhere, as traces: their tokens are the text's."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from surgeon import jsonl, progress
from surgeon.errors import BadInput
from surgeon.traces.messages import kind_of, require_unicode
from surgeon.traces.prompts import Prompt
from surgeon.traces.records import Key, Trace, parse_trace
from surgeon.traces.rendering import encode
from surgeon.traces.texts import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from surgeon.settings.sampling import Sampling

IDS = ("prompt_id", "id", "unique_id", "question_id")
TEXTS = ("response", "responses", "text", "completion", "completions", "output", "outputs",
         "generated_text", "prediction")  # fmt: skip
"""Columns that an answer, or a list of answers to one prompt, usually has."""


class Imported(NamedTuple):
    """Answers of a file, as traces."""

    traces: list[Trace]
    """In the file's order."""
    from_text: int
    """How many of them were text only."""
    changed: int
    """Those of them whose tokens don't give the text back."""

    def say(self, what: str) -> None:
        """Say how far the tokens are those of the text; `what` names the file."""
        if self.from_text:
            share = self.changed / self.from_text
            progress.say(
                f"{what}: {self.from_text:,} answers are text, so their tokens are the "
                f"checkpoint's own; {self.changed:,} ({share:.0%}) give another text back"
            )


def read_plain(
    path: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    sampling: "Sampling",
    stop: AbstractSet[int],
) -> Imported:
    """The answers of a JSONL file: rows with a prompt's id and a text, or a list of texts; rows
    that are traces already stay as they are.

    A row may say `sample` (else answers to a prompt are counted) and `finish_reason` (else `stop`).
    Raises BadInput naming the line that answers no prompt, or the same sample again.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path} does not exist, expected a file of responses.")
    by_id = {prompt.id: prompt for prompt in prompts}
    encoded: dict[str, list[int]] = {}
    counted: dict[str, int] = {}
    traces: dict[Key, Trace] = {}
    from_text = changed = 0
    for place, row in jsonl.rows(path):
        if isinstance(row, dict) and "token_ids" in row:
            found = [parse_trace(row, place)]
        else:
            name, texts = _answers(row, place)
            if name not in by_id:
                raise BadInput(f"{place}: found an answer to {name!r}, expected a prompt's id.")
            if name not in encoded:
                encoded[name] = encode(tokenizer, by_id[name], sampling.thinking, sampling.template)
            first = _sample(row, place, counted.get(name, 0))
            counted[name] = first + len(texts)
            finish = _finish(row, place)
            found = []
            for number, text in enumerate(texts, first):
                ids = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]  # pyright: ignore
                from_text += 1
                changed += text_of(tokenizer, ids) != text
                ids = _ended(ids, finish, tokenizer, stop, place)
                found.append(
                    Trace(name, number, encoded[name], ids, text_of(tokenizer, ids, finish), finish)
                )
        for trace in found:
            if trace.key in traces:
                raise BadInput(
                    f"{place}: sample {trace.sample} of prompt {trace.prompt_id!r} was already "
                    "there, expected each once."
                )
            traces[trace.key] = trace
    return Imported(list(traces.values()), from_text, changed)


def _answers(row: object, place: str) -> tuple[str, list[str]]:
    """Which prompt a row answers, and the texts."""
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {kind_of(row)}, expected an answer (an object).")
    name = next((row[column] for column in IDS if row.get(column) is not None), None)
    value = next((row[column] for column in TEXTS if row.get(column) is not None), None)
    texts = value if isinstance(value, list) else [value]
    if not isinstance(name, str | int) or not all(isinstance(text, str) for text in texts):
        raise BadInput(
            f"{place}: found {', '.join(sorted(map(str, row)))[:80]}, expected prompt_id and "
            "response (text, or a list of texts)."
        )
    require_unicode(texts, place, "a response")
    return str(name), [str(text) for text in texts]


def _sample(row: Any, place: str, counted: int) -> int:
    number = row.get("sample", counted)
    if type(number) is not int or number < 0:
        raise BadInput(f"{place}: found {number!r} as sample, expected a whole number from 0.")
    return number


def _finish(row: Any, place: str) -> Literal["stop", "length"]:
    finish = row.get("finish_reason", "stop")
    if finish not in ("stop", "length"):
        raise BadInput(f"{place}: found {finish!r} as finish_reason, expected stop or length.")
    return "length" if finish == "length" else "stop"


def _ended(
    ids: list[int],
    finish: str,
    tokenizer: "PreTrainedTokenizerBase",
    stop: AbstractSet[int],
    place: str,
) -> list[int]:
    """The tokens with the one that ends an answer."""
    if finish == "stop" and (not ids or ids[-1] not in stop):
        end: Any = tokenizer.eos_token_id
        ids = [*ids, int(end) if end in stop else min(stop)]
    if not ids:
        raise BadInput(f"{place}: found an empty answer cut for its length, expected some text.")
    return ids
