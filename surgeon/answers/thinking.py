"""Thinking: the part of a response before its answer, between tags that its template knows."""

from collections.abc import Sequence

from surgeon.errors import BadInput
from surgeon.settings.neureasoner import TAGS, Tags


def after_thinking(text: str, tags: Sequence[Tags] = TAGS[:1]) -> str | None:
    """The text after the last closing tag: all of it without one, None when a block never ends."""
    for opening, closing in tags:
        text = text.rpartition(closing)[2]
        if opening in text:
            return None
    return text


def opened(prompt: str, tags: Sequence[Tags] = TAGS[:1]) -> str:
    """The tag of the thinking block in which a rendered prompt ends, so that the response begins
    inside it; empty where there is none.

    Only spaces may follow the tag: one that a question mentions opens nothing.
    """
    end = prompt.rstrip()
    return next((opening for opening, _ in tags if end.endswith(opening)), "")


def tags_of(template: str | None) -> tuple[Tags, ...]:
    """The tags that a chat template writes, `<think>` and those of `TAGS` that it names."""
    named = tuple(tags for tags in TAGS[1:] if template and tags[1] in template)
    return (*TAGS[:1], *named)


def parse_tags(given: Sequence[str]) -> tuple[Tags, ...]:
    """Tags given as a setting, one pair each, `OPEN CLOSE`; raises `BadInput`."""
    pairs = [tuple(text.split()) for text in given]
    for text, pair in zip(given, pairs, strict=True):
        if len(pair) != 2 or pair[0] == pair[1]:
            raise BadInput(
                f"found think_tags {text!r}, expected two tags with a space between. Write for "
                "example --think-tags '[THINK] [/THINK]'."
            )
    return tuple((pair[0], pair[1]) for pair in pairs)
