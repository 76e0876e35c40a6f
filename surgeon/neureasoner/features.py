"""Spectral features of a channel's activations over a window of tokens: Eq. 2-3 and Alg. 2.

The spectrum is taken at a few fixed frequencies, the probes, which need sums over the window only
(R10). `OnlineFeatures` keeps those sums while a batch is decoded, `trace_features` finds them for
every token of a trace that is at hand. Both give what a direct transform at the probes gives.
"""

# Shapes: B rows of a batch, N windows, T tokens of a window or trace, C channels, P probes, J sums
# per channel (2P + 2), S finished steps that are kept (slots), X features of a channel.

from collections.abc import Sequence
from math import log, pi

import numpy as np
import torch
from torch import Tensor

from surgeon.neureasoner.steps import Step
from surgeon.settings.neureasoner import ENOUGH, WATCHED, WatchSettings

FEATURES = {
    "intra": ("high", "entropy", "energy"),
    "inter": ("dominant", "entropy"),
    "instance": ("low", "entropy"),
    ENOUGH: ("high", "entropy", "energy"),
}
"""Level -> its features (sec. 3.1): the share of the power at high frequencies, at the strongest
one, at low ones; the normalised spectral entropy; the logarithm of the energy. `enough`, which the
paper doesn't have, takes those of a single step, `intra`."""
EPSILON = 1e-8


def spectral_features(level: str, power_NPC: Tensor, energy_NC: Tensor, low: int) -> Tensor:
    """Features (N, C, X) from powers at P >= 2 ascending frequencies, of which `low` are low."""
    share_NPC = power_NPC / (power_NPC.sum(1, keepdim=True) + EPSILON)  # Eq. 2
    scale = 1 / log(power_NPC.shape[1])
    entropy_NC = -torch.xlogy(share_NPC, share_NPC).sum(1) * scale  # Eq. 3
    if level in ("intra", ENOUGH):
        high_NC = share_NPC[:, low:].sum(1)
        return torch.stack([high_NC, entropy_NC, (energy_NC.clamp_min(0) + EPSILON).log()], -1)
    if level == "inter":
        return torch.stack([share_NPC.amax(1), entropy_NC], -1)
    return torch.stack([share_NPC[:, :low].sum(1), entropy_NC], -1)


def sums_features(level: str, sums_NJC: Tensor) -> Tensor:
    """Features (N, C, X) of windows from their sums, Alg. 2 part 3.

    A window's sums over its tokens, per channel: x, x cos(wt) and x sin(wt) at each probe w, x * x.
    The last channel is 1 at every token: it counts, and carries what removing the mean takes away.
    """
    P = sums_NJC.shape[1] // 2 - 1
    value_NJC, one_NJ1 = sums_NJC[..., :-1], sums_NJC[..., -1:]
    count_N1 = one_NJ1[:, 0].clamp_min(1)
    mean_NC = value_NJC[:, 0] / count_N1
    wave_NJC = value_NJC[:, 1:-1] - mean_NC[:, None] * one_NJ1[:, 1:-1]  # A - mu B
    power_NPC = wave_NJC[:, :P].square() + wave_NJC[:, P:].square()
    energy_NC = value_NJC[:, -1] - value_NJC[:, 0].square() / count_N1  # V - U * U / L
    return spectral_features(level, power_NPC, energy_NC, P // 2)


def _columns(sums_NJC: Tensor, channels: Sequence[int] | None) -> Tensor:
    if channels is None:
        return sums_NJC
    return sums_NJC[..., [*channels, sums_NJC.shape[-1] - 1]]


def trace_features(
    x_TC: Tensor,
    steps: Sequence[Step],
    level: str,
    settings: WatchSettings,
    channels: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(Positions (N,), features (N, C, X)) at every token of a trace where the level is defined.

    What `OnlineFeatures` gives after each of those tokens. The window reaches back to the start of
    the step `k - 1` before the token's own; for `instance` it is the first steps, so tokens after
    them have no features. `channels` picks columns of `x_TC`.
    """
    k = settings.steps(level)
    width = x_TC.shape[1] if channels is None else len(channels)
    if level == "instance":
        steps = steps[:k]
    if not steps:
        shape = (0, width, len(FEATURES[level]))
        return torch.zeros(0, dtype=torch.long), torch.zeros(shape, dtype=torch.float64)
    first, end = steps[0].start, steps[-1].end
    start_T = torch.empty(end - first, dtype=torch.long)
    for s, step in enumerate(steps):
        back = 0 if level == "instance" else max(0, s - k + 1)
        start_T[step.start - first : step.end - first] = steps[back].start - first
    x_TC = x_TC[first:end] if channels is None else x_TC[first:end, list(channels)]
    angle_TP = torch.arange(end - first)[:, None] * torch.tensor(
        settings.probes, dtype=torch.float64
    )
    basis_TJ = torch.cat([torch.ones(len(x_TC), 1), angle_TP.cos(), angle_TP.sin()], 1)
    parts = []
    # A few channels at a time: the sums of a long trace take much memory.
    size = max(1, 2_000_000 // basis_TJ.numel())
    for at in range(0, width, size):
        part_TC = x_TC[:, at : at + size].abs().double()
        part_TC = torch.cat([part_TC, torch.ones(len(part_TC), 1)], 1)
        sums_TJC = torch.cat(
            [basis_TJ[:, :, None] * part_TC[:, None], part_TC.square()[:, None]], 1
        ).cumsum(0)
        before_TJC = torch.cat([torch.zeros_like(sums_TJC[:1]), sums_TJC])[start_T]
        parts.append(sums_features(level, sums_TJC - before_TJC))
    return torch.arange(first, end), torch.cat(parts, 1)


class OnlineFeatures:
    """The sums of Alg. 2 for every row of a batch, updated token by token.

    A token costs the same however long the window is. The sums are kept per step, in float64: the
    oldest step leaves the window by being overwritten, so nothing is subtracted, nothing drifts,
    and no activation is remembered. The window is the last `k` steps, the current
    one included, k by level. Next to it the sums of the first `instance_steps` steps are kept.
    """

    def __init__(
        self,
        rows: int,
        channels: int,
        settings: WatchSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, probes = settings, settings.probes
        self.slots = max(settings.steps(level) for level in WATCHED if level != "instance") - 1
        # cos(0), then cos(wt), then cos(wt - pi/2) = sin(wt).
        frequency_J = [0.0, *probes, *probes]
        phase_J = [0.0] * (len(probes) + 1) + [-pi / 2] * len(probes)
        self._frequency_J, self._phase_J = (
            torch.tensor(part, dtype=torch.float64, device=device)
            for part in (frequency_J, phase_J)
        )
        J, C = 2 * len(probes) + 2, channels + 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.now_BJC = zeros(rows, J, C)
        """Sums of the current step."""
        self.past_BSJC = zeros(rows, self.slots, J, C)
        self.first_BJC = zeros(rows, J, C)
        """Sums of those of the first steps that have ended."""
        self.time_B = zeros(rows)
        self._x_BC = zeros(rows, C)
        self.steps_B = np.zeros(rows, np.int64)
        """Steps that have ended."""

    _STATE = ("now_BJC", "past_BSJC", "first_BJC", "time_B")

    def push(self, x_BC: Tensor, counted_B: np.ndarray) -> None:
        """Add a token's activations to the rows that count it; the others may hold anything."""
        n = len(x_BC)
        time_B, x_BC1, now_BJC = self.time_B[:n], self._x_BC[:n], self.now_BJC[:n]
        counted_B1 = torch.from_numpy(counted_B[:n]).to(x_BC.device)[:, None]
        # The angle anew each time: a running product of phases would lose digits.
        basis_BJ = torch.addcmul(self._phase_J, time_B[:, None], self._frequency_J).cos_()
        # Not a product with the mask: what a row that doesn't count holds may be infinite.
        x_BC1[:, :-1] = torch.where(counted_B1, x_BC.abs(), 0)
        x_BC1[:, -1:] = counted_B1
        now_BJC[:, :-1].addcmul_(basis_BJ[:, :, None], x_BC1[:, None])
        now_BJC[:, -1].addcmul_(x_BC1, x_BC1)
        time_B += counted_B1[:, 0]

    def end_step(self, rows: Sequence[int]) -> None:
        """The current step of these rows is over; the next token begins another."""
        if not len(rows):
            return
        rows = list(rows)
        if self.slots:
            slots = (self.steps_B[rows] % self.slots).tolist()
            self.past_BSJC[rows, slots] = self.now_BJC[rows]
        early = [b for b in rows if self.steps_B[b] < self.settings.instance_steps]
        if early:
            self.first_BJC[early] += self.now_BJC[early]
        self.now_BJC[rows] = 0
        self.steps_B[rows] += 1

    def rewind(self, row: int, tokens: int) -> None:
        """Forget the current step of this row, in which so many tokens were counted."""
        self.now_BJC[row] = 0
        self.time_B[row] -= tokens

    def features(
        self, level: str, rows: Sequence[int], channels: Sequence[int] | None = None
    ) -> Tensor:
        """Features (N, C, X) of the level's window in these rows, the current step included."""
        rows = list(rows)
        if level == "instance":
            early_N = torch.from_numpy(self.steps_B[rows] < self.settings.instance_steps)
            now_NJC = self.now_BJC[rows] * early_N.to(self.now_BJC.device)[:, None, None]
            sums_NJC = self.first_BJC[rows] + now_NJC
        else:
            sums_NJC = self.now_BJC[rows]
            # The latest steps; a slot that none has come to yet holds zeros.
            for back in range(1, self.settings.steps(level)):
                slots = ((self.steps_B[rows] - back) % self.slots).tolist()
                sums_NJC = sums_NJC + self.past_BSJC[rows, slots]
        return sums_features(level, _columns(sums_NJC, channels))

    def reset(self, row: int) -> None:
        """Forget what was seen in this row."""
        for name in self._STATE:
            getattr(self, name)[row] = 0
        self.steps_B[row] = 0

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """The responses of some rows go on in others."""
        for name in self._STATE:
            state = getattr(self, name)
            state[list(target)] = state[list(source)]
        self.steps_B[list(target)] = self.steps_B[list(source)]

    def grow(self, rows: int) -> None:
        """Make room for more rows, if there are fewer."""
        more = rows - len(self.steps_B)
        if more > 0:
            for name in (*self._STATE, "_x_BC"):
                state = getattr(self, name)
                setattr(self, name, torch.cat([state, state.new_zeros(more, *state.shape[1:])]))
            self.steps_B = np.pad(self.steps_B, (0, more))
