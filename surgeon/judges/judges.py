"""Who says where a trace fails: the built-in task's checker, a function, or a model at an endpoint.

A judge sees a question and the texts of a trace's whole steps, one level at a time. Another kind of
judge is a function `(question, steps) -> findings` and a row in `JUDGES`; from outside, the same
function is named as `module:function` (examples/my_judge.py).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from surgeon import named
from surgeon.endpoint import is_endpoint
from surgeon.errors import BadInput
from surgeon.judges.chat import Chat, Shape, tokens_of
from surgeon.judges.docket import Source
from surgeon.judges.finding import Finding, JudgeVerdict, Question
from surgeon.judges.wording import JudgeText, Texts, conversation, filled
from surgeon.settings.asking import EndpointSettings
from surgeon.settings.neureasoner import LEVELS

JUDGES = {"builtin": "surgeon.builtin.judge:judge"}
"""Judges of this package by name, each as `module:function`. They raise `BadInput` for a question
that they don't know, also when there are no steps."""
OVER = 0.5
"""An easy question is over-thought when at least this share of the steps comes after the one that
settles it (a choice of ours)."""
TOKENS_PER_VERDICT = {"intra": 120, "inter": 120, "instance": 60}
"""Expected tokens of a reply, for estimates; a model that thinks first takes more."""

Judge = Source[Question, JudgeVerdict]


def parse_judge(
    spec: str,
    texts: Texts,
    asking: EndpointSettings,
    temperature: float | None = None,
    inter_steps: int = 3,
) -> Judge:
    """The judge that a row of `JUDGES`, `URL#model` or `module:function` names.

    `asking`, `temperature` and `inter_steps`, the fewest steps of a stretch of stagnation, are for
    an endpoint. Raises `BadInput`.
    """
    if is_endpoint(spec):
        return EndpointJudge(Chat.of(spec, asking, temperature), texts["judge"], inter_steps)
    if spec not in JUDGES and ":" not in spec:
        raise BadInput(
            f"found judge = {spec}, expected {', '.join(JUDGES)}, URL#model (an OpenAI-compatible "
            "endpoint) or module:function."
        )
    return FunctionJudge(named.function(JUDGES.get(spec, spec), "judge"), spec)


class FunctionJudge:
    """A function of question and steps that returns findings, or tuples of their fields."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.endpoint: Chat | None = None
        self.function, self.name = function, name
        self.latest: tuple[tuple[str, tuple[str, ...]], list[Finding]] | None = None

    def check(self, questions: Iterable[str]) -> None:
        """Ask a judge of this package whether it knows the questions; a foreign one isn't asked."""
        for question in questions if self.name in JUDGES else ():
            try:
                self.function(question, [])
            except BadInput as error:
                raise BadInput(
                    f"judge = {self.name}: {error} For other questions name a model "
                    "(judge=URL#MODEL) or a function of yours (judge=MODULE:FUNCTION), or give "
                    "labels made by hand (spans=FILE with traces=FILE)."
                ) from error

    def __call__(self, question: Question) -> JudgeVerdict:
        key = (question.text, tuple(question.steps))
        # The levels of a trace are asked one after the other.
        if self.latest is None or self.latest[0] != key:
            value = self.function(question.text, list(question.steps))
            self.latest = key, self._findings(value, len(question.steps))
        return JudgeVerdict([f for f in self.latest[1] if f.level == question.level])

    def _findings(self, value: Any, n_steps: int) -> list[Finding]:
        findings = []
        for item in value if isinstance(value, list) else [value]:
            fits = isinstance(item, tuple) and 3 <= len(item) <= len(Finding._fields)
            finding = Finding(*item) if fits else None
            if (
                finding is None
                or finding.level not in LEVELS
                or type(finding.first) is not int
                or type(finding.last) is not int
                or not 0 <= finding.first <= finding.last < n_steps
                or not orderly(finding.attempts, finding.first, finding.last)
            ):
                raise BadInput(
                    f"the judge {self.name} gave {str(item)[:60]!r} for {n_steps} steps, expected "
                    "a list of (level, first, last, reason) with step numbers from 0."
                )
            findings.append(finding._replace(attempts=tuple(finding.attempts)))
        return findings

    def expected(self, question: Question) -> tuple[int, int]:
        """No tokens."""
        return 0, 0


# --- a model at an endpoint -----------------------------------------------------------------------

_STRETCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "first": {"type": "integer"},
        "last": {"type": "integer"},
        "reason": {"type": "string"},
    },
}
_FAILURES = {
    "type": "object",
    "properties": {"failures": {"type": "array", "items": _STRETCH}},
}
_STAGNATION = {
    **_STRETCH,
    "properties": {
        **_STRETCH["properties"],
        "attempts": {"type": "array", "items": {"type": "integer"}},
    },
}
_STAGNATIONS = {
    "type": "object",
    "properties": {"failures": {"type": "array", "items": _STAGNATION}},
}
_EFFORT = {
    "type": "object",
    "properties": {
        "difficulty": {"type": "string", "enum": ["easy", "medium", "hard"]},
        "settled": {"type": ["integer", "null"]},
        "reason": {"type": "string"},
    },
}
SHAPES = {
    "intra": Shape("intra_failures", _FAILURES),
    "inter": Shape("inter_failures", _STAGNATIONS),
    "instance": Shape("effort", _EFFORT),
}


class EndpointJudge:
    """A model behind a chat endpoint; one request per trace and level."""

    def __init__(self, endpoint: Chat, texts: Mapping[str, JudgeText], inter_steps: int):
        """`inter_steps` is the fewest steps that are a stretch of stagnation."""
        self.endpoint: Chat | None = endpoint
        self.ask, self.texts, self.inter_steps = endpoint.ask, texts, inter_steps

    def check(self, questions: Iterable[str]) -> None:
        """It can be asked about any question."""

    def messages(self, question: Question) -> list[dict[str, str]]:
        """What the endpoint is asked; steps are numbered from 1 there."""
        steps = "\n\n".join(f"[{n}] {step.strip()}" for n, step in enumerate(question.steps, 1))
        text = self.texts[question.level]
        return conversation(
            text["system"],
            filled(text["user"], question=question.text, steps=steps, fewest=self.inter_steps),
        )

    def __call__(self, question: Question) -> JudgeVerdict:
        level, n = question.level, len(question.steps)
        reply = self.ask(self.messages(question), SHAPES[level], lambda value: _complaint(value, n))
        value = reply.value
        if level == "instance":
            findings = _effort(value, n)
        else:
            findings = [
                Finding(
                    level,
                    row["first"] - 1,
                    row["last"] - 1,
                    row["reason"],
                    attempts=tuple(n - 1 for n in row.get("attempts", ())),
                )
                for row in value["failures"]
            ]
        return JudgeVerdict(findings, reply.tokens_in, reply.tokens_out)

    def expected(self, question: Question) -> tuple[int, int]:
        text = "".join(message["content"] for message in self.messages(question))
        return tokens_of(text), TOKENS_PER_VERDICT[question.level]


def _complaint(value: Mapping[str, Any], n: int) -> str | None:
    """What is wrong with the step numbers of a reply."""
    for row in value.get("failures", []):
        if not 1 <= row["first"] <= row["last"] <= n:
            return f"first {row['first']}, last {row['last']} are no steps; there are 1 to {n}."
        if not orderly(row.get("attempts", ()), row["first"], row["last"]):
            return (
                f"attempts {row['attempts']} are not ascending steps of {row['first']} to "
                f"{row['last']}."
            )
    if value.get("settled") is not None and not 1 <= value["settled"] <= n:
        return f"settled is {value['settled']}; the steps are 1 to {n}."
    return None


def orderly(attempts: object, first: int, last: int) -> bool:
    """Whether these are ascending numbers from `first` to `last`."""
    if not isinstance(attempts, list | tuple) or not all(type(n) is int for n in attempts):
        return False
    return list(attempts) == sorted(set(attempts)) and all(first <= n <= last for n in attempts)


def _effort(value: Mapping[str, Any], n: int) -> list[Finding]:
    """An easy question, over-thought or not, or a hard one; nothing for those in between."""
    settled, reason = value["settled"], f"{value['difficulty']}: {value['reason']}"
    if value["difficulty"] == "hard":
        return [Finding("instance", 0, n - 1, reason, failing=False, contrast=True)]
    if value["difficulty"] == "medium":
        return []
    over = settled is not None and n - settled >= OVER * n
    return [Finding("instance", 0, n - 1, reason, failing=over)]
