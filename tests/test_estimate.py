"""The label-free estimate of accuracy, on votes whose truth is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import estimate as simulation
from benchmarks import relatives
from surgeon import estimate, metrics
from surgeon.estimate import ABSENT, UNREADABLE


def votes(*prompts: list[list[str | None]]) -> np.ndarray:
    return estimate.numbered(prompts)


def test_answers_become_numbers_within_a_prompt():
    answers = votes([["7", "8"], ["8", None]], [["1"], ["1", "2"]])
    assert answers.tolist() == [[[0, 1], [1, UNREADABLE]], [[0, ABSENT], [0, 1]]]


def test_nothing_at_all_has_no_estimate():
    for empty in (votes(), votes([[], []]), votes([["1"]]), votes([[None], [None]])):
        found = estimate.estimate(empty)
        assert np.isnan(found.accuracy_C).all() and len(found.accuracy_C) == empty.shape[1]
        assert estimate.interval(found, metrics.resampled_means(found.match_PC)).shape[1] == 2
        assert len(estimate.dawid_skene(empty).accuracy_C) == empty.shape[1]
    assert math.isnan(estimate.signs(votes()).share)


def test_shares_count_unreadable_samples_and_leave_absent_ones_out():
    found = estimate.shares(votes([["7", None], ["7"], []]))
    np.testing.assert_array_equal(found, [[[0.5], [1.0], [math.nan]]])


def test_equal_votes_share_the_first_place_and_no_vote_has_none():
    tally = np.array([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0], [0.1 + 0.2, 0.3, 0.0]])
    expected = [[0.5, 0.5, 0], [0, 0, 0], [0.5, 0.5, 0]]
    assert estimate.plurality(tally).tolist() == expected


def test_own_samples_have_no_vote():
    """`b` repeats a wrong answer: with its own votes 2 would win the prompt."""
    found = estimate.estimate(votes([["1"], ["2", "2", "2"], ["1"]]))
    assert found.match_PC.tolist() == [[0.5, 0.0, 0.5]]
    # a and c see one vote for 1 and one for 2, a draw; b sees two votes for 1.


def test_what_cannot_be_read_is_wrong_and_votes_for_nothing():
    found = estimate.estimate(votes([["1", None], ["1", "1"], [None, None]]))
    assert found.match_PC.tolist() == [[0.5, 1.0, 0.0]]


def test_a_prompt_that_nobody_else_answers_says_nothing():
    found = estimate.estimate(votes([["1"], [None]], [["2"], ["2"]]))
    np.testing.assert_array_equal(found.match_PC, [[math.nan, 0.0], [1.0, 1.0]])
    assert found.match_C.tolist() == [1.0, 0.5]


def test_the_estimate_lies_between_the_match_and_what_the_vote_may_miss():
    rng = np.random.default_rng(4)
    answers, _ = simulation.draw(rng, simulation.Kind("few", 3))
    found = estimate.estimate(answers)
    assert ((found.match_C <= found.accuracy_C) & (found.accuracy_C <= 1)).all()
    assert (found.accuracy_C <= found.match_C / found.reliability_C + 1e-12).all()
    expected = np.minimum(found.match_C / np.sqrt(found.reliability_C), 1)
    assert found.accuracy_C == pytest.approx(expected)


def test_order_of_candidates_and_names_of_answers_change_nothing():
    rng = np.random.default_rng(5)
    answers, _ = simulation.draw(rng, simulation.Kind("six", 6))
    order = rng.permutation(6)
    other = np.where(answers >= 0, 9 - answers, answers)[:, order]
    before, after = estimate.estimate(answers), estimate.estimate(other)
    assert after.accuracy_C == pytest.approx(before.accuracy_C[order])
    fitted = estimate.dawid_skene(answers).accuracy_C[order]
    assert estimate.dawid_skene(other).accuracy_C == pytest.approx(fitted)


def measured(kind: simulation.Kind, seed: int) -> tuple[float, float, float]:
    """Mean error and regret of the vote, and how often its interval holds, over 20 draws."""
    rng, rows = np.random.default_rng(seed), []
    for n in range(20):
        answers, truth_C = simulation.draw(rng, kind)
        found = estimate.estimate(answers)
        ends = estimate.interval(found, metrics.resampled_means(found.match_PC, seed=n, n=200))
        held = ((ends[:, 0] <= truth_C) & (truth_C <= ends[:, 1])).mean()
        error = np.abs(found.accuracy_C - truth_C).mean()
        rows.append((error, metrics.regret_at_1(found.accuracy_C, truth_C), held))
    error, regret, held = np.mean(rows, axis=0).tolist()
    return error, regret, held


@pytest.mark.parametrize("kind", [k for k in simulation.KINDS if k.candidates >= 4][:8])
def test_independent_errors_are_estimated_and_the_interval_holds(kind):
    error, regret, held = measured(kind, seed=1)
    few = kind.prompts < 50
    assert error < (0.11 if few else 0.075) and regret < (8 if few else 4) and held >= 0.88


def test_a_good_minority_is_found_among_bad_candidates():
    _, regret, held = measured(simulation.Kind("", 8, accuracy=(0.1, 0.25), good=2), seed=2)
    assert regret < 3 and held > 0.85


def test_copies_share_one_vote_and_none_on_each_other():
    """Half of the candidates repeat one candidate's habits: without weights they vouch for each
    other."""
    kind = simulation.Kind("", 8, accuracy=(0.3, 0.7), copies=4)
    errors = []
    for seed in range(20):
        answers, truth_C = simulation.draw(np.random.default_rng(seed), kind)
        found = estimate.estimate(answers)
        like_CC = found.like_CC
        assert like_CC[:4, :4].min() > 0.3 and like_CC[4:, 4:][~np.eye(4, dtype=bool)].max() < 0.3
        plain = estimate.dawid_skene(answers).accuracy_C
        errors.append(np.abs([found.accuracy_C - truth_C, plain - truth_C]).mean(1))
    with_weights, without = np.mean(errors, axis=0)
    assert with_weights < 0.1 < 0.15 < without


def test_known_copies_count_once():
    """Two camps of two candidates outvote each other, until one is known to be one voter."""
    rng = np.random.default_rng(0)
    right = np.zeros((40, 1, 1), int)
    wrong = rng.integers(1, 9, (40, 1, 1))
    answers = np.concatenate([wrong, wrong, right, right], axis=1)
    copies = np.eye(4, dtype=bool)
    copies[0, 1] = copies[1, 0] = True
    unknown = estimate.estimate(answers)
    assert unknown.match_C.tolist() == [0.0] * 4
    found = estimate.estimate(answers, copies)
    assert found.match_C.tolist() == [0.0, 0.0, 0.5, 0.5]
    assert found.like_CC[0, 1] == 1


def test_dawid_skene_recovers_independent_coins_and_falls_for_copies():
    kind = simulation.Kind("", 10, prompts=100)
    answers, truth_C = simulation.draw(np.random.default_rng(3), kind)
    assert np.abs(estimate.dawid_skene(answers).accuracy_C - truth_C).mean() < 0.06


def test_scattered_answers_have_a_low_share_and_split_prompts():
    kind = simulation.Kind("", 8, accuracy=(0.02, 0.1))
    signs = estimate.signs(simulation.draw(np.random.default_rng(1), kind)[0])
    assert signs.share < 0.3 and signs.split > 0.8
    usual = estimate.signs(simulation.draw(np.random.default_rng(1), simulation.Kind("", 10))[0])
    assert usual.share > 0.4 and usual.split < 0.45 and usual.camps < 0.05


def test_two_stable_readings_are_camps():
    rng = np.random.default_rng(2)
    reading = np.where(np.arange(8) < 5, 0, 1)
    answers = np.broadcast_to(reading[None, :, None], (30, 8, 3)).copy()
    noise = rng.random(answers.shape) < 0.1
    answers = np.where(noise, rng.integers(2, 9, answers.shape), answers)
    assert estimate.signs(answers).camps > 0.5
    assert math.isnan(estimate.signs(answers[:, :, :1]).camps)


def test_recorded_votes_of_a_built_in_family():
    """19 merges, an over-thinking endpoint among them that NEX prefers (regret 47 points)."""
    recorded = json.loads((Path(__file__).parent / "data" / "votes.json").read_text())
    accuracy_C, nex_C = np.array(recorded["accuracy"]), np.array(recorded["nex"])
    answers = estimate.numbered(
        [
            [[None if a == "-" else a for a in word] for word in line.split(" ")]
            for line in recorded["answers"]
        ]
    )
    assert answers.shape == (100, 19, 3)
    found = estimate.estimate(answers)
    assert np.abs(found.accuracy_C - accuracy_C).mean() < 0.05
    assert metrics.pearson(found.accuracy_C, accuracy_C) > 0.97
    assert metrics.regret_at_1(nex_C, accuracy_C) > 40
    assert metrics.regret_at_1(nex_C * found.accuracy_C, accuracy_C) <= 3
    signs = estimate.signs(answers)
    assert signs.share > 0.5 and signs.split < 0.5 and signs.camps < 0.1


def test_a_group_that_errs_alike_doesnt_hide_its_errors_by_carrying_the_vote():
    """Five of nine candidates repeat each their neighbour's answers; the first vote takes those for
    right, and finds nobody alike enough (an error of .20 and a regret of 24 points)."""
    rng, errors, regrets, voices = np.random.default_rng(0), [], [], []
    for _ in range(10):
        accuracy_C = np.array([0.35] * 5 + [0.55, 0.62, 0.68, 0.75])
        answers = np.where(rng.random((300, 9)) < accuracy_C, 0, rng.integers(1, 10, (300, 9)))
        for c in range(1, 5):
            repeats_P = rng.random(300) < 0.7
            answers[:, c] = np.where(repeats_P, answers[:, c - 1], answers[:, c])
        truth_C = (answers == 0).mean(0)
        found = estimate.estimate(answers[..., None])
        errors.append(np.abs(found.accuracy_C - truth_C).mean())
        regrets.append(metrics.regret_at_1(found.accuracy_C, truth_C))
        voices.append(estimate.voices(found.like_CC))
    assert np.mean(errors) < 0.1 and np.mean(regrets) < 3 and max(voices) < 6
    assert estimate.voices(np.eye(4)) == 4 and estimate.voices(np.ones((4, 4))) == pytest.approx(1)


def test_one_sample_of_one_seed_makes_candidates_that_err_alike():
    """Neighbours in a family draw the same tokens from the same seed: three samples show that it is
    luck, one doesn't, and the sign says so."""
    answer_PCS, _, _ = relatives.recorded()["built-in"]
    assert estimate.signs(answer_PCS).voices > 0.9
    for s in range(3):
        assert estimate.signs(answer_PCS[:, :, [s]]).voices < 0.7
