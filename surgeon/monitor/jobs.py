"""A monitored run, checked against files and headers: its prompts, its monitor, its answers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import artifact, lineage, named
from surgeon.answers import gold_problem, parse_check, parse_extractor, parse_tags
from surgeon.checkpoint import Checkpoint, placement
from surgeon.decoding.requests import FinishReason
from surgeon.engines import require_engine
from surgeon.errors import BadInput
from surgeon.families import as_subject, open_checkpoint
from surgeon.lineage import Run
from surgeon.live import support
from surgeon.monitor.result import FILE, MonitoredRun
from surgeon.settings import record
from surgeon.settings.monitor import MonitorSettings
from surgeon.settings.neureasoner import WATCHED
from surgeon.traces import Key, Prompt, digest_of_prompts, encode_all, read_prompts
from surgeon.watch.monitor import Monitor, find_monitor, read_levels
from surgeon.watch.watching import Firing, Reading, check_rates, forced_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Job(NamedTuple):
    """One answer to make."""

    index: int
    """Its number among all answers of the run, made or not."""
    key: Key
    ids: list[int]
    """Tokens of the prompt."""


class MonitoredAnswer(NamedTuple):
    """A finished answer, and what the monitor did."""

    job: Job
    token_ids: list[int]
    finish_reason: FinishReason
    forced: Sequence[int]
    """Positions of the tokens that the monitor chose."""
    firings: list[Firing]
    readings: list[Reading]


class MonitorPlan(NamedTuple):
    """A monitored run whose inputs have been checked; nothing has been computed yet."""

    settings: MonitorSettings
    checkpoint: Checkpoint
    tokenizer: "PreTrainedTokenizerBase"
    monitor: Monitor | None
    """None where nothing is watched and the checkpoint carries none."""
    levels: tuple[str, ...]
    """Those that are watched."""
    rates: dict[str, float] | None
    """Chance of a random firing by level, in a control run."""
    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    extract: Callable[[str], str | None]
    device: str
    dtype: "torch.dtype | None"
    run: Run

    @property
    def jobs(self) -> list[Job]:
        """Every answer of the run, prompt after prompt."""
        k = self.settings.sampling.samples
        return [
            Job(n * k + sample, (prompt.id, sample), ids)
            for n, (prompt, ids) in enumerate(zip(self.prompts, self.prompt_ids, strict=True))
            for sample in range(k)
        ]


def prepare(settings: MonitorSettings) -> MonitorPlan:
    """Check every input of a monitored run against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    parse_tags(settings.reading.think_tags)
    parse_check(settings.check)
    prompts = asked_prompts(settings)
    checkpoint = open_checkpoint(settings.checkpoint)
    support.require("decode", checkpoint)
    tokenizer = checkpoint.tokenizer()
    thinking = settings.sampling.thinking
    prompt_ids = encode_all(
        tokenizer, prompts, checkpoint.context, thinking, settings.sampling.template
    )
    monitor = _monitor_of(settings, checkpoint)
    rates, levels = None, ()
    if monitor is not None:
        rates = read_rates(settings.random_rate, monitor.levels)
        levels = read_levels(settings.levels, monitor.levels)
        if settings.levels is None and rates is None:
            levels = monitor.default_levels
        if rates is not None:
            levels = tuple(level for level in levels if level in rates)
        monitor = monitor.acting(settings.action, settings.draws)
        for level in levels:
            if not monitor.settings.redraws(level):
                forced_tokens(tokenizer, monitor.settings, level)  # raises for a missing trigger
            elif not settings.engine.is_local:
                raise BadInput(
                    f"found an engine and a monitor whose {level} draws steps anew, expected the "
                    "decoder here, or --action trigger: an engine takes nothing back."
                )
    asks = settings.out is None or not settings.out.exists()
    require_engine(settings.engine, [as_subject(checkpoint)], prompts, asks=asks)
    inputs = {
        "checkpoint": checkpoint.digest,
        "monitor": lineage.file_digest(file) if (file := _file(settings, checkpoint)) else "",
        "prompts": digest_of_prompts(prompts),
        **named.digests(answer=settings.answer, check=settings.check),
    }
    arguments = record(settings) | {"levels": list(levels), "random_rate": rates}
    run = Run("monitor", arguments, inputs, settings.sampling.seed)
    return MonitorPlan(
        settings, checkpoint, tokenizer, monitor, levels, rates, prompts, prompt_ids,
        extract, device, dtype, run,
    )  # fmt: skip


def _file(settings: MonitorSettings, checkpoint: Checkpoint) -> Path | None:
    return find_monitor(settings.checkpoint, checkpoint, settings.monitor_file)


def _monitor_of(settings: MonitorSettings, checkpoint: Checkpoint) -> Monitor | None:
    """The monitor; None where the checkpoint carries none and nothing is to be watched."""
    file = _file(settings, checkpoint)
    if file is not None:
        return Monitor.load(file, checkpoint)
    if settings.action is not None or settings.draws is not None:
        raise BadInput(
            f"found action or draws, and {settings.checkpoint} carries no monitor that could act. "
            "Name one with --monitor-file."
        )
    nothing = settings.levels is not None and not read_levels(settings.levels, WATCHED)
    if not nothing or settings.random_rate is not None:
        raise BadInput(
            f"{settings.checkpoint} carries no monitor. Train one with `surgeon trigger "
            "detectors` or `surgeon early-stop`, name one with --monitor-file, or watch nothing: "
            "--levels none."
        )
    if not settings.engine.is_local:
        raise BadInput(
            f"{settings.checkpoint} carries no monitor, so an engine answers plainly: use "
            "`surgeon evaluate --engine`."
        )
    return None


def asked_prompts(settings: MonitorSettings) -> list[Prompt]:
    """The prompts; raises `BadInput` for a true answer that can't be checked."""
    if settings.prompts is None:
        content = str(settings.prompt)
        return [Prompt("prompt", ({"role": "user", "content": content},), None, True)]
    prompts = read_prompts(
        settings.prompts,
        lambda prompt: (
            None if prompt.answer is None else gold_problem(prompt.answer, settings.check)
        ),
        settings.columns,
    )
    return prompts[: settings.limit]


def read_rates(
    rates: Mapping[str, float] | str | None, known: Sequence[str]
) -> dict[str, float] | None:
    """Chance of a random firing by level, some of those `known`; a text names the directory of a
    monitored run, whose rates are taken."""
    if rates is None:
        return None
    if isinstance(rates, str):
        if not (Path(rates) / FILE).is_file():
            raise BadInput(
                f"random_rate {rates} is no monitored run (it has no {FILE}). Give "
                "the directory of one, or level: rate."
            )
        levels = artifact.read(MonitoredRun, rates).levels
        rates = {level: row.rate for level, row in levels.items() if row.rate is not None}
    check_rates(rates, known)
    return {level: float(rate) for level, rate in rates.items()}
