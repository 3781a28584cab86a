"""`semgrad-guard evaluate` on the embedded model: results that survive an interruption, metrics, one report."""

import json
import re

import pytest
from typer.testing import CliRunner

from semgrad_guard.cli import app
from semgrad_guard.demo import embedded_profile
from semgrad_guard.demo.embedded import WEIGHTS
from tests.models import tiny_classifier
from tools.embedded import evaluation_page
from tools.embedded.evaluation_page import HARD
from tools.embedded.questions import questions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file with sixty questions in three strata."""
    lines = [
        {"query": item.prompt, "truthful answer": list(item.answers) or ["-"], "group": item.about, "stratum": name}
        for name in ("known", "several", "invented")
        for item in questions(name, "report")[:20]
    ]
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def evaluate(data, out, *arguments):
    return CliRunner().invoke(app, ["evaluate", "--data", str(data), "--out", str(out), *arguments])


def test_an_evaluation_writes_results_metrics_and_a_report(data, tmp_path):
    result = evaluate(data, tmp_path, "--samples", "4", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    whole = told["parts"]["All questions"]
    assert (whole["questions"], whole["labelled"], whole["failed"]) == (60, 60, 0)
    assert {"confidence (fused)", "SemGrad", "G-NLL", "length", "P(True)"} <= set(whole["methods"])
    assert whole["methods"]["confidence (fused)"]["auroc"] > 0.8
    assert all(
        row["auroc_interval"][0] <= row["auroc"] <= row["auroc_interval"][1] for row in whole["methods"].values()
    )
    assert told["parts"]["invented"]["missing"] == "all answers are wrong, so that nothing can be told apart"
    # The embedded model splits "True" and "False", so that P(True) fails and is no value.
    p_true = whole["methods"].pop("P(True)")
    assert (p_true["failed"], p_true["overhead"]) == (60, None)
    times = {name: row["overhead"]["median"] for name, row in whole["methods"].items()}
    assert times["length"] == 1 < times["SemGrad"] == times["G-NLL"] == whole["overhead"]["median"]
    assert times["self-consistency (same words)"] == times["semantic entropy (same words)"] > 1
    assert 0 < told["memory"]["generating_bytes"] <= told["memory"]["generating_and_scoring_bytes"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5
    assert "The surest errors" in page
    assert not re.search(r"(src|href)=.http|url\(http|<script", page)
    assert "{{" not in page
    assert "MiB with scoring" in page


@pytest.mark.slow
def test_a_model_without_a_profile_is_compared_without_confidence(data, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:4] + lines[-4:]), encoding="utf-8")
    result = evaluate(few, tmp_path, "--model", str(WEIGHTS), "--json")
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)["parts"]["All questions"]
    assert (whole["missing"], whole["confidence"]) == ("", None)
    assert "SemGrad" in whole["methods"]
    assert "Confidence: Brier" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_methods_are_chosen_by_name(data, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:2] + lines[-2:]), encoding="utf-8")
    result = evaluate(few, tmp_path, "--methods", "semantic-entropy,semgrad", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert list(told["parts"]["All questions"]["methods"]) == ["semantic entropy (same words)", "SemGrad"]
    first = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert (len(first["samples"]), first["p_true"]) == (10, None)
    other = evaluate(few, tmp_path, "--methods", "self-consistency")  # from the same samples: nothing is asked again
    assert other.exit_code == 0, other.stderr
    assert "self-consistency" in other.stdout
    refused = evaluate(few, tmp_path / "other", "--methods", "p-true")  # the embedded model splits "True"
    assert refused.exit_code == 0, refused.stderr
    assert re.search(r"P\(True\) +│ failed ", refused.stdout)


@pytest.mark.slow
def test_answers_are_compared_by_a_classifier_in_a_folder(data, tmp_path):
    few = tmp_path / "few.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:2] + lines[-2:]), encoding="utf-8")
    tiny_classifier(tmp_path / "nli")
    arguments = ("--samples", "3", "--nli", str(tmp_path / "nli"), "--json")
    result = evaluate(few, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["parts"]["All questions"]["methods"]
    assert {"self-consistency (entailment)", "semantic entropy (entailment)"} <= set(rows)
    first, *others = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["setting"]["entailment"] == str(tmp_path / "nli")
    assert all(len(json.loads(line)["meanings"]) == 4 for line in others)
    # Without the classifier it is another setting, which does not go on from these results.
    assert evaluate(few, tmp_path / "out", "--samples", "3").exit_code == 2


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(data, tmp_path):
    some = tmp_path / "some.jsonl"
    some.write_text("".join(data.read_text(encoding="utf-8").splitlines(keepends=True)[::3]), encoding="utf-8")
    assert evaluate(some, tmp_path, "--json").exit_code == 0
    path = tmp_path / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 21
    before = [json.loads(line) for line in lines]
    path.write_text("".join(lines[:10]) + lines[10][:25], encoding="utf-8")  # stopped in the middle of a line
    assert evaluate(some, tmp_path, "--json").exit_code == 0
    after = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert after[:10] == before[:10]
    assert [line["query"] for line in after[1:]] == [line["query"] for line in before[1:]]
    assert [line["answer"] for line in after[1:]] == [line["answer"] for line in before[1:]]
    other = evaluate(some, tmp_path, "--samples", "2")
    assert other.exit_code == 2
    assert "Choose another folder" in other.stderr


def test_few_questions_give_what_they_can(tmp_path):
    data = tmp_path / "one.jsonl"
    data.write_text('{"query": "What is the capital of France?", "truthful answer": ["Paris"]}', encoding="utf-8")
    result = evaluate(data, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "all answers are right, so that nothing can be told apart" in result.stdout
    assert "No comparison" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "rhyme"], "prompt='rhyme'"),
        (["--labels", "luck"], "labels='luck'"),
        (["--methods", "semgrad,luck"], "methods='luck': expected some of"),
        (["--methods", "degmat"], "--nli FOLDER"),
        (["--methods", "semantic-entropy-nli"], "--nli FOLDER"),
        (["--methods", "sar"], "--cross-encoder FOLDER"),
        (["--profile", "no.json"], "no.json"),
    ],
)
def test_bad_settings_are_one_clear_line(data, tmp_path, arguments, message):
    result = evaluate(data, tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_paraphrases_bring_the_premise_and_parts_what_is_put_together(data, tmp_path):
    asked = {item.prompt: item for name in ("known", "several", "invented") for item in questions(name, "report")[:20]}
    lines = [{"query": query, "paraphrases": list(item.reworded[:2])} for query, item in asked.items()]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    arguments = ("--paraphrases", str(tmp_path / "p.jsonl"), "--part", f"{HARD}=several,invented", "--samples", "2")
    result = evaluate(data, tmp_path / "out", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["parts"][HARD]["questions"] == 40
    assert told["premise"]["questions"] == 60
    assert told["placement"]["questions"] == 60
    assert told["preservation"]["questions"] == 60
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for title in ("What each kind of score is worth", "Where SemGrad is taken", "The premise", HARD):
        assert title in page
    kept = embedded_profile().answer
    guarantee = kept.guarantee.model_copy(update={"risk": 0.1, "seal": ""})  # a weaker promise, made in Python
    looser = kept.model_copy(update={"guarantee": guarantee})
    embedded_profile().model_copy(update={"answer": looser}).save(tmp_path / "looser.json")
    evaluation_page.main(tmp_path / "out", tmp_path / "looser.json", tmp_path / "out", tmp_path / "page.md")
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    auroc = told["parts"]["All questions"]["methods"]["SemGrad"]["auroc"]
    assert f"| AUROC of SemGrad, all | >= 0.88 | {auroc:.3f} [" in written
    assert written.count("| met |") + written.count("| **missed** |") == 18
    bad = evaluate(data, tmp_path / "bad", "--part", "nothing")
    assert (bad.exit_code, "part='nothing': expected a name and strata" in bad.stderr) == (2, True)
