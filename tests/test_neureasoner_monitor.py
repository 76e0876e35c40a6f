"""Which monitor a checkpoint has, and which of its levels are watched."""

from pathlib import Path

import pytest

from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.neureasoner.monitor import FILE, find_monitor, read_levels


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
