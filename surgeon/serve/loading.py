"""The model, its tokenizer and its monitor, made ready to be served."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.checkpoint import Checkpoint, placement, resolve
from surgeon.decoding import context_limit
from surgeon.errors import BadInput
from surgeon.families import subjects, write_out
from surgeon.neureasoner.monitor import FILE, Monitor
from surgeon.neureasoner.watching import Watching
from surgeon.serve.asked import Offer
from surgeon.serve.engine import Engine
from surgeon.traces import stop_ids

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
    monitor = find_monitor(spec, checkpoint, monitor_file)
    watched = read_levels(levels, monitor)
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


def open_checkpoint(spec: str) -> Checkpoint:
    """The checkpoint a spec names; a virtual candidate is written to a temporary directory."""
    if "#" not in spec:
        return resolve(spec)
    found = subjects([spec])[0]
    if found.checkpoint is not None:
        return found.checkpoint
    work = Path(tempfile.mkdtemp(prefix="surgeon-"))
    atexit.register(shutil.rmtree, work, ignore_errors=True)
    return Checkpoint.open(write_out(found, work / found.name), spec)


def find_monitor(spec: str, checkpoint: Checkpoint, given: str | None) -> Monitor | None:
    """The monitor of that file, or the one that the checkpoint carries, if any; for `base+adapter`
    the adapter's comes first."""
    if given is not None:
        return Monitor.load(Path(given).expanduser(), checkpoint)
    places = [checkpoint.path]
    if "+" in spec and not Path(spec).expanduser().is_dir():
        places.insert(0, Path(spec.rpartition("+")[2]).expanduser())
    for place in places:
        if (place / FILE).is_file():
            return Monitor.load(place, checkpoint)
    return None


def read_levels(levels: Sequence[str] | None, monitor: Monitor | None) -> tuple[str, ...]:
    """The levels to watch for, from names or comma lists of them; `none` watches for nothing."""
    known = () if monitor is None else monitor.levels
    if levels is None:
        return known
    names = [name.strip() for text in levels for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if monitor is None:
        raise BadInput(
            f"found levels {', '.join(names)}, but the checkpoint carries no monitor: name one "
            "with --monitor-file, or leave the levels out."
        )
    for name in names:
        if name not in known:
            raise BadInput(
                f"found the level {name!r}, expected some of this monitor's: {', '.join(known)}; "
                "or none."
            )
    return tuple(level for level in known if level in names)
