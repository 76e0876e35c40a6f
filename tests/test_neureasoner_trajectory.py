"""A probe over whole responses: pooling by hand, which responses count, what it can tell."""

import numpy as np
import pytest

from surgeon.neureasoner.steps import Span
from surgeon.neureasoner.trajectory import failing_traces, pooled, probe_quality, probed


def test_channels_are_pooled_by_their_largest_magnitude():
    assert pooled(np.array([[1.0, -7.0], [-3.0, 2.0]])).tolist() == [3, 7]


def test_a_response_fails_where_any_of_its_steps_does_and_counterparts_have_no_say():
    spans = [
        Span("a", 0, "intra", 0, 1, False), Span("a", 0, "intra", 2, 2, pair=3),
        Span("a", 1, "intra", 2, 2, False, 3), Span("b", 0, "intra", 0, 5, False),
        Span("b", 0, "inter", 0, 2),
        Span("c", 0, "instance", 0, 3, pair=0), Span("d", 0, "instance", 0, 3, False, 0),
    ]  # fmt: skip
    assert failing_traces(spans, "intra") == {("a", 0): True, ("b", 0): False}
    assert failing_traces(spans, "instance") == {("c", 0): True, ("d", 0): False}


def test_the_probe_is_judged_on_problems_it_has_not_seen():
    """One channel is high in failing responses; the other channel's sign turns in the test."""
    rng = np.random.default_rng(0)
    problem_N = np.repeat(np.arange(20), 4)
    failing_N = np.tile([True, False], 40)
    noise_N = rng.normal(size=80)
    turned_N = np.where(problem_N < 15, failing_N, ~failing_N).astype(float)
    held_out = set(range(15, 20))
    clear = probe_quality(np.stack([failing_N + 0.1 * noise_N, noise_N], 1), failing_N, problem_N,
                          held_out)  # fmt: skip
    assert clear is not None and clear["n"] == 20 and clear["failing"] == 0.5
    assert clear["auroc"][0] == 1 and clear["accuracy"][0] == 1
    wrong = probe_quality(turned_N[:, None] + 0.01 * noise_N[:, None], failing_N, problem_N,
                          held_out)  # fmt: skip
    assert wrong is not None and wrong["auroc"][0] == 0
    assert probe_quality(noise_N[:, None], failing_N, problem_N, set()) is None


def test_a_level_sees_its_own_channels_and_traces():
    spans = [Span(f"q{i}", 0, "inter", 0, 2, i % 2 == 0) for i in range(12)]
    seen = {(f"q{i}", 0): np.array([5.0, float(i % 2)]) for i in range(12)}
    held = [f"q{i}" for i in range(4)]
    own = probed(seen, spans, "inter", [1], held)
    assert own is not None and own["n"] == 4 and own["auroc"][0] == 1
    other = probed(seen, spans, "inter", [0], held)
    assert other is not None and other["auroc"][0] == pytest.approx(0.5)
    assert probed(seen, spans, "intra", [1], held) is None
