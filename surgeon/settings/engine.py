"""Who writes the answers: a group that every verb which samples shares."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from surgeon.errors import BadInput
from surgeon.settings.schema import (
    RECORDED_WHERE_SET,
    SHORTHAND,
    UNRECORDED,
    Amount,
    Count,
    Metavar,
    Number,
    Positive,
    Probability,
    settings,
)

VLLM = "vllm"
DEFAULT = BeforeValidator(lambda value: None if value == "local" else value)
"""The decoder here has no name in a record: runs made before there were others are its runs."""
COMPLETIONS = BeforeValidator(lambda value: None if value == "completions" else value)


@settings
class EngineSettings:
    """Who writes the answers. The engine is a value: any process makes its own from it."""

    name: Annotated[
        str | None,
        DEFAULT,
        SHORTHAND,
        RECORDED_WHERE_SET,
        Metavar("local|vllm|URL#MODEL"),
    ] = None
    """local (the decoder here; the default), vllm (in this process), or URL#MODEL, an
    OpenAI-compatible server of the same weights, where {name} stands for the candidate's name."""
    ask: Annotated[
        Literal["chat"] | None,
        COMPLETIONS,
        RECORDED_WHERE_SET,
        Metavar("completions|chat"),
    ] = None
    """How a server is asked: completions (of the prompt's token ids; the default), or chat (of its
    messages, which the server renders)."""
    parallel: Annotated[Count, UNRECORDED] = 32
    """Requests to a server at a time."""
    requests_per_minute: Annotated[Number, UNRECORDED] = 0
    """Most requests to a server in a minute; 0: no limit."""
    timeout: Annotated[Positive, UNRECORDED] = 3600.0
    """Seconds for one attempt at an answer of a server."""
    attempts: Annotated[Count, UNRECORDED] = 6
    """Attempts at an answer of a server, with growing pauses between them."""
    price_in: Annotated[Amount | None, UNRECORDED] = None
    """Money per million tokens in, for the estimate."""
    price_out: Annotated[Amount | None, UNRECORDED] = None
    """Money per million tokens out."""
    serve_command: Annotated[str | None, UNRECORDED, Metavar("COMMAND")] = None
    """A command that starts a server of one candidate and is stopped after it; {checkpoint} is the
    candidate's directory, {name} its name, {port} the port in the URL."""
    start_s: Annotated[Positive, UNRECORDED] = 900.0
    """Seconds that a started server has until it answers."""
    tensor_parallel: Annotated[Count, UNRECORDED] = 1
    """vllm: devices that share each candidate."""
    memory_share: Annotated[Probability, UNRECORDED] = 0.5
    """vllm: share of a device's memory (on a CPU, of the machine's) for weights and cache."""
    checked_prompts: Annotated[Number | None, UNRECORDED] = None
    """Prompts whose greedy answers are held against the model here, for each candidate, before it
    answers; by default 2 for vllm and for started servers, 0 for a URL."""

    def __post_init__(self) -> None:
        """Raise BadInput for an engine that isn't one, and settings that need another."""
        if self.name not in (None, VLLM) and not self.is_server:
            raise BadInput(
                f"found engine = {self.name}, expected local, vllm or URL#MODEL (an "
                "OpenAI-compatible server, such as http://localhost:8000/v1#Qwen3-4B)."
            )
        for name in ("serve_command", "ask"):
            if getattr(self, name) is not None and not self.is_server:
                raise BadInput(
                    f"found {name} = {getattr(self, name)} without a server to ask, expected "
                    "engine URL#MODEL too, such as http://127.0.0.1:8000/v1#{name}."
                )

    @property
    def is_local(self) -> bool:
        """Whether the decoder here writes."""
        return self.name is None

    @property
    def is_server(self) -> bool:
        """Whether a server is asked."""
        return self.name is not None and self.name.startswith(("http://", "https://"))

    @property
    def checks(self) -> int:
        """How many prompts' greedy answers are held against the model here."""
        if self.checked_prompts is not None:
            return self.checked_prompts
        return 2 if self.name == VLLM or self.serve_command is not None else 0

    def money(self, tokens_in: int, tokens_out: int) -> float | None:
        """What so many tokens cost, in the currency of the prices; None where they aren't known."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
