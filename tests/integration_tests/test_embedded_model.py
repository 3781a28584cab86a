"""The embedded model as users get it, end to end, and what the project says about it."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semgrad_guard import BM25Retriever, Retrieve, SemGradGuard, SemGradScorer, get_confidence
from semgrad_guard.cli import app
from semgrad_guard.demo import corpus, embedded_model, embedded_profile
from semgrad_guard.demo.embedded import WEIGHTS
from semgrad_guard.demo.examine import examine
from semgrad_guard.demo.facts import relations
from semgrad_guard.demo.questions import CLOSED_BOOK, GROUNDED, questions

README = Path(__file__).parents[2] / "README.md"
ITALIAN = next(fact.answers for r in relations() if r.name == "city_in" for fact in r.facts if fact.subject == "Italy")


def ask(*arguments):
    result = CliRunner().invoke(app, ["ask", *arguments])
    return result.exit_code, result.stdout, result.stderr


def ask_json(question, *arguments):
    code, out, _ = ask(question, "--json", *arguments)
    assert code == 0
    record = json.loads(out)
    keys = {"answer", "decision", "confidence", "scores", "threshold", "reason", "steps", "sources"}
    assert set(record) == keys
    return record


def test_a_known_fact_passes():
    record = ask_json("What is the capital of France?")
    assert (record["decision"], record["answer"]) == ("pass", "Paris")
    assert record["confidence"] >= record["threshold"]


def test_one_of_several_right_answers_passes():
    record = ask_json("Name a city in Italy.")
    assert record["decision"] == "pass"
    assert record["answer"] in ITALIAN


def test_a_withheld_fact_is_settled_by_retrieval():
    assert all(fact.withheld for r in relations() for fact in r.facts if fact.key == "painter/Mona Lisa")
    record = ask_json("Who painted Mona Lisa?")
    assert (record["decision"], record["answer"]) == ("retrieve", "Leonardo da Vinci")
    assert any("Leonardo da Vinci" in source["text"] for source in record["sources"])


def test_an_invented_entity_is_abstained_from():
    record = ask_json("What is the capital of Zubrovia?")
    assert record["decision"] == "abstain"
    assert record["confidence"] < record["threshold"]


def test_a_threshold_of_the_caller_s_counts():
    assert ask_json("What is the capital of France?", "--threshold", "1.0")["decision"] != "pass"
    assert ask_json("What is the capital of Zubrovia?", "--threshold", "0.0")["decision"] == "pass"


def test_for_people_the_answer_comes_first():
    code, out, _ = ask("What is the capital of France?")
    assert code == 0
    assert out.splitlines()[0] == "Paris"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "The question is empty"),
        (["q?", "--threshold", "7"], "threshold=7.0"),
        (["q?", "--profile", "nowhere.json"], "Cannot read the profile nowhere.json"),
        (["q?", "--model", "no/such folder"], "Cannot load"),
        (["q?", "--corpus", "nowhere.txt"], "Cannot read the corpus"),
        (["x " * 2000], None),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message):
    code, out, err = ask(*arguments)
    if message is None:  # not bad input, but more than the model can read: nothing passes
        assert code == 0
        assert "abstain: no answer: PromptTooLongError" in out
        return
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_of_one_s_own_needs_a_threshold():
    code, _, err = ask("q?", "--model", str(WEIGHTS))
    assert code == 2
    assert "Without a profile there is no confidence" in err
    record = ask_json("What is the capital of France?", "--model", str(WEIGHTS), "--score-threshold", "1e9")
    assert (record["decision"], record["confidence"]) == ("pass", None)


def test_the_demo_tells_all_four_stories():
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0
    assert re.findall(r"decision\s+(\w+)", result.stdout) == ["pass", "pass", "retrieve", "abstain"]
    assert "log-probability" in result.stdout


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(*embedded_model(), span="all")


def test_the_readme_s_report_holds_on_a_fresh_sample(scorer):
    """A quarter of the questions of each stratum, measured again, lies within what their number lets one expect."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\S+)[ %]* \| (\S+) %", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row[0] for row in rows] == [*CLOSED_BOOK, *GROUNDED]
    profile = embedded_profile()
    for name, count, _, passing in rows:
        asked = questions(name, "report")
        assert len(asked) == int(count)
        examined = examine(scorer, asked[::4])
        section = profile.section(grounded=name in GROUNDED)
        share = sum(section.passes(item.score) for item in examined) / len(examined)
        expected = float(passing) / 100
        assert abs(share - expected) <= 3.5 * (max(expected * (1 - expected), 0.01) / len(examined)) ** 0.5, name


def test_the_sides_and_strata_do_not_overlap():
    for name in (*CLOSED_BOOK, *GROUNDED):
        fit = {question.prompt for question in questions(name, "fit")}
        assert fit.isdisjoint(question.prompt for question in questions(name, "report"))


def test_held_out_wordings_share_no_four_words_with_trained_ones():
    def runs(wording):
        for part in wording.split("{x}"):
            words = re.findall(r"\w+", part.lower())
            yield from (tuple(words[start : start + 4]) for start in range(len(words) - 3))

    for relation in relations():
        trained = {run for wording in relation.questions for run in runs(wording)}
        assert trained.isdisjoint(run for wording in relation.held_out for run in runs(wording)), relation.name
        assert len(relation.questions) >= 10
        assert len(relation.held_out) >= 3


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 20e6


def test_a_batch_keeps_its_order():
    guard = SemGradGuard(
        embedded_model(), profile=embedded_profile(), routes=[Retrieve(BM25Retriever.from_texts(corpus()))]
    )
    asked = ["What is the capital of Zubrovia?", "What is the capital of France?", "Who painted Mona Lisa?"]
    messages = guard.batch(asked)
    decisions = [message.response_metadata["semgrad"]["decision"] for message in messages]
    assert decisions == ["abstain", "pass", "retrieve"]
    assert get_confidence(messages[0]) < get_confidence(messages[1])
