"""Firings on trial: the same beginning of an answer with a trigger and without one, or whole
answers with a monitor that draws steps anew."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import jsonl
from surgeon.answers import check_many, parse_tags, read_answers
from surgeon.decoding import Request, decode, stream_key
from surgeon.decoding.requests import FinishReason
from surgeon.neureasoner import worth
from surgeon.neureasoner.worth import Readings, Trials, Worth
from surgeon.progress import bar
from surgeon.settings.sampling import Sampling
from surgeon.traces import (
    Ask,
    Prompt,
    Sampler,
    Trace,
    append,
    settle,
    stop_ids,
    stored_traces,
    text_of,
)
from surgeon.watch.monitor import Monitor
from surgeon.watch.redrawing import watch_of

if TYPE_CHECKING:
    from torch import nn
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

        def keep(i: int, fires: bool, ids: list[int]) -> None:
            trace = trials[i].trace
            finish = "stop" if ids[-1] in sampler.stop else "length"
            made = Trace(
                trace.prompt_id, 2 * i + (not fires), list(trace.prompt_token_ids), ids,
                text_of(tokenizer, ids, finish), finish,
            )  # fmt: skip
            append(file, made)
            done[made.key] = made
            advance()

        for fires in (True, False):
            head_of = {
                i: _head(trials[i], forced if fires else None) for i, one in missing if one == fires
            }
            asks: dict[int, Ask] = {}
            for i, head in head_of.items():
                prompt_id, asked = trials[i].trace.prompt_id, trials[i].trace.prompt_token_ids
                if len(asked) + len(head) >= sampler.context:
                    # The context is full: there is no more to come.
                    keep(i, fires, head[: sampler.context - len(asked)])
                    continue
                # The same key with and without: the same random numbers.
                most = max(1, sampling.max_tokens - len(head))
                asks[i] = Ask((prompt_id, i), [*asked, *head], max_tokens=most)
            wanted = list(asks)
            for answer in sampler.answers(list(asks.values()), sampling) if asks else ():
                i = wanted[answer.index]
                keep(i, fires, [*head_of[i], *answer.token_ids])
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


class WatchedAnswer(NamedTuple):
    """A whole answer with a monitor on."""

    prompt_id: str
    sample: int
    token_ids: list[int]
    finish_reason: FinishReason
    redrawn: int
    """Tokens that were thrown away."""


def watched(
    sampling: Sampling,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    monitor: Monitor | None,
    traces: Sequence[Trace],
    file: Path,
) -> list[tuple[Trace, int]]:
    """(the answer, tokens thrown away) to the prompt of each trace, with the monitor on (None: with
    none), by the random numbers of the trace's prompt and sample.

    What is decoded is appended to the file, and what it holds already isn't decoded again.
    """
    rows = jsonl.rows(file) if file.is_file() else ()
    made = [WatchedAnswer(**row) for _, row in rows]
    done = {(one.prompt_id, one.sample): one for one in made}
    missing = [trace for trace in traces if trace.key not in done]
    watcher = None if monitor is None else watch_of(model, tokenizer, monitor, seed=sampling.seed)
    requests = [
        Request(trace.prompt_token_ids, stream_key(sampling.seed, *trace.key)) for trace in missing
    ]
    with bar(f"whole answers, {file.stem}", len(missing)) as advance:
        for answer in decode(
            model, requests, stop=stop_ids(model, tokenizer), max_tokens=sampling.max_tokens,
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
            batch=sampling.batch, watcher=watcher,
        ) if missing else ():  # fmt: skip
            firings = watcher.take(answer.index)[0] if watcher else []
            one = WatchedAnswer(
                *missing[answer.index].key, answer.token_ids, answer.finish_reason,
                sum(firing.redrawn or 0 for firing in firings),
            )  # fmt: skip
            jsonl.append(file, one._asdict())
            done[one.prompt_id, one.sample] = one
            advance()
    # In this order, whatever was there when the run was killed.
    jsonl.write(file, [done[trace.key]._asdict() for trace in traces])
    found = []
    for trace in traces:
        one = done[trace.key]
        text = text_of(tokenizer, one.token_ids, one.finish_reason)
        ids, reason = one.token_ids, one.finish_reason
        again = Trace(*trace.key, trace.prompt_token_ids, ids, text, reason)
        found.append((again, one.redrawn))
    return found


def alone(monitor: Monitor, level: str, threshold: float) -> Monitor:
    """A monitor of that level, with that threshold."""
    detector = deepcopy(monitor.detectors[level])
    detector.threshold.fill_(threshold)
    channels = {level: monitor.channels[level]}
    return Monitor(channels, {level: detector}, monitor.settings, monitor.checkpoint)


def measured(
    judging: Judging,
    found: Worth,
    readings: Readings,
    plain: Sequence[Trace],
    whole: Sequence[tuple[Trace, int]],
    threshold: float,
    prompts: Mapping[str, Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tolerance: float,
    seed: int,
) -> Worth:
    """What a level is worth by whole answers with it, beside those without."""
    both = [*(trace for trace, _ in whole), *plain]
    right_2N = right(judging, both, prompts, tokenizer).reshape(2, -1).astype(float)
    decoded_N = [
        len(one.token_ids) + redrawn - len(other.token_ids)
        for (one, redrawn), other in zip(whole, plain, strict=True)
    ]
    number = {name: n for n, name in enumerate(dict.fromkeys(t.prompt_id for t in plain))}
    return worth.measured(
        found, readings, threshold, right_2N[0] - right_2N[1], np.array(decoded_N, float),
        np.array([number[trace.prompt_id] for trace in plain]), tolerance=tolerance, seed=seed,
    )  # fmt: skip


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
