"""A pick for people: the page, and the table of a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.console import announce, console, say, table, warn
from surgeon.judges.wording import question_of
from surgeon.pick.comparing import choices
from surgeon.pick.gathered import Answers
from surgeon.pick.picks import MeanOfPrompts, PickedBy, PickedCandidate, Picks
from surgeon.pick.plan import PickPlan
from surgeon.report.picked import (
    CandidateRow,
    PickColumn,
    PickedAnswer,
    PickedPrompt,
    PickNumber,
    PickPage,
    PickShelf,
    ShownRule,
    write_picked,
)
from surgeon.report.words import grouped, signed
from surgeon.scoring.rules import values_of

if TYPE_CHECKING:
    from rich.table import Table

SAME = PickColumn("Same pick", "% of prompts", 0)
TOKENS = PickColumn("Tokens", "of its picks", 0)
JUDGED = (
    PickColumn("Right", "%", 1, charted=True),
    PickColumn("Over random", "pp", 1, charted=True),
    PickColumn("Worst", "%", 1),
    TOKENS,
    PickColumn("Tokens of right", "less random's", 0, charted=True),
    PickColumn("Words of right", "less random's", 2),
    SAME,
)
UNJUDGED = (TOKENS._replace(charted=True), SAME)
LEARNED = {
    "given": "Neuron weights were given.",
    "other prompts": "Each prompt's answers were scored with weights learned from the other "
    "prompts.",
}


def write_page(plan: PickPlan, gathered: Sequence[Answers], work: Path, result: Picks) -> None:
    """Write report.html and the answers of every prompt beside it."""
    names = [answers.source.name for answers in gathered]
    texts = {prompt.id: question_of(list(prompt.messages)) for prompt in plan.prompts}
    shelf = PickShelf(work, names, list(plan.rules), texts)
    for place, answers in enumerate(gathered):
        values = [values_of(n, rule, answers.rows) for n, rule in plan.rules.items()]
        ranked = answers.source.ranked
        told = ranked is None or ranked.traces is not None
        for choice in choices(plan.rules, answers.rows, plan.settings.seed):
            found = []
            for n in choice.members:
                row, trace = answers.rows[n], answers.traces[n]
                right = None if "correct" not in row else bool(row["correct"])
                found.append(PickedAnswer(
                    int(row["sample"]), int(row["tokens"]), right, bool(row["finished"]),
                    row.get("answer"), [float(v[n]) for v in values], trace.text if told else None,
                ))  # fmt: skip
            picks = [choice.members.index(n) for n in choice.picks.values()]
            shelf.add(PickedPrompt(place, choice.prompt_id, found, picks))
    write_picked(page_of(plan, result, shelf), shelf)


def page_of(plan: PickPlan, result: Picks, shelf: PickShelf) -> PickPage:
    """What the page says above the prompts."""
    judged = result.labelled > 0
    of = result.overall or result.candidates[0]
    same = [
        sum(line[-1][n] == line[-1][0] for line in shelf.lines) / max(1, len(shelf.lines))
        for n in range(len(shelf.rules))
    ]
    rules = [
        ShownRule(rule.by, plan.rules[rule.by].what, _numbers_of(rule, share, judged))
        for rule, share in zip(of.rules, same, strict=True)
    ]
    if judged:
        blank = [PickNumber(None)] * (len(JUDGED) - 1)
        for name, what in (("random", "a fair draw"), ("oracle", "a right answer, if any is")):
            if name not in plan.rules:
                number = _number(getattr(of, name), 100)
                rules.append(ShownRule(name, what, [number, *blank]))
    ordered = result.ordered[0] if result.ordered else None
    facts = [
        ("picked by", result.by, plan.rules[result.by].what),
        ("candidates", grouped(len(result.candidates)), ""),
        ("prompts", grouped(of.prompts), f"{grouped(result.labelled)} with an answer"),
        ("answers", grouped(sum(c.answers for c in result.candidates)),
         f"{signed(of.tokens, 0)} tokens on average"),
    ]  # fmt: skip
    if ordered is not None and ordered.candidates > 1:
        facts.append((
            "best ≥ random ≥ worst", f"{ordered.in_order} of {ordered.candidates}",
            f"best ≥ worst: {ordered.best_over_worst}; the paper: 16 and 19 of 20",
        ))  # fmt: skip
    about = f"the mean over {len(result.candidates)} candidates" if result.overall else of.name
    notes = [f"Below: {about}, with 95% intervals (prompts resampled)."]
    if judged:
        notes.append(
            "Of right: right picks less right answers drawn at random, where a prompt has several. "
            "Equal values are a fair draw."
        )
    return PickPage(
        headline=headline(result, of),
        leads=[LEARNED[result.weights]] if result.weights in LEARNED else [],
        warnings=result.warnings,
        facts=facts,
        columns=JUDGED if judged else UNJUDGED,
        rules=rules,
        candidate_columns=_candidate_columns(of, judged),
        candidates=[CandidateRow(c.name, _candidate_numbers(c, judged)) for c in result.candidates],
        notes=notes,
    )


def headline(result: Picks, of: PickedCandidate) -> str:
    """What the first rule's picks are worth, in a sentence."""
    first, per = of.rules[0], of.answers / max(1, of.prompts)
    per /= len(result.candidates) if of is result.overall else 1
    low, high = first.over_random.interval
    if not result.labelled or low is None or high is None:
        return f"The best of {per:.3g} answers to {of.prompts} prompts, by {result.by}."
    told = "more often than a random one" if low > 0 else "no more often than a random one"
    if high < 0:
        told = "less often than a random one"
    return (
        f"By {result.by}, the best of {per:.3g} is right in {100 * first.right.value:.1f}% of the "
        f"prompts: {told} ({signed(100 * first.over_random.value, 1)} pp, "
        f"{signed(100 * low, 1)} to {signed(100 * high, 1)})."
    )


def _number(figure: MeanOfPrompts, times: float = 1.0) -> PickNumber:
    low, high = figure.interval
    if math.isnan(figure.value) or low is None or high is None:
        return PickNumber(None)
    return PickNumber(times * figure.value, times * low, times * high)


def _numbers_of(rule: PickedBy, same: float, judged: bool) -> list[PickNumber]:
    tokens, share = _number(rule.tokens), PickNumber(100 * same)
    if not judged:
        return [tokens, share]
    return [
        _number(rule.right, 100), _number(rule.over_random, 100), _number(rule.worst, 100), tokens,
        _number(rule.right_tokens), _number(rule.right_words), share,
    ]  # fmt: skip


def _candidate_columns(of: PickedCandidate, judged: bool) -> list[PickColumn]:
    columns = [PickColumn("Tokens", "per answer", 0)]
    if not judged:
        return [*columns, *(PickColumn(rule.by, "tokens", 0) for rule in of.rules)]
    right = [PickColumn(name, "right, %", 1) for name in ("random", "oracle")]
    return [*columns, *right, *(PickColumn(rule.by, "right, %", 1) for rule in of.rules)]


def _candidate_numbers(candidate: PickedCandidate, judged: bool) -> list[PickNumber]:
    tokens = PickNumber(candidate.tokens)
    if not judged:
        return [tokens, *(_number(rule.tokens) for rule in candidate.rules)]
    ends = [_number(candidate.random, 100), _number(candidate.oracle, 100)]
    return [tokens, *ends, *(_number(rule.right, 100) for rule in candidate.rules)]


# --- what is printed ------------------------------------------------------------------------------


def show(result: Picks) -> None:
    """Print what each rule's picks are worth, and where the picks are."""
    announce(result.already, "This pick")
    shown = result.overall or (result.candidates[0] if len(result.candidates) == 1 else None)
    for candidate in [shown] if shown is not None else result.candidates:
        n = len(result.candidates) if candidate is result.overall else 1
        per = candidate.answers / max(1, candidate.prompts) / n
        about = f"{n} candidates" if candidate is result.overall else candidate.name
        say(f"{about}: the best of {per:.3g} answers to {candidate.prompts} prompts, by each rule")
        console().print(rule_table(result, candidate))
    if result.ordered:
        first = result.ordered[0]
        if first.candidates > 1:
            say(
                f"By {first.by}, best >= worst in {first.best_over_worst} of {first.candidates} "
                f"candidates, best >= random >= worst in {first.in_order} (NEX Fig. 7: 19 and 16 "
                "of 20)."
            )
    if result.weights == "other prompts":
        say("Each prompt's answers were scored with weights learned from the other prompts.")
    if result.labelled:
        say(
            "In brackets: 95 %, prompts resampled. The last two columns: tokens, and words such as "
            "'wait', of right picks less those of right answers at random."
        )
    warn(result.warnings)
    traces = any((result.out / "picked").iterdir())
    say(f"Picks: {result.out}/picks.jsonl" + (f"; as traces: {result.out}/picked" * traces))
    page = result.out / "report.html"
    if page.is_file():
        say(f"Any prompt's answers: {page}")


def rule_table(result: Picks, candidate: PickedCandidate) -> "Table":
    """Every rule's row, and random and oracle where answers are known."""
    judged = result.labelled > 0
    scores = ["right %", "over random", "worst %", "tokens", "of right", "words"]
    found = table("picked by", *(scores if judged else ["tokens"]))
    for rule in candidate.rules:
        tokens = f"{rule.tokens.value:.0f}"
        cells = [
            shown(rule.right, 100, "{:.1f}"), shown(rule.over_random, 100, "{:+.1f}"),
            shown(rule.worst, 100, "{:.1f}", ends=False), tokens,
            shown(rule.right_tokens, 1, "{:+.0f}"),
            shown(rule.right_words, 1, "{:+.2f}", ends=False),
        ]  # fmt: skip
        found.add_row(rule.by, *(cells if judged else [tokens]))
    if judged:
        tokens = f"{candidate.tokens:.0f}"
        found.add_row("random", shown(candidate.random, 100, "{:.1f}"), "", "", tokens, "", "")
        found.add_row("oracle", shown(candidate.oracle, 100, "{:.1f}"), *[""] * 5)
    return found


def shown(figure: MeanOfPrompts, times: float, form: str, *, ends: bool = True) -> str:
    """A figure with its interval; a dash without a value."""
    low, high = figure.interval
    if math.isnan(figure.value) or low is None or high is None:
        return "-"
    value = form.format(times * figure.value)
    return f"{value} ({times * low:.0f} {times * high:.0f})" if ends else value
