"""How questions are put: prompt files, LangChain's templates, and forms around the question of a conversation."""

import json

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate, PromptTemplate
from models import tiny_model, tiny_tokenizer
from scripted import profile, scripted

from semgrad_guard import Abstain, ChatSemGrad, ConfigurationError, DataError, SemGradGuard
from semgrad_guard.calibration.examples import Example, calibrated_prompt, read_examples
from semgrad_guard.calibration.profile import agreed_prompt, agreed_scoring
from semgrad_guard.calibration.prompts import BARE, PromptForm
from semgrad_guard.langchain.answering import Asking
from semgrad_guard.langchain.messages import labelled_example, prompt_form
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.scoring.settings import ScoringSettings

SHOTS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Q: {query}"},
]


def asked(query):
    return [*SHOTS[:-1], {"role": "user", "content": f"Q: {query}"}]


def test_a_prompt_file_is_a_text_or_messages(tmp_path):
    (tmp_path / "p.txt").write_text('Give JSON like {"a": 1} or {}.\n{query}\n', encoding="utf-8")
    form = PromptForm.read(tmp_path / "p.txt")
    assert form.messages("Why {query}?") == [
        {"role": "user", "content": 'Give JSON like {"a": 1} or {}.\nWhy {query}?'}
    ]
    for name in ("p.json", "messages.txt"):
        (tmp_path / name).write_text("\ufeff" + json.dumps(SHOTS), encoding="utf-8")
        assert PromptForm.read(tmp_path / name).messages("x?") == asked("x?")
    assert PromptForm.of_text("{query}") == BARE
    assert PromptForm.of_turns(SHOTS).fingerprint != BARE.fingerprint
    assert PromptForm.of_turns(SHOTS[1:]).with_system("Be brief.") == PromptForm.of_turns(SHOTS)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "Answer briefly.", r"no \{query\}"),
        ("p.txt", "{query} from {context}", r"message 1 has \{context\}, which nothing fills in"),
        ("p.txt", "{{query}}", r"no \{query\}|\{\{query\}\}, which nothing"),
        ("p.txt", "", r"no \{query\}"),
        ("p.json", "[", "is not JSON"),
        ("p.json", '{"role": "user", "content": "{query}"}', "is a list of messages"),
        ("p.json", "[]", "the last message must be the user's"),
        ("p.json", '[{"role": "tool", "content": "{query}"}]', "message 1 has the role 'tool'; expected one of system"),
        ("p.json", '[{"role": "user"}]', "message 1: content"),
        ("p.json", '[{"role": "user", "content": 3}]', "message 1: content"),
        ("p.json", '[{"role": "user", "content": "{query}", "name": "x"}]', "message 1: name"),
        ("p.json", json.dumps([*SHOTS, {"role": "assistant", "content": "x"}]), "the last message must be the user's"),
        ("p.json", json.dumps([SHOTS[3], SHOTS[3]]), r"message 1 has \{query\} too"),
        ("p.json", json.dumps([SHOTS[1], SHOTS[0], SHOTS[3]]), "message 2 is a system message; only the first"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_by_what_is_wrong(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        PromptForm.read(tmp_path / name)


def test_a_missing_prompt_and_two_system_messages_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Cannot read the prompt"):
        PromptForm.read(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe{query}")
    with pytest.raises(ConfigurationError, match="Cannot read the prompt"):
        PromptForm.read(tmp_path / "latin.txt")
    with pytest.raises(ConfigurationError, match="a system message of its own"):
        PromptForm.of_turns(SHOTS).with_system("Be long.")
    with pytest.raises(ConfigurationError, match="system message is empty"):
        BARE.with_system(" ")


def test_prompts_of_langchain_become_forms():
    shots = FewShotChatMessagePromptTemplate(
        examples=[{"q": "What is 1 + 1?", "a": "2"}],
        example_prompt=ChatPromptTemplate([("human", "{q}"), ("ai", "{a}")]),
    )
    template = ChatPromptTemplate([("system", "Be {how}."), shots, ("human", "Q: {question}")]).partial(how="brief")
    messages = [("system", "Be brief."), HumanMessage("What is 1 + 1?"), AIMessage("2"), ("human", "Q: {query}")]
    for prompt in (template, messages, SHOTS, PromptForm.of_turns(SHOTS)):
        assert prompt_form(prompt).messages("x?") == asked("x?")
    assert prompt_form("Q: {query}") == prompt_form(PromptTemplate.from_template("Q: {input}"))
    escaped = ChatPromptTemplate([("human", 'Like {{"a": {{b}}}}: {q}')])
    assert prompt_form(escaped).worded("x?") == 'Like {"a": {b}}: x?'
    assert prompt_form(None) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (ChatPromptTemplate([("human", "{a} {b}")]), "the variables a, b; expected one"),
        (ChatPromptTemplate([("human", "hello")]), "the variables none"),
        (ChatPromptTemplate([("human", "{{ q|upper }}")], template_format="jinja2"), "no {query}"),
        (ChatPromptTemplate([("human", "{q}"), ("ai", "x")]), "the last message must be the user's"),
        ([HumanMessage("{query}"), ToolMessage("x", tool_call_id="1")], "unknown|Extra inputs|role 'tool'"),
        (3, "prompt=int: expected a prompt template"),
    ],
)
def test_prompts_of_langchain_without_one_place_for_a_question_are_refused(prompt, message):
    with pytest.raises(ConfigurationError, match=message):
        prompt_form(prompt)


def test_examples_carry_the_messages_that_ask_them(tmp_path):
    (tmp_path / "d.jsonl").write_text(
        "\n".join(json.dumps({"messages": asked(q), "truthful answer": "x"}) for q in ("a?", "b?")), encoding="utf-8"
    )
    first, _ = read_examples(tmp_path / "d.jsonl")
    assert (first.query, first.turns(BARE)) == ("Q: a?", asked("a?"))
    named = Example(query="a?", messages=asked("a?"))
    assert named.turns(BARE, "with passages, a?")[-1]["content"] == "Q: with passages, a?"
    assert first.turns(BARE, "b?")[-1]["content"] == "b?"
    given = {"query": "a?", "messages": [SystemMessage("Be brief."), *SHOTS[1:3], ("human", "Q: a?")]}
    assert labelled_example(given) == named
    # What they have in common is how a profile says that questions are put.
    other = Example(query="b?", messages=asked("b?"))
    assert calibrated_prompt([named, other], None) == PromptForm.of_turns(SHOTS)
    assert calibrated_prompt([named, Example(query="c?")], None) is None
    assert calibrated_prompt([Example(query="c?")], PromptForm.of_turns(SHOTS)) == PromptForm.of_turns(SHOTS)
    assert calibrated_prompt([Example(query="c?")], BARE) is None
    with pytest.raises(ConfigurationError, match="messages of its own, and a prompt is given too"):
        calibrated_prompt([named], PromptForm.of_turns(SHOTS))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": []}, "query"),
        ({"messages": "a?"}, "query"),
        ({"query": "a?", "messages": []}, "the last of the messages must be the user's"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last of the messages must be the user's"),
        ({"messages": [{"role": "human", "content": "a?"}]}, "role"),
    ],
)
def test_messages_that_ask_nothing_are_named_by_line(tmp_path, line, message):
    (tmp_path / "d.jsonl").write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        read_examples(tmp_path / "d.jsonl")


def bound_to(form):
    plain = profile()
    return plain.model_copy(update={"bound_to": plain.bound_to.model_copy(update={"prompt": form})})


def test_under_a_profile_questions_are_put_as_they_were_calibrated(tmp_path):
    form = PromptForm.of_turns(SHOTS)
    bound_to(form).save(tmp_path / "p.json")
    loaded = type(profile()).load(tmp_path / "p.json")
    assert loaded.bound_to.prompt == form
    assert (agreed_prompt(loaded, None), agreed_prompt(loaded, form)) == (form, form)
    assert (agreed_prompt(profile(), None), agreed_prompt(profile(), BARE), agreed_prompt(None, form)) == (
        None,
        None,
        form,
    )
    for calibrated, wanted in ((loaded, BARE), (profile(), form)):
        with pytest.raises(ConfigurationError, match=f"the prompt given is {wanted.fingerprint}"):
            agreed_prompt(calibrated, wanted)
    assert agreed_scoring(loaded, 3) == agreed_scoring(loaded, None) == loaded.bound_to.scoring
    assert agreed_scoring(None, 5) == ScoringSettings(token_position=5)
    with pytest.raises(ConfigurationError, match=r"t\* = 3, and token_position=5"):
        agreed_scoring(loaded, 5)


def test_a_guard_puts_its_prompt_around_the_question():
    chat = scripted(0.9)
    guard = SemGradGuard(chat, profile=bound_to(PromptForm.of_turns(SHOTS)), prompt=SHOTS)
    guard.invoke("x?")
    guard.invoke([HumanMessage("before"), AIMessage("yes"), HumanMessage("x?")])
    first, second = ([(m.type, m.content) for m in messages] for messages in chat._asked)
    assert first == [("system", "Be brief."), ("human", "What is 1 + 1?"), ("ai", "2"), ("human", "Q: x?")]
    assert second == [*first[:3], ("human", "before"), ("ai", "yes"), ("human", "Q: x?")]
    with pytest.raises(ConfigurationError, match="the conversation has one too"):
        guard.invoke([SystemMessage("Be long."), HumanMessage("x?")])
    own = SemGradGuard(chat, profile=bound_to(PromptForm.of_turns(SHOTS[1:])), prompt=SHOTS[1:])
    own.invoke([SystemMessage("Be long."), HumanMessage("x?")])
    assert [m.type for m in chat._asked[-1]] == ["system", "human", "ai", "human"]
    # A chain asks with its own prompt: the guard adds nothing to it.
    chained = ChatPromptTemplate.from_messages([("human", "Q: {q}")]) | SemGradGuard(chat, profile=bound_to(BARE))
    chained.invoke({"q": "x?"})
    assert [m.content for m in chat._asked[-1]] == ["Q: x?"]
    with pytest.raises(ConfigurationError, match="calibrated with the question by itself"):
        SemGradGuard(chat, profile=profile(), prompt=SHOTS)


def test_routes_see_the_question_and_ask_within_the_prompt():
    chat, seen = scripted(0.1, 0.9), []

    class Again(Abstain):
        def attempt(self, situation):
            seen.extend([situation.question, [m.content for m in situation.conversation]])
            situation.ask("x? With passages.")
            return super().attempt(situation)

    SemGradGuard(chat, profile=bound_to(PromptForm.of_turns(SHOTS)), prompt=SHOTS, routes=[Again()]).invoke("x?")
    assert seen == ["x?", ["x?"]]
    assert [m.content for m in chat._asked[1]] == ["Be brief.", "What is 1 + 1?", "2", "Q: x? With passages."]


def test_the_uncertainty_of_a_draft_is_that_of_the_prompt_it_was_given_to():
    chat = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), generation={"max_new_tokens": 4})
    guard = SemGradGuard(chat, score_threshold=0.0, prompt="Q: {query}")
    prompt = encode_chat(chat.tokenizer, [{"role": "user", "content": "Q: x?"}])
    asking = Asking(guard._manner({}), "x?", {})
    draft = asking.first()
    expected = chat.scorer.attribute(chat.scorer.generate([prompt], max_new_tokens=4)[0])
    found = asking.situation(draft, ()).uncertainty()
    assert [doubt.log_prob for doubt in found] == pytest.approx([doubt.log_prob for doubt in expected], abs=1e-5)
