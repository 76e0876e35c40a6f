"""What a distillation leaves: an adapter or a checkpoint, its card, and what is shown of it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgeon import lineage
from surgeon.checkpoint import TORCH_NAMES, Checkpoint, merge_adapter
from surgeon.distill.evidence import Evidence, summary
from surgeon.distill.objective import Trained
from surgeon.distill.plan import METHODS, Plan
from surgeon.errors import BadInput
from surgeon.training import trainable

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
            write_full(plan, trained, weights, work)
        else:
            write_adapter(plan.checkpoint, trained.adapter, weights, work)
            if plan.settings["merge"]:
                write_merged(plan.checkpoint, work)
        for state in (work / "training").glob("state-*"):
            shutil.rmtree(state)
        lineage.write_json(work / FILE, result)
        lineage.write_text(work / "README.md", card(plan, result))
        lineage.finish(work, out)
    accelerator.wait_for_everyone()
    return result


def all_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and stored buffers by name, a tied one once."""
    every = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: t for name, t in model.state_dict().items() if name not in every}
    return {**dict(model.named_parameters()), **buffers}


def conclusion(plan: Plan, evidence: Evidence, trained: Trained) -> dict[str, Any]:
    """The content of `distill.json`."""
    records = trained.records
    ends = {
        name: {
            "first": float(np.mean([r[name] for r in records[:WINDOW]])),
            "last": float(np.mean([r[name] for r in records[-WINDOW:]])),
        }
        for name in (*SHOWN, "tokens_per_s")
        if name in records[0]
    }
    during = [text for record in records for text in record.get("warnings", {}).values()]
    finite = {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in evidence.diagnostics.items()
    }
    return {
        "checkpoint": {"spec": plan.checkpoint.spec, "digest": plan.checkpoint.digest},
        "settings": {**plan.settings, "seed": plan.schedule.seed},
        "diagnostics": finite,
        "training": {"steps": len(records), "window": WINDOW, **ends},
        "warnings": [*evidence.warnings, *during],
        "result": "adapter" if is_adapter(plan) else "checkpoint",
    }


def is_adapter(plan: Plan) -> bool:
    """True when the output is a PEFT adapter."""
    return plan.tuning.weights == "lora" and not plan.settings["merge"]


def write_adapter(
    base: Checkpoint, adapter: Any, weights: dict[str, torch.Tensor], out: Path
) -> None:
    """A PEFT adapter directory, loadable as BASE+DIR."""
    from safetensors.torch import save_file

    config = adapter.peft_config["default"]
    config.base_model_name_or_path = (
        base.spec if not base.spec.startswith("builtin:") and "+" not in base.spec else ""
    ) or str(base.path)
    config.inference_mode = True
    config.save_pretrained(str(out))
    save_file(
        {
            "base_model.model." + name.replace(".default.", "."): tensor.contiguous()
            for name, tensor in weights.items()
        },
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )


def write_merged(base: Checkpoint, work: Path) -> None:
    """Turn an adapter directory into the checkpoint it makes of its base: merged in float32, then
    cast to the base's dtype."""
    adapter = work / "adapter"
    adapter.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (work / name).replace(adapter / name)
    merged = merge_adapter(base, adapter, f"{base.spec}+adapter", work / "merge")
    for file in merged.path.iterdir():
        file.replace(work / file.name)
    shutil.rmtree(work / "merge")
    shutil.rmtree(adapter)


def write_full(plan: Plan, trained: Trained, weights: dict[str, torch.Tensor], out: Path) -> None:
    """The trained checkpoint, each weight in the dtype it has in the base's files."""
    stored = {name: info.dtype for name, info in plan.checkpoint.tensors.items()}
    usual = next(iter(stored.values()))  # for weights that transformers renames or fuses on load
    cast = {
        name: tensor.to(getattr(torch, TORCH_NAMES[stored.get(name, usual)]))
        for name, tensor in weights.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in cast.values()):
        raise BadInput("a weight is not finite after training; lower the learning rate.")
    model: Any = trained.student.model
    model.config.dtype = getattr(torch, TORCH_NAMES[usual])
    model.save_pretrained(out, state_dict=cast)
    for file in plan.checkpoint.side_files:
        if file.name != "config.json":
            shutil.copy2(file, out)


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
    """Print a distillation: diagnostics, training, warnings, where the result is."""
    from rich.console import Console
    from rich.table import Table

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
