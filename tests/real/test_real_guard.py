"""The guard over SmolLM2: every route, both kinds of streams, and tools that its template cannot show."""

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from scripted import record

from semgrad_guard import (
    Abstain,
    BM25Retriever,
    ChatSemGrad,
    ConfigurationError,
    Escalate,
    HumanReview,
    LowConfidenceError,
    Raise,
    Retrieve,
    ReviewAnswer,
    SemGradGuard,
)
from semgrad_guard.review import ReviewQueue

QUESTION = "What is the capital of France?"
PASS, STOP = {"score_threshold": 1e9}, {"score_threshold": 0.0}


@pytest.fixture(scope="module")
def chat(brief):
    return ChatSemGrad.from_model(*brief, generation={"max_new_tokens": 8})


def test_a_sure_answer_passes(chat):
    message = SemGradGuard(chat, **PASS).invoke(QUESTION)
    assert message.content == "Paris"
    assert record(message)["decision"] == "pass"
    assert 0 < record(message)["scores"]["semgrad"] < 1


def test_an_answer_that_is_cut_off_never_passes(chat):
    message = SemGradGuard(chat, **PASS).invoke("Tell me a long story about France.", max_new_tokens=3)
    assert record(message)["decision"] == "abstain"
    assert "cut off" in record(message)["reason"]


def test_abstain(chat):
    message = SemGradGuard(chat, routes=[Abstain("I am not sure.")], **STOP).invoke(QUESTION)
    assert (message.content, record(message)["decision"]) == ("I am not sure.", "abstain")


def test_raise(chat):
    with pytest.raises(LowConfidenceError):
        SemGradGuard(chat, routes=[Raise()], **STOP).invoke(QUESTION)


def test_retrieve(chat):
    question = "What is the capital of Zubrovia?"
    passages = BM25Retriever.from_texts(["The capital of Zubrovia is Plink.", "Bread is made of flour."])
    message = SemGradGuard(chat, routes=[Retrieve(passages), Abstain("no")], **STOP).invoke(question)
    assert [step["name"] for step in record(message)["steps"]] == ["answer", "retrieve", "abstain"]
    assert [source["text"] for source in record(message)["sources"]] == ["The capital of Zubrovia is Plink."]
    assert message.content == "no"


def test_human_review_by_a_callback(chat):
    seen = []

    def review(request):
        seen.append(request)
        return ReviewAnswer(decision="edit", text="It is Paris.")

    message = SemGradGuard(chat, routes=[HumanReview(review)], **STOP).invoke(QUESTION)
    assert (message.content, seen[0].question, seen[0].draft) == ("It is Paris.", QUESTION, "Paris")


def test_human_review_by_a_queue(chat, tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    try:
        guard = SemGradGuard(chat, routes=[HumanReview(queue=queue, wait_seconds=0.0)], **STOP)
        guard.invoke(QUESTION)
        item = queue.claim("ann")
        assert item.request.draft == "Paris"
        queue.decide(item.id, ReviewAnswer(decision="approve"), "ann")
        assert guard.invoke(QUESTION).content == "Paris"
    finally:
        queue.close()


def test_escalate(chat):
    other = RunnableLambda(lambda messages: AIMessage("The other says Paris."))
    message = SemGradGuard(chat, routes=[Escalate(other)], **STOP).invoke(QUESTION)
    assert (message.content, record(message)["decision"]) == ("The other says Paris.", "escalate")


def test_a_batch_decides_as_single_calls_do(chat):
    guard = SemGradGuard(chat, **PASS)
    questions = [QUESTION, "Name a city in Poland."]
    for one, other in zip(guard.batch(questions), map(guard.invoke, questions), strict=True):
        assert one.content == other.content
        scores = [record(message)["scores"]["semgrad"] for message in (one, other)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.parametrize("stream_drafts", [False, True])
@pytest.mark.parametrize(("standard", "shown"), [(PASS, "Paris"), (STOP, "no")])
def test_streams_end_with_the_answer_and_its_decision(chat, stream_drafts, standard, shown):
    guard = SemGradGuard(chat, routes=[Abstain("no")], stream_drafts=stream_drafts, **standard)
    chunks = list(guard.stream(QUESTION))
    text = "".join(str(chunk.content) for chunk in chunks)
    draft_first = stream_drafts and standard is STOP
    assert text == ("Paris\n\nno" if draft_first else shown)
    assert record(chunks[-1])["decision"] == ("pass" if standard is PASS else "abstain")


def test_tools_are_refused_where_the_template_shows_none(chat):
    def get_weather(place: str) -> str:
        """Look up the weather."""
        return place

    with pytest.raises(ConfigurationError, match="does not show the tools"):
        chat.bind_tools([get_weather]).invoke("What is the weather in Rome?")
