"""Thinking ended on trial: after a step the finish text is forced, and an answer is written.

What a rule would have got by stopping there is read off, whatever the rule: every place is tried
once, thresholds are swept over what was found.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from surgeon import jsonl
from surgeon.decoding import Decoder, NotFinite, Request, Token, plan_rows, stream_key
from surgeon.decoding.fitting import evaluating
from surgeon.early_stop.plan import EarlyStopPlan
from surgeon.neureasoner.steps import Step, separated, whole_steps
from surgeon.progress import bar
from surgeon.traces import Key, Trace, stop_ids
from surgeon.watch.watching import forced_tokens

if TYPE_CHECKING:
    from torch import nn


class Probe(NamedTuple):
    """A forced answer."""

    prompt_id: str
    sample: int
    step: int
    """Number of the last step of the thinking; -1: none was thought."""
    position: int
    """Tokens of the answer before the forced ones."""
    token_ids: list[int]
    """The forced ones, then the answer."""
    forced: int
    finish_reason: str
    logprob: float
    """Mean over the answer's tokens, natural logarithm."""

    @property
    def key(self) -> Key:
        """The key of its trace."""
        return self.prompt_id, self.sample


class StopPlace(NamedTuple):
    """Where a trace can be ended."""

    trace: Trace
    step: int
    position: int


def step_ends(plan: EarlyStopPlan, trace: Trace) -> list[tuple[int, Step]]:
    """The numbered steps after which a monitor can end the thinking: those with a separator."""
    steps = whole_steps(plan.ends, trace)
    return [
        (s, step)
        for s, step in enumerate(steps)
        if separated(plan.ends, trace.token_ids, step) and step.end < len(trace.token_ids)
    ]


def places_in(plan: EarlyStopPlan, trace: Trace) -> list[StopPlace]:
    """Before the first step, after the K-th, and after at most `probes` of all, evenly chosen."""
    ends = step_ends(plan, trace)
    most, first_read = plan.settings.probes, plan.settings.instance_steps - 1
    if len(ends) > most:
        kept = {(i * (len(ends) - 1)) // max(most - 1, 1) for i in range(most)}
        ends = [one for n, one in enumerate(ends) if n in kept or one[0] == first_read]
    steps = whole_steps(plan.ends, trace)
    begin = steps[0].start if steps else 0
    return [StopPlace(trace, -1, begin), *(StopPlace(trace, s, step.end) for s, step in ends)]


def probed(
    plan: EarlyStopPlan, model: "nn.Module", traces: Sequence[Trace], file: Path
) -> dict[Key, list[Probe]]:
    """The probes of every trace, in order of their places; those that the file lacks are made."""
    found: dict[tuple[Key, int], Probe] = {}
    for _, row in jsonl.rows(file) if file.is_file() else ():
        probe = Probe(**row)
        found[probe.key, probe.step] = probe
    places = [place for trace in traces for place in places_in(plan, trace)]
    lacking = [place for place in places if (place.trace.key, place.step) not in found]
    if lacking:
        with bar("end the thinking on trial", len(lacking)) as advance:
            for probe in _made(plan, model, lacking):
                jsonl.append(file, probe._asdict())
                found[probe.key, probe.step] = probe
                advance()
    by_trace: dict[Key, list[Probe]] = {}
    for place in places:
        by_trace.setdefault(place.trace.key, []).append(found[place.trace.key, place.step])
    return by_trace


def _made(plan: EarlyStopPlan, model: "nn.Module", places: Sequence[StopPlace]) -> Iterator[Probe]:
    settings = plan.settings
    sampling = settings.sampling
    forced = forced_tokens(plan.tokenizer, plan.watch, "enough")
    context = plan.checkpoint.context
    requests: dict[int, Request] = {}
    for n, (trace, step, position) in enumerate(places):
        ids = [*trace.prompt_token_ids, *trace.token_ids[:position], *forced]
        room = min(settings.answer_tokens, context - len(ids))
        if room > 0:
            stream = stream_key(
                sampling.seed, f"{trace.prompt_id} ended after {step}", trace.sample
            )
            requests[n] = Request(ids, stream, max_tokens=room, likelihoods=0)
        else:  # The context is full: whoever stops here gets no answer.
            yield Probe(*trace.key, step, position, forced, len(forced), "length", 0.0)
    if not requests:
        return
    decoder = Decoder(
        model, stop=stop_ids(model, plan.tokenizer),
        rows=plan_rows(model, list(requests.values()), settings.answer_tokens, sampling.batch),
        max_tokens=settings.answer_tokens, temperature=sampling.temperature,
        top_p=sampling.top_p, top_k=sampling.top_k, sheds=sampling.batch == 0,
    )  # fmt: skip
    for n, request in requests.items():
        decoder.add(n, request)
    written: dict[int, list[Token]] = {n: [] for n in requests}
    failed: list[int] = []
    with evaluating(model):
        while decoder.busy:
            for token in decoder.step():
                written[token.index].append(token)
                if token.finish_reason is not None:
                    yield _probe(places[token.index], forced, written.pop(token.index))
            failed += decoder.failed
    if failed:
        trace = places[failed[0]].trace
        raise NotFinite(failed).named(lambda _: f"prompt {trace.prompt_id!r}, {trace.sample}")


def _probe(place: StopPlace, forced: list[int], tokens: Sequence[Token]) -> Probe:
    logprobs = [token.likelihood.logprob for token in tokens if token.likelihood is not None]
    return Probe(
        *place.trace.key, place.step, place.position,
        [*forced, *(token.token_id for token in tokens)], len(forced),
        str(tokens[-1].finish_reason), round(sum(logprobs) / len(logprobs), 6),
    )  # fmt: skip
