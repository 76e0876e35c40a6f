"""Draws docs/flow.svg, what a user does with checkpoints: `make reference`.

Boxes are artifacts, arrows are verbs. The colours follow the reader's light or dark setting.
"""

from pathlib import Path

PAGE = Path(__file__).with_name("flow.svg")
WIDTH, HEIGHT, BOX_W, BOX_H = 1100, 290, 150, 46

# Artifact -> middle of its box, and its two lines.
BOXES = {
    "prompts": (325, 40, "100 prompts", "no labels"),
    "labels": (565, 40, "labelled problems", "if there are any"),
    "endpoints": (85, 145, "two endpoints", "or a training run"),
    "family": (325, 145, "family", "virtual or written"),
    "ranking": (565, 145, "ranking", "page, neuron weights"),
    "best": (805, 145, "best checkpoint", "loads everywhere"),
    "served": (1015, 145, "answers", "monitored, best of n"),
    "moved": (565, 250, "transplanted", "neurons of a donor"),
    "finished": (805, 250, "finished", "LoRA or full weights"),
}
# From, to, verb.
ARROWS = [
    ("endpoints", "family", "merge-sweep"),
    ("family", "ranking", "rank"),
    ("ranking", "best", "recommends"),
    ("prompts", "ranking", ""),
    ("labels", "ranking", "evaluate"),
    ("best", "finished", "distill, trigger"),
    ("ranking", "moved", "transplant"),
    ("moved", "finished", "distill"),
    ("finished", "served", "serve"),
    ("best", "served", "serve"),
]
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2430; text-anchor: middle }
  .small { font-size: 11px; fill: #5b6270 }
  .verb { font: 12px ui-monospace, monospace; fill: #1a6e5a; paint-order: stroke; stroke: #fff;
          stroke-width: 4px }
  rect { fill: #f4f6f8; stroke: #9aa3af }
  path { fill: none; stroke: #6b7280; stroke-width: 1.4; marker-end: url(#head) }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ef } .small { fill: #a3abb8 }
    .verb { fill: #6fd0b5; stroke: #15181d }
    rect { fill: #20252c; stroke: #5d6673 } path { stroke: #8b93a0 }
  }"""


def drawing() -> str:
    """The SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="From two endpoints to a served checkpoint">',
        f"<style>{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" style="fill:#6b7280;stroke:none;'
        'marker-end:none"/></marker></defs>',
    ]
    for start, end, verb in ARROWS:
        (x0, y0), (x1, y1) = edge(start, end), edge(end, start)
        parts.append(f'<path d="M{x0:g} {y0:g} {x1:g} {y1:g}"/>')
        if verb:
            parts.append(f'<text class="verb" x="{(x0 + x1) / 2:g}" y="{(y0 + y1) / 2 - 5:g}">'
                         f"{verb}</text>")  # fmt: skip
    for x, y, name, more in BOXES.values():
        parts += [
            f'<rect x="{x - BOX_W / 2:g}" y="{y - BOX_H / 2:g}" width="{BOX_W}" height="{BOX_H}" '
            'rx="7"/>',
            f'<text x="{x}" y="{y - 3}">{name}</text>',
            f'<text class="small" x="{x}" y="{y + 13}">{more}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def edge(start: str, end: str) -> tuple[float, float]:
    """Where the line between two boxes' middles leaves the first box."""
    (x0, y0), (x1, y1) = BOXES[start][:2], BOXES[end][:2]
    dx, dy = x1 - x0, y1 - y0
    reach = min((BOX_W / 2 + 3) / abs(dx) if dx else 9, (BOX_H / 2 + 3) / abs(dy) if dy else 9)
    return x0 + dx * reach, y0 + dy * reach


if __name__ == "__main__":
    PAGE.write_text(drawing(), encoding="utf-8")
