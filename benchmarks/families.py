"""Every family of transformers' registry, made tiny and decoded here and by `generate`.

    python -m benchmarks.families [--out runs/families] [MODEL_TYPE ...]

Greedy tokens go past the sliding windows, requests of different lengths join and leave a batch with
fewer rows than requests, and every step's logits are compared. Writes `families.json`, and the page
`docs/families.md` when all families were walked. Exit status 1 where a family came out WRONG.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import nn

from surgeon.architectures import registry
from surgeon.errors import BadInput
from surgeon.live.architecture import refusal

WINDOW, VOCABULARY = 16, 128
PROMPT_LENGTHS = (3, 37, 21, 1, 33)
MAX_TOKENS, ROWS = 24, 2
TOLERANCE = 2e-3
"""Largest difference of a step's logits, in standard deviations of the logits."""
SECONDS = 180
"""Time for one family."""
PAGE = Path(__file__).parents[1] / "docs" / "families.md"

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "dim": 32, "dim_model": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "embedding_dim": 32, "ffn_hidden_size": 48,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48, "dff": 48, "d_inner": 48, "shared_expert_intermediate_size": 16,
    "moe_intermediate_size": 16, "shared_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "moe_shared_expert_intermediate_size": 16, "intermediate_size_mlp": 48,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "n_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "attention_heads": 4,
    "num_key_value_heads": 2, "n_head_kv": 2, "num_kv_heads": 2, "multi_query_group_num": 2,
    "num_global_key_value_heads": 2, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "head_dim": 8, "attention_head_dim": 8, "global_head_dim": 16, "kv_channels": 8,
    "swa_head_dim": 8, "v_head_dim": 8, "swa_v_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "o_lora_rank": 16,
    "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8,
    "rotary_dim": 8, "n_rot": 8, "query_pre_attn_scalar": 8,
    "encoder_layers": 1, "depth": 1, "num_encoder_layers": 1, "vision_layers": 1,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_k": 2,
    "experts_per_token": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1,
    "zero_expert_num": 0, "num_expert_group": 1, "first_k_dense_replace": 1,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_heads": 4, "linear_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "chunk_size": 8, "state_size": 8, "n_groups": 1, "lru_width": 32,
    "mamba_dt_rank": 4, "time_step_rank": 4, "mamba_expand": 2,
    "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512, "n_ctx": 512,
    "sliding_window": WINDOW, "attention_window_size": WINDOW, "attention_chunk_size": WINDOW,
    "window_size": WINDOW, "use_sliding_window": True, "max_window_layers": 1,
    "local_window_size": WINDOW, "sliding_window_size": WINDOW, "attention_window": WINDOW,
    "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "altup_num_inputs": 2, "image_size": 32, "patch_size": 8, "out_hidden_size": 32,
    "num_position_embeddings": 16, "output_dim": 32, "projection_dim": 32, "hidden_dim": 32,
    "text_hidden_size": 32, "num_nextn_predict_layers": 0, "tie_word_embeddings": False,
    "logit_scale": 0.25, "logits_scaling": 4.0, "output_multiplier": 2.0,
    "lm_head_multiplier": 2.0, "embedding_multiplier": 2.0, "final_logit_softcapping": 5.0,
}  # fmt: skip
"""What makes a config tiny, by the name of its field."""
UNSET = ("head_dim", "sliding_window", "attention_chunk_size")
"""Fields that are set also where the default is None."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
HALF_MROPE = {
    "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
    "mrope_section": [1, 1, 0],
}  # fmt: skip
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": [SLIDING, FULL] * 2, "num_kv_shared_layers": 2,
    "per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}},
}  # fmt: skip
GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": [SLIDING, FULL] * 2, "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}  # fmt: skip
HINTS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bert": {"is_decoder": True},
    "camembert": {"is_decoder": True},
    "cohere_compass_text": {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL]},
    "cohere_compass": {"text_config": {"num_hidden_layers": 2, "layer_types": [SLIDING, FULL]}},
    "electra": {"is_decoder": True},
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 16]}},
    "gemma3n_text": GEMMA3N,
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4,
    "glm46v": {"text_config": {"rope_parameters": HALF_MROPE}},
    "glm4v": {"text_config": {"rope_parameters": HALF_MROPE}},
    "glm4v_moe": {"text_config": {"rope_parameters": HALF_MROPE}},
    "glm_ocr": {"text_config": {"rope_parameters": MROPE}},
    "glmga": {"text_config": {"rope_parameters": MROPE}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": [LINEAR, FULL]},
    "lfm2": {"layer_types": ["conv", FULL], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", FULL], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8},
    "marian": {"pad_token_id": 0, "decoder_vocab_size": VOCABULARY},
    "paddleocr_vl": {"text_config": {"rope_parameters": MROPE}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": MROPE}},
    "qwen2_vl": {"text_config": {"rope_parameters": MROPE}},
}
"""What a family's fields need beside that, by its `model_type`."""


class Result(NamedTuple):
    """What became of one family."""

    model_type: str
    outcome: str
    """equal | refused | not buildable | WRONG"""
    path: str = ""
    """How it was decoded: shared | alone."""
    note: str = ""


# --- tiny models ----------------------------------------------------------------------------------


def tiny_fields(default: Any, hints: dict[str, Any], text: bool) -> dict[str, Any]:
    """The arguments that make the tiny twin of a config, from what its defaults are."""
    names = {field.name for field in dataclasses.fields(default)}
    values = default.to_dict()
    made: dict[str, Any] = {
        name: value
        for name, value in SIZES.items()
        if name in names and (values.get(name) is not None or name in UNSET)
    }
    if "kv_lora_rank" in names:
        made["num_key_value_heads"] = made["num_attention_heads"]
    if text:
        made |= {name: i for i, name in enumerate(SPECIAL) if name in names}
        layers = next((name for name in LAYERS if name in names), None)
        if layers is not None:
            made |= _depth(default, layers, names)
    else:
        made |= {name: 1 for name in LAYERS if name in names}
    return made | hints


def _depth(default: Any, layers: str, names: set[str]) -> dict[str, Any]:
    """So many layers that each kind is there, twice where there is one kind."""
    kinds = getattr(default, "layer_types", None)
    if not kinds:
        return {layers: 3 if "num_kv_shared_layers" in names else 2}
    first = next(n for n in range(1, len(kinds) + 1) if set(kinds[:n]) == set(kinds))
    count = max(first, 2)
    if count <= 8:
        made: dict[str, Any] = {layers: count}
        if "layer_types" in names:
            made["layer_types"] = list(kinds[:count])
        return made
    unique = sorted(set(kinds))
    return {layers: len(unique), "layer_types": unique}


def tiny_config(model_type: str) -> Any:
    """A config of that family with tiny sizes, in it and in the configs inside."""
    from transformers import CONFIG_MAPPING

    hints = HINTS.get(model_type, {})
    kind: Any = CONFIG_MAPPING[model_type]
    default = kind()
    inner: dict[str, Any] = {}
    text = default.get_text_config(decoder=True)
    for name in kind.sub_configs:
        part: Any = getattr(default, name, None)
        if not hasattr(part, "sub_configs"):
            continue
        fields = tiny_fields(part, hints.get(name, {}), text=part is text)
        for deeper in part.sub_configs:
            below: Any = getattr(part, deeper, None)
            if hasattr(below, "sub_configs"):
                own = tiny_fields(below, hints.get(deeper, {}), text=below is text)
                fields[deeper] = {"model_type": below.model_type, **own}
        inner[name] = {"model_type": part.model_type, **fields}
    own = {name: value for name, value in hints.items() if name not in inner}
    fields = tiny_fields(default, {}, text=default is text) if default is text or not inner else {}
    return kind(**(inner | fields | own))


def tiny(model_type: str, seed: int = 0) -> Any:
    """A random model of that family, in float32 and eval mode, with weights that spread its
    logits."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = tiny_config(model_type)
    torch.manual_seed(seed)
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    auto: Any = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


# --- comparing ------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """An answer and the logits of each of its steps."""

    ids: list[int]
    logits_TV: torch.Tensor


def prompts() -> list[list[int]]:
    """Prompts of the lengths above."""
    drawn = torch.Generator().manual_seed(0)
    return [
        torch.randint(6, VOCABULARY, (n,), generator=drawn).tolist() for n in PROMPT_LENGTHS
    ]  # fmt: skip


def generated(model: Any, prompt: list[int]) -> Steps:
    """By transformers."""
    from transformers import GenerationConfig

    id_1N = torch.tensor([prompt])
    out = model.generate(
        id_1N,
        attention_mask=torch.ones_like(id_1N),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=MAX_TOKENS, pad_token_id=0, eos_token_id=None,
            output_logits=True, return_dict_in_generate=True,
        ),
    )  # fmt: skip
    return Steps(out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits).float())


def decoded(model: nn.Module, wanted: list[list[int]]) -> tuple[list[Steps], str]:
    """By the decoder, and how it runs the model; the last two requests join later."""
    from surgeon.decoding import Decoder, Request
    from surgeon.decoding.alone import Alone

    class Seeing(Decoder):
        def _choose(self, logits_BV: torch.Tensor) -> torch.Tensor:
            for b, row in enumerate(self.row_B):
                if row is not None:
                    logits[row.index].append(logits_BV[b].clone())
            return super()._choose(logits_BV)

    logits: list[list[torch.Tensor]] = [[] for _ in wanted]
    ids: list[list[int]] = [[] for _ in wanted]
    decoder = Seeing(model, stop=frozenset(), rows=ROWS, max_tokens=MAX_TOKENS, temperature=0)
    late = list(enumerate(wanted))[-2:]
    for index, prompt in list(enumerate(wanted))[:-2]:
        decoder.add(index, Request(prompt, b""))
    while decoder.busy:
        for token in decoder.step():
            ids[token.index].append(token.token_id)
        if late and len(ids[0]) > 5:
            index, prompt = late.pop(0)
            decoder.add(index, Request(prompt, b""))
    path = "alone" if isinstance(decoder.passes, Alone) else "shared"
    return [Steps(i, torch.stack(step)) for i, step in zip(ids, logits, strict=True)], path


def difference(ours: Steps, theirs: Steps) -> float:
    """The largest difference of logits up to the first step whose tokens differ, in standard
    deviations; the token at which they differ must be as likely."""
    n = 0
    while n < len(theirs.ids) - 1 and ours.ids[n] == theirs.ids[n]:
        n += 1
    a, b = ours.logits_TV[: n + 1], theirs.logits_TV[: n + 1]
    return float(((a - b).abs().amax(-1) / b.std(-1)).max())


def compare(model: Any) -> Result:
    """Decode with both and say what came out."""
    name = str(model.config.model_type)
    reason = refusal(model)
    if reason is not None:
        return Result(name, "refused", note=reason)
    wanted = prompts()
    try:
        theirs = [generated(model, prompt) for prompt in wanted]
    except Exception as error:  # whatever a family of the registry raises
        return Result(name, "not buildable", note=f"generate fails: {_line(error)}")
    if not all(bool(step.logits_TV.isfinite().all()) for step in theirs):
        return Result(name, "not buildable", note="generate's logits aren't finite")
    if any(bool((step.logits_TV.std(-1) == 0).any()) for step in theirs):
        return Result(name, "not buildable", note="generate's logits are all the same")
    try:
        ours, path = decoded(model, wanted)
    except BadInput as error:
        return Result(name, "refused", note=str(error))
    except Exception as error:  # a crash is an outcome, and a failure
        return Result(name, "WRONG", note=_line(error))
    worst = max(difference(a, b) for a, b in zip(ours, theirs, strict=True))
    same = sum(a.ids == b.ids for a, b in zip(ours, theirs, strict=True))
    kinds = len({token for step in theirs for token in step.ids})
    note = f"{same}/{len(wanted)} answers equal, {kinds} tokens, logits within {worst:.1e} std"
    return Result(name, "equal" if worst < TOLERANCE else "WRONG", path, note)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


# --- walking --------------------------------------------------------------------------------------


def one(model_type: str) -> Result:
    """One family, from its config to its outcome."""
    try:
        model = tiny(model_type)
    except Exception as error:  # whatever a family of the registry raises
        return Result(model_type, "not buildable", note=_line(error))
    return compare(model)._replace(model_type=model_type)


def _child(model_type: str, end: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        end.send(one(model_type))


def walk(model_types: list[str], processes: int) -> list[Result]:
    """Every family in a process of its own, so that a crash or a hang costs only that one."""

    fork, waiting, found = multiprocessing.get_context("fork"), list(model_types), []
    running: dict[str, tuple[Any, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop(0)
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=_child, args=(name, there))
            process.start()
            there.close()
            running[name] = process, here, time.monotonic()
        for name, (process, here, start) in list(running.items()):
            late = time.monotonic() - start > SECONDS
            if not here.poll(0.02) and process.is_alive() and not late:
                continue
            result = Result(name, "not buildable", note=f"no answer within {SECONDS} s")
            if here.poll():
                try:
                    result = here.recv()
                except EOFError:
                    result = Result(name, "not buildable", note="the process died")
            process.kill()
            process.join()
            del running[name]
            found.append(result)
            print(f"{result.outcome:13} {result.path:6} {name:28} {result.note}", flush=True)
    return sorted(found)


def page(results: list[Result]) -> str:
    """The table of all families."""
    import transformers

    counts = Counter(result.outcome for result in results)
    lines = [
        "# Families that are decoded as transformers decodes them",
        "",
        f"Written by `make families` from the registry of transformers {transformers.__version__}: "
        "each family is made tiny, with random weights, and greedy tokens and logits of answers "
        "that join and leave a batch are compared with those of `generate`, past the window.",
        "",
        ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts)) + ".",
        "",
        "- **equal**: the same tokens. *shared*: rows share passes; *alone*: one row a pass, with "
        "transformers' own cache.",
        "- **refused**: by name and reason, before the first token.",
        "- **not buildable**: no tiny model of it could be made or run by `generate`.",
        "",
        "| model_type | outcome | rows | note |",
        "|---|---|---|---|",
    ]
    for r in results:
        note = "" if r.outcome == "equal" else r.note.replace("|", "/")
        lines.append(f"| {r.model_type} | {r.outcome} | {r.path} | {note} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("model_types", nargs="*", help="default: all of the registry")
    parser.add_argument("--out", default="runs/families", help="directory of families.json")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    results = walk(given.model_types or registry(), given.processes)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "transformers": transformers.__version__,
        "families": [result._asdict() for result in results],
    }
    (out / "families.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if not given.model_types:
        PAGE.write_text(page(results), encoding="utf-8")
    print(Counter(result.outcome for result in results))
    return int(any(result.outcome == "WRONG" for result in results))


if __name__ == "__main__":
    sys.exit(main())
