"""Eq. 1's attribution three ways: the logit lens (direct), DePass by the ratio rule (adjoint), and
DePass with its own softmax rule (exact), which holds every component through every later layer.

    python -m benchmarks.attribution [CHECKPOINT] [--traces N] [--tokens N] [--shortlist N]

For each token of some responses: the rank correlation of a method's attributions with the exact
ones over the shortlist (all components where there are few), how many of the top quarter they
share, and CPU seconds per trace on one thread. Traces are sampled.
"""

# Shapes: T tokens, K components of the shortlist.

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from benchmarks._timing import cpu_seconds
from surgeon.attribution import adjoint, direct, middle_layer, softmax, top_k
from surgeon.checkpoint import resolve
from surgeon.live.blocks import block
from surgeon.traces import Sampling, Trace, read_prompts, sample


def main() -> None:
    """Print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default="builtin:thinking")
    parser.add_argument("--prompts", default="builtin:mini-set")
    parser.add_argument("--traces", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96, help="of each response")
    parser.add_argument("--shortlist", type=int, default=0, help="0: every component")
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = resolve(given.checkpoint)
    model = checkpoint.model("cpu", torch.float32)
    how = Sampling(samples=1, temperature=0.6, top_p=0.95, max_tokens=given.tokens)
    prompts = read_prompts(given.prompts)[: given.traces]
    traces = list(sample(model, checkpoint.tokenizer(), prompts, how))
    found: dict[str, list[tuple[float, float, float]]] = {"direct": [], "adjoint": []}
    exact_s = [_compare(model, trace, given.shortlist, found) for trace in traces]
    layer = middle_layer(model)
    here = block(model, layer)
    print(
        f"{given.checkpoint}, layer {layer}: {here.ffn.down.in_features} units, "
        f"{here.attention.n_heads} heads; {len(traces)} traces of {given.tokens} tokens"
    )
    print("method   rank correlation with exact   top quarter shared   CPU s per trace")
    for name, rows in found.items():
        rank, shared, seconds = np.mean(rows, axis=0)
        print(f"{name:8} {rank:28.3f} {shared:20.1%} {seconds:17.2f}")
    print(f"{'exact':8} {1:28.3f} {1:20.1%} {np.mean(exact_s):17.2f}")


def _compare(
    model: Any, trace: Trace, most: int, found: dict[str, list[tuple[float, float, float]]]
) -> float:
    """Add a row per method, and return the seconds that the exact one took."""
    ids = [*trace.prompt_token_ids, *trace.token_ids]
    start = len(trace.prompt_token_ids)
    place_T = torch.arange(start, len(ids))
    token_T = torch.tensor(ids)[place_T]
    held: dict[str, torch.Tensor] = {}

    def run(name: str, read: Callable[[], Any]) -> float:
        def work() -> None:
            held[name] = read()(place_T - 1, token_T)[0]

        return cpu_seconds(work, 1)

    seconds = {
        "direct": run("direct", lambda: direct(model, ids[:-1])),
        "adjoint": run("adjoint", lambda: adjoint(model, ids[:-1])),
    }
    n = held["direct"].shape[1]
    component_K = top_k(held["direct"].mean(0)[None], min(most, n) if most else n)[0].sort().values
    exact_s = run("exact", lambda: softmax(model, ids[:-1], component_K.tolist()))
    exact_TK = held["exact"]
    k = max(1, round(0.25 * exact_TK.shape[1]))
    best_T = [set(row) for row in top_k(exact_TK, k).tolist()]
    for name, rows in found.items():
        own_TK = held[name][:, component_K]
        ranks = [rankdata(part.numpy(), axis=1) for part in (own_TK, exact_TK)]
        rank = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)])
        tops = top_k(own_TK, k).tolist()
        shared = np.mean([len(best & set(top)) / k for best, top in zip(best_T, tops, strict=True)])
        rows.append((float(rank), float(shared), seconds[name]))
    return exact_s


if __name__ == "__main__":
    main()
