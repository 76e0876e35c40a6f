"""Stage 2, `surgeon trigger identify`: the units and heads that carry each failure (sec. 2.1)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Strict

from surgeon import artifact, attribution, console, jsonl, lineage
from surgeon.artifact import Already, Out, part
from surgeon.attribution import Where
from surgeon.checkpoint import Checkpoint, CheckpointName, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner.steps import Span, StepEnds, attributed_steps, split_steps
from surgeon.progress import bar
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import LEVELS
from surgeon.settings.trigger_identify import IdentifySettings
from surgeon.traces import Key, Trace
from surgeon.trigger.artifacts import Labels, read_labels, require_layer

if TYPE_CHECKING:
    import torch
    from torch import nn

EACH, OTHERS = "components.jsonl", "counterparts.jsonl"
"""Components of each failing span, and of the counterparts of those that have one."""
PAPER = {"intra": "FFN units", "inter": "heads", "instance": "FFN units"}
"""Where each level's components mostly lie (sec. 2.1, Fig. 2)."""
Numbers = list[Annotated[int, Strict()]]


@part
class LevelChannels:
    """A level's channels, and where the components of its spans lie.

    A file made by hand needs the two lists alone.
    """

    units: Numbers
    """Numbers of FFN units in the layer."""
    heads: Numbers
    spans: int = 0
    """Failing spans that were looked at."""
    fell_back: int = 0
    """Of these, those in which no component is in the top k at every token."""
    share: float | None = None
    """Of the tokens, those whose top k hold the kept components: mean over the spans."""
    components_per_span: float | None = None
    in_spans: tuple[float, ...] = ()
    """Of each channel, the share of the spans that it was kept in, most frequent first."""
    share_of_heads: float | None = None
    """Of all kept components."""
    whole: int = 0
    """`inter`: spans whose attempts weren't told apart, so that all of their steps stand in."""
    pairs: int = 0
    """Failing spans that were compared with a counterpart."""
    in_both: float | None = None
    """Of their kept components, the share that is kept in the counterpart, too."""
    dropped: int = 0
    """Of the channels that would have been chosen without that contrast, those that weren't."""


@part
class LayerSize:
    """How many components a layer has."""

    units: int
    heads: int


@artifact.artifact("channels.json")
class Identified:
    """The channels of each failure level.

    A file made by hand needs the layer and the levels alone.
    """

    checkpoint: CheckpointName | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    layer: Annotated[int, Strict()]
    layers: int | None = None
    method: str | None = None
    k: int | None = None
    """Highest attributions of a token that count."""
    components: LayerSize | None = None
    levels: dict[str, LevelChannels]
    warnings: list[str] = field(default_factory=list)
    out: Out = Path()
    already: Already = False

    @property
    def digest(self) -> str:
        """Of what a detector depends on."""
        channels = {level: [row.units, row.heads] for level, row in self.levels.items()}
        return lineage.digest_of([self.layer, channels])


class Found(NamedTuple):
    """The components of one span."""

    level: str
    numbers: list[int]
    share: float
    """Of the span's tokens, those that have them among their top k: 1 unless it fell back."""
    fell_back: bool


class IdentifyPlan(NamedTuple):
    """An identification whose inputs have been checked; no model has run yet."""

    settings: IdentifySettings
    checkpoint: Checkpoint
    labels: Labels
    ends: StepEnds
    layer: int
    k: int
    """Highest attributions of a token that count."""
    size: LayerSize
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run


@verb(IdentifySettings)
def identify(settings: IdentifySettings) -> Identified:
    """Find the components that push a checkpoint towards its failing steps' tokens.

    For each failing span (at most `spans` per level), keep the components that are in the top `k`
    at every token; if there is none, keep the most frequent ones and say so (R16). A level's
    channels are the at most `channels` components that are kept in most spans. Components that are
    kept in a span's counterpart as well are counted or dropped (`contrast`). Raises `BadInput`
    before the model runs for what can be checked.
    """
    plan = prepare(settings)
    return artifact.once(settings.out, Identified, lambda work: _identify(plan, work), run=plan.run)


def prepare(settings: IdentifySettings) -> IdentifyPlan:
    """Check the settings against labels and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    checkpoint = open_checkpoint(settings.checkpoint)
    tokenizer = checkpoint.tokenizer()
    labels = read_labels(settings.labels, checkpoint, tokenizer)
    layer = checkpoint.n_layers // 2 if settings.layer is None else settings.layer
    units, heads = require_layer(checkpoint, layer)
    k, shortlist = settings.k, settings.shortlist
    k = max(1, round(k * (units + heads))) if k < 1 else int(k)
    for name, value in (("k", k), ("shortlist", shortlist)):
        if value > units + heads:
            raise BadInput(
                f"{name} is {value}; layer {layer} of {checkpoint.spec} has {units} units and "
                f"{heads} heads."
            )
    if 0 < shortlist < k:
        raise BadInput(f"shortlist is {shortlist}; it must be at least k ({k}).")
    arguments = {**record(settings), "checkpoint": checkpoint.spec}
    inputs = {"checkpoint": checkpoint.digest, "labels": labels.digest}
    return IdentifyPlan(
        settings, checkpoint, labels, StepEnds(tokenizer), layer, k,
        LayerSize(units=units, heads=heads), device, dtype,
        lineage.Run("trigger-identify", arguments, inputs, settings.seed),
    )  # fmt: skip


def _identify(plan: IdentifyPlan, work: Path) -> Identified:
    settings, checkpoint = plan.settings, plan.checkpoint
    spans = draw(plan.labels, settings.spans, settings.seed)
    model = checkpoint.model(plan.device, plan.dtype)
    found = _attributed(plan, model, spans, work / EACH)
    others: dict[int, Found] = {}
    if settings.contrast != "none":
        against = counterparts_of(plan.labels, spans)
        read = _attributed(plan, model, list(against.values()), work / OTHERS)
        others = dict(zip(against, read, strict=True))
    levels: dict[str, LevelChannels] = {}
    warnings: list[str] = []
    for level in LEVELS:
        numbers = [i for i, one in enumerate(found) if one.level == level]
        if not numbers:
            continue
        row = level_channels(
            [found[i] for i in numbers], settings.channels, plan.size.units,
            [others.get(i) for i in numbers], drop=settings.contrast == "drop",
        )  # fmt: skip
        whole = sum(level == "inter" and not spans[i].attempts for i in numbers)
        if row.units or row.heads:
            levels[level] = replace(row, whole=whole)
        else:
            why = "no failing span has a counterpart" if not row.pairs else "all are in both"
            warnings.append(f"{level}: no component is left after the contrast ({why}).")
    if not levels:
        raise BadInput(f"no channels were found. {' '.join(warnings)} Use contrast=count.")
    return Identified(
        checkpoint=CheckpointName.of(checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        layer=plan.layer,
        layers=checkpoint.n_layers,
        method=settings.method,
        k=plan.k,
        components=plan.size,
        levels=levels,
        warnings=warnings,
    )


def counterparts_of(labels: Labels, spans: Sequence[Span]) -> dict[int, Span]:
    """The counterpart of each of these spans that has one, by the span's number."""
    by_pair = {(s.level, s.pair): s for s in labels.spans if not s.failing and s.pair is not None}
    return {
        i: by_pair[span.level, span.pair]
        for i, span in enumerate(spans)
        if span.pair is not None and (span.level, span.pair) in by_pair
    }


def draw(labels: Labels, most: int, seed: int) -> list[Span]:
    """At most `most` failing spans of each level, at random; those of a trace together."""
    chosen: list[Span] = []
    for level in LEVELS:
        own = [span for span in labels.spans if span.failing and span.level == level]
        chosen += Random(f"{seed} {level}").sample(own, min(most, len(own)))
    place = {key: i for i, key in enumerate(labels.traces)}
    return sorted(chosen, key=lambda s: (place[s.key], s.level, s.first, s.last))


def _attributed(
    plan: IdentifyPlan, model: "nn.Module", spans: Sequence[Span], file: Path
) -> list[Found]:
    """The components of each span, written as they are found; those on disk aren't made again."""
    found = [Found(**row) for _, row in jsonl.rows(file)]
    rest = spans[len(found) :]
    traces: list[Trace] = []
    places: dict[Key, int] = {}
    wanted = []
    for span in rest:
        trace = plan.labels.traces[span.key]
        if span.key not in places:
            places[span.key] = len(traces)
            traces.append(trace)
        steps = split_steps(plan.ends, trace.token_ids)
        ranges = [
            (steps[first].start, steps[last].end)
            for first, last in attributed_steps(span, plan.settings.attempt_steps)
        ]
        wanted.append(Where(places[span.key], tuple(ranges)))
    settings = plan.settings
    components = attribution.attribute(
        model, traces, wanted, method=settings.method, layer=plan.layer, k=plan.k,
        shortlist=settings.shortlist, temperature=settings.temperature,
    )  # fmt: skip
    what = f"attribution ({settings.method})" + ", counterparts" * (file.name == OTHERS)
    with bar(what, len(rest)) as advance:
        for span, kept in zip(rest, components, strict=True):
            one = Found(span.level, list(kept.numbers), kept.shares[0], kept.fell_back)
            jsonl.append(file, one._asdict())
            found.append(one)
            advance()
    return found


def level_channels(
    found: Sequence[Found],
    most: int,
    n_units: int,
    others: Sequence[Found | None] | None = None,
    *,
    drop: bool = False,
) -> LevelChannels:
    """A level's channels, from the components of its spans, and where these lie.

    `others` are those of the spans' counterparts. With `drop` only spans with a counterpart vote,
    and not for what it has as well.
    """
    others = [None] * len(found) if others is None else others
    both = [
        None if other is None else set(one.numbers) & set(other.numbers)
        for one, other in zip(found, others, strict=True)
    ]
    compared = [
        (one, shared) for one, shared in zip(found, both, strict=True) if shared is not None
    ]
    kept_by_span = [list(one.numbers) for one in found]
    chosen, dropped = attribution.elected(kept_by_span, most), 0
    if drop:
        before = chosen
        kept_by_span = [[n for n in one.numbers if n not in shared] for one, shared in compared]
        chosen = attribution.elected(kept_by_span, most)
        dropped = len({*before} - {n for own in kept_by_span for n in own})
    votes = Counter(number for own in kept_by_span for number in own)
    voters = len(kept_by_span)
    kept = sum(len(one.numbers) for one, _ in compared)
    total = sum(votes.values())
    return LevelChannels(
        units=sorted(number for number in chosen if number < n_units),
        heads=sorted(number - n_units for number in chosen if number >= n_units),
        spans=len(found),
        fell_back=sum(one.fell_back for one in found),
        share=sum(one.share for one in found) / len(found),
        components_per_span=total / voters if voters else 0.0,
        in_spans=tuple(votes[number] / voters for number in chosen),
        share_of_heads=sum(n for number, n in votes.items() if number >= n_units) / max(total, 1),
        pairs=len(compared),
        in_both=sum(len(shared) for _, shared in compared) / kept if kept else None,
        dropped=dropped,
    )


def read_channels(path: str | Path) -> Identified:
    """The content of `channels.json` in a directory (or of the file itself); raises `BadInput`."""
    path = Path(path)
    file = path / Identified.FILE if path.is_dir() else path  # pyright: ignore
    if not file.is_file():
        raise BadInput(
            f"{file} does not exist: find channels with surgeon trigger identify CHECKPOINT "
            "--labels DIR --out DIR"
        )
    identified = artifact.read(Identified, file)
    if not identified.levels:
        raise BadInput(f"{file} names no levels, so it holds no channels.")
    for level, row in identified.levels.items():
        if level not in LEVELS or not (row.units or row.heads):
            raise BadInput(
                f"{file}: level {level!r} is not one of {', '.join(LEVELS)} with lists of units "
                "and heads, not both empty."
            )
    return identified


def show(result: Identified) -> None:
    """Print where each level's components lie, beside what the paper found."""
    console.announce(result.already, "This identification")
    size = result.components
    assert size is not None
    console.say(
        f"layer {result.layer} of {result.layers} ({size.units:,} units, {size.heads} heads), "
        f"{result.method}, top {result.k} of each token"
    )
    columns = ("spans", "kept per span", "units", "heads", "heads of all kept", "by chance")
    table = console.table("level", *columns, "the paper: mostly", left=["the paper: mostly"])
    for column in table.columns:
        column.no_wrap = False  # long headers fold: the table fits 80 columns
    chance = size.heads / (size.units + size.heads)
    for level, row in result.levels.items():
        table.add_row(
            level, f"{row.spans}", f"{row.components_per_span:.1f}", f"{len(row.units)}",
            f"{len(row.heads)}", f"{row.share_of_heads:.1%}", f"{chance:.1%}", PAPER[level],
        )  # fmt: skip
    console.console().print(table)
    for level, row in result.levels.items():
        if row.fell_back:
            console.say(
                f"{level}: in {row.fell_back} of {row.spans} spans no component is among the top "
                f"{result.k} at every token; the most frequent ones stand in (they are at "
                f"{row.share:.0%} of the tokens, mean of all spans).",
                style="yellow",
            )
    for level, row in result.levels.items():
        if row.whole:
            console.say(
                f"{level}: in {row.whole} of {row.spans} spans the attempts aren't told apart, so "
                "all of their steps were attributed.",
                style="yellow",
            )
        if row.in_both is not None:
            left = f"; {row.dropped} channels were left out for it" if row.dropped else ""
            console.say(
                f"{level}: {row.in_both:.0%} of the components kept in {row.pairs} spans are kept "
                f"in the counterparts, too{left}."
            )
    console.warn(result.warnings)
    console.say(f"channels in {result.out}")
