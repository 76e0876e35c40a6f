"""Labels for the tests of `surgeon trigger`: of the built-in task, and of random text."""

import json
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.family import writer
from surgeon import jsonl
from surgeon.builtin import task
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.neureasoner.steps import Span
from surgeon.traces import Trace, append, encode, read_prompts
from surgeon.trigger.label import label

MODEL = "builtin:thinking"
PROMPTS = 16
FAULTY = writer.Policy(leap=0.15, check=0.6, recheck=0.3, restart=0.7, mistake=0.06, slip=0.4)
"""A writer who fails at every level."""


TRIGGERS = ["<INTRA>", "<INTER>"]


def write_traces(path: Path, n: int = PROMPTS) -> str:
    """A file of traces of the first `n` test problems, written by that writer."""
    tokenizer: Any = resolve(MODEL).tokenizer()
    for prompt in read_prompts("builtin:test")[:n]:
        problem = task.Problem.parse(prompt.messages[0]["content"])
        text = writer.write(problem, FAULTY, Random(prompt.id)).text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        asked = encode(tokenizer, prompt)
        append(path, Trace(prompt.id, 0, asked, [*ids, tokenizer.eos_token_id], text, "stop"))
    return str(path)


def make_labels(root: Path) -> Path:
    """The directory of labels of those traces, counterparts by the model."""
    out = root / "labels"
    traces = write_traces(root / "written.jsonl")
    label(
        MODEL, prompts="builtin:test", limit=PROMPTS, traces=traces, out=out, pairs=1, resample=2,
        inter_steps=1,
    )  # fmt: skip
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def random_labels(root: Path, checkpoint: Path, n: int = 8, steps: int = 5) -> Path:
    """Labels of random text for a pico checkpoint: every second step fails, now and then again."""
    tokenizer: Any = Checkpoint.open(checkpoint).tokenizer()
    separator = tokenizer.convert_tokens_to_ids("\n\n")
    root.mkdir(parents=True, exist_ok=True)
    spans: list[Span] = []
    for i in range(n):
        rng = Random(i)
        row = {"id": f"q{i}", "prompt": f"w{i} + w{i + 1} = ?"}
        with open(root / "prompts.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        ids = []
        for _ in range(steps):
            ids += [rng.randrange(7, 90) for _ in range(rng.randint(4, 9))] + [separator]
        ids.append(tokenizer.eos_token_id)
        (prompt,) = read_prompts(str(root / "prompts.jsonl"))[i:]
        asked = encode(tokenizer, prompt)
        text = str(tokenizer.decode(ids[:-1]))
        append(root / "traces.jsonl", Trace(f"q{i}", 0, asked, ids, text, "stop"))
        for step in range(steps):
            for level in ("intra", "inter"):
                failing = step % 2 == (level == "inter")
                spans.append(Span(f"q{i}", 0, level, step, step, failing))
        spans.append(Span(f"q{i}", 0, "instance", 0, 3, i % 2 == 0))
    jsonl.write(root / "spans.jsonl", (span._asdict() for span in spans))
    return root


def write_examples(path: Path, n: int = 12) -> Path:
    """Examples in the words of a pico tokenizer."""
    for i in range(n):
        parts = [
            ("prefix", f"w{i} + w{i + 1} "), ("wrong", f"= w{i} "), ("trigger", TRIGGERS[i % 2]),
            ("diagnose", f" w{i + 2} ? "), ("continuation", f"w{i + 3} = w{i + 4} . . w{i} w{i}"),
        ]  # fmt: skip
        row = {
            "id": f"e{i}", "messages": [{"role": "user", "content": f"w{i} w{i} = ?"}],
            "segments": [{"kind": k, "text": t, "learned": k != "trigger"} for k, t in parts],
        }  # fmt: skip
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    return path
