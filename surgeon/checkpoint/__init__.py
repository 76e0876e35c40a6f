"""The checkpoint: a Hugging Face model directory, read lazily and never edited in place.

Opening one reads `config.json` and the safetensors headers only, and refuses what could not be
loaded or should not be: truncated shards, an index that points outside the directory, pickled
weights, models that need code from their repository.
"""

from surgeon.checkpoint.adapters import (
    Adapter,
    adapter_alone,
    adapter_digest,
    is_adapter,
    open_adapter,
)
from surgeon.checkpoint.card import card, fenced, markdown_table
from surgeon.checkpoint.checkpoint_name import CheckpointName
from surgeon.checkpoint.config import (
    Config,
    config_differences,
    context_of,
    d_ff_of,
    passed_units_of,
)
from surgeon.checkpoint.devices import is_spread, placement
from surgeon.checkpoint.directory import (
    INDEX,
    SINGLE,
    TOKENIZER_FILES,
    Checkpoint,
    use_templates,
)
from surgeon.checkpoint.dtypes import (
    DTYPES,
    FLOAT_NAMES,
    FLOATS,
    cast_weights,
    disk_name,
    torch_dtype,
)
from surgeon.checkpoint.loading import label_dtype, model_class, stored_dtype
from surgeon.checkpoint.resolving import merge_adapter, resolve
from surgeon.checkpoint.rewriting import link_directory, link_or_copy, rewrite
from surgeon.checkpoint.specs import hub_id, split_member
from surgeon.checkpoint.templates import TEMPLATE_FILES, read_templates, write_templates
from surgeon.checkpoint.tensors import TensorInfo, map_tensor, read_header, read_json

__all__ = [
    "DTYPES",
    "FLOATS",
    "FLOAT_NAMES",
    "INDEX",
    "SINGLE",
    "TEMPLATE_FILES",
    "TOKENIZER_FILES",
    "Adapter",
    "Checkpoint",
    "CheckpointName",
    "Config",
    "TensorInfo",
    "adapter_alone",
    "adapter_digest",
    "card",
    "cast_weights",
    "config_differences",
    "context_of",
    "d_ff_of",
    "disk_name",
    "fenced",
    "hub_id",
    "is_adapter",
    "is_spread",
    "label_dtype",
    "link_directory",
    "link_or_copy",
    "map_tensor",
    "markdown_table",
    "merge_adapter",
    "model_class",
    "open_adapter",
    "passed_units_of",
    "placement",
    "read_header",
    "read_json",
    "read_templates",
    "resolve",
    "rewrite",
    "split_member",
    "stored_dtype",
    "torch_dtype",
    "use_templates",
    "write_templates",
]
