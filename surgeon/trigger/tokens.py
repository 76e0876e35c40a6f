"""The trigger tokens: in the tokenizer, and as rows of embedding and unembedding."""

# Shapes: V vocabulary, D model width.

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from surgeon.checkpoint import Checkpoint


def add_triggers(tokenizer: Any, names: Iterable[str]) -> list[int]:
    """Make the triggers tokens of their own; the ids of those that are new."""
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    new = [name for name in names if name not in known]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], True)
    return [tokenizer.convert_tokens_to_ids(name) for name in new]


def rows_of(checkpoint: Checkpoint) -> int:
    """Rows of a checkpoint's embedding; more than tokens where some are reserved."""
    return int(checkpoint.text_config["vocab_size"])


@torch.no_grad()
def prepare_rows(model: Any, new_ids: Sequence[int]) -> bool:
    """Give the new tokens rows in embedding and unembedding, at the mean of the others; reserved
    rows are used where there are enough. True where the matrices had to grow."""
    if not new_ids:
        return False
    rows = model.get_input_embeddings().weight.shape[0]
    grows = max(new_ids) >= rows
    if grows:
        model.resize_token_embeddings(max(new_ids) + 1, mean_resizing=False)
    weights = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    for weight_VD in weights:
        # Reserved rows were never trained: they say nothing of what a token is like.
        weight_VD[list(new_ids)] = weight_VD[: min(new_ids)].float().mean(0).to(weight_VD.dtype)
    return grows
