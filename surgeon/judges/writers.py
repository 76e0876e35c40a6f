"""Who writes how a failure is mended: the built-in task's writer, a function, a model at an
endpoint.

Another kind of writer is a function `(assignment, rng) -> parts or None` and a row in `WRITERS`;
from outside, the same function is named as `module:function` (examples/my_writer.py). `parts` is a
`Rewritten` or a tuple of its four texts, None where the failure can't be mended.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from surgeon import named
from surgeon.answers import same
from surgeon.endpoint import is_endpoint
from surgeon.errors import BadInput
from surgeon.judges.chat import Chat, Shape, tokens_of
from surgeon.judges.docket import Source
from surgeon.judges.finding import Assignment, Draft, Rewritten
from surgeon.judges.wording import Texts, WriterTexts, conversation, filled
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import THINKING, WatchSettings

WRITERS = {"builtin": "surgeon.builtin.repairs:write"}
"""Writers of this package by name, each as `module:function`. They raise `BadInput` for a question
that they don't know, also when there are no steps."""
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
    """The writer that a row of `WRITERS`, `URL#model` or `module:function` names.

    With `may_make` a function that can't mend a failure may make one up before it. `asking` and
    `temperature` are for an endpoint, and `extract` reads the final answer of its reply. Raises
    `BadInput`.
    """
    if is_endpoint(spec):
        return EndpointWriter(Chat.of(spec, asking, temperature), texts["write"], extract)
    if spec not in WRITERS and ":" not in spec:
        raise BadInput(
            f"found source = {spec}, expected {', '.join(WRITERS)}, URL#model (an OpenAI-compatible"
            " endpoint, such as http://localhost:8000/v1#Qwen3-32B) or module:function."
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
            self.function(nothing, Random(0))

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
            ),
        )  # fmt: skip

    def __call__(self, assignment: Assignment) -> Draft:
        names = ("wrong",) * assignment.made + ("diagnosis", "continuation", "answer")
        shape = Shape(
            "example",
            {"type": "object", "properties": {name: {"type": "string"} for name in names}},
        )
        reply = self.ask(self.messages(assignment), shape, lambda value: _complaint(value, names))
        value = {name: text.strip() for name, text in reply.value.items()}
        tokens = (reply.tokens_in, reply.tokens_out)
        answer, known = self.extract(value["answer"]), assignment.answer
        if known is not None and (answer is None or not same(answer, known)):
            return Draft(None, "the answer isn't the known one", *tokens, assignment.made)
        return Draft(_parts(assignment, value), "", *tokens, assignment.made)

    def expected(self, assignment: Assignment) -> tuple[int, int]:
        text = "".join(message["content"] for message in self.messages(assignment))
        return tokens_of(text), TOKENS_PER_EXAMPLE


def _parts(assignment: Assignment, value: Mapping[str, str]) -> Rewritten:
    """An endpoint's reply as parts of a response."""
    own = "".join(assignment.steps[assignment.first : assignment.last + 1])
    # A first step may begin with the line break after the token that opens the thinking.
    lead = own[: len(own) - len(own.lstrip())]
    wrong = lead + (value["wrong"] if assignment.made else own.strip())
    close = f"\n{THINKING[1]}\n\n" if assignment.thinking else "\n\n"
    return Rewritten(
        assignment.before,
        f"{wrong}\n\n",
        value["diagnosis"],
        f"\n\n{value['continuation']}{close}{value['answer']}",
    )


def _complaint(value: Mapping[str, str], names: Sequence[str]) -> str | None:
    """What is missing in a reply."""
    for name in names:
        if not value[name].strip():
            return f"{name} is empty."
        if any(word in value[name] for word in (*THINKING, *WatchSettings().triggers.values())):
            return f"{name} holds a control token such as {THINKING[1]}."
    return None
