"""What a reviewer gets to know of a held-back draft: where its doubt sits, and what it had to reach."""

import asyncio
import json
import math
import sqlite3

import pytest
from alembic import command
from alembic.config import Config
from langchain_core.messages import HumanMessage
from models import tiny_model, tiny_tokenizer
from scripted import TOKENIZER, profile, request_of, score, scripted
from sqlalchemy import create_engine

from semgrad_guard import ChatSemGrad, HumanReview, SemGradGuard
from semgrad_guard.calibration.guarantee import Guarantee
from semgrad_guard.calibration.verdict import Standard
from semgrad_guard.langchain.routes import Escalate
from semgrad_guard.model.chat_template import encode_chat
from semgrad_guard.model.text_spans import pieces
from semgrad_guard.records import Generation, TokenUncertainty
from semgrad_guard.review import ReviewQueue
from semgrad_guard.review.database import _MIGRATIONS


class Asked:
    """A reviewer who approves everything, and remembers what was asked."""

    def __call__(self, request):
        self.request = request
        return "approve"


@pytest.fixture(params=["invoke", "ainvoke"])
def ask(request):
    if request.param == "invoke":
        return lambda runnable, given: runnable.invoke(given)
    return lambda runnable, given: asyncio.run(runnable.ainvoke(given))


def doubting(**settings):
    """A guard over a real model that holds everything back, and its reviewer."""
    reviewer = Asked()
    chat = ChatSemGrad.from_model(tiny_model(), tiny_tokenizer(), token_position=3, generation={"max_new_tokens": 6})
    return SemGradGuard(chat, score_threshold=0.0, routes=[HumanReview(reviewer)], **settings), reviewer


def test_a_reviewer_sees_the_doubt_of_the_very_tokens_of_the_draft(ask):
    guard, reviewer = doubting()
    message = guard.llm.invoke("Where is it?")
    ids = message.response_metadata["semgrad"]["tokens"]
    assert len(ids) == message.usage_metadata["output_tokens"]
    ask(guard, "Where is it?")
    prompt = encode_chat(guard.llm.tokenizer, [{"role": "user", "content": "Where is it?"}])
    expected = guard.llm.scorer.attribute(Generation(tuple(prompt), tuple(ids), "", "stop"))
    found = reviewer.request.tokens
    assert [doubt.token for doubt in found] == ids
    assert [doubt.share for doubt in found] == pytest.approx([doubt.share for doubt in expected])
    assert sum(doubt.share for doubt in found) == pytest.approx(1)
    assert -sum(doubt.log_prob for doubt in found) == pytest.approx(reviewer.request.verdict.scores.nll, rel=1e-4)


def test_the_doubt_is_that_of_a_streamed_draft_too():
    guard, reviewer = doubting(stream_drafts=True)
    list(guard.stream("Where is it?"))
    assert sum(doubt.share for doubt in reviewer.request.tokens) == pytest.approx(1)


def test_it_is_asked_for_only_when_a_human_is(monkeypatch):
    asked = []
    monkeypatch.setattr(ChatSemGrad, "token_uncertainty", lambda self, *given, **settings: asked.append(given) or ())
    reviewer, others = Asked(), []
    escalating = Escalate(scripted(0.1), prompt=lambda request: others.append(request) or "again")
    sure = SemGradGuard(scripted(0.9), profile=profile(), routes=[HumanReview(reviewer)])
    sure.invoke("Where?")
    SemGradGuard(scripted(0.3), profile=profile(), routes=[escalating]).invoke("Where?")
    assert (asked, others[0].tokens) == ([], ())
    SemGradGuard(scripted(0.3), profile=profile(), routes=[HumanReview(reviewer)]).invoke("Where?")
    assert len(asked) == 1


def test_a_doubt_that_cannot_be_told_does_not_lose_the_review(ask, monkeypatch, caplog):
    def fail(self, *given, **settings):
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr(ChatSemGrad, "token_uncertainty", fail)
    guard, reviewer = doubting()
    assert ask(guard, "Where is it?").response_metadata["semgrad_decision"]["decision"] == "review"
    assert reviewer.request.tokens == ()
    assert "cannot be told: MemoryError" in caplog.text
    assert "Where is it?" not in caplog.text


def test_what_has_no_tokens_has_no_doubt(ask):
    reviewer = Asked()
    guard = SemGradGuard(scripted(0.3), profile=profile(), routes=[HumanReview(reviewer)])
    ask(guard, "Where?")
    assert reviewer.request.tokens == ()
    failing = SemGradGuard(scripted(RuntimeError("out of memory")), profile=profile(), routes=[HumanReview(reviewer)])
    ask(failing, "Where?")
    assert (reviewer.request.draft, reviewer.request.tokens) == ("", ())


def test_the_doubt_of_an_answer_leaves_its_reasoning_out():
    guard, _ = doubting()
    message = guard.llm.invoke("Where is it?")
    message.response_metadata["semgrad"]["answer_from"] = 2
    found = guard.llm.token_uncertainty(message, [HumanMessage("Where is it?")])
    assert [doubt.token for doubt in found] == message.response_metadata["semgrad"]["tokens"][2:]
    assert sum(doubt.share for doubt in found) == pytest.approx(1)


def test_the_texts_of_tokens_joined_are_the_text():
    ids = TOKENIZER("Où est Zoë? 🤔 There.", add_special_tokens=False)["input_ids"]
    found = pieces(TOKENIZER, ids)
    assert len(found) == len(ids)
    assert "".join(found) == TOKENIZER.decode(ids)


def test_the_policy_is_put_in_words():
    def said(**settings):
        return Standard(*[settings.get(name) for name in ("profile", "threshold", "score_threshold", "method")]).judge(
            None, ""
        )

    promising = profile().model_copy(
        update={
            "answer": profile().answer.model_copy(update={"guarantee": Guarantee(risk=0.05, delta=0.1, n=90, errors=1)})
        }
    )
    assert said(profile=promising).policy == (
        "confidence of at least 0.800 (method: fused); of what passes at most 5 % is wrong, with 90 % certainty, for "
        "questions like those of the calibration"
    )
    assert said(profile=promising, threshold=0.7).policy == (
        "confidence of at least 0.700 (method: fused); nothing is promised of what passes"
    )
    assert said(profile=profile(threshold=None)).policy == "nothing passes: there is no threshold"
    assert said(score_threshold=0.05).policy == "semgrad of at most 0.05, a raw score, which promises nothing"


def test_policy_and_doubt_are_kept_by_the_queue(tmp_path):
    queue = ReviewQueue(f"sqlite:///{tmp_path / 'reviews.db'}")
    doubt = (TokenUncertainty(token=7, text=" x", log_prob=-1.0, entropy=0.5, share=1.0),)
    asked = request_of(
        question="?", draft="x", confidence=0.1, scores=None, reason="", tokens=doubt, policy="strict", threshold=0.9
    )
    assert queue.get(queue.submit(asked)).request == asked
    lax = asked.verdict.model_copy(update={"policy": "lax", "threshold": 0.1})
    other = asked.model_copy(update={"tokens": (), "verdict": lax})
    assert queue.submit(other) == queue.submit(asked)  # they say nothing about what is asked
    queue.close()


def database_of(folder, revision, row):
    """Write a queue's database as it was at a revision, with a thousand reviews that differ in their id alone."""
    engine = create_engine(f"sqlite:///{folder / 'reviews.db'}")
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    with sqlite3.connect(folder / "reviews.db") as database:
        database.executemany(
            f"INSERT INTO reviews (id, key, {names}) VALUES (:id, :id, {values})",
            [{"id": f"old-{number}"} | row for number in range(1001)],
        )
    database.close()
    return f"sqlite:///{folder / 'reviews.db'}"


OLD = {
    "version": 1,
    "question": "Where?",
    "draft": "there",
    "reason": "unsure",
    "sources": "[]",
    "tool_calls": "{}",
    "conversation": "[]",
    "created": "2026-01-01 00:00:00",
}
NEWER = OLD | {
    "confidence": 0.25,
    "scores": json.dumps(score(0.5).model_dump() | {"nll": "Infinity"}),
    "policy": "strict",
    "threshold": 0.8,
    "doubt": '[{"token": 1, "text": "there", "log_prob": -1.0, "entropy": 0.5, "share": 1.0}]',
}


@pytest.mark.parametrize(("revision", "row"), [("0001", OLD), ("0002", OLD), ("0002", NEWER)])
def test_a_database_from_before_is_brought_up_to_date_with_what_it_holds(tmp_path, revision, row):
    queue = ReviewQueue(database_of(tmp_path, revision, row))
    items = list(queue.items(limit=2000))
    assert len(items) == 1001
    for item in (items[0], items[500], items[-1]):
        verdict = item.request.verdict
        assert (item.request.draft, verdict.reason, verdict.passed) == ("there", "unsure", False)
        assert (verdict.confidence, verdict.threshold) == (row.get("confidence"), row.get("threshold"))
        assert verdict.policy == row.get("policy", "")
        assert [token.text for token in item.request.tokens] == (["there"] if "doubt" in row else [])
        if "scores" in row:
            assert (verdict.scores.semgrad, verdict.scores.nll) == (0.5, math.inf)
    assert queue.decide("old-7", "approve", "ann").text == "there"
    queue.close()
    with sqlite3.connect(tmp_path / "reviews.db") as database:
        (index,) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'ix_reviews_undecided'").fetchone()
        assert "decision IS NULL" in index
    database.close()
