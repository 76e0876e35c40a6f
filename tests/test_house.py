"""The rules of the house: imports go down the tiers, names say what things are, --help is light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIERS = [
    {
        "errors",
        "progress",
        "threads",
        "lineage",
        "jsonl",
        "named",
        "console",
        "artifact",
        "store",
        "settings",
    },
    {"checkpoint", "neurons", "families"},
    {
        "live",
        "workers",
        "engines",
        "endpoint",
        "traces",
        "decoding",
        "activations",
        "training",
        "channels",
        "attribution",
        "contributions",
    },
    {
        "nex",
        "nopsd",
        "neureasoner",
        "estimate",
        "metrics",
        "answers",
        "truth",
        "ranking",
        "evidence_file",
        "neuron_weights",
        "consensus",
    },
    {"watch", "judges", "builtin", "report", "scoring"},
    {
        "merge",
        "rank",
        "read",
        "weights",
        "transplant",
        "extract_lora",
        "evaluate",
        "tasks",
        "distill",
        "curate",
        "pick",
        "sft",
        "trigger",
        "early_stop",
        "monitor",
        "serve",
    },
    {"soups", "show", "diff", "overview", "push", "recipes", "cli", "architectures", "__main__"},
]
TIER = {module: tier for tier, modules in enumerate(TIERS) for module in modules}
PAPERS, VERBS = {"nex", "nopsd", "neureasoner", "estimate"}, TIERS[5]
UPWARD = {("checkpoint", "builtin"), ("traces", "builtin")}
"""`builtin:NAME` is a way to name a path: these ask the family for one, and nothing else."""
CLASS_ON_TOP = {("surgeon.checkpoint.directory", "surgeon.checkpoint.loading")}
"""`Checkpoint.model` is written in a file of its own, which knows `Checkpoint`."""
FORBIDDEN = {"utils", "common", "helpers", "manager", "handler", "builder", "misc"}
SOURCES = sorted((ROOT / "surgeon").rglob("*.py"))


def module_of(file: Path) -> str:
    return file.relative_to(ROOT / "surgeon").parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """Modules of this package that `file` imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "surgeon":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surgeon."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("surgeon.")}
    return found & TIER.keys()


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down_the_tiers(file: Path):
    here = module_of(file)
    if here == "__init__":
        assert not imported(file)
        return
    assert here in TIER, f"{here} has no tier: add it to the tree in README.md and to TIERS"
    for other in imported(file) - {here}:
        if (here, other) in UPWARD:
            continue
        assert TIER[other] <= TIER[here], f"{here} (tier {TIER[here]}) imports {other}"
        assert not {here, other} <= PAPERS, "papers don't import each other"
        assert not {here, other} <= VERBS, "verbs don't import each other"


def test_no_files_import_each_other_in_a_circle():
    """Neither at the top, nor inside functions, nor for types."""
    names = {
        ".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f
        for f in SOURCES
    }
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, file in names.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                targets = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {t if t in names else node.module for t in targets} & names.keys()
    for above, below in CLASS_ON_TOP:
        graph[above].remove(below)
    for name, others in graph.items():
        others.discard(name)
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them


def test_module_names_say_what_is_inside():
    assert not {f.stem for f in SOURCES} & FORBIDDEN


def test_no_module_swallows_every_exception():
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler):
                named = getattr(node.type, "id", "everything" if node.type is None else None)
                broad = named in ("Exception", "BaseException", "everything")
                # Tidying up and raising again swallows nothing.
                assert not broad or isinstance(node.body[-1], ast.Raise), (file, node.lineno)


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from surgeon.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mergekit', 'peft', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- the shape of the code ------------------------------------------------------------------------

MOST_LINES, MOST_PARAMETERS, MOST_UNTYPED = 80, 12, 20
UNTYPED = {"Any", "dict[str, Any]", "list[dict[str, Any]]"}
BELOW_EQUATIONS = {"pathlib", "json", "os", "transformers", "surgeon.live", "surgeon.decoding"}
"""What a paper's module never imports: equations take arrays and return arrays. A trace is a value;
what samples one isn't."""
TREES = {file: ast.parse(file.read_text()) for file in SOURCES}


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(f, n) for f, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, kinds)]


def test_functions_are_short_and_take_few_parameters():
    for file, node in functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= MOST_LINES, f"{file}: {node.name} has {lines} lines"
        given = node.args
        n = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
        assert n <= MOST_PARAMETERS, f"{file}: {node.name} has {n} parameters"


def test_no_type_has_the_name_of_another():
    seen: dict[str, Path] = {}
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                assert node.name not in seen, f"{node.name}: {file} and {seen[node.name]}"
                seen[node.name] = file


ONE_KIND = {"__init__", "plan", "detectors"}
"""File names that stand in several rooms for one kind of thing: a verb's checked inputs; detectors
in the paper, and in the stage that trains them."""


def test_no_two_files_of_one_name_hide_different_things():
    names = [f.stem for f in SOURCES if "settings" not in f.parts and f.stem not in ONE_KIND]
    assert not {name for name in names if names.count(name) > 1}


def test_results_have_types():
    untyped = [
        f"{file}: {node.name}"
        for file, node in functions()
        if node.returns is not None
        and ast.unparse(node.returns).strip("'").removesuffix(" | None") in UNTYPED
    ]
    assert len(untyped) < MOST_UNTYPED, untyped


def test_private_names_stay_in_their_module():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surgeon"):
                names = [alias.name for alias in node.names]
                private = [n for n in names if n.startswith("_") and not n.endswith("__")]
                assert not private, f"{file} imports {private} from {node.module}"


def test_papers_touch_neither_models_nor_files():
    for file, tree in TREES.items():
        if module_of(file) not in PAPERS:
            continue
        types = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)]
        skipped = {id(inner) for n in types for inner in ast.walk(n)}
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and id(node) not in skipped:
                names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            for name in names:
                outside = {name, name.split(".")[0], ".".join(name.split(".")[:2])}
                assert not outside & BELOW_EQUATIONS, f"{file} imports {name}"
                assert "surgeon.traces.sampl" not in name, f"{file} imports {name}"


def test_the_lists_of_this_file_name_what_exists():
    here = {module_of(file) for file in SOURCES} - {"__init__"}
    assert set(TIER) == here
    for lower, upper in UPWARD:
        files = [f for f in SOURCES if module_of(f) == lower]
        assert any(upper in imported(f) for f in files), f"{lower} doesn't import {upper}"
