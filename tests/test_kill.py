"""kill -9 in the middle of the main job, then the same command again: the same ranking."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
- merge-sweep: {{a: {a}, b: {b}, out: {out}/family, ratios: "0.5", virtual: true}}
- rank:
    checkpoints: {out}/family
    mini_set: {prompts}
    out: {out}/ranking
    samples: 2
    max_tokens: 24
    row_tokens: 2
    top_k: 6
    batch: 2
"""


def start(recipe: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "surgeon", "run", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(process: subprocess.Popen, seen) -> None:
    """Poll until `seen()` holds while the process runs."""
    deadline = time.monotonic() + 240
    while not seen():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_twice_and_run_again_ends_in_the_same_ranking(pico_source, tmp_path: Path):
    prompts = tmp_path / "mini.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"w{n} + 3"}) + "\n" for n in range(6)))
    results = []
    for name in ("whole", "killed"):
        out = tmp_path / name
        recipe = tmp_path / f"{name}.yaml"
        a, b = pico_source
        recipe.write_text(RECIPE.format(a=a, b=b, out=out, prompts=prompts))
        partial = out / "ranking.partial" / "candidates"
        if name == "killed":
            # In the first candidate's responses; then with one candidate done, the next begun.
            for pattern in ("*/traces.jsonl", "*/scores.json"):
                process = start(recipe)
                wait_until(process, lambda p=pattern, d=partial: any(d.glob(p)))
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                assert not (out / "ranking").exists()
        process = start(recipe)
        printed = process.communicate()[0]
        assert process.returncode == 0, printed
        results.append(json.loads((out / "ranking" / "ranking.json").read_text()))
        assert not list(out.rglob("*.partial")) and not list(out.rglob("*.tmp"))
    whole, killed = results
    assert [c["name"] for c in whole["candidates"]] == [c["name"] for c in killed["candidates"]]
    for mine, theirs in zip(killed["candidates"], whole["candidates"], strict=True):
        assert mine["scores"] == theirs["scores"] and mine["interval"] == theirs["interval"]
