"""What ending the thinking could save on the built-in family: ended where the exact checker sees
the first attempt done, in other words what a detector that makes no mistake would get.

    python -m benchmarks.early_stop builtin:thinking --problems 40

For each way to close the thinking: right answers and tokens when it is ended after the step that
does the last operation, and after the first check or note that follows it.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from surgeon import metrics
from surgeon.builtin import task
from surgeon.decoding import Request, decode, stream_key
from surgeon.families import open_checkpoint
from surgeon.neureasoner.steps import StepEnds, separated, whole_steps
from surgeon.settings.neureasoner import WatchSettings
from surgeon.settings.sampling import Sampling
from surgeon.traces import Trace, in_order, read_prompts, sample, stop_ids
from surgeon.watch.watching import forced_tokens

SAMPLING = Sampling(samples=1, temperature=0.6, top_p=0.95, max_tokens=640)
FINISHES = ("", WatchSettings.finish)


def attempts(problem: task.Problem, ends: StepEnds, trace: Trace) -> dict[str, int]:
    """Tokens up to where the first attempt is done, and up to where it is checked or noted."""
    found: dict[str, int] = {}
    done = False
    labels = task.steps(problem, trace.text)
    for step, label in zip(whole_steps(ends, trace), labels, strict=False):
        if label.kind in ("next", "leap"):
            done = problem.operations[-1] in label.text.split(":")[0].split()
        elif label.kind in ("restart", "guess"):
            done = False
        if done and separated(ends, trace.token_ids, step):
            found.setdefault("done", step.end)
            if label.kind in ("check", "note"):
                found.setdefault("checked", step.end)
    return found


def line(name: str, right_N: np.ndarray, tokens_N: np.ndarray, plain: tuple) -> str:
    """A row of the table."""
    over_N = right_N - plain[0]
    low, high = metrics.bootstrap_interval(over_N)
    share = tokens_N.mean() / plain[1].mean()
    return (
        f"| {name} | {right_N.mean():.3f} | {100 * over_N.mean():+.1f} ({100 * low:+.1f} to "
        f"{100 * high:+.1f}) | {tokens_N.mean():.0f} | {share:.0%} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--problems", type=int, default=40, help="of easy and of hard ones each")
    given = parser.parse_args(arguments)
    prompts = [
        p for name in ("easy", "hard") for p in read_prompts(f"builtin:{name}")[: given.problems]
    ]
    problems = [task.Problem.parse(str(prompt.messages[0]["content"])) for prompt in prompts]
    checkpoint = open_checkpoint(given.checkpoint)
    tokenizer, model = checkpoint.tokenizer(), checkpoint.model()
    ends, stop = StepEnds(tokenizer), stop_ids(model, tokenizer)
    traces = in_order(sample(model, tokenizer, prompts, SAMPLING), prompts)
    plain = (
        np.array([
            t.finish_reason == "stop" and task.correct(p, t.text)
            for p, t in zip(problems, traces, strict=True)
        ], float),
        np.array([len(t.token_ids) for t in traces], float),
    )  # fmt: skip
    print("| ended | right | over never (95 %) | tokens | of never |\n|---|---|---|---|---|")
    print(line("never", *plain, plain))
    where = [attempts(p, ends, t) for p, t in zip(problems, traces, strict=True)]
    for finish in FINISHES:
        forced = forced_tokens(tokenizer, WatchSettings(finish=finish), "enough")
        for place in ("done", "checked"):
            right_N, tokens_N = plain[0].copy(), plain[1].copy()
            requests = {
                n: Request(
                    [*trace.prompt_token_ids, *trace.token_ids[: at[place]], *forced],
                    stream_key(0, trace.prompt_id, 1),
                )
                for n, (trace, at) in enumerate(zip(traces, where, strict=True))
                if place in at
            }
            for answer in decode(
                model, requests, stop=stop, max_tokens=12, temperature=SAMPLING.temperature,
                top_p=SAMPLING.top_p,
            ):  # fmt: skip
                text = f"<think></think>{tokenizer.decode(answer.token_ids)}"
                right_N[answer.index] = task.correct(problems[answer.index], text)
                before = where[answer.index][place] + len(forced)
                tokens_N[answer.index] = before + len(answer.token_ids)
            said = repr(finish) if finish else "nothing said"
            print(line(f"first attempt {place}, {said}", right_N, tokens_N, plain), flush=True)


if __name__ == "__main__":
    main()
