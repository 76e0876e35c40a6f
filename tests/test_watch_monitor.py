"""The monitor's file: what is written is read to the bit, and nothing else is taken for it."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surgeon.channels import Channels
from surgeon.checkpoint import Checkpoint, resolve
from surgeon.errors import BadInput
from surgeon.neureasoner.detectors import Detector
from surgeon.neureasoner.features import FEATURES
from surgeon.settings.neureasoner import LEVELS, WatchSettings, even_probes
from surgeon.watch.monitor import FILE, FORMAT, Monitor, find_monitor, read_levels

CHANNELS = {
    "inter": Channels(2, (), (3, 1)),
    "intra": Channels(2, (5, 0, 17), (2,)),
    "instance": Channels(2, (1, 2), ()),
}


def detector(level: str, channels: Channels, hidden: int = 8) -> Detector:
    torch.manual_seed(len(level))
    made = Detector(channels.size * len(FEATURES[level]), hidden).eval().requires_grad_(False)
    made.mean_X.copy_(torch.randn_like(made.mean_X))
    made.scale_X.copy_(torch.rand_like(made.scale_X))
    made.threshold.fill_(torch.rand(()).item())
    return made


def monitor(levels: tuple[str, ...] = LEVELS, checkpoint: str = "", **settings: Any) -> Monitor:
    channels = {level: c for level, c in CHANNELS.items() if level in levels}
    detectors = {level: detector(level, c) for level, c in channels.items()}
    return Monitor(channels, detectors, WatchSettings(**settings), checkpoint)


OTHER: dict[str, Any] = dict(
    k=3, k_intra=5, k_inter=None, instance_steps=2, probes=even_probes(7), cooldown=0, cap=99,
    triggers={"intra": "<err>", "inter": "<être>"}, finish="Enough.\n", thinking=("<a>", "</a>"),
    around=("", "\n"),
)  # fmt: skip


@pytest.fixture(scope="module")
def builtin() -> Checkpoint:
    return resolve("builtin:thinking")


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [LEVELS, ("inter",), ("instance", "intra")], ids=str)
@pytest.mark.parametrize("settings", [{}, OTHER], ids=["usual", "other"])
def test_what_is_saved_is_loaded_to_the_bit(
    tmp_path: Path, levels: tuple[str, ...], settings: dict[str, Any]
):
    saved = monitor(levels, "sha256:abc", **settings)
    saved.save(tmp_path / "m.safetensors")
    loaded = Monitor.load(tmp_path / "m.safetensors")
    assert loaded.channels == saved.channels and loaded.settings == saved.settings
    assert loaded.checkpoint == "sha256:abc"
    assert loaded.levels == saved.levels == tuple(v for v in LEVELS if v in levels)
    assert loaded.thresholds == saved.thresholds
    for level in levels:
        a, b = (m.detectors[level].state_dict() for m in (saved, loaded))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        x_NX = torch.randn(9, len(saved.detectors[level].mean_X))
        words = [m.detectors[level].probability(x_NX) for m in (saved, loaded)]
        assert torch.equal(*words)
        assert not loaded.detectors[level].training
        assert not any(p.requires_grad for p in loaded.detectors[level].parameters())
    loaded.save(tmp_path / "again.safetensors")
    again, first = (tmp_path / name for name in ("again.safetensors", "m.safetensors"))
    assert again.read_bytes() == first.read_bytes()


def test_a_directory_carries_it_under_its_usual_name(tmp_path: Path):
    monitor().save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert Monitor.load(tmp_path).channels == Monitor.load(tmp_path / FILE).channels


def test_one_that_is_there_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed while it writes, the old one stands."""
    monitor(cap=1).save(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            monitor(cap=2).save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    monitor(cap=2).save(tmp_path)
    assert Monitor.load(tmp_path).settings.cap == 2
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_the_file_is_plain_tensors_and_json(tmp_path: Path):
    monitor().save(tmp_path)
    with safe_open(tmp_path / FILE, framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == [FORMAT]
    row = json.loads(metadata[FORMAT])
    assert row["settings"]["cap"] == WatchSettings().cap
    assert row["channels"]["intra"] == {
        "layer": 2,
        "units": [5, 0, 17],
        "heads": [2],
    }


def test_its_own_checkpoint_takes_it_and_another_doesnt(tmp_path: Path, builtin: Checkpoint):
    monitor(checkpoint=builtin.digest).save(tmp_path)
    assert Monitor.load(tmp_path, builtin).checkpoint == builtin.digest
    with pytest.raises(BadInput, match=r"made for another checkpoint \(sha256:.*builtin:instruct"):
        Monitor.load(tmp_path, resolve("builtin:instruct"))


# --- what is refused ------------------------------------------------------------------------------


def refused(path: Path, words: str) -> None:
    with pytest.raises(BadInput, match=words) as error:
        Monitor.load(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text and len(text) < 600


def test_what_isnt_there_is_said(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(BadInput, match=r"does not exist: .*`surgeon trigger detectors`"):
            Monitor.load(path)


def test_a_pickle_is_no_monitor(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return open, (str(tmp_path / "sprung"), "w")  # pyright: ignore

    file = tmp_path / "m.safetensors"
    file.write_bytes(pickle.dumps(Trap()))
    refused(file, "not a readable monitor")
    torch.save({"intra.threshold": torch.tensor(0.5)}, file)
    refused(file, "not a readable monitor")
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path):
    monitor().save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:length])
        refused(tmp_path / FILE, "not a readable monitor")
    (tmp_path / FILE).write_bytes(whole + b"\0")
    refused(tmp_path / FILE, "not a readable monitor")


def test_other_tensors_are_no_monitor(tmp_path: Path, builtin: Checkpoint):
    (weights,) = builtin.path.glob("*.safetensors")
    refused(weights, "is 'no monitor', expected 'surgeon-monitor-1'")
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "is 'no monitor', expected 'surgeon-monitor-1'")


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def settings_of(**changes: Any) -> Change:
    return lambda row, _: row["settings"].update(changes)


def channels_of(**changes: Any) -> Change:
    return lambda row, _: row["channels"]["intra"].update(changes)


CHANGES: dict[str, Change] = {
    "no settings": lambda m, t: m.pop("settings"),
    "no checkpoint": lambda m, t: m.pop("checkpoint"),
    "channels are a list": lambda m, t: m.update(channels=[1]),
    "channels are nothing": lambda m, t: m.update(channels={}),
    "a level is text": lambda m, t: m.update(channels={"intra": "x"}),
    "an unknown level": lambda m, t: m["channels"].update(intro=m["channels"].pop("intra")),
    "settings are a list": lambda m, t: m.update(settings=[]),
    "settings are a number": lambda m, t: m.update(settings=7),
    "a setting more": settings_of(extra=1),
    "a setting less": lambda m, t: m["settings"].pop("cap"),
    "a setting out of range": settings_of(k=0),
    "a setting of another kind": settings_of(cap="many"),
    "a fraction of a step": settings_of(k=1.5),
    "probes descend": settings_of(probes=[1.0, 0.5]),
    "probes are text": settings_of(probes="ab"),
    "probes beyond pi": settings_of(probes=[1.0, 4.0]),
    "triggers are text": settings_of(triggers="x"),
    "a trigger is a number": settings_of(triggers={"intra": 1, "inter": "b"}),
    "the finish text is a number": settings_of(finish=3),
    "no closing token": settings_of(thinking=["<think>"]),
    "a closing token is a number": settings_of(thinking=["<think>", 4]),
    "another layer": channels_of(layer=1),
    "a unit more": channels_of(units=[5, 0, 17, 18]),
    "a unit is text": channels_of(units=["5", "0", "17"]),
    "half a unit": channels_of(units=[5, 0, 1.5]),
    "units are a number": channels_of(units=5),
    "a layer is text": channels_of(layer="two"),
    "no threshold": lambda m, t: t.pop("intra.threshold"),
    "a matrix missing": lambda m, t: t.pop("inter.layers.3.weight"),
    "no first layer": lambda m, t: t.pop("inter.layers.0.weight"),
    "a tensor more": lambda m, t: t.update({"intra.extra": torch.zeros(1)}),
    "a detector more": lambda m, t: t.update({"other.threshold": torch.zeros(1)}),
    "another shape": lambda m, t: t.update({"intra.mean_X": torch.zeros(3)}),
    "a vector for a matrix": lambda m, t: t.update({"intra.layers.0.weight": torch.zeros(8)}),
    "not a number": lambda m, t: t["inter.layers.3.weight"].fill_(torch.nan),
    "an infinite threshold": lambda m, t: t["inter.threshold"].fill_(torch.inf),
}


def parts_of(file: Path) -> tuple[str, dict[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()[FORMAT], load_file(file)


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_monitor_is_refused_in_a_line(tmp_path: Path, name: str):
    monitor().save(tmp_path)
    text, tensors = parts_of(tmp_path / FILE)
    row = json.loads(text)
    CHANGES[name](row, tensors)
    save_file(tensors, tmp_path / FILE, {FORMAT: json.dumps(row)})
    refused(tmp_path / FILE, "is a damaged monitor")


@pytest.mark.parametrize("text", ["{", "7", "[]", "null", "{}"])
def test_one_without_its_description_is_refused(tmp_path: Path, text: str):
    monitor().save(tmp_path)
    save_file(parts_of(tmp_path / FILE)[1], tmp_path / FILE, {FORMAT: text})
    refused(tmp_path / FILE, "is a damaged monitor")


def test_another_version_is_refused_by_name(tmp_path: Path):
    monitor().save(tmp_path)
    text, tensors = parts_of(tmp_path / FILE)
    save_file(tensors, tmp_path / FILE, {"surgeon-monitor-0": text})
    refused(tmp_path / FILE, "is 'surgeon-monitor-0', expected 'surgeon-monitor-1'")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(channels={}), r"found the levels \[\]"),
        (dict(channels={"intro": CHANNELS["intra"]}), r"found the levels \['intro'\]"),
        (
            dict(detectors={"intra": detector("intra", CHANNELS["intra"])}),
            "expected the same levels",
        ),
        (dict(channels={**CHANNELS, "intra": Channels(1, (5, 0, 17), (2,))}), "one layer"),
        (
            dict(channels={**CHANNELS, "intra": Channels(2, (5,), ())}),
            "found a detector of 12 inputs for intra, expected 3: 3 features of 1 channels",
        ),
    ],
)
def test_parts_that_dont_belong_together_are_refused(changes: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=words):
        replace(monitor(), **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 0), ("k_intra", 0), ("k_inter", -1), ("instance_steps", 0), ("probes", (1.0,)),
        ("probes", (0.0, 1.0)), ("probes", (1.0, 1.0)), ("probes", (1.0, 3.2)), ("cooldown", -1),
        ("cap", -1), ("cap", 1.5), ("triggers", {"intra": "x"}), ("thinking", ("a",)),
        ("finish", None), ("around", ("a", "b", "c")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: Any):
    with pytest.raises(BadInput, match=f"found {name} = "):
        WatchSettings(**{name: value})


def test_steps_of_a_level_may_be_its_own():
    settings = WatchSettings(k=3, k_inter=6, instance_steps=5)
    assert [settings.steps(level) for level in LEVELS] == [3, 6, 5]
    for n in range(2, 40):
        assert WatchSettings(probes=even_probes(n)).probes[-1] == pytest.approx(torch.pi)


# --- which one, and which of its levels -----------------------------------------------------------


def test_the_monitor_that_was_given_comes_first_then_the_adapters_then_the_checkpoints(
    pico_pair: tuple[Path, Path], tmp_path: Path
):
    base, adapter = Checkpoint.open(pico_pair[0]), tmp_path / "adapter"
    adapter.mkdir()
    spec = f"{base.path}+{adapter}"
    assert find_monitor(spec, base) is None
    (base.path / FILE).touch()
    assert find_monitor(spec, base) == find_monitor(str(base.path), base) == base.path / FILE
    (adapter / FILE).touch()
    assert find_monitor(spec, base) == adapter / FILE
    assert find_monitor(str(base.path), base) == base.path / FILE
    other = tmp_path / "other.safetensors"
    assert find_monitor(spec, base, other) == other
    assert find_monitor(spec, base, adapter) == adapter / FILE


def test_levels_are_names_or_lists_of_names_in_the_monitors_order():
    known = ("intra", "inter", "instance")
    assert read_levels(None, known) == known
    assert read_levels(["inter, intra", "inter"], known) == ("intra", "inter")
    assert read_levels(["none"], known) == () == read_levels(["none"], ())
    with pytest.raises(BadInput, match=r"level 'extra', expected some .*: intra, inter, instance;"):
        read_levels(["intra", "extra"], known)
    with pytest.raises(BadInput, match=r"levels intra, but the checkpoint carries no monitor"):
        read_levels(["intra"], ())
