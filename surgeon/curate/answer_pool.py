"""A pool of answers: a file, or what a ranking kept of one candidate. It is read again whenever it
is needed, one row at a time; only what is counted of each answer stays in memory."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import lineage
from surgeon.checkpoint import split_member
from surgeon.errors import BadInput
from surgeon.scoring.ranked import TRACES, RankedPool, prompts_of, ranked_pools
from surgeon.settings.curate import CurateSettings
from surgeon.traces import Prompt, Trace, read_prompts
from surgeon.traces.answered import Answered, read_answered, tokens_of
from surgeon.traces.overlap import text_of_prompt
from surgeon.traces.records import Key
from surgeon.traces.texts import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMPARED = 64
"""Responses whose text is compared with what the reader's tokenizer makes of their tokens."""


class PooledAnswer(NamedTuple):
    """What is counted of one answer."""

    prompt_id: str
    sample: int
    tokens: int
    """Of the response."""
    finished: bool
    fits: bool
    """Within the reader's context."""

    @property
    def key(self) -> Key:
        return self.prompt_id, self.sample


class AnswerPool(NamedTuple):
    """All answers, and how to read them again."""

    settings: CurateSettings
    source: str
    """The file of its rows."""
    ranked: RankedPool | None
    prompts: Mapping[str, Prompt]
    """By id, where they were given apart."""
    tokenizer: "PreTrainedTokenizerBase | None"
    """The reader's."""
    answers: list[PooledAnswer]
    texts: dict[str, str | None]
    """Prompt -> what is asked, None where that isn't known."""
    golds: dict[str, str]
    """Prompt -> its true answer, for the report."""
    digest: str

    def rows(self) -> Iterator[Answered]:
        """Every answer, in the order of `answers`."""
        for _, answered in read_answered(self.source, self.prompts, self.settings.columns):
            yield answered

    def trace(self, answered: Answered) -> Trace:
        """An answer as tokens: of the reader where there is one."""
        if self.ranked is not None or self.tokenizer is None:
            if answered.trace is None:
                raise BadInput(
                    f"{self.source} holds texts, expected traces: give --reader CHECKPOINT, whose "
                    "tokens are counted."
                )
            return answered.trace
        ids, learned = tokens_of(
            self.tokenizer, answered, self.settings.thinking, self.settings.template
        )
        stop = len(learned) - learned[::-1].index(True)
        start = next((n for n in range(stop - 1, -1, -1) if not learned[n]), -1) + 1
        return Trace(
            answered.prompt_id, answered.sample, ids[:start], ids[start:stop], answered.text,
            "stop" if answered.finished else "length",
        )  # fmt: skip


def open_pool(
    settings: CurateSettings, tokenizer: "PreTrainedTokenizerBase | None", context: int
) -> AnswerPool:
    """Read a pool once, for what is counted of it; raises `BadInput`."""
    ranked = ranked_pool(settings.pool)
    source = settings.pool if ranked is None else str(ranked.directory / TRACES)
    prompts = _prompts(settings, ranked)
    pool = AnswerPool(settings, source, ranked, prompts, tokenizer, [], {}, {}, "")
    if ranked is not None and tokenizer is not None:
        _require_its_tokens(pool, tokenizer)
    for answered in pool.rows():
        trace = pool.trace(answered)
        length = len(trace.token_ids)
        pool.answers.append(
            PooledAnswer(
                answered.prompt_id, answered.sample, length, answered.finished,
                len(trace.prompt_token_ids) + length <= context,
            )
        )  # fmt: skip
        prompt = answered.prompt
        pool.texts.setdefault(
            answered.prompt_id, None if prompt is None else text_of_prompt(prompt)
        )
        if prompt is not None and prompt.answer is not None:
            pool.golds[prompt.id] = prompt.answer
    if ranked is not None:
        _require_the_same(pool, ranked)
    return pool._replace(digest=_digest(source, ranked))


def ranked_pool(spec: str) -> RankedPool | None:
    """The candidate that `RANKING#NAME` names; None where the pool is a file. Raises `BadInput`."""
    place, _ = split_member(spec)
    path = Path(place).expanduser()
    if not path.is_dir():
        return None
    pools = ranked_pools(spec)
    if len(pools) > 1:
        names = [pool.candidate.name for pool in pools]
        raise BadInput(
            f"found {len(pools)} candidates in {path}, expected the name of one: "
            f"{path}#{names[0]} ({', '.join(names)})."
        )
    if pools[0].traces is None:
        raise BadInput(
            f"{pools[0].directory} holds no {TRACES}: its responses were given to the ranking. "
            "Give their file as the pool, and a --reader."
        )
    return pools[0]


def _require_its_tokens(pool: AnswerPool, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise `BadInput` where a ranking's token ids mean something else to the reader."""
    strange = 0
    first = list(islice(pool.rows(), COMPARED))
    for trace in map(pool.trace, first):
        # A server may have spelt a few otherwise.
        strange += text_of(tokenizer, trace.token_ids, trace.finish_reason) != trace.text
    if 2 * strange > len(first):
        raise BadInput(
            f"found a reader whose tokenizer reads the tokens of {pool.source} as other text, "
            "expected the vocabulary of the ranking's candidate: rank the reader, or give the "
            "answers as a file of texts (--pool FILE)."
        )


def _require_the_same(pool: AnswerPool, ranked: RankedPool) -> None:
    strangers = [a.key for a in pool.answers if a.key not in ranked.responses]
    if strangers:
        raise BadInput(
            f"{pool.source} holds sample {strangers[0][1]} of prompt {strangers[0][0]!r}, which "
            "the ranking didn't score. Rank anew."
        )


def _prompts(settings: CurateSettings, ranked: RankedPool | None) -> dict[str, Prompt]:
    """The prompts that were given, or those that the ranking read, where they are still there."""
    source = settings.prompts
    if source is None and ranked is not None:
        return prompts_of(ranked.directory.parents[1])
    if source is None:
        return {}
    return {prompt.id: prompt for prompt in read_prompts(source, columns=settings.columns)}


def _digest(source: str, ranked: RankedPool | None) -> str:
    if ranked is not None:
        return ranked.digest
    path = Path(source).expanduser()
    return lineage.file_digest(path) if path.is_file() else lineage.digest_of(source)
