"""Stage 2, `surgeon trigger identify`: the units and heads that carry each failure (sec. 2.1)."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_args

from surgeon import attribution, lineage
from surgeon.attribution import Method, Where
from surgeon.checkpoint import placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner.steps import LEVELS, Span, StepEnds, split_steps
from surgeon.progress import bar
from surgeon.traces import Trace
from surgeon.trigger.artifacts import Labels, read_labels, require_layer
from surgeon.watch.spans import append_line

FILE = "channels.json"
EACH = "components.jsonl"
PAPER = {"intra": "FFN units", "inter": "heads", "instance": "FFN units"}
"""Where each level's components mostly lie (sec. 2.1, Fig. 2)."""


class Found(NamedTuple):
    """The components of one span."""

    level: str
    numbers: list[int]
    share: float
    """Of the span's tokens, those that have them among their top k: 1 unless it fell back."""
    fell_back: bool


def identify(
    checkpoint: str,
    *,
    labels: str | Path,
    out: str | Path,
    method: str = "direct",
    layer: int | None = None,
    k: float = 0.25,
    spans: int = 64,
    channels: int = 32,
    shortlist: int = 0,
    temperature: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Find the components that push a checkpoint towards its failing steps' tokens.

    In each failing span, of at most `spans` per level, those are kept that are among the `k`
    highest attributions (below 1: that share of all) at every token; where none is, the most
    frequent ones, which is said (R16). A level's channels are the at most `channels` components
    that are kept in most spans. `method` is `direct` (the logit lens), `adjoint` (DePass, ratio
    rule) or `softmax` (DePass on a shortlist); `layer` is the middle one by default. Writes
    `channels.json` to the directory `out` and returns its content. Raises `BadInput` before the
    model runs for what can be checked.
    """
    if method not in get_args(Method):
        raise BadInput(f"method is {method!r}, expected one of: {', '.join(get_args(Method))}.")
    for name, value, least in (
        ("spans", spans, 1), ("channels", channels, 1), ("shortlist", shortlist, 0),
    ):  # fmt: skip
        if value < least:
            raise BadInput(f"{name} is {value}; it must be at least {least}.")
    if not (0 < k < 1 or (k >= 1 and k == int(k))):
        raise BadInput(f"k is {k}; it must be a whole number, or a share between 0 and 1.")
    where, kind = placement(device, dtype)
    opened = open_checkpoint(checkpoint)
    tokenizer = opened.tokenizer()
    read = read_labels(labels, opened, tokenizer)
    chosen_layer = opened.n_layers // 2 if layer is None else layer
    n_units, n_heads = require_layer(opened, chosen_layer)
    top = max(1, round(k * (n_units + n_heads))) if k < 1 else int(k)
    for name, value in (("k", top), ("shortlist", shortlist)):
        if value > n_units + n_heads:
            raise BadInput(
                f"{name} is {value}; layer {chosen_layer} of {opened.spec} has {n_units} units and "
                f"{n_heads} heads."
            )
    if 0 < shortlist < top:
        raise BadInput(f"shortlist is {shortlist}; it must be at least k ({top}).")
    settings = {
        "checkpoint": opened.spec, "labels": str(labels), "method": method, "layer": layer, "k": k,
        "spans": spans, "channels": channels, "shortlist": shortlist, "temperature": temperature,
        "device": device, "dtype": dtype,
    }  # fmt: skip
    work = lineage.begin(
        out, verb="trigger-identify", arguments=settings,
        inputs={"checkpoint": opened.digest, "labels": read.digest}, seed=seed,
    )  # fmt: skip
    if work is None:
        return {**lineage.read_object(Path(out) / FILE), "out": str(out), "already": True}
    model = opened.model(where, kind)
    drawn = draw(read, spans, seed)
    found = _attributed(
        model, read, drawn, StepEnds(tokenizer), work / EACH, method=method, layer=chosen_layer,
        k=top, shortlist=shortlist, temperature=temperature,
    )  # fmt: skip
    result = {
        "checkpoint": {"spec": opened.spec, "digest": opened.digest},
        "settings": {**settings, "seed": seed},
        "layer": chosen_layer,
        "layers": opened.n_layers,
        "method": method,
        "k": top,
        "components": {"units": n_units, "heads": n_heads},
        "levels": {
            level: level_channels([f for f in found if f.level == level], channels, n_units)
            for level in LEVELS
            if any(f.level == level for f in found)
        },
    }
    lineage.write_json(work / FILE, result)
    lineage.finish(work, out)
    return {**result, "out": str(out)}


def draw(labels: Labels, most: int, seed: int) -> list[Span]:
    """At most `most` failing spans of each level, at random; those of a trace together."""
    chosen: list[Span] = []
    for level in LEVELS:
        own = [span for span in labels.spans if span.failing and span.level == level]
        chosen += Random(f"{seed} {level}").sample(own, min(most, len(own)))
    place = {key: i for i, key in enumerate(labels.traces)}
    return sorted(chosen, key=lambda s: (place[s.prompt_id, s.sample], s.level, s.first, s.last))


def _attributed(
    model: Any,
    labels: Labels,
    spans: Sequence[Span],
    ends: StepEnds,
    file: Path,
    *,
    method: Any,
    layer: int,
    k: int,
    shortlist: int,
    temperature: float,
) -> list[Found]:
    """The components of each span, written as they are found; those on disk aren't made again."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    found = [Found(**json.loads(line)) for line in lines if line.endswith(b"\n")]
    rest = spans[len(found) :]
    traces: list[Trace] = []
    places: dict[tuple[str, int], int] = {}
    wanted = []
    for span in rest:
        key = (span.prompt_id, span.sample)
        if key not in places:
            places[key] = len(traces)
            traces.append(labels.traces[key])
        steps = split_steps(ends, labels.traces[key].token_ids)
        wanted.append(Where(places[key], ((steps[span.first].start, steps[span.last].end),)))
    with bar(f"attribution ({method})", len(rest)) as advance:
        for span, components in zip(
            rest,
            attribution.attribute(
                model, traces, wanted, method=method, layer=layer, k=k, shortlist=shortlist,
                temperature=temperature,
            ),
            strict=True,
        ):  # fmt: skip
            one = Found(
                span.level, list(components.numbers), components.shares[0], components.fell_back
            )
            append_line(file, one._asdict())
            found.append(one)
            advance()
    return found


def level_channels(found: Sequence[Found], most: int, n_units: int) -> dict[str, Any]:
    """A level's channels, from the components of its spans, and where these lie."""
    votes = Counter(number for one in found for number in one.numbers)
    # Of equals those that come earlier in their spans.
    ranks = Counter[int]()
    for one in found:
        for rank, number in enumerate(one.numbers):
            ranks[number] += rank
    chosen = sorted(votes, key=lambda n: (-votes[n], ranks[n] / votes[n], n))[:most]
    total = sum(votes.values())
    return {
        "units": sorted(number for number in chosen if number < n_units),
        "heads": sorted(number - n_units for number in chosen if number >= n_units),
        "spans": len(found),
        "fell_back": sum(one.fell_back for one in found),
        "share": sum(one.share for one in found) / len(found),
        "components_per_span": total / len(found),
        "in_spans": [votes[number] / len(found) for number in chosen],
        "share_of_heads": sum(n for number, n in votes.items() if number >= n_units) / total,
    }


def read_channels(path: str | Path) -> dict[str, Any]:
    """The content of `channels.json` in a directory (or of the file itself); raises `BadInput`."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise BadInput(
            f"{file} does not exist: find channels with surgeon trigger identify CHECKPOINT "
            "--labels DIR --out DIR"
        )
    found = lineage.read_object(file)
    levels = found.get("levels")
    if not isinstance(found.get("layer"), int) or not isinstance(levels, dict) or not levels:
        raise BadInput(f"{file} names no layer and levels, so it holds no channels.")
    for level, row in levels.items():
        lists = [row.get("units"), row.get("heads")] if isinstance(row, dict) else [None]
        numbers = [n for part in lists if isinstance(part, list) for n in part]
        good = all(isinstance(part, list) for part in lists) and numbers
        if level not in LEVELS or not good or not all(type(n) is int for n in numbers):
            raise BadInput(
                f"{file}: level {level!r} is not one of {', '.join(LEVELS)} with lists of units "
                "and heads, not both empty."
            )
    return found


def show_identify(result: dict[str, Any]) -> None:
    """Print where each level's components lie, beside what the paper found."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if result.get("already"):
        console.print("These channels were found before: nothing was computed.")
    size = result["components"]
    console.print(
        f"layer {result['layer']} of {result['layers']} ({size['units']:,} units, {size['heads']} "
        f"heads), {result['method']}, top {result['k']} of each token"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("level")
    for name in ("spans", "kept per span", "units", "heads", "heads of all kept", "by chance"):
        table.add_column(name, justify="right")
    table.add_column("the paper: mostly")
    chance = size["heads"] / (size["units"] + size["heads"])
    for level, row in result["levels"].items():
        table.add_row(
            level, f"{row['spans']}", f"{row['components_per_span']:.1f}", f"{len(row['units'])}",
            f"{len(row['heads'])}", f"{row['share_of_heads']:.1%}", f"{chance:.1%}", PAPER[level],
        )  # fmt: skip
    console.print(table)
    for level, row in result["levels"].items():
        if row["fell_back"]:
            console.print(
                f"{level}: in {row['fell_back']} of {row['spans']} spans no component is among the "
                f"top {result['k']} at every token; the most frequent ones stand in (they are at "
                f"{row['share']:.0%} of the tokens, mean of all spans).",
                style="yellow", markup=False,
            )  # fmt: skip
    console.print(f"channels in {result['out']}", markup=False)
