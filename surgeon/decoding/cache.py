"""Keys and values of a batch whose rows are at different positions, and the memory they take."""

# Shape letters: H key/value heads, T tokens of a pass, D width of a head.

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.live.architecture import text_config


def cache_bytes_per_token(model: nn.Module) -> int:
    """Bytes of keys and values that one token takes over all layers."""
    numbers = 0
    for layer in text_config(model).per_layer_config:
        heads = getattr(layer, "num_attention_heads", None) or 1
        width = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        numbers += 2 * (getattr(layer, "num_key_value_heads", None) or heads) * width
    return numbers * next(model.parameters()).element_size()


def available_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes; for the CPU the host's, within its container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return free


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass
class SlotCache:
    """Keys and values of a batch of rows that are at different positions.

    It stands where the model expects its cache. A row begins at position 0 of its slot, whatever
    the slot held before, so there is no left padding and nothing is moved when a slot changes
    hands. What lies beyond a row's length is closed by the mask.
    """

    n_layers: int
    rows: int
    """Rows in use; the tensors may hold more until they grow."""
    capacity: int
    keys: list[Tensor | None] = field(default_factory=list)
    values: list[Tensor | None] = field(default_factory=list)
    """Per layer (rows, capacity, H, D), made when the layer first reports."""
    span: int = 0
    """Key positions that attention sees in this pass."""
    at_B: Tensor | None = None
    """Decoding: where each row's token goes, row * capacity + position."""
    position_B: Tensor | None = None
    """Decoding: the position of each row's token."""
    slots: Tensor | None = None
    """Prefill: the rows that the pass writes."""
    start: int = 0
    """Prefill: the first position of the chunk."""
    asked: bool = False
    """Whether the model took positions from here for a mask."""

    def __post_init__(self) -> None:
        self.keys, self.values = [None] * self.n_layers, [None] * self.n_layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values (rows, H, T, D); return those that attention may see."""
        return self._write(self.keys, key, layer_idx), self._write(self.values, value, layer_idx)

    def _write(self, stores: list[Tensor | None], new: Tensor, layer: int) -> Tensor:
        n, H, T, D = new.shape
        store = stores[layer]
        if store is None:
            # Zeros, not empty: a closed position still enters the sum as 0 * value.
            store = stores[layer] = new.new_zeros(self.rows, self.capacity, H, D)
        if self.slots is None:
            flat = store.view(-1, H * D)
            at_B = self.at_B.to(store.device)  # pyright: ignore[reportOptionalMemberAccess]
            flat.index_copy_(0, at_B, new.reshape(n, H * D))
            return store[:n, : self.span].transpose(1, 2)
        slots = self.slots.to(store.device)
        store[slots, self.start : self.start + T] = new.transpose(1, 2)
        if self.start == 0:
            return new
        return store[slots, : self.start + T].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before this pass, of the row that has come farthest."""
        return self.start

    def get_query_offset(self, layer_idx: int = 0) -> Tensor | int:
        """Positions before this pass: of each row while decoding, else the same for all."""
        self.asked = True
        if self.slots is not None or self.position_B is None:
            return self.start
        return self.position_B

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many key positions a mask covers, and the first of them."""
        return (self.span if self.slots is None else self.start + query_length), 0

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions per row."""
        for stores in (self.keys, self.values):
            for layer, old in enumerate(stores):
                if old is not None:
                    new = old.new_zeros(self.rows, capacity, *old.shape[2:])
                    new[:, : self.capacity] = old[: self.rows]
                    stores[layer] = new
        self.capacity = capacity

    def widen(self, rows: int) -> None:
        """Go on with `rows` rows, at least as many as before."""
        for stores in (self.keys, self.values):
            for layer, old in enumerate(stores):
                if old is not None and len(old) < rows:
                    new = old.new_zeros(rows, *old.shape[1:])
                    new[: self.rows] = old[: self.rows]
                    stores[layer] = new
        self.rows = rows

    def clear(self, row: int) -> None:
        """Forget what a row holds: a closed position counts 0 * value, which must be a number."""
        for store in (*self.keys, *self.values):
            if store is not None:
                store[row] = 0

    def move(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` positions of the rows `source` into the rows `target`."""
        for store in (*self.keys, *self.values):
            if store is not None:
                to, where = target.to(store.device), source.to(store.device)
                store[to, :length] = store[where, :length]
