"""Batches: rows meet in one `generate` and one scoring pass, and nothing else changes for any of them."""

import asyncio
import uuid
from collections import Counter

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from models import tiny_model, tiny_tokenizer
from pydantic import BaseModel

from semgrad_guard import Abstain, ChatSemGrad, ConfigurationError, PromptTooLongError, SemGradGuard, SemGradScorer
from semgrad_guard.demo import embedded_model

QUESTIONS = ["Why?", "Who are you and where do you come from?", "a b c d e f g", "What is it, then?", "No."]


@pytest.fixture
def chat():
    """Build a model that talks on, in letters and signs, up to its limit."""
    tokenizer = tiny_tokenizer()
    mute = [token for token in range(131) if not tokenizer.decode([token], skip_special_tokens=True).strip()]
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": mute}
    return ChatSemGrad.from_model(tiny_model(), tokenizer, generation=settings)


@pytest.fixture
def passes(monkeypatch):
    """Count how many rows each call of the model and each scoring pass has."""
    seen = {"generate": [], "score": []}
    for name, rows in seen.items():
        original = getattr(SemGradScorer, name)

        def counting(self, given, *, original=original, rows=rows, **settings):
            rows.append(len(given))
            return original(self, given, **settings)

        monkeypatch.setattr(SemGradScorer, name, counting)
    return seen


class Runs(BaseCallbackHandler):
    """Notes what happens to every run."""

    def __init__(self):
        self.events, self.answers, self.metadata, self.tags = Counter(), {}, {}, {}

    def on_chat_model_start(self, serialized, messages, *, run_id, metadata=None, tags=None, **kwargs):
        self.events["start"] += 1
        self.metadata[run_id], self.tags[run_id] = metadata, tags

    def on_llm_end(self, response, *, run_id, **kwargs):
        self.events["end"] += 1
        self.answers[run_id] = response.generations[0][0].message

    def on_llm_error(self, error, *, run_id, **kwargs):
        self.events["error"] += 1
        self.answers[run_id] = error


def same(message, other):
    """Compare two messages and their scores."""
    ours, theirs = (m.response_metadata["semgrad"] for m in (message, other))
    assert message.content == other.content
    assert message.usage_metadata == other.usage_metadata
    assert message.response_metadata["finish_reason"] == other.response_metadata["finish_reason"]
    assert ours["failure"] == theirs["failure"]
    for name in ("semgrad", "paragrad", "hybridgrad", "nll", "mean_entropy"):
        assert ours["scores"][name] == pytest.approx(theirs["scores"][name], rel=1e-5, abs=1e-5)


def together(chat, inputs, how, **settings):
    """Answer inputs in one of the four ways there are."""
    if how == "batch":
        return chat.batch(inputs, **settings)
    if how == "abatch":
        return asyncio.run(chat.abatch(inputs, **settings))
    turns = [[HumanMessage(text)] for text in inputs]
    result = chat.generate(turns) if how == "generate" else asyncio.run(chat.agenerate(turns))
    assert len({info.run_id for info in result.run}) == len(inputs)
    return [row[0].message for row in result.generations]


WAYS = ["batch", "abatch", "generate", "agenerate"]


@pytest.mark.parametrize("how", WAYS)
def test_one_pass_for_all_with_the_results_of_single_calls(chat, passes, how):
    found = together(chat, QUESTIONS, how)
    assert passes == {"generate": [5], "score": [5]}
    for message, question in zip(found, QUESTIONS, strict=True):
        same(message, chat.invoke(question))


def test_rows_that_end_early_are_the_same_too():
    asked = ["Hello!", "What is the capital of France?", "Tell me a joke.", "Who are you?"]
    chat = ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 32, "do_sample": False})
    for message, question in zip(chat.batch(asked), asked, strict=True):
        same(message, chat.invoke(question))


@pytest.mark.parametrize("pad", [0, 1])
def test_a_stop_text_ends_each_row_where_it_stands(chat, pad):
    text = chat.invoke(QUESTIONS[0]).content
    chat.model.generation_config.pad_token_id = pad  # 1 is the end-of-turn token as well
    mark = next(sign for place, sign in enumerate(text) if place > 1 and sign not in text[:place])
    bound = chat.bind(stop=[mark])
    found = bound.batch(QUESTIONS)
    assert found[0].content == text.split(mark)[0].strip() != ""
    assert len({message.usage_metadata["output_tokens"] for message in found}) > 1
    for message, question in zip(found, QUESTIONS, strict=True):
        same(message, bound.invoke(question))


def test_batches_have_a_size(chat, passes):
    chat.batch(QUESTIONS, {"max_concurrency": 2})
    assert passes["generate"] == [2, 2, 1]
    passes["generate"].clear()
    ChatSemGrad.from_llm(chat, batch_size=3).batch(QUESTIONS, {"max_concurrency": 4})
    assert passes["generate"] == [3, 2]


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_each_row_has_a_run_and_a_configuration_of_its_own(chat, how):
    handlers, ids = [Runs() for _ in QUESTIONS], [uuid.uuid4() for _ in QUESTIONS]
    configs = [
        {"callbacks": [handler], "run_id": run, "metadata": {"row": row}, "tags": [f"row{row}"]}
        for row, (handler, run) in enumerate(zip(handlers, ids, strict=True))
    ]
    found = together(chat, QUESTIONS, how, config=configs)
    for row, (handler, run, message) in enumerate(zip(handlers, ids, found, strict=True)):
        assert handler.events == {"start": 1, "end": 1}
        assert handler.answers == {run: message}
        assert handler.metadata[run]["row"] == row
        assert handler.tags[run] == [f"row{row}"]


@pytest.mark.parametrize("how", ["batch", "abatch"])
def test_a_row_that_fails_does_not_take_the_others_with_it(chat, passes, how):
    runs = Runs()
    inputs = ["Why?", "long " * 100, "What?", [HumanMessage([{"type": "image", "url": "x"}])]]
    found = together(chat, inputs, how, config={"callbacks": [runs]}, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [AIMessage, PromptTooLongError, AIMessage, ConfigurationError]
    assert runs.events == {"start": 4, "end": 2, "error": 2}
    assert passes["generate"] == [2]
    same(found[2], chat.invoke("What?"))
    with pytest.raises(PromptTooLongError):
        together(chat, inputs, how)


def test_when_the_batch_itself_fails_each_row_is_tried_alone(chat, monkeypatch):
    generate = SemGradScorer.generate

    def no_memory(self, prompts, **settings):
        if len(prompts) > 1 or len(prompts[0]) > 30:
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, prompts, **settings)

    monkeypatch.setattr(SemGradScorer, "generate", no_memory)
    found = chat.batch(QUESTIONS, return_exceptions=True)
    assert [isinstance(outcome, AIMessage) for outcome in found] == [True, False, True, True, True]
    assert isinstance(found[1], torch.OutOfMemoryError)


def test_a_score_that_fails_is_that_row_s_failure_alone(chat, monkeypatch):
    score = SemGradScorer.score

    def picky(self, generations, **settings):
        if any(len(generation.prompt_ids) > 30 for generation in generations):
            raise RuntimeError("no")
        return score(self, generations, **settings)

    monkeypatch.setattr(SemGradScorer, "score", picky)
    records = [message.response_metadata["semgrad"] for message in chat.batch(QUESTIONS)]
    failed = {"kind": "scoring_failed", "text": "scoring failed: RuntimeError"}
    assert [record["failure"] for record in records].count(failed) == 1
    assert [record["scores"] is None for record in records] == [False, True, False, False, False]


def test_chains_and_bindings_batch_too(chat, passes):
    chain = ChatPromptTemplate.from_template("{x}?") | chat.bind(max_new_tokens=3) | RunnableLambda(lambda m: m.content)
    assert chain.batch([{"x": "a"}, {"x": "bb"}]) == [chain.invoke({"x": "a"}), chain.invoke({"x": "bb"})]
    assert passes["generate"] == [2, 1, 1]


def test_a_callback_may_ask_the_model_meanwhile(chat):
    class Asks(BaseCallbackHandler):
        def on_llm_end(self, response, **kwargs):
            asked.append(chat.invoke("And?").content)

    asked = []
    found = chat.batch(QUESTIONS, {"callbacks": [Asks()]})
    assert [message.content for message in found] == [chat.invoke(question).content for question in QUESTIONS]
    assert asked == [chat.invoke("And?").content] * len(QUESTIONS)


def test_nothing_is_left_waiting_when_a_task_is_cancelled(chat):
    async def cancelled():
        task = asyncio.ensure_future(chat.abatch(QUESTIONS))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await chat.abatch(QUESTIONS[:2])

    assert len(asyncio.run(cancelled())) == 2


def test_forced_calls_keep_to_their_own_rows(passes):
    class Booking(BaseModel):
        """Book a table."""

        restaurant: str
        people: int

    chat = ChatSemGrad.from_model(*embedded_model(), generation={"max_new_tokens": 48, "do_sample": False})
    bound = chat.bind_tools([Booking], tool_choice="any")
    asked = ['Call Booking("Toltec", 4).', "Hello!", "Book a table for 12 people at the restaurant Karurg, please."]
    found = bound.batch(asked)
    assert passes["generate"] == [3]
    for message, question in zip(found, asked, strict=True):
        alone = bound.invoke(question)
        assert message.tool_calls[0]["args"] == alone.tool_calls[0]["args"]
        Booking.model_validate(message.tool_calls[0]["args"])


def test_rows_of_anything_that_asks_the_model_meet(chat, passes):
    guard = SemGradGuard(chat, score_threshold=1e9, routes=[Abstain("no")])
    found = guard.llm.together(lambda row: guard.invoke(QUESTIONS[row]).content, len(QUESTIONS))
    assert passes == {"generate": [5], "score": [5]}
    assert found == [guard.invoke(question).content for question in QUESTIONS]


def test_without_meeting_it_is_langchain_s_own_batch(chat):
    """The same rows in LangChain's threads, one pass each."""
    theirs = BaseChatModel.batch(chat, QUESTIONS)
    for message, other in zip(chat.batch(QUESTIONS), theirs, strict=True):
        same(message, other)
    assert chat.batch([]) == []
