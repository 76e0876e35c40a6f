"""What an early stop comes to: `early-stop.json`, its card, and how it is shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon import artifact
from surgeon.artifact import part
from surgeon.checkpoint import Checkpoint
from surgeon.checkpoint.card import card, markdown_table
from surgeon.console import announce, console, say, table, warn
from surgeon.early_stop.sweeping import StopPoint, front
from surgeon.neureasoner.detectors import DetectorReport
from surgeon.report.stopping import CurvePoint, StopsPage, stops_page

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "early-stop.html"
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
    """`+3.1 (+1 +5)`, in percentage points; ends to the whole one."""
    value, low, high = (100 * one for one in ends)
    return f"{value:+.1f} ({low:+.0f} {high:+.0f})"


def chance_warning(row: StopRow) -> str | None:
    """That the written rule is no better than stopping as often at random, if it isn't: neither
    clearly more right answers nor clearly fewer tokens."""
    at, over, tokens = row.test or row.chosen, row.over_random, row.tokens_over_random
    if at is None or over is None or tokens is None or over[1] > 0 or tokens[2] < 0:
        return None
    right, low, high = (100 * one for one in over)
    return (
        f"{row.rule} isn't told apart from stopping as often at random: {right:+.1f} pp right "
        f"answers ({low:+.1f} to {high:+.1f}), {tokens[0]:+.1f} tokens ({tokens[1]:+.1f} to "
        f"{tokens[2]:+.1f}); it decodes {at.share:.1%} of the tokens. Don't switch the monitor on."
    )


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
    say(f"checkpoint with its monitor in {result.out}; page: {result.out}/{PAGE}")


def rule_table(result: EarlyStop) -> "Table":
    """A row per rule."""
    # 80 columns don't hold them all.
    shown = [name for name in head_of(result) if name != "stopped"]
    found = table(*shown, left=["threshold"])
    found.padding = (0, 1)
    for row in rows_of(result):
        found.add_row(*(cell for name, cell in zip(head_of(result), row, strict=True)
                        if name in shown))  # fmt: skip
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


# --- the page -------------------------------------------------------------------------------------


def page_of(result: EarlyStop) -> str:
    """early-stop.html: every rule at its threshold, and the curves."""
    n, test = result.questions, bool(result.test_curves)
    judged = result.test_judged if test else result.judged
    measured = "right answers in %" if judged else "answers that agree with most others in %"
    curves = result.test_curves if test else result.curves
    row = next(row for row in result.rows if row.written)
    at, never = row.test or row.chosen, curves["never"][0]
    facts = [
        ("checkpoint", result.checkpoint, ""),
        ("rule that is written", result.rule, row.what),
        ("questions", f"{n['detectors'] + n['validation']:,}",
         f"detectors learn from {n['detectors']:,}, thresholds from {n['validation']:,}"),
        *([("test", f"{n['test']:,} questions", "")] if test else []),
        ("without a stop", f"{100 * never.right:.1f}%", f"{never.tokens:,.0f} tokens"),
    ]  # fmt: skip
    for level, report in result.detectors.items():
        value = report["step_ends"]["auroc"][0]
        shown = "-" if value is None else f"{value:.2f}"
        facts.append((f"AUROC of {level}", shown, "at step ends of questions it didn't learn from"))
    head = head_of(result)
    return stops_page(
        StopsPage(
            _headline(result, at), [], facts, result.warnings,
            [head[0], "ends the thinking", *head[1:]],
            [(cells[0], one.what, cells[1:])
             for cells, one in zip(rows_of(result), result.rows, strict=True)],
            {one.rule: _drawn(one, curves[one.rule], test) for one in result.rows},
            measured, _where(result),
        )
    )  # fmt: skip


def _drawn(row: StopRow, points: Sequence[StopPoint], test: bool) -> list[CurvePoint]:
    """A rule's curve, with the threshold that was chosen for it."""
    # Two thresholds make a cloud: what is best of it is drawn.
    shown = front(points) if row.rule == "both" else list(points)
    at = row.test if test else row.chosen
    if at is not None and row.rule != "never":
        shown = sorted([at, *(p for p in shown if p.value != at.value)], key=lambda p: p.tokens)
    return [CurvePoint(p.tokens, p.right, threshold_text(p.value), p is at) for p in shown]


def _headline(result: EarlyStop, at: StopPoint | None) -> str:
    if at is None:
        return f"No threshold of {result.rule} keeps the right answers: it never stops"
    value, low, high = (100 * one for one in at.over)
    return (
        f"Stopped by {result.rule}: {at.share:.0%} of the tokens, {value:+.1f} pp right answers "
        f"({low:+.1f} to {high:+.1f})"
    )


def _where(result: EarlyStop) -> str:
    if result.test_curves:
        return (
            f"On the {result.questions['test']:,} questions of the test. The ringed thresholds "
            "were chosen on others."
        )
    return (
        f"On the {result.questions['validation']:,} questions on which thresholds are chosen: give "
        "--test for figures that no threshold was fitted to."
    )
