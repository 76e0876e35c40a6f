"""Counterparts of failing spans: the same trace up to the failure, then decoded anew (sec. 2.2)."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.neureasoner.steps import StepEnds, split_steps
from surgeon.traces import Sampling, Trace, stop_ids
from surgeon.trigger.artifacts import text_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MOST_TIMES = 4
SPARE_TOKENS = 256
"""A counterpart may have so many times the failing span's tokens, and so many more."""


class Failure(NamedTuple):
    """A failing span that is to get a counterpart."""

    trace: Trace
    level: str
    first: int
    last: int
    start: int
    """Response token at which step `first` begins: what comes before it is kept."""
    tokens: int
    """Of the span."""
    numbers: range
    """Sample numbers of its counterparts, one for each try."""


def choose_failures(
    spans: Sequence[tuple[str, int, int]], most: int, key: str
) -> list[tuple[str, int, int]]:
    """At most `most` of a trace's failing spans (level, first, last) of each level, at random."""
    chosen = []
    for level in ("intra", "inter"):
        own = [span for span in spans if span[0] == level]
        chosen += sorted(Random(f"{key} {level}").sample(own, min(most, len(own))))
    return chosen


def resample(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    ends: StepEnds,
    failures: Sequence[tuple[Failure, int]],
    sampling: Sampling,
) -> Iterator[Trace]:
    """Decode each failure's steps anew as the sample of that number; yields as they end.

    A counterpart ends with as many steps as the failing span has, where the thinking ends, or where
    it grows far longer than the span.
    """
    from surgeon.decoding import Decoder, Request, plan_rows, stream_key

    if not failures:
        return
    requests = [
        Request(
            [*f.trace.prompt_token_ids, *f.trace.token_ids[: f.start]],
            stream_key(sampling.seed, f.trace.prompt_id, number),
            max_tokens=MOST_TIMES * f.tokens + SPARE_TOKENS,
        )
        for f, number in failures
    ]
    stop = stop_ids(model, tokenizer)
    longest = max(request.max_tokens or 0 for request in requests)
    decoder = Decoder(
        model, stop=stop, rows=plan_rows(model, requests, longest, sampling.batch),
        max_tokens=longest, temperature=sampling.temperature, top_p=sampling.top_p,
        top_k=sampling.top_k, sheds=sampling.batch == 0,
    )  # fmt: skip
    for index, request in enumerate(requests):
        decoder.add(index, request)
    made: list[list[int]] = [[] for _ in failures]
    left = [f.last - f.first + 1 for f, _ in failures]
    while decoder.busy:
        for token in decoder.step():
            failure, number = failures[token.index]
            ids = made[token.index]
            ids.append(token.token_id)
            left[token.index] -= _ends_step(ends, ids)
            over = bool(ends.thinking_over([token.token_id])[0])
            if token.finish_reason is None and not over and left[token.index]:
                continue
            decoder.cancel(token.index)
            yield _counterpart(tokenizer, failure, number, ids, stop)


def _ends_step(ends: StepEnds, ids: Sequence[int]) -> bool:
    """Whether the last of these tokens, which begin with a step's first, ends a step."""
    if not ends.after(ids[-2:-1] or ids[-1:], ids[-1:])[0]:
        return False
    steps = split_steps(ends, ids)
    return bool(steps) and steps[-1].end == len(ids)


def _counterpart(
    tokenizer: Any, failure: Failure, number: int, ids: list[int], stop: frozenset[int]
) -> Trace:
    token_ids = [*failure.trace.token_ids[: failure.start], *ids]
    ended = token_ids[-1] in stop
    return Trace(
        failure.trace.prompt_id,
        number,
        list(failure.trace.prompt_token_ids),
        token_ids,
        text_of(tokenizer, token_ids[:-1] if ended else token_ids),
        "stop" if ended else "length",
    )
