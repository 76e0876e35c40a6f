"""Stage 1, `surgeon trigger label`: traces in, spans of failing steps and counterparts out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from surgeon import lineage
from surgeon.neureasoner.steps import LEVELS, Span
from surgeon.progress import bar
from surgeon.traces import Trace, append, read_traces, sample
from surgeon.trigger import artifacts
from surgeon.trigger.artifacts import PROMPTS, SPANS, TRACES
from surgeon.trigger.asked import Live, Plan, prepare
from surgeon.trigger.judging import Docket, Unit
from surgeon.trigger.pairing import Key, counterparted, instance
from surgeon.trigger.prompts import question_of

FILE = "label.json"


def label(
    checkpoint: str,
    *,
    prompts: str,
    out: str | Path,
    judge: str = "builtin",
    easy: str | None = None,
    hard: str | None = None,
    traces: str | None = None,
    spans: str | None = None,
    levels: Sequence[str] = LEVELS,
    samples: int = 1,
    limit: int | None = None,
    pairs: int = 2,
    resample: int = 4,
    instance_steps: int = 4,
    temperature: float = 0.6,
    top_p: float = 0.95,
    max_tokens: int = 16000,
    thinking: bool | None = None,
    batch: int = 0,
    structured: str = "json_schema",
    judge_temperature: float | None = None,
    prompt_file: str | None = None,
    parallel: int = 8,
    timeout: float = 300.0,
    attempts: int = 6,
    price_in: float | None = None,
    price_out: float | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Sample traces of a checkpoint, let a judge say where they fail, and make counterparts.

    Writes `traces.jsonl`, `prompts.jsonl`, `spans.jsonl`, `verdicts.jsonl` and `label.json` to the
    directory `out`; returns the last. A failing span of `intra` or `inter` (at most `pairs` of a
    level and trace) is decoded anew from the step before it until a counterpart doesn't fail, at
    most `resample` times. For `instance` the first `instance_steps` steps of over-thought easy
    questions stand against those of hard ones: of the files `easy` and `hard` where given, else as
    the judge says. `judge` is `builtin`, `URL#model` or `module:function`; `spans` is a file of
    labels that were made by hand, for `traces`, and takes the judge's place. A killed run continues
    when it is called again. Raises `BadInput` before anything is sampled for what can be checked.
    """
    plan = prepare(dict(locals()))
    work = lineage.begin(
        out, verb="trigger-label", arguments=plan.settings, inputs=plan.inputs, seed=seed
    )
    if work is None:
        return {**lineage.read_object(Path(out) / FILE), "out": str(out), "already": True}
    result = _label(plan, work)
    lineage.write_json(work / FILE, result)
    lineage.finish(work, out)
    return {**result, "out": str(out)}


# --- the work -------------------------------------------------------------------------------------


def _label(plan: Plan, work: Path) -> dict[str, Any]:
    """Traces, verdicts, counterparts, spans; what `label.json` holds."""
    live = Live(plan)
    traces = _traces(plan, live, work)
    answered = {trace.prompt_id for trace in traces.values()}
    artifacts.write_prompts(work / PROMPTS, (p for p in plan.prompts if p.id in answered))
    tokens = (0, 0)
    if plan.judge is None:
        assert plan.spans is not None
        spans = plan.spans
    else:
        docket = Docket(work, plan.judge, parallel=plan.parallel, prices=plan.prices)
        docket.judge_all(list(_units(plan, live, traces.values())), "judge")
        spans = list(counterparted(plan, live, docket, traces, work))
        pairs = [span.pair for span in spans if span.pair is not None]
        spans += instance(plan, live, docket, traces, max(pairs, default=-1) + 1)
        tokens = docket.spent()
    rows = [span._asdict() for span in spans]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lineage.write_text(work / SPANS, text)
    return _conclusion(plan, traces, spans, tokens)


def _traces(plan: Plan, live: Live, work: Path) -> dict[Key, Trace]:
    """The traces that are judged, in the prompts' order; those on disk aren't drawn again."""
    file = work / TRACES
    if plan.given is not None:
        if not file.is_file():
            temporary = work / f".{TRACES}.tmp"
            temporary.unlink(missing_ok=True)
            for trace in plan.given:
                append(temporary, trace)
            temporary.rename(file)
        found = plan.given
    else:
        done = {(t.prompt_id, t.sample) for t in read_traces(file)} if file.is_file() else set()
        wanted = [(p.id, n) for p in plan.prompts for n in range(plan.sampling.samples)]
        total = sum(key not in done for key in wanted)
        if total:
            with bar("sample", total) as advance:
                for trace in sample(
                    live.model, live.tokenizer, plan.prompts, plan.sampling, done=done
                ):
                    append(file, trace)
                    advance()
        originals = set(wanted)
        found = [t for t in read_traces(file) if (t.prompt_id, t.sample) in originals]
    order = {prompt.id: i for i, prompt in enumerate(plan.prompts)}
    found = sorted(found, key=lambda trace: (order[trace.prompt_id], trace.sample))
    return {(trace.prompt_id, trace.sample): trace for trace in found}


def _units(plan: Plan, live: Live, traces: Iterable[Trace]) -> Iterator[Unit]:
    """What the judge is asked about these traces: all levels, or what files don't say already."""
    questions = {prompt.id: question_of(prompt.messages) for prompt in plan.prompts}
    by_file = "easy" in plan.group.values()
    for trace in traces:
        if plan.group[trace.prompt_id] != "prompts":
            continue
        steps = live.steps(trace)
        for level in plan.levels:
            if level != "instance" or not by_file:
                yield Unit(trace.prompt_id, trace.sample, level, questions[trace.prompt_id], steps)


def _conclusion(
    plan: Plan, traces: dict[Key, Trace], spans: Sequence[Span], tokens: tuple[int, int]
) -> dict[str, Any]:
    levels = {}
    for level in LEVELS:
        own = [span for span in spans if span.level == level]
        failing = [span for span in own if span.failing]
        levels[level] = {
            "traces": len({(s.prompt_id, s.sample) for s in own}),
            "failing": len(failing),
            "failing_steps": sum(s.last - s.first + 1 for s in failing),
            "failing_traces": len({(s.prompt_id, s.sample) for s in failing}),
            "pairs": len({s.pair for s in failing if s.pair is not None}),
        }
    money = plan.prices.of(*tokens)
    return {
        "checkpoint": {"spec": plan.checkpoint.spec, "digest": plan.checkpoint.digest},
        "settings": lineage.plain({**plan.settings, "seed": plan.sampling.seed}),
        "traces": len(traces),
        "levels": levels,
        "judge": {"tokens_in": tokens[0], "tokens_out": tokens[1], "money": money},
        "warnings": [
            f"{level}: no failing span was found, so this level can't be learned."
            for level in plan.levels
            if not levels[level]["failing"]
        ],
    }


def show_label(result: dict[str, Any]) -> None:
    """Print what was labelled: a line per level, warnings, where it is."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if result.get("already"):
        console.print("These labels were finished before: nothing was computed.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("level")
    for name in ("traces", "failing traces", "failing spans", "failing steps", "pairs"):
        table.add_column(name, justify="right")
    names = ("traces", "failing_traces", "failing", "failing_steps", "pairs")
    for level, counts in result["levels"].items():
        if level in result["settings"]["levels"]:
            table.add_row(level, *(f"{counts[name]:,}" for name in names))
    console.print(table)
    judge = result["judge"]
    if judge["tokens_in"] or judge["tokens_out"]:
        money = "" if judge["money"] is None else f", {judge['money']:.2f} at the prices given"
        console.print(
            f"judge: {judge['tokens_in']:,} tokens in, {judge['tokens_out']:,} out{money}"
        )
    for line in result["warnings"]:
        console.print(f"Warning: {line}", style="yellow", markup=False)
    console.print(f"labels of {result['traces']:,} traces in {result['out']}", markup=False)
