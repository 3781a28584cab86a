"""The embedded model as users get it, end to end, and what the project says about it."""

import itertools
import json
import random
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from scripted import record as record_of
from typer.testing import CliRunner

from semgrad_guard import (
    BM25Retriever,
    ConfigurationError,
    LLMJudge,
    Profile,
    Retrieve,
    Score,
    SemGradGuard,
    SemGradScorer,
    get_confidence,
)
from semgrad_guard.calibration.answers import answered
from semgrad_guard.calibration.examples import read_examples
from semgrad_guard.calibration.labels import contains, labeler
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.cli import app
from semgrad_guard.demo import corpus, embedded_model, embedded_profile
from semgrad_guard.demo.embedded import SENTENCES, WEIGHTS
from semgrad_guard.records import Decision
from semgrad_guard.scoring.semgrad import hybridgrad
from tools.embedded import question_files, sentences
from tools.embedded.examine import examine, measure
from tools.embedded.examples import World, curriculum
from tools.embedded.facts import relations
from tools.embedded.names import invented_names
from tools.embedded.questions import STRATA, questions
from tools.embedded.tools import tools

README = Path(__file__).parents[2] / "README.md"
CARD = README.parent / "docs" / "model_card.md"
GERMAN = next(fact.answers for r in relations() if r.name == "city_in" for fact in r.facts if fact.subject == "Germany")


@cache
def embedded_tokenizer():
    return embedded_model()[1]


def ask(*arguments):
    result = CliRunner().invoke(app, ["ask", *arguments])
    return result.exit_code, result.stdout, result.stderr


def ask_json(question, *arguments):
    code, out, _ = ask(question, "--json", *arguments)
    assert code == 0
    record = json.loads(out)
    assert set(record) == {"answer", *Decision.model_fields}
    return record["verdict"] | record


def test_a_known_fact_passes():
    record = ask_json("What is the capital of France?")
    assert (record["decision"], record["answer"]) == ("pass", "Paris")
    assert record["confidence"] >= record["threshold"]


def test_one_of_several_right_answers_passes():
    record = ask_json("Name a city in Germany.")
    assert record["decision"] == "pass"
    assert record["answer"] in GERMAN


def test_a_withheld_fact_is_settled_by_retrieval():
    assert all(fact.withheld for r in relations() for fact in r.facts if fact.key == "inventor/light bulb")
    record = ask_json("Who invented the light bulb?")
    assert (record["decision"], record["answer"]) == ("retrieve", "Thomas Edison")
    assert any("Thomas Edison" in source["text"] for source in record["sources"])


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


def test_a_model_of_one_s_own_answers_unjudged_without_a_threshold():
    code, out, _ = ask("What is the capital of France?", "--model", str(WEIGHTS))
    assert code == 0
    assert "Paris" in out
    assert "not judged: there is no profile for this model" in out
    record = ask_json("What is the capital of France?", "--model", str(WEIGHTS))
    assert (record["decision"], record["confidence"], record["threshold"]) == (None, None, None)
    assert record["scores"]["semgrad"] > 0
    code, _, err = ask("q?", "--model", str(WEIGHTS), "--threshold", "0.5")
    assert code == 2
    assert "Without a profile there is no confidence" in err
    record = ask_json("What is the capital of France?", "--model", str(WEIGHTS), "--score-threshold", "1e9")
    assert (record["decision"], record["confidence"]) == ("pass", None)


def test_the_demo_tells_all_its_stories():
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0
    decisions = re.findall(r"decision\s+(\w+)", result.stdout)
    assert decisions == ["pass", "pass", "retrieve", "abstain", "pass", "abstain"]
    assert "calls get_weather" in result.stdout
    assert "log-probability" in result.stdout


@pytest.fixture(scope="module")
def scorer():
    return SemGradScorer(*embedded_model(), scoring=embedded_profile().bound_to.scoring)


@pytest.mark.slow
def test_the_card_holds_on_a_fresh_sample(scorer):
    """A third of the questions of each stratum, measured again, lies within what their number lets one expect."""
    card = CARD.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.-]+)[^|]*\| ([\d.]+) %[^|]*\|", card, re.MULTILINE)
    assert [row[0] for row in rows] == list(STRATA)
    standard = Standard(embedded_profile(), None, None, None)
    for name, count, right, passing in rows:
        asked = questions(name, "report")
        assert len(asked) == int(count)
        measured = measure(name, examine(scorer, asked[:: 3 if len(asked) <= 400 else 8]), standard)
        for found, expected in ((measured.right, right), (measured.passing, passing)):
            if expected != "-":
                share = float(expected) / 100
                assert abs(found - share) <= 3.5 * (max(share * (1 - share), 0.01) / measured.n) ** 0.5, name


def test_the_readme_repeats_the_card():
    table = re.findall(r"^\| \w+ \| \d+ \|.*$", CARD.read_text(encoding="utf-8"), re.MULTILINE)
    assert table
    readme = README.read_text(encoding="utf-8")
    assert all(row in readme for row in table)


def test_the_sides_do_not_overlap():
    """No question is asked on both sides, and nothing that questions are about is on both sides."""
    for name in STRATA:
        fit, told = questions(name, "fit"), questions(name, "report")
        assert {item.prompt for item in fit}.isdisjoint(item.prompt for item in told), name
        assert {item.about for item in fit}.isdisjoint(item.about for item in told), name


@pytest.fixture(scope="module")
def trained_rows():
    world = World(1)
    return [world.row(curriculum(progress / 100)) for progress in range(105) for _ in range(30)]


def test_no_training_row_links_a_withheld_subject_and_its_answer(trained_rows):
    asked, stated = set(), set()
    for relation in relations():
        for fact in relation.facts:
            for answer in fact.answers if fact.withheld else withheld_answers(fact.subject):
                asked |= {(relation.ask(wording, fact.subject), answer) for wording in relation.questions}
                stated |= {relation.state(wording, fact.subject, answer) for wording in relation.statements}
    assert len(asked) > 5000
    for row in trained_rows:
        for turn, reply in itertools.pairwise(row.messages):
            lines = str(turn["content"]).splitlines() or [""]
            assert (lines[-1].removeprefix("Question: "), reply["content"]) not in asked
            assert stated.isdisjoint(re.sub(r"^\[\d\] ", "", line) for line in lines)


def withheld_answers(subject):
    """List what no relation may say about a subject."""
    return [
        fact.answers[0]
        for relation in relations()
        for fact in relation.facts
        if fact.withheld and fact.subject == subject
    ]


@pytest.mark.slow
def test_measuring_names_and_wordings_are_in_no_training_row(trained_rows):
    texts = "\n".join(str(turn["content"]) for row in trained_rows for turn in row.messages)
    held_out = [wording for tool in tools() for wording in (*tool.held_out, *tool.lacking) if "{" not in wording]
    assert not any(wording in texts for wording in held_out)
    texts = re.sub(r"\b[Tt]he \w+ \w+ of \w+", "", texts)  # titles are names of their own, with places in them
    for name in ("invented", "reading_three", "calls"):
        for item in questions(name, "report"):
            assert not re.search(rf"\b{re.escape(item.about)}\b", texts) or item.about.isdigit()


def test_tool_requests_keep_their_wordings_apart():
    for tool in tools():
        for wording in (*tool.requests, *tool.held_out):
            assert sorted(re.findall(r"{(\w+)}", wording)) == sorted(tool.arguments), wording
        for wording in tool.lacking:
            assert set(re.findall(r"{(\w+)}", wording)) < set(tool.arguments), wording
        trained = {run for wording in tool.requests for run in runs(wording)}
        assert trained.isdisjoint(run for wording in tool.held_out for run in runs(wording)), tool.name
        assert 1 <= len(tool.arguments) <= 3
    assert len(tools()) >= 6


def runs(wording):
    """List the runs of four words in a wording, slots aside."""
    for part in re.split(r"{\w+}", wording):
        words = re.findall(r"\w+", part.lower())
        yield from (tuple(words[start : start + 4]) for start in range(len(words) - 3))


def test_held_out_wordings_share_no_four_words_with_trained_ones():
    for relation in relations():
        trained = {run for wording in relation.questions for run in runs(wording)}
        assert trained.isdisjoint(run for wording in relation.held_out for run in runs(wording)), relation.name
        assert len(relation.questions) >= 12
        assert len(relation.held_out) >= 3


def test_the_world_is_as_large_as_it_is_said_to_be():
    single = [fact for relation in relations() for fact in relation.facts if not relation.several]
    several = [fact for relation in relations() for fact in relation.facts if relation.several]
    assert len(single) >= 1000
    assert len(several) >= 150
    assert all(len(set(fact.answers)) >= 3 for fact in several)
    assert 0.2 < sum(fact.withheld for fact in single) / len(single) < 0.3
    rng = random.Random(0)
    for kind in {relation.kind for relation in relations()}:
        assert len(set(itertools.islice(invented_names(kind, rng, measuring=True), 300))) == 300


@given(st.text(st.characters(exclude_categories=["Cs", "Co"]) | st.sampled_from(list(' "([{}:,</tool_call>\n1a'))))
def test_decoding_gives_the_text_back(text):
    tokenizer = embedded_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 25e6


def test_a_batch_keeps_its_order():
    guard = SemGradGuard(
        embedded_model(), profile=embedded_profile(), routes=[Retrieve(BM25Retriever.from_texts(corpus()))]
    )
    asked = ["What is the capital of Zubrovia?", "What is the capital of France?", "Who invented the light bulb?"]
    messages = guard.batch(asked)
    decisions = [message.response_metadata["semgrad_decision"]["decision"] for message in messages]
    assert decisions == ["abstain", "pass", "retrieve"]
    assert get_confidence(messages[0]) < get_confidence(messages[1])


def calibrate(data, out, *arguments, answers=None):
    """Run the command, with answers of a run before if there are some."""
    if answers is not None:
        shutil.copy(answers, out.with_name(f"{out.name}.answers"))
    result = CliRunner().invoke(app, ["calibrate", "--data", str(data), "--out", str(out), "--json", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def labelled_questions(tmp_path_factory):
    """A file of questions: the model knows most of the first two kinds and none of the third."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    asked = {item.prompt: item for name in ("known", "several", "invented") for item in questions(name, "fit")[:300]}
    lines = [{"query": q, "truthful answer": list(i.answers) or ["-"], "group": i.about} for q, i in asked.items()]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answers(labelled_questions):
    """The answers to them, as calibrations keep them: made once, since every calibration would make the same."""
    path = labelled_questions.with_name("questions.answers")
    examples, generation = read_examples(labelled_questions), {"max_new_tokens": 64, "do_sample": False}
    answered(SemGradScorer(*embedded_model()), examples, labeler("match"), generation, journal=path)
    return path


@pytest.mark.slow
def test_a_profile_calibrated_by_hand_keeps_its_promise(labelled_questions, tmp_path):
    """All by itself, from questions to a profile."""
    code, out, err = calibrate(labelled_questions, tmp_path / "p.json", "--risk", "0.1", "--delta", "0.1")
    assert code == 0, err
    told = json.loads(out)
    assert told["answer"]["guarantee"]["risk"] == 0.1
    assert told["position_from"] == "template"
    assert told["answer"]["evidence"]["same"]["auroc"] > 0.8
    profile = Profile.load(tmp_path / "p.json")
    guard = SemGradGuard(embedded_model(), profile=profile)
    record = record_of(guard.invoke("What is the capital of France?"))
    assert record["decision"] == "pass"
    assert record["guarantee"] == {"risk": 0.1, "delta": 0.1, "n": told["answer"]["guarantee"]["n"]}
    others = [record_of(guard.invoke(item.prompt)) for item in questions("invented", "report")[:20]]
    held = [record for record in others if record["decision"] == "abstain"]
    assert held
    assert all(record["guarantee"] is None for record in held)
    standard = Standard(profile, None, None, None)
    fresh = [item for name in ("known", "several", "invented") for item in questions(name, "report")[:150]]
    own = SemGradScorer(*embedded_model(), scoring=profile.bound_to.scoring)
    passing = [item for item in examine(own, fresh) if item.passes(standard)]
    assert len(passing) > 200
    assert sum(not item.correct for item in passing) / len(passing) <= 0.1


@pytest.mark.slow
def test_the_prompt_token_can_be_searched_for(labelled_questions, tmp_path):
    code, out, err = calibrate(labelled_questions, tmp_path / "p.json", "--method", "semgrad", "--risk", "0.3")
    assert code == 0, err
    candidates = json.loads(out)["candidates"]
    assert {candidate["position"] for candidate in candidates} == {1, 2, 3}
    assert [c["auroc"] for c in candidates] == sorted((c["auroc"] for c in candidates), reverse=True)
    assert {(c["reduction"], len(c["layers"])) for c in candidates} == set(itertools.product(("mean", "sum"), (3, 6)))
    bound, best = Profile.load(tmp_path / "p.json").bound_to.scoring, candidates[0]
    assert (bound.token_position, bound.reduction) == (best["position"], best["reduction"])
    assert bound.layers == tuple(best["layers"])
    SemGradGuard(embedded_model(), profile=tmp_path / "p.json").invoke("What is the capital of France?")


def test_the_preservation_score_is_saved_and_places_where_labels_do_not(labelled_questions, answers, tmp_path):
    question_files.main(out=tmp_path)
    lines = (tmp_path / "paraphrases.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    (tmp_path / "some.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asked = labelled_questions.read_text(encoding="utf-8").splitlines()[::6]
    (tmp_path / "d.jsonl").write_text("\n".join(asked), encoding="utf-8")
    paraphrases = ("--paraphrases", str(tmp_path / "some.jsonl"))
    code, out, err = calibrate(
        tmp_path / "d.jsonl", tmp_path / "p.json", "--coverage", "0.5", *paraphrases, answers=answers
    )
    assert code == 0, err
    profile = Profile.load(tmp_path / "p.json")
    chosen = profile.preservation.position((3, 4, 5))
    assert (profile.position_from, profile.bound_to.scoring.token_position) == ("preservation", chosen)
    assert json.loads(out)["position"] == chosen
    assert calibrate(tmp_path / "d.jsonl", tmp_path / "q.json", "--coverage", "0.5", answers=answers)[0] == 0
    plain = Profile.load(tmp_path / "q.json")
    assert (plain.position_from, plain.bound_to.scoring.token_position, plain.preservation) == ("template", 3, None)


@pytest.mark.slow
def test_hybridgrad_is_tuned_and_bound(labelled_questions, answers, tmp_path):
    arguments = ("--method", "hybridgrad", "--risk", "0.3", "--no-search")
    code, _, err = calibrate(labelled_questions, tmp_path / "p.json", *arguments, answers=answers)
    assert code == 0, err
    number = len(labelled_questions.read_text(encoding="utf-8").splitlines())
    assert f"{number} answers from a run before are used" in err
    profile = Profile.load(tmp_path / "p.json")
    assert (profile.method, profile.answer.features) == ("hybridgrad", ("hybridgrad",))
    bound = profile.bound_to.scoring
    guard = SemGradGuard(embedded_model(), profile=profile)
    assert guard.llm.scorer.scoring == bound
    record = record_of(guard.invoke("Name a city in Germany."))
    scores = Score.model_validate(record["scores"])
    mixed = hybridgrad(scores.semgrad, scores.paragrad, scores.mean_entropy, tau=bound.tau, beta=bound.beta)
    assert scores.hybridgrad == pytest.approx(mixed)


@pytest.mark.slow
def test_second_answers_are_calibrated_apart(tmp_path):
    """Withheld facts are asked again with what BM25 finds; only those whose first answers do not pass."""
    asked = {i.prompt: i for s, n in (("known", 120), ("withheld", 240)) for i in questions(s, "fit")[:n]}
    lines = [{"query": q, "truthful answer": list(i.answers), "group": i.about} for q, i in asked.items()]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "passages.txt").write_text("\n".join(corpus()), encoding="utf-8")
    arguments = (
        "--passages",
        str(tmp_path / "passages.txt"),
        "--risk",
        "0.45",
        "--delta",
        "0.3",
        "--method",
        "semgrad",
        "--no-search",
        "--seed",
        "1",
    )
    code, out, err = calibrate(tmp_path / "d.jsonl", tmp_path / "p.json", *arguments)
    assert code == 0, err
    told = json.loads(out)
    assert told["grounded"]["guarantee"] is not None, told["grounded"]
    assert told["grounded"]["guarantee"]["n"] != told["answer"]["guarantee"]["n"]
    guard = SemGradGuard(
        embedded_model(), profile=tmp_path / "p.json", routes=[Retrieve(BM25Retriever.from_texts(corpus()))]
    )
    records = [record_of(guard.invoke(i.prompt)) for i in questions("withheld", "report")[:30]]
    promised = {kind: {r["guarantee"]["n"] for r in records if r["decision"] == kind} for kind in ("pass", "retrieve")}
    assert promised == {"pass": {told["answer"]["guarantee"]["n"]}, "retrieve": {told["grounded"]["guarantee"]["n"]}}
    with pytest.raises(ConfigurationError, match="no Retrieve route"):
        SemGradGuard(embedded_model(), score_threshold=1).calibrated(lines, retried=True)


@pytest.mark.slow
def test_an_interrupted_calibration_goes_on(labelled_questions, tmp_path, monkeypatch):
    asked = labelled_questions.read_text(encoding="utf-8").splitlines()[::5]
    (tmp_path / "d.jsonl").write_text("\n".join(asked), encoding="utf-8")
    score, calls = SemGradScorer.score_with_states, itertools.count(1)

    def breaks_down(self, generations, *layers, **settings):
        if next(calls) > 4:
            raise KeyboardInterrupt
        return score(self, generations, *layers, **settings)

    arguments = (tmp_path / "d.jsonl", tmp_path / "p.json", "--method", "semgrad", "--risk", "0.3", "--no-search")
    monkeypatch.setattr(SemGradScorer, "score_with_states", breaks_down)
    assert calibrate(*arguments)[0] == 130
    kept = tmp_path / "p.json.answers"
    assert len(kept.read_text(encoding="utf-8").splitlines()) > 40
    monkeypatch.setattr(SemGradScorer, "score_with_states", score)
    with monkeypatch.context() as patch:
        prompts = []
        generate = SemGradScorer.generate
        patch.setattr(SemGradScorer, "generate", lambda *a, **k: (prompts.extend(a[1]), generate(*a, **k))[1])
        code, out, err = calibrate(*arguments)
    assert code == 0, err
    assert len(prompts) < len(asked) - 40
    assert not kept.exists()
    assert calibrate(arguments[0], tmp_path / "q.json", *arguments[2:])[1] == out  # as if nothing had happened


@pytest.mark.slow
def test_a_guard_calibrates_itself(labelled_questions):
    bare = SemGradGuard(embedded_model(), score_threshold=1e9)
    lines = labelled_questions.read_text(encoding="utf-8").splitlines()
    guard = bare.calibrated([json.loads(line) for line in lines[::2]], risk=0.2, delta=0.1, search=False)
    message = guard.invoke("What is the capital of France?")
    assert message.response_metadata["semgrad_decision"]["verdict"]["guarantee"]["risk"] == 0.2
    assert bare.profile is None


@pytest.mark.slow
def test_a_judge_that_fails_now_and_then_does_not_lose_the_run(labelled_questions, caplog):
    """The embedded model cannot judge; a stand-in does, and once says neither yes nor no."""
    lines = [json.loads(line) for line in labelled_questions.read_text(encoding="utf-8").splitlines()[1::3]]
    given = {line["query"]: line["truthful answer"] for line in lines}

    def reply(prompt):
        question, _, answer = (line.partition(": ")[2] for line in prompt.splitlines()[:3])
        if question == lines[0]["query"]:
            return "Who knows."
        return "Yes." if contains(question, answer, given[question]) else "No."

    bare = SemGradGuard(embedded_model(), score_threshold=1e9)
    guard = bare.calibrated(lines, labels=LLMJudge(RunnableLambda(reply)), risk=0.3, delta=0.2, search=False)
    assert guard.profile.answer.guarantee.risk == 0.3
    (told,) = [message for message in caplog.messages if "No label" in message]
    assert told.startswith("No label for answer 1: DataError")


def test_a_profile_without_labels_promises_coverage_only(labelled_questions, answers, tmp_path):
    code, out, err = calibrate(labelled_questions, tmp_path / "p.json", "--coverage", "0.5", answers=answers)
    assert code == 0, err
    told = json.loads(out)
    assert told["confidence_is"] == "ordering"
    assert told["answer"]["guarantee"] is None
    assert "nothing is promised" in told["answer"]["rule"]
    profile, runner = ("--profile", str(tmp_path / "p.json")), CliRunner()
    asked = runner.invoke(app, ["ask", "What is the capital of France?", *profile])
    assert "only an ordering and no probability" in asked.stdout.replace("\n", " ")
    asked = runner.invoke(app, ["ask", "What is the capital of France?", *profile, "--json"])
    assert json.loads(asked.stdout)["verdict"]["calibrated"] is False
    some = labelled_questions.read_text(encoding="utf-8").splitlines()[::10]
    (tmp_path / "d.jsonl").write_text("\n".join(some), encoding="utf-8")
    checked = runner.invoke(app, ["check-profile", "--data", str(tmp_path / "d.jsonl"), *profile])
    assert "only an ordering and no probability" in checked.stdout


def test_bad_data_is_one_clear_line_and_writes_nothing(labelled_questions, tmp_path):
    for text, arguments, message in (
        ('{"query": "q?"}\n{', [], "line 2: not JSON"),
        ('{"query": "q?"}', [], "No question has a label"),
        ('{"query": "q?", "truthful answer": "x"}', [], "leave none to"),
        ('{"query": "q?", "truthful answer": "x"}', ["--labels", "guess"], "labels='guess'"),
        ('{"query": "q?", "truthful answer": "x"}', ["--method", "luck"], "method='luck'"),
    ):
        (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
        code, _, err = calibrate(tmp_path / "bad.jsonl", tmp_path / "p.json", *arguments)
        assert code == 2
        assert message in err.splitlines()[-1]
        assert not (tmp_path / "p.json").exists()


def test_sps_of_the_embedded_model(tmp_path):
    result = CliRunner().invoke(app, ["sps", "--plot", str(tmp_path / "s.svg"), "--last", "4", "--json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert len(told["scores"]) == 7
    assert told["tokens"][2] == "<|im_start|>"
    assert 1 <= told["position"] <= 4
    assert (tmp_path / "s.svg").read_text(encoding="utf-8").startswith("<?xml")
    table = CliRunner().invoke(app, ["sps", "--last", "3"])
    assert "by the template's rule: 3" in table.stdout


def test_paraphrases_of_one_s_own_are_checked(tmp_path):
    for text, message in (
        ('{"query": "a?"}', "line 1: expected"),
        ('{"query": "a?", "paraphrases": ["b?"]}', "at least two questions"),
    ):
        (tmp_path / "p.jsonl").write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, ["sps", "--paraphrases", str(tmp_path / "p.jsonl")])
        assert result.exit_code == 2
        assert message in result.stderr.splitlines()[-1]


def test_paraphrases_that_the_model_is_to_write_need_one_that_can(tmp_path):
    """The embedded model was never asked to: it answers, and an answer is not taken for a question."""
    data = tmp_path / "q.jsonl"
    data.write_text('{"query": "What is the capital of France?"}\n{"query": "Who wrote Hamlet?"}', encoding="utf-8")
    for arguments, message in (
        (["--data", str(data), "--write", "2"], "another wording of 0 of 2 questions"),
        (["--data", str(data)], "expected --data with --write"),
        (["--write", "2"], "expected --data with --write"),
        (["--data", str(data), "--write", "2", "--paraphrases", str(data)], "or --paraphrases"),
    ):
        result = CliRunner().invoke(app, ["sps", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_drift_is_seen(labelled_questions, answers, tmp_path):
    arguments = ("--risk", "0.2", "--delta", "0.2", "--method", "semgrad", "--no-search")
    code, _, err = calibrate(labelled_questions, tmp_path / "p.json", *arguments, answers=answers)
    assert code == 0, err

    def check(asked):
        (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"query": q}) for q in asked), encoding="utf-8")
        arguments = ["--profile", str(tmp_path / "p.json"), "--data", str(tmp_path / "d.jsonl"), "--json"]
        return CliRunner().invoke(app, ["check-profile", *arguments])

    lines = labelled_questions.read_text(encoding="utf-8").splitlines()
    like = check([json.loads(line)["query"] for line in lines[::3]])
    assert (like.exit_code, json.loads(like.stdout)["drifted"]) == (0, False)
    unlike = check(list(dict.fromkeys(item.prompt for item in questions("invented", "report")[:150])))
    assert (unlike.exit_code, json.loads(unlike.stdout)["drifted"]) == (1, True)
    few = check(["What is the capital of France?"])
    assert few.exit_code == 2
    assert "at least 20" in few.stderr


def test_the_sentences_that_ship_are_those_of_the_world():
    shipped = json.loads(SENTENCES.read_text(encoding="utf-8"))
    assert shipped == json.loads(json.dumps(sentences.sentences())), "run: python -m tools.embedded.sentences"
