"""Everything that surgeon writes, loaded and asked in vLLM: python -m benchmarks.in_vllm

Makes a result of every kind from the built-in family (merge, virtual merge, transplant, distilled
adapter, merged LoRA, trigger checkpoint), and holds vLLM's greedy tokens in float32 against those
of the decoder here; then ranks, evaluates, distils, labels and monitors with
`--engine vllm`. With `--checkpoint DIR` that checkpoint too, in its own dtype and in float32. With
`--shipped` only the built-in family's checkpoints are loaded and asked, as they are shipped. Run by
`make test-vllm` in an environment of its own; the status is 1 where something differs that
shouldn't.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from surgeon import builtin, engines
from surgeon.checkpoint import resolve
from surgeon.decoding import prompt_likelihoods
from surgeon.distill import distill
from surgeon.evaluate import evaluate
from surgeon.extract_lora import extract_lora
from surgeon.families import subjects
from surgeon.live.families import live, tokenizer_of
from surgeon.merge import sweep
from surgeon.monitor import monitor
from surgeon.rank import rank
from surgeon.settings.engine import EngineSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import Prompt, Trace, read_prompts, read_traces, sample
from surgeon.transplant import transplant
from surgeon.trigger.detectors import detectors
from surgeon.trigger.identify import identify
from surgeon.trigger.label import label
from surgeon.trigger.reconstruct import reconstruct
from surgeon.trigger.sft import sft

CLOSE = 1e-3
"""A top-two gap in the logits below this may go either way: the engines add in another order."""
SIZE = {"samples": 2, "max_tokens": 96, "temperature": 0.7, "top_p": 0.9}


class Compared(NamedTuple):
    """Greedy answers of vLLM and of the decoder here."""

    name: str
    dtype: str
    answers: int
    equal: int
    tokens: int
    close: int
    """Answers that part at a top-two gap below `CLOSE`."""
    apart: int
    """Answers that part elsewhere: none should, in float32."""
    gap: float
    """The largest gap at which an answer parts."""
    swap_s: float
    """Seconds of the exchange of weights (of the start, for the first)."""


def compare(
    specs: Sequence[str], dtype: torch.dtype, share: float, prompts: Sequence[Prompt], most: int
) -> Iterator[Compared]:
    """vLLM's greedy answers against those here, candidate by candidate, in one engine."""
    sampling = Sampling(samples=1, temperature=0.0, max_tokens=most)
    settings = EngineSettings(name="vllm", memory_share=share)
    chosen = subjects(list(specs))
    with engines.opened(settings, dtype, 1024) as engine:
        for subject, model, tokenizer in live(chosen, "cpu", dtype):
            begun = time.monotonic()
            sampler = engine.seat(subject, tokenizer_of(subject))
            swap_s = time.monotonic() - begun
            theirs = {t.key: t for t in sample(sampler, tokenizer, prompts, sampling)}
            gaps = []
            for trace in sample(model, tokenizer, prompts, sampling):
                gap = parting(model, trace, theirs[trace.key])
                gaps += [] if gap is None else [gap]
            yield Compared(
                subject.name, str(dtype).removeprefix("torch."), len(theirs),
                len(theirs) - len(gaps), sum(len(t.token_ids) for t in theirs.values()),
                sum(gap < CLOSE for gap in gaps), sum(gap >= CLOSE for gap in gaps),
                max(gaps, default=0.0), swap_s,
            )  # fmt: skip


def parting(model: Any, here: Trace, there: Trace) -> float | None:
    """The gap between the two logits where two greedy answers part; None where they are equal."""
    if here.token_ids == there.token_ids:
        return None
    pairs = zip(here.token_ids, there.token_ids, strict=False)
    shortest = min(len(here.token_ids), len(there.token_ids))
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), shortest)
    if place == shortest:
        return float("inf")
    ids = [*here.prompt_token_ids, *here.token_ids[:place]]
    mine = prompt_likelihoods(model, [*ids, here.token_ids[place]], 1)[-1]
    theirs = prompt_likelihoods(model, [*ids, there.token_ids[place]], 1)[-1]
    return mine.logprob - theirs.logprob


def results(work: Path) -> list[str]:
    """A result of every kind, small; returns how each is named."""
    pair = ("builtin:instruct-ffn", "builtin:thinking-ffn")
    few = work / "few.jsonl"
    small: dict[str, Any] = dict(SIZE, row_tokens=1, top_k=9)
    sweep(*pair, out=work / "written", ratios="0.5")
    sweep(*pair, out=work / "virtual", ratios="0.3,0.7", virtual=True)
    rank(list(pair), mini_set=str(few), out=work / "ranking", **small)
    transplant(
        pair[0], pair[1], weights=f"{work}/ranking#thinking-ffn", out=work / "transplant"
    )  # fmt: skip
    distill(
        "builtin:instruct", str(few), out=work / "adapter", method="lmsi", steps=2, samples=2,
        max_tokens=96, batch_size=2,
    )  # fmt: skip
    extract_lora(str(work / "transplant"), pair[0], out=work / "lora", rank=32)
    label(
        "builtin:thinking", "builtin:mini-set", out=work / "labels", limit=12, samples=4,
        max_tokens=200, resample=1,
    )  # fmt: skip
    identify("builtin:thinking", labels=work / "labels", out=work / "channels")
    detectors(
        "builtin:thinking", labels=work / "labels", channels=work / "channels",
        out=work / "detectors", cooldown=1,
    )  # fmt: skip
    reconstruct("builtin:thinking", labels=work / "labels", out=work / "examples")
    sft(
        "builtin:thinking", examples=work / "examples", labels=work / "labels",
        monitor=work / "detectors", out=work / "trigger", epochs=1.0, batch_size=8,
    )  # fmt: skip
    return [
        *pair, f"{work}/written/family.json#slerp-0.5", f"{work}/virtual/family.json#slerp-0.3",
        f"{work}/virtual/family.json#slerp-0.7", str(work / "transplant"),
        f"{resolve(pair[0]).path}+{work / 'lora'}",
        f"{resolve('builtin:instruct').path}+{work / 'adapter'}",
        str(work / "trigger"),
    ]  # fmt: skip


def write_few(work: Path) -> None:
    """A mini-set, and a pool, of six questions."""
    rows = [{"id": p.id, "prompt": p.messages[0]["content"]} for p in questions(6)]
    (work / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(n: int) -> list[Prompt]:
    """The first questions of the built-in test set."""
    return read_prompts("builtin:test")[:n]


def verbs(work: Path, candidates: str, student: str, share: float, dtype: str) -> list[str]:
    """rank, evaluate and distill with `--engine vllm`; returns what isn't as it should be."""
    faults, few, place = [], str(work / "few.jsonl"), work / f"verbs-{Path(student).name}"
    place.mkdir(exist_ok=True)
    vllm: dict[str, Any] = dict(
        engine={"name": "vllm", "memory_share": share, "checked_prompts": 2}, dtype=dtype
    )
    ranking = rank(
        [candidates], mini_set=few, out=place / "ranking", row_tokens=1, top_k=9, **SIZE, **vllm
    )
    print(f"rank: {[c.name for c in ranking.candidates]}", flush=True)
    task: dict[str, Any] = dict(
        task="builtin:test", limit=24, samples=1, temperature=0.0, max_tokens=200
    )
    there = evaluate([candidates], out=place / "evaluation-vllm", **task, **vllm)
    here = evaluate([candidates], out=place / "evaluation-here", dtype=dtype, **task)
    pairs = list(zip(there.candidates, here.candidates, strict=True))
    told = ", ".join(f"{t.name} {t.avg:.3f} ({h.avg:.3f} here)" for t, h in pairs)
    print(f"evaluate: {told}", flush=True)
    if any(t.name != h.name or abs(t.avg - h.avg) > 1 / 24 for t, h in pairs):
        faults.append("greedy accuracies differ by more than one answer")
    distill(
        student, few, out=place / "distilled", steps=4, samples=2, shots=1, diagnose=2,
        batch_size=2, max_tokens=96, select="all", top_global=0.014, staleness=1, **vllm,
    )  # fmt: skip
    lines = (place / "distilled" / "training" / "metrics.jsonl").read_text().splitlines()
    lags = [json.loads(line)["staleness"] for line in lines]
    print(f"distill: staleness of the rollouts by step {lags}", flush=True)
    if lags != [0, 1, 0, 1]:
        faults.append(f"the staleness is {lags}, expected 0, 1, 0, 1")
    return faults


def watched(work: Path, share: float) -> list[str]:
    """`trigger label` and `monitor` with `--engine vllm`; returns what isn't as it should be."""
    faults, place = [], work / "watched"
    vllm: dict[str, Any] = dict(
        engine={"name": "vllm", "memory_share": share, "checked_prompts": 2}, dtype="float32"
    )
    labelled = label(
        "builtin:thinking", "builtin:mini-set", out=place / "labels", limit=4, samples=2,
        max_tokens=200, resample=1, **vllm,
    )  # fmt: skip
    spans = {level: counts.failing for level, counts in labelled.levels.items()}
    print(f"label: {labelled.traces} traces, failing spans {spans}", flush=True)
    asked: dict[str, Any] = dict(prompts="builtin:test", limit=12, max_tokens=200, temperature=0.0)
    runs = {
        "here": monitor(str(work / "trigger"), out=place / "here", dtype="float32", **asked),
        "vllm": monitor(str(work / "trigger"), out=place / "vllm", **asked, **vllm),
    }
    fired = {n: {k: v.firings for k, v in run.levels.items()} for n, run in runs.items()}
    print(f"monitor: firings {fired}", flush=True)
    here, there = (
        {t.key: t.token_ids for t in read_traces(place / name / "traces.jsonl")} for name in runs
    )
    equal = sum(here[key] == there[key] for key in here)
    print(f"monitor: {equal} of {len(here)} answers equal", flush=True)
    if here.keys() != there.keys() or equal < len(here):
        faults.append(f"{len(here) - equal} monitored answers of vLLM differ from those here")
    return faults


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--out", default="runs/vllm", help="directory of the results")
    parser.add_argument("--checkpoint", action="append", default=[], help="try this one too")
    parser.add_argument("--memory-share", type=float, default=0.1, help="of the machine")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--only", action="store_true", help="leave out the built-in family")
    parser.add_argument("--shipped", action="store_true", help="only the built-in checkpoints")
    given = parser.parse_args(arguments)
    work, share = Path(given.out), given.memory_share
    work.mkdir(parents=True, exist_ok=True)
    write_few(work)
    todo = [(spec, dtype) for spec in given.checkpoint for dtype in (torch.float32, torch.bfloat16)]
    groups = [([spec], dtype) for spec, dtype in todo]
    made = not (given.only or given.shipped)
    if given.shipped:
        shipped = [f"builtin:{name}" for name in (*builtin.CHECKPOINTS, *builtin.SECOND)]
        groups.insert(0, (shipped, torch.float32))
    if made:
        groups.insert(0, (results(work), torch.float32))
    faults, rows = [], []
    for specs, dtype in groups:
        for row in compare(specs, dtype, share, questions(given.prompts), given.tokens):
            print(json.dumps(row._asdict()), flush=True)
            rows.append(row)
            if row.apart and dtype == torch.float32:
                faults.append(f"{row.name}: {row.apart} answers part")
    (work / "compared.json").write_text(json.dumps([row._asdict() for row in rows], indent=1))
    if made:
        faults += verbs(work, str(work / "virtual"), "builtin:instruct", share, "float32")
        faults += watched(work, share)
    for spec in given.checkpoint:
        faults += verbs(work, spec, spec, share, "bfloat16")
    for fault in faults:
        print(f"FAULT: {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
