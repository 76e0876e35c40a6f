"""The model over one row at a time, with the cache that transformers' `generate` gives it."""

# Shape letters: B rows of the batch (slots), V vocabulary.

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon.decoding.cache import cache_bytes_per_token
from surgeon.live.architecture import base_model, device_of


class _LoneRow:
    """What `generate` would hold for one answer between two passes."""

    def __init__(self, model: Any, unread: Sequence[int]):
        self.model, self.ids = model, list(unread)
        self.state: dict[str, Any] | None = None

    def feed(self, ids: Sequence[int]) -> Tensor:
        """Run the model over further tokens, and in the first pass over those unread; the float32
        logits (V,) of the next."""
        first, model = self.state is None, self.model
        self.ids += ids
        id_1N = torch.tensor([self.ids], device=device_of(model))
        state = _prepared(model, id_1N) if self.state is None else self.state
        inputs = model.prepare_inputs_for_generation(
            id_1N,
            next_sequence_length=None if first else len(ids),
            is_first_iteration=first,
            **state,
        )
        outputs = model(**inputs, return_dict=True)
        self.state = model._update_model_kwargs_for_generation(
            outputs, state, is_encoder_decoder=False, num_new_tokens=1
        )
        return outputs.logits[0, -1].float()


def _prepared(model: Any, id_1N: Tensor) -> dict[str, Any]:
    """The keyword arguments of the first pass, as `generate` prepares them: it makes the cache."""
    from transformers import GenerationConfig, logging

    found: dict[str, Any] = {}

    def instead_of_decoding(_: Any, input_ids: Tensor, **given: Any) -> Tensor:
        found.update(given)
        return input_ids

    verbosity = logging.get_verbosity()
    # It would remark on the settings that the checkpoint brings for sampling.
    logging.set_verbosity_error()
    try:
        model.generate(
            id_1N,
            attention_mask=torch.ones_like(id_1N),
            generation_config=GenerationConfig(max_new_tokens=1, do_sample=False, use_cache=True),
            custom_generate=instead_of_decoding,
        )
    finally:
        logging.set_verbosity(verbosity)
    for other in ("logits_processor", "stopping_criteria", "generation_config"):
        found.pop(other)
    return found


def _remembers(model: Any) -> bool:
    """Whether what is remembered of an answer lies in the model itself, as an attribute of its
    modules (RecurrentGemma), so that two answers would write over one another."""
    return any(
        name.endswith(("_state", "_states")) and not name.startswith("_")
        for module in model.modules()
        for name in vars(module)
    )


class Alone:
    """Rows that don't share passes: any model that `generate` can run, at the speed of one row.

    With `splits`, a prompt's last token has a pass of its own, which a watcher sees; else a prompt
    is read in one pass, as `generate` does.
    """

    def __init__(self, model: nn.Module, splits: bool):
        self.model, self.splits = base_model(model), splits
        self.token_bytes = cache_bytes_per_token(model)
        self.one_at_a_time = _remembers(self.model)
        self.row_by_slot: dict[int, _LoneRow] = {}
        self.unread: list[tuple[int, Sequence[int]]] = []
        self.capacity = self.portion = 0

    def positions(self, length: int) -> int:
        """The positions that a pass over so many prompt tokens writes."""
        return length

    def fresh(self, rows: int, capacity: int) -> None:
        """Hold nothing."""
        self.row_by_slot.clear()
        self.capacity = capacity

    def grow(self, capacity: int) -> None:
        """Count on `capacity` positions per row; a row takes what it needs."""
        self.capacity = capacity

    def widen(self, rows: int) -> None:
        """Go on with more rows."""

    def shrink(self, rows: int) -> None:
        """Go on with the first `rows` rows: the others hold nothing."""

    def move(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """What the rows `source` hold now is in the rows `target`."""
        for old, new in zip(source, target, strict=True):
            self.row_by_slot[new] = self.row_by_slot.pop(old)

    def free(self, slot: int) -> None:
        """The row's request is gone, and its memory."""
        self.row_by_slot.pop(slot, None)

    def back(self, slot: int, ids: Sequence[int]) -> None:
        """Go on after these tokens, the first of those that the row holds: they are read anew."""
        self.begin([(slot, ids)])
        self.read_on()

    def clear(self, slot: int) -> None:
        """Forget what the row holds."""
        self.free(slot)

    def begin(self, prompts: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Take tokens to read into rows (slot, tokens) that hold nothing yet."""
        self.unread += prompts

    def read_on(self, tokens: int = 0) -> list[int]:
        """Read all that has been begun, whatever `tokens` says; the rows of it."""
        whole = []
        for slot, ids in self.unread:
            self.row_by_slot[slot] = row = _LoneRow(self.model, ids)
            if self.splits and ids:
                row.feed([])
            whole.append(slot)
        self.unread.clear()
        return whole

    def logits(self, token_B: Tensor, length_B: np.ndarray) -> Tensor:
        """Run the model over each row's newest token; the float32 logits (B, V) of the next, 0 for
        a row not in use."""
        found = {b: row.feed([int(token_B[b])]) for b, row in self.row_by_slot.items()}
        logits_BV = next(iter(found.values())).new_zeros(len(token_B), len(found[min(found)]))
        for b, logits_V in found.items():
            logits_BV[b] = logits_V
        return logits_BV
