"""A checkpoint whose tensors are made as they are read: respelled, or with other vocabulary rows.

Such an endpoint is checked and measured without a byte written. The family keeps it under its own
roof, where it is an ordinary checkpoint.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.checkpoint import (
    INDEX,
    TOKENIZER_FILES,
    Checkpoint,
    Config,
    TensorInfo,
    read_json,
    write_templates,
)
from surgeon.families.candidate_files import as_bytes, layout

if TYPE_CHECKING:
    from torch import Tensor

SINGLE = "model.safetensors"
ID_KEYS = ("_token_id", "_token_ids", "_token_index", "suppress_tokens")
"""How keys of configs end whose values are token ids."""


class Piece(NamedTuple):
    """One tensor that is made when it is read."""

    info: TensorInfo
    make: "Callable[[], Tensor]"


@dataclass(frozen=True, eq=False)
class Aligned(Checkpoint):
    """A checkpoint seen with other tensors, config or tokenizer; `path` is that of the original."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    """Every tensor, in the order of the shards."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What makes this view differ from the original: together with `of` its identity."""
    of: tuple[str, ...] = ()
    """Digests of the checkpoints that it is made of."""
    text_changes: dict[str, Any] = field(default_factory=dict)
    """Keys of the language model's config, with their new values."""
    tokenizer_from: Path | None = None
    """A directory with another tokenizer; None for the original's."""
    new_id: dict[int, int | None] = field(default_factory=dict)
    """Token id of the original -> token id of the other tokenizer, where they differ."""

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """Shard file name -> the tensor names inside it."""
        shards: dict[str, list[str]] = {}
        for name, piece in self.pieces.items():
            shards.setdefault(piece.info.shard, []).append(name)
        return shards

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in the order of the shards."""
        return {name: piece.info for name, piece in self.pieces.items()}

    def tensor(self, name: str) -> "Tensor":
        """Make one tensor."""
        return self.pieces[name].make()

    def read_many(self, names: list[str]) -> "dict[str, Tensor]":
        """Make several tensors."""
        return {name: self.tensor(name) for name in names}

    @cached_property
    def config(self) -> Config:
        """The original's config with the changes."""
        config = dict(read_json(self.path / "config.json"))
        part = dict(config["text_config"]) if "text_config" in config else config
        for key, value in self.text_changes.items():
            part[key] = value
            if key in config:
                config[key] = value
        if part is not config:
            config["text_config"] = part
        return renumbered(config, self.new_id)

    @cached_property
    def generation_config(self) -> Config:
        """The original's generation config, token ids as the tokenizer has them."""
        return renumbered(read_json(self.path / "generation_config.json"), self.new_id)

    @cached_property
    def digest(self) -> str:
        """What identifies this view: the originals' digests and the changes."""
        return lineage.digest_of({"of": list(self.of), "changes": self.changes})

    def write(self, out: Path) -> None:
        """Write it as an ordinary checkpoint into the existing directory `out`, tensor by tensor.

        Its record carries the view's digest.
        """
        for shard, names in self.shards.items():
            plan = layout(self, shard, None)
            with open(out / shard, "wb") as file:
                file.write(plan.header)
                for name in names:
                    file.seek(plan.offset[name])
                    file.write(as_bytes(self.tensor(name).reshape(-1)))
        if len(self.shards) > 1 or SINGLE not in self.shards:
            where = {name: piece.info.shard for name, piece in self.pieces.items()}
            index = {"metadata": {"total_size": self.size}, "weight_map": where}
            lineage.write_json(out / INDEX, index)
        self.copy_side_files(out, TOKENIZER_FILES if self.tokenizer_from else ())
        lineage.write_json(out / "config.json", self.config)
        if self.generation_config:
            lineage.write_json(out / "generation_config.json", self.generation_config)
        if self.tokenizer_from is not None:
            for file in self.tokenizer_from.iterdir():
                if file.is_file():
                    shutil.copyfile(file, out / file.name)
            write_templates(out, self.chat_templates)
        record = {"candidate_digest": self.digest, "of": list(self.of), "changes": self.changes}
        lineage.write_json(out / lineage.FILE, record)


def renumbered(config: Config, new_id: Mapping[int, int | None]) -> Config:
    """A config whose token ids (`eos_token_id` and its like) are those of another tokenizer.

    An id whose token that tokenizer lacks (None) is left out.
    """

    def of(value: Any) -> object:
        if isinstance(value, list):
            return [new for inner in value if (new := of(inner)) is not None]
        return new_id.get(value, value) if type(value) is int else value

    made = {}
    for key, value in config.items():
        if key == "text_config" and isinstance(value, dict):
            made[key] = renumbered(value, new_id)
        elif not key.endswith(ID_KEYS) or value is None:
            made[key] = value
        elif (new := of(value)) is not None and new != []:
            made[key] = new
    return made
