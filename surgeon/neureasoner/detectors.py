"""Detectors: a small network per failure level, trained on labelled spans (sec. 3.1, App. E.3)."""

# Shapes: N samples, X inputs of a detector (channels x features), P problems, R resamples,
# G groups of samples with the same probability, T tokens, C channels.

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from surgeon import metrics
from surgeon.errors import BadInput
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Span, Step, StepEnds, separated, tag_begun, whole_steps
from surgeon.settings.neureasoner import DetectorTraining, WatchSettings
from surgeon.threads import one_thread
from surgeon.traces import Trace

LARGEST = 10.0
"""Standardised inputs are cut off here: what was never seen in training shouldn't decide alone."""


# ---------------------------------------------------------------- samples


class Samples(NamedTuple):
    """Features of one level with labels, token after token."""

    features_NX: np.ndarray
    """float32, all features of the first channel first."""
    failing_N: np.ndarray
    """bool"""
    end_N: np.ndarray
    """bool: the detector is read here while decoding (see `collect`)."""
    problem_N: np.ndarray
    """Number of the prompt that the token answers, in order of appearance."""


def collect(
    traces: Sequence[Trace],
    activations: Iterable[Tensor],
    spans: Iterable[Span],
    ends: StepEnds,
    columns: Mapping[str, Sequence[int]],
    settings: WatchSettings,
    *,
    judged: Literal["all", "spans"] = "all",
) -> dict[str, Samples]:
    """Samples of each level in `columns`, which names the level's channels among the activations'.

    `activations` yields x_TC of each trace's response, as `channels.read_back` does. A token of
    `intra` and `inter` is failing when its step lies in a failing span; a detector is read at the
    last token of each step. A trace is failing at `instance` when it has such a span: the tokens of
    its first `instance_steps` steps are samples, and the detector is read at the last of them. With
    `judged="all"` every trace was looked at for every level, and what lies in no span is fine;
    with `"spans"` what lies in no span is left out. A last step that was cut short is left out.
    """
    labels: dict[tuple[str, int, str], list[Span]] = {}
    for span in spans:
        labels.setdefault((*span.key, span.level), []).append(span)
    number: dict[str, int] = {}
    parts: dict[str, list[Samples]] = {level: [] for level in columns}
    for trace, x_TC in zip(traces, activations, strict=True):
        ids = trace.token_ids
        steps = whole_steps(ends, trace)
        problem = number.setdefault(trace.prompt_id, len(number))
        for level, channels in columns.items():
            own = labels.get((*trace.key, level), [])
            state_S = _judge(level, own, len(steps), judged)
            read = steps
            if not settings.redraws(level):
                read = [step for step in steps if not tag_begun(ends, ids, step)]
            if level == "instance":
                # Where nothing of the thinking would follow, it isn't read.
                last = slice(settings.instance_steps - 1, settings.instance_steps)
                read = [step for step in steps[last] if separated(ends, ids, step)]
            position_N, features_NCX = trace_features(x_TC, steps, level, settings, channels)
            step_T = _step_of(steps, len(ids))
            read_T = np.zeros(len(ids), bool)
            read_T[[step.end - 1 for step in read]] = True
            at_N = position_N.numpy()
            state_N = state_S[step_T[at_N]]
            known_N = state_N >= 0
            parts[level].append(
                Samples(
                    features_NCX.flatten(1).float().numpy()[known_N],
                    state_N[known_N] == 1,
                    read_T[at_N][known_N],
                    np.full(int(known_N.sum()), problem),
                )
            )
    return {
        level: Samples(*(np.concatenate(column) for column in zip(*some, strict=True)))
        for level, some in parts.items()
        if some
    }


def _judge(level: str, spans: Sequence[Span], n_steps: int, judged: str) -> np.ndarray:
    """int8 per step: 1 failing, 0 fine, -1 not known."""
    state_S = np.full(n_steps, 0 if judged == "all" else -1, np.int8)
    # A step that one span calls fine and another failing is failing.
    for span in sorted(spans, key=lambda span: span.failing):
        where = slice(None) if level == "instance" else slice(span.first, span.last + 1)
        state_S[where] = span.failing
    return state_S


def _step_of(steps: Sequence[Step], tokens: int) -> np.ndarray:
    step_T = np.full(tokens, -1)
    for s, (start, end) in enumerate(steps):
        step_T[start:end] = s
    return step_T


# ---------------------------------------------------------------- the network


class Detector(nn.Module):
    """Three layers with GELU and dropout over standardised features; the threshold goes with it."""

    mean_X: Tensor
    scale_X: Tensor
    threshold: Tensor

    def __init__(
        self,
        inputs: int,
        hidden: int = DetectorTraining.hidden,
        dropout: float = DetectorTraining.dropout,
    ) -> None:
        super().__init__()
        self.register_buffer("mean_X", torch.zeros(inputs))
        self.register_buffer("scale_X", torch.ones(inputs))
        self.register_buffer("threshold", torch.tensor(0.5))
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, features_NX: Tensor) -> Tensor:
        """Logits (N,)."""
        x_NX = (features_NX.float() - self.mean_X) * self.scale_X
        return self.layers(x_NX.clamp(-LARGEST, LARGEST))[:, 0]

    @torch.no_grad()
    def probability(self, features_NX: Tensor) -> Tensor:
        """Probability of a failure (N,), were failures as frequent as the rest."""
        return self.eval()(features_NX).sigmoid()

    def opposite(self) -> "Detector":
        """A detector of what this one calls no failure: its probability is 1 less this one's."""
        other = deepcopy(self)
        last = other.layers[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.neg_()
            last.bias.neg_()
        return other


def fit(samples: Samples, training: DetectorTraining) -> Detector:
    """Train a detector on all of these samples; the same on every run on the CPU.

    Each batch is half failing, half not, drawn with replacement. Raises BadInput when one of the
    two is missing.
    """
    used = _used(samples, training)
    features_NX = torch.from_numpy(used.features_NX)
    failing_N = torch.from_numpy(used.failing_N)
    sides = [failing_N.nonzero()[:, 0], (~failing_N).nonzero()[:, 0]]
    if not all(len(side) for side in sides):
        raise BadInput(
            f"found {len(sides[0])} failing and {len(sides[1])} other samples, expected both: "
            "label more traces."
        )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        detector = Detector(features_NX.shape[1], training.hidden, training.dropout)
        detector.mean_X.copy_(features_NX.mean(0))
        spread_X = features_NX.std(0, correction=0)
        # A feature that is always the same says nothing, and online is best ignored too.
        detector.scale_X.copy_(torch.where(spread_X > 1e-6, 1 / spread_X.clamp_min(1e-6), 0))
        optimizer = torch.optim.AdamW(
            detector.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        half = training.detector_batch // 2
        target_N = torch.cat([torch.ones(half), torch.zeros(half)])
        detector.train()
        for _ in range(training.updates):
            drawn = torch.cat([side[torch.randint(len(side), (half,))] for side in sides])
            loss = nn.functional.binary_cross_entropy_with_logits(
                detector(features_NX[drawn]), target_N
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return detector.eval().requires_grad_(False)


def _some(samples: Samples, chosen_N: np.ndarray) -> Samples:
    return Samples(*(column[chosen_N] for column in samples))


def _used(samples: Samples, training: DetectorTraining) -> Samples:
    """Those that a detector is trained on."""
    return samples if training.positions == "tokens" else _some(samples, samples.end_N)


# ---------------------------------------------------------------- split, threshold, report


Interval = list[float | None]
"""[value, low, high] of a measure with its 95% interval; None where it is not defined."""


class Quality(TypedDict):
    """How well a detector does at some samples; JSON."""

    n: int
    failing: float | None
    """Share of failing samples."""
    accuracy: Interval
    recall: Interval
    precision: Interval
    auroc: Interval


class Sizes(TypedDict):
    """How much there is of one part of the problems; JSON."""

    problems: int
    tokens: int
    failing_tokens: int
    step_ends: int
    failing_step_ends: int


class DetectorReport(TypedDict):
    """How well a detector does on the problems it wasn't trained on; JSON."""

    threshold: float
    train: Sizes
    test: Sizes
    tokens: Quality
    step_ends: Quality


class TrainedDetector(NamedTuple):
    """A detector and how well it does on the problems it wasn't trained on."""

    detector: Detector
    report: DetectorReport


def train(samples: Samples, training: DetectorTraining | None = None) -> TrainedDetector:
    """Split by problem, train on one part, choose the threshold there, judge on the other.

    Raises BadInput when the samples don't hold failing and other problems for both parts.
    """
    training = training or DetectorTraining()
    test_N = _held_out(samples, training)
    part, test = _some(samples, ~test_N), _some(samples, test_N)
    detector = fit(part, training)
    guess_N = _cross_fitted(part, training)
    read_N = part.end_N
    if len(set(part.failing_N[read_N].tolist())) < 2:
        read_N = np.ones_like(read_N)
    threshold = best_threshold(guess_N[read_N], part.failing_N[read_N], training.criterion)
    detector.threshold.fill_(threshold)
    probability_N = _probability(detector, test)
    threshold = float(detector.threshold)

    def judged(at_N: np.ndarray) -> Quality:
        return quality(
            probability_N[at_N], test.failing_N[at_N], test.problem_N[at_N],
            threshold=threshold, seed=training.seed,
        )  # fmt: skip

    report = DetectorReport(
        threshold=threshold, train=_sizes(part), test=_sizes(test),
        tokens=judged(np.ones_like(test.end_N)), step_ends=judged(test.end_N),
    )  # fmt: skip
    return TrainedDetector(detector, report)


def _sizes(samples: Samples) -> Sizes:
    return {
        "problems": len(np.unique(samples.problem_N)),
        "tokens": len(samples.failing_N),
        "failing_tokens": int(samples.failing_N.sum()),
        "step_ends": int(samples.end_N.sum()),
        "failing_step_ends": int(samples.failing_N[samples.end_N].sum()),
    }


def _probability(detector: Detector, samples: Samples) -> np.ndarray:
    return detector.probability(torch.from_numpy(samples.features_NX)).double().numpy()


def _parts(samples: Samples, sizes: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part of each sample: problems dealt out by these shares, those with a failure first."""
    part_of: dict[int, int] = {}
    failing = set(samples.problem_N[samples.failing_N].tolist())
    edges = np.cumsum(sizes)[:-1]
    for group in (failing, set(samples.problem_N.tolist()) - failing):
        order = rng.permutation(sorted(group))
        # At least one problem in each part, where there are enough.
        cuts = np.round(edges * len(order)).astype(int)
        if len(order) >= len(sizes):
            for i in range(len(cuts)):
                cuts[i] = np.clip(cuts[i], i + 1, len(order) - len(cuts) + i)
        for part, members in enumerate(np.split(order, cuts)):
            part_of |= dict.fromkeys(members.tolist(), part)
    return np.array([part_of[problem] for problem in samples.problem_N.tolist()], int)


def _held_out(samples: Samples, training: DetectorTraining) -> np.ndarray:
    failing = np.unique(samples.problem_N[samples.failing_N])
    others = np.unique(samples.problem_N[~samples.failing_N])
    if len(failing) < 2 or len(others) < 2:
        raise BadInput(
            f"found failing steps in {len(failing)} problems and others in {len(others)}, expected "
            "at least 2 of each, for training and for the test: label more traces."
        )
    rng = np.random.default_rng(training.seed)
    shares = [1 - training.held_out, training.held_out]
    return _parts(samples, shares, rng) == 1


def held_out_problems(samples: Samples, training: DetectorTraining) -> set[int]:
    """The numbers of the problems that `train` keeps for the test; raises BadInput as it does."""
    return set(samples.problem_N[_held_out(samples, training)].tolist())


def _cross_fitted(samples: Samples, training: DetectorTraining) -> np.ndarray:
    """Probabilities of each sample by a detector that was not trained on its problem."""
    rng = np.random.default_rng(training.seed)
    fold_N = _parts(samples, [1 / training.folds] * training.folds, rng)
    guess_N = np.full(len(fold_N), np.nan)
    for fold in np.unique(fold_N):
        here_N = fold_N == fold
        rest = _some(samples, ~here_N)
        enough = len(set(_used(rest, training).failing_N.tolist())) == 2
        # With a single failing problem there is nothing else to learn from than itself.
        detector = fit(rest if enough else samples, training)
        guess_N[here_N] = _probability(detector, _some(samples, here_N))
    return guess_N


def best_threshold(probability_N: np.ndarray, failing_N: np.ndarray, criterion: str) -> float:
    """The threshold (fires at or above it) that makes `criterion` largest; of equals the highest,
    of all those at which something fires.

    It lies in the middle between two neighbouring probabilities, so that it doesn't hang on the
    last digit of one.
    """
    order = np.argsort(-probability_N, kind="stable")
    score_N, failing_N = probability_N[order], failing_N[order]
    hits_N, alarms_N = np.cumsum(failing_N), np.cumsum(~failing_N)
    n_failing, n_fine = hits_N[-1], alarms_N[-1]
    if criterion == "balanced":
        # Recall less the false-alarm rate, times both counts: equal ones are equal to the last bit.
        value_N = hits_N * max(n_fine, 1) - alarms_N * max(n_failing, 1)
    elif criterion == "accuracy":
        value_N = hits_N + n_fine - alarms_N
    else:
        value_N = 2 * hits_N / (hits_N + alarms_N + n_failing)
    # A threshold can't part equal probabilities.
    last_N = np.append(score_N[1:] != score_N[:-1], True)
    best = int(np.argmax(np.where(last_N, value_N, -np.inf)))
    below = score_N[best + 1] if best + 1 < len(score_N) else 0.0
    return float((score_N[best] + below) / 2)


def quality(
    probability_N: np.ndarray,
    failing_N: np.ndarray,
    problem_N: np.ndarray,
    *,
    threshold: float,
    seed: int = 0,
    resamples: int = 1000,
) -> Quality:
    """Accuracy, recall, precision and AUROC, each [value, low, high] with a 95% interval.

    Problems are resampled, not tokens: those of one answer are no independent evidence. `failing`
    is the share of failing samples. None where a measure is not defined.
    """
    _, problem_N = np.unique(problem_N, return_inverse=True)
    P = int(problem_N.max(initial=-1)) + 1
    # The first row counts every problem once: the value itself.
    weight_RP = np.ones((1, P))
    if P:
        drawn_RP = metrics.resampled_means(np.eye(P), seed=seed, n=resamples) * P
        weight_RP = np.concatenate([weight_RP, drawn_RP])
    fires_N = probability_N >= threshold

    def total(of_N: np.ndarray) -> np.ndarray:
        return weight_RP @ np.bincount(problem_N, of_N.astype(float), P)

    def ratio(of_R: np.ndarray, all_R: np.ndarray) -> Interval:
        return as_interval(np.divide(of_R, all_R, out=np.full_like(of_R, np.nan), where=all_R > 0))

    hit_R = total(fires_N & failing_N)
    return {
        "n": len(failing_N),
        "failing": float(failing_N.mean()) if len(failing_N) else None,
        "accuracy": ratio(total(fires_N == failing_N), total(np.ones_like(failing_N))),
        "recall": ratio(hit_R, total(failing_N)),
        "precision": ratio(hit_R, total(fires_N)),
        "auroc": as_interval(_auroc(probability_N, failing_N, problem_N, weight_RP)),
    }


def as_interval(value_R: np.ndarray) -> Interval:
    """The first value with the 95 % interval of those of the resamples, which follow it."""
    low, high = metrics.percentile_interval(value_R[1:]) if len(value_R) > 1 else (np.nan, np.nan)
    return [None if np.isnan(v) else float(v) for v in (value_R[0], low, high)]


def _auroc(
    probability_N: np.ndarray, failing_N: np.ndarray, problem_N: np.ndarray, weight_RP: np.ndarray
) -> np.ndarray:
    """float64_R: the chance that a failing sample has a higher probability than another, ties half,
    samples weighted by their problem's weight."""
    if not len(probability_N):
        return np.full(len(weight_RP), np.nan)
    order = np.argsort(probability_N, kind="stable")
    score_N, failing_N, problem_N = probability_N[order], failing_N[order], problem_N[order]
    first_G = np.flatnonzero(np.append(True, score_N[1:] != score_N[:-1]))
    area_parts = []
    # Some resamples at a time: each needs two numbers per sample.
    for some_RP in np.array_split(weight_RP, math.ceil(weight_RP.shape[0] * len(order) / 1e7)):
        weight_RN = some_RP[:, problem_N]
        bad_RG = np.add.reduceat(weight_RN * failing_N, first_G, axis=1)
        fine_RG = np.add.reduceat(weight_RN * ~failing_N, first_G, axis=1)
        below_RG = fine_RG.cumsum(1) - fine_RG / 2
        pairs_R = bad_RG.sum(1) * fine_RG.sum(1)
        won_R = (bad_RG * below_RG).sum(1)
        area_parts.append(
            np.divide(won_R, pairs_R, out=np.full_like(won_R, np.nan), where=pairs_R > 0)
        )
    return np.concatenate(area_parts)
