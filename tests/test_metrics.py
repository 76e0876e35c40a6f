import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon import metrics

# Three prompts of four samples: a 2:1 majority that is right, a tie, and one vote only.
ANSWERS = [["7", "7", "3", None], ["1", "2", "1", "2"], [None, None, "5", None]]
CORRECT = [[True, True, False, False], [True, False, True, False], [False, False, False, False]]


# ---------------------------------------------------------------- accuracy


def test_avg_at_k_is_the_mean_accuracy_of_a_sample():
    """Shares 2/4, 2/4 and 0; a prompt without samples has none."""
    assert metrics.accuracy_by_prompt(CORRECT).tolist() == [0.5, 0.5, 0.0]
    assert np.isnan(metrics.accuracy_by_prompt([[True], []])).tolist() == [False, True]


def test_maj_at_k_counts_a_tie_as_the_chance_of_a_right_draw():
    """7 wins and is right: 1. 1 and 2 tie, one of them right: 1/2. 5 wins and is wrong: 0."""
    assert metrics.majority_by_prompt(ANSWERS, CORRECT).tolist() == [1.0, 0.5, 0.0]


def test_maj_at_k_without_any_answer_is_wrong_and_without_samples_nan():
    assert metrics.majority_by_prompt([[None, None]], [[False, False]]).tolist() == [0.0]
    assert np.isnan(metrics.majority_by_prompt([[]], [[]])).all()


def test_maj_at_k_refuses_samples_without_a_verdict():
    with pytest.raises(ValueError, match="shorter"):
        metrics.majority_by_prompt([["1", "2"]], [[True]])


def test_agreement_counts_truncated_samples_as_samples():
    """2, 2 and 1 votes of 4 each."""
    assert metrics.agreement_by_prompt([*ANSWERS, [None]]).tolist() == [0.5, 0.5, 0.25, 0.0]
    assert np.isnan(metrics.agreement_by_prompt([[]])).all()


# ---------------------------------------------------------------- ECE


def ece(confidence_P, right_P, bins: int = 15) -> float:
    gap_PX = metrics.calibration_gaps(np.array(confidence_P), np.array(right_P), bins=bins)
    return float(np.abs(gap_PX.mean(axis=0)).sum())


def test_ece_by_hand():
    """Confidences .5, .5 and .25 with accuracies 1, .5 and 0. Bins of 1/15: .5 is in (7/15, 8/15]
    with mean accuracy .75, .25 in (3/15, 4/15]: (2 * .25 + 1 * .25) / 3 = .25."""
    confidence_P = metrics.agreement_by_prompt(ANSWERS)
    right_P = metrics.majority_by_prompt(ANSWERS, CORRECT)
    assert ece(confidence_P, right_P) == pytest.approx(0.25)


def test_ece_bins_include_their_upper_end():
    """In two bins, .5 falls with .1 and not with .6: |1 - .6| + |0 - .6| over 3 instead of
    |0 - .1| + |1 - 1.1| over 3. Zero is in the first bin."""
    assert ece([0.1, 0.5, 0.6], [0, 1, 0], bins=2) == pytest.approx(1.0 / 3)
    assert ece([0.0, 0.5], [0, 0.5], bins=2) == 0.0


@pytest.mark.parametrize(("k", "bins"), [(3, 15), (5, 15), (8, 15), (25, 25), (29, 29)])
def test_ece_puts_a_share_on_an_edge_below_it_despite_rounding(k, bins):
    """votes/k and its neighbour just above land in different bins when votes/k is an edge: their
    gaps of opposite sign don't cancel. 7/25 * 25 is above 7 in floating point."""
    for votes in range(1, k):
        if votes * bins % k == 0:
            share = votes / k
            apart = ece([share, share + 1e-6], [1, 0], bins=bins)
            assert apart == pytest.approx((1 - share + share + 1e-6) / 2)


def test_calibration_gaps_can_be_resampled_like_a_mean():
    """Gaps of +.5, 0 (a tie) and -.25 in columns 7, 7 and 3; their means add up to the ECE."""
    gap_PX = metrics.calibration_gaps(np.array([0.5, 0.5, 0.25]), np.array([1.0, 0.5, 0.0]))
    assert gap_PX.shape == (3, 15)
    assert gap_PX[:, 7].tolist() == [0.5, 0, 0] and gap_PX[:, 3].tolist() == [0, 0, -0.25]
    assert np.abs(gap_PX.mean(axis=0)).sum() == pytest.approx(0.25)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_ece_is_between_zero_and_one_and_at_least_the_overall_gap(pairs):
    confidence_P, right_P = (np.array(side) for side in zip(*pairs, strict=True))
    error = ece(confidence_P, right_P)
    assert abs(right_P.mean() - confidence_P.mean()) - 1e-9 <= error <= 1


# ---------------------------------------------------------------- selection quality


def test_pearson_by_hand():
    """Deviations (-1, 0, 1) and (-1, 2, -1) are orthogonal; (1, 2, 4) and (1, 3, 2): products
    sum to 1.0, squares to 42/9 and 2: r = 1 / sqrt(28/3)."""
    assert metrics.pearson([1, 2, 3], [0, 3, 0]) == pytest.approx(0)
    assert metrics.pearson([1, 2, 4], [1, 3, 2]) == pytest.approx(1 / math.sqrt(28 / 3))
    assert metrics.pearson([1, 2, 3], [-2, -4, -6]) == -1.0
    assert metrics.pearson([1e-200, 2e-200, 4e-200], [1, 2, 4]) == pytest.approx(1)


def test_ranks_share_their_mean_on_ties():
    assert metrics.ranks([30, 10, 30, 20]).tolist() == [3.5, 1, 3.5, 2]


def test_spearman_by_hand():
    """Ranks (1, 2, 3, 4) and (1, 3, 2, 4): 1 - 6 * 2 / (4 * 15) = 0.8. With a tie, (1, 2.5, 2.5, 4)
    against (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5)."""
    assert metrics.spearman([1, 2, 3, 9], [0.1, 0.3, 0.2, 0.9]) == pytest.approx(0.8)
    tied = metrics.spearman([1, 2, 2, 9], [0.1, 0.2, 0.3, 0.9])
    assert tied == pytest.approx(4.5 / math.sqrt(22.5))


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1))
def test_spearman_sees_only_the_order(scores):
    truth = list(range(len(scores)))
    grown = [math.exp(s / 10) for s in scores]
    assert metrics.spearman(grown, truth) == pytest.approx(metrics.spearman(scores, truth))


def test_regret_is_in_percentage_points_below_the_best():
    """The favourite has .70 where the best has .75; two favourites with .70 and .60 cost 10."""
    truth = [0.75, 0.70, 0.60]
    assert metrics.regret_at_1([1, 3, 2], truth) == pytest.approx(5)
    assert metrics.regret_at_1([1, 3, 3], truth) == pytest.approx(10)
    assert metrics.regret_at_1([3, 1, 2], truth) == 0


def test_hit_at_3_asks_for_a_truly_best_candidate_among_the_three_favourites():
    truth = [0.5, 0.6, 0.9, 0.7, 0.4]
    assert metrics.hit_at_3([1, 2, 3, 4, 5], truth) == 1
    assert metrics.hit_at_3([5, 4, 1, 3, 2], truth) == 0
    assert metrics.hit_at_3([1, 2], [0.2, 0.1]) == 1
    assert metrics.hit_at_3([5, 4, 1, 3, 2], [0.9, 0.1, 0.9, 0.1, 0.1]) == 1


def test_hit_at_3_takes_the_chance_where_scores_tie():
    """One place is left for two tied candidates, one of them the best: 1/2. All five tied: 3/5."""
    truth = [0.5, 0.6, 0.9, 0.7, 0.4]
    assert metrics.hit_at_3([5, 4, 1, 1, 0], truth) == 0.5
    assert metrics.hit_at_3([2, 2, 2, 2, 2], truth) == pytest.approx(3 / 5)


@pytest.mark.parametrize("measure", [metrics.pearson, metrics.spearman])
def test_correlation_with_a_constant_is_nan(measure):
    assert math.isnan(measure([0.1, 0.1, 0.1], [1, 2, 3]))
    assert math.isnan(measure([1, 2, 3], [0.3, 0.3, 0.3]))
    assert math.isnan(measure([1], [1]))


@pytest.mark.parametrize(
    "measure", [metrics.pearson, metrics.spearman, metrics.regret_at_1, metrics.hit_at_3]
)
def test_selection_quality_without_values_is_nan(measure):
    assert math.isnan(measure([], []))
    assert math.isnan(measure([1, math.nan, 2], [1, 2, 3]))
    assert math.isnan(measure([1, 5, 2], [1, 2, math.inf]))
    with pytest.raises(ValueError, match=r"2.* scores, .*3.* true accuracies"):
        measure([1, 2], [1, 2, 3])


def test_selection_quality_is_over_the_candidates_with_an_accuracy():
    """The favourite "d" has no accuracy; of the others "a" comes first, 10 pp below "b"."""
    found = metrics.selection_quality(
        {"a": 3.0, "b": 2.0, "c": 1.0, "d": 9.0}, {"c": 0.2, "a": 0.5, "b": 0.6, "unknown": 1.0}
    )
    assert list(found) == ["pearson", "spearman", "regret_at_1", "hit_at_3"]
    assert found["spearman"] == pytest.approx(0.5)
    assert found["regret_at_1"] == pytest.approx(10)
    assert found["hit_at_3"] == 1


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    """100 prompts, half of them right: the mean is .5 +- 1.96 * .05."""
    low, high = metrics.bootstrap_interval([0.0, 1.0] * 50, seed=1)
    assert low == pytest.approx(0.402, abs=0.015)
    assert high == pytest.approx(0.598, abs=0.015)
    narrow = metrics.bootstrap_interval([0.0, 1.0] * 50, seed=1, level=0.5)
    assert low < narrow.low < 0.5 < narrow.high < high


def test_bootstrap_is_repeatable_and_seeded():
    values_P = np.random.default_rng(0).random(30)
    first = metrics.bootstrap_interval(values_P, seed=3)
    assert first == metrics.bootstrap_interval(values_P, seed=3)
    assert first != metrics.bootstrap_interval(values_P, seed=4)


def test_bootstrap_leaves_missing_values_out():
    """The mean of the three values present is always among 1, 2 and 3; nothing present is nan."""
    means_B = metrics.resampled_means([1.0, math.nan, 2.0, 3.0, math.nan], n=500)
    assert np.nanmin(means_B) >= 1 and np.nanmax(means_B) <= 3
    assert np.isnan(means_B).any()  # resamples of the two missing prompts only
    low, high = metrics.bootstrap_interval([1.0, math.nan, 2.0, 3.0, math.nan], n=500)
    assert 1 <= low < 2 < high <= 3
    for empty in ([], [math.nan, math.nan]):
        assert all(map(math.isnan, metrics.bootstrap_interval(empty)))


def test_columns_of_the_same_resamples_see_a_small_but_steady_difference():
    """b is a minus 0.01 for every prompt, both widely spread: the interval of a - b is 0.01."""
    a_P, c_P = np.random.default_rng(0).random(40), np.random.default_rng(1).random(40)
    means_B3 = metrics.resampled_means(np.stack([a_P, a_P - 0.01, c_P], axis=1))
    assert metrics.percentile_interval(means_B3[:, 0] - means_B3[:, 1]) == pytest.approx(0.01)
    low, high = metrics.percentile_interval(means_B3[:, 0] - means_B3[:, 2])
    assert low < 0 < high


def test_many_candidates_at_once_equal_one_by_one():
    values_PCS = np.random.default_rng(0).random((25, 4, 3))
    means_BCS = metrics.resampled_means(values_PCS, seed=5)
    ends_CS2 = metrics.percentile_interval(means_BCS)
    for c, s in np.ndindex(4, 3):
        alone = metrics.bootstrap_interval(values_PCS[:, c, s], seed=5)
        assert ends_CS2[c, s] == pytest.approx(alone)


def test_bootstrap_of_twenty_candidates_and_eight_scores_is_fast():
    values_PCS = np.random.default_rng(0).random((100, 20, 8))
    start = time.process_time()
    ends = metrics.percentile_interval(metrics.resampled_means(values_PCS))
    assert ends.shape == (20, 8, 2)
    assert time.process_time() - start < 1


def test_consistency_averages_over_every_window_of_samples():
    answers, correct = [["1", "2", "2", None]], [[True, False, False, False]]
    # windows of two: 1 2 (a tie: half), 2 2, 2 -, - 1
    assert metrics.consistency_by_prompt(answers, correct, 2)[0] == pytest.approx(
        (0.5 + 0 + 0 + 1) / 4
    )
    assert metrics.consistency_by_prompt(answers, correct, 1)[0] == 0.25
    assert metrics.consistency_by_prompt(answers, correct, 4)[0] == 0.0


def test_a_parabola_is_found_by_hand_and_tested_against_the_line():
    """y = 1 - (x - 3)^2 / 4 at 0..6: b = 1.5, c = -.25, a = 1 - 9/4, vertex 3; symmetric, so the
    line explains nothing. A straight line leaves nothing to the square: p = 1."""
    x = np.arange(7.0)
    fit = metrics.parabola(x, 1 - (x - 3) ** 2 / 4)
    assert fit is not None
    assert (fit.a, fit.b, fit.c) == pytest.approx((-1.25, 1.5, -0.25))
    assert (fit.vertex, fit.r2, fit.r2_line, fit.p) == pytest.approx((3, 1, 0, 0), abs=1e-9)
    far = metrics.parabola(x + 1e4, 1 - (x - 3) ** 2 / 4)
    assert far is not None and far.vertex == pytest.approx(10_003)
    straight = metrics.parabola(x, 2 * x)
    assert straight is not None and straight.p == 1
    assert metrics.parabola(x[:3], x[:3]) is None
    assert metrics.parabola([1, 1, 2, 2, 2], [0, 1, 2, 3, 4]) is None
    assert metrics.parabola(x, np.ones(7)) is None


def test_the_f_test_of_a_parabola_agrees_with_the_t_test_of_its_square():
    """F(1, n - 3) of one more term is t^2 of that term, here from the normal equations."""
    rng = np.random.default_rng(0)
    x, noise = rng.uniform(0, 10, 15), rng.normal(0, 0.3, 15)
    y = 0.02 * x - 0.01 * x**2 + noise
    fit = metrics.parabola(x, y)
    design = np.stack([np.ones(15), x, x**2], 1)
    beta = np.linalg.solve(design.T @ design, design.T @ y)
    variance = ((y - design @ beta) ** 2).sum() / 12
    t = beta[2] / math.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2])
    from scipy.stats import t as student

    assert fit is not None and fit.p == pytest.approx(2 * student.sf(abs(t), 12))


def test_corrected_interval_takes_off_the_shift_of_the_resamples_and_holds_the_value():
    """Resamples .7 and .8 around .75, .05 below a value of .8: centre .85, root mean square
    sqrt((.1^2 + 0) / 2)."""
    ends = metrics.corrected_interval(np.array([0.8]), np.array([[0.7], [0.8]]))
    half = 1.96 * math.sqrt(0.005)
    np.testing.assert_allclose(ends, [[0.85 - half, min(1, 0.85 + half)]])
    assert ends[0, 0] <= 0.8 <= ends[0, 1]


def test_the_set_that_may_be_best_holds_the_best_as_often_as_it_says():
    """Eight equal candidates and four that are 1 worse: 60 prompts with noise of 1."""
    rng, kept, out = np.random.default_rng(0), 0, 0
    mean_C = np.array([1.0] * 8 + [0.0] * 4)
    for seed in range(120):
        value_PC = rng.normal(mean_C, 1, (60, 12))
        drawn_BC = metrics.resampled_means(value_PC, seed=seed, n=300)
        inside_C = metrics.may_be_best(value_PC.mean(0), drawn_BC)
        kept += int(inside_C[0])
        out += int((~inside_C[8:]).sum())
    assert kept / 120 >= 0.9 and out / 480 > 0.95
    assert metrics.may_be_best(np.array([1.0, math.nan]), np.full((9, 2), math.nan)).all()


def test_the_jackknife_error_of_a_mean_is_its_standard_error_and_groups_are_few():
    values_PX = np.random.default_rng(0).normal(size=(37, 2))
    values_PX[3, 1] = np.nan
    left_JX = metrics.left_out_means(values_PX)
    assert left_JX[5, 0] == pytest.approx(np.delete(values_PX[:, 0], 5).mean())
    assert left_JX[3, 1] == pytest.approx(np.nanmean(values_PX[:, 1]))
    expected = values_PX[:, 0].std(ddof=1) / np.sqrt(37)
    assert metrics.jackknife_error(left_JX)[0] == pytest.approx(expected)
    count_JP = metrics.left_out_counts(1001, most=200)
    assert count_JP.shape == (200, 1001) and (count_JP.sum(0) == 199).all()
    assert metrics.left_out_counts(0).shape == (0, 0)


def test_what_is_taken_off_a_learned_share_widens_its_interval():
    """Half a width is t times the jackknife's error and the shift, in quadrature."""
    left_JX = np.array([[0.50], [0.52], [0.54], [0.56]])
    low, high = metrics.corrected_interval(np.array([0.5]), np.full((9, 1), 0.4), left_JX)[0]
    error = np.sqrt(3 / 4 * ((left_JX - 0.53) ** 2).sum())
    assert (low + high) / 2 == pytest.approx(0.6)
    assert (high - low) / 2 == pytest.approx(3.1824463 * np.hypot(error, 0.1))
    unknown = metrics.corrected_interval(np.array([0.5]), np.full((9, 1), 0.4), left_JX * np.nan)
    assert unknown == pytest.approx(
        metrics.corrected_interval(np.array([0.5]), np.full((9, 1), 0.4))
    )
