"""Every Python block of the README, every example and every docstring example runs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


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


@pytest.mark.enable_socket
@pytest.mark.allow_hosts(["127.0.0.1"])  # one of them serves
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
