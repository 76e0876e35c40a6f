"""The model, its tokenizer and its monitor, made ready to be served."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.checkpoint import placement
from surgeon.decoding import context_limit
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.serve.asked import Offer
from surgeon.serve.engine import Engine
from surgeon.traces import stop_ids
from surgeon.watch.monitor import Monitor, find_monitor, read_levels
from surgeon.watch.watching import Watching

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """What the web application needs."""

    engine: Engine
    tokenizer: "PreTrainedTokenizerBase"
    offer: Offer
    levels: tuple[str, ...]
    """What is watched for; empty without a monitor."""


def load(
    spec: str,
    *,
    name: str | None = None,
    rows: int = 16,
    max_tokens: int = 0,
    max_prompt_tokens: int = 0,
    max_waiting: int = 64,
    levels: Sequence[str] | None = None,
    monitor_file: str | None = None,
    thinking: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Loaded:
    """Load what `serve` is asked to serve; parameters as there. Raises `BadInput`."""
    for parameter, value, least in (
        ("rows", rows, 1), ("max_tokens", max_tokens, 0), ("max_waiting", max_waiting, 0),
        ("max_prompt_tokens", max_prompt_tokens, 0),
    ):  # fmt: skip
        if value < least:
            raise BadInput(f"found {parameter} = {value}, expected at least {least}.")
    where, kind = placement(device, dtype)
    checkpoint = open_checkpoint(spec)
    tokenizer = checkpoint.tokenizer()
    place = find_monitor(spec, checkpoint, monitor_file)
    monitor = None if place is None else Monitor.load(place, checkpoint)
    watched = read_levels(levels, () if monitor is None else monitor.levels)
    model: Any = checkpoint.model(where, kind)
    context = context_limit(model)
    own = model.generation_config
    offer = Offer(
        names=tuple(dict.fromkeys((name or checkpoint.name, checkpoint.name, spec))),
        context=context,
        vocabulary=model.get_input_embeddings().num_embeddings,
        max_tokens=min(max_tokens or context, context),
        max_prompt_tokens=min(max_prompt_tokens or context, context - 1),
        most_answers=rows + max_waiting,
        temperature=_or(own.temperature, 1.0),
        top_p=_or(own.top_p, 1.0),
        top_k=_or(own.top_k, 0),
        thinking=thinking,
    )
    watching = None
    if monitor is not None and watched:
        watching = Watching(model, tokenizer, monitor, levels=watched)
    engine = Engine(
        model,
        stop=stop_ids(model, tokenizer),
        rows=rows,
        max_waiting=max_waiting,
        max_tokens=offer.max_tokens,
        watching=watching,
    )
    return Loaded(engine, tokenizer, offer, watched)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else type(default)(value)
