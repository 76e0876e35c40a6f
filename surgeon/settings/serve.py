"""What `surgeon serve` is asked to do."""

from typing import Annotated

from annotated_types import Ge, Le

from surgeon.settings.neureasoner import Action
from surgeon.settings.sampling import Machine, Template
from surgeon.settings.schema import (
    POSITIONAL,
    Amount,
    Count,
    Many,
    Metavar,
    Number,
    settings,
)


@settings
class ServeSettings:
    """Serve a checkpoint, monitored, behind OpenAI's chat and completions endpoints."""

    checkpoint: Annotated[str, POSITIONAL, Metavar("CHECKPOINT")]
    """The checkpoint that answers."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """Port to listen on; 0: any free one."""
    name: Annotated[str | None, Metavar("NAME")] = None
    """What clients call the model; by default the checkpoint's name."""
    rows: Count = 16
    """Answers decoded at once."""
    max_tokens: Number = 0
    """Longest answer, tokens; 0: what the context holds."""
    max_prompt_tokens: Number = 0
    """Longest prompt, tokens; 0: what the context holds."""
    max_waiting: Number = 64
    """Answers that may wait for a row; further requests get status 429."""
    max_body_bytes: Count = 4 << 20
    """Largest request."""
    levels: Many[str] | None = None
    """Watch only these of the monitor's levels, or all of them; none watches nothing. By default
    those that a calibration left on (`surgeon trigger calibrate`)."""
    action: Action | None = None
    """What a firing at intra or inter does: force the trigger (trigger), draw the step anew until
    nothing fires (resample), or draw several and keep the one that the detector likes best
    (choose); a stream then comes step by step. By default what the monitor was calibrated for."""
    draws: Count | None = None
    """Most new draws of a step; by default the monitor's, 4."""
    monitor_file: Annotated[str | None, Metavar("FILE")] = None
    """Another monitor than the checkpoint's own."""
    best_of: Annotated[int, Ge(1), Le(128)] = 1
    """Answers that are decoded for each that is sent: the best one. A request may say best_of
    itself; a stream then comes at once, when the best is known."""
    best_by: Annotated[str | None, Metavar("RULE")] = None
    """The rule that chooses, of nex, hes, low-hes, length (shortest), longest, logprob, agreement
    or module:function; by default nex with weights, else logprob."""
    weights: Annotated[str | None, Metavar("RANKING[#NAME]|FILE")] = None
    """Neuron weights of the checkpoint, from a ranking, for nex."""
    weights_from_other: bool = False
    """Take weights that were computed on another checkpoint."""
    thinking: bool | None = None
    """Passed to the chat template as `enable_thinking`; by default the template decides."""
    template: Template = None
    """Name of the chat template that conversations are rendered with, where the checkpoint has
    several; by default its `default`, and `tool_use` for requests with tools."""
    api_key: Annotated[str | None, Metavar("KEY")] = None
    """Key that clients have to send; without it that of the environment variable SURGEON_API_KEY,
    which other users of the machine can't read."""
    cors: Annotated[Many[str] | None, Metavar("ORIGIN")] = None
    """Pages of these origins (such as https://example.org; *: all) may use the server from a
    browser."""
    grace_s: Amount = 5.0
    """Seconds that answers have to end once the server is stopped."""
    machine: Machine = Machine()
