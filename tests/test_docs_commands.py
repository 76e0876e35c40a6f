"""The blocks of the pages: commands run as a reader types them (`make docs`), and bind always.

A block marked `sh` is run line by line, one marked `python` as a whole, each page in a directory of
its own. A comment `<!-- not run: WHY -->` above a block says why it can't be run. The commands of
every block, of the README's too, are parsed and bound to their settings by the tests of every day.
"""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from surgeon import recipes
from surgeon.cli import cli

ROOT = Path(__file__).parents[1]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>.*)\n(?P<text>(?s:.*?))^```$", re.M
)
LANGUAGES = {"sh", "console", "python", "yaml", "json", "text"}
COMMAND = re.compile(r"(\$ )?(surgeon|make|pip|python|torchrun|accelerate|git|curl|docker) ")
OTHERS = {"pip", "git", "cd", "eval", "docker", "torchrun", "accelerate", "curl", "pre-commit"}
"""Programs of the pages that aren't of this repository."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    why: str | None
    """Why it isn't run; None where it is."""

    def lines(self) -> list[str]:
        """Its commands, continued lines joined; of a console the lines after a prompt."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line and not line.startswith("#")]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks of these languages; of all without."""
    found = [
        Block(page, fence["language"], fence["text"], fence["why"])
        for fence in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]
    return [block for block in found if not languages or block.language in languages]


def words_of(command: str) -> list[str]:
    """The words as a shell sees them: `#` begins a comment only after white space."""
    return shlex.split(re.sub(r"\s#.*", "", command))


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


RUN = [page for page in SITE if any(b.why is None for b in blocks(page, "sh", "python"))]


@pytest.mark.documented
@pytest.mark.parametrize("page", RUN, ids=ids)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "sh", "python"):
        if block.why is not None:
            continue
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), {})
            continue
        for command in block.lines():
            program, *words = words_of(command)
            assert program == "surgeon", f"only surgeon's commands are run: {command}"
            result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
            assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_block_says_what_it_is(page: Path):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"a block without a language: {block.text[:80]}"
        assert block.why is None or len(block.why.split()) > 1, f"says not why: {block.text[:80]}"
        first = block.text.partition("\n")[0]
        assert block.language != "text" or not COMMAND.match(first), f"commands are sh: {first}"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "python":
            ast.parse(block.text)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh", "console")], ids=ids)
def test_every_command_of_a_page_binds(page: Path, monkeypatch: pytest.MonkeyPatch):
    """Also those that can't be run: names, options and values are those of this version."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recipes.RecipeStep, "run", lambda step, **_: step.settings())
    makefile = (ROOT / "Makefile").read_text()
    for command in [line for b in blocks(page, "sh", "console") for line in b.lines()]:
        program, *words = words_of(command.partition(" | ")[0])
        while "=" in program:
            program, *words = words
        files = [word for word in words if word.startswith(("recipes/", "merges/"))]
        assert all((ROOT / file).is_file() for file in files), command
        if program.endswith("surgeon") and words:
            result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
            assert result.exit_code == 0, f"{command}\n{result.output}"
        elif program == "make":
            assert f"\n{words[0]}:" in makefile, command
        elif program.endswith("python") and words[0] == "-m":
            place = ROOT / words[1].replace(".", "/")
            there = place.is_dir() or place.with_suffix(".py").is_file()
            assert there or not words[1].startswith(("surgeon", "benchmarks")), command
        else:
            assert program.rpartition("/")[2] in {*OTHERS, "surgeon"}, command


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=ids)
def test_every_recipe_of_a_page_binds(page: Path, tmp_path: Path):
    for block in blocks(page, "yaml"):
        if block.why is None:
            file = tmp_path / "recipe.yaml"
            file.write_text(block.text)
            assert all(step.settings() for step in recipes.load(file))
