"""`semgrad-guard evaluate --ray`: killed in the middle it goes on, and finds what the plain command finds."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from semgrad_guard.evaluation.run import read_results
from tools.embedded import question_files

QUESTIONS, PART = 200, 10
COMMAND = (sys.executable, "-c", "from semgrad_guard.cli import app; app()", "evaluate")


@pytest.fixture
def command(data):
    """Starts the command, and ends whatever of it is left."""
    started = []

    def start(out, *more):
        started.append(
            subprocess.Popen(
                [*COMMAND, "--data", str(data), "--out", str(out), *more],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Ray's own agents take minutes to notice that it is gone
        process.communicate()


def finish(process):
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]


def workers(session):
    """Give the processes of a command's Ray that do the work, by name."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = status.read_text().rpartition(")")
            name = (status.parent / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if int(rest.split()[3]) == session and "MapWorker" in name:
            found.append(name)
    return found


def until(condition, seconds):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two hundred questions from all strata of the embedded model's test."""
    folder = tmp_path_factory.mktemp("data")
    question_files.main(folder)
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = folder / "questions.jsonl"
    path.write_text("".join(lines[:: len(lines) // QUESTIONS][:QUESTIONS]), encoding="utf-8")
    return path


def comparable(folder):
    """Give the results and the metrics of a run without what a clock or the machine has a say in."""
    results = [result.model_copy(update={"seconds": {}}) for result in read_results(folder / "results.jsonl")]
    whole = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["parts"]["All questions"]
    methods = {
        name: {figure: value for figure, value in row.items() if figure != "overhead"}
        for name, row in whole["methods"].items()
    }
    return {result.query: result for result in results}, methods, whole["differences"]


def test_a_killed_run_goes_on_and_gives_what_the_plain_command_gives(command, tmp_path):
    plain, spread = tmp_path / "plain", tmp_path / "spread"
    finish(command(plain))
    driver = command(spread, "--ray", "--actors", "2", "--part-size", str(PART))
    parts = spread / "parts"
    until(lambda: driver.poll() is not None or len(list(parts.glob("*.parquet"))) >= 3, 120)
    assert workers(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    until(lambda: not workers(driver.pid), 60)  # they notice, and end
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 3 <= len(before) < QUESTIONS // PART
    finish(command(spread, "--ray", "--actors", "2", "--part-size", str(PART)))
    after = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(after) == QUESTIONS // PART
    assert {path: after[path] for path in before} == before
    assert [path.suffix for path in parts.iterdir() if path not in after] == []
    assert comparable(spread) == comparable(plain)
    assert 0 < sum(bool(result.correct) for result in read_results(spread / "results.jsonl")) < QUESTIONS
