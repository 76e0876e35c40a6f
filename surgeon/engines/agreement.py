"""Whether an engine has a candidate's weights: its greedy tokens, held against the model here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from surgeon.decoding import prompt_likelihoods
from surgeon.errors import BadInput
from surgeon.settings.sampling import Sampling
from surgeon.traces import Ask, Prompt, Sampler, encode_all

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TOKENS = 32
"""Greedy tokens of a prompt that are compared."""
TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
"""Most that the logit of an engine's token may lie below the highest logit here, by the dtype in
which the model here computes."""
COARSE = 0.5
"""The same for dtypes of 16 bits: logits of 16 to 32 are a multiple of 1/8 in bfloat16, and engines
add the same numbers in another order."""


class Agreement(NamedTuple):
    """How an engine's greedy tokens compare with the model here."""

    tokens: int
    differing: int
    """Tokens that aren't the most likely here."""
    gap: float
    """The most that one's logit lies below the highest."""
    tolerance: float


def agreement(
    sampler: Sampler,
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> Agreement:
    """Ask for greedy answers and read them here, token by token, each after the engine's own ones
    before it."""
    greedy = replace(sampling, temperature=0.0, top_p=1.0, top_k=0, max_tokens=TOKENS)
    context, how = sampler.context, (sampling.thinking, sampling.template)
    encoded = encode_all(tokenizer, prompts, context, *how)
    asks = [Ask((prompt.id, 0), ids, prompt) for prompt, ids in zip(prompts, encoded, strict=True)]
    gaps: list[float] = []
    for answer in sampler.answers(asks, greedy):
        ids = asks[answer.index].ids
        likelihoods = prompt_likelihoods(model, [*ids, *answer.token_ids], 1)[len(ids) - 1 :]
        gaps += [one.top[0][1] - one.logprob for one in likelihoods]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Agreement(
        len(gaps), sum(gap > 0 for gap in gaps), max(gaps, default=0.0),
        TOLERANCE.get(dtype, COARSE),
    )  # fmt: skip


def agreement_required(found: Agreement, name: str, engine: str) -> None:
    """Raise `BadInput` where an engine can't have the weights of the candidate `name`."""
    if found.gap > found.tolerance:
        raise BadInput(
            f"the engine {engine} doesn't write as {name} does: of its {found.tokens} greedy "
            f"tokens {found.differing} aren't the most likely here, one by {found.gap:.3g} in the "
            f"logit, expected at most {found.tolerance:g}. Does it have these weights, in this "
            "dtype? (checked_prompts=0 asks nothing.)"
        )
