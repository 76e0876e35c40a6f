"""Monitored answers, decoded by the model at hand."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from surgeon.decoding import NotFinite, Request, decode, stream_key
from surgeon.monitor.jobs import Job, MonitoredAnswer, MonitorPlan
from surgeon.traces import stop_ids
from surgeon.watch.redrawing import watch_of

if TYPE_CHECKING:
    from torch import nn


def decoded(
    plan: MonitorPlan, model: "nn.Module", jobs: Sequence[Job]
) -> Iterator[MonitoredAnswer]:
    """Decode answers with the monitor looking on, and yield each when it ends."""
    sampling, watching = plan.settings.sampling, None
    if plan.levels and plan.monitor is not None:
        watching = watch_of(
            model, plan.tokenizer, plan.monitor, random_rate=plan.rates, seed=sampling.seed,
            levels=plan.levels,
        )  # fmt: skip
    by_index = {job.index: job for job in jobs}
    answers = decode(
        model,
        {i: Request(job.ids, stream_key(sampling.seed, *job.key)) for i, job in by_index.items()},
        stop=stop_ids(model, plan.tokenizer),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        batch=sampling.batch,
        watcher=watching,
    )
    try:
        for index, token_ids, finish_reason, forced in answers:
            firings, readings = watching.take(index) if watching else ([], [])
            job = by_index[index]
            yield MonitoredAnswer(job, token_ids, finish_reason, forced, firings, readings)
    except NotFinite as error:
        raise error.named(
            lambda index: "prompt {!r}, sample {}".format(*by_index[index].key)
        ) from error
