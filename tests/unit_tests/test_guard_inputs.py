"""What users pass to a guard or chat model: taken where its meaning is clear, else refused in one line."""

import asyncio
from types import SimpleNamespace

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from models import tiny_model, tiny_tokenizer
from scripted import profile, scripted
from scripted import record as record_of
from transformers import pipeline

from semgrad_guard import (
    Abstain,
    BM25Retriever,
    ChatSemGrad,
    ConfigurationError,
    DataError,
    Escalate,
    Example,
    HumanReview,
    LowConfidenceError,
    ProfileError,
    Raise,
    RateLimit,
    Retrieve,
    ReviewAnswer,
    SemGradError,
    SemGradGuard,
    UnsupportedModelError,
    get_decision,
)
from semgrad_guard.agents import InterruptReview, confidence_gate, model_node
from semgrad_guard.langchain.chat_model import chat_model
from semgrad_guard.langchain.messages import to_messages
from semgrad_guard.model.responses import is_blank
from semgrad_guard.serving.work import ChatJob, Policy, ScoreJob
from semgrad_guard.serving.worker import Worker

MODEL, TOKENIZER = tiny_model(), tiny_tokenizer()
CHAT = ChatSemGrad.from_model(MODEL, TOKENIZER, max_tokens=3, temperature=0)
GUARD = SemGradGuard(CHAT, score_threshold=1e9)
PROMPT = ChatPromptTemplate.from_template("Where is {place}?")

TAKEN = {
    "text": ("hi", [HumanMessage("hi")]),
    "message": (HumanMessage("hi"), [HumanMessage("hi")]),
    "pair": (("user", "hi"), [HumanMessage("hi")]),
    "dict": ({"role": "user", "content": "hi"}, [HumanMessage("hi")]),
    "prompt value": (PROMPT.invoke({"place": "Rome"}), [HumanMessage("Where is Rome?")]),
    "messages": ([SystemMessage("be brief"), HumanMessage("hi")], [SystemMessage("be brief"), HumanMessage("hi")]),
    "pairs": ([("system", "be brief"), ("user", "hi")], [SystemMessage("be brief"), HumanMessage("hi")]),
    "tuple of pairs": ((("system", "s"), ("user", "hi")), [SystemMessage("s"), HumanMessage("hi")]),
    "dicts": ([{"role": "user", "content": "hi"}], [HumanMessage("hi")]),
    "texts": (["hi", "there"], [HumanMessage("hi"), HumanMessage("there")]),
    "tuple of texts": (("hi", "there"), [HumanMessage("hi"), HumanMessage("there")]),
}
REFUSED = {
    "dict": ({"question": "Where?"}, r"keys \['question'\]: put a prompt before the guard or model, prompt \| guard"),
    "many keys": (dict.fromkeys("abcdefg", 1), r"\['a', 'b', 'c', 'd', 'e'\] and more"),
    "empty dict": ({}, r"a dict with keys \[\]"),
    "graph state": ({"messages": [("user", "hi")]}, r"pass its messages, state\['messages'\]"),
    "None": (None, "None: the step before gave nothing"),
    "number": (3, "of type int"),
    "bytes": (b"hi", "of bytes: decode them"),
    "bytearray": (bytearray(b"hi"), "of bytes"),
    "set": ({"hi"}, "of type set"),
    "generator": ((text for text in ["hi"]), "of type generator"),
    "class": (HumanMessage, "of type"),
    "function": (print, "of type"),
    "prompt": (PROMPT, "a ChatPromptTemplate, a step of a chain"),
    "document": (Document("hi"), "a Document: put its text into a prompt"),
    "documents": ([Document("hi")], "Item 0 of the input is no message, but a Document"),
    "nested texts": ([["hi"]], r"Item 0 .* a list of 1: several inputs go through batch\(\)"),
    "nested messages": ([[HumanMessage("hi"), HumanMessage("hi")]], "several inputs go through batch"),
    "None in a list": ([HumanMessage("hi"), None], "Item 1 of the input is no message, but None"),
    "dict in a list": ([{"question": "Where?"}], r"Item 0 .* a dict with keys \['question'\]"),
    "unknown role": ([("nobody", "hi")], "a pair whose role is unknown"),
    "unknown role in a dict": ({"role": "nobody", "content": "hi"}, "a dict whose role is unknown"),
    "no text": ([("user", 3)], "a pair whose role is unknown, or whose text is none"),
    "picture": ([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])], "part of type 'image_url'"),
    "nothing": ([], "No messages were given"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_langchain_s_chat_models_take_is_taken(name):
    given, messages = TAKEN[name]
    assert [(type(message), message.content) for message in to_messages(given)] == [
        (type(message), message.content) for message in messages
    ]
    assert CHAT.invoke(given).content == CHAT.invoke(messages).content
    assert get_decision(GUARD.invoke(given)) == get_decision(GUARD.invoke(messages))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("runnable", [CHAT, GUARD], ids=["chat", "guard"])
def test_other_input_is_refused_with_what_to_write(runnable, name):
    given, message = REFUSED[name]
    with pytest.raises(ConfigurationError, match=message) as raised:
        runnable.invoke(given)
    assert "\n" not in str(raised.value)


def _streamed(runnable, given):
    async def all_of_it():
        return [chunk async for chunk in runnable.astream(given)]

    return asyncio.run(all_of_it())


WAYS = {
    "ainvoke": lambda runnable, given: asyncio.run(runnable.ainvoke(given)),
    "stream": lambda runnable, given: list(runnable.stream(given)),
    "astream": _streamed,
    "batch": lambda runnable, given: runnable.batch([given, given]),
    "abatch": lambda runnable, given: asyncio.run(runnable.abatch([given, given])),
    "after a step": lambda runnable, given: (RunnableLambda(lambda value: value) | runnable).invoke(given),
    "verdict": lambda runnable, given: list(SemGradGuard(CHAT, score_threshold=1e9, stream_drafts=True).stream(given)),
}


@pytest.mark.parametrize("runnable", [CHAT, GUARD], ids=["chat", "guard"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_calling_refuses_it_alike(runnable, way):
    with pytest.raises(ConfigurationError, match="put a prompt before the guard"):
        WAYS[way](runnable, {"question": "Where?"})
    assert WAYS[way](runnable, ("user", "hi"))


def test_of_a_batch_only_the_wrong_input_is_refused():
    for runnable in (CHAT, GUARD):
        answer, error = runnable.batch(["hi", None], return_exceptions=True)
        assert isinstance(answer, AIMessage)
        assert isinstance(error, ConfigurationError)


def test_a_guard_behind_the_model_says_where_it_belongs():
    with pytest.raises(ConfigurationError, match=r"prompt \| guard, not prompt \| llm \| guard"):
        (PROMPT | CHAT | GUARD).invoke({"place": "Rome"})


@pytest.mark.parametrize(
    "state", [{"question": "hi"}, {}, None, "hi", SimpleNamespace(question="hi"), {"messages": None}]
)
def test_a_graph_state_without_messages_is_refused(state):
    for node in (model_node(scripted(0.9), profile()).invoke, confidence_gate(0.5)):
        with pytest.raises(ConfigurationError, match="expected one with messages"):
            node(state)


def test_a_graph_state_may_be_an_object():
    node = model_node(scripted(0.9), profile())
    state = SimpleNamespace(messages=[("user", "hi")])
    message = node.invoke(state)["messages"][0]
    assert confidence_gate(0.5)(SimpleNamespace(messages=[message])) == "answer"
    with pytest.raises(ConfigurationError, match="last message is none of a model"):
        confidence_gate(0.5)({"messages": [HumanMessage("hi")]})


BLANK = [
    "",
    " ",
    "\n\t\u00a0",
    "\u200b",
    "\ufeff\u2060\u00ad",
    "\u2800\u3164",
    "\u202e",
    "\ufe0f",
    "\0",
    [],
    [""],
    [{"type": "text", "text": " "}, {"type": "text", "text": "\u200d"}],
]


@pytest.mark.parametrize("content", BLANK, ids=lambda content: type(content).__name__)
@pytest.mark.parametrize("passages", ["optional", "in_prompt", "required"])
def test_a_blank_question_is_not_asked_and_does_not_pass(content, passages):
    llm = scripted(0.99)
    guard = SemGradGuard(llm, profile=profile(), passages=passages)
    messages = [SystemMessage("Be kind."), HumanMessage("hi"), AIMessage("hello"), HumanMessage(content)]
    for message in (guard.invoke(messages), asyncio.run(guard.ainvoke(messages)), *guard.stream(messages)):
        record = record_of(message)
        assert (record["decision"], record["reason"], record["scores"]) == ("abstain", "the question is empty", None)
        assert message.content == "I am not sure enough to answer that."
    streamed = list(guard.model_copy(update={"streaming": "verdict"}).stream(messages))
    assert [chunk.response_metadata["semgrad_decision"]["reason"] for chunk in streamed] == ["the question is empty"]
    assert llm._asked == []


@pytest.mark.parametrize("text", ["a", "?", "\u200ba", "\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "0", "\u0e01"])
def test_whatever_can_be_seen_is_a_question(text):
    assert not is_blank(text)
    assert SemGradGuard(scripted(0.99), profile=profile()).invoke(text).content == "draft"


def test_nobody_is_bothered_with_a_blank_question():
    def never(*_):
        raise AssertionError("asked")

    routes = [Retrieve(never), HumanReview(never), Escalate(never)]
    silent = SemGradGuard(scripted(0.9), profile=profile(), routes=[*routes, Abstain("Please ask something.")])
    message = silent.invoke("\u200b")
    assert message.content == "Please ask something."
    assert [step["name"] for step in message.response_metadata["semgrad_decision"]["steps"]] == ["answer", "abstain"]
    with pytest.raises(LowConfidenceError, match="the question is empty"):
        SemGradGuard(scripted(0.9), profile=profile(), routes=[*routes, Raise()]).invoke(" ")


def test_after_a_tool_s_result_a_blank_question_is_still_blank():
    call = {"name": "f", "args": {}, "id": "1"}
    messages = [HumanMessage(" "), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="1")]
    record = record_of(SemGradGuard(scripted(0.9), profile=profile()).invoke(messages))
    assert record["decision"] == "abstain"


def test_an_agent_s_answer_to_a_blank_question_does_not_pass():
    node = model_node(scripted(0.99, 0.99), profile())
    blank, asked = (node.invoke({"messages": [("user", text)]})["messages"][0] for text in ("\u200b", "hi"))
    assert blank.response_metadata["semgrad_decision"]["reason"] == "the question is empty"
    assert [confidence_gate(0.5)({"messages": [message]}) for message in (blank, asked)] == ["unsure", "answer"]


def test_an_answer_that_cannot_be_seen_does_not_pass():
    chat = ChatSemGrad.from_model(MODEL, TOKENIZER, max_tokens=3, temperature=0)
    shown = TOKENIZER.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(TOKENIZER), "decode", lambda self, ids, **settings: "\u200b" * len(shown(ids, **settings)))
        message = chat.invoke("hi")
    assert message.response_metadata["semgrad"]["failure"]["kind"] == "empty_answer"


# What a guard is built from.

PIPELINE = pipeline("text-generation", model=MODEL, tokenizer=TOKENIZER, max_new_tokens=3, do_sample=False)
MODELS = {
    "pair": ((MODEL, TOKENIZER),),
    "list": ([MODEL, TOKENIZER],),
    "model and tokenizer": (MODEL, TOKENIZER),
    "pipeline": (PIPELINE,),
}
NO_MODELS = {
    "model": ((MODEL,), UnsupportedModelError, r"comes without its tokenizer; pass \(model, tokenizer\)"),
    "tokenizer": ((TOKENIZER,), UnsupportedModelError, "a tokenizer without a model"),
    "wrong way round": ((TOKENIZER, MODEL), ConfigurationError, "The tokenizer stands before the model"),
    "pair wrong way round": (((TOKENIZER, MODEL),), ConfigurationError, "The tokenizer stands before the model"),
    "no tokenizer": (((MODEL, None),), ConfigurationError, "None is no tokenizer"),
    "no model": ((("some/model", TOKENIZER),), ConfigurationError, "'some/model' is no model"),
    "two tokenizers": ((CHAT, TOKENIZER), ConfigurationError, "which has its own"),
    "tokenizer of a name": (("some/model", TOKENIZER), ConfigurationError, "which has its own"),
    "triple": (((MODEL, TOKENIZER, 1),), UnsupportedModelError, "tuple gives no access"),
    "class": ((ChatSemGrad,), UnsupportedModelError, "ChatSemGrad is a class; pass an instance"),
    "None": ((None,), UnsupportedModelError, "NoneType gives no access"),
    "bound": ((CHAT.bind(stop=["a"]),), UnsupportedModelError, "ChatSemGrad with bound settings"),
    "chain": ((PROMPT | CHAT,), UnsupportedModelError, "is a chain; pass the model alone"),
    "dict": (({"model": MODEL},), UnsupportedModelError, "dict gives no access"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_may_come_in_any_clear_form(name):
    expected = CHAT.invoke("hi").content
    assert chat_model(*MODELS[name]).invoke("hi", max_tokens=3, temperature=0).content == expected
    guard = SemGradGuard(*MODELS[name], score_threshold=1e9)
    assert guard.llm.invoke("hi", max_tokens=3, temperature=0).content == expected


@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model_says_what_to_pass(name):
    given, error, message = NO_MODELS[name]
    for build in (lambda: SemGradGuard(*given, score_threshold=1.0), lambda: chat_model(*given)):
        with pytest.raises(error, match=message) as raised:
            build()
        assert "\n" not in str(raised.value)


def test_a_guard_in_a_guard_is_refused():
    with pytest.raises(ConfigurationError, match=r"pass the model, guard\.llm"):
        SemGradGuard(GUARD, score_threshold=1.0)
    with pytest.raises(UnsupportedModelError, match="pass that, its llm"):
        ChatSemGrad.from_llm(GUARD)


def test_a_revision_of_what_is_loaded_is_refused():
    with pytest.raises(ConfigurationError, match="revision: the model is loaded already"):
        ChatSemGrad.from_model(MODEL, TOKENIZER, revision="main")


def test_a_pipeline_of_another_task_is_refused():
    other = pipeline("feature-extraction", model=MODEL, tokenizer=TOKENIZER)
    with pytest.raises(UnsupportedModelError, match="A pipeline for 'feature-extraction' gives no answers"):
        SemGradGuard(other, score_threshold=1.0)


SETTINGS = {
    "threshold of text": ({"threshold": "0.5"}, "threshold='0.5': expected a confidence"),
    "threshold of truth": ({"threshold": True}, "threshold=True"),
    "threshold beyond": ({"threshold": float("nan")}, "threshold=nan"),
    "misspelt": ({"treshold": 0.5}, "has no setting 'treshold'. Did you mean 'threshold'?"),
    "unknown": ({"colour": "red"}, "has no setting 'colour'. Expected one of llm"),
    "of the model": ({"temperature": 0.5}, r"SemGradGuard\(ChatSemGrad.from_llm\(llm, temperature=...\)\)"),
    "passages": ({"passages": "x"}, r"passages='x'\): it should be 'optional', 'in_prompt' or 'required'"),
    "stream_drafts": ({"stream_drafts": "yes"}, "stream_drafts='yes'"),
    "record_drafts": ({"record_drafts": "yes"}, "record_drafts='yes'"),
    "watch": ({"watch": "x"}, "watch='x'"),
    "watch below nothing": ({"watch": -0.5}, "watch=-0.5"),
    "method": ({"method": 3}, "method=3"),
    "no routes": ({"routes": None}, "routes=None: expected a list of routes"),
    "routes of text": ({"routes": "abstain"}, "routes='abstain': expected a list of routes"),
    "routes of a dict": ({"routes": {"a": Abstain()}}, "expected a list of routes"),
    "routes of None": ({"routes": [None]}, r"routes\[0\]=None is not a route"),
    "routes of routes": ({"routes": [Abstain(), [Abstain()]]}, r"routes\[1\]=\[Abstain.* is not a route"),
    "class that needs settings": ({"routes": [Retrieve]}, r"pass an instance: Retrieve\(retriever\)"),
    "class with nobody to ask": ({"routes": [HumanReview]}, "HumanReview has nobody to ask"),
    "retriever": ({"routes": [BM25Retriever.from_texts(["passage"])]}, r"write Retrieve\(...\)"),
    "model": ({"routes": [CHAT]}, r"write Escalate\(...\)"),
    "function": ({"routes": [print]}, r"write HumanReview\(...\)"),
    "profile of a number": ({"profile": 3}, "profile=3: expected a Profile, the path of its JSON"),
    "profile class": ({"profile": type(profile())}, "expected a Profile"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_of_the_guard_is_one_line_of_ours(name):
    settings, message = SETTINGS[name]
    with pytest.raises(ConfigurationError, match=message) as raised:
        SemGradGuard(scripted(0.5), **{"profile": profile()} | settings)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


ROUTES = {
    "class": lambda: Abstain,
    "classes": lambda: [Abstain],
    "alone": Abstain,
    "tuple": lambda: (Abstain(),),
    "iterator": lambda: iter([Abstain()]),
    "both": lambda: [Raise, Abstain()],
}


@pytest.mark.parametrize("form", ROUTES)
def test_routes_may_come_alone_or_as_classes(form):
    guard = SemGradGuard(scripted(0.5), profile=profile(), routes=ROUTES[form]())
    assert [type(route) for route in guard.routes][-1] is Abstain
    assert all(not isinstance(route, type) for route in guard.routes)


def test_a_profile_may_be_a_dict_or_json(tmp_path):
    path = tmp_path / "profile.json"
    profile().save(path)
    forms = [profile(), path, str(path), profile().model_dump(), path.read_text(), path.read_bytes()]
    for form in forms:
        assert SemGradGuard(scripted(0.9), profile=form).invoke("hi").content == "draft"
        assert model_node(scripted(0.9), form).invoke({"messages": [("user", "hi")]})["messages"][0].content == "draft"
    for wrong in ({"a": 1}, "{", b"\xff", tmp_path, "nowhere.json"):
        with pytest.raises(ProfileError):
            SemGradGuard(scripted(0.9), profile=wrong)
    with pytest.raises(ConfigurationError, match="agents need a profile"):
        model_node(scripted(0.9), None)


def test_a_threshold_configured_at_run_time_still_counts():
    guard = SemGradGuard(scripted(0.9), profile=profile(0.8)).configurable_fields(
        threshold=ConfigurableField(id="threshold")
    )
    assert guard.invoke("hi").content == "draft"
    strict = guard.invoke("hi", {"configurable": {"threshold": 0.99}})
    assert strict.response_metadata["semgrad_decision"]["decision"] == "abstain"


# What routes are built from.


def _store():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=4))
    store.add_texts([f"passage {number}" for number in range(9)])
    return store


async def _find(question):
    return [Document(question)]


RETRIEVERS = {
    "retriever": (BM25Retriever.from_texts(["passage"]), 1),
    "vector store": (_store(), 5),
    "function": (lambda question: [Document(question)] * 9, 5),
    "function that gives texts": (lambda question: ["passage", "another"], 2),
    "function that gives one text": (lambda question: "passage", 1),
    "function that gives one document": (lambda question: Document("passage"), 1),
    "function that gives a tuple": (lambda question: (Document("passage"),), 1),
    "function that finds nothing": (lambda question: [], 0),
    "runnable": (RunnableLambda(lambda question: [Document(question)]), 1),
}


@pytest.mark.parametrize("name", RETRIEVERS)
def test_retrieve_takes_whatever_finds_passages(name):
    retriever, passages = RETRIEVERS[name]
    route = Retrieve(retriever, k=5)
    assert len(route.look_up("passage")) == passages
    guard = SemGradGuard(scripted(0.1, 0.9), profile=profile(), routes=[route])
    assert guard.invoke("passage").response_metadata["semgrad_decision"]["decision"] == (
        "retrieve" if passages else "abstain"
    )


def test_retrieve_and_human_review_take_coroutine_functions():
    async def review(request):
        return "approve"

    for routes in ([Retrieve(_find)], [HumanReview(review)]):
        guard = SemGradGuard(scripted(0.1, 0.9), profile=profile(), routes=routes)
        assert asyncio.run(guard.ainvoke("hi")).content == "draft"


def test_human_review_takes_a_queue_first():
    class Queue:
        def submit(self, request):
            return "7"

        def wait(self, id_, timeout):
            return ReviewAnswer(decision="approve")

        async def await_(self, id_, timeout):
            return self.wait(id_, timeout)

    guard = SemGradGuard(scripted(0.1), profile=profile(), routes=HumanReview(Queue()))
    assert guard.invoke("hi").response_metadata["semgrad_decision"]["review_id"] == "7"


def test_escalate_takes_a_function():
    guard = SemGradGuard(scripted(0.1), profile=profile(), routes=Escalate(lambda messages: "from elsewhere"))
    assert guard.invoke("hi").content == "from elsewhere"


WRONG_ROUTES = {
    "Retrieve(None)": lambda: Retrieve(None),
    "Retrieve('x'): expected a retriever, a vector store": lambda: Retrieve("x"),
    "BM25Retriever.from_texts(texts)": lambda: Retrieve(["a text"]),
    "Retrieve(<class": lambda: Retrieve(BM25Retriever),
    "Retrieve(k=0)": lambda: Retrieve(_find, k=0),
    "Retrieve(k='3')": lambda: Retrieve(_find, k="3"),
    "Retrieve has no setting 'kk'. Did you mean 'k'?": lambda: Retrieve(_find, kk=3),
    "Retrieve(below=2)": lambda: Retrieve(_find, below=2),
    "Retrieve(prompt='x')": lambda: Retrieve(_find, prompt="x"),
    "expected rewrite= a function or a Runnable": lambda: Retrieve(_find, rewrite="x"),
    "HumanReview(callback='name')": lambda: HumanReview("name"),
    "HumanReview has no setting 'wait_second'. Did you mean 'wait_seconds'?": lambda: HumanReview(print, wait_second=3),
    "timeout_seconds=-1: expected seconds > 0": lambda: HumanReview(print, timeout_seconds=-1),
    "Escalate('gpt'): expected a Runnable or a function": lambda: Escalate("gpt"),
    "Escalate(None)": lambda: Escalate(None),
    "Escalate(budget=10)": lambda: Escalate(print, budget=10),
    "Escalate(<class": lambda: Escalate(ChatSemGrad),
    "Abstain(message=3)": lambda: Abstain(3),
    "Abstain has no setting 'mesage'. Did you mean 'message'?": lambda: Abstain(mesage="x"),
    "Abstain(below='0.5')": lambda: Abstain(below="0.5"),
    "Abstain(below=nan)": lambda: Abstain(below=float("nan")),
    "Raise(with_draft='yes')": lambda: Raise(with_draft="yes"),
    "InterruptReview has no setting 'blow'. Did you mean 'below'?": lambda: InterruptReview(blow=0.5),
    "ReviewAnswer(decision='approv')": lambda: ReviewAnswer(decision="approv"),
    "ReviewAnswer: decision 'edit' needs a text": lambda: ReviewAnswer(decision="edit"),
    "ReviewAnswer has no setting 'txt'. Did you mean 'text'?": lambda: ReviewAnswer(decision="reject", txt="x"),
    "RateLimit('3', per=None)": lambda: RateLimit("3"),
    "RateLimit(1.5, per=None)": lambda: RateLimit(1.5),
    "RateLimit(1, per='x')": lambda: RateLimit(1, per="x"),
}


@pytest.mark.parametrize("message", WRONG_ROUTES)
def test_a_wrong_setting_of_a_route_is_one_line_of_ours(message):
    with pytest.raises(SemGradError) as raised:
        WRONG_ROUTES[message]()
    assert type(raised.value) is ConfigurationError
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_message_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigurationError, match="no human message"):
        GUARD.invoke([ChatMessage("hi", role="critic")])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (None, "examples=None: expected a list of an Example"),
        ("Where?", "examples='Where"),
        ({"query": "Where?"}, "expected a list of"),
        (["Where?"], r"examples\[0\]='Where\?': expected an Example, or a dict"),
        ([{"query": "Where?", "truthful answer": ["there"]}, None], r"examples\[1\]=None"),
        ([{"question": "Where?"}], r"examples\[0\]: Example\(query\): field required"),
        ([{"query": "\u200b"}], r"examples\[0\]: Example: the query is empty"),
        ([{"query": "Where?", "correct": True}], 'there is no "answer"'),
    ],
)
def test_examples_that_cannot_be_read_are_named(examples, message):
    with pytest.raises(DataError, match=message) as raised:
        GUARD.calibrated(examples)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"Example\(query\): field required"),
        ({"query": ""}, r"Example\(query=''\)"),
        ({"query": " \u200b"}, "Example: the query is empty"),
        ({"query": "Where?", "anwsers": ["x"]}, "Example has no setting 'anwsers'. Did you mean 'answers'?"),
    ],
)
def test_a_wrong_example_is_one_line_of_ours(settings, message):
    with pytest.raises(DataError, match=message) as raised:
        Example(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("policy", ["abstain", "annotate"])
def test_the_service_abstains_from_a_blank_question_whatever_the_policy(policy):
    worker = Worker(SemGradGuard(scripted(0.99), profile=profile()), name="m")
    jobs = [
        ChatJob(messages=({"role": "user", "content": text},), policy=Policy(name=policy)) for text in ("\u200b", "hi")
    ]
    blank, asked = worker.run(jobs)
    assert (blank.judgement.decision, blank.judgement.reason) == ("abstain", "the question is empty")
    assert (blank.usage.completion, asked.judgement.decision) == (0, "pass")


def test_no_answer_to_a_blank_question_passes_where_it_is_only_scored():
    worker = Worker(SemGradGuard(CHAT, score_threshold=1e9), name="m")
    blank, asked = worker.run(
        [ScoreJob(messages=({"role": "user", "content": text},), response="yes") for text in (" ", "hi")]
    )
    assert (blank.judgement.decision, blank.judgement.reason) == ("abstain", "the question is empty")
    assert asked.judgement.reason != "the question is empty"
