"""What a model thinks of the tokens of a prompt."""

# Shape letters: T tokens of the prompt, V vocabulary, D model width.

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.decoding.choosing import NotFinite
from surgeon.decoding.fitting import evaluating, why_alone
from surgeon.decoding.shaping import Likelihood, likelihoods
from surgeon.live.architecture import (
    base_model,
    device_of,
    head_of,
    text_decoder,
)
from surgeon.live.processor import fitting_threads

TOGETHER = 256
"""Positions whose logits are held at a time."""


@torch.inference_mode()
def prompt_likelihoods(model: nn.Module, prompt: Sequence[int], top: int) -> list[Likelihood]:
    """Each token's log-probability after those before it, and the `top` likeliest: of all tokens
    but the first, which nothing comes before. Raises NotFinite."""
    found: list[Likelihood] = []
    if len(prompt) < 2:
        return found
    with evaluating(model), fitting_threads(model):
        for logits_TV in _logits(model, prompt[:-1]):
            at = len(found) + 1
            ids = prompt[at : at + len(logits_TV)]
            logprob_TV = logits_TV.float().log_softmax(-1)
            if bool(logprob_TV.isnan().any()):
                raise NotFinite
            found += likelihoods(logprob_TV, ids, top)
    return found


def _logits(model: nn.Module, ids: Sequence[int]) -> Iterator[Tensor]:
    """The logits after each token, some positions at a time."""
    device = device_of(model)
    id_1T = torch.tensor([list(ids)], device=device)
    if why_alone(model) is None:
        hidden_TD = text_decoder(model)(input_ids=id_1T, use_cache=False).last_hidden_state[0]
        head = head_of(model)
        for part_TD in hidden_TD.split(TOGETHER):
            yield head.logits(part_TD)
    else:
        whole: Any = base_model(model)(input_ids=id_1T, use_cache=False)
        yield from whole.logits[0].split(TOGETHER)
