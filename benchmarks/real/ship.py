"""The trained adapters in bfloat16, as they are committed: python -m benchmarks.real.ship

Everything of `make real` is measured with the adapters that are shipped, not with those in float32
that they were made from.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from benchmarks.real.base import DIRECTORY

TRAINED = Path("runs/real/trained")
SHIPPED = Path(__file__).parent / "adapters"
STYLES = ("terse", "long")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def ship(trained: Path, out: Path) -> int:
    """Write an adapter in bfloat16, without what a training leaves beside it; returns its bytes."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to(torch.bfloat16) for name, tensor in load_file(trained / WEIGHTS).items()
    }
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((trained / CONFIG).read_text())
    config["base_model_name_or_path"] = str(DIRECTORY)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return (out / WEIGHTS).stat().st_size


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Trained adapters in bfloat16.")
    parser.add_argument("--trained", type=Path, default=TRAINED)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args(arguments)
    for style in STYLES:
        print(f"{given.out / style}: {ship(given.trained / style, given.out / style):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
