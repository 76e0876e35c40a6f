"""Stage 4, `surgeon trigger reconstruct`: a failure, a trigger, its diagnosis and repair (Eq. 4-5).

The failing step is the checkpoint's own, as labelled, or made up by the writer: in a trace without
failure, or in reference reasoning from a corpus, as the paper does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any, NamedTuple

from surgeon import console, jsonl, lineage, named
from surgeon.answers import TAGS, opened, parse_extractor, parse_tags
from surgeon.artifact import Already, Out, artifact, once, part
from surgeon.checkpoint import Checkpoint
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.judges.docket import DRAFTS, Docket
from surgeon.judges.finding import Assignment, Draft
from surgeon.judges.makeup import SIGNALS, drawn_control
from surgeon.judges.wording import question_of, read_texts
from surgeon.judges.writers import FileWriter, FunctionWriter, Repair, Writer, parse_writer
from surgeon.neureasoner.steps import Span, StepEnds, split_steps, whole_steps
from surgeon.settings import record, verb
from surgeon.settings.neureasoner import STEPWISE, WatchSettings
from surgeon.settings.trigger_reconstruct import ReconstructSettings
from surgeon.traces import (
    Key,
    Prompt,
    Trace,
    digest_of_prompts,
    encode,
    read_prompts,
    text_of,
)
from surgeon.traces.overlap import left_out, text_of_prompt
from surgeon.trigger.artifacts import KINDS, Labels, Spending, StepReader, read_labels
from surgeon.trigger.corpus import perturbed, read_corpus

EXAMPLES = "examples.jsonl"


class Case(NamedTuple):
    """One example to write."""

    id: str
    level: str
    prompt: Prompt
    trace: Trace | None
    """None where the steps are a reference's."""
    first: int
    """The failing steps, or the step that is to be rewritten."""
    last: int
    made: bool
    """The failure is to be made up."""
    control: Mapping[str, str | int] = MappingProxyType({})
    """What a made-up one is to be like."""
    reference: tuple[str, ...] = ()
    """The steps of a reference."""


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
    left_out: dict[str, int]
    """Reason -> examples that aren't asked for."""
    signal: bool
    """The fixed sentence stands between trigger and diagnosis."""
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
    cases, left, origin = _cases(settings, checkpoint, reader, writer)
    inputs = {"checkpoint": checkpoint.digest, **origin}
    inputs |= named.digests(source=settings.source, answer=settings.answer)
    if isinstance(writer, FileWriter):
        inputs["source"] = lineage.file_digest(settings.source)
    if writer.endpoint is not None:
        inputs["texts"] = lineage.digest_of(texts["write"])
    signal = settings.signal
    if signal is None:
        # Those of this package and functions write in the words of their own task.
        signal = not isinstance(writer, FunctionWriter)
    return ReconstructPlan(
        settings, reader, cases[: settings.limit], left, signal, writer,
        lineage.Run(
            "trigger-reconstruct", {**record(settings), "checkpoint": checkpoint.spec}, inputs,
            settings.seed,
        ),
    )  # fmt: skip


def _cases(
    settings: ReconstructSettings, checkpoint: Checkpoint, reader: StepReader, writer: Writer
) -> tuple[list[Case], dict[str, int], dict[str, str]]:
    """The examples to write, how many aren't and why, and the digests of what they are made of."""
    excluded = [read_prompts(file) for file in settings.exclude]
    origin = {}
    if settings.exclude:
        origin["exclude"] = lineage.digest_of([digest_of_prompts(some) for some in excluded])
    left: Counter[str] = Counter()
    if settings.corpus is not None:
        references = read_corpus(settings.corpus, settings.columns)
        if isinstance(writer, FileWriter):
            raise BadInput(
                "found a corpus and a file of repairs, expected labels: repairs are of labelled "
                "traces."
            )
        prompts = {r.prompt.id: r.prompt for r in references}
        cases = []
        for place in perturbed(references, settings.levels, settings.seed):
            if isinstance(place, str):
                left[place] += 1
                continue
            reference = place.reference
            cases.append(
                Case(place.name, place.level, reference.prompt, None, place.step, place.step,
                     made=True, reference=reference.steps)
            )  # fmt: skip
        origin["corpus"] = lineage.digest_of([[r.prompt.record, r.steps] for r in references])
    else:
        labels = read_labels(str(settings.labels), checkpoint, reader.tokenizer)
        prompts, origin["labels"] = labels.prompts, labels.digest
        if isinstance(writer, FileWriter):
            cases = list(written_cases(labels, reader.ends, writer.repairs, settings.levels))
        else:
            cases = list(
                choose_cases(labels, reader.ends, settings.failures, settings.levels, settings.seed)
            )
    writer.check(question_of(prompt.messages) for prompt in prompts.values())
    gone = left_out({name: text_of_prompt(prompt) for name, prompt in prompts.items()}, excluded)
    kept = [case for case in cases if case.prompt.id not in gone.all]
    if len(kept) < len(cases):
        left["the prompt is in an excluded set"] += len(cases) - len(kept)
    drawn = [
        case._replace(
            control=drawn_control(case.level, Random(f"{settings.seed} {case.id} control"))
        )
        if case.made
        else case
        for case in kept
    ]
    return drawn, dict(left), origin


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
    trace, tags = case.trace, reader.ends.thinking
    if trace is None:
        steps, head = list(case.reference), ""
        asked = text_of(reader.tokenizer, encode(reader.tokenizer, case.prompt)[-16:])
        inside = reader.ends.named
        if inside and not opened(asked, [tags]):
            head = f"{tags[0]}\n"
        before = head + "".join(steps[: case.first])
    else:
        steps = reader.steps(trace)
        start = split_steps(reader.ends, trace.token_ids)[case.first].start
        before = text_of(reader.tokenizer, trace.token_ids[:start])
        asked = text_of(reader.tokenizer, trace.prompt_token_ids[-16:])
        # The thinking block was opened by the response, or by the chat template.
        inside = bool(opened(asked, [tags])) or tags[0] in trace.text
    return Assignment(
        case.id, case.level, question_of(case.prompt.messages), steps, case.first, case.last,
        case.made, before, inside, case.prompt.answer, seed, case.control, tags,
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
        row_of(case, drafts[case.id], triggers[case.level], signal=plan.signal)
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
        left_out={
            **plan.left_out,
            **Counter(
                drafts[case.id].reason for case in plan.cases if drafts[case.id].parts is None
            ),
        },
        source=Spending.of(docket.spent(), settings.endpoint),
    )


def row_of(case: Case, draft: Draft, trigger: str, *, signal: bool) -> dict[str, object]:
    """A line of `examples.jsonl`: the prompt, and the response in segments (Eq. 5)."""
    parts = draft.parts
    assert parts is not None
    sentence = f"\n{SIGNALS[case.level]}\n" if signal else ""
    texts = (parts.prefix, parts.wrong, trigger, sentence, parts.diagnose, parts.continuation)
    return {
        "id": case.id,
        "level": case.level,
        "made": draft.made,
        **({"control": dict(case.control)} if draft.made and case.control else {}),
        "messages": list(case.prompt.messages),
        "plain": case.prompt.plain,
        **({"tools": list(case.prompt.tools)} if case.prompt.tools else {}),
        "segments": [
            # Eq. 7: all but the prompt and the trigger is learned.
            {"kind": kind, "text": text, "learned": kind != "trigger"}
            for kind, text in zip(KINDS, texts, strict=True)
            if text or kind != "signal"
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
