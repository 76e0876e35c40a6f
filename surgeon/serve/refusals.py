"""Requests that are refused, in OpenAI's words."""

from typing import TypedDict

INVALID = "invalid_request_error"


class Error(TypedDict):
    """An error as OpenAI writes it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(Exception):
    """A request that gets an error for an answer: status, text, and what clients tell apart."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, message
        self.kind, self.param, self.code = kind, param, code

    @property
    def body(self) -> dict[str, Error]:
        """What the client gets."""
        # Text that is quoted may hold what is no Unicode, and couldn't be sent.
        text = self.message.encode(errors="backslashreplace").decode()
        param = self.param and self.param.encode(errors="backslashreplace").decode()
        return {"error": Error(message=text, type=self.kind, param=param, code=self.code)}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def encodable(text: str, param: str) -> str:
    """The same text; raises `Refusal` where it is no valid Unicode, which JSON can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(400, f"{param} is no valid Unicode ({error.reason}).", param=param) from error
    return text


def overloaded(waiting: int) -> Refusal:
    """Too many answers wait already."""
    return Refusal(
        429,
        f"The server is busy: as many answers wait as may ({waiting}). Try again soon.",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
    )


def closing() -> Refusal:
    """The server is being stopped."""
    return Refusal(503, "The server is shutting down.", kind="server_error", code="shutting_down")


def dead(reason: str) -> Refusal:
    """The model can't be run any more."""
    return Refusal(
        503, f"The engine is dead: {reason}. Start the server again.", kind="server_error",
        code="engine_dead",
    )  # fmt: skip


def failed(message: str) -> Refusal:
    """The server's fault."""
    return Refusal(500, message, kind="server_error", code="internal_error")
