"""Without extras the package works, and whatever needs one says which."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "alembic", "datasets", "fastapi", "langchain", "langgraph", "lm_polygraph", "matplotlib", "openai", "opentelemetry",
    "prometheus_client", "pyarrow", "ray", "sentence_transformers", "sqlalchemy", "starlette", "uvicorn",
)  # fmt: skip


def command(*arguments):
    """Run the command in a process where none of them can be imported."""
    script = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); from semgrad_guard.cli import app; app()"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_a_question_is_answered():
    code, told, _ = command("ask", "What is the capital of France?", "--json")
    assert (code, "Paris" in told) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["serve"], "server"),
        (["serve", "--ray"], "server"),
        (["review"], "review"),
        (["review", "list"], "review"),
    ],
)
def test_what_needs_an_extra_names_it(arguments, extra):
    code, _, told = command(*arguments)
    assert code == 2
    assert f'pip install "semgrad-guard[{extra}]"' in told
