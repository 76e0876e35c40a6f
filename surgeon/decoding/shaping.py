"""What changes one row's logits before its next token is drawn, and what is told of them."""

# Shape letters: V vocabulary, K kept.

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import BadInput


class Shaping(NamedTuple):
    """How a row's logits are changed before the temperature, in the order of the fields.

    Bias and penalties are applied as vLLM does:  OpenAI's and, for the repetition penalty,
    the definition of transformers.
    """

    bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to the logit of each."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and of the answer are divided by it where they are above 0,
    multiplied where below (arXiv 1909.05858)."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time the answer holds the token."""
    presence_penalty: float = 0.0
    """Subtracted once where the answer holds the token."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are left out, at the row's temperature
    and before top-k and top-p (arXiv 2407.01082)."""

    def check(self, vocabulary: int) -> None:
        """Raise BadInput for a setting that is out of range."""
        for name, good, expected in (
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0"),
            ("frequency_penalty", np.isfinite(self.frequency_penalty), "a finite number"),
            ("presence_penalty", np.isfinite(self.presence_penalty), "a finite number"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not good:
                raise BadInput(f"found {name} = {getattr(self, name)}, expected {expected}.")
        for token_id, value in self.bias:
            if not (0 <= token_id < vocabulary and np.isfinite(value)):
                raise BadInput(
                    f"found a logit bias of {value} for token {token_id}, expected a finite "
                    f"number and a token from 0 to {vocabulary - 1}."
                )


PLAIN = Shaping()


class Constraint(Protocol):
    """Which tokens one answer may go on with; an object for one answer."""

    def allowed(self) -> np.ndarray:
        """Truth values (V,): the tokens that may come next, at least one of them."""
        ...

    def accept(self, token_id: int) -> None:
        """The answer goes on with this token."""
        ...


class Likelihood(NamedTuple):
    """What the model itself thought of a token: before bias, penalties, constraint, temperature."""

    logprob: float
    """The token's own, natural logarithm."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first; among equals the smaller
    id comes first."""


def shaped(
    logits_V: Tensor,
    shaping: Shaping,
    prompt: Sequence[int],
    answer: Sequence[int],
    temperature: float,
    constraint: Constraint | None = None,
) -> Tensor:
    """One row's float32 logits (V,) as its next token is drawn from; the given ones stay."""
    logits_V = logits_V.clone()
    device = logits_V.device
    if shaping.bias:
        ids, values = zip(*shaping.bias, strict=True)
        logits_V[torch.tensor(ids, device=device)] += torch.tensor(values, device=device)
    if shaping.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *answer}), device=device)
        value = logits_V[seen]
        penalty = shaping.repetition_penalty
        logits_V[seen] = torch.where(value < 0, value * penalty, value / penalty)
    if answer and (shaping.frequency_penalty or shaping.presence_penalty):
        ids, count = torch.tensor(answer, device=device).unique(return_counts=True)
        logits_V[ids] -= shaping.frequency_penalty * count + shaping.presence_penalty
    if constraint is not None:
        allowed_V = torch.from_numpy(constraint.allowed()).to(device)
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
        logits_V[len(allowed_V) :] = -torch.inf
    if shaping.min_p > 0 and temperature > 0:
        # p >= min_p * max p, without the sum that both are divided by.
        least = logits_V.max() + temperature * float(np.log(shaping.min_p))
        logits_V.masked_fill_(logits_V < least, -torch.inf)
    return logits_V


def likelihoods(logprob_TV: Tensor, token_ids: Sequence[int], top: int) -> list[Likelihood]:
    """What each row of log-probabilities says of its token and of the `top` likeliest."""
    ids_T1 = torch.tensor(token_ids, device=logprob_TV.device)[:, None]
    own = logprob_TV.gather(1, ids_T1)[:, 0].tolist()
    if not top:
        return [Likelihood(value) for value in own]
    value_TK, id_TK = logprob_TV.topk(min(top, logprob_TV.shape[1]))
    rows = zip(own, value_TK.tolist(), id_TK.tolist(), strict=True)
    return [
        Likelihood(value, tuple(sorted(zip(ids, values, strict=True), key=lambda x: (-x[1], x[0]))))
        for value, values, ids in rows
    ]
