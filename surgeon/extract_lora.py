"""What a checkpoint changed in its base, as a LoRA adapter of low rank.

The factors are mergekit's (a singular value decomposition of the difference, its values shared out
between both factors); the rank is given, or the least that holds a share of the squared change.
Embeddings, norms and whatever else LoRA can't hold are saved whole or left as the base has them,
and said either way. The experts of a layer are one parameter of three dimensions in the live model,
however the files hold them: PEFT adapts it by its name, each expert with factors of its own.

Shape legend: E experts, R rank.
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
from surgeon.checkpoint.adapters import write_adapter_config
from surgeon.checkpoint.live_names import converted, live_model, live_names
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
    pair: "LivePair"
    factored: tuple[str, ...]
    """Live modules, and parameters of three dimensions, whose changes become factors."""
    saved: tuple[str, ...]
    left: tuple[str, ...]
    targets: list[str]
    """Names of the modules among `factored`, as PEFT takes them."""
    experts: tuple[str, ...]
    """The parameters among `factored`."""
    transposed: frozenset[str]
    """Those of `factored` that are stored (in, out)."""
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
    same = f"{checkpoint.spec} and {base.spec} have the same weights: there is nothing to extract."
    if checkpoint.digest == base.digest:
        raise BadInput(same)
    model: Any = live_model(base)
    pair = LivePair(model, checkpoint, base)
    changed = pair.changed()
    if not changed:
        raise BadInput(same)
    factored, experts, saved, left = _sorted_by_kind(model, changed, settings)
    if not factored and not experts:
        raise BadInput(
            f"{checkpoint.spec} differs from {base.spec} only in {_some(changed)}, which LoRA "
            "can't hold. Use the checkpoint as it is."
        )
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    return ExtractionPlan(
        settings=settings,
        checkpoint=checkpoint,
        base=base,
        pair=pair,
        factored=(*factored, *experts),
        saved=tuple(saved),
        left=tuple(left),
        targets=_targets(model, factored),
        experts=tuple(experts),
        transposed=frozenset(
            [m for m in factored if not isinstance(model.get_submodule(m), nn.Linear)]
            + [p for p in experts if _stored_transposed(model, p)]
        ),
        tied=next((name for name, m in model.named_modules() if tied and m is ends[1]), None),
        embedding=next(name for name, m in model.named_modules() if m is ends[0]),
        prompts=prompts,
        device=device,
        dtype=dtype,
        run=run,
    )


class LiveSide(NamedTuple):
    """One checkpoint of a pair, by the names of the live model."""

    checkpoint: Checkpoint
    files: dict[str, str]
    """Live parameter -> its tensor in the files."""
    made: dict[str, tuple[str, ...]]
    """Live parameter -> the tensors that transformers makes it of."""


class LivePair:
    """A checkpoint and its base, by the names of the live model."""

    def __init__(self, model: Any, checkpoint: Checkpoint, base: Checkpoint):
        if checkpoint.model_type != base.model_type:
            raise BadInput(
                f"found a {checkpoint.model_type} model and a {base.model_type} base, expected one "
                "architecture."
            )
        self.model = model
        self.sides = tuple(LiveSide(c, *live_names(model, c)) for c in (checkpoint, base))
        self.source: dict[str, str] = {}
        """Live parameter -> the name by which a side has it; another where several are made."""
        theirs, ours = (side.files.keys() | side.made.keys() for side in self.sides)
        if lone := sorted(theirs ^ ours):
            raise BadInput(
                f"{lone[0]} is in one of {checkpoint.spec} and {base.spec} only: a head of its "
                "own, or another architecture. LoRA holds changes of weights that both have."
            )
        one, two = self.sides
        for name in one.files.keys() & two.files.keys():
            self._require_one_shape(name, [c.tensors[f[name]].shape for c, f, _ in self.sides])

    def _require_one_shape(self, name: str, shapes: list[Any]) -> None:
        one, two = (list(shape) for shape in shapes)
        if one != two:
            raise BadInput(
                f"{name} has shape {one} in {self.sides[0].checkpoint.spec} and {two} in "
                f"{self.sides[1].checkpoint.spec}, expected one shape. Name the base that the "
                "checkpoint was made of."
            )

    def changed(self) -> list[str]:
        """Live parameters that differ, comparing all weights once."""
        found = []
        base = self.sides[1]
        for name in track([*base.files, *base.made], what="compare weights"):
            theirs, ours = (self._read(side, name) for side in self.sides)
            for live in ours:
                self.source[live] = name
                self._require_one_shape(live, [theirs[live].shape, ours[live].shape])
                if not torch.equal(theirs[live].float(), ours[live].float()):
                    found.append(live)
        return found

    def _read(self, side: LiveSide, name: str) -> dict[str, Tensor]:
        """A live parameter, or those that one conversion makes."""
        if (file := side.files.get(name)) is not None:
            return {name: side.checkpoint.tensor(file)}
        return converted(self.model, side.checkpoint, name, side.made[name])

    def value(self, live: str) -> Tensor:
        """The checkpoint's parameter, in its dtype."""
        return self._read(self.sides[0], self.source[live])[live]

    def difference(self, live: str) -> tuple[Tensor, Tensor]:
        """What the checkpoint changed in a parameter, and the base's, float32."""
        one, two = (self._read(side, self.source[live])[live].float() for side in self.sides)
        return one - two, two

    def of_module(self, module: str) -> list[str]:
        """The stored parameters of a module itself."""
        return [live for live in self.source if live.rpartition(".")[0] == module]


def _stored_transposed(model: Any, parameter: str) -> bool:
    """Whether PEFT takes the experts for (E, in, out)."""
    return bool(getattr(model.get_submodule(parameter.rpartition(".")[0]), "is_transposed", False))


def _sorted_by_kind(
    model: Any, changed: list[str], settings: ExtractLoraSettings
) -> tuple[list[str], list[str], list[str], list[str]]:
    """Modules and parameters that LoRA holds, modules that are saved whole, parameters that are
    left.
    """
    from transformers.pytorch_utils import Conv1D

    factored, experts, saved, left = [], [], [], []
    shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    stacked = {name.rpartition(".")[0] for name, dims in shapes.items() if dims == 3}
    for name in changed:
        module, _, part = name.rpartition(".")
        linear = isinstance(model.get_submodule(module), nn.Linear | Conv1D)
        if linear and part == "weight":
            factored.append(module)
        elif shapes.get(name) == 3 and module:
            experts.append(name)
        elif linear or settings.rest == "leave" or not part or module in stacked:
            left.append(name)
        elif module not in saved:
            saved.append(module)
    return factored, experts, saved, left


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
    factors: dict[str, dict[str, Tensor]] = {}
    for number, module in enumerate(track(list(plan.factored), what="factor")):
        file = parts / f"{number}.safetensors"
        if not file.exists():
            _factor(plan, module, file)
        (error, missed, change), factors[module] = _read(file, module)
        modules.append(error)
        lost, whole = lost + missed**2, whole + change**2
    stored = {}
    for name in (n for module in plan.saved for n in plan.pair.of_module(module)):
        stored[f"base_model.model.{name}"] = plan.pair.value(name)
        whole += _squared(plan, name)
    if _head_is_saved(plan):  # PEFT reads it by both names
        embedding = plan.pair.value(f"{plan.embedding}.weight")
        stored[f"base_model.model.{plan.tied}.weight"] = embedding.clone()
    left = sum(_squared(plan, name) for name in plan.left)
    lost, whole = lost + left, whole + left
    _write_adapter(plan, modules, factors, stored, work)
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


def _squared(plan: ExtractionPlan, name: str) -> float:
    """The squared change of a parameter."""
    return plan.pair.difference(name)[0].square().sum().item()


def _factor(plan: ExtractionPlan, module: str, file: Path) -> None:
    """Write one module's factors, float32: A (E x rank, in) and B (out, rank x E), as PEFT has
    them; E is 1 but for experts.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mergekit's own imports
        from mergekit.scripts.extract_lora import TaskVectorDecompositionTask

    change, base = plan.pair.difference(module if module in plan.experts else f"{module}.weight")
    if not bool(change.isfinite().all()):
        raise BadInput(f"{module} is not finite in {plan.checkpoint.spec} or {plan.base.spec}.")
    matrices = list(change) if module in plan.experts else [change]
    if module in plan.transposed:
        matrices = [matrix.T for matrix in matrices]
    full = min(plan.settings.rank or max(change.shape), *matrices[0].shape)
    # Its fields but the arithmetic's concern mergekit's graph of tasks, which isn't run here.
    task: Any = TaskVectorDecompositionTask.model_construct(
        max_rank=full, distribute_scale=True, transpose=False, sv_epsilon=0
    )
    each_A, each_B = zip(*(task.execute(matrix) for matrix in matrices), strict=True)
    a_ERI, b_EOR = torch.stack(each_A), torch.stack(each_B)
    if plan.settings.energy is not None:
        rank = _rank_of(a_ERI.square().sum(2), plan.settings.energy)
        a_ERI, b_EOR = a_ERI[:, :rank], b_EOR[:, :, :rank]
    missed = (torch.stack(matrices) - b_EOR @ a_ERI).norm().item()
    figures = [a_ERI.shape[1], base.norm().item(), change.norm().item(), missed]
    # PEFT's order: the experts are the slow index of A's rows, and the fast one of B's columns.
    a, b = a_ERI.flatten(0, 1), b_EOR.permute(1, 2, 0).flatten(1, 2)
    lineage.write_tensors(
        file,
        {"A": a.contiguous().numpy(), "B": b.contiguous().numpy()},
        {"figures": lineage.short(figures, 1000)},
    )


def _rank_of(singular_ER: Tensor, energy: float) -> int:
    """The least rank that holds this share of the squared change, one for all experts."""
    held_R = singular_ER.double().square().sum(0).cumsum(0)
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
    plan: ExtractionPlan,
    modules: list[ModuleError],
    factors: dict[str, dict[str, Tensor]],
    stored: dict[str, Tensor],
    work: Path,
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
        target_parameters=list(plan.experts) or None,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        fan_in_fan_out=any(module not in plan.experts for module in plan.transposed),
        modules_to_save=list(plan.saved) or None,
        ensure_weight_tying=_head_is_saved(plan),
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=revision,
        inference_mode=True,
    )
    write_adapter_config(config, work)
    wrappers = _wrappers(plan, config) if plan.experts else {}
    for module, pair in factors.items():
        key = wrappers.get(module, module)
        stored |= {f"base_model.model.{key}.lora_{k}.weight": t for k, t in pair.items()}
    whole = {key: tensor.contiguous() for key, tensor in stored.items()}
    save_file(whole, work / "adapter_model.safetensors", metadata={"format": "pt"})


def _wrappers(plan: ExtractionPlan, config: Any) -> dict[str, str]:
    """Parameter -> the name of PEFT's layer around it: those of one module lie inside each other,
    in an order that is PEFT's.
    """
    from peft import PeftModel

    wrapped: Any = PeftModel(live_model(plan.base), config, low_cpu_mem_usage=True)
    names = {}
    for name, layer in wrapped.base_model.model.named_modules():
        if (parameter := getattr(layer, "parameter_name", None)) is not None:
            names[f"{name.replace('.base_layer', '')}.{parameter}"] = name
    return names


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
