"""`import semgrad_guard` and `--help` take a fraction of a second: what is heavy is imported when it is used."""

import ast
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import semgrad_guard

HEAVY = {
    "bm25s", "datasets", "fastapi", "jinja2", "langchain", "langchain_core", "langchain_huggingface", "langsmith",
    "matplotlib", "numpy", "pandas", "ray", "scipy", "sklearn", "sqlalchemy", "starlette", "tokenizers", "torch",
    "tqdm", "transformers", "uvicorn",
}  # fmt: skip
COMMANDS = ("demo", "ask", "calibrate", "evaluate", "check-profile", "sps", "bench", "serve", "review")
BASELINE = "import pydantic, typer"
# Of the baseline's CPU time, 0.09 s. The import took 0.4 of it and --help 3, while importing everything took 80.
MOST = {"import semgrad_guard": 3, "from semgrad_guard.cli import app; app(['--help'])": 10}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def loaded_after(code):
    """Name the heavy libraries that code loads in a process of its own."""
    result = run(f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)")
    assert result.returncode == 0, result.stderr
    return HEAVY & {name.partition(".")[0] for name in result.stdout.rpartition("LOADED ")[2].split()}


@pytest.mark.parametrize(
    "module", ["", ".cli", ".demo", ".errors", ".records", ".review", ".review.page", ".routing.routes", ".settings"]
)
def test_nothing_heavy_is_loaded_by_an_import(module):
    assert loaded_after(f"import semgrad_guard{module}") == set()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_nothing_heavy_is_loaded_by_help(command):
    arguments = [*command.split(), "--help"]
    assert loaded_after(f"from semgrad_guard.cli import app; app({arguments})") == set()


def test_a_name_loads_only_what_it_needs():
    assert loaded_after("from semgrad_guard import Score, Abstain, ConfigurationError") == set()
    assert loaded_after("import numpy; from semgrad_guard import Score") == {"numpy"}


def cpu_seconds(code):
    """Measure the CPU time of a process that runs code, the best of three."""

    def once():
        before = os.times()
        assert run(code).returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return min(once() for _ in range(3))


@pytest.mark.parametrize("code", MOST)
def test_imports_and_help_cost_little(code):
    assert cpu_seconds(code) <= MOST[code] * cpu_seconds(BASELINE)


def names_for_types():
    """Read the names that the package imports for type checkers, and where from."""
    tree = ast.parse(Path(semgrad_guard.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_editors_and_users_see_the_same_names():
    modules = {name: f"semgrad_guard.{module}" for name, module in semgrad_guard._MODULES.items()}
    assert modules == names_for_types()
    assert sorted({*modules, "__version__"}) == semgrad_guard.__all__


def test_names_come_from_where_they_are_defined():
    for name, module in names_for_types().items():
        value = getattr(semgrad_guard, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == module


def test_a_star_import_brings_all():
    namespace = {}
    exec("from semgrad_guard import *", namespace)
    assert set(semgrad_guard.__all__) <= set(namespace)


def test_names_are_listed_before_they_are_loaded():
    result = run("import semgrad_guard; print(*dir(semgrad_guard))")
    assert set(semgrad_guard.__all__) <= set(result.stdout.split())


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'SemGradGuards'"):
        _ = semgrad_guard.SemGradGuards
    with pytest.raises(ImportError):
        exec("from semgrad_guard import SemGradGuards")


@pytest.mark.parametrize("name", ["Score", "Abstain", "LowConfidenceError"])
def test_a_fresh_process_unpickles_what_it_has_not_loaded(name):
    result = run(f"import pickle; print(pickle.loads({pickle.dumps(getattr(semgrad_guard, name))!r}).__name__)")
    assert result.stdout.split() == [name]
