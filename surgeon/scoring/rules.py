"""The rules by which answers are chosen, from a pool or among those to one prompt: a row each.

A rule from outside, `--by my_rules:rule`, is a function of one scored answer (a mapping with
`prompt_id`, `sample`, `tokens`, `finished` and `answer`) that returns a number, the highest kept
first; or a `Rule` where its other fields matter.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from surgeon import named
from surgeon.errors import BadInput

Row = Mapping[str, Any]
"""What is known of one answer, as in scores.jsonl."""
Needs = Literal["nothing", "weights", "recording", "sets", "votes"]


class Rule(NamedTuple):
    """How answers are ordered."""

    what: str
    """In a few words, best first."""
    needs: Needs
    """What must be known of the answers: the neuron weights and masses, a recording by the reader,
    contribution sets, or what they vote for."""
    of: Callable[[Row], float | None]
    """Higher is better; None where there is no value, which comes last."""


def draw(name: str, row: Row, seed: int) -> float:
    """A number in [0, 1) that depends on the answer and the seed alone."""
    text = f"{seed}/{name}/{row['prompt_id']}/{row['sample']}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def measured(name: str, sign: int = 1) -> Callable[[Row], float | None]:
    """The value of that name, or its negative."""

    def of(row: Row) -> float | None:
        return None if row.get(name) is None else sign * row[name]

    return of


RULES: dict[str, Rule] = {
    "nex": Rule("the largest Good-Mass Fraction (NEX Eq. 14)", "weights", measured("nex")),
    "hes": Rule("the largest sum of token entropies", "recording", measured("hes")),
    "low-hes": Rule("the smallest sum of token entropies", "recording", measured("hes", -1)),
    "length": Rule("the fewest tokens", "nothing", measured("tokens", -1)),
    "longest": Rule("the most tokens", "nothing", measured("tokens")),
    "logprob": Rule("the largest mean log-probability", "recording", measured("logprob")),
    "agreement": Rule(
        "answers that most of the prompt's others give", "votes", measured("agreement")
    ),
    "consensus": Rule(
        "the smallest contribution sets (Neuron-OPSD Eq. 4)", "sets", measured("consensus", -1)
    ),
    "random": Rule("at random", "nothing", lambda row: 0.0),
}


def rule_of(name: str, rules: Mapping[str, Rule] = RULES) -> Rule:
    """The rule of that row, or from outside; raises `BadInput` where there is none."""
    row = named.row(rules, name, "by")
    if isinstance(row, Rule):
        return row
    first_line = (row.__doc__ or name).strip().partition("\n")[0]
    return Rule(first_line.rstrip("."), "nothing", row)


def short(name: str) -> str:
    """A rule's name without the module of one from outside: the name of its files."""
    return name.rpartition(":")[2]


def values_of(name: str, rule: Rule, rows: Sequence[Row]) -> np.ndarray:
    """float64: the value of every answer under a rule, nan where it has none; raises `BadInput`
    where a rule from outside returns no number."""
    values = []
    for row in rows:
        value = rule.of(row)
        if value is not None and not isinstance(value, int | float):
            raise BadInput(f"rule {name} returned {value!r} for an answer, expected a number.")
        values.append(np.nan if value is None else float(value))
    return np.array(values)


def order(name: str, rule: Rule, rows: Sequence[Row], *, seed: int, worst: bool) -> np.ndarray:
    """int64: the places of the answers, best first (worst first); equals in an order that the seed
    draws, and those without a value last."""
    value_N = values_of(name, rule, rows)
    tie_N = np.array([draw(name, row, seed) for row in rows])
    key_N = value_N if worst else -value_N
    return np.lexsort((tie_N, np.where(np.isnan(key_N), np.inf, key_N)))


def within(order_N: np.ndarray, tokens_N: np.ndarray, budget: int) -> np.ndarray:
    """bool_N: the first answers of an order that fit the budget together; at least one."""
    total_N = np.cumsum(tokens_N[order_N])
    kept_N = np.zeros(len(tokens_N), bool)
    kept_N[order_N[: max(1, int(np.searchsorted(total_N, budget, "right")))]] = True
    return kept_N
