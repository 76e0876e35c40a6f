"""A trigger SFT in words: its table of losses, and the model card."""

from pathlib import Path
from typing import Any

from surgeon.checkpoint import Checkpoint

KINDS = ("prefix", "wrong", "diagnose", "continuation")


def loss_table(losses: dict[str, dict[str, float]], n: int) -> Any:
    """The held-out loss of each part of an example, before and after."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"loss of {n} held-out examples")
    for when in ("before", "after"):
        table.add_column(when, justify="right")
    for kind in KINDS:
        if kind in losses["after"]:
            table.add_row(kind, *(f"{losses[when][kind]:.3f}" for when in ("before", "after")))
    return table


def card(base: Checkpoint, result: dict[str, Any]) -> str:
    """A README.md with the base, the method, the settings, and what was measured."""
    adapter, settings = result["result"] == "adapter", result["settings"]
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}"]
    hub = base.spec.partition("@")[0]
    if not Path(base.spec).exists() and "/" in hub and "+" not in hub and "#" not in hub:
        head += [f"base_model: {hub}"]
    names = ("tuning", "merge", "epochs", "lr", "warmup", "decay", "batch_size", "mask_wrong",
             "seed")  # fmt: skip
    if settings["tuning"] == "lora":
        names = (*names, "rank", "alpha", "targets")
    lines = [
        *head, "tags:", "- surgeon", "- neureasoner", "---",
        f"# {base.name}, with trigger tokens", "",
        f"{'A PEFT adapter' if adapter else 'A checkpoint'} made by fine-tuning on traces in which "
        "a trigger token follows a failing step and a diagnosis and repair the trigger (NeuReasoner"
        "). Without a monitor that forces the triggers it is an ordinary model.", "",
        *(["Use it as `" + base.spec + "+DIR`.", ""] if adapter else []),
        f"Base: {base.spec} (`{base.digest}`).", "",
        "Trigger tokens: " + ", ".join(f"`{n}` ({i})" for n, i in result["triggers"].items()) + ".",
        "", "| setting | |", "|---|---|", *(f"| {name} | {settings[name]} |" for name in names), "",
        f"{result['examples']['learned']} examples, {result['training']['steps']} steps.", "",
    ]  # fmt: skip
    losses = result["held_out_loss"]
    if losses["after"]:
        lines += [
            f"| loss of {result['examples']['held_out']} held-out examples | before | after |",
            "|---|---|---|",
            *(
                f"| {kind} | {losses['before'][kind]:.3f} | {losses['after'][kind]:.3f} |"
                for kind in KINDS
                if kind in losses["after"]
            ),
            "",
        ]
    if result["detectors"]:
        lines += [
            "`monitor.safetensors` watches it; on held-out problems, at step ends:", "",
            "| level | accuracy | recall | AUROC |", "|---|---|---|---|",
            *(
                f"| {level} | "
                + " | ".join(
                    "-" if value is None else f"{value:.3f}"
                    for value in (
                        report["step_ends"][name][0] for name in ("accuracy", "recall", "auroc")
                    )
                )
                + " |"
                for level, report in result["detectors"].items()
            ),
            "",
        ]  # fmt: skip
    lines += [f"- Warning: {text}" for text in result["warnings"]]
    return "\n".join(lines).rstrip() + "\n"
