"""Who labels blocks: words, the built-in task, a function, or a model at an endpoint.

What a judge says is on disk as it comes (`labels.jsonl`), so a killed run asks the rest.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surgeon import jsonl, lineage, named
from surgeon.builtin import task
from surgeon.endpoint import in_parallel, is_endpoint
from surgeon.errors import BadInput
from surgeon.judges.chat import Chat, Shape, tokens_of
from surgeon.judges.wording import JudgeText, conversation, filled, read_phase_texts
from surgeon.progress import bar, say
from surgeon.read.labels import WORDS, Labels
from surgeon.read.passages import BEFORE, PhaseBlock
from surgeon.settings.asking import EndpointSettings

LABELS = "labels.jsonl"
MARKED = "markers"
"""The annotator that words are."""
MARKERS = (
    "wait", "but", "maybe", "perhaps", "alternatively", "however", "hmm", "actually", "instead",
    "check", "verify", "suppose", "what if", "let me try", "let's try", "another way", "on second "
    "thought", "mistake", "wrong", "not sure", "start over", "reconsider", "re-read", "case",
)  # fmt: skip
"""A block with one of these explores (sec. A.8 names the first three and what the others stand
for; the list is ours)."""
_MARKER = re.compile(rf"\b(?:{'|'.join(map(re.escape, MARKERS))})\b", re.IGNORECASE)
REPLY_TOKENS = 40
SHAPE = Shape("phase", {
    "type": "object",
    "properties": {
        "phase": {"type": "string", "enum": ["explore", "exploit"]},
        "reason": {"type": "string"},
    },
})  # fmt: skip


class Said(NamedTuple):
    """What a judge says of a block."""

    label: str | None
    """E or X; None where it can't tell."""
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class PhaseJudge(NamedTuple):
    """A judge of blocks."""

    name: str
    digest: str
    """Of what it is asked with: another wording is another judge."""
    say: Callable[[PhaseBlock, str], Said]
    """Of a block and its question."""
    endpoint: Chat | None
    text: JudgeText | None


def by_markers(found: Sequence[PhaseBlock]) -> Labels:
    """The label of every block: E where it holds a marker."""
    return {p.id: "E" if _MARKER.search(p.text) else "X" for p in found}


def parse_phase_judge(spec: str, asking: EndpointSettings, temperature: float | None) -> PhaseJudge:
    """The judge that `builtin`, `URL#model` or `module:function` names; raises `BadInput`.

    A function takes the question, what stands before the block, and the block, and returns E or X
    (or None).
    """
    if spec == "builtin":
        return PhaseJudge(
            "builtin", "", lambda p, question: Said(_by_task(p, question)), None, None
        )
    if is_endpoint(spec):
        chat = Chat.of(spec, asking, temperature)
        text = read_phase_texts(asking.prompt_file)

        def ask(p: PhaseBlock, question: str) -> Said:
            reply = chat.ask(messages(text, p, question), SHAPE)
            label = WORDS[reply.value["phase"]]
            return Said(label, reply.value["reason"], reply.tokens_in, reply.tokens_out)

        return PhaseJudge(spec, lineage.digest_of([text, temperature]), ask, chat, text)
    if ":" not in spec:
        raise BadInput(
            f"found judge = {spec}, expected builtin, URL#model (an OpenAI-compatible endpoint) or "
            "module:function."
        )
    function = named.function(spec, "judge")

    def call(p: PhaseBlock, question: str) -> Said:
        label = function(question, p.before, p.text)
        if label is not None and str(label).lower() not in WORDS:
            raise BadInput(f"the judge {spec} gave {str(label)[:40]!r}, expected E, X or None.")
        return Said(None if label is None else WORDS[str(label).lower()])

    digest = "".join(named.digests(judge=spec).values())
    return PhaseJudge(spec, digest, call, None, None)


def messages(text: JudgeText, p: PhaseBlock, question: str) -> list[dict[str, str]]:
    """What a model is asked about a block."""
    asked = filled(text["user"], question=question, before=p.before[-BEFORE:], block=p.text)
    return conversation(text["system"], asked)


def _by_task(p: PhaseBlock, question: str) -> str | None:
    """What most of a block's characters do, by the built-in task; None for as many of either."""
    found = task.phases(task.Problem.parse(question), list(p.before + p.text))[len(p.before) :]
    explore, execute = found.count("explore"), found.count("execute")
    return None if explore == execute else "E" if explore > execute else "X"


def judged(
    work: Path,
    judge: PhaseJudge,
    found: Sequence[PhaseBlock],
    questions: Mapping[str, str],
    asking: EndpointSettings,
) -> Labels:
    """The judge's labels of these blocks; those that labels.jsonl doesn't hold are asked for."""
    file = work / LABELS
    known: dict[str, str | None] = {}
    for place, row in jsonl.rows(file):
        try:
            if row["annotator"] == judge.name and row["asked"] == judge.digest:
                known[row["id"]] = row["label"]
        except (KeyError, TypeError) as error:
            raise BadInput(f"{place} is damaged. Remove the line.") from error
    missing = [p for p in found if p.id not in known]

    def say_of(p: PhaseBlock) -> Said:
        try:
            return judge.say(p, questions.get(p.prompt_id, ""))
        except BadInput as error:
            where = f"prompt {p.prompt_id!r}, sample {p.sample} of {p.candidate}"
            raise BadInput(f"{where}: {error}") from error

    if judge.endpoint is None:
        replies = ((p, say_of(p)) for p in missing)
    else:
        if missing:
            say(estimate(judge, missing, questions, asking))
        replies = in_parallel(judge.endpoint, missing, say_of, asking.parallel)
    if missing:
        with bar("label blocks", len(missing)) as advance:
            for p, said in replies:
                row: dict[str, Any] = {"id": p.id, "annotator": judge.name, "asked": judge.digest}
                jsonl.append(file, {**row, **said._asdict()})
                known[p.id] = said.label
                advance()
    return {p.id: label for p in found if (label := known[p.id]) is not None}


def estimate(
    judge: PhaseJudge,
    found: Sequence[PhaseBlock],
    questions: Mapping[str, str],
    asking: EndpointSettings,
) -> str:
    """What asking takes, in words."""
    assert judge.endpoint is not None and judge.text is not None
    tokens_in = sum(
        tokens_of(
            "".join(m["content"] for m in messages(judge.text, p, questions.get(p.prompt_id, "")))
        )
        for p in found
    )
    tokens_out = REPLY_TOKENS * len(found)
    money = asking.money(tokens_in, tokens_out)
    return (
        f"label blocks: {len(found)} requests to {judge.endpoint.model} at {judge.endpoint.url}, "
        f"about {tokens_in:,} tokens in and {tokens_out:,} out"
        + ("" if money is None else f", about {money:.2f} at the prices given")
        + " (the endpoint's own thinking not counted)."
    )
