"""The batched decoder: rows of a batch are slots, refilled as soon as an answer ends.

`decode` answers a list of requests; a `Decoder` is the batch behind it, for requests that come and
go. A `Watcher` looks on and may force tokens.

batch.py       which request sits in which row, and how many rows there are
fitting.py     whether a model's rows can share passes, and how many rows a pass needs: asked of the
               model, once
slots.py       rows that share passes, at positions of their own; cache.py their keys and values,
               attention.py their masks, packing.py weights in the order of the CPU's products
alone.py       rows that don't: a row a pass, with the cache that `generate` would use
shaping.py     bias, penalties and constraints of one row, and log-probabilities
choosing.py    the next token of every row, from the row's own random stream
prompted.py    log-probabilities of a prompt's tokens
requests.py    what goes in and comes out
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from surgeon.decoding.batch import Decoder, plan_rows
from surgeon.decoding.choosing import NotFinite, stream_key
from surgeon.decoding.fitting import evaluating
from surgeon.decoding.prompted import prompt_likelihoods
from surgeon.decoding.requests import Answer, Request, Rewind, Rewinding, Token, Watcher
from surgeon.decoding.shaping import Constraint, Likelihood, Shaping
from surgeon.live.architecture import check_decodable, context_limit

__all__ = [
    "Answer",
    "Constraint",
    "Decoder",
    "Likelihood",
    "NotFinite",
    "Request",
    "Rewind",
    "Rewinding",
    "Shaping",
    "Token",
    "Watcher",
    "context_limit",
    "decode",
    "plan_rows",
    "prompt_likelihoods",
    "stream_key",
]


def decode(
    model: nn.Module,
    requests: Sequence[Request] | Mapping[int, Request],
    *,
    stop: frozenset[int],
    max_tokens: int,
    temperature: float = 0.7,
    top_p: float = 0.9,
    top_k: int = 0,
    batch: int = 0,
    watcher: Watcher | None = None,
    until: Callable[[int, Sequence[int]], bool] | None = None,
) -> Iterator[Answer]:
    """Decode every request and yield each answer when it ends.

    A row whose answer has ended takes the next request, so short answers don't wait for long ones;
    once no request waits, the batch shrinks with the rows that are left. The answer to a request
    depends on its prompt and stream, not on its neighbours: to the bit on the CPU in float32 on one
    thread (which small models always run on), for families without experts. `max_tokens` counts
    generated tokens; the model's context ends an answer too. A request's own settings come before
    those given here. `watcher` sees request `requests[i]` as index `i`, which an answer bears too.
    An answer is cut where `until`, asked with its index and its tokens after each one, says so.
    Raises BadInput for a prompt that is empty or fills the context, and for settings out of range,
    before any pass. Where a request's logits aren't finite, the answers beside it are finished and
    yielded, then NotFinite names it.
    """
    if not requests:
        check_decodable(model)
        return
    by_index = requests if isinstance(requests, Mapping) else dict(enumerate(requests))
    every = list(by_index.values())
    longest = max(max_tokens if r.max_tokens is None else r.max_tokens for r in every)
    decoder = Decoder(
        model,
        stop=stop,
        rows=plan_rows(model, every, longest, batch),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        sheds=batch == 0,
        watcher=watcher,
    )
    for index, request in by_index.items():
        decoder.add(index, request)
    answers = {index: Answer(index, [], "length") for index in by_index}
    forced: dict[int, list[int]] = {}
    failed: list[int] = []
    with evaluating(model):
        while decoder.busy:
            for index, token_id, is_forced, finish_reason, _ in decoder.step():
                token_ids = answers[index].token_ids
                if is_forced:
                    forced.setdefault(index, []).append(len(token_ids))
                token_ids.append(token_id)
                if finish_reason is None and until is not None and until(index, token_ids):
                    decoder.cancel(index)
                    finish_reason = "length"
                if finish_reason is not None:
                    places = tuple(forced.pop(index, ()))
                    yield Answer(index, token_ids, finish_reason, places)
            if decoder.failed:
                failed += decoder.failed
                for row in list(decoder.waiting):
                    decoder.cancel(row.index)
    if failed:
        raise NotFinite(sorted(failed))
