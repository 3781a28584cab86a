"""What belongs to one row of a batch: it can be abandoned, heard and seeded, and the others are as they would be."""

import asyncio
import threading

import pytest
import torch
from models import tiny_model, tiny_tokenizer
from transformers import StoppingCriteria, StoppingCriteriaList

from semgrad_guard import Abstain, ChatSemGrad, Outcome, SemGradGuard, SemGradScorer
from semgrad_guard.demo import embedded_model
from semgrad_guard.errors import AbandonedError
from semgrad_guard.langchain import batching
from semgrad_guard.langchain.batching import until

QUESTIONS = ["Why?", "Who are you and where do you come from?", "a b c d e f g"]


def chat(**settings):
    """Build a model that talks on, in letters and signs, up to its limit."""
    tokenizer = tiny_tokenizer()
    mute = [token for token in range(131) if not tokenizer.decode([token], skip_special_tokens=True).strip()]
    generation = {"max_new_tokens": 24, "do_sample": False, "suppress_tokens": mute, **settings}
    return ChatSemGrad.from_model(tiny_model(), tokenizer, generation=generation)


class Steps(StoppingCriteria):
    """Counts the steps of a generation, and does something at one of them."""

    def __init__(self, at=None, do=lambda: None):
        self.count, self.at, self.do = 0, at, do

    def __call__(self, input_ids, scores, **kwargs):
        self.count += 1
        if self.count == self.at:
            self.do()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def together(model, asks, **settings):
    return model.together(lambda row: asks[row](), len(asks), return_exceptions=True)


def test_a_row_that_nobody_waits_for_ends_and_the_others_go_on(monkeypatch):
    model, gone, scored = chat(), threading.Event(), []
    alone = [model.invoke(question).content for question in QUESTIONS]
    score = SemGradScorer.score

    def counting(self, generations, **settings):
        scored.append([len(generation.response_ids) for generation in generations])
        return score(self, generations, **settings)

    monkeypatch.setattr(SemGradScorer, "score", counting)
    steps = Steps(5, gone.set)
    leaving = StoppingCriteriaList([steps])
    model.generation["stopping_criteria"] = leaving

    def left():
        with until(gone.is_set):
            return model.invoke(QUESTIONS[1]).content

    found = together(
        model, [lambda: model.invoke(QUESTIONS[0]).content, left, lambda: model.invoke(QUESTIONS[2]).content]
    )
    assert isinstance(found[1], AbandonedError)
    assert [found[0], found[2]] == [alone[0], alone[2]]
    assert steps.count == 24
    assert [len(rows) for rows in scored] == [2]  # what nobody waits for is not scored


def test_when_nobody_is_left_the_generation_ends_at_its_next_token():
    model, gone = chat(), threading.Event()
    steps = Steps(5, gone.set)
    model.generation["stopping_criteria"] = StoppingCriteriaList([steps])
    with until(gone.is_set), pytest.raises(AbandonedError):
        model.invoke("Why?")
    assert steps.count == 5


def test_outside_nothing_is_abandoned():
    model = chat()
    with until(lambda: True), pytest.raises(AbandonedError):
        model.invoke("Why?")
    assert len(model.invoke("Why?").content) == 24


async def test_async_rows_can_be_abandoned_too():
    model = chat()

    async def left():
        with until(lambda: True):
            return await model.ainvoke("Why?")

    found = await asyncio.gather(left(), model.ainvoke("Why?"), return_exceptions=True)
    assert isinstance(found[0], AbandonedError)
    assert found[1].content == model.invoke("Why?").content


def test_rows_can_be_streamed_in_a_batch(monkeypatch):
    model, passes = ChatSemGrad.from_model(*embedded_model()), []
    questions = ["Tell me a joke.", "What is the capital of France?", "Who are you?"]
    alone = [model.invoke(question).content for question in questions]
    generate = SemGradScorer.generate

    def counting(self, prompts, **settings):
        passes.append(len(prompts))
        return generate(self, prompts, **settings)

    monkeypatch.setattr(SemGradScorer, "generate", counting)
    asks = [lambda question=question: [chunk.content for chunk in model.stream(question)] for question in questions]
    found = together(model, [asks[0], lambda: model.invoke(questions[1]).content, asks[2]])
    assert passes == [3]
    assert ["".join(found[0]), found[1], "".join(found[2])] == alone
    assert min(len(found[0]), len(found[2])) > 3  # in pieces


def rows_of_passes(monkeypatch):
    """Note of every generation and every scoring pass how many rows it has."""
    rows = []
    for name in ("generate", "score"):
        method = getattr(SemGradScorer, name)

        def counting(self, items, *, method=method, name=name, **settings):
            rows.append((name, len(items)))
            return method(self, items, **settings)

        monkeypatch.setattr(SemGradScorer, name, counting)
    return rows


class AskAgain:
    """Puts every question once more."""

    decision, below = "again", None

    def attempt(self, situation):
        answer = situation.ask(situation.question)
        return Outcome(answer.verdict.passed, answer.verdict.reason, answer.text, answer)


@pytest.mark.parametrize("call", ["batch", "abatch"])
def test_a_batch_of_a_guard_is_a_batch_of_the_model_in_every_round(monkeypatch, call):
    guard = SemGradGuard(chat(), score_threshold=0.0, routes=[AskAgain(), Abstain("no")])
    alone = [guard.invoke(question).response_metadata["semgrad"]["scores"]["semgrad"] for question in QUESTIONS]
    rows = rows_of_passes(monkeypatch)
    messages = guard.batch(QUESTIONS) if call == "batch" else asyncio.run(guard.abatch(QUESTIONS))
    assert rows == [("generate", 3), ("score", 3)] * 2
    assert [message.response_metadata["semgrad"]["scores"]["semgrad"] for message in messages] == pytest.approx(alone)
    assert guard.batch(["Why?"])[0].content == "no"
    assert guard.batch([]) == []


def test_a_batch_of_a_guard_gives_failures_back_with_the_answers():
    guard = SemGradGuard(chat(), score_threshold=1e9)
    message, error = guard.batch(["Why?", []], return_exceptions=True)
    assert message.content == guard.invoke("Why?").content
    assert "No messages were given" in str(error)


def test_a_second_answer_does_not_wait_for_ever_for_a_row_that_is_busy(monkeypatch):
    monkeypatch.setattr(batching, "LONGEST_WAIT", 0.05)
    model, answered = chat(), threading.Event()

    def busy():
        model.invoke(QUESTIONS[0])
        return answered.wait(10)

    def again():
        model.invoke(QUESTIONS[1])
        model.invoke(QUESTIONS[2])
        answered.set()

    assert together(model, [busy, again]) == [True, None]


def test_a_stream_that_is_left_in_a_batch_lets_the_others_go_on():
    model = chat()

    def left():
        chunks = model.stream(QUESTIONS[1])
        next(chunks)
        chunks.close()
        return "left"

    found = together(model, [lambda: model.invoke(QUESTIONS[0]).content, left])
    assert found == [model.invoke(QUESTIONS[0]).content, "left"]


def test_when_a_batch_is_tried_again_nothing_is_heard_twice(monkeypatch):
    model = chat()
    alone = model.invoke(QUESTIONS[0]).content
    score = SemGradScorer.generate

    def breaks(self, prompts, **settings):
        found = score(self, prompts, **settings)
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("at the very end")
        return found

    monkeypatch.setattr(SemGradScorer, "generate", breaks)
    asks = [lambda: "".join(chunk.content for chunk in model.stream(QUESTIONS[0])), lambda: model.invoke("No.").content]
    assert together(model, asks)[0] == alone


def test_when_a_batch_breaks_in_the_middle_what_was_heard_is_not_heard_again():
    """The stream has shown words of the answer by then, and is not over."""
    model, question = ChatSemGrad.from_model(*embedded_model()), "Tell me a joke."
    alone, rows = model.invoke(question).content, []

    class Breaks(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            rows.append(len(input_ids))
            if len(rows) == 8:
                raise torch.OutOfMemoryError("in the middle")
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model.generation["stopping_criteria"] = StoppingCriteriaList([Breaks()])
    asks = [lambda: [chunk.content for chunk in model.stream(question)], lambda: model.invoke("Who are you?").content]
    pieces, _ = together(model, asks)
    assert (set(rows[:8]), set(rows[8:])) == ({2}, {1})
    assert len([piece for piece in pieces if piece]) > 2
    assert "".join(pieces) == alone


def test_a_seed_gives_the_same_answer_again_whatever_is_asked_beside_it():
    model = chat(do_sample=True, temperature=1.0)
    before = torch.random.get_rng_state()
    alone = [model.invoke("Why?", seed=seed).content for seed in (1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert alone[0] != alone[1]
    asks = [
        lambda: model.invoke("Why?", seed=2).content,
        lambda: model.invoke("Who are you?").content,
        lambda: model.invoke("Why?", seed=1).content,
        lambda: model.invoke("Why?", seed=1).content,
    ]
    found = together(model, asks)
    assert [found[0], found[2], found[3]] == [alone[1], alone[0], alone[0]]


def test_without_scoring_nothing_is_scored_and_the_message_says_so(monkeypatch):
    model = chat()
    monkeypatch.setattr(SemGradScorer, "score", None)
    record = ChatSemGrad.from_llm(model, scored=False).invoke("Why?").response_metadata["semgrad"]
    assert (record["scores"], record["failure"]["kind"]) == (None, "scoring_off")
