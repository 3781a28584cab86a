"""An answer that was cut off at the token limit is never trusted, whatever its score, and nothing is learnt from it."""

import asyncio

import pytest
from models import tiny_model, tiny_tokenizer
from scripted import record as record_of

from semgrad_guard import ChatSemGrad, SemGradGuard, SemGradScorer
from semgrad_guard.calibration.answers import answered
from semgrad_guard.calibration.examples import Example

REASON = "the answer was cut off at the limit of 4 tokens"


def chat(**settings):
    """Build a model that talks on, in letters and signs, up to its limit."""
    tokenizer = tiny_tokenizer()
    mute = [token for token in range(131) if not tokenizer.decode([token], skip_special_tokens=True).strip()]
    generation = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": mute, **settings}
    return ChatSemGrad.from_model(tiny_model(), tokenizer, generation=generation)


def both_ways(runnable):
    yield runnable.invoke("q?")
    yield asyncio.run(runnable.ainvoke("q?"))
    yield runnable.batch(["q?", "r?"])[0]
    chunks = list(runnable.stream("q?"))
    yield sum(chunks[1:], chunks[0])


def test_the_guard_holds_it_back_though_its_score_is_fine():
    for message in both_ways(SemGradGuard(chat(), score_threshold=1e9)):
        record = record_of(message)
        assert (record["decision"], record["reason"]) == ("abstain", REASON)
        assert record["scores"]["semgrad"] < 1e9


def test_the_message_says_so_and_keeps_its_scores():
    for message in both_ways(chat()):
        record = message.response_metadata["semgrad"]
        assert message.response_metadata["finish_reason"] == "length"
        assert record["failure"] == {"kind": "cut_off", "text": REASON}
        assert record["scores"] is not None


def test_an_answer_that_ends_at_the_limit_by_itself_is_not_cut_off():
    text = chat().invoke("q?").content
    runnable = SemGradGuard(chat(), score_threshold=1e9)
    assert runnable.invoke("q?", stop=[text[3]]).response_metadata["semgrad_decision"]["decision"] == "pass"


@pytest.mark.parametrize(("limit", "count"), [(4, 0), (None, 1)])
def test_calibration_leaves_it_out(limit, count):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    generation = {"max_new_tokens": 4, "do_sample": False}
    text = chat().invoke("q?").content
    if limit is None:
        generation["stop_strings"] = [text[2]]
    scorer = SemGradScorer(model, tokenizer)
    found = answered(scorer, [Example(query="q?", answers=("x",))], lambda *given: True, generation)
    assert (len(found.scored), found.counts.cut_off) == (count, 1 - count)
