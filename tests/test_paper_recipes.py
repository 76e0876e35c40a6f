"""The recipes of the NEX paper, on stand-ins: the real configs and shapes, no bytes of weights.

A stand-in is a directory with the model's config and one safetensors file that is all header and
hole. A recipe finds it where it looks for a hub id, as a directory of that name.
"""

# Shapes: L layers, F units per layer.

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tokenizer
from test_tasks import ROWS, written
from test_transplant import write_weights

from surgeon import evaluate, lineage, rank, recipes
from surgeon.checkpoint import Checkpoint
from surgeon.families import Family
from surgeon.merge import sweep
from surgeon.merge.relation import Relation
from surgeon.recipes import RecipeStep
from surgeon.settings import bind
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.settings.rank import RankSettings
from surgeon.settings.transplant import TransplantSettings
from surgeon.tasks import tasks
from surgeon.transplant.plan import decide, prepare

ROOT = Path(__file__).parents[1]
QWEN3_4B: dict[str, Any] = dict(
    head_dim=128, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, vocab_size=151936, tie_word_embeddings=True,
    max_position_embeddings=262144, rope_theta=5000000, eos_token_id=151645, bos_token_id=151643,
)  # fmt: skip
QWEN3_VL_8B: dict[str, Any] = dict(
    text_config=dict(
        head_dim=128, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=151936,
        max_position_embeddings=262144, rope_parameters=dict(
            rope_type="default", rope_theta=5000000, mrope_interleaved=True,
            mrope_section=[24, 20, 20],
        ),
    ),
    vision_config=dict(
        depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096,
        deepstack_visual_indexes=[8, 16, 24], num_position_embeddings=2304,
    ),
    tie_word_embeddings=False,
)  # fmt: skip


def write_hollow(path: Path, model_type: str, config: dict[str, Any]) -> Checkpoint:
    """A checkpoint of these shapes in bfloat16 whose weights are a hole in the file."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    settings = AutoConfig.for_model(model_type, dtype="bfloat16", **config)
    auto: Any = AutoModelForCausalLM if model_type == "qwen3" else AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(settings)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = dict(dtype="BF16", shape=list(tensor.shape), data_offsets=[start, end])
    path.mkdir(parents=True)
    settings.architectures = [type(model).__name__]
    settings.save_pretrained(path)
    write_tokenizer(path)
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return Checkpoint.open(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[RecipeStep]]:
    """`place(recipe)`: its steps, in a directory that has what they read; no hole is read."""
    digest = lineage.file_digest

    def quick(path: str | Path) -> str:
        large = Path(path).stat().st_size > 1 << 20
        return lineage.digest_of(str(Path(path).resolve())) if large else digest(path)

    def parallel(family: Family) -> Family:
        keys = family.endpoints[0].tensors
        return replace(family, cosines=dict.fromkeys(keys, 1.0))

    def related(first: Checkpoint, second: Checkpoint) -> Relation:
        return Relation(len(first.tensors), tuple(first.tensors), 1, 0, {"FFN": 1.0})

    monkeypatch.setattr(lineage, "file_digest", quick)
    monkeypatch.setattr("surgeon.families.cosines.with_cosines", parallel)
    monkeypatch.setattr("surgeon.merge.relation.relation", related)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merges").symlink_to(ROOT / "merges")
    rows = [{"id": str(n), "prompt": f"w{n} w1"} for n in range(100)]
    written(tmp_path / "mini.jsonl", rows)

    def steps(name: str) -> list[RecipeStep]:
        return recipes.load(ROOT / "recipes" / f"{name}.yaml")

    return steps


def prepared_tasks(steps: list[RecipeStep]) -> None:
    """Run the steps of `tasks` on small copies of the benchmarks."""
    for step in steps:
        if step.verb == "tasks":
            file = written(Path("rows.jsonl"), ROWS[step.parameters["benchmark"]])
            tasks(**step.parameters, source=file)


def of(steps: list[RecipeStep], verb: str) -> list[dict[str, Any]]:
    return [step.parameters for step in steps if step.verb == verb]


def forecast(given: dict[str, Any]) -> Any:
    """What a step of `rank` would take, with the prompts that are here."""
    here = {"mini_set": "mini.jsonl", "columns": None, "dry_run": True}
    return rank.forecast(bind(RankSettings, {**given, **here}))


def test_qwen3_4b_fits_the_real_shapes_and_takes_what_it_says(place, tmp_path):
    steps = place("qwen3-4b")
    (merge,), (first, last), (truth,) = (of(steps, v) for v in ("merge-sweep", "rank", "evaluate"))
    for spec in (merge["a"], merge["b"]):
        model = write_hollow(tmp_path / spec, "qwen3", QWEN3_4B)
    assert model.n_layers * model.d_ff == 350_208  # NEX A.3: of which 2,000 are kept
    prepared_tasks(steps)
    sweep(**merge)
    assert len(Family.open(merge["out"]).candidates) == 19
    found = forecast(first)
    total = found.total()
    assert len(found.costs) == 19 and total.answers == 19 * 100 * 3
    assert total.tokens.high == 19 * 100 * 3 * 32768
    assert found.costs[0].disk.high < 1e9
    assert last == {**first, **{k: last[k] for k in ("truth", "curve", "draws", "sensitivity")}}
    measured = evaluate.forecast(bind(EvaluateSettings, {**truth, "dry_run": True}))
    assert measured.total().answers == 19 * sum(len(ROWS[name]) for name in truth["tasks"])


def test_the_transplant_of_qwen3_vl_8b_fits_the_real_shapes(place, tmp_path):
    steps = place("qwen3-vl-8b-transplant")
    (ranked,), moves, (truth,) = (of(steps, v) for v in ("rank", "transplant", "evaluate"))
    donor = write_hollow(tmp_path / ranked["checkpoints"], "qwen3_vl", QWEN3_VL_8B)
    write_hollow(tmp_path / moves[0]["recipient"], "qwen3_vl", QWEN3_VL_8B)
    prepared_tasks(steps)
    assert forecast(ranked).total().answers == 300
    name = donor.path.name
    write_weights(Path(ranked["out"]) / "candidates" / name / "weights.safetensors", donor)
    # This is the dry run without the comparison of both models' weights.
    sizes = {}
    for move in moves:
        plan = decide(prepare(bind(TransplantSettings, {**move, "dry_run": True})))
        sizes[move["out"]] = int(plan.chosen_LF.sum())
    effective = sizes["runs/qwen3-vl-8b/effective"]
    assert all(n == effective for out, n in sizes.items() if "random" in out)
    assert 0 < sizes["runs/qwen3-vl-8b/mass-matched-0"] < effective < donor.n_layers * donor.d_ff
    names = [Path(spec).name for spec in truth["checkpoints"]]
    assert truth["baseline"] == names[0] and set(names[2:]) == {Path(out).name for out in sizes}
    endpoints = {**truth, "checkpoints": truth["checkpoints"][:2], "groups": None, "dry_run": True}
    found = evaluate.forecast(bind(EvaluateSettings, endpoints))
    assert found.total().answers == 2 * sum(len(ROWS[name]) for name in truth["tasks"])
