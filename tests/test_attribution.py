"""Attribution of units and heads: completeness, against a literal DePass, and spans.

Everything runs in float64; what remains are the float32 casts inside norms and softmax.
"""

# Shape letters as in the module.

from types import SimpleNamespace

import pytest
import torch

from surgeon import attribution
from surgeon.attribution import (
    Persistent,
    Where,
    adjoint,
    attribute,
    direct,
    persistent,
    shares,
    softmax,
    top_k,
)
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.traces import Trace

C, UNITS, HEADS = 52, 48, 4
IDS = torch.randint(3, 128, (25,), generator=torch.manual_seed(1)).tolist()
POSITION_T = torch.tensor([5, 11, 24, 11, 0])
TOKEN_T = torch.tensor([7, 80, 2, 90, 14])
FAMILIES = [
    "qwen3", "llama", "qwen2", "gemma2", "phi3",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("gemma3_text", "olmo2", "glm4", "mistral")),
]  # fmt: skip


def equal(found: torch.Tensor, expected: torch.Tensor, atol: float = 3e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def model_of(make_checkpoint, tmp_path_factory):
    """Float64 models by family, with biases that aren't 0; loaded once."""
    made = {}

    def of(model_type: str, **config):
        key = (model_type, *config.items())
        if key not in made:
            path = tmp_path_factory.mktemp(model_type) / "m"
            path = make_checkpoint(path, model_type, dtype="float32", **config)
            model = Checkpoint.open(path).model().double()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("bias"):
                        parameter.normal_(0, 0.3)
            made[key] = model
        return made[key]

    return of


@torch.no_grad()
def logits(model, ids=IDS) -> torch.Tensor:
    """(N, V), before a final soft cap."""
    hidden = model.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
    return model.get_output_embeddings()(hidden)[0]


def total(found: shares.Attribution) -> torch.Tensor:
    return found.phi_TC.sum(-1) + found.rest_T


def ratio(gate_MNF: torch.Tensor) -> torch.Tensor:
    return gate_MNF / gate_MNF.sum(0)


# --- completeness and equality of methods, for every family ---------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_components_and_rest_sum_to_the_logits(model_of, model_type, layer):
    model = model_of(model_type)
    expected_T = logits(model)[POSITION_T, TOKEN_T]
    for method in (direct, adjoint):
        found = method(model, IDS, layer=layer)(POSITION_T, TOKEN_T)
        assert found.phi_TC.shape == (5, C)
        equal(total(found), expected_T)
    for shortlist in (range(C), [40, 3, 49]):
        found = softmax(model, IDS, [*shortlist], layer=layer)(POSITION_T, TOKEN_T)
        equal(total(found), expected_T)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_backward_pass_equals_the_ratio_rule_forwards(model_of, model_type):
    """And the ratio rule doesn't mind what else is kept apart. (The bound is relative to all phi:
    forwards, the rule divides by gates that may be near 0.)"""
    model = model_of(model_type)
    phi_TC = adjoint(model, IDS, layer=1)(POSITION_T, TOKEN_T).phi_TC
    for shortlist in (range(C), [40, 3, 49]):
        read = shares._forward(model, IDS, [*shortlist], 1, ratio, 1 << 24)
        found = read(POSITION_T, TOKEN_T)
        equal(found.phi_TC, phi_TC[:, [*shortlist]], 1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_at_the_last_layer_depass_is_the_logit_lens(model_of, model_type):
    model = model_of(model_type)
    expected = direct(model, IDS, layer=2)(POSITION_T, TOKEN_T)
    for read in (adjoint(model, IDS, layer=2), softmax(model, IDS, [*range(C)], layer=2)):
        found = read(POSITION_T, TOKEN_T)
        equal(found.phi_TC, expected.phi_TC)
        equal(found.rest_T, expected.rest_T)
    below = direct(model, IDS, layer=1)(POSITION_T, TOKEN_T).phi_TC
    assert (adjoint(model, IDS, layer=1)(POSITION_T, TOKEN_T).phi_TC - below).abs().max() > 0.05


# --- against the definitions ----------------------------------------------------------------------


def literal(model, layer: int, rule) -> torch.Tensor:
    """DePass written out for the llama layout: components (52 + the rest, N, D) at the end, after
    the final norm. Heads, units and their shares are taken one position at a time."""
    decoder, seen, handles = model.get_decoder(), {}, []
    for n, block in enumerate(decoder.layers):
        got = seen[n] = SimpleNamespace()

        def note(name, got=got):
            return lambda _, args: setattr(got, name, args[0][0])

        handles += [
            block.register_forward_pre_hook(note("x")),
            block.post_attention_layernorm.register_forward_pre_hook(note("mid")),
            block.mlp.down_proj.register_forward_pre_hook(note("h")),
            block.self_attn.o_proj.register_forward_pre_hook(note("mixed")),
        ]
    final = SimpleNamespace()
    handles.append(decoder.norm.register_forward_pre_hook(lambda _, a: setattr(final, "x", a[0])))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = decoder(input_ids=torch.tensor([IDS]), output_attentions=True).attentions
    model.set_attn_implementation(before)
    for handle in handles:
        handle.remove()

    def scale(norm, x):
        return norm.weight * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    def bias(module):
        return 0 if module.bias is None else module.bias

    block, got = decoder.layers[layer], seen[layer]
    pieces = [torch.outer(got.h[:, j], block.mlp.down_proj.weight[:, j]) for j in range(UNITS)]
    for head in range(HEADS):
        part = slice(8 * head, 8 * head + 8)
        pieces.append(got.mixed[:, part] @ block.self_attn.o_proj.weight[:, part].T)
    pieces.append(got.x + bias(block.self_attn.o_proj) + bias(block.mlp.down_proj))
    X = torch.stack(pieces)
    for n in range(layer + 1, len(decoder.layers)):
        block, got, A = decoder.layers[n], seen[n], attentions[n][0]
        at = block.self_attn
        new = []
        for m in range(C + 1):
            value = (X[m] * scale(block.input_layernorm, got.x)) @ at.v_proj.weight.T
            value = value + bias(at.v_proj) if m == C else value
            mixed = [A[h] @ value[:, 8 * (h // 2) : 8 * (h // 2) + 8] for h in range(HEADS)]
            new.append(X[m] + torch.cat(mixed, -1) @ at.o_proj.weight.T)
        X = torch.stack(new)
        X[-1] += bias(at.o_proj)
        for t in range(len(IDS)):
            normed = X[:, t] * scale(block.post_attention_layernorm, got.mid)[t]
            gate = normed @ block.mlp.gate_proj.weight.T
            gate[-1] += bias(block.mlp.gate_proj)
            X[:, t] += (rule(gate) * got.h[t]) @ block.mlp.down_proj.weight.T
        X[-1] += bias(block.mlp.down_proj)
    return X * scale(decoder.norm, final.x[0])


@pytest.mark.parametrize("model_type", ["qwen3", "qwen2", "llama"])
@torch.no_grad()
def test_both_rules_equal_a_literal_propagation(model_of, model_type):
    """qwen2 has q, k and v biases, this llama biases everywhere, qwen3 norms of q and k."""
    biases = dict(attention_bias=True, mlp_bias=True) if model_type == "llama" else {}
    model = model_of(model_type, **biases)
    w_TD = model.get_output_embeddings().weight[TOKEN_T]
    for rule, read in (
        (ratio, adjoint(model, IDS, layer=0)),
        (lambda z: torch.softmax(z / 0.1, 0), softmax(model, IDS, [*range(C)], layer=0)),
        (lambda z: torch.softmax(z / 2.0, 0), softmax(model, IDS, [*range(C)], layer=0,
                                                      temperature=2.0)),
    ):  # fmt: skip
        expected_TM = torch.einsum("mtd,td->tm", literal(model, 0, rule)[:, POSITION_T], w_TD)
        found = read(POSITION_T, TOKEN_T)
        equal(found.phi_TC, expected_TM[:, :-1], 1e-5)
        equal(found.rest_T, expected_TM[:, -1], 1e-5)


@torch.no_grad()
def test_direct_equals_a_loop_over_units_and_heads(model_of):
    model = model_of("qwen3")
    block, norm, seen = model.get_decoder().layers[1], model.get_decoder().norm, {}
    handles = [
        block.mlp.down_proj.register_forward_pre_hook(lambda _, a: seen.update(h=a[0][0])),
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, a: seen.update(mixed=a[0][0])),
        norm.register_forward_pre_hook(lambda _, a: seen.update(x=a[0][0])),
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    phi_TC = direct(model, IDS)(POSITION_T, TOKEN_T).phi_TC
    for t, (n, token) in enumerate(zip(POSITION_T, TOKEN_T, strict=True)):
        size = (seen["x"][n].square().mean() + norm.variance_epsilon).sqrt()
        w_D = model.get_output_embeddings().weight[token] * norm.weight / size
        for unit in (0, 7, 47):
            expected = seen["h"][n, unit] * (block.mlp.down_proj.weight[:, unit] @ w_D)
            equal(phi_TC[t, unit], expected, 1e-7)
        for head in range(HEADS):
            part = slice(8 * head, 8 * head + 8)
            write_D = block.self_attn.o_proj.weight[:, part] @ seen["mixed"][n, part]
            equal(phi_TC[t, 48 + head], write_D @ w_D, 1e-7)


def test_the_softmax_rule_depends_on_the_partition(model_of):
    """Which is why its docstring warns, and why the shortlist belongs to the result."""
    model = model_of("qwen3")
    whole = softmax(model, IDS, [*range(C)])(POSITION_T, TOKEN_T).phi_TC[:, [3, 40, 49]]
    few = softmax(model, IDS, [3, 40, 49])(POSITION_T, TOKEN_T).phi_TC
    assert (whole - few).abs().max() > 0.01
    reordered = softmax(model, IDS, [49, 3, 40])(POSITION_T, TOKEN_T).phi_TC
    torch.testing.assert_close(reordered[:, [1, 2, 0]], few)


@pytest.mark.parametrize("chunk_values", [1, 400, 5000])
def test_chunks_change_nothing(model_of, chunk_values):
    model = model_of("qwen2")
    expected = softmax(model, IDS, [3, 40, 49, 50])(POSITION_T, TOKEN_T)
    read = softmax(model, IDS, [3, 40, 49, 50], chunk_values=chunk_values)
    torch.testing.assert_close(read(POSITION_T, TOKEN_T), expected)


def test_what_comes_later_has_no_part(model_of):
    model = model_of("gemma2")
    for method in (direct, adjoint):
        whole = method(model, IDS)(POSITION_T[:2], TOKEN_T[:2])
        cut = method(model, IDS[:12])(POSITION_T[:2], TOKEN_T[:2])
        torch.testing.assert_close(whole, cut, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_finds_about_the_same(make_checkpoint, tmp_path, dtype):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="bfloat16")).model()
    exact = adjoint(model.double(), IDS)(POSITION_T, TOKEN_T)
    model = model.to(dtype)
    found = adjoint(model, IDS)(POSITION_T, TOKEN_T)
    assert found.phi_TC.dtype == torch.float32
    bound = 1e-5 if dtype == torch.float32 else 0.05
    assert (found.phi_TC.double() - exact.phi_TC).norm() < bound * exact.phi_TC.norm()


def hook_count(model) -> int:
    """Not 0 once transformers has been asked for attentions: it keeps hooks of its own."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_the_model_is_as_before(model_of):
    model = model_of("qwen3")
    before = logits(model)
    model.train()
    attention, hooks = model.config._attn_implementation, hook_count(model)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    for read in (direct(model, IDS), adjoint(model, IDS), softmax(model, IDS, [1, 2])):
        assert model.training
        assert hook_count(model) == hooks
        assert [p.requires_grad for p in model.parameters()].count(False) == 1
        assert model.config._attn_implementation == attention
        assert not read(POSITION_T, TOKEN_T).phi_TC.requires_grad
    frozen.requires_grad_(True)
    model.eval()
    assert torch.equal(logits(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_inside_inference_mode(model_of):
    model = model_of("qwen3")
    expected = adjoint(model, IDS)(POSITION_T, TOKEN_T)
    with torch.inference_mode():
        found = adjoint(model, IDS)(POSITION_T, TOKEN_T)
    torch.testing.assert_close(found, expected)


# --- what can't be attributed ---------------------------------------------------------------------


@pytest.mark.parametrize("method", [direct, adjoint, lambda m, ids: softmax(m, ids, [0])])
def test_mixtures_of_experts_are_refused_by_name(make_checkpoint, tmp_path, method):
    path = make_checkpoint(tmp_path / "m", "qwen3_moe", dtype="float32")
    with pytest.raises(BadInput, match="'qwen3_moe'"):
        method(Checkpoint.open(path).model(), IDS)


def test_a_layer_that_does_something_unknown_is_refused(make_checkpoint, tmp_path):
    """Silently wrong numbers would be worse: the components don't sum to what the layer gave."""
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    blocks = model.get_decoder().layers  # pyright: ignore
    for number in (1, 2):

        def tanh(_, __, out):
            return 3 * out.tanh()

        handle = blocks[number].register_forward_hook(tanh)
        tries = [lambda: adjoint(model, IDS)(POSITION_T, TOKEN_T),
                 lambda: softmax(model, IDS, [0, 1])(POSITION_T, TOKEN_T)]  # fmt: skip
        if number == 1:
            tries.append(lambda: direct(model, IDS)(POSITION_T, TOKEN_T))
        for attempt in tries:
            with pytest.raises(BadInput, match="doesn't know"):
                attempt()
        handle.remove()
    blocks[2].post_attention_layernorm = torch.nn.LayerNorm(32)
    with pytest.raises(BadInput, match="no RMS norm"):
        adjoint(model, IDS)


# --- spans ----------------------------------------------------------------------------------------


def test_eq01_top_k_takes_the_highest_and_of_equals_the_first():
    phi_TC = torch.tensor([[1.0, 3.0, -9.0, 3.0], [0.0, 0.0, 0.0, -1.0]])
    assert top_k(phi_TC, 3).tolist() == [[1, 3, 0], [0, 1, 2]]
    for k in (0, 5):
        with pytest.raises(BadInput, match=f"found k {k}, expected 1 to 4"):
            top_k(phi_TC, k)


def test_mon_is_the_intersection_over_the_span():
    """4 and 2 are in every row; 4 has the ranks 1, 0, 0 and 2 the ranks 0, 2, 1."""
    found = persistent(torch.tensor([[2, 4, 9], [4, 8, 2], [4, 2, 7]]))
    assert found == Persistent((4, 2), (1.0, 1.0), False)
    assert persistent(torch.tensor([[2, 4, 9]])) == Persistent((2, 4, 9), (1.0,) * 3, False)


def test_r16_without_an_intersection_the_most_frequent_and_it_says_so():
    """2 and 8 are in two of three rows; 8 comes first in both."""
    found = persistent(torch.tensor([[8, 2], [8, 5], [2, 3]]))
    assert found == Persistent((8, 2), (2 / 3, 2 / 3), True)
    # Nothing repeats: not more than k all the same, by rank and then by number.
    assert persistent(torch.tensor([[7, 2], [5, 3]])) == Persistent((5, 7), (0.5, 0.5), True)
    # As many as asked for, the more frequent first; no more than k; unused where one persists.
    rows = torch.tensor([[8, 2, 1], [8, 5, 1], [2, 3, 9], [8, 6, 4]])
    assert persistent(rows, fallback=2) == Persistent((8, 2), (0.75, 0.5), True)
    assert persistent(rows, fallback=9) == Persistent((8, 2, 1), (0.75, 0.5, 0.5), True)
    assert persistent(rows[:2], fallback=9) == Persistent((8, 1), (1.0, 1.0), False)
    with pytest.raises(BadInput, match="span without tokens"):
        persistent(torch.zeros(0, 3))


TRACES = [
    Trace("a", 0, IDS[:5], IDS[5:], "", "stop"),
    Trace("b", 0, IDS[10:12], IDS[:9], "", "stop"),
]
SPANS = [
    Where(0, ((3, 8),)),
    Where(0, ((0, 2), (15, 20))),
    Where(1, ((0, 9),)),
    Where(0, ((0, 1),)),
]


@pytest.mark.parametrize("method", ["direct", "adjoint"])
def test_spans_are_read_where_their_tokens_are_predicted(model_of, method, monkeypatch):
    """Response token i at position (prompt tokens) + i - 1; also token 0; and in any chunks."""
    model = model_of("qwen3")
    found = list(attribute(model, TRACES, SPANS, method=method, k=12))
    one = {"direct": direct, "adjoint": adjoint}[method]
    for span, result in zip(SPANS, found, strict=True):
        trace = TRACES[span.trace]
        ids = torch.tensor(trace.prompt_token_ids + trace.token_ids)
        target_T = torch.tensor([t for a, b in span.ranges for t in range(a, b)])
        target_T += len(trace.prompt_token_ids)
        phi_TC = one(model, ids.tolist())(target_T - 1, ids[target_T]).phi_TC
        tops = [{*row} for row in phi_TC.topk(12).indices.tolist()]
        counts = [sum(c in top for top in tops) for c in range(C)]
        most = max(counts)
        assert {*result.numbers} == {c for c in range(C) if counts[c] == most}
        assert result.shares[0] == most / len(tops)
        assert result.fell_back == (most < len(tops))
    assert [r.fell_back for r in found] != [True] * 4
    filled = list(attribute(model, TRACES, SPANS, method=method, k=2, fallback=2))
    assert [len(r.numbers) for r in filled if r.fell_back] == [2] * 3
    monkeypatch.setattr(attribution, "TARGETS", 3)
    assert list(attribute(model, TRACES, SPANS, method=method, k=12)) == found


def test_softmax_spans_use_the_directly_strongest_components(model_of):
    model = model_of("qwen3")
    (one,) = attribute(model, TRACES, SPANS[:1], method="softmax", k=6, shortlist=15)
    target_T = torch.arange(3, 8) + 5
    token_T = torch.tensor(IDS)[target_T]
    mean_C = direct(model, IDS)(target_T - 1, token_T).phi_TC.mean(0)
    shortlist = mean_C.topk(15).indices.sort().values
    phi_TK = softmax(model, IDS, shortlist.tolist())(target_T - 1, token_T).phi_TC
    assert one == persistent(shortlist[top_k(phi_TK, 6)])
    # Other spans of the trace change nothing: each has a shortlist of its own.
    several = list(attribute(model, TRACES, SPANS, method="softmax", k=6, shortlist=15))
    assert several[0] == one


def test_all_spans_of_all_methods_name_components(model_of):
    """48 units and 4 heads, by number."""
    model = model_of("qwen2")
    for method in ("direct", "adjoint", "softmax"):
        for found in attribute(model, TRACES, SPANS, method=method, k=5):
            assert found.numbers and set(found.numbers) <= set(range(52))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (Where(2, ((0, 1),)), "span 1 is in trace 2; expected 0 to 1"),
        (Where(1, ((0, 10),)), r"span 1 has the ranges \[\(0, 10\)\].*9 response tokens"),
        (Where(1, ((3, 3),)), r"span 1 has the ranges"),
        (Where(1, ()), r"span 1 has the ranges \[\]"),
    ],
)
def test_spans_that_are_not_in_their_trace(model_of, span, message):
    with pytest.raises(BadInput, match=message):
        list(attribute(model_of("qwen3"), TRACES, [SPANS[0], span], k=5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(k=53), "k 53 and shortlist 52"),
        (dict(k=0), "k 0"),
        (dict(k=5, shortlist=4), "k 5 and shortlist 4; expected 1 <= k <= shortlist <= 52"),
        (dict(k=5, method="lens"), "method 'lens', expected one of direct, adjoint, softmax"),
        (dict(k=5, fallback=-1), "fallback -1"),
        (dict(k=5, layer=3), "layer 3; expected 0 to 2"),
        (dict(k=5, method="softmax", temperature=0.0), r"temperature 0\.0, expected above 0"),
    ],
)
def test_settings_that_make_no_sense(model_of, settings, message):
    with pytest.raises(BadInput, match=message):
        list(attribute(model_of("qwen3"), TRACES, SPANS, **settings))


def test_shortlists_that_make_no_sense(model_of):
    for shortlist, message in (([], "found none"), ([1, 1], "twice"), ([52], "component 52")):
        with pytest.raises(BadInput, match=message):
            softmax(model_of("qwen3"), IDS, shortlist)


def test_broken_weights_are_said_to_be_broken(make_checkpoint, tmp_path):
    model = Checkpoint.open(make_checkpoint(tmp_path / "m", dtype="float32")).model()
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight[0, 0] = torch.nan  # pyright: ignore
    with pytest.raises(BadInput, match="not finite"):
        list(attribute(model, TRACES, SPANS, k=5))
