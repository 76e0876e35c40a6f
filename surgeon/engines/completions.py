"""Letting a server go on from token ids, or answer messages, and reading what it says of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.endpoint import Endpoint, Unusable
from surgeon.errors import BadInput

if TYPE_CHECKING:
    pass

IDS: Mapping[str, Any] = {"include_stop_str_in_output": True, "return_token_ids": True}
"""What vLLM, SGLang and `surgeon serve` can say beyond the standard."""
PLAIN: Mapping[str, Any] = {"skip_special_tokens": False, "repetition_penalty": 1.0, "min_p": 0.0}
"""What keeps a server from its own defaults: special tokens are text, and nothing is penalised."""
FORMS = (IDS | PLAIN, IDS, {})
"""What is asked for beyond the standard: less, each time that a server refuses it."""


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
    prompt_ids: list[int] | None = None
    """The prompt as the engine read it; None where it doesn't say."""
    tokens_in: int = 0
    tokens_out: int = 0
    """As the server counts them; 0 where it doesn't say."""


@dataclass
class Completions(Endpoint):
    """A model behind a completions endpoint; safe to ask from several threads."""

    form: int = 0
    """Which of `FORMS` is asked for."""

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
        self,
        ids: Sequence[int],
        *,
        stop: str | None = None,
        stop_ids: Sequence[int] = (),
        top_k: int = 0,
        **settings: Any,
    ) -> Continuation:
        """Go on from these tokens, to `stop` if it is given; raises `BadInput` when the endpoint
        stays out of reach or refuses."""
        body: dict[str, Any] = {"model": self.model, "prompt": list(ids), **settings}
        if stop is not None:
            body["stop"] = [stop]
        return self.exchange(
            lambda client: self._send(client.completions, body, top_k, stop_ids), _continuation
        )

    def converse(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        stop_ids: Sequence[int] = (),
        top_k: int = 0,
        **settings: Any,
    ) -> Continuation:
        """Answer messages, which the server renders; raises as `complete` does."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), **settings}
        switch = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
        return self.exchange(
            lambda client: self._send(client.chat.completions, body, top_k, stop_ids, switch),
            _reply,
        )

    def _send(
        self,
        route: Any,
        body: dict[str, Any],
        top_k: int,
        stop_ids: Sequence[int],
        beyond: Mapping[str, Any] = {},
    ) -> Any:
        """Ask for as much as the server knows."""
        from openai import BadRequestError, UnprocessableEntityError

        for form in range(self.form, len(FORMS)):
            extra = {**beyond, **FORMS[form]}
            if form < len(FORMS) - 1:
                extra["top_k"] = top_k or -1
            elif top_k:
                extra["top_k"] = top_k
            if form == 0 and stop_ids:
                extra["stop_token_ids"] = list(stop_ids)
            try:
                return self._asked(route, body, extra, form)
            except (BadRequestError, UnprocessableEntityError):
                if form == len(FORMS) - 1:
                    raise
        raise AssertionError("the last form returns or raises")

    def _asked(self, route: Any, body: dict[str, Any], extra: dict[str, Any], form: int) -> object:
        reply = route.with_raw_response.create(**body, extra_body=extra)
        # Only a form that was taken counts: a request may be refused for other reasons.
        self.form = max(self.form, form)
        return reply


def _continuation(reply: Any) -> Continuation:
    """What a completion says; raises `Unusable` where the engine broke off."""
    choice = reply["choices"][0]
    return _said(reply, choice, str(choice["text"]), choice.get("prompt_token_ids"))


def _reply(reply: Any) -> Continuation:
    """What a chat completion says: its thinking, where a server took it out, stands before it."""
    choice = reply["choices"][0]
    message = choice["message"]
    text = str(message.get("content") or "")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        text = f"<think>{thought}</think>{text}"
    return _said(reply, choice, text, reply.get("prompt_token_ids"))


def _said(reply: Any, choice: Any, text: str, prompt_ids: object) -> Continuation:
    finish = choice["finish_reason"]
    if finish not in ("stop", "length"):
        raise Unusable(f"broke off (finish_reason {finish!r}).")
    # As vLLM and SGLang call it.
    names = [name for name in ("stop_reason", "matched_stop") if name in choice]
    by = choice[names[0]] if names else None
    usage = reply.get("usage") or {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Continuation(
        text,
        _ids(choice.get("token_ids")),
        finish,
        by if isinstance(by, str | int) else None,
        bool(names),
        _ids(prompt_ids),
        *(n if isinstance(n, int) else 0 for n in counts),
    )


def _ids(value: object) -> list[int] | None:
    good = isinstance(value, list) and all(type(i) is int for i in value)
    return value if good and isinstance(value, list) else None
