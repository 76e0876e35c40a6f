"""Which prompts of a pool must not be learned: those of the mini-set and of the tasks.

By id, and by text: a prompt that shares 13 words in a row with one of them (Brown et al. 2020,
App. C), where operators count as words. A shorter question is compared whole. What very many
prompts of the pool have in common is wording ("reason step by step"), not a question.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from surgeon.traces.prompts import Prompt

WORDS = 13
WORD = re.compile(r"\w+|[^\w\s.,;:!?\"'`()\[\]{}\\$]")
WORDING_SHARE, WORDING_LEAST = 0.01, 10
"""Words in a row that more than so many prompts share are wording."""


class Left(NamedTuple):
    """Prompts that are left out."""

    by_id: frozenset[str]
    by_text: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        return self.by_id | self.by_text


def text_of_prompt(prompt: Prompt) -> str:
    """What the user asks; instructions of the system are no question."""
    return "\n".join(m["content"] for m in prompt.messages if m["role"] == "user")


def runs(text: str) -> set[str]:
    """All runs of 13 words, or the whole text where it has fewer."""
    words = WORD.findall(text.lower())
    if len(words) < WORDS:
        return {" ".join(words)} if words else set()
    return {" ".join(words[n : n + WORDS]) for n in range(len(words) - WORDS + 1)}


def left_out(pool: Mapping[str, str | None], excluded: Iterable[Sequence[Prompt]]) -> Left:
    """The prompts of a pool (id -> its text, None where it is unknown) that are in the excluded
    sets.

    A set whose ids are but the numbers of its rows is compared by text alone, unless the pool's
    texts are unknown.
    """
    sets = list(excluded)
    known = any(text is not None for text in pool.values())
    ids = {
        prompt.id
        for prompts in sets
        if not known or any(p.id != str(n) for n, p in enumerate(prompts, 1))
        for prompt in prompts
    }
    forbidden = {run for prompts in sets for p in prompts for run in runs(text_of_prompt(p))}
    hits: dict[str, set[str]] = {}
    shared: Counter[str] = Counter()
    for name, text in pool.items():
        found = runs(text) & forbidden if text is not None else set()
        if found:
            hits[name] = found
            shared.update(found)
    most = max(WORDING_LEAST, WORDING_SHARE * len(pool))
    by_text = {name for name, found in hits.items() if any(shared[run] <= most for run in found)}
    return Left(frozenset(pool.keys() & ids), frozenset(by_text))
