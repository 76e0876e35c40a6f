"""Spectral features: the batch form, the probe form, and sums that are updated online."""

import math
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from literal_neureasoner import Alg2, eq_2_and_3

from benchmarks.online_features import direct_features
from surgeon.errors import BadInput
from surgeon.neureasoner.features import (
    EPSILON,
    FEATURES,
    OnlineFeatures,
    spectral_features,
    trace_features,
)
from surgeon.neureasoner.steps import Step
from surgeon.settings.neureasoner import LEVELS, WatchSettings, even_probes

PROBES = even_probes(8)
TOLERANCE = 1e-5


def activations(n: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Signed, with a mean far from zero in one channel and a silent one."""
    generator = torch.Generator().manual_seed(seed)
    x_TC = torch.randn(n, channels, generator=generator)
    x_TC[:, 0] += 30
    x_TC[:, -1] = 0
    return x_TC


def feed(online: OnlineFeatures, x_BC: torch.Tensor, *rows: int) -> None:
    counted_B = np.zeros(len(x_BC), bool)
    counted_B[list(rows)] = True
    online.push(x_BC, counted_B)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- Eq. 2-3


def batch_features(level: str, x_TC: torch.Tensor) -> torch.Tensor:
    """Features (C, X) of a window of 4 tokens or more on its own frequency grid: of the paper's
    F = T // 2 + 1 frequencies f = 1 stands in no set, 2 <= f <= F // 2 are low, the rest high."""
    x_TC = x_TC.abs().double()
    power_FC = torch.fft.rfft(x_TC - x_TC.mean(0), dim=0).abs().square()[1:]
    low = (len(power_FC) + 1) // 2 - 1
    return spectral_features(level, power_FC[None], power_FC.sum(0)[None], low)[0]


def test_eq02_a_slow_wave_has_its_power_at_one_low_frequency():
    """8 tokens: F = 5 frequencies, f = 2 .. 5; a wave of period 8 is all at f = 2, which is the
    low set {2}. Its powers are |Y|^2 = (8 / 2)^2 = 16 at amplitude 1."""
    x_TC = 2 + torch.sin(2 * pi * torch.arange(8) / 8)[:, None].double()
    high, entropy, energy = batch_features("intra", x_TC)[0].tolist()
    assert high == pytest.approx(0, abs=1e-6)
    assert entropy == pytest.approx(0, abs=1e-6)
    assert energy == pytest.approx(math.log(16), abs=1e-6)
    assert batch_features("inter", x_TC)[0].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert batch_features("instance", x_TC)[0].tolist() == pytest.approx([1, 0], abs=1e-6)


def test_eq03_an_impulse_spreads_evenly():
    """1, 0, 0, ... of 8 tokens: power 1 at each of f = 2 .. 5, so the shares are 1/4, the entropy
    1, the high set {3, 4, 5} holds 3/4, the low set {2} 1/4, the energy is log 4."""
    x_TC = torch.zeros(8, 1)
    x_TC[0] = 1
    assert batch_features("intra", x_TC)[0].tolist() == pytest.approx([0.75, 1, math.log(4)])
    assert batch_features("inter", x_TC)[0].tolist() == pytest.approx([0.25, 1])
    assert batch_features("instance", x_TC)[0].tolist() == pytest.approx([0.25, 1])


def test_the_magnitude_of_an_activation_counts():
    x_TC = activations(20)
    for level in LEVELS:
        close(batch_features(level, x_TC), batch_features(level, -x_TC), 0)


@pytest.mark.parametrize("tokens", [1, 2, 3])
@pytest.mark.parametrize("level", LEVELS)
def test_windows_of_few_tokens_have_finite_features(level: str, tokens: int):
    x_TC = activations(tokens)
    features_CX = direct_features(level, x_TC, PROBES)
    assert features_CX.shape == (3, len(FEATURES[level]))
    assert bool(features_CX.isfinite().all())


@given(st.lists(st.floats(-9, 9, width=16), min_size=4, max_size=25))
def test_eq02_eq03_are_those_of_the_paper_read_literally(window: list[float]):
    x_TC = torch.tensor(window, dtype=torch.float64)[:, None]
    for level in LEVELS:
        expected = torch.tensor(eq_2_and_3(level, window), dtype=torch.float64)
        close(batch_features(level, x_TC)[0], expected)


# ---------------------------------------------------------------- Alg. 2


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    window=st.integers(1, 4),
    n_probes=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_alg2_is_that_of_the_paper_read_literally(
    lengths: list[int], window: int, n_probes: int, seed: int
):
    """Token by token, whole steps popped as they leave the window."""
    probes, x_TC = even_probes(n_probes), activations(sum(lengths), channels=1, seed=seed)
    x_TC = x_TC + torch.randn(len(x_TC), 1, generator=torch.Generator().manual_seed(seed))
    literal, online = Alg2(probes), OnlineFeatures(1, 1, WatchSettings(k=window, probes=probes))
    start_of = [sum(lengths[:s]) for s in range(len(lengths) + 1)]
    for s, length in enumerate(lengths):
        begin = start_of[max(0, s - window + 1)]
        for t in range(start_of[s], start_of[s] + length):
            leaves = lengths[s - window] if t == start_of[s] and s >= window else 0
            literal.update(float(x_TC[t]), leaves)
            feed(online, x_TC[t : t + 1], 0)
            for level in ("intra", "inter"):
                expected = torch.tensor(literal.features(level), dtype=torch.float64)
                close(online.features(level, [0])[0, 0], expected)
                close(direct_features(level, x_TC[begin : t + 1], probes)[0], expected)
        online.end_step([0])


def test_the_probe_form_equals_the_batch_form_on_the_windows_own_grid():
    """16 tokens and probes at the grid's frequencies: same shares, and by Parseval the energies
    differ by a known factor (interior frequencies count twice: 16 V = 2 sum P - P(pi))."""
    x_TC = activations(16)[:, :2]
    grid = tuple(2 * pi * f / 16 for f in range(1, 9))
    for level in ("inter", "instance"):
        probe, batch = direct_features(level, x_TC, grid), batch_features(level, x_TC)
        close(probe[:, 1], batch[:, 1])
        if level == "inter":
            close(probe, batch)
    power_FC = torch.fft.rfft(x_TC.abs().double(), dim=0).abs().square()
    energy_C = (2 * power_FC[1:].sum(0) - power_FC[8]) / 16
    close(direct_features("intra", x_TC, grid)[:, 2], energy_C.log())


def test_probes_lie_evenly_and_end_at_the_highest_frequency():
    assert even_probes(4) == pytest.approx((pi / 4, pi / 2, 3 * pi / 4, pi))
    with pytest.raises(BadInput, match="at least 2"):
        even_probes(1)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    window=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_online_features_equal_a_direct_transform(lengths: list[int], window: int, seed: int):
    """After every token of a run of steps, in a row between others that do something else."""
    online = OnlineFeatures(3, 3, WatchSettings(k=window, instance_steps=2, probes=PROBES))
    x_TC = activations(sum(lengths), seed=seed)
    other_TC = torch.full((len(x_TC), 3), torch.nan)
    start_of, t = [], 0
    for s, length in enumerate(lengths):
        start_of.append(t)
        for _ in range(length):
            feed(online, torch.stack([other_TC[t], x_TC[t], other_TC[t]]), 1)
            t += 1
            x_LC = x_TC[start_of[max(0, s - window + 1)] : t]
            for level in ("intra", "inter"):
                close(online.features(level, [1])[0], direct_features(level, x_LC, PROBES))
            first = x_TC[: min(t, sum(lengths[:2]))]
            close(online.features("instance", [1])[0], direct_features("instance", first, PROBES))
        online.end_step([1])


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    window=st.integers(1, 3),
    before=st.integers(0, 3),
)
def test_features_of_a_trace_equal_those_online(lengths: list[int], window: int, before: int):
    steps, t = [], before
    for length in lengths:
        steps.append(Step(t, t + length))
        t += length
    x_TC = activations(t + 2, channels=4)
    settings = WatchSettings(k=window, instance_steps=window, probes=PROBES)
    for level in LEVELS:
        position_N, features_NCX = trace_features(x_TC, steps, level, settings, [2, 0])
        last = steps[window - 1 :][0].end if level == "instance" and len(steps) > window else t
        assert position_N.tolist() == list(range(before, last))
        online = OnlineFeatures(1, 4, settings)
        for start, end in steps:
            for i in range(start, min(end, last)):
                feed(online, x_TC[i : i + 1], 0)
                close(online.features(level, [0], [2, 0])[0], features_NCX[i - before], 1e-6)
            online.end_step([0])


def test_a_trace_without_steps_has_no_features():
    for level in LEVELS:
        position_N, features_NCX = trace_features(activations(5), [], level, WatchSettings(), [1])
        assert len(position_N) == 0 and features_NCX.shape == (0, 1, len(FEATURES[level]))


@pytest.mark.slow
def test_nothing_drifts_in_100_000_updates():
    """One row's step never ends, the other's steps have 40 tokens."""
    updates, step = 100_000, 40
    online = OnlineFeatures(2, 3, WatchSettings(probes=PROBES))
    x_TC = activations(updates)
    for t in range(updates):
        feed(online, x_TC[[t, t]], 0, 1)
        if t % step == step - 1 and t < updates - 1:
            online.end_step([1])
    for level in ("intra", "inter"):
        endless, stepped = online.features(level, [0, 1])
        close(endless, direct_features(level, x_TC, PROBES))
        close(stepped, direct_features(level, x_TC[-4 * step :], PROBES))


def test_rows_are_reset_moved_and_added():
    x_TC = activations(30)
    alone = OnlineFeatures(1, 3, WatchSettings(k=2, instance_steps=2, probes=PROBES))
    online = OnlineFeatures(2, 3, WatchSettings(k=2, instance_steps=2, probes=PROBES))
    place = 1
    for t in range(30):
        feed(alone, x_TC[t : t + 1], 0)
        x_BC = torch.full((len(online.steps_B), 3), 7.0)
        x_BC[place] = x_TC[t]
        feed(online, x_BC, *range(len(x_BC)))
        if t == 8:
            online.grow(4)
            online.move([1], [3])
            online.reset(1)
            place = 3
        if t % 7 == 6:
            alone.end_step([0])
            online.end_step([place])
    for level in LEVELS:
        close(online.features(level, [place]), alone.features(level, [0]), 0)
    online.reset(place)
    feed(online, activations(4, seed=5), place)
    for level in LEVELS:
        fresh = direct_features(level, activations(4, seed=5)[place:], PROBES)
        close(online.features(level, [place])[0], fresh)


def test_a_silent_channel_has_no_power_anywhere():
    high, entropy, energy = direct_features("intra", torch.zeros(9, 1), PROBES)[0].tolist()
    assert (high, entropy) == (0, 0)
    assert energy == pytest.approx(math.log(EPSILON))
