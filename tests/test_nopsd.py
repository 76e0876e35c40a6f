"""Neuron-OPSD's equations, with inputs small enough to work out by hand."""

# Shapes: T tokens, L layers, F units, N sets, K neighbours, D model width, V vocabulary.

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon import nopsd
from surgeon.errors import BadInput
from surgeon.nopsd import Readings, contribution_set, gather, nearest, reverse_kl, select
from surgeon.settings.nopsd import Selection


def scores(*tokens: list[list[float]]) -> torch.Tensor:
    """(T, L, F) from one (L, F) list per token."""
    return torch.tensor(tokens, dtype=torch.float32)


# --- Eq. 3 and 4


def test_eq03_contribution_is_activation_times_projection_on_the_token():
    """k = 2, w_out = (1, 3), e_y = (5, -1): 2 * (5 - 3) = 4; and -1 * (2 * 5) = -10."""
    down_DF = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    found = nopsd.contribution(torch.tensor([[2.0, -1.0]]), down_DF, torch.tensor([[5.0, -1.0]]))
    assert found.tolist() == [[4.0, -10.0]]


def test_sec33_main_set_is_the_union_of_each_tokens_top_neurons_over_all_layers():
    """Top 2 of (9, 1 | 8, 2) are neurons 0 and 2; of (1, 7 | 3, 0) they are 1 and 2."""
    found = contribution_set([scores([[9, 1], [8, 2]], [[1, 7], [3, 0]])], Readings(top_global=2))
    assert found.neuron_K.tolist() == [0, 1, 2]
    assert found.consensus == 3  # Eq. 4
    assert found.neuron_K.dtype == np.int32


def test_main_set_doesnt_depend_on_the_chunks():
    score_TLF = torch.randn(11, 3, 7, generator=torch.manual_seed(0))
    readings = Readings(top_global=4)
    whole = contribution_set([score_TLF], readings)
    parts = contribution_set(score_TLF.split(2), readings)
    assert whole.neuron_K.tolist() == parts.neuron_K.tolist()


def test_neurons_that_push_away_from_the_token_are_in_no_set():
    for sets in ("main", "appendix"):
        readings = Readings(sets=sets, top_global=3, top_layer=2)  # pyright: ignore
        found = contribution_set([scores([[5, -1], [0, -2]])], readings)
        assert found.neuron_K.tolist() == [0], sets


def test_r9_appendix_counts_before_the_top_over_all_layers():
    """Top 2 per layer and chunk. Chunk 1 has the maxima (4, 3, 1 | 2, 6, 5): keeps 0, 1, 4, 5.
    Chunk 2 has (1, 0, 9 | 7, 1, 0): keeps 0, 2, 3, 4. The union of 0..5 counts 6; the two largest
    of (4, 3, 9 | 7, 6, 5) are 2 and 3."""
    chunks = [
        scores([[4, 1, 0], [2, 6, 1]], [[0, 3, 1], [1, 0, 5]]),
        scores([[1, 0, 9], [7, 1, 0]]),
    ]
    found = contribution_set(chunks, Readings(sets="appendix", top_layer=2, top_global=2))
    assert found.consensus == 6
    assert found.neuron_K.tolist() == [2, 3]


def test_r9_appendix_keeps_the_largest_score_over_chunks():
    """Neuron 1 scores 2 and then 8, neuron 0 scores 5: only the maximum puts 1 first."""
    chunks = [scores([[5, 2]]), scores([[1, 8]])]
    found = contribution_set(chunks, Readings(sets="appendix", top_layer=2, top_global=1))
    assert found.neuron_K.tolist() == [1]


def test_budgets_are_numbers_or_shares():
    assert nopsd.budget(5000, 1536) == 1536
    assert nopsd.budget(5, 1536) == 5
    assert nopsd.budget(0.014, 1536) == 22
    assert nopsd.budget(0.0001, 1536) == 1


def test_a_response_without_tokens_has_an_empty_set():
    found = contribution_set([], Readings())
    assert (len(found.neuron_K), found.consensus) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sets": "both"}, {"activation": "up"}, {"top_global": 0}, {"top_layer": 2.5},
        {"chunk_tokens": 0}, {"demonstration": "all"}, {"loss": "max"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_readings_outside_their_range_are_refused_by_name(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Readings(**wrong)


# --- Algorithm 1, stage 2


@pytest.mark.parametrize(
    ("how", "expected"), [("bottom", [1, 4]), ("top", [0, 2]), ("all", [0, 1, 2, 3, 4])]
)
def test_selection_by_rank(how, expected):
    assert select(np.array([9, 1, 8, 5, 3]), Selection(select=how, share=0.4)).tolist() == expected


def test_band_is_between_two_shares_of_the_ranking():
    """Ranked: 1 (s=1), 4 (3), 3 (5), 2 (8), 0 (9); shares .2 to .6 are places 1 and 2."""
    band = Selection(select="band", band=(0.2, 0.6))
    assert select(np.array([9, 1, 8, 5, 3]), band).tolist() == [3, 4]


def test_equal_consensus_is_taken_in_the_pools_order_and_never_too_much():
    assert select(np.zeros(10), Selection(share=0.2)).tolist() == [0, 1]
    assert select(np.zeros(3), Selection(share=0.01)).tolist() == [0]


def test_random_selection_follows_the_seed():
    one, again, other = (
        select(np.arange(100), Selection(select="random", share=0.3), seed=s).tolist()
        for s in (1, 1, 2)
    )
    assert one == again != other
    assert len(set(one)) == 30


@pytest.mark.parametrize(
    "wrong", [{"select": "best"}, {"share": 0}, {"share": 1.5}, {"band": (0.6, 0.4)}]
)
def test_wrong_selections_are_refused(wrong):
    with pytest.raises(BadInput):
        Selection(**wrong)


# --- Eq. 5 and 6


def brute(sets: list[np.ndarray], k: int, queries, candidates) -> tuple[list, list]:
    """Distances of Eq. 5 one by one, sorted."""
    indices, distances = [], []
    for q in queries:
        a, ranked = set(sets[q].tolist()), []
        for c in candidates:
            b = set(sets[c].tolist())
            if c != q:
                ranked.append((1 - len(a & b) / len(a | b) if a | b else 0.0, c))
        ranked.sort()
        indices.append([c for _, c in ranked[:k]])
        distances.append([d for d, _ in ranked[:k]])
    return indices, distances


def test_eq05_jaccard_distance_by_hand():
    """{1,2,3} and {2,3,4}: 1 - 2/4; {1,2,3} and {9}: 1."""
    sets = gather([np.array(s, np.int32) for s in ([1, 2, 3], [2, 3, 4], [9])], 10)
    found = nearest(sets, 2)
    assert found.index_QK.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert found.distance_QK[0].tolist() == [0.5, 1.0]
    assert nopsd.mean_distance(sets) == pytest.approx((0.5 + 1 + 1) / 3)


@given(
    sizes=st.lists(st.integers(0, 12), min_size=2, max_size=30),
    k=st.integers(1, 6),
    block=st.integers(1, 9),
    common=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=120)
def test_eq06_neighbours_are_those_of_brute_force(sizes, k, block, common, seed):
    """Small universes give many ties and many common neurons; every path has to agree."""
    rng = np.random.default_rng(seed)
    sets = [np.sort(rng.choice(15, size, replace=False)).astype(np.int32) for size in sizes]
    N = len(sets)
    queries = np.sort(rng.choice(N, rng.integers(1, N + 1), replace=False))
    candidates = np.sort(rng.choice(N, rng.integers(1, N + 1), replace=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nopsd, "COMMON", common)
        patch.setattr(nopsd, "COLUMNS", 4)
        found = nearest(gather(sets, 15), k, queries=queries, candidates=candidates, block=block)
    indices, distances = brute(sets, k, queries, candidates)
    width = found.index_QK.shape[1]
    assert width == min(k, min(map(len, indices)))
    assert found.index_QK.tolist() == [row[:width] for row in indices]
    for got, row in zip(found.distance_QK, distances, strict=True):
        np.testing.assert_allclose(got, row[:width], atol=1e-15)


def test_recall_is_one_on_sets_with_a_common_core():
    rng = np.random.default_rng(0)
    sets = [
        np.union1d(rng.choice(60, 40, replace=False), rng.choice(3000, 80, replace=False)).astype(
            np.int32
        )
        for _ in range(150)
    ]
    found = nearest(gather(sets, 3000), 10, block=64)
    indices, _ = brute(sets, 10, range(150), range(150))
    assert found.index_QK.tolist() == indices


def test_blocks_whose_sizes_rule_them_out_are_not_compared(monkeypatch):
    """Sets of 4 and of 400 neurons can't be neighbours while there are enough of one kind."""
    rng = np.random.default_rng(0)
    sets = [np.sort(rng.choice(500, n, replace=False)).astype(np.int32) for n in [4, 400] * 20]
    for start in range(0, 40, 2):
        sets[start] = np.array([1, 2, 3, start + 10], np.int32)
    compared = []
    real = nopsd._Overlaps.similarity

    def counted(self, rows, others):
        compared.append((rows, others))
        return real(self, rows, others)

    monkeypatch.setattr(nopsd._Overlaps, "similarity", counted)
    found = nearest(gather(sets, 500), 3, block=10)
    assert found.index_QK.tolist() == brute(sets, 3, range(40), range(40))[0]
    assert len(compared) < 10  # of 4 blocks there are 10 pairs


def test_mean_distance_of_a_large_pool_is_that_of_a_sample():
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.choice(90, 30, replace=False)).astype(np.int32) for _ in range(80)]
    sets = gather(drawn, 90)
    whole = nopsd.mean_distance(sets, block=7)
    assert whole == pytest.approx(nopsd.mean_distance(sets))
    assert nopsd.mean_distance(sets, most=40, seed=1) == pytest.approx(whole, abs=0.01)
    assert math.isnan(nopsd.mean_distance(gather([np.array([1], np.int32)], 5)))


def test_random_contexts_are_other_questions_and_follow_the_seed():
    able = np.array([0, 2, 3, 5, 8])
    queries = np.array([2, 4, 5])
    one, again, other = (
        nopsd.random_contexts(10, 3, queries=queries, candidates=able, seed=s) for s in (0, 0, 1)
    )
    assert one.tolist() == again.tolist() != other.tolist()
    for query, row in zip(queries, one, strict=True):
        assert query not in row
        assert len(set(row)) == 3
        assert set(row) <= set(able)


# --- Eq. 10


def plain_kl(student, teacher, head, other, weight, softcap):
    """Eq. 10 as it is written, with all logits at once."""
    z, y = student @ head.T, teacher @ other.T
    if softcap:
        z, y = softcap * torch.tanh(z / softcap), softcap * torch.tanh(y / softcap)
    log_p, log_q = z.log_softmax(-1), y.log_softmax(-1)
    kl_T = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (kl_T * weight).sum(), kl_T


def test_eq10_is_student_against_teacher_and_not_the_reverse():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = log(2 / sqrt(3)) = 0.1438; reversed 0.1308."""
    head = torch.eye(2)
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[0.0, math.log(3)]])
    found = reverse_kl(student, teacher, head)
    assert found.kl_T.item() == pytest.approx(0.143841, abs=1e-6)
    assert found.student_entropy_T.item() == pytest.approx(math.log(2), abs=1e-6)
    assert found.teacher_entropy_T.item() == pytest.approx(0.562335, abs=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("own_head", [False, True], ids=["shared head", "teacher's head"])
def test_chunked_kl_and_its_gradients_equal_the_unchunked(softcap, own_head):
    torch.manual_seed(0)
    T, D, V = 23, 8, 41
    student = torch.randn(T, D, requires_grad=True)
    teacher = torch.randn(T, D, requires_grad=True)
    head = torch.randn(V, D, requires_grad=True)
    other = torch.randn(V, D) if own_head else None
    weight = torch.rand(T)
    found = reverse_kl(
        student, teacher, head, teacher_head_VD=other, weight_T=weight, softcap=softcap,
        factor=0.5, chunk_tokens=5,
    )  # fmt: skip
    (found.total * 0.7).backward()
    wide = [x.detach().double().requires_grad_() for x in (student, head)]
    second = wide[1].detach() if other is None else other.double()
    half, teacher_half = wide[0] * 0.5, teacher.detach().double() * 0.5
    total, kl_T = plain_kl(half, teacher_half, wide[1], second, weight, softcap)
    (total * 0.7).backward()
    torch.testing.assert_close(found.kl_T.double(), kl_T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.total.double(), total, rtol=1e-6, atol=1e-6)
    for mine, exact in zip((student, head), wide, strict=True):
        assert mine.grad is not None and exact.grad is not None
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert teacher.grad is None


def test_the_chunk_size_changes_no_bit_of_the_divergence():
    torch.manual_seed(0)
    student, teacher, head = torch.randn(40, 8), torch.randn(40, 8), torch.randn(30, 8)
    a, b = (reverse_kl(student, teacher, head, chunk_tokens=n) for n in (8, 40))
    torch.testing.assert_close(a.kl_T, b.kl_T, rtol=1e-6, atol=1e-6)
    assert a.agree_T.tolist() == b.agree_T.tolist()


def test_kl_is_zero_with_a_zero_gradient_where_both_are_the_same():
    torch.manual_seed(0)
    student = torch.randn(6, 4, requires_grad=True)
    found = reverse_kl(student, student.detach().clone(), torch.randn(9, 4))
    found.total.backward()
    assert found.kl_T.abs().max() < 1e-6
    assert student.grad is not None and student.grad.abs().max() < 1e-6
    assert found.agree_T.tolist() == [1.0] * 6


def test_bfloat16_states_give_gradients_in_their_own_dtype():
    torch.manual_seed(0)
    student = torch.randn(6, 4, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(9, 4, dtype=torch.bfloat16, requires_grad=True)
    found = reverse_kl(student, torch.randn(6, 4, dtype=torch.bfloat16), head)
    found.total.backward()
    assert found.total.dtype == torch.float32
    for tensor in (student, head):
        assert tensor.grad is not None and tensor.grad.dtype == torch.bfloat16


def test_under_autocast_only_the_logits_are_rounded():
    """Sums over the vocabulary in bfloat16 would be wrong by more than a small divergence."""
    torch.manual_seed(0)
    student = torch.randn(9, 8, requires_grad=True)
    teacher = (student + 0.1 * torch.randn(9, 8)).detach()
    head = torch.randn(500, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = reverse_kl(student, teacher, head, chunk_tokens=4)
        z, y = (x @ head.T for x in (student, teacher))
    assert z.dtype == torch.bfloat16
    log_p, log_q = (x.detach().double().log_softmax(-1) for x in (z, y))
    torch.testing.assert_close(
        found.kl_T.double(), (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-4, atol=2e-6
    )
    assert {tensor.dtype for tensor in found} == {torch.float32}
    found.total.backward()
    for tensor in (student, head):
        assert tensor.grad is not None and tensor.grad.dtype == torch.float32


def test_no_tokens_have_no_divergence():
    found = reverse_kl(torch.zeros(0, 4), torch.zeros(0, 4), torch.randn(9, 4))
    assert found.total == 0 and len(found.kl_T) == len(found.agree_T) == 0


# --- diagnostics


def test_tab5_room_is_what_the_majority_leaves():
    assert nopsd.room_for_sharpening(np.array([1.0, 0.5])) == 0.25
    assert nopsd.room_for_sharpening(np.array([1.0, 1.0])) == 0.0


def test_tab6_gap_averages_over_the_response_then_over_questions():
    """Question 1: (1 + 3) / 2 = 2 against 1, question 2: 4 against 5: gaps -1 and 1."""
    student, teacher, gap_Q = nopsd.entropy_gap(
        [np.array([1.0, 3.0]), np.array([4.0])], [np.array([1.0, 1.0]), np.array([5.0])]
    )
    assert (student, teacher) == (3.0, 3.0)
    assert gap_Q.tolist() == [-1.0, 1.0]
