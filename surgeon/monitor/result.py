"""What a monitored run came to: `monitor.json`, and how it is shown at a terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from surgeon.artifact import Already, artifact, part
from surgeon.console import announce, console, say, table, warn
from surgeon.truth import DecodingTime

if TYPE_CHECKING:
    from rich.console import Console

FILE = "monitor.json"
COLOURS = {"intra": "red", "inter": "yellow", "instance": "cyan", "enough": "green"}


@part
class TokenCounts:
    """Tokens of the answers."""

    mean: float
    """Of an answer; the mean over prompts."""
    interval: tuple[float, float]
    """95 % interval of the mean, by prompt."""
    total: int
    forced: int
    """Those that the monitor chose."""
    redrawn: int = 0
    """Tokens that were decoded beside those of the answers, for steps that were drawn anew."""


@part
class FiringCounts:
    """How often a level fired, and how often it could have."""

    firings: int
    per_response: float
    responses: int
    """Answers in which it fired."""
    readings: int
    """Step ends at which its detector was read."""
    rate: float | None
    """Firings per reading at which it could have fired: what `random_rate` takes."""
    threshold: float


@part
class PassRate:
    """Accuracy of one response, over the prompts that have an answer."""

    value: float
    interval: tuple[float, float]
    """95 % interval, by prompt."""
    problems: int
    missing: int
    """Responses in which no answer was found."""


@part
class VanillaRun:
    """The same answers without the monitor, and what the monitor changed: paired, by prompt."""

    tokens: float
    """Of an answer; the mean over prompts."""
    truncated: float
    pass1: PassRate | None
    pass1_change: tuple[float, float, float] | None
    """Monitored less vanilla: [mean, low, high], 95 %."""
    tokens_change: tuple[float, float, float]
    """Of an answer, likewise; with the tokens of steps that were drawn anew."""
    time: DecodingTime | None
    """None where all answers were on disk already."""


@part
class DrawnAnswer:
    """The answer in `report.html`."""

    prompt_id: str
    sample: int


@part
class TextPart:
    """A stretch of an answer's text; with a level where that level's firing forced it."""

    text: str
    level: str | None = None
    probability: float | None = None
    """Of the firing."""


@part
class AnswerText:
    """The text of an answer to a single prompt, in parts."""

    sample: int
    of: int
    """Answers to the prompt."""
    tokens: int
    finish_reason: str
    parts: tuple[TextPart, ...]


@artifact(FILE)
class MonitoredRun:
    """What a monitored run came to."""

    checkpoint: str
    digest: str
    settings: dict[str, Any]
    """Flat names of `MonitorSettings`; `levels` and `random_rate` as they were found out."""
    prompts: int
    responses: int
    tokens: TokenCounts
    finished: float
    """Share of the answers that came to their end."""
    truncated: float
    """Share of the answers that were cut at the limit of tokens, or of the context."""
    levels: dict[str, FiringCounts]
    """By watched level."""
    pass1: PassRate | None
    """None where no prompt has an answer."""
    warnings: tuple[str, ...]
    time: DecodingTime | None = None
    """None where all answers were on disk already."""
    vanilla: VanillaRun | None = None
    """None unless it was asked for (`with_vanilla`)."""
    drawn: DrawnAnswer | None = None
    """None where no level is watched, or nothing was written."""
    texts: Annotated[tuple[AnswerText, ...], Field(exclude=True)] = ()
    """Of a single prompt's answers."""
    out: Annotated[Path | None, Field(exclude=True)] = None
    already: Already = False


def show(run: MonitoredRun) -> None:
    """Print a monitored run: the text of a single prompt's answers, the firings, the counts."""
    announce(run.already, "This run")
    for answer in run.texts:
        _show_text(console(), answer)
    _show_levels(run)
    if run.settings["random_rate"]:
        say("Fired at random, at these rates; no detector was asked.", style="dim")
    line = (
        f"{run.responses} responses to {run.prompts} prompts, {run.tokens.mean:.0f} tokens each "
        f"({run.tokens.forced} of {run.tokens.total} forced), {run.truncated:.0%} truncated"
    )
    if run.tokens.redrawn:
        line += f"; {run.tokens.redrawn / run.responses:.0f} tokens more each for new draws"
    if run.pass1 is not None:
        low, high = run.pass1.interval
        line += f"; Pass@1 {run.pass1.value:.3f} ({low:.3f} … {high:.3f})"
        line += f" on {run.pass1.problems} labelled prompts"
    say(f"{line}.")
    if run.time is not None:
        say(_time_line(run.time))
    if run.vanilla is not None:
        _show_vanilla(run, run.vanilla)
    warn(run.warnings)
    if run.out is not None:
        say(f"Written: {run.out}")
        if run.drawn is not None:
            which = f"prompt {run.drawn.prompt_id}, sample {run.drawn.sample}"
            say(f"Report: {run.out}/report.html ({which})")


def _time_line(time: DecodingTime) -> str:
    return (
        f"{time.answers} answers decoded in {time.seconds:.1f} s on {time.device}, "
        f"{time.tokens_per_s:,.0f} tokens/s."
    )


def _show_vanilla(run: MonitoredRun, plain: VanillaRun) -> None:
    """Print what the monitor changed against the same answers without it."""
    rows = table("", "without", "with", "change (95% paired)")
    if run.pass1 is not None and plain.pass1 is not None and plain.pass1_change is not None:
        middle, low, high = (100 * value for value in plain.pass1_change)
        rows.add_row(
            "Pass@1", f"{plain.pass1.value:.3f}", f"{run.pass1.value:.3f}",
            f"{middle:+.1f} pp ({low:+.1f} to {high:+.1f})",
        )  # fmt: skip
    middle, low, high = plain.tokens_change
    share = middle / plain.tokens if plain.tokens else 0.0
    rows.add_row(
        "tokens decoded", f"{plain.tokens:.0f}", f"{plain.tokens + middle:.0f}",
        f"{middle:+.0f} ({low:+.0f} to {high:+.0f}), {share:+.1%}",
    )  # fmt: skip
    if run.time is not None and plain.time is not None:
        for name, of in (("seconds per answer", _per_answer), ("tokens/s", _pace)):
            before, after = of(plain.time), of(run.time)
            change = f"{after / before - 1:+.1%}" if before else ""
            rows.add_row(name, f"{before:.3g}", f"{after:.3g}", change)
    console().print(rows)


def _per_answer(time: DecodingTime) -> float:
    return time.seconds / time.answers


def _pace(time: DecodingTime) -> float:
    return time.tokens_per_s


def _show_levels(run: MonitoredRun) -> None:
    if not run.levels:
        say("No level was watched: no firings, and no report.")
        return
    rows = table(
        "level", "firings", "per response", "in responses", "readings", "rate", "threshold"
    )
    for level, row in run.levels.items():
        rows.add_row(
            level, f"{row.firings}", f"{row.per_response:.2f}",
            f"{row.responses} of {run.responses}", f"{row.readings}",
            "–" if row.rate is None else f"{row.rate:.3f}", f"{row.threshold:.3f}",
        )  # fmt: skip
    console().print(rows)


def _show_text(console: "Console", answer: AnswerText) -> None:
    """The text of an answer; what was forced stands out, with the level and its probability."""
    from rich.text import Text

    if answer.of > 1:
        console.rule(f"sample {answer.sample}", align="left")
    text = Text()
    for one in answer.parts:
        if one.level is None:
            text.append(one.text)
            continue
        colour = COLOURS[one.level]
        text.append(f"[{one.level} {one.probability:.2f}]", style=f"bold reverse {colour}")
        text.append(one.text, style=f"bold {colour}")
    console.print(text, soft_wrap=True)
    end = "its limit of tokens" if answer.finish_reason == "length" else "a stop token"
    console.print(f"({answer.tokens} tokens, ended by {end})\n", style="dim")
