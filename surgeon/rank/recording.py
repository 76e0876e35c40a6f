"""How densely a ranking records: activations kept per token, and tokens per row of the slope.

Both are numbers, or follow from the models and their first traces; labels are never looked at.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from surgeon.activations import PAPER_TOP_K, PAPER_UNITS, kept_per_token
from surgeon.artifact import artifact
from surgeon.families import Subject
from surgeon.settings.rank import Scoring
from surgeon.traces import Trace

PAPER_ROW_TOKENS = MOST_ROW_TOKENS = 32
"""NEX A.7."""
ROWS_WANTED = 48
"""Rows in the median response at which most responses had two or more counted cycles (measured on
the built-in family, 5,700 responses read at 1, 2, 4 and 8 tokens a row)."""


@artifact("rows.json")
class RowLength:
    """What `row_tokens=auto` came to."""

    row_tokens: int
    median_tokens: dict[str, float]
    """Of the responses of the candidates that decided it."""

    @property
    def line(self) -> str:
        """All of it in a sentence."""
        name = min(self.median_tokens, key=self.median_tokens.__getitem__)
        return (
            f"row_tokens auto: {self.row_tokens} (the median response of {name} has "
            f"{self.median_tokens[name]:g} tokens; at least {ROWS_WANTED} rows of it are wanted)"
        )


def asked(scoring: Scoring) -> dict[str, object]:
    """The two settings as asked for; with preset paper, the paper's numbers for what is auto."""
    asked: dict[str, object] = {"row_tokens": scoring.row_tokens, "top_k": scoring.top_k}
    if scoring.preset == "paper":
        paper = {"row_tokens": PAPER_ROW_TOKENS, "top_k": PAPER_TOP_K}
        asked = {name: paper[name] if v == "auto" else v for name, v in asked.items()}
    return asked


def share(scoring: Scoring) -> float | None:
    """The share of the units that is kept per token; None where a count was asked for."""
    value = asked(scoring)["top_k"]
    if value == "auto":
        return PAPER_TOP_K / PAPER_UNITS
    return value if isinstance(value, float) else None


def top_k(scoring: Scoring, subjects: Sequence[Subject]) -> dict[str, int]:
    """Candidate -> activations that are kept per token, at least 1. Raises `BadInput` where a share
    was asked for and a model doesn't say how many units a token passes through."""
    part = share(scoring)
    if part is None:
        return dict.fromkeys((s.name for s in subjects), int(str(asked(scoring)["top_k"])))
    return {s.name: kept_per_token(s.source.passed_units, part) for s in subjects}


def row_tokens(scoring: Scoring) -> int:
    """Tokens per row; 0 where the first traces are to say."""
    value = asked(scoring)["row_tokens"]
    return value if isinstance(value, int) else 0


def fitting(tokens: float) -> int:
    """The largest power of two at which so many tokens make the rows that are wanted; at least
    1."""
    return 2 ** max(0, math.floor(math.log2(max(1.0, tokens / ROWS_WANTED))))


def row_length(traces: Mapping[str, Sequence[Trace]]) -> RowLength:
    """Tokens per row by these candidates' traces: those that fit the shorter median response, at
    most 32."""
    tokens = {name: float(median(len(t.token_ids) for t in ts)) for name, ts in traces.items()}
    row_tokens = min(MOST_ROW_TOKENS, fitting(min(tokens.values())))
    return RowLength(row_tokens=row_tokens, median_tokens=tokens)


def recorded(scoring: Scoring, row_tokens: int, top_k: Mapping[str, int]) -> dict[str, object]:
    """What ranking.json says of both: the numbers (null where a cache doesn't say), and what was
    asked for."""
    found: dict[str, object] = {"row_tokens": row_tokens}
    if asked(scoring)["row_tokens"] == "auto":
        found["row_tokens_asked"] = "auto"
    found["top_k"] = max(top_k.values(), default=None)
    if len(set(top_k.values())) > 1:
        found["top_k_by_candidate"] = dict(top_k)
    if top_k and (part := share(scoring)) is not None:
        found["top_k_share"] = part
    return found
