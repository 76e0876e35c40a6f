"""Checkpoints and adapters by hub id, from a stand-in of the hub."""

from pathlib import Path

import pytest
import torch
from hub import hub
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput


def test_base_and_adapter_by_hub_id(make_checkpoint, tmp_path: Path, monkeypatch):
    repositories = tmp_path / "them"
    make_checkpoint(repositories / "base", dtype="float32")
    model = Checkpoint.open(repositories / "base").model()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)  # pyright: ignore
    tuned.save_pretrained(str(repositories / "lora"))
    with hub(tmp_path) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        url = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        merged = resolve("them/base@main+them/lora", tmp_path / "work")
        assert resolve("them/base").path.is_relative_to(tmp_path / "cache")
        for spec, words in (
            ("them/base+them/none", r"them/none is no local directory .*404"),
            ("them/lora", r"them/lora is a PEFT adapter\. Name its base too"),
        ):
            with pytest.raises(BadInput, match=words) as error:
                resolve(spec)
            assert "\n" not in str(error.value)
    expected = tuned.merge_and_unload().state_dict()  # pyright: ignore
    base = Checkpoint.open(repositories / "base")
    assert {*merged.tensors} == {*base.tensors}
    for name in merged.tensors:
        assert torch.equal(merged.tensor(name), expected[name]), name
    name = next(name for name in merged.tensors if "q_proj" in name)
    assert not torch.equal(merged.tensor(name), base.tensor(name))
