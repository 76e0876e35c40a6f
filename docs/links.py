"""A hook of mkdocs: links out of docs/ become plain text, unless `repo_url` says where they lead.

On a forge `[nex.py](../surgeon/nex.py)` leads to the file; the site doesn't hold it.
"""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page without links that leave docs/."""
    docs = Path(config["docs_dir"]).resolve()
    here = (docs / page.file.src_uri).parent

    def kept(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if config["repo_url"]:
            return f"[{link[1]}]({config['repo_url']}/blob/main/{target.relative_to(docs.parent)})"
        return link[1]

    return LINK.sub(kept, markdown)
