"""What a monitored run came to: counted, and shown at a terminal."""

# Shape letters: P prompts.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon import metrics
from surgeon.answers import check_many, read_answers
from surgeon.monitor.answering import Kept, text_of
from surgeon.monitor.plan import Plan
from surgeon.traces import Trace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WORTH_SAYING = 0.2
"""Share of truncated responses above which a warning is given."""


def summarise(plan: Plan, kept: Kept) -> dict[str, Any]:
    """The content of monitor.json."""
    place = {prompt.id: n for n, prompt in enumerate(plan.prompts)}
    traces = sorted(kept.traces, key=lambda trace: (place[trace.prompt_id], trace.sample))
    truncated = float(np.mean([trace.finish_reason == "length" for trace in traces]))
    lengths_P = [len(trace.token_ids) for trace in traces]
    tokens_P = np.reshape(lengths_P, (-1, plan.sampling.samples)).mean(1)
    result: dict[str, Any] = {
        "checkpoint": plan.checkpoint.spec,
        "digest": plan.checkpoint.digest,
        "settings": plan.settings,
        "prompts": len(plan.prompts),
        "responses": len(traces),
        "tokens": {
            "mean": float(tokens_P.mean()),
            "interval": list(metrics.bootstrap_interval(tokens_P, seed=plan.sampling.seed)),
            "total": sum(lengths_P),
            "forced": sum(row["tokens"] for row in kept.firings),
        },
        "finished": 1 - truncated,
        "truncated": truncated,
        "levels": {level: level_counts(plan, level, kept) for level in plan.levels},
        "pass1": pass_at_1(plan, traces),
        "warnings": [],
    }
    if truncated > WORTH_SAYING:
        result["warnings"].append(
            f"{truncated:.0%} of the responses hit the limit of {plan.sampling.max_tokens} tokens."
        )
    return result


def level_counts(plan: Plan, level: str, kept: Kept) -> dict[str, Any]:
    """How often a level fired, and how often it could have."""
    mine = [row for row in kept.firings if row["level"] == level]
    read = [r for row in kept.readings for r in row["readings"] if r["level"] == level]
    chances = sum(r["open"] for r in read)
    return {
        "firings": len(mine),
        "per_response": len(mine) / len(kept.traces),
        "responses": len({(row["prompt_id"], row["sample"]) for row in mine}),
        "readings": len(read),
        # Firings per reading at which it could have fired: what `random_rate` takes.
        "rate": plan.rates[level] if plan.rates else len(mine) / chances if chances else None,
        "threshold": float(plan.monitor.detectors[level].threshold),
    }


def pass_at_1(plan: Plan, traces: Sequence[Trace]) -> dict[str, Any] | None:
    """Accuracy of one response over the prompts that have an answer; None where none has."""
    gold = {p.id: p.answer for p in plan.prompts if p.answer is not None}
    judged = [trace for trace in traces if trace.prompt_id in gold]
    if not judged:
        return None
    found = read_answers(judged, plan.extract, plan.tokenizer)
    pairs = [(a, str(gold[t.prompt_id])) for a, t in zip(found, judged, strict=True)]
    verdicts = check_many(pairs, plan.settings["check"], timeout_s=plan.settings["timeout_s"])
    right = np.reshape([verdict.correct for verdict in verdicts], (-1, plan.sampling.samples))
    right_P = right.mean(1)
    return {
        "value": float(right_P.mean()),
        "interval": list(metrics.bootstrap_interval(right_P, seed=plan.sampling.seed)),
        "problems": len(right_P),
        "missing": sum(answer is None for answer in found),
    }


def shown(plan: Plan, kept: Kept) -> list[dict[str, Any]]:
    """The text of each answer in parts: those that were forced name their level."""
    found = []
    for trace in sorted(kept.traces, key=lambda trace: trace.sample):
        ids = trace.token_ids
        last = len(ids) - (trace.finish_reason == "stop")
        parts: list[dict[str, Any]] = []
        at = 0
        for row in kept.firings:
            if (row["prompt_id"], row["sample"]) == (trace.prompt_id, trace.sample):
                parts.append({"text": text_of(plan.tokenizer, ids[at : row["position"]])})
                parts.append(
                    {"text": row["forced"], **{k: row[k] for k in ("level", "probability")}}
                )
                at = row["position"] + row["tokens"]
        parts.append({"text": text_of(plan.tokenizer, ids[at:last])})
        found.append(
            {
                "sample": trace.sample,
                "of": plan.sampling.samples,
                "tokens": len(ids),
                "finish_reason": trace.finish_reason,
                "parts": parts,
            }
        )
    return found


# --- what is shown --------------------------------------------------------------------------------

COLOURS = {"intra": "red", "inter": "yellow", "instance": "cyan"}


def table(result: dict[str, Any]) -> "Table":
    """The firings by level."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("level")
    for name in ("firings", "per response", "in responses", "readings", "rate", "threshold"):
        shown.add_column(name, justify="right")
    for level, row in result["levels"].items():
        rate = "–" if row["rate"] is None else f"{row['rate']:.3f}"
        shown.add_row(
            level, f"{row['firings']}", f"{row['per_response']:.2f}",
            f"{row['responses']} of {result['responses']}", f"{row['readings']}", rate,
            f"{row['threshold']:.3f}",
        )  # fmt: skip
    return shown


def show(result: dict[str, Any]) -> None:
    """Print a monitored run: the text of a single prompt's answers, the firings, the counts."""
    from rich.console import Console

    console = Console(highlight=False)
    if result.get("already"):
        console.print("This run was finished before: nothing was computed.")
    for response in result.get("shown", []):
        print_response(console, response)
    if result["levels"]:
        console.print(table(result))
    else:
        console.print("No level was watched: no firings, and no report.")
    if result["settings"]["random_rate"]:
        console.print("Fired at random, at these rates; no detector was asked.", style="dim")
    tokens = result["tokens"]
    line = (
        f"{result['responses']} responses to {result['prompts']} prompts, {tokens['mean']:.0f} "
        f"tokens each ({tokens['forced']} of {tokens['total']} forced), "
        f"{result['truncated']:.0%} truncated"
    )
    if result["pass1"] is not None:
        low, high = result["pass1"]["interval"]
        line += f"; Pass@1 {result['pass1']['value']:.3f} ({low:.3f} … {high:.3f})"
        line += f" on {result['pass1']['problems']} labelled prompts"
    console.print(f"{line}.", markup=False, soft_wrap=True)
    for warning in result["warnings"]:
        console.print(f"Warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if result["out"] is not None:
        console.print(f"Written: {result['out']}", markup=False, soft_wrap=True)
        if (drawn := result["drawn"]) is not None:
            which = f"prompt {drawn['prompt_id']}, sample {drawn['sample']}"
            report = f"Report: {result['out']}/report.html ({which})"
            console.print(report, markup=False, soft_wrap=True)


def print_response(console: "Console", response: dict[str, Any]) -> None:
    """The text of an answer; what was forced stands out, with the level and its probability."""
    from rich.text import Text

    if response["of"] > 1:
        console.rule(f"sample {response['sample']}", align="left")
    text = Text()
    for part in response["parts"]:
        if "level" not in part:
            text.append(part["text"])
            continue
        colour = COLOURS[part["level"]]
        text.append(f"[{part['level']} {part['probability']:.2f}]", style=f"bold reverse {colour}")
        text.append(part["text"], style=f"bold {colour}")
    console.print(text, soft_wrap=True)
    end = "its limit of tokens" if response["finish_reason"] == "length" else "a stop token"
    console.print(f"({response['tokens']} tokens, ended by {end})\n", style="dim")
