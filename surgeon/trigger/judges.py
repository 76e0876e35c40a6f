"""Who says where a trace fails: the built-in task's checker, a function, or a model at an endpoint.

A judge sees a question and the texts of a trace's whole steps, one level at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from surgeon import named
from surgeon.builtin.judge import Finding, judge
from surgeon.errors import BadInput
from surgeon.neureasoner.steps import LEVELS
from surgeon.trigger.endpoint import Chat, Shape, tokens_of
from surgeon.trigger.prompts import conversation, filled

OVER = 0.5
"""An easy question is over-thought when at least this share of the steps comes after the one that
settles it (a choice of ours)."""
TOKENS_PER_VERDICT = {"intra": 120, "inter": 120, "instance": 60}
"""Expected tokens of a reply, for estimates; a model that thinks first takes more."""


class Verdict(NamedTuple):
    """What a judge found at one level of one trace, and the tokens it took."""

    findings: list[Finding]
    tokens_in: int = 0
    tokens_out: int = 0


class Judge(Protocol):
    """Says where a trace fails at one level; may be asked from several threads."""

    endpoint: Chat | None

    def __call__(self, level: str, question: str, steps: Sequence[str]) -> Verdict: ...

    def expected(self, level: str, question: str, steps: Sequence[str]) -> tuple[int, int]:
        """About how many tokens a verdict takes, in and out."""
        ...


def parse_judge(spec: str, texts: Mapping[str, Any], **settings: Any) -> Judge:
    """The judge that `builtin`, `URL#model` or `module:function` names; raises `BadInput`."""
    if spec == "builtin":
        return FunctionJudge(judge, spec)
    if spec.startswith(("http://", "https://")):
        return EndpointJudge(Chat.parse(spec, **settings), texts["judge"])
    if ":" not in spec:
        raise BadInput(
            f"judge is {spec!r}, expected builtin, URL#model (an OpenAI-compatible endpoint) or "
            "module:function."
        )
    return FunctionJudge(named.function(spec, "judge"), spec)


class FunctionJudge:
    """A function of question and steps that returns findings, or tuples of their fields."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.endpoint: Chat | None = None
        self.function, self.name = function, name
        self.latest: tuple[tuple[str, tuple[str, ...]], list[Finding]] | None = None

    def __call__(self, level: str, question: str, steps: Sequence[str]) -> Verdict:
        key = (question, tuple(steps))
        # The levels of a trace are asked one after the other.
        if self.latest is None or self.latest[0] != key:
            self.latest = key, self._findings(self.function(question, list(steps)), len(steps))
        return Verdict([finding for finding in self.latest[1] if finding.level == level])

    def _findings(self, found: Any, n_steps: int) -> list[Finding]:
        findings = []
        for item in found if isinstance(found, list) else [found]:
            fits = isinstance(item, tuple) and 3 <= len(item) <= len(Finding._fields)
            finding = Finding(*item) if fits else None
            if (
                finding is None
                or finding.level not in LEVELS
                or type(finding.first) is not int
                or type(finding.last) is not int
                or not 0 <= finding.first <= finding.last < n_steps
            ):
                raise BadInput(
                    f"the judge {self.name} gave {str(item)[:60]!r} for {n_steps} steps, expected "
                    "a list of (level, first, last, reason) with step numbers from 0."
                )
            findings.append(finding)
        return findings

    def expected(self, level: str, question: str, steps: Sequence[str]) -> tuple[int, int]:
        return 0, 0


_STRETCH = {
    "type": "object",
    "properties": {
        "first": {"type": "integer"},
        "last": {"type": "integer"},
        "reason": {"type": "string"},
    },
}
SHAPES = {
    **{
        level: Shape(
            f"{level}_failures",
            {
                "type": "object",
                "properties": {"failures": {"type": "array", "items": _STRETCH}},
            },
        )
        for level in ("intra", "inter")
    },
    "instance": Shape(
        "effort",
        {
            "type": "object",
            "properties": {
                "difficulty": {"type": "string", "enum": ["easy", "medium", "hard"]},
                "settled": {"type": ["integer", "null"]},
                "reason": {"type": "string"},
            },
        },
    ),
}


class EndpointJudge:
    """A model behind a chat endpoint; one request per trace and level."""

    def __init__(self, endpoint: Chat, texts: Mapping[str, Mapping[str, str]]):
        self.endpoint: Chat | None = endpoint
        self.ask, self.texts = endpoint.ask, texts

    def messages(self, level: str, question: str, steps: Sequence[str]) -> list[dict[str, str]]:
        """What the endpoint is asked; steps are numbered from 1 there."""
        numbered = "\n\n".join(f"[{n}] {step.strip()}" for n, step in enumerate(steps, 1))
        text = self.texts[level]
        return conversation(text["system"], filled(text["user"], question=question, steps=numbered))

    def __call__(self, level: str, question: str, steps: Sequence[str]) -> Verdict:
        n = len(steps)
        reply = self.ask(
            self.messages(level, question, steps), SHAPES[level], lambda value: _complaint(value, n)
        )
        value = reply.value
        if level == "instance":
            findings = _effort(value, n)
        else:
            findings = [
                Finding(level, row["first"] - 1, row["last"] - 1, row["reason"])
                for row in value["failures"]
            ]
        return Verdict(findings, reply.tokens_in, reply.tokens_out)

    def expected(self, level: str, question: str, steps: Sequence[str]) -> tuple[int, int]:
        text = "".join(message["content"] for message in self.messages(level, question, steps))
        return tokens_of(text), TOKENS_PER_VERDICT[level]


def _complaint(value: dict[str, Any], n: int) -> str | None:
    """What is wrong with the step numbers of a reply."""
    for row in value.get("failures", []):
        if not 1 <= row["first"] <= row["last"] <= n:
            return f"first {row['first']}, last {row['last']} are no steps; there are 1 to {n}."
    if value.get("settled") is not None and not 1 <= value["settled"] <= n:
        return f"settled is {value['settled']}; the steps are 1 to {n}."
    return None


def _effort(value: dict[str, Any], n: int) -> list[Finding]:
    """An easy question, over-thought or not, or a hard one; nothing for those in between."""
    settled, reason = value["settled"], f"{value['difficulty']}: {value['reason']}"
    if value["difficulty"] == "hard":
        return [Finding("instance", 0, n - 1, reason, failing=False, contrast=True)]
    if value["difficulty"] == "medium":
        return []
    over = settled is not None and n - settled >= OVER * n
    return [Finding("instance", 0, n - 1, reason, failing=over)]
