"""A response as rows of summed activation mass, and what else one pass says of it."""

# Shape letters: T tokens, R rows, E kept (row, neuron) entries, N tokens of a pass, K per token.

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from surgeon.activations.selection import Top

DENSE_VALUES = 1 << 20
"""Row sums are made in dense blocks of about this many numbers."""


@dataclass(frozen=True)
class Activations:
    """One response as a sparse matrix, rows of tokens by neurons, of activation mass A_{k,r}."""

    neuron_E: np.ndarray
    """int64, layer * d_ff + unit, ascending within a row."""
    mass_E: np.ndarray
    """float32, summed over the row's tokens, positive."""
    start_R1: np.ndarray
    """int64, row r owns the entries start_R1[r] to start_R1[r + 1]."""
    tokens_R: np.ndarray
    """int32, tokens in each row; the last may be short."""

    def row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """The neurons of row r and their masses."""
        span = slice(self.start_R1[r], self.start_R1[r + 1])
        return self.neuron_E[span], self.mass_E[span]

    def without_empty_rows(self) -> "Activations":
        """The same without rows that hold no mass, as the published NEX code reads a cache."""
        filled_R = np.add.reduceat(np.append(self.mass_E, 0), self.start_R1[:-1]) > 0
        filled_R &= (np.diff(self.start_R1) > 0) & (self.tokens_R > 0)
        if filled_R.all():
            return self
        count_R = np.diff(self.start_R1)
        kept_E = np.repeat(filled_R, count_R)
        start_R1 = np.concatenate([[0], np.cumsum(count_R[filled_R])]).astype(np.int64)
        return Activations(
            self.neuron_E[kept_E], self.mass_E[kept_E], start_R1, self.tokens_R[filled_R]
        )


class Recording(NamedTuple):
    """What one teacher-forced pass says of one response."""

    activations: Activations
    logprob_T: np.ndarray
    """float32, natural log of the probability the model gave each token, at temperature 1."""
    entropy_T: np.ndarray
    """float32, nats, of the distribution each token was drawn from, at temperature 1."""
    kept_mass: float
    """Share of the response's positive activation mass that `top_k` keeps; 1 when there is none.
    To about 1e-4 where the model runs in 16 bits."""
    positive_N: np.ndarray
    """float32, all positive mass of every neuron over the response, kept or not; empty in a file of
    a version that did not record it."""


@dataclass
class RowSums:
    """Sums of one response, row by row, as its tokens come in."""

    row_tokens: int
    n_neurons: int
    tau: float = 0.0
    """A neuron is in a row where one of its activations there is above this (NEX sec. A.3)."""
    key_TK: list[np.ndarray] = field(default_factory=list)
    mass_TK: list[np.ndarray] = field(default_factory=list)
    waiting: int = 0
    neuron: list[np.ndarray] = field(default_factory=list)
    mass: list[np.ndarray] = field(default_factory=list)
    count: list[np.ndarray] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    kept: float = 0.0
    total: float = 0.0
    positive_N: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.positive_N = np.zeros(self.n_neurons)

    def add(self, top: Top) -> None:
        self.kept += float(top.mass_NK.sum(dtype=np.float64))
        self.total += float(top.total_N.sum())
        self.key_TK.append(top.key_NK)
        self.mass_TK.append(top.mass_NK)
        self.waiting += len(top.key_NK)
        self._sum(self.waiting // self.row_tokens * self.row_tokens)

    def _sum(self, tokens: int) -> None:
        """Sum the first `tokens` of the tokens that wait, whole rows but for the last."""
        if not tokens:
            return
        key_TK, mass_TK = np.concatenate(self.key_TK), np.concatenate(self.mass_TK)
        step = max(1, DENSE_VALUES // self.n_neurons) * self.row_tokens
        for first in range(0, tokens, step):
            span = slice(first, min(first + step, tokens))
            row_T = np.arange(span.stop - first) // self.row_tokens
            R = int(row_T[-1]) + 1
            flat = (key_TK[span] + row_T[:, None] * self.n_neurons).reshape(-1)
            # float64 while summing: the order of the tokens leaves no trace in float32.
            dense = np.bincount(flat, mass_TK[span].reshape(-1), R * self.n_neurons)
            if self.tau > 0:
                peak = np.zeros_like(dense)
                np.maximum.at(peak, flat, mass_TK[span].reshape(-1))
                self.kept -= float(dense[peak <= self.tau].sum())
                dense[peak <= self.tau] = 0
            place_E = np.flatnonzero(dense)
            self.neuron.append(place_E % self.n_neurons)
            self.mass.append(dense[place_E].astype(np.float32))
            self.count.append(np.bincount(place_E // self.n_neurons, minlength=R))
            self.tokens += np.bincount(row_T).tolist()
        self.key_TK, self.mass_TK = [key_TK[tokens:]], [mass_TK[tokens:]]
        self.waiting -= tokens

    def finish(self) -> tuple[Activations, float]:
        """The rows, and the share of the positive mass that they hold."""
        self._sum(self.waiting)
        none = np.zeros(0)
        count_R = np.concatenate([*self.count, none]).astype(np.int64)
        activations = Activations(
            np.concatenate([*self.neuron, none]).astype(np.int64),
            np.concatenate([*self.mass, none]).astype(np.float32),
            np.concatenate([[0], np.cumsum(count_R)]).astype(np.int64),
            np.array(self.tokens, np.int32),
        )
        return activations, min(1.0, self.kept / self.total) if self.total else 1.0
