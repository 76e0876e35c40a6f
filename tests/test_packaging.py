"""What a user installs: what is declared is what is imported, and a wheel that works by itself."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from surgeon import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ELSEWHERE = {
    "trl": "benchmarks/ compares with it",
    "tensorboard": "accelerate asks for it when a run names that tracker",
}
"""Packages of extras that surgeon itself doesn't import."""
WITHOUT = {"ray", "vllm"}
"""Extras that `dev` doesn't bring: their modules are called as their packages are."""


def plain(requirement: str) -> str:
    """The name of a package as PyPI compares it."""
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """Packages that anything in surgeon imports, at the top or when it runs."""
    providers, found = packages_distributions(), set()
    for file in (ROOT / "surgeon").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            for name in names:
                top = str(name).partition(".")[0]
                if top not in sys.stdlib_module_names and top != "surgeon":
                    found.add(plain(top if top in WITHOUT else providers[top][0]))
    return found


def test_what_is_imported_is_declared_and_nothing_else():
    extras = PROJECT["optional-dependencies"]
    users = {plain(r) for name, found in extras.items() if name != "dev" for r in found}
    declared = {plain(requirement) for requirement in PROJECT["dependencies"]} | users
    assert imported() - declared == set()
    assert declared - imported() == set(ELSEWHERE)


def test_the_version_stands_in_one_place_and_is_told_in_two_others():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.packaged
def test_a_wheel_from_the_sdist_works_in_a_fresh_environment(tmp_path: Path):
    """`make wheel`: minutes, as torch and everything else is installed anew."""
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    clean = {name: value for name, value in os.environ.items() if name not in own}
    environment = {**clean, "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "OMP_NUM_THREADS": "1"}

    def ran(*words: str | Path) -> str:
        done = subprocess.run(
            [*map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    ran(sys.executable, "-m", "build", ROOT, "--outdir", tmp_path / "dist")
    (sdist,), (wheel,) = [[*(tmp_path / "dist").glob(kind)] for kind in ("*.tar.gz", "*.whl")]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CITATION.cff", "tests/conftest.py"} <= inside
    held = set(zipfile.ZipFile(wheel).namelist())
    assert "surgeon/py.typed" in held and any(n.startswith("surgeon/builtin/data/") for n in held)
    assert all(name.startswith(("surgeon/", f"surgeon-{__version__}.dist-info/")) for name in held)

    ran(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env/bin/python"
    ran(python, "-m", "pip", "install", "--quiet", "torch")
    ran(python, "-m", "pip", "install", "--quiet", wheel)
    ran(python, "-m", "pip", "check")
    surgeon = tmp_path / "env/bin/surgeon"
    assert f"surgeon, version {__version__}" in ran(surgeon, "--version")
    assert "merge-sweep" in ran(surgeon, "--help")
    where = ran(python, "-c", "import surgeon; print(surgeon.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "env")
    answers = ["--samples", "2", "--max-tokens", "160", "--row-tokens", "4", "--top-k", "9"]
    told = ran(surgeon, "rank", "builtin:instruct", "builtin:thinking", "--mini-set",
               "builtin:mini-set[:4]", *answers, "--out", "ranking", "--json")  # fmt: skip
    ranking = json.loads(told)
    assert [c["name"] for c in ranking["candidates"]] != []
    assert (tmp_path / "ranking/report.html").is_file()
