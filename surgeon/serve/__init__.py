"""`surgeon serve`: a checkpoint, with the monitor it carries, behind OpenAI's endpoints.

    POST /v1/chat/completions   messages in; at once or as a stream
    POST /v1/completions        text or token ids in, to be gone on with; likewise
    GET  /v1/models             the one model
    GET  /health                {"status": "ok", "running": ..., "waiting": ...}

Taken are `model`, `messages` or `prompt`, `temperature`, `top_p`, `max_tokens` (in chats also
`max_completion_tokens`), `n`, `seed`, `stop`, `stream` and `stream_options.include_usage`; beyond
OpenAI, as other servers spell it, `top_k`, `include_stop_str_in_output`, `return_token_ids`,
`add_special_tokens` and `chat_template_kwargs.enable_thinking`. What would change the answer and
isn't offered (tools, log-probabilities, penalties, ...) is refused. Temperature, top-p and top-k
are the checkpoint's own (generation_config.json) where a request doesn't say.

The text is what the model wrote, as in a trace: with its thinking, special and trigger tokens, and
without the stop token. Each choice of a monitored model, in a stream the last piece of it, has
`surgeon: {"firings": [{"position", "level", "probability", "step"}]}`: the forced token's place
among the answer's tokens, and the step that the detector judged.

All requests share one batch, which they join and leave while it runs. A request with a `seed` is
given the same answer again, whoever its neighbours are (see `decoding.decode` for where this holds
to the bit; a detector's probability depends on them in its last digits). A client that hangs up
frees its rows.

`loading` makes the model ready, `asked` reads requests, `engine` decodes, `text` and `replies` make
text and JSON of tokens, `app` is the web application, `running` the server around it.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from surgeon.errors import BadInput

__all__ = ["serve", "show"]

KEY = "SURGEON_API_KEY"
"""Environment variable of the key that clients must send."""


def serve(
    checkpoint: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    rows: int = 16,
    max_tokens: int = 0,
    max_prompt_tokens: int = 0,
    max_waiting: int = 64,
    max_body_bytes: int = 4 << 20,
    levels: Sequence[str] | None = None,
    monitor_file: str | None = None,
    thinking: bool | None = None,
    api_key: str | None = None,
    grace_s: float = 5.0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Serve a checkpoint until SIGTERM, or until SIGINT, which ends in KeyboardInterrupt.

    `rows` answers are decoded at once and `max_waiting` more wait; further requests get status 429.
    An answer has at most `max_tokens` tokens and a prompt `max_prompt_tokens` (0: what the context
    holds); `name` is what clients call the model. The monitor is the one that the checkpoint
    carries, if any, or `monitor_file`; `levels` are some of its levels, or `none`. `thinking` is
    passed to the chat template. With `api_key`, or the environment variable SURGEON_API_KEY,
    clients have to send that key. When it is stopped, answers have `grace_s` seconds to end; a
    second signal takes these away. Returns what was done. Raises `BadInput` before any request.
    """
    from surgeon.serve import running

    running.require_web()
    if max_body_bytes < 1:
        raise BadInput(f"found max_body_bytes = {max_body_bytes}, expected at least 1.")
    if not 0 <= grace_s < float("inf"):
        raise BadInput(f"found grace_s = {grace_s}, expected 0 or more seconds.")
    with running.listening(host, port) as bound:
        from surgeon.serve.app import Limits, build
        from surgeon.serve.loading import load

        loaded = load(
            checkpoint, name=name, rows=rows, max_tokens=max_tokens,
            max_prompt_tokens=max_prompt_tokens, max_waiting=max_waiting, levels=levels,
            monitor_file=monitor_file, thinking=thinking, device=device, dtype=dtype,
        )  # fmt: skip
        api_key = api_key or os.environ.get(KEY) or None
        if api_key is None and not running.is_loopback(bound):
            _say(
                f"Warning: anybody who can reach {host} can use this server. Set {KEY}, or give "
                "api_key, and clients must send that key."
            )
        watched = ", ".join(loaded.levels) or "none"
        text = (
            f"Serving {loaded.offer.names[0]} at {running.url_of(bound)}/v1: {loaded.engine.rows} "
            f"rows, context {loaded.offer.context}, watched levels: {watched}. Ctrl-C ends it."
        )
        app = build(loaded, limits=Limits(max_body_bytes), api_key=api_key)
        interrupted = running.run(
            app, loaded.engine, bound, grace_s=grace_s, begun=lambda: _say(text)
        )
    result = {"answers": loaded.engine.answered, "tokens": loaded.engine.tokens}
    if interrupted:
        raise KeyboardInterrupt(said(result))
    return result


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def said(result: dict[str, Any]) -> str:
    """What a server did until it was stopped, in words."""
    return f"Stopped after {result['answers']} answers, {result['tokens']} tokens."


def show(result: dict[str, Any]) -> None:
    """Print what a server did until it was stopped."""
    _say(said(result))
