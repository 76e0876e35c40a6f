"""The pages: made pages are current, links lead somewhere, the README stays short."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def maker(name: str) -> Any:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_verbs_hold_their_settings():
    for page, content in maker("reference").pages().items():
        assert page.read_text(encoding="utf-8") == content, f"{page.name}: run `make reference`"


def test_the_page_of_formats_is_current():
    made = maker("formats").text()
    assert (ROOT / "docs" / "formats.md").read_text(encoding="utf-8") == made, (
        "run `make reference`"
    )


def test_the_picture_is_current():
    assert (ROOT / "docs" / "flow.svg").read_text(encoding="utf-8") == maker("flow").drawing()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_example_is_on_the_page_of_extending():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for file in (ROOT / "examples").glob("*.py"):
        assert f"(../examples/{file.name})" in page, file.name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_reading_is_in_the_list_with_its_settings_and_where_it_is_argued():
    from surgeon.settings import leaves
    from surgeon.settings.verbs import VERBS

    text = (ROOT / "docs" / "readings.md").read_text(encoding="utf-8")
    rows = {cells[1]: cells for line in text.splitlines()
            if len(cells := [c.strip() for c in re.split(r"(?<!\\)\|", line)]) == 8}  # fmt: skip
    places = [*(ROOT / "surgeon").rglob("*.py"), *PAGES]
    named = {n for f in places for n in re.findall(r"\bR\d{1,2}\b", f.read_text(encoding="utf-8"))}
    numbered = {name for name in rows if re.fullmatch(r"R\d+", name)}
    assert numbered == named == {f"R{n}" for n in range(1, len(numbered) + 1)}
    known = {leaf.name for row in VERBS.values() for leaf in leaves(row.load_settings())}
    for name in numbered:
        _, _, _, _, setting, default, argued, _ = rows[name]
        assert default and argued, name
        found = [s.partition("=")[0] for s in re.findall(r"`([^`]+)`", setting)]
        assert (setting == "none" or found) and set(found) <= known, (name, setting)


def test_every_page_is_in_the_site():
    """mkdocs says so too, with --strict, and takes a minute for it."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    shown = re.findall(r"- (?:[^:\n]+: )?(\S+\.md)$", text, re.M)
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(shown) == sorted({*pages} - {"formats.head.md"})
