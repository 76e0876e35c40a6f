"""What `surgeon pick` finds: pick.json."""

from pathlib import Path

from surgeon import artifact
from surgeon.artifact import part
from surgeon.ranking import Interval, Measured


@part
class MeanOfPrompts:
    """A mean over prompts; no value where answers aren't known."""

    value: Measured
    interval: Interval
    """95 %, by resampling the prompts; paired, where it is a difference."""


@part
class PickedBy:
    """What one rule picks."""

    by: str
    right: MeanOfPrompts
    """Share of the prompts in which its pick is right."""
    worst: MeanOfPrompts
    """Share in which the answer that it likes least is."""
    over_random: MeanOfPrompts
    """Right picks less right answers drawn at random, of all prompts."""
    over_worst: MeanOfPrompts
    """Right picks less right answers of those that it likes least."""
    tokens: MeanOfPrompts
    """Of its picks."""
    right_tokens: MeanOfPrompts
    """Tokens of right picks less those of right answers at random, where a prompt has several."""
    right_words: MeanOfPrompts
    """Counted words, likewise."""
    known: float
    """Share of the answers that have a value."""


@part
class PickedCandidate:
    """One checkpoint's answers, and what each rule picks of them."""

    name: str
    checkpoint: str
    prompts: int
    answers: int
    tokens: float
    """Mean of all its answers."""
    random: MeanOfPrompts
    """Share of the prompts in which an answer drawn at random is right."""
    oracle: MeanOfPrompts
    """Share in which any answer is."""
    rules: tuple[PickedBy, ...]
    """That which picks first."""


@part
class OrderedCandidates:
    """In how many candidates a rule's picks stand in order (NEX Fig. 7)."""

    by: str
    candidates: int
    best_over_worst: int
    """Best >= worst."""
    in_order: int
    """Best >= random >= worst."""


@artifact.artifact("pick.json")
class Picks:
    """What was picked, and how good each rule's picks are."""

    by: str
    """The rule of picks.jsonl."""
    weights: str
    """Where those of NEX came from: "given", "other prompts" of the same ranking, or "none"."""
    labelled: int
    """Prompts with an answer."""
    candidates: tuple[PickedCandidate, ...]
    overall: PickedCandidate | None
    """The mean over candidates; None for one, and where they answered different prompts."""
    ordered: tuple[OrderedCandidates, ...]
    """Empty without answers."""
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False
