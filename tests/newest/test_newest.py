"""The wheel, as users install it today: the newest version of everything, and no constraints."""

import re
import runpy
import subprocess
import sys
import tarfile
import textwrap
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import semgrad_guard

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("semgrad-guard")
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_installed_wheel_is_tested():
    assert "site-packages" in semgrad_guard.__file__
    assert not (Path(semgrad_guard.__file__).parents[1] / "tools").exists()


def test_torch_is_the_build_that_was_there():
    assert version("torch").startswith("2.13.0")


def test_everything_that_users_can_ask_for_is_installed():
    about = metadata("semgrad-guard")
    extras = {*about.get_all("Provides-Extra")} - {"dev"}
    requirements = map(Requirement, about.get_all("Requires-Dist"))
    asked = {
        requirement
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    }
    assert {r.name for r in asked} >= {"transformers", "lm-polygraph", "ray", "sqlalchemy"}
    assert [str(r) for r in asked if not r.specifier.contains(version(r.name), prereleases=True)] == []


def test_lm_polygraph_has_what_the_bench_extra_uses():
    script = """
        from lm_polygraph import estimators, stat_calculators
        from semgrad_guard.evaluation.polygraph import _RECIPES
        for recipe in _RECIPES.values():
            getattr(estimators, recipe.estimator), recipe.calculator and getattr(stat_calculators, recipe.calculator)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]  # a process of its own: its imports warn of much
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_source_distribution_holds_all_that_the_repository_does():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    (archive,) = (ROOT / ".cache" / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"Makefile", "constraints.txt", "docs/engine.md", "tests/models.py", ".ci/run"} <= names
    assert {*tracked} - names - {"", ".pre-commit-config.yaml"} == set()
    assert names - {*tracked} - {"PKG-INFO"} == set()


def test_the_readme_s_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    assert capsys.readouterr().out.splitlines()[:2] == ["Paris", "I am not sure."]


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])  # one of them serves
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["demo"], "Paris"), (["ask", "What is the capital of France?"], "Paris"), (["--help"], "calibrate")],
)
def test_commands_run(arguments, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", str(COMMAND), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    ours = [line for line in done.stderr.splitlines() if re.search(r"semgrad_guard\S*:\d+: \w*Warning", line)]
    assert ours == [], done.stderr
    assert "deprecated" not in "".join(line for line in done.stderr.splitlines() if line.startswith("[transformers]"))
