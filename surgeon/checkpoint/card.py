"""Model cards: a README.md that names the parents, made without asking the network."""

from collections.abc import Iterable, Sequence

from surgeon.checkpoint.directory import Checkpoint


def card(
    title: str,
    sections: Iterable[str],
    *,
    parents: Iterable[Checkpoint] = (),
    tags: Sequence[str] = (),
    library: str = "transformers",
) -> str:
    """The text of a card: front matter, title, then the sections that aren't empty.

    Parents that came from the hub become the front matter's `base_model`; no local path does.
    """
    hub_ids = dict.fromkeys(parent.hub_id for parent in parents if parent.hub_id)
    front = [f"library_name: {library}"]
    if hub_ids:
        front += ["base_model:", *(f"- {hub_id}" for hub_id in hub_ids)]
    if tags:
        front += ["tags:", *(f"- {tag}" for tag in tags)]
    head = "\n".join(["---", *front, "---", f"# {title}"])
    return "\n\n".join([head, *(text.strip("\n") for text in sections if text.strip())]) + "\n"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """Text as it is, in a code block."""
    return f"```{language}\n{text.strip(chr(10))}\n```"
