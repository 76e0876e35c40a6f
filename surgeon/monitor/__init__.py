"""`surgeon monitor`: answers that are watched while they are made, and set right in the middle.

The checkpoint's monitor (NeuReasoner sec. 3.3) reads a detector per failure level at the step ends
of every answer. One that fires at `intra` or `inter` forces that level's trigger token as the next
token; `instance` forces a text that ends the thinking.

On disk: `traces.jsonl` (as `rank` and `evaluate` read them), `firings.jsonl` (one line each:
position, level, probability, the step's text, what was forced), `readings.jsonl` (one line per
answer: what every detector said at every step end), `monitor.json`, and `report.html`: the answer
with the most firings, drawn (left out where no level is watched).

`plan` checks the inputs, `answering` decodes with the model at hand, `engine` with one that serves
completions elsewhere (`endpoint`), `summary` counts and shows, `drawing` makes the page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon import lineage

__all__ = ["monitor", "show"]


def monitor(
    checkpoint: str,
    *,
    prompts: str | None = None,
    prompt: str | None = None,
    out: str | Path | None = None,
    samples: int = 1,
    temperature: float = 0.6,
    top_p: float = 0.95,
    top_k: int = 0,
    max_tokens: int = 16000,
    levels: Sequence[str] | None = None,
    random_rate: Mapping[str, float] | str | None = None,
    monitor_file: str | None = None,
    limit: int | None = None,
    check: str = "exact",
    answer: str = "auto",
    timeout_s: float = 5.0,
    thinking: bool | None = None,
    engine: str | None = None,
    seed: int = 0,
    batch: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Answer prompts with the checkpoint's monitor on, and write what happened to `out`.

    `prompts` is a JSONL or Parquet file, `builtin:NAME` or a hub data set; or `prompt` is one text,
    and `out` may be left away: nothing is written then. `levels` are some of the monitor's (`none`
    watches nothing); `random_rate`, a control, fires at random instead: {level: chance}, or the
    directory of a monitored run whose rates are taken. `engine` names a server of completions,
    `URL#model`, that has the same weights: it writes the text, and the model here reads it.
    Prompts with an `answer` are judged by `check`, of what `answer` reads out of the response.
    Returns the content of `monitor.json` and where it is (`out`), with `already` when it was there
    before; with `prompt` also the text (`shown`). An interrupted run continues with the missing
    answers. Raises `BadInput` before anything is decoded.
    """
    from surgeon.monitor.answering import Kept, respond, stored
    from surgeon.monitor.drawing import draw
    from surgeon.monitor.plan import FILE, prepare
    from surgeon.monitor.summary import shown, summarise

    plan = prepare(
        checkpoint, prompts=prompts, prompt=prompt, out=out, samples=samples,
        temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens, levels=levels,
        random_rate=random_rate, monitor_file=monitor_file, limit=limit, check=check,
        answer=answer, timeout_s=timeout_s, thinking=thinking, engine=engine, seed=seed,
        batch=batch, device=device, dtype=dtype,
    )  # fmt: skip
    if out is None:
        kept = Kept([], [], [])
        respond(plan, None, kept)
        return {**summarise(plan, kept), "shown": shown(plan, kept), "out": None}
    out = Path(out)
    work = lineage.begin(
        out, verb="monitor", arguments=plan.settings, inputs=plan.inputs, seed=seed
    )
    if work is None:
        result = {**lineage.read_object(out / FILE), "out": str(out), "already": True}
        kept = stored(out)
    else:
        kept = stored(work)
        model = respond(plan, work, kept)
        result = {**summarise(plan, kept), "drawn": draw(plan, model, work, kept)}
        lineage.write_json(work / FILE, result)
        lineage.finish(work, out)
        result["out"] = str(out)
    return result if prompt is None else {**result, "shown": shown(plan, kept)}


def show(result: dict[str, Any]) -> None:
    """Print a monitored run: the text of a single prompt's answers, the firings, the counts."""
    from surgeon.monitor.summary import show

    show(result)
