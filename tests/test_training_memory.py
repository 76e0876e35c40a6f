"""Tokens of a micro-batch: what a token keeps for the backward pass, and what is free."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from surgeon.checkpoint import Checkpoint
from surgeon.settings.training import Tuning
from surgeon.training import memory
from surgeon.training.memory import LEAST, MOST, activation_bytes, micro_tokens
from surgeon.training.student import Student
from surgeon.training.tuning import trainable, tune


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_checkpoint) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("memory") / "model")


def student_of(source: Path, tuning: Tuning) -> Student:
    model = Checkpoint.open(source).model(dtype=torch.float32)
    return Student(model, Accelerator(cpu=True), tune(model, tuning))


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_what_a_token_keeps_tells_what_a_long_text_keeps(source: Path, weights: Any):
    student = student_of(source, Tuning(weights=weights, rank=4))
    each, once = activation_bytes(student)
    kept = memory._kept_bytes(student, 512)
    assert once + 512 * each == pytest.approx(kept, rel=0.1)
    # By hand, of a layer: what enters its products, and what its gate multiplies.
    config: Any = student.model.config
    width, inner = config.hidden_size, config.intermediate_size
    assert each > config.num_hidden_layers * 4 * (2 * width + 3 * inner)


def test_checkpointing_keeps_less_and_stays_on(source: Path):
    plain = activation_bytes(student_of(source, Tuning()))[0]
    student = student_of(source, Tuning(gradient_checkpointing=True))
    each = activation_bytes(student)[0]
    config: Any = student.model.config
    inputs = 4 * config.num_hidden_layers * config.hidden_size
    assert inputs < each < plain
    assert memory._checkpointing(student.model)
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_a_pass_has_what_fits_and_a_run_keeps_what_it_began_with(
    source: Path, tmp_path: Path, monkeypatch, capsys
):
    student = student_of(source, Tuning())
    each, once = activation_bytes(student)
    held = sum(12 * p.numel() for p in trainable(student.model).values())

    def free(tokens: float) -> None:
        monkeypatch.setattr(
            memory, "available_bytes", lambda _: int(2 * each * tokens) + held + once
        )

    free(1000)
    assert micro_tokens(student, 48, tmp_path) == 48 and not list(tmp_path.iterdir())
    found = micro_tokens(student, "auto", tmp_path)
    assert found == pytest.approx(1000, abs=2)
    assert f"at most {found:,} tokens" in capsys.readouterr().err
    free(5000)
    assert micro_tokens(student, "auto", tmp_path) == found
    assert micro_tokens(student, "auto", tmp_path / "other") == pytest.approx(5000, abs=2)
    free(10 * MOST)
    assert micro_tokens(student, "auto", tmp_path / "large") == MOST
    free(1)
    assert micro_tokens(student, "auto", tmp_path / "small") == LEAST
