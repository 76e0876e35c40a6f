"""Firings forced on trial: the same beginning of an answer with a trigger and without one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.answers import check_many, parse_tags, read_answers
from surgeon.neureasoner.worth import Trials
from surgeon.progress import bar
from surgeon.settings.sampling import Sampling
from surgeon.traces import Ask, Prompt, Sampler, Trace, append, settle, stored_traces, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Judging(NamedTuple):
    """How an answer is read and compared with the known one."""

    extract: Callable[[str], str | None]
    think_tags: Sequence[str]
    check: str
    timeout_s: float


class Trial(NamedTuple):
    """A step end at which a firing is tried."""

    level: str
    failing: bool
    trace: Trace
    problem: int
    end: int
    """Response tokens up to it."""
    back: int
    """Those that a firing leaves: up to the end, or to where the step is drawn anew from."""


def choose_trials(ends: Sequence[Trial], most: int, seed: int) -> list[Trial]:
    """At most `most` step ends of each level and kind at random, of a trace one of each."""
    chosen: list[Trial] = []
    for level in dict.fromkeys(trial.level for trial in ends):
        for failing in (True, False):
            by_trace: dict[tuple[str, int], list[Trial]] = {}
            for trial in ends:
                if (trial.level, trial.failing) == (level, failing):
                    by_trace.setdefault(trial.trace.key, []).append(trial)
            rng = Random(f"{seed} {level} {failing}")
            one_each = [rng.choice(some) for some in by_trace.values()]
            chosen += rng.sample(one_each, min(most, len(one_each)))
    return chosen


def tried(
    sampling: Sampling,
    sampler: Sampler,
    tokenizer: "PreTrainedTokenizerBase",
    trials: Sequence[Trial],
    forced: Mapping[str, Sequence[int]],
    file: Path,
) -> list[tuple[Trace, Trace]]:
    """(with the firing, without it) of each trial, decoded to their ends with the same random
    numbers.

    `forced` are the tokens by level. What is decoded is appended to the file, and what it holds
    already isn't decoded again; trial i has the sample numbers 2 i and 2 i + 1 there.
    """
    done = {trace.key: trace for trace in stored_traces(file)}
    missing = [
        (i, fires)
        for i, trial in enumerate(trials)
        for fires in (True, False)
        if (trial.trace.prompt_id, 2 * i + (not fires)) not in done
    ]
    with bar("firings on trial", len(missing)) as advance:
        for fires in (True, False):
            wanted = [i for i, one in missing if one == fires]
            heads = [_head(trials[i], forced if fires else None) for i in wanted]
            asks = [
                Ask(
                    # The same key with and without: the same random numbers.
                    (trials[i].trace.prompt_id, i),
                    [*trials[i].trace.prompt_token_ids, *head],
                    max_tokens=max(1, sampling.max_tokens - len(head)),
                )
                for i, head in zip(wanted, heads, strict=True)
            ]
            for answer in sampler.answers(asks, sampling) if asks else ():
                i, trace = wanted[answer.index], trials[wanted[answer.index]].trace
                ids = [*heads[answer.index], *answer.token_ids]
                finish = "stop" if ids[-1] in sampler.stop else "length"
                made = Trace(
                    trace.prompt_id, 2 * i + (not fires), list(trace.prompt_token_ids), ids,
                    text_of(tokenizer, ids, finish), finish,
                )  # fmt: skip
                append(file, made)
                done[made.key] = made
                advance()
    pairs = [
        (done[trial.trace.prompt_id, 2 * i], done[trial.trace.prompt_id, 2 * i + 1])
        for i, trial in enumerate(trials)
    ]
    settle(file, [trace for pair in pairs for trace in pair])
    return pairs


def _head(trial: Trial, forced: Mapping[str, Sequence[int]] | None) -> list[int]:
    """What an answer begins with: with a firing, or (None) without."""
    if forced is None:
        return list(trial.trace.token_ids[: trial.end])
    return [*trial.trace.token_ids[: trial.back], *forced[trial.level]]


def right(
    judging: Judging,
    traces: Sequence[Trace],
    prompts: Mapping[str, Prompt],
    tokenizer: "PreTrainedTokenizerBase",
) -> np.ndarray:
    """bool: whether each trace's answer is its prompt's known one; a truncated one's isn't."""
    answers = read_answers(traces, judging.extract, tokenizer, parse_tags(judging.think_tags))
    pairs = [
        (answer, str(prompts[trace.prompt_id].answer))
        for answer, trace in zip(answers, traces, strict=True)
    ]
    verdicts = check_many(pairs, judging.check, timeout_s=judging.timeout_s)
    return np.array([verdict.correct for verdict in verdicts], bool)


def outcomes(
    judging: Judging,
    trials: Sequence[Trial],
    pairs: Sequence[tuple[Trace, Trace]],
    prompts: Mapping[str, Prompt],
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Trials]:
    """What came of the trials, by level."""
    both = [trace for pair in pairs for trace in pair]
    right_K2 = right(judging, both, prompts, tokenizer).reshape(-1, 2)
    found: dict[str, Trials] = {}
    for level in dict.fromkeys(trial.level for trial in trials):
        own = [k for k, trial in enumerate(trials) if trial.level == level]
        found[level] = trials_of([trials[k] for k in own], [pairs[k] for k in own], right_K2[own])
    return found


def trials_of(
    trials: Sequence[Trial], pairs: Sequence[tuple[Trace, Trace]], right_K2: np.ndarray
) -> Trials:
    """What came of the trials; `right_K2` says of each pair which answers are right."""
    return Trials(
        np.array([trial.failing for trial in trials], bool),
        np.array([trial.problem for trial in trials], int),
        right_K2[:, 0].astype(float) - right_K2[:, 1],
        np.array(
            [
                trial.end - trial.back + len(a.token_ids) - len(b.token_ids)
                for trial, (a, b) in zip(trials, pairs, strict=True)
            ],
            float,
        ),
    )
