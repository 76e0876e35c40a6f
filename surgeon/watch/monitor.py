"""A monitor: the channels to watch, a detector per level, and what to do when one fires.

It lies beside the weights as `monitor.safetensors`, so that a checkpoint carries its own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from surgeon import lineage
from surgeon.channels import Channels
from surgeon.checkpoint.directory import index_single
from surgeon.errors import BadInput
from surgeon.neureasoner.detectors import Detector
from surgeon.neureasoner.features import FEATURES
from surgeon.settings.neureasoner import WATCHED, Action, WatchSettings

if TYPE_CHECKING:
    from surgeon.checkpoint import Checkpoint

FILE = "monitor.safetensors"
FORMAT = "surgeon-monitor-1"
PRECEDENCE = ("instance", "enough", "intra", "inter")
"""When several levels fire at one step end, the first of these wins."""


@dataclass(frozen=True)
class Monitor:
    """Everything needed to watch one checkpoint decode."""

    channels: Mapping[str, Channels]
    """Level -> its channels, all of one layer."""
    detectors: Mapping[str, Detector]
    """Level -> its detector, for the same levels."""
    settings: WatchSettings
    checkpoint: str
    """Digest of the checkpoint whose activations the detectors were trained on."""
    off: Mapping[str, str] = field(default_factory=dict)
    """Level that isn't watched unless it is asked for -> why: what `trigger calibrate` found."""

    def __post_init__(self) -> None:
        """Raise BadInput when the parts don't belong together."""
        if not self.channels or set(self.channels) - set(WATCHED):
            raise BadInput(f"found the levels {sorted(self.channels)}, expected some of {WATCHED}.")
        if set(self.channels) != set(self.detectors):
            raise BadInput(
                f"found channels of {sorted(self.channels)} and detectors of "
                f"{sorted(self.detectors)}, expected the same levels."
            )
        if len({channels.layer for channels in self.channels.values()}) > 1:
            raise BadInput("found channels of several layers, expected one layer for all levels.")
        for level, detector in self.detectors.items():
            inputs, expected = (
                len(detector.mean_X),
                self.channels[level].size * len(FEATURES[level]),
            )
            if inputs != expected:
                raise BadInput(
                    f"found a detector of {inputs} inputs for {level}, expected {expected}: "
                    f"{len(FEATURES[level])} features of {self.channels[level].size} channels."
                )

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels it can watch for, in their usual order."""
        return tuple(level for level in WATCHED if level in self.channels)

    @property
    def default_levels(self) -> tuple[str, ...]:
        """The levels that are watched where none are named."""
        return tuple(level for level in self.levels if level not in self.off)

    @property
    def thresholds(self) -> dict[str, float]:
        """Level -> the probability from which its detector fires."""
        return {level: float(self.detectors[level].threshold) for level in self.levels}

    def acting(self, action: Action | None, draws: int | None) -> "Monitor":
        """The same monitor, whose firings do that instead; None: as before. Raises `BadInput` for a
        number of draws where a firing draws nothing."""
        if action is None and draws is None:
            return self
        settings = replace(
            self.settings,
            action=action or self.settings.action,
            draws=draws or self.settings.draws,
        )
        if draws is not None and settings.action == "trigger":
            raise BadInput(
                f"found draws = {draws} with action trigger, which draws no step anew: add "
                "--action resample or choose, or leave draws out."
            )
        return replace(self, settings=settings)

    def save(self, path: str | Path) -> None:
        """Write a file, or `monitor.safetensors` into a directory, whole or not at all.

        A checkpoint's single file of weights gets an index, so that its loaders leave the monitor
        alone.
        """
        arrays = {
            f"{level}.{name}": tensor.detach().cpu().numpy()
            for level, detector in self.detectors.items()
            for name, tensor in detector.state_dict().items()
        }
        row = {
            "checkpoint": self.checkpoint,
            "channels": {level: c._asdict() for level, c in self.channels.items()},
            "settings": asdict(self.settings),
            **({"off": dict(self.off)} if self.off else {}),
        }
        # One entry: of several the order, and so the bytes, would be left to chance.
        lineage.write_tensors(locate(path), arrays, {FORMAT: json.dumps(row)})
        if Path(path).is_dir():
            index_single(Path(path))

    @classmethod
    def load(cls, path: str | Path, checkpoint: "Checkpoint | None" = None) -> "Monitor":
        """Read a monitor from its file, or from the directory it lies in.

        Raises BadInput for a file that is damaged, of another version or no monitor, and for a
        monitor of another checkpoint than `checkpoint`.
        """
        from safetensors import SafetensorError, safe_open

        path = locate(path)
        if not path.is_file():
            raise BadInput(
                f"{path} does not exist: train a monitor with `surgeon trigger detectors`."
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                mine = file.keys() if FORMAT in metadata else ()
                tensors = {name: file.get_tensor(name) for name in mine}
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path} is not a readable monitor: {error}") from error
        if FORMAT not in metadata:
            kind = next((name for name in metadata if name.startswith("surgeon-")), "no monitor")
            raise BadInput(f"{path} is {kind!r}, expected {FORMAT!r}: make it again.")
        try:
            monitor = _parse(json.loads(metadata[FORMAT]), tensors)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"{path} is a damaged monitor ({reason}): make it again.") from error
        if checkpoint is not None and monitor.checkpoint not in checkpoint.digests:
            raise BadInput(
                f"{path} was made for another checkpoint ({monitor.checkpoint[:19]}) than "
                f"{checkpoint.spec} ({checkpoint.digest[:19]}): train detectors for this one with "
                "`surgeon trigger detectors`."
            )
        return monitor


def locate(path: str | Path) -> Path:
    """A monitor's file, from itself or the directory it lies in."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def find_monitor(
    spec: str, checkpoint: "Checkpoint", file: str | Path | None = None
) -> Path | None:
    """That file, or by default the monitor that the checkpoint of this spec carries, if any.

    Of `base+adapter` the adapter's comes first.
    """
    if file is not None:
        return locate(Path(file).expanduser())
    places = [checkpoint.path]
    if "+" in spec and not Path(spec).expanduser().is_dir():
        places.insert(0, Path(spec.rpartition("+")[2]).expanduser())
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_levels(levels: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The levels to watch, from names or comma lists of them; by default all that are known.

    `none` watches nothing, `all` every one. Raises BadInput for a level that isn't known.
    """
    if levels is None:
        return tuple(known)
    names = [name.strip() for text in levels for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if names == ["all"] and known:
        return tuple(known)
    if names and not known:
        raise BadInput(
            f"found levels {', '.join(names)}, but the checkpoint carries no monitor: name one "
            "with --monitor-file, or leave the levels out."
        )
    for name in names:
        if name not in known:
            raise BadInput(
                f"found the level {name!r}, expected some of this monitor's: {', '.join(known)}; "
                "or all, or none."
            )
    return tuple(level for level in known if level in names)


def _parse(row: Any, tensors: dict[str, torch.Tensor]) -> Monitor:
    channels = {
        level: Channels(
            index(c["layer"]), tuple(map(index, c["units"])), tuple(map(index, c["heads"]))
        )
        for level, c in row["channels"].items()
    }
    values = dict(row["settings"])
    known = {field.name for field in fields(WatchSettings)}
    # Monitors made before a setting existed lack it.
    if set(values) - known or known - set(values) - {"k_enough", "action", "draws", "closes"}:
        raise ValueError(f"settings {sorted(set(values) ^ known)}")
    settings = WatchSettings(**values)
    detectors, left = {}, dict(tensors)
    for level in channels:
        prefix = f"{level}."
        state = {n.removeprefix(prefix): left.pop(n) for n in tensors if n.startswith(prefix)}
        hidden, inputs = state["layers.0.weight"].shape
        detector = Detector(inputs, hidden)
        detector.load_state_dict(state)
        detectors[level] = detector.eval().requires_grad_(False)
    if left or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("tensors of no level" if left else "numbers that are not finite")
    off = {str(level): str(why) for level, why in row.get("off", {}).items()}
    return Monitor(channels, detectors, settings, row["checkpoint"], off)
