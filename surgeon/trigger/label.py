"""Stage 1, `surgeon trigger label`: traces in, spans of failing steps and counterparts out."""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon import console, engines, jsonl, lineage, named
from surgeon.artifact import Already, Out, artifact, once, part
from surgeon.checkpoint import Checkpoint, CheckpointName, placement
from surgeon.errors import BadInput
from surgeon.families import as_subject, open_checkpoint, subjects
from surgeon.judges.docket import VERDICTS, Docket
from surgeon.judges.finding import Finding, Question
from surgeon.judges.judges import Judge, parse_judge
from surgeon.judges.wording import question_of, read_texts
from surgeon.live import support
from surgeon.live.families import stop_ids_of
from surgeon.neureasoner.steps import Span, StepEnds, check_spans
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import LEVELS
from surgeon.settings.trigger_label import LabelSettings
from surgeon.traces import (
    Key,
    Prompt,
    Trace,
    in_order,
    keys_of,
    read_plain,
    read_prompts,
    read_traces,
    sampled,
    settle,
    stored_traces,
)
from surgeon.trigger.artifacts import (
    PROMPTS,
    SPANS,
    TRACES,
    Live,
    Spending,
    require_own_tokens,
    write_prompts,
)
from surgeon.trigger.counterparts import Verdicts, counterparts, instance_spans, step_spans
from surgeon.watch.spans import read_spans
from surgeon.workers import Crew, Roster, answered, roster

if TYPE_CHECKING:
    import torch

CONTRAST = {"easy": True, "hard": False}
"""Whether a question of that file stands for over-thinking."""


@part
class LabelCounts:
    """What was found at one level."""

    traces: int
    """Traces that were looked at."""
    failing: int
    """Failing spans."""
    failing_steps: int
    failing_traces: int
    pairs: int
    """Failing spans with a counterpart."""
    unusable: int = 0
    """Traces that are left out, since the judge gave no usable reply about them."""
    short: int = 0
    """Stretches of stagnation with fewer than `inter_steps` steps, which don't count."""


@artifact("label.json")
class Labelling:
    """What `surgeon trigger label` did."""

    checkpoint: CheckpointName
    settings: dict[str, Any]
    traces: int
    levels: dict[str, LabelCounts]
    judge: Spending
    warnings: list[str]
    out: Out = Path()
    already: Already = False


class LabelPlan(NamedTuple):
    """Labelling whose inputs have been checked; nothing has been computed yet."""

    settings: LabelSettings
    checkpoint: Checkpoint
    prompts: list[Prompt]
    group: dict[str, str]
    """Prompt id -> `prompts`, `easy` or `hard`: the file it is from."""
    traces: list[Trace] | None
    """Traces of a file, in place of sampled ones."""
    spans: list[Span] | None
    """Hand-made spans, in place of a judge."""
    judge: Judge | None
    """None where spans are given, and where easy and hard questions are all there is."""
    levels: tuple[str, ...]
    device: str
    dtype: "torch.dtype | None"
    roster: Roster | None
    """The workers that draw the traces; None where this process works alone."""
    run: lineage.Run


@verb(LabelSettings)
def label(settings: LabelSettings) -> Labelling:
    """Sample traces of a checkpoint, let a judge say where they fail, and make counterparts.

    A failing span of `intra` or `inter` is decoded anew from the step before it until a counterpart
    doesn't fail. For `instance` the first steps of over-thought easy questions stand against those
    of hard ones: of the files `easy` and `hard` where there are any, else as the judge says. A
    killed run resumes when it is called again. Raises `BadInput` before anything is sampled for
    what can be checked.
    """
    plan = prepare(settings)
    return once(settings.out, Labelling, lambda work: _label(plan, work), run=plan.run)


# --- the plan -------------------------------------------------------------------------------------


def prepare(settings: LabelSettings) -> LabelPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype, several=True)
    workers = roster(settings.workforce, settings.machine.device, settings.machine.dtype)
    texts = read_texts(settings.endpoint.prompt_file)
    judge = None
    levels = _levels(settings)
    # The files of easy and hard questions say all there is of over-thinking.
    asked = [level for level in levels if level != "instance" or settings.easy is None]
    if not settings.spans and settings.prompts is not None and asked:
        judge = parse_judge(
            settings.judge, texts, settings.endpoint, settings.judge_temperature,
            settings.inter_steps,
        )  # fmt: skip
    prompts, group = _read_groups(settings)
    if judge is not None:
        judge.check(question_of(p.messages) for p in prompts if group[p.id] == "prompts")
    checkpoint = open_checkpoint(settings.checkpoint)
    support.require("triggers", checkpoint)
    inputs = {
        "checkpoint": checkpoint.digest,
        "prompts": lineage.digest_of([[p.record, group[p.id]] for p in prompts]),
        **(named.digests(judge=settings.judge) if judge is not None else {}),
    }
    traces = spans = None
    if settings.traces:
        traces = _read_answers(settings.traces, prompts, checkpoint)
        inputs["traces"] = lineage.file_digest(settings.traces)
    if settings.responses:
        traces = _read_responses(settings, prompts, checkpoint)
        inputs["responses"] = lineage.file_digest(settings.responses)
    engines.require_engine(
        settings.engine, [as_subject(checkpoint)], prompts, asks=not settings.out.exists()
    )
    if settings.spans:
        spans = read_spans(settings.spans)
        check_spans(spans, traces or [], StepEnds(checkpoint.tokenizer()))
        inputs["spans"] = lineage.file_digest(settings.spans)
    if judge is not None and judge.endpoint is not None:
        inputs["texts"] = lineage.digest_of(texts["judge"])
        if not settings.out.exists():
            judge.endpoint.require_reachable()
    arguments = {**record(settings), "checkpoint": checkpoint.spec, "levels": levels}
    return LabelPlan(
        settings, checkpoint, prompts, group, traces, spans, judge, levels,
        device, dtype, workers,
        lineage.Run("trigger-label", arguments, inputs, settings.seed),
    )  # fmt: skip


def _levels(settings: LabelSettings) -> tuple[str, ...]:
    """The levels that are looked for: without prompts `instance` alone."""
    if settings.prompts is not None or settings.spans:
        return tuple(level for level in LEVELS if level in settings.levels)
    if "instance" not in settings.levels:
        raise BadInput(
            f"found levels = {', '.join(settings.levels)} and no prompts, expected instance: easy "
            "and hard questions are labelled at that level only. Give prompts, too."
        )
    return ("instance",)


def _read_groups(settings: LabelSettings) -> tuple[list[Prompt], dict[str, str]]:
    """Every prompt, and which file it is from; ids must differ across the files."""
    files = {"prompts": settings.prompts, "easy": settings.easy, "hard": settings.hard}
    prompts: list[Prompt] = []
    group: dict[str, str] = {}
    for name, file in files.items():
        read = read_prompts(file, columns=settings.columns) if file else []
        for prompt in read[: settings.limit]:
            if prompt.id in group:
                raise BadInput(
                    f"the id {prompt.id!r} is in both {files[group[prompt.id]]} and {file}; ids "
                    "must differ."
                )
            group[prompt.id] = name
            prompts.append(prompt)
    return prompts, group


def _read_answers(file: str, prompts: Sequence[Prompt], checkpoint: Checkpoint) -> list[Trace]:
    """The traces of a file that answer the prompts, in the prompts' order."""
    known = {prompt.id for prompt in prompts}
    traces = [trace for trace in read_traces(file) if trace.prompt_id in known]
    if not traces:
        raise BadInput(f"{file} holds no trace of any of the prompts given; ids must be the same.")
    require_own_tokens(traces, checkpoint, file)
    return in_order(traces, prompts)


def _read_responses(
    settings: LabelSettings, prompts: Sequence[Prompt], checkpoint: Checkpoint
) -> list[Trace]:
    """The answers of a file of texts, as traces, in the prompts' order."""
    tokenizer = checkpoint.tokenizer()
    stop = stop_ids_of(as_subject(checkpoint), tokenizer)
    found = read_plain(str(settings.responses), prompts, tokenizer, settings.sampling, stop)
    if not found.traces:
        raise BadInput(f"{settings.responses} holds no answer to any of the prompts given.")
    found.say(str(settings.responses))
    require_own_tokens(found.traces, checkpoint, str(settings.responses))
    return in_order(found.traces, prompts)


# --- the work -------------------------------------------------------------------------------------


def _label(plan: LabelPlan, work: Path) -> Labelling:
    """Traces, verdicts, counterparts, spans; what `label.json` holds."""
    with closing(Live(plan.checkpoint, plan.device, plan.dtype, plan.settings.engine)) as live:
        return _labelled(plan, live, work)


def _labelled(plan: LabelPlan, live: Live, work: Path) -> Labelling:
    traces = _traces(plan, live, work)
    answered = {trace.prompt_id for trace in traces}
    write_prompts(work / PROMPTS, (p for p in plan.prompts if p.id in answered))
    unusable: dict[str, int] = {}
    short = 0
    n_traces, spent = len(traces), (0, 0)
    if plan.spans is not None:
        spans = plan.spans
    elif plan.judge is None:
        spans = list(instance_spans(plan.settings, live, _contrasted(plan, traces), traces, 0))
    else:
        docket = Docket(
            work, VERDICTS, plan.judge, plan.settings.endpoint, plan.settings.most_unusable
        )
        spans, n_counterparts = _judged(plan, live, docket, traces, work / TRACES)
        n_traces, spent = n_traces + n_counterparts, docket.spent()
        own = {trace.key for trace in traces}
        unusable = Counter(
            level
            for (*key, level), verdict in docket.replies.items()
            if verdict.unusable and tuple(key) in own
        )
        short = sum(
            f.failing and f.last - f.first + 1 < plan.settings.inter_steps
            for (*key, level), verdict in docket.replies.items()
            if level == "inter" and tuple(key) in own
            for f in verdict.findings
        )
    settle(work / TRACES, in_order(read_traces(work / TRACES), plan.prompts))
    jsonl.write(work / SPANS, (span._asdict() for span in spans))
    levels = {
        level: _counts([s for s in spans if s.level == level], unusable.get(level, 0))
        for level in LEVELS
    }
    levels["inter"] = replace(levels["inter"], short=short)
    return _conclusion(plan, n_traces, levels, spent)


def _traces(plan: LabelPlan, live: Live, work: Path) -> list[Trace]:
    """The traces that are judged, in the prompts' order; those on disk aren't drawn again."""
    file, sampling = work / TRACES, plan.settings.sampling
    if plan.traces is not None:
        if not file.is_file():
            jsonl.write(file, map(asdict, plan.traces))
        return plan.traces
    engines.fill(
        plan.settings.engine, [engines.Destination(as_subject(plan.checkpoint), file)],
        plan.prompts, sampling, (plan.device, plan.dtype), report=work / engines.FILE,
    )  # fmt: skip
    wanted = set(keys_of(plan.prompts, sampling.samples))
    stored = [trace for trace in stored_traces(file) if trace.key in wanted]
    if len(stored) == len(wanted):
        # A run that only waits for its judge needs no model.
        return in_order(stored, plan.prompts)
    if plan.roster is not None:
        (subject,) = subjects([plan.settings.checkpoint])
        with Crew(plan.roster) as crew:
            files = {subject.name: file}
            answered(crew, files, [subject], plan.prompts, sampling, what="sample")
        traces = [trace for trace in stored_traces(file) if trace.key in wanted]
        return in_order(traces, plan.prompts)
    return sampled(file, live.model, live.tokenizer, plan.prompts, sampling)


def _judged(
    plan: LabelPlan, live: Live, verdicts: Verdicts, traces: Sequence[Trace], file: Path
) -> tuple[list[Span], int]:
    """The spans by the judge's verdicts, and how many counterparts were decoded for them."""
    questions = {prompt.id: question_of(prompt.messages) for prompt in plan.prompts}
    originals = [trace for trace in traces if plan.group[trace.prompt_id] == "prompts"]
    by_file = "easy" in plan.group.values()
    # What the files of easy and hard questions say, the judge isn't asked.
    levels = [level for level in plan.levels if level != "instance" or not by_file]
    asked: list[Question] = []
    for trace in originals:
        text, steps = questions[trace.prompt_id], live.steps(trace)
        asked += [Question(*trace.key, level, text, steps) for level in levels]
    verdicts.ask_all(asked, "judge")
    solved = counterparts(plan.settings, live, verdicts, questions, originals, file)
    spans = list(step_spans(plan.settings, live, verdicts, originals, levels, solved))
    if "instance" in plan.levels:
        findings = _instance_findings(plan, verdicts, traces)
        begin = max((span.pair for span in spans if span.pair is not None), default=-1) + 1
        spans += instance_spans(plan.settings, live, findings, traces, begin)
    return spans, len(solved)


def _instance_findings(
    plan: LabelPlan, verdicts: Verdicts, traces: Sequence[Trace]
) -> dict[Key, list[Finding]]:
    """What is said of whole traces: by the files of easy and hard questions, else by the judge."""
    if "easy" in plan.group.values():
        return _contrasted(plan, traces)
    return {trace.key: verdicts.replies[(*trace.key, "instance")].findings for trace in traces}


def _contrasted(plan: LabelPlan, traces: Sequence[Trace]) -> dict[Key, list[Finding]]:
    """What the files of easy and hard questions say of their traces."""
    findings: dict[Key, list[Finding]] = {}
    for trace in traces:
        group = plan.group[trace.prompt_id]
        if group in CONTRAST:
            over, reason = CONTRAST[group], f"in the file of {group} questions"
            findings[trace.key] = [Finding("instance", 0, 0, reason, over, contrast=not over)]
    return findings


def _conclusion(
    plan: LabelPlan, n_traces: int, levels: dict[str, LabelCounts], spent: tuple[int, int]
) -> Labelling:
    warnings = [
        f"{level}: no failing span was found, so this level can't be learned."
        for level in plan.levels
        if not levels[level].failing
    ]
    warnings += [
        f"{level}: {counts.unusable} traces are left out, since the judge gave no usable reply "
        "about them (verdicts.jsonl says why)."
        for level, counts in levels.items()
        if counts.unusable
    ]
    return Labelling(
        checkpoint=CheckpointName.of(plan.checkpoint),
        settings=lineage.plain({**plan.run.arguments, "seed": plan.settings.seed}),
        traces=n_traces,
        levels=levels,
        judge=Spending.of(spent, plan.settings.endpoint),
        warnings=warnings,
    )


def _counts(spans: Sequence[Span], unusable: int) -> LabelCounts:
    failing = [span for span in spans if span.failing]
    return LabelCounts(
        traces=len({s.key for s in spans}),
        failing=len(failing),
        failing_steps=sum(s.last - s.first + 1 for s in failing),
        failing_traces=len({s.key for s in failing}),
        pairs=len({s.pair for s in failing if s.pair is not None}),
        unusable=unusable,
    )


def show(result: Labelling) -> None:
    """Print what was labelled: a line per level, warnings, where it is."""
    console.announce(result.already, "This labelling")
    table = console.table(
        "level", "traces", "failing traces", "failing spans", "failing steps", "pairs"
    )
    for level, n in result.levels.items():
        if level in result.settings["levels"]:
            counts = (n.traces, n.failing_traces, n.failing, n.failing_steps, n.pairs)
            table.add_row(level, *(f"{count:,}" for count in counts))
    console.console().print(table)
    if result.levels["inter"].short:
        console.say(
            f"inter: {result.levels['inter'].short:,} stretches of fewer than "
            f"{result.settings['inter_steps']} steps don't count as stagnation (inter_steps)."
        )
    result.judge.show("judge")
    console.warn(result.warnings)
    console.say(f"labels of {result.traces:,} traces in {result.out}")
