"""The verbs: where their settings and functions are, and what prints a result.

A row is text, so that reading it imports nothing.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class VerbRow(NamedTuple):
    """A verb of the command line and of recipes."""

    settings: str
    """`module:class` of its settings, in this package."""
    module: str
    """The module of its function and of `show`, which prints the result."""
    function: str
    forecast: str = ""
    """Beside it, where `dry_run` asks what it will take."""

    def load_settings(self) -> type:
        """Import the settings class; imports nothing heavy."""
        module, _, name = self.settings.partition(":")
        return getattr(importlib.import_module(f"surgeon.settings.{module}"), name)

    def load(self) -> Callable[..., Any]:
        """Import the function that does the work."""
        return getattr(importlib.import_module(self.module), self.function)

    def load_forecast(self) -> Callable[..., Any]:
        """Import the function that says what the work will take."""
        return getattr(importlib.import_module(self.module), self.forecast)

    def show(self, result: Any) -> None:
        """Print the result for a person at a terminal."""
        importlib.import_module(self.module).show(result)


VERBS = {
    name: VerbRow(*row)
    for name, row in {
        "merge-sweep": ("merge_sweep:MergeSweepSettings", "surgeon.merge", "sweep"),
        "rank": ("rank:RankSettings", "surgeon.rank", "rank", "forecast"),
        "evaluate": ("evaluate:EvaluateSettings", "surgeon.evaluate", "evaluate", "forecast"),
        "tasks": ("tasks:TasksSettings", "surgeon.tasks", "tasks"),
        "summary": ("summary:SummarySettings", "surgeon.rank.pooled", "summary"),
        "read": ("read:ReadSettings", "surgeon.read", "read", "forecast"),
        "weights": ("weights:WeightsSettings", "surgeon.weights", "weights"),
        "soup": ("soup:SoupSettings", "surgeon.soups", "soup"),
        "transplant": ("transplant:TransplantSettings", "surgeon.transplant", "transplant"),
        "extract-lora": (
            "extract_lora:ExtractLoraSettings",
            "surgeon.extract_lora",
            "extract_lora",
        ),
        "distill": ("distill:DistillSettings", "surgeon.distill", "distill"),
        "curate": ("curate:CurateSettings", "surgeon.curate", "curate"),
        "pick": ("pick:PickSettings", "surgeon.pick", "pick"),
        "sft": ("sft:SftTracesSettings", "surgeon.sft", "sft"),
        "trigger-label": ("trigger_label:LabelSettings", "surgeon.trigger.label", "label"),
        "trigger-identify": (
            "trigger_identify:IdentifySettings",
            "surgeon.trigger.identify",
            "identify",
        ),
        "trigger-fluctuation": (
            "trigger_fluctuation:FluctuationSettings",
            "surgeon.trigger.fluctuation",
            "fluctuation",
        ),
        "trigger-detectors": (
            "trigger_detectors:DetectorsSettings",
            "surgeon.trigger.detectors",
            "detectors",
        ),
        "trigger-reconstruct": (
            "trigger_reconstruct:ReconstructSettings",
            "surgeon.trigger.reconstruct",
            "reconstruct",
        ),
        "trigger-calibrate": (
            "trigger_calibrate:CalibrateSettings",
            "surgeon.trigger.calibrate",
            "calibrate",
        ),
        "trigger-sft": ("trigger_sft:SftSettings", "surgeon.trigger.sft", "sft"),
        "early-stop": (
            "early_stop:EarlyStopSettings",
            "surgeon.early_stop",
            "early_stop",
        ),
        "monitor": ("monitor:MonitorSettings", "surgeon.monitor", "monitor"),
        "serve": ("serve:ServeSettings", "surgeon.serve", "serve"),
        "diff": ("diff:DiffSettings", "surgeon.diff", "diff"),
        "push": ("push:PushSettings", "surgeon.push", "push"),
        "report": ("report:ReportSettings", "surgeon.overview", "report"),
        "show": ("show:ShowSettings", "surgeon.show", "describe"),
    }.items()
}
