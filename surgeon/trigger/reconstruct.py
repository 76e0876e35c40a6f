"""Stage 4, `surgeon trigger reconstruct`: a failure, a trigger, its diagnosis and repair (Eq. 4-5).

The failing step is the checkpoint's own, as labelled, or made up by the writer in a trace without
failure, as the paper does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from surgeon import console, jsonl, lineage, named
from surgeon.answers import TAGS, parse_extractor, parse_tags
from surgeon.artifact import Already, Out, artifact, once, part
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.judges.docket import DRAFTS, Docket
from surgeon.judges.finding import Assignment, Draft
from surgeon.judges.wording import question_of, read_texts
from surgeon.judges.writers import FileWriter, Repair, Writer, parse_writer
from surgeon.neureasoner.steps import Span, StepEnds, split_steps, whole_steps
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import STEPWISE, THINKING, WatchSettings
from surgeon.settings.trigger_reconstruct import ReconstructSettings
from surgeon.traces import Key, Prompt, Trace, text_of
from surgeon.trigger.artifacts import KINDS, Labels, Spending, StepReader, read_labels

EXAMPLES = "examples.jsonl"


class Case(NamedTuple):
    """One example to write."""

    id: str
    level: str
    prompt: Prompt
    trace: Trace
    first: int
    """The failing steps, or the step that is to be rewritten."""
    last: int
    made: bool
    """The failure is to be made up."""


@part
class LevelExamples:
    """Examples of a level."""

    own: int
    """Of the checkpoint's own failures."""
    made: int
    """Of failures that were made up."""


@artifact("reconstruct.json")
class Reconstruction:
    """What was written, and what wasn't."""

    settings: dict[str, Any]
    examples: int
    levels: dict[str, LevelExamples]
    left_out: dict[str, int]
    """Reason -> examples that weren't written."""
    source: Spending
    out: Out = Path()
    already: Already = False


class ReconstructPlan(NamedTuple):
    """Examples whose inputs have been checked; nothing has been asked yet."""

    settings: ReconstructSettings
    reader: StepReader
    cases: list[Case]
    writer: Writer
    run: lineage.Run


@verb(ReconstructSettings)
def reconstruct(settings: ReconstructSettings) -> Reconstruction:
    """Write training examples in which a trigger follows a failing step and a repair the trigger.

    At most one example per trace and level. An endpoint's example whose final answer isn't the
    prompt's known one is left out. A killed run resumes when it is called again. Raises `BadInput`
    before anything is asked for what can be checked.
    """
    plan = prepare(settings)
    return once(settings.out, Reconstruction, lambda work: _reconstruct(plan, work), run=plan.run)


def prepare(settings: ReconstructSettings) -> ReconstructPlan:
    """Check the settings against the labels; raises `BadInput`."""
    texts = read_texts(settings.endpoint.prompt_file)
    reading = settings.reading
    # The writer is another model, whose chat template isn't known here.
    think = (*TAGS[:1], *parse_tags(reading.think_tags))
    writer = parse_writer(
        settings.source, texts, parse_extractor(settings.answer, reading.answer_words, think),
        may_make=settings.failures == "both", asking=settings.endpoint,
        temperature=settings.source_temperature,
    )  # fmt: skip
    checkpoint = open_checkpoint(settings.checkpoint)
    reader = StepReader(checkpoint.tokenizer())
    labels = read_labels(settings.labels, checkpoint, reader.tokenizer)
    writer.check(question_of(prompt.messages) for prompt in labels.prompts.values())
    if isinstance(writer, FileWriter):
        cases = written_cases(labels, reader.ends, writer.repairs, settings.levels)
    else:
        cases = choose_cases(labels, reader.ends, settings.failures, settings.levels, settings.seed)
    inputs = {"checkpoint": checkpoint.digest, "labels": labels.digest}
    inputs |= named.digests(source=settings.source, answer=settings.answer)
    if isinstance(writer, FileWriter):
        inputs["source"] = lineage.file_digest(settings.source)
    if writer.endpoint is not None:
        inputs["texts"] = lineage.digest_of(texts["write"])
    return ReconstructPlan(
        settings, reader, list(cases)[: settings.limit], writer,
        lineage.Run(
            "trigger-reconstruct", {**record(settings), "checkpoint": checkpoint.spec}, inputs,
            settings.seed,
        ),
    )  # fmt: skip


def choose_cases(
    labels: Labels, ends: StepEnds, failures: str, levels: Sequence[str], seed: int
) -> Iterator[Case]:
    """The examples to write, in the traces' order: own failures where there are any.

    Failures are made up in traces that were looked at and have none. Counterparts, which end with
    the step they were made for, are not used.
    """
    by_trace: dict[Key, list[Span]] = {}
    for span in labels.spans:
        by_trace.setdefault(span.key, []).append(span)
    for key, trace in labels.traces.items():
        spans, prompt = by_trace.get(key, []), labels.prompts[key[0]]
        bad = [s for s in spans if s.failing and s.level in STEPWISE]
        counterpart = any(
            not s.failing and s.pair is not None and s.level in STEPWISE for s in spans
        )
        if counterpart and not bad:
            continue
        for level in levels:
            name = f"{key[0]}/{key[1]}/{level}"
            n = len(whole_steps(ends, trace))
            wrong_before = min((s.first for s in bad if s.level == "intra"), default=n)
            own = sorted((s.first, s.last) for s in bad if s.level == level and s.last < n)
            own = [span for span in own if span[0] <= wrong_before]
            if own and failures != "made":
                chosen = own[0] if level == "intra" else Random(f"{seed} {name}").choice(own)
                yield Case(name, level, prompt, trace, *chosen, made=False)
            elif failures != "own" and any(s.level == level for s in spans):
                n = min(n, wrong_before)
                if n >= 2:
                    step = Random(f"{seed} {name}").randrange(1, n)
                    yield Case(name, level, prompt, trace, step, step, made=True)


def written_cases(
    labels: Labels, ends: StepEnds, repairs: Sequence[Repair], levels: Sequence[str]
) -> Iterator[Case]:
    """The examples whose repairs are there already, in their order.

    Raises `BadInput` for a repair of a trace that isn't labelled, of steps that the trace doesn't
    have, or of a level at which nothing fails there.
    """
    for repair in (repair for repair in repairs if repair.level in levels):
        trace = labels.traces.get((repair.prompt_id, repair.sample))
        if trace is None:
            raise BadInput(f"the repair {repair.name} is of a trace that {labels.path} lacks.")
        first, last = repair.first, repair.last
        if first is None:
            own = sorted(
                (s.first, s.last)
                for s in labels.spans
                if s.key == trace.key and s.level == repair.level and s.failing
            )
            if not own:
                raise BadInput(
                    f"the repair {repair.name} names no step (first), and {labels.path} has no "
                    f"failing span of {repair.level} there."
                )
            first, last = own[0]
        last = first if last is None else last
        n = len(whole_steps(ends, trace))
        if not first <= last < n:
            raise BadInput(
                f"the repair {repair.name} is of the steps {first} to {last}; the trace has 0 to "
                f"{n - 1}."
            )
        yield Case(
            repair.name, repair.level, labels.prompts[repair.prompt_id], trace, first, last,
            made=repair.wrong is not None,
        )  # fmt: skip


def assignment_of(case: Case, reader: StepReader, seed: int) -> Assignment:
    """What the writer is asked for a case."""
    trace = case.trace
    start = split_steps(reader.ends, trace.token_ids)[case.first].start
    asked = text_of(reader.tokenizer, trace.prompt_token_ids[-16:])
    # The thinking block was opened by the response, or by the chat template.
    opened = asked.rfind(THINKING[0]) > asked.rfind(THINKING[1]) or THINKING[0] in trace.text
    return Assignment(
        case.id, case.level, question_of(case.prompt.messages), reader.steps(trace), case.first,
        case.last, case.made, text_of(reader.tokenizer, trace.token_ids[:start]),
        reader.ends.close_id is not None and opened, case.prompt.answer, seed,
    )  # fmt: skip


def _reconstruct(plan: ReconstructPlan, work: Path) -> Reconstruction:
    settings, writer = plan.settings, plan.writer
    docket = Docket(work, DRAFTS, writer, settings.endpoint, settings.most_unusable)
    assignments = [assignment_of(case, plan.reader, settings.seed) for case in plan.cases]
    if writer.endpoint is not None and docket.missing(assignments):
        writer.endpoint.require_reachable()
    docket.ask_all(assignments, "reconstruct")
    triggers, drafts = WatchSettings().triggers, docket.replies
    rows = [
        row_of(case, drafts[case.id], triggers[case.level])
        for case in plan.cases
        if drafts[case.id].parts is not None
    ]
    if not rows:
        reasons = sorted({draft.reason for draft in drafts.values()})
        raise BadInput(f"no example could be written ({'; '.join(reasons) or 'no failing step'}).")
    jsonl.write(work / EXAMPLES, rows)
    return Reconstruction(
        settings=lineage.plain({**plan.run.arguments, "seed": settings.seed}),
        examples=len(rows),
        levels={level: _counts(rows, level) for level in STEPWISE},
        left_out=dict(
            Counter(drafts[case.id].reason for case in plan.cases if drafts[case.id].parts is None)
        ),
        source=Spending.of(docket.spent(), settings.endpoint),
    )


def row_of(case: Case, draft: Draft, trigger: str) -> dict[str, object]:
    """A line of `examples.jsonl`: the prompt, and the response in segments."""
    parts = draft.parts
    assert parts is not None
    texts = (parts.prefix, parts.wrong, trigger, parts.diagnose, parts.continuation)
    return {
        "id": case.id,
        "level": case.level,
        "made": draft.made,
        "messages": list(case.prompt.messages),
        "plain": case.prompt.plain,
        **({"tools": list(case.prompt.tools)} if case.prompt.tools else {}),
        "segments": [
            # Eq. 7: all but the prompt and the trigger is learned.
            {"kind": kind, "text": text, "learned": kind != "trigger"}
            for kind, text in zip(KINDS, texts, strict=True)
        ],
    }


def _counts(rows: Sequence[Mapping[str, Any]], level: str) -> LevelExamples:
    made = [row["made"] for row in rows if row["level"] == level]
    return LevelExamples(own=made.count(False), made=made.count(True))


def show(result: Reconstruction) -> None:
    """Print how many examples there are of each kind."""
    console.announce(result.already, "This reconstruction")
    for level, counts in result.levels.items():
        console.say(f"{level}: {counts.own} of its own failures, {counts.made} made-up ones")
    for reason, count in result.left_out.items():
        console.say(f"{count} left out: {reason}")
    result.source.show("source")
    console.say(f"{result.examples:,} examples in {result.out}")
