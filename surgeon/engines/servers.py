"""A candidate behind an OpenAI-compatible server, as a sampler."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.decoding import Answer, stream_key
from surgeon.endpoint import in_parallel
from surgeon.engines.completions import Completions, Continuation
from surgeon.errors import BadInput
from surgeon.families import Subject
from surgeon.live.families import stop_ids_of
from surgeon.progress import say
from surgeon.settings.engine import EngineSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import Ask, Key, Until, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED_BITS = 31
"""Every server takes seeds of so many."""


@dataclass
class Counts:
    """What an engine was asked and what it said, for one candidate."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    from_text: int = 0
    """Answers whose token ids come from the text, as the engine gave none."""
    retokenised: int = 0
    """Those of them known to differ from what was generated: their text isn't that of the ids, or
    the engine counted another number of tokens."""
    other_prompts: int = 0
    """Answers before which the engine counted another number of prompt tokens than there are."""


class ServerEngine:
    """The server of every candidate, by the engine's name; `{name}` in it is the candidate's."""

    def __init__(self, settings: EngineSettings):
        self.settings = settings

    def endpoint(self, subject: Subject) -> Completions:
        """Where a candidate is asked; raises `BadInput`."""
        return endpoint_of(self.settings, subject.name)

    def seat(self, subject: Subject, tokenizer: "PreTrainedTokenizerBase") -> "ServerSampler":
        """The sampler of this candidate."""
        return ServerSampler(self.endpoint(subject), subject, tokenizer, self.settings)

    def close(self) -> None:
        """Nothing was started."""


def endpoint_of(settings: EngineSettings, name: str) -> Completions:
    """The server of the candidate of that name; raises `BadInput`."""
    return Completions.parse(
        str(settings.name).replace("{name}", name),
        timeout=settings.timeout,
        attempts=settings.attempts,
    )


class _Pace:
    """At most so many requests a minute, evenly, from any thread."""

    def __init__(self, per_minute: int):
        self.gap = 60 / per_minute if per_minute else 0.0
        self.lock, self.next = threading.Lock(), 0.0

    def wait(self, stopped: threading.Event) -> None:
        """Return when the next request may go, or all is stopped."""
        if not self.gap:
            return
        with self.lock:
            now = time.monotonic()
            at = max(now, self.next)
            self.next = at + self.gap
        stopped.wait(at - now)


class _Told(NamedTuple):
    """One answer as the server told it."""

    ids: list[int]
    finish_reason: Any
    """`stop` or `length`."""
    said: Continuation
    same: bool
    """Whether the ids are what was generated, as far as is known."""


class ServerSampler:
    """One candidate behind a server; a request an answer."""

    def __init__(
        self,
        endpoint: Completions,
        subject: Subject,
        tokenizer: "PreTrainedTokenizerBase",
        settings: EngineSettings,
    ):
        self.endpoint, self.tokenizer, self.settings = endpoint, tokenizer, settings
        self.context = subject.source.context
        self.stop = stop_ids_of(subject, tokenizer)
        self.counts = Counts()
        self.pace = _Pace(settings.requests_per_minute)

    def answers(
        self, asks: Sequence[Ask], sampling: Sampling, until: Until | None = None
    ) -> Iterator[Answer]:
        """Yield each answer as it ends. Where `until` cuts one, what the server wrote after that is
        left out. Raises `BadInput` when the server stays out of reach, or refuses."""
        self._say_estimate(asks, sampling)
        items = list(enumerate(asks))

        def ask(item: tuple[int, Ask]) -> _Told:
            self.pace.wait(self.endpoint.stopped)
            return self._ask(item[1], sampling)

        for (index, _), told in in_parallel(self.endpoint, items, ask, self.settings.parallel):
            self._count(asks[index], told)
            yield cut(index, told.ids, told.finish_reason, until)

    def _say_estimate(self, asks: Sequence[Ask], sampling: Sampling) -> None:
        tokens_in = sum(len(ask.ids) for ask in asks)
        most = sum(self._most(ask, sampling) for ask in asks)
        money = self.settings.money(tokens_in, most)
        say(
            f"{len(asks):,} requests to {self.endpoint.model} at {self.endpoint.url}, "
            f"{tokens_in:,} tokens in and at most {most:,} out"
            + ("" if money is None else f", at most {money:.2f} at the prices given")
            + "."
        )

    def _most(self, ask: Ask, sampling: Sampling) -> int:
        most = sampling.max_tokens if ask.max_tokens is None else ask.max_tokens
        return max(1, min(most, self.context - len(ask.ids)))

    def _ask(self, ask: Ask, sampling: Sampling) -> _Told:
        how: dict[str, Any] = {
            "max_tokens": self._most(ask, sampling),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed_of(sampling.seed, ask.key),
            "stop_ids": sorted(self.stop),
        }
        if self.settings.ask is None:
            said = self.endpoint.complete(ask.ids, **how)
        elif ask.prompt is None:
            raise BadInput(
                "a chat server can't go on from a part of an answer: give --ask completions."
            )
        else:
            said = self.endpoint.converse(ask.prompt.messages, thinking=sampling.thinking, **how)
        return self._read(ask, said)

    def _read(self, ask: Ask, said: Continuation) -> _Told:
        """The answer's tokens; raises `BadInput` where the server read another prompt."""
        if said.prompt_ids is not None and said.prompt_ids != list(ask.ids):
            raise BadInput(
                f"{self.endpoint.model} at {self.endpoint.url} read prompt {ask.key[0]!r} as other "
                "tokens than the checkpoint here does: it has another template or tokenizer. Give "
                "--ask completions, or the server of this checkpoint."
            )
        ids, same = said.token_ids, True
        if ids is None:
            ids = list(self.tokenizer(said.text, add_special_tokens=False)["input_ids"])  # pyright: ignore
            same = text_of(self.tokenizer, ids) == said.text
        if not ids and said.finish_reason == "length":
            raise BadInput(
                f"{self.endpoint.model} at {self.endpoint.url} wrote nothing, though it was asked "
                "for more."
            )
        if said.finish_reason == "stop" and (not ids or ids[-1] not in self.stop):
            ids = [*ids, self._end(said)]
        if said.token_ids is None and said.tokens_out:
            # Servers count the token that ends an answer, or don't.
            ended = said.finish_reason == "stop"
            same = same and said.tokens_out in {len(ids), len(ids) - ended}
        size = len(self.tokenizer)
        if max(ids) >= size or min(ids) < 0:
            raise BadInput(
                f"{self.endpoint.model} at {self.endpoint.url} wrote token {max(ids)}, and the "
                f"checkpoint's tokenizer has {size}: it is another model."
            )
        finish = "stop" if ids[-1] in self.stop else said.finish_reason
        return _Told(ids, finish, said, same)

    def _end(self, said: Continuation) -> int:
        """The token that ended an answer which lacks it."""
        if isinstance(said.stopped_by, int) and said.stopped_by in self.stop:
            return said.stopped_by
        end: Any = self.tokenizer.eos_token_id
        return int(end) if end in self.stop else min(self.stop)

    def _count(self, ask: Ask, told: _Told) -> None:
        counts, said = self.counts, told.said
        counts.requests += 1
        counts.tokens_in += said.tokens_in or len(ask.ids)
        counts.tokens_out += said.tokens_out or len(told.ids)
        counts.from_text += said.token_ids is None
        counts.retokenised += not told.same
        counts.other_prompts += said.tokens_in not in (0, len(ask.ids))


def seed_of(seed: int, key: Key) -> int:
    """The seed that an engine gets for an answer, from the run's seed and the answer's key."""
    raw = int.from_bytes(stream_key(seed, *key)[:8], "little")
    return raw & ((1 << SEED_BITS) - 1)


def cut(index: int, ids: list[int], finish_reason: Any, until: Until | None) -> Answer:
    """An answer, cut where `until` says so."""
    for end in range(1, len(ids)) if until is not None else ():
        if until is not None and until(index, ids[:end]):
            return Answer(index, ids[:end], "length")
    return Answer(index, ids, finish_reason)
