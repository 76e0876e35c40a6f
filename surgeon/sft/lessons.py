"""What is learned: rows of files as tokens, and the mixture of two files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from surgeon.artifact import part
from surgeon.errors import BadInput
from surgeon.traces import Prompt
from surgeon.traces.answered import Answered, read_answered, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Lesson(NamedTuple):
    """An example as tokens."""

    prompt_id: str
    ids: np.ndarray
    """int32."""
    learned: np.ndarray
    """bool: whether the loss counts the token."""

    @property
    def tokens(self) -> int:
        """Tokens that are learned; nothing predicts the first one of all."""
        return int(self.learned[1:].sum())


@part
class LearnedFile:
    """What was taken of one file."""

    file: str
    examples: int
    tokens: int
    """Learned, in an epoch."""
    cut: int
    """Examples that were cut at a token limit: their end isn't learned."""


class Mixture(NamedTuple):
    """Two files, and the share of the second."""

    files: tuple[str, str]
    share: float

    @classmethod
    def parse(cls, text: str) -> "Mixture":
        """From `A:B=SHARE`; raises BadInput."""
        pair, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        parts = pair.split(":")
        names = [(":".join(parts[:n]), ":".join(parts[n:])) for n in range(1, len(parts))]
        there = [pair for pair in names if all(Path(p).expanduser().is_file() for p in pair)]
        if not 0 <= share <= 1 or not names:
            raise BadInput(
                f"found mix = {text}, expected A:B=SHARE, two files and a share between 0 and 1."
            )
        if not there:
            missing = next((p for p in names[0] if not Path(p).expanduser().is_file()), names[0][0])
            raise BadInput(f"found mix = {text}, but {missing} is no file.")
        return cls(there[0], share)

    def takes_second(self, prompt_id: str, seed: int) -> bool:
        """Whether a prompt is learned from the second file: the prompts of a smaller share are
        among those of a larger one."""
        digest = hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self.share


class Taught(NamedTuple):
    """The examples of a training, and what was left out."""

    lessons: list[Lesson]
    files: tuple[LearnedFile, ...]
    too_long: int
    """Beyond the context."""
    unpaired: int
    """Prompts that one file of a mixture lacks."""


Encode = Callable[[Answered], Lesson]


def encoder(
    tokenizer: "PreTrainedTokenizerBase", thinking: bool | None, template: str | None
) -> Encode:
    """From a row to its tokens."""

    def encode(answered: Answered) -> Lesson:
        ids, learned = tokens_of(tokenizer, answered, thinking, template)
        lesson = Lesson(answered.prompt_id, np.array(ids, np.int32), np.array(learned, bool))
        if not lesson.tokens:
            raise BadInput(
                f"prompt {answered.prompt_id!r} has no token to learn, expected at least one."
            )
        return lesson

    return encode


def read_lessons(
    files: Sequence[str],
    encode: Encode,
    context: int,
    *,
    prompts: Mapping[str, Prompt],
    columns: str | Mapping[str, str] | None = None,
    mixture: Mixture | None = None,
    seed: int = 0,
) -> Taught:
    """The rows of the files as examples, those within the context; raises `BadInput`."""
    drawn, unpaired = _drawn(mixture, prompts, columns, seed)
    lessons: list[Lesson] = []
    counts, too_long = [], 0
    for place, file in enumerate(files):
        taken = tokens = cut = 0
        for answered in _rows(file, prompts, columns):
            if drawn is not None and drawn.get(answered.prompt_id) != place:
                continue
            lesson = encode(answered)
            if len(lesson.ids) > context:
                too_long += 1
                continue
            lessons.append(lesson)
            taken, tokens, cut = taken + 1, tokens + lesson.tokens, cut + (not answered.finished)
        counts.append(LearnedFile(file=file, examples=taken, tokens=tokens, cut=cut))
    if not lessons:
        raise BadInput(
            f"every one of the {too_long} examples is longer than the context of {context} tokens."
        )
    return Taught(lessons, tuple(counts), too_long, unpaired)


def digest_of_lessons(lessons: Iterable[Lesson]) -> str:
    """`sha256:` over all that is learned, in its order."""
    digest = hashlib.sha256()
    for lesson in lessons:
        for array in (np.array([len(lesson.ids)], np.int32), lesson.ids, lesson.learned):
            digest.update(array.tobytes())
    return f"sha256:{digest.hexdigest()}"


def _rows(
    file: str, prompts: Mapping[str, Prompt], columns: str | Mapping[str, str] | None
) -> Iterator[Answered]:
    for _, answered in read_answered(file, prompts, columns):
        yield answered


def _drawn(
    mixture: Mixture | None,
    prompts: Mapping[str, Prompt],
    columns: str | Mapping[str, str] | None,
    seed: int,
) -> tuple[dict[str, int] | None, int]:
    """Prompt -> which file of a mixture it is learned from; and how many only one file answers."""
    if mixture is None:
        return None, 0
    one, two = ({a.prompt_id for a in _rows(f, prompts, columns)} for f in mixture.files)
    both = one & two
    if not both:
        raise BadInput(
            f"found no prompt that both {mixture.files[0]} and {mixture.files[1]} answer, expected "
            "answers of two models to the same prompts (by their ids)."
        )
    return {name: int(mixture.takes_second(name, seed)) for name in both}, len(one ^ two)
