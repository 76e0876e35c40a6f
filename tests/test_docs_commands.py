"""Every command of the pages runs, as a reader would type it: `make docs`.

A block marked `sh` or `bash` is run line by line, in one directory for each page. A comment
`<!-- not run: WHY -->` above a block says why it can't be.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from surgeon.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(
    r"(<!-- not run: (?P<why>[^>]+) -->\n)?^```(?:sh|bash)\n(?P<text>.*?)^```$", re.M | re.S
)


def commands(page: Path) -> list[str]:
    """The commands of the blocks that can be run, continued lines joined."""
    found = []
    for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if not block["why"]:
            lines = block["text"].replace("\\\n", " ").splitlines()
            found += [line for line in lines if line and not line.startswith("#")]
    return found


@pytest.mark.documented
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.stem)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        program, *words = shlex.split(command, comments=True)
        assert program == "surgeon", f"{page.name}: only surgeon's commands are run: {command}"
        result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
        assert result.exit_code == 0, f"{page.name}: {command}\n{result.output}"


def test_blocks_that_are_not_run_say_why():
    whys = [b["why"] for p in PAGES for b in BLOCK.finditer(p.read_text(encoding="utf-8"))]
    assert any(whys) and all(why is None or len(why.split()) > 1 for why in whys)
