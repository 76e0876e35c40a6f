"""Activations of monitored channels: against their definition, while decoding, and read back."""

from pathlib import Path

import pytest
import torch

from surgeon.channels import Channels, read_back, tapped
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.traces import Trace

CHANNELS = Channels(1, (40, 0, 5), (3, 1))
FAMILIES = ["qwen2", "qwen3", "llama", "gemma2", "gemma3_text", "phi3"]


def trace(n: int, prompt: list[int], tokens: list[int]) -> Trace:
    return Trace(str(n), 0, prompt, tokens, "", "stop")


TRACES = [
    trace(0, [3, 7, 9], list(range(20, 50))),
    trace(1, [5], [8]),
    trace(2, [11] * 21, list(range(40, 90))),
    trace(3, [11, 12], [40, 41, 42, 43, 44]),
]


@pytest.fixture(scope="module")
def model_of(make_checkpoint, tmp_path_factory):
    """Float32 models by family, loaded once."""
    made = {}

    def of(model_type: str):
        if model_type not in made:
            path = tmp_path_factory.mktemp(model_type)
            path = make_checkpoint(path / "m", model_type, dtype="float32")
            made[model_type] = Checkpoint.open(path).model()
        return made[model_type]

    return of


def no_hooks(model) -> bool:
    return not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_channels_are_abs_h_and_the_norm_of_a_heads_part(model_of, model_type):
    """Units in the given order, then heads in theirs; h = act(gate) * up computed by hand, a head's
    part from its values and its attention weights."""
    model = model_of(model_type)
    block, seen = model.get_decoder().layers[1], {}
    handles = [
        block.mlp.register_forward_pre_hook(lambda _, args: seen.update(mlp=args[0])),
        block.self_attn.register_forward_hook(
            lambda _, args, kwargs, out: seen.update(
                x=args[0] if args else kwargs["hidden_states"], A=out[1]
            ),
            with_kwargs=True,
        ),
    ]
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad(), tapped(model, CHANNELS) as tap:
        model(input_ids=torch.randint(3, 128, (2, 9), generator=torch.manual_seed(0)))
    model.set_attn_implementation(attention)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        if model_type == "phi3":
            gate, up = block.mlp.gate_up_proj(seen["mlp"]).chunk(2, -1)
            h = block.mlp.activation_fn(gate) * up
            value = block.self_attn.qkv_proj(seen["x"])[..., -16:]
        else:
            h = block.mlp.act_fn(block.mlp.gate_proj(seen["mlp"])) * block.mlp.up_proj(seen["mlp"])
            value = block.self_attn.v_proj(seen["x"])
    expected = [h[..., unit].abs() for unit in CHANNELS.units]
    for head in CHANNELS.heads:  # 4 heads share 2 key/value heads of width 8
        mixed = seen["A"][:, head] @ value[..., 8 * (head // 2) :][..., :8]
        expected.append(mixed.norm(dim=-1))
    assert tap.last.shape == (2, 9, 5)
    assert tap.last.dtype == torch.float32
    torch.testing.assert_close(tap.last, torch.stack(expected, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_reading_back_equals_decoding_token_by_token(model_of, model_type):
    """Row i is what the tap shows in the pass that is fed response token i."""
    model = model_of(model_type)
    one = TRACES[2]
    rows = []
    with torch.no_grad(), tapped(model, CHANNELS) as tap:
        cache = model(input_ids=torch.tensor([one.prompt_token_ids])).past_key_values
        for token in one.token_ids:
            model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            assert tap.last.shape == (1, 1, 5)
            rows.append(tap.last[0, -1])
    (x_TC,) = read_back(model, [one], CHANNELS)
    torch.testing.assert_close(x_TC, torch.stack(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2"])
def test_passes_and_neighbours_change_nothing(model_of, model_type):
    """Traces alone, together, and in parts through a cache (a window of 16 in gemma2)."""
    model = model_of(model_type)
    alone = [x_TC for one in TRACES for x_TC in read_back(model, [one], CHANNELS)]
    assert [len(x_TC) for x_TC in alone] == [30, 1, 50, 5]
    for batch_tokens in (1, 9, 24, 64, 4096):
        found = list(read_back(model, TRACES, CHANNELS, batch_tokens=batch_tokens))
        for x_TC, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(x_TC, expected, rtol=1e-4, atol=1e-5)


def test_each_kind_of_channel_alone(model_of):
    model = model_of("qwen3")
    (both,) = read_back(model, TRACES[:1], CHANNELS)
    (units,) = read_back(model, TRACES[:1], CHANNELS._replace(heads=()))
    (heads,) = read_back(model, TRACES[:1], CHANNELS._replace(units=()))
    (every_head,) = read_back(model, TRACES[:1], Channels(1, heads=(0, 1, 2, 3)))
    assert torch.equal(both, torch.cat([units, heads], -1))
    assert torch.equal(heads, every_head[:, [3, 1]])
    assert [c.size for c in (CHANNELS, CHANNELS._replace(heads=()))] == [5, 3]


def test_a_projection_without_channels_is_left_alone(model_of):
    model = model_of("qwen3")
    block = model.get_decoder().layers[1]
    with tapped(model, Channels(1, units=(3,))):
        assert len(block.mlp.down_proj._forward_pre_hooks) == 1
        assert not block.self_attn.o_proj._forward_pre_hooks
    with tapped(model, Channels(1, heads=(3,))):
        assert not block.mlp.down_proj._forward_pre_hooks
        assert len(block.self_attn.o_proj._forward_pre_hooks) == 1
    assert no_hooks(model)


def test_the_model_is_as_before(model_of):
    """Reading stops above the layer: later passes must still be whole."""
    model = model_of("qwen3")
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    model.train()
    found = read_back(model, [*TRACES, *TRACES], CHANNELS, batch_tokens=8)
    next(found)
    assert no_hooks(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    assert len(list(found)) == 7
    assert model.training
    model.eval()
    assert no_hooks(model)
    with pytest.raises(KeyError), tapped(model, CHANNELS):
        raise KeyError
    assert no_hooks(model)


def test_a_tap_that_has_seen_nothing_says_so(model_of):
    with tapped(model_of("qwen3"), CHANNELS) as tap, pytest.raises(RuntimeError, match="no pass"):
        _ = tap.last


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (Channels(1), "no channels"),
        (Channels(3, (0,)), "layer 3; expected 0 to 2"),
        (Channels(-1, (0,)), "layer -1"),
        (Channels(0, (48,)), "unit 48 in layer 0; expected 0 to 47"),
        (Channels(0, (), (0, 4)), "head 4 in layer 0; expected 0 to 3"),
        (Channels(0, (1, 1)), "unit of layer 0 twice"),
    ],
)
def test_channels_that_the_model_lacks(model_of, channels, message):
    with pytest.raises(BadInput, match=message), tapped(model_of("qwen3"), channels):
        pass


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_mixtures_of_experts_are_refused_by_name(model_of, model_type):
    with pytest.raises(BadInput, match=f"'{model_type}'.*dense models only"):
        list(read_back(model_of(model_type), TRACES, Channels(1, (0,))))


def test_heads_that_do_not_divide_the_projection_are_refused(model_of, monkeypatch):
    model = model_of("qwen3")
    monkeypatch.setattr(model.config, "num_attention_heads", 5)
    with pytest.raises(BadInput, match="5 attention heads divide evenly"), tapped(model, CHANNELS):
        pass


def test_traces_of_another_tokenizer_and_broken_weights(make_checkpoint, tmp_path: Path):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    with pytest.raises(BadInput, match="another tokenizer"):
        list(read_back(model, [trace(0, [1], [128])], CHANNELS))
    with pytest.raises(BadInput, match="batch_tokens 0"):
        list(read_back(model, TRACES, CHANNELS, batch_tokens=0))
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight[0, 0] = torch.nan  # pyright: ignore
    with pytest.raises(BadInput, match="not finite"):
        list(read_back(model, TRACES, CHANNELS))
