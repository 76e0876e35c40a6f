"""Monitored answers of an engine that shows no activations: it writes, and the model here reads.

The engine writes to the end of a step. The model here is fed the step in one pass, as far as the
monitored layer, and the detectors read it; where one fires, the forced tokens are appended and the
engine continues from there. The engine is sent token ids, so it continues exactly what was read.
"""

# Shapes: T tokens of a pass, C channels.

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from surgeon.channels import tapped
from surgeon.decoding import Rewind, context_limit, stream_key
from surgeon.engines import asked
from surgeon.engines.completions import Completions, Continuation
from surgeon.errors import BadInput
from surgeon.families import as_subject
from surgeon.live.passes import chunk_cache, forward
from surgeon.live.processor import fitting_threads
from surgeon.monitor.jobs import Job, MonitoredAnswer, MonitorPlan
from surgeon.neureasoner.steps import SEPARATOR, StepEnds
from surgeon.traces import stop_ids
from surgeon.watch.watching import Watch, before_more

if TYPE_CHECKING:
    from torch import nn

PIECE_TOKENS = 512
"""Most tokens that are asked for in one go."""
PASS_TOKENS = 2048
"""Most tokens of a prompt that are read in one pass."""


@dataclass(eq=False)
class _Draft:
    """An answer in the making."""

    job: Job
    slot: int
    most: int
    cache: Any
    ids: list[int] = field(default_factory=list)
    read: int = 0
    """How many of `ids` the model here was fed."""
    forced: list[int] = field(default_factory=list)
    over: bool = False
    """The last token ends it."""

    @property
    def full(self) -> bool:
        return len(self.ids) >= self.most


def relayed(
    plan: MonitorPlan, model: "nn.Module", jobs: Sequence[Job]
) -> Iterator[MonitoredAnswer]:
    """Let the engine write the answers, and yield each when it ends.

    Raises BadInput when the engine stays out of reach, or refuses.
    """
    settings, dtype = plan.settings, None if plan.dtype is None else str(plan.dtype)
    subject = as_subject(plan.checkpoint)
    with asked(settings.engine, subject, dtype and dtype.removeprefix("torch.")) as endpoint:
        yield from _relayed(plan, model, jobs, endpoint)


def _relayed(
    plan: MonitorPlan, model: "nn.Module", jobs: Sequence[Job], endpoint: Completions
) -> Iterator[MonitoredAnswer]:
    reader = _Reader(plan, model, endpoint)
    waiting = deque(jobs)
    width = min(plan.settings.sampling.batch or plan.settings.engine.parallel, len(jobs))
    pool = ThreadPoolExecutor(width)
    running: dict[Future[Continuation], tuple[_Draft, bool]] = {}
    # Where no level is watched, nothing is read at a step's end.
    stops = bool(plan.levels)

    def ask(answer: _Draft) -> None:
        running[pool.submit(_ask, plan, endpoint, answer, stops)] = answer, stops

    try:
        for slot in range(width):
            ask(reader.begin(waiting.popleft(), slot))
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                # With or without a stop string, as it was when this piece was asked for.
                (answer, stopped), piece = running.pop(future), future.result()
                ids = reader.tokens(answer, piece, stopped)
                if ids is None:
                    # Without a stop string, what ends a piece is told apart by any engine.
                    stops = False
                else:
                    reader.take(answer, ids)
                if not (answer.over or answer.full):
                    ask(answer)
                    continue
                yield reader.end(answer)
                if waiting:
                    ask(reader.begin(waiting.popleft(), answer.slot))
    finally:
        endpoint.stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(plan: MonitorPlan, endpoint: Completions, answer: _Draft, stops: bool) -> Continuation:
    sampling, job = plan.settings.sampling, answer.job
    key = stream_key(sampling.seed, *job.key).hex()
    settings: dict[str, Any] = {
        "max_tokens": min(PIECE_TOKENS, answer.most - len(answer.ids)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        # Each piece has its own seed, or an engine would draw the same numbers again.
        "seed": int.from_bytes(stream_key(len(answer.ids), key, 0)[:4], "little") >> 1,
    }
    stop = SEPARATOR if stops else None
    return endpoint.complete([*job.ids, *answer.ids], stop=stop, **settings)


class _Reader:
    """The model here, which reads what the engine writes."""

    def __init__(self, plan: MonitorPlan, model: "nn.Module", endpoint: Completions):
        assert plan.monitor is not None
        self.model, self.tokenizer, self.endpoint = model, plan.tokenizer, endpoint
        self.most = plan.settings.sampling.max_tokens
        self.limit, self.stop = context_limit(model), stop_ids(model, plan.tokenizer)
        self.ends = StepEnds(plan.tokenizer, plan.monitor.settings.thinking)
        self.device = next(model.parameters()).device
        self.watch = Watch(
            plan.tokenizer, plan.monitor, random_rate=plan.rates, seed=plan.settings.sampling.seed,
            levels=plan.levels, device=self.device,
        )  # fmt: skip

    def begin(self, job: Job, slot: int) -> _Draft:
        """An answer that has its row, and whose prompt has been read."""
        most = min(self.most, self.limit - len(job.ids))
        answer = _Draft(job, slot, most, chunk_cache(self.model))
        self.watch.seat(slot, job.index)
        self._activations(answer, job.ids, 0)
        self._forced(answer, None, job.ids[-1], 0)
        return answer

    def end(self, answer: _Draft) -> MonitoredAnswer:
        """The finished answer."""
        forced = [position for position in answer.forced if position < len(answer.ids)]
        return MonitoredAnswer(
            answer.job, answer.ids, "stop" if answer.over else "length", forced,
            *self.watch.take(answer.job.index),
        )  # fmt: skip

    def tokens(self, answer: _Draft, piece: Continuation, stops: bool) -> list[int] | None:
        """The piece's tokens, with the stop token where it ends the answer; None where the engine
        doesn't tell the end of the answer from the stop string that it was given."""
        ids = piece.token_ids
        if ids is None:
            ids = self._encode(piece.text)
        if not ids and piece.finish_reason == "length":
            raise BadInput(
                f"the engine at {self.endpoint.url} wrote nothing, though it was asked for more."
            )
        if piece.finish_reason == "length" or (ids and ids[-1] in self.stop):
            return ids
        if stops:
            before = [*answer.ids[-1:], *ids][-2:]
            if piece.text.endswith(SEPARATOR) or (
                len(before) == 2 and ids and bool(self.ends.after(*before))
            ):
                return ids
            if isinstance(piece.stopped_by, str):
                return self._encode(piece.text + SEPARATOR)
            if not piece.says:
                return None
        end = piece.stopped_by if isinstance(piece.stopped_by, int) else self._end_id()
        return [*ids, end]

    def _encode(self, text: str) -> list[int]:
        if text.endswith(SEPARATOR):
            return before_more(self.tokenizer, text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    def _end_id(self) -> int:
        end: Any = self.tokenizer.eos_token_id
        return int(end) if end is not None else min(self.stop)

    def take(self, answer: _Draft, ids: Sequence[int]) -> None:
        """Append a piece, read it, and cut it off where the monitor steps in."""
        answer.ids += ids[: answer.most - len(answer.ids)]
        answer.over = answer.ids[-1] in self.stop
        while (end := self._run(answer)) > answer.read:
            start, answer.read = answer.read, end
            part = answer.ids[start:end]
            x_TC = self._activations(answer, part, len(answer.job.ids) + start)
            following = answer.ids[start + 1 : end + 1]
            # Where the next token isn't there yet, a step has ended: it could be any.
            for t, (fed, chosen) in enumerate(zip(part, [*following, part[-1]], strict=False)):
                x_C = None if x_TC is None else x_TC[t]
                forced = self._forced(answer, x_C, fed, chosen)
                if forced:
                    assert t == end - start - 1
                    answer.ids = [*answer.ids[:end], *forced][: answer.most]
                    answer.forced += range(end, len(answer.ids))
                    answer.over = answer.ids[-1] in self.stop

    def _forced(self, answer: _Draft, x_C: Tensor | None, fed: int, chosen: int) -> Sequence[int]:
        """The tokens to force after `fed`, where `chosen` comes next."""
        slot = answer.slot
        fed_B, chosen_B = (torch.full((slot + 1,), i) for i in (fed, chosen))
        x_BC = None if x_C is None else x_C.expand(slot + 1, -1)
        forced = self.watch.read([slot], fed_B, chosen_B, x_BC).get(slot, ())
        assert not isinstance(forced, Rewind)
        return forced

    def _run(self, answer: _Draft) -> int:
        """Up to where the answer can be read: to the end of a step, where the monitor may step in,
        or as far as the next token is known. The last token of an answer is never read."""
        ids, start = answer.ids, answer.read
        done = answer.over or answer.full
        if self.watch.steps.over_B[answer.slot] or not self.watch.levels:
            return start
        for p in range(start, len(ids) - 1):
            if bool(self.ends.thinking_over(ids[p + 1])) or self._ends_at(ids, p):
                return p + 1
        last = len(ids) - 1
        if not done and last >= start and self._ends_at(ids, last):
            return last + 1
        return max(start, last)

    def _ends_at(self, ids: Sequence[int], p: int) -> bool:
        return bool(self.ends.after(ids[max(p - 1, 0)], ids[p]))

    @torch.inference_mode()
    def _activations(self, answer: _Draft, ids: Sequence[int], position: int) -> Tensor | None:
        """x_TC of these tokens, which follow those that were read before."""
        if self.watch.channels is None:
            return None
        channels, device = self.watch.channels, self.device
        count, step = len(ids), PASS_TOKENS
        if answer.cache is None:
            # What the model remembers can't be continued by a step: all is read anew.
            ids = [*answer.job.ids, *answer.ids][: position + count]
            position, step = 0, len(ids)
        parts = []
        with fitting_threads(self.model), tapped(self.model, channels) as tap:
            for first in range(0, len(ids), step):
                forward(
                    self.model,
                    torch.tensor([ids[first : first + step]], device=device),
                    first=position + first,
                    cache=answer.cache,
                    until=channels.layer,
                )
                parts.append(tap.last[0])
        return torch.cat(parts)[-count:]
