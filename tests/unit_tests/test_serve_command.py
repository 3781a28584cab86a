"""The command `serve`: what it refuses before it listens."""

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli import app


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
