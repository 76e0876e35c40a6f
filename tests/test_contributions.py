"""Contributions of FFN units to generated tokens, against a loop over the definition."""

from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.checkpoint import Checkpoint
from surgeon.contributions import contributions
from surgeon.nopsd import contribution
from surgeon.traces import Trace


def trace(n: int, prompt: list[int], tokens: list[int]) -> Trace:
    return Trace(str(n), 0, prompt, tokens, "", "stop")


TRACES = [trace(0, [3, 7, 9], [20, 21, 22, 23, 24, 25, 26]), trace(1, [5], [8, 9]),
          trace(2, [11, 12], [40, 41, 42, 43, 44])]  # fmt: skip


def collected(model, **settings) -> list[torch.Tensor]:
    found: dict[int, list[torch.Tensor]] = {}
    for number, score_TLF in contributions(model, TRACES, contribution, **settings):
        found.setdefault(number, []).append(score_TLF)
    return [torch.cat(found[n]) for n in range(len(TRACES))]


@pytest.mark.parametrize("model_type", ["qwen3", "phi3", "gemma2"])
@pytest.mark.parametrize("activation", ["gate", "gated"])
def test_eq02_and_03_equal_a_loop_over_tokens_and_units(
    make_checkpoint, tmp_path: Path, model_type, activation
):
    """The state at position t - 1 is scored for token t, with act(gate) or act(gate) * up."""
    path = make_checkpoint(tmp_path / "m", model_type, dtype="float32")
    model = Checkpoint.open(path).model()
    one = TRACES[0]
    inputs, handles = {}, []
    for n, layer in enumerate(model.get_decoder().layers):  # pyright: ignore

        def keep(_, args, n=n):
            inputs[n] = args[0][0]

        handles.append(layer.mlp.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(input_ids=torch.tensor([one.prompt_token_ids + one.token_ids]))
    for handle in handles:
        handle.remove()
    (score_TLF, *_) = collected(model, activation=activation)
    unembedding = model.get_output_embeddings().weight  # pyright: ignore
    for n, layer in enumerate(model.get_decoder().layers):  # pyright: ignore
        mlp = layer.mlp
        for t, token in enumerate(one.token_ids):
            h_D = inputs[n][len(one.prompt_token_ids) - 1 + t]
            if model_type == "phi3":
                gate, up = mlp.gate_up_proj(h_D).chunk(2)
                k = mlp.activation_fn(gate)
            else:
                k, up = mlp.act_fn(mlp.gate_proj(h_D)), mlp.up_proj(h_D)
            k = k * up if activation == "gated" else k
            for unit in (0, 5, 47):
                expected = k[unit] * (mlp.down_proj.weight[:, unit] @ unembedding[token])
                torch.testing.assert_close(score_TLF[t, n, unit], expected, rtol=1e-4, atol=1e-4)


def test_chunks_and_passes_change_nothing(make_checkpoint, tmp_path: Path):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    whole = collected(model)
    assert [len(score_TLF) for score_TLF in whole] == [7, 2, 5]
    for settings in ({"chunk_tokens": 2}, {"chunk_tokens": 3, "batch_tokens": 4},
                     {"chunk_tokens": 100, "batch_tokens": 1}):  # fmt: skip
        for one, other in zip(whole, collected(model, **settings), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_hooks_are_gone_afterwards(make_checkpoint, tmp_path: Path):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m")).model()
    collected(model)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_experts_contribute_by_their_routing_weight(name: str, make_checkpoint, tmp_path: Path):
    """Each chosen expert is computed again from its block's input; the others' units are at 0."""
    model: Any = Checkpoint.open(make_checkpoint(tmp_path / "m", name, dtype="float32")).model()
    inputs: dict[int, torch.Tensor] = {}
    layers = model.get_decoder().layers
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, a, n=n: inputs.__setitem__(n, a[0]))
        for n, layer in enumerate(layers)
    ]
    whole, short = collected(model), collected(model, chunk_tokens=2, batch_tokens=4)
    for one, other in zip(whole, short, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    trace = TRACES[0]
    with torch.no_grad():
        model(input_ids=torch.tensor([[*trace.prompt_token_ids, *trace.token_ids]]))
    for hook in hooks:
        hook.remove()
    unembedding = model.get_output_embeddings().weight
    for t, token in enumerate(trace.token_ids):
        at = len(trace.prompt_token_ids) - 1 + t
        for n, layer in enumerate(layers):
            x = inputs[n].reshape(-1, inputs[n].shape[-1])
            _, weight, chosen = layer.mlp.gate(x)
            experts, wanted = layer.mlp.experts, torch.zeros(whole[0].shape[2])
            for e, w in zip(chosen[at].tolist(), weight[at], strict=True):
                gate, up = (experts.gate_up_proj[e] @ x[at]).chunk(2)
                k = w * experts.act_fn(gate) * up
                span = slice(e * len(k), (e + 1) * len(k))
                wanted[span] = k * (unembedding[token] @ experts.down_proj[e])
            torch.testing.assert_close(whole[0][t, n], wanted, rtol=1e-3, atol=1e-5)
