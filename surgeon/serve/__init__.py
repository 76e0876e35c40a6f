"""`surgeon serve`: a checkpoint, with the monitor it carries, behind OpenAI's endpoints.

    POST /v1/chat/completions   messages in; at once or as a stream
    POST /v1/completions        text or token ids in, to be continued; likewise
    GET  /v1/models             the one model
    GET  /health                {"status": "ok", "running": ..., "waiting": ...}; 503 when dead: the
                                device is lost, or passes fail one after another
    GET  /metrics               counts and times, for Prometheus

Taken are `model`, `messages` or `prompt`, `temperature`, `top_p`, `max_tokens` (in chats also
`max_completion_tokens`), `n`, `seed`, `stop`, `stream` and `stream_options.include_usage`,
`presence_penalty`, `frequency_penalty`, `logit_bias`, `logprobs`, `top_logprobs`,
`response_format`, `tools`, `tool_choice`, `parallel_tool_calls` and `echo`; beyond OpenAI, as other
servers spell it, `top_k`, `min_p`, `repetition_penalty`, `include_stop_str_in_output`,
`return_token_ids`, `best_of`, `add_special_tokens` and `chat_template_kwargs.enable_thinking`.
Parameters that would change the answer but aren't supported (`suffix`, images, ...) are refused,
not ignored.

With `best_of` (or `--best-of`) more answers are decoded than sent: the model reads them back, and a
rule of surgeon.scoring keeps the best `n`. Each says so in
`surgeon: {"best_of": {"of", "by", "score", "scores"}}`; a stream of them comes at once, when the
best is known. `usage` counts all that were decoded.

Log-probabilities are of the model's own distribution: before temperature, bias, penalties and
grammar. A schema is followed from the answer's first token on, so that such an answer has no
thought before it. Calls of tools are read where the chat template takes `tools` and has calls
written in one of the forms of tools.py; a call inside `<think>` is none.

Temperature, top-p and top-k are the checkpoint's own (generation_config.json) where a request
doesn't say.

The text is what the model wrote, as in a trace: with its thinking, special and trigger tokens, and
without the stop token. Each choice of a monitored model, in a stream the last piece of it, has
`surgeon: {"firings": [{"position", "level", "probability", "step"}]}`: the forced token's place
among the answer's tokens, and the step that the detector judged.

All requests share one batch, which they join and leave while it runs. A request with a `seed` is
given the same answer again, whoever its neighbours are (see `decoding.decode` for where this holds
to the bit; a detector's probability depends on them in its last digits). A client that hangs up
frees its rows.

service.py    the model, its tokenizer and its monitor, made ready
query.py      requests as JSON, read
worker.py     the batch that answers join and leave
best.py       the best of several answers
conversation.py  messages and tools, as the chat template writes them
tools.py      calls of tools in an answer's text
grammar.py    answers that match a JSON schema
spelling.py   single tokens as text and bytes
metering.py   counts and times
stops.py      where a stop string ends a text
replies.py    tokens and text into OpenAI's JSON
refusals.py   errors in OpenAI's words
app.py        the web application
web.py        the socket, the web server's thread, and the signals that end it
"""

import os
import sys
from typing import NamedTuple

from surgeon.serve import web
from surgeon.settings import verb
from surgeon.settings.serve import ServeSettings

__all__ = ["Served", "serve", "show"]

KEY = "SURGEON_API_KEY"
"""Environment variable of the key that clients must send."""


class Served(NamedTuple):
    """What a server did until it was stopped."""

    answers: int
    tokens: int
    interrupted: bool
    """SIGINT stopped it, not SIGTERM."""


@verb(ServeSettings)
def serve(settings: ServeSettings) -> Served:
    """Serve a checkpoint until SIGTERM or SIGINT, and return what was done.

    When it is stopped, answers have `grace_s` seconds to end; a second signal takes these away, a
    third raises KeyboardInterrupt. Raises `BadInput` before any request.
    """
    web.require_packages()
    with web.listening(settings.host, settings.port) as bound:
        _print(f"Loading {settings.checkpoint} ...")
        # Not at the top: a port that is taken is told before torch is loaded.
        from surgeon.serve.app import Limits, build
        from surgeon.serve.service import load

        service = load(settings)
        worker, offer = service.worker, service.offer
        api_key = settings.api_key or os.environ.get(KEY) or None
        if api_key is None and not web.is_loopback(bound):
            _print(
                f"Warning: anybody who can reach {settings.host} can use this server. Set {KEY}, "
                "or give api_key, and clients must send that key."
            )
        begun = (
            f"Serving {offer.names[0]} at {web.url_of(bound)}/v1: {worker.rows} rows, context "
            f"{offer.context}, watched levels: {', '.join(service.levels) or 'none'}. Ctrl-C ends "
            "it."
        )
        app = build(
            service, limits=Limits(settings.max_body_bytes), api_key=api_key,
            origins=settings.cors or (),
        )  # fmt: skip
        interrupted = web.run(
            app, worker, bound, grace_s=settings.grace_s, begun=lambda: _print(begun)
        )
    return Served(worker.answered, worker.tokens, interrupted)


def show(served: Served) -> None:
    """Print what a server did until it was stopped."""
    _print(f"Stopped after {served.answers} answers, {served.tokens} tokens.")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
