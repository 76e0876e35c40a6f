"""Monitored answers, decoded by the model at hand."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from surgeon.decoding import Decoder, Request, plan_rows, stream_key
from surgeon.monitor.jobs import Job, MonitoredAnswer, MonitorPlan
from surgeon.traces import stop_ids
from surgeon.watch.watching import Watching

if TYPE_CHECKING:
    from torch import nn


def decoded(
    plan: MonitorPlan, model: "nn.Module", jobs: Sequence[Job]
) -> Iterator[MonitoredAnswer]:
    """Decode answers with the monitor looking on, and yield each when it ends."""
    sampling, watching = plan.settings.sampling, None
    if plan.levels:
        watching = Watching(
            model, plan.tokenizer, plan.monitor, random_rate=plan.rates, seed=sampling.seed,
            levels=plan.levels,
        )  # fmt: skip
    requests = {job.index: Request(job.ids, stream_key(sampling.seed, *job.key)) for job in jobs}
    decoder = Decoder(
        model,
        stop=stop_ids(model, plan.tokenizer),
        rows=plan_rows(model, list(requests.values()), sampling.max_tokens, sampling.batch),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        sheds=sampling.batch == 0,
        watcher=watching,
    )
    for index, request in requests.items():
        decoder.add(index, request)
    job_by_index = {job.index: job for job in jobs}
    token_ids: dict[int, list[int]] = {job.index: [] for job in jobs}
    forced: dict[int, list[int]] = {job.index: [] for job in jobs}
    while decoder.busy:
        for index, token_id, is_forced, finish_reason in decoder.step():
            if is_forced:
                forced[index].append(len(token_ids[index]))
            token_ids[index].append(token_id)
            if finish_reason is not None:
                firings, readings = watching.take(index) if watching else ([], [])
                yield MonitoredAnswer(
                    job_by_index[index], token_ids.pop(index), finish_reason, forced.pop(index),
                    firings, readings,
                )  # fmt: skip
