"""Checkpoints and adapters by hub id, from a stand-in of the hub."""

from pathlib import Path

import pytest
import torch
from hub import hub
from huggingface_hub import constants, file_download
from peft import LoraConfig, get_peft_model

from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput


def use(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def test_base_and_adapter_by_hub_id(make_checkpoint, tmp_path: Path, monkeypatch):
    repositories = tmp_path / "them"
    make_checkpoint(repositories / "base", dtype="float32")
    model = Checkpoint.open(repositories / "base").model()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(model, config)  # pyright: ignore
    tuned.save_pretrained(str(repositories / "lora"))
    with hub(tmp_path) as address:
        use(address, tmp_path / "cache", monkeypatch)
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


def test_a_hub_that_goes_away_while_it_sends_is_one_line_and_the_next_try_goes_on(
    make_checkpoint, tmp_path: Path, monkeypatch
):
    source = make_checkpoint(tmp_path / "them" / "base")
    cache, waits = tmp_path / "cache", []
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", waits.append)
    get = file_download.http_get
    # Every try brings some bytes, and would be followed by others for ever.
    monkeypatch.setattr(
        file_download, "http_get", lambda *a, **k: get(*a, **{**k, "_nb_retries": 0})
    )
    with hub(tmp_path, cut="model.safetensors") as address:
        use(address, cache, monkeypatch)
        with pytest.raises(
            BadInput, match=r"them/base .*the hub went away .*fetches what"
        ) as error:
            resolve("them/base")
        assert "\n" not in str(error.value)
    monkeypatch.setattr(file_download, "http_get", get)
    with hub(tmp_path) as address:
        use(address, cache, monkeypatch)
        fetched = resolve("them/base")
    assert fetched.digest == Checkpoint.open(source).digest
