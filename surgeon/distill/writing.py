"""What a distillation leaves: an adapter or a checkpoint, its card, and what is shown of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from surgeon import lineage
from surgeon.distill.evidence import Evidence, summary
from surgeon.distill.objective import Trained
from surgeon.distill.plan import METHODS, Plan
from surgeon.training import all_weights, trainable, write_adapter, write_full, write_merged

FILE = "distill.json"
WINDOW = 10
"""Steps at both ends of training that are averaged for the report."""
SHOWN = ("loss", "reward", "student_entropy", "teacher_entropy", "agreement", "length", "truncated")


def write(
    plan: Plan, evidence: Evidence, trained: Trained, work: Path, out: Path
) -> dict[str, Any]:
    """Write weights, card and `distill.json` into `work`, and give it its name."""
    accelerator = plan.accelerator
    result = conclusion(plan, evidence, trained)
    weights = trained.student.whole(
        dict(trainable(trained.student.model))
        if trained.adapter is not None
        else all_weights(trained.student.model)
    )
    if accelerator.is_main_process:
        if trained.adapter is None:
            write_full(plan.checkpoint, trained.student.model, weights, work)
        elif plan.settings["merge"]:
            write_merged(plan.checkpoint, trained.adapter, weights, work)
        else:
            write_adapter(plan.checkpoint, trained.adapter, weights, work)
        for state in (work / "training").glob("state-*"):
            shutil.rmtree(state)
        lineage.write_json(work / FILE, result)
        lineage.write_text(work / "README.md", card(plan, result))
        lineage.finish(work, out)
    accelerator.wait_for_everyone()
    return result


def conclusion(plan: Plan, evidence: Evidence, trained: Trained) -> dict[str, Any]:
    """The content of `distill.json`."""
    records = trained.history.records
    ends = {
        name: {
            "first": float(np.mean([r[name] for r in records[:WINDOW]])),
            "last": float(np.mean([r[name] for r in records[-WINDOW:]])),
        }
        for name in (*SHOWN, "tokens_per_s")
        if name in records[0]
    }
    finite = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in evidence.diagnostics.items()
    }
    return {
        "checkpoint": {"spec": plan.checkpoint.spec, "digest": plan.checkpoint.digest},
        "settings": {**plan.settings, "seed": plan.schedule.seed},
        "diagnostics": finite,
        "training": {"steps": len(records), "window": WINDOW, **ends},
        "warnings": [*evidence.warnings, *trained.history.warnings.values()],
        "result": "adapter" if is_adapter(plan) else "checkpoint",
    }


def is_adapter(plan: Plan) -> bool:
    """True when the output is a PEFT adapter."""
    return plan.tuning.weights == "lora" and not plan.settings["merge"]


# --- in words -------------------------------------------------------------------------------------


def card(plan: Plan, result: dict[str, Any]) -> str:
    """A README.md with the base, the method, what was seen before training and during it."""
    base, settings = plan.checkpoint, result["settings"]
    library = "peft" if is_adapter(plan) else "transformers"
    head = ["---", f"library_name: {library}"]
    hub = base.spec.partition("@")[0]
    if not Path(base.spec).exists() and "/" in hub and "+" not in hub and "#" not in hub:
        head += [f"base_model: {hub}"]
    what = "A PEFT adapter" if is_adapter(plan) else "A checkpoint"
    use = [f"Use it as `{base.spec}+DIR`.", ""] if is_adapter(plan) else []
    names = (
        "select", "share", "context", "shots", "sets", "activation", "top_global", "steps",
        "batch_size", "lr", "ema", "ema_rate", "tuning", "rank", "targets", "max_tokens", "seed",
    )  # fmt: skip
    if settings["method"] != "nopsd":
        names = ("samples", "answer", *names[names.index("steps") : names.index("ema")],
                 *names[names.index("tuning") :])  # fmt: skip
    lines = [
        *head, "tags:", "- surgeon", f"- {settings['method']}", "---",
        f"# {base.name}, distilled from itself", "",
        f"{what} made by {METHODS[settings['method']]}. No label was read.", "", *use,
        f"Base: {base.spec} (`{base.digest}`).", "",
        "| setting | |", "|---|---|", *(f"| {name} | {settings[name]} |" for name in names), "",
        "Before training:", "", "```", *summary(result["diagnostics"]), "```", "",
        *training_table(result), "",
        *(f"- Warning: {text}" for text in result["warnings"]),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def training_table(result: dict[str, Any]) -> list[str]:
    """First and last steps of training as a Markdown table."""
    told = result["training"]
    n = min(told["window"], told["steps"])
    rows = [
        f"| {name.replace('_', ' ')} | {told[name]['first']:.4g} | {told[name]['last']:.4g} |"
        for name in SHOWN
        if name in told
    ]
    return [f"| of {told['steps']} steps | first {n} | last {n} |", "|---|---|---|", *rows]


def show(result: dict[str, Any]) -> None:
    """Print a distillation: diagnostics, training, warnings, where the result is; of several
    processes the first one does."""
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    if not PartialState().is_main_process:
        return
    console = Console(highlight=False)
    if result.get("already"):
        console.print("This distillation was finished before: nothing was computed.")
    for line in summary(result["diagnostics"]):
        console.print(line, markup=False)
    told = result["training"]
    n = min(told["window"], told["steps"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{told['steps']} steps")
    table.add_column(f"first {n}", justify="right")
    table.add_column(f"last {n}", justify="right")
    for name in (*SHOWN, "tokens_per_s"):
        if name in told:
            ends = told[name]
            table.add_row(name.replace("_", " "), f"{ends['first']:.4g}", f"{ends['last']:.4g}")
    console.print(table)
    for line in result["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False)
    where = result["out"]
    if result["result"] == "adapter":
        console.print(f"adapter in {where}; use it as {result['checkpoint']['spec']}+{where}")
    else:
        console.print(f"checkpoint in {where}")
