"""Every Python block of the README, every example and every docstring example runs."""

import re
import runpy
from pathlib import Path
from typing import get_args

import pytest
from langgraph.types import Command
from typer.testing import CliRunner

from semgrad_guard.cli import app
from semgrad_guard.records import Cause

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CAUSES = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8"), re.MULTILINE)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONG = {"calibrate_and_guard.py", "reproduce_paper.py"}


def test_every_cause_is_explained():
    assert sorted(set(CAUSES) - {"semgrad", "semgrad_decision"}) == sorted(get_args(Cause))


def test_the_readme_s_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    namespace = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["Paris", "I am not sure."]
    assert printed[2].startswith("pass confidence")
    assert printed[3] == "Thomas Edison"
    assert printed[4] == "There is no such place."
    assert printed[5] == "{'place': 'Zubrovia'}"
    assert printed[7] == "Where? []"
    assert printed[9] == "The weather in Oslo: sunny, 14 degrees."  # resumed, and it went out
    (listed,) = [line for line in README.splitlines() if line.startswith("    semgrad-guard review list")]
    shown = CliRunner().invoke(app, listed.partition("#")[0].split()[1:]).stdout
    assert "respond by ann" in shown  # what the lines before it have put there
    assert shown.endswith("1 of 1 reviews\n")


@pytest.mark.parametrize(
    "decision",
    [
        {"type": "edit", "edited_action": {"name": "get_weather", "args": {"place": "Rome"}}},
        {"type": "edit", "edited_action": {"name": "get_weather", "args": {"place": "Zubrovia"}}},
    ],
    ids=["Rome", "Zubrovia"],
)
def test_the_readme_s_agent_answers_when_it_is_resumed(decision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (agent,) = [block for block in BLOCKS if "create_agent(" in block]
    (tool,) = [block for block in BLOCKS if "def get_weather" in block]
    namespace = {}
    for block in (BLOCKS[0], "from semgrad_guard import SemGradGuard, Abstain\n" + tool, agent):
        exec(compile(block, "README", "exec"), namespace)
    resumed, thread = namespace["agent"], {"configurable": {"thread_id": "2"}}
    resumed.invoke({"messages": [("user", "What is the weather like?")]}, thread)
    last = resumed.invoke(Command(resume={"decisions": [decision]}), thread)["messages"][-1]
    place = decision["edited_action"]["args"]["place"]
    assert last.content == f"The weather in {place}: sunny, 14 degrees."


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])  # one of them serves
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name, marks=[pytest.mark.slow] * (path.name in LONG)) for path in EXAMPLES],
)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
