import math
from dataclasses import replace
from itertools import product
from typing import Any

import literal_nex as literal
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon import metrics, nex
from surgeon.activations import Activations
from surgeon.errors import BadInput
from surgeon.nex import PRESETS, Readings

REFERENCE, PAPER = PRESETS["reference"], PRESETS["paper"]
EXACT = replace(REFERENCE, reuse_median_in="float64")
"""The reference but for R18, whose rounding depends on the order of a row's neurons."""
EVERY_READING = [
    replace(
        EXACT, log_time_from=a, reuse_median_over=b, short_run_joins=c, empty_response=d, credit=e
    )
    for a, b, c, d, e in product(
        (0, 1), ("all", "gated"), ("longer", "previous"), ("zero", "omitted"),
        ("introduced", "active"),
    )
]  # fmt: skip


def recorded(rows: list[dict[int, float]], tokens: list[int] | None = None) -> Activations:
    """The recording of these rows, one token each unless said otherwise."""
    keys = [sorted(row) for row in rows]
    return Activations(
        neuron_E=np.array([k for row in keys for k in row], np.int64),
        mass_E=np.array([rows[r][k] for r, row in enumerate(keys) for k in row], np.float32),
        start_R1=np.cumsum([0, *map(len, keys)]),
        tokens_R=np.array(tokens or [1] * len(rows), np.int32),
    )


def bursty(seed: int, n_rows: int = 48) -> Activations:
    """A response that recruits neurons in bursts, which later rows reuse more or less."""
    rng = np.random.default_rng(seed)
    rows, seen, recent, reuse = [], 6, np.arange(6), 0.5
    explores, left = True, 4
    for row in range(n_rows):
        if left == 0:
            explores, left = not explores, int(rng.integers(1, 8))
            recent = recent if not explores else recent[:0]
            reuse = rng.random()
        left -= 1
        # Early rows recruit much whatever the phase: late bursts fall below the median (Eq. 8).
        rate = (14 if explores else 1.5) * (0.4 + 6 * np.exp(-row / 9))
        fresh = np.arange(seen, seen + rng.poisson(rate))
        seen += len(fresh)
        recent = np.append(recent, fresh)
        old = rng.integers(0, seen, 12)
        keys = {*fresh, *old, *recent[rng.random(len(recent)) < reuse]}
        rows.append({int(k): float(rng.gamma(1.0) + 1e-3) for k in keys})
    return recorded(rows, [8] * (n_rows - 1) + [3])


def path(letters: str) -> np.ndarray:
    return np.array([letter == "E" for letter in letters], bool)


def letters(explore_R: np.ndarray) -> str:
    return "".join("E" if explores else "X" for explores in explore_R)


# ---------------------------------------------------------------- Eq. 1, 2, 18-22


def test_eq01_novelty_counts_neurons_never_seen_before_per_token():
    """{1,2} of 2 tokens: 2 new, 1.0. {2,3} of 4: only 3 is new, 0.25. {1,3} of 1: none, 0."""
    acts = recorded([{1: 1, 2: 1}, {2: 1, 3: 1}, {1: 1, 3: 1}], [2, 4, 1])
    first_K = nex.first_seen(acts)
    assert first_K.tolist() == [0, 1, 3]
    assert nex.novelty(acts, first_K).tolist() == [1.0, 0.25, 0.0]


def test_eq01_a_row_without_entries_has_slope_zero():
    acts = recorded([{}, {5: 1.0}, {}, {5: 1.0, 6: 1.0}, {}])
    assert nex.novelty(acts, nex.first_seen(acts)).tolist() == [0, 1, 0, 1, 0]


ROWS = st.lists(
    st.dictionaries(st.integers(0, 12), st.floats(0.25, 8, width=32), max_size=6), max_size=12
)


@given(ROWS)
def test_eq02_first_seen_is_the_first_occurrence_of_every_neuron(rows):
    acts = recorded(rows)
    expected = np.sort(np.unique(acts.neuron_E, return_index=True)[1])
    assert nex.first_seen(acts).tolist() == expected.tolist()


def test_eq18_20_standardise_by_hand():
    """Log-time is (0, ln 2, ln 3); v = (ln 3/2, -ln 3, ln 2) is orthogonal to it and to 1, so a log
    slope of 2 - 0.5 log-time + v/10 leaves v/10 as residual. Its median is ln(3/2)/10; centred it
    is (0, -ln 4.5, ln 4/3)/10, whose MAD is ln(4/3)/10: z = (0, -ln 4.5 / ln 4/3, 1)."""
    v = np.log([3 / 2, 1 / 3, 2])
    slope_R = np.expm1(2 - 0.5 * np.log([1, 2, 3]) + v / 10)
    z_R, mad = nex.standardise(slope_R, Readings(log_time_from=0))
    assert mad == pytest.approx(math.log(4 / 3) / 10)
    assert z_R == pytest.approx([0, -math.log(4.5) / math.log(4 / 3), 1], abs=1e-3)


def test_r1_log_time_starts_at_one_in_the_paper():
    """Log-time is (ln 2, ln 3, ln 4), and v = (ln 4/3, -ln 2, ln 3/2) is orthogonal to it and to 1.
    The median of v/10 is ln(4/3)/10; centred (0, -ln 8/3, ln 9/8)/10: z = (0, -ln 8/3 / ln 9/8, 1).
    """
    v = np.log([4 / 3, 1 / 2, 3 / 2])
    slope_R = np.expm1(2 - 0.5 * np.log([2, 3, 4]) + v / 10)
    z_R, mad = nex.standardise(slope_R, PAPER)
    assert mad == pytest.approx(math.log(9 / 8) / 10)
    assert z_R == pytest.approx([0, -math.log(8 / 3) / math.log(9 / 8), 1], abs=1e-3)
    assert nex.standardise(slope_R, REFERENCE).z_R != pytest.approx(z_R, abs=1e-2)


def test_r1_changes_which_rows_explore():
    changed = 0
    for seed in range(8):
        acts = bursty(seed)
        slope_R = nex.novelty(acts, nex.first_seen(acts))
        a, b = (nex.phases(slope_R, Readings(log_time_from=start)) for start in (0, 1))
        changed += int((a != b).sum())
    assert changed > 0


def test_eq21_emissions_are_the_two_groups_with_the_explore_state_last():
    """Groups at 5 and -1 without spread: variances are the floor of 1e-6."""
    mean_S, variance_S = nex.emissions(np.array([5.0] * 4 + [-1.0] * 6))
    assert mean_S == pytest.approx([-1, 5])
    assert variance_S == pytest.approx([1e-6, 1e-6], rel=1e-3)


def test_eq22_a_switch_must_be_worth_its_price():
    """With means 0 and 2 and variance 1, a row at z speaks for E by 2z - 2. One row alone costs two
    switches, 2 ln(.95/.05) = 5.89: 3 (by 4) isn't enough, 4.5 (by 7) is. With rho = .5 both are."""
    states = nex.Emissions(np.array([0.0, 2.0]), np.array([1.0, 1.0]))
    for z, rho, expected in ((3.0, 0.95, "XXXXX"), (4.5, 0.95, "XXEXX"), (3.0, 0.5, "XXEXX")):
        assert letters(nex.viterbi(np.array([0, 0, z, 0, 0.0]), states, rho)) == expected


# ---------------------------------------------------------------- R3: short runs


@pytest.mark.parametrize(
    ("decoded", "min_run", "previous", "longer"),
    [
        ("EEXEE", 2, "EEEEE", "EEEEE"),  # a flip of one row goes, whichever rule
        ("XEEE", 2, "EEEE", "EEEE"),  # the first run has only a next one
        ("EEEX", 2, "EEEE", "EEEE"),
        # X joins EEE (3 rows against 1). E stands beside 4 and 5 rows: it joins the 5.
        ("EEEXEXXXXX", 2, "EEEEEXXXXX", "EEEEXXXXXX"),
        # the same with 4 rows after: a tie, so the run before.
        ("EEEXEXXXX", 2, "EEEEEXXXX", "EEEEEXXXX"),
        # X joins E; these 2 rows are still short and join XXX. "previous" makes one walk only.
        ("XEXXX", 3, "EEXXX", "XXXXX"),
        ("EEXXEEEE", 3, "XXXXEEEE", "XXXXEEEE"),  # with 4 rows XX is no longer short
        ("XEXE", 1, "XEXE", "XEXE"),
        ("E", 2, "E", "E"),
        ("", 2, "", ""),
    ],
)
def test_r3_short_runs_join_a_neighbour(decoded, min_run, previous, longer):
    before, longest = (replace(preset, min_run=min_run) for preset in (REFERENCE, PAPER))
    assert letters(nex.smooth(path(decoded), before)) == previous
    assert letters(nex.smooth(path(decoded), longest)) == longer


@given(
    st.lists(st.booleans(), max_size=24), st.integers(1, 4), st.sampled_from(["longer", "previous"])
)
def test_r3_smoothing_agrees_with_the_literal_implementation(states, min_run, rule):
    readings = Readings(min_run=min_run, short_run_joins=rule)
    smoothed = nex.smooth(np.array(states, bool), readings)
    assert smoothed.tolist() == literal.without_short_runs(states, readings)
    runs = np.split(smoothed, np.flatnonzero(np.diff(smoothed)) + 1)
    if rule == "longer" and len(runs) > 1:
        assert min(map(len, runs)) >= min_run


# ---------------------------------------------------------------- R6 and other degenerate inputs


def test_r6_fewer_than_three_rows_have_no_cycles():
    evidence = nex.credit(recorded([{1: 1.0, 2: 1.0}, {1: 1.0}]))
    assert evidence.explore_R.tolist() == [False, False]
    assert (evidence.cycles, evidence.gated, len(evidence.neuron_K)) == (0, 0, 0)
    acts = bursty(0)
    assert nex.credit(acts).cycles > 0
    assert nex.credit(acts, Readings(min_rows=49)).cycles == 0


def test_r6_without_spread_a_positive_residual_explores():
    """MAD 0: E is where z > 0, or Eq. 20 as written: 3 and 4 are one group against the 0s."""
    z_R = np.array([0, 0, 3.0, 4, 0, 0, 0, -1e-3, 1e-3])
    observations = nex.Observations(z_R, 0.0)
    assert letters(nex.decode(observations, Readings(zero_mad="residual"))) == "XXEEXXXXE"
    assert letters(nex.decode(observations, Readings(zero_mad="epsilon"))) == "XXEEXXXXX"


def test_constant_novelty_has_no_explore_rows():
    for slope_R in (np.zeros(9), np.full(9, 2.5), np.expm1(3 - 0.4 * np.log1p(np.arange(9)))):
        for zero_mad in ("residual", "epsilon"):
            readings = Readings(zero_mad=zero_mad)
            observations = nex.standardise(slope_R, readings)
            if observations.mad > 0 or zero_mad == "epsilon":
                assert not nex.phases(slope_R, readings).any()


def test_empty_response_has_no_evidence_and_no_mass():
    acts = recorded([])
    evidence = nex.credit(acts)
    assert (len(evidence.neuron_K), len(evidence.slope_R), evidence.cycles) == (0, 0, 0)
    assert len(nex.standardise(evidence.slope_R).z_R) == 0
    neuron_K, mass_K = nex.response_mass(acts)
    score = nex.good_mass_fraction(neuron_K, mass_K, np.ones(4))
    assert (score.score, score.credible, score.mass) == (0.0, False, 0.0)
    assert math.isnan(score.reward) and math.isnan(score.bad)


def test_rows_without_any_entry_have_no_evidence():
    assert nex.credit(recorded([{}, {}, {}, {}])).cycles == 0


def test_readings_out_of_range_are_refused():
    wrong: list[tuple[str, Any]] = [
        ("rho", 1.0), ("rho", "x"), ("min_run", 0), ("min_rows", 2), ("min_run", 1.5),
        ("credit", "all"), ("log_time_from", 2), ("short_run_joins", "next"),
        ("reuse_median_over", "some"), ("empty_response", "one"), ("zero_mad", "x"),
    ]  # fmt: skip
    for name, value in wrong:
        with pytest.raises(BadInput, match=f"found {name} = .*, expected "):
            Readings(**{name: value})


def test_default_readings_are_the_reference_preset():
    assert Readings() == REFERENCE == nex.DEFAULT
    assert replace(REFERENCE, rho=0.9) != REFERENCE


# ---------------------------------------------------------------- cycles


def test_cycles_are_explore_runs_with_an_exploit_run_after_them():
    found = nex.cycles(path("XEEXXXEXEE"))
    assert [(e.start, e.stop, x.start, x.stop) for e, x in found] == [(1, 3, 3, 6), (6, 7, 7, 8)]
    assert nex.cycles(path("")) == nex.cycles(path("XX")) == nex.cycles(path("EE")) == []


def test_segments_count_a_last_explore_run_too():
    counted = [nex.segments(path(p)) for p in ("XEEXXXEXEE", "E", "EEX", "XX", "")]
    assert counted == [3, 1, 1, 0, 0]


# ---------------------------------------------------------------- Eq. 2, 5-10

TWO_CYCLES = [
    {0: 2.0, 1: 1.0},  # E: 0 and 1 are new, slope 2
    {0: 3.0, 2: 1.0},  # X: 2 is new, slope 1
    {0: 1.0, 3: 1.0, 4: 1.0},  # E: 3 and 4 are new, slope 2
    {0: 3.0, 3: 1.0},  # X: slope 0
]


def evidence_of(rows, phases: str, readings: Readings = EXACT) -> nex.Evidence:
    acts = recorded(rows)
    first_K = nex.first_seen(acts)
    return nex.cycle_credit(acts, first_K, nex.novelty(acts, first_K), path(phases), readings)


def by_neuron(evidence: nex.Evidence) -> dict[int, tuple[float, float]]:
    return {
        int(k): (round(p, 4), round(m, 4))
        for k, p, m in zip(*evidence[:3], strict=True)
    }  # fmt: skip


def test_eq05_to_eq10_by_hand():
    """Slopes (2, 1, 2, 0), median 1.5: both cycles pass by 0.5. Shares 3/4 and 1/4, median 1/2.
    Cycle 1: progress 1/4, consolidation 1 - 1/2, effective: 0 gets 2 * 1/4 * 1/2 = 1/4, 1 gets 1/8.
    Cycle 2: progress -1/4, redundant: 3 and 4 get 1 * 1/4."""
    evidence = evidence_of(TWO_CYCLES, "EXEX")
    assert by_neuron(evidence) == {
        0: (0.25, 0), 1: (0.125, 0), 3: (0, 0.25), 4: (0, 0.25),
    }  # fmt: skip
    assert (evidence.cycles, evidence.gated) == (2, 2)


def test_ablation_of_eq02_credits_all_active_neurons():
    """Cycle 2 now holds 0, 3 and 4, all the mass of its X phase: shares 3/4 and 1, median 7/8.
    Cycle 1: progress -1/8: 0 gets 2/8, 1 gets 1/8. Cycle 2: 1/8 * consolidation 1 each."""
    evidence = evidence_of(TWO_CYCLES, "EXEX", replace(EXACT, credit="active"))
    assert by_neuron(evidence) == {
        0: (0.125, 0.25), 1: (0, 0.125), 3: (0.125, 0), 4: (0.125, 0),
    }  # fmt: skip


def test_r2_the_median_of_reuse_is_over_all_cycles_or_the_gated_ones():
    """A third cycle introduces nothing: share 0, and the median slope falls to 1/2. Over all three
    the median share is 1/4: progress 1/2 for cycle 1 (0 gets 2 * 1/2 * 1/2) and 0 for cycle 2."""
    rows = [*TWO_CYCLES, {0: 1.0}, {0: 1.0}]
    gated = evidence_of(rows, "EXEXEX", replace(EXACT, reuse_median_over="gated"))
    assert by_neuron(gated) == by_neuron(evidence_of(TWO_CYCLES, "EXEX"))
    over_all = evidence_of(rows, "EXEXEX", replace(EXACT, reuse_median_over="all"))
    assert by_neuron(over_all) == {0: (0.5, 0), 1: (0.25, 0)}
    assert (over_all.cycles, over_all.gated) == (gated.cycles, gated.gated) == (3, 2)


def test_eq07_consolidation_is_zero_when_slope_rises():
    """Slopes (2, 3, 2, 0), median 2: raised by a first row of 0 new per token to (0, 2, 3, 2, 0).
    Cycle 1 has share 5/8 and cycle 2 1/4: progress > 0, but 1 - 3/2 is clipped to 0: redundant."""
    rows = [
        {9: 1.0},
        {0: 1.0, 1: 1.0},  # E, slope 2
        {0: 5.0, 5: 1.0, 6: 1.0, 7: 1.0},  # X, slope 3
        {3: 1.0, 4: 1.0},  # E, slope 2
        {3: 1.0, 0: 3.0},  # X, slope 0
        {0: 1.0},
        {0: 1.0},
    ]  # slopes (1, 2, 3, 2, 0, 0, 0): median 1, both pass
    evidence = evidence_of(rows, "XEXEXXX")
    progress = (5 / 8 - 1 / 6) / 2  # the last X phase holds 3: 1 of a mass of 6
    assert evidence.effective_K.tolist() == [0, 0, 0, 0]
    assert evidence.redundant_K == pytest.approx([progress] * 4, rel=1e-5)


def test_eq08_a_cycle_no_steeper_than_the_median_gives_no_evidence():
    """Slopes (1, 1, 1, 1): strength 0 is not above 0."""
    evidence = evidence_of([{0: 1.0}, {1: 1.0}, {2: 1.0}, {3: 1.0}], "EXEX")
    assert (evidence.cycles, evidence.gated, len(evidence.neuron_K)) == (2, 0, 0)


def test_eq06_a_single_cycle_has_no_progress():
    evidence = evidence_of(TWO_CYCLES[:2], "EX")
    assert (evidence.cycles, evidence.gated, len(evidence.neuron_K)) == (1, 1, 0)


def test_r18_the_median_cycle_progresses_by_rounding_in_the_reference_and_not_in_the_paper():
    """One cycle, whose X phase holds 3 of a mass of 4 in neuron 0: share 3 / (4 + 1e-6), which
    float32 doesn't hold. What its median leaves goes to 0 and 1 by their masses 2 and 1, and is all
    faint. The exact median is the share itself: no evidence."""
    share = 3 / (4 + nex.EPS)
    progress = share - float(np.float32(share))
    assert 0 < abs(progress) < 1e-6
    evidence = evidence_of(TWO_CYCLES[:2], "EX", REFERENCE)
    credited = evidence.effective_K + evidence.redundant_K
    scale = abs(progress) * (0.5 if progress > 0 else 1)
    assert credited == pytest.approx([2 * scale, scale], rel=1e-6)
    assert evidence.faint_K == pytest.approx(credited)
    assert len(evidence_of(TWO_CYCLES[:2], "EX", PAPER).neuron_K) == 0
    # Two cycles have no cycle at the median: the same evidence in both, but for float32's digits.
    both = [by_neuron(evidence_of(TWO_CYCLES, "EXEX", r)) for r in (REFERENCE, EXACT)]
    assert both[0] == both[1]
    assert not evidence_of(TWO_CYCLES, "EXEX", REFERENCE).faint_K.any()


def test_r18_what_rests_on_rounding_is_counted_by_weighted_mass():
    """Neuron 0 has 3 of its 4 from rounding, neuron 1 none of its 2, neuron 2 no evidence. With
    masses 2, 1, 5 and weights .5, -1, 0: (2 * .5 * 3/4) / (2 * .5 + 1)."""
    evidence = nex.Evidence(
        np.array([0, 1]), np.array([4.0, 0]), np.array([0, 2.0]), np.array([3.0, 0]),
        np.zeros(0), np.zeros(0, bool), 2, 2,
    )  # fmt: skip
    share_N = nex.faint_share([evidence], 3)
    assert share_N.tolist() == [0.75, 0, 0]
    response = np.array([0, 1, 2]), np.array([2, 1, 5], np.float32)
    assert nex.resting_on(*response, np.array([0.5, -1, 0]), share_N) == 0.375
    assert math.isnan(nex.resting_on(*response, np.zeros(3), share_N))


@given(
    ROWS,
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.sampled_from(EVERY_READING),
)
def test_eq02_to_eq10_agree_with_the_literal_implementation(rows, states, readings):
    acts, states = recorded(rows), states[: len(rows)]
    first_K = nex.first_seen(acts)
    slope_R = nex.novelty(acts, first_K)
    ours = nex.cycle_credit(acts, first_K, slope_R, np.array(states, bool), readings)
    theirs = literal.credit(literal.rows_of(acts), readings, states)
    assert ours.slope_R.tolist() == theirs["slopes"]
    assert (ours.cycles, ours.gated) == (theirs["cycles"], theirs["gated"])
    assert (np.diff(ours.neuron_K) > 0).all()
    # Equal shares may differ in their last bit, which makes credit of 1e-17 out of none.
    for side, values_K in (("effective", ours.effective_K), ("redundant", ours.redundant_K)):
        got = dict(zip(ours.neuron_K.tolist(), values_K.tolist(), strict=True))
        for k in range(13):
            assert got.get(k, 0.0) == pytest.approx(theirs[side].get(k, 0.0), rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------- Eq. 11-16, model score


def test_eq09_eq10_evidence_adds_up_over_responses():
    evidence = evidence_of(TWO_CYCLES, "EXEX")
    effective_N, redundant_N = nex.accumulate([evidence, evidence], 6)
    assert effective_N == pytest.approx([0.5, 0.25, 0, 0, 0, 0], rel=1e-4)
    assert redundant_N == pytest.approx([0, 0, 0, 0.5, 0.5, 0], rel=1e-4)


def test_eq11_weights_by_hand():
    """tanh(log x) = (x^2 - 1) / (x^2 + 1): 3 against 1 gives 8/10; 0 against 0 and 2 against 2 give
    0; 1 against 0 gives 1 up to 2e-12; 1e-6 against 0 gives x = 2, 3/5."""
    weight_N = nex.weights(np.array([3.0, 1, 0, 2, 1, 1e-6]), np.array([1.0, 3, 0, 2, 0, 0]))
    assert weight_N == pytest.approx([0.8, -0.8, 0, 0, 1, 0.6], abs=1e-5)
    assert weight_N[2] == 0


def test_eq12_to_eq16_by_hand():
    """b = (2, 1, 1) on weights (.5, -.5, 0): PosMass 1, AbsMass 1.5, TotMass 4."""
    score = nex.good_mass_fraction(
        np.array([0, 3, 4]), np.array([2, 1, 1], np.float32), np.array([0.5, 9, 9, -0.5, 0])
    )
    assert score == (pytest.approx(2 / 3), 0.25, 0.125, True, 4.0)
    assert score.score == pytest.approx(score.reward / (score.reward + score.bad))


def test_eq14_without_weighted_mass_the_score_is_zero():
    score = nex.good_mass_fraction(np.array([1]), np.array([2.0], np.float32), np.zeros(3))
    assert score == (0.0, 0.0, 0.0, False, 2.0)


def test_response_mass_sums_each_neuron_over_the_rows():
    neuron_K, mass_K = nex.response_mass(recorded(TWO_CYCLES))
    assert neuron_K.tolist() == [0, 1, 2, 3, 4]
    assert mass_K.tolist() == [9, 1, 1, 2, 1]
    assert (neuron_K.dtype, mass_K.dtype) == (np.int64, np.float32)


def model_score(scores: list[nex.ResponseScore], readings: Readings) -> float:
    values = [nex.counted(score.score, score.mass == 0, readings) for score in scores]
    return float(np.nanmean(values))


def test_r4_empty_responses_count_as_zero_or_not_at_all():
    """Scores 0.6, 0.2, a response without evidence (0 in both) and an empty one: 0.8 / 4 or / 3."""
    scores = [
        nex.ResponseScore(0.6, 0.3, 0.2, True, 5.0),
        nex.ResponseScore(0.2, 0.1, 0.4, True, 5.0),
        nex.ResponseScore(0.0, 0.0, 0.0, False, 5.0),
        nex.ResponseScore(0.0, math.nan, math.nan, False, 0.0),
    ]
    assert model_score(scores, PAPER) == pytest.approx(0.2)
    assert model_score(scores, REFERENCE) == pytest.approx(0.8 / 3)
    assert math.isnan(nex.counted(0.0, True, REFERENCE))
    assert nex.counted(0.0, True, PAPER) == 0.0


def test_r8_saturation_counts_nines_up_to_twelve():
    spread = [nex.saturation(s) for s in (0.0, 0.9, 0.99, 1.0)]
    assert spread == pytest.approx([0, 1, 2, 12])
    assert math.isnan(nex.saturation(math.nan))


# ---------------------------------------------------------------- the whole, twice


def scored(
    responses: list[Activations], readings: Readings
) -> tuple[np.ndarray, list[nex.ResponseScore]]:
    """Self-calibrated weights and the responses' scores."""
    n_neurons = 1 + max(int(acts.neuron_E.max(initial=0)) for acts in responses)
    evidences = [nex.credit(acts, readings) for acts in responses]
    weight_N = nex.weights(*nex.accumulate(evidences, n_neurons))
    scores = [nex.good_mass_fraction(*nex.response_mass(acts), weight_N) for acts in responses]
    return weight_N, scores


@pytest.mark.parametrize(
    "readings",
    [*EVERY_READING, replace(PAPER, rho=0.5, min_run=3), replace(EXACT, rho=0.7, min_run=1)],
    ids=lambda r: "-".join(str(v) for v in vars(r).values()),
)
def test_nex_agrees_with_the_literal_implementation_to_1e_6(readings):
    responses = [bursty(seed) for seed in range(3)] + [recorded([])]
    rows = [literal.rows_of(acts) for acts in responses]
    evidences = [nex.credit(acts, readings) for acts in responses]
    theirs = [literal.credit(r, readings) for r in rows]
    for ours, their in zip(evidences, theirs, strict=True):
        assert ours.explore_R.tolist() == their["explore"]
        assert (ours.cycles, ours.gated) == (their["cycles"], their["gated"])
    # The comparison means nothing unless cycles of both outcomes are there.
    assert sum(e.gated for e in evidences) >= 6
    assert any(e.effective_K.any() for e in evidences)
    assert any(e.redundant_K.any() for e in evidences)
    weight_N, scores = scored(responses, readings)
    literal_weight = literal.weight_of(theirs)
    expected_N = [literal_weight.get(k, 0.0) for k in range(len(weight_N))]
    assert weight_N == pytest.approx(expected_N, abs=1e-6)
    for score, r in zip(scores, rows, strict=True):
        assert score[:3] == pytest.approx(literal.score(r, literal_weight), abs=1e-6, nan_ok=True)
    expected = literal.model_score(rows, readings)
    assert model_score(scores, readings) == pytest.approx(expected, abs=1e-6)


def test_every_reading_changes_something():
    """Otherwise the agreement above would not see it. R3 matters where short runs meet."""
    flighty = replace(REFERENCE, rho=0.5, min_run=5)
    changes: list[tuple[Readings, str, Any]] = [
        (REFERENCE, "log_time_from", 1),
        (REFERENCE, "reuse_median_over", "all"),
        (flighty, "short_run_joins", "longer"),
        (REFERENCE, "credit", "active"),
        (REFERENCE, "rho", 0.6),
        (flighty, "min_run", 1),
        (REFERENCE, "gmm_steps", 1),
    ]
    responses = [bursty(seed) for seed in range(8)]
    for base, name, value in changes:
        before, after = (
            scored(responses, readings)[0] for readings in (base, replace(base, **{name: value}))
        )
        assert np.abs(after - before).max() > 1e-3, name


# ---------------------------------------------------------------- invariances


@given(st.integers(0, 10**6), st.sampled_from(EVERY_READING))
def test_scores_and_weights_stay_in_range(seed, readings):
    weight_N, scores = scored([bursty(seed, 30), bursty(seed + 1, 30)], readings)
    assert np.abs(weight_N).max() <= 1
    for score in scores:
        assert 0 <= score.score <= 1
        assert 0 <= score.reward + score.bad <= 1 + 1e-9


@given(st.integers(0, 10**6))
def test_renaming_neurons_leaves_the_score_unchanged(seed):
    responses = [bursty(seed, 30), bursty(seed + 1, 30)]
    name_N = np.random.default_rng(seed).permutation(2000)
    renamed = [
        recorded(
            [{int(name_N[k]): m for k, m in row.items()} for _, row in literal.rows_of(acts)],
            acts.tokens_R.tolist(),
        )
        for acts in responses
    ]
    before = [s.score for s in scored(responses, EXACT)[1]]
    assert [s.score for s in scored(renamed, EXACT)[1]] == pytest.approx(before, abs=1e-9)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_scaling_mass_leaves_the_good_mass_fraction_unchanged(seed, factor):
    acts = bursty(seed, 30)
    weight_N = np.random.default_rng(seed).uniform(-1, 1, int(acts.neuron_E.max()) + 1)
    neuron_K, mass_K = nex.response_mass(acts)
    before = nex.good_mass_fraction(neuron_K, mass_K, weight_N)
    after = nex.good_mass_fraction(neuron_K, mass_K * np.float32(factor), weight_N)
    assert after[:3] == pytest.approx(before[:3], abs=1e-6)
    assert after.mass == pytest.approx(before.mass * factor, rel=1e-5)


def test_scoring_leaves_the_recording_alone_and_repeats_exactly():
    acts = bursty(3)
    copies = [array.copy() for array in vars(acts).values()]
    first, second = nex.credit(acts), nex.credit(acts)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
    for array, copy in zip(vars(acts).values(), copies, strict=True):
        assert np.array_equal(array, copy)


# ---------------------------------------------------------------- baselines


def test_baselines_by_hand():
    entropy_T, logprob_T = np.array([0.5, 1.5, 1.0], np.float32), np.array([-1.0, -2.0, -3.0])
    assert nex.hes(entropy_T) == 3.0
    assert nex.mean_logprob(logprob_T) == -2.0
    assert nex.hes(entropy_T[:0]) == 0.0
    assert math.isnan(nex.mean_logprob(logprob_T[:0]))


def test_row_entropy_is_the_mean_over_the_tokens_of_a_row():
    entropy_T = np.array([1, 3, 2, 4, 9], np.float32)
    assert nex.row_entropy(entropy_T, np.array([2, 2, 1])).tolist() == [2, 3, 9]
    assert nex.row_entropy(entropy_T[:0], np.array([], np.int32)).tolist() == []


def test_top_entropy_rows_are_found_over_all_candidates():
    """Rows 1..10 in three responses: the 80th percentile is 8.2, so 9 and 10 are above it, both in
    the last response. Within each response it is the top one of five or of three rows."""
    rows = [np.arange(1.0, 6), np.array([6.0, 7]), np.array([8.0, 9, 10]), np.zeros(0)]
    assert nex.entropy_top20(rows) == pytest.approx([0, 0, 2 / 3, math.nan], nan_ok=True)
    assert nex.entropy_rows(rows) == pytest.approx([0, 0, 2, math.nan], nan_ok=True)
    within = nex.entropy_top20(rows, pooled=False)
    assert within == pytest.approx([1 / 5, 1 / 2, 1 / 3, math.nan], nan_ok=True)
    assert len(nex.entropy_top20([])) == 0
    assert np.isnan(nex.entropy_top20([np.zeros(0)])).all()


# Learned anew in resamples -----------------------------------------------------------------------


@pytest.mark.parametrize("folds", [0, 2])
def test_relearned_scores_are_those_of_a_plain_loop(folds: int):
    rng = np.random.default_rng(1)
    P, N = 6, 90

    def response(used: int) -> nex.Response:
        neuron_K = np.sort(rng.choice(N, used, replace=False))
        credited_K = np.sort(rng.choice(neuron_K, used // 3, replace=False))
        value_K, sign_K = rng.gamma(1, 1e-2, len(credited_K)), rng.random(len(credited_K)) < 0.5
        nothing = (np.zeros(0), np.zeros(0, bool), 1, 1)
        evidence = nex.Evidence(
            credited_K, value_K * sign_K, value_K * ~sign_K, np.zeros(len(credited_K)), *nothing
        )
        return nex.Response(evidence, neuron_K, rng.gamma(1, 1, used).astype(np.float32))

    responses = [response(0 if n == 4 else 30) for n in range(2 * P)]
    prompt_N = np.arange(2 * P) // 2
    count_BP = metrics.resample_counts(P, n=20)
    fold_P = np.arange(P) % folds if folds else None
    expected = []
    for count_P in count_BP.astype(int):
        scores = []
        for r, p in zip(responses, prompt_N, strict=True):
            learned = [
                other.evidence
                for other, q in zip(responses, prompt_N, strict=True)
                if fold_P is None or fold_P[q] != fold_P[p]
                for _ in range(count_P[q])
            ]
            weight_N = nex.weights(*nex.accumulate(learned, N))
            found = nex.good_mass_fraction(r.neuron_K, r.mass_K, weight_N)
            scores += [nex.counted(found.score, found.mass == 0)] * count_P[p]
        expected.append(np.nanmean(scores))
    found_B = nex.relearned(responses, prompt_N, count_BP, fold_P=fold_P)
    np.testing.assert_allclose(found_B, expected, atol=1e-5)
