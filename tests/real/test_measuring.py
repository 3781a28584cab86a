"""SmolLM2 through the commands and the service: calibration, evaluation here and on Ray, and the HTTP service."""

import json
import os
import subprocess
import sys

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from semgrad_guard import ChatSemGrad, Profile, SemGradGuard, get_confidence
from semgrad_guard.cli import app
from semgrad_guard.evaluation.run import read_results
from semgrad_guard.serving.app import application
from semgrad_guard.serving.local import LocalEngine
from semgrad_guard.serving.server import Setup

# Twenty of the 27 countries, of 176, whose capital the model names when it is asked as here. They are chosen so that
# forty questions bring right and wrong answers enough to fit on; the result says nothing about how good the scores are.
KNOWN = (
    "Argentina",
    "Austria",
    "Bulgaria",
    "Cambodia",
    "China",
    "Colombia",
    "Croatia",
    "India",
    "Israel",
    "Italy",
    "Malaysia",
    "Mexico",
    "Poland",
    "Portugal",
    "Russia",
    "Slovenia",
    "Spain",
    "Sweden",
    "Tunisia",
    "Vietnam",
)


@pytest.fixture(scope="module")
def rows(facts):
    """Twenty questions about capitals that the model knows, and as many about invented countries."""
    lines = [
        json.loads(line)
        for half in ("calibration", "test")
        for line in (facts / f"{half}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    country = "What is the capital of {}?"
    known = [row for row in lines if any(row["query"] == country.format(name) for name in KNOWN)]
    invented = [row for row in lines if row["stratum"] == "invented" and "capital" in row["query"]]
    assert len(known) == len(KNOWN)
    return [row for pair in zip(known, invented, strict=False) for row in pair]


def written(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_guard_is_calibrated(brief, rows, tmp_path):
    guard = SemGradGuard(ChatSemGrad.from_model(*brief, generation={"max_new_tokens": 8}), score_threshold=0.0)
    calibrated = guard.calibrated(rows, risk=0.5, delta=0.5, labels="contains", method="semgrad", search=False)
    calibrated.profile.save(tmp_path / "profile.json")
    again = SemGradGuard(calibrated.llm, profile=Profile.load(tmp_path / "profile.json"), threshold=0.5)
    known, invented = again.batch(["What is the capital of France?", "What is the capital of Zubrovia?"])
    assert 0 <= get_confidence(invented) < get_confidence(known) < 1
    assert known.response_metadata["semgrad_decision"]["decision"] == "pass"


def test_an_evaluation_is_the_same_here_and_on_ray(folder, rows, tmp_path):
    data = written(rows[:6], tmp_path / "questions.jsonl")
    options = ["--data", str(data), "--model", str(folder), "--labels", "contains", "--max-new-tokens", "8"]
    plain = CliRunner().invoke(app, ["evaluate", *options, "--out", str(tmp_path / "plain"), "--json"])
    assert plain.exit_code == 0, plain.stderr
    assert json.loads(plain.stdout)["parts"]["All questions"]["questions"] == 6
    command = [sys.executable, "-c", "from semgrad_guard.cli import app; app()", "evaluate", *options]
    spread = subprocess.run(
        [*command, "--out", str(tmp_path / "spread"), "--ray", "--actors", "1", "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert spread.returncode == 0, spread.stderr[-3000:]
    here, there = (
        {result.query: result for result in read_results(tmp_path / name / "results.jsonl")}
        for name in ("plain", "spread")
    )
    assert here.keys() == there.keys()
    for query, result in here.items():
        assert there[query].answer == result.answer
        assert there[query].score.semgrad == pytest.approx(result.score.semgrad, rel=1e-4)


def test_the_service_answers(folder):
    worker = Setup(model=str(folder), score_threshold=1e9, quiet=True).worker()
    question = {"role": "user", "content": "What is the capital of France?"}
    with TestClient(application(LocalEngine(worker, max_wait=0.0))) as client:
        reply = client.post("/v1/chat/completions", json={"model": str(folder), "messages": [question]})
        assert reply.status_code == 200, reply.text
        (choice,) = reply.json()["choices"]
        assert choice["message"]["content"] == "Paris"
        streamed = client.post(
            "/v1/chat/completions", json={"model": str(folder), "messages": [question], "stream": True}
        )
        assert "Paris" in streamed.text
        assert streamed.text.rstrip().endswith("data: [DONE]")


def test_the_command_line_takes_the_file(file):
    arguments = ["ask", "What is the capital of France?", "--model", str(file), "--score-threshold", "1e9", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Paris" in json.loads(result.stdout)["answer"]
