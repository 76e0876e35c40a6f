"""Many questions to one source: what was answered already isn't asked again, what asking takes is
said first, and no reply is lost.

A question to which no usable reply came is left out and counted. Too many of them end the run; the
next one asks them again.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from surgeon import jsonl
from surgeon.endpoint import in_parallel
from surgeon.errors import BadInput
from surgeon.judges.chat import Chat, NoReply
from surgeon.judges.finding import Assignment, Draft, Finding, JudgeVerdict, Question, Rewritten
from surgeon.progress import bar, say
from surgeon.settings.asking import EndpointSettings

Q = TypeVar("Q", Question, Assignment)
R = TypeVar("R", JudgeVerdict, Draft)
Q_in = TypeVar("Q_in", contravariant=True)
R_out = TypeVar("R_out", covariant=True)


FIRST = 3
"""When so many replies came and none can be used, the rest isn't asked."""


class Source(Protocol[Q_in, R_out]):
    """Who is asked, a judge or a writer; may be asked from several threads."""

    endpoint: Chat | None
    """Where requests go; None: nowhere, the answer is computed here."""

    def check(self, questions: Iterable[str]) -> None:
        """Raise `BadInput` for a prompt that this source can't be asked about."""
        ...

    def __call__(self, question: Q_in, /) -> R_out: ...

    def expected(self, question: Q_in, /) -> tuple[int, int]:
        """About how many tokens a reply takes, in and out."""
        ...


class ReplyFile(NamedTuple, Generic[Q, R]):
    """How the questions and replies of a kind are kept and named."""

    name: str
    row: Callable[[Q, R], dict[str, object]]
    """A line of the file."""
    read: Callable[[dict[str, Any]], tuple[Any, R]]
    """The question's key and the reply that a line holds."""
    which: Callable[[Q], str]
    """Which question it is, for messages."""
    known: Callable[[Q], R | None]
    """The reply that needs no asking."""
    none: Callable[[NoReply], R]
    """What stands for a reply where none can be used."""


def _verdict_row(question: Question, verdict: JudgeVerdict) -> dict[str, object]:
    names = dict(zip(("prompt_id", "sample", "level"), question.key, strict=True))
    findings = [finding._asdict() for finding in verdict.findings]
    return {**names, **verdict._asdict(), "findings": findings}


def _read_verdict(row: dict[str, Any]) -> tuple[tuple[str, int, str], JudgeVerdict]:
    findings = [
        Finding(**{**finding, "attempts": tuple(finding.get("attempts", ()))})
        for finding in row["findings"]
    ]
    verdict = JudgeVerdict(findings, row["tokens_in"], row["tokens_out"], row.get("unusable", ""))
    return (row["prompt_id"], row["sample"], row["level"]), verdict


def _draft_row(assignment: Assignment, draft: Draft) -> dict[str, object]:
    parts = None if draft.parts is None else draft.parts._asdict()
    return {"id": assignment.id, **draft._asdict(), "parts": parts}


def _read_draft(row: dict[str, Any]) -> tuple[str, Draft]:
    parts = None if row["parts"] is None else Rewritten(**row["parts"])
    rest = {name: row[name] for name in Draft._fields if name not in ("parts", "unusable")}
    rest["unusable"] = row.get("unusable", False)
    return row["id"], Draft(parts, **rest)


VERDICTS = ReplyFile(
    "verdicts.jsonl", _verdict_row, _read_verdict,
    lambda q: f"prompt {q.prompt_id!r}, sample {q.sample}, {q.level}",
    lambda q: None if q.steps else JudgeVerdict([]),
    lambda error: JudgeVerdict([], error.tokens_in, error.tokens_out, str(error)),
)  # fmt: skip
DRAFTS = ReplyFile(
    "written.jsonl", _draft_row, _read_draft, lambda a: f"example {a.id!r}", lambda a: None,
    lambda error: Draft(None, "no usable reply", error.tokens_in, error.tokens_out, unusable=True),
)  # fmt: skip


class Docket(Generic[Q, R]):
    """The replies of a run, on disk as they come."""

    def __init__(
        self,
        work: Path,
        form: ReplyFile[Q, R],
        source: Source[Q, R],
        asking: EndpointSettings,
        most_unusable: float,
    ):
        """`most_unusable` is the share of the questions that may stay without a usable reply."""
        self.file, self.form, self.source, self.asking = work / form.name, form, source, asking
        self.most_unusable = most_unusable
        self.replies = read_replies(self.file, form)
        """By the key of the question."""

    def missing(self, questions: Sequence[Q]) -> list[Q]:
        """The questions without a reply."""
        return [question for question in questions if question.key not in self.replies]

    def ask_all(self, questions: Sequence[Q], what: str) -> None:
        """Ask every question that has no reply yet.

        One that gets no usable reply is left out. Raises `BadInput` as the source does, and where
        more than the share `most_unusable` of these questions (and more than one) get none.
        """
        for question in self.missing(questions):
            reply = self.form.known(question)
            if reply is not None:
                self.note(question, reply)
        missing, endpoint = self.missing(questions), self.source.endpoint
        if not missing:
            return
        if endpoint is None:
            replies = ((question, self._ask(question)) for question in missing)
        else:
            say(self.estimate(missing, what))
            replies = in_parallel(endpoint, missing, self._ask, self.asking.parallel)
        lost: list[str] = []
        with bar(what, len(missing)) as advance:
            for done, (question, reply) in enumerate(replies, 1):
                if isinstance(reply, NoReply):
                    lost.append(f"{self.form.which(question)}: {reply}")
                    self._require_usable(lost, done, len(missing))
                    reply = self.form.none(reply)
                self.note(question, reply)
                advance(note=f"{len(lost)} left out" if lost else "")

    def _require_usable(self, lost: Sequence[str], done: int, asked: int) -> None:
        """Raise `BadInput` when too many questions got no usable reply."""
        share = self.most_unusable
        none = len(lost) == done and done in (FIRST, asked)
        if not none and len(lost) <= (max(1, share * asked) if share else 0):
            return
        if len(lost) == 1:
            raise BadInput(lost[-1])
        raise BadInput(
            f"{len(lost)} of {done} questions got no usable reply, more than most_unusable ({share}"
            f" of {asked}) lets be left out; the last: {lost[-1]}"
        )

    def note(self, question: Q, reply: R) -> None:
        """Keep a reply."""
        jsonl.append(self.file, self.form.row(question, reply))
        self.replies[question.key] = reply

    def _ask(self, question: Q) -> R | NoReply:
        try:
            return self.source(question)
        except NoReply as error:
            return error
        except BadInput as error:
            raise BadInput(f"{self.form.which(question)}: {error}") from error

    def estimate(self, questions: Sequence[Q], what: str) -> str:
        """What asking will take, in words."""
        endpoint = self.source.endpoint
        assert endpoint is not None
        counts = [self.source.expected(question) for question in questions]
        tokens_in, tokens_out = (sum(column) for column in zip(*counts, strict=True))
        money = self.asking.money(tokens_in, tokens_out)
        return (
            f"{what}: {len(counts)} requests to {endpoint.model} at {endpoint.url}, about "
            f"{tokens_in:,} tokens in and {tokens_out:,} out"
            + ("" if money is None else f", about {money:.2f} at the prices given")
            + " (the endpoint's own thinking not counted)."
        )

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that the endpoint has counted so far."""
        replies = self.replies.values()
        return sum(r.tokens_in for r in replies), sum(r.tokens_out for r in replies)


def read_replies(file: Path, form: ReplyFile[Q, R]) -> dict[Any, R]:
    """The usable replies on disk by their questions' keys; raises `BadInput` naming a damaged
    line."""
    replies = {}
    for place, row in jsonl.rows(file):
        try:
            key, reply = form.read(row)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{place} is damaged. Remove the line.") from error
        if not reply.unusable:
            replies[key] = reply
    return replies
