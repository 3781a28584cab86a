"""The command `serve`: what it refuses before it listens."""

import json
import logging

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli import app
from semgrad_guard.serving.server import Server


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "SEMGRAD_GUARD_API_KEY"),
        (["--policy", "trust"], "expected one of abstain, annotate, review"),
        (["--allow", "all"], "expected one of abstain, annotate, review"),
        (["--policy", "review"], "--reviews"),
        (["--policy", "annotate", "--allow", "abstain"], "not among those allowed"),
        (["--api-keys", "/nowhere"], "Cannot read the API keys"),
        (["--corpus", "/nowhere"], "Cannot read the corpus"),
    ],
)
def test_refused_with_what_to_do(arguments, said, monkeypatch):
    monkeypatch.delenv("SEMGRAD_GUARD_API_KEY", raising=False)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("as_json", [False, True])
def test_what_goes_wrong_is_logged(monkeypatch, as_json):
    def run(server):
        for name in ("semgrad_guard.serving.requests", "uvicorn.error"):
            logging.getLogger(name).error("Request 1 failed")

    monkeypatch.setattr(Server, "run", run)
    told = CliRunner().invoke(app, ["serve", *(["--json-logs"] if as_json else [])]).stderr.splitlines()
    lines = [line for line in told if "Request 1 failed" in line]
    assert len(lines) == 2
    if as_json:
        names = [json.loads(line)["logger"] for line in lines]
        assert names == ["semgrad_guard.serving.requests", "uvicorn.error"]
