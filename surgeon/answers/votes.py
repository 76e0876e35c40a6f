"""Votes: which of several answers are one, and which of them most samples give.

Everything that votes or measures agreement goes through `classes`: agreement, Maj@k, Cons@k, LMSI,
TTRL and the room for sharpening.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from surgeon.answers.checks import parse_check


def classes(answers: Sequence[str | None], how: str = "exact") -> list[str | None]:
    """For each answer to one question the class that it votes for: equal text, equal value.

    None (no answer) stays None. `how` is the check by which answers are compared.
    """
    form = parse_check(how).vote
    return [None if answer is None else form(answer) for answer in answers]


def majority(votes: Sequence[str | None]) -> str | None:
    """The class with the most votes, None where nobody votes.

    Between classes with equally many votes the draw is fair (by a digest of their names), and the
    same for every order of the votes.
    """
    count = Counter(vote for vote in votes if vote is not None)
    return max(count, key=lambda vote: (count[vote], _draw(vote)), default=None)


def _draw(vote: str) -> bytes:
    return hashlib.sha256(vote.encode(errors="surrogatepass")).digest()
