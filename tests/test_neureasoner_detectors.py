"""Detectors: which samples they learn from, how they are trained, and how they are judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from benchmarks.family import tokenizer
from surgeon.errors import BadInput
from surgeon.neureasoner import detectors
from surgeon.neureasoner.detectors import (
    LARGEST,
    Detector,
    Samples,
    best_threshold,
    collect,
    fit,
    quality,
    train,
)
from surgeon.neureasoner.features import trace_features
from surgeon.neureasoner.steps import Span, StepEnds, split_steps
from surgeon.settings.neureasoner import DetectorTraining, WatchSettings
from surgeon.traces import Trace

TOKENIZER = tokenizer.build()
ENDS = StepEnds(TOKENIZER)
STEPS = ("Next +4: 3 = 7", "Next *7: 7 = 9", "So -2 +9: 9 = 6", "Next -5: 6 = 1", "Next +1: 1 = 2")
SETTINGS = WatchSettings(k=2, instance_steps=2)
COLUMNS = {"intra": [0, 2], "inter": [1], "instance": [2, 3, 0]}


# --- samples --------------------------------------------------------------------------------------


def trace(
    *steps: str,
    prompt: str = "a",
    sample: int = 0,
    close: str = "\n</think>\n\nAnswer: 2<|im_end|>",
) -> Trace:
    text = "<think>\n" + "\n\n".join(steps or STEPS) + close
    ids: Any = TOKENIZER(text)["input_ids"]
    return Trace(prompt, sample, [5], ids, text, "stop" if "<|im_end|>" in close else "length")


def activations(of: Trace, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(of.token_ids), 4, generator=torch.Generator().manual_seed(seed))


def collected(*traces: Trace, spans: list[Span], **settings: Any) -> dict[str, Samples]:
    x = [activations(trace, i) for i, trace in enumerate(traces)]
    return collect(traces, x, spans, ENDS, COLUMNS, SETTINGS, **settings)


def span(level: str, first: int, last: int, failing: bool = True, **of: Any) -> Span:
    return Span(of.get("prompt", "a"), of.get("sample", 0), level, first, last, failing)


def lengths(one: Trace) -> list[int]:
    return [step.end - step.start for step in split_steps(ENDS, one.token_ids)]


def test_a_token_fails_with_its_step_and_is_read_at_the_steps_end():
    one = trace()
    found = collected(one, spans=[span("intra", 1, 2), span("inter", 4, 4)])
    n = lengths(one)
    assert len(n) == 5
    ends = np.zeros(sum(n), bool)
    ends[np.cumsum(n) - 1] = True
    for level, bad in (("intra", [0, 1, 1, 0, 0]), ("inter", [0, 0, 0, 0, 1])):
        samples = found[level]
        assert samples.failing_N.tolist() == np.repeat(bad, n).astype(bool).tolist()
        assert samples.end_N.tolist() == ends.tolist()
        assert set(samples.problem_N.tolist()) == {0}
        steps = split_steps(ENDS, one.token_ids)
        _, features_NCX = trace_features(activations(one), steps, level, SETTINGS, COLUMNS[level])
        assert samples.features_NX.dtype == np.float32
        np.testing.assert_array_equal(samples.features_NX, features_NCX.flatten(1).float())


def test_of_traces_judged_in_spans_the_rest_is_left_out():
    one = trace()
    spans = [span("intra", 1, 1), span("intra", 2, 3, False), span("intra", 0, 0, sample=7)]
    found = collected(one, spans=spans, judged="spans")
    n = lengths(one)
    assert found["intra"].failing_N.tolist() == [True] * n[1] + [False] * (n[2] + n[3])
    assert found["intra"].end_N.sum() == 3
    everything = collected(one, spans=spans)["intra"]
    np.testing.assert_array_equal(
        found["intra"].features_NX, everything.features_NX[n[0] : sum(n[:4])]
    )
    assert len(found["inter"].failing_N) == len(found["instance"].failing_N) == 0


def test_a_step_that_one_span_calls_failing_fails():
    for order in (1, -1):
        spans = [span("intra", 0, 4, False), span("intra", 1, 1)][::order]
        for judged in ("all", "spans"):
            failing_N = collected(trace(), spans=spans, judged=judged)["intra"].failing_N
            assert failing_N.sum() == lengths(trace())[1]


def test_instance_takes_the_first_steps_and_is_read_at_their_end():
    """The span says that the trace over-thinks, whatever steps it names."""
    one, other = trace(), trace(sample=1)
    found = collected(one, other, spans=[span("instance", 0, 4)])["instance"]
    first = sum(lengths(one)[:2])
    assert found.failing_N.tolist() == [True] * first + [False] * first
    assert np.flatnonzero(found.end_N).tolist() == [first - 1, 2 * first - 1]
    assert found.features_NX.shape[1] == 3 * 2
    only = collected(one, other, spans=[span("instance", 0, 4)], judged="spans")["instance"]
    assert only.failing_N.tolist() == [True] * first


def test_instance_is_read_only_where_more_may_follow():
    """A monitor reads it when the separator after the last of the first steps has come."""
    for steps, close in ((STEPS[:1], None), (STEPS[:2], None), (STEPS[:2], "")):
        one = trace(*steps) if close is None else trace(*steps, close=close)
        found = collected(one, spans=[])["instance"]
        assert len(found.failing_N) > 0 and not found.end_N.any()
    assert collected(trace(*STEPS[:2], close="\n\n"), spans=[])["instance"].end_N.sum() == 1


@pytest.mark.parametrize(
    ("close", "steps"), [("", 4), ("\n", 4), ("\n\n", 5), ("\n</think>\n\nAns", 5)]
)
def test_a_last_step_that_was_cut_is_left_out(close: str, steps: int):
    one = trace(close=close)
    assert one.finish_reason == "length"
    for level in ("intra", "inter"):
        samples = collected(one, spans=[])[level]
        assert len(samples.failing_N) == sum(lengths(one)[:steps])
        assert samples.end_N.sum() == steps and samples.end_N[-1]


def test_problems_are_prompts_not_samples():
    traces = [trace(prompt="b"), trace(prompt="a"), trace(prompt="b", sample=1)]
    spans = [span("intra", 0, 0, prompt="b", sample=1), span("intra", 1, 1)]
    found = collected(*traces, spans=spans)["intra"]
    n = sum(lengths(traces[0]))
    assert found.problem_N.tolist() == [0] * n + [1] * n + [0] * n
    bad = [found.failing_N[i * n : (i + 1) * n].sum() for i in range(3)]
    assert bad == [0, lengths(traces[0])[1], lengths(traces[0])[0]]


def test_a_response_without_steps_gives_no_samples():
    end: Any = TOKENIZER.eos_token_id
    found = collected(Trace("a", 0, [5], [end], "", "stop"), spans=[])
    assert [len(samples.failing_N) for samples in found.values()] == [0, 0, 0]


# --- training -------------------------------------------------------------------------------------

QUICK = DetectorTraining(updates=150)
SHORT = DetectorTraining(updates=20, folds=2)


def made(
    problems: int = 60, tokens: int = 20, signal: float = 0.0, share: float = 0.3, seed: int = 0
) -> Samples:
    """Every tenth token ends a step; a failing one lies `signal` higher in two of six features."""
    rng = np.random.default_rng(seed)
    N = problems * tokens
    failing_N = rng.random(N) < share
    features_NX = rng.standard_normal((N, 6)).astype(np.float32)
    features_NX[:, :2] += signal * failing_N[:, None]
    return Samples(
        features_NX, failing_N, np.arange(N) % 10 == 9, np.repeat(np.arange(problems), tokens)
    )


def state(detector: Detector) -> dict[str, list[Any]]:
    return {name: tensor.tolist() for name, tensor in detector.state_dict().items()}


def test_the_seed_alone_decides_what_is_learned():
    samples = made(signal=1)
    before = torch.random.get_rng_state()
    first = state(fit(samples, SHORT))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert state(fit(samples, SHORT)) == first
    assert state(fit(samples, replace(SHORT, seed=1))) != first
    whole = train(samples, SHORT)
    again = train(samples, SHORT)
    assert state(whole.detector) == state(again.detector) and whole.report == again.report


def test_a_detector_is_trained_on_one_thread(monkeypatch: pytest.MonkeyPatch):
    """Two threads that wait for one another made training 25 times slower on a busy machine."""
    threads: set[int] = set()
    forward = Detector.forward

    def seen(self: Detector, x: torch.Tensor) -> torch.Tensor:
        threads.add(torch.get_num_threads())
        return forward(self, x)

    monkeypatch.setattr(Detector, "forward", seen)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(made(signal=1), SHORT)
        assert threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_trained_detector_is_at_rest():
    detector = fit(made(signal=1), QUICK)
    assert not detector.training
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    x_NX = torch.randn(50, 6)
    assert torch.equal(detector.probability(x_NX), detector.probability(x_NX))


@pytest.mark.parametrize("failing", [True, False])
def test_one_kind_of_sample_teaches_nothing(failing: bool):
    samples = made()
    samples.failing_N[:] = failing
    with pytest.raises(BadInput, match=r"found (1200|0) failing and (0|1200) other samples"):
        fit(samples, QUICK)
    with pytest.raises(BadInput, match="at least 2 of each"):
        train(samples, QUICK)


def test_failing_samples_weigh_as_much_as_the_rest():
    """Without a signal a probability is about a half, however rare failures are."""
    detector = fit(made(share=0.04), QUICK)
    probability_N = detector.probability(torch.randn(2000, 6))
    assert float(probability_N.mean()) == pytest.approx(0.5, abs=0.1)


def test_trained_where_it_is_read_it_sees_nothing_else():
    samples = made(signal=2)
    other = samples._replace(features_NX=samples.features_NX.copy())
    other.features_NX[~samples.end_N] = np.nan
    ends = replace(SHORT, positions="ends")
    assert state(fit(other, ends)) == state(fit(samples, ends))
    assert state(fit(samples, ends)) != state(fit(samples, SHORT))


def test_features_are_standardised_and_cut_off():
    samples = made(signal=1)
    samples.features_NX[:, 3] = 7
    detector = fit(samples, QUICK)
    moved = samples._replace(features_NX=samples.features_NX * 50 - 3)
    x_NX = torch.from_numpy(samples.features_NX[:100])
    far = fit(moved, QUICK).probability(x_NX * 50 - 3)
    torch.testing.assert_close(far, detector.probability(x_NX), rtol=0, atol=1e-3)
    # What was always the same says nothing later either.
    other_NX = x_NX.clone()
    other_NX[:, 3] = torch.randn(100) * 100
    assert torch.equal(detector.probability(other_NX), detector.probability(x_NX))
    # And nothing counts for more than LARGEST standard deviations.
    edge_NX, beyond_NX = x_NX.clone(), x_NX.clone()
    edge_NX[:, 0] = detector.mean_X[0] + LARGEST * 1.01 / detector.scale_X[0]
    beyond_NX[:, 0] = 1e9
    assert torch.equal(detector.probability(edge_NX), detector.probability(beyond_NX))


def known(values: list[float | None]) -> list[float]:
    """An interval in which every number is there."""
    assert None not in values
    return [float(value) for value in values if value is not None]


def test_a_signal_is_found_in_problems_that_were_not_seen():
    report = train(made(signal=2.5), QUICK).report
    for name in ("tokens", "step_ends"):
        auroc, low, high = known(report[name]["auroc"])
        assert auroc > 0.95 and low <= auroc <= high
        assert known(report[name]["accuracy"])[0] > 0.88
    assert report["train"]["problems"] == 48 and report["test"]["problems"] == 12
    assert report["test"]["tokens"] == report["tokens"]["n"] == 240
    assert report["test"]["step_ends"] == report["step_ends"]["n"] == 24
    failing = report["tokens"]["failing"]
    assert failing is not None and report["test"]["failing_tokens"] == round(failing * 240)


def test_in_noise_there_is_nothing_to_find():
    report = train(made(problems=150), QUICK).report
    auroc, low, high = known(report["tokens"]["auroc"])
    assert low < 0.5 < high and auroc == pytest.approx(0.5, abs=0.1)


def signed(problems: int = 100) -> Samples:
    """Each problem has a signature of its own, and fails as a whole or not at all, by chance."""
    rng = np.random.default_rng(4)
    problem_N = np.repeat(np.arange(problems), 20)
    features_NX = rng.standard_normal((problems, 24))[problem_N].astype(np.float32)
    features_NX += 0.01 * rng.standard_normal(features_NX.shape).astype(np.float32)
    failing_N = (rng.random(problems) < 0.5)[problem_N]
    return Samples(features_NX, failing_N, np.arange(len(problem_N)) % 10 == 9, problem_N)


def test_what_tells_problems_apart_tells_nothing():
    """It can be learned by heart, and split by token the held-out ones would be known."""
    samples, training = signed(), replace(QUICK, folds=2)
    half, rest = (Samples(*(column[i::2] for column in samples)) for i in (0, 1))
    probability_N = fit(half, training).probability(torch.from_numpy(rest.features_NX))
    assert roc_auc_score(rest.failing_N, probability_N) > 0.99
    auroc, low, high = known(train(samples, training).report["tokens"]["auroc"])
    assert low < 0.5 < high and auroc < 0.7


def test_each_part_sees_its_own_problems_only(monkeypatch: pytest.MonkeyPatch):
    """The detector is of the training part, the threshold of predictions for problems of that part
    by detectors that didn't see them, the report of the others."""
    samples, training = made(problems=25, signal=1), DetectorTraining(updates=20)
    fitted: list[set[int]] = []
    judged: list[set[int]] = []
    chosen: list[tuple[np.ndarray, np.ndarray]] = []

    def fit_(some: Samples, how: DetectorTraining) -> Detector:
        fitted.append(set(some.problem_N.tolist()))
        return fit(some, how)

    def quality_(p_N: Any, failing_N: Any, problem_N: Any, **settings: Any) -> Any:
        judged.append(set(problem_N.tolist()))
        return quality(p_N, failing_N, problem_N, **settings)

    def threshold_(p_N: np.ndarray, failing_N: np.ndarray, criterion: str) -> float:
        chosen.append((p_N, failing_N))
        return best_threshold(p_N, failing_N, criterion)

    for name, function in (("fit", fit_), ("quality", quality_), ("best_threshold", threshold_)):
        monkeypatch.setattr(detectors, name, function)
    trained = train(samples, training)
    (learned, *folds), everything = fitted, set(range(25))
    assert all(test == everything - learned for test in judged)
    assert len(learned) == 20 and len(folds) == training.folds
    left_out = [learned - fold for fold in folds]
    assert sorted(map(len, left_out)) == [5, 5, 5, 5]
    assert set.union(*left_out) == learned
    # Those predictions, made again.
    guess_N = np.full(len(samples.failing_N), np.nan)
    for fold, out in zip(folds, left_out, strict=True):
        parts = [np.isin(samples.problem_N, list(some)) for some in (fold, out)]
        seen, new = (Samples(*(column[part] for column in samples)) for part in parts)
        guess_N[parts[1]] = fit(seen, training).probability(torch.from_numpy(new.features_NX))
    at_N = samples.end_N & np.isin(samples.problem_N, list(learned))
    ((p_N, failing_N),) = chosen
    np.testing.assert_array_equal(p_N, guess_N[at_N])
    np.testing.assert_array_equal(failing_N, samples.failing_N[at_N])
    threshold = best_threshold(p_N, failing_N, "balanced")
    assert trained.report["threshold"] == pytest.approx(threshold)
    assert trained.report["threshold"] == float(trained.detector.threshold)


def test_both_parts_have_failing_problems_where_there_are_two():
    samples = made(problems=30)
    for failing in (2, 3, 5):
        samples.failing_N[:] = np.isin(samples.problem_N, range(failing)) & (
            np.arange(len(samples.failing_N)) % 3 > 0
        )
        for seed in range(5):
            report = train(samples, DetectorTraining(updates=5, seed=seed)).report
            for part in ("train", "test"):
                assert report[part]["failing_step_ends"] > 0
                assert report[part]["problems"] >= 6 - (failing == 2)
    samples.failing_N[:] = samples.problem_N == 0
    with pytest.raises(BadInput, match="found failing steps in 1 problems and others in 29"):
        train(samples, QUICK)


def test_failures_that_end_no_step_in_a_fold_are_no_matter():
    """Trained on step ends, of which only one problem's are failing."""
    samples = made(problems=20)
    samples.failing_N[:] = (samples.problem_N < 3) & ~(samples.end_N & (samples.problem_N > 0))
    seeds = range(12)
    for seed in seeds:
        try:
            train(samples, DetectorTraining(updates=3, positions="ends", seed=seed))
            break
        except BadInput as error:
            # The one problem was held out.
            assert "found 0 failing and" in str(error)
    else:
        raise AssertionError("never in training")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", 0), ("dropout", 1.0), ("dropout", -0.1), ("updates", 0), ("detector_batch", 1),
        ("lr", 0.0), ("lr", float("inf")), ("weight_decay", -1.0), ("held_out", 0.0),
        ("held_out", 1.0), ("folds", 1), ("positions", "all"), ("criterion", "recall"),
    ],
)  # fmt: skip
def test_training_that_cant_be_is_refused(name: str, value: Any):
    with pytest.raises(BadInput, match=rf"found {name} = .*, expected "):
        DetectorTraining(**{name: value})


# --- the threshold --------------------------------------------------------------------------------


def worth(fires_N: np.ndarray, failing_N: np.ndarray, criterion: str) -> float:
    if criterion == "accuracy":
        return float(np.mean(fires_N == failing_N))
    hits = int((fires_N & failing_N).sum())
    if criterion == "f1":
        return 2 * hits / (int(fires_N.sum()) + int(failing_N.sum()))
    quiet = int((~fires_N & ~failing_N).sum())
    return hits / int(failing_N.sum()) + quiet / int((~failing_N).sum())


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=30),
    st.sampled_from(["balanced", "accuracy", "f1"]),
)
def test_no_threshold_is_better_than_the_best(drawn: list[tuple[int, bool]], criterion: str):
    score_N = np.array([score / 12 for score, _ in drawn])
    failing_N = np.array([failing for _, failing in drawn])
    assume(0 < failing_N.sum() < len(failing_N))
    found = best_threshold(score_N, failing_N, criterion)
    worths = {t: worth(score_N >= t, failing_N, criterion) for t in score_N.tolist()}
    best = max(worths.values())
    assert worth(score_N >= found, failing_N, criterion) == pytest.approx(best, abs=1e-12)
    # Of equals the highest, in the middle to the next score below.
    top = max(t for t, value in worths.items() if value > best - 1e-12)
    below = max([t for t in worths if t < top], default=0.0)
    assert found == pytest.approx((top + below) / 2)


# --- the report -----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 4)), min_size=2, max_size=40
    ),
    st.integers(0, 8),
)
def test_measures_are_those_of_scikit_learn(drawn: list[tuple[int, bool, int]], at: int):
    score_N, failing_N, problem_N = (np.array(column) for column in zip(*drawn, strict=True))
    score_N, threshold = score_N / 8, at / 8
    assume(0 < failing_N.sum() < len(failing_N))
    found = quality(score_N, failing_N, problem_N, threshold=threshold, resamples=20)
    fires_N = score_N >= threshold
    assert found["n"] == len(drawn)
    assert found["failing"] == pytest.approx(failing_N.mean())
    assert found["auroc"][0] == pytest.approx(roc_auc_score(failing_N, score_N))
    assert found["accuracy"][0] == pytest.approx((fires_N == failing_N).mean())
    assert found["recall"][0] == pytest.approx(recall_score(failing_N, fires_N))
    if fires_N.any():
        assert found["precision"][0] == pytest.approx(precision_score(failing_N, fires_N))
    else:
        assert found["precision"] == [None, None, None]


def test_intervals_are_of_resampled_problems():
    """By hand: problems drawn with replacement, all their samples with them."""
    samples, rng = made(problems=12, tokens=9, share=0.2), np.random.default_rng(5)
    score_N = np.round(rng.random(108) + 0.2 * samples.failing_N, 1)
    # By problem and by chance: the last ones are worse.
    score_N -= 0.03 * samples.problem_N * samples.failing_N
    found = quality(
        score_N, samples.failing_N, samples.problem_N, threshold=0.5, seed=3, resamples=200
    )
    drawn_RP = np.random.default_rng(3).integers(12, size=(200, 12))
    rows = []
    for drawn_P in drawn_RP:
        at_N = np.concatenate([np.flatnonzero(samples.problem_N == p) for p in drawn_P])
        fires_N, failing_N = score_N[at_N] >= 0.5, samples.failing_N[at_N]
        rows.append(
            (
                np.mean(fires_N == failing_N),
                recall_score(failing_N, fires_N),
                precision_score(failing_N, fires_N),
                roc_auc_score(failing_N, score_N[at_N]),
            )
        )
    for name, value_R in zip(
        ("accuracy", "recall", "precision", "auroc"), zip(*rows, strict=True), strict=True
    ):
        assert found[name][1:] == pytest.approx(np.quantile(value_R, [0.025, 0.975])), name


def test_more_tokens_of_the_same_problems_are_no_more_evidence():
    samples, rng = made(problems=15, tokens=4), np.random.default_rng(6)
    score_N = rng.random(60)
    once = quality(score_N, samples.failing_N, samples.problem_N, threshold=0.5)
    often = quality(
        *(np.tile(x, 30) for x in (score_N, samples.failing_N, samples.problem_N)), threshold=0.5
    )
    for name in ("accuracy", "recall", "precision", "auroc"):
        assert often[name] == pytest.approx(once[name])
        _, low, high = known(once[name])
        assert high - low > 0.1


def test_a_measure_that_is_not_defined_has_no_value():
    none = [None, None, None]
    p_N, problem_N = np.array([0.1, 0.9]), np.array([0, 1])
    fine = quality(p_N, np.array([False, False]), problem_N, threshold=0.5)
    assert fine["recall"] == fine["auroc"] == none and fine["precision"][0] == 0
    silent = quality(p_N, np.array([False, True]), problem_N, threshold=0.95)
    assert silent["precision"] == none and silent["recall"] == [0, 0, 0]
    empty = quality(p_N[:0], np.zeros(0, bool), problem_N[:0], threshold=0.5)
    assert empty["n"] == 0 and empty["failing"] is None
    assert all(empty[name] == none for name in ("accuracy", "recall", "precision", "auroc"))


def test_a_probability_at_the_threshold_fires():
    found = quality(np.array([0.5, 0.4]), np.array([True, False]), np.arange(2), threshold=0.5)
    assert found["accuracy"][0] == found["recall"][0] == 1
