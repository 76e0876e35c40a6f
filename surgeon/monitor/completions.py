"""Letting an engine behind a completions endpoint go on from a prompt given as token ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.endpoint import Endpoint, Unusable
from surgeon.errors import BadInput

if TYPE_CHECKING:
    from openai import OpenAI

EXTRAS = {"include_stop_str_in_output": True, "return_token_ids": True}
"""What vLLM and SGLang can say beyond the standard."""


class Continuation(NamedTuple):
    """What the engine wrote, and why it stopped."""

    text: str
    token_ids: list[int] | None
    """As the engine had them; None where it doesn't say."""
    finish_reason: str
    """`stop` (the stop string or the end of the answer) or `length`."""
    stopped_by: str | int | None
    """The stop string, or the id of a stop token, or None for the model's own end."""
    says: bool
    """Whether the engine tells by what it was stopped."""


@dataclass
class Completions(Endpoint):
    """A model behind a completions endpoint; safe to ask from several threads."""

    extras: bool = True
    """Whether `EXTRAS` are asked for; off once the server refuses them."""

    def require_reachable(self) -> None:
        """Raise `BadInput` when nothing answers at the URL, it refuses the key, or it says that it
        has another model."""
        names = self.models()
        if names and self.model not in names:
            raise BadInput(
                f"{self.url} has no model {self.model!r}; expected one of those it has: "
                f"{', '.join(names[:8])}."
            )

    def complete(
        self, ids: list[int], *, stop: str | None, top_k: int = 0, **settings: Any
    ) -> Continuation:
        """Go on from these tokens, to `stop` if it is given; raises `BadInput` when the endpoint
        stays out of reach or refuses."""
        body: dict[str, Any] = {"model": self.model, "prompt": ids, **settings}
        if stop is not None:
            body["stop"] = [stop]
        beyond = {"top_k": top_k} if top_k else {}

        def send(client: "OpenAI") -> Any:
            from openai import BadRequestError, UnprocessableEntityError

            ask, extras = client.completions.with_raw_response.create, self.extras
            try:
                return ask(**body, extra_body=beyond | EXTRAS if extras else beyond)
            except (BadRequestError, UnprocessableEntityError):
                if not extras:
                    raise
            self.extras = False
            return ask(**body, extra_body=beyond)

        return self.exchange(send, _continuation)


def _continuation(reply: Any) -> Continuation:
    """What a completion says; raises `Unusable` where the engine broke off."""
    choice = reply["choices"][0]
    text, finish, ids = str(choice["text"]), choice["finish_reason"], choice.get("token_ids")
    if finish not in ("stop", "length"):
        raise Unusable(f"broke off (finish_reason {finish!r}).")
    if not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        ids = None
    # As vLLM and SGLang call it.
    names = [name for name in ("stop_reason", "matched_stop") if name in choice]
    by = choice[names[0]] if names else None
    return Continuation(text, ids, finish, by if isinstance(by, str | int) else None, bool(names))
