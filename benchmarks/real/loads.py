"""What `make real` made, loaded without surgeon: python -m benchmarks.real.loads [--vllm]

Checkpoints are loaded by transformers, adapters by PEFT, from their directories alone, and each
answers greedily in float32. The tokens are held against those of the decoder here. With `--vllm`,
in an environment that has it, vLLM answers in their place. The status is 1 where an answer parts at
a place that rounding doesn't explain.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.in_vllm import CLOSE, compare, parting
from benchmarks.real.base import DIRECTORY
from benchmarks.real.ship import SHIPPED, STYLES
from surgeon.families import subjects
from surgeon.live.families import live
from surgeon.settings.sampling import Sampling
from surgeon.traces import Prompt, Trace, read_prompts, sample

RUNS = DIRECTORY.parent
RESULTS = ("ranking/best", "effective", "distilled")
"""Checkpoints among the results; those that aren't there are passed over."""
PROMPTS, TOKENS = 8, 96


class Loaded(NamedTuple):
    """Greedy answers of another library and of the decoder here."""

    name: str
    library: str
    answers: int
    equal: int
    tokens: int
    apart: int
    """Answers that part where the two most likely tokens aren't nearly equal."""


def without_surgeon(path: Path, adapter: bool) -> tuple[Any, Any]:
    """Model and tokenizer of a directory, by PEFT for an adapter, else by transformers."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model = auto.from_pretrained(str(path), dtype=torch.float32).eval()
    if adapter:  # BASE+ADAPTER is kept in the base's dtype, so that is what is held against it
        model = model.merge_and_unload()
        for weight in model.parameters():
            weight.data = weight.data.to(torch.bfloat16).to(torch.float32)
    return model, AutoTokenizer.from_pretrained(str(DIRECTORY if adapter else path))


@torch.no_grad()
def generated(model: Any, tokenizer: Any, traces: Sequence[Trace], tokens: int) -> Iterator[Trace]:
    """The same prompts answered by the library's own `generate`."""
    for trace in traces:
        ids = torch.tensor([trace.prompt_token_ids])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=tokens,
        )  # fmt: skip
        made = out[0, ids.shape[1] :].tolist()
        yield replace(trace, token_ids=made)


def held(spec: str, path: Path, adapter: bool, prompts: Sequence[Prompt]) -> Loaded:
    """One result in transformers or PEFT, against the decoder here."""
    sampling = Sampling(samples=1, temperature=0.0, max_tokens=TOKENS)
    (subject,) = subjects([spec])
    mine, theirs, gaps = [], [], []
    for _, here, tokenizer in live([subject], "cpu", torch.float32):
        mine = list(sample(here, tokenizer, prompts, sampling))
        theirs = list(generated(*without_surgeon(path, adapter), mine, TOKENS))
        gaps = [parting(here, a, b) for a, b in zip(mine, theirs, strict=True)]
    parted = [gap for gap in gaps if gap is not None]
    return Loaded(
        subject.name, "PEFT" if adapter else "transformers", len(mine), len(mine) - len(parted),
        sum(len(trace.token_ids) for trace in theirs), sum(gap >= CLOSE for gap in parted),
    )  # fmt: skip


def results(runs: Path) -> list[tuple[str, Path, bool]]:
    """(spec, directory, whether it is an adapter) of everything there is to load."""
    adapters = [(f"{DIRECTORY}+{SHIPPED / style}", SHIPPED / style, True) for style in STYLES]
    made = [(runs / name, runs / name) for name in RESULTS if (runs / name).exists()]
    return [(str(DIRECTORY), DIRECTORY, False), *adapters, *((str(s), p, False) for s, p in made)]


def in_vllm(specs: Sequence[str], share: float, prompts: Sequence[Prompt]) -> Iterator[Loaded]:
    """The same by vLLM, all in one engine."""
    for row in compare(specs, torch.float32, share, prompts, TOKENS):
        yield Loaded(row.name, "vLLM", row.answers, row.equal, row.tokens, row.apart)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Results of make real, loaded without surgeon.")
    parser.add_argument("--vllm", action="store_true", help="in vLLM")
    parser.add_argument("--memory-share", type=float, default=0.1, help="vLLM's, of the machine")
    parser.add_argument("--runs", type=Path, default=RUNS)
    given = parser.parse_args(arguments)
    prompts = read_prompts(f"{given.runs}/data/test.jsonl[300:{300 + PROMPTS}]")
    found = results(given.runs)
    rows: list[Loaded] = []
    if given.vllm:
        made = in_vllm([spec for spec, _, _ in found], given.memory_share, prompts)
    else:
        made = (held(spec, path, adapter, prompts) for spec, path, adapter in found)
    for row in made:
        print(json.dumps(row._asdict()), flush=True)
        rows.append(row)
    name = "vllm" if given.vllm else "transformers"
    text = json.dumps([row._asdict() for row in rows], indent=1)
    (given.runs / f"loads-{name}.json").write_text(text)
    return int(any(row.apart for row in rows))


if __name__ == "__main__":
    sys.exit(main())
