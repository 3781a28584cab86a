"""Every Python block of the README, every example and every docstring example runs."""

import json
import re
import runpy
from pathlib import Path
from typing import get_args

import pytest
import torch
from langgraph.types import Command
from typer.testing import CliRunner

from semgrad_guard.cli import app
from semgrad_guard.evaluation.classifiers import BEM
from semgrad_guard.records import Cause
from tests.models import tiny_classifier, tiny_model, tiny_tokenizer

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


def _constant(folder, word):
    """Save a model of random weights that always says one word."""
    model, tokenizer = tiny_model("gpt2", tie_word_embeddings=False, n_positions=1024), tiny_tokenizer()
    tokenizer.add_tokens([f"{word} "])
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(f"{word} ")] += 10.0
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


def test_the_paper_is_reproduced_with_its_two_kinds_of_labels(tmp_path, monkeypatch, capsys):
    """Random weights in each role: an answering model, BEM, and a judge that says yes to everything."""
    data = tmp_path / "sciq.jsonl"
    lines = [{"query": f"What is {place}?", "truthful answer": ["x", "y"]} for place in range(4)]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    answering = tmp_path / "Qwen3-4B-Instruct-2507"
    for part in (tiny_model("qwen3", max_position_embeddings=512), tiny_tokenizer()):
        part.save_pretrained(answering)
    bem = tiny_classifier(tmp_path / "bem", labels=("different", "same"))
    judge = _constant(tmp_path / "judge", "yes")
    options = {"model": answering, "data": data, "out": tmp_path / "out", "bem": bem, "judge": judge}
    asked = []

    def labelled(self, question, answer, right):  # random weights would call all of them alike
        asked.append((question, tuple(right)))
        return len(asked) % 2 == 0

    monkeypatch.setattr(BEM, "__call__", labelled)
    monkeypatch.setattr("sys.argv", ["x", *(f"--{name}={value}" for name, value in options.items())])
    runpy.run_path(str(ROOT / "examples" / "reproduce_paper.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert asked == [(f"What is {place}?", ("x", "y")) for place in range(4)]
    assert re.search(r"4 labels by BEM\. \nAUROC.*\nSemGrad +[\d.]+ +\[.*\] +72\.20\nHybridGrad .* 72\.83\n", printed)
    assert "4 labels by a judge. all answers are right" in printed
    setting, *rows = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines())
    assert (setting["setting"]["prompt"], setting["setting"]["max_new_tokens"]) == ("paper", 150)
    assert max(len(row["response_ids"]) for row in rows) == 150
