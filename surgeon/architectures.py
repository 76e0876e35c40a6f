"""What surgeon can do with which architecture: `python -m surgeon.architectures [NAME ...]`.

Without names, every model type that transformers has for writing text; else model types or
checkpoints. The answers are those that every verb asks before it starts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.live.support import Support, support

USES = ("decode", "record", "distill", "triggers")
"""Columns, fields of `Support`. A transplant exchanges the units that can be recorded."""


def registry() -> list[str]:
    """The model types that transformers offers for writing text, also after images."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def config_of(name: str) -> Any:
    """The config of a checkpoint, or a model type's default one."""
    from transformers import CONFIG_MAPPING

    if name in CONFIG_MAPPING and not Path(name).exists():
        return CONFIG_MAPPING[name]()
    return Checkpoint.open(name).full_config


def row(name: str, found: Support) -> list[str]:
    """The cells of one architecture: yes or no, and the first reason."""
    reasons = [getattr(found, use) for use in USES]
    cells = ["no" if reason else "yes" for reason in reasons]
    if found.slow is not None and cells[0] == "yes":
        cells[0] = "slow"
    transplant = cells[1]
    first = next((reason for reason in reasons if reason), found.slow) or ""
    return [name, cells[0], cells[1], transplant, *cells[2:], first]


def main(names: Sequence[str]) -> int:
    """Print the table; returns the exit status."""
    import logging

    logging.disable(logging.WARNING)
    print(line("architecture", "decode", "record", "transplant", "distill", "triggers", "why"))
    for name in names or registry():
        try:
            print(line(*row(name, support(config_of(name)))), flush=True)
        except BadInput as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
        except (AttributeError, ImportError, KeyError, RuntimeError, TypeError) as error:
            # Of the registry: its default config makes no model, or needs another package.
            reason = " ".join(str(error).split())[:100]
            print(line(name, *["?"] * 5, reason), flush=True)
    return 0


def line(name: str, *cells: str) -> str:
    """One line of the table; the reason comes last."""
    return f"{name:28} " + " ".join(f"{cell:10}" for cell in cells).rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
