"""The model, its tokenizer and its monitor, made ready to be served."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from surgeon.checkpoint import placement
from surgeon.decoding import context_limit
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.live import support
from surgeon.neureasoner.steps import thinking_tags
from surgeon.serve.best import Best, chooser
from surgeon.serve.grammar import Grammars
from surgeon.serve.query import Offer
from surgeon.serve.worker import Worker
from surgeon.settings.serve import ServeSettings
from surgeon.traces import stop_ids
from surgeon.watch.monitor import Monitor, find_monitor, read_levels
from surgeon.watch.redrawing import watch_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")


class Service(NamedTuple):
    """What the web application needs."""

    worker: Worker
    tokenizer: "PreTrainedTokenizerBase"
    offer: Offer
    levels: tuple[str, ...]
    """What is watched for; empty without a monitor."""
    best: Best | None = None
    """What chooses among several answers; None where nothing can."""


def load(settings: ServeSettings) -> Service:
    """Load what `serve` is asked to serve; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    checkpoint = open_checkpoint(settings.checkpoint)
    support.require("decode", checkpoint)
    best = chooser(settings, checkpoint)
    tokenizer = checkpoint.tokenizer()
    file = find_monitor(settings.checkpoint, checkpoint, settings.monitor_file)
    monitor = None if file is None else Monitor.load(file, checkpoint)
    if monitor is not None:
        monitor = monitor.acting(settings.action, settings.draws)
    elif settings.action is not None or settings.draws is not None:
        raise BadInput(
            f"found action or draws, and {settings.checkpoint} carries no monitor that could act. "
            "Name one with --monitor-file."
        )
    levels = read_levels(settings.levels, () if monitor is None else monitor.levels)
    if settings.levels is None and monitor is not None:
        levels = monitor.default_levels
    model: Any = checkpoint.model(device, dtype)
    context = context_limit(model)
    own = model.generation_config
    vocabulary, stop = model.get_input_embeddings().num_embeddings, stop_ids(model, tokenizer)
    watched = monitor is not None and bool(levels)
    names = (settings.name or checkpoint.name, checkpoint.name, settings.checkpoint)
    offer = Offer(
        names=tuple(dict.fromkeys(names)),
        context=context,
        vocabulary=vocabulary,
        max_tokens=min(settings.max_tokens or context, context),
        max_prompt_tokens=min(settings.max_prompt_tokens or context, context - 1),
        most_answers=settings.rows + settings.max_waiting,
        temperature=_or(own.temperature, 1.0),
        top_p=_or(own.top_p, 1.0),
        top_k=_or(own.top_k, 0),
        thinking=settings.thinking,
        template=settings.template,
        best_of=None if best is None else settings.best_of,
        grammars=None if watched else Grammars(deepcopy(tokenizer), vocabulary, stop),
        # Once: of a large vocabulary the look takes longer than all else of a request.
        tags=thinking_tags(tokenizer) if monitor is None else monitor.settings.thinking,
    )
    watching = None
    if monitor is not None and levels:
        watching = watch_of(model, tokenizer, monitor, levels=levels)
    worker = Worker(
        model,
        stop=stop,
        rows=settings.rows,
        max_waiting=settings.max_waiting,
        max_tokens=offer.max_tokens,
        watching=watching,
    )
    return Service(worker, tokenizer, offer, levels, best)


def _or(value: Any, default: T) -> T:
    return default if value is None else type(default)(value)  # pyright: ignore
