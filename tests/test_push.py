"""`surgeon push`: what goes to the hub, from a stand-in of it."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from uploads import Taken, taking

from surgeon import cli
from surgeon.errors import BadInput
from surgeon.push import push
from surgeon.push.lineage_card import without_paths


@pytest.fixture
def made(pico_pair, tmp_path: Path, monkeypatch) -> Path:
    """A family with one written merge; one endpoint was named by its whole path."""
    monkeypatch.chdir(tmp_path)
    cli.main(["merge-sweep", str(tmp_path / "a"), "b", "--ratios", "0.5", "--no-smoke", "--out",
              "family"])  # fmt: skip
    return tmp_path


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


def test_a_merge_goes_whole_private_with_card_and_lineage_and_no_path_of_this_machine(
    made: Path, monkeypatch, capsys
):
    taken = Taken()
    with taking(taken) as address:
        use(address, monkeypatch)
        cli.main(["push", "family/slerp-0.5", "me/merged"])
    (repository,) = taken.repositories.values()
    assert list(taken.repositories) == ["models/me/merged"] and repository["private"] is True
    sent = {name.removeprefix("me/merged/"): data for name, data in taken.files.items()}
    source = made / "family/slerp-0.5"
    for name, data in sent.items():
        if name not in ("README.md", "surgeon.json"):
            assert data == (source / name).read_bytes(), name
    assert {f.name for f in source.iterdir() if f.is_file()} == set(sent)
    card, record = sent["README.md"].decode(), json.loads(sent["surgeon.json"])
    assert card.startswith("---\nlibrary_name: transformers") and "- merge\n" in card
    assert "## Lineage" in card and "a: a (" in card and "b: b (" in card
    assert "$ surgeon merge-sweep a b --ratios 0.5" in card
    assert all(str(made) not in data.decode("utf-8", "ignore") for data in sent.values())
    assert record["inputs"] == json.loads((source / "surgeon.json").read_text())["inputs"]
    assert taken.messages == ["surgeon merge"]
    assert f"{address}/me/merged" in capsys.readouterr().out


def test_a_second_push_writes_to_the_same_repository(made: Path, monkeypatch):
    taken = Taken()
    with taking(taken) as address:
        use(address, monkeypatch)
        first = push(what="family/slerp-0.5", repository="me/merged", public=True)
        card = taken.files["me/merged/README.md"].decode()
        (made / "family/slerp-0.5/README.md").write_text(card)
        again = push(what="family/slerp-0.5", repository="me/merged", message="better")
    assert taken.repositories["models/me/merged"]["private"] is False
    assert first.private is False and again.private is None and taken.messages[-1] == "better"
    assert taken.files["me/merged/README.md"].decode().count("## Lineage") == 1


def test_a_dry_run_asks_nobody(made: Path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    cli.main(["push", "family", "me/family", "--dry-run"])
    out = capsys.readouterr().out
    assert "would go to the private dataset repository me/family" in out
    assert "slerp-0.5/config.json" in out and "Dry run: nothing was sent." in out
    found = push(what="family/family.json#slerp-0.5", repository="me/x", dry_run=True)
    assert found.kind == "model" and found.url is None
    assert str(made) not in found.card


def test_a_result_that_is_no_checkpoint_is_a_dataset(made: Path, monkeypatch):
    (made / "mini.jsonl").write_text('{"prompt": "w1"}\n')
    (made / "r").mkdir()
    (made / "r/traces.jsonl").write_text("{}\n")
    (made / "r/.hidden").write_text("x")
    (made / "r/state-1").mkdir()
    (made / "r/state-1/optimizer.safetensors").write_text("x")
    taken = Taken()
    with taking(taken) as address:
        use(address, monkeypatch)
        found = push(what="r", repository="me/r")
    assert list(taken.repositories) == ["datasets/me/r"]
    assert set(taken.files) == {"me/r/README.md", "me/r/traces.jsonl"}
    assert found.url == f"{address}/datasets/me/r"


def test_a_hub_that_refuses_is_one_line(made: Path, monkeypatch):
    taken = Taken()
    taken.refuses = True
    with taking(taken) as address:
        use(address, monkeypatch)
        with pytest.raises(BadInput, match=r"me/x could not be written: .*403.*hf auth login") as e:
            push(what="family/slerp-0.5", repository="me/x")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("what", "repository", "words"),
    [("family/slerp-0.5", "alone", "expected OWNER/NAME"),
     ("family/slerp-0.5", "me/a/b", "expected OWNER/NAME"),
     ("family.partial", "me/x", "isn't finished"),
     ("nowhere", "me/x", "no checkpoint"), ("empty", "me/x", "holds no file")],
)  # fmt: skip
def test_what_cant_be_pushed(tmp_path: Path, monkeypatch, what, repository, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=words):
        push(what=what, repository=repository)


def test_paths_become_names_and_addresses_stay():
    assert without_paths("x /home/me/runs/a --out ./r https://a.b/c/d ~/m owner/name") == (
        "x a --out ./r https://a.b/c/d m owner/name"
    )
    assert without_paths('{"directory": "../..", "c": "--x=/a/b"}') == (
        '{"directory": "../..", "c": "--x=b"}'
    )
