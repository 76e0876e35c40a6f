"""The spectral features of NeuReasoner a second time, straight from the paper: one channel, plain
loops, its own indices from 1. Nothing is shared with `surgeon.neureasoner.features`.
"""

import cmath
import math
from collections import deque
from collections.abc import Sequence

EPS = 1e-8


def spectrum(a: Sequence[float]) -> list[tuple[int, float]]:
    """(f, P(f)) for f = 2 .. F of sec. 3.1, by the sum that defines Y(f)."""
    x = [abs(value) for value in a]
    T = len(x)
    mu = sum(x) / T
    powers = []
    for f in range(2, T // 2 + 1 + 1):
        Y = 0j
        for t in range(1, T + 1):
            Y += (x[t - 1] - mu) * cmath.exp(-1j * 2 * math.pi / T * (f - 1) * (t - 1))
        powers.append((f, abs(Y) ** 2))
    return powers


def eq_2_and_3(level: str, a: Sequence[float]) -> list[float]:
    """The features of a window, at least 4 tokens long."""
    powers, F = spectrum(a), len(a) // 2 + 1
    total = sum(power for _, power in powers)
    share = {f: power / (total + EPS) for f, power in powers}
    H = -sum(p * math.log(p) for p in share.values() if p > 0) / math.log(F - 1)
    if level == "intra":
        return [sum(share[f] for f in range(F // 2 + 1, F + 1)), H, math.log(total + EPS)]
    if level == "inter":
        return [max(share.values()), H]
    return [sum(share[f] for f in range(2, F // 2 + 1)), H]


class Alg2:
    """Algorithm 2, line by line: phases are running products, the oldest tokens are subtracted."""

    def __init__(self, probes: Sequence[float]) -> None:
        self.q = [cmath.exp(-1j * w) for w in probes]
        self.eta = [1 / (1 - q) for q in self.q]
        self.A = [0j] * len(probes)
        self.alpha, self.beta, self.rho = (
            [1 + 0j] * len(probes),
            list(self.q),
            [1 + 0j] * len(probes),
        )
        self.U = self.V = 0.0
        self.Q: deque[float] = deque()

    def update(self, a: float, pop: int) -> None:
        """Parts 1 and 2."""
        y, K = abs(a), len(self.q)
        self.Q.append(y)
        self.U, self.V = self.U + y, self.V + y * y
        for k in range(K):
            self.alpha[k] *= self.q[k]
            self.rho[k] *= self.q[k]
            self.A[k] += y * self.alpha[k]
        for _ in range(pop):
            y = self.Q.popleft()
            self.U, self.V = self.U - y, self.V - y * y
            for k in range(K):
                self.A[k] -= y * self.beta[k]
                self.beta[k] *= self.q[k]
                self.rho[k] /= self.q[k]

    def features(self, level: str) -> list[float]:
        """Part 3."""
        K, L = len(self.q), len(self.Q)
        P = []
        for k in range(K):
            B = self.beta[k] * (1 - self.rho[k]) * self.eta[k]
            P.append(abs(self.A[k] - self.U / L * B) ** 2)
        Z = sum(P) + EPS
        share = [power / Z for power in P]
        H = -sum(p * math.log(p) for p in share if p > 0) / math.log(K)
        if level == "inter":
            return [max(share), H]
        # The sum over k > K // 2, k from 1.
        high = sum(share[k - 1] for k in range(K // 2 + 1, K + 1))
        return [high, H, math.log(max(self.V - self.U**2 / L, 0) + EPS)]
