"""`surgeon evaluate`: the measured quality of checkpoints on labelled tasks.

Every candidate answers each problem `samples` times; the answers are read out of the responses and
checked. Reported per candidate, each with a 95% bootstrap interval over problems:

- `avg` Avg@k, the mean accuracy of one sample (`pass1`, Pass@1, is the same number);
- `maj` Maj@k, the accuracy of the most frequent answer, ties at their expected value;
- `ece` expected calibration error of the majority vote, 15 bins, confidence = its vote share;
- `cons` Cons@1 to Cons@k: what voting over fewer samples would have reached, to be compared at
  equal tokens;
- `tokens` mean tokens per response, `truncated` the share that hit the token limit, `missing` the
  share in which no answer was found.

A truncated response has no answer: it is wrong and votes for nothing, as in `agreement`.

With `consensus`, Neuron-OPSD's s(x) of every response is read (Eq. 4), and reported is whether it
tells the right ones: AUROC, accuracy by coverage, Fig. 2 and 3, and what is left at equal length.

Of several tasks every measure is told for each and as their mean; where it is said what candidates
were trained on, so is what they reach in that domain and across the others.

plan.py         every input checked, before anything is computed
labelled.py     the tasks, each with its check and extractor
measured.py     measures on each task and over all, in-domain and cross-domain
tables.py       Markdown, LaTeX, CSV, the reliability diagram
printed.py      the table of a terminal

On disk: `evaluate.json`; `tables.md`, `tables.tex`, `tables.csv` and `calibration.svg`;
`traces/NAME.jsonl` (every response), `answers/NAME.jsonl` (what was read out of it, and whether it
is right), `consensus/NAME.jsonl` (s(x) of each response).
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from surgeon import artifact, engines, jsonl, lineage
from surgeon.answers import CheckVerdict, check_many, parse_tags, read_answers
from surgeon.consensus import Reliability, reliability, sizes
from surgeon.errors import BadInput
from surgeon.evaluate.measured import Judged, conclude
from surgeon.evaluate.plan import EvaluatePlan, consensus_readings, prepare, run_of
from surgeon.evaluate.printed import show, table
from surgeon.evaluate.tables import write_tables
from surgeon.live.families import live, tokenizer_of
from surgeon.settings import verb
from surgeon.settings.evaluate import EvaluateSettings
from surgeon.traces import Trace, in_order, keys_of, outlook, sampled, settle, stored_traces
from surgeon.truth import DecodingTime, Evaluation
from surgeon.workers import Crew, answered

__all__ = [
    "EvaluatePlan",
    "EvaluateSettings",
    "Evaluation",
    "evaluate",
    "forecast",
    "judge",
    "measure",
    "prepare",
    "read_answers",
    "show",
    "table",
]


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Measure checkpoints on a labelled task and write the result to the directory `out`.

    Raises `BadInput` before anything is sampled.
    """
    if settings.dry_run:
        raise BadInput(
            "found dry_run, expected forecast(settings): from Python that says what it will take."
        )
    plan = prepare(settings)
    evaluation = artifact.once(settings.out, Evaluation, partial(measure, plan), run=run_of(plan))
    if plan.sources and evaluation.sources != plan.sources:
        evaluation = summed_up_again(plan, evaluation)
        artifact.write(settings.out, evaluation)
    if settings.consensus and evaluation.consensus_top != settings.consensus_top:
        evaluation = with_consensus(plan, evaluation)
        artifact.write(settings.out, evaluation)
    return evaluation


def summed_up_again(plan: EvaluatePlan, evaluation: Evaluation) -> Evaluation:
    """A finished evaluation with other sources of its candidates; its consensus stays."""
    known = {c.name: c.consensus for c in evaluation.candidates}
    again = measure(plan, plan.settings.out)
    candidates = tuple(replace(c, consensus=known.get(c.name)) for c in again.candidates)
    return replace(
        again, candidates=candidates, consensus_top=evaluation.consensus_top,
        times=evaluation.times, out=plan.settings.out,
    )  # fmt: skip


def forecast(settings: EvaluateSettings) -> outlook.Outlook:
    """What the evaluation will take: answers, tokens, time and disk by candidate; writes nothing.

    Raises `BadInput` as the evaluation would.
    """
    plan = prepare(settings)
    lineage.check(settings.out, run_of(plan))
    outlook.require_timed(settings.measure_s, local=settings.engine.is_local, given=False)
    free = lineage.free_bytes(settings.out)
    if settings.out.exists():
        artifact.read(Evaluation, settings.out)
        done = "It is finished: nothing would be computed."
        return outlook.Outlook("evaluate", (), (done,), free)
    work = settings.out.with_name(settings.out.name + ".partial") / "traces"
    sampling, paces = outlook.within_context(settings.sampling, plan.subjects), {}
    if settings.measure_s:
        models = live(outlook.timed_ones(plan.subjects), plan.device, plan.dtype)
        for subject, model, tokenizer, load_s in outlook.loaded(models):
            paces[subject.name] = outlook.timed(
                subject, model, tokenizer, plan.problems, sampling,
                load_s=load_s, seconds=settings.measure_s,
            )  # fmt: skip
    there = outlook.on_disk({s.name: [work / f"{s.name}.jsonl"] for s in plan.subjects})
    known = outlook.Known(there, paces, sampling, outlook.ratios(plan.subjects))
    tokens = outlook.mean_prompt_tokens(tokenizer_of(plan.subjects[0]), plan.problems, sampling)
    wanted = keys_of(plan.problems, sampling.samples)
    workers = 1 if plan.roster is None else max(1, len(plan.roster.devices))
    costs = [outlook.lacking(known, s.name, wanted, tokens, workers) for s in plan.subjects]
    about = outlook.about(known, plan.problems, tokens, local=settings.engine.is_local)
    lines = (*(pace.line for pace in paces.values()), *about)
    return outlook.Outlook("evaluate", tuple(costs), lines, free)


# Responses ---------------------------------------------------------------------------------------


def measure(plan: EvaluatePlan, work: Path) -> Evaluation:
    """Sample, judge and count; `work` keeps what is done, and what is there isn't done again."""
    times: dict[str, DecodingTime] = {}
    evaluation = conclude(plan, judge(plan, work, respond(plan, work, times)))
    evaluation = replace(evaluation, times=times)
    write_tables(evaluation, work)
    return evaluation


def respond(
    plan: EvaluatePlan, work: Path, times: dict[str, DecodingTime]
) -> dict[str, list[Trace]]:
    """Every candidate's responses in the problems' order; those that `traces/` lacks are sampled,
    each written as soon as it ends, and `times` is told how long those took."""
    (work / "traces").mkdir(exist_ok=True)
    files = {subject.name: work / "traces" / f"{subject.name}.jsonl" for subject in plan.subjects}
    engines.fill(
        plan.settings.engine, [engines.Destination(s, files[s.name]) for s in plan.subjects],
        plan.problems, plan.settings.sampling, (plan.device, plan.dtype),
        report=work / engines.FILE, what="evaluate",
    )  # fmt: skip
    responses = {name: in_order(stored_traces(file), plan.problems) for name, file in files.items()}
    sampling = plan.settings.sampling
    wanted = len(plan.problems) * sampling.samples
    missing = [s for s in plan.subjects if len(responses[s.name]) < wanted]
    if plan.roster is not None and missing:
        with Crew(plan.roster) as crew:
            answered(crew, files, missing, plan.problems, sampling, what="evaluate")
        for name in (subject.name for subject in missing):
            responses[name] = in_order(stored_traces(files[name]), plan.problems)
            settle(files[name], responses[name])
        return responses | plan.foreign
    for n, (subject, model, tokenizer) in enumerate(live(missing, plan.device, plan.dtype), 1):
        what, file = f"evaluate {n}/{len(missing)} {subject.name}", files[subject.name]
        there, start = {trace.key for trace in responses[subject.name]}, time.monotonic()
        responses[subject.name] = sampled(
            file, model, tokenizer, plan.problems, sampling, what=what
        )
        new = [trace for trace in responses[subject.name] if trace.key not in there]
        times[subject.name] = DecodingTime.of(new, time.monotonic() - start, plan.device)
        settle(file, responses[subject.name])
    return responses | plan.foreign


# Judgement ---------------------------------------------------------------------------------------


def judge(plan: EvaluatePlan, work: Path, responses: dict[str, list[Trace]]) -> dict[str, Judged]:
    """Read the answer out of every response and check it; writes `answers/`."""
    (work / "answers").mkdir(exist_ok=True)
    tokenizers = {subject.name: subject.source.tokenizer() for subject in plan.subjects}
    first = next(iter(tokenizers.values()))
    gold = {problem.id: str(problem.answer) for problem in plan.problems}
    think = parse_tags(plan.settings.reading.think_tags)
    answers: dict[str, list[str | None]] = {name: [] for name in responses}
    verdicts: dict[str, list[CheckVerdict]] = {name: [] for name in responses}
    begin = 0
    for task in plan.tasks:
        end = begin + len(task.problems) * plan.settings.sampling.samples
        parts = {name: traces[begin:end] for name, traces in responses.items()}
        read = {
            name: read_answers(part, task.extract, tokenizers.get(name, first), think)
            for name, part in parts.items()
        }
        # All at once: workers start once, and an answer that several give is checked once.
        pairs = [
            (answer, gold[trace.prompt_id])
            for name, part in parts.items()
            for trace, answer in zip(part, read[name], strict=True)
        ]
        found = iter(check_many(pairs, task.check, timeout_s=plan.settings.timeout_s))
        for name, part in parts.items():
            answers[name] += read[name]
            verdicts[name] += [next(found) for _ in part]
        begin = end
    judged = {}
    for name, traces in responses.items():
        judged[name] = Judged(traces, answers[name], verdicts[name])
        jsonl.write(
            work / "answers" / f"{name}.jsonl",
            (
                {"prompt_id": trace.prompt_id, "sample": trace.sample, "answer": answer,
                 "gold": gold[trace.prompt_id], **verdict._asdict()}
                for trace, answer, verdict in zip(*judged[name], strict=True)
            ),
        )  # fmt: skip
    return judged


def with_consensus(plan: EvaluatePlan, evaluation: Evaluation) -> Evaluation:
    """A finished evaluation with s(x) of every response, and what it says of the right ones."""
    out = evaluation.out
    (out / "consensus").mkdir(exist_ok=True)
    k = plan.settings.sampling.samples
    domains = [task.name for task in plan.tasks for _ in range(len(task.problems) * k)]
    found: dict[str, Reliability] = {}
    for n, (subject, model, _) in enumerate(live(plan.subjects, plan.device, plan.dtype), 1):
        what = f"consensus {n}/{len(plan.subjects)} {subject.name}"
        traces = in_order(stored_traces(out / "traces" / f"{subject.name}.jsonl"), plan.problems)
        file = out / "consensus" / f"{subject.name}.jsonl"
        size = sizes(model, traces, consensus_readings(plan.settings), file, what=what)
        answers = out / "answers" / f"{subject.name}.jsonl"
        right = {(r["prompt_id"], r["sample"]): r["correct"] for _, r in jsonl.rows(answers)}
        found[subject.name] = reliability(
            [size[trace.key] for trace in traces],
            [len(trace.token_ids) for trace in traces],
            [float(right[trace.key]) for trace in traces],
            [trace.prompt_id for trace in traces],
            domain_N=domains if plan.settings.tasks else None,
            seed=plan.settings.sampling.seed,
        )
    candidates = tuple(replace(c, consensus=found.get(c.name)) for c in evaluation.candidates)
    return replace(evaluation, candidates=candidates, consensus_top=plan.settings.consensus_top)
