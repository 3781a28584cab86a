"""HumanReview with a queue, in a guard: decided in time, decided later, decided before, and a queue that fails."""

import asyncio
import sqlite3
import threading
import time

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from scripted import calling, profile, record, scripted

from semgrad_guard import Abstain, ConfigurationError, Escalate, HumanReview, ReviewAnswer, SemGradGuard
from semgrad_guard.review import ReviewQueue
from semgrad_guard.routing.routes import DEFAULT_PENDING, Queue


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'reviews.db'}"


@pytest.fixture
def queue(url):
    opened = ReviewQueue(url)
    yield opened
    opened.close()


@pytest.fixture(params=["invoke", "ainvoke"])
def ask(request):
    """Call a guard, one way and the other."""
    if request.param == "invoke":
        return lambda runnable, given: runnable.invoke(given)
    return lambda runnable, given: asyncio.run(runnable.ainvoke(given))


def guard(queue, *answers, wait_seconds=0.0, **settings):
    routes = [HumanReview(queue=queue, wait_seconds=wait_seconds, **settings), Abstain("I do not know.")]
    return SemGradGuard(scripted(*(answers or (0.3,))), profile=profile(), routes=routes)


class Reviewer(threading.Thread):
    """Decides on the first review that comes."""

    def __init__(self, queue, decision):
        super().__init__()
        self.queue, self.decision = queue, decision
        self.start()

    def run(self):
        while (item := self.queue.claim("ann")) is None:
            time.sleep(0.02)
        self.queue.decide(item.id, self.decision, "ann")


def test_the_queue_is_one_that_routing_knows(queue):
    assert isinstance(queue, Queue)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (ReviewAnswer(decision="approve"), "draft"),
        (ReviewAnswer(decision="edit", text="better"), "better"),
        (ReviewAnswer(decision="respond", text="mine"), "mine"),
        (ReviewAnswer(decision="reject"), Abstain().message),
    ],
)
def test_decided_in_time_settles_as_a_callback_does(ask, queue, decision, text):
    reviewer = Reviewer(queue, decision)
    message = ask(guard(queue, wait_seconds=30), "Where?")
    reviewer.join()
    assert (message.content, record(message)["decision"]) == (text, "review")
    assert record(message)["reason"].endswith(f"; reviewer: {decision.decision}")
    assert queue.get(record(message)["review_id"]).answer == decision


@pytest.mark.parametrize("wait", [0, 0.2])
def test_not_decided_in_time_is_pending_and_can_be_fetched_later(ask, queue, wait):
    message = ask(guard(queue, wait_seconds=wait), "Where?")
    review_id = record(message)["review_id"]
    assert (message.content, record(message)["decision"]) == (DEFAULT_PENDING, "review")
    assert record(message)["reason"].endswith(f"; pending: review {review_id}")
    assert "draft" not in message.model_dump_json()
    item = queue.get(review_id)
    assert (item.request.question, item.request.draft, item.status) == ("Where?", "draft", "pending")
    assert item.request.verdict.confidence == pytest.approx(0.3)
    assert item.request.conversation == ()
    queue.decide(review_id, "approve", "ann")
    assert queue.get(review_id).text == "draft"
    again = ask(guard(queue, wait_seconds=wait), "Where?")
    assert (again.content, record(again)["review_id"]) == ("draft", review_id)


def test_the_pending_text_is_the_caller_s(ask, queue):
    assert ask(guard(queue, pending_message="Patience."), "Where?").content == "Patience."


def test_a_sure_answer_is_not_put_into_the_queue(ask, queue):
    message = ask(guard(queue, 0.9), "Where?")
    assert (record(message)["decision"], record(message)["review_id"]) == ("pass", None)
    assert queue.items() == []


def test_a_decision_holds_for_its_own_conversation_only(ask, queue):
    talk = [HumanMessage("It rains in Rome."), AIMessage("So it does."), HumanMessage("Is it wet?")]
    first = ask(guard(queue), talk)
    queue.decide(record(first)["review_id"], "approve", "ann")
    assert ask(guard(queue), talk).content == "draft"
    other = ask(guard(queue), [HumanMessage("The sun shines."), *talk[1:]])
    assert other.content == DEFAULT_PENDING
    assert queue.get(record(other)["review_id"]).request.conversation[0] == "human: The sun shines."


def test_an_approved_tool_call_goes_out_as_it_was(ask, queue):
    reviewer = Reviewer(queue, ReviewAnswer(decision="approve"))
    message = ask(guard(queue, calling(("f", {"x": 1}, 0.1)), wait_seconds=30), "Call.")
    reviewer.join()
    assert [call["args"] for call in message.tool_calls] == [{"x": 1}]
    (item,) = queue.items()
    assert item.request.draft == "f(x=1)"
    assert [call.name for call in item.request.tool_calls.values()] == ["f"]


def test_the_review_of_a_guard_that_was_escalated_to_is_known(ask, queue):
    outer = SemGradGuard(scripted(0.3), profile=profile(), routes=[Escalate(guard(queue))])
    message = ask(outer, "Where?")
    assert (message.content, record(message)["decision"]) == (DEFAULT_PENDING, "escalate")
    assert queue.get(record(message)["review_id"]).status == "pending"


def test_a_queue_that_fails_does_not_settle(ask, url, tmp_path):
    impatient = ReviewQueue(url, busy_timeout=0.1)
    other = sqlite3.connect(tmp_path / "reviews.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    message = ask(guard(impatient, wait_seconds=1), "Where?")
    other.execute("ROLLBACK")
    other.close()
    assert (message.content, record(message)["decision"]) == ("I do not know.", "abstain")
    assert record(message)["steps"][1]["reason"] == "ReviewError"
    assert impatient.items() == []


def test_a_review_deleted_while_it_is_waited_for_does_not_settle(ask, queue):
    def delete():
        while not (items := queue.items()):
            time.sleep(0.02)
        queue.delete(items[0].id, "dpo")

    deleting = threading.Thread(target=delete)
    deleting.start()
    message = ask(guard(queue, wait_seconds=30), "Where?")
    deleting.join()
    assert record(message)["decision"] == "abstain"
    assert record(message)["steps"][1]["reason"] == "ReviewError"


def test_many_wait_at_once_without_a_thread_each(queue):
    async def all_of_them():
        waiting = [guard(queue, wait_seconds=60).ainvoke(f"{number}?") for number in range(50)]
        return await asyncio.gather(*waiting)

    def decide():
        decided = 0
        while decided < 50:
            if (item := queue.claim("ann")) is None:
                time.sleep(0.02)
            else:
                queue.decide(item.id, ReviewAnswer(decision="respond", text=f"to {item.request.question}"), "ann")
                decided += 1

    reviewer = threading.Thread(target=decide)
    reviewer.start()
    messages = asyncio.run(all_of_them())
    reviewer.join()
    assert [message.content for message in messages] == [f"to {number}?" for number in range(50)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callback": lambda request: "approve"}, "no callback or timeout beside it"),
        ({"timeout_seconds": 1.0}, "no callback or timeout beside it"),
        ({"queue": None, "wait_seconds": 1.0}, "nobody to ask"),
        ({"queue": None, "callback": lambda request: "approve", "wait_seconds": 1.0}, "wait_seconds=1 is for a queue"),
    ],
)
def test_settings_that_make_no_sense_are_refused(queue, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        HumanReview(**{"queue": queue} | settings)
