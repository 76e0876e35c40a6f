"""Stage 4, `surgeon trigger reconstruct`: a failure, a trigger, its diagnosis and repair (Eq. 4-5).

Sources: the built-in task, exactly; or a model at an endpoint. The failing step is the checkpoint's
own, as labelled, or made up by the source in a trace without failure, as the paper does.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from surgeon import lineage
from surgeon.answers import canonical, parse_extractor
from surgeon.builtin.judge import judge
from surgeon.builtin.reconstruct import Rewritten, make_up, rewrite
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.neureasoner.steps import Span, StepEnds, split_steps
from surgeon.progress import bar
from surgeon.settings.neureasoner import THINKING
from surgeon.settings.neureasoner import WatchSettings as Settings
from surgeon.traces import Prompt, Trace
from surgeon.trigger.artifacts import (
    Labels,
    read_labels,
    say,
    step_texts,
    text_of,
    whole_steps,
)
from surgeon.trigger.endpoint import Chat, Shape, in_parallel, tokens_of
from surgeon.trigger.judging import Prices, estimate
from surgeon.trigger.prompts import conversation, filled, question_of, read_texts
from surgeon.watch.spans import append_line

FILE, SUMMARY = "examples.jsonl", "reconstruct.json"
WORK = "written.jsonl"
LEVELS = ("intra", "inter")
"""`instance` needs no training: the finish text is in the checkpoint's own words (sec. 3.3)."""
FAILURES = ("both", "own", "made")
KINDS = ("prefix", "wrong", "trigger", "diagnose", "continuation")
TOKENS_PER_EXAMPLE = 800
"""Expected tokens of a reply, for estimates."""


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


class Written(NamedTuple):
    """An example's parts, or why there is none; and the tokens it took."""

    parts: Rewritten | None
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    made: bool = False
    """Its failure was made up."""


def reconstruct(
    checkpoint: str,
    *,
    labels: str | Path,
    out: str | Path,
    source: str = "builtin",
    failures: str = "both",
    levels: Sequence[str] = LEVELS,
    limit: int | None = None,
    answer: str = "auto",
    structured: str = "json_schema",
    source_temperature: float | None = None,
    prompt_file: str | None = None,
    parallel: int = 8,
    timeout: float = 300.0,
    attempts: int = 6,
    price_in: float | None = None,
    price_out: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write training examples in which a trigger follows a failing step and a repair the trigger.

    At most one example per trace and level. `failures` is `own` (the first failing step with
    nothing wrong before it), `made` (in traces without one the source makes up a failure), or
    `both`. `source` is `builtin` or `URL#model`; an example of the latter whose final answer isn't
    the prompt's known one (read as `answer` says) is left out. Writes `examples.jsonl` and
    `reconstruct.json` to the directory `out` and returns the latter. A killed run continues when it
    is called again. Raises `BadInput` before anything is asked for what can be checked.
    """
    if failures not in FAILURES:
        raise BadInput(f"failures is {failures!r}, expected one of: {', '.join(FAILURES)}.")
    unknown = [level for level in levels if level not in LEVELS]
    if unknown or not levels:
        raise BadInput(f"levels are {list(levels)}, expected some of {', '.join(LEVELS)}.")
    for name, value in (("limit", limit), ("parallel", parallel)):
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}; it must be at least 1.")
    extract = parse_extractor(answer)
    texts = read_texts(prompt_file)
    endpoint = None
    if source != "builtin":
        endpoint = Chat.parse(
            source, structured=structured, temperature=source_temperature, timeout=timeout,
            attempts=attempts,
        )  # fmt: skip
    opened = open_checkpoint(checkpoint)
    tokenizer = opened.tokenizer()
    read = read_labels(labels, opened, tokenizer)
    if endpoint is None:
        for prompt in read.prompts.values():
            judge(question_of(prompt.messages), [])
    ends = StepEnds(tokenizer)
    cases = list(choose_cases(read, ends, failures, levels, seed))[:limit]
    arguments = {
        "checkpoint": opened.spec, "labels": str(labels), "source": source, "failures": failures,
        "levels": list(levels), "limit": limit, "answer": answer, "structured": structured,
        "source_temperature": source_temperature,
    }  # fmt: skip
    inputs = {"checkpoint": opened.digest, "labels": read.digest}
    if endpoint is not None:
        inputs["texts"] = lineage.digest_of(texts["write"])
    work = lineage.begin(
        out, verb="trigger-reconstruct", arguments=arguments, inputs=inputs, seed=seed
    )
    if work is None:
        return {**lineage.read_object(Path(out) / SUMMARY), "out": str(out), "already": True}
    view = View(tokenizer, ends)
    if endpoint is None:
        write: Callable[[Case], Written] = Exact(view, seed, may_make=failures == "both")
    else:
        write = Asked(view, endpoint, texts["write"], extract)
    prices = Prices(price_in, price_out)
    written = _write_all(cases, write, endpoint, work / WORK, parallel, prices)
    triggers = Settings().triggers
    rows = [
        row_of(case, written[case.id], triggers[case.level])
        for case in cases
        if written[case.id].parts is not None
    ]
    if not rows:
        reasons = sorted({w.reason for w in written.values()})
        raise BadInput(f"no example could be written ({'; '.join(reasons) or 'no failing step'}).")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lineage.write_text(work / FILE, text)
    result = _summary(rows, cases, written, prices, {**arguments, "seed": seed})
    lineage.write_json(work / SUMMARY, result)
    lineage.finish(work, out)
    return {**result, "out": str(out)}


class View:
    """Traces as the source sees them."""

    def __init__(self, tokenizer: Any, ends: StepEnds):
        self.tokenizer, self.ends = tokenizer, ends

    def steps(self, trace: Trace) -> list[str]:
        """The texts of a trace's whole steps."""
        return step_texts(self.tokenizer, trace, whole_steps(self.ends, trace))

    def before(self, trace: Trace, step: int) -> str:
        """The response up to a step, as it was written."""
        start = split_steps(self.ends, trace.token_ids)[step].start
        return text_of(self.tokenizer, trace.token_ids[:start])

    def thinks(self, trace: Trace) -> bool:
        """Whether the response is in a thinking block, opened by it or by the chat template."""
        asked = text_of(self.tokenizer, trace.prompt_token_ids[-16:])
        opened = asked.rfind(THINKING[0]) > asked.rfind(THINKING[1]) or THINKING[0] in trace.text
        return self.ends.close_id is not None and opened


def choose_cases(
    labels: Labels, ends: StepEnds, failures: str, levels: Sequence[str], seed: int
) -> Iterator[Case]:
    """The examples to write, in the traces' order: own failures where there are any.

    Failures are made up in traces that were looked at and have none. Counterparts, which end with
    the step they were made for, are not used.
    """
    by_trace: dict[tuple[str, int], list[Span]] = {}
    for span in labels.spans:
        by_trace.setdefault((span.prompt_id, span.sample), []).append(span)
    for key, trace in labels.traces.items():
        spans, prompt = by_trace.get(key, []), labels.prompts[key[0]]
        bad = [s for s in spans if s.failing and s.level in LEVELS]
        counterpart = any(not s.failing and s.pair is not None and s.level in LEVELS for s in spans)
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


class Exact:
    """The built-in task's own writer."""

    def __init__(self, view: View, seed: int, *, may_make: bool):
        self.view, self.seed, self.may_make = view, seed, may_make

    def __call__(self, case: Case) -> Written:
        question, steps = question_of(case.prompt.messages), self.view.steps(case.trace)
        rng = Random(f"{self.seed} {case.id}")
        parts, made = None, case.made
        if not made:
            parts = rewrite(question, steps, case.level, case.first, case.last, rng=rng)
        if parts is None and (made or self.may_make):
            parts, made = make_up(question, steps, case.level, rng=rng), True
        reason = "" if parts else "something else is wrong before the failing step"
        return Written(parts, reason, made=made)


class Asked:
    """A writer behind an endpoint; one request per example."""

    def __init__(
        self,
        view: View,
        endpoint: Chat,
        texts: Mapping[str, Any],
        extract: Callable[[str], str | None],
    ):
        self.view, self.endpoint, self.texts, self.extract = view, endpoint, texts, extract

    def messages(self, case: Case) -> list[dict[str, str]]:
        """What the endpoint is asked."""
        steps = self.view.steps(case.trace)
        part = "".join(steps[case.first : case.last + 1]).strip()
        known = case.prompt.answer
        hint = "" if known is None else f"The final answer is known to be {known}.\n"
        text = self.texts[case.level]["made" if case.made else "own"]
        return conversation(
            self.texts["system"],
            filled(
                text, question=question_of(case.prompt.messages), wrong=part, next=part, hint=hint,
                prefix="".join(steps[: case.first]).strip() or "(nothing yet)",
            ),
        )  # fmt: skip

    def __call__(self, case: Case) -> Written:
        names = ("wrong",) * case.made + ("diagnosis", "continuation", "answer")
        shape = Shape(
            "example",
            {"type": "object", "properties": {name: {"type": "string"} for name in names}},
        )
        reply = self.endpoint.ask(self.messages(case), shape, lambda value: _empty(value, names))
        value = {name: text.strip() for name, text in reply.value.items()}
        tokens = (reply.tokens_in, reply.tokens_out)
        found = self.extract(value["answer"])
        known = case.prompt.answer
        if known is not None and (found is None or canonical(found) != canonical(known)):
            return Written(None, "the answer isn't the known one", *tokens, case.made)
        return Written(self.parts(case, value), "", *tokens, case.made)

    def parts(self, case: Case, value: Mapping[str, str]) -> Rewritten:
        """The reply as parts of a response."""
        own = "".join(self.view.steps(case.trace)[case.first : case.last + 1])
        # A first step may begin with the line break after the token that opens the thinking.
        lead = own[: len(own) - len(own.lstrip())]
        wrong = lead + (value["wrong"] if case.made else own.strip())
        close = f"\n{THINKING[1]}\n\n" if self.view.thinks(case.trace) else "\n\n"
        return Rewritten(
            self.view.before(case.trace, case.first),
            f"{wrong}\n\n",
            value["diagnosis"],
            f"\n\n{value['continuation']}{close}{value['answer']}",
        )


def _empty(value: Mapping[str, str], names: Sequence[str]) -> str | None:
    """What is missing in a reply."""
    for name in names:
        if not value[name].strip():
            return f"{name} is empty."
        if any(word in value[name] for word in (*THINKING, *Settings().triggers.values())):
            return f"{name} holds a control token such as {THINKING[1]}."
    return None


def _write_all(
    cases: Sequence[Case],
    write: Callable[[Case], Written],
    endpoint: Chat | None,
    file: Path,
    parallel: int,
    prices: Prices,
) -> dict[str, Written]:
    """Every case's example by its id, written down as it ends; those on disk aren't made again."""
    written = _read_written(file)
    missing = [case for case in cases if case.id not in written]

    def note(case: Case, one: Written) -> None:
        parts = None if one.parts is None else one.parts._asdict()
        append_line(file, {"id": case.id, **one._asdict(), "parts": parts})
        written[case.id] = one

    if not missing:
        return written
    if endpoint is not None:
        assert isinstance(write, Asked)
        counts = [
            (tokens_of("".join(m["content"] for m in write.messages(case))), TOKENS_PER_EXAMPLE)
            for case in missing
        ]
        say(estimate("reconstruct", endpoint, counts, prices))
        endpoint.require_reachable()
    with bar("reconstruct", len(missing)) as advance:
        results = (
            ((case, write(case)) for case in missing)
            if endpoint is None
            else in_parallel(endpoint, missing, write, parallel)
        )
        for case, one in results:
            note(case, one)
            advance()
    return written


def _read_written(file: Path) -> dict[str, Written]:
    """What is on disk; a last line that was cut short is left out."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    found = {}
    for line in lines:
        if line.endswith(b"\n"):
            row = json.loads(line)
            parts = None if row["parts"] is None else Rewritten(**row["parts"])
            name = row.pop("id")
            found[name] = Written(**{**row, "parts": parts})
    return found


def row_of(case: Case, written: Written, trigger: str) -> dict[str, Any]:
    """A line of `examples.jsonl`: the prompt, and the response in segments."""
    parts = written.parts
    assert parts is not None
    texts = (parts.prefix, parts.wrong, trigger, parts.diagnose, parts.continuation)
    return {
        "id": case.id,
        "level": case.level,
        "made": written.made,
        "messages": list(case.prompt.messages),
        "plain": case.prompt.plain,
        "segments": [
            # Eq. 7: all but the prompt and the trigger is learned.
            {"kind": kind, "text": text, "learned": kind != "trigger"}
            for kind, text in zip(KINDS, texts, strict=True)
        ],
    }


def _summary(
    rows: Sequence[Mapping[str, Any]],
    cases: Sequence[Case],
    written: Mapping[str, Written],
    prices: Prices,
    settings: dict[str, Any],
) -> dict[str, Any]:
    reasons: dict[str, int] = {}
    for case in cases:
        if written[case.id].parts is None:
            reason = written[case.id].reason
            reasons[reason] = reasons.get(reason, 0) + 1
    spent = [
        sum(getattr(w, name) for w in written.values()) for name in ("tokens_in", "tokens_out")
    ]
    return {
        "settings": settings,
        "examples": len(rows),
        "levels": {
            level: {
                "own": sum(r["level"] == level and not r["made"] for r in rows),
                "made": sum(r["level"] == level and r["made"] for r in rows),
            }
            for level in LEVELS
        },
        "left_out": reasons,
        "source": {"tokens_in": spent[0], "tokens_out": spent[1], "money": prices.of(*spent)},
    }


def show_reconstruct(result: dict[str, Any]) -> None:
    """Print how many examples there are of each kind."""
    from rich.console import Console

    console = Console(highlight=False)
    if result.get("already"):
        console.print("These examples were written before: nothing was computed.")
    for level, counts in result["levels"].items():
        console.print(
            f"{level}: {counts['own']} of its own failures, {counts['made']} made-up ones"
        )
    for reason, count in result["left_out"].items():
        console.print(f"{count} left out: {reason}", markup=False)
    spent = result["source"]
    if spent["tokens_in"] or spent["tokens_out"]:
        money = "" if spent["money"] is None else f", {spent['money']:.2f} at the prices given"
        console.print(
            f"source: {spent['tokens_in']:,} tokens in, {spent['tokens_out']:,} out{money}"
        )
    console.print(f"{result['examples']:,} examples in {result['out']}", markup=False)
