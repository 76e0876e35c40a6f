"""What an early stop comes to: `early-stop.json`, its card, and how it is shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import artifact
from surgeon.artifact import part
from surgeon.checkpoint import Checkpoint
from surgeon.checkpoint.card import card, markdown_table
from surgeon.console import announce, console, say, table, warn
from surgeon.early_stop.sweeping import StopPoint
from surgeon.neureasoner.detectors import DetectorReport

if TYPE_CHECKING:
    from rich.table import Table

Ends = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


@part
class StopRow:
    """A rule at the threshold that was chosen for it."""

    rule: str
    what: str
    written: bool
    """The monitor carries this one."""
    chosen: StopPoint | None
    """On the questions on which thresholds are set; None where each may lose too many answers. That
    of random is not chosen: it stops as often, of the places it passes, as the written rule."""
    test: StopPoint | None
    over_random: Ends | None
    """Right answers less those of random: on the test, or without one where thresholds are set."""
    tokens_over_random: Ends | None


@artifact.artifact("early-stop.json")
class EarlyStop:
    """When to end a checkpoint's thinking, and what comes of it."""

    checkpoint: str
    digest: str
    settings: dict[str, Any]
    judged: bool
    """Answers are right by the questions' own; else by agreement."""
    test_judged: bool
    questions: dict[str, int]
    """For detectors, validation and test."""
    labels: dict[str, float]
    """enough: share of the places at which a forced answer is right; right: of the answers that
    ended themselves."""
    channels: dict[str, Any]
    """Level -> layer, units and heads."""
    detectors: dict[str, DetectorReport]
    rule: str
    """The rule that the monitor carries."""
    rows: tuple[StopRow, ...]
    curves: dict[str, tuple[StopPoint, ...]]
    """Rule -> its points, where thresholds are set."""
    test_curves: dict[str, tuple[StopPoint, ...]]
    warnings: tuple[str, ...]
    out: artifact.Out = Path()
    already: artifact.Already = False


def threshold_text(value: Any) -> str:
    """A threshold in a cell: three digits."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ".join(threshold_text(one) for one in value)
    return value if isinstance(value, str) else f"{value:.3g}"


def head_of(result: EarlyStop) -> list[str]:
    """The columns of the table of rules."""
    judged = result.test_judged if result.questions["test"] else result.judged
    right = "right %" if judged else "agreeing %"
    return [
        "rule",
        "threshold",
        right,
        "over never",
        "tokens",
        "of never",
        "stopped",
        "over random",
    ]


def rows_of(result: EarlyStop) -> list[list[str]]:
    """The table of rules: on the test, or without one where thresholds are set."""
    return [_cells(row, row.test or row.chosen) for row in result.rows]


def _cells(row: StopRow, at: StopPoint | None) -> list[str]:
    name = f"{row.rule} *" if row.written else row.rule
    if at is None:
        return [name, "none", *[""] * 6]
    return [
        name, threshold_text(at.value), f"{100 * at.right:.1f}", ends_text(at.over),
        f"{at.tokens:.0f}", f"{at.share:.0%}", f"{at.stopped:.0%}",
        "" if row.over_random is None else ends_text(row.over_random),
    ]  # fmt: skip


def ends_text(ends: Ends) -> str:
    """`+3.1 (+1 +5)`, in percentage points."""
    value, low, high = (100 * one for one in ends)
    return f"{value:+.1f} ({low:+.1f} {high:+.1f})"


def show(result: EarlyStop) -> None:
    """Print the rules, the detectors, and where the stopper is."""
    announce(result.already, "This early stop")
    n = result.questions
    for level, report in result.detectors.items():
        auroc, at = report["step_ends"]["auroc"], report["step_ends"]["n"]
        value = "-" if auroc[0] is None else f"{auroc[0]:.2f} ({auroc[1]:.2f}-{auroc[2]:.2f})"
        say(f"detector of {level}: AUROC {value} at {at} step ends of held-out questions")
    where = f"{n['test']} test questions" if n["test"] else f"{n['validation']} questions"
    say(f"Thresholds from {n['validation']} questions; the figures are of {where}:")
    console().print(rule_table(result))
    say(
        "* written. In brackets: 95 %, paired, questions resampled. Thresholds: the fewest tokens "
        f"that lose at most {result.settings['margin']:.1%}; random stops as often as *."
    )
    warn(result.warnings)
    say(f"checkpoint with its monitor in {result.out}")


def rule_table(result: EarlyStop) -> "Table":
    """A row per rule."""
    found = table(*head_of(result), left=["threshold"])
    for row in rows_of(result):
        found.add_row(*row)
    return found


def card_of(base: Checkpoint, result: EarlyStop) -> str:
    """A README.md with the base, what the monitor does, and what was measured."""
    n = result.questions
    return card(
        f"{base.name}, with a monitor that ends its thinking",
        [
            "The weights are those of the base. `monitor.safetensors` says when the thinking is "
            f"ended: rule `{result.rule}`. Answer with it by `surgeon monitor DIR --prompts FILE "
            "--out DIR`, or serve it with `surgeon serve DIR`.",
            f"Base: {base.spec} (`{base.digest}`).",
            markdown_table(head_of(result), rows_of(result)),
            f"Thresholds from {n['validation']} questions; the figures are of "
            + (f"{n['test']} other ones." if n["test"] else "the same."),
        ],
        parents=[base],
    )
