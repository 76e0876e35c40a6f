"""A page that stands alone: templates, style and script in one file that opens offline.

The page holds its style, script and charts; a content security policy forbids it every request.
Text from checkpoints and models is foreign: it reaches the page only through the templates' or
`Markup.format`'s escaping.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from surgeon.report.words import visible

HERE = Path(__file__).parent


def filled(
    template: str,
    *styles: str,
    scripts: Sequence[str] = ("page.js",),
    beside: bool = False,
    **values: Any,
) -> str:
    """A page from a template of this directory that extends `page.html.j2`, with its style sheets
    and scripts; `beside` lets it load scripts that lie beside it.

    Foreign text among the values is escaped, and control characters are drawn.
    """
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
    page = (
        _environment()
        .get_template(template)
        .render(
            style=Markup("".join((HERE / name).read_text(encoding="utf-8") for name in styles)),
            script=Markup(script),
            beside=beside,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )
    return visible(page)


def part(template: str, macro: str, **values: Any) -> Markup:
    """A part of a page: one macro of a template of this directory."""
    return Markup(getattr(_environment().get_template(template).module, macro)(**values))


def fragment(source: str, **values: Any) -> Markup:
    """A part of a page from the text of a template; the values are escaped."""
    return Markup(_environment().from_string(source).render(**values))


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
