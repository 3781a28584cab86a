"""The wheel, as users install it today: the newest version of everything, and no constraints."""

import logging
import re
import runpy
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import transformers

import semgrad_guard

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = Path(sys.executable).with_name("semgrad-guard")
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
# The numbers, the guard, its settings and its agents, by the tests that hold them elsewhere.
SUBSET = (
    "unit_tests/test_compat.py",
    "unit_tests/test_scores_against_reference.py",
    "unit_tests/test_scorer.py",
    "unit_tests/test_guard.py",
    "unit_tests/test_chat_settings.py",
    "unit_tests/test_withheld_drafts.py",
    "integration_tests/test_chat_model.py",
    "integration_tests/test_agents.py",
)


@pytest.fixture(autouse=True)
def _nothing_deprecated(caplog):
    """Nothing that transformers logs as deprecated is used by this package."""
    loggers = [logging.getLogger(name) for name in ("transformers", "transformers.generation")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield
    for logger in loggers:
        logger.removeHandler(caplog.handler)
    told = [record.getMessage() for record in caplog.records if "deprecat" in record.getMessage().lower()]
    assert told == []


def test_the_installed_wheel_is_tested():
    assert "site-packages" in semgrad_guard.__file__
    assert not (Path(semgrad_guard.__file__).parents[1] / "tools").exists()
    print(
        f"transformers {transformers.__version__}, langchain-core {version('langchain-core')}, torch {version('torch')}"
    )


def test_torch_is_the_build_that_was_there():
    assert version("torch").startswith("2.13.0")


def test_the_source_distribution_holds_what_its_tests_need():
    (archive,) = (ROOT / ".cache" / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    expected = {"Makefile", "README.md", "constraints.txt", "docs/engine.md", "docs/grafana.json", "tests/models.py"}
    expected |= {
        ".ci/run",
        "tools/fetch_models.py",
        "examples/lcel_chain.py",
        "semgrad_guard/demo/weights/profile.json",
    }
    assert expected - names == set()
    assert not [name for name in names if name.startswith((".cache", ".venv"))]


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
        [sys.executable, "-W", "error::DeprecationWarning:semgrad_guard", str(COMMAND), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.parametrize("file", SUBSET)
def test_the_numbers_and_the_guard_hold(file):
    """Run a file of the other tests against the wheel, in a process of its own."""
    settings = ["--config-file", str(HERE / "pytest.ini"), "--rootdir", str(HERE)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *settings, str(ROOT / "tests" / file)],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
