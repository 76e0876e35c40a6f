"""What is checked before anything is sampled."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon import lineage, named
from surgeon.answers import gold_problem, opened, parse_check, parse_extractor, parse_tags
from surgeon.checkpoint import Checkpoint, placement
from surgeon.errors import BadInput
from surgeon.families import open_checkpoint
from surgeon.live import support
from surgeon.neureasoner.steps import StepEnds
from surgeon.settings import record
from surgeon.settings.early_stop import EarlyStopSettings
from surgeon.settings.neureasoner import Tags, WatchSettings
from surgeon.traces import Prompt, Trace, digest_of_prompts, encode_all, read_prompts
from surgeon.watch.watching import forced_tokens, with_tags

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LEAST = 4
"""Questions of each set: two for the detectors, two for the thresholds."""


class EarlyStopPlan(NamedTuple):
    """A run whose inputs have been checked; no model has run yet."""

    settings: EarlyStopSettings
    checkpoint: Checkpoint
    tokenizer: "PreTrainedTokenizerBase"
    ends: StepEnds
    watch: WatchSettings
    """What the monitor watches for, with the tags of this checkpoint."""
    prompts: list[Prompt]
    """Of both sets."""
    easy: frozenset[str]
    """Ids of the easy ones."""
    validation: frozenset[str]
    """Ids of those on which thresholds are set."""
    test: list[Prompt]
    judged: bool
    """Whether answers of `prompts` are judged by the questions' own; else by agreement."""
    test_judged: bool
    extract: Callable[[str], str | None]
    device: str
    dtype: "torch.dtype | None"
    run: lineage.Run


def prepare(settings: EarlyStopSettings) -> EarlyStopPlan:
    """Check the settings against files and headers; raises `BadInput`."""
    device, dtype = placement(settings.machine.device, settings.machine.dtype)
    extract = parse_extractor(settings.answer, settings.reading.answer_words)
    tags = next(iter(parse_tags(settings.reading.think_tags)), None)
    parse_check(settings.check)
    sets = {name: _read(settings, getattr(settings, name)) for name in ("easy", "hard", "test")}
    _require_different(settings, sets)
    checkpoint = open_checkpoint(settings.checkpoint)
    support.require("decode", checkpoint)
    support.require("triggers", checkpoint)
    tokenizer = checkpoint.tokenizer()
    watch = with_tags(settings.watch(), tokenizer, tags, closes=True)
    forced_tokens(tokenizer, watch, "enough")  # raises for a tag that can't be written
    ends = StepEnds(tokenizer, watch.thinking)
    prompts = [*sets["easy"], *sets["hard"]]
    sampling = settings.sampling
    for some in (prompts, sets["test"]):
        encode_all(tokenizer, some, checkpoint.context, sampling.thinking, sampling.template)
    arguments = {**record(settings), "checkpoint": checkpoint.spec}
    inputs = {
        "checkpoint": checkpoint.digest,
        **{name: digest_of_prompts(some) for name, some in sets.items() if some},
        **named.digests(answer=settings.answer, check=settings.check),
    }
    rng = np.random.default_rng(settings.seed)
    held: set[str] = set()
    for name in ("easy", "hard"):
        order = rng.permutation([prompt.id for prompt in sets[name]]).tolist()
        n = round(settings.validation * len(order))
        held.update(order[: min(max(n, 2), len(order) - 2)])
    return EarlyStopPlan(
        settings, checkpoint, tokenizer, ends, watch, prompts,
        frozenset(prompt.id for prompt in sets["easy"]), frozenset(held), sets["test"],
        _is_judged(settings, prompts), _is_judged(settings, sets["test"]), extract, device, dtype,
        lineage.Run("early-stop", arguments, inputs, settings.seed),
    )  # fmt: skip


def thinks(tokenizer: "PreTrainedTokenizerBase", trace: Trace, tags: Tags) -> bool:
    """Whether a response thinks between these tags, the first of which may end its prompt."""
    asked = str(tokenizer.decode(trace.prompt_token_ids[-32:]))
    begun = opened(asked, [tags]) or trace.text.lstrip().startswith(tags[0])
    return bool(begun) or tags[1] in trace.text


def require_thinking(plan: EarlyStopPlan, traces: Sequence[Trace]) -> float:
    """The share of the responses that think between the tags; raises `BadInput` where none does."""
    tags = plan.watch.thinking
    share = float(np.mean([thinks(plan.tokenizer, trace, tags) for trace in traces]))
    if not share:
        raise BadInput(
            f"{plan.settings.checkpoint} thinks between {tags[0]} and {tags[1]} in none of "
            f"{len(traces)} answers, expected a checkpoint that does: there is no thinking to end. "
            "Name the tags that it writes with --think-tags 'OPEN CLOSE'."
        )
    return share


def _read(settings: EarlyStopSettings, file: str | None) -> list[Prompt]:
    if file is None:
        return []
    return read_prompts(
        file,
        lambda prompt: (
            None if prompt.answer is None else gold_problem(prompt.answer, settings.check)
        ),
        settings.columns,
    )[: settings.limit]


def _require_different(settings: EarlyStopSettings, sets: dict[str, list[Prompt]]) -> None:
    """Raise `BadInput` for sets that are too small or share a question."""
    for name in ("easy", "hard"):
        if len(sets[name]) < LEAST:
            raise BadInput(
                f"{getattr(settings, name)} has {len(sets[name])} questions, expected at least "
                f"{LEAST}: detectors learn from some and thresholds are set on others."
            )
    owner: dict[str, str] = {}
    for name, prompts in sets.items():
        for prompt in prompts:
            texts = "\n".join(str(message.get("content")) for message in prompt.messages)
            for what, key in (("id", f"id {prompt.id}"), ("question", texts)):
                if owner.setdefault(key, name) != name:
                    raise BadInput(
                        f"the {what} of {prompt.id!r} is in both {getattr(settings, owner[key])} "
                        f"and {getattr(settings, name)}, expected different questions. Take it out "
                        "of one."
                    )


def _is_judged(settings: EarlyStopSettings, prompts: Sequence[Prompt]) -> bool:
    lacking = [prompt.id for prompt in prompts if prompt.answer is None]
    if settings.by == "answers" and lacking:
        raise BadInput(
            f"question {lacking[0]!r} has no answer, expected one for each with by = answers. "
            "Leave it out, or say by = agreement."
        )
    judged = bool(prompts) and not lacking and settings.by != "agreement"
    if prompts and not judged and settings.sampling.samples < 3:
        raise BadInput(
            f"found samples = {settings.sampling.samples} and questions without answers, expected "
            "at least 3 samples: agreement is with most of a question's other answers."
        )
    return judged
