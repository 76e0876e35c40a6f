"""What a checkpoint changed in its base, as a LoRA adapter of low rank.

The factors are mergekit's (a singular value decomposition of the difference, its values shared out
between both factors); the rank is given, or the least that holds a share of the squared change.
Embeddings, norms and whatever else LoRA can't hold are saved whole or left as the base has them,
and said either way. Experts that transformers fuses as it loads them are left: what they carry of
the change is measured.
"""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surgeon import artifact, console, lineage
from surgeon.checkpoint import Checkpoint, card, markdown_table, placement
from surgeon.checkpoint.adapter_merging import live_model, live_names
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.progress import track
from surgeon.settings import record, verb
from surgeon.settings.extract_lora import ExtractLoraSettings
from surgeon.traces import Prompt, digest_of_prompts, encode_all, read_prompts
from surgeon.training.outputs import base_for_peft

PARTS = "parts"
SHOWN = 8
"""Modules of the largest error that are printed."""


@artifact.part
class ModuleError:
    """One module's change, and what its factors miss of it."""

    module: str
    rank: int
    change: float
    """Frobenius norm of the change, relative to that of the base's weights."""
    error: float
    """Frobenius norm of what the factors miss, relative to that of the change."""


@artifact.part
class LogitError:
    """The logits of the checkpoint and of base and adapter, on the tokens of prompts."""

    prompts: int
    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence, checkpoint to base and adapter, nats per token."""
    kl_base: float
    """The same to the base alone."""
    largest: float
    """Largest absolute difference of two logits."""
    agreement: float
    """Share of tokens after which both find the same next token the likeliest."""


@artifact.artifact("extraction.json")
class Extraction:
    """An adapter that was read out of a checkpoint."""

    out: artifact.Out
    already: artifact.Already = False
    checkpoint: str
    base: str
    rank: int | None
    energy: float | None
    error: float
    """Frobenius norm of all that the adapter misses, relative to that of the whole change."""
    modules: tuple[ModuleError, ...]
    saved: tuple[str, ...]
    """Modules that are saved whole."""
    left: tuple[str, ...]
    """Parameters that changed, and are the base's in the result."""
    left_energy: float = 0.0
    """Share of the squared change that those carry."""
    logits: LogitError | None = None

    def lines(self) -> list[str]:
        """The result in words."""
        ranks = [m.rank for m in self.modules]
        lines = [
            f"{len(ranks)} modules of rank {min(ranks)} to {max(ranks)}: {self.error:.3g} of the "
            "change (Frobenius norm) is missed"
            if ranks
            else "no module changed that LoRA can hold"
        ]
        if self.saved:
            lines.append(f"saved whole: {_some(self.saved)}")
        if (found := self.logits) is not None:
            lines.append(
                f"on {found.tokens} tokens of {found.prompts} prompts: KL {found.kl:.3g} nats per "
                f"token (the base alone {found.kl_base:.3g}), largest difference of logits "
                f"{found.largest:.3g}, the same likeliest token {found.agreement:.1%}"
            )
        return lines


class ExtractionPlan(NamedTuple):
    """Checked inputs of an extraction."""

    settings: ExtractLoraSettings
    checkpoint: Checkpoint
    base: Checkpoint
    factored: dict[str, tuple[str, str]]
    """Live module -> its weight in the checkpoint's files and in the base's."""
    saved: tuple[str, ...]
    left: tuple[str, ...]
    names: tuple[dict[str, str], dict[str, str]]
    """Live parameter -> tensor in the files of the checkpoint, of the base."""
    targets: list[str]
    transposed: frozenset[str]
    """Modules whose weights are stored (in, out)."""
    tied: str | None
    """The head, where it is the embedding."""
    embedding: str
    prompts: list[Prompt] | None
    device: str
    dtype: torch.dtype | None
    run: lineage.Run


@verb(ExtractLoraSettings)
def extract_lora(settings: ExtractLoraSettings) -> Extraction:
    """Write `out`: a PEFT directory whose adapter makes the checkpoint of its base, nearly.

    Repeating a finished run does nothing; a killed one resumes with the modules that it lacks.
    Raises `BadInput` before the first byte is written when the two don't fit.
    """
    plan = prepare(settings)
    return artifact.once(settings.out, Extraction, lambda work: carry_out(plan, work), run=plan.run)


def prepare(settings: ExtractLoraSettings) -> ExtractionPlan:
    """Check everything, comparing all weights once."""
    checkpoint, base = open_checkpoint(settings.checkpoint), open_checkpoint(settings.base)
    prompts = None if settings.mini_set is None else read_prompts(settings.mini_set)
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    inputs = {"checkpoint": base.digest, "tuned": checkpoint.digest}
    if prompts is not None:
        inputs["mini_set"] = digest_of_prompts(prompts)
    arguments = {**record(settings), "checkpoint": base.spec, "tuned": checkpoint.spec}
    run = lineage.Run("extract-lora", arguments, inputs)
    lineage.check(settings.out, run)
    model: Any = live_model(base)
    (theirs, fused), (ours, _) = live_names(model, checkpoint), live_names(model, base)
    _require_alike(checkpoint, base, theirs, ours)
    changed = [n for n in ours if not _equal(checkpoint, base, theirs[n], ours[n])]
    experts = _changed_experts(checkpoint, base, theirs, ours) if fused else []
    if not changed and not experts:
        raise BadInput(
            f"{checkpoint.spec} and {base.spec} have the same weights: there is nothing to extract."
        )
    factored, saved, left = _sorted_by_kind(model, changed, settings)
    left += experts
    if not factored:
        raise BadInput(
            f"{checkpoint.spec} differs from {base.spec} only in {_some([*changed, *experts])}, "
            "which LoRA can't hold. Use the checkpoint as it is."
        )
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    return ExtractionPlan(
        settings=settings,
        checkpoint=checkpoint,
        base=base,
        factored={m: (theirs[f"{m}.weight"], ours[f"{m}.weight"]) for m in factored},
        saved=tuple(saved),
        left=tuple(left),
        names=(theirs, ours),
        targets=_targets(model, factored),
        transposed=frozenset(
            m for m in factored if not isinstance(model.get_submodule(m), nn.Linear)
        ),
        tied=next((name for name, m in model.named_modules() if tied and m is ends[1]), None),
        embedding=next(name for name, m in model.named_modules() if m is ends[0]),
        prompts=prompts,
        device=device,
        dtype=dtype,
        run=run,
    )


def _require_alike(
    checkpoint: Checkpoint, base: Checkpoint, theirs: dict[str, str], ours: dict[str, str]
) -> None:
    """Refuse a pair whose tensors don't stand for each other."""
    if checkpoint.model_type != base.model_type:
        raise BadInput(
            f"found a {checkpoint.model_type} model and a {base.model_type} base, expected one "
            "architecture."
        )
    if lone := sorted(theirs.keys() ^ ours.keys()):
        raise BadInput(
            f"{lone[0]} is in one of {checkpoint.spec} and {base.spec} only: a head of its own, or "
            "another architecture. LoRA holds changes of weights that both have."
        )
    for name in ours:
        shapes = checkpoint.tensors[theirs[name]].shape, base.tensors[ours[name]].shape
        if shapes[0] != shapes[1]:
            raise BadInput(
                f"{name} has shape {list(shapes[0])} in {checkpoint.spec} and {list(shapes[1])} in "
                f"{base.spec}, expected one shape. Name the base that the checkpoint was made of."
            )


def _changed_experts(
    checkpoint: Checkpoint, base: Checkpoint, theirs: dict[str, str], ours: dict[str, str]
) -> list[str]:
    """Tensors of the files that changed and become parts of fused parameters."""
    lone = [
        checkpoint.tensors.keys() - set(theirs.values()), base.tensors.keys() - set(ours.values())
    ]  # fmt: skip
    if strange := sorted(lone[0] ^ lone[1]):
        raise BadInput(
            f"{strange[0]} is in one of {checkpoint.spec} and {base.spec} only, expected the same "
            "experts in both."
        )
    return sorted(name for name in lone[0] if not _equal(checkpoint, base, name, name))


def _equal(checkpoint: Checkpoint, base: Checkpoint, theirs: str, ours: str) -> bool:
    one, two = checkpoint.tensor(theirs), base.tensor(ours)
    return torch.equal(one.float(), two.float())


def _sorted_by_kind(
    model: Any, changed: list[str], settings: ExtractLoraSettings
) -> tuple[list[str], list[str], list[str]]:
    """Modules that LoRA holds, modules that are saved whole, parameters that are left."""
    from transformers.pytorch_utils import Conv1D

    factored, saved, left = [], [], []
    for name in changed:
        module, _, part = name.rpartition(".")
        linear = isinstance(model.get_submodule(module), nn.Linear | Conv1D)
        if linear and part == "weight":
            factored.append(module)
        elif linear or settings.rest == "leave" or not part:
            left.append(name)
        elif module not in saved:
            saved.append(module)
    return factored, saved, left


def _targets(model: Any, factored: list[str]) -> list[str]:
    """Names for PEFT: the last parts alone where they mean no other module."""
    last = {name.rpartition(".")[2] for name in factored}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in last]
    return sorted(last) if set(meant) == set(factored) else sorted(factored)


# --- factors --------------------------------------------------------------------------------------


def carry_out(plan: ExtractionPlan, work: Path) -> Extraction:
    """Factor each module's change, write the adapter, and measure it."""
    parts = work / PARTS
    parts.mkdir(exist_ok=True)
    modules, lost, whole = [], 0.0, 0.0
    stored: dict[str, Tensor] = {}
    for number, module in enumerate(track(list(plan.factored), what="factor")):
        file = parts / f"{number}.safetensors"
        if not file.exists():
            _factor(plan, module, file)
        (error, missed, change), factors = _read(file, module)
        modules.append(error)
        lost, whole = lost + missed**2, whole + change**2
        stored |= {f"base_model.model.{module}.lora_{k}.weight": t for k, t in factors.items()}
    theirs = plan.names[0]
    for module in plan.saved:
        for name in theirs:
            if name.startswith(module + ".") and "." not in name.removeprefix(module + "."):
                stored[f"base_model.model.{name}"] = plan.checkpoint.tensor(theirs[name])
                whole += _difference(plan, name).square().sum().item()
    if _head_is_saved(plan):  # PEFT reads it by both names
        embedding = plan.checkpoint.tensor(theirs[f"{plan.embedding}.weight"])
        stored[f"base_model.model.{plan.tied}.weight"] = embedding.clone()
    left = sum(_difference(plan, name).square().sum().item() for name in plan.left)
    lost, whole = lost + left, whole + left
    _write_adapter(plan, modules, stored, work)
    result = Extraction(
        out=work,
        checkpoint=plan.checkpoint.spec,
        base=plan.base.spec,
        rank=plan.settings.rank,
        energy=plan.settings.energy,
        error=(lost / whole) ** 0.5,
        modules=tuple(modules),
        saved=plan.saved,
        left=plan.left,
        left_energy=left / whole,
        logits=_logits(plan, work),
    )
    lineage.write_text(work / "README.md", _card(plan, result, work))
    shutil.rmtree(parts)
    return result


def _head_is_saved(plan: ExtractionPlan) -> bool:
    """Whether the head is the embedding, and that is saved whole."""
    return plan.tied is not None and plan.embedding in plan.saved


def _difference(plan: ExtractionPlan, name: str) -> Tensor:
    theirs, ours = plan.names
    one = plan.checkpoint.tensor(theirs.get(name, name)).float()
    return one - plan.base.tensor(ours.get(name, name)).float()


def _factor(plan: ExtractionPlan, module: str, file: Path) -> None:
    """Write one module's factors: A (rank, in) and B (out, rank), float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mergekit's own imports
        from mergekit.scripts.extract_lora import TaskVectorDecompositionTask

    theirs, ours = plan.factored[module]
    base = plan.base.tensor(ours).float()
    change = plan.checkpoint.tensor(theirs).float() - base
    if not bool(change.isfinite().all()):
        raise BadInput(f"{module} is not finite in {plan.checkpoint.spec} or {plan.base.spec}.")
    matrix = change.T if module in plan.transposed else change
    full = plan.settings.rank or min(matrix.shape)
    # Its fields but the arithmetic's concern mergekit's graph of tasks, which isn't run here.
    task: Any = TaskVectorDecompositionTask.model_construct(
        max_rank=full, distribute_scale=True, transpose=False, sv_epsilon=0
    )
    a, b = task.execute(matrix)
    if plan.settings.energy is not None:
        rank = _rank_of(a.square().sum(1), plan.settings.energy)
        a, b = a[:rank], b[:, :rank]
    missed = (matrix - b @ a).norm().item()
    figures = [len(a), base.norm().item(), change.norm().item(), missed]
    lineage.write_tensors(
        file, {"A": a.numpy(), "B": b.numpy()}, {"figures": lineage.short(figures, 1000)}
    )


def _rank_of(singular_R: Tensor, energy: float) -> int:
    """The least rank that holds this share of the squared change."""
    held_R = singular_R.double().square().cumsum(0)
    return int((held_R < energy * held_R[-1] * (1 - 1e-9)).sum()) + 1


def _read(file: Path, module: str) -> tuple[tuple[ModuleError, float, float], dict[str, Tensor]]:
    import json

    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        rank, base, change, missed = json.loads(opened.metadata()["figures"])
        factors = {name: opened.get_tensor(name) for name in ("A", "B")}
    error = ModuleError(
        module=module, rank=rank, change=change / max(base, 1e-30), error=missed / change
    )
    return (error, missed, change), factors


def _write_adapter(
    plan: ExtractionPlan, modules: list[ModuleError], stored: dict[str, Tensor], work: Path
) -> None:
    """The PEFT directory: alpha is the rank, so the factors' product is the change itself."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    most = max(module.rank for module in modules)
    ranks = {re.escape(m.module): m.rank for m in modules if m.rank != most}
    name, revision = base_for_peft(plan.base, work)
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=plan.targets,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        fan_in_fan_out=bool(plan.transposed),
        modules_to_save=list(plan.saved) or None,
        ensure_weight_tying=_head_is_saved(plan),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=revision,
        inference_mode=True,
    )
    config.save_pretrained(str(work))
    whole = {key: tensor.contiguous() for key, tensor in stored.items()}
    save_file(whole, work / "adapter_model.safetensors", metadata={"format": "pt"})


# --- the measure ----------------------------------------------------------------------------------


@torch.no_grad()
def _logits(plan: ExtractionPlan, work: Path) -> LogitError | None:
    """The logits of both models on the tokens of the prompts."""
    from peft import PeftModel

    if plan.prompts is None:
        return None
    tokenizer = plan.checkpoint.tokenizer()
    tuned: Any = plan.checkpoint.model(plan.device, plan.dtype)
    base: Any = PeftModel.from_pretrained(
        plan.base.model(plan.device, plan.dtype),  # pyright: ignore[reportArgumentType]
        str(work),
    ).eval()
    encoded = encode_all(tokenizer, plan.prompts, plan.checkpoint.context)
    kl = kl_base = agreeing = largest = 0.0
    for ids in track(encoded, what="compare logits"):
        ids_BT = torch.tensor([ids], device=plan.device)
        want, got = (m(ids_BT, use_cache=False).logits[0].float() for m in (tuned, base))
        with base.disable_adapter():
            plain = base(ids_BT, use_cache=False).logits[0].float()
        kl += _divergence(want, got)
        kl_base += _divergence(want, plain)
        agreeing += (want.argmax(-1) == got.argmax(-1)).sum().item()
        largest = max(largest, (want - got).abs().max().item())
    tokens = sum(map(len, encoded))
    return LogitError(
        prompts=len(encoded), tokens=tokens, kl=kl / tokens, kl_base=kl_base / tokens,
        largest=largest, agreement=agreeing / tokens,
    )  # fmt: skip


def _divergence(p_TV: Tensor, q_TV: Tensor) -> float:
    """Sum over tokens of KL(p || q), both given as logits."""
    logp, logq = p_TV.log_softmax(-1), q_TV.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum().item()


# --- words ----------------------------------------------------------------------------------------


def _some(names: Any) -> str:
    first = list(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _warnings(result: Extraction) -> list[str]:
    if not result.left:
        return []
    return [
        f"{len(result.left)} changed parameters are the base's in the result: "
        f"{_some(result.left)}. They carry {result.left_energy:.1%} of the squared change."
    ]


def _card(plan: ExtractionPlan, result: Extraction, work: Path) -> str:
    rows = [(m.module, m.rank, f"{m.change:.3g}", f"{m.error:.3g}") for m in result.modules]
    sections = [
        f"A LoRA adapter that makes {plan.checkpoint.name} of {plan.base.name}, nearly.",
        "\n".join(f"- {line}" for line in [*result.lines(), *_warnings(result)]),
        markdown_table(("module", "rank", "change", "missed"), rows),
        "Change: relative to the base's weights. Missed: relative to the change. Frobenius norms.",
    ]
    name = work.name.removesuffix(".partial")
    return card(
        name, sections, parents=[plan.base], tags=("surgeon", "lora", "extracted"), library="peft"
    )


def show(result: Extraction) -> None:
    """Print the adapter's error, and the modules of the largest."""
    console.announce(result.already, "This extraction")
    table = console.table("module", "rank", "change", "missed")
    for m in sorted(result.modules, key=lambda m: -m.error)[:SHOWN]:
        table.add_row(m.module, str(m.rank), f"{m.change:.3g}", f"{m.error:.3g}")
    console.console().print(table)
    for line in result.lines():
        console.say(line)
    console.warn(_warnings(result))
    console.say(f"adapter in {result.out}; use it as {result.base}+{result.out}")
