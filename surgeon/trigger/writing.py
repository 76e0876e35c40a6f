"""What trigger SFT leaves: a checkpoint or an adapter that knows the triggers, and its card."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon.checkpoint import TORCH_NAMES, Checkpoint, merge_adapter
from surgeon.errors import BadInput
from surgeon.trigger.training import prepare_rows

MERGED = "merged"
"""A temporary directory in the work of a run."""


def write_full(base: Checkpoint, model: Any, tokenizer: Any, out: Path) -> None:
    """The trained checkpoint, each weight in the dtype it has in the base's files."""
    import torch

    stored = {name: info.dtype for name, info in base.tensors.items()}
    usual = next(iter(stored.values()))  # for weights that transformers renames or fuses on load
    every = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: t for name, t in model.state_dict().items() if name not in every}
    cast = {
        name: tensor.detach().to("cpu", getattr(torch, TORCH_NAMES[stored.get(name, usual)]))
        for name, tensor in {**dict(model.named_parameters()), **buffers}.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in cast.values()):
        raise BadInput("a weight is not finite after training; lower the learning rate.")
    model.config.dtype = getattr(torch, TORCH_NAMES[usual])
    model.save_pretrained(out, state_dict=cast)
    write_side_files(base, tokenizer, out)


def write_side_files(base: Checkpoint, tokenizer: Any, out: Path) -> None:
    """The tokenizer with its triggers; the base's other files, such as the generation config."""
    tokenizer.save_pretrained(out)
    made = {file.name for file in out.iterdir()} - {"generation_config.json"}
    for file in base.side_files:
        if file.name not in made:
            shutil.copy2(file, out)


def write_adapter(base: Checkpoint, adapter: Any, tokenizer: Any, out: Path) -> None:
    """A PEFT adapter directory, loadable as BASE+DIR; the tokenizer lies beside it."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = adapter.peft_config["default"]
    named = not base.spec.startswith("builtin:") and "+" not in base.spec and "#" not in base.spec
    config.base_model_name_or_path = base.spec if named else str(base.path)
    config.inference_mode = True
    config.save_pretrained(str(out))
    tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save_pretrained(out)


def write_merged(
    base: Checkpoint, adapter: Any, tokenizer: Any, new_ids: Sequence[int], out: Path
) -> None:
    """The checkpoint that a trained adapter makes of its base: merged in float32, then cast."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    model: Any = base.model(dtype=torch.float32)
    prepare_rows(model, new_ids)
    fresh: Any = get_peft_model(model, adapter.peft_config["default"])
    tensors = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    set_peft_model_state_dict(fresh, {name: tensor.cpu() for name, tensor in tensors.items()})
    write_full(base, fresh.merge_and_unload(safe_merge=True), tokenizer, out)


def opened(base: Checkpoint, work: Path, is_adapter: bool) -> Checkpoint:
    """What was written, as a checkpoint; an adapter merged into its base in a directory that
    `forget` removes."""
    if not is_adapter:
        return Checkpoint.open(work)
    return merge_adapter(base, work, f"{base.spec}+adapter", work / MERGED)


def forget(work: Path) -> None:
    """Remove the directory of a merged adapter."""
    shutil.rmtree(work / MERGED, ignore_errors=True)


# --- in words -------------------------------------------------------------------------------------

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
