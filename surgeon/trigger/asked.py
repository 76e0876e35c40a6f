"""What `surgeon trigger label` is asked to do, checked against files and headers."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import lineage
from surgeon.checkpoint import Checkpoint, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner.steps import LEVELS, Span, StepEnds, check_spans
from surgeon.traces import Prompt, Sampling, Trace, read_prompts, read_traces
from surgeon.trigger import artifacts
from surgeon.trigger.artifacts import step_texts, whole_steps
from surgeon.trigger.judges import Judge, parse_judge
from surgeon.trigger.judging import Prices
from surgeon.trigger.prompts import question_of, read_texts
from surgeon.watch.spans import read_spans

if TYPE_CHECKING:
    import torch


class Plan(NamedTuple):
    """Labelling whose inputs have been checked; nothing has been computed yet."""

    checkpoint: Checkpoint
    prompts: list[Prompt]
    group: dict[str, str]
    """Prompt id -> `prompts`, `easy` or `hard`: the file it is from."""
    given: list[Trace] | None
    """Traces of a file, in place of sampled ones."""
    spans: list[Span] | None
    """Hand-made spans, in place of a judge."""
    judge: Judge | None
    sampling: Sampling
    levels: tuple[str, ...]
    pairs: int
    resample: int
    instance_steps: int
    parallel: int
    prices: Prices
    device: str
    dtype: "torch.dtype | None"
    settings: dict[str, Any]
    inputs: dict[str, str]


def prepare(given: dict[str, Any]) -> Plan:
    """Check every argument of `label` against files and headers; raises `BadInput`."""
    levels = tuple(level for level in LEVELS if level in given["levels"])
    unknown = [level for level in given["levels"] if level not in LEVELS]
    if unknown or not levels:
        raise BadInput(f"levels are {given['levels']}, expected some of {', '.join(LEVELS)}.")
    for name, least in (
        ("samples", 1), ("pairs", 0), ("resample", 0), ("instance_steps", 1), ("parallel", 1),
    ):  # fmt: skip
        if given[name] < least:
            raise BadInput(f"{name} is {given[name]}; it must be at least {least}.")
    if given["limit"] is not None and given["limit"] < 1:
        raise BadInput(f"limit is {given['limit']}; it must be at least 1.")
    if (given["easy"] is None) != (given["hard"] is None):
        raise BadInput("easy and hard questions are compared with each other: give both files.")
    if given["spans"] and not given["traces"]:
        raise BadInput("spans count the steps of certain traces: give those with traces=FILE.")
    sampling = Sampling(
        **{name: given[name] for name in ("samples", "temperature", "top_p", "max_tokens", "seed",
                                          "batch", "thinking")}
    )  # fmt: skip
    where, kind = placement(given["device"], given["dtype"])
    texts = read_texts(given["prompt_file"])
    judge = None
    if not given["spans"]:
        judge = parse_judge(
            given["judge"], texts, structured=given["structured"], timeout=given["timeout"],
            temperature=given["judge_temperature"], attempts=given["attempts"],
        )  # fmt: skip
    prompts, group = _read_groups(given)
    if given["judge"] == "builtin" and judge is not None:
        for prompt in (one for one in prompts if group[one.id] == "prompts"):
            judge("intra", question_of(prompt.messages), ())
    opened = open_checkpoint(given["checkpoint"])
    traces, inputs = None, {"checkpoint": opened.digest}
    inputs["prompts"] = lineage.digest_of([[asdict(p), group[p.id]] for p in prompts])
    spans = None
    if given["traces"]:
        traces = _read_given(given["traces"], prompts, opened)
        inputs["traces"] = lineage.file_digest(given["traces"])
    if given["spans"]:
        spans = read_spans(given["spans"])
        check_spans(spans, traces or [], opened.tokenizer())
        inputs["spans"] = lineage.file_digest(given["spans"])
    if judge is not None and judge.endpoint is not None:
        inputs["texts"] = lineage.digest_of(texts["judge"])
        if not Path(given["out"]).exists():
            judge.endpoint.require_reachable()
    settings = {
        name: value
        for name, value in given.items()
        # These change no label, or are inputs with a digest.
        if name not in ("out", "seed", "batch", "parallel", "timeout", "attempts", "price_in",
                        "price_out", "prompt_file")
    } | {"checkpoint": opened.spec, "levels": levels}  # fmt: skip
    return Plan(
        opened, prompts, group, traces, spans, judge, sampling, levels, given["pairs"],
        given["resample"], given["instance_steps"], given["parallel"],
        Prices(given["price_in"], given["price_out"]), where, kind, settings, inputs,
    )  # fmt: skip


def _read_groups(given: dict[str, Any]) -> tuple[list[Prompt], dict[str, str]]:
    """Every prompt, and which file it is from; ids must differ across the files."""
    prompts: list[Prompt] = []
    group: dict[str, str] = {}
    for name in ("prompts", "easy", "hard"):
        if given[name] is None:
            continue
        for prompt in read_prompts(given[name])[: given["limit"]]:
            if prompt.id in group:
                raise BadInput(
                    f"the id {prompt.id!r} is in both {given[group[prompt.id]]} and {given[name]}; "
                    "ids must differ."
                )
            group[prompt.id] = name
            prompts.append(prompt)
    return prompts, group


def _read_given(file: str, prompts: Sequence[Prompt], checkpoint: Checkpoint) -> list[Trace]:
    known = {prompt.id for prompt in prompts}
    traces = [trace for trace in read_traces(file) if trace.prompt_id in known]
    if not traces:
        raise BadInput(f"{file} holds no trace of any of the prompts given; ids must be the same.")
    artifacts.require_own_tokens(traces, checkpoint, file)
    return traces


class Live:
    """The tokenizer, and the model once it is needed."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.tokenizer = plan.checkpoint.tokenizer()
        self.ends = StepEnds(self.tokenizer)
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            self._model = self.plan.checkpoint.model(self.plan.device, self.plan.dtype)
        return self._model

    def steps(self, trace: Trace) -> list[str]:
        """The texts of a trace's whole steps."""
        return step_texts(self.tokenizer, trace, whole_steps(self.ends, trace))
