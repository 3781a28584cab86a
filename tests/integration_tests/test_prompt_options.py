"""`--prompt`, `--system`, `--max-new-tokens` and `--token-position`, and what a calibration says of its questions."""

import json

import pytest
from langchain_core.messages import HumanMessage
from typer.testing import CliRunner

from semgrad_guard import Profile, SemGradScorer
from semgrad_guard.calibration.prompts import PromptForm
from semgrad_guard.cli import app
from semgrad_guard.demo import embedded_model
from semgrad_guard.errors import ConfigurationError
from semgrad_guard.langchain.chat_model import ChatSemGrad
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.serving.server import Setup
from semgrad_guard.serving.work import ChatJob, ScoreJob
from tools.embedded.questions import questions

FRANCE = "What is the capital of France?"
SHOTS = [
    {"role": "user", "content": "What is the capital of Spain?"},
    {"role": "assistant", "content": "Madrid"},
    {"role": "user", "content": "{query}"},
]


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions, prompts, and a profile that was calibrated with one of these."""
    folder = tmp_path_factory.mktemp("prompts")
    asked = {item.prompt: item for name in ("known", "invented") for item in questions(name, "fit")[:70]}
    lines = [{"query": q, "truthful answer": list(i.answers), "group": i.about} for q, i in asked.items()]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "shots.json").write_text(json.dumps(SHOTS), encoding="utf-8")
    (folder / "other.txt").write_text("Briefly: {query}\n", encoding="utf-8")
    arguments = ("--prompt", folder / "shots.json", "--method", "semgrad", "--risk", "0.3", "--delta", "0.2", "--json")
    code, out, err = run("calibrate", "--data", folder / "d.jsonl", "--out", folder / "p.json", *arguments)
    assert code == 0, err
    (folder / "told.json").write_text(out, encoding="utf-8")
    return folder


@pytest.fixture
def prompts(monkeypatch):
    found, generate = [], SemGradScorer.generate
    monkeypatch.setattr(SemGradScorer, "generate", lambda *a, **k: (found.append((a[1], k)), generate(*a, **k))[1])
    return found


def ids(messages):
    return encode_chat(embedded_model()[1], messages)


def test_what_is_calibrated_is_bound_and_counted(folder):
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    form = PromptForm.of_turns(SHOTS)
    assert Profile.load(folder / "p.json").bound_to.prompt == form
    assert told["prompt"] == form.fingerprint
    kinds = ("right", "wrong", "unlabelled", "cut_off", "empty", "not_scored", "not_its_own", "too_long")
    assert told["questions"] == sum(told[kind] for kind in kinds) == 140
    assert told["scored"] == told["right"] + told["wrong"]
    assert not (folder / "p.json.answers").exists()


def test_ask_puts_a_question_as_it_was_calibrated(folder, prompts):
    asked = ids(PromptForm.of_turns(SHOTS).messages(FRANCE))
    code, out, err = run("ask", FRANCE, "--profile", folder / "p.json", "--json")
    assert code == 0, err
    assert prompts[0][0] == [asked]
    assert json.loads(out)["verdict"]["confidence"] is not None
    for arguments, message in (
        (("--prompt", folder / "other.txt"), "calibrated with the prompt"),
        (("--system", "Be brief."), "calibrated with the prompt"),
        (("--token-position", "9"), "token_position=9"),
        (("--prompt", folder / "none.txt"), "Cannot read the prompt"),
    ):
        code, _, err = run("ask", FRANCE, "--profile", folder / "p.json", *arguments)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err
    assert run("ask", FRANCE, "--system", "Be brief.")[0] == 2  # the embedded profile is of questions by themselves


def test_without_a_profile_the_options_say_how_it_is_asked(folder, prompts):
    form = PromptForm.read(folder / "other.txt").with_system("Be brief.")
    arguments = ("--prompt", folder / "other.txt", "--system", "Be brief.", "--max-new-tokens", "1")
    code, out, err = run("ask", FRANCE, "--score-threshold", "1e9", *arguments, "--token-position", "2", "--json")
    assert code == 0, err
    assert prompts[0][0] == [ids(form.messages(FRANCE))]
    assert prompts[0][1]["max_new_tokens"] == 1
    assert "cut off at the limit of 1 tokens" in json.loads(out)["reason"]
    for option in ("--max-new-tokens", "--token-position"):
        assert run("ask", FRANCE, "--score-threshold", "1", option, "0")[0] == 2


def test_a_run_that_failed_is_taken_up_again_with_other_settings(folder, tmp_path, prompts):
    command = ("calibrate", "--data", folder / "d.jsonl", "--out", tmp_path / "p.json", "--method", "semgrad")
    code, _, err = run(*command, "--max-new-tokens", "1")
    assert code == 2
    assert "16 of 16 answers were cut off at 1 tokens and cannot be used: give --max-new-tokens 2" in err
    assert (
        "No answer can be used. 140 questions: 0 right, 0 wrong, 140 cut off at the token limit" in err.splitlines()[-1]
    )
    assert "p.json.answers keeps the answers" in err
    assert sum(len(batch) for batch, _ in prompts) == 140
    prompts.clear()
    # Enough tokens, but labels that are all wrong: too few, and it says how many.
    (tmp_path / "wrong.jsonl").write_text(
        (folder / "d.jsonl").read_text(encoding="utf-8").replace('"truthful answer": ["', '"truthful answer": ["not '),
        encoding="utf-8",
    )
    code, _, err = run(*command[:2], tmp_path / "wrong.jsonl", *command[3:])
    assert code == 2
    assert "0 answers from a run before are used, 140 to other prompts or with other settings are not" in err
    assert "At this rate it takes at least" in err.splitlines()[-1]
    assert sum(len(batch) for batch, _ in prompts) == 140
    prompts.clear()
    # Other labels, another risk and another method: nothing is asked again.
    code, out, err = run(*command, "--risk", "0.3", "--delta", "0.2", "--token-position", "2", "--json")
    assert code == 0, err
    assert prompts == []
    assert "140 answers from a run before are used" in err
    told = json.loads(out)
    assert {candidate["position"] for candidate in told["candidates"]} == {2}
    assert (told["position"], told["position_from"]) == (2, "caller")
    assert [path.name for path in tmp_path.glob("*.answers")] == []


def test_examples_with_messages_are_calibrated_as_they_are_sent(folder, tmp_path, prompts):
    lines = [json.loads(line) for line in (folder / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    form = PromptForm.of_turns(SHOTS)
    plain = [{**line, "messages": form.messages(line["query"])} for line in lines]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, plain)), encoding="utf-8")
    command = ("calibrate", "--data", tmp_path / "d.jsonl", "--out", tmp_path / "p.json", "--coverage", "0.5", "--json")
    code, out, err = run(*command)
    assert code == 0, err
    assert json.loads(out)["prompt"] == form.fingerprint
    assert list(prompts[0][0][0]) == ids(form.messages(lines[0]["query"]))
    code, _, err = run(*command, "--system", "Be brief.")
    assert code == 2
    assert "messages of its own, and a prompt is given too" in err
    code, _, err = run("evaluate", "--data", tmp_path / "d.jsonl", "--out", tmp_path / "results")
    assert code == 2
    assert "messages of its own" in err


@pytest.mark.slow
def test_evaluate_asks_with_the_profile_s_prompt_or_another(folder, tmp_path, prompts):
    lines = (folder / "d.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "d.jsonl").write_text("\n".join(lines[:4] + lines[-4:]), encoding="utf-8")
    command = ("evaluate", "--data", tmp_path / "d.jsonl", "--methods", "semgrad", "--profile", folder / "p.json")
    query = json.loads(lines[0])["query"]
    code, _, err = run(*command, "--out", tmp_path / "own")
    assert code == 0, err
    assert prompts[0][0] == [ids(PromptForm.of_turns(SHOTS).messages(query))]
    assert "another prompt" not in err
    prompts.clear()
    arguments = ("--prompt", folder / "other.txt", "--system", "Be brief.")
    code, _, err = run(*command, "--out", tmp_path / "other", *arguments)
    assert code == 0, err
    form = PromptForm.read(folder / "other.txt").with_system("Be brief.")
    assert prompts[0][0] == [ids(form.messages(query))]
    assert "calibrated with another prompt" in err
    setting = json.loads((tmp_path / "other" / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])["setting"]
    assert setting["prompt"] == form.fingerprint
    code, _, err = run(*command, "--out", tmp_path / "own", "--token-position", "9")
    assert code == 2
    assert "token_position=9" in err


def test_fresh_questions_are_put_as_they_were_calibrated(folder, prompts):
    code, out, err = run("check-profile", "--profile", folder / "p.json", "--data", folder / "d.jsonl", "--json")
    assert code == 0, err
    assert json.loads(out)["drifted"] is False
    query = json.loads((folder / "d.jsonl").read_text(encoding="utf-8").splitlines()[0])["query"]
    assert list(prompts[0][0][0]) == ids(PromptForm.of_turns(SHOTS).messages(query))


def test_a_service_asks_as_it_was_calibrated(folder, prompts):
    worker = Setup(profile=folder / "p.json", max_new_tokens=5).worker()
    asked = ids(PromptForm.of_turns(SHOTS).messages(FRANCE))
    messages = [{"role": "user", "content": FRANCE}]
    (answer,) = worker.run([ChatJob.model_validate({"messages": messages})])
    assert prompts[0][0] == [asked]
    assert prompts[0][1]["max_new_tokens"] == 5
    assert answer.usage.prompt == len(asked)
    (scored,) = worker.run([ScoreJob.model_validate({"messages": messages, "response": answer.text or "Paris"})])
    assert scored.usage.prompt == len(asked)
    for wrong in ({"prompt": PromptForm.of_text("Briefly: {query}")}, {"token_position": 9}):
        with pytest.raises(ConfigurationError, match="was calibrated with"):
            Setup(profile=folder / "p.json", **wrong).worker()
    bare = Setup(score_threshold=1e9, prompt=PromptForm.of_text("Briefly: {query}"), token_position=2).worker()
    prompts.clear()
    bare.run([ChatJob.model_validate({"messages": messages})])
    assert prompts[0][0] == [ids([{"role": "user", "content": f"Briefly: {FRANCE}"}])]
    assert bare._guard.llm.scorer.token_position == 2


def test_serve_refuses_a_prompt_that_cannot_be_used(folder):
    for arguments, message in (
        (("--prompt", folder / "none.txt"), "Cannot read the prompt"),
        (("--system", " "), "system message is empty"),
        (("--profile", folder / "p.json", "--system", "Be brief."), "was calibrated with the prompt"),
    ):
        code, _, err = run("serve", *arguments)
        assert code == 2
        assert message in err


def test_a_chat_model_s_own_limits_are_kept_beside_a_prompt(folder):
    """A prompt of the guard's counts when the room for the answer is measured."""
    worker = Setup(score_threshold=1e9, prompt=PromptForm.of_text("word " * 300 + "{query}")).worker()
    context = embedded_model()[0].config.max_position_embeddings
    chat = ChatSemGrad.from_model(*embedded_model())
    prompt = len(ids(worker._guard.prompt.messages(FRANCE)))
    settings = worker._settings(
        ChatJob.model_validate({"messages": [{"role": "user", "content": FRANCE}]}), [HumanMessage(FRANCE)], ()
    )
    usual = chat.model.generation_config.max_new_tokens or 256
    assert settings["max_new_tokens"] == max(1, min(usual, context - prompt))
