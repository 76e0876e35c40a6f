"""Features of real reasoning models, measured on a checkpoint of the built-in family: how long and
how exploring its traces are, how often going on spoils what was right, and what it answers when its
thinking is ended.

The explore segments are counted as `rank` counts them; no score is computed here.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.family.tokenizer import END
from surgeon.builtin import task

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from surgeon.decoding import Answer

ROWS = (1, 4, 8, 16)
"""Tokens a row."""
TOP_K = 9
"""Of 1,536 units: about the paper's share, 2,000 of 350,208."""
ENOUGH = 3
"""Cycles that a response needs before progress (NEX Eq. 6) says much."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of a trace's steps, after which its thinking is ended."""
ANSWER_TOKENS = 16
"""Longest answer after an ended thinking."""


class Features(NamedTuple):
    """What one sample per problem showed; shares are in [0, 1]."""

    median_tokens: float
    exploring: float
    """Share of the thinking's tokens in steps that explore."""
    stagnating: float
    """Share of the steps that check what was checked already."""
    spoiled: float
    """Share of the problems on which an attempt was right and the answer is wrong or was never
    reached."""
    segments: Mapping[int, float]
    """Tokens a row -> mean E segments of a response."""
    cycling: Mapping[int, float]
    """Tokens a row -> share of responses with at least `ENOUGH` cycles."""
    ended: Mapping[float, float]
    """Share of the steps that were done when the thinking was ended -> accuracy."""


def features(
    model: "nn.Module",
    tok: "PreTrainedTokenizerBase",
    problems: Sequence[task.Problem],
    *,
    max_tokens: int,
    seed: int = 0,
) -> Features:
    """Sample one response per problem at temperature 0.7 and top-p 0.9, read it exactly, and end
    its thinking early."""
    heads = [prompt_ids(tok, problem) for problem in problems]
    answers = decoded(model, tok, heads, max_tokens, seed)
    texts = [str(tok.decode(answer.token_ids)) for answer in answers]
    phases = [
        phase
        for problem, answer in zip(problems, answers, strict=True)
        for phase in task.phases(problem, [str(tok.decode([i])) for i in answer.token_ids])
    ]
    known = [phase for phase in phases if phase]
    labels = [task.steps(problem, text) for problem, text in zip(problems, texts, strict=True)]
    steps = [label for each in labels for label in each]
    spoiled = [
        any(_attempts(problem, each)) and not task.correct(problem, text)
        for problem, text, each in zip(problems, texts, labels, strict=True)
    ]
    segments, cycling = _explored(model, heads, answers)
    return Features(
        float(np.median([len(answer.token_ids) for answer in answers])),
        known.count("explore") / max(1, len(known)),
        sum(label.failure == "inter" for label in steps) / max(1, len(steps)),
        float(np.mean(spoiled)),
        segments,
        cycling,
        {
            share: _ended(model, tok, problems, texts, labels, share, seed + 1 + i)
            for i, share in enumerate(SHARES)
        },
    )


def prompt_ids(tok: "PreTrainedTokenizerBase", problem: task.Problem) -> list[int]:
    """The tokens of a problem's prompt, up to where the response begins."""
    chat = [{"role": "user", "content": problem.prompt}]
    encoded: Any = tok.apply_chat_template(chat, add_generation_prompt=True)
    return list(encoded["input_ids"])


def decoded(
    model: "nn.Module",
    tok: "PreTrainedTokenizerBase",
    heads: Sequence[list[int]],
    max_tokens: int,
    seed: int,
) -> list["Answer"]:
    """One answer to each prompt, in the prompts' order; at temperature 0.7 and top-p 0.9."""
    from surgeon.decoding import Request, decode, stream_key

    requests = [Request(head, stream_key(seed, str(i), 0)) for i, head in enumerate(heads)]
    stop = frozenset({int(tok.get_vocab()[END])})
    answers = decode(model, requests, stop=stop, max_tokens=max_tokens)
    return sorted(answers, key=lambda answer: answer.index)


def _attempts(problem: task.Problem, labels: Sequence[task.StepLabel]) -> list[bool]:
    """Whether each attempt that reached the last operation ended with the right digit."""
    found: list[bool] = []
    done = False
    for label in labels:
        if label.kind in ("next", "leap"):
            done = problem.operations[-1] in label.text.split(":")[0].split()
            if done:
                found.append(int(label.text[-1]) == problem.answer())
        elif label.kind == "check" and done:
            digits = [c for c in label.text if c.isdigit()]
            found[-1] = int(digits[-1]) == problem.answer()
        else:
            done = False
    return found


def _explored(
    model: "nn.Module", heads: Sequence[list[int]], answers: Sequence["Answer"]
) -> tuple[dict[int, float], dict[int, float]]:
    from surgeon import activations, nex
    from surgeon.traces import Trace

    traces = [
        Trace(str(i), 0, head, list(answer.token_ids), "", answer.finish_reason)
        for i, (head, answer) in enumerate(zip(heads, answers, strict=True))
    ]
    segments, cycling = {}, {}
    for row_tokens in ROWS:
        recordings = activations.record(model, traces, row_tokens=row_tokens, top_k=TOP_K)
        found = [nex.credit(recording.activations) for recording in recordings]
        segments[row_tokens] = float(np.mean([nex.segments(one.explore_R) for one in found]))
        cycling[row_tokens] = float(np.mean([one.cycles >= ENOUGH for one in found]))
    return segments, cycling


def _ended(
    model: "nn.Module",
    tok: "PreTrainedTokenizerBase",
    problems: Sequence[task.Problem],
    texts: Sequence[str],
    labels: Sequence[Sequence[task.StepLabel]],
    share: float,
    seed: int,
) -> float:
    """Accuracy when `</think>` follows this share of each trace's steps."""
    heads = []
    for problem, text, each in zip(problems, texts, labels, strict=True):
        kept = text[: each[max(1, round(share * len(each))) - 1].end] if each else "<think>"
        ids: Any = tok(f"{kept}\n</think>\n\n", add_special_tokens=False)["input_ids"]
        heads.append([*prompt_ids(tok, problem), *ids])
    answers = decoded(model, tok, heads, ANSWER_TOKENS, seed)
    said = [str(tok.decode(answer.token_ids)) for answer in answers]
    right = [task.correct(problem, text) for problem, text in zip(problems, said, strict=True)]
    return float(np.mean(right))
