"""What goes wrong in the first hour with the command line: one line that says what, and no bars where nobody looks."""

import json
import logging
import re
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from scripted import decided
from transformers.utils import logging as bars
from typer.testing import CliRunner

from semgrad_guard._compat import quiet_loading
from semgrad_guard.cli import app
from semgrad_guard.demo.embedded import embedded_model
from semgrad_guard.langchain.metadata import with_record

IN_MEMORY = "sqlite:///file:x?mode=memory"


@pytest.fixture(autouse=True)
def logs_as_before():
    """Take off what commands that serve have put on the loggers: it writes to a stream that is closed by then."""
    root, package = logging.getLogger(), logging.getLogger("semgrad_guard")
    handlers, level = list(root.handlers), package.level
    yield
    root.handlers[:] = handlers
    package.setLevel(level)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMGRAD_GUARD_REVIEWS", raising=False)
    (tmp_path / "dir").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "cut.jsonl").write_text('{"query": "a", "truthful answer": ["b"]}\n{"query"')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "digits.jsonl").write_text('{"query": "a", "correct": ' + "1" * 5000)
    (tmp_path / "long.csv").write_text('query,answer\n"' + "x" * 200_000)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ask q --corpus missing.txt", "Cannot read the corpus missing.txt"),
        ("ask q --corpus dir", "Cannot read the corpus dir"),
        ("ask q --corpus latin.txt", "Cannot read the corpus latin.txt"),
        ("ask q --corpus empty.txt", "has no text"),
        ("ask q --profile missing.json", "missing.json"),
        ("ask q --model dir", "Cannot load 'dir'"),
        ("ask q --threshold nan", "threshold=nan"),
        ("calibrate --out o.json --data missing.jsonl", "Cannot read missing.jsonl"),
        ("calibrate --out o.json --data dir", "Cannot read dir"),
        ("calibrate --out o.json --data latin.txt", "Cannot read latin.txt"),
        ("calibrate --out o.json --data empty.txt", "holds no questions"),
        ("calibrate --out o.json --data cut.jsonl", "cut.jsonl, line 2: not JSON"),
        ("calibrate --out o.json --data deep.jsonl", "deep.jsonl, line 1: not JSON"),
        ("calibrate --out o.json --data digits.jsonl", "digits.jsonl, line 1: not JSON"),
        ("calibrate --out o.json --data long.csv", "long.csv, line 2: no table"),
        ("serve --deadline inf", "deadline=inf: expected seconds > 0"),
        ("serve --grace 1e300", "grace=1e+300: expected seconds >= 0"),
        ("serve --corpus dir", "Cannot read the corpus dir"),
        ("serve --api-keys dir", "Cannot read the API keys in dir"),
        ("serve --api-keys latin.txt", "Cannot read the API keys in latin.txt"),
        (f"serve --reviews {IN_MEMORY} --policy review", "in memory"),
        ("review --port 0 --lease nan", "--lease=nan: expected seconds > 0"),
        ("review --port 0 --lease inf", "--lease=inf: expected seconds > 0"),
        (f"review list --queue {IN_MEMORY}", "in memory"),
        ("review list --queue mysql://ann:hidden@host/name", "expected sqlite or postgresql"),
        ("review list --queue postgresql://ann:hidden@host:port/name", "malformed"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, message, folder):
    before = sorted(folder.iterdir())
    result = CliRunner().invoke(app, arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert "hidden" not in line
    assert sorted(folder.iterdir()) == before


def test_an_empty_queue_is_named_and_ages_are_lengths_of_time(folder):
    from semgrad_guard.review import ReviewQueue

    ReviewQueue("sqlite:///reviews.db").close()
    assert (
        CliRunner().invoke(app, ["review", "list"]).stdout == "0 of 0 reviews in ReviewQueue('sqlite:///reviews.db')\n"
    )
    result = CliRunner().invoke(app, ["review", "purge", "--yes", "--older-than", "9" * 400 + "w"])
    assert result.exit_code == 2
    assert "--older-than=inf: expected seconds >= 0" in result.stderr
    assert "64 bits" in CliRunner().invoke(app, ["review", "list", "--limit", "9" * 30]).stderr


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("hub_silent", [True, False])
def test_loading_bars_are_afterwards_as_they_were(shown, hub_silent):
    before = bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
        (disable_progress_bars if hub_silent else enable_progress_bars)()
        with quiet_loading(), quiet_loading():
            assert not bars.is_progress_bar_enabled()
            assert are_progress_bars_disabled()
        assert (bars.is_progress_bar_enabled(), are_progress_bars_disabled()) == (shown, hub_silent)
    finally:
        (bars.enable_progress_bar if before[0] else bars.disable_progress_bar)()
        (disable_progress_bars if before[1] else enable_progress_bars)()


@pytest.mark.parametrize(
    ("watched", "as_json", "shown"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_terminal_sees_loading_bars_unless_json_is_wanted(watched, as_json, shown, monkeypatch, tmp_path):
    model, tokenizer = embedded_model()
    with quiet_loading():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(sys.modules["semgrad_guard.cli.app"], "watched", lambda: watched)
    command = ["ask", "What is the capital of France?", "--model", str(tmp_path), "--score-threshold", "1"]
    result = CliRunner().invoke(app, [*command, *(["--json"] if as_json else [])])
    assert result.exit_code == 0, result.output
    assert ("Loading weights" in result.stderr) is shown
    if as_json:
        assert json.loads(result.stdout)["answer"] == "Paris"
        assert result.stderr == ""
    assert bars.is_progress_bar_enabled()


def test_an_answer_of_backslashes_is_printed_in_linear_time(monkeypatch):
    answer = "\\" * 50_000

    class Guard:
        def __init__(self, *given, **settings):
            pass

        def invoke(self, question):
            from langchain_core.messages import AIMessage

            return with_record(AIMessage(answer), decided(reason=answer))

    monkeypatch.setattr("semgrad_guard.langchain.guard.SemGradGuard", Guard)
    result = CliRunner().invoke(app, ["ask", "q"])  # markup would take more than half a minute for each
    assert re.sub(r"\s", "", result.stdout) == f"{answer}pass:{answer}"
