"""Who writes how a failure is mended: the built-in task's writer, a function, a model at an
endpoint, or somebody before, in a file.

Another kind of writer is a function `(assignment, rng) -> parts or None` and a row in `WRITERS`;
from outside, the same function is named as `module:function` (examples/my_writer.py). `parts` is a
`Rewritten` or a tuple of its four texts, None where the failure can't be mended.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from surgeon import jsonl, named
from surgeon.answers import same
from surgeon.endpoint import is_endpoint
from surgeon.errors import BadInput
from surgeon.judges.chat import Chat, Shape, tokens_of
from surgeon.judges.docket import Source
from surgeon.judges.finding import Assignment, Draft, Rewritten
from surgeon.judges.makeup import words_of
from surgeon.judges.wording import Texts, WriterTexts, conversation, filled
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import STEPWISE, TAGS, WatchSettings

WRITERS = {"builtin": "surgeon.builtin.repairs:write"}
"""Writers of this package by name, each as `module:function`. They raise `BadInput` for a question
that they don't know, also when there are no steps."""
DIAGNOSIS = {
    "intra": {"error_span": "error span", "analysis": "analysis"},
    "inter": {
        "past_attempts": "past attempts summary",
        "analysis": "problem-grounded analysis",
        "pivot": "pivot",
    },
}
"""The parts of an endpoint's diagnosis by level, and the words before each (App. G)."""
TOKENS_PER_EXAMPLE = 800
"""Expected tokens of a reply, for estimates."""

Writer = Source[Assignment, Draft]


def parse_writer(
    spec: str,
    texts: Texts,
    extract: Callable[[str], str | None],
    *,
    may_make: bool,
    asking: EndpointSettings,
    temperature: float | None = None,
) -> Writer:
    """The writer that a row of `WRITERS`, `URL#model`, `module:function` or a file names.

    With `may_make` a function that can't mend a failure may make one up before it. `asking` and
    `temperature` are for an endpoint, and `extract` reads the final answer of its reply. Raises
    `BadInput`.
    """
    if is_endpoint(spec):
        return EndpointWriter(Chat.of(spec, asking, temperature), texts["write"], extract)
    if is_file(spec):
        return FileWriter(read_repairs(spec), extract)
    if spec not in WRITERS and ":" not in spec:
        raise BadInput(
            f"found source = {spec}, expected {', '.join(WRITERS)}, URL#model (an OpenAI-compatible"
            " endpoint, such as http://localhost:8000/v1#Qwen3-32B), module:function, or a .jsonl "
            "file of repairs."
        )
    function = named.function(WRITERS.get(spec, spec), "writer")
    return FunctionWriter(function, spec, may_make=may_make)


class FunctionWriter:
    """A function of an assignment and a source of chance, which returns parts or None."""

    def __init__(self, function: Callable[..., Any], name: str, *, may_make: bool):
        self.endpoint: Chat | None = None
        self.function, self.name, self.may_make = function, name, may_make

    def check(self, questions: Iterable[str]) -> None:
        """Ask a writer of this package whether it knows the questions; a foreign one isn't
        asked."""
        for question in questions if self.name in WRITERS else ():
            nothing = Assignment("", "intra", question, (), 0, 0, True, "", False, None, 0)
            try:
                self.function(nothing, Random(0))
            except BadInput as error:
                raise BadInput(
                    f"source = {self.name}: {error} For other questions name a model "
                    "(source=URL#MODEL), a function of yours (source=MODULE:FUNCTION) or a file of "
                    "repairs (source=FILE.jsonl)."
                ) from error

    def __call__(self, assignment: Assignment) -> Draft:
        rng = Random(f"{assignment.seed} {assignment.id}")
        parts = self._parts(assignment, rng)
        if parts is None and self.may_make and not assignment.made and assignment.first:
            before = assignment.first - 1
            assignment = assignment._replace(made=True, first=before, last=before)
            parts = self._parts(assignment, rng)
        reason = "" if parts else "something else is wrong before the failing step"
        return Draft(parts, reason, made=assignment.made)

    def _parts(self, assignment: Assignment, rng: Random) -> Rewritten | None:
        value = self.function(assignment, rng)
        if value is None:
            return None
        if (
            not isinstance(value, tuple)
            or len(value) != len(Rewritten._fields)
            or not all(isinstance(text, str) for text in value)
        ):
            raise BadInput(
                f"the writer {self.name} gave {str(value)[:60]!r}, expected None or the texts "
                f"({', '.join(Rewritten._fields)})."
            )
        return Rewritten(*value)

    def expected(self, assignment: Assignment) -> tuple[int, int]:
        """No tokens."""
        return 0, 0


class EndpointWriter:
    """A model behind a chat endpoint; one request per example."""

    def __init__(self, endpoint: Chat, texts: WriterTexts, extract: Callable[[str], str | None]):
        self.endpoint: Chat | None = endpoint
        self.ask, self.texts, self.extract = endpoint.ask, texts, extract

    def check(self, questions: Iterable[str]) -> None:
        """It can be asked about any question."""

    def messages(self, assignment: Assignment) -> list[dict[str, str]]:
        """What the endpoint is asked."""
        steps, first = assignment.steps, assignment.first
        part = "".join(steps[first : assignment.last + 1]).strip()
        known = assignment.answer
        hint = "" if known is None else f"The final answer is known to be {known}.\n"
        text = self.texts[assignment.level]["made" if assignment.made else "own"]
        return conversation(
            self.texts["system"],
            filled(
                text, question=assignment.question, wrong=part, next=part, hint=hint,
                prefix="".join(steps[:first]).strip() or "(nothing yet)",
                control=words_of(assignment.control),
                rest="".join(steps[assignment.last + 1 :]).strip() or "(nothing)",
            ),
        )  # fmt: skip

    def __call__(self, assignment: Assignment) -> Draft:
        parts_of = DIAGNOSIS[assignment.level]
        names = ("wrong",) * assignment.made + (*parts_of, "continuation", "answer")
        shape = Shape(
            "example",
            {"type": "object", "properties": {name: {"type": "string"} for name in names}},
        )
        reply = self.ask(
            self.messages(assignment), shape,
            lambda value: _complaint(value, names) or _too_short(value, assignment),
        )  # fmt: skip
        value = {name: text.strip() for name, text in reply.value.items()}
        value["diagnosis"] = "\n".join(
            f"- {words}: {value[name]}" for name, words in parts_of.items()
        )
        parts, reason = _finished(assignment, value, self.extract)
        return Draft(parts, reason, reply.tokens_in, reply.tokens_out, assignment.made)

    def expected(self, assignment: Assignment) -> tuple[int, int]:
        text = "".join(message["content"] for message in self.messages(assignment))
        return tokens_of(text), TOKENS_PER_EXAMPLE


# --- repairs in a file ----------------------------------------------------------------------------


class Repair(NamedTuple):
    """How somebody mended a failure of a trace: a row of a file."""

    prompt_id: str
    level: str
    diagnosis: str
    continuation: str
    answer: str
    """What is said after the thinking, with the final answer."""
    sample: int = 0
    first: int | None = None
    """First failing step, from 0; None: that of the trace's first failing span of the level."""
    last: int | None = None
    """Last failing step, itself included; None: `first`, or the end of that span."""
    wrong: str | None = None
    """A failing step made up in the place of `first` to `last`; None: those steps themselves."""

    @property
    def name(self) -> str:
        """That of its example."""
        return f"{self.prompt_id}/{self.sample}/{self.level}"


def is_file(spec: str) -> bool:
    """Whether a source is a file of repairs."""
    return spec.endswith(".jsonl") or Path(spec).is_file()


def read_repairs(path: str) -> list[Repair]:
    """The repairs of a JSONL file; raises `BadInput` naming the line that is none, or a second one
    for the same trace and level."""
    if not Path(path).is_file():
        raise BadInput(f"source {path} does not exist, expected a file of repairs.")
    repairs: dict[str, Repair] = {}
    for place, row in jsonl.rows(path):
        repair = _repair(row, place)
        if repair.name in repairs:
            raise BadInput(f"{place}: a second repair of {repair.name}, expected one.")
        repairs[repair.name] = repair
    if not repairs:
        raise BadInput(f"source {path} holds no repairs, expected at least one.")
    return list(repairs.values())


def _repair(row: Any, place: str) -> Repair:
    if not isinstance(row, dict):
        raise BadInput(f"{place}: found {str(row)[:40]!r}, expected a repair (an object).")
    values = {**Repair._field_defaults, **row}
    for name in Repair._fields:
        value = values.get(name)
        if name in ("sample", "first", "last"):
            optional = name != "sample" and value is None
            good, expected = optional or (type(value) is int and value >= 0), "a number from 0"
        elif name == "level":
            good, expected = value in STEPWISE, " or ".join(STEPWISE)
        elif name == "wrong":
            good, expected = value is None or isinstance(value, str), "text"
        else:
            good, expected = isinstance(value, str) and bool(value.strip()), "text"
        if not good:
            found = repr(value)[:40] if name in values else "nothing"
            raise BadInput(f"{place}: found {found} as {name} of a repair, expected {expected}.")
    repair = Repair(*(values[name] for name in Repair._fields))
    texts = {name: values[name] for name in ("wrong", "diagnosis", "continuation", "answer")}
    complaint = _complaint({n: t for n, t in texts.items() if t is not None}, tuple(
        name for name, text in texts.items() if text is not None
    ))  # fmt: skip
    if complaint:
        raise BadInput(f"{place}: {complaint}")
    return repair


class FileWriter:
    """Repairs that were written before, by the name of their example."""

    def __init__(self, repairs: Sequence[Repair], extract: Callable[[str], str | None]):
        self.endpoint: Chat | None = None
        self.repairs, self.extract = repairs, extract
        self.by_name = {repair.name: repair for repair in repairs}

    def check(self, questions: Iterable[str]) -> None:
        """It holds what it holds."""

    def __call__(self, assignment: Assignment) -> Draft:
        repair = self.by_name[assignment.id]
        value = {
            name: text.strip()
            for name in ("wrong", "diagnosis", "continuation", "answer")
            if (text := getattr(repair, name)) is not None
        }
        parts, reason = _finished(assignment, value, self.extract)
        return Draft(parts, reason, made=assignment.made)

    def expected(self, assignment: Assignment) -> tuple[int, int]:
        """No tokens."""
        return 0, 0


# --- texts as parts -------------------------------------------------------------------------------


def _finished(
    assignment: Assignment, value: Mapping[str, str], extract: Callable[[str], str | None]
) -> tuple[Rewritten | None, str]:
    """The parts, or why there are none: a final answer other than the known one."""
    answer, known = extract(value["answer"]), assignment.answer
    if known is not None and (answer is None or not same(answer, known)):
        return None, "the answer isn't the known one"
    return _parts(assignment, value), ""


def _parts(assignment: Assignment, value: Mapping[str, str]) -> Rewritten:
    """An endpoint's reply, or a repair's texts, as parts of a response."""
    own = "".join(assignment.steps[assignment.first : assignment.last + 1])
    # A first step may begin with the line break after the token that opens the thinking.
    lead = own[: len(own) - len(own.lstrip())]
    wrong = lead + (value["wrong"] if assignment.made else own.strip())
    close = f"\n{assignment.tags[1]}\n\n" if assignment.thinking else "\n\n"
    return Rewritten(
        assignment.before,
        f"{wrong}\n\n",
        value["diagnosis"],
        f"\n\n{value['continuation']}{close}{value['answer']}",
    )


def _too_short(value: Mapping[str, str], assignment: Assignment) -> str | None:
    """What is wrong with the length of a loop that was made up."""
    wanted = assignment.control.get("loop_length")
    if wanted is None or not assignment.made:
        return None
    found = len([part for part in value["wrong"].split("\n\n") if part.strip()])
    if found == wanted:
        return None
    return f"wrong has {found} steps, separated by blank lines; expected {wanted}."


_TAGS = [tag for tags in TAGS for tag in tags]


def _complaint(value: Mapping[str, str], names: Sequence[str]) -> str | None:
    """What is missing in a reply."""
    for name in names:
        if not value[name].strip():
            return f"{name} is empty."
        if any(word in value[name] for word in (*_TAGS, *WatchSettings().triggers.values())):
            return f"{name} holds a control token such as {_TAGS[1]}."
    return None
