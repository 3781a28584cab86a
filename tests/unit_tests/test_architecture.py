"""Imports go downwards only; the list *is* the diagram of the package."""

import ast
import importlib
import pkgutil
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import semgrad_guard

PACKAGE = Path(semgrad_guard.__file__).parent
# A room may import what stands above it in this list, and nothing else of the package.
STAGES = [
    "errors",
    "settings",
    "_compat",
    "plain",
    "cluster",
    "records",
    "model",
    "scoring",
    "calibration",
    "routing",
    "web",
    "review",
    "langchain",
    "observability",
    "agents",
    "evaluation",
    "demo",
    "serving",
    "cli",
]
# routing judges nothing and scores nothing: it knows the records only.
ALLOWED = {stage: set(STAGES[:place]) for place, stage in enumerate(STAGES)}
ALLOWED["cluster"] = {"errors"}
ALLOWED["routing"] = {"errors", "settings", "records"}
ALLOWED["web"] = {"_compat", "errors", "settings"}
ALLOWED["review"] = {"errors", "settings", "records", "routing", "web"}
# The stages that know nothing of LangChain.
PURE = [
    "errors",
    "settings",
    "plain",
    "cluster",
    "records",
    "model",
    "scoring",
    "calibration",
    "routing",
    "web",
    "review",
]


def imports():
    """Yield (file, room, imported module) for every import in the package that is there at run time."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hints = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        for_types = {id(inner) for hint in hints for inner in ast.walk(hint)}
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((path, parts[0], alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                yield path, parts[0], node.module


@pytest.mark.parametrize("module", [found.name for found in pkgutil.walk_packages([str(PACKAGE)], "semgrad_guard.")])
def test_every_module_can_be_imported(module):
    importlib.import_module(module)


def test_every_room_is_in_the_diagram():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__pycache__"} == set(STAGES)


def test_imports_go_down():
    found = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path, room, module in imports()
        if module.startswith("semgrad_guard.")
        and (target := module.split(".")[1]) != room
        and target not in ALLOWED[room]
    ]
    assert found == []


def test_langchain_stays_in_its_room():
    found = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path, room, module in imports()
        if room in PURE and module.startswith("langchain")
    ]
    assert found == []


def test_modules_can_be_read_in_one_sitting():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_everything_exported_is_there():
    assert sorted(semgrad_guard.__all__) == semgrad_guard.__all__
    assert all(hasattr(semgrad_guard, name) for name in semgrad_guard.__all__)


def test_no_import_goes_in_a_circle():
    """As modules are loaded; `Profile.fit` imports what builds profiles when it is called."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(("semgrad_guard", *path.relative_to(PACKAGE).with_suffix("").parts))
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        modules = {node.module for node in statements if isinstance(node, ast.ImportFrom)}
        graph[name] = {module for module in modules if module.startswith("semgrad_guard.")}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises over a circle
